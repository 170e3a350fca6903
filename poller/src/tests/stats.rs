//! The counters say what happened.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::{TestClock, settle, still};
use crate::{Local, TaskOrder};

fn read(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

#[test]
fn tasks_and_messages_are_counted() {
    let (mut reactor, clock) = still(TaskOrder::Fifo, 0);
    let stats = reactor.stats();
    for seconds in 0..3 {
        let local = reactor.local();
        reactor.local().spawn(async move { local.sleep(Duration::from_secs(seconds)).await });
    }
    for _ in 0..100 {
        reactor.remote().spawn(Box::new(|_| ())).unwrap();
    }
    assert_eq!((read(&stats.tasks_spawned), read(&stats.tasks_live)), (3, 3));
    assert_eq!(read(&stats.inbox_depth), 100);
    reactor.step();
    assert_eq!(read(&stats.inbox_depth), 36);
    settle(&mut reactor);
    assert_eq!((read(&stats.tasks_live), read(&stats.inbox_depth)), (2, 0));
    clock.advance(Duration::from_secs(2));
    settle(&mut reactor);
    assert_eq!((read(&stats.tasks_spawned), read(&stats.tasks_live)), (3, 0));
}

#[test]
fn time_is_charged_to_what_the_pass_found() {
    let (mut reactor, clock) = still(TaskOrder::Fifo, 0);
    let stats = reactor.stats();
    reactor.local().spawn(async {});
    assert!(reactor.step().is_busy());
    clock.advance(Duration::from_nanos(30));
    assert!(!reactor.step().is_busy());
    clock.advance(Duration::from_nanos(500));
    assert!(!reactor.step().is_busy());
    assert_eq!((read(&stats.busy_ns), read(&stats.idle_ns)), (30, 500));
    assert_eq!(read(&stats.polls), 3);
    assert_eq!(read(&stats.sleeps), 0);
}

#[test]
fn long_turns_are_told_by_name() {
    let (mut reactor, clock) = still(TaskOrder::Fifo, 0);
    async fn slow(clock: TestClock, micros: &'static [u64], local: Local) {
        for &micros in micros {
            clock.advance(Duration::from_micros(micros));
            local.yield_now().await;
        }
    }
    let local = reactor.local();
    local.spawn(slow(clock.clone(), &[300, 10, 250, 200], local.clone()));
    let quick = clock.clone();
    local.spawn(async move { quick.advance(Duration::from_micros(50)) });
    settle(&mut reactor);
    let [turns] = reactor.stats().turns()[..] else { panic!("{:?}", reactor.stats().turns()) };
    assert!(turns.who.ends_with("long_turns_are_told_by_name::slow"), "{}", turns.who);
    assert_eq!((turns.long, turns.longest), (2, Duration::from_micros(300)));
}
