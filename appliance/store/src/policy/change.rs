//! From one policy to another while blocks come and go.
//!
//! The blocks move over a few at a time, in the order in which the policy before would have let them
//! go: so the one that follows starts with the oldest, as after a restart, and nothing stops for it.
//! Until the last has moved, each block is with one of the two, and it is known with which.
//!
//! What the policy before had learned (odds of chains, ghosts) goes with it.

use super::{EvictionPolicy, KeyHash, Named, Slot};

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

    /// Moves some blocks, whose keys `key` tells; false when none is left to move.
    pub fn step(&mut self, key: impl Fn(Slot) -> KeyHash) -> bool {
        let Some(before) = &mut self.before else { return false };
        let mut next = Vec::with_capacity(STEP);
        before.policy.victims(&mut |slot| {
            next.push(slot);
            next.len() < STEP
        });
        if next.is_empty() {
            self.before = None;
            return false;
        }
        for slot in next {
            before.policy.removed(slot, key(slot), false);
            before.mark(slot);
            self.now.inserted(slot, key(slot));
        }
        true
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
        let Some(before) = &self.before else { return self.now.named(chain) };
        let with_now = |named: &Named| Named {
            slot: named.slot.filter(|&slot| before.has_moved(slot)),
            ..*named
        };
        self.now.named(&chain.iter().map(with_now).collect::<Vec<_>>());
    }

    fn inserted(&mut self, slot: Slot, key: KeyHash) {
        if let Some(before) = &mut self.before {
            before.mark(slot);
        }
        self.now.inserted(slot, key);
    }

    fn restored(&mut self, slot: Slot, key: KeyHash) {
        assert!(self.before.is_none(), "nothing changes before the start is done");
        self.now.restored(slot, key);
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

    /// Those that have not moved yet go first: what came since the change is not among them.
    fn victims(&mut self, take: &mut dyn FnMut(Slot) -> bool) {
        let mut more = true;
        if let Some(before) = &mut self.before {
            before.policy.victims(&mut |slot| {
                more = take(slot);
                more
            });
        }
        if more {
            self.now.victims(take);
        }
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
        policy.victims(&mut |slot| {
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
        while policies.step(key) {
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
        assert!(policies.step(key));
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
        while policies.step(key) {}
        assert_eq!(order(&mut policies)[0], 3, "a chain leaves from its deep end");
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
                    3 if number % 40 == 0 => { policies.step(key); }
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
            while policies.step(key) {}
            let offered: BTreeSet<u32> = order(&mut policies).into_iter().collect();
            prop_assert_eq!(offered, there);
        }
    }
}
