//! One writer per key: the in-flight table.
//!
//! A put holds its key from `reserve` to `commit` or `abort`, a delete while it runs. Waiters queue
//! in order; a waiter gives up at its own deadline, with nothing reserved.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use memkv_poller::local::Event;
use memkv_poller::spare::{Reuse, Row, Shared};
use memkv_poller::{Instant, Local, timeout};

use crate::KeyHash;

/// The table of keys with a put or a delete under way.
#[derive(Default)]
pub struct KeyLocks {
    held: RefCell<HashMap<KeyHash, Option<Waiters>>>,
    /// Told when the last key is let go.
    free: Event,
}

/// One who waits; its memory is used again.
#[derive(Default)]
struct Waiter {
    granted: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Reuse for Waiter {
    fn reset(&mut self) {
        *self = Waiter::default();
    }
}

/// Those who wait for one key, in order; they are few.
type Waiters = Row<Shared<Waiter>>;

/// The right to change one key; dropping it hands the key to the next waiter.
pub struct KeyGuard {
    locks: Rc<KeyLocks>,
    key: KeyHash,
}

/// The deadline passed while another request held the key.
#[derive(Debug, PartialEq, Eq)]
pub struct Contended;

impl KeyLocks {
    /// Takes the key if nobody holds it.
    pub fn try_lock(self: &Rc<Self>, key: KeyHash) -> Option<KeyGuard> {
        let mut held = self.held.borrow_mut();
        if held.contains_key(&key) {
            return None;
        }
        held.insert(key, None);
        Some(KeyGuard { locks: self.clone(), key })
    }

    /// Waits for the key, in order of arrival, until `deadline`.
    ///
    /// # Errors
    /// [`Contended`] when the deadline passes first.
    pub async fn lock(
        self: &Rc<Self>,
        local: &Local,
        key: KeyHash,
        deadline: Instant,
    ) -> Result<KeyGuard, Contended> {
        if let Some(guard) = self.try_lock(key) {
            return Ok(guard);
        }
        let waiter = Shared::<Waiter>::new(|_| ());
        self.wait_for(key, waiter.clone());
        let wait = Wait { locks: self.clone(), key, waiter };
        timeout(local, deadline, wait).await.map_err(|_| Contended)
    }

    /// Queues up for a key that somebody holds.
    fn wait_for(&self, key: KeyHash, waiter: Shared<Waiter>) {
        let mut held = self.held.borrow_mut();
        held.get_mut(&key).expect("held").get_or_insert_default().push(waiter);
    }

    /// Whether a put or a delete of this key is under way.
    pub fn is_held(&self, key: KeyHash) -> bool {
        self.held.borrow().contains_key(&key)
    }

    /// Resolves when no put, delete or removal of any key is under way.
    pub async fn all_free(&self) {
        while !self.held.borrow().is_empty() {
            self.free.listen().await;
        }
    }

    /// How many keys have a put or a delete under way.
    pub fn count(&self) -> usize {
        self.held.borrow().len()
    }

    fn release(&self, key: KeyHash) {
        let mut held = self.held.borrow_mut();
        let queue = held.get_mut(&key).expect("a guard's key is held");
        if let Some(waiting) = queue.as_mut().filter(|waiting| !waiting.is_empty()) {
            let next = waiting.remove(0);
            next.granted.set(true);
            if let Some(waker) = next.waker.borrow_mut().take() {
                waker.wake();
            }
            return;
        }
        held.remove(&key);
        if held.is_empty() {
            self.free.notify_all();
        }
    }
}

impl Drop for KeyGuard {
    fn drop(&mut self) {
        self.locks.release(self.key);
    }
}

struct Wait {
    locks: Rc<KeyLocks>,
    key: KeyHash,
    waiter: Shared<Waiter>,
}

impl Future for Wait {
    type Output = KeyGuard;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<KeyGuard> {
        if self.waiter.granted.get() {
            self.waiter.granted.set(false);
            return Poll::Ready(KeyGuard { locks: self.locks.clone(), key: self.key });
        }
        *self.waiter.waker.borrow_mut() = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        // Granted between the deadline and the drop: pass the key on, or nobody ever gets it.
        if self.waiter.granted.replace(false) {
            return self.locks.release(self.key);
        }
        // Whoever gives up waits no longer.
        let mut held = self.locks.held.borrow_mut();
        if let Some(Some(waiting)) = held.get_mut(&self.key) {
            waiting.retain(|other| !other.is(&self.waiter));
        }
    }
}
