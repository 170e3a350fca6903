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

pub use entry::{ENTRY_BYTES, EXPIRES_MAX, Entry, GENERATION_MAX, Span};
pub(crate) use pieces::Pieces;
pub use slab::{Slab, Spans};
pub(crate) use table::Table;

use crate::block::{Block, KeyHash, Slot};

/// See the module.
#[derive(Default)]
pub struct Index {
    slab: Slab,
    table: Table,
}

/// Many blocks on their way into an index.
#[derive(Default)]
pub struct Filling(Slab);

impl Filling {
    /// Takes in a block, whose slot has the next number, from 1.
    pub fn add(&mut self, block: &Block) {
        self.0.insert(block);
    }

    /// Takes in a block that has one plain extent, no flags, and bytes that are not known to be
    /// wrong.
    pub fn add_plain(&mut self, id: BlockId, span: Span, expires: u64, verified: bool) {
        assert!(span.is_plain(), "the units of a plain extent follow from its length");
        self.0.insert_plain(Entry::plain(id, span, expires, verified));
    }

    /// Publishes all of them but those of whose key another one was taken in before: their slots
    /// are empty. Answers those, in order.
    pub fn publish(self) -> (Index, Vec<Slot>) {
        let Self(mut slab) = self;
        let (table, again) = Table::of(slab.last(), |number| slab.hash_at(number));
        let again: Vec<Slot> = again.into_iter().filter_map(Slot::of).collect();
        again.iter().for_each(|&slot| slab.remove(slot));
        (Index { slab, table }, again)
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
