//! One frame of each operation in each direction, all numbers fixed.
//!
//! The bytes of these frames are kept under `tests/golden` and, some of them, in `docs/wire.md`.
//! Connect frames have sequence 0 and connect keys; every other frame is the first of its direction
//! after Connect (sequence 1), so that each stands alone.

use memkv_wire::handshake::{ClientHello, Door, Limits, ServerHello};
use memkv_wire::meta::{Reply, Request};
use memkv_wire::*;

use super::{CLIENT_NONCE, KEY_ID, SERVER_NONCE, connected, connecting, filled};

const KEY_A: &[u8] = b"llama-70b/prefix/00";
const KEY_B: &[u8] = b"llama-70b/prefix/01";
const VALUE_A: &[u8] = b"the bytes of the first value";
const VALUE_B: &[u8] = b"and of the second";
const REQUEST_ID: u64 = 0x0102_0304_0506_0708;
const GENERATION: u64 = 0x0001_0000_0000_0007;

/// One frame and all that is needed to make it again.
pub struct Sample {
    pub name: String,
    pub side: Side,
    pub header: Header,
    pub meta: Vec<u8>,
    pub payload: Vec<u8>,
    pub crcs: Option<Vec<u32>>,
}

impl Sample {
    /// The sealer that makes it and the opener that awaits it.
    pub fn ends(&self) -> (Sealer, Opener) {
        let ends = if self.header.opcode() == Opcode::Connect { connecting } else { connected };
        (ends(self.side).0, ends(self.side.peer()).1)
    }

    /// Header, meta, payload and trailer as they are sent.
    pub fn frame(&self) -> Vec<u8> {
        let (mut sealer, _) = self.ends();
        let mut header = self.header;
        let mut out = Vec::new();
        sealer.seal(&mut header, &self.meta, &mut out);
        out.extend_from_slice(&self.payload);
        if let Some(crcs) = &self.crcs {
            sealer.seal_trailer(header.mac(), crcs, &mut out);
        }
        out
    }
}

fn crcs(value: &[u8]) -> CrcList {
    CrcList::of(value, EXTENT as usize).expect("a short value")
}

fn put_items(crcs_in_meta: bool) -> PutItems<'static> {
    let crcs = |value| if crcs_in_meta { crcs(value) } else { CrcList::EMPTY };
    let a = PutItem {
        key: KEY_A,
        length: VALUE_A.len() as u64,
        mode: PutMode::Absent,
        durable: false,
        ttl_seconds: 0,
        crcs: crcs(VALUE_A),
        advice: Default::default(),
    };
    let b = PutItem {
        key: KEY_B,
        length: VALUE_B.len() as u64,
        mode: PutMode::Generation(GENERATION),
        durable: true,
        ttl_seconds: 3600,
        crcs: crcs(VALUE_B),
        advice: Default::default(),
    };
    PutItems { items: vec![a, b] }
}

fn requests() -> Vec<(Request<'static>, Vec<u8>)> {
    let keys = || vec![KEY_A, KEY_B];
    let hello = ClientHello {
        client_nonce: CLIENT_NONCE,
        client_id: filled(0xc0),
        key_id: KEY_ID,
        namespace: "llama-70b",
        version_min: 1,
        version_max: 1,
        counts_lent: false,
        reads_windows: false,
    };
    let run = |(position, key)| MatchItem { position, key };
    let gets = vec![
        GetItem { key: KEY_A, offset: 0, length: TO_THE_END },
        GetItem { key: KEY_B, offset: 4, length: 6 },
    ];
    let deletes = vec![
        DeleteItem { key: KEY_A, generation: 0 },
        DeleteItem { key: KEY_B, generation: GENERATION },
    ];
    let metas = [
        Request::Connect(hello),
        Request::Exists(KeyList { keys: keys() }),
        Request::MatchPrefix(MatchItems { items: [(0, KEY_A), (3, KEY_B)].map(run).into() }),
        Request::Lease(LeaseList { lease_ms: 5000, keys: keys() }),
        Request::Release(KeyList { keys: keys() }),
        Request::Hint(HintList { advice: Advice::Pin, seconds: 90, keys: keys() }),
        Request::Presence(KeyList { keys: keys() }),
        Request::Put(put_items(true)),
        Request::Get(GetItems { items: gets }),
        Request::Delete(DeleteItems { items: deletes }),
        Request::Offer(put_items(false)),
        Request::Data(DataMeta { item: 1 }),
        Request::Suspect(SuspectItems {
            items: vec![SuspectItem { key: KEY_A, generation: GENERATION }],
        }),
        Request::Stats(Empty),
        Request::Goodbye(GoodbyeMeta { text: "going home" }),
    ];
    let payload = |request: &Request<'_>| match request {
        Request::Put(_) => [VALUE_A, VALUE_B].concat(),
        Request::Data(_) => VALUE_B.to_vec(),
        _ => Vec::new(),
    };
    let with_payload = |request| {
        let payload = payload(&request);
        (request, payload)
    };
    metas.into_iter().map(with_payload).collect()
}

