//! One drive's journal, open: appends, checkpoints and the unit allocator.
//!
//! ```text
//! append ─► calls waiting ─► frame being written ─► answered, in order ─► Applied dropped
//!           └── the commit task: one write in flight; all who wait meanwhile ride in the next ──┘
//! ```
//!
//! Everything runs on the reactor that opened the journal. The commit task lives only while there
//! is something to write.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use memkv_block::{BlockQueue, IoError};
use memkv_dma::{Class, DmaBuf, Pool};
use memkv_poller::Local;
use memkv_poller::local::{Event, Semaphore};
use memkv_poller::spare::Row;
use thiserror::Error;

use crate::allocator::{Allocator, MarkError};
use crate::append::{Append, Slot, Ticket};
use crate::checkpoint::read::{Area, Reading};
use crate::checkpoint::walk::History;
use crate::commit;
use crate::flush::{self, Flushes};
use crate::ids::{DriveUuid, UNIT, UnitRange};
use crate::layout::Layout;
use crate::log::{Bounds, Log, Mark, Refusal};
use crate::membership::Membership;
use crate::quorum::write_superblock;
use crate::record::{KeyLen, Record};
use crate::recovery::{Gather, Means, OpenError, Outcome, RecoveryReport, recover};
use crate::superblock::{STARTS_MAX, Start, Superblock};
use crate::trim::Trim;

/// Why the journal did not do what it was asked.
#[derive(Clone, Debug, Error)]
pub enum JournalError {
    /// The drive failed, now or earlier; the journal takes nothing more. Whether records under way
    /// are on the drive is known only after it is opened again.
    #[error("the drive failed and its journal is offline")]
    Failed(#[source] Arc<IoError>),
    /// The ring is full up to the start of the last checkpoint. Write one, and try again.
    #[error("the journal ring is full until the next checkpoint")]
    RingFull,
    /// The checkpoint could not hold the live records and these.
    #[error("the drive remembers as many blocks as it was formatted for")]
    CheckpointFull,
    /// The records of one call do not fit one frame.
    #[error("{bytes} bytes of records do not fit a frame, which holds {limit}")]
    TooLarge {
        /// Bytes of the records.
        bytes: usize,
        /// Bytes a frame holds.
        limit: usize,
    },
    /// Another checkpoint is being written.
    #[error("a checkpoint is being written already")]
    CheckpointRunning,
}

/// What is found on a drive when its journal is opened.
#[derive(Clone, PartialEq, Debug)]
pub struct Recovered<L = Vec<Record<KeyLen>>> {
    /// What lives: Puts, Heads and Parts, never a Remove. No two name the same unit, and all are on
    /// the drive. Their units are taken; whoever does not keep one [disowns](Journal::disown) them.
    /// Keys stay on the drive.
    pub live: L,
    /// The journal was closed in order over verified blocks, and nothing was appended since.
    pub clean: bool,
    /// No generation above this one was recorded. After an unclean start generations above it may
    /// have been given out all the same.
    pub generation_high: u64,
    /// Latest unix second the drive knows.
    pub clock_high: u64,
    /// What reading met.
    pub report: RecoveryReport,
}

impl<L> Recovered<L> {
    /// The same, with something else made of what lives.
    pub fn map<M>(self, make: impl FnOnce(L) -> M) -> Recovered<M> {
        let Recovered { live, clean, generation_high, clock_high, report } = self;
        Recovered { live: make(live), clean, generation_high, clock_high, report }
    }
}

/// Where a checkpoint begins; from [`Journal::begin_checkpoint`].
#[derive(Debug)]
#[must_use = "take the snapshot, then write the checkpoint"]
pub struct CheckpointStart {
    pub(crate) start: Mark,
    /// Where the last frame that was written then ends.
    pub(crate) written: Mark,
}

impl CheckpointStart {
    /// Sequence of the first frame the checkpoint does not answer for.
    pub fn sequence(&self) -> u64 {
        self.start.sequence
    }
}

/// Counters since the journal was opened, and levels.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct JournalStats {
    /// Calls of append that were durable.
    pub appends: u64,
    /// Records in them.
    pub records: u64,
    /// Frames written, fillers included.
    pub frames: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Calls of append that were refused for want of room.
    pub refused: u64,
    /// Checkpoints completed.
    pub checkpoints: u64,
    /// Bytes of them.
    pub checkpoint_bytes: u64,
    /// Flushes done for calls of [`Journal::flush`] and [`Journal::append_durable`].
    pub flushes: u64,
    /// Those calls, as far as they came to be flushed: many share one.
    pub flush_calls: u64,
    /// Ring bytes from the last checkpoint's start to the head.
    pub ring_used: u64,
    /// Ring bytes in all.
    pub ring_bytes: u64,
    /// Upper bound of the rows the next checkpoint takes.
    pub rows: u64,
    /// Rows a checkpoint can hold.
    pub rows_max: u64,
    /// Upper bound of the key bytes the next checkpoint takes.
    pub key_bytes: u64,
    /// Key bytes a checkpoint can hold.
    pub key_bytes_max: u64,
}

