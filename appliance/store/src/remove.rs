//! Taking blocks away: deletes, bad bytes, lost drives, and what every removal has in common.

use std::rc::Rc;

use memkv_journal::{BlockId, Record};
use memkv_poller::Instant;

use crate::block::{KeyHash, MissReason, Slot};
use crate::commit::Plan;
use crate::drives::DriveState;
use crate::remember::{Caller, Outcome};
use crate::{DriveId, Store};

/// What a delete came to.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Deleted {
    /// This generation is gone.
    Gone {
        /// The generation that was removed.
        generation: u64,
    },
    /// There was nothing to remove.
    Missing(MissReason),
    /// The key holds another generation.
    OtherGeneration {
        /// The one it holds.
        generation: u64,
    },
    /// The key stayed in use past the deadline; nothing was changed.
    Busy {
        /// A hint.
        retry_ms: u32,
    },
    /// The removal is not durable: no drive is left that could remember it.
    DriveFailed,
}

/// Blocks looked at between two yields when a drive's blocks are swept.
const SWEEP_STEP: u32 = 1024;

impl Store {
    /// Deletes a key, `generation` 0 meaning any.
    pub async fn delete(
        self: &Rc<Self>,
        key: KeyHash,
        generation: u64,
        deadline: Instant,
        caller: Caller,
    ) -> Deleted {
        if self.locks.is_held(key) {
            self.counters.put_delete.bump();
        }
        let _guard = match self.lock_key(key, deadline).await {
            Ok(guard) => guard,
            Err(_) => return Deleted::Busy { retry_ms: 10 },
        };
        if let Some(outcome) = self.remembered(&caller, key) {
            self.counters.retries_remembered.bump();
            return match outcome {
                Outcome::Deleted { generation } | Outcome::Stored { generation } => {
                    Deleted::Gone { generation }
                }
            };
        }
        // A block that cannot be read (expired, drive lost) is a miss, and its space is given back.
        let readable = self.find(key);
        let Some(slot) = self.slot_of(key) else {
            // It may be missing because its drive was lost, which could bring it back.
            return match self.membership_settles().await {
                true => Deleted::Missing(readable.err().unwrap_or(MissReason::Never)),
                false => Deleted::DriveFailed,
            };
        };
        let held = self.blocks.borrow().get(slot).generation();
        if readable.is_ok() && generation != 0 && generation != held {
            return Deleted::OtherGeneration { generation: held };
        }
        // What cannot be read goes, whatever generation was asked for: once it is reported missing
        // no later start may bring it back.
        self.unpublish(slot, readable.err().unwrap_or(MissReason::Deleted));
        // Where the removal is not durable the drive has failed, and is out before we say so.
        self.remove_durably(slot).await;
        if !self.membership_settles().await {
            return Deleted::DriveFailed;
        }
        if let Err(reason) = readable {
            return Deleted::Missing(reason);
        }
        self.counters.deletes.bump();
        let outcome = Outcome::Deleted { generation: held };
        self.remembered.borrow_mut().insert(self.local.now(), caller, key, outcome);
        Deleted::Gone { generation: held }
    }

    /// The bytes of this generation failed their CRC: the block is a miss from now on, and dropped
    /// as soon as nobody changes its key, if it is still there. If the key stays in use past the
    /// deadline, whoever changes it takes the block away.
    pub async fn drop_corrupt(self: &Rc<Self>, key: KeyHash, generation: u64) {
        self.drop_bad(key, generation, "its bytes failed their CRC").await;
    }

    /// See [`Store::drop_corrupt`].
    pub(crate) async fn drop_bad(
        self: &Rc<Self>,
        key: KeyHash,
        generation: u64,
        why: &'static str,
    ) {
        if let Some(slot) = self.slot_of(key) {
            let mut blocks = self.blocks.borrow_mut();
            if blocks.get(slot).generation() == generation {
                blocks.mark_corrupt(slot);
            }
        }
        let deadline = self.local.now() + self.tuning.get().default_deadline;
        let Ok(_guard) = self.lock_key(key, deadline).await else { return };
        let Some(slot) = self.slot_of(key) else { return };
        if self.blocks.borrow().get(slot).generation() != generation {
            return;
        }
        tracing::warn!(generation, why, "dropped a block");
        self.counters.corrupt_dropped.bump();
        self.unpublish(slot, MissReason::Corrupt);
        self.remove_durably(slot).await;
    }

