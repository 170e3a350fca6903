//! What other threads may ask of a reactor.

use std::collections::VecDeque;
use std::fmt;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::channel::Full;
use crate::doorbell::Doorbell;
use crate::handle::Local;
use crate::reactor::ReactorId;
use crate::stats::ReactorStats;
use crate::sync::{Bell, Mutex, lock};
use crate::task::TaskKey;

/// A closure on its way to a reactor.
pub(crate) type Call = Box<dyn FnOnce(&Local) + Send>;

/// The part of a reactor that other threads reach.
pub(crate) struct Shared {
    pub(crate) id: ReactorId,
    pub(crate) doorbell: Doorbell<Bell>,
    pub(crate) stats: Arc<ReactorStats>,
    incoming: Mutex<Incoming>,
    capacity: usize,
}

/// Everything that came in since the reactor last looked.
struct Incoming {
    /// Tasks woken from elsewhere. Bounded by the number of tasks: each is in here at most once.
    ready: Vec<TaskKey>,
    /// Closures to run, at most the inbox's capacity.
    calls: VecDeque<Call>,
    /// The reactor is gone: nothing is kept any more.
    closed: bool,
}

impl Shared {
    pub(crate) fn new(id: ReactorId, capacity: usize, bell: Bell) -> Shared {
        Shared {
            id,
            doorbell: Doorbell::new(bell),
            stats: Arc::default(),
            incoming: Mutex::new(Incoming {
                ready: Vec::new(),
                calls: VecDeque::with_capacity(capacity),
                closed: false,
            }),
            capacity,
        }
    }

    /// A task was woken by a thread that is not running this reactor.
    pub(crate) fn push_ready(&self, key: TaskKey) {
        let mut incoming = lock(&self.incoming);
        if incoming.closed {
            return;
        }
        incoming.ready.push(key);
        drop(incoming);
        self.doorbell.notify();
    }

    fn push_call(&self, call: Call) -> Result<(), Full> {
        let mut incoming = lock(&self.incoming);
        if incoming.closed {
            drop(incoming);
            drop(call);
            return Ok(());
        }
        if incoming.calls.len() == self.capacity {
            return Err(Full);
        }
        incoming.calls.push_back(call);
        self.stats.inbox_depth.store(incoming.calls.len() as u64, Ordering::Relaxed);
        drop(incoming);
        self.doorbell.notify();
        Ok(())
    }

    /// The reactor: takes all woken tasks into `ready` (which must be empty) and at most `limit`
    /// closures into `calls`. Returns whether closures are left.
    pub(crate) fn take(
        &self,
        ready: &mut Vec<TaskKey>,
        calls: &mut Vec<Call>,
        limit: usize,
    ) -> bool {
        assert!(ready.is_empty(), "woken tasks would be lost");
        let mut incoming = lock(&self.incoming);
        // Swapped, so that both vectors keep their room and nothing is allocated in the long run.
        mem::swap(ready, &mut incoming.ready);
        let count = limit.min(incoming.calls.len());
        calls.extend(incoming.calls.drain(..count));
        let left = incoming.calls.len();
        self.stats.inbox_depth.store(left as u64, Ordering::Relaxed);
        left > 0
    }

    /// The reactor is going away: keeps nothing from now on, and returns what was still waiting.
    pub(crate) fn close(&self) -> VecDeque<Call> {
        let mut incoming = lock(&self.incoming);
        incoming.closed = true;
        incoming.ready = Vec::new();
        self.stats.inbox_depth.store(0, Ordering::Relaxed);
        mem::take(&mut incoming.calls)
    }
}

/// A handle by which any thread reaches a reactor.
#[derive(Clone)]
pub struct Remote {
    pub(crate) shared: Arc<Shared>,
}

impl Remote {
    /// Which reactor this reaches.
    pub fn id(&self) -> ReactorId {
        self.shared.id
    }

    /// Makes the reactor take one more pass, waking it if it sleeps.
    pub fn wake(&self) {
        self.shared.doorbell.notify();
    }

    /// Runs `call` on the reactor, in the order sent. Never blocks. If the reactor is gone, `call`
    /// is dropped and nobody is told: what it owns must say by its own drop that nothing will come
    /// of it.
    ///
    /// # Errors
    /// [`Full`] when the reactor's inbox holds as many closures as it may; `call` is dropped.
    pub fn spawn(&self, call: Box<dyn FnOnce(&Local) + Send>) -> Result<(), Full> {
        self.shared.push_call(call)
    }
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remote").field("id", &self.shared.id).finish()
    }
}
