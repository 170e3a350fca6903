//! The two rings of a queue pair: Base Specification 2.0, sections 3.3.1 and 3.3.3.
//!
//! ```text
//!   submission   the driver writes entries at `tail` and rings; the controller takes them from its head
//!   completion   the controller writes entries, each with the phase of its lap; the driver takes those
//!                whose phase is the one it expects, and tells by its doorbell how far it has come
//! ```
//!
//! The rings lie in memory that the controller writes and reads at any time: only volatile accesses, no
//! references. An entry of the completion ring is judged by one load of its last word, which holds the
//! identifier, the status and the phase: these cannot be of different entries.

use std::cell::Cell;
use std::ptr::NonNull;

use crate::area::Area;
use crate::barrier;
use crate::command::Command;
use crate::registers::Doorbell;
use crate::status::Status;

/// Bytes of an entry.
pub(crate) const SUBMISSION_ENTRY: usize = 64;
pub(crate) const COMPLETION_ENTRY: usize = 16;

/// Bytes of a queue pair in its area: each ring begins at a page of the controller.
pub(crate) const fn pair_bytes(entries: u16) -> usize {
    completion_at(entries)
        + (COMPLETION_ENTRY * entries as usize).next_multiple_of(crate::area::ALIGNMENT)
}

/// Where in its area the completion ring of a pair lies.
pub(crate) const fn completion_at(entries: u16) -> usize {
    (SUBMISSION_ENTRY * entries as usize).next_multiple_of(crate::area::ALIGNMENT)
}

/// What a controller has said about a command.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) struct Entry {
    /// The last word, without the phase.
    last: u32,
    /// The submission queue that it says it came from.
    pub queue: u16,
}

impl Entry {
    /// The identifier that the command had.
    #[inline(always)]
    pub fn id(self) -> u16 {
        self.last as u16
    }

    pub fn status(self) -> Status {
        Status::from_field((self.last >> 17) as u16)
    }

    /// Whether it says that the command with this identifier has been done, and nothing else.
    #[inline(always)]
    pub fn is_plain_success_of(self, id: u32) -> bool {
        self.last == id
    }
}

/// A queue pair whose memory is at the start of an area that the owner keeps.
pub(crate) struct Pair {
    submissions: NonNull<u64>,
    completions: NonNull<u32>,
    entries: u16,
    /// So many entries are told of at least, unless there is a reason.
    owes_from: u16,
    /// Where the next command goes, and the ring ends, in bytes.
    tail: Cell<u32>,
    end: u32,
    /// Entries written of which the controller was not told.
    unrung: Cell<u16>,
    head: Cell<u16>,
    /// Entries taken of which the controller was not told.
    unacknowledged: Cell<u16>,
    /// Bit 16 of the last word of the entries of this lap.
    phase: Cell<u32>,
    tail_doorbell: Doorbell,
    head_doorbell: Doorbell,
}

// SAFETY: the memory of the rings belongs to no thread; this is the only value that reads and writes it
// for the host, and its owner keeps the area that it lies in.
unsafe impl Send for Pair {}

/// The phase tag in the last word of an entry.
const PHASE: u32 = 1 << 16;

impl Pair {
    /// Rings of `entries` each, in the first [`pair_bytes`] of `area`, which outlives them.
    pub fn new(area: &mut Area, entries: u16, doorbells: (Doorbell, Doorbell)) -> Pair {
        assert!(entries >= 2, "a ring with one entry is always empty");
        let submissions = area.at(0, SUBMISSION_ENTRY * usize::from(entries));
        let completions = area.at(completion_at(entries), COMPLETION_ENTRY * usize::from(entries));
        area.zero(0, SUBMISSION_ENTRY * usize::from(entries));
        Pair {
            submissions: submissions.cast(),
            completions: completions.cast(),
            entries,
            owes_from: (entries / 4).max(1),
            tail: Cell::new(0),
            end: u32::from(entries) * SUBMISSION_ENTRY as u32,
            unrung: Cell::new(0),
            head: Cell::new(0),
            unacknowledged: Cell::new(0),
            phase: Cell::new(PHASE),
            tail_doorbell: doorbells.0,
            head_doorbell: doorbells.1,
        }
    }

    /// Begins anew: the controller knows nothing of the rings, whose memory is `area`'s.
    pub fn reset(&self, area: &mut Area) {
        let len = COMPLETION_ENTRY * usize::from(self.entries);
        area.zero(completion_at(self.entries), len);
        area.zero(0, SUBMISSION_ENTRY * usize::from(self.entries));
        self.tail.set(0);
        for at in [&self.unrung, &self.head, &self.unacknowledged] {
            at.set(0);
        }
        self.phase.set(PHASE);
    }

