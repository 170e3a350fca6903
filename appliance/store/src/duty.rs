//! Which records a checkpoint under way still has to find.
//!
//! A checkpoint of a drive is merged from the one before and the log since (`journal`), and the
//! index says of every record that is met there whether it stands. The index moves on meanwhile. So
//! this is kept of a run, by slot: whether the block in it is the run's *duty*, and was not met
//! yet.
//!
//! Why what is written is right, `S` being the start of the run and `P` that of the one before:
//!
//! 1. Duty is every block that is published and has a record on the drive when the run begins, and
//!    whose frame is before `S`. A block is published in the same turn in which its frame is let
//!    go, so a block that is not published when the run begins has its frame at `S` or later: a
//!    start finds it in the log. Publishing settles its slot: the run does not ask for it any more.
//! 2. A block that is published may still have its frame at `S` or later, beside one that is not
//!    applied. The log is read up to where it ended when the run began, and what is met from `S` on
//!    is settled without being written.
//! 3. All records of a block on one drive lie in one frame. So each record of a duty is in the rows
//!    of the checkpoint before (its frame was before `P`) or in the log between `P` and `S`, which
//!    is not free before the run is complete; by induction from the empty checkpoint. A drive whose
//!    last checkpoint was copied from an index (rows that are in the log as well) meets some twice:
//!    the second time the slot is settled.
//! 4. A record is written when the block of its key in the index has its generation and its units.
//!    The index then says the flags. A block that has gone is not there, one that came instead has
//!    another generation, and its slot, if it is the same, is settled.
//! 5. A block that goes before its record is met is not written: its removal may or may not be
//!    durable when the run completes, and nobody was told yet, or it comes after `S` in the log. A
//!    block that goes after that is written, and its removal comes after `S`. What is replaced from
//!    another drive goes only after the frame of the new block was written; the checkpoint is named
//!    after a flush of its own drive alone, so a power cut may take the new one on the other drive,
//!    which it may under `process`, and cannot under `power`, where it was flushed.
//! 6. Units are free after the removal is durable, so no two rows that stand name one unit; a row
//!    that was written for a block that went, and a later record of the same units, are told apart
//!    by the removal between them.
//! 7. What a start recovered is in the index, and its journal begins with the checkpoint and the
//!    log that were read: (3) holds. What it dropped is not in the index, so the first run forgets
//!    it. When it fell back to the older checkpoint, that one is in force, and the damaged one is
//!    written over.
//! 8. A mark that a block is verified may come after its row was written: the row then asks for a
//!    check too many. The clean checkpoint of a stop is written when nothing moves.
//! 9. A drive that is lost takes its blocks out of the index; their parts on other drives are not
//!    met as standing any more, and their removals come after `S`.
//! 10. After both passes a block that is published, on the drive and not settled has a record that
//!     could not be read: a piece of the checkpoint before or a page of the log was damaged, and
//!     its key is lost with it. It is not in the new checkpoint, so it is dropped, with that
//!     reason: a later start would not find it.
//!
//! What a crash leaves, by the last that was done:
//!
//! * Some of the new area is written, or all of it and the flush, or fewer copies of the superblock
//!   than count: a start reads the checkpoint before, which lies in the other area, and the log
//!   from `P`, of which nothing is free.
//! * The superblock: it reads the new one, and the log from `S`.
//! * The ring before `S` is free, and written over: likewise. From then on the one before is of use
//!   only as long as its log is whole.
//! * Blocks are lost (10) and not dropped yet: it does not find them either, for there is no record
//!   of them that can be read.

use std::collections::HashMap;

use memkv_journal::{Kind, Living, View};

use crate::block::{KeyHash, Slot};
use crate::{DriveId, Store};

/// The slots of one run.
pub(crate) struct Duty {
    /// The last slot there was when the run began; later ones are none of its duty.
    last: u32,
    /// One bit a slot: its block is no duty, or no duty any more.
    settled: Vec<u64>,
    /// Of blocks with several records, those that were met while others were not: the generation
    /// and one bit a record.
    met: HashMap<Slot, (u64, u32)>,
}

impl Duty {
    /// Every block in the first slots is a duty.
    pub fn new(last: u32) -> Duty {
        let settled = vec![0; last as usize / 64 + 1];
        Duty { last, settled, met: HashMap::new() }
    }

