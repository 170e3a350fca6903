//! Batches that run while their caller does something else.

mod common;

use std::time::{Duration, Instant};

use common::{ABSENT, Setup, TestServer, Trick, config, key_of, pair, pattern};
use memkv_client::{
    Answers, Batch, Client, ClientError, Completion, Config, GetOutcome, Keys, Operation,
    PutOptions, Queue, QueueError, Source,
};
use memkv_wire::Opcode;

/// Far longer than anything here takes.
const LONG: Duration = Duration::from_secs(20);

fn keys(names: &[&[u8]]) -> Keys {
    let mut keys = Keys::default();
    names.iter().for_each(|name| keys.push(b"", name));
    keys
}

fn numbered(count: usize) -> Keys {
    let mut keys = Keys::default();
    (0..count).for_each(|at| keys.push(b"block/", at.to_string().as_bytes()));
    keys
}

fn put(keys: Keys, values: Vec<Vec<u8>>) -> Batch {
    let values = values.into_iter().map(|value| Box::new(value) as Source).collect();
    Batch::Put { keys, values, options: ABSENT }
}

fn get(keys: Keys, lengths: impl Iterator<Item = usize>) -> Batch {
    Batch::Get { keys, buffers: lengths.map(|length| Box::new(vec![0u8; length]) as _).collect() }
}

fn next(queue: &Queue) -> Completion {
    assert!(queue.wait(LONG).expect("wait"), "something is under way");
    let mut completions = queue.drain().expect("drain");
    assert_eq!(completions.len(), 1);
    completions.remove(0)
}

fn lengths_of(answers: &Answers) -> Vec<Option<u64>> {
    let Answers::Get(answers) = answers else { panic!("not of a get: {answers:?}") };
    let length = |outcome: &Result<GetOutcome, ClientError>| match outcome {
        Ok(GetOutcome::Hit { length, .. }) => Some(*length),
        _ => None,
    };
    answers.iter().map(length).collect()
}

#[test]
fn batches_complete_with_their_memory_and_under_their_tickets() {
    let (_server, client) = pair(Setup::default());
    let queue = Queue::new(&client, 2).expect("a queue");
    assert_eq!(queue.pending().expect("pending"), 0);
    assert!(!queue.wait(LONG).expect("wait"), "nothing is under way: nothing to wait for");
    let values: Vec<Vec<u8>> = (0..3).map(|at| pattern(100_000 + at, at as u32)).collect();
    let ticket = queue.submit(put(numbered(3), values.clone()), None).expect("submit");
    let stored = next(&queue);
    assert_eq!(stored.ticket, ticket);
    assert!(matches!(&stored.answers, Answers::Put(all) if all.iter().all(Result::is_ok)));
    let back: Vec<&[u8]> = stored.sources.iter().map(|source| (**source).as_ref()).collect();
    assert_eq!(back, values);

    let lookups = [
        Batch::Exists(keys(&[b"block/2", b"none", b"block/0"])),
        Batch::MatchPrefix(numbered(5)),
        get(numbered(4), [100_000, 100_001, 100_002, 9].into_iter()),
        Batch::Delete(keys(&[b"block/1", b"none"])),
    ];
    let mut tickets = vec![ticket];
    for batch in lookups {
        tickets.push(queue.submit(batch, None).expect("submit"));
        let mut done = next(&queue);
        assert_eq!(Some(&done.ticket), tickets.last());
        match &done.answers {
            Answers::Exists(answer) => {
                assert_eq!(answer.as_ref().expect("exists"), &[true, false, true]);
            }
            Answers::MatchPrefix(answer) => assert_eq!(*answer.as_ref().expect("match"), 3),
            Answers::Delete(all) => {
                let there: Vec<bool> = all.iter().flatten().copied().collect();
                assert_eq!(there, [true, false]);
            }
            answers => {
                assert_eq!(
                    lengths_of(answers),
                    [Some(100_000), Some(100_001), Some(100_002), None]
                );
                let filled = done.sinks.iter_mut().map(|sink| (**sink).as_mut());
                let right = filled.zip(&values).all(|(bytes, value)| bytes == value.as_slice());
                assert!(right, "every value is in the buffer of its key");
            }
        }
    }
    assert!(tickets.is_sorted_by(|a, b| a < b), "no ticket twice: {tickets:?}");
    assert_eq!(queue.pending().expect("pending"), 0);
}

