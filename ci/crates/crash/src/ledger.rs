//! What the server owes: a file of everything that was asked of it and everything it answered.
//!
//! The loading process appends a line before it sends a request and another when the answer is
//! there. It is not the process that is killed, so what it wrote stays written. Per key the lines
//! add up to the set of contents that the server may truthfully show:
//!
//! ```text
//! put 7 3 replace     {old}        → {old, 3}      sent, the outcome is unknown until a line says
//! stored 7 3          {old, 3}     → {3}           acknowledged: it must be there from now on
//! kept 7              {old, 3}     → {old}         a block was there and was left
//! refused 7           {old, 3}     → {old}         nothing was done
//! conflict 7          {old, 3}     → {old}         a block of another length was there
//! delete 7            {old}        → {old, none}
//! deleted 7 yes       {old, none}  → {none}        acknowledged; whether there was a block
//! found 7 3           {old, 3}     → {3}           a reader saw this, so it stays
//! lost 7              {old, 3}     → {none}        a reader was told that a fault took it
//! ```
//!
//! Whatever contradicts the set is a [`Violation`]. One key has one request in flight at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use memkv_workload::store::Present;
use thiserror::Error;

/// The number of a key of the load.
pub type Key = u32;

/// What a key holds: the version that was put, or nothing.
pub type Content = Option<u32>;

/// One line of the ledger.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// A put is about to be sent.
    Put(Key, u32, Present),
    /// It was acknowledged as stored.
    Stored(Key, u32),
    /// It was acknowledged as present already.
    Kept(Key),
    /// It was refused.
    Refused(Key),
    /// It was refused because a block of another length is there.
    Conflict(Key),
    /// A delete is about to be sent.
    Delete(Key),
    /// It was acknowledged; whether there was a block.
    Deleted(Key, bool),
    /// A reader saw this.
    Found(Key, Content),
    /// A reader was told that its drive is lost or its bytes are damaged, where a fault was made.
    Lost(Key),
}

/// An answer of the server that cannot be true.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Error)]
pub enum Violation {
    /// A block that must be there is not.
    #[error("key {0}: the block that was acknowledged is missing")]
    Missing(Key),
    /// A block is there that was deleted and stayed so.
    #[error("key {0}: a block is back that was deleted")]
    Back(Key),
    /// An old content is there in place of an acknowledged one.
    #[error("key {0}: version {1} is there, which was replaced or never acknowledged over")]
    Reverted(Key, u32),
    /// Bytes that nobody ever put there.
    #[error("key {0}: {1} bytes are there that were never put under it")]
    WrongBytes(Key, u64),
}

impl Violation {
    /// Whether it is about a delete rather than about a put.
    #[must_use]
    pub fn is_of_delete(self) -> bool {
        matches!(self, Violation::Back(_))
    }
}

/// Why the ledger cannot be used.
#[derive(Debug, Error)]
pub enum LedgerError {
    /// The file cannot be opened, read or appended to.
    #[error("the ledger {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A line is not an event.
    #[error("line {line} of the ledger is no event")]
    Parse {
        /// The line, counted from 1.
        line: usize,
    },
    /// The server contradicted itself.
    #[error(transparent)]
    Violation(#[from] Violation),
}

/// What may be true of one key.
#[derive(Clone, Debug)]
struct State {
    possible: BTreeSet<Content>,
    /// What was possible before the request that is in flight.
    before: BTreeSet<Content>,
    /// The mode of the put in flight.
    present: Present,
    /// The next version that was never used.
    next: u32,
}

impl Default for State {
    fn default() -> State {
        let nothing = BTreeSet::from([None]);
        State { possible: nothing.clone(), before: nothing, present: Present::Replace, next: 0 }
    }
}

/// The ledger in memory, and the file that it is appended to.
#[derive(Debug)]
pub struct Ledger {
    path: PathBuf,
    file: File,
    keys: BTreeMap<Key, State>,
    counts: Counts,
}

/// How much is in the ledger.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Acknowledged puts.
    pub stored: u64,
    /// Acknowledged deletes.
    pub deleted: u64,
    /// Requests that were sent and never answered.
    pub unanswered: u64,
    /// Contents that readers saw.
    pub found: u64,
    /// Blocks that faults took.
    pub lost: u64,
}

