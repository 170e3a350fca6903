//! What a client does with a server that does not work.

mod common;

use std::time::{Duration, Instant};

use common::{ABSENT, REPLACE, Setup, Trick, config, pair, pattern};
use memkv_client::{
    Client, ClientError, Config, GetItem, GetOutcome, LinkFault, MissReason, PutItem, PutOptions,
    PutOutcome, SharedKey, Status,
};
use memkv_wire::Opcode;

fn hurried(ms: u64) -> PutOptions {
    PutOptions { deadline: Some(Duration::from_millis(ms)), ..ABSENT }
}

/// The fault behind an error that leaves the outcome open.
fn broken<T: std::fmt::Debug>(result: Result<T, ClientError>) -> String {
    match result {
        Err(ClientError::Broken { source, .. }) => format!("{source:?}"),
        other => panic!("expected a broken connection, got {other:?}"),
    }
}

#[test]
fn a_forged_reply_ends_the_connection_and_nothing_else() {
    let (server, client) = pair(Setup::default());
    client.put(b"k", b"value", &ABSENT).expect("put");
    server.play(Opcode::Get, Trick::BadMac);
    let mut buf = Vec::new();
    assert!(broken(client.get(b"k", &mut buf)).contains("BadMac"));
    // The next call has a connection of its own.
    assert!(client.get(b"k", &mut buf).expect("get").is_hit());
    let gets = server.seen(Opcode::Get);
    assert_eq!((gets[0].connection, gets[1].connection), (0, 1));
    assert_eq!(gets.len(), 2, "a forged reply is not asked for again");
}

#[test]
fn replies_that_fit_nothing_end_the_connection() {
    let (server, client) = pair(Setup::default());
    let value = pattern(300_000, 1);
    let mut buf = vec![0; 300_000];
    client.put(b"k", &value, &ABSENT).expect("put");
    for opcode in [Opcode::Get, Opcode::Exists, Opcode::MatchPrefix, Opcode::Put, Opcode::Offer] {
        server.play(opcode, Trick::OtherRequest);
    }
    assert!(broken(client.get_into(b"k", 0, &mut buf)).contains("no request"));
    assert!(broken(client.put(b"a", b"1", &ABSENT)).contains("no request"));
    assert!(broken(client.put(b"b", &value, &ABSENT)).contains("no request"));
    // For what only looks, a server that makes no sense is a server that is not there.
    assert_eq!(client.exists(&[b"k"]).expect("exists"), [false]);
    assert_eq!(client.match_prefix(&[b"k"]).expect("match"), 0);
    server.play(Opcode::Get, Trick::TooMuch);
    assert!(broken(client.get_into(b"k", 0, &mut buf[..1000])).contains("another range"));
    server.play(Opcode::Get, Trick::First(Status::Want, 0));
    assert!(broken(client.get_into(b"k", 0, &mut buf)).contains("does not have"));
    assert!(client.get_into(b"k", 0, &mut buf).expect("get").is_hit());
}

#[test]
fn wrong_bytes_are_a_miss_and_reported() {
    for trailer in [false, true] {
        let (server, client) = pair(Setup { trailer, ..Setup::default() });
        let keys: [&[u8]; 3] = [b"a", b"b", b"c"];
        for key in keys {
            client.put(key, &pattern(100_000, 1), &ABSENT).expect("put");
        }
        server.play(Opcode::Get, Trick::BadCrc);
        let mut bufs = vec![vec![0; 100_000]; 3];
        let mut items: Vec<_> =
            keys.iter().zip(&mut bufs).map(|(key, buf)| GetItem { key, offset: 0, buf }).collect();
        let results = client.get_batch(&mut items);
        let outcomes: Vec<_> = results.into_iter().map(|result| result.expect("get")).collect();
        assert_eq!(outcomes[0], GetOutcome::Miss(MissReason::Corrupt));
        assert!(outcomes[1].is_hit() && outcomes[2].is_hit());
        assert_eq!(server.world().suspects, [(b"a".to_vec(), 1)]);
    }
}

#[test]
fn a_connection_that_breaks_is_replaced_and_the_request_repeated() {
    let (server, client) = pair(Setup::default());
    let value = pattern(200_000, 1);
    client.put(b"k", &value, &ABSENT).expect("put");
    let mut buf = Vec::new();
    for trick in [Trick::CloseInPayload, Trick::CloseBefore, Trick::Goodbye] {
        server.play(Opcode::Get, trick);
        assert!(client.get(b"k", &mut buf).expect("the second time").is_hit());
        assert!(buf == value);
    }
    // Twice is too much.
    server.play(Opcode::Get, Trick::CloseInPayload);
    server.play(Opcode::Get, Trick::CloseInPayload);
    assert!(broken(client.get(b"k", &mut buf)).contains("Net"));
    assert!(client.get(b"k", &mut buf).expect("get").is_hit());
}

