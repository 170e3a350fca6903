//! How reactors are told to stop.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::remote::Remote;

/// A flag that ends [`Reactor::run`](crate::Reactor::run) on every reactor that was given a clone
/// of it. Once stopped it stays so.
#[derive(Clone, Debug, Default)]
pub struct StopFlag {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    stopped: AtomicBool,
    /// Who may be asleep and must be told. Few, and touched only at start and stop.
    listeners: Mutex<Vec<Remote>>,
}

impl StopFlag {
    /// A flag nobody has raised yet.
    pub fn new() -> StopFlag {
        StopFlag::default()
    }

    /// Asks every reactor that runs with this flag to return after its present pass.
    pub fn stop(&self) {
        self.inner.stopped.store(true, Ordering::Release);
        // Whoever registers after this lock sees the flag; whoever registered before is woken.
        for listener in self.inner.listeners.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            listener.wake();
        }
    }

    /// Whether [`stop`](StopFlag::stop) was called.
    pub fn is_stopped(&self) -> bool {
        self.inner.stopped.load(Ordering::Acquire)
    }

    /// Has `remote` woken by `stop`, until the guard is dropped.
    pub(crate) fn register(&self, remote: Remote) -> Registration<'_> {
        let id = Arc::as_ptr(&remote.shared).addr();
        self.inner.listeners.lock().unwrap_or_else(PoisonError::into_inner).push(remote);
        Registration { flag: self, id }
    }
}

/// A reactor's place on the list of those to wake.
pub(crate) struct Registration<'a> {
    flag: &'a StopFlag,
    id: usize,
}

impl Drop for Registration<'_> {
    fn drop(&mut self) {
        let mut listeners =
            self.flag.inner.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = listeners.iter().position(|l| Arc::as_ptr(&l.shared).addr() == self.id) {
            listeners.swap_remove(at);
        }
    }
}
