//! What the chain policy learns: how likely a chain of each class is to come back, and when.
//!
//! The classes' odds are counted: how many chains of a class there were and how many of them came
//! back. The time until they come back has one histogram for all classes, because there are too few
//! returns to learn one for each. Times are counted in blocks named, not in seconds: what matters is
//! how much else wants the space meanwhile.
//!
//! From both follows the value of keeping a block that has waited for some time: the best ratio,
//! over all moments at which one could give up on it, of the odds that it is read until then and the
//! time that it is expected to take up the space until then (its Gittins index). It is the right
//! order in which to give up on things that come back independently of each other, and it needs no
//! parameter. A block that many chains share is read for two reasons and is worth the sum of both.

/// Chains by the turns they have had: none yet, 1, 2, 3, 4 to 6, more; then what is left behind.
pub const TURNS: usize = 7;
/// What is left of a chain after another went on from its middle.
pub const LEFT_BEHIND: usize = 6;
/// Chains by the blocks that their last turn added, in octaves.
pub const ADDED: usize = 8;
/// Classes of chains.
pub const CLASSES: usize = TURNS * ADDED;
/// Classes of shared blocks, by how many chains went on from them, in octaves.
pub const SHARED: usize = 7;

/// Ages, half an octave each: the first ends at 64 blocks, and the last never.
const AGES: usize = 52;
const FIRST_AGE: u32 = 64;
/// Weights of what is assumed before anything is seen, in chains: of all chains together; of all
/// chains with as many turns, for one class of them; of any age at all.
const OVERALL: (f64, f64) = (3.0, 10.0);
const WIDER: f64 = 20.0;
const ANY_AGE: f64 = 5.0;
/// Nothing is certain to come back.
const ODDS_MAX: f64 = 0.97;
/// Counts are halved when one reaches this: what was long ago counts less.
const COUNT_MAX: f64 = 8192.0;
/// Classes are valued anew for so many blocks.
const VALUE_EVERY: usize = 8;

/// How many there were and how many of them came back.
#[derive(Clone, Copy, Default)]
struct Count {
    all: f64,
    back: f64,
}

impl Count {
    fn halve(&mut self) {
        self.all /= 2.0;
        self.back /= 2.0;
    }
}

/// Counts of ages.
struct Ages {
    counts: [f64; AGES],
    total: f64,
}

impl Ages {
    fn add(&mut self, age: u32) {
        self.counts[age_class(age)] += 1.0;
        self.total += 1.0;
        if self.total >= COUNT_MAX {
            self.total /= 2.0;
            self.counts.iter_mut().for_each(|count| *count /= 2.0);
        }
    }

    /// Shares of all returns.
    fn shares(&self) -> [f64; AGES] {
        let even = ANY_AGE / AGES as f64;
        self.counts.map(|count| (count + even) / (self.total + ANY_AGE))
    }
}

/// What was learned, and the values that follow from it.
pub struct Odds {
    chains: [Count; CLASSES],
    shared: [Count; SHARED],
    /// The last block of a chain: often it is not full, and the next turn has another in its place.
    lasts: Count,
    chain_ages: Ages,
    shared_ages: Ages,
    /// When each age begins, and after the last.
    edges: [f64; AGES + 1],
    chain_values: Vec<[f32; AGES]>,
    last_values: Vec<[f32; AGES]>,
    shared_values: Vec<[f32; AGES]>,
    /// The class whose values are computed anew next.
    next: usize,
    /// Blocks of the chains since values were computed.
    blocks: usize,
}

impl Default for Odds {
    fn default() -> Self {
        let edge = |i: usize| match i {
            0 => 0.0,
            i => f64::from(FIRST_AGE) * 2f64.powf((i - 1) as f64 / 2.0),
        };
        let mut odds = Self {
            chains: [Count::default(); CLASSES],
            shared: [Count::default(); SHARED],
            lasts: Count { all: 1.0, back: 0.5 },
            chain_ages: Ages { counts: [0.0; AGES], total: 0.0 },
            shared_ages: Ages { counts: [0.0; AGES], total: 0.0 },
            edges: std::array::from_fn(edge),
            chain_values: vec![[0.0; AGES]; CLASSES],
            last_values: vec![[0.0; AGES]; CLASSES],
            shared_values: vec![[0.0; AGES]; SHARED],
            next: 0,
            blocks: 0,
        };
        (0..CLASSES).for_each(|class| odds.value_chain(class));
        (0..SHARED).for_each(|level| odds.value_shared(level));
        odds
    }
}

