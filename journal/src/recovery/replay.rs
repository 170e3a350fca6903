//! Applying records until only what lives is left.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use crate::allocator::{Allocator, MarkError};
use crate::ids::{BlockId, UnitRange};
use crate::record::{KeyLen, KeyPart, Kind, Record, Usage};

/// Generations of one piece.
const PIECE: u64 = 16;

/// Spreads the numbers of pieces, always alike: two runs over the same drive use the same table.
#[derive(Default)]
struct Spread(u64);

impl Hasher for Spread {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("a piece is a u64");
    }

    fn write_u64(&mut self, value: u64) {
        let spread = value.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        self.0 = spread ^ spread >> 32;
    }
}

/// The slot of the last record of each generation, counted from 1; 0 for none. A generation names
/// one value, and a log has them nearly in their order: those that lie together are a piece, and
/// what is asked next is mostly in the piece that was asked last.
#[derive(Default)]
struct Generations {
    pieces: Vec<[u32; PIECE as usize]>,
    places: HashMap<u64, u32, BuildHasherDefault<Spread>>,
    /// The piece that was asked last, and its place.
    last: Option<(u64, u32)>,
}

impl Generations {
    fn slot(&mut self, generation: u64) -> &mut u32 {
        let piece = generation / PIECE;
        let place = match self.last {
            Some((last, place)) if last == piece => place,
            _ => {
                let new = self.pieces.len() as u32;
                let place = *self.places.entry(piece).or_insert(new);
                if place == new {
                    self.pieces.push([0; PIECE as usize]);
                }
                self.last = Some((piece, place));
                place
            }
        };
        &mut self.pieces[place as usize][(generation % PIECE) as usize]
    }

    /// The slot of a generation that may not be in it.
    fn find(&mut self, generation: u64) -> u32 {
        let piece = generation / PIECE;
        let place = match self.last {
            Some((last, place)) if last == piece => place,
            _ => match self.places.get(&piece) {
                Some(&place) => place,
                None => return 0,
            },
        };
        self.last = Some((piece, place));
        self.pieces[place as usize][(generation % PIECE) as usize]
    }
}

/// Takes in what lives on a drive, one by one: a checkpoint's records in their order, then those of
/// the log in theirs. There may be millions, so whoever opens a journal says what is kept of them.
pub trait Gather<K = KeyLen>: Default {
    /// Takes a Put, a Head or a Part.
    fn take(&mut self, record: Record<K>);
}

impl<K> Gather<K> for Vec<Record<K>> {
    fn take(&mut self, record: Record<K>) {
        self.push(record);
    }
}

/// Slots of one piece: less than what has a mapping of its own, so that the memory of a piece that
/// is done with is there for what is made of it.
const SLOTS: usize = 1024;

/// The records of the log, numbered from 1.
struct Slots<K> {
    pieces: Vec<Vec<Slot<K>>>,
}

impl<K> Slots<K> {
    /// Adds one, and answers its number.
    fn push(&mut self, slot: Slot<K>) -> u32 {
        if self.pieces.last().is_none_or(|last| last.len() == SLOTS) {
            self.pieces.push(Vec::with_capacity(SLOTS));
        }
        let before = (self.pieces.len() - 1) * SLOTS;
        let last = self.pieces.last_mut().expect("just seen to");
        last.push(slot);
        u32::try_from(before + last.len()).expect("a log has fewer than 2^32 records")
    }

    fn get(&self, number: u32) -> &Slot<K> {
        let at = number as usize - 1;
        &self.pieces[at / SLOTS][at % SLOTS]
    }

    fn get_mut(&mut self, number: u32) -> &mut Slot<K> {
        let at = number as usize - 1;
        &mut self.pieces[at / SLOTS][at % SLOTS]
    }
}

/// A record of the log: 64 bytes, but for Heads, which are few.
struct Slot<K> {
    said: Said<K>,
    /// The slot of another one whose block has the same generation, counted from 1; 0 for none.
    next: u32,
    /// It stands: no later one has outdated it or names its units.
    lives: bool,
}

