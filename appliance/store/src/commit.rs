//! Making a block durable, then visible.

use std::rc::Rc;

use memkv_journal::{Append, Applied, BlockId, DriveUuid, JournalError, KeyBytes, PartRef, Record};
use memkv_poller::spare::Row;

use crate::block::{Block, KeyHash, MissReason, Slot};
use crate::index::EXPIRES_MAX;
use crate::locks::KeyGuard;
use crate::remember::Outcome;
use crate::reserve::Pending;
use crate::{DriveId, Durability, Refusal, Store};

/// A put that is durable and visible.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Stored {
    /// The value's generation.
    pub generation: u64,
}

/// The records did not become durable; the block is not stored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CommitError {
    /// A drive failed, and none is left that serves.
    DriveFailed {
        /// Which drive.
        drive: DriveId,
    },
    /// A journal had no room: `Busy` until its next checkpoint, or `Full`. Or a drive failed, which is
    /// offline now: `Busy`, for there are others.
    Refused(Refusal),
}

/// Records by drive, in order of drives.
pub(crate) type Plan = Row<(DriveId, Row<Record>)>;

impl Store {
    /// Commits a reservation whose payload is on its drives. In order, and safe to lose at any
    /// step:
    ///
    /// 1. append the block's records to the journals of its drives, all together; a block of the
    ///    same key that lies on that one drive leaves in the same frame. Where the put is to survive
    ///    a power cut, flush the drives before, for its data, and again after, for its records. One
    ///    flush for both would not do: of what is not flushed a power cut may keep the records and
    ///    lose the data, and with it the acknowledged block that the records have replaced;
    /// 2. all durable: take the older block out of the index, publish this one. Not before the
    ///    flush, or a reader would see what a power cut takes back;
    /// 3. append the removal of an older block on other drives, and wait: otherwise a later delete
    ///    and a crash would bring it back. Where the put is to survive a power cut, flush the other
    ///    drives, too: what was removed there and is back would be found when this block's drive is
    ///    lost later;
    /// 4. when a drive was lost meanwhile, wait until the others know that it is out: it may hold
    ///    the older block;
    /// 5. remember the outcome for retries, unlock the key, answer.
    ///
    /// # Errors
    /// [`CommitError`] when a journal fails; nothing is visible then, or no drive serves.
    pub async fn commit(self: &Rc<Self>, id: u64, crcs: &[u32]) -> Result<Stored, CommitError> {
        let pending = self.settle(id);
        assert_eq!(pending.extents.len(), crcs.len(), "one CRC per extent");
        let caller = pending.request.caller;
        let (parent, pin) = (pending.request.parent, pending.request.pin);
        let flush = pending.request.durable || self.config.durability == Durability::Power;
        let (block, name, guard) = self.block_of(pending, crcs);
        let key = block.hash();
        let (generation, drive) = (block.id.generation, block.extents[0].drive);
        let began = self.local.now();

        let mut plan = records_of(&block, &name, |d| self.drive(d).uuid);
        let leaving = self.joins_frame(&block, &mut plan);
        let appended = self.append_all(plan, flush).await;
        let applied = match appended.and_then(|a| self.still_served(&block, a)) {
            Ok(applied) => applied,
            Err(error) => {
                self.undo(block).await;
                return Err(self.refused_or_failed(error).await);
            }
        };
        self.counters.commit_wait.record(self.local.now().saturating_duration_since(began));

        let older = self.slot_of(key);
        if let Some(older) = older {
            self.unpublish(older, MissReason::Never);
        }
        self.publish_advised(&block, parent, pin);
        self.counters.inserts.bump();
        drop(applied);

        match older {
            Some(older) if leaving == Some(older) => self.free_when_unread(older),
            // Not durable only when its drive failed just now: then the older block is lost with
            // it.
            Some(older) => drop(self.remove_durably(older).await),
            None => {}
        }
        if flush {
            let own = block.extents.iter().map(|extent| extent.drive);
            let flushed: Row<DriveId> = own.filter(|_| older == leaving).collect();
            drop(self.flush_removals(&flushed).await);
        }
        if !self.membership_settles().await {
            return Err(CommitError::DriveFailed { drive });
        }
        let (now, outcome) = (self.local.now(), Outcome::Stored { generation });
        self.remembered.borrow_mut().insert(now, caller, key, outcome);
        drop(guard);
        Ok(Stored { generation })
    }

