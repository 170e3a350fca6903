//! What stands between header and payload: the keys of a request, the results of a reply.
//!
//! Each meta is a struct with `encode(&self, &mut Vec<u8>)` and `parse(&[u8])`. Parsing never
//! panics, allocates no more than the bytes at hand can fill, and borrows keys and texts from its
//! input; lists have a `parse_into` for whoever has memory of an earlier one. Every meta may end in
//! extensions (type u16, length u16, bytes): unknown ones are skipped,
//! but those of type 0x8000 and above must be understood ([`MetaError::MustUnderstand`]).
//!
//! | operation | request | reply |
//! | --- | --- | --- |
//! | Connect | [`ClientHello`](crate::handshake::ClientHello) | [`ServerHello`](crate::handshake::ServerHello) |
//! | Exists | [`KeyList`] | [`ItemReplies`] |
//! | Presence | [`KeyList`] | [`PresenceReply`] |
//! | Release | [`KeyList`] | [`Empty`] |
//! | Lease | [`LeaseList`] | [`ItemReplies`] |
//! | Hint | [`HintList`] | [`ItemReplies`] |
//! | MatchPrefix | [`MatchItems`] | [`MatchReply`] |
//! | Put, Offer | [`PutItems`], of a Put that names its payload with [`Staged`] | [`ItemReplies`] |
//! | Data | [`DataMeta`] | [`DataReply`] |
//! | Get | [`GetItems`] | [`GetReply`] or [`NamedReply`], one frame per item |
//! | Delete | [`DeleteItems`] | [`ItemReplies`] |
//! | Suspect | [`SuspectItems`] | [`ItemReplies`] |
//! | Stats | [`Empty`] | [`StatsReply`] |
//! | Goodbye | [`GoodbyeMeta`] | none is awaited |
//! | any, refused as a whole (status not Ok) | | [`Refusal`] |

mod any;
pub(crate) mod cursor;
mod misc;
mod named;
mod reply;
mod request;

pub use any::{Reply, Request};
pub use cursor::{MUST_UNDERSTAND, append_extension};
pub use misc::{Empty, GoodbyeMeta, Refusal, StatsReply};
pub use named::{NamedReply, Span, Spans, Staged};
pub use reply::{DataReply, GetReply, ItemReplies, ItemReply, MatchReply, PresenceReply};
pub use request::{
    DataMeta, DeleteItem, DeleteItems, GetItem, GetItems, HintList, KeyList, LeaseList, MatchItem,
    MatchItems, PutAdvice, PutItem, PutItems, PutMode, SuspectItem, SuspectItems, TO_THE_END,
};

use crate::{MAX_ITEMS, Status};
use cursor::{Reader, finish};

