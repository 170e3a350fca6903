//! What one drive remembers, as it is read. Blocks of one extent, and nearly all are, go straight to
//! where the index will have them: of millions nothing else is made.

use memkv_journal::{BlockId, Gather, KeyLen, PartRef, Record, UnitRange};
use memkv_poller::spare::Row;

use crate::DriveId;
use crate::block::UNVERIFIED;
use crate::index::{EXPIRES_MAX, Filling, GENERATION_MAX, Span};

/// A part is named by its block and its index.
pub(crate) type PartKey = (u128, u64, u16);

/// A part of a block, on the drive where it was found.
pub(crate) struct FoundPart {
    pub range: UnitRange,
    pub length: u32,
    pub crc: u32,
    /// Its head was found.
    pub used: bool,
}

/// A block of several parts.
pub(crate) struct FoundHead {
    pub id: BlockId,
    pub length: u64,
    pub expires: u64,
    pub flags: u16,
    pub parts: Row<PartRef>,
}

/// What lives on one drive.
#[derive(Default)]
pub struct Found {
    /// Those of one extent, as if on the first drive.
    pub(crate) blocks: Filling,
    pub(crate) heads: Vec<FoundHead>,
    pub(crate) parts: Vec<(PartKey, FoundPart)>,
    /// The highest generation.
    pub(crate) generation: u64,
    records: u64,
}

impl Found {
    /// Records that live on the drive.
    pub fn records(&self) -> u64 {
        self.records
    }
}

impl FromIterator<Record<KeyLen>> for Found {
    fn from_iter<I: IntoIterator<Item = Record<KeyLen>>>(records: I) -> Self {
        let mut found = Self::default();
        records.into_iter().for_each(|record| found.take(record));
        found
    }
}

impl Gather for Found {
    fn take(&mut self, record: Record<KeyLen>) {
        self.records += 1;
        self.generation = self.generation.max(record.block().generation);
        match record {
            // No node starts with such a generation.
            Record::Put { block, .. } if block.generation > GENERATION_MAX => {}
            Record::Put { block, extent, length, crc, expires, flags, .. } => {
                let span = Span { drive: DriveId(0), range: extent, length, crc };
                let (expires, verified) = (expires.min(EXPIRES_MAX), flags & UNVERIFIED == 0);
                let flags = flags & !UNVERIFIED;
                if flags == 0 && span.is_plain() {
                    return self.blocks.add_plain(block, span, expires, verified);
                }
                self.blocks.add(block, [span].into(), expires, flags, u16::from(verified));
            }
            Record::Part { block, index, extent, length, crc } => {
                let name = (block.hash, block.generation, index);
                self.parts.push((name, FoundPart { range: extent, length, crc, used: false }));
            }
            Record::Head { block, length, expires, flags, parts, .. } => {
                self.heads.push(FoundHead { id: block, length, expires, flags, parts });
            }
            Record::Remove { .. } => unreachable!("a removal is never live"),
        }
    }
}
