//! What acknowledged puts survive: by configuration, and by what a put asks for.

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
    assert_eq!(flush_waits(&node), before + 2);
    let present = durable(&wire, b"plain", &bytes);
    assert_eq!(wire.put_as(present, &bytes).status, Status::Present);
    assert_eq!(flush_waits(&node), before + 3);
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
