//! The wheel itself.

use std::future::Future;
use std::os::fd::{AsRawFd, RawFd};
use std::rc::Rc;
use std::sync::Arc;

use crate::core::Core;
use crate::handle::Local;
use crate::poller::{Interrupt, Poller, Progress, Wait};
use crate::remote::{Call, Remote, Shared};
use crate::rng::Rng;
use crate::stats::{self, ReactorStats};
use crate::stop::StopFlag;
use crate::sync::{self, Bell};
use crate::task::TaskKey;
use crate::time::{Clock, Instant};

/// Most closures of the inbox run in one pass.
const CALLS_PER_PASS: usize = 64;
/// Most timers fired in one pass.
const TIMERS_PER_PASS: u32 = 256;
/// Most turns given to tasks in one pass.
const TURNS_PER_PASS: u32 = 128;
/// A pass that found so much to do is followed by an offer of the core to other threads. Where one waits
/// for it, it gets it now, and the system need not take it in the middle of a later pass, for as long as its
/// ticks are apart. Passes for a few peers are shorter than what the offer might cost them.
const MUCH: u32 = 32;

/// Which reactor of the process.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Hash)]
pub struct ReactorId(pub u16);

/// What a reactor does when there is nothing to do.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub enum IdlePolicy {
    /// Keeps polling: a core belongs to it.
    Busy,
    /// Sleeps until its doorbell rings, a poller's interrupt comes, or a timer is due.
    #[default]
    Adaptive,
}

/// Which of the ready tasks runs next.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub enum TaskOrder {
    /// The one that has been ready longest.
    #[default]
    Fifo,
    /// One drawn from the reactor's generator: for the simulator, which looks for races.
    Seeded,
}

/// How to set up a reactor.
#[derive(Clone, Debug)]
pub struct ReactorConfig {
    /// Its number.
    pub id: ReactorId,
    /// What it does when idle.
    pub idle: IdlePolicy,
    /// The core its thread is bound to by [`Reactor::run`], where the system can do that.
    pub cpu: Option<usize>,
    /// The order of ready tasks.
    pub task_order: TaskOrder,
    /// Most closures that may wait in its inbox; at least 1.
    pub inbox_capacity: usize,
}

impl Default for ReactorConfig {
    /// Reactor 0, adaptive, not bound to a core, first come first served, 1024 closures.
    fn default() -> ReactorConfig {
        ReactorConfig {
            id: ReactorId(0),
            idle: IdlePolicy::Adaptive,
            cpu: None,
            task_order: TaskOrder::Fifo,
            inbox_capacity: 1024,
        }
    }
}

/// One thread's wheel over inbox, timers, tasks and pollers.
///
/// It is made on the thread that turns it and stays there. Dropping it drops its tasks where they
/// stand, then its pollers; wakers, handles and remotes that are still about become inert.
pub struct Reactor {
    core: Rc<Core>,
    local: Local,
    idle: IdlePolicy,
    cpu: Option<usize>,
    pollers: Vec<Box<dyn Poller>>,
    meter: Meter,
    /// Room that is used again in every pass.
    woken: Vec<TaskKey>,
    calls: Vec<Call>,
    interrupts: Vec<RawFd>,
    /// Pollers that have gone: their descriptors may have been given to others since.
    departed: u32,
}

/// Says of every nanosecond whether it was busy or idle: each pass by what it found.
struct Meter {
    since: Instant,
    busy: bool,
}

impl Meter {
    fn charge(&mut self, now: Instant, stats: &ReactorStats) {
        let spent = now.saturating_duration_since(self.since).as_nanos() as u64;
        stats::add(if self.busy { &stats.busy_ns } else { &stats.idle_ns }, spent);
        self.since = now;
    }
}

impl Reactor {
    /// A reactor that has not taken a pass yet.
    ///
    /// # Panics
    /// When the process has no descriptor left for its doorbell, or the inbox has no room at all.
    pub fn new(config: ReactorConfig, clock: Rc<dyn Clock>, rng: Rng) -> Reactor {
        assert!(config.inbox_capacity > 0, "an inbox without room takes nothing");
        let bell = Bell::new().expect("a descriptor for the reactor's doorbell");
        let shared = Arc::new(Shared::new(config.id, config.inbox_capacity, bell));
        let since = clock.now();
        let core = Rc::new(Core::new(shared, clock, rng, config.task_order));
        Reactor {
            local: Local::new(core.clone()),
            core,
            idle: config.idle,
            cpu: config.cpu,
            pollers: Vec::new(),
            meter: Meter { since, busy: false },
            woken: Vec::new(),
            calls: Vec::new(),
            interrupts: Vec::new(),
            departed: 0,
        }
    }

