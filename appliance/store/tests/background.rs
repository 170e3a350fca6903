//! What the store does when nobody asks: telling drives what is free, and reading what is cold.

mod common;

use std::time::Duration;

use common::{EXTENT, Machine, Node, UNIT, config, put, tiny_ring, without_eviction};
use memkv_journal::TrimConfig;
use memkv_store::{
    Deleted, Miss, MissReason, Mode, Refusal, ReserveRequest, ScrubConfig, Store, StoreConfig,
};

const MIB: usize = 1 << 20;
const DAY: Duration = Duration::from_secs(86_400);

fn at_once() -> Option<TrimConfig> {
    Some(TrimConfig { interval: DAY, extents: 1 })
}

fn quick_scrub() -> Option<ScrubConfig> {
    Some(ScrubConfig { bytes_per_second: 1 << 40, rest: DAY })
}

fn one_drive(config: StoreConfig) -> (Machine, Node) {
    let machine = Machine::new(1, 4 * MIB, tiny_ring(), config);
    let node = machine.start();
    (machine, node)
}

/// Waits until a thing is so, while everything else has its turns.
fn wait_for(node: &mut Node, so: impl Fn(&Store) -> bool + 'static) {
    let store = node.store.clone();
    node.run(async move {
        while !so(&store) {
            store.local().yield_now().await;
        }
    });
}

/// CRC32C bit by bit: slow, and nobody else's.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            if crc & 1 == 1 { crc >> 1 ^ 0x82F6_3B78 } else { crc >> 1 }
        })
    })
}

/// Stores bytes as a session does; where they lie: first bytes of the extents.
fn store_bytes(machine: &Machine, node: &mut Node, name: &str, bytes: &[u8]) -> Vec<u64> {
    let request = put(&node.store, name, bytes.len() as u64);
    let grant = node.reserve(request).expect("there is room");
    let mut at = 0;
    let mut crcs = Vec::new();
    let offsets = grant.extents.iter().map(|extent| extent.offset).collect();
    for extent in &grant.extents {
        let piece = &bytes[at..at + extent.length as usize];
        machine.disks[usize::from(extent.drive.0)].set_bytes(extent.offset, piece);
        crcs.push(crc32c(piece));
        at += piece.len();
    }
    let store = node.store.clone();
    node.run(async move { store.commit(grant.id, &crcs).await }).expect("the drives work");
    offsets
}

#[test]
fn a_block_is_trimmed_after_its_removal_is_durable_and_not_before() {
    let (machine, mut node) = one_drive(StoreConfig { trim: at_once(), ..config() });
    let offsets = store_bytes(&machine, &mut node, "gone", &[7; 40_000]);
    store_bytes(&machine, &mut node, "stays", &[8; 40_000]);
    machine.disks[0].hold();
    let (store, hash) = (node.store.clone(), node.hash("gone"));
    let deadline = store.local().now() + DAY;
    let delete = async move { store.delete(hash, 0, deadline, common::caller()).await };
    let deleted = node.local().spawn_join(delete);
    node.settle();
    assert_eq!(machine.disks[0].holds(), 1, "the removal, and nothing else");
    machine.disks[0].let_one_go();
    node.settle();
    // Two extents that are neighbours, the second of one unit; each goes when it is free.
    let held = machine.disks[0].holds();
    assert!((1..=2).contains(&held), "{held} commands");
    assert_eq!(machine.disks[0].trims(), []);
    machine.disks[0].let_go();
    node.settle();
    assert!(matches!(node.run(deleted), Deleted::Gone { .. }));
    let trims = machine.disks[0].trims();
    assert_eq!(trims.iter().map(|(_, len)| len).sum::<u64>(), u64::from(EXTENT + UNIT));
    assert_eq!(trims[0].0, offsets[0]);
    assert!(node.generation("stays").is_some());
}

#[test]
fn a_put_that_finds_only_withheld_units_is_told_to_come_again() {
    let (machine, mut node) = one_drive(StoreConfig { trim: at_once(), ..without_eviction() });
    let mut names = Vec::new();
    while node.free_units() > 0 {
        let name = format!("block {}", names.len());
        store_bytes(&machine, &mut node, &name, &[1; 100]);
        names.push(name);
    }
    // From the data region on commands wait: removals are durable, trims are not done.
    let first = node.journals[0].data_offset(0);
    machine.disks[0].hold_from(first);
    assert!(matches!(node.delete(&names[3]), Deleted::Gone { .. }));
    node.settle();
    assert_eq!((machine.disks[0].holds(), node.free_units()), (1, 1));
    let again = put(&node.store, "again", 100);
    assert!(matches!(node.put_as(again), Err(Refusal::Busy { .. })), "it is not full");
    machine.disks[0].let_go();
    node.settle();
    node.put("again", 100);
    let full = put(&node.store, "one more", 100);
    assert_eq!(node.put_as(full), Err(Refusal::Full));
}

#[test]
fn a_store_that_stops_leaves_no_trim_behind() {
    let interval = DAY;
    let trim = Some(TrimConfig { interval, extents: 1024 });
    let (machine, mut node) = one_drive(StoreConfig { trim, ..config() });
    for name in ["a", "b"] {
        store_bytes(&machine, &mut node, name, &[3; 100]);
    }
    node.delete("a");
    assert_eq!(node.store.drives()[0].trim.units_pending, 1);
    let store = node.store.clone();
    node.run(async move { store.shutdown().await });
    let trim = node.store.drives()[0].trim;
    assert_eq!((trim.units_pending, trim.units_dropped, trim.on), (0, 1, false));
    let node = machine.restart(node);
    assert!(node.generation("b").is_some());
    assert_eq!(machine.disks[0].trims(), []);
}

