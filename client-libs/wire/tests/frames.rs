//! What opens, what does not, and under which name it is refused.

mod common;

use common::{
    CLIENT_NONCE, KEY_ID, SERVER_NONCE, connected, connecting, filled, shared_key, split,
};
use memkv_wire::handshake::{connect_keys, peek_connect, session_keys};
use memkv_wire::meta::{GoodbyeMeta, KeyList};
use memkv_wire::*;
use proptest::collection::vec;
use proptest::prelude::*;

fn meta() -> Vec<u8> {
    let mut meta = Vec::new();
    KeyList { keys: vec![b"layer-0/block-17"] }.encode(&mut meta);
    meta
}

/// The frame `sealer` makes of an Exists request.
fn sealed(sealer: &mut Sealer) -> Vec<u8> {
    let mut out = Vec::new();
    sealer.seal(&mut Header::request(Opcode::Exists, 99), &meta(), &mut out);
    out
}

fn open(opener: &mut Opener, frame: &[u8]) -> Result<Header, FrameError> {
    let (raw, meta) = split(frame);
    opener.open(raw, meta)
}

/// A frame from the client to a server that awaits it, with `bytes` put at `at`.
fn tampered(at: usize, bytes: &[u8]) -> Result<Header, FrameError> {
    let mut frame = sealed(&mut connected(Side::Client).0);
    frame[at..at + bytes.len()].copy_from_slice(bytes);
    open(&mut connected(Side::Server).1, &frame)
}

#[test]
fn frames_open_in_order_and_in_both_directions() {
    let (mut to_server, mut at_client) = connected(Side::Client);
    let (mut to_client, mut at_server) = connected(Side::Server);
    for sequence in 1..5 {
        let request = open(&mut at_server, &sealed(&mut to_server)).expect("authentic");
        assert_eq!((request.sequence(), request.from_server()), (sequence, false));
        assert_eq!((request.opcode(), request.request_id()), (Opcode::Exists, 99));

        let mut reply = Header::reply(&request, Status::Ok).with_credits(3);
        let mut out = Vec::new();
        to_client.seal(&mut reply, b"", &mut out);
        let got = open(&mut at_client, &out).expect("authentic");
        assert_eq!(got, reply);
        assert!(got.is_reply() && got.from_server() && !got.has_more() && !got.has_trailer());
        assert_eq!((got.credits(), got.request_id(), got.sequence()), (3, 99, sequence));
    }
}

#[test]
fn connect_frames_have_keys_of_their_own() {
    let (mut sealer, _) = connecting(Side::Client);
    let mut out = Vec::new();
    sealer.seal(&mut Header::request(Opcode::Connect, 1), b"hello", &mut out);
    let (raw, meta) = split(&out);
    assert_eq!(peek_connect(raw).expect("a Connect request").meta_length(), 5);
    assert!(connecting(Side::Server).1.open(raw, meta).is_ok());
    assert!(matches!(
        connected(Side::Server).1.open(raw, meta),
        Err(FrameError::Duplicate { sequence: 0, expected: 1 })
    ));
    let (_, mut other) = connect_keys(&shared_key(), KEY_ID + 1, Side::Server);
    assert_eq!(other.open(raw, meta), Err(FrameError::BadMac));
}

#[test]
fn a_first_frame_must_be_a_connect_request() {
    let first = |mut header: Header| {
        let mut out = Vec::new();
        connecting(Side::Client).0.seal(&mut header, b"", &mut out);
        peek_connect(split(&out).0)
    };
    let connect = Header::request(Opcode::Connect, 1);
    assert!(first(connect).is_ok());
    assert_eq!(first(connect.with_trailer()), Err(FrameError::BadFlags { got: flags::TRAILER }));
    let exists = Header::request(Opcode::Exists, 1);
    assert_eq!(first(exists), Err(FrameError::UnknownOpcode { got: 0x10 }));

    let mut out = Vec::new();
    connected(Side::Client).0.seal(&mut connect.clone(), b"", &mut out);
    let gap = FrameError::Gap { sequence: 1, expected: 0 };
    assert_eq!(peek_connect(split(&out).0), Err(gap));
    out.clear();
    connecting(Side::Server).0.seal(&mut Header::reply(&connect, Status::Ok), b"", &mut out);
    assert_eq!(peek_connect(split(&out).0), Err(FrameError::Reflected));
}

