//! Doubly linked lists through one table, for numbers that count from one: slots, runs of slots.
//!
//! Number 0 is nobody. The links of all lists lie together, 8 bytes a number; a number is in one
//! list at most.

use super::paged::Paged;

/// In place of the older neighbour: the number is in no list.
const UNLISTED: u32 = u32::MAX;

/// Links of one number: 8 bytes.
#[derive(Clone, Copy)]
struct Link {
    older: u32,
    newer: u32,
}

impl Default for Link {
    fn default() -> Self {
        Self { older: UNLISTED, newer: 0 }
    }
}

/// The links of all numbers.
#[derive(Default)]
pub struct Links(Paged<Link>);

/// One list: its two ends and its length.
#[derive(Clone, Copy, Default)]
pub struct List {
    oldest: u32,
    newest: u32,
    len: u32,
}

impl Links {
    fn link(&mut self, number: u32) -> &mut Link {
        self.0.get_mut(number)
    }

    /// A number that is in no list, and has its links from now on.
    fn unlisted(&mut self, number: u32) -> &mut Link {
        self.0.reach(number as usize);
        let link = self.link(number);
        assert!(link.older == UNLISTED, "a number is in one list at most");
        link
    }

    /// The links of a number that is in a list.
    fn listed(&mut self, number: u32) -> Option<&mut Link> {
        let known = (number as usize) < self.0.len();
        known.then(|| self.0.get_mut(number)).filter(|link| link.older != UNLISTED)
    }

    /// The number that joined after this one; 0 at the newest.
    pub fn newer(&self, number: u32) -> u32 {
        self.0.get(number).newer
    }

    /// Bytes of memory that they take.
    pub fn bytes(&self) -> usize {
        self.0.bytes()
    }
}

impl List {
    /// How many numbers are in it.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// The number that joined first; 0 when it is empty.
    pub fn oldest(&self) -> u32 {
        self.oldest
    }

    /// The number that joined last; 0 when it is empty.
    pub fn newest(&self) -> u32 {
        self.newest
    }

    /// Adds a number that is in no list.
    pub fn push(&mut self, links: &mut Links, number: u32) {
        *links.unlisted(number) = Link { older: self.newest, newer: 0 };
        match std::mem::replace(&mut self.newest, number) {
            0 => self.oldest = number,
            older => links.link(older).newer = number,
        }
        self.len += 1;
    }

    /// Adds a number that is in no list, as the oldest.
    pub fn push_oldest(&mut self, links: &mut Links, number: u32) {
        *links.unlisted(number) = Link { older: 0, newer: self.oldest };
        match std::mem::replace(&mut self.oldest, number) {
            0 => self.newest = number,
            newer => links.link(newer).older = number,
        }
        self.len += 1;
    }

    /// Takes the oldest out; the list is not empty.
    pub fn take_oldest(&mut self, links: &mut Links) -> u32 {
        let number = self.oldest;
        self.take(links, number);
        number
    }

    /// Takes a number out of this list.
    pub fn take(&mut self, links: &mut Links, number: u32) {
        let link = links.listed(number).map(std::mem::take);
        let link = link.expect("only a listed number is taken out");
        match link.older {
            0 => self.oldest = link.newer,
            older => links.link(older).newer = link.newer,
        }
        match link.newer {
            0 => self.newest = link.older,
            newer => links.link(newer).older = link.older,
        }
        self.len -= 1;
    }

    /// The numbers in it, oldest first.
    pub fn iter<'a>(&self, links: &'a Links) -> impl Iterator<Item = u32> + use<'a> {
        let mut next = self.oldest;
        std::iter::from_fn(move || {
            let number = next;
            if number == 0 {
                return None;
            }
            next = links.newer(number);
            Some(number)
        })
    }
}
