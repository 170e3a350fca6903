//! Peers that stop: what they held comes back.

mod common;

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use common::{MIB, Machine, Options, put_item, value};
use memkv_session::{NamespaceLimits, SessionLimits};
use memkv_sim::Fate;
use memkv_wire::{
    Advice, CrcList, DeleteItem, DeleteItems, GetItem, GetItems, HintList, ItemReplies, KeyList,
    LeaseList, MAX_ITEMS, MissReason, Opcode, PutItems, Status, TO_THE_END,
};

/// No request lives longer than six times its deadline.
const LONGEST: Duration = Duration::from_secs(60);

fn delete(machine: &mut Machine, client: &mut common::Client, key: &str) -> Status {
    let mut meta = Vec::new();
    let item = DeleteItem { key: key.as_bytes(), generation: 0 };
    DeleteItems { items: vec![item] }.encode(&mut meta);
    let reply = client.ask(machine, Opcode::Delete, &meta);
    ItemReplies::parse(&reply.meta).expect("a reply per item").items[0].status
}

#[test]
fn a_peer_that_stops_within_its_payload_does_not_keep_the_key() {
    let mut machine = Machine::new(Options::default());
    for reactor in 0..2 {
        let (mut stops, mut other) = (machine.client(reactor), machine.client(1 - reactor));
        assert_eq!(other.put(&mut machine, "k", &value(1, MIB)).status, Status::Ok);
        let offer = stops.offer(&mut machine, "k", 3 * MIB).expect("wanted");
        stops.send_data(offer, &value(2, 3 * MIB), Some(MIB + 1000));
        machine.pass(Duration::from_secs(1));
        assert_eq!(delete(&mut machine, &mut other, "k"), Status::Busy, "it is being put");
        machine.pass(LONGEST);
        assert_ne!(stops.end.fate(), Fate::Open);
        machine.assert_at_rest();
        assert_eq!(delete(&mut machine, &mut other, "k"), Status::Ok);
    }
}

#[test]
fn a_peer_that_stops_within_an_inline_payload_does_not_keep_the_key() {
    let mut machine = Machine::new(Options::default());
    for reactor in 0..2 {
        let (mut stops, mut other) = (machine.client(reactor), machine.client(1 - reactor));
        let (old, new) = (value(1, 100_000), value(2, 200_000));
        assert_eq!(other.put(&mut machine, "k", &old).status, Status::Ok);
        stops.send_lone("k", &new, common::crcs(&new, stops.extent), 150_000);
        machine.pass(Duration::from_secs(1));
        assert!(other.get(&mut machine, "k").1 == old, "what is there serves on");
        machine.pass(LONGEST);
        assert_ne!(stops.end.fate(), Fate::Open);
        machine.assert_at_rest();
        assert!(other.get(&mut machine, "k").1 == old);
        assert_eq!(delete(&mut machine, &mut other, "k"), Status::Ok);
    }
}

#[test]
fn an_inline_put_that_is_not_what_its_crc_says_replaces_nothing() {
    let mut machine = Machine::new(Options::default());
    for reactor in 0..2 {
        let mut client = machine.client(reactor);
        let (old, new) = (value(1, 100_000), value(2, 200_000));
        assert_eq!(client.put(&mut machine, "k", &old).status, Status::Ok);
        let right = common::crcs(&new, client.extent);
        for wrong in [common::crcs(&old, client.extent), CrcList::EMPTY] {
            client.send_lone("k", &new, wrong, new.len());
            assert_eq!(client.lone_reply(&mut machine).status, Status::CrcMismatch);
            machine.assert_at_rest();
            assert!(client.get(&mut machine, "k").1 == old);
        }
        client.send_lone("k", &new, right, new.len());
        assert_eq!(client.lone_reply(&mut machine).status, Status::Ok);
        assert!(client.get(&mut machine, "k").1 == new);
    }
}

#[test]
fn a_peer_that_stops_within_a_meta_is_cut_off_and_an_idle_one_is_not() {
    let mut machine = Machine::new(Options::default());
    let (mut stops, mut idle) = (machine.client(0), machine.client(0));
    let header = stops.request(Opcode::Exists);
    let mut meta = Vec::new();
    KeyList { keys: vec![b"a key"] }.encode(&mut meta);
    let (mut header, mut frame) = (header, Vec::new());
    stops.seal(&mut header, &meta, &mut frame);
    stops.end.send(&frame[..frame.len() - 2]);
    machine.pass(LONGEST * 2);
    assert_ne!(stops.end.fate(), Fate::Open);
    assert_eq!(idle.ask(&mut machine, Opcode::Exists, &meta).header.status(), Status::Ok);
}

