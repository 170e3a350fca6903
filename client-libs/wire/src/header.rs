//! The fixed header that opens every frame.
//!
//! [`Header`] is a value that has been checked: its magic, version, opcode, status, flags and
//! lengths are known to make sense, whoever made it. Bytes become a `Header` only through
//! [`Header::parse`]; authenticity is [`Opener`](crate::Opener)'s business.

use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::{FrameError, Opcode, Status};

/// Bytes of a header.
pub const HEADER_LEN: usize = 128;
/// The part of the header that the MAC covers (together with the meta).
pub const AUTHENTICATED_LEN: usize = 96;
/// The newest protocol version this crate speaks, and the oldest.
pub const VERSION: u8 = 1;

pub(crate) const MAGIC: [u8; 4] = *b"MKV1";

/// Flag bits of the header.
pub mod flags {
    /// This frame answers a request.
    pub const REPLY: u32 = 1;
    /// A trailer follows the payload.
    pub const TRAILER: u32 = 2;
    /// The server sent it. Set by the sealer; keys differ per direction anyway.
    pub const FROM_SERVER: u32 = 4;
    /// More replies to this request follow.
    pub const MORE: u32 = 8;
    /// The payload is lent: it lies in the sender's memory until the receiver's [`consumed`] says
    /// that it was taken. Only on replies, and only to who said that it counts.
    ///
    /// [`consumed`]: super::Header::consumed
    pub const LENT: u32 = 16;
    /// The payload is named in the meta, and none follows: of a Get's reply, see
    /// [`NamedReply`](crate::NamedReply), and of a Put, see [`Staged`](crate::Staged). In the
    /// request of a Get: its reply may name its payload.
    pub const NAMED: u32 = 32;
    /// All bits this version knows; any other is refused.
    pub const ALL: u32 = REPLY | TRAILER | FROM_SERVER | MORE | LENT | NAMED;
}

/// The header as it lies on the wire; all numbers little-endian, no padding.
///
/// ```text
///   0  magic "MKV1"          4      56  priority              1
///   4  version = 1           1      57  codec                 1
///   5  opcode                1      58  reserved = 0          2
///   6  status                2      60  credits               4
///   8  flags                 4      64  consumed              8
///  12  meta_length           4      72  stored_length         8
///  16  payload_length        8      80  trace_id             16
///  24  request_id            8      ── the MAC covers 0..96 and the meta ──
///  32  sequence              8      96  mac                  32
///  40  namespace             4     128
///  44  deadline_ms           4
///  48  generation            8
/// ```
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Raw {
    magic: [u8; 4],
    version: u8,
    opcode: u8,
    status: U16,
    flags: U32,
    meta_length: U32,
    payload_length: U64,
    request_id: U64,
    sequence: U64,
    namespace: U32,
    deadline_ms: U32,
    generation: U64,
    priority: u8,
    codec: u8,
    reserved: U16,
    credits: U32,
    consumed: U64,
    stored_length: U64,
    trace_id: [u8; 16],
    mac: [u8; 32],
}

const _: () = {
    use std::mem::{align_of, offset_of, size_of};
    assert!(size_of::<Raw>() == HEADER_LEN && align_of::<Raw>() == 1);
    assert!(offset_of!(Raw, magic) == 0 && offset_of!(Raw, version) == 4);
    assert!(offset_of!(Raw, opcode) == 5 && offset_of!(Raw, status) == 6);
    assert!(offset_of!(Raw, flags) == 8 && offset_of!(Raw, meta_length) == 12);
    assert!(offset_of!(Raw, payload_length) == 16 && offset_of!(Raw, request_id) == 24);
    assert!(offset_of!(Raw, sequence) == 32 && offset_of!(Raw, namespace) == 40);
    assert!(offset_of!(Raw, deadline_ms) == 44 && offset_of!(Raw, generation) == 48);
    assert!(offset_of!(Raw, priority) == 56 && offset_of!(Raw, codec) == 57);
    assert!(offset_of!(Raw, reserved) == 58 && offset_of!(Raw, credits) == 60);
    assert!(offset_of!(Raw, consumed) == 64 && offset_of!(Raw, stored_length) == 72);
    assert!(offset_of!(Raw, trace_id) == 80 && offset_of!(Raw, mac) == AUTHENTICATED_LEN);
};

impl Raw {
    /// All that makes a [`Header`] of these bytes.
    fn check(&self) -> Result<(), FrameError> {
        if self.magic != MAGIC {
            return Err(FrameError::BadMagic);
        }
        match self.version {
            VERSION => {}
            0 => return Err(FrameError::UnknownVersion { got: 0 }),
            got => return Err(FrameError::NewerVersion { got }),
        }
        if self.reserved.get() != 0 {
            return Err(FrameError::ReservedNotZero { got: self.reserved.get() });
        }
        let Some(opcode) = Opcode::from_raw(self.opcode) else {
            return Err(match Opcode::is_reserved(self.opcode) {
                true => FrameError::Unsupported { opcode: self.opcode },
                false => FrameError::UnknownOpcode { got: self.opcode },
            });
        };
        if Status::from_raw(self.status.get()).is_none() {
            return Err(FrameError::UnknownStatus { got: self.status.get() });
        }
        self.check_flags()?;
        self.check_lengths(opcode)
    }

