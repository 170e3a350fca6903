//! A frame: what one journal write puts into the ring.
//!
//! ```text
//!    0  magic "MKVFRAME"   8
//!    8  version u16 | header length u16 | zero u32
//!   16  drive uuid         16     a frame of another drive, or of an earlier format, is none
//!   32  incarnation u64           which start of the journal wrote it
//!   40  sequence u64              exactly one more than the frame before
//!   48  position u64              bytes since the ring's first frame ever; position mod ring size
//!                                 is the place, so a frame of an earlier lap, or one that the
//!                                 drive put elsewhere, names another position
//!   56  span u32                  bytes of ring it takes: a multiple of 4096
//!   60  body length u32 | 64 records u32 | 68 body crc u32
//!   72  generation_high u64 | 80 clock_high u64 | 88 epoch u64
//!   96  zero               28
//!  124  header crc u32            over bytes 0..124
//!  128  body: records, one after the other; zeros to the end of the span
//! ```
//!
//! Header and body are summed apart: a whole header over a damaged body tells recovery which frame
//! was lost. A frame never crosses the end of the ring: a *filler* (no record, span to the end)
//! takes the rest of a lap when the next frame does not fit there.

use thiserror::Error;
use uuid::Uuid;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::crc::crc32c;
use crate::ids::DriveUuid;
use crate::record::{Record, RecordError, View};

/// Frames begin and end at multiples of this many bytes: the largest sector in use.
pub const FRAME_ALIGN: usize = 4096;
/// Bytes of a frame's header.
pub const FRAME_HEADER: usize = 128;
/// Most bytes a frame takes, whatever the ring's size.
pub const FRAME_MAX: usize = 256 * 1024;

const MAGIC: [u8; 8] = *b"MKVFRAME";
const VERSION: u16 = 1;
const CRC_AT: usize = 124;

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Raw {
    magic: [u8; 8],
    version: U16,
    header_len: U16,
    zero: U32,
    drive: [u8; 16],
    incarnation: U64,
    sequence: U64,
    position: U64,
    span: U32,
    body_len: U32,
    records: U32,
    body_crc: U32,
    generation_high: U64,
    clock_high: U64,
    epoch: U64,
    reserved: [u8; 28],
    header_crc: U32,
}

const _: () = assert!(size_of::<Raw>() == FRAME_HEADER);
const _: () = assert!(std::mem::offset_of!(Raw, header_crc) == CRC_AT);

/// What a frame's header says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameHeader {
    /// The drive it belongs to.
    pub drive: DriveUuid,
    /// Which start of the journal wrote it.
    pub incarnation: u64,
    /// Its number; one more than that of the frame before.
    pub sequence: u64,
    /// Its place, counted over all laps.
    pub position: u64,
    /// Bytes of ring it takes.
    pub span: u32,
    /// Bytes of records.
    pub body_len: u32,
    /// Records in it.
    pub records: u32,
    /// CRC32C of the records' bytes.
    pub body_crc: u32,
    /// No generation above this one was recorded up to here.
    pub generation_high: u64,
    /// Latest unix second known here.
    pub clock_high: u64,
    /// The node's epoch when it was written.
    pub epoch: u64,
}

/// Why bytes are not a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum FrameError {
    /// Fewer bytes than a header, or than the header says the body has.
    #[error("a frame is cut short")]
    Short,
    /// Not the magic: no frame was ever written here.
    #[error("no frame begins here")]
    Magic,
    /// The header's CRC does not match.
    #[error("a frame's header is damaged")]
    HeaderCrc,
    /// The header is whole and of a later version.
    #[error("a frame of version {0} is newer than this program")]
    Newer(u16),
    /// The header is whole and says what cannot be.
    #[error("a frame's header is whole but makes no sense")]
    Header,
    /// The body's CRC does not match: a torn or damaged frame.
    #[error("a frame's body is damaged")]
    BodyCrc,
    /// The body is whole but holds what is no record.
    #[error("record {index} of a frame is none")]
    Record {
        /// Which record, from 0.
        index: u32,
        /// What is wrong with it.
        source: RecordError,
    },
}

/// Bytes of ring that a frame with `body` bytes of records takes.
pub const fn span_of(body: usize) -> usize {
    (FRAME_HEADER + body).next_multiple_of(FRAME_ALIGN)
}

