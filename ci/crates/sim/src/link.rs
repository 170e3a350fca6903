//! A simulated client's side of one connection: handshake, frames out, frames in.

use memkv_sim::{ClientEnd, Fate};
use memkv_wire::handshake::{ClientHello, Limits, ServerHello, connect_keys, session_keys};
use memkv_wire::{
    FrameError, HEADER_LEN, Header, MetaError, Opcode, Opener, Sealer, SharedKey, Side, Status,
    trailer_len,
};

/// What the link is doing.
enum State {
    /// The hello was sent; its nonce and the keys of the two Connect frames.
    Greeting { nonce: [u8; 32], opener: Opener },
    /// Frames go both ways.
    Open { sealer: Sealer, opener: Opener },
}

/// One connection.
pub struct Link {
    end: ClientEnd,
    key_id: u32,
    key: SharedKey,
    client: [u8; 16],
    namespace: &'static str,
    state: State,
    /// Lent payload received.
    consumed: u64,
    /// Inline puts that may still be sent.
    pub credits: u32,
}

/// Why a link cannot go on.
#[derive(Debug)]
#[allow(dead_code, reason = "shown by Debug in the words of a failure")]
pub enum LinkError {
    /// A frame that no correct server sends.
    Frame(FrameError),
    /// A meta that no correct server sends.
    Meta(MetaError),
    /// The handshake was refused.
    Refused(Status),
    /// The reply to the hello was another's.
    Replayed,
}

/// What has arrived.
pub enum Arrival {
    /// Nothing whole yet.
    Nothing,
    /// The handshake is done.
    Greeted(Limits),
    /// A frame was shown to the handler.
    Frame,
}

impl Link {
    /// Sends the hello.
    pub fn greet(
        end: ClientEnd,
        (key_id, key): (u32, SharedKey),
        client: [u8; 16],
        namespace: &'static str,
        nonce: [u8; 32],
    ) -> Link {
        let (mut sealer, opener) = connect_keys(&key, key_id, Side::Client);
        let hello = ClientHello {
            client_nonce: nonce,
            client_id: client,
            key_id,
            namespace,
            version_min: memkv_wire::VERSION,
            version_max: memkv_wire::VERSION,
            counts_lent: true,
            reads_windows: false,
        };
        let mut meta = Vec::new();
        hello.encode(&mut meta);
        let mut header = Header::request(Opcode::Connect, 0);
        end.send_with(|out| sealer.seal(&mut header, &meta, out));
        let state = State::Greeting { nonce, opener };
        Link { end, key_id, key, client, namespace, state, consumed: 0, credits: 0 }
    }

    /// True when requests can be sent.
    pub fn is_open(&self) -> bool {
        matches!(self.state, State::Open { .. })
    }

    /// Reads nothing until it reads on.
    pub fn stop_reading(&self) {
        self.end.stop_reading();
    }

    /// Reads again.
    pub fn read_on(&self) {
        self.end.read_on();
    }

    /// How the stream stands.
    pub fn fate(&self) -> Fate {
        self.end.fate()
    }

    /// Closes the sending side in order.
    pub fn close(&self) {
        self.end.close();
    }

    /// Sends one frame.
    pub fn send(&mut self, header: Header, meta: &[u8], payload: &[u8]) {
        let mut header = header.with_consumed(self.consumed);
        let State::Open { sealer, .. } = &mut self.state else { panic!("requests need a session") };
        self.end.send_with(|out| {
            sealer.seal(&mut header, meta, out);
            out.extend_from_slice(payload);
        });
    }

    /// Sends one frame with a trailer of CRCs.
    pub fn send_with_trailer(&mut self, header: Header, meta: &[u8], payload: &[u8], crcs: &[u32]) {
        let State::Open { sealer, .. } = &mut self.state else { panic!("requests need a session") };
        let mut header = header.with_trailer().with_consumed(self.consumed);
        self.end.send_with(|out| {
            sealer.seal(&mut header, meta, out);
            out.extend_from_slice(payload);
            sealer.seal_trailer(header.mac(), crcs, out);
        });
    }

