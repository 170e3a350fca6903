//! Each policy against a plain model: lists that are searched from end to end.

use std::collections::HashSet;

use proptest::prelude::*;

use super::*;

/// What happens to a policy: a number names a slot, and its key.
#[derive(Clone, Debug)]
enum Step {
    Insert(u32),
    Access(u32),
    /// Deleted, not evicted.
    Remove(u32),
    /// The first so many victims go.
    Evict(usize),
    /// A request names a chain.
    Name(Vec<u32>),
    /// The first number is the parent of the second, which will be put.
    Follow(u32, u32),
    /// Nobody wants these any more.
    Release(Vec<u32>),
    /// These are kept for so many seconds.
    Keep(Vec<u32>, u32),
    /// So many seconds pass.
    Pass(u32),
}

const SLOTS: u32 = 40;
/// A second at which no hint of the steps is in force.
const FAR: u32 = 1_000_000;

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let number = || 1..=SLOTS;
    let chain = || {
        (number(), 1u32..12).prop_map(|(first, length)| {
            (first..(first + length).min(SLOTS + 1)).collect::<Vec<u32>>()
        })
    };
    let step = prop_oneof![
        4 => number().prop_map(Step::Insert),
        4 => number().prop_map(Step::Access),
        1 => number().prop_map(Step::Remove),
        1 => (1usize..4).prop_map(Step::Evict),
        3 => chain().prop_map(Step::Name),
        1 => prop::collection::vec(number(), 1..8).prop_map(Step::Name),
        1 => (number(), number()).prop_map(|(parent, child)| Step::Follow(parent, child)),
        1 => chain().prop_map(Step::Release),
        1 => (chain(), 0u32..20).prop_map(|(chain, seconds)| Step::Keep(chain, seconds)),
        1 => (1u32..10).prop_map(Step::Pass),
    ];
    prop::collection::vec(step, 0..400)
}

fn slot(number: u32) -> Slot {
    Slot::of(number).expect("slots count from one")
}

fn key(number: u32) -> KeyHash {
    KeyHash(u128::from(number) << 7)
}

/// The first `most` victims.
fn victims(policy: &mut dyn EvictionPolicy, now: u32, most: usize) -> Vec<u32> {
    let mut victims = Vec::new();
    if most > 0 {
        policy.victims(now, &mut |slot| {
            victims.push(slot.number());
            victims.len() < most
        });
    }
    victims
}

/// A plain model of a policy.
trait Model {
    fn insert(&mut self, number: u32);
    fn access(&mut self, number: u32);
    fn remove(&mut self, number: u32, evicted: bool);
    fn name(&mut self, _chain: &[u32]) {}
    /// A hint is given of these, or one ends: from here on no more is said of them, until they are
    /// ordinary again.
    fn hold(&mut self, number: u32);
    /// A hint ended: this one is ordinary again, as if it had come now.
    fn let_go(&mut self, number: u32);
    /// Checks victims that were just offered, those of hints left out.
    fn check(&mut self, offered: &[u32], all: bool) -> Result<(), TestCaseError>;
}

/// What hints must come to, whatever the policy.
#[derive(Default)]
struct Hints {
    now: u32,
    /// In the order in which they should go.
    released: Vec<u32>,
    /// Number, until when, in the order in which they were kept.
    kept: Vec<(u32, u32)>,
}

impl Hints {
    fn drop(&mut self, number: u32) -> bool {
        let before = self.released.len() + self.kept.len();
        self.released.retain(|&n| n != number);
        self.kept.retain(|&(n, _)| n != number);
        before > self.released.len() + self.kept.len()
    }

    fn is_kept(&self, number: u32) -> bool {
        self.kept.iter().any(|&(n, _)| n == number)
    }

    /// What is kept no longer.
    fn ended(&mut self) -> Vec<u32> {
        self.kept.sort_by_key(|&(_, until)| until);
        let first = self.kept.partition_point(|&(_, until)| until <= self.now);
        self.kept.drain(..first).map(|(number, _)| number).collect()
    }