/// Why a meta could not be read. The frame was authentic, so the connection may go on: the request
/// is answered with [`MetaError::status`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the fields are named in each message")]
pub enum MetaError {
    /// The meta ends in the middle of something.
    #[error("the meta ends too early")]
    Truncated,
    /// Reserved bytes must be zero in this version.
    #[error("reserved bytes of the meta are not zero")]
    ReservedNotZero,
    /// A list without an item, in a request.
    #[error("the request names no item")]
    NoItems,
    /// A list with more items than [`MAX_ITEMS`].
    #[error("the list has {got} items, at most {MAX_ITEMS} are allowed")]
    TooManyItems { got: u32 },
    /// A key has 1 to [`MAX_KEY`](crate::MAX_KEY) bytes.
    #[error("a key has {got} bytes")]
    KeyLength { got: usize },
    /// A value has 1 byte to [`MAX_VALUE`](crate::MAX_VALUE).
    #[error("a value has {got} bytes")]
    ValueLength { got: u64 },
    /// The items of one Put have more bytes than may ride inline.
    #[error("the values of one put have {got} bytes")]
    InlineLength { got: u64 },
    /// A namespace has 1 to [`MAX_NAMESPACE`](crate::MAX_NAMESPACE) bytes.
    #[error("a namespace has {got} bytes")]
    NamespaceLength { got: usize },
    /// The version range of a hello is empty.
    #[error("versions {min} to {max} make no range")]
    Versions { min: u8, max: u8 },
    /// The limits of a server hello are out of the protocol's bounds.
    #[error("limits out of bounds")]
    Limits,
    /// More CRCs than a value has extents.
    #[error("{got} CRCs for one value")]
    TooManyCrcs { got: u8 },
    /// No put mode has this number, or it carries a generation that it may not have.
    #[error("unknown put mode {mode} with generation {generation}")]
    Mode { mode: u8, generation: u64 },
    /// Unknown bits among an item's flags.
    #[error("unknown item flags {got:#x}")]
    ItemFlags { got: u32 },
    /// No status has this number.
    #[error("unknown status {got}")]
    UnknownStatus { got: u16 },
    /// No reason of a miss has this number.
    #[error("unknown miss reason {got}")]
    UnknownReason { got: u8 },
    /// A text is no UTF-8.
    #[error("a text is not UTF-8")]
    Text(#[source] std::str::Utf8Error),
    /// No advice has this number, or it comes with a time that it may not have.
    #[error("unknown advice {got} for {seconds} seconds")]
    Advice { got: u8, seconds: u32 },
    /// An extension names an item that is not there, or one that another has named.
    #[error("extension {kind:#06x} is about item {item}")]
    ExtendedItem { kind: u16, item: u32 },
    /// An extension that is known has other bytes than it may have.
    #[error("extension {kind:#06x} cannot be read")]
    Extension { kind: u16 },
    /// An extension that must be understood is not.
    #[error("extension {kind:#06x} must be understood and is not known")]
    MustUnderstand { kind: u16 },
}

impl MetaError {
    /// The status that answers such a request.
    pub const fn status(&self) -> Status {
        match self {
            MetaError::MustUnderstand { .. } => Status::Unsupported,
            MetaError::ValueLength { .. } | MetaError::InlineLength { .. } => Status::TooLarge,
            MetaError::TooManyItems { .. } => Status::LimitExceeded,
            _ => Status::BadRequest,
        }
    }
}

/// One item of a list: reads and writes itself, and has a least size, which bounds what a lying
/// count can make the parser allocate.
pub(crate) trait Item<'a>: Sized {
    /// Least bytes of one encoded item.
    const LEAST: usize;
    fn put(&self, out: &mut Vec<u8>);
    fn take(reader: &mut Reader<'a>) -> Result<Self, MetaError>;
}

/// Appends `count u32` and the items.
///
/// # Panics
/// On more than [`MAX_ITEMS`] items.
pub(crate) fn put_list<'a, T: Item<'a>>(items: &[T], out: &mut Vec<u8>) {
    assert!(items.len() <= MAX_ITEMS, "a list has at most {MAX_ITEMS} items");
    out.extend_from_slice(&(items.len() as u32).to_le_bytes());
    for item in items {
        item.put(out);
    }
}

/// Reads `count u32` and the items, into the memory of `items`.
pub(crate) fn take_list<'a, T: Item<'a>>(
    reader: &mut Reader<'a>,
    mut items: Vec<T>,
) -> Result<Vec<T>, MetaError> {
    let got = reader.u32()?;
    let count = usize::try_from(got).unwrap_or(usize::MAX);
    if count > MAX_ITEMS {
        return Err(MetaError::TooManyItems { got });
    }
    if count * T::LEAST > reader.remaining() {
        return Err(MetaError::Truncated);
    }
    items.clear();
    items.reserve(count);
    for _ in 0..count {
        items.push(T::take(reader)?);
    }
    Ok(items)
}

/// Reads a whole meta that is one list of a request, at least one item, then extensions, into the
/// memory of `items`.
pub(crate) fn parse_list<'a, T: Item<'a>>(
    meta: &'a [u8],
    items: Vec<T>,
) -> Result<Vec<T>, MetaError> {
    let mut reader = Reader::new(meta);
    let items = take_list(&mut reader, items)?;
    if items.is_empty() {
        return Err(MetaError::NoItems);
    }
    finish(reader, items)
}
