//! What the journal remembers, and how one record lies in a frame.
//!
//! Every record begins with a kind and its whole length, so that a frame is a plain row of records:
//!
//! ```text
//! all     0 kind u8 | 1 zero u8 | 2 length u16 (of all) | 4 hash u128 | 20 generation u64 | 28 …
//! Put     28 expires u64 | 36 start u32 | 40 length u32 | 44 crc u32 | 48 count u16 | 50 flags u16
//!         52 key
//! Part    28 start u32 | 32 length u32 | 36 crc u32 | 40 count u16 | 42 index u16
//! Head    28 length u64 | 36 expires u64 | 44 flags u16 | 46 parts u16
//!         48 parts × (drive 16, length u32, crc u32) | key
//! Remove  nothing more
//! ```
//!
//! All little-endian. The key fills the record to its end.

use memkv_poller::spare::Row;
use thiserror::Error;
use uuid::Uuid;

use crate::ids::{
    BlockId, DriveUuid, EXTENT_UNITS, KEY_BYTES_MAX, KeyBytes, KeyError, PARTS_MAX, UnitRange,
};

const KIND_PUT: u8 = 1;
const KIND_PART: u8 = 2;
const KIND_HEAD: u8 = 3;
const KIND_REMOVE: u8 = 4;

const COMMON: usize = 28;
const PUT: usize = 52;
const PART: usize = 44;
const HEAD: usize = 48;
/// Bytes of a part reference in a Head, here and in a checkpoint.
pub(crate) const PART_REF: usize = 24;

/// Encoded bytes of the longest record: a Head with every part and the longest key.
pub const RECORD_MAX: usize = HEAD + PARTS_MAX * PART_REF + KEY_BYTES_MAX;

/// Where one part of a block is and what its bytes sum up to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PartRef {
    /// The drive whose journal holds the part.
    pub drive: DriveUuid,
    /// Bytes of the part, at most 4 MiB.
    pub length: u32,
    /// CRC32C of the part's bytes.
    pub crc: u32,
}

/// The length of a whole key, for whoever does not read the keys themselves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KeyLen(pub u16);

/// What is kept of a key: all of it, or its length.
pub trait KeyPart: Sized {
    /// From a Put or a Head.
    fn of(record: &View<'_>) -> Self;
    /// Bytes of the whole key.
    fn bytes(&self) -> usize;
}

impl KeyPart for KeyBytes {
    fn of(record: &View<'_>) -> KeyBytes {
        KeyBytes::parse(record.key).expect("it was checked, and read")
    }

    fn bytes(&self) -> usize {
        self.len()
    }
}

impl KeyPart for KeyLen {
    fn of(record: &View<'_>) -> KeyLen {
        KeyLen(record.key_len)
    }

    fn bytes(&self) -> usize {
        usize::from(self.0)
    }
}

/// One fact about this drive.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Record<K = KeyBytes> {
    /// A block of one extent is here.
    Put {
        /// Which block.
        block: BlockId,
        /// Its whole key.
        key: K,
        /// Its units on this drive.
        extent: UnitRange,
        /// Its bytes, at most those of the extent.
        length: u32,
        /// CRC32C of those bytes.
        crc: u32,
        /// Unix seconds after which it is gone; 0 never.
        expires: u64,
        /// The store's flags; the journal only keeps them.
        flags: u16,
    },
    /// One extent of a block that has several is here.
    Part {
        /// Which block.
        block: BlockId,
        /// Which of its parts, from 0.
        index: u16,
        /// The part's units on this drive.
        extent: UnitRange,
        /// The part's bytes.
        length: u32,
        /// CRC32C of those bytes.
        crc: u32,
    },
    /// A block of several extents exists; its parts are on the drives named.
    Head {
        /// Which block.
        block: BlockId,
        /// Its whole key.
        key: K,
        /// Bytes of the whole block.
        length: u64,
        /// Unix seconds after which it is gone; 0 never.
        expires: u64,
        /// The store's flags; the journal only keeps them.
        flags: u16,
        /// Its parts in order, 1 to [`PARTS_MAX`].
        parts: Row<PartRef>,
    },
    /// Whatever this drive held of the block is gone: its Put, its Head and its Parts.
    Remove {
        /// Which block.
        block: BlockId,
    },
}