    /// The handle for code on this reactor.
    pub fn local(&self) -> Local {
        self.local.clone()
    }

    /// The handle for other threads.
    pub fn remote(&self) -> Remote {
        self.local.remote()
    }

    /// Its counters.
    pub fn stats(&self) -> Arc<ReactorStats> {
        self.core.shared.stats.clone()
    }

    /// When the first timer is due, if any is set.
    pub fn next_timer(&self) -> Option<Instant> {
        self.core.timers.borrow().next()
    }

    /// Whether a pass may find something besides timers: a message, a ready task, or a poller, of
    /// which nobody knows before it is asked. For whoever steps several reactors on one thread.
    pub fn may_have_work(&self) -> bool {
        self.core.shared.doorbell.is_pending()
            || self.core.has_ready()
            || !self.pollers.is_empty()
            || self.core.has_new_pollers()
    }

    /// One pass: inbox, timers, ready tasks, pollers; at most 64 closures, 256 timers and 128 turns
    /// of tasks, and each poller once. Never blocks. `Idle` means that only a message, a timer or a
    /// device can bring more work.
    pub fn step(&mut self) -> Progress {
        let entered = self.core.enter();
        let now = self.core.clock.now();
        let stats = &self.core.shared.stats;
        self.meter.charge(now, stats);
        stats::add(&stats.polls, 1);
        self.core.begin_pass(now);
        let mut work = self.take_inbox();
        work += self.core.fire_timers(TIMERS_PER_PASS);
        work += self.core.run_tasks(TURNS_PER_PASS);
        work += self.poll_pollers();
        if work == 0 && self.core.has_ready() {
            work = 1;
        }
        drop(entered);
        self.meter.busy = work > 0;
        Progress::of(work)
    }

    /// Takes passes until `stop` is raised; between two that found nothing, rests as the idle
    /// policy says. Needs a clock that runs by itself.
    pub fn run(&mut self, stop: &StopFlag) {
        if let Some(cpu) = self.cpu
            && let Err(error) = sync::pin_thread(cpu)
        {
            let reactor = self.core.shared.id.0;
            tracing::warn!(reactor, cpu, %error, "cannot bind the reactor to its core");
        }
        let _registration = stop.register(self.remote());
        self.core.was_away();
        self.meter.since = self.core.clock.now();
        while !stop.is_stopped() {
            if let Progress::Busy(work) = self.step() {
                if work >= MUCH && self.idle == IdlePolicy::Adaptive {
                    self.offer_core();
                }
                continue;
            }
            if self.idle == IdlePolicy::Busy || self.is_eager() {
                std::hint::spin_loop();
            } else {
                self.sleep();
            }
        }
    }

