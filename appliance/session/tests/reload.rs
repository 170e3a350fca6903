//! Keys and limits that change while sessions are open.

mod common;

use std::time::Duration;

use common::{Client, KEY, MIB, Machine, Options, value};
use memkv_session::{KeyRing, NamespaceLimits, SessionLimits};
use memkv_sim::Fate;
use memkv_wire::{GoodbyeMeta, MissReason, Opcode, SharedKey, Status};

const OTHER: [u8; 32] = [6; 32];

fn ring(keys: &[(u32, [u8; 32], &str)]) -> KeyRing {
    let mut ring = KeyRing::default();
    for &(id, key, tenant) in keys {
        ring.add(id, SharedKey::from_bytes(key), tenant);
    }
    ring
}

impl Machine {
    /// Gives every reactor these keys; how many sessions end.
    fn reload(&mut self, keys: &[(u32, [u8; 32], &str)]) -> usize {
        let ended = self.contexts.iter().map(|context| context.set_keys(ring(keys))).sum();
        self.world.kick();
        ended
    }
}

/// The server's last word to a client, and the end of the connection after it.
fn farewell(machine: &mut Machine, client: &mut Client) -> (Status, String) {
    let frame = client.receive(machine).expect("a goodbye before the end");
    assert_eq!(frame.header.opcode(), Opcode::Goodbye);
    let text = GoodbyeMeta::parse(&frame.meta).expect("a goodbye's meta").text.to_owned();
    assert!(client.receive(machine).is_none(), "nothing comes after a goodbye");
    assert_ne!(client.end.fate(), Fate::Open);
    (frame.header.status(), text)
}

#[test]
fn a_second_key_is_valid_beside_the_first_until_one_is_retired() {
    let mut machine = Machine::new(Options::default());
    for reactor in 0..2 {
        let mut old = machine.client(reactor);
        assert_eq!(old.put(&mut machine, "k", &value(1, MIB)).status, Status::Ok);
        assert!(machine.client_with(reactor, 2, OTHER).is_none(), "not yet");
        assert_eq!(machine.reload(&[(1, KEY, "tenant"), (2, OTHER, "tenant")]), 0);
        let mut new = machine.client_with(reactor, 2, OTHER).expect("welcome");
        assert!(new.get(&mut machine, "k").1 == value(1, MIB), "the same tenant");
        assert!(old.get(&mut machine, "k").1 == value(1, MIB));

        assert_eq!(machine.reload(&[(2, OTHER, "tenant")]), 1);
        let (status, text) = farewell(&mut machine, &mut old);
        assert_eq!((status, text.as_str()), (Status::Ok, "key 1 was retired"));
        assert!(machine.client_with(reactor, 1, KEY).is_none(), "it is no key any more");
        assert!(new.get(&mut machine, "k").1 == value(1, MIB), "this one stays");
        machine.assert_at_rest();
        machine.reload(&[(1, KEY, "tenant")]);
        farewell(&mut machine, &mut new);
    }
}

#[test]
fn a_key_replaced_or_given_to_another_tenant_under_its_id_is_retired() {
    for replaced in [[(1, OTHER, "tenant")], [(1, KEY, "somebody")]] {
        let mut machine = Machine::new(Options::default());
        let mut client = machine.client(0);
        assert_eq!(machine.reload(&replaced), 1);
        farewell(&mut machine, &mut client);
    }
}

#[test]
fn what_a_retired_session_was_promised_is_finished() {
    let mut machine = Machine::new(Options::default());
    let mut reader = machine.client(0);
    let large = value(3, 3 * MIB);
    assert_eq!(reader.put(&mut machine, "large", &large).status, Status::Ok);
    for reactor in 0..2 {
        let mut old = machine.client(reactor);
        let first = old.offer(&mut machine, "first", 2 * MIB).expect("wanted");
        let second = old.offer(&mut machine, "second", MIB).expect("wanted");
        old.send_get("large", 0, u64::MAX);
        let mac = old.send_data(first, &value(1, 2 * MIB), Some(MIB));
        assert_eq!(machine.reload(&[(2, OTHER, "tenant")]), 1 + usize::from(reactor == 0));
        assert_eq!(old.got(&mut machine).1.len(), large.len());
        machine.pass(Duration::from_millis(10));
        assert_eq!(old.end.fate(), Fate::Open, "two puts were promised their places");
        old.send_rest(&mac, &value(1, 2 * MIB), MIB);
        assert_eq!(old.data_reply(&mut machine).status, Status::Ok);
        let refused = old.offer(&mut machine, "third", MIB).expect_err("no more");
        assert_eq!(refused.status, Status::ShuttingDown);
        old.send_data(second, &value(2, MIB), None);
        assert_eq!(old.data_reply(&mut machine).status, Status::Ok);
        farewell(&mut machine, &mut old);
        let mut new = machine.client_with(reactor, 2, OTHER).expect("welcome");
        assert!(new.get(&mut machine, "first").1 == value(1, 2 * MIB));
        assert!(new.get(&mut machine, "second").1 == value(2, MIB));
        machine.assert_at_rest();
        machine.reload(&[(1, KEY, "tenant")]);
    }
}

#[test]
fn a_retired_session_that_does_not_go_is_cut_off() {
    let mut machine = Machine::new(Options::default());
    let mut old = machine.client(1);
    old.offer(&mut machine, "k", MIB).expect("wanted");
    machine.reload(&[]);
    machine.pass(SessionLimits::default().deadline + Duration::from_secs(1));
    assert_ne!(old.end.fate(), Fate::Open);
    machine.assert_at_rest();
}

#[test]
fn other_limits_hold_from_now_on() {
    let mut machine = Machine::new(Options::default());
    let mut before = machine.client(1);
    let told = before.limits;
    let limits = SessionLimits {
        credits: told.credits + 1,
        requests: told.max_requests + 1,
        value: MIB as u64,
        lease: Duration::from_secs(2),
        ..SessionLimits::default()
    };
    machine.contexts.iter().for_each(|context| context.set_limits(limits));
    let after = machine.client(1).limits;
    assert_eq!((after.credits, after.max_requests), (limits.credits, limits.requests));
    assert_eq!((after.max_value, after.lease_ms_max), (MIB as u64, 2000));
    assert!(told.max_value > after.max_value && told.lease_ms_max > after.lease_ms_max);

    let refused = before.offer(&mut machine, "k", MIB + 1).expect_err("too large");
    assert_eq!(refused.status, Status::TooLarge);
    assert_eq!(before.put(&mut machine, "k", &value(1, MIB)).status, Status::Ok);
}

#[test]
fn a_namespace_lives_as_long_as_the_setting_of_the_moment() {
    let mut machine = Machine::new(Options::default());
    let mut client = machine.client(1);
    assert_eq!(client.put(&mut machine, "before", &value(1, 100)).status, Status::Ok);
    let rule = NamespaceLimits { name: "tests".into(), ttl_seconds: 10, ttl_max_seconds: 0 };
    machine.contexts.iter().for_each(|context| context.set_namespaces(vec![rule.clone()]));
    assert_eq!(client.put(&mut machine, "after", &value(2, 100)).status, Status::Ok);
    machine.pass(Duration::from_secs(12));
    assert_eq!(client.get(&mut machine, "before").0.status, Status::Ok);
    assert_eq!(client.get(&mut machine, "after").0.reason, MissReason::Expired);
}
