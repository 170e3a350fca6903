//! One connection to one server: handshake, and frames sealed and opened.
//!
//! A link belongs to one call at a time. Whatever goes wrong on it, it is dropped: after a fault no later
//! byte on it has a known meaning, and the server gives up what the call had reserved.

use std::io::IoSlice;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use memkv_net::NetError;
use memkv_net::shm::Windows;
use memkv_net::tcp::blocking::Stream;
use memkv_wire::handshake::{ClientHello, Door, Limits, ServerHello, connect_keys, session_keys};
use memkv_wire::meta::{DataMeta, GoodbyeMeta, Refusal, Spans};
use memkv_wire::{
    CrcList, CreditAccount, HEADER_LEN, Header, Opcode, Opener, Sealer, SharedKey, Side, Span,
    Status, VERSION, trailer_len,
};

use crate::crc::ExtentCrcs;
use crate::doors::Doors;
use crate::error::LinkFault;
use crate::staging::{Laid, Staging};
use crate::trace::TraceId;
use crate::types::Bytes;
use crate::unasked::Unasked;

/// Bytes of payload whose CRC is computed right after they were sent: while they are in the cache, if they
/// were copied, and while the server copies them, if they were lent.
const SEND_SLICE: usize = 1 << 20;
/// Bytes of payload received before their CRC is computed, while they are in the cache.
const RECV_SLICE: usize = 256 << 10;
/// Bytes of payload copied out of a window before their CRC is computed: so few that a processor which waits for
/// the first bytes of one slice still has the CRC of the one before to compute. Of 4 MiB that was not in the cache
/// 64 KiB take a quarter more time.
const READ_SLICE: usize = 4 << 10;
/// Bytes read ahead to find header and meta in one receive.
const INBOX: usize = 4096;

/// What every link of a client needs to know.
pub(crate) struct Settings {
    pub namespace: String,
    pub key: SharedKey,
    pub key_id: u32,
    pub client_id: [u8; 16],
    pub connect_timeout: Duration,
    pub connections: usize,
    /// Windows of servers on this machine; `None` to have all payload sent.
    pub windows: Option<Doors>,
}

/// A connection that stands.
pub(crate) struct Link {
    stream: Stream,
    sealer: Sealer,
    opener: Opener,
    inbox: Inbox,
    out: Vec<u8>,
    meta: Vec<u8>,
    namespace: u32,
    /// Payload received that the server lent or named, in bytes.
    consumed: u64,
    /// Where the server's memory is read that it names, once it was asked for something.
    windows: Option<Arc<Windows>>,
    /// Memory in which it lays down what it puts, once it has put something.
    staging: Staging,
    /// Where windows are to be had, and what is known of doors.
    door: Option<(Door, Arc<Settings>)>,
    /// Of the call that has the link; 0 is none.
    trace: [u8; 16],
    /// What the server allows.
    pub limits: Limits,
    /// Whether the payload of an offer goes with it.
    pub unasked: Unasked,
    /// Presence need not be asked by Exists.
    pub answers_presence: bool,
    /// Inline Put frames that may still be sent.
    pub credits: CreditAccount,
}

/// A connection whose first frame is sent and not yet answered.
pub(crate) struct Greeting {
    stream: Stream,
    opener: Opener,
    settings: Arc<Settings>,
    client_nonce: [u8; 32],
}

impl Greeting {
    /// Sends Connect on a fresh stream.
    pub fn send(
        mut stream: Stream,
        settings: &Arc<Settings>,
        deadline: Instant,
    ) -> Result<Greeting, LinkFault> {
        let mut client_nonce = [0; 32];
        getrandom::fill(&mut client_nonce).expect("the kernel gives random bytes");
        let mut meta = Vec::with_capacity(512);
        hello(settings, client_nonce).encode(&mut meta);
        let (mut sealer, opener) = connect_keys(&settings.key, settings.key_id, Side::Client);
        let mut frame = Vec::with_capacity(HEADER_LEN + meta.len());
        sealer.seal(&mut Header::request(Opcode::Connect, 0), &meta, &mut frame);
        stream.send_vectored(&[IoSlice::new(&frame)], deadline).map_err(during_handshake)?;
        Ok(Greeting { stream, opener, settings: settings.clone(), client_nonce })
    }

