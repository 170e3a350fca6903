//! Puts that were refused for lack of space, until room is made for them.
//!
//! They come again, each by itself. Were room made for the largest of them alone, the others would be refused
//! again, and so on, a pause for each.

use std::collections::BTreeMap;

use memkv_poller::spare::Row;

use crate::KeyHash;

/// Puts that are remembered at most.
const PUTS: usize = 64;

/// Lengths of payloads, by the keys that they were to be stored under: one that is refused again counts once.
#[derive(Default)]
pub(crate) struct Wanting(BTreeMap<KeyHash, u64>);

impl Wanting {
    /// A put was refused that wants `length` bytes. Together they want at most `most`, or what the largest of
    /// them wants alone: others are forgotten, and wait once more.
    pub fn add(&mut self, key: KeyHash, length: u64, most: u64) {
        self.0.insert(key, length);
        if self.0.len() > PUTS || self.0.values().sum::<u64>() > most {
            let largest = self.0.iter().max_by_key(|(_, length)| **length);
            let (&key, &length) = largest.expect("one was just added");
            self.0.clear();
            self.0.insert(key, length);
        }
    }

    /// What they want, the largest first.
    pub fn lengths(&self) -> Row<u64> {
        let mut lengths: Row<u64> = self.0.values().copied().collect();
        lengths.sort_unstable_by(|one, other| other.cmp(one));
        lengths
    }

    /// There is room for all, or none can be made.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_count_once_as_far_as_they_are_few() {
        let mut wanting = Wanting::default();
        assert!(wanting.lengths().is_empty());
        for (key, length) in [(1, 10), (2, 30), (1, 20), (3, 5)] {
            wanting.add(KeyHash(key), length, 100);
        }
        assert_eq!(*wanting.lengths(), [30, 20, 5]);
        // Too much together: the largest alone.
        wanting.add(KeyHash(4), 46, 100);
        assert_eq!(*wanting.lengths(), [46]);
        wanting.add(KeyHash(5), 500, 100);
        assert_eq!(*wanting.lengths(), [500]);
        wanting.add(KeyHash(6), 1, 100);
        assert_eq!(*wanting.lengths(), [500]);
        wanting.clear();
        (0..PUTS as u128).for_each(|key| wanting.add(KeyHash(key), 1, 100));
        assert_eq!(wanting.lengths().len(), PUTS);
        wanting.add(KeyHash(PUTS as u128), 1, 100);
        assert_eq!(wanting.lengths().len(), 1);
    }
}
