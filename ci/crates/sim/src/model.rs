//! What the server may answer: the promise, as a state machine over keys.
//!
//! The model never asks the server; it is told what clients begin and what they are answered, in the
//! order in which that happens, and says at once when an answer is impossible.
//!
//! # Which bytes
//!
//! Every value offered has a *version* of its own, from which its bytes are derived, and every block
//! stored has a *generation*. The model ties the two together the first time it learns of both, and a
//! version tied to one generation can never show up under another (that would be a put applied twice).
//!
//! # Which of them
//!
//! Generations of a key only grow, so the past is one number, the *floor*: generations below it are
//! known to be gone. Whatever was acknowledged, seen, or seen to be missing before a request began
//! raises the floor for it; an answer from below the floor is a stale or resurrected block.
//!
//! # Present, absent, unsure
//!
//! At each moment a key is certainly present, certainly absent, or the model is not sure, because
//! something is under way or its outcome is unknown. An answer is checked against what was certain when
//! its request began, unless something happened in between that could have changed it: then `vanish`
//! (something that may remove) or `appear` (something that may store) has moved on.
//!
//! A request whose answer never came stays *open*: it may still take effect, until the server stops.
//!
//! # After a crash
//!
//! A kill settles what is open and nothing else. Where the server flushes before it answers, a power cut
//! is no more than a kill. Where it does not, a power cut makes every key unsure and its floor zero:
//! values may be forgotten and older ones may be back, but bytes and versions are still held against what
//! was ever offered; only what was flushed must be there, and a put that asked for that was when it was
//! answered. Faults take certainty from the keys they touched and from no others.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use memkv_sim::CrashKind;
use memkv_wire::{CrcList, MissReason};

/// Number of a key, over all tenants.
pub type KeyId = u32;
/// Number of a value, over all keys.
pub type Version = u32;

/// An answer that no correct server gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// Which part of the promise.
    pub what: What,
    /// The key.
    pub key: KeyId,
    /// The numbers behind it.
    pub detail: String,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "key {}: {:?}: {}", self.key, self.what, self.detail)
    }
}

/// The parts of the promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum What {
    /// A block is missing without a cause.
    Missing,
    /// A block that was certainly gone is back.
    Resurrected,
    /// An older block than one already acknowledged.
    Stale,
    /// Bytes of something else, or of nothing.
    WrongBytes,
    /// Bytes whose CRC is wrong, and no fault touched them.
    BadCrc,
    /// A value that was refused, or never offered under this key.
    NeverStored,
    /// One put under two generations, or one generation for two puts.
    AppliedTwice,
    /// A put or delete was done although its condition did not hold.
    Condition,
    /// A block was served after its time to live.
    Expired,
    /// An error that nothing explains.
    Unexplained,
}

/// What is certain of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// Nothing is stored, nothing is on its way.
    Absent,
    /// A block is stored, and nothing is on its way that could remove it.
    Present,
    /// Either.
    Unsure,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// On its way, or of unknown outcome: may be stored.
    Open,
    /// Acknowledged at some time.
    Stored,
    /// Refused: not stored, now or later.
    Refused,
}

#[derive(Clone, Debug)]
struct Value {
    key: KeyId,
    length: u64,
    crcs: CrcList,
    fate: Fate,
    generations: Vec<u64>,
    /// It was sent again after a crash had wiped out the server's memory of requests.
    again: bool,
    /// In which life of the server it was sent last.
    life: u32,
    /// A fault touched its bytes.
    harmed: bool,
    /// Disks with bytes of it, one bit each.
    disks: u32,
    /// Unix seconds before which it cannot expire, and after which it must have; 0 for never.
    expires: (u64, u64),
}

