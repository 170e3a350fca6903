//! The store itself: its tables, and the small questions that need no waiting.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::hash::Hasher;
use std::rc::Rc;
use std::sync::Arc;

use memkv_journal::KeyBytes;
use memkv_poller::channel::{InboxReceiver, InboxSender};
use memkv_poller::local::Event;
use memkv_poller::spare::Row;
use memkv_poller::{Instant, Local};
use siphasher::sip128::{Hasher128, SipHasher13};

use crate::block::{Block, Extent, KeyHash, MissReason, Slot};
use crate::drives::{Drive, Drives};
use crate::gone::Gone;
use crate::index::{GENERATION_MAX, Index, Span};
use crate::locks::KeyLocks;
use crate::membership::Members;
use crate::metrics::StoreCounters;
use crate::policy::{EvictionPolicy, Policies};
use crate::remember::Remembered;
use crate::reserve::Pending;
use crate::wanting::Wanting;
use crate::{DriveId, DriveStatus, Policy, Space, StoreConfig, Tuning};

/// Hashes keys under the store's secret; cheap to clone and to send to other reactors.
#[derive(Clone)]
pub struct KeyHasher(u64, u64);

impl KeyHasher {
    /// From the first 16 bytes of the store's secret.
    pub fn new(secret: &[u8; 32]) -> Self {
        let word = |at: usize| u64::from_le_bytes(secret[at..at + 8].try_into().expect("8 bytes"));
        Self(word(0), word(8))
    }

    /// The 128-bit hash of a whole key.
    pub fn hash(&self, key: &KeyBytes) -> KeyHash {
        let mut hasher = SipHasher13::new_with_keys(self.0, self.1);
        hasher.write(key.as_bytes());
        KeyHash(hasher.finish128().into())
    }

    /// Hashes the keys of one namespace, whose names it has taken in already.
    ///
    /// # Panics
    /// On a name that is too long.
    pub fn within(&self, tenant: &str, namespace: &str) -> NamespaceHasher {
        let mut names = Vec::new();
        KeyBytes::put_names(tenant, namespace, &mut names);
        let mut hasher = SipHasher13::new_with_keys(self.0, self.1);
        hasher.write(&names);
        NamespaceHasher(hasher)
    }
}

/// Hashes keys of one namespace as [`KeyHasher`] hashes whole keys.
#[derive(Clone)]
pub struct NamespaceHasher(SipHasher13);

impl NamespaceHasher {
    /// The 128-bit hash of a key of the namespace.
    pub fn hash(&self, key: &[u8]) -> KeyHash {
        let mut hasher = self.0;
        hasher.write(key);
        KeyHash(hasher.finish128().into())
    }
}

/// What has begun and not ended, at one moment. All zero but `units` when nobody asks for anything.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub struct UnderWay {
    /// Reservations that are neither committed nor aborted.
    pub reservations: usize,
    /// Keys that a put or a delete holds.
    pub keys: usize,
    /// Reads that hold a block.
    pub readers: u64,
    /// Blocks that have left the index and whose units are not free yet.
    pub leaving: usize,
    /// Units of 16 KiB of all blocks and reservations on drives that serve: those that are not
    /// free.
    pub units: u64,
}

/// Leases of one block: who holds it until when.
pub(crate) type Holders = Row<(u64, Instant)>;

