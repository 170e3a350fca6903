//! Changes of the membership: on an open journal, and offline.

mod common;

use std::rc::Rc;

use common::{Bench, Disk, identity, put, tiny, tiny_disk, unit};
use memkv_block::Geometry;
use memkv_journal::membership::{admit, resolve, write_membership};
use memkv_journal::{DriveUuid, FormatError, Identity, MEMBERS_MAX, Membership, Superblock};
use uuid::Uuid;

fn drive(id: u128) -> DriveUuid {
    DriveUuid(Uuid::from_u128(id))
}

fn read(bench: &mut Bench, disk: &Disk) -> Superblock {
    let (disk, pool) = (disk.clone(), bench.pool.clone());
    bench
        .run(async move { memkv_journal::read_superblock(&disk, &disk.geometry(), &pool).await })
        .expect("a formatted drive")
}

/// Members and epoch that the drives come to.
fn resolved(bench: &mut Bench, disks: &[&Disk]) -> Membership {
    let superblocks: Vec<_> = disks.iter().map(|disk| read(bench, disk)).collect();
    let identities: Vec<_> = superblocks.iter().map(|superblock| &superblock.identity).collect();
    resolve(&identities, false).expect("they form a node").membership
}

/// Two drives of one node.
fn two(bench: &mut Bench) -> (Disk, Disk) {
    let (one, other) = (tiny_disk(), tiny_disk());
    bench.format(&one, tiny());
    let (disk, pool) = (other.clone(), bench.pool.clone());
    let identity = Identity { drive: drive(0xD1), ..identity() };
    let geometry = other.geometry();
    bench
        .run(async move { memkv_journal::format(&disk, &geometry, &pool, identity, tiny()).await })
        .expect("the drive can be formatted");
    (one, other)
}

#[test]
fn a_drive_is_formatted_as_one_of_as_many_as_a_node_may_have() {
    let mut bench = Bench::new();
    let mut format = |members: Vec<DriveUuid>| {
        let (disk, pool) = (tiny_disk(), bench.pool.clone());
        let identity = Identity { members, ..identity() };
        let geometry = disk.geometry();
        bench.run(async move {
            memkv_journal::format(&disk, &geometry, &pool, identity, tiny()).await.map(|_| ())
        })
    };
    let count = |members: usize| (0..members).map(|number| drive(0xD0 + number as u128)).collect();
    format(count(1)).expect("a node of its own");
    format(count(MEMBERS_MAX)).expect("a large node");
    let others: Vec<DriveUuid> = vec![drive(0xD1), drive(0xD2)];
    for members in [count(MEMBERS_MAX + 1), Vec::new(), others] {
        let want = members.len();
        match format(members) {
            Err(FormatError::Members { members }) => assert_eq!(members, want),
            other => panic!("{want} members: {other:?}"),
        }
    }
}

#[test]
fn a_membership_and_a_checkpoint_written_side_by_side_are_both_in_force() {
    for membership_first in [false, true] {
        let mut bench = Bench::new();
        let disk = tiny_disk();
        bench.format(&disk, tiny());
        let (journal, _) = bench.open(&disk);
        bench.append(&journal, vec![put(1, unit(3))]);
        let epoch = journal.superblock().identity.epoch + 1;
        let alone = Membership { epoch, members: vec![journal.drive()] };
        disk.hold();
        let tasks = [membership_first, !membership_first];
        for is_membership in tasks {
            let (journal, alone) = (Rc::clone(&journal), alone.clone());
            bench.local().spawn(async move {
                if is_membership {
                    journal.set_membership(&alone, 77).await.expect("the drive works");
                } else {
                    let start = journal.begin_checkpoint();
                    let live = vec![put(1, unit(3))];
                    let written = journal.write_checkpoint(start, live, false, 5, 0).await;
                    written.expect("the drive works");
                }
            });
            // Half way in the first before the second begins.
            bench.settle();
            disk.let_one_go();
            bench.settle();
        }
        while disk.let_one_go() {
            bench.settle();
        }
        disk.0.borrow_mut().held = None;
        let superblock = read(&mut bench, &disk);
        assert_eq!(superblock, journal.superblock());
        assert_eq!(
            (superblock.identity.epoch, superblock.identity.members),
            (epoch, alone.members)
        );
        assert_eq!(superblock.checkpoints[superblock.active].number, 1);
        assert_eq!(superblock.generation_high, 77);
        let (_, recovered) = bench.open(&Disk::of(disk.image()));
        assert_eq!(recovered.live, [put(1, unit(3))]);
        assert_eq!(recovered.generation_high, 77);
    }
}

#[test]
fn a_newcomer_is_in_with_its_superblock_and_not_before() {
    let mut bench = Bench::new();
    let (one, other) = two(&mut bench);
    let before = resolved(&mut bench, &[&one, &other]);
    // The one has lived: it was killed after a generation was given out.
    let (journal, _) = bench.open(&one);
    let same = before.clone();
    bench.run(async move { journal.set_membership(&same, 33).await }).expect("the drive works");
    let members = [read(&mut bench, &one), read(&mut bench, &other)];
    // Every number of writes after which its drive may fail in the format.
    for writes in 0.. {
        let third = tiny_disk();
        third.0.borrow_mut().writes_left = Some(writes);
        let (disk, pool, joined) = (third.clone(), bench.pool.clone(), before.clone());
        let (geometry, members): (Geometry, _) = (third.geometry(), members.clone());
        let outcome = bench.run(async move {
            let members = [&members[1], &members[0]];
            admit(&disk, &geometry, &pool, &members, &joined, drive(0xD2), tiny()).await
        });
        third.0.borrow_mut().writes_left = None;
        let Ok((superblock, next)) = outcome else {
            assert_eq!(resolved(&mut bench, &[&one, &other]), before, "after {writes} writes");
            continue;
        };
        assert_eq!(next.epoch, before.epoch + 1);
        assert_eq!(superblock.identity.secret, identity().secret);
        // It knows what was given out, and that it may not be all.
        assert_eq!((superblock.generation_high, superblock.clean), (33, false));
        // The others have not been told, or one of them has.
        assert_eq!(resolved(&mut bench, &[&one, &other, &third]), next);
        let (mut told, disk, pool) = (read(&mut bench, &one), one.clone(), bench.pool.clone());
        let late = next.clone();
        bench
            .run(async move { write_membership(&disk, &pool, &mut told, &late).await })
            .expect("the drive works");
        assert_eq!(resolved(&mut bench, &[&one, &other, &third]), next);
        assert_eq!(resolved(&mut bench, &[&third, &one, &other]).members.len(), 3);
        assert!(writes > 4, "the superblock is written last");
        return;
    }
}

#[test]
fn a_drive_that_was_retired_stays_out_and_what_is_on_the_others_stays() {
    let mut bench = Bench::new();
    let (one, other) = two(&mut bench);
    let (journal, _) = bench.open(&one);
    bench.append(&journal, vec![put(9, unit(9))]);
    drop(journal);
    let next = resolved(&mut bench, &[&one, &other]).without(drive(0xD1));
    let (mut superblock, disk, pool) = (read(&mut bench, &one), one.clone(), bench.pool.clone());
    let written = next.clone();
    bench
        .run(async move { write_membership(&disk, &pool, &mut superblock, &written).await })
        .expect("the drive works");
    assert_eq!(resolved(&mut bench, &[&one, &other]), next);
    assert_eq!(resolved(&mut bench, &[&one]), next, "nor is it missed");
    let (_, recovered) = bench.open(&one);
    assert_eq!(recovered.live, [put(9, unit(9))]);
}