/// What the commit task and all guards share with the journal.
pub(crate) struct Shared {
    pub(crate) queue: Rc<dyn BlockQueue>,
    pub(crate) local: Local,
    pub(crate) pool: Pool,
    pub(crate) layout: Layout,
    pub(crate) drive: DriveUuid,
    pub(crate) epoch: Cell<u64>,
    pub(crate) incarnation: u64,
    pub(crate) log: RefCell<Log<Ticket>>,
    /// The one buffer frames are built in; away while one is written.
    pub(crate) frame: RefCell<Option<DmaBuf>>,
    pub(crate) committing: Cell<bool>,
    /// Where the last frame that is written ends: what comes next may be on its way.
    pub(crate) written: Cell<Mark>,
    pub(crate) flushes: Flushes,
    pub(crate) failure: RefCell<Option<Arc<IoError>>>,
    pub(crate) stats: Cell<JournalStats>,
    pub(crate) clock_high: Cell<u64>,
    pub(crate) allocator: RefCell<Allocator>,
    pub(crate) trim: RefCell<Trim>,
    /// Told when the device has answered a command of the trimmer.
    pub(crate) trimmed: Event,
    pub(crate) superblock: RefCell<Superblock>,
    /// Whose turn it is to write the superblock: each names what the one before it did.
    superblock_turn: Semaphore,
    pub(crate) checkpointing: Cell<bool>,
    /// Nobody needs another checkpoint.
    pub(crate) given_up: Cell<bool>,
    /// The checkpoint in force; none is the empty one of a new drive.
    pub(crate) area: RefCell<Option<Rc<Area>>>,
    /// Where the checkpoints before it went.
    pub(crate) history: RefCell<History>,
}

impl Shared {
    pub(crate) fn applied(&self, sequence: u64) {
        self.log.borrow_mut().applied(sequence);
    }

    pub(crate) fn count(&self, change: impl FnOnce(&mut JournalStats)) {
        let mut stats = self.stats.get();
        change(&mut stats);
        self.stats.set(stats);
    }

    /// Remembers the first failure; the journal is offline from here on.
    pub(crate) fn fail(&self, error: IoError) -> JournalError {
        let mut failure = self.failure.borrow_mut();
        let first = failure.get_or_insert_with(|| {
            tracing::error!(drive = %self.drive, %error, "drive failed, its journal is offline");
            Arc::new(error)
        });
        JournalError::Failed(Arc::clone(first))
    }

    pub(crate) fn check_failed(&self) -> Result<(), JournalError> {
        match &*self.failure.borrow() {
            Some(error) => Err(JournalError::Failed(Arc::clone(error))),
            None => Ok(()),
        }
    }

    /// The later of the clock and what the drive knew: time never runs backwards on a drive.
    pub(crate) fn clock(&self) -> u64 {
        let clock = self.clock_high.get().max(self.local.unix_seconds());
        self.clock_high.set(clock);
        clock
    }
}

/// The journal of one drive; see the [crate's introduction](crate).
pub struct Journal {
    pub(crate) shared: Rc<Shared>,
}

