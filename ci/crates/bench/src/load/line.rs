//! One connection of a load: frames sealed and opened without ever waiting, many requests at a time.
//!
//! The client library has one call at a time on a connection. A load has hundreds of connections with
//! dozens of requests each on a few threads, so it speaks the protocol itself: what is to be sent is
//! gathered in memory, what comes in is taken apart where it was received, and the bytes of values are
//! checked against their CRCs and forgotten.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use memkv_wire::handshake::{ClientHello, Limits, ServerHello, connect_keys, session_keys};
use memkv_wire::{
    Crc32c, CrcList, GetItem, GetItems, GetReply, HEADER_LEN, Header, ItemReplies, KeyList, Opcode,
    Opener, PutAdvice, PutItem, PutItems, PutMode, Refusal, Sealer, SharedKey, Side, Status,
    TO_THE_END, VERSION, crc32c,
};

use crate::error::{BenchError, doing};
use crate::measure::{NEVER, key};

/// How long a request may take, as servers are told.
pub const DEADLINE: Duration = Duration::from_secs(10);
/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// What a load asks for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Ask {
    /// Whether a block is there that never was.
    Exists,
    /// The value of a slot.
    Get {
        /// Its slot.
        slot: u32,
        /// Its bytes.
        bytes: usize,
    },
    /// A value in place of a slot's, at most 256 KiB.
    Put {
        /// Its slot.
        slot: u32,
        /// Its bytes.
        bytes: usize,
    },
}

impl Ask {
    /// Bytes of value that it moves.
    pub fn bytes(self) -> u64 {
        match self {
            Ask::Exists => 0,
            Ask::Get { bytes, .. } | Ask::Put { bytes, .. } => bytes as u64,
        }
    }
}

/// How a request ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// It was done.
    Done,
    /// The server has no room for it now; it is to come back after so many milliseconds.
    Busy(u32),
}

/// A request that is answered.
#[derive(Clone, Copy, Debug)]
pub struct Answer {
    /// What was asked.
    pub ask: Ask,
    /// When.
    pub when: Instant,
    /// What came of it.
    pub end: End,
}

