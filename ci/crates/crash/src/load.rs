//! The load: threads that put, replace, delete and read, and write everything into the ledger.
//!
//! Each thread has its own keys, so that a key has one request in flight. A thread ends with the
//! first request whose outcome it cannot know: the server is dead, or as good as. It also ends when
//! its process's standard input does, so that a load cannot outlive the one who started it.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use fastrand::Rng;
use memkv_workload::store::{
    BlockStore, Failure, FailureKind, Fetched, GetBlock, Present, PutBlock, Stored,
};
use thiserror::Error;

use crate::content::{self, LENGTH_MAX};
use crate::ledger::{Event, Key, Ledger, LedgerError};

/// How the load is made.
#[derive(Copy, Clone, Debug)]
pub struct LoadOptions {
    /// Where all choices come from.
    pub seed: u64,
    /// Threads.
    pub threads: u32,
    /// Keys of all threads together.
    pub keys: u32,
}

/// Why a load ended badly.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The ledger says no.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The server failed in a way that a killed server cannot.
    #[error("the server failed while it was alive")]
    Server(#[source] Failure),
}

/// Runs until `stop`, or until every thread met a request without an answer.
///
/// # Errors
/// The first error of any thread; the others end as usual.
pub fn run(
    store: &dyn BlockStore,
    ledger: Ledger,
    options: LoadOptions,
    stop: &AtomicBool,
) -> Result<Ledger, LoadError> {
    let ledger = Mutex::new(ledger);
    let outcomes: Vec<Result<(), LoadError>> = thread::scope(|scope| {
        let threads: Vec<_> = (0..options.threads)
            .map(|number| {
                let mut thread = Loader {
                    store,
                    ledger: &ledger,
                    rng: Rng::with_seed(options.seed ^ u64::from(number) << 48),
                    keys: (0..options.keys).filter(|key| key % options.threads == number).collect(),
                };
                scope.spawn(move || thread.run(stop))
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("a loader panicked")).collect()
    });
    outcomes.into_iter().collect::<Result<(), LoadError>>()?;
    Ok(ledger.into_inner().unwrap_or_else(PoisonError::into_inner))
}

struct Loader<'a> {
    store: &'a dyn BlockStore,
    ledger: &'a Mutex<Ledger>,
    rng: Rng,
    keys: Vec<Key>,
}

/// Whether a thread goes on.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
enum Next {
    Continue,
    /// A request has no answer.
    End,
}

impl Loader<'_> {
    fn run(&mut self, stop: &AtomicBool) -> Result<(), LoadError> {
        while !stop.load(Ordering::Relaxed) {
            let next = match self.rng.u32(..100) {
                0..70 => self.put()?,
                70..82 => self.delete()?,
                _ => self.get()?,
            };
            if next == Next::End {
                break;
            }
        }
        Ok(())
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, event: Event) -> Result<(), LedgerError> {
        self.ledger().note(event)
    }

    fn put(&mut self) -> Result<Next, LoadError> {
        let present = if self.rng.u32(..4) == 0 { Present::Keep } else { Present::Replace };
        let count = self.rng.usize(1..=4);
        let keys: BTreeSet<Key> =
            (0..count).filter_map(|_| self.rng.choice(&self.keys).copied()).collect();
        let versions: Vec<(Key, u32)> = {
            let ledger = self.ledger();
            keys.into_iter().map(|key| (key, ledger.next_version(key))).collect()
        };
        let contents: Vec<(Vec<u8>, Vec<u8>)> = versions
            .iter()
            .map(|(key, version)| (content::name(*key), content::value(*key, *version)))
            .collect();
        for (key, version) in &versions {
            self.note(Event::Put(*key, *version, present))?;
        }
        let puts: Vec<PutBlock<'_>> =
            contents.iter().map(|(key, value)| PutBlock { key, value }).collect();
        let mut next = Next::Continue;
        for (answer, (key, version)) in self.store.put(&puts, present).into_iter().zip(versions) {
            let event = match answer {
                Ok(Stored::New) => Event::Stored(key, version),
                Ok(Stored::Present) => Event::Kept(key),
                Err(failure) => match failure.kind {
                    FailureKind::Busy => Event::Refused(key),
                    FailureKind::Conflict => Event::Conflict(key),
                    kind if is_silence(kind) => {
                        next = Next::End;
                        continue;
                    }
                    _ => return Err(LoadError::Server(failure)),
                },
            };
            self.note(event)?;
        }
        Ok(next)
    }

    fn delete(&mut self) -> Result<Next, LoadError> {
        let Some(key) = self.rng.choice(&self.keys).copied() else { return Ok(Next::End) };
        self.note(Event::Delete(key))?;
        match self.store.delete(&content::name(key)) {
            Ok(there) => self.note(Event::Deleted(key, there))?,
            Err(failure) => match failure.kind {
                FailureKind::Busy => self.note(Event::Refused(key))?,
                kind if is_silence(kind) => return Ok(Next::End),
                _ => return Err(LoadError::Server(failure)),
            },
        }
        Ok(Next::Continue)
    }

    fn get(&mut self) -> Result<Next, LoadError> {
        let Some(key) = self.rng.choice(&self.keys).copied() else { return Ok(Next::End) };
        let mut answers = look(self.store, &self.ledger(), &[key]);
        match answers.pop().expect("one answer per key") {
            Ok(event) => self.note(event?)?,
            Err(failure) => match failure.kind {
                FailureKind::Busy => {}
                kind if is_silence(kind) => return Ok(Next::End),
                _ => return Err(LoadError::Server(failure)),
            },
        }
        Ok(Next::Continue)
    }
}

