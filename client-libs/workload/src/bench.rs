//! Drives one operation as hard as it goes and says what that cost.
//!
//! Values move between the store and client memory that is cold: each thread walks through a region
//! larger than the processor's caches, so that no copy is flattered by memory that is hot. What an
//! operation costs is told in CPU time of this process and of the servers, beside the throughput.

use std::num::NonZeroUsize;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::block::{BlockHash, Keys};
use crate::latency::{Latency, LatencySummary};
use crate::store::{BlockStore, Failure, Fetched, GetBlock, Present, PutBlock, Stored};
use crate::tally::Faults;
use crate::values;

/// What is measured.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    /// Store blocks, new ones or in place of old ones.
    Put,
    /// Fetch whole blocks that are there.
    Get,
    /// Ask for blocks that are there.
    Exists,
}

/// How several operations are kept in flight on behalf of one connection.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Depth {
    /// One thread sends batches of this many operations.
    Batch(NonZeroUsize),
    /// This many threads send one operation at a time; the client needs as many connections.
    Threads(NonZeroUsize),
}

/// How a bench runs.
#[derive(Clone, Debug)]
pub struct BenchOptions {
    /// What is measured.
    pub operation: Operation,
    /// Bytes of one value, 1 to 64 MiB.
    pub value_bytes: NonZeroUsize,
    /// Operations in flight per connection.
    pub depth: Depth,
    /// Connections.
    pub connections: NonZeroUsize,
    /// How long is measured.
    pub duration: Duration,
    /// Bytes that all keys together hold on the server. Puts go round in it and replace.
    pub stored_bytes: u64,
    /// Bytes of client memory that values are sent from or received into; make it several times
    /// the last-level cache.
    pub memory_bytes: usize,
    /// Check every byte that comes back. Costs client CPU time, which is then part of the result.
    pub verify: bool,
    /// What the keys begin with.
    pub label: String,
}

/// What a bench found.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct BenchReport {
    /// What was measured.
    pub operation: Operation,
    /// Bytes of one value.
    pub value_bytes: usize,
    /// Operations in flight per connection.
    pub depth: usize,
    /// Connections.
    pub connections: usize,
    /// Operations done well.
    pub operations: u64,
    /// Operations that found nothing: gets of blocks evicted meanwhile, keys that are not there.
    pub misses: u64,
    /// Bytes of values moved.
    pub bytes: u64,
    /// Time measured.
    pub seconds: f64,
    /// Throughput in values.
    pub gib_per_second: f64,
    /// Throughput in operations.
    pub operations_per_second: f64,
    /// One call: a batch of `depth` operations, or a single one when threads make the depth.
    pub latency: LatencySummary,
    /// CPU time of this process, user and system.
    pub client_cpu_seconds: f64,
    /// CPU time of all servers, where they say.
    pub server_cpu_seconds: Option<f64>,
    /// Client CPU time per GiB moved; absent when nothing moved.
    pub client_cpu_seconds_per_gib: Option<f64>,
    /// Server CPU time per GiB moved; absent when nothing moved or servers do not say.
    pub server_cpu_seconds_per_gib: Option<f64>,
    /// Failures and wrong bytes.
    pub faults: Faults,
}

