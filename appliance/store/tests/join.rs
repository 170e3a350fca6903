//! Drives that join while the store runs.

mod common;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;

use common::{Disk, Machine, Node, config, put, tiny_ring};
use memkv_journal::{DriveUuid, ReadError, SUPERBLOCK_STRIDE, Superblock};
use memkv_store::{DriveId, DriveState, JoinError, Newcomer};
use uuid::Uuid;

const MIB: usize = 1 << 20;
/// The uuid of the drive that joins.
const NEW: u128 = 0xD;

type Answer = Rc<RefCell<Option<Result<DriveId, JoinError>>>>;

/// Begins to take a disk in.
fn start_join(machine: &Machine, node: &Node, disk: &Disk, uuid: u128) -> Answer {
    let newcomer = Newcomer {
        queue: Rc::new(disk.clone()),
        geometry: disk.geometry(),
        pool: machine.pool(),
        uuid: DriveUuid(Uuid::from_u128(uuid)),
        options: tiny_ring(),
    };
    let (store, answer) = (node.store.clone(), Answer::default());
    let slot = answer.clone();
    node.local().spawn(async move {
        let joined = store.join(newcomer).await;
        *slot.borrow_mut() = Some(joined);
    });
    answer
}

fn join(machine: &Machine, node: &mut Node, disk: &Disk, uuid: u128) -> Result<DriveId, JoinError> {
    let answer = start_join(machine, node, disk, uuid);
    node.settle();
    answer.take().expect("nothing holds it up")
}

/// The epoch on a disk; none when it is not formatted, or not yet.
fn epoch(machine: &Machine, node: &mut Node, disk: &Disk) -> Option<u64> {
    let (disk, pool) = (disk.clone(), machine.pool());
    let read = node
        .run(async move { memkv_journal::read_superblock(&disk, &disk.geometry(), &pool).await });
    match read {
        Ok(superblock) => Some(superblock.identity.epoch),
        // The first of its copies was written, the second was not: nobody else can have heard of it.
        Err(ReadError::NotFormatted | ReadError::NoQuorum { .. }) => None,
        Err(error) => panic!("{error}"),
    }
}

fn drive_of(node: &mut Node, name: &str) -> DriveId {
    let request = put(&node.store, name, 100);
    let grant = node.reserve(request).expect("there is room");
    let drive = grant.extents[0].drive;
    node.commit(grant, 7).expect("the drives work");
    drive
}

#[test]
fn a_drive_that_joined_takes_blocks_when_it_is_opened_and_keeps_them() {
    let mut machine = Machine::new(2, 4 * MIB, tiny_ring(), config());
    let mut node = machine.start();
    let new = Disk::new(8 * MIB);
    assert_eq!(join(&machine, &mut node, &new, NEW).expect("it is blank"), DriveId(2));
    let told = node.store.membership();
    assert_eq!((told.epoch, told.members.len()), (2, 3));
    for disk in machine.disks.clone().iter().chain([&new]) {
        assert_eq!(epoch(&machine, &mut node, disk), Some(2));
    }
    for n in 0..50 {
        assert_ne!(drive_of(&mut node, &format!("early {n}")), DriveId(2), "it is not open yet");
    }
    node.store.open_drive(DriveId(2));
    let drives: Vec<_> = (0..50).map(|n| drive_of(&mut node, &format!("late {n}"))).collect();
    let here = drives.iter().filter(|drive| **drive == DriveId(2)).count();
    assert!(here > 10, "{here} of 50: half of all free units are there");
    machine.disks.push(new);
    let node = machine.restart(node);
    assert_eq!(node.store.drives().len(), 3);
    for n in 0..50 {
        assert!(node.generation(&format!("early {n}")).is_some());
        assert!(node.generation(&format!("late {n}")).is_some());
    }
}

/// Lets one command go, of the first disk in a row that holds one.
fn let_one_go(node: &mut Node, disks: &[&Disk]) -> bool {
    node.settle();
    let next = disks.iter().find(|disk| disk.holds() > 0);
    if let Some(disk) = next {
        disk.let_one_go();
        node.settle();
    }
    next.is_some()
}

