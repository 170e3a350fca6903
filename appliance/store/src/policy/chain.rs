//! The policy that knows what a KV cache is.
//!
//! A block is useless without those before it, and a chain of them is what comes back or does not.
//! So blocks are kept in *runs*: what one request named, in the order of the chain. All blocks of a
//! run have waited equally long and have the same odds, and leave from the deep end ([`Runs`]).
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
//! Where nobody says the order (a put of one block without its parent), each block is a chain of its
//! own, and what remains is: blocks that came back are likelier to come back. Such blocks, and the
//! last blocks of chains, are kept in groups by what is known of them.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::ghosts::Ghosts;
use super::holds::{Held, Holds};
use super::list::{Links, List};
use super::odds::{self, LEFT_BEHIND, Odds};
use super::runs::{About, Node, Run, Runs};
use super::{ENDED_AT_ONCE, EvictionPolicy, Hint, KeyHash, Named, Rank, Slot};

/// Queues of one class: of a body, of shared blocks by their class, of a last block.
const KINDS: u32 = odds::SHARED as u32 + 2;
const BODY: u32 = 0;
const LAST: u32 = KINDS - 1;
/// Kinds of runs that are in no queue of a class, but among those of hints.
const RELEASED: u32 = KINDS;
/// Its `at` is the number of its list.
const KEPT: u32 = KINDS + 1;
/// Keys that were named and not put yet, about, at most.
const EXPECTED_MAX: usize = 32_768;
/// Chains are remembered for one in so many blocks that are there, and for so many at least.
const GHOST_SHARE: usize = 4;
const GHOSTS_MIN: usize = 4096;
/// Requests whose runs can still be joined.
const OPEN: usize = 1024;
/// Runs that are being read, block by block.
const RETURNING: usize = 64;
/// Until so many blocks were named after a chain, besides as many again as it has, who names it is
/// still at the same request.
const FRESH: u32 = 16;
/// Blocks of a group came while at most so many others did: no age tells them apart.
const GROUP_AGE: u32 = 64;

/// A key that was named and has no block yet.
#[derive(Clone, Copy, Default)]
struct Expected {
    about: About,
    place: u16,
}

/// A chain whose end was evicted.
#[derive(Clone, Copy, Default)]
struct Ended {
    at: u32,
    class: u8,
    turns: u8,
    /// How many of its blocks were deeper.
    deeper: u8,
}

/// Where a request's chain was known before.
struct Known {
    about: About,
    /// How many of its blocks are deeper.
    deeper: u32,
    shared: bool,
    /// Its run; 0 when it was evicted.
    run: u32,
}

/// A run whose blocks are read one by one, and what becomes of them.
#[derive(Clone, Copy, Default)]
struct Returning {
    run: u32,
    at: u32,
    about: About,
}

/// See the module. A block takes 8 bytes and its share of what its run takes: 24 bytes, and half a
/// shelf of 32.
pub struct Chain {
    runs: Runs,
    blocks: usize,
    links: Links,
    queues: Vec<List>,
    holds: Holds,
    /// Body run of recent requests, by when they were named.
    open: Vec<u32>,
    returning: [Returning; RETURNING],
    expected: Ghosts<Expected>,
    ghosts: Ghosts<Ended>,
    odds: Odds,
    /// Blocks and requests named so far: the clock.
    now: u32,
    /// For counting roughly: a state of xorshift.
    dice: u32,
}

impl Default for Chain {
    fn default() -> Self {
        Self {
            runs: Runs::default(),
            blocks: 0,
            links: Links::default(),
            queues: vec![List::default(); odds::CLASSES * KINDS as usize],
            holds: Holds::default(),
            open: vec![0; OPEN],
            returning: [Returning::default(); RETURNING],
            expected: Ghosts::default(),
            ghosts: Ghosts::default(),
            odds: Odds::default(),
            now: 0,
            dice: 0x9e37_79b9,
        }
    }
}

fn place_of(place: usize) -> u16 {
    u16::try_from(place).unwrap_or(u16::MAX)
}

/// Whether a run is in the queue of a class: no hint is in force.
fn is_queued(run: Run) -> bool {
    run.kind() < KINDS
}