    /// A reply comes from a server; only a reply may announce more of its kind, or be lent; only a
    /// reply and a Goodbye have a status; only a Get and the request of a Put are about named
    /// payload, which is in no frame.
    fn check_flags(&self) -> Result<(), FrameError> {
        let got = self.flags.get();
        let has = |bit| got & bit != 0;
        let reply = has(flags::REPLY);
        let known = got & !flags::ALL == 0;
        let from = !reply || has(flags::FROM_SERVER);
        let more = reply || !has(flags::MORE | flags::LENT);
        let goodbye = self.opcode == Opcode::Goodbye.raw();
        let status = reply || goodbye || self.status.get() == 0;
        let named = has(flags::NAMED);
        let put = !reply && self.opcode == Opcode::Put.raw();
        let may = (put || self.opcode == Opcode::Get.raw()) && !has(flags::TRAILER | flags::LENT);
        let named = !named || may && self.payload_length.get() == 0;
        match known && from && more && status && named {
            true => Ok(()),
            false => Err(FrameError::BadFlags { got }),
        }
    }

    fn check_lengths(&self, opcode: Opcode) -> Result<(), FrameError> {
        let (got, limit) = (self.meta_length.get(), opcode.meta_limit());
        if got > limit {
            return Err(FrameError::MetaTooLong { got, limit });
        }
        let reply = self.flags.get() & flags::REPLY != 0;
        let (got, limit) = (self.payload_length.get(), opcode.payload_limit(reply));
        if got > limit {
            return Err(FrameError::PayloadTooLong { got, limit });
        }
        Ok(())
    }
}

/// One frame's header: 128 bytes, copied freely, layout in the source and in `docs/wire.md`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Header(Raw);

