//! From one policy to another while blocks come and go.
//!
//! The blocks move over a few at a time, in the order in which the policy before would have let them
//! go: so the one that follows starts with the oldest, as after a restart, and nothing stops for it.
//! Until the last has moved, each block is with one of the two, and it is known with which.
//!
//! What the policy before had learned (odds of chains, ghosts) goes with it; what engines have said
//! of blocks goes over with those.

use super::{EvictionPolicy, Hint, KeyHash, Named, Rank, Slot};

/// Blocks that move in one go: tens of microseconds.
const STEP: usize = 64;

/// The policy in force, and the one before it while blocks are still with that.
pub struct Policies {
    now: Box<dyn EvictionPolicy>,
    before: Option<Before>,
}

struct Before {
    policy: Box<dyn EvictionPolicy>,
    /// One bit per slot: its block is with the policy in force.
    moved: Vec<u64>,
}

impl Before {
    fn has_moved(&self, slot: Slot) -> bool {
        let (word, bit) = place(slot);
        self.moved.get(word).is_some_and(|bits| bits & bit != 0)
    }

    fn mark(&mut self, slot: Slot) {
        let (word, bit) = place(slot);
        if word >= self.moved.len() {
            self.moved.resize(word + 1, 0);
        }
        assert!(self.moved[word] & bit == 0, "a block moves once");
        self.moved[word] |= bit;
    }

    fn unmark(&mut self, slot: Slot) {
        let (word, bit) = place(slot);
        self.moved[word] &= !bit;
    }
}

fn place(slot: Slot) -> (usize, u64) {
    let number = slot.number() as usize;
    (number / 64, 1 << (number % 64))
}

impl Policies {
    /// This one alone.
    pub fn new(now: Box<dyn EvictionPolicy>) -> Self {
        Self { now, before: None }
    }

    /// Begins a change; the one before must have come to its end.
    pub fn change(&mut self, next: Box<dyn EvictionPolicy>) {
        assert!(self.before.is_none(), "one change at a time");
        let policy = std::mem::replace(&mut self.now, next);
        self.before = Some(Before { policy, moved: Vec::new() });
    }

    /// Whether blocks are still with the policy before.
    pub fn changing(&self) -> bool {
        self.before.is_some()
    }

    /// Moves some blocks, whose keys `key` tells; false when none is left to move. `now` is the
    /// second.
    pub fn step(&mut self, now: u32, key: impl Fn(Slot) -> KeyHash) -> bool {
        let Some(before) = &mut self.before else { return false };
        let mut next = Vec::with_capacity(STEP);
        before.policy.victims(now, &mut |slot| {
            next.push(slot);
            next.len() < STEP
        });
        if next.is_empty() {
            self.before = None;
            return false;
        }
        for slot in next {
            let hint = before.policy.hint_of(slot);
            before.policy.removed(slot, key(slot), false);
            before.mark(slot);
            self.now.inserted(slot, key(slot));
            if let Some(hint) = hint {
                self.now.hinted(&[slot], hint, now);
            }
        }
        true
    }

    /// What is named, as the policy in force knows it.
    fn moved(&self, named: Named) -> Named {
        let known = |&slot: &Slot| self.before.as_ref().is_none_or(|b| b.has_moved(slot));
        Named { slot: named.slot.filter(known), ..named }
    }

    /// The policy that a block is with.
    fn of(&mut self, slot: Slot) -> &mut dyn EvictionPolicy {
        match &mut self.before {
            Some(before) if !before.has_moved(slot) => &mut *before.policy,
            _ => &mut *self.now,
        }
    }
}