/// Why bytes are not a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum RecordError {
    /// The bytes end within the record.
    #[error("a record is cut short")]
    Short,
    /// The kind is none this version knows.
    #[error("unknown record kind {0}")]
    Kind(u8),
    /// The length does not fit the kind.
    #[error("a record of kind {kind} cannot have {length} bytes")]
    Length {
        /// Kind byte.
        kind: u8,
        /// Length field.
        length: usize,
    },
    /// The extent has no unit, too many, or too few for the bytes; or it ends beyond `u32`.
    #[error("{length} bytes do not fit {count} units from unit {start}")]
    Extent {
        /// First unit.
        start: u32,
        /// Units.
        count: u16,
        /// Bytes said to be there.
        length: u32,
    },
    /// A head names no part or too many, or their lengths do not add up.
    #[error("a head of {length} bytes does not match its {parts} parts")]
    Parts {
        /// Parts named.
        parts: usize,
        /// Length of the block.
        length: u64,
    },
    /// A byte that must be zero is not.
    #[error("a reserved byte of a record is not zero")]
    Reserved,
    /// The key is none.
    #[error("a record's key is damaged")]
    Key(#[from] KeyError),
}

/// What records take in a checkpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    /// Fixed-size rows: one a Put, Part or Head.
    pub rows: u64,
    /// Part references of Heads.
    pub parts: u64,
    /// Bytes of whole keys.
    pub key_bytes: u64,
}

impl std::ops::Add for Usage {
    type Output = Usage;
    fn add(self, other: Usage) -> Usage {
        Usage {
            rows: self.rows + other.rows,
            parts: self.parts + other.parts,
            key_bytes: self.key_bytes + other.key_bytes,
        }
    }
}

impl std::ops::AddAssign for Usage {
    fn add_assign(&mut self, other: Usage) {
        *self = *self + other;
    }
}

impl Usage {
    /// Whether every column stays within the limits.
    pub fn fits(self, limits: Usage) -> bool {
        self.rows <= limits.rows && self.parts <= limits.parts && self.key_bytes <= limits.key_bytes
    }
}

impl<K: KeyPart> Record<K> {
    /// The block the record is about.
    pub fn block(&self) -> BlockId {
        match self {
            Record::Put { block, .. }
            | Record::Part { block, .. }
            | Record::Head { block, .. }
            | Record::Remove { block } => *block,
        }
    }

    /// The units the record names on this drive, if it names some.
    pub fn extent(&self) -> Option<UnitRange> {
        match self {
            Record::Put { extent, .. } | Record::Part { extent, .. } => Some(*extent),
            Record::Head { .. } | Record::Remove { .. } => None,
        }
    }

    /// Bytes of the record in a frame, at most [`RECORD_MAX`].
    pub fn encoded_len(&self) -> usize {
        match self {
            Record::Put { key, .. } => PUT + key.bytes(),
            Record::Part { .. } => PART,
            Record::Head { key, parts, .. } => HEAD + parts.len() * PART_REF + key.bytes(),
            Record::Remove { .. } => COMMON,
        }
    }

    /// What the record takes in a checkpoint; a Remove takes nothing.
    pub fn usage(&self) -> Usage {
        match self {
            Record::Put { key, .. } => Usage { rows: 1, parts: 0, key_bytes: key.bytes() as u64 },
            Record::Part { .. } => Usage { rows: 1, parts: 0, key_bytes: 0 },
            Record::Head { key, parts, .. } => {
                Usage { rows: 1, parts: parts.len() as u64, key_bytes: key.bytes() as u64 }
            }
            Record::Remove { .. } => Usage::default(),
        }
    }

