//! The reactors of a simulated machine, the seed that picks which of them runs, and the clock.
//!
//! All reactors live on one thread. The world steps one of them at a time, picked by the seed among
//! those that may have work, and mixes in what disks and network have to deliver at this moment, one
//! event at a time, so that a completion can meet a half-run set of tasks. Only when nothing can run and
//! nothing is left to deliver does time move: straight to the next event or timer. A simulated second
//! in which nothing happens costs nothing.

use std::cell::RefCell;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;

use memkv_poller::{
    Clock, IdlePolicy, Instant, Local, Progress, Reactor, ReactorConfig, ReactorId, ReactorStats,
    Rng, TaskOrder,
};

use crate::clock::SimClock;
use crate::disk::SimDisk;

/// Something with events in simulated time.
pub trait Source {
    /// When its next event is due.
    fn next(&self) -> Option<Instant>;

    /// Delivers at most `limit` events that are due by now; returns how many.
    fn deliver(&self, limit: usize) -> usize;
}

impl Source for SimDisk {
    fn next(&self) -> Option<Instant> {
        self.next_due()
    }

    fn deliver(&self, limit: usize) -> usize {
        SimDisk::deliver(self, limit)
    }
}

/// What a world is made of.
#[derive(Clone, Debug)]
pub struct WorldOptions {
    /// How many reactors, 1 to 32.
    pub reactors: usize,
    /// Slots of each reactor's inbox.
    pub inbox_capacity: usize,
    /// Decides everything that is left to chance.
    pub seed: u64,
}

/// A simulated machine: its reactors and the events around them.
pub struct World {
    options: WorldOptions,
    clock: SimClock,
    rng: Rng,
    reactors: Vec<Reactor>,
    sources: Vec<Rc<dyn Source>>,
    /// Indexes of sources with an event at this very moment.
    due: Vec<usize>,
    /// One bit for each reactor that may have work.
    runnable: u32,
    steps: u64,
}

impl World {
    /// A running machine without disks or network.
    ///
    /// # Panics
    /// If the number of reactors is not 1 to 32.
    pub fn new(options: WorldOptions, clock: SimClock) -> World {
        assert!((1..=32).contains(&options.reactors), "1 to 32 reactors");
        let rng = Rng::seeded(options.seed);
        let mut world = World {
            options,
            clock,
            rng,
            reactors: Vec::new(),
            sources: Vec::new(),
            due: Vec::new(),
            runnable: 0,
            steps: 0,
        };
        world.start();
        world
    }

    /// Adds something with events. Sources stay when the machine stops.
    pub fn add_source(&mut self, source: Rc<dyn Source>) {
        self.sources.push(source);
    }

    /// The clock of this world.
    pub fn clock(&self) -> &SimClock {
        &self.clock
    }

    /// How many reactors the machine has.
    pub fn reactors(&self) -> usize {
        self.options.reactors
    }

    /// The handle of reactor `index`. Whoever spawns on it from outside a step calls [`World::kick`].
    ///
    /// # Panics
    /// If the machine is stopped.
    pub fn local(&self, index: usize) -> Local {
        self.reactors[index].local()
    }

    /// What a reactor counts.
    pub fn stats(&self, index: usize) -> Arc<ReactorStats> {
        self.reactors[index].stats()
    }

    /// Passes of reactors so far.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// All reactors may have work: something was spawned or woken from outside.
    pub fn kick(&mut self) {
        self.runnable = ((1u64 << self.reactors.len()) - 1) as u32;
    }

    /// Adds the reactors that something that has just happened gave work to.
    fn kick_woken(&mut self) {
        for (index, reactor) in self.reactors.iter().enumerate() {
            self.runnable |= u32::from(reactor.may_have_work()) << index;
        }
    }

    /// Stops the machine at once: the reactors are dropped with all their tasks.
    pub fn stop(&mut self) {
        self.runnable = 0;
        // Which reactor's tasks go first is as open as everything else.
        while !self.reactors.is_empty() {
            let pick = self.rng.below(self.reactors.len() as u64) as usize;
            drop(self.reactors.swap_remove(pick));
        }
    }

