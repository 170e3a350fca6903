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
    /// With room for so many blocks.
    pub fn with_room(blocks: usize) -> Self {
        Self { slab: Slab::default(), table: Table::with_room(blocks) }
    }

    /// The published block of a key.
    pub fn lookup(&self, key: KeyHash) -> Option<Slot> {
        let slot = Slot::of(self.table.get(key, |number| self.slab.hash_at(number) == key)?);
        slot.inspect(|&slot| assert!(self.slab.get(slot).is_published(), "what is found is there"))
    }

    /// Publishes a block. None of its key is published.
    pub fn insert(&mut self, block: &Block) -> Slot {
        let slot = self.insert_if(block, || true);
        slot.expect("the older block of the key was taken out first")
    }

    /// Publishes a block unless one of its key is published, and if `then` holds: that is asked
    /// last.
    pub fn insert_if(&mut self, block: &Block, then: impl FnOnce() -> bool) -> Option<Slot> {
        let key = block.hash();
        if self.lookup(key).is_some() || !then() {
            return None;
        }
        let slot = self.slab.insert(block);
        self.table.insert(key, slot.number(), |number| self.slab.hash_at(number));
        Some(slot)
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
