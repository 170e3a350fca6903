//! A drive that joins while the store runs.
//!
//! ```text
//!   on the drives                             a crash leaves
//!   A: 4 {A,B}    B: 4 {A,B}    D: nothing    A and B; D is blank, and joins when it is told again
//!   A: 4 {A,B}    B: 4 {A,B}    D: 5 {A,B,D}  all three: the next start tells A and B
//!   A: 5 {A,B,D}  B: 4 {A,B}    D: 5 {A,B,D}  all three: the next start tells B
//! ```
//!
//! The newcomer first: were the others told before, a crash would leave a node that misses a member
//! which never was one. And nothing lies on it before all know of it: nobody's block can be lost with
//! a drive of which the others do not know.

use std::rc::Rc;

use memkv_block::{BlockQueue, Geometry};
use memkv_dma::Pool;
use memkv_journal::{
    DriveUuid, FormatError, FormatOptions, Identity, Journal, MEMBERS_MAX, OpenError, Past,
    Prepared, Recovered, Superblock,
};

use crate::drives::{DRIVES_MAX, Drive};
use crate::found::Found;
use crate::{DriveId, Store};

/// A drive that is to join; everything on it is lost.
pub struct Newcomer {
    /// A queue of the store's reactor on it.
    pub queue: Rc<dyn BlockQueue>,
    /// What it is like.
    pub geometry: Geometry,
    /// Memory to write it from.
    pub pool: Pool,
    /// Its identity, which never was another's.
    pub uuid: DriveUuid,
    /// How it is formatted.
    pub options: FormatOptions,
}

/// Why a drive did not join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// It cannot be formatted.
    #[error("the drive cannot be formatted")]
    Format(#[from] FormatError),
    /// What was just formatted cannot be opened.
    #[error("the drive cannot be opened")]
    Open(#[from] OpenError),
    /// There are as many drives as there can be.
    #[error("a node has at most {MEMBERS_MAX} drives, and {DRIVES_MAX} from one start to the next")]
    TooMany,
    /// No drive serves, so there is no node to join; or it stops.
    #[error("the node does not serve")]
    NotServing,
    /// It failed when it was a member already.
    #[error("the drive failed while it joined: {why}")]
    Failed {
        /// The number that it bears.
        drive: DriveId,
        /// What happened.
        why: String,
    },
}

impl Store {
    /// The superblock of a drive that serves: how the others are formatted.
    pub fn member(&self) -> Option<Superblock> {
        self.drives.iter().find(|drive| drive.online()).map(|drive| drive.journal.superblock())
    }

    /// Takes a new drive in:
    ///
    /// 1. It is formatted but for its superblock, which takes a while. A crash leaves a blank drive.
    /// 2. Whoever tells the drives of a lost one is waited for; the next one waits for us.
    /// 3. Its superblock names it a member, one epoch above the others. From here on it is one.
    /// 4. The others are told. A drive that fails meanwhile is taken out by an epoch of its own.
    /// 5. Blocks may lie on it when every reactor has a queue on it: [`Store::open_drive`].
    ///
    /// # Errors
    /// [`JoinError`]; before 3 nothing has changed, after it the drive is a member that failed.
    pub async fn join(self: &Rc<Self>, newcomer: Newcomer) -> Result<DriveId, JoinError> {
        if self.draining.get() {
            return Err(JoinError::NotServing);
        }
        let joining = &self.members.joining;
        joining.set(joining.get() + 1);
        let joined = self.join_counted(newcomer).await;
        joining.set(joining.get() - 1);
        self.members.changed.notify_all();
        joined
    }

    async fn join_counted(self: &Rc<Self>, newcomer: Newcomer) -> Result<DriveId, JoinError> {
        let Newcomer { queue, geometry, pool, uuid, options } = newcomer;
        // The newcomer may have been a member under another uuid: then the others must know that it
        // is one no more, or a crash would leave them missing it.
        if !self.membership_settles().await {
            return Err(JoinError::NotServing);
        }
        // 1.
        let prepared = memkv_journal::prepare(&*queue, &geometry, &pool, options).await?;
        // 2.
        self.membership_turn().await;
        let joined = self.enter(queue, pool, uuid, prepared).await;
        // The end of our turn, also when there was nothing to tell.
        self.clone().tell_members().await;
        let id = joined?;
        let drive = self.drive(id);
        if !drive.online() {
            let why = drive.why_offline.borrow().clone().unwrap_or_default();
            return Err(JoinError::Failed { drive: id, why });
        }
        self.local.spawn(self.clone().checkpointer(id));
        if let Some(trim) = self.config.trim {
            drive.journal.start_trim(trim);
        }
        tracing::info!(drive = id.0, %uuid, epoch = self.membership().epoch, "drive joined");
        Ok(id)
    }

    async fn enter(
        self: &Rc<Self>,
        queue: Rc<dyn BlockQueue>,
        pool: Pool,
        uuid: DriveUuid,
        prepared: Prepared,
    ) -> Result<DriveId, JoinError> {
        let Some(member) = self.member() else { return Err(JoinError::NotServing) };
        if self.draining.get() {
            return Err(JoinError::NotServing);
        }
        let mut next = self.membership();
        let serves = |uuid: &DriveUuid| self.drives.iter().any(|d| d.uuid == *uuid && d.online());
        next.members.retain(serves);
        let next = next.with(uuid);
        if next.members.len() > MEMBERS_MAX || self.drives.len() == DRIVES_MAX {
            return Err(JoinError::TooMany);
        }
        // 3. Whatever becomes of it, this epoch names these members and no others.
        self.set_membership(&next);
        let Identity { node, secret, .. } = member.identity;
        let (epoch, members) = (next.epoch, next.members.clone());
        let identity = Identity { node, drive: uuid, epoch, members, secret };
        // More generations are given out while it is written: that is why it is not clean.
        let past = Past { generation_high: self.generation.get(), clean: false };
        let superblock = prepared.enter(&*queue, &pool, identity, past).await?;
        let (journal, _): (Rc<Journal>, Recovered<Found>) =
            memkv_journal::open(queue, &self.local, pool, superblock).await?;
        // 4.
        let id = DriveId(self.drives.len() as u16);
        self.drives.push(Drive::new(id, journal));
        self.tell_all(&next).await;
        Ok(id)
    }

    /// Lets blocks lie on a drive that has joined: whoever moves their bytes has a queue on it.
    pub fn open_drive(&self, id: DriveId) {
        assert!(!self.drive(id).open.replace(true), "a drive is opened once");
    }
}
