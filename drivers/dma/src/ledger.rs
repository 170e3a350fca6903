//! The pool's accounts: who holds how much, what is kept back for whom, and who waits.
//!
//! Buffers are accounted per [`Class`], each with a reserve and a limit, so that no kind of work can
//! starve another: a put that fills the pool cannot keep a get from sending, and neither can keep the
//! checkpoint from being written, without which the journal would never have room again.
//!
//! ```text
//!   reserve   bytes that stay available to the class, whatever the others hold
//!   limit     bytes the class can never exceed
//!   commons   what is neither held nor kept back: first come, first served
//! ```
//!
//! | class      | reserve | limit               |
//! |------------|---------|---------------------|
//! | Checkpoint | 1/16    | 1/4, 8 MiB at least |
//! | Send       | 3/16    | -                   |
//! | Receive    | 3/16    | -                   |
//! | Scrub      | 0       | 1/4, 4 MiB at least |
//!
//! Each class has its own queue of waiters, first in first out; a newcomer never overtakes it. When
//! bytes come back the queues are served in the order of the table. A waiter may have bytes enough and
//! still lack one run long enough, while short-lived small buffers keep every run broken: then the
//! commons are closed, the other classes live off their reserves, and runs grow together again.

use std::collections::{BTreeMap, VecDeque};
use std::task::Waker;

use crate::UNIT;
use crate::buddy::{Buddy, TOP_UNITS};

/// What a buffer is for: the account it is charged to.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Class {
    /// The pages of a checkpoint and the frames of the journal.
    Checkpoint,
    /// What is read from a drive and sent to a client.
    Send,
    /// What is received from a client and written to a drive.
    Receive,
    /// What the scrubber reads to verify it: never more than a quarter of the pool.
    Scrub,
}

impl Class {
    /// All classes, in the order in which their waiters are served.
    pub const ALL: [Class; 4] = [Class::Checkpoint, Class::Send, Class::Receive, Class::Scrub];

    /// The class in status and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Class::Checkpoint => "checkpoint",
            Class::Send => "send",
            Class::Receive => "receive",
            Class::Scrub => "scrub",
        }
    }

    /// Position in [`Class::ALL`].
    pub const fn index(self) -> usize {
        self as usize
    }
}

/// A run of units handed out, with the account it is charged to.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) struct Run {
    pub unit: u32,
    pub order: u8,
    pub class: Class,
}

/// Names one waiter.
pub(crate) type Ticket = u64;

/// Why a run is not to be had right now.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
enum Shortage {
    /// The class is at its limit, or what is left is kept for others.
    Bytes,
    /// There are units enough, but no run of them that is long enough.
    Run,
}

#[derive(Debug)]
struct Waiter {
    ticket: Ticket,
    order: u8,
    waker: Waker,
}

/// The accounts, all counted in units; the pool keeps them under its lock.
#[derive(Debug)]
pub(crate) struct Ledger {
    buddy: Buddy,
    reserve: [u32; 4],
    limit: [u32; 4],
    used: [u32; 4],
    peak: u32,
    waiting: [VecDeque<Waiter>; 4],
    waiters: usize,
    /// The waiter class that lacks nothing but a long enough run, while there is one.
    closed_for: Option<Class>,
    /// What was found for waiters that have not looked yet.
    granted: BTreeMap<Ticket, Run>,
    next_ticket: Ticket,
    waits: u64,
    exhausted: u64,
}

impl Ledger {
    pub fn new(units: u32) -> Ledger {
        let mut reserve = [0; 4];
        let mut limit = [units; 4];
        reserve[Class::Checkpoint.index()] = units / 16;
        reserve[Class::Send.index()] = units / 16 * 3;
        reserve[Class::Receive.index()] = units / 16 * 3;
        // A checkpoint takes 2 MiB: one on a drive that hangs keeps none of the others waiting.
        limit[Class::Checkpoint.index()] = (units / 4).max(2 * TOP_UNITS);
        limit[Class::Scrub.index()] = (units / 4).max(TOP_UNITS);
        // Whatever is asked for must be possible once everything else was given back.
        for class in Class::ALL {
            let kept: u32 = reserve.iter().sum::<u32>() - reserve[class.index()];
            assert!(units - kept >= TOP_UNITS, "a pool of {units} units is too small");
        }
        Ledger {
            buddy: Buddy::new(units),
            reserve,
            limit,
            used: [0; 4],
            peak: 0,
            waiting: Default::default(),
            waiters: 0,
            closed_for: None,
            granted: BTreeMap::new(),
            next_ticket: 0,
            waits: 0,
            exhausted: 0,
        }
    }

    /// A run at once, or nothing; never ahead of those of the class who wait.
    pub fn allocate(&mut self, class: Class, order: u8) -> Option<Run> {
        let overtakes = self.waiters > 0 && !self.waiting[class.index()].is_empty();
        let run = if overtakes { None } else { self.take(class, order).ok() };
        self.exhausted += u64::from(run.is_none());
        run
    }

