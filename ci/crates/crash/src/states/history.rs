//! Runs a workload and writes down all that a crash could cut short: what was asked of the drives,
//! and what was asked of the store and answered.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use memkv_dma::Pool;
use memkv_poller::{Clock, Rng};
use memkv_sim::SimClock;
use memkv_store::{Miss, MissReason, Mode};

use super::disk::{Disk, Event, Image, SECTOR, Tape, Write};
use super::machine::{self, EXTENT, NEW, Node, Put, layout, settle, spawn};
use super::workload::{Base, Delivery, Step, Workload};

/// Keys of all workloads; 0 and 1 are those of single puts, from 8 on those there at the beginning.
pub const KEYS: u8 = 28;
const FILLED: std::ops::Range<u8> = 8..18;
const BURST: std::ops::Range<u8> = 18..26;
const LARGE: u8 = 26;
const WEARING: u8 = 27;

/// What a call does to its key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Effect {
    /// The key is gone.
    Gone,
    /// It holds this value.
    Holds(usize),
}

/// Place on the tape of what never came.
pub const NEVER: usize = usize::MAX;

/// A put or a delete.
#[derive(Clone, Debug)]
pub struct Call {
    pub key: u8,
    pub effect: Effect,
    /// Places on the tape.
    pub invoked: usize,
    pub acknowledged: usize,
    /// It was answered that nothing was done.
    pub refused: bool,
    /// The generation that it was answered, if it was a put.
    pub generation: Option<u64>,
    /// Unix seconds after which the value is none; 0 is never.
    pub expires: u64,
}

/// A value that was put.
#[derive(Clone, Copy, Debug)]
pub struct Value {
    pub length: u32,
}

/// Everything that a run left.
pub struct History {
    /// The drives at its beginning.
    pub base: Vec<Image>,
    pub events: Vec<Event>,
    pub writes: Vec<Write>,
    pub calls: Vec<Call>,
    pub values: Vec<Value>,
    /// Keys that were evicted, and when.
    pub evicted: Vec<(u8, usize)>,
    /// Unix seconds from a place of the tape on.
    pub calendar: Vec<(usize, u64)>,
    /// Where the last operation begins: what was before is another workload's.
    pub last: usize,
}

impl History {
    /// Unix seconds at a place.
    pub fn wall(&self, at: usize) -> u64 {
        let known = self.calendar.iter().rev().find(|(from, _)| *from <= at);
        known.map_or(NEW, |known| known.1)
    }
}

/// A machine's drives and what is known to be on them.
#[derive(Clone)]
pub struct Start {
    pub images: Vec<Image>,
    calls: Vec<Call>,
    values: Vec<Value>,
    wall: u64,
}

struct Run {
    node: Option<Node>,
    disks: Vec<Disk>,
    clock: SimClock,
    pool: Pool,
    tape: Rc<RefCell<Tape>>,
    delivery: Delivery,
    calls: Rc<RefCell<Vec<Call>>>,
    values: Vec<Value>,
    evicted: Vec<(u8, usize)>,
    calendar: Vec<(usize, u64)>,
}

impl Run {
    fn new(start: &Start, pool: &Pool, delivery: Delivery) -> Run {
        let disks: Vec<Disk> =
            start.images.iter().enumerate().map(|(n, i)| Disk::new(n, i.clone())).collect();
        let clock = SimClock::new(start.wall);
        let tape = Rc::default();
        let node = Node::start(&disks, &clock, pool, None, delivery, true).expect("a sound start");
        disks.iter().for_each(|disk| disk.record(&tape));
        Run {
            node: Some(node),
            disks,
            clock,
            pool: pool.clone(),
            tape,
            delivery,
            calls: Rc::new(RefCell::new(start.calls.clone())),
            values: start.values.clone(),
            evicted: Vec::new(),
            calendar: vec![(0, start.wall)],
        }
    }

    fn node(&self) -> &Node {
        self.node.as_ref().expect("a node runs between operations")
    }

    fn value(&mut self, length: u32) -> usize {
        self.values.push(Value { length });
        self.values.len() - 1
    }

    fn begin(&self, key: u8, effect: Effect, expires: u64) -> usize {
        let invoked = self.tape.borrow().events.len();
        let call = Call {
            key,
            effect,
            invoked,
            acknowledged: NEVER,
            refused: false,
            generation: None,
            expires,
        };
        self.calls.borrow_mut().push(call);
        self.calls.borrow().len() - 1
    }

    /// Asks for a put; it is answered while the reactor runs.
    fn put(&mut self, key: u8, length: u32, mode: Mode, ttl_seconds: u32) -> usize {
        let value = self.value(length);
        let expires = match ttl_seconds {
            0 => 0,
            ttl => self.clock.unix_seconds() + u64::from(ttl),
        };
        let call = self.begin(key, Effect::Holds(value), expires);
        let put = Put { key, value, length, mode, ttl_seconds };
        let node = self.node();
        let (store, disks, pool) = (node.store.clone(), node.disks.clone(), node.pool.clone());
        self.spawn(call, machine::put(store, disks, pool, call, put));
        call
    }

