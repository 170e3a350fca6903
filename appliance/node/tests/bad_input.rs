//! Bad input, as a table: each gets a clear error by name, nothing is lost, and other connections
//! are served on.

mod common;

use std::fs::OpenOptions;
use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use common::{Frame, Wire, memory_node, node, put_item, value};
use memkv_admin_api::{DriveState, NodeAdmin};
use memkv_node::node::Node;
use memkv_wire::{
    CrcList, GetItem, GetItems, HEADER_LEN, Header, KeyList, MAX_INLINE, MissReason, Opcode,
    PutItems, PutMode, Refusal, SharedKey, Status, loopback_key,
};

/// A sealed Exists frame of the connection, whole.
fn exists_frame(wire: &mut Wire) -> Vec<u8> {
    let mut meta = Vec::new();
    KeyList { keys: vec![b"witness"] }.encode(&mut meta);
    let mut header = wire.request(Opcode::Exists);
    let mut bytes = Vec::new();
    wire.sealer.seal(&mut header, &meta, &mut bytes);
    bytes
}

/// A frame that was sealed by hand is sent; what does the node say?
struct Row {
    name: &'static str,
    send: fn(&mut Wire, &Node),
    status: Status,
    says: &'static str,
}

const ROWS: &[Row] = &[
    Row { name: "duplicate", send: duplicate, status: Status::Unauthorized, says: "a duplicate" },
    Row { name: "gap", send: gap, status: Status::Unauthorized, says: "frames are missing" },
    Row {
        name: "reordered",
        send: reordered,
        status: Status::Unauthorized,
        says: "frames are missing",
    },
    Row { name: "reflected", send: reflected, status: Status::Unauthorized, says: "reflected" },
    Row {
        name: "of another session",
        send: other_session,
        status: Status::Unauthorized,
        says: "not authentic",
    },
    Row {
        name: "forged meta",
        send: forged_meta,
        status: Status::Unauthorized,
        says: "not authentic",
    },
    Row {
        name: "newer version",
        send: newer_version,
        status: Status::UnsupportedVersion,
        says: "version 2",
    },
    Row { name: "no memkv", send: no_memkv, status: Status::BadRequest, says: "not a memkv frame" },
    Row {
        name: "oversized meta",
        send: oversized_meta,
        status: Status::TooLarge,
        says: "bytes of meta announced",
    },
    Row {
        name: "oversized payload",
        send: oversized_payload,
        status: Status::TooLarge,
        says: "bytes of payload announced",
    },
    Row {
        name: "payload nobody wants",
        send: unwanted_payload,
        status: Status::BadRequest,
        says: "not waiting for any",
    },
    Row {
        name: "payload of another length",
        send: wrong_length,
        status: Status::BadRequest,
        says: "were offered",
    },
    Row {
        name: "more payload than credit",
        send: no_credit,
        status: Status::CreditExceeded,
        says: "without credit",
    },
];

fn duplicate(wire: &mut Wire, _: &Node) {
    let frame = exists_frame(wire);
    wire.raw(&frame);
    wire.receive().expect("the first one is answered");
    wire.raw(&frame);
}

fn gap(wire: &mut Wire, _: &Node) {
    exists_frame(wire);
    let later = exists_frame(wire);
    wire.raw(&later);
}

fn reordered(wire: &mut Wire, _: &Node) {
    let (first, second) = (exists_frame(wire), exists_frame(wire));
    wire.raw(&second);
    wire.raw(&first);
}

fn reflected(wire: &mut Wire, _: &Node) {
    let frame = exists_frame(wire);
    wire.raw(&frame);
    let answer = wire.receive().expect("an answer");
    let mut bytes = answer.header.as_bytes().to_vec();
    bytes.extend_from_slice(&answer.meta);
    wire.raw(&bytes);
}

fn other_session(wire: &mut Wire, node: &Node) {
    let mut other = Wire::connect(node);
    let frame = exists_frame(&mut other);
    wire.raw(&frame);
}

fn forged_meta(wire: &mut Wire, _: &Node) {
    let mut frame = exists_frame(wire);
    *frame.last_mut().expect("a meta") ^= 1;
    wire.raw(&frame);
}

fn newer_version(wire: &mut Wire, _: &Node) {
    let mut frame = exists_frame(wire);
    frame[4] = 2;
    wire.raw(&frame);
}

fn no_memkv(wire: &mut Wire, _: &Node) {
    let mut frame = b"GET / HTTP/1.1\r\nHost: memkv\r\n\r\n".to_vec();
    frame.resize(HEADER_LEN, b' ');
    wire.raw(&frame);
}

