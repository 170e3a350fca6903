//! Which drives form the node.
//!
//! Every superblock names the node's drives, its *members*, and an *epoch* that counts the
//! memberships. Whoever takes a drive out raises the epoch on every drive that stays, before the
//! next put or delete is acknowledged: so whatever is acknowledged while a drive is away, that drive
//! can never bring back what was deleted or replaced meanwhile.
//!
//! # Who is in
//!
//! Of the drives at hand those of the highest epoch say who the members are; nobody else is asked.
//!
//! | drive | is |
//! | --- | --- |
//! | named by the highest epoch | a member, also when its own superblock is of an older one |
//! | not named by it | lost: left alone until it is emptied and comes back under a new uuid |
//! | named by it and not at hand | missing: the start is refused, or, degraded, goes on without it |
//!
//! A member may lag: a crash came between the superblocks of two drives. It has missed nothing, for
//! nothing is acknowledged under an epoch before every member holds it, and a uuid that was taken
//! out is never named again. So whatever a crash leaves of a change, the drives agree:
//!
//! | on the drives | form the node |
//! | --- | --- |
//! | A: 5 {A,B}, B: 4 {A,B,C}, C: 4 {A,B,C} | A and B; C was being taken out |
//! | A: 4 {A,B,C}, B: 4 {A,B,C}, C: 4 {A,B,C} | all: the change had not begun |
//! | A: 5 {A,B}, B: 6 {B}, C: 4 {A,B,C} | B; A was lost after C |
//! | D: 5 {A,B,D}, A: 4 {A,B}, B: 4 {A,B} | all: D was being added |
//! | A: 5 {A,B}, B and C not at hand | A, degraded, as 6 {A} |
//! | A: 5 {A,B}, C: 5 {B,C} | nobody: started degraded from two halves. An error |

use memkv_block::{BlockQueue, Geometry, IoError};
use memkv_dma::Pool;
use thiserror::Error;

use crate::format::{FormatError, Past, prepare};
use crate::ids::{DriveUuid, NodeUuid};
use crate::layout::FormatOptions;
use crate::quorum::write_superblock;
use crate::superblock::{Identity, MEMBERS_MAX, Superblock};

/// Drives that do not form a node.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum MembershipError {
    /// There are none.
    #[error("a node needs at least one drive")]
    NoDrives,
    /// Two drives of different nodes.
    #[error("drive {drive} belongs to node {found}, the others to node {expected}")]
    Foreign {
        /// The drive that does not fit.
        drive: DriveUuid,
        /// Its node.
        found: NodeUuid,
        /// The node of the drive with the highest epoch.
        expected: NodeUuid,
    },
    /// The same drive twice: one is a copy of the other, or it was named by two paths.
    #[error("drive {drive} is there twice")]
    Twice {
        /// The drive.
        drive: DriveUuid,
    },
    /// Two drives name different members in the same epoch.
    #[error(
        "drives {one} and {other} name different members in epoch {epoch}: the node was started \
         without the one and without the other; leave one of them out, and start degraded"
    )]
    Fork {
        /// A drive of the epoch.
        one: DriveUuid,
        /// One that disagrees.
        other: DriveUuid,
        /// The epoch.
        epoch: u64,
    },
    /// Members are not at hand.
    #[error(
        "{} of the node's {members} drives are missing, {} among them; bring them back, or start \
         degraded, which gives up for good what is on them",
        missing.len(), missing[0]
    )]
    Missing {
        /// Those that are missing; at least one.
        missing: Vec<DriveUuid>,
        /// How many drives the node has.
        members: usize,
    },
    /// The last epoch there can be: no honest node gets there.
    #[error("drive {drive} claims epoch {}", u64::MAX)]
    Epoch {
        /// The drive.
        drive: DriveUuid,
    },
}

/// What a drive is to the node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// It serves.
    Member,
    /// The node has gone on without it since this epoch of its own: nothing on it is used.
    Lost {
        /// The last membership it knows.
        epoch: u64,
    },
}

/// The members of a node in one epoch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Membership {
    /// Counts the memberships.
    pub epoch: u64,
    /// Who is in.
    pub members: Vec<DriveUuid>,
}

/// What the drives at hand come to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Resolved {
    /// The membership to go on with, which a degraded start has raised.
    pub membership: Membership,
    /// What each drive is, in the order in which they were given.
    pub standings: Vec<Standing>,
    /// Members that were given up by a degraded start.
    pub given_up: Vec<DriveUuid>,
}

