//! Keys: their hashes, and one writer at a time.

mod common;

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use common::{Machine, caller, config, key, put, tiny_ring};
use memkv_poller::{Reactor, ReactorConfig, Rng, SystemClock};
use memkv_store::locks::{Contended, KeyLocks};
use memkv_store::{Deleted, KeyHash, Mode, Outcome, Refusal, ReserveRequest};

fn reactor() -> Reactor {
    Reactor::new(ReactorConfig::default(), Rc::new(SystemClock), Rng::seeded(1))
}

#[test]
fn hashes_of_keys_are_the_same_in_every_version() {
    // SipHash-1-3 with 128 bits over the encoded key, by the first 16 bytes of the secret; computed
    // with an implementation of its own. What is on drives is found by these numbers.
    let secret: [u8; 32] = std::array::from_fn(|i| i as u8);
    let hasher = memkv_store::KeyHasher::new(&secret);
    assert_eq!(hasher.hash(&key("a key")), KeyHash(0x20ed7bf7d7cfa17a66ce0b781b2f0908));
    let other = memkv_journal::KeyBytes::new("tenant", "spac", b"ea key").expect("short");
    assert_ne!(hasher.hash(&other), hasher.hash(&key("a key")), "the parts are told apart");
}

#[test]
fn a_key_is_handed_on_in_order_of_arrival() {
    let mut reactor = reactor();
    let local = reactor.local();
    let locks = Rc::new(KeyLocks::default());
    let order = Rc::new(RefCell::new(Vec::new()));
    let first = locks.try_lock(KeyHash(1)).expect("it is free");
    assert!(locks.try_lock(KeyHash(1)).is_none());
    assert!(locks.try_lock(KeyHash(2)).is_some(), "another key is free");
    for n in 0..5 {
        let (locks, inner, order) = (locks.clone(), local.clone(), order.clone());
        local.spawn(async move {
            let deadline = inner.now() + Duration::from_secs(60);
            let guard = locks.lock(&inner, KeyHash(1), deadline).await.expect("in time");
            order.borrow_mut().push(n);
            inner.yield_now().await;
            drop(guard);
        });
    }
    while reactor.step().is_busy() {}
    assert!(order.borrow().is_empty(), "it is held");
    drop(first);
    while reactor.step().is_busy() {}
    assert_eq!(*order.borrow(), [0, 1, 2, 3, 4]);
    assert!(!locks.is_held(KeyHash(1)), "the last one left nothing behind");
}

#[test]
fn who_gives_up_waiting_does_not_keep_the_key() {
    let mut reactor = reactor();
    let local = reactor.local();
    let locks = Rc::new(KeyLocks::default());
    let first = locks.try_lock(KeyHash(1)).expect("it is free");
    let late = {
        let (locks, inner) = (locks.clone(), local.clone());
        reactor.block_on(async move {
            let deadline = inner.now() + Duration::from_millis(5);
            locks.lock(&inner, KeyHash(1), deadline).await.map(drop)
        })
    };
    assert_eq!(late, Err(Contended));
    drop(first);
    assert!(!locks.is_held(KeyHash(1)));
}

/// The key is handed to a waiter whose deadline passes before he looks: it goes to the next.
#[test]
fn a_key_granted_after_the_deadline_is_passed_on() {
    let mut reactor = reactor();
    let local = reactor.local();
    let locks = Rc::new(KeyLocks::default());
    let first = locks.try_lock(KeyHash(1)).expect("it is free");
    let (inner, waiting) = (local.clone(), locks.clone());
    let wait = Box::pin(async move {
        let deadline = inner.now() + Duration::from_secs(60);
        waiting.lock(&inner, KeyHash(1), deadline).await.map(drop)
    });
    let mut wait = wait;
    let outcome = reactor.block_on(async move {
        std::future::poll_fn(|cx| {
            assert!(wait.as_mut().poll(cx).is_pending());
            std::task::Poll::Ready(())
        })
        .await;
        // Granted, and dropped before it was polled again.
        drop(first);
        let held = locks.is_held(KeyHash(1));
        drop(wait);
        (held, locks.is_held(KeyHash(1)))
    });
    assert_eq!(outcome, (true, false));
}

