//! The store's drives: their journals, their health, and the choice of where a new extent goes.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use memkv_journal::{DriveUuid, Journal, UnitRange};
use memkv_poller::Local;
use memkv_poller::local::Semaphore;

/// A drive's place in the node's list.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct DriveId(pub u16);

/// Whether a drive serves.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum DriveState {
    /// Serves.
    Online,
    /// Failed; its blocks are misses, its units are never touched again by this process.
    Offline,
}

/// One drive as the store sees it.
pub(crate) struct Drive {
    pub id: DriveId,
    pub uuid: DriveUuid,
    pub journal: Rc<Journal>,
    pub state: Cell<DriveState>,
    pub why_offline: RefCell<Option<String>>,
    /// The other drives know, durably, that it is out.
    pub out: Cell<bool>,
    /// One checkpoint at a time.
    pub checkpointing: Semaphore,
}

/// A drive in status reports.
#[derive(Clone, Debug)]
pub struct DriveStatus {
    /// Its place in the node's list.
    pub id: DriveId,
    /// Its identity.
    pub uuid: DriveUuid,
    /// Whether it serves.
    pub state: DriveState,
    /// Why it does not.
    pub why_offline: Option<String>,
    /// Units of 16 KiB in its data region.
    pub units_total: u64,
    /// Units free for new extents.
    pub units_free: u64,
    /// What of its free units the device was told.
    pub trim: memkv_journal::TrimStats,
    /// Counters of its journal.
    pub journal: memkv_journal::JournalStats,
}

impl Drive {
    pub fn online(&self) -> bool {
        self.state.get() == DriveState::Online
    }

    /// Whether a new block may lie here: it serves, and its journal can take one more.
    pub fn takes_puts(&self) -> bool {
        self.online() && self.journal.room_for_put()
    }

    pub fn status(&self) -> DriveStatus {
        DriveStatus {
            id: self.id,
            uuid: self.uuid,
            state: self.state.get(),
            why_offline: self.why_offline.borrow().clone(),
            units_total: u64::from(self.journal.total_units()),
            units_free: u64::from(self.journal.free_units()),
            trim: self.journal.trim_stats(),
            journal: self.journal.stats(),
        }
    }
}

/// Takes `units` contiguous units on a drive that takes puts, drawn by weight of free space; other
/// drives are tried in order when the drawn one has no such run.
pub(crate) fn place(drives: &[Drive], local: &Local, units: u16) -> Option<(DriveId, UnitRange)> {
    let weight = |d: &Drive| if d.takes_puts() { u64::from(d.journal.free_units()) } else { 0 };
    let total: u64 = drives.iter().map(weight).sum();
    if total == 0 {
        return None;
    }
    let mut draw = if drives.len() == 1 { 0 } else { local.random() % total };
    let mut first = 0;
    for (i, drive) in drives.iter().enumerate() {
        let w = weight(drive);
        if draw < w {
            first = i;
            break;
        }
        draw -= w;
    }
    (0..drives.len()).map(|i| &drives[(first + i) % drives.len()]).find_map(|drive| {
        if !drive.takes_puts() {
            return None;
        }
        drive.journal.allocate(units).map(|range| (drive.id, range))
    })
}
