//! Payload that is named: who has windows on a drive in memory reads it there, and it stays where it is until
//! he has said that he took it.

mod common;

use std::time::Duration;

use common::{Client, DOOR, KEY, MIB, Machine, Options, value};
use memkv_session::{KeyRing, SessionLimits};
use memkv_wire::{
    GetItem, GetItems, Header, KeyList, NamedReply, Opcode, SharedKey, Span, Status, TO_THE_END,
};

fn with(limits: SessionLimits) -> Machine {
    Machine::new(Options {
        in_memory: true,
        windows: true,
        lendable: 16 << 20,
        nameable: 16 << 20,
        limits,
        ..Options::default()
    })
}

fn machine() -> Machine {
    with(SessionLimits::default())
}

/// Asks for values that may be named.
fn ask(client: &mut Client, items: Vec<GetItem<'_>>) {
    let mut meta = Vec::new();
    GetItems { items }.encode(&mut meta);
    let header = client.request(Opcode::Get).with_named();
    client.send(header, &meta, &[]);
}

fn whole(key: &str) -> GetItem<'_> {
    GetItem { key: key.as_bytes(), offset: 0, length: TO_THE_END }
}

/// The next reply: its header, and where its payload is when it is named.
fn reply(machine: &mut Machine, client: &mut Client) -> (Header, Option<NamedReply>, Vec<u8>) {
    let frame = client.receive(machine).expect("an answer");
    let named = frame.header.is_named();
    let named = named.then(|| NamedReply::parse(&frame.meta).expect("it names its payload"));
    (frame.header, named, frame.payload)
}

/// What a client sees through its windows. This panics when somebody may write there.
fn look(machine: &Machine, named: &NamedReply) -> Vec<u8> {
    let span = |span: &Span| {
        let medium = &machine.media[span.window as usize];
        medium.lend(span.offset, span.length as usize).as_slice().to_vec()
    };
    named.spans.iter().flat_map(span).collect()
}

/// Gets one value, which is named, and does not say that it took it.
fn get(machine: &mut Machine, client: &mut Client, key: &str) -> NamedReply {
    ask(client, vec![whole(key)]);
    let (header, named, payload) = reply(machine, client);
    assert!(payload.is_empty() && header.payload_length() == 0 && !header.is_lent());
    named.expect("it is named")
}

/// Says something that is answered.
fn speak(machine: &mut Machine, client: &mut Client) {
    let mut meta = Vec::new();
    KeyList { keys: vec![b"any"] }.encode(&mut meta);
    client.ask(machine, Opcode::Exists, &meta);
}

fn named_bytes(machine: &Machine) -> u64 {
    machine.contexts.iter().map(|context| context.counters().named_bytes.get()).sum()
}

#[test]
fn what_is_named_is_what_was_put_and_stays_until_it_was_taken() {
    let mut machine = machine();
    let (old, new, large) = (value(1, 600_000), value(2, 600_000), value(3, 2 * MIB + 5));
    for reactor in 0..2 {
        let (mut client, mut writer) = (machine.client(reactor), machine.client(reactor));
        assert_eq!(client.door, Some(DOOR));
        writer.put(&mut machine, "k", &old);
        writer.put(&mut machine, "large", &large);
        let before = named_bytes(&machine);
        let first = get(&mut machine, &mut client, "k");
        assert_eq!((first.get.reply.status, first.get.reply.length), (Status::Ok, 600_000));
        assert_eq!(first.get.reply.crcs.as_slice(), common::crcs(&old, MIB).as_slice());
        assert_eq!(first.spans.len(), 1);
        // A block of several extents lies in several places.
        let second = get(&mut machine, &mut client, "large");
        assert_eq!(second.spans.len(), 3);
        let out = (old.len() + large.len()) as u64;
        assert_eq!(named_bytes(&machine) - before, out);
        // What takes its place lies elsewhere as long as it may be read.
        for _ in 0..40 {
            assert_eq!(writer.put(&mut machine, "k", &new).status, Status::Ok);
        }
        assert_eq!(machine.store.under_way().readers, 2);
        assert!(look(&machine, &first) == old && look(&machine, &second) == large);
        client.consumed += old.len() as u64;
        speak(&mut machine, &mut client);
        assert_eq!(machine.store.under_way().readers, 1);
        client.consumed += large.len() as u64;
        speak(&mut machine, &mut client);
        machine.assert_at_rest();
    }
}

