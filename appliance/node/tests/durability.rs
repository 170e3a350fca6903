//! What acknowledged puts survive, by configuration and by what a put asks for; and what of the drives' work
//! is told.

mod common;

use common::{Wire, memory_node, node, put_item, value};
use memkv_admin_api::NodeAdmin;
use memkv_node::node::Node;
use memkv_wire::{CrcList, PutItem, PutMode, Status};

fn file_node(dir: &tempfile::TempDir, durability: &str) -> Node {
    node(&format!(
        "memory: {{max_size: 64 MiB}}\nstorage:\n  mode: file\n  durability: {durability}\n  \
         drives:\n    - {{media: {0}/a, max_size: 128 MiB}}\n    \
         - {{media: {0}/b, max_size: 128 MiB}}\n",
        dir.path().display()
    ))
}

fn flush_waits(node: &Node) -> u64 {
    let metrics = node.admin().metrics();
    let found = metrics.counters.iter().find(|counter| counter.name == "memkv_flush_waits_total");
    found.expect("it is counted").value
}

fn durable<'a>(wire: &Wire, key: &'a [u8], value: &[u8]) -> PutItem<'a> {
    let crcs = CrcList::of(value, wire.hello.limits.extent as usize).expect("few extents");
    PutItem { durable: true, ..put_item(key, value.len(), PutMode::Absent, crcs) }
}

#[test]
fn under_power_every_put_and_delete_is_flushed() {
    let dir = tempfile::tempdir().expect("a directory");
    let node = file_node(&dir, "power");
    assert_eq!(node.admin().status().durability, "power");
    let mut wire = Wire::connect(&node);
    let before = flush_waits(&node);
    assert_eq!(wire.put(b"small", &value(1, 5_000), PutMode::Absent).status, Status::Ok);
    let put = flush_waits(&node);
    assert_eq!(put, before + 2, "its data, and its record");
    assert_eq!(wire.put_large(b"large", &value(2, 9 << 20)).status, Status::Ok);
    let large = flush_waits(&node);
    assert!(large >= put + 2);
    assert_eq!(wire.delete(b"small", 0).status, Status::Ok);
    assert_eq!(flush_waits(&node), large + 1);
    assert_eq!(wire.get(b"large").1, value(2, 9 << 20));
    node.stop().expect("an orderly stop");
}

#[test]
fn a_put_may_ask_to_be_flushed_where_others_are_not() {
    let dir = tempfile::tempdir().expect("a directory");
    let node = file_node(&dir, "process");
    let mut wire = Wire::connect(&node);
    let before = flush_waits(&node);
    let bytes = value(3, 5_000);
    assert_eq!(wire.put(b"plain", &bytes, PutMode::Absent).status, Status::Ok);
    assert_eq!(flush_waits(&node), before);
    let asked = durable(&wire, b"asked", &bytes);
    assert_eq!(wire.put_as(asked, &bytes).status, Status::Ok);
    let own = before + 2;
    assert_eq!(flush_waits(&node), own + 1, "and the other drive, where an older one may lie");
    let present = durable(&wire, b"plain", &bytes);
    assert_eq!(wire.put_as(present, &bytes).status, Status::Present);
    assert_eq!(flush_waits(&node), own + 1 + 2, "both");
    node.stop().expect("an orderly stop");
}

#[test]
fn memory_survives_nothing_and_says_so() {
    let node = memory_node("64 MiB");
    let mut wire = Wire::connect(&node);
    let bytes = value(4, 5_000);
    let asked = durable(&wire, b"asked", &bytes);
    assert_eq!(wire.put_as(asked, &bytes).status, Status::Unsupported);
    assert_eq!(wire.put(b"plain", &bytes, PutMode::Absent).status, Status::Ok);
    node.stop().expect("an orderly stop");
}

#[test]
fn what_reactors_have_drives_do_is_told() {
    let dir = tempfile::tempdir().expect("a directory");
    let node = file_node(&dir, "process");
    let mut wire = Wire::connect(&node);
    let status = node.admin().status();
    let ended = |status: &memkv_admin_api::NodeStatus| -> u64 {
        status.reactors.iter().map(|reactor| reactor.completions_total).sum()
    };
    let before = ended(&status);
    for key in 0..10u8 {
        assert_eq!(wire.put(&[key], &value(key, 5_000), PutMode::Absent).status, Status::Ok);
        assert_eq!(wire.get(&[key]).1, value(key, 5_000));
    }
    let status = node.admin().status();
    assert!(ended(&status) >= before + 30, "data, a record and a read for each: {status:?}");
    // Drives are asked before reactors are: later they have done no less.
    let later = node.admin().status();
    let io: u64 = later
        .drives
        .iter()
        .map(|d| d.io.reads_total + d.io.writes_total + d.io.flushes_total)
        .sum();
    assert!(ended(&status) <= io, "none that no drive has done: {status:?}");
    for reactor in &status.reactors {
        let drives: Vec<&str> = reactor.queues.iter().map(|queue| &*queue.drive).collect();
        let all: Vec<&str> = status.drives.iter().map(|drive| &*drive.path).collect();
        assert_eq!(drives, all, "every reactor reaches every drive");
        let total: u64 = reactor.queues.iter().map(|queue| queue.completions_total).sum();
        assert_eq!(reactor.completions_total, total);
        assert!(reactor.busy_seconds > 0.0 && reactor.polls > 0);
    }
    let metrics = node.admin().metrics();
    let counted = metrics.counters.iter().filter(|c| c.name == "memkv_queue_completions_total");
    assert!(counted.map(|counter| counter.value).sum::<u64>() >= ended(&status));
    node.stop().expect("an orderly stop");
}