/// Why a bench could not be run.
#[derive(Debug, Error)]
pub enum BenchError {
    /// The blocks to be read could not be stored beforehand.
    #[error("cannot store the blocks to be read: {what}")]
    Prepare {
        /// The first failure.
        what: String,
    },
    /// Servers could not be asked for their CPU time.
    #[error("cannot ask the servers for their CPU time")]
    ServerCpu(#[source] Failure),
    /// The system does not tell this process's CPU time.
    #[error("cannot read this process's CPU time")]
    ClientCpu(#[source] nix::Error),
}

impl BenchOptions {
    fn threads(&self) -> usize {
        match self.depth {
            Depth::Batch(_) => self.connections.get(),
            Depth::Threads(depth) => self.connections.get() * depth.get(),
        }
    }

    /// Operations per call.
    fn batch(&self) -> usize {
        match self.depth {
            Depth::Batch(depth) => depth.get(),
            Depth::Threads(_) => 1,
        }
    }

    /// Keys of one thread: a whole number of batches.
    fn keys_per_thread(&self) -> usize {
        let wanted = self.stored_bytes / self.value_bytes.get() as u64 / self.threads() as u64;
        (wanted as usize).next_multiple_of(self.batch()).max(self.batch())
    }

    /// Values that one thread's memory has room for: a whole number of batches, and no more than
    /// there are keys.
    fn rooms_per_thread(&self) -> usize {
        let wanted = self.memory_bytes / self.value_bytes.get() / self.threads();
        let rooms = wanted.next_multiple_of(self.batch()).max(self.batch());
        rooms.min(self.keys_per_thread())
    }
}

/// Runs a bench: stores what is to be read, warms up, measures.
///
/// # Errors
/// When the blocks to be read cannot be stored, or CPU time cannot be learnt. Failures while
/// measuring are counted in the report.
pub fn bench(store: &dyn BlockStore, options: &BenchOptions) -> Result<BenchReport, BenchError> {
    let threads = options.threads();
    // All meet three times: prepared, off, done.
    let meeting = Barrier::new(threads + 1);
    thread::scope(|scope| {
        let drivers: Vec<_> = (0..threads)
            .map(|number| {
                let meeting = &meeting;
                scope.spawn(move || {
                    let mut driver = Driver::new(store, options, number);
                    let ready = driver.prepare();
                    meeting.wait();
                    meeting.wait();
                    if ready.is_ok() {
                        driver.run(Instant::now() + options.duration);
                    }
                    meeting.wait();
                    ready.map(|()| driver.counts)
                })
            })
            .collect();
        meeting.wait();
        let before = CpuTimes::read(store);
        let begun = Instant::now();
        meeting.wait();
        meeting.wait();
        let took = begun.elapsed();
        let after = CpuTimes::read(store);
        let mut counts = Counts::default();
        for driver in drivers {
            let one = driver.join().expect("a thread of the bench panicked");
            counts.merge(one.map_err(|what| BenchError::Prepare { what })?);
        }
        Ok(counts.report(options, took, &before?, &after?))
    })
}

/// CPU time used so far.
struct CpuTimes {
    client: Duration,
    server: Option<Duration>,
}

impl CpuTimes {
    fn read(store: &dyn BlockStore) -> Result<CpuTimes, BenchError> {
        let server = store.server_cpu().map_err(BenchError::ServerCpu)?;
        let usage = getrusage(UsageWho::RUSAGE_SELF).map_err(BenchError::ClientCpu)?;
        let client = duration(usage.user_time()) + duration(usage.system_time());
        Ok(CpuTimes { client, server })
    }
}

fn duration(time: TimeVal) -> Duration {
    Duration::new(time.tv_sec().unsigned_abs(), time.tv_usec().unsigned_abs() as u32 * 1000)
}

#[derive(Default)]
struct Counts {
    operations: u64,
    misses: u64,
    bytes: u64,
    latency: Latency,
    faults: Faults,
}

/// One thread: its own keys, its own memory.
struct Driver<'a> {
    store: &'a dyn BlockStore,
    options: &'a BenchOptions,
    keys: Vec<Vec<u8>>,
    /// Rooms for values; the value of key `k` is that of the block named `first + k % rooms`.
    memory: Vec<u8>,
    first: u64,
    rooms: usize,
    next: usize,
    counts: Counts,
}

impl<'a> Driver<'a> {
    fn new(store: &'a dyn BlockStore, options: &'a BenchOptions, number: usize) -> Driver<'a> {
        let (count, rooms) = (options.keys_per_thread(), options.rooms_per_thread());
        let first = (number * count) as u64;
        let names = Keys::new(&options.label, options.value_bytes.get());
        let keys = (first..).take(count).map(|key| names.key(BlockHash(key))).collect();
        let mut memory = vec![0; rooms * options.value_bytes.get()];
        for (room, value) in memory.chunks_exact_mut(options.value_bytes.get()).enumerate() {
            values::fill(BlockHash(first + room as u64), 0, value);
        }
        let counts = Counts::default();
        Driver { store, options, keys, memory, first, rooms, next: 0, counts }
    }