    fn block_of(&self, pending: Pending, crcs: &[u32]) -> (Block, KeyBytes, KeyGuard) {
        let Pending { request, mut extents, guard } = pending;
        for (extent, &crc) in extents.iter_mut().zip(crcs) {
            extent.crc = crc;
        }
        let expires = match request.ttl_seconds {
            0 => 0,
            ttl => (self.unix_now() + u64::from(ttl)).min(EXPIRES_MAX),
        };
        let block = Block {
            id: BlockId { hash: request.hash.0, generation: self.next_generation() },
            length: request.length,
            expires,
            flags: 0,
            verified: u16::MAX,
            extents,
            corrupt: false,
        };
        (block, request.key, guard)
    }

    /// Adds the removal of the key's present block to the plan when both lie on the same one drive:
    /// one frame then replaces the one by the other.
    fn joins_frame(&self, block: &Block, plan: &mut Plan) -> Option<Slot> {
        let older = self.slot_of(block.hash())?;
        let [(drive, records)] = plan.as_mut_slice() else { return None };
        let blocks = self.blocks.borrow();
        if blocks.spans(older).any(|span| span.drive != *drive) {
            return None;
        }
        records.push(Record::Remove { block: blocks.get(older).id() });
        Some(older)
    }

    /// Appends a put's records to all journals at once and waits for all; with `flush`, the drives
    /// are flushed before and after. A drive whose journal fails goes offline.
    async fn append_all(
        self: &Rc<Self>,
        plan: Plan,
        flush: bool,
    ) -> Result<Row<Applied>, CommitError> {
        if flush {
            self.flush_all(plan.iter().map(|(drive, _)| *drive)).await?;
        }
        let drives: Row<DriveId> = plan.iter().map(|(drive, _)| *drive).collect();
        let mut waits = Row::new();
        for (drive, records) in plan {
            waits.push((drive, self.append(drive, records)));
        }
        let mut applied = Row::new();
        let mut failed = None;
        for (drive, wait) in waits {
            match wait.await {
                Ok(guard) => applied.push(guard),
                Err(error) => failed = Some(self.append_failed(drive, &error)),
            }
            self.watch_ring(drive);
        }
        if let Some(error) = failed {
            return Err(error);
        }
        if flush && self.config.durability != Durability::Power {
            self.flush_all(drives.into_iter()).await?;
        }
        Ok(applied)
    }

    /// Appends records to one journal, as durable as is configured. A put that asks for more flushes
    /// by itself: its frame must not keep the others waiting for a flush.
    fn append(&self, drive: DriveId, records: Row<Record>) -> Append {
        self.counters.appends.bump();
        let journal = &self.drive(drive).journal;
        match self.config.durability {
            Durability::Memory | Durability::Process => journal.append(records),
            Durability::Power => journal.append_durable(records),
        }
    }

