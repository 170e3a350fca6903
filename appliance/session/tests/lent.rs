//! Payload that is lent: it stays where it is until its reader has said that he took it. The network
//! of these tests panics when a client reads memory that was given back.

mod common;

use std::time::Duration;

use common::{Client, Frame, KEY, MIB, Machine, Options, value};
use memkv_dma::Class;
use memkv_session::{KeyRing, SessionLimits};
use memkv_sim::Fate;
use memkv_wire::{GoodbyeMeta, KeyList, Opcode, SharedKey, Status, TO_THE_END};

const LENDABLE: u64 = 4 << 20;

fn lending() -> Machine {
    Machine::new(Options { pool_bytes: 32 << 20, lendable: LENDABLE, ..Options::default() })
}

impl Machine {
    /// Bytes of the pool that are charged to loans.
    fn lent(&self) -> u64 {
        self.pool.stats().used[Class::Lent.index()]
    }

    /// Sums over the reactors: bytes lent ever, out now, and kept for good.
    fn loans(&self) -> (u64, u64, u64) {
        let all = self.contexts.iter().map(|context| context.counters());
        all.fold((0, 0, 0), |(ever, out, retired), c| {
            (ever + c.lent_bytes.get(), out + c.lent_out.get(), retired + c.lent_retired.get())
        })
    }
}

/// Gets a value and says nothing of having taken it.
fn get(machine: &mut Machine, client: &mut Client, key: &str) -> Frame {
    client.send_get(key, 0, TO_THE_END);
    client.receive(machine).expect("an answer")
}

/// Says something that is answered.
fn speak(machine: &mut Machine, client: &mut Client) -> Option<Frame> {
    let mut meta = Vec::new();
    KeyList { keys: vec![b"any"] }.encode(&mut meta);
    let header = client.request(Opcode::Exists);
    client.send(header, &meta, &[]);
    client.receive(machine)
}

#[test]
fn lent_payload_is_kept_until_its_reader_says_that_he_took_it() {
    let mut machine = lending();
    let bytes = value(1, 2 * MIB + 5000);
    for reactor in 0..2 {
        let mut client = machine.client(reactor);
        client.put(&mut machine, "k", &bytes);
        let before = machine.loans().0;
        let reply = get(&mut machine, &mut client, "k");
        assert!(reply.header.is_lent() && reply.payload == bytes);
        assert_eq!(machine.lent(), 2 * MIB as u64, "the rest is too short, and was copied");
        let out = bytes.len() as u64;
        assert_eq!(machine.loans(), (before + out, out, 0));
        assert_eq!(machine.pool.stats().used[Class::Send.index()], 0, "nobody's share but its own");
        // It goes on without having taken it all.
        client.consumed += 1_000_000;
        speak(&mut machine, &mut client).expect("an answer");
        assert_eq!(machine.lent(), 2 * MIB as u64, "a loan is given back as a whole");
        client.consumed += out - 1_000_000;
        speak(&mut machine, &mut client).expect("an answer");
        assert_eq!((machine.lent(), machine.loans().1), (0, 0));
        machine.assert_at_rest();
    }
}

#[test]
fn what_is_small_or_more_than_may_be_out_is_copied() {
    let mut machine = lending();
    let mut client = machine.client(0);
    let (small, large) = (value(1, MIB - 1), value(2, 3 * MIB));
    client.put(&mut machine, "small", &small);
    client.put(&mut machine, "large", &large);
    let reply = get(&mut machine, &mut client, "small");
    assert!(!reply.header.is_lent() && reply.payload == small);
    assert!(get(&mut machine, &mut client, "large").header.is_lent());
    // Nobody waits for the first to come back.
    let second = get(&mut machine, &mut client, "large");
    assert!(!second.header.is_lent() && second.payload == large);
    // What another's reactor may lend is its own.
    let mut other = machine.client(1);
    assert!(get(&mut machine, &mut other, "large").header.is_lent());
    client.consumed += large.len() as u64;
    assert!(get(&mut machine, &mut client, "large").header.is_lent(), "it has said so by asking");

    let limits = SessionLimits { lent: MIB as u64, ..SessionLimits::default() };
    let options =
        Options { pool_bytes: 32 << 20, lendable: LENDABLE, limits, ..Options::default() };
    let mut machine = Machine::new(options);
    let (mut client, mut other) = (machine.client(0), machine.client(0));
    client.put(&mut machine, "k", &large[..MIB]);
    assert!(get(&mut machine, &mut client, "k").header.is_lent());
    assert!(!get(&mut machine, &mut client, "k").header.is_lent(), "one connection's share");
    assert!(get(&mut machine, &mut other, "k").header.is_lent());
}

#[test]
fn what_was_lent_comes_back_after_lending_has_ended() {
    let mut machine = lending();
    let mut client = machine.client(0);
    let bytes = value(1, MIB);
    client.put(&mut machine, "k", &bytes);
    assert!(get(&mut machine, &mut client, "k").header.is_lent());
    machine.contexts[0].end_lending();
    let reply = get(&mut machine, &mut client, "k");
    assert!(!reply.header.is_lent() && reply.payload == bytes);
    assert_eq!(machine.loans(), (MIB as u64, MIB as u64, 0));
    client.consumed += MIB as u64;
    assert!(!get(&mut machine, &mut client, "k").header.is_lent());
    assert_eq!((machine.lent(), machine.loans().1), (0, 0));
    machine.assert_at_rest();
}

