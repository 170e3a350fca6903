//! What a missing key may mean, and what it proves.

use super::*;

impl Model {
    /// A key was seen to be missing.
    pub fn saw_miss(&mut self, sight: &Sight, reason: MissReason, now: Now) -> Result<(), Broken> {
        self.check_reason(sight.key, reason, now)?;
        if self.still_present(sight) && !self.excuse_harm(sight, reason) {
            self.excuse_eviction(sight, reason, now, "a miss")?;
        }
        if reason == MissReason::DriveLost {
            return Ok(());
        }
        self.seen_absent(sight, reason != MissReason::Never);
        Ok(())
    }

    /// A reason that is given must have happened.
    fn check_reason(&self, key: KeyId, reason: MissReason, now: Now) -> Result<(), Broken> {
        let state = &self.keys[key as usize];
        let mut values = state.versions.iter().map(|&version| &self.values[version as usize]);
        let fits = match reason {
            MissReason::Never => true,
            MissReason::Evicted => self.evicting,
            MissReason::Deleted => state.deleted,
            MissReason::Expired => {
                values.any(|value| value.expires.0 > 0 && value.expires.0 <= now.unix)
            }
            MissReason::DriveLost => self.failed != 0,
            MissReason::Corrupt => {
                // Where a removal was lost, an entry may be back whose units were used again. And of
                // a disk that failed to be read its records may be lost.
                let harmed = |value: &Value| value.harmed || value.disks & self.failed != 0;
                self.power_cut || state.journal_harm || values.any(harmed)
            }
        };
        if fits { Ok(()) } else { broken(What::Unexplained, key, format!("missing: {reason:?}")) }
    }

    /// A key was seen to be missing, for a reason that was not given.
    pub fn saw_unreasoned_miss(&mut self, sight: &Sight, now: Now) -> Result<(), Broken> {
        if self.still_present(sight) && !self.excuse_harm(sight, MissReason::Corrupt) {
            self.excuse_eviction(sight, MissReason::Never, now, "a miss without a reason")?;
        }
        if self.failed == 0 {
            self.seen_absent(sight, true);
        }
        Ok(())
    }

    /// The key was present when the request began, and nothing has happened since.
    pub(super) fn still_present(&self, sight: &Sight) -> bool {
        sight.presence == Presence::Present
            && self.keys[sight.key as usize].vanish == sight.vanish + sight.own.0
    }

    /// A checkpoint drops a block whose record it cannot read, and says so. And whoever asked while a block
    /// was there may be told that it is corrupt, where a fault has touched it since, even if another has
    /// replaced it by then: that one is not lost.
    pub(super) fn excuse_harm(&mut self, sight: &Sight, reason: MissReason) -> bool {
        if reason != MissReason::Corrupt {
            return false;
        }
        let seen = self.by_generation.get(&sight.newest);
        let replaced = self.keys[sight.key as usize].newest > sight.newest;
        if replaced && seen.is_some_and(|&version| self.values[version as usize].harmed) {
            return true;
        }
        let state = &mut self.keys[sight.key as usize];
        // Others that began before see the same.
        state.vanish += u32::from(state.journal_harm);
        state.journal_harm
    }

    pub(super) fn excuse_eviction(
        &mut self,
        sight: &Sight,
        reason: MissReason,
        now: Now,
        how: &str,
    ) -> Result<(), Broken> {
        let state = &self.keys[sight.key as usize];
        // A lease holds one generation: a put under way may have replaced it by one without.
        let leased = state.lease.0 == sight.newest
            && now.nanos < state.lease.1
            && sight.open_puts == 0
            && state.appear == sight.appear + sight.own.1;
        // A power cut may bring back the entry of an evicted block whose units were used again.
        let fits = matches!(reason, MissReason::Evicted | MissReason::Never)
            || (reason == MissReason::Corrupt && self.power_cut);
        if self.evicting && !leased && fits {
            // While a put is under way the same eviction may be seen again once that is answered: it may
            // have stored just the block that was evicted.
            let quiet = sight.open_puts == 0 && state.appear == sight.appear + sight.own.1;
            // Where a disk has failed, a miss without a reason leaves it open whether the key is still there,
            // and the same eviction may be seen again.
            let open = reason == MissReason::Never && self.failed != 0;
            self.evicted += u64::from(quiet && !open);
            // Others that began before see the same eviction, not one more.
            self.keys[sight.key as usize].vanish += 1;
            return Ok(());
        }
        let detail = format!(
            "{how} ({reason:?}); generation {} (version {:?}) was there, leased: {leased}",
            sight.newest, state.newest_version
        );
        broken(What::Missing, sight.key, detail)
    }

    /// At some moment since the request began there was nothing; `fleeting` when something was there
    /// in this life, and what removed it may not be written yet.
    pub(super) fn seen_absent(&mut self, sight: &Sight, fleeting: bool) {
        let life = self.life;
        let state = &mut self.keys[sight.key as usize];
        if sight.life != life {
            return;
        }
        state.floor = state.floor.max(sight.newest + 1);
        if state.presence != Presence::Absent {
            // What removed it may not be written yet, least of all an eviction.
            state.changed = u64::MAX;
            state.fleeting = fleeting;
        }
        if state.newest <= sight.newest || state.presence != Presence::Present {
            let quiet = sight.open_puts + state.open_puts == 0
                && state.appear == sight.appear + sight.own.1;
            state.presence = if quiet { Presence::Absent } else { Presence::Unsure };
        }
    }
}
