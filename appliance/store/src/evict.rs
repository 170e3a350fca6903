//! Making room before it is needed.
//!
//! The evictor is one task. It sleeps until the space in use passes the high watermark, or until a
//! put found no run of free units; then it takes victims in the policy's order, skipping blocks that
//! are leased or being changed, until the low watermark is reached and such a run is free. No
//! put waits for it: a put that comes too early is told to come again.

use std::collections::BTreeMap;
use std::rc::Rc;

use memkv_journal::Record;

use crate::block::{MissReason, Slot};
use crate::commit::Plan;
use crate::locks::KeyGuard;
use crate::{DriveId, Store};

/// Victims taken together: their removals share journal frames.
const BATCH: usize = 64;
/// Blocks skipped (leased or being changed) before the evictor gives up for now.
const SKIPS: usize = 4096;

impl Store {
    /// Wakes the evictor when space in use is above the high watermark.
    pub(crate) fn watch_space(&self) {
        if let Some(eviction) = &self.config.eviction {
            let (used, total) = self.usage();
            if used as f64 > total as f64 * eviction.high {
                self.evict_now.notify_all();
            }
        }
    }

    /// The evictor's task.
    pub(crate) async fn evictor(self: Rc<Self>) {
        let Some(eviction) = self.config.eviction else { return };
        loop {
            self.evict_now.listen().await;
            loop {
                let (used, total) = self.usage();
                let goal = (total as f64 * eviction.low) as u64;
                let above = used.saturating_sub(goal);
                let over_high = used as f64 > total as f64 * eviction.high;
                let run_missing = self.run_missing();
                if !over_high && !run_missing {
                    break;
                }
                if self.evict_some(above.max(1)).await == 0 {
                    self.evict_run.set(0);
                    break;
                }
            }
        }
    }

    /// Whether the longest run that a refused put asked for is still not free anywhere.
    fn run_missing(&self) -> bool {
        let run = self.evict_run.get();
        if run == 0 {
            return false;
        }
        for drive in self.drives.iter().filter(|d| d.online()) {
            if let Some(range) = drive.journal.allocate(run) {
                drive.journal.release(range);
                self.evict_run.set(0);
                return false;
            }
        }
        true
    }

    /// Evicts up to a batch of blocks, about `units` worth; returns how many.
    async fn evict_some(self: &Rc<Self>, units: u64) -> usize {
        let victims = self.pick_victims(units);
        let mut removals: BTreeMap<DriveId, Vec<Record>> = BTreeMap::new();
        for (slot, _) in &victims {
            self.unpublish(*slot, MissReason::Evicted);
            self.counters.evictions.bump();
            for (drive, records) in self.removal_plan(self.blocks.borrow().get(*slot)) {
                removals.entry(drive).or_default().extend(records);
            }
        }
        let plan: Plan = removals.into_iter().collect();
        // Not durable on a drive that has just failed; its units are then never used again.
        self.append_removals(plan).await;
        let count = victims.len();
        for (slot, guard) in victims {
            self.free_when_unread(slot);
            drop(guard);
        }
        count
    }

    fn pick_victims(&self, units: u64) -> Vec<(Slot, KeyGuard)> {
        let mut victims = Vec::new();
        let mut taken = 0;
        let mut skipped = 0;
        let mut at = None;
        while taken < units && victims.len() < BATCH && skipped < SKIPS {
            at = self.policy.borrow().victim(at);
            let Some(slot) = at else { break };
            let blocks = self.blocks.borrow();
            let block = blocks.get(slot);
            // A block that is being read may leave the index: its units wait for the reader.
            let guard = if self.held(slot) { None } else { self.locks.try_lock(block.hash()) };
            match guard {
                Some(guard) => {
                    taken += block.units();
                    victims.push((slot, guard));
                }
                None => skipped += 1,
            }
        }
        victims
    }
}