#[test]
fn a_batch_goes_on_where_it_broke() {
    let (server, client) = pair(Setup::default());
    let keys: Vec<_> = (0..5).map(|at| format!("k{at}").into_bytes()).collect();
    let values: Vec<_> = (0..5).map(|at| pattern(50_000, at)).collect();
    for (key, value) in keys.iter().zip(&values) {
        client.put(key, value, &ABSENT).expect("put");
    }
    server.play(Opcode::Get, Trick::CloseInPayload);
    let mut bufs = vec![vec![0; 50_000]; 5];
    let mut items: Vec<_> =
        keys.iter().zip(&mut bufs).map(|(key, buf)| GetItem { key, offset: 0, buf }).collect();
    assert!(client.get_batch(&mut items).into_iter().all(|r| r.expect("get").is_hit()));
    assert!(bufs == values);
}

#[test]
fn a_repeated_put_carries_the_same_name_and_happens_once() {
    let (server, client) = pair(Setup::default());
    server.play(Opcode::Put, Trick::CloseAfter);
    let put = client.put(b"k", b"value", &REPLACE).expect("put");
    assert_eq!(put, PutOutcome::Stored { generation: 1 });
    let puts = server.seen(Opcode::Put);
    assert_eq!(puts.len(), 2);
    assert_eq!(puts[0].request_id, puts[1].request_id);
    assert_eq!(puts[0].client_id, puts[1].client_id);
    assert_ne!(puts[0].connection, puts[1].connection);
    assert_eq!(server.world().generations, 1);
    // The same for a large one: offer and data again, under the same name.
    let value = pattern(400_000, 1);
    server.play(Opcode::Data, Trick::CloseAfter);
    client.put(b"large", &value, &ABSENT).expect("present the second time");
    let offers = server.seen(Opcode::Offer);
    assert_eq!(offers.len(), 2);
    assert_eq!(offers[0].request_id, offers[1].request_id);
    // And for a delete.
    server.play(Opcode::Delete, Trick::CloseAfter);
    client.delete(b"large", None).expect("delete");
    let deletes = server.seen(Opcode::Delete);
    assert_eq!((deletes.len(), deletes[0].request_id), (2, deletes[1].request_id));
}

#[test]
fn a_busy_server_is_asked_again_as_a_new_request() {
    let (server, client) = pair(Setup::default());
    let value = pattern(400_000, 1);
    for trick in [Trick::First(Status::Busy, 3), Trick::Refuse(Status::Busy, 3)] {
        server.world().seen.clear();
        for opcode in [Opcode::Put, Opcode::Offer, Opcode::Get, Opcode::Delete, Opcode::Exists] {
            server.play(opcode, trick);
            server.play(opcode, trick);
        }
        let began = Instant::now();
        client.put(b"small", b"1", &ABSENT).expect("put");
        assert!(began.elapsed() >= Duration::from_millis(6), "the server's wish is respected");
        client.put(b"large", &value, &ABSENT).expect("put");
        let mut buf = Vec::new();
        assert!(client.get(b"large", &mut buf).expect("get").is_hit());
        assert_eq!(client.exists(&[b"small"]).expect("exists"), [true]);
        assert!(client.delete(b"small", None).expect("delete"));
        client.delete(b"large", None).expect("delete");
        let puts = server.seen(Opcode::Put);
        assert_eq!(puts.len(), 3);
        assert!(puts[0].request_id != puts[1].request_id, "busy means that nothing was done");
        assert!(puts.iter().all(|put| put.connection == 0), "busy is no fault");
    }
}

#[test]
fn only_the_busy_items_of_a_batch_are_asked_for_again() {
    let (server, client) = pair(Setup::default());
    let value = pattern(300_000, 1);
    let keys: [&[u8]; 3] = [b"a", b"b", b"c"];
    let items = keys.map(|key| PutItem { key, value: &value, options: ABSENT, parent: None });
    server.play(Opcode::Offer, Trick::First(Status::LimitExceeded, 0));
    for result in client.put_batch(&items) {
        assert!(matches!(result, Ok(PutOutcome::Stored { .. })), "{result:?}");
    }
    let offers: Vec<_> = server.seen(Opcode::Offer).iter().map(|seen| seen.items).collect();
    assert_eq!(offers, [3, 1]);
    assert_eq!(server.seen(Opcode::Data).len(), 3);
}

