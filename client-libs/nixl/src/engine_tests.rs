//! A backend against a real node, without NIXL.

use std::rc::Rc;
use std::time::{Duration, Instant};

use memkv_node::config::{Config, Overrides};
use memkv_node::node::Node;
use memkv_node::paths::ThisMachine;

use super::*;
use crate::device::stand_in::{GPU, StandIn};
use crate::status::Status;

const CONFIG: &str = "
network: {address: '127.0.0.1:0'}
memory: {max_size: 128 MiB, hugepages: never}
storage: {mode: memory, drives: [{max_size: 512 MiB}]}
node: {reactors: 1}
";
/// Far longer than a transfer takes.
const LONG: Duration = Duration::from_secs(30);
const MIB: usize = 1 << 20;

/// A node and a backend with 4 MiB of staging memory in slots of 1 MiB.
fn pair() -> (Node, Engine) {
    let config = Config::parse(CONFIG, &Overrides::default(), &ThisMachine)
        .unwrap_or_else(|error| panic!("{error}"));
    let node = Node::start(config, &(Rc::new(|_: &str, _, _| ()) as _)).expect("a node");
    let address = node.address().to_string();
    let given = [
        ("servers", &*address),
        // The machines of tests are slow at times.
        ("connect_timeout_ms", "60000"),
        ("staging_size_mb", "4"),
        ("staging_slot_mb", "1"),
    ];
    let settings = Settings::new(given.into_iter(), |_| None).expect("settings");
    (node, Engine::new(settings, Some(&StandIn)).expect("a backend"))
}

fn noise(length: usize, salt: u32) -> Vec<u8> {
    let word = |at: usize| (at as u32 ^ salt).wrapping_mul(2_654_435_761);
    (0..length).map(|at| (word(at) >> 11) as u8).collect()
}

/// Descriptors of memory: where, and how many bytes.
fn memory(parts: &[(&[u8], usize)], device: u64) -> Vec<End> {
    let end = |&(bytes, length): &(&[u8], usize)| {
        assert!(length <= bytes.len());
        End { address: bytes.as_ptr() as usize, length, device }
    };
    parts.iter().map(end).collect()
}

/// Descriptors of objects: which, from where, and how many bytes.
fn objects(parts: &[(u64, usize, usize)]) -> Vec<End> {
    parts.iter().map(|&(device, address, length)| End { address, length, device }).collect()
}

fn finish(prepared: &Prepared) -> Status {
    let began = Instant::now();
    while prepared.status() == Status::InProgress {
        assert!(began.elapsed() < LONG, "it ends");
        std::thread::yield_now();
    }
    prepared.status()
}

fn carry_out(
    engine: &Engine,
    direction: Direction,
    kind: i32,
    locals: &[End],
    remotes: &[End],
) -> Status {
    let made = engine.prepare(direction, (kind, locals), (kind::OBJECT, remotes));
    let prepared = made.unwrap_or_else(|refusal| panic!("{refusal}"));
    assert_eq!(prepared.status(), Status::NotPosted);
    engine.post(&prepared).expect("posted");
    finish(&prepared)
}

#[test]
fn memory_goes_to_objects_and_ranges_come_back_from_them() {
    let (_node, engine) = pair();
    let known = engine.add(kind::OBJECT, 1, b"a").expect("registered").expect("an object");
    assert!(engine.add(kind::DRAM, 0, b"").expect("registered").is_none());
    let value = noise(3 * MIB, 1);
    let cuts = [&value[..100], &value[100..2 * MIB], &value[2 * MIB..]];
    let all = memory(&cuts.map(|cut| (cut, cut.len())), 0);
    let mut parts = [(1, 0, 100), (1, 100, 2 * MIB - 100), (1, 2 * MIB, MIB)];
    let (write, dram) = (Direction::Write, kind::DRAM);
    assert_eq!(carry_out(&engine, write, dram, &all, &objects(&parts)), Status::Ok);
    assert_eq!(engine.query(&[(9, b"a"), (1, b"")]).expect("answers"), [true, false]);

    // The same bytes for two, a range in their middle for a third.
    let rooms = [vec![0_u8; MIB], vec![0_u8; MIB], vec![0_u8; 500]];
    let locals = memory(&[(&rooms[0], MIB), (&rooms[1], MIB), (&rooms[2], 500)], 0);
    parts = [(1, MIB, MIB), (1, MIB, MIB), (1, MIB + 77, 500)];
    let read = Direction::Read;
    assert_eq!(carry_out(&engine, read, dram, &locals, &objects(&parts)), Status::Ok);
    assert_eq!(rooms[0], &value[MIB..2 * MIB]);
    assert_eq!(rooms[1], rooms[0]);
    assert_eq!(rooms[2], &value[MIB + 77..MIB + 577]);
    let saving = engine.client.counters().saving;
    assert_eq!((saving.descriptors, saving.operations), (6, 2));
    assert_eq!(saving.bytes_moved, 4 * MIB as u64);

    // One byte more than there is.
    let locals = memory(&[(&rooms[0], MIB)], 0);
    let over = objects(&[(1, 2 * MIB + 1, MIB)]);
    assert_eq!(carry_out(&engine, read, dram, &locals, &over), Status::Mismatch);
    engine.remove(&known);
    let gone = engine.prepare(read, (dram, &locals), (kind::OBJECT, &over));
    assert!(matches!(gone.err(), Some(Refusal::Unregistered { descriptor: 0 })));
}

