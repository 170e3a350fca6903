//! Reading values from one server, straight into the caller's memory.
//!
//! One Get frame asks for many items; the server answers each with a frame of its own, in the order it
//! likes. The CRCs are computed slice by slice while the bytes are still in the cache. An item whose bytes
//! do not have the CRC that came with them is a miss, and the server is told to look at the block
//! (Suspect), so that nothing poisoned stays.

use std::sync::Arc;
use std::time::Instant;

use memkv_wire::meta::{
    GetItem as WireItem, GetItems, GetReply, NamedReply, Spans, SuspectItem, SuspectItems,
    TO_THE_END,
};
use memkv_wire::{CrcList, Header, MAX_ITEMS, MissReason, Opcode, Status, extents_touched};

use crate::error::{ClientError, LinkFault};
use crate::exchange::{Busy, Exchange};
use crate::items::{Items, cut};
use crate::link::Link;
use crate::process::Process;
use crate::types::GetOutcome;

/// Where the bytes of an item go.
pub(crate) enum Target<'a> {
    /// As much as fits.
    Slice(&'a mut [u8]),
    /// As much as fits, one behind the other.
    Pieces(Vec<&'a mut [u8]>),
    /// All of it, whatever its length.
    Grow(&'a mut Vec<u8>),
}

/// One value, or a range of it, to read.
pub(crate) struct Wanted<'a> {
    pub key: &'a [u8],
    pub offset: u64,
    pub target: Target<'a>,
}

/// Gets of one call from one server.
pub(crate) struct Gets<'a> {
    process: &'a Process,
    wanted: Vec<Wanted<'a>>,
    items: Items<GetOutcome>,
    /// The frame that is on its way, and what it asks for.
    current: Option<(u64, Vec<usize>)>,
    /// What is still to be asked for, one frame each.
    runs: Vec<Vec<usize>>,
    /// Blocks whose bytes were wrong: place of the item, and the generation that was answered.
    suspects: Vec<(usize, u64)>,
}

impl<'a> Gets<'a> {
    pub fn new(process: &'a Process, server: &Arc<str>, wanted: Vec<Wanted<'a>>) -> Gets<'a> {
        Gets {
            process,
            items: Items::new(server, wanted.len()),
            wanted,
            current: None,
            runs: Vec::new(),
            suspects: Vec::new(),
        }
    }

    /// The outcomes, in the order of the items.
    pub fn into_results(self) -> impl Iterator<Item = Result<GetOutcome, ClientError>> {
        self.items.into_results()
    }

    /// Asks for the next run of items.
    fn ask(&mut self, link: &mut Link, deadline: Instant) -> Result<(), LinkFault> {
        let Some(run) = self.runs.pop() else { return Ok(()) };
        let item = |item: &usize| {
            let wanted = &self.wanted[*item];
            WireItem { key: wanted.key, offset: wanted.offset, length: wanted.length() }
        };
        let mut meta = Vec::new();
        GetItems { items: run.iter().map(item).collect() }.encode(&mut meta);
        let id = self.process.next_request();
        let header = Header::request(Opcode::Get, id);
        if link.reads_windows(deadline) {
            // What comes by the connection is small then, but for what the server does not name.
            link.send(header.with_named(), &meta, &[], deadline)?;
        } else {
            link.send(header, &meta, &[], deadline)?;
            let length = |item: &usize| self.wanted[*item].length();
            link.expect(run.iter().map(length).fold(0, u64::saturating_add));
        }
        self.current = Some((id, run));
        Ok(())
    }

    /// Takes replies until every item of the current frame is answered.
    fn take_run(&mut self, link: &mut Link, deadline: Instant) -> Result<(), LinkFault> {
        let Some((id, run)) = self.current.take() else { return Ok(()) };
        let mut left = run.iter().filter(|item| self.items.is_open(**item)).count();
        while left > 0 {
            let header = link.receive(deadline)?;
            if header.opcode() != Opcode::Get || header.request_id() != id {
                return Err(LinkFault::Unexpected("a reply to no request"));
            }
            if header.status() != Status::Ok {
                if header.payload_length() > 0 || header.has_trailer() {
                    return Err(LinkFault::Unexpected("payload with a refusal"));
                }
                let open = run.iter().copied().filter(|item| self.items.is_open(*item));
                let open: Vec<usize> = open.collect();
                return self.items.refuse(open, &header, link.meta());
            }
            let (reply, payload) = match header.is_named() {
                true => {
                    let NamedReply { get, spans } = NamedReply::parse(link.meta())?;
                    (get, Payload::Named(spans))
                }
                false => (GetReply::parse(link.meta())?, Payload::Sent(header)),
            };
            let item = run.get(reply.item as usize).copied();
            let item = item
                .filter(|item| self.items.is_open(*item))
                .ok_or(LinkFault::Unexpected("a result of no item"))?;
            self.take(link, item, &payload, &reply, deadline)?;
            left -= 1;
        }
        Ok(())
    }

    /// Takes the answer to one item, with its payload.
    fn take(
        &mut self,
        link: &mut Link,
        item: usize,
        payload: &Payload,
        answer: &GetReply,
        deadline: Instant,
    ) -> Result<(), LinkFault> {
        let reply = &answer.reply;
        if reply.status != Status::Ok {
            if payload.length() > 0 || payload.trailed().is_some() {
                return Err(LinkFault::Unexpected("payload without success"));
            }
            match reply.status {
                Status::NotFound => self.items.settle(item, Ok(GetOutcome::Miss(reply.reason))),
                Status::Want | Status::Present => {
                    return Err(LinkFault::Unexpected("a result that a get does not have"));
                }
                _ => self.items.settle_unsuccessful(item, reply),
            }
            return Ok(());
        }
        let wanted = &mut self.wanted[item];
        let there = reply.length.saturating_sub(wanted.offset);
        let length = payload.length();
        if answer.offset != wanted.offset || length != there.min(wanted.length()) {
            return Err(LinkFault::Unexpected("another range than the one asked for"));
        }
        let (at, count) = (answer.offset, length as usize);
        let crcs = match &mut wanted.target {
            Target::Slice(slice) => {
                let into = std::iter::once(&mut slice[..count]);
                payload.take(link, into, at, deadline)?
            }
            Target::Pieces(pieces) => {
                let mut left = count;
                let into = pieces.iter_mut().map(|piece| {
                    let now = piece.len().min(left);
                    left -= now;
                    &mut piece[..now]
                });
                payload.take(link, into, at, deadline)?
            }
            Target::Grow(bytes) => {
                let into = std::iter::once(grown(bytes, count));
                payload.take(link, into, at, deadline)?
            }
        };
        let extent = u64::from(link.limits.extent);
        let count = extents_touched(answer.offset, length, extent) as usize;
        let sent = match payload.trailed() {
            Some(header) => link.receive_trailer(header, count, deadline)?,
            None => reply.crcs,
        };
        // A list of another length cannot vouch for the bytes either.
        if sent == crcs {
            let (length, generation) = (reply.length, reply.generation);
            self.items.settle(item, Ok(GetOutcome::Hit { length, generation }));
        } else {
            let server = self.items.server();
            tracing::warn!(%server, generation = reply.generation, "a block came with wrong bytes");
            self.suspects.push((item, reply.generation));
            self.items.settle(item, Ok(GetOutcome::Miss(MissReason::Corrupt)));
        }
        Ok(())
    }

    /// Tells the server which blocks came with wrong bytes, and waits until it has taken note.
    fn report(&mut self, link: &mut Link, deadline: Instant) -> Result<(), LinkFault> {
        let suspects = std::mem::take(&mut self.suspects);
        let places: Vec<usize> = (0..suspects.len()).collect();
        let key = |place: usize| self.wanted[suspects[place].0].key;
        for run in cut(&places, MAX_ITEMS, link, |place| key(place).len()) {
            let item =
                |place: &usize| SuspectItem { key: key(*place), generation: suspects[*place].1 };
            let mut meta = Vec::new();
            SuspectItems { items: run.iter().map(item).collect() }.encode(&mut meta);
            let id = self.process.next_request();
            link.send(Header::request(Opcode::Suspect, id), &meta, &[], deadline)?;
            let header = link.receive(deadline)?;
            if header.opcode() != Opcode::Suspect || header.request_id() != id {
                return Err(LinkFault::Unexpected("a reply to no request"));
            }
        }
        Ok(())
    }
}

