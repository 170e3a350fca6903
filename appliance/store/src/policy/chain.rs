//! The policy that knows what a KV cache is.
//!
//! A block is useless without those before it, and a chain of them is what comes back or does not.
//! So blocks are kept in *runs*: what one request named, in the order of the chain. All blocks of a
//! run have waited equally long and have the same odds, and leave from the deep end.
//!
//! ```text
//!   request   a b c d e f g h      a b c d are there, e f g h are put
//!               │
//!               ├─ shared   a b    other chains went on from here, too
//!               ├─ body     c d e f g
//!               └─ last     h      often not full, and then of no use to the next turn
//!                 runs of one request; each joins the queue of its class, oldest first
//! ```
//!
//! The class of a run says what is known about its chain: how many turns it has had and how many
//! blocks the last turn added, or that it is what was left behind when another chain went on from its
//! middle. What each class is worth, by the time it has waited, is learned
//! ([`Odds`]). The oldest run of the queue that is worth least gives the next victim.
//!
//! A chain whose end was evicted is remembered for a while by its last two blocks, so that its
//! return is counted and it goes on with the turns that it had.
//!
//! Where a request does not say the order (a put of one block), each block is a chain of its own,
//! and what remains is: blocks that came back are likelier to come back.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::ghosts::Ghosts;
use super::list::{Links, List};
use super::odds::{self, LEFT_BEHIND, Odds};
use super::{EvictionPolicy, KeyHash, Named, Slot};

/// Queues of one class: of a body, of shared blocks by their class, of a last block.
const KINDS: usize = odds::SHARED + 2;
const BODY: usize = 0;
const LAST: usize = KINDS - 1;
/// Keys that were named and not put yet, at most.
const EXPECTED_MAX: usize = 32_768;
/// Chains are remembered for one in so many blocks that are there, and for so many at least.
const GHOST_SHARE: usize = 4;
const GHOSTS_MIN: usize = 4096;
/// Requests whose runs can still be joined.
const OPEN: usize = 1024;
/// Until so many blocks were named after a chain, besides as many again as it has, who names it is
/// still at the same request.
const FRESH: u32 = 16;

/// What it knows of one slot: 16 bytes.
#[derive(Clone, Copy, Default)]
struct Node {
    /// Its run; 0 when there is no block.
    run: u32,
    /// The next block of its run towards the front.
    front: u32,
    /// The next block of its run towards the deep end.
    deep: u32,
    /// Its place in the chain, from 0.
    place: u16,
    /// How many chains went on from here besides the first.
    forks: u8,
    /// A request named it and has not read it yet.
    awaited: bool,
}

/// What is known of the chain that a request named.
#[derive(Clone, Copy, Default)]
struct About {
    /// Which request.
    request: u32,
    /// When it was named.
    at: u32,
    /// Blocks of the chain.
    length: u16,
    /// What is known of its odds.
    class: u8,
    /// Turns it has had.
    turns: u8,
}

/// Blocks of one request in one queue.
#[derive(Clone, Copy, Default)]
struct Run {
    about: About,
    queue: u16,
    /// Its deepest block; 0 only while it is empty.
    deepest: u32,
}

/// A key that was named and has no block yet.
#[derive(Clone, Copy)]
struct Expected {
    about: About,
    place: u16,
}

/// Where a request's chain was known before.
struct Known {
    about: About,
    /// How many of its blocks are deeper.
    deeper: u16,
    shared: bool,
    run: u32,
}

/// See the module.
pub struct Chain {
    nodes: Vec<Node>,
    blocks: usize,
    runs: Vec<Run>,
    free_runs: Vec<u32>,
    links: Links,
    queues: Vec<List>,
    /// Body run of recent requests, by their number.
    open: Vec<[u32; 2]>,
    expected: Ghosts<Expected>,
    ghosts: Ghosts<(About, u16)>,
    odds: Odds,
    /// Blocks named so far: the clock.
    now: u32,
    requests: u32,
}

