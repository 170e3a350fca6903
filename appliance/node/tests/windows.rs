//! Clients on the node's machine read drives in memory for themselves, over real sockets and real mappings.
#![cfg(target_os = "linux")]

mod common;

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::{Wire, memory_node, node, put_item, value};
use memkv_admin_api::{NodeAdmin, ReloadError};
use memkv_client::{Client, Config as ClientConfig, GetOutcome, PutMode, PutOptions, Transport};
use memkv_net::shm::{Staging, Windows};
use memkv_node::config::{Config, Overrides};
use memkv_node::node::Node;
use memkv_node::paths::ThisMachine;
use memkv_node::reload::Source;
use memkv_wire::{
    CrcList, GetItem, GetItems, HEADER_LEN, ItemReplies, NamedReply, Opcode, PutItems, SharedKey,
    Staged, Status, crc32c,
};

const SIZE: usize = 1 << 20;

fn metric(node: &Node, name: &str) -> u64 {
    let metrics = node.admin().metrics();
    let counter = metrics.counters.iter().find(|counter| counter.name == name);
    let gauge = metrics.gauges.iter().find(|gauge| gauge.name == name);
    let value = counter.map(|counter| counter.value).or(gauge.map(|gauge| gauge.value as u64));
    value.unwrap_or_else(|| panic!("no metric {name}"))
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(30);
    while !done() {
        assert!(Instant::now() < until, "{what}");
        thread::yield_now();
    }
}

fn windows(wire: &Wire) -> Windows {
    let door = wire.hello.door.expect("there is a door");
    let soon = Instant::now() + Duration::from_secs(30);
    Windows::open(&door.name, &door.ticket, soon).expect("windows")
}

/// Gets a value that is named, and says nothing of having taken it.
fn ask(wire: &mut Wire, key: &[u8]) -> NamedReply {
    let mut meta = Vec::new();
    GetItems { items: vec![GetItem { key, offset: 0, length: u64::MAX }] }.encode(&mut meta);
    let header = wire.request(Opcode::Get).with_named();
    wire.send(header, &meta, &[], None);
    let frame = wire.receive().expect("an answer");
    assert!(frame.header.is_named() && frame.payload.is_empty());
    NamedReply::parse(&frame.meta).expect("it names its payload")
}

fn look(windows: &Windows, named: &NamedReply) -> Vec<u8> {
    let mut bytes = vec![0; named.spans.bytes() as usize];
    let mut rest = &mut bytes[..];
    for span in named.spans.iter() {
        let (now, later) = rest.split_at_mut(span.length as usize);
        windows.read(span.window, span.offset, now);
        rest = later;
    }
    bytes
}

/// Puts until everything that is not kept has been used again.
fn use_all_memory(node: &Node) {
    let mut wire = Wire::connect(node);
    for n in 0..200u32 {
        let bytes = value(n as u8 ^ 0x5a, SIZE);
        assert_eq!(wire.put_large(&n.to_le_bytes(), &bytes).status, Status::Ok);
    }
}

#[test]
fn who_reads_late_reads_what_was_there_and_nothing_else() {
    let node = memory_node("64 MiB");
    let mut wire = Wire::connect(&node);
    let bytes = value(7, SIZE);
    assert_eq!(wire.put_large(b"k", &bytes).status, Status::Ok);
    // One whose connection lives, and one who breaks the protocol: the node closes.
    let (mut slow, mut broken) = (Wire::connect(&node), Wire::connect(&node));
    let windows = windows(&slow);
    let named = [ask(&mut slow, b"k"), ask(&mut broken, b"k")];
    assert_eq!(named[0].get.reply.crcs.as_slice(), [crc32c(&bytes)]);
    assert_eq!(metric(&node, "memkv_named_bytes_total"), 2 * SIZE as u64);
    assert_eq!(metric(&node, "memkv_lent_bytes_total"), 0, "none of it was sent");
    broken.raw(&[0; HEADER_LEN]);
    wait_for("what it may read is kept for good", || {
        metric(&node, "memkv_lent_retired_bytes_total") == SIZE as u64
    });
    assert_eq!(wire.delete(b"k", 0).status, Status::Ok);
    use_all_memory(&node);
    for named in &named {
        assert!(look(&windows, named) == bytes, "not a byte of another's");
    }
    slow.consumed += SIZE as u64;
    assert_eq!(slow.exists(&[b"k"]), [Status::NotFound]);
    assert_eq!(metric(&node, "memkv_lent_bytes"), SIZE as u64, "one was taken");
    node.stop().expect("an orderly stop");
    assert!(look(&windows, &named[0]).len() == SIZE, "memory that was mapped stays");
}

#[test]
fn what_a_killed_reader_was_named_is_given_back() {
    let node = memory_node("64 MiB");
    let mut wire = Wire::connect(&node);
    assert_eq!(wire.put_large(b"k", &value(7, SIZE)).status, Status::Ok);
    let mut reader = Wire::connect(&node);
    ask(&mut reader, b"k");
    assert_eq!(metric(&node, "memkv_lent_bytes"), SIZE as u64);
    drop(reader);
    wait_for("its end is gone", || metric(&node, "memkv_lent_bytes") == 0);
    assert_eq!(metric(&node, "memkv_lent_retired_bytes_total"), 0);
    node.stop().expect("an orderly stop");
}

