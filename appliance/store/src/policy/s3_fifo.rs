//! S3-FIFO: three queues that are only ever read at one end (Yang and others, "FIFO queues are all
//! you need for cache eviction", SOSP 2023).
//!
//! ```text
//!   new ──► small, a tenth ──► read again meanwhile? ── yes ──► main ──► read again? ─ yes ┐
//!                                    │ no                        ▲            │ no         │
//!                                    ▼                           └────────────┼────────────┘
//!                               ghost: the key alone; put again              gone
//!                               while remembered, it goes to main
//! ```
//!
//! A block that is used once leaves through the small queue and does not push out what is used
//! often: a scan costs a tenth of the space.

use super::ghosts::Ghosts;
use super::holds::{Held, Holds};
use super::list::{Links, List};
use super::paged::Paged;
use super::{ENDED_AT_ONCE, EvictionPolicy, Hint, KeyHash, Rank, Slot};

/// Reads that are counted; more make no difference.
const COUNTED: u8 = 3;
/// A block that was read at least this often while it was small becomes main.
const PROMOTED: u8 = 2;
/// The small queue is a share of one in so many.
const SMALL_SHARE: u32 = 10;
/// As many keys are remembered as there are blocks, and so many at least.
const GHOSTS_MIN: usize = 512;
/// They are forgotten in the order in which they came, so many together: a chain of which some
/// blocks are remembered and others are not would be torn.
const GHOST_STEP: usize = 256;
/// There is place for so many times as many, so that nearly all last until then.
const GHOST_PLACES: usize = 2;

/// What it knows of one slot, in 3 bytes: [`Held`], above it 2 bits of reads and whether it is main.
#[derive(Clone, Copy, Default)]
struct State([u8; 3]);

impl State {
    const READS: u32 = Held::BITS;
    const MAIN: u32 = Held::BITS + 2;

    fn of(held: Held, reads: u8, main: bool) -> Self {
        let raw = held.raw() | u32::from(reads) << Self::READS | u32::from(main) << Self::MAIN;
        let [a, b, c, _] = raw.to_le_bytes();
        Self([a, b, c])
    }

    fn raw(self) -> u32 {
        let [a, b, c] = self.0;
        u32::from_le_bytes([a, b, c, 0])
    }

    fn held(self) -> Held {
        Held::of(self.raw() & ((1 << Held::BITS) - 1))
    }

    fn reads(self) -> u8 {
        (self.raw() >> Self::READS & 3) as u8
    }

    fn is_main(self) -> bool {
        self.raw() >> Self::MAIN == 1
    }
}

/// S3-FIFO. 11 bytes a block, and 12 bytes for each key that is remembered: as many as there are
/// blocks.
#[derive(Default)]
pub struct S3Fifo {
    links: Links,
    states: Paged<State>,
    small: List,
    main: List,
    holds: Holds,
    /// The step in which each was noted.
    ghosts: Ghosts<u16>,
    noted: usize,
}

impl S3Fifo {
    fn state(&self, number: u32) -> State {
        *self.states.get(number)
    }

    fn set(&mut self, number: u32, state: State) {
        *self.states.get_mut(number) = state;
    }

    fn queue(&mut self, main: bool) -> (&mut List, &mut Links) {
        (if main { &mut self.main } else { &mut self.small }, &mut self.links)
    }

    /// Takes a block out of whichever list it is in.
    fn unlist(&mut self, number: u32) {
        let state = self.state(number);
        match state.held() {
            Held::No => {
                let (queue, links) = self.queue(state.is_main());
                queue.take(links, number);
            }
            held => self.holds.take(&mut self.links, number, held),
        }
    }

    /// Blocks whose time is over become ordinary ones, the last of their queue.
    fn end_some_holds(&mut self, now: u32, most: usize) {
        for _ in 0..most {
            let Some(number) = self.holds.take_ended(&mut self.links, now) else { return };
            let state = self.state(number);
            self.set(number, State::of(Held::No, state.reads(), state.is_main()));
            let (queue, links) = self.queue(state.is_main());
            queue.push(links, number);
        }
    }

    fn ghosts_most(&self) -> usize {
        ((self.small.len() + self.main.len()) as usize).max(GHOSTS_MIN)
    }