#[test]
fn memory_of_gpus_goes_through_slots() {
    let (_node, engine) = pair();
    // Two and a half slots each: the runs of a transfer need more slots than there are, and take turns.
    let length = 5 * MIB / 2;
    let values: Vec<Vec<u8>> = (0..5).map(|at| noise(length, at)).collect();
    for at in 0..6 {
        engine.add(kind::OBJECT, at, b"").expect("registered");
    }
    engine.add(kind::VRAM, GPU, b"").expect("registered");
    let cut = MIB + 5;
    let (mut sources, mut parts) = (Vec::new(), Vec::new());
    for (at, value) in (0..).zip(&values) {
        sources.extend([(&value[cut..], length - cut), (&value[..cut], cut)]);
        parts.extend([(at, cut, length - cut), (at, 0, cut)]);
    }
    let locals = memory(&sources, GPU);
    let (write, read, vram) = (Direction::Write, Direction::Read, kind::VRAM);
    // A GPU that is not there gets no slots, and those that are get them all the same.
    let elsewhere = memory(&sources, GPU + 1);
    assert_eq!(carry_out(&engine, write, vram, &elsewhere, &objects(&parts)), Status::Backend);
    assert_eq!(carry_out(&engine, write, vram, &locals, &objects(&parts)), Status::Ok);

    let rooms: Vec<Vec<u8>> = (0..6).map(|_| vec![0; length]).collect();
    let mut targets: Vec<(&[u8], usize)> =
        rooms[..5].iter().map(|room| (&**room, length)).collect();
    let mut parts: Vec<(u64, usize, usize)> = (0..5).map(|at| (at, 0, length)).collect();
    // What another descriptor wants, too, over the border of two slots.
    targets.push((&rooms[5], 1000));
    parts.push((2, MIB - 300, 1000));
    let locals = memory(&targets, GPU);
    assert_eq!(carry_out(&engine, read, vram, &locals, &objects(&parts)), Status::Ok);
    for (room, value) in rooms.iter().zip(&values) {
        assert!(room == value);
    }
    assert_eq!(rooms[5][..1000], values[2][MIB - 300..MIB + 700]);

    let absent = objects(&[(5, 0, length)]);
    let one = memory(&[(&rooms[0], length)], GPU);
    assert_eq!(carry_out(&engine, read, vram, &one, &absent), Status::NotFound);
    let elsewhere = memory(&[(&rooms[0], length)], GPU + 1);
    let stored = objects(&[(0, 0, length)]);
    assert_eq!(carry_out(&engine, read, vram, &elsewhere, &stored), Status::Backend);
    let large = vec![0_u8; 4 * MIB + 1];
    let (locals, remotes) =
        (memory(&[(&large, large.len())], GPU), objects(&[(0, 0, large.len())]));
    let refused = engine.prepare(write, (vram, &locals), (kind::OBJECT, &remotes)).err();
    assert!(matches!(refused, Some(Refusal::Staging { total, .. }) if total == 4 * MIB));
}

#[test]
fn what_makes_no_sense_is_refused_before_anything_moves() {
    let (_node, engine) = pair();
    let object = engine.add(kind::OBJECT, 7, b"a").expect("registered").expect("an object");
    let again = engine.add(kind::OBJECT, 7, b"a").expect("the same key").expect("an object");
    let status = |result: Result<Option<Object>, Refusal>| result.expect_err("no").status();
    assert_eq!(status(engine.add(kind::OBJECT, 7, b"b")), Status::NotAllowed);
    assert_eq!(status(engine.add(kind::OBJECT, 7, b"")), Status::NotAllowed);
    assert_eq!(status(engine.add(kind::OBJECT, 8, &[b'x'; 513])), Status::InvalidParam);
    assert_eq!(status(engine.add(4, 0, b"")), Status::NotSupported);
    engine.remove(&object);
    assert_eq!(status(engine.add(kind::OBJECT, 7, b"b")), Status::NotAllowed);
    engine.remove(&again);
    engine.add(kind::OBJECT, 7, b"b").expect("the id is free");

    let room = [0_u8; 64];
    let local = memory(&[(&room, 16)], 0);
    let remote = objects(&[(7, 0, 16)]);
    let told = |direction, locals: (i32, &[End]), remotes: (i32, &[End])| {
        engine.prepare(direction, locals, remotes).err().expect("a refusal").status()
    };
    let (read, dram, object) = (Direction::Read, kind::DRAM, kind::OBJECT);
    assert_eq!(told(read, (object, &remote), (dram, &local)), Status::InvalidParam);
    assert_eq!(told(read, (dram, &local), (object, &[])), Status::InvalidParam);
    let longer = objects(&[(7, 0, 17)]);
    assert_eq!(told(read, (dram, &local), (object, &longer)), Status::Mismatch);
    let nowhere = [End { address: 0, length: 16, device: 0 }];
    assert_eq!(told(read, (dram, &nowhere), (object, &remote)), Status::InvalidParam);
    let two = objects(&[(7, 0, 16), (7, 16, 16)]);
    let shared = memory(&[(&room, 16), (&room[8..], 16)], 0);
    assert_eq!(told(read, (dram, &shared), (object, &two)), Status::InvalidParam);
    let hole = objects(&[(7, 8, 16)]);
    assert_eq!(told(Direction::Write, (dram, &local), (object, &hole)), Status::InvalidParam);
    assert_eq!(engine.query(&[(7, b""), (7, b"b")]).expect("answers"), [false, false]);
}

