//! `memkv drive retire` and `memkv drive readmit`: which drives form a node, changed while no server
//! has them.
//!
//! ```text
//!   retire   every drive that stays is told the next membership, without the one that goes
//!   readmit  the drive is emptied and formatted under a new uuid, as a member of the next membership;
//!            then the others are told
//! ```
//!
//! A crash in between is harmless: the drives of the highest epoch say who the members are, and the
//! next start tells the others. The drive that goes is not written to: it may be broken.

use std::path::Path;

use memkv_journal::membership::{Membership, Resolved, Standing, admit, resolve, write_membership};
use memkv_journal::{DriveUuid, Identity, Layout, MEMBERS_MAX, MembershipError, Superblock};
use memkv_nvme::PciAddress;
use serde::Serialize;

use super::look::{Holds, Sight};
use super::wipe::{clear, count};
use super::{Bench, ChangeArgs, OfflineError, Which, in_use, look_to_take, named, say, say_json};
use crate::cli::Exit;
use crate::drives::{DrivesError, Opened, new_uuid, options_like};

/// What was changed, or would be.
#[derive(Debug, Serialize)]
struct Change {
    /// `retire` or `readmit`.
    change: &'static str,
    /// Its path, when it is at hand.
    path: Option<String>,
    /// The uuid of the drive that goes, or of the one that comes; none before it has one.
    drive: Option<String>,
    node: String,
    /// Of the membership after the change.
    epoch: u64,
    /// The members after the change.
    members: Vec<String>,
    /// Blocks, and parts of blocks, that are lost; none when they cannot be counted.
    blocks: Option<u64>,
    bytes: Option<u64>,
    done: bool,
}

impl Change {
    fn text(&self) -> String {
        let name = self.path.as_deref().or(self.drive.as_deref()).unwrap_or("the drive");
        let what = match (self.change, self.done) {
            ("retire", true) => "retired",
            ("retire", false) => "would be retired",
            (_, true) => "readmitted, empty",
            (_, false) => "would be emptied and readmitted",
        };
        let lost = match (self.blocks, self.bytes) {
            (Some(0), _) => "no block is lost".to_owned(),
            (Some(blocks), Some(bytes)) => {
                let size = memkv_admin_api::size::short_size(bytes);
                format!("{blocks} blocks are lost, {size}")
            }
            _ => "what is lost cannot be counted".to_owned(),
        };
        let (members, epoch, node) = (self.members.len(), self.epoch, &self.node);
        let mut text =
            format!("{name} {what}: {lost}; node {node} has {members} drives in epoch {epoch}");
        if self.change == "retire" && self.done && self.path.is_some() {
            text += "\ntake it out of storage.drives; memkv drive wipe makes it blank";
        }
        text
    }

    /// Tells it; refused when blocks would be lost and nobody said that they may.
    fn tell(&self, json: bool) -> Result<Exit, OfflineError> {
        if json {
            say_json(self)?;
        } else {
            say(&self.text())?;
        }
        if self.done {
            return Ok(Exit::Done);
        }
        Err(OfflineError::Refused(vec!["what is lost is said above; --yes does it".to_owned()]))
    }
}

/// A node's drives at hand, and the one that the command names.
struct Site {
    /// Those of the configuration but the one that is named.
    others: Vec<Sight>,
    named: Named,
}

/// The drive that a command names.
enum Named {
    /// By its path.
    Here(Box<Sight>),
    /// By its uuid, and it is none of those at hand.
    Away(DriveUuid),
}

impl Site {
    /// Looks at the drives of the configuration, and at the one that is named, which may be none of
    /// them.
    fn look(args: &ChangeArgs) -> Result<Site, OfflineError> {
        let which = Which { config: Some(args.config.clone()), ..Which::default() };
        let mut paths = named(&which)?;
        let uuid = args.drive.parse::<uuid::Uuid>().ok().map(DriveUuid);
        let path = Path::new(&args.drive);
        if uuid.is_none() && !paths.iter().any(|known| is_same(known, path)) {
            paths.push(path.to_owned());
        }
        let sights = look_to_take(&paths)?;
        let refused: Vec<String> = sights.iter().flat_map(in_use).collect();
        if !refused.is_empty() {
            return Err(OfflineError::Refused(refused));
        }
        let is_named = |sight: &Sight| match uuid {
            Some(uuid) => identity(sight).is_some_and(|identity| identity.drive == uuid),
            None => is_same(&sight.path, path),
        };
        let (mut found, others): (Vec<_>, Vec<_>) = sights.into_iter().partition(is_named);
        let named = match (found.pop(), uuid) {
            (Some(sight), _) => Named::Here(Box::new(sight)),
            (None, Some(uuid)) => Named::Away(uuid),
            (None, None) => unreachable!("its path is among those that were looked at"),
        };
        Ok(Site { others, named })
    }

