//! Replays a trace against a store, as the engines behind the trace would have used it.
//!
//! For each request: ask how long a prefix of its blocks is present, fetch those blocks (onboard),
//! then store the ones that were missing (offload), as if they had been computed meanwhile. Several
//! threads do this side by side, each driving one connection; one hands the requests out at the
//! times of the trace.

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::block::{BlockHash, Keys};
use crate::latency::{Latency, LatencySummary};
use crate::store::{BlockStore, Fetched, GetBlock, Present, PutBlock, Stored};
use crate::tally::Faults;
use crate::trace::Request;
use crate::values;

/// How a trace is replayed.
#[derive(Clone, Debug)]
pub struct ReplayOptions {
    /// Bytes of one block's value.
    pub block_bytes: usize,
    /// What the keys begin with; equal labels find each other's blocks.
    pub label: String,
    /// Requests served side by side, each on a connection of its own; at least one.
    pub connections: usize,
    /// Trace seconds per second of wall time; `None` is as fast as it goes.
    pub speed: Option<f64>,
    /// Stop before the first request that is later in the trace than this.
    pub until: Option<Duration>,
    /// Hand out no request after this much wall time.
    pub wall: Option<Duration>,
    /// Check every byte that comes back.
    pub verify: bool,
    /// Bytes that one batched call carries at most; one block at least.
    pub batch_bytes: usize,
}

impl Default for ReplayOptions {
    fn default() -> ReplayOptions {
        ReplayOptions {
            block_bytes: 64 << 10,
            label: "replay".to_owned(),
            connections: 4,
            speed: None,
            until: None,
            wall: None,
            verify: false,
            batch_bytes: 8 << 20,
        }
    }
}

/// What a replay found. While it runs, a progress callback sees the same numbers grow.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct ReplayReport {
    /// Requests served.
    pub requests: u64,
    /// Blocks those requests referred to.
    pub references: u64,
    /// References whose block was present with all blocks before it.
    pub prefix_hits: u64,
    /// `prefix_hits` of `references`; 0 when there were none.
    pub hit_ratio: f64,
    /// Blocks fetched.
    pub fetched_blocks: u64,
    /// Blocks stored.
    pub stored_blocks: u64,
    /// Blocks offered that were present by then, put by another request at the same time.
    pub present_blocks: u64,
    /// Blocks counted as prefix hits that were gone when fetched, by the server's reason.
    pub late_misses: BTreeMap<String, u64>,
    /// Bytes of values sent to the store.
    pub bytes_in: u64,
    /// Bytes of values that came back.
    pub bytes_out: u64,
    /// Whether bytes that came back were checked.
    pub verified: bool,
    /// Failures and wrong bytes.
    pub faults: Faults,
    /// One prefix question.
    pub match_latency: LatencySummary,
    /// One batch of blocks fetched.
    pub get_latency: LatencySummary,
    /// One batch of blocks stored.
    pub put_latency: LatencySummary,
    /// One request, from the question to the last block stored.
    pub request_latency: LatencySummary,
    /// Time of the last request handed out, in the trace.
    pub trace_seconds: f64,
    /// Time that the replay took.
    pub wall_seconds: f64,
    /// How late, at worst, a request was handed out after its time; 0 without a speed.
    pub behind_seconds_max: f64,
}

/// How often the progress callback is called, at most.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);

/// Replays `requests` against `store`; `progress` is called on this thread now and then.
///
/// # Errors
/// The first error of `requests`, after the requests before it were served. Failures of the store
/// are no errors here: they are counted in the report.
pub fn replay<E: Error>(
    store: &dyn BlockStore,
    requests: impl IntoIterator<Item = Result<Request, E>>,
    options: &ReplayOptions,
    progress: &mut dyn FnMut(&ReplayReport),
) -> Result<ReplayReport, E> {
    let connections = options.connections.max(1);
    let tally = Mutex::new(Tally::default());
    let (handed_out, queue) = sync_channel(connections);
    let queue = Mutex::new(queue);
    let begun = Instant::now();
    let mut pacer = Pacer { options, begun, shown: begun, behind_max: Duration::ZERO };
    let last = thread::scope(|scope| {
        for _ in 0..connections {
            scope.spawn(|| Worker::new(store, options).serve_all(&queue, &tally));
        }
        pacer.hand_out(requests, handed_out, &mut || progress(&lock(&tally).report(begun)))
    })?;
    let mut report = lock(&tally).report(begun);
    report.verified = options.verify;
    report.trace_seconds = last.as_secs_f64();
    report.behind_seconds_max = pacer.behind_max.as_secs_f64();
    Ok(report)
}

/// Hands requests out at their times.
struct Pacer<'a> {
    options: &'a ReplayOptions,
    begun: Instant,
    shown: Instant,
    behind_max: Duration,
}

