//! What code on a reactor holds: [`Local`], and the futures it hands out.

use std::any::type_name;
use std::cell::RefCell;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::core::Core;
use crate::poller::Poller;
use crate::reactor::ReactorId;
use crate::remote::Remote;
use crate::time::Instant;
use crate::timer::Sleep;

/// A handle of the reactor one is on. Stays on its thread. A handle that outlives its reactor is
/// harmless: what it spawns is dropped, what it waits for never comes.
#[derive(Clone)]
pub struct Local {
    core: Rc<Core>,
}

impl Local {
    pub(crate) fn new(core: Rc<Core>) -> Local {
        Local { core }
    }

    /// Which reactor this is.
    pub fn id(&self) -> ReactorId {
        self.core.shared.id
    }

    /// The moment it is now, by the reactor's clock.
    pub fn now(&self) -> Instant {
        self.core.clock.now()
    }

    /// When the present pass of the reactor began; costs nothing to ask.
    pub fn pass_began(&self) -> Instant {
        self.core.pass_began.get()
    }

    /// When the present turn of a task or a poller began; costs nothing to ask, where to ask for the moment
    /// itself takes as long as a look into an index.
    pub fn turn_began(&self) -> Instant {
        self.core.turn_began()
    }

    /// Seconds since 1970-01-01 UTC, by the reactor's clock.
    pub fn unix_seconds(&self) -> u64 {
        self.core.clock.unix_seconds()
    }

    /// 64 bits from the reactor's generator.
    pub fn random(&self) -> u64 {
        self.core.rng.borrow_mut().next_u64()
    }

    /// Starts a task. It is detached and never cancelled: it runs until it is done, or until the
    /// reactor is dropped.
    pub fn spawn<F: Future<Output = ()> + 'static>(&self, future: F) {
        self.core.spawn(type_name::<F>(), future);
    }

    /// Starts a task whose result can be awaited. Dropping the handle does not cancel the task.
    pub fn spawn_join<T: 'static, F: Future<Output = T> + 'static>(
        &self,
        future: F,
    ) -> JoinHandle<T> {
        let join = Rc::new(RefCell::new(Join { value: None, waker: None }));
        let theirs = join.clone();
        let task = async move {
            let value = future.await;
            let mut join = theirs.borrow_mut();
            join.value = Some(value);
            let waker = join.waker.take();
            drop(join);
            if let Some(waker) = waker {
                waker.wake();
            }
        };
        self.core.spawn(type_name::<F>(), task);
        JoinHandle { join }
    }

    /// Completes after `duration`.
    pub fn sleep(&self, duration: Duration) -> Sleep {
        self.sleep_until(self.now() + duration)
    }

    /// Completes at `at`.
    pub fn sleep_until(&self, at: Instant) -> Sleep {
        Sleep::new(self.core.clone(), at)
    }

    /// Lets every other ready task and every poller have a turn.
    pub fn yield_now(&self) -> YieldNow {
        YieldNow { yielded: false }
    }

    /// Puts a device on the reactor: it is polled from the next pass on, until it is
    /// [retired](Poller::retired) or the reactor is dropped.
    pub fn add_poller(&self, poller: Box<dyn Poller>) {
        self.core.add_poller(poller);
    }

    /// The handle for other threads.
    pub fn remote(&self) -> Remote {
        Remote { shared: self.core.shared.clone() }
    }
}

impl fmt::Debug for Local {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Local").field("id", &self.id()).finish()
    }
}

struct Join<T> {
    value: Option<T>,
    waker: Option<Waker>,
}

/// The result of a task, once it is done. If the reactor is dropped first, it never completes.
#[must_use = "await it, or use spawn for a task whose result nobody needs"]
pub struct JoinHandle<T> {
    join: Rc<RefCell<Join<T>>>,
}

impl<T> JoinHandle<T> {
    /// The result, if the task is done and it has not been taken yet.
    pub fn try_take(&mut self) -> Option<T> {
        self.join.borrow_mut().value.take()
    }
}

impl<T> Future for JoinHandle<T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let mut join = self.join.borrow_mut();
        if let Some(value) = join.value.take() {
            return Poll::Ready(value);
        }
        join.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

/// Completes on the task's next turn, which comes after every poller has been looked at.
#[must_use = "a yield does nothing until it is awaited"]
#[derive(Debug)]
pub struct YieldNow {
    yielded: bool,
}

impl Future for YieldNow {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.yielded {
            return Poll::Ready(());
        }
        self.yielded = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}
