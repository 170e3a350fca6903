//! A store that pretends to be a server which dies: what the tests of the load run against.

use std::collections::HashMap;
use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use memkv_workload::store::{
    BlockStore, Failure, FailureKind, Fetched, GetBlock, Present, PutBlock, Stored,
};

pub(crate) struct Pretend {
    blocks: Mutex<HashMap<Vec<u8>, Vec<u8>>>,
    /// Requests that are still answered.
    breath: AtomicU64,
}

impl Pretend {
    pub(crate) fn dying_after(requests: u64) -> Pretend {
        Pretend { blocks: Mutex::new(HashMap::new()), breath: AtomicU64::new(requests) }
    }

    pub(crate) fn revive(&self) {
        self.breath.store(u64::MAX, Ordering::Relaxed);
    }

    pub(crate) fn forget(&self, key: &[u8]) {
        self.blocks.lock().unwrap().remove(key).unwrap();
    }

    pub(crate) fn flip_bit(&self, key: &[u8]) {
        self.blocks.lock().unwrap().get_mut(key).unwrap()[0] ^= 0x80;
    }

    fn breathe(&self) -> Result<(), Failure> {
        let one_less = |breath: u64| breath.checked_sub(1);
        let alive = self.breath.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less);
        let source = || Box::new(io::Error::from(io::ErrorKind::ConnectionReset));
        alive.map(|_| ()).map_err(|_| Failure { kind: FailureKind::Unavailable, source: source() })
    }
}

impl BlockStore for Pretend {
    fn match_prefix(&self, keys: &[&[u8]]) -> Result<usize, Failure> {
        let present = self.exists(keys)?;
        Ok(present.into_iter().take_while(|present| *present).count())
    }

    fn exists(&self, keys: &[&[u8]]) -> Result<Vec<bool>, Failure> {
        self.breathe()?;
        let blocks = self.blocks.lock().unwrap();
        Ok(keys.iter().map(|key| blocks.contains_key(*key)).collect())
    }

    fn put(&self, puts: &[PutBlock<'_>], present: Present) -> Vec<Result<Stored, Failure>> {
        let mut blocks = self.blocks.lock().unwrap();
        let put = |put: &PutBlock<'_>| {
            self.breathe()?;
            match blocks.get(put.key) {
                Some(old) if present == Present::Keep && old.len() != put.value.len() => {
                    let source = Box::new(io::Error::from(io::ErrorKind::AlreadyExists));
                    Err(Failure { kind: FailureKind::Conflict, source })
                }
                Some(_) if present == Present::Keep => Ok(Stored::Present),
                _ => {
                    blocks.insert(put.key.to_vec(), put.value.to_vec());
                    Ok(Stored::New)
                }
            }
        };
        puts.iter().map(put).collect()
    }

    fn get(&self, gets: &mut [GetBlock<'_>]) -> Vec<Result<Fetched, Failure>> {
        let blocks = self.blocks.lock().unwrap();
        let get = |get: &mut GetBlock<'_>| {
            self.breathe()?;
            let Some(value) = blocks.get(get.key) else { return Ok(Fetched::Miss("unknown")) };
            get.into[..value.len()].copy_from_slice(value);
            Ok(Fetched::Hit(value.len() as u64))
        };
        gets.iter_mut().map(get).collect()
    }

    fn delete(&self, key: &[u8]) -> Result<bool, Failure> {
        self.breathe()?;
        Ok(self.blocks.lock().unwrap().remove(key).is_some())
    }

    fn server_cpu(&self) -> Result<Option<Duration>, Failure> {
        Ok(None)
    }
}
