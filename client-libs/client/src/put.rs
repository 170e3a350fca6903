//! Storing values on one server.
//!
//! Small values ride inline: as many as fit into 256 KiB travel in one Put frame, on one credit, and
//! several frames are on their way at once. Larger ones are offered first, and only those that the server
//! wants are sent, again several at once:
//!
//! ```text
//!   client                               server
//!   Put {a, b, c} + payload   ────────►            one credit
//!   Put {d} + payload         ────────►            one credit
//!                             ◄────────  results of a, b, c; a credit back
//!                             ◄────────  result of d; a credit back
//!   Offer {e, f, g}           ────────►
//!                             ◄────────  Want, Present, Want
//!   Data e | Data g           ────────►
//!                             ◄────────  result of e | result of g
//! ```
//!
//! A lone large value goes with its Offer where the server takes that and wanted those before it
//! ([`unasked`](crate::unasked)); the answer is its result. But only in a call to one server: first requests go
//! to all servers before any answer is awaited, and one that does not read must not keep the others waiting.
//!
//! Requests keep their ids when they are repeated on another connection, so the server can tell a
//! repetition from a new put.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use memkv_wire::meta::{
    DataReply, ItemReplies, ItemReply, PutAdvice, PutItem as WireItem, PutItems,
};
use memkv_wire::{CrcList, Header, MAX_ITEMS, Opcode, Status};

use crate::crc::ExtentCrcs;
use crate::error::{ClientError, LinkFault};
use crate::exchange::{Busy, Exchange};
use crate::items::{Items, cut};
use crate::link::Link;
use crate::process::Process;
use crate::types::{Bytes, PutOutcome, Value};

/// Most inline items that may be unanswered: their results fit into the socket's buffers, so a server that
/// answers while we still send is never blocked by us.
const INLINE_ITEMS_MAX: usize = 1024;
/// Most items of one Offer: a server keeps a place for each until its bytes are there.
const OFFER_ITEMS_MAX: usize = 64;
/// Most Data frames that may be unanswered.
const DATA_WINDOW: usize = 4;

/// Puts of one call to one server.
pub(crate) struct Puts<'a> {
    process: &'a Process,
    values: Vec<Value<'a>>,
    items: Items<PutOutcome>,
    /// Requests in the order in which they are sent. Made at the first start, when the limits are known.
    requests: Vec<Request>,
    /// Items that are in no request yet.
    unplanned: Vec<usize>,
    /// The first request is sent already.
    started: bool,
    /// The call asks no other server: a value that goes with its offer keeps nobody waiting.
    alone: bool,
    /// The offer that was sent last went with its payload.
    unasked: bool,
}

struct Request {
    opcode: Opcode,
    id: u64,
    items: Vec<usize>,
    /// Where its payload was laid down for the server, on the link on which it was sent.
    place: Option<usize>,
    done: bool,
}

