//! What the calls of a client have done, counted as they end.
//!
//! Plug-ins show these to whoever watches the engine: how often the store was asked, how often it knew, how
//! many bytes it spared the engine, and how long that took.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::error::ClientError;
use crate::plan::Saving;

/// What a call asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Values stored.
    Put,
    /// Values read.
    Get,
    /// Keys looked up one by one.
    Exists,
    /// Keys looked up as a run.
    MatchPrefix,
    /// Keys removed.
    Delete,
    /// Blocks kept readable.
    Lease,
    /// Leases given back.
    Release,
    /// Hints given.
    Hint,
}

impl Operation {
    /// All of them, in the order in which they are counted.
    pub const ALL: [Operation; 8] = [
        Operation::Put,
        Operation::Get,
        Operation::Exists,
        Operation::MatchPrefix,
        Operation::Delete,
        Operation::Lease,
        Operation::Release,
        Operation::Hint,
    ];

    /// Its name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Operation::Put => "put",
            Operation::Get => "get",
            Operation::Exists => "exists",
            Operation::MatchPrefix => "match_prefix",
            Operation::Delete => "delete",
            Operation::Lease => "lease",
            Operation::Release => "release",
            Operation::Hint => "hint",
        }
    }
}

/// How long things took, in steps of two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Latency {
    /// All of them together.
    pub total: Duration,
    /// How many took less than [`Latency::bound`] of their place, and not less than the one before; the last
    /// has no bound.
    pub buckets: [u64; Latency::BUCKETS],
}

impl Latency {
    /// 16 µs, doubled twenty times to 17 s, and what is longer.
    pub const BUCKETS: usize = 22;

    /// The bound of a bucket; `None` for the last, which has none.
    pub fn bound(bucket: usize) -> Option<Duration> {
        (bucket + 1 < Latency::BUCKETS).then(|| Duration::from_micros(16 << bucket))
    }

    fn bucket(time: Duration) -> usize {
        let sixteenths = time.as_micros() >> 4;
        ((u128::BITS - sixteenths.leading_zeros()) as usize).min(Latency::BUCKETS - 1)
    }
}

/// What calls of one kind have done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Calls.
    pub calls: u64,
    /// Keys in them.
    pub keys: u64,
    /// Keys that were there: the hits of gets and lookups, what a put found present.
    pub found: u64,
    /// Keys that were not there: misses, what a put stored.
    pub missing: u64,
    /// Keys that have an error for an answer.
    pub errors: u64,
    /// Bytes of values moved.
    pub bytes: u64,
    /// How long the calls took.
    pub latency: Latency,
}

/// What a client has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counters {
    operations: [Tally; Operation::ALL.len()],
    /// How long batches stood in queues before a worker took them.
    pub waits: Latency,
    /// What coalescing descriptors has saved.
    pub saving: Saving,
}

impl Counters {
    /// Those of one kind of call.
    pub fn of(&self, operation: Operation) -> &Tally {
        &self.operations[operation as usize]
    }
}

/// Whether a key was there, and how many bytes moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    Yes(u64),
    No(u64),
}

/// The counters as they are counted, by many threads.
#[derive(Default)]
pub(crate) struct Meter {
    operations: [Cells; Operation::ALL.len()],
    waits: Clock,
    /// In the order of [`Saving`].
    saving: [AtomicU64; 4],
}

#[derive(Default)]
struct Cells {
    calls: AtomicU64,
    keys: AtomicU64,
    found: AtomicU64,
    missing: AtomicU64,
    errors: AtomicU64,
    bytes: AtomicU64,
    latency: Clock,
}

#[derive(Default)]
struct Clock {
    nanos: AtomicU64,
    buckets: [AtomicU64; Latency::BUCKETS],
}

fn add(cell: &AtomicU64, count: u64) {
    if count > 0 {
        cell.fetch_add(count, Ordering::Relaxed);
    }
}

fn read(cell: &AtomicU64) -> u64 {
    cell.load(Ordering::Relaxed)
}

