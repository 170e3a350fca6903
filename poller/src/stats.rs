//! What a reactor counts about itself.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// A turn that takes no longer is not worth a note: 50 µs.
pub(crate) const NOTED: Duration = Duration::from_micros(50);

/// A turn that takes longer keeps everybody else on the reactor waiting: 200 µs.
pub const LONG_TURN: Duration = Duration::from_micros(200);

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
    /// How often it offered its core to other threads between two passes.
    pub offers: AtomicU64,
    /// Tasks ever spawned.
    pub tasks_spawned: AtomicU64,
    /// Tasks that live now.
    pub tasks_live: AtomicU64,
    /// Closures waiting in the inbox now.
    pub inbox_depth: AtomicU64,
    /// Whose turns took how long, of those that took more than [`NOTED`].
    turns: Mutex<Vec<Turns>>,
}

/// The turns of one kind of task or poller that took more than 50 µs by the clock on the wall, told
/// apart by whose fault it is.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Turns {
    /// The poller's name, or the path of the task's function.
    pub who: &'static str,
    /// Without the time in which the thread waited for a core; with it where the clock cannot tell.
    pub own: Long,
    /// Turns that are long only because the thread waited for a core: with that time.
    pub preempted: Long,
}

/// Turns of one kind.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub struct Long {
    /// Turns longer than [`LONG_TURN`].
    pub count: u64,
    /// The longest one.
    pub longest: Duration,
}

impl Long {
    fn add(&mut self, took: Duration) {
        self.count += u64::from(took > LONG_TURN);
        self.longest = self.longest.max(took);
    }
}

impl ReactorStats {
    /// Who had turns of more than 50 µs, in the order in which each had the first.
    pub fn turns(&self) -> Vec<Turns> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The same, and forgets them: what it tells next came after this.
    pub fn take_turns(&self) -> Vec<Turns> {
        std::mem::take(&mut self.turns.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Somebody's turn has ended. In it the thread waited for a core for so long.
    pub(crate) fn turn_took(&self, who: &'static str, took: Duration, waited: Duration) {
        if took <= NOTED {
            return;
        }
        let who = who.trim_end_matches("::{{closure}}");
        let mut all = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        let at = all.iter().position(|turns| turns.who == who).unwrap_or_else(|| {
            all.push(Turns { who, own: Long::default(), preempted: Long::default() });
            all.len() - 1
        });
        let own = took.saturating_sub(waited);
        all[at].own.add(own);
        if took > LONG_TURN && own <= LONG_TURN {
            all[at].preempted.add(took);
        }
    }
}

/// Adds to a counter that only one thread writes: a plain load and store, no locked instruction.
pub(crate) fn add(counter: &AtomicU64, amount: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(amount), Ordering::Relaxed);
}

/// Subtracts from a counter that only one thread writes.
pub(crate) fn sub(counter: &AtomicU64, amount: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_sub(amount), Ordering::Relaxed);
}