    /// What the other drives say; those that hold no blocks of memkv are refused.
    fn superblocks(&self) -> Result<Vec<Superblock>, OfflineError> {
        let mut refused = Vec::new();
        let mut superblocks = Vec::with_capacity(self.others.len());
        for sight in &self.others {
            match &sight.inspection.superblock {
                Ok(superblock) => superblocks.push(superblock.clone()),
                Err(error) => refused.push(format!(
                    "{}: {error}; take it out of storage.drives, and if it was a member retire it \
                     by its uuid (memkv drive inspect of another drive lists the members)",
                    sight.path.display()
                )),
            }
        }
        if refused.is_empty() { Ok(superblocks) } else { Err(OfflineError::Refused(refused)) }
    }
}

fn is_same(one: &Path, other: &Path) -> bool {
    let real = |path: &Path| match PciAddress::of(path) {
        Some(address) => address.to_string().into(),
        None => std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned()),
    };
    real(one) == real(other)
}

fn identity(sight: &Sight) -> Option<&Identity> {
    sight.inspection.superblock.as_ref().ok().map(|superblock| &superblock.identity)
}

fn refused<T>(why: String) -> Result<T, OfflineError> {
    Err(OfflineError::Refused(vec![why]))
}

/// The node as the drives at hand say it is, with what is missing of it.
fn resolve_all(others: &[Superblock], named: Option<&Identity>) -> Result<Resolved, OfflineError> {
    let mut identities: Vec<&Identity> = others.iter().map(|other| &other.identity).collect();
    identities.extend(named);
    Ok(resolve(&identities, true).map_err(DrivesError::from)?)
}

/// Members that are missing beside those that may be.
fn refuse_missing(missing: &[DriveUuid], members: usize) -> Result<(), OfflineError> {
    if missing.is_empty() {
        return Ok(());
    }
    let error = MembershipError::Missing { missing: missing.to_vec(), members };
    refused(format!("{error}; or give it up alone: memkv drive retire {} --yes", missing[0]))
}

pub(super) fn retire(args: &ChangeArgs) -> Result<Exit, OfflineError> {
    let site = Site::look(args)?;
    let superblocks = site.superblocks()?;
    let (drive, here) = match &site.named {
        Named::Away(drive) => (*drive, None),
        Named::Here(sight) => match &sight.inspection.superblock {
            Ok(superblock) => (superblock.identity.drive, Some((sight, superblock))),
            Err(error) => {
                return refused(format!(
                    "{}: {error}; retire it by its uuid (memkv drive inspect of another drive \
                     lists the members)",
                    sight.path.display()
                ));
            }
        },
    };
    let resolved = resolve_all(&superblocks, here.map(|(_, superblock)| &superblock.identity))?;
    let mut missing = resolved.given_up.clone();
    missing.retain(|given_up| *given_up != drive);
    let size = resolved.membership.members.len() + resolved.given_up.len();
    refuse_missing(&missing, size)?;
    let next = if resolved.given_up.contains(&drive) {
        resolved.membership
    } else if resolved.membership.members.contains(&drive) {
        resolved.membership.without(drive)
    } else {
        return refused(format!("{}: drive {drive} is no member of the node", args.drive));
    };
    if next.members.is_empty() {
        return refused(format!("{}: it is the node's only drive; wipe it instead", args.drive));
    }
    let mut bench = Bench::new(site.others.len() + 1)?;
    let mut lost = None;
    let mut generation_high = 0;
    if let Some((sight, superblock)) = here {
        let opened = bench.open(&sight.path)?;
        lost = count(&mut bench, &opened, superblock.clone());
        let told = lost.as_ref().map_or(0, |lost| lost.generation_high);
        generation_high = superblock.generation_high.max(told);
    }
    let sure = args.yes || lost.as_ref().is_some_and(|lost| lost.blocks == 0);
    if sure {
        tell_members(&mut bench, &site.others, &superblocks, &next, generation_high)?;
    }
    let change = Change {
        change: "retire",
        path: here.map(|(sight, _)| sight.path.display().to_string()),
        drive: Some(drive.to_string()),
        node: superblocks[0].identity.node.to_string(),
        epoch: next.epoch,
        members: next.members.iter().map(ToString::to_string).collect(),
        blocks: lost.as_ref().map(|lost| lost.blocks),
        bytes: lost.as_ref().map(|lost| lost.bytes),
        done: sure,
    };
    change.tell(args.json)
}

/// Names a membership on all its drives among these, and the generations that were given out.
fn tell_members(
    bench: &mut Bench,
    sights: &[Sight],
    superblocks: &[Superblock],
    next: &Membership,
    generation_high: u64,
) -> Result<(), OfflineError> {
    // All are claimed before the first is written to.
    let mut members = Vec::with_capacity(sights.len());
    for (sight, superblock) in sights.iter().zip(superblocks) {
        if next.members.contains(&superblock.identity.drive) {
            members.push((bench.open(&sight.path)?, superblock.clone()));
        }
    }
    for (opened, mut superblock) in members {
        superblock.generation_high = superblock.generation_high.max(generation_high);
        let (pool, next, name) = (bench.pool.clone(), next.clone(), opened.name.clone());
        let written = bench.run(async move {
            write_membership(&*opened.queue, &pool, &mut superblock, &next).await
        });
        written.map_err(|source| DrivesError::Io { name, source })?;
    }
    Ok(())
}

