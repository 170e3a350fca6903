//! What a store finds again after it was killed or stopped.

mod common;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use common::{EXTENT, Machine, Node, UNIT, config, key, put, tiny_ring, without_eviction};
use memkv_journal::MembershipError;
use memkv_journal::{BlockId, Record, UnitRange};
use memkv_store::index::{EXPIRES_MAX, GENERATION_MAX};
use memkv_store::{DriveId, ListFilter, RecoverError, ReservationGrant, ReserveRequest};
use proptest::prelude::*;

const MIB: usize = 1 << 20;

fn machine(drives: usize) -> Machine {
    Machine::new(drives, 4 * MIB, tiny_ring(), without_eviction())
}

/// A reservation with extents on both drives, the first of them on `first`.
fn spread(node: &mut Node, name: &str, first: u16) -> ReservationGrant {
    loop {
        let request = put(&node.store, name, 4 * u64::from(EXTENT));
        let grant = node.reserve(request).expect("there is room");
        let starts = grant.extents[0].drive == DriveId(first);
        if starts && grant.extents.iter().any(|e| e.drive != DriveId(first)) {
            return grant;
        }
        node.store.abort(grant.id);
    }
}

/// Starts a commit and turns the wheel until it waits or is done.
fn begin_commit(node: &mut Node, grant: &ReservationGrant) -> Rc<RefCell<Option<u64>>> {
    let done = Rc::new(RefCell::new(None));
    let (store, said, id) = (node.store.clone(), done.clone(), grant.id);
    let crcs = vec![1; grant.extents.len()];
    node.local().spawn(async move {
        let stored = store.commit(id, &crcs).await;
        *said.borrow_mut() = stored.ok().map(|s| s.generation);
    });
    node.settle();
    done
}

fn units_in_use(node: &Node) -> u64 {
    node.store.drives().iter().map(|d| d.units_total - d.units_free).sum()
}

#[test]
fn blocks_of_several_extents_come_back_as_they_were() {
    let machine = machine(3);
    let mut node = machine.start();
    let mut expected = BTreeMap::new();
    for n in 0..20u64 {
        let name = format!("key {n}");
        let length = 1 + n * u64::from(EXTENT) * 3 / 4;
        let grant = node.reserve(put(&node.store.clone(), &name, length)).expect("there is room");
        let crcs: Vec<u32> = (0..grant.extents.len() as u32).map(|i| i * 1000 + n as u32).collect();
        let (store, given, id) = (node.store.clone(), crcs.clone(), grant.id);
        let stored = node.run(async move { store.commit(id, &given).await });
        let places: Vec<_> = grant.extents.iter().map(|e| (e.drive, e.range, e.offset)).collect();
        expected.insert(name, (stored.expect("the drives work").generation, length, crcs, places));
    }
    let used = units_in_use(&node);
    for stop in [false, true] {
        if stop {
            let store = node.store.clone();
            node.run(async move { store.shutdown().await });
        }
        node = machine.restart(node);
        for (name, (generation, length, crcs, places)) in &expected {
            let found = node.store.lease(node.hash(name)).expect("it was acknowledged");
            let here: Vec<_> = found.extents.iter().map(|e| (e.drive, e.range, e.offset)).collect();
            let sums: Vec<_> = found.extents.iter().map(|e| e.crc).collect();
            assert_eq!((&found.generation, &found.length), (generation, length));
            assert_eq!((&sums, &here), (crcs, places));
            node.store.unpin(found.slot);
        }
        assert_eq!(units_in_use(&node), used);
    }
}

