//! Drives that are lost: what the others are told of it, who waits for that, and who forms the node
//! when the lost one is there again.

mod common;

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use common::{BEHIND_TINY_RING, Disk, Machine, Node, config, put, tiny_ring};
use memkv_journal::{DriveUuid, MembershipError, SUPERBLOCK_STRIDE, Superblock};
use memkv_store::{Deleted, DriveId, DriveState, MissReason, RecoverError};
use uuid::Uuid;

const MIB: usize = 1 << 20;

fn machine(drives: usize) -> Machine {
    Machine::new(drives, 4 * MIB, tiny_ring(), config())
}

/// Epoch and members that a disk's first and last superblock copies agree on.
fn told(disk: &Disk) -> Option<(u64, Vec<u128>)> {
    let copy = |n: u64| {
        Superblock::parse(&disk.peek((n * SUPERBLOCK_STRIDE) as usize, 4096)).expect("whole")
    };
    let (first, last) = (copy(0), copy(3));
    let members = first.identity.members.iter().map(|drive| drive.0.as_u128()).collect();
    (first == last).then_some((first.identity.epoch, members))
}

fn drive(id: u128) -> DriveUuid {
    DriveUuid(Uuid::from_u128(id))
}

/// Puts under new names until one lies wholly on a drive; its name.
fn put_on(node: &mut Node, id: u16) -> String {
    for n in 0.. {
        let name = format!("on {id}: {n}");
        let request = put(&node.store, &name, 100);
        let grant = node.reserve(request).expect("there is room");
        if grant.extents[0].drive == DriveId(id) {
            node.commit(grant, 7).expect("the drive works");
            return name;
        }
        node.store.abort(grant.id);
    }
    unreachable!("some put lies on each drive")
}

/// A delete on its way; the cell holds its answer.
fn start_delete(node: &Node, name: &str) -> Rc<Cell<Option<Deleted>>> {
    let (store, hash, answer) = (node.store.clone(), node.hash(name), Rc::new(Cell::new(None)));
    let slot = answer.clone();
    let deadline = store.local().now() + Duration::from_secs(60);
    node.local().spawn(async move {
        slot.set(Some(store.delete(hash, 0, deadline, common::caller()).await));
    });
    answer
}

#[test]
fn what_was_deleted_while_a_drive_was_away_does_not_come_back_with_it() {
    let machine = machine(2);
    let mut node = machine.start();
    let deleted = put_on(&mut node, 1);
    let replaced = put_on(&mut node, 1);
    let kept = put_on(&mut node, 0);
    node.store.drive_failed(DriveId(1), &"a test says so");
    assert_eq!(node.delete(&deleted), Deleted::Missing(MissReason::DriveLost));
    let generation = node.put(&replaced, 100);
    assert!(matches!(node.delete(&replaced), Deleted::Gone { .. }));
    assert_eq!(told(&machine.disks[0]), Some((2, vec![0])));
    assert_eq!(told(&machine.disks[1]), Some((1, vec![0, 1])), "nobody writes to the lost one");

    let mut node = machine.restart(node);
    assert_eq!(node.store.drives().len(), 1);
    assert_eq!(node.store.membership().members, [drive(0)]);
    assert!(node.generation(&deleted).is_none() && node.generation(&replaced).is_none());
    assert!(node.generation(&kept).is_some());
    assert!(node.put("next", 100) > generation);
}