    /// Checks that what is released comes first and what is kept last, soonest first; answers what
    /// is between.
    fn check<'a>(&self, offered: &'a [u32], ordinary: usize) -> Result<&'a [u32], TestCaseError> {
        let first = offered.len().min(self.released.len());
        let (released, others) = offered.split_at(first);
        let all: HashSet<u32> = self.released.iter().copied().collect();
        prop_assert!(released.iter().all(|number| all.contains(number)), "what goes first");
        let (others, kept) = others.split_at(others.len().min(ordinary));
        prop_assert!(others.iter().all(|&number| !self.is_kept(number)), "kept ones go last");
        let until = |number: &u32| {
            let known = self.kept.iter().find(|(n, _)| n == number);
            known.map(|&(_, until)| until)
        };
        let times: Vec<Option<u32>> = kept.iter().map(until).collect();
        prop_assert!(times.iter().all(Option::is_some), "nothing goes after those that are kept");
        prop_assert!(times.is_sorted(), "of those that are kept, the soonest go first");
        Ok(others)
    }
}

/// Runs steps on both and compares after each.
fn follow(
    policy: &mut dyn EvictionPolicy,
    model: &mut dyn Model,
    steps: Vec<Step>,
) -> Result<(), TestCaseError> {
    let mut there = HashSet::new();
    let mut hints = Hints::default();
    for step in steps {
        match step {
            Step::Insert(number) if there.insert(number) => {
                policy.inserted(slot(number), key(number));
                model.insert(number);
            }
            Step::Access(number) if there.contains(&number) => {
                policy.accessed(slot(number));
                if !hints.is_kept(number) && hints.drop(number) {
                    model.let_go(number);
                }
                model.access(number);
            }
            Step::Remove(number) if there.remove(&number) => {
                policy.removed(slot(number), key(number), false);
                hints.drop(number);
                model.remove(number, false);
            }
            Step::Evict(count) => {
                let gone = evict(policy, model, &mut hints, &there, count)?;
                for number in gone {
                    prop_assert!(there.remove(&number), "{number} is not there");
                }
            }
            Step::Name(chain) => {
                name(policy, model, &mut hints, &there, &chain);
            }
            Step::Follow(parent, child) if !there.contains(&child) => {
                let at = there.contains(&parent).then(|| slot(parent));
                policy.follows(Named { key: key(parent), slot: at }, key(child));
                if policy.wants_chains() && !hints.is_kept(parent) {
                    // It may take the parent back, and may not.
                    model.name(&[parent]);
                }
            }
            Step::Release(chain) => {
                let chain = hint(policy, model, &mut hints, &there, &chain, Hint::Release);
                hints.released.extend(chain.iter().rev());
            }
            Step::Keep(chain, seconds) => {
                let until = hints.now + seconds;
                keep(policy, model, &mut hints, &there, &chain, until);
            }
            Step::Pass(seconds) => hints.now += seconds,
            Step::Insert(_) | Step::Access(_) | Step::Remove(_) | Step::Follow(..) => {}
        }
    }
    hints.ended().into_iter().for_each(|number| model.let_go(number));
    let all = victims(policy, hints.now, usize::MAX);
    let distinct: HashSet<u32> = all.iter().copied().collect();
    prop_assert_eq!(all.len(), distinct.len(), "each is offered once");
    let ordinary = there.len() - hints.released.len() - hints.kept.len();
    prop_assert_eq!(distinct, there);
    model.check(hints.check(&all, ordinary)?, true)
}

/// Names a chain: where that counts, what of it was released is taken back.
fn name(
    policy: &mut dyn EvictionPolicy,
    model: &mut dyn Model,
    hints: &mut Hints,
    there: &HashSet<u32>,
    chain: &[u32],
) {
    let at = |n: &u32| there.contains(n).then(|| slot(*n));
    let named = |n: &u32| Named { key: key(*n), slot: at(n) };
    policy.named(&chain.iter().map(named).collect::<Vec<_>>());
    if policy.wants_chains() {
        for &number in chain {
            if !hints.is_kept(number) && hints.drop(number) {
                model.let_go(number);
            }
        }
    }
    model.name(chain);
}

