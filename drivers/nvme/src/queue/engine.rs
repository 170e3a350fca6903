//! The path of data of one queue pair: requests, trackers, rings.
//!
//! ```text
//!   small ─┐  lines of those that wait: first the small, then what a begun request has left, then the
//!   large ─┤  large, as far as the window goes
//!          ▼
//!   requests  of more than one command are cut into pieces
//!          ▼
//!   trackers  one piece, one command, one list of pages; the identifier of a command is its tracker and
//!          ▼  how often that was used, so that a late answer is not taken for that of another
//!        rings
//! ```
//!
//! Nearly all there is are small reads and writes: one command each, which goes straight into a tracker.
//! Their buffers, and who waits for them, are in the table of [`Commands`].
//!
//! All tables have their size from the start. A command costs no allocation; only the lines grow, with
//! what waits in them.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use memkv_block::{CommandId, Commands, Completion, Io, IoBuf, IoError, Op, QueueCounters, Told};
use memkv_poller::Progress;

use super::piece::{Asked, List, Piece, Request, SMALL, Verb};
use crate::admin::Ticket;
use crate::area::Area;
use crate::controller::Signals;
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

/// Bytes of large transfers in the drive at once: of what waits here the first is done first, while a drive
/// serves all that it has at the same time, each a little.
const WINDOW: u64 = 8 << 20;

/// Times that a command is tried again after an error that may pass, and after a reset.
const TRIES: u8 = 3;
const RESETS: u8 = 2;

/// Looks in the time that a command may take; and after its abort was asked for, until the reset.
pub(super) const LOOKS: u8 = 16;
const ABORT_LOOKS: u8 = 4;

/// Bits that no address of memory to move has: the grain of all devices is 512 bytes.
const MEMORY_MASK: u64 = 511;

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

/// Whose command a tracker has.
#[derive(Copy, Clone, Debug)]
enum Owner {
    /// It is all that this one asks for: a read or a write.
    Whole(CommandId),
    /// It is a piece of the request in this slot.
    Part(u16),
}

/// One command in flight.
struct Tracker {
    piece: Piece,
    /// Its own list, in the area.
    list: List,
    owner: Owner,
    /// Counts its uses: the upper half of the identifier.
    sequence: u8,
    /// These lie side by side and are set as one.
    busy: bool,
    /// Looks that it has been in flight for.
    looks: u8,
    tries: u8,
    resets: u8,
}

impl Tracker {
    /// Gets a piece to do.
    #[inline(always)]
    fn begin(&mut self, piece: Piece) {
        self.piece = piece;
        (self.busy, self.tries, self.resets) = (true, 0, 0);
    }

