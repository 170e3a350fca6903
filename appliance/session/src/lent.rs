//! What a connection has lent to its peer.
//!
//! ```text
//!   reply sealed ── room? ──► LENT, a loan ──► sent as pages ──► the peer's `consumed` reaches its end
//!                     │                           │                              │
//!                     └ none: copied              └ the connection ends          └─► given back
//!                                                     │
//!                              the peer's end is gone ┴ or may still read
//!                                       │                     │
//!                                  given back             retired: kept for good, and counted
//! ```
//!
//! A peer that got pages reads our memory when it receives, long after we have sent and also when we have
//! closed the connection. So nothing that was lent is used again before the peer has said that it has taken
//! it, in the header of whatever it sends next, or its system has said that its end is gone.
//!
//! To a peer that was given windows on our memory, a reply may name its payload instead: nothing is sent, and
//! the loan is as any other. What names it is the place of a drive in memory, so it holds its lease.
//!
//! A peer could say so and read later all the same. It would get what its own tenant has put since, with a
//! CRC that does not fit: lending is for nodes with one tenant, from their start. With another one that comes
//! later nothing more is lent, and nothing that is out is used again; but what a lying peer of the first has said
//! before that it took, it may still read.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

use memkv_dma::{Class, DmaRef};
use memkv_poller::spare::Row;
use memkv_store::ReadLease;
use memkv_wire::{Span, Spans};

use crate::Context;
use crate::reads::Reading;

/// A piece of a drive in memory that is shorter is copied.
const PIECE_MIN: usize = 64 << 10;

/// What one connection has lent, oldest first.
#[derive(Default)]
pub struct Lent {
    /// The peer counts what it is lent, and the carrier lends.
    allowed: Cell<bool>,
    /// Windows that the peer was told of.
    windows: Cell<u32>,
    /// Bytes lent since the connection began, and how many of them the peer has taken.
    lent: Cell<u64>,
    consumed: Cell<u64>,
    /// Bytes lent up to the last reply whose sending is over.
    sent: Cell<u64>,
    ended: Cell<Option<Peer>>,
    loans: RefCell<VecDeque<Loan>>,
}

/// The payload of one reply.
pub struct Loan {
    /// Bytes that were lent up to and with it.
    end: u64,
    bytes: u64,
    way: Way,
    /// The memory, as far as it was sent.
    pieces: Row<DmaRef>,
    /// Keeps the block where it is while it is sent, and longer if it was sent from where it lies.
    lease: Option<ReadLease>,
}

/// How a loan goes to the peer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Its pages are in the socket.
    Pages,
    /// The reply names them.
    Name,
}

/// What all connections of a reactor have lent.
pub struct Loans {
    /// Bytes that may be out as pages, and by name.
    most: Cell<(u64, u64)>,
    /// Bytes that are out, those that were retired among them.
    out: Cell<(u64, u64)>,
    retired: RefCell<Vec<Loan>>,
}

/// The peer has taken less than before, or more than it was lent.
#[derive(Debug, thiserror::Error)]
#[error("the peer says that it took {said} bytes of {lent} lent ones, after {before}")]
pub struct BadCount {
    /// Its count.
    pub said: u64,
    /// Its count before.
    pub before: u64,
    /// Bytes that it was lent.
    pub lent: u64,
}

/// How a connection ended for its peer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// Its end is gone: nobody reads any more.
    Gone,
    /// It may read what it has not taken.
    MayRead,
}

impl Lent {
    /// From now on replies may be lent.
    pub fn allow(&self) {
        self.allowed.set(true);
    }

    /// From now on replies whose request [says so](memkv_wire::flags::NAMED) may name what lies in the first so
    /// many windows.
    pub fn allow_windows(&self, count: u32) {
        self.windows.set(count);
    }

    /// Whether the payload of a read may be lent or named.
    pub fn is_allowed(&self, context: &Context) -> bool {
        (self.allowed.get() || self.windows.get() > 0) && context.has_one_tenant()
    }

    /// Where the peer may read these bytes for itself: in all of their pieces, or not at all.
    pub fn spans(&self, payload: &[Reading]) -> Option<Spans> {
        let mut spans = Spans::EMPTY;
        for piece in payload {
            let Reading::Ready(bytes) = piece else { return None };
            let (window, offset) =
                bytes.published().filter(|place| place.0 < self.windows.get())?;
            let span = Span { window, length: u32::try_from(bytes.len()).ok()?, offset };
            if span.length == 0 || !spans.push(span) {
                return None;
            }
        }
        Some(spans).filter(|spans| !spans.is_empty())
    }

    /// Begins the loan of a reply whose payload is named, with all that it has; false, and nothing is taken,
    /// when there is no room for it.
    pub fn begin_named(
        &self,
        context: &Context,
        payload: &mut Row<Reading>,
        lease: &mut Option<ReadLease>,
        bytes: u64,
    ) -> bool {
        if bytes < context.limits().name_min
            || !self.has_room(context, Way::Name, bytes)
            || !self.is_allowed(context)
        {
            return false;
        }
        let pieces = std::mem::take(payload).into_iter().filter_map(|piece| piece.ready().ok());
        self.lend(context, (Way::Name, bytes), pieces.collect(), lease.take());
        true
    }