#[test]
fn a_server_that_stays_busy_is_given_up_at_the_deadline() {
    let (server, client) = pair(Setup::default());
    (0..10_000).for_each(|_| server.play(Opcode::Put, Trick::First(Status::Busy, 5)));
    let began = Instant::now();
    // Pauses are long by then, so that the end comes in one and not while an answer is awaited.
    let result = client.put(b"k", b"1", &hurried(2000));
    assert!(matches!(result, Err(ClientError::Busy { retry_ms: 5, .. })), "{result:?}");
    assert!(began.elapsed() < Duration::from_secs(10));
    let asked = server.seen(Opcode::Put).len();
    assert!((4..=40).contains(&asked), "{asked} times");
}

#[test]
fn a_silent_server_runs_into_the_deadline_and_the_outcome_is_unknown() {
    let (server, client) = pair(Setup::default());
    client.put(b"k", &pattern(100_000, 1), &ABSENT).expect("put");
    server.play(Opcode::Put, Trick::Silent);
    let began = Instant::now();
    let error = client.put(b"k2", b"1", &hurried(1000)).expect_err("no answer");
    assert!(matches!(error, ClientError::Timeout { .. }) && error.is_unknown_outcome());
    assert!(began.elapsed() >= Duration::from_secs(1));
    assert!(began.elapsed() < Duration::from_secs(20));
    // It is not asked again: the time is up. The next call does not see the late reply.
    assert_eq!(server.seen(Opcode::Put).len(), 2);
    let mut buf = Vec::new();
    assert!(client.get(b"k", &mut buf).expect("get").is_hit());
    // Silence in the middle of an answer is the same; for what only looks, it is a miss.
    server.play(Opcode::Get, Trick::SilentInPayload);
    server.play(Opcode::Exists, Trick::Silent);
    let impatient = Config { request_timeout_ms: 2000, ..config(&[&server]) };
    let client = Client::new(impatient).expect("a client");
    client.put(b"k3", b"1", &ABSENT).expect("a link, so that time is lost in silence only");
    let result = client.get(b"k", &mut buf);
    assert!(matches!(result, Err(ClientError::Timeout { .. })), "{result:?}");
    assert_eq!(client.exists(&[b"k"]).expect("exists"), [false]);
}

#[test]
fn refusals_are_told_by_name() {
    let (server, client) = pair(Setup::default());
    let refuse = |status| {
        server.play(Opcode::Put, Trick::First(status, 0));
        client.put(b"k", b"1", &ABSENT).expect_err("refused")
    };
    assert!(matches!(refuse(Status::Full), ClientError::Full { .. }));
    assert!(matches!(refuse(Status::CrcMismatch), ClientError::Corrupt { .. }));
    assert!(matches!(refuse(Status::IoError), ClientError::Io { .. }));
    assert!(matches!(refuse(Status::TooLarge), ClientError::TooLarge { length: 1, .. }));
    assert!(matches!(refuse(Status::ShuttingDown), ClientError::Unavailable { .. }));
    assert!(matches!(refuse(Status::DeadlineExceeded), ClientError::Timeout { .. }));
    let error = refuse(Status::Unsupported);
    assert!(matches!(error, ClientError::Refused { status: Status::Unsupported, .. }));
    server.play(Opcode::Get, Trick::Refuse(Status::Unauthorized, 0));
    let error = client.get(b"k", &mut Vec::new()).expect_err("refused");
    assert!(error.to_string().contains("not now"), "{error}");
    assert!(matches!(error, ClientError::Unauthorized { .. }));
}

#[test]
fn a_wrong_key_is_hinted_at() {
    let key = SharedKey::from_bytes([7; 32]);
    let (_server, client) = pair(Setup { key, ..Setup::default() });
    let result = client.put(b"k", b"1", &ABSENT);
    let Err(ClientError::Unavailable { source, .. }) = result else {
        panic!("a server that hangs up is not available: {result:?}");
    };
    assert!(matches!(*source, LinkFault::Handshake(_)));
    assert!(source.to_string().contains("is the key the right one?"));
}

#[test]
fn a_refused_handshake_is_told_by_name() {
    let refused = |status| {
        let (_server, client) = pair(Setup { refuse: Some(status), ..Setup::default() });
        client.put(b"k", b"1", &ABSENT).expect_err("refused")
    };
    assert!(matches!(refused(Status::Unauthorized), ClientError::Unauthorized { .. }));
    assert!(matches!(refused(Status::ShuttingDown), ClientError::Unavailable { .. }));
    let error = refused(Status::UnsupportedVersion);
    assert!(matches!(error, ClientError::Refused { status: Status::UnsupportedVersion, .. }));
    assert!(error.to_string().contains("go away"), "{error}");
}
