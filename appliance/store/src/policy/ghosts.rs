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
        while self.notes.len() > most {
            let (key, number) =
                self.order.pop_front().expect("every note has its place in the order");
            if self.is_current(key, number) {
                self.notes.remove(&key);
            }
        }
        // The order may hold stale entries, but never more than there may be notes: sorting them out
        // now and then costs each note one look or two.
        if self.order.len() > 2 * most.max(1) {
            let mut order = std::mem::take(&mut self.order);
            order.retain(|&(key, number)| self.is_current(key, number));
            self.order = order;
        }
    }

    /// Whether a place in the order is that of a key's last note.
    fn is_current(&self, key: KeyHash, number: u32) -> bool {
        self.notes.get(&key).is_some_and(|(noted, _)| *noted == number)
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
