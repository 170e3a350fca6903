//! Threads that make the calls of transfers.
//!
//! ```text
//!   post ── parts ──► queue ──► up to `most` workers, each on a connection of its own
//! ```
//!
//! * No thread exists before the first transfer. Whoever takes a part wakes, or starts, the next one while
//!   there are more: posting costs one wake-up, whatever it posts.
//! * One of those that have nothing to do looks for more for [`LINGER`] before it sleeps: to wake a thread on
//!   a core that is at rest takes 10 to 25 µs in a virtual machine, and transfers come in rows.
//! * One connection is left for lookups, which are made by whoever asks.
//! * Dropped, what is under way is given up, and nothing waits for a server: a worker that connects to one, or
//!   leaves one that is busy alone for a while, has no memory of anybody and ends by itself.
//! * After fork(2) the child has workers of its own.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use memkv_client::Client;

use crate::transfer::{Part, Posting};

/// How long a worker looks for more before it sleeps.
const LINGER: Duration = Duration::from_micros(50);

/// See the module.
pub(crate) struct Workers {
    client: Client,
    process: PerProcess,
}

/// What cannot be shared across fork(2).
struct PerProcess {
    pid: u32,
    shared: Arc<Shared>,
    child: OnceLock<Box<PerProcess>>,
}

struct Shared {
    client: Client,
    most: usize,
    state: Mutex<State>,
    wake: Condvar,
    /// For the one that lingers: there is something to do.
    called: AtomicBool,
}

#[derive(Default)]
struct State {
    closed: bool,
    parts: VecDeque<Part>,
    idle: usize,
    /// One looks for more, and will see what is there before it does anything else.
    lingers: bool,
    /// How many workers were started.
    threads: usize,
    /// What the workers are at.
    current: Vec<Arc<Posting>>,
}

impl Workers {
    /// As many as the client has connections to a server, but one.
    pub fn new(client: &Client) -> Workers {
        Workers { client: client.clone(), process: PerProcess::new(client) }
    }

    /// How many there are at most.
    pub fn most(&self) -> usize {
        self.process.shared.most
    }

    /// Takes parts, which never waits.
    ///
    /// # Errors
    /// No worker could be started, and there was none; nothing will be done.
    pub fn submit(&self, parts: impl Iterator<Item = Part>) -> io::Result<()> {
        let shared = &self.process.current(&self.client).shared;
        let mut state = shared.lock();
        if state.threads == 0 {
            shared.start(&mut state)?;
        }
        state.parts.extend(parts);
        shared.call_one(state);
        Ok(())
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        if let Some(process) = self.process.existing() {
            process.shared.close();
        }
    }
}

impl PerProcess {
    fn new(client: &Client) -> PerProcess {
        let shared = Shared {
            client: client.clone(),
            most: client.config().num_connections.saturating_sub(1).max(1),
            state: Mutex::default(),
            wake: Condvar::new(),
            called: AtomicBool::new(false),
        };
        PerProcess { pid: std::process::id(), shared: Arc::new(shared), child: OnceLock::new() }
    }

    /// The one of the process that calls, if it has one.
    fn existing(&self) -> Option<&PerProcess> {
        let pid = std::process::id();
        let mut process = self;
        while process.pid != pid {
            process = process.child.get()?;
        }
        Some(process)
    }

    /// The one of the process that calls, made when it is the first call after a fork.
    fn current(&self, client: &Client) -> &PerProcess {
        let pid = std::process::id();
        let mut process = self;
        while process.pid != pid {
            process = process.child.get_or_init(|| Box::new(PerProcess::new(client)));
        }
        process
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start(self: &Arc<Shared>, state: &mut State) -> io::Result<()> {
        let shared = self.clone();
        let thread = std::thread::Builder::new().name("memkv-nixl".to_owned());
        thread.spawn(move || shared.work())?;
        state.threads += 1;
        Ok(())
    }

    /// Gets a worker for what waits: one that lingers or sleeps, or a new one.
    fn call_one(self: &Arc<Shared>, mut state: MutexGuard<'_, State>) {
        if state.lingers {
            self.called.store(true, Ordering::Relaxed);
        } else if state.idle > 0 {
            drop(state);
            self.wake.notify_one();
        } else if !state.parts.is_empty() && state.threads < self.most {
            // Those that there are will do where no more can be had.
            let _ = self.start(&mut state);
        }
    }

    /// What a worker does until there is an end.
    fn work(self: Arc<Shared>) {
        let mut state = self.lock();
        let mut worked = false;
        loop {
            if let Some(part) = state.parts.pop_front() {
                let posting = part.posting().clone();
                state.current.push(posting.clone());
                if state.parts.is_empty() {
                    drop(state);
                } else {
                    self.call_one(state);
                }
                part.run(&self.client);
                state = self.lock();
                let same = |other: &Arc<Posting>| Arc::ptr_eq(other, &posting);
                let at = state.current.iter().position(same).expect("it was put there");
                state.current.swap_remove(at);
                worked = true;
            } else if state.closed {
                return;
            } else if worked && !state.lingers {
                worked = false;
                state.lingers = true;
                drop(state);
                self.linger();
                state = self.lock();
                state.lingers = false;
                self.called.store(false, Ordering::Relaxed);
            } else {
                state.idle += 1;
                state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.idle -= 1;
            }
        }
    }

    /// Until it is called, or for long enough. It does not offer its core: who does so often has to wait for
    /// it when there is something to do.
    fn linger(&self) {
        let begun = Instant::now();
        while !self.called.load(Ordering::Relaxed) && begun.elapsed() < LINGER {
            std::hint::spin_loop();
        }
    }

    /// Gives everything up; the workers end when they next look.
    fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        let queued = state.parts.iter().map(|part| part.posting().clone());
        let postings: Vec<Arc<Posting>> = queued.chain(state.current.iter().cloned()).collect();
        drop(state);
        self.called.store(true, Ordering::Relaxed);
        self.wake.notify_all();
        postings.iter().for_each(|posting| posting.give_up());
    }
}