impl Clock {
    fn note(&self, time: Duration) {
        add(&self.nanos, u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
        add(&self.buckets[Latency::bucket(time)], 1);
    }

    fn read(&self) -> Latency {
        let buckets = std::array::from_fn(|at| read(&self.buckets[at]));
        Latency { total: Duration::from_nanos(read(&self.nanos)), buckets }
    }
}

impl Meter {
    /// Counts a call that has just ended; `found` says of the place and the answer of each key that has one
    /// whether the key was there.
    pub fn note<T>(
        &self,
        operation: Operation,
        began: Instant,
        results: &[Result<T, ClientError>],
        found: impl Fn(usize, &T) -> Found,
    ) {
        let (mut there, mut missing, mut errors, mut bytes) = (0, 0, 0, 0);
        for (at, result) in results.iter().enumerate() {
            match result.as_ref().map(|answer| found(at, answer)) {
                Ok(Found::Yes(moved)) => (there, bytes) = (there + 1, bytes + moved),
                Ok(Found::No(moved)) => (missing, bytes) = (missing + 1, bytes + moved),
                Err(_) => errors += 1,
            }
        }
        let cells = &self.operations[operation as usize];
        add(&cells.calls, 1);
        add(&cells.keys, results.len() as u64);
        add(&cells.found, there);
        add(&cells.missing, missing);
        add(&cells.errors, errors);
        add(&cells.bytes, bytes);
        cells.latency.note(began.elapsed());
    }

    /// Counts a run of keys that was looked up; `matched` of them are there, `None` after an error.
    pub fn note_prefix(&self, began: Instant, keys: usize, matched: Option<usize>) {
        let keys = keys as u64;
        let cells = &self.operations[Operation::MatchPrefix as usize];
        add(&cells.calls, 1);
        add(&cells.keys, keys);
        match matched {
            Some(matched) => {
                add(&cells.found, matched as u64);
                add(&cells.missing, keys - matched as u64);
            }
            None => add(&cells.errors, keys),
        }
        cells.latency.note(began.elapsed());
    }

    /// Counts how long a batch stood in a queue.
    pub fn note_wait(&self, time: Duration) {
        self.waits.note(time);
    }

    /// Counts what a plan saves.
    pub fn note_plan(&self, saving: &Saving) {
        let Saving { descriptors, operations, bytes_wanted, bytes_moved } = *saving;
        let counts = [descriptors, operations, bytes_wanted, bytes_moved];
        self.saving.iter().zip(counts).for_each(|(cell, count)| add(cell, count));
    }

    /// The counters now. They are read one by one: a call that ends meanwhile may be in some of them only.
    pub fn read(&self) -> Counters {
        let tally = |at: usize| {
            let cells = &self.operations[at];
            Tally {
                calls: read(&cells.calls),
                keys: read(&cells.keys),
                found: read(&cells.found),
                missing: read(&cells.missing),
                errors: read(&cells.errors),
                bytes: read(&cells.bytes),
                latency: cells.latency.read(),
            }
        };
        let [descriptors, operations, bytes_wanted, bytes_moved] =
            std::array::from_fn(|at| read(&self.saving[at]));
        let saving = Saving { descriptors, operations, bytes_wanted, bytes_moved };
        Counters { operations: std::array::from_fn(tally), waits: self.waits.read(), saving }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_counted_below_the_bound_of_its_bucket() {
        let us = Duration::from_micros;
        let places = [us(0), us(15), us(16), us(31), us(32), us(1000)].map(Latency::bucket);
        assert_eq!(places, [0, 0, 1, 1, 2, 6]);
        for (bucket, next) in (0..Latency::BUCKETS - 1).zip(1..) {
            let bound = Latency::bound(bucket).expect("all but the last have one");
            assert_eq!(Latency::bucket(bound - us(1)), bucket);
            assert_eq!(Latency::bucket(bound), next);
        }
        assert_eq!(Latency::bound(Latency::BUCKETS - 1), None);
        assert_eq!(Latency::bucket(Duration::MAX), Latency::BUCKETS - 1);
    }

    #[test]
    fn answers_are_counted_by_what_they_are() {
        let meter = Meter::default();
        let answers = [Ok(5), Ok(0), Err(ClientError::EmptyValue), Ok(7)];
        meter.note(Operation::Get, Instant::now(), &answers, |_, bytes| match bytes {
            0 => Found::No(0),
            bytes => Found::Yes(*bytes),
        });
        meter.note_prefix(Instant::now(), 10, Some(4));
        meter.note_prefix(Instant::now(), 10, None);
        let counters = meter.read();
        let get = counters.of(Operation::Get);
        assert_eq!((get.calls, get.keys, get.found, get.missing), (1, 4, 2, 1));
        assert_eq!((get.errors, get.bytes, get.latency.buckets.iter().sum::<u64>()), (1, 12, 1));
        let lookup = counters.of(Operation::MatchPrefix);
        assert_eq!((lookup.calls, lookup.keys, lookup.found), (2, 20, 4));
        assert_eq!((lookup.missing, lookup.errors), (6, 10));
        assert_eq!(*counters.of(Operation::Put), Tally::default());
    }
}