/// Killed behind every command of a join, the drives form a node, by themselves, with all that was
/// stored; and what is left of the newcomer can join.
#[test]
fn a_join_that_is_cut_short_anywhere_leaves_a_node() {
    let mut left = BTreeSet::new();
    for commands in 0.. {
        let mut machine = Machine::new(2, 4 * MIB, tiny_ring(), config());
        let mut node = machine.start();
        let before = node.put("before", 100);
        let new = Disk::new(4 * MIB);
        let disks = [machine.disks[0].clone(), machine.disks[1].clone(), new.clone()];
        disks.iter().for_each(Disk::hold);
        let answer = start_join(&machine, &node, &new, NEW);
        // In another order every other time: of the members either may be told first.
        let mut order: Vec<&Disk> = disks.iter().collect();
        order.rotate_left(commands % 3);
        let went = (0..commands).all(|_| let_one_go(&mut node, &order));
        let done = answer.borrow().is_some();
        machine.disks.push(new.clone());
        machine.kill(node);
        machine.disks.pop();

        let mut probe = Machine::new(1, 4 * MIB, tiny_ring(), config()).start();
        let [a, b, d] = disks.each_ref().map(|disk| epoch(&machine, &mut probe, disk));
        left.insert((a, b, d));
        let mut disks = vec![disks[0].clone(), disks[1].clone()];
        disks.extend(d.map(|_| new.clone()));
        let mut node = machine.start_on(disks, false).expect("they form a node");
        assert_eq!(node.store.membership().members.len(), 2 + usize::from(d.is_some()));
        assert_eq!(node.generation("before"), Some(before), "after {commands} commands");
        if d.is_none() {
            assert!(!done);
            let id = join(&machine, &mut node, &new, NEW + 1).expect("it is still blank");
            node.store.open_drive(id);
        }
        (0..20).for_each(|n| assert!(node.put(&format!("after {n}"), 100) > before));
        for disk in [&machine.disks[0].clone(), &machine.disks[1].clone(), &new] {
            assert_eq!(epoch(&machine, &mut node, disk), Some(2));
        }
        if !went {
            assert!(done, "nothing held it up any more");
            break;
        }
    }
    // The rows that join.rs draws were all met.
    for row in [
        (Some(1), Some(1), None),
        (Some(1), Some(1), Some(2)),
        (Some(2), Some(1), Some(2)),
        (Some(1), Some(2), Some(2)),
        (Some(2), Some(2), Some(2)),
    ] {
        assert!(left.contains(&row), "{row:?} is not among {left:?}");
    }
    let known = |(a, b, d): &(Option<u64>, Option<u64>, Option<u64>)| {
        d.is_some() || (*a, *b) == (Some(1), Some(1))
    };
    assert!(left.iter().all(known), "nobody was told of a drive that was none: {left:?}");
}

/// Whoever starts a node from its newest drive alone gives up all that was stored, and still no
/// generation names two values: clients remember them.
#[test]
fn a_node_that_goes_on_from_its_newcomer_alone_gives_out_no_generation_again() {
    let mut alone = 0;
    for commands in 0.. {
        let mut machine = Machine::new(2, 4 * MIB, tiny_ring(), config());
        // Killed before, the node is beyond what one unclean start skips.
        let killed = machine.start();
        machine.kill(killed);
        let mut node = machine.start();
        let before = node.put("before", 100);
        let new = Disk::new(4 * MIB);
        new.hold();
        let answer = start_join(&machine, &node, &new, NEW);
        let went = (0..commands).all(|_| let_one_go(&mut node, &[&new]));
        machine.disks.push(new.clone());
        machine.kill(node);
        let mut probe = Machine::new(1, 4 * MIB, tiny_ring(), config()).start();
        if epoch(&machine, &mut probe, &new).is_some() {
            alone += 1;
            let mut node = machine.start_on(vec![new], true).expect("one member is left");
            let next = node.put("after", 100);
            assert!(next > before, "{next} after {before}, {commands} commands into the join");
        }
        if !went {
            assert!(answer.borrow().is_some(), "nothing held it up any more");
            break;
        }
    }
    assert!(alone > 2, "{alone} times it was a member");
}

