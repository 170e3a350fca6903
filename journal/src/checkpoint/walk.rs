//! Walking over all that a drive remembers, keys and all, a bounded piece at a time.
//!
//! A walk goes through the rows of the checkpoint in force and then through the log since: the same
//! that the next checkpoint is merged from. Each record that stands is met once on the way. Between
//! two pieces checkpoints may complete; records keep their order in them, and of the last few it is
//! known where rows and frames went. So a walk goes on where it was, or a little before that: what
//! stays is never missed, and some of it may be met again. A walk that slept through more of them
//! begins again.
//!
//! A place is 55 bits: `number of the checkpoint 15 | in the log 1 | where 39`, and where is a row,
//! or a page of the log, counted from the checkpoint's start, and a record of the frame there (25
//! and 14 bits).

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::rc::Rc;
use std::sync::Arc;

use memkv_dma::Class;

use crate::checkpoint::codec::PIECE;
use crate::checkpoint::desk::Desk;
use crate::checkpoint::merge::Moves;
use crate::checkpoint::read::{Area, AreaReader, Line, LoadError, READING, Reading};
use crate::frame::{FRAME_ALIGN, FRAME_HEADER};
use crate::journal::{Journal, JournalError, Shared};
use crate::log::Mark;
use crate::record::{Kind, View};
use crate::recovery::scan::Walk;
use crate::superblock::CheckpointRef;

/// Records looked at between two yields.
const STEP: usize = 32;
/// Checkpoints whose moves are kept.
const KEPT: usize = 8;
const NUMBER_BITS: u32 = 15;
const WHERE_BITS: u32 = 39;
const RECORD_BITS: u32 = 14;

/// Bits of a place.
pub const PLACE_BITS: u32 = NUMBER_BITS + 1 + WHERE_BITS;

/// Where what one checkpoint knew is found in the next.
pub(crate) struct Moved {
    /// The one before.
    from: CheckpointRef,
    /// The one after.
    to: CheckpointRef,
    moves: Moves,
}

/// The moves of the last few checkpoints, oldest first.
#[derive(Default)]
pub(crate) struct History(VecDeque<Moved>);

impl History {
    pub(crate) fn push(&mut self, from: CheckpointRef, to: CheckpointRef, moves: Moves) {
        if self.0.len() == KEPT {
            self.0.pop_front();
        }
        self.0.push_back(Moved { from, to, moves });
    }

    /// A place as the checkpoint in force has it.
    fn resolve(&self, place: u64, now: CheckpointRef) -> Spot {
        let begin = Spot { of: now, at: At::Row(0) };
        let named =
            |of: &CheckpointRef| (place >> (WHERE_BITS + 1)) == of.number % (1 << NUMBER_BITS);
        if named(&now) {
            return Spot::parse(place, now);
        }
        let Some(since) = self.0.iter().position(|moved| named(&moved.from)) else { return begin };
        let first = Spot::parse(place, self.0[since].from);
        let last = self.0.range(since..).try_fold(first, |spot, moved| spot.moved(moved));
        last.filter(|spot| spot.of == now).unwrap_or(begin)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum At {
    /// Before this row.
    Row(u64),
    /// Before this record of the frame at a position, or before the first frame behind it.
    Frame { position: u64, record: u64 },
}

/// A place beside the checkpoint that it is told of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Spot {
    of: CheckpointRef,
    at: At,
}

impl Spot {
    fn parse(place: u64, of: CheckpointRef) -> Spot {
        let at = place & ((1 << WHERE_BITS) - 1);
        if place >> WHERE_BITS & 1 == 0 {
            return Spot { of, at: At::Row(at) };
        }
        let position = of.start_position + (at >> RECORD_BITS) * FRAME_ALIGN as u64;
        Spot { of, at: At::Frame { position, record: at & ((1 << RECORD_BITS) - 1) } }
    }