const _: () = assert!(size_of::<Slot<KeyLen>>() == 64);

/// What a record says, in little space: a log may have millions.
enum Said<K> {
    Put {
        hash: [u64; 2],
        generation: u64,
        expires: u64,
        start: u32,
        length: u32,
        crc: u32,
        count: u16,
        flags: u16,
        key: K,
    },
    Part {
        hash: [u64; 2],
        generation: u64,
        start: u32,
        length: u32,
        crc: u32,
        count: u16,
        index: u16,
    },
    Head(Box<Record<K>>),
    Remove {
        hash: [u64; 2],
        generation: u64,
    },
}

fn halves(hash: u128) -> [u64; 2] {
    [hash as u64, (hash >> 64) as u64]
}

fn whole([low, high]: [u64; 2]) -> u128 {
    u128::from(high) << 64 | u128::from(low)
}

impl<K: KeyPart> Said<K> {
    fn by(record: Record<K>) -> Said<K> {
        let BlockId { hash, generation } = record.block();
        let hash = halves(hash);
        match record {
            Record::Put { key, extent, length, crc, expires, flags, .. } => {
                let UnitRange { start, count } = extent;
                Said::Put { hash, generation, expires, start, length, crc, count, flags, key }
            }
            Record::Part { index, extent, length, crc, .. } => {
                let UnitRange { start, count } = extent;
                Said::Part { hash, generation, start, length, crc, count, index }
            }
            Record::Remove { .. } => Said::Remove { hash, generation },
            head @ Record::Head { .. } => Said::Head(Box::new(head)),
        }
    }

    fn record(self) -> Record<K> {
        let block = self.about().0;
        match self {
            Said::Put { expires, start, length, crc, count, flags, key, .. } => {
                let extent = UnitRange { start, count };
                Record::Put { block, key, extent, length, crc, expires, flags }
            }
            Said::Part { start, length, crc, count, index, .. } => {
                let extent = UnitRange { start, count };
                Record::Part { block, index, extent, length, crc }
            }
            Said::Head(record) => *record,
            Said::Remove { .. } => Record::Remove { block },
        }
    }

    /// Of which block it says what.
    fn about(&self) -> (BlockId, Kind) {
        let (hash, generation, kind) = match *self {
            Said::Put { hash, generation, .. } => (hash, generation, Kind::Put),
            Said::Part { hash, generation, index, .. } => (hash, generation, Kind::Part(index)),
            Said::Remove { hash, generation } => (hash, generation, Kind::Remove),
            Said::Head(ref record) => return about(record),
        };
        (BlockId { hash: whole(hash), generation }, kind)
    }

    fn extent(&self) -> Option<UnitRange> {
        match *self {
            Said::Put { start, count, .. } | Said::Part { start, count, .. } => {
                Some(UnitRange { start, count })
            }
            Said::Head(_) | Said::Remove { .. } => None,
        }
    }
}

/// Of which block a record says what.
fn about<K>(record: &Record<K>) -> (BlockId, Kind) {
    match *record {
        Record::Put { block, .. } => (block, Kind::Put),
        Record::Part { block, index, .. } => (block, Kind::Part(index)),
        Record::Head { block, .. } => (block, Kind::Head),
        Record::Remove { block } => (block, Kind::Remove),
    }
}

/// First half: the log. Records come in the order they were appended.
pub(crate) struct Replay<K> {
    slots: Slots<K>,
    /// The slot of a record, and from there on all that outdate a record of the checkpoint: the
    /// Remove among them, and those that only a conflict took.
    generations: Generations,
    units: u32,
}

/// Second half: the checkpoint's records, which the log may have outdated.
pub(crate) struct Merge<K, L> {
    log: Replay<K>,
    live: L,
    taken: Allocator,
    conflicts: u64,
    out_of_range: u64,
    sums: Sums,
}

