//! How a connection begins: two Connect frames, then session keys.
//!
//! ```text
//!   client                                              server
//!   Connect, sequence 0, connect key  ───────────────►  peek_connect, ClientHello::parse,
//!     ClientHello{nonce, key id, …}                     key id → shared key, open
//!                                     ◄───────────────  Connect reply, sequence 0, connect key
//!   open, ServerHello::parse,                             ServerHello{nonces, limits, …}
//!   ServerHello::answers(hello)
//!   ═══ both: session_keys(); the next frame of each direction has sequence 1 ═══
//! ```
//!
//! The key id is the only part of the hello that the server uses before the MAC is checked: it
//! finds the key that the MAC is checked with, and fixes the tenant. A server that does not know
//! the id has no key to answer with and closes.

use crate::frame::{Opener, Sealer, Side};
use crate::header::{HEADER_LEN, Header, VERSION};
use crate::key::{SharedKey, connect_key, session_key};
use crate::meta::cursor::{Reader, next_extension, put_str, unknown};
use crate::meta::{MetaError, append_extension};
use crate::{FrameError, MAX_EXTENTS, MAX_INLINE, MAX_ITEMS, MAX_NAMESPACE, MAX_VALUE, Opcode};

/// Extension of ClientHello, without bytes: the client counts lent payload, see
/// [`ClientHello::counts_lent`].
const COUNTS_LENT: u16 = 1;
/// Extension of ServerHello, without bytes: an Offer may bring its payload, see
/// [`ServerHello::payload_with_offer`].
const PAYLOAD_WITH_OFFER: u16 = 1;
/// Extension of ServerHello, without bytes: the server answers Presence, see
/// [`ServerHello::answers_presence`].
const ANSWERS_PRESENCE: u16 = 2;

/// Extension of ClientHello, without bytes: the client can read windows, see
/// [`ClientHello::reads_windows`].
const READS_WINDOWS: u16 = 2;
/// Extension of ServerHello, 52 bytes: where windows are handed out, see [`Door`].
const DOOR: u16 = 3;

/// Extension of ServerHello, without bytes: a Put may name its payload, see
/// [`ServerHello::takes_staged`].
const TAKES_STAGED: u16 = 4;

/// Where a client on the server's machine gets the windows through which it reads named payload.
///
/// ```text
///   0  name 16 | 16 ticket 32 | 48 windows u32
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Door {
    /// Names the socket at which they are handed out.
    pub name: [u8; 16],
    /// What has to be shown there.
    pub ticket: [u8; 32],
    /// How many there are, at least one; replies name them by their number.
    pub windows: u32,
}

impl Door {
    fn encode(&self, out: &mut Vec<u8>) {
        let mut bytes = [0; 52];
        bytes[..16].copy_from_slice(&self.name);
        bytes[16..48].copy_from_slice(&self.ticket);
        bytes[48..].copy_from_slice(&self.windows.to_le_bytes());
        append_extension(out, DOOR, &bytes);
    }

    fn parse(bytes: &[u8]) -> Result<Door, MetaError> {
        let mut reader = Reader::new(bytes);
        let (name, ticket) = (reader.array()?, reader.array()?);
        let door = Door { name, ticket, windows: reader.u32()? };
        match (door.windows, reader.remaining()) {
            (1.., 0) => Ok(door),
            _ => Err(MetaError::Extension { kind: DOOR }),
        }
    }
}

/// What the client says first (meta of the Connect request).
///
/// ```text
///   0  client_nonce 32 | 32 client_id 16 | 48 key_id u32 | 52 version_min u8 | 53 version_max u8
///  54  namespace_length u16 | 56 namespace | extensions
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ClientHello<'a> {
    /// 256 fresh random bits; never used twice.
    pub client_nonce: [u8; 32],
    /// Names the client process; request ids are remembered per client id, across connections.
    pub client_id: [u8; 16],
    /// Which shared key the client holds. In the clear, and nowhere else on the wire.
    pub key_id: u32,
    /// The namespace whose keys this connection is about: 1 to 255 bytes of UTF-8.
    pub namespace: &'a str,
    /// The oldest version the client speaks.
    pub version_min: u8,
    /// The newest version the client speaks.
    pub version_max: u8,
    /// The client says in every header how much [lent](crate::flags::LENT) payload it has taken, so
    /// the server may lend. An extension: a server that does not know it copies.
    pub counts_lent: bool,
    /// The client can read the server's memory where replies name it, should it be on its machine. An
    /// extension: a server that does not know it sends all payload.
    pub reads_windows: bool,
}

