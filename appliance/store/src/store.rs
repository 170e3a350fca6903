//! The store itself: its tables, and the small questions that need no waiting.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::rc::Rc;
use std::sync::Arc;

use memkv_journal::KeyBytes;
use memkv_poller::channel::{InboxReceiver, InboxSender};
use memkv_poller::local::Event;
use memkv_poller::{Instant, Local};
use siphasher::sip128::{Hasher128, SipHasher13};

use crate::block::{Block, Extent, KeyHash, MissReason, Slab, Slot};
use crate::drives::Drive;
use crate::locks::KeyLocks;
use crate::membership::Members;
use crate::metrics::StoreCounters;
use crate::policy::EvictionPolicy;
use crate::remember::Remembered;
use crate::reserve::Pending;
use crate::{DriveId, DriveStatus, StoreConfig};

/// How many removed keys the store remembers the reason of.
const REASONS_KEPT: usize = 65_536;

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
}

/// The index's hasher: keys are already uniformly distributed.
#[derive(Default)]
pub(crate) struct Low64(u64);

impl Hasher for Low64 {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(byte);
        }
    }

    fn write_u128(&mut self, n: u128) {
        self.0 = n as u64;
    }
}

pub(crate) type HashTable<V> = HashMap<KeyHash, V, BuildHasherDefault<Low64>>;

/// Why keys are gone, bounded.
#[derive(Default)]
pub(crate) struct Gone {
    reasons: HashTable<MissReason>,
    order: VecDeque<KeyHash>,
}

impl Gone {
    pub fn note(&mut self, key: KeyHash, reason: MissReason) {
        if self.reasons.insert(key, reason).is_none() {
            self.order.push_back(key);
            if self.order.len() > REASONS_KEPT
                && let Some(oldest) = self.order.pop_front()
            {
                self.reasons.remove(&oldest);
            }
        }
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
pub(crate) type Holders = Vec<(u64, Instant)>;

/// One node's store; lives on one reactor.
pub struct Store {
    pub(crate) local: Local,
    pub(crate) config: StoreConfig,
    pub(crate) hasher: KeyHasher,
    pub(crate) drives: Vec<Drive>,
    pub(crate) blocks: RefCell<Slab>,
    pub(crate) index: RefCell<HashTable<Slot>>,
    pub(crate) policy: RefCell<Box<dyn EvictionPolicy>>,
    pub(crate) locks: Rc<KeyLocks>,
    pub(crate) pending: RefCell<BTreeMap<u64, Pending>>,
    pub(crate) next_pending: Cell<u64>,
    /// Told when the last reservation was committed or aborted.
    pub(crate) settled: Event,
    pub(crate) generation: Cell<u64>,
    pub(crate) clock_high: Cell<u64>,
    pub(crate) remembered: RefCell<Remembered>,
    pub(crate) gone: RefCell<Gone>,
    pub(crate) leases: RefCell<HashMap<Slot, Holders>>,
    pub(crate) evict_now: Event,
    /// Bytes of the largest put that was refused for space; the evictor works until it would fit.
    pub(crate) evict_for: Cell<u64>,
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

    /// Its settings.
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

    /// Its drives.
    pub fn drives(&self) -> Vec<DriveStatus> {
        self.drives.iter().map(Drive::status).collect()
    }

    /// What has begun and not ended. Looks at every block: for tests and tools, not for a gauge.
    pub fn under_way(&self) -> UnderWay {
        let pending = self.pending.borrow();
        let (reservations, keys) = (pending.len(), self.locks.count());
        let mut under_way = UnderWay { reservations, keys, ..UnderWay::default() };
        let units = |extents: &[Extent]| -> u64 {
            let online = extents.iter().filter(|e| self.drive(e.drive).online());
            online.map(|e| u64::from(e.range.count)).sum()
        };
        for reservation in pending.values() {
            under_way.units += units(&reservation.extents);
        }
        for (_, block) in self.blocks.borrow().iter() {
            under_way.units += units(&block.extents);
            under_way.readers += u64::from(block.pins);
            under_way.leaving += usize::from(!block.published);
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

    pub(crate) fn next_generation(&self) -> u64 {
        let generation = self.generation.get() + 1;
        self.generation.set(generation);
        generation
    }

    /// Whether a block can be read now: published, not expired, on drives that serve.
    pub(crate) fn unreadable(&self, block: &Block) -> Option<MissReason> {
        if block.corrupt {
            return Some(MissReason::Corrupt);
        }
        if block.expires != 0 && self.unix_now() >= block.expires {
            return Some(MissReason::Expired);
        }
        let lost = block.extents.iter().any(|e| !self.drive(e.drive).online());
        lost.then_some(MissReason::DriveLost)
    }

    /// The readable block of a key.
    pub(crate) fn find(&self, key: KeyHash) -> Result<Slot, MissReason> {
        let Some(&slot) = self.index.borrow().get(&key) else {
            let reason = self.gone.borrow().reasons.get(&key).copied();
            return Err(reason.unwrap_or(MissReason::Never));
        };
        match self.unreadable(self.blocks.borrow().get(slot)) {
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
    pub(crate) fn publish(&self, block: Block) -> Slot {
        assert!(block.published, "only published blocks are in the index");
        let key = block.hash();
        self.counters.blocks.add(1);
        self.counters.bytes.add(block.length);
        let slot = self.blocks.borrow_mut().insert(block);
        let before = self.index.borrow_mut().insert(key, slot);
        assert!(before.is_none(), "the older block of the key was taken out first");
        self.policy.borrow_mut().inserted(slot, key);
        slot
    }

    /// Takes a block out of the index: no new reader finds it. Its units stay until
    /// [`Store::free_when_unread`].
    pub(crate) fn unpublish(&self, slot: Slot, reason: MissReason) {
        let mut blocks = self.blocks.borrow_mut();
        let block = blocks.get_mut(slot);
        assert!(block.published, "a block leaves the index once");
        block.published = false;
        let at = self.index.borrow_mut().remove(&block.hash());
        assert_eq!(at, Some(slot), "the index names the block that leaves");
        let evicted = reason == MissReason::Evicted;
        self.policy.borrow_mut().removed(slot, block.hash(), evicted);
        self.gone.borrow_mut().note(block.hash(), reason);
        self.leases.borrow_mut().remove(&slot);
        self.counters.blocks.set(self.counters.blocks.get() - 1);
        self.counters.bytes.set(self.counters.bytes.get() - block.length);
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