#[derive(Clone, Debug)]
struct Key {
    presence: Presence,
    /// The newest generation known to have been stored, and its version if that is known.
    newest: u64,
    newest_version: Option<Version>,
    floor: u64,
    /// The part of the floor that a kill does not lower: what was seen to be missing without an
    /// acknowledgement may be back, for its removal may not have been written yet.
    kept: u64,
    /// The part of it that was acknowledged: what was only seen may be lost with its drive before what
    /// it replaced is removed.
    acked: u64,
    open_puts: u32,
    open_deletes: u32,
    vanish: u32,
    appear: u32,
    /// A fault touched a journal frame that names it: certain only until the next start.
    journal_harm: bool,
    /// It was put with a time to live: never certainly present.
    mortal: bool,
    /// The power was cut, or a removal may have been lost, since its bytes were last seen: an index entry
    /// proves nothing about them.
    unproven: bool,
    /// It was deleted at some time, answered or not.
    deleted: bool,
    /// No eviction of this generation before this moment (nanoseconds).
    lease: (u64, u64),
    /// Releases on their way, and when the last one ended (nanoseconds).
    releases: u32,
    release_ended: u64,
    versions: Vec<Version>,
    /// The tick of the last change: a flush that began later makes it survive a power cut.
    changed: u64,
    /// It was seen to be gone, and what removed it may not be written yet: a kill may bring it back.
    fleeting: bool,
    /// The change that survives a power cut because the put that made it asked for that.
    durable: u64,
}

impl Key {
    fn new() -> Key {
        Key {
            presence: Presence::Absent,
            newest: 0,
            newest_version: None,
            floor: 0,
            kept: 0,
            acked: 0,
            open_puts: 0,
            open_deletes: 0,
            vanish: 0,
            appear: 0,
            journal_harm: false,
            mortal: false,
            unproven: false,
            deleted: false,
            lease: (0, 0),
            releases: 0,
            release_ended: 0,
            versions: Vec::new(),
            changed: 0,
            fleeting: false,
            durable: 0,
        }
    }

    fn doubt(&mut self) {
        self.presence = Presence::Unsure;
        self.vanish += 1;
        self.appear += 1;
    }

    fn forget(&mut self) {
        self.doubt();
        (self.newest, self.newest_version) = (0, None);
        (self.floor, self.kept, self.acked) = (0, 0, 0);
        self.lease = (0, 0);
    }

    /// What was seen and never acknowledged may not have lasted.
    fn give_back(&mut self) {
        self.doubt();
        (self.newest, self.newest_version) = (0, None);
        (self.floor, self.kept) = (self.acked, self.acked);
    }
}

/// What was certain of a key when a request began.
#[derive(Clone, Copy, Debug)]
pub struct Sight {
    /// The key.
    pub key: KeyId,
    presence: Presence,
    floor: u64,
    newest: u64,
    open_puts: u32,
    vanish: u32,
    appear: u32,
    /// Bumps of `vanish` and `appear` by the request itself.
    own: (u32, u32),
    unix: u64,
    life: u32,
}

/// When something happens.
#[derive(Clone, Copy, Debug, Default)]
pub struct Now {
    /// Nanoseconds of the simulation.
    pub nanos: u64,
    /// Seconds of the wall clock.
    pub unix: u64,
}

/// What a put demands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Only if the key is absent.
    Absent,
    /// In any case.
    Replace,
    /// Only over this generation.
    Generation(u64),
}

/// A put under way.
#[derive(Clone, Copy, Debug)]
pub struct Put {
    /// What was certain when it began.
    pub sight: Sight,
    /// Its value.
    pub version: Version,
    mode: Mode,
    attempts: u32,
}

impl Put {
    /// Whether it was sent more than once.
    pub fn was_repeated(&self) -> bool {
        self.attempts > 1
    }
}

/// A delete under way.
#[derive(Clone, Copy, Debug)]
pub struct Delete {
    /// What was certain when it began.
    pub sight: Sight,
    /// Only this generation; 0 for any.
    pub generation: u64,
    attempts: u32,
    again: bool,
}

