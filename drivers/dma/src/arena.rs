//! An arena: memory that is itself the medium, lent range by range.
//!
//! The memory block device keeps its blocks in one arena and hands out the very bytes of a block, so
//! that a value is received into its final place and sent from there. Who may touch which range when
//! is the store's business; the arena's is to notice when the store is wrong, in release builds too:
//!
//! * an exclusive lend overlaps nothing that is lent,
//! * a shared lend overlaps nothing that is lent exclusively.
//!
//! A violation panics: it means that a unit was reused while somebody still held it, and the next
//! thing to happen would be wrong bytes.
//!
//! The table is cut into stretches of 4 MiB, each with a lock and a short list of its own, so a lend
//! costs two short lists at most and reactors do not meet. A lend across a boundary is entered in each
//! stretch it touches; any two lends that overlap meet in the stretch of a byte they share.

use std::fmt;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use crate::buffer::{DmaBuf, DmaRef, Home};
use crate::mapping::{Backing, HUGE, Hugepages, MapError, Mapping, Sharing};
use crate::window::Window;

/// Bytes per stretch of the table: an extent, so that most lends touch one or two.
const STRETCH: usize = crate::MAX_BUFFER;

/// Lends of a stretch at one time that take no more memory than it has from its beginning.
const LENT: usize = 8;

/// Why there is no arena.
#[derive(Debug, thiserror::Error)]
pub enum ArenaError {
    /// No bytes, or more than an address can name.
    #[error("an arena of {size} bytes is not possible")]
    Size {
        /// Bytes asked for.
        size: u64,
    },
    /// The memory is not to be had.
    #[error("no memory for the arena")]
    Map(#[from] MapError),
}

/// A range that is lent, as its buffer remembers it.
#[derive(Debug)]
pub(crate) struct Lend {
    start: usize,
    end: usize,
    mode: Mode,
}

#[derive(Copy, Clone, PartialEq, Eq, Debug)]
enum Mode {
    Exclusive,
    Shared,
}

/// One range of the table with the number of lends that are exactly it.
#[derive(Debug)]
struct Entry {
    start: usize,
    end: usize,
    mode: Mode,
    count: u32,
}

/// A big mapping whose ranges are lent; clones are handles of one arena.
#[derive(Clone)]
pub struct Arena(Arc<Shared>);

struct Shared {
    mapping: Mapping,
    backing: Backing,
    size: usize,
    table: Box<[Mutex<Vec<Entry>>]>,
    /// The number of its window, by which those who have it know it.
    number: OnceLock<u32>,
}

impl Arena {
    /// Maps `size` bytes (zeroed) and faults them in.
    pub fn new(size: u64, hugepages: Hugepages) -> Result<Arena, ArenaError> {
        Arena::map(size, hugepages, Sharing::No)
    }

    /// The same, of memory that others can be given a [`Window`] of, where the system has such.
    pub fn shared(size: u64, hugepages: Hugepages) -> Result<Arena, ArenaError> {
        Arena::map(size, hugepages, Sharing::Prefer)
    }

    fn map(size: u64, hugepages: Hugepages, sharing: Sharing) -> Result<Arena, ArenaError> {
        let bytes = usize::try_from(size).ok().filter(|&b| b > 0);
        let rounded = bytes.and_then(|b| b.checked_next_multiple_of(HUGE));
        let (Some(bytes), Some(rounded)) = (bytes, rounded) else {
            return Err(ArenaError::Size { size });
        };
        let (mapping, backing) = Mapping::new(rounded, hugepages, sharing)?;
        let table =
            (0..bytes.div_ceil(STRETCH)).map(|_| Mutex::new(Vec::with_capacity(LENT))).collect();
        let number = OnceLock::new();
        Ok(Arena(Arc::new(Shared { mapping, backing, size: bytes, table, number })))
    }

    /// What another process needs to read this memory, if it may: its first byte is the arena's.
    pub fn window(&self) -> Option<&Window> {
        self.0.mapping.window()
    }

    /// Gives its window a number, by which [`DmaRef::published`] names places from now on. False when it
    /// has no window, or has a number.
    pub fn publish(&self, number: u32) -> bool {
        self.window().is_some() && self.0.number.set(number).is_ok()
    }

    pub(crate) fn number(&self) -> Option<u32> {
        self.0.number.get().copied()
    }

    /// Bytes in the arena.
    pub fn size(&self) -> u64 {
        self.0.size as u64
    }

    /// What the memory is made of.
    pub fn backing(&self) -> &Backing {
        &self.0.backing
    }