    /// Waits until the answer begins, or `deadline`; true when it has begun.
    pub fn wait(&self, deadline: Instant) -> Result<bool, LinkFault> {
        let heard = Stream::wait_any(&[&self.stream], deadline).map_err(during_handshake)?;
        Ok(heard.is_some())
    }

    /// Receives the answer.
    pub fn finish(mut self, deadline: Instant) -> Result<Link, LinkFault> {
        let mut inbox = Inbox::new();
        let mut meta = Vec::new();
        let received =
            receive_frame(&mut self.stream, &mut inbox, &mut self.opener, &mut meta, deadline);
        let header = received.map_err(|fault| match fault {
            LinkFault::Net(error) => LinkFault::Handshake(error),
            fault => fault,
        })?;
        if header.opcode() != Opcode::Connect || !header.is_reply() {
            return Err(LinkFault::Unexpected("something else than an answer to Connect"));
        }
        if header.status() != Status::Ok {
            let text = Refusal::parse(&meta)?.text.into();
            return Err(LinkFault::Refused { status: header.status(), text });
        }
        let answer = ServerHello::parse(&meta)?;
        if !answer.answers(&hello(&self.settings, self.client_nonce)) {
            return Err(LinkFault::Unexpected("an answer to another Connect"));
        }
        let (sealer, opener) = session_keys(
            &self.settings.key,
            self.settings.key_id,
            answer.version,
            &self.client_nonce,
            &answer.server_nonce,
            Side::Client,
        );
        let near = self.settings.windows.is_some() && self.stream.is_loopback();
        let door = answer.door.filter(|_| near).map(|door| (door, self.settings.clone()));
        Ok(Link {
            stream: self.stream,
            windows: None,
            staging: Staging::new(answer.takes_staged),
            door,
            sealer,
            opener,
            inbox,
            out: Vec::new(),
            meta,
            namespace: answer.namespace,
            consumed: 0,
            trace: [0; 16],
            limits: answer.limits,
            unasked: Unasked::new(answer.payload_with_offer),
            answers_presence: answer.answers_presence,
            credits: CreditAccount::new(answer.limits.credits),
        })
    }
}

fn hello(settings: &Settings, client_nonce: [u8; 32]) -> ClientHello<'_> {
    ClientHello {
        client_nonce,
        client_id: settings.client_id,
        key_id: settings.key_id,
        namespace: &settings.namespace,
        version_min: VERSION,
        version_max: VERSION,
        counts_lent: true,
        reads_windows: settings.windows.is_some(),
    }
}

/// A server that closes before it has answered Connect does not like us, or is going down.
fn during_handshake(error: NetError) -> LinkFault {
    match error {
        NetError::TimedOut => LinkFault::Silent,
        error => LinkFault::Handshake(error),
    }
}

impl Link {
    /// Connects and shakes hands until `deadline`.
    pub fn connect(
        address: &str,
        settings: &Arc<Settings>,
        deadline: Instant,
    ) -> Result<Link, LinkFault> {
        let stream = Stream::connect(address, deadline).map_err(LinkFault::Connect)?;
        Greeting::send(stream, settings, deadline)?.finish(deadline)
    }

    /// True when nothing has come in that nobody asked for, the end of the stream least of all.
    pub fn is_quiet(&self) -> bool {
        self.inbox.is_empty() && self.stream.is_quiet()
    }

    /// The trace of the requests to come.
    pub fn set_trace(&mut self, trace: Option<TraceId>) {
        self.trace = trace.map_or([0; 16], TraceId::bytes);
    }

    /// Its socket, for a gate.
    pub fn socket(&self) -> RawFd {
        self.stream.as_raw_fd()
    }

