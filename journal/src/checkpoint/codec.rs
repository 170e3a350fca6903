//! How a checkpoint lies on the drive.
//!
//! ```text
//! 0       4 KiB             rows end             parts end            area end
//! | header | rows: pieces … | parts: pieces …    | keys: pieces …     |
//!
//! piece, 256 KiB (the last of a column may be shorter, padded to 4 KiB):
//!    0  crc u32            over bytes 4 .. used
//!    4  magic "MKCP"  | 8 column u16 | zero u16 | 12 index u32 | 16 number u64 | 24 drive uuid 16
//!   40  used u32           bytes of the piece that mean something, these 48 included
//!   44  zero u32
//!   48  items, none of which crosses into the next piece
//! ```
//!
//! *Rows* come first, because start-up needs nothing else to know which units are taken: 64 bytes
//! each. *Parts* are the part references of the Heads, in the order of their rows; *keys* are the
//! whole keys of Puts and Heads, likewise. A column has room for exactly what the limits allow.

use thiserror::Error;
use uuid::Uuid;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::crc::crc32c;
use crate::frame::FRAME_ALIGN;
use crate::ids::{BlockId, DriveUuid, KEY_BYTES_MAX, KeyError, UnitRange};
use crate::record::{Kind, PART_REF, RecordError, Usage, View};

/// Bytes of a piece, the grain that is summed and written.
pub const PIECE: usize = 256 * 1024;
/// Bytes of a piece before its items.
pub const PIECE_HEADER: usize = 48;
/// Bytes of a row.
pub const ROW: usize = 64;
/// Bytes of an area before its first piece.
pub const AREA_HEADER: usize = FRAME_ALIGN;
/// A drive has room for at least this many bytes of keys, however low its block limit.
pub(crate) const KEY_BYTES_LEAST: u64 = 4 * KEY_BYTES_MAX as u64;
/// A drive has room for at least this many part references.
pub(crate) const PARTS_LEAST: u64 = 64;

const PIECE_MAGIC: [u8; 4] = *b"MKCP";
const AREA_MAGIC: [u8; 8] = *b"MKVCHECK";
const VERSION: u32 = 1;
const ROWS_A_PIECE: u64 = ((PIECE - PIECE_HEADER) / ROW) as u64;
const PARTS_A_PIECE: u64 = ((PIECE - PIECE_HEADER) / PART_REF) as u64;
/// Keys do not pack tightly: one that does not fit begins the next piece. This much every full
/// piece holds at least, so that after `n` of them at most `key_bytes - n * KEY_BYTES_A_PIECE` are
/// left.
const KEY_BYTES_A_PIECE: u64 = (PIECE - PIECE_HEADER - KEY_BYTES_MAX + 1) as u64;

/// One of the three columns.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Column {
    /// Fixed-size rows.
    Rows,
    /// Part references.
    Parts,
    /// Whole keys.
    Keys,
}

impl Column {
    /// All of them, in the order in which they lie in an area.
    pub const ALL: [Column; 3] = [Column::Rows, Column::Parts, Column::Keys];

    /// Place of the column in lists of three.
    pub fn index(self) -> usize {
        match self {
            Column::Rows => 0,
            Column::Parts => 1,
            Column::Keys => 2,
        }
    }

    /// Bytes the column has in an area, a multiple of 4 KiB. The last piece is cut to what the
    /// limits can need.
    pub fn bytes(self, limits: Usage) -> u64 {
        let (items, a_piece, each) = match self {
            Column::Rows => (limits.rows, ROWS_A_PIECE, ROW),
            Column::Parts => (limits.parts, PARTS_A_PIECE, PART_REF),
            Column::Keys => (limits.key_bytes, KEY_BYTES_A_PIECE, 1),
        };
        let last = match items % a_piece {
            0 => 0,
            rest => PIECE_HEADER as u64 + rest * each as u64,
        };
        let last = last.next_multiple_of(FRAME_ALIGN as u64);
        items / a_piece * PIECE as u64 + last
    }

    /// Where the column begins, from the start of its area.
    pub fn offset(self, limits: Usage) -> u64 {
        let before = &Column::ALL[..self.index()];
        AREA_HEADER as u64 + before.iter().map(|column| column.bytes(limits)).sum::<u64>()
    }
}

/// Bytes of an area that can hold what the limits allow.
pub fn area_bytes(limits: Usage) -> u64 {
    Column::Keys.offset(limits) + Column::Keys.bytes(limits)
}

