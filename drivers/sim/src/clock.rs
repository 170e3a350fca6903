//! Time that stands still until somebody moves it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use memkv_poller::{Clock, Instant};

/// The clock of a simulated world. Clones share the time.
///
/// The world is one thread, yet the time lies in an atomic: a simulated disk is a `BlockDevice`, which
/// must be `Send + Sync`, and it reads this clock at every submission. A relaxed load costs nothing.
#[derive(Clone, Debug)]
pub struct SimClock {
    /// Nanoseconds since the origin of this world; never goes back.
    now: Arc<AtomicU64>,
    /// Unix seconds at the origin. May jump in either direction: wall clocks do.
    wall: Arc<AtomicU64>,
}

impl SimClock {
    /// A clock that shows zero, at the wall time `unix_seconds`.
    pub fn new(unix_seconds: u64) -> SimClock {
        SimClock { now: Arc::new(AtomicU64::new(0)), wall: Arc::new(AtomicU64::new(unix_seconds)) }
    }

    /// Moves the monotonic time forward to `to`.
    ///
    /// # Panics
    /// If `to` lies in the past: monotonic time that goes back is a bug of the simulator.
    pub fn set(&self, to: Instant) {
        let before = self.now.swap(to.as_nanos(), Ordering::Relaxed);
        assert!(before <= to.as_nanos(), "the simulated clock went back");
    }

    /// Moves the monotonic time forward by `by`.
    pub fn advance(&self, by: Duration) {
        self.now.fetch_add(by.as_nanos() as u64, Ordering::Relaxed);
    }

    /// Makes the wall clock jump by `seconds`, to either side.
    pub fn jump_wall(&self, seconds: i64) {
        let wall = self.wall.load(Ordering::Relaxed);
        self.wall.store(wall.saturating_add_signed(seconds), Ordering::Relaxed);
    }
}

impl Clock for SimClock {
    fn now(&self) -> Instant {
        Instant::from_nanos(self.now.load(Ordering::Relaxed))
    }

    fn unix_seconds(&self) -> u64 {
        self.wall.load(Ordering::Relaxed) + self.now.load(Ordering::Relaxed) / 1_000_000_000
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_share_time_and_the_wall_may_jump_back() {
        let clock = SimClock::new(1_000);
        let other = clock.clone();
        clock.advance(Duration::from_secs(5));
        assert_eq!(other.now(), Instant::from_nanos(5_000_000_000));
        assert_eq!(other.unix_seconds(), 1_005);
        other.jump_wall(-100);
        assert_eq!(clock.unix_seconds(), 905);
        assert_eq!(clock.now(), Instant::from_nanos(5_000_000_000));
    }

    #[test]
    #[should_panic(expected = "went back")]
    fn monotonic_time_never_goes_back() {
        let clock = SimClock::new(0);
        clock.set(Instant::from_nanos(10));
        clock.set(Instant::from_nanos(9));
    }
}
