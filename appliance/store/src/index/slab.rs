//! All blocks, by slot.

use std::collections::HashMap;
use std::rc::Rc;

use memkv_poller::local::Event;

use super::entry::{Entry, Row, Span};
use super::pieces::Pool;
use crate::DriveId;
use crate::block::{Block, KeyHash, Slot, UNVERIFIED};

/// Rows whose memory is kept, at most.
const SPARE: usize = 256;

/// Reads of one block.
#[derive(Default)]
struct Pins {
    count: u32,
    /// Of those: reads that may last for as long as a peer likes.
    lent: u32,
    /// Told when the last one ends after the block left the index; made by the first who waits.
    unread: Option<Rc<Event>>,
}

/// All blocks with stable slots: small integers that travel in messages and in the policy's links.
#[derive(Default)]
pub struct Slab {
    entries: Pool<Entry>,
    rows: Pool<Row>,
    /// Extents of rows that are not in use any more, for rows to come.
    spare: Vec<Box<[Span]>>,
    /// Of the few blocks that are being read.
    pins: HashMap<Slot, Pins>,
}

/// The extents of one block, in the order of its payload.
pub enum Spans<'a> {
    /// One, from the entry.
    One(Option<Span>),
    /// Those of a row.
    Row(std::slice::Iter<'a, Span>),
}

impl Iterator for Spans<'_> {
    type Item = Span;

    fn next(&mut self) -> Option<Span> {
        match self {
            Self::One(span) => span.take(),
            Self::Row(spans) => spans.next().copied(),
        }
    }
}

impl Slab {
    pub(super) fn insert(&mut self, block: &Block) -> Slot {
        let row = self.row_of(block).map_or(0, |row| self.rows.insert(row));
        let number = self.entries.insert(Entry::of(block, row));
        Slot::of(number).expect("slots count from one")
    }

    /// The row of a block, if it needs one; as long a one as some that is not in use has its memory.
    fn row_of(&mut self, block: &Block) -> Option<Row> {
        let needed = Row::needed_by(block)?;
        let spare = self.spare.iter().rposition(|spans| spans.len() == needed);
        let spare = spare.map(|at| self.spare.swap_remove(at));
        let spans = block.extents.iter().map(|extent| extent.span());
        let spans = match spare {
            None => spans.collect(),
            Some(mut known) => {
                known.iter_mut().zip(spans).for_each(|(place, span)| *place = span);
                known
            }
        };
        Some(Row::new(spans, block.verified, block.flags))
    }

    /// Takes in the entry of a block that needs no row.
    pub(super) fn insert_plain(&mut self, entry: Entry) -> Slot {
        Slot::of(self.entries.insert(entry)).expect("slots count from one")
    }

    /// Takes in a block with a row of its own; `entry` makes its entry from the row's number.
    pub(super) fn insert_with(&mut self, row: Row, entry: impl FnOnce(u32) -> Entry) -> Slot {
        let row = self.rows.insert(row);
        self.insert_plain(entry(row))
    }

    /// Takes in all blocks of another slab, none of which was removed, after its own.
    pub(super) fn append(&mut self, other: Slab) {
        if self.last() == 0 {
            *self = other;
            return;
        }
        let Slab { entries, mut rows, .. } = other;
        for mut entry in entries.drain() {
            if let Some(row) = entry.row() {
                entry.set_row(self.rows.insert(rows.remove(row)));
            }
            self.entries.insert(entry);
        }
    }

    /// All blocks are on this drive, and unless `verified` none is known to be what was stored.
    pub(super) fn settle(&mut self, drive: DriveId, verified: bool) {
        for entry in self.entries.iter_mut() {
            if entry.row().is_none() {
                entry.set_drive(drive);
            }
            entry.set_verified(verified && entry.is_verified());
        }
        for row in self.rows.iter_mut() {
            row.spans.iter_mut().for_each(|span| span.drive = drive);
            row.verified = if verified { row.verified } else { 0 };
        }
    }

    pub(super) fn remove(&mut self, slot: Slot) {
        let entry = self.get(slot);
        assert!(!entry.is_pinned(), "units are freed when nobody reads them");
        if let Some(row) = entry.row() {
            let Row { spans, .. } = self.rows.remove(row);
            if self.spare.len() < SPARE {
                self.spare.push(spans);
            }
        }
        self.entries.remove(slot.number());
    }

    /// The block of a slot that has one.
    pub fn get(&self, slot: Slot) -> &Entry {
        let entry = &self.entries[slot.number()];
        assert!(entry.is_used(), "the slot holds a block");
        entry
    }

    /// The hash of a number that the table has. Nothing else of the block is looked at: that would
    /// be another question to memory.
    pub(super) fn hash_at(&self, number: u32) -> KeyHash {
        self.entries[number].hash()
    }

    pub(super) fn generation_at(&self, number: u32) -> u64 {
        self.entries[number].generation()
    }

    pub(super) fn entry(&mut self, slot: Slot) -> &mut Entry {
        let entry = &mut self.entries[slot.number()];
        assert!(entry.is_used(), "the slot holds a block");
        entry
    }