    /// Whether the record could be read back: what [`Record::parse`] checks, asked before writing.
    pub fn check(&self) -> Result<(), RecordError> {
        match self {
            Record::Put { extent, length, .. } | Record::Part { extent, length, .. } => {
                check_extent(*extent, *length)
            }
            Record::Head { length, parts, .. } => {
                check_parts(parts.iter().map(|part| part.length), *length)
            }
            Record::Remove { .. } => Ok(()),
        }
    }

    fn kind(&self) -> u8 {
        match self {
            Record::Put { .. } => KIND_PUT,
            Record::Part { .. } => KIND_PART,
            Record::Head { .. } => KIND_HEAD,
            Record::Remove { .. } => KIND_REMOVE,
        }
    }
}

impl Record {
    /// The record as whoever does not read keys has it.
    pub fn without_key(&self) -> Record<KeyLen> {
        let len = |key: &KeyBytes| KeyLen(key.len() as u16);
        match self.clone() {
            Record::Put { block, key, extent, length, crc, expires, flags } => {
                Record::Put { block, key: len(&key), extent, length, crc, expires, flags }
            }
            Record::Part { block, index, extent, length, crc } => {
                Record::Part { block, index, extent, length, crc }
            }
            Record::Head { block, key, length, expires, flags, parts } => {
                Record::Head { block, key: len(&key), length, expires, flags, parts }
            }
            Record::Remove { block } => Record::Remove { block },
        }
    }

    /// Writes the record at the start of `out` and returns its length.
    ///
    /// # Panics
    /// When `out` is shorter than [`Record::encoded_len`], or the record fails [`Record::check`].
    pub fn encode(&self, out: &mut [u8]) -> usize {
        assert!(self.check().is_ok(), "a record is checked before it is written: {self:?}");
        let len = self.encoded_len();
        let mut to = Writer { out: &mut out[..len], at: 0 };
        let (kind, block) = (self.kind(), self.block());
        to.put(&[kind, 0]);
        to.put(&(len as u16).to_le_bytes());
        to.put(&block.hash.to_le_bytes());
        to.put(&block.generation.to_le_bytes());
        match self {
            Record::Put { key, extent, length, crc, expires, flags, .. } => {
                to.put(&expires.to_le_bytes());
                to.put(&extent.start.to_le_bytes());
                to.put(&length.to_le_bytes());
                to.put(&crc.to_le_bytes());
                to.put(&extent.count.to_le_bytes());
                to.put(&flags.to_le_bytes());
                to.put(key.as_bytes());
            }
            Record::Part { index, extent, length, crc, .. } => {
                to.put(&extent.start.to_le_bytes());
                to.put(&length.to_le_bytes());
                to.put(&crc.to_le_bytes());
                to.put(&extent.count.to_le_bytes());
                to.put(&index.to_le_bytes());
            }
            Record::Head { key, length, expires, flags, parts, .. } => {
                to.put(&length.to_le_bytes());
                to.put(&expires.to_le_bytes());
                to.put(&flags.to_le_bytes());
                to.put(&(parts.len() as u16).to_le_bytes());
                for part in parts {
                    to.put(&encode_part_ref(part));
                }
                to.put(key.as_bytes());
            }
            Record::Remove { .. } => {}
        }
        assert_eq!(to.at, len, "encoded_len and encode agree");
        len
    }

    /// Reads the record at the start of `bytes`; returns it and its length.
    pub fn parse(bytes: &[u8]) -> Result<(Record, usize), RecordError> {
        let (view, length) = View::parse(bytes)?;
        Ok((view.to_record(), length))
    }
}

/// What a record is, without its key and what only some kinds have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// [`Record::Put`].
    Put,
    /// [`Record::Part`], and which.
    Part(u16),
    /// [`Record::Head`].
    Head,
    /// [`Record::Remove`].
    Remove,
}