impl<'a> Puts<'a> {
    pub fn new(process: &'a Process, server: &Arc<str>, values: Vec<Value<'a>>) -> Puts<'a> {
        Puts {
            process,
            items: Items::new(server, values.len()),
            unplanned: (0..values.len()).collect(),
            values,
            requests: Vec::new(),
            started: false,
            alone: false,
            unasked: false,
        }
    }

    /// The call asks no other server.
    pub fn alone(self) -> Puts<'a> {
        Puts { alone: true, ..self }
    }

    /// The outcomes, in the order of the values.
    pub fn into_results(self) -> impl Iterator<Item = Result<PutOutcome, ClientError>> {
        self.items.into_results()
    }

    /// Packs what is in no request yet into requests.
    fn plan(&mut self, link: &Link) {
        let limit = link.limits.max_value;
        let inline_max = match link.credits.granted() {
            0 => 0,
            _ => u64::from(link.limits.max_inline),
        };
        let (mut small, mut large) = (Vec::new(), Vec::new());
        for item in std::mem::take(&mut self.unplanned) {
            match self.values[item].bytes.len() {
                length if length > limit => {
                    self.items.settle(item, Err(ClientError::TooLarge { length, limit }));
                }
                length if length > inline_max => large.push(item),
                _ => small.push(item),
            }
        }
        let values = &self.values;
        let key = |item: usize| values[item].key;
        let mut requests = Vec::new();
        let bytes = |item: usize| self.meta_bytes(item);
        for run in cut(&small, MAX_ITEMS, link, bytes) {
            let packs = pack(&run, inline_max, |item| values[item].bytes.len());
            requests.extend(packs.into_iter().map(|items| (Opcode::Put, items)));
        }
        for distinct in rounds(large, key) {
            let runs = cut(&distinct, OFFER_ITEMS_MAX, link, bytes);
            requests.extend(runs.into_iter().map(|items| (Opcode::Offer, items)));
        }
        let process = self.process;
        self.requests.extend(requests.into_iter().map(|(opcode, items)| Request {
            opcode,
            id: process.next_request(),
            items,
            place: None,
            done: false,
        }));
    }

    /// The first request at or after `from` that is not done.
    fn next(&self, from: usize) -> Option<usize> {
        (from..self.requests.len()).find(|at| !self.requests[*at].done)
    }

    fn wire_item(&self, item: usize, crcs: CrcList) -> WireItem<'a> {
        let Value { key, bytes, options, parent } = self.values[item];
        WireItem {
            key,
            length: bytes.len(),
            mode: options.mode,
            durable: options.durable,
            ttl_seconds: options.ttl_seconds,
            crcs,
            advice: PutAdvice { parent, pin_seconds: options.pin_seconds },
        }
    }

    /// Bytes of the values of a request.
    fn bytes(&self, at: usize) -> u64 {
        self.requests[at].items.iter().map(|&item| self.values[item].bytes.len()).sum()
    }

    /// Bytes that an item takes in a meta, besides what every item takes.
    fn meta_bytes(&self, item: usize) -> usize {
        let Value { key, options, parent, .. } = self.values[item];
        let advice = PutAdvice { parent, pin_seconds: options.pin_seconds };
        key.len() + advice.encoded_length()
    }

    fn send(&mut self, at: usize, link: &mut Link, deadline: Instant) -> Result<(), LinkFault> {
        let request = &self.requests[at];
        let inline = request.opcode == Opcode::Put;
        let lone = match request.items[..] {
            [item] if self.alone && !inline => Some(&self.values[item].bytes),
            _ => None,
        };
        let with_offer = lone.filter(|value| link.unasked.may_go(value.len()));
        let values = || request.items.iter().map(|&item| &self.values[item].bytes);
        let laid = if inline { link.stage(&values().collect::<Vec<_>>(), deadline) } else { None };
        let extent = link.limits.extent;
        let mut wire = Vec::with_capacity(request.items.len());
        for (at, (&item, value)) in request.items.iter().zip(values()).enumerate() {
            let crcs = match &laid {
                Some(laid) => Some(laid.crcs[at]),
                None if inline => crcs_of(value, extent),
                None => Some(CrcList::EMPTY),
            };
            let crcs = crcs.ok_or(LinkFault::Unexpected("extents too small for this value"))?;
            wire.push(self.wire_item(item, crcs));
        }
        let mut meta = Vec::new();
        PutItems { items: wire }.encode(&mut meta);
        let header = Header::request(request.opcode, request.id);
        let sent = match (with_offer, &laid) {
            (Some(value), _) => link.send_value(header, &meta, value, deadline),
            (None, Some(laid)) => {
                laid.named.encode(&mut meta);
                link.send(header.with_named(), &meta, &[], deadline)
            }
            (None, None) => {
                let bytes = values().filter(|_| inline).flat_map(|value| value.pieces());
                link.send(header, &meta, &bytes.copied().collect::<Vec<_>>(), deadline)
            }
        };
        self.unasked = with_offer.is_some();
        self.requests[at].place = laid.map(|laid| laid.place);
        sent
    }

    /// Sends the inline requests from `first` on, as many at a time as credits and limits allow, and takes
    /// their replies.
    fn run_inline(
        &mut self,
        link: &mut Link,
        first: usize,
        sent_already: bool,
        deadline: Instant,
    ) -> Result<(), LinkFault> {
        let mut outstanding: VecDeque<usize> = VecDeque::new();
        let mut items_out = 0;
        let mut next = Some(first);
        if sent_already {
            outstanding.push_back(first);
            items_out += self.requests[first].items.len();
            next = self.next(first + 1);
        }
        loop {
            while let Some(at) = next.filter(|at| self.requests[*at].opcode == Opcode::Put) {
                let count = self.requests[at].items.len();
                let room = outstanding.len() < link.limits.max_requests as usize
                    && items_out + count <= INLINE_ITEMS_MAX;
                let room = room && link.has_place(self.bytes(at));
                // One request is always let through, however many items it has.
                if !outstanding.is_empty() && !room || link.credits.take(1).is_err() {
                    break;
                }
                self.send(at, link, deadline)?;
                outstanding.push_back(at);
                items_out += count;
                next = self.next(at + 1);
            }
            if outstanding.is_empty() {
                return match next {
                    Some(at) if self.requests[at].opcode == Opcode::Put => {
                        Err(LinkFault::Unexpected("a credit that did not come back"))
                    }
                    _ => Ok(()),
                };
            }
            let at = self.receive_inline(link, &outstanding, deadline)?;
            outstanding.retain(|other| *other != at);
            items_out -= self.requests[at].items.len();
        }
    }

    /// Takes the reply to one of the outstanding inline requests and returns which.
    fn receive_inline(
        &mut self,
        link: &mut Link,
        outstanding: &VecDeque<usize>,
        deadline: Instant,
    ) -> Result<usize, LinkFault> {
        let header = link.receive(deadline)?;
        let at = outstanding
            .iter()
            .copied()
            .find(|at| self.requests[*at].id == header.request_id())
            .filter(|_| header.opcode() == Opcode::Put)
            .ok_or(LinkFault::Unexpected("a reply to no request"))?;
        if let Some(place) = self.requests[at].place.take() {
            let found = header.status() != Status::BadRequest;
            link.taken(place, found);
            if !found {
                // It goes again, by the socket.
                return Ok(at);
            }
        }
        for (item, reply) in self.replies(at, &header, link.meta())? {
            self.settle(item, &reply)?;
        }
        self.requests[at].done = true;
        Ok(at)
    }

    /// The items of request `at` and their replies; none when the request was refused as a whole, which is
    /// then settled.
    fn replies(
        &mut self,
        at: usize,
        header: &Header,
        meta: &[u8],
    ) -> Result<Vec<(usize, ItemReply)>, LinkFault> {
        let asked = &self.requests[at].items;
        if header.status() != Status::Ok {
            self.items.refuse(asked.iter().copied(), header, meta)?;
            return Ok(Vec::new());
        }
        let replies = ItemReplies::parse(meta)?.items;
        if replies.len() != asked.len() {
            return Err(LinkFault::Unexpected("another number of results than of items"));
        }
        Ok(asked.iter().copied().zip(replies).collect())
    }

    /// Takes the final answer to one item.
    fn settle(&mut self, item: usize, reply: &ItemReply) -> Result<(), LinkFault> {
        let ItemReply { length, generation, crcs, .. } = *reply;
        match reply.status {
            Status::Ok => self.items.settle(item, Ok(PutOutcome::Stored { generation })),
            Status::Present => {
                self.items.settle(item, Ok(PutOutcome::Present { generation, length, crcs }));
            }
            Status::TooLarge => {
                let length = self.values[item].bytes.len();
                let limit = reply.length;
                self.items.settle(item, Err(ClientError::TooLarge { length, limit }));
            }
            Status::Want | Status::NotFound => {
                return Err(LinkFault::Unexpected("a result that a put does not have"));
            }
            _ => self.items.settle_unsuccessful(item, reply),
        }
        Ok(())
    }

    /// Offers, then sends what is wanted.
    fn run_offer(
        &mut self,
        link: &mut Link,
        at: usize,
        sent_already: bool,
        deadline: Instant,
    ) -> Result<(), LinkFault> {
        if !sent_already {
            self.send(at, link, deadline)?;
        }
        let header = link.receive(deadline)?;
        if header.opcode() != Opcode::Offer || header.request_id() != self.requests[at].id {
            return Err(LinkFault::Unexpected("a reply to no request"));
        }
        let replies = self.replies(at, &header, link.meta())?;
        if self.unasked {
            link.unasked.went(replies.first().is_some_and(|(_, reply)| reply.status == Status::Ok));
        }
        let mut wanted = VecDeque::new();
        for (place, (item, reply)) in replies.into_iter().enumerate() {
            if !self.unasked {
                link.unasked.answered(reply.status == Status::Want);
            }
            match reply.status {
                Status::Want if !self.unasked => wanted.push_back((place as u32, item)),
                // More places than this connection may have: when those it has are filled.
                Status::LimitExceeded => self.items.set_busy(item, 0),
                _ => self.settle(item, &reply)?,
            }
        }
        self.send_wanted(link, at, wanted, deadline)?;
        self.requests[at].done = true;
        Ok(())
    }

    fn send_wanted(
        &mut self,
        link: &mut Link,
        at: usize,
        mut wanted: VecDeque<(u32, usize)>,
        deadline: Instant,
    ) -> Result<(), LinkFault> {
        let id = self.requests[at].id;
        let window = DATA_WINDOW.min(link.limits.max_requests as usize);
        let mut outstanding: VecDeque<(u32, usize)> = VecDeque::new();
        loop {
            while outstanding.len() < window
                && let Some((place, item)) = wanted.pop_front()
            {
                link.send_data(id, place, &self.values[item].bytes, deadline)?;
                outstanding.push_back((place, item));
            }
            let Some(&oldest) = outstanding.front() else { return Ok(()) };
            let header = link.receive(deadline)?;
            if header.opcode() != Opcode::Data || header.request_id() != id {
                return Err(LinkFault::Unexpected("a reply to no request"));
            }
            if header.status() != Status::Ok {
                // A refusal does not say of which item; Data frames are answered in their order.
                self.items.refuse([oldest.1], &header, link.meta())?;
                outstanding.pop_front();
                continue;
            }
            let answer = DataReply::parse(link.meta())?;
            let answered = outstanding.iter().position(|(place, _)| *place == answer.item);
            let (_, item) = answered
                .and_then(|place| outstanding.remove(place))
                .ok_or(LinkFault::Unexpected("a result of no item"))?;
            self.settle(item, &answer.reply)?;
        }
    }
}