/// One node's store; lives on one reactor.
pub struct Store {
    pub(crate) local: Local,
    pub(crate) config: StoreConfig,
    pub(crate) hasher: KeyHasher,
    pub(crate) drives: Drives,
    pub(crate) blocks: RefCell<Index>,
    pub(crate) policy: RefCell<Policies>,
    /// The policy to change to, once the change under way is done.
    pub(crate) next_policy: Cell<Option<Policy>>,
    pub(crate) tuning: Cell<Tuning>,
    pub(crate) locks: Rc<KeyLocks>,
    pub(crate) pending: RefCell<HashMap<u64, Pending>>,
    pub(crate) next_pending: Cell<u64>,
    /// Told when the last reservation was committed or aborted.
    pub(crate) settled: Event,
    pub(crate) generation: Cell<u64>,
    pub(crate) clock_high: Cell<u64>,
    pub(crate) remembered: RefCell<Remembered>,
    pub(crate) gone: RefCell<Gone>,
    /// A tree, which never has to be sorted anew as a whole.
    pub(crate) leases: RefCell<BTreeMap<Slot, Holders>>,
    pub(crate) evict_now: Event,
    /// Puts that were refused for space; the evictor works until all of them would fit.
    pub(crate) wanting: RefCell<Wanting>,
    /// Blocks that must go because a drive remembers as many as it was formatted for.
    pub(crate) evict_blocks: Cell<u64>,
    /// Units of blocks that left the index and wait for their readers.
    pub(crate) leaving: Cell<u64>,
    pub(crate) checkpoint_now: Event,
    pub(crate) members: Members,
    pub(crate) draining: Cell<bool>,
    /// One place: whose turn it is to gather memory. The receiver only keeps it open.
    pub(crate) gathering: (InboxSender<()>, InboxReceiver<()>),
    pub(crate) counters: Arc<StoreCounters>,
}

impl Store {
    /// The reactor it lives on.
    pub fn local(&self) -> &Local {
        &self.local
    }

    /// Its settings as they were at its start; see [`Store::tune`].
    pub fn config(&self) -> &StoreConfig {
        &self.config
    }

    /// Hashes keys as this store does.
    pub fn hasher(&self) -> KeyHasher {
        self.hasher.clone()
    }

    /// Its counters, readable from any thread.
    pub fn counters(&self) -> Arc<StoreCounters> {
        self.counters.clone()
    }

    /// The room that there is and how much of it is taken, of the drives that serve.
    pub fn space(&self) -> Space {
        let mut space = Space::default();
        for drive in self.drives.iter() {
            if !drive.online() {
                space.drives_offline += 1;
                continue;
            }
            space.drives_online += 1;
            let total = u64::from(drive.journal.total_units());
            space.units_total += total;
            space.units_used += total - u64::from(drive.journal.free_units());
        }
        space
    }

    /// Its drives.
    pub fn drives(&self) -> Vec<DriveStatus> {
        self.drives.iter().map(Drive::status).collect()
    }

    /// What has begun and not ended. Looks at every block: for tests and tools, not for a gauge.
    pub fn under_way(&self) -> UnderWay {
        let pending = self.pending.borrow();
        let (reservations, keys) = (pending.len(), self.locks.count());
        let mut under_way = UnderWay { reservations, keys, ..UnderWay::default() };
        let units = |span: Span| match self.drive(span.drive).online() {
            true => u64::from(span.range.count),
            false => 0,
        };
        let reserved = pending.values().flat_map(|reservation| &reservation.extents);
        under_way.units += reserved.map(|extent| units(extent.span())).sum::<u64>();
        let blocks = self.blocks.borrow();
        for (slot, block) in blocks.iter(1..=blocks.last()) {
            under_way.units += blocks.spans(slot).map(units).sum::<u64>();
            under_way.readers += u64::from(blocks.pins(slot));
            under_way.leaving += usize::from(!block.is_published());
        }
        under_way
    }

    pub(crate) fn drive(&self, id: DriveId) -> &Drive {
        &self.drives[usize::from(id.0)]
    }

    /// Wall-clock seconds that never run backwards, not over restarts either.
    pub(crate) fn unix_now(&self) -> u64 {
        let now = self.local.unix_seconds().max(self.clock_high.get());
        self.clock_high.set(now);
        now
    }

    /// The second it is now, since the origin of the reactor's clock: what the policy counts in.
    pub(crate) fn second(&self) -> u32 {
        u32::try_from(self.local.now().as_nanos() / 1_000_000_000).unwrap_or(u32::MAX)
    }

    pub(crate) fn next_generation(&self) -> u64 {
        let generation = self.generation.get() + 1;
        assert!(generation <= GENERATION_MAX, "the store has given out all its generations");
        self.generation.set(generation);
        generation
    }

    /// Whether a block can be read now: published, not expired, on drives that serve.
    pub(crate) fn unreadable(&self, blocks: &Index, slot: Slot) -> Option<MissReason> {
        let block = blocks.get(slot);
        if block.is_corrupt() {
            return Some(MissReason::Corrupt);
        }
        if block.expires() != 0 && self.unix_now() >= block.expires() {
            return Some(MissReason::Expired);
        }
        let lost = blocks.spans(slot).any(|span| !self.drive(span.drive).online());
        lost.then_some(MissReason::DriveLost)
    }

