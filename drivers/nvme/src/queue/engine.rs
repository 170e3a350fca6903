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

use memkv_block::{Completion, Given, Io, IoError, Op, Told};
use memkv_poller::Progress;

use super::path::{NO_ERA, PER_POLL, Path, Patience};
use super::piece::{Asked, Request};
use crate::admin::Ticket;
use crate::area::Area;
use crate::device::Shared;
use crate::ring::{Entry, Pair, pair_bytes};
use crate::shape::{LIST, Trim};
use crate::status::Status;

/// Where the lists of the trackers begin in the area of a queue.
const LISTS_AT: usize = pair_bytes(128);

/// Bytes of the area of a queue: rings, and a list for each of 127 trackers.
pub(crate) const QUEUE_AREA: usize =
    (LISTS_AT + 127 * LIST).next_multiple_of(crate::area::ALIGNMENT);

/// Bytes of large transfers in the drive at once: of what waits here the first is done first, while a drive
/// serves all that it has at the same time, each a little.
const WINDOW: u64 = 8 << 20;

/// Times that a command is tried again after an error that may pass, and after a reset.
const TRIES: u8 = 3;
const RESETS: u8 = 2;

/// Looks in the time that a command may take; and after its abort was asked for, until the reset.
pub(super) const LOOKS: u8 = 16;
const ABORT_LOOKS: u8 = 4;

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

/// A command that was not answered in time.
pub(super) struct Overdue {
    index: u8,
    id: u16,
    /// Its abort, until that is answered.
    pub ticket: Option<Ticket>,
    looks: u8,
}

pub(super) struct Engine {
    pub shared: Arc<Shared>,
    /// Rings and trackers, for all kinds of commands.
    pub path: Rc<Path>,
    /// None once it is leaked.
    pub area: Option<Area>,
    pub step: Step,
    pub ticket: Option<Ticket>,
    /// The era that the queue was made in.
    pub era: u32,
    pub closing: bool,
    pub given_up: bool,
    /// Trackers that have pieces of requests.
    parts: usize,
    requests: Box<[Option<Request>]>,
    free_requests: Vec<u16>,
    small: VecDeque<Asked>,
    large: VecDeque<Asked>,
    /// Requests that have more pieces to make.
    feeding: VecDeque<u16>,
    /// Bytes of large transfers that have begun.
    moving: u64,
    pub overdue: Option<Overdue>,
}

/// Ends a command in the table.
fn tell(given: Given, error: Option<IoError>, told: &mut Told) {
    match error {
        None => given.end(told),
        Some(error) => given.fail(error, told),
    }
}

/// The address of the first byte to move.
#[inline]
fn start(io: &Io) -> usize {
    io.buf.as_ref().map_or(0, |buf| buf.as_ptr() as usize + io.buf_at)
}

impl Engine {
    pub fn new(shared: Arc<Shared>, id: u16, mut area: Area, pair: Pair) -> Engine {
        let path = Rc::new(Path::new(&shared, id, &mut area, LISTS_AT, pair));
        let room = usize::from(path.count);
        Engine {
            area: Some(area),
            step: Step::CreateCompletion,
            ticket: None,
            era: NO_ERA,
            closing: false,
            given_up: false,
            parts: 0,
            requests: std::iter::repeat_with(|| None).take(room).collect(),
            free_requests: (0..path.count).rev().collect(),
            small: VecDeque::with_capacity(room),
            large: VecDeque::with_capacity(room),
            feeding: VecDeque::with_capacity(room),
            moving: 0,
            overdue: None,
            path,
            shared,
        }
    }

    /// Requests that are not done.
    pub fn outstanding(&self) -> usize {
        let whole = self.path.busy_count() - self.parts;
        let cut = self.requests.len() - self.free_requests.len();
        whole + cut + self.small.len() + self.large.len()
    }

    /// Whether the drive has commands.
    pub fn has_in_drive(&self) -> bool {
        self.path.counters.depth() > 0
    }

    /// Nothing of it is the controller's any more.
    pub fn is_settled(&self) -> bool {
        matches!(self.step, Step::Gone | Step::Over)
    }

    /// Says again what is plain, and whether others wait.
    fn set_plain(&self) {
        let waiting = !(self.small.is_empty() && self.large.is_empty() && self.feeding.is_empty());
        self.path.set_plain(!self.given_up && self.small.is_empty(), waiting);
    }

    /// Commands go straight to the drive from now on if `era` is one, and not if it is none.
    pub fn set_running(&mut self, era: u32) {
        self.path.set_running(era);
        self.set_plain();
    }