impl Exchange for Puts<'_> {
    fn start(&mut self, link: &mut Link, deadline: Instant) -> Result<(), LinkFault> {
        self.plan(link);
        let Some(first) = self.next(0) else { return Ok(()) };
        if self.requests[first].opcode == Opcode::Put && link.credits.take(1).is_err() {
            return Err(LinkFault::Unexpected("a connection without the credits it granted"));
        }
        self.started = true;
        self.send(first, link, deadline)
    }

    fn finish(&mut self, link: &mut Link, deadline: Instant) -> Result<(), LinkFault> {
        let mut started = std::mem::take(&mut self.started);
        while let Some(at) = self.next(0) {
            match self.requests[at].opcode {
                Opcode::Put => self.run_inline(link, at, started, deadline)?,
                _ => self.run_offer(link, at, started, deadline)?,
            }
            started = false;
        }
        Ok(())
    }

    fn is_answered(&self) -> bool {
        self.items.is_answered()
    }

    fn rewind(&mut self) {
        self.started = false;
    }

    fn busy(&self) -> Option<Busy> {
        self.items.busy()
    }

    fn renew(&mut self) {
        self.unplanned = self.items.reopen_busy();
        self.requests.clear();
    }

    fn fail(&mut self, error: &ClientError) {
        self.items.fail(error);
    }

    fn give_up_busy(&mut self) {
        self.items.give_up_busy();
    }
}