    /// The link among `links` that has something to receive first; `None` when none has by `deadline`.
    pub fn wait_any(links: &[&Link], deadline: Instant) -> Result<Option<usize>, LinkFault> {
        if let Some(at) = links.iter().position(|link| !link.inbox.is_empty()) {
            return Ok(Some(at));
        }
        let streams: Vec<&Stream> = links.iter().map(|link| &link.stream).collect();
        Stream::wait_any(&streams, deadline).map_err(LinkFault::moving)
    }

    /// Sends a request with its payload, which may lie in pieces.
    pub fn send(
        &mut self,
        header: Header,
        meta: &[u8],
        payload: &[&[u8]],
        deadline: Instant,
    ) -> Result<(), LinkFault> {
        let length = payload.iter().map(|piece| piece.len() as u64).sum();
        self.seal(header.with_payload_length(length), meta, deadline);
        let result = if payload.is_empty() {
            self.stream.send_vectored(&[IoSlice::new(&self.out)], deadline)
        } else {
            let head = std::iter::once(&*self.out);
            let slices: Vec<_> = head.chain(payload.iter().copied()).map(IoSlice::new).collect();
            self.stream.send_vectored(&slices, deadline)
        };
        // Of what is asked here without more ado the answer is small; who asks for more says so.
        self.stream.expect(length);
        result.map_err(|error| self.last_word(error))
    }

    /// Whether a Get's reply may name its payload: gets the server's windows, if there are some and it has none.
    pub fn reads_windows(&mut self, deadline: Instant) -> bool {
        if self.windows.is_none()
            && let Some((door, settings)) = &self.door
        {
            self.windows = settings.windows.as_ref().and_then(|doors| doors.enter(door, deadline));
        }
        self.windows.is_some()
    }

