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
//!    whose frame is before `S`. All slots there are become duties in the turn that fixes `S`: only
//!    those that are settled cost memory, which is taken piece by piece as they are met. A block is
//!    published in the same turn in which its frame is let go, so a block that is not published when
//!    the run begins has its frame at `S` or later: a start finds it in the log. Publishing settles
//!    its slot: the run does not ask for it any more.
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
//!     reason: a later start would not find it. These are looked for slot by slot, from the first
//!     to the last, in many turns. What is published in between settles its slot before it is
//!     looked at, or comes into one that is behind: nobody looks there any more.
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

/// Slots to a piece of 4 KiB: small enough that a turn whose records lie all over may make one for
/// each of them.
const PIECE: u32 = 1 << 15;
/// Pieces given back in one turn.
const SHED: usize = 64;

type Piece = [u64; PIECE as usize / 64];

/// The slots of one run. It is made and given back a few pieces at a time, so that no turn is long
/// because there are many.
pub(crate) struct Duty {
    /// The last slot there was when the run began; later ones are none of its duty.
    last: u32,
    /// Up to this slot what was left of the run was looked at; none of it is a duty any more.
    passed: u32,
    /// One bit a slot: its block is no duty, or no duty any more. A piece that is not there has
    /// none.
    settled: Vec<Option<Box<Piece>>>,
    /// Of blocks with several records, those that were met while others were not: the generation
    /// and one bit a record.
    met: HashMap<Slot, (u64, u32)>,
}

impl Duty {
    /// Every block in the first slots is a duty.
    pub fn new(last: u32) -> Duty {
        let settled = (0..=last / PIECE).map(|_| None).collect();
        Duty { last, passed: 0, settled, met: HashMap::new() }
    }

    /// The block in a slot is no duty of the run.
    pub fn settle(&mut self, slot: Slot) {
        let number = slot.number();
        if number > self.passed && number <= self.last {
            let piece = &mut self.settled[(number / PIECE) as usize];
            let piece = piece.get_or_insert_with(|| Box::new([0; PIECE as usize / 64]));
            piece[(number % PIECE / 64) as usize] |= 1 << (number % 64);
        }
    }

    /// Whether the block in a slot is none, or none any more.
    pub fn is_settled(&self, slot: Slot) -> bool {
        let number = slot.number();
        let is_open = number > self.passed && number <= self.last;
        !is_open || self.word(number) & 1 << (number % 64) != 0
    }

    /// The word with a slot's bit.
    fn word(&self, number: u32) -> u64 {
        let piece = self.settled[(number / PIECE) as usize].as_deref();
        piece.map_or(0, |piece| piece[(number % PIECE / 64) as usize])
    }

    /// The next slot that is not settled, in order; each is told once and is settled then. Takes one
    /// of `looks` for each 64 slots that it looks at. None when there are no more looks, or
    /// [none is left](Duty::is_done).
    pub fn next_left(&mut self, looks: &mut u32) -> Option<Slot> {
        while *looks > 0 && !self.is_done() {
            *looks -= 1;
            let next = self.passed + 1;
            let open = !self.word(next) & u64::MAX << (next % 64);
            let found = (next & !63).saturating_add(open.trailing_zeros());
            self.pass(found.min(next | 63).min(self.last));
            if open != 0 && found <= self.last {
                return Slot::of(found);
            }
        }
        None
    }

    /// Whether all slots were told or settled.
    pub fn is_done(&self) -> bool {
        self.passed == self.last
    }

    /// Everything up to a slot is behind, and so is the memory for it but for the last piece.
    fn pass(&mut self, to: u32) {
        for piece in &mut self.settled[(self.passed / PIECE) as usize..(to / PIECE) as usize] {
            *piece = None;
        }
        self.passed = to;
    }

