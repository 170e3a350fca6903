//! Checkpoints that are merged bit by bit while the store goes on, and what a kill leaves of them.

mod common;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use common::{EXTENT, Machine, Node, caller, key, put, tiny_ring, without_eviction};
use memkv_journal::checkpoint::codec::Column;
use memkv_journal::{Contents, Record, read_contents, read_superblock};
use memkv_poller::Rng;
use memkv_store::{Deleted, DriveId, Miss, MissReason};

const MIB: usize = 1 << 20;
const KEYS: u64 = 12;

/// What a key holds: the length of its value, which tells it from all others.
type State = Option<u64>;

/// One key as clients know it.
#[derive(Clone, Default)]
struct Known {
    answered: State,
    /// What was asked and not answered.
    asked: Option<State>,
}

impl Known {
    fn may_be(&self, found: State) -> bool {
        found == self.answered || self.asked == Some(found)
    }
}

type Model = Rc<RefCell<BTreeMap<String, Known>>>;

/// Asks for something of a key that nobody asks anything of.
fn ask(node: &Node, model: &Model, rng: &mut Rng, number: u64) {
    let name = format!("key {}", rng.below(KEYS));
    let mut known = model.borrow_mut();
    let known = known.entry(name.clone()).or_default();
    if known.asked.is_some() {
        return;
    }
    let store = node.store.clone();
    let (model, local) = (model.clone(), node.local());
    if rng.below(3) == 0 {
        known.asked = Some(None);
        let hash = node.hash(&name);
        local.spawn(async move {
            let deadline = store.local().now() + Duration::from_secs(60);
            let deleted = store.delete(hash, 0, deadline, caller()).await;
            assert!(matches!(deleted, Deleted::Gone { .. } | Deleted::Missing(_)), "{deleted:?}");
            model.borrow_mut().insert(name, Known::default());
        });
        return;
    }
    let length = rng.below(3) * u64::from(EXTENT) + number + 1;
    known.asked = Some(Some(length));
    let request = put(&node.store, &name, length);
    local.spawn(async move {
        let stored = match store.reserve(request).await {
            Ok(grant) => store.commit(grant.id, &vec![7; grant.extents.len()]).await.map_err(drop),
            Err(_) => Err(()),
        };
        let mut model = model.borrow_mut();
        let known = model.get_mut(&name).expect("it was entered");
        known.asked = None;
        if stored.is_ok() {
            known.answered = Some(length);
        }
    });
}

/// Runs a history of puts, replaces and deletes with checkpoints of every drive all the while, step
/// by step, and kills it after so many commands of the drives; whether it got so far.
fn run_until(machine: &Machine, seed: u64, commands: u64, model: &Model) -> bool {
    let mut rng = Rng::seeded(seed);
    let mut node = machine.start();
    machine.disks.iter().for_each(common::Disk::hold);
    for drive in node.store.drives() {
        let store = node.store.clone();
        node.local().spawn(async move {
            loop {
                let seen = store.drives()[usize::from(drive.id.0)].journal.checkpoints;
                store.checkpoint_unless(drive.id, seen).await;
            }
        });
    }
    let (mut done, mut number) = (0, 0);
    while done < commands {
        number += 1;
        if number > 3000 {
            machine.kill(node);
            return false;
        }
        ask(&node, model, &mut rng, number);
        for _ in 0..rng.below(4) {
            node.reactor.step();
        }
        let waiting: Vec<_> = machine.disks.iter().filter(|disk| disk.holds() > 0).collect();
        if let Some(disk) = waiting.get(rng.below(waiting.len().max(1) as u64) as usize) {
            disk.let_one_go();
            done += 1;
        }
    }
    assert_eq!(node.store.counters().records_lost.get(), 0);
    machine.kill(node);
    true
}

fn contents(machine: &Machine, node: &mut Node, disk: usize) -> Contents {
    let (disk, pool, local) = (machine.disks[disk].clone(), machine.pool(), node.local());
    node.run(async move {
        let superblock = read_superblock(&disk, &disk.geometry(), &pool).await.expect("whole");
        read_contents(&disk, &local, &pool, &superblock).await.expect("whole")
    })
}

/// The keys that are stored, and their lengths.
fn found(node: &Node) -> BTreeMap<String, u64> {
    let names = (0..KEYS).map(|key| format!("key {key}"));
    names.filter_map(|name| Some((name.clone(), node.existing(&name).ok()?.length))).collect()
}

