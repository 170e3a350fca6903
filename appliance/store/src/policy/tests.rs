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
}

const SLOTS: u32 = 40;

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let number = || 1..=SLOTS;
    let step = prop_oneof![
        4 => number().prop_map(Step::Insert),
        4 => number().prop_map(Step::Access),
        1 => number().prop_map(Step::Remove),
        1 => (1usize..4).prop_map(Step::Evict),
        3 => (number(), 1u32..12).prop_map(|(first, length)| {
            Step::Name((first..(first + length).min(SLOTS + 1)).collect())
        }),
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
fn victims(policy: &mut dyn EvictionPolicy, most: usize) -> Vec<u32> {
    let mut victims = Vec::new();
    if most > 0 {
        policy.victims(&mut |slot| {
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
    /// Checks victims that were just offered.
    fn check(&mut self, offered: &[u32], all: bool) -> Result<(), TestCaseError>;
}

/// Runs steps on both and compares after each.
fn follow(
    policy: &mut dyn EvictionPolicy,
    model: &mut dyn Model,
    steps: Vec<Step>,
) -> Result<(), TestCaseError> {
    let mut there = HashSet::new();
    for step in steps {
        match step {
            Step::Insert(number) if there.insert(number) => {
                policy.inserted(slot(number), key(number));
                model.insert(number);
            }
            Step::Access(number) if there.contains(&number) => {
                policy.accessed(slot(number));
                model.access(number);
            }
            Step::Remove(number) if there.remove(&number) => {
                policy.removed(slot(number), key(number), false);
                model.remove(number, false);
            }
            Step::Evict(count) => {
                let gone = victims(policy, count);
                prop_assert_eq!(gone.len(), count.min(there.len()));
                model.check(&gone, false)?;
                for number in gone {
                    prop_assert!(there.remove(&number), "{number} is not there");
                    policy.removed(slot(number), key(number), true);
                    model.remove(number, true);
                }
            }
            Step::Name(chain) => {
                let at = |n: &u32| there.contains(n).then(|| slot(*n));
                let named = |n: &u32| Named { key: key(*n), slot: at(n) };
                policy.named(&chain.iter().map(named).collect::<Vec<_>>());
                model.name(&chain);
            }
            Step::Insert(_) | Step::Access(_) | Step::Remove(_) => {}
        }
    }
    let all = victims(policy, usize::MAX);
    let distinct: HashSet<u32> = all.iter().copied().collect();
    prop_assert_eq!(all.len(), distinct.len(), "each is offered once");
    prop_assert_eq!(distinct, there);
    model.check(&all, true)
}

/// One list, oldest first.
#[derive(Default)]
struct PlainLru(Vec<u32>);

impl Model for PlainLru {
    fn insert(&mut self, number: u32) {
        self.0.push(number);
    }

    fn access(&mut self, number: u32) {
        self.remove(number, false);
        self.0.push(number);
    }

    fn remove(&mut self, number: u32, _evicted: bool) {
        self.0.retain(|&n| n != number);
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
        for (n, reads) in self.small.iter_mut().chain(&mut self.main) {
            if *n == number {
                *reads = (*reads + 1).min(3);
            }
        }
    }

    fn remove(&mut self, number: u32, evicted: bool) {
        let small = self.small.iter().any(|&(n, _)| n == number);
        self.small.retain(|&(n, _)| n != number);
        self.main.retain(|&(n, _)| n != number);
        if small && evicted {
            self.ghosts.push(number);
            let most = self.small.len() + self.main.len();
            while self.ghosts.len() > most {
                self.ghosts.remove(0);
            }
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
        for number in victims(&mut policy, usize::MAX) {
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
        let all = victims(&mut policy, usize::MAX);
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
                Ok::<_, TestCaseError>(victims(policy.as_mut(), usize::MAX))
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
                let gone = victims(self.policy.as_mut(), 1)[0];
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

#[test]
fn ghosts_are_bounded() {
    let mut ghosts = ghosts::Ghosts::default();
    for number in 0..1000u32 {
        ghosts.note(key(number), number, 10);
        ghosts.note(key(7), number, 10);
        assert!(ghosts.len() <= 10);
        assert_eq!(ghosts.get(key(7)), Some(&number), "the newest note counts");
    }
    assert_eq!(ghosts.take(key(999)), Some(999));
    assert_eq!(ghosts.get(key(999)), None);
    assert_eq!(ghosts.get(key(0)), None, "long forgotten");
}
