//! Chunks that are fetched before they are asked for.
//!
//! A consumer says once which chunks it will read, and then reads them one by one. They are fetched a window at a
//! time, each window by one batch, so that a session of any size takes bounded memory and a round trip for each
//! window instead of one for each chunk. A block that is read once goes to the consumer as it is, not copied.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use memkv_client::{Client, ClientError, GetItem, GetOutcome, Hint};

use crate::error::StoreError;
use crate::memory::Block;

/// Bytes that are fetched by one batch, unless one chunk has more.
const WINDOW: u64 = 32 << 20;
/// Chunks that are fetched by one batch, at most.
const WINDOW_CHUNKS: usize = 4096;
/// Bytes that are kept before a window is fetched, at most; those of another order of reading are dropped.
const KEPT_MAX: u64 = WINDOW;

/// Chunks of one handle.
#[derive(Default)]
pub(crate) struct Ahead {
    /// Keys and lengths of those that are not fetched yet, each once, in the order of the list.
    waiting: VecDeque<(Vec<u8>, u64)>,
    /// How often each key is in the list and was not asked for yet.
    times: HashMap<Vec<u8>, usize>,
    fetched: HashMap<Vec<u8>, Block>,
    fetched_bytes: u64,
}

impl Ahead {
    /// Begins anew, with these keys; the first window is fetched at once. Chunks that are there are pinned for
    /// `pinned`, so that they are not evicted before they are read; that was done for those in `known`, by their
    /// lengths, already.
    pub fn begin(
        &mut self,
        client: &Client,
        keys: Vec<Vec<u8>>,
        known: &HashMap<Vec<u8>, u64>,
        pinned: Duration,
    ) -> Result<(), StoreError> {
        *self = Ahead::default();
        let mut distinct = Vec::with_capacity(keys.len());
        for key in keys {
            let times = self.times.entry(key.clone()).or_default();
            *times += 1;
            if *times == 1 {
                distinct.push(key);
            }
        }
        let lengths = distinct.iter().map(|key| known.get(key).copied());
        let lengths = match lengths.collect::<Option<Vec<u64>>>() {
            Some(lengths) => lengths.into_iter().map(Some).collect(),
            None => ask(client, &distinct, pinned)?,
        };
        let there = distinct.into_iter().zip(lengths);
        self.waiting.extend(there.filter_map(|(key, length)| Some((key, length?))));
        self.fetch(client, 0)
    }

    /// The chunk of this key, if it was to be fetched and is there.
    pub fn take(&mut self, client: &Client, key: &[u8]) -> Result<Option<Block>, StoreError> {
        if !self.fetched.contains_key(key) {
            if self.times.get(key).is_none_or(|times| *times == 0) {
                return Ok(None);
            }
            let Some(at) = self.waiting.iter().position(|(other, _)| other == key) else {
                return Ok(None);
            };
            self.fetch(client, at)?;
        }
        let times = self.times.get_mut(key).filter(|times| **times > 1);
        if let (Some(times), Some(block)) = (times, self.fetched.get(key)) {
            *times -= 1;
            return Block::copy(block).map(Some);
        }
        self.times.remove(key);
        let block = self.fetched.remove(key);
        self.fetched_bytes -= block.as_ref().map_or(0, |block| block.len() as u64);
        Ok(block)
    }

    /// Fetches the window that begins at `at` of those that wait.
    fn fetch(&mut self, client: &Client, at: usize) -> Result<(), StoreError> {
        if self.fetched_bytes > KEPT_MAX {
            self.fetched.clear();
            self.fetched_bytes = 0;
        }
        let mut bytes = 0;
        let fits = |(_, length): &&(Vec<u8>, u64)| {
            let first = bytes == 0;
            bytes += length;
            first || bytes <= WINDOW
        };
        let count = self.waiting.range(at..).take(WINDOW_CHUNKS).take_while(fits).count();
        let wanted = self.waiting.range(at..at + count);
        let blocks = wanted.map(|(_, length)| Block::zeroed(*length as usize));
        let mut blocks = blocks.collect::<Result<Vec<Block>, StoreError>>()?;
        let mut items = Vec::with_capacity(count);
        for ((key, _), buf) in self.waiting.range(at..at + count).zip(&mut blocks) {
            items.push(GetItem { key, offset: 0, buf });
        }
        let answers = client.get_batch(&mut items);
        // Where a server is lost all is left as it was, to be fetched again.
        let answers = answers.into_iter().collect::<Result<Vec<GetOutcome>, ClientError>>()?;
        let wanted: Vec<(Vec<u8>, u64)> = self.waiting.drain(at..at + count).collect();
        for (((key, wanted), block), answer) in wanted.into_iter().zip(blocks).zip(answers) {
            if matches!(answer, GetOutcome::Hit { length, .. } if length == wanted) {
                self.fetched_bytes += wanted;
                self.fetched.insert(key, block);
            }
        }
        Ok(())
    }
}

/// Lengths of chunks, those that are there, which are pinned.
fn ask(
    client: &Client,
    keys: &[Vec<u8>],
    pinned: Duration,
) -> Result<Vec<Option<u64>>, ClientError> {
    let keys: Vec<&[u8]> = keys.iter().map(Vec::as_slice).collect();
    let answers = client.hint(&keys, Hint::Pin(pinned)).into_iter();
    let length = |outcome| match outcome {
        GetOutcome::Hit { length, .. } => Some(length),
        GetOutcome::Miss(_) => None,
    };
    answers.map(|answer| answer.map(length)).collect()
}