/// Why bytes are not (this) checkpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum CheckpointError {
    /// Fewer bytes than said.
    #[error("a checkpoint is cut short")]
    Short,
    /// The header's magic or sum does not match.
    #[error("the checkpoint's header is damaged")]
    Header,
    /// Written by a later version of the format.
    #[error("the checkpoint has version {0}, newer than this program")]
    Newer(u32),
    /// The header is whole and belongs to another checkpoint or drive.
    #[error("checkpoint {found} is where checkpoint {expected} should be")]
    Other {
        /// Number in the header.
        found: u64,
        /// Number in the superblock.
        expected: u64,
    },
    /// A piece's sum, number or place does not match.
    #[error("piece {index} of the checkpoint's column {column:?} is damaged")]
    Piece {
        /// Which column.
        column: Column,
        /// Which piece of it.
        index: u32,
    },
    /// A row says what cannot be.
    #[error("a row of the checkpoint makes no sense")]
    Row,
    /// A column ends before the rows that need it.
    #[error("the checkpoint's column {0:?} ends too early")]
    Ends(Column),
    /// A row with its key and parts is no record.
    #[error("a row of the checkpoint is no record")]
    Record(#[from] RecordError),
    /// A whole key is none.
    #[error("a key of the checkpoint is damaged")]
    Key(#[from] KeyError),
}

/// What an area's header says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AreaHeader {
    /// The drive it belongs to.
    pub drive: DriveUuid,
    /// Counts the checkpoints of this drive, from 1.
    pub number: u64,
    /// Sequence of the first frame that is not in it.
    pub start_sequence: u64,
    /// Position of that frame.
    pub start_position: u64,
    /// Rows in it.
    pub rows: u64,
    /// Pieces of each column.
    pub pieces: [u32; 3],
    /// Bytes in use of each column's last piece.
    pub last_used: [u32; 3],
    /// No generation above this one was recorded.
    pub generation_high: u64,
    /// Latest unix second known.
    pub clock_high: u64,
    /// The node's epoch when it was written.
    pub epoch: u64,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawArea {
    magic: [u8; 8],
    crc: U32,
    version: U32,
    drive: [u8; 16],
    number: U64,
    start_sequence: U64,
    start_position: U64,
    rows: U64,
    pieces: [U32; 3],
    last_used: [U32; 3],
    generation_high: U64,
    clock_high: U64,
    epoch: U64,
    zero: [u8; 3984],
}

const _: () = assert!(size_of::<RawArea>() == AREA_HEADER);
const AREA_SUMMED_FROM: usize = 12;

impl AreaHeader {
    /// Writes the header into `out`.
    pub fn encode(&self, out: &mut [u8]) {
        let mut raw = RawArea::new_zeroed();
        raw.magic = AREA_MAGIC;
        raw.version = VERSION.into();
        raw.drive = *self.drive.0.as_bytes();
        raw.number = self.number.into();
        raw.start_sequence = self.start_sequence.into();
        raw.start_position = self.start_position.into();
        raw.rows = self.rows.into();
        raw.pieces = self.pieces.map(U32::from);
        raw.last_used = self.last_used.map(U32::from);
        raw.generation_high = self.generation_high.into();
        raw.clock_high = self.clock_high.into();
        raw.epoch = self.epoch.into();
        let out = &mut out[..AREA_HEADER];
        out.copy_from_slice(raw.as_bytes());
        let crc = crc32c(&out[AREA_SUMMED_FROM..]);
        out[8..12].copy_from_slice(&crc.to_le_bytes());
    }

    /// Bytes on the drive of piece `index` of `column`, its padding included.
    pub fn piece_bytes(&self, column: Column, index: u32) -> usize {
        if index + 1 < self.pieces[column.index()] {
            return PIECE;
        }
        (self.last_used[column.index()] as usize).next_multiple_of(FRAME_ALIGN)
    }
}

/// Reads an area's header.
pub fn parse_header(bytes: &[u8]) -> Result<AreaHeader, CheckpointError> {
    let bytes = bytes.get(..AREA_HEADER).ok_or(CheckpointError::Short)?;
    let raw = RawArea::read_from_bytes(bytes).map_err(|_| CheckpointError::Short)?;
    if raw.magic != AREA_MAGIC || raw.crc.get() != crc32c(&bytes[AREA_SUMMED_FROM..]) {
        return Err(CheckpointError::Header);
    }
    if raw.version.get() > VERSION {
        return Err(CheckpointError::Newer(raw.version.get()));
    }
    let pieces = raw.pieces.map(U32::get);
    let last_used = raw.last_used.map(U32::get);
    let sensible = raw.version.get() == VERSION
        && pieces.iter().zip(last_used).all(|(&pieces, used)| {
            let used = used as usize;
            if pieces == 0 { used == 0 } else { (PIECE_HEADER..=PIECE).contains(&used) }
        });
    if !sensible {
        return Err(CheckpointError::Header);
    }
    Ok(AreaHeader {
        drive: DriveUuid(Uuid::from_bytes(raw.drive)),
        number: raw.number.get(),
        start_sequence: raw.start_sequence.get(),
        start_position: raw.start_position.get(),
        rows: raw.rows.get(),
        pieces,
        last_used,
        generation_high: raw.generation_high.get(),
        clock_high: raw.clock_high.get(),
        epoch: raw.epoch.get(),
    })
}

/// Which piece some bytes are, or should be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PieceId {
    /// The drive.
    pub drive: DriveUuid,
    /// The checkpoint's number.
    pub number: u64,
    /// The column.
    pub column: Column,
    /// The piece's place in its column, from 0.
    pub index: u32,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawPiece {
    crc: U32,
    magic: [u8; 4],
    column: U16,
    zero: U16,
    index: U32,
    number: U64,
    drive: [u8; 16],
    used: U32,
    zero_end: U32,
}

const _: () = assert!(size_of::<RawPiece>() == PIECE_HEADER);

impl RawPiece {
    fn of(id: &PieceId, used: usize) -> RawPiece {
        RawPiece {
            crc: 0.into(),
            magic: PIECE_MAGIC,
            column: (id.column.index() as u16).into(),
            zero: 0.into(),
            index: id.index.into(),
            number: id.number.into(),
            drive: *id.drive.0.as_bytes(),
            used: (used as u32).into(),
            zero_end: 0.into(),
        }
    }
}

/// Completes a piece whose items are in `out[PIECE_HEADER..used]`: header, sum, and zeros up to the
/// next 4 KiB. Returns the bytes to write.
pub fn seal_piece(id: &PieceId, used: usize, out: &mut [u8]) -> usize {
    assert!((PIECE_HEADER..=PIECE).contains(&used));
    let padded = used.next_multiple_of(FRAME_ALIGN);
    out[..PIECE_HEADER].copy_from_slice(RawPiece::of(id, used).as_bytes());
    out[used..padded].fill(0);
    let crc = crc32c(&out[4..used]);
    out[..4].copy_from_slice(&crc.to_le_bytes());
    padded
}

/// Checks that `bytes` are the piece `id`; returns its items.
pub fn parse_piece<'a>(id: &PieceId, bytes: &'a [u8]) -> Result<&'a [u8], CheckpointError> {
    let damaged = CheckpointError::Piece { column: id.column, index: id.index };
    let (raw, _) = RawPiece::read_from_prefix(bytes).map_err(|_| damaged)?;
    let used = raw.used.get() as usize;
    if !(PIECE_HEADER..=bytes.len().min(PIECE)).contains(&used) {
        return Err(damaged);
    }
    let mut expected = RawPiece::of(id, used);
    expected.crc = crc32c(&bytes[4..used]).into();
    if expected.as_bytes() != &bytes[..PIECE_HEADER] {
        return Err(damaged);
    }
    Ok(&bytes[PIECE_HEADER..used])
}

