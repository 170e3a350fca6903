//! The superblock: who this drive is, how it is laid out, and where its log begins.
//!
//! Four copies of 4 KiB lie at the start of the drive, 16 KiB apart. All little-endian:
//!
//! ```text
//!    0  magic "MEMKVSB\1"  8
//!    8  copy u16 | zero u16             which of the four; not summed, so that all sums are equal
//!   12  crc u32                         CRC32C of bytes 16..4096
//!   16  version u32 | zero u32
//!   24  compatible u64 | read-only-compatible u64 | incompatible u64       feature bits
//!   48  revision u64                    one more with every superblock written
//!   56  node uuid 16 | 72 drive uuid 16 | 88 epoch u64 | 96 secret 32
//!  128  capacity u64 | 136 sector u32 | 140 unit u32
//!  144  ring offset u64 | ring bytes u64
//!  160  checkpoint A u64 | checkpoint B u64 | bytes of each u64
//!  184  data offset u64 | 192 units u32 | 196 largest frame u32
//!  200  limits: rows u64 | part references u64 | key bytes u64
//!  224  active u8 | clean u8 | extent units u16 | zero 4
//!  232  incarnation u64 | generation_high u64 | clock_high u64
//!  256  checkpoints 2 × (number u64 | start sequence u64 | start position u64 | zero u64)
//!  320  starts u32 | zero u32 | 328 starts 16 × (incarnation u64 | first sequence u64)
//!  584  members u32 | zero u32 | 592 members 64 × uuid 16
//! 1616  zero: fields of later versions
//! ```
//!
//! *Feature bits.* A version that does not know a bit may ignore it (compatible), may only read the
//! drive (read-only-compatible), or must leave it alone (incompatible). *Starts* name the first
//! frame of each of the last incarnations, so that a frame which an earlier incarnation left beyond
//! the end of its log is never taken for one of a later one.

use std::fmt;

use thiserror::Error;
use uuid::Uuid;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::crc::crc32c;
use crate::ids::{DriveUuid, NodeUuid, UNIT};
use crate::layout::{Layout, SUPERBLOCK_BYTES, SUPERBLOCK_COPIES};
use crate::record::Usage;

/// Most drives of a node.
pub const MEMBERS_MAX: usize = 64;
/// Incarnations whose first sequence the superblock names.
pub const STARTS_MAX: usize = 16;
/// Version of the format this program writes, and the newest it reads.
pub const VERSION: u32 = 1;

/// No counter ever gets this far; what does on a drive is damage, and adding to it would overflow.
pub(crate) const COUNTER_MAX: u64 = 1 << 62;

/// What counters that were read may have been counted up to since, and be written.
const COUNTER_WRITTEN_MAX: u64 = 1 << 63;

const MAGIC: [u8; 8] = *b"MEMKVSB\x01";
const SUMMED_FROM: usize = 16;

/// Feature bits of a drive. This version defines none.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Features {
    /// May be ignored by who does not know them.
    pub compatible: u64,
    /// Who does not know them may read and must not write.
    pub read_only_compatible: u64,
    /// Who does not know them must leave the drive alone.
    pub incompatible: u64,
}

/// Who the drive is and whom it belongs to.
#[derive(Clone, PartialEq, Eq)]
pub struct Identity {
    /// The node.
    pub node: NodeUuid,
    /// The drive.
    pub drive: DriveUuid,
    /// Counts the memberships of the node.
    pub epoch: u64,
    /// The node's drives, at most [`MEMBERS_MAX`].
    pub members: Vec<DriveUuid>,
    /// The store's secret, under which keys are hashed.
    pub secret: [u8; 32],
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The secret stays out of every log.
        f.debug_struct("Identity")
            .field("node", &self.node)
            .field("drive", &self.drive)
            .field("epoch", &self.epoch)
            .field("members", &self.members)
            .finish_non_exhaustive()
    }
}

