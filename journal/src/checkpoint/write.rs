//! Writing a checkpoint: three columns filled side by side, a piece at a time.
//!
//! One buffer holds the piece at hand of every column, so that drives that write their checkpoints
//! at the same time never wait for each other half served. The header is written last. Nothing is
//! lost when a crash leaves an area half written: the superblock still names the other one, and
//! names this one only after a flush.

use memkv_block::{BlockQueue, Io, IoBuf, IoError};
use memkv_dma::{Class, DmaBuf, Pool};
use memkv_poller::Local;
use zerocopy::IntoBytes;

use crate::checkpoint::codec::{
    AREA_HEADER, AreaHeader, Column, PIECE, PIECE_HEADER, PieceId, Row, seal_piece,
};
use crate::layout::Layout;
use crate::record::{Record, encode_part_ref};

/// Where and by what means a checkpoint is written.
pub(crate) struct Target<'a> {
    pub(crate) queue: &'a dyn BlockQueue,
    pub(crate) pool: &'a Pool,
    pub(crate) local: &'a Local,
    pub(crate) layout: &'a Layout,
    /// 0 for A, 1 for B.
    pub(crate) area: usize,
}

/// Writes all of `records` and then `header`, whose counts are filled in here. Not flushed.
/// The caller has made sure that the records fit the limits. Returns the bytes written.
pub(crate) async fn write_area(
    target: &Target<'_>,
    header: AreaHeader,
    records: &[Record],
) -> Result<u64, IoError> {
    let mut area = AreaWriter::new(target, header).await;
    for record in records {
        area.push(Column::Rows, Row::of(record).as_bytes()).await?;
        if let Record::Head { parts, .. } = record {
            for part in parts {
                area.push(Column::Parts, &encode_part_ref(part)).await?;
            }
        }
        if let Record::Put { key, .. } | Record::Head { key, .. } = record {
            area.push(Column::Keys, key.as_bytes()).await?;
        }
    }
    area.header.rows = records.len() as u64;
    area.finish().await
}

struct AreaWriter<'a> {
    target: &'a Target<'a>,
    header: AreaHeader,
    /// The pieces at hand, one after the other; away while one is written.
    buf: Option<DmaBuf>,
    /// Bytes in use of each of them.
    used: [usize; 3],
    written: u64,
}

impl<'a> AreaWriter<'a> {
    async fn new(target: &'a Target<'a>, header: AreaHeader) -> AreaWriter<'a> {
        let buf = Some(target.pool.allocate_wait(Class::Checkpoint, 3 * PIECE).await);
        AreaWriter { target, header, buf, used: [PIECE_HEADER; 3], written: 0 }
    }

    /// Adds an item to a column. When its piece is full it is written first, and other tasks get
    /// their turn.
    async fn push(&mut self, column: Column, item: &[u8]) -> Result<(), IoError> {
        if self.used[column.index()] + item.len() > PIECE {
            self.write_piece(column).await?;
            self.target.local.yield_now().await;
        }
        let used = &mut self.used[column.index()];
        let at = column.index() * PIECE + *used;
        *used += item.len();
        let buf = self.buf.as_mut().expect("nothing is written while items are added");
        buf.as_mut_slice()[at..at + item.len()].copy_from_slice(item);
        Ok(())
    }

    async fn write_piece(&mut self, column: Column) -> Result<(), IoError> {
        let (target, at) = (self.target, column.index());
        let limits = target.layout.limits;
        let index = self.header.pieces[at];
        let id = PieceId { drive: self.header.drive, number: self.header.number, column, index };
        let buf = self.buf.as_mut().expect("one piece is written at a time");
        let piece = &mut buf.as_mut_slice()[at * PIECE..(at + 1) * PIECE];
        let len = seal_piece(&id, self.used[at], piece);
        let offset = u64::from(index) * PIECE as u64;
        let capacity = column.bytes(limits);
        assert!(offset + len as u64 <= capacity, "a column never grows beyond its place: {id:?}");
        let area = target.layout.checkpoint_offset[target.area];
        self.header.pieces[at] += 1;
        self.header.last_used[at] = self.used[at] as u32;
        self.used[at] = PIECE_HEADER;
        self.write(area + column.offset(limits) + offset, at * PIECE, len).await
    }

    /// Writes `len` bytes of the buffer, from its byte `at` on.
    async fn write(&mut self, offset: u64, at: usize, len: usize) -> Result<(), IoError> {
        let buf = self.buf.take().expect("one write at a time");
        let done = self.target.queue.submit(Io::write(offset, len, buf).at(at)).await;
        self.buf = done.buf.and_then(IoBuf::into_exclusive);
        self.written += len as u64;
        assert!(self.buf.is_some() || done.result.is_err(), "a buffer comes back from a write");
        done.result
    }

    async fn finish(mut self) -> Result<u64, IoError> {
        for column in Column::ALL {
            if self.used[column.index()] > PIECE_HEADER {
                self.write_piece(column).await?;
            }
        }
        let buf = self.buf.as_mut().expect("all pieces are written");
        self.header.encode(buf.as_mut_slice());
        let offset = self.target.layout.checkpoint_offset[self.target.area];
        self.write(offset, 0, AREA_HEADER).await?;
        Ok(self.written)
    }
}
