//! What calls take and give.

use std::time::Duration;

use memkv_wire::{CrcList, MissReason};

pub use memkv_wire::meta::{PutMode, StatsReply as ServerStats};

/// How to store a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PutOptions {
    /// What may be there already.
    pub mode: PutMode,
    /// Seconds to live; 0 for ever.
    pub ttl_seconds: u32,
    /// Answer only when the value survives a power cut, whatever the server's default.
    pub durable: bool,
    /// Seconds for which it is evicted after all others, which reads do not extend; the server cuts them to
    /// its limit. 0 for none.
    pub pin_seconds: u32,
    /// How long the call may take; `None` for the configured time. A batch may take as long as the most
    /// patient of its items.
    pub deadline: Option<Duration>,
}

impl Default for PutOptions {
    /// Only if nothing is there, for ever, as durable as the server is by default.
    fn default() -> PutOptions {
        PutOptions {
            mode: PutMode::Absent,
            ttl_seconds: 0,
            durable: false,
            pin_seconds: 0,
            deadline: None,
        }
    }
}

/// One value of a batch to store.
#[derive(Clone, Copy, Debug)]
pub struct PutItem<'a> {
    /// 1 to 512 bytes.
    pub key: &'a [u8],
    /// 1 byte to what the server takes, at most 64 MiB.
    pub value: &'a [u8],
    /// How to store it.
    pub options: PutOptions,
    /// The key of the block before it in its chain, where the order of the batch does not say it; `None` for
    /// all of a batch: it is in the order of the chain.
    pub parent: Option<&'a [u8]>,
}

/// One value of a batch to store, whose bytes lie in several places: the layers of a page, its keys and its
/// values.
#[derive(Clone, Copy, Debug)]
pub struct GatherItem<'a> {
    /// 1 to 512 bytes.
    pub key: &'a [u8],
    /// The value, piece behind piece; 1 byte at least in all.
    pub pieces: &'a [&'a [u8]],
    /// How to store it.
    pub options: PutOptions,
    /// As that of a [`PutItem`].
    pub parent: Option<&'a [u8]>,
}

/// The bytes of a value to store.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Bytes<'a> {
    One(&'a [u8]),
    Many(&'a [&'a [u8]]),
}

impl<'a> Bytes<'a> {
    pub fn len(self) -> u64 {
        self.pieces().iter().map(|piece| piece.len() as u64).sum()
    }

    pub fn pieces(&self) -> &[&'a [u8]] {
        match self {
            Bytes::One(piece) => std::slice::from_ref(piece),
            Bytes::Many(pieces) => pieces,
        }
    }
}

/// A value to store, wherever its bytes are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Value<'a> {
    pub key: &'a [u8],
    pub bytes: Bytes<'a>,
    pub options: PutOptions,
    pub parent: Option<&'a [u8]>,
}

impl<'a> From<&PutItem<'a>> for Value<'a> {
    fn from(item: &PutItem<'a>) -> Value<'a> {
        let PutItem { key, value, options, parent } = *item;
        Value { key, bytes: Bytes::One(value), options, parent }
    }
}

impl<'a> From<&GatherItem<'a>> for Value<'a> {
    fn from(item: &GatherItem<'a>) -> Value<'a> {
        let GatherItem { key, pieces, options, parent } = *item;
        Value { key, bytes: Bytes::Many(pieces), options, parent }
    }
}

/// What will become of a chain of blocks, as far as an engine knows. It moves them in the order in which the
/// server evicts, and nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hint {
    /// Nobody will want it again: it goes before all others, unless somebody reads it.
    Release,
    /// It will be wanted: it goes after all others, for as long as the server keeps what is retained.
    Retain,
    /// The same for this time, which reads do not extend; the server cuts it to its limit.
    Pin(Duration),
}

/// What became of a put. Both mean that a value of this key is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PutOutcome {
    /// These bytes are stored.
    Stored {
        /// The generation they have.
        generation: u64,
    },
    /// A value of the same length was there before and stays; its bytes may differ.
    Present {
        /// Its generation.
        generation: u64,
        /// Its length in bytes.
        length: u64,
        /// The CRC-32C of each of its extents; may be empty.
        crcs: CrcList,
    },
}

/// One value, or a range of it, of a batch to read.
#[derive(Debug)]
pub struct GetItem<'a> {
    /// 1 to 512 bytes.
    pub key: &'a [u8],
    /// First byte of the value to read.
    pub offset: u64,
    /// Filled from its front: with as many bytes as the value has behind `offset`, or as fit. Its contents
    /// mean nothing unless the outcome is a hit.
    pub buf: &'a mut [u8],
}

/// One value, or a range of it, of a batch to read, whose bytes go to several places.
#[derive(Debug)]
pub struct ScatterItem<'a> {
    /// 1 to 512 bytes.
    pub key: &'a [u8],
    /// First byte of the value to read.
    pub offset: u64,
    /// Filled one behind the other, with as many bytes as the value has behind `offset`, or as fit.
    pub pieces: Vec<&'a mut [u8]>,
}

/// What became of a get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GetOutcome {
    /// The bytes are there, and are those that were put.
    Hit {
        /// Length in bytes of the whole value.
        length: u64,
        /// Its generation.
        generation: u64,
    },
    /// There is no such block.
    Miss(MissReason),
}

impl GetOutcome {
    /// True for [`GetOutcome::Hit`].
    pub fn is_hit(&self) -> bool {
        matches!(self, GetOutcome::Hit { .. })
    }
}