#[test]
fn ranges_and_batches_are_named_in_order() {
    let mut machine = machine();
    let (one, two) = (value(1, 300_000), value(2, 2 * MIB + 70_000));
    for reactor in 0..2 {
        let mut client = machine.client(reactor);
        client.put(&mut machine, "one", &one);
        client.put(&mut machine, "two", &two);
        let part =
            |key: &'static str, offset, length| GetItem { key: key.as_bytes(), offset, length };
        let items = vec![
            whole("one"),
            part("two", MIB as u64 - 7, 100_000),
            whole("never"),
            part("two", 3, 10),
            part("one", 250_000, TO_THE_END),
            part("one", 0, 0),
        ];
        let wanted: Vec<Option<&[u8]>> = vec![
            Some(&one),
            Some(&two[MIB - 7..MIB + 99_993]),
            None,
            Some(&two[3..13]),
            Some(&one[250_000..]),
            Some(&[]),
        ];
        ask(&mut client, items);
        let mut got: Vec<Option<Vec<u8>>> = vec![None; wanted.len()];
        for _ in 0..wanted.len() {
            let frame = client.receive(&mut machine).expect("an answer");
            let (item, status, bytes) = match frame.header.is_named() {
                true => {
                    let named = NamedReply::parse(&frame.meta).expect("a reply");
                    client.consumed += named.spans.bytes();
                    let get = named.get;
                    let crcs = common::crcs(&look(&machine, &named), MIB);
                    let whole = named.spans.len() == 1;
                    assert!(!whole || get.reply.crcs.as_slice() == crcs.as_slice());
                    (get.item, get.reply.status, look(&machine, &named))
                }
                false => {
                    let get = memkv_wire::GetReply::parse(&frame.meta).expect("a reply");
                    // Nothing, and what is so little that it is sent.
                    assert!(matches!(get.item, 2 | 3 | 5), "{get:?}");
                    (get.item, get.reply.status, frame.payload)
                }
            };
            got[item as usize] = (status == Status::Ok).then_some(bytes);
        }
        assert!(got.iter().map(Option::as_deref).eq(wanted), "of reactor {reactor}");
        speak(&mut machine, &mut client);
        machine.assert_at_rest();
    }
}

#[test]
fn only_who_asks_for_it_and_has_windows_is_named_something() {
    let mut machine = machine();
    let bytes = value(1, MIB);
    let mut client = machine.client(0);
    client.put(&mut machine, "k", &bytes);
    client.send_get("k", 0, TO_THE_END);
    let (header, named, payload) = reply(&mut machine, &mut client);
    assert!(header.is_lent() && named.is_none() && payload == bytes, "it did not ask for it");
    client.consumed += MIB as u64;

    // Of a node that hands none out, and one that stores elsewhere.
    for windows in [false, true] {
        let (in_memory, nameable) = (!windows, 16 << 20);
        let options = Options { windows, in_memory, nameable, ..Options::default() };
        let mut machine = Machine::new(options);
        let mut client = machine.client(0);
        assert_eq!(client.door.is_some(), windows);
        client.put(&mut machine, "k", &bytes);
        ask(&mut client, vec![whole("k")]);
        let (_, named, payload) = reply(&mut machine, &mut client);
        assert!(named.is_none() && payload == bytes);
    }
}

#[test]
fn no_more_is_named_than_may_be_out() {
    let limits = SessionLimits { named: 2 * MIB as u64, lent: 0, ..SessionLimits::default() };
    let mut machine = with(limits);
    let bytes = value(1, MIB);
    let (mut client, mut other) = (machine.client(0), machine.client(0));
    client.put(&mut machine, "k", &bytes);
    get(&mut machine, &mut client, "k");
    get(&mut machine, &mut client, "k");
    ask(&mut client, vec![whole("k")]);
    let (_, named, payload) = reply(&mut machine, &mut client);
    assert!(named.is_none() && payload == bytes, "one connection's share");
    get(&mut machine, &mut other, "k");
    client.consumed += MIB as u64;
    get(&mut machine, &mut client, "k");
    client.consumed += 2 * MIB as u64;
    other.consumed += MIB as u64;
    speak(&mut machine, &mut client);
    speak(&mut machine, &mut other);
    machine.assert_at_rest();
}

#[test]
fn named_sent_and_lent_payload_go_in_one_batch_and_come_back_in_their_order() {
    // Two may be named at a time; the third is lent, the fourth copied.
    let limits =
        SessionLimits { named: 2 * MIB as u64, lent: 3 * MIB as u64, ..SessionLimits::default() };
    let mut machine = with(limits);
    for reactor in 0..2 {
        let mut client = machine.client(reactor);
        let bytes: Vec<_> = (0..4).map(|n| value(n, MIB)).collect();
        let keys = ["a", "b", "c", "d"];
        for (key, bytes) in keys.iter().zip(&bytes) {
            client.put(&mut machine, key, bytes);
        }
        ask(&mut client, keys.map(whole).into());
        let mut ways = Vec::new();
        for bytes in &bytes {
            let (header, named, payload) = reply(&mut machine, &mut client);
            ways.push((named.is_some(), header.is_lent()));
            match named {
                Some(named) => assert!(look(&machine, &named) == *bytes),
                None => assert!(payload == *bytes),
            }
        }
        let (named, lent, copied) = ((true, false), (false, true), (false, false));
        assert_eq!(ways, [named, named, lent, copied]);
        assert_eq!(machine.store.under_way().readers, 3);
        for readers in [2, 1, 0] {
            client.consumed += MIB as u64;
            speak(&mut machine, &mut client);
            assert_eq!(machine.store.under_way().readers, readers);
        }
        machine.assert_at_rest();
    }
}

