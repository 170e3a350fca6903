//! The client's end of a connection that keeps the protocol: what it waits for, and the judge of
//! every frame that the server sends.

use memkv_poller::Clock;
use memkv_sim::{ClientEnd, Fate, SimClock};
use memkv_wire::handshake::{ClientHello, ServerHello, connect_keys, session_keys};
use memkv_wire::meta::{GetItem, GoodbyeMeta, PutItems, Reply, Request};
use memkv_wire::{
    GetReply, HEADER_LEN, Header, ItemReply, MAX_INLINE, Opcode, Opener, Sealer, SharedKey, Side,
    Status, crc32c,
};

use super::Seen;
use super::machine::{CREDITS, EXTENT};

/// A request that has no answer yet.
struct Waiting {
    opcode: Opcode,
    request: u64,
    /// Of a Data frame.
    item: u32,
    due: Due,
    /// Of an Offer: its payload went with it.
    along: bool,
}

/// What the answer must be.
enum Due {
    /// Refused as a whole.
    Refused(Status),
    /// So many results, in one frame.
    Items(usize),
    /// One frame per range, in any order: offset and length, gone when it was answered.
    Ranges(Vec<Option<(u64, u64)>>),
    /// One frame of another kind.
    One,
}

/// An item that the server wants to have.
#[derive(Clone, Copy)]
pub struct Wanted {
    pub request: u64,
    pub item: u32,
    pub length: u64,
    /// When it was wanted, in simulated seconds.
    pub since: u64,
}

/// The last answer, for a client that wants to know.
pub struct Answer {
    pub items: Vec<ItemReply>,
    pub payload: Vec<u8>,
}

/// A session, from its handshake on.
pub struct Link {
    pub end: ClientEnd,
    pub sealer: Sealer,
    opener: Opener,
    pub credits: u32,
    pub wanted: Vec<Wanted>,
    waiting: Vec<Waiting>,
    /// Results of the last request that has any.
    pub answer: Option<Answer>,
    clock: SimClock,
    /// The server's last word.
    pub goodbye: Option<Status>,
    /// Something was sent that the server may hang up for.
    pub broken: bool,
}

/// What came of a hello.
pub enum Greeting {
    /// Nothing yet.
    None,
    /// The server refused, and said so.
    Refused(Status),
    /// The ends of the session.
    Open(Box<(Sealer, Opener)>),
}

/// The answer to the Connect frame whose meta was `sent`, once it is there.
pub fn greeting(end: &ClientEnd, (key_id, key): &(u32, SharedKey), sent: &[u8]) -> Greeting {
    let (_, mut opener) = connect_keys(key, *key_id, Side::Client);
    let Some((header, meta, _)) = next_frame(end, &mut opener) else { return Greeting::None };
    assert_eq!((header.opcode(), header.is_reply()), (Opcode::Connect, true));
    if header.status() != Status::Ok {
        return Greeting::Refused(header.status());
    }
    let hello = ClientHello::parse(sent).expect("the server read it too");
    let reply = ServerHello::parse(&meta).expect("a server's hello can be read");
    assert!(reply.answers(&hello), "the hello is of this handshake");
    assert_eq!((header.credits(), reply.limits.extent), (CREDITS, EXTENT));
    let nonces = (&hello.client_nonce, &reply.server_nonce);
    let ends = session_keys(key, *key_id, reply.version, nonces.0, nonces.1, Side::Client);
    Greeting::Open(Box::new(ends))
}

impl Link {
    /// A session that has just begun.
    pub fn new(end: ClientEnd, (sealer, opener): (Sealer, Opener), clock: SimClock) -> Link {
        Link {
            end,
            sealer,
            opener,
            credits: CREDITS,
            wanted: Vec::new(),
            waiting: Vec::new(),
            answer: None,
            clock,
            goodbye: None,
            broken: false,
        }
    }

    /// Whether nothing more will come: all is answered, or the server is gone.
    pub fn at_rest(&self) -> bool {
        self.waiting.is_empty() || self.is_over()
    }

    /// Whether the server has hung up.
    pub fn is_over(&self) -> bool {
        self.goodbye.is_some() || self.end.fate() != Fate::Open
    }

    /// Requests without an answer.
    pub fn unanswered(&self) -> usize {
        self.waiting.len()
    }

    /// Whether the server waits for bytes that are wanted, or may do so soon.
    pub fn owes(&self) -> bool {
        !self.wanted.is_empty()
            || self.waiting.iter().any(|w| matches!(w.opcode, Opcode::Offer | Opcode::Data))
    }

    /// Whether a request of this operation and id waits, so that the id says nothing.
    pub fn waits_for(&self, opcode: Opcode, request: u64) -> bool {
        self.waiting.iter().any(|w| w.opcode == opcode && w.request == request)
    }