/// Says which of the drives at hand form the node; the rules are at the top of this file. With
/// `degraded` missing members are given up for good.
///
/// # Errors
/// [`MembershipError`]; nothing was written, here or on any drive.
pub fn resolve(at_hand: &[&Identity], degraded: bool) -> Result<Resolved, MembershipError> {
    let newest = at_hand.iter().max_by_key(|identity| identity.epoch);
    let newest = newest.ok_or(MembershipError::NoDrives)?;
    for (index, other) in at_hand.iter().enumerate() {
        let drive = other.drive;
        if other.node != newest.node {
            let (found, expected) = (other.node, newest.node);
            return Err(MembershipError::Foreign { drive, found, expected });
        }
        if at_hand[..index].iter().any(|before| before.drive == drive) {
            return Err(MembershipError::Twice { drive });
        }
        if other.epoch == newest.epoch && !same_members(other, newest) {
            let (one, other) = (newest.drive, drive);
            return Err(MembershipError::Fork { one, other, epoch: newest.epoch });
        }
    }
    let here = |member: &DriveUuid| at_hand.iter().any(|identity| identity.drive == *member);
    let (members, missing): (Vec<_>, Vec<_>) = newest.members.iter().copied().partition(here);
    if !missing.is_empty() && (!degraded || members.is_empty()) {
        return Err(MembershipError::Missing { missing, members: newest.members.len() });
    }
    let standing = |identity: &&Identity| match members.contains(&identity.drive) {
        true => Standing::Member,
        false => Standing::Lost { epoch: identity.epoch },
    };
    let standings = at_hand.iter().map(standing).collect();
    let mut membership = Membership { epoch: newest.epoch, members };
    // Room for every later raise of this node's life: only a forged epoch is so high.
    if membership.epoch > u64::MAX / 2 {
        return Err(MembershipError::Epoch { drive: newest.drive });
    }
    membership.epoch += u64::from(!missing.is_empty());
    Ok(Resolved { membership, standings, given_up: missing })
}

fn same_members(one: &Identity, other: &Identity) -> bool {
    one.members.len() == other.members.len()
        && one.members.iter().all(|member| other.members.contains(member))
}

impl Membership {
    /// The next one, with a new drive. Its uuid was never a member's.
    pub fn with(&self, newcomer: DriveUuid) -> Membership {
        assert!(!self.members.contains(&newcomer), "a drive joins once");
        let mut next = Membership { epoch: self.epoch + 1, members: self.members.clone() };
        next.members.push(newcomer);
        next
    }

    /// The next one, without a drive.
    pub fn without(&self, lost: DriveUuid) -> Membership {
        let stays = |member: &DriveUuid| *member != lost;
        let members = self.members.iter().copied().filter(stays).collect();
        Membership { epoch: self.epoch + 1, members }
    }

    /// Names this membership in a superblock that is going to be written.
    ///
    /// # Panics
    /// When the drive is no member, or knows a later epoch.
    pub fn enter(&self, superblock: &mut Superblock) {
        let identity = &mut superblock.identity;
        assert!(self.members.contains(&identity.drive), "only members know the membership");
        assert!(identity.epoch <= self.epoch, "epochs only grow");
        identity.epoch = self.epoch;
        identity.members.clone_from(&self.members);
    }
}

/// Writes a membership to a member that no node has open: what follows a change made offline. A
/// crash before it is harmless: the next start does the same.
///
/// # Errors
/// The drive's own; which of the two memberships it names is then not known.
pub async fn write_membership(
    queue: &dyn BlockQueue,
    pool: &Pool,
    superblock: &mut Superblock,
    membership: &Membership,
) -> Result<(), IoError> {
    membership.enter(superblock);
    superblock.revision += 1;
    write_superblock(queue, pool, superblock).await
}

