//! What a policy remembers of blocks that are gone: a bounded memory, the oldest forgotten first.

use std::collections::VecDeque;

use super::KeyHash;
use crate::store::HashTable;

/// Notes about keys. A key that is noted again counts from then on.
pub struct Ghosts<T> {
    notes: HashTable<(u32, T)>,
    /// In the order of the notes; what was forgotten or noted again since is skipped.
    order: VecDeque<(KeyHash, u32)>,
    next: u32,
}

impl<T> Default for Ghosts<T> {
    fn default() -> Self {
        Self { notes: HashTable::default(), order: VecDeque::new(), next: 0 }
    }
}

impl<T> Ghosts<T> {
    /// Notes something about a key, and forgets the oldest notes beyond `most`.
    pub fn note(&mut self, key: KeyHash, note: T, most: usize) {
        self.next = self.next.wrapping_add(1);
        self.notes.insert(key, (self.next, note));
        self.order.push_back((key, self.next));
        // The order may hold stale entries, but never more than there may be notes.
        while self.notes.len() > most || self.order.len() > 2 * most.max(1) {
            let Some((key, number)) = self.order.pop_front() else { return };
            if self.notes.get(&key).is_some_and(|(noted, _)| *noted == number) {
                self.notes.remove(&key);
            }
        }
    }

    /// What is known of a key.
    pub fn get(&self, key: KeyHash) -> Option<&T> {
        self.notes.get(&key).map(|(_, note)| note)
    }

    /// Forgets a key, and answers what was known of it.
    pub fn take(&mut self, key: KeyHash) -> Option<T> {
        self.notes.remove(&key).map(|(_, note)| note)
    }

    /// How many keys are known.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.notes.len()
    }
}
