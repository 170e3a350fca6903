//! Which units of a drive are free.
//!
//! One bit a unit, set when the unit is taken, in words of 64. Above them stand two kinds of
//! summary, so that a nearly full drive is searched as fast as an empty one:
//!
//! ```text
//! region (4096 units, 64 words):  free_words   one bit a word: the word has a free unit
//!                                 longest      no free run of the region is longer than this
//! whole drive:                    free_regions one bit a region: longest is not 0
//! ```
//!
//! `longest` is an upper bound: taking units leaves it, a search of the whole region that finds
//! nothing lowers it to what it saw, giving units back raises it to the run they join. So a run too
//! long for every region is refused after one look at the bounds. A run never crosses regions (16
//! of the largest extents fill one exactly). The search is next-fit: it goes on where the last one
//! ended.
//!
//! Nothing of this is on the drive: recovery marks what the live records name.

use thiserror::Error;

use crate::ids::{EXTENT_UNITS, UnitRange};

const WORD: u32 = 64;
const WORDS_A_REGION: usize = 64;
const REGION: u32 = WORD * WORDS_A_REGION as u32;

/// Why units cannot be marked as taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum MarkError {
    /// The range has no unit, or ends beyond the drive.
    #[error("units {}..{} are not on a drive of {units} units", range.start, range.end())]
    OutOfRange {
        /// The range.
        range: UnitRange,
        /// Units of the drive.
        units: u32,
    },
    /// A unit of the range is taken already.
    #[error("units {}..{} are taken already, at least in part", range.start, range.end())]
    Taken {
        /// The range.
        range: UnitRange,
    },
}

/// The free units of one drive.
#[derive(Debug)]
pub struct Allocator {
    units: u32,
    free: u32,
    words: Vec<u64>,
    free_words: Vec<u64>,
    longest: Vec<u16>,
    free_regions: Vec<u64>,
    cursor: u32,
}

impl Allocator {
    /// All of `units` free.
    pub fn new(units: u32) -> Allocator {
        let regions = units.div_ceil(REGION) as usize;
        let mut allocator = Allocator {
            units,
            free: units,
            // Units beyond the end are taken for ever.
            words: vec![u64::MAX; regions * WORDS_A_REGION],
            free_words: vec![0; regions],
            longest: vec![0; regions],
            free_regions: vec![0; regions.div_ceil(WORD as usize)],
            cursor: 0,
        };
        for region in 0..regions {
            let first = region as u32 * REGION;
            let len = REGION.min(units - first);
            allocator.set_free(first, len);
            allocator.raise_longest(region, len);
        }
        allocator
    }

    /// Units of the drive.
    pub fn total_units(&self) -> u32 {
        self.units
    }

    /// Units that are free.
    pub fn free_units(&self) -> u32 {
        self.free
    }

    /// Takes `count` contiguous units, or says that no run is that long.
    ///
    /// # Panics
    /// When `count` is 0 or more than [`EXTENT_UNITS`].
    pub fn allocate(&mut self, count: u16) -> Option<UnitRange> {
        assert!((1..=EXTENT_UNITS).contains(&count), "an extent has 1 to 256 units, not {count}");
        if u32::from(count) > self.free {
            return None;
        }
        let start = self.find(u32::from(count))?;
        let range = UnitRange { start, count };
        self.take(range);
        self.cursor = if range.end() < u64::from(self.units) { range.end() as u32 } else { 0 };
        Some(range)
    }

    /// Marks units that a record of the drive names. Recovery only.
    pub fn mark(&mut self, range: UnitRange) -> Result<(), MarkError> {
        if range.count == 0 || range.end() > u64::from(self.units) {
            return Err(MarkError::OutOfRange { range, units: self.units });
        }
        if !self.all(range, 0) {
            return Err(MarkError::Taken { range });
        }
        self.take(range);
        Ok(())
    }

    /// Gives units back.
    ///
    /// # Panics
    /// When a unit of the range is not taken: something was freed twice, and what is allocated next
    /// would be written over.
    pub fn release(&mut self, range: UnitRange) {
        assert!(range.count > 0 && range.end() <= u64::from(self.units), "{range:?} is not here");
        assert!(self.all(range, u64::MAX), "{range:?} is freed twice, at least in part");
        let mut at = u64::from(range.start);
        while at < range.end() {
            let start = at as u32;
            let region = (start / REGION) as usize;
            let len = (range.end().min((region as u64 + 1) * u64::from(REGION)) - at) as u32;
            self.set_free(start, len);
            let run = self.run_around(start, len);
            self.raise_longest(region, run);
            at += u64::from(len);
        }
        self.free += u32::from(range.count);
    }

