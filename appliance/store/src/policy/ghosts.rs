//! What a policy remembers of blocks that are gone, or are not there yet: a bounded memory.
//!
//! ```text
//!   key ─► bucket    newest ┌────┬────┬─ ─┬────┐ oldest
//!                           │tag │tag │   │tag │ ─► forgotten when another comes
//!                           │note│note│   │note│
//!                           └────┴────┴─ ─┴────┘ 16 of them
//! ```
//!
//! A tag is 32 bits of the key's hash. Two keys may share one: of ten million that are noted, one
//! stranger in 400 is taken for one of them, and the policy's guess about it is worse. Buckets come
//! one at a time (linear hashing), as they are needed, so that no note takes long. A note that finds
//! its bucket full when there may be no more of them displaces the oldest of the bucket: notes last
//! about as long as in a queue for as many, some less and some more.

use super::KeyHash;
use super::paged::Paged;

/// Notes of one bucket.
const BUCKET: usize = 16;
/// In place of a tag: nothing is noted here.
const NO_TAG: u32 = 0;

/// Notes about keys. A key that is noted again counts from then on.
pub struct Ghosts<T> {
    /// Newest first; what is free comes after all others.
    tags: Paged<[u32; BUCKET]>,
    notes: Paged<[T; BUCKET]>,
    /// There are this power of two of buckets,
    level: u32,
    /// and so many of them have been split in two since.
    split: usize,
}

impl<T: Copy + Default> Default for Ghosts<T> {
    fn default() -> Self {
        let mut ghosts =
            Self { tags: Paged::default(), notes: Paged::default(), level: 0, split: 0 };
        ghosts.tags.reach(0);
        ghosts.notes.reach(0);
        ghosts
    }
}

fn tag(key: KeyHash) -> u32 {
    let mixed = (key.0 as u64 ^ (key.0 >> 64) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    ((mixed >> 32) as u32).max(NO_TAG + 1)
}

impl<T: Copy + Default> Ghosts<T> {
    /// Notes something about a key; there is place for about `most` notes, and for a bucket at
    /// least.
    pub fn note(&mut self, key: KeyHash, note: T, most: usize) {
        let tag = tag(key);
        self.take(key);
        while self.is_full(self.bucket(tag)) && self.tags.len() * BUCKET < most {
            self.split_one();
        }
        let bucket = self.bucket(tag);
        let tags = self.tags.get_mut(bucket);
        tags.rotate_right(1);
        tags[0] = tag;
        let notes = self.notes.get_mut(bucket);
        notes.rotate_right(1);
        notes[0] = note;
    }

    /// What is known of a key.
    pub fn get(&self, key: KeyHash) -> Option<&T> {
        self.find(key).map(|(bucket, place)| &self.notes.get(bucket)[place])
    }

    /// Forgets a key, and answers what was known of it.
    pub fn take(&mut self, key: KeyHash) -> Option<T> {
        let (bucket, place) = self.find(key)?;
        let tags = self.tags.get_mut(bucket);
        tags[place..].rotate_left(1);
        tags[BUCKET - 1] = NO_TAG;
        let notes = self.notes.get_mut(bucket);
        let note = notes[place];
        notes[place..].rotate_left(1);
        Some(note)
    }

    /// Bytes of memory that it takes.
    pub fn bytes(&self) -> usize {
        self.tags.bytes() + self.notes.bytes()
    }

    fn bucket(&self, tag: u32) -> u32 {
        let low = tag & ((1 << self.level) - 1);
        if (low as usize) < self.split { tag & ((2 << self.level) - 1) } else { low }
    }

    fn is_full(&self, bucket: u32) -> bool {
        self.tags.get(bucket)[BUCKET - 1] != NO_TAG
    }

    /// Where a key is noted: its bucket and its place there.
    fn find(&self, key: KeyHash) -> Option<(u32, usize)> {
        let tag = tag(key);
        let bucket = self.bucket(tag);
        let place = self.tags.get(bucket).iter().position(|&noted| noted == tag)?;
        Some((bucket, place))
    }

    /// Deals the notes of the next bucket out to it and a new one.
    fn split_one(&mut self) {
        let old = self.split as u32;
        let new = self.tags.len() as u32;
        self.tags.reach(new as usize);
        self.notes.reach(new as usize);
        self.split += 1;
        let tags = std::mem::replace(self.tags.get_mut(old), [NO_TAG; BUCKET]);
        let notes = *self.notes.get(old);
        let mut filled = [0; 2];
        for (tag, note) in tags.into_iter().zip(notes).filter(|(tag, _)| *tag != NO_TAG) {
            let bucket = self.bucket(tag);
            assert!(bucket == old || bucket == new, "a bucket is split in two");
            let place = &mut filled[usize::from(bucket == new)];
            self.tags.get_mut(bucket)[*place] = tag;
            self.notes.get_mut(bucket)[*place] = note;
            *place += 1;
        }
        if self.split == 1 << self.level {
            (self.level, self.split) = (self.level + 1, 0);
        }
    }
}
