//! Least recently used.

use super::holds::{Held, Holds};
use super::list::{Links, List};
use super::paged::Paged;
use super::{ENDED_AT_ONCE, EvictionPolicy, Hint, KeyHash, Rank, Slot};

/// Which list a block is in: [`Held`] in 3 bytes.
#[derive(Clone, Copy, Default)]
struct State([u8; 3]);

impl State {
    fn held(self) -> Held {
        let [a, b, c] = self.0;
        Held::of(u32::from_le_bytes([a, b, c, 0]))
    }

    fn of(held: Held) -> Self {
        let [a, b, c, _] = held.raw().to_le_bytes();
        Self([a, b, c])
    }
}

/// Least recently used: one list, oldest first; and those of hints. 11 bytes a block.
#[derive(Default)]
pub struct Lru {
    links: Links,
    states: Paged<State>,
    list: List,
    holds: Holds,
}

impl Lru {
    /// Takes a block out of whichever list it is in.
    fn unlist(&mut self, number: u32) {
        let state = self.states.get_mut(number);
        match std::mem::take(state).held() {
            Held::No => self.list.take(&mut self.links, number),
            held => self.holds.take(&mut self.links, number, held),
        }
    }

    /// Blocks whose time is over become ordinary ones, as if they were read now.
    fn end_some_holds(&mut self, now: u32, most: usize) {
        for _ in 0..most {
            let Some(number) = self.holds.take_ended(&mut self.links, now) else { return };
            *self.states.get_mut(number) = State::default();
            self.list.push(&mut self.links, number);
        }
    }
}

impl EvictionPolicy for Lru {
    fn name(&self) -> &'static str {
        "lru"
    }

    fn inserted(&mut self, slot: Slot, _key: KeyHash) {
        self.states.reach(slot.number() as usize);
        *self.states.get_mut(slot.number()) = State::default();
        self.list.push(&mut self.links, slot.number());
    }

    fn accessed(&mut self, slot: Slot) {
        let number = slot.number();
        let kept = matches!(self.states.get(number).held(), Held::Kept(_));
        if !kept && self.list.newest() != number {
            self.unlist(number);
            self.list.push(&mut self.links, number);
        }
    }

    fn hinted(&mut self, chain: &[Slot], hint: Hint, now: u32) {
        self.end_some_holds(now, ENDED_AT_ONCE + chain.len());
        // What is deeper goes first.
        for slot in chain.iter().rev() {
            let number = slot.number();
            let held = match hint {
                Hint::Release => {
                    self.unlist(number);
                    self.holds.release(&mut self.links, number)
                }
                Hint::Keep { until } => {
                    let until = match self.states.get(number).held() {
                        Held::Kept(list) => until.max(self.holds.until(list)),
                        _ => until,
                    };
                    self.unlist(number);
                    self.holds.keep(&mut self.links, number, until)
                }
            };
            *self.states.get_mut(number) = State::of(held);
        }
    }

    fn removed(&mut self, slot: Slot, _key: KeyHash, _evicted: bool) {
        self.states.reach(slot.number() as usize);
        self.unlist(slot.number());
    }

    fn hint_of(&self, slot: Slot) -> Option<Hint> {
        self.holds.hint(self.states.get(slot.number()).held())
    }

    fn end_holds(&mut self, now: u32) {
        self.end_some_holds(now, ENDED_AT_ONCE);
    }

    fn offer(&mut self, rank: Rank, take: &mut dyn FnMut(Slot) -> bool) -> bool {
        let mut take = |number| take(Slot::of(number).expect("lists hold slots"));
        match rank {
            Rank::Released => self.holds.released(&self.links).all(&mut take),
            Rank::Ordinary => self.list.iter(&self.links).all(&mut take),
            Rank::Kept => self.holds.kept(&self.links).all(&mut take),
        }
    }

    fn memory(&self) -> usize {
        self.links.bytes() + self.states.bytes()
    }

    fn memory_of_ghosts(&self) -> usize {
        0
    }
}
