//! Little memory, many who want it: nobody waits for ever.

mod common;

use std::time::Duration;

use common::{MIB, Machine, Options, value};
use memkv_block::Op;
use memkv_dma::Class;
use memkv_sim::faults::{Effect, Rule};
use memkv_store::DriveId;
use memkv_wire::{ItemReplies, ItemReply, Status};

/// A pool of 8 MiB gives puts, or gets, 6 MiB at most.
fn machine() -> Machine {
    Machine::new(Options::default())
}

#[test]
fn a_value_larger_than_the_pool_is_stored_piece_by_piece() {
    let mut machine = machine();
    let mut client = machine.client(1);
    let bytes = value(1, 16 * MIB);
    assert_eq!(client.put(&mut machine, "large", &bytes).status, Status::Ok);
    // Its parts can be had, of all of it together there is no memory: said, not waited for.
    assert_eq!(client.get(&mut machine, "large").0.status, Status::LimitExceeded);
    client.send_get("large", 5 * MIB as u64 + 7, 3 * MIB as u64);
    let (reply, part) = client.got(&mut machine);
    assert_eq!((reply.status, reply.length), (Status::Ok, 16 * MIB as u64));
    assert!(part == bytes[5 * MIB + 7..8 * MIB + 7]);
    machine.assert_at_rest();
}

#[test]
fn a_get_that_memory_will_never_be_enough_for_is_told_so() {
    let mut machine = machine();
    let mut client = machine.client(0);
    let bytes = value(1, 6 * MIB);
    assert_eq!(client.put(&mut machine, "large", &bytes).status, Status::Ok);
    let mut had = 0;
    for length in (4 * MIB..=6 * MIB).step_by(16 << 10) {
        client.send_get("large", 0, length as u64);
        let (reply, got) = client.got(&mut machine);
        match reply.status {
            Status::Ok => assert!(had == length - (16 << 10) || length == 4 * MIB, "{length}"),
            status => assert_eq!(status, Status::LimitExceeded, "{length} bytes"),
        }
        assert!(got == bytes[..got.len()]);
        had = had.max(got.len());
    }
    assert!((4 * MIB..6 * MIB).contains(&had), "{had}");
    machine.assert_at_rest();
}

#[test]
fn a_get_that_waits_for_memory_gives_up_in_the_end_and_lets_the_next_have_it() {
    let mut machine = machine();
    let (mut client, mut other) = (machine.client(0), machine.client(1));
    let bytes = value(1, 5 * MIB);
    assert_eq!(client.put(&mut machine, "large", &bytes).status, Status::Ok);
    // Who has the memory might give it back, and does not: one gathers, the other waits for its turn, and
    // each gives up when its own time is over.
    let held: Vec<_> =
        (0..2).map(|_| machine.pool.allocate(Class::Send, MIB).expect("two of six")).collect();
    for first_is_here in [true, false] {
        let (first, second) = match first_is_here {
            true => (&mut client, &mut other),
            false => (&mut other, &mut client),
        };
        let began = machine.now();
        first.send_get("large", 0, u64::MAX);
        machine.pass(Duration::from_millis(100));
        second.send_get("large", 0, u64::MAX);
        assert_eq!(first.got(&mut machine).0.status, Status::Busy);
        let waited = machine.now().saturating_duration_since(began);
        assert_eq!(second.got(&mut machine).0.status, Status::Busy);
        let both = machine.now().saturating_duration_since(began);
        assert!(both < waited + waited / 2, "{waited:?} and {both:?}");
    }
    drop(held);
    client.send_get("large", 0, u64::MAX);
    other.send_get("large", 0, u64::MAX);
    for client in [&mut client, &mut other] {
        let (reply, got) = client.got(&mut machine);
        assert_eq!(reply.status, Status::Ok);
        assert!(got == bytes);
    }
    machine.assert_at_rest();
}

#[test]
fn puts_of_several_extents_do_not_wait_for_each_other() {
    let mut machine = machine();
    let values: Vec<_> = (0..4).map(|n| value(n, 5 * MIB)).collect();
    let mut clients: Vec<_> = (0..4).map(|n| machine.client(n % 2)).collect();
    let names: Vec<_> = (0..4).map(|n| format!("key {n}")).collect();
    // All are placed before the first byte of payload comes, and then all come at once.
    let offers: Vec<_> = clients
        .iter_mut()
        .zip(&names)
        .map(|(client, name)| client.offer(&mut machine, name, 5 * MIB).expect("wanted"))
        .collect();
    for ((client, &offer), bytes) in clients.iter_mut().zip(&offers).zip(&values) {
        client.send_data(offer, bytes, None);
    }
    for client in &mut clients {
        assert_eq!(client.data_reply(&mut machine).status, Status::Ok);
    }
    // The same with gets: four times 5 MiB, and memory for 6.
    for (client, name) in clients.iter_mut().zip(&names) {
        client.send_get(name, 0, u64::MAX);
    }
    for (client, bytes) in clients.iter_mut().zip(&values) {
        let (reply, got) = client.got(&mut machine);
        assert_eq!(reply.status, Status::Ok);
        assert!(got == *bytes);
    }
    machine.assert_at_rest();
}

