//! One block in 39 bytes.

use memkv_journal::{BlockId, UnitRange};

use super::pieces::Idle;
use crate::DriveId;
use crate::block::{Block, KeyHash};
use crate::drives::DRIVES_MAX;
use crate::reserve::units_for;

/// Bytes of an entry.
pub const ENTRY_BYTES: usize = 39;
/// Generations end here: with a million puts a second, after nine years.
pub const GENERATION_MAX: u64 = (1 << 48) - 1;
/// The last moment a block may expire at, in February of 2106; one that would later does then.
pub const EXPIRES_MAX: u64 = u32::MAX as u64;

const GENERATION: usize = 16;
const DRIVE: usize = 22;
const EXPIRES: usize = 23;
const LENGTH: usize = 27;
const START: usize = 31;
const CRC: usize = 35;

/// Bits of the length.
const LENGTH_BITS: u32 = 27;
/// It is in the index.
const PUBLISHED: u32 = 1 << 27;
/// Its bytes failed their CRC: a miss from then on, also while its removal still waits.
const CORRUPT: u32 = 1 << 28;
/// The bytes of its one extent were checked since the last unclean start, or written by us.
const VERIFIED: u32 = 1 << 29;
/// What does not fit is in a row of its own.
const ROW: u32 = 1 << 30;
/// Somebody reads it.
const PINNED: u32 = 1 << 31;

const _: () = assert!(size_of::<Entry>() == ENTRY_BYTES && CRC + 4 == ENTRY_BYTES);
const _: () = assert!(DRIVES_MAX <= 1 << 8, "a drive's number is a byte");

/// What the index keeps of a block, little-endian and without padding: of ten million blocks each
/// byte is ten megabytes.
///
/// ```text
///  0 hash 16
/// 16 generation 6 | 22 drive 1 | 23 expires 4 | 27 length, 27 bits; 5 flags | 31 start 4 | 35 crc 4
/// ```
///
/// The units of an extent follow from its length. Where they do not, and where a block has several
/// extents or unusual flags in its record, `start` is the number of a row that has all that.
#[derive(Clone, Copy)]
pub struct Entry([u8; ENTRY_BYTES]);

impl Default for Entry {
    fn default() -> Self {
        Self([0; ENTRY_BYTES])
    }
}

/// One extent as the index keeps it: without the byte offset that follows from its units.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Span {
    /// Which drive.
    pub drive: DriveId,
    /// Which units of it.
    pub range: UnitRange,
    /// Payload bytes in it.
    pub length: u32,
    /// CRC32C of the payload bytes.
    pub crc: u32,
}

impl Span {
    /// Whether its units follow from its length.
    pub fn is_plain(&self) -> bool {
        self.range.count == units_for(self.length)
    }
}

/// What does not fit into an entry.
#[derive(Default)]
pub(super) struct Row {
    pub spans: Box<[Span]>,
    /// One bit per extent.
    pub verified: u16,
    /// Flags of its record but that of being unverified.
    pub flags: u16,
    next: u32,
}

impl Row {
    /// How many extents the row of a block has, if it needs one.
    pub fn needed_by(block: &Block) -> Option<usize> {
        let plain = match block.extents.as_slice() {
            [extent] => extent.span().is_plain() && block.flags == 0,
            _ => false,
        };
        (!plain).then_some(block.extents.len())
    }

    pub fn new(spans: Box<[Span]>, verified: u16, flags: u16) -> Self {
        Self { spans, verified, flags, next: 0 }
    }
}

impl Idle for Row {
    fn next(&self) -> u32 {
        self.next
    }

    fn idle(next: u32) -> Self {
        Self { next, ..Self::default() }
    }
}

impl Idle for Entry {
    fn next(&self) -> u32 {
        self.word(START)
    }

    fn idle(next: u32) -> Self {
        let mut entry = Self::default();
        entry.set(START, next);
        entry
    }
}

impl Entry {
    /// The entry of a block that is published: with the number of its row, or 0 when it needs none.
    pub(super) fn of(block: &Block, row: u32) -> Self {
        let mut entry = match row {
            0 => {
                let first = block.extents[0].span();
                Self::plain(block.id, first, block.expires, block.verified & 1 == 1)
            }
            row => Self::with_row(block.id, block.length, block.expires, row),
        };
        entry.set_flag(CORRUPT, block.corrupt);
        entry
    }

