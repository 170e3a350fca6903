//! Taking blocks away: deletes, bad bytes, lost drives, and what every removal has in common.

use std::rc::Rc;

use memkv_journal::Record;
use memkv_poller::Instant;

use crate::block::{Block, KeyHash, MissReason, Slot};
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
const SWEEP_STEP: usize = 1024;

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
        let slot = self.index.borrow().get(&key).copied();
        let Some(slot) = slot else {
            // It may be missing because its drive was lost, which could bring it back.
            return match self.membership_settles().await {
                true => Deleted::Missing(readable.err().unwrap_or(MissReason::Never)),
                false => Deleted::DriveFailed,
            };
        };
        let held = self.blocks.borrow().get(slot).id.generation;
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
        let slot = self.index.borrow().get(&key).copied();
        if let Some(slot) = slot
            && let Some(block) = self.blocks.borrow_mut().find(slot, generation)
        {
            block.corrupt = true;
        }
        let deadline = self.local.now() + self.config.default_deadline;
        let Ok(_guard) = self.lock_key(key, deadline).await else { return };
        let Some(&slot) = self.index.borrow().get(&key) else { return };
        if self.blocks.borrow().get(slot).id.generation != generation {
            return;
        }
        tracing::warn!(generation, "dropped a block whose bytes failed their CRC");
        self.counters.corrupt_dropped.bump();
        self.unpublish(slot, MissReason::Corrupt);
        self.remove_durably(slot).await;
    }

    /// A removal record on every serving drive that holds part of the block.
    pub(crate) fn removal_plan(&self, block: &Block) -> Plan {
        let mut plan: Plan = Vec::new();
        for extent in &block.extents {
            let known = plan.iter().any(|(drive, _)| *drive == extent.drive);
            if !known && self.drive(extent.drive).online() {
                plan.push((extent.drive, vec![Record::Remove { block: block.id }]));
            }
        }
        plan
    }

    /// Makes an unpublished block's removal durable, then frees its units as soon as nobody reads
    /// them. Says whether the removal is durable on every drive that held the block.
    pub(crate) async fn remove_durably(self: &Rc<Self>, slot: Slot) -> bool {
        let plan = self.removal_plan(self.blocks.borrow().get(slot));
        let durable = self.append_removals(plan).await;
        self.free_when_unread(slot);
        durable
    }

    /// Frees the units of a removed block now, or when its last reader is done.
    pub(crate) fn free_when_unread(self: &Rc<Self>, slot: Slot) {
        let (pins, units, unread) = {
            let blocks = self.blocks.borrow();
            let block = blocks.get(slot);
            assert!(!block.published, "only removed blocks are freed");
            (block.pins, block.units(), block.unread.clone())
        };
        if pins == 0 {
            return self.free_block(slot);
        }
        self.leaving.set(self.leaving.get() + units);
        let store = self.clone();
        self.local.spawn(async move {
            while store.blocks.borrow().get(slot).pins > 0 {
                unread.listen().await;
            }
            store.leaving.set(store.leaving.get() - units);
            store.free_block(slot);
        });
    }

    fn free_block(&self, slot: Slot) {
        let block = self.blocks.borrow_mut().remove(slot);
        assert_eq!(block.pins, 0, "units are freed when nobody reads them");
        self.release_units(&block.extents);
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
        *drive.why_offline.borrow_mut() = Some(why.to_string());
        self.counters.drives_failed.bump();
        self.raise_epoch();
        let store = self.clone();
        self.local.spawn(async move { store.sweep_lost(id).await });
    }

    /// Takes the blocks of a lost drive out of the index and frees their parts on other drives.
    async fn sweep_lost(self: Rc<Self>, id: DriveId) {
        let lost: Vec<(Slot, u64)> = {
            let blocks = self.blocks.borrow();
            let on_it = blocks.iter().filter(|(_, b)| b.published && b.is_on(id));
            on_it.map(|(slot, b)| (slot, b.id.generation)).collect()
        };
        for (step, (slot, generation)) in lost.into_iter().enumerate() {
            if step % SWEEP_STEP == SWEEP_STEP - 1 {
                self.local.yield_now().await;
            }
            let gone = match self.blocks.borrow_mut().find(slot, generation) {
                Some(block) => !block.published,
                None => true,
            };
            if !gone {
                self.unpublish(slot, MissReason::DriveLost);
                self.remove_durably(slot).await;
            }
        }
    }
}
