//! Doubly linked lists through one array, for numbers that count from one: slots, runs of slots.
//!
//! Number 0 is nobody. The links of all lists lie together; a number is in one list at most.

/// Links of one number.
#[derive(Clone, Copy, Default)]
struct Link {
    listed: bool,
    older: u32,
    newer: u32,
}

/// The links of all numbers.
#[derive(Default)]
pub struct Links(Vec<Link>);

/// One list: its two ends and its length.
#[derive(Clone, Copy, Default)]
pub struct List {
    oldest: u32,
    newest: u32,
    len: u32,
}

impl Links {
    fn link(&mut self, number: u32) -> &mut Link {
        let index = number as usize;
        if index >= self.0.len() {
            self.0.resize(index + 1, Link::default());
        }
        &mut self.0[index]
    }

    /// The number that joined after this one; 0 at the newest.
    pub fn newer(&self, number: u32) -> u32 {
        self.0[number as usize].newer
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
        assert!(!links.link(number).listed, "a number is in one list at most");
        let older = std::mem::replace(&mut self.newest, number);
        *links.link(number) = Link { listed: true, older, newer: 0 };
        match older {
            0 => self.oldest = number,
            older => links.link(older).newer = number,
        }
        self.len += 1;
    }

    /// Adds a number that is in no list, as the oldest.
    pub fn push_oldest(&mut self, links: &mut Links, number: u32) {
        assert!(!links.link(number).listed, "a number is in one list at most");
        let newer = std::mem::replace(&mut self.oldest, number);
        *links.link(number) = Link { listed: true, older: 0, newer };
        match newer {
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
        let link = std::mem::take(links.link(number));
        assert!(link.listed, "only a listed number is taken out");
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
}