impl FrameHeader {
    /// Completes the frame in `out`, whose records are at `FRAME_HEADER..`: sums the body, zeroes
    /// the padding and writes the header.
    ///
    /// # Panics
    /// When the span is not what [`span_of`] says and this is no filler, or `out` is too short.
    pub fn seal(&mut self, out: &mut [u8]) {
        let end = FRAME_HEADER + self.body_len as usize;
        let written = span_of(self.body_len as usize);
        assert!(self.span as usize == written || self.records == 0, "only a filler spans more");
        assert!((self.span as usize).is_multiple_of(FRAME_ALIGN) && self.span as usize >= written);
        self.body_crc = crc32c(&out[FRAME_HEADER..end]);
        out[end..written].fill(0);
        let raw = Raw {
            magic: MAGIC,
            version: VERSION.into(),
            header_len: (FRAME_HEADER as u16).into(),
            zero: 0.into(),
            drive: *self.drive.0.as_bytes(),
            incarnation: self.incarnation.into(),
            sequence: self.sequence.into(),
            position: self.position.into(),
            span: self.span.into(),
            body_len: self.body_len.into(),
            records: self.records.into(),
            body_crc: self.body_crc.into(),
            generation_high: self.generation_high.into(),
            clock_high: self.clock_high.into(),
            epoch: self.epoch.into(),
            reserved: [0; 28],
            header_crc: 0.into(),
        };
        out[..FRAME_HEADER].copy_from_slice(raw.as_bytes());
        let crc = crc32c(&out[..CRC_AT]);
        out[CRC_AT..FRAME_HEADER].copy_from_slice(&crc.to_le_bytes());
        debug_assert_eq!(parse_header(out), Ok(*self));
    }
}

/// Reads a header. The body is not looked at.
pub fn parse_header(bytes: &[u8]) -> Result<FrameHeader, FrameError> {
    let (raw, _) = Raw::read_from_prefix(bytes).map_err(|_| FrameError::Short)?;
    if raw.magic != MAGIC {
        return Err(FrameError::Magic);
    }
    if crc32c(&bytes[..CRC_AT]) != raw.header_crc.get() {
        return Err(FrameError::HeaderCrc);
    }
    if raw.version.get() > VERSION {
        return Err(FrameError::Newer(raw.version.get()));
    }
    let (span, body_len) = (raw.span.get() as usize, raw.body_len.get() as usize);
    let sensible = raw.version.get() == VERSION
        && usize::from(raw.header_len.get()) == FRAME_HEADER
        && raw.zero.get() == 0
        && raw.reserved == [0; 28]
        && span.is_multiple_of(FRAME_ALIGN)
        && (FRAME_ALIGN..=FRAME_MAX).contains(&span)
        && FRAME_HEADER + body_len <= span
        && (raw.records.get() == 0 || span == span_of(body_len))
        && raw.position.get().is_multiple_of(FRAME_ALIGN as u64);
    if !sensible {
        return Err(FrameError::Header);
    }
    Ok(FrameHeader {
        drive: DriveUuid(Uuid::from_bytes(raw.drive)),
        incarnation: raw.incarnation.get(),
        sequence: raw.sequence.get(),
        position: raw.position.get(),
        span: raw.span.get(),
        body_len: raw.body_len.get(),
        records: raw.records.get(),
        body_crc: raw.body_crc.get(),
        generation_high: raw.generation_high.get(),
        clock_high: raw.clock_high.get(),
        epoch: raw.epoch.get(),
    })
}

/// Checks the body that follows `header` in `bytes` and hands its records to `each`, in order.
/// Nothing is handed over unless the body's CRC matches.
pub fn parse_body<'a>(
    header: &FrameHeader,
    bytes: &'a [u8],
    mut each: impl FnMut(View<'a>),
) -> Result<(), FrameError> {
    let body = body_of(header, bytes)?;
    let mut at = 0;
    for index in 0..header.records {
        let (record, len) =
            View::parse(&body[at..]).map_err(|source| FrameError::Record { index, source })?;
        each(record);
        at += len;
    }
    if at != body.len() {
        return Err(FrameError::Header);
    }
    Ok(())
}

/// The records of a frame that [`parse_body`] found whole, without summing and checking it again.
pub(crate) fn records_of<'a>(
    header: &FrameHeader,
    frame: &'a [u8],
    mut each: impl FnMut(View<'a>),
) {
    let mut rest = &frame[FRAME_HEADER..][..header.body_len as usize];
    for _ in 0..header.records {
        let (record, len) = View::parse_again(rest).expect("the body was checked a moment ago");
        each(record);
        rest = &rest[len..];
    }
}

/// The body's bytes, once their CRC matches.
pub fn body_of<'a>(header: &FrameHeader, bytes: &'a [u8]) -> Result<&'a [u8], FrameError> {
    let end = FRAME_HEADER + header.body_len as usize;
    let body = bytes.get(FRAME_HEADER..end).ok_or(FrameError::Short)?;
    if crc32c(body) != header.body_crc {
        return Err(FrameError::BodyCrc);
    }
    Ok(body)
}

