//! A checkpoint made of the one before it and the log since.
//!
//! ```text
//!   rows, parts, keys of the checkpoint in force ─┐   each record whose block lives,
//!   the log from its start to the new one's ──────┴─► in this order ─► the other area
//! ```
//!
//! Whoever keeps the index says of every record whether it still stands, so nobody has to hold in
//! memory what only checkpoints need: the whole keys. Nothing stops meanwhile: the index moves on,
//! and other tasks get their turn after every few records.
//!
//! The order is kept: a record that was before another in the last checkpoint, or in the log, is
//! before it in the next one. [`Moves`] tells where a walk that stood in the last one goes on.

use crate::checkpoint::codec::{AreaHeader, PIECE};
use crate::checkpoint::desk::Desk;
use crate::checkpoint::read::{Area, AreaReader, Line, LoadError, Reading, Source};
use crate::checkpoint::write::{AreaWriter, PushError};
use crate::frame::{FRAME_HEADER, FRAME_MAX};
use crate::log::Mark;
use crate::record::{Kind, View};
use crate::recovery::Means;
use crate::recovery::scan::Walk;

// The log is read a piece of memory at a time.
const _: () = assert!(FRAME_MAX <= PIECE, "a frame fits");

/// Records looked at between two yields: tens of microseconds.
const STEP: u32 = 32;

/// Places that a list of [`Moves`] keeps, about: 64 KiB, however much there is, so that no turn is
/// long because a list grows.
const MOVES: u64 = 4096;
/// Rows between two of them at least.
const MOVE_ROWS: u64 = 64;
/// And bytes of the log.
const MOVE_BYTES: u64 = 16 << 10;

/// Says what lives on a drive while a checkpoint is made.
pub trait Living {
    /// A record of the checkpoint in force, or of the log up to the start of the new one: the flags
    /// with which it stands now, or none when it is not to be written. One that is written is not
    /// to be written again, should it be met twice.
    fn stands(&mut self, record: &View<'_>) -> Option<u16>;
    /// A record of the log from the start of the new checkpoint on, as far as there was one when it
    /// began. It is not written: a start finds it in the log.
    fn stays_in_log(&mut self, record: &View<'_>);
}

/// What a merge met.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Merged {
    /// Rows taken over from the checkpoint before.
    pub from_rows: u64,
    /// Rows made of records of the log.
    pub from_log: u64,
    /// Rows of the checkpoint before that could not be read, whether or not they still stood.
    pub rows_unreadable: u64,
    /// Frames of the log that could not be read.
    pub frames_unreadable: u64,
}

/// Where rows and frames went: of some of them, the number of rows that were written before.
#[derive(Debug, Default)]
pub(crate) struct Moves {
    /// By number of the row in the checkpoint before.
    pub(crate) rows: Vec<(u64, u64)>,
    /// By position of the frame in the log.
    pub(crate) frames: Vec<(u64, u64)>,
}

impl Moves {
    /// Notes a place and the row there, unless it is nearer than `every` to the last one.
    fn note(list: &mut Vec<(u64, u64)>, every: u64, (at, row): (u64, u64)) {
        if list.last().is_none_or(|(last, _)| at - last >= every) {
            list.push((at, row));
        }
    }

    /// The row at which a walk goes on that stood before this row, or this frame.
    pub(crate) fn of(list: &[(u64, u64)], at: u64) -> u64 {
        let after = list.partition_point(|(old, _)| *old <= at);
        after.checked_sub(1).map_or(0, |place| list[place].1)
    }
}

/// From what a checkpoint is merged.
pub(crate) struct Sources<'a> {
    /// The checkpoint in force; none is the empty one of a new drive.
    pub(crate) area: Option<(&'a Area, Source<'a>)>,
    pub(crate) log: Means<'a>,
    /// Of the new checkpoint.
    pub(crate) start: Mark,
    /// Where the last frame ends that was written when it began.
    pub(crate) written: Mark,
}

/// Why a merge ends early.
pub(crate) enum MergeError {
    Push(PushError),
    Io(memkv_block::IoError),
}

impl From<PushError> for MergeError {
    fn from(error: PushError) -> MergeError {
        MergeError::Push(error)
    }
}

impl From<memkv_block::IoError> for MergeError {
    fn from(error: memkv_block::IoError) -> MergeError {
        MergeError::Io(error)
    }
}