impl Ledger {
    /// Opens a ledger, or begins one, and replays what is in it.
    ///
    /// # Errors
    /// When the file cannot be read, or says what cannot be.
    pub fn open(path: &Path) -> Result<Ledger, LedgerError> {
        let failed = |source| LedgerError::File { path: path.to_owned(), source };
        let mut file =
            OpenOptions::new().create(true).append(true).read(true).open(path).map_err(failed)?;
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(failed)?;
        let counts = Counts::default();
        let mut ledger = Ledger { path: path.to_owned(), file, keys: BTreeMap::new(), counts };
        for (index, line) in text.lines().enumerate() {
            let event = line.parse().map_err(|NoEvent| LedgerError::Parse { line: index + 1 })?;
            ledger.apply(event)?;
        }
        Ok(ledger)
    }

    /// Writes an event down and draws its conclusions.
    ///
    /// # Errors
    /// When it cannot be written, or contradicts what is known; it is written even then.
    pub fn note(&mut self, event: Event) -> Result<(), LedgerError> {
        let line = format!("{event}\n");
        self.file
            .write_all(line.as_bytes())
            .map_err(|source| LedgerError::File { path: self.path.clone(), source })?;
        Ok(self.apply(event)?)
    }

    fn apply(&mut self, event: Event) -> Result<(), Violation> {
        let counts = &mut self.counts;
        let state = self.keys.entry(event.key()).or_default();
        match event {
            Event::Put(_, version, present) => {
                state.send(Some(version));
                state.present = present;
                state.next = state.next.max(version + 1);
                counts.unanswered += 1;
                Ok(())
            }
            Event::Delete(_) => {
                state.send(None);
                counts.unanswered += 1;
                Ok(())
            }
            Event::Stored(key, version) => {
                counts.unanswered -= 1;
                counts.stored += 1;
                let may_be_absent = state.before.contains(&None);
                state.settle(BTreeSet::from([Some(version)]));
                // A put that leaves what is there was stored: so nothing was there.
                let lost = state.present == Present::Keep && !may_be_absent;
                if lost { Err(Violation::Missing(key)) } else { Ok(()) }
            }
            Event::Kept(key) | Event::Conflict(key) => {
                counts.unanswered -= 1;
                let there = state.before.iter().copied().filter(Option::is_some).collect();
                state.settle(there);
                if state.possible.is_empty() { Err(Violation::Back(key)) } else { Ok(()) }
            }
            Event::Refused(_) => {
                counts.unanswered -= 1;
                let before = state.before.clone();
                state.settle(before);
                Ok(())
            }
            Event::Deleted(key, there) => {
                counts.unanswered -= 1;
                counts.deleted += 1;
                let could_be = state.before.iter().any(|content| content.is_some() == there);
                state.settle(BTreeSet::from([None]));
                match (could_be, there) {
                    (true, _) => Ok(()),
                    (false, true) => Err(Violation::Back(key)),
                    (false, false) => Err(Violation::Missing(key)),
                }
            }
            Event::Found(key, content) => {
                counts.found += 1;
                let verdict = state.judge(key, content);
                state.settle(BTreeSet::from([content]));
                verdict
            }
            Event::Lost(_) => {
                counts.lost += 1;
                state.settle(BTreeSet::from([None]));
                Ok(())
            }
        }
    }

    /// The keys that anything was ever asked about.
    pub fn keys(&self) -> impl Iterator<Item = Key> {
        self.keys.keys().copied()
    }

    /// What `key` may hold.
    #[must_use]
    pub fn possible(&self, key: Key) -> BTreeSet<Content> {
        self.keys.get(&key).map_or_else(|| State::default().possible, |key| key.possible.clone())
    }

    /// The first version of `key` that was never used.
    #[must_use]
    pub fn next_version(&self, key: Key) -> u32 {
        self.keys.get(&key).map_or(0, |state| state.next)
    }

    /// How much is in it.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }
}

impl State {
    fn send(&mut self, content: Content) {
        self.before.clone_from(&self.possible);
        self.possible.insert(content);
    }

    fn settle(&mut self, possible: BTreeSet<Content>) {
        self.before.clone_from(&possible);
        self.possible = possible;
    }

    fn judge(&self, key: Key, content: Content) -> Result<(), Violation> {
        if self.possible.contains(&content) {
            return Ok(());
        }
        let deleted = self.possible.iter().all(Option::is_none);
        Err(match content {
            None => Violation::Missing(key),
            Some(_) if deleted => Violation::Back(key),
            Some(version) => Violation::Reverted(key, version),
        })
    }
}