#[test]
fn transfers_may_be_dropped_under_way_and_so_may_their_backend() {
    let (_node, engine) = pair();
    engine.add(kind::OBJECT, 1, b"").expect("registered");
    let value = noise(8 * MIB, 9);
    let (locals, remotes) = (memory(&[(&value, value.len())], 0), objects(&[(1, 0, value.len())]));
    let make = || {
        let locals = (kind::DRAM, &*locals);
        engine.prepare(Direction::Write, locals, (kind::OBJECT, &remotes)).expect("prepared")
    };
    for _ in 0..20 {
        let prepared = make();
        engine.post(&prepared).expect("posted");
        if prepared.status() == Status::InProgress {
            assert!(matches!(engine.post(&prepared).err(), None | Some(Refusal::Active)));
        }
        drop(prepared);
    }
    let prepared = make();
    for _ in 0..2 {
        engine.post(&prepared).expect("posted");
        assert_eq!(finish(&prepared), Status::Ok);
    }
    let left: Vec<Prepared> = (0..4).map(|_| make()).collect();
    left.iter().for_each(|prepared| engine.post(prepared).expect("posted"));
    drop(engine);
    for prepared in left {
        assert_ne!(prepared.status(), Status::InProgress);
    }
}

/// Around the moment in which a worker that looks for more goes to sleep, and with all of them at it.
#[test]
fn transfers_at_all_distances_from_the_last_one_are_carried_out() {
    let (_node, engine) = pair();
    let _known = engine.add(kind::OBJECT, 1, b"a").expect("registered").expect("an object");
    let bytes = noise(64, 3);
    let (locals, remotes) = (memory(&[(&bytes, 64)], 0), objects(&[(1, 0, 64)]));
    let stored = carry_out(&engine, Direction::Write, kind::DRAM, &locals, &remotes);
    assert_eq!(stored, Status::Ok);
    for round in 0..600u32 {
        let count = round as usize % 5 + 1;
        let given: Vec<Vec<u8>> = vec![vec![0; 64]; count];
        let prepared: Vec<Prepared> = given
            .iter()
            .map(|room| memory(&[(room, 64)], 0))
            .map(|locals| {
                engine.prepare(Direction::Read, (kind::DRAM, &locals), (kind::OBJECT, &remotes))
            })
            .map(|made| made.unwrap_or_else(|refusal| panic!("{refusal}")))
            .collect();
        let (begun, apart) = (Instant::now(), Duration::from_micros(u64::from(round) / 3));
        while begun.elapsed() < apart {
            std::hint::spin_loop();
        }
        prepared.iter().for_each(|one| engine.post(one).expect("posted"));
        assert!(prepared.iter().all(|one| finish(one) == Status::Ok), "{round}");
        drop(prepared);
        assert!(given.iter().all(|read| *read == bytes), "{round}");
    }
}

#[test]
fn the_end_of_a_backend_waits_for_no_server() {
    // It takes connections, and never says a word.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = silent.local_addr().expect("an address").to_string();
    let patience = LONG.as_millis().to_string();
    let given = [
        ("servers", &*address),
        ("connect_timeout_ms", &patience),
        ("request_timeout_ms", &patience),
    ];
    let settings = Settings::new(given.into_iter(), |_| None).expect("settings");
    let engine = Engine::new(settings, None).expect("a backend");
    engine.add(kind::OBJECT, 1, b"").expect("registered");
    let value = noise(MIB, 1);
    let (locals, remotes) = (memory(&[(&value, MIB)], 0), objects(&[(1, 0, MIB)]));
    let prepared =
        engine.prepare(Direction::Write, (kind::DRAM, &locals), (kind::OBJECT, &remotes));
    let prepared = prepared.unwrap_or_else(|refusal| panic!("{refusal}"));
    engine.post(&prepared).expect("posted");
    let greeted = silent.accept().expect("a worker connects");
    let began = Instant::now();
    drop(engine);
    assert!(began.elapsed() < LONG / 2, "{:?}", began.elapsed());
    assert_eq!(prepared.status(), Status::Canceled);
    drop(greeted);
}
