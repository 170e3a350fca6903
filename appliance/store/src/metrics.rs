//! Counters and histograms that the store's reactor writes and anyone may read.
//!
//! One writer, many readers: a relaxed load and store is enough and costs about a nanosecond.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::scrub::ScrubCounters;

/// A counter with one writing thread.
#[derive(Default, Debug)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds one.
    pub fn bump(&self) {
        self.add(1);
    }

    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// Sets a gauge.
    pub fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    /// Reads it, from any thread.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Buckets of a [`Histogram`]: powers of two from 1 µs to about 67 s, and one for the rest.
pub const BUCKETS: usize = 28;

/// A histogram of waits, in powers of two of microseconds. One writing thread.
#[derive(Debug)]
pub struct Histogram {
    buckets: [Counter; BUCKETS],
    sum_ns: Counter,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: std::array::from_fn(|_| Counter::default()), sum_ns: Counter::default() }
    }
}

impl Histogram {
    /// Notes one wait.
    pub fn record(&self, wait: Duration) {
        let ns = u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX);
        let micros = ns.div_ceil(1000).max(1);
        let bucket = (64 - (micros - 1).leading_zeros()) as usize;
        self.buckets[bucket.min(BUCKETS - 1)].bump();
        self.sum_ns.add(ns);
    }

    /// Upper bound in seconds and cumulative count per bucket (the last is unbounded), the sum in
    /// seconds, and the count.
    pub fn snapshot(&self) -> (Vec<(f64, u64)>, f64, u64) {
        let mut total = 0;
        let bounds = self.buckets.iter().enumerate().map(|(i, bucket)| {
            total += bucket.get();
            let bound = if i + 1 == BUCKETS { f64::INFINITY } else { (1u64 << i) as f64 * 1e-6 };
            (bound, total)
        });
        let bounds: Vec<_> = bounds.collect();
        (bounds, self.sum_ns.get() as f64 * 1e-9, total)
    }
}

/// What the store counts.
#[derive(Default, Debug)]
pub struct StoreCounters {
    /// Blocks in the index.
    pub blocks: Counter,
    /// Payload bytes of the blocks in the index.
    pub bytes: Counter,
    /// Blocks published since start.
    pub inserts: Counter,
    /// Puts answered `Present`.
    pub present: Counter,
    /// Read leases given out.
    pub leases: Counter,
    /// Calls to journals' append.
    pub appends: Counter,
    /// Lookups that found their block.
    pub hits: Counter,
    /// Misses of keys never stored, or forgotten.
    pub misses_never: Counter,
    /// Misses of evicted blocks.
    pub misses_evicted: Counter,
    /// Misses of deleted blocks.
    pub misses_deleted: Counter,
    /// Misses of expired blocks.
    pub misses_expired: Counter,
    /// Misses of blocks whose drive is offline.
    pub misses_drive_lost: Counter,
    /// Misses of blocks dropped for a bad CRC.
    pub misses_corrupt: Counter,
    /// Blocks evicted.
    pub evictions: Counter,
    /// Evictions that had to wait for a reader before the units were free.
    pub evictions_while_read: Counter,
    /// Blocks that were released, retained or pinned.
    pub hinted: Counter,
    /// Blocks deleted by clients.
    pub deletes: Counter,
    /// Blocks dropped because their bytes failed the CRC.
    pub corrupt_dropped: Counter,
    /// Reports of bad CRCs from getters.
    pub suspects: Counter,
    /// Puts that waited for another put or delete of their key.
    pub put_put: Counter,
    /// Deletes that waited for a put or delete of their key.
    pub put_delete: Counter,
    /// Refusals `Busy`.
    pub busy: Counter,
    /// Refusals `Full`.
    pub full: Counter,
    /// Retries answered from memory.
    pub retries_remembered: Counter,
    /// Reservations given up before commit.
    pub aborts: Counter,
    /// Extents placed a second time after a drive error.
    pub placed_again: Counter,
    /// Drives taken offline since start.
    pub drives_failed: Counter,
    /// Times the drives that stay were told, durably, of one that is out.
    pub epochs_raised: Counter,
    /// Checkpoints completed.
    pub checkpoints: Counter,
    /// Rows of theirs that came from the checkpoint before.
    pub checkpoint_rows: Counter,
    /// Rows of theirs that came from the log.
    pub checkpoint_log_rows: Counter,
    /// Blocks dropped because the drive could not read what was recorded of them.
    pub records_lost: Counter,
    /// What the scrubber counts.
    pub scrub: ScrubCounters,
    /// From a commit's arrival to its records being durable.
    pub commit_wait: Histogram,
    /// How long a put waited for its key.
    pub key_wait: Histogram,
}

impl StoreCounters {
    /// Misses of all reasons.
    pub fn misses(&self) -> u64 {
        self.misses_never.get()
            + self.misses_evicted.get()
            + self.misses_deleted.get()
            + self.misses_expired.get()
            + self.misses_drive_lost.get()
            + self.misses_corrupt.get()
    }
}
