//! Chunks and manifests as values of memkv.
//!
//! | key | value |
//! | --- | --- |
//! | `c/HASH` | a chunk |
//! | `m/NAME` | a manifest: the hashes of its chunks and the consumer's bytes (`manifest`) |
//!
//! A manifest is stored in this order:
//! 1. Which of the chunks that were put are there? The question pins them, so that they are not evicted
//!    between the answer and the end.
//! 2. The missing ones are stored, pinned too, by one batch. In another order a reader would find a manifest
//!    whose chunks come later, or never, if the consumer dies here.
//! 3. The manifest replaces the one before it, by one put, which happens or does not. It is pinned as they are.
//!
//! Chunks are evicted like all blocks of a cache, and each by itself. So the value of a manifest says which chunks
//! were put for it, and one of which a chunk is gone is not there either: who gets a manifest could get all its
//! chunks at that moment, and they are pinned for the time that this takes.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use memkv_client::{
    Client, ClientError, Config, GetOutcome, Hint, PutItem, PutMode, PutOptions, PutOutcome,
    one_line, tell,
};

use crate::ahead::Ahead;
use crate::error::StoreError;
use crate::manifest;
use crate::memory::Block;

/// Bytes of chunks that are kept back, at most.
const BUFFER: usize = 64 << 20;
/// Bytes of a hash or a name, at most: what is left of a key.
const NAME_MAX: usize = 510;
/// Chunks of one manifest, at most.
const CHUNKS_MAX: usize = 1 << 20;
/// For how long a manifest is pinned that was just stored or read, and chunks that it needs or will need.
const PINNED: Duration = Duration::from_secs(60);
/// For how long opening waits for servers; what they do later is another matter.
const GREETING: Duration = Duration::from_secs(2);
/// A guess at the length of a chunk, until one was read.
const LENGTH: usize = 64 << 10;

/// One handle. All calls through it come one after the other.
pub(crate) struct Store {
    client: Client,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// Chunks that were put and not sent, in their order.
    pending: Vec<(Vec<u8>, Block)>,
    /// Where the keys of `pending` are in it.
    places: HashMap<Vec<u8>, usize>,
    pending_bytes: usize,
    /// Keys of all chunks that were put since the last manifest, in their order, and once more to look in.
    put: Vec<Vec<u8>>,
    was_put: HashSet<Vec<u8>>,
    lacking: Lacking,
    /// Lengths of the chunks of the manifest that was read last: its list, most likely, is what is fetched next.
    lengths: HashMap<Vec<u8>, u64>,
    ahead: Ahead,
    /// The length of the chunk that was read last.
    length: Option<usize>,
    /// What was said last.
    said: Option<String>,
}

/// Whether chunks that were taken have been refused since, and are forgotten: their manifest would lack them.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Lacking {
    #[default]
    Nothing,
    /// Their manifest was refused. What is put from now on is another one's, or all of the same one's.
    Told,
    /// Only whoever put one more chunk was told, and may go on with the rest: the next manifest is refused,
    /// whatever was put for it since.
    Untold,
}

impl Store {
    /// A handle. A server that does not answer is told to the user, and not to the caller: it may be there
    /// when it is needed.
    pub fn open(config: Config) -> Result<Store, ClientError> {
        let client = Client::new(config)?;
        for (_, answer) in client.until(Instant::now() + GREETING).server_stats() {
            if let Err(error) = answer {
                tell(&format!("memkv: kv_store open: {}; going on without it", one_line(&error)));
            }
        }
        Ok(Store { client, inner: Mutex::default() })
    }

