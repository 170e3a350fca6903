//! The store from another reactor: what is taken comes back, whoever is slow and whoever is gone.

mod common;

use std::cell::Cell;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use common::{EXTENT, Machine, Node, UNIT, caller, config, put, tiny_ring};
use memkv_poller::{Progress, Reactor};
use memkv_store::{
    Deleted, Miss, MissReason, ReadLease, Refusal, Reservation, StoreHandle, StorePort, UnderWay,
};

/// A store, and a reactor beside it with a handle of it.
struct Pair {
    node: Node,
    other: Reactor,
    handle: StoreHandle,
}

impl Pair {
    fn new(machine: &Machine, ends: usize) -> Pair {
        let node = machine.start();
        let remote = StorePort::open(&node.store, 16, ends);
        let other = machine.reactor(1);
        Pair { node, other, handle: StoreHandle::There(Box::new(remote)) }
    }

    /// Starts something on the other reactor; its result when it is there.
    fn begin<T: 'static>(
        &mut self,
        future: impl Future<Output = T> + 'static,
    ) -> Rc<Cell<Option<T>>> {
        let result = Rc::new(Cell::new(None));
        let slot = result.clone();
        self.other.local().spawn(async move { slot.set(Some(future.await)) });
        result
    }

    /// Turns both wheels until nothing moves.
    fn settle(&mut self) {
        let busy = |progress: Progress| progress.is_busy();
        while busy(self.node.reactor.step()) | busy(self.other.step()) {}
    }

    fn run<T: 'static>(&mut self, future: impl Future<Output = T> + 'static) -> T {
        let result = self.begin(future);
        self.settle();
        result.take().expect("it does not wait for anything else")
    }

    fn reserve(&mut self, name: &str, length: u64) -> Result<Reservation, Refusal> {
        let (handle, request) = (self.handle.clone(), put(&self.node.store, name, length));
        self.run(async move { handle.reserve(request).await })
    }

    fn lease(&mut self, name: &str) -> Result<ReadLease, Miss> {
        let (handle, hash) = (self.handle.clone(), self.node.hash(name));
        self.run(async move { handle.lease(hash).await })
    }

    fn put(&mut self, name: &str, length: u64) -> u64 {
        let reservation = self.reserve(name, length).expect("there is room");
        let crcs = vec![7; reservation.extents().len()];
        let stored = self.run(async move { reservation.commit(crcs).await });
        stored.expect("the drives work").generation
    }
}

fn machine(drives: usize) -> Machine {
    Machine::new(drives, 4 << 20, tiny_ring(), config())
}

#[test]
fn what_a_session_drops_comes_back_when_the_store_looks() {
    let machine = machine(1);
    let mut pair = Pair::new(&machine, 64);
    pair.put("k", 3 * u64::from(EXTENT));
    let leases: Vec<_> = (0..5).map(|_| pair.lease("k").expect("it is there")).collect();
    let reservations: Vec<_> =
        (0..5).map(|n| pair.reserve(&format!("new {n}"), 100).expect("room")).collect();
    let under_way = pair.node.store.under_way();
    assert_eq!((under_way.readers, under_way.reservations, under_way.keys), (5, 5, 5));
    // The store's reactor stands still: dropping does not wait for it.
    drop((leases, reservations));
    assert_eq!(pair.node.store.under_way(), under_way);
    pair.settle();
    let expected = UnderWay { units: u64::from(3 * EXTENT / UNIT), ..UnderWay::default() };
    assert_eq!(pair.node.store.under_way(), expected);
    assert_eq!(pair.node.store.counters().aborts.get(), 5);
}

#[test]
fn places_for_the_end_are_taken_at_the_beginning_and_only_reads_wait_for_them() {
    let machine = machine(1);
    let mut pair = Pair::new(&machine, 2);
    pair.put("k", 10);
    let first = pair.lease("k").expect("it is there");
    let reservation = pair.reserve("new", 10).expect("there is room");
    let refused = pair.reserve("another", 10).err();
    assert!(matches!(refused, Some(Refusal::Busy { .. })), "an answer, not a queue");
    let (handle, hash) = (pair.handle.clone(), pair.node.hash("k"));
    let waiting = pair.begin(async move { handle.lease(hash).await.is_ok() });
    pair.settle();
    assert_eq!(waiting.take(), None);
    // Calls go on meanwhile.
    let (handle, hash) = (pair.handle.clone(), pair.node.hash("k"));
    let exists = pair.run(async move { handle.exists(vec![hash]).await });
    assert!(exists.expect("the store runs")[0].is_ok());
    drop(first);
    pair.settle();
    assert_eq!(waiting.take(), Some(true));
    drop(reservation);
    pair.settle();
    let under_way = pair.node.store.under_way();
    assert_eq!((under_way.readers, under_way.reservations), (0, 0));
}

