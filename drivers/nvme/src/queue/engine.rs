//! The path of data of one queue pair: requests, trackers, rings.
//!
//! ```text
//!   small ─┐  lines of those that wait: first the small, then what a begun request has left, then the
//!   large ─┤  large, as far as the window goes
//!          ▼
//!   requests  own the buffers; each is cut into pieces
//!          ▼
//!   trackers  one piece, one command, one list of pages; the identifier of a command is its tracker and
//!          ▼  how often that was used, so that a late answer is not taken for that of another
//!        rings
//! ```
//!
//! All tables have their size from the start. A command costs no allocation; only the lines grow, with
//! what waits in them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use memkv_block::{Completer, Done, Io, IoError, Op, Tally};
use memkv_poller::Progress;

use super::piece::{List, Piece, Request, Verb};
use crate::admin::Ticket;
use crate::area::Area;
use crate::device::Shared;
use crate::ring::{Entry, Pair, pair_bytes};
use crate::shape::{LIST, Shape, Trim};
use crate::status::Status;
use crate::transport::Window;

/// Where the lists of the trackers begin in the area of a queue.
const LISTS_AT: usize = pair_bytes(128);

/// Bytes of the area of a queue: rings, and a list for each of 127 trackers.
pub(crate) const QUEUE_AREA: usize =
    (LISTS_AT + 127 * LIST).next_multiple_of(crate::area::ALIGNMENT);

/// Answers taken in one poll.
pub(super) const PER_POLL: u32 = 64;

/// Transfers up to this size never wait for large ones: they are somebody's whole answer, or the
/// journal's.
const SMALL: u64 = 64 << 10;

/// Bytes of large transfers in the drive at once: of what waits here the first is done first, while a drive
/// serves all that it has at the same time, each a little.
const WINDOW: u64 = 8 << 20;

/// Times that a command is tried again after an error that may pass, and after a reset.
const TRIES: u8 = 3;
const RESETS: u8 = 2;

/// Looks in the time that a command may take; and after its abort was asked for, until the reset.
pub(super) const LOOKS: u8 = 16;
const ABORT_LOOKS: u8 = 4;

/// An era that no controller has.
pub(super) const NO_ERA: u32 = 0;

/// How far a queue is in its life with a controller. Each step but `Run` is one admin command.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum Step {
    CreateCompletion,
    CreateSubmission,
    Run,
    DeleteSubmission,
    DeleteCompletion,
    /// The controller knows nothing of it.
    Gone,
    /// The controller is out of service.
    Over,
}

/// One command in flight.
struct Tracker {
    piece: Piece,
    /// Its own list, in the area.
    list: List,
    request: u16,
    /// Counts its uses: the upper half of the identifier.
    sequence: u8,
    busy: bool,
    /// Looks that it has been in flight for.
    looks: u8,
    tries: u8,
    resets: u8,
}

impl Tracker {
    /// Writes its command into the ring, which has room: there are fewer trackers than entries.
    #[inline]
    fn push(&mut self, index: u16, request: &Request, shape: &Shape, pair: &mut Pair) {
        self.sequence = self.sequence.wrapping_add(1);
        self.looks = 0;
        let id = u16::from(self.sequence) << 8 | index;
        // SAFETY: the list is this tracker's own, 4 KiB of the area. Its last command was answered, or
        // is of an earlier life of the controller, which has been disabled since: nobody reads it.
        let command = unsafe { request.command(&self.piece, shape, self.list) };
        pair.push(&command.with_id(id));
    }
}

/// A command that was not answered in time.
pub(super) struct Overdue {
    index: usize,
    sequence: u8,
    /// Its abort, until that is answered.
    pub ticket: Option<Ticket>,
    looks: u8,
}

pub(super) type Finished = (Completer, Done);

