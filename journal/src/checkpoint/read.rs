//! Reading a checkpoint back: three columns read side by side, a piece at a time.

use memkv_block::{BlockQueue, Io, IoBuf, IoError};
use memkv_dma::{Class, DmaBuf, Pool};
use memkv_poller::Local;
use thiserror::Error;

use crate::checkpoint::codec::{
    AREA_HEADER, AreaHeader, CheckpointError, Column, PIECE, PIECE_HEADER, PieceId, ROW, Row,
    parse_header, parse_piece,
};
use crate::ids::{DriveUuid, KeyBytes, PARTS_MAX};
use crate::layout::Layout;
use crate::record::{PART_REF, Record, parse_part_ref};
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

/// Reads the whole checkpoint and hands each record to `each`, in the order they were written.
/// Returns the header, or `None` for the empty checkpoint of a new drive. After an error, what
/// `each` was given is to be forgotten.
pub(crate) async fn read_area(
    source: &Source<'_>,
    mut each: impl FnMut(Record),
) -> Result<Option<AreaHeader>, LoadError> {
    if source.expected.number == 0 {
        return Ok(None);
    }
    let mut area = AreaReader::open(source).await?;
    for _ in 0..area.header.rows {
        let row = Row::parse(area.next(Column::Rows, ROW).await?)?;
        let mut parts = Vec::with_capacity(row.part_count().min(PARTS_MAX));
        for _ in 0..row.part_count() {
            let bytes = area.next(Column::Parts, PART_REF).await?;
            parts.push(parse_part_ref(bytes.first_chunk().ok_or(CheckpointError::Short)?));
        }
        let key = match row.key_len() {
            0 => None,
            len => {
                let bytes = area.next(Column::Keys, len).await?;
                Some(KeyBytes::parse(bytes).map_err(CheckpointError::from)?)
            }
        };
        each(row.into_record(parts, key)?);
    }
    Ok(Some(area.header))
}

struct AreaReader<'a> {
    source: &'a Source<'a>,
    header: AreaHeader,
    /// The piece at hand of every column, one after the other; away while one is read.
    buf: Option<DmaBuf>,
    columns: [Cursor; 3],
}

#[derive(Clone, Copy, Default)]
struct Cursor {
    /// Index of the piece to read next.
    next: u32,
    /// Items still to come of the piece at hand: bytes of the whole buffer.
    at: usize,
    end: usize,
}

impl<'a> AreaReader<'a> {
    async fn open(source: &'a Source<'a>) -> Result<AreaReader<'a>, LoadError> {
        let buf = source.pool.allocate_wait(Class::Checkpoint, 3 * PIECE).await;
        let offset = source.layout.checkpoint_offset[source.area];
        let (result, buf) = memkv_block::read(source.queue, offset, AREA_HEADER, buf).await;
        result?;
        let buf = buf.expect("a buffer comes back from a read that was done");
        let header = parse_header(buf.as_slice())?;
        let expected = source.expected;
        let same = header.drive == source.drive
            && header.number == expected.number
            && header.start_sequence == expected.start_sequence
            && header.start_position == expected.start_position;
        if !same {
            let (found, expected) = (header.number, expected.number);
            return Err(CheckpointError::Other { found, expected }.into());
        }
        Ok(AreaReader { source, header, buf: Some(buf), columns: [Cursor::default(); 3] })
    }

    /// The next item of a column, of `len` bytes. Items never cross pieces.
    async fn next(&mut self, column: Column, len: usize) -> Result<&[u8], LoadError> {
        let cursor = self.columns[column.index()];
        if cursor.at == cursor.end {
            self.read_piece(column).await?;
        }
        let cursor = &mut self.columns[column.index()];
        let item = cursor.at..cursor.at + len;
        if item.end > cursor.end {
            return Err(CheckpointError::Ends(column).into());
        }
        cursor.at = item.end;
        let buf = self.buf.as_ref().expect("nothing is read while items are taken");
        Ok(&buf.as_slice()[item])
    }

    /// Reads the column's next piece; other tasks get their turn.
    async fn read_piece(&mut self, column: Column) -> Result<(), LoadError> {
        let (source, header) = (self.source, &self.header);
        let limits = source.layout.limits;
        let index = self.columns[column.index()].next;
        if index >= header.pieces[column.index()] {
            return Err(CheckpointError::Ends(column).into());
        }
        let len = header.piece_bytes(column, index);
        let at = u64::from(index) * PIECE as u64;
        if at + len as u64 > column.bytes(limits) {
            return Err(CheckpointError::Header.into());
        }
        let area = source.layout.checkpoint_offset[source.area];
        let base = column.index() * PIECE;
        let io = Io::read(
            area + column.offset(limits) + at,
            len,
            self.buf.take().expect("one piece is read at a time"),
        );
        let done = source.queue.submit(io.at(base)).await;
        done.result?;
        let buf = done.buf.and_then(IoBuf::into_exclusive);
        let buf = self.buf.insert(buf.expect("a buffer comes back from a read that was done"));
        let id = PieceId { drive: source.drive, number: header.number, column, index };
        let items = parse_piece(&id, &buf.as_slice()[base..base + len])?;
        let start = base + PIECE_HEADER;
        let cursor = Cursor { next: index + 1, at: start, end: start + items.len() };
        self.columns[column.index()] = cursor;
        source.local.yield_now().await;
        Ok(())
    }
}
