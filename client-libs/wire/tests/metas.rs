//! Every meta survives encode and parse, and no bytes whatever make a parser panic.

use memkv_wire::handshake::{ClientHello, Door, Limits, ServerHello};
use memkv_wire::meta::*;
use memkv_wire::{
    Advice, CrcList, MAX_ITEMS, MAX_KEY, MAX_VALUE, MissReason, Opcode, StatId, Status, VERSION,
};
use proptest::collection::vec;
use proptest::prelude::*;

fn key() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![vec(any::<u8>(), 1..40), vec(any::<u8>(), MAX_KEY..=MAX_KEY)]
}

fn crcs() -> impl Strategy<Value = CrcList> {
    vec(any::<u32>(), 0..=16).prop_map(|crcs| CrcList::from_slice(&crcs).expect("at most 16"))
}

fn text() -> impl Strategy<Value = String> {
    vec(any::<char>(), 0..60).prop_map(|chars| chars.into_iter().collect())
}

fn mode() -> impl Strategy<Value = PutMode> {
    prop_oneof![
        Just(PutMode::Absent),
        Just(PutMode::Replace),
        any::<u64>().prop_map(PutMode::Generation)
    ]
}

fn item_reply() -> impl Strategy<Value = ItemReply> {
    let status = prop::sample::select(Status::ALL);
    let reason = prop::sample::select(MissReason::ALL);
    (status, reason, any::<u32>(), any::<u64>(), any::<u64>(), crcs()).prop_map(
        |(status, reason, retry_ms, length, generation, crcs)| ItemReply {
            status,
            reason,
            retry_ms,
            length,
            generation,
            crcs,
        },
    )
}

fn limits() -> impl Strategy<Value = Limits> {
    let numbers = (any::<u32>(), any::<u32>(), any::<u32>());
    (1u64..=MAX_VALUE, 0u32..=256 << 10, 1u32..=4096, 1..=u32::MAX, numbers).prop_map(
        |(max_value, max_inline, max_items, max_requests, (credits, lease_ms_max, extra))| Limits {
            max_value,
            max_inline,
            credits,
            max_items,
            max_requests,
            lease_ms_max,
            extent: u32::max(max_value.div_ceil(16) as u32, extra),
        },
    )
}

/// One random set of everything a request may hold; the metas borrow from it.
#[derive(Debug, Clone)]
struct Parts {
    keys: Vec<(Vec<u8>, u64, u64, u32)>,
    puts: Vec<(PutMode, bool, CrcList)>,
    hello: ([u8; 32], [u8; 16], u32, String, u8, u8),
    text: String,
}

fn parts() -> impl Strategy<Value = Parts> {
    let namespace = prop_oneof![Just("n".repeat(255)), "[a-z/]{1,20}", Just("é".into())];
    let hello = (any::<[u8; 32]>(), any::<[u8; 16]>(), any::<u32>(), namespace, 1..5u8, 5..9u8);
    let keys = vec((key(), any::<u64>(), any::<u64>(), any::<u32>()), 1..12);
    let puts = vec((mode(), any::<bool>(), crcs()), 12);
    (keys, puts, hello, text()).prop_map(|(keys, puts, hello, text)| Parts {
        keys,
        puts,
        hello,
        text,
    })
}