impl Default for Chain {
    fn default() -> Self {
        Self {
            nodes: Vec::new(),
            blocks: 0,
            runs: vec![Run::default()],
            free_runs: Vec::new(),
            links: Links::default(),
            queues: vec![List::default(); odds::CLASSES * KINDS],
            open: vec![[0; 2]; OPEN],
            expected: Ghosts::default(),
            ghosts: Ghosts::default(),
            odds: Odds::default(),
            now: 0,
            requests: 0,
        }
    }
}

impl Chain {
    fn node(&mut self, number: u32) -> &mut Node {
        &mut self.nodes[number as usize]
    }

    fn run(&mut self, run: u32) -> &mut Run {
        &mut self.runs[run as usize]
    }

    fn age(&self, about: &About) -> u32 {
        self.now.wrapping_sub(about.at)
    }

    /// Takes a block out of its run; a run that is empty then is gone.
    fn leave(&mut self, number: u32) {
        let Node { run, front, deep, .. } = *self.node(number);
        assert!(run != 0, "only a block that is there leaves its run");
        if front != 0 {
            self.node(front).deep = deep;
        }
        match deep {
            0 => self.run(run).deepest = front,
            deep => self.node(deep).front = front,
        }
        let node = self.node(number);
        (node.run, node.front, node.deep) = (0, 0, 0);
        let Run { deepest, queue, .. } = *self.run(run);
        if deepest == 0 {
            self.queues[usize::from(queue)].take(&mut self.links, run);
            *self.run(run) = Run::default();
            self.free_runs.push(run);
        }
    }

    /// Puts a block into a run, at its place in the chain.
    fn join(&mut self, number: u32, run: u32, place: u16) {
        let (mut deep, mut front) = (0, self.run(run).deepest);
        while front != 0 && self.node(front).place > place {
            deep = front;
            front = self.node(front).front;
        }
        let node = self.node(number);
        assert!(node.run == 0, "a block is in one run");
        (node.run, node.front, node.deep, node.place) = (run, front, deep, place);
        if front != 0 {
            self.node(front).deep = number;
        }
        match deep {
            0 => self.run(run).deepest = number,
            deep => self.node(deep).front = number,
        }
    }

    /// The run of a request in one kind of queue: the one it has, or a new one.
    fn run_of(&mut self, about: About, kind: usize) -> u32 {
        let queue = (usize::from(about.class) * KINDS + kind) as u16;
        let place = about.request as usize % OPEN;
        let newest = self.queues[usize::from(queue)].newest();
        for run in [self.open[place][usize::from(kind == LAST)], newest] {
            let known = self.run(run);
            if run != 0 && known.about.request == about.request && known.queue == queue {
                return run;
            }
        }
        let run = self.free_runs.pop().unwrap_or_else(|| {
            self.runs.push(Run::default());
            u32::try_from(self.runs.len() - 1).expect("fewer runs than slots")
        });
        *self.run(run) = Run { about, queue, deepest: 0 };
        self.queues[usize::from(queue)].push(&mut self.links, run);
        if kind == BODY || kind == LAST {
            self.open[place][usize::from(kind == LAST)] = run;
        }
        run
    }

    /// Puts a block where it belongs as part of a request.
    fn settle(&mut self, number: u32, about: About, place: u16) {
        let kind = match self.node(number).forks {
            0 if place > 0 && place + 1 == about.length => LAST,
            0 => BODY,
            forks => 1 + odds::shared_class(forks),
        };
        let run = self.run_of(about, kind);
        self.join(number, run, place);
    }

    /// The deepest block of a request whose chain is known, and how many blocks end there.
    fn known(&mut self, chain: &[Named]) -> Option<(usize, Known)> {
        for (place, named) in chain.iter().enumerate().rev() {
            if let Some(slot) = named.slot {
                let Node { run, place: at, forks, .. } = *self.node(slot.number());
                let about = self.run(run).about;
                let deeper = about.length.saturating_sub(at + 1);
                let known = Known { about, deeper, shared: forks > 0, run };
                return Some((place + 1, known));
            }
            if let Some(&(about, deeper)) = self.ghosts.get(named.key) {
                return Some((place + 1, Known { about, deeper, shared: false, run: 0 }));
            }
        }
        None
    }

