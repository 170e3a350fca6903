//! Blocks in memory are sent from where they lie. Where the store is at hand the reader of a connection answers
//! the usual get itself; nobody can tell by the answer.

mod common;

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use common::{Client, MIB, Machine, Options, value};
use memkv_session::SessionLimits;
use memkv_wire::{
    DeleteItem, DeleteItems, GetItem, GetItems, GetReply, ItemReply, MissReason, Opcode, Status,
    TO_THE_END,
};

/// More than a reader answers in one pass, and than may be under way at a time.
const GETS: usize = 300;

fn in_memory(limits: SessionLimits) -> Machine {
    Machine::new(Options { in_memory: true, limits, ..Options::default() })
}

/// What is asked, and what the answer has to be: its status, the block's length, and which bytes of it.
type Case<'a> = (GetItem<'a>, Status, &'a [u8], (usize, usize));

fn cases<'a>(small: &'a [u8], large: &'a [u8]) -> Vec<Case<'a>> {
    let item = |key: &'a str, offset, length| GetItem { key: key.as_bytes(), offset, length };
    let (whole, most) = (small.len() as u64, small.len());
    vec![
        (item("small", 0, TO_THE_END), Status::Ok, small, (0, most)),
        (item("small", 0, whole), Status::Ok, small, (0, most)),
        (item("small", 0, whole - 1), Status::Ok, small, (0, most - 1)),
        (item("small", 0, 0), Status::Ok, small, (0, 0)),
        (item("small", 17, TO_THE_END), Status::Ok, small, (17, most)),
        (item("small", whole, 1), Status::BadRequest, small, (0, 0)),
        (item("large", 0, TO_THE_END), Status::Ok, large, (0, large.len())),
        (item("large", 0, MIB as u64), Status::Ok, large, (0, MIB)),
        (item("gone", 0, TO_THE_END), Status::NotFound, &[], (0, 0)),
        (item("never", 0, TO_THE_END), Status::NotFound, &[], (0, 0)),
    ]
}

fn send(client: &mut Client, items: Vec<GetItem<'_>>) -> u64 {
    let mut meta = Vec::new();
    GetItems { items }.encode(&mut meta);
    let header = client.request(Opcode::Get);
    client.send(header, &meta, &[]);
    header.request_id()
}

