//! A store that is a map: what the tests of the loops run against.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use crate::store::{
    BlockStore, Failure, FailureKind, Fetched, GetBlock, Present, PutBlock, Stored,
};

#[derive(Default)]
pub(crate) struct MemoryStore {
    blocks: Mutex<HashMap<Vec<u8>, Vec<u8>>>,
    puts_fail: AtomicBool,
    /// CPU time that the store claims to have used; grows by a millisecond a call.
    cpu_ms: AtomicU64,
}

impl MemoryStore {
    pub(crate) fn blocks(&self) -> MutexGuard<'_, HashMap<Vec<u8>, Vec<u8>>> {
        self.cpu_ms.fetch_add(1, Ordering::Relaxed);
        self.blocks.lock().unwrap()
    }

    pub(crate) fn fail_puts(&self, fail: bool) {
        self.puts_fail.store(fail, Ordering::Relaxed);
    }

    pub(crate) fn flip_bit(&self, key: &[u8], at: usize) {
        self.blocks().get_mut(key).unwrap()[at] ^= 0x10;
    }
}

impl BlockStore for MemoryStore {
    fn match_prefix(&self, keys: &[&[u8]]) -> Result<usize, Failure> {
        let blocks = self.blocks();
        Ok(keys.iter().take_while(|key| blocks.contains_key(**key)).count())
    }

    fn exists(&self, keys: &[&[u8]]) -> Result<Vec<bool>, Failure> {
        let blocks = self.blocks();
        Ok(keys.iter().map(|key| blocks.contains_key(*key)).collect())
    }

    fn put(&self, blocks: &[PutBlock<'_>], present: Present) -> Vec<Result<Stored, Failure>> {
        let mut stored = self.blocks();
        let put = |block: &PutBlock<'_>| {
            if self.puts_fail.load(Ordering::Relaxed) {
                let source = Box::new(io::Error::other("told to fail"));
                return Err(Failure { kind: FailureKind::Busy, source });
            }
            if present == Present::Keep && stored.contains_key(block.key) {
                return Ok(Stored::Present);
            }
            stored.insert(block.key.to_vec(), block.value.to_vec());
            Ok(Stored::New)
        };
        blocks.iter().map(put).collect()
    }

    fn get(&self, blocks: &mut [GetBlock<'_>]) -> Vec<Result<Fetched, Failure>> {
        let stored = self.blocks();
        let get = |block: &mut GetBlock<'_>| {
            let Some(value) = stored.get(block.key) else { return Ok(Fetched::Miss("unknown")) };
            let length = value.len().min(block.into.len());
            block.into[..length].copy_from_slice(&value[..length]);
            Ok(Fetched::Hit(value.len() as u64))
        };
        blocks.iter_mut().map(get).collect()
    }

    fn delete(&self, key: &[u8]) -> Result<bool, Failure> {
        Ok(self.blocks().remove(key).is_some())
    }

    fn server_cpu(&self) -> Result<Option<Duration>, Failure> {
        Ok(Some(Duration::from_millis(self.cpu_ms.load(Ordering::Relaxed))))
    }
}
