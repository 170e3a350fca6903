//! Sealing and opening: sequence and MAC of every frame.
//!
//! ```text
//!   header 128 (mac at 96) | meta | payload | trailer (when TRAILER is set)
//!
//!   header mac  = HMAC-SHA256(direction key, header[0..96] ‖ meta)
//!   trailer     = crc_count u32 | crcs u32 × n, n ≤ 16 | mac 32
//!   trailer mac = HMAC-SHA256(direction key, header mac ‖ crc_count ‖ crcs)
//! ```
//!
//! The reader works in this order: read 128 bytes, [`Opener::peek`] (cheap checks, so that no
//! length is believed that is out of bounds), read the meta, [`Opener::open`] (the MAC; only now
//! may anything be reserved), read the payload, read the trailer, [`Opener::open_trailer`]. Any
//! [`FrameError`] ends the connection: after it no later byte has a known meaning.
//!
//! The keyed HMAC state is made once per direction and cloned per frame, which saves the two
//! compressions of the padded key each time. Nothing here allocates, but for the growth of the
//! caller's output buffer.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::header::{HEADER_LEN, Header};
use crate::{CrcList, MAX_EXTENTS, Status};

/// Which end of the connection this is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Side {
    /// The end that connected.
    Client,
    /// The end that accepted.
    Server,
}

impl Side {
    /// The other end.
    pub const fn peer(self) -> Side {
        match self {
            Side::Client => Side::Server,
            Side::Server => Side::Client,
        }
    }

    /// The direction byte of the key schedule for frames sent by this side.
    pub(crate) const fn direction(self) -> u8 {
        match self {
            Side::Client => 0,
            Side::Server => 1,
        }
    }
}

/// Why a frame was not accepted. Every one of these ends the connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the fields are named in each message")]
pub enum FrameError {
    /// Fewer bytes than the frame says it has.
    #[error("the frame needs {wanted} bytes here, got {got}")]
    Truncated { wanted: u64, got: u64 },
    /// The first four bytes are not `MKV1`: not this protocol, or the stream lost its step.
    #[error("not a memkv frame")]
    BadMagic,
    /// The peer speaks a version that this side does not know yet.
    #[error("the frame has protocol version {got}, newer than {}", crate::VERSION)]
    NewerVersion { got: u8 },
    /// A version number that never existed.
    #[error("the frame has protocol version {got}, which does not exist")]
    UnknownVersion { got: u8 },
    /// Header bytes 58–59 must be zero in this version.
    #[error("the reserved bytes of the header are {got:#06x}, not zero")]
    ReservedNotZero { got: u16 },
    /// No operation has this number.
    #[error("unknown opcode {got:#04x}")]
    UnknownOpcode { got: u8 },
    /// An operation of one-sided access, which this version only reserves.
    #[error("opcode {opcode:#04x} is reserved for one-sided access and not supported")]
    Unsupported { opcode: u8 },
    /// No status has this number.
    #[error("unknown status {got}")]
    UnknownStatus { got: u16 },
    /// Unknown flag bits, or bits that contradict each other.
    #[error("flags {got:#x} make no sense")]
    BadFlags { got: u32 },
    /// The meta would be longer than this operation allows.
    #[error("{got} bytes of meta announced, {limit} allowed")]
    MetaTooLong { got: u32, limit: u32 },
    /// The payload would be longer than this operation allows.
    #[error("{got} bytes of payload announced, {limit} allowed")]
    PayloadTooLong { got: u64, limit: u64 },
    /// A frame of this side came back to it.
    #[error("the frame goes in the other direction: reflected")]
    Reflected,
    /// A sequence that was there already: a repeated or replayed frame.
    #[error("the frame has sequence {sequence}, expected {expected}: a duplicate")]
    Duplicate { sequence: u64, expected: u64 },
    /// A sequence from the future: a frame before it was lost or overtaken.
    #[error("the frame has sequence {sequence}, expected {expected}: frames are missing before it")]
    Gap { sequence: u64, expected: u64 },
    /// The MAC does not fit: another key, another connection, or changed bytes.
    #[error("the frame is not authentic")]
    BadMac,
    /// The trailer's MAC does not fit its frame.
    #[error("the trailer is not authentic")]
    BadTrailer,
    /// The trailer announces more CRCs than a value has extents.
    #[error("the trailer announces {got} CRCs, at most {} are possible", MAX_EXTENTS)]
    TooManyCrcs { got: u32 },
}

