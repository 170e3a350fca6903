//! Drives that join while the node serves: those that the configuration lists since it was read last,
//! those that it listed at the start and that were blank, and those that were lost, when an operator
//! says so.
//!
//! ```text
//!   looked at ─► opened ─► store.join, see there ─► every reactor has its queue ─► blocks lie on it
//! ```
//!
//! All of them are looked at and opened before anything is changed. The drive is emptied by that, so
//! only a blank one is taken by a reload. One that failed may be the same piece of hardware as before:
//! then what was begun on it must have come to its end, or it might still write over what is new. So
//! its old handle is closed first, and commands that are out are a reason to refuse.

use std::path::Path;
use std::rc::Rc;
use std::sync::{Arc, mpsc};

use memkv_admin_api as api;
use memkv_block::{BlockDevice, Kind};
use memkv_journal::{DriveUuid, NodeUuid};
use memkv_nvme::PciAddress;
use memkv_poller::Local;
use memkv_session::{Context, DriveIo};
use memkv_store::{DriveId, DriveState, JoinError, Newcomer, Store};

use crate::bypass::Way;
use crate::config::{Config, Drive};
use crate::drives::{self, Progress, options_like};
use crate::node::{Control, order};
use crate::offline;
use crate::reload::{self, Source};
use crate::serve::chain;
use crate::status::{DONE, Shared};

/// A drive that is about to join.
pub(crate) struct Joining {
    drive: Drive,
    device: Arc<dyn BlockDevice>,
}

/// What became of one.
pub(crate) enum Joined {
    /// It is a member.
    Member(DriveId, DriveUuid),
    /// The node has not changed. It may still have commands of the attempt that it has not answered.
    Not {
        /// What happened.
        why: String,
        /// How many.
        outstanding: usize,
    },
    /// It bears this number, and failed.
    Failed(DriveId, String),
}

impl Shared {
    /// Opens the drives that a configuration lists and that are not in use; all of them, or none and
    /// the reasons.
    pub(crate) fn newcomers(&self, next: &Config) -> Result<Vec<Joining>, String> {
        let now = self.config();
        if next.storage.mode != now.storage.mode {
            // What the drives are waits for a restart, and so do they.
            return Ok(Vec::new());
        }
        let mut refused = Vec::new();
        let mut joining = Vec::new();
        for drive in next.storage.drives.iter().filter(|drive| !self.uses(drive)) {
            match self.open_newcomer(drive, &now) {
                Ok(device) => joining.push(Joining { drive: drive.clone(), device }),
                Err(reasons) => refused.extend(reasons),
            }
        }
        if refused.is_empty() { Ok(joining) } else { Err(refused.join("; ")) }
    }

    /// Whether a drive needs not, or cannot, join: it did, it is in memory, or it was left out for
    /// what is on it.
    fn uses(&self, drive: &Drive) -> bool {
        let Some(media) = drive.media() else { return true };
        let name = media.display().to_string();
        let at_start = self.at_start();
        at_start.number(&name).is_some()
            || at_start.left_out.iter().any(|left| left.device.name() == name && !left.blank)
    }

    fn open_newcomer(
        &self,
        drive: &Drive,
        now: &Config,
    ) -> Result<Arc<dyn BlockDevice>, Vec<String>> {
        let media = drive.media().expect("what is in memory does not join");
        let name = media.display().to_string();
        if let Some(why) = self.at_start().owes(&name) {
            return Err(vec![why]);
        }
        // It was found blank at the start, and nobody else could write to it since.
        let blank = |left: &&crate::members::LeftOut| left.device.name() == name;
        if let Some(left) = self.at_start().left_out.iter().find(blank) {
            return Ok(left.device.clone());
        }
        // A file that is not there is made.
        if !matches!(drive, Drive::File { .. }) || media.exists() {
            let against = offline::against_taking(&media, None);
            if !against.is_empty() {
                return Err(against);
            }
        }
        let quiet: Progress = Rc::new(|_, _, _| {});
        drives::open_device(drive, now, &self.pool, &self.bypass, &quiet)
            .map_err(|e| vec![chain(&e)])
    }

