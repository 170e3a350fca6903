//! Frames as a correct client or server would make them, of every operation alike.

use memkv_poller::Rng;
use memkv_wire::handshake::{ClientHello, Door, Limits, ServerHello};
use memkv_wire::meta::{Reply, Request};
use memkv_wire::*;

use crate::draw::{array, bytes, number, once_in, one_of};

/// A header and meta of any operation, in either direction.
pub fn frame(rng: &mut Rng) -> (Header, Vec<u8>) {
    let opcode = one_of(rng, Opcode::ALL);
    let mut meta = Vec::new();
    if once_in(rng, 2) {
        request(rng, opcode, &mut meta);
        return (header(rng, opcode, false), meta);
    }
    let header = header(rng, opcode, true);
    reply(rng, opcode, header.status()).encode(&mut meta);
    if once_in(rng, 8) {
        meta::append_extension(&mut meta, rng.next_u64() as u16, b"later");
    }
    (header, meta)
}

/// A request that may follow Connect, with as many bytes of payload as its header says.
pub fn request_with_payload(rng: &mut Rng) -> (Header, Vec<u8>, Vec<u8>) {
    let opcode = one_of(rng, &Opcode::ALL[1..]);
    let mut meta = Vec::new();
    request(rng, opcode, &mut meta);
    let length = match opcode {
        Opcode::Put | Opcode::Data => 1 + rng.below(100),
        Opcode::Offer if once_in(rng, 3) => 1 + rng.below(100),
        _ => 0,
    };
    let mut header =
        Header::request(opcode, number(rng)).with_payload_length(length).with_namespace(1);
    if length > 0 && opcode != Opcode::Put {
        header = header.with_trailer();
    }
    let payload = bytes(rng, length as usize);
    (header, meta, payload)
}

fn header(rng: &mut Rng, opcode: Opcode, is_reply: bool) -> Header {
    let mut header = Header::request(opcode, number(rng));
    if is_reply {
        let status = if once_in(rng, 4) { one_of(rng, Status::ALL) } else { Status::Ok };
        header = Header::reply(&header, status).with_flags(flags::FROM_SERVER);
        if once_in(rng, 4) {
            header = header.with_more();
        }
    }
    if once_in(rng, 4) {
        header = header.with_trailer();
    }
    let mut length = number(rng).min(opcode.payload_limit(is_reply));
    let may = opcode == Opcode::Get || opcode == Opcode::Put && !is_reply;
    if may && !header.has_trailer() && once_in(rng, 2) {
        (header, length) = (header.with_named(), 0);
    }
    header
        .with_payload_length(length)
        .with_namespace(number(rng) as u32)
        .with_deadline_ms(number(rng) as u32)
        .with_generation(number(rng))
        .with_priority(number(rng) as u8)
        .with_codec(number(rng) as u8)
        .with_credits(number(rng) as u32)
        .with_consumed(number(rng))
        .with_stored_length(number(rng))
        .with_trace_id(array(rng))
}

fn keys(rng: &mut Rng) -> Vec<Vec<u8>> {
    let count = if once_in(rng, 20) { 200 } else { 1 + rng.below(6) };
    (0..count)
        .map(|_| {
            let length = if once_in(rng, 10) { MAX_KEY as u64 } else { 1 + rng.below(40) };
            bytes(rng, length as usize)
        })
        .collect()
}

fn crcs(rng: &mut Rng) -> CrcList {
    let mut list = CrcList::EMPTY;
    for _ in 0..rng.below(MAX_EXTENTS as u64 + 1) {
        assert!(list.push(rng.next_u64() as u32), "at most 16");
    }
    list
}

fn put_item<'a>(rng: &mut Rng, key: &'a [u8]) -> PutItem<'a> {
    PutItem {
        key,
        length: number(rng).clamp(1, MAX_VALUE),
        mode: match rng.below(3) {
            0 => PutMode::Absent,
            1 => PutMode::Replace,
            _ => PutMode::Generation(number(rng)),
        },
        durable: once_in(rng, 2),
        ttl_seconds: number(rng) as u32,
        crcs: crcs(rng),
        advice: Default::default(),
    }
}

/// Writes the meta of a request.
fn request(rng: &mut Rng, opcode: Opcode, out: &mut Vec<u8>) {
    let owned = keys(rng);
    let keys: Vec<&[u8]> = owned.iter().map(|key| &key[..]).collect();
    let request = match opcode {
        Opcode::Connect => Request::Connect(client_hello(rng)),
        Opcode::Exists => Request::Exists(KeyList { keys }),
        Opcode::Presence => Request::Presence(KeyList { keys }),
        Opcode::MatchPrefix => {
            let item = |key| MatchItem { position: number(rng) as u32, key };
            Request::MatchPrefix(MatchItems { items: keys.into_iter().map(item).collect() })
        }
        Opcode::Lease => Request::Lease(LeaseList { lease_ms: number(rng) as u32, keys }),
        Opcode::Release => Request::Release(KeyList { keys }),
        Opcode::Hint => {
            let advice = one_of(rng, Advice::ALL);
            let seconds = if advice == Advice::Pin { 1 + rng.below(5_000) as u32 } else { 0 };
            Request::Hint(HintList { advice, seconds, keys })
        }
        Opcode::Put | Opcode::Offer => {
            let items = keys.into_iter().map(|key| put_item(rng, key)).collect();
            let mut items = PutItems { items };
            for (at, parent) in owned.iter().enumerate() {
                if !once_in(rng, 3) {
                    continue;
                }
                let pin_seconds = number(rng) as u32;
                let advice = PutAdvice { parent: Some(parent), pin_seconds };
                items.items[owned.len() - 1 - at].advice = advice;
            }
            let staged = Staged { staging: number(rng), offset: number(rng) };
            match opcode {
                Opcode::Put if once_in(rng, 3) => Request::PutStaged(items, staged),
                Opcode::Put => Request::Put(items),
                _ => Request::Offer(items),
            }
        }
        Opcode::Get => {
            let item = |key| GetItem { key, offset: number(rng), length: number(rng) };
            Request::Get(GetItems { items: keys.into_iter().map(item).collect() })
        }
        Opcode::Delete => {
            let item = |key| DeleteItem { key, generation: number(rng) };
            Request::Delete(DeleteItems { items: keys.into_iter().map(item).collect() })
        }
        Opcode::Data => Request::Data(DataMeta { item: number(rng) as u32 }),
        Opcode::Suspect => {
            let item = |key| SuspectItem { key, generation: number(rng) };
            Request::Suspect(SuspectItems { items: keys.into_iter().map(item).collect() })
        }
        Opcode::Stats => Request::Stats(Empty),
        Opcode::Goodbye => Request::Goodbye(GoodbyeMeta { text: "fare well, €" }),
    };
    request.encode(out);
}