#[test]
fn windows_are_for_nodes_of_one_tenant_that_do_not_refuse_them() {
    let key = |byte: &str| byte.repeat(32);
    let storage = "memory: {max_size: 64 MiB}\n\
                   storage: {mode: memory, drives: [{max_size: 64 MiB}]}\n";
    let tenants = format!(
        "network:\n  keys:\n    - {{id: 1, key: \"{}\", tenant: red}}\n    \
         - {{id: 2, key: \"{}\", tenant: blue}}\n{storage}",
        key("11"),
        key("22"),
    );
    let several = node(&tenants);
    let secret = SharedKey::from_bytes([0x11; 32]);
    let wire = Wire::connect_as(&several, &secret, 1, "tests").expect("welcome");
    assert_eq!(wire.hello.door, None);
    several.stop().expect("an orderly stop");
    let refusing = node(&format!("network: {{shm: false}}\n{storage}"));
    assert_eq!(Wire::connect(&refusing).hello.door, None);
    refusing.stop().expect("an orderly stop");
    let folder = tempfile::tempdir().expect("a folder");
    let drive = folder.path().join("drive").display().to_string();
    let file = node(&format!(
        "memory: {{max_size: 64 MiB}}\n\
         storage: {{mode: file, drives: [{{media: {drive}, max_size: 400 MiB}}]}}\n"
    ));
    assert_eq!(Wire::connect(&file).hello.door, None, "a file is no memory");
    file.stop().expect("an orderly stop");
}

/// Another tenant's blocks would be in windows that cannot be taken back.
#[test]
fn no_tenant_comes_to_a_node_whose_memory_was_handed_out() {
    let row = |id: u32, byte: &str, tenant: &str| {
        format!("    - {{id: {id}, key: \"{}\", tenant: {tenant}}}\n", byte.repeat(32))
    };
    let base = "memory: {max_size: 64 MiB}\n\
                storage: {mode: memory, drives: [{max_size: 64 MiB}]}\nnetwork:\n  keys:\n";
    let red = format!("{base}{}", row(1, "11", "red"));
    let both = format!("{red}{}", row(2, "22", "blue"));
    let renamed = format!("{base}{}", row(1, "11", "blue"));
    let rotated = format!("{red}{}", row(3, "33", "red"));
    for used in [true, false] {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("config.yaml");
        std::fs::write(&file, &red).expect("room for a file");
        let address = Some("127.0.0.1:0".into());
        let overrides = Overrides { file: Some(file.clone()), address, ..Overrides::default() };
        let config = Config::load(&overrides, &ThisMachine).expect("a good configuration");
        let quiet: memkv_node::drives::Progress = std::rc::Rc::new(|_, _, _| {});
        let node = Node::start(config, &quiet).expect("the node starts");
        node.reload_from(Source { overrides, machine: Box::new(ThisMachine), log: None });
        let connect = || {
            let secret = SharedKey::from_bytes([0x11; 32]);
            Wire::connect_as(&node, &secret, 1, "tests").expect("welcome")
        };
        let early = connect();
        if used {
            windows(&early);
        }
        let reload = |text: &str| {
            std::fs::write(&file, text).expect("room for a file");
            node.admin().reload()
        };
        reload(&rotated).expect("a key of the same tenant");
        assert!(connect().hello.door == early.hello.door, "nobody's key is retired");
        // A key goes: who has not used its ticket cannot do so any more, and the others are spoken of.
        let warnings = reload(&red).expect("the key goes").warnings;
        let said = warnings.iter().any(|said| said.contains("until the node is restarted"));
        assert_eq!(said, used, "{warnings:?}");
        let (before, now) = (early.hello.door.expect("a door"), connect().hello.door.expect("one"));
        assert!(now.name == before.name && now.ticket != before.ticket);
        let soon = Instant::now() + Duration::from_secs(30);
        assert!(Windows::open(&before.name, &before.ticket, soon).is_err());
        for text in [&both, &renamed] {
            match (reload(text), used) {
                (Err(ReloadError::Refused(why)), true) => {
                    assert!(why.contains("network.keys: tenant `blue`"), "{why}");
                }
                (Ok(_), false) => {}
                (other, _) => panic!("used: {used}, {other:?}"),
            }
        }
        if used {
            assert!(connect().hello.door.is_some(), "nothing has changed");
        } else {
            reload(&red).expect("as it was");
            assert_eq!(connect().hello.door, None);
            // A ticket that was told before opens nothing any more.
            let door = early.hello.door.expect("it was told");
            let soon = Instant::now() + Duration::from_secs(30);
            assert!(Windows::open(&door.name, &door.ticket, soon).is_err());
        }
        node.stop().expect("an orderly stop");
    }
}