/// The class of an age: its octave and the half of it.
fn age_class(age: u32) -> usize {
    let Some(octave) = (age / FIRST_AGE).checked_ilog2() else { return 0 };
    // The upper half begins where the square has passed half of its two octaves.
    let exact = age.ilog2();
    let upper = u64::from(age).pow(2) >> (2 * exact + 1) & 1;
    (2 * octave as usize + upper as usize + 1).min(AGES - 1)
}

/// The class of a chain that has had `turns` turns, of which the last added `added` blocks.
pub fn class(turns: usize, added: usize) -> usize {
    debug_assert!(turns < TURNS, "a class of turns");
    turns * ADDED + (added.max(1).ilog2() as usize).min(ADDED - 1)
}

/// The class of a number of turns.
pub fn turns_class(turns: u8) -> usize {
    match turns {
        0..=3 => usize::from(turns),
        4..=6 => 4,
        _ => 5,
    }
}

impl Odds {
    /// There is one more chain of a class, of so many blocks.
    pub fn chain_began(&mut self, class: usize, blocks: usize) {
        self.chains[class].all += 1.0;
        if self.chains[class].all >= COUNT_MAX {
            self.chains[class].halve();
        }
        // It costs some microseconds to value a class anew, so blocks that come alone share it.
        self.blocks += blocks;
        if self.blocks < VALUE_EVERY {
            return;
        }
        self.blocks = 0;
        self.value_chain(class);
        // One more each time: all are up to date soon, and no call takes long.
        self.next = (self.next + 1) % (CLASSES + SHARED);
        match self.next.checked_sub(CLASSES) {
            None => self.value_chain(self.next),
            Some(level) => self.value_shared(level),
        }
    }

    /// A chain of a class came back at an age; `last` when its last block was named again.
    pub fn chain_returned(&mut self, class: usize, age: u32, last: bool) {
        self.chains[class].back += 1.0;
        self.chain_ages.add(age);
        self.lasts.all += 1.0;
        self.lasts.back += f64::from(u8::from(last));
        if self.lasts.all >= COUNT_MAX {
            self.lasts.halve();
        }
    }

    /// What was left behind was wanted after all.
    pub fn left_behind_returned(&mut self, class: usize) {
        self.chains[class].back += 1.0;
    }

    /// A shared block was named.
    pub fn shared_named(&mut self, level: usize) {
        self.shared[level].all += 1.0;
        if self.shared[level].all >= COUNT_MAX {
            self.shared[level].halve();
        }
    }

    /// A shared block was named again at an age.
    pub fn shared_returned(&mut self, level: usize, age: u32) {
        self.shared[level].back += 1.0;
        self.shared_ages.add(age);
    }

    /// What a block is worth after waiting for `age`: of a chain of `class`, the last of it or not,
    /// and shared or not.
    pub fn value(&self, class: usize, last: bool, shared: Option<usize>, age: u32) -> f32 {
        let age = age_class(age);
        let values = if last { &self.last_values } else { &self.chain_values };
        values[class][age] + shared.map_or(0.0, |level| self.shared_values[level][age])
    }

    /// The odds that a chain of a class comes back.
    fn chain_odds(&self, class: usize) -> f64 {
        let add =
            |sum: Count, one: &Count| Count { all: sum.all + one.all, back: sum.back + one.back };
        let all = self.chains.iter().fold(Count::default(), add);
        let overall = (all.back + OVERALL.0) / (all.all + OVERALL.1);
        let first = class / ADDED * ADDED;
        let alike = self.chains[first..first + ADDED].iter().fold(Count::default(), add);
        let alike = (alike.back + WIDER * overall) / (alike.all + WIDER);
        let own = self.chains[class];
        ((own.back + WIDER * alike) / (own.all + WIDER)).min(ODDS_MAX)
    }