#[test]
fn the_scrubber_drops_what_rotted_and_verifies_the_rest() {
    let (mut machine, mut node) = one_drive(config());
    let fine: Vec<u8> = (0..100_000u32).map(|n| (n * 7 % 251) as u8).collect();
    let places = store_bytes(&machine, &mut node, "fine", &fine);
    assert_eq!(places.len(), 4, "several extents, the last of them short");
    let rotten = store_bytes(&machine, &mut node, "rotten", &fine);
    store_bytes(&machine, &mut node, "small", &[9; 5]);
    machine.kill(node);
    machine.disks[0].set_bytes(rotten[2] + 77, &[0xFF, 0xFE]);
    machine.config.scrub = quick_scrub();
    let mut node = machine.start();
    wait_for(&mut node, |store| store.counters().scrub.passes.get() > 0);
    assert_eq!(node.existing("rotten"), Err(Miss(MissReason::Corrupt)));
    let counters = node.store.counters();
    assert_eq!((counters.scrub.corrupt.get(), counters.corrupt_dropped.get()), (1, 1));
    assert_eq!(counters.scrub.last_pass.get(), 1_800_000_000);
    // Two of the rotten block's, before the bad one, were read as well.
    assert_eq!(counters.scrub.extents.get(), 4 + 2 + 1);
    assert!(counters.scrub.bytes.get() > fine.len() as u64);
    for name in ["fine", "small"] {
        let grant = node.store.lease(node.hash(name)).expect("its bytes are right");
        assert_eq!(grant.verified.count_ones(), grant.extents.len() as u32, "{name}");
        node.store.unpin(grant.slot);
    }
    // What was dropped is gone for good.
    let node = machine.restart(node);
    assert_eq!(node.existing("rotten"), Err(Miss(MissReason::Never)));
}

#[test]
fn a_put_of_what_is_there_reads_it_first_when_nobody_has_since_a_crash() {
    let (mut machine, mut node) = one_drive(config());
    let fine: Vec<u8> = (0..100_000u32).map(|n| (n * 7 % 251) as u8).collect();
    store_bytes(&machine, &mut node, "fine", &fine);
    let torn = store_bytes(&machine, &mut node, "torn", &fine);
    machine.kill(node);
    machine.disks[0].set_bytes(torn[3] + 9, &[0xFF, 0xFE]);
    machine.config.scrub = None;
    let mut node = machine.start();
    let absent = |node: &Node, name: &str| ReserveRequest {
        mode: Mode::Absent,
        ..put(&node.store, name, fine.len() as u64)
    };
    let request = absent(&node, "fine");
    assert!(matches!(node.reserve(request), Err(Refusal::Present(_))));
    let grant = node.store.lease(node.hash("fine")).expect("its bytes are right");
    assert_eq!(grant.verified.count_ones(), grant.extents.len() as u32);
    node.store.unpin(grant.slot);
    assert!(node.existing("torn").is_ok(), "nobody has looked");
    let request = absent(&node, "torn");
    let generation = node.put_as(request).expect("it is not there, and there is room");
    assert_eq!(node.generation("torn"), Some(generation));
    assert_eq!(node.store.under_way().leaving, 0);
    let node = machine.restart(node);
    assert_eq!(node.generation("torn"), Some(generation));
}

#[test]
fn the_scrubber_passes_over_what_is_read_and_keeps_nothing_while_it_waits() {
    let scrub = ScrubConfig { bytes_per_second: 1, rest: DAY };
    let (mut machine, mut node) = one_drive(config());
    store_bytes(&machine, &mut node, "read", &[1; 50]);
    store_bytes(&machine, &mut node, "cold", &[2; 50]);
    machine.kill(node);
    machine.config.scrub = Some(scrub);
    let mut node = machine.start();
    let hash = node.hash("read");
    let grant = node.store.lease(hash).expect("it is there");
    node.settle();
    let counters = node.store.counters();
    assert_eq!(counters.scrub.extents.get(), 1, "a byte a second is not much");
    // It now waits for fifty seconds; nothing is pinned but what the reader has.
    assert_eq!(node.store.under_way().readers, 1);
    node.store.unpin(grant.slot);
    assert!(matches!(node.delete("cold"), Deleted::Gone { .. }));
    assert_eq!(node.store.under_way().leaving, 0);
}

#[test]
fn a_block_the_drive_cannot_read_is_dropped_and_the_drive_stays() {
    let (mut machine, mut node) = one_drive(config());
    let offsets = store_bytes(&machine, &mut node, "unreadable", &[1; 50]);
    store_bytes(&machine, &mut node, "fine", &[1; 50]);
    machine.kill(node);
    machine.disks[0].set_bad(offsets[0]);
    machine.config.scrub = quick_scrub();
    let mut node = machine.start();
    wait_for(&mut node, |store| store.counters().scrub.passes.get() > 0);
    let counters = node.store.counters();
    assert_eq!((counters.scrub.unreadable.get(), counters.scrub.extents.get()), (1, 1));
    assert_eq!(node.existing("unreadable"), Err(Miss(MissReason::Corrupt)));
    assert!(node.generation("fine").is_some());
    assert_eq!(counters.drives_failed.get(), 0);
}