    /// Lays the payload of an inline put down where the server reads it, and computes its CRCs. `None` when it is
    /// to be sent, for which there are many good reasons.
    pub fn stage(&mut self, values: &[&Bytes<'_>], deadline: Instant) -> Option<Laid> {
        let Link { staging, door, limits, .. } = self;
        let (door, settings) = door.as_ref()?;
        let doors = settings.windows.as_ref()?;
        staging.lay(values, limits, |length| doors.bring(door, length, deadline))
    }

    /// The server is done with what was laid down there, and `found` it or did not.
    pub fn taken(&mut self, place: usize, found: bool) {
        self.staging.taken(place, found);
    }

    /// Whether so many bytes of payload, if they are laid down, have a place now.
    pub fn has_place(&self, length: u64) -> bool {
        self.staging.has_place(length)
    }

    /// Tells how many bytes the answer to what was sent last will have.
    pub fn expect(&mut self, bytes: u64) {
        self.stream.expect(bytes);
    }

    /// The fault of a send that failed: what the server said before it stopped reading, if it did.
    fn last_word(&mut self, error: NetError) -> LinkFault {
        let fault = LinkFault::moving(error);
        if matches!(fault, LinkFault::Silent) {
            return fault;
        }
        // Replies to what was sent before may stand in front of it; they are of no use without the rest.
        loop {
            match self.receive(Instant::now()) {
                Ok(_) => {}
                Err(word @ LinkFault::Goodbye { .. }) => return word,
                Err(_) => return fault,
            }
        }
    }

    /// Sends the bytes of item `item` of the Offer `request_id`; see [`Link::send_value`].
    pub fn send_data(
        &mut self,
        request_id: u64,
        item: u32,
        value: &Bytes<'_>,
        deadline: Instant,
    ) -> Result<(), LinkFault> {
        let mut meta = Vec::with_capacity(8);
        DataMeta { item }.encode(&mut meta);
        self.send_value(Header::request(Opcode::Data, request_id), &meta, value, deadline)
    }

    /// Sends a value as the payload of a frame, its CRCs computed on the way and sent behind it. Its memory is
    /// lent to the kernel, and stays as it is until the server has answered: were it changed before, its CRCs
    /// would not fit, and the server would store nothing.
    pub fn send_value(
        &mut self,
        header: Header,
        meta: &[u8],
        value: &Bytes<'_>,
        deadline: Instant,
    ) -> Result<(), LinkFault> {
        let length = value.len();
        let header = header.with_payload_length(length).with_trailer();
        let mac = self.seal(header, meta, deadline);
        let mut crcs = ExtentCrcs::new(0, self.limits.extent);
        let mut trailer = Vec::with_capacity(trailer_len(16));
        let mut head: &[u8] = &self.out;
        for slice in value.pieces().iter().flat_map(|piece| piece.chunks(SEND_SLICE)) {
            let result = self.stream.send_lending(head, slice, deadline);
            if let Err(error) = result {
                return Err(self.last_word(error));
            }
            head = &[];
            // The server takes the slice meanwhile.
            crcs.update(slice);
        }
        let list = crcs.list().ok_or(LinkFault::Unexpected("extents too small"))?;
        self.sealer.seal_trailer(&mac, &list, &mut trailer);
        let result = self.stream.send_vectored(&[IoSlice::new(&trailer)], deadline);
        // The server has to take the value and to commit it first.
        self.stream.expect(length);
        result.map_err(|error| self.last_word(error))?;
        Ok(())
    }

    /// Puts the sealed header and meta into `out` and returns the header's MAC.
    fn seal(&mut self, header: Header, meta: &[u8], deadline: Instant) -> [u8; 32] {
        let left = deadline.saturating_duration_since(Instant::now()).as_millis();
        // 0 would leave it to the server.
        let deadline_ms = u32::try_from(left.max(1)).unwrap_or(u32::MAX);
        let header = header.with_namespace(self.namespace).with_deadline_ms(deadline_ms);
        let mut header = header.with_consumed(self.consumed).with_trace_id(self.trace);
        self.out.clear();
        self.sealer.seal(&mut header, meta, &mut self.out);
        *header.mac()
    }

    /// Receives header and meta of the next reply; the meta is in [`Link::meta`]. Credits that came with it
    /// are back in the account. The payload, if any, is still to be received.
    pub fn receive(&mut self, deadline: Instant) -> Result<Header, LinkFault> {
        let header = receive_frame(
            &mut self.stream,
            &mut self.inbox,
            &mut self.opener,
            &mut self.meta,
            deadline,
        )?;
        if header.opcode() == Opcode::Goodbye {
            let text = GoodbyeMeta::parse(&self.meta)?.text.into();
            return Err(LinkFault::Goodbye { status: header.status(), text });
        }
        if !header.is_reply() {
            return Err(LinkFault::Unexpected("a request"));
        }
        if header.opcode() != Opcode::Get && header.has_trailer() {
            return Err(LinkFault::Unexpected("a trailer without payload"));
        }
        self.credits
            .put_back(header.credits())
            .map_err(|_| LinkFault::Unexpected("more credits than were taken"))?;
        Ok(header)
    }

    /// The meta of the reply received last.
    pub fn meta(&self) -> &[u8] {
        &self.meta
    }

    /// Receives the payload of the reply `header` into all of `pieces`, one behind the other, which begins at
    /// `offset` of its value, and returns its CRCs, one per extent touched.
    pub fn receive_payload<'a>(
        &mut self,
        header: &Header,
        pieces: impl Iterator<Item = &'a mut [u8]>,
        offset: u64,
        deadline: Instant,
    ) -> Result<CrcList, LinkFault> {
        let mut crcs = ExtentCrcs::new(offset, self.limits.extent);
        for into in pieces {
            let mut got = self.inbox.take(into);
            crcs.update(&into[..got]);
            while got < into.len() {
                let end = into.len().min(got + RECV_SLICE);
                let slice = &mut into[got..end];
                self.stream.recv_exact(slice, deadline).map_err(LinkFault::moving)?;
                crcs.update(slice);
                got = end;
            }
            if header.is_lent() {
                self.consumed += got as u64;
            }
        }
        crcs.list().ok_or(LinkFault::Unexpected("more extents than a value has"))
    }