impl Sources<'_> {
    /// Writes all that stands. The first [`READING`](crate::checkpoint::read::READING) pieces of the desk are for reading.
    pub(crate) async fn merge(
        &self,
        desk: &mut Desk,
        writer: &mut AreaWriter<'_>,
        living: &mut dyn Living,
    ) -> Result<(Merged, Moves), MergeError> {
        let (mut merged, mut moves) = (Merged::default(), Moves::default());
        self.merge_area(desk, writer, living, (&mut merged, &mut moves)).await?;
        merged.from_rows = writer.rows();
        self.merge_log(desk, writer, living, (&mut merged, &mut moves)).await?;
        merged.from_log = writer.rows() - merged.from_rows;
        Ok((merged, moves))
    }

    async fn merge_area(
        &self,
        desk: &mut Desk,
        writer: &mut AreaWriter<'_>,
        living: &mut dyn Living,
        (merged, moves): (&mut Merged, &mut Moves),
    ) -> Result<(), MergeError> {
        let Some((area, source)) = &self.area else { return Ok(()) };
        let AreaHeader { rows, .. } = area.header;
        let every = (rows / MOVES).max(MOVE_ROWS);
        let mut reader = AreaReader::new(source, area, Reading::WhatIsLeft);
        let (mut line, mut step) = (Line::new(), 0);
        loop {
            if !reader.next(desk, &mut line).await.map_err(LoadError::of_drive)? {
                break;
            }
            Moves::note(&mut moves.rows, every, (reader.at() - 1, writer.rows()));
            if let Some(flags) = living.stands(&line.view()) {
                line.row.set_flags(flags);
                writer.push(desk, &line).await?;
            }
            self.turn(&mut step).await;
        }
        merged.rows_unreadable = reader.unreadable;
        Ok(())
    }

    async fn merge_log(
        &self,
        desk: &mut Desk,
        writer: &mut AreaWriter<'_>,
        living: &mut dyn Living,
        (merged, moves): (&mut Merged, &mut Moves),
    ) -> Result<(), MergeError> {
        let superblock = self.log.superblock;
        let from = superblock.active_checkpoint();
        let mut walk = Walk::new(&self.log, from, PIECE as u64).within(self.written.position);
        let (mut line, mut step) = (Line::new(), 0);
        let bytes = self.written.position - from.start_position;
        let every = (bytes / MOVES).max(MOVE_BYTES);
        // Where the log of the checkpoint before begins, rows go on, whatever became of its frames.
        moves.frames.push((from.start_position, writer.rows()));
        while walk.end.sequence < self.written.sequence {
            let Some(header) = walk.next(desk).await? else { break };
            Moves::note(&mut moves.frames, every, (header.position, writer.rows()));
            let mut at = FRAME_HEADER;
            for _ in 0..header.records {
                let bytes = &walk.frame(desk, &header)[at..];
                let (record, len) = View::parse(bytes).expect("the body was checked");
                at += len;
                if record.kind == Kind::Remove || header.sequence >= self.written.sequence {
                    continue;
                }
                if header.sequence >= self.start.sequence {
                    living.stays_in_log(&record);
                } else if let Some(flags) = living.stands(&record) {
                    line.set(&record);
                    line.row.set_flags(flags);
                    writer.push(desk, &line).await?;
                }
                self.turn(&mut step).await;
            }
        }
        merged.frames_unreadable = walk.finish().report.damaged_frames;
        Ok(())
    }

    /// Lets others have their turn now and then.
    async fn turn(&self, step: &mut u32) {
        *step += 1;
        if step.is_multiple_of(STEP) {
            self.log.local.yield_now().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_moves_stays_short_and_tells_a_place_before_each() {
        let (end, every) = (10_000_000, 10_000_000 / MOVES);
        let mut list = Vec::new();
        (0..end).step_by(7).for_each(|at| Moves::note(&mut list, every, (at, at / 2)));
        assert!(list.len() as u64 <= MOVES + 1 && list.capacity() as u64 <= 2 * MOVES);
        for at in [0, 1, 2447, 2448, 5_000_003, end - 1, end * 2] {
            let row = Moves::of(&list, at);
            assert!(row <= at / 2, "not behind it");
            assert!(row + (every + 7) / 2 >= at.min(end) / 2, "{row} is far before {at}");
        }
    }
}
