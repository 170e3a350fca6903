//! What the drives that stay are told of one that is lost.
//!
//! A drive that went offline may be there again at the next start, with everything that it held. So
//! whatever the node acknowledges from then on must find the other drives knowing that it is out:
//! the *epoch* is raised on all of them, without it, and every put and delete that is done waits for
//! that before it says so. No put or delete waits for anything as long as no drive is lost.
//!
//! ```text
//!   drive_failed(C) ─► state Offline ─► epoch + 1 {A, B} into the superblocks of A and B ─► C is out
//!                                        └─ B fails as well: epoch + 2 {A} into that of A
//! ```
//!
//! A crash before the end leaves C a member, or B a member that lags: both have missed nothing that
//! was acknowledged. When no drive is left, nobody can be told: then nothing is acknowledged either.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use memkv_journal::Membership;
use memkv_poller::local::Event;

use crate::drives::Drive;
use crate::{DriveId, Store};

/// The members of the node as the store last told them.
pub(crate) struct Members {
    /// What the drives were told last, or are being told.
    now: RefCell<Membership>,
    /// A task tells the drives.
    raising: Cell<bool>,
    /// Drives that are joining.
    pub joining: Cell<usize>,
    /// Told when a drive knows, or has failed.
    pub changed: Event,
}

impl Members {
    pub fn new(now: Membership) -> Self {
        let (raising, joining) = (Cell::new(false), Cell::new(0));
        Self { now: RefCell::new(now), raising, joining, changed: Event::new() }
    }
}

impl Store {
    /// The membership: the node's drives and the epoch. Durable on every one of them unless a drive
    /// failed a moment ago; see [`Store::membership_is_settled`].
    pub fn membership(&self) -> Membership {
        self.members.now.borrow().clone()
    }

    /// Whether every drive that serves knows, durably, of every drive that does not; false also
    /// when none serves.
    pub fn membership_is_settled(&self) -> bool {
        let known = |drive: &Drive| drive.online() || drive.out.get();
        self.drives.iter().any(Drive::online) && self.drives.iter().all(known)
    }

    /// Waits until the drives that serve know of those that do not. False when none is left that
    /// could know: whoever asked must not acknowledge anything.
    pub(crate) async fn membership_settles(&self) -> bool {
        while !self.membership_is_settled() {
            if !self.drives.iter().any(Drive::online) {
                return false;
            }
            self.members.changed.listen().await;
        }
        true
    }

    /// A drive went offline: tells the others, unless somebody does already and will see it.
    pub(crate) fn raise_epoch(self: &Rc<Self>) {
        // Whoever waits for the drive that failed waits no longer.
        self.members.changed.notify_all();
        if !self.members.raising.replace(true) {
            self.local.spawn(self.clone().tell_members());
        }
    }

    /// Waits until nobody tells the drives anything, and keeps everybody from it until
    /// [`Store::tell_members`].
    pub(crate) async fn membership_turn(&self) {
        while self.members.raising.replace(true) {
            self.members.changed.listen().await;
        }
    }

    /// Waits for drives that are joining: nobody writes to a drive when the store has stopped.
    pub(crate) async fn joins_end(&self) {
        while self.members.joining.get() > 0 {
            self.members.changed.listen().await;
        }
    }

    /// What the drives are being told from now on.
    pub(crate) fn set_membership(&self, next: &Membership) {
        self.members.now.borrow_mut().clone_from(next);
    }

    /// Tells the drives that serve of those that do not, until all know; the end of a turn.
    pub(crate) async fn tell_members(self: Rc<Self>) {
        while self.drives.iter().any(Drive::online) && !self.membership_is_settled() {
            let next = {
                let mut now = self.members.now.borrow_mut();
                let members = self.drives.iter().filter(|d| d.online()).map(|d| d.uuid);
                *now = Membership { epoch: now.epoch + 1, members: members.collect() };
                now.clone()
            };
            tracing::warn!(epoch = next.epoch, drives = next.members.len(), "epoch raised");
            if self.tell_all(&next).await {
                self.counters.epochs_raised.bump();
            }
        }
        self.members.raising.set(false);
        self.members.changed.notify_all();
    }

    /// Writes a membership to all its drives at once. False when one of them failed: then the next
    /// membership, without that one, is due.
    pub(crate) async fn tell_all(self: &Rc<Self>, next: &Membership) -> bool {
        let left = Rc::new(Cell::new(0));
        let members = || self.drives.iter().filter(|d| next.members.contains(&d.uuid));
        if !members().all(Drive::online) {
            return false;
        }
        for drive in members() {
            left.set(left.get() + 1);
            let (store, next, left, id) = (self.clone(), next.clone(), left.clone(), drive.id);
            self.local.spawn(async move {
                store.tell_one(id, &next).await;
                left.set(left.get() - 1);
                store.members.changed.notify_all();
            });
        }
        // A drive that hangs is not waited for once it is offline.
        while left.get() > 0 && members().all(Drive::online) {
            self.members.changed.listen().await;
        }
        let told = members().all(Drive::online);
        if told {
            let out = self.drives.iter().filter(|d| !next.members.contains(&d.uuid));
            out.for_each(|drive| drive.out.set(true));
        }
        told
    }

    async fn tell_one(self: &Rc<Self>, id: DriveId, next: &Membership) {
        // Another drive failed before it was our turn: the drive is being told of that.
        if self.members.now.borrow().epoch > next.epoch {
            return;
        }
        let told = self.drive(id).journal.set_membership(next, self.generation.get()).await;
        if let Err(error) = told {
            self.drive_failed(id, &error);
        }
    }
}
