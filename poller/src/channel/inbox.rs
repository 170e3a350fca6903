//! Many values from many senders to one receiver, with a bound that is taken beforehand.
//!
//! ```text
//!   capacity = free + permits out + grants on their way to waiters + values queued
//! ```
//! A permit is a place in the queue. It comes back when the value sent with it is received, or when
//! it is dropped unused. Those who wait for one are served in the order they came.

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use super::Full;
use crate::sync::{Arc, Mutex, lock};
use crate::wait_queue::{Ticket, WaitQueue};

struct State<T> {
    queue: VecDeque<T>,
    free: usize,
    waiting: WaitQueue,
    receiver: Option<Waker>,
    /// Senders and permits: when there is none, no more values can come.
    senders: usize,
    /// Then everything is granted and everything sent is dropped.
    receiver_gone: bool,
}

impl<T> State<T> {
    /// A place has come free. Returns whom to wake once the lock is released.
    fn give_back(&mut self) -> Option<Waker> {
        if self.waiting.next_need().is_some() {
            return self.waiting.grant();
        }
        self.free += 1;
        None
    }

    fn sender_left(&mut self) -> Option<Waker> {
        self.senders -= 1;
        if self.senders == 0 { self.receiver.take() } else { None }
    }
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

/// An inbox for at most `capacity` values.
///
/// # Panics
/// When `capacity` is zero.
pub fn inbox<T>(capacity: usize) -> (InboxSender<T>, InboxReceiver<T>) {
    assert!(capacity > 0, "an inbox without room takes nothing");
    let state = Arc::new(Mutex::new(State {
        queue: VecDeque::with_capacity(capacity),
        free: capacity,
        waiting: WaitQueue::default(),
        receiver: None,
        senders: 1,
        receiver_gone: false,
    }));
    (InboxSender { state: state.clone() }, InboxReceiver { state })
}

/// An end that sends. Clones send to the same inbox.
pub struct InboxSender<T> {
    state: Arc<Mutex<State<T>>>,
}

impl<T> InboxSender<T> {
    /// Takes a place in the queue, now. When the receiver is gone there is always one, and what is
    /// sent with it is dropped.
    ///
    /// # Errors
    /// [`Full`] when every place is taken, or others wait for one.
    pub fn try_reserve(&self) -> Result<Permit<T>, Full> {
        let mut state = lock(&self.state);
        if !state.receiver_gone {
            if state.free == 0 {
                return Err(Full);
            }
            state.free -= 1;
        }
        state.senders += 1;
        drop(state);
        Ok(Permit::new(&self.state))
    }

    /// Waits for a place in the queue: first come, first served.
    pub fn reserve(&self) -> Reserve<'_, T> {
        Reserve { sender: self, ticket: None }
    }

    /// Whether the receiver is gone, so that whatever is sent is dropped.
    pub fn is_closed(&self) -> bool {
        lock(&self.state).receiver_gone
    }
}

impl<T> Clone for InboxSender<T> {
    fn clone(&self) -> InboxSender<T> {
        lock(&self.state).senders += 1;
        InboxSender { state: self.state.clone() }
    }
}

impl<T> Drop for InboxSender<T> {
    fn drop(&mut self) {
        let waker = lock(&self.state).sender_left();
        wake(waker);
    }
}

impl<T> fmt::Debug for InboxSender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("InboxSender")
    }
}

/// A place in an inbox: with it, sending cannot fail and does not wait. Dropped unused, the place
/// goes back.
#[must_use = "a permit that is dropped gives its place back"]
pub struct Permit<T> {
    /// `None` once it has sent.
    state: Option<Arc<Mutex<State<T>>>>,
}

impl<T> Permit<T> {
    fn new(state: &Arc<Mutex<State<T>>>) -> Permit<T> {
        Permit { state: Some(state.clone()) }
    }

