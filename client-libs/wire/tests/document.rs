//! `docs/wire.md` tells others what this crate does; here it is held to it.

mod common;

use std::collections::BTreeMap;

use common::samples::samples;
use common::{CLIENT_NONCE, KEY_ID, SERVER_NONCE, from_hex, split, to_hex};
use hmac::{Hmac, KeyInit, Mac};
use memkv_wire::handshake::{connect_keys, session_keys};
use memkv_wire::*;
use sha2::Sha256;

fn document() -> String {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/wire.md");
    std::fs::read_to_string(path).expect("docs/wire.md")
}

/// The text of each fenced block whose info string begins with `kind`, by the rest of it.
fn blocks(document: &str, kind: &str) -> BTreeMap<String, String> {
    let mut blocks = BTreeMap::new();
    let mut lines = document.lines();
    while let Some(line) = lines.next() {
        let Some(info) = line.strip_prefix("```") else { continue };
        let body: Vec<_> = lines.by_ref().take_while(|line| !line.starts_with("```")).collect();
        let (word, name) = info.split_once(' ').unwrap_or((info, ""));
        if word == kind {
            let old = blocks.insert(name.to_owned(), body.join("\n"));
            assert!(old.is_none(), "two blocks are named {info:?}");
        }
    }
    blocks
}

fn vectors(document: &str) -> BTreeMap<String, String> {
    let blocks = blocks(document, "vectors");
    let lines = blocks.values().flat_map(|block| block.lines());
    let pairs = lines.map(|line| line.split_once('=').expect("name = value"));
    pairs.map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned())).collect()
}

fn frames(document: &str) -> BTreeMap<String, Vec<u8>> {
    blocks(document, "frame").into_iter().map(|(name, hex)| (name, from_hex(&hex))).collect()
}

#[test]
fn inputs_of_the_vectors_are_those_of_the_tests() {
    let vectors = vectors(&document());
    assert_eq!(vectors["key_id"], KEY_ID.to_string());
    assert_eq!(vectors["version"], VERSION.to_string());
    assert_eq!(vectors["client_nonce"], to_hex(&CLIENT_NONCE));
    assert_eq!(vectors["server_nonce"], to_hex(&SERVER_NONCE));
    assert_eq!(vectors.len(), 10, "each vector is looked at by a test of this file");
}

/// The code's keys are not to be had, but what they seal is: the document's key must give the MAC
/// of a frame that the code sealed with the keys of the document's inputs.
#[test]
fn derived_keys_are_those_of_the_code() {
    let vectors = vectors(&document());
    let shared = SharedKey::from_hex(&vectors["shared_key"]).expect("a key");
    for (side, name) in [(Side::Client, "client"), (Side::Server, "server")] {
        let connect = connect_keys(&shared, KEY_ID, side).0;
        assert_seals_like(connect, &vectors[&format!("connect_key_{name}")]);
        let nonces = (&CLIENT_NONCE, &SERVER_NONCE);
        let session = session_keys(&shared, KEY_ID, VERSION, nonces.0, nonces.1, side).0;
        assert_seals_like(session, &vectors[&format!("session_key_{name}")]);
    }
}

fn assert_seals_like(mut sealer: Sealer, key: &str) {
    let mut header = Header::request(Opcode::Goodbye, 1);
    let mut out = Vec::new();
    sealer.seal(&mut header, b"meta", &mut out);
    let mut mac = Hmac::<Sha256>::new_from_slice(&from_hex(key)).expect("any length");
    mac.update(&out[..AUTHENTICATED_LEN]);
    mac.update(b"meta");
    assert_eq!(mac.finalize().into_bytes()[..], header.mac()[..]);
}

#[test]
fn the_development_key_is_the_one_in_the_document() {
    let text = &vectors(&document())["loopback_key"];
    let written = SharedKey::from_hex(text).expect("a key");
    let seal = |key: &SharedKey| {
        let mut out = Vec::new();
        connect_keys(key, 0, Side::Client).0.seal(
            &mut Header::request(Opcode::Connect, 1),
            b"",
            &mut out,
        );
        out
    };
    assert_eq!(seal(&written), seal(&loopback_key()));
}

#[test]
fn frames_are_those_of_the_code_and_open() {
    let frames = frames(&document());
    let samples = samples();
    for (name, frame) in &frames {
        let sample = samples.iter().find(|sample| sample.name == *name).expect(name);
        assert_eq!(to_hex(frame), to_hex(&sample.frame()), "{name}");
        let (raw, rest) = split(frame);
        let (_, mut opener) = sample.ends();
        let header = opener.open(raw, &rest[..sample.meta.len()]).expect(name);
        assert_eq!(header.opcode(), sample.header.opcode());
    }
    for needed in ["connect-request", "connect-reply", "data-request", "get-reply"] {
        assert!(frames.contains_key(needed), "{needed} belongs in the document");
    }
}

#[test]
fn tables_of_numbers_are_complete() {
    let document = document();
    let row = |number: String, name: &str| {
        let start = format!("| {number} | {name} |");
        assert!(document.lines().any(|line| line.starts_with(&start)), "no row {start:?}");
    };
    for opcode in Opcode::ALL {
        row(format!("{:#04x}", opcode.raw()), opcode.name());
    }
    for status in Status::ALL {
        row(status.raw().to_string(), status.name());
    }
    for reason in MissReason::ALL {
        row(reason.raw().to_string(), reason.name());
    }
    for id in StatId::ALL {
        row(id.raw().to_string(), id.name());
    }
    for (flag, name) in [
        (flags::REPLY, "REPLY"),
        (flags::TRAILER, "TRAILER"),
        (flags::FROM_SERVER, "FROM_SERVER"),
        (flags::MORE, "MORE"),
        (flags::LENT, "LENT"),
        (flags::NAMED, "NAMED"),
    ] {
        row(flag.to_string(), name);
    }
    assert_eq!(flags::ALL.count_ones(), 6, "each flag has a row");
}

/// Limits are written as numbers; each must still be there when the code's changes.
#[test]
fn limits_are_those_of_the_code() {
    let document = document();
    for (what, number) in [
        ("at most ", u64::from(MAX_META)),
        ("Goodbye ", u64::from(MAX_CONTROL_META)),
        ("1 to ", MAX_VALUE),
        ("request (at most ", u64::from(MAX_INLINE)),
        ("a **key** is 1 to ", MAX_KEY as u64),
        ("namespace_length | 1 to ", MAX_NAMESPACE as u64),
        ("most items of one request: at most ", MAX_ITEMS as u64),
        ("n, at most ", MAX_EXTENTS as u64),
        ("port ", u64::from(DEFAULT_PORT)),
        ("(at\nmost ", MAX_TEXT as u64),
    ] {
        let text = format!("{what}{number}");
        assert!(document.contains(&text), "the document lacks {text:?}");
    }
}
