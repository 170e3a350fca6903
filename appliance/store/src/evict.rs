//! Making room before it is needed.
//!
//! The evictor is one task. It sleeps until the space in use passes the high watermark, until a put
//! found no place, or until a drive remembers as many blocks as it may; then it takes victims in
//! the policy's order, skipping blocks that are leased, lent or being changed, until the low watermark is
//! reached and the put would find its place. No put waits for it: a put that comes too early is
//! told to come again.

use std::collections::BTreeMap;
use std::rc::Rc;

use memkv_journal::Record;
use memkv_poller::spare::Row;

use crate::block::{MissReason, Slot};
use crate::commit::Plan;
use crate::locks::KeyGuard;
use crate::policy::EvictionPolicy;
use crate::{DriveId, Store};

/// Victims taken together, in one turn: their removals share journal frames. Each takes some two
/// microseconds, and more where the index is too large for the caches.
const BATCH: usize = 32;
/// Blocks skipped (leased or being changed) before the evictor gives up for now.
const SKIPS: usize = 4096;
/// Blocks skipped in one turn: each is looked up among the leases, a tenth of a microsecond.
const SKIPS_A_TURN: usize = 256;
/// Victims whose units are freed in one turn.
const FREED_A_TURN: usize = 16;

impl Store {
    /// Wakes the evictor when space in use is above the high watermark.
    pub(crate) fn watch_space(&self) {
        if let Some(eviction) = self.tuning.get().eviction {
            let (used, total) = self.usage();
            if used as f64 > total as f64 * eviction.high {
                self.evict_now.notify_all();
            }
        }
    }

    /// The evictor's task.
    pub(crate) async fn evictor(self: Rc<Self>) {
        loop {
            // First look, then listen: nobody repeats what he said before we listened.
            self.make_room().await;
            self.evict_now.listen().await;
        }
    }

    /// Evicts until nobody needs it any more, or nothing is left that may go.
    async fn make_room(self: &Rc<Self>) {
        let mut above = false;
        // A store that stops needs no room, and its last checkpoints must stay the last word.
        while !self.draining.get() {
            // The marks may have moved since the last look.
            let Some(eviction) = self.tuning.get().eviction else { return };
            let (used, total) = self.usage();
            // What only waits for its readers is as good as free: no other block goes for it.
            let used = used.saturating_sub(self.leaving.get());
            // Once above the high watermark, down to the low one.
            let bound = if above { eviction.low } else { eviction.high };
            if used as f64 > total as f64 * bound {
                above = true;
            } else if !self.put_lacks_space() && self.evict_blocks.get() == 0 {
                return;
            }
            let goal = (total as f64 * eviction.low) as u64;
            let evicted = self.evict_some(used.saturating_sub(goal).max(1)).await;
            if evicted == 0 {
                self.wanting.borrow_mut().clear();
                self.evict_blocks.set(0);
                return;
            }
            self.evict_blocks.set(self.evict_blocks.get().saturating_sub(evicted));
        }
    }

    /// Whether one of the puts that were refused for space would be refused again, came they all now, and
    /// what readers still keep is not enough for them.
    fn put_lacks_space(&self) -> bool {
        let lengths = self.wanting.borrow().lengths();
        let mut places = Row::new();
        let lacks = lengths.iter().any(|&length| match self.try_units(length) {
            Some(extents) => {
                places.push(extents);
                false
            }
            None => true,
        });
        places.iter().for_each(|extents| self.release_units(extents));
        if !lacks {
            self.wanting.borrow_mut().clear();
            return false;
        }
        // Nor does anybody go for a place that a checkpoint or the trimmer brings: the puts come again.
        let units = lengths.iter().map(|&length| self.units_of(length)).sum::<u64>();
        !self.checkpoint_due() && units > self.leaving.get() + self.trimming()
    }

    /// Evicts up to a batch of blocks, about `units` worth; returns how many.
    async fn evict_some(self: &Rc<Self>, units: u64) -> u64 {
        let Some(victims) = self.find_victims(units).await else { return 0 };
        let mut removals: BTreeMap<DriveId, Row<Record>> = BTreeMap::new();
        for (slot, _) in &victims {
            self.unpublish(*slot, MissReason::Evicted);
            self.counters.evictions.bump();
            for (drive, records) in self.removal_of(*slot) {
                removals.entry(drive).or_default().extend(records);
            }
        }
        let plan: Plan = removals.into_iter().collect();
        // Not durable on a drive that has just failed; its units are then never used again.
        self.append_removals(plan).await;
        let count = victims.len() as u64;
        for (nth, (slot, guard)) in victims.into_iter().enumerate() {
            if nth > 0 && nth.is_multiple_of(FREED_A_TURN) {
                self.local.yield_now().await;
            }
            if self.blocks.borrow().pins(slot) > 0 {
                self.counters.evictions_while_read.bump();
            }
            self.free_when_unread(slot);
            drop(guard);
        }
        count
    }

    /// The first victims that may go, unless many before them may not or the store stops.
    async fn find_victims(&self, units: u64) -> Option<Vec<(Slot, KeyGuard)>> {
        let (mut passed, mut lent) = (0, 0);
        loop {
            let (victims, skipped) = self.pick_victims(units, passed, &mut lent);
            passed += skipped;
            if !victims.is_empty() {
                return Some(victims);
            }
            // Those that are lent stay for long, and there may be many: they are no reason to give up.
            if skipped < SKIPS_A_TURN || passed - lent >= SKIPS {
                return None;
            }
            // Nothing is taken: others may do as they like. Should the order change meanwhile, some
            // are looked at twice, or not until the next time.
            self.local.yield_now().await;
            if self.draining.get() {
                return None;
            }
        }
    }

    /// Locks victims, and says how many it skipped, the `passed` coldest aside, which it does not
    /// look at again.
    fn pick_victims(
        &self,
        units: u64,
        passed: usize,
        lent: &mut usize,
    ) -> (Vec<(Slot, KeyGuard)>, usize) {
        let mut victims = Vec::new();
        let mut taken = 0;
        let mut skipped = 0;
        let mut to_pass = passed;
        let least = self.evict_blocks.get().min(BATCH as u64) as usize;
        let blocks = self.blocks.borrow();
        self.policy.borrow_mut().victims(self.second(), &mut |slot| {
            if to_pass > 0 {
                to_pass -= 1;
                return true;
            }
            let key = blocks.get(slot).hash();
            // A block that is being read may leave the index: its units wait for the reader. Not so one
            // that is lent: nobody knows for how long, and nothing would be gained.
            let is_lent = blocks.is_lent(slot);
            *lent += usize::from(is_lent);
            let stays = is_lent || self.held(slot);
            let guard = if stays { None } else { self.locks.try_lock(key) };
            match guard {
                Some(guard) => {
                    taken += blocks.units(slot);
                    victims.push((slot, guard));
                }
                None => skipped += 1,
            }
            let enough = taken >= units && victims.len() >= least;
            !enough && victims.len() < BATCH && skipped < SKIPS_A_TURN
        });
        (victims, skipped)
    }
}
