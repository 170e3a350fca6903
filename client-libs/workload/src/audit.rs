//! Remembers which blocks a store acknowledged, and asks for all of them again.
//!
//! This is the store's promise seen from outside: put a [`Recorder`] between a workload and its
//! store, do something terrible to the server, then [`audit`] what the recorder noted.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::block::{BlockHash, Keys};
use crate::store::{BlockStore, Failure, Fetched, GetBlock, Present, PutBlock, Stored};
use crate::tally::Faults;

/// A store that passes every call on and remembers the keys of acknowledged puts.
pub struct Recorder<'a> {
    store: &'a dyn BlockStore,
    acknowledged: Mutex<BTreeSet<Vec<u8>>>,
}

impl<'a> Recorder<'a> {
    /// A recorder in front of `store`.
    #[must_use]
    pub fn new(store: &'a dyn BlockStore) -> Recorder<'a> {
        Recorder { store, acknowledged: Mutex::new(BTreeSet::new()) }
    }

    /// How many different keys were acknowledged so far.
    #[must_use]
    pub fn acknowledged(&self) -> usize {
        self.keys().len()
    }

    /// The acknowledged blocks among those that `keys` names.
    #[must_use]
    pub fn blocks(&self, keys: &Keys) -> Vec<BlockHash> {
        self.keys().iter().filter_map(|key| keys.block(key)).collect()
    }

    fn keys(&self) -> std::sync::MutexGuard<'_, BTreeSet<Vec<u8>>> {
        self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BlockStore for Recorder<'_> {
    fn match_prefix(&self, keys: &[&[u8]]) -> Result<usize, Failure> {
        self.store.match_prefix(keys)
    }

    fn exists(&self, keys: &[&[u8]]) -> Result<Vec<bool>, Failure> {
        self.store.exists(keys)
    }

    fn put(&self, blocks: &[PutBlock<'_>], present: Present) -> Vec<Result<Stored, Failure>> {
        let answers = self.store.put(blocks, present);
        let done = blocks.iter().zip(&answers).filter(|(_, answer)| answer.is_ok());
        self.keys().extend(done.map(|(block, _)| block.key.to_vec()));
        answers
    }

    fn get(&self, blocks: &mut [GetBlock<'_>]) -> Vec<Result<Fetched, Failure>> {
        self.store.get(blocks)
    }

    fn delete(&self, key: &[u8]) -> Result<bool, Failure> {
        let deleted = self.store.delete(key);
        // Even a failed delete may have been done: the block is no longer owed.
        self.keys().remove(key);
        deleted
    }

    fn server_cpu(&self) -> Result<Option<Duration>, Failure> {
        self.store.server_cpu()
    }
}

/// What an audit found.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct AuditReport {
    /// Blocks asked for.
    pub blocks: u64,
    /// Blocks that came back, right or wrong.
    pub found: u64,
    /// Blocks that the store says it does not have.
    pub missing: u64,
    /// The first of those, and the store's reason.
    pub first_missing: Option<(BlockHash, String)>,
    /// Failures and wrong bytes.
    pub faults: Faults,
    /// Time the audit took.
    pub wall_seconds: f64,
}

impl AuditReport {
    /// Whether every block came back byte-exact.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.found == self.blocks && self.faults == Faults::default()
    }

    fn merge(&mut self, other: AuditReport) {
        self.blocks += other.blocks;
        self.found += other.found;
        self.missing += other.missing;
        self.first_missing = self.first_missing.take().or(other.first_missing);
        self.faults.merge(other.faults);
    }
}

/// Fetches every one of `blocks`, each `block_bytes` long under its key in `keys`, on `connections`
/// threads, and checks every byte.
#[must_use]
pub fn audit(
    store: &dyn BlockStore,
    keys: &Keys,
    blocks: &[BlockHash],
    block_bytes: usize,
    connections: usize,
) -> AuditReport {
    let begun = Instant::now();
    let share = blocks.len().div_ceil(connections.max(1)).max(1);
    let mut report = AuditReport::default();
    thread::scope(|scope| {
        let threads: Vec<_> = blocks
            .chunks(share)
            .map(|share| scope.spawn(move || audit_share(store, keys, share, block_bytes)))
            .collect();
        for thread in threads {
            report.merge(thread.join().expect("a thread of the audit panicked"));
        }
    });
    report.wall_seconds = begun.elapsed().as_secs_f64();
    report
}

/// Bytes that one batch of an audit asks for at most; one block at least.
const BATCH_BYTES: usize = 8 << 20;

fn audit_share(
    store: &dyn BlockStore,
    keys: &Keys,
    blocks: &[BlockHash],
    block_bytes: usize,
) -> AuditReport {
    let batch = (BATCH_BYTES / block_bytes.max(1)).max(1);
    let mut bytes = vec![0; batch.min(blocks.len()) * block_bytes];
    let mut report = AuditReport::default();
    for blocks in blocks.chunks(batch) {
        let names: Vec<Vec<u8>> = blocks.iter().map(|block| keys.key(*block)).collect();
        let rooms = bytes.chunks_exact_mut(block_bytes);
        let mut gets: Vec<GetBlock<'_>> =
            names.iter().zip(rooms).map(|(key, into)| GetBlock { key, into }).collect();
        let answers = store.get(&mut gets);
        for ((answer, get), block) in answers.into_iter().zip(&gets).zip(blocks) {
            report.blocks += 1;
            match answer {
                Ok(Fetched::Hit(length)) => {
                    report.found += 1;
                    report.faults.verify(*block, length, get.into);
                }
                Ok(Fetched::Miss(reason)) => {
                    report.missing += 1;
                    report.first_missing.get_or_insert((*block, reason.to_owned()));
                }
                Err(failure) => report.faults.failed(&failure),
            }
        }
    }
    report
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::MemoryStore;
    use crate::values;

    const BYTES: usize = 5000;

    fn put(store: &dyn BlockStore, keys: &Keys, block: BlockHash) {
        let (key, value) = (keys.key(block), values::value(block, BYTES));
        let answers = store.put(&[PutBlock { key: &key, value: &value }], Present::Keep);
        assert!(answers.iter().all(Result::is_ok));
    }

    #[test]
    fn what_was_acknowledged_is_owed_and_what_was_deleted_is_not() {
        let (store, keys) = (MemoryStore::default(), Keys::new("audit", BYTES));
        let recorder = Recorder::new(&store);
        (0..100).for_each(|hash| put(&recorder, &keys, BlockHash(hash)));
        assert!(recorder.delete(&keys.key(BlockHash(3))).unwrap());
        store.fail_puts(true);
        let value = values::value(BlockHash(200), BYTES);
        let refused = PutBlock { key: &keys.key(BlockHash(200)), value: &value };
        assert!(recorder.put(&[refused], Present::Keep)[0].is_err());
        let owed = recorder.blocks(&keys);
        assert_eq!(owed.len(), 99);
        let report = audit(&store, &keys, &owed, BYTES, 3);
        assert!(report.is_clean(), "{report:?}");
        assert_eq!(report.blocks, 99);
    }

    #[test]
    fn missing_and_wrong_blocks_are_found() {
        let (store, keys) = (MemoryStore::default(), Keys::new("audit", BYTES));
        let recorder = Recorder::new(&store);
        (0..50).for_each(|hash| put(&recorder, &keys, BlockHash(hash)));
        store.delete(&keys.key(BlockHash(7))).unwrap();
        store.flip_bit(&keys.key(BlockHash(9)), 4097);
        let report = audit(&store, &keys, &recorder.blocks(&keys), BYTES, 2);
        assert!(!report.is_clean());
        assert_eq!((report.blocks, report.found, report.missing), (50, 49, 1));
        assert_eq!(report.first_missing.unwrap().0, BlockHash(7));
        assert_eq!(report.faults.wrong_blocks, 1);
        assert_eq!(report.faults.first_wrong.unwrap().first, 4097);
    }
}