    /// Whether a request only repeats one that is still being served: its blocks are not read or
    /// put yet, or it was only just named.
    fn repeats(&mut self, chain: &[Named]) -> bool {
        chain.last().is_some_and(|last| match last.slot {
            Some(slot) => {
                let Node { run, awaited, .. } = *self.node(slot.number());
                awaited || self.is_fresh(&self.runs[run as usize].about)
            }
            None => self.expected.get(last.key).is_some(),
        })
    }

    /// Whether a chain was named so lately that this is hardly its return.
    fn is_fresh(&self, about: &About) -> bool {
        self.age(about) < FRESH + 2 * u32::from(about.length)
    }

    /// What is known of a request's chain, learning from its return.
    fn about(&mut self, chain: &[Named]) -> (About, usize, bool) {
        let (mut turns, mut seen) = (0, 0);
        if let Some((end, known)) = self.known(chain) {
            seen = end;
            let age = self.age(&known.about);
            if usize::from(known.about.class) / odds::ADDED == LEFT_BEHIND {
                self.odds.left_behind_returned(usize::from(known.about.class));
            }
            if !known.shared && known.deeper <= 1 {
                turns = known.about.turns.saturating_add(1);
                let class = usize::from(known.about.class);
                self.odds.chain_returned(class, age, known.deeper == 0);
            } else if !known.shared && known.run != 0 {
                self.leave_behind(known.run);
            }
        }
        let class = odds::class(odds::turns_class(turns), chain.len() - seen);
        self.odds.chain_began(class, chain.len());
        self.requests = self.requests.wrapping_add(1);
        let about = About {
            request: self.requests,
            at: self.now,
            length: u16::try_from(chain.len()).unwrap_or(u16::MAX),
            class: class as u8,
            turns,
        };
        (about, seen, turns == 0)
    }

    /// Another chain goes on from the middle of this run: the rest of it is less likely to return.
    /// The blocks that both share leave it in a moment.
    fn leave_behind(&mut self, run: u32) {
        let class = odds::class(LEFT_BEHIND, 1);
        let queue = class * KINDS + BODY;
        let before = usize::from(self.run(run).queue);
        self.queues[before].take(&mut self.links, run);
        self.queues[queue].push(&mut self.links, run);
        self.odds.chain_began(class, 0);
        let now = self.now;
        let run = self.run(run);
        run.queue = queue as u16;
        run.about.class = class as u8;
        run.about.at = now;
        run.about.request = 0;
    }

    /// A request names a block that is there.
    fn name(&mut self, number: u32, about: About, place: usize, goes_on: bool) {
        let Node { run, forks, .. } = *self.node(number);
        if forks > 0 {
            let age = self.now.wrapping_sub(self.runs[run as usize].about.at);
            self.odds.shared_returned(odds::shared_class(forks), age);
        }
        self.leave(number);
        let node = self.node(number);
        node.forks = node.forks.saturating_add(u8::from(goes_on));
        node.awaited = true;
        let forks = node.forks;
        if forks > 0 {
            self.odds.shared_named(odds::shared_class(forks));
        }
        self.settle(number, about, u16::try_from(place).unwrap_or(u16::MAX));
        self.now = self.now.wrapping_add(1);
    }

    /// Files a request's chain: what is there moves into its runs, what is not is expected.
    fn file(&mut self, chain: &[Named]) {
        let (about, seen, new) = self.about(chain);
        for (place, named) in chain.iter().enumerate() {
            match named.slot {
                Some(slot) => self.name(slot.number(), about, place, new && place < seen),
                None => {
                    let place = u16::try_from(place).unwrap_or(u16::MAX);
                    self.ghosts.take(named.key);
                    self.expected.note(named.key, Expected { about, place }, EXPECTED_MAX);
                }
            }
        }
    }

    /// A block is there that was not.
    fn enter(&mut self, number: u32) {
        if number as usize >= self.nodes.len() {
            self.nodes.resize(number as usize + 1, Node::default());
        }
        *self.node(number) = Node::default();
        self.blocks += 1;
    }