    /// A run at once, or a place at the end of the class's queue.
    pub fn allocate_or_wait(
        &mut self,
        class: Class,
        order: u8,
        waker: &Waker,
    ) -> Result<Run, Ticket> {
        if self.waiting[class.index()].is_empty() {
            match self.take(class, order) {
                Ok(run) => return Ok(run),
                Err(Shortage::Run) if self.closed_for.is_none() => self.closed_for = Some(class),
                Err(_) => {}
            }
        }
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.waits += 1;
        self.waiters += 1;
        self.waiting[class.index()].push_back(Waiter { ticket, order, waker: waker.clone() });
        Err(ticket)
    }

    /// What was granted to a ticket; otherwise remembers whom to wake.
    pub fn look(&mut self, class: Class, ticket: Ticket, waker: &Waker) -> Option<Run> {
        if let Some(run) = self.granted.remove(&ticket) {
            return Some(run);
        }
        let waiter = self.waiting[class.index()].iter_mut().find(|w| w.ticket == ticket);
        waiter.expect("a ticket is granted or waits").waker.clone_from(waker);
        None
    }

    /// A waiter goes away. Those who can go on because of it are put into `wake`.
    pub fn cancel(&mut self, class: Class, ticket: Ticket, wake: &mut Vec<Waker>) {
        if let Some(run) = self.granted.remove(&ticket) {
            return self.release(run, wake);
        }
        let queue = &mut self.waiting[class.index()];
        let before = queue.len();
        queue.retain(|w| w.ticket != ticket);
        assert_eq!(queue.len() + 1, before, "a ticket is granted or waits");
        self.waiters -= 1;
        self.serve(wake);
    }

    /// Takes a run back. Those who can go on because of it are put into `wake`.
    pub fn release(&mut self, run: Run, wake: &mut Vec<Waker>) {
        self.buddy.release(run.unit, usize::from(run.order));
        self.used[run.class.index()] -= 1 << run.order;
        if self.waiters > 0 {
            self.serve(wake);
        }
    }

    /// Grants what can be granted, queue by queue, each in its order.
    fn serve(&mut self, wake: &mut Vec<Waker>) {
        self.closed_for = None;
        for class in Class::ALL {
            while let Some(head) = self.waiting[class.index()].front() {
                match self.take(class, head.order) {
                    Ok(run) => {
                        let waiter = self.waiting[class.index()].pop_front();
                        let waiter = waiter.expect("the head just seen");
                        self.waiters -= 1;
                        self.granted.insert(waiter.ticket, run);
                        wake.push(waiter.waker);
                    }
                    Err(shortage) => {
                        if shortage == Shortage::Run && self.closed_for.is_none() {
                            self.closed_for = Some(class);
                        }
                        break;
                    }
                }
            }
        }
    }

    fn take(&mut self, class: Class, order: u8) -> Result<Run, Shortage> {
        if !self.admits(class, 1 << order) {
            return Err(Shortage::Bytes);
        }
        let unit = self.buddy.allocate(usize::from(order)).ok_or(Shortage::Run)?;
        self.used[class.index()] += 1 << order;
        self.peak = self.peak.max(self.used.iter().sum());
        Ok(Run { unit, order, class })
    }

    /// Whether the accounts allow a class that many more units.
    fn admits(&self, class: Class, units: u32) -> bool {
        let mine = self.used[class.index()] + units;
        if mine > self.limit[class.index()] {
            return false;
        }
        if self.closed_for.is_some_and(|c| c != class) && mine > self.reserve[class.index()] {
            return false;
        }
        let kept: u32 = Class::ALL
            .iter()
            .filter(|&&c| c != class)
            .map(|c| self.reserve[c.index()].saturating_sub(self.used[c.index()]))
            .sum();
        units + kept <= self.buddy.free_units()
    }