    /// Writes its command into the ring, which has room: there are fewer trackers than entries. It is to be
    /// [pushed](Pair::push).
    #[inline(always)]
    fn write(&mut self, index: u16, shape: &Shape, pair: &mut Pair) {
        self.sequence = self.sequence.wrapping_add(1);
        self.looks = 0;
        let id = u16::from(self.sequence) << 8 | index;
        // SAFETY: the list is this tracker's own, 4 KiB of the area. Its last command was answered, or
        // is of an earlier life of the controller, which has been disabled since: nobody reads it.
        let command = unsafe { self.piece.command(shape, self.list) };
        pair.write(&command.with_id(id));
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

pub(super) struct Engine {
    pub shared: Arc<Shared>,
    pub signals: Arc<Signals>,
    pub id: u16,
    /// None once it is leaked.
    pub area: Option<Area>,
    /// That of the drive, close at hand.
    shape: Shape,
    /// Reads and writes of so many bytes are neither large nor more than one command, and can go at once; 0
    /// when none can. And where on the drive each of them ends within it.
    plain: u64,
    plain_until: u64,
    /// Bits that no offset and no length has.
    block_mask: u64,
    /// The pool, as the controller sees it.
    window: Window,
    pub pair: Pair,
    /// The era in which commands go straight to the drive; [`NO_ERA`] while they do not.
    running: u32,
    pub step: Step,
    pub ticket: Option<Ticket>,
    /// The era that the queue was made in.
    pub era: u32,
    pub closing: bool,
    pub given_up: bool,
    /// Trackers that have pieces of requests.
    parts: usize,
    pub commands: Rc<Commands>,
    counters: Arc<QueueCounters>,
    trackers: Box<[Tracker]>,
    free: Vec<u16>,
    requests: Box<[Option<Request>]>,
    free_requests: Vec<u16>,
    small: VecDeque<Asked>,
    large: VecDeque<Asked>,
    /// Requests that have more pieces to make.
    feeding: VecDeque<u16>,
    /// Bytes of large transfers that have begun.
    moving: u64,
    /// Commands in the ring that the drive was told of.
    in_drive: u64,
    pub overdue: Option<Overdue>,
}

/// The address of the first byte to move.
#[inline]
fn start(io: &Io) -> usize {
    io.buf.as_ref().map_or(0, |buf| buf.as_ptr() as usize + io.buf_at)
}

impl Engine {
    pub fn new(shared: Arc<Shared>, id: u16, mut area: Area, pair: Pair) -> Engine {
        let count = shared.shape.entries - 1;
        let mut tracker = |index: u16| {
            let at = LISTS_AT + LIST * usize::from(index);
            Tracker {
                piece: Piece::FLUSH,
                list: List { start: area.at(at, LIST).cast(), iova: area.iova(at) },
                owner: Owner::Part(0),
                sequence: 0,
                busy: false,
                looks: 0,
                tries: 0,
                resets: 0,
            }
        };
        let trackers = (0..count).map(&mut tracker).collect();
        let room = usize::from(count);
        Engine {
            signals: Arc::clone(&shared.signals),
            id,
            area: Some(area),
            shape: shared.shape,
            plain: 0,
            plain_until: 0,
            block_mask: (1 << shared.shape.block_bits) - 1,
            window: shared.window,
            trackers,
            pair,
            running: NO_ERA,
            step: Step::CreateCompletion,
            ticket: None,
            era: NO_ERA,
            closing: false,
            given_up: false,
            parts: 0,
            // What waits for its caller keeps its place.
            commands: Rc::new(Commands::with_capacity(2 * room)),
            counters: shared.counters.queue(usize::from(id) - 1),
            free: (0..count).rev().collect(),
            requests: std::iter::repeat_with(|| None).take(room).collect(),
            free_requests: (0..count).rev().collect(),
            small: VecDeque::with_capacity(room),
            large: VecDeque::with_capacity(room),
            feeding: VecDeque::with_capacity(room),
            moving: 0,
            in_drive: 0,
            overdue: None,
            shared,
        }
    }

    /// Requests that are not done.
    pub fn outstanding(&self) -> usize {
        let whole = self.trackers.len() - self.free.len() - self.parts;
        let cut = self.requests.len() - self.free_requests.len();
        whole + cut + self.small.len() + self.large.len()
    }

    /// Whether the drive has commands.
    pub fn has_in_drive(&self) -> bool {
        self.in_drive > 0
    }

    /// Nothing of it is the controller's any more.
    pub fn is_settled(&self) -> bool {
        matches!(self.step, Step::Gone | Step::Over)
    }

    /// Takes a request, which nobody has checked, if it is of the plain kind and all is well with it: one
    /// command, which can go at once.
    #[inline(always)]
    pub fn take_plain(&mut self, io: &mut Io) -> Option<CommandId> {
        let Io { op, offset, len, ref buf, buf_at } = *io;
        let (verb, memory) = match (op, buf) {
            (Op::Read, Some(IoBuf::Exclusive(buf))) => (Verb::Read, (buf.as_ptr(), buf.len())),
            (Op::Write, Some(IoBuf::Exclusive(buf))) => (Verb::Write, (buf.as_ptr(), buf.len())),
            (Op::Write, Some(IoBuf::Shared(buf))) => (Verb::Write, (buf.as_ptr(), buf.len())),
            _ => return None,
        };
        let start = (memory.0 as usize).wrapping_add(buf_at);
        // What is wrong with it is said by who looks at all of it.
        let fits = len.wrapping_sub(1) < self.plain
            && offset <= self.plain_until
            && buf_at <= memory.1
            && len as usize <= memory.1 - buf_at;
        if !fits || ((offset | len) & self.block_mask) | (start as u64 & MEMORY_MASK) != 0 {
            return None;
        }
        if self.commands.refusal().is_some() {
            return None;
        }
        let iova = self.window.iova(start, len as usize)?;
        let index = self.free.pop()?;
        let tracker = &mut self.trackers[usize::from(index)];
        tracker.begin(Piece { verb, offset, len, iova });
        tracker.write(index, &self.shape, &mut self.pair);
        // The buffer is in the table before the drive can be told of the command.
        let id = self.commands.give(&mut io.buf);
        tracker.owner = Owner::Whole(id);
        self.pair.push();
        if self.in_drive == 0 {
            // The drive has nothing to do: not to be left so until the end of the pass.
            self.send();
        }
        Some(id)
    }

    /// Says again what is plain, after anything that it depends on has changed.
    fn set_plain(&mut self) {
        let plain = self.shape.transfer.min(SMALL);
        let until = self.shape.capacity.checked_sub(plain);
        let now = self.running != NO_ERA && !self.given_up && self.small.is_empty();
        // Of a drive that is smaller than one of them none is.
        (self.plain, self.plain_until) = until.filter(|_| now).map_or((0, 0), |at| (plain, at));
    }

    #[inline(always)]
    pub fn running(&self) -> u32 {
        self.running
    }

    /// Commands go straight to the drive from now on if `era` is one, and not if it is none.
    pub fn set_running(&mut self, era: u32) {
        self.running = era;
        self.set_plain();
    }

    /// Where the drive finds the bytes of a checked request; how it ends if it is not for the drive.
    fn admit(&self, io: &Io) -> Result<u64, Result<(), IoError>> {
        if self.is_settled() || self.given_up {
            return Err(Err(IoError::Offline));
        }
        let shape = &self.shape;
        match io.op {
            Op::Read | Op::Write | Op::WriteFlush => {
                // Memory that the controller does not see is no buffer.
                let iova = self.window.iova(start(io), io.len as usize);
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

    /// Takes a checked request, of whatever kind. It may end here.
    pub fn take_any(&mut self, io: Io, told: &mut Told) -> Completion {
        let admitted = self.admit(&io);
        let Io { op, offset, len, mut buf, .. } = io;
        let id = self.commands.give(&mut buf);
        let completion = self.commands.completion(id);
        let iova = match admitted {
            Ok(iova) => iova,
            Err(result) => {
                match result {
                    Ok(()) => self.counters.done(op, len),
                    Err(_) => self.counters.refused(),
                }
                self.tell(id, result.err(), told);
                return completion;
            }
        };
        self.take(Asked { id, op, offset, len, iova });
        completion
    }

    /// Takes a request that was admitted: it begins, or waits.
    fn take(&mut self, asked: Asked) {
        let runs =
            self.running != NO_ERA && !self.free.is_empty() && !self.free_requests.is_empty();
        if asked.is_large() {
            if !runs || !self.large.is_empty() || !self.has_room(&asked) {
                return self.large.push_back(asked);
            }
        } else if !runs || !self.small.is_empty() {
            self.small.push_back(asked);
            return self.set_plain();
        }
        self.begin(asked);
        if self.in_drive == 0 {
            // The drive has nothing to do: not to be left so until the end of the pass.
            self.send();
        }
    }

    fn has_room(&self, asked: &Asked) -> bool {
        self.moving == 0 || self.moving + asked.len <= WINDOW
    }

    /// Puts a request into a free slot, and its first pieces, at least one, into trackers.
    fn begin(&mut self, asked: Asked) {
        if asked.is_large() {
            self.moving += asked.len;
        }
        let index = self.free_requests.pop().expect("the caller has looked");
        let slot = &mut self.requests[usize::from(index)];
        assert!(slot.is_none(), "a free slot is empty");
        *slot = Some(Request::new(asked, &self.shape));
        while self.issue(index) {
            if self.free.is_empty() {
                self.request(index).feeding = true;
                self.feeding.push_back(index);
                return;
            }
        }
    }

    fn request(&mut self, index: u16) -> &mut Request {
        self.requests[usize::from(index)].as_mut().expect("a request is in its slot")
    }

    /// Makes one piece of a request, for which there is a tracker. Says whether there are more.
    fn issue(&mut self, request: u16) -> bool {
        let index = self.free.pop().expect("the caller has looked");
        let shape = self.shape;
        let slot = self.request(request);
        let piece = slot.next_piece(&shape);
        slot.pieces += 1;
        let more = slot.has_more();
        self.parts += 1;
        let tracker = &mut self.trackers[usize::from(index)];
        tracker.begin(piece);
        tracker.owner = Owner::Part(request);
        self.push(index);
        more
    }

    /// Gives the command of a tracker, for the first time or again.
    fn push(&mut self, index: u16) {
        self.trackers[usize::from(index)].write(index, &self.shape, &mut self.pair);
        self.pair.push();
    }

    /// Tells the drive of all that was written, unless it does not know this queue any more. Says how many
    /// commands that were.
    #[inline(always)]
    fn send(&mut self) -> u32 {
        if self.pair.is_rung() {
            return 0;
        }
        let (pair, mut sent) = (&mut self.pair, 0);
        if self.signals.ring(self.id, self.era, || sent = u64::from(pair.ring())) {
            self.in_drive += sent;
            self.counters.handed_over(sent, self.in_drive);
        }
        sent as u32
    }

    /// One turn: tells of what is new, takes what is done, lets those that wait move up.
    #[inline(always)]
    pub fn work(&mut self, told: &mut Told) -> Progress {
        let sent = self.send();
        let mut answers = 0;
        while answers < PER_POLL
            && let Some(entry) = self.pair.next()
        {
            if !self.answered(entry, told) {
                self.distrust(entry.id, entry.status, entry.queue);
                break;
            }
            self.in_drive -= 1;
            answers += 1;
        }
        if answers > 0 {
            // In another era the queue is made anew, and nothing of it counts.
            self.signals.ring(self.id, self.era, || self.pair.acknowledge());
            self.counters.came_back(self.in_drive);
            if !(self.small.is_empty() && self.large.is_empty() && self.feeding.is_empty()) {
                self.move_up(told);
            }
        }
        Progress::of(sent + answers)
    }

    /// Others wait for what was done.
    #[inline(never)]
    fn move_up(&mut self, told: &mut Told) {
        if self.in_drive == 0 && self.shared.counters.depth() == 0 {
            self.shared.counters.ran_dry();
        }
        self.feed(told);
        self.send();
    }

    /// Takes the answer to a command. False when nobody has given such a command.
    #[inline(always)]
    fn answered(&mut self, entry: Entry, told: &mut Told) -> bool {
        let index = entry.id & 0xff;
        let Some(tracker) = self.trackers.get_mut(usize::from(index)) else { return false };
        let known = tracker.busy && tracker.sequence == (entry.id >> 8) as u8;
        // A command that the drive was not told of it cannot have done.
        if !known || entry.queue != self.id || self.in_drive == 0 {
            return false;
        }
        if !entry.status.is_success() {
            self.failed(index, entry.status, told);
            return true;
        }
        match tracker.owner {
            Owner::Whole(id) => {
                tracker.busy = false;
                let Piece { verb, len, .. } = tracker.piece;
                self.free.push(index);
                self.counters.done(verb.op(), len);
                self.commands.end(id, told);
            }
            Owner::Part(_) => self.end_piece(index, None, told),
        }
        true
    }

    /// A command has failed: it is given again if that may help.
    #[cold]
    fn failed(&mut self, index: u16, status: Status, told: &mut Told) {
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
        self.end_piece(index, Some(error), told);
    }

    /// A piece is done or has failed for good.
    #[inline(never)]
    fn end_piece(&mut self, index: u16, error: Option<IoError>, told: &mut Told) {
        let tracker = &mut self.trackers[usize::from(index)];
        tracker.busy = false;
        let (owner, op) = (tracker.owner, tracker.piece.verb.op());
        self.free.push(index);
        match owner {
            Owner::Whole(id) => {
                self.counters.failed(op);
                self.tell(id, error, told);
            }
            Owner::Part(request) => {
                self.parts -= 1;
                let slot = self.request(request);
                slot.pieces -= 1;
                if let Some(error) = error {
                    slot.error.get_or_insert(error);
                }
                self.conclude(request, told);
            }
        }
    }

    /// Ends a command in the table.
    fn tell(&self, id: CommandId, error: Option<IoError>, told: &mut Told) {
        match error {
            None => self.commands.end(id, told),
            Some(error) => self.commands.fail(id, error, told),
        }
    }

    /// Ends a request that has nothing left to wait for.
    fn conclude(&mut self, index: u16, told: &mut Told) {
        let slot = self.request(index);
        if slot.pieces > 0 || slot.feeding || slot.has_more() {
            return;
        }
        let (Asked { id, op, len, .. }, error) = (slot.asked, slot.error.take());
        if slot.asked.is_large() {
            self.moving -= len;
        }
        self.requests[usize::from(index)] = None;
        self.free_requests.push(index);
        if error.is_none() {
            self.counters.done(op, len);
        } else {
            self.counters.failed(op);
        }
        self.tell(id, error, told);
    }

    /// Lets those that wait move up, as long as there are trackers.
    fn feed(&mut self, told: &mut Told) {
        while !self.free.is_empty() {
            let slot = !self.free_requests.is_empty();
            if slot && let Some(waiting) = self.small.pop_front() {
                self.set_plain();
                self.begin(waiting);
            } else if let Some(&index) = self.feeding.front() {
                if !self.request(index).has_more() || !self.issue(index) {
                    self.feeding.pop_front();
                    self.request(index).feeding = false;
                    self.conclude(index, told);
                }
            } else if slot && self.large.front().is_some_and(|asked| self.has_room(asked)) {
                let waiting = self.large.pop_front().expect("just looked at");
                self.begin(waiting);
            } else {
                return;
            }
        }
    }

    /// The drive answers what it was not asked: nothing that it says can be relied on.
    #[cold]
    fn distrust(&mut self, id: u16, status: Status, from: u16) {
        let (drive, queue) = (self.shared.transport.name(), self.id);
        let why = "an answer to a command that nobody gave";
        tracing::error!(drive, queue, id, %status, from, "{why}");
        self.shared.troubles.spurious.fetch_add(1, Ordering::Relaxed);
        self.shared.signals.ask_for_reset(self.era);
    }

    /// The controller runs in a new era and knows nothing of this queue.
    pub fn begin_anew(&mut self, era: u32) {
        let area = self.area.as_mut().expect("only a queue that is over has none");
        self.pair.reset(area);
        self.counters.came_back(0);
        self.in_drive = 0;
        (self.overdue, self.ticket) = (None, None);
        (self.era, self.step) = (era, Step::CreateCompletion);
    }

    /// The queue is there: all that was in flight goes into it again, and what waits.
    pub fn resume(&mut self, told: &mut Told) {
        for index in 0..self.trackers.len() as u16 {
            let tracker = &mut self.trackers[usize::from(index)];
            if !tracker.busy {
                continue;
            }
            tracker.resets += 1;
            if tracker.resets > RESETS {
                // Whenever the drive has it, it has to be reset.
                let error = std::io::Error::from(std::io::ErrorKind::TimedOut);
                self.end_piece(index, Some(IoError::Os(error)), told);
            } else {
                self.shared.troubles.retries.fetch_add(1, Ordering::Relaxed);
                self.push(index);
            }
        }
        self.feed(told);
        self.send();
    }

    /// The controller is out of service. Buffers come back if it is certain that it reaches no memory.
    #[cold]
    pub fn end_all(&mut self, told: &mut Told) {
        let cut = self.shared.signals.is_cut_off();
        self.end_begun(cut, told);
        self.end_waiting(told);
        self.in_drive = 0;
        self.counters.came_back(0);
        (self.overdue, self.ticket) = (None, None);
        self.step = Step::Over;
        self.set_running(NO_ERA);
        if !cut && let Some(area) = self.area.take() {
            area.leak();
        }
    }

    /// Ends all that has begun. What the drive has or may have is leaked, unless it is certain that it
    /// reaches no memory any more.
    fn end_begun(&mut self, cut: bool, told: &mut Told) {
        let (commands, counters) = (&self.commands, &self.counters);
        let mut end = |id: CommandId, op: Op, is_in_drive: bool| {
            counters.failed(op);
            if cut || !is_in_drive {
                commands.fail(id, IoError::Offline, told);
            } else {
                commands.leak(id, IoError::Offline, told);
            }
        };
        for (index, tracker) in self.trackers.iter_mut().enumerate() {
            if std::mem::take(&mut tracker.busy) {
                self.free.push(index as u16);
                if let Owner::Whole(id) = tracker.owner {
                    end(id, tracker.piece.verb.op(), true);
                }
            }
        }
        for (index, slot) in self.requests.iter_mut().enumerate() {
            if let Some(Request { asked, pieces, .. }) = slot.take() {
                self.free_requests.push(index as u16);
                end(asked.id, asked.op, pieces > 0);
            }
        }
        self.feeding.clear();
        (self.moving, self.parts) = (0, 0);
    }

    /// Ends what waits here and never reached the drive.
    fn end_waiting(&mut self, told: &mut Told) {
        for asked in self.small.drain(..).chain(self.large.drain(..)) {
            self.commands.fail(asked.id, IoError::Offline, told);
        }
    }

    /// The drive is not asked any more.
    pub fn give_up(&mut self, told: &mut Told) {
        self.given_up = true;
        self.end_waiting(told);
        self.set_plain();
    }

    /// Keeps what the drive has from ever being used again.
    pub fn leak(&mut self, told: &mut Told) {
        let (drive, leaked) = (self.shared.transport.name(), self.in_drive);
        tracing::error!(drive, leaked, "the drive does not answer, leaking buffers");
        self.end_begun(false, told);
        self.end_waiting(told);
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
