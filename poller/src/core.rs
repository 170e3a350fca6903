//! What a reactor and its local handles share: one thread's state, borrowed only for moments.
//!
//! Rule of this file: no borrow is held while code from outside runs (a future, a drop, a closure,
//! a clock), because that code may come straight back in.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

use crate::poller::Poller;
use crate::reactor::TaskOrder;
use crate::remote::Shared;
use crate::rng::Rng;
use crate::stats::{self, LONG_TURN, NOTED};
use crate::task::{Task, TaskKey, TaskTable, frame};
use crate::time::{Clock, Instant};
use crate::timer::TimerHeap;

thread_local! {
    /// The reactor whose code this thread is running right now. Several reactors may share a
    /// thread; at most one runs at a time.
    pub(crate) static CURRENT: RefCell<Option<Rc<Core>>> = const { RefCell::new(None) };
}

/// How long the thread has waited for a core is looked up this often at most, but for long turns: it costs
/// a system call. And only when it may have waited at all: a thread that waits cannot read the clock, so
/// there is a gap between two readings then. A reactor that polls, and has none, makes no system call.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// A gap between two readings of the clock in which the thread may have waited for a core. What it waited
/// in shorter ones is not told from work.
const GAP: Duration = NOTED;

pub(crate) struct Core {
    pub(crate) shared: Arc<Shared>,
    pub(crate) clock: Rc<dyn Clock>,
    pub(crate) rng: RefCell<Rng>,
    pub(crate) timers: RefCell<TimerHeap>,
    /// When the present pass began: what timers go by.
    pub(crate) pass_began: Cell<Instant>,
    /// When the last turn of a task or a poller ended: the next is measured from here.
    turn_ended: Cell<Instant>,
    /// How long the thread had waited for a core when that was last looked up, and when.
    waited: Cell<(Duration, Instant)>,
    /// There was a gap since that was looked up.
    may_have_waited: Cell<bool>,
    /// The reactor is new, or was away from its wheel: how long the thread waited meanwhile is no part of
    /// any turn.
    was_away: Cell<bool>,
    tasks: RefCell<TaskTable>,
    ready: RefCell<VecDeque<TaskKey>>,
    /// Tasks that woke themselves while running: they had their turn, and wait for the next pass.
    yielded: RefCell<VecDeque<TaskKey>>,
    running: Cell<Option<TaskKey>>,
    new_pollers: RefCell<Vec<Box<dyn Poller>>>,
    order: TaskOrder,
    closed: Cell<bool>,
}

/// While it lives, this thread runs the code of one reactor.
pub(crate) struct Entered(Option<Rc<Core>>);

impl Drop for Entered {
    fn drop(&mut self) {
        let before = self.0.take();
        let mine = CURRENT.with(|current| current.replace(before));
        drop(mine);
    }
}

impl Core {
    pub(crate) fn new(
        shared: Arc<Shared>,
        clock: Rc<dyn Clock>,
        rng: Rng,
        order: TaskOrder,
    ) -> Core {
        let now = clock.now();
        Core {
            tasks: RefCell::new(TaskTable::new(shared.clone())),
            shared,
            clock,
            rng: RefCell::new(rng),
            timers: RefCell::default(),
            pass_began: Cell::new(now),
            turn_ended: Cell::new(now),
            waited: Cell::default(),
            may_have_waited: Cell::new(false),
            was_away: Cell::new(true),
            ready: RefCell::default(),
            yielded: RefCell::default(),
            running: Cell::new(None),
            new_pollers: RefCell::default(),
            order,
            closed: Cell::new(false),
        }
    }

    /// A pass begins.
    pub(crate) fn begin_pass(&self, now: Instant) {
        self.pass_began.set(now);
        self.note_gap(now.saturating_duration_since(self.turn_ended.replace(now)));
        let (_, looked) = self.waited.get();
        let is_due =
            self.may_have_waited.get() && now.saturating_duration_since(looked) >= LOOK_EVERY;
        if is_due || self.was_away.take() {
            self.look_waited(now);
        }
    }

    /// The thread was not turning the wheel.
    ///
    /// Not to be called after each sleep: how long the thread then waits for its core is looked up with
    /// the rest, since within [`LOOK_EVERY`] it is little, and a look costs as much as a wake-up.
    pub(crate) fn was_away(&self) {
        self.was_away.set(true);
    }

    /// So much time has passed between two readings of the clock.
    fn note_gap(&self, gap: Duration) {
        if gap > GAP {
            self.may_have_waited.set(true);
        }
    }

    /// What ran since the last turn ended was a turn of `who`.
    pub(crate) fn end_turn(&self, who: &'static str) {
        let now = self.clock.now();
        let took = now.saturating_duration_since(self.turn_ended.replace(now));
        self.note_gap(took);
        let waited = if took > LONG_TURN { self.look_waited(now) } else { Duration::ZERO };
        self.shared.stats.turn_took(who, took, waited);
    }