/// A record where it was read, in a frame or in the columns of a checkpoint: checked, and nothing
/// copied but what has a fixed size.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct View<'a> {
    /// Which block.
    pub block: BlockId,
    /// What it says of the block.
    pub kind: Kind,
    /// Units of a Put or a Part; none of others.
    pub extent: Option<UnitRange>,
    /// Bytes of the Part, or of the whole block; 0 in a Remove.
    pub length: u64,
    /// CRC32C of the bytes of a Put or a Part.
    pub crc: u32,
    /// Unix seconds after which the block is gone; 0 never.
    pub expires: u64,
    /// The store's flags of a Put or a Head.
    pub flags: u16,
    /// Bytes of the whole key of a Put or a Head.
    pub key_len: u16,
    pub(crate) parts: &'a [u8],
    pub(crate) key: &'a [u8],
}

impl<'a> View<'a> {
    /// The part references of a Head, in order.
    pub fn parts(&self) -> impl ExactSizeIterator<Item = PartRef> + use<'a> {
        let (refs, _) = self.parts.as_chunks::<PART_REF>();
        refs.iter().map(parse_part_ref)
    }

    /// The encoded whole key of a Put or a Head; empty in others, and where keys are not read.
    pub fn key(&self) -> &'a [u8] {
        self.key
    }

    /// Reads the record at the start of `bytes`; returns it and its length.
    pub fn parse(bytes: &'a [u8]) -> Result<(View<'a>, usize), RecordError> {
        let (view, length) = View::parse_again(bytes)?;
        if matches!(view.kind, Kind::Put | Kind::Head) {
            KeyBytes::check(view.key)?;
        }
        view.check()?;
        Ok((view, length))
    }

    /// Reads a record that was parsed before: what it says is not checked once more.
    pub(crate) fn parse_again(bytes: &'a [u8]) -> Result<(View<'a>, usize), RecordError> {
        if bytes.len() < COMMON {
            return Err(RecordError::Short);
        }
        let mut from = Reader { bytes, at: 0 };
        let [kind, zero] = from.take()?;
        let length = usize::from(u16::from_le_bytes(from.take()?));
        if zero != 0 {
            return Err(RecordError::Reserved);
        }
        if length < COMMON {
            return Err(RecordError::Length { kind, length });
        }
        from.bytes = bytes.get(..length).ok_or(RecordError::Short)?;
        let block = BlockId {
            hash: u128::from_le_bytes(from.take()?),
            generation: u64::from_le_bytes(from.take()?),
        };
        let mut view = View::remove(block);
        match kind {
            KIND_PUT => view.take_put(&mut from)?,
            KIND_PART => view.take_part(&mut from)?,
            KIND_HEAD => view.take_head(&mut from)?,
            KIND_REMOVE => {}
            other => return Err(RecordError::Kind(other)),
        }
        if from.at != length {
            return Err(RecordError::Length { kind, length });
        }
        Ok((view, length))
    }

    fn remove(block: BlockId) -> View<'a> {
        View {
            block,
            kind: Kind::Remove,
            extent: None,
            length: 0,
            crc: 0,
            expires: 0,
            flags: 0,
            key_len: 0,
            parts: &[],
            key: &[],
        }
    }

    fn take_put(&mut self, from: &mut Reader<'a>) -> Result<(), RecordError> {
        self.kind = Kind::Put;
        self.expires = u64::from_le_bytes(from.take()?);
        self.take_extent(from)?;
        self.flags = u16::from_le_bytes(from.take()?);
        self.take_key(from);
        Ok(())
    }

    fn take_key(&mut self, from: &mut Reader<'a>) {
        self.key = from.rest();
        self.key_len = self.key.len() as u16;
    }

    fn take_part(&mut self, from: &mut Reader<'a>) -> Result<(), RecordError> {
        self.take_extent(from)?;
        self.kind = Kind::Part(u16::from_le_bytes(from.take()?));
        Ok(())
    }

    fn take_extent(&mut self, from: &mut Reader<'a>) -> Result<(), RecordError> {
        let start = u32::from_le_bytes(from.take()?);
        self.length = u64::from(u32::from_le_bytes(from.take()?));
        self.crc = u32::from_le_bytes(from.take()?);
        self.extent = Some(UnitRange { start, count: u16::from_le_bytes(from.take()?) });
        Ok(())
    }

    fn take_head(&mut self, from: &mut Reader<'a>) -> Result<(), RecordError> {
        self.kind = Kind::Head;
        self.length = u64::from_le_bytes(from.take()?);
        self.expires = u64::from_le_bytes(from.take()?);
        self.flags = u16::from_le_bytes(from.take()?);
        let parts = usize::from(u16::from_le_bytes(from.take()?));
        if parts > PARTS_MAX {
            return Err(RecordError::Parts { parts, length: self.length });
        }
        self.parts = from.take_slice(parts * PART_REF)?;
        self.take_key(from);
        Ok(())
    }

    /// What [`Record::check`] asks.
    pub(crate) fn check(&self) -> Result<(), RecordError> {
        match (self.kind, self.extent) {
            (Kind::Put | Kind::Part(_), Some(extent)) => check_extent(extent, self.length as u32),
            (Kind::Head, None) => check_parts(self.parts().map(|part| part.length), self.length),
            (Kind::Remove, None) => Ok(()),
            _ => Err(RecordError::Short),
        }
    }

    /// What it takes in a checkpoint.
    pub fn usage(&self) -> Usage {
        Usage {
            rows: u64::from(self.kind != Kind::Remove),
            parts: self.parts().len() as u64,
            key_bytes: u64::from(self.key_len),
        }
    }

    /// A copy of its own.
    ///
    /// # Panics
    /// When the whole key is asked for of a Put or a Head that was read without it.
    pub fn to_record<K: KeyPart>(&self) -> Record<K> {
        let View { block, crc, expires, flags, .. } = *self;
        let (length, extent) = (self.length as u32, || self.extent.expect("it was checked"));
        let key = || K::of(self);
        match self.kind {
            Kind::Put => {
                Record::Put { block, key: key(), extent: extent(), length, crc, expires, flags }
            }
            Kind::Part(index) => Record::Part { block, index, extent: extent(), length, crc },
            Kind::Head => {
                let (length, parts) = (self.length, self.parts().collect());
                Record::Head { block, key: key(), length, expires, flags, parts }
            }
            Kind::Remove => Record::Remove { block },
        }
    }
}