impl Chain {
    fn age(&self, at: u32) -> u32 {
        self.now.wrapping_sub(at)
    }

    fn tick(&mut self) {
        self.now = self.now.wrapping_add(1);
    }

    fn queue_of(run: Run) -> usize {
        (run.class() * KINDS + run.kind()) as usize
    }

    /// Takes a run out of the list it is in.
    fn unlist(&mut self, number: u32) {
        let run = self.runs.get(number);
        match run.kind() {
            RELEASED => self.holds.take(&mut self.links, number, Held::Released),
            KEPT => self.holds.take(&mut self.links, number, Held::Kept(run.at)),
            _ => self.queues[Self::queue_of(run)].take(&mut self.links, number),
        }
    }

    /// Puts a run that is in no list at the end of its queue, as one of a class.
    fn enqueue(&mut self, number: u32) {
        let queue = Self::queue_of(self.runs.get(number));
        self.queues[queue].push(&mut self.links, number);
    }

    /// Takes a block out of its run; a run that is empty then is gone. Answers its place.
    fn leave(&mut self, number: u32) -> u32 {
        let (run, place) = self.runs.leave(number);
        if self.runs.get(run).span() == 0 {
            self.unlist(run);
            self.runs.remove(run);
        }
        place
    }

    fn add_run(&mut self, about: About, kind: u32, base: u32) -> u32 {
        let run = self.runs.add(Run::new(about, kind, base));
        self.enqueue(run);
        if kind == BODY && about.length > 0 {
            self.open[about.at as usize % OPEN] = run;
        }
        run
    }

    /// The run of a request in one kind of queue, if it has one that can be joined.
    fn run_of(&self, about: About, kind: u32) -> Option<u32> {
        let queue = u32::from(about.class) * KINDS + kind;
        let newest = self.queues[queue as usize].newest();
        let body = self.open[about.at as usize % OPEN];
        [body, newest].into_iter().filter(|&run| run != 0).find(|&run| {
            let known = self.runs.get(run);
            let alike = (known.class(), known.kind()) == (u32::from(about.class), kind);
            alike && known.at == about.at && !known.is_group() && known.span() > 0
        })
    }

    /// The group of blocks of which as much is known.
    fn group_of(&mut self, about: About, kind: u32) -> u32 {
        let newest = self.queues[(u32::from(about.class) * KINDS + kind) as usize].newest();
        if newest != 0 {
            let known = self.runs.get(newest);
            if known.is_group() && known.has_room() && self.age(known.at) < GROUP_AGE {
                return newest;
            }
        }
        self.add_run(About { at: self.now, length: 0, ..about }, kind, 0)
    }

    /// Puts a block where it belongs as part of a request.
    fn settle(&mut self, number: u32, about: About, place: u32) {
        let kind = match self.runs.node(number).forks() {
            0 if place > 0 && place + 1 == u32::from(about.length) => LAST,
            0 => BODY,
            forks => forks,
        };
        if about.length == 0 || kind == LAST {
            let group = self.group_of(about, kind);
            assert!(self.runs.join(number, group, 0), "a group has room for one more");
            return;
        }
        if let Some(run) = self.run_of(about, kind)
            && self.runs.join(number, run, place)
        {
            return;
        }
        let run = self.add_run(about, kind, place);
        assert!(self.runs.join(number, run, place), "an empty run has room");
    }

    /// One more chain goes on from a block; many are counted roughly, in octaves.
    fn fork(&mut self, number: u32) {
        let forks = self.runs.node(number).forks();
        self.dice ^= self.dice << 13;
        self.dice ^= self.dice >> 17;
        self.dice ^= self.dice << 5;
        if forks < 2 || self.dice.trailing_zeros() >= forks - 1 {
            self.runs.node_mut(number).set_forks(forks + 1);
        }
    }