/// A checkpoint as the superblock names it: which one should be in the area, and where the log that
/// follows it begins. Number 0 is the empty checkpoint a drive is born with; it is nowhere on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CheckpointRef {
    /// Counts the checkpoints of this drive.
    pub number: u64,
    /// Sequence of the first frame that is not in the checkpoint.
    pub start_sequence: u64,
    /// Position of that frame.
    pub start_position: u64,
}

impl CheckpointRef {
    /// The checkpoint of a drive just formatted.
    pub const EMPTY: CheckpointRef =
        CheckpointRef { number: 0, start_sequence: 1, start_position: 0 };
}

/// The first frame of an incarnation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Start {
    /// Which start of the journal.
    pub incarnation: u64,
    /// Sequence of the first frame it wrote, or would have written.
    pub first_sequence: u64,
}

/// A superblock in memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Superblock {
    /// Feature bits.
    pub features: Features,
    /// One more with every superblock written.
    pub revision: u64,
    /// Who the drive is.
    pub identity: Identity,
    /// Where things are.
    pub layout: Layout,
    /// Which checkpoint is in force: 0 for A, 1 for B.
    pub active: usize,
    /// Whether the last checkpoint was the last word of an orderly stop over verified blocks.
    pub clean: bool,
    /// Counts the starts of the journal.
    pub incarnation: u64,
    /// No generation above this one was recorded.
    pub generation_high: u64,
    /// Latest unix second known.
    pub clock_high: u64,
    /// Checkpoints A and B.
    pub checkpoints: [CheckpointRef; 2],
    /// First frames of the last incarnations, oldest first.
    pub starts: Vec<Start>,
}