    /// Stores what is to be read, or, before puts, connects by one question.
    fn prepare(&mut self) -> Result<(), String> {
        if self.options.operation == Operation::Put {
            self.exists();
        } else {
            for _ in 0..self.keys.len() / self.options.batch() {
                self.put();
            }
        }
        let counts = std::mem::take(&mut self.counts);
        self.next = 0;
        counts.faults.first_failure.map_or(Ok(()), Err)
    }

    fn run(&mut self, until: Instant) {
        loop {
            let begun = Instant::now();
            if begun >= until {
                return;
            }
            match self.options.operation {
                Operation::Put => self.put(),
                Operation::Get => self.get(),
                Operation::Exists => self.exists(),
            }
            self.counts.latency.record(begun.elapsed());
        }
    }

    /// The keys of the next batch and where the first of their rooms is.
    fn advance(&mut self) -> (std::ops::Range<usize>, usize) {
        let keys = self.next..self.next + self.options.batch();
        self.next = if keys.end == self.keys.len() { 0 } else { keys.end };
        let room = keys.start % self.rooms;
        (keys, room * self.options.value_bytes.get())
    }

    fn put(&mut self) {
        let (keys, at) = self.advance();
        let rooms = self.memory[at..].chunks_exact(self.options.value_bytes.get());
        let puts: Vec<PutBlock<'_>> =
            self.keys[keys].iter().zip(rooms).map(|(key, value)| PutBlock { key, value }).collect();
        for answer in self.store.put(&puts, Present::Replace) {
            match answer {
                Ok(Stored::New | Stored::Present) => {
                    self.counts.operations += 1;
                    self.counts.bytes += self.options.value_bytes.get() as u64;
                }
                Err(failure) => self.counts.faults.failed(&failure),
            }
        }
    }

    fn get(&mut self) {
        let (keys, at) = self.advance();
        let first = keys.start;
        let rooms = self.memory[at..].chunks_exact_mut(self.options.value_bytes.get());
        let mut gets: Vec<GetBlock<'_>> =
            self.keys[keys].iter().zip(rooms).map(|(key, into)| GetBlock { key, into }).collect();
        let answers = self.store.get(&mut gets);
        for (index, (answer, get)) in answers.into_iter().zip(&gets).enumerate() {
            match answer {
                Ok(Fetched::Hit(length)) => {
                    self.counts.operations += 1;
                    self.counts.bytes += length;
                    if self.options.verify {
                        let room = (first + index) % self.rooms;
                        let block = BlockHash(self.first + room as u64);
                        self.counts.faults.verify(block, length, get.into);
                    }
                }
                Ok(Fetched::Miss(_)) => self.counts.misses += 1,
                Err(failure) => self.counts.faults.failed(&failure),
            }
        }
    }

    fn exists(&mut self) {
        let (keys, _) = self.advance();
        let keys: Vec<&[u8]> = self.keys[keys].iter().map(Vec::as_slice).collect();
        match self.store.exists(&keys) {
            Ok(present) => {
                let present = present.into_iter().filter(|present| *present).count();
                self.counts.operations += keys.len() as u64;
                self.counts.misses += (keys.len() - present) as u64;
            }
            Err(failure) => self.counts.faults.failed(&failure),
        }
    }
}

impl Counts {
    fn merge(&mut self, other: Counts) {
        self.operations += other.operations;
        self.misses += other.misses;
        self.bytes += other.bytes;
        self.latency.merge(&other.latency);
        self.faults.merge(other.faults);
    }

