//! Payload that a server on this machine names: the client reads it there, and believes its CRC.

#![cfg(target_os = "linux")]

mod common;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use common::{ABSENT, Setup, Shown, TestServer, Trick, config, pair, pattern};
use memkv_client::{Client, Config, GetItem, GetOutcome, MissReason, Transport};
use memkv_wire::Opcode;

fn shown() -> (Arc<Shown>, Setup) {
    let shown = Arc::new(Shown::new());
    let setup = Setup { shows: Some(shown.clone()), ..Setup::default() };
    (shown, setup)
}

fn named(shown: &Shown) -> u64 {
    shown.named.load(Ordering::Relaxed)
}

#[test]
fn what_is_named_is_read_wherever_it_goes() {
    let (shown, setup) = shown();
    for backwards in [false, true] {
        let (_server, client) = pair(Setup { backwards, ..setup.clone() });
        let values: Vec<Vec<u8>> =
            [1, 70_000, 1 << 20, (3 << 20) + 17].map(|len| pattern(len, len as u32)).into();
        for (at, value) in values.iter().enumerate() {
            client.put(format!("{at}").as_bytes(), value, &ABSENT).expect("a put");
        }
        let before = named(&shown);
        let mut got = Vec::new();
        for (at, value) in values.iter().enumerate() {
            assert!(client.get(format!("{at}").as_bytes(), &mut got).expect("a get").is_hit());
            assert!(got == *value, "{at}");
        }
        let all: usize = values.iter().map(Vec::len).sum();
        assert_eq!(named(&shown) - before, all as u64);
        // A batch with a miss in it, a range, and a place that is too short for the value.
        let mut places = [70_000, 9, 1 << 20, 2 << 20].map(|len| vec![0; len]);
        let keys: [(&[u8], u64); 4] = [(b"1", 0), (b"none", 0), (b"2", 0), (b"3", (1 << 20) - 5)];
        let items = keys.into_iter().zip(&mut places);
        let mut items: Vec<_> =
            items.map(|((key, offset), buf)| GetItem { key, offset, buf }).collect();
        let outcomes = client.get_batch(&mut items);
        let hits: Vec<bool> =
            outcomes.iter().map(|outcome| outcome.as_ref().is_ok_and(GetOutcome::is_hit)).collect();
        assert_eq!(hits, [true, false, true, true], "{outcomes:?}");
        assert!(places[0] == values[1] && places[2] == values[2]);
        assert!(places[3] == values[3][(1 << 20) - 5..][..2 << 20]);
    }
}

#[test]
fn wrong_bytes_are_a_miss_and_reported() {
    let (_, setup) = shown();
    let (server, client) = pair(setup);
    client.put(b"k", &pattern(200_000, 1), &ABSENT).expect("a put");
    server.play(Opcode::Get, Trick::BadCrc);
    let mut place = vec![0; 200_000];
    let outcome = client.get_into(b"k", 0, &mut place).expect("an answer");
    assert_eq!(outcome, GetOutcome::Miss(MissReason::Corrupt));
    assert_eq!(server.world().suspects.len(), 1);
    assert!(client.get_into(b"k", 0, &mut place).expect("a get").is_hit(), "it goes on");
    assert_eq!(server.seen(Opcode::Get).iter().map(|seen| seen.connection).max(), Some(0));
}

#[test]
fn a_server_that_names_what_it_does_not_show_is_not_believed() {
    let (_, setup) = shown();
    let (server, client) = pair(setup);
    client.put(b"k", &pattern(200_000, 1), &ABSENT).expect("a put");
    let mut buf = vec![0; 100_000];
    for (trick, words) in [(Trick::Beyond, "beyond"), (Trick::TooMuch, "another range")] {
        server.play(Opcode::Get, trick);
        let error = client.get_into(b"k", 0, &mut buf).expect_err("it makes no sense");
        assert!(format!("{error:?}").contains(words), "{error:?}");
        assert!(client.get_into(b"k", 0, &mut buf).expect("a get").is_hit());
    }
}

#[test]
fn without_windows_payload_is_sent() {
    // Because it is told so, and because nobody opens.
    for transport in [Transport::Tcp, Transport::Auto] {
        let (shown, setup) = shown();
        if transport == Transport::Auto {
            shown.close();
        }
        let server = TestServer::start(setup);
        let client = Client::new(Config { transport, ..config(&[&server]) }).expect("a client");
        let value = pattern(300_000, 1);
        client.put(b"k", &value, &ABSENT).expect("a put");
        let mut got = Vec::new();
        assert!(client.get(b"k", &mut got).expect("a get").is_hit() && got == value);
        assert_eq!(named(&shown), 0);
    }
}

/// Or a server that is started again would find its memory taken.
#[test]
fn the_first_call_after_a_server_is_gone_lets_go_of_its_memory() {
    let (shown, setup) = shown();
    let server = TestServer::start(setup);
    let address = server.address.clone();
    let config = Config { num_connections: 3, ..config(&[&server]) };
    let client = Client::new(config).expect("a client");
    client.put(b"k", &pattern(100_000, 1), &ABSENT).expect("a put");
    assert!(!shown.is_read(), "nothing was asked for");
    while server.shared.open.load(Ordering::SeqCst) < 3 {
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    let mut bytes = vec![0; 100_000];
                    assert!(client.get_into(b"k", 0, &mut bytes).expect("a get").is_hit());
                });
            }
        });
    }
    assert!(shown.is_read());
    drop(server);
    let _again = TestServer::start_at(&address, Setup::default());
    assert!(client.put(b"k", b"anew", &ABSENT).is_ok());
    assert!(!shown.is_read(), "no link has it any more");
}
