//! The way of nearly all data: reads and writes of one command each that can go at once.
//!
//! ```text
//!   submit ─► checks ─► tracker ─► ring ─► doorbell, if the drive has nothing to do
//!   the drive's answer ─► tracker ─► who waits is woken
//! ```
//!
//! Whatever is not of this kind, or not now, is the [engine](super::engine)'s, which works by the same
//! trackers and rings. All in here are cells, so that nothing is ever borrowed and who is woken in
//! the middle of a turn may submit; each step leaves everything as the next one has to find it.

use std::cell::Cell;
use std::ptr::NonNull;
use std::sync::Arc;

use memkv_block::{Commands, Completion, Given, Io, IoBuf, Op, QueueCounters};

use super::piece::{List, Piece, SMALL, Verb, pointers};
use crate::area::Area;
use crate::command::{Command, Pointers};
use crate::controller::{Bell, Signals};
use crate::device::Shared;
use crate::ring::{Entry, Pair};
use crate::shape::{LIST, Shape};
use crate::transport::Window;

/// Answers taken in one poll.
pub(super) const PER_POLL: u32 = 64;

/// An era that no controller has.
pub(super) const NO_ERA: u32 = 0;

/// Trackers that there is room for: as many as half of an identifier can tell apart.
const ROOM: usize = 256;

/// The number of no tracker.
const NONE: u8 = u8::MAX;

/// What the identifier of a tracker without a command has besides. No answer has this bit.
const IDLE: u32 = 1 << 16;

/// Bits that no address of memory to move has: the grain of all devices is 512 bytes.
const MEMORY_MASK: u64 = 511;

/// How long a command has been tried.
#[derive(Copy, Clone, Default)]
pub(super) struct Patience {
    /// Looks that it has been in flight for.
    pub looks: u8,
    pub tries: u8,
    pub resets: u8,
    // Makes it one word, which is zeroed at once.
    pub _none: u8,
}

/// One command in flight. All of it lies in one line of the cache.
#[repr(align(64))]
pub(super) struct Tracker {
    /// That of its command: the tracker in the lower half, and how often it was used in the upper, so that a
    /// late answer is not taken for that of another. With [`IDLE`] when it has none.
    id: Cell<u32>,
    pub patience: Cell<Patience>,
    op: Cell<Op>,
    /// The next one that nobody has, if nobody has it.
    next: Cell<u8>,
    /// Whose command it is: this one's, which asks for nothing else, a read or a write.
    pub whole: Cell<Option<Given>>,
    offset: Cell<u64>,
    len: Cell<u64>,
    iova: Cell<u64>,
    /// Its own list, in the area.
    list: List,
    /// Or it is a piece of the request in this slot.
    part: Cell<u16>,
}

const _: () = assert!(size_of::<Tracker>() == 64);

impl Tracker {
    fn new(index: usize, list: List) -> Tracker {
        Tracker {
            id: Cell::new(index as u32 | IDLE),
            patience: Cell::default(),
            op: Cell::new(Op::Flush),
            next: Cell::new(NONE),
            whole: Cell::default(),
            offset: Cell::default(),
            len: Cell::default(),
            iova: Cell::default(),
            list,
            part: Cell::default(),
        }
    }

    pub fn is_busy(&self) -> bool {
        self.id.get() & IDLE == 0
    }

    /// The identifier of its command.
    pub fn id(&self) -> u16 {
        self.id.get() as u16
    }

    /// The request that its command is a piece of.
    pub fn part(&self) -> u16 {
        self.part.get()
    }

    /// What its command was asked for by, and how many bytes it moves or names.
    pub fn asked(&self) -> (Op, u64) {
        (self.op.get(), self.len.get())
    }

    fn piece(&self, shape: &Shape) -> Piece {
        let verb = Verb::of(self.op.get(), shape.trim);
        Piece { verb, offset: self.offset.get(), len: self.len.get(), iova: self.iova.get() }
    }

    /// Another identifier, for another command or for the same again.
    #[inline(always)]
    fn next_id(&self) -> u16 {
        let id = (self.id.get() as u16).wrapping_add(0x100);
        self.id.set(u32::from(id));
        id
    }
}

pub(super) struct Path {
    pub commands: Commands,
    pub signals: Arc<Signals>,
    bell: Arc<Bell>,
    /// The commands in the ring that the drive was told of are counted here, and only here.
    pub counters: Arc<QueueCounters>,
    pub id: u16,
    /// Others than the plain ones wait for what is answered.
    waiting: Cell<bool>,
    /// The era in which commands go straight to the drive; [`NO_ERA`] while they do not.
    running: Cell<u32>,
    pub shape: Shape,
    /// Reads and writes of so many bytes are neither large nor more than one command, and can go at once; 0
    /// when none can. And where on the drive each of them ends within it.
    plain: Cell<u64>,
    plain_until: Cell<u64>,
    /// Bits that no offset, no length, no plain address and no place in a buffer has: those below a block,
    /// or the grain of memory, and the highest.
    forbidden: u64,
    page_mask: u64,
    /// What the first words of reads and writes have in common.
    opcodes: [u64; 2],
    /// The pool, as the controller sees it, and where in it a plain one begins at most.
    pub window: Window,
    plain_within: usize,
    pub pair: Pair,
    /// The first tracker that nobody has, or [`NONE`].
    free: Cell<u8>,
    /// How many are in use at most.
    pub count: u16,
    /// Those behind the last that is used have no list and never a command.
    trackers: Box<[Tracker; ROOM]>,
}