    fn report(
        self,
        options: &BenchOptions,
        took: Duration,
        before: &CpuTimes,
        after: &CpuTimes,
    ) -> BenchReport {
        let seconds = took.as_secs_f64();
        let gib = self.bytes as f64 / f64::from(1 << 30);
        let per_gib = |seconds: f64| (self.bytes > 0).then(|| seconds / gib);
        let client_cpu_seconds = after.client.saturating_sub(before.client).as_secs_f64();
        let server_cpu_seconds = match (before.server, after.server) {
            (Some(before), Some(after)) => Some(after.saturating_sub(before).as_secs_f64()),
            _ => None,
        };
        let (Depth::Batch(depth) | Depth::Threads(depth)) = options.depth;
        BenchReport {
            operation: options.operation,
            value_bytes: options.value_bytes.get(),
            depth: depth.get(),
            connections: options.connections.get(),
            operations: self.operations,
            misses: self.misses,
            bytes: self.bytes,
            seconds,
            gib_per_second: gib / seconds,
            operations_per_second: self.operations as f64 / seconds,
            latency: self.latency.summary(),
            client_cpu_seconds,
            server_cpu_seconds,
            client_cpu_seconds_per_gib: per_gib(client_cpu_seconds),
            server_cpu_seconds_per_gib: server_cpu_seconds.and_then(per_gib),
            faults: self.faults,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::MemoryStore;

    fn options(operation: Operation, depth: Depth) -> BenchOptions {
        BenchOptions {
            operation,
            value_bytes: NonZeroUsize::new(5000).unwrap(),
            depth,
            connections: NonZeroUsize::new(2).unwrap(),
            duration: Duration::from_millis(20),
            stored_bytes: 200_000,
            memory_bytes: 60_000,
            verify: true,
            label: "bench".to_owned(),
        }
    }

    fn batch(depth: usize) -> Depth {
        Depth::Batch(NonZeroUsize::new(depth).unwrap())
    }

    fn assert_sound(report: &BenchReport) {
        assert!(report.operations > 0 && report.seconds >= 0.02, "{report:?}");
        assert_eq!((report.misses, &report.faults), (0, &Faults::default()));
        assert!(report.client_cpu_seconds > 0.0, "{report:?}");
        assert!(report.server_cpu_seconds.unwrap() > 0.0, "{report:?}");
        assert!(report.latency.p50_us <= report.latency.p999_us);
    }

    #[test]
    fn puts_go_round_in_their_keys_and_store_what_they_should() {
        let store = MemoryStore::default();
        let mut options = options(Operation::Put, batch(4));
        // A busy machine may need longer for both threads to come round.
        let report = loop {
            let report = bench(&store, &options).unwrap();
            if store.blocks().len() >= 40 || options.duration > Duration::from_secs(10) {
                break report;
            }
            options.duration *= 4;
        };
        assert_sound(&report);
        assert_eq!(report.bytes, report.operations * 5000);
        assert_eq!(report.latency.count * 4, report.operations);
        assert_eq!(store.blocks().len(), 40, "20 keys a thread, all of them used");
        assert!((report.client_cpu_seconds_per_gib.unwrap()) > 0.0);
    }

    #[test]
    fn gets_check_the_bytes_that_preparation_stored() {
        for depth in [batch(1), batch(3), Depth::Threads(NonZeroUsize::new(2).unwrap())] {
            let store = MemoryStore::default();
            let report = bench(&store, &options(Operation::Get, depth)).unwrap();
            assert_sound(&report);
            assert_eq!(report.bytes, report.operations * 5000);
        }
    }

    #[test]
    fn exists_asks_in_batches_and_moves_no_values() {
        let store = MemoryStore::default();
        let report = bench(&store, &options(Operation::Exists, batch(5))).unwrap();
        assert_sound(&report);
        assert_eq!((report.bytes, report.client_cpu_seconds_per_gib), (0, None));
        assert_eq!(report.latency.count * 5, report.operations);
    }

    #[test]
    fn one_value_larger_than_all_limits_still_runs() {
        let tiny =
            BenchOptions { stored_bytes: 1, memory_bytes: 1, ..options(Operation::Get, batch(2)) };
        assert_sound(&bench(&MemoryStore::default(), &tiny).unwrap());
    }

    #[test]
    fn blocks_that_cannot_be_stored_beforehand_are_an_error() {
        let store = MemoryStore::default();
        store.fail_puts(true);
        let error = bench(&store, &options(Operation::Get, batch(1))).unwrap_err();
        assert!(error.to_string().ends_with("told to fail"), "{error}");
        let report = bench(&store, &options(Operation::Put, batch(1))).unwrap();
        assert_eq!(report.operations, 0);
        assert!(report.faults.failed_operations() > 0);
    }
}
