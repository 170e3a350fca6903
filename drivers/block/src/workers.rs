//! Threads that carry out commands which block: for a drive without io_uring all of them, for one with
//! it those that the kernel would hand to threads of its own anyway.
//!
//! ```text
//!   submit ─► list of jobs ─► a worker: pwrite, fdatasync, ... ─► Completion ─► the task's waker
//! ```
//!
//! **Durable commands in a row.** A lone writer that waits for each of its writes to be durable is
//! bound by how long one takes, and to wake a thread takes a good part of that. So where the last
//! command of its kind was soon followed by another, both ends wait awake, for a bounded time: the
//! worker that ended a durable command looks for the next for [`AWAKE`] before it sleeps, and a reactor
//! that would sleep polls on while one is outstanding, for [`PATIENCE`] at most and only if the
//! one before was done within that. A reactor that is awake finds the completion in memory; one that
//! sleeps is woken by its doorbell. Where nothing is asked for nobody is awake.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use memkv_poller::{Interrupt, Local, Poller, Progress};

use crate::completion::Completer;
use crate::counters::{Counters, Tally};
use crate::medium::Medium;
use crate::{Done, Io, IoError, Op, sys};

/// How long a worker looks for the next command after a durable one, and what counts as soon: some
/// times what waking a thread takes, and less than a durable write.
const AWAKE: Duration = Duration::from_micros(50);

/// How long a reactor polls on for a durable command: some times what a drive takes that makes polling
/// worth while.
const PATIENCE: Duration = Duration::from_micros(250);

/// What one queue has with workers.
#[derive(Default)]
pub(crate) struct Orders {
    outstanding: AtomicUsize,
    /// Durable commands: how many were begun, and ended.
    begun: AtomicU64,
    ended: AtomicU64,
    /// The last that was begun came soon after another.
    soon: AtomicBool,
    /// How long the last that ended took.
    took_ns: AtomicU64,
}

impl Orders {
    /// Commands that workers have, or will have.
    pub fn outstanding(&self) -> usize {
        self.outstanding.load(Ordering::Acquire)
    }
}

/// One command for a worker.
struct Job {
    io: Io,
    completer: Completer,
    /// The submitting queue's, this command included.
    orders: Arc<Orders>,
    asked: Instant,
}

impl Job {
    /// Ends the command.
    fn end(self, result: Result<(), IoError>) {
        let Job { io, completer, orders, asked } = self;
        let durable = kind(io.op).is_some();
        // Before the caller is woken, who may look at that.
        orders.outstanding.fetch_sub(1, Ordering::AcqRel);
        completer.complete(Done::of(io, result));
        // After it: a reactor that waits awake must not go to sleep in between.
        if durable {
            orders.took_ns.store(asked.elapsed().as_nanos() as u64, Ordering::Relaxed);
            orders.ended.fetch_add(1, Ordering::AcqRel);
        }
    }
}

/// Of the commands that make something durable, which.
fn kind(op: Op) -> Option<usize> {
    match op {
        Op::Flush => Some(0),
        Op::WriteFlush => Some(1),
        Op::Read | Op::Write | Op::Deallocate => None,
    }
}

/// How soon one durable command follows another.
#[derive(Default)]
struct Pace {
    /// The last, and when it ended.
    last: Option<(usize, Instant)>,
    /// Of each kind: the last was soon followed by another.
    soon: [bool; 2],
}

impl Pace {
    /// One is asked for: whether that is soon after the last.
    fn asked(&mut self, at: Instant) -> bool {
        let Some((kind, ended)) = self.last.take() else { return false };
        self.soon[kind] = at.saturating_duration_since(ended) <= AWAKE;
        self.soon[kind]
    }

    /// One has ended: whether another is to be expected soon.
    fn ended(&mut self, kind: usize, at: Instant) -> bool {
        self.last = Some((kind, at));
        self.soon[kind]
    }
}

#[derive(Default)]
struct Jobs {
    list: VecDeque<Job>,
    closed: bool,
    given_up: bool,
    /// Workers that wait for the bell, and those that wait awake.
    asleep: usize,
    awake: usize,
    pace: Pace,
}

struct Shared {
    medium: Arc<Medium>,
    counters: Arc<Counters>,
    jobs: Mutex<Jobs>,
    bell: Condvar,
    /// Raised after each change of the list that somebody awake waits for.
    news: AtomicU64,
    /// How long a worker looks for the next durable command.
    awake: Duration,
}

