//! A node from the outside, over TCP: what it stores it gives back, what it refuses it names.

mod common;

use std::time::{Duration, Instant};

use common::{Wire, memory_node, node, value};
use memkv_wire::{MissReason, PutMode, StatId, Status};

#[test]
fn small_and_large_values_come_back() {
    let node = memory_node("64 MiB");
    let mut wire = Wire::connect(&node);
    for (key, length) in
        [(&b"one"[..], 1), (b"unit", 16 << 10), (b"odd", 100_001), (b"inline", 256 << 10)]
    {
        let bytes = value(length as u8, length);
        let stored = wire.put(key, &bytes, PutMode::Absent);
        assert_eq!(stored.status, Status::Ok, "{stored:?}");
        let (reply, back) = wire.get(key);
        assert_eq!((reply.status, reply.length), (Status::Ok, length as u64));
        assert_eq!(reply.generation, stored.generation);
        assert_eq!(back, bytes);
    }
    for (key, length) in [(&b"large"[..], (1 << 20) + 1), (b"extents", (9 << 20) + 12_345)] {
        let bytes = value(3, length);
        assert_eq!(wire.put_large(key, &bytes).status, Status::Ok);
        let (reply, back) = wire.get(key);
        assert_eq!(reply.status, Status::Ok);
        assert_eq!(reply.crcs.as_slice().len(), length.div_ceil(4 << 20));
        assert!(back == bytes, "{} bytes differ", length);
        let (_, range) = wire.get_range(key, (1 << 20) - 9, 10);
        assert_eq!(range, &bytes[(1 << 20) - 9..(1 << 20) + 1]);
    }
    node.stop().expect("an orderly stop");
}

#[test]
fn the_state_of_a_key_decides() {
    let node = memory_node("64 MiB");
    let mut wire = Wire::connect(&node);
    let first = wire.put(b"k", &value(1, 1000), PutMode::Absent);
    let present = wire.put(b"k", &value(2, 1000), PutMode::Absent);
    assert_eq!((present.status, present.generation), (Status::Present, first.generation));
    let conflict = wire.put(b"k", &value(2, 1001), PutMode::Absent);
    assert_eq!((conflict.status, conflict.length), (Status::Conflict, 1000));
    let wrong = wire.put(b"k", &value(2, 1001), PutMode::Generation(first.generation + 1));
    assert_eq!(wrong.status, Status::GenerationMismatch);
    let second = wire.put(b"k", &value(2, 1001), PutMode::Generation(first.generation));
    assert_eq!(second.status, Status::Ok);
    assert!(second.generation > first.generation);
    assert_eq!(wire.get(b"k").1, value(2, 1001));
    assert_eq!(wire.delete(b"k", first.generation).status, Status::GenerationMismatch);
    assert_eq!(wire.delete(b"k", 0).status, Status::Ok);
    let (miss, _) = wire.get(b"k");
    assert_eq!((miss.status, miss.reason), (Status::NotFound, MissReason::Deleted));
    let (miss, _) = wire.get(b"never");
    assert_eq!((miss.status, miss.reason), (Status::NotFound, MissReason::Never));
    assert_eq!(wire.match_prefix(&[b"a", b"b"]), 0);
    wire.put(b"a", &value(1, 10), PutMode::Absent);
    assert_eq!(wire.match_prefix(&[b"a", b"b"]), 1);
    assert_eq!(wire.exists(&[b"b", b"a"]), [Status::NotFound, Status::Ok]);
    let (offered, _) = wire.offer(b"a", 10, PutMode::Absent);
    assert_eq!(offered.status, Status::Present, "a present key costs no payload");
}

#[test]
fn clients_are_told_how_much_room_there_is() {
    let node = memory_node("64 MiB");
    let mut wire = Wire::connect(&node);
    let before = wire.stats();
    let told = |id| before.get(id).unwrap_or_else(|| panic!("{id:?} is not told"));
    let (total, used) = (told(StatId::BytesTotal), told(StatId::BytesUsed));
    assert!((32 << 20..64 << 20).contains(&total) && used < total / 8, "{used} of {total}");
    assert_eq!((told(StatId::DrivesOnline), told(StatId::DrivesOffline)), (1, 0));
    let bytes = value(1, 8 << 20);
    assert_eq!(wire.put_large(b"large", &bytes).status, Status::Ok);
    // It is looked at once a second.
    let begun = Instant::now();
    while wire.stats().get(StatId::BytesUsed) < Some(used + (8 << 20)) {
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", wire.stats());
    }
    node.stop().expect("an orderly stop");
}