    fn lock(&self) -> Result<MutexGuard<'_, Inner>, StoreError> {
        self.inner.lock().map_err(|_| StoreError::Poisoned)
    }

    /// The client, for one call of the interface.
    fn client(&self) -> Client {
        let timeout = Duration::from_millis(self.client.config().request_timeout_ms);
        self.client.until(Instant::now() + timeout)
    }

    /// Takes a chunk; sends those before it when there are too many.
    pub fn put_chunk(&self, hash: &[u8], bytes: &[u8]) -> Result<(), StoreError> {
        let key = key(b"c/", hash)?;
        if bytes.is_empty() {
            return Err(StoreError::Invalid("a chunk has at least one byte"));
        }
        let mut inner = self.lock()?;
        if let Some(at) = inner.places.get(&key) {
            let length = inner.pending[*at].1.len();
            return match length == bytes.len() {
                true => Ok(()),
                false => Err(StoreError::Collision { length: length as u64 }),
            };
        }
        if inner.was_put.contains(&key) {
            return Ok(());
        }
        if inner.put.len() == CHUNKS_MAX {
            return Err(StoreError::Chunks { limit: CHUNKS_MAX });
        }
        if inner.pending_bytes.saturating_add(bytes.len()) > BUFFER {
            inner.send(&self.client(), Lacking::Untold)?;
        }
        let block = Block::copy(bytes)?;
        let at = inner.pending.len();
        if inner.lacking == Lacking::Told {
            inner.lacking = Lacking::Nothing;
        }
        inner.pending_bytes += bytes.len();
        inner.places.insert(key.clone(), at);
        inner.pending.push((key.clone(), block));
        inner.put.push(key.clone());
        inner.was_put.insert(key);
        Ok(())
    }

    /// A chunk, whether it was sent yet or not.
    pub fn get_chunk(&self, hash: &[u8]) -> Result<Block, StoreError> {
        let key = key(b"c/", hash)?;
        let mut inner = self.lock()?;
        if let Some(at) = inner.places.get(&key) {
            return Block::copy(&inner.pending[*at].1);
        }
        let client = self.client();
        if let Some(block) = inner.ahead.take(&client, &key)? {
            inner.length = Some(block.len());
            return Ok(block);
        }
        // Twice where the guess was too short.
        let mut room = inner.length.unwrap_or(LENGTH);
        loop {
            let mut block = Block::zeroed(room)?;
            let GetOutcome::Hit { length, .. } = client.get_into(&key, 0, &mut block)? else {
                return Err(StoreError::Absent);
            };
            let length = length as usize;
            if length <= room {
                block.truncate(length);
                inner.length = Some(length);
                return Ok(block);
            }
            room = length;
        }
    }

    /// Stores a manifest, and all chunks that were put before it.
    pub fn put_manifest(&self, name: &[u8], bytes: &[u8]) -> Result<(), StoreError> {
        let key = key(b"m/", name)?;
        let client = self.client();
        let mut inner = self.lock()?;
        match inner.lacking {
            Lacking::Nothing => inner.send(&client, Lacking::Told)?,
            Lacking::Told => return Err(StoreError::Abandoned),
            Lacking::Untold => {
                inner.forget(Lacking::Told);
                return Err(StoreError::Abandoned);
            }
        }
        let value = manifest::encode(inner.put.iter().map(|key| &key[2..]), bytes);
        let pin_seconds = PINNED.as_secs() as u32;
        let replace = PutOptions { mode: PutMode::Replace, pin_seconds, ..PutOptions::default() };
        match client.put(&key, &value, &replace).map_err(StoreError::from) {
            Ok(_) => inner.forget(Lacking::Nothing),
            Err(error) => return Err(inner.refused(error, Lacking::Told)),
        }
        Ok(())
    }

    /// A manifest all of whose chunks are there.
    pub fn get_manifest(&self, name: &[u8]) -> Result<Block, StoreError> {
        let key = key(b"m/", name)?;
        let client = self.client();
        let mut inner = self.lock()?;
        let mut value = Vec::new();
        if !client.get(&key, &mut value)?.is_hit() {
            return Err(StoreError::Absent);
        }
        let (chunks, bytes) = manifest::decode(&value).ok_or(StoreError::Strange)?;
        let keys = chunks.into_iter().map(|hash| self::key(b"c/", hash));
        let keys = keys.collect::<Result<Vec<_>, _>>().map_err(|_| StoreError::Strange)?;
        // Behind its chunks, as what is of no use without them.
        let keys = keys.iter().chain([&key]);
        let keys: Vec<&[u8]> = keys.map(Vec::as_slice).collect();
        let mut lengths = HashMap::new();
        for (key, answer) in keys.iter().zip(client.hint(&keys, Hint::Pin(PINNED))) {
            let GetOutcome::Hit { length, .. } = answer? else { return Err(StoreError::Absent) };
            lengths.insert(key.to_vec(), length);
        }
        inner.lengths = lengths;
        Block::copy(bytes)
    }

    /// Removes a manifest; its chunks may be those of others, and stay until they are evicted.
    pub fn delete_manifest(&self, name: &[u8]) -> Result<(), StoreError> {
        let key = key(b"m/", name)?;
        let _alone = self.lock()?;
        match self.client().delete(&key, None)? {
            true => Ok(()),
            false => Err(StoreError::Absent),
        }
    }

    /// These chunks will be asked for, in this order; `hashes` are `length` bytes each.
    pub fn prefetch(&self, hashes: &[u8], length: usize) -> Result<(), StoreError> {
        let mut inner = self.lock()?;
        let keys = hashes.chunks_exact(length.max(1)).map(|hash| key(b"c/", hash));
        let mut keys = keys.collect::<Result<Vec<_>, _>>()?;
        keys.retain(|key| !inner.places.contains_key(key));
        let known = std::mem::take(&mut inner.lengths);
        inner.ahead.begin(&self.client(), keys, &known, PINNED)
    }

    /// Sends what is left.
    pub fn close(&self) -> Result<(), StoreError> {
        self.lock()?.send(&self.client(), Lacking::Told)
    }

    /// Whether this is another trouble than the last one of this handle: a server that is gone is told once,
    /// not for every chunk.
    pub fn is_news(&self, text: &str) -> bool {
        let Ok(mut inner) = self.lock() else { return true };
        let news = inner.said.as_deref() != Some(text);
        inner.said = Some(text.to_owned());
        news
    }
}