    /// A removal record on every serving drive of those that hold part of a block.
    pub(crate) fn removal_plan(
        &self,
        block: BlockId,
        drives: impl Iterator<Item = DriveId>,
    ) -> Plan {
        let mut plan = Plan::new();
        for id in drives {
            let known = plan.iter().any(|(drive, _)| *drive == id);
            if !known && self.drive(id).online() {
                plan.push((id, [Record::Remove { block }].into()));
            }
        }
        plan
    }

    /// The same for the block in a slot.
    pub(crate) fn removal_of(&self, slot: Slot) -> Plan {
        let blocks = self.blocks.borrow();
        self.removal_plan(blocks.get(slot).id(), blocks.spans(slot).map(|span| span.drive))
    }

    /// Makes an unpublished block's removal durable, then frees its units as soon as nobody reads
    /// them. Says whether the removal is durable on every drive that held the block.
    pub(crate) async fn remove_durably(self: &Rc<Self>, slot: Slot) -> bool {
        let plan = self.removal_of(slot);
        let durable = self.append_removals(plan).await;
        self.free_when_unread(slot);
        durable
    }

    /// Frees the units of a removed block now, or when its last reader is done.
    pub(crate) fn free_when_unread(self: &Rc<Self>, slot: Slot) {
        let (units, unread, lent) = {
            let mut blocks = self.blocks.borrow_mut();
            assert!(!blocks.get(slot).is_published(), "only removed blocks are freed");
            (blocks.units(slot), blocks.unread(slot), blocks.is_lent(slot))
        };
        let Some(unread) = unread else { return self.free_block(slot) };
        // What is lent may never be free: nobody counts on it.
        let units = if lent { 0 } else { units };
        self.leaving.set(self.leaving.get() + units);
        let store = self.clone();
        self.local.spawn(async move {
            while store.blocks.borrow().pins(slot) > 0 {
                unread.listen().await;
            }
            store.leaving.set(store.leaving.get() - units);
            store.free_block(slot);
        });
    }

    fn free_block(&self, slot: Slot) {
        let mut blocks = self.blocks.borrow_mut();
        for span in blocks.spans(slot) {
            self.release_span(span);
        }
        blocks.remove(slot);
    }

    /// Takes a drive offline: its blocks are misses from now on, the node serves on. It is out for
    /// good: the epoch is raised on the other drives before the next put or delete is acknowledged.
    pub fn drive_failed(self: &Rc<Self>, id: DriveId, why: &dyn std::fmt::Display) {
        let drive = self.drive(id);
        if !drive.online() {
            return;
        }
        tracing::error!(drive = id.0, %why, "drive taken offline");
        drive.state.set(DriveState::Offline);
        drive.journal.stop_trim();
        drive.journal.give_up();
        *drive.why_offline.borrow_mut() = Some(why.to_string());
        self.counters.drives_failed.bump();
        self.raise_epoch();
        let store = self.clone();
        self.local.spawn(async move { store.sweep_lost(id).await });
    }

    /// Takes the blocks of a lost drive out of the index and frees their parts on other drives.
    async fn sweep_lost(self: Rc<Self>, id: DriveId) {
        let mut next = 1;
        loop {
            // What is published from now on does not lie there; what is there keeps its slot.
            let lost: Vec<(Slot, u64)> = {
                let blocks = self.blocks.borrow();
                let last = blocks.last().min(next + (SWEEP_STEP - 1));
                let here = blocks.iter(next..=last);
                let on_it = here.filter(|(slot, b)| b.is_published() && blocks.is_on(*slot, id));
                next = last + 1;
                on_it.map(|(slot, b)| (slot, b.generation())).collect()
            };
            for (slot, generation) in lost {
                let found = self.blocks.borrow().find(slot, generation).copied();
                if found.is_some_and(|block| block.is_published()) {
                    self.unpublish(slot, MissReason::DriveLost);
                    self.remove_durably(slot).await;
                }
            }
            if next > self.blocks.borrow().last() {
                return;
            }
            self.local.yield_now().await;
        }
    }
}
