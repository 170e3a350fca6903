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
//! | class      | reserve                 | limit               |
//! |------------|-------------------------|---------------------|
//! | Checkpoint | 1/16, 1.75 MiB at least | 1/4, 8 MiB at least |
//! | Drive      | 0                       | -                   |
//! | Lent       | 0                       | -                   |
//! | Send       | 3/16 [^small]           | -                   |
//! | Receive    | 3/16 [^small]           | -                   |
//! | Scrub      | 0                       | 1/4, 4 MiB at least |
//!
//! [^small]: In the smallest pools less: all reserves together are at most half of the pool.
//!
//! Each class has its own queue of waiters, first in first out; a newcomer never overtakes it. When
//! bytes come back the queues are served in the order of the table. A waiter may have bytes enough and
//! still lack one run long enough, while short-lived small buffers keep every run broken: then the
//! commons are closed, the other classes live off their reserves, and runs grow together again.
//!
//! **Why a class always comes by its reserve.** Nobody is given what would leave less free than the
//! others' reserves lack. So a class that holds less than its reserve finds the rest free, or, where
//! buffers of it were charged to [`Class::Drive`] or [`Class::Lent`] since, is first to get what the
//! others give back: they have no more than their own reserves until it is free again. What a drive
//! that stalled keeps for good is of the one, what a peer keeps that does not go on is of the other.
//! It is missing from the commons, and from nobody's reserve, as long as there are commons.
//!
//! Who waits for several runs keeps those that were found, as far as the class is within its reserve:
//! nobody else could have had their bytes. So the runs need not be free all at one moment, which they
//! may never be while others break them. Beyond the reserve a waiter holds nothing until it has all:
//! two of them could wait for each other else.

use std::collections::{BTreeMap, VecDeque};
use std::task::Waker;

use crate::UNIT;
use crate::buddy::{Buddy, TOP_UNITS};

/// Units that the reserve of [`Class::Checkpoint`] has at least: those of one checkpoint (six runs of
/// 256 KiB) and some to write superblocks with.
const CHECKPOINT_LEAST: u32 = 112;

/// What a buffer is for: the account it is charged to.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Class {
    /// What a checkpoint is made with, a log read, and superblocks.
    Checkpoint,
    /// What drives have: the frame that a journal is written from, as long as it is open, and what the
    /// command of a journal names, until it is answered. A drive that stalled may never answer. Taken
    /// for another class first, and then [charged](crate::DmaBuf::charge) to this one.
    Drive,
    /// What peers have been lent and not yet taken, for as long as they like. Taken for
    /// [`Class::Send`] first, and then [charged](crate::DmaRef::charge) to this one by who sees to it
    /// that it is a small part of the pool.
    Lent,
    /// What is read from a drive and sent to a client.
    Send,
    /// What is received from a client and written to a drive.
    Receive,
    /// What the scrubber reads to verify it: never more than a quarter of the pool.
    Scrub,
}

impl Class {
    /// All classes, in the order in which their waiters are served.
    pub const ALL: [Class; 6] =
        [Class::Checkpoint, Class::Drive, Class::Lent, Class::Send, Class::Receive, Class::Scrub];

    /// The class in status and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Class::Checkpoint => "checkpoint",
            Class::Drive => "drive",
            Class::Lent => "lent",
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

/// Accounts.
pub(crate) const CLASSES: usize = Class::ALL.len();

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
    /// Runs it waits for.
    count: usize,
    /// Those that were found for it.
    runs: Vec<Run>,
    waker: Waker,
}

/// The accounts, all counted in units; the pool keeps them under its lock.
#[derive(Debug)]
pub(crate) struct Ledger {
    buddy: Buddy,
    reserve: [u32; CLASSES],
    limit: [u32; CLASSES],
    used: [u32; CLASSES],
    peak: u32,
    waiting: [VecDeque<Waiter>; CLASSES],
    waiters: usize,
    /// The waiter class that lacks nothing but a long enough run, while there is one.
    closed_for: Option<Class>,
    /// What was found for waiters that have not looked yet.
    granted: BTreeMap<Ticket, Vec<Run>>,
    next_ticket: Ticket,
    waits: u64,
    exhausted: u64,
}

