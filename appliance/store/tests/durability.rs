//! What is flushed before it is answered, and what waits for that.

mod common;

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use common::{EXTENT, Machine, Node, caller, config, put, tiny_ring};
use memkv_store::{
    Deleted, DriveId, Durability, Mode, Refusal, ReservationGrant, ReserveRequest, StoreConfig,
};

const MIB: usize = 1 << 20;

fn machine(drives: usize, durability: Durability) -> Machine {
    let config = StoreConfig { eviction: None, durability, ..config() };
    Machine::new(drives, 4 * MIB, tiny_ring(), config)
}

/// A reservation with extents on both drives.
fn spread(node: &mut Node, name: &str) -> ReservationGrant {
    loop {
        let request = put(&node.store, name, 4 * u64::from(EXTENT));
        let grant = node.reserve(request).expect("there is room");
        let first = grant.extents[0].drive;
        if grant.extents.iter().any(|e| e.drive != first) {
            return grant;
        }
        node.store.abort(grant.id);
    }
}

/// A reservation whose only extent is on this drive.
fn placed(node: &mut Node, request: &ReserveRequest, drive: DriveId) -> ReservationGrant {
    loop {
        let request = ReserveRequest { caller: caller(), ..request.clone() };
        let grant = node.reserve(request).expect("there is room");
        if grant.extents[0].drive == drive {
            return grant;
        }
        node.store.abort(grant.id);
    }
}

type Answer<T> = Rc<RefCell<Option<T>>>;

/// Starts something and turns the wheel until it waits or is done.
fn begin<T: 'static>(node: &mut Node, work: impl Future<Output = T> + 'static) -> Answer<T> {
    let done = Rc::new(RefCell::new(None));
    let said = done.clone();
    node.local().spawn(async move {
        let outcome = work.await;
        *said.borrow_mut() = Some(outcome);
    });
    node.settle();
    done
}

/// Starts a commit; its answer is the generation, 0 when it failed.
fn begin_commit(node: &mut Node, grant: &ReservationGrant) -> Answer<u64> {
    let (store, id, crcs) = (node.store.clone(), grant.id, vec![1; grant.extents.len()]);
    begin(node, async move { store.commit(id, &crcs).await.map_or(0, |stored| stored.generation) })
}

fn flushes(node: &Node) -> u64 {
    node.store.drives().iter().map(|drive| drive.journal.flushes).sum()
}

#[test]
fn a_put_is_seen_when_data_and_then_records_are_flushed_on_every_drive() {
    let machine = machine(2, Durability::Power);
    let mut node = machine.start();
    let grant = spread(&mut node, "k");
    let [one, other] = &machine.disks[..] else { unreachable!("two drives") };
    one.hold_flushes();
    other.hold_flushes();
    let written = || one.writes() + other.writes();
    let before = written();
    let done = begin_commit(&mut node, &grant);
    assert_eq!((one.holds(), other.holds()), (1, 1), "the data is flushed");
    assert_eq!(written(), before, "no record before its data is safe");
    one.let_one_go();
    node.settle();
    assert_eq!(written(), before, "that of the other drive, too");
    other.let_one_go();
    node.settle();
    assert_eq!(written(), before + 2, "a frame on each drive");
    assert_eq!((one.holds(), other.holds()), (1, 1), "the records are flushed");
    assert!(done.borrow().is_none() && node.generation("k").is_none());
    other.let_one_go();
    node.settle();
    assert!(done.borrow().is_none() && node.generation("k").is_none(), "on every drive");
    one.let_one_go();
    node.settle();
    assert_eq!(*done.borrow(), node.generation("k"));
    assert!(done.borrow().is_some());
}

#[test]
fn where_only_the_process_may_die_only_those_who_ask_wait_for_a_flush() {
    let machine = machine(1, Durability::Process);
    let mut node = machine.start();
    node.put("plain", 10);
    assert_eq!(flushes(&node), 0);
    let request = ReserveRequest { durable: true, ..put(&node.store, "asked", 10) };
    node.put_as(request).expect("there is room");
    assert_eq!(flushes(&node), 2);
    node.delete("plain");
    assert_eq!(flushes(&node), 2);
}

