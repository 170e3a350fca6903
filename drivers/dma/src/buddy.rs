//! A buddy allocator over units of 16 KiB, without memory of its own in what it cuts.
//!
//! ```text
//!   order 8   4 MiB  |               top 0               |               top 1               |
//!   order 7   2 MiB  |        0        |        1        |        2        |        3        |
//!     ...
//!   order 0  16 KiB  | | | | | | | | | | | | | | | | | | | | | | | | | | | | | | | | | | | | | | |
//! ```
//!
//! A free run of `2^order` units starts at a multiple of its length and stands as one bit in the set
//! of its order. Allocation takes the lowest run of the smallest order that is long enough and halves
//! it; freeing joins a run with its buddy as long as that is free too. Taking the lowest keeps short
//! buffers together, so that whole 4 MiB stay whole, and makes the answer depend on nothing but the
//! calls before, which simulation relies on.

/// Orders 0 (one unit, 16 KiB) to 8 (256 units, 4 MiB).
pub(crate) const MAX_ORDER: usize = 8;

/// Units in the longest run.
pub(crate) const TOP_UNITS: u32 = 1 << MAX_ORDER;

/// The allocator's state; a unit is named by its index.
#[derive(Debug)]
pub(crate) struct Buddy {
    units: u32,
    free_units: u32,
    /// The free runs of each order, by `first unit >> order`.
    free: [BitSet; MAX_ORDER + 1],
    /// For the first unit of every run handed out its order + 1, else 0: what a release is checked by.
    held: Vec<u8>,
}

impl Buddy {
    /// All of `units` free; a positive multiple of [`TOP_UNITS`].
    pub fn new(units: u32) -> Buddy {
        assert!(units > 0 && units.is_multiple_of(TOP_UNITS), "whole runs of 4 MiB");
        let mut free = std::array::from_fn(|order| BitSet::new(units >> order));
        for top in 0..units / TOP_UNITS {
            free[MAX_ORDER].insert(top);
        }
        Buddy { units, free_units: units, free, held: vec![0; units as usize] }
    }

    /// Units not handed out.
    pub fn free_units(&self) -> u32 {
        self.free_units
    }

    /// First unit of a run of `2^order`, or nothing when no free run is that long.
    pub fn allocate(&mut self, order: usize) -> Option<u32> {
        let mut have = (order..=MAX_ORDER).find(|&o| !self.free[o].is_empty())?;
        let unit = self.free[have].pop_lowest() << have;
        while have > order {
            have -= 1;
            // Keep the lower half, leave the upper.
            self.free[have].insert((unit >> have) + 1);
        }
        self.held[unit as usize] = order as u8 + 1;
        self.free_units -= 1 << order;
        Some(unit)
    }

    /// Takes back a run exactly as it was handed out.
    pub fn release(&mut self, unit: u32, order: usize) {
        assert!(unit < self.units, "unit {unit} is not of this pool");
        let held = std::mem::take(&mut self.held[unit as usize]);
        assert_eq!(
            usize::from(held),
            order + 1,
            "unit {unit} is released as it was allocated, once"
        );
        self.free_units += 1 << order;
        let (mut index, mut order) = (unit >> order, order);
        while order < MAX_ORDER && self.free[order].remove(index ^ 1) {
            index >>= 1;
            order += 1;
        }
        self.free[order].insert(index);
    }
}

/// A set of small integers that finds its lowest member in a few steps: a tree of words, where a bit
/// above says that the word below is not zero.
#[derive(Debug)]
struct BitSet {
    /// `levels[0]` holds the members, the last level is a single word.
    levels: Vec<Box<[u64]>>,
}

impl BitSet {
    fn new(size: u32) -> BitSet {
        let mut levels = Vec::new();
        let mut bits = size as usize;
        loop {
            let words = bits.div_ceil(64);
            levels.push(vec![0; words].into_boxed_slice());
            if words == 1 {
                return BitSet { levels };
            }
            bits = words;
        }
    }

    fn is_empty(&self) -> bool {
        self.levels[self.levels.len() - 1][0] == 0
    }

