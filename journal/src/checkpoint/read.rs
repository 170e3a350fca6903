//! Reading a checkpoint back: rows, and what the other columns hold of each, a piece at a time.
//!
//! Where the items of a row lie follows from the lengths in the rows before it. What was summed up
//! at the first row of every piece of rows (*marks*) is kept, so that reading can begin at any row,
//! and goes on behind a piece that cannot be read: of the rows it costs those in it, of the parts
//! and the keys those of the rows they belong to.

use memkv_block::{BlockQueue, IoError};
use memkv_dma::{Class, Pool};
use memkv_poller::Local;
use thiserror::Error;
use zerocopy::FromZeros;

use crate::checkpoint::codec::{
    AREA_HEADER, AreaHeader, CheckpointError, Column, PIECE, PieceId, Place, ROW, Row, first_row,
    parse_header, parse_piece, row_place,
};
use crate::checkpoint::desk::Desk;
use crate::ids::{DriveUuid, KEY_BYTES_MAX, KeyBytes, PARTS_MAX};
use crate::layout::Layout;
use crate::record::{PART_REF, View};
use crate::superblock::CheckpointRef;

/// Why a checkpoint cannot be used.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The drive could not read it.
    #[error("the checkpoint cannot be read")]
    Io(#[from] IoError),
    /// It is not what was written.
    #[error(transparent)]
    Damaged(#[from] CheckpointError),
}

impl LoadError {
    /// The error of a reading that passes over damage.
    pub(crate) fn of_drive(self) -> IoError {
        match self {
            LoadError::Io(error) => error,
            LoadError::Damaged(error) => unreachable!("damage is passed over: {error}"),
        }
    }
}

/// Where and by what means a checkpoint is read.
pub(crate) struct Source<'a> {
    pub(crate) queue: &'a dyn BlockQueue,
    pub(crate) pool: &'a Pool,
    pub(crate) local: &'a Local,
    pub(crate) layout: &'a Layout,
    pub(crate) drive: DriveUuid,
    /// 0 for A, 1 for B.
    pub(crate) area: usize,
    /// What the superblock says should be there.
    pub(crate) expected: CheckpointRef,
}

/// Pieces of memory, of [`PIECE`] bytes, that reading takes: the one at hand of every column.
pub(crate) const READING: usize = 3;

/// A whole checkpoint, and how to find one's way in it.
#[derive(Debug)]
pub(crate) struct Area {
    /// 0 for A, 1 for B.
    pub(crate) index: usize,
    pub(crate) header: AreaHeader,
    /// Where the items of the first row of every piece of rows lie.
    pub(crate) marks: Marks,
}

/// A place for every piece of rows. It grows by lists of so many, so that nothing is copied when
/// there are more, and gives them back in one turn: they are few, 4 KiB for each million rows.
#[derive(Debug, Default)]
pub(crate) struct Marks(Vec<Vec<Place>>);

impl Marks {
    const LIST: usize = 1024;

    pub(crate) fn push(&mut self, place: Place) {
        if self.0.last().is_none_or(|list| list.len() == Self::LIST) {
            self.0.push(Vec::with_capacity(Self::LIST));
        }
        self.0.last_mut().expect("just seen to").push(place);
    }

    fn get(&self, piece: u32) -> Option<Place> {
        self.0.get(piece as usize / Self::LIST)?.get(piece as usize % Self::LIST).copied()
    }
}

/// One row and what the other columns hold of it, in memory of its own.
pub(crate) struct Line {
    pub(crate) row: Row,
    parts: [u8; PARTS_MAX * PART_REF],
    key: [u8; KEY_BYTES_MAX],
    part_count: usize,
    key_len: usize,
}

impl Line {
    pub(crate) fn new() -> Line {
        Line {
            row: Row::new_zeroed(),
            parts: [0; PARTS_MAX * PART_REF],
            key: [0; KEY_BYTES_MAX],
            part_count: 0,
            key_len: 0,
        }
    }

    pub(crate) fn set(&mut self, record: &View<'_>) {
        self.row = Row::of(record);
        self.part_count = record.parts().len();
        self.key_len = record.key.len();
        self.parts[..record.parts.len()].copy_from_slice(record.parts);
        self.key[..record.key.len()].copy_from_slice(record.key);
    }

