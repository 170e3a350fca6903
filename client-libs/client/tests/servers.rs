//! Servers that come and go, and the connections to them.

mod common;

use std::sync::Barrier;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use common::{Setup, TestServer, Trick, config, key_of, pair, pattern};
use memkv_client::{Client, ClientError, Config, GetItem, PutItem, PutMode, PutOptions};
use memkv_wire::Opcode;

const ABSENT: PutOptions = PutOptions {
    mode: PutMode::Absent,
    ttl_seconds: 0,
    durable: false,
    pin_seconds: 0,
    deadline: None,
};
/// Far longer than anything here takes, far shorter than the timeouts that must not be waited for.
const SWIFT: Duration = Duration::from_secs(5);

#[test]
fn a_dead_server_costs_its_own_keys_only() {
    let (alive, dead) = (TestServer::start(Setup::default()), TestServer::start(Setup::default()));
    let client = Client::new(config(&[&alive, &dead])).expect("a client");
    let (here, gone) = (key_of(&client, &alive, 0), key_of(&client, &dead, 0));
    for key in [&here, &gone] {
        client.put(key, b"value", &ABSENT).expect("put");
    }
    drop(dead);
    let began = Instant::now();
    let (mut a, mut b) = ([0; 5], [0; 5]);
    let mut items = [
        GetItem { key: &gone, offset: 0, buf: &mut a },
        GetItem { key: &here, offset: 0, buf: &mut b },
    ];
    let results = client.get_batch(&mut items);
    let error = results[0].as_ref().expect_err("it is dead");
    assert!(error.is_server_lost(), "{error:?}");
    assert!(results[1].as_ref().expect("it lives").is_hit());
    let keys: [&[u8]; 2] = [&gone, &here];
    assert_eq!(client.exists(&keys).expect("exists"), [false, true]);
    assert_eq!(client.match_prefix(&keys).expect("match"), 0);
    assert_eq!(client.match_prefix(&[&here, &gone]).expect("match"), 1);
    let puts = client.put_batch(&keys.map(|key| PutItem {
        key,
        value: b"other",
        options: ABSENT,
        parent: None,
    }));
    assert!(matches!(puts[0], Err(ClientError::Unavailable { .. })), "{:?}", puts[0]);
    assert!(puts[1].is_ok());
    let stats = client.server_stats();
    assert!(stats[0].1.is_ok() && stats[1].1.is_err());
    assert!(began.elapsed() < SWIFT, "nothing waits for a dead server");
}

#[test]
fn a_server_that_is_back_is_found() {
    let server = TestServer::start(Setup::default());
    let address = server.address.clone();
    let client = Client::new(config(&[&server])).expect("a client");
    client.put(b"k", b"value", &ABSENT).expect("put");
    drop(server);
    let mut buf = Vec::new();
    let began = Instant::now();
    assert!(client.get(b"k", &mut buf).is_err());
    let server = TestServer::start_at(&address, Setup::default());
    let mut calls = 0;
    // It is tried again a second after it was found dead, and the call that tries succeeds.
    while client.put(b"k", b"value", &ABSENT).is_err() {
        calls += 1;
        assert!(began.elapsed() < Duration::from_secs(60), "not found after {calls} calls");
        thread::yield_now();
    }
    assert!(began.elapsed() > Duration::from_millis(500), "it was pestered");
    assert!(client.get(b"k", &mut buf).expect("get").is_hit());
    assert_eq!(server.seen(Opcode::Put).len(), 1);
}

#[test]
fn a_server_that_restarted_between_two_calls_is_not_even_noticed() {
    let server = TestServer::start(Setup::default());
    let address = server.address.clone();
    let client = Client::new(config(&[&server])).expect("a client");
    client.put(b"k", b"value", &ABSENT).expect("put");
    drop(server);
    let _server = TestServer::start_at(&address, Setup::default());
    client.put(b"k", b"value", &ABSENT).expect("put");
}

