//! Reading: who may read which extents, and for how long they stay.

use std::rc::Rc;
use std::time::Duration;

use memkv_poller::spare::Row;

use crate::Store;
use crate::block::{Crcs, Extent, KeyHash, MissReason, Slot};
use crate::policy::{EvictionPolicy, Named};

/// What is stored under a key, for answers that carry no payload.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Existing {
    /// Bytes of the value.
    pub length: u64,
    /// Its generation.
    pub generation: u64,
    /// One CRC32C per extent.
    pub crcs: Crcs,
}

/// A key that has no readable block.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Miss(pub MissReason);

/// A pinned block: where its bytes are. Whoever gets one must [`Store::unpin`] it.
#[derive(Clone, Debug)]
pub struct LeaseGrant {
    /// The pinned slot.
    pub slot: Slot,
    /// Bytes of the value.
    pub length: u64,
    /// Its generation.
    pub generation: u64,
    /// Where its bytes are.
    pub extents: Row<Extent>,
    /// One bit per extent that needs no check before it is sent.
    pub verified: u16,
    /// Its bytes may be lent to a peer.
    pub lent: bool,
}

impl Store {
    pub(crate) fn existing(&self, key: KeyHash) -> Option<Existing> {
        Some(self.existing_at(self.find(key).ok()?))
    }

    fn existing_at(&self, slot: Slot) -> Existing {
        let blocks = self.blocks.borrow();
        let block = blocks.get(slot);
        let crcs = blocks.spans(slot).map(|span| span.crc).collect();
        Existing { length: block.length(), generation: block.generation(), crcs }
    }

    /// Pins the block of a key for reading.
    ///
    /// # Errors
    /// [`Miss`] with the reason.
    pub fn lease(self: &Rc<Self>, key: KeyHash) -> Result<LeaseGrant, Miss> {
        self.pin(key, false)
    }

    /// Pins the block of a key for a read that may last for as long as a peer likes: the block is not
    /// evicted meanwhile, and nobody counts on its units. It ends by [`Store::unpin_lent`].
    ///
    /// # Errors
    /// [`Miss`] with the reason.
    pub fn lease_to_lend(self: &Rc<Self>, key: KeyHash) -> Result<LeaseGrant, Miss> {
        self.pin(key, true)
    }

    /// [`Store::lease`], or `lent` [`Store::lease_to_lend`], of a block of one extent whose bytes need no
    /// check, if `take` gets what it needs for it; of any other nothing is done, and it is to be leased as
    /// usual.
    pub fn lease_at_once<T>(
        self: &Rc<Self>,
        key: KeyHash,
        lent: bool,
        take: impl FnOnce(&Extent) -> Option<T>,
    ) -> Option<(LeaseGrant, T)> {
        let found = self.find(key);
        let slot = found.ok()?;
        let taken = take(&self.lone_extent(slot)?)?;
        self.count_lookup(&found);
        Some((self.pin_at(slot, lent), taken))
    }

    /// The extent of a block that has no other and whose bytes need no check.
    fn lone_extent(&self, slot: Slot) -> Option<Extent> {
        let blocks = self.blocks.borrow();
        let mut spans = blocks.spans(slot);
        let extent = self.extent(spans.next()?);
        (spans.next().is_none() && blocks.is_verified(slot)).then_some(extent)
    }

    fn pin(self: &Rc<Self>, key: KeyHash, lent: bool) -> Result<LeaseGrant, Miss> {
        Ok(self.pin_at(self.look_up(key)?, lent))
    }

    fn pin_at(self: &Rc<Self>, slot: Slot, lent: bool) -> LeaseGrant {
        self.policy.borrow_mut().accessed(slot);
        self.counters.leases.bump();
        let mut blocks = self.blocks.borrow_mut();
        blocks.pin(slot, lent);
        let block = blocks.get(slot);
        LeaseGrant {
            slot,
            length: block.length(),
            generation: block.generation(),
            extents: blocks.spans(slot).map(|span| self.extent(span)).collect(),
            verified: blocks.verified(slot),
            lent,
        }
    }

    /// Ends a read. The units of a block that was unpublished meanwhile are freed by its remover.
    pub fn unpin(&self, slot: Slot) {
        self.blocks.borrow_mut().unpin(slot, false);
    }

    /// Ends a read of what may have been lent.
    pub fn unpin_lent(&self, slot: Slot) {
        self.blocks.borrow_mut().unpin(slot, true);
    }