    /// The deepest block of a request whose chain is known, and how many blocks end there.
    fn known(&self, chain: &[Named]) -> Option<(usize, Known)> {
        for (place, named) in chain.iter().enumerate().rev() {
            if let Some(slot) = named.slot {
                let node = self.runs.node(slot.number());
                let (run, shared) = (node.run(), node.forks() > 0);
                let about = self.runs.get(run).about();
                let at = self.runs.place(slot.number());
                let deeper = u32::from(about.length).saturating_sub(at + 1);
                return Some((place + 1, Known { about, deeper, shared, run }));
            }
            if let Some(&Ended { at, class, turns, deeper }) = self.ghosts.get(named.key) {
                let about = About { at, length: 0, class, turns };
                let deeper = u32::from(deeper);
                return Some((place + 1, Known { about, deeper, shared: false, run: 0 }));
            }
        }
        None
    }

    /// Whether a request only repeats one that is still being served: its blocks are not read or
    /// put yet, or it was only just named.
    fn repeats(&self, chain: &[Named]) -> bool {
        chain.last().is_some_and(|last| match last.slot {
            Some(slot) => {
                let node = self.runs.node(slot.number());
                node.awaited() || self.is_fresh(self.runs.get(node.run()))
            }
            None => self.expected.get(last.key).is_some(),
        })
    }

    /// Whether a chain was named so lately that this is hardly its return.
    fn is_fresh(&self, run: Run) -> bool {
        let length = if run.kind() == LAST { GROUP_AGE } else { run.length().max(1) };
        is_queued(run) && self.age(run.at) < FRESH + 2 * length
    }

    /// What is known of a request's chain, learning from its return.
    fn about(&mut self, chain: &[Named]) -> (About, usize, bool) {
        let (mut turns, mut seen) = (0, 0);
        if let Some((end, known)) = self.known(chain) {
            seen = end;
            turns = self.returned(&known);
        }
        let class = odds::class(odds::turns_class(turns), chain.len() - seen);
        self.odds.chain_began(class, chain.len());
        self.tick();
        let length = place_of(chain.len());
        (About { at: self.now, length, class: class as u8, turns }, seen, turns == 0)
    }

    /// A chain was named again; answers how many turns it has had.
    fn returned(&mut self, known: &Known) -> u8 {
        let class = usize::from(known.about.class);
        // Of those that a hint holds it is not known how long they would have waited.
        let waited = known.run == 0 || is_queued(self.runs.get(known.run));
        if waited && class / odds::ADDED == LEFT_BEHIND {
            self.odds.left_behind_returned(class);
        }
        if known.shared {
            return 0;
        }
        if known.deeper <= 1 {
            if waited {
                let age = self.age(known.about.at);
                self.odds.chain_returned(class, age, known.deeper == 0);
            }
            return (known.about.turns + 1).min(About::TURNS_MAX);
        }
        if known.run != 0 && waited {
            self.leave_behind(known.run);
        }
        0
    }

    /// Another chain goes on from the middle of this run: the rest of it is less likely to return.
    /// The blocks that both share leave it in a moment.
    fn leave_behind(&mut self, number: u32) {
        let class = odds::class(LEFT_BEHIND, 1);
        self.unlist(number);
        let now = self.now;
        let run = self.runs.get_mut(number);
        run.turn_into(BODY, class as u8);
        run.at = now;
        self.enqueue(number);
        self.odds.chain_began(class, 0);
    }

    /// A request names a block that is there, at a place of its chain.
    fn name(&mut self, number: u32, about: About, place: u32) {
        let forks = self.runs.node(number).forks();
        if forks > 0 {
            self.odds.shared_named(forks as usize - 1);
        }
        self.settle(number, about, place);
        self.tick();
    }

    /// Takes the blocks of a request that are there out of their runs, but for those that are kept.
    fn gather(&mut self, chain: &[Named], shared: usize) {
        // From the deep end, where runs are the shortest to look through.
        for (place, named) in chain.iter().enumerate().rev() {
            let Some(slot) = named.slot else { continue };
            let number = slot.number();
            let node = self.runs.node(number);
            // It may be named twice.
            if node.run() == 0 {
                continue;
            }
            let run = self.runs.get(node.run());
            if node.forks() > 0 && is_queued(run) {
                self.odds.shared_returned(node.forks() as usize - 1, self.age(run.at));
            }
            if place < shared {
                self.fork(number);
            }
            self.runs.node_mut(number).set_awaited(true);
            if run.kind() != KEPT {
                self.leave(number);
            }
        }
    }

