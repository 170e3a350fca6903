//! What a reactor counts about itself.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters of one reactor. The reactor writes, anyone reads; each is exact by itself, but two read
/// one after the other need not belong to the same moment.
#[derive(Debug, Default)]
pub struct ReactorStats {
    /// Passes of the wheel.
    pub polls: AtomicU64,
    /// Nanoseconds spent in passes that found work.
    pub busy_ns: AtomicU64,
    /// Nanoseconds spent asleep or in passes that found none.
    pub idle_ns: AtomicU64,
    /// How often the reactor slept.
    pub sleeps: AtomicU64,
    /// Tasks ever spawned.
    pub tasks_spawned: AtomicU64,
    /// Tasks that live now.
    pub tasks_live: AtomicU64,
    /// Closures waiting in the inbox now.
    pub inbox_depth: AtomicU64,
}

/// Adds to a counter that only one thread writes: a plain load and store, no locked instruction.
pub(crate) fn add(counter: &AtomicU64, amount: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(amount), Ordering::Relaxed);
}

/// Subtracts from a counter that only one thread writes.
pub(crate) fn sub(counter: &AtomicU64, amount: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_sub(amount), Ordering::Relaxed);
}
