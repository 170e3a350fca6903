//! From bytes on a drive to what lives on it.
//!
//! ```text
//! superblock ─► log from the active checkpoint's start (scan, by the decision table) ─► replay
//!            ─► rows of the checkpoint that the log neither removed nor replaced   ─► live records
//! ```
//!
//! The log is read first: it is bounded by the ring, and holding it lets the checkpoint, which is
//! not, stream past without a table of all its blocks. When the checkpoint in force is damaged and
//! the log still reaches back to the start of the other one, the other one gives exactly the same
//! result.

pub mod decision;
pub(crate) mod replay;
pub(crate) mod scan;

use memkv_block::{BlockQueue, IoError};
use memkv_dma::Pool;
use memkv_poller::Local;
use thiserror::Error;

use crate::allocator::Allocator;
use crate::checkpoint::read::{Area, LoadError, Reading, Source, read_area};
use crate::record::{KeyPart, Usage, View};
use crate::superblock::{COUNTER_MAX, Superblock};
pub use replay::Gather;
use replay::Replay;
use scan::{LogEnd, Scan, scan};

/// Why a drive's journal cannot be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// Neither checkpoint gives what lives on the drive.
    #[error("both checkpoints of the drive are of no use: {active}; and the other: {other}")]
    CheckpointsDamaged {
        /// What is wrong with the one in force.
        active: Unusable,
        /// What is wrong with the other.
        other: Unusable,
    },
    /// The drive failed.
    #[error("the drive failed while its journal was read")]
    Io(#[from] IoError),
}

/// Why one checkpoint does not give what lives on the drive.
#[derive(Debug, Error)]
pub enum Unusable {
    /// It cannot be read back.
    #[error("{0}")]
    Load(#[from] LoadError),
    /// The log that follows it was written over, or ends too early.
    #[error("the log after it reaches only to frame {reached}, and frame {needed} was written")]
    LogLost {
        /// Sequence the log ends before.
        reached: u64,
        /// Sequence it has to reach.
        needed: u64,
    },
}

/// What reading the journal met.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RecoveryReport {
    /// Number of the checkpoint read; 0 is the empty one of a new drive.
    pub checkpoint: u64,
    /// Rows in it.
    pub checkpoint_rows: u64,
    /// The checkpoint in force was damaged, and the other one took its place without loss.
    pub fell_back: bool,
    /// Whole frames after the checkpoint.
    pub frames: u64,
    /// Records in them.
    pub records: u64,
    /// Frames that were written and could not be read, with frames after them that could: their
    /// changes are lost, and nothing else.
    pub damaged_frames: u64,
    /// The log ends in a frame that was not written whole.
    pub torn_tail: bool,
    /// Pages of the ring the drive could not read.
    pub unreadable_pages: u64,
    /// Records dropped because later ones name the same units. Only after damage.
    pub conflicts: u64,
    /// Records dropped because they name units beyond the drive's end.
    pub out_of_range: u64,
    /// Rows of the decision table that the walk over the log met.
    pub visits: decision::Visits,
}

/// What recovery hands to whoever opens the journal.
pub(crate) struct Outcome<L> {
    pub(crate) live: L,
    /// The units of what lives are taken.
    pub(crate) units: Allocator,
    /// What they take in a checkpoint.
    pub(crate) usage: Usage,
    pub(crate) end: LogEnd,
    pub(crate) area: usize,
    /// The checkpoint that was read; none for the empty one of a new drive.
    pub(crate) read: Option<Area>,
    pub(crate) generation_high: u64,
    pub(crate) clock_high: u64,
    pub(crate) report: RecoveryReport,
}

/// By what means a drive is read.
pub(crate) struct Means<'a> {
    pub(crate) queue: &'a dyn BlockQueue,
    pub(crate) pool: &'a Pool,
    pub(crate) local: &'a Local,
    pub(crate) superblock: &'a Superblock,
}

/// Brings back what lives on the drive. A key that is damaged in the checkpoint is noticed where
/// keys are read.
pub(crate) async fn recover<K: KeyPart, L: Gather<K>>(
    means: &Means<'_>,
    reading: Reading,
) -> Result<Outcome<L>, OpenError> {
    let superblock = means.superblock;
    let active = match attempt::<K, L>(means, reading, superblock.active).await? {
        Ok(outcome) => return Ok(outcome),
        Err(unusable) => unusable,
    };
    tracing::warn!(reason = %active, "the checkpoint in force is of no use; trying the other");
    let other = match attempt::<K, L>(means, reading, 1 - superblock.active).await? {
        // The frames up to the start of the checkpoint in force were durable when it was written:
        // only a log that still holds them all leads to the same state.
        Ok(outcome) => {
            let reached = outcome.end.sequence;
            let needed = superblock.active_checkpoint().start_sequence;
            if reached >= needed && outcome.report.damaged_frames == 0 {
                let report = RecoveryReport { fell_back: true, ..outcome.report };
                return Ok(Outcome { report, ..outcome });
            }
            Unusable::LogLost { reached, needed }
        }
        Err(unusable) => unusable,
    };
    Err(OpenError::CheckpointsDamaged { active, other })
}

async fn attempt<K: KeyPart, L: Gather<K>>(
    means: &Means<'_>,
    reading: Reading,
    area: usize,
) -> Result<Result<Outcome<L>, Unusable>, IoError> {
    let superblock = means.superblock;
    let expected = superblock.checkpoints[area];
    let mut replay = Replay::<K>::new(superblock.layout.units);
    let Scan { end, report: mut met, .. } =
        scan(means, expected, |record| replay.apply(record.to_record())).await?;
    let mut replay = replay.log_done::<L>();
    let source = Source {
        queue: means.queue,
        pool: means.pool,
        local: means.local,
        layout: &superblock.layout,
        drive: superblock.identity.drive,
        area,
        expected,
    };
    let base = |record: View<'_>| replay.base(record.to_record());
    let read = match read_area(&source, reading, base).await {
        Ok(read) => read,
        Err(error) => return Ok(Err(error.into())),
    };
    let (mut generation_high, mut clock_high) = (end.generation_high, end.clock_high);
    if let Some(Area { header, .. }) = &read {
        met.checkpoint_rows = header.rows;
        generation_high = generation_high.max(header.generation_high);
        clock_high = clock_high.max(header.clock_high);
    }
    met.checkpoint = expected.number;
    met.conflicts = replay.conflicts();
    met.out_of_range = replay.out_of_range();
    let (live, sums, units) = replay.live();
    Ok(Ok(Outcome {
        live,
        units,
        usage: sums.usage,
        end,
        area,
        read,
        // No more than a superblock can say, which is more than anybody counts.
        generation_high: generation_high
            .max(superblock.generation_high)
            .max(sums.generation_high)
            .min(COUNTER_MAX),
        clock_high: clock_high.max(superblock.clock_high).min(COUNTER_MAX),
        report: met,
    }))
}