fn check(
    machine: &mut Machine,
    client: &mut Client,
    sent: &mut Vec<(u64, usize)>,
    all: &[Case<'_>],
) {
    let frame = client.receive(machine).expect("an answer");
    let id = frame.header.request_id();
    let place = sent.iter().position(|&(sent, _)| sent == id).expect("it was asked once");
    let (item, status, block, (from, to)) = &all[sent.swap_remove(place).1];
    let GetReply { item: index, reply, offset } = GetReply::parse(&frame.meta).expect("a reply");
    assert_eq!((index, reply.status), (0, *status), "{item:?}");
    assert!(frame.payload == block[*from..*to], "{item:?}");
    match status {
        Status::NotFound if item.key == b"gone" => {
            assert_eq!(reply, ItemReply::miss(MissReason::Deleted));
        }
        Status::NotFound => assert_eq!(reply, ItemReply::miss(MissReason::Never)),
        Status::Ok => {
            assert_eq!((reply.length, offset), (block.len() as u64, item.offset));
            let whole = frame.payload.len() == block.len();
            let crcs = common::crcs(&frame.payload, MIB);
            assert!(!whole || reply.crcs.as_slice() == crcs.as_slice());
        }
        _ => assert_eq!(reply.length, block.len() as u64),
    }
}

fn delete(machine: &mut Machine, client: &mut Client, key: &[u8]) {
    let mut meta = Vec::new();
    DeleteItems { items: vec![DeleteItem { key, generation: 0 }] }.encode(&mut meta);
    client.ask(machine, Opcode::Delete, &meta);
}

#[test]
fn gets_of_memory_are_answered_alike_on_every_reactor() {
    let mut machine = in_memory(SessionLimits::default());
    let (small, large) = (value(1, 70_000), value(2, 2 * MIB + 5));
    let mut writer = machine.client(0);
    for (key, bytes) in [("small", &small), ("large", &large), ("gone", &small)] {
        assert_eq!(writer.put(&mut machine, key, bytes).status, Status::Ok);
    }
    delete(&mut machine, &mut writer, b"gone");
    let all = cases(&small, &large);
    let hits = all.iter().filter(|(_, status, ..)| *status == Status::Ok).count();
    for reactor in 0..2 {
        let counters = machine.contexts[reactor].counters();
        let store = machine.store.counters();
        let leased = (store.hits.get(), store.leases.get());
        let before =
            (counters.reads.get(), counters.requests.get(), counters.get_total.snapshot().2);
        let mut client = machine.client(reactor);
        // One after the other, then all at once.
        for (number, case) in all.iter().enumerate() {
            let mut sent = vec![(send(&mut client, vec![case.0.clone()]), number)];
            check(&mut machine, &mut client, &mut sent, &all);
        }
        let many = (0..GETS).map(|nth| nth % all.len());
        let ask = |number: usize| (send(&mut client, vec![all[number].0.clone()]), number);
        let mut sent: Vec<_> = many.map(ask).collect();
        while !sent.is_empty() {
            check(&mut machine, &mut client, &mut sent, &all);
        }
        let times = GETS / all.len() + 1;
        let (gets, hits) = ((times * all.len()) as u64, (times * hits) as u64);
        let counted =
            (counters.reads.get(), counters.requests.get(), counters.get_total.snapshot().2);
        assert_eq!(counted, (before.0 + hits, before.1 + gets, before.2 + gets));
        // One is found, and refused for what it asks of it.
        let found = hits + times as u64;
        let now = (store.hits.get(), store.leases.get());
        assert_eq!(now, (leased.0 + found, leased.1 + found));
        machine.assert_at_rest();
    }
}

#[test]
fn the_usual_get_takes_no_task_of_its_own_where_the_store_is_at_hand() {
    let mut machine = in_memory(SessionLimits::default());
    let (small, large) = (value(1, 300), value(2, 2 * MIB + 5));
    for reactor in 0..2 {
        let mut client = machine.client(reactor);
        for (key, bytes) in [("small", &small), ("large", &large)] {
            assert_eq!(client.put(&mut machine, key, bytes).status, Status::Ok);
        }
        let spawned = |machine: &Machine| machine.world.stats(reactor).tasks_spawned.load(Relaxed);
        for (key, tasks) in [("small", 10 * reactor as u64), ("large", 10)] {
            let before = spawned(&machine);
            (0..10).for_each(|_| assert_eq!(client.get(&mut machine, key).0.status, Status::Ok));
            assert_eq!(spawned(&machine) - before, tasks, "{key} on {reactor}");
        }
    }
}

#[test]
fn who_does_not_read_what_it_gets_is_answered_no_more_than_its_share() {
    let limits = SessionLimits { sending: 256 << 10, ..SessionLimits::default() };
    let mut machine = in_memory(limits);
    let bytes = value(1, 64 << 10);
    let mut writer = machine.client(0);
    assert_eq!(writer.put(&mut machine, "k", &bytes).status, Status::Ok);
    let mut deaf = machine.deaf_client(0);
    for _ in 0..GETS {
        deaf.send_get("k", 0, TO_THE_END);
    }
    machine.pass(Duration::from_millis(100));
    let reads = machine.contexts[0].counters().reads.get();
    assert_eq!(reads, 4, "of a quarter of a MiB each is 64 KiB");
    // Others are served meanwhile, and in the end nothing is held for it.
    let (reply, got) = writer.get(&mut machine, "k");
    assert!(reply.status == Status::Ok && got == bytes);
    machine.pass(SessionLimits::default().deadline * 8);
    machine.assert_at_rest();
}

#[test]
fn what_is_lent_from_memory_by_the_reader_is_kept_until_it_was_taken() {
    let mut machine = Machine::new(Options {
        in_memory: true,
        extent_bytes: 4 << 20,
        lendable: 16 << 20,
        ..Options::default()
    });
    let (old, new) = (value(1, 3 * MIB), value(2, 3 * MIB));
    let mut client = machine.client(0);
    let mut writer = machine.client(0);
    assert_eq!(writer.put(&mut machine, "k", &old).status, Status::Ok);
    client.send_get("k", 0, TO_THE_END);
    let frame = client.receive(&mut machine).expect("an answer");
    assert!(frame.header.is_lent() && frame.payload == old);
    // What takes its place lies elsewhere as long as it may be read.
    for _ in 0..40 {
        assert_eq!(writer.put(&mut machine, "k", &new).status, Status::Ok);
    }
    assert_eq!(machine.store.under_way().readers, 1);
    client.consumed += old.len() as u64;
    let (reply, got) = client.get(&mut machine, "k");
    assert!(reply.status == Status::Ok && got == new);
    client.consumed += new.len() as u64;
    client.get(&mut machine, "never");
    machine.assert_at_rest();
}