    /// Has a drive join; the drive as the configuration names it, and its identity.
    pub(crate) fn join_drive(&self, joining: Joining) -> Result<(Drive, DriveUuid), String> {
        let Joining { drive, device } = joining;
        let told = |why| format!("{}: {why}", device.name());
        let no_answer = |_| told("the node does not answer".to_owned());
        // Its journal is written once, which takes as long as it takes; a drive that stalls fails.
        let asked = order(self.store_reactor(), |answer| Control::Join(device.clone(), answer));
        let (id, uuid) = match asked.recv().map_err(|_| told("the node stops".to_owned()))? {
            Joined::Member(id, uuid) => (id, uuid),
            Joined::Not { why, outstanding } => {
                if outstanding > 0 {
                    self.drive_owes(device.name());
                }
                return Err(told(why));
            }
            Joined::Failed(id, why) => {
                self.note_joined(id, &device);
                return Err(told(why));
            }
        };
        self.note_joined(id, &device);
        let added = self.add_everywhere(id, &device);
        let opened =
            order(self.store_reactor(), |done| Control::OpenDrive(id, added.clone(), done));
        opened.recv_timeout(DONE).map_err(no_answer)?;
        added.map_err(told)?;
        Ok((drive, uuid))
    }

    fn note_joined(&self, id: DriveId, device: &Arc<dyn BlockDevice>) {
        self.drive_joined(device.clone());
        let number = self.at_start().number(device.name());
        assert_eq!(number, Some(usize::from(id.0)), "drives are noted in the store's order");
    }

    fn add_everywhere(&self, id: DriveId, device: &Arc<dyn BlockDevice>) -> Result<(), String> {
        let add = |reactor| order(reactor, |done| Control::AddDrive(id, device.clone(), done));
        let answers: Vec<mpsc::Receiver<Result<(), String>>> =
            self.reactor_inboxes().iter().map(add).collect();
        for answer in answers {
            answer.recv_timeout(DONE).map_err(|_| "a reactor does not answer".to_owned())??;
        }
        Ok(())
    }
}

impl Shared {
    /// See [`api::NodeAdmin::readmit`].
    pub(crate) fn readmit_drive(&self, path: &str) -> Result<api::Readmitted, api::ReadmitError> {
        let source = self.reloads.alone();
        // An address may be spelled in several ways, and drives are called by one.
        let spelled = PciAddress::of(Path::new(path)).map(|address| address.to_string());
        let path = spelled.as_deref().unwrap_or(path);
        let drive = self.listed(path, source.as_ref()).map_err(api::ReadmitError::Refused)?;
        let device = self.returned(&drive)?;
        let joined = self.join_drive(Joining { drive, device });
        let (drive, uuid) = joined.map_err(|why| {
            tracing::error!(%why, "drive was not readmitted");
            api::ReadmitError::Failed(why)
        })?;
        let mut config = (*self.config()).clone();
        if !config.storage.drives.contains(&drive) {
            config.storage.drives.push(drive);
            self.set_config(Arc::new(config));
        }
        tracing::info!(drive = path, %uuid, "drive readmitted");
        Ok(api::Readmitted { path: path.to_owned(), uuid: uuid.to_string() })
    }

    /// The drive as the configuration lists it: the one that holds, or the file as it is now.
    fn listed(&self, path: &str, source: Option<&Source>) -> Result<Drive, String> {
        let now = self.config();
        let is_it = |drive: &&Drive| drive.media().is_some_and(|media| media == Path::new(path));
        if let Some(drive) = now.storage.drives.iter().find(is_it) {
            return Ok(drive.clone());
        }
        let next = source.and_then(|source| reload::read(source, &now).ok());
        let next = next.filter(|next| next.storage.mode == now.storage.mode);
        let drive = next.and_then(|next| next.storage.drives.iter().find(is_it).cloned());
        drive.ok_or_else(|| format!("{path}: list it under storage.drives first"))
    }

    /// Opens a drive that failed, was lost, or lies in place of such a one.
    fn returned(&self, drive: &Drive) -> Result<Arc<dyn BlockDevice>, api::ReadmitError> {
        let refused = api::ReadmitError::Refused;
        let now = self.config();
        let media = drive.media().expect("what is in memory has no path");
        let name = media.display().to_string();
        if let Some(why) = self.at_start().owes(&name) {
            return Err(refused(why));
        }
        if let Some(left) = self.at_start().left_out.iter().find(|left| left.device.name() == name)
        {
            let known = left.blank || left.uuid.is_some();
            let device = left.device.clone();
            return if known {
                Ok(device)
            } else {
                Err(refused(format!("{name}: {}", left.reason)))
            };
        }
        let drives = self.drives().ok_or(api::ReadmitError::NoAnswer(api::NoAnswer))?;
        let number = self.at_start().number(&name);
        if number.is_some_and(|number| drives[number].state == DriveState::Online) {
            return Err(refused(format!("{name}: it serves and need not be readmitted")));
        }
        if let Some(number) = number
            && self.is_at_hand(drive, &media).map_err(refused)?
        {
            return self.same_again(number, &now);
        }
        let serving: Vec<DriveUuid> = drives
            .iter()
            .filter(|drive| drive.state == DriveState::Online)
            .map(|drive| drive.uuid)
            .collect();
        let own = NodeUuid(uuid::Uuid::from_bytes(self.identity.server));
        if !matches!(drive, Drive::File { .. }) || media.exists() {
            let against = offline::against_taking(&media, Some((own, &serving)));
            if !against.is_empty() {
                return Err(refused(against.join("; ")));
            }
        }
        let quiet: Progress = Rc::new(|_, _, _| {});
        let opened = drives::open_device(drive, &now, &self.pool, &self.bypass, &quiet);
        opened.map_err(|error| refused(chain(&error)))
    }