#[test]
fn that_a_key_is_present_is_said_when_it_is_flushed_to_who_asks_for_that() {
    let machine = machine(1, Durability::Process);
    let mut node = machine.start();
    let generation = node.put("k", 10);
    machine.disks[0].hold_flushes();
    let absent = ReserveRequest { mode: Mode::Absent, ..put(&node.store, "k", 10) };
    let durable = ReserveRequest { durable: true, caller: caller(), ..absent.clone() };
    let store = node.store.clone();
    let plain = begin(&mut node, async move { store.reserve(absent).await.unwrap_err() });
    assert!(matches!(&*plain.borrow(), Some(Refusal::Present(_))), "at once");
    let store = node.store.clone();
    let asked = begin(&mut node, async move { store.reserve(durable).await.unwrap_err() });
    assert!(asked.borrow().is_none());
    machine.disks[0].let_one_go();
    node.settle();
    let Some(Refusal::Present(existing)) = asked.borrow_mut().take() else { panic!("present") };
    assert_eq!(existing.generation, generation);
}

/// The drive of the newer block may be lost after the power cut: the older one must not be back then.
#[test]
fn who_asks_for_a_flush_waits_for_that_of_what_was_removed_from_other_drives() {
    for breaks in [false, true] {
        let machine = machine(2, Durability::Process);
        let mut node = machine.start();
        let plain = put(&node.store, "k", 10);
        let older = placed(&mut node, &plain, DriveId(0));
        node.commit(older, 1).expect("stored");
        let durable = ReserveRequest { durable: true, ..plain.clone() };
        let newer = placed(&mut node, &durable, DriveId(1));
        machine.disks[0].hold_flushes();
        let done = begin_commit(&mut node, &newer);
        assert_eq!(machine.disks[0].holds(), 1);
        assert!(done.borrow().is_none(), "a power cut may bring the older block back");
        // A drive that fails then is out, and what is on it with it.
        machine.disks[0].set_broken(breaks);
        machine.disks[0].let_go();
        node.settle();
        let generation = *done.borrow();
        assert!(generation > Some(0) && generation == node.generation("k"));
        if breaks {
            continue;
        }
        // The same for who is told that it is there already.
        machine.disks[0].hold_flushes();
        let absent = ReserveRequest { mode: Mode::Absent, caller: caller(), ..durable };
        let store = node.store.clone();
        let told = begin(&mut node, async move { store.reserve(absent).await.unwrap_err() });
        assert!(told.borrow().is_none());
        machine.disks[0].let_go();
        node.settle();
        assert!(matches!(&*told.borrow(), Some(Refusal::Present(_))));
    }
}

#[test]
fn a_delete_is_answered_and_its_units_are_free_when_it_is_flushed() {
    let machine = machine(1, Durability::Power);
    let mut node = machine.start();
    let free = node.free_units();
    let generation = node.put("k", 10);
    machine.disks[0].hold_flushes();
    let (store, hash) = (node.store.clone(), node.hash("k"));
    let deadline = node.store.local().now() + Duration::from_secs(60);
    let done = begin(&mut node, async move { store.delete(hash, 0, deadline, caller()).await });
    assert!(done.borrow().is_none() && node.generation("k").is_none());
    assert!(node.free_units() < free, "another block would lie over what a power cut brings back");
    machine.disks[0].let_one_go();
    node.settle();
    assert_eq!(*done.borrow(), Some(Deleted::Gone { generation }));
    assert_eq!(node.free_units(), free);
}

#[test]
fn puts_that_come_together_share_flushes() {
    let machine = machine(1, Durability::Power);
    let mut node = machine.start();
    let grants: Vec<_> = (0..16)
        .map(|n| node.reserve(put(&node.store.clone(), &format!("k{n}"), 10)).expect("room"))
        .collect();
    machine.disks[0].hold_flushes();
    let answers: Vec<_> = grants.iter().map(|grant| begin_commit(&mut node, grant)).collect();
    let mut let_go = 0;
    while machine.disks[0].holds() > 0 {
        machine.disks[0].let_one_go();
        node.settle();
        let_go += 1;
    }
    assert!(answers.iter().all(|answer| answer.borrow().is_some_and(|generation| generation > 0)));
    // The data of the first; the data of all others; the record of the first, for its frame was
    // written while that flush was under way; and the records of all others.
    assert_eq!((let_go, flushes(&node)), (4, 4));
}

#[test]
fn a_drive_that_cannot_flush_is_taken_offline_and_its_put_refused() {
    let machine = machine(2, Durability::Power);
    let mut node = machine.start();
    let grant = spread(&mut node, "k");
    machine.disks[1].hold_flushes();
    let done = begin_commit(&mut node, &grant);
    machine.disks[1].set_broken(true);
    machine.disks[1].let_go();
    node.settle();
    assert_eq!(*done.borrow(), Some(0));
    assert_eq!(node.generation("k"), None);
    let online: Vec<DriveId> = node
        .store
        .drives()
        .iter()
        .filter(|drive| drive.state == memkv_store::DriveState::Online)
        .map(|drive| drive.id)
        .collect();
    assert_eq!(online, [DriveId(0)]);
}