    /// The entry of a block that is published and needs no row.
    pub(super) fn plain(id: BlockId, span: Span, expires: u64, verified: bool) -> Self {
        let mut entry = Self::new(id, u64::from(span.length), expires);
        entry.set_drive(span.drive);
        entry.set(START, span.range.start);
        entry.set(CRC, span.crc);
        entry.set_flag(VERIFIED, verified);
        entry
    }

    /// The entry of a block that is published and has the row of this number.
    pub(super) fn with_row(id: BlockId, length: u64, expires: u64, row: u32) -> Self {
        let mut entry = Self::new(id, length, expires);
        entry.set_row(row);
        entry
    }

    fn new(id: BlockId, length: u64, expires: u64) -> Self {
        assert!(id.generation <= GENERATION_MAX, "generations were checked");
        assert!(expires <= EXPIRES_MAX, "no block lives longer");
        assert!(length > 0 && length < 1 << LENGTH_BITS, "a block has 1 byte to 64 MiB");
        let mut entry = Self::default();
        entry.0[..GENERATION].copy_from_slice(&id.hash.to_le_bytes());
        entry.0[GENERATION..DRIVE].copy_from_slice(&id.generation.to_le_bytes()[..6]);
        entry.set(EXPIRES, expires as u32);
        entry.set(LENGTH, length as u32 | PUBLISHED);
        entry
    }

    fn word(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.0[at..at + 4].try_into().expect("4 bytes"))
    }

    fn set(&mut self, at: usize, word: u32) {
        self.0[at..at + 4].copy_from_slice(&word.to_le_bytes());
    }

    fn flag(&self, flag: u32) -> bool {
        self.word(LENGTH) & flag != 0
    }

    fn set_flag(&mut self, flag: u32, to: bool) {
        let word = self.word(LENGTH) & !flag;
        self.set(LENGTH, word | if to { flag } else { 0 });
    }

    /// Whether there is a block.
    pub(super) fn is_used(&self) -> bool {
        self.length() != 0
    }

    /// The key's hash.
    pub fn hash(&self) -> KeyHash {
        KeyHash(u128::from_le_bytes(self.0[..GENERATION].try_into().expect("16 bytes")))
    }

    /// Which of the key's values it is.
    pub fn generation(&self) -> u64 {
        let mut bytes = [0; 8];
        bytes[..6].copy_from_slice(&self.0[GENERATION..DRIVE]);
        u64::from_le_bytes(bytes)
    }

    /// Both.
    pub fn id(&self) -> BlockId {
        BlockId { hash: self.hash().0, generation: self.generation() }
    }

    /// Bytes of the value.
    pub fn length(&self) -> u64 {
        u64::from(self.word(LENGTH) & ((1 << LENGTH_BITS) - 1))
    }

    /// Unix seconds after which it is a miss; 0 is never.
    pub fn expires(&self) -> u64 {
        u64::from(self.word(EXPIRES))
    }

    /// False once it left the index.
    pub fn is_published(&self) -> bool {
        self.flag(PUBLISHED)
    }

    pub(super) fn unpublish(&mut self) {
        self.set_flag(PUBLISHED, false);
    }

    /// Whether its bytes failed their CRC.
    pub fn is_corrupt(&self) -> bool {
        self.flag(CORRUPT)
    }

    pub(super) fn set_corrupt(&mut self) {
        self.set_flag(CORRUPT, true);
    }

    /// Whether somebody reads it.
    pub fn is_pinned(&self) -> bool {
        self.flag(PINNED)
    }

    pub(super) fn set_pinned(&mut self, to: bool) {
        self.set_flag(PINNED, to);
    }

    pub(super) fn is_verified(&self) -> bool {
        self.flag(VERIFIED)
    }

    pub(super) fn set_verified(&mut self, to: bool) {
        self.set_flag(VERIFIED, to);
    }

    /// Its one extent is on this drive.
    pub(super) fn set_drive(&mut self, drive: DriveId) {
        self.0[DRIVE] =
            u8::try_from(drive.0).expect("there are as many drives as a byte can tell apart");
    }

    pub(super) fn set_row(&mut self, row: u32) {
        self.set(START, row);
        self.set_flag(ROW, true);
    }

    /// The number of its row, if it has one.
    pub(super) fn row(&self) -> Option<u32> {
        self.flag(ROW).then(|| self.word(START))
    }

    /// The one extent of a block without a row.
    pub(super) fn span(&self) -> Span {
        assert!(!self.flag(ROW), "the extents are in a row");
        let length = self.length() as u32;
        Span {
            drive: DriveId(u16::from(self.0[DRIVE])),
            range: UnitRange { start: self.word(START), count: units_for(length) },
            length,
            crc: self.word(CRC),
        }
    }
}