impl Event {
    /// The key that it is about.
    #[must_use]
    pub fn key(self) -> Key {
        match self {
            Event::Put(key, ..)
            | Event::Stored(key, _)
            | Event::Kept(key)
            | Event::Refused(key)
            | Event::Conflict(key)
            | Event::Delete(key)
            | Event::Deleted(key, _)
            | Event::Found(key, _)
            | Event::Lost(key) => key,
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Event::Put(key, version, Present::Keep) => write!(f, "put {key} {version} keep"),
            Event::Put(key, version, Present::Replace) => write!(f, "put {key} {version} replace"),
            Event::Stored(key, version) => write!(f, "stored {key} {version}"),
            Event::Kept(key) => write!(f, "kept {key}"),
            Event::Refused(key) => write!(f, "refused {key}"),
            Event::Conflict(key) => write!(f, "conflict {key}"),
            Event::Delete(key) => write!(f, "delete {key}"),
            Event::Deleted(key, true) => write!(f, "deleted {key} yes"),
            Event::Deleted(key, false) => write!(f, "deleted {key} no"),
            Event::Found(key, Some(version)) => write!(f, "found {key} {version}"),
            Event::Found(key, None) => write!(f, "found {key} none"),
            Event::Lost(key) => write!(f, "lost {key}"),
        }
    }
}

/// A line that is no event.
#[derive(Debug)]
pub struct NoEvent;

impl FromStr for Event {
    type Err = NoEvent;