/// The model of one server.
pub struct Model {
    keys: Vec<Key>,
    values: Vec<Value>,
    /// Which version a generation is, since the last power cut.
    by_generation: HashMap<u64, Version>,
    /// Misses of present keys may be evictions.
    pub evicting: bool,
    /// The server flushes before it answers: a power cut takes no more than a kill.
    pub flushing: bool,
    /// How many misses were taken for evictions.
    pub evicted: u64,
    /// Disks that have failed since the last start, one bit each.
    failed: u32,
    /// The power was cut at some time: blocks may be found corrupt.
    power_cut: bool,
    /// The server is starting: harm to a journal strikes at once.
    starting: bool,
    life: u32,
    /// Counts what the model is told; shared with the oracle, which dates flushes by it.
    tick: Arc<AtomicU64>,
    /// Puts whose answer was lost in a crash and that were found stored afterwards.
    pub found_after_crash: u64,
    /// Keys that had to survive a power cut, because everything of them was flushed before.
    pub held_through_cuts: u64,
    /// Keys certainly present at a power cut of a server that flushes before it answers.
    pub held_under_power: u64,
    /// Of the keys held through power cuts, those that one put asked to be.
    pub durable_held: u64,
}

fn broken<T>(what: What, key: KeyId, detail: impl Into<String>) -> Result<T, Broken> {
    Err(Broken { what, key, detail: detail.into() })
}

impl Model {
    /// `keys` absent keys.
    pub fn new(keys: u32, evicting: bool) -> Model {
        Model {
            keys: (0..keys).map(|_| Key::new()).collect(),
            values: Vec::new(),
            by_generation: HashMap::new(),
            evicting,
            flushing: false,
            evicted: 0,
            failed: 0,
            power_cut: false,
            starting: true,
            life: 0,
            tick: Arc::default(),
            found_after_crash: 0,
            held_through_cuts: 0,
            held_under_power: 0,
            durable_held: 0,
        }
    }