impl EvictionPolicy for Policies {
    fn name(&self) -> &'static str {
        self.now.name()
    }

    fn wants_chains(&self) -> bool {
        self.now.wants_chains()
    }

    /// A block that is still with the policy before is one that will come.
    fn named(&mut self, chain: &[Named]) {
        if self.before.is_none() {
            return self.now.named(chain);
        }
        let chain: Vec<Named> = chain.iter().map(|&named| self.moved(named)).collect();
        self.now.named(&chain);
    }

    fn follows(&mut self, parent: Named, key: KeyHash) {
        self.now.follows(self.moved(parent), key);
    }

    fn hinted(&mut self, chain: &[Slot], hint: Hint, now: u32) {
        let Some(before) = &mut self.before else { return self.now.hinted(chain, hint, now) };
        let (moved, others): (Vec<Slot>, Vec<Slot>) =
            chain.iter().partition(|&&slot| before.has_moved(slot));
        before.policy.hinted(&others, hint, now);
        self.now.hinted(&moved, hint, now);
    }

    fn inserted(&mut self, slot: Slot, key: KeyHash) {
        if let Some(before) = &mut self.before {
            before.mark(slot);
        }
        self.now.inserted(slot, key);
    }

    fn restored(&mut self, blocks: &[(Slot, KeyHash)]) {
        assert!(self.before.is_none(), "nothing changes before the start is done");
        self.now.restored(blocks);
    }

    fn accessed(&mut self, slot: Slot) {
        self.of(slot).accessed(slot);
    }

    fn removed(&mut self, slot: Slot, key: KeyHash, evicted: bool) {
        self.of(slot).removed(slot, key, evicted);
        if let Some(before) = &mut self.before
            && before.has_moved(slot)
        {
            before.unmark(slot);
        }
    }

    fn hint_of(&self, slot: Slot) -> Option<Hint> {
        match &self.before {
            Some(before) if !before.has_moved(slot) => before.policy.hint_of(slot),
            _ => self.now.hint_of(slot),
        }
    }

    fn end_holds(&mut self, now: u32) {
        if let Some(before) = &mut self.before {
            before.policy.end_holds(now);
        }
        self.now.end_holds(now);
    }

    /// Of a rank, those that have not moved yet go first: what came since the change is not among
    /// them.
    fn offer(&mut self, rank: Rank, take: &mut dyn FnMut(Slot) -> bool) -> bool {
        if let Some(before) = &mut self.before
            && !before.policy.offer(rank, take)
        {
            return false;
        }
        self.now.offer(rank, take)
    }

    fn memory(&self) -> usize {
        let before = self.before.as_ref().map_or(0, |b| b.policy.memory() + b.moved.len() * 8);
        self.now.memory() + before
    }

    fn memory_of_ghosts(&self) -> usize {
        let before = self.before.as_ref().map_or(0, |b| b.policy.memory_of_ghosts());
        self.now.memory_of_ghosts() + before
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::policy::Policy;

    fn slot(number: u32) -> Slot {
        Slot::of(number).expect("slots count from one")
    }

    fn key(slot: Slot) -> KeyHash {
        KeyHash(u128::from(slot.number()) << 7)
    }

    fn order(policy: &mut dyn EvictionPolicy) -> Vec<u32> {
        let mut order = Vec::new();
        policy.victims(0, &mut |slot| {
            order.push(slot.number());
            true
        });
        order
    }

    fn filled(policy: Policy, numbers: std::ops::RangeInclusive<u32>) -> Policies {
        let mut policies = Policies::new(policy.build());
        numbers.for_each(|n| policies.inserted(slot(n), key(slot(n))));
        policies
    }

    #[test]
    fn the_order_of_the_policy_before_goes_over_to_the_next_one() {
        let mut policies = filled(Policy::Lru, 1..=200);
        (1..=50).for_each(|n| policies.accessed(slot(n)));
        let before = order(&mut policies);
        policies.change(Policy::S3Fifo.build());
        assert_eq!((policies.name(), policies.changing()), ("s3-fifo", true));
        let mut steps = 0;
        while policies.step(0, key) {
            assert_eq!(order(&mut policies).len(), 200, "none is lost on the way");
            steps += 1;
        }
        assert_eq!(steps, 200usize.div_ceil(STEP), "a few at a time");
        assert!(!policies.changing());
        assert_eq!(order(&mut policies), before);
    }

    #[test]
    fn what_came_since_the_change_goes_last() {
        let mut policies = filled(Policy::Lru, 1..=100);
        policies.change(Policy::Lru.build());
        assert!(policies.step(0, key));
        policies.inserted(slot(101), key(slot(101)));
        policies.accessed(slot(100));
        let order = order(&mut policies);
        assert_eq!((order[0], order[order.len() - 1]), (65, 101), "{order:?}");
        assert_eq!(order.len(), 101);
    }

    #[test]
    fn a_chain_that_is_named_before_its_blocks_have_moved_is_one_when_they_have() {
        let mut policies = filled(Policy::Lru, 1..=3);
        policies.change(Policy::Chain.build());
        assert!(policies.wants_chains());
        let chain: Vec<Named> =
            (1..=3).map(|n| Named { key: key(slot(n)), slot: Some(slot(n)) }).collect();
        policies.named(&chain);
        while policies.step(0, key) {}
        assert_eq!(order(&mut policies)[0], 3, "a chain leaves from its deep end");
    }

    #[test]
    fn what_engines_said_goes_over_with_the_blocks() {
        let said = |policies: &Policies, number| policies.hint_of(slot(number));
        for from in Policy::ALL {
            for to in Policy::ALL {
                let mut policies = filled(from, 1..=200);
                policies.hinted(&[slot(1), slot(2)], Hint::Keep { until: 50 }, 0);
                policies.hinted(&[slot(199), slot(200)], Hint::Release, 0);
                policies.change(to.build());
                let mut steps = 0;
                loop {
                    let order = order(&mut policies);
                    assert_eq!(order.len(), 200);
                    assert_eq!(order[..2], [200, 199], "{from:?} to {to:?}");
                    assert_eq!(order[198..], [2, 1], "{from:?} to {to:?}");
                    // Said while some blocks have moved and others have not.
                    if steps == 1 {
                        policies.hinted(&[slot(3), slot(150)], Hint::Keep { until: 40 }, 0);
                        policies.hinted(&[slot(3), slot(150)], Hint::Release, 0);
                        policies.accessed(slot(3));
                        policies.accessed(slot(150));
                    }
                    steps += 1;
                    if !policies.step(0, key) {
                        break;
                    }
                }
                assert_eq!(said(&policies, 1), Some(Hint::Keep { until: 50 }));
                assert_eq!(said(&policies, 200), Some(Hint::Release));
                assert_eq!((said(&policies, 3), said(&policies, 150)), (None, None));
            }
        }
    }

    proptest! {
        /// Whatever happens during a change, every block is offered once, and none that is gone.
        #[test]
        fn blocks_come_and_go_during_a_change(
            from in 0..Policy::ALL.len(),
            to in 0..Policy::ALL.len(),
            steps in prop::collection::vec((0u8..5, 1u32..=300), 0..600),
        ) {
            let mut policies = filled(Policy::ALL[from], 1..=150);
            let mut there: BTreeSet<u32> = (1..=150).collect();
            policies.change(Policy::ALL[to].build());
            for (what, number) in steps {
                match what {
                    0 if there.insert(number) => policies.inserted(slot(number), key(slot(number))),
                    1 if there.remove(&number) => {
                        policies.removed(slot(number), key(slot(number)), number % 2 == 0);
                    }
                    2 if there.contains(&number) => policies.accessed(slot(number)),
                    3 if number % 40 == 0 => { policies.step(0, key); }
                    4 => {
                        let named = |n: u32| Named {
                            key: key(slot(n)),
                            slot: there.contains(&n).then(|| slot(n)),
                        };
                        policies.named(&(number..number + 5).map(named).collect::<Vec<_>>());
                    }
                    _ => {}
                }
                if number % 16 == 0 {
                    let offered = order(&mut policies);
                    let distinct: BTreeSet<u32> = offered.iter().copied().collect();
                    prop_assert_eq!(offered.len(), distinct.len());
                    prop_assert_eq!(&distinct, &there);
                }
            }
            while policies.step(0, key) {}
            let offered: BTreeSet<u32> = order(&mut policies).into_iter().collect();
            prop_assert_eq!(offered, there);
        }
    }
}