    /// Takes free units out of reach for a while; [`Allocator::release`] brings them back.
    ///
    /// # Panics
    /// When a unit of the range is not free: somebody has it.
    pub fn withhold(&mut self, range: UnitRange) {
        assert!(range.count > 0 && range.end() <= u64::from(self.units), "{range:?} is not here");
        assert!(self.all(range, 0), "{range:?} is taken, at least in part");
        self.take(range);
    }

    /// First unit of a free run of `count`, searched from the cursor and round.
    fn find(&mut self, count: u32) -> Option<u32> {
        let first = (self.cursor / REGION) as usize;
        if u32::from(self.longest[first]) >= count
            && let Found::At(start) = self.search(first, self.cursor % REGION, count)
        {
            return Some(start);
        }
        let regions = self.longest.len();
        let mut region = first + 1;
        for lap in 0..2 {
            let end = if lap == 0 { regions } else { first + 1 };
            while let Some(candidate) = self.next_free_region(region, end) {
                region = candidate + 1;
                if u32::from(self.longest[candidate]) < count {
                    continue;
                }
                match self.search(candidate, 0, count) {
                    Found::At(start) => return Some(start),
                    Found::Longest(longest) => self.lower_longest(candidate, longest),
                }
            }
            region = 0;
        }
        None
    }

    /// The next region of `from..end` that has a free unit.
    fn next_free_region(&self, from: usize, end: usize) -> Option<usize> {
        let mut at = from;
        while at < end {
            let rest = self.free_regions[at / 64] >> (at % 64);
            if rest != 0 {
                let found = at + rest.trailing_zeros() as usize;
                return (found < end).then_some(found);
            }
            at = (at / 64 + 1) * 64;
        }
        None
    }

    /// Looks for `count` free units in `region`, from its unit `skip` on.
    fn search(&self, region: usize, skip: u32, count: u32) -> Found {
        let base = region * WORDS_A_REGION;
        let free_words = self.free_words[region];
        let (mut run, mut longest) = (0u32, 0u32);
        let mut index = (skip / WORD) as usize;
        // Units before `skip` count as taken.
        let mut hidden = (1u64 << (skip % WORD)) - 1;
        while index < WORDS_A_REGION {
            if free_words >> index & 1 == 0 {
                run = 0;
                let rest = free_words >> index;
                if rest == 0 {
                    break;
                }
                index += rest.trailing_zeros() as usize;
                hidden = 0;
                continue;
            }
            let word = self.words[base + index] | hidden;
            hidden = 0;
            let mut bit = 0;
            while bit < WORD {
                let rest = word >> bit;
                let free = if rest == 0 { WORD - bit } else { rest.trailing_zeros() };
                run += free;
                bit += free;
                if run >= count {
                    let end = (base + index) as u32 * WORD + bit;
                    return Found::At(end - run);
                }
                longest = longest.max(run);
                if bit < WORD {
                    run = 0;
                    bit += (word >> bit).trailing_ones();
                }
            }
            index += 1;
        }
        Found::Longest(longest)
    }

    /// Length of the free run that holds `start .. start + len`, within its region.
    fn run_around(&self, start: u32, len: u32) -> u32 {
        let region_start = start / REGION * REGION;
        let region_end =
            (region_start as u64 + u64::from(REGION)).min(u64::from(self.units)) as u32;
        let mut first = start;
        while first > region_start {
            let word = self.words[((first - 1) / WORD) as usize];
            let below = first - (first - 1) / WORD * WORD;
            let free = (word << (WORD - below)).leading_zeros().min(below);
            first -= free;
            if free < below {
                break;
            }
        }
        let mut end = start + len;
        while end < region_end {
            let bit = end % WORD;
            let rest = self.words[(end / WORD) as usize] >> bit;
            let free = rest.trailing_zeros().min(WORD - bit);
            end += free;
            if free < WORD - bit {
                break;
            }
        }
        end - first
    }