    /// Seals a request and notes what its answer must be; the bytes are the caller's to send.
    pub fn seal(&mut self, mut header: Header, meta: &[u8]) -> (Header, Vec<u8>) {
        let mut frame = Vec::new();
        self.sealer.seal(&mut header, meta, &mut frame);
        let opcode = header.opcode();
        if opcode == Opcode::Put {
            self.credits = self.credits.saturating_sub(1);
        }
        if opcode != Opcode::Goodbye {
            let item = meta.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
            let due = due(opcode, meta, header.payload_length(), header.is_named());
            let request = header.request_id();
            let along = opcode == Opcode::Offer && header.payload_length() > 0;
            self.waiting.push(Waiting { opcode, request, item, due, along });
        }
        (header, frame)
    }

    /// Takes and judges every whole frame that has arrived.
    pub fn take(&mut self, seen: &mut Seen) {
        while let Some((header, meta, payload)) = next_frame(&self.end, &mut self.opener) {
            assert_eq!(self.goodbye, None, "nothing follows a Goodbye");
            if header.opcode() == Opcode::Goodbye && !header.is_reply() {
                GoodbyeMeta::parse(&meta).expect("a server's Goodbye can be read");
                assert_eq!(header.request_id(), 0);
                self.goodbye = Some(header.status());
                seen.counts.bump("goodbye from the server");
                continue;
            }
            self.judge(seen, &header, &meta, &payload);
        }
    }

    fn judge(&mut self, seen: &mut Seen, header: &Header, meta: &[u8], payload: &[u8]) {
        let (opcode, request) = (header.opcode(), header.request_id());
        assert!(header.is_reply(), "a server only answers: {header:?}");
        let reply = Reply::parse(opcode, header.status(), meta);
        let reply = reply.unwrap_or_else(|error| panic!("{opcode}: {error} in a reply"));
        let item = if let Reply::Data(data) = &reply { data.item } else { 0 };
        let at = self.waiting.iter().position(|w| {
            (w.opcode, w.request) == (opcode, request) && (opcode != Opcode::Data || w.item == item)
        });
        let at = at.unwrap_or_else(|| panic!("an answer to nothing: {header:?}"));
        self.credits += header.credits();
        assert_eq!(header.credits(), u32::from(opcode == Opcode::Put), "a Put's credit comes back");
        let waiting = &mut self.waiting[at];
        let along = waiting.along;
        assert!(opcode == Opcode::Get || payload.is_empty(), "only a Get is answered by payload");
        assert!(!header.is_named(), "nobody was told of windows");
        let (more, last) = waiting.check(&reply, header.status(), payload);
        assert_eq!(header.has_more(), more, "MORE is on all but the last item's");
        seen.reply(opcode, along, header.status(), &reply);
        match reply {
            Reply::Items(items) => {
                if along {
                    let wanted = items.items.iter().any(|item| item.status == Status::Want);
                    assert!(!wanted, "what came along is not wanted again");
                } else if opcode == Opcode::Offer {
                    self.want(request, &items.items);
                }
                self.answer = Some(Answer { items: items.items, payload: Vec::new() });
            }
            Reply::Presence(presence) => {
                let item = |missing: Option<_>| match missing {
                    None => ItemReply::new(Status::Ok),
                    Some(reason) => ItemReply::miss(reason),
                };
                let items = presence.missing.into_iter().map(item).collect();
                self.answer = Some(Answer { items, payload: Vec::new() });
            }
            Reply::Get(get) => {
                self.answer = Some(Answer { items: vec![get.reply], payload: payload.to_vec() });
            }
            _ => {}
        }
        if last {
            self.waiting.swap_remove(at);
        }
    }

    fn want(&mut self, request: u64, items: &[ItemReply]) {
        let since = self.seconds();
        let wanted = |(at, item): (usize, &ItemReply)| {
            let item = (item.status == Status::Want).then_some(item)?;
            let (item, length) = (at as u32, item.length);
            Some(Wanted { request, item, length, since })
        };
        self.wanted.extend(items.iter().enumerate().filter_map(wanted));
    }

    fn seconds(&self) -> u64 {
        self.clock.now().as_nanos() / 1_000_000_000
    }

    /// For how many seconds an item has been wanted.
    pub fn age(&self, wanted: &Wanted) -> u64 {
        self.seconds() - wanted.since
    }
}

