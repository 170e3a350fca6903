//! Puts that name their payload: it is copied out of the client's memory, once, and only what the copy says
//! counts.

#![cfg(target_os = "linux")]

mod common;

use std::sync::atomic::{AtomicU64, Ordering};

use common::{Client, Machine, Options, crcs, put_item, value};
use memkv_net::shm::Staging;
use memkv_wire::{ItemReplies, ItemReply, PutItem, Refusal, Staged, Status};

const SIZE: usize = 1 << 20;

fn machine(in_memory: bool) -> Machine {
    Machine::new(Options { in_memory, windows: true, staged: true, ..Options::default() })
}

/// Memory of a client, and that the server has it.
fn memory(machine: &Machine) -> Staging {
    static NEXT: AtomicU64 = AtomicU64::new(1000);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    Staging::within(&machine.stagings, number, SIZE).expect("a little memory")
}

fn at(memory: &Staging, offset: usize) -> Staged {
    Staged { staging: memory.number(), offset: offset as u64 }
}

fn item<'a>(client: &Client, key: &'a str, value: &[u8]) -> PutItem<'a> {
    put_item(key, value.len(), crcs(value, client.extent))
}

fn replies(machine: &mut Machine, client: &mut Client) -> Vec<ItemReply> {
    let frame = client.receive(machine).expect("an answer");
    assert_eq!(frame.header.credits(), 1, "the credit is back");
    assert_eq!(frame.header.status(), Status::Ok);
    ItemReplies::parse(&frame.meta).expect("a reply per item").items
}

fn statuses(machine: &mut Machine, client: &mut Client) -> Vec<Status> {
    replies(machine, client).iter().map(|reply| reply.status).collect()
}

fn staged_bytes(machine: &Machine) -> u64 {
    machine.contexts.iter().map(|context| context.counters().staged_bytes.get()).sum()
}

#[test]
fn what_is_named_is_stored_and_no_longer_the_clients() {
    for (in_memory, reactor) in [(false, 0), (true, 0), (false, 1), (true, 1)] {
        let mut machine = machine(in_memory);
        let mut client = machine.client(reactor);
        assert!(client.may_name);
        let memory = memory(&machine);
        let lengths = [1, 4096, 70_001, 256 << 10];
        for (nth, length) in lengths.into_iter().enumerate() {
            let (key, bytes) = (format!("{nth}"), value(nth as u64 + 1, length));
            let offset = nth * 999;
            memory.write(offset, &bytes);
            client.send_staged(vec![item(&client, &key, &bytes)], at(&memory, offset));
            assert_eq!(statuses(&mut machine, &mut client), [Status::Ok]);
            memory.write(0, &[0xee; SIZE]);
            assert!(client.get(&mut machine, &key).1 == bytes, "{in_memory} {reactor} {length}");
        }
        assert_eq!(staged_bytes(&machine), lengths.iter().sum::<usize>() as u64);
        drop(client);
        machine.assert_at_rest();
    }
}

#[test]
fn items_lie_one_behind_the_other_and_each_has_its_answer() {
    for reactor in [0, 1] {
        let mut machine = machine(true);
        let mut client = machine.client(reactor);
        let memory = memory(&machine);
        let values = [(1, 1000), (2, 60_000), (3, 5), (4, 9000), (5, 77)];
        let values = values.map(|(seed, length)| value(seed, length));
        let mut offset = 17;
        for bytes in &values {
            memory.write(offset, bytes);
            offset += bytes.len();
        }
        let keys = ["a", "b", "c", "d", "a"];
        let mut items: Vec<_> =
            keys.iter().zip(&values).map(|(key, bytes)| item(&client, key, bytes)).collect();
        // Another's bytes; a key that comes twice; and one that has fallen over before it was taken.
        items[1].crcs = items[0].crcs;
        memory.write(17 + 61_000, &[!values[2][0]]);
        client.send_staged(items, at(&memory, 17));
        let got = statuses(&mut machine, &mut client);
        let bad = Status::CrcMismatch;
        assert_eq!(got, [Status::Ok, bad, bad, Status::Ok, Status::Ok]);
        let refused: u64 = machine.contexts.iter().map(|c| c.counters().crc_refused.get()).sum();
        assert_eq!(refused, 2);
        assert!(client.get(&mut machine, "a").1 == values[4]);
        assert!(client.get(&mut machine, "d").1 == values[3]);
        drop(client);
        machine.assert_at_rest();
    }
}

#[test]
fn payload_that_is_not_there_is_refused_and_nothing_else_ends() {
    let mut machine = machine(true);
    let mut client = machine.client(0);
    let (mine, theirs) = (memory(&machine), memory(&machine));
    let mut other = machine.client(0);
    let bytes = value(1, 1000);
    theirs.write(0, &bytes);
    other.send_staged(vec![item(&other, "theirs", &bytes)], at(&theirs, 0));
    assert_eq!(statuses(&mut machine, &mut other), [Status::Ok]);
    let nowhere = Staged { staging: 99, offset: 0 };
    let huge = Staged { offset: u64::MAX - 500, ..at(&mine, 0) };
    for place in [nowhere, at(&theirs, 0), at(&mine, SIZE - 999), at(&mine, SIZE), huge] {
        client.send_staged(vec![item(&client, "k", &bytes)], place);
        let frame = client.receive(&mut machine).expect("an answer");
        assert_eq!((frame.header.status(), frame.header.credits()), (Status::BadRequest, 1));
        let text = Refusal::parse(&frame.meta).expect("a reason").text.to_owned();
        assert!(text.contains(&format!("memory {}", place.staging)), "{text}");
    }
    // At the very end it is there; and one memory after the other.
    for memory in [&mine, &memory(&machine)] {
        memory.write(SIZE - 1000, &bytes);
        client.send_staged(vec![item(&client, "k", &bytes)], at(memory, SIZE - 1000));
        assert_eq!(statuses(&mut machine, &mut client), [Status::Ok]);
    }
    assert!(client.get(&mut machine, "k").1 == bytes);
    drop((client, other));
    machine.assert_at_rest();
}

#[test]
fn who_is_told_of_no_door_names_nothing() {
    for (windows, staged) in [(false, true), (true, false)] {
        let options = Options { in_memory: true, windows, staged, ..Options::default() };
        let mut machine = Machine::new(options);
        let mut client = machine.client(1);
        assert!(!client.may_name);
        // Also not what another has brought.
        let theirs = memory(&machine);
        client.send_staged(vec![item(&client, "k", &[0])], at(&theirs, 0));
        let frame = client.receive(&mut machine).expect("an answer");
        assert_eq!(frame.header.status(), Status::BadRequest);
        assert!(machine.stagings.claim(theirs.number()).is_some());
    }
}
