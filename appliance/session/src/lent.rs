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
//! A peer could say so and read later all the same. It would get what its own tenant has put since, with a
//! CRC that does not fit: lending is for nodes with one tenant, from their start. With another one that comes
//! later nothing more is lent, and nothing that is out is used again; but what a lying peer of the first has said
//! before that it took, it may still read.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

use memkv_dma::{Class, DmaRef};
use memkv_poller::spare::Row;
use memkv_store::ReadLease;

use crate::Context;

/// A piece of a drive in memory that is shorter is copied.
const PIECE_MIN: usize = 64 << 10;

/// What one connection has lent, oldest first.
#[derive(Default)]
pub struct Lent {
    /// The peer counts what it is lent, and the carrier lends.
    allowed: Cell<bool>,
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
    /// The memory, as far as it was sent.
    pieces: Row<DmaRef>,
    /// Keeps the block where it is while it is sent, and longer if it was sent from where it lies.
    lease: Option<ReadLease>,
}

/// What all connections of a reactor have lent.
pub struct Loans {
    /// Bytes that may be out.
    most: Cell<u64>,
    /// Bytes that are out, those that were retired among them.
    out: Cell<u64>,
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

    /// Whether the payload of a read may be lent.
    pub fn is_allowed(&self, context: &Context) -> bool {
        self.allowed.get() && context.has_one_tenant()
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
        let out = self.lent.get() - self.consumed.get();
        let room = out + bytes <= limits.lent && context.loans.has_room(bytes);
        if bytes < least || !room || !self.is_allowed(context) {
            return None;
        }
        self.lent.set(self.lent.get() + bytes);
        let loan = Loan { end: self.lent.get(), bytes, pieces: Row::new(), lease: lease.take() };
        self.loans.borrow_mut().push_back(loan);
        context.loans.add(context, bytes);
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
    /// None; `most` bytes may be out.
    pub fn new(most: u64) -> Loans {
        Loans { most: Cell::new(most), out: Cell::new(0), retired: RefCell::default() }
    }

    fn has_room(&self, bytes: u64) -> bool {
        self.out.get() + bytes <= self.most.get()
    }

    /// Nothing more is lent; what is out comes back as it would.
    pub fn close(&self) {
        self.most.set(0);
    }

    fn add(&self, context: &Context, bytes: u64) {
        self.out.set(self.out.get() + bytes);
        context.counters.lent_bytes.add(bytes);
        context.counters.lent_out.set(self.out.get());
    }

    fn give_back(&self, context: &Context, loan: Loan) {
        self.out.set(self.out.get() - loan.bytes);
        context.counters.lent_out.set(self.out.get());
        drop(loan);
    }

    fn retire(&self, context: &Context, loan: Loan) {
        context.counters.lent_retired.add(loan.bytes);
        self.retired.borrow_mut().push(loan);
    }
}