#[test]
fn a_peer_that_does_not_read_does_not_keep_blocks_and_memory() {
    let mut machine = Machine::new(Options::default());
    let mut writer = machine.client(0);
    let bytes = value(1, 4 * MIB);
    assert_eq!(writer.put(&mut machine, "k", &bytes).status, Status::Ok);
    let deaf: Vec<_> = (0..3)
        .map(|n| {
            let mut deaf = machine.deaf_client(n % 2);
            deaf.send_get("k", 0, TO_THE_END);
            deaf
        })
        .collect();
    machine.pass(Duration::from_secs(1));
    assert!(machine.store.under_way().readers > 0);
    // With memory for one of them at a time, the third turn comes after two lifetimes.
    machine.pass(LONGEST * 4);
    assert!(deaf.iter().all(|deaf| deaf.end.fate() != Fate::Open));
    machine.assert_at_rest();
    assert!(writer.get(&mut machine, "k").1 == bytes);
}

#[test]
fn a_peer_that_asks_and_does_not_read_is_not_answered_without_end() {
    const ASKED: u64 = 5_000;
    let mut meta = Vec::new();
    KeyList { keys: vec![b"absent"] }.encode(&mut meta);
    // Answered by the reader itself, by tasks, and by tasks that ask another reactor.
    for (reactor, opcode) in [(0, Opcode::Exists), (0, Opcode::Release), (1, Opcode::Exists)] {
        let mut machine = Machine::new(Options::default());
        let mut deaf = machine.deaf_client(reactor);
        for _ in 0..ASKED {
            let header = deaf.request(opcode);
            deaf.send(header, &meta, &[]);
        }
        machine.pass(Duration::from_secs(1));
        let answered = machine.contexts[reactor].counters().requests.get();
        let most = u64::from(deaf.limits.max_requests);
        // As many wait to be sent as may be under way, besides those and what is being sent.
        assert!((most..3 * most).contains(&answered), "{opcode:?}: {answered} of {ASKED}");
        machine.pass(LONGEST * 2);
        assert_ne!(deaf.end.fate(), Fate::Open);
        let answered = machine.contexts[reactor].counters().requests.get();
        assert!(answered < 3 * most, "{opcode:?}: {answered} when it was cut off");
        machine.assert_at_rest();
    }
}

#[test]
fn a_peer_that_does_not_read_has_no_more_than_so_many_replies_made_for_it() {
    let items = vec![GetItem { key: b"absent", offset: 0, length: TO_THE_END }; MAX_ITEMS];
    let mut meta = Vec::new();
    GetItems { items }.encode(&mut meta);
    for reactor in 0..2 {
        let mut machine = Machine::new(Options::default());
        let mut deaf = machine.deaf_client(reactor);
        for _ in 0..20 {
            let header = deaf.request(Opcode::Get);
            deaf.send(header, &meta, &[]);
        }
        machine.pass(Duration::from_secs(1));
        let made = machine.contexts[reactor].counters().requests.get();
        assert!((4096..3 * 4096).contains(&made), "{made} replies");
        machine.pass(LONGEST * 2);
        assert_ne!(deaf.end.fate(), Fate::Open);
        machine.assert_at_rest();
        // Who reads gets them all.
        let mut client = machine.client(reactor);
        let header = client.request(Opcode::Get);
        client.send(header, &meta, &[]);
        for number in 1..=MAX_ITEMS {
            let frame = client.receive(&mut machine).expect("a reply for each");
            assert_eq!(frame.header.has_more(), number < MAX_ITEMS);
        }
    }
}

#[test]
fn draining_waits_for_nobody_who_does_not_read() {
    let mut machine = Machine::new(Options::default());
    let mut writer = machine.client(0);
    assert_eq!(writer.put(&mut machine, "k", &value(1, 4 * MIB)).status, Status::Ok);
    let mut deaf = machine.deaf_client(1);
    deaf.send_get("k", 0, TO_THE_END);
    let offered = machine.client(1).offer(&mut machine, "never", MIB);
    assert!(offered.is_ok());
    let mut holds = machine.client(1);
    let _offer = holds.offer(&mut machine, "open", MIB).expect("wanted");
    machine.pass(Duration::from_secs(1));
    let left = Rc::new(Cell::new(2));
    for (reactor, context) in machine.contexts.iter().enumerate() {
        let (context, left) = (context.clone(), left.clone());
        machine.world.local(reactor).spawn(async move {
            context.drain().await;
            left.set(left.get() - 1);
        });
    }
    machine.world.kick();
    machine.pass(Duration::from_secs(30));
    assert_eq!(left.get(), 0, "well within the half minute that stopping waits");
    let store = machine.store.clone();
    let stopped = machine.world.block_on(0, async move { store.shutdown().await });
    assert_eq!(stopped, Some(()));
    machine.assert_at_rest();
}