pub(super) struct Engine {
    pub shared: Arc<Shared>,
    pub id: u16,
    /// None once it is leaked.
    pub area: Option<Area>,
    /// That of the drive, close at hand.
    shape: Shape,
    /// Reads and writes of so many bytes are neither large nor more than one command.
    plain: u64,
    /// The pool, as the controller sees it.
    window: Window,
    pub pair: Pair,
    /// The era in which commands go straight to the drive; [`NO_ERA`] while they do not.
    pub running: u32,
    pub step: Step,
    pub ticket: Option<Ticket>,
    /// The era that the queue was made in.
    pub era: u32,
    pub closing: bool,
    pub given_up: bool,
    /// A task looks after what takes too long.
    pub looking: bool,
    trackers: Box<[Tracker]>,
    free: Vec<u16>,
    requests: Box<[Request]>,
    free_requests: Vec<u16>,
    small: VecDeque<(Io, Completer)>,
    large: VecDeque<(Io, Completer)>,
    /// Requests that have ended and are still in their slots: their callers are told when nothing is
    /// borrowed any more.
    ended: VecDeque<u16>,
    /// Requests that have more pieces to make.
    feeding: VecDeque<u16>,
    /// Bytes of large transfers that have begun.
    moving: u64,
    /// Commands in the ring that the drive was not told of, and those that it was.
    unsent: u64,
    in_drive: u64,
    pub overdue: Option<Overdue>,
    tally: Tally,
}

fn is_large(op: Op, len: u64) -> bool {
    len > SMALL && matches!(op, Op::Read | Op::Write)
}

impl Engine {
    pub fn new(shared: Arc<Shared>, id: u16, mut area: Area, pair: Pair) -> Engine {
        let count = shared.shape.entries - 1;
        let tracker = |index: u16| {
            let at = LISTS_AT + LIST * usize::from(index);
            Tracker {
                piece: Piece { verb: Verb::Flush, at: 0, len: 0 },
                list: List { start: area.at(at, LIST).cast(), iova: area.iova(at) },
                request: 0,
                sequence: 0,
                busy: false,
                looks: 0,
                tries: 0,
                resets: 0,
            }
        };
        let trackers = (0..count).map(tracker).collect();
        // Those that have ended keep their slots for the rest of a turn, in which others begin.
        let slots = 2 * count;
        Engine {
            id,
            area: Some(area),
            shape: shared.shape,
            plain: shared.shape.transfer.min(SMALL),
            window: shared.window,
            trackers,
            pair,
            running: NO_ERA,
            step: Step::CreateCompletion,
            ticket: None,
            era: NO_ERA,
            closing: false,
            given_up: false,
            looking: false,
            free: (0..count).rev().collect(),
            requests: (0..slots).map(|_| Request::default()).collect(),
            free_requests: (0..slots).rev().collect(),
            small: VecDeque::with_capacity(usize::from(count)),
            large: VecDeque::with_capacity(usize::from(count)),
            feeding: VecDeque::with_capacity(usize::from(count)),
            ended: VecDeque::with_capacity(usize::from(count)),
            moving: 0,
            unsent: 0,
            in_drive: 0,
            overdue: None,
            tally: Tally::default(),
            shared,
        }
    }

    /// Requests that are not done.
    pub fn outstanding(&self) -> usize {
        self.requests.len() - self.free_requests.len() + self.small.len() + self.large.len()
    }

    /// Whether the drive has commands.
    pub fn has_in_drive(&self) -> bool {
        self.in_drive > 0
    }

    /// Nothing of it is the controller's any more.
    pub fn is_settled(&self) -> bool {
        matches!(self.step, Step::Gone | Step::Over)
    }

    /// Where the drive finds the bytes of a checked request, if it is for the drive.
    #[inline]
    pub fn admit(&self, io: &Io) -> Option<u64> {
        if self.step != Step::Run || self.given_up || matches!(io.op, Op::Flush | Op::Deallocate) {
            return self.admit_any(io).ok();
        }
        let start = io.buf.as_ref().map_or(0, |buf| buf.as_ptr() as usize + io.buf_at);
        self.window.iova(start, io.len as usize)
    }

    /// The same for all of them, and how those end that are not for the drive.
    #[inline(never)]
    pub fn admit_any(&self, io: &Io) -> Result<u64, Result<(), IoError>> {
        if self.is_settled() || self.given_up {
            return Err(Err(IoError::Offline));
        }
        let shape = &self.shared.shape;
        match io.op {
            Op::Read | Op::Write | Op::WriteFlush => {
                let start = io.buf.as_ref().map_or(0, |buf| buf.as_ptr() as usize + io.buf_at);
                // Memory that the controller does not see is no buffer.
                let iova = self.window.iova(start, io.len as usize);
                iova.ok_or(Err(IoError::WrongBuffer { op: io.op, len: io.len }))
            }
            // What it has written is durable.
            Op::Flush if !shape.caches => Err(Ok(())),
            Op::Deallocate if shape.trim == Trim::Unknown => {
                Err(Err(IoError::Unsupported { op: Op::Deallocate }))
            }
            _ => Ok(0),
        }
    }