    /// Files a request's chain: what is there moves into its runs, what is not is expected.
    fn file(&mut self, chain: &[Named]) {
        let (about, seen, new) = self.about(chain);
        self.gather(chain, if new { seen } else { 0 });
        for (place, named) in chain.iter().enumerate() {
            match named.slot {
                Some(slot) if self.runs.node(slot.number()).run() != 0 => self.tick(),
                Some(slot) => self.name(slot.number(), about, place as u32),
                None => {
                    let place = place_of(place);
                    self.ghosts.take(named.key);
                    self.expected.note(named.key, Expected { about, place }, EXPECTED_MAX);
                }
            }
        }
    }

    /// Whoever names what was released takes that back, also where it is no new request.
    fn take_back(&mut self, chain: &[Named]) {
        if self.holds.newest_released() == 0 {
            return;
        }
        let mut taken = None;
        for (place, named) in chain.iter().enumerate().rev() {
            let Some(slot) = named.slot else { continue };
            let run = self.runs.get(self.runs.node(slot.number()).run());
            if run.kind() != RELEASED {
                continue;
            }
            let about = *taken.get_or_insert_with(|| {
                self.tick();
                About { at: self.now, length: place_of(chain.len()), ..run.about() }
            });
            self.leave(slot.number());
            self.settle(slot.number(), about, place as u32);
        }
    }

    /// What is known of a chain that is read block by block, without a word about its order: its
    /// blocks keep their places.
    fn about_reading(&mut self, number: u32) -> About {
        let run = self.runs.get(number);
        let returning = self.returning[number as usize % RETURNING];
        if (returning.run, returning.at) == (number, run.at) && !run.is_group() {
            return returning.about;
        }
        let turns = (run.turns() as u8 + 1).min(About::TURNS_MAX);
        if is_queued(run) {
            self.odds.chain_returned(run.class() as usize, self.age(run.at), true);
        }
        let class = odds::class(odds::turns_class(turns), 1);
        self.odds.chain_began(class, 1);
        self.tick();
        let about = About { at: self.now, class: class as u8, turns, ..run.about() };
        self.returning[number as usize % RETURNING] = Returning { run: number, at: run.at, about };
        about
    }

    /// Runs whose time is over wait like others from now on.
    fn end_some_holds(&mut self, now: u32, most: usize) {
        for _ in 0..most {
            let Some(number) = self.holds.take_ended(&mut self.links, now) else { return };
            let at = self.now;
            let run = self.runs.get_mut(number);
            run.turn_into(BODY, run.class() as u8);
            run.at = at;
            self.enqueue(number);
        }
    }

    /// The newest run of those that a hint holds alike, when blocks that come alone can join it.
    fn held_group(&self, newest: u32) -> Option<u32> {
        let joins = newest != 0 && {
            let run = self.runs.get(newest);
            run.is_group() && run.has_room()
        };
        joins.then_some(newest)
    }

    /// Until when a block is kept already; 0 when it is not.
    fn kept_until(&self, slot: Slot) -> u32 {
        let run = self.runs.get(self.runs.node(slot.number()).run());
        if run.kind() == KEPT { self.holds.until(run.at) } else { 0 }
    }

    /// What a queue's oldest run, and after it `run`, is worth.
    fn worth(&self, run: Run) -> f32 {
        let kind = run.kind();
        let shared = (kind != BODY && kind != LAST).then(|| kind as usize - 1);
        self.odds.value(run.class() as usize, kind == LAST, shared, self.age(run.at))
    }

    /// Offers the runs of all queues; says whether more is wanted.
    fn offer_queues(&self, take: &mut dyn FnMut(u32) -> bool) -> bool {
        // Positive floats are ordered as their bits are.
        let entry = |number: u32| {
            let run = self.runs.get(number);
            Reverse((self.worth(run).to_bits(), Self::queue_of(run), number))
        };
        let oldest = self.queues.iter().map(List::oldest).filter(|&run| run != 0);
        let mut queues: BinaryHeap<_> = oldest.map(entry).collect();
        while let Some(Reverse((_, _, run))) = queues.pop() {
            if !self.runs.offer(run, take) {
                return false;
            }
            let newer = self.links.newer(run);
            if newer != 0 {
                queues.push(entry(newer));
            }
        }
        true
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
        if chain.is_empty() {
            return;
        }
        match self.repeats(chain) {
            false => self.file(chain),
            true => self.take_back(chain),
        }
    }