impl<'a> ClientHello<'a> {
    /// Appends the meta to `out`.
    ///
    /// # Panics
    /// When the namespace is empty or longer than [`MAX_NAMESPACE`].
    pub fn encode(&self, out: &mut Vec<u8>) {
        let length = self.namespace.len();
        assert!((1..=MAX_NAMESPACE).contains(&length), "a namespace has 1 to 255 bytes");
        out.extend_from_slice(&self.client_nonce);
        out.extend_from_slice(&self.client_id);
        out.extend_from_slice(&self.key_id.to_le_bytes());
        out.extend_from_slice(&[self.version_min, self.version_max]);
        put_str(out, self.namespace);
        if self.counts_lent {
            append_extension(out, COUNTS_LENT, &[]);
        }
        if self.reads_windows {
            append_extension(out, READS_WINDOWS, &[]);
        }
    }

    /// Reads the meta of a Connect request.
    ///
    /// # Errors
    /// [`MetaError`] for anything but a whole hello with a namespace and an orderly version range.
    pub fn parse(meta: &'a [u8]) -> Result<ClientHello<'a>, MetaError> {
        let mut reader = Reader::new(meta);
        let client_nonce = reader.array()?;
        let client_id = reader.array()?;
        let key_id = reader.u32()?;
        let [version_min, version_max] = reader.array()?;
        let namespace = reader.str()?;
        let got = namespace.len();
        if !(1..=MAX_NAMESPACE).contains(&got) {
            return Err(MetaError::NamespaceLength { got });
        }
        if version_min == 0 || version_min > version_max {
            return Err(MetaError::Versions { min: version_min, max: version_max });
        }
        let (mut counts_lent, mut reads_windows) = (false, false);
        while let Some((kind, _)) = next_extension(&mut reader)? {
            match kind {
                COUNTS_LENT => counts_lent = true,
                READS_WINDOWS => reads_windows = true,
                kind => unknown(kind)?,
            }
        }
        Ok(ClientHello {
            client_nonce,
            client_id,
            key_id,
            namespace,
            version_min,
            version_max,
            counts_lent,
            reads_windows,
        })
    }

    /// The newest version that both speak; `None` is answered with
    /// [`Status::UnsupportedVersion`](crate::Status::UnsupportedVersion).
    pub fn negotiate(&self) -> Option<u8> {
        (self.version_min..=self.version_max).contains(&VERSION).then_some(VERSION)
    }
}

/// What a server allows one connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Longest value in bytes, at most [`MAX_VALUE`] and at most 16 extents.
    pub max_value: u64,
    /// Most payload of one Put frame in bytes, at most [`MAX_INLINE`].
    pub max_inline: u32,
    /// Inline Put frames that may be unanswered at one time.
    pub credits: u32,
    /// Most items of one request, at most [`MAX_ITEMS`].
    pub max_items: u32,
    /// Requests that may be unanswered at one time.
    pub max_requests: u32,
    /// Longest lease in milliseconds; longer wishes are cut to it.
    pub lease_ms_max: u32,
    /// Bytes per extent: there is one CRC per extent of a value. 4 MiB in production.
    pub extent: u32,
}

impl Limits {
    /// What no server may exceed.
    fn check(&self) -> Result<(), MetaError> {
        let values = u64::from(self.extent).saturating_mul(MAX_EXTENTS as u64).min(MAX_VALUE);
        let fine = self.extent > 0
            && (1..=values).contains(&self.max_value)
            && self.max_inline <= MAX_INLINE
            && (1..=MAX_ITEMS as u32).contains(&self.max_items)
            && self.max_requests > 0;
        if fine { Ok(()) } else { Err(MetaError::Limits) }
    }
}

/// What the server answers (meta of the Connect reply with status Ok).
///
/// ```text
///   0  server_nonce 32 | 32 client_nonce 32 | 64 server_id 16 | 80 incarnation u64
///  88  namespace u32 | 92 version u8 | 93 reserved = 0, 3 bytes
///  96  max_value u64 | 104 max_inline u32 | 108 credits u32 | 112 max_items u32
/// 116  max_requests u32 | 120 lease_ms_max u32 | 124 extent u32 | 128 extensions
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ServerHello {
    /// 256 fresh random bits; never used twice.
    pub server_nonce: [u8; 32],
    /// The client's nonce again: proves that the reply is not an old one.
    pub client_nonce: [u8; 32],
    /// Names the node, across restarts.
    pub server_id: [u8; 16],
    /// Rises with every start of the server.
    pub incarnation: u64,
    /// The handle of the namespace, which later headers carry.
    pub namespace: u32,
    /// The version of all frames from here on.
    pub version: u8,
    /// What this connection may do.
    pub limits: Limits,
    /// The server takes an Offer of one item with its payload right behind it. An extension: to a server
    /// without it the payload goes by Data.
    pub payload_with_offer: bool,
    /// The server answers Presence. An extension: one without it is asked by Exists.
    pub answers_presence: bool,
    /// Where this client may get windows, from when on its Gets may say that replies may
    /// [name](crate::flags::NAMED) their payload. An extension, and only for who can read them.
    pub door: Option<Door>,
    /// At its door the server takes memory in which Puts may [name](crate::flags::NAMED) their
    /// payload. An extension, and only beside a door.
    pub takes_staged: bool,
}

