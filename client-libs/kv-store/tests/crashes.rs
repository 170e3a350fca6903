//! Consumers that are killed, servers that go, chunks that are evicted: a session is whole, or it is not there.

mod common;

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU16, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::{Program, uri};
use memkv_client::{Client, PutOptions, StatId};

#[test]
fn a_consumer_that_is_killed_before_the_manifest_leaves_the_old_one_or_none() {
    let node = common::node(0);
    let address = node.address().to_string();
    let program = Program::compile();
    for (session, before) in [("1", "none"), ("2", "session 1")] {
        let mut killed = program.start(&uri(&address), &["save", session]);
        assert_eq!(killed.line(), "chunks");
        killed.kill();
        assert_eq!(program.load(&address), before);
        let mut done = program.start(&uri(&address), &["save", session]);
        assert_eq!(done.line(), "chunks");
        done.go_on();
        assert_eq!(done.line(), "manifest");
        done.kill();
        assert_eq!(program.load(&address), format!("session {session}"));
    }
    node.stop().expect("an orderly stop");
}

/// Forwards connections to a server until as many bytes went to it, and then ends all of them.
struct Cut {
    address: String,
    left: Arc<AtomicI64>,
}

impl Cut {
    fn before(server: String, bytes: i64) -> Cut {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address").to_string();
        let left = Arc::new(AtomicI64::new(bytes));
        let shared = left.clone();
        thread::spawn(move || {
            for client in listener.incoming() {
                let client = client.expect("a connection");
                if shared.load(Ordering::Relaxed) <= 0 {
                    continue;
                }
                let server = TcpStream::connect(&server).expect("the server listens");
                let (back, forth) = (server.try_clone(), client.try_clone());
                let (mut back, mut forth) = (back.expect("a socket"), forth.expect("a socket"));
                thread::spawn(move || std::io::copy(&mut back, &mut forth));
                let left = shared.clone();
                thread::spawn(move || forward(client, server, &left));
            }
        });
        Cut { address, left }
    }
}

fn forward(mut from: TcpStream, mut to: TcpStream, left: &AtomicI64) {
    let mut bytes = [0; 16384];
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        let before = left.fetch_sub(count as i64, Ordering::Relaxed);
        let passed = before.clamp(0, count as i64) as usize;
        if to.write_all(&bytes[..passed]).is_err() || passed < count {
            break;
        }
    }
    for end in [from, to] {
        // It may be gone already.
        let _ = end.shutdown(Shutdown::Both);
    }
}

#[test]
fn wherever_a_save_is_cut_off_the_session_is_whole() {
    saves_are_cut_off("tcp", |total| total > 24 * 65536);
}

#[test]
fn wherever_a_save_that_names_its_chunks_is_cut_off_the_session_is_whole() {
    // The chunks themselves do not pass.
    saves_are_cut_off("auto", |total| (24 * 16..24 * 1024).contains(&total));
}

/// Saves a session again and again, each time cut off somewhere else; `is_all` knows how many bytes a whole one is.
fn saves_are_cut_off(transport: &str, is_all: impl Fn(i64) -> bool) {
    let node = common::node(0);
    let address = node.address().to_string();
    let program = Program::compile();
    let mut saved = program.start(&uri(&address), &["save", "1"]);
    saved.line();
    saved.go_on();
    assert_eq!(saved.line(), "manifest");
    saved.kill();
    let all = 1 << 40;
    let save = |session: usize, bytes: i64| {
        let cut = Cut::before(address.clone(), bytes);
        let mut command = program.command(&[], &uri(&cut.address));
        // What it says of its troubles is looked at by others.
        command.args(["save", &session.to_string()]).stderr(Stdio::null());
        command.env("MEMKV_TRANSPORT", transport);
        let mut talk = program.start_command(&mut command);
        assert_eq!(talk.line(), "chunks");
        talk.go_on();
        let done = talk.line() == "manifest";
        talk.kill();
        (done, bytes - cut.left.load(Ordering::Relaxed))
    };
    let (done, total) = save(2, all);
    assert!(done && is_all(total), "{total} bytes");
    let mut now = "session 2".to_owned();
    let mut cut_off = 0;
    // Cuts between chunks, in the middle of them, and around the manifest at the end.
    let even = (0..12).map(|step| total * step / 12);
    let last = (0..12).map(|step| total - 20 - 60 * step);
    for (turn, bytes) in even.chain(last).enumerate() {
        let session = 10 + turn;
        let (done, _) = save(session, bytes);
        let found = program.load(&address);
        let new = format!("session {session}");
        assert!(found == new || !done && found == now, "cut at {bytes}: {found}, before it {now}");
        cut_off += usize::from(found == now);
        now = found;
    }
    assert!(cut_off >= 12, "only {cut_off} were cut off before their manifest");
    node.stop().expect("an orderly stop");
}

/// The keys of the chunks of the session that is stored.
fn chunks(client: &Client) -> Vec<Vec<u8>> {
    let mut value = Vec::new();
    assert!(client.get(b"m/session", &mut value).expect("an answer").is_hit());
    let hashes = &value[value.len() - 24 * 8..];
    hashes.chunks(8).map(|hash| [b"c/", hash].concat()).collect()
}