    fn insert(&mut self, member: u32) {
        let mut at = member as usize;
        for level in &mut self.levels {
            let word = &mut level[at / 64];
            let was_empty = *word == 0;
            *word |= 1 << (at % 64);
            if !was_empty {
                return;
            }
            at /= 64;
        }
    }

    /// Whether it was a member.
    fn remove(&mut self, member: u32) -> bool {
        let mut at = member as usize;
        if self.levels[0][at / 64] & (1 << (at % 64)) == 0 {
            return false;
        }
        for level in &mut self.levels {
            let word = &mut level[at / 64];
            *word &= !(1 << (at % 64));
            if *word != 0 {
                break;
            }
            at /= 64;
        }
        true
    }

    /// Removes and returns the lowest member of a set that has one.
    fn pop_lowest(&mut self) -> u32 {
        let mut at = 0;
        for level in self.levels.iter().rev() {
            at = at * 64 + level[at].trailing_zeros() as usize;
        }
        let removed = self.remove(at as u32);
        assert!(removed, "the levels of a bit set agree");
        at as u32
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// What the allocator must look like from outside: which units are taken, and whether a run of an
    /// order exists, found the slow way.
    struct Model {
        taken: Vec<bool>,
    }

    impl Model {
        fn lowest_fit(&self, order: usize) -> bool {
            let run = 1 << order;
            self.taken.chunks(run).any(|c| c.iter().all(|t| !t))
        }

        fn set(&mut self, unit: u32, order: usize, to: bool) {
            for taken in &mut self.taken[unit as usize..][..1 << order] {
                assert_eq!(*taken, !to, "unit handed out twice, or freed twice");
                *taken = to;
            }
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_model(
            tops in 1u32..5,
            steps in
                proptest::collection::vec((any::<bool>(), 0..=MAX_ORDER, any::<usize>()), 1..400),
        ) {
            let units = tops * TOP_UNITS;
            let mut buddy = Buddy::new(units);
            let mut model = Model { taken: vec![false; units as usize] };
            let mut held: Vec<(u32, usize)> = Vec::new();
            for (allocate, order, pick) in steps {
                if allocate {
                    match buddy.allocate(order) {
                        Some(unit) => {
                            prop_assert_eq!(unit % (1 << order), 0);
                            model.set(unit, order, true);
                            held.push((unit, order));
                        }
                        None => prop_assert!(!model.lowest_fit(order)),
                    }
                } else if !held.is_empty() {
                    let (unit, order) = held.swap_remove(pick % held.len());
                    buddy.release(unit, order);
                    model.set(unit, order, false);
                }
                let free = model.taken.iter().filter(|t| !**t).count();
                prop_assert_eq!(buddy.free_units() as usize, free);
                for order in 0..=MAX_ORDER {
                    let fits = (order..=MAX_ORDER).any(|o| !buddy.free[o].is_empty());
                    prop_assert_eq!(fits, model.lowest_fit(order));
                }
            }
            for (unit, order) in held {
                buddy.release(unit, order);
            }
            // Everything joined again: nothing but whole runs of 4 MiB.
            for _ in 0..tops {
                prop_assert!(buddy.allocate(MAX_ORDER).is_some());
            }
            prop_assert_eq!(buddy.free_units(), 0);
        }

        #[test]
        fn bit_set_agrees_with_a_tree(
            size in 1u32..10_000,
            steps in proptest::collection::vec((0u8..3, any::<u32>()), 1..200),
        ) {
            let mut set = BitSet::new(size);
            let mut model = BTreeSet::new();
            for (what, n) in steps {
                let n = n % size;
                match what {
                    0 => {
                        set.insert(n);
                        model.insert(n);
                    }
                    1 => prop_assert_eq!(set.remove(n), model.remove(&n)),
                    _ if model.is_empty() => prop_assert!(set.is_empty()),
                    _ => prop_assert_eq!(Some(set.pop_lowest()), model.pop_first()),
                }
                prop_assert_eq!(set.is_empty(), model.is_empty());
            }
        }
    }

    #[test]
    #[should_panic(expected = "released as it was allocated, once")]
    fn a_second_release_is_caught() {
        let mut buddy = Buddy::new(TOP_UNITS);
        let unit = buddy.allocate(3).unwrap();
        buddy.release(unit, 3);
        buddy.release(unit, 3);
    }
}
