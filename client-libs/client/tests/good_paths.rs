//! What a client does with a server that works.

mod common;

use std::time::{Duration, Instant};

use common::{ABSENT, REPLACE, Setup, TestServer, Trick, config, key_of, pair, pattern};
use memkv_client::{
    Batch, Client, ClientError, Config, GatherItem, GetItem, GetOutcome, Hint, Keys, MissReason,
    PutItem, PutMode, PutOptions, PutOutcome, Queue, ScatterItem, StatId, TraceId,
};
use memkv_wire::{Advice, Opcode};

/// Longer than anything here takes.
const WAIT: Duration = Duration::from_secs(20);

fn item<'a>(key: &'a [u8], value: &'a [u8]) -> PutItem<'a> {
    PutItem { key, value, options: ABSENT, parent: None }
}

#[test]
fn values_of_every_size_come_back() {
    for trailer in [false, true] {
        let (server, client) = pair(Setup { trailer, ..Setup::default() });
        let kib = 1 << 10;
        let sizes = [1, 4095, 64 * kib, 256 * kib, 256 * kib + 1, 1024 * kib, 3333 * kib + 7];
        let mut buf = Vec::new();
        for (at, size) in sizes.into_iter().enumerate() {
            let (key, value) = (format!("size {size}"), pattern(size, at as u32));
            let put = client.put(key.as_bytes(), &value, &ABSENT).expect("put");
            assert_eq!(put, PutOutcome::Stored { generation: at as u64 + 1 });
            let got = client.get(key.as_bytes(), &mut buf).expect("get");
            let generation = at as u64 + 1;
            assert_eq!(got, GetOutcome::Hit { length: size as u64, generation });
            assert!(buf == value, "the bytes of {size}");
        }
        // Up to 256 KiB ride inline; larger ones are offered.
        assert_eq!(server.seen(Opcode::Put).len(), 4);
        assert_eq!(server.seen(Opcode::Offer).len(), 3);
        assert_eq!(server.seen(Opcode::Data).len(), 3);
        // One caller needs one connection.
        assert!(server.world().seen.iter().all(|seen| seen.connection == 0));
    }
}

#[test]
fn ranges_are_read_into_the_callers_memory() {
    let setup = Setup::default();
    let limits = memkv_wire::handshake::Limits { extent: 1 << 18, ..setup.limits };
    let (_server, client) = pair(Setup { limits, ..setup });
    let value = pattern(1_000_000, 5);
    client.put(b"k", &value, &ABSENT).expect("put");
    for (offset, length) in [(0, 1), (262_143, 2), (1, 999_999), (500_000, 600_000), (999_999, 1)] {
        let mut buf = vec![0xAA; length];
        let got = client.get_into(b"k", offset as u64, &mut buf).expect("get");
        assert!(matches!(got, GetOutcome::Hit { length: 1_000_000, .. }));
        let count = length.min(value.len() - offset);
        assert!(buf[..count] == value[offset..offset + count], "{offset} {length}");
        assert!(buf[count..].iter().all(|byte| *byte == 0xAA));
    }
    let got = client.get_into(b"k", 0, &mut []).expect("the length alone");
    assert!(matches!(got, GetOutcome::Hit { length: 1_000_000, .. }));
}

#[test]
fn modes_of_a_put_are_kept() {
    for size in [100, 300_000] {
        let (_server, client) = pair(Setup::default());
        let value = pattern(size, 1);
        let Ok(PutOutcome::Stored { generation }) = client.put(b"k", &value, &ABSENT) else {
            panic!("the first put stores");
        };
        let again = client.put(b"k", &pattern(size, 2), &ABSENT).expect("present");
        let PutOutcome::Present { generation: there, length, crcs } = again else {
            panic!("the second put finds it present");
        };
        assert_eq!((there, length), (generation, size as u64));
        assert_eq!(crcs[0], memkv_wire::crc32c(&value), "of the stored bytes, not the offered");
        let other = client.put(b"k", &pattern(size + 1, 2), &ABSENT);
        assert!(
            matches!(other, Err(ClientError::Conflict { length, .. }) if length == size as u64)
        );
        let wrong = PutOptions { mode: PutMode::Generation(generation + 1), ..ABSENT };
        let result = client.put(b"k", &value, &wrong);
        assert!(matches!(result, Err(ClientError::GenerationMismatch { .. })), "{result:?}");
        let right = PutOptions { mode: PutMode::Generation(generation), ..ABSENT };
        let result = client.put(b"k", &pattern(size, 3), &right).expect("replaced");
        assert_eq!(result, PutOutcome::Stored { generation: generation + 1 });
        let result = client.put(b"k", &pattern(7, 4), &REPLACE).expect("replaced");
        assert_eq!(result, PutOutcome::Stored { generation: generation + 2 });
        let mut buf = Vec::new();
        client.get(b"k", &mut buf).expect("get");
        assert!(buf == pattern(7, 4));
    }
}

