//! A checkpoint: all that lives on the drive, in columns, so that the log before it may be
//! forgotten.
//!
//! There are two areas, A and B, written in turn; the superblock says which is in force. A
//! checkpoint is *fuzzy*: it names the frame its log starts at, the store goes on appending while
//! its snapshot is written, and what the snapshot already knows of later frames does no harm,
//! because records are idempotent. [`codec`] draws the area.

pub mod codec;
pub(crate) mod desk;
pub(crate) mod merge;
pub(crate) mod read;
mod run;
pub(crate) mod walk;
pub(crate) mod write;

pub use codec::CheckpointError;
pub use merge::{Living, Merged};
pub use read::LoadError;
pub use run::Closing;
pub use walk::PLACE_BITS;
