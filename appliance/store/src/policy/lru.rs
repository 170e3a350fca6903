//! Least recently used.

use super::list::{Links, List};
use super::{EvictionPolicy, KeyHash, Slot};

/// Least recently used: one list, oldest first.
#[derive(Default)]
pub struct Lru {
    links: Links,
    list: List,
}

impl EvictionPolicy for Lru {
    fn name(&self) -> &'static str {
        "lru"
    }

    fn inserted(&mut self, slot: Slot, _key: KeyHash) {
        self.list.push(&mut self.links, slot.number());
    }

    fn accessed(&mut self, slot: Slot) {
        if self.list.newest() != slot.number() {
            self.list.take(&mut self.links, slot.number());
            self.list.push(&mut self.links, slot.number());
        }
    }

    fn removed(&mut self, slot: Slot, _key: KeyHash, _evicted: bool) {
        self.list.take(&mut self.links, slot.number());
    }

    fn victims(&mut self, take: &mut dyn FnMut(Slot) -> bool) {
        let mut at = self.list.oldest();
        while let Some(slot) = Slot::of(at) {
            if !take(slot) {
                return;
            }
            at = self.links.newer(at);
        }
    }
}