#[test]
fn puts_and_deletes_are_acknowledged_when_the_others_know_of_a_loss() {
    let machine = machine(3);
    let mut node = machine.start();
    let name = put_on(&mut node, 0);
    let missing = start_delete(&node, "never stored");
    node.settle();
    assert_eq!(missing.take(), Some(Deleted::Missing(MissReason::Never)), "nobody is lost");

    machine.disks[1].hold();
    node.store.drive_failed(DriveId(2), &"a test says so");
    let delete = start_delete(&node, &name);
    let missing = start_delete(&node, "never stored");
    node.settle();
    assert!(delete.take().is_none() && missing.take().is_none(), "drive 1 does not know yet");
    // A put waits as well; readers see it meanwhile.
    let request = put(&node.store, "a put", 100);
    let (store, answer) = (node.store.clone(), Rc::new(Cell::new(None)));
    let slot = answer.clone();
    node.local().spawn(async move {
        loop {
            let grant = store.reserve(request.clone()).await.expect("there is room");
            if grant.extents[0].drive == DriveId(0) {
                slot.set(Some(store.commit(grant.id, &[7]).await.is_ok()));
                return;
            }
            store.abort(grant.id);
        }
    });
    node.settle();
    assert!(node.generation("a put").is_some() && answer.take().is_none());
    assert!(!node.store.membership_is_settled());

    machine.disks[1].let_go();
    node.settle();
    assert!(node.store.membership_is_settled());
    assert!(matches!(delete.take(), Some(Deleted::Gone { .. })));
    assert_eq!(missing.take(), Some(Deleted::Missing(MissReason::Never)));
    assert_eq!(answer.take(), Some(true));
    assert_eq!(node.store.counters().epochs_raised.get(), 1);
    let both = Some((2, vec![0, 1]));
    assert_eq!((told(&machine.disks[0]), told(&machine.disks[1])), (both.clone(), both));
}

#[test]
fn nothing_is_acknowledged_when_no_drive_is_left_to_remember_it() {
    let machine = machine(1);
    let mut node = machine.start();
    let name = put_on(&mut node, 0);
    machine.disks[0].set_broken(true);
    assert_eq!(node.delete(&name), Deleted::DriveFailed);
    assert_eq!(node.delete(&name), Deleted::DriveFailed, "nor that it is missing");
    assert_eq!(node.delete("never stored"), Deleted::DriveFailed);
    machine.disks[0].set_broken(false);
    let mut node = machine.restart(node);
    assert!(node.generation(&name).is_some(), "the last drive is a member still");
    assert!(matches!(node.delete(&name), Deleted::Gone { .. }));
}

#[test]
fn a_drive_that_fails_while_it_is_told_is_lost_as_well() {
    let machine = machine(3);
    let mut node = machine.start();
    let names: Vec<_> = (0..3).map(|id| put_on(&mut node, id)).collect();
    machine.disks[1].set_broken(true);
    node.store.drive_failed(DriveId(2), &"a test says so");
    let delete = start_delete(&node, &names[2]);
    node.settle();
    assert_eq!(delete.take(), Some(Deleted::Missing(MissReason::DriveLost)));
    assert_eq!(node.store.drives()[1].state, DriveState::Offline);
    assert_eq!(told(&machine.disks[0]), Some((3, vec![0])));
    machine.disks[1].set_broken(false);
    let node = machine.restart(node);
    assert_eq!(node.store.membership().members, [drive(0)]);
    let there: Vec<_> = names.iter().map(|name| node.generation(name).is_some()).collect();
    assert_eq!(there, [true, false, false]);
}

#[test]
fn a_drive_that_hangs_while_it_is_told_is_not_waited_for_once_it_is_offline() {
    let machine = machine(3);
    let mut node = machine.start();
    let name = put_on(&mut node, 0);
    machine.disks[1].hold();
    node.store.drive_failed(DriveId(2), &"a test says so");
    let delete = start_delete(&node, &name);
    node.settle();
    assert!(delete.take().is_none());
    node.store.drive_failed(DriveId(1), &"it does not answer");
    node.settle();
    assert!(matches!(delete.take(), Some(Deleted::Gone { .. })));
    assert_eq!(told(&machine.disks[0]), Some((3, vec![0])));
    // What it was told at last is of an epoch that is over.
    machine.disks[1].let_go();
    node.settle();
    assert_eq!(told(&machine.disks[1]), Some((2, vec![0, 1])));
    let node = machine.restart(node);
    assert_eq!(node.store.membership().members, [drive(0)]);
}