    /// Sends. If the receiver is gone, `value` is dropped here.
    pub fn send(mut self, value: T) {
        let shared = self.state.take().expect("sending consumes the permit");
        let mut state = lock(&shared);
        if state.receiver_gone {
            state.senders -= 1;
            drop(state);
            drop(value);
            return;
        }
        state.queue.push_back(value);
        state.senders -= 1;
        let waker = state.receiver.take();
        drop(state);
        wake(waker);
    }
}

impl<T> Drop for Permit<T> {
    fn drop(&mut self) {
        let Some(shared) = self.state.take() else { return };
        let mut state = lock(&shared);
        let granted = state.give_back();
        let last = state.sender_left();
        drop(state);
        wake(granted);
        wake(last);
    }
}

impl<T> fmt::Debug for Permit<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Permit")
    }
}

/// A future of a [`Permit`]. Dropping it gives up the place in line.
#[must_use = "nothing is reserved until it is awaited"]
pub struct Reserve<'a, T> {
    sender: &'a InboxSender<T>,
    ticket: Option<Ticket>,
}

impl<T> Future for Reserve<'_, T> {
    type Output = Permit<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Permit<T>> {
        let this = &mut *self;
        let mut state = lock(&this.sender.state);
        let granted = match this.ticket {
            Some(ticket) => state.waiting.take(ticket, cx.waker()),
            None if state.receiver_gone => true,
            None if state.free > 0 => {
                state.free -= 1;
                true
            }
            None => {
                this.ticket = Some(state.waiting.push(1, Some(cx.waker().clone())));
                false
            }
        };
        if !granted {
            return Poll::Pending;
        }
        this.ticket = None;
        state.senders += 1;
        drop(state);
        Poll::Ready(Permit::new(&this.sender.state))
    }
}

impl<T> Drop for Reserve<'_, T> {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket else { return };
        let mut state = lock(&self.sender.state);
        let waker = if state.waiting.cancel(ticket) { state.give_back() } else { None };
        drop(state);
        wake(waker);
    }
}

/// The end that receives.
pub struct InboxReceiver<T> {
    state: Arc<Mutex<State<T>>>,
}

impl<T> InboxReceiver<T> {
    /// Waits for the next value; `None` once all senders and permits are gone and the queue is
    /// empty.
    pub fn recv(&mut self) -> Recv<'_, T> {
        Recv { receiver: self }
    }

    /// The next value, if there is one now.
    pub fn try_recv(&mut self) -> Option<T> {
        let mut state = lock(&self.state);
        let value = state.queue.pop_front()?;
        let waker = state.give_back();
        drop(state);
        wake(waker);
        Some(value)
    }

    /// How many values are queued.
    pub fn len(&self) -> usize {
        lock(&self.state).queue.len()
    }

    /// Whether no value is queued.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<T> Drop for InboxReceiver<T> {
    fn drop(&mut self) {
        let mut state = lock(&self.state);
        state.receiver_gone = true;
        let left = (std::mem::take(&mut state.queue), state.receiver.take());
        drop(state);
        drop(left);
        // Whoever waits for a place need not wait any more.
        loop {
            let mut state = lock(&self.state);
            if state.waiting.next_need().is_none() {
                break;
            }
            let waker = state.waiting.grant();
            drop(state);
            wake(waker);
        }
    }
}

impl<T> fmt::Debug for InboxReceiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("InboxReceiver")
    }
}

/// A future of the next value. Dropping it loses nothing.
#[must_use = "nothing is received until it is awaited"]
pub struct Recv<'a, T> {
    receiver: &'a mut InboxReceiver<T>,
}

impl<T> Future for Recv<'_, T> {
    type Output = Option<T>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        let mut state = lock(&self.receiver.state);
        if let Some(value) = state.queue.pop_front() {
            let waker = state.give_back();
            drop(state);
            wake(waker);
            return Poll::Ready(Some(value));
        }
        if state.senders == 0 {
            return Poll::Ready(None);
        }
        match &mut state.receiver {
            Some(known) => known.clone_from(cx.waker()),
            unknown => *unknown = Some(cx.waker().clone()),
        }
        Poll::Pending
    }
}