    fn spawn(&self, call: usize, work: impl Future<Output = Result<u64, String>> + 'static) {
        let (calls, tape) = (Rc::clone(&self.calls), Rc::clone(&self.tape));
        self.node().reactor.local().spawn(async move {
            let answer = work.await;
            let call = &mut calls.borrow_mut()[call];
            call.acknowledged = tape.borrow().events.len();
            call.refused = answer.is_err();
            call.generation = answer.ok().filter(|_| call.effect != Effect::Gone);
        });
    }

    /// Runs until nothing moves; notes what is evicted meanwhile.
    fn settle(&mut self) {
        let node = self.node.as_mut().expect("a node runs between operations");
        let (store, tape, evicted) = (&node.store, &self.tape, &mut self.evicted);
        let counters = store.counters();
        let hashes: Vec<_> = (0..KEYS).map(|k| store.hasher().hash(&machine::key(k))).collect();
        let gone = |k: usize| store.exists(&hashes[k..=k])[0] == Err(Miss(MissReason::Evicted));
        let before = Cell::new(counters.evictions.get());
        let known = RefCell::new((0..usize::from(KEYS)).map(gone).collect::<Vec<bool>>());
        settle(&mut node.reactor, &self.disks, Some(tape), self.delivery, |place| {
            if counters.evictions.get() == before.get() {
                return;
            }
            before.set(counters.evictions.get());
            for (key, known) in known.borrow_mut().iter_mut().enumerate() {
                let now = gone(key);
                if now && !*known {
                    evicted.push((key as u8, place));
                }
                *known = now;
            }
        });
    }

    /// Asks for an operation. What it asks for is answered by [`Run::settle`].
    fn ask(&mut self, step: Step) -> Vec<(usize, Step)> {
        let small = |run: &Run| 9_000 + 61 * (run.values.len() as u32 % 100);
        let parts = |run: &Run| 2 * EXTENT + 5_000 + 61 * (run.values.len() as u32 % 100);
        match step {
            Step::Put(key) => {
                let length = small(self);
                vec![(self.put(key, length, Mode::Replace, 0), step)]
            }
            Step::PutParts(key) => {
                let length = parts(self);
                vec![(self.put(key, length, Mode::Replace, 0), step)]
            }
            Step::PutSame => {
                let (node, length) = (self.node(), small(self));
                let held = node.store.exists(&[node.hash(0)]).remove(0);
                let mode = Mode::Generation(held.map_or(3, |held| held.generation));
                vec![(self.put(0, length, mode, 0), step)]
            }
            Step::PutBriefly => {
                let length = small(self);
                vec![(self.put(0, length, Mode::Replace, 50), step)]
            }
            Step::Delete(key) => {
                let call = self.begin(key, Effect::Gone, 0);
                let store = self.node().store.clone();
                self.spawn(call, machine::delete(store, call, key));
                vec![(call, step)]
            }
            Step::Burst => {
                let put = |key| (self.put(key, small(self), Mode::Replace, 0), step);
                BURST.map(put).collect()
            }
            Step::Pressure => vec![(self.put(LARGE, 15 * EXTENT + 77, Mode::Replace, 0), step)],
            Step::Checkpoint => {
                let node = self.node();
                let _ = spawn(&node.reactor.local(), machine::checkpoint(node.store.clone()));
                Vec::new()
            }
            Step::Tick => {
                self.clock.jump_wall(100);
                let from = self.tape.borrow().events.len();
                self.calendar.push((from, self.clock.unix_seconds()));
                let node = self.node();
                if let Ok(lease) = node.store.lease(node.hash(0)) {
                    node.store.unpin(lease.slot);
                }
                Vec::new()
            }
            Step::Restart | Step::Stop => {
                self.restart(step == Step::Stop);
                Vec::new()
            }
        }
    }

    fn restart(&mut self, in_order: bool) {
        if in_order {
            let node = self.node();
            let store = node.store.clone();
            let done = spawn(&node.reactor.local(), async move { store.shutdown().await });
            self.settle();
            assert!(done.borrow().is_some(), "a stop in order ends");
        }
        self.node = None;
        let (disks, pool) = (&self.disks, &self.pool);
        let node = Node::start(disks, &self.clock, pool, Some(&self.tape), self.delivery, true);
        self.node = Some(node.expect("drives that nothing happened to form a node"));
        self.settle();
    }

    /// Does these operations, at once if there are several. A put without a place is repeated, for
    /// the store makes one.
    fn perform(&mut self, steps: &[Step]) {
        let mut asked: Vec<_> = steps.iter().flat_map(|step| self.ask(*step)).collect();
        self.settle();
        for _ in 0..3 {
            let refused = |(call, step): &(usize, Step)| {
                self.calls.borrow()[*call].refused && *step == Step::Pressure
            };
            let again: Vec<Step> =
                asked.iter().filter(|one| refused(one)).map(|one| one.1).collect();
            if again.is_empty() {
                break;
            }
            asked = again.iter().flat_map(|step| self.ask(*step)).collect();
            self.settle();
        }
        let calls = self.calls.borrow();
        assert!(calls.iter().all(|call| call.acknowledged != NEVER), "every call is answered");
    }