#[test]
fn a_session_of_which_a_chunk_was_evicted_is_not_there_until_it_is_saved_again() {
    let node = common::node(0);
    let address = node.address().to_string();
    let program = Program::compile();
    let save = || {
        let mut saved = program.start(&uri(&address), &["save", "7"]);
        saved.line();
        saved.go_on();
        assert_eq!(saved.line(), "manifest");
        saved.go_on();
        saved.end();
    };
    save();
    let client = common::client(&address);
    let chunks = chunks(&client);
    assert_eq!(program.load(&address), "session 7");
    for lost in [0, 11, 23] {
        assert!(client.delete(&chunks[lost], None).expect("an answer"));
        assert_eq!(program.load(&address), "none");
        save();
        assert_eq!(program.load(&address), "session 7");
    }
    node.stop().expect("an orderly stop");
}

/// Stores for so long, and then half as much again as a node of 64 MiB has room for.
fn fill(client: &Client, first: Duration) {
    let began = Instant::now();
    let mut since = 0;
    for number in 0.. {
        let key = format!("{began:?} {number}");
        client.put(key.as_bytes(), &[1; 1 << 20], &PutOptions::default()).expect("stored");
        since += usize::from(began.elapsed() >= first);
        if since == 96 {
            return;
        }
    }
}

#[test]
fn a_session_outlasts_others_for_a_while_and_is_evicted_as_a_whole_then() {
    // A pin of a second, in whole seconds of the store's clock, ends within three on the second of them.
    let storage = "drives: [{max_size: 64 MiB}]";
    let pinned = common::node_of(0, storage);
    let storage = format!("{storage}, eviction: {{policy: lru, pin_max_seconds: 1}}");
    let pressed = common::node_of(0, &storage);
    let program = Program::compile();
    for (node, least, after) in [(&pinned, 0, "session 1"), (&pressed, 3, "none")] {
        let address = node.address().to_string();
        let client = common::client(&address);
        for _ in 0..2 {
            let mut saved = program.start(&uri(&address), &["save", "1"]);
            saved.line();
            saved.go_on();
            assert_eq!(saved.line(), "manifest");
            saved.kill();
            assert_eq!(program.load(&address), "session 1");
            fill(&client, Duration::from_secs(least));
            assert_eq!(program.load(&address), after);
        }
    }
    for node in [pinned, pressed] {
        node.stop().expect("an orderly stop");
    }
}

#[test]
fn a_second_save_of_the_same_session_sends_no_chunk() {
    let node = common::node(0);
    let address = node.address().to_string();
    let program = Program::compile();
    let stored = || {
        let stats = common::client(&address).server_stats().remove(0).1.expect("an answer");
        let count = |id| stats.get(id).expect("it is counted");
        (count(StatId::Puts), count(StatId::BytesIn))
    };
    let save = || {
        let mut saved = program.start(&uri(&address), &["save", "7"]);
        saved.line();
        saved.go_on();
        assert_eq!(saved.line(), "manifest");
        saved.kill();
    };
    save();
    let first = stored();
    assert_eq!(first.0, 25, "24 chunks and a manifest");
    save();
    let second = stored();
    assert_eq!(second.0 - first.0, 1, "a manifest");
    assert!(second.1 - first.1 < 1024, "{} bytes for a manifest", second.1 - first.1);
    node.stop().expect("an orderly stop");
}

/// A port that no connection and no other test is given while its server is away.
fn lasting_port() -> u16 {
    static TAKEN: AtomicU16 = AtomicU16::new(0);
    let first = std::process::id() as u16 % 10_000;
    loop {
        let step = TAKEN.fetch_add(1, Ordering::Relaxed);
        assert!(step < 10_000, "no port is free");
        let port = 20_000 + (first + step) % 10_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

#[test]
fn a_server_that_goes_is_an_error_within_the_deadline_and_serves_again_when_it_is_back() {
    let node = common::node(lasting_port());
    let address = node.address();
    let program = Program::compile();
    let mut command = program.command(&[], &uri(&address.to_string()));
    command.env("MEMKV_REQUEST_TIMEOUT_MS", "10000").env("MEMKV_CONNECT_TIMEOUT_MS", "10000");
    let mut talk = program.start_command(command.arg("serve"));
    assert_eq!(talk.line(), "saved");
    node.stop().expect("an orderly stop");
    talk.go_on();
    let errors = talk.line();
    let seconds = errors.strip_prefix("errors after ").and_then(|rest| rest.strip_suffix(" s"));
    let seconds: u32 =
        seconds.and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("{errors}"));
    // Four calls, each with its own deadline.
    assert!(seconds < 45, "{errors}");
    let node = common::node(address.port());
    talk.go_on();
    assert_eq!(talk.line(), "served again");
    talk.end();
    node.stop().expect("an orderly stop");
}

#[test]
fn a_full_disk_under_standard_error_ends_nobody() {
    let full = || File::options().write(true).open("/dev/full").expect("a full device");
    let node = common::node(lasting_port());
    let address = node.address().to_string();
    let program = Program::compile();
    let command = |word| {
        let mut command = program.command(&[], &uri(&address));
        command.env("MEMKV_REQUEST_TIMEOUT_MS", "10000").arg(word).stderr(full());
        command
    };
    let mut talk = program.start_command(&mut command("serve"));
    assert_eq!(talk.line(), "saved");
    node.stop().expect("an orderly stop");
    talk.go_on();
    // What it could not say were errors of four calls.
    let errors = talk.line();
    assert!(errors.starts_with("errors after"), "{errors}");
    talk.kill();
    // A server that is away is said, and is no reason not to open.
    assert_eq!(common::ran(&mut command("load")), "none\n");
}
