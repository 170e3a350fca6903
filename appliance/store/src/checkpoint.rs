//! Checkpoints: what a drive's journal no longer has to remember frame by frame.

use std::rc::Rc;

use memkv_journal::Record;

use crate::commit::records_of;
use crate::drives::Drive;
use crate::{DriveId, Store};

impl Store {
    /// The task of each drive: writes a checkpoint whenever its journal wants one. A drive that
    /// hangs keeps none of the others waiting.
    pub(crate) async fn checkpointer(self: Rc<Self>, id: DriveId) {
        loop {
            // First look, then listen: whoever told us before we listened is not asked to repeat
            // it. The drive may have come to want another while one was written.
            if !self.checkpoint_if_wanted(self.drive(id)).await {
                self.checkpoint_now.listen().await;
            }
        }
    }

    /// Writes one drive's checkpoint if its journal wants one, also after waiting for its turn: the
    /// one before may have been what was wanted, or the clean one of a stop, behind which no other
    /// may come.
    async fn checkpoint_if_wanted(self: &Rc<Self>, drive: &Drive) -> bool {
        let wanted = || drive.online() && drive.journal.wants_checkpoint();
        if !wanted() {
            return false;
        }
        let _one = drive.checkpointing.acquire(1).await;
        if !wanted() {
            return false;
        }
        self.checkpoint_alone(drive.id, false).await;
        true
    }

    /// Writes one drive's checkpoint.
    ///
    /// The start is fixed and the index is copied without an await between them: every record
    /// before the start is in the copy, every later one is replayed. A block that was unpublished
    /// but whose removal is not durable yet is left out, which is that removal.
    pub(crate) async fn checkpoint(self: &Rc<Self>, id: DriveId, clean: bool) {
        let _one = self.drive(id).checkpointing.acquire(1).await;
        self.checkpoint_alone(id, clean).await;
    }

    /// Writes one drive's checkpoint unless one was completed since `seen` of them were: what the
    /// store does by itself when a ring fills.
    pub async fn checkpoint_unless(self: &Rc<Self>, id: DriveId, seen: u64) {
        let drive = self.drive(id);
        let _one = drive.checkpointing.acquire(1).await;
        if drive.online() && drive.journal.stats().checkpoints == seen {
            self.checkpoint_alone(id, false).await;
        }
    }

    async fn checkpoint_alone(self: &Rc<Self>, id: DriveId, clean: bool) {
        let drive = self.drive(id);
        let start = drive.journal.begin_checkpoint();
        let records = self.records_on(id);
        let (generation, clock) = (self.generation.get(), self.unix_now());
        let written =
            drive.journal.write_checkpoint(start, records, clean, generation, clock).await;
        match written {
            Ok(()) => self.counters.checkpoints.bump(),
            Err(error) => self.drive_failed(id, &error),
        }
    }

    fn records_on(&self, id: DriveId) -> Vec<Record> {
        let blocks = self.blocks.borrow();
        let mut records = Vec::new();
        let keys = self.keys.borrow();
        for (slot, entry) in blocks.iter(1..=blocks.last()) {
            if !entry.is_published() || !blocks.is_on(slot, id) {
                continue;
            }
            let plan = records_of(&self.block(slot), keys.get(slot), |d| self.drive(d).uuid);
            let here = plan.into_iter().filter(|(drive, _)| *drive == id);
            records.extend(here.flat_map(|(_, records)| records));
        }
        records
    }

    /// Ends service: refuses new puts, and leaves every drive with a clean checkpoint, so that the
    /// next start needs no replay and trusts every block but those that were not checked since the
    /// last unclean start. Sessions are drained before.
    pub async fn shutdown(self: &Rc<Self>) {
        self.draining.set(true);
        self.drives.iter().for_each(|drive| drive.journal.stop_trim());
        // The last aborts of sessions on other reactors may still be on their way here.
        while !self.pending.borrow().is_empty() {
            self.settled.listen().await;
        }
        self.joins_end().await;
        // Nor may a removal that nobody waits for come behind a clean checkpoint: the evictor's,
        // and that of a block found to be expired.
        self.locks.all_free().await;
        for index in 0..self.drives.len() {
            if self.drives[index].online() {
                self.drives[index].journal.trim_settled().await;
                self.checkpoint(self.drives[index].id, true).await;
            }
        }
        // Also of a drive that failed just now: the next start should not have to be told.
        self.membership_settles().await;
    }
}