#[test]
fn a_count_that_cannot_be_ends_the_connection() {
    for (first, second) in
        [(MIB as u64 + 1, None), (MIB as u64, Some(MIB as u64 - 1)), (7, Some(6))]
    {
        let mut machine = lending();
        let mut client = machine.client(0);
        client.put(&mut machine, "k", &value(1, MIB));
        assert!(get(&mut machine, &mut client, "k").header.is_lent());
        client.consumed = first;
        let mut answer = speak(&mut machine, &mut client).expect("an answer or a last word");
        if let Some(second) = second {
            assert_eq!(answer.header.opcode(), Opcode::Exists);
            client.consumed = second;
            answer = speak(&mut machine, &mut client).expect("a last word");
        }
        assert_eq!(answer.header.opcode(), Opcode::Goodbye);
        assert_eq!(answer.header.status(), Status::BadRequest);
        let text = GoodbyeMeta::parse(&answer.meta).expect("a goodbye's meta").text.to_owned();
        assert!(text.contains("lent"), "{text}");
        assert!(client.receive(&mut machine).is_none());
        assert_ne!(client.end.fate(), Fate::Open);
        assert_eq!(machine.contexts[0].counters().violations.get(), 1);
    }
}

#[test]
fn who_reads_late_reads_what_was_there_though_the_server_has_closed() {
    let mut machine = lending();
    let bytes = value(1, MIB);
    for reactor in 0..2 {
        let (mut late, mut other) = (machine.client(reactor), machine.client(reactor));
        other.put(&mut machine, "k", &bytes);
        late.send_get("k", 0, TO_THE_END);
        machine.pass(Duration::from_secs(1));
        let retired = machine.loans().2;
        // Its key is retired: it is told so, and the connection closed.
        let mut keys = KeyRing::default();
        keys.add(2, SharedKey::from_bytes(KEY), "tenant");
        machine.contexts[reactor].set_keys(keys);
        machine.world.kick();
        machine.pass(Duration::from_secs(60));
        assert_eq!(machine.loans().2, retired + MIB as u64, "it may read it still");
        let mut again = machine.client_with(reactor, 2, KEY).expect("welcome");
        for n in 0..30 {
            let key = format!("other {n}");
            again.put(&mut machine, &key, &value(n, MIB));
            let reply = get(&mut machine, &mut again, &key);
            again.consumed += if reply.header.is_lent() { MIB as u64 } else { 0 };
            assert!(reply.payload == value(n, MIB));
        }
        let reply = late.receive(&mut machine).expect("it was sent");
        assert!(reply.header.is_lent() && reply.payload == bytes);
        let mut keys = KeyRing::default();
        keys.add(1, SharedKey::from_bytes(KEY), "tenant");
        machine.contexts[reactor].set_keys(keys);
    }
}

#[test]
fn what_a_reader_who_is_gone_was_lent_is_given_back() {
    let mut machine = lending();
    for reactor in 0..2 {
        let mut client = machine.client(reactor);
        client.put(&mut machine, "k", &value(1, MIB));
        assert!(get(&mut machine, &mut client, "k").header.is_lent());
        client.send_get("k", 0, TO_THE_END);
        machine.pass(Duration::from_secs(1));
        assert_eq!(machine.loans().1, 2 * MIB as u64);
        drop(client);
        machine.pass(Duration::from_secs(1));
        assert_eq!((machine.loans().1, machine.loans().2), (0, 0));
        machine.assert_at_rest();
        assert_eq!(machine.lent(), 0);
    }
}

#[test]
fn one_who_says_no_more_may_still_read() {
    let mut machine = lending();
    let mut client = machine.client(0);
    client.put(&mut machine, "k", &value(1, MIB));
    client.send_get("k", 0, TO_THE_END);
    machine.pass(Duration::from_secs(1));
    client.end.close();
    machine.pass(Duration::from_secs(10));
    assert_eq!((machine.loans().1, machine.loans().2), (MIB as u64, MIB as u64));
    let reply = client.receive(&mut machine).expect("it was sent");
    assert!(reply.header.is_lent() && reply.payload == value(1, MIB));
    assert_eq!(client.receive(&mut machine).expect("a word").header.opcode(), Opcode::Goodbye);
}

#[test]
fn with_a_second_tenant_nothing_is_lent_and_what_is_out_not_used_again() {
    let mut machine = lending();
    let mut client = machine.client(0);
    client.put(&mut machine, "k", &value(1, MIB));
    assert!(get(&mut machine, &mut client, "k").header.is_lent());
    let mut keys = KeyRing::default();
    keys.add(1, SharedKey::from_bytes(KEY), "tenant");
    keys.add(2, SharedKey::from_bytes([6; 32]), "another");
    machine.contexts[0].set_keys(keys);
    assert!(!get(&mut machine, &mut client, "k").header.is_lent());
    client.consumed += MIB as u64;
    speak(&mut machine, &mut client).expect("an answer");
    assert_eq!((machine.loans().1, machine.loans().2), (MIB as u64, MIB as u64));
}

#[test]
fn loans_leave_room_for_gets_and_puts_of_others() {
    // All that may be lent is out, and the rest of the smallest pool has to do.
    let mut machine =
        Machine::new(Options { pool_bytes: 8 << 20, lendable: 2 << 20, ..Options::default() });
    let (mut idle, mut other) = (machine.client(0), machine.client(0));
    idle.put(&mut machine, "k", &value(1, 2 * MIB));
    assert!(get(&mut machine, &mut idle, "k").header.is_lent());
    for n in 0..20 {
        let bytes = value(n, 3 * MIB);
        assert_eq!(other.put(&mut machine, "other", &bytes).status, Status::Ok);
        assert!(get(&mut machine, &mut other, "other").payload == bytes);
    }
    machine.assert_at_rest();
}