/// Writes a getter and a builder per plain field.
macro_rules! fields {
    ($($(#[$doc:meta])* $field:ident, $with:ident: $type:ty;)+) => {
        impl Header {
            $(
                $(#[$doc])*
                #[inline]
                pub fn $field(&self) -> $type { self.0.$field.into() }

                #[doc = concat!("The same header with another [`", stringify!($field), "`](Self::", stringify!($field), ").")]
                #[inline]
                #[must_use]
                pub fn $with(mut self, $field: $type) -> Header {
                    self.0.$field = $field.into();
                    self
                }
            )+
        }
    };
}

fields! {
    /// Bytes of payload between the meta and the trailer.
    payload_length, with_payload_length: u64;
    /// Chosen by the client; a retry of the same request carries the same id.
    request_id, with_request_id: u64;
    /// The namespace handle that the server gave at Connect; 0 before that.
    namespace, with_namespace: u32;
    /// Milliseconds the request may take from its arrival; 0 leaves it to the server.
    deadline_ms, with_deadline_ms: u32;
    /// A generation that concerns the whole frame; items carry their own. 0 when unused.
    generation, with_generation: u64;
    /// 0 is ordinary; higher is more urgent.
    priority, with_priority: u8;
    /// How the client coded the payload; 0 for not at all. Opaque to the server.
    codec, with_codec: u8;
    /// Connect: credits granted. Replies: credits returned. One credit is one inline Put frame.
    credits, with_credits: u32;
    /// Bytes of lent payload the sender has taken so far; releases lent pages.
    consumed, with_consumed: u64;
    /// Bytes before coding, when `codec` is not 0.
    stored_length, with_stored_length: u64;
    /// W3C trace id, all zero when there is none.
    trace_id, with_trace_id: [u8; 16];
}

impl Header {
    /// A request: all fields zero but the ones named.
    #[inline]
    pub fn request(opcode: Opcode, request_id: u64) -> Header {
        Header(Raw {
            magic: MAGIC,
            version: VERSION,
            opcode: opcode.raw(),
            request_id: request_id.into(),
            ..zerocopy::FromZeros::new_zeroed()
        })
    }

    /// The reply to `request`: same operation, request id, namespace, priority and trace id.
    #[inline]
    pub fn reply(request: &Header, status: Status) -> Header {
        let mut reply = Header::request(request.opcode(), request.request_id());
        reply.0.status = status.raw().into();
        reply.0.flags = flags::REPLY.into();
        reply.0.namespace = request.0.namespace;
        reply.0.priority = request.0.priority;
        reply.0.trace_id = request.0.trace_id;
        reply
    }

    /// Checks everything that can be checked without a key or a history: size, magic, version,
    /// reserved bytes, opcode, status, flags, lengths. Bytes beyond the header are not looked at.
    ///
    /// # Errors
    /// `Truncated`, `BadMagic`, `NewerVersion`, `UnknownVersion`, `ReservedNotZero`,
    /// `UnknownOpcode`, `Unsupported`, `UnknownStatus`, `BadFlags`, `MetaTooLong`,
    /// `PayloadTooLong`.
    pub fn parse(bytes: &[u8]) -> Result<Header, FrameError> {
        let Ok((raw, _)) = Raw::ref_from_prefix(bytes) else {
            let (wanted, got) = (HEADER_LEN as u64, bytes.len() as u64);
            return Err(FrameError::Truncated { wanted, got });
        };
        raw.check()?;
        Ok(Header(*raw))
    }

    /// What this side may still have got wrong in a header of its own.
    #[inline]
    pub(crate) fn check(&self) -> Result<(), FrameError> {
        self.0.check()
    }

    /// The 128 bytes as they go over the wire.
    #[inline]
    pub fn as_bytes(&self) -> &[u8; HEADER_LEN] {
        zerocopy::transmute_ref!(&self.0)
    }

    /// The operation.
    #[inline]
    pub fn opcode(&self) -> Opcode {
        Opcode::from_raw(self.0.opcode).expect("a Header holds a known opcode")
    }

    /// The result, for replies; the reason, for a Goodbye; [`Status::Ok`] for other requests.
    #[inline]
    pub fn status(&self) -> Status {
        Status::from_raw(self.0.status.get()).expect("a Header holds a known status")
    }

    /// The protocol version of the frame.
    #[inline]
    pub fn version(&self) -> u8 {
        self.0.version
    }

    /// The bits of [`flags`].
    #[inline]
    pub fn flags(&self) -> u32 {
        self.0.flags.get()
    }

    /// Whether this frame answers a request.
    #[inline]
    pub fn is_reply(&self) -> bool {
        self.flags() & flags::REPLY != 0
    }

    /// Whether a trailer follows the payload.
    #[inline]
    pub fn has_trailer(&self) -> bool {
        self.flags() & flags::TRAILER != 0
    }

    /// Whether the server sent it.
    #[inline]
    pub fn from_server(&self) -> bool {
        self.flags() & flags::FROM_SERVER != 0
    }

    /// Whether more replies to the same request follow.
    #[inline]
    pub fn has_more(&self) -> bool {
        self.flags() & flags::MORE != 0
    }

    /// Whether the payload is lent.
    #[inline]
    pub fn is_lent(&self) -> bool {
        self.flags() & flags::LENT != 0
    }

    /// The same header with the flag bits `bits` set as well.
    #[inline]
    #[must_use]
    pub fn with_flags(mut self, bits: u32) -> Header {
        self.0.flags = (self.flags() | bits).into();
        self
    }

    /// Announces a trailer.
    #[inline]
    #[must_use]
    pub fn with_trailer(self) -> Header {
        self.with_flags(flags::TRAILER)
    }

    /// Announces more replies to the same request.
    #[inline]
    #[must_use]
    pub fn with_more(self) -> Header {
        self.with_flags(flags::MORE)
    }

    /// Whether the payload is named, or may be.
    #[inline]
    pub fn is_named(&self) -> bool {
        self.flags() & flags::NAMED != 0
    }

    /// Says that the payload of a Get's reply is named, or of its request, that it may be.
    #[inline]
    #[must_use]
    pub fn with_named(self) -> Header {
        self.with_flags(flags::NAMED)
    }

    /// Says that the payload is lent.
    #[inline]
    #[must_use]
    pub fn with_lent(self) -> Header {
        self.with_flags(flags::LENT)
    }

    /// The same reply or Goodbye with another status.
    #[inline]
    #[must_use]
    pub fn with_status(mut self, status: Status) -> Header {
        self.0.status = status.raw().into();
        self
    }

    /// Bytes of meta after the header; set by the sealer.
    #[inline]
    pub fn meta_length(&self) -> u32 {
        self.0.meta_length.get()
    }

    /// The position of the frame in its direction; set by the sealer.
    #[inline]
    pub fn sequence(&self) -> u64 {
        self.0.sequence.get()
    }

    /// HMAC-SHA256 over bytes 0..96 and the meta; set by the sealer.
    #[inline]
    pub fn mac(&self) -> &[u8; 32] {
        &self.0.mac
    }

    /// What the MAC covers of the header.
    #[inline]
    pub(crate) fn authenticated(&self) -> &[u8] {
        &self.as_bytes()[..AUTHENTICATED_LEN]
    }

    /// What only the sealer may set: direction, meta length and sequence.
    #[inline]
    pub(crate) fn stamp(&mut self, from_server: bool, meta_length: u32, sequence: u64) {
        let direction = if from_server { flags::FROM_SERVER } else { 0 };
        self.0.flags = ((self.flags() & !flags::FROM_SERVER) | direction).into();
        self.0.meta_length = meta_length.into();
        self.0.sequence = sequence.into();
    }

    /// The last word of the sealer.
    #[inline]
    pub(crate) fn set_mac(&mut self, mac: [u8; 32]) {
        self.0.mac = mac;
    }
}

impl std::fmt::Debug for Header {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Header")
            .field("opcode", &self.opcode())
            .field("status", &self.status())
            .field("flags", &self.flags())
            .field("meta_length", &self.meta_length())
            .field("payload_length", &self.payload_length())
            .field("request_id", &self.request_id())
            .field("sequence", &self.sequence())
            .field("namespace", &self.namespace())
            .field("credits", &self.credits())
            .finish_non_exhaustive()
    }
}
