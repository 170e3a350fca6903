//! A gate between calls and the memory of their caller.
//!
//! A call blocks, and reads or writes its caller's memory for as long as it takes. Whoever runs calls for
//! somebody else, and may be told that the memory is wanted back, runs them through a gate
//! ([`Client::through`](crate::Client::through)), and closes that:
//!
//! ```text
//!   call    ──► enter ── a link, and the memory ── leave ──► (pause, connecting: outside) ──► enter ✗
//!   close()       └─ closed: shut the link down ──► the call fails ──► leave ──► close returns
//! ```
//!
//! When [`Gate::close`] returns, no call is inside and none will be: nobody touches the memory any more. It
//! waits for calls that are inside, but not for what they wait for: the connection that each of them uses is
//! shut down, so that whatever the server does they are out as soon as a processor runs them. What is given
//! up costs its connection, therefore, and an answer from the server if there was one: whether a put was
//! carried out is unknown.

use std::os::fd::RawFd;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use nix::sys::socket::{Shutdown, shutdown};

/// See the module. Closed once, it stays closed.
#[derive(Debug, Default)]
pub struct Gate {
    state: Mutex<State>,
    /// Somebody has left.
    left: Condvar,
}

#[derive(Debug, Default)]
struct State {
    closed: bool,
    inside: usize,
    /// The connections of those inside, open for as long as they stand here.
    links: Vec<RawFd>,
}

impl Gate {
    /// An open one.
    pub fn new() -> Gate {
        Gate::default()
    }

    /// Closes it, and returns when nobody is inside any more.
    pub fn close(&self) {
        let mut state = self.lock();
        if !state.closed {
            state.closed = true;
            for link in &state.links {
                // One that its server has closed meanwhile is what we want.
                let _ = shutdown(*link, Shutdown::Both);
            }
        }
        let inside = |state: &mut State| state.inside > 0;
        drop(self.left.wait_while(state, inside).unwrap_or_else(PoisonError::into_inner));
    }

    /// Whether it is closed, or closing.
    pub fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// Does something with the memory that is no call and does not wait; `None`: the gate is closed and
    /// nothing was done.
    pub fn with_memory<T>(&self, touch: impl FnOnce() -> T) -> Option<T> {
        let _inside = self.enter(None)?;
        Some(touch())
    }

    /// Lets a call in that uses `link`, which stays open until it leaves; `None` when the gate is closed.
    pub(crate) fn enter(&self, link: Option<RawFd>) -> Option<Inside<'_>> {
        let mut state = self.lock();
        if state.closed {
            return None;
        }
        state.inside += 1;
        state.links.extend(link);
        drop(state);
        Some(Inside { gate: self, link })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change of the state is complete before anything can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to use the memory; it ends when it is dropped.
pub(crate) struct Inside<'a> {
    gate: &'a Gate,
    link: Option<RawFd>,
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        let mut state = self.gate.lock();
        state.inside -= 1;
        if let Some(at) = state.links.iter().position(|link| Some(*link) == self.link) {
            state.links.swap_remove(at);
        }
        if state.inside == 0 {
            self.gate.left.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn who_waits_inside_for_a_silent_peer_is_out_before_close_returns() {
        let gate = Gate::new();
        let (mut ours, _silent) = UnixStream::pair().expect("a pair");
        let (entered, is_out) = (std::sync::Barrier::new(2), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let inside = gate.enter(Some(ours.as_raw_fd())).expect("it is open");
                entered.wait();
                assert_eq!(ours.read(&mut [0]).expect("an end"), 0);
                is_out.store(true, Ordering::Release);
                drop(inside);
            });
            entered.wait();
            gate.close();
            assert!(is_out.load(Ordering::Acquire));
        });
        assert!(gate.is_closed());
        assert!(gate.enter(None).is_none());
        assert!(gate.with_memory(|| ()).is_none());
    }

    #[test]
    fn who_has_left_keeps_his_connection() {
        let gate = Gate::new();
        let (ours, mut theirs) = UnixStream::pair().expect("a pair");
        drop(gate.enter(Some(ours.as_raw_fd())).expect("it is open"));
        assert_eq!(gate.with_memory(|| 7), Some(7));
        gate.close();
        std::io::Write::write_all(&mut &ours, b"x").expect("it is open");
        let mut byte = [0];
        theirs.read_exact(&mut byte).expect("a byte");
        assert_eq!(&byte, b"x");
    }
}
