//! Checkpoints: what a drive's journal no longer has to remember frame by frame.

use std::rc::Rc;

use memkv_journal::{Closing, Merged};

use crate::block::KeyHash;
use crate::drives::Drive;
use crate::duty::{Duty, OnDuty};
use crate::{DriveId, Store};

/// Looks at what a merge did not meet between two yields: at 64 slots each, all of them settled.
const LOOKS: u32 = 4096;
/// And as many for a slot that is not, whose block is looked at.
const LOOKS_AT_BLOCK: u32 = 16;
/// How often a stop begins anew because blocks were lost.
const STOP_ROUNDS: usize = 3;
/// Why a lost block is dropped.
const UNREADABLE: &str = "what was recorded of it cannot be read";

/// A block whose record could not be read.
pub(crate) struct Lost {
    key: KeyHash,
    generation: u64,
}

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
        let lost = self.checkpoint_alone(drive.id, false).await;
        self.let_go(lost);
        true
    }

    /// Writes one drive's checkpoint. Answers with the blocks that are lost by what it could not
    /// read: whoever asked drops them.
    pub(crate) async fn checkpoint(self: &Rc<Self>, id: DriveId, clean: bool) -> Vec<Lost> {
        let _one = self.drive(id).checkpointing.acquire(1).await;
        self.checkpoint_alone(id, clean).await
    }

    /// Writes one drive's checkpoint unless one was completed since `seen` of them were: what the
    /// store does by itself when a ring fills.
    pub async fn checkpoint_unless(self: &Rc<Self>, id: DriveId, seen: u64) {
        let drive = self.drive(id);
        let _one = drive.checkpointing.acquire(1).await;
        if drive.online() && drive.journal.stats().checkpoints == seen {
            let lost = self.checkpoint_alone(id, false).await;
            self.let_go(lost);
        }
    }

    /// The start is fixed and every block becomes a duty without an await between them. See
    /// [`duty`](crate::duty) for the rest.
    async fn checkpoint_alone(self: &Rc<Self>, id: DriveId, clean: bool) -> Vec<Lost> {
        let drive = self.drive(id);
        let start = drive.journal.begin_checkpoint();
        *drive.duty.borrow_mut() = Some(Duty::new(self.blocks.borrow().last()));
        let closing =
            Closing { clean, generation_high: self.generation.get(), clock_high: self.unix_now() };
        let mut on_duty = OnDuty { store: self, drive: id };
        let merged = drive.journal.merge_checkpoint(start, &mut on_duty, closing).await;
        let lost = match merged {
            Ok(merged) => {
                self.counters.checkpoints.bump();
                self.counters.checkpoint_rows.add(merged.from_rows);
                self.counters.checkpoint_log_rows.add(merged.from_log);
                self.unsettled(id, &merged).await
            }
            Err(error) => {
                self.drive_failed(id, &error);
                Vec::new()
            }
        };
        while drive.duty.borrow_mut().as_mut().is_some_and(|duty| !duty.shed()) {
            self.local.yield_now().await;
        }
        *drive.duty.borrow_mut() = None;
        lost
    }

    /// The duties that a merge did not meet. They are misses from now on.
    async fn unsettled(&self, id: DriveId, merged: &Merged) -> Vec<Lost> {
        let (mut lost, mut looks) = (Vec::new(), LOOKS);
        loop {
            let (slot, done) = {
                let mut duty = self.drive(id).duty.borrow_mut();
                let duty = duty.as_mut().expect("the run is under way");
                (duty.next_left(&mut looks), duty.is_done())
            };
            if let Some(slot) = slot {
                looks = looks.saturating_sub(LOOKS_AT_BLOCK);
                let mut blocks = self.blocks.borrow_mut();
                if let Some(&block) = blocks.at(slot.number())
                    && block.is_published()
                    && blocks.is_on(slot, id)
                {
                    blocks.mark_corrupt(slot);
                    lost.push(Lost { key: block.hash(), generation: block.generation() });
                }
            } else if done {
                break;
            }
            if looks == 0 {
                self.local.yield_now().await;
                looks = LOOKS;
            }
        }
        if !lost.is_empty() || merged.rows_unreadable > 0 || merged.frames_unreadable > 0 {
            let (rows, frames) = (merged.rows_unreadable, merged.frames_unreadable);
            let blocks = lost.len();
            tracing::error!(drive = id.0, rows, frames, blocks, "records could not be read");
            self.counters.records_lost.add(blocks as u64);
        }
        lost
    }

    /// Drops lost blocks in a task of its own: their removals may need another checkpoint. A stop
    /// does not wait for it, and drops what is left itself.
    pub(crate) fn let_go(self: &Rc<Self>, lost: Vec<Lost>) {
        if lost.is_empty() {
            return;
        }
        let store = self.clone();
        self.local.spawn(async move {
            for Lost { key, generation } in lost {
                if store.draining.get() {
                    return;
                }
                store.drop_bad(key, generation, UNREADABLE).await;
            }
        });
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
        for _ in 0..STOP_ROUNDS {
            let mut lost = Vec::new();
            for index in 0..self.drives.len() {
                if self.drives[index].online() {
                    self.drives[index].journal.trim_settled().await;
                    lost.append(&mut self.checkpoint(self.drives[index].id, true).await);
                }
            }
            if lost.is_empty() {
                break;
            }
            // Behind a removal a checkpoint is not the last word any more.
            for Lost { key, generation } in lost {
                self.drop_bad(key, generation, UNREADABLE).await;
            }
        }
        // Also of a drive that failed just now: the next start should not have to be told.
        self.membership_settles().await;
    }
}
