//! Tests of the reactor as a whole, by what they are about.

mod channels;
mod lifetimes;
mod order;
mod sleeping;
mod stats;
mod timers;

use std::cell::{Cell, RefCell};
use std::fmt::Debug;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::{Clock, Instant, Reactor, ReactorConfig, Rng, SystemClock, TaskOrder};

/// A clock that stands still until it is told.
#[derive(Clone, Default)]
struct TestClock(Rc<Cell<Instant>>);

impl TestClock {
    fn advance(&self, by: Duration) {
        self.0.set(self.0.get() + by);
    }
}

impl Clock for TestClock {
    fn now(&self) -> Instant {
        self.0.get()
    }

    fn unix_seconds(&self) -> u64 {
        1_000_000_000 + self.0.get().as_nanos() / 1_000_000_000
    }
}

/// A reactor with a clock that stands still.
fn still(order: TaskOrder, seed: u64) -> (Reactor, TestClock) {
    let clock = TestClock::default();
    let config = ReactorConfig { task_order: order, ..ReactorConfig::default() };
    (Reactor::new(config, Rc::new(clock.clone()), Rng::seeded(seed)), clock)
}

fn fifo() -> Reactor {
    still(TaskOrder::Fifo, 0).0
}

/// A reactor with the machine's clock.
fn real() -> Reactor {
    Reactor::new(ReactorConfig::default(), Rc::new(SystemClock), Rng::seeded(0))
}

/// Steps until there is nothing to do; returns the number of passes that found work.
fn settle(reactor: &mut Reactor) -> usize {
    let mut passes = 0;
    while reactor.step().is_busy() {
        passes += 1;
        assert!(passes < 10_000, "it never settles");
    }
    passes
}

/// Polls a future once, on behalf of nobody.
fn poll_once<F: Future + ?Sized>(future: &mut Pin<Box<F>>) -> Poll<F::Output> {
    future.as_mut().poll(&mut Context::from_waker(Waker::noop()))
}

/// What happened, in order.
struct Log<T>(Rc<RefCell<Vec<T>>>);

impl<T> Clone for Log<T> {
    fn clone(&self) -> Log<T> {
        Log(self.0.clone())
    }
}

impl<T: Debug> Log<T> {
    fn new() -> Log<T> {
        Log(Rc::default())
    }

    fn push(&self, entry: T) {
        self.0.borrow_mut().push(entry);
    }

    fn take(&self) -> Vec<T> {
        self.0.take()
    }
}

/// Runs a closure when it is dropped.
struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}
