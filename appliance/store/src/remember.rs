//! Outcomes of recent requests, so that a retry is answered and not applied twice.
//!
//! A retry names the same request *and the same key*: whoever reuses a request id, or another
//! client's id, never gets the answer to another key for an outcome of his own.

use std::collections::{BTreeMap, LinkedList};
use std::time::Duration;

use memkv_poller::Instant;

use crate::KeyHash;

/// Who asks: the client's id (the same over all its connections), its request id and the item.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Caller {
    /// The 128-bit id of the client process.
    pub client: u128,
    /// The request id it chose; a retry carries the same one.
    pub request: u64,
    /// The item within the request.
    pub item: u32,
}

/// What a remembered request came to.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The put was stored under this generation.
    Stored {
        /// Its generation.
        generation: u64,
    },
    /// The delete removed this generation.
    Deleted {
        /// The generation that was removed.
        generation: u64,
    },
}

/// Outcomes that are forgotten in one turn, at most: some more than come in.
const FORGOTTEN: usize = 8;

/// A bounded memory of outcomes, oldest forgotten first. A tree and a list, of which no part is ever
/// moved because there are more: a hash table of all outcomes takes milliseconds to grow.
pub(crate) struct Remembered {
    keep: Duration,
    max: usize,
    outcomes: BTreeMap<(Caller, KeyHash), Outcome>,
    order: LinkedList<(Instant, Caller, KeyHash)>,
}

impl Remembered {
    pub fn new(keep: Duration, max: usize) -> Self {
        Self { keep, max, outcomes: BTreeMap::new(), order: LinkedList::new() }
    }

    pub fn get(&self, caller: &Caller, key: KeyHash) -> Option<Outcome> {
        self.outcomes.get(&(*caller, key)).copied()
    }

    pub fn insert(&mut self, now: Instant, caller: Caller, key: KeyHash, outcome: Outcome) {
        for _ in 0..FORGOTTEN {
            let Some(&(since, oldest, of)) = self.order.front() else { break };
            let stale = now.saturating_duration_since(since) > self.keep;
            if !stale && self.order.len() < self.max {
                break;
            }
            self.order.pop_front();
            self.outcomes.remove(&(oldest, of));
        }
        if self.outcomes.insert((caller, key), outcome).is_none() {
            self.order.push_back((now, caller, key));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(request: u64) -> Caller {
        Caller { client: 1, request, item: 0 }
    }

    fn at(seconds: u64) -> Instant {
        Instant::from_nanos(seconds * 1_000_000_000)
    }

    const KEY: KeyHash = KeyHash(7);

    fn stored(generation: u64) -> Outcome {
        Outcome::Stored { generation }
    }

    #[test]
    fn it_holds_no_more_than_it_may_and_forgets_the_oldest_first() {
        let mut remembered = Remembered::new(Duration::from_secs(60), 3);
        for request in 0..5 {
            remembered.insert(at(request), caller(request), KEY, stored(request));
        }
        let known: Vec<_> = (0..5).map(|n| remembered.get(&caller(n), KEY)).collect();
        assert_eq!(known, [None, None, Some(stored(2)), Some(stored(3)), Some(stored(4))]);
        assert_eq!((remembered.outcomes.len(), remembered.order.len()), (3, 3));
        // The same request once more takes no second place.
        remembered.insert(at(5), caller(4), KEY, stored(9));
        assert_eq!(remembered.get(&caller(4), KEY), Some(stored(9)));
        assert_eq!(remembered.outcomes.len(), remembered.order.len());
    }

    #[test]
    fn outcomes_are_forgotten_after_their_time() {
        let mut remembered = Remembered::new(Duration::from_secs(60), 1000);
        remembered.insert(at(0), caller(0), KEY, stored(1));
        remembered.insert(at(60), caller(1), KEY, stored(2));
        assert!(remembered.get(&caller(0), KEY).is_some(), "a minute is not over");
        remembered.insert(at(61), caller(2), KEY, stored(3));
        assert_eq!(remembered.get(&caller(0), KEY), None);
        assert_eq!(remembered.outcomes.len(), 2);
    }

    #[test]
    fn many_that_are_stale_are_forgotten_a_few_at_a_time() {
        let mut remembered = Remembered::new(Duration::from_secs(60), 1000);
        for request in 0..1000 {
            remembered.insert(at(0), caller(request), KEY, stored(request));
        }
        for (nth, request) in (1000..1200).enumerate() {
            remembered.insert(at(100), caller(request), KEY, stored(request));
            let left = 1000usize.saturating_sub((nth + 1) * (FORGOTTEN - 1));
            assert_eq!(remembered.outcomes.len(), left.max(nth + 1), "after {nth}");
            assert_eq!(remembered.outcomes.len(), remembered.order.len());
        }
        assert_eq!(remembered.get(&caller(999), KEY), None);
    }

    #[test]
    fn an_outcome_is_that_of_its_request_its_item_and_its_key() {
        let mut remembered = Remembered::new(Duration::from_secs(60), 1000);
        remembered.insert(at(0), caller(1), KEY, stored(1));
        assert_eq!(remembered.get(&caller(1), KeyHash(8)), None);
        assert_eq!(remembered.get(&Caller { item: 1, ..caller(1) }, KEY), None);
        assert_eq!(remembered.get(&Caller { client: 2, ..caller(1) }, KEY), None);
    }
}