/// What is on the drives, key by key, is what the index holds: nothing less, nothing more.
fn drives_hold(machine: &Machine, node: &mut Node, expected: &BTreeMap<String, u64>) {
    let mut on_drives = BTreeMap::new();
    for disk in 0..machine.disks.len() {
        for record in contents(machine, node, disk).live {
            let (key, length) = match &record {
                Record::Put { key, length, .. } => (key, u64::from(*length)),
                Record::Head { key, length, .. } => (key, *length),
                _ => continue,
            };
            assert_eq!(node.store.hasher().hash(key).0, record.block().hash);
            let name = String::from_utf8_lossy(key.key()).into_owned();
            assert_eq!(on_drives.insert(name, length), None, "{key:?} is there twice");
        }
    }
    assert_eq!(&on_drives, expected);
}

fn checkpoint_all(node: &mut Node) {
    for drive in node.store.drives() {
        let store = node.store.clone();
        node.run(async move { store.checkpoint_unless(drive.id, drive.journal.checkpoints).await });
    }
}

#[test]
fn a_kill_after_any_command_of_running_checkpoints_costs_nothing_that_was_answered() {
    for (drives, seed) in [(1, 1), (1, 2), (2, 3), (3, 4)] {
        for commands in 0.. {
            let machine = Machine::new(drives, 4 * MIB, tiny_ring(), without_eviction());
            let model = Model::default();
            if commands == 260 || !run_until(&machine, seed, commands, &model) {
                assert!(commands >= 200, "a history of {commands} commands says little");
                break;
            }
            let mut node = machine.start();
            let first = found(&node);
            for (name, known) in model.borrow().iter() {
                let found = first.get(name).copied();
                let Known { answered, asked } = known;
                assert!(
                    known.may_be(found),
                    "{drives} drives, seed {seed}, {commands} commands: {name} is {found:?}, \
                     answered {answered:?}, asked {asked:?}"
                );
            }
            // The next checkpoints are merged from what the kill left.
            checkpoint_all(&mut node);
            assert_eq!(found(&node), first);
            drives_hold(&machine, &mut node, &first);
            assert_eq!(node.store.counters().records_lost.get(), 0);
            let node = machine.restart(node);
            assert_eq!(found(&node), first);
        }
    }
}

#[test]
fn a_merged_checkpoint_is_the_index_of_a_quiet_store() {
    for seed in 0..6 {
        let machine = Machine::new(1 + seed as usize % 3, 4 * MIB, tiny_ring(), without_eviction());
        let mut node = machine.start();
        let (model, mut rng) = (Model::default(), Rng::seeded(seed));
        for number in 0..400 {
            ask(&node, &model, &mut rng, number);
            node.settle();
            if rng.below(40) == 0 {
                checkpoint_all(&mut node);
                let expected = found(&node);
                drives_hold(&machine, &mut node, &expected);
            }
            if rng.below(60) == 0 {
                let before = found(&node);
                node = machine.restart(node);
                assert_eq!(found(&node), before);
            }
        }
        let counters = node.store.counters();
        assert_eq!(counters.records_lost.get(), 0);
    }
}

#[test]
fn a_block_in_a_frame_behind_one_in_use_stays_in_the_log() {
    let machine = Machine::new(2, 4 * MIB, tiny_ring(), without_eviction());
    let mut node = machine.start();
    let spread = loop {
        let request = put(&node.store, "spread", 4 * u64::from(EXTENT));
        let grant = node.reserve(request).expect("there is room");
        if grant.extents.iter().any(|e| e.drive != grant.extents[0].drive) {
            break grant;
        }
        node.store.abort(grant.id);
    };
    // Its frame on drive 0 is written, and that on drive 1 is not: both stay in use.
    machine.disks[1].hold();
    let (store, answered) = (node.store.clone(), Rc::new(RefCell::new(false)));
    let said = answered.clone();
    node.local().spawn(async move {
        store.commit(spread.id, &vec![1; spread.extents.len()]).await.expect("the drives work");
        *said.borrow_mut() = true;
    });
    node.settle();
    let name = loop {
        let name = format!("after {}", caller().request);
        let grant = node.reserve(put(&node.store, &name, 10)).expect("there is room");
        if grant.extents[0].drive == DriveId(0) {
            node.commit(grant, 5).expect("the drive works");
            break name;
        }
        node.store.abort(grant.id);
    };
    let store = node.store.clone();
    node.run(async move { store.checkpoint_unless(DriveId(0), 0).await });
    assert_eq!(node.store.drives()[0].journal.checkpoints, 1);
    assert!(!*answered.borrow());
    assert!(node.generation(&name).is_some(), "it is not taken for lost");
    machine.disks[1].let_go();
    node.settle();
    assert!(*answered.borrow());
    let node = machine.restart(node);
    assert!(node.generation(&name).is_some());
    assert!(node.generation("spread").is_some());
}