    /// Reads the payload that a reply names, as [`Link::receive_payload`] receives one. It is what the server
    /// has lent until it is counted as consumed, which is when all of it was read.
    pub fn read_payload<'a>(
        &mut self,
        spans: &Spans,
        pieces: impl Iterator<Item = &'a mut [u8]>,
        offset: u64,
    ) -> Result<CrcList, LinkFault> {
        let windows =
            self.windows.as_ref().ok_or(LinkFault::Unexpected("payload that is named"))?;
        let holds = |span: &Span| windows.holds(span.window, span.offset, span.length.into());
        if !spans.iter().all(holds) {
            return Err(LinkFault::Unexpected("payload beyond what the server shows"));
        }
        let mut crcs = ExtentCrcs::new(offset, self.limits.extent);
        let mut pieces = pieces;
        let mut into: &mut [u8] = &mut [];
        for span in spans.iter() {
            let mut at = 0;
            while at < span.length as usize {
                while into.is_empty() {
                    into = pieces.next().ok_or(LinkFault::Unexpected("more than was asked for"))?;
                }
                let count = into.len().min(span.length as usize - at).min(READ_SLICE);
                let (slice, rest) = std::mem::take(&mut into).split_at_mut(count);
                windows.read(span.window, span.offset + at as u64, slice);
                crcs.update(slice);
                (into, at) = (rest, at + count);
            }
        }
        self.consumed += spans.bytes();
        crcs.list().ok_or(LinkFault::Unexpected("more extents than a value has"))
    }

    /// Receives the trailer of the reply `header`, which is to hold `count` CRCs.
    pub fn receive_trailer(
        &mut self,
        header: &Header,
        count: usize,
        deadline: Instant,
    ) -> Result<CrcList, LinkFault> {
        let mut bytes = vec![0; trailer_len(count)];
        self.inbox.receive(&mut self.stream, &mut bytes, deadline)?;
        Ok(self.opener.open_trailer(header.mac(), &bytes)?)
    }
}

/// Receives one header and its meta and checks both.
fn receive_frame(
    stream: &mut Stream,
    inbox: &mut Inbox,
    opener: &mut Opener,
    meta: &mut Vec<u8>,
    deadline: Instant,
) -> Result<Header, LinkFault> {
    let mut raw = [0; HEADER_LEN];
    inbox.receive(stream, &mut raw, deadline)?;
    let announced = opener.peek(&raw)?;
    meta.clear();
    meta.resize(announced.meta_length() as usize, 0);
    inbox.receive(stream, meta, deadline)?;
    Ok(opener.open(&raw, meta)?)
}

/// Bytes received ahead of what was asked, so that a small reply costs one receive.
struct Inbox {
    bytes: Box<[u8; INBOX]>,
    start: usize,
    end: usize,
}

impl Inbox {
    fn new() -> Inbox {
        Inbox { bytes: Box::new([0; INBOX]), start: 0, end: 0 }
    }

    fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Moves what is here into the front of `into`; returns how much that was.
    fn take(&mut self, into: &mut [u8]) -> usize {
        let count = into.len().min(self.end - self.start);
        into[..count].copy_from_slice(&self.bytes[self.start..self.start + count]);
        self.start += count;
        count
    }

    /// Fills `into`, from here first, reading ahead when what is still to come is small.
    fn receive(
        &mut self,
        stream: &mut Stream,
        into: &mut [u8],
        deadline: Instant,
    ) -> Result<(), LinkFault> {
        let mut got = self.take(into);
        while got < into.len() {
            let rest = &mut into[got..];
            if rest.len() >= INBOX {
                return stream.recv_exact(rest, deadline).map_err(LinkFault::moving);
            }
            (self.start, self.end) = (0, 0);
            match stream.recv_some(&mut self.bytes[..], deadline).map_err(LinkFault::moving)? {
                0 => return Err(LinkFault::Net(NetError::Closed)),
                count => self.end = count,
            }
            got += self.take(rest);
        }
        Ok(())
    }
}