/// Reads a whole frame: header, CRCs and every record. The entry for fuzzers and offline readers.
pub fn parse(bytes: &[u8]) -> Result<(FrameHeader, Vec<Record>), FrameError> {
    let header = parse_header(bytes)?;
    let mut records = Vec::new();
    parse_body(&header, bytes, |record| records.push(record.to_record()))?;
    Ok((header, records))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::any_record;
    use proptest::prelude::*;

    fn header(sequence: u64, body_len: usize, records: usize) -> FrameHeader {
        FrameHeader {
            drive: Uuid::from_u128(7).into(),
            incarnation: 3,
            sequence,
            position: sequence * 4096,
            span: span_of(body_len) as u32,
            body_len: body_len as u32,
            records: records as u32,
            body_crc: 0,
            generation_high: 11,
            clock_high: 12,
            epoch: 13,
        }
    }

    fn sealed(records: &[Record]) -> (FrameHeader, Vec<u8>) {
        let body: usize = records.iter().map(Record::encoded_len).sum();
        let mut header = header(9, body, records.len());
        let mut out = vec![0x5A; header.span as usize];
        let mut at = FRAME_HEADER;
        for record in records {
            at += record.encode(&mut out[at..]);
        }
        header.seal(&mut out);
        (header, out)
    }

    #[test]
    fn a_header_whose_numbers_contradict_each_other_is_refused() {
        let with = |change: fn(&mut Raw)| {
            let mut out = vec![0; FRAME_ALIGN];
            header(9, 100, 1).seal(&mut out);
            let (mut raw, _) = Raw::read_from_prefix(&out).unwrap();
            change(&mut raw);
            out[..FRAME_HEADER].copy_from_slice(raw.as_bytes());
            let crc = crc32c(&out[..CRC_AT]);
            out[CRC_AT..FRAME_HEADER].copy_from_slice(&crc.to_le_bytes());
            parse_header(&out).map(|header| header.sequence)
        };
        assert_eq!(with(|_| ()), Ok(9));
        let changes: [fn(&mut Raw); 10] = [
            |raw| raw.version = 0.into(),
            |raw| raw.header_len = 0.into(),
            |raw| raw.zero = 1.into(),
            |raw| raw.reserved[27] = 1,
            |raw| raw.span = (FRAME_ALIGN as u32 + 1).into(),
            |raw| raw.span = 0.into(),
            |raw| raw.span = (2 * FRAME_ALIGN as u32).into(),
            |raw| (raw.span, raw.records) = ((FRAME_MAX as u32 * 2).into(), 0.into()),
            |raw| raw.body_len = (FRAME_ALIGN as u32).into(),
            |raw| raw.position = (9 * FRAME_ALIGN as u64 + 1).into(),
        ];
        for (number, change) in changes.into_iter().enumerate() {
            assert_eq!(with(change), Err(FrameError::Header), "{number}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn a_frame_reads_back_as_sealed(records in prop::collection::vec(any_record(), 0..12)) {
            let (header, out) = sealed(&records);
            prop_assert_eq!(parse(&out), Ok((header, records)));
        }

        #[test]
        fn a_changed_byte_is_noticed_unless_it_is_padding(
            records in prop::collection::vec(any_record(), 1..6),
            at in any::<prop::sample::Index>(),
            flip in 1u8..,
        ) {
            let (header, mut out) = sealed(&records);
            let at = at.index(out.len());
            out[at] ^= flip;
            match parse(&out) {
                Ok(same) => {
                    prop_assert!(at >= FRAME_HEADER + header.body_len as usize);
                    prop_assert_eq!(same, (header, records));
                }
                Err(_) => prop_assert!(at < FRAME_HEADER + header.body_len as usize),
            }
        }

        #[test]
        fn random_bytes_are_no_frame(
            mut bytes in prop::collection::vec(any::<u8>(), 0..5000), magic in any::<bool>(),
        ) {
            if magic && bytes.len() >= 8 {
                bytes[..8].copy_from_slice(&MAGIC);
            }
            prop_assert!(parse(&bytes).is_err());
        }

        #[test]
        fn a_header_with_a_right_crc_never_panics(
            mut bytes in prop::collection::vec(any::<u8>(), 128..5000),
        ) {
            bytes[..8].copy_from_slice(&MAGIC);
            bytes[8..16].copy_from_slice(&[1, 0, 128, 0, 0, 0, 0, 0]);
            let len = [bytes[60], bytes[61] & 0xF, 0, 0];
            bytes[60..64].copy_from_slice(&len);
            bytes[96..124].fill(0);
            let crc = crc32c(&bytes[..CRC_AT]);
            bytes[CRC_AT..FRAME_HEADER].copy_from_slice(&crc.to_le_bytes());
            prop_assert!(parse(&bytes).is_err());
        }
    }

    #[test]
    fn a_newer_version_is_told_apart_from_damage() {
        let (_, mut out) = sealed(&[]);
        out[8] = 2;
        assert_eq!(parse(&out), Err(FrameError::HeaderCrc));
        let crc = crc32c(&out[..CRC_AT]);
        out[CRC_AT..FRAME_HEADER].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(parse(&out), Err(FrameError::Newer(2)));
    }

    #[test]
    fn spans_are_whole_pages() {
        assert_eq!(span_of(0), 4096);
        assert_eq!(span_of(4096 - 128), 4096);
        assert_eq!(span_of(4096 - 127), 8192);
    }
}