/// The CRC of each extent of a value; `None` when it has more than 16.
fn crcs_of(bytes: &Bytes<'_>, extent: u32) -> Option<CrcList> {
    let mut crcs = ExtentCrcs::new(0, extent);
    bytes.pieces().iter().for_each(|piece| crcs.update(piece));
    crcs.list()
}

/// Deals items out into rounds in which no key comes twice. A server lets the second put of a key wait for
/// the first, so both in one Offer would wait for each other.
fn rounds<'a>(mut items: Vec<usize>, key: impl Fn(usize) -> &'a [u8]) -> Vec<Vec<usize>> {
    let mut rounds = Vec::new();
    while !items.is_empty() {
        let mut seen = HashSet::new();
        let (now, later) = items.into_iter().partition(|item| seen.insert(key(*item)));
        rounds.push(now);
        items = later;
    }
    rounds
}

/// Packs items into groups of at most `limit` bytes each, in their order.
fn pack(items: &[usize], limit: u64, length: impl Fn(usize) -> u64) -> Vec<Vec<usize>> {
    let mut packs: Vec<Vec<usize>> = Vec::new();
    let mut room = 0;
    for &item in items {
        let bytes = length(item);
        if packs.is_empty() || bytes > room {
            packs.push(Vec::new());
            room = limit;
        }
        room -= bytes;
        packs.last_mut().expect("one was pushed at least").push(item);
    }
    packs
}

#[cfg(test)]
mod tests {
    use super::{pack, rounds};

    #[test]
    fn packs_are_full_and_keep_the_order() {
        let lengths = [100, 60, 40, 1, 99, 1, 100];
        let items: Vec<usize> = (0..lengths.len()).collect();
        let packs = pack(&items, 100, |item| lengths[item]);
        assert_eq!(packs, [vec![0], vec![1, 2], vec![3, 4], vec![5], vec![6]]);
        assert!(pack(&[], 100, |_| 1).is_empty());
    }

    #[test]
    fn no_key_comes_twice_in_a_round() {
        let keys: [&[u8]; 6] = [b"a", b"b", b"a", b"c", b"a", b"b"];
        let rounds = rounds((0..6).collect(), |item| keys[item]);
        assert_eq!(rounds, [vec![0, 1, 3], vec![2, 5], vec![4]]);
    }
}
