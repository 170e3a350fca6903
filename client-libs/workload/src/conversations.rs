//! Makes up conversations between people and a model, as a chat service sees them.
//!
//! A conversation opens with one of a few system prompts, shared by many conversations, and goes on
//! in turns. Each turn sends the whole conversation so far, the last answer included, and adds a new
//! question: so its first blocks are those of the turn before it, which is what a KV cache lives on.
//!
//! ```text
//! turn 1   [system ......][question 1]
//! turn 2   [system ......][question 1][answer 1][question 2]
//! turn 3   [system ......][question 1][answer 1][question 2][answer 2][question 3]
//! ```
//!
//! Everything follows from the seed: the same options make the same requests, in the same order, in
//! the shape that a trace has.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::RangeInclusive;
use std::time::Duration;

use fastrand::Rng;

use crate::block::{BlockHash, mix};
use crate::trace::{Request, TOKENS_PER_BLOCK};

/// What the conversations look like. Lengths are in blocks, drawn evenly from their range.
#[derive(Clone, Debug)]
pub struct ConversationOptions {
    /// Where all choices come from.
    pub seed: u64,
    /// How many conversations are held.
    pub conversations: u32,
    /// How many turns each has; at least one is held whatever the range says.
    pub turns: RangeInclusive<u32>,
    /// How many different system prompts there are; at least one.
    pub system_prompts: u32,
    /// Blocks of a system prompt.
    pub system_blocks: RangeInclusive<u32>,
    /// Blocks that a question adds; at least one.
    pub question_blocks: RangeInclusive<u32>,
    /// Blocks that an answer adds.
    pub answer_blocks: RangeInclusive<u32>,
    /// Mean time between the beginnings of two conversations.
    pub arrival: Duration,
    /// Time a person takes between two turns.
    pub thinking: RangeInclusive<Duration>,
}

impl Default for ConversationOptions {
    fn default() -> ConversationOptions {
        ConversationOptions {
            seed: 1,
            conversations: 100,
            turns: 2..=8,
            system_prompts: 4,
            system_blocks: 2..=8,
            question_blocks: 1..=6,
            answer_blocks: 1..=3,
            arrival: Duration::from_millis(500),
            thinking: Duration::from_secs(2)..=Duration::from_secs(30),
        }
    }
}

/// The requests of all conversations, in the order of their times.
pub struct Conversations {
    options: ConversationOptions,
    rng: Rng,
    systems: Vec<Vec<BlockHash>>,
    begun: u32,
    /// When the next conversation begins.
    next_arrival: Duration,
    /// Turns that are due, earliest first; equal times go by the order of conversations.
    due: BinaryHeap<Reverse<(Duration, u32)>>,
    /// Conversations in progress, by number.
    open: std::collections::HashMap<u32, Conversation>,
}

struct Conversation {
    rng: Rng,
    blocks: Vec<BlockHash>,
    turns_left: u32,
}

impl Conversations {
    /// Conversations as `options` say.
    #[must_use]
    pub fn new(options: ConversationOptions) -> Conversations {
        let mut rng = Rng::with_seed(options.seed);
        let systems = (0..options.system_prompts.max(1))
            .map(|number| {
                let mut blocks = vec![];
                let first = BlockHash(mix(options.seed).wrapping_add(u64::from(number)));
                extend(&mut blocks, first, &mut rng, &options.system_blocks);
                blocks
            })
            .collect();
        Conversations {
            rng,
            systems,
            begun: 0,
            next_arrival: Duration::ZERO,
            due: BinaryHeap::new(),
            open: std::collections::HashMap::new(),
            options,
        }
    }

    /// Opens the next conversation; its first turn is due at once.
    fn begin(&mut self) {
        let number = self.begun;
        self.begun += 1;
        let mut rng = self.rng.fork();
        let blocks = self.systems[rng.usize(..self.systems.len())].clone();
        let turns_left = rng.u32(ordered(&self.options.turns)).max(1);
        self.open.insert(number, Conversation { rng, blocks, turns_left });
        self.due.push(Reverse((self.next_arrival, number)));
        self.next_arrival += self.options.arrival.mul_f64(2.0 * self.rng.f64());
    }