fn oversized_meta(wire: &mut Wire, _: &Node) {
    let mut frame = exists_frame(wire);
    frame[12..16].copy_from_slice(&((1u32 << 20) + 1).to_le_bytes());
    wire.raw(&frame);
}

fn oversized_payload(wire: &mut Wire, _: &Node) {
    let mut frame = exists_frame(wire);
    frame[16..24].copy_from_slice(&(65u64 << 20).to_le_bytes());
    wire.raw(&frame);
}

fn unwanted_payload(wire: &mut Wire, _: &Node) {
    let header = wire.request(Opcode::Data);
    wire.send_data(header, b"bytes", &[1]);
}

fn wrong_length(wire: &mut Wire, _: &Node) {
    let (reply, offer) = wire.offer(b"wrong length", 1 << 20, PutMode::Absent);
    assert_eq!(reply.status, Status::Want);
    wire.send_data(offer, &value(1, 1000), &[1]);
}

fn no_credit(wire: &mut Wire, _: &Node) {
    // A put that waits for its key, held by an offer whose payload never comes, keeps its credit.
    let (reply, _) = wire.offer(b"held", 1 << 20, PutMode::Absent);
    assert_eq!(reply.status, Status::Want);
    let bytes = value(1, 100);
    let mut meta = Vec::new();
    let crcs = CrcList::of(&bytes, 4 << 20).expect("one extent");
    PutItems { items: vec![put_item(b"held", 100, PutMode::Absent, crcs)] }.encode(&mut meta);
    for _ in 0..=wire.hello.limits.credits {
        let header = wire.request(Opcode::Put);
        wire.send(header, &meta, &bytes, None);
    }
}

#[test]
fn a_frame_that_no_client_sends_ends_its_connection_by_name_and_no_other() {
    let node = memory_node("64 MiB");
    let mut witness = Wire::connect(&node);
    assert_eq!(witness.put(b"witness", b"still here", PutMode::Absent).status, Status::Ok);
    for row in ROWS {
        let mut wire = Wire::connect(&node);
        (row.send)(&mut wire, &node);
        let (status, text) = wire.goodbye();
        assert_eq!(status, row.status, "{}: {text}", row.name);
        assert!(text.contains(row.says), "{}: {text}", row.name);
        assert_eq!(witness.get(b"witness").1, b"still here", "after: {}", row.name);
    }
    // Nothing of it stuck: places that were offered are free again, keys are not held.
    assert_eq!(witness.put(b"wrong length", b"free", PutMode::Absent).status, Status::Ok);
    // Puts that waited for the offer had their payload here already: they may have been stored.
    assert_eq!(witness.put(b"held", b"free", PutMode::Replace).status, Status::Ok);
    node.stop().expect("an orderly stop");
}

#[test]
fn a_handshake_with_the_wrong_key_or_an_unknown_id_gets_no_word() {
    let node = memory_node("64 MiB");
    let wrong = SharedKey::from_bytes([1; 32]);
    assert!(Wire::connect_as(&node, &wrong, 0, "tests").is_err());
    assert!(Wire::connect_as(&node, &loopback_key(), 77, "tests").is_err());
    let mut cut = TcpStream::connect(node.address()).expect("the node listens");
    cut.write_all(&[0x4d; 60]).expect("half a header");
    drop(cut);
    let mut witness = Wire::connect(&node);
    assert_eq!(witness.put(b"k", b"v", PutMode::Absent).status, Status::Ok);
    node.stop().expect("an orderly stop");
}

#[test]
fn a_key_proves_its_tenant_and_tenants_do_not_meet() {
    let other = "11".repeat(32);
    let node = node(&format!(
        "network: {{keys: [{{id: 5, key: \"{other}\", tenant: other}}]}}\n\
         memory: {{max_size: 64 MiB}}\nstorage: {{mode: memory, drives: [{{max_size: 64 MiB}}]}}\n"
    ));
    let key = SharedKey::from_hex(&other).expect("a key");
    let mut ours = Wire::connect_as(&node, &loopback_key(), 0, "ns");
    if let Ok(ours) = &mut ours {
        assert_eq!(ours.put(b"k", b"ours", PutMode::Absent).status, Status::Ok);
    }
    let mut theirs = Wire::connect_as(&node, &key, 5, "ns").expect("the other tenant's key");
    assert_eq!(theirs.get(b"k").0.status, Status::NotFound, "the same key of another tenant");
    let mut elsewhere = Wire::connect_as(&node, &key, 5, "ns2").expect("another namespace");
    assert_eq!(theirs.put(b"k", b"theirs", PutMode::Absent).status, Status::Ok);
    assert_eq!(elsewhere.get(b"k").0.status, Status::NotFound, "another namespace");
    node.stop().expect("an orderly stop");
}