/// Whether a failure is what a killed server leaves behind: no answer.
fn is_silence(kind: FailureKind) -> bool {
    matches!(kind, FailureKind::Timeout | FailureKind::Broken | FailureKind::Unavailable)
}

/// Starts a load in a process of its own, which ends when its standard input is closed or the server
/// is dead.
///
/// # Errors
/// When it cannot be started.
pub fn spawn(address: SocketAddr, ledger: &Path, options: LoadOptions) -> io::Result<Child> {
    Command::new(std::env::current_exe()?)
        .arg("load")
        .args(["--address", &address.to_string()])
        .args(["--seed", &options.seed.to_string()])
        .args(["--threads", &options.threads.to_string()])
        .args(["--keys", &options.keys.to_string()])
        .arg("--ledger")
        .arg(ledger)
        .stdin(Stdio::piped())
        .spawn()
}

/// What a reader saw of one key, or that it saw what cannot be.
pub type Sight = Result<Event, LedgerError>;

/// Reads `keys` in one batch and says what is there.
pub fn look(store: &dyn BlockStore, ledger: &Ledger, keys: &[Key]) -> Vec<Result<Sight, Failure>> {
    let seen = look_closely(store, ledger, keys).into_iter();
    seen.map(|seen| seen.map(|(sight, _)| sight)).collect()
}

/// Like [`look`]; says of a miss what reason was given, in the server's words.
pub fn look_closely(
    store: &dyn BlockStore,
    ledger: &Ledger,
    keys: &[Key],
) -> Vec<Result<(Sight, Option<&'static str>), Failure>> {
    let names: Vec<Vec<u8>> = keys.iter().map(|key| content::name(*key)).collect();
    let mut rooms: Vec<Vec<u8>> = keys.iter().map(|key| vec![0; room(ledger, *key)]).collect();
    let mut gets: Vec<GetBlock<'_>> =
        names.iter().zip(&mut rooms).map(|(key, into)| GetBlock { key, into }).collect();
    let answers = store.get(&mut gets);
    let sight = |((answer, room), key): ((Result<Fetched, Failure>, &Vec<u8>), &Key)| {
        Ok(match answer? {
            Fetched::Miss(reason) => (Ok(Event::Found(*key, None)), Some(reason)),
            Fetched::Hit(length) => {
                let bytes = room.get(..length as usize).unwrap_or_default();
                let content = content::recognise(ledger, *key, bytes);
                let found = content.map(|content| Event::Found(*key, content));
                (found.map_err(LedgerError::from), None)
            }
        })
    };
    answers.into_iter().zip(&rooms).zip(keys).map(sight).collect()
}

/// Room enough for any version that was ever sent under a key.
fn room(ledger: &Ledger, key: Key) -> usize {
    let lengths = (0..ledger.next_version(key)).map(|version| content::length(key, version));
    lengths.max().unwrap_or(1).min(LENGTH_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pretend::Pretend;

    fn options(seed: u64) -> LoadOptions {
        LoadOptions { seed, threads: 2, keys: 12 }
    }

    #[test]
    fn a_truthful_store_passes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger");
        let store = Pretend::dying_after(300);
        let ledger = Ledger::open(&path).unwrap();
        let ledger = run(&store, ledger, options(1), &AtomicBool::new(false)).unwrap();
        let counts = ledger.counts();
        assert!(counts.stored > 100 && counts.deleted > 10 && counts.found > 20, "{counts:?}");
        assert!(counts.unanswered > 0, "the last requests have no answer: {counts:?}");
        store.revive();
        let mut ledger = Ledger::open(&path).unwrap();
        let keys: Vec<Key> = ledger.keys().collect();
        for sight in look(&store, &ledger, &keys) {
            ledger.note(sight.unwrap().unwrap()).unwrap();
        }
    }

    #[test]
    fn a_load_ends_when_it_is_told_to() {
        let folder = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(&folder.path().join("ledger")).unwrap();
        let store = Pretend::dying_after(u64::MAX);
        let ledger = run(&store, ledger, options(1), &AtomicBool::new(true)).unwrap();
        assert_eq!(ledger.keys().count(), 0);
    }

    #[test]
    fn a_store_that_forgets_or_lies_is_caught_by_its_readers() {
        for seed in 0..20 {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("ledger");
            let store = Pretend::dying_after(60);
            let ledger = Ledger::open(&path).unwrap();
            run(&store, ledger, options(seed), &AtomicBool::new(false)).unwrap();
            store.revive();
            let ledger = Ledger::open(&path).unwrap();
            let owed = |key: &Key| ledger.possible(*key).iter().all(Option::is_some);
            let Some(victim) = ledger.keys().find(owed) else { continue };
            if seed % 2 == 0 {
                store.forget(&content::name(victim));
            } else {
                store.flip_bit(&content::name(victim));
            }
            let sight = look(&store, &ledger, &[victim]).pop().unwrap().unwrap();
            let caught = match sight {
                Ok(event) => Ledger::open(&path).unwrap().note(event).is_err(),
                Err(_) => true,
            };
            assert!(caught, "seed {seed}");
        }
    }
}