#[test]
fn after_a_kill_blocks_are_checked_and_after_a_stop_only_those_never_checked() {
    let machine = machine(2);
    let mut node = machine.start();
    node.put("read", 3 * u64::from(EXTENT));
    node.put("unread", u64::from(EXTENT));
    let all = |node: &Node, name: &str| {
        let lease = node.store.lease(node.hash(name)).expect("it is there");
        node.store.unpin(lease.slot);
        (lease.slot, lease.generation, lease.verified & 0b111)
    };
    assert_eq!(all(&node, "read").2, 0b111, "our own writes need no check");
    let mut node = machine.restart(node);
    let (slot, generation, verified) = all(&node, "read");
    assert_eq!(verified, 0);
    node.store.mark_verified(slot, generation + 1, 0b111);
    assert_eq!(all(&node, "read").2, 0, "that was another block's");
    node.store.mark_verified(slot, generation, 0b101);
    node.store.mark_verified(slot, generation, 0b010);
    let store = node.store.clone();
    node.run(async move { store.shutdown().await });
    let node = machine.restart(node);
    assert_eq!(all(&node, "read").2, 0b111, "the stop was clean");
    assert_eq!(all(&node, "unread").2, 0, "nobody has checked it since the kill");
}

#[test]
fn a_put_that_reached_only_one_of_its_drives_is_as_if_it_never_was() {
    for (first, held) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        let machine = machine(2);
        let mut node = machine.start();
        let before = node.put("k", 10);
        let used = units_in_use(&node);
        let grant = spread(&mut node, "k", first);
        machine.disks[held].hold();
        let done = begin_commit(&mut node, &grant);
        assert!(done.borrow().is_none(), "not before both drives have it");
        assert_eq!(node.generation("k"), Some(before), "and nobody sees it");
        let mut node = machine.restart(node);
        assert_eq!(node.generation("k"), Some(before), "head {first}, lost {held}");
        assert_eq!(units_in_use(&node), used);
        // The leftovers were removed for good: a new life for the generation does not join them.
        let grant = spread(&mut node, "k", first);
        let again = node.commit(grant, 4).expect("the drives work").generation;
        let node = machine.restart(node);
        assert_eq!(node.generation("k"), Some(again));
    }
}

#[test]
fn a_block_replaced_from_another_drive_stays_replaced() {
    for kill_before_removal in [false, true] {
        let machine = machine(2);
        let mut node = machine.start();
        let older = node.put("k", 10);
        let home = node.store.lease(node.hash("k")).expect("just put");
        node.store.unpin(home.slot);
        let old_drive = home.extents[0].drive;
        let grant = loop {
            let grant = node.reserve(put(&node.store.clone(), "k", 20)).expect("there is room");
            if grant.extents[0].drive != old_drive {
                break grant;
            }
            node.store.abort(grant.id);
        };
        if kill_before_removal {
            machine.disks[usize::from(old_drive.0)].hold();
        }
        let done = begin_commit(&mut node, &grant);
        assert_eq!(done.borrow().is_none(), kill_before_removal, "answered after the removal");
        let newer = node.generation("k").expect("published");
        assert!(newer > older);
        let mut node = machine.restart(node);
        assert_eq!(node.generation("k"), Some(newer));
        // A delete of the newer one does not bring the older one back, whenever the kill comes.
        node.delete("k");
        let node = machine.restart(node);
        assert_eq!(node.generation("k"), None);
        assert_eq!(units_in_use(&node), 0);
    }
}

#[test]
fn a_delete_that_was_answered_stays_after_a_kill_and_one_that_was_not_may() {
    let machine = machine(2);
    let mut node = machine.start();
    let grant = spread(&mut node, "both", 0);
    node.commit(grant, 1).expect("the drives work");
    node.put("gone", 10);
    node.delete("gone");
    machine.disks[1].hold();
    let (store, hash) = (node.store.clone(), node.hash("both"));
    node.local().spawn(async move {
        let deadline = store.local().now() + std::time::Duration::from_secs(60);
        store.delete(hash, 0, deadline, common::caller()).await;
        panic!("answered before it is durable on both drives");
    });
    node.settle();
    assert_eq!(node.generation("both"), None, "unpublished at once");
    assert!(units_in_use(&node) > 0, "but no unit is free before that");
    let node = machine.restart(node);
    assert_eq!(node.generation("gone"), None);
    assert_eq!(node.generation("both"), None, "half a block is none");
    assert_eq!(units_in_use(&node), 0);
}