    fn place(self) -> u64 {
        let (in_log, at) = match self.at {
            At::Row(row) => (0, row),
            At::Frame { position, record } => {
                let page = (position - self.of.start_position) / FRAME_ALIGN as u64;
                (1, page << RECORD_BITS | record)
            }
        };
        let number = self.of.number % (1 << NUMBER_BITS);
        number << (WHERE_BITS + 1) | in_log << WHERE_BITS | at
    }

    /// As the next checkpoint has it.
    fn moved(self, moved: &Moved) -> Option<Spot> {
        let at = match self.at {
            _ if moved.from != self.of => return None,
            At::Row(row) => At::Row(Moves::of(&moved.moves.rows, row)),
            At::Frame { position, .. } if position < moved.to.start_position => {
                At::Row(Moves::of(&moved.moves.frames, position))
            }
            frame => frame,
        };
        Some(Spot { of: moved.to, at })
    }
}

/// One piece of a walk.
struct Piece<'a> {
    shared: &'a Shared,
    each: &'a mut dyn FnMut(&View<'_>) -> ControlFlow<()>,
    looks: usize,
    stopped: bool,
}

impl Journal {
    /// Hands Puts, Heads and Parts to `each`, whether or not they still stand, from a place on: 0
    /// is the beginning. Looks at about `looks` of them, or until `each` breaks. Says where to go
    /// on; none at the end.
    ///
    /// # Errors
    /// [`JournalError::Failed`] when the drive failed, or cannot read this.
    pub async fn walk(
        &self,
        place: u64,
        looks: usize,
        each: &mut dyn FnMut(&View<'_>) -> ControlFlow<()>,
    ) -> Result<Option<u64>, JournalError> {
        let shared = &*self.shared;
        shared.check_failed()?;
        let mut desk = Desk::new(&shared.pool, Class::Scrub, READING, PIECE).await;
        let mut piece = Piece { shared, each, looks, stopped: false };
        let mut place = place;
        loop {
            // What has completed meanwhile moved what is still to come.
            let now = shared.superblock.borrow().active_checkpoint();
            let spot = shared.history.borrow().resolve(place, now);
            let area = shared.area.borrow().clone();
            let walked = match (spot.at, area) {
                (At::Row(row), Some(area)) => piece.rows(&mut desk, &area, row).await,
                (At::Row(_), None) => {
                    Ok(Some(At::Frame { position: now.start_position, record: 0 }))
                }
                (At::Frame { position, record }, _) => {
                    piece.frames(&mut desk, now, position, record).await
                }
            };
            match walked.map_err(|error| JournalError::Failed(Arc::new(error)))? {
                None => return Ok(None),
                Some(at) => place = Spot { of: now, at }.place(),
            }
            if piece.looks == 0 || piece.stopped {
                return Ok(Some(place));
            }
        }
    }
}

impl Piece<'_> {
    /// Whether the checkpoint in force is still this one.
    fn in_force(&self, of: CheckpointRef) -> bool {
        self.shared.superblock.borrow().active_checkpoint() == of
    }

    /// Shows a record; whether to go on.
    async fn show(&mut self, record: &View<'_>) -> bool {
        self.looks -= 1;
        if record.kind != Kind::Remove {
            self.stopped = (self.each)(record).is_break();
        }
        if self.looks.is_multiple_of(STEP) {
            self.shared.local.yield_now().await;
        }
        self.looks > 0 && !self.stopped
    }

    /// Walks over rows; where it stopped.
    async fn rows(
        &mut self,
        desk: &mut Desk,
        area: &Rc<Area>,
        row: u64,
    ) -> Result<Option<At>, memkv_block::IoError> {
        let superblock = self.shared.superblock.borrow().clone();
        let of = superblock.active_checkpoint();
        let source = self.shared.source(&superblock, area);
        let mut reader = AreaReader::new(&source, area, Reading::WhatIsLeft);
        let mut line = Line::new();
        reader.seek(desk, &mut line, row).await.map_err(LoadError::of_drive)?;
        loop {
            let (at, unreadable) = (reader.at(), reader.unreadable);
            let there = reader.next(desk, &mut line).await.map_err(LoadError::of_drive)?;
            if reader.unreadable > unreadable && !self.in_force(of) {
                // Written over since: it went on to the next one.
                return Ok(Some(At::Row(at)));
            }
            if !there {
                return Ok(Some(At::Frame { position: of.start_position, record: 0 }));
            }
            if !self.show(&line.view()).await {
                return Ok(Some(At::Row(reader.at())));
            }
        }
    }