    pub fn stats(&self) -> crate::PoolStats {
        let bytes = |units: u32| u64::from(units) * UNIT as u64;
        crate::PoolStats {
            size: bytes(self.buddy.free_units() + self.used.iter().sum::<u32>()),
            used: self.used.map(bytes),
            peak: bytes(self.peak),
            waiting: self.waiters as u64,
            waits: self.waits,
            exhausted: self.exhausted,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNITS: u32 = 4 * TOP_UNITS;

    /// Takes single units until the class gets no more; returns them.
    fn fill(ledger: &mut Ledger, class: Class) -> Vec<Run> {
        std::iter::from_fn(|| ledger.allocate(class, 0)).collect()
    }

    #[test]
    fn a_greedy_class_leaves_the_reserves_of_the_others() {
        let mut ledger = Ledger::new(UNITS);
        let received = fill(&mut ledger, Class::Receive).len() as u32;
        assert_eq!(received, UNITS - UNITS / 16 * 3 - UNITS / 16);
        assert_eq!(fill(&mut ledger, Class::Scrub).len(), 0, "scrub has no reserve");
        assert_eq!(fill(&mut ledger, Class::Send).len() as u32, UNITS / 16 * 3);
        assert_eq!(fill(&mut ledger, Class::Checkpoint).len() as u32, UNITS / 16);
        assert_eq!(ledger.buddy.free_units(), 0);
    }

    #[test]
    fn scrub_stops_at_a_quarter() {
        let mut ledger = Ledger::new(UNITS);
        assert_eq!(fill(&mut ledger, Class::Scrub).len() as u32, UNITS / 4);
        assert!(ledger.allocate(Class::Receive, 8).is_some());
    }

    #[test]
    fn any_length_is_possible_in_the_smallest_pool() {
        for class in Class::ALL {
            let mut ledger = Ledger::new(2 * TOP_UNITS);
            assert!(ledger.allocate(class, 8).is_some(), "{class:?}");
        }
    }

    #[test]
    fn a_newcomer_does_not_overtake_those_who_wait() {
        let mut ledger = Ledger::new(UNITS);
        let mut taken = fill(&mut ledger, Class::Receive);
        let ticket = ledger.allocate_or_wait(Class::Receive, 1, Waker::noop()).unwrap_err();
        let mut wake = Vec::new();
        ledger.release(taken.pop().unwrap(), &mut wake);
        assert!(ledger.allocate(Class::Receive, 0).is_none(), "the unit is the waiter's");
        // The units of `taken` lie side by side: with the next one the run of two is there.
        ledger.release(taken.pop().unwrap(), &mut wake);
        assert_eq!(wake.len(), 1);
        assert_eq!(ledger.look(Class::Receive, ticket, Waker::noop()).unwrap().order, 1);
    }

    #[test]
    fn a_class_that_waits_does_not_hold_up_another() {
        let mut ledger = Ledger::new(UNITS);
        fill(&mut ledger, Class::Receive);
        ledger.allocate_or_wait(Class::Receive, 8, Waker::noop()).unwrap_err();
        assert!(ledger.allocate(Class::Send, 0).is_some());
    }

    #[test]
    fn a_waiter_that_goes_away_lets_the_next_one_through() {
        let mut ledger = Ledger::new(UNITS);
        let mut taken = fill(&mut ledger, Class::Receive);
        let long = ledger.allocate_or_wait(Class::Receive, 8, Waker::noop()).unwrap_err();
        let short = ledger.allocate_or_wait(Class::Receive, 0, Waker::noop()).unwrap_err();
        let mut wake = Vec::new();
        ledger.release(taken.pop().unwrap(), &mut wake);
        assert!(wake.is_empty(), "the long one is first");
        ledger.cancel(Class::Receive, long, &mut wake);
        assert_eq!(wake.len(), 1);
        // Granted but never looked at: the run goes back.
        ledger.cancel(Class::Receive, short, &mut wake);
        for run in taken {
            ledger.release(run, &mut wake);
        }
        assert_eq!(ledger.buddy.free_units(), UNITS);
        assert_eq!(ledger.waiters, 0);
    }

    #[test]
    fn broken_runs_grow_together_for_a_long_waiter() {
        let mut ledger = Ledger::new(UNITS);
        let mut wake = Vec::new();
        // Received units all over the pool; then every second of them goes back, so that bytes abound
        // and no two free units lie together.
        let received = fill(&mut ledger, Class::Receive);
        let sent = fill(&mut ledger, Class::Send);
        let written = fill(&mut ledger, Class::Checkpoint);
        let (stay, go): (Vec<_>, Vec<_>) =
            received.into_iter().chain(sent).chain(written).partition(|run| run.unit % 2 == 0);
        go.into_iter().for_each(|run| ledger.release(run, &mut wake));
        assert_eq!(ledger.buddy.free_units(), UNITS / 2);

        let ticket = ledger.allocate_or_wait(Class::Send, 1, Waker::noop()).unwrap_err();
        assert_eq!(ledger.closed_for, Some(Class::Send), "it lacks nothing but a run of two");
        assert!(ledger.allocate(Class::Scrub, 0).is_none(), "the commons are closed");
        assert!(wake.is_empty());
        // One of those that stayed goes: its buddy was free.
        let mut stay = stay.into_iter();
        ledger.release(stay.next().unwrap(), &mut wake);
        assert_eq!(wake.len(), 1);
        assert_eq!(ledger.look(Class::Send, ticket, Waker::noop()).unwrap().order, 1);
        assert_eq!(ledger.closed_for, None);
        assert!(ledger.allocate(Class::Scrub, 0).is_some(), "the commons are open again");
    }
}
