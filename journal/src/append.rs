//! What a caller of append holds: first a future, then a guard.

use std::cell::RefCell;
use std::fmt;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use memkv_poller::spare::{Reuse, Shared};

use crate::journal::{self, JournalError};

/// Of a caller and of the commit task; its memory is used again.
pub(crate) type Ticket = Shared<Slot>;

/// Where the commit task leaves the outcome of one call.
#[derive(Default)]
pub(crate) struct Slot {
    /// The outcome is that of the flush, too.
    pub(crate) durable: bool,
    state: RefCell<State>,
}

enum State {
    Waiting(Option<Waker>),
    Done(Result<u64, JournalError>),
    /// Taken by the future, or the future was dropped.
    Closed,
}

impl Default for State {
    fn default() -> State {
        State::Waiting(None)
    }
}

impl Reuse for Slot {
    fn reset(&mut self) {
        *self = Slot::default();
    }
}

impl Slot {
    pub(crate) fn new(durable: bool) -> Ticket {
        Ticket::new(|slot| slot.durable = durable)
    }

    /// Leaves the outcome. Returns it when nobody waits any more.
    #[must_use = "a frame nobody waits for has to be counted as applied"]
    pub(crate) fn complete(
        &self,
        outcome: Result<u64, JournalError>,
    ) -> Option<Result<u64, JournalError>> {
        let mut state = self.state.borrow_mut();
        let State::Waiting(waker) = &mut *state else { return Some(outcome) };
        let waker = waker.take();
        *state = State::Done(outcome);
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        None
    }
}

/// One call of [`Journal::append`](crate::Journal::append) or
/// [`Journal::append_durable`](crate::Journal::append_durable), on its way.
///
/// Dropping it cancels nothing: once submitted, only the journal decides. The records may then be
/// durable without anybody having applied them.
#[must_use = "the records are durable only when this says so"]
pub struct Append {
    shared: Rc<journal::Shared>,
    slot: Ticket,
}

impl Append {
    pub(crate) fn new(shared: Rc<journal::Shared>, slot: Ticket) -> Append {
        Append { shared, slot }
    }

    pub(crate) fn refused(shared: Rc<journal::Shared>, error: JournalError) -> Append {
        let slot = Ticket::new(|slot| *slot.state.get_mut() = State::Done(Err(error)));
        Append { shared, slot }
    }
}

impl Future for Append {
    type Output = Result<Applied, JournalError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.slot.state.borrow_mut();
        match &mut *state {
            State::Waiting(waker) => {
                match waker {
                    Some(waker) => waker.clone_from(context.waker()),
                    None => *waker = Some(context.waker().clone()),
                }
                Poll::Pending
            }
            State::Done(_) => {
                let State::Done(outcome) = std::mem::replace(&mut *state, State::Closed) else {
                    unreachable!("it was done a line above");
                };
                let shared = Rc::clone(&self.shared);
                Poll::Ready(outcome.map(|sequence| Applied { shared, sequence }))
            }
            State::Closed => panic!("an append was polled after its end"),
        }
    }
}

impl Drop for Append {
    fn drop(&mut self) {
        let state = std::mem::replace(&mut *self.slot.state.borrow_mut(), State::Closed);
        if let State::Done(Ok(sequence)) = state {
            self.shared.applied(sequence);
        }
    }
}

impl fmt::Debug for Append {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Append").finish_non_exhaustive()
    }
}

/// The records are durable; drop this once the index shows them.
///
/// As long as it lives, no checkpoint forgets the frame they are in.
#[must_use = "drop it after the index was changed, not before"]
pub struct Applied {
    shared: Rc<journal::Shared>,
    sequence: u64,
}

impl Applied {
    /// Sequence of the frame the records are in.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }
}

impl Drop for Applied {
    fn drop(&mut self) {
        self.shared.applied(self.sequence);
    }
}

impl fmt::Debug for Applied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Applied").field("sequence", &self.sequence).finish_non_exhaustive()
    }
}