#[test]
fn small_puts_share_frames_within_credit() {
    let (server, client) = pair(Setup { lazy: true, ..Setup::default() });
    let values: Vec<_> = (0..400_u32).map(|at| pattern(10_000 + at as usize, at)).collect();
    let keys: Vec<_> = (0..400).map(|at| format!("small {at}")).collect();
    let items: Vec<_> =
        keys.iter().zip(&values).map(|(key, value)| item(key.as_bytes(), value)).collect();
    for result in client.put_batch(&items) {
        assert!(matches!(result, Ok(PutOutcome::Stored { .. })), "{result:?}");
    }
    // About 25 of them fit into 256 KiB; that no more frames than credits are out, and none is too
    // large, is asserted by the server.
    let frames = server.seen(Opcode::Put);
    assert!((16..=18).contains(&frames.len()), "{} frames", frames.len());
    assert_eq!(frames.iter().map(|seen| seen.items).sum::<usize>(), 400);
    let world = server.world();
    assert!(
        keys.iter().zip(&values).all(|(key, value)| world.blocks[key.as_bytes()].value == *value)
    );
}

#[test]
fn what_is_present_costs_no_payload() {
    let (server, client) = pair(Setup::default());
    let values: Vec<_> = (0..6).map(|at| pattern(300_000 + at, at as u32)).collect();
    let keys: Vec<_> = (0..6).map(|at| format!("large {at}")).collect();
    client.put(keys[1].as_bytes(), &values[1], &ABSENT).expect("put");
    client.put(keys[4].as_bytes(), &values[4], &ABSENT).expect("put");
    server.world().seen.clear();
    let items: Vec<_> =
        keys.iter().zip(&values).map(|(key, value)| item(key.as_bytes(), value)).collect();
    let results = client.put_batch(&items);
    for (at, result) in results.into_iter().enumerate() {
        let present = matches!(result, Ok(PutOutcome::Present { .. }));
        assert_eq!(present, at == 1 || at == 4, "{at}: {result:?}");
    }
    assert_eq!(server.seen(Opcode::Offer).len(), 1);
    let data = server.seen(Opcode::Data);
    let sent: u64 = data.iter().map(|seen| seen.payload).sum();
    assert_eq!((data.len(), sent), (4, 300_000 * 4 + 2 + 3 + 5));
}

#[test]
fn a_key_may_come_twice_in_a_batch() {
    let (server, client) = pair(Setup::default());
    let value = pattern(300_000, 1);
    let small = pattern(10, 2);
    let items = [item(b"a", &value), item(b"a", &value), item(b"b", &small), item(b"b", &small)];
    let results: Vec<_> = client.put_batch(&items).into_iter().map(|r| r.expect("put")).collect();
    assert!(matches!(results[0], PutOutcome::Stored { .. }));
    assert!(matches!(results[1], PutOutcome::Present { .. }));
    assert!(matches!(results[2], PutOutcome::Stored { .. }));
    assert!(matches!(results[3], PutOutcome::Present { .. }));
    assert_eq!(server.seen(Opcode::Offer).len(), 2);
}