    fn from_str(line: &str) -> Result<Event, NoEvent> {
        let words: Vec<&str> = line.split(' ').collect();
        let number = |word: &str| word.parse().map_err(|_| NoEvent);
        let key = number(words.get(1).ok_or(NoEvent)?)?;
        Ok(match (words[0], &words[2..]) {
            ("put", [version, "keep"]) => Event::Put(key, number(version)?, Present::Keep),
            ("put", [version, "replace"]) => Event::Put(key, number(version)?, Present::Replace),
            ("stored", [version]) => Event::Stored(key, number(version)?),
            ("kept", []) => Event::Kept(key),
            ("refused", []) => Event::Refused(key),
            ("conflict", []) => Event::Conflict(key),
            ("delete", []) => Event::Delete(key),
            ("deleted", ["yes"]) => Event::Deleted(key, true),
            ("deleted", ["no"]) => Event::Deleted(key, false),
            ("lost", []) => Event::Lost(key),
            ("found", ["none"]) => Event::Found(key, None),
            ("found", [version]) => Event::Found(key, Some(number(version)?)),
            _ => return Err(NoEvent),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn judged(events: &[Event]) -> Result<Ledger, LedgerError> {
        let folder = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::open(&folder.path().join("ledger"))?;
        events.iter().try_for_each(|event| ledger.note(*event))?;
        Ok(ledger)
    }

    fn violation(events: &[Event]) -> Violation {
        match judged(events).unwrap_err() {
            LedgerError::Violation(violation) => violation,
            other => panic!("{other}"),
        }
    }

    use Event::{Conflict, Delete, Deleted, Found, Kept, Lost, Put, Refused, Stored};
    use Present::{Keep, Replace};

    #[test]
    fn unknown_outcomes_leave_both_possible_until_somebody_looks() {
        let sent = [Put(7, 0, Replace), Stored(7, 0), Put(7, 1, Replace)];
        let ledger = judged(&sent).unwrap();
        assert_eq!(ledger.possible(7), BTreeSet::from([Some(0), Some(1)]));
        assert_eq!(ledger.counts().unanswered, 1);
        let seen = [&sent[..], &[Found(7, Some(0)), Found(7, Some(0))]].concat();
        assert_eq!(judged(&seen).unwrap().possible(7), BTreeSet::from([Some(0)]));
        let flapping = [&sent[..], &[Found(7, Some(0)), Found(7, Some(1))]].concat();
        assert_eq!(violation(&flapping), Violation::Reverted(7, 1));
        let deleting = [&sent[..2], &[Delete(7)]].concat();
        assert_eq!(judged(&deleting).unwrap().possible(7), BTreeSet::from([None, Some(0)]));
    }

    #[test]
    fn what_was_acknowledged_must_be_found() {
        let stored = [Put(1, 0, Replace), Stored(1, 0), Put(1, 1, Replace), Stored(1, 1)];
        assert!(judged(&[&stored[..], &[Found(1, Some(1))]].concat()).is_ok());
        assert_eq!(violation(&[&stored[..], &[Found(1, None)]].concat()), Violation::Missing(1));
        let old = [&stored[..], &[Found(1, Some(0))]].concat();
        assert_eq!(violation(&old), Violation::Reverted(1, 0));
        let deleted = [&stored[..], &[Delete(1), Deleted(1, true)]].concat();
        assert!(judged(&[&deleted[..], &[Found(1, None)]].concat()).is_ok());
        let back = [&deleted[..], &[Found(1, Some(1))]].concat();
        assert_eq!(violation(&back), Violation::Back(1));
    }

    #[test]
    fn answers_that_contradict_what_is_known_are_violations() {
        let stored = [Put(1, 0, Replace), Stored(1, 0)];
        let anew = [&stored[..], &[Put(1, 1, Keep), Stored(1, 1)]].concat();
        assert_eq!(violation(&anew), Violation::Missing(1));
        let gone = [&stored[..], &[Delete(1), Deleted(1, false)]].concat();
        assert_eq!(violation(&gone), Violation::Missing(1));
        assert_eq!(violation(&[Put(1, 0, Keep), Kept(1)]), Violation::Back(1));
        assert_eq!(violation(&[Put(1, 0, Keep), Conflict(1)]), Violation::Back(1));
        assert_eq!(violation(&[Delete(1), Deleted(1, true)]), Violation::Back(1));
    }

    #[test]
    fn what_a_fault_took_stays_away_until_it_is_put_again() {
        let lost = [Put(1, 0, Replace), Stored(1, 0), Put(1, 1, Replace), Lost(1)];
        assert!(judged(&[&lost[..], &[Found(1, None)]].concat()).is_ok());
        for version in [0, 1] {
            let back = [&lost[..], &[Found(1, Some(version))]].concat();
            assert_eq!(violation(&back), Violation::Back(1));
        }
        let again = [&lost[..], &[Put(1, 2, Replace), Stored(1, 2), Found(1, Some(2))]].concat();
        assert_eq!(judged(&again).unwrap().counts().lost, 1);
    }

    #[test]
    fn refusals_and_presence_change_nothing() {
        let stored = [Put(1, 0, Replace), Stored(1, 0)];
        for answer in [Refused(1), Kept(1), Conflict(1)] {
            let events = [&stored[..], &[Put(1, 1, Keep), answer]].concat();
            let ledger = judged(&events).unwrap();
            assert_eq!(ledger.possible(1), BTreeSet::from([Some(0)]), "{answer}");
            assert_eq!(ledger.next_version(1), 2, "a version is never used twice");
        }
    }

    #[test]
    fn a_ledger_is_read_back_as_it_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger");
        let mut ledger = Ledger::open(&path).unwrap();
        for event in [Put(3, 0, Keep), Stored(3, 0), Delete(3), Put(4, 9, Replace)] {
            ledger.note(event).unwrap();
        }
        let again = Ledger::open(&path).unwrap();
        assert_eq!(again.possible(3), ledger.possible(3));
        assert_eq!((again.next_version(4), again.counts()), (10, ledger.counts()));
        std::fs::write(&path, "put 3 x keep\n").unwrap();
        assert!(matches!(Ledger::open(&path), Err(LedgerError::Parse { line: 1 })));
    }

    fn event() -> impl Strategy<Value = Event> {
        let mode = prop_oneof![Just(Keep), Just(Replace)];
        prop_oneof![
            (any::<u32>(), any::<u32>(), mode).prop_map(|(key, v, mode)| Put(key, v, mode)),
            (any::<u32>(), any::<u32>()).prop_map(|(key, version)| Stored(key, version)),
            any::<u32>().prop_map(Kept),
            any::<u32>().prop_map(Refused),
            any::<u32>().prop_map(Conflict),
            any::<u32>().prop_map(Delete),
            (any::<u32>(), any::<bool>()).prop_map(|(key, there)| Deleted(key, there)),
            (any::<u32>(), any::<Option<u32>>()).prop_map(|(key, seen)| Found(key, seen)),
            any::<u32>().prop_map(Lost),
        ]
    }

    proptest! {
        #[test]
        fn every_event_reads_back(event in event()) {
            prop_assert_eq!(event.to_string().parse::<Event>().unwrap(), event);
        }

        #[test]
        fn no_line_is_too_strange(line in "[a-z0-9 ]{0,30}") {
            let _ = line.parse::<Event>();
        }
    }
}
