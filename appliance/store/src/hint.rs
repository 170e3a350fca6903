//! What engines say about blocks that are there: that nobody will want them again, or that they
//! are wanted; and what belongs to which chain.
//!
//! A hint moves blocks in the order of eviction and nothing else: it pins no block, keeps none from
//! being deleted, replaced or expiring, and is forgotten with the block and with the process.

use std::collections::HashSet;
use std::rc::Rc;
use std::time::Duration;

use memkv_poller::spare::{self, Row};

use crate::Store;
use crate::block::{Block, KeyHash, Slot};
use crate::lease::{Existing, Miss};
use crate::policy::{EvictionPolicy, Hint, Named};

/// What is said of a chain of blocks.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Advice {
    /// It goes before all others, from its deep end, until somebody reads it.
    Release,
    /// It goes after all others, for as long as the store keeps what is retained.
    Retain,
    /// It goes after all others for this time, at most as long as the store pins.
    Pin(Duration),
}

impl Store {
    /// Takes advice about a chain, its keys in their order; answers as [`Store::exists`] does. What
    /// was said of a block before no longer counts, but that nobody shortens for how long it is
    /// kept. Without eviction there is nothing to advise.
    pub fn advise(
        self: &Rc<Self>,
        keys: &[KeyHash],
        advice: Advice,
    ) -> Row<Result<Existing, Miss>> {
        let found = self.exists(keys);
        let mut seen: HashSet<Slot> = spare::take().unwrap_or_default();
        let there = keys.iter().zip(&found).filter(|(_, found)| found.is_ok());
        let slots: Row<Slot> = there
            .map(|(key, _)| self.slot_of(*key).expect("just found"))
            .filter(|slot| seen.insert(*slot))
            .collect();
        seen.clear();
        let bytes = seen.capacity() * size_of::<Slot>();
        spare::keep(seen, bytes);
        self.counters.hinted.add(slots.len() as u64);
        self.hint(&slots, advice);
        found
    }

    /// Publishes a block with what its put said of it.
    pub(crate) fn publish_advised(
        &self,
        block: &Block,
        parent: Option<KeyHash>,
        pin: Duration,
    ) -> Slot {
        // Said again: the parent may have come since the block was reserved.
        if let Some(parent) = parent {
            self.follows(parent, block.hash());
        }
        let slot = self.publish(block);
        if !pin.is_zero() {
            self.hint(&[slot], Advice::Pin(pin));
        }
        slot
    }

    /// Takes advice about blocks that are there, each once.
    pub(crate) fn hint(&self, slots: &[Slot], advice: Advice) {
        let Some(eviction) = self.tuning.get().eviction else { return };
        let now = self.second();
        let keep = |time: Duration| {
            // The clock counts whole seconds: what was asked for is not cut short.
            let seconds = u32::try_from(time.as_millis().div_ceil(1000)).unwrap_or(u32::MAX);
            Hint::Keep { until: now.saturating_add(seconds).saturating_add(1) }
        };
        let hint = match advice {
            Advice::Release => Hint::Release,
            Advice::Retain => keep(eviction.retain),
            Advice::Pin(time) => keep(time.min(eviction.pin_max)),
        };
        if !slots.is_empty() {
            self.policy.borrow_mut().hinted(slots, hint, now);
        }
    }

    /// The block of `key`, which is not there yet, is useless without that of its parent.
    pub(crate) fn follows(&self, parent: KeyHash, key: KeyHash) {
        let slot = self.slot_of(parent);
        if parent != key {
            self.policy.borrow_mut().follows(Named { key: parent, slot }, key);
        }
    }
}