    /// The block of a key, whether it can be read or not.
    pub(crate) fn slot_of(&self, key: KeyHash) -> Option<Slot> {
        self.blocks.borrow().lookup(key)
    }

    /// An extent with the place on its drive that follows from its units.
    pub(crate) fn extent(&self, span: Span) -> Extent {
        let Span { drive, range, length, crc } = span;
        let offset = self.drive(drive).journal.data_offset(range.start);
        Extent { drive, range, offset, length, crc }
    }

    /// The readable block of a key.
    pub(crate) fn find(&self, key: KeyHash) -> Result<Slot, MissReason> {
        let blocks = self.blocks.borrow();
        let Some(slot) = blocks.lookup(key) else {
            return Err(self.gone.borrow().reason(key).unwrap_or(MissReason::Never));
        };
        match self.unreadable(&blocks, slot) {
            None => Ok(slot),
            Some(reason) => Err(reason),
        }
    }

    pub(crate) fn count_lookup<T>(&self, found: &Result<T, MissReason>) {
        let counter = match found {
            Ok(_) => &self.counters.hits,
            Err(MissReason::Never) => &self.counters.misses_never,
            Err(MissReason::Evicted) => &self.counters.misses_evicted,
            Err(MissReason::Deleted) => &self.counters.misses_deleted,
            Err(MissReason::Expired) => &self.counters.misses_expired,
            Err(MissReason::DriveLost) => &self.counters.misses_drive_lost,
            Err(MissReason::Corrupt) => &self.counters.misses_corrupt,
        };
        counter.bump();
    }

    /// Puts a block into the index. Its records are durable.
    pub(crate) fn publish(&self, block: &Block) -> Slot {
        self.count_published(block);
        let slot = self.blocks.borrow_mut().insert(block);
        for extent in &block.extents {
            if let Some(duty) = &mut *self.drive(extent.drive).duty.borrow_mut() {
                duty.settle(slot);
            }
        }
        self.policy.borrow_mut().inserted(slot, block.hash());
        slot
    }

    /// Counts a block that enters the index.
    pub(crate) fn count_published(&self, block: &Block) {
        self.counters.blocks.add(1);
        self.counters.bytes.add(block.length);
    }

    /// Takes a block out of the index: no new reader finds it. Its units stay until
    /// [`Store::free_when_unread`].
    pub(crate) fn unpublish(&self, slot: Slot, reason: MissReason) {
        let mut blocks = self.blocks.borrow_mut();
        blocks.unpublish(slot);
        let block = blocks.get(slot);
        let evicted = reason == MissReason::Evicted;
        self.policy.borrow_mut().removed(slot, block.hash(), evicted);
        self.gone.borrow_mut().note(block.hash(), reason);
        self.leases.borrow_mut().remove(&slot);
        self.counters.blocks.set(self.counters.blocks.get() - 1);
        self.counters.bytes.set(self.counters.bytes.get() - block.length());
    }

    /// Payload-bearing units in use over all online drives, and all of them.
    pub(crate) fn usage(&self) -> (u64, u64) {
        let online = self.drives.iter().filter(|d| d.online());
        online.fold((0, 0), |(used, total), d| {
            let all = u64::from(d.journal.total_units());
            (used + all - u64::from(d.journal.free_units()), total + all)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_of_a_namespace_has_the_hash_of_the_whole_key() {
        let hasher = KeyHasher::new(&[7; 32]);
        for (tenant, namespace) in [("", ""), ("t", "n"), ("tenant", "a longer name of a space")] {
            let within = hasher.within(tenant, namespace);
            for length in 1..=64 {
                let key = vec![length as u8; length];
                let whole = KeyBytes::new(tenant, namespace, &key).unwrap();
                assert_eq!(within.hash(&key), hasher.hash(&whole), "{tenant} {namespace} {length}");
            }
        }
        let (one, other) = (hasher.within("a", "bc"), hasher.within("ab", "c"));
        assert_ne!(one.hash(b"k"), other.hash(b"k"), "names do not run into each other");
    }
}