/// Why bytes are not a superblock this program may use.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum SuperblockError {
    /// Fewer bytes than a copy has.
    #[error("a superblock has {SUPERBLOCK_BYTES} bytes, not {0}")]
    Short(usize),
    /// Not the magic.
    #[error("no superblock is here")]
    Magic,
    /// The sum does not match.
    #[error("the superblock is damaged")]
    Crc,
    /// Written by a later version of the format.
    #[error(
        "the drive has format version {found}; this program knows versions up to {VERSION}: \
         use a newer memkv"
    )]
    Newer {
        /// Version found.
        found: u32,
    },
    /// An incompatible feature is in use.
    #[error("the drive uses features this program does not know (bits {0:#x}): use a newer memkv")]
    Incompatible(u64),
    /// A feature is in use that forbids writing.
    #[error(
        "the drive uses features under which this program may only read it (bits {0:#x}): \
         use a newer memkv"
    )]
    ReadOnly(u64),
    /// The sum matches and a field says what cannot be.
    #[error("the superblock's {0} makes no sense")]
    Field(&'static str),
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawCheckpoint {
    number: U64,
    start_sequence: U64,
    start_position: U64,
    zero: U64,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawStart {
    incarnation: U64,
    first_sequence: U64,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Raw {
    magic: [u8; 8],
    copy: U16,
    zero: U16,
    crc: U32,
    version: U32,
    zero_version: U32,
    compatible: U64,
    read_only_compatible: U64,
    incompatible: U64,
    revision: U64,
    node: [u8; 16],
    drive: [u8; 16],
    epoch: U64,
    secret: [u8; 32],
    capacity: U64,
    sector: U32,
    unit: U32,
    ring_offset: U64,
    ring_bytes: U64,
    checkpoint_offset: [U64; 2],
    checkpoint_bytes: U64,
    data_offset: U64,
    units: U32,
    frame_max: U32,
    limits: [U64; 3],
    active: u8,
    clean: u8,
    extent_units: U16,
    zero_flags: [u8; 4],
    incarnation: U64,
    generation_high: U64,
    clock_high: U64,
    checkpoints: [RawCheckpoint; 2],
    start_count: U32,
    zero_starts: U32,
    starts: [RawStart; STARTS_MAX],
    member_count: U32,
    zero_members: U32,
    members: [[u8; 16]; MEMBERS_MAX],
    later: [u8; 2480],
}

const _: () = assert!(size_of::<Raw>() == SUPERBLOCK_BYTES);
const _: () = assert!(std::mem::offset_of!(Raw, node) == 56);
const _: () = assert!(std::mem::offset_of!(Raw, limits) == 200);
const _: () = assert!(std::mem::offset_of!(Raw, checkpoints) == 256);
const _: () = assert!(std::mem::offset_of!(Raw, members) == 592);
const _: () = assert!(std::mem::offset_of!(Raw, later) == 1616);

/// What can be said of a copy before its version is understood: enough to hold a vote.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Ballot {
    pub(crate) revision: u64,
    pub(crate) crc: u32,
}

/// Checks magic, sum and copy number. This much of the layout no later version may change.
pub(crate) fn ballot(bytes: &[u8], copy: usize) -> Result<Ballot, SuperblockError> {
    let raw = whole(bytes)?;
    if usize::from(raw.copy.get()) != copy {
        // A copy that lies where another belongs was put there by mistake.
        return Err(SuperblockError::Field("copy number"));
    }
    Ok(Ballot { revision: raw.revision.get(), crc: raw.crc.get() })
}

fn whole(bytes: &[u8]) -> Result<Raw, SuperblockError> {
    let bytes = bytes.get(..SUPERBLOCK_BYTES).ok_or(SuperblockError::Short(bytes.len()))?;
    let raw = Raw::read_from_bytes(bytes).map_err(|_| SuperblockError::Short(bytes.len()))?;
    if raw.magic != MAGIC {
        return Err(SuperblockError::Magic);
    }
    if raw.crc.get() != crc32c(&bytes[SUMMED_FROM..]) {
        return Err(SuperblockError::Crc);
    }
    Ok(raw)
}

impl Superblock {
    /// That of a drive that was never used: its first revision, and nothing stored.
    #[must_use]
    pub fn new(identity: Identity, layout: Layout) -> Superblock {
        Superblock {
            features: Features::default(),
            revision: 1,
            identity,
            layout,
            active: 0,
            clean: true,
            incarnation: 0,
            generation_high: 0,
            clock_high: 0,
            checkpoints: [CheckpointRef::EMPTY; 2],
            starts: Vec::new(),
        }
    }

    /// Writes one copy into `out`.
    ///
    /// # Panics
    /// When `out` is shorter than a copy, or a list is longer than its field.
    pub fn encode(&self, copy: usize, out: &mut [u8]) {
        assert!(copy < SUPERBLOCK_COPIES);
        let mut raw = Raw::new_zeroed();
        raw.magic = MAGIC;
        raw.copy = (copy as u16).into();
        raw.version = VERSION.into();
        raw.compatible = self.features.compatible.into();
        raw.read_only_compatible = self.features.read_only_compatible.into();
        raw.incompatible = self.features.incompatible.into();
        raw.revision = self.revision.into();
        raw.active = self.active as u8;
        raw.clean = u8::from(self.clean);
        raw.incarnation = self.incarnation.into();
        raw.generation_high = self.generation_high.into();
        raw.clock_high = self.clock_high.into();
        self.encode_identity(&mut raw);
        self.encode_layout(&mut raw);
        self.encode_log(&mut raw);
        let out = &mut out[..SUPERBLOCK_BYTES];
        out.copy_from_slice(raw.as_bytes());
        let crc = crc32c(&out[SUMMED_FROM..]);
        out[12..16].copy_from_slice(&crc.to_le_bytes());
        let written = Superblock::parse_up_to(COUNTER_WRITTEN_MAX, out);
        assert_eq!(written.as_ref(), Ok(self), "what is written can be read");
    }

    fn encode_identity(&self, raw: &mut Raw) {
        let identity = &self.identity;
        raw.node = *identity.node.0.as_bytes();
        raw.drive = *identity.drive.0.as_bytes();
        raw.epoch = identity.epoch.into();
        raw.secret = identity.secret;
        assert!(identity.members.len() <= MEMBERS_MAX, "a node has at most 64 drives");
        raw.member_count = (identity.members.len() as u32).into();
        for (to, member) in raw.members.iter_mut().zip(&identity.members) {
            *to = *member.0.as_bytes();
        }
    }

    fn encode_layout(&self, raw: &mut Raw) {
        let layout = &self.layout;
        raw.capacity = layout.capacity.into();
        raw.sector = layout.sector.into();
        raw.unit = (UNIT as u32).into();
        raw.ring_offset = layout.ring_offset.into();
        raw.ring_bytes = layout.ring_bytes.into();
        raw.checkpoint_offset = layout.checkpoint_offset.map(U64::from);
        raw.checkpoint_bytes = layout.checkpoint_bytes.into();
        raw.data_offset = layout.data_offset.into();
        raw.units = layout.units.into();
        raw.frame_max = layout.frame_max.into();
        raw.extent_units = layout.extent_units.into();
        let limits = layout.limits;
        raw.limits = [limits.rows, limits.parts, limits.key_bytes].map(U64::from);
    }

    fn encode_log(&self, raw: &mut Raw) {
        for (to, checkpoint) in raw.checkpoints.iter_mut().zip(&self.checkpoints) {
            to.number = checkpoint.number.into();
            to.start_sequence = checkpoint.start_sequence.into();
            to.start_position = checkpoint.start_position.into();
        }
        assert!(self.starts.len() <= STARTS_MAX, "the oldest starts are dropped");
        raw.start_count = (self.starts.len() as u32).into();
        for (to, start) in raw.starts.iter_mut().zip(&self.starts) {
            to.incarnation = start.incarnation.into();
            to.first_sequence = start.first_sequence.into();
        }
    }

    /// Reads one copy, whichever it is. The entry for fuzzers and offline readers; a drive is read
    /// with [`crate::read_superblock`], which asks all four.
    pub fn parse(bytes: &[u8]) -> Result<Superblock, SuperblockError> {
        Superblock::parse_up_to(COUNTER_MAX, bytes)
    }

    fn parse_up_to(counter_max: u64, bytes: &[u8]) -> Result<Superblock, SuperblockError> {
        let raw = whole(bytes)?;
        if raw.version.get() > VERSION {
            return Err(SuperblockError::Newer { found: raw.version.get() });
        }
        if raw.version.get() == 0 {
            return Err(SuperblockError::Field("version"));
        }
        if raw.incompatible.get() != 0 {
            return Err(SuperblockError::Incompatible(raw.incompatible.get()));
        }
        if raw.read_only_compatible.get() != 0 {
            return Err(SuperblockError::ReadOnly(raw.read_only_compatible.get()));
        }
        let superblock = Superblock {
            features: Features { compatible: raw.compatible.get(), ..Features::default() },
            revision: raw.revision.get(),
            identity: parse_identity(&raw)?,
            layout: parse_layout(&raw)?,
            active: usize::from(raw.active),
            clean: raw.clean == 1,
            incarnation: raw.incarnation.get(),
            generation_high: raw.generation_high.get(),
            clock_high: raw.clock_high.get(),
            checkpoints: raw.checkpoints.map(|checkpoint| CheckpointRef {
                number: checkpoint.number.get(),
                start_sequence: checkpoint.start_sequence.get(),
                start_position: checkpoint.start_position.get(),
            }),
            starts: parse_starts(&raw)?,
        };
        if raw.active > 1 || raw.clean > 1 {
            return Err(SuperblockError::Field("active checkpoint"));
        }
        let mut counters = vec![superblock.revision, superblock.incarnation];
        counters.extend([superblock.identity.epoch, superblock.generation_high]);
        counters.push(superblock.clock_high);
        for at in &superblock.checkpoints {
            counters.extend([at.number, at.start_sequence, at.start_position]);
        }
        counters.extend(superblock.starts.iter().map(|start| start.first_sequence));
        if counters.iter().any(|counter| *counter > counter_max) {
            return Err(SuperblockError::Field("set of counters"));
        }
        let last = superblock.starts.last().map_or(0, |start| start.incarnation);
        if last > superblock.incarnation {
            return Err(SuperblockError::Field("incarnation"));
        }
        let misplaced = |at: &CheckpointRef| !at.start_position.is_multiple_of(4096);
        if superblock.checkpoints.iter().any(misplaced) {
            return Err(SuperblockError::Field("ring start"));
        }
        Ok(superblock)
    }

    /// The checkpoint in force.
    pub fn active_checkpoint(&self) -> CheckpointRef {
        self.checkpoints[self.active]
    }
}

fn parse_identity(raw: &Raw) -> Result<Identity, SuperblockError> {
    let count = raw.member_count.get() as usize;
    let members = raw.members.get(..count).ok_or(SuperblockError::Field("member count"))?;
    Ok(Identity {
        node: NodeUuid(Uuid::from_bytes(raw.node)),
        drive: DriveUuid(Uuid::from_bytes(raw.drive)),
        epoch: raw.epoch.get(),
        members: members.iter().map(|member| DriveUuid(Uuid::from_bytes(*member))).collect(),
        secret: raw.secret,
    })
}

fn parse_layout(raw: &Raw) -> Result<Layout, SuperblockError> {
    if raw.unit.get() as usize != UNIT {
        return Err(SuperblockError::Field("unit size"));
    }
    let [rows, parts, key_bytes] = raw.limits.map(U64::get);
    let layout = Layout {
        capacity: raw.capacity.get(),
        sector: raw.sector.get(),
        ring_offset: raw.ring_offset.get(),
        ring_bytes: raw.ring_bytes.get(),
        checkpoint_offset: raw.checkpoint_offset.map(U64::get),
        checkpoint_bytes: raw.checkpoint_bytes.get(),
        data_offset: raw.data_offset.get(),
        units: raw.units.get(),
        frame_max: raw.frame_max.get(),
        extent_units: raw.extent_units.get(),
        limits: Usage { rows, parts, key_bytes },
    };
    if layout.is_sound() { Ok(layout) } else { Err(SuperblockError::Field("layout")) }
}

fn parse_starts(raw: &Raw) -> Result<Vec<Start>, SuperblockError> {
    let count = raw.start_count.get() as usize;
    let starts = raw.starts.get(..count).ok_or(SuperblockError::Field("start count"))?;
    let starts: Vec<Start> = starts
        .iter()
        .map(|start| Start {
            incarnation: start.incarnation.get(),
            first_sequence: start.first_sequence.get(),
        })
        .collect();
    let ascending = starts
        .is_sorted_by(|a, b| a.incarnation < b.incarnation && a.first_sequence <= b.first_sequence);
    let first = starts.first().map_or(1, |start| start.incarnation);
    if ascending && first > 0 { Ok(starts) } else { Err(SuperblockError::Field("list of starts")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::FormatOptions;
    use memkv_block::Geometry;
    use proptest::prelude::*;

    fn superblock(members: usize, starts: usize, numbers: [u64; 6]) -> Superblock {
        let numbers = numbers.map(|number| number % COUNTER_MAX);
        let geometry = Geometry { capacity: 64 << 20, sector: 512, max_transfer: 1 << 20 };
        let uuid = |n: usize| DriveUuid(Uuid::from_u128(n as u128 * 77 + 1));
        let checkpoint = |number| CheckpointRef {
            number,
            start_sequence: number / 3,
            start_position: number / 5 * 4096,
        };
        Superblock {
            features: Features { compatible: numbers[5], ..Features::default() },
            revision: numbers[0],
            identity: Identity {
                node: NodeUuid(Uuid::from_u128(9)),
                drive: uuid(0),
                epoch: numbers[1],
                members: (0..members).map(uuid).collect(),
                secret: [3; 32],
            },
            layout: Layout::plan(&geometry, &FormatOptions::default()).unwrap(),
            active: (numbers[2] % 2) as usize,
            clean: numbers[3].is_multiple_of(2),
            incarnation: numbers[2].max(2 * starts as u64),
            generation_high: numbers[3],
            clock_high: numbers[4],
            checkpoints: [checkpoint(numbers[3] >> 16), checkpoint(numbers[4] >> 16)],
            starts: (0..starts as u64)
                .map(|n| Start { incarnation: n * 2 + 1, first_sequence: n * n })
                .collect(),
        }
    }

    proptest! {
        #[test]
        fn every_copy_reads_back_and_a_changed_byte_is_noticed(
            members in 0usize..=MEMBERS_MAX, starts in 0usize..=STARTS_MAX,
            numbers in any::<[u64; 6]>(),
            copy in 0usize..4, at in 0usize..SUPERBLOCK_BYTES, flip in 1u8..,
        ) {
            let superblock = superblock(members, starts, numbers);
            let mut out = vec![0; SUPERBLOCK_BYTES];
            superblock.encode(copy, &mut out);
            prop_assert_eq!(Superblock::parse(&out), Ok(superblock.clone()));
            let ballot_before = ballot(&out, copy);
            prop_assert_eq!(ballot_before.map(|ballot| ballot.revision), Ok(superblock.revision));
            prop_assert!(ballot(&out, (copy + 1) % 4).is_err());
            out[at] ^= flip;
            // The copy number is outside the sum, so that all sums are equal; the ballot checks it.
            if (8..12).contains(&at) {
                prop_assert_eq!(Superblock::parse(&out), Ok(superblock));
            } else {
                prop_assert!(Superblock::parse(&out).is_err());
                prop_assert!(ballot(&out, copy).is_err());
            }
        }

        #[test]
        fn random_fields_under_a_right_sum_never_panic(
            changes in prop::collection::vec((16usize..SUPERBLOCK_BYTES, any::<u8>()), 1..40),
            early in any::<bool>(),
        ) {
            let mut out = vec![0; SUPERBLOCK_BYTES];
            superblock(3, 4, [5; 6]).encode(0, &mut out);
            for (at, byte) in changes {
                out[if early { 48 + at % 700 } else { at }] = byte;
            }
            let crc = crc32c(&out[SUMMED_FROM..]);
            out[12..16].copy_from_slice(&crc.to_le_bytes());
            if let Ok(superblock) = Superblock::parse(&out) {
                let mut again = vec![0; SUPERBLOCK_BYTES];
                superblock.encode(0, &mut again);
                prop_assert_eq!(Superblock::parse(&again), Ok(superblock));
            }
        }

        #[test]
        fn random_bytes_are_no_superblock(bytes in prop::collection::vec(any::<u8>(), 0..5000)) {
            prop_assert!(Superblock::parse(&bytes).is_err());
        }
    }

    #[test]
    fn counters_end_long_before_they_could_overflow() {
        let parsed = |generation_high: u64| {
            let mut out = vec![0; SUPERBLOCK_BYTES];
            superblock(1, 0, [1; 6]).encode(0, &mut out);
            out[240..248].copy_from_slice(&generation_high.to_le_bytes());
            let crc = crc32c(&out[SUMMED_FROM..]);
            out[12..16].copy_from_slice(&crc.to_le_bytes());
            Superblock::parse(&out).map(|superblock| superblock.generation_high)
        };
        assert_eq!(parsed(COUNTER_MAX), Ok(COUNTER_MAX));
        assert_eq!(parsed(COUNTER_MAX + 1), Err(SuperblockError::Field("set of counters")));
    }

    #[test]
    fn the_secret_is_not_shown() {
        let identity = superblock(1, 0, [1; 6]).identity;
        let shown = format!("{identity:?}");
        assert!(shown.contains(&identity.drive.to_string()), "{shown}");
        assert!(!shown.contains("secret") && !shown.contains("3, 3, 3"), "{shown}");
    }
}
