//! Outcomes of recent requests, so that a retry is answered and not applied twice.
//!
//! A retry names the same request *and the same key*: whoever reuses a request id, or another
//! client's id, never gets the answer to another key for an outcome of his own.

use std::time::Duration;

use memkv_poller::Instant;

use crate::KeyHash;
use crate::index::{Idle, Pool, Table};

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

/// A bounded memory of outcomes, oldest forgotten first: notes that name the next one, and a table by
/// caller and key. No part is ever moved because there are more (a hash table of all outcomes takes
/// milliseconds to grow), and what one outcome leaves another takes.
pub(crate) struct Remembered {
    keep: Duration,
    max: usize,
    notes: Pool<Note>,
    table: Table,
    /// The oldest note and the newest, 0 for none.
    oldest: u32,
    newest: u32,
}

#[derive(Clone, Copy)]
struct Note {
    since: Instant,
    caller: Caller,
    key: KeyHash,
    outcome: Outcome,
    /// The note after it, 0 for none.
    next: u32,
}

impl Default for Note {
    fn default() -> Self {
        let caller = Caller { client: 0, request: 0, item: 0 };
        let outcome = Outcome::Stored { generation: 0 };
        Self { since: Instant::from_nanos(0), caller, key: KeyHash(0), outcome, next: 0 }
    }
}

impl Idle for Note {
    fn next(&self) -> u32 {
        self.next
    }

    fn idle(next: u32) -> Self {
        Self { next, ..Self::default() }
    }
}

/// Where an outcome stands in the table. Keys are spread evenly, and by a secret; what a caller says of
/// himself is mixed in, so that the outcomes of one key are spread, too.
fn place_of(caller: &Caller, key: KeyHash) -> KeyHash {
    const ODD: u128 = 0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835;
    let request = u128::from(caller.request) << 32 | u128::from(caller.item);
    let said = (caller.client ^ request.wrapping_mul(ODD)).wrapping_mul(ODD);
    KeyHash(key.0 ^ said ^ said >> 64)
}

impl Remembered {
    pub fn new(keep: Duration, max: usize) -> Self {
        let (notes, table) = (Pool::default(), Table::default());
        Self { keep, max, notes, table, oldest: 0, newest: 0 }
    }

    fn find(&self, caller: &Caller, key: KeyHash) -> Option<u32> {
        let is = |number: u32| {
            let note = &self.notes[number];
            note.key == key && note.caller == *caller
        };
        self.table.get(place_of(caller, key), is)
    }

    /// How many outcomes it remembers.
    fn len(&self) -> usize {
        self.table.len()
    }

    pub fn get(&self, caller: &Caller, key: KeyHash) -> Option<Outcome> {
        self.find(caller, key).map(|number| self.notes[number].outcome)
    }

    pub fn insert(&mut self, now: Instant, caller: Caller, key: KeyHash, outcome: Outcome) {
        for _ in 0..FORGOTTEN {
            if self.oldest == 0 {
                break;
            }
            let since = self.notes[self.oldest].since;
            let stale = now.saturating_duration_since(since) > self.keep;
            if !stale && self.len() < self.max {
                break;
            }
            self.forget_oldest();
        }
        match self.find(&caller, key) {
            Some(number) => self.notes[number].outcome = outcome,
            None => self.add(Note { since: now, caller, key, outcome, next: 0 }),
        }
    }

    fn forget_oldest(&mut self) {
        let Note { caller, key, next, .. } = self.notes[self.oldest];
        let known = self.table.remove(place_of(&caller, key), self.oldest);
        assert!(known, "every outcome can be found");
        self.notes.remove(self.oldest);
        self.oldest = next;
        if next == 0 {
            self.newest = 0;
        }
    }

    fn add(&mut self, note: Note) {
        let place = place_of(&note.caller, note.key);
        let number = self.notes.insert(note);
        match self.newest {
            0 => self.oldest = number,
            newest => self.notes[newest].next = number,
        }
        self.newest = number;
        let notes = &self.notes;
        let place_at = |number: u32| place_of(&notes[number].caller, notes[number].key);
        self.table.insert(place, number, place_at);
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
        assert_eq!(remembered.len(), 3);
        // The same request once more takes no second place.
        remembered.insert(at(5), caller(4), KEY, stored(9));
        assert_eq!(remembered.get(&caller(4), KEY), Some(stored(9)));
    }

    #[test]
    fn outcomes_are_forgotten_after_their_time() {
        let mut remembered = Remembered::new(Duration::from_secs(60), 1000);
        remembered.insert(at(0), caller(0), KEY, stored(1));
        remembered.insert(at(60), caller(1), KEY, stored(2));
        assert!(remembered.get(&caller(0), KEY).is_some(), "a minute is not over");
        remembered.insert(at(61), caller(2), KEY, stored(3));
        assert_eq!(remembered.get(&caller(0), KEY), None);
        assert_eq!(remembered.len(), 2);
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
            assert_eq!(remembered.len(), left.max(nth + 1), "after {nth}");
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
