//! Bounds, order and ends of channels, events and semaphores.

use super::{Log, fifo, poll_once, settle};
use crate::channel::{Full, inbox, oneshot};
use crate::local::{Event, Semaphore};

#[test]
fn a_permit_sends_even_when_every_place_is_taken() {
    let (sender, mut receiver) = inbox(3);
    let permits: Vec<_> = (0..3).map(|_| sender.try_reserve().unwrap()).collect();
    assert_eq!(sender.try_reserve().unwrap_err(), Full);
    for (number, permit) in permits.into_iter().enumerate() {
        permit.send(number);
    }
    assert_eq!(sender.try_reserve().unwrap_err(), Full, "values take places too");
    assert_eq!(receiver.len(), 3);
    assert_eq!(receiver.try_recv(), Some(0));
    let permit = sender.try_reserve().expect("received, so free again");
    drop(permit);
    let permit = sender.try_reserve().expect("unused, so free again");
    permit.send(3);
    assert_eq!(std::iter::from_fn(|| receiver.try_recv()).collect::<Vec<_>>(), [1, 2, 3]);
    assert!(receiver.is_empty());
}

#[test]
fn an_inbox_ends_after_its_last_sender_permit_and_value() {
    let mut reactor = fifo();
    let (sender, mut receiver) = inbox(2);
    let permit = sender.try_reserve().unwrap();
    let log = Log::new();
    let seen = log.clone();
    let mut end = reactor.local().spawn_join(async move {
        while let Some(value) = receiver.recv().await {
            seen.push(value);
        }
    });
    settle(&mut reactor);
    drop(sender.clone());
    drop(sender);
    settle(&mut reactor);
    assert_eq!(end.try_take(), None, "the permit may still send");
    permit.send(1);
    settle(&mut reactor);
    assert_eq!((end.try_take(), log.take()), (Some(()), vec![1]));
}

#[test]
fn places_go_to_those_who_waited_longest_and_pass_by_those_who_gave_up() {
    let mut reactor = fifo();
    let (sender, mut receiver) = inbox(1);
    sender.try_reserve().unwrap().send(100);
    let mut waiters = Vec::new();
    for number in 0..3 {
        let sender = sender.clone();
        waiters.push(Box::pin(async move { sender.reserve().await.send(number) }));
    }
    let (mut first, mut second, mut third) =
        (waiters.remove(0), waiters.remove(0), waiters.remove(0));
    for waiter in [&mut first, &mut second, &mut third] {
        assert!(poll_once(waiter).is_pending());
    }
    drop(second);
    assert_eq!(receiver.try_recv(), Some(100));
    assert_eq!(sender.try_reserve().unwrap_err(), Full, "the place is promised already");
    reactor.local().spawn(third);
    settle(&mut reactor);
    assert!(receiver.is_empty(), "the third waits behind the first");
    reactor.local().spawn(first);
    settle(&mut reactor);
    assert_eq!(receiver.try_recv(), Some(0));
    settle(&mut reactor);
    assert_eq!(receiver.try_recv(), Some(2));
    assert!(sender.try_reserve().is_ok());
}

#[test]
fn a_promised_place_that_is_given_up_goes_to_the_next() {
    let mut reactor = fifo();
    let (sender, mut receiver) = inbox(1);
    sender.try_reserve().unwrap().send(0);
    let other = sender.clone();
    let mut gone = Box::pin(async move { other.reserve().await.send(1) });
    assert!(poll_once(&mut gone).is_pending());
    let other = sender.clone();
    reactor.local().spawn(async move { other.reserve().await.send(2) });
    settle(&mut reactor);
    assert_eq!(receiver.try_recv(), Some(0));
    drop(gone);
    settle(&mut reactor);
    assert_eq!(receiver.try_recv(), Some(2));
}

#[test]
fn a_oneshot_tells_both_ends_about_the_other() {
    let (sender, receiver) = oneshot::<u8>();
    assert!(!sender.is_closed());
    drop(receiver);
    assert!(sender.is_closed());
    sender.send(1);
    let (sender, mut receiver) = oneshot::<u8>();
    assert_eq!(receiver.try_recv(), None);
    sender.send(2);
    assert_eq!(receiver.try_recv(), Some(2));
}

#[test]
fn an_event_wakes_in_order_and_forgets_what_nobody_heard() {
    let mut reactor = fifo();
    let (event, log) = (Event::new(), Log::new());
    event.notify_all();
    event.notify_one();
    for number in 0..4 {
        let (event, log) = (event.clone(), log.clone());
        reactor.local().spawn(async move {
            event.listen().await;
            log.push(number);
        });
    }
    settle(&mut reactor);
    assert!(log.take().is_empty());
    event.notify_one();
    settle(&mut reactor);
    assert_eq!(log.take(), [0]);
    event.notify_all();
    settle(&mut reactor);
    assert_eq!(log.take(), [1, 2, 3]);
}

#[test]
fn a_listener_hears_from_its_making_on_and_passes_on_what_it_did_not_need() {
    let mut reactor = fifo();
    let event = Event::new();
    let (first, second) = (event.listen(), event.listen());
    event.notify_one();
    drop(first);
    let mut heard = reactor.local().spawn_join(second);
    settle(&mut reactor);
    assert_eq!(heard.try_take(), Some(()));
}

#[test]
fn a_large_request_is_not_overtaken_by_small_ones() {
    let mut reactor = fifo();
    let (semaphore, log) = (Semaphore::new(4), Log::new());
    let held = semaphore.try_acquire(3).unwrap();
    for (name, count) in [("large", 3), ("small", 1)] {
        let (semaphore, log) = (semaphore.clone(), log.clone());
        reactor.local().spawn(async move {
            let permit = semaphore.acquire(count).await;
            assert_eq!(permit.count(), count);
            log.push(name);
        });
    }
    settle(&mut reactor);
    assert!(log.take().is_empty());
    assert!(semaphore.try_acquire(1).is_none(), "nor by one that does not wait");
    drop(held);
    settle(&mut reactor);
    assert_eq!(log.take(), ["large", "small"]);
    assert_eq!(semaphore.available(), 4);
}

#[test]
fn giving_up_a_large_request_lets_the_small_ones_behind_it_pass() {
    let mut reactor = fifo();
    let semaphore = Semaphore::new(2);
    let held = semaphore.try_acquire(1).unwrap();
    let mut large = Box::pin(semaphore.acquire(2));
    assert!(poll_once(&mut large).is_pending());
    let mut small = reactor.local().spawn_join(semaphore.acquire(1));
    settle(&mut reactor);
    assert!(small.try_take().is_none());
    drop(large);
    settle(&mut reactor);
    assert_eq!(small.try_take().map(|permit| permit.count()), Some(1));
    drop(held);
    assert_eq!(semaphore.available(), 2);
}

#[test]
fn a_grant_that_nobody_takes_goes_back() {
    let semaphore = Semaphore::new(1);
    let held = semaphore.try_acquire(1).unwrap();
    let mut waiting = Box::pin(semaphore.acquire(1));
    assert!(poll_once(&mut waiting).is_pending());
    drop(held);
    assert_eq!(semaphore.available(), 0, "granted to the one who waits");
    drop(waiting);
    assert_eq!(semaphore.available(), 1);
}