    fn follows(&mut self, parent: Named, key: KeyHash) {
        if self.expected.get(key).is_some() {
            return;
        }
        let (about, place) = match parent.slot {
            Some(slot) => self.go_on_from(slot.number()),
            None => match self.expected.get(parent.key) {
                Some(&Expected { about, place }) => (about, u32::from(place)),
                None => return,
            },
        };
        let place = place_of(place as usize + 1);
        let about = About { length: about.length.max(place.saturating_add(2)), ..about };
        self.expected.note(key, Expected { about, place }, EXPECTED_MAX);
    }

    fn inserted(&mut self, slot: Slot, key: KeyHash) {
        let number = slot.number();
        self.runs.enter(number);
        self.blocks += 1;
        let Expected { about, place } = self.expected.take(key).unwrap_or_else(|| {
            // Nobody said what it belongs to.
            let (about, ..) = self.about(&[Named { key, slot: None }]);
            self.ghosts.take(key);
            Expected { about: About { length: 0, ..about }, place: 0 }
        });
        self.settle(number, about, u32::from(place));
        self.tick();
    }

    /// Nobody remembers its chain. Whether blocks of this run come back says something of others;
    /// that those of earlier ones were not asked for so far does not.
    ///
    /// Each is settled and then named, as one that is inserted; a group takes in at once as many as
    /// would have come to it one by one.
    fn restored(&mut self, blocks: &[(Slot, KeyHash)]) {
        let class = odds::class(odds::turns_class(0), 1) as u8;
        let mut rest = blocks;
        while !rest.is_empty() {
            let about = About { at: self.now, length: 0, class, turns: 0 };
            let group = self.group_of(about, BODY);
            let known = self.runs.get(group);
            let most = known.room().min(GROUP_AGE - self.age(known.at)) as usize;
            let (now, later) = rest.split_at(most.min(rest.len()));
            self.runs.enter_group(group, now.iter().map(|(slot, _)| slot.number()));
            self.blocks += now.len();
            self.now = self.now.wrapping_add(now.len() as u32);
            rest = later;
        }
    }

    fn accessed(&mut self, slot: Slot) {
        let number = slot.number();
        let node = self.runs.node_mut(number);
        let (run, awaited) = (node.run(), node.awaited());
        node.set_awaited(false);
        let known = self.runs.get(run);
        let served = known.kind() != RELEASED && (awaited || self.is_fresh(known));
        if served || known.kind() == KEPT {
            return;
        }
        let about = self.about_reading(run);
        let place = self.leave(number);
        self.settle(number, about, place);
        self.tick();
    }

    fn hinted(&mut self, chain: &[Slot], hint: Hint, now: u32) {
        self.end_some_holds(now, ENDED_AT_ONCE + chain.len());
        let Some(end) = chain.last() else { return };
        let about = self.runs.get(self.runs.node(end.number()).run()).about();
        let until = match hint {
            Hint::Release => None,
            // Who keeps what is kept already does not shorten that.
            Hint::Keep { until } => {
                Some(chain.iter().map(|&slot| self.kept_until(slot)).fold(until, u32::max))
            }
        };
        for slot in chain.iter().rev() {
            self.leave(slot.number());
        }
        // Blocks that come alone share a group.
        let alone = chain.len() == 1;
        let newest = match until {
            None => self.holds.newest_released(),
            Some(until) => self.holds.newest_kept(until),
        };
        let mut run = if alone { self.held_group(newest) } else { None };
        for (place, slot) in chain.iter().enumerate() {
            let place = place as u32;
            if run.is_none_or(|run| !self.runs.join(slot.number(), run, place)) {
                let length = if alone { 0 } else { place_of(chain.len()) };
                let about = About { at: self.now, length, ..about };
                run = Some(self.add_held(about, until, place));
                let joined = self.runs.join(slot.number(), run.expect("just added"), place);
                assert!(joined, "an empty run has room");
            }
        }
    }

