//! How much a reactor's sessions have promised to move and not moved yet, and when that is enough.
//!
//! A request that is taken on waits behind those before it. Without a bound, more load than a node can
//! serve makes all of them wait ever longer, until none is of use any more to whoever asked. So a get, or
//! an offer of a put, is answered by Busy when what is promised would take longer than [`PATIENCE`] at the
//! pace of late, and says when to come back. That costs next to nothing: nothing was looked up or reserved.
//!
//! Whoever has little under way is not refused for what others have. A session may always promise its
//! share: what is bearable, divided by the sessions that have something under way. One that does not read
//! what it asked for keeps others from no more than that.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use memkv_poller::Instant;

/// For how long a request may have to wait for those before it.
const PATIENCE: Duration = Duration::from_secs(2);
/// This much is bearable at any pace: peers that read slowly make a slow pace, too.
const LEAST: u64 = 1 << 30;
/// The pace is that of some windows of this length.
const WINDOW: Duration = Duration::from_millis(100);
/// The shortest and the longest pause that is asked for, in milliseconds.
const RETRY_MS: (u64, u64) = (5, 1000);

/// The promises of one reactor's sessions.
#[derive(Default)]
pub(crate) struct Backlog {
    /// Bytes promised and not moved.
    bytes: Cell<u64>,
    /// Sessions that have promised some.
    sessions: Cell<u64>,
    /// When the window began, and bytes that were moved in it.
    window: Cell<(Instant, u64)>,
    /// Bytes moved in a second, of late.
    pace: Cell<u64>,
}

/// The promises of one session.
pub(crate) struct Share {
    backlog: Rc<Backlog>,
    bytes: Cell<u64>,
}

/// A promise; it is kept, or of no interest any more, when this is dropped.
pub(crate) struct Promise {
    share: Rc<Share>,
    bytes: u64,
}

impl Backlog {
    /// The share of a new session.
    pub fn share(self: &Rc<Self>) -> Rc<Share> {
        Rc::new(Share { backlog: self.clone(), bytes: Cell::new(0) })
    }

    /// Bytes that are moved while somebody waits for as long as is bearable.
    fn bearable(&self) -> u64 {
        (self.pace.get() * PATIENCE.as_secs()).max(LEAST)
    }

    fn moved(&self, bytes: u64, now: Instant) {
        let (began, before) = self.window.get();
        let took = now.saturating_duration_since(began);
        if took < WINDOW {
            return self.window.set((began, before + bytes));
        }
        let pace = (before + bytes) as f64 / took.as_secs_f64();
        // A window in which hardly anything was asked for says nothing.
        let idle = took > 4 * WINDOW;
        let late = if idle { pace } else { pace.midpoint(self.pace.get() as f64) };
        self.pace.set(late as u64);
        self.window.set((now, 0));
    }
}

impl Share {
    /// Whether more may be promised; if not, after how many milliseconds it may be.
    ///
    /// # Errors
    /// The milliseconds.
    pub fn admits(&self) -> Result<(), u32> {
        let backlog = &self.backlog;
        let (bearable, bytes) = (backlog.bearable(), backlog.bytes.get());
        if bytes < bearable || self.bytes.get() < bearable / backlog.sessions.get().max(1) {
            return Ok(());
        }
        // Half of what is there will have been moved.
        let ms = bytes * 500 / backlog.pace.get().max(1);
        Err(ms.clamp(RETRY_MS.0, RETRY_MS.1) as u32)
    }

    /// Promises to move so many bytes.
    pub fn promise(self: &Rc<Self>, bytes: u64) -> Promise {
        let backlog = &self.backlog;
        if self.bytes.get() == 0 {
            backlog.sessions.set(backlog.sessions.get() + 1);
        }
        // A promise of nothing is one, too.
        let bytes = bytes.max(1);
        self.bytes.set(self.bytes.get() + bytes);
        backlog.bytes.set(backlog.bytes.get() + bytes);
        Promise { share: self.clone(), bytes }
    }
}

impl Promise {
    /// It was kept.
    pub fn kept(&self, now: Instant) {
        self.share.backlog.moved(self.bytes, now);
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        let (share, backlog) = (&self.share, &self.share.backlog);
        share.bytes.set(share.bytes.get() - self.bytes);
        backlog.bytes.set(backlog.bytes.get() - self.bytes);
        if share.bytes.get() == 0 {
            backlog.sessions.set(backlog.sessions.get() - 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn what_is_bearable_at_any_pace_is_admitted_and_more_than_that_is_not() {
        let backlog = Rc::new(Backlog::default());
        let share = backlog.share();
        let mut promises = Vec::new();
        while share.admits().is_ok() {
            promises.push(share.promise(64 * MIB));
        }
        assert_eq!(promises.len() as u64, LEAST / (64 * MIB));
        promises.pop();
        assert_eq!(share.admits(), Ok(()), "there is room again");
        drop(promises);
        assert_eq!((backlog.bytes.get(), backlog.sessions.get()), (0, 0));
    }

    #[test]
    fn a_session_with_less_than_its_share_is_not_refused_for_what_another_has() {
        let backlog = Rc::new(Backlog::default());
        let (greedy, modest) = (backlog.share(), backlog.share());
        let all: Vec<_> = (0..32).map(|_| greedy.promise(64 * MIB)).collect();
        assert!(greedy.admits().is_err());
        let mut own = Vec::new();
        while modest.admits().is_ok() {
            own.push(modest.promise(MIB));
        }
        assert_eq!(own.len() as u64 * MIB, LEAST / 2, "of two sessions each has half");
        drop((all, own));
        assert_eq!(greedy.admits(), Ok(()));
    }

    #[test]
    fn the_pace_says_how_much_is_bearable_and_when_to_come_back() {
        let backlog = Rc::new(Backlog::default());
        let share = backlog.share();
        let mut now = Instant::default();
        // 4 GiB a second, for long enough to be believed.
        for _ in 0..2000 {
            now += Duration::from_millis(1);
            share.promise(4 << 20).kept(now);
        }
        let pace = backlog.pace.get() as f64 / (4000.0 * MIB as f64);
        assert!((0.9..1.1).contains(&pace), "{pace}");
        let mut promises = Vec::new();
        let retry_ms = loop {
            match share.admits() {
                Ok(()) => promises.push(share.promise(64 * MIB)),
                Err(retry_ms) => break retry_ms,
            }
        };
        let bytes = backlog.bytes.get() as f64 / (8000.0 * MIB as f64);
        assert!((0.9..1.1).contains(&bytes), "two seconds of it: {bytes}");
        assert!((900..=1000).contains(&retry_ms), "half of two seconds: {retry_ms}");
    }
}