pub(crate) fn encode_part_ref(part: &PartRef) -> [u8; PART_REF] {
    let mut out = [0; PART_REF];
    out[..16].copy_from_slice(part.drive.0.as_bytes());
    out[16..20].copy_from_slice(&part.length.to_le_bytes());
    out[20..].copy_from_slice(&part.crc.to_le_bytes());
    out
}

pub(crate) fn parse_part_ref(bytes: &[u8; PART_REF]) -> PartRef {
    let (drive, rest) = bytes.split_at(16);
    let word = |at: usize| u32::from_le_bytes([rest[at], rest[at + 1], rest[at + 2], rest[at + 3]]);
    let mut uuid = [0; 16];
    uuid.copy_from_slice(drive);
    PartRef { drive: DriveUuid(Uuid::from_bytes(uuid)), length: word(0), crc: word(4) }
}

fn check_extent(extent: UnitRange, length: u32) -> Result<(), RecordError> {
    let fits = (1..=EXTENT_UNITS).contains(&extent.count)
        && length > 0
        && u64::from(length) <= extent.bytes()
        && extent.end() <= 1 << 32;
    if fits {
        return Ok(());
    }
    Err(RecordError::Extent { start: extent.start, count: extent.count, length })
}

fn check_parts(parts: impl Iterator<Item = u32>, length: u64) -> Result<(), RecordError> {
    let (mut count, mut sum, mut empty) = (0, 0, false);
    for part in parts {
        count += 1;
        sum += u64::from(part);
        empty |= part == 0;
    }
    if count == 0 || count > PARTS_MAX || sum != length || empty {
        return Err(RecordError::Parts { parts: count, length });
    }
    Ok(())
}