    /// What a queue's oldest run, and after it `run`, is worth.
    fn worth(&self, run: u32) -> f32 {
        let Run { about, queue, .. } = self.runs[run as usize];
        let kind = usize::from(queue) % KINDS;
        let shared = (kind != BODY && kind != LAST).then(|| kind - 1);
        self.odds.value(usize::from(about.class), kind == LAST, shared, self.age(&about))
    }
}

impl EvictionPolicy for Chain {
    fn name(&self) -> &'static str {
        "chain"
    }

    fn wants_chains(&self) -> bool {
        true
    }

    fn named(&mut self, chain: &[Named]) {
        if !chain.is_empty() && !self.repeats(chain) {
            self.file(chain);
        }
    }

    fn inserted(&mut self, slot: Slot, key: KeyHash) {
        let number = slot.number();
        self.enter(number);
        if self.expected.get(key).is_none() {
            // Nobody said what it belongs to.
            self.file(&[Named { key, slot: None }]);
        }
        let Expected { about, place } = self.expected.take(key).expect("expected by now");
        self.settle(number, about, place);
        self.now = self.now.wrapping_add(1);
    }

    /// Nobody remembers its chain. Whether blocks of this run come back says something of others;
    /// that those of earlier ones were not asked for so far does not.
    fn restored(&mut self, slot: Slot, _key: KeyHash) {
        self.enter(slot.number());
        self.requests = self.requests.wrapping_add(1);
        let about = About {
            request: self.requests,
            at: self.now,
            length: 1,
            class: odds::class(odds::turns_class(0), 1) as u8,
            turns: 0,
        };
        self.settle(slot.number(), about, 0);
        self.now = self.now.wrapping_add(1);
    }

    fn accessed(&mut self, slot: Slot) {
        let node = self.node(slot.number());
        let (run, place, awaited) = (node.run, node.place, std::mem::take(&mut node.awaited));
        let before = self.run(run).about;
        if awaited || self.is_fresh(&before) {
            return;
        }
        // Read without a word about the chain: it keeps its place and waits anew.
        let turns = before.turns.saturating_add(1);
        let age = self.age(&before);
        self.odds.chain_returned(usize::from(before.class), age, true);
        let class = odds::class(odds::turns_class(turns), 1);
        self.odds.chain_began(class, 1);
        self.requests = self.requests.wrapping_add(1);
        let request = self.requests;
        let about = About { request, at: self.now, class: class as u8, turns, ..before };
        self.leave(slot.number());
        self.settle(slot.number(), about, place);
        self.now = self.now.wrapping_add(1);
    }

    fn removed(&mut self, slot: Slot, key: KeyHash, evicted: bool) {
        let Node { run, place, forks, .. } = *self.node(slot.number());
        let about = self.run(run).about;
        self.leave(slot.number());
        self.blocks -= 1;
        let deeper = about.length.saturating_sub(place + 1);
        if evicted && deeper <= 1 && forks == 0 {
            let most = (self.blocks / GHOST_SHARE).max(GHOSTS_MIN);
            self.ghosts.note(key, (about, deeper), most);
        }
    }

    fn victims(&mut self, take: &mut dyn FnMut(Slot) -> bool) {
        // Positive floats are ordered as their bits are.
        let worth = |policy: &Self, run: u32| policy.worth(run).to_bits();
        let oldest = self.queues.iter().map(List::oldest).filter(|&run| run != 0);
        let mut queues: BinaryHeap<_> = oldest
            .map(|run| Reverse((worth(self, run), self.runs[run as usize].queue, run)))
            .collect();
        while let Some(Reverse((_, queue, run))) = queues.pop() {
            let mut at = self.runs[run as usize].deepest;
            while let Some(slot) = Slot::of(at) {
                if !take(slot) {
                    return;
                }
                at = self.nodes[at as usize].front;
            }
            let newer = self.links.newer(run);
            if newer != 0 {
                queues.push(Reverse((worth(self, newer), queue, newer)));
            }
        }
    }
}