    /// Takes a request that was admitted.
    #[inline]
    pub fn take(&mut self, io: Io, completer: Completer, iova: u64) {
        let runs =
            self.running != NO_ERA && !self.free.is_empty() && !self.free_requests.is_empty();
        let plain = io.len <= self.plain && matches!(io.op, Op::Read | Op::Write);
        if !(runs && plain && self.small.is_empty()) {
            return self.take_any(io, completer, iova, runs);
        }
        // Nearly all there are: one command, which can go at once.
        self.tally.transfer(true);
        let index = self.free_requests.pop().expect("just looked at");
        self.requests[usize::from(index)].begin(io, completer, iova, &self.shape);
        self.issue(index);
        if self.in_drive == 0 {
            self.send();
        }
    }

    /// Takes a request that was admitted, of whatever kind.
    #[inline(never)]
    fn take_any(&mut self, io: Io, completer: Completer, iova: u64, runs: bool) {
        if is_large(io.op, io.len) {
            if !runs || !self.large.is_empty() || !self.has_room(&io) {
                self.large.push_back((io, completer));
                return;
            }
        } else if !runs || !self.small.is_empty() {
            self.small.push_back((io, completer));
            return;
        }
        self.begin(io, completer, iova);
        if self.in_drive == 0 {
            // The drive has nothing to do: not to be left so until the end of the pass.
            self.send();
        }
    }

    fn has_room(&self, io: &Io) -> bool {
        self.moving == 0 || self.moving + io.len <= WINDOW
    }

    /// Puts a request into a free slot, and its first pieces, at least one, into trackers.
    fn begin(&mut self, io: Io, completer: Completer, iova: u64) {
        if is_large(io.op, io.len) {
            self.moving += io.len;
        }
        if !matches!(io.op, Op::Flush | Op::Deallocate) {
            self.tally.transfer(true);
        }
        let index = self.free_requests.pop().expect("the caller has looked");
        self.requests[usize::from(index)].begin(io, completer, iova, &self.shared.shape);
        while self.issue(index) {
            if self.free.is_empty() {
                self.request(index).feeding = true;
                self.feeding.push_back(index);
                return;
            }
        }
    }

    /// Begins what has waited.
    fn begin_waiting(&mut self, (io, completer): (Io, Completer)) {
        let iova = self.admit(&io).expect("it was admitted before it waited");
        self.begin(io, completer, iova);
    }

    #[inline]
    fn request(&mut self, index: u16) -> &mut Request {
        &mut self.requests[usize::from(index)]
    }

    /// Makes one piece of a request, for which there is a tracker. Says whether there are more.
    #[inline]
    fn issue(&mut self, request: u16) -> bool {
        let index = self.free.pop().expect("the caller has looked");
        let slot = &mut self.requests[usize::from(request)];
        let tracker = &mut self.trackers[usize::from(index)];
        tracker.piece = slot.next_piece(&self.shape);
        tracker.request = request;
        (tracker.busy, tracker.tries, tracker.resets) = (true, 0, 0);
        tracker.push(index, slot, &self.shape, &mut self.pair);
        slot.pieces += 1;
        self.unsent += 1;
        slot.has_more()
    }

    /// Gives the command of a tracker again.
    fn push(&mut self, index: u16) {
        let tracker = &mut self.trackers[usize::from(index)];
        let request = &self.requests[usize::from(tracker.request)];
        tracker.push(index, request, &self.shape, &mut self.pair);
        self.unsent += 1;
    }

    /// Tells the drive of all that was written. Says how many commands that were.
    #[inline]
    fn send(&mut self) -> u32 {
        let sent = self.unsent;
        if sent > 0 {
            self.pair.ring();
            self.in_drive += sent;
            self.unsent = 0;
            self.shared.counters.handed_over(sent, 0);
        }
        sent as u32
    }

    /// One turn: tells of what is new, takes what is done, lets those that wait move up.
    pub fn work(&mut self) -> Progress {
        let sent = self.send();
        let mut answers = 0;
        while answers < PER_POLL
            && let Some(entry) = self.pair.next()
        {
            if !self.answered(&entry) {
                self.distrust(&entry);
                break;
            }
            self.in_drive -= 1;
            answers += 1;
        }
        if answers > 0 {
            self.pair.acknowledge();
            let depth = self.shared.counters.came_back(u64::from(answers));
            if depth == 0
                && !(self.small.is_empty() && self.large.is_empty() && self.feeding.is_empty())
            {
                self.shared.counters.ran_dry();
            }
            self.feed();
            self.send();
        }
        if sent + answers > 0 {
            self.shared.counters.take(&mut self.tally);
        }
        Progress::of(sent + answers)
    }