fn server_hello() -> ServerHello {
    ServerHello {
        server_nonce: SERVER_NONCE,
        client_nonce: CLIENT_NONCE,
        server_id: filled(0xd0),
        incarnation: 42,
        namespace: 3,
        version: VERSION,
        limits: Limits {
            max_value: MAX_VALUE,
            max_inline: MAX_INLINE,
            credits: 16,
            max_items: MAX_ITEMS as u32,
            max_requests: 64,
            lease_ms_max: 60_000,
            extent: EXTENT as u32,
        },
        payload_with_offer: false,
        answers_presence: false,
        door: None,
        takes_staged: false,
    }
}

/// The replies, each with the name of its operation.
fn replies() -> Vec<(Opcode, Reply<'static>)> {
    let stored = |status, value: &[u8]| ItemReply {
        length: value.len() as u64,
        generation: GENERATION,
        crcs: crcs(value),
        ..ItemReply::new(status)
    };
    let evicted = Some(MissReason::Evicted);
    let miss = ItemReply::miss(MissReason::Evicted);
    let items = |items| Reply::Items(ItemReplies { items });
    let put = ItemReply { crcs: CrcList::EMPTY, ..stored(Status::Ok, VALUE_A) };
    let part = ItemReply { crcs: crcs(&VALUE_B[4..10]), ..stored(Status::Ok, VALUE_B) };
    let want = ItemReply { length: VALUE_B.len() as u64, ..ItemReply::new(Status::Want) };
    let mut stats = StatsReply::default();
    stats.push(StatId::Blocks, 1000);
    stats.push(StatId::BytesStored, 4_194_304_000);
    vec![
        (Opcode::Connect, Reply::Connect(server_hello())),
        (Opcode::Exists, items(vec![stored(Status::Ok, VALUE_A), miss])),
        (Opcode::MatchPrefix, Reply::Match(MatchReply { first_missing: 3, examined: 2 })),
        (Opcode::Lease, items(vec![stored(Status::Ok, VALUE_A), miss])),
        (Opcode::Release, Reply::Empty(Empty)),
        (Opcode::Hint, items(vec![stored(Status::Ok, VALUE_A), miss])),
        (Opcode::Presence, Reply::Presence(PresenceReply { missing: vec![None, evicted] })),
        (Opcode::Put, items(vec![put, ItemReply::busy(250)])),
        (Opcode::Get, Reply::Get(GetReply { item: 1, offset: 4, reply: part })),
        (Opcode::Delete, items(vec![ItemReply { length: 0, ..put }, miss])),
        (Opcode::Offer, items(vec![stored(Status::Present, VALUE_A), want])),
        (Opcode::Data, Reply::Data(DataReply { item: 1, reply: put })),
        (Opcode::Suspect, items(vec![ItemReply::miss(MissReason::Corrupt)])),
        (Opcode::Stats, Reply::Stats(stats)),
        (Opcode::Goodbye, Reply::Empty(Empty)),
    ]
}

fn name(opcode: Opcode, kind: &str) -> String {
    format!("{}-{kind}", opcode.name().replace('_', "-"))
}