struct Writer<'a> {
    out: &'a mut [u8],
    at: usize,
}

impl Writer<'_> {
    #[inline]
    fn put(&mut self, bytes: &[u8]) {
        self.out[self.at..self.at + bytes.len()].copy_from_slice(bytes);
        self.at += bytes.len();
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    #[inline]
    fn take<const N: usize>(&mut self) -> Result<[u8; N], RecordError> {
        let rest = self.bytes.get(self.at..).ok_or(RecordError::Short)?;
        let taken = rest.first_chunk::<N>().ok_or(RecordError::Short)?;
        self.at += N;
        Ok(*taken)
    }

    fn take_slice(&mut self, len: usize) -> Result<&'a [u8], RecordError> {
        let rest = self.bytes.get(self.at..).ok_or(RecordError::Short)?;
        let taken = rest.get(..len).ok_or(RecordError::Short)?;
        self.at += len;
        Ok(taken)
    }

    fn rest(&mut self) -> &'a [u8] {
        let rest = &self.bytes[self.at..];
        self.at = self.bytes.len();
        rest
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::ids::{KEY_MAX, NAME_MAX};
    use proptest::prelude::*;

    pub(crate) fn any_block() -> impl Strategy<Value = BlockId> {
        (any::<u128>(), any::<u64>()).prop_map(|(hash, generation)| BlockId { hash, generation })
    }

    fn any_key() -> impl Strategy<Value = KeyBytes> {
        ("[a-zé]{0,20}", ".{0,12}", prop::collection::vec(any::<u8>(), 1..=KEY_BYTES_MAX - 512))
            .prop_map(|(tenant, namespace, key)| {
                KeyBytes::new(&tenant, &namespace, &key[..key.len().min(512)]).unwrap()
            })
    }

    fn any_extent() -> impl Strategy<Value = (UnitRange, u32)> {
        (0..u32::MAX - 256, 1..=EXTENT_UNITS).prop_flat_map(|(start, count)| {
            let range = UnitRange { start, count };
            (Just(range), 1..=range.bytes() as u32)
        })
    }

    pub(crate) fn any_record() -> impl Strategy<Value = Record> {
        let put = (any_block(), any_key(), any_extent(), any::<u32>(), any::<u64>(), any::<u16>())
            .prop_map(|(block, key, (extent, length), crc, expires, flags)| Record::Put {
                block,
                key,
                extent,
                length,
                crc,
                expires,
                flags,
            });
        let part = (any_block(), any::<u16>(), any_extent(), any::<u32>()).prop_map(
            |(block, index, (extent, length), crc)| Record::Part {
                block,
                index,
                extent,
                length,
                crc,
            },
        );
        let refs = prop::collection::vec((any::<u128>(), 1..=4u32 << 20, any::<u32>()), 1..=16);
        let head = (any_block(), any_key(), any::<u64>(), any::<u16>(), refs).prop_map(
            |(block, key, expires, flags, refs)| {
                let parts: Row<PartRef> = refs
                    .into_iter()
                    .map(|(drive, length, crc)| PartRef {
                        drive: Uuid::from_u128(drive).into(),
                        length,
                        crc,
                    })
                    .collect();
                let length = parts.iter().map(|part| u64::from(part.length)).sum();
                Record::Head { block, key, length, expires, flags, parts }
            },
        );
        let remove = any_block().prop_map(|block| Record::Remove { block });
        prop_oneof![put, part, head, remove]
    }

    #[test]
    fn the_longest_record_is_a_head_with_every_part_and_the_longest_key() {
        let name = "n".repeat(NAME_MAX);
        let part = PartRef { drive: DriveUuid(uuid::Uuid::from_u128(1)), length: 1, crc: 0 };
        let longest: Record = Record::Head {
            block: BlockId { hash: 1, generation: 1 },
            key: KeyBytes::new(&name, &name, &[7; KEY_MAX]).expect("as long as it may be"),
            length: PARTS_MAX as u64,
            expires: 0,
            flags: 0,
            parts: vec![part; PARTS_MAX].into(),
        };
        assert_eq!(longest.encoded_len(), RECORD_MAX);
        let mut out = vec![0; RECORD_MAX];
        assert_eq!(longest.encode(&mut out), RECORD_MAX);
        assert_eq!(Record::parse(&out), Ok((longest, RECORD_MAX)));
    }

    proptest! {
        #[test]
        fn a_record_reads_back_as_written(record in any_record()) {
            let mut out = vec![0xAA; record.encoded_len() + 7];
            let len = record.encode(&mut out);
            prop_assert_eq!(len, record.encoded_len());
            prop_assert!(len <= RECORD_MAX);
            prop_assert_eq!(Record::parse(&out), Ok((record, len)));
        }

        #[test]
        fn a_cut_record_is_refused(record in any_record(), cut in any::<prop::sample::Index>()) {
            let mut out = vec![0; record.encoded_len()];
            record.encode(&mut out);
            let shorter = cut.index(out.len());
            prop_assert!(Record::parse(&out[..shorter]).is_err());
        }

        #[test]
        fn random_bytes_never_panic_and_what_parses_encodes_to_the_same_bytes(
            kind in 0u8..6, zero in 0u8..2, len in 0u16..200,
            body in prop::collection::vec(any::<u8>(), 0..220),
        ) {
            let mut bytes = vec![kind, zero];
            bytes.extend_from_slice(&len.to_le_bytes());
            bytes.extend_from_slice(&body);
            if let Ok((record, len)) = Record::parse(&bytes) {
                let mut again = vec![0; len];
                record.encode(&mut again);
                prop_assert_eq!(&again[..], &bytes[..len]);
            }
        }
    }

    #[test]
    fn impossible_extents_and_parts_are_refused() {
        let block = BlockId { hash: 1, generation: 1 };
        let part = |count, length| Record::<KeyBytes>::Part {
            block,
            index: 0,
            extent: UnitRange { start: 0, count },
            length,
            crc: 0,
        };
        assert!(part(1, 16384).check().is_ok());
        for bad in [part(0, 1), part(257, 1), part(1, 16385), part(1, 0)] {
            assert!(matches!(bad.check(), Err(RecordError::Extent { .. })), "{bad:?}");
        }
        let head = |parts: &[u32], length| {
            let drive = DriveUuid(uuid::Uuid::from_u128(1));
            let parts = parts.iter().map(|length| PartRef { drive, length: *length, crc: 0 });
            let parts = parts.collect();
            let key = KeyBytes::new("", "", b"k").unwrap();
            Record::Head { block, key, length, expires: 0, flags: 0, parts }.check()
        };
        assert_eq!(head(&[5, 7], 12), Ok(()));
        assert_eq!(head(&[7; PARTS_MAX], 7 * PARTS_MAX as u64), Ok(()));
        let many = [7; PARTS_MAX + 1];
        let bad: [(&[u32], u64); 6] = [
            (&[], 1),
            (&[], 0),
            (&[5, 7], 11),
            (&[5, 7], 13),
            (&[5, 0, 7], 12),
            (&many, 7 * many.len() as u64),
        ];
        for (parts, length) in bad {
            let want = RecordError::Parts { parts: parts.len(), length };
            assert_eq!(head(parts, length), Err(want));
        }
    }
}