    /// Starts the machine: fresh reactors with no tasks.
    ///
    /// # Panics
    /// If it is running.
    pub fn start(&mut self) {
        assert!(self.reactors.is_empty(), "the machine is stopped before it is started");
        let clock: Rc<dyn Clock> = Rc::new(self.clock.clone());
        for index in 0..self.options.reactors {
            let config = ReactorConfig {
                id: ReactorId(index as u16),
                idle: IdlePolicy::Busy,
                cpu: None,
                task_order: TaskOrder::Seeded,
                inbox_capacity: self.options.inbox_capacity,
            };
            self.reactors.push(Reactor::new(config, clock.clone(), self.rng.fork()));
        }
        self.kick();
    }

    /// One event or one pass of one reactor, picked by the seed. False when nothing can happen at this
    /// moment: [`World::advance`] then.
    pub fn step(&mut self) -> bool {
        if !self.due.is_empty() && (self.runnable == 0 || self.rng.below(4) == 0) {
            self.deliver_one();
            return true;
        }
        if self.runnable == 0 {
            return false;
        }
        let index = self.pick_runnable();
        self.steps += 1;
        match self.reactors[index].step() {
            Progress::Idle => self.runnable &= !(1 << index),
            // Whatever it did may have woken any of the others; itself it stays runnable.
            Progress::Busy(_) => self.kick_woken(),
        }
        true
    }

    fn pick_runnable(&mut self) -> usize {
        let mut left = self.runnable;
        let count = left.count_ones();
        if count > 1 {
            for _ in 0..self.rng.below(u64::from(count)) {
                left &= left - 1;
            }
        }
        left.trailing_zeros() as usize
    }

    fn deliver_one(&mut self) {
        let pick = self.rng.below(self.due.len() as u64) as usize;
        let source = Rc::clone(&self.sources[self.due[pick]]);
        if source.deliver(1) > 0 {
            self.kick_woken();
        }
        if source.next().is_none_or(|at| at > self.clock.now()) {
            self.due.swap_remove(pick);
        }
    }

    /// Moves the clock to the next event or timer, but not beyond `limit`. False when there is none
    /// up to the limit; the clock then stands at the limit if one was given.
    pub fn advance(&mut self, limit: Option<Instant>) -> bool {
        let now = self.clock.now();
        let timers = self.reactors.iter().filter_map(Reactor::next_timer).min();
        let events = self.sources.iter().filter_map(|source| source.next()).min();
        let next = match (timers, events) {
            (Some(timer), Some(event)) => Some(timer.min(event)),
            (one, other) => one.or(other),
        };
        let Some(next) = next.filter(|next| limit.is_none_or(|limit| *next <= limit)) else {
            if let Some(limit) = limit {
                self.clock.set(limit.max(now));
            }
            return false;
        };
        // A timer that is due already was set while nothing could run; it does not turn time back.
        let next = next.max(now);
        self.clock.set(next);
        self.due.clear();
        for (index, source) in self.sources.iter().enumerate() {
            if source.next().is_some_and(|at| at <= next) {
                self.due.push(index);
            }
        }
        if timers.is_some_and(|timer| timer <= next) {
            self.kick();
        }
        true
    }

    /// Runs until `done` says so. False when nothing can ever happen again before that.
    pub fn run_until(&mut self, mut done: impl FnMut() -> bool) -> bool {
        while !done() {
            if !self.step() && !self.advance(None) {
                return done();
            }
        }
        true
    }

    /// Runs `future` on reactor `index` until it is done; `None` when the world comes to a standstill
    /// before that.
    pub fn block_on<T: 'static>(
        &mut self,
        index: usize,
        future: impl Future<Output = T> + 'static,
    ) -> Option<T> {
        let result = Rc::new(RefCell::new(None));
        let slot = Rc::clone(&result);
        self.local(index).spawn(async move {
            let value = future.await;
            *slot.borrow_mut() = Some(value);
        });
        self.kick();
        self.run_until(|| result.borrow().is_some());
        result.borrow_mut().take()
    }
}