    /// Extents of a pinned block were read and their CRCs were right.
    pub fn mark_verified(&self, slot: Slot, generation: u64, extents: u16) {
        let mut blocks = self.blocks.borrow_mut();
        if blocks.find(slot, generation).is_some() {
            blocks.mark_verified(slot, extents);
        }
    }

    /// What is stored under the keys; pins nothing and touches no order.
    pub fn exists(self: &Rc<Self>, keys: &[KeyHash]) -> Row<Result<Existing, Miss>> {
        keys.iter().map(|&key| self.exists_one(key)).collect()
    }

    /// What is stored under one key, as [`Store::exists`].
    ///
    /// # Errors
    /// [`Miss`] with the reason.
    pub fn exists_one(self: &Rc<Self>, key: KeyHash) -> Result<Existing, Miss> {
        self.look_up(key).map(|slot| self.existing_at(slot))
    }

    /// Whether a block is stored under a key: [`Store::exists_one`] without what it is.
    ///
    /// # Errors
    /// [`Miss`] with the reason.
    pub fn is_there(self: &Rc<Self>, key: KeyHash) -> Result<(), Miss> {
        self.look_up(key).map(drop)
    }

    fn look_up(self: &Rc<Self>, key: KeyHash) -> Result<Slot, Miss> {
        let found = self.find(key);
        self.count_lookup(&found);
        found.map_err(|reason| {
            self.tidy_expired(key, reason);
            Miss(reason)
        })
    }

    /// A request names keys in the order of their chain: the eviction policy learns it.
    pub fn named(&self, keys: &[KeyHash]) {
        let mut policy = self.policy.borrow_mut();
        if !policy.wants_chains() {
            return;
        }
        let blocks = self.blocks.borrow();
        let named = |&key: &KeyHash| Named { key, slot: blocks.lookup(key) };
        policy.named(&keys.iter().map(named).collect::<Row<_>>());
    }

    /// How many of the keys, from the first on, are readable. The keys are a chain.
    pub fn match_prefix(self: &Rc<Self>, keys: &[KeyHash]) -> usize {
        self.named(keys);
        let mut run = 0;
        for &key in keys {
            let found = self.find(key);
            self.count_lookup(&found);
            if found.is_err() {
                break;
            }
            run += 1;
        }
        run
    }

    /// Keeps a block from eviction for a while, for one holder. A second lease of the same holder
    /// replaces the first.
    ///
    /// # Errors
    /// [`Miss`] with the reason.
    pub fn hold(&self, key: KeyHash, holder: u64, duration: Duration) -> Result<Existing, Miss> {
        let slot = self.find(key).map_err(Miss)?;
        let now = self.local.now();
        let until = now + duration.min(self.tuning.get().lease_max);
        let mut leases = self.leases.borrow_mut();
        let holders = leases.entry(slot).or_default();
        // A block in use is never looked at by the evictor: leases that ran out are dropped here.
        holders.retain(|&(who, until)| who != holder && until > now);
        holders.push((holder, until));
        drop(leases);
        self.policy.borrow_mut().accessed(slot);
        Ok(self.existing(key).expect("just found"))
    }

    /// Ends a holder's lease of a key, if it has one.
    pub fn unhold(&self, key: KeyHash, holder: u64) {
        let Some(slot) = self.slot_of(key) else { return };
        let mut leases = self.leases.borrow_mut();
        if let Some(holders) = leases.get_mut(&slot) {
            holders.retain(|&(who, _)| who != holder);
            if holders.is_empty() {
                leases.remove(&slot);
            }
        }
    }

    /// Whether a lease keeps the block from eviction now.
    pub(crate) fn held(&self, slot: Slot) -> bool {
        let now = self.local.now();
        let mut leases = self.leases.borrow_mut();
        let Some(holders) = leases.get_mut(&slot) else { return false };
        holders.retain(|&(_, until)| until > now);
        if holders.is_empty() {
            leases.remove(&slot);
            return false;
        }
        true
    }

    /// An expired block is found by whoever asks for it; its space is given back then.
    fn tidy_expired(self: &Rc<Self>, key: KeyHash, reason: MissReason) {
        if reason != MissReason::Expired {
            return;
        }
        let Some(guard) = self.locks.try_lock(key) else { return };
        let Some(slot) = self.slot_of(key) else { return };
        self.unpublish(slot, MissReason::Expired);
        let store = self.clone();
        self.local.spawn(async move {
            store.remove_durably(slot).await;
            drop(guard);
        });
    }
}