    /// Takes passes until `fut` is done, sleeping in between whatever the idle policy, and returns
    /// its result. For tests and for start-up. Needs a clock that runs by itself.
    pub fn block_on<T: 'static>(&mut self, fut: impl Future<Output = T> + 'static) -> T {
        self.meter.since = self.core.clock.now();
        self.core.was_away();
        let mut handle = self.local.spawn_join(fut);
        loop {
            let progress = self.step();
            if let Some(value) = handle.try_take() {
                return value;
            }
            if !progress.is_busy() {
                self.sleep();
            }
        }
    }

    /// Lets other threads have the core, if any wait for it.
    fn offer_core(&self) {
        std::thread::yield_now();
        let stats = &self.core.shared.stats;
        stats::add(&stats.offers, 1);
    }

    fn take_inbox(&mut self) -> u32 {
        let shared = &self.core.shared;
        if !shared.doorbell.take_pending() {
            return 0;
        }
        if shared.take(&mut self.woken, &mut self.calls, CALLS_PER_PASS) {
            // Some are left: as good as a message that has just come in.
            shared.doorbell.notify();
        }
        self.core.push_all_ready(&mut self.woken);
        // A wake-up alone counts as work too: the pass after it may find what it was about.
        let count = 1 + self.calls.len() as u32;
        for call in self.calls.drain(..) {
            call(&self.local);
        }
        self.core.end_turn("inbox");
        count
    }

    fn poll_pollers(&mut self) -> u32 {
        if self.core.has_new_pollers() {
            self.pollers.append(&mut self.core.take_new_pollers());
        }
        let mut work = 0u32;
        let mut at = 0;
        while at < self.pollers.len() {
            let poller = &mut self.pollers[at];
            match poller.poll() {
                Progress::Busy(count) => {
                    work = work.saturating_add(count.max(1));
                    self.core.end_turn(poller.name());
                }
                Progress::Idle if poller.retired() => {
                    drop(self.pollers.remove(at));
                    self.departed = self.departed.wrapping_add(1);
                    continue;
                }
                Progress::Idle => {}
            }
            at += 1;
        }
        work
    }

    fn is_eager(&mut self) -> bool {
        self.pollers.iter_mut().any(|poller| poller.eager())
    }

    /// Waits for the bell, the pollers' interrupts or the next timer, once, if that is safe.
    ///
    /// 1. Announce it: from here on other threads ring. Anything in the inbox ends the attempt.
    /// 2. Arm the pollers. One that cannot be armed ends the attempt.
    /// 3. Look once more: what came while arming ends the attempt.
    /// 4. Wait.
    /// 5. Awake: take the announcement back, disarm.
    fn sleep(&mut self) {
        let core = self.core.clone();
        let doorbell = &core.shared.doorbell;
        if !doorbell.begin_sleep() {
            return;
        }
        let armed = self.arm_pollers();
        if let Some(within) = armed.sleeps
            && !self.look_once_more()
        {
            self.wait(doorbell.bell(), within);
        }
        doorbell.end_sleep();
        for poller in self.pollers.iter_mut().take(armed.asked) {
            poller.disarm();
        }
    }

    /// Arms pollers until one refuses.
    fn arm_pollers(&mut self) -> Armed {
        self.interrupts.clear();
        let mut within = None;
        for (at, poller) in self.pollers.iter_mut().enumerate() {
            match if within.is_none() { poller.arm_or_wait() } else { poller.arm() } {
                Interrupt::Fd(fd) => self.interrupts.push(fd),
                Interrupt::Quiet => {}
                Interrupt::Busy => return Armed { asked: at + 1, sleeps: None },
                Interrupt::Own => {
                    assert!(within.is_none(), "{} was not asked to wait", poller.name());
                    within = Some(at);
                }
            }
        }
        Armed { asked: self.pollers.len(), sleeps: Some(within) }
    }

    fn look_once_more(&mut self) -> bool {
        let _entered = self.core.enter();
        let mut found = false;
        for poller in &mut self.pollers {
            found |= poller.poll().is_busy();
        }
        found || self.core.has_ready() || self.core.has_new_pollers()
    }

    /// Waits: within the poller that offered to, if one did.
    fn wait(&mut self, bell: &Bell, within: Option<usize>) {
        // The pass before this found nothing and was short.
        let now = self.core.pass_began.get();
        let timeout = self.next_timer().map(|at| at.saturating_duration_since(now));
        if timeout.is_some_and(|timeout| timeout.is_zero()) {
            return;
        }
        let rung = match within {
            Some(at) => {
                let (bell, descriptors) = (bell.fd().as_raw_fd(), &self.interrupts[..]);
                let departed = self.departed;
                self.pollers[at].wait(Wait { bell, descriptors, departed, timeout })
            }
            None => sync::wait(bell, &self.interrupts, timeout),
        };
        if rung {
            bell.silence();
        }
        let stats = &self.core.shared.stats;
        stats::add(&stats.sleeps, 1);
    }
}

/// What became of the attempt to sleep.
struct Armed {
    /// Pollers that were asked, and have to be disarmed.
    asked: usize,
    /// None refused; the one that the reactor is to sleep in, if any.
    sleeps: Option<Option<usize>>,
}

impl Drop for Reactor {
    fn drop(&mut self) {
        let _entered = self.core.enter();
        self.core.close();
        // After the tasks: what a task gave up is still in a device's hands until here.
        self.pollers.clear();
    }
}
