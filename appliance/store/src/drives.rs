//! The store's drives: their journals, their health, and the choice of where a new extent goes.

use std::cell::{Cell, OnceCell, RefCell};
use std::ops::Index;
use std::rc::Rc;

use memkv_journal::{DriveUuid, Journal, UnitRange};
use memkv_poller::Local;
use memkv_poller::local::Semaphore;

use crate::duty::Duty;

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
    /// Blocks may lie on it: every reactor that moves their bytes has a queue on it.
    pub open: Cell<bool>,
    /// One checkpoint at a time.
    pub checkpointing: Semaphore,
    /// What the one under way still has to find.
    pub duty: RefCell<Option<Duty>>,
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
    /// Commands of the store's that it has not answered.
    pub outstanding: usize,
    /// Commands of the store's that have ended.
    pub completed: u64,
    /// Units of 16 KiB in its data region.
    pub units_total: u64,
    /// Units free for new extents.
    pub units_free: u64,
    /// What of its free units the device was told.
    pub trim: memkv_journal::TrimStats,
    /// Counters of its journal.
    pub journal: memkv_journal::JournalStats,
}

/// The room on the drives that serve, in units of 16 KiB.
#[derive(Copy, Clone, PartialEq, Eq, Default, Debug)]
pub struct Space {
    /// Of data regions.
    pub units_total: u64,
    /// With something in them, or promised.
    pub units_used: u64,
    /// Drives that serve.
    pub drives_online: u64,
    /// Drives that belong to the node and do not.
    pub drives_offline: u64,
}

impl Drive {
    /// A drive that serves, and takes no blocks yet.
    pub fn new(id: DriveId, journal: Rc<Journal>) -> Self {
        Self {
            id,
            uuid: journal.drive(),
            journal,
            state: Cell::new(DriveState::Online),
            why_offline: RefCell::new(None),
            out: Cell::new(false),
            open: Cell::new(false),
            checkpointing: Semaphore::new(1),
            duty: RefCell::new(None),
        }
    }

    pub fn online(&self) -> bool {
        self.state.get() == DriveState::Online
    }

    /// Whether a new block may lie here: it serves, and its journal can take one more.
    pub fn takes_puts(&self) -> bool {
        self.online() && self.open.get() && self.journal.room_for_put()
    }

    /// Whether blocks could lie here if its journal had room for one more.
    pub fn lacks_room(&self) -> bool {
        self.online() && self.open.get() && !self.journal.room_for_put()
    }

    pub fn status(&self) -> DriveStatus {
        DriveStatus {
            id: self.id,
            uuid: self.uuid,
            state: self.state.get(),
            why_offline: self.why_offline.borrow().clone(),
            outstanding: self.journal.outstanding(),
            completed: self.journal.completed(),
            units_total: u64::from(self.journal.total_units()),
            units_free: u64::from(self.journal.free_units()),
            trim: self.journal.trim_stats(),
            journal: self.journal.stats(),
        }
    }
}

/// Drives of one process at most: a node's, and as many again that joined for those that failed.
pub const DRIVES_MAX: usize = 2 * memkv_journal::MEMBERS_MAX;

/// The node's drives: some may join, none goes, so what is known of one stays where it is.
pub(crate) struct Drives {
    places: Box<[OnceCell<Drive>]>,
    count: Cell<usize>,
}

impl Drives {
    pub fn new(drives: Vec<Drive>) -> Self {
        let places = (0..DRIVES_MAX).map(|_| OnceCell::new()).collect();
        let all = Self { places, count: Cell::new(0) };
        drives.into_iter().for_each(|drive| all.push(drive));
        all
    }

    pub fn len(&self) -> usize {
        self.count.get()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Drive> {
        (0..self.len()).map(|index| &self[index])
    }

    /// Adds a drive, which bears the next number; there is a place for it.
    pub fn push(&self, drive: Drive) {
        let count = self.count.get();
        assert_eq!(usize::from(drive.id.0), count, "drives are numbered as they come");
        assert!(self.places[count].set(drive).is_ok(), "a place is taken once");
        self.count.set(count + 1);
    }
}

impl Index<usize> for Drives {
    type Output = Drive;

    fn index(&self, index: usize) -> &Drive {
        self.places[index].get().expect("there is such a drive")
    }
}

/// Takes `units` contiguous units on a drive that takes puts, drawn by weight of free space; other
/// drives are tried in order when the drawn one has no such run.
pub(crate) fn place(drives: &Drives, local: &Local, units: u16) -> Option<(DriveId, UnitRange)> {
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