/// Where the payload of a reply is.
enum Payload {
    /// It comes behind this header.
    Sent(Header),
    /// It lies in the server's memory.
    Named(Spans),
}

impl Payload {
    fn length(&self) -> u64 {
        match self {
            Payload::Sent(header) => header.payload_length(),
            Payload::Named(spans) => spans.bytes(),
        }
    }

    /// The header, if its CRCs come behind the payload.
    fn trailed(&self) -> Option<&Header> {
        match self {
            Payload::Sent(header) => Some(header).filter(|header| header.has_trailer()),
            Payload::Named(_) => None,
        }
    }

    /// Brings it into `pieces`, and tells its CRCs.
    fn take<'a>(
        &self,
        link: &mut Link,
        pieces: impl Iterator<Item = &'a mut [u8]>,
        offset: u64,
        deadline: Instant,
    ) -> Result<CrcList, LinkFault> {
        match self {
            Payload::Sent(header) => link.receive_payload(header, pieces, offset, deadline),
            Payload::Named(spans) => link.read_payload(spans, pieces, offset),
        }
    }
}

impl Wanted<'_> {
    /// Bytes to ask for.
    fn length(&self) -> u64 {
        match &self.target {
            Target::Slice(slice) => slice.len() as u64,
            Target::Pieces(pieces) => pieces.iter().map(|piece| piece.len() as u64).sum(),
            Target::Grow(_) => TO_THE_END,
        }
    }
}

/// A place for `length` bytes in `bytes`, whose own are lost.
fn grown(bytes: &mut Vec<u8>, length: usize) -> &mut [u8] {
    if bytes.capacity() < length {
        // Fresh zeroes from the system cost nothing until they are touched; growing what is there would
        // touch every byte twice.
        *bytes = vec![0; length];
    } else {
        bytes.resize(length, 0);
    }
    bytes
}

impl Exchange for Gets<'_> {
    fn start(&mut self, link: &mut Link, deadline: Instant) -> Result<(), LinkFault> {
        let open: Vec<usize> =
            (0..self.wanted.len()).filter(|item| self.items.is_open(*item)).collect();
        self.runs = cut(&open, MAX_ITEMS, link, |item| self.wanted[item].key.len());
        self.runs.reverse();
        self.ask(link, deadline)
    }

    fn finish(&mut self, link: &mut Link, deadline: Instant) -> Result<(), LinkFault> {
        while self.current.is_some() {
            self.take_run(link, deadline)?;
            self.ask(link, deadline)?;
        }
        self.report(link, deadline)
    }

    fn is_answered(&self) -> bool {
        self.items.is_answered() && self.suspects.is_empty()
    }

    fn rewind(&mut self) {
        self.current = None;
    }

    fn busy(&self) -> Option<Busy> {
        self.items.busy()
    }

    fn renew(&mut self) {
        self.items.reopen_busy();
    }

    fn fail(&mut self, error: &ClientError) {
        self.items.fail(error);
    }

    fn give_up_busy(&mut self) {
        self.items.give_up_busy();
    }
}