    /// The block of a slot that may have been reused since: checked by generation.
    pub fn find(&self, slot: Slot, generation: u64) -> Option<&Entry> {
        let entry = self.at(slot.number())?;
        (entry.generation() == generation).then_some(entry)
    }

    /// The highest slot's number. Slots are dense: those from 1 to here hold blocks, or did.
    pub fn last(&self) -> u32 {
        self.entries.last()
    }

    /// The block of a slot's number, if one is there.
    pub fn at(&self, number: u32) -> Option<&Entry> {
        if number == 0 || number > self.last() {
            return None;
        }
        Some(&self.entries[number]).filter(|entry| entry.is_used())
    }

    /// Blocks with slots of these numbers, in their order. All of them is many: ask for some at a
    /// time.
    pub fn iter(
        &self,
        numbers: std::ops::RangeInclusive<u32>,
    ) -> impl Iterator<Item = (Slot, &Entry)> {
        numbers.filter_map(|number| Some((Slot::of(number)?, self.at(number)?)))
    }

    /// The extents of a block.
    pub fn spans(&self, slot: Slot) -> Spans<'_> {
        let entry = self.get(slot);
        match entry.row() {
            None => Spans::One(Some(entry.span())),
            Some(row) => Spans::Row(self.rows[row].spans.iter()),
        }
    }

    /// Whether some of a block lies on a drive.
    pub fn is_on(&self, slot: Slot, drive: DriveId) -> bool {
        self.spans(slot).any(|span| span.drive == drive)
    }

    /// Units of 16 KiB that a block takes.
    pub fn units(&self, slot: Slot) -> u64 {
        self.spans(slot).map(|span| u64::from(span.range.count)).sum()
    }

    /// One bit per extent whose bytes were checked since the last unclean start, or written by us.
    pub fn verified(&self, slot: Slot) -> u16 {
        let entry = self.get(slot);
        match entry.row() {
            None => u16::from(entry.is_verified()),
            Some(row) => self.rows[row].verified,
        }
    }

    /// Whether all bytes of a block are known to be what was stored.
    pub fn is_verified(&self, slot: Slot) -> bool {
        let all = (1u32 << self.spans(slot).count()) - 1;
        u32::from(self.verified(slot)) & all == all
    }

    /// Bytes of these extents were checked.
    pub fn mark_verified(&mut self, slot: Slot, extents: u16) {
        match self.get(slot).row() {
            None if extents & 1 == 1 => self.entry(slot).set_verified(true),
            None => {}
            Some(row) => self.rows[row].verified |= extents,
        }
    }

    /// Flags of a block's record, but that of being unverified.
    pub fn flags(&self, slot: Slot) -> u16 {
        self.get(slot).row().map_or(0, |row| self.rows[row].flags)
    }

    /// The flags of a block as they go into a record.
    pub fn record_flags(&self, slot: Slot) -> u16 {
        let all = (1u32 << self.spans(slot).count()) - 1;
        let verified = !self.get(slot).is_corrupt() && u32::from(self.verified(slot)) & all == all;
        self.flags(slot) | if verified { 0 } else { UNVERIFIED }
    }

    /// The bytes of a block failed their CRC: it is a miss from now on.
    pub fn mark_corrupt(&mut self, slot: Slot) {
        self.entry(slot).set_corrupt();
    }

    /// Reads of a block under way; its units are not reused before this is zero.
    pub fn pins(&self, slot: Slot) -> u32 {
        if !self.get(slot).is_pinned() {
            return 0;
        }
        self.pins[&slot].count
    }

    /// Whether one of the reads may last for as long as a peer likes.
    pub fn is_lent(&self, slot: Slot) -> bool {
        self.get(slot).is_pinned() && self.pins[&slot].lent > 0
    }

    /// A read begins; `lent`: it may last for as long as a peer likes.
    pub fn pin(&mut self, slot: Slot, lent: bool) {
        self.entry(slot).set_pinned(true);
        let pins = self.pins.entry(slot).or_default();
        pins.count += 1;
        pins.lent += u32::from(lent);
    }

    /// A read ends, which began as the same kind. If it was the last one and somebody waits for that, he
    /// is told.
    pub fn unpin(&mut self, slot: Slot, lent: bool) {
        assert!(self.get(slot).is_pinned(), "a read ends once");
        let pins = self.pins.get_mut(&slot).expect("a pinned block is read by somebody");
        pins.count -= 1;
        pins.lent -= u32::from(lent);
        assert!(pins.lent <= pins.count, "a read ends as what it began");
        if pins.count > 0 {
            return;
        }
        let unread = self.pins.remove(&slot).and_then(|pins| pins.unread);
        self.entry(slot).set_pinned(false);
        if let Some(unread) = unread {
            unread.notify_all();
        }
    }

    /// Told when the last read of a block ends; none when nobody reads it.
    pub fn unread(&mut self, slot: Slot) -> Option<Rc<Event>> {
        let pins = self.pins.get_mut(&slot)?;
        Some(pins.unread.get_or_insert_default().clone())
    }

    /// Bytes it holds, but for blocks that are being read and the extents of rows.
    pub fn bytes(&self) -> usize {
        self.entries.bytes() + self.rows.bytes()
    }
}