impl Path {
    pub fn new(shared: &Shared, id: u16, area: &mut Area, lists_at: usize, pair: Pair) -> Path {
        let count = shared.shape.entries - 1;
        let tracker = |index: usize| {
            if index >= usize::from(count) {
                return Tracker::new(index, List { start: NonNull::dangling(), iova: 0 });
            }
            let at = lists_at + LIST * index;
            Tracker::new(index, List { start: area.at(at, LIST).cast(), iova: area.iova(at) })
        };
        let trackers: Box<[Tracker]> = (0..ROOM).map(tracker).collect();
        let path = Path {
            // What waits for its caller keeps its place.
            commands: Commands::with_capacity(2 * usize::from(count)),
            signals: Arc::clone(&shared.signals),
            bell: shared.signals.bell(id),
            counters: shared.counters.queue(usize::from(id) - 1),
            id,
            waiting: Cell::new(false),
            running: Cell::new(NO_ERA),
            shape: shared.shape,
            plain: Cell::new(0),
            plain_until: Cell::new(0),
            forbidden: ((1 << shared.shape.block_bits) - 1) | MEMORY_MASK | 1 << 63,
            page_mask: shared.shape.page - 1,
            opcodes: [Command::first_of_reads, Command::first_of_writes]
                .map(|first| first(shared.shape.namespace)),
            window: shared.window,
            plain_within: shared.window.len.saturating_sub(SMALL as usize),
            pair,
            free: Cell::new(NONE),
            count,
            trackers: trackers.try_into().ok().expect("as many as there is room for"),
        };
        for index in (0..count as u8).rev() {
            path.release(index, path.tracker(index), index.into());
        }
        path
    }

    /// Takes a request, which nobody has checked, if its bytes lie in one page, if it is of the plain kind,
    /// and if all is well with it.
    #[inline(always)]
    pub fn take_short(&self, io: &mut Io) -> Option<Completion> {
        self.take::<false>(io)
    }

    /// The same of one of any length. For itself, so that a short one has nothing to keep over a call.
    #[inline(never)]
    pub fn take_long(&self, io: &mut Io) -> Option<Completion> {
        self.take::<true>(io)
    }

    /// Takes a request, which nobody has checked, if it is of the plain kind and all is well with it: one
    /// command, which can go at once. Its bytes lie in one page, or else it is `LONG`.
    #[inline(always)]
    fn take<const LONG: bool>(&self, io: &mut Io) -> Option<Completion> {
        let Io { op, offset, len, ref buf, buf_at } = *io;
        let (memory, room) = match (op, buf) {
            (Op::Read | Op::Write, Some(IoBuf::Exclusive(buf))) => (buf.as_ptr(), buf.len()),
            (Op::Write, Some(IoBuf::Shared(buf))) => (buf.as_ptr(), buf.len()),
            _ => return None,
        };
        let start = (memory as usize).wrapping_add(buf_at);
        // What is wrong with it is said by who looks at all of it.
        if len.wrapping_sub(1) >= self.plain.get() || offset > self.plain_until.get() {
            return None;
        }
        // Of the sum nothing is lost: where `buf_at` is as large as that it has a bit that it may not have.
        if buf_at.wrapping_add(len as usize) > room
            || (offset | len | start as u64 | buf_at as u64) & self.forbidden != 0
        {
            return None;
        }
        // Where the controller sees it, in one of its pages.
        let at = start.wrapping_sub(self.window.base);
        if at > self.plain_within {
            return None;
        }
        let iova = self.window.iova + at as u64;
        let long = iova ^ (iova + len - 1) > self.page_mask;
        if long != LONG || self.free.get() == NONE {
            return None;
        }
        // The buffer is in the table before the drive can be told of the command.
        let (given, completion) = self.commands.vacancy()?.give(&mut io.buf);
        let tracker = self.tracker(self.free.get());
        self.free.set(tracker.next.get());
        tracker.whole.set(Some(given));
        tracker.offset.set(offset);
        tracker.len.set(len);
        tracker.iova.set(iova);
        tracker.op.set(op);
        tracker.patience.set(Patience::default());
        let command = Command::plain(
            self.opcodes[op as usize & 1],
            offset >> self.shape.block_bits,
            (len >> self.shape.block_bits) as u32,
            if LONG {
                // SAFETY: as in `give`.
                unsafe { pointers(iova, len, self.shape.page, tracker.list) }
            } else {
                Pointers(iova, 0)
            },
        );
        self.pair.push(&command.with_id(tracker.next_id()));
        let before = self.counters.depth();
        if before == 0 {
            // The drive has nothing to do: not to be left so until the end of the pass.
            self.send(before, self.running.get());
        }
        Some(completion)
    }

