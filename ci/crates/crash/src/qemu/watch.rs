//! Whether the storage daemon still answers.
//!
//! Now and then it stops by itself: it waits for a lock of its own, with no request to work on, and every
//! call that reaches its files hangs, a plain `stat` as well. Nothing a server does to a drive can bring
//! that about, and nothing but the end of the daemon ends it.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Between two questions; the kernel keeps an answer for a second.
const PERIOD: Duration = Duration::from_millis(1100);

/// A daemon was found like that since [`take_stuck`] was last called.
static STUCK: AtomicBool = AtomicBool::new(false);

/// Whether a daemon was ended because it did not answer; asked once.
pub fn take_stuck() -> bool {
    STUCK.swap(false, Ordering::SeqCst)
}

struct State {
    /// When it answered last, or began to be asked.
    answered: Instant,
    /// It was told not to answer.
    paused: bool,
    ended: bool,
}

#[derive(Clone)]
struct Shared(Arc<(Mutex<State>, Condvar)>);

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a period; whether the watch goes on.
    fn sleep(&self) -> bool {
        let waited = self.0.1.wait_timeout_while(self.lock(), PERIOD, |state| !state.ended);
        !waited.unwrap_or_else(PoisonError::into_inner).0.ended
    }
}

/// Ends the daemon when it has not answered for some time.
pub struct Watch {
    shared: Shared,
    threads: Vec<JoinHandle<()>>,
}

impl Watch {
    /// Watches the process `daemon`, which is not reaped before [`Watch::end`] was called.
    pub fn over(daemon: Pid, mounts: Vec<PathBuf>, patience: Duration) -> Watch {
        let state = State { answered: Instant::now(), paused: false, ended: false };
        let shared = Shared(Arc::new((Mutex::new(state), Condvar::new())));
        let asking = shared.clone();
        let ask = move || {
            while asking.sleep() {
                // This is what hangs. What it says does not matter.
                mounts.iter().for_each(|mount| drop(fs::metadata(mount)));
                asking.lock().answered = Instant::now();
            }
        };
        let judging = shared.clone();
        let judge = move || {
            while judging.sleep() {
                let mut state = judging.lock();
                if state.paused {
                    state.answered = Instant::now();
                }
                if !state.ended && state.answered.elapsed() > patience {
                    STUCK.store(true, Ordering::SeqCst);
                    // While the lock is held nobody reaps it. When it has ended by itself there is no harm.
                    let _ = kill(daemon, Signal::SIGKILL);
                    state.ended = true;
                }
            }
        };
        Watch { shared, threads: vec![thread::spawn(ask), thread::spawn(judge)] }
    }

    /// It is told not to answer, or to answer again.
    pub fn set_paused(&self, paused: bool) {
        let mut state = self.shared.lock();
        (state.paused, state.answered) = (paused, Instant::now());
    }

    /// From now on it is left alone.
    pub fn end(&self) {
        self.shared.lock().ended = true;
        self.shared.0.1.notify_all();
    }

    /// Waits for the watch to be over; of a daemon that is no more.
    pub fn join(&mut self) {
        self.end();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
