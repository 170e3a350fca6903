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

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use proptest::prelude::*;

    use super::*;

    fn slot(number: u32) -> Slot {
        Slot::numbered(NonZeroU32::new(number).expect("slots count from one"))
    }

    fn order(lru: &Lru) -> Vec<u32> {
        let mut at = None;
        let next = || {
            at = lru.victim(at);
            at.map(Slot::number)
        };
        std::iter::from_fn(next).collect()
    }

    proptest! {
        /// Against the plainest list there is, oldest first.
        #[test]
        fn it_orders_like_a_list(steps in prop::collection::vec((0u8..3, 1u32..20), 0..300)) {
            let mut lru = Lru::default();
            let mut model: Vec<u32> = Vec::new();
            for (what, number) in steps {
                let known = model.iter().position(|&n| n == number);
                match (what, known) {
                    (0, None) => {
                        lru.inserted(slot(number));
                        model.push(number);
                    }
                    (1, Some(at)) => {
                        lru.accessed(slot(number));
                        model.remove(at);
                        model.push(number);
                    }
                    (2, Some(at)) => {
                        lru.removed(slot(number));
                        model.remove(at);
                    }
                    _ => {}
                }
                prop_assert_eq!(order(&lru), model.clone());
            }
        }
    }

    #[test]
    #[should_panic(expected = "only a listed block is taken out")]
    fn what_is_not_listed_is_not_taken_out() {
        let mut lru = Lru::default();
        lru.inserted(slot(1));
        lru.removed(slot(2));
    }
}
