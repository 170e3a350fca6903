//! What the four copies of a superblock say, each for itself and all together, without touching the
//! drive.
//!
//! Everything here works on bytes that somebody else has read: the journal that opens a drive
//! ([`crate::read_superblock`], which then repairs what is odd), and the offline commands, which
//! only look, also at a drive that a server holds.

use memkv_block::{Geometry, IoError};

use crate::layout::{SUPERBLOCK_BYTES, SUPERBLOCK_COPIES, SUPERBLOCK_STRIDE};
use crate::quorum::{ReadError, Vote, count};
use crate::superblock::{Superblock, SuperblockError, ballot};

/// The bytes of one copy, or why they could not be read.
pub type CopyBytes = Result<Vec<u8>, IoError>;

/// What one copy of the superblock is worth.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CopyState {
    /// It is the superblock.
    Current,
    /// It is whole and not the one that counts: a write of all four did not come to its end.
    Stale {
        /// Its revision.
        revision: u64,
    },
    /// There is no superblock in its place.
    Blank,
    /// There was one once.
    Damaged(SuperblockError),
    /// The drive cannot read it.
    Unreadable,
}

impl CopyState {
    /// One word for tables.
    pub fn word(self) -> &'static str {
        match self {
            CopyState::Current => "current",
            CopyState::Stale { .. } => "stale",
            CopyState::Blank => "blank",
            CopyState::Damaged(_) => "damaged",
            CopyState::Unreadable => "unreadable",
        }
    }
}

/// The superblock of a drive, and what each of its copies is worth.
#[derive(Debug)]
pub struct Inspection {
    /// In the order of their places.
    pub copies: [CopyState; SUPERBLOCK_COPIES],
    /// What they say together.
    pub superblock: Result<Superblock, ReadError>,
}

/// Byte offset of a copy from the start of the drive.
pub fn copy_offset(copy: usize) -> u64 {
    copy as u64 * SUPERBLOCK_STRIDE
}

/// Weighs four copies, read from the places of [`copy_offset`]. A copy of fewer bytes than
/// [`SUPERBLOCK_BYTES`] counts as blank: the drive ends before it.
pub fn inspect(copies: [CopyBytes; SUPERBLOCK_COPIES], geometry: &Geometry) -> Inspection {
    let mut ballots = [None; SUPERBLOCK_COPIES];
    let mut states = [CopyState::Blank; SUPERBLOCK_COPIES];
    for (copy, bytes) in copies.iter().enumerate() {
        states[copy] = match bytes {
            Err(_) => CopyState::Unreadable,
            Ok(bytes) if bytes.len() < SUPERBLOCK_BYTES => CopyState::Blank,
            Ok(bytes) => match ballot(bytes, copy) {
                Ok(ballot) => {
                    ballots[copy] = Some(ballot);
                    CopyState::Stale { revision: ballot.revision }
                }
                Err(SuperblockError::Magic) => CopyState::Blank,
                Err(error) => CopyState::Damaged(error),
            },
        };
    }
    let elected = match count(&ballots) {
        Vote::Elected(ballot) => ballot,
        Vote::Fork { revision } => {
            return Inspection { copies: states, superblock: Err(ReadError::Fork { revision }) };
        }
        Vote::None { whole } => {
            let superblock = Err(no_vote(&states, whole, copies));
            return Inspection { copies: states, superblock };
        }
    };
    let mut winner = None;
    for (copy, state) in states.iter_mut().enumerate() {
        if ballots[copy] == Some(elected) {
            *state = CopyState::Current;
            winner = winner.or(copies[copy].as_ref().ok());
        }
    }
    let bytes = winner.expect("a ballot comes from a copy that was read");
    let superblock = Superblock::parse(bytes).map_err(ReadError::from);
    let superblock = superblock.and_then(|superblock| {
        check_geometry(&superblock, geometry)?;
        Ok(superblock)
    });
    Inspection { copies: states, superblock }
}