    /// The block in a slot is no duty of the run.
    pub fn settle(&mut self, slot: Slot) {
        if slot.number() <= self.last {
            self.settled[slot.number() as usize / 64] |= 1 << (slot.number() % 64);
        }
    }

    /// Whether the block in a slot is none, or none any more.
    pub fn is_settled(&self, slot: Slot) -> bool {
        let number = slot.number();
        number > self.last || self.settled[number as usize / 64] & 1 << (number % 64) != 0
    }

    /// Notes that these records of a block were met; whether they are new. With the last of them
    /// the slot is settled.
    fn meet(&mut self, slot: Slot, generation: u64, these: u32, all: u32) -> bool {
        if self.is_settled(slot) {
            return false;
        }
        let before = match self.met.get(&slot) {
            Some((of, before)) if *of == generation => *before,
            _ => 0,
        };
        if before | these == all {
            self.met.remove(&slot);
            self.settle(slot);
        } else {
            self.met.insert(slot, (generation, before | these));
        }
        before & these == 0
    }
}

/// The bit of a head among those of a block's records; parts have those of their index.
const HEAD: u32 = 1 << 16;

/// The store's answers to the checkpointer of a drive.
pub(crate) struct OnDuty<'a> {
    pub store: &'a Store,
    pub drive: DriveId,
}

impl OnDuty<'_> {
    /// The flags of a record that stands and was not met before.
    fn meet(&mut self, record: &View<'_>) -> Option<u16> {
        let store = self.store;
        let slot = store.slot_of(KeyHash(record.block.hash))?;
        let blocks = store.blocks.borrow();
        let block = blocks.get(slot);
        let generation = block.generation();
        if generation != record.block.generation {
            return None;
        }
        let here = blocks.spans(slot).enumerate().filter(|(_, span)| span.drive == self.drive);
        let mut all: u32 = here.map(|(index, _)| 1 << index).sum();
        let (first, extents) = (blocks.spans(slot).next()?, blocks.spans(slot).count());
        if first.drive == self.drive {
            all |= HEAD;
        }
        let extent = |index: usize| blocks.spans(slot).nth(index).map(|span| span.range);
        let these = match record.kind {
            Kind::Put if extents == 1 && record.extent == extent(0) => all,
            Kind::Part(index) if record.extent == extent(index.into()) => 1 << index,
            Kind::Head => HEAD,
            Kind::Put | Kind::Part(_) | Kind::Remove => 0,
        };
        if these & all == 0 {
            return None;
        }
        let mut duty = store.drive(self.drive).duty.borrow_mut();
        let new = duty.as_mut()?.meet(slot, generation, these, all);
        let flags = match record.kind {
            Kind::Part(_) => 0,
            _ => blocks.record_flags(slot),
        };
        new.then_some(flags)
    }
}

impl Living for OnDuty<'_> {
    fn stands(&mut self, record: &View<'_>) -> Option<u16> {
        self.meet(record)
    }

    fn stays_in_log(&mut self, record: &View<'_>) {
        self.meet(record);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(number: u32) -> Slot {
        Slot::of(number).expect("slots count from one")
    }

    #[test]
    fn a_record_is_new_once_and_a_slot_is_settled_with_the_last_of_its_block() {
        let mut duty = Duty::new(64);
        assert!(!duty.is_settled(slot(64)) && duty.is_settled(slot(65)));
        assert!(duty.meet(slot(64), 7, 0b1, 0b1) && duty.is_settled(slot(64)));
        assert!(!duty.meet(slot(64), 7, 0b1, 0b1));
        assert!(duty.meet(slot(3), 8, 0b01, 0b11));
        assert!(!duty.meet(slot(3), 8, 0b01, 0b11) && !duty.is_settled(slot(3)));
        assert!(duty.meet(slot(3), 8, 0b10, 0b11) && duty.is_settled(slot(3)));
    }

    #[test]
    fn what_was_met_of_a_block_that_went_says_nothing_of_its_successor() {
        let mut duty = Duty::new(10);
        assert!(duty.meet(slot(3), 8, 0b01, 0b11));
        assert!(duty.meet(slot(3), 9, 0b01, 0b11), "another generation");
        duty.settle(slot(3));
        assert!(!duty.meet(slot(3), 9, 0b10, 0b11), "published during the run");
        duty.settle(slot(11));
        assert!(!duty.meet(slot(11), 1, 1, 1));
    }
}