impl Pacer<'_> {
    /// Hands out requests until they end or a limit is reached; answers the last one's trace time.
    fn hand_out<E>(
        &mut self,
        requests: impl IntoIterator<Item = Result<Request, E>>,
        queue: SyncSender<Request>,
        show: &mut dyn FnMut(),
    ) -> Result<Duration, E> {
        let mut last = Duration::ZERO;
        for request in requests {
            let request = request?;
            if self.options.until.is_some_and(|until| request.at > until)
                || !self.wait_for(request.at, show)
            {
                break;
            }
            last = last.max(request.at);
            if queue.send(request).is_err() {
                break; // every worker panicked; joining them will tell
            }
        }
        Ok(last)
    }

    /// Waits until a request at trace time `at` is due; `false` when the wall time is over first.
    fn wait_for(&mut self, at: Duration, show: &mut dyn FnMut()) -> bool {
        let due = self.options.speed.map(|speed| self.begun + at.div_f64(speed));
        let end = self.options.wall.map(|wall| self.begun + wall);
        loop {
            let now = Instant::now();
            if now.duration_since(self.shown) >= PROGRESS_EVERY {
                self.shown = now;
                show();
            }
            if end.is_some_and(|end| now >= end) {
                return false;
            }
            let Some(due) = due else { return true };
            let left = due.saturating_duration_since(now);
            if left.is_zero() {
                self.behind_max = self.behind_max.max(now.duration_since(due));
                return true;
            }
            let left = end.map_or(left, |end| left.min(end.duration_since(now)));
            thread::sleep(left.min(PROGRESS_EVERY));
        }
    }
}

/// Serves requests on one connection.
struct Worker<'a> {
    store: &'a dyn BlockStore,
    options: &'a ReplayOptions,
    keys: Keys,
    /// Room for one batch.
    bytes: Vec<u8>,
    /// Blocks per batch.
    batch: usize,
}

/// Numbers that all workers add to, once a request.
#[derive(Default)]
struct Tally {
    report: ReplayReport,
    r#match: Latency,
    get: Latency,
    put: Latency,
    request: Latency,
}

impl<'a> Worker<'a> {
    fn new(store: &'a dyn BlockStore, options: &'a ReplayOptions) -> Worker<'a> {
        let block_bytes = options.block_bytes.max(1);
        let batch = (options.batch_bytes / block_bytes).max(1);
        let keys = Keys::new(&options.label, block_bytes);
        Worker { store, options, keys, bytes: vec![0; batch * block_bytes], batch }
    }

    fn serve_all(&mut self, queue: &Mutex<Receiver<Request>>, tally: &Mutex<Tally>) {
        loop {
            let next = lock(queue).recv();
            let Ok(request) = next else { return };
            let served = self.serve(&request);
            lock(tally).merge(served);
        }
    }

    /// Prefix question, onboard, offload.
    fn serve(&mut self, request: &Request) -> Tally {
        let mut tally = Tally::default();
        let begun = Instant::now();
        let keys: Vec<Vec<u8>> = request.blocks.iter().map(|block| self.keys.key(*block)).collect();
        let keys: Vec<&[u8]> = keys.iter().map(Vec::as_slice).collect();
        let hits = match self.store.match_prefix(&keys) {
            Ok(hits) => hits.min(keys.len()),
            Err(failure) => {
                tally.report.faults.failed(&failure);
                0
            }
        };
        tally.r#match.record(begun.elapsed());
        let onboarded = self.onboard(&request.blocks[..hits], &keys[..hits], &mut tally);
        self.offload(&request.blocks[onboarded..], &keys[onboarded..], &mut tally);
        tally.request.record(begun.elapsed());
        tally.report.requests = 1;
        tally.report.references = keys.len() as u64;
        tally.report.prefix_hits = hits as u64;
        tally
    }

    /// Fetches blocks in order; answers how many came before the first that did not.
    fn onboard(&mut self, blocks: &[BlockHash], keys: &[&[u8]], tally: &mut Tally) -> usize {
        let mut onboarded = 0;
        for (blocks, keys) in blocks.chunks(self.batch).zip(keys.chunks(self.batch)) {
            let rooms = self.bytes.chunks_exact_mut(self.options.block_bytes);
            let mut gets: Vec<GetBlock<'_>> =
                keys.iter().zip(rooms).map(|(key, into)| GetBlock { key, into }).collect();
            let begun = Instant::now();
            let answers = self.store.get(&mut gets);
            tally.get.record(begun.elapsed());
            let report = &mut tally.report;
            let mut all = true;
            for ((answer, get), block) in answers.iter().zip(&gets).zip(blocks) {
                match answer {
                    Ok(Fetched::Hit(length)) => {
                        report.fetched_blocks += 1;
                        report.bytes_out += length;
                        onboarded += usize::from(all);
                        if self.options.verify {
                            report.faults.verify(*block, *length, get.into);
                        }
                        continue;
                    }
                    Ok(Fetched::Miss(reason)) => {
                        *report.late_misses.entry((*reason).to_owned()).or_default() += 1;
                    }
                    Err(failure) => report.faults.failed(failure),
                }
                all = false;
            }
            if !all {
                break;
            }
        }
        onboarded
    }

    /// Stores blocks that were missing.
    fn offload(&mut self, blocks: &[BlockHash], keys: &[&[u8]], tally: &mut Tally) {
        let block_bytes = self.options.block_bytes;
        for (blocks, keys) in blocks.chunks(self.batch).zip(keys.chunks(self.batch)) {
            for (block, value) in blocks.iter().zip(self.bytes.chunks_exact_mut(block_bytes)) {
                values::fill(*block, 0, value);
            }
            let rooms = self.bytes.chunks_exact(block_bytes);
            let puts: Vec<PutBlock<'_>> =
                keys.iter().zip(rooms).map(|(key, value)| PutBlock { key, value }).collect();
            let begun = Instant::now();
            let answers = self.store.put(&puts, Present::Keep);
            tally.put.record(begun.elapsed());
            let report = &mut tally.report;
            for answer in answers {
                match answer {
                    Ok(Stored::New) => {
                        report.stored_blocks += 1;
                        report.bytes_in += block_bytes as u64;
                    }
                    Ok(Stored::Present) => report.present_blocks += 1,
                    Err(failure) => report.faults.failed(&failure),
                }
            }
        }
    }
}