/// Evicts some, and answers them.
fn evict(
    policy: &mut dyn EvictionPolicy,
    model: &mut dyn Model,
    hints: &mut Hints,
    there: &HashSet<u32>,
    count: usize,
) -> Result<Vec<u32>, TestCaseError> {
    hints.ended().into_iter().for_each(|number| model.let_go(number));
    let gone = victims(policy, hints.now, count);
    prop_assert_eq!(gone.len(), count.min(there.len()));
    let ordinary = there.len() - hints.released.len() - hints.kept.len();
    model.check(hints.check(&gone, ordinary)?, false)?;
    for &number in &gone {
        policy.removed(slot(number), key(number), true);
        let held = hints.drop(number);
        model.remove(number, !held);
    }
    Ok(gone)
}

/// Has those of a chain kept that are there.
fn keep(
    policy: &mut dyn EvictionPolicy,
    model: &mut dyn Model,
    hints: &mut Hints,
    there: &HashSet<u32>,
    chain: &[u32],
    until: u32,
) {
    let before = hints.kept.clone();
    let chain = hint(policy, model, hints, there, chain, Hint::Keep { until });
    let longer = |n: u32| before.iter().find(|(k, _)| *k == n).map_or(0, |&(_, u)| u);
    // A chain policy keeps the whole chain as long as the last of it.
    let most = chain.iter().map(|&n| longer(n)).fold(until, u32::max);
    for &number in chain.iter().rev() {
        let alone = longer(number).max(until);
        hints.kept.push((number, if policy.wants_chains() { most } else { alone }));
    }
}

/// Gives a hint of those of a chain that are there, and answers them.
fn hint(
    policy: &mut dyn EvictionPolicy,
    model: &mut dyn Model,
    hints: &mut Hints,
    there: &HashSet<u32>,
    chain: &[u32],
    hint: Hint,
) -> Vec<u32> {
    hints.ended().into_iter().for_each(|number| model.let_go(number));
    let chain: Vec<u32> = chain.iter().copied().filter(|n| there.contains(n)).collect();
    let slots: Vec<Slot> = chain.iter().map(|&n| slot(n)).collect();
    policy.hinted(&slots, hint, hints.now);
    for &number in &chain {
        hints.drop(number);
        model.hold(number);
    }
    chain
}

/// One list, oldest first.
#[derive(Default)]
struct PlainLru(Vec<u32>);

impl Model for PlainLru {
    fn insert(&mut self, number: u32) {
        self.0.push(number);
    }

    fn access(&mut self, number: u32) {
        // Not there while it is kept.
        if self.0.contains(&number) {
            self.remove(number, false);
            self.0.push(number);
        }
    }

    fn remove(&mut self, number: u32, _evicted: bool) {
        self.0.retain(|&n| n != number);
    }

    fn hold(&mut self, number: u32) {
        self.remove(number, false);
    }

    fn let_go(&mut self, number: u32) {
        self.insert(number);
    }

    fn check(&mut self, offered: &[u32], _all: bool) -> Result<(), TestCaseError> {
        prop_assert_eq!(offered, &self.0[..offered.len()]);
        Ok(())
    }
}

/// The paper's algorithm on plain lists.
#[derive(Default)]
struct PlainS3Fifo {
    small: Vec<(u32, u8)>,
    main: Vec<(u32, u8)>,
    /// Those that a hint holds: their reads, and whether they are main.
    held: Vec<(u32, u8, bool)>,
    /// There are fewer keys than a policy always remembers.
    ghosts: Vec<u32>,
}

impl PlainS3Fifo {
    /// The next victim, its reads and whether it is main.
    fn victim(&mut self) -> Option<((u32, u8), bool)> {
        while !self.small.is_empty() || !self.main.is_empty() {
            let all = self.small.len() + self.main.len();
            if !self.small.is_empty() && (self.main.is_empty() || self.small.len() >= all / 10) {
                match self.small.remove(0) {
                    (number, reads @ (0 | 1)) => return Some(((number, reads), false)),
                    (number, _) => self.main.push((number, 0)),
                }
            } else {
                match self.main.remove(0) {
                    (number, 0) => return Some(((number, 0), true)),
                    (number, reads) => self.main.push((number, reads - 1)),
                }
            }
        }
        None
    }
}