impl Parts {
    /// One request of each operation.
    fn requests(&self) -> Vec<Request<'_>> {
        let keys: Vec<&[u8]> = self.keys.iter().map(|(key, ..)| &key[..]).collect();
        let (client_nonce, client_id, key_id, namespace, version_min, version_max) = &self.hello;
        let number = self.keys[0].3;
        vec![
            Request::Connect(ClientHello {
                client_nonce: *client_nonce,
                client_id: *client_id,
                key_id: *key_id,
                namespace,
                version_min: *version_min,
                version_max: *version_max,
                counts_lent: false,
                reads_windows: false,
            }),
            Request::Exists(KeyList { keys: keys.clone() }),
            Request::MatchPrefix(MatchItems {
                items: self.items(|key, _, _, position| MatchItem { position, key }),
            }),
            Request::Lease(LeaseList { lease_ms: number, keys: keys.clone() }),
            Request::Release(KeyList { keys: keys.clone() }),
            Request::Hint(self.hint(keys.clone())),
            Request::Presence(KeyList { keys }),
            Request::Put(self.puts()),
            Request::Get(GetItems {
                items: self.items(|key, offset, length, _| GetItem { key, offset, length }),
            }),
            Request::Delete(DeleteItems {
                items: self.items(|key, generation, _, _| DeleteItem { key, generation }),
            }),
            Request::Offer(self.puts()),
            Request::Data(DataMeta { item: number }),
            Request::Suspect(SuspectItems {
                items: self.items(|key, generation, _, _| SuspectItem { key, generation }),
            }),
            Request::Stats(Empty),
            Request::Goodbye(GoodbyeMeta { text: &self.text }),
        ]
    }

    fn items<'a, T>(&'a self, make: impl Fn(&'a [u8], u64, u64, u32) -> T) -> Vec<T> {
        self.keys.iter().map(|(key, a, b, c)| make(key, *a, *b, *c)).collect()
    }

    fn hint<'a>(&'a self, keys: Vec<&'a [u8]>) -> HintList<'a> {
        let seconds = self.keys[0].3.max(1);
        let advice = Advice::ALL[seconds as usize % Advice::ALL.len()];
        HintList { advice, seconds: if advice == Advice::Pin { seconds } else { 0 }, keys }
    }

    /// What is said of an item: its parent is the key before it.
    fn advice(&self, item: usize) -> PutAdvice<'_> {
        let (_, length, generation, seconds) = &self.keys[item];
        let parent = item.checked_sub(1).filter(|_| length % 2 == 0);
        PutAdvice {
            parent: parent.map(|parent| &self.keys[parent].0[..]),
            pin_seconds: if generation % 2 == 0 { *seconds } else { 0 },
        }
    }

    fn puts(&self) -> PutItems<'_> {
        let pairs = self.keys.iter().zip(&self.puts).enumerate();
        let items = pairs.map(|(at, ((key, length, _, ttl_seconds), put))| {
            let (mode, durable, crcs) = put;
            PutItem {
                key,
                length: length % MAX_VALUE + 1,
                mode: *mode,
                durable: *durable,
                ttl_seconds: *ttl_seconds,
                crcs: *crcs,
                advice: self.advice(at),
            }
        });
        PutItems { items: items.collect() }
    }
}

/// The same, of payload that lies in as many places as it has CRCs, at least one.
fn named(get: GetReply) -> NamedReply {
    let mut spans = Spans::EMPTY;
    for nth in 0..get.reply.crcs.len().max(1) {
        let (window, length) = (get.item, nth as u32 + 1);
        assert!(spans.push(Span { window, length, offset: get.offset }), "at most 16");
    }
    NamedReply { get, spans }
}

fn replies() -> impl Strategy<Value = Vec<(Opcode, Status, Reply<'static>)>> {
    let hello = (any::<[u8; 32]>(), any::<[u8; 32]>(), any::<[u8; 16]>(), any::<u64>(), limits());
    let items = vec(item_reply(), 0..12);
    let stats = vec(any::<(u16, u64)>(), 0..30);
    let numbers = (any::<u32>(), any::<u32>(), any::<u64>());
    (hello, items, stats, item_reply(), numbers).prop_map(
        |(hello, items, stats, reply, numbers)| {
            let (item, number, offset) = numbers;
            let (server_nonce, client_nonce, server_id, incarnation, limits) = hello;
            let hello = ServerHello {
                server_nonce,
                client_nonce,
                server_id,
                incarnation,
                namespace: number,
                version: VERSION,
                limits,
                payload_with_offer: false,
                answers_presence: false,
                door: None,
                takes_staged: false,
            };
            let missing = items
                .iter()
                .map(|item: &ItemReply| (item.status != Status::Ok).then_some(item.reason));
            let presence = PresenceReply { missing: missing.collect() };
            let items = Reply::Items(ItemReplies { items });
            let refusal = Refusal { retry_ms: number, text: "later, please" };
            let matched = MatchReply { first_missing: item, examined: number };
            vec![
                (Opcode::Connect, Status::Ok, Reply::Connect(hello)),
                (Opcode::Exists, Status::Ok, items.clone()),
                (Opcode::MatchPrefix, Status::Ok, Reply::Match(matched)),
                (Opcode::Lease, Status::Ok, items.clone()),
                (Opcode::Release, Status::Ok, Reply::Empty(Empty)),
                (Opcode::Hint, Status::Ok, items.clone()),
                (Opcode::Presence, Status::Ok, Reply::Presence(presence)),
                (Opcode::Put, Status::Ok, items.clone()),
                (Opcode::Get, Status::Ok, Reply::Get(GetReply { item, offset, reply })),
                (Opcode::Get, Status::Ok, Reply::Named(named(GetReply { item, offset, reply }))),
                (Opcode::Delete, Status::Ok, items.clone()),
                (Opcode::Offer, Status::Ok, items.clone()),
                (Opcode::Data, Status::Ok, Reply::Data(DataReply { item, reply })),
                (Opcode::Suspect, Status::Ok, items),
                (Opcode::Stats, Status::Ok, Reply::Stats(StatsReply { stats })),
                (Opcode::Goodbye, Status::Ok, Reply::Empty(Empty)),
                (Opcode::Put, Status::Busy, Reply::Refused(refusal)),
            ]
        },
    )
}

