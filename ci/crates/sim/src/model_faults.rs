//! What crashes and faults take from the model's certainty.

use super::*;

impl Model {
    /// The server's machine stopped. What is open is settled one way or the other. What was known up
    /// to the tick `safe` was flushed: not even a power cut may take it.
    pub fn crashed(&mut self, kind: CrashKind, safe: u64) {
        self.life += 1;
        self.starting = true;
        let tick = self.tick.fetch_add(1, Ordering::Relaxed) + 1;
        let failed = std::mem::take(&mut self.failed);
        if kind == CrashKind::PowerCut && self.flushing {
            let present = self.keys.iter().filter(|key| key.presence == Presence::Present);
            self.held_under_power += present.count() as u64;
        }
        let kind = if self.flushing { CrashKind::Kill } else { kind };
        if kind == CrashKind::PowerCut {
            self.by_generation.clear();
            self.power_cut = true;
        }
        for index in 0..self.keys.len() {
            let on_failed = failed != 0
                && self.keys[index]
                    .versions
                    .iter()
                    .any(|&version| self.values[version as usize].disks & failed != 0);
            let key = &mut self.keys[index];
            let open = key.open_deletes + key.open_puts > 0;
            // What was evicted without anybody seeing it may be back as an entry without its bytes.
            let evicted = self.evicting && key.changed > 0;
            let durable = key.durable > 0 && key.durable == key.changed;
            let flushed = key.changed <= safe;
            let safe = (flushed || durable) && !open && !key.mortal && !evicted;
            if kind == CrashKind::PowerCut && safe && key.changed > 0 {
                self.held_through_cuts += 1;
                self.durable_held += u64::from(!flushed);
            }
            if (kind == CrashKind::PowerCut && !safe) || key.journal_harm {
                key.forget();
                // Where a removal was lost, its units may have been used again: an entry that is back
                // proves nothing about the bytes.
                key.unproven |= kind == CrashKind::PowerCut || key.journal_harm;
                key.changed = tick;
            } else if on_failed && key.open_puts > 0 {
                // A value that was seen, but not acknowledged, may be lost with its drive before what
                // it replaced was removed from another.
                key.give_back();
                key.changed = tick;
            } else if on_failed && key.presence == Presence::Present {
                // Lost with its drive, or not. What it replaced stays gone either way: the drive was out
                // before anything was acknowledged that it has missed.
                key.doubt();
                key.changed = tick;
            } else if key.open_deletes > 0 || key.open_puts > 0 {
                let presence = key.presence;
                key.changed = tick;
                key.doubt();
                if key.open_deletes == 0 && presence == Presence::Present {
                    key.presence = Presence::Present;
                }
            }
            // Seen to be gone is not gone for good.
            let back = key.presence == Presence::Absent && std::mem::take(&mut key.fleeting);
            if key.floor > key.kept || back {
                key.floor = key.floor.min(key.kept);
                key.doubt();
            }
            (key.open_puts, key.open_deletes, key.lease) = (0, 0, (0, 0));
        }
    }

    /// A put was answered that asked to survive a power cut: so does what it stored or found, if that is
    /// what the key holds now, and nothing is on its way.
    pub fn survives_power(&mut self, key: KeyId, generation: u64) {
        let state = &mut self.keys[key as usize];
        let open = state.open_puts + state.open_deletes > 0;
        let there = state.presence == Presence::Present && state.newest == generation;
        if there && !open && state.floor <= generation && state.changed < u64::MAX {
            state.durable = state.changed;
        }
    }

    /// The server has started; `went_back`: from drives that had been lost before, because all others are
    /// gone. Then anything may be back that ever was.
    pub fn started(&mut self, went_back: bool) {
        self.starting = false;
        if went_back {
            // What was begun since the crash began before that was known: it is sent anew.
            self.life += 1;
            for key in &mut self.keys {
                key.forget();
                (key.open_puts, key.open_deletes) = (0, 0);
                key.unproven |= self.power_cut;
            }
            for value in &mut self.values {
                // Also what an attempt left there that was repeated elsewhere.
                value.again = true;
                // And what was refused when its drive failed in the commit: its record may lie there.
                if value.fate == Fate::Refused && value.disks != 0 {
                    value.fate = Fate::Open;
                }
            }
            self.by_generation.clear();
        }
    }

    /// The server was stopped in peace: as a kill, with nothing open.
    pub fn stopped(&mut self) {
        self.crashed(CrashKind::Kill, 0);
    }

    /// A fault touched what a whole disk hangs on: its keys are certain only until the next start.
    pub fn anchor_harmed(&mut self, disk: u32) {
        for key in 0..self.keys() {
            let mut versions = self.keys[key as usize].versions.iter();
            if versions.any(|&version| self.values[version as usize].disks & 1 << disk != 0) {
                self.journal_harmed(key);
            }
        }
    }

    /// Bytes of a version lie on a disk.
    pub fn lies_on(&mut self, version: Version, disk: u32) {
        let Some(value) = self.values.get_mut(version as usize) else { return };
        value.disks |= 1 << disk;
        if self.failed & 1 << disk != 0 {
            let key = &mut self.keys[value.key as usize];
            key.vanish += 1;
            if key.presence == Presence::Present {
                key.presence = Presence::Unsure;
            }
        }
    }

    /// A fault touched stored bytes of a version.
    pub fn value_harmed(&mut self, version: Version) {
        let Some(value) = self.values.get_mut(version as usize) else { return };
        value.harmed = true;
        let key = &mut self.keys[value.key as usize];
        let superseded = !value.generations.is_empty()
            && value.generations.iter().all(|&generation| generation < key.newest);
        if !superseded {
            key.presence = match key.presence {
                Presence::Absent => Presence::Absent,
                _ => Presence::Unsure,
            };
            key.vanish += 1;
        }
    }

    /// A fault touched a journal frame that names the key.
    pub fn journal_harmed(&mut self, key: KeyId) {
        let key = &mut self.keys[key as usize];
        key.journal_harm = true;
        if self.starting {
            key.forget();
        }
    }

    /// A fault made a disk fail commands: the server may stop using it until the next start.
    pub fn disk_failed(&mut self, disk: u32) {
        if self.failed & 1 << disk != 0 {
            return;
        }
        self.failed |= 1 << disk;
        for key in &mut self.keys {
            let on_it = key
                .versions
                .iter()
                .any(|&version| self.values[version as usize].disks & 1 << disk != 0);
            if on_it {
                key.vanish += 1;
                if key.presence == Presence::Present {
                    key.presence = Presence::Unsure;
                }
                if self.starting && key.acked < key.newest {
                    // As when the disk fails before the crash: what was seen and not acknowledged
                    // may be lost before what it replaced was removed from another disk.
                    key.give_back();
                }
            }
        }
    }

    /// Bytes arrived whose CRC is wrong: the client throws them away and reports them.
    pub fn saw_bad_crc(&self, sight: &Sight, generation: u64) -> Result<(), Broken> {
        let version = self.by_generation.get(&generation).copied();
        // A disk that fails while a reply is on its way leaves zeros where its bytes should be.
        let harmed = |version: Version| {
            let value = &self.values[version as usize];
            value.harmed || value.disks & self.failed != 0
        };
        let harmed = match version {
            Some(version) => harmed(version),
            None => self.keys[sight.key as usize].versions.iter().any(|&version| harmed(version)),
        };
        if harmed {
            return Ok(());
        }
        let detail = format!("generation {generation} (version {version:?})");
        broken(What::BadCrc, sight.key, detail)
    }
}
