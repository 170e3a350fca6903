//! Frames whose bytes never change: one file per operation and direction under `tests/golden`.
//!
//! These are the bytes that released clients and servers exchange. A test that fails here means the
//! protocol changed; that takes a new version, not a new file. A file for a new operation is
//! written by `MEMKV_GOLDEN=write cargo test -p memkv-wire --test golden`, which never touches a
//! file that exists.

mod common;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use common::samples::{Sample, samples};
use common::{from_hex, to_hex};
use memkv_wire::meta::{Reply, Request};
use memkv_wire::{Header, Opcode, crc32c, trailer_len};

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// 32 bytes to a line.
fn to_lines(bytes: &[u8]) -> String {
    bytes.chunks(32).map(|line| to_hex(line) + "\n").collect()
}

fn golden(sample: &Sample) -> Vec<u8> {
    let path = directory().join(format!("{}.hex", sample.name));
    if !path.exists() && std::env::var("MEMKV_GOLDEN").is_ok_and(|word| word == "write") {
        std::fs::write(&path, to_lines(&sample.frame())).expect("the golden folder is writable");
    }
    let text = std::fs::read_to_string(&path);
    from_hex(&text.unwrap_or_else(|error| panic!("{}: {error}", path.display())))
}

#[test]
fn frames_are_sealed_to_the_golden_bytes() {
    for sample in samples() {
        let (want, got) = (golden(&sample), sample.frame());
        assert!(want == got, "{}: the protocol changed\n{}", sample.name, to_lines(&got));
    }
}

#[test]
fn golden_bytes_open_to_the_frames() {
    for sample in samples() {
        let frame = golden(&sample);
        let (_, mut opener) = sample.ends();
        let (raw, rest) = common::split(&frame);
        let meta_length = opener.peek(raw).expect("well formed").meta_length() as usize;
        let (meta, rest) = rest.split_at(meta_length);
        let header = opener.open(raw, meta).expect("authentic");
        assert_same_fields(&header, &sample.header);
        assert_eq!(meta, sample.meta);
        let (payload, trailer) = rest.split_at(header.payload_length() as usize);
        assert_eq!(payload, sample.payload);
        match sample.crcs {
            Some(crcs) => {
                assert_eq!(trailer.len(), trailer_len(crcs.len()));
                let list = opener.open_trailer(header.mac(), trailer).expect("authentic");
                assert_eq!(list.as_slice(), crcs);
                assert_eq!(crcs, [crc32c(payload)]);
            }
            None => assert!(trailer.is_empty() && !header.has_trailer()),
        }
    }
}

/// All but what the sealer sets.
fn assert_same_fields(got: &Header, want: &Header) {
    assert_eq!((got.opcode(), got.status()), (want.opcode(), want.status()));
    assert_eq!((got.is_reply(), got.has_more()), (want.is_reply(), want.has_more()));
    assert_eq!(got.as_bytes()[16..32], want.as_bytes()[16..32], "payload length, request id");
    assert_eq!(got.as_bytes()[40..96], want.as_bytes()[40..96], "namespace to trace id");
}

#[test]
fn golden_metas_parse_and_encode_to_themselves() {
    for sample in samples() {
        let frame = golden(&sample);
        let header = Header::parse(&frame).expect("well formed");
        let meta = &frame[128..128 + header.meta_length() as usize];
        let mut again = Vec::new();
        if header.is_reply() {
            let reply = Reply::parse(header.opcode(), header.status(), meta);
            reply.expect(&sample.name).encode(&mut again);
        } else {
            Request::parse(header.opcode(), meta).expect(&sample.name).encode(&mut again);
        }
        assert_eq!(again, meta, "{}", sample.name);
    }
}

#[test]
fn every_operation_has_a_golden_request_and_reply_and_no_file_is_left_over() {
    let samples = samples();
    for opcode in Opcode::ALL {
        for reply in [false, true] {
            let is = |s: &&Sample| s.header.opcode() == *opcode && s.header.is_reply() == reply;
            assert!(samples.iter().any(|sample| is(&sample)), "{opcode}, reply: {reply}");
        }
    }
    let names: BTreeSet<String> = samples.iter().map(|s| format!("{}.hex", s.name)).collect();
    assert_eq!(names.len(), samples.len());
    let files: BTreeSet<String> = std::fs::read_dir(directory())
        .expect("the golden folder")
        .map(|entry| entry.expect("readable").file_name().into_string().expect("plain names"))
        .collect();
    assert_eq!(files.difference(&names).collect::<Vec<_>>(), Vec::<&String>::new());
}
