//! Making a checkpoint, step by step.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use memkv_block::IoError;
use memkv_dma::Class;
use memkv_poller::timeout;

use crate::checkpoint::codec::{AreaHeader, PIECE};
use crate::checkpoint::desk::Desk;
use crate::checkpoint::merge::{Living, MergeError, Merged, Moves, Sources};
use crate::checkpoint::read::{Area, Line, READING, Source};
use crate::checkpoint::write::{AreaWriter, PushError, Target, WRITING};
use crate::journal::{CheckpointStart, Journal, JournalError, Shared};
use crate::log::Mark;
use crate::record::{Record, View};
use crate::recovery::Means;
use crate::superblock::{CheckpointRef, Superblock};

/// How long a checkpoint waits for memory at a time.
const PATIENCE: Duration = Duration::from_millis(200);

/// What a checkpoint says beside what lives.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Closing {
    /// It is the last word of an orderly stop, and every block is verified.
    pub clean: bool,
    /// No generation above this one was given out.
    pub generation_high: u64,
    /// Latest unix second known.
    pub clock_high: u64,
}

/// Lowers the flag again however the checkpoint ends.
struct Running<'a>(&'a Cell<bool>);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

/// Where the rows of a checkpoint come from.
enum Content<'a> {
    /// They are at hand.
    Records(&'a [Record]),
    /// From the checkpoint before and the log since.
    Merge(&'a mut dyn Living),
}

impl Journal {
    /// Begins a checkpoint: everything dropped as [`Applied`](crate::Applied) before is in the
    /// index; the log is kept from the oldest frame that is not.
    pub fn begin_checkpoint(&self) -> CheckpointStart {
        assert!(!self.shared.checkpointing.get(), "one checkpoint at a time");
        let start = self.shared.log.borrow_mut().begin_checkpoint();
        CheckpointStart { start, written: self.shared.written.get() }
    }

    /// Writes a checkpoint of the records that `living` says stand, out of the checkpoint in force
    /// and the log since. `living` is asked bit by bit and answers for the moment: a block may go
    /// after its record was written, for the removal comes into the log after the start.
    ///
    /// 1. Columns and header into the area that is not in force; a crash leaves the other one
    ///    alone.
    /// 2. Flush: the area, and every frame before, are durable before anything names it.
    /// 3. The superblock, by quorum, with a flush of its own: from here on the new one is in force.
    /// 4. The ring before the start is free. Not before step 3: until then a crash needs it.
    ///
    /// # Errors
    /// [`JournalError`]; the checkpoint in force stays what it was.
    pub async fn merge_checkpoint(
        &self,
        start: CheckpointStart,
        living: &mut dyn Living,
        closing: Closing,
    ) -> Result<Merged, JournalError> {
        self.make_checkpoint(start, Content::Merge(living), closing).await
    }

    /// Writes a checkpoint of these records, for whoever has them all at hand: what lives as the
    /// index showed it at some moment after [`begin_checkpoint`](Journal::begin_checkpoint). The
    /// steps are those of [`merge_checkpoint`](Journal::merge_checkpoint).
    ///
    /// # Errors
    /// Likewise.
    pub async fn write_checkpoint(
        &self,
        start: CheckpointStart,
        records: Vec<Record>,
        clean: bool,
        generation_high: u64,
        clock_high: u64,
    ) -> Result<(), JournalError> {
        let closing = Closing { clean, generation_high, clock_high };
        self.make_checkpoint(start, Content::Records(&records), closing).await.map(drop)
    }

    async fn make_checkpoint(
        &self,
        start: CheckpointStart,
        content: Content<'_>,
        closing: Closing,
    ) -> Result<Merged, JournalError> {
        let shared = &*self.shared;
        shared.check_failed()?;
        if shared.checkpointing.replace(true) {
            return Err(JournalError::CheckpointRunning);
        }
        let _running = Running(&shared.checkpointing);
        let CheckpointStart { start: mark, written } = start;
        shared.log.borrow_mut().raise_generation(closing.generation_high);
        shared.clock_high.set(shared.clock_high.get().max(closing.clock_high));
        let next = self.next_superblock(mark, closing.clean);
        let (queue, layout) = (&*shared.queue, &shared.layout);
        let target =
            Target { queue, local: &shared.local, layout, area: next.active, base: READING };
        let header = self.header(&next, mark);
        // 1.
        let mut writer = AreaWriter::new(&target, header);
        let mut desk = self.desk().await?;
        let filled = match content {
            Content::Records(records) => {
                write_all(&mut desk, &mut writer, records).await.map(|()| <_>::default())
            }
            Content::Merge(living) => {
                self.merge(&mut desk, &mut writer, living, (mark, written)).await
            }
        };
        let before = self.superblock().active_checkpoint();
        let (merged, moves) = filled.map_err(|error| match error {
            MergeError::Push(PushError::Full) => JournalError::CheckpointFull,
            MergeError::Io(error) | MergeError::Push(PushError::Io(error)) => shared.fail(error),
        })?;
        let usage = writer.usage;
        let (area, bytes) = writer.finish(&mut desk).await.map_err(|error| shared.fail(error))?;
        drop(desk);
        // 2.
        memkv_block::flush(queue).await.map_err(|error| shared.fail(error))?;
        shared.check_failed()?;
        // 3. Made anew: the membership may have changed meanwhile, where the checkpoints lie has
        // not.
        let next = || {
            let next = self.next_superblock(mark, closing.clean);
            assert_eq!(next.active, area.index, "only a checkpoint moves the one in force");
            next
        };
        self.write_superblock(next).await?;
        // 4.
        *shared.area.borrow_mut() = Some(Rc::new(area));
        let now = shared.superblock.borrow().active_checkpoint();
        shared.history.borrow_mut().push(before, now, moves);
        shared.log.borrow_mut().end_checkpoint(mark, usage);
        shared.count(|stats| {
            stats.checkpoints += 1;
            stats.checkpoint_bytes += bytes;
        });
        Ok(merged)
    }

    /// Memory to make a checkpoint with.
    ///
    /// Every pool keeps so much for its class, which comes by it whatever other classes do, for what
    /// the commands of drives have is not of the class (`drivers/dma/src/ledger.rs`). What else the
    /// class has comes back: it is memory of those who ask for it once and wait for nothing more of
    /// the class before they give it back, and if their drive stalls they fail. So every checkpoint
    /// has its turn, how many drives ever stalled, as long as what these keep leaves the pool its
    /// reserves, and six runs.
    ///
    /// Should they keep more, or a run be long in coming: who waits for runs keeps others from most
    /// of the pool meanwhile, so the wait is cut into pieces, and others have the pool between them.
    async fn desk(&self) -> Result<Desk, JournalError> {
        let Shared { local, pool, .. } = &*self.shared;
        loop {
            let desk = Desk::new(pool, Class::Checkpoint, READING + WRITING, PIECE);
            if let Ok(desk) = timeout(local, local.now() + PATIENCE, desk).await {
                return Ok(desk);
            }
            local.sleep(PATIENCE).await;
            self.shared.check_failed()?;
            if self.shared.given_up.get() {
                return Err(self.shared.fail(IoError::Offline));
            }
        }
    }

    fn header(&self, next: &Superblock, start: Mark) -> AreaHeader {
        AreaHeader {
            drive: self.shared.drive,
            number: next.checkpoints[next.active].number,
            start_sequence: start.sequence,
            start_position: start.position,
            rows: 0,
            pieces: [0; 3],
            last_used: [0; 3],
            generation_high: next.generation_high,
            clock_high: next.clock_high,
            epoch: self.shared.epoch.get(),
        }
    }

    async fn merge(
        &self,
        desk: &mut Desk,
        writer: &mut AreaWriter<'_>,
        living: &mut dyn Living,
        (start, written): (Mark, Mark),
    ) -> Result<(Merged, Moves), MergeError> {
        let shared = &*self.shared;
        let superblock = self.superblock();
        let area = shared.area.borrow().clone();
        let log = shared.means(&superblock);
        let area = area.as_deref().map(|area| (area, shared.source(&superblock, area)));
        let sources = Sources { area, log, start, written };
        sources.merge(desk, writer, living).await
    }

    /// The superblock that puts a checkpoint starting at `start` in force.
    fn next_superblock(&self, start: Mark, clean: bool) -> Superblock {
        let mut next = self.shared.superblock.borrow().clone();
        let number = next.checkpoints.map(|checkpoint| checkpoint.number).into_iter().max();
        next.revision += 1;
        next.active = 1 - next.active;
        next.clean = clean;
        next.checkpoints[next.active] = CheckpointRef {
            number: number.unwrap_or(0) + 1,
            start_sequence: start.sequence,
            start_position: start.position,
        };
        next.generation_high = self.shared.log.borrow().generation_high();
        next.clock_high = self.shared.clock();
        // Starts of logs that neither checkpoint needs are forgotten, but for the one in force
        // there.
        let [a, b] = next.checkpoints;
        let oldest = a.start_sequence.min(b.start_sequence);
        while next.starts.len() > 1 && next.starts[1].first_sequence <= oldest {
            next.starts.remove(0);
        }
        next
    }
}

impl Shared {
    /// By what means its log is read.
    pub(crate) fn means<'a>(&'a self, superblock: &'a Superblock) -> Means<'a> {
        Means { queue: &*self.queue, pool: &self.pool, local: &self.local, superblock }
    }

    /// And a checkpoint.
    pub(crate) fn source<'a>(&'a self, superblock: &'a Superblock, area: &Area) -> Source<'a> {
        Source {
            queue: &*self.queue,
            pool: &self.pool,
            local: &self.local,
            layout: &self.layout,
            drive: self.drive,
            area: area.index,
            expected: superblock.checkpoints[area.index],
        }
    }
}

async fn write_all(
    desk: &mut Desk,
    writer: &mut AreaWriter<'_>,
    records: &[Record],
) -> Result<(), MergeError> {
    let (mut line, mut bytes) = (Line::new(), Vec::new());
    for record in records {
        bytes.resize(record.encoded_len(), 0);
        record.encode(&mut bytes);
        let (view, _) = View::parse(&bytes).expect("a record that was encoded");
        line.set(&view);
        writer.push(desk, &line).await?;
    }
    Ok(())
}