    /// Lends a range for writing. Panics when it is empty, outside of the arena, or lent in any way.
    pub fn lend_mut(&self, offset: u64, len: usize) -> DmaBuf {
        let (start, lend) = self.lend_as(offset, len, Mode::Exclusive);
        // SAFETY: `borrow` just entered the range as exclusive, so nobody else has or gets it until
        // the home is dropped and `give_back` removes the entry. The home holds the mapping, which was
        // zeroed when it was made.
        unsafe { DmaBuf::new(start, len, Home::Arena { arena: self.clone(), lend }) }
    }

    /// Lends a range for reading. Panics when it is empty, outside of the arena, or lent for writing.
    pub fn lend(&self, offset: u64, len: usize) -> DmaRef {
        let (start, lend) = self.lend_as(offset, len, Mode::Shared);
        // SAFETY: `borrow` just entered the range as shared, so nobody gets it for writing until the
        // home is dropped. The home holds the mapping, which was zeroed when it was made.
        unsafe { DmaRef::new(start, len, Home::Arena { arena: self.clone(), lend }) }
    }

    /// The memory in stretches of at most [`crate::REGION`] bytes, for registration with a device.
    pub fn regions(&self) -> Vec<(NonNull<u8>, usize)> {
        self.0.mapping.regions()
    }

    fn lend_as(&self, offset: u64, len: usize, mode: Mode) -> (NonNull<u8>, Lend) {
        let size = self.size();
        let end = offset.checked_add(len as u64).filter(|&end| end <= size && len > 0);
        assert!(end.is_some(), "{len} bytes at {offset} are not in an arena of {size}");
        let lend = Lend { start: offset as usize, end: offset as usize + len, mode };
        self.borrow(&lend);
        (self.0.mapping.at(lend.start), lend)
    }

    /// Enters a lend into the table, or panics and leaves the table as it was.
    fn borrow(&self, lend: &Lend) {
        for stretch in stretches(lend) {
            let mut table = self.stretch(stretch);
            if let Some(other) = table.iter().find(|e| e.clashes_with(lend)) {
                let other = (other.start, other.end, other.mode);
                drop(table);
                for entered in stretches(lend).take_while(|&s| s < stretch) {
                    leave(&mut self.stretch(entered), lend);
                }
                let (from, to, held) = other;
                let Lend { start, end, mode } = lend;
                panic!("{start}..{end} is asked for {mode:?} while {from}..{to} is lent {held:?}");
            }
            enter(&mut table, lend);
        }
    }

    /// Turns an exclusive lend into a shared one: its buffer was frozen.
    pub(crate) fn share(&self, lend: &mut Lend) {
        assert_eq!(lend.mode, Mode::Exclusive, "only an exclusive buffer is frozen");
        let shared = Lend { mode: Mode::Shared, ..*lend };
        for stretch in stretches(lend) {
            let mut table = self.stretch(stretch);
            leave(&mut table, lend);
            enter(&mut table, &shared);
        }
        *lend = shared;
    }

    /// Ends a lend: its last buffer was dropped.
    pub(crate) fn give_back(&self, lend: &Lend) {
        for stretch in stretches(lend) {
            leave(&mut self.stretch(stretch), lend);
        }
    }

    pub(crate) fn mapping(&self) -> &Mapping {
        &self.0.mapping
    }

    /// Nothing is left half done by a panic with the lock held.
    fn stretch(&self, index: usize) -> MutexGuard<'_, Vec<Entry>> {
        self.0.table[index].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Arena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shared { size, backing, .. } = &*self.0;
        f.debug_struct("Arena")
            .field("size", size)
            .field("backing", backing)
            .finish_non_exhaustive()
    }
}

impl Entry {
    fn clashes_with(&self, lend: &Lend) -> bool {
        let overlaps = self.start < lend.end && lend.start < self.end;
        overlaps && (self.mode == Mode::Exclusive || lend.mode == Mode::Exclusive)
    }

    fn is(&self, lend: &Lend) -> bool {
        (self.start, self.end, self.mode) == (lend.start, lend.end, lend.mode)
    }
}

/// The stretches of the table that a lend touches.
fn stretches(lend: &Lend) -> std::ops::RangeInclusive<usize> {
    lend.start / STRETCH..=(lend.end - 1) / STRETCH
}

fn enter(table: &mut Vec<Entry>, lend: &Lend) {
    match table.iter_mut().find(|e| e.is(lend)) {
        Some(entry) => entry.count += 1,
        None => {
            let Lend { start, end, mode } = *lend;
            table.push(Entry { start, end, mode, count: 1 });
        }
    }
}