impl Ledger {
    pub fn new(units: u32) -> Ledger {
        let mut reserve = [0; CLASSES];
        let mut limit = [units; CLASSES];
        let checkpoint = (units / 16).max(CHECKPOINT_LEAST);
        let each = (units / 16 * 3).min((units / 2 - checkpoint) / 2);
        reserve[Class::Checkpoint.index()] = checkpoint;
        reserve[Class::Send.index()] = each;
        reserve[Class::Receive.index()] = each;
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
            used: [0; CLASSES],
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
        let run = self.at_once(class, order);
        self.exhausted += u64::from(run.is_none());
        run
    }

    /// [`Ledger::allocate`] for who will wait when there is none.
    pub fn at_once(&mut self, class: Class, order: u8) -> Option<Run> {
        let overtakes = self.waiters > 0 && !self.waiting[class.index()].is_empty();
        let run = if overtakes { None } else { self.take(class, order).ok() };
        self.note_peak();
        run
    }

    /// So many runs at once, or a place at the end of the class's queue.
    pub fn allocate_or_wait(
        &mut self,
        class: Class,
        order: u8,
        count: usize,
        waker: &Waker,
    ) -> Result<Vec<Run>, Ticket> {
        let (ticket, runs) = (self.next_ticket, Vec::with_capacity(count));
        let mut waiter = Waiter { ticket, order, count, runs, waker: waker.clone() };
        if self.waiting[class.index()].is_empty() && self.collect(class, &mut waiter) {
            return Ok(waiter.runs);
        }
        self.next_ticket += 1;
        self.waits += 1;
        self.waiters += 1;
        self.waiting[class.index()].push_back(waiter);
        Err(ticket)
    }

    /// What was granted to a ticket; otherwise remembers whom to wake.
    pub fn look(&mut self, class: Class, ticket: Ticket, waker: &Waker) -> Option<Vec<Run>> {
        if let Some(runs) = self.granted.remove(&ticket) {
            return Some(runs);
        }
        let waiter = self.waiting[class.index()].iter_mut().find(|w| w.ticket == ticket);
        waiter.expect("a ticket is granted or waits").waker.clone_from(waker);
        None
    }

    /// A waiter goes away. Those who can go on because of it are put into `wake`.
    pub fn cancel(&mut self, class: Class, ticket: Ticket, wake: &mut Vec<Waker>) {
        let runs = self.granted.remove(&ticket).unwrap_or_else(|| {
            let queue = &mut self.waiting[class.index()];
            let place = queue.iter().position(|w| w.ticket == ticket);
            let waiter = place.and_then(|place| queue.remove(place));
            self.waiters -= 1;
            waiter.expect("a ticket is granted or waits").runs
        });
        runs.into_iter().for_each(|run| self.give_back(run));
        self.serve(wake);
    }

    /// Takes a run back. Those who can go on because of it are put into `wake`.
    pub fn release(&mut self, run: Run, wake: &mut Vec<Waker>) {
        self.give_back(run);
        if self.waiters > 0 {
            self.serve(wake);
        }
    }

    /// Charges a run to another account. Those who can go on because of it are put into `wake`.
    pub fn charge(&mut self, run: &mut Run, class: Class, wake: &mut Vec<Waker>) {
        self.used[run.class.index()] -= 1 << run.order;
        self.used[class.index()] += 1 << run.order;
        run.class = class;
        if self.waiters > 0 {
            self.serve(wake);
        }
    }

    /// Grants what can be granted, queue by queue, each in its order.
    fn serve(&mut self, wake: &mut Vec<Waker>) {
        self.closed_for = None;
        for class in Class::ALL {
            while let Some(mut waiter) = self.waiting[class.index()].pop_front() {
                if !self.collect(class, &mut waiter) {
                    self.waiting[class.index()].push_front(waiter);
                    break;
                }
                self.waiters -= 1;
                self.granted.insert(waiter.ticket, waiter.runs);
                wake.push(waiter.waker);
            }
        }
    }