#[test]
fn a_drive_that_fails_while_another_joins_is_out_and_the_other_is_in() {
    let mut machine = Machine::new(2, 4 * MIB, tiny_ring(), config());
    let mut node = machine.start();
    let new = Disk::new(4 * MIB);
    machine.disks[0].hold();
    let answer = start_join(&machine, &node, &new, NEW);
    node.settle();
    assert!(answer.borrow().is_none(), "one of the others does not know yet");
    assert_eq!(epoch(&machine, &mut node, &new), Some(2));
    node.store.drive_failed(DriveId(0), &"a test says so");
    node.settle();
    let id = answer.take().expect("nobody waits for a lost drive").expect("it is in");
    node.store.open_drive(id);
    let told = node.store.membership();
    assert_eq!((told.epoch, told.members.len()), (3, 2));
    assert!(node.store.membership_is_settled());
    node.put("k", 100);
    let (b, lost) = (machine.disks[1].clone(), machine.disks[0].clone());
    machine.kill(node);
    machine.disks = vec![b, new, lost];
    let node = machine.start();
    assert_eq!(node.store.drives().len(), 2, "the lost one is left alone");
    assert!(node.generation("k").is_some());
}

/// Behind every command of a join another drive fails: the newcomer is a member with the one that is
/// left, or it was not in time to be one.
#[test]
fn a_drive_may_fail_at_any_moment_of_a_join() {
    let mut joined = 0;
    for commands in 0.. {
        let machine = Machine::new(2, 4 * MIB, tiny_ring(), config());
        let mut node = machine.start();
        let new = Disk::new(4 * MIB);
        new.hold();
        let answer = start_join(&machine, &node, &new, NEW);
        let went = (0..commands).all(|_| let_one_go(&mut node, &[&new]));
        let in_time = answer.borrow().is_none();
        node.store.drive_failed(DriveId(0), &"a test says so");
        new.let_go();
        node.settle();
        let id = answer.take().expect("nothing holds it up").expect("it is in");
        node.store.open_drive(id);
        joined += u32::from(in_time);
        let told = node.store.membership();
        assert_eq!(told.members.len(), 2, "after {commands} commands");
        assert!(node.store.membership_is_settled());
        for disk in [&machine.disks[1].clone(), &new] {
            assert_eq!(epoch(&machine, &mut node, disk), Some(told.epoch));
        }
        let before = node.put("k", 100);
        let disks = vec![machine.disks[1].clone(), new];
        machine.kill(node);
        let node = machine.start_on(disks, false).expect("they form a node");
        assert_eq!(node.generation("k"), Some(before), "after {commands} commands");
        if !went {
            break;
        }
    }
    assert!(joined > 5, "{joined} were under way when the other failed");
}

#[test]
fn a_drive_that_fails_while_it_joins_leaves_the_node_as_it_was() {
    let machine = Machine::new(2, 4 * MIB, tiny_ring(), config());
    let mut node = machine.start();
    let broken = Disk::new(4 * MIB);
    broken.set_broken(true);
    let error = join(&machine, &mut node, &broken, NEW).expect_err("it is broken");
    assert!(matches!(error, JoinError::Format(_)), "{error}");
    assert_eq!(node.store.membership().epoch, 1);
    let small = Disk::new(MIB / 8);
    let error = join(&machine, &mut node, &small, NEW).expect_err("no room for a journal");
    assert!(matches!(error, JoinError::Format(_)), "{error}");

    // It fails when it is a member, and nobody else knows.
    let failing = Disk::new(4 * MIB);
    machine.disks[0].hold();
    let answer = start_join(&machine, &node, &failing, NEW);
    node.settle();
    assert_eq!(epoch(&machine, &mut node, &failing), Some(2));
    failing.set_broken(true);
    node.store.drive_failed(DriveId(2), &"a test says so");
    machine.disks[0].let_go();
    node.settle();
    let error = answer.take().expect("it failed").expect_err("it failed");
    assert!(matches!(error, JoinError::Failed { drive: DriveId(2), .. }), "{error}");
    assert_eq!(node.store.drives()[2].state, DriveState::Offline);
    assert!(node.store.membership_is_settled());
    node.put("k", 100);
    let epochs: Vec<u64> = machine
        .disks
        .iter()
        .map(|disk| Superblock::parse(&disk.peek(SUPERBLOCK_STRIDE as usize, 4096)).expect("whole"))
        .map(|superblock| superblock.identity.epoch)
        .collect();
    assert_eq!(epochs, [3, 3], "the others know that it is out");
    let node = machine.restart(node);
    assert!(node.generation("k").is_some());
}