/// What the answer to a request must be, by what its meta says.
fn due(opcode: Opcode, meta: &[u8], payload: u64, named: bool) -> Due {
    if opcode == Opcode::Connect {
        return Due::Refused(Status::Unsupported);
    }
    if opcode == Opcode::Put && named {
        // Nobody was told of a door: where its payload lies, there is nothing.
        let put = PutItems::parse_staged(meta, Vec::new()).and_then(|(put, _)| put.inline_length());
        return Due::Refused(put.map_or_else(|error| error.status(), |_| Status::BadRequest));
    }
    match Request::parse(opcode, meta) {
        Err(error) => Due::Refused(error.status()),
        Ok(Request::PutStaged(..)) => Due::Refused(Status::Unsupported),
        Ok(Request::Put(put)) => match put.inline_length() {
            Ok(length) if length == payload => Due::Items(put.items.len()),
            _ => Due::Refused(Status::TooLarge),
        },
        Ok(Request::Get(get)) => {
            let range = |item: &GetItem<'_>| Some((item.offset, item.length));
            Due::Ranges(get.items.iter().map(range).collect())
        }
        Ok(Request::Offer(offer)) => Due::Items(offer.items.len()),
        Ok(Request::Exists(list) | Request::Presence(list)) => Due::Items(list.keys.len()),
        Ok(Request::Lease(list)) => Due::Items(list.keys.len()),
        Ok(Request::Hint(list)) => Due::Items(list.keys.len()),
        Ok(Request::Delete(list)) => Due::Items(list.items.len()),
        Ok(Request::Suspect(list)) => Due::Items(list.items.len()),
        Ok(_) => Due::One,
    }
}

impl Waiting {
    /// Whether the answer is one that must be; whether it announces more, and ends the request.
    fn check(&mut self, reply: &Reply<'_>, status: Status, payload: &[u8]) -> (bool, bool) {
        let opcode = self.opcode;
        match (&mut self.due, reply) {
            (Due::Refused(due), Reply::Refused(_)) => assert_eq!(status, *due, "{opcode}"),
            (Due::Items(_), Reply::Refused(_)) => {
                let may = opcode == Opcode::Lease && status == Status::LimitExceeded;
                assert!(may, "{opcode} could be read and was refused: {status}");
            }
            (Due::Items(count), Reply::Items(items)) => {
                assert_eq!(items.items.len(), *count, "{opcode}: a result per item");
            }
            (Due::Items(count), Reply::Presence(presence)) => {
                assert_eq!(presence.missing.len(), *count, "{opcode}: a byte per key");
            }
            (Due::Ranges(ranges), Reply::Get(get)) => {
                let range = ranges.get_mut(get.item as usize).and_then(Option::take);
                check_range(get, range.expect("each item is answered once"), payload);
                let last_item = get.item as usize + 1 == ranges.len();
                return (!last_item, ranges.iter().all(Option::is_none));
            }
            (Due::One, Reply::Match(_) | Reply::Data(_) | Reply::Stats(_) | Reply::Empty(_)) => {}
            (Due::Refused(due), _) => panic!("{opcode} was answered, not refused with {due}"),
            _ => panic!("{opcode}: an answer of another kind: {status}"),
        }
        (false, true)
    }
}

/// The bytes of a range are as many as were asked for, and have the CRCs that came with them.
fn check_range(get: &GetReply, (offset, length): (u64, u64), payload: &[u8]) {
    if get.reply.status != Status::Ok {
        assert!(payload.is_empty(), "bytes came without a block");
        return;
    }
    assert_eq!(get.offset, offset);
    let end = offset.saturating_add(length).min(get.reply.length);
    assert_eq!(payload.len() as u64, end.saturating_sub(offset));
    let extent = EXTENT as usize;
    let first = (extent - (offset % extent as u64) as usize).min(payload.len());
    let (head, rest) = payload.split_at(first);
    let pieces = (!head.is_empty()).then_some(head).into_iter().chain(rest.chunks(extent));
    let crcs: Vec<u32> = pieces.map(crc32c).collect();
    assert_eq!(get.reply.crcs.as_slice(), crcs, "the bytes are the ones that were stored");
}

/// The next frame, once it is whole: authentic, next in sequence, of the server.
///
/// # Panics
/// When it is not.
fn next_frame(end: &ClientEnd, opener: &mut Opener) -> Option<(Header, Vec<u8>, Vec<u8>)> {
    end.read(|bytes| {
        let Some(raw) = bytes.first_chunk::<HEADER_LEN>() else { return (0, None) };
        let peeked = opener.peek(raw).expect("a server's header is in order");
        assert!(!peeked.has_trailer(), "a server sends no trailers");
        assert!(peeked.meta_length() <= 8 * MAX_INLINE, "no more than what was asked for");
        let meta_end = HEADER_LEN + peeked.meta_length() as usize;
        let total = meta_end + peeked.payload_length() as usize;
        if bytes.len() < total {
            return (0, None);
        }
        let meta = &bytes[HEADER_LEN..meta_end];
        let header = opener.open(raw, meta).expect("a server's frame is authentic");
        (total, Some((header, meta.to_vec(), bytes[meta_end..total].to_vec())))
    })
}