impl Inner {
    /// Stores what is kept back. When it fails all of it stays, for the next time, unless it was refused for
    /// what it is: then the next manifest is `lacking`.
    fn send(&mut self, client: &Client, lacking: Lacking) -> Result<(), StoreError> {
        self.store(client).map_err(|error| self.refused(error, lacking))?;
        self.pending.clear();
        self.places.clear();
        self.pending_bytes = 0;
        Ok(())
    }

    /// Forgets what would be refused for ever.
    fn refused(&mut self, error: StoreError, lacking: Lacking) -> StoreError {
        if error.is_final() {
            self.forget(lacking);
        }
        error
    }

    /// There was nothing since the last manifest, of which the next one is `lacking` something.
    fn forget(&mut self, lacking: Lacking) {
        self.lacking = lacking;
        self.pending.clear();
        self.places.clear();
        self.pending_bytes = 0;
        self.put.clear();
        self.was_put.clear();
    }

    fn store(&self, client: &Client) -> Result<(), StoreError> {
        let keys: Vec<&[u8]> = self.pending.iter().map(|(key, _)| key.as_slice()).collect();
        let known = client.hint(&keys, Hint::Pin(PINNED));
        let options = PutOptions { pin_seconds: PINNED.as_secs() as u32, ..PutOptions::default() };
        let mut missing = Vec::new();
        for ((key, block), answer) in self.pending.iter().zip(known) {
            match answer? {
                GetOutcome::Hit { length, .. } => same_length(block, length)?,
                GetOutcome::Miss(_) => {
                    missing.push(PutItem { key, value: block, options, parent: None });
                }
            }
        }
        for (item, answer) in missing.iter().zip(client.put_batch(&missing)) {
            if let PutOutcome::Present { length, .. } = answer? {
                same_length(item.value, length)?;
            }
        }
        Ok(())
    }
}

/// That a chunk which was there before is of the length that it should be: all that can be known of it without
/// knowing the consumer's hash.
fn same_length(bytes: &[u8], length: u64) -> Result<(), StoreError> {
    match bytes.len() as u64 == length {
        true => Ok(()),
        false => Err(StoreError::Collision { length }),
    }
}

