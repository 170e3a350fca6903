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
use super::list::{Links, List};
use super::{EvictionPolicy, KeyHash, Slot};

/// Reads that are counted; more make no difference.
const COUNTED: u8 = 3;
/// A block that was read at least this often while it was small becomes main.
const PROMOTED: u8 = 2;
/// The small queue is a share of one in so many.
const SMALL_SHARE: u32 = 10;

/// What it knows of one slot.
#[derive(Clone, Copy, Default)]
struct State {
    reads: u8,
    main: bool,
}

/// S3-FIFO.
#[derive(Default)]
pub struct S3Fifo {
    links: Links,
    states: Vec<State>,
    small: List,
    main: List,
    ghosts: Ghosts<()>,
}

impl S3Fifo {
    fn state(&mut self, number: u32) -> &mut State {
        &mut self.states[number as usize]
    }

    /// Takes the next victim out of its queue; what was read meanwhile moves on instead.
    fn next_victim(&mut self) -> Option<u32> {
        loop {
            let (small, main) = (self.small.len(), self.main.len());
            if small > 0 && (main == 0 || small >= (small + main) / SMALL_SHARE) {
                let number = self.small.take_oldest(&mut self.links);
                if self.state(number).reads < PROMOTED {
                    return Some(number);
                }
                *self.state(number) = State { reads: 0, main: true };
                self.main.push(&mut self.links, number);
            } else if main > 0 {
                let number = self.main.take_oldest(&mut self.links);
                if self.state(number).reads == 0 {
                    return Some(number);
                }
                self.state(number).reads -= 1;
                self.main.push(&mut self.links, number);
            } else {
                return None;
            }
        }
    }
}

impl EvictionPolicy for S3Fifo {
    fn name(&self) -> &'static str {
        "s3-fifo"
    }

    fn inserted(&mut self, slot: Slot, key: KeyHash) {
        let number = slot.number();
        if number as usize >= self.states.len() {
            self.states.resize(number as usize + 1, State::default());
        }
        let main = self.ghosts.take(key).is_some();
        *self.state(number) = State { reads: 0, main };
        let queue = if main { &mut self.main } else { &mut self.small };
        queue.push(&mut self.links, number);
    }

    fn accessed(&mut self, slot: Slot) {
        let state = self.state(slot.number());
        state.reads = (state.reads + 1).min(COUNTED);
    }

    fn removed(&mut self, slot: Slot, key: KeyHash, evicted: bool) {
        let number = slot.number();
        if self.state(number).main {
            self.main.take(&mut self.links, number);
        } else {
            self.small.take(&mut self.links, number);
            if evicted {
                self.ghosts.note(key, (), (self.small.len() + self.main.len()) as usize);
            }
        }
    }

    fn victims(&mut self, take: &mut dyn FnMut(Slot) -> bool) {
        let mut offered = Vec::new();
        while let Some(number) = self.next_victim() {
            offered.push(number);
            if !take(Slot::of(number).expect("queues hold slots")) {
                break;
            }
        }
        // Those that stay are the first to be offered again.
        for number in offered.into_iter().rev() {
            let main = self.state(number).main;
            let queue = if main { &mut self.main } else { &mut self.small };
            queue.push_oldest(&mut self.links, number);
        }
    }
}