    /// Says again what is plain, and whether others wait, after anything that it depends on has changed.
    pub fn set_plain(&self, may: bool, waiting: bool) {
        let plain = self.shape.transfer.min(SMALL);
        let until = self.shape.capacity.checked_sub(plain);
        let may = may && self.running.get() != NO_ERA && self.window.len as u64 >= SMALL;
        // Of a drive or a pool that is smaller than one of them none is.
        let (plain, until) = until.filter(|_| may).map_or((0, 0), |at| (plain, at));
        self.plain.set(plain);
        self.plain_until.set(until);
        self.waiting.set(waiting);
    }

    #[inline(always)]
    pub fn running(&self) -> u32 {
        self.running.get()
    }

    /// To be followed by saying what is [plain](Path::set_plain).
    pub fn set_running(&self, era: u32) {
        self.running.set(era);
    }

    /// The tracker of this number, which may be any.
    #[inline(always)]
    pub fn tracker(&self, index: u8) -> &Tracker {
        &self.trackers[usize::from(index)]
    }

    /// All that are ever used, with their numbers.
    pub fn trackers(&self) -> impl Iterator<Item = (u8, &Tracker)> {
        (0..=u8::MAX).zip(self.trackers.iter()).take(self.count.into())
    }

    /// A tracker that nobody has.
    pub fn claim(&self) -> Option<u8> {
        let free = self.free.get();
        if free == NONE {
            return None;
        }
        self.free.set(self.tracker(free).next.get());
        Some(free)
    }

    /// Whether there is a tracker that nobody has.
    pub fn has_free(&self) -> bool {
        self.free.get() != NONE
    }

    /// How many have a command.
    pub fn busy_count(&self) -> usize {
        if self.running.get() == NO_ERA {
            return self.trackers().filter(|(_, tracker)| tracker.is_busy()).count();
        }
        // While commands go straight to the drive they are in the ring, and the drive was told or is to be.
        self.counters.depth() as usize + usize::from(self.pair.unrung())
    }

    /// Its command was answered or given up.
    #[inline(always)]
    pub fn release(&self, index: u8, tracker: &Tracker, id: u16) {
        tracker.id.set(u32::from(id) + IDLE);
        tracker.next.set(self.free.replace(index));
    }

    /// Gives a command for a piece of the request in a slot, by a tracker that was claimed. The ring has
    /// room: there are fewer trackers than entries.
    pub fn begin(&self, tracker: &Tracker, piece: Piece, part: u16) {
        tracker.offset.set(piece.offset);
        tracker.len.set(piece.len);
        tracker.iova.set(piece.iova);
        tracker.op.set(piece.verb.op());
        tracker.patience.set(Patience::default());
        tracker.part.set(part);
        self.give(tracker);
    }

    /// Gives the command of a tracker.
    fn give(&self, tracker: &Tracker) {
        let id = tracker.next_id();
        // SAFETY: the list is this tracker's own, 4 KiB of the area. Its last command was answered, or
        // is of an earlier life of the controller, which has been disabled since: nobody reads it.
        let command = unsafe { tracker.piece(&self.shape).command(&self.shape, tracker.list) };
        self.pair.push(&command.with_id(id));
    }

    /// Gives the command of a tracker again.
    pub fn give_again(&self, tracker: &Tracker) {
        tracker.patience.set(Patience { looks: 0, ..tracker.patience.get() });
        self.give(tracker);
    }

    /// Tells the drive of what was written, which is something, unless it does not know this queue any more:
    /// that was made in `era`. Says how many commands that were.
    #[inline(always)]
    fn send(&self, before: u64, era: u32) -> u32 {
        let mut sent = 0;
        if self.signals.ring(&self.bell, era, || sent = self.pair.ring()) {
            self.counters.handed_over(sent.into(), before);
        }
        sent.into()
    }

    /// Tells the drive which of its answers were taken.
    pub fn acknowledge_in(&self, era: u32) {
        // In another era the queue is made anew, and nothing of it counts.
        self.signals.ring(&self.bell, era, || self.pair.acknowledge());
    }

    /// Tells the drive of what was written, if anything was.
    #[inline(always)]
    pub fn send_new(&self, era: u32) -> u32 {
        if self.pair.is_rung() { 0 } else { self.send(self.counters.depth(), era) }
    }

    /// Takes an answer, if it is that to a plain command and all went well. The drive was told of some.
    #[inline(always)]
    pub fn is_done(&self, entry: Entry) -> bool {
        let index = entry.id() as u8;
        let tracker = self.tracker(index);
        if !entry.is_plain_success_of(tracker.id.get()) || entry.queue != self.id {
            return false;
        }
        let Some(given) = tracker.whole.take() else { return false };
        let (op, len) = tracker.asked();
        self.release(index, tracker, entry.id());
        self.counters.answered(op, len);
        given.end_now();
        true
    }

    /// After some answers: whether others wait for them.
    #[inline(always)]
    pub fn settle(&self) -> bool {
        if self.pair.owes() {
            self.acknowledge_in(self.running.get());
        }
        self.waiting.get()
    }
}