/// Makes a drive a new member of a node; everything on it is lost. It is in as soon as this returns:
/// its superblock, written last, names a membership one epoch above the one it joins, and the other
/// members follow, by [`write_membership`] or at the next start. A drive that was lost comes back in
/// this way, under a `newcomer` uuid that never was a member's.
///
/// `members` are superblocks of the node, which is stopped: all that are at hand.
///
/// # Errors
/// [`FormatError`]; the drive is then unformatted or a member, and the others are as they were.
///
/// # Panics
/// Without a member.
pub async fn admit(
    queue: &dyn BlockQueue,
    geometry: &Geometry,
    pool: &Pool,
    members: &[&Superblock],
    joined: &Membership,
    newcomer: DriveUuid,
    options: FormatOptions,
) -> Result<(Superblock, Membership), FormatError> {
    let node = &members.first().expect("a node has a member at hand").identity;
    let next = joined.with(newcomer);
    if next.members.len() > MEMBERS_MAX {
        return Err(FormatError::Members { members: next.members.len() });
    }
    let identity = Identity {
        node: node.node,
        drive: newcomer,
        epoch: next.epoch,
        members: next.members.clone(),
        secret: node.secret,
    };
    let prepared = prepare(queue, geometry, pool, options).await?;
    let superblock = prepared.enter(queue, pool, identity, Past::of(members)).await?;
    Ok((superblock, next))
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    const A: u128 = 0xA;
    const B: u128 = 0xB;
    const C: u128 = 0xC;
    const D: u128 = 0xD;

    fn drive(id: u128) -> DriveUuid {
        DriveUuid(Uuid::from_u128(id))
    }

    fn on(id: u128, epoch: u64, members: &[u128]) -> Identity {
        let members = members.iter().copied().map(drive).collect();
        let node = NodeUuid(Uuid::from_u128(1));
        Identity { node, drive: drive(id), epoch, members, secret: [0; 32] }
    }

    fn judge(
        drives: &[Identity],
        degraded: bool,
    ) -> Result<(u64, Vec<DriveUuid>), MembershipError> {
        let resolved = resolve(&drives.iter().collect::<Vec<_>>(), degraded)?;
        for (identity, standing) in drives.iter().zip(&resolved.standings) {
            let member = resolved.membership.members.contains(&identity.drive);
            let lost = Standing::Lost { epoch: identity.epoch };
            assert_eq!(*standing, if member { Standing::Member } else { lost });
        }
        Ok((resolved.membership.epoch, resolved.membership.members))
    }

    fn forms(drives: &[Identity], epoch: u64, members: &[u128]) {
        let expected = (epoch, members.iter().copied().map(drive).collect::<Vec<_>>());
        // In whatever order they are found, and degraded or not: nobody is missing.
        for turn in 0..drives.len() {
            let mut drives = drives.to_vec();
            drives.rotate_left(turn);
            assert_eq!(judge(&drives, false), Ok(expected.clone()), "{drives:?}");
            assert_eq!(judge(&drives, true), Ok(expected.clone()), "{drives:?}");
        }
    }

    #[test]
    fn whatever_a_crash_leaves_of_a_change_the_drives_agree() {
        let all = [A, B, C];
        forms(&[on(A, 4, &all), on(B, 4, &all), on(C, 4, &all)], 4, &all);
        forms(&[on(A, 5, &[A, B]), on(B, 4, &all), on(C, 4, &all)], 5, &[A, B]);
        forms(&[on(A, 5, &[A, B]), on(B, 5, &[A, B]), on(C, 4, &all)], 5, &[A, B]);
        // The next change began before the drive that had failed in it was told of the first.
        forms(&[on(A, 5, &[A, B]), on(B, 6, &[B]), on(C, 4, &all)], 6, &[B]);
        // A start that went on from the first change, and its crash.
        forms(&[on(A, 6, &[A, B]), on(B, 4, &all), on(C, 5, &[A, B, C])], 6, &[A, B]);
        // A newcomer is in with its own superblock.
        let four = [A, B, C, D];
        forms(&[on(A, 4, &all), on(B, 4, &all), on(C, 4, &all), on(D, 5, &four)], 5, &four);
        forms(&[on(A, 5, &four), on(B, 4, &all), on(C, 5, &four), on(D, 5, &four)], 5, &four);
    }

    #[test]
    fn a_lost_drive_is_left_alone_and_is_not_missed() {
        forms(&[on(A, 5, &[A, B]), on(B, 5, &[A, B])], 5, &[A, B]);
        let stale = on(C, 4, &[A, B, C]);
        forms(&[on(A, 5, &[A, B]), on(B, 5, &[A, B]), stale], 5, &[A, B]);
    }

    #[test]
    fn a_missing_member_is_told_of_and_given_up_on_demand() {
        let here = [on(A, 4, &[A, B, C]), on(C, 4, &[A, B, C])];
        let missing = MembershipError::Missing { missing: vec![drive(B)], members: 3 };
        assert!(missing.to_string().starts_with("1 of the node's 3 drives are missing"));
        assert_eq!(judge(&here, false), Err(missing));
        assert_eq!(judge(&here, true), Ok((5, vec![drive(A), drive(C)])));
        // It comes back later: lost.
        let back = [on(A, 5, &[A, C]), on(B, 4, &[A, B, C]), on(C, 5, &[A, C])];
        assert_eq!(judge(&back, false), Ok((5, vec![drive(A), drive(C)])));
        // A superblock that does not name its own drive names nobody at hand.
        let odd = [on(A, 4, &[B])];
        assert!(matches!(judge(&odd, true), Err(MembershipError::Missing { .. })));
    }

    #[test]
    fn two_halves_of_a_node_are_not_joined() {
        let halves = [on(A, 5, &[A, B]), on(C, 5, &[B, C])];
        let fork = judge(&halves, true);
        assert!(matches!(fork, Err(MembershipError::Fork { epoch: 5, .. })), "{fork:?}");
        // The order of the list means nothing.
        let turned = judge(&[on(A, 5, &[A, B]), on(B, 5, &[B, A])], false);
        assert!(turned.is_ok(), "{turned:?}");
    }

    #[test]
    fn drives_of_two_nodes_and_copies_of_a_drive_are_refused() {
        assert_eq!(judge(&[], false), Err(MembershipError::NoDrives));
        let mut foreign = on(B, 3, &[B]);
        foreign.node = NodeUuid(Uuid::from_u128(2));
        let refused = judge(&[on(A, 4, &[A, B]), foreign], true);
        assert!(matches!(refused, Err(MembershipError::Foreign { .. })), "{refused:?}");
        let twice = judge(&[on(A, 4, &[A]), on(A, 4, &[A])], false);
        assert_eq!(twice, Err(MembershipError::Twice { drive: drive(A) }));
        let forged = judge(&[on(A, u64::MAX, &[A])], false);
        assert_eq!(forged, Err(MembershipError::Epoch { drive: drive(A) }));
    }
}
