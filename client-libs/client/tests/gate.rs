//! Calls that are given up, and ranges that are read and stored as one.

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{ABSENT, Setup, Trick, key_of, pair, pattern};
use memkv_client::{
    ClientError, Gate, GetItem, GetOutcome, LinkFault, PlanError, PutMode, PutOptions, PutRange,
};
use memkv_wire::Opcode;

/// Far longer than anything here takes; far shorter than the deadline of a call.
const LONG: Duration = Duration::from_secs(10);

fn given_up<T: std::fmt::Debug>(answer: &Result<T, ClientError>) -> bool {
    let why = |source: &LinkFault| matches!(source, LinkFault::GivenUp | LinkFault::Net(_));
    matches!(answer, Err(ClientError::Broken { source, .. }) if why(source))
}

#[test]
fn a_get_that_is_given_up_ends_at_once_and_leaves_its_memory_alone() {
    let (server, client) = pair(Setup::default());
    let value = pattern(1 << 20, 1);
    client.put(b"k", &value, &ABSENT).expect("a put");
    server.play(Opcode::Get, Trick::SilentInPayload);
    let gate = Arc::new(Gate::new());
    let through = client.through(&gate);
    let mut buf = vec![0; value.len()];
    let place = buf.as_ptr() as usize;
    let began = Instant::now();
    std::thread::scope(|scope| {
        let call = scope.spawn(|| through.get_into(b"k", 0, &mut buf));
        let asked = || server.seen(Opcode::Get).len() == 1;
        while !asked() {
            assert!(began.elapsed() < LONG);
            std::thread::yield_now();
        }
        gate.close();
        let answer = call.join().expect("no panic");
        assert!(given_up(&answer), "{answer:?}");
    });
    assert!(began.elapsed() < LONG, "{:?}", began.elapsed());
    assert_eq!(place, buf.as_ptr() as usize);

    // Nothing more goes through it, and nothing is asked.
    buf.fill(7);
    let answer = through.get_into(b"k", 0, &mut buf);
    assert!(given_up(&answer), "{answer:?}");
    assert!(buf.iter().all(|byte| *byte == 7));
    assert_eq!(server.seen(Opcode::Get).len(), 1, "it was not repeated");
    // Others are not disturbed.
    assert!(client.get_into(b"k", 0, &mut buf).expect("a get").is_hit());
    assert_eq!(buf, value);
}

#[test]
fn a_put_that_is_given_up_is_not_repeated() {
    let (server, client) = pair(Setup::default());
    server.play(Opcode::Data, Trick::Silent);
    let gate = Arc::new(Gate::new());
    let through = client.through(&gate);
    let value = pattern(1 << 20, 2);
    std::thread::scope(|scope| {
        let call = scope.spawn(|| through.put(b"k", &value, &ABSENT));
        let began = Instant::now();
        while server.seen(Opcode::Data).is_empty() {
            assert!(began.elapsed() < LONG);
            std::thread::yield_now();
        }
        gate.close();
        let answer = call.join().expect("no panic");
        assert!(given_up(&answer), "{answer:?}");
    });
    assert_eq!(server.seen(Opcode::Data).len(), 1);
    assert!(!client.exists(&[b"k"]).expect("an answer")[0]);
}

#[test]
fn an_open_gate_changes_nothing() {
    let (_server, client) = pair(Setup::default());
    let gate = Arc::new(Gate::new());
    let through = client.through(&gate);
    let value = pattern(300_000, 3);
    through.put(b"k", &value, &ABSENT).expect("a put");
    let mut back = Vec::new();
    assert!(through.get(b"k", &mut back).expect("a get").is_hit());
    assert_eq!(back, value);
    gate.close();
    assert!(through.put(b"k", &value, &ABSENT).is_err());
}

#[test]
fn ranges_of_a_value_are_read_by_one_operation_and_shared() {
    let (server, client) = pair(Setup::default());
    let value = pattern(100_000, 4);
    client.put(b"one", &value, &ABSENT).expect("a put");
    client.put(b"two", &value[..50], &ABSENT).expect("a put");
    let ranges: [(&[u8], u64, usize); 7] = [
        (b"one", 60_000, 40_000),
        (b"one", 0, 30_000),
        (b"none", 0, 10),
        (b"one", 10_000, 50_000),
        (b"two", 0, 50),
        (b"one", 0, 30_000),
        (b"none", 5, 10),
    ];
    // Each is of its own colour before.
    let mut buffers: Vec<Vec<u8>> =
        ranges.iter().zip(1..).map(|((.., length), colour)| vec![colour; *length]).collect();
    let item = |(&(key, offset, _), buf)| GetItem { key, offset, buf };
    let mut items: Vec<GetItem<'_>> =
        ranges.iter().zip(buffers.iter_mut().map(Vec::as_mut_slice)).map(item).collect();
    let answers = client.get_coalesced(&mut items).expect("a plan");
    let all = ranges.iter().zip(&answers).zip(&buffers).zip(1..);
    for (((&(key, offset, length), answer), buffer), colour) in all {
        match (key, answer) {
            (b"none", Ok(GetOutcome::Miss(_))) => assert_eq!(buffer, &[colour; 10]),
            (_, Ok(GetOutcome::Hit { .. })) => {
                let offset = offset as usize;
                assert_eq!(buffer, &value[offset..offset + length]);
            }
            other => panic!("{other:?}"),
        }
    }
    let asked: usize = server.seen(Opcode::Get).iter().map(|seen| seen.items).sum();
    assert_eq!(asked, 3, "one run of each key");
    let saving = client.counters().saving;
    assert_eq!((saving.descriptors, saving.operations), (7, 3));
    assert_eq!((saving.bytes_wanted, saving.bytes_moved), (150_070, 100_065));
}

#[test]
fn ranges_make_a_value_or_are_refused_before_anything_is_stored() {
    let (server, client) = pair(Setup::default());
    let value = pattern(100_000, 5);
    let range = |key, from: usize, to: usize| PutRange {
        key,
        offset: from as u64,
        bytes: &value[from..to],
    };
    let options = PutOptions { mode: PutMode::Replace, ..ABSENT };
    let ranges = [range(b"b", 40_000, 100_000), range(b"a", 0, 1000), range(b"b", 0, 40_000)];
    let answers = client.put_coalesced(&ranges, &options).expect("a plan");
    assert!(answers.len() == 2 && answers.iter().all(Result::is_ok), "{answers:?}");
    assert_eq!(server.world().blocks[b"b".as_slice()].value, value);
    assert_eq!(server.world().blocks[b"a".as_slice()].value, &value[..1000]);
    let gap = client.put_coalesced(&[range(b"c", 0, 5), range(b"d", 1, 5)], &options);
    assert_eq!(gap.err(), Some(PlanError::Gap { descriptor: 1, offset: 1, missing: 0 }));
    let key = key_of(&client, &server, 0);
    assert!(!client.exists(&[b"c", b"d", &key]).expect("an answer").contains(&true));
}