#[test]
fn a_file_remembers_across_an_orderly_restart() {
    let dir = tempfile::tempdir().expect("a directory");
    let yaml = format!(
        "memory: {{max_size: 64 MiB}}\nstorage:\n  mode: file\n  drives:\n    \
         - {{media: {0}/a, max_size: 128 MiB}}\n    - {{media: {0}/b, max_size: 256 MiB}}\n",
        dir.path().display()
    );
    let large = value(5, (11 << 20) + 1);
    let first = node(&yaml);
    let mut wire = Wire::connect(&first);
    for i in 0..50u8 {
        assert_eq!(wire.put(&[i], &value(i, 3000), PutMode::Absent).status, Status::Ok);
    }
    assert_eq!(wire.put_large(b"large", &large).status, Status::Ok);
    assert_eq!(wire.delete(&[7], 0).status, Status::Ok);
    assert_eq!(wire.put(&[8], &value(80, 3001), PutMode::Replace).status, Status::Ok);
    let incarnation = wire.hello.incarnation;
    first.stop().expect("an orderly stop");

    let second = node(&yaml);
    let mut wire = Wire::connect(&second);
    assert!(wire.hello.incarnation > incarnation);
    for i in 0..50u8 {
        let (reply, bytes) = wire.get(&[i]);
        match i {
            7 => assert_eq!(reply.status, Status::NotFound),
            8 => assert_eq!(bytes, value(80, 3001)),
            _ => assert_eq!(bytes, value(i, 3000), "block {i}"),
        }
    }
    assert!(wire.get(b"large").1 == large);
    second.stop().expect("an orderly stop");
}

#[test]
fn several_reactors_serve_one_store() {
    let node = node(
        "node: {reactors: 3}\nmemory: {max_size: 64 MiB}\n\
         storage: {mode: memory, drives: [{max_size: 64 MiB}, {max_size: 64 MiB}]}\n",
    );
    std::thread::scope(|scope| {
        for thread in 0..6u8 {
            let node = &node;
            scope.spawn(move || {
                let mut wire = Wire::connect(node);
                for round in 0..20u8 {
                    let key = [thread, round];
                    let bytes = value(thread ^ round, 20_000);
                    assert_eq!(wire.put(&key, &bytes, PutMode::Absent).status, Status::Ok);
                    assert_eq!(wire.get(&key).1, bytes);
                    let big = value(round, 1_500_000);
                    let mode = PutMode::Replace;
                    let (wanted, offer) = wire.offer(&[thread], big.len(), mode);
                    assert_eq!(wanted.status, Status::Want);
                    assert_eq!(wire.data(offer, &big).status, Status::Ok);
                    assert!(wire.get(&[thread]).1 == big);
                }
            });
        }
    });
    node.stop().expect("an orderly stop");
}

#[test]
fn a_full_store_evicts_or_says_so() {
    let off = node(
        "memory: {max_size: 64 MiB}\n\
         storage: {mode: memory, drives: [{max_size: 64 MiB}], eviction: {enabled: false}}\n",
    );
    let mut wire = Wire::connect(&off);
    let bytes = value(1, 200_000);
    let mut stored = 0u32;
    let last = loop {
        let reply = wire.put(&stored.to_le_bytes(), &bytes, PutMode::Absent);
        if reply.status != Status::Ok {
            break reply.status;
        }
        stored += 1;
    };
    assert_eq!(last, Status::Full);
    assert!(stored > 20);
    for i in 0..stored {
        assert_eq!(wire.get(&i.to_le_bytes()).1, bytes, "nothing is lost when it is full");
    }

    let on = node(
        "memory: {max_size: 64 MiB}\n\
         storage: {mode: memory, drives: [{max_size: 64 MiB}], eviction: {enabled: true}}\n",
    );
    let mut wire = Wire::connect(&on);
    let mut busy = 0;
    for i in 0..stored * 3 {
        loop {
            let reply = wire.put(&i.to_le_bytes(), &bytes, PutMode::Absent);
            match reply.status {
                Status::Ok => break,
                Status::Busy => busy += 1,
                other => panic!("put {i}: {other:?}"),
            }
            assert!(busy < 100_000, "eviction makes room");
        }
    }
    let (miss, _) = wire.get(&0u32.to_le_bytes());
    assert_eq!((miss.status, miss.reason), (Status::NotFound, MissReason::Evicted));
    assert_eq!(wire.get(&(stored * 3 - 1).to_le_bytes()).1, bytes);
}