    /// Whether every unit of the range is taken (`u64::MAX`) or free (0).
    fn all(&self, range: UnitRange, state: u64) -> bool {
        pieces(u64::from(range.start), range.end())
            .all(|(word, mask)| self.words[word] & mask == state & mask)
    }

    fn take(&mut self, range: UnitRange) {
        for (word, mask) in pieces(u64::from(range.start), range.end()) {
            self.words[word] |= mask;
            if self.words[word] == u64::MAX {
                let region = word / WORDS_A_REGION;
                self.free_words[region] &= !(1 << (word % WORDS_A_REGION));
                if self.free_words[region] == 0 {
                    self.lower_longest(region, 0);
                }
            }
        }
        self.free -= u32::from(range.count);
    }

    fn set_free(&mut self, start: u32, len: u32) {
        for (word, mask) in pieces(u64::from(start), u64::from(start) + u64::from(len)) {
            self.words[word] &= !mask;
            self.free_words[word / WORDS_A_REGION] |= 1 << (word % WORDS_A_REGION);
        }
    }

    fn raise_longest(&mut self, region: usize, run: u32) {
        let run = run as u16;
        self.longest[region] = self.longest[region].max(run);
        self.free_regions[region / 64] |= 1 << (region % 64);
    }

    fn lower_longest(&mut self, region: usize, longest: u32) {
        self.longest[region] = longest as u16;
        if longest == 0 {
            self.free_regions[region / 64] &= !(1 << (region % 64));
        }
    }
}

enum Found {
    At(u32),
    Longest(u32),
}