    /// Walks over frames; where it stopped, none at the end.
    async fn frames(
        &mut self,
        desk: &mut Desk,
        of: CheckpointRef,
        from: u64,
        mut first: u64,
    ) -> Result<Option<At>, memkv_block::IoError> {
        let superblock = self.shared.superblock.borrow().clone();
        let means = self.shared.means(&superblock);
        let Mark { position: written, .. } = self.shared.written.get();
        let mut walk = Walk::new(&means, of, PIECE as u64).within(written);
        walk.resume(desk, from).await?;
        loop {
            let before = walk.end.position;
            let next = walk.next(desk).await?;
            if !self.in_force(of) {
                // Frames may be gone that were not seen.
                let (position, record) = (before.max(from), first);
                return Ok(Some(At::Frame { position, record }));
            }
            let Some(header) = next else { return Ok(None) };
            if header.position < from {
                continue;
            }
            let skip = if header.position == from { first } else { 0 };
            first = 0;
            let mut at = FRAME_HEADER;
            for record in 0..u64::from(header.records) {
                let bytes = &walk.frame(desk, &header)[at..];
                let (view, len) = View::parse(bytes).expect("the body was checked");
                at += len;
                if record >= skip && !self.show(&view).await {
                    let position = header.position;
                    return Ok(Some(At::Frame { position, record: record + 1 }));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint(number: u64, start_position: u64) -> CheckpointRef {
        CheckpointRef { number, start_sequence: number * 100, start_position }
    }

    #[test]
    fn a_place_reads_back_and_later_ones_are_larger() {
        let of = checkpoint(70_000, 1 << 40);
        let frame = |page: u64, record| At::Frame { position: (1 << 40) + page * 4096, record };
        let spots = [At::Row(0), At::Row(1 << 38), frame(0, 0), frame(0, 9000), frame(1 << 24, 3)];
        let places = spots.map(|at| Spot { of, at }.place());
        assert!(places.is_sorted() && places[4] < 1 << PLACE_BITS);
        for (place, at) in places.into_iter().zip(spots) {
            assert_eq!(History::default().resolve(place, of), Spot { of, at });
        }
    }

    #[test]
    fn a_place_moves_with_its_rows_and_frames_and_never_behind_them() {
        let chain = [checkpoint(5, 0), checkpoint(6, 40_960), checkpoint(9, 81_920)];
        let mut history = History::default();
        let rows = vec![(0, 0), (64, 60), (128, 100)];
        let frames = vec![(0, 150), (20_480, 220)];
        history.push(chain[0], chain[1], Moves { rows, frames });
        history.push(chain[1], chain[2], Moves { rows: vec![(0, 0), (64, 64)], frames: vec![] });
        let moved = |at| {
            let place = Spot { of: chain[0], at }.place();
            history.resolve(place, chain[2]).at
        };
        let frame = |position| At::Frame { position, record: 2 };
        assert_eq!(moved(At::Row(63)), At::Row(0));
        assert_eq!(moved(At::Row(127)), At::Row(0), "row 60 of the next, which is before 64");
        assert_eq!(moved(At::Row(300)), At::Row(64));
        assert_eq!(moved(frame(20_480)), At::Row(64));
        assert_eq!(moved(frame(40_960)), At::Row(0), "no frame is known of");
        assert_eq!(moved(frame(81_920)), frame(81_920), "still in the log");
        let unknown = Spot { of: checkpoint(4, 0), at: At::Row(7) }.place();
        assert_eq!(history.resolve(unknown, chain[2]), Spot { of: chain[2], at: At::Row(0) });
    }
}
