//! A block, and the names of its parts.

use std::num::NonZeroU32;
use std::ops::Deref;

use memkv_journal::{BlockId, UnitRange};
use memkv_poller::spare::Row;

use crate::DriveId;
use crate::index::Span;
use crate::reserve::EXTENTS_MAX;

/// 128-bit keyed hash of a whole key (tenant, namespace and key) under the store's secret.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct KeyHash(pub u128);

/// Why a key is not here, as far as the store remembers.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum MissReason {
    /// Never stored, or gone so long that the reason is forgotten.
    Never,
    /// Evicted to make room.
    Evicted,
    /// Deleted by a client.
    Deleted,
    /// Past its time to live.
    Expired,
    /// Its drive went offline.
    DriveLost,
    /// Its bytes failed their CRC and were dropped.
    Corrupt,
}

/// One extent of a block: up to 4 MiB of contiguous units on one drive.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Extent {
    /// Which drive.
    pub drive: DriveId,
    /// Which units of it.
    pub range: UnitRange,
    /// Byte offset on the drive.
    pub offset: u64,
    /// Payload bytes in it; the rest of the last unit is padding.
    pub length: u32,
    /// CRC32C of the payload bytes (0 in a reservation, before they have arrived).
    pub crc: u32,
}

impl Extent {
    /// It as the index keeps it.
    pub(crate) fn span(&self) -> Span {
        let Extent { drive, range, length, crc, .. } = *self;
        Span { drive, range, length, crc }
    }
}

/// CRCs of a block, one per extent: at most 16.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub struct Crcs {
    count: u8,
    values: [u32; EXTENTS_MAX as usize],
}

impl Deref for Crcs {
    type Target = [u32];

    fn deref(&self) -> &[u32] {
        &self.values[..usize::from(self.count)]
    }
}

impl FromIterator<u32> for Crcs {
    /// # Panics
    /// On more than a block has extents.
    fn from_iter<I: IntoIterator<Item = u32>>(crcs: I) -> Crcs {
        let mut all = Crcs::default();
        for crc in crcs {
            all.values[usize::from(all.count)] = crc;
            all.count += 1;
        }
        all
    }
}

/// A slot of the index; dense, reused.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Slot(NonZeroU32);

impl Slot {
    /// The slot of a number; none has number 0.
    pub fn of(number: u32) -> Option<Slot> {
        NonZeroU32::new(number).map(Slot)
    }

    /// The slot's number, for messages between reactors.
    pub fn number(self) -> u32 {
        self.0.get()
    }
}

/// Flag of a record: the block's bytes were not checked since the last unclean start when it was
/// written. A clean start trusts every block but these.
pub const UNVERIFIED: u16 = 1;

/// All there is to say of a block: what is recorded of it, and what the index is told. The index
/// keeps it smaller ([`Entry`](crate::index::Entry)).
#[derive(Clone, Debug)]
pub struct Block {
    /// Its key's hash and its generation.
    pub id: BlockId,
    /// Bytes of the value.
    pub length: u64,
    /// Unix seconds after which it is a miss; 0 is never.
    pub expires: u64,
    /// Flags of its record but [`UNVERIFIED`], which is told by `verified`.
    pub flags: u16,
    /// Where its bytes are.
    pub extents: Row<Extent>,
    /// One bit per extent whose bytes were checked since the last unclean start, or written by us.
    pub verified: u16,
    /// Its bytes failed their CRC.
    pub corrupt: bool,
}

impl Block {
    /// The key's hash.
    pub fn hash(&self) -> KeyHash {
        KeyHash(self.id.hash)
    }

    /// Its flags as they go into a record.
    pub fn record_flags(&self) -> u16 {
        let all = (1u32 << self.extents.len()) - 1;
        let verified = !self.corrupt && u32::from(self.verified) & all == all;
        self.flags | if verified { 0 } else { UNVERIFIED }
    }
}
