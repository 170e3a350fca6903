//! Offers that bring their payload.

mod common;

use std::time::Duration;

use common::{Client, KEY, MIB, Machine, Options, put_item, value};
use memkv_session::{KeyRing, SessionLimits};
use memkv_sim::Fate;
use memkv_wire::{CrcList, ItemReply, Opcode, PutItem, PutItems, PutMode, Status};

/// No request lives longer than six times its deadline.
const LONGEST: Duration = Duration::from_secs(60);

fn item(key: &str, length: usize) -> PutItem<'_> {
    put_item(key, length, CrcList::EMPTY)
}

fn absent(key: &str, length: usize) -> PutItem<'_> {
    PutItem { mode: PutMode::Absent, ..item(key, length) }
}

/// Offers a value with its bytes, and waits for the answer.
fn put(machine: &mut Machine, client: &mut Client, item: PutItem<'_>, value: &[u8]) -> ItemReply {
    client.send_along(item, value, None);
    client.lone_reply(machine)
}

#[test]
fn a_value_that_comes_with_its_offer_is_stored() {
    let mut machine = Machine::new(Options::default());
    for reactor in 0..2 {
        let mut client = machine.client(reactor);
        for (seed, length) in [(1, 1), (2, 100_000), (3, MIB), (4, 4 * MIB + 7), (5, 1)] {
            let value = value(seed, length);
            let reply = put(&mut machine, &mut client, item("k", length), &value);
            assert_eq!((reply.status, reply.length), (Status::Ok, length as u64));
            let (got, bytes) = client.get(&mut machine, "k");
            assert_eq!(got.generation, reply.generation);
            assert!(bytes == value, "{length} bytes on reactor {reactor}");
        }
    }
    machine.assert_at_rest();
}

#[test]
fn what_is_not_taken_is_read_and_the_connection_goes_on() {
    let limits = SessionLimits { value: 6 * MIB as u64, ..SessionLimits::default() };
    let mut machine = Machine::new(Options { limits, ..Options::default() });
    for reactor in 0..2 {
        let mut client = machine.client(reactor);
        let key = format!("k{reactor}");
        let old = value(1, 3 * MIB);
        assert_eq!(client.put(&mut machine, &key, &old).status, Status::Ok);
        let (same, other) = (value(2, 3 * MIB), value(3, 2 * MIB));
        let reply = put(&mut machine, &mut client, absent(&key, same.len()), &same);
        assert_eq!(reply.status, Status::Present);
        assert_eq!(reply.crcs, common::crcs(&old, client.extent), "those of what is there");
        let reply = put(&mut machine, &mut client, absent(&key, other.len()), &other);
        assert_eq!(reply.status, Status::Conflict);
        let of_none = PutItem { mode: PutMode::Generation(1 << 40), ..item(&key, other.len()) };
        let reply = put(&mut machine, &mut client, of_none, &other);
        assert_eq!(reply.status, Status::GenerationMismatch);
        let long = value(4, 6 * MIB + 1);
        let reply = put(&mut machine, &mut client, item(&key, long.len()), &long);
        assert_eq!(reply.status, Status::TooLarge);
        let durable = PutItem { durable: true, ..item(&key, 10) };
        let reply = put(&mut machine, &mut client, durable, &value(5, 10));
        assert_eq!(reply.status, Status::Ok, "a simulated drive survives a power cut");
        assert_eq!(client.put(&mut machine, &key, &old).status, Status::Ok);
        assert!(client.get(&mut machine, &key).1 == old);
    }
    machine.assert_at_rest();
}

#[test]
fn one_that_is_not_what_its_crc_says_replaces_nothing() {
    let mut machine = Machine::new(Options::default());
    let mut client = machine.client(0);
    let (old, new) = (value(1, MIB), value(2, 2 * MIB));
    assert_eq!(client.put(&mut machine, "k", &old).status, Status::Ok);
    let mac = client.send_along(item("k", new.len()), &new, Some(MIB));
    // The rest is another's, and so are the CRCs.
    let mut wrong = new.clone();
    wrong[0] ^= 1;
    client.send_rest(&mac, &wrong, MIB);
    assert_eq!(client.lone_reply(&mut machine).status, Status::CrcMismatch);
    assert!(client.get(&mut machine, "k").1 == old);
    machine.assert_at_rest();
}

#[test]
fn one_of_a_key_that_another_puts_waits_for_it() {
    let mut machine = Machine::new(Options::default());
    for reactor in 0..2 {
        let (mut first, mut second) = (machine.client(reactor), machine.client(1 - reactor));
        let key = format!("k{reactor}");
        let (theirs, mine) = (value(1, 2 * MIB), value(2, 2 * MIB));
        let offer = first.offer(&mut machine, &key, theirs.len()).expect("wanted");
        second.send_along(absent(&key, mine.len()), &mine, None);
        machine.pass(Duration::from_secs(1));
        first.send_data(offer, &theirs, None);
        assert_eq!(first.data_reply(&mut machine).status, Status::Ok);
        assert_eq!(second.lone_reply(&mut machine).status, Status::Present);
        // And gets its turn when the other gives up.
        let offer = first.offer(&mut machine, &key, 10).expect("wanted");
        second.send_along(item(&key, mine.len()), &mine, None);
        machine.pass(Duration::from_secs(1));
        drop((first, offer));
        assert_eq!(second.lone_reply(&mut machine).status, Status::Ok);
        assert!(second.get(&mut machine, &key).1 == mine);
    }
    machine.assert_at_rest();
}

