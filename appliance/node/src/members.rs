//! Which of the configured drives form the node, and which are left alone.

use std::sync::Arc;

use memkv_block::BlockDevice;
use memkv_journal::{DriveUuid, MembershipError, Standing, Superblock, membership};

/// A configured drive that is not used.
#[derive(Clone)]
pub struct LeftOut {
    /// The drive.
    pub device: Arc<dyn BlockDevice>,
    /// Its identity, when it has one.
    pub uuid: Option<DriveUuid>,
    /// Nothing is on it: it can join.
    pub blank: bool,
    /// Why it is not used, for people.
    pub reason: String,
}

/// The drives that are used, and the others.
pub(crate) type Split<T> = (Vec<(T, Superblock)>, Vec<LeftOut>);

/// Keeps the members of the node, whose superblocks then name the membership to go on with; with
/// `degraded` without those that are missing. Nothing is written.
pub(crate) fn keep_members<T>(
    drives: Vec<(T, Superblock)>,
    device: impl Fn(&T) -> Arc<dyn BlockDevice>,
    degraded: bool,
) -> Result<Split<T>, MembershipError> {
    let identities: Vec<_> = drives.iter().map(|(_, superblock)| &superblock.identity).collect();
    let resolved = membership::resolve(&identities, degraded)?;
    for drive in &resolved.given_up {
        tracing::warn!(%drive, "missing, and given up for good: the node goes on without it");
    }
    let (mut kept, mut left_out) = (Vec::with_capacity(drives.len()), Vec::new());
    for ((drive, mut superblock), standing) in drives.into_iter().zip(&resolved.standings) {
        let (device, uuid) = (device(&drive), superblock.identity.drive);
        match *standing {
            Standing::Member => {
                resolved.membership.enter(&mut superblock);
                kept.push((drive, superblock));
            }
            Standing::Lost { epoch } => {
                let reason = format!(
                    "the node went on without it after epoch {epoch}: it may hold what was deleted \
                     since; readmit it emptied"
                );
                tracing::error!(drive = device.name(), %uuid, %reason, "drive left out");
                left_out.push(LeftOut { device, uuid: Some(uuid), blank: false, reason });
            }
        }
    }
    Ok((kept, left_out))
}