impl Shared {
    /// No panic can happen while the lock is held.
    fn jobs(&self) -> MutexGuard<'_, Jobs> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next job, waiting for it; nothing when the drive is closed and all is done.
    fn next(&self, expected: bool) -> Option<Job> {
        let mut jobs = self.jobs();
        if expected && jobs.list.is_empty() && !jobs.closed {
            jobs.awake += 1;
            let seen = self.news.load(Ordering::Relaxed);
            drop(jobs);
            self.look(seen);
            jobs = self.jobs();
            jobs.awake -= 1;
        }
        loop {
            if let Some(job) = jobs.list.pop_front() {
                return Some(job);
            }
            if jobs.closed {
                return None;
            }
            jobs.asleep += 1;
            jobs = self.bell.wait(jobs).unwrap_or_else(PoisonError::into_inner);
            jobs.asleep -= 1;
        }
    }

    /// Waits awake for news.
    fn look(&self, seen: u64) {
        let began = Instant::now();
        while self.news.load(Ordering::Acquire) == seen && began.elapsed() < self.awake {
            std::hint::spin_loop();
        }
    }

    fn work(&self) {
        let mut expected = false;
        while let Some(mut job) = self.next(expected) {
            let mut tally = Tally::default();
            if job.io.buf.is_some() {
                tally.transfer(false);
            }
            self.counters.handed_over(1, 1);
            let result = self.medium.carry_out(&mut job.io);
            self.counters.came_back(1);
            tally.done(&job.io, result.is_ok());
            self.counters.take(&mut tally);
            // Before the caller is woken, who may ask for the next.
            let ended = kind(job.io.op);
            expected = ended.is_some_and(|kind| self.jobs().pace.ended(kind, Instant::now()));
            job.end(result);
        }
    }
}

/// The workers of one drive; dropping the last handle finishes what was submitted and ends them.
pub(crate) struct Workers {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    /// Starts `count` threads, which add to `counters` what they do.
    pub fn start(
        medium: Arc<Medium>,
        counters: Arc<Counters>,
        count: usize,
    ) -> io::Result<Workers> {
        // Where there is one core, whoever waits awake keeps the other from working.
        let alone = thread::available_parallelism().is_ok_and(|cores| cores.get() == 1);
        let shared = Arc::new(Shared {
            medium,
            counters,
            jobs: Mutex::default(),
            bell: Condvar::new(),
            news: AtomicU64::new(0),
            awake: if alone { Duration::ZERO } else { AWAKE },
        });
        let mut workers = Workers { shared: Arc::clone(&shared), threads: Vec::new() };
        for _ in 0..count {
            let shared = Arc::clone(&shared);
            let builder = thread::Builder::new().name("memkv-block".into());
            let run = move || {
                // A reactor may have started it, which has a core for itself.
                if let Err(error) = sys::run_anywhere() {
                    tracing::debug!(%error, "a block worker stays on the core it was started on");
                }
                shared.work();
            };
            // On an error `workers` is dropped, which ends those started before.
            workers.threads.push(builder.spawn(run)?);
        }
        Ok(workers)
    }

    /// Hands over a checked command, counted in `orders` until it is done.
    pub fn submit(&self, io: Io, completer: Completer, orders: &Arc<Orders>) {
        let (durable, asked) = (kind(io.op).is_some(), Instant::now());
        orders.outstanding.fetch_add(1, Ordering::AcqRel);
        let job = Job { io, completer, orders: Arc::clone(orders), asked };
        let mut jobs = self.shared.jobs();
        if durable {
            let soon = jobs.pace.asked(asked) && !self.shared.awake.is_zero();
            orders.soon.store(soon, Ordering::Relaxed);
            orders.begun.fetch_add(1, Ordering::AcqRel);
        }
        jobs.list.push_back(job);
        // One that is awake takes it without a call to the system.
        let wake = jobs.list.len() > jobs.awake && jobs.asleep > 0;
        drop(jobs);
        self.shared.news.fetch_add(1, Ordering::Release);
        if wake {
            self.shared.bell.notify_one();
        }
    }