/// What is summed up of what lives.
#[derive(Clone, Copy, Default)]
pub(crate) struct Sums {
    pub(crate) usage: Usage,
    /// The highest generation.
    pub(crate) generation_high: u64,
}

impl Sums {
    fn add<K: KeyPart>(&mut self, record: &Record<K>) {
        self.usage += record.usage();
        self.generation_high = self.generation_high.max(record.block().generation);
    }
}

/// Whether a record takes the place of an earlier one: it says the same of the same block, or that
/// the block is gone.
fn outdates(later: (BlockId, Kind), earlier: (BlockId, Kind)) -> bool {
    later.0 == earlier.0 && (later.1 == Kind::Remove || later.1 == earlier.1)
}

impl<K: KeyPart> Replay<K> {
    pub(crate) fn new(units: u32) -> Replay<K> {
        Replay { slots: Slots { pieces: Vec::new() }, generations: Generations::default(), units }
    }

    pub(crate) fn apply(&mut self, record: Record<K>) {
        let last = self.generations.slot(record.block().generation);
        let (mut at, mut others) = (*last, 0);
        while at != 0 {
            let slot = self.slots.get_mut(at);
            let (place, next) = (at, slot.next);
            if outdates(about(&record), slot.said.about()) {
                slot.lives = false;
            } else {
                slot.next = others;
                others = place;
            }
            at = next;
        }
        *last = self.slots.push(Slot { said: Said::by(record), next: others, lives: true });
    }

    /// The log is at its end: of records that name the same units, the later ones stand.
    pub(crate) fn log_done<L: Gather<K>>(mut self) -> Merge<K, L> {
        let mut taken = Allocator::new(self.units);
        let (mut conflicts, mut out_of_range) = (0, 0);
        let slots = self.slots.pieces.iter_mut().flatten();
        for slot in slots.rev().filter(|slot| slot.lives) {
            match slot.said.extent().map_or(Ok(()), |extent| taken.mark(extent)) {
                Ok(()) => {}
                Err(MarkError::Taken { .. }) => {
                    conflicts += 1;
                    slot.lives = false;
                }
                Err(MarkError::OutOfRange { .. }) => {
                    out_of_range += 1;
                    slot.lives = false;
                }
            }
        }
        Merge {
            log: self,
            live: L::default(),
            taken,
            conflicts,
            out_of_range,
            sums: Sums::default(),
        }
    }
}

impl<K: KeyPart, L: Gather<K>> Merge<K, L> {
    /// Takes one record of the checkpoint.
    pub(crate) fn base(&mut self, record: Record<K>) {
        let mut at = self.log.generations.find(record.block().generation);
        while at != 0 {
            // What a conflict took still outdates what was there before.
            let later = self.log.slots.get(at);
            if outdates(later.said.about(), about(&record)) {
                return;
            }
            at = later.next;
        }
        if let Some(extent) = record.extent() {
            match self.taken.mark(extent) {
                Ok(()) => {}
                Err(MarkError::Taken { .. }) => {
                    self.conflicts += 1;
                    return;
                }
                Err(MarkError::OutOfRange { .. }) => {
                    self.out_of_range += 1;
                    return;
                }
            }
        }
        self.sums.add(&record);
        self.live.take(record);
    }

    pub(crate) fn conflicts(&self) -> u64 {
        self.conflicts
    }

    pub(crate) fn out_of_range(&self) -> u64 {
        self.out_of_range
    }