    /// Writes a command at the tail. Who calls it has at most `entries - 1` commands outstanding, this one
    /// included: then the entry at the tail was taken by the controller long ago. It is the controller's
    /// when it is [rung](Pair::ring) for.
    #[inline(always)]
    pub fn push(&self, command: &Command) {
        let tail = self.tail.get();
        // SAFETY: `tail` is below the end of the ring, which the area holds, and a whole number of entries.
        let entry = unsafe { self.submissions.byte_add(tail as usize) };
        for (i, &word) in command.0.iter().enumerate() {
            // The words that are 0 in every command are so since the ring was made.
            if !Command::BLANK.contains(&i) {
                // SAFETY: the eight words of that entry, aligned. The controller does not read them: with
                // fewer commands outstanding than entries, it has fetched what was here (section 3.3.1.2),
                // and it fetches nothing at or behind the tail that it was told.
                unsafe { entry.add(i).write_volatile(word) };
            }
        }
        let next = tail + SUBMISSION_ENTRY as u32;
        self.tail.set(next);
        if next == self.end {
            self.wrap();
        }
        self.unrung.set(self.unrung.get() + 1);
    }

    #[cold]
    fn wrap(&self) {
        self.tail.set(0);
    }

    /// Commands written that the controller was not told of.
    pub fn unrung(&self) -> u16 {
        self.unrung.get()
    }

    /// Whether the controller was told of all commands that were written.
    #[inline(always)]
    pub fn is_rung(&self) -> bool {
        self.unrung.get() == 0
    }

    /// Tells the controller of what was written, in one go. Says how many commands that were.
    #[inline(always)]
    pub fn ring(&self) -> u16 {
        self.tail_doorbell.ring((self.tail.get() / SUBMISSION_ENTRY as u32) as u16);
        self.unrung.replace(0)
    }

    #[inline(always)]
    fn last_word(&self, head: u16) -> (NonNull<u32>, u32) {
        // SAFETY: `head` is below `entries`, so the entry lies in the ring, which the area holds.
        let entry = unsafe { self.completions.add(4 * usize::from(head)) };
        // SAFETY: the last word of that entry, aligned; it may be written meanwhile, and a volatile
        // load of an aligned word sees it before or after that, never half.
        let word = unsafe { entry.add(3).read_volatile() };
        (entry, word)
    }

    /// Whether an entry is there to be taken.
    pub fn has_next(&self) -> bool {
        self.last_word(self.head.get()).1 & PHASE == self.phase.get()
    }

    /// Takes the next entry, if the controller has written one.
    #[inline(always)]
    pub fn next(&self) -> Option<Entry> {
        self.next_at().map(|(entry, _)| entry)
    }

    /// The same, with what the command is answered with, if it is.
    pub fn next_with_result(&self) -> Option<(Entry, u32)> {
        let (entry, at) = self.next_at()?;
        // SAFETY: the first word of the entry just taken, which the controller writes again only when told
        // by the head doorbell.
        Some((entry, unsafe { at.read_volatile() }))
    }

    #[inline(always)]
    fn next_at(&self) -> Option<(Entry, NonNull<u32>)> {
        let head = self.head.get();
        let (entry, word) = self.last_word(head);
        let last = word ^ self.phase.get();
        if last & PHASE != 0 {
            return None;
        }
        barrier::after_phase();
        // SAFETY: another half word of the same entry. Its phase says that the controller has written
        // all of it (section 3.3.3.2.2), and it writes it again only when told by the head doorbell.
        let queue = unsafe { entry.cast::<u16>().add(5).read_volatile() };
        let head = head + 1;
        if head == self.entries {
            self.next_lap();
        } else {
            self.head.set(head);
        }
        self.unacknowledged.set(self.unacknowledged.get() + 1);
        // What is left of the bit is 0.
        Some((Entry { last, queue }, entry))
    }

    #[cold]
    fn next_lap(&self) {
        self.head.set(0);
        self.phase.set(self.phase.get() ^ PHASE);
    }

    /// Whether the controller is to be told soon which entries were taken. It fills a ring that has room
    /// without that, and a doorbell is a store past all caches: so it is told by the quarter of a ring.
    #[inline(always)]
    pub fn owes(&self) -> bool {
        self.unacknowledged.get() >= self.owes_from
    }

    /// Tells the controller which entries were taken, in one go.
    #[inline]
    pub fn acknowledge(&self) {
        if self.unacknowledged.replace(0) != 0 {
            self.head_doorbell.ring(self.head.get());
        }
    }
}

#[cfg(test)]
mod tests {
    use memkv_dma::Hugepages;
    use proptest::prelude::*;

    use super::*;
    use crate::registers::Registers;
    use crate::transport::Bar;

    const ENTRIES: u16 = 4;

    /// A pair whose controller is the test.
    struct Bench {
        area: Area,
        pair: Pair,
        bar: NonNull<u32>,
        _registers: Area,
    }

    fn bench() -> Bench {
        bench_of(ENTRIES)
    }

    fn bench_of(entries: u16) -> Bench {
        let arena = memkv_dma::Arena::new(1 << 20, Hugepages::Never).unwrap();
        let base = arena.regions()[0].0.as_ptr() as usize;
        let window = Window { base, len: 1 << 20, iova: 0x1000_0000 };
        let mut registers = Area::new(&arena, &window, 0, 0x2000);
        let mut area = Area::new(&arena, &window, ALIGNMENT, pair_bytes(entries));
        let bar = Bar { base: registers.at(0, 0x2000), len: 0x2000 };
        let doorbells = Registers::new(bar).unwrap().doorbells(1, 4).unwrap();
        let pair = Pair::new(&mut area, entries, doorbells);
        Bench { area, pair, bar: bar.base.cast(), _registers: registers }
    }