impl FrameError {
    /// The status that a Goodbye or a log line gives for it.
    pub const fn status(&self) -> Status {
        match self {
            FrameError::NewerVersion { .. } | FrameError::UnknownVersion { .. } => {
                Status::UnsupportedVersion
            }
            FrameError::UnknownOpcode { .. } | FrameError::Unsupported { .. } => {
                Status::Unsupported
            }
            FrameError::MetaTooLong { .. } | FrameError::PayloadTooLong { .. } => Status::TooLarge,
            FrameError::Reflected
            | FrameError::Duplicate { .. }
            | FrameError::Gap { .. }
            | FrameError::BadMac
            | FrameError::BadTrailer => Status::Unauthorized,
            _ => Status::BadRequest,
        }
    }
}

/// Bytes of a trailer with `count` CRCs.
pub const fn trailer_len(count: usize) -> usize {
    4 + 4 * count + 32
}

/// The longest trailer: 100 bytes.
pub const MAX_TRAILER_LEN: usize = trailer_len(MAX_EXTENTS);

/// HMAC-SHA256 with the padded key already taken in.
#[derive(Clone)]
struct Keyed(Hmac<Sha256>);

impl Keyed {
    fn new(key: &[u8; 32]) -> Keyed {
        Keyed(Hmac::new_from_slice(key).expect("HMAC takes keys of any length"))
    }

    #[inline]
    fn over(&self, parts: [&[u8]; 2]) -> Hmac<Sha256> {
        let mut mac = self.0.clone();
        for part in parts {
            mac.update(part);
        }
        mac
    }
}

/// Makes the frames of one direction authentic and counts them.
pub struct Sealer {
    keyed: Keyed,
    from_server: bool,
    sequence: u64,
}

impl Sealer {
    /// For frames sent by `side`, the first of which gets `sequence`.
    pub(crate) fn new(key: &[u8; 32], side: Side, sequence: u64) -> Sealer {
        Sealer { keyed: Keyed::new(key), from_server: side == Side::Server, sequence }
    }

    /// Completes `header` (direction flag, meta length, sequence, MAC) and appends it and `meta` to
    /// `out`. Payload length, [`Header::with_trailer`] and the rest are the caller's and must be
    /// set before; payload and trailer follow from the caller. Frames must be sent in the order in
    /// which they were sealed.
    ///
    /// # Panics
    /// When the caller breaks the protocol: more meta or payload than the operation allows, or
    /// flags that contradict each other.
    pub fn seal(&mut self, header: &mut Header, meta: &[u8], out: &mut Vec<u8>) {
        let meta_length = u32::try_from(meta.len()).expect("meta is far below 4 GiB");
        header.stamp(self.from_server, meta_length, self.sequence);
        header.check().expect("this side sends only frames that its peer accepts");
        let mac = self.keyed.over([header.authenticated(), meta]).finalize();
        header.set_mac(mac.into_bytes().into());
        self.sequence = self.sequence.checked_add(1).expect("2^64 frames are never sent");
        out.reserve(HEADER_LEN + meta.len());
        out.extend_from_slice(header.as_bytes());
        out.extend_from_slice(meta);
    }

    /// Appends the trailer of the frame whose header got `header_mac`.
    ///
    /// # Panics
    /// On more than [`MAX_EXTENTS`] CRCs.
    pub fn seal_trailer(&self, header_mac: &[u8; 32], crcs: &[u32], out: &mut Vec<u8>) {
        assert!(crcs.len() <= MAX_EXTENTS, "a value has at most {MAX_EXTENTS} extents");
        let start = out.len();
        out.reserve(trailer_len(crcs.len()));
        out.extend_from_slice(&(crcs.len() as u32).to_le_bytes());
        for crc in crcs {
            out.extend_from_slice(&crc.to_le_bytes());
        }
        let mac = self.keyed.over([header_mac, &out[start..]]).finalize();
        out.extend_from_slice(&mac.into_bytes());
    }

