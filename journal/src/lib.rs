//! What one drive remembers: superblock, log, checkpoint, allocator.
//!
//! A drive describes only itself. Which blocks are on it is a list of [`Record`]s; what was
//! appended last is in a ring of frames (the log), what was known before in one of two checkpoints,
//! and where both are in the superblock. Opening a drive reads the three and gives back what lives;
//! from then on [`Journal::append`] adds to it, and a checkpoint now and then lets the log begin
//! anew.
//!
//! ```text
//! | superblock ×4 | journal ring | checkpoint A | checkpoint B | data |
//!        │            ▲  one write in flight,          ▲
//!        │            └─ all who wait ride together    └─ in turn; the superblock names one
//! ```
//!
//! The promise: what was acknowledged is found after the process is killed, and after
//! [`Journal::flush`] also after a power cut; what was not appended is never found; and whatever a
//! drive tears, loses or rots costs the records it touched and no others.
//!
//! Read [`record`] for what is remembered, [`frame`] for how it lies in the ring, [`superblock`]
//! and [`quorum`](read_superblock) for the anchor of it all, [`recovery::decision`] for what is
//! done with a damaged log, [`membership`] for which drives form a node, and `docs/format.md` for the whole drawn on one page. Nothing here
//! knows the time, a random number or a thread that was not handed in, so the same code runs in the
//! simulator.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod allocator;
mod append;
mod check;
pub mod checkpoint;
mod commit;
mod crc;
mod flush;
mod format;
pub mod frame;
mod ids;
mod inspect;
mod journal;
mod layout;
mod log;
pub mod membership;
pub mod probe;
mod quorum;
pub mod record;
pub mod recovery;
pub mod superblock;
mod trim;

pub use allocator::MarkError;
pub use append::{Append, Applied};
pub use check::{Contents, ExtentFault, read_contents, verify_extent};
pub use checkpoint::{Closing, Living, Merged, PLACE_BITS};
pub use format::{FormatError, Past, Prepared, format, prepare};
pub use ids::{
    BlockId, DriveUuid, EXTENT_UNITS, KEY_BYTES_MAX, KEY_MAX, KeyBytes, KeyError, NAME_MAX,
    NodeUuid, PARTS_MAX, UNIT, UnitRange,
};
pub use inspect::{CopyBytes, CopyState, Inspection, copy_offset, inspect};
pub use journal::{CheckpointStart, Journal, JournalError, JournalStats, Recovered, open};
pub use layout::{
    FormatOptions, Layout, LayoutError, RING_MIN, SUPERBLOCK_BYTES, SUPERBLOCK_COPIES,
    SUPERBLOCK_STRIDE,
};
pub use membership::{Membership, MembershipError, Standing};
pub use quorum::{ReadError, erase_superblock, read_copies, read_superblock};
pub use record::{KeyLen, KeyPart, Kind, PartRef, RECORD_MAX, Record, RecordError, Usage, View};
pub use recovery::{Gather, OpenError, RecoveryReport, Unusable};
pub use superblock::{Identity, MEMBERS_MAX, Superblock, SuperblockError};
pub use trim::{TrimConfig, TrimStats};