    fn has_room(&self, context: &Context, way: Way, bytes: u64) -> bool {
        let limits = context.limits();
        let most = match way {
            Way::Pages => limits.lent,
            Way::Name => limits.named,
        };
        let out = self.lent.get() - self.consumed.get();
        out + bytes <= most && context.loans.has_room(way, bytes)
    }

    fn lend(
        &self,
        context: &Context,
        (way, bytes): (Way, u64),
        pieces: Row<DmaRef>,
        lease: Option<ReadLease>,
    ) {
        self.lent.set(self.lent.get() + bytes);
        let loan = Loan { end: self.lent.get(), bytes, way, pieces, lease };
        self.loans.borrow_mut().push_back(loan);
        context.loans.add(context, way, bytes);
    }

    /// Begins the loan of a reply's payload and takes its lease, if the peer may have it and there is
    /// room for it. `pooled`: it lies in the pool. How long a piece of it must be to be lent.
    pub fn begin(
        &self,
        context: &Context,
        (bytes, pooled): (u64, bool),
        lease: &mut Option<ReadLease>,
    ) -> Option<usize> {
        let limits = context.limits();
        let piece = if pooled { limits.lend_piece as usize } else { PIECE_MIN };
        let least = limits.lend_min.max(piece as u64);
        let allowed = self.allowed.get() && self.is_allowed(context);
        if bytes < least || !self.has_room(context, Way::Pages, bytes) || !allowed {
            return None;
        }
        self.lend(context, (Way::Pages, bytes), Row::new(), lease.take());
        Some(piece)
    }

    /// Keeps a piece of the last loan, which is about to be sent.
    pub fn keep(&self, piece: &DmaRef) {
        piece.charge(Class::Lent);
        let mut loans = self.loans.borrow_mut();
        let loan = loans.back_mut().expect("a loan stays until it was sent");
        loan.pieces.push(piece.clone());
    }

    /// The last loan was sent, or will not be sent any further.
    pub fn sent(&self, context: &Context) {
        self.sent.set(self.lent.get());
        if let Some(loan) = self.loans.borrow_mut().back_mut()
            && loan.pieces.iter().all(DmaRef::is_pooled)
        {
            loan.lease = None;
        }
        self.settle(context);
    }

    /// Takes the peer's count in.
    ///
    /// # Errors
    /// [`BadCount`], for which the connection ends.
    pub fn consumed(&self, context: &Context, said: u64) -> Result<(), BadCount> {
        let (before, lent) = (self.consumed.get(), self.lent.get());
        if said == before {
            return Ok(());
        }
        if said < before || said > lent {
            return Err(BadCount { said, before, lent });
        }
        self.consumed.set(said);
        self.settle(context);
        Ok(())
    }

    /// Whether the peer has something that it has not said it took.
    pub fn is_out(&self) -> bool {
        self.lent.get() > self.consumed.get()
    }

    /// The connection is over.
    pub fn end(&self, context: &Context, peer: Peer) {
        self.allowed.set(false);
        self.windows.set(0);
        self.ended.set(Some(peer));
        self.settle(context);
    }

    /// Gives back or retires what is at its end. What is still being sent waits for that: who sends it
    /// reads the memory.
    fn settle(&self, context: &Context) {
        let (sent, consumed) = (self.sent.get(), self.consumed.get());
        let ended = self.ended.get();
        let until = if ended.is_some() { sent } else { sent.min(consumed) };
        loop {
            let next = self.loans.borrow_mut().pop_front_if(|loan| loan.end <= until);
            let Some(loan) = next else { return };
            let gone = ended == Some(Peer::Gone);
            let taken = loan.end <= consumed && context.has_one_tenant();
            match gone || taken {
                true => context.loans.give_back(context, loan),
                false => context.loans.retire(context, loan),
            }
        }
    }
}

impl Loans {
    /// None; so many bytes may be out as pages, and so many by name.
    pub fn new(pages: u64, named: u64) -> Loans {
        let most = Cell::new((pages, named));
        Loans { most, out: Cell::default(), retired: RefCell::default() }
    }

    fn has_room(&self, way: Way, bytes: u64) -> bool {
        let (most, out) = (self.most.get(), self.out.get());
        match way {
            Way::Pages => out.0 + bytes <= most.0,
            Way::Name => out.1 + bytes <= most.1,
        }
    }

    /// Nothing more is lent; what is out comes back as it would.
    pub fn close(&self) {
        self.most.set((0, 0));
    }

    fn add(&self, context: &Context, way: Way, bytes: u64) {
        let (pages, named) = self.out.get();
        match way {
            Way::Pages => {
                self.out.set((pages + bytes, named));
                context.counters.lent_bytes.add(bytes);
            }
            Way::Name => {
                self.out.set((pages, named + bytes));
                context.counters.named_bytes.add(bytes);
            }
        }
        context.counters.lent_out.set(pages + named + bytes);
    }

    fn give_back(&self, context: &Context, loan: Loan) {
        let (pages, named) = self.out.get();
        let left = match loan.way {
            Way::Pages => (pages - loan.bytes, named),
            Way::Name => (pages, named - loan.bytes),
        };
        self.out.set(left);
        context.counters.lent_out.set(left.0 + left.1);
        drop(loan);
    }

    fn retire(&self, context: &Context, loan: Loan) {
        context.counters.lent_retired.add(loan.bytes);
        self.retired.borrow_mut().push(loan);
    }
}