/// Opens a drive's journal: reads the checkpoint and the log after it, then, before anything can be
/// appended, raises the incarnation and clears `clean` in the superblock. Big logs and checkpoints
/// are read piece by piece; other tasks run in between.
pub async fn open<L: Gather>(
    queue: Rc<dyn BlockQueue>,
    local: &Local,
    pool: Pool,
    superblock: Superblock,
) -> Result<(Rc<Journal>, Recovered<L>), OpenError> {
    let means = Means { queue: &*queue, pool: &pool, local, superblock: &superblock };
    let outcome = recover::<KeyLen, L>(&means, Reading::WithoutKeys).await?;
    let active = superblock.checkpoints[outcome.area];
    let head = Mark { sequence: outcome.end.sequence, position: outcome.end.position };
    let clean = superblock.clean
        && outcome.report.frames == 0
        && outcome.report.damaged_frames == 0
        && !outcome.report.torn_tail
        && !outcome.report.fell_back;

    let superblock = started(superblock, &outcome, head.sequence);
    write_superblock(&*queue, &pool, &superblock).await?;

    let layout = superblock.layout;
    let bounds = Bounds {
        ring_bytes: layout.ring_bytes,
        frame_max: layout.frame_max as usize,
        limits: layout.limits,
    };
    let mut log = Log::new(bounds, active, head, outcome.usage);
    log.raise_generation(outcome.generation_high);
    let mut frame = pool.allocate_wait(Class::Checkpoint, layout.frame_max as usize).await;
    frame.charge(Class::Drive);
    let shared = Rc::new(Shared {
        queue: Rc::clone(&queue),
        local: local.clone(),
        pool,
        layout,
        drive: superblock.identity.drive,
        epoch: Cell::new(superblock.identity.epoch),
        incarnation: superblock.incarnation,
        log: RefCell::new(log),
        frame: RefCell::new(Some(frame)),
        committing: Cell::new(false),
        written: Cell::new(head),
        flushes: Flushes::default(),
        failure: RefCell::new(None),
        stats: Cell::new(JournalStats::default()),
        clock_high: Cell::new(outcome.clock_high),
        allocator: RefCell::new(outcome.units),
        trim: RefCell::default(),
        trimmed: Event::new(),
        superblock: RefCell::new(superblock),
        superblock_turn: Semaphore::new(1),
        checkpointing: Cell::new(false),
        given_up: Cell::new(false),
        area: RefCell::new(outcome.read.map(Rc::new)),
        history: RefCell::default(),
    });
    let recovered = Recovered {
        live: outcome.live,
        clean,
        generation_high: outcome.generation_high,
        clock_high: outcome.clock_high,
        report: outcome.report,
    };
    tracing::info!(drive = %shared.drive, clean, report = ?recovered.report, "journal opened");
    Ok((Rc::new(Journal { shared }), recovered))
}

/// The superblock of a journal that has just started: the next incarnation, owner of every frame
/// from `first_sequence` on.
fn started<L>(mut superblock: Superblock, outcome: &Outcome<L>, first_sequence: u64) -> Superblock {
    superblock.revision += 1;
    superblock.incarnation += 1;
    superblock.clean = false;
    superblock.active = outcome.area;
    superblock.generation_high = outcome.generation_high;
    superblock.clock_high = outcome.clock_high;
    let starts = &mut superblock.starts;
    // Frames that later starts had claimed are gone, or were never written.
    starts.retain(|start| start.first_sequence < first_sequence);
    if starts.len() == STARTS_MAX {
        starts.remove(0);
    }
    starts.push(Start { incarnation: superblock.incarnation, first_sequence });
    superblock
}

impl Journal {
    /// The superblock as it is on the drive.
    pub fn superblock(&self) -> Superblock {
        self.shared.superblock.borrow().clone()
    }

    /// The drive.
    pub fn drive(&self) -> DriveUuid {
        self.shared.drive
    }

    /// Commands of the journal's that the drive has not answered.
    pub fn outstanding(&self) -> usize {
        self.shared.queue.outstanding()
    }