    pub(crate) fn parts(&self) -> &[u8] {
        &self.parts[..self.part_count * PART_REF]
    }

    pub(crate) fn key(&self) -> &[u8] {
        &self.key[..self.key_len]
    }

    pub(crate) fn view(&self) -> View<'_> {
        self.row.view(self.parts(), self.key())
    }
}

/// What of a checkpoint is read, and what is done about damage.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Reading {
    /// Everything; damage is an error.
    Whole,
    /// Rows and parts; damage is an error.
    WithoutKeys,
    /// Everything; what is damaged is passed over and counted.
    WhatIsLeft,
}

/// Reads the checkpoint and hands each record to `each`, in the order they were written, and its
/// row's number. `None` for the empty checkpoint of a new drive. After an error, what `each` was
/// given is to be forgotten.
pub(crate) async fn read_area(
    source: &Source<'_>,
    reading: Reading,
    mut each: impl FnMut(View<'_>),
) -> Result<Option<Area>, LoadError> {
    if source.expected.number == 0 {
        return Ok(None);
    }
    let mut desk = Desk::new(source.pool, Class::Checkpoint, READING, PIECE).await;
    let header = read_header(source, &mut desk).await?;
    let area = Area { index: source.area, header, marks: Marks::default() };
    let mut reader = AreaReader::new(source, &area, reading);
    let mut line = Line::new();
    while reader.next(&mut desk, &mut line).await? {
        each(line.view());
        reader.rows_alone(&desk, &mut each);
    }
    let marks = reader.found;
    Ok(Some(Area { marks, ..area }))
}

async fn read_header(source: &Source<'_>, desk: &mut Desk) -> Result<AreaHeader, LoadError> {
    let offset = source.layout.checkpoint_offset[source.area];
    desk.read(source.queue, offset, AREA_HEADER, (0, 0)).await?;
    let header = parse_header(desk.bytes(0))?;
    let expected = source.expected;
    let same = header.drive == source.drive
        && header.number == expected.number
        && header.start_sequence == expected.start_sequence
        && header.start_position == expected.start_position;
    if !same {
        let (found, expected) = (header.number, expected.number);
        return Err(CheckpointError::Other { found, expected }.into());
    }
    Ok(header)
}

/// The piece at hand of a column; none of its bytes are in use when it is damaged.
#[derive(Clone, Copy)]
struct Held {
    index: u32,
    used: usize,
}

pub(crate) struct AreaReader<'a> {
    source: &'a Source<'a>,
    header: AreaHeader,
    reading: Reading,
    held: [Option<Held>; 3],
    /// The row to come, and where its items lie.
    row: u64,
    place: Place,
    /// What is known of the area, and what was found where nothing was.
    marks: &'a Marks,
    found: Marks,
    /// Rows passed over.
    pub(crate) unreadable: u64,
}

