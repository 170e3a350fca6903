//! Which block leaves first.

use crate::block::Slot;

/// Orders blocks for eviction. It knows slots, not bytes: pins, leases and locks are the store's.
pub trait EvictionPolicy {
    /// The policy's name in status and configuration.
    fn name(&self) -> &'static str;
    /// A block was published.
    fn inserted(&mut self, slot: Slot);
    /// A block was read.
    fn accessed(&mut self, slot: Slot);
    /// A block left the index for whatever reason.
    fn removed(&mut self, slot: Slot);
    /// The next block to evict, and after it the ones that follow in order, `after` being the last
    /// one offered; `None` when there are no more.
    fn victim(&self, after: Option<Slot>) -> Option<Slot>;
}

/// Least recently used: a doubly linked list through an array indexed by slot.
#[derive(Default)]
pub struct Lru {
    links: Vec<Link>,
    oldest: Option<Slot>,
    newest: Option<Slot>,
}

#[derive(Clone, Copy, Default)]
struct Link {
    listed: bool,
    older: Option<Slot>,
    newer: Option<Slot>,
}

impl Lru {
    fn link(&mut self, slot: Slot) -> &mut Link {
        let index = slot.number() as usize;
        if index >= self.links.len() {
            self.links.resize(index + 1, Link::default());
        }
        &mut self.links[index]
    }

    fn unlink(&mut self, slot: Slot) {
        let link = std::mem::take(self.link(slot));
        assert!(link.listed, "only a listed block is taken out");
        match link.older {
            Some(older) => self.link(older).newer = link.newer,
            None => self.oldest = link.newer,
        }
        match link.newer {
            Some(newer) => self.link(newer).older = link.older,
            None => self.newest = link.older,
        }
    }

    fn push_newest(&mut self, slot: Slot) {
        let older = self.newest.replace(slot);
        *self.link(slot) = Link { listed: true, older, newer: None };
        match older {
            Some(older) => self.link(older).newer = Some(slot),
            None => self.oldest = Some(slot),
        }
    }
}

impl EvictionPolicy for Lru {
    fn name(&self) -> &'static str {
        "lru"
    }

    fn inserted(&mut self, slot: Slot) {
        assert!(!self.link(slot).listed, "a block is inserted once");
        self.push_newest(slot);
    }

    fn accessed(&mut self, slot: Slot) {
        if self.newest != Some(slot) {
            self.unlink(slot);
            self.push_newest(slot);
        }
    }

    fn removed(&mut self, slot: Slot) {
        self.unlink(slot);
    }

    fn victim(&self, after: Option<Slot>) -> Option<Slot> {
        match after {
            None => self.oldest,
            Some(slot) => self.links[slot.number() as usize].newer,
        }
    }
}