    /// The sequence of the next frame.
    pub fn next_sequence(&self) -> u64 {
        self.sequence
    }
}

/// Checks the frames of one direction: the next in sequence, and authentic.
pub struct Opener {
    keyed: Keyed,
    from_server: bool,
    sequence: u64,
}

impl Opener {
    /// For frames received by `side`, the first of which must have `sequence`.
    pub(crate) fn new(key: &[u8; 32], side: Side, sequence: u64) -> Opener {
        Opener { keyed: Keyed::new(key), from_server: side.peer() == Side::Server, sequence }
    }

    /// Everything that can be checked before the meta is read: form and bounds
    /// ([`Header::parse`]), direction, sequence. The header is not authentic yet: use it to learn
    /// how much to read, for nothing else.
    ///
    /// # Errors
    /// Those of [`Header::parse`], then `Reflected`, `Duplicate`, `Gap`.
    pub fn peek(&self, raw: &[u8; HEADER_LEN]) -> Result<Header, FrameError> {
        let header = Header::parse(raw)?;
        if header.from_server() != self.from_server {
            return Err(FrameError::Reflected);
        }
        let (sequence, expected) = (header.sequence(), self.sequence);
        match sequence.cmp(&expected) {
            std::cmp::Ordering::Equal => Ok(header),
            std::cmp::Ordering::Less => Err(FrameError::Duplicate { sequence, expected }),
            std::cmp::Ordering::Greater => Err(FrameError::Gap { sequence, expected }),
        }
    }

    /// Checks the MAC over header and meta in constant time and moves on to the next sequence.
    /// Repeats [`peek`](Self::peek), so a caller that has all bytes needs only this.
    ///
    /// # Errors
    /// Those of `peek`; `Truncated` when `meta` is not as long as the header says; `BadMac`.
    pub fn open(&mut self, raw: &[u8; HEADER_LEN], meta: &[u8]) -> Result<Header, FrameError> {
        let header = self.peek(raw)?;
        let (wanted, got) = (u64::from(header.meta_length()), meta.len() as u64);
        if wanted != got {
            return Err(FrameError::Truncated { wanted, got });
        }
        self.keyed
            .over([header.authenticated(), meta])
            .verify(header.mac().into())
            .map_err(|_| FrameError::BadMac)?;
        self.sequence = self.sequence.checked_add(1).expect("2^64 frames are never received");
        Ok(header)
    }

    /// Checks the trailer of the frame whose header had `header_mac`; `bytes` is exactly the
    /// trailer. How many CRCs it must have follows from the payload
    /// ([`extents_touched`](crate::extents_touched)), so its length is known before it is read.
    ///
    /// # Errors
    /// `TooManyCrcs`, `Truncated` (also when there are bytes too many), `BadTrailer`.
    pub fn open_trailer(&self, header_mac: &[u8; 32], bytes: &[u8]) -> Result<CrcList, FrameError> {
        let truncated = |count| FrameError::Truncated {
            wanted: trailer_len(count) as u64,
            got: bytes.len() as u64,
        };
        let (count, _) = bytes.split_first_chunk::<4>().ok_or(truncated(0))?;
        let got = u32::from_le_bytes(*count);
        let count = usize::try_from(got).unwrap_or(usize::MAX);
        if count > MAX_EXTENTS {
            return Err(FrameError::TooManyCrcs { got });
        }
        if bytes.len() != trailer_len(count) {
            return Err(truncated(count));
        }
        let (body, mac) = bytes.split_last_chunk::<32>().ok_or(truncated(count))?;
        self.keyed
            .over([header_mac, body])
            .verify(mac.into())
            .map_err(|_| FrameError::BadTrailer)?;
        let mut list = CrcList::EMPTY;
        for crc in body[4..].as_chunks::<4>().0 {
            assert!(list.push(u32::from_le_bytes(*crc)), "the count was checked above");
        }
        Ok(list)
    }

    /// The sequence that the next frame must have.
    pub fn next_sequence(&self) -> u64 {
        self.sequence
    }
}

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sealer").field("sequence", &self.sequence).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Opener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Opener").field("sequence", &self.sequence).finish_non_exhaustive()
    }
}