    /// Finds what the first waiter of a class still lacks; whether it has all now. If not, it keeps of
    /// it what is within the reserve of the class.
    fn collect(&mut self, class: Class, waiter: &mut Waiter) -> bool {
        while waiter.runs.len() < waiter.count {
            match self.take(class, waiter.order) {
                Ok(run) => waiter.runs.push(run),
                Err(shortage) => {
                    if shortage == Shortage::Run && self.closed_for.is_none() {
                        self.closed_for = Some(class);
                    }
                    while self.used[class.index()] > self.reserve[class.index()]
                        && let Some(run) = waiter.runs.pop()
                    {
                        self.give_back(run);
                    }
                    return false;
                }
            }
        }
        self.note_peak();
        true
    }

    fn take(&mut self, class: Class, order: u8) -> Result<Run, Shortage> {
        if !self.admits(class, 1 << order) {
            return Err(Shortage::Bytes);
        }
        let unit = self.buddy.allocate(usize::from(order)).ok_or(Shortage::Run)?;
        self.used[class.index()] += 1 << order;
        Ok(Run { unit, order, class })
    }

    fn give_back(&mut self, run: Run) {
        self.buddy.release(run.unit, usize::from(run.order));
        self.used[run.class.index()] -= 1 << run.order;
    }

    fn note_peak(&mut self) {
        self.peak = self.peak.max(self.used.iter().sum());
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

    /// Units that a class may come to have, once all others have given back what they do give back: what
    /// those in `keeping` have now they may keep.
    pub fn attainable(&self, class: Class, keeping: &[Class]) -> u32 {
        let keeps = |c: Class| {
            let reserve = self.reserve[c.index()];
            if keeping.contains(&c) { reserve.max(self.used[c.index()]) } else { reserve }
        };
        let kept: u32 = Class::ALL.iter().filter(|&&c| c != class).map(|&c| keeps(c)).sum();
        let units = self.buddy.free_units() + self.used.iter().sum::<u32>();
        units.saturating_sub(kept).min(self.limit[class.index()])
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

    /// From here on a sixteenth is more than a checkpoint takes.
    const UNITS: u32 = 8 * TOP_UNITS;

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
    fn what_is_attainable_is_had_and_no_more() {
        for class in Class::ALL {
            let mut ledger = Ledger::new(UNITS);
            for (other, units) in [(Class::Drive, 40), (Class::Lent, 3)] {
                for _ in 0..units {
                    let mut run = ledger.allocate(Class::Receive, 0).expect("there is room");
                    ledger.charge(&mut run, other, &mut Vec::new());
                }
            }
            let keeping = [Class::Drive, Class::Lent];
            let attainable = ledger.attainable(class, &keeping);
            let had = fill(&mut ledger, class).len() as u32;
            let own = ledger.used[class.index()] - had;
            assert_eq!(own + had, attainable, "{class:?}");
            assert_eq!(ledger.attainable(class, &keeping), attainable, "who has how much of it");
            let lent = ledger.used[Class::Lent.index()] * u32::from(class != Class::Lent);
            let at_most = (attainable + lent).min(ledger.limit[class.index()]);
            assert_eq!(ledger.attainable(class, &[Class::Drive]), at_most);
        }
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
        let ticket = ledger.allocate_or_wait(Class::Receive, 1, 1, Waker::noop()).unwrap_err();
        let mut wake = Vec::new();
        ledger.release(taken.pop().unwrap(), &mut wake);
        assert!(ledger.allocate(Class::Receive, 0).is_none(), "the unit is the waiter's");
        // The units of `taken` lie side by side: with the next one the run of two is there.
        ledger.release(taken.pop().unwrap(), &mut wake);
        assert_eq!(wake.len(), 1);
        assert_eq!(ledger.look(Class::Receive, ticket, Waker::noop()).unwrap()[0].order, 1);
    }

    #[test]
    fn a_class_that_waits_does_not_hold_up_another() {
        let mut ledger = Ledger::new(UNITS);
        fill(&mut ledger, Class::Receive);
        ledger.allocate_or_wait(Class::Receive, 8, 1, Waker::noop()).unwrap_err();
        assert!(ledger.allocate(Class::Send, 0).is_some());
    }

    #[test]
    fn a_waiter_that_goes_away_lets_the_next_one_through() {
        let mut ledger = Ledger::new(UNITS);
        let mut taken = fill(&mut ledger, Class::Receive);
        let long = ledger.allocate_or_wait(Class::Receive, 8, 1, Waker::noop()).unwrap_err();
        let short = ledger.allocate_or_wait(Class::Receive, 0, 1, Waker::noop()).unwrap_err();
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

        let ticket = ledger.allocate_or_wait(Class::Send, 1, 1, Waker::noop()).unwrap_err();
        assert_eq!(ledger.closed_for, Some(Class::Send), "it lacks nothing but a run of two");
        assert!(ledger.allocate(Class::Scrub, 0).is_none(), "the commons are closed");
        assert!(wake.is_empty());
        // One of those that stayed goes: its buddy was free.
        let mut stay = stay.into_iter();
        ledger.release(stay.next().unwrap(), &mut wake);
        assert_eq!(wake.len(), 1);
        assert_eq!(ledger.look(Class::Send, ticket, Waker::noop()).unwrap()[0].order, 1);
        assert_eq!(ledger.closed_for, None);
        assert!(ledger.allocate(Class::Scrub, 0).is_some(), "the commons are open again");
    }

    /// Runs of 256 KiB: what a piece of a checkpoint takes; and how many a checkpoint takes.
    const PIECE: u8 = 4;
    const PIECES: usize = 6;

    #[test]
    fn the_smallest_pools_keep_a_checkpoint_too_and_half_of_themselves_for_whoever_comes() {
        for tops in 2..20 {
            let units = tops * TOP_UNITS;
            let mut ledger = Ledger::new(units);
            let kept = ledger.reserve.iter().sum::<u32>();
            assert!(kept <= units / 2, "{kept} of {units}");
            for class in [Class::Receive, Class::Send, Class::Scrub] {
                fill(&mut ledger, class);
            }
            let desk = ledger.allocate_or_wait(Class::Checkpoint, PIECE, PIECES, Waker::noop());
            assert!(desk.is_ok(), "{units}");
            assert!(ledger.allocate(Class::Checkpoint, 0).is_some(), "and a superblock");
        }
    }

    /// What a checkpoint waits for, while requests come and go and take whatever there is; the oldest
    /// of them is done each time.
    fn among_requests(
        ledger: &mut Ledger,
        requests: &mut VecDeque<Run>,
        (order, count): (u8, usize),
    ) -> Vec<Run> {
        let mut wake = Vec::new();
        let asked = ledger.allocate_or_wait(Class::Checkpoint, order, count, Waker::noop());
        asked.unwrap_or_else(|ticket| {
            for _ in 0..4 * TOP_UNITS {
                requests.pop_front().into_iter().for_each(|run| ledger.release(run, &mut wake));
                if let Some(runs) = ledger.look(Class::Checkpoint, ticket, Waker::noop()) {
                    return runs;
                }
                requests.extend(ledger.allocate(Class::Receive, 0));
            }
            panic!("the checkpoint waits for ever");
        })
    }

    #[test]
    fn drives_that_stall_in_a_checkpoint_do_not_starve_the_next_one() {
        let units = 2 * TOP_UNITS;
        let mut ledger = Ledger::new(units);
        let mut wake = Vec::new();
        let mut requests = VecDeque::from(fill(&mut ledger, Class::Receive));
        // What drives keep for good: a piece, and the memory of a superblock.
        let each = (1 << PIECE) + 1;
        let (mut drives, mut lost) = (0, 0);
        while units - lost - each >= ledger.reserve.iter().sum() {
            let mut runs = among_requests(&mut ledger, &mut requests, (PIECE, PIECES));
            runs.extend(among_requests(&mut ledger, &mut requests, (0, 1)));
            for place in [PIECES, 0] {
                ledger.charge(&mut runs[place], Class::Drive, &mut wake);
            }
            // It stalled: the rest comes back, and requests take it.
            runs.drain(1..PIECES).for_each(|run| ledger.release(run, &mut wake));
            requests.extend(fill(&mut ledger, Class::Receive));
            (drives, lost) = (drives + 1, lost + each);
            assert_eq!(ledger.used[Class::Drive.index()], lost);
            assert_eq!(ledger.used[Class::Checkpoint.index()], 0);
        }
        assert_eq!(drives, 15, "with one more the pool would be less than its reserves");
    }

    #[test]
    fn a_waiter_keeps_runs_as_they_come_within_the_reserve() {
        let mut ledger = Ledger::new(2 * TOP_UNITS);
        let mut wake = Vec::new();
        // Of 32 runs drives keep a unit of each of the first 20.
        let classes = [Class::Receive, Class::Send, Class::Checkpoint];
        let all: Vec<_> = classes.into_iter().flat_map(|c| fill(&mut ledger, c)).collect();
        let of_drive = |run: &Run| run.unit.is_multiple_of(1 << PIECE) && run.unit < 20 << PIECE;
        let (mut stay, go): (Vec<_>, Vec<_>) = all.into_iter().partition(of_drive);
        stay.iter_mut().for_each(|run| ledger.charge(run, Class::Drive, &mut wake));
        go.into_iter().for_each(|run| ledger.release(run, &mut wake));
        // Requests have eight of the others, within their reserves, and new ones come as old ones go:
        // there are never six runs free at one time.
        let turns = [Class::Send, Class::Receive].into_iter().cycle();
        let taken = turns.clone().take(8).map(|c| ledger.allocate(c, PIECE).expect("a run"));
        let mut requests: VecDeque<_> = taken.collect();
        let ticket = ledger
            .allocate_or_wait(Class::Checkpoint, PIECE, PIECES, Waker::noop())
            .expect_err("four are free");
        let mut found = None;
        for class in turns.take(100) {
            requests.pop_front().into_iter().for_each(|run| ledger.release(run, &mut wake));
            found = found.or_else(|| ledger.look(Class::Checkpoint, ticket, Waker::noop()));
            if found.is_some() {
                break;
            }
            requests.extend(ledger.allocate(class, PIECE));
        }
        assert_eq!(found.map(|runs| runs.len()), Some(PIECES));
    }

    #[test]
    fn a_waiter_keeps_nothing_beyond_the_reserve() {
        let mut ledger = Ledger::new(UNITS);
        let mut wake = Vec::new();
        let mut received = fill(&mut ledger, Class::Receive);
        let free = ledger.buddy.free_units();
        (0..32).for_each(|_| ledger.release(received.remove(0), &mut wake));
        let ticket = ledger.allocate_or_wait(Class::Scrub, PIECE, 3, Waker::noop()).unwrap_err();
        assert_eq!(ledger.used[Class::Scrub.index()], 0, "two runs were there, and stay there");
        assert!(ledger.allocate(Class::Receive, PIECE).is_some());
        (0..32).for_each(|_| ledger.release(received.remove(0), &mut wake));
        assert_eq!(ledger.look(Class::Scrub, ticket, Waker::noop()).unwrap().len(), 3);
        assert_eq!(ledger.buddy.free_units(), free);
    }

    #[test]
    fn a_waiter_that_goes_away_gives_back_what_it_kept() {
        let mut ledger = Ledger::new(2 * TOP_UNITS);
        let mut wake = Vec::new();
        let first = ledger.allocate_or_wait(Class::Checkpoint, PIECE, 3, Waker::noop()).unwrap();
        let classes = [Class::Receive, Class::Send, Class::Checkpoint];
        let rest: Vec<_> = classes.into_iter().flat_map(|c| fill(&mut ledger, c)).collect();
        let ticket =
            ledger.allocate_or_wait(Class::Checkpoint, PIECE, PIECES, Waker::noop()).unwrap_err();
        first.into_iter().for_each(|run| ledger.release(run, &mut wake));
        assert_eq!(ledger.buddy.free_units(), 0, "it keeps them");
        ledger.cancel(Class::Checkpoint, ticket, &mut wake);
        assert_eq!(ledger.buddy.free_units(), 3 << PIECE);
        rest.into_iter().for_each(|run| ledger.release(run, &mut wake));
        assert_eq!((ledger.buddy.free_units(), ledger.waiters), (2 * TOP_UNITS, 0));
    }
}