    /// Whether a drive that failed is still open here. A controller is not: it is let go, if that was not done
    /// when it failed, and whatever is at its address now is opened like any other.
    fn is_at_hand(&self, drive: &Drive, media: &Path) -> Result<bool, String> {
        let Drive::Pci { address } = drive else { return Ok(offline::is_locked(media)) };
        if let Ok(Way::Kernel { path, .. }) =
            self.bypass.way(*address, self.config().storage.bypass)
        {
            return Ok(offline::is_locked(&path));
        }
        let open = self.bypass.find(&drive.name()).and_then(|attended| attended.drive());
        match open.is_none_or(|open| open.let_go()) {
            true => Ok(false),
            false => Err(format!("{address}: it may still reach memory; restart the node")),
        }
    }

    /// The hardware that failed, for a use that begins anew.
    fn same_again(
        &self,
        number: usize,
        now: &Config,
    ) -> Result<Arc<dyn BlockDevice>, api::ReadmitError> {
        let device = self.at_start().devices[number].clone();
        let name = device.name();
        let refused = |why: String| api::ReadmitError::Refused(format!("{name}: {why}"));
        let left = device.close().ok_or_else(|| refused("it cannot be used again".to_owned()))?;
        let no_answer = || api::ReadmitError::NoAnswer(api::NoAnswer);
        // Whatever was submitted before it was closed is counted by whoever is asked after that.
        let drives = self.drives().ok_or_else(no_answer)?;
        let mut outstanding = drives[number].outstanding;
        let id = drives[number].id;
        for reactor in self.reactor_inboxes() {
            let asked = order(reactor, |answer| Control::Outstanding(id, answer));
            outstanding += asked.recv_timeout(DONE).map_err(|_| no_answer())?;
        }
        if outstanding > 0 {
            return Err(refused(format!(
                "it has not answered {outstanding} commands from before; readmit it when it has, or \
                 replace it"
            )));
        }
        Ok(memkv_block::watch(left, now.storage.drive_timeout))
    }
}

/// On the store's reactor: makes a drive a member, formatted like the others.
pub(crate) async fn join(
    store: Rc<Store>,
    device: Arc<dyn BlockDevice>,
    pool: memkv_dma::Pool,
) -> Joined {
    let geometry = device.geometry();
    let not = |why: String| Joined::Not { why, outstanding: 0 };
    let queue = match device.open_queue(store.local()) {
        Ok(queue) => queue,
        Err(error) => return not(chain(&error)),
    };
    let Some(member) = store.member() else {
        return not("no drive serves that it could join".to_owned());
    };
    let options = options_like(&member, geometry.capacity);
    let uuid = DriveUuid(drives::new_uuid());
    let newcomer = Newcomer { queue: queue.clone(), geometry, pool, uuid, options };
    match store.join(newcomer).await {
        Ok(id) => Joined::Member(id, uuid),
        Err(error @ JoinError::Failed { drive, .. }) => Joined::Failed(drive, chain(&error)),
        Err(error) => Joined::Not { why: chain(&error), outstanding: queue.outstanding() },
    }
}

/// On each reactor: a queue on a drive that has joined.
pub(crate) fn add(
    local: &Local,
    context: &Context,
    id: DriveId,
    device: Arc<dyn BlockDevice>,
) -> Result<(), String> {
    if device.kind() == Kind::Nvme {
        // It sees the pool, and what drives see is not lent.
        context.end_lending();
    }
    let queue = device.open_queue(local).map_err(|error| chain(&error))?;
    context.add_drive(id, DriveIo { device, queue });
    Ok(())
}