    /// Commands of the journal's that have ended.
    pub fn completed(&self) -> u64 {
        self.shared.queue.completed()
    }

    /// Byte offset of a unit from the start of the drive.
    pub fn data_offset(&self, unit: u32) -> u64 {
        assert!(unit < self.shared.layout.units, "unit {unit} is not on the drive");
        self.shared.layout.data_offset + u64::from(unit) * UNIT as u64
    }

    /// Takes `units` contiguous units, 1 to 256, or `None` when no run is that long. Nothing is
    /// recorded: the units are the caller's until it releases them.
    pub fn allocate(&self, units: u16) -> Option<UnitRange> {
        let range = self.shared.allocator.borrow_mut().allocate(units)?;
        self.shared.trim.borrow_mut().allocated(range);
        Some(range)
    }

    /// Gives units back, once no durable record names them and nobody reads them: the device may be
    /// told that they are empty. Panics when one of them is free already.
    pub fn release(&self, range: UnitRange) {
        self.shared.allocator.borrow_mut().release(range);
        self.shared.trim.borrow_mut().freed(range, &self.shared.local);
    }

    /// Gives back the units of a recovered record that is not kept. Nobody has read or written them
    /// in this run, and the device is not told: the record is there until it is removed.
    pub fn disown(&self, range: UnitRange) {
        self.shared.allocator.borrow_mut().release(range);
    }

    /// Takes units of a recovered record that were disowned.
    pub fn mark(&self, range: UnitRange) -> Result<(), MarkError> {
        self.shared.allocator.borrow_mut().mark(range)
    }

    /// Units that are free, those withheld for a moment while they are trimmed included.
    pub fn free_units(&self) -> u32 {
        self.shared.allocator.borrow().free_units() + self.shared.trim.borrow().in_flight()
    }

    /// Units of the drive.
    pub fn total_units(&self) -> u32 {
        self.shared.layout.units
    }

    /// Whether a put may begin: the ring and the next checkpoint have room for it and for those
    /// under way. When not, it is to be answered `Busy`, and a checkpoint is due.
    pub fn room_for_put(&self) -> bool {
        !self.failed() && self.shared.log.borrow().room_for_put()
    }

    /// Most bytes the records of one call may have ([`Record::encoded_len`]).
    pub fn append_max(&self) -> usize {
        self.shared.layout.frame_max as usize - crate::frame::FRAME_HEADER
    }

    /// Appends records, all or none: they ride in one frame. They are on their way when this
    /// returns, whatever becomes of the future; it resolves when they are written, in the order of
    /// the calls.
    ///
    /// # Panics
    /// When there is no record, or one that could not be read back.
    pub fn append(&self, records: impl Into<Row<Record>>) -> Append {
        self.ask(records.into(), false)
    }

    /// Appends records like [`Journal::append`], and flushes: it resolves when they survive a power
    /// cut. Where nothing else is to be flushed, frame and flush are one command of the drive, which
    /// holds up the frames of calls that do not wait for a flush.
    ///
    /// # Panics
    /// As [`Journal::append`] does.
    pub fn append_durable(&self, records: impl Into<Row<Record>>) -> Append {
        self.ask(records.into(), true)
    }

    fn ask(&self, records: Row<Record>, durable: bool) -> Append {
        assert!(!records.is_empty(), "an append has a record");
        for record in &records {
            assert!(record.check().is_ok(), "a record that cannot be read back: {record:?}");
            let end = record.extent().map_or(0, UnitRange::end);
            assert!(end <= u64::from(self.shared.layout.units), "{record:?} is beyond the drive");
        }
        let shared = &self.shared;
        if let Err(error) = shared.check_failed() {
            return Append::refused(Rc::clone(shared), error);
        }
        let slot = Slot::new(durable);
        let admitted = shared.log.borrow_mut().admit(records, slot.clone());
        if let Err((refusal, _)) = admitted {
            shared.count(|stats| stats.refused += 1);
            return Append::refused(Rc::clone(shared), refusal.into());
        }
        if !shared.committing.replace(true) {
            shared.local.spawn(commit::run(Rc::clone(shared)));
        }
        Append::new(Rc::clone(shared), slot)
    }