impl<'a> AreaReader<'a> {
    /// Reads from the first row on. Memory for it are the first [`READING`] pieces of a desk.
    pub(crate) fn new(source: &'a Source<'a>, area: &'a Area, reading: Reading) -> AreaReader<'a> {
        AreaReader {
            source,
            header: area.header,
            reading,
            held: [None; 3],
            row: 0,
            place: Place::FIRST,
            marks: &area.marks,
            found: Marks::default(),
            unreadable: 0,
        }
    }

    /// Number of the row that comes next.
    pub(crate) fn at(&self) -> u64 {
        self.row
    }

    /// Goes on at a row.
    pub(crate) async fn seek(
        &mut self,
        desk: &mut Desk,
        line: &mut Line,
        row: u64,
    ) -> Result<(), LoadError> {
        let row = row.min(self.header.rows);
        let (piece, _) = row_place(row);
        self.row = first_row(piece);
        while self.row < row {
            self.mark(piece);
            let (_, at) = row_place(self.row);
            if !self.load(desk, Column::Rows, piece).await? || !self.take_row(desk, at, line)? {
                // The piece is passed over as a whole, from wherever in it.
                self.row = row;
                return Ok(());
            }
            self.row += 1;
            for _ in 0..line.row.part_count() {
                self.place.part();
            }
            if line.row.key_len() > 0 {
                self.place.key(line.row.key_len());
            }
        }
        Ok(())
    }

    /// Puts the next row that can be read into `line`; false at the end. Whenever a piece was read
    /// other tasks got their turn.
    pub(crate) async fn next(
        &mut self,
        desk: &mut Desk,
        line: &mut Line,
    ) -> Result<bool, LoadError> {
        while self.row < self.header.rows {
            let (piece, at) = row_place(self.row);
            self.mark(piece);
            if !self.load(desk, Column::Rows, piece).await? || !self.take_row(desk, at, line)? {
                let after = first_row(piece + 1).min(self.header.rows);
                self.unreadable += after - self.row;
                self.row = after;
                continue;
            }
            self.row += 1;
            let parts = self.take_parts(desk, line).await?;
            let key = self.take_key(desk, line).await?;
            if parts && key && self.sound(line.view().check().map_err(CheckpointError::from))? {
                return Ok(true);
            }
            self.unreadable += 1;
        }
        Ok(false)
    }

    /// Hands over the rows that come next, as far as they are in the piece at hand, sound, and all
    /// that is read of their records: nearly all are. The others are left for [`AreaReader::next`].
    fn rows_alone(&mut self, desk: &Desk, each: &mut impl FnMut(View<'_>)) {
        let Some(held) = self.held[Column::Rows.index()] else { return };
        let end = first_row(held.index + 1).min(self.header.rows);
        let (piece, from) = row_place(self.row);
        if piece != held.index || self.row >= end || self.row == first_row(piece) {
            return;
        }
        let bytes = &desk.bytes(Column::Rows.index())[..held.used];
        let rows = bytes.get(from..).unwrap_or_default().as_chunks::<ROW>().0;
        for row in rows.iter().take((end - self.row) as usize) {
            let Ok(row) = Row::parse(row) else { return };
            let len = row.key_len();
            let alone = row.part_count() == 0
                && (len == 0 || self.reading == Reading::WithoutKeys)
                && len <= KEY_BYTES_MAX;
            let record = row.view(&[], &[]);
            if !alone || record.check().is_err() {
                return;
            }
            if len > 0 {
                self.place.key(len);
            }
            self.row += 1;
            each(record);
        }
    }

    /// Keeps, or looks up, where the items of a piece's first row lie.
    fn mark(&mut self, piece: u32) {
        if self.row == first_row(piece) {
            match self.marks.get(piece) {
                Some(mark) => self.place = mark,
                None => self.found.push(self.place),
            }
        }
    }

    /// Whether something is right; what is not is an error where the whole checkpoint is wanted.
    fn sound(&self, checked: Result<(), CheckpointError>) -> Result<bool, CheckpointError> {
        match checked {
            Err(error) if self.reading != Reading::WhatIsLeft => Err(error),
            checked => Ok(checked.is_ok()),
        }
    }

    fn take_row(&self, desk: &Desk, at: usize, line: &mut Line) -> Result<bool, CheckpointError> {
        let parsed = match self.item(Column::Rows, at, ROW) {
            Ok(range) => Row::parse(&desk.bytes(Column::Rows.index())[range]),
            Err(error) => Err(error),
        };
        let parsed = parsed.and_then(|row| {
            let most = row.part_count() <= PARTS_MAX && row.key_len() <= KEY_BYTES_MAX;
            if most { Ok(row) } else { Err(CheckpointError::Row) }
        });
        if let Ok(row) = parsed {
            line.row = row;
        }
        self.sound(parsed.map(drop))
    }

    async fn take_parts(&mut self, desk: &mut Desk, line: &mut Line) -> Result<bool, LoadError> {
        let mut sound = true;
        line.part_count = line.row.part_count();
        for part in 0..line.part_count {
            let (piece, at) = self.place.part();
            sound = sound && self.load(desk, Column::Parts, piece).await?;
            if sound {
                let item = self.item(Column::Parts, at, PART_REF);
                if let Ok(range) = item.clone() {
                    let bytes = &desk.bytes(Column::Parts.index())[range];
                    line.parts[part * PART_REF..][..PART_REF].copy_from_slice(bytes);
                }
                sound = self.sound(item.map(drop))?;
            }
        }
        Ok(sound)
    }

    async fn take_key(&mut self, desk: &mut Desk, line: &mut Line) -> Result<bool, LoadError> {
        line.key_len = 0;
        let len = line.row.key_len();
        if len == 0 {
            return Ok(true);
        }
        let (piece, at) = self.place.key(len);
        if self.reading == Reading::WithoutKeys {
            return Ok(true);
        }
        if !self.load(desk, Column::Keys, piece).await? {
            return Ok(false);
        }
        let checked = self.item(Column::Keys, at, len).and_then(|range| {
            let key = &desk.bytes(Column::Keys.index())[range];
            line.key_len = len;
            line.key[..len].copy_from_slice(key);
            KeyBytes::check(key).map_err(CheckpointError::from)
        });
        Ok(self.sound(checked)?)
    }

    /// Where in the piece at hand the item at byte `at` is.
    fn item(
        &self,
        column: Column,
        at: usize,
        len: usize,
    ) -> Result<std::ops::Range<usize>, CheckpointError> {
        let used = self.held[column.index()].map_or(0, |held| held.used);
        if at + len > used {
            return Err(CheckpointError::Ends(column));
        }
        Ok(at..at + len)
    }

    /// Makes a piece the one at hand of its column; whether it is whole.
    async fn load(
        &mut self,
        desk: &mut Desk,
        column: Column,
        index: u32,
    ) -> Result<bool, LoadError> {
        if let Some(held) = self.held[column.index()]
            && held.index == index
        {
            return Ok(held.used > 0);
        }
        let used = match self.read_piece(desk, column, index).await {
            Ok(used) => used,
            // A drive that does not answer any more is not a place that cannot be read.
            Err(LoadError::Io(error)) if desk.is_lost() || matches!(error, IoError::Offline) => {
                return Err(error.into());
            }
            Err(error) if self.reading != Reading::WhatIsLeft => return Err(error),
            Err(error) => {
                tracing::warn!(drive = %self.source.drive, ?column, index, %error, "piece lost");
                0
            }
        };
        self.held[column.index()] = Some(Held { index, used });
        Ok(used > 0)
    }

    /// Reads a piece; other tasks get their turn before it is summed, and after. How many of its
    /// bytes are in use.
    async fn read_piece(
        &mut self,
        desk: &mut Desk,
        column: Column,
        index: u32,
    ) -> Result<usize, LoadError> {
        let (source, header) = (self.source, &self.header);
        let limits = source.layout.limits;
        if index >= header.pieces[column.index()] {
            return Err(CheckpointError::Ends(column).into());
        }
        let len = header.piece_bytes(column, index);
        let at = u64::from(index) * PIECE as u64;
        if at + len as u64 > column.bytes(limits) {
            return Err(CheckpointError::Header.into());
        }
        let area = source.layout.checkpoint_offset[source.area];
        let memory = column.index();
        self.held[column.index()] = None;
        let offset = area + column.offset(limits) + at;
        // What failed once may go well again, and much hangs on it.
        if let Err(error) = desk.read(source.queue, offset, len, (memory, 0)).await {
            if desk.is_lost() || matches!(error, IoError::Offline) {
                return Err(error.into());
            }
            desk.read(source.queue, offset, len, (memory, 0)).await?;
        }
        source.local.yield_now().await;
        let id = PieceId { drive: source.drive, number: header.number, column, index };
        let items = parse_piece(&id, &desk.bytes(memory)[..len])?.len();
        source.local.yield_now().await;
        Ok(len.min(crate::checkpoint::codec::PIECE_HEADER + items))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_found_by_their_piece_and_never_move() {
        let (mut marks, mut place) = (Marks::default(), Place::FIRST);
        let mut expected = Vec::new();
        for _ in 0..3 * Marks::LIST + 1 {
            place.part();
            marks.push(place);
            expected.push(place);
        }
        let found: Vec<_> =
            (0..expected.len() as u32).map_while(|piece| marks.get(piece)).collect();
        assert_eq!(found, expected);
        assert_eq!(marks.get(expected.len() as u32), None);
        assert!(marks.0.iter().all(|list| list.capacity() == Marks::LIST), "no list grew");
    }
}