    /// Takes the next victim out of its queue; what was read meanwhile moves on instead.
    fn next_victim(&mut self) -> Option<u32> {
        loop {
            let (small, main) = (self.small.len(), self.main.len());
            if small > 0 && (main == 0 || small >= (small + main) / SMALL_SHARE) {
                let number = self.small.take_oldest(&mut self.links);
                if self.state(number).reads() < PROMOTED {
                    return Some(number);
                }
                self.set(number, State::of(Held::No, 0, true));
                self.main.push(&mut self.links, number);
            } else if main > 0 {
                let number = self.main.take_oldest(&mut self.links);
                let reads = self.state(number).reads();
                if reads == 0 {
                    return Some(number);
                }
                self.set(number, State::of(Held::No, reads - 1, true));
                self.main.push(&mut self.links, number);
            } else {
                return None;
            }
        }
    }

    /// Offers what is neither released nor kept; says whether more is wanted.
    fn offer_queues(&mut self, take: &mut dyn FnMut(Slot) -> bool) -> bool {
        let mut offered = Vec::new();
        let mut more = true;
        while more && let Some(number) = self.next_victim() {
            offered.push(number);
            more = take(Slot::of(number).expect("queues hold slots"));
        }
        // Those that stay are the first to be offered again.
        for number in offered.into_iter().rev() {
            let main = self.state(number).is_main();
            let (queue, links) = self.queue(main);
            queue.push_oldest(links, number);
        }
        more
    }
}

impl EvictionPolicy for S3Fifo {
    fn name(&self) -> &'static str {
        "s3-fifo"
    }

    fn inserted(&mut self, slot: Slot, key: KeyHash) {
        let number = slot.number();
        self.states.reach(number as usize);
        let (step, most) = (self.noted / GHOST_STEP, self.ghosts_most() / GHOST_STEP);
        let recent = |noted| usize::from((step as u16).wrapping_sub(noted)) <= most;
        let main = self.ghosts.take(key).is_some_and(recent);
        self.set(number, State::of(Held::No, 0, main));
        let (queue, links) = self.queue(main);
        queue.push(links, number);
    }

    fn accessed(&mut self, slot: Slot) {
        let number = slot.number();
        let state = self.state(number);
        let mut held = state.held();
        if held == Held::Released {
            self.unlist(number);
            held = Held::No;
            let (queue, links) = self.queue(state.is_main());
            queue.push(links, number);
        }
        let reads = (state.reads() + 1).min(COUNTED);
        self.set(number, State::of(held, reads, state.is_main()));
    }

    fn hinted(&mut self, chain: &[Slot], hint: Hint, now: u32) {
        self.end_some_holds(now, ENDED_AT_ONCE + chain.len());
        // What is deeper goes first.
        for slot in chain.iter().rev() {
            let number = slot.number();
            let state = self.state(number);
            self.unlist(number);
            let held = match (hint, state.held()) {
                (Hint::Release, _) => self.holds.release(&mut self.links, number),
                (Hint::Keep { until }, before) => {
                    let until = match before {
                        Held::Kept(list) => until.max(self.holds.until(list)),
                        _ => until,
                    };
                    self.holds.keep(&mut self.links, number, until)
                }
            };
            self.set(number, State::of(held, state.reads(), state.is_main()));
        }
    }

    fn removed(&mut self, slot: Slot, key: KeyHash, evicted: bool) {
        let number = slot.number();
        self.unlist(number);
        let state = self.state(number);
        if evicted && !state.is_main() && state.held() == Held::No {
            let step = (self.noted / GHOST_STEP) as u16;
            self.noted += 1;
            self.ghosts.note(key, step, self.ghosts_most() * GHOST_PLACES);
        }
    }

    fn hint_of(&self, slot: Slot) -> Option<Hint> {
        self.holds.hint(self.state(slot.number()).held())
    }

    fn end_holds(&mut self, now: u32) {
        self.end_some_holds(now, ENDED_AT_ONCE);
    }

    fn offer(&mut self, rank: Rank, take: &mut dyn FnMut(Slot) -> bool) -> bool {
        let mut offer = |number| take(Slot::of(number).expect("lists hold slots"));
        match rank {
            Rank::Released => self.holds.released(&self.links).all(&mut offer),
            Rank::Ordinary => self.offer_queues(take),
            Rank::Kept => self.holds.kept(&self.links).all(&mut offer),
        }
    }

    fn memory(&self) -> usize {
        self.links.bytes() + self.states.bytes()
    }

    fn memory_of_ghosts(&self) -> usize {
        self.ghosts.bytes()
    }
}
