//! Outcomes of recent requests, so that a retry is answered and not applied twice.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use memkv_poller::Instant;

/// Who asks: the client's id (the same over all its connections), its request id and the item.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
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

/// A bounded memory of outcomes, oldest forgotten first.
pub(crate) struct Remembered {
    keep: Duration,
    max: usize,
    outcomes: HashMap<Caller, Outcome>,
    order: VecDeque<(Instant, Caller)>,
}

impl Remembered {
    pub fn new(keep: Duration, max: usize) -> Self {
        Self { keep, max, outcomes: HashMap::new(), order: VecDeque::new() }
    }

    pub fn get(&self, caller: &Caller) -> Option<Outcome> {
        self.outcomes.get(caller).copied()
    }

    pub fn insert(&mut self, now: Instant, caller: Caller, outcome: Outcome) {
        while let Some(&(since, oldest)) = self.order.front() {
            let stale = now.saturating_duration_since(since) > self.keep;
            if !stale && self.order.len() < self.max {
                break;
            }
            self.order.pop_front();
            self.outcomes.remove(&oldest);
        }
        if self.outcomes.insert(caller, outcome).is_none() {
            self.order.push_back((now, caller));
        }
    }
}
