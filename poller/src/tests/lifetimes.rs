//! What outlives what, and that nobody minds.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::Waker;
use std::time::Duration;

use super::{Log, OnDrop, fifo, poll_once, settle};
use crate::channel::{inbox, oneshot};
use crate::local::Event;
use crate::{Interrupt, Poller, Progress};

/// A poller whose only act is to be dropped.
struct Mourned(Log<&'static str>);

impl Poller for Mourned {
    fn name(&self) -> &'static str {
        "mourned"
    }
    fn poll(&mut self) -> Progress {
        Progress::Idle
    }
    fn arm(&mut self) -> Interrupt {
        Interrupt::Quiet
    }
}

impl Drop for Mourned {
    fn drop(&mut self) {
        self.0.push("poller");
    }
}

#[test]
fn dropping_a_reactor_drops_its_tasks_then_its_pollers_whatever_their_drops_do() {
    let mut reactor = fifo();
    let log = Log::new();
    let event = Event::new();
    let (sender, mut receiver) = inbox::<u8>(8);
    for _ in 0..3 {
        let (local, log, event, sender) =
            (reactor.local(), log.clone(), event.clone(), sender.clone());
        reactor.local().spawn(async move {
            let inner = (local.clone(), log.clone(), event.clone());
            let _guard = OnDrop(move || {
                let (local, log, event) = &inner;
                log.push("task");
                let late = log.clone();
                // All of this comes too late, and none of it matters.
                local.spawn(async move { late.push("ran after the end") });
                local.add_poller(Box::new(Mourned(Log::new())));
                event.notify_all();
                local.remote().wake();
                local.remote().spawn(Box::new(|_| panic!("nobody is there"))).unwrap();
                sender.try_reserve().unwrap().send(1);
            });
            local.sleep(Duration::from_secs(1)).await;
            event.listen().await;
        });
    }
    reactor.local().add_poller(Box::new(Mourned(log.clone())));
    settle(&mut reactor);
    let (local, remote, stats) = (reactor.local(), reactor.remote(), reactor.stats());
    drop(reactor);
    assert_eq!(log.take(), ["task", "task", "task", "poller"]);
    assert_eq!(std::iter::from_fn(|| receiver.try_recv()).count(), 3);
    assert_eq!(stats.tasks_live.load(std::sync::atomic::Ordering::Relaxed), 0);

    let mut handle = local.spawn_join(async { 1 });
    assert_eq!(handle.try_take(), None);
    let (sender, mut receiver) = oneshot::<()>();
    remote.spawn(Box::new(move |_| sender.send(()))).unwrap();
    assert_eq!(receiver.try_recv(), None);
}

#[test]
fn messages_that_were_not_run_are_dropped_with_their_reactor() {
    let reactor = fifo();
    let (sender, receiver) = oneshot::<()>();
    reactor.remote().spawn(Box::new(move |_| sender.send(()))).unwrap();
    drop(reactor);
    let mut other = fifo();
    let mut handle = other.local().spawn_join(receiver);
    settle(&mut other);
    assert_eq!(handle.try_take(), Some(None));
}

#[test]
fn a_dropped_join_handle_does_not_cancel_its_task() {
    let mut reactor = fifo();
    let done = Rc::new(Cell::new(false));
    let (local, flag) = (reactor.local(), done.clone());
    drop(reactor.local().spawn_join(async move {
        local.yield_now().await;
        flag.set(true);
    }));
    settle(&mut reactor);
    assert!(done.get());
}

/// Waits for ever and counts its turns.
async fn count_turns(turns: Rc<Cell<u32>>, keep: Rc<RefCell<Option<Waker>>>) {
    std::future::poll_fn(|cx| {
        turns.set(turns.get() + 1);
        *keep.borrow_mut() = Some(cx.waker().clone());
        std::task::Poll::<()>::Pending
    })
    .await;
}

#[test]
fn a_waker_that_outlives_its_task_wakes_nobody() {
    let mut reactor = fifo();
    let stale = Rc::new(RefCell::new(None));
    let keep = stale.clone();
    reactor.local().spawn(std::future::poll_fn(move |cx| {
        *keep.borrow_mut() = Some(cx.waker().clone());
        std::task::Poll::Ready(())
    }));
    settle(&mut reactor);
    let turns = Rc::new(Cell::new(0));
    let current = Rc::new(RefCell::new(None));
    // Takes the slot that has just come free.
    reactor.local().spawn(count_turns(turns.clone(), current.clone()));
    settle(&mut reactor);
    assert_eq!(turns.get(), 1);
    stale.take().unwrap().wake();
    settle(&mut reactor);
    assert_eq!(turns.get(), 1);
    current.take().unwrap().wake();
    settle(&mut reactor);
    assert_eq!(turns.get(), 2);
    let waker = current.take().unwrap();
    drop(reactor);
    waker.wake();
    assert_eq!(turns.get(), 2);
}

#[test]
fn a_wake_up_that_was_queued_when_its_task_ended_is_not_the_next_tasks() {
    let mut reactor = fifo();
    reactor.local().spawn(std::future::poll_fn(|cx| {
        cx.waker().wake_by_ref();
        std::task::Poll::Ready(())
    }));
    reactor.step();
    // Takes the slot that has just come free, while the wake-up still waits for the next pass.
    let turns = Rc::new(Cell::new(0));
    reactor.local().spawn(count_turns(turns.clone(), Rc::default()));
    settle(&mut reactor);
    assert_eq!(turns.get(), 1);
}

#[test]
fn many_wake_ups_before_a_turn_are_one_turn() {
    let mut reactor = fifo();
    let turns = Rc::new(Cell::new(0));
    let keep = Rc::new(RefCell::new(None));
    reactor.local().spawn(count_turns(turns.clone(), keep.clone()));
    settle(&mut reactor);
    let waker = keep.take().unwrap();
    for _ in 0..100 {
        waker.wake_by_ref();
    }
    assert_eq!(settle(&mut reactor), 1);
    assert_eq!(turns.get(), 2);
}

#[test]
fn a_task_of_one_reactor_is_woken_by_a_task_of_another_on_the_same_thread() {
    let (mut one, mut other) = (fifo(), fifo());
    let (sender, receiver) = oneshot();
    let mut handle = one.local().spawn_join(receiver);
    settle(&mut one);
    other.local().spawn(async move { sender.send(9) });
    settle(&mut other);
    assert_eq!(handle.try_take(), None, "it runs on its own reactor only");
    settle(&mut one);
    assert_eq!(handle.try_take(), Some(Some(9)));
}

#[test]
fn a_sleep_that_outlives_its_reactor_stays_harmless() {
    let (mut reactor, mut other) = (fifo(), fifo());
    let local = reactor.local();
    let mut sleep = Box::pin(local.sleep(Duration::from_secs(1)));
    assert!(poll_once(&mut sleep).is_pending());
    settle(&mut reactor);
    drop(reactor);
    let mut handle = other.local().spawn_join(sleep);
    settle(&mut other);
    assert_eq!(handle.try_take(), None);
}