impl Model for PlainS3Fifo {
    fn insert(&mut self, number: u32) {
        let known = self.ghosts.contains(&number);
        self.ghosts.retain(|&n| n != number);
        if known { &mut self.main } else { &mut self.small }.push((number, 0));
    }

    fn access(&mut self, number: u32) {
        let listed = self.small.iter_mut().chain(&mut self.main).map(|(n, reads)| (n, reads));
        for (n, reads) in listed.chain(self.held.iter_mut().map(|(n, reads, _)| (n, reads))) {
            if *n == number {
                *reads = (*reads + 1).min(3);
            }
        }
    }

    fn hold(&mut self, number: u32) {
        let in_main = self.main.iter().any(|&(n, _)| n == number);
        let all = self.small.iter().chain(&self.main);
        let found = all.copied().find(|&(n, _)| n == number);
        let Some((_, reads)) = found else { return };
        self.small.retain(|&(n, _)| n != number);
        self.main.retain(|&(n, _)| n != number);
        self.held.push((number, reads, in_main));
    }

    fn let_go(&mut self, number: u32) {
        let at = self.held.iter().position(|&(n, ..)| n == number).expect("it is held");
        let (number, reads, main) = self.held.remove(at);
        if main { &mut self.main } else { &mut self.small }.push((number, reads));
    }

    fn remove(&mut self, number: u32, evicted: bool) {
        let small = self.small.iter().any(|&(n, _)| n == number);
        self.small.retain(|&(n, _)| n != number);
        self.main.retain(|&(n, _)| n != number);
        self.held.retain(|&(n, ..)| n != number);
        if small && evicted {
            self.ghosts.push(number);
        }
    }

    fn check(&mut self, offered: &[u32], _all: bool) -> Result<(), TestCaseError> {
        let mut stay = Vec::new();
        for &number in offered {
            let (victim, main) = self.victim().expect("as many as are offered");
            prop_assert_eq!(number, victim.0);
            stay.push((victim, main));
        }
        for (victim, main) in stay.into_iter().rev() {
            if main { &mut self.main } else { &mut self.small }.insert(0, victim);
        }
        Ok(())
    }
}

/// What must hold of the chain policy, whatever it has learned: of a chain that was put as one
/// request and not touched since, what is deeper goes first, but for its last block.
#[derive(Default)]
struct ChainOrder {
    /// Chains as they were put, and whether they are still as they were.
    chains: Vec<Vec<u32>>,
}

impl ChainOrder {
    fn touched(&mut self, number: u32) {
        self.chains.retain(|chain| !chain.contains(&number));
    }
}

impl Model for ChainOrder {
    fn insert(&mut self, number: u32) {
        self.touched(number);
    }

    fn access(&mut self, number: u32) {
        self.touched(number);
    }

    fn remove(&mut self, _number: u32, _evicted: bool) {}

    fn hold(&mut self, number: u32) {
        self.touched(number);
    }

    fn let_go(&mut self, number: u32) {
        self.touched(number);
    }

    fn name(&mut self, chain: &[u32]) {
        chain.iter().for_each(|&number| self.touched(number));
    }

    fn check(&mut self, offered: &[u32], _all: bool) -> Result<(), TestCaseError> {
        for chain in &self.chains {
            let body = &chain[..chain.len() - 1];
            let order: Vec<u32> =
                offered.iter().copied().filter(|number| body.contains(number)).collect();
            prop_assert!(order.is_sorted_by(|a, b| a > b), "{order:?} of {chain:?}");
        }
        Ok(())
    }
}

