//! One value, once.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use crate::sync::{Arc, Mutex, lock};

struct State<T> {
    value: Option<T>,
    waker: Option<Waker>,
    sender_gone: bool,
    receiver_gone: bool,
}

/// The end that sends.
pub struct OneSender<T> {
    state: Arc<Mutex<State<T>>>,
}

/// The end that receives: a future of `Some(value)`, or of `None` when the sender was dropped.
#[must_use = "the value is lost with its receiver"]
pub struct OneReceiver<T> {
    state: Arc<Mutex<State<T>>>,
}

/// A channel for one value.
pub fn oneshot<T>() -> (OneSender<T>, OneReceiver<T>) {
    let state = Arc::new(Mutex::new(State {
        value: None,
        waker: None,
        sender_gone: false,
        receiver_gone: false,
    }));
    (OneSender { state: state.clone() }, OneReceiver { state })
}

impl<T> OneSender<T> {
    /// Sends. Never blocks and cannot fail; if the receiver is gone, `value` is dropped here.
    pub fn send(self, value: T) {
        let mut state = lock(&self.state);
        let refused = if state.receiver_gone {
            Some(value)
        } else {
            state.value = Some(value);
            None
        };
        drop(state);
        drop(refused);
        // Dropping the sender wakes the receiver.
    }

    /// Whether the receiver is gone, so that a value would be for nothing.
    pub fn is_closed(&self) -> bool {
        lock(&self.state).receiver_gone
    }
}

impl<T> Drop for OneSender<T> {
    fn drop(&mut self) {
        let mut state = lock(&self.state);
        state.sender_gone = true;
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl<T> OneReceiver<T> {
    /// The value, if it has come and has not been taken.
    pub fn try_recv(&mut self) -> Option<T> {
        lock(&self.state).value.take()
    }
}

impl<T> Future for OneReceiver<T> {
    type Output = Option<T>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        let mut state = lock(&self.state);
        if let Some(value) = state.value.take() {
            return Poll::Ready(Some(value));
        }
        if state.sender_gone {
            return Poll::Ready(None);
        }
        match &mut state.waker {
            Some(known) => known.clone_from(cx.waker()),
            unknown => *unknown = Some(cx.waker().clone()),
        }
        Poll::Pending
    }
}

impl<T> Drop for OneReceiver<T> {
    fn drop(&mut self) {
        let mut state = lock(&self.state);
        state.receiver_gone = true;
        let left = (state.value.take(), state.waker.take());
        drop(state);
        drop(left);
    }
}