/// Both ways, alone and with extensions behind.
fn check_extensions(
    bytes: &[u8],
    parse: &dyn Fn(&[u8]) -> Result<(), MetaError>,
) -> Result<(), TestCaseError> {
    let mut extended = bytes.to_vec();
    append_extension(&mut extended, 0x7001, b"whatever");
    append_extension(&mut extended, 0x7fff, b"");
    prop_assert_eq!(parse(&extended), Ok(()), "unknown extensions are skipped");
    append_extension(&mut extended, MUST_UNDERSTAND, b"x");
    let refused = Err(MetaError::MustUnderstand { kind: MUST_UNDERSTAND });
    prop_assert_eq!(parse(&extended), refused);
    extended.pop();
    prop_assert_eq!(parse(&extended), Err(MetaError::Truncated));
    Ok(())
}

/// The items of a put or an offer without what is said of them besides, and their bytes.
fn plain_puts<'a>(request: &Request<'a>) -> Option<(PutItems<'a>, usize)> {
    let (Request::Put(puts) | Request::Offer(puts)) = request else { return None };
    let plain = |item: &PutItem<'a>| PutItem { advice: PutAdvice::default(), ..item.clone() };
    let puts = PutItems { items: puts.items.iter().map(plain).collect() };
    let mut bytes = Vec::new();
    puts.encode(&mut bytes);
    Some((puts, bytes.len()))
}

/// The only item of a put or an offer, by reading all of it.
fn lone(meta: &[u8]) -> Option<PutItem<'_>> {
    let mut items = PutItems::parse(meta).ok()?.items;
    items.pop().filter(|_| items.is_empty())
}

/// Both ways to read it, with each of its bytes changed.
#[test]
fn a_put_of_one_item_is_known_by_itself() {
    let mut meta = put_item();
    append_extension(&mut meta, 2, &[0, 0, 0, 0, 9, 0, 0, 0]);
    assert_eq!(PutItems::lone(&meta).map(|item| item.advice.pin_seconds), Some(9));
    for at in 0..meta.len() {
        for bit in 0..8 {
            meta[at] ^= 1 << bit;
            assert_eq!(PutItems::lone(&meta), lone(&meta), "byte {at}, bit {bit}");
            meta[at] ^= 1 << bit;
        }
        assert_eq!(PutItems::lone(&meta[..at]), lone(&meta[..at]), "{at} bytes");
    }
}

/// The only item of a get, by reading all of it.
fn lone_get(meta: &[u8]) -> Option<GetItem<'_>> {
    let mut items = GetItems::parse(meta).ok()?.items;
    items.pop().filter(|_| items.is_empty())
}