proptest! {
    #[test]
    fn lru_is_a_list(steps in steps()) {
        follow(&mut Lru::default(), &mut PlainLru::default(), steps)?;
    }

    #[test]
    fn s3_fifo_is_three_lists(steps in steps()) {
        follow(&mut S3Fifo::default(), &mut PlainS3Fifo::default(), steps)?;
    }

    /// Chains of slots beyond those of the steps are put among them.
    #[test]
    fn chains_leave_from_their_ends(
        before in steps(),
        lengths in prop::collection::vec(2u32..30, 1..6),
        shuffle in any::<u64>(),
        after in steps(),
    ) {
        let mut policy = Chain::default();
        follow(&mut policy, &mut ChainOrder::default(), before)?;
        for number in victims(&mut policy, FAR, usize::MAX) {
            policy.removed(slot(number), key(number), false);
        }
        let mut model = ChainOrder::default();
        let mut first = SLOTS + 1;
        for length in lengths {
            let chain: Vec<u32> = (first..first + length).collect();
            let named: Vec<Named> =
                chain.iter().map(|&n| Named { key: key(n), slot: None }).collect();
            policy.named(&named);
            // Puts end in any order.
            let mut puts = chain.clone();
            puts.sort_by_key(|&n| (u64::from(n).wrapping_mul(0x9e37_79b9_7f4a_7c15)) ^ shuffle);
            puts.iter().for_each(|&n| policy.inserted(slot(n), key(n)));
            model.chains.push(chain);
            first += length;
        }
        let all = victims(&mut policy, FAR, usize::MAX);
        prop_assert_eq!(all.len() as u32, first - SLOTS - 1);
        model.check(&all, true)?;
        for number in all {
            policy.removed(slot(number), key(number), true);
        }
        follow(&mut policy, &mut ChainOrder::default(), after)?;
    }

    #[test]
    fn the_same_calls_give_the_same_victims(steps in steps()) {
        for policy in Policy::ALL {
            let run = || {
                let mut policy = policy.build();
                follow(policy.as_mut(), &mut Anything, steps.clone())?;
                Ok::<_, TestCaseError>(victims(policy.as_mut(), FAR, usize::MAX))
            };
            prop_assert_eq!(run()?, run()?);
        }
    }
}

/// Expects nothing but what [`follow`] checks itself.
struct Anything;

impl Model for Anything {
    fn insert(&mut self, _number: u32) {}

    fn access(&mut self, _number: u32) {}

    fn remove(&mut self, _number: u32, _evicted: bool) {}

    fn hold(&mut self, _number: u32) {}

    fn let_go(&mut self, _number: u32) {}

    fn check(&mut self, _offered: &[u32], _all: bool) -> Result<(), TestCaseError> {
        Ok(())
    }
}

/// A cache of blocks under one policy, for workloads that say what should be learned.
struct Cache {
    policy: Box<dyn EvictionPolicy>,
    slots: std::collections::HashMap<u32, Slot>,
    capacity: usize,
    next: u32,
}

impl Cache {
    fn new(policy: Policy, capacity: usize) -> Cache {
        Cache { policy: policy.build(), slots: [].into(), capacity, next: 1 }
    }

    /// A request; answers its prefix hits.
    fn serve(&mut self, chain: &[u32]) -> usize {
        let at = |n: &u32| self.slots.get(n).copied();
        let named: Vec<Named> = chain.iter().map(|n| Named { key: key(*n), slot: at(n) }).collect();
        let hits = named.iter().take_while(|named| named.slot.is_some()).count();
        self.policy.named(&named);
        named[..hits].iter().for_each(|n| self.policy.accessed(n.slot.expect("a hit")));
        for &number in &chain[hits..] {
            if self.slots.contains_key(&number) {
                continue;
            }
            if self.slots.len() == self.capacity {
                let gone = victims(self.policy.as_mut(), 0, 1)[0];
                let (&of, _) = self.slots.iter().find(|(_, s)| s.number() == gone).expect("there");
                self.slots.remove(&of);
                self.policy.removed(slot(gone), key(of), true);
            }
            self.slots.insert(number, slot(self.next));
            self.policy.inserted(slot(self.next), key(number));
            self.next += 1;
        }
        hits
    }
}