#[test]
fn of_two_blocks_that_share_a_unit_the_newest_stands() {
    let machine = machine(2);
    let mut node = machine.start();
    // Older and newer part-blocks over both drives, behind the store's back: as if a removal and
    // the frame that came before it had been lost.
    let block = |name: &str, generation| BlockId { hash: node.hash(name).0, generation };
    let (old, new) = (block("old", 900), block("new", 901));
    let extent = UnitRange { start: 7, count: 2 };
    let record = |block: BlockId, name: &str, extent| Record::Put {
        block,
        key: key(name),
        extent,
        length: 2 * UNIT,
        crc: 5,
        expires: 0,
        flags: 0,
    };
    let mut records = vec![record(old, "old", extent)];
    records.push(record(new, "new", UnitRange { start: 8, count: 2 }));
    records.push(record(block("apart", 20), "apart", UnitRange { start: 20, count: 2 }));
    let journal = node.journals[0].clone();
    node.run(async move {
        drop(journal.append(records).await.expect("there is room"));
    });
    let mut node = machine.restart(node);
    assert_eq!(node.generation("old"), None);
    assert_eq!(node.generation("new"), Some(901));
    assert_eq!(node.generation("apart"), Some(20));
    assert!(node.put("next", 10) > 901, "generations go on above all that were seen");
    node.delete("new");
    let node = machine.restart(node);
    assert_eq!(node.generation("old"), None, "what was dropped stays dropped");
}

#[test]
fn drives_of_different_nodes_do_not_join() {
    let mut one = machine(1);
    let other = Machine::of_node(0x41, &[4 * MIB], tiny_ring(), config());
    one.disks.push(other.disks[0].clone());
    assert!(matches!(one.try_start(), Err(RecoverError::Members(MembershipError::Foreign { .. }))));
    one.disks.clear();
    assert!(matches!(one.try_start(), Err(RecoverError::Members(MembershipError::NoDrives))));
}

#[test]
fn a_checkpoint_in_the_middle_of_a_put_forgets_neither_it_nor_what_it_replaced() {
    for last_word in [false, true] {
        let machine = machine(1);
        let mut node = machine.start();
        let older = node.put("k", 10);
        // One frame short of half the ring.
        for n in 0..14 {
            node.put(&format!("other {n}"), 10);
        }
        let store = node.store.clone();
        let first = node.reserve(put(&store, "first", 10)).expect("there is room");
        let second = node.reserve(put(&store, "k", 20)).expect("there is room");
        machine.disks[0].hold();
        let first = begin_commit(&mut node, &first);
        let second = begin_commit(&mut node, &second);
        assert_eq!(machine.disks[0].holds(), 1, "the second waits for the first");
        machine.disks[0].let_one_go();
        node.settle();
        assert!(first.borrow().is_some() && second.borrow().is_none());
        assert_eq!(machine.disks[0].holds(), 2, "the second's frame, and the checkpoint's start");
        assert_eq!(node.generation("k"), Some(older), "so the checkpoint has the older one");
        if last_word {
            machine.disks[0].let_go();
            node.settle();
            assert_eq!(store.counters().checkpoints.get(), 1);
        }
        drop(store);
        let newer = *second.borrow();
        let node = machine.restart(node);
        assert_eq!(node.generation("k"), newer.or(Some(older)));
        assert_eq!(newer.is_some(), last_word);
        assert!((0..14).all(|n| node.generation(&format!("other {n}")).is_some()));
        assert_eq!(units_in_use(&node), 16);
    }
}