    /// Takes the answer to a command. False when nobody has given such a command.
    #[inline]
    fn answered(&mut self, entry: &Entry) -> bool {
        let index = entry.id & 0xff;
        let Some(tracker) = self.trackers.get_mut(usize::from(index)) else { return false };
        let known = tracker.busy && tracker.sequence == (entry.id >> 8) as u8;
        // A command that the drive was not told of it cannot have done.
        if !known || entry.queue != self.id || self.in_drive == 0 {
            return false;
        }
        if entry.status.is_success() {
            self.end_piece(index, None);
        } else {
            self.failed(index, entry.status);
        }
        true
    }

    /// A command has failed: it is given again if that may help.
    #[cold]
    fn failed(&mut self, index: u16, status: Status) {
        let tracker = &mut self.trackers[usize::from(index)];
        if status.may_retry() && tracker.tries < TRIES {
            tracker.tries += 1;
            self.shared.troubles.retries.fetch_add(1, Ordering::Relaxed);
            self.push(index);
            // At once: what is not told of cannot be answered while answers are taken.
            self.send();
            return;
        }
        let error = match (tracker.piece.verb, status.code()) {
            (Verb::Deallocate | Verb::Zero, code) if code == Status::INVALID_OPCODE.code() => {
                IoError::Unsupported { op: Op::Deallocate }
            }
            (_, code) => IoError::Status(code),
        };
        self.end_piece(index, Some(error));
    }

    /// A piece is done or has failed for good.
    #[inline]
    fn end_piece(&mut self, index: u16, error: Option<IoError>) {
        let tracker = &mut self.trackers[usize::from(index)];
        tracker.busy = false;
        let request = tracker.request;
        self.free.push(index);
        let slot = self.request(request);
        slot.pieces -= 1;
        if let Some(error) = error {
            slot.error.get_or_insert(error);
        }
        self.conclude(request);
    }

    /// Ends a request that has nothing left to wait for.
    #[inline]
    fn conclude(&mut self, index: u16) {
        let slot = &self.requests[usize::from(index)];
        if slot.pieces > 0 || slot.feeding || slot.has_more() {
            return;
        }
        let (op, len) = slot.asked();
        if is_large(op, len) {
            self.moving -= len;
        }
        self.tally.ended(op, len, slot.error.is_none());
        self.ended.push_back(index);
    }

    /// Takes one of the requests that have ended out of its slot.
    #[inline]
    pub fn next_ended(&mut self) -> Option<Finished> {
        let index = self.ended.pop_front()?;
        self.free_requests.push(index);
        self.requests[usize::from(index)].take()
    }

    /// Lets those that wait move up, as long as there are trackers.
    fn feed(&mut self) {
        while !self.free.is_empty() {
            let slot = !self.free_requests.is_empty();
            if slot && let Some(waiting) = self.small.pop_front() {
                self.begin_waiting(waiting);
            } else if let Some(&index) = self.feeding.front() {
                if !self.request(index).has_more() || !self.issue(index) {
                    self.feeding.pop_front();
                    self.request(index).feeding = false;
                    self.conclude(index);
                }
            } else if slot && self.large.front().is_some_and(|(io, _)| self.has_room(io)) {
                let waiting = self.large.pop_front().expect("just looked at");
                self.begin_waiting(waiting);
            } else {
                return;
            }
        }
    }

    /// The drive answers what it was not asked: nothing that it says can be relied on.
    #[cold]
    fn distrust(&mut self, entry: &Entry) {
        let (drive, queue) = (self.shared.transport.name(), self.id);
        tracing::error!(drive, queue, ?entry, "an answer to a command that nobody gave");
        self.shared.troubles.spurious.fetch_add(1, Ordering::Relaxed);
        self.shared.signals.ask_for_reset(self.era);
    }

    /// The controller runs in a new era and knows nothing of this queue.
    pub fn begin_anew(&mut self, era: u32) {
        let area = self.area.as_mut().expect("only a queue that is over has none");
        self.pair.reset(area);
        self.shared.counters.came_back(std::mem::take(&mut self.in_drive));
        (self.unsent, self.overdue, self.ticket) = (0, None, None);
        (self.era, self.step) = (era, Step::CreateCompletion);
    }