#[test]
fn batches_are_cut_to_the_servers_limit_of_items() {
    let setup = Setup::default();
    let limits = memkv_wire::handshake::Limits { max_items: 7, ..setup.limits };
    let (server, client) = pair(Setup { limits, ..setup });
    let keys: Vec<_> = (0..50).map(|at| format!("key {at}").into_bytes()).collect();
    let refs: Vec<&[u8]> = keys.iter().map(|key| &**key).collect();
    let items: Vec<_> = keys.iter().map(|key| item(key, key)).collect();
    assert!(client.put_batch(&items).iter().all(Result::is_ok));
    assert!(client.exists(&refs).expect("exists").into_iter().all(|there| there));
    assert_eq!(client.match_prefix(&refs).expect("match"), 50);
    server.world().blocks.remove(&keys[20]);
    assert_eq!(client.match_prefix(&refs).expect("match"), 20);
    let mut bufs = vec![[0; 16]; 50];
    let mut gets: Vec<_> = keys
        .iter()
        .zip(&mut bufs)
        .map(|(key, buf)| GetItem { key, offset: 0, buf: &mut buf[..] })
        .collect();
    let hits = client.get_batch(&mut gets).into_iter().map(|r| r.expect("get").is_hit());
    assert_eq!(hits.filter(|hit| *hit).count(), 49);
    assert!(
        keys.iter()
            .zip(&bufs)
            .enumerate()
            .all(|(at, (key, buf))| { at == 20 || &buf[..key.len()] == key.as_slice() })
    );
    // 8 frames of at most 7 items; a match stops after the frame with the gap.
    assert_eq!(server.seen(Opcode::Exists).len(), 8);
    assert_eq!(server.seen(Opcode::MatchPrefix).len(), 8 + 3);
}

#[test]
fn existence_is_asked_in_short_where_the_server_says_so_and_lengths_never_are() {
    for answers_presence in [true, false] {
        let setup = Setup { answers_presence, ..Setup::default() };
        let limits = memkv_wire::handshake::Limits { max_items: 2, ..setup.limits };
        let (server, client) = pair(Setup { limits, ..setup });
        for key in [&b"a"[..], b"c"] {
            assert!(client.put(key, b"value", &ABSENT).is_ok());
        }
        let keys: [&[u8]; 3] = [b"a", b"b", b"c"];
        assert_eq!(client.exists(&keys).expect("exists"), [true, false, true]);
        let seen = |opcode| server.seen(opcode).len();
        let asked = if answers_presence { (2, 0) } else { (0, 2) };
        assert_eq!((seen(Opcode::Presence), seen(Opcode::Exists)), asked, "two keys at most");
        let lengths = client.lengths(&keys).into_iter().map(|length| length.expect("a length"));
        assert_eq!(lengths.collect::<Vec<_>>(), [Some(5), None, Some(5)]);
        assert_eq!((seen(Opcode::Presence), seen(Opcode::Exists)), (asked.0, asked.1 + 2));
        // An answer about another number of keys is none, and takes its connection with it.
        if answers_presence {
            server.play(Opcode::Presence, Trick::TooMuch);
            assert_eq!(client.exists(&keys[..1]).expect("exists"), [false]);
            assert_eq!(client.exists(&keys[..1]).expect("exists"), [true], "on a new connection");
        }
    }
}

#[test]
fn a_question_whose_connection_broke_is_asked_again_as_the_next_one_understands_it() {
    let (server, client) = pair(Setup { answers_presence: true, ..Setup::default() });
    assert!(client.put(b"a", b"value", &ABSENT).is_ok());
    let keys: [&[u8]; 2] = [b"a", b"b"];
    for older in [true, false] {
        server.world().older = older;
        for trick in [Trick::CloseBefore, Trick::CloseAfter] {
            server.world().seen.clear();
            let asked = match client.exists(&keys).map(|_| server.seen(Opcode::Presence).len()) {
                Ok(1) => Opcode::Presence,
                _ => Opcode::Exists,
            };
            server.play(asked, trick);
            server.world().seen.clear();
            assert_eq!(client.exists(&keys).expect("the second time"), [true, false], "{trick:?}");
            let seen = |opcode| server.seen(opcode).len();
            let again = if older { Opcode::Exists } else { Opcode::Presence };
            let all = (seen(Opcode::Presence), seen(Opcode::Exists));
            assert_eq!(all.0 + all.1, 2, "asked twice");
            assert_eq!(seen(again), if again == asked { 2 } else { 1 }, "{trick:?}");
        }
    }
}