fn key(kind: &[u8], name: &[u8]) -> Result<Vec<u8>, StoreError> {
    match name.len() {
        0 => Err(StoreError::Invalid("a hash or a name has at least one byte")),
        1..=NAME_MAX => Ok([kind, name].concat()),
        _ => Err(StoreError::Invalid("a hash or a name has at most 510 bytes")),
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use memkv_client::{ClientError, Config};
    use memkv_node::config::{Config as NodeConfig, Overrides};
    use memkv_node::node::Node;
    use memkv_node::paths::ThisMachine;

    use super::*;

    const NODE: &str = "
network: {address: '127.0.0.1:0'}
memory: {max_size: 128 MiB, hugepages: never}
storage: {mode: memory, drives: [{max_size: 512 MiB}]}
node: {reactors: 1}
";

    const MIB: usize = 1 << 20;

    fn node() -> Node {
        let config = NodeConfig::parse(NODE, &Overrides::default(), &ThisMachine)
            .unwrap_or_else(|error| panic!("{error}"));
        Node::start(config, &(Rc::new(|_: &str, _, _| ()) as _)).expect("a node starts")
    }

    fn store(node: &Node) -> Store {
        let config = Config { servers: vec![node.address().to_string()], ..Config::default() };
        Store::open(config).expect("a handle")
    }

    /// Saves a session of two chunks, and finds it again.
    fn saves(store: &Store, name: &[u8]) {
        store.put_chunk(&[name, b" 1"].concat(), b"one").expect("taken");
        store.put_chunk(&[name, b" 2"].concat(), b"two").expect("taken");
        store.put_manifest(name, b"both").expect("stored");
        assert_eq!(&*store.get_manifest(name).expect("it is there"), b"both");
        assert_eq!(&*store.get_chunk(&[name, b" 2"].concat()).expect("it is there"), b"two");
    }

    #[test]
    fn what_is_refused_for_ever_is_forgotten_and_its_manifest_is_not_stored() {
        let node = node();
        let (store, other) = (store(&node), store(&node));
        other.put_chunk(b"taken", b"other bytes").expect("taken");
        other.put_manifest(b"other", b"").expect("stored");
        let long = vec![1; 64 * MIB + 1];
        let collides: (&[u8], &[u8]) = (b"taken", b"bytes");
        for (hash, bytes) in [collides, (b"long", &long)] {
            store.put_chunk(b"good", b"good").expect("kept back");
            store.put_chunk(hash, bytes).expect("kept back");
            let error = store.put_manifest(b"session", b"").expect_err("refused");
            assert!(
                matches!(
                    error,
                    StoreError::Collision { length: 11 }
                        | StoreError::Client(ClientError::TooLarge { .. })
                ),
                "{error}"
            );
            // Without its chunks there is no manifest, however often it is tried.
            for _ in 0..2 {
                let again = store.put_manifest(b"session", b"").expect_err("refused");
                assert!(matches!(again, StoreError::Abandoned), "{again}");
            }
            assert!(matches!(store.get_manifest(b"session"), Err(StoreError::Absent)));
            // Another session is not concerned.
            saves(&store, hash);
        }
        node.stop().expect("an orderly stop");
    }

    #[test]
    fn who_goes_on_after_a_chunk_was_refused_gets_no_manifest_without_those_before_it() {
        let node = node();
        let (store, other) = (store(&node), store(&node));
        other.put_chunk(b"taken", b"other bytes").expect("taken");
        other.put_manifest(b"other", b"").expect("stored");
        // More than is kept back: the chunk that is one too many is told of another one's collision.
        let large = vec![1; 30 * MIB];
        store.put_chunk(b"taken", b"bytes").expect("kept back");
        for hash in [b"first", b"later"] {
            store.put_chunk(hash, &large).expect("kept back");
        }
        let error = store.put_chunk(b"third", &large).expect_err("refused");
        assert!(matches!(error, StoreError::Collision { length: 11 }), "{error}");
        // It is tried again, as what fails is, and now there is room.
        store.put_chunk(b"third", &large).expect("kept back");
        for _ in 0..2 {
            let refused = store.put_manifest(b"session", b"").expect_err("it lacks `first`");
            assert!(matches!(refused, StoreError::Abandoned), "{refused}");
        }
        assert!(matches!(store.get_manifest(b"session"), Err(StoreError::Absent)));
        saves(&store, b"session");
        node.stop().expect("an orderly stop");
    }

    #[test]
    fn a_session_larger_than_all_buffers_is_sent_and_fetched_in_parts() {
        let node = node();
        let (store, other) = (store(&node), store(&node));
        let bytes = |number: u32| [number.to_le_bytes().to_vec(), vec![7; MIB - 4]].concat();
        let hashes: Vec<[u8; 4]> = (0..70).map(u32::to_le_bytes).collect();
        for (number, hash) in hashes.iter().enumerate() {
            store.put_chunk(hash, &bytes(number as u32)).expect("taken");
        }
        assert!(store.lock().expect("a lock").pending_bytes <= BUFFER);
        store.put_manifest(b"large", &hashes.concat()).expect("stored");
        let list = other.get_manifest(b"large").expect("it is there");
        other.prefetch(&list, 4).expect("fetched");
        let calls = || other.client.counters().of(memkv_client::Operation::Get).calls;
        let read = |order: &mut dyn Iterator<Item = usize>| {
            let before = calls();
            other.prefetch(&list, 4).expect("fetched");
            for number in order {
                let chunk = other.get_chunk(&hashes[number]).expect("it is there");
                assert!(*chunk == bytes(number as u32), "chunk {number}");
            }
            calls() - before
        };
        assert_eq!(read(&mut (0..70)), 3, "windows of 32 MiB");
        // Who reads in another order gets the same, by more calls.
        assert!(read(&mut (0..70).rev()) > 3);
        node.stop().expect("an orderly stop");
    }
}