impl Tally {
    fn merge(&mut self, one: Tally) {
        let (all, one_report) = (&mut self.report, one.report);
        all.requests += one_report.requests;
        all.references += one_report.references;
        all.prefix_hits += one_report.prefix_hits;
        all.fetched_blocks += one_report.fetched_blocks;
        all.stored_blocks += one_report.stored_blocks;
        all.present_blocks += one_report.present_blocks;
        all.bytes_in += one_report.bytes_in;
        all.bytes_out += one_report.bytes_out;
        for (reason, count) in one_report.late_misses {
            *all.late_misses.entry(reason).or_default() += count;
        }
        all.faults.merge(one_report.faults);
        self.r#match.merge(&one.r#match);
        self.get.merge(&one.get);
        self.put.merge(&one.put);
        self.request.merge(&one.request);
    }

    fn report(&self, begun: Instant) -> ReplayReport {
        let mut report = self.report.clone();
        report.hit_ratio = report.prefix_hits as f64 / report.references.max(1) as f64;
        report.match_latency = self.r#match.summary();
        report.get_latency = self.get.summary();
        report.put_latency = self.put.summary();
        report.request_latency = self.request.summary();
        report.wall_seconds = begun.elapsed().as_secs_f64();
        report
    }
}

/// Locks, whatever a thread that panicked left: its panic ends the replay when it is joined.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::convert::Infallible;

    use super::*;
    use crate::conversations::{ConversationOptions, Conversations};
    use crate::memory::MemoryStore;
    use crate::store::FailureKind;

    fn requests(rows: &[(u64, &[u64])]) -> Vec<Result<Request, Infallible>> {
        let request = |&(ms, hashes): &(u64, &[u64])| Request {
            at: Duration::from_millis(ms),
            input_tokens: 0,
            output_tokens: 0,
            blocks: hashes.iter().copied().map(BlockHash).collect(),
        };
        rows.iter().map(request).map(Ok).collect()
    }

    fn one_at_a_time() -> ReplayOptions {
        ReplayOptions {
            block_bytes: 1000,
            batch_bytes: 2500,
            connections: 1,
            verify: true,
            ..ReplayOptions::default()
        }
    }

    fn run(store: &MemoryStore, rows: &[(u64, &[u64])], options: &ReplayOptions) -> ReplayReport {
        replay(store, requests(rows), options, &mut |_| ()).unwrap()
    }

    #[test]
    fn prefixes_are_onboarded_and_the_rest_is_offloaded() {
        let store = MemoryStore::default();
        let rows: [(u64, &[u64]); 3] = [(0, &[1, 2, 3]), (1, &[1, 2, 3, 4, 5]), (2, &[2, 1, 9])];
        let report = run(&store, &rows, &one_at_a_time());
        assert_eq!((report.requests, report.references), (3, 11));
        // The third request has block 2 present, then block 1, but 9 not: a prefix of two.
        assert_eq!((report.prefix_hits, report.fetched_blocks), (5, 5));
        assert_eq!((report.stored_blocks, report.present_blocks), (6, 0));
        assert_eq!((report.bytes_in, report.bytes_out), (6000, 5000));
        assert!((report.hit_ratio - 5.0 / 11.0).abs() < 1e-9);
        assert_eq!(report.faults, Faults::default());
        assert_eq!(report.match_latency.count, 3);
        assert_eq!(report.get_latency.count, 2 + 1, "two blocks a batch");
        assert_eq!(report.put_latency.count, 2 + 1 + 1);
        assert_eq!(report.request_latency.count, 3);
        assert_eq!(store.blocks().len(), 6);
    }

    #[test]
    fn blocks_beyond_a_gap_are_offered_and_found_present() {
        let store = MemoryStore::default();
        let report = run(&store, &[(0, &[1, 2, 3]), (0, &[7, 2, 3])], &one_at_a_time());
        assert_eq!((report.prefix_hits, report.present_blocks), (0, 2));
    }

    #[test]
    fn wrong_bytes_are_counted_when_verified() {
        let store = MemoryStore::default();
        let options = one_at_a_time();
        run(&store, &[(0, &[1, 2])], &options);
        store.flip_bit(&Keys::new("replay", 1000).key(BlockHash(2)), 999);
        let report = run(&store, &[(0, &[1, 2])], &options);
        assert_eq!((report.faults.wrong_blocks, report.faults.wrong_bytes), (1, 1));
        assert_eq!(report.faults.first_wrong.unwrap().block, BlockHash(2));
        let blind = ReplayOptions { verify: false, ..options };
        assert_eq!(run(&store, &[(0, &[1, 2])], &blind).faults.wrong_blocks, 0);
    }

    #[test]
    fn failures_are_counted_and_the_replay_goes_on() {
        let store = MemoryStore::default();
        store.fail_puts(true);
        let report = run(&store, &[(0, &[1, 2]), (1, &[3])], &one_at_a_time());
        assert_eq!(report.requests, 2);
        assert_eq!(report.faults.failures[&FailureKind::Busy], 3);
        assert_eq!(report.bytes_in, 0);
    }

    #[test]
    fn a_replay_stops_at_its_trace_time_and_paces_by_its_speed() {
        let store = MemoryStore::default();
        let rows: [(u64, &[u64]); 4] = [(0, &[1]), (200, &[2]), (400, &[3]), (401, &[4])];
        let until = Some(Duration::from_millis(400));
        let options = ReplayOptions { speed: Some(10.0), until, ..one_at_a_time() };
        let report = run(&store, &rows, &options);
        assert_eq!(report.requests, 3);
        assert!((report.trace_seconds - 0.4).abs() < 1e-9);
        assert!(report.wall_seconds >= 0.04, "{}", report.wall_seconds);
    }

    #[test]
    fn a_replay_stops_at_its_wall_time_while_it_waits_for_a_request() {
        let store = MemoryStore::default();
        let wall = Some(Duration::from_millis(30));
        let options = ReplayOptions { speed: Some(1.0), wall, ..one_at_a_time() };
        let report = run(&store, &[(0, &[1]), (3_600_000, &[2])], &options);
        assert_eq!(report.requests, 1);
        assert!(report.wall_seconds < 1800.0);
    }

    #[test]
    fn an_error_of_the_trace_ends_the_replay_after_what_came_before_it() {
        let store = MemoryStore::default();
        let rows = requests(&[(0, &[1, 2])]).into_iter().map(|row| row.map_err(|no| match no {}));
        let rows = rows.chain([Err(std::io::Error::other("torn page"))]);
        let error = replay(&store, rows, &one_at_a_time(), &mut |_| ()).unwrap_err();
        assert_eq!(error.to_string(), "torn page");
        assert_eq!(store.blocks().len(), 2);
    }

    #[test]
    fn conversations_on_several_connections_find_what_they_stored() {
        let store = MemoryStore::default();
        let options = ConversationOptions { conversations: 30, ..ConversationOptions::default() };
        let all: Vec<Request> = Conversations::new(options).collect();
        let distinct: HashSet<BlockHash> =
            all.iter().flat_map(|request| request.blocks.clone()).collect();
        let options = ReplayOptions { connections: 3, ..one_at_a_time() };
        let mut shown = 0;
        let first = all.iter().cloned().map(Ok::<_, Infallible>);
        let report = replay(&store, first, &options, &mut |_| shown += 1).unwrap();
        assert_eq!(report.requests as usize, all.len());
        assert_eq!(store.blocks().len(), distinct.len());
        assert!(report.prefix_hits > report.references / 4, "{report:?}");
        assert_eq!(report.faults, Faults::default());
        let again = all.into_iter().map(Ok::<_, Infallible>);
        let again = replay(&store, again, &options, &mut |_| ()).unwrap();
        assert_eq!(again.hit_ratio, 1.0);
        assert_eq!((again.stored_blocks, again.bytes_in), (0, 0));
        let json = serde_json::to_string(&again).unwrap();
        assert_eq!(serde_json::from_str::<ReplayReport>(&json).unwrap().requests, again.requests);
    }
}
