//! What deletes and leases do to the model.

use super::*;

impl Model {
    /// A delete is sent for the first time.
    pub fn delete_begins(&mut self, key: KeyId, generation: u64, now: Now) -> Delete {
        let mut sight = self.look(key, now);
        sight.own = (1, 0);
        self.open_delete(key);
        Delete { sight, generation, attempts: 1, again: false }
    }

    fn open_delete(&mut self, key: KeyId) {
        self.touch(key);
        let state = &mut self.keys[key as usize];
        state.deleted = true;
        state.open_deletes += 1;
        state.vanish += 1;
        if state.presence == Presence::Present {
            state.presence = Presence::Unsure;
        }
    }

    /// A delete is sent again under the same request id.
    pub fn delete_again(&mut self, delete: &mut Delete) {
        delete.attempts += 1;
        if delete.sight.life != self.life {
            let unix = delete.sight.unix;
            delete.sight = self.look(delete.sight.key, Now { nanos: 0, unix });
            delete.sight.own = (1, 0);
            delete.again = true;
            self.open_delete(delete.sight.key);
        }
    }

    /// A delete removed `generation`.
    pub fn delete_gone(&mut self, delete: &Delete, generation: u64) -> Result<(), Broken> {
        let sight = &delete.sight;
        self.settle_delete(delete);
        if delete.generation != 0 && delete.generation != generation {
            let detail = format!("asked for {}, removed {generation}", delete.generation);
            return broken(What::Condition, sight.key, detail);
        }
        if generation < sight.floor || generation < sight.newest {
            let detail = format!(
                "removed generation {generation}; floor {}, newest {}",
                sight.floor, sight.newest
            );
            return broken(What::Stale, sight.key, detail);
        }
        let state = &mut self.keys[sight.key as usize];
        state.floor = state.floor.max(generation + 1);
        state.newest = state.newest.max(generation);
        // It happened at some moment up to now: reads that began before are no proof of presence.
        state.vanish += 1;
        self.seen_absent(sight, true);
        // Acknowledged: the removal is written, and a flush makes it last.
        self.touch(sight.key);
        self.keep(sight.key, generation + 1);
        Ok(())
    }

    /// A delete found nothing.
    pub fn delete_missing(
        &mut self,
        delete: &Delete,
        reason: MissReason,
        now: Now,
    ) -> Result<(), Broken> {
        self.close_delete(delete);
        if delete.again {
            // The first attempt may have removed it, before the crash.
            return Ok(());
        }
        self.saw_miss(&delete.sight, reason, now)?;
        // It waited for whoever was removing what was there when it began. What came and went after it
        // had looked, while others of its request were deleted, is another matter.
        let Sight { key, floor, newest, .. } = delete.sight;
        self.keep(key, floor.max(newest + 1));
        Ok(())
    }

    fn keep(&mut self, key: KeyId, floor: u64) {
        let state = &mut self.keys[key as usize];
        state.fleeting = false;
        state.kept = state.kept.max(floor);
        state.acked = state.acked.max(floor);
    }

    /// A delete of one generation found another.
    pub fn delete_other(&mut self, delete: &Delete, generation: u64) -> Result<(), Broken> {
        self.close_delete(delete);
        if generation == delete.generation || generation < delete.sight.floor {
            let detail = format!(
                "asked for {}, found {generation}, floor {}",
                delete.generation, delete.sight.floor
            );
            return broken(What::Condition, delete.sight.key, detail);
        }
        Ok(())
    }

    /// A delete was refused; see [`Model::put_refused`].
    pub fn delete_refused(&mut self, delete: &Delete) {
        self.close_delete(delete);
    }

    fn close_delete(&mut self, delete: &Delete) {
        if delete.attempts == 1 {
            self.settle_delete(delete);
        }
    }

    fn settle_delete(&mut self, delete: &Delete) {
        if delete.sight.life == self.life {
            self.keys[delete.sight.key as usize].open_deletes -= 1;
        }
    }

    /// A lease of a generation was granted that was asked for at `since`, until `until` nanoseconds.
    pub fn leased(&mut self, key: KeyId, generation: u64, since: u64, until: u64) {
        let state = &mut self.keys[key as usize];
        // A release that was on its way at the same time may have come after it, in whatever order both
        // are answered.
        if state.releases == 0 && state.release_ended < since {
            state.lease = (generation, until);
        }
    }

    /// A release is sent: the lease may end from now on.
    pub fn release_begins(&mut self, key: KeyId) {
        self.released(key);
        self.keys[key as usize].releases += 1;
    }

    /// A release was answered, or its connection is gone and the lease with it.
    pub fn release_ends(&mut self, key: KeyId, nanos: u64) {
        let state = &mut self.keys[key as usize];
        state.releases -= 1;
        state.release_ended = nanos;
    }

    /// Leases of a key may have ended.
    pub fn released(&mut self, key: KeyId) {
        self.keys[key as usize].lease = (0, 0);
    }
}
