//! Waiting for one another on one reactor: no locks, first come first served.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use crate::wait_queue::{Ticket, WaitQueue};

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

/// Something happened: look again. It has no memory: a notification that nobody listens for is
/// gone.
///
/// The way to wait for a condition is `while !condition { event.listen().await }`: on one reactor
/// nothing can happen between the test and the listening. A listener may be woken for nothing.
#[derive(Clone, Debug, Default)]
pub struct Event {
    queue: Rc<RefCell<WaitQueue>>,
}

impl Event {
    /// An event nobody listens for.
    pub fn new() -> Event {
        Event::default()
    }

    /// Listens from this call on, not only from the first await on.
    pub fn listen(&self) -> Listener {
        let ticket = self.queue.borrow_mut().push(0, None);
        Listener { queue: self.queue.clone(), ticket: Some(ticket) }
    }

    /// Wakes the one that has listened longest.
    pub fn notify_one(&self) {
        let waker = self.queue.borrow_mut().grant();
        wake(waker);
    }

    /// Wakes all that listen now.
    pub fn notify_all(&self) {
        let listening = self.queue.borrow().waiting();
        for _ in 0..listening {
            self.notify_one();
        }
    }
}

/// Completes when its [`Event`] is notified. If it is dropped after it was notified and before it
/// was polled, the notification goes to the next in line.
#[must_use = "a listener does nothing until it is awaited"]
#[derive(Debug)]
pub struct Listener {
    queue: Rc<RefCell<WaitQueue>>,
    ticket: Option<Ticket>,
}

impl Future for Listener {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Some(ticket) = self.ticket else { return Poll::Ready(()) };
        if !self.queue.borrow_mut().take(ticket, cx.waker()) {
            return Poll::Pending;
        }
        self.ticket = None;
        Poll::Ready(())
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket else { return };
        let mut queue = self.queue.borrow_mut();
        let waker = if queue.cancel(ticket) { queue.grant() } else { None };
        drop(queue);
        wake(waker);
    }
}

#[derive(Debug)]
struct Permits {
    total: usize,
    available: usize,
    waiting: WaitQueue,
}

/// A number of permits, handed out in the order they are asked for: one who asks for many is not
/// overtaken by those who ask for few.
#[derive(Clone, Debug)]
pub struct Semaphore {
    permits: Rc<RefCell<Permits>>,
}

impl Semaphore {
    /// A semaphore with `total` permits.
    pub fn new(total: usize) -> Semaphore {
        let permits = Permits { total, available: total, waiting: WaitQueue::default() };
        Semaphore { permits: Rc::new(RefCell::new(permits)) }
    }

    /// Permits that are not handed out.
    pub fn available(&self) -> usize {
        self.permits.borrow().available
    }

    /// Waits for `count` permits, all at once.
    ///
    /// # Panics
    /// When there are not that many in all: it would wait for ever.
    pub fn acquire(&self, count: usize) -> Acquire {
        assert!(count <= self.permits.borrow().total, "more permits than there are");
        Acquire { semaphore: self.clone(), count, ticket: None }
    }

    /// `count` permits now, or `None` if there are too few or others wait.
    pub fn try_acquire(&self, count: usize) -> Option<LocalPermit> {
        let mut permits = self.permits.borrow_mut();
        if permits.available < count || permits.waiting.waiting() > 0 {
            return None;
        }
        permits.available -= count;
        Some(LocalPermit { semaphore: self.clone(), count })
    }

    /// Takes `count` back and serves those in front of the line, as far as it goes.
    fn give_back(&self, count: usize) {
        self.permits.borrow_mut().available += count;
        loop {
            let mut permits = self.permits.borrow_mut();
            match permits.waiting.next_need() {
                Some(need) if need <= permits.available => permits.available -= need,
                _ => break,
            }
            let waker = permits.waiting.grant();
            drop(permits);
            wake(waker);
        }
    }
}

/// A future of permits. Dropping it gives up the place in line.
#[must_use = "nothing is acquired until it is awaited"]
#[derive(Debug)]
pub struct Acquire {
    semaphore: Semaphore,
    count: usize,
    ticket: Option<Ticket>,
}

impl Future for Acquire {
    type Output = LocalPermit;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<LocalPermit> {
        let this = &mut *self;
        match this.ticket {
            None => {
                if let Some(permit) = this.semaphore.try_acquire(this.count) {
                    return Poll::Ready(permit);
                }
                let mut permits = this.semaphore.permits.borrow_mut();
                this.ticket = Some(permits.waiting.push(this.count, Some(cx.waker().clone())));
                Poll::Pending
            }
            Some(ticket) => {
                if !this.semaphore.permits.borrow_mut().waiting.take(ticket, cx.waker()) {
                    return Poll::Pending;
                }
                this.ticket = None;
                let semaphore = this.semaphore.clone();
                Poll::Ready(LocalPermit { semaphore, count: this.count })
            }
        }
    }
}

impl Drop for Acquire {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket else { return };
        let granted = self.semaphore.permits.borrow_mut().waiting.cancel(ticket);
        // Even when nothing was granted: the next in line may ask for less.
        self.semaphore.give_back(if granted { self.count } else { 0 });
    }
}

/// Permits in hand. Dropping it gives them back.
#[must_use = "permits that are dropped go back"]
#[derive(Debug)]
pub struct LocalPermit {
    semaphore: Semaphore,
    count: usize,
}

impl LocalPermit {
    /// How many permits this is.
    pub fn count(&self) -> usize {
        self.count
    }
}

impl Drop for LocalPermit {
    fn drop(&mut self) {
        self.semaphore.give_back(self.count);
    }
}