fn no_vote(
    states: &[CopyState; SUPERBLOCK_COPIES],
    whole: usize,
    copies: [CopyBytes; SUPERBLOCK_COPIES],
) -> ReadError {
    if states.iter().all(|state| *state == CopyState::Blank) {
        return ReadError::NotFormatted;
    }
    match copies.into_iter().rev().find_map(Result::err) {
        Some(error) => ReadError::Io(error),
        None => ReadError::NoQuorum { whole },
    }
}

fn check_geometry(superblock: &Superblock, geometry: &Geometry) -> Result<(), ReadError> {
    let layout = &superblock.layout;
    if geometry.capacity < layout.capacity {
        return Err(ReadError::Shrunk { expected: layout.capacity, found: geometry.capacity });
    }
    let largest = crate::frame::FRAME_ALIGN as u32;
    if geometry.sector > largest {
        return Err(ReadError::Sector { expected: largest, found: geometry.sector });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{DriveUuid, NodeUuid};
    use crate::layout::{FormatOptions, Layout};
    use crate::superblock::Identity;

    const GEOMETRY: Geometry = Geometry { capacity: 64 << 20, sector: 512, max_transfer: 1 << 20 };

    fn superblock(revision: u64) -> Superblock {
        let drive = DriveUuid(uuid::Uuid::from_u128(7));
        let identity = Identity {
            node: NodeUuid(uuid::Uuid::from_u128(9)),
            drive,
            epoch: 1,
            members: vec![drive],
            secret: [3; 32],
        };
        let layout = Layout::plan(&GEOMETRY, &FormatOptions::default()).unwrap();
        Superblock { revision, ..Superblock::new(identity, layout) }
    }

    fn copies(revisions: [u64; 4]) -> [CopyBytes; 4] {
        std::array::from_fn(|copy| {
            let mut bytes = vec![0; SUPERBLOCK_BYTES];
            superblock(revisions[copy]).encode(copy, &mut bytes);
            Ok(bytes)
        })
    }

    #[test]
    fn every_copy_is_told_by_itself() {
        let mut four = copies([5, 5, 4, 5]);
        four[3].as_mut().unwrap()[100] ^= 1;
        let found = inspect(four, &GEOMETRY);
        assert_eq!(
            found.copies,
            [
                CopyState::Current,
                CopyState::Current,
                CopyState::Stale { revision: 4 },
                CopyState::Damaged(SuperblockError::Crc),
            ]
        );
        assert_eq!(found.superblock.unwrap(), superblock(5));

        let mut four = copies([5; 4]);
        four[0] = Err(IoError::Offline);
        four[1] = Ok(vec![0; SUPERBLOCK_BYTES]);
        let found = inspect(four, &GEOMETRY);
        assert_eq!(found.copies[..2], [CopyState::Unreadable, CopyState::Blank]);
        assert_eq!(found.superblock.unwrap().revision, 5);
    }

    #[test]
    fn what_cannot_be_used_says_why() {
        let blank = || std::array::from_fn(|_| Ok(vec![0; SUPERBLOCK_BYTES]));
        assert!(matches!(inspect(blank(), &GEOMETRY).superblock, Err(ReadError::NotFormatted)));
        let short = || std::array::from_fn(|_| Ok(Vec::new()));
        assert!(matches!(inspect(short(), &GEOMETRY).superblock, Err(ReadError::NotFormatted)));
        let mut dead = blank();
        dead[2] = Err(IoError::Offline);
        assert!(matches!(inspect(dead, &GEOMETRY).superblock, Err(ReadError::Io(_))));
        let small = Geometry { capacity: 32 << 20, ..GEOMETRY };
        let found = inspect(copies([5; 4]), &small).superblock;
        assert!(matches!(found, Err(ReadError::Shrunk { .. })), "{found:?}");
        let odd = inspect(copies([1, 2, 3, 4]), &GEOMETRY).superblock;
        assert!(matches!(odd, Err(ReadError::NoQuorum { whole: 4 })), "{odd:?}");
    }
}