    /// When the present turn began: when the one before it ended.
    pub(crate) fn turn_began(&self) -> Instant {
        self.turn_ended.get()
    }

    /// How long the thread has waited for a core since this was last looked up: at most
    /// [`LOOK_EVERY`] before the turn that asks.
    fn look_waited(&self, now: Instant) -> Duration {
        self.may_have_waited.set(false);
        let Some(waited) = self.clock.waited() else { return Duration::ZERO };
        let (before, _) = self.waited.replace((waited, now));
        waited.saturating_sub(before)
    }

    pub(crate) fn enter(self: &Rc<Core>) -> Entered {
        Entered(CURRENT.with(|current| current.replace(Some(self.clone()))))
    }

    pub(crate) fn spawn<F: Future<Output = ()> + 'static>(&self, name: &'static str, future: F) {
        if self.closed.get() {
            // The reactor is gone or going: the task is dropped without having run.
            return;
        }
        let key = self.tasks.borrow_mut().insert(name, frame(future));
        self.ready.borrow_mut().push_back(key);
        stats::add(&self.shared.stats.tasks_spawned, 1);
        stats::add(&self.shared.stats.tasks_live, 1);
    }

    pub(crate) fn push_ready(&self, key: TaskKey) {
        if self.closed.get() {
            return;
        }
        let queue = if self.running.get() == Some(key) { &self.yielded } else { &self.ready };
        queue.borrow_mut().push_back(key);
    }

    /// Woken from elsewhere, in the order they were woken.
    pub(crate) fn push_all_ready(&self, keys: &mut Vec<TaskKey>) {
        self.ready.borrow_mut().extend(keys.drain(..));
    }

    pub(crate) fn has_ready(&self) -> bool {
        !self.ready.borrow().is_empty() || !self.yielded.borrow().is_empty()
    }

    /// Wakes tasks whose timers are due, at most `limit`. Returns how many.
    pub(crate) fn fire_timers(&self, limit: u32) -> u32 {
        let now = self.pass_began.get();
        let mut fired = 0;
        while fired < limit {
            let due = self.timers.borrow_mut().pop_due(now);
            let Some(waker) = due else { break };
            waker.wake();
            fired += 1;
        }
        fired
    }

    /// Runs ready tasks, at most `limit` turns. Tasks that were made ready by others in this pass
    /// may have their turn in it; one that keeps waking itself has one turn in each pass.
    pub(crate) fn run_tasks(&self, limit: u32) -> u32 {
        // Nearly never is there one, and to move none costs as much as to look at many.
        if !self.yielded.borrow().is_empty() {
            self.ready.borrow_mut().append(&mut self.yielded.borrow_mut());
        }
        let mut turns = 0;
        while turns < limit {
            let Some(key) = self.next_ready() else { break };
            self.run_task(key);
            turns += 1;
        }
        turns
    }

    fn next_ready(&self) -> Option<TaskKey> {
        let mut ready = self.ready.borrow_mut();
        if self.order == TaskOrder::Seeded && ready.len() > 1 {
            let at = self.rng.borrow_mut().below(ready.len() as u64);
            ready.swap(0, usize::try_from(at).expect("an index"));
        }
        ready.pop_front()
    }

    fn run_task(&self, key: TaskKey) {
        let taken = self.tasks.borrow_mut().take(key);
        let Some(mut task) = taken else { return };
        let name = task.name;
        task.alarm.flag.lower();
        self.running.set(Some(key));
        let done = task.future.as_mut().poll(&mut Context::from_waker(&task.alarm.waker));
        self.running.set(None);
        self.end_turn(name);
        if done.is_pending() {
            self.tasks.borrow_mut().put_back(key, task);
            return;
        }
        let Task { future, alarm, .. } = task;
        future.put_away();
        self.tasks.borrow_mut().retire(key, alarm);
        stats::sub(&self.shared.stats.tasks_live, 1);
    }

    pub(crate) fn add_poller(&self, poller: Box<dyn Poller>) {
        if !self.closed.get() {
            self.new_pollers.borrow_mut().push(poller);
        }
    }

    pub(crate) fn take_new_pollers(&self) -> Vec<Box<dyn Poller>> {
        self.new_pollers.take()
    }

    pub(crate) fn has_new_pollers(&self) -> bool {
        !self.new_pollers.borrow().is_empty()
    }

    /// The reactor is going: drops everything it keeps. What is dropped may call back in and finds
    /// a reactor that takes nothing any more.
    pub(crate) fn close(&self) {
        self.closed.set(true);
        drop(self.shared.close());
        loop {
            let taken = self.tasks.borrow_mut().take_any();
            let Some((key, task)) = taken else { break };
            task.future.put_away();
            self.tasks.borrow_mut().retire(key, task.alarm);
            stats::sub(&self.shared.stats.tasks_live, 1);
        }
        self.ready.borrow_mut().clear();
        self.yielded.borrow_mut().clear();
        let wakers: Vec<Waker> = self.timers.borrow_mut().clear();
        drop(wakers);
        drop(self.take_new_pollers());
    }
}
