//! What engines said about blocks, for policies that keep blocks in lists.
//!
//! Blocks that were released are in one list and go before all others. Blocks that are kept are in
//! lists by the second at which that ends, and go after all others, soonest first. So a hint costs
//! no more than a move from one list to another, and no victim is looked for among those that are
//! kept while there are others.

use std::collections::BTreeMap;

use super::Hint;
use super::list::{Links, List};

/// A number's list: none, that of the released, or which of those that are kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Held {
    /// No hint is in force.
    #[default]
    No,
    /// It goes first.
    Released,
    /// It goes last: in the list of this number.
    Kept(u32),
}

impl Held {
    /// Bits that its number takes.
    pub const BITS: u32 = 21;
    /// The most lists of those that are kept.
    const LISTS: u32 = (1 << Self::BITS) - 2;

    /// As a number below 2^[`Held::BITS`].
    pub fn raw(self) -> u32 {
        match self {
            Held::No => 0,
            Held::Released => 1,
            Held::Kept(list) => list + 2,
        }
    }

    /// Back from [`Held::raw`].
    pub fn of(raw: u32) -> Held {
        match raw {
            0 => Held::No,
            1 => Held::Released,
            list => Held::Kept(list - 2),
        }
    }
}

/// Numbers that are kept until some second.
#[derive(Clone, Copy, Default)]
struct Kept {
    until: u32,
    list: List,
}

/// The lists of hinted numbers.
#[derive(Default)]
pub struct Holds {
    released: List,
    kept: Vec<Kept>,
    free: Vec<u32>,
    by_time: BTreeMap<u32, u32>,
}

impl Holds {
    /// A number that is in no list goes first.
    pub fn release(&mut self, links: &mut Links, number: u32) -> Held {
        self.released.push(links, number);
        Held::Released
    }

    /// A number that is in no list is kept until some second.
    pub fn keep(&mut self, links: &mut Links, number: u32, until: u32) -> Held {
        let list = match self.by_time.get(&until) {
            Some(&list) => list,
            None => {
                let list = self.free.pop().unwrap_or_else(|| {
                    self.kept.push(Kept::default());
                    self.kept.len() as u32 - 1
                });
                assert!(list < Held::LISTS, "no time is so far off");
                self.kept[list as usize].until = until;
                self.by_time.insert(until, list);
                list
            }
        };
        self.kept[list as usize].list.push(links, number);
        Held::Kept(list)
    }

    /// The number that was released last; 0 when none is.
    pub fn newest_released(&self) -> u32 {
        self.released.newest()
    }

    /// The number of those kept until some second that came last; 0 when none is.
    pub fn newest_kept(&self, until: u32) -> u32 {
        self.by_time.get(&until).map_or(0, |&list| self.kept[list as usize].list.newest())
    }

    /// Until when the numbers of a list are kept.
    pub fn until(&self, list: u32) -> u32 {
        self.kept[list as usize].until
    }

    /// The hint that is in force.
    pub fn hint(&self, held: Held) -> Option<Hint> {
        match held {
            Held::No => None,
            Held::Released => Some(Hint::Release),
            Held::Kept(list) => Some(Hint::Keep { until: self.until(list) }),
        }
    }

    /// Takes a number out of its list; it must be in one.
    pub fn take(&mut self, links: &mut Links, number: u32, held: Held) {
        match held {
            Held::No => unreachable!("only a hinted number is in a list of hints"),
            Held::Released => self.released.take(links, number),
            Held::Kept(list) => {
                let kept = &mut self.kept[list as usize];
                kept.list.take(links, number);
                if kept.list.len() == 0 {
                    self.by_time.remove(&kept.until);
                    self.free.push(list);
                }
            }
        }
    }

    /// Takes out a number whose time is over, if there is one.
    pub fn take_ended(&mut self, links: &mut Links, now: u32) -> Option<u32> {
        let (&until, &list) = self.by_time.first_key_value()?;
        if until > now {
            return None;
        }
        let number = self.kept[list as usize].list.oldest();
        self.take(links, number, Held::Kept(list));
        Some(number)
    }

    /// Those that go first.
    pub fn released<'a>(&self, links: &'a Links) -> impl Iterator<Item = u32> + use<'a> {
        self.released.iter(links)
    }

    /// Those that go last, in their order.
    pub fn kept<'a>(&'a self, links: &'a Links) -> impl Iterator<Item = u32> + use<'a> {
        self.by_time.values().flat_map(|&list| self.kept[list as usize].list.iter(links))
    }
}