/// Why a connection is of no use any more.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    /// The system, or the peer's end of the stream.
    #[error("a connection of the load failed")]
    Io(#[from] io::Error),
    /// A frame that is none.
    #[error("a frame is refused")]
    Frame(#[from] memkv_wire::FrameError),
    /// A meta that is none.
    #[error("a meta is refused")]
    Meta(#[from] memkv_wire::MetaError),
    /// Something that is no answer to what was asked.
    #[error("{0}")]
    Odd(&'static str),
    /// The server said something else than done or busy.
    #[error("the server answers {0:?}")]
    Refused(Status),
    /// A value that is another one.
    #[error("a value came back as another one")]
    Wrong,
}

/// Who connects: the same for all connections of a load.
pub struct Caller {
    /// Where the server listens.
    pub address: SocketAddr,
    /// The key.
    pub key: SharedKey,
    /// The namespace.
    pub namespace: &'static str,
    /// The client's id.
    pub id: [u8; 16],
}

/// The value of a get on its way in.
struct Body {
    asked: Asked,
    left: usize,
    /// Bytes of it that the server has lent.
    lent: u64,
    crc: Crc32c,
    wanted: u32,
}

#[derive(Clone, Copy)]
struct Asked {
    id: u64,
    ask: Ask,
    when: Instant,
}

/// A connection and what is under way on it.
pub struct Line {
    stream: TcpStream,
    sealer: Sealer,
    opener: Opener,
    namespace: u32,
    /// What the server allows.
    pub limits: Limits,
    out: Vec<u8>,
    sent: usize,
    /// Bytes of a header and its meta, as far as they have come.
    head: Vec<u8>,
    header: Option<Header>,
    body: Option<Body>,
    /// What is under way, in no order.
    asked: Vec<Asked>,
    puts: u32,
    /// Lent payload received.
    consumed: u64,
    next: u64,
}

impl Line {
    /// Connects and shakes hands. `number` is of this connection alone, so that no two requests of a
    /// client have one id.
    pub fn connect(caller: &Caller, number: u32) -> Result<Line, LineError> {
        let mut stream = TcpStream::connect(caller.address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(HANDSHAKE))?;
        let mut client_nonce = [0; 32];
        fastrand::fill(&mut client_nonce);
        let hello = ClientHello {
            client_nonce,
            client_id: caller.id,
            key_id: 0,
            namespace: caller.namespace,
            version_min: VERSION,
            version_max: VERSION,
            counts_lent: true,
            reads_windows: false,
        };
        let mut meta = Vec::new();
        hello.encode(&mut meta);
        let (mut sealer, mut opener) = connect_keys(&caller.key, 0, Side::Client);
        let mut frame = Vec::new();
        sealer.seal(&mut Header::request(Opcode::Connect, 0), &meta, &mut frame);
        stream.write_all(&frame)?;
        let mut raw = [0; HEADER_LEN];
        stream.read_exact(&mut raw)?;
        let mut meta = vec![0; opener.peek(&raw)?.meta_length() as usize];
        stream.read_exact(&mut meta)?;
        let header = opener.open(&raw, &meta)?;
        if header.status() != Status::Ok {
            return Err(LineError::Refused(header.status()));
        }
        let answer = ServerHello::parse(&meta)?;
        if !answer.answers(&hello) {
            return Err(LineError::Odd("an answer to another Connect"));
        }
        let (sealer, opener) = session_keys(
            &caller.key,
            0,
            answer.version,
            &client_nonce,
            &answer.server_nonce,
            Side::Client,
        );
        stream.set_nonblocking(true)?;
        Ok(Line {
            stream,
            sealer,
            opener,
            namespace: answer.namespace,
            limits: answer.limits,
            out: Vec::new(),
            sent: 0,
            head: Vec::new(),
            header: None,
            body: None,
            asked: Vec::new(),
            puts: 0,
            consumed: 0,
            next: u64::from(number) << 32 | 1,
        })
    }

    /// Requests under way.
    pub fn under_way(&self) -> usize {
        self.asked.len()
    }

    /// Bytes that the system has not taken yet.
    pub fn unsent(&self) -> usize {
        self.out.len() - self.sent
    }

    /// Whether the protocol allows this request now.
    pub fn admits(&self, ask: Ask) -> bool {
        let credit = !matches!(ask, Ask::Put { .. }) || self.puts < self.limits.credits;
        credit && self.asked.len() < self.limits.max_requests as usize
    }

    /// Queues a request; `value` is what a put stores.
    pub fn ask(&mut self, ask: Ask, when: Instant, value: &[u8]) {
        let id = self.next;
        self.next += 1;
        let mut meta = Vec::new();
        let (opcode, payload): (_, &[u8]) = match ask {
            Ask::Exists => {
                KeyList { keys: vec![NEVER.as_bytes()] }.encode(&mut meta);
                (Opcode::Exists, &[])
            }
            Ask::Get { slot, bytes } => {
                let key = key(slot, bytes);
                let item = GetItem { key: key.as_bytes(), offset: 0, length: TO_THE_END };
                GetItems { items: vec![item] }.encode(&mut meta);
                (Opcode::Get, &[])
            }
            Ask::Put { slot, bytes } => {
                let (key, value) = (key(slot, bytes), &value[..bytes]);
                let crcs = CrcList::from_slice(&[crc32c(value)]).expect("a list may have one");
                let item = PutItem {
                    key: key.as_bytes(),
                    length: bytes as u64,
                    mode: PutMode::Replace,
                    durable: false,
                    ttl_seconds: 0,
                    crcs,
                    advice: PutAdvice::default(),
                };
                PutItems { items: vec![item] }.encode(&mut meta);
                self.puts += 1;
                (Opcode::Put, value)
            }
        };
        let mut header = Header::request(opcode, id)
            .with_namespace(self.namespace)
            .with_deadline_ms(DEADLINE.as_millis() as u32)
            .with_consumed(self.consumed)
            .with_payload_length(payload.len() as u64);
        self.sealer.seal(&mut header, &meta, &mut self.out);
        self.out.extend_from_slice(payload);
        self.asked.push(Asked { id, ask, when });
    }

    /// Sends what the system takes; whether something is left.
    pub fn flush(&mut self) -> Result<bool, LineError> {
        while self.sent < self.out.len() {
            match (&self.stream).write(&self.out[self.sent..]) {
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.sent = 0;
        self.out.clear();
        Ok(false)
    }

    /// Takes what has come, one receive into `scratch` at most; whether there may be more.
    pub fn receive(
        &mut self,
        scratch: &mut [u8],
        answered: &mut impl FnMut(Answer),
    ) -> Result<bool, LineError> {
        let count = match (&self.stream).read(scratch) {
            Ok(0) => return Err(LineError::Odd("the server ended a connection of the load")),
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(true),
            Err(error) => return Err(error.into()),
        };
        let mut bytes = &scratch[..count];
        while !bytes.is_empty() {
            bytes = match self.body.take() {
                Some(body) => self.take_body(body, bytes, answered)?,
                None => self.take_head(bytes, answered)?,
            };
        }
        Ok(count == scratch.len())
    }

    fn take_body<'a>(
        &mut self,
        mut body: Body,
        bytes: &'a [u8],
        answered: &mut impl FnMut(Answer),
    ) -> Result<&'a [u8], LineError> {
        let (mine, rest) = bytes.split_at(bytes.len().min(body.left));
        body.crc.update(mine);
        body.left -= mine.len();
        if body.left > 0 {
            self.body = Some(body);
        } else if body.crc.value() == body.wanted {
            self.consumed += body.lent;
            let Asked { ask, when, .. } = body.asked;
            answered(Answer { ask, when, end: End::Done });
        } else {
            return Err(LineError::Wrong);
        }
        Ok(rest)
    }

    /// Takes bytes of a header and its meta, and opens them when they are whole.
    fn take_head<'a>(
        &mut self,
        bytes: &'a [u8],
        answered: &mut impl FnMut(Answer),
    ) -> Result<&'a [u8], LineError> {
        let meta = self.header.as_ref().map_or(0, |header| header.meta_length() as usize);
        let missing = HEADER_LEN + meta - self.head.len();
        let (mine, rest) = bytes.split_at(bytes.len().min(missing));
        self.head.extend_from_slice(mine);
        if mine.len() < missing {
            return Ok(rest);
        }
        let raw = self.head.first_chunk().expect("it is as long as a header");
        if self.header.is_none() {
            let header = self.opener.peek(raw)?;
            let ends = header.meta_length() == 0;
            self.header = Some(header);
            if !ends {
                return Ok(rest);
            }
        }
        self.header = None;
        let header = self.opener.open(raw, &self.head[HEADER_LEN..])?;
        let taken = std::mem::take(&mut self.head);
        let result = self.answer(&header, &taken[HEADER_LEN..], answered);
        self.head = taken;
        self.head.clear();
        result.map(|()| rest)
    }

    fn answer(
        &mut self,
        header: &Header,
        meta: &[u8],
        answered: &mut impl FnMut(Answer),
    ) -> Result<(), LineError> {
        let at = self.asked.iter().position(|asked| asked.id == header.request_id());
        let at = at.ok_or(LineError::Odd("an answer to nothing that was asked"))?;
        let asked = self.asked.swap_remove(at);
        if matches!(asked.ask, Ask::Put { .. }) {
            self.puts -= 1;
        }
        let (ask, when) = (asked.ask, asked.when);
        let mut tell = |end| answered(Answer { ask, when, end });
        match header.status() {
            Status::Ok => {}
            Status::Busy => {
                tell(End::Busy(Refusal::parse(meta)?.retry_ms));
                return Ok(());
            }
            status => return Err(LineError::Refused(status)),
        }
        match ask {
            Ask::Exists => match &ItemReplies::parse(meta)?.items[..] {
                [item] if item.status == Status::NotFound => tell(End::Done),
                _ => return Err(LineError::Odd("an answer to Exists that cannot be")),
            },
            Ask::Put { .. } => match &ItemReplies::parse(meta)?.items[..] {
                [item] if item.status == Status::Ok => tell(End::Done),
                [item] if item.status == Status::Busy => tell(End::Busy(item.retry_ms)),
                [item] => return Err(LineError::Refused(item.status)),
                _ => return Err(LineError::Odd("an answer to other puts")),
            },
            Ask::Get { bytes, .. } => {
                let reply = GetReply::parse(meta)?.reply;
                match (reply.status, reply.crcs.as_slice()) {
                    (Status::Busy, _) => tell(End::Busy(reply.retry_ms)),
                    (Status::Ok, &[wanted]) if header.payload_length() == bytes as u64 => {
                        let lent = if header.is_lent() { bytes as u64 } else { 0 };
                        let crc = Crc32c::new();
                        self.body = Some(Body { asked, left: bytes, lent, crc, wanted });
                    }
                    (Status::Ok, _) => return Err(LineError::Wrong),
                    (status, _) => return Err(LineError::Refused(status)),
                }
            }
        }
        Ok(())
    }
}

impl AsFd for Line {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl From<LineError> for BenchError {
    fn from(error: LineError) -> BenchError {
        doing("a connection of the load")(io::Error::other(error))
    }
}
