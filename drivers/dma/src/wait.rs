//! Waiting for buffers.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use crate::ledger::{Class, Ticket};
use crate::{DmaBuf, Pool};

/// A place in the queue for a buffer; see [`Pool::allocate_wait`].
///
/// Dropping it gives up the place, and gives back the buffer if one had been found meanwhile.
#[must_use = "a future does nothing unless it is awaited"]
pub struct AllocateWait(AllocateSet);

/// A place in the queue for several buffers; see [`Pool::allocate_set`].
///
/// Dropping it gives up the place, and gives back the buffers that had been found meanwhile.
#[must_use = "a future does nothing unless it is awaited"]
pub struct AllocateSet {
    pool: Pool,
    class: Class,
    len: usize,
    count: usize,
    state: State,
}

enum State {
    Start,
    Queued(Ticket),
    Done,
}

impl AllocateWait {
    pub(crate) fn new(pool: Pool, class: Class, len: usize) -> AllocateWait {
        AllocateWait(AllocateSet::new(pool, class, len, 1))
    }
}

impl AllocateSet {
    pub(crate) fn new(pool: Pool, class: Class, len: usize, count: usize) -> AllocateSet {
        // A length that no pool has is found where it is asked for, not where it is awaited.
        let _ = crate::pool::order_of(len);
        AllocateSet { pool, class, len, count, state: State::Start }
    }
}

impl Future for AllocateWait {
    type Output = DmaBuf;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<DmaBuf> {
        let set = &mut self.get_mut().0;
        if let State::Start = set.state
            && let Some(buffer) = set.pool.at_once(set.class, set.len)
        {
            set.state = State::Done;
            return Poll::Ready(buffer);
        }
        Pin::new(set).poll(cx).map(|mut set| set.pop().expect("a set of one"))
    }
}

impl Future for AllocateSet {
    type Output = Vec<DmaBuf>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Vec<DmaBuf>> {
        let this = self.get_mut();
        let AllocateSet { class, len, count, .. } = *this;
        let buffers = match this.state {
            State::Start => match this.pool.begin_wait(class, len, count, cx.waker()) {
                Ok(buffers) => buffers,
                Err(ticket) => {
                    this.state = State::Queued(ticket);
                    return Poll::Pending;
                }
            },
            State::Queued(ticket) => match this.pool.look(class, len, ticket, cx.waker()) {
                Some(buffers) => buffers,
                None => return Poll::Pending,
            },
            State::Done => panic!("a wait for a buffer was polled after its end"),
        };
        this.state = State::Done;
        Poll::Ready(buffers)
    }
}

impl Drop for AllocateSet {
    fn drop(&mut self) {
        if let State::Queued(ticket) = self.state {
            self.pool.cancel(self.class, ticket);
        }
    }
}

impl fmt::Debug for AllocateWait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let AllocateSet { class, len, .. } = &self.0;
        f.debug_struct("AllocateWait")
            .field("class", class)
            .field("len", len)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for AllocateSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let AllocateSet { class, len, count, .. } = self;
        f.debug_struct("AllocateSet")
            .field("class", class)
            .field("len", len)
            .field("count", count)
            .finish_non_exhaustive()
    }
}
