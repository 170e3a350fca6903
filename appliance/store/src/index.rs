//! Which blocks there are: about 45 bytes of memory for each.
//!
//! ```text
//!   key ─ hash ─► table ─ slot ─► slab: an entry of 39 bytes ─► a row, for the few that need one
//!                                   ▲
//!   policy, leases, messages ── slot ┘
//! ```
//!
//! A *slot* is a small number that stays with its block: it travels in messages and in the links of
//! the eviction policy, and is given out again when its block is gone. Whole keys are not here but
//! beside it ([`Keys`]).
//!
//! Memory grows in small steps. Nothing is ever copied or sorted as a whole: the longest insert
//! into an index of any size is that which splits a segment of the table ([`table`](Table)), some
//! tens of microseconds.

mod entry;
mod pieces;
mod slab;
mod table;
#[cfg(test)]
mod tests;

use memkv_journal::BlockId;

use entry::Row;
pub use entry::{ENTRY_BYTES, EXPIRES_MAX, Entry, GENERATION_MAX, Span};
pub(crate) use pieces::{Idle, Pieces, Pool};
pub use slab::{Slab, Spans};
pub(crate) use table::Table;

use crate::DriveId;
use crate::block::{Block, KeyHash, Slot};

/// See the module.
#[derive(Default)]
pub struct Index {
    slab: Slab,
    table: Table,
}

/// Many blocks on their way into an index. Their slots count from 1, in the order in which they were
/// taken in.
#[derive(Default)]
pub struct Filling {
    slab: Slab,
    order: Order,
}

/// Whether generations only rose.
#[derive(Default)]
struct Order {
    first: Option<u64>,
    last: Option<u64>,
    broken: bool,
}

impl Order {
    fn add(&mut self, generation: u64) {
        let next = Some(generation);
        self.append(Self { first: next, last: next, broken: false });
    }

    fn append(&mut self, other: Self) {
        if other.first.is_some() {
            self.broken |= other.broken || other.first <= self.last;
            self.first = self.first.or(other.first);
            self.last = other.last;
        }
    }
}

impl Filling {
    /// Takes in a block that has no flags, and bytes that are not known to be wrong, in one plain
    /// extent.
    pub fn add_plain(&mut self, id: BlockId, span: Span, expires: u64, verified: bool) {
        assert!(span.is_plain(), "the units of a plain extent follow from its length");
        self.order.add(id.generation);
        self.slab.insert_plain(Entry::plain(id, span, expires, verified));
    }

    /// Takes in any block: with one bit of `verified` for each extent.
    pub fn add(
        &mut self,
        id: BlockId,
        spans: Box<[Span]>,
        expires: u64,
        flags: u16,
        verified: u16,
    ) {
        if let [span] = *spans
            && span.is_plain()
            && flags == 0
        {
            return self.add_plain(id, span, expires, verified & 1 == 1);
        }
        self.order.add(id.generation);
        let length = spans.iter().map(|span| u64::from(span.length)).sum();
        let row = Row::new(spans, verified, flags);
        self.slab.insert_with(row, |row| Entry::with_row(id, length, expires, row));
    }

    /// All blocks are on this drive, and unless `verified` none is known to be what was stored.
    pub fn settle(&mut self, drive: DriveId, verified: bool) {
        self.slab.settle(drive, verified);
    }

    /// Takes in all blocks of another one after its own.
    pub fn append(&mut self, other: Filling) {
        self.slab.append(other.slab);
        self.order.append(other.order);
    }

    /// How many blocks there are.
    pub fn len(&self) -> u32 {
        self.slab.last()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether they came in the order of their generations.
    pub fn is_ordered(&self) -> bool {
        !self.order.broken
    }

    /// Publishes of every key the block of the highest generation, of equal ones the first. Tells
    /// of the others before it forgets them: their slots are empty.
    pub fn publish(self, mut older: impl FnMut(&Slab, Slot)) -> Index {
        let Self { mut slab, .. } = self;
        let is_newer = |number, there| slab.generation_at(number) > slab.generation_at(there);
        let (table, again) = Table::of(slab.last(), |number| slab.hash_at(number), is_newer);
        for slot in again.into_iter().filter_map(Slot::of) {
            older(&slab, slot);
            slab.remove(slot);
        }
        Index { slab, table }
    }
}

/// Reads and changes of blocks that are there are the slab's.
impl std::ops::Deref for Index {
    type Target = Slab;

    fn deref(&self) -> &Slab {
        &self.slab
    }
}

impl std::ops::DerefMut for Index {
    fn deref_mut(&mut self) -> &mut Slab {
        &mut self.slab
    }
}

impl Index {
    /// The published block of a key.
    pub fn lookup(&self, key: KeyHash) -> Option<Slot> {
        let slot = Slot::of(self.table.get(key, |number| self.slab.hash_at(number) == key)?);
        slot.inspect(|&slot| assert!(self.slab.get(slot).is_published(), "what is found is there"))
    }

    /// Publishes a block. None of its key is published.
    pub fn insert(&mut self, block: &Block) -> Slot {
        let key = block.hash();
        assert!(self.lookup(key).is_none(), "the older block of the key was taken out first");
        let slot = self.slab.insert(block);
        self.table.insert(key, slot.number(), |number| self.slab.hash_at(number));
        slot
    }

    /// No lookup finds a block any more. It stays in its slot until it is removed.
    pub fn unpublish(&mut self, slot: Slot) {
        let entry = self.slab.entry(slot);
        assert!(entry.is_published(), "a block leaves the index once");
        entry.unpublish();
        let key = entry.hash();
        assert!(self.table.remove(key, slot.number()), "the index names the block that leaves");
    }

    /// Forgets a block that is not published and that nobody reads.
    pub fn remove(&mut self, slot: Slot) {
        assert!(!self.slab.get(slot).is_published(), "only removed blocks are freed");
        self.slab.remove(slot);
    }

    /// Published blocks.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of memory of the slab and of the table.
    pub fn bytes(&self) -> (usize, usize) {
        (self.slab.bytes(), self.table.bytes())
    }
}