#[test]
fn a_large_batch_travels_in_pieces_and_comes_back_as_one_in_its_order() {
    let (server, client) = pair(Setup::default());
    let queue = Queue::new(&client, 3).expect("a queue");
    let values: Vec<Vec<u8>> = (0..11).map(|at| pattern((3 << 20) + at, at as u32)).collect();
    queue.submit(put(numbered(11), values.clone()), None).expect("submit");
    let stored = next(&queue);
    let Answers::Put(all) = &stored.answers else { panic!("of a put") };
    assert!(all.len() == 11 && all.iter().all(Result::is_ok), "{all:?}");
    let back: Vec<&[u8]> = stored.sources.iter().map(|source| (**source).as_ref()).collect();
    assert!(back == values, "the memory comes back in its order");
    let connections: std::collections::BTreeSet<usize> = server
        .seen(Opcode::Put)
        .iter()
        .chain(&server.seen(Opcode::Offer))
        .map(|seen| seen.connection)
        .collect();
    assert_eq!(connections.len(), 3, "33 MiB are three pieces, each on a connection of its own");
    // The chain was cut in two places, and the pieces say to what they belong.
    let mut parents: Vec<_> = server
        .world()
        .advised
        .iter()
        .filter_map(|(key, parent, _)| parent.clone().map(|parent| (key.clone(), parent)))
        .collect();
    parents.sort();
    let link = |a: &str, b: &str| (a.as_bytes().to_vec(), b.as_bytes().to_vec());
    let links = [2, 3, 4, 5, 6, 7, 8, 9]
        .map(|at| link(&format!("block/{}", at + 1), &format!("block/{at}")));
    let mut expected = links.to_vec();
    expected.sort();
    assert_eq!(parents, expected, "of all but the first piece");

    queue.submit(get(numbered(11), values.iter().map(Vec::len)), None).expect("submit");
    let mut read = next(&queue);
    assert!(lengths_of(&read.answers).iter().all(Option::is_some));
    for (sink, value) in read.sinks.iter_mut().zip(&values) {
        assert!((**sink).as_mut() == value.as_slice());
    }
    let counters = client.counters();
    let (put, get) = (counters.of(Operation::Put), counters.of(Operation::Get));
    assert_eq!((put.calls, put.keys, put.missing), (3, 11, 11));
    assert_eq!((get.calls, get.keys, get.found, get.bytes), (3, 11, 11, put.bytes));
    assert_eq!(put.bytes, values.iter().map(|value| value.len() as u64).sum::<u64>());
    assert_eq!(counters.waits.buckets.iter().sum::<u64>(), 2, "one wait a batch");
}

#[test]
fn values_are_gathered_from_and_scattered_to_several_places() {
    let (_server, client) = pair(Setup::default());
    let queue = Queue::new(&client, 3).expect("a queue");
    // Pieces of every length, over the ends of extents (1 MiB) and slices; 26 MiB, so that it is cut.
    let lengths = [[1, 0, 3 << 20], [1 << 20, (1 << 20) + 1, 77], [5, 6, 7], [0, 4 << 20, 0]];
    let rows: Vec<_> = lengths.iter().cycle().take(12).collect();
    let value = |at: usize| pattern(rows[at].iter().sum(), at as u32);
    let mut pieces: Vec<Source> = Vec::new();
    for (at, row) in rows.iter().enumerate() {
        let (value, mut from) = (value(at), 0);
        for length in *row {
            pieces.push(Box::new(value[from..from + length].to_vec()));
            from += length;
        }
    }
    let counts = vec![3; 12];
    let put = Batch::Gather { keys: numbered(12), counts, pieces, options: ABSENT };
    queue.submit(put, None).expect("submit");
    let stored = next(&queue);
    assert!(matches!(&stored.answers, Answers::Put(all) if all.iter().all(Result::is_ok)));
    assert_eq!(stored.sources.len(), 36);
    assert_eq!(stored.lengths, (0..12).map(|at| value(at).len() as u64).collect::<Vec<_>>());
    assert_eq!(stored.bytes, stored.lengths.iter().sum::<u64>());
    let mut whole = Vec::new();
    for at in 0..12 {
        let key = format!("block/{at}");
        assert!(client.get(key.as_bytes(), &mut whole).expect("get").is_hit());
        assert!(whole == value(at), "value {at} is one piece behind the other");
    }
    // Into other pieces than it came from, the last of which have no bytes left for them.
    let pieces = (0..12).flat_map(|_| [3, 0, 1 << 20, 4 << 20, 9]);
    let pieces = pieces.map(|length| Box::new(vec![0u8; length]) as _).collect();
    let get = Batch::Scatter { keys: numbered(12), counts: vec![5; 12], pieces };
    queue.submit(get, None).expect("submit");
    let mut read = next(&queue);
    assert_eq!((read.bytes, read.lengths[0]), (stored.bytes, (5 << 20) + 12));
    let expected: Vec<_> = (0..12).map(|at| Some(value(at).len() as u64)).collect();
    assert_eq!(lengths_of(&read.answers), expected);
    for (at, sinks) in read.sinks.chunks_mut(5).enumerate() {
        let bytes: Vec<u8> = sinks.iter_mut().flat_map(|sink| (**sink).as_mut().to_vec()).collect();
        let value = value(at);
        assert!(bytes[..value.len()] == value, "value {at}");
    }
    // What is counted is what was moved.
    let counters = client.counters();
    let moved: u64 = (0..12).map(|at| value(at).len() as u64).sum();
    assert_eq!(counters.of(Operation::Put).bytes, moved);
    assert_eq!(counters.of(Operation::Get).bytes, 2 * moved);
}