pub(super) fn readmit(args: &ChangeArgs) -> Result<Exit, OfflineError> {
    let site = Site::look(args)?;
    let superblocks = site.superblocks()?;
    let sight = match &site.named {
        Named::Here(sight) => sight,
        Named::Away(drive) => {
            return refused(format!("drive {drive} is not at hand: name it by its path"));
        }
    };
    let resolved = resolve_all(&superblocks, None)?;
    refuse_incomplete(&resolved, sight)?;
    may_be_emptied(sight, &superblocks)?;
    if resolved.membership.members.len() >= MEMBERS_MAX {
        return refused(format!("a node has at most {MEMBERS_MAX} drives"));
    }
    let mut bench = Bench::new(site.others.len() + 1)?;
    let opened = bench.open(&sight.path)?;
    let lost = match &sight.inspection.superblock {
        Ok(superblock) => count(&mut bench, &opened, superblock.clone()),
        Err(_) => Some(super::wipe::Held::default()),
    };
    let sure = args.yes || lost.as_ref().is_some_and(|lost| lost.blocks == 0);
    let mut change = Change {
        change: "readmit",
        path: Some(sight.path.display().to_string()),
        drive: None,
        node: superblocks[0].identity.node.to_string(),
        epoch: resolved.membership.epoch,
        members: resolved.membership.members.iter().map(ToString::to_string).collect(),
        blocks: lost.as_ref().map(|lost| lost.blocks),
        bytes: lost.as_ref().map(|lost| lost.bytes),
        done: sure,
    };
    if sure {
        let members = members_at_hand(&resolved.standings, &superblocks);
        let (drive, next) = join(&mut bench, opened, &members, &resolved.membership)?;
        tell_members(&mut bench, &site.others, &superblocks, &next, 0)?;
        change.drive = Some(drive.to_string());
        change.epoch = next.epoch;
        change.members = next.members.iter().map(ToString::to_string).collect();
    }
    change.tell(args.json)
}

/// The members among the drives at hand.
fn members_at_hand(standings: &[Standing], superblocks: &[Superblock]) -> Vec<Superblock> {
    let all = standings.iter().zip(superblocks);
    let members = all.filter(|(standing, _)| **standing == Standing::Member);
    members.map(|(_, superblock)| superblock.clone()).collect()
}

/// A member is not readmitted, and a node whose members are missing takes nobody in.
fn refuse_incomplete(resolved: &Resolved, sight: &Sight) -> Result<(), OfflineError> {
    let members = resolved.membership.members.len() + resolved.given_up.len();
    if let Some(identity) = identity(sight)
        && resolved.given_up.contains(&identity.drive)
    {
        return refused(format!(
            "{}: it is a member of the node and need not be readmitted; to empty it, retire it \
             first (memkv drive retire)",
            sight.path.display()
        ));
    }
    refuse_missing(&resolved.given_up, members)
}

/// Whether a drive may be formatted: blank, or one that this node has lost.
fn may_be_emptied(sight: &Sight, superblocks: &[Superblock]) -> Result<(), OfflineError> {
    let name = sight.path.display();
    match (sight.holds(), &sight.inspection.superblock) {
        (Holds::Blank, _) => Ok(()),
        (Holds::Unknown, _) => refused(format!("{name}: it is in use")),
        (_, Ok(superblock)) => {
            let (node, own) = (superblock.identity.node, superblocks[0].identity.node);
            if node == own {
                return Ok(());
            }
            refused(format!("{name}: it belongs to node {node}, not to {own}; wipe it first"))
        }
        (Holds::Foreign, _) => {
            let what = sight.signatures.first().map_or("data", |signature| signature.what);
            refused(format!("{name}: it holds {what}; empty it first (wipefs --all)"))
        }
        (_, Err(error)) => refused(format!("{name}: {error}; wipe it first (--force)")),
    }
}

/// Empties a drive and makes it a member, formatted like another one.
fn join(
    bench: &mut Bench,
    opened: Opened,
    members: &[Superblock],
    joined: &Membership,
) -> Result<(DriveUuid, Membership), OfflineError> {
    let geometry = opened.device.geometry();
    let options = options_like(&members[0], geometry.capacity);
    if let Err(error) = Layout::plan(&geometry, &options) {
        return refused(format!("{}: {error}", opened.name));
    }
    let drive = DriveUuid(new_uuid());
    let (pool, members, joined) = (bench.pool.clone(), members.to_vec(), joined.clone());
    bench.run(async move {
        clear(&opened, &pool).await?;
        let name = opened.name.clone();
        let members: Vec<&Superblock> = members.iter().collect();
        let admitted =
            admit(&*opened.queue, &geometry, &pool, &members, &joined, drive, options).await;
        let (_, next) = admitted.map_err(|source| DrivesError::Format { name, source })?;
        Ok((drive, next))
    })
}