#[test]
fn stopping_waits_for_reservations_that_are_on_their_way_back() {
    let mut machine = Machine::new(Options::default());
    let mut client = machine.client(1);
    for n in 0..50 {
        client.offer(&mut machine, &format!("key {n}"), 100).expect("wanted");
    }
    let (context, store) = (machine.contexts[1].clone(), machine.store.clone());
    let stopped = Rc::new(Cell::new(false));
    let said = stopped.clone();
    let home = store.local().remote();
    // The order to stop overtakes the aborts: nobody waits in between.
    drop(client);
    machine.world.local(1).spawn(async move { context.drain().await });
    drop(home);
    machine.world.local(0).spawn(async move {
        store.shutdown().await;
        said.set(true);
    });
    machine.world.kick();
    machine.pass(Duration::from_secs(30));
    assert!(stopped.get());
    machine.assert_at_rest();
}

#[test]
fn leases_end_with_their_session_and_old_ones_do_not_count() {
    let limits = SessionLimits { leases: 10, ..SessionLimits::default() };
    let mut machine = Machine::new(Options { limits, ..Options::default() });
    let mut client = machine.client(1);
    let names: Vec<_> = (0..20).map(|n| format!("key {n}")).collect();
    let items: Vec<_> = names.iter().map(|name| (name.clone(), value(1, 100))).collect();
    client.send_inline(&items);
    client.receive(&mut machine).expect("an answer");
    let lease = |client: &mut common::Client, machine: &mut Machine, keys: &[String]| {
        let mut meta = Vec::new();
        let keys = keys.iter().map(String::as_bytes).collect();
        LeaseList { lease_ms: 1000, keys }.encode(&mut meta);
        client.ask(machine, Opcode::Lease, &meta).header.status()
    };
    assert_eq!(lease(&mut client, &mut machine, &names[..10]), Status::Ok);
    assert_eq!(lease(&mut client, &mut machine, &names[..10]), Status::Ok, "the same once more");
    assert_eq!(lease(&mut client, &mut machine, &names[10..]), Status::LimitExceeded);
    machine.pass(Duration::from_secs(2));
    assert_eq!(lease(&mut client, &mut machine, &names[10..]), Status::Ok, "the first ran out");
}

#[test]
fn ranges_of_nothing_and_beyond_the_end_are_answered() {
    let mut machine = Machine::new(Options::default());
    let mut client = machine.client(0);
    let bytes = value(1, 2 * MIB + 3);
    assert_eq!(client.put(&mut machine, "k", &bytes).status, Status::Ok);
    let length = bytes.len() as u64;
    let cases = [(0, 0), (5, 0), (length, 0), (length + 9, 0), (u64::MAX, 0)];
    for (offset, none) in cases {
        client.send_get("k", offset, none);
        let (reply, got) = client.got(&mut machine);
        assert_eq!((reply.status, reply.length, got.len()), (Status::Ok, length, 0), "{offset}");
    }
    for (offset, some) in [(length, 1), (u64::MAX, u64::MAX)] {
        client.send_get("k", offset, some);
        assert_eq!(client.got(&mut machine).0.status, Status::BadRequest);
    }
    for (offset, some) in [(0, 1), (MIB as u64 - 1, 2), (length - 1, u64::MAX), (7, MIB as u64)] {
        client.send_get("k", offset, some);
        let end = (offset.saturating_add(some)).min(length) as usize;
        assert!(client.got(&mut machine).1 == bytes[offset as usize..end]);
    }
    // Several items in one request: a reply each, all but the last with more to come.
    let mut meta = Vec::new();
    let item = |key: &'static [u8]| GetItem { key, offset: 0, length: TO_THE_END };
    GetItems { items: vec![item(b"k"), item(b"none"), item(b"k")] }.encode(&mut meta);
    let first = client.ask(&mut machine, Opcode::Get, &meta);
    let rest: Vec<_> = (0..2).map(|_| client.receive(&mut machine).expect("a reply")).collect();
    let more = [&first, &rest[0], &rest[1]].map(|frame| frame.header.has_more());
    assert_eq!(more.iter().filter(|more| **more).count(), 2);
    machine.assert_at_rest();
}

