//! Every byte that crosses a socket.
//!
//! This room knows how frames look, and nothing else: no sockets, no files, no clock, no other
//! crate of the house. Server and clients share it, so both mean the same bytes. `docs/wire.md`
//! tells the same story for those who write a client in another language, with test vectors.
//!
//! A frame is
//!
//! ```text
//!   header, 128 bytes | meta | payload | trailer
//! ```
//!
//! * the [`Header`] says what the frame is, how long its parts are, and proves together with the
//!   meta who sent it ([`Sealer`], [`Opener`]: one HMAC-SHA256 and one sequence per direction);
//! * the [`meta`] holds keys, lengths and results, one struct per operation;
//! * the payload is bytes of values, never looked at here, only checked by CRC-32C ([`crc32c`]);
//! * the trailer holds the CRCs when they are known only after the payload has passed.
//!
//! A connection begins with the [`handshake`]. Payload travels only on credit ([`CreditAccount`]).
//!
//! Bytes from outside are parsed to `Result` and never panic, whatever they are; what this side
//! itself sends is asserted. Nothing on the header's path allocates.

#![forbid(unsafe_code)]

mod codes;
mod crc;
mod credits;
mod frame;
pub mod handshake;
mod header;
mod key;
pub mod meta;

pub use codes::{Advice, MissReason, Opcode, StatId, Status};
pub use crc::{Crc32c, CrcList, crc32c, extents_touched};
pub use credits::{CreditAccount, CreditError};
pub use frame::{FrameError, MAX_TRAILER_LEN, Opener, Sealer, Side, trailer_len};
pub use header::{AUTHENTICATED_LEN, HEADER_LEN, Header, VERSION, flags};
pub use key::{KeyError, SharedKey, loopback_key};
pub use meta::{
    DataMeta, DataReply, DeleteItem, DeleteItems, Empty, GetItem, GetItems, GetReply, GoodbyeMeta,
    HintList, ItemReplies, ItemReply, KeyList, LeaseList, MatchItem, MatchItems, MatchReply,
    MetaError, NamedReply, PresenceReply, PutAdvice, PutItem, PutItems, PutMode, Refusal, Span,
    Spans, Staged, StatsReply, SuspectItem, SuspectItems, TO_THE_END,
};

/// Most bytes of meta of any frame: 1 MiB.
pub const MAX_META: u32 = 1 << 20;
/// Most bytes of meta of Connect and Goodbye: 4 KiB.
pub const MAX_CONTROL_META: u32 = 4 << 10;
/// Longest value in bytes: 64 MiB.
pub const MAX_VALUE: u64 = 64 << 20;
/// Most bytes of payload of one Put frame: 256 KiB.
pub const MAX_INLINE: u32 = 256 << 10;
/// Longest key in bytes.
pub const MAX_KEY: usize = 512;
/// Longest text of a Goodbye or a refusal in bytes; longer ones are cut when encoded.
pub const MAX_TEXT: usize = 1024;
/// Longest name of a namespace in bytes.
pub const MAX_NAMESPACE: usize = 255;
/// Bytes per extent in production: 4 MiB. The server's own is in [`handshake::Limits`].
pub const EXTENT: u64 = 4 << 20;
/// Most extents, and so most CRCs, of one value.
pub const MAX_EXTENTS: usize = 16;
/// Most items of one request or reply.
pub const MAX_ITEMS: usize = 4096;
/// No item of any meta is longer than its key plus this many bytes: what a client needs to fill a
/// frame up to [`MAX_META`].
pub const ITEM_OVERHEAD: usize = 96;
/// The TCP port of the protocol.
pub const DEFAULT_PORT: u16 = 9900;

const _: () = assert!(EXTENT * MAX_EXTENTS as u64 == MAX_VALUE);