#[test]
fn a_batch_over_several_servers_is_answered_item_by_item() {
    let setup = || Setup { backwards: true, ..Setup::default() };
    let servers: Vec<_> = (0..3).map(|_| TestServer::start(setup())).collect();
    let all: Vec<_> = servers.iter().collect();
    let client = Client::new(config(&all)).expect("a client");
    let keys: Vec<_> = (0..90).map(|at| format!("key {at}").into_bytes()).collect();
    let values: Vec<_> = (0..90_u32).map(|at| pattern(9_000 * at as usize + 1, at)).collect();
    let items: Vec<_> = keys.iter().zip(&values).map(|(key, value)| item(key, value)).collect();
    let (odd, _): (Vec<_>, Vec<_>) = items.iter().enumerate().partition(|(at, _)| at % 3 != 0);
    let stored: Vec<_> = odd.into_iter().map(|(_, item)| *item).collect();
    assert!(client.put_batch(&stored).iter().all(Result::is_ok));
    for server in &servers {
        let held = server.world().blocks.len();
        // Where keys go hangs on the ports.
        assert!((2..=50).contains(&held), "{held} of 60 keys on one of three servers");
    }
    let mut bufs: Vec<_> = values.iter().map(|value| vec![0; value.len() + 5]).collect();
    let mut gets: Vec<_> =
        keys.iter().zip(&mut bufs).map(|(key, buf)| GetItem { key, offset: 0, buf }).collect();
    let results = client.get_batch(&mut gets);
    for (at, result) in results.into_iter().enumerate() {
        match result.expect("get") {
            GetOutcome::Hit { length, .. } => {
                assert!(at % 3 != 0 && length == values[at].len() as u64);
                assert!(bufs[at][..values[at].len()] == values[at], "bytes of item {at}");
            }
            GetOutcome::Miss(reason) => assert!(at % 3 == 0 && reason == MissReason::Evicted),
        }
    }
}

#[test]
fn a_prefix_is_matched_over_several_servers_in_one_round() {
    let servers: Vec<_> = (0..3).map(|_| TestServer::start(Setup::default())).collect();
    let client = Client::new(config(&servers.iter().collect::<Vec<_>>())).expect("a client");
    let keys: Vec<_> = (0..64).map(|at| format!("chain {at}").into_bytes()).collect();
    let refs: Vec<&[u8]> = keys.iter().map(|key| &**key).collect();
    assert_eq!(client.match_prefix(&refs).expect("match"), 0);
    assert_eq!(client.match_prefix(&[]).expect("match"), 0);
    for key in &keys[..40] {
        client.put(key, b"block", &ABSENT).expect("put");
    }
    servers.iter().for_each(|server| server.world().seen.clear());
    assert_eq!(client.match_prefix(&refs).expect("match"), 40);
    for server in &servers {
        assert_eq!(server.seen(Opcode::MatchPrefix).len(), 1);
        assert_eq!(server.world().seen.len(), 1);
    }
    client.delete(&keys[17], None).expect("delete");
    assert_eq!(client.match_prefix(&refs).expect("match"), 17);
}

#[test]
fn keys_are_looked_up_leased_and_removed() {
    let (server, client) = pair(Setup::default());
    client.put(b"here", b"12345", &ABSENT).expect("put");
    let keys: [&[u8]; 2] = [b"here", b"gone"];
    assert_eq!(client.exists(&keys).expect("exists"), [true, false]);
    let mut leased = client.lease(&keys, Duration::from_secs(5)).into_iter();
    let hit = leased.next().expect("two").expect("lease");
    assert_eq!(hit, GetOutcome::Hit { length: 5, generation: 1 });
    let miss = leased.next().expect("two").expect("lease");
    assert_eq!(miss, GetOutcome::Miss(MissReason::Never));
    assert!(server.world().leases.contains(b"here".as_slice()));
    let released: Vec<_> = client.release(&keys[..1]).into_iter().map(|r| r.expect("ok")).collect();
    assert_eq!(released, [()]);
    let wrong = client.delete(b"here", Some(9));
    assert!(matches!(wrong, Err(ClientError::GenerationMismatch { generation: 1 })));
    assert!(client.delete(b"here", Some(1)).expect("delete"));
    assert!(!client.delete(b"here", None).expect("delete"));
    client.put(b"more", b"1", &ABSENT).expect("put");
    let removed: Vec<_> =
        client.delete_batch(&[b"here", b"more"]).into_iter().map(|r| r.expect("ok")).collect();
    assert_eq!(removed, [false, true]);
    let stats = client.server_stats();
    assert_eq!(stats.len(), 1);
    assert_eq!(stats[0].0, server.address);
    let counters = stats[0].1.as_ref().expect("stats");
    assert_eq!(counters.get(StatId::Blocks), Some(0));
}