#[test]
fn a_lookup_does_not_stand_behind_bulk() {
    let (server, client) = pair(Setup::default());
    let queue = Queue::new(&client, 1).expect("a queue");
    server.play(Opcode::Get, Trick::Silent);
    let stuck = queue.submit(get(numbered(1), [10].into_iter()), Some(LONG)).expect("submit");
    let behind = queue.submit(get(numbered(1), [10].into_iter()), Some(LONG)).expect("submit");
    let lookup = queue.submit(Batch::Exists(numbered(2)), None).expect("submit");
    let first = next(&queue);
    assert_eq!(first.ticket, lookup, "not {stuck} nor {behind}, whose worker waits");
    assert_eq!(queue.pending().expect("pending"), 2);
    // The server ends its connections, and with them the wait of the first.
    drop(server);
    queue.close();
    let mut tickets: Vec<u64> =
        queue.drain().expect("drain").iter().map(|done| done.ticket).collect();
    tickets.sort_unstable();
    assert_eq!(tickets, [stuck, behind], "close waits for what is under way");
}

#[test]
fn a_batch_completes_by_its_deadline_though_nobody_answers() {
    let (server, client) = pair(Setup::default());
    server.play(Opcode::Get, Trick::Silent);
    server.play(Opcode::Get, Trick::Silent);
    let queue = Queue::new(&client, 1).expect("a queue");
    let began = Instant::now();
    let short = Duration::from_millis(300);
    queue.submit(get(numbered(1), [10].into_iter()), Some(short)).expect("submit");
    // It stands behind the other all of its time.
    queue.submit(get(numbered(1), [10].into_iter()), Some(short)).expect("submit");
    let mut done = Vec::new();
    while done.len() < 2 {
        assert!(queue.wait(LONG).expect("wait"));
        done.extend(queue.drain().expect("drain"));
    }
    let took = began.elapsed();
    assert!(took >= short && took < LONG / 2, "{took:?}");
    for completion in &done {
        let Answers::Get(answers) = &completion.answers else { panic!("of a get") };
        let error = answers[0].as_ref().expect_err("nobody answered");
        let late = error.is_server_lost() || matches!(error, ClientError::Busy { .. });
        assert!(late, "{error:?}");
    }
    assert_eq!(client.counters().of(Operation::Get).errors, 2);
    // That they were in a hurry says nothing of the server.
    assert!(client.put(b"key", b"value", &ABSENT).is_ok());
}

#[test]
fn keys_of_a_dead_server_fail_and_the_others_do_not() {
    let (alive, dead) = (TestServer::start(Setup::default()), TestServer::start(Setup::default()));
    let client = Client::new(config(&[&alive, &dead])).expect("a client");
    let (here, gone) = (key_of(&client, &alive, 0), key_of(&client, &dead, 0));
    drop(dead);
    let queue = Queue::new(&client, 4).expect("a queue");
    let values = vec![vec![1; 10], vec![2; 10]];
    queue.submit(put(keys(&[&gone, &here]), values), None).expect("submit");
    let Answers::Put(answers) = next(&queue).answers else { panic!("of a put") };
    assert!(answers[0].is_err() && answers[1].is_ok(), "{answers:?}");
    queue.submit(Batch::MatchPrefix(keys(&[&here, &gone])), None).expect("submit");
    let Answers::MatchPrefix(matched) = next(&queue).answers else { panic!("of a lookup") };
    assert_eq!(matched.expect("a server that is gone has no keys"), 1);
}