/// Of chains that come back and chains that never do, those that do are kept.
#[test]
fn what_never_comes_back_goes_first() {
    let hits = |policy| {
        let mut cache = Cache::new(policy, 400);
        let mut hits = 0;
        for round in 0..600u32 {
            // Conversations that go on after 20 rounds, two short ones a round...
            for old in [round.checked_sub(20), Some(round)].into_iter().flatten() {
                let first = 1_000_000 + old * 16;
                let length = if old == round { 4 } else { 8 };
                hits += cache.serve(&(first..first + length).collect::<Vec<_>>());
            }
            // ...and a long document that nobody sends again.
            let first = 8_000_000 + round * 100;
            hits += cache.serve(&(first..first + 40).collect::<Vec<_>>());
        }
        hits
    };
    let (lru, chain) = (hits(Policy::Lru), hits(Policy::Chain));
    assert_eq!(lru, 0, "twenty rounds are more than fits");
    assert!(chain > 580 * 3, "of 580 conversations with 4 blocks each, {chain} blocks were hit");
}

#[test]
#[should_panic(expected = "only a listed number is taken out")]
fn what_is_not_listed_is_not_taken_out() {
    let mut lru = Lru::default();
    lru.inserted(slot(1), key(1));
    lru.removed(slot(2), key(2), false);
}

/// In whatever pieces a policy is told of what a start has found, it is the same to it, and it goes
/// on from there: what comes next goes last.
#[test]
fn what_was_restored_goes_oldest_first() {
    const COUNT: u32 = 1000;
    // In an order that is not that of the slots.
    let blocks: Vec<_> = (0..COUNT).map(|n| n * 7 % COUNT + 1).collect();
    let told: Vec<_> = blocks.iter().map(|&n| (slot(n), key(n))).collect();
    for policy in Policy::ALL {
        let all = [1, 7, 62, 63, 64, 65, 256, told.len()].map(|piece| {
            let mut policy = policy.build();
            told.chunks(piece).for_each(|piece| policy.restored(piece));
            policy.inserted(slot(COUNT + 1), key(COUNT + 1));
            let memory = policy.memory();
            let order = victims(&mut *policy, 0, usize::MAX);
            assert_eq!((order.len(), order.last()), (told.len() + 1, Some(&(COUNT + 1))));
            policy.accessed(slot(blocks[0]));
            policy.removed(slot(blocks[1]), key(blocks[1]), true);
            (memory, order, victims(&mut *policy, 0, usize::MAX))
        });
        assert!(all.iter().all(|told| *told == all[0]), "{policy:?}");
        assert_eq!(all[0].1[..told.len()], blocks, "{policy:?}");
    }
}

#[test]
fn ghosts_are_bounded() {
    let mut ghosts = ghosts::Ghosts::default();
    let most = 1000;
    for number in 8..100_000u32 {
        ghosts.note(key(number), number, most);
        ghosts.note(key(7), number, most);
        assert_eq!(ghosts.get(key(7)), Some(&number), "the newest note counts");
    }
    assert!(ghosts.bytes() <= 16_384, "{} bytes for {most} notes of 8", ghosts.bytes());
    let known =
        |first: u32, last: u32| (first..last).filter(|&n| ghosts.get(key(n)) == Some(&n)).count();
    assert_eq!(known(8, 90_000), 0, "long forgotten");
    assert!(known(99_500, 100_000) > 490, "the newer half of what there is place for");
    assert_eq!(ghosts.take(key(99_999)), Some(99_999));
    assert_eq!(ghosts.get(key(99_999)), None);
}