    /// Flushes drives, all at once: what was written there survives a power cut. A drive that fails
    /// goes offline.
    pub(crate) async fn flush_all(
        self: &Rc<Self>,
        drives: impl Iterator<Item = DriveId>,
    ) -> Result<(), CommitError> {
        let under_way: Vec<_> =
            drives.map(|drive| (drive, self.drive(drive).journal.flush())).collect();
        let mut failed = None;
        for (drive, flushed) in under_way {
            if let Err(error) = flushed.await {
                self.drive_failed(drive, &error);
                failed = Some(CommitError::DriveFailed { drive });
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// What was removed from any drive stays away after a power cut: flushes all that serve, but for those
    /// that were flushed since. A drive that fails goes offline, and what it holds with it.
    ///
    /// # Errors
    /// A drive that failed.
    pub(crate) async fn flush_removals(
        self: &Rc<Self>,
        flushed: &[DriveId],
    ) -> Result<(), CommitError> {
        if self.config.durability == Durability::Power {
            return Ok(());
        }
        let online = self.drives.iter().filter(|drive| drive.online()).map(|drive| drive.id);
        let others: Row<DriveId> = online.filter(|drive| !flushed.contains(drive)).collect();
        self.flush_all(others.into_iter()).await
    }

    /// Refuses to publish a block one of whose drives went offline while it was on its way: its
    /// sweep has been and gone, and nobody could read what was just acknowledged.
    fn still_served(
        &self,
        block: &Block,
        applied: Row<Applied>,
    ) -> Result<Row<Applied>, CommitError> {
        match block.extents.iter().find(|e| !self.drive(e.drive).online()) {
            Some(lost) => Err(CommitError::DriveFailed { drive: lost.drive }),
            None => Ok(applied),
        }
    }

    fn append_failed(self: &Rc<Self>, drive: DriveId, error: &JournalError) -> CommitError {
        match error {
            JournalError::RingFull | JournalError::CheckpointRunning => {
                self.checkpoint_now.notify_all();
                CommitError::Refused(self.busy(50))
            }
            JournalError::CheckpointFull => {
                self.checkpoint_now.notify_all();
                CommitError::Refused(self.no_space(KeyHash(0), 1))
            }
            JournalError::TooLarge { .. } | JournalError::Failed(_) => {
                self.drive_failed(drive, error);
                CommitError::DriveFailed { drive }
            }
        }
    }

    /// Wakes the checkpointer when a drive's ring has filled enough.
    fn watch_ring(&self, drive: DriveId) {
        let drive = self.drive(drive);
        if drive.online() && drive.journal.wants_checkpoint() {
            self.checkpoint_now.notify_all();
        }
    }

    /// Appends removals to all journals at once and waits until each is durable as configured or
    /// its drive is offline; says whether all are durable. Removals have a reserve in the ring; when
    /// even that is used up they wait for a checkpoint.
    pub(crate) async fn append_removals(self: &Rc<Self>, plan: Plan) -> bool {
        let mut waits = Row::new();
        for (drive, records) in plan {
            let wait = self.append(drive, records.clone());
            waits.push((drive, records, wait));
        }
        let mut durable = true;
        for (drive, records, mut wait) in waits {
            let journal = &self.drive(drive).journal;
            loop {
                match wait.await {
                    Ok(_) => break,
                    Err(JournalError::Failed(error)) => {
                        self.drive_failed(drive, &error);
                        durable = false;
                        break;
                    }
                    // No checkpoint comes on a drive that went offline: its journal may be as it
                    // was, but nobody makes room in it any more.
                    Err(_) if !self.drive(drive).online() => {
                        durable = false;
                        break;
                    }
                    // Whoever is refused makes the room itself, or finds that another has: to wait
                    // for a checkpoint that others may not need would be to wait for ever.
                    Err(_) => {
                        self.checkpoint_unless(drive, journal.stats().checkpoints).await;
                        wait = self.append(drive, records.clone());
                    }
                }
            }
            self.watch_ring(drive);
        }
        durable
    }

    /// What a put is told whose commit failed. The bytes are gone from memory by then. When a drive
    /// failed and others serve, the client, who has them, is asked to put once more: they know by
    /// then that the drive is out, so nothing that it was told comes back.
    async fn refused_or_failed(self: &Rc<Self>, error: CommitError) -> CommitError {
        match error {
            CommitError::DriveFailed { .. } if self.membership_settles().await => {
                CommitError::Refused(self.busy(1))
            }
            error => error,
        }
    }

    /// A commit failed: what became durable on some drives is removed before its units are free
    /// again; units on a drive that failed are not used again.
    async fn undo(self: &Rc<Self>, block: Block) {
        let plan = self.removal_plan(block.id, block.extents.iter().map(|e| e.drive));
        // What is not durable is on a drive that has just gone offline.
        self.append_removals(plan).await;
        self.release_units(&block.extents);
    }
}

/// The records that make a block durable: one `Put`, or a `Part` per extent and a `Head` beside the
/// first part.
pub(crate) fn records_of(
    block: &Block,
    key: &KeyBytes,
    uuid: impl Fn(DriveId) -> DriveUuid,
) -> Plan {
    if let [extent] = block.extents.as_slice() {
        let record = Record::Put {
            block: block.id,
            key: key.clone(),
            extent: extent.range,
            length: extent.length,
            crc: extent.crc,
            expires: block.expires,
            flags: block.record_flags(),
        };
        return [(extent.drive, [record].into())].into();
    }
    let mut plan = Plan::new();
    for (index, extent) in block.extents.iter().enumerate() {
        let part = Record::Part {
            block: block.id,
            index: index as u16,
            extent: extent.range,
            length: extent.length,
            crc: extent.crc,
        };
        match plan.iter_mut().find(|(drive, _)| *drive == extent.drive) {
            Some((_, records)) => records.push(part),
            None => plan.push((extent.drive, [part].into())),
        }
    }
    let parts = block.extents.iter().map(|e| PartRef {
        drive: uuid(e.drive),
        length: e.length,
        crc: e.crc,
    });
    let head = Record::Head {
        block: block.id,
        key: key.clone(),
        length: block.length,
        expires: block.expires,
        flags: block.record_flags(),
        parts: parts.collect(),
    };
    plan[0].1.push(head);
    plan
}
