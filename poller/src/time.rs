//! Time as a reactor sees it: nanoseconds since an origin, from a clock that is handed in.

use std::fs::File;
use std::ops::{Add, AddAssign};
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};

/// A moment: nanoseconds since the origin of the clock it came from.
///
/// Only instants of one clock may be compared. 64 bits of nanoseconds last 584 years.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Hash)]
pub struct Instant(u64);

impl Instant {
    /// The origin of the clock.
    pub const ORIGIN: Instant = Instant(0);
    /// Later than any moment a clock will show: "never" as a deadline.
    pub const MAX: Instant = Instant(u64::MAX);

    /// The moment `nanos` nanoseconds after the origin.
    pub const fn from_nanos(nanos: u64) -> Instant {
        Instant(nanos)
    }

    /// Nanoseconds since the origin.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// How long after `earlier` this is; zero when it is not after it.
    pub const fn saturating_duration_since(self, earlier: Instant) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Instant {
    type Output = Instant;

    /// Saturates at [`Instant::MAX`], so a deadline of "forever" is safe to compute.
    fn add(self, duration: Duration) -> Instant {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        Instant(self.0.saturating_add(nanos))
    }
}

impl AddAssign<Duration> for Instant {
    fn add_assign(&mut self, duration: Duration) {
        *self = *self + duration;
    }
}

/// Where a reactor gets the time. Production hands in [`SystemClock`], the simulator its own.
pub trait Clock {
    /// The moment it is now. Never goes backwards.
    fn now(&self) -> Instant;
    /// Seconds since 1970-01-01 UTC. May jump when an operator sets the clock.
    fn unix_seconds(&self) -> u64;
    /// How long the calling thread has waited for a core since it began, ready to run: what others
    /// took from it. Never gets less. `None` where nobody can tell, as in the simulator.
    fn waited(&self) -> Option<Duration> {
        None
    }
}

/// The machine's clock. All copies in a process share one origin, so their instants compare across
/// reactors.
#[derive(Copy, Clone, Debug, Default)]
pub struct SystemClock;

impl SystemClock {
    /// The machine's clock.
    pub const fn new() -> SystemClock {
        SystemClock
    }
}

impl Clock for SystemClock {
    /// A reactor asks twice and more in every pass: so the seconds and nanoseconds of the system are made
    /// one number at once, and nothing is computed with them before.
    fn now(&self) -> Instant {
        static ORIGIN: OnceLock<u64> = OnceLock::new();
        let now = monotonic_nanos();
        Instant(now.saturating_sub(*ORIGIN.get_or_init(|| now)))
    }

    fn unix_seconds(&self) -> u64 {
        // A clock set before 1970 counts as 1970: the callers compare, they do not display.
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
    }

    /// Takes about a microsecond. Linux tells it; what the machine below a virtual one takes is not
    /// in it.
    fn waited(&self) -> Option<Duration> {
        thread_local! {
            // The name stands for the thread that opens it, for as long as the file is open.
            static OWN: Option<File> = File::open("/proc/thread-self/schedstat").ok();
        }
        let mut text = [0; 96];
        let len = OWN.with(|own| own.as_ref()?.read_at(&mut text, 0).ok())?;
        waited_in(&text[..len])
    }
}

/// Nanoseconds of the machine's clock that is never set.
fn monotonic_nanos() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("every system has this clock");
    now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64
}

/// The second of the three numbers of a `schedstat`: nanoseconds.
fn waited_in(schedstat: &[u8]) -> Option<Duration> {
    let nanos = std::str::from_utf8(schedstat).ok()?.split_ascii_whitespace().nth(1)?;
    nanos.parse().ok().map(Duration::from_nanos)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn adding_saturates_and_differences_never_go_below_zero() {
        let start = Instant::from_nanos(10);
        assert_eq!((start + Duration::from_nanos(5)).as_nanos(), 15);
        assert_eq!(start + Duration::MAX, Instant::MAX);
        let later = start + Duration::from_millis(1);
        assert_eq!(later.saturating_duration_since(start), Duration::from_millis(1));
        assert_eq!(start.saturating_duration_since(later), Duration::ZERO);
    }

    #[test]
    fn the_system_clock_never_goes_back_and_is_shared_by_its_copies() {
        let (one, other) = (SystemClock::new(), SystemClock);
        let mut last = one.now();
        for _ in 0..1000 {
            let now = other.now();
            assert!(now >= last);
            last = now;
        }
        assert!(one.unix_seconds() > 1_600_000_000);
    }

    #[test]
    fn the_system_clock_goes_as_fast_as_time() {
        let outer = std::time::Instant::now();
        let began = SystemClock.now();
        let inner = std::time::Instant::now();
        while inner.elapsed() < Duration::from_millis(2) {}
        let least = inner.elapsed();
        let took = SystemClock.now().saturating_duration_since(began);
        assert!(least <= took && took <= outer.elapsed(), "{took:?} of at least {least:?}");
    }

    #[test]
    fn a_schedstat_is_read_or_refused() {
        assert_eq!(waited_in(b"167149 60220 1\n"), Some(Duration::from_nanos(60220)));
        for wrong in [&b""[..], b"1", b"1 -2 3", b"1 x 3", b"1 \xff 3"] {
            assert_eq!(waited_in(wrong), None);
        }
    }

    /// Two threads on one core: one waits while the other works.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_thread_that_shares_its_core_has_waited() {
        use std::sync::atomic::{AtomicBool, Ordering};

        // Where the kernel does not count, or the core is not ours, there is nothing to test.
        let works_until_it_waited = |done: &AtomicBool| {
            let bound = crate::sync::pin_thread(0).is_ok();
            if let Some(before) = SystemClock.waited().filter(|_| bound) {
                while !done.load(Ordering::Relaxed) && SystemClock.waited() <= Some(before) {}
                assert!(SystemClock.waited() >= Some(before), "it never gets less");
            }
            done.store(true, Ordering::Relaxed);
        };
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| works_until_it_waited(&done));
            scope.spawn(|| works_until_it_waited(&done));
        });
    }
}
