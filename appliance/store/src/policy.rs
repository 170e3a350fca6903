//! Which block leaves first.
//!
//! A policy knows slots, hashes of keys and the order of chains, never bytes: pins, leases and
//! locks are the store's. It is told what is put, read and removed, and, where requests name blocks
//! in the order of their chain (a match of a prefix, a batch of puts or gets), that order. It is
//! deterministic: the same calls give the same victims.

mod chain;
mod change;
mod ghosts;
mod list;
mod lru;
mod odds;
mod s3_fifo;
#[cfg(test)]
mod tests;

pub use chain::Chain;
pub(crate) use change::Policies;
pub use lru::Lru;
pub use s3_fifo::S3Fifo;

use crate::block::{KeyHash, Slot};

/// A block that a request names: its key, and its slot when it is there.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Named {
    /// The key's hash.
    pub key: KeyHash,
    /// Where the block is; `None` when there is none under this key.
    pub slot: Option<Slot>,
}

/// Orders blocks for eviction.
pub trait EvictionPolicy {
    /// The policy's name in status and configuration.
    fn name(&self) -> &'static str;

    /// Whether [`EvictionPolicy::named`] is of any use to it.
    fn wants_chains(&self) -> bool {
        false
    }

    /// A request named blocks in the order of their chain: each is useless without those before
    /// it. Blocks that are there will be read, the others will probably be put.
    fn named(&mut self, _chain: &[Named]) {}

    /// A block was published.
    fn inserted(&mut self, slot: Slot, key: KeyHash);

    /// A block was found at a start, when nothing was asked for yet. Those that were found later are
    /// newer. There may be millions, and there is nothing to be learned from them.
    fn restored(&mut self, slot: Slot, key: KeyHash) {
        self.inserted(slot, key);
    }

    /// A block was read.
    fn accessed(&mut self, slot: Slot);

    /// A block left the index; `evicted` when it did because it was offered as a victim, so that
    /// its return would say something about the choice.
    fn removed(&mut self, slot: Slot, key: KeyHash, evicted: bool);

    /// Offers blocks in the order in which they should go, each once, until `take` answers that it
    /// wants no more or there are no more. None of them leaves here: those that go are removed by
    /// [`EvictionPolicy::removed`] afterwards.
    fn victims(&mut self, take: &mut dyn FnMut(Slot) -> bool);
}

/// The policies there are.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Policy {
    /// [`Lru`].
    Lru,
    /// [`S3Fifo`].
    S3Fifo,
    /// [`Chain`].
    Chain,
}

impl Policy {
    /// All of them.
    pub const ALL: [Policy; 3] = [Policy::Lru, Policy::S3Fifo, Policy::Chain];

    /// The policy, with nothing in it.
    #[must_use]
    pub fn build(self) -> Box<dyn EvictionPolicy> {
        match self {
            Policy::Lru => Box::<Lru>::default(),
            Policy::S3Fifo => Box::<S3Fifo>::default(),
            Policy::Chain => Box::<Chain>::default(),
        }
    }
}