    fn end(self, base: Vec<Image>, last: usize) -> History {
        drop(self.node);
        let mut tape = self.tape.borrow_mut();
        History {
            base,
            events: std::mem::take(&mut tape.events),
            writes: std::mem::take(&mut tape.writes),
            calls: self.calls.borrow().clone(),
            values: self.values,
            evicted: self.evicted,
            calendar: self.calendar,
            last,
        }
    }

    /// The drives as they are, as another run's start. All that is on them counts as old.
    fn rest(self) -> Start {
        drop(self.node);
        let settled = |call: &Call| Call { invoked: 0, acknowledged: 0, ..call.clone() };
        let evicted: Vec<u8> = self.evicted.iter().map(|(key, _)| *key).collect();
        assert!(evicted.is_empty(), "a base is not so full that blocks go");
        // Of each key only the last call: nothing on the drives knows of the others.
        let mut calls: BTreeMap<u8, Call> = BTreeMap::new();
        for call in self.calls.borrow().iter().filter(|call| !call.refused) {
            calls.insert(call.key, settled(call));
        }
        Start {
            images: self.disks.iter().map(Disk::image).collect(),
            calls: calls.into_values().collect(),
            values: self.values,
            wall: self.clock.unix_seconds(),
        }
    }
}

/// Runs a workload from its start.
pub fn record(workload: &Workload, start: &Start, pool: &Pool) -> History {
    let mut run = Run::new(start, pool, workload.delivery);
    // Opening wrote superblocks; they are stable.
    let base = run.disks.iter().map(Disk::image).collect();
    let pieces = workload.steps.len() - usize::from(workload.at_once);
    let mut last = 0;
    for piece in 0..pieces {
        last = run.tape.borrow().events.len();
        let end = if piece + 1 == pieces { workload.steps.len() } else { piece + 1 };
        run.perform(&workload.steps[piece..end]);
    }
    run.end(base, last)
}

/// Makes the drives on which workloads begin.
pub fn start(drives: usize, base: Base, pool: &Pool) -> Start {
    let new = Start {
        images: machine::format(drives, pool),
        calls: Vec::new(),
        values: Vec::new(),
        wall: NEW,
    };
    let mut run = Run::new(&new, pool, Delivery::Oldest);
    for key in FILLED {
        let length = if key % 4 == 0 { EXTENT } else { 2 * EXTENT + 100 } - u32::from(key);
        run.put(key, length, Mode::Replace, 0);
        run.settle();
    }
    let first = match base {
        Base::Fresh => return run.rest(),
        Base::Worn => {
            wear(&mut run);
            return run.rest();
        }
        Base::Torn => vec![Step::Put(0)],
        Base::Wide => vec![Step::Burst, Step::Put(0)],
        // No delete: its frame ends in the sector of its header and would be whole.
        Base::Narrow => vec![Step::Put(0), Step::Put(1), Step::Put(0)],
    };
    let filled = run.rest();
    let mut run = Run::new(&filled, pool, Delivery::Together);
    let images: Vec<Image> = run.disks.iter().map(Disk::image).collect();
    first.iter().for_each(|step| run.perform(&[*step]));
    let history = run.end(images, 0);
    torn(&history, &filled, drives)
}

/// A power cut that left the first sector of every frame of a run, and nothing of its values.
fn torn(history: &History, before: &Start, drives: usize) -> Start {
    let ring = layout(drives);
    let mut images = history.base.clone();
    for write in &history.writes {
        let in_ring =
            write.offset >= ring.ring_offset && write.offset < ring.ring_offset + ring.ring_bytes;
        if in_ring {
            images[write.drive].write(write.offset, &write.data[..SECTOR]);
        }
    }
    // The values are known although nothing of them is there: they must not come back as others.
    let mut values = before.values.clone();
    values.extend_from_slice(&history.values[before.values.len()..]);
    Start { images, calls: before.calls.clone(), values, wall: before.wall }
}

/// Puts and deletes until the first drive's log stands three pages before the end of a later lap,
/// with a checkpoint on the way.
fn wear(run: &mut Run) {
    let pages = layout(run.disks.len()).ring_bytes / 4096;
    let mut rng = Rng::seeded(0x11);
    // Frames are of one page each, and this run has written all there are.
    loop {
        let head = run.node().store.drives()[0].journal.frames;
        if head > pages && head % pages >= pages - 4 {
            return;
        }
        let length = 5_000 + rng.below(500) as u32;
        run.put(WEARING, length, Mode::Replace, 0);
        run.settle();
    }
}
