//! Waiting for a buffer.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use crate::ledger::{Class, Ticket};
use crate::{DmaBuf, Pool};

/// A place in the queue for a buffer; see [`Pool::allocate_wait`].
///
/// Dropping it gives up the place, and gives back the buffer if one had been found meanwhile.
#[must_use = "a future does nothing unless it is awaited"]
pub struct AllocateWait {
    pool: Pool,
    class: Class,
    len: usize,
    state: State,
}

enum State {
    Start,
    Queued(Ticket),
    Done,
}

impl AllocateWait {
    pub(crate) fn new(pool: Pool, class: Class, len: usize) -> AllocateWait {
        // A length that no pool has is found where it is asked for, not where it is awaited.
        let _ = crate::pool::order_of(len);
        AllocateWait { pool, class, len, state: State::Start }
    }
}

impl Future for AllocateWait {
    type Output = DmaBuf;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<DmaBuf> {
        let this = self.get_mut();
        let buffer = match this.state {
            State::Start => match this.pool.begin_wait(this.class, this.len, cx.waker()) {
                Ok(buffer) => buffer,
                Err(ticket) => {
                    this.state = State::Queued(ticket);
                    return Poll::Pending;
                }
            },
            State::Queued(ticket) => {
                match this.pool.look(this.class, this.len, ticket, cx.waker()) {
                    Some(buffer) => buffer,
                    None => return Poll::Pending,
                }
            }
            State::Done => panic!("a wait for a buffer was polled after its end"),
        };
        this.state = State::Done;
        Poll::Ready(buffer)
    }
}

impl Drop for AllocateWait {
    fn drop(&mut self) {
        if let State::Queued(ticket) = self.state {
            self.pool.cancel(self.class, ticket);
        }
    }
}

impl fmt::Debug for AllocateWait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let AllocateWait { class, len, .. } = self;
        f.debug_struct("AllocateWait")
            .field("class", class)
            .field("len", len)
            .finish_non_exhaustive()
    }
}