/// One thing a client does.
#[derive(Clone, Debug)]
enum Step {
    Put(u8, u8),
    Delete(u8),
    Stop,
    Kill,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0u8..12, 1u8..10).prop_map(|(key, extents)| Step::Put(key, extents)),
        3 => (0u8..12).prop_map(Step::Delete),
        1 => Just(Step::Stop),
        1 => Just(Step::Kill),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever was answered is so after any number of stops and kills, and no unit is lost.
    #[test]
    fn what_was_answered_is_so_after_every_start(
        drives in 1usize..4,
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let machine = Machine::new(drives, 4 * MIB, tiny_ring(), config());
        let mut node = machine.start();
        let mut model: BTreeMap<u8, (u64, u64)> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Put(key, extents) => {
                    let length = u64::from(extents) * u64::from(UNIT) - 5;
                    let name = key.to_string();
                    let generation = loop {
                        match node.put_as(put(&node.store.clone(), &name, length)) {
                            Ok(generation) => break generation,
                            Err(_) => node.settle(),
                        }
                    };
                    model.insert(key, (generation, length));
                }
                Step::Delete(key) => {
                    let deleted = node.delete(&key.to_string());
                    let there = model.remove(&key).is_some();
                    prop_assert_eq!(matches!(deleted, memkv_store::Deleted::Gone { .. }), there);
                }
                Step::Stop => {
                    let store = node.store.clone();
                    node.run(async move { store.shutdown().await });
                    node = machine.restart(node);
                }
                Step::Kill => node = machine.restart(node),
            }
            node.settle();
            let blocks = node.store.counters();
            prop_assert_eq!(blocks.blocks.get(), model.len() as u64);
            prop_assert_eq!(blocks.bytes.get(), model.values().map(|(_, length)| length).sum());
            for (key, (generation, length)) in &model {
                let found = node.existing(&key.to_string());
                let found = found.map(|found| (found.generation, found.length));
                prop_assert_eq!(found, Ok((*generation, *length)));
            }
            let units = model.values().map(|(_, length)| length.div_ceil(u64::from(UNIT)));
            let units: u64 = units.sum();
            prop_assert_eq!(units_in_use(&node), units);
        }
    }
}

#[test]
fn a_generation_that_cannot_be_counted_on_from_is_refused() {
    // An unclean start leaves some generations out, and still gives out one that fits.
    for (generation, fits) in [
        (GENERATION_MAX - (1 << 20) - 1, true),
        (GENERATION_MAX, false),
        (GENERATION_MAX + 1, false),
        (u64::MAX, false),
    ] {
        let machine = machine(1);
        let mut node = machine.start();
        let block = BlockId { hash: node.hash("late").0, generation };
        let extent = UnitRange { start: 7, count: 2 };
        let (length, crc, expires, flags) = (2 * UNIT, 5, 0, 0);
        let record = Record::Put { block, key: key("late"), extent, length, crc, expires, flags };
        let journal = node.journals[0].clone();
        node.run(async move {
            drop(journal.append(vec![record]).await.expect("there is room"));
        });
        machine.kill(node);
        match machine.try_start() {
            Ok(mut node) => {
                assert!(fits, "{generation} was accepted");
                assert_eq!(node.generation("late"), Some(generation));
                assert_eq!(node.put("last", 10), GENERATION_MAX);
            }
            Err(RecoverError::Generation { generation: found }) => {
                assert!(!fits && found >= generation, "{generation} was refused as {found}");
            }
            Err(error) => panic!("{generation}: {error}"),
        }
    }
}

#[test]
fn what_would_expire_after_all_time_that_is_counted_expires_at_its_end() {
    let machine = machine(1);
    let mut node = machine.start();
    machine.turn_calendar(EXPIRES_MAX - 1000 - node.local().unix_seconds());
    let ttl = |ttl_seconds, name| {
        let request = put(&node.store, name, 10);
        ReserveRequest { ttl_seconds, ..request }
    };
    let (soon, late) = (ttl(10, "soon"), ttl(u32::MAX, "late"));
    node.put_as(soon).expect("there is room");
    node.put_as(late).expect("there is room");
    for _ in 0..2 {
        let store = node.store.clone();
        let filter = ListFilter::default();
        let (listed, _) = node.run(async move { store.list(0, 100, 10, &filter).await });
        let expires: BTreeMap<_, _> =
            listed.into_iter().map(|block| (block.key, block.expires)).collect();
        let now = EXPIRES_MAX - 1000;
        assert_eq!(expires, [(key("soon"), now + 10), (key("late"), EXPIRES_MAX)].into());
        node = machine.restart(node);
    }
}
