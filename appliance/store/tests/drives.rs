//! Drives that fail, fill and come back: what is published, what is freed, who waits.

mod common;

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use common::{BEHIND_TINY_RING, EXTENT, Machine, UNIT, config, put, tiny_ring};
use memkv_store::{CommitError, Deleted, DriveId, DriveState, Mode, Refusal};

const MIB: usize = 1 << 20;

/// A put whose extents lie on both drives of a machine.
fn spread(node: &mut common::Node, name: &str) -> memkv_store::ReservationGrant {
    loop {
        let request = put(&node.store, name, 4 * u64::from(EXTENT));
        let grant = node.reserve(request).expect("there is room");
        if grant.extents.iter().any(|e| e.drive != grant.extents[0].drive) {
            return grant;
        }
        node.store.abort(grant.id);
    }
}

#[test]
fn a_removal_that_waits_for_room_ends_when_its_drive_goes_offline() {
    let machine = Machine::new(1, 4 * MIB, tiny_ring(), config());
    let mut node = machine.start();
    let (stored, deletes) = fill_ring(&mut node, &machine.disks[0]);
    node.store.drive_failed(DriveId(0), &"a test says so");
    machine.disks[0].let_go();
    node.settle();
    assert_eq!(deletes.ended.get(), stored, "nobody waits for a checkpoint that never comes");
}

/// Deletes that were answered, and those of them that succeeded.
#[derive(Debug, Default)]
struct Deletes {
    gone: Cell<usize>,
    ended: Cell<usize>,
}

/// Puts until the ring takes no more, then deletes until not even removals fit; the checkpoint that
/// would make room is held. Says how many were stored, and counts the deletes.
fn fill_ring(node: &mut common::Node, disk: &common::Disk) -> (usize, Rc<Deletes>) {
    disk.hold_from(BEHIND_TINY_RING);
    let mut stored = 0;
    while node.put_as(put(&node.store.clone(), &format!("key {stored}"), 100)).is_ok() {
        stored += 1;
    }
    let deletes = Rc::new(Deletes::default());
    for n in 0..stored {
        let (store, hash, deletes) =
            (node.store.clone(), node.hash(&format!("key {n}")), deletes.clone());
        let deadline = store.local().now() + Duration::from_secs(60);
        node.local().spawn(async move {
            let deleted = store.delete(hash, 0, deadline, common::caller()).await;
            let gone = matches!(deleted, Deleted::Gone { .. });
            deletes.gone.set(deletes.gone.get() + usize::from(gone));
            deletes.ended.set(deletes.ended.get() + 1);
        });
        node.settle();
    }
    assert!(deletes.gone.get() > 0 && deletes.ended.get() < stored, "{deletes:?} of {stored}");
    (stored, deletes)
}

#[test]
fn removals_that_used_up_their_reserve_go_on_after_the_checkpoint() {
    let machine = Machine::new(1, 4 * MIB, tiny_ring(), config());
    let mut node = machine.start();
    let (stored, deletes) = fill_ring(&mut node, &machine.disks[0]);
    machine.disks[0].let_go();
    node.settle();
    assert_eq!(deletes.gone.get(), stored);
    assert!(node.store.counters().checkpoints.get() > 0);
    let node = machine.restart(node);
    assert!((0..stored).all(|n| node.generation(&format!("key {n}")).is_none()));
}

#[test]
fn a_start_that_must_clean_up_in_a_full_ring_makes_room_first() {
    let machine = Machine::new(2, 4 * MIB, tiny_ring(), config());
    let mut node = machine.start();
    // Half a put: what is on drive 1 never comes.
    let grant = spread(&mut node, "half");
    machine.disks[1].hold();
    let store = node.store.clone();
    node.local().spawn(async move {
        let _ = store.commit(grant.id, &[1; 4]).await;
    });
    node.settle();
    node.store.drive_failed(DriveId(1), &"a test says so");
    let (stored, deletes) = fill_ring(&mut node, &machine.disks[0]);
    let answered = deletes.gone.get();
    let mut node = machine.restart(node);
    assert_eq!(node.generation("half"), None);
    let left = (0..stored).filter(|n| node.generation(&format!("key {n}")).is_some()).count();
    assert_eq!(left, stored - answered, "deletes that were answered stay so");
    assert!(node.put("half", 100) > 0);
}

#[test]
fn blocks_are_placed_by_free_space_and_never_where_nothing_is_free() {
    let machine =
        Machine::of_node(1, &[4 * MIB, 12 * MIB], tiny_ring(), common::without_eviction());
    let mut node = machine.start();
    let free = |node: &common::Node| -> Vec<u64> {
        node.store.drives().iter().map(|drive| drive.units_free).collect()
    };
    let before = free(&node);
    for n in 0..200 {
        node.put(&format!("small {n}"), 10);
    }
    let after = free(&node);
    let taken: Vec<_> = before.iter().zip(&after).map(|(before, after)| before - after).collect();
    let share = before[0] as f64 / (before[0] + before[1]) as f64;
    let found = taken[0] as f64 / 200.0;
    assert!((found - share).abs() < 0.1, "{found} of the blocks, {share} of the space");
    // To the last pair of units on both; meanwhile the rings fill, and checkpoints make room again.
    let mut n = 0;
    let refused = loop {
        match node.put_as(put(&node.store.clone(), &format!("more {n}"), u64::from(UNIT) + 1)) {
            Ok(_) => n += 1,
            Err(Refusal::Busy { .. }) => node.settle(),
            Err(refused) => break refused,
        }
    };
    assert_eq!(refused, Refusal::Full);
    assert!(free(&node).iter().all(|&left| left < 2), "{:?}", free(&node));
}