    /// The queue is there: all that was in flight goes into it again, and what waits.
    pub fn resume(&mut self) {
        for index in 0..self.trackers.len() as u16 {
            let tracker = &mut self.trackers[usize::from(index)];
            if !tracker.busy {
                continue;
            }
            tracker.resets += 1;
            if tracker.resets > RESETS {
                // Whenever the drive has it, it has to be reset.
                let error = std::io::Error::from(std::io::ErrorKind::TimedOut);
                self.end_piece(index, Some(IoError::Os(error)));
            } else {
                self.shared.troubles.retries.fetch_add(1, Ordering::Relaxed);
                self.push(index);
            }
        }
        self.feed();
        self.send();
    }

    /// The controller is out of service. Buffers come back if it is certain that it reaches no memory.
    #[cold]
    pub fn end_all(&mut self, finished: &mut Vec<Finished>) {
        assert!(self.ended.is_empty(), "callers are told after every turn");
        let cut = self.shared.signals.is_cut_off();
        for slot in &mut self.requests {
            let pieces = slot.pieces;
            let Some((completer, Done { buf, .. })) = slot.take() else { continue };
            let (op, len) = slot.asked();
            self.tally.ended(op, len, false);
            let result = Err(IoError::Offline);
            if cut || pieces == 0 {
                finished.push((completer, Done { result, buf }));
            } else {
                std::mem::forget(buf);
                finished.push((completer, Done { result, buf: None }));
            }
        }
        let lines = self.small.drain(..).chain(self.large.drain(..));
        finished.extend(lines.map(|(io, done)| (done, Done::of(io, Err(IoError::Offline)))));
        for (index, tracker) in self.trackers.iter_mut().enumerate() {
            if std::mem::take(&mut tracker.busy) {
                self.free.push(index as u16);
            }
        }
        let count = self.requests.len() as u16;
        self.free_requests = (0..count).rev().collect();
        self.feeding.clear();
        self.moving = 0;
        self.unsent = 0;
        self.shared.counters.came_back(std::mem::take(&mut self.in_drive));
        self.shared.counters.take(&mut self.tally);
        (self.overdue, self.ticket) = (None, None);
        (self.step, self.running) = (Step::Over, NO_ERA);
        if !cut && let Some(area) = self.area.take() {
            area.leak();
        }
    }

    /// What waits here and never reached the drive.
    pub fn give_up(&mut self, finished: &mut Vec<Finished>) {
        self.given_up = true;
        let lines = self.small.drain(..).chain(self.large.drain(..));
        finished.extend(lines.map(|(io, done)| (done, Done::of(io, Err(IoError::Offline)))));
    }

    /// Keeps what the drive has from ever being used again.
    pub fn leak(&mut self) {
        let (drive, leaked) = (self.shared.transport.name(), self.in_drive);
        tracing::error!(drive, leaked, "the drive does not answer, leaking buffers");
        for request in &mut self.requests {
            // The completer, dropped, says that the drive is offline.
            if let Some((_, done)) = request.take() {
                std::mem::forget(done);
            }
        }
        if let Some(area) = self.area.take() {
            area.leak();
        }
    }

    /// Counts how long commands have been in flight. The one to be aborted, if there is one.
    pub fn age(&mut self) -> Option<(u16, Overdue)> {
        let mut late = None;
        for (index, tracker) in self.trackers.iter_mut().enumerate() {
            tracker.looks = if tracker.busy { tracker.looks.saturating_add(1) } else { 0 };
            if tracker.looks >= LOOKS && late.is_none() {
                late = Some(index);
            }
        }
        let index = late.filter(|_| self.overdue.is_none())?;
        let sequence = self.trackers[index].sequence;
        let id = u16::from(sequence) << 8 | index as u16;
        Some((id, Overdue { index, sequence, ticket: None, looks: 0 }))
    }

    /// Looks after the command that was to be aborted: true when that has not helped.
    pub fn is_beyond_abort(&mut self) -> bool {
        let Some(overdue) = &mut self.overdue else { return false };
        let tracker = &self.trackers[overdue.index];
        if !tracker.busy || tracker.sequence != overdue.sequence {
            // Answered. The abort's own answer is still to be taken.
            if overdue.ticket.is_none() {
                self.overdue = None;
            }
            return false;
        }
        overdue.looks += 1;
        overdue.looks >= ABORT_LOOKS
    }
}