/// A request whose meta is bad is refused with a reason, and the connection lives.
fn refused(wire: &mut Wire, opcode: Opcode, meta: &[u8], payload: &[u8]) -> (Status, String) {
    let header = wire.request(opcode);
    wire.send(header, meta, payload, None);
    let Frame { header, meta, .. } = wire.receive().expect("an answer");
    let text = Refusal::parse(&meta).expect("a refusal").text.to_owned();
    (header.status(), text)
}

#[test]
fn a_bad_request_is_refused_and_the_connection_lives() {
    let node = memory_node("64 MiB");
    let mut wire = Wire::connect(&node);
    let mut list = Vec::new();
    KeyList { keys: vec![b"k"] }.encode(&mut list);

    let mut empty_key = list.clone();
    let at = empty_key.len() - 3;
    empty_key[at..at + 2].copy_from_slice(&0u16.to_le_bytes());
    let long = vec![b'k'; 513];
    let mut long_key = 1u32.to_le_bytes().to_vec();
    long_key.extend_from_slice(&513u16.to_le_bytes());
    long_key.extend_from_slice(&long);
    for (name, meta) in [("0-byte key", &empty_key), ("513-byte key", &long_key)] {
        let (status, text) = refused(&mut wire, Opcode::Exists, meta, &[]);
        assert_eq!(status, Status::BadRequest, "{name}: {text}");
        assert!(text.contains("a key has"), "{name}: {text}");
    }
    let (status, text) = refused(&mut wire, Opcode::Exists, &list[..list.len() - 1], &[]);
    assert_eq!(status, Status::BadRequest, "cut meta: {text}");

    let mut meta = Vec::new();
    let crcs = CrcList::default();
    PutItems { items: vec![put_item(b"big", 64 << 20, PutMode::Absent, crcs)] }.encode(&mut meta);
    let at = meta.windows(8).position(|w| w == (64u64 << 20).to_le_bytes()).expect("the length");
    meta[at..at + 8].copy_from_slice(&(65u64 << 20).to_le_bytes());
    let (status, text) = refused(&mut wire, Opcode::Offer, &meta, &[]);
    assert_eq!(status, Status::TooLarge, "65 MiB value: {text}");

    let bytes = value(1, 1000);
    let wrong = CrcList::from_slice(&[0xdead_beef]).expect("one");
    let reply = wire.put_with(b"crc", &bytes, PutMode::Absent, wrong);
    assert_eq!(reply.status, Status::CrcMismatch, "inline put with a wrong CRC");
    let large = value(1, 1 << 20);
    let (reply, offer) = wire.offer(b"crc", large.len(), PutMode::Absent);
    assert_eq!(reply.status, Status::Want);
    let reply = wire.data_with(offer, &large, &[0xdead_beef]);
    assert_eq!(reply.status, Status::CrcMismatch, "large put with a wrong CRC");
    assert_eq!(wire.get(b"crc").0.status, Status::NotFound, "never accepted as good");

    assert_eq!(wire.put(b"crc", &bytes, PutMode::Absent).status, Status::Ok);
    let (reply, _) = wire.get_range(b"crc", 1000, 1);
    assert_eq!((reply.status, reply.length), (Status::BadRequest, 1000), "beyond the end");
    assert_eq!(wire.get(b"crc").1, bytes);
    node.stop().expect("an orderly stop");
}

#[test]
fn a_reader_that_stops_reading_harms_no_other() {
    let node = memory_node("128 MiB");
    let mut wire = Wire::connect(&node);
    let bytes = value(9, 4 << 20);
    assert_eq!(wire.put_large(b"big", &bytes).status, Status::Ok);
    let mut deaf = Wire::connect(&node);
    for _ in 0..64 {
        let mut meta = Vec::new();
        let item = GetItem { key: b"big", offset: 0, length: u64::MAX };
        GetItems { items: vec![item] }.encode(&mut meta);
        let header = deaf.request(Opcode::Get);
        deaf.send(header, &meta, &[], None);
    }
    for _ in 0..20 {
        assert!(wire.get(b"big").1 == bytes);
    }
    drop(deaf);
    node.stop().expect("an orderly stop");
}

#[test]
fn a_connection_lost_in_a_payload_leaves_nothing_behind() {
    let node = memory_node("64 MiB");
    for _ in 0..20 {
        let mut wire = Wire::connect(&node);
        let (reply, offer) = wire.offer(b"half", 8 << 20, PutMode::Absent);
        assert_eq!(reply.status, Status::Want, "the place came back the last time");
        let header = Header::request(Opcode::Data, offer.request_id());
        let mut header = header.with_payload_length(8 << 20).with_trailer();
        let mut bytes = Vec::new();
        wire.sealer.seal(&mut header, &[0; 8], &mut bytes);
        bytes.resize(3 << 20, 7);
        wire.raw(&bytes);
    }
    let mut wire = Wire::connect(&node);
    assert_eq!(wire.exists(&[b"half"]), [Status::NotFound]);
    assert_eq!(wire.put_large(b"half", &value(1, 8 << 20)).status, Status::Ok);
    node.stop().expect("an orderly stop");
}

