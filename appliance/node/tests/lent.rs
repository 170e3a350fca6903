//! Payload that a node lends to readers on its machine, over real sockets: who reads late, also when
//! the node has closed, reads what was there.
#![cfg(target_os = "linux")]

mod common;

use std::time::{Duration, Instant};

use common::{Wire, node, value};
use memkv_admin_api::NodeAdmin;
use memkv_node::node::Node;
use memkv_wire::{
    GetItem, GetItems, GetReply, HEADER_LEN, Opcode, PutMode, SharedKey, Status, crc32c,
};

const SIZE: usize = 1 << 20;

/// A node in memory and one on a file, both too small for what is put to them.
fn nodes() -> Vec<(Node, Option<tempfile::TempDir>)> {
    let memory = "{mode: memory, drives: [{max_size: 64 MiB}]}".to_owned();
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("drive").display().to_string();
    let file = format!("{{mode: file, drives: [{{media: {file}, max_size: 400 MiB}}]}}");
    [(memory, None), (file, Some(folder))]
        .into_iter()
        .map(|(storage, folder)| {
            let yaml = format!("memory: {{max_size: 64 MiB}}\nstorage: {storage}\n");
            (node(&yaml), folder)
        })
        .collect()
}

/// A counter or gauge of the node.
fn metric(node: &Node, name: &str) -> f64 {
    let metrics = node.admin().metrics();
    let counter = metrics.counters.iter().find(|counter| counter.name == name);
    let gauge = metrics.gauges.iter().find(|gauge| gauge.name == name);
    let value = counter.map(|counter| counter.value as f64).or(gauge.map(|gauge| gauge.value));
    value.unwrap_or_else(|| panic!("no metric {name}"))
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(30);
    while !done() {
        assert!(Instant::now() < until, "{what}");
        std::thread::yield_now();
    }
}

fn ask(wire: &mut Wire, key: &[u8]) {
    let mut meta = Vec::new();
    GetItems { items: vec![GetItem { key, offset: 0, length: u64::MAX }] }.encode(&mut meta);
    let header = wire.request(Opcode::Get);
    wire.send(header, &meta, &[], None);
}

/// Puts until everything that is not kept has been used again.
fn use_all_memory(node: &Node) {
    let mut wire = Wire::connect(node);
    for n in 0..300u32 {
        let bytes = value(n as u8 ^ 0x5a, SIZE);
        loop {
            let (reply, offer) = wire.offer(&n.to_le_bytes(), SIZE, PutMode::Replace);
            match reply.status {
                Status::Want => {
                    assert_eq!(wire.data(offer, &bytes).status, Status::Ok);
                    break;
                }
                Status::Busy => {}
                other => panic!("put {n}: {other:?}"),
            }
        }
        if n % 8 == 0 {
            assert!(wire.get(&n.to_le_bytes()).1 == bytes);
        }
    }
}

#[test]
fn who_reads_late_reads_what_was_there_and_nothing_else() {
    for (node, _folder) in nodes() {
        let mut wire = Wire::connect(&node);
        let bytes = value(7, SIZE);
        assert_eq!(wire.put_large(b"k", &bytes).status, Status::Ok);
        // One whose connection lives, and one who broke the protocol: the node closes.
        let (mut slow, mut broken) = (Wire::connect(&node), Wire::connect(&node));
        ask(&mut slow, b"k");
        ask(&mut broken, b"k");
        wait_for("both are lent it", || metric(&node, "memkv_lent_bytes") == 2.0 * SIZE as f64);
        broken.raw(&[0; HEADER_LEN]);
        wait_for("what it may read is kept for good", || {
            metric(&node, "memkv_lent_retired_bytes_total") == SIZE as f64
        });
        assert_eq!(wire.delete(b"k", 0).status, Status::Ok);
        use_all_memory(&node);
        for late in [&mut slow, &mut broken] {
            let frame = late.receive().expect("what was sent");
            assert!(frame.header.is_lent());
            let reply = GetReply::parse(&frame.meta).expect("a get reply").reply;
            assert_eq!(reply.crcs.as_slice(), [crc32c(&frame.payload)]);
            assert!(frame.payload == bytes, "not a byte of another's");
        }
        assert_eq!(slow.exists(&[b"k"]), [Status::NotFound]);
        assert_eq!(metric(&node, "memkv_lent_bytes"), SIZE as f64, "one was taken");
        use_all_memory(&node);
        node.stop().expect("an orderly stop");
    }
}

#[test]
fn what_a_killed_reader_was_lent_is_given_back() {
    for (node, _folder) in nodes() {
        let mut wire = Wire::connect(&node);
        assert_eq!(wire.put_large(b"k", &value(7, SIZE)).status, Status::Ok);
        // One has read all of it, the other nothing.
        let (mut read, mut unread) = (Wire::connect(&node), Wire::connect(&node));
        assert!(read.get(b"k").1 == value(7, SIZE));
        ask(&mut unread, b"k");
        wait_for("both are lent it", || metric(&node, "memkv_lent_bytes") == 2.0 * SIZE as f64);
        drop((read, unread));
        wait_for("their ends are gone", || metric(&node, "memkv_lent_bytes") == 0.0);
        assert_eq!(metric(&node, "memkv_lent_retired_bytes_total"), 0.0);
        assert_eq!(metric(&node, "memkv_lent_bytes_total"), 2.0 * SIZE as f64);
        assert_eq!(metric(&node, "memkv_protocol_violations_total"), 0.0);
        node.stop().expect("an orderly stop");
    }
}

#[test]
fn a_node_of_two_tenants_lends_nothing() {
    let key = |byte: &str| byte.repeat(32);
    let yaml = format!(
        "network:\n  keys:\n    - {{id: 1, key: \"{}\", tenant: red}}\n    \
         - {{id: 2, key: \"{}\", tenant: blue}}\n\
         memory: {{max_size: 64 MiB}}\nstorage: {{mode: memory, drives: [{{max_size: 64 MiB}}]}}\n",
        key("11"),
        key("22"),
    );
    let node = node(&yaml);
    let secret = SharedKey::from_bytes([0x11; 32]);
    let mut wire = Wire::connect_as(&node, &secret, 1, "tests").expect("welcome");
    assert_eq!(wire.put_large(b"k", &value(7, SIZE)).status, Status::Ok);
    assert!(wire.get(b"k").1 == value(7, SIZE));
    assert_eq!((metric(&node, "memkv_lent_bytes_total"), wire.consumed), (0.0, 0));
    node.stop().expect("an orderly stop");
}