#[test]
fn a_server_that_takes_connections_and_says_nothing_is_given_up_by_the_connect_timeout() {
    let alive = TestServer::start(Setup::default());
    let mute = TestServer::start(Setup { mute: true, ..Setup::default() });
    let mut config = config(&[&alive, &mute]);
    config.connect_timeout_ms = 100;
    let client = Client::new(config).expect("a client");
    let (here, gone) = (key_of(&client, &alive, 0), key_of(&client, &mute, 0));
    let keys: [&[u8]; 2] = [&gone, &here];
    // The timeout is the living one's, too, until there is a link to it.
    let began = Instant::now();
    while client.put(&here, b"v", &ABSENT).is_err() {
        assert!(began.elapsed() < Duration::from_secs(60), "it lives");
        thread::yield_now();
    }
    let put = |_| {
        client.put_batch(&keys.map(|key| PutItem {
            key,
            value: b"v",
            options: ABSENT,
            parent: None,
        }))
    };
    for results in (0..100).map(put) {
        assert!(matches!(results[0], Err(ClientError::Unavailable { .. })), "{:?}", results[0]);
        assert!(results[1].is_ok());
    }
    assert!(mute.shared.open_max.load(Ordering::SeqCst) <= 2, "a call, and perhaps a probe");
}

#[test]
fn a_server_that_falls_silent_in_an_answer_leaves_time_for_the_others() {
    let servers: Vec<_> = (0..2).map(|_| TestServer::start(Setup::default())).collect();
    let mut config = config(&[&servers[0], &servers[1]]);
    config.request_timeout_ms = 5000;
    let client = Client::new(config).expect("a client");
    let value = pattern(100_000, 1);
    let keys = [key_of(&client, &servers[0], 0), key_of(&client, &servers[1], 0)];
    for key in &keys {
        client.put(key, &value, &ABSENT).expect("put");
    }
    servers[0].play(Opcode::Get, Trick::SilentInPayload);
    let (mut a, mut b) = (vec![0; 100_000], vec![0; 100_000]);
    let mut items = [
        GetItem { key: &keys[0], offset: 0, buf: &mut a },
        GetItem { key: &keys[1], offset: 0, buf: &mut b },
    ];
    let results = client.get_batch(&mut items);
    assert!(matches!(results[0], Err(ClientError::Timeout { .. })), "{:?}", results[0]);
    assert!(results[1].as_ref().expect("get").is_hit());
    assert!(b == value);
}

#[test]
fn threads_share_the_connections_and_all_get_their_turn() {
    let server = TestServer::start(Setup::default());
    let client =
        Client::new(Config { num_connections: 2, ..config(&[&server]) }).expect("a client");
    let barrier = Barrier::new(8);
    thread::scope(|scope| {
        for number in 0..8_u32 {
            let (client, barrier) = (client.clone(), &barrier);
            scope.spawn(move || {
                barrier.wait();
                let value = pattern(50_000, number);
                let mut buf = Vec::new();
                for round in 0..25 {
                    let key = format!("{number} {round}");
                    client.put(key.as_bytes(), &value, &ABSENT).expect("put");
                    assert!(client.get(key.as_bytes(), &mut buf).expect("get").is_hit());
                    assert!(buf == value);
                }
            });
        }
    });
    assert!(server.shared.open_max.load(Ordering::SeqCst) <= 2);
    assert_eq!(server.seen(Opcode::Put).len(), 200);
    // Request ids are never used twice by one client.
    let mut ids: Vec<_> = server.world().seen.iter().map(|seen| seen.request_id).collect();
    let count = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), count);
}

#[test]
fn a_call_waits_for_a_connection_until_its_deadline_and_no_longer() {
    let (server, _) = pair(Setup::default());
    let config = Config { num_connections: 1, request_timeout_ms: 3000, ..config(&[&server]) };
    let client = Client::new(config).expect("a client");
    client.put(b"k", b"value", &ABSENT).expect("put");
    server.play(Opcode::Get, Trick::Silent);
    thread::scope(|scope| {
        let holder = scope.spawn(|| client.get(b"k", &mut Vec::new()));
        while server.seen(Opcode::Get).is_empty() {
            thread::yield_now();
        }
        let hurried = PutOptions { deadline: Some(Duration::from_millis(50)), ..ABSENT };
        let began = Instant::now();
        let result = client.put(b"other", b"1", &hurried);
        assert!(matches!(result, Err(ClientError::Busy { retry_ms: 0, .. })), "{result:?}");
        assert!(began.elapsed() >= Duration::from_millis(50));
        // A patient one gets the connection that replaces the silent one.
        let patient = PutOptions { deadline: Some(Duration::from_secs(20)), ..ABSENT };
        client.put(b"other", b"1", &patient).expect("put");
        let held = holder.join().expect("no panic");
        assert!(matches!(held, Err(ClientError::Timeout { .. })), "{held:?}");
    });
}
