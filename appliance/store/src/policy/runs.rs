//! Runs of blocks: what one request named, in the order of the chain; and where each block is.
//!
//! ```text
//!   slot ─► run ─► at, length, class, …        16 bytes a run, 8 for its place in a queue
//!                  deepest shelf
//!                      │
//!                      ▼          place: base+7 …            base …
//!                  ┌─────────────────┐   ┌─────────────────┐
//!                  │ slots h i j · · │ ─►│ slots a b · d … │ ─► 0     32 bytes a shelf
//!                  └─────────────────┘   └─────────────────┘
//! ```
//!
//! A block costs 4 bytes for the run it is in, and its part of a shelf of seven. A slot that left is
//! a gap (0). In a *group* there is no chain: blocks that have nothing in common but what is known
//! of them, in the order in which they came.

use memkv_poller::spare::Row;

use super::paged::Paged;

/// Slots of a shelf.
const SHELF: u32 = 7;
/// Where a shelf names the next one towards the front.
const NEXT: usize = SHELF as usize;
/// The most slots and gaps of one run.
pub const SPAN_MAX: u32 = 4095;
/// A run takes in what is so far from its ends, besides as much again as it has.
const GAP_MAX: u32 = 64;
/// The most blocks of a group.
const GROUP_MAX: u32 = 9 * SHELF;
/// Runs have numbers below this.
const RUNS_MAX: u32 = 1 << 28;