#[test]
fn wrong_key() {
    let frame = sealed(&mut connected(Side::Client).0);
    let other = SharedKey::from_bytes(filled(1));
    let (_, mut opener) =
        session_keys(&other, KEY_ID, 1, &CLIENT_NONCE, &SERVER_NONCE, Side::Server);
    assert_eq!(open(&mut opener, &frame), Err(FrameError::BadMac));
}

#[test]
fn frame_of_another_connection() {
    let frame = sealed(&mut connected(Side::Client).0);
    for (client, server) in [(filled(9), SERVER_NONCE), (CLIENT_NONCE, filled(9))] {
        let (_, mut opener) =
            session_keys(&shared_key(), KEY_ID, 1, &client, &server, Side::Server);
        assert_eq!(open(&mut opener, &frame), Err(FrameError::BadMac));
        assert_eq!(opener.next_sequence(), 1, "a refused frame does not move the sequence");
    }
}

#[test]
fn duplicate() {
    let (mut sealer, _) = connected(Side::Client);
    let (_, mut opener) = connected(Side::Server);
    let frame = sealed(&mut sealer);
    assert!(open(&mut opener, &frame).is_ok());
    let duplicate = FrameError::Duplicate { sequence: 1, expected: 2 };
    assert_eq!(open(&mut opener, &frame), Err(duplicate));
    assert!(open(&mut opener, &sealed(&mut sealer)).is_ok(), "the next one is still welcome");
}

#[test]
fn gap_and_reordered() {
    let (mut sealer, _) = connected(Side::Client);
    let (_, mut opener) = connected(Side::Server);
    let (first, second) = (sealed(&mut sealer), sealed(&mut sealer));
    assert_eq!(open(&mut opener, &second), Err(FrameError::Gap { sequence: 2, expected: 1 }));
    assert!(open(&mut opener, &first).is_ok());
    assert!(open(&mut opener, &second).is_ok());
}

#[test]
fn a_sequence_cannot_be_corrected_by_a_forger() {
    let sequence = 2u64.to_le_bytes();
    assert_eq!(tampered(32, &sequence), Err(FrameError::Gap { sequence: 2, expected: 1 }));
    let (mut sealer, _) = connected(Side::Client);
    let (_, mut opener) = connected(Side::Server);
    sealed(&mut sealer);
    let mut second = sealed(&mut sealer);
    second[32..40].copy_from_slice(&1u64.to_le_bytes());
    assert_eq!(open(&mut opener, &second), Err(FrameError::BadMac));
}

#[test]
fn reflected() {
    let (mut sealer, mut opener) = connected(Side::Client);
    let mut frame = sealed(&mut sealer);
    assert_eq!(open(&mut opener, &frame), Err(FrameError::Reflected));
    frame[8] |= flags::FROM_SERVER as u8;
    assert_eq!(open(&mut opener, &frame), Err(FrameError::BadMac), "the flag is not the guard");
}

#[test]
fn truncated() {
    let frame = sealed(&mut connected(Side::Client).0);
    for length in 0..HEADER_LEN {
        let truncated = FrameError::Truncated { wanted: 128, got: length as u64 };
        assert_eq!(Header::parse(&frame[..length]), Err(truncated));
    }
    let (raw, meta) = split(&frame);
    let wanted = meta.len() as u64;
    for length in 0..meta.len() {
        let got = connected(Side::Server).1.open(raw, &meta[..length]);
        assert_eq!(got, Err(FrameError::Truncated { wanted, got: length as u64 }));
    }
    let long = [meta, b"x"].concat();
    let got = connected(Side::Server).1.open(raw, &long);
    assert_eq!(got, Err(FrameError::Truncated { wanted, got: wanted + 1 }));
}

#[test]
fn oversized_meta() {
    let (got, limit) = (MAX_META + 1, MAX_META);
    assert_eq!(tampered(12, &got.to_le_bytes()), Err(FrameError::MetaTooLong { got, limit }));
    let (got, limit) = (MAX_CONTROL_META + 1, MAX_CONTROL_META);
    let mut frame = sealed(&mut connected(Side::Client).0);
    frame[12..16].copy_from_slice(&got.to_le_bytes());
    for opcode in [Opcode::Connect, Opcode::Goodbye] {
        frame[5] = opcode.raw();
        assert_eq!(Header::parse(&frame), Err(FrameError::MetaTooLong { got, limit }));
    }
}