/// Hints are answered like questions, on the store's reactor and on another, also about what is not
/// there and about the same key twice.
#[test]
fn hints_are_answered_per_key() {
    let mut machine = Machine::new(Options::default());
    for reactor in 0..2 {
        let mut client = machine.client(reactor);
        assert_eq!(client.put(&mut machine, "k", &value(1, 100)).status, Status::Ok);
        let said = machine.store.counters().hinted.get();
        for (advice, seconds) in [(Advice::Retain, 0), (Advice::Pin, 9), (Advice::Release, 0)] {
            let mut meta = Vec::new();
            let keys = vec![&b"k"[..], b"none", b"k"];
            HintList { advice, seconds, keys }.encode(&mut meta);
            let reply = client.ask(&mut machine, Opcode::Hint, &meta);
            let items = ItemReplies::parse(&reply.meta).expect("a reply per item").items;
            let status: Vec<Status> = items.iter().map(|item| item.status).collect();
            assert_eq!(status, [Status::Ok, Status::NotFound, Status::Ok], "{advice}");
            assert_eq!((items[0].length, items[1].reason), (100, MissReason::Never));
        }
        assert_eq!(machine.store.counters().hinted.get(), said + 3, "each block once");
        let reply = client.ask(&mut machine, Opcode::Hint, &[3, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(reply.header.status(), Status::BadRequest);
    }
}

#[test]
fn a_namespace_says_how_long_its_blocks_live() {
    // Put by a client that asks for no time, under several rules.
    let lives = |ttl_seconds, ttl_max_seconds| {
        let name = "tests".to_owned();
        let other = NamespaceLimits { name: "other".into(), ttl_seconds: 1, ttl_max_seconds: 1 };
        let rule = NamespaceLimits { name, ttl_seconds, ttl_max_seconds };
        let namespaces = vec![other, rule];
        let mut machine = Machine::new(Options { namespaces, ..Options::default() });
        let mut client = machine.client(0);
        assert_eq!(client.put(&mut machine, "k", &value(1, 100)).status, Status::Ok);
        let mut seconds = 0;
        while client.get(&mut machine, "k").0.status == Status::Ok && seconds < 100 {
            machine.pass(Duration::from_secs(1));
            seconds += 1;
        }
        let (reply, _) = client.get(&mut machine, "k");
        assert!(seconds == 100 || reply.reason == MissReason::Expired);
        seconds
    };
    assert_eq!(lives(0, 0), 100, "for ever");
    assert!((9..=11).contains(&lives(10, 0)));
    assert!((19..=21).contains(&lives(0, 20)), "for ever is too long");
    let rule = NamespaceLimits { name: "n".into(), ttl_seconds: 10, ttl_max_seconds: 20 };
    assert_eq!([0, 5, 15, 20, 21, u32::MAX].map(|asked| rule.ttl(asked)), [10, 5, 15, 20, 20, 20]);
}

#[test]
fn a_place_is_kept_from_when_its_client_was_told_though_another_item_was_waited_for() {
    for reactor in 0..2 {
        let mut machine = Machine::new(Options::default());
        let (mut holds, mut client) = (machine.client(0), machine.client(reactor));
        let _held = holds.offer(&mut machine, "held", MIB).expect("wanted");
        // Some of them get their place before the one that is waited for.
        let mut keys: Vec<String> = (0..8).map(|n| format!("key {n}")).collect();
        keys.push("held".to_owned());
        let item = |key: &'static str| put_item(key, 1000, CrcList::EMPTY);
        let items = keys.iter().map(|key| item(key.clone().leak())).collect();
        let mut meta = Vec::new();
        PutItems { items }.encode(&mut meta);
        let header = client.request(Opcode::Offer);
        let asked = machine.now();
        client.send(header, &meta, &[]);
        let reply = client.receive(&mut machine).expect("an answer");
        let waited = machine.now().saturating_duration_since(asked);
        assert!(waited > Duration::from_secs(5), "for the key that another holds: {waited:?}");
        let statuses = ItemReplies::parse(&reply.meta).expect("a reply per item").items;
        for (n, key) in keys.iter().enumerate().take(8) {
            assert_eq!(statuses[n].status, Status::Want, "{key}");
        }
        machine.pass(Duration::from_secs(5));
        for n in 0..8 {
            client.send_item(header.request_id(), n, &value(n.into(), 1000));
            assert_eq!(client.data_reply(&mut machine).status, Status::Ok, "item {n}");
        }
    }
}

#[test]
fn two_offers_of_one_number_do_not_get_one_place() {
    for reactor in 0..2 {
        let mut machine = Machine::new(Options::default());
        let (mut holds, mut client) = (machine.client(0), machine.client(reactor));
        let _held = holds.offer(&mut machine, "held", MIB).expect("wanted");
        let header = client.request(Opcode::Offer);
        for key in ["held", "other"] {
            let mut meta = Vec::new();
            PutItems { items: vec![put_item(key, 1000, CrcList::EMPTY)] }.encode(&mut meta);
            client.send(header, &meta, &[]);
        }
        // The second has its place while the first still waits for the key that another holds.
        for expected in [Status::Want, Status::BadRequest] {
            let reply = client.receive(&mut machine).expect("an answer");
            let items = ItemReplies::parse(&reply.meta).expect("a reply per item").items;
            assert_eq!(items[0].status, expected);
        }
        assert_eq!(client.put(&mut machine, "other", &value(1, 1000)).status, Status::Ok);
        assert!(client.get(&mut machine, "other").1 == value(1, 1000));
    }
}
