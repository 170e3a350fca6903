//! Reading and writing the four copies of the superblock.
//!
//! **Write.** Copies 0 and 1, flush, copies 2 and 3, flush. Whatever a crash leaves of the first
//! pair (old, new or torn), copies 2 and 3 are two equal old ones; whatever it leaves of the
//! second, copies 0 and 1 are two equal new ones. So at every moment two equal, whole copies are on
//! the drive.
//!
//! **Read.** Of all revisions that at least two whole copies agree on, byte for byte, the highest
//! is the superblock. Copies that differ from it are written again before anything else is, so that
//! the next write starts from four.

use memkv_block::{BlockQueue, Geometry, Io, IoBuf, IoError};
use memkv_dma::{Class, DmaBuf, Pool};
use thiserror::Error;

use crate::inspect::{CopyBytes, CopyState, Inspection, copy_offset, inspect};
use crate::layout::{SUPERBLOCK_BYTES, SUPERBLOCK_COPIES};
use crate::superblock::{Ballot, Superblock, SuperblockError};

/// Copies that must agree.
const QUORUM: usize = 2;

/// Why no superblock could be read.
#[derive(Debug, Error)]
pub enum ReadError {
    /// No copy has the magic: the drive was never formatted, or its format did not finish.
    #[error("the drive is not formatted for memkv")]
    NotFormatted,
    /// No two copies agree.
    #[error("only {whole} of {SUPERBLOCK_COPIES} superblock copies are whole, and no two agree")]
    NoQuorum {
        /// Whole copies.
        whole: usize,
    },
    /// Two pairs of the same revision disagree: two programs wrote to the drive at once.
    #[error("two different superblocks claim revision {revision}: two nodes wrote to this drive")]
    Fork {
        /// The revision.
        revision: u64,
    },
    /// The copies agree on something this program cannot use.
    #[error(transparent)]
    Superblock(#[from] SuperblockError),
    /// The drive is smaller than it was.
    #[error("the drive has {found} bytes and had {expected} when it was formatted")]
    Shrunk {
        /// Bytes when formatted.
        expected: u64,
        /// Bytes now.
        found: u64,
    },
    /// The drive's sectors are larger than when it was formatted.
    #[error("the drive has sectors of {found} bytes; its format allows up to {expected}")]
    Sector {
        /// Largest sector the format allows.
        expected: u32,
        /// Sector now.
        found: u32,
    },
    /// No copy could be read.
    #[error("the superblock cannot be read")]
    Io(#[from] IoError),
}

/// What the copies say together.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Vote {
    Elected(Ballot),
    None { whole: usize },
    Fork { revision: u64 },
}

pub(crate) fn count(ballots: &[Option<Ballot>; SUPERBLOCK_COPIES]) -> Vote {
    let votes = |of: &Ballot| ballots.iter().flatten().filter(|ballot| *ballot == of).count();
    let mut elected: Option<Ballot> = None;
    for ballot in ballots.iter().flatten().filter(|ballot| votes(ballot) >= QUORUM) {
        match elected {
            Some(other) if other.revision == ballot.revision && other != *ballot => {
                return Vote::Fork { revision: ballot.revision };
            }
            Some(other) if other.revision >= ballot.revision => {}
            _ => elected = Some(*ballot),
        }
    }
    match elected {
        Some(ballot) => Vote::Elected(ballot),
        None => Vote::None { whole: ballots.iter().flatten().count() },
    }
}

/// Reads the superblock of a drive: the quorum of its copies, checked against the drive's geometry.
/// Copies that differ are repaired; when that fails the superblock is returned all the same.
pub async fn read_superblock(
    queue: &dyn BlockQueue,
    geometry: &Geometry,
    pool: &Pool,
) -> Result<Superblock, ReadError> {
    let Inspection { copies, superblock } = read_copies(queue, geometry, pool).await;
    let superblock = superblock?;
    let odd = |copy: &usize| copies[*copy] != CopyState::Current;
    let repairs: Vec<usize> = (0..SUPERBLOCK_COPIES).filter(odd).collect();
    if !repairs.is_empty() {
        let buf = memory(pool, SUPERBLOCK_BYTES).await;
        if let Err(error) = repair(queue, buf, &superblock, &repairs).await {
            tracing::warn!(%error, copies = ?repairs, "superblock copies could not be repaired");
        }
    }
    Ok(superblock)
}

/// Reads all four copies and weighs them; nothing is written.
pub async fn read_copies(queue: &dyn BlockQueue, geometry: &Geometry, pool: &Pool) -> Inspection {
    let mut buf = memory(pool, SUPERBLOCK_BYTES).await;
    let mut copies: [CopyBytes; SUPERBLOCK_COPIES] = [const { Ok(Vec::new()) }; SUPERBLOCK_COPIES];
    for (copy, bytes) in copies.iter_mut().enumerate() {
        if copy_offset(copy) + SUPERBLOCK_BYTES as u64 > geometry.capacity {
            continue;
        }
        let (result, back) =
            memkv_block::read(queue, copy_offset(copy), SUPERBLOCK_BYTES, buf).await;
        buf = match back {
            Some(back) => back,
            None => memory(pool, SUPERBLOCK_BYTES).await,
        };
        *bytes = result.map(|()| buf.as_slice()[..SUPERBLOCK_BYTES].to_vec());
    }
    inspect(copies, geometry)
}

/// What superblocks are read to and written from: the drive's, which may keep it.
async fn memory(pool: &Pool, len: usize) -> DmaBuf {
    let mut buf = pool.allocate_wait(Class::Checkpoint, len).await;
    buf.charge(Class::Drive);
    buf
}

async fn repair(
    queue: &dyn BlockQueue,
    mut buf: DmaBuf,
    superblock: &Superblock,
    copies: &[usize],
) -> Result<(), IoError> {
    tracing::warn!(?copies, "superblock copies differ from the others and are written again");
    for &copy in copies {
        superblock.encode(copy, buf.as_mut_slice());
        let (result, back) =
            memkv_block::write(queue, copy_offset(copy), SUPERBLOCK_BYTES, buf).await;
        result?;
        buf = exclusive(back);
    }
    memkv_block::flush(queue).await
}

/// Writes all copies of `superblock`, in the order drawn at the top of this file. When it returns,
/// they and everything written before are durable.
pub(crate) async fn write_superblock(
    queue: &dyn BlockQueue,
    pool: &Pool,
    superblock: &Superblock,
) -> Result<(), IoError> {
    let mut buf = memory(pool, SUPERBLOCK_COPIES * SUPERBLOCK_BYTES).await;
    for copy in 0..SUPERBLOCK_COPIES {
        superblock.encode(copy, &mut buf.as_mut_slice()[copy * SUPERBLOCK_BYTES..]);
    }
    write_pairs(queue, buf).await
}

/// Makes the drive unformatted, so that a format that does not finish leaves no old superblock over
/// a new ring.
pub async fn erase_superblock(queue: &dyn BlockQueue, pool: &Pool) -> Result<(), IoError> {
    let mut buf = memory(pool, SUPERBLOCK_COPIES * SUPERBLOCK_BYTES).await;
    buf.as_mut_slice().fill(0);
    write_pairs(queue, buf).await
}

async fn write_pairs(queue: &dyn BlockQueue, buf: DmaBuf) -> Result<(), IoError> {
    let copies = buf.freeze();
    let submit = |copy: usize| {
        let bytes = copies.slice(copy * SUPERBLOCK_BYTES..(copy + 1) * SUPERBLOCK_BYTES);
        queue.submit(Io::write(copy_offset(copy), SUPERBLOCK_BYTES, bytes))
    };
    for first in [0, 2] {
        // 1. Both copies of a pair at once: the other pair stands for whichever crash.
        let (one, two) = (submit(first), submit(first + 1));
        let (one, two) = (one.await, two.await);
        one.result?;
        two.result?;
        // 2. Durable before the other pair is touched.
        memkv_block::flush(queue).await?;
    }
    Ok(())
}

/// The buffer of a write that was done, and was given an exclusive one.
pub(crate) fn exclusive(buf: Option<IoBuf>) -> DmaBuf {
    let buf = buf.and_then(IoBuf::into_exclusive);
    buf.expect("a driver gives back the buffer it was given")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vote(copies: [Option<(u64, u32)>; SUPERBLOCK_COPIES]) -> Vote {
        count(&copies.map(|copy| copy.map(|(revision, crc)| Ballot { revision, crc })))
    }

    fn elected(revision: u64, crc: u32) -> Vote {
        Vote::Elected(Ballot { revision, crc })
    }

    #[test]
    fn every_crash_in_a_write_leaves_the_old_or_the_new() {
        let states = [Some((4, 40)), Some((5, 50)), None];
        let (old, new) = (Some((4, 40)), Some((5, 50)));
        for one in states {
            for two in states {
                // In the first pair: the second is whole and old.
                let outcome = vote([one, two, old, old]);
                let expected =
                    if (one, two) == (new, new) { elected(5, 50) } else { elected(4, 40) };
                assert_eq!(outcome, expected, "{one:?} {two:?}");
                // In the second pair: the first is whole and new.
                assert_eq!(vote([new, new, one, two]), elected(5, 50), "{one:?} {two:?}");
            }
        }
    }

    #[test]
    fn one_copy_is_not_enough_and_forks_are_told() {
        assert_eq!(vote([Some((4, 40)), None, None, None]), Vote::None { whole: 1 });
        assert_eq!(vote([Some((4, 1)), Some((5, 2)), None, None]), Vote::None { whole: 2 });
        assert_eq!(vote([Some((4, 1)), Some((9, 2)), Some((4, 1)), None]), elected(4, 1));
        let fork = vote([Some((4, 1)), Some((4, 1)), Some((4, 2)), Some((4, 2))]);
        assert_eq!(fork, Vote::Fork { revision: 4 });
        assert_eq!(vote([None; 4]), Vote::None { whole: 0 });
    }
}