const KIND_PUT: u8 = 1;
const KIND_PART: u8 = 2;
const KIND_HEAD: u8 = 3;

/// A row: what a record has of fixed size.
///
/// ```text
///  0 hash u128 | 16 generation u64 | 24 expires u64 | 32 length u64 | 40 crc u32 | 44 start u32
/// 48 count u16 | 50 index (Part) or parts (Head) u16 | 52 flags u16 | 54 key length u16
/// 56 kind u8 | 57 zero 7
/// ```
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct Row {
    hash: [u8; 16],
    generation: U64,
    expires: U64,
    length: U64,
    crc: U32,
    start: U32,
    count: U16,
    index: U16,
    flags: U16,
    key_len: U16,
    kind: u8,
    zero: [u8; 7],
}

const _: () = assert!(size_of::<Row>() == ROW);

impl Row {
    /// The row of a record.
    ///
    /// # Panics
    /// When the record is a Remove, which no checkpoint holds, or could not be read back.
    pub(crate) fn of(record: &View<'_>) -> Row {
        assert!(record.check().is_ok(), "a record is checked before it is written: {record:?}");
        let mut row = Row::new_zeroed();
        row.hash = record.block.hash.to_le_bytes();
        row.generation = record.block.generation.into();
        row.expires = record.expires.into();
        row.length = record.length.into();
        row.crc = record.crc.into();
        row.flags = record.flags.into();
        row.key_len = record.key_len.into();
        if let Some(extent) = record.extent {
            row.start = extent.start.into();
            row.count = extent.count.into();
        }
        (row.kind, row.index) = match record.kind {
            Kind::Put => (KIND_PUT, 0.into()),
            Kind::Part(index) => (KIND_PART, index.into()),
            Kind::Head => (KIND_HEAD, (record.parts().len() as u16).into()),
            Kind::Remove => panic!("a checkpoint holds what lives, never a Remove"),
        };
        row
    }

