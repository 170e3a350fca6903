//! The two ends of a command: the driver's [`Completer`] and the caller's [`Completion`].
//!
//! They may be on different threads, so a small lock stands between them; it is taken twice per
//! command by whoever has something to say, and never held across anything. A driver that ends commands
//! on the reactor that gave them keeps them in a [table](Commands) instead, which has no lock.

use std::fmt;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use memkv_poller::spare::{Reuse, Shared};

use crate::commands::SlotRef;
use crate::{Done, IoError};

enum State {
    /// The device has the command; whom to wake.
    Pending(Option<Waker>),
    /// The command is done.
    Done(Done),
    /// The caller has taken what was done, or is not interested any more.
    Closed,
}

impl Default for State {
    fn default() -> State {
        State::Pending(None)
    }
}

/// What both ends hold; its memory is used again.
#[derive(Default)]
struct Command(Mutex<State>);

impl Reuse for Command {
    fn reset(&mut self) {
        *self.0.get_mut().unwrap_or_else(PoisonError::into_inner) = State::default();
    }
}

impl Command {
    /// No panic can happen while the lock is held.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A pair of ends for one command. For drivers.
pub fn completion() -> (Completer, Completion) {
    let shared = Shared::new(|_| ());
    (Completer(Some(Shared::clone(&shared))), Completion(End::Alone(shared)))
}

/// The driver's end. Dropped without [`Completer::complete`] the command ends as
/// [`IoError::Offline`] and its buffer is wherever the driver left it: that is for a device torn down.
pub struct Completer(Option<Shared<Command>>);

impl Completer {
    /// Ends the command and wakes the caller. If the caller is gone, or was told that the command
    /// stalled, the buffer is dropped here.
    pub fn complete(mut self, done: Done) {
        self.finish(done);
    }

    fn finish(&mut self, done: Done) {
        let Some(shared) = self.0.take() else { return };
        let mut state = shared.lock();
        let before = match &mut *state {
            State::Closed | State::Done(_) => {
                drop(state);
                // The buffer goes back to its pool here, which may wake others: not under the lock.
                drop(done);
                return;
            }
            state => std::mem::replace(state, State::Done(done)),
        };
        drop(state);
        if let State::Pending(Some(waker)) = before {
            waker.wake();
        }
    }
}

impl Drop for Completer {
    fn drop(&mut self) {
        self.finish(Done { result: Err(IoError::Offline), buf: None });
    }
}

impl fmt::Debug for Completer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Completer").finish_non_exhaustive()
    }
}

/// The caller's end: the [`Done`] of a command, once.
///
/// Dropping it cancels nothing. The driver keeps the buffer until the device is done with it.
#[must_use = "a command's end says whether it was done"]
pub struct Completion(End);

enum End {
    /// Of a command in the table of its queue. One pointer, as the other: then both are returned in registers.
    OfTable(SlotRef),
    /// Of a command that stands alone.
    Alone(Shared<Command>),
    /// The caller has been told.
    Over,
}

impl Future for Completion {
    type Output = Done;

    #[inline(always)]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Done> {
        match &self.0 {
            End::OfTable(slot) if slot.is_pending(cx) => Poll::Pending,
            _ => self.poll_end(cx),
        }
    }
}

impl Completion {
    #[inline(never)]
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<Done> {
        match std::mem::replace(&mut self.0, End::Over) {
            End::OfTable(slot) => Poll::Ready(slot.take()),
            End::Alone(command) => match command.poll(cx) {
                Some(done) => Poll::Ready(done),
                None => {
                    self.0 = End::Alone(command);
                    Poll::Pending
                }
            },
            End::Over => panic!("a completion was polled after its end"),
        }
    }
}

impl Command {
    fn poll(&self, cx: &mut Context<'_>) -> Option<Done> {
        let mut state = self.lock();
        if let State::Pending(waker) = &mut *state {
            match waker {
                Some(waker) => waker.clone_from(cx.waker()),
                None => *waker = Some(cx.waker().clone()),
            }
            return None;
        }
        match std::mem::replace(&mut *state, State::Closed) {
            State::Done(done) => Some(done),
            _ => panic!("a completion was polled after its end"),
        }
    }
}

impl Completion {
    #[inline(always)]
    pub(crate) fn of_slot(slot: SlotRef) -> Completion {
        Completion(End::OfTable(slot))
    }

    /// A third end, for whoever watches over a command that stands alone.
    pub(crate) fn watched(&self) -> Option<Watched> {
        match &self.0 {
            End::Alone(command) => Some(Watched(Shared::clone(command))),
            _ => None,
        }
    }
}

/// The end of whoever watches how long a command takes.
#[derive(Clone)]
pub(crate) struct Watched(Shared<Command>);

impl PartialEq for Watched {
    /// Whether it is the same command.
    fn eq(&self, other: &Watched) -> bool {
        self.0.is(&other.0)
    }
}

impl Watched {
    /// Whether the driver has the command and the caller still waits for it.
    pub fn is_pending(&self) -> bool {
        matches!(*self.0.lock(), State::Pending(_))
    }

    /// Tells the caller that the command failed, while the driver still has it, and its buffer: that
    /// is dropped when the driver is done with it. Nothing happens to a command that has ended.
    pub fn abandon(&self, error: IoError) {
        let mut state = self.0.lock();
        let State::Pending(waker) = &mut *state else { return };
        let waker = waker.take();
        *state = State::Done(Done { result: Err(error), buf: None });
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Drop for Completion {
    #[inline]
    fn drop(&mut self) {
        match std::mem::replace(&mut self.0, End::Over) {
            End::Over => {}
            End::OfTable(slot) => slot.forsake(),
            End::Alone(command) => {
                let before = std::mem::replace(&mut *command.lock(), State::Closed);
                // A buffer in it goes back to its pool here, which may wake others: not under the lock.
                drop(before);
            }
        }
    }
}

impl fmt::Debug for Completion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Completion").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use super::*;

    #[test]
    fn what_is_completed_arrives_on_any_thread() {
        for _ in 0..1000 {
            let (completer, completion) = completion();
            let driver = std::thread::spawn(move || {
                completer.complete(Done { result: Ok(()), buf: None });
            });
            let mut completion = pin!(completion);
            let mut cx = Context::from_waker(Waker::noop());
            loop {
                if let Poll::Ready(done) = completion.as_mut().poll(&mut cx) {
                    assert!(done.result.is_ok());
                    break;
                }
                std::thread::yield_now();
            }
            driver.join().unwrap();
        }
    }

    #[test]
    fn a_driver_that_goes_away_ends_its_commands() {
        let (completer, completion) = completion();
        drop(completer);
        let mut cx = Context::from_waker(Waker::noop());
        let Poll::Ready(done) = pin!(completion).poll(&mut cx) else { panic!("not ended") };
        assert!(matches!(done.result, Err(IoError::Offline)));
    }
}