    /// Ends what no worker has begun, for every queue, and lets no drop wait for the workers.
    pub fn give_up(&self) {
        let mut jobs = self.shared.jobs();
        jobs.given_up = true;
        let list = std::mem::take(&mut jobs.list);
        drop(jobs);
        for job in list {
            job.end(Err(IoError::Offline));
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        let given_up = {
            let mut jobs = self.shared.jobs();
            jobs.closed = true;
            jobs.given_up
        };
        self.shared.bell.notify_all();
        if given_up {
            // A worker that is stuck in the device keeps its buffer; the others end by themselves.
            return;
        }
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!(drive = self.shared.medium.name, "a block worker panicked");
            }
        }
    }
}

/// Keeps a queue's reactor from going to sleep over a durable command that is soon done. There is
/// nothing to poll: workers wake the tasks themselves.
struct Vigil {
    /// Gone with the queue and its last command.
    orders: Weak<Orders>,
    local: Local,
    /// The command that the reactor was last kept awake for, and since when.
    over: (u64, memkv_poller::Instant),
}

/// Puts the vigil of a queue on its reactor.
pub(crate) fn watch_over(orders: &Arc<Orders>, local: &Local) {
    let (orders, over) = (Arc::downgrade(orders), (0, local.now()));
    local.add_poller(Box::new(Vigil { orders, local: local.clone(), over }));
}

impl Vigil {
    fn is_worth_while(&mut self) -> bool {
        let Some(orders) = self.orders.upgrade() else { return false };
        let begun = orders.begun.load(Ordering::Acquire);
        let idle = orders.ended.load(Ordering::Acquire) == begun;
        let slow = Duration::from_nanos(orders.took_ns.load(Ordering::Relaxed)) > PATIENCE;
        if idle || slow || !orders.soon.load(Ordering::Relaxed) {
            return false;
        }
        let now = self.local.now();
        if self.over.0 != begun {
            self.over = (begun, now);
        }
        now.saturating_duration_since(self.over.1) < PATIENCE
    }
}