#[test]
fn oversized_payload() {
    let parse = |opcode: Opcode, got: u64| {
        let mut raw = *Header::request(opcode, 1).as_bytes();
        raw[16..24].copy_from_slice(&got.to_le_bytes());
        Header::parse(&raw).map(drop)
    };
    let inline = u64::from(MAX_INLINE);
    for (opcode, limit) in [
        (Opcode::Put, inline),
        (Opcode::Data, MAX_VALUE),
        (Opcode::Get, 0),
        (Opcode::Offer, MAX_VALUE),
        (Opcode::Connect, 0),
    ] {
        assert_eq!(parse(opcode, limit), Ok(()));
        let got = limit + 1;
        assert_eq!(parse(opcode, got), Err(FrameError::PayloadTooLong { got, limit }));
        let got = u64::MAX;
        assert_eq!(parse(opcode, got), Err(FrameError::PayloadTooLong { got, limit }));
    }
}

#[test]
fn versions_magic_and_reserved_bytes() {
    assert_eq!(tampered(0, b"HTTP"), Err(FrameError::BadMagic));
    assert_eq!(tampered(4, &[2]), Err(FrameError::NewerVersion { got: 2 }));
    assert_eq!(tampered(4, &[255]), Err(FrameError::NewerVersion { got: 255 }));
    assert_eq!(tampered(4, &[0]), Err(FrameError::UnknownVersion { got: 0 }));
    assert_eq!(tampered(58, &[1]), Err(FrameError::ReservedNotZero { got: 1 }));
    assert_eq!(tampered(59, &[1]), Err(FrameError::ReservedNotZero { got: 256 }));
}

#[test]
fn unknown_codes_and_flags() {
    assert_eq!(tampered(5, &[0]), Err(FrameError::UnknownOpcode { got: 0 }));
    assert_eq!(tampered(5, &[0xff]), Err(FrameError::UnknownOpcode { got: 0xff }));
    for opcode in 0x40..=0x43 {
        assert_eq!(tampered(5, &[opcode]), Err(FrameError::Unsupported { opcode }));
    }
    assert_eq!(tampered(6, &[200]), Err(FrameError::UnknownStatus { got: 200 }));
    assert_eq!(tampered(6, &[6]), Err(FrameError::BadFlags { got: 0 }), "a request has no status");
    assert_eq!(tampered(8, &[64]), Err(FrameError::BadFlags { got: 64 }));
    assert_eq!(tampered(8, &[flags::NAMED as u8]), Err(FrameError::BadFlags { got: 32 }));
    assert_eq!(tampered(8, &[flags::REPLY as u8]), Err(FrameError::BadFlags { got: 1 }));
    assert_eq!(tampered(8, &[flags::MORE as u8]), Err(FrameError::BadFlags { got: 8 }));
    assert_eq!(tampered(8, &[flags::LENT as u8]), Err(FrameError::BadFlags { got: 16 }));
}

#[test]
fn only_a_get_and_a_put_are_about_named_payload_and_then_there_is_none() {
    let request = Header::request(Opcode::Get, 1);
    let reply = Header::reply(&request, Status::Ok).with_flags(flags::FROM_SERVER);
    let other = Header::reply(&Header::request(Opcode::Exists, 1), Status::Ok);
    let put = Header::request(Opcode::Put, 1);
    let stored = Header::reply(&put, Status::Ok);
    assert!(!request.is_named() && !reply.is_named());
    assert!(request.with_named().is_named() && reply.with_named().is_named());
    let cases = [
        (request, flags::NAMED, 0, true),
        (reply, flags::NAMED, 0, true),
        (reply, flags::NAMED | flags::MORE, 0, true),
        (reply, flags::NAMED, 1, false),
        (reply, flags::NAMED | flags::LENT, 0, false),
        (reply, flags::NAMED | flags::TRAILER, 0, false),
        (other.with_flags(flags::FROM_SERVER), flags::NAMED, 0, false),
        (Header::request(Opcode::Exists, 1), flags::NAMED, 0, false),
        (put, flags::NAMED, 0, true),
        (put, flags::NAMED, 1, false),
        (put, flags::NAMED | flags::TRAILER, 0, false),
        (put, 0, 1, true),
        (Header::request(Opcode::Offer, 1), flags::NAMED, 0, false),
        (stored.with_flags(flags::FROM_SERVER), flags::NAMED, 0, false),
        (stored.with_flags(flags::FROM_SERVER), 0, 0, true),
    ];
    for (header, more, payload, good) in cases {
        let side = if header.is_reply() { Side::Client } else { Side::Server };
        let header = header.with_payload_length(payload).with_flags(more);
        let mut raw = *header.as_bytes();
        // The next of its direction.
        raw[32] = 1;
        let peeked = connected(side).1.peek(&raw);
        assert_eq!(peeked.is_ok(), good, "{header:?}: {peeked:?}");
        let bad = FrameError::BadFlags { got: header.flags() };
        assert!(good || peeked == Err(bad), "{peeked:?}");
    }
}

