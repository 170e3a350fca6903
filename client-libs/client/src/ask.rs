//! Requests without payload: keys out, results in.

use std::sync::Arc;
use std::time::{Duration, Instant};

use memkv_wire::meta::{
    DeleteItem, DeleteItems, HintList, ItemReplies, ItemReply, KeyList, LeaseList, MatchItem,
    MatchItems, MatchReply, PresenceReply, StatsReply,
};
use memkv_wire::{Advice, Header, MAX_ITEMS, Opcode, Status};

use crate::counters::Operation;
use crate::error::{ClientError, LinkFault};
use crate::exchange::{Busy, Exchange};
use crate::items::{Items, cut};
use crate::link::Link;
use crate::process::Process;
use crate::types::Hint;

/// What is asked about each key.
#[derive(Clone, Copy)]
pub(crate) enum Question {
    /// What is there?
    Exists,
    /// Is it there? Nothing of an answer is looked at but whether it is.
    Presence,
    /// Keep it readable for so many milliseconds.
    Lease(u32),
    /// Give the lease back.
    Release,
    /// It will be wanted, or not.
    Hint(Hint),
    /// Remove it, if it has this generation; 0 for any.
    Delete(u64),
}

impl Question {
    /// By which operation the server at the end of `link` is asked.
    fn opcode(self, link: &Link) -> Opcode {
        match self {
            Question::Presence if link.answers_presence => Opcode::Presence,
            Question::Exists | Question::Presence => Opcode::Exists,
            Question::Lease(_) => Opcode::Lease,
            Question::Release => Opcode::Release,
            Question::Hint(_) => Opcode::Hint,
            Question::Delete(_) => Opcode::Delete,
        }
    }

    /// What it is counted as.
    pub fn operation(self) -> Operation {
        match self {
            Question::Exists | Question::Presence => Operation::Exists,
            Question::Lease(_) => Operation::Lease,
            Question::Release => Operation::Release,
            Question::Hint(_) => Operation::Hint,
            Question::Delete(_) => Operation::Delete,
        }
    }

    fn encode(self, keys: Vec<&[u8]>, meta: &mut Vec<u8>) {
        match self {
            Question::Exists | Question::Presence | Question::Release => {
                KeyList { keys }.encode(meta);
            }
            Question::Lease(lease_ms) => LeaseList { lease_ms, keys }.encode(meta),
            Question::Hint(hint) => {
                let (advice, seconds) = match hint {
                    Hint::Release => (Advice::Release, 0),
                    Hint::Retain => (Advice::Retain, 0),
                    Hint::Pin(time) => (Advice::Pin, whole_seconds(time)),
                };
                HintList { advice, seconds, keys }.encode(meta);
            }
            Question::Delete(generation) => {
                let item = |key| DeleteItem { key, generation };
                DeleteItems { items: keys.into_iter().map(item).collect() }.encode(meta);
            }
        }
    }
}

/// The wire counts whole seconds, one at least.
fn whole_seconds(time: Duration) -> u32 {
    u32::try_from(time.as_millis().div_ceil(1000)).unwrap_or(u32::MAX).max(1)
}

/// One question about many keys of one server, of whose answers only `A` is kept: of thousands of keys
/// nothing that nobody wants is moved about.
pub(crate) struct Asks<'a, A> {
    process: &'a Process,
    question: Question,
    answer: fn(ItemReply) -> A,
    keys: Vec<&'a [u8]>,
    items: Items<A>,
    requests: Vec<Request>,
    unplanned: Vec<usize>,
    started: bool,
}

struct Request {
    id: u64,
    items: Vec<usize>,
    done: bool,
}