    /// Takes the next whole frame, if there is one, and shows it to `handle`: header, meta, payload.
    pub fn receive<E>(
        &mut self,
        handle: impl FnOnce(&Header, &[u8], &[u8]) -> Result<(), E>,
    ) -> Result<Result<Arrival, E>, LinkError> {
        let Link { end, state, consumed, .. } = self;
        match state {
            State::Greeting { nonce, opener } => {
                let nonce = *nonce;
                let hello = end.read(|bytes| match whole_frame(opener, bytes) {
                    Ok(Some((header, meta, _, total))) => (total, greeting(&header, meta)),
                    Ok(None) => (0, Ok(None)),
                    Err(error) => (0, Err(LinkError::Frame(error))),
                })?;
                let Some(hello) = hello else { return Ok(Ok(Arrival::Nothing)) };
                self.greeted(nonce, &hello).map(Ok)
            }
            State::Open { opener, .. } => end.read(|bytes| match whole_frame(opener, bytes) {
                Ok(Some((header, meta, payload, total))) => {
                    *consumed += if header.is_lent() { payload.len() as u64 } else { 0 };
                    (total, Ok(handle(&header, meta, payload).map(|()| Arrival::Frame)))
                }
                Ok(None) => (0, Ok(Ok(Arrival::Nothing))),
                Err(error) => (0, Err(LinkError::Frame(error))),
            }),
        }
    }

    fn greeted(&mut self, nonce: [u8; 32], hello: &ServerHello) -> Result<Arrival, LinkError> {
        let mine = ClientHello {
            client_nonce: nonce,
            client_id: self.client,
            key_id: self.key_id,
            namespace: self.namespace,
            version_min: memkv_wire::VERSION,
            version_max: memkv_wire::VERSION,
            counts_lent: true,
            reads_windows: false,
        };
        if !hello.answers(&mine) {
            return Err(LinkError::Replayed);
        }
        let (sealer, opener) = session_keys(
            &self.key,
            self.key_id,
            hello.version,
            &nonce,
            &hello.server_nonce,
            Side::Client,
        );
        self.state = State::Open { sealer, opener };
        self.credits = hello.limits.credits;
        Ok(Arrival::Greeted(hello.limits))
    }
}

fn greeting(header: &Header, meta: &[u8]) -> Result<Option<ServerHello>, LinkError> {
    if header.status() != Status::Ok {
        return Err(LinkError::Refused(header.status()));
    }
    ServerHello::parse(meta).map(Some).map_err(LinkError::Meta)
}

/// The frame at the beginning of `bytes`, once it is whole and authentic: header, meta, payload, length.
#[allow(clippy::type_complexity, reason = "the four parts of a frame, taken apart at once")]
fn whole_frame<'a>(
    opener: &mut Opener,
    bytes: &'a [u8],
) -> Result<Option<(Header, &'a [u8], &'a [u8], usize)>, FrameError> {
    let Some(raw) = bytes.first_chunk::<HEADER_LEN>() else { return Ok(None) };
    let header = opener.peek(raw)?;
    let meta_end = HEADER_LEN + header.meta_length() as usize;
    let payload_end = meta_end + header.payload_length() as usize;
    if bytes.len() < payload_end {
        return Ok(None);
    }
    let mut end = payload_end;
    if header.has_trailer() {
        let Some(count) = bytes[end..].first_chunk::<4>() else { return Ok(None) };
        end += trailer_len((u32::from_le_bytes(*count) as usize).min(memkv_wire::MAX_EXTENTS));
        if bytes.len() < end {
            return Ok(None);
        }
    }
    let meta = &bytes[HEADER_LEN..meta_end];
    let header = opener.open(raw, meta)?;
    if header.has_trailer() {
        opener.open_trailer(header.mac(), &bytes[payload_end..end])?;
    }
    Ok(Some((header, meta, &bytes[meta_end..payload_end], end)))
}