#[test]
fn forged_meta_and_header_bytes() {
    let frame = sealed(&mut connected(Side::Client).0);
    for at in 0..frame.len() {
        for bit in 0..8 {
            let mut frame = frame.clone();
            frame[at] ^= 1 << bit;
            let got = open(&mut connected(Side::Server).1, &frame);
            let error = got.expect_err("one bit is enough");
            if at >= HEADER_LEN || (40..58).contains(&at) || (60..128).contains(&at) {
                assert_eq!(error, FrameError::BadMac, "byte {at}");
            }
        }
    }
}

#[test]
fn trailers() {
    let (mut sealer, _) = connected(Side::Client);
    let (_, opener) = connected(Side::Server);
    let mut header = Header::request(Opcode::Data, 5).with_payload_length(10).with_trailer();
    sealer.seal(&mut header, b"", &mut Vec::new());
    for count in 0..=MAX_EXTENTS {
        let crcs: Vec<u32> = (0..count as u32).map(|crc| crc * 0x0101_0101).collect();
        let mut out = Vec::new();
        sealer.seal_trailer(header.mac(), &crcs, &mut out);
        assert_eq!(out.len(), trailer_len(count));
        assert!(out.len() <= MAX_TRAILER_LEN);
        let list = opener.open_trailer(header.mac(), &out).expect("authentic");
        assert_eq!(list.as_slice(), crcs);
        for length in 0..out.len() {
            let got = opener.open_trailer(header.mac(), &out[..length]);
            assert!(
                matches!(got, Err(FrameError::Truncated { .. })),
                "{count} CRCs, {length} bytes"
            );
        }
        out.push(0);
        let got = opener.open_trailer(header.mac(), &out);
        assert!(matches!(got, Err(FrameError::Truncated { .. })));
    }
}

#[test]
fn forged_trailer() {
    let (mut sealer, at_client) = connected(Side::Client);
    let (to_client, opener) = connected(Side::Server);
    let mut header = Header::request(Opcode::Data, 5).with_payload_length(10).with_trailer();
    sealer.seal(&mut header, b"", &mut Vec::new());
    let mut trailer = Vec::new();
    sealer.seal_trailer(header.mac(), &[1, 2, 3], &mut trailer);
    for at in 4..trailer.len() {
        let mut forged = trailer.clone();
        forged[at] ^= 0x80;
        assert_eq!(opener.open_trailer(header.mac(), &forged), Err(FrameError::BadTrailer));
    }
    let mut forged = trailer.clone();
    forged[0] = 17;
    let got = opener.open_trailer(header.mac(), &forged);
    assert_eq!(got, Err(FrameError::TooManyCrcs { got: 17 }));
    // The trailer of another frame, and one that goes the other way.
    let other = [7; 32];
    assert_eq!(opener.open_trailer(&other, &trailer), Err(FrameError::BadTrailer));
    assert_eq!(at_client.open_trailer(header.mac(), &trailer), Err(FrameError::BadTrailer));
    let mut reflected = Vec::new();
    to_client.seal_trailer(header.mac(), &[1, 2, 3], &mut reflected);
    assert_eq!(opener.open_trailer(header.mac(), &reflected), Err(FrameError::BadTrailer));
}

#[test]
fn a_goodbye_goes_either_way() {
    let mut meta = Vec::new();
    GoodbyeMeta { text: "shutting down" }.encode(&mut meta);
    for side in [Side::Client, Side::Server] {
        let mut out = Vec::new();
        let header = Header::request(Opcode::Goodbye, 0).with_status(Status::ShuttingDown);
        connected(side).0.seal(&mut header.clone(), &meta, &mut out);
        let got = open(&mut connected(side.peer()).1, &out).expect("authentic");
        assert_eq!((got.opcode(), got.is_reply()), (Opcode::Goodbye, false));
        assert_eq!(got.status(), Status::ShuttingDown);
    }
}