/// What is stored under a key at some time: every place tells which value it is of.
fn filled(key: u8, turn: u64, length: usize) -> Vec<u8> {
    let word = (turn << 8) | u64::from(key);
    word.to_le_bytes().repeat(length.div_ceil(8))[..length].to_vec()
}

/// Real clients read while others replace and delete what they read, on a drive that is full.
#[test]
fn readers_see_whole_values_while_they_are_replaced() {
    const KEYS: u8 = 12;
    const TURNS: u64 = 150;
    let node = memory_node("128 MiB");
    let config = |transport| ClientConfig {
        servers: vec![node.address().to_string()],
        transport,
        ..ClientConfig::default()
    };
    let length = |key: u8| 70_000 + usize::from(key) * 61_111 * if key > 3 { 10 } else { 1 };
    let writers = AtomicU64::new(2);
    let hits = AtomicU64::new(0);
    thread::scope(|scope| {
        // One sends what it puts, the other has it taken out of its memory.
        for (writer, transport) in [(0u64, Transport::Tcp), (1, Transport::Auto)] {
            let (config, writers) = (config(transport), &writers);
            scope.spawn(move || {
                let client = Client::new(config).expect("a client");
                let replace = PutOptions { mode: PutMode::Replace, ..PutOptions::default() };
                for turn in 0..TURNS {
                    let key = ((turn * 7 + writer) % u64::from(KEYS)) as u8;
                    let bytes = filled(key, turn * 2 + writer, length(key));
                    client.put(&[key], &bytes, &replace).expect("a put");
                    if turn % 11 == 10 {
                        client.delete(&[key], None).expect("a delete");
                    }
                }
                writers.fetch_sub(1, Ordering::Relaxed);
            });
        }
        for _ in 0..2 {
            let (config, writers, hits) = (config(Transport::Auto), &writers, &hits);
            scope.spawn(move || {
                let client = Client::new(config).expect("a client");
                let mut bytes = Vec::new();
                while writers.load(Ordering::Relaxed) > 0 {
                    for key in 0..KEYS {
                        match client.get(&[key], &mut bytes).expect("an answer") {
                            GetOutcome::Hit { .. } => {
                                let turn =
                                    u64::from_le_bytes(*bytes.first_chunk().expect("8")) >> 8;
                                assert!(bytes == filled(key, turn, length(key)), "{key}");
                                hits.fetch_add(1, Ordering::Relaxed);
                            }
                            GetOutcome::Miss(why) => {
                                assert_ne!(why, memkv_client::MissReason::Corrupt);
                            }
                        }
                    }
                }
            });
        }
    });
    assert!(hits.into_inner() > 0 && metric(&node, "memkv_named_bytes_total") > 0);
    // Of 70,000 bytes: larger ones are offered.
    assert!(metric(&node, "memkv_staged_bytes_total") > 0);
    assert_eq!(metric(&node, "memkv_suspects_total"), 0);
    assert_eq!(metric(&node, "memkv_lent_retired_bytes_total"), 0);
    node.stop().expect("an orderly stop");
}

/// A client that goes on writing where the server is reading harms its own put, and nothing is stored of it.
#[test]
fn what_is_changed_under_the_server_is_stored_whole_or_not_at_all() {
    const LENGTH: usize = 200_000;
    let node = memory_node("128 MiB");
    let mut wire = Wire::connect(&node);
    let door = wire.hello.door.filter(|_| wire.hello.takes_staged).expect("there is a door");
    let soon = Instant::now() + Duration::from_secs(30);
    let memory =
        Staging::open(&door.name, &door.ticket, 0xfeed, LENGTH, soon).expect("it is taken");
    let stop = AtomicU64::new(0);
    let mut refused = 0;
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut at = 0;
            while stop.load(Ordering::Relaxed) == 0 {
                at = (at + 4099) % LENGTH;
                memory.write(at, b"x");
            }
        });
        for turn in 0..300u64 {
            let (key, bytes) = (turn.to_le_bytes(), filled(1, turn, LENGTH));
            memory.write(0, &bytes);
            let item =
                put_item(&key, LENGTH, PutMode::Absent, CrcList::of(&bytes, 4 << 20).expect("one"));
            let mut meta = Vec::new();
            PutItems { items: vec![item] }.encode(&mut meta);
            Staged { staging: 0xfeed, offset: 0 }.encode(&mut meta);
            let header = wire.request(Opcode::Put).with_named();
            let frame = wire.call(header, &meta, &[]);
            let status = ItemReplies::parse(&frame.meta).expect("a reply per item").items[0].status;
            let (reply, stored) = wire.get(&key);
            match status {
                Status::Ok => assert!(reply.status == Status::Ok && stored == bytes, "{turn}"),
                Status::CrcMismatch => assert_eq!(reply.status, Status::NotFound, "{turn}"),
                status => panic!("{status}"),
            }
            refused += u64::from(status == Status::CrcMismatch);
        }
        stop.store(1, Ordering::Relaxed);
    });
    assert!(refused > 0, "it was changed in time at least once");
    assert_eq!(metric(&node, "memkv_staged_bytes_total"), 300 * LENGTH as u64);
    node.stop().expect("an orderly stop");
}