#[test]
fn payload_is_named_where_pages_cannot_be_lent() {
    let mut machine = Machine::new(Options {
        in_memory: true,
        windows: true,
        lendable: 0,
        nameable: 16 << 20,
        ..Options::default()
    });
    let bytes = value(1, MIB);
    let mut client = machine.client(0);
    client.put(&mut machine, "k", &bytes);
    let named = get(&mut machine, &mut client, "k");
    assert!(look(&machine, &named) == bytes);
    client.consumed += MIB as u64;
    speak(&mut machine, &mut client);
    client.send_get("k", 0, TO_THE_END);
    let (header, named, payload) = reply(&mut machine, &mut client);
    assert!(!header.is_lent() && named.is_none() && payload == bytes);
    speak(&mut machine, &mut client);
    machine.assert_at_rest();
}

#[test]
fn more_names_than_fit_one_send_are_all_told_before_the_last_word() {
    let limits = SessionLimits { name_min: 1, named: u64::MAX / 2, ..SessionLimits::default() };
    let mut machine = Machine::new(Options {
        in_memory: true,
        windows: true,
        nameable: u64::MAX / 2,
        limits,
        ..Options::default()
    });
    let mut client = machine.client(0);
    client.put(&mut machine, "k", &value(1, 100));
    // A reply takes some 200 bytes, and a send some 64 KiB.
    const MANY: usize = 1000;
    ask(&mut client, vec![whole("k"); MANY]);
    machine.pass(Duration::from_millis(1));
    let mut keys = KeyRing::default();
    keys.add(2, SharedKey::from_bytes(KEY), "tenant");
    machine.contexts[0].set_keys(keys);
    machine.world.kick();
    for nth in 0..MANY {
        let (header, named, _) = reply(&mut machine, &mut client);
        assert_eq!(named.expect("it is named").get.item as usize, nth);
        assert_eq!(header.has_more(), nth + 1 < MANY);
    }
    let last = client.receive(&mut machine).expect("a last word");
    assert_eq!(last.header.opcode(), Opcode::Goodbye);
}

#[test]
fn what_was_named_to_one_who_is_gone_is_given_back_and_else_kept() {
    let bytes = value(1, MIB);
    for reactor in 0..2 {
        let mut machine = machine();
        let retired = |machine: &Machine| {
            machine.contexts[reactor].counters().lent_retired.get() / MIB as u64
        };
        let mut client = machine.client(reactor);
        client.put(&mut machine, "k", &bytes);
        get(&mut machine, &mut client, "k");
        drop(client);
        machine.pass(Duration::from_secs(1));
        machine.assert_at_rest();
        assert_eq!(retired(&machine), 0);
        // One that only says no more may still read.
        let mut client = machine.client(reactor);
        let named = get(&mut machine, &mut client, "k");
        client.end.close();
        machine.pass(Duration::from_secs(10));
        assert_eq!(retired(&machine), 1);
        let mut writer = machine.client(reactor);
        for n in 0..100 {
            writer.put(&mut machine, "k", &value(n, MIB));
        }
        assert!(look(&machine, &named) == bytes);
    }
}

#[test]
fn with_a_second_tenant_nothing_is_named_and_nobody_told_of_windows() {
    let mut machine = machine();
    let bytes = value(1, MIB);
    let mut client = machine.client(0);
    client.put(&mut machine, "k", &bytes);
    let named = get(&mut machine, &mut client, "k");
    let mut keys = KeyRing::default();
    keys.add(1, SharedKey::from_bytes(KEY), "tenant");
    keys.add(2, SharedKey::from_bytes([6; 32]), "another");
    machine.contexts[0].set_keys(keys);
    ask(&mut client, vec![whole("k")]);
    let (_, again, payload) = reply(&mut machine, &mut client);
    assert!(again.is_none() && payload == bytes);
    assert_eq!(machine.client(0).door, None);
    client.consumed += MIB as u64;
    speak(&mut machine, &mut client);
    assert_eq!(machine.contexts[0].counters().lent_retired.get(), MIB as u64);
    for n in 0..100 {
        client.put(&mut machine, "k", &value(n, MIB));
    }
    assert!(look(&machine, &named) == bytes, "it may look there for ever");
}