fn client_hello(rng: &mut Rng) -> ClientHello<'static> {
    let version_min = 1 + rng.below(4) as u8;
    ClientHello {
        client_nonce: array(rng),
        client_id: array(rng),
        key_id: number(rng) as u32,
        namespace: one_of(rng, &["n", "llama-70b/fp8", "größe"]),
        version_min,
        version_max: version_min + rng.below(4) as u8,
        counts_lent: rng.below(2) == 0,
        reads_windows: rng.below(2) == 0,
    }
}

fn server_hello(rng: &mut Rng) -> ServerHello {
    let extent = (1 + rng.below(EXTENT)) as u32;
    let limits = Limits {
        max_value: 1 + rng.below((u64::from(extent) * MAX_EXTENTS as u64).min(MAX_VALUE)),
        max_inline: rng.below(u64::from(MAX_INLINE) + 1) as u32,
        credits: number(rng) as u32,
        max_items: 1 + rng.below(MAX_ITEMS as u64) as u32,
        max_requests: 1 + rng.below(1000) as u32,
        lease_ms_max: number(rng) as u32,
        extent,
    };
    ServerHello {
        server_nonce: array(rng),
        client_nonce: array(rng),
        server_id: array(rng),
        incarnation: number(rng),
        namespace: number(rng) as u32,
        version: VERSION,
        limits,
        payload_with_offer: rng.below(2) == 0,
        answers_presence: rng.below(2) == 0,
        door: once_in(rng, 2).then(|| Door {
            name: array(rng),
            ticket: array(rng),
            windows: (number(rng) as u32).max(1),
        }),
        takes_staged: rng.below(2) == 0,
    }
}

fn item_reply(rng: &mut Rng) -> ItemReply {
    ItemReply {
        status: one_of(rng, Status::ALL),
        reason: one_of(rng, MissReason::ALL),
        retry_ms: number(rng) as u32,
        length: number(rng),
        generation: number(rng),
        crcs: crcs(rng),
    }
}

fn spans(rng: &mut Rng, count: u64) -> Spans {
    let mut spans = Spans::EMPTY;
    for _ in 0..count {
        let most = MAX_VALUE / MAX_EXTENTS as u64;
        let (window, length) = (number(rng) as u32, 1 + (number(rng) % most) as u32);
        assert!(spans.push(Span { window, length, offset: number(rng) }), "at most 16");
    }
    spans
}

/// The meta of a reply with `status` in its header.
fn reply(rng: &mut Rng, opcode: Opcode, status: Status) -> Reply<'static> {
    if status != Status::Ok {
        let text = one_of(rng, &["", "no room", "später"]);
        return Reply::Refused(Refusal { retry_ms: number(rng) as u32, text });
    }
    match opcode {
        Opcode::Connect => Reply::Connect(server_hello(rng)),
        Opcode::Presence => {
            let missing = |_| once_in(rng, 2).then(|| one_of(rng, MissReason::ALL));
            Reply::Presence(PresenceReply { missing: (0..6).map(missing).collect() })
        }
        Opcode::MatchPrefix => Reply::Match(MatchReply {
            first_missing: number(rng) as u32,
            examined: number(rng) as u32,
        }),
        Opcode::Get => {
            let (item, offset) = (number(rng) as u32, number(rng));
            let get = GetReply { item, offset, reply: item_reply(rng) };
            match rng.below(17) {
                0 => Reply::Get(get),
                count => Reply::Named(NamedReply { get, spans: spans(rng, count) }),
            }
        }
        Opcode::Data => Reply::Data(DataReply { item: number(rng) as u32, reply: item_reply(rng) }),
        Opcode::Stats => {
            let stat = |_| (number(rng) as u16, number(rng));
            Reply::Stats(StatsReply { stats: (0..5).map(stat).collect() })
        }
        Opcode::Release | Opcode::Goodbye => Reply::Empty(Empty),
        Opcode::Exists
        | Opcode::Lease
        | Opcode::Hint
        | Opcode::Put
        | Opcode::Delete
        | Opcode::Offer
        | Opcode::Suspect => {
            let count = rng.below(6);
            Reply::Items(ItemReplies { items: (0..count).map(|_| item_reply(rng)).collect() })
        }
    }
}