    /// Ends the run: nothing is a duty. Gives back some of its memory; whether that was all.
    pub fn shed(&mut self) -> bool {
        self.passed = self.last;
        let rest = self.settled.len().saturating_sub(SHED);
        self.settled.truncate(rest);
        rest == 0
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
    use std::collections::BTreeSet;

    use proptest::prelude::*;

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

    #[test]
    fn memory_is_taken_where_something_was_met_and_given_back_piece_by_piece() {
        let last = 100 * PIECE;
        let mut duty = Duty::new(last);
        let held = |duty: &Duty| duty.settled.iter().flatten().count();
        assert_eq!(held(&duty), 0);
        for number in [1, PIECE - 1, PIECE, 3 * PIECE + 7, last] {
            duty.settle(slot(number));
        }
        assert_eq!(held(&duty), 4);
        let mut looks = 1;
        duty.pass(PIECE - 2);
        assert_eq!(duty.next_left(&mut looks), None, "the last slot of the piece is settled");
        assert_eq!((held(&duty), looks), (4, 0));
        looks = 1;
        assert_eq!(duty.next_left(&mut looks), Some(slot(PIECE + 1)));
        assert_eq!((held(&duty), looks), (3, 0));
        duty.pass(last - 1);
        looks = 1;
        assert_eq!((held(&duty), duty.next_left(&mut looks)), (1, None));
        assert!(duty.is_done());

        let mut duty = Duty::new(last);
        (0..100).for_each(|piece| duty.settle(slot(piece * PIECE + 1)));
        assert!(!duty.shed() && duty.is_settled(slot(2)));
        duty.settle(slot(last));
        assert_eq!(held(&duty), 37, "the last piece was empty");
        assert!(duty.shed() && held(&duty) == 0);
    }

    /// What one step of a run does.
    #[derive(Clone, Debug)]
    enum Step {
        Settle(u32),
        Meet(u32),
        Left(u32),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            any::<u32>().prop_map(Step::Settle),
            any::<u32>().prop_map(Step::Meet),
            (1u32..400).prop_map(Step::Left),
        ];
        prop::collection::vec(step, 0..60)
    }

    proptest! {
        /// Beside a set: whatever is settled while the run goes on, and while what is left of it is
        /// told, each slot that is left is told once, in order, and no other.
        #[test]
        fn what_is_left_is_told_once_and_in_order(
            last in prop_oneof![0..300u32, PIECE - 2..PIECE + 2, 2 * PIECE..2 * PIECE + 200],
            settled in prop::collection::vec((any::<u32>(), 1..2000u32), 0..40),
            steps in steps(),
        ) {
            let mut duty = Duty::new(last);
            let mut open: BTreeSet<u32> = (1..=last).collect();
            let near = |any: u32| any % (last + 10) + 1;
            for (from, count) in settled {
                for number in near(from)..near(from) + count {
                    duty.settle(slot(number));
                    open.remove(&number);
                }
            }
            for step in steps {
                match step {
                    Step::Settle(any) => {
                        duty.settle(slot(near(any)));
                        open.remove(&near(any));
                    }
                    Step::Meet(any) => {
                        let new = duty.meet(slot(near(any)), 1, 1, 1);
                        prop_assert_eq!(new, open.remove(&near(any)));
                    }
                    Step::Left(mut looks) => match duty.next_left(&mut looks) {
                        Some(slot) => prop_assert_eq!(Some(slot.number()), open.pop_first()),
                        None => prop_assert!(looks == 0 || open.is_empty() && duty.is_done()),
                    },
                }
                for probe in (1..=last + 2).step_by(last as usize / 300 + 1) {
                    prop_assert_eq!(duty.is_settled(slot(probe)), !open.contains(&probe));
                }
            }
            let mut looks = u32::MAX;
            while let Some(slot) = duty.next_left(&mut looks) {
                prop_assert_eq!(Some(slot.number()), open.pop_first());
            }
            prop_assert!(open.is_empty() && duty.is_done());
        }
    }
}