/// A drive that is slow to write its checkpoint does not keep puts from the others.
#[test]
fn a_full_ring_on_one_drive_leaves_the_others_to_puts() {
    let machine = Machine::new(2, 4 * MIB, tiny_ring(), config());
    let mut node = machine.start();
    machine.disks[0].hold_from(BEHIND_TINY_RING);
    // Puts on drive 0, until it is never chosen any more.
    let mut elsewhere = 0;
    let mut n = 0;
    while elsewhere < 20 {
        let request = put(&node.store, &format!("key {n}"), 10);
        let grant = node.reserve(request).expect("one drive has room");
        if grant.extents[0].drive == DriveId(0) {
            node.commit(grant, 1).expect("the drive works");
            (elsewhere, n) = (0, n + 1);
        } else {
            node.store.abort(grant.id);
            elsewhere += 1;
        }
    }
    assert!(n > 10 && machine.disks[0].holds() > 0, "its checkpoint waits");
    for n in 0..10 {
        node.put(&format!("other {n}"), 10);
    }
}

#[test]
fn a_put_whose_drive_went_offline_meanwhile_is_not_acknowledged() {
    let machine = Machine::new(2, 4 * MIB, tiny_ring(), config());
    let mut node = machine.start();
    let free = node.free_units();
    let grant = spread(&mut node, "both");
    let lost = grant.extents[0].drive;
    node.store.drive_failed(lost, &"a test says so");
    node.settle();
    let outcome = node.commit(grant, 3);
    assert_eq!(outcome, Err(CommitError::Refused(Refusal::Busy { retry_ms: 1 })), "once more");
    assert!(node.store.membership_is_settled(), "nothing on the lost drive comes back");
    assert_eq!(node.generation("both"), None);
    assert_eq!(node.store.counters().blocks.get(), 0);
    let online = node.store.drives().into_iter().find(|d| d.state == DriveState::Online);
    let online = online.expect("one of the two");
    assert_eq!(online.units_free, online.units_total, "its units there are free again");
    assert!(free > online.units_total);
    // The node serves on with what it has.
    assert!(node.put("after", 100) > 0);
}

#[test]
fn a_put_is_placed_again_when_its_drive_fails_and_the_old_units_are_never_reused() {
    let machine = Machine::new(2, 4 * MIB, tiny_ring(), config());
    let mut node = machine.start();
    let grant = spread(&mut node, "moved");
    let failed = grant.extents[0].drive;
    node.store.drive_failed(failed, &"a test says so");
    let placed = node.store.place_again(grant.id, failed).expect("the other drive has room");
    assert!(placed.iter().all(|e| e.drive != failed));
    let stays: Vec<_> = grant.extents.iter().filter(|e| e.drive != failed).collect();
    assert!(stays.iter().all(|e| placed.contains(e)), "what lay elsewhere stays where it is");
    let moved = memkv_store::ReservationGrant { id: grant.id, extents: placed };
    let generation = node.commit(moved, 5).expect("one drive works").generation;
    assert_eq!(node.generation("moved"), Some(generation));
    assert_eq!(node.store.counters().placed_again.get(), 4 - stays.len() as u64);
    assert_eq!(node.store.drives()[usize::from(failed.0)].state, DriveState::Offline);
    let mut node = machine.restart(node);
    assert_eq!(node.generation("moved"), Some(generation));
    let again = put(&node.store, "moved", 4 * u64::from(EXTENT));
    let again = memkv_store::ReserveRequest { mode: Mode::Generation(generation), ..again };
    assert!(node.put_as(again).expect("it holds just that generation") > generation);
}

#[test]
fn a_drive_that_breaks_in_a_commit_takes_down_only_itself() {
    let machine = Machine::new(2, 4 * MIB, tiny_ring(), config());
    let mut node = machine.start();
    for n in 0..8 {
        node.put(&format!("before {n}"), u64::from(UNIT));
    }
    let grant = spread(&mut node, "both");
    machine.disks[1].set_broken(true);
    let outcome = node.commit(grant, 3);
    assert_eq!(outcome, Err(CommitError::Refused(Refusal::Busy { retry_ms: 1 })), "once more");
    assert!(node.store.membership_is_settled(), "nothing on the broken drive comes back");
    let drives = node.store.drives();
    assert_eq!(drives[0].state, DriveState::Online);
    assert_eq!(drives[1].state, DriveState::Offline);
    let readable = (0..8).filter(|n| node.generation(&format!("before {n}")).is_some()).count();
    assert_eq!(readable as u64, drives[0].units_total - drives[0].units_free);
    // What the healthy drive was told of the failed put is gone after a kill as well.
    machine.disks[1].set_broken(false);
    let node = machine.restart(node);
    assert_eq!(node.generation("both"), None);
    assert_eq!(node.store.drives().len(), 1, "the broken one is out");
    let still = (0..8).filter(|n| node.generation(&format!("before {n}")).is_some()).count();
    assert_eq!(still, readable);
}