/// Where a column of the checkpoint in force on drive 0 begins.
fn column(node: &Node, column: Column) -> u64 {
    let superblock = node.journals[0].superblock();
    let layout = superblock.layout;
    layout.checkpoint_offset[superblock.active] + column.offset(layout.limits)
}

#[test]
fn what_cannot_be_read_of_the_last_checkpoint_is_dropped_and_nothing_else() {
    for (which, unreadable, stop) in [
        (Column::Keys, false, false),
        (Column::Keys, true, false),
        (Column::Rows, false, false),
        (Column::Parts, false, false),
        (Column::Keys, false, true),
    ] {
        let machine = Machine::new(1, 4 * MIB, tiny_ring(), without_eviction());
        let mut node = machine.start();
        for n in 0..10 {
            node.put(&format!("small {n}"), 100);
        }
        node.put("large", 3 * u64::from(EXTENT));
        checkpoint_all(&mut node);
        let at = column(&node, which) + 100;
        if unreadable {
            machine.disks[0].set_bad(at);
        } else {
            machine.disks[0].set_bytes(at, &[0xEE; 64]);
        }
        for n in 0..5 {
            node.put(&format!("later {n}"), 100);
        }
        node.delete("small 3");
        if stop {
            let store = node.store.clone();
            node.run(async move { store.shutdown().await });
        } else {
            checkpoint_all(&mut node);
            node.settle();
        }
        let lost = |name: &str| node.existing(name).err();
        let gone = Some(Miss(MissReason::Corrupt));
        // Heads alone have part references.
        let smalls_lost = which != Column::Parts;
        assert_eq!(lost("large"), gone, "{which:?}");
        assert_eq!(lost("small 0"), gone.filter(|_| smalls_lost), "{which:?}");
        let expected = if smalls_lost { 10 } else { 1 };
        let counters = node.store.counters();
        assert_eq!(
            (counters.records_lost.get(), counters.corrupt_dropped.get()),
            (expected, expected)
        );
        assert!((0..5).all(|n| node.generation(&format!("later {n}")).is_some()));
        let before = found_all(&node);
        let used = node.store.under_way();
        let node = machine.restart(node);
        assert_eq!(found_all(&node), before, "{which:?}");
        assert_eq!(node.store.under_way(), used);
        assert_eq!(node.store.counters().blocks.get(), if smalls_lost { 5 } else { 14 });
    }
}

fn found_all(node: &Node) -> Vec<Option<u64>> {
    let names = (0..10).map(|n| format!("small {n}")).chain((0..5).map(|n| format!("later {n}")));
    names.chain(["large".to_owned()]).map(|name| node.generation(&name)).collect()
}

#[test]
fn a_drive_that_fails_in_a_merge_goes_offline_and_nothing_is_dropped_for_it() {
    let machine = Machine::new(2, 4 * MIB, tiny_ring(), without_eviction());
    let mut node = machine.start();
    for n in 0..10 {
        node.put(&format!("small {n}"), 100);
    }
    checkpoint_all(&mut node);
    let kept = (0..10).filter(|n| {
        let lease = node.store.lease(node.hash(&format!("small {n}"))).expect("it is there");
        node.store.unpin(lease.slot);
        lease.extents[0].drive == DriveId(1)
    });
    let kept: Vec<u64> = kept.collect();
    machine.disks[0].set_broken(true);
    let store = node.store.clone();
    node.run(async move { store.checkpoint_unless(DriveId(0), 1).await });
    node.settle();
    for n in 0..10 {
        let lost = node.existing(&format!("small {n}")).err();
        let expected = (!kept.contains(&n)).then_some(Miss(MissReason::DriveLost));
        assert_eq!(lost, expected);
    }
    assert_eq!(node.store.counters().records_lost.get(), 0);
}

#[test]
fn the_keys_of_blocks_survive_any_number_of_checkpoints_and_starts() {
    let machine = Machine::new(1, 4 * MIB, tiny_ring(), without_eviction());
    let mut node = machine.start();
    let long = "k".repeat(400);
    node.put(&long, 100);
    for round in 0..4 {
        for n in 0..20 {
            node.put(&format!("round {round} {n}"), 10);
        }
        checkpoint_all(&mut node);
        node = machine.restart(node);
    }
    let live = contents(&machine, &mut node, 0).live;
    assert_eq!(live.len(), 81);
    let first = live.iter().find_map(|record| match record {
        Record::Put { key, .. } => Some(key.clone()),
        _ => None,
    });
    assert_eq!(first, Some(key(&long)), "the order is kept: the oldest stands first");
}