/// Three drives, the third is lost, and the machine stops after every one of the writes that tell
/// the first two of it.
#[test]
fn a_crash_at_any_write_of_a_raise_leaves_a_node_with_everything_acknowledged() {
    for writes in [[0, 0], [1, 0], [2, 0], [3, 0], [9, 0], [0, 9], [9, 3], [3, 3], [9, 9]] {
        let machine = machine(3);
        let mut node = machine.start();
        let names: Vec<_> = (0..3).map(|id| put_on(&mut node, id)).collect();
        machine.disks.iter().for_each(Disk::hold);
        node.store.drive_failed(DriveId(2), &"a test says so");
        let delete = start_delete(&node, &names[2]);
        for (disk, writes) in machine.disks.iter().zip(writes) {
            for _ in 0..writes {
                node.settle();
                if disk.holds() > 0 {
                    disk.let_one_go();
                }
            }
        }
        node.settle();
        let answered = delete.take().is_some();
        let mut node = machine.restart(node);
        let knows = node.store.drives().len() == 2;
        assert!(knows || !answered, "{writes:?}");
        assert_eq!(node.generation(&names[2]).is_some(), !knows, "{writes:?}");
        assert!(node.generation(&names[0]).is_some() && node.generation(&names[1]).is_some());
        // Whoever is a member knows so before anything is served, and the node goes on.
        let members = node.store.membership();
        let all: Vec<_> = members.members.iter().map(|member| member.0.as_u128()).collect();
        for disk in &machine.disks[..all.len()] {
            assert_eq!(told(disk), Some((members.epoch, all.clone())), "{writes:?}");
        }
        assert!(matches!(node.delete(&names[1]), Deleted::Gone { .. }));
        let node = machine.restart(node);
        assert_eq!(node.generation(&names[1]), None);
        assert_eq!(node.store.drives().len(), all.len());
    }
}

#[test]
fn a_missing_member_is_given_up_only_on_demand_and_then_for_good() {
    let machine = machine(3);
    let mut node = machine.start();
    let names: Vec<_> = (0..3).map(|id| put_on(&mut node, id)).collect();
    machine.kill(node);
    let present = || vec![machine.disks[0].clone(), machine.disks[2].clone()];
    let missing =
        RecoverError::Members(MembershipError::Missing { missing: vec![drive(1)], members: 3 });
    let refused = machine.start_on(present(), false).map(|_| ());
    assert_eq!(refused.map_err(|error| error.to_string()), Err(missing.to_string()));
    assert_eq!(told(&machine.disks[0]), Some((1, vec![0, 1, 2])), "nothing was written");

    let mut node = machine.start_on(present(), true).expect("on demand");
    assert_eq!(told(&machine.disks[2]), Some((2, vec![0, 2])));
    assert!(node.generation(&names[0]).is_some() && node.generation(&names[2]).is_some());
    assert!(matches!(node.delete(&names[1]), Deleted::Missing(MissReason::Never)));
    let node = machine.restart(node);
    assert_eq!(node.store.drives().len(), 2, "it is back, and out");
    assert_eq!(node.generation(&names[1]), None);
}

/// The generations of what lay on a lost drive are not given out again, though no record of them is
/// left, and the drive that is left had nothing to remember since the start.
#[test]
fn a_generation_is_not_given_out_twice_when_the_drive_that_knew_it_is_gone() {
    let machine = machine(2);
    let mut node = machine.start();
    let mut last = 0;
    for _ in 0..3 {
        node = machine.restart(node);
        let name = put_on(&mut node, 1);
        last = node.generation(&name).expect("just put").max(last);
    }
    machine.kill(node);
    let mut node = machine.start_on(vec![machine.disks[0].clone()], true).expect("on demand");
    assert!(node.put("next", 100) > last);
}

#[test]
fn a_drive_that_hangs_in_its_checkpoint_keeps_no_other_from_writing_one() {
    let machine = machine(2);
    let mut node = machine.start();
    machine.disks[0].hold_from(BEHIND_TINY_RING);
    for n in 0..600 {
        let name = format!("key {n}");
        let grant = node.reserve(put(&node.store, &name, 10)).expect("drive 1 has room");
        let drive = grant.extents[0].drive;
        node.commit(grant, 1).expect("the drives work");
        // Drive 0 keeps what it has: once its ring is full it takes nothing more.
        if drive == DriveId(1) {
            assert!(matches!(node.delete(&name), Deleted::Gone { .. }));
        }
        node.settle();
    }
    assert!(machine.disks[0].holds() > 0, "its checkpoint waits");
    let written: Vec<_> =
        node.store.drives().iter().map(|drive| drive.journal.checkpoints).collect();
    assert!(written[0] == 0 && written[1] > 1, "{written:?}");
}