#[test]
fn what_cannot_be_asked_is_refused_before_anybody_is_asked() {
    let (server, client) = pair(Setup::default());
    let long = [b'k'; 513];
    let value = [1; 8];
    let mut buf = Vec::new();
    for key in [&[][..], &long] {
        let bad = |length: usize| length == key.len();
        let put = client.put(key, &value, &ABSENT);
        assert!(matches!(put, Err(ClientError::BadKey { length }) if bad(length)));
        let get = client.get(key, &mut buf);
        assert!(matches!(get, Err(ClientError::BadKey { length }) if bad(length)));
        assert!(matches!(client.exists(&[key]), Err(ClientError::BadKey { .. })));
        assert!(matches!(client.match_prefix(&[b"a", key]), Err(ClientError::BadKey { .. })));
        assert!(matches!(client.delete(key, None), Err(ClientError::BadKey { .. })));
    }
    assert!(matches!(client.put(b"k", &[], &ABSENT), Err(ClientError::EmptyValue)));
    let huge = vec![0; (64 << 20) + 1];
    let result = client.put(b"k", &huge, &ABSENT);
    assert!(matches!(result, Err(ClientError::TooLarge { limit, .. }) if limit == 64 << 20));
    assert!(server.world().seen.is_empty());
    // The server's own limit is smaller; only a connection tells.
    let result = client.put(b"k", &huge[..(4 << 20) + 1], &ABSENT);
    assert!(matches!(result, Err(ClientError::TooLarge { limit, .. }) if limit == 4 << 20));
    assert!(server.world().seen.is_empty());
    // A bad item does not spoil its batch.
    let results = client.put_batch(&[item(&long, &value), item(b"good", &value)]);
    assert!(results[0].is_err() && results[1].is_ok());
}

#[test]
fn a_server_without_credits_is_offered_everything() {
    let setup = Setup::default();
    let limits = memkv_wire::handshake::Limits { credits: 0, ..setup.limits };
    let (server, client) = pair(Setup { limits, ..setup });
    client.put(b"k", b"tiny", &ABSENT).expect("put");
    assert_eq!(server.seen(Opcode::Put).len(), 0);
    assert_eq!(server.seen(Opcode::Data).len(), 1);
}

#[test]
fn weights_and_order_of_servers_do_not_matter_for_finding_a_block() {
    let servers: Vec<_> = (0..3).map(|_| TestServer::start(Setup::default())).collect();
    let all: Vec<_> = servers.iter().collect();
    let one = Client::new(config(&all)).expect("a client");
    let two = Client::new(config(&[all[2], all[0], all[1]])).expect("a client");
    for server in &servers {
        let key = key_of(&one, server, 3);
        one.put(&key, b"value", &ABSENT).expect("put");
        let mut buf = Vec::new();
        assert!(two.get(&key, &mut buf).expect("get").is_hit());
    }
    let heavy = Config { servers: vec![format!("{}*3", servers[0].address)], ..Config::default() };
    let client = Client::new(heavy).expect("a client");
    assert_eq!(*client.server_of(b"any"), *servers[0].address);
}

#[test]
fn hints_and_advice_reach_the_server() {
    let (server, client) = pair(Setup::default());
    let large = vec![7; 300_000];
    let small = &large[..10];
    for (key, value) in [(b"root", small), (b"leaf", small), (b"deep", &large[..])] {
        let pinned = PutOptions { pin_seconds: 30, ..ABSENT };
        let put = match key {
            b"root" => client.put(key, value, &pinned),
            b"leaf" => client.put_after(b"root", key, value, &ABSENT),
            _ => client.put_after(b"leaf", key, value, &pinned),
        };
        assert!(matches!(put, Ok(PutOutcome::Stored { .. })));
    }
    let key = |key: &[u8]| key.to_vec();
    let advised = [
        (key(b"root"), None, 30),
        (key(b"leaf"), Some(key(b"root")), 0),
        (key(b"deep"), Some(key(b"leaf")), 30),
    ];
    assert_eq!(server.world().advised, advised);
    let keys: [&[u8]; 2] = [b"root", b"gone"];
    for hint in [Hint::Release, Hint::Retain, Hint::Pin(Duration::from_millis(1001))] {
        let there: Vec<bool> =
            client.hint(&keys, hint).into_iter().map(|r| r.expect("answered").is_hit()).collect();
        assert_eq!(there, [true, false]);
    }
    let said = |advice, seconds| keys.map(|key| (advice, seconds, key.to_vec()));
    let all = [said(Advice::Release, 0), said(Advice::Retain, 0), said(Advice::Pin, 2)].concat();
    assert_eq!(server.world().hints, all);
    let bad = client.put_after(b"", b"k", b"v", &ABSENT);
    assert!(matches!(bad, Err(ClientError::BadKey { length: 0 })));
}

