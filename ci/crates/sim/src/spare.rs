//! Disks that join while requests run: one that was blank at first, and those that failed and are
//! readmitted.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use memkv_block::BlockDevice;
use memkv_store::{DriveId, DriveState, JoinError};

use crate::counters::Count;
use crate::options::FaultMode;
use crate::run::{Power, Run};
use crate::server;

/// Turns from a start to the join, on average; a disk that failed waits as long.
const TURNS: u64 = 600;

/// Disks of a run at most: a disk that is readmitted takes the identity of a later one.
pub const DISKS_MAX: usize = 16;

type Answer = Rc<RefCell<Option<Result<DriveId, JoinError>>>>;

/// How far it is.
#[derive(Default)]
pub enum Spare {
    /// There is none, or it is a member.
    #[default]
    None,
    /// It is blank, or what a crash left of its joining is as good as that.
    Blank,
    /// It is being taken in.
    Joining(Joining),
}

/// A disk that is being taken in.
pub struct Joining {
    answer: Answer,
    device: Arc<dyn BlockDevice>,
    /// What is counted when it is in.
    count: Count,
}

impl Run {
    /// What the disk is when the server has started.
    pub(crate) fn look_at_spare(&mut self) {
        let last = self.disks.len() - 1;
        let joined = self.members & 1 << last != 0;
        self.spare = if self.options.joins && !joined { Spare::Blank } else { Spare::None };
    }

    /// The machine stopped.
    pub(crate) fn lose_spare(&mut self) {
        if let Spare::Joining(joining) = std::mem::take(&mut self.spare)
            && joining.answer.borrow().is_none()
        {
            self.stage.bump(Count::CrashWhileJoining);
        }
    }

    /// Begins to take one in at some moment, and goes on with it when it is a member.
    pub(crate) fn turn_spare(&mut self) {
        match &self.spare {
            Spare::Blank if self.rng.below(TURNS) == 0 => {
                let last = self.disks.len() - 1;
                self.start_join(last, server::watched(&self.disks[last]), Count::DrivesJoined);
            }
            Spare::Joining(joining) if joining.answer.borrow().is_some() => self.end_join(),
            Spare::None if self.options.faults == FaultMode::Errors => self.turn_failed(),
            _ => {}
        }
    }

    /// Readmits a disk that failed and works, when nothing is left of what was begun on it.
    fn turn_failed(&mut self) {
        let Power::On(server) = &self.power else { return };
        let failed = |drive: &memkv_store::DriveStatus| {
            let gone = server.gone.borrow().contains(&drive.id);
            drive.state == DriveState::Offline && !gone
        };
        let Some(drive) = server.store.drives().into_iter().find(failed) else { return };
        if self.rng.below(TURNS) > 0 {
            return;
        }
        let number = self.disk_of(drive.uuid).expect("a disk of this run");
        if self.disks[number].is_dead() {
            server.gone.borrow_mut().insert(drive.id);
            return;
        }
        let left = server.close(drive.id);
        if server.outstanding(drive.id) > 0 {
            return;
        }
        server.gone.borrow_mut().insert(drive.id);
        self.readmitted += 1;
        let identity = number + DISKS_MAX * self.readmitted;
        let device = server::watch(left);
        self.start_join(identity, device, Count::DrivesReadmitted);
    }

    fn start_join(&mut self, identity: usize, device: Arc<dyn BlockDevice>, count: Count) {
        let Power::On(server) = &self.power else { return };
        let answer = Answer::default();
        let (store, slot) = (server.store.clone(), answer.clone());
        let join = server::join(
            store.clone(),
            self.options.clone(),
            device.clone(),
            identity,
            self.pool.clone(),
        );
        store.local().spawn(async move {
            let joined = join.await;
            *slot.borrow_mut() = Some(joined);
        });
        self.world.kick();
        self.spare = Spare::Joining(Joining { answer, device, count });
    }

    fn end_join(&mut self) {
        let Spare::Joining(joining) = std::mem::take(&mut self.spare) else { return };
        // The server may have begun to stop meanwhile.
        let Power::On(server) = &self.power else { return };
        match joining.answer.take() {
            Some(Ok(id)) if server.add_drive(id, &joining.device).is_ok() => {
                self.stage.bump(joining.count);
            }
            Some(Ok(id)) => server.store.drive_failed(id, &"no reactor has a queue on it"),
            // It bears a number, and is readmitted like any other that failed.
            Some(Err(JoinError::Failed { drive, .. })) => {
                server.note_device(drive, &joining.device)
            }
            _ => {}
        }
        self.world.kick();
    }

    /// Which disk bears an identity.
    pub(crate) fn disk_of(&self, uuid: memkv_journal::DriveUuid) -> Option<usize> {
        let identities = DISKS_MAX * (self.readmitted + 1);
        let is_it = |identity: &usize| server::drive_uuid(self.options.seed, *identity) == uuid;
        (0..identities).find(is_it).map(|identity| identity % DISKS_MAX)
    }
}