#[test]
fn one_that_waits_or_is_on_its_way_is_answered_though_its_key_is_retired() {
    for reactor in 0..2 {
        let mut machine = Machine::new(Options::default());
        let other = machine.client_with(1 - reactor, 1, KEY);
        let (mut other, mut waits) = (other.expect("welcome"), machine.client(reactor));
        let mut comes = machine.client(reactor);
        let _offer = other.offer(&mut machine, "k", 10).expect("wanted");
        let (first, second) = (value(1, 2 * MIB), value(2, 3 * MIB));
        waits.send_along(item("k", first.len()), &first, None);
        let mac = comes.send_along(item("l", second.len()), &second, Some(MIB));
        machine.pass(Duration::from_millis(100));
        for context in &machine.contexts {
            assert!(context.set_keys(KeyRing::default()) > 0);
        }
        machine.world.kick();
        machine.pass(Duration::from_millis(100));
        assert_eq!((waits.end.fate(), comes.end.fate()), (Fate::Open, Fate::Open));
        comes.send_rest(&mac, &second, MIB);
        assert_eq!(comes.lone_reply(&mut machine).status, Status::Ok);
        drop(other);
        assert_eq!(waits.lone_reply(&mut machine).status, Status::Ok);
        for client in [&mut waits, &mut comes] {
            let goodbye = client.receive(&mut machine).expect("a last word");
            assert_eq!(goodbye.header.opcode(), Opcode::Goodbye);
        }
        machine.pass(LONGEST);
        machine.assert_at_rest();
    }
}

#[test]
fn a_peer_that_stops_within_it_does_not_keep_the_key() {
    let mut machine = Machine::new(Options::default());
    for (present, reactor) in [(false, 0), (true, 1), (true, 0), (false, 1)] {
        let (mut stops, mut other) = (machine.client(reactor), machine.client(1 - reactor));
        let old = value(1, 3 * MIB);
        assert_eq!(other.put(&mut machine, "k", &old).status, Status::Ok);
        let new = value(2, 3 * MIB);
        let item = if present { absent("k", new.len()) } else { item("k", new.len()) };
        stops.send_along(item, &new, Some(MIB + 1000));
        machine.pass(Duration::from_secs(1));
        assert_eq!(stops.end.fate(), Fate::Open, "there is time for the rest");
        machine.pass(LONGEST);
        assert_ne!(stops.end.fate(), Fate::Open);
        machine.assert_at_rest();
        assert!(other.get(&mut machine, "k").1 == old);
        assert_eq!(other.put(&mut machine, "k", &new).status, Status::Ok);
    }
}

#[test]
fn what_no_client_may_send_ends_the_connection_and_stores_nothing() {
    let mut machine = Machine::new(Options::default());
    let bytes = value(1, MIB);
    type Send = fn(&mut Machine, &mut Client, &[u8]);
    let ways: [(&str, Send); 6] = [
        ("two items", |_, client, bytes| {
            let mut meta = Vec::new();
            PutItems { items: vec![item("k", bytes.len()), item("l", 1)] }.encode(&mut meta);
            let header = client.request(Opcode::Offer).with_trailer();
            client.send(header, &meta, bytes);
        }),
        ("no item", |_, client, bytes| {
            let header = client.request(Opcode::Offer).with_trailer();
            client.send(header, &0u32.to_le_bytes(), bytes);
        }),
        ("another length", |_, client, bytes| {
            client.send_along(item("k", bytes.len() - 1), bytes, None);
        }),
        ("no trailer", |_, client, bytes| {
            let mut meta = Vec::new();
            PutItems { items: vec![item("k", bytes.len())] }.encode(&mut meta);
            let header = client.request(Opcode::Offer);
            client.send(header, &meta, bytes);
        }),
        ("another trailer", |_, client, bytes| {
            let mut mac = client.send_along(item("k", bytes.len()), bytes, Some(10));
            mac[0] ^= 1;
            client.send_rest(&mac, bytes, 10);
        }),
        ("while a place waits", |machine, client, bytes| {
            client.offer(machine, "other", 10).expect("wanted");
            client.send_along(item("k", bytes.len()), bytes, None);
        }),
    ];
    for (reactor, (way, send)) in ways.into_iter().enumerate() {
        let mut client = machine.client(reactor % 2);
        send(&mut machine, &mut client, &bytes);
        let goodbye = client.receive(&mut machine).unwrap_or_else(|| panic!("{way}: a last word"));
        assert_eq!(goodbye.header.opcode(), Opcode::Goodbye, "{way}");
        machine.pass(Duration::from_secs(1));
        assert_ne!(client.end.fate(), Fate::Open, "{way}");
        let mut other = machine.client(0);
        assert_eq!(other.get(&mut machine, "k").0.status, Status::NotFound, "{way}");
        machine.assert_at_rest();
    }
}