    /// The count of what the model was told, for the oracle.
    pub fn tick(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.tick)
    }

    /// Something of the key has changed.
    fn touch(&mut self, key: KeyId) {
        let tick = self.tick.fetch_add(1, Ordering::Relaxed) + 1;
        self.keys[key as usize].changed = tick;
    }

    /// How many keys there are.
    pub fn keys(&self) -> u32 {
        self.keys.len() as u32
    }

    /// What is certain of a key now.
    pub fn presence(&self, key: KeyId) -> Presence {
        self.keys[key as usize].presence
    }

    /// The newest generation known of a key; 0 for none.
    pub fn newest(&self, key: KeyId) -> u64 {
        self.keys[key as usize].newest
    }

    /// Whether a put or delete of the key is under way or of unknown outcome.
    pub fn is_contended(&self, key: KeyId) -> (bool, bool) {
        let key = &self.keys[key as usize];
        (key.open_puts > 0, key.open_deletes > 0)
    }

    /// A value's length.
    pub fn length(&self, version: Version) -> u64 {
        self.values[version as usize].length
    }

    /// A request that only reads begins.
    pub fn look(&self, key: KeyId, now: Now) -> Sight {
        let state = &self.keys[key as usize];
        Sight {
            key,
            presence: state.presence,
            floor: state.floor,
            newest: state.newest,
            open_puts: state.open_puts,
            vanish: state.vanish,
            appear: state.appear,
            own: (0, 0),
            unix: now.unix,
            life: self.life,
        }
    }

    /// A new value of a key, not sent yet.
    pub fn offer(&mut self, key: KeyId, length: u64) -> Version {
        self.values.push(Value {
            key,
            length,
            crcs: CrcList::EMPTY,
            fate: Fate::Refused,
            generations: Vec::new(),
            again: false,
            life: self.life,
            harmed: false,
            disks: 0,
            expires: (0, 0),
        });
        let version = (self.values.len() - 1) as Version;
        self.keys[key as usize].versions.push(version);
        version
    }

    /// The CRCs of a value, one per extent, once its bytes were made.
    pub fn set_crcs(&mut self, version: Version, crcs: CrcList) {
        self.values[version as usize].crcs = crcs;
    }

    /// The CRCs of a value.
    pub fn crcs(&self, version: Version) -> CrcList {
        self.values[version as usize].crcs
    }

    /// Whether it is certain which version a generation is.
    pub fn knows(&self, generation: u64) -> bool {
        self.by_generation.contains_key(&generation)
    }

    /// The versions that the bytes of this generation may be, the likeliest first.
    pub fn candidates(&self, key: KeyId, generation: u64) -> impl Iterator<Item = Version> + '_ {
        let known = self.by_generation.get(&generation).copied();
        let all = self.keys[key as usize].versions.iter().rev().copied();
        let all = all.filter(move |version| Some(*version) != known);
        known
            .into_iter()
            .filter(move |&version| self.values[version as usize].key == key)
            .chain(all)
    }

    /// A put is sent for the first time.
    pub fn put_begins(&mut self, version: Version, mode: Mode, ttl: u32, now: Now) -> Put {
        let life = self.life;
        let value = &mut self.values[version as usize];
        (value.fate, value.life) = (Fate::Open, life);
        let key = value.key;
        if ttl > 0 {
            value.expires = (now.unix + u64::from(ttl), u64::MAX);
            let state = &mut self.keys[key as usize];
            state.mortal = true;
            state.vanish += 1;
            if state.presence == Presence::Present {
                state.presence = Presence::Unsure;
            }
        }
        let mut sight = self.look(key, now);
        sight.own = (0, 1);
        self.open_put(key);
        Put { sight, version, mode, attempts: 1 }
    }

    fn open_put(&mut self, key: KeyId) {
        self.touch(key);
        let state = &mut self.keys[key as usize];
        state.open_puts += 1;
        state.appear += 1;
        if state.presence == Presence::Absent {
            state.presence = Presence::Unsure;
        }
    }

    /// A put is sent again under the same request id. After a crash that is a new beginning.
    pub fn put_again(&mut self, put: &mut Put) {
        put.attempts += 1;
        if put.sight.life != self.life {
            let unix = put.sight.unix;
            put.sight = self.look(put.sight.key, Now { nanos: 0, unix });
            put.sight.own = (0, 1);
            let value = &mut self.values[put.version as usize];
            (value.again, value.life) = (true, self.life);
            self.open_put(put.sight.key);
        }
    }

    /// A put was stored under `generation`.
    pub fn put_stored(&mut self, put: &Put, generation: u64, now: Now) -> Result<(), Broken> {
        let key = put.sight.key;
        self.close_put(put);
        let value = &mut self.values[put.version as usize];
        value.fate = Fate::Stored;
        if value.expires.0 > 0 {
            let ttl = value.expires.0 - put.sight.unix.min(value.expires.0);
            value.expires.1 = now.unix + ttl;
        }
        if generation <= put.sight.newest {
            let detail = format!(
                "version {} was stored as generation {generation}, but {} was known before it",
                put.version, put.sight.newest
            );
            return broken(What::Stale, key, detail);
        }
        match put.mode {
            Mode::Absent
                if self.still_present(&put.sight)
                    && !self.excuse_harm(&put.sight, MissReason::Corrupt) =>
            {
                self.excuse_eviction(&put.sight, MissReason::Never, now, "stored as absent")?;
            }
            Mode::Generation(want) if want < put.sight.floor => {
                let detail =
                    format!("stored over generation {want}, gone below {}", put.sight.floor);
                return broken(What::Condition, key, detail);
            }
            _ => {}
        }
        self.bind(key, put.version, generation)?;
        self.seen(key, put.version, generation, put.sight.vanish, true);
        let state = &mut self.keys[key as usize];
        state.acked = state.acked.max(generation);
        Ok(())
    }

    /// A put was refused because a block is there: an observation of that block.
    pub fn put_present(
        &mut self,
        put: &Put,
        generation: u64,
        length: u64,
        crcs: &[u32],
    ) -> Result<(), Broken> {
        self.refused(put);
        let mut sight = put.sight;
        if put.attempts > 1 {
            // The block may be the one that an earlier attempt has stored.
            sight.presence = Presence::Unsure;
        }
        self.saw_block(&sight, generation, length, crcs)
    }

    /// A conditional put was refused because the key does not hold that generation.
    pub fn put_mismatch(&mut self, put: &Put) -> Result<(), Broken> {
        self.refused(put);
        let state = &self.keys[put.sight.key as usize];
        let held = self.still_present(&put.sight)
            && state.appear == put.sight.appear + put.sight.own.1
            && put.mode == Mode::Generation(state.newest)
            // Guessed before it was given out, it may have come only after it was denied.
            && put.sight.newest == state.newest
            && put.attempts == 1
            && !self.evicting;
        // A checkpoint may have dropped it because it could not read its record.
        if held && !state.journal_harm {
            let detail = format!("generation {} is there, and was denied", state.newest);
            return broken(What::Condition, put.sight.key, detail);
        }
        Ok(())
    }

    /// A put was refused: it will never be stored. If it was sent more than once, only the last
    /// attempt was refused, and it stays open: an earlier one may still be on its way.
    pub fn put_refused(&mut self, put: &Put) {
        self.refused(put);
    }

    fn refused(&mut self, put: &Put) {
        if put.attempts > 1 {
            return;
        }
        self.close_put(put);
        let value = &mut self.values[put.version as usize];
        assert!(value.generations.is_empty() || value.again, "a refused put was never seen");
        value.fate = Fate::Refused;
    }

    fn close_put(&mut self, put: &Put) {
        if put.sight.life == self.life {
            self.keys[put.sight.key as usize].open_puts -= 1;
        }
    }

    /// A block was seen with its bytes, which the caller found to be those of `version`; `whole` when
    /// none was left out.
    pub fn saw_value(
        &mut self,
        sight: &Sight,
        generation: u64,
        version: Version,
        length: u64,
        whole: bool,
    ) -> Result<(), Broken> {
        let key = sight.key;
        let Some(value) = self.values.get(version as usize).filter(|value| value.key == key) else {
            return broken(What::WrongBytes, key, format!("bytes of version {version}"));
        };
        if value.length != length {
            let detail = format!("version {version} has {} bytes, got {length}", value.length);
            return broken(What::WrongBytes, key, detail);
        }
        if value.fate == Fate::Refused {
            return broken(What::NeverStored, key, format!("version {version} was refused"));
        }
        // A second of grace: the server rounds to seconds, and so does the clock.
        if value.expires.1 < u64::MAX && value.expires.1 > 0 && sight.unix > value.expires.1 + 1 {
            let detail =
                format!("version {version} at {}, expired {:?}", sight.unix, value.expires);
            return broken(What::Expired, key, detail);
        }
        self.check_generation(sight, generation)?;
        self.bind(key, version, generation)?;
        self.seen(key, version, generation, sight.vanish + sight.own.0, whole);
        Ok(())
    }

    /// A block was seen without its bytes: its generation, length and CRCs.
    pub fn saw_block(
        &mut self,
        sight: &Sight,
        generation: u64,
        length: u64,
        crcs: &[u32],
    ) -> Result<(), Broken> {
        let key = sight.key;
        self.check_generation(sight, generation)?;
        let known = self.by_generation.get(&generation).copied();
        let fits = |version: Version| {
            let value = &self.values[version as usize];
            value.length == length
                && value.fate != Fate::Refused
                && (crcs.is_empty() || value.crcs.as_slice() == crcs)
        };
        let found = match known {
            Some(version) => Some(version)
                .filter(|&version| self.values[version as usize].key == key && fits(version)),
            None => self.keys[key as usize].versions.iter().rev().copied().find(|&v| fits(v)),
        };
        let Some(version) = found else {
            let detail = format!(
                "generation {generation} of {length} bytes is no value of the key ({known:?})"
            );
            return broken(What::NeverStored, key, detail);
        };
        if known.is_some() || !crcs.is_empty() {
            self.bind(key, version, generation)?;
        }
        self.seen(key, version, generation, sight.vanish + sight.own.0, false);
        Ok(())
    }

    /// A key was seen to hold something, and no more than that.
    pub fn saw_something(&mut self, sight: &Sight) -> Result<(), Broken> {
        self.check_not_absent(sight, 0)
    }

    fn check_generation(&self, sight: &Sight, generation: u64) -> Result<(), Broken> {
        if generation < sight.floor {
            let detail = format!("generation {generation} is gone below {}", sight.floor);
            return broken(What::Stale, sight.key, detail);
        }
        self.check_not_absent(sight, generation)
    }

    fn check_not_absent(&self, sight: &Sight, generation: u64) -> Result<(), Broken> {
        let state = &self.keys[sight.key as usize];
        if sight.presence == Presence::Absent && state.appear == sight.appear + sight.own.1 {
            let detail = format!("generation {generation}, and nothing was put since it was gone");
            return broken(What::Resurrected, sight.key, detail);
        }
        Ok(())
    }

    /// At some moment since the request began, at which `vanish` was what is given, this was there.
    /// `proof`: all of its bytes were.
    fn seen(&mut self, key: KeyId, version: Version, generation: u64, vanish: u32, proof: bool) {
        if generation < self.keys[key as usize].floor {
            // Right when the request began, and gone by now.
            return;
        }
        if generation > self.keys[key as usize].newest {
            self.touch(key);
        }
        let pending_harm = self.harm_pending(key);
        let value = &self.values[version as usize];
        let state = &mut self.keys[key as usize];
        state.unproven &= !proof;
        let lasting = !value.harmed
            && !pending_harm
            && !state.mortal
            && !state.unproven
            && value.disks & self.failed == 0
            // One that is on its way may replace it and be lost with the disk at once.
            && (self.failed == 0 || state.open_puts == 0);
        state.floor = state.floor.max(generation);
        state.kept = state.kept.max(generation);
        if generation >= state.newest {
            (state.newest, state.newest_version) = (generation, Some(version));
        }
        if !lasting {
            state.presence = Presence::Unsure;
        } else if state.open_deletes == 0 && state.vanish == vanish {
            state.presence = Presence::Present;
        } else if state.presence == Presence::Absent {
            state.presence = Presence::Unsure;
        }
    }

    /// A value that a fault has touched is on its way: it may replace what is there, and be lost.
    fn harm_pending(&self, key: KeyId) -> bool {
        let state = &self.keys[key as usize];
        let pending =
            |value: &Value| value.harmed && value.fate == Fate::Open && value.life == self.life;
        state.open_puts > 0
            && state.versions.iter().any(|&version| pending(&self.values[version as usize]))
    }

    fn bind(&mut self, key: KeyId, version: Version, generation: u64) -> Result<(), Broken> {
        let value = &mut self.values[version as usize];
        if !value.generations.contains(&generation) {
            if !value.generations.is_empty() && !value.again {
                let detail = format!(
                    "version {version} is generation {:?} and now {generation}",
                    value.generations
                );
                return broken(What::AppliedTwice, key, detail);
            }
            if value.generations.is_empty() && value.fate == Fate::Open && value.life != self.life {
                self.found_after_crash += 1;
            }
            value.generations.push(generation);
        }
        match self.by_generation.insert(generation, version) {
            Some(other) if other != version => {
                let detail = format!("generation {generation} is version {other} and {version}");
                broken(What::AppliedTwice, key, detail)
            }
            _ => Ok(()),
        }
    }
}

#[path = "model_deletes.rs"]
mod deletes;
#[path = "model_faults.rs"]
mod faults;
#[path = "model_misses.rs"]
mod misses;

#[cfg(test)]
#[path = "model_tests.rs"]
mod tests;