#[test]
fn a_closed_queue_takes_nothing_and_closing_costs_nothing_where_nothing_was_asked() {
    // Nobody is there, and nobody is talked to.
    let config = Config { servers: vec!["127.0.0.1:1".to_owned()], ..Config::default() };
    let client = Client::new(config).expect("a client");
    let queue = Queue::new(&client, 4).expect("a queue");
    queue.close();
    queue.close();
    let refused = queue.submit(Batch::Exists(numbered(1)), None);
    assert!(matches!(refused, Err(QueueError::Closed)), "{refused:?}");
    assert!(queue.drain().expect("drain").is_empty());
}

#[test]
fn empty_batches_complete_too() {
    let (_server, client) = pair(Setup::default());
    let queue = Queue::new(&client, 4).expect("a queue");
    for batch in [
        put(Keys::default(), Vec::new()),
        get(Keys::default(), std::iter::empty()),
        Batch::MatchPrefix(Keys::default()),
    ] {
        queue.submit(batch, None).expect("submit");
        match next(&queue).answers {
            Answers::Put(all) => assert!(all.is_empty()),
            Answers::Get(all) => assert!(all.is_empty()),
            answers => assert!(matches!(answers, Answers::MatchPrefix(Ok(0))), "{answers:?}"),
        }
    }
}

#[test]
fn a_client_that_is_told_until_when_ends_its_calls_then() {
    let (server, client) = pair(Setup::default());
    client.put(b"other", b"value", &ABSENT).expect("a link, so that time is lost in silence only");
    server.play(Opcode::Exists, Trick::Silent);
    server.play(Opcode::Put, Trick::Silent);
    let began = Instant::now();
    let hurried = client.until(began + Duration::from_secs(2));
    let there = hurried.exists(&[b"key"]).expect("a server that is silent has no keys");
    assert_eq!(there, [false]);
    let patient = PutOptions { deadline: Some(LONG), ..ABSENT };
    let error = hurried.put(b"key", b"value", &patient).expect_err("the time is over");
    let late = error.is_server_lost() || matches!(error, ClientError::Busy { .. });
    assert!(late, "{error:?}");
    assert!(began.elapsed() < LONG / 2);
    assert_eq!(client.exists(&[b"key"]).expect("the client has its own patience"), [false]);
    assert!(server.seen(Opcode::Exists).len() >= 2);
}

#[test]
fn a_batch_does_not_stand_behind_another_while_there_may_be_more_workers() {
    let (server, client) = pair(Setup::default());
    let queue = Queue::new(&client, 3).expect("a queue");
    let one = || get(keys(&[b"none"]), std::iter::once(1));
    // From now on there is a worker, which rests.
    queue.submit(one(), None).expect("submit");
    next(&queue);
    server.play(Opcode::Get, Trick::Silent);
    for _ in 0..2 {
        queue.submit(one(), Some(LONG)).expect("submit");
    }
    assert!(queue.wait(LONG / 4).expect("wait"), "only one of them meets silence");
    assert_eq!(queue.drain().expect("drain").len(), 1);
    assert_eq!(queue.pending().expect("pending"), 1);
    drop(server);
    assert!(queue.close_within(2 * LONG));
}

/// Memory whose owner has a bug.
struct Broken(std::thread::ThreadId);

impl AsRef<[u8]> for Broken {
    fn as_ref(&self) -> &[u8] {
        assert_eq!(std::thread::current().id(), self.0, "a worker cannot read it");
        b"bytes"
    }
}

#[test]
fn memory_that_panics_fails_its_batch_and_no_worker() {
    let (_server, client) = pair(Setup::default());
    let queue = Queue::new(&client, 1).expect("a queue");
    let values = vec![Box::new(Broken(std::thread::current().id())) as Source];
    let batch = Batch::Put { keys: keys(&[b"key"]), values, options: ABSENT };
    queue.submit(batch, None).expect("submit");
    let Answers::Put(answers) = next(&queue).answers else { panic!("of a put") };
    assert!(matches!(answers[..], [Err(ClientError::Broken { .. })]), "{answers:?}");
    queue.submit(put(keys(&[b"key"]), vec![vec![1; 9]]), None).expect("submit");
    let Answers::Put(answers) = next(&queue).answers else { panic!("of a put") };
    assert!(matches!(answers[..], [Ok(_)]), "{answers:?}");
}