fn request_sample((request, payload): (Request<'_>, Vec<u8>)) -> Sample {
    let opcode = request.opcode();
    let trailer = opcode != Opcode::Put && !payload.is_empty();
    let header = Header::request(opcode, REQUEST_ID)
        .with_payload_length(payload.len() as u64)
        .with_namespace(if opcode == Opcode::Connect { 0 } else { 3 })
        .with_deadline_ms(2000)
        .with_trace_id(filled(0xe0));
    let mut meta = Vec::new();
    request.encode(&mut meta);
    Sample {
        name: name(opcode, "request"),
        side: Side::Client,
        header: if trailer { header.with_trailer() } else { header },
        meta,
        crcs: trailer.then(|| crcs(&payload).to_vec()),
        payload,
    }
}

fn reply_sample(request: &Header, reply: &Reply<'_>) -> Sample {
    let opcode = request.opcode();
    let payload = if opcode == Opcode::Get { VALUE_B[4..10].to_vec() } else { Vec::new() };
    let credits = match opcode {
        Opcode::Connect => 16,
        Opcode::Put => 1,
        _ => 0,
    };
    let mut meta = Vec::new();
    reply.encode(&mut meta);
    Sample {
        name: name(opcode, "reply"),
        side: Side::Server,
        header: Header::reply(request, Status::Ok)
            .with_credits(credits)
            .with_payload_length(payload.len() as u64),
        meta,
        payload,
        crcs: None,
    }
}

/// A refusal as a whole, and a Goodbye of the server, beside the plain requests and replies.
fn others(put: &Header) -> [Sample; 2] {
    let mut refusal = Vec::new();
    Refusal { retry_ms: 100, text: "the node drains" }.encode(&mut refusal);
    let mut goodbye = Vec::new();
    GoodbyeMeta { text: "the node stops" }.encode(&mut goodbye);
    let plain = |name: &str, header, meta| Sample {
        name: name.to_owned(),
        side: Side::Server,
        header,
        meta,
        payload: Vec::new(),
        crcs: None,
    };
    let refused = Header::reply(put, Status::ShuttingDown).with_credits(1);
    let bye = Header::request(Opcode::Goodbye, 0).with_status(Status::ShuttingDown);
    [plain("put-refused", refused, refusal), plain("goodbye-by-server", bye, goodbye)]
}

/// A Put whose second item names its parent, and is pinned.
fn advised() -> Sample {
    let mut items = put_items(true);
    items.items[1].advice = PutAdvice { parent: Some(KEY_A), pin_seconds: 600 };
    let payload = [VALUE_A, VALUE_B].concat();
    Sample { name: "put-advised".into(), ..request_sample((Request::Put(items), payload)) }
}

/// An Offer of one item that brings its payload, and its reply.
fn with_payload() -> [Sample; 2] {
    let mut items = put_items(false);
    items.items.truncate(1);
    let offer = request_sample((Request::Offer(items), VALUE_A.to_vec()));
    let length = VALUE_A.len() as u64;
    let stored = ItemReply { length, generation: GENERATION, ..ItemReply::new(Status::Ok) };
    let stored = Reply::Items(ItemReplies { items: vec![stored] });
    let reply = reply_sample(&offer.header, &stored);
    [
        Sample { name: "offer-with-payload".into(), ..offer },
        Sample { name: "offer-with-payload-reply".into(), ..reply },
    ]
}

/// The hello of a client that can read windows, a Get whose reply may name its payload, that reply, and a Put
/// that names its payload.
fn named() -> [Sample; 4] {
    let hello = requests().into_iter().find_map(|(request, _)| match request {
        Request::Connect(hello) => Some(hello),
        _ => None,
    });
    let hello = hello.expect("there is a hello");
    let hello = ClientHello { counts_lent: true, reads_windows: true, ..hello };
    let connect = request_sample((Request::Connect(hello), Vec::new()));
    let items = vec![GetItem { key: KEY_A, offset: 0, length: TO_THE_END }];
    let get = request_sample((Request::Get(GetItems { items }), Vec::new()));
    let get = Sample { header: get.header.with_named(), ..get };
    let reply = ItemReply {
        length: VALUE_A.len() as u64,
        generation: GENERATION,
        crcs: crcs(VALUE_A),
        ..ItemReply::new(Status::Ok)
    };
    let staged = Staged { staging: 7, offset: 0x0004_0000 };
    let put = request_sample((Request::PutStaged(put_items(true), staged), Vec::new()));
    let put = Sample { header: put.header.with_named(), ..put };
    let mut spans = Spans::EMPTY;
    let span = Span { window: 1, length: VALUE_A.len() as u32, offset: 0x0012_3450_0000 };
    assert!(spans.push(span), "one fits");
    let named = NamedReply { get: GetReply { item: 0, offset: 0, reply }, spans };
    let answer = reply_sample(&get.header, &Reply::Named(named));
    let answer = Sample {
        header: answer.header.with_payload_length(0).with_named(),
        payload: Vec::new(),
        ..answer
    };
    [
        Sample { name: "connect-request-reading-windows".into(), ..connect },
        Sample { name: "get-request-by-name".into(), ..get },
        Sample { name: "get-reply-named".into(), ..answer },
        Sample { name: "put-request-named".into(), ..put },
    ]
}

/// The hellos of servers that know extensions: that take payload with an Offer, that answer Presence, too, and
/// have a door, and take memory there.
fn extended(connect: &Header) -> [Sample; 4] {
    let taking = ServerHello { payload_with_offer: true, ..server_hello() };
    let answering = ServerHello { answers_presence: true, ..taking };
    let door = Door { name: filled(0xa0), ticket: filled(0xb0), windows: 2 };
    let with_door = ServerHello { door: Some(door), ..answering };
    let taking_memory = ServerHello { takes_staged: true, ..with_door };
    let sample = |name: &str, hello| Sample {
        name: name.into(),
        ..reply_sample(connect, &Reply::Connect(hello))
    };
    [
        sample("connect-reply-taking-payload", taking),
        sample("connect-reply-answering-presence", answering),
        sample("connect-reply-with-door", with_door),
        sample("connect-reply-taking-memory", taking_memory),
    ]
}

/// Every frame, requests first.
pub fn samples() -> Vec<Sample> {
    let mut samples: Vec<_> = requests().into_iter().map(request_sample).collect();
    let header = |opcode| {
        let of = |sample: &&Sample| sample.header.opcode() == opcode;
        samples.iter().find(of).expect("every operation has a request").header
    };
    let replies: Vec<_> =
        replies().iter().map(|(opcode, reply)| reply_sample(&header(*opcode), reply)).collect();
    let others = others(&header(Opcode::Put));
    let extended = extended(&header(Opcode::Connect));
    samples.extend(replies);
    samples.extend(others);
    samples.push(advised());
    samples.extend(extended);
    samples.extend(with_payload());
    samples.extend(named());
    samples
}