    /// Reads a row's bytes.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Row, CheckpointError> {
        let row = Row::read_from_bytes(bytes).map_err(|_| CheckpointError::Short)?;
        let keyed = row.kind != KIND_PART;
        let sensible = (KIND_PUT..=KIND_HEAD).contains(&row.kind)
            && row.zero == [0; 7]
            && (row.key_len.get() > 0) == keyed
            && (row.kind == KIND_HEAD || row.length.get() <= u64::from(u32::MAX));
        if sensible { Ok(row) } else { Err(CheckpointError::Row) }
    }

    /// Part references the row has in the column of parts.
    pub(crate) fn part_count(&self) -> usize {
        if self.kind == KIND_HEAD { usize::from(self.index.get()) } else { 0 }
    }

    /// Bytes the row has in the column of keys.
    pub(crate) fn key_len(&self) -> usize {
        usize::from(self.key_len.get())
    }

    /// The record, given what the other columns hold of it; `key` is empty where keys are not read.
    pub(crate) fn view<'a>(&self, parts: &'a [u8], key: &'a [u8]) -> View<'a> {
        let (kind, extent) = match self.kind {
            KIND_PUT => (Kind::Put, true),
            KIND_PART => (Kind::Part(self.index.get()), true),
            _ => (Kind::Head, false),
        };
        let extent = extent.then(|| UnitRange { start: self.start.get(), count: self.count.get() });
        View {
            block: BlockId {
                hash: u128::from_le_bytes(self.hash),
                generation: self.generation.get(),
            },
            kind,
            extent,
            length: self.length.get(),
            crc: self.crc.get(),
            expires: self.expires.get(),
            flags: self.flags.get(),
            key_len: self.key_len.get(),
            parts,
            key,
        }
    }

    /// Changes the flags, the one thing that a record may say otherwise later.
    pub(crate) fn set_flags(&mut self, flags: u16) {
        self.flags = flags.into();
    }
}

/// Where the items of the next row lie in the columns of parts and of keys. Follows from the rows
/// before it alone: part references are counted, and a key that does not fit into its piece begins
/// the next one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Place {
    parts: u64,
    key_piece: u32,
    key_at: u32,
}

impl Place {
    /// Of the first row.
    pub(crate) const FIRST: Place = Place { parts: 0, key_piece: 0, key_at: PIECE_HEADER as u32 };

    /// Piece and byte of the next part reference.
    pub(crate) fn part(&mut self) -> (u32, usize) {
        let (piece, item) = (self.parts / PARTS_A_PIECE, self.parts % PARTS_A_PIECE);
        self.parts += 1;
        (piece as u32, PIECE_HEADER + item as usize * PART_REF)
    }

    /// Piece and byte of the next key, which has so many bytes.
    pub(crate) fn key(&mut self, len: usize) -> (u32, usize) {
        if self.key_at as usize + len > PIECE {
            (self.key_piece, self.key_at) = (self.key_piece + 1, PIECE_HEADER as u32);
        }
        let at = self.key_at as usize;
        self.key_at += len as u32;
        (self.key_piece, at)
    }
}

/// Piece and byte of a row.
pub(crate) fn row_place(row: u64) -> (u32, usize) {
    let (piece, item) = (row / ROWS_A_PIECE, row % ROWS_A_PIECE);
    (piece as u32, PIECE_HEADER + item as usize * ROW)
}

