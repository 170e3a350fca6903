//! Large values that go with their offer.

mod common;

use std::time::Duration;

use common::{ABSENT, REPLACE, Setup, TestServer, Trick, config, key_of, pair, pattern};
use memkv_client::{Client, ClientError, GatherItem, PutItem, PutOptions, PutOutcome};
use memkv_wire::handshake::Limits;
use memkv_wire::{Opcode, Status};

const MIB: usize = 1 << 20;

/// A server that takes them, and a client of which it has wanted two values.
fn trusted() -> (TestServer, Client) {
    let setup = Setup { payload_with_offer: true, ..Setup::default() };
    let limits = Limits { max_value: 16 << 20, ..setup.limits };
    let (server, client) = pair(Setup { limits, ..setup });
    for key in ["first", "second"] {
        let put = client.put(key.as_bytes(), &pattern(MIB, 1), &ABSENT).expect("put");
        assert!(matches!(put, PutOutcome::Stored { .. }));
    }
    assert_eq!(sent(&server), [(1, 0), (1, 0)], "offered first");
    (server, client)
}

/// Of each offer so far its items and the bytes that came with it.
fn sent(server: &TestServer) -> Vec<(usize, u64)> {
    server.seen(Opcode::Offer).iter().map(|seen| (seen.items, seen.payload)).collect()
}

#[test]
fn a_lone_value_goes_along_once_some_were_wanted() {
    let (server, client) = trusted();
    let (whole, pieces) = (pattern(3 * MIB + 7, 2), pattern(2 * MIB, 3));
    assert!(client.put(b"whole", &whole, &ABSENT).is_ok());
    let (front, back) = pieces.split_at(MIB + 1000);
    let item = GatherItem { key: b"pieces", pieces: &[front, back], options: ABSENT, parent: None };
    assert!(client.put_gathered(&[item]).iter().all(Result::is_ok));
    assert_eq!(sent(&server)[2..], [(1, whole.len() as u64), (1, pieces.len() as u64)]);
    assert_eq!(server.seen(Opcode::Data).len(), 2, "of those that were offered first");
    let world = server.world();
    assert!(world.blocks[&b"whole"[..]].value == whole);
    assert!(world.blocks[&b"pieces"[..]].value == pieces);
}

#[test]
fn several_values_and_long_ones_are_offered_first() {
    let (server, client) = trusted();
    assert!(client.put(b"long", &pattern(4 * MIB + 1, 2), &ABSENT).is_ok());
    let value = pattern(MIB, 3);
    let item = |key| PutItem { key, value: &value, options: ABSENT, parent: None };
    let put = client.put_batch(&[item(b"a"), item(b"b")]);
    assert!(put.iter().all(Result::is_ok), "{put:?}");
    assert_eq!(sent(&server)[2..], [(1, 0), (2, 0)]);
}

#[test]
fn one_server_that_does_not_read_keeps_no_other_waiting() {
    let setup = Setup { payload_with_offer: true, ..Setup::default() };
    let servers = [TestServer::start(setup.clone()), TestServer::start(setup)];
    let client = Client::new(config(&[&servers[0], &servers[1]])).expect("a client");
    let value = pattern(2 * MIB, 1);
    for round in 0..3 {
        for server in &servers {
            assert!(client.put(&key_of(&client, server, round), &value, &ABSENT).is_ok());
        }
    }
    for server in &servers {
        assert_eq!(sent(server)[2], (1, value.len() as u64), "alone it goes along");
        server.play(Opcode::Offer, Trick::Silent);
    }
    let keys = servers.each_ref().map(|server| key_of(&client, server, 9));
    let options = PutOptions { deadline: Some(Duration::from_millis(500)), ..ABSENT };
    let item = |key| PutItem { key, value: &value, options, parent: None };
    let put = client.put_batch(&[item(&keys[0]), item(&keys[1])]);
    assert!(put.iter().all(|put| matches!(put, Err(ClientError::Timeout { .. }))), "{put:?}");
    for server in &servers {
        assert_eq!(sent(server)[3], (1, 0), "each was asked, without bytes that it may not read");
    }
}

#[test]
fn after_one_that_was_there_already_the_next_are_offered_first() {
    let (server, client) = trusted();
    let put = client.put(b"first", &pattern(MIB, 2), &ABSENT).expect("an answer");
    let PutOutcome::Present { length, .. } = put else { panic!("{put:?}") };
    assert_eq!(length, MIB as u64);
    for round in 0..64 {
        assert!(client.put(b"again", &pattern(300_000, round), &REPLACE).is_ok());
    }
    assert!(client.put(b"along", &pattern(MIB, 4), &ABSENT).is_ok());
    let sent = sent(&server);
    assert_eq!(sent[2], (1, MIB as u64), "in vain");
    assert!(sent[3..67].iter().all(|offer| *offer == (1, 0)), "{sent:?}");
    assert_eq!(sent[67..], [(1, MIB as u64)]);
}

#[test]
fn a_busy_server_is_asked_again_without_the_bytes() {
    let (server, client) = trusted();
    server.play(Opcode::Offer, Trick::First(Status::Busy, 1));
    server.play(Opcode::Offer, Trick::Refuse(Status::Busy, 1));
    for key in ["busy", "refused"] {
        let value = pattern(MIB, 5);
        assert!(client.put(key.as_bytes(), &value, &ABSENT).is_ok());
        assert!(server.world().blocks[key.as_bytes()].value == value);
    }
    let sent = sent(&server);
    assert_eq!(sent[2..4], [(1, MIB as u64), (1, 0)], "{sent:?}");
    assert!(sent[4..].iter().all(|offer| *offer == (1, 0)), "{sent:?}");
    let ids: Vec<u64> = server.seen(Opcode::Offer).iter().map(|seen| seen.request_id).collect();
    assert!(ids.is_sorted_by(|a, b| a < b), "each is a new request: {ids:?}");
}

#[test]
fn one_whose_answer_is_lost_is_repeated_under_its_name_and_happens_once() {
    let (server, client) = trusted();
    server.play(Opcode::Offer, Trick::CloseAfter);
    let put = client.put(b"k", &pattern(MIB, 6), &REPLACE).expect("put");
    assert_eq!(put, PutOutcome::Stored { generation: 3 }, "of the first time");
    let offers = server.seen(Opcode::Offer);
    let (lost, again) = (&offers[2], &offers[3]);
    assert_eq!((lost.payload, again.payload), (MIB as u64, 0), "a new connection offers first");
    assert_eq!((lost.request_id, lost.client_id), (again.request_id, again.client_id));
    assert_ne!(lost.connection, again.connection);
    assert_eq!(server.world().generations, 3);
}

#[test]
fn wrong_answers_end_the_connection() {
    for trick in [Trick::First(Status::Want, 0), Trick::OtherRequest, Trick::BadMac] {
        let (server, client) = trusted();
        server.play(Opcode::Offer, trick);
        let put = client.put(b"k", &pattern(MIB, 7), &REPLACE);
        assert!(matches!(put, Err(ClientError::Broken { .. })), "{trick:?}: {put:?}");
        assert!(client.put(b"k", &pattern(MIB, 8), &REPLACE).is_ok());
        let offers = server.seen(Opcode::Offer);
        assert_ne!(offers[2].connection, offers[3].connection, "{trick:?}");
    }
}