    /// One turn of a conversation: the question is asked, then the answer joins the conversation.
    fn turn(&mut self, at: Duration, number: u32) -> Request {
        let options = &self.options;
        let conversation =
            self.open.get_mut(&number).expect("a turn is due of an open conversation");
        let own = BlockHash(mix(options.seed) ^ mix(u64::from(number) | 1 << 40));
        let rng = &mut conversation.rng;
        if extend(&mut conversation.blocks, own, rng, &options.question_blocks) == 0 {
            extend(&mut conversation.blocks, own, rng, &(1..=1));
        }
        let blocks = conversation.blocks.clone();
        let answer = extend(&mut conversation.blocks, own, rng, &options.answer_blocks);
        conversation.turns_left -= 1;
        if conversation.turns_left == 0 {
            self.open.remove(&number);
        } else {
            let (least, most) = (*options.thinking.start(), *options.thinking.end());
            let thinking = least + most.saturating_sub(least).mul_f64(rng.f64());
            self.due.push(Reverse((at + thinking, number)));
        }
        Request {
            at,
            input_tokens: blocks.len() as u64 * TOKENS_PER_BLOCK,
            output_tokens: u64::from(answer) * TOKENS_PER_BLOCK,
            blocks,
        }
    }
}

impl Iterator for Conversations {
    type Item = Request;

    fn next(&mut self) -> Option<Request> {
        while self.begun < self.options.conversations
            && self.due.peek().is_none_or(|Reverse((at, _))| *at >= self.next_arrival)
        {
            self.begin();
        }
        let Reverse((at, number)) = self.due.pop()?;
        Some(self.turn(at, number))
    }
}

/// Adds a drawn number of blocks, each chained to the one before it; answers how many.
fn extend(
    blocks: &mut Vec<BlockHash>,
    own: BlockHash,
    rng: &mut Rng,
    count: &RangeInclusive<u32>,
) -> u32 {
    let count = rng.u32(ordered(count));
    for _ in 0..count {
        let previous = blocks.last().copied().unwrap_or(own);
        blocks.push(previous.then(own.0 ^ rng.u64(..)));
    }
    count
}

/// A range the wrong way round means its lower end alone.
fn ordered(range: &RangeInclusive<u32>) -> RangeInclusive<u32> {
    *range.start()..=*range.end().max(range.start())
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn options() -> ConversationOptions {
        ConversationOptions { conversations: 40, ..ConversationOptions::default() }
    }

    #[test]
    fn the_same_seed_makes_the_same_requests_and_another_seed_others() {
        let first: Vec<Request> = Conversations::new(options()).collect();
        let again: Vec<Request> = Conversations::new(options()).collect();
        assert_eq!(first, again);
        let other: Vec<Request> =
            Conversations::new(ConversationOptions { seed: 2, ..options() }).collect();
        let blocks = |requests: &[Request]| -> HashSet<BlockHash> {
            requests.iter().flat_map(|request| request.blocks.clone()).collect()
        };
        assert!(blocks(&first).is_disjoint(&blocks(&other)));
    }

    #[test]
    fn requests_come_in_the_order_of_their_times() {
        let times: Vec<Duration> =
            Conversations::new(options()).map(|request| request.at).collect();
        assert!(times.is_sorted());
        assert!(times.len() >= 80, "40 conversations of at least 2 turns, got {}", times.len());
    }

    #[test]
    fn every_turn_extends_the_turn_before_it() {
        let requests: Vec<Request> = Conversations::new(options()).collect();
        let mut later_turns = 0;
        for (index, request) in requests.iter().enumerate() {
            let before = requests[..index].iter().filter(|earlier| {
                request.blocks.len() > earlier.blocks.len()
                    && request.blocks.starts_with(&earlier.blocks)
            });
            later_turns += u32::from(before.count() > 0);
        }
        assert_eq!(later_turns as usize, requests.len() - 40, "all turns but the first of each");
    }

    #[test]
    fn conversations_share_system_prompts_and_nothing_else() {
        let only_first = ConversationOptions { turns: 1..=1, system_blocks: 5..=5, ..options() };
        let requests: Vec<Request> = Conversations::new(only_first).collect();
        assert_eq!(requests.len(), 40);
        let systems: HashSet<_> =
            requests.iter().map(|request| request.blocks[..5].to_vec()).collect();
        assert_eq!(systems.len(), 4);
        let questions: HashSet<_> = requests.iter().map(|request| request.blocks[5]).collect();
        assert_eq!(questions.len(), 40);
    }

    #[test]
    fn empty_ranges_still_ask_something() {
        let least = ConversationOptions {
            turns: 0..=0,
            system_prompts: 0,
            system_blocks: 0..=0,
            question_blocks: 0..=0,
            ..options()
        };
        let requests: Vec<Request> = Conversations::new(least).collect();
        assert_eq!(requests.len(), 40);
        assert!(requests.iter().all(|request| request.blocks.len() == 1));
    }
}