    /// Whether a checkpoint is due, for the ring, the columns, or the list of starts.
    pub fn wants_checkpoint(&self) -> bool {
        let many_starts = self.shared.superblock.borrow().starts.len() > STARTS_MAX * 3 / 4;
        !self.failed() && (many_starts || self.shared.log.borrow().wants_checkpoint())
    }

    /// Names another membership in the superblock, durably, and that no generation above
    /// `generation_high` was given out before: what lies on a drive that is lost cannot tell any
    /// more.
    ///
    /// # Panics
    /// When this drive is no member, or knows a later epoch.
    pub async fn set_membership(
        &self,
        membership: &Membership,
        generation_high: u64,
    ) -> Result<(), JournalError> {
        let shared = &*self.shared;
        shared.check_failed()?;
        shared.log.borrow_mut().raise_generation(generation_high);
        let next = || {
            let mut next = shared.superblock.borrow().clone();
            membership.enter(&mut next);
            next.revision += 1;
            next.generation_high = shared.log.borrow().generation_high();
            next
        };
        self.write_superblock(next).await?;
        shared.epoch.set(membership.epoch);
        Ok(())
    }

    /// Writes the superblock that `next` makes of the present one, when its turn has come.
    pub(crate) async fn write_superblock(
        &self,
        next: impl FnOnce() -> Superblock,
    ) -> Result<(), JournalError> {
        let shared = &*self.shared;
        let _turn = shared.superblock_turn.acquire(1).await;
        shared.check_failed()?;
        let next = next();
        let written = write_superblock(&*shared.queue, &shared.pool, &next).await;
        written.map_err(|error| shared.fail(error))?;
        *shared.superblock.borrow_mut() = next;
        Ok(())
    }

    /// Makes every append that has resolved, and every write to the drive that has completed, by
    /// whatever queue, survive a power cut. The flush is asked for when this returns, whatever
    /// becomes of the future; all who wait at one time share one.
    ///
    /// # Errors
    /// [`JournalError::Failed`]: nothing is known of what was not flushed before.
    pub fn flush(&self) -> impl Future<Output = Result<(), JournalError>> + use<> {
        flush::ask(&self.shared)
    }

    /// Whether the drive failed; then every append fails, and only reading is left.
    pub fn failed(&self) -> bool {
        self.shared.failure.borrow().is_some()
    }

    /// The drive is out for good: a checkpoint that waits for memory waits no longer.
    pub fn give_up(&self) {
        self.shared.given_up.set(true);
    }

    /// Counters and levels.
    pub fn stats(&self) -> JournalStats {
        let (log, limits) = (self.shared.log.borrow(), self.shared.layout.limits);
        JournalStats {
            ring_used: log.used(),
            ring_bytes: self.shared.layout.ring_bytes,
            rows: log.usage().rows,
            rows_max: limits.rows,
            key_bytes: log.usage().key_bytes,
            key_bytes_max: limits.key_bytes,
            ..self.shared.stats.get()
        }
    }

    /// Sequence the next frame gets.
    pub fn next_sequence(&self) -> u64 {
        self.shared.log.borrow().next_sequence()
    }
}

impl From<Refusal> for JournalError {
    fn from(refusal: Refusal) -> JournalError {
        match refusal {
            Refusal::RingFull => JournalError::RingFull,
            Refusal::CheckpointFull => JournalError::CheckpointFull,
            Refusal::TooLarge { bytes, limit } => JournalError::TooLarge { bytes, limit },
        }
    }
}

/// Answers one call. A call nobody waits for any more counts as applied.
pub(crate) fn answer(shared: &Shared, slot: &Slot, outcome: Result<u64, JournalError>) {
    if let Some(Ok(sequence)) = slot.complete(outcome) {
        shared.applied(sequence);
    }
}

impl std::fmt::Debug for Journal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Journal").field("drive", &self.shared.drive).finish_non_exhaustive()
    }
}