/// The first row of a piece.
pub(crate) fn first_row(piece: u32) -> u64 {
    u64::from(piece) * ROWS_A_PIECE
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Record;
    use crate::record::tests::any_record;
    use proptest::prelude::*;

    fn id(column: Column, index: u32) -> PieceId {
        PieceId { drive: Uuid::from_u128(5).into(), number: 3, column, index }
    }

    proptest! {
        #[test]
        fn a_row_with_its_columns_is_the_record(record in any_record()) {
            prop_assume!(!matches!(record, Record::Remove { .. }));
            let mut bytes = vec![0; record.encoded_len()];
            record.encode(&mut bytes);
            let (view, _) = View::parse(&bytes).unwrap();
            let row = Row::parse(Row::of(&view).as_bytes()).unwrap();
            prop_assert_eq!(row.part_count(), view.parts().len());
            prop_assert_eq!(row.key_len(), view.key().len());
            let again = row.view(view.parts, view.key());
            prop_assert_eq!(again, view);
            prop_assert_eq!(again.to_record(), record);
            let keyed = row.key_len() > 0;
            let refused = |change: &dyn Fn(&mut Row)| {
                let mut other = Row::of(&view);
                change(&mut other);
                Row::parse(other.as_bytes()).is_err()
            };
            prop_assert!(refused(&|row| row.kind = 0));
            prop_assert!(refused(&|row| row.kind = KIND_HEAD + 1));
            prop_assert!(refused(&|row| row.zero[6] = 1));
            prop_assert!(refused(&|row| row.key_len = u16::from(!keyed).into()));
            let long = |row: &mut Row| row.length = (u64::from(u32::MAX) + 1).into();
            prop_assert_eq!(refused(&long), row.kind != KIND_HEAD);
        }

        #[test]
        fn a_changed_byte_of_a_piece_is_noticed(
            items in prop::collection::vec(any::<u8>(), 0..9000),
            at in any::<prop::sample::Index>(),
            flip in 1u8..,
        ) {
            let mut out = vec![0xEE; PIECE];
            let used = PIECE_HEADER + items.len();
            out[PIECE_HEADER..used].copy_from_slice(&items);
            let padded = seal_piece(&id(Column::Keys, 2), used, &mut out);
            out.truncate(padded);
            prop_assert_eq!(parse_piece(&id(Column::Keys, 2), &out), Ok(&items[..]));
            prop_assert!(parse_piece(&id(Column::Keys, 1), &out).is_err());
            prop_assert!(parse_piece(&id(Column::Rows, 2), &out).is_err());
            out[at.index(used)] ^= flip;
            prop_assert!(parse_piece(&id(Column::Keys, 2), &out).is_err());
        }

        #[test]
        fn random_bytes_are_no_piece_and_no_area(
            bytes in prop::collection::vec(any::<u8>(), 0..5000),
        ) {
            prop_assert!(parse_piece(&id(Column::Rows, 0), &bytes).is_err());
            prop_assert!(parse_header(&bytes).is_err());
            let _ = Row::parse(bytes.get(..ROW).unwrap_or(&bytes));
        }

        #[test]
        fn an_area_header_reads_back_and_notices_change(
            number in 1u64.., rows in any::<u64>(), at in 0usize..AREA_HEADER, flip in 1u8..,
        ) {
            let header = AreaHeader {
                drive: Uuid::from_u128(1).into(),
                number, start_sequence: 4, start_position: 8192, rows,
                pieces: [3, 0, 1], last_used: [48, 0, PIECE as u32],
                generation_high: 7, clock_high: 8, epoch: 9,
            };
            let mut out = vec![0; AREA_HEADER];
            header.encode(&mut out);
            prop_assert_eq!(parse_header(&out), Ok(header));
            out[at] ^= flip;
            prop_assert!(parse_header(&out).is_err());
        }

        #[test]
        fn a_column_has_room_for_what_the_limits_allow(
            rows in 1u64..1 << 40, parts in 0u64..1 << 40, key_bytes in 0u64..1 << 44,
        ) {
            let limits = Usage { rows, parts, key_bytes };
            let pieces = |items: u64, a_piece: u64| items.div_ceil(a_piece);
            let headers = pieces(rows, ROWS_A_PIECE) * PIECE_HEADER as u64;
            prop_assert!(Column::Rows.bytes(limits) >= rows * ROW as u64 + headers);
            prop_assert!(Column::Parts.bytes(limits) >= parts * PART_REF as u64);
            prop_assert!(Column::Keys.bytes(limits) >= key_bytes);
            prop_assert!(area_bytes(limits).is_multiple_of(FRAME_ALIGN as u64));
        }
    }
}