fn leave(table: &mut Vec<Entry>, lend: &Lend) {
    let at = table.iter().position(|e| e.is(lend)).expect("what was lent is in the table");
    table[at].count -= 1;
    if table[at].count == 0 {
        table.swap_remove(at);
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use proptest::prelude::*;

    use super::*;

    fn arena(size: usize) -> Arena {
        Arena::new(size as u64, Hugepages::Never).unwrap()
    }

    fn entries(arena: &Arena) -> usize {
        arena.0.table.iter().map(|t| t.lock().unwrap().len()).sum()
    }

    #[test]
    fn what_is_written_is_read() {
        let arena = arena(2 * STRETCH);
        let at = STRETCH as u64 - 4096;
        let mut buffer = arena.lend_mut(at, 8192);
        buffer.as_mut_slice().fill(5);
        assert_eq!(buffer.region(), (0, STRETCH - 4096));
        let frozen = buffer.freeze();
        // Frozen means shared: another reader may come while the first handle lives.
        assert_eq!(arena.lend(at, 8192).as_slice(), frozen.as_slice());
        assert_eq!(arena.lend(at - 4096, 4096).as_slice(), [0; 4096]);
        drop(frozen);
        assert_eq!(entries(&arena), 0);
        assert_eq!(arena.lend_mut(at, 8192).as_slice(), [5; 8192]);
    }

    #[test]
    fn an_exclusive_lend_overlaps_nothing() {
        let arena = arena(4 * STRETCH);
        let overlap = |f: &dyn Fn()| catch_unwind(AssertUnwindSafe(f)).is_err();
        let reader = arena.lend(STRETCH as u64, 100);
        assert!(overlap(&|| drop(arena.lend_mut(0, 4 * STRETCH))));
        assert!(overlap(&|| drop(arena.lend_mut(STRETCH as u64 + 99, 1))));
        assert!(!overlap(&|| drop(arena.lend_mut(STRETCH as u64 + 100, 1))));
        drop(reader);
        let writer = arena.lend_mut(0, 4 * STRETCH);
        assert!(overlap(&|| drop(arena.lend(17, 1))));
        assert!(overlap(&|| drop(arena.lend_mut(17, 1))));
        drop(writer);
        assert_eq!(entries(&arena), 0, "a refused lend leaves nothing behind");
    }

    #[test]
    fn ranges_outside_of_the_arena_are_refused() {
        let arena = arena(10_000);
        for (offset, len) in [(0, 10_001), (10_000, 1), (u64::MAX, 1), (5, 0)] {
            let lent = catch_unwind(AssertUnwindSafe(|| drop(arena.lend(offset, len))));
            assert!(lent.is_err(), "{len} at {offset}");
        }
        assert_eq!(arena.lend_mut(0, 10_000).len(), 10_000);
        assert!(matches!(Arena::new(0, Hugepages::Never), Err(ArenaError::Size { size: 0 })));
        assert!(matches!(Arena::new(u64::MAX, Hugepages::Never), Err(ArenaError::Size { .. })));
    }

    proptest! {
        #[test]
        fn the_table_agrees_with_a_byte_map(
            steps in proptest::collection::vec((0u8..4, 0usize..48, 1usize..20), 1..80),
        ) {
            // 48 grains over 3 stretches; a model of readers (n) and writers (-1) per grain.
            const GRAIN: usize = STRETCH / 16;
            let arena = arena(3 * STRETCH);
            let mut model = [0i32; 48];
            let mut writers: Vec<(DmaBuf, std::ops::Range<usize>)> = Vec::new();
            let mut readers: Vec<(DmaRef, std::ops::Range<usize>)> = Vec::new();
            for (what, at, n) in steps {
                let range = at..(at + n).min(48);
                let (offset, len) = ((at * GRAIN) as u64, range.len() * GRAIN);
                match what {
                    0 if model[range.clone()].iter().all(|&m| m == 0) => {
                        writers.push((arena.lend_mut(offset, len), range.clone()));
                        model[range].fill(-1);
                    }
                    1 if model[range.clone()].iter().all(|&m| m >= 0) => {
                        readers.push((arena.lend(offset, len), range.clone()));
                        model[range].iter_mut().for_each(|m| *m += 1);
                    }
                    0 | 1 => {
                        let lent = catch_unwind(AssertUnwindSafe(|| match what {
                            0 => drop(arena.lend_mut(offset, len)),
                            _ => drop(arena.lend(offset, len)),
                        }));
                        prop_assert!(lent.is_err());
                    }
                    2 if !writers.is_empty() => {
                        let (buffer, range) = writers.swap_remove(at % writers.len());
                        model[range.clone()].fill(0);
                        if n % 2 == 0 {
                            model[range.clone()].fill(1);
                            readers.push((buffer.freeze(), range));
                        }
                    }
                    _ if !readers.is_empty() => {
                        let (_, range) = readers.swap_remove(at % readers.len());
                        model[range].iter_mut().for_each(|m| *m -= 1);
                    }
                    _ => {}
                }
            }
            drop((writers, readers));
            prop_assert_eq!(entries(&arena), 0);
        }
    }
}