impl ServerHello {
    /// Appends the meta to `out`.
    ///
    /// # Panics
    /// When the limits are out of the protocol's bounds.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let limits = &self.limits;
        limits.check().expect("a server grants limits within the protocol's bounds");
        out.extend_from_slice(&self.server_nonce);
        out.extend_from_slice(&self.client_nonce);
        out.extend_from_slice(&self.server_id);
        out.extend_from_slice(&self.incarnation.to_le_bytes());
        out.extend_from_slice(&self.namespace.to_le_bytes());
        out.extend_from_slice(&[self.version, 0, 0, 0]);
        out.extend_from_slice(&limits.max_value.to_le_bytes());
        for limit in [
            limits.max_inline,
            limits.credits,
            limits.max_items,
            limits.max_requests,
            limits.lease_ms_max,
            limits.extent,
        ] {
            out.extend_from_slice(&limit.to_le_bytes());
        }
        if self.payload_with_offer {
            append_extension(out, PAYLOAD_WITH_OFFER, &[]);
        }
        if self.answers_presence {
            append_extension(out, ANSWERS_PRESENCE, &[]);
        }
        if let Some(door) = &self.door {
            door.encode(out);
        }
        if self.takes_staged {
            append_extension(out, TAKES_STAGED, &[]);
        }
    }

    /// Reads the meta of a Connect reply.
    ///
    /// # Errors
    /// [`MetaError`] for anything but a whole hello with limits within the protocol's bounds.
    pub fn parse(meta: &[u8]) -> Result<ServerHello, MetaError> {
        let mut reader = Reader::new(meta);
        let mut hello = ServerHello {
            server_nonce: reader.array()?,
            client_nonce: reader.array()?,
            server_id: reader.array()?,
            incarnation: reader.u64()?,
            namespace: reader.u32()?,
            version: {
                let version = reader.u8()?;
                reader.zeros(3)?;
                version
            },
            limits: Limits {
                max_value: reader.u64()?,
                max_inline: reader.u32()?,
                credits: reader.u32()?,
                max_items: reader.u32()?,
                max_requests: reader.u32()?,
                lease_ms_max: reader.u32()?,
                extent: reader.u32()?,
            },
            payload_with_offer: false,
            answers_presence: false,
            door: None,
            takes_staged: false,
        };
        hello.limits.check()?;
        while let Some((kind, bytes)) = next_extension(&mut reader)? {
            match kind {
                PAYLOAD_WITH_OFFER => hello.payload_with_offer = true,
                ANSWERS_PRESENCE => hello.answers_presence = true,
                DOOR => hello.door = Some(Door::parse(bytes)?),
                TAKES_STAGED => hello.takes_staged = true,
                kind => unknown(kind)?,
            }
        }
        Ok(hello)
    }

    /// Whether this reply belongs to `hello`: its nonce, and a version it offered. A client that
    /// gets `false` closes: the reply is a replay.
    pub fn answers(&self, hello: &ClientHello<'_>) -> bool {
        self.client_nonce == hello.client_nonce
            && (hello.version_min..=hello.version_max).contains(&self.version)
    }
}

/// Checks a first header before the key is known: form and bounds, and that it is a Connect
/// request with sequence 0 and no payload. The MAC comes after the meta, by the opener of
/// [`connect_keys`].
///
/// # Errors
/// Those of [`Opener::peek`]; `BadFlags` or `UnknownOpcode` for a frame that is no Connect request.
pub fn peek_connect(raw: &[u8; HEADER_LEN]) -> Result<Header, FrameError> {
    let header = Header::parse(raw)?;
    if header.from_server() {
        return Err(FrameError::Reflected);
    }
    if header.opcode() != Opcode::Connect {
        return Err(FrameError::UnknownOpcode { got: header.opcode().raw() });
    }
    if header.has_trailer() {
        return Err(FrameError::BadFlags { got: header.flags() });
    }
    match header.sequence() {
        0 => Ok(header),
        sequence => Err(FrameError::Gap { sequence, expected: 0 }),
    }
}

/// The sealer and opener of `side` for the two Connect frames; both begin at sequence 0.
pub fn connect_keys(shared: &SharedKey, key_id: u32, side: Side) -> (Sealer, Opener) {
    let send = connect_key(shared, key_id, side);
    let receive = connect_key(shared, key_id, side.peer());
    (Sealer::new(&send, side, 0), Opener::new(&receive, side, 0))
}

/// The sealer and opener of `side` for all frames after Connect; both begin at sequence 1.
pub fn session_keys(
    shared: &SharedKey,
    key_id: u32,
    version: u8,
    client_nonce: &[u8; 32],
    server_nonce: &[u8; 32],
    side: Side,
) -> (Sealer, Opener) {
    let key = |sender| session_key(shared, key_id, version, (client_nonce, server_nonce), sender);
    (Sealer::new(&key(side), side, 1), Opener::new(&key(side.peer()), side, 1))
}