#[test]
fn both_handles_say_the_same() {
    let machine = machine(2);
    let mut pair = Pair::new(&machine, 64);
    let here = StoreHandle::Here(pair.node.store.clone());
    let generation = pair.put("k", 5 * u64::from(UNIT));
    let (hash, none) = (pair.node.hash("k"), pair.node.hash("none"));
    for handle in [here, pair.handle.clone()] {
        let who = caller();
        let deadline = pair.node.local().now() + Duration::from_secs(5);
        pair.run(async move {
            let found = handle.exists(vec![hash, none]).await.expect("the store runs");
            assert_eq!(found[0].as_ref().map(|f| f.generation), Ok(generation));
            assert_eq!(found[1], Err(Miss(MissReason::Never)));
            assert_eq!(handle.match_prefix(vec![hash, hash, none, hash]).await, Ok(2));
            let lease = handle.lease(hash).await.expect("it is there");
            assert_eq!(lease.block().length, 5 * u64::from(UNIT));
            assert_eq!(lease.block().extents.len(), 3);
            lease.mark_verified(&handle, 0b111);
            drop(lease);
            let held = handle.hold(vec![hash, none], 7, Duration::from_secs(1)).await;
            let held: Vec<_> = held.expect("the store runs").iter().map(Result::is_ok).collect();
            assert_eq!(held, [true, false]);
            handle.unhold(vec![hash], 7).await;
            let other = handle.delete(hash, generation + 1, deadline, who).await;
            assert_eq!(other, Ok(Deleted::OtherGeneration { generation }));
            handle.drop_corrupt(hash, generation + 1).await;
            assert!(handle.lease(hash).await.is_ok(), "another generation is left alone");
            assert_eq!(handle.drives().await.expect("the store runs").len(), 2);
            assert_eq!(handle.config().extent_bytes, EXTENT);
            drop(handle.gather_turn().await);
        });
    }
    let handle = pair.handle.clone();
    pair.run(async move { handle.drop_corrupt(hash, generation).await });
    assert_eq!(pair.lease("k").err(), Some(Miss(MissReason::Corrupt)));
    assert_eq!(
        pair.node.free_units(),
        pair.node.store.drives().iter().map(|d| d.units_total).sum()
    );
}

#[test]
fn one_at_a_time_gathers_memory_over_all_reactors() {
    let machine = machine(1);
    let mut pair = Pair::new(&machine, 64);
    let here = StoreHandle::Here(pair.node.store.clone());
    let there = pair.handle.clone();
    let first = pair.run(async move { there.gather_turn().await });
    let (second, third) = (pair.handle.clone(), here.clone());
    let second = pair.begin(async move { second.gather_turn().await });
    pair.settle();
    let third = pair.begin(async move { third.gather_turn().await });
    pair.settle();
    assert!(second.take().is_none() && third.take().is_none());
    drop(first);
    pair.settle();
    let turn = second.take().expect("first come, first served");
    assert!(third.take().is_none());
    drop(turn);
    pair.settle();
    assert!(third.take().is_some());
}

#[test]
fn a_failed_drive_is_told_before_the_search_for_another_place() {
    let machine = machine(2);
    let mut pair = Pair::new(&machine, 64);
    let mut reservation = pair.reserve("k", 8 * u64::from(EXTENT)).expect("there is room");
    let failed = reservation.extents()[0].drive;
    let handle = pair.handle.clone();
    let generation = pair.run(async move {
        handle.drive_failed(failed, &"a test says so").await;
        reservation.place_again(failed).await.expect("the other has room");
        assert!(reservation.extents().iter().all(|extent| extent.drive != failed));
        let crcs = vec![1; reservation.extents().len()];
        reservation.commit(crcs).await.expect("the other works").generation
    });
    assert_eq!(pair.node.generation("k"), Some(generation));
    let mut last = pair.reserve("gone", 10).expect("there is room");
    let handle = pair.handle.clone();
    let refused = pair.run(async move {
        let drive = last.extents()[0].drive;
        handle.drive_failed(drive, &"a test says so").await;
        last.place_again(drive).await
    });
    assert_eq!(refused, Err(Refusal::Full));
    assert_eq!(pair.reserve("nothing", 10).err(), Some(Refusal::NoDrive));
    assert_eq!(pair.lease("k").err(), Some(Miss(MissReason::DriveLost)));
    assert_eq!(pair.node.store.under_way().reservations, 0);
}

#[test]
fn a_store_that_is_gone_is_an_answer_and_not_a_wait() {
    let machine = machine(1);
    let mut pair = Pair::new(&machine, 64);
    pair.put("k", 10);
    let lease = pair.lease("k").expect("it is there");
    let reservation = pair.reserve("new", 10).expect("there is room");
    let hash = pair.node.hash("k");
    let request = put(&pair.node.store, "later", 10);
    let Pair { node, mut other, handle } = pair;
    machine.kill(node);
    drop(lease);
    let outcome = other.block_on(async move {
        assert!(reservation.commit(vec![1]).await.is_err());
        assert!(handle.lease(hash).await.is_err());
        assert!(matches!(handle.reserve(request).await, Err(Refusal::Busy { .. })));
        handle.unhold(vec![hash], 1).await;
        handle.drop_corrupt(hash, 1).await;
        drop(handle.gather_turn().await);
        handle.exists(vec![hash]).await.is_err() && handle.drives().await.is_err()
    });
    assert!(outcome);
}