impl Poller for Vigil {
    fn name(&self) -> &'static str {
        "durable commands"
    }

    fn poll(&mut self) -> Progress {
        Progress::Idle
    }

    fn arm(&mut self) -> Interrupt {
        if self.is_worth_while() { Interrupt::Busy } else { Interrupt::Quiet }
    }

    fn retired(&self) -> bool {
        self.orders.strong_count() == 0
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::pin::pin;
    use std::rc::Rc;
    use std::task::{Context, Poll, Waker};

    use memkv_dma::{Class, Hugepages, Pool, PoolConfig};
    use memkv_poller::{Clock, Reactor, ReactorConfig, Rng};

    use super::*;
    use crate::OpenOptions;
    use crate::completion::completion;

    #[test]
    fn what_soon_followed_a_command_of_a_kind_is_expected_after_the_next_of_it() {
        let (mut pace, began) = (Pace::default(), Instant::now());
        let at = |us: u64| began + Duration::from_micros(us);
        assert!(!pace.asked(at(0)) && !pace.ended(1, at(100)), "nothing is known at first");
        assert!(pace.asked(at(110)) && pace.ended(1, at(200)), "it came soon: another is expected");
        assert!(!pace.ended(0, at(300)), "of the other kind nothing is known yet");
        assert!(pace.asked(at(350)) && pace.ended(0, at(400)));
        assert!(pace.ended(1, at(500)), "what is known of a kind stays");
        let late = at(501) + AWAKE;
        assert!(!pace.asked(late) && !pace.ended(1, late), "it came late: none is expected");
    }

    /// Time stands still until it is moved.
    #[derive(Clone, Default)]
    struct Stopped(Rc<Cell<Duration>>);

    impl Clock for Stopped {
        fn now(&self) -> memkv_poller::Instant {
            memkv_poller::Instant::ORIGIN + self.0.get()
        }

        fn unix_seconds(&self) -> u64 {
            0
        }
    }

    #[test]
    fn a_reactor_is_kept_awake_for_a_command_that_is_soon_done_and_not_for_long() {
        let clock = Stopped::default();
        let config = ReactorConfig::default();
        let reactor = Reactor::new(config, Rc::new(clock.clone()), Rng::seeded(0));
        let (orders, local) = (Arc::new(Orders::default()), reactor.local());
        let mut vigil =
            Vigil { orders: Arc::downgrade(&orders), local: local.clone(), over: (0, local.now()) };
        let mut arm = || vigil.arm();
        assert_eq!(arm(), Interrupt::Quiet, "nothing is outstanding");
        orders.begun.store(1, Ordering::Relaxed);
        assert_eq!(arm(), Interrupt::Quiet, "one that stands alone");
        orders.soon.store(true, Ordering::Relaxed);
        assert_eq!(arm(), Interrupt::Busy);
        clock.0.set(PATIENCE);
        assert_eq!(arm(), Interrupt::Quiet, "it takes too long");
        orders.begun.store(2, Ordering::Relaxed);
        orders.ended.store(1, Ordering::Relaxed);
        assert_eq!(arm(), Interrupt::Busy, "another one");
        orders.took_ns.store(PATIENCE.as_nanos() as u64 + 1, Ordering::Relaxed);
        assert_eq!(arm(), Interrupt::Quiet, "the one before took too long");
        orders.took_ns.store(1, Ordering::Relaxed);
        orders.ended.store(2, Ordering::Relaxed);
        assert_eq!(arm(), Interrupt::Quiet);
        assert!(!vigil.retired());
        drop(orders);
        assert!(vigil.retired() && vigil.arm() == Interrupt::Quiet);
    }

    struct Rig {
        workers: Workers,
        pool: Pool,
        orders: Arc<Orders>,
        _folder: tempfile::TempDir,
    }

    fn rig(count: usize) -> Rig {
        let folder = tempfile::tempdir().unwrap();
        let config = PoolConfig { size: 8 << 20, chunk: 2 << 20, hugepages: Hugepages::Never };
        let pool = Pool::new(config).unwrap();
        let mut options = OpenOptions::new(folder.path().join("drive"), pool.clone());
        options.size = Some(1 << 20);
        let medium = Arc::new(Medium::open(&mut options).unwrap());
        let workers = Workers::start(medium, Arc::default(), count).unwrap();
        Rig { workers, pool, orders: Arc::default(), _folder: folder }
    }

    impl Rig {
        fn write_flush(&self) {
            let buffer = self.pool.allocate(Class::Receive, 4096).unwrap();
            let (completer, completion) = completion();
            self.workers.submit(Io::write_flush(0, 4096, buffer), completer, &self.orders);
            let mut completion = pin!(completion);
            let mut cx = Context::from_waker(Waker::noop());
            let done = loop {
                if let Poll::Ready(done) = completion.as_mut().poll(&mut cx) {
                    break done;
                }
                std::hint::spin_loop();
            };
            done.result.unwrap();
            assert_eq!(self.orders.outstanding(), 0, "it is told after it was counted");
        }
    }

    #[test]
    fn all_workers_sleep_when_nothing_more_comes() {
        let rig = rig(2);
        (0..100).for_each(|_| rig.write_flush());
        loop {
            let jobs = rig.workers.shared.jobs();
            if (jobs.asleep, jobs.awake) == (2, 0) {
                break;
            }
            drop(jobs);
            thread::yield_now();
        }
        rig.write_flush();
    }

    /// The core of a reactor that polls is not for workers that it starts.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_worker_runs_anywhere_wherever_it_was_started() {
        let cores = |task: &str| {
            let status = std::fs::read_to_string(format!("/proc/{task}/status")).ok()?;
            let line = status.lines().find(|line| line.starts_with("Cpus_allowed:")).unwrap();
            Some(line.to_owned())
        };
        let mut one = std::mem::MaybeUninit::<libc::cpu_set_t>::zeroed();
        // SAFETY: all zeroes is an empty set, and its first core is put into it.
        let one = unsafe {
            libc::CPU_SET(0, one.assume_init_mut());
            one.assume_init()
        };
        // SAFETY: the call reads the set; 0 is the calling thread. It fails where that core is not
        // ours, and then there is nothing to be seen.
        unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const one) };
        let rig = rig(1);
        rig.write_flush();
        let tasks = std::fs::read_dir("/proc/self/task").unwrap();
        let name = |task: &str| std::fs::read_to_string(format!("/proc/self/task/{task}/comm"));
        let workers: Vec<String> = tasks
            .map(|task| task.unwrap().file_name().into_string().unwrap())
            .filter(|task| name(task).is_ok_and(|name| name.trim() == "memkv-block"))
            .collect();
        // One of another test may have ended meanwhile.
        let seen = workers.iter().filter_map(|worker| cores(&format!("self/task/{worker}")));
        let seen: Vec<String> = seen.collect();
        assert!(!seen.is_empty());
        let all = cores("self").expect("this process is there");
        assert!(seen.iter().all(|cores| *cores == all), "{seen:?}, but {all}");
    }
}
