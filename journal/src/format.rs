//! Making a drive ours.

use memkv_block::{BlockQueue, Geometry, IoError};
use memkv_dma::{Class, Pool};
use thiserror::Error;

use crate::layout::{FormatOptions, Layout, LayoutError};
use crate::quorum::{erase_superblock, exclusive, write_superblock};
use crate::superblock::{Identity, MEMBERS_MAX, Superblock};

/// Bytes zeroed at a time.
const STEP: usize = 1 << 20;

/// Why a drive cannot be formatted.
#[derive(Debug, Error)]
pub enum FormatError {
    /// It cannot be laid out as asked.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The list of members is too long, or lacks the drive itself.
    #[error("a node has 1 to {MEMBERS_MAX} drives, this one among them; the list has {members}")]
    Members {
        /// Drives in the list.
        members: usize,
    },
    /// The drive failed.
    #[error("the drive failed while it was formatted")]
    Io(#[from] IoError),
}

/// Formats a drive; everything on it is lost. Data units are not touched.
///
/// 1. All superblock copies are erased: a format that does not finish leaves an unformatted drive.
/// 2. The ring is written with zeros, so that its space is there, and the first page of both
///    checkpoints, so that neither is taken for one of this format.
/// 3. Flush, then the superblock.
pub async fn format(
    queue: &dyn BlockQueue,
    geometry: &Geometry,
    pool: &Pool,
    identity: Identity,
    options: FormatOptions,
) -> Result<Superblock, FormatError> {
    let members = identity.members.len();
    if members > MEMBERS_MAX || !identity.members.contains(&identity.drive) {
        return Err(FormatError::Members { members });
    }
    let prepared = prepare(queue, geometry, pool, options).await?;
    prepared.enter(queue, pool, identity, Past::NONE).await
}

/// What a node did before a drive became a member of it. A later start may have that drive and no
/// other, and must not give out again what was given out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Past {
    /// The highest generation that was given out, as far as it is known.
    pub generation_high: u64,
    /// Whether that is all: the node has stopped in order.
    pub clean: bool,
}

impl Past {
    /// That of a new node.
    pub const NONE: Past = Past { generation_high: 0, clean: true };

    /// What the members of a node that is stopped tell of it.
    pub fn of(members: &[&Superblock]) -> Past {
        let generations = members.iter().map(|superblock| superblock.generation_high);
        Past {
            generation_high: generations.max().unwrap_or(0),
            clean: members.iter().all(|superblock| superblock.clean),
        }
    }
}

/// A drive that lacks nothing but its superblock: unformatted to whoever looks at it.
pub struct Prepared(Layout);

/// All of a format but the superblock, which takes the time; everything on the drive is lost.
///
/// # Errors
/// [`FormatError`]; the drive is unformatted then, or as it was.
pub async fn prepare(
    queue: &dyn BlockQueue,
    geometry: &Geometry,
    pool: &Pool,
    options: FormatOptions,
) -> Result<Prepared, FormatError> {
    let layout = Layout::plan(geometry, &options)?;
    // 1.
    erase_superblock(queue, pool).await?;
    // 2.
    let page = crate::frame::FRAME_ALIGN as u64;
    write_zeros(queue, geometry, pool, layout.ring_offset, layout.ring_bytes).await?;
    for offset in layout.checkpoint_offset {
        write_zeros(queue, geometry, pool, offset, page).await?;
    }
    // 3.
    memkv_block::flush(queue).await?;
    Ok(Prepared(layout))
}

impl Prepared {
    /// Writes the superblock: from now on the drive is what `identity` says, of a node with this
    /// past.
    ///
    /// # Errors
    /// The drive's own; what it is then is not known.
    pub async fn enter(
        self,
        queue: &dyn BlockQueue,
        pool: &Pool,
        identity: Identity,
        past: Past,
    ) -> Result<Superblock, FormatError> {
        let members = identity.members.len();
        assert!(members <= MEMBERS_MAX, "a node has at most {MEMBERS_MAX} drives");
        assert!(identity.members.contains(&identity.drive), "a drive is a member of its node");
        let Past { generation_high, clean } = past;
        let superblock = Superblock { generation_high, clean, ..Superblock::new(identity, self.0) };
        write_superblock(queue, pool, &superblock).await?;
        Ok(superblock)
    }
}

async fn write_zeros(
    queue: &dyn BlockQueue,
    geometry: &Geometry,
    pool: &Pool,
    offset: u64,
    bytes: u64,
) -> Result<(), IoError> {
    let step = (STEP as u64).min(u64::from(geometry.max_transfer)).min(bytes);
    let mut buf = pool.allocate_wait(Class::Checkpoint, step as usize).await;
    buf.charge(Class::Drive);
    buf.as_mut_slice().fill(0);
    let mut at = 0;
    while at < bytes {
        let len = step.min(bytes - at) as usize;
        let (result, back) = memkv_block::write(queue, offset + at, len, buf).await;
        result?;
        buf = exclusive(back);
        at += len as u64;
    }
    Ok(())
}
