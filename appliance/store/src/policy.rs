//! Which block leaves first.
//!
//! A policy knows slots, hashes of keys and the order of chains, never bytes: pins, leases and
//! locks are the store's. It is told what is put, read and removed, and, where requests name blocks
//! in the order of their chain (a match of a prefix, a batch of puts or gets), that order. It is
//! deterministic: the same calls give the same victims.

mod chain;
mod change;
mod ghosts;
mod holds;
mod list;
mod lru;
mod odds;
mod paged;
mod runs;
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

/// What an engine says about a chain of blocks that are there.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Hint {
    /// Nobody will want it again: it goes before all others, from its deep end. Who reads or names
    /// it takes that back.
    Release,
    /// It is wanted: it goes after all others, as long as that is not over.
    Keep {
        /// The second at which it is an ordinary chain again. What is kept longer already stays so.
        until: u32,
    },
}

/// A part of the order of eviction; all of one go before the first of the next.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Rank {
    /// Blocks that were released.
    Released,
    /// Blocks of which nothing was said.
    Ordinary,
    /// Blocks that are kept, those first whose time ends soonest.
    Kept,
}

impl Rank {
    /// All of them, in their order.
    pub const ALL: [Rank; 3] = [Rank::Released, Rank::Ordinary, Rank::Kept];
}

/// Blocks or runs of them whose time is over, that one call makes ordinary again.
const ENDED_AT_ONCE: usize = 256;

/// Orders blocks for eviction: first those that were released, then as the policy sees fit, then
/// those that are kept, whose time ends soonest first. Times are seconds of any one clock.
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

    /// A block will be put under `key` that is useless without its parent. Said before it is
    /// published.
    fn follows(&mut self, _parent: Named, _key: KeyHash) {}

    /// An engine says something about a chain, in its order. Each block is there and named once.
    fn hinted(&mut self, chain: &[Slot], hint: Hint, now: u32);

    /// A block was published.
    fn inserted(&mut self, slot: Slot, key: KeyHash);

    /// Blocks were found at a start, when nothing was asked for yet. Those that are told later are
    /// newer. There may be millions, and there is nothing to be learned from them.
    fn restored(&mut self, blocks: &[(Slot, KeyHash)]) {
        blocks.iter().for_each(|&(slot, key)| self.inserted(slot, key));
    }

    /// A block was read.
    fn accessed(&mut self, slot: Slot);

    /// A block left the index; `evicted` when it did because it was offered as a victim, so that
    /// its return would say something about the choice.
    fn removed(&mut self, slot: Slot, key: KeyHash, evicted: bool);

    /// What an engine said of a block, where that is in force.
    fn hint_of(&self, slot: Slot) -> Option<Hint>;

    /// Makes blocks ordinary again whose time is over, a bounded number of them.
    fn end_holds(&mut self, now: u32);

    /// Offers the blocks of one rank in the order in which they should go, each once, until `take`
    /// answers that it wants no more: then false. None of them leaves here: those that go are
    /// removed by [`EvictionPolicy::removed`] afterwards.
    fn offer(&mut self, rank: Rank, take: &mut dyn FnMut(Slot) -> bool) -> bool;

    /// Offers blocks in the order in which they should go, as [`EvictionPolicy::offer`] does.
    fn victims(&mut self, now: u32, take: &mut dyn FnMut(Slot) -> bool) {
        self.end_holds(now);
        for rank in Rank::ALL {
            if !self.offer(rank, take) {
                return;
            }
        }
    }

    /// Bytes of memory that it takes for the blocks that are there.
    fn memory(&self) -> usize;

    /// Bytes of memory that it takes for what is not there: a bounded number of keys.
    fn memory_of_ghosts(&self) -> usize;
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