/// A struct's numbers of some bits each, packed into a word.
macro_rules! packed {
    (
        $name:ident:
        $($(#[$doc:meta])* $field:ident, $set:ident: $bits:literal << $shift:literal;)+
    ) => {
        impl $name {
            $(
                $(#[$doc])*
                pub fn $field(self) -> u32 {
                    (self.packed >> $shift) as u32 & ((1 << $bits) - 1)
                }

                fn $set(&mut self, value: u32) {
                    assert!(value < 1 << $bits, "fits its bits");
                    let mask = ((1u64 << $bits) - 1) << $shift;
                    self.packed = self.packed & !mask | u64::from(value) << $shift;
                }
            )+
        }
    };
}

/// Blocks that wait together: 16 bytes.
#[derive(Clone, Copy, Default)]
pub struct Run {
    packed: u64,
    /// When its request was named, or for what it is kept.
    pub at: u32,
    /// Its deepest shelf; 0 when it is empty.
    shelf: u32,
}

packed! { Run:
    /// Blocks of the chain; 0 in a group.
    length, set_length: 12 << 0;
    /// The place in the chain of its first slot or gap.
    base, set_base: 12 << 12;
    /// Slots and gaps.
    span, set_span: 12 << 24;
    /// Slots.
    live, set_live: 12 << 36;
    /// What is known of its odds.
    class, set_class: 6 << 48;
    /// Which kind of queue it is in.
    kind, set_kind: 4 << 54;
    /// Turns its chain has had; no more than 63 are counted.
    turns, set_turns: 6 << 58;
}

/// What is known of the chain that a request named.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct About {
    /// When it was named; no two requests have the same.
    pub at: u32,
    /// Blocks of the chain; 0 of a block of which no chain is known.
    pub length: u16,
    /// What is known of its odds.
    pub class: u8,
    /// Turns it has had.
    pub turns: u8,
}

impl About {
    /// Turns that are counted.
    pub const TURNS_MAX: u8 = 63;
}

impl Run {
    /// An empty run.
    pub fn new(about: About, kind: u32, base: u32) -> Run {
        let mut run = Run { at: about.at, ..Run::default() };
        run.set_length(u32::from(about.length).min(SPAN_MAX));
        run.set_class(u32::from(about.class));
        run.set_turns(u32::from(about.turns.min(About::TURNS_MAX)));
        run.set_kind(kind);
        run.set_base(base.min(SPAN_MAX));
        run
    }

    /// What is known of its chain.
    pub fn about(self) -> About {
        let (length, class, turns) = (self.length(), self.class(), self.turns());
        About { at: self.at, length: length as u16, class: class as u8, turns: turns as u8 }
    }

    /// Whether its blocks are of no one chain.
    pub fn is_group(self) -> bool {
        self.length() == 0
    }

    /// Whether a group takes in more.
    pub fn has_room(self) -> bool {
        self.room() > 0
    }

    /// How many more a group takes in.
    pub fn room(self) -> u32 {
        GROUP_MAX.saturating_sub(self.span())
    }

    /// Gives it another kind and class.
    pub fn turn_into(&mut self, kind: u32, class: u8) {
        self.set_kind(kind);
        self.set_class(u32::from(class));
    }

    /// Its chain is at least so long.
    pub fn grow_to(&mut self, length: u32) {
        self.set_length(self.length().max(length.min(SPAN_MAX)));
    }
}

/// What is known of one slot: 28 bits of run (0 when there is no block), 3 of forks, 1 of awaited.
#[derive(Clone, Copy, Default)]
pub struct Node(u32);

impl Node {
    /// The most that [`Node::forks`] tells.
    pub const FORKS_MAX: u32 = 7;

    /// Its run.
    pub fn run(self) -> u32 {
        self.0 & (RUNS_MAX - 1)
    }

    /// How many chains went on from here besides the first, in octaves: 0 none, 1 one, 2 two or
    /// three, ...
    pub fn forks(self) -> u32 {
        self.0 >> 28 & Self::FORKS_MAX
    }

    /// A request named it and has not read it yet.
    pub fn awaited(self) -> bool {
        self.0 >> 31 == 1
    }

    fn set_run(&mut self, run: u32) {
        assert!(run < RUNS_MAX, "fewer runs than 28 bits tell apart");
        self.0 = self.0 & !(RUNS_MAX - 1) | run;
    }

    /// Notes how many chains went on from here.
    pub fn set_forks(&mut self, forks: u32) {
        self.0 = self.0 & !(Self::FORKS_MAX << 28) | forks.min(Self::FORKS_MAX) << 28;
    }

    /// Notes whether it is awaited.
    pub fn set_awaited(&mut self, awaited: bool) {
        self.0 = self.0 & !(1 << 31) | u32::from(awaited) << 31;
    }
}

/// All runs.
#[derive(Default)]
pub struct Runs {
    nodes: Paged<Node>,
    runs: Paged<Run>,
    shelves: Paged<[u32; NEXT + 1]>,
    /// Empty runs and shelves, each naming the next.
    free_run: u32,
    free_shelf: u32,
}

impl Runs {
    /// A block's slot is in use from now on, in no run yet.
    pub fn enter(&mut self, number: u32) {
        self.nodes.reach(number as usize);
        *self.nodes.get_mut(number) = Node::default();
    }

    /// Blocks' slots are in use from now on, in a group, after those that it has.
    pub fn enter_group(&mut self, group: u32, numbers: impl Iterator<Item = u32>) {
        assert!(self.get(group).is_group(), "in a group nobody counts places");
        let mut live = self.get(group).live();
        for number in numbers {
            self.enter(number);
            self.append(group, number);
            self.node_mut(number).set_run(group);
            live += 1;
        }
        self.get_mut(group).set_live(live);
    }

    /// What is known of a slot.
    pub fn node(&self, number: u32) -> Node {
        *self.nodes.get(number)
    }

    /// The same, to be changed.
    pub fn node_mut(&mut self, number: u32) -> &mut Node {
        self.nodes.get_mut(number)
    }

    /// A run.
    pub fn get(&self, run: u32) -> Run {
        *self.runs.get(run)
    }

    /// The same, to be changed.
    pub fn get_mut(&mut self, run: u32) -> &mut Run {
        self.runs.get_mut(run)
    }

    /// Adds a run, and answers its number.
    pub fn add(&mut self, run: Run) -> u32 {
        let number = match self.free_run {
            0 => {
                let number = self.runs.len().max(1) as u32;
                self.runs.reach(number as usize);
                number
            }
            number => {
                self.free_run = self.get(number).at;
                number
            }
        };
        *self.get_mut(number) = run;
        number
    }

    /// Gives an empty run's number back.
    pub fn remove(&mut self, number: u32) {
        assert!(self.get(number).span() == 0, "an empty run is removed");
        *self.get_mut(number) = Run { at: self.free_run, ..Run::default() };
        self.free_run = number;
    }

    /// Puts a block into a run, at its place in the chain; false when that is too far off.
    pub fn join(&mut self, number: u32, run: u32, place: u32) -> bool {
        assert!(self.node(number).run() == 0, "a block is in one run");
        let known = self.get(run);
        let (base, span) = (known.base(), known.span());
        let place = match known.is_group() {
            true => base + span,
            false => place.min(SPAN_MAX),
        };
        let far = GAP_MAX + span;
        if place > base + span + far || place + far < base || span == SPAN_MAX {
            return false;
        }
        if place < base && !self.reach_back(run, base - place) {
            return false;
        }
        let mut index = place - self.get(run).base();
        // Of two blocks at one place, the later one is the deepest.
        if index < span && self.slot_at(run, index) != 0 {
            index = self.get(run).span();
        }
        if index >= SPAN_MAX {
            return false;
        }
        while self.get(run).span() < index {
            self.append(run, 0);
        }
        match index == self.get(run).span() {
            true => self.append(run, number),
            false => self.fill(run, index, number),
        }
        let live = self.get(run).live() + 1;
        self.get_mut(run).set_live(live);
        self.node_mut(number).set_run(run);
        true
    }

    /// Takes a block out of its run; answers the run, and the block's place in the chain.
    pub fn leave(&mut self, number: u32) -> (u32, u32) {
        let run = self.node(number).run();
        assert!(run != 0, "only a block that is there leaves its run");
        let index = self.index_of(run, number);
        self.fill(run, index, 0);
        self.node_mut(number).set_run(0);
        let known = self.get_mut(run);
        let place = (known.base() + index).min(SPAN_MAX);
        known.set_live(known.live() - 1);
        let (live, span) = (known.live(), known.span());
        if index + 1 == span {
            self.drop_deepest_gaps(run);
        } else if live.is_power_of_two() && live * 2 <= span {
            self.close_up(run);
        }
        (run, place)
    }

    /// A block's place in its chain.
    pub fn place(&self, number: u32) -> u32 {
        let run = self.node(number).run();
        (self.get(run).base() + self.index_of(run, number)).min(SPAN_MAX)
    }

    /// The slots of a run in the order in which they should leave: from its deep end, or of a group
    /// in the order in which they came. Until `take` has enough: then false.
    pub fn offer(&self, run: u32, take: &mut dyn FnMut(u32) -> bool) -> bool {
        let known = self.get(run);
        if known.is_group() {
            return self.slots(run).into_iter().filter(|&slot| slot != 0).all(take);
        }
        let mut shelf = known.shelf;
        let mut places = known.span().wrapping_sub(1) % SHELF;
        while shelf != 0 {
            let slots = self.shelves.get(shelf);
            for &slot in slots[..=places as usize].iter().rev() {
                if slot != 0 && !take(slot) {
                    return false;
                }
            }
            (shelf, places) = (slots[NEXT], SHELF - 1);
        }
        true
    }

    /// Bytes of memory that it takes.
    pub fn bytes(&self) -> usize {
        self.nodes.bytes() + self.runs.bytes() + self.shelves.bytes()
    }

    /// The shelf of an index of a run.
    fn shelf_of(&self, run: u32, index: u32) -> u32 {
        let known = self.get(run);
        let mut shelf = known.shelf;
        for _ in index / SHELF..(known.span() - 1) / SHELF {
            shelf = self.shelves.get(shelf)[NEXT];
        }
        shelf
    }

    fn slot_at(&self, run: u32, index: u32) -> u32 {
        self.shelves.get(self.shelf_of(run, index))[(index % SHELF) as usize]
    }

    fn fill(&mut self, run: u32, index: u32, slot: u32) {
        let shelf = self.shelf_of(run, index);
        self.shelves.get_mut(shelf)[(index % SHELF) as usize] = slot;
    }

    /// Where a block of a run stands, looked for from the deep end.
    fn index_of(&self, run: u32, number: u32) -> u32 {
        let known = self.get(run);
        let mut shelf = known.shelf;
        let mut first = (known.span() - 1) / SHELF * SHELF;
        loop {
            assert!(shelf != 0, "a block stands in its run");
            let slots = self.shelves.get(shelf);
            if let Some(at) = slots[..NEXT].iter().position(|&slot| slot == number) {
                return first + at as u32;
            }
            shelf = slots[NEXT];
            first = first.wrapping_sub(SHELF);
        }
    }

    /// Adds a slot or a gap at the deep end.
    fn append(&mut self, run: u32, slot: u32) {
        let Run { shelf, .. } = self.get(run);
        let span = self.get(run).span();
        let shelf = match span % SHELF {
            0 => self.add_shelf(shelf),
            _ => shelf,
        };
        self.shelves.get_mut(shelf)[(span % SHELF) as usize] = slot;
        let known = self.get_mut(run);
        known.shelf = shelf;
        known.set_span(span + 1);
    }

    fn add_shelf(&mut self, next: u32) -> u32 {
        let shelf = match self.free_shelf {
            0 => {
                let shelf = self.shelves.len().max(1);
                self.shelves.reach(shelf);
                u32::try_from(shelf).expect("fewer shelves than slots")
            }
            shelf => {
                self.free_shelf = self.shelves.get(shelf)[NEXT];
                shelf
            }
        };
        *self.shelves.get_mut(shelf) = [0; NEXT + 1];
        self.shelves.get_mut(shelf)[NEXT] = next;
        shelf
    }

    /// Takes the gaps at the deep end away.
    fn drop_deepest_gaps(&mut self, run: u32) {
        loop {
            let known = self.get(run);
            let (span, shelf) = (known.span(), known.shelf);
            if span == 0 {
                return;
            }
            let at = (span - 1) % SHELF;
            if self.shelves.get(shelf)[at as usize] != 0 {
                return;
            }
            if at == 0 {
                let next = self.shelves.get(shelf)[NEXT];
                self.shelves.get_mut(shelf)[NEXT] = self.free_shelf;
                self.free_shelf = shelf;
                self.get_mut(run).shelf = next;
            }
            self.get_mut(run).set_span(span - 1);
        }
    }

    /// Slots and gaps of a run, from the front on.
    fn slots(&self, run: u32) -> Row<u32> {
        let known = self.get(run);
        let mut slots = Row::new();
        slots.resize(known.span().next_multiple_of(SHELF) as usize, 0);
        let mut shelf = known.shelf;
        for places in slots.chunks_mut(SHELF as usize).rev() {
            places.copy_from_slice(&self.shelves.get(shelf)[..NEXT]);
            shelf = self.shelves.get(shelf)[NEXT];
        }
        slots.truncate(known.span() as usize);
        slots
    }

    /// Stands the slots and gaps of a run anew.
    fn stand(&mut self, run: u32, slots: impl Iterator<Item = u32>) {
        let mut shelf = self.get(run).shelf;
        while shelf != 0 {
            let next = self.shelves.get(shelf)[NEXT];
            self.shelves.get_mut(shelf)[NEXT] = self.free_shelf;
            self.free_shelf = shelf;
            shelf = next;
        }
        let known = self.get_mut(run);
        known.shelf = 0;
        known.set_span(0);
        slots.for_each(|slot| self.append(run, slot));
    }

    /// Makes place for blocks that come before the first: at least `more`, and half as many again as
    /// there are, so that a chain that is put from its end does not take the square of its length.
    fn reach_back(&mut self, run: u32, more: u32) -> bool {
        let known = self.get(run);
        let (base, span) = (known.base(), known.span());
        let more = more.max(span / 2).min(base);
        if span + more > SPAN_MAX {
            return false;
        }
        let slots = self.slots(run);
        self.get_mut(run).set_base(base - more);
        self.stand(run, std::iter::repeat_n(0, more as usize).chain(slots));
        true
    }

    /// Takes the gaps at the front away; in a group, where nobody counts places, all of them.
    fn close_up(&mut self, run: u32) {
        let group = self.get(run).is_group();
        let slots = self.slots(run);
        let gaps = slots.iter().take_while(|&&slot| slot == 0).count();
        if group {
            self.stand(run, slots.into_iter().filter(|&slot| slot != 0));
        } else if gaps > 0 {
            let base = self.get(run).base() + gaps as u32;
            self.get_mut(run).set_base(base.min(SPAN_MAX));
            self.stand(run, slots.into_iter().skip(gaps));
        }
    }
}
