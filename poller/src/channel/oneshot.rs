//! One value, once.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

#[cfg(loom)]
use crate::sync::Arc;
use crate::sync::{Mutex, lock};

struct State<T> {
    value: Option<T>,
    waker: Option<Waker>,
    sender_gone: bool,
    receiver_gone: bool,
}

impl<T> Default for State<T> {
    fn default() -> State<T> {
        State { value: None, waker: None, sender_gone: false, receiver_gone: false }
    }
}

/// What both ends hold; its memory is used again.
#[cfg(not(loom))]
type Both<T> = crate::spare::Shared<Mutex<State<T>>>;
/// What both ends hold. Nothing of the model checker's outlives a run of the model.
#[cfg(loom)]
type Both<T> = Arc<Mutex<State<T>>>;

#[cfg(not(loom))]
impl<T: 'static> crate::spare::Reuse for Mutex<State<T>> {
    fn reset(&mut self) {
        let state = self.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
        *state = State::default();
    }
}

#[cfg(not(loom))]
fn new<T: 'static>() -> Both<T> {
    Both::new(|_| ())
}

#[cfg(loom)]
fn new<T>() -> Both<T> {
    Arc::new(Mutex::new(State::default()))
}

/// The end that sends.
pub struct OneSender<T: 'static> {
    /// `None` once it has sent.
    state: Option<Both<T>>,
}

/// The end that receives: a future of `Some(value)`, or of `None` when the sender was dropped.
#[must_use = "the value is lost with its receiver"]
pub struct OneReceiver<T: 'static> {
    /// `None` once it has the value, or knows that there will be none.
    state: Option<Both<T>>,
}

/// A channel for one value.
pub fn oneshot<T: 'static>() -> (OneSender<T>, OneReceiver<T>) {
    let state = new();
    (OneSender { state: Some(state.clone()) }, OneReceiver { state: Some(state) })
}

impl<T> State<T> {
    /// The sender is done: returns whom to wake once the lock is released.
    fn sender_left(&mut self) -> Option<Waker> {
        self.sender_gone = true;
        self.waker.take()
    }
}

impl<T: 'static> OneSender<T> {
    /// Sends. Never blocks and cannot fail; if the receiver is gone, `value` is dropped here.
    pub fn send(mut self, value: T) {
        let shared = self.state.take().expect("sending consumes the sender");
        let mut state = lock(&shared);
        if state.receiver_gone {
            drop(state);
            drop(value);
            return;
        }
        state.value = Some(value);
        let waker = state.sender_left();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Whether the receiver is gone, so that a value would be for nothing.
    pub fn is_closed(&self) -> bool {
        self.state.as_ref().is_none_or(|state| lock(state).receiver_gone)
    }
}

impl<T: 'static> Drop for OneSender<T> {
    fn drop(&mut self) {
        let Some(shared) = self.state.take() else { return };
        let waker = lock(&shared).sender_left();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl<T: 'static> OneReceiver<T> {
    /// The value, if it has come and has not been taken.
    pub fn try_recv(&mut self) -> Option<T> {
        let value = lock(self.state.as_ref()?).value.take()?;
        self.state = None;
        Some(value)
    }
}

impl<T: 'static> Future for OneReceiver<T> {
    type Output = Option<T>;

    /// Once it has completed, it goes on saying `None`.
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        let Some(shared) = &self.state else { return Poll::Ready(None) };
        let mut state = lock(shared);
        let value = state.value.take();
        if value.is_none() && !state.sender_gone {
            match &mut state.waker {
                Some(known) => known.clone_from(cx.waker()),
                unknown => *unknown = Some(cx.waker().clone()),
            }
            return Poll::Pending;
        }
        drop(state);
        self.state = None;
        Poll::Ready(value)
    }
}

impl<T: 'static> Drop for OneReceiver<T> {
    fn drop(&mut self) {
        let Some(shared) = self.state.take() else { return };
        let mut state = lock(&shared);
        state.receiver_gone = true;
        let left = (state.value.take(), state.waker.take());
        drop(state);
        drop(left);
    }
}

impl<T: 'static> fmt::Debug for OneSender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OneSender")
    }
}

impl<T: 'static> fmt::Debug for OneReceiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OneReceiver")
    }
}