impl<'a, A> Asks<'a, A> {
    /// `answer` makes what is kept of a reply (Ok, NotFound or Present).
    pub fn new(
        process: &'a Process,
        server: &Arc<str>,
        question: Question,
        keys: Vec<&'a [u8]>,
        answer: fn(ItemReply) -> A,
    ) -> Asks<'a, A> {
        Asks {
            process,
            question,
            answer,
            items: Items::new(server, keys.len()),
            unplanned: (0..keys.len()).collect(),
            keys,
            requests: Vec::new(),
            started: false,
        }
    }

    /// The answers in the order of the keys.
    pub fn into_results(self) -> impl Iterator<Item = Result<A, ClientError>> {
        self.items.into_results()
    }

    fn next(&self) -> Option<usize> {
        self.requests.iter().position(|request| !request.done)
    }

    fn send(&self, at: usize, link: &mut Link, deadline: Instant) -> Result<(), LinkFault> {
        let request = &self.requests[at];
        let keys = request.items.iter().map(|item| self.keys[*item]).collect();
        let mut meta = Vec::new();
        self.question.encode(keys, &mut meta);
        link.send(Header::request(self.question.opcode(link), request.id), &meta, &[], deadline)
    }

    fn take(&mut self, at: usize, link: &mut Link, deadline: Instant) -> Result<(), LinkFault> {
        let header = link.receive(deadline)?;
        let (request, opcode) = (&self.requests[at], self.question.opcode(link));
        if header.opcode() != opcode || header.request_id() != request.id {
            return Err(LinkFault::Unexpected("a reply to no request"));
        }
        if header.status() != Status::Ok {
            let items = request.items.iter().copied();
            self.items.refuse(items, &header, link.meta())?;
        } else {
            // Of a release whatever was held is held no more: there is nothing to say of single keys.
            let (items, answer) = (&mut self.items, self.answer);
            let mut take = |at: usize, reply: ItemReply| match reply.status {
                Status::Ok | Status::NotFound | Status::Present => {
                    items.settle(request.items[at], Ok(answer(reply)));
                }
                _ => items.settle_unsuccessful(request.items[at], &reply),
            };
            let count = request.items.len();
            let complete = match opcode {
                Opcode::Release => {
                    (0..count).for_each(|at| take(at, ItemReply::new(Status::Ok)));
                    true
                }
                Opcode::Presence => {
                    PresenceReply::parse_each(link.meta(), count, |at, missing| {
                        take(at, missing.map_or(ItemReply::new(Status::Ok), ItemReply::miss));
                    })?
                }
                _ => ItemReplies::parse_each(link.meta(), count, take)?,
            };
            if !complete {
                return Err(LinkFault::Unexpected("another number of results than of items"));
            }
        }
        self.requests[at].done = true;
        Ok(())
    }
}

