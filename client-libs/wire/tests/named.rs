//! Payload that a frame names: where a reply's lies, and a put's.

use memkv_wire::meta::*;
use memkv_wire::{CrcList, MAX_VALUE, Opcode, Status};

fn put_item() -> Vec<u8> {
    let item = PutItem {
        key: b"k",
        length: 5,
        mode: PutMode::Absent,
        durable: true,
        ttl_seconds: 0,
        crcs: CrcList::EMPTY,
        advice: Default::default(),
    };
    let mut bytes = Vec::new();
    PutItems { items: vec![item] }.encode(&mut bytes);
    bytes
}

#[test]
fn a_put_says_once_where_its_payload_lies() {
    let place = Staged { staging: 0x0102_0304_0506_0708, offset: u64::MAX - 1 };
    let plain = put_item();
    let items = PutItems::parse(&plain).expect("a good meta");
    let mut meta = plain.clone();
    append_extension(&mut meta, 2, &[0, 0, 0, 0, 9, 0, 0, 0]);
    place.encode(&mut meta);
    append_extension(&mut meta, 0x7001, b"whatever");
    let (mut read, at) = PutItems::parse_staged(&meta, Vec::new()).expect("it is there");
    assert_eq!((at, std::mem::take(&mut read.items[0].advice.pin_seconds)), (place, 9));
    assert_eq!(read, items);
    let request = Request::parse(Opcode::Put, &meta).expect("a good meta");
    assert!(matches!(&request, Request::PutStaged(_, at) if *at == place));
    let mut again = Vec::new();
    request.encode(&mut again);
    assert_eq!(PutItems::parse_staged(&again, Vec::new()).map(|(_, at)| at), Ok(place));
    // Who does not expect it stores nothing.
    let unknown = MetaError::MustUnderstand { kind: 0x8002 };
    assert_eq!(PutItems::parse(&meta), Err(unknown));
    assert_eq!(PutItems::lone(&meta), None);
    assert_eq!(Request::parse(Opcode::Offer, &meta), Err(unknown));
    // Not there, twice, too long, too short.
    let bad = MetaError::Extension { kind: 0x8002 };
    let staged = |meta: &[u8]| PutItems::parse_staged(meta, Vec::new()).map(drop);
    assert_eq!(staged(&plain), Err(bad));
    place.encode(&mut meta);
    assert_eq!(staged(&meta), Err(bad));
    for (length, error) in [(15, MetaError::Truncated), (17, bad)] {
        let mut meta = plain.clone();
        append_extension(&mut meta, 0x8002, &[1; 17][..length]);
        assert_eq!(staged(&meta), Err(error), "{length}");
    }
}

#[test]
fn a_named_payload_lies_in_one_to_sixteen_stretches() {
    let reply = ItemReply { length: 9, generation: 2, ..ItemReply::new(Status::Ok) };
    let get = GetReply { item: 3, offset: 4, reply };
    let span = |length| Span { window: 7, length, offset: u64::MAX };
    let bytes = |span: Span| {
        let parts = [&span.window.to_le_bytes()[..], &span.length.to_le_bytes()];
        [parts.concat(), span.offset.to_le_bytes().to_vec()].concat()
    };
    let meta = |extensions: &[Vec<u8>]| {
        let mut meta = Vec::new();
        get.encode(&mut meta);
        extensions.iter().for_each(|value| append_extension(&mut meta, 0x8001, value));
        meta
    };
    for count in 1..=16 {
        let mut spans = Spans::EMPTY;
        (1..=count).for_each(|length| assert!(spans.push(span(length))));
        assert_eq!(spans.bytes(), u64::from(count * (count + 1) / 2));
        let named = NamedReply { get, spans };
        let mut written = Vec::new();
        named.encode(&mut written);
        assert_eq!(written, meta(&[(1..=count).flat_map(|length| bytes(span(length))).collect()]));
        assert!(NamedReply::is_one(&written));
        assert_eq!(NamedReply::parse(&written), Ok(named));
        let read = Reply::parse(Opcode::Get, Status::Ok, &written);
        assert_eq!(read, Ok(Reply::Named(named)));
        // Who was not told of it cannot take it for one without payload.
        let error = Err(MetaError::MustUnderstand { kind: 0x8001 });
        assert_eq!(GetReply::parse(&written), error);
        append_extension(&mut written, 9, b"unknown");
        assert_eq!(NamedReply::parse(&written), Ok(named));
        append_extension(&mut written, 0x8002, b"");
        let error = Err(MetaError::MustUnderstand { kind: 0x8002 });
        assert_eq!(NamedReply::parse(&written), error);
    }
    let mut full = Spans::EMPTY;
    (0..16).for_each(|_| assert!(full.push(span(1))));
    assert!(!full.push(span(1)));
    let mut one = Spans::EMPTY;
    assert!(one.push(span(1)) && one != full && one != Spans::EMPTY);
    assert_eq!(format!("{one:?}"), format!("{:?}", [span(1)]));
    let bad = Err(MetaError::Extension { kind: 0x8001 });
    let one = bytes(span(1));
    let most = MAX_VALUE as u32;
    assert!(NamedReply::parse(&meta(&[bytes(span(most))])).is_ok());
    let more = [bytes(span(most)), one.clone()].concat();
    assert_eq!(NamedReply::parse(&meta(&[more])), bad, "more than a value has");
    for extensions in [vec![], vec![vec![]], vec![bytes(span(0))], vec![one.repeat(17)]] {
        assert_eq!(NamedReply::parse(&meta(&extensions)), bad, "{}", extensions.len());
    }
    assert_eq!(NamedReply::parse(&meta(&[one.clone(), one.clone()])), bad, "it is said once");
    assert_eq!(NamedReply::parse(&meta(&[one[..15].to_vec()])), Err(MetaError::Truncated));
    let whole = meta(&[one]);
    for end in 0..whole.len() {
        assert!(NamedReply::parse(&whole[..end]).is_err(), "{end}");
        assert!(!NamedReply::is_one(&whole[..end]), "{end}");
    }
}