/// As [`a_put_of_one_item_is_known_by_itself`].
#[test]
fn a_get_of_one_item_is_known_by_itself() {
    let (mut meta, item) = (Vec::new(), GetItem { key: b"key", offset: 7, length: 1 << 40 });
    GetItems { items: vec![item.clone()] }.encode(&mut meta);
    assert_eq!(GetItems::lone(&meta), Some(item));
    append_extension(&mut meta, 7, b"whatever");
    for at in 0..meta.len() {
        for bit in 0..8 {
            meta[at] ^= 1 << bit;
            assert_eq!(GetItems::lone(&meta), lone_get(&meta), "byte {at}, bit {bit}");
            meta[at] ^= 1 << bit;
        }
        assert_eq!(GetItems::lone(&meta[..at]), lone_get(&meta[..at]), "{at} bytes");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn requests_roundtrip(parts in parts()) {
        let requests = parts.requests();
        let covered: Vec<_> = requests.iter().map(Request::opcode).collect();
        prop_assert_eq!(&covered[..], Opcode::ALL);
        for request in requests {
            let mut bytes = Vec::new();
            request.encode(&mut bytes);
            let opcode = request.opcode();
            prop_assert_eq!(PutItems::lone(&bytes), lone(&bytes));
            prop_assert_eq!(GetItems::lone(&bytes), lone_get(&bytes));
            prop_assert_eq!(Request::parse(opcode, &bytes), Ok(request));
            check_extensions(&bytes, &|meta| Request::parse(opcode, meta).map(drop))?;
        }
    }

    #[test]
    fn replies_roundtrip(replies in replies()) {
        for (opcode, status, reply) in replies {
            let mut bytes = Vec::new();
            reply.encode(&mut bytes);
            prop_assert_eq!(Reply::parse(opcode, status, &bytes), Ok(reply));
            check_extensions(&bytes, &|meta| Reply::parse(opcode, status, meta).map(drop))?;
        }
    }

    /// No part of a meta can be missing unnoticed, except where nothing at all is a meta too.
    #[test]
    fn truncated_at_every_length(parts in parts(), replies in replies()) {
        for request in parts.requests() {
            let mut bytes = Vec::new();
            request.encode(&mut bytes);
            if let Request::Put(puts) | Request::Offer(puts) = &request {
                let plain = plain_puts(&request).map_or(0, |(_, length)| length);
                let advice = puts.items.iter().map(|item| item.advice.encoded_length());
                prop_assert_eq!(bytes.len(), plain + advice.sum::<usize>());
            }
            for length in 0..bytes.len() {
                let got = Request::parse(request.opcode(), &bytes[..length]);
                // What is said besides of puts is in extensions: without them it is a whole put.
                if let (Ok(got), Some(plain)) = (&got, plain_puts(&request)) {
                    prop_assert!(length >= plain.1, "a part of an item is missing");
                    prop_assert_eq!(plain_puts(got), Some(plain), "the items are the same");
                    prop_assert!(*got != request, "some of the advice is missing");
                    continue;
                }
                prop_assert_eq!(got, Err(MetaError::Truncated), "{} at {}", request.opcode(), length);
            }
        }
        for (opcode, status, reply) in replies {
            let mut bytes = Vec::new();
            reply.encode(&mut bytes);
            for length in 0..bytes.len() {
                let got = Reply::parse(opcode, status, &bytes[..length]);
                // Where a payload lies is an extension: without it nothing is named.
                if let (Ok(Reply::Get(got)), Reply::Named(named)) = (&got, &reply) {
                    prop_assert_eq!(*got, named.get);
                    let extension = 4 + 16 * named.spans.len();
                    prop_assert_eq!(length, bytes.len() - extension);
                    continue;
                }
                match length {
                    0 if status != Status::Ok => prop_assert!(got.is_ok()),
                    _ => prop_assert_eq!(got, Err(MetaError::Truncated)),
                }
            }
        }
    }

    /// Damaged metas are refused or mean something that can be said again.
    #[test]
    fn mutated_bytes_never_panic(
        parts in parts(),
        at in any::<prop::sample::Index>(),
        bytes in vec(any::<u8>(), 1..5),
    ) {
        for request in parts.requests() {
            let mut meta = Vec::new();
            request.encode(&mut meta);
            if meta.is_empty() { continue; }
            let at = at.index(meta.len());
            for (place, byte) in meta[at..].iter_mut().zip(&bytes) { *place = *byte; }
            for opcode in Opcode::ALL {
                same_again(*opcode, &meta)?;
            }
        }
    }

    #[test]
    fn random_bytes_never_panic(bytes in vec(any::<u8>(), 0..200), small in vec(0u8..4, 0..200)) {
        for opcode in Opcode::ALL {
            same_again(*opcode, &bytes)?;
            same_again(*opcode, &small)?;
        }
    }
}

/// What parses encodes to bytes that parse to the same.
fn same_again(opcode: Opcode, meta: &[u8]) -> Result<(), TestCaseError> {
    if let Ok(request) = Request::parse(opcode, meta) {
        let mut bytes = Vec::new();
        request.encode(&mut bytes);
        prop_assert_eq!(Request::parse(opcode, &bytes), Ok(request));
    }
    for status in [Status::Ok, Status::Busy] {
        if let Ok(reply) = Reply::parse(opcode, status, meta) {
            let mut bytes = Vec::new();
            reply.encode(&mut bytes);
            prop_assert_eq!(Reply::parse(opcode, status, &bytes), Ok(reply));
        }
    }
    Ok(())
}

#[test]
fn replies_one_by_one_are_the_replies_as_a_list() {
    let crcs = CrcList::from_slice(&[7, 8]).expect("two");
    let found = ItemReply { length: 5, generation: 9, crcs, ..ItemReply::new(Status::Ok) };
    let items = [found, ItemReply::miss(MissReason::Evicted), ItemReply::busy(3)];
    let (mut whole, mut each) = (Vec::new(), Vec::new());
    ItemReplies::encode_all(&items, &mut whole);
    ItemReplies::encode_each(items.iter().copied(), &mut each);
    assert_eq!(whole, each);
    let mut taken = Vec::new();
    let complete = ItemReplies::parse_each(&whole, 3, |at, item| taken.push((at, item)));
    assert_eq!(complete, Ok(true));
    assert_eq!(taken, items.into_iter().enumerate().collect::<Vec<_>>());
    // Of another number none is handed over; of a list that breaks off those before.
    for count in [0, 2, 4] {
        let none = |_, item| panic!("{item:?} of {count}");
        assert_eq!(ItemReplies::parse_each(&whole, count, none), Ok(false));
    }
    let mut taken = 0;
    let broken = ItemReplies::parse_each(&whole[..whole.len() - 1], 3, |_, _| taken += 1);
    assert_eq!((broken, taken), (Err(MetaError::Truncated), 2));
    assert_eq!(ItemReplies::parse_each(&[0; 3], 0, |_, _| ()), Err(MetaError::Truncated));
}

#[test]
fn presences_one_by_one_are_those_of_the_list() {
    let missing = vec![None, Some(MissReason::Never), Some(MissReason::Corrupt)];
    let mut meta = Vec::new();
    PresenceReply { missing: missing.clone() }.encode(&mut meta);
    assert_eq!(meta, [3, 0, 0, 0, 0, 1, 6]);
    let mut taken = Vec::new();
    let complete = PresenceReply::parse_each(&meta, 3, |at, missing| taken.push((at, missing)));
    assert_eq!(complete, Ok(true));
    assert_eq!(taken, missing.into_iter().enumerate().collect::<Vec<_>>());
    for count in [0, 2, 4] {
        let none = |_, missing| panic!("{missing:?} of {count}");
        assert_eq!(PresenceReply::parse_each(&meta, count, none), Ok(false));
    }
    let parse = |meta: &[u8]| PresenceReply::parse_each(meta, 3, |_, _| ());
    assert_eq!(parse(&meta[..6]), Err(MetaError::Truncated));
    assert_eq!(parse(&[&meta[..], &[0]].concat()), Err(MetaError::Truncated), "no extension");
    let mut extended = meta.clone();
    append_extension(&mut extended, 7, b"whatever");
    assert_eq!(parse(&extended), Ok(true));
    append_extension(&mut extended, MUST_UNDERSTAND, b"");
    assert_eq!(parse(&extended), Err(MetaError::MustUnderstand { kind: MUST_UNDERSTAND }));
    for got in [MissReason::ALL.len() as u8, 254] {
        meta[6] = got + 1;
        assert_eq!(parse(&meta), Err(MetaError::UnknownReason { got }));
        assert_eq!(PresenceReply::parse(&meta), Err(MetaError::UnknownReason { got }));
    }
}

/// A count that lies does not make the parser allocate for it.
#[test]
fn counts_are_bounded_before_anything_is_allocated() {
    let lies = |count: u32| [&count.to_le_bytes()[..], &[1; 64]].concat();
    let over = MAX_ITEMS as u32 + 1;
    assert_eq!(KeyList::parse(&lies(over)), Err(MetaError::TooManyItems { got: over }));
    assert_eq!(KeyList::parse(&lies(u32::MAX)), Err(MetaError::TooManyItems { got: u32::MAX }));
    assert_eq!(KeyList::parse(&lies(4096)), Err(MetaError::Truncated));
    assert_eq!(PutItems::parse(&lies(2)), Err(MetaError::Truncated));
    assert_eq!(KeyList::parse(&[0; 4]), Err(MetaError::NoItems));
    assert_eq!(LeaseList::parse(&[0; 8]), Err(MetaError::NoItems));
    assert_eq!(ItemReplies::parse(&[0; 4]), Ok(ItemReplies { items: vec![] }));
    let over_presence = PresenceReply::parse(&lies(over));
    assert_eq!(over_presence, Err(MetaError::TooManyItems { got: over }));
    let mut most = (MAX_ITEMS as u32).to_le_bytes().to_vec();
    assert_eq!(PresenceReply::parse(&most), Err(MetaError::Truncated));
    most.resize(4 + MAX_ITEMS, 0);
    assert_eq!(PresenceReply::parse(&most), Ok(PresenceReply { missing: vec![None; MAX_ITEMS] }));
}

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

/// Each rule of a put item, broken alone.
#[test]
fn a_put_item_out_of_bounds_is_named() {
    let with = |at: usize, bytes: &[u8]| {
        let mut meta = put_item();
        meta[4 + at..4 + at + bytes.len()].copy_from_slice(bytes);
        PutItems::parse(&meta).map(drop)
    };
    assert_eq!(with(0, &[]), Ok(()));
    assert_eq!(with(0, &[0, 0]), Err(MetaError::KeyLength { got: 0 }));
    assert_eq!(with(0, &[1, 2]), Err(MetaError::KeyLength { got: 513 }));
    assert_eq!(with(2, &[3]), Err(MetaError::Mode { mode: 3, generation: 0 }));
    assert_eq!(with(3, &[17]), Err(MetaError::TooManyCrcs { got: 17 }));
    assert_eq!(with(4, &[3]), Err(MetaError::ItemFlags { got: 3 }));
    assert_eq!(with(15, &[1]), Err(MetaError::ReservedNotZero));
    assert_eq!(with(16, &[0]), Err(MetaError::ValueLength { got: 0 }));
    let long = MAX_VALUE + 5;
    assert_eq!(with(16, &long.to_le_bytes()), Err(MetaError::ValueLength { got: long }));
    assert_eq!(with(24, &[9]), Err(MetaError::Mode { mode: 0, generation: 9 }));
    assert_eq!(MetaError::ValueLength { got: 0 }.status(), Status::TooLarge);
}

#[test]
fn hellos_out_of_bounds_are_named() {
    let hello = ClientHello {
        client_nonce: [1; 32],
        client_id: [2; 16],
        key_id: 3,
        namespace: "n",
        version_min: 1,
        version_max: 1,
        counts_lent: false,
        reads_windows: false,
    };
    let with = |at: usize, bytes: &[u8]| {
        let mut meta = Vec::new();
        hello.encode(&mut meta);
        meta.splice(at..at + bytes.len(), bytes.iter().copied());
        ClientHello::parse(&meta).map(drop)
    };
    assert_eq!(with(0, &[]), Ok(()));
    assert_eq!(with(52, &[0, 1]), Err(MetaError::Versions { min: 0, max: 1 }));
    assert_eq!(with(52, &[2, 1]), Err(MetaError::Versions { min: 2, max: 1 }));
    assert_eq!(with(54, &[0, 0]), Err(MetaError::NamespaceLength { got: 0 }));
    assert!(matches!(with(56, &[0xff]), Err(MetaError::Text(_))));
    // Whether it counts lent payload and reads windows are extensions.
    for (counts_lent, reads_windows) in [(true, false), (false, false), (true, true)] {
        let mut meta = Vec::new();
        let hello = ClientHello { counts_lent, reads_windows, ..hello };
        hello.encode(&mut meta);
        assert_eq!(ClientHello::parse(&meta), Ok(hello));
        append_extension(&mut meta, 9, b"unknown");
        assert_eq!(ClientHello::parse(&meta), Ok(hello));
        append_extension(&mut meta, MUST_UNDERSTAND, b"");
        let error = MetaError::MustUnderstand { kind: MUST_UNDERSTAND };
        assert_eq!(ClientHello::parse(&meta), Err(error));
    }
    assert_eq!(hello.negotiate(), Some(VERSION));
    assert_eq!(ClientHello { version_min: 2, version_max: 9, ..hello }.negotiate(), None);
    assert_eq!(ClientHello { version_max: 9, ..hello }.negotiate(), Some(VERSION));
}

#[test]
fn an_old_server_hello_is_not_the_answer() {
    let hello = ClientHello {
        client_nonce: [1; 32],
        client_id: [2; 16],
        key_id: 3,
        namespace: "n",
        version_min: 1,
        version_max: 1,
        counts_lent: false,
        reads_windows: false,
    };
    let limits = Limits {
        max_value: 1 << 20,
        max_inline: 1 << 18,
        credits: 4,
        max_items: 100,
        max_requests: 10,
        lease_ms_max: 1000,
        extent: 1 << 16,
    };
    let reply = ServerHello {
        server_nonce: [9; 32],
        client_nonce: [1; 32],
        server_id: [8; 16],
        incarnation: 1,
        namespace: 1,
        version: 1,
        limits,
        payload_with_offer: false,
        answers_presence: false,
        door: None,
        takes_staged: false,
    };
    assert!(reply.answers(&hello));
    assert!(!ServerHello { client_nonce: [2; 32], ..reply }.answers(&hello));
    assert!(!ServerHello { version: 2, ..reply }.answers(&hello));

    let mut meta = Vec::new();
    reply.encode(&mut meta);
    assert_eq!(ServerHello::parse(&meta), Ok(reply));
    meta[124] = 1; // an extent of 65537 bytes is fine, one of 1 byte is not: 16 values of it
    assert!(ServerHello::parse(&meta).is_ok());
    meta[124..128].copy_from_slice(&1u32.to_le_bytes());
    assert_eq!(ServerHello::parse(&meta), Err(MetaError::Limits));
    meta[124..128].copy_from_slice(&0u32.to_le_bytes());
    assert_eq!(ServerHello::parse(&meta), Err(MetaError::Limits));

    // Whether it takes payload with an Offer, answers Presence, has a door and takes memory are extensions.
    let some = Door { name: [3; 16], ticket: [4; 32], windows: 2 };
    for known in 0..16 {
        let (payload_with_offer, answers_presence) = (known & 1 != 0, known & 2 != 0);
        let door = (known & 4 != 0).then_some(some);
        let takes_staged = known & 8 != 0;
        let reply =
            ServerHello { payload_with_offer, answers_presence, door, takes_staged, ..reply };
        let mut meta = Vec::new();
        reply.encode(&mut meta);
        append_extension(&mut meta, 9, b"unknown");
        assert_eq!(ServerHello::parse(&meta), Ok(reply));
        append_extension(&mut meta, MUST_UNDERSTAND, b"");
        let error = MetaError::MustUnderstand { kind: MUST_UNDERSTAND };
        assert_eq!(ServerHello::parse(&meta), Err(error));
    }
    assert_doors_are_read_whole(reply);
}

/// One without a window is refused, and ones that are too short or too long.
fn assert_doors_are_read_whole(reply: ServerHello) {
    let mut without = [0; 53];
    without[51] = 1;
    for bytes in [&[0; 52][..], &without[..51], &without] {
        let mut meta = Vec::new();
        reply.encode(&mut meta);
        meta.truncate(128);
        append_extension(&mut meta, 3, bytes);
        assert!(ServerHello::parse(&meta).is_err(), "{} bytes", bytes.len());
    }
}

#[test]
fn inline_values_are_summed_without_overflow() {
    let item = |length| PutItem {
        key: b"k",
        length,
        mode: PutMode::Replace,
        durable: false,
        ttl_seconds: 9,
        crcs: CrcList::EMPTY,
        advice: Default::default(),
    };
    let sum = |lengths: &[u64]| {
        PutItems { items: lengths.iter().copied().map(item).collect() }.inline_length()
    };
    assert_eq!(sum(&[1, 2, 3]), Ok(6));
    assert_eq!(sum(&[256 << 10]), Ok(256 << 10));
    assert_eq!(sum(&[256 << 10, 1]), Err(MetaError::InlineLength { got: (256 << 10) + 1 }));
    assert_eq!(sum(&[u64::MAX, 2]), Err(MetaError::InlineLength { got: u64::MAX }));
}

/// The bound that a client fills its frames by.
#[test]
fn no_item_is_longer_than_its_key_and_the_overhead() {
    let mut bytes = Vec::new();
    let key = [7; MAX_KEY];
    let item = PutItem {
        key: &key,
        length: MAX_VALUE,
        mode: PutMode::Generation(u64::MAX),
        durable: true,
        ttl_seconds: u32::MAX,
        crcs: CrcList::from_slice(&[u32::MAX; 16]).expect("16 fit"),
        advice: Default::default(),
    };
    PutItems { items: vec![item] }.encode(&mut bytes);
    assert_eq!(bytes.len(), 4 + MAX_KEY + memkv_wire::ITEM_OVERHEAD);
}

#[test]
fn long_texts_are_cut_at_a_character() {
    let text = "é".repeat(1000);
    let mut bytes = Vec::new();
    GoodbyeMeta { text: &text }.encode(&mut bytes);
    assert_eq!(GoodbyeMeta::parse(&bytes).map(|meta| meta.text.len()), Ok(1024));
    bytes.clear();
    let text = format!("x{text}");
    Refusal { retry_ms: 1, text: &text }.encode(&mut bytes);
    assert_eq!(Refusal::parse(&bytes).map(|meta| meta.text.len()), Ok(1023));
}

#[test]
fn counters_are_found_by_name() {
    let mut stats = StatsReply::default();
    stats.push(StatId::Hits, 7);
    stats.stats.push((60000, 1));
    assert_eq!(stats.get(StatId::Hits), Some(7));
    assert_eq!(stats.get(StatId::Misses), None);
}

#[test]
fn advice_about_puts_is_checked() {
    let extended = |kind, bytes: &[u8]| {
        let mut meta = put_item();
        append_extension(&mut meta, kind, bytes);
        meta
    };
    let parse = |meta: &[u8]| PutItems::parse(meta).map(|put| put.items[0].advice.pin_seconds);
    let pin = [0, 0, 0, 0, 9, 0, 0, 0];
    assert_eq!(parse(&extended(2, &pin)), Ok(9));
    let item = |kind, item| Err(MetaError::ExtendedItem { kind, item });
    assert_eq!(parse(&extended(2, &[1, 0, 0, 0, 9, 0, 0, 0])), item(2, 1), "one item only");
    assert_eq!(parse(&extended(2, &[0; 8])), item(2, 0), "no time at all");
    assert_eq!(parse(&extended(2, &[&pin[..], &[0]].concat())), item(2, 0), "too long");
    assert_eq!(parse(&extended(2, &pin[..7])), Err(MetaError::Truncated));
    assert_eq!(parse(&extended(1, &[0, 0, 0])), Err(MetaError::Truncated));
    assert_eq!(parse(&extended(1, &[0; 4])), Err(MetaError::KeyLength { got: 0 }));
    let long = [&[0; 4][..], &[7; MAX_KEY + 1]].concat();
    assert_eq!(parse(&extended(1, &long)), Err(MetaError::KeyLength { got: MAX_KEY + 1 }));
    let mut twice = extended(1, b"\0\0\0\0p");
    assert_eq!(PutItems::parse(&twice).map(|put| put.items[0].advice.parent), Ok(Some(&b"p"[..])));
    append_extension(&mut twice, 1, b"\0\0\0\0p");
    assert_eq!(parse(&twice), item(1, 0), "said twice");
}

#[test]
fn hints_are_checked() {
    let meta = |advice: u8, reserved: u8, seconds: u32| {
        let mut meta = vec![advice, reserved, 0, 0];
        meta.extend(seconds.to_le_bytes());
        meta.extend([1, 0, 0, 0, 1, 0, b'k']);
        meta
    };
    let parse = |meta: &[u8]| HintList::parse(meta).map(|hint| (hint.advice, hint.seconds));
    assert_eq!(parse(&meta(0, 0, 0)), Ok((Advice::Release, 0)));
    assert_eq!(parse(&meta(1, 0, 0)), Ok((Advice::Retain, 0)));
    assert_eq!(parse(&meta(2, 0, 7)), Ok((Advice::Pin, 7)));
    for (advice, seconds) in [(0, 7), (1, 7), (2, 0), (3, 0)] {
        let error = MetaError::Advice { got: advice, seconds };
        assert_eq!(parse(&meta(advice, 0, seconds)), Err(error));
    }
    assert_eq!(parse(&meta(0, 1, 0)), Err(MetaError::ReservedNotZero));
    assert_eq!(parse(&meta(0, 0, 0)[..12]), Err(MetaError::Truncated));
}