    use crate::area::ALIGNMENT;
    use crate::transport::Window;

    impl Bench {
        fn doorbell(&self, n: usize) -> u32 {
            // SAFETY: inside of the registers' area, which the bench holds.
            unsafe { self.bar.add((0x1000 + 4 * n) / 4).read_volatile() }
        }

        /// What a controller does to post an entry.
        fn post(&mut self, at: u16, id: u16, field: u16, phase: bool) {
            let entry =
                self.area.at(completion_at(ENTRIES) + 16 * usize::from(at), 16).cast::<u32>();
            let last = u32::from(id) | u32::from(phase) << 16 | u32::from(field) << 17;
            for (i, word) in [u32::from(id) * 3, 0, 1 << 16, last].into_iter().enumerate() {
                // SAFETY: inside of the ring.
                unsafe { entry.add(i).write_volatile(word) };
            }
        }

        fn push(&mut self, id: u16) {
            self.pair.push(&Command::flush(1).with_id(id));
        }

        fn submitted(&mut self, at: u16) -> u64 {
            let entry = self.area.at(64 * usize::from(at), 64).cast::<u64>();
            // SAFETY: inside of the ring.
            unsafe { entry.read_volatile() }
        }
    }

    #[test]
    fn doorbells_are_rung_once_for_what_was_written_together() {
        let mut bench = bench();
        for id in 0..3 {
            bench.push(id);
        }
        assert!(!bench.pair.is_rung());
        assert_eq!(bench.doorbell(2), 0, "not told yet");
        bench.pair.ring();
        assert_eq!(bench.doorbell(2), 3);
        assert_eq!(bench.submitted(2), 2 << 16 | 1 << 32);
        (0..3).for_each(|i| bench.post(i, i, 0, true));
        assert_eq!(std::iter::from_fn(|| bench.pair.next()).count(), 3);
        assert_eq!(bench.doorbell(3), 0);
        bench.pair.acknowledge();
        assert_eq!(bench.doorbell(3), 3);
    }

    #[test]
    fn a_controller_is_told_of_answers_before_its_ring_is_full() {
        for (entries, from) in [(2, 1), (4, 1), (7, 1), (8, 2), (128, 32)] {
            let mut bench = bench_of(entries);
            for taken in 0..from {
                assert!(!bench.pair.owes(), "{taken} of {entries}");
                let at = completion_at(entries) + COMPLETION_ENTRY * usize::from(taken);
                let entry = bench.area.at(at, COMPLETION_ENTRY).cast::<u32>();
                // SAFETY: the last word of an entry of the ring.
                unsafe { entry.add(3).write_volatile(PHASE) };
                assert!(bench.pair.next().is_some());
            }
            assert!(bench.pair.owes(), "{from} of {entries}");
            bench.pair.acknowledge();
            assert!(!bench.pair.owes());
            assert_eq!(bench.doorbell(3), u32::from(from % entries));
        }
    }

    #[test]
    fn an_entry_of_the_wrong_phase_is_none() {
        let mut bench = bench();
        bench.post(0, 9, 0, false);
        assert!(!bench.pair.has_next() && bench.pair.next().is_none());
        bench.post(0, 9, 0x281, true);
        let (entry, result) = bench.pair.next_with_result().unwrap();
        assert_eq!((entry.id(), entry.queue, result), (9, 1, 27));
        assert_eq!(entry.status(), Status::UNRECOVERED_READ_ERROR);
        let Bench { pair, mut area, .. } = bench;
        pair.reset(&mut area);
        assert!(!pair.has_next(), "what an earlier life left is not seen");
    }

    proptest! {
        /// Any number of laps, in any crowds: each entry is seen once, in order, with its own status.
        #[test]
        fn every_entry_is_seen_once(
            crowds in proptest::collection::vec((1u16..4, any::<u16>()), 1..60),
        ) {
            let mut bench = bench();
            let (mut at, mut phase, mut id) = (0, true, 0);
            for (count, field) in crowds {
                let field = field & 0x7fff;
                for n in 0..count {
                    bench.push(id + n);
                    bench.post(at, id + n, field ^ n, phase);
                    at += 1;
                    if at == ENTRIES {
                        (at, phase) = (0, !phase);
                    }
                }
                bench.pair.ring();
                for n in 0..count {
                    let entry = bench.pair.next().expect("it was posted");
                    prop_assert_eq!(entry.id(), id + n);
                    prop_assert_eq!(entry.status(), Status::from_field(field ^ n));
                }
                prop_assert!(bench.pair.next().is_none());
                bench.pair.acknowledge();
                prop_assert_eq!(bench.doorbell(3), u32::from(at));
                prop_assert_eq!(bench.doorbell(2), u32::from(at));
                id += count;
            }
        }
    }
}