#[test]
fn a_group_is_stored_whole_or_not_at_all() {
    let (server, client) = pair(Setup::default());
    let group = [item(b"k", b"keys"), item(b"v", b"values")];
    assert_eq!(client.put_group(&group).expect("room for both").len(), 2);
    client.delete_batch(&[b"k"]);
    // Of the second nothing is stored now, for its key has a value of another length.
    let other = [item(b"k", b"more keys"), item(b"v", b"more values"), item(b"w", b"weights")];
    let error = client.put_group(&other).expect_err("one of them cannot be stored");
    assert!(matches!(error, ClientError::Conflict { .. }), "{error:?}");
    let keys: [&[u8]; 3] = [b"k", b"v", b"w"];
    assert_eq!(client.exists(&keys).expect("exists"), [false, true, false]);
    // What was there before is not of the group.
    assert_eq!(server.world().blocks[b"v".as_slice()].value, b"values");
}

#[test]
fn small_values_in_pieces_share_frames_and_keep_their_crcs() {
    let (server, client) = pair(Setup::default());
    let pieces: [&[u8]; 4] = [b"one", b"", b"two", b"three"];
    let keys: Vec<Vec<u8>> = (0..5).map(|at| format!("gathered {at}").into_bytes()).collect();
    let gather = |key, pieces| GatherItem { key, pieces, options: ABSENT, parent: None };
    let items: Vec<GatherItem<'_>> = keys.iter().map(|key| gather(key, &pieces)).collect();
    assert!(client.put_gathered(&items).iter().all(Result::is_ok));
    assert_eq!(server.seen(Opcode::Put).len(), 1, "one frame");
    let (mut a, mut b) = ([0; 4], [0; 20]);
    let places: Vec<&mut [u8]> = vec![&mut a, &mut [], &mut b];
    let mut items = [ScatterItem { key: &keys[3], offset: 1, pieces: places }];
    let results = client.get_scattered(&mut items);
    assert!(matches!(results[0], Ok(GetOutcome::Hit { length: 11, .. })), "{results:?}");
    assert_eq!((&a, &b[..6]), (b"netw", b"othree".as_slice()));
    let refused = client.put_gathered(&[gather(b"empty", &[b"", b""]), gather(b"none", &[])]);
    assert!(refused.iter().all(|result| matches!(result, Err(ClientError::EmptyValue))));
}

#[test]
fn the_trace_of_a_call_is_in_all_its_requests_and_in_no_others() {
    let (server, client) = pair(Setup::default());
    let trace: TraceId =
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".parse().expect("a trace");
    let traced = client.traced(trace);
    let large = vec![7; 3 << 20];
    traced.put(b"large", &large, &ABSENT).expect("put");
    let mut buf = Vec::new();
    assert!(traced.until(Instant::now() + WAIT).get(b"large", &mut buf).expect("get").is_hit());
    traced.exists(&[b"large"]).expect("exists");
    let of_call: Vec<_> = server.world().seen.drain(..).collect();
    let opcodes: Vec<_> = of_call.iter().map(|seen| seen.opcode).collect();
    assert_eq!(opcodes, [Opcode::Offer, Opcode::Data, Opcode::Get, Opcode::Exists]);
    assert!(of_call.iter().all(|seen| seen.trace == trace.bytes()), "{of_call:?}");
    // The same connection, another call.
    client.exists(&[b"large"]).expect("exists");
    assert!(server.world().seen.iter().all(|seen| seen.trace == [0; 16]));
    // A batch of a queue.
    let queue = Queue::new(&client, 1).expect("a queue");
    let mut keys = Keys::with_capacity(1, 5);
    keys.push(b"", b"large");
    queue.submit_traced(Batch::Exists(keys), None, Some(trace)).expect("submitted");
    assert!(queue.wait(WAIT).expect("a wait"));
    assert_eq!(server.world().seen.last().expect("a request").trace, trace.bytes());
}
