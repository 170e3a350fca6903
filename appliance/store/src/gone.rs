//! Why keys are gone, as far as that is remembered.

use crate::block::{KeyHash, MissReason};
use crate::index::{Pieces, Table};

/// How many removed keys the store remembers the reason of.
const KEPT: usize = 65_536;

/// Reasons of so many keys, the oldest forgotten first.
pub(crate) struct Gone {
    keep: usize,
    /// By number from 1; the oldest is overwritten.
    notes: Pieces<Note>,
    /// Notes by their keys.
    table: Table,
    /// The place of the next note.
    next: usize,
}

#[derive(Clone, Copy)]
struct Note {
    key: KeyHash,
    reason: MissReason,
}

impl Default for Note {
    fn default() -> Self {
        Self { key: KeyHash(0), reason: MissReason::Never }
    }
}

impl Default for Gone {
    fn default() -> Self {
        Self::keeping(KEPT)
    }
}

impl Gone {
    fn keeping(keep: usize) -> Self {
        Self { keep, notes: Pieces::default(), table: Table::default(), next: 0 }
    }

    fn find(&self, key: KeyHash) -> Option<usize> {
        let is = |number: u32| self.notes[number as usize - 1].key == key;
        self.table.get(key, is).map(|number| number as usize - 1)
    }

    /// Why a key is gone, if that is remembered.
    pub fn reason(&self, key: KeyHash) -> Option<MissReason> {
        self.find(key).map(|at| self.notes[at].reason)
    }

    /// Notes why a key is gone.
    pub fn note(&mut self, key: KeyHash, reason: MissReason) {
        if let Some(at) = self.find(key) {
            self.notes[at].reason = reason;
            return;
        }
        let at = self.next;
        self.next = (at + 1) % self.keep;
        if at == self.notes.len() {
            self.notes.push(Note::default());
        } else {
            let oldest = self.notes[at].key;
            assert!(self.table.remove(oldest, at as u32 + 1), "every note can be found");
        }
        self.notes[at] = Note { key, reason };
        let notes = &self.notes;
        self.table.insert(key, at as u32 + 1, |number| notes[number as usize - 1].key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u64) -> KeyHash {
        KeyHash(u128::from(n).wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835))
    }

    #[test]
    fn the_oldest_reasons_are_forgotten_first() {
        let mut gone = Gone::keeping(3);
        for n in 0..3 {
            gone.note(key(n), MissReason::Evicted);
        }
        // Noted again it has a new reason, and no second place.
        gone.note(key(0), MissReason::Deleted);
        assert_eq!(gone.reason(key(0)), Some(MissReason::Deleted));
        gone.note(key(3), MissReason::Corrupt);
        let reasons: Vec<_> = (0..4).map(|n| gone.reason(key(n))).collect();
        let evicted = Some(MissReason::Evicted);
        assert_eq!(reasons, [None, evicted, evicted, Some(MissReason::Corrupt)]);
        for n in 4..1000 {
            gone.note(key(n), MissReason::Evicted);
        }
        let known = (0..1000).filter(|&n| gone.reason(key(n)).is_some());
        assert_eq!(known.collect::<Vec<_>>(), [997, 998, 999]);
    }
}