#[test]
fn inline_payload_beyond_the_limit_ends_the_connection() {
    let node = memory_node("64 MiB");
    let mut wire = Wire::connect(&node);
    let mut header = wire.request(Opcode::Put).with_payload_length(u64::from(MAX_INLINE));
    let mut bytes = Vec::new();
    wire.sealer.seal(&mut header, &[0; 8], &mut bytes);
    bytes[16..24].copy_from_slice(&(u64::from(MAX_INLINE) + 1).to_le_bytes());
    wire.raw(&bytes);
    let (status, text) = wire.goodbye();
    assert_eq!(status, Status::TooLarge, "{text}");
    node.stop().expect("an orderly stop");
}

#[test]
fn a_drive_cut_under_the_server_goes_offline_and_the_rest_serves() {
    let dir = tempfile::tempdir().expect("a directory");
    let node = node(&format!(
        "memory: {{max_size: 64 MiB}}\nstorage:\n  mode: file\n  drives:\n    \
         - {{media: {0}/a, max_size: 128 MiB}}\n    - {{media: {0}/b, max_size: 128 MiB}}\n",
        dir.path().display()
    ));
    let mut wire = Wire::connect(&node);
    let keys: Vec<[u8; 2]> = (0..60u8).map(|i| [b'k', i]).collect();
    for key in &keys {
        assert_eq!(wire.put(key, &value(key[1], 50_000), PutMode::Absent).status, Status::Ok);
    }
    let cut = OpenOptions::new().write(true).open(dir.path().join("b")).expect("the drive");
    cut.set_len(4096).expect("cut");
    let (mut here, mut lost) = (0, 0);
    for key in &keys {
        let (reply, bytes) = wire.get(key);
        match (reply.status, reply.reason) {
            (Status::Ok, _) => {
                assert_eq!(bytes, value(key[1], 50_000));
                here += 1;
            }
            (Status::NotFound, MissReason::DriveLost) => lost += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(here > 0 && lost > 0, "{here} here, {lost} lost");
    let states: Vec<_> = node.admin().status().drives.iter().map(|d| d.state).collect();
    assert_eq!(states, [DriveState::Online, DriveState::Offline]);
    assert_eq!(node.admin().health().drives_online, 1);
    for key in &keys {
        let reply = wire.put(key, &value(key[1], 50_000), PutMode::Absent);
        assert!(matches!(reply.status, Status::Ok | Status::Present), "{reply:?}");
    }
    for key in &keys {
        assert_eq!(wire.get(key).1, value(key[1], 50_000), "everything fits on the drive left");
    }
    node.stop().expect("an orderly stop");
}

#[test]
fn a_second_node_on_the_same_drive_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let yaml = format!(
        "memory: {{max_size: 64 MiB}}\nstorage:\n  mode: file\n  drives:\n    \
         - {{media: {}/a, max_size: 128 MiB}}\n",
        dir.path().display()
    );
    let first = node(&yaml);
    let second = common::try_node(&yaml).err().expect("the drive is taken");
    let text = memkv_node::serve::chain(&second);
    assert!(text.contains("in use"), "{text}");
    first.stop().expect("an orderly stop");
}

#[test]
fn a_file_of_somebody_else_is_left_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("letter");
    std::fs::write(&path, "dear reader\n".repeat(100_000)).expect("a letter");
    let yaml = format!(
        "memory: {{max_size: 64 MiB}}\nstorage:\n  mode: file\n  drives:\n    \
         - {{media: {}, max_size: 128 MiB}}\n",
        path.display()
    );
    let error = common::try_node(&yaml).err().expect("no drive");
    let text = memkv_node::serve::chain(&error);
    assert!(text.contains("neither empty nor a memkv drive"), "{text}");
    let after = std::fs::read(&path).expect("the letter");
    assert!(after.starts_with(b"dear reader\n"), "its bytes are there");
}

#[test]
fn a_silent_peer_is_not_waited_for_at_the_stop() {
    let node = memory_node("64 MiB");
    let wire = Wire::connect(&node);
    let silent = TcpStream::connect(node.address()).expect("the node listens");
    let began = Instant::now();
    node.stop().expect("an orderly stop");
    assert!(began.elapsed() < Duration::from_secs(20));
    drop((wire, silent));
}