    fn removed(&mut self, slot: Slot, key: KeyHash, evicted: bool) {
        let node = self.runs.node(slot.number());
        let run = self.runs.get(node.run());
        let place = self.leave(slot.number());
        self.blocks -= 1;
        let About { at, length, class, turns } = run.about();
        let deeper = u32::from(length).saturating_sub(place + 1);
        if evicted && deeper <= 1 && node.forks() == 0 && is_queued(run) {
            let most = (self.blocks / GHOST_SHARE).max(GHOSTS_MIN);
            let ended = Ended { at, class, turns, deeper: deeper as u8 };
            self.ghosts.note(key, ended, most);
        }
    }

    fn hint_of(&self, slot: Slot) -> Option<Hint> {
        let run = self.runs.get(self.runs.node(slot.number()).run());
        match run.kind() {
            RELEASED => Some(Hint::Release),
            KEPT => Some(Hint::Keep { until: self.holds.until(run.at) }),
            _ => None,
        }
    }

    fn end_holds(&mut self, now: u32) {
        self.end_some_holds(now, ENDED_AT_ONCE);
    }

    fn offer(&mut self, rank: Rank, take: &mut dyn FnMut(Slot) -> bool) -> bool {
        let mut take = |number| take(Slot::of(number).expect("runs hold slots"));
        let (runs, links) = (&self.runs, &self.links);
        match rank {
            Rank::Released => self.holds.released(links).all(|run| runs.offer(run, &mut take)),
            Rank::Ordinary => self.offer_queues(&mut take),
            Rank::Kept => self.holds.kept(links).all(|run| runs.offer(run, &mut take)),
        }
    }

    fn memory(&self) -> usize {
        self.runs.bytes() + self.links.bytes()
    }

    fn memory_of_ghosts(&self) -> usize {
        self.ghosts.bytes() + self.expected.bytes()
    }
}

impl Chain {
    /// A run of a chain that a hint holds: released, or kept until some second.
    fn add_held(&mut self, about: About, until: Option<u32>, base: u32) -> u32 {
        let kind = if until.is_some() { KEPT } else { RELEASED };
        let run = self.runs.add(Run::new(about, kind, base));
        let held = match until {
            None => self.holds.release(&mut self.links, run),
            Some(until) => self.holds.keep(&mut self.links, run, until),
        };
        if let Held::Kept(list) = held {
            self.runs.get_mut(run).at = list;
        }
        run
    }

    /// A block will be put after this one in its chain: what is known of that chain, and this one's
    /// place in it. A chain that goes on is in use.
    fn go_on_from(&mut self, number: u32) -> (About, u32) {
        let node = self.runs.node(number);
        let before = self.runs.get(node.run());
        let place = self.runs.place(number);
        self.tick();
        let about = About { at: self.now, ..before.about() };
        let deepest = place + 1 == before.base() + before.span();
        if is_queued(before) && !before.is_group() && before.kind() == BODY && deepest {
            self.unlist(node.run());
            let run = self.runs.get_mut(node.run());
            run.at = about.at;
            run.grow_to(place + 2);
            self.enqueue(node.run());
            self.open[self.now as usize % OPEN] = node.run();
            return (about, place);
        }
        if !is_queued(before) {
            return (About { length: place_of(place as usize + 2), ..about }, place);
        }
        // The first of its chain, as far as is known, or one from which another goes on.
        let length = place_of(place as usize + 2);
        let fresh = match before.is_group() {
            true => About { length, ..about },
            false => {
                let class = odds::class(odds::turns_class(0), 1);
                self.odds.chain_began(class, 1);
                self.fork(number);
                About { length, class: class as u8, turns: 0, ..about }
            }
        };
        self.leave(number);
        self.settle(number, fresh, place);
        (fresh, place)
    }
}

const _: () = assert!(Node::FORKS_MAX as usize == odds::SHARED, "a kind for each");