#[test]
fn a_put_waits_for_a_put_of_its_key_and_a_delete_orders_after_it() {
    let machine = Machine::new(1, 4 << 20, tiny_ring(), config());
    let mut node = machine.start();
    let store = node.store.clone();
    let grant = node.reserve(put(&store, "k", 10)).expect("there is room");
    let log = Rc::new(RefCell::new(Vec::new()));
    let (second, said) = (put(&store, "k", 20), log.clone());
    let again = store.clone();
    node.local().spawn(async move {
        let grant = again.reserve(second).await.expect("after the first");
        let stored = again.commit(grant.id, &[2]).await.expect("the drive works");
        said.borrow_mut().push(("second", stored.generation));
    });
    node.settle();
    let (hash, said, deleting) = (node.hash("k"), log.clone(), store.clone());
    node.local().spawn(async move {
        let deadline = deleting.local().now() + Duration::from_secs(60);
        let Deleted::Gone { generation } = deleting.delete(hash, 0, deadline, caller()).await
        else {
            panic!("it is there by then")
        };
        said.borrow_mut().push(("delete", generation));
    });
    node.settle();
    assert!(log.borrow().is_empty());
    let hasty = ReserveRequest { deadline: store.local().now(), ..put(&store, "k", 30) };
    assert!(matches!(node.reserve(hasty), Err(Refusal::Busy { .. })), "nothing was reserved");
    let generation = node.commit(grant, 1).expect("the drive works").generation;
    node.settle();
    assert_eq!(*log.borrow(), [("second", generation + 1), ("delete", generation + 1)]);
    assert_eq!(node.generation("k"), None);
    let counters = store.counters();
    assert_eq!((counters.put_put.get(), counters.put_delete.get()), (2, 1));
    let all = store.drives();
    assert_eq!(all[0].units_free, all[0].units_total);
}

#[test]
fn modes_of_puts_look_at_what_is_there() {
    let machine = Machine::new(1, 4 << 20, tiny_ring(), config());
    let mut node = machine.start();
    let store = node.store.clone();
    let as_mode = |mode, length| ReserveRequest { mode, ..put(&store, "k", length) };
    let first = node.put_as(as_mode(Mode::Absent, 10)).expect("absent");
    let Err(Refusal::Present(found)) = node.put_as(as_mode(Mode::Absent, 10)) else { panic!() };
    assert_eq!((found.generation, found.length, found.crcs.len()), (first, 10, 1));
    let Err(Refusal::Conflict(found)) = node.put_as(as_mode(Mode::Absent, 11)) else { panic!() };
    assert_eq!(found.length, 10);
    let other = as_mode(Mode::Generation(first + 1), 10);
    let Err(Refusal::GenerationMismatch(Some(found))) = node.put_as(other) else { panic!() };
    assert_eq!(found.generation, first);
    let second = node.put_as(as_mode(Mode::Generation(first), 12)).expect("just that one");
    assert!(second > first);
    let third = node.put_as(as_mode(Mode::Replace, 13)).expect("whatever is there");
    node.delete("k");
    let gone = node.put_as(as_mode(Mode::Generation(third), 13));
    assert_eq!(gone, Err(Refusal::GenerationMismatch(None)));
}

#[test]
fn a_retry_is_answered_from_memory_and_only_for_its_own_key() {
    let machine = Machine::new(1, 4 << 20, tiny_ring(), config());
    let mut node = machine.start();
    let request = put(&node.store, "k", 10);
    let generation = node.put_as(request.clone()).expect("there is room");
    let Err(Refusal::Done(outcome)) = node.put_as(request.clone()) else { panic!("applied twice") };
    assert_eq!(outcome, Outcome::Stored { generation });
    // The same request id for another key is another request: it is stored before it is answered.
    let other = ReserveRequest { caller: request.caller, ..put(&node.store, "other", 10) };
    assert!(node.put_as(other).expect("there is room") > generation);
    assert!(node.generation("other").is_some());
    // A retry of an absent put gets its own generation, not "present".
    let absent = ReserveRequest { mode: Mode::Absent, ..put(&node.store, "absent", 10) };
    let generation = node.put_as(absent.clone()).expect("there is room");
    assert_eq!(node.put_as(absent), Err(Refusal::Done(Outcome::Stored { generation })));

    let (store, hash, who) = (node.store.clone(), node.hash("k"), caller());
    let delete = move |node: &mut common::Node| {
        let store = store.clone();
        let deadline = store.local().now() + Duration::from_secs(5);
        node.run(async move { store.delete(hash, 0, deadline, who).await })
    };
    let first = delete(&mut node);
    assert!(matches!(first, Deleted::Gone { .. }));
    node.put("k", 20);
    assert_eq!(delete(&mut node), first, "the retry does not delete what came after");
    assert!(node.generation("k").is_some());
}