    /// Where the drive finds the bytes of a checked request; how it ends if it is not for the drive.
    fn admit(&self, io: &Io) -> Result<u64, Result<(), IoError>> {
        if self.is_settled() || self.given_up {
            return Err(Err(IoError::Offline));
        }
        let Path { shape, window, .. } = &*self.path;
        match io.op {
            Op::Read | Op::Write | Op::WriteFlush => {
                // Memory that the controller does not see is no buffer.
                let iova = window.iova(start(io), io.len as usize);
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
    pub fn take_any(&mut self, io: &mut Io, told: &mut Told) -> Completion {
        let admitted = self.admit(io);
        let Io { op, offset, len, ref mut buf, .. } = *io;
        let (given, completion) = self.path.commands.give(buf);
        let iova = match admitted {
            Ok(iova) => iova,
            Err(result) => {
                match result {
                    Ok(()) => self.path.counters.done(op, len),
                    Err(_) => self.path.counters.refused(),
                }
                tell(given, result.err(), told);
                return completion;
            }
        };
        self.take(Asked { given, op, offset, len, iova });
        completion
    }

    /// Takes a request that was admitted: it begins, or waits.
    fn take(&mut self, asked: Asked) {
        let path = Rc::clone(&self.path);
        let runs = path.running() != NO_ERA && path.has_free() && !self.free_requests.is_empty();
        if asked.is_large() {
            if !runs || !self.large.is_empty() || !self.has_room(&asked) {
                self.large.push_back(asked);
                return self.set_plain();
            }
        } else if !runs || !self.small.is_empty() {
            self.small.push_back(asked);
            return self.set_plain();
        }
        self.begin(asked);
        self.set_plain();
        if path.counters.depth() == 0 {
            // The drive has nothing to do: not to be left so until the end of the pass.
            path.send_new(self.era);
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
        *slot = Some(Request::new(asked, &self.path.shape));
        while self.issue(index) {
            if !self.path.has_free() {
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
        let path = Rc::clone(&self.path);
        let tracker = path.tracker(path.claim().expect("the caller has looked"));
        let slot = self.request(request);
        let piece = slot.next_piece(&path.shape);
        slot.pieces += 1;
        let more = slot.has_more();
        self.parts += 1;
        path.begin(tracker, piece, request);
        more
    }

    /// One turn while the queue is closed: takes what is done, lets those that wait move up.
    pub fn work(&mut self, told: &mut Told) -> Progress {
        let path = Rc::clone(&self.path);
        let (sent, mut answers) = (path.send_new(self.era), 0);
        while answers < PER_POLL
            && let Some(entry) = path.pair.next()
        {
            if !self.answered(entry, told) {
                break;
            }
            answers += 1;
        }
        path.acknowledge_in(self.era);
        if answers > 0 {
            self.move_up(told);
        }
        Progress::of(sent + answers)
    }

    /// Others wait for what was done.
    #[inline(never)]
    pub fn move_up(&mut self, told: &mut Told) {
        if !self.has_in_drive() && self.shared.counters.depth() == 0 {
            self.shared.counters.ran_dry();
        }
        self.feed(told);
        self.send();
    }

    /// Tells the drive of what was written.
    fn send(&mut self) {
        self.path.send_new(self.era);
    }

    /// Takes the answer to a command, of any kind. False when nobody has given such a command.
    #[inline(never)]
    pub fn answered(&mut self, entry: Entry, told: &mut Told) -> bool {
        let path = Rc::clone(&self.path);
        let index = entry.id() as u8;
        let tracker = path.tracker(index);
        let known = tracker.is_busy() && tracker.id() == entry.id();
        // A command that the drive was not told of it cannot have done.
        if !known || entry.queue != path.id || path.counters.depth() == 0 {
            self.distrust(entry);
            return false;
        }
        path.counters.returned();
        let status = entry.status();
        if status.is_success() {
            self.end_piece(index, None, told);
        } else {
            self.failed(index, status, told);
        }
        true
    }

    /// A command has failed: it is given again if that may help.
    #[cold]
    fn failed(&mut self, index: u8, status: Status, told: &mut Told) {
        let path = Rc::clone(&self.path);
        let tracker = path.tracker(index);
        let patience = tracker.patience.get();
        if status.may_retry() && patience.tries < TRIES {
            tracker.patience.set(Patience { tries: patience.tries + 1, ..patience });
            self.shared.troubles.retries.fetch_add(1, Ordering::Relaxed);
            path.give_again(tracker);
            // At once: what is not told of cannot be answered while answers are taken.
            self.send();
            return;
        }
        let error = match (tracker.asked().0, status.code()) {
            (Op::Deallocate, code) if code == Status::INVALID_OPCODE.code() => {
                IoError::Unsupported { op: Op::Deallocate }
            }
            (_, code) => IoError::Status(code),
        };
        self.end_piece(index, Some(error), told);
    }

    /// A piece is done or has failed for good.
    #[inline(never)]
    fn end_piece(&mut self, index: u8, error: Option<IoError>, told: &mut Told) {
        let path = Rc::clone(&self.path);
        let tracker = path.tracker(index);
        path.release(index, tracker, tracker.id());
        match tracker.whole.take() {
            Some(given) => {
                let (op, len) = tracker.asked();
                match error {
                    None => path.counters.done(op, len),
                    Some(_) => path.counters.failed(op),
                }
                tell(given, error, told);
            }
            None => {
                let request = tracker.part();
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

    /// Ends a request that has nothing left to wait for.
    fn conclude(&mut self, index: u16, told: &mut Told) {
        let slot = self.request(index);
        if slot.pieces > 0 || slot.feeding || slot.has_more() {
            return;
        }
        let slot = self.requests[usize::from(index)].take();
        let Request { asked, error, .. } = slot.expect("a request is in its slot");
        if asked.is_large() {
            self.moving -= asked.len;
        }
        self.free_requests.push(index);
        if error.is_none() {
            self.path.counters.done(asked.op, asked.len);
        } else {
            self.path.counters.failed(asked.op);
        }
        tell(asked.given, error, told);
    }

    /// Lets those that wait move up, as long as there are trackers.
    fn feed(&mut self, told: &mut Told) {
        self.feed_lines(told);
        self.set_plain();
    }

    fn feed_lines(&mut self, told: &mut Told) {
        while self.path.has_free() {
            let slot = !self.free_requests.is_empty();
            if slot && let Some(waiting) = self.small.pop_front() {
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
    fn distrust(&mut self, entry: Entry) {
        let (drive, queue) = (self.shared.transport.name(), self.path.id);
        let (id, status, from) = (entry.id(), entry.status(), entry.queue);
        let why = "an answer to a command that nobody gave";
        tracing::error!(drive, queue, id, %status, from, "{why}");
        self.shared.troubles.spurious.fetch_add(1, Ordering::Relaxed);
        self.shared.signals.ask_for_reset(self.era);
    }

    /// The controller runs in a new era and knows nothing of this queue.
    pub fn begin_anew(&mut self, era: u32) {
        let area = self.area.as_mut().expect("only a queue that is over has none");
        self.path.pair.reset(area);
        self.path.counters.returned_all();
        (self.overdue, self.ticket) = (None, None);
        (self.era, self.step) = (era, Step::CreateCompletion);
    }

    /// The queue is there: all that was in flight goes into it again, and what waits.
    pub fn resume(&mut self, told: &mut Told) {
        let path = Rc::clone(&self.path);
        for (index, tracker) in path.trackers() {
            if !tracker.is_busy() {
                continue;
            }
            let patience = tracker.patience.get();
            let resets = patience.resets + 1;
            tracker.patience.set(Patience { resets, ..patience });
            if resets > RESETS {
                // Whenever the drive has it, it has to be reset.
                let error = std::io::Error::from(std::io::ErrorKind::TimedOut);
                self.end_piece(index, Some(IoError::Os(error)), told);
            } else {
                self.shared.troubles.retries.fetch_add(1, Ordering::Relaxed);
                path.give_again(tracker);
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
        self.path.counters.returned_all();
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
        let path = &self.path;
        let mut end = |given: Given, op: Op, is_in_drive: bool| {
            path.counters.failed(op);
            if cut || !is_in_drive {
                given.fail(IoError::Offline, told);
            } else {
                given.leak(IoError::Offline, told);
            }
        };
        for (index, tracker) in path.trackers() {
            if tracker.is_busy() {
                path.release(index, tracker, tracker.id());
                if let Some(given) = tracker.whole.take() {
                    end(given, tracker.asked().0, true);
                }
            }
        }
        for (index, slot) in self.requests.iter_mut().enumerate() {
            if let Some(Request { asked, pieces, .. }) = slot.take() {
                self.free_requests.push(index as u16);
                end(asked.given, asked.op, pieces > 0);
            }
        }
        self.feeding.clear();
        (self.moving, self.parts) = (0, 0);
        self.set_plain();
    }

    /// Ends what waits here and never reached the drive.
    fn end_waiting(&mut self, told: &mut Told) {
        for asked in self.small.drain(..).chain(self.large.drain(..)) {
            self.path.counters.refused();
            asked.given.fail(IoError::Offline, told);
        }
        self.set_plain();
    }

    /// The drive is not asked any more.
    pub fn give_up(&mut self, told: &mut Told) {
        self.given_up = true;
        self.end_waiting(told);
    }

    /// Keeps what the drive has from ever being used again.
    pub fn leak(&mut self, told: &mut Told) {
        let (drive, leaked) = (self.shared.transport.name(), self.path.counters.depth());
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
        for (index, tracker) in self.path.trackers() {
            let patience = tracker.patience.get();
            let looks = if tracker.is_busy() { patience.looks.saturating_add(1) } else { 0 };
            tracker.patience.set(Patience { looks, ..patience });
            if looks >= LOOKS && late.is_none() {
                late = Some(index);
            }
        }
        let index = late.filter(|_| self.overdue.is_none())?;
        let id = self.path.tracker(index).id();
        Some((id, Overdue { index, id, ticket: None, looks: 0 }))
    }

    /// Looks after the command that was to be aborted: true when that has not helped.
    pub fn is_beyond_abort(&mut self) -> bool {
        let Some(overdue) = &mut self.overdue else { return false };
        let tracker = self.path.tracker(overdue.index);
        if !tracker.is_busy() || tracker.id() != overdue.id {
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
