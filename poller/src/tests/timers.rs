//! Time passes only when the clock says so.

use std::time::Duration;

use super::{Log, fifo, poll_once, settle, still};
use crate::channel::oneshot;
use crate::{Elapsed, Instant, TaskOrder, timeout};

const MS: Duration = Duration::from_millis(1);

#[test]
fn sleepers_wake_by_time_and_then_by_the_order_they_fell_asleep() {
    let (mut reactor, clock) = still(TaskOrder::Fifo, 0);
    let log = Log::new();
    for (name, wait) in [("c", 30), ("a", 10), ("b1", 20), ("b2", 20), ("now", 0)] {
        let (local, log) = (reactor.local(), log.clone());
        reactor.local().spawn(async move {
            local.sleep(MS * wait).await;
            log.push((name, local.now().as_nanos() / 1_000_000));
        });
    }
    settle(&mut reactor);
    assert_eq!(log.take(), [("now", 0)]);
    assert_eq!(reactor.next_timer(), Some(Instant::ORIGIN + MS * 10));
    clock.advance(MS * 20);
    settle(&mut reactor);
    assert_eq!(log.take(), [("a", 20), ("b1", 20), ("b2", 20)]);
    clock.advance(MS * 9);
    settle(&mut reactor);
    assert!(log.take().is_empty());
    clock.advance(MS);
    settle(&mut reactor);
    assert_eq!(log.take(), [("c", 30)]);
    assert_eq!(reactor.next_timer(), None);
}

#[test]
fn a_crowd_of_due_timers_is_fired_over_several_passes() {
    let (mut reactor, clock) = still(TaskOrder::Fifo, 0);
    let log = Log::new();
    for number in 0..1000 {
        let (local, log) = (reactor.local(), log.clone());
        reactor.local().spawn(async move {
            local.sleep(MS).await;
            log.push(number);
        });
    }
    settle(&mut reactor);
    clock.advance(MS);
    reactor.step();
    assert!(log.0.borrow().len() <= 128 && reactor.next_timer().is_some());
    settle(&mut reactor);
    assert_eq!(log.take(), (0..1000).collect::<Vec<_>>());
}

#[test]
fn timeouts_that_are_not_needed_leave_no_timer_behind() {
    let (mut reactor, _clock) = still(TaskOrder::Fifo, 0);
    let local = reactor.local();
    let mut handle = reactor.local().spawn_join(async move {
        for number in 0..10_000u32 {
            let (sender, receiver) = oneshot();
            local.spawn(async move { sender.send(number) });
            let at = local.now() + Duration::from_secs(3600);
            assert_eq!(timeout(&local, at, receiver).await, Ok(Some(number)));
        }
    });
    settle(&mut reactor);
    assert_eq!(handle.try_take(), Some(()));
    assert_eq!(reactor.next_timer(), None);
}

#[test]
fn a_timeout_gives_up_the_wait_and_drops_it() {
    let (mut reactor, clock) = still(TaskOrder::Fifo, 0);
    let (sender, receiver) = oneshot::<()>();
    let local = reactor.local();
    let mut handle = reactor
        .local()
        .spawn_join(async move { timeout(&local, Instant::ORIGIN + MS * 5, receiver).await });
    settle(&mut reactor);
    assert!(!sender.is_closed());
    clock.advance(MS * 5);
    settle(&mut reactor);
    assert!(matches!(handle.try_take(), Some(Err(Elapsed))));
    assert!(sender.is_closed(), "the wait was dropped");
}

#[test]
fn what_is_ready_wins_over_a_deadline_that_has_passed() {
    let mut reactor = fifo();
    let local = reactor.local();
    let mut handle = reactor.local().spawn_join(async move {
        let past = timeout(&local, Instant::ORIGIN, std::future::ready(1)).await;
        let never = timeout(&local, Instant::ORIGIN, std::future::pending::<()>()).await;
        (past, never)
    });
    settle(&mut reactor);
    assert_eq!(handle.try_take(), Some((Ok(1), Err(Elapsed))));
}

#[test]
fn a_sleep_may_move_to_another_task_and_wakes_that_one() {
    let (mut reactor, clock) = still(TaskOrder::Fifo, 0);
    let local = reactor.local();
    let mut sleep = Box::pin(local.sleep(MS));
    assert!(poll_once(&mut sleep).is_pending());
    let mut woken = reactor.local().spawn_join(async move {
        sleep.await;
        local.now()
    });
    settle(&mut reactor);
    assert_eq!(woken.try_take(), None);
    clock.advance(MS);
    settle(&mut reactor);
    assert_eq!(woken.try_take(), Some(Instant::ORIGIN + MS));
}