    /// What lives, its sums, and its units: the log's records follow those of the checkpoint.
    pub(crate) fn live(self) -> (L, Sums, Allocator) {
        let Merge { mut live, mut sums, .. } = self;
        // Piece by piece, so that the log and what is made of it never are there both.
        for slot in self.log.slots.pieces.into_iter().flatten() {
            if slot.lives && !matches!(slot.said, Said::Remove { .. }) {
                let record = slot.said.record();
                sums.add(&record);
                live.take(record);
            }
        }
        (live, sums, self.taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{BlockId, KeyBytes, UnitRange};
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn id(hash: u8) -> BlockId {
        BlockId { hash: u128::from(hash), generation: 1 }
    }

    fn put(hash: u8, start: u32, crc: u32) -> Record {
        Record::Put {
            block: id(hash),
            key: KeyBytes::new("", "", &[hash]).unwrap(),
            extent: UnitRange { start, count: 1 },
            length: 1,
            crc,
            expires: 0,
            flags: 0,
        }
    }

    fn part(hash: u8, index: u16, start: u32) -> Record {
        let extent = UnitRange { start, count: 1 };
        Record::Part { block: id(hash), index, extent, length: 1, crc: 0 }
    }

    fn recover(base: &[Record], log: &[Record]) -> Merge<KeyBytes, Vec<Record>> {
        let mut replay = Replay::new(1000);
        log.iter().cloned().for_each(|record| replay.apply(record));
        let mut merge = replay.log_done();
        base.iter().cloned().for_each(|record| merge.base(record));
        merge
    }

    #[test]
    fn a_remove_takes_all_parts_and_a_later_record_brings_the_block_back() {
        let remove = Record::Remove { block: id(1) };
        let base = [part(1, 0, 0), part(2, 0, 9)];
        let log = [part(1, 1, 1), remove, part(1, 2, 2)];
        assert_eq!(recover(&base, &log).live().0, [part(2, 0, 9), part(1, 2, 2)]);
    }

    #[test]
    fn replaying_what_the_snapshot_knew_changes_nothing() {
        let base = [put(1, 0, 7), part(2, 0, 1), part(2, 1, 2)];
        let log = [put(1, 0, 7), part(2, 1, 2)];
        let mut live = recover(&base, &log).live().0;
        live.sort_by_key(|record| record.extent().map(|extent| extent.start));
        assert_eq!(live, base);
    }

    #[test]
    fn of_two_records_with_the_same_unit_the_later_stands() {
        let merge =
            recover(&[put(1, 5, 0), put(2, 6, 0)], &[put(3, 6, 0), put(4, 8, 0), put(5, 8, 0)]);
        assert_eq!(merge.conflicts(), 2);
        assert_eq!(merge.live().0, [put(1, 5, 0), put(3, 6, 0), put(5, 8, 0)]);
        let merge = recover(&[put(1, 1000, 0)], &[put(2, 4000, 0)]);
        assert_eq!((merge.out_of_range(), merge.live().0), (2, vec![]));
    }

    proptest! {
        /// Splitting a history anywhere into checkpoint and log, with any overlap between them,
        /// gives what applying all of it in order gives.
        #[test]
        fn any_split_into_checkpoint_and_log_gives_the_same(
            steps in prop::collection::vec((0u8..6, any::<bool>()), 0..60),
            start in any::<prop::sample::Index>(),
            snapshot in any::<prop::sample::Index>(),
        ) {
            let history: Vec<Record> = steps.iter().enumerate().map(|(at, (hash, is_put))| {
                if *is_put {
                    put(*hash, u32::from(*hash), at as u32)
                } else {
                    Record::Remove { block: id(*hash) }
                }
            }).collect();
            let state = |upto: usize| {
                let mut state = BTreeMap::new();
                for record in &history[..upto] {
                    match record {
                        Record::Remove { block } => { state.remove(block); }
                        record => { state.insert(record.block(), record.clone()); }
                    }
                }
                state
            };
            let start = start.index(history.len() + 1);
            let snapshot = start + snapshot.index(history.len() + 1 - start);
            let base: Vec<Record> = state(snapshot).into_values().collect();
            let mut live = recover(&base, &history[start..]).live().0;
            live.sort_by_key(Record::block);
            prop_assert_eq!(live, state(history.len()).into_values().collect::<Vec<_>>());
        }
    }
}