    fn value_chain(&mut self, class: usize) {
        let shares = self.chain_ages.shares();
        let odds = self.chain_odds(class);
        self.chain_values[class] = values(odds, &shares, &self.edges);
        let last = odds * self.lasts.back / self.lasts.all;
        self.last_values[class] = values(last, &shares, &self.edges);
    }

    fn value_shared(&mut self, level: usize) {
        let Count { all, back } = self.shared[level];
        let overall = OVERALL.0 / OVERALL.1;
        let odds = ((back + WIDER * overall) / (all + WIDER)).min(ODDS_MAX);
        self.shared_values[level] = values(odds, &self.shared_ages.shares(), &self.edges);
    }
}

/// The index at each age of something that comes back with the given odds, at ages as `shares` say.
///
/// Up to each age so much is read and so much time taken, and the index of an age is the steepest way from
/// there to any later one: the next corner of the upper hull of what lies behind it (the hull as in
/// Andrew 1979, "Another efficient algorithm for convex hulls in two dimensions").
///
/// It never rises again with the age: a queue gives its oldest away first, so what is young is worth
/// at least what it will be when it is older.
fn values(odds: f64, shares: &[f64; AGES], edges: &[f64; AGES + 1]) -> [f32; AGES] {
    let (mut read, mut time) = ([0.0; AGES + 1], [0.0; AGES + 1]);
    let mut waiting = 1.0;
    for age in 0..AGES {
        let back = odds * shares[age];
        // Those that come back in this span take up half of it.
        time[age + 1] = time[age] + (waiting - back / 2.0) * (edges[age + 1] - edges[age]);
        read[age + 1] = read[age] + back;
        waiting -= back;
    }
    let mut values = [0f32; AGES];
    // Corners, the nearest last.
    let mut hull = [AGES; AGES + 1];
    let mut last = 0;
    for age in (0..AGES).rev() {
        let way = |to: usize| (read[to] - read[age]) / (time[to] - time[age]);
        while last > 0 && way(hull[last - 1]) >= way(hull[last]) {
            last -= 1;
        }
        values[age] = way(hull[last]) as f32;
        last += 1;
        hull[last] = age;
    }
    for age in (1..AGES).rev() {
        values[age - 1] = values[age - 1].max(values[age]);
    }
    values
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As it is defined: the best over all moments at which one could give up.
    fn by_definition(odds: f64, shares: &[f64; AGES], edges: &[f64; AGES + 1]) -> [f32; AGES] {
        let mut values = [0f32; AGES];
        let mut left = 1.0;
        for age in 0..AGES {
            let (mut best, mut read, mut time, mut waiting) = (0f64, 0.0, 0.0, left);
            for until in age..AGES {
                let back = odds * shares[until];
                time += (waiting - back / 2.0) * (edges[until + 1] - edges[until]);
                read += back;
                waiting -= back;
                best = best.max(read / time);
            }
            values[age] = best as f32;
            left -= odds * shares[age];
        }
        for age in (1..AGES).rev() {
            values[age - 1] = values[age - 1].max(values[age]);
        }
        values
    }

    proptest! {
        #[test]
        fn the_hull_gives_what_the_definition_says(
            odds in 0.0..ODDS_MAX,
            ages in prop::collection::vec(0u32..100_000_000, 0..3000),
        ) {
            let mut counts = Ages { counts: [0.0; AGES], total: 0.0 };
            // Most ages are short.
            ages.iter().for_each(|age| counts.add(age >> (age % 24)));
            let (shares, edges) = (counts.shares(), Odds::default().edges);
            let (hull, definition) =
                (values(odds, &shares, &edges), by_definition(odds, &shares, &edges));
            for (one, other) in hull.iter().zip(&definition) {
                prop_assert!((one - other).abs() <= other * 1e-4, "{one} {other}");
            }
        }
    }
}