impl<A> Exchange for Asks<'_, A> {
    fn start(&mut self, link: &mut Link, deadline: Instant) -> Result<(), LinkFault> {
        let unplanned = std::mem::take(&mut self.unplanned);
        for items in cut(&unplanned, MAX_ITEMS, link, |item| self.keys[item].len()) {
            self.requests.push(Request { id: self.process.next_request(), items, done: false });
        }
        let Some(first) = self.next() else { return Ok(()) };
        self.started = true;
        self.send(first, link, deadline)
    }

    fn finish(&mut self, link: &mut Link, deadline: Instant) -> Result<(), LinkFault> {
        while let Some(at) = self.next() {
            if !std::mem::take(&mut self.started) {
                self.send(at, link, deadline)?;
            }
            self.take(at, link, deadline)?;
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

/// Something asked of one server as a whole: the first missing key of a run, or its counters.
pub(crate) struct Whole<'a, Q: Query> {
    process: &'a Process,
    query: Q,
    /// The one answer, as a list of one item.
    answer: Items<Q::Answer>,
    request: Option<u64>,
}

/// One kind of question to a server as a whole.
pub(crate) trait Query {
    /// What comes back.
    type Answer;
    /// Its operation.
    const OPCODE: Opcode;
    /// The meta of the next request; `None` when nothing is left to ask.
    fn encode(&self, link: &Link) -> Vec<u8>;
    /// Takes a reply; `Some` when it settles the matter, `None` when there is another request to send.
    fn take(&mut self, meta: &[u8]) -> Result<Option<Self::Answer>, LinkFault>;
}

impl<'a, Q: Query> Whole<'a, Q> {
    pub fn new(process: &'a Process, server: &Arc<str>, query: Q) -> Whole<'a, Q> {
        Whole { process, query, answer: Items::new(server, 1), request: None }
    }

    /// The answer.
    pub fn into_result(self) -> Result<Q::Answer, ClientError> {
        self.answer.into_results().next().expect("a list of one item")
    }
}

impl<Q: Query> Exchange for Whole<'_, Q> {
    fn start(&mut self, link: &mut Link, deadline: Instant) -> Result<(), LinkFault> {
        let id = self.process.next_request();
        let meta = self.query.encode(link);
        link.send(Header::request(Q::OPCODE, id), &meta, &[], deadline)?;
        self.request = Some(id);
        Ok(())
    }

    fn finish(&mut self, link: &mut Link, deadline: Instant) -> Result<(), LinkFault> {
        while !self.answer.is_answered() {
            let header = link.receive(deadline)?;
            if header.opcode() != Q::OPCODE || Some(header.request_id()) != self.request {
                return Err(LinkFault::Unexpected("a reply to no request"));
            }
            if header.status() != Status::Ok {
                self.answer.refuse([0], &header, link.meta())?;
            } else if let Some(answer) = self.query.take(link.meta())? {
                self.answer.settle(0, Ok(answer));
            } else {
                self.start(link, deadline)?;
            }
        }
        Ok(())
    }

    fn is_answered(&self) -> bool {
        self.answer.is_answered()
    }

    fn rewind(&mut self) {
        self.request = None;
    }

    fn busy(&self) -> Option<Busy> {
        self.answer.busy()
    }

    fn renew(&mut self) {
        self.answer.reopen_busy();
    }

    fn fail(&mut self, error: &ClientError) {
        self.answer.fail(error);
    }

    fn give_up_busy(&mut self) {
        self.answer.give_up_busy();
    }
}

/// The first missing key of the part of a run that one server has.
pub(crate) struct FirstMissing<'a> {
    /// Positions in the whole run and keys, ascending.
    pub keys: Vec<(u32, &'a [u8])>,
    /// Keys known to be there.
    pub matched: usize,
    /// Keys in the request that is on its way.
    pub asked: std::cell::Cell<usize>,
}

impl Query for FirstMissing<'_> {
    /// The position of the first missing key; `None` when all are there.
    type Answer = Option<u32>;
    const OPCODE: Opcode = Opcode::MatchPrefix;

    fn encode(&self, link: &Link) -> Vec<u8> {
        let left: Vec<usize> = (self.matched..self.keys.len()).collect();
        let mut runs = cut(&left, MAX_ITEMS, link, |item| self.keys[item].1.len()).into_iter();
        let run = runs.next().expect("a run that is not matched has a key left");
        self.asked.set(run.len());
        let item = |item: usize| MatchItem { position: self.keys[item].0, key: self.keys[item].1 };
        let mut meta = Vec::new();
        MatchItems { items: run.into_iter().map(item).collect() }.encode(&mut meta);
        meta
    }

    fn take(&mut self, meta: &[u8]) -> Result<Option<Option<u32>>, LinkFault> {
        let first_missing = MatchReply::parse(meta)?.first_missing;
        let asked = &self.keys[self.matched..self.matched + self.asked.get()];
        if first_missing == MatchReply::NONE {
            self.matched += asked.len();
            return Ok((self.matched == self.keys.len()).then_some(None));
        }
        match asked.iter().any(|(position, _)| *position == first_missing) {
            true => Ok(Some(Some(first_missing))),
            false => Err(LinkFault::Unexpected("a position that was not asked about")),
        }
    }
}

/// The counters of a server.
pub(crate) struct Totals;

impl Query for Totals {
    type Answer = StatsReply;
    const OPCODE: Opcode = Opcode::Stats;

    fn encode(&self, _link: &Link) -> Vec<u8> {
        Vec::new()
    }

    fn take(&mut self, meta: &[u8]) -> Result<Option<StatsReply>, LinkFault> {
        Ok(Some(StatsReply::parse(meta)?))
    }
}