/// The words that units `start..end` lie in, each with the mask of those units.
fn pieces(start: u64, end: u64) -> impl Iterator<Item = (usize, u64)> {
    let mut at = start;
    std::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let (word, bit) = (at / 64, at % 64);
        let len = (64 - bit).min(end - at);
        at += len;
        let mask = if len == 64 { u64::MAX } else { ((1 << len) - 1) << bit };
        Some((word as usize, mask))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The plainest allocator there is: a list of flags.
    struct Model(Vec<bool>);

    impl Model {
        fn has_run(&self, count: usize) -> bool {
            self.0.chunks(REGION as usize).any(|region| {
                let mut run = 0;
                region.iter().any(|taken| {
                    run = if *taken { 0 } else { run + 1 };
                    run >= count
                })
            })
        }

        fn set(&mut self, range: UnitRange, taken: bool) -> bool {
            let units = &mut self.0[range.start as usize..range.end() as usize];
            let was = units.iter().all(|unit| *unit != taken);
            units.fill(taken);
            was
        }
    }

    #[test]
    fn a_run_ends_with_its_region() {
        const EXTENT: u32 = 256;
        let mut allocator = Allocator::new(2 * REGION);
        while allocator.allocate(EXTENT as u16).is_some() {}
        assert_eq!(allocator.longest, [0, 0], "looked for and found to be nothing");
        assert_eq!(allocator.free_regions, [0], "nobody looks into them again");
        let mut release = |start| {
            allocator.release(UnitRange { start, count: EXTENT as u16 });
            allocator.longest.iter().map(|longest| u32::from(*longest)).collect::<Vec<_>>()
        };
        assert_eq!(release(REGION), [0, EXTENT]);
        assert_eq!(release(REGION - EXTENT), [EXTENT, EXTENT], "not joined across the border");
        assert_eq!(release(2 * REGION - EXTENT), [EXTENT, EXTENT], "at the end of the drive");
        assert_eq!(release(REGION + EXTENT), [EXTENT, 2 * EXTENT]);
        assert_eq!(release(REGION - 2 * EXTENT), [2 * EXTENT, 2 * EXTENT]);
    }

    fn check(allocator: &Allocator, model: &Model) {
        let free = model.0.iter().filter(|taken| !**taken).count();
        assert_eq!(allocator.free_units() as usize, free);
        for (region, units) in model.0.chunks(REGION as usize).enumerate() {
            let longest = units.split(|taken| *taken).map(<[bool]>::len).max().unwrap_or(0);
            assert!(usize::from(allocator.longest[region]) >= longest, "the bound is a bound");
            let flagged = allocator.free_regions[region / 64] >> (region % 64) & 1 == 1;
            assert_eq!(flagged, allocator.longest[region] != 0, "region {region}");
        }
        for (unit, taken) in model.0.iter().enumerate() {
            let bit = allocator.words[unit / 64] >> (unit % 64) & 1 == 1;
            assert_eq!(bit, *taken, "unit {unit}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(96))]

        #[test]
        fn it_does_what_a_list_of_flags_does(
            units in 1u32..13_000,
            steps in prop::collection::vec(
                (0u8..10, 1u16..=256, any::<prop::sample::Index>()), 1..250,
            ),
        ) {
            let mut allocator = Allocator::new(units);
            let mut model = Model(vec![false; units as usize]);
            let mut held: Vec<UnitRange> = Vec::new();
            for (what, count, pick) in steps {
                match what {
                    0..6 => match allocator.allocate(count) {
                        Some(range) => {
                            prop_assert_eq!(range.count, count);
                            prop_assert!(model.set(range, true), "taken units were given out");
                            held.push(range);
                        }
                        None => prop_assert!(!model.has_run(usize::from(count))),
                    },
                    6..9 if !held.is_empty() => {
                        let range = held.swap_remove(pick.index(held.len()));
                        prop_assert!(model.set(range, false));
                        allocator.release(range);
                    }
                    _ => {
                        let start = pick.index(units as usize) as u32;
                        let range = UnitRange { start, count };
                        let inside = range.end() <= u64::from(units);
                        let mut units = model.0.iter().skip(start as usize);
                        let free = inside && units.by_ref().take(count.into()).all(|taken| !taken);
                        prop_assert_eq!(allocator.mark(range).is_ok(), free);
                        if free {
                            model.set(range, true);
                            held.push(range);
                        }
                    }
                }
            }
            check(&allocator, &model);
        }
    }

    #[test]
    fn a_drive_is_filled_to_the_last_unit_and_emptied_again() {
        let mut allocator = Allocator::new(10_000);
        let mut held: Vec<UnitRange> = std::iter::from_fn(|| allocator.allocate(1)).collect();
        assert_eq!((held.len(), allocator.free_units()), (10_000, 0));
        held.retain(|range| range.start % 2 == 0);
        for start in (1..10_000).step_by(2) {
            allocator.release(UnitRange { start, count: 1 });
        }
        assert_eq!(allocator.allocate(2), None, "every second unit is no run of two");
        for range in held {
            allocator.release(range);
        }
        assert_eq!(allocator.free_units(), 10_000);
        assert_eq!(allocator.allocate(256).map(|range| range.count), Some(256));
    }

    #[test]
    fn sixteen_extents_fill_a_region() {
        let mut allocator = Allocator::new(2 * REGION);
        for _ in 0..32 {
            assert!(allocator.allocate(256).is_some());
        }
        assert_eq!((allocator.free_units(), allocator.allocate(1)), (0, None));
    }

    #[test]
    fn the_next_search_goes_on_where_the_last_ended() {
        let mut allocator = Allocator::new(1000);
        let first = allocator.allocate(10).unwrap();
        allocator.release(first);
        assert_eq!(allocator.allocate(10).map(|range| range.start), Some(10));
    }

    #[test]
    fn a_hopeless_search_looks_only_at_the_bounds_the_second_time() {
        let mut allocator = Allocator::new(1 << 20);
        while allocator.allocate(1).is_some() {}
        for start in (0..1 << 20).step_by(2) {
            allocator.release(UnitRange { start, count: 1 });
        }
        assert_eq!(allocator.allocate(200), None);
        assert!(allocator.longest.iter().all(|longest| *longest == 1));
    }

    #[test]
    #[should_panic(expected = "freed twice")]
    fn freeing_twice_panics() {
        let mut allocator = Allocator::new(100);
        let range = allocator.allocate(4).unwrap();
        allocator.release(range);
        allocator.release(range);
    }

    #[test]
    #[should_panic(expected = "freed twice")]
    fn freeing_what_was_never_taken_panics() {
        Allocator::new(100).release(UnitRange { start: 3, count: 1 });
    }

    #[test]
    fn marking_twice_or_beyond_the_end_is_an_error() {
        let mut allocator = Allocator::new(100);
        let range = UnitRange { start: 96, count: 4 };
        assert_eq!(allocator.mark(range), Ok(()));
        assert_eq!(allocator.mark(range), Err(MarkError::Taken { range }));
        let range = UnitRange { start: 97, count: 4 };
        assert_eq!(allocator.mark(range), Err(MarkError::OutOfRange { range, units: 100 }));
    }
}