proptest! {
    /// As long as there is place nothing is forgotten, however the buckets are split.
    #[test]
    fn ghosts_are_a_map(steps in prop::collection::vec((0u32..600, any::<bool>()), 0..2000)) {
        let mut ghosts = ghosts::Ghosts::default();
        let mut plain = std::collections::HashMap::new();
        for (number, note) in steps {
            if note {
                ghosts.note(key(number), number, 4096);
                plain.insert(number, number);
            } else {
                prop_assert_eq!(ghosts.take(key(number)), plain.remove(&number));
            }
        }
        for number in 0..600 {
            prop_assert_eq!(ghosts.get(key(number)), plain.get(&number));
        }
    }

    /// Runs against lists of (place, number).
    #[test]
    fn runs_are_lists(steps in prop::collection::vec((1u32..200, 0u32..300, 0u32..4), 0..600)) {
        let mut runs = runs::Runs::default();
        let about = |length| runs::About { at: 1, length, class: 0, turns: 0 };
        let numbers: Vec<u32> =
            [300, 0].map(|length| runs.add(runs::Run::new(about(length), 0, 100))).to_vec();
        let mut plain: [Vec<(u32, u32)>; 2] = Default::default();
        for (number, place, what) in steps {
            let at = plain.iter().position(|run| run.iter().any(|&(_, n)| n == number));
            match (at, what) {
                (Some(of), 0..2) => {
                    let (run, place) = runs.leave(number);
                    prop_assert_eq!(run, numbers[of]);
                    let known = plain[of].iter().position(|&(_, n)| n == number).expect("there");
                    let (expected, _) = plain[of].remove(known);
                    prop_assert!(of == 1 || place == expected, "{place} is not {expected}");
                }
                (None, _) => {
                    let of = (what == 3) as usize;
                    let taken = plain[of].iter().any(|&(p, _)| p == place);
                    let group = runs.get(numbers[1]);
                    if (of == 0 && taken) || (of == 1 && !group.has_room()) {
                        continue;
                    }
                    runs.enter(number);
                    if runs.join(number, numbers[of], place) {
                        plain[of].push((place, number));
                    } else {
                        prop_assert!(of == 0, "a group takes in whatever comes");
                    }
                }
                _ => {}
            }
            for (of, run) in numbers.iter().enumerate() {
                let mut offered = Vec::new();
                runs.offer(*run, &mut |number| { offered.push(number); true });
                let mut expected = plain[of].clone();
                if of == 0 {
                    expected.sort_by_key(|&(place, _)| std::cmp::Reverse(place));
                }
                let expected: Vec<u32> = expected.into_iter().map(|(_, n)| n).collect();
                prop_assert_eq!(offered, expected);
            }
        }
    }
}

/// What a million blocks take, in chains of so many and alone.
#[test]
fn blocks_take_eleven_bytes() {
    for policy in Policy::ALL {
        for (length, most) in [(1, 11.1), (20, 11.1), (64, 11.1), (500, 11.1)] {
            let mut policy = policy.build();
            let blocks = 500_000;
            for first in (1..=blocks).step_by(length) {
                let chain: Vec<u32> = (first..(first + length as u32).min(blocks + 1)).collect();
                if length > 1 {
                    let named = |&n: &u32| Named { key: key(n), slot: None };
                    policy.named(&chain.iter().map(named).collect::<Vec<_>>());
                }
                chain.iter().for_each(|&n| policy.inserted(slot(n), key(n)));
            }
            let each = policy.memory() as f64 / f64::from(blocks);
            assert!(each <= most, "{}: {each} bytes a block, chains of {length}", policy.name());
        }
    }
}

/// A put that names its parent joins its chain, also when nobody named the chain: it leaves from its
/// end, however its blocks came.
#[test]
fn parents_make_a_chain() {
    let mut policy = Chain::default();
    policy.inserted(slot(1), key(1));
    for number in 2..=30 {
        let parent = Named { key: key(number - 1), slot: Some(slot(number - 1)) };
        policy.follows(parent, key(number));
        policy.inserted(slot(number), key(number));
        // Others come meanwhile.
        policy.inserted(slot(100 + number), key(100 + number));
    }
    let order: Vec<u32> =
        victims(&mut policy, 0, usize::MAX).into_iter().filter(|&n| n <= 30).collect();
    assert_eq!(order, (1..=30).rev().collect::<Vec<_>>());
    // Parents that are only expected do as well.
    let mut policy = Chain::default();
    policy.named(&[Named { key: key(1), slot: None }, Named { key: key(2), slot: None }]);
    for number in 3..=9 {
        policy.follows(Named { key: key(number - 1), slot: None }, key(number));
    }
    for number in [5, 9, 1, 7, 2, 3, 8, 6, 4] {
        policy.inserted(slot(number), key(number));
    }
    let order = victims(&mut policy, 0, usize::MAX);
    let body: Vec<u32> = order.into_iter().filter(|&n| n != 2).collect();
    assert_eq!(body, [9, 8, 7, 6, 5, 4, 3, 1], "the second was the last of its request");
}