#[test]
fn inline_batches_that_need_more_memory_than_there_is_are_stored_in_turns() {
    let mut machine = machine();
    let mut clients: Vec<_> = (0..4).map(|n| machine.client(n % 2)).collect();
    let batches: Vec<Vec<(String, Vec<u8>)>> = (0..4u64)
        .map(|batch| {
            let item = |n: u64| (format!("{batch}/{n}"), value(batch * 1000 + n, 400));
            (0..500).map(item).collect()
        })
        .collect();
    for (client, batch) in clients.iter_mut().zip(&batches) {
        client.send_inline(batch);
    }
    for client in &mut clients {
        let reply = client.receive(&mut machine).expect("an answer");
        let items = ItemReplies::parse(&reply.meta).expect("a reply per item").items;
        assert!(items.iter().all(|item| item.status == Status::Ok), "{:?}", items[0]);
        assert_eq!((items.len(), reply.header.credits()), (500, 1));
    }
    for (client, batch) in clients.iter_mut().zip(&batches) {
        for (key, bytes) in batch.iter().step_by(97) {
            assert_eq!(client.get(&mut machine, key).1, *bytes);
        }
    }
    machine.assert_at_rest();
}

#[test]
fn an_inline_put_that_waits_long_holds_no_chunk() {
    let mut machine = machine();
    let mut clients: Vec<_> = (0..4).map(|n| machine.client(n % 2)).collect();
    let item = |key: &str| (key.to_owned(), value(1, 5000));
    // The journal's writes hang: one put waits for its commit, one for the first one's key with
    // another item in its hands, one with a key that comes twice, one behind it.
    let (faults, data) = &machine.faults[0];
    faults.add(Rule { range: 0..*data, effect: Effect::Hang, ..Rule::fail(Op::Write) });
    let batches: [&[&str]; 4] = [&["k"], &["k", "a", "b", "c"], &["two", "two"], &["two", "k"]];
    for (client, keys) in clients.iter_mut().zip(batches) {
        client.send_inline(&keys.iter().map(|key| item(key)).collect::<Vec<_>>());
    }
    machine.pass(Duration::from_millis(200));
    assert!(machine.store.under_way().keys >= 2, "they wait");
    assert_eq!(machine.pool.stats().used[Class::Receive.index()], 0);
    // The drive is given up in the end, and all are told; who waited for another, that it did.
    for client in &mut clients {
        let reply = client.receive(&mut machine).expect("an answer");
        let items = ItemReplies::parse(&reply.meta).expect("a reply per item").items;
        let refused = |item: &ItemReply| matches!(item.status, Status::IoError | Status::Busy);
        assert!(items.iter().all(refused), "{items:?}");
    }
    machine.assert_at_rest();
}

#[test]
fn a_put_whose_drives_fail_under_it_is_placed_again_byte_for_byte() {
    let options = Options { drives: 3, pool_bytes: 32 << 20, ..Options::default() };
    let mut machine = Machine::new(options);
    let mut client = machine.client(1);
    let bytes = value(3, 9 * MIB + 5);
    // Two of three drives fail: parts of the value lie on both.
    machine.break_data(0);
    machine.break_data(2);
    assert_eq!(client.put(&mut machine, "moved", &bytes).status, Status::Ok);
    let lease = machine.store.lease(machine.store.hasher().hash(&key("moved"))).expect("stored");
    assert!(lease.extents.iter().all(|extent| extent.drive == DriveId(1)));
    machine.store.unpin(lease.slot);
    let (reply, got) = client.get(&mut machine, "moved");
    assert_eq!(reply.status, Status::Ok);
    assert!(got == bytes);
    assert_eq!(machine.store.counters().drives_failed.get(), 2);
    machine.assert_at_rest();
    machine.break_data(1);
    assert_ne!(client.put(&mut machine, "nowhere", &bytes).status, Status::Ok);
    let again = client.put(&mut machine, "nowhere", &bytes);
    assert_eq!(again.status, Status::IoError, "no drive serves");
    machine.assert_at_rest();
}

fn key(name: &str) -> memkv_journal::KeyBytes {
    memkv_journal::KeyBytes::new("tenant", "tests", name.as_bytes()).expect("a short name")
}