#[test]
fn errors_have_a_status_to_say_goodbye_with() {
    assert_eq!(FrameError::BadMac.status(), Status::Unauthorized);
    assert_eq!(FrameError::NewerVersion { got: 2 }.status(), Status::UnsupportedVersion);
    assert_eq!(FrameError::Unsupported { opcode: 0x40 }.status(), Status::Unsupported);
    assert_eq!(FrameError::MetaTooLong { got: 2, limit: 1 }.status(), Status::TooLarge);
    assert_eq!(FrameError::BadMagic.status(), Status::BadRequest);
}

#[test]
#[should_panic(expected = "this side sends only frames that its peer accepts")]
fn a_frame_that_the_peer_would_refuse_is_not_sent() {
    let mut header = Header::request(Opcode::Exists, 1).with_payload_length(1);
    connected(Side::Client).0.seal(&mut header, b"", &mut Vec::new());
}

fn header() -> impl Strategy<Value = Header> {
    let numbers = (any::<u64>(), any::<u64>(), any::<u64>(), any::<u64>());
    let small = (any::<u32>(), any::<u32>(), any::<u32>(), any::<u8>(), any::<u8>());
    let codes = (prop::sample::select(Opcode::ALL), prop::sample::select(Status::ALL));
    (codes, numbers, small, any::<[u8; 16]>(), 0u32..64).prop_map(
        |((opcode, status), (id, generation, consumed, stored), small, trace_id, bits)| {
            let (namespace, deadline_ms, credits, priority, codec) = small;
            let reply = bits & flags::REPLY != 0;
            let header = Header::request(opcode, id);
            let header = if reply { Header::reply(&header, status) } else { header };
            let more = if reply { bits & (flags::MORE | flags::LENT) } else { 0 };
            let may = opcode == Opcode::Get || opcode == Opcode::Put && !reply;
            let named = bits & flags::NAMED != 0 && may;
            let (flags, payload) = match named {
                true => (more & flags::MORE | flags::NAMED, 0),
                false => (more | bits & flags::TRAILER, opcode.payload_limit(reply)),
            };
            header
                .with_flags(flags)
                .with_payload_length(generation.min(payload))
                .with_namespace(namespace)
                .with_deadline_ms(deadline_ms)
                .with_generation(generation)
                .with_priority(priority)
                .with_codec(codec)
                .with_credits(credits)
                .with_consumed(consumed)
                .with_stored_length(stored)
                .with_trace_id(trace_id)
        },
    )
}

proptest! {
    /// What is sealed opens to the same, on the right side only.
    #[test]
    fn headers_roundtrip(mut header in header(), meta in vec(any::<u8>(), 0..300)) {
        let side = if header.is_reply() { Side::Server } else { Side::Client };
        let mut out = vec![0xee];
        connected(side).0.seal(&mut header, &meta, &mut out);
        prop_assert_eq!(out.len(), 1 + HEADER_LEN + meta.len(), "the frame is appended");
        let got = open(&mut connected(side.peer()).1, &out[1..]);
        prop_assert_eq!(got, Ok(header));
        prop_assert_eq!(&header.as_bytes()[..], &out[1..129]);
        prop_assert_eq!(header.meta_length() as usize, meta.len());
        let (_, mut own) = connected(side);
        prop_assert_eq!(open(&mut own, &out[1..]), Err(FrameError::Reflected));
    }

    /// Whatever arrives is a Result, and nothing arrives by luck.
    #[test]
    fn random_bytes_never_open(bytes in vec(any::<u8>(), 128..400), plausible in any::<bool>()) {
        let mut bytes = bytes;
        if plausible {
            let start = sealed(&mut connected(Side::Client).0);
            bytes[..8].copy_from_slice(&start[..8]);
            bytes[8..64].fill(0);
            bytes[32] = 1;
        }
        let (_, mut opener) = connected(Side::Server);
        prop_assert!(open(&mut opener, &bytes).is_err());
        let (raw, rest) = split(&bytes);
        let _ = opener.peek(raw);
        let _ = peek_connect(raw);
        prop_assert!(opener.open_trailer(&[0; 32], rest).is_err());
    }
}
