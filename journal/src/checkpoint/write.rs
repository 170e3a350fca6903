//! Writing a checkpoint: three columns filled side by side, a piece at a time.
//!
//! The header is written last. Nothing is lost when a crash leaves an area half written: the
//! superblock still names the other one, and names this one only after a flush.

use memkv_block::{BlockQueue, IoError};
use memkv_poller::Local;
use zerocopy::IntoBytes;

use crate::checkpoint::codec::{
    AREA_HEADER, AreaHeader, Column, PIECE, PIECE_HEADER, PieceId, Place, row_place, seal_piece,
};
use crate::checkpoint::desk::Desk;
use crate::checkpoint::read::{Area, Line, Marks};
use crate::layout::Layout;
use crate::record::{PART_REF, Usage};

/// Where and by what means a checkpoint is written.
pub(crate) struct Target<'a> {
    pub(crate) queue: &'a dyn BlockQueue,
    pub(crate) local: &'a Local,
    pub(crate) layout: &'a Layout,
    /// 0 for A, 1 for B.
    pub(crate) area: usize,
    /// The first of those in the desk that are for writing.
    pub(crate) base: usize,
}

/// Pieces of memory, of [`PIECE`] bytes, that writing takes: the one at hand of every column.
pub(crate) const WRITING: usize = 3;

/// Why a row is not written.
pub(crate) enum PushError {
    /// A column is full.
    Full,
    Io(IoError),
}

impl From<IoError> for PushError {
    fn from(error: IoError) -> PushError {
        PushError::Io(error)
    }
}

pub(crate) struct AreaWriter<'a> {
    target: &'a Target<'a>,
    header: AreaHeader,
    /// Bytes in use of the piece at hand of each column.
    used: [usize; 3],
    place: Place,
    marks: Marks,
    pub(crate) usage: Usage,
    pub(crate) written: u64,
}

impl<'a> AreaWriter<'a> {
    /// `header`: its counts are filled in here.
    pub(crate) fn new(target: &'a Target<'a>, header: AreaHeader) -> AreaWriter<'a> {
        AreaWriter {
            target,
            header,
            used: [PIECE_HEADER; 3],
            place: Place::FIRST,
            marks: Marks::default(),
            usage: Usage::default(),
            written: 0,
        }
    }

    /// Adds a row and what the other columns hold of it. A piece that is full is written first, and
    /// other tasks get their turn before and after.
    pub(crate) async fn push(&mut self, desk: &mut Desk, line: &Line) -> Result<(), PushError> {
        let usage = self.usage + line.view().usage();
        if !usage.fits(self.target.layout.limits) {
            return Err(PushError::Full);
        }
        self.usage = usage;
        let at = row_place(self.header.rows);
        if at.1 == PIECE_HEADER {
            self.marks.push(self.place);
        }
        self.header.rows += 1;
        self.put(desk, Column::Rows, line.row.as_bytes(), at).await?;
        for part in line.parts().chunks(PART_REF) {
            let at = self.place.part();
            self.put(desk, Column::Parts, part, at).await?;
        }
        if !line.key().is_empty() {
            let at = self.place.key(line.key().len());
            self.put(desk, Column::Keys, line.key(), at).await?;
        }
        Ok(())
    }

    /// Adds an item to a column at its place.
    async fn put(
        &mut self,
        desk: &mut Desk,
        column: Column,
        item: &[u8],
        (piece, at): (u32, usize),
    ) -> Result<(), IoError> {
        if piece > self.header.pieces[column.index()] {
            self.target.local.yield_now().await;
            self.write_piece(desk, column).await?;
            self.target.local.yield_now().await;
        }
        let used = &mut self.used[column.index()];
        assert_eq!((self.header.pieces[column.index()], *used), (piece, at), "items lie in a row");
        *used += item.len();
        let memory = desk.bytes_mut(self.target.base + column.index());
        memory[at..at + item.len()].copy_from_slice(item);
        Ok(())
    }

    async fn write_piece(&mut self, desk: &mut Desk, column: Column) -> Result<(), IoError> {
        let (target, at) = (self.target, column.index());
        let limits = target.layout.limits;
        let index = self.header.pieces[at];
        let id = PieceId { drive: self.header.drive, number: self.header.number, column, index };
        let memory = target.base + at;
        let len = seal_piece(&id, self.used[at], desk.bytes_mut(memory));
        let offset = u64::from(index) * PIECE as u64;
        let capacity = column.bytes(limits);
        assert!(offset + len as u64 <= capacity, "a column never grows beyond its place: {id:?}");
        let area = target.layout.checkpoint_offset[target.area];
        self.header.pieces[at] += 1;
        self.header.last_used[at] = self.used[at] as u32;
        self.used[at] = PIECE_HEADER;
        self.written += len as u64;
        desk.write(target.queue, area + column.offset(limits) + offset, len, memory).await
    }

    /// Writes what is at hand and the header. Not flushed.
    pub(crate) async fn finish(mut self, desk: &mut Desk) -> Result<(Area, u64), IoError> {
        for column in Column::ALL {
            if self.used[column.index()] > PIECE_HEADER {
                self.write_piece(desk, column).await?;
            }
        }
        let base = self.target.base;
        self.header.encode(desk.bytes_mut(base));
        let offset = self.target.layout.checkpoint_offset[self.target.area];
        desk.write(self.target.queue, offset, AREA_HEADER, base).await?;
        let area = Area { index: self.target.area, header: self.header, marks: self.marks };
        Ok((area, self.written + AREA_HEADER as u64))
    }

    /// Rows so far.
    pub(crate) fn rows(&self) -> u64 {
        self.header.rows
    }
}
