//! Puts to a server on this machine, which takes their payload out of the client's memory.

#![cfg(target_os = "linux")]

mod common;

use std::sync::Arc;

use common::{ABSENT, REPLACE, Seen, Setup, Shown, TestServer, Trick, config, pair, pattern};
use memkv_client::{Client, ClientError, Config, GatherItem, PutItem, PutOutcome, Transport};
use memkv_wire::handshake::Limits;
use memkv_wire::{Opcode, Status};

const MOST: usize = 256 << 10;

fn setup() -> Setup {
    Setup { shows: Some(Arc::new(Shown::new())), takes_staged: true, ..Setup::default() }
}

/// Puts that came, and how many bytes of payload came with them.
fn puts(server: &TestServer) -> (usize, u64) {
    let seen = server.seen(Opcode::Put);
    (seen.len(), seen.iter().map(|seen: &Seen| seen.payload).sum())
}

fn stored(server: &TestServer, key: &[u8]) -> Vec<u8> {
    server.world().blocks.get(key).expect("it is stored").value.clone()
}

#[test]
fn payload_is_laid_down_where_that_is_of_use() {
    let (server, client) = pair(setup());
    let lengths = [1, (16 << 10) - 1, 16 << 10, 100_003, MOST, MOST + 1];
    let mut sent = 0;
    for (at, length) in lengths.into_iter().enumerate() {
        let (key, value) = (format!("{at}"), pattern(length, at as u32));
        client.put(key.as_bytes(), &value, &ABSENT).expect("a put");
        assert!(stored(&server, key.as_bytes()) == value, "{length}");
        sent += if length < 16 << 10 { length as u64 } else { 0 };
        assert_eq!(puts(&server).1, sent, "{length}");
    }
    // Values of many pieces, and several to a request.
    let values: Vec<_> = (0..9).map(|at| pattern(30_000 + at, at as u32)).collect();
    let pieces: Vec<Vec<&[u8]>> = values.iter().map(|v| v.chunks(7_001).collect()).collect();
    let keys: Vec<_> = (0..9).map(|at| format!("piece {at}")).collect();
    let items = keys.iter().zip(&pieces).map(|(key, pieces)| GatherItem {
        key: key.as_bytes(),
        pieces,
        options: ABSENT,
        parent: None,
    });
    let outcomes = client.put_gathered(&items.collect::<Vec<_>>());
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Ok(PutOutcome::Stored { .. }))));
    for (key, value) in keys.iter().zip(&values) {
        assert!(stored(&server, key.as_bytes()) == *value);
    }
    assert_eq!(puts(&server).1, sent, "none of it was sent");
}

/// One that answers late, so that all places are taken.
#[test]
fn more_than_there_are_places_for_go_one_after_the_other() {
    let limits = Limits { credits: 32, max_requests: 64, ..Setup::default().limits };
    for lazy in [false, true] {
        let (server, client) = pair(Setup { lazy, limits, ..setup() });
        let values: Vec<_> = (0..60).map(|at| pattern(MOST - at, at as u32)).collect();
        let keys: Vec<_> = (0..60).map(|at| format!("{at}")).collect();
        let items = keys.iter().zip(&values).map(|(key, value)| PutItem {
            key: key.as_bytes(),
            value,
            options: REPLACE,
            parent: None,
        });
        let items: Vec<_> = items.collect();
        for _ in 0..2 {
            assert!(client.put_batch(&items).iter().all(Result::is_ok));
        }
        for (key, value) in keys.iter().zip(&values) {
            assert!(stored(&server, key.as_bytes()) == *value, "{key}");
        }
        assert_eq!(puts(&server), (120, 0));
    }
}

#[test]
fn a_put_that_is_repeated_is_laid_down_again() {
    let (server, client) = pair(setup());
    for (at, trick) in
        [Trick::CloseBefore, Trick::CloseAfter, Trick::Goodbye, Trick::First(Status::Busy, 1)]
            .into_iter()
            .enumerate()
    {
        let (key, value) = (format!("{at}"), pattern(200_000, at as u32));
        server.play(Opcode::Put, trick);
        client.put(key.as_bytes(), &value, &ABSENT).expect("the second time");
        assert!(stored(&server, key.as_bytes()) == value, "{trick:?}");
    }
    assert_eq!(puts(&server), (8, 0));
}

#[test]
fn a_server_that_does_not_find_payload_is_sent_it() {
    let (server, client) = pair(setup());
    let value = pattern(200_000, 1);
    server.play(Opcode::Put, Trick::Refuse(Status::BadRequest, 0));
    client.put(b"k", &value, &ABSENT).expect("it goes again");
    assert!(stored(&server, b"k") == value);
    assert_eq!(puts(&server), (2, 200_000));
    client.put(b"l", &value, &ABSENT).expect("a put");
    assert_eq!(puts(&server), (3, 400_000), "nothing is laid down there for a while");
    // One that is refused for itself is refused for good.
    server.play(Opcode::Put, Trick::Refuse(Status::BadRequest, 0));
    let refused = client.put(b"m", &value, &ABSENT);
    assert!(matches!(refused, Err(ClientError::Refused { .. })), "{refused:?}");
}

#[test]
fn where_it_cannot_be_laid_down_payload_is_sent() {
    let value = pattern(200_000, 1);
    for (transport, takes_staged, closed) in [
        (Transport::Tcp, true, false),
        (Transport::Auto, false, false),
        (Transport::Auto, true, true),
    ] {
        let shown = Arc::new(Shown::new());
        if closed {
            shown.close();
        }
        let server = TestServer::start(Setup { shows: Some(shown), takes_staged, ..setup() });
        let client = Client::new(Config { transport, ..config(&[&server]) }).expect("a client");
        for _ in 0..2 {
            client.put(b"k", &value, &REPLACE).expect("a put");
        }
        assert!(stored(&server, b"k") == value);
        assert_eq!(puts(&server), (2, 400_000), "{transport:?} {takes_staged} {closed}");
    }
}
