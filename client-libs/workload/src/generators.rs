//! Named workloads with fixed seeds: what eviction is judged by beside a trace.
//!
//! Each is one way in which people and programs use a model, made of [`Conversations`] so that the
//! names of blocks chain as engines chain theirs. A name means the same requests for ever: who
//! changes a workload gives it another name.

use std::time::Duration;

use crate::block::{BlockHash, mix};
use crate::conversations::{ConversationOptions, Conversations};
use crate::trace::{Request, TOKENS_PER_BLOCK};

/// A named workload.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Generator {
    /// People who talk to an assistant, take their time, and often leave after a turn or two.
    Chat,
    /// Programs that call a model in a loop: many quick turns, each adding what a tool answered.
    Agents,
    /// Single questions below one of many long system prompts.
    SystemPrompts,
    /// Long documents, each sent once, between the conversations of a chat.
    Documents,
    /// A batch job that goes through the same collection three times, while people chat.
    Scan,
}

impl Generator {
    /// All of them.
    pub const ALL: [Generator; 5] = [
        Generator::Chat,
        Generator::Agents,
        Generator::SystemPrompts,
        Generator::Documents,
        Generator::Scan,
    ];

    /// What it is called.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Generator::Chat => "chat",
            Generator::Agents => "agents",
            Generator::SystemPrompts => "system prompts",
            Generator::Documents => "documents",
            Generator::Scan => "scan",
        }
    }

    /// Its requests, in the order of their times.
    #[must_use]
    pub fn requests(self) -> Vec<Request> {
        match self {
            Generator::Chat => Conversations::new(chat(11, 2500)).collect(),
            Generator::Agents => Conversations::new(agents()).collect(),
            Generator::SystemPrompts => Conversations::new(system_prompts()).collect(),
            Generator::Documents => {
                merged(Conversations::new(chat(14, 1200)), once(documents(), Duration::ZERO))
            }
            Generator::Scan => {
                let passes = [0, 200, 400].map(|s| once(collection(), Duration::from_secs(s)));
                merged(Conversations::new(chat(15, 1200)), passes.into_iter().flatten())
            }
        }
    }
}

fn chat(seed: u64, conversations: u32) -> ConversationOptions {
    ConversationOptions {
        seed,
        conversations,
        turns: 1..=8,
        system_prompts: 6,
        system_blocks: 1..=8,
        question_blocks: 1..=12,
        answer_blocks: 0..=4,
        arrival: Duration::from_millis(500),
        thinking: Duration::from_secs(5)..=Duration::from_secs(240),
    }
}

fn agents() -> ConversationOptions {
    ConversationOptions {
        seed: 12,
        conversations: 300,
        turns: 5..=40,
        system_prompts: 3,
        system_blocks: 8..=24,
        question_blocks: 1..=4,
        answer_blocks: 0..=1,
        arrival: Duration::from_secs(3),
        thinking: Duration::from_millis(500)..=Duration::from_secs(20),
    }
}

fn system_prompts() -> ConversationOptions {
    ConversationOptions {
        seed: 13,
        conversations: 6000,
        turns: 1..=1,
        system_prompts: 300,
        system_blocks: 8..=48,
        question_blocks: 1..=6,
        answer_blocks: 0..=0,
        arrival: Duration::from_millis(100),
        thinking: Duration::ZERO..=Duration::ZERO,
    }
}

/// Documents that nobody sends again: 16 to 128 blocks each.
fn documents() -> ConversationOptions {
    ConversationOptions {
        seed: 24,
        conversations: 1200,
        turns: 1..=1,
        system_prompts: 1,
        system_blocks: 0..=0,
        question_blocks: 16..=128,
        answer_blocks: 0..=0,
        arrival: Duration::from_millis(500),
        thinking: Duration::ZERO..=Duration::ZERO,
    }
}

/// What the batch job goes through in 200 seconds.
fn collection() -> ConversationOptions {
    ConversationOptions {
        seed: 25,
        conversations: 400,
        question_blocks: 40..=40,
        arrival: Duration::from_millis(500),
        ..documents()
    }
}

/// Prompts of one turn, some time later.
fn once(options: ConversationOptions, later: Duration) -> impl Iterator<Item = Request> {
    // They are apart from all conversations, whose names begin alike.
    let seed = BlockHash(mix(options.seed));
    Conversations::new(options).map(move |request| {
        let blocks: Vec<BlockHash> =
            request.blocks.iter().map(|block| seed.then(block.0)).collect();
        let input_tokens = blocks.len() as u64 * TOKENS_PER_BLOCK;
        Request { at: request.at + later, input_tokens, blocks, ..request }
    })
}

/// Two workloads at once, in the order of their times.
fn merged(
    first: impl Iterator<Item = Request>,
    second: impl Iterator<Item = Request>,
) -> Vec<Request> {
    let mut all: Vec<Request> = first.chain(second).collect();
    all.sort_by_key(|request| request.at);
    all
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn distinct(requests: &[Request]) -> usize {
        requests.iter().flat_map(|request| &request.blocks).collect::<HashSet<_>>().len()
    }

    #[test]
    fn each_is_the_same_every_time_and_ordered() {
        for generator in Generator::ALL {
            let requests = generator.requests();
            assert_eq!(requests, generator.requests(), "{generator:?}");
            assert!(requests.is_sorted_by_key(|request| request.at), "{generator:?}");
            assert!(distinct(&requests) > 5_000, "{generator:?}: {}", distinct(&requests));
        }
    }

    #[test]
    fn documents_come_once_and_a_collection_three_times() {
        let documents: Vec<Request> = once(documents(), Duration::ZERO).collect();
        let blocks: usize = documents.iter().map(|request| request.blocks.len()).sum();
        assert_eq!(distinct(&documents), blocks);
        let scan = Generator::Scan.requests();
        let long: Vec<Request> =
            scan.into_iter().filter(|request| request.blocks.len() == 40).collect();
        let first: Vec<_> = once(collection(), Duration::ZERO).map(|r| r.blocks).collect();
        for blocks in first {
            assert!(long.iter().filter(|request| request.blocks == blocks).count() == 3);
        }
    }
}
