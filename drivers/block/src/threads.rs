//! The driver of worker threads: plain `pread` and `pwrite`, for systems without io_uring.
//!
//! A drive has a few workers and one list of jobs, into which every reactor's queue puts its commands.
//! A worker carries out one command at a time and wakes the reactor through the completion's waker. No
//! command is lost when the drive is closed: what was submitted is done first.

use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use memkv_poller::Local;

use crate::completion::{Completer, Completion, completion};
use crate::counters::{Counters, Tally};
use crate::device::{BlockDevice, BlockQueue, Geometry, Kind};
use crate::medium::Medium;
use crate::{DeviceStats, Done, Io, IoError};

/// Commands of one drive that are carried out at the same time. Direct I/O reaches most of a drive's
/// speed at depth 1; more threads would only contend with the reactors for cores.
const WORKERS: usize = 4;

/// A drive driven by threads.
pub(crate) struct Threads {
    workers: Arc<Workers>,
    reason: String,
}

impl Threads {
    pub fn new(medium: Arc<Medium>, reason: String) -> io::Result<Threads> {
        let workers = Workers::start(medium, Arc::default(), WORKERS)?;
        Ok(Threads { workers: Arc::new(workers), reason })
    }
}

impl BlockDevice for Threads {
    fn geometry(&self) -> Geometry {
        self.workers.shared.medium.geometry
    }

    fn kind(&self) -> Kind {
        Kind::Threads
    }

    fn name(&self) -> &str {
        &self.workers.shared.medium.name
    }

    fn reason(&self) -> &str {
        &self.reason
    }

    fn stats(&self) -> DeviceStats {
        self.workers.shared.counters.stats()
    }

    fn open_queue(&self, _local: &Local) -> Result<Rc<dyn BlockQueue>, IoError> {
        // Nothing to poll: workers wake the tasks themselves.
        let outstanding = Arc::new(AtomicUsize::new(0));
        Ok(Rc::new(ThreadsQueue { workers: Arc::clone(&self.workers), outstanding }))
    }
}

struct ThreadsQueue {
    workers: Arc<Workers>,
    outstanding: Arc<AtomicUsize>,
}

impl BlockQueue for ThreadsQueue {
    fn submit(&self, io: Io) -> Completion {
        let (completer, completion) = completion();
        match self.workers.shared.medium.check(&io) {
            Ok(()) => self.workers.submit(io, completer, &self.outstanding),
            Err(error) => completer.complete(Done::of(io, Err(error))),
        }
        completion
    }

    fn outstanding(&self) -> usize {
        self.outstanding.load(Ordering::Acquire)
    }

    fn give_up(&self) {
        self.workers.give_up();
    }
}

/// One command for a worker.
struct Job {
    io: Io,
    completer: Completer,
    /// The submitting queue's count, this command included.
    outstanding: Arc<AtomicUsize>,
}

#[derive(Default)]
struct Jobs {
    list: VecDeque<Job>,
    closed: bool,
    given_up: bool,
}

struct Shared {
    medium: Arc<Medium>,
    counters: Arc<Counters>,
    jobs: Mutex<Jobs>,
    bell: Condvar,
}

impl Shared {
    /// No panic can happen while the lock is held.
    fn jobs(&self) -> MutexGuard<'_, Jobs> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next job, waiting for it; nothing when the drive is closed and all is done.
    fn next(&self) -> Option<Job> {
        let mut jobs = self.jobs();
        loop {
            if let Some(job) = jobs.list.pop_front() {
                return Some(job);
            }
            if jobs.closed {
                return None;
            }
            jobs = self.bell.wait(jobs).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn work(&self) {
        while let Some(Job { mut io, completer, outstanding }) = self.next() {
            let mut tally = Tally::default();
            if io.buf.is_some() {
                tally.transfer(false);
            }
            self.counters.handed_over(1, 1);
            let result = self.medium.carry_out(&mut io);
            self.counters.came_back(1);
            tally.done(&io, result.is_ok());
            self.counters.take(&mut tally);
            // Before the caller is woken, who may look at the count.
            outstanding.fetch_sub(1, Ordering::AcqRel);
            completer.complete(Done::of(io, result));
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
        let jobs = Mutex::default();
        let shared = Arc::new(Shared { medium, counters, jobs, bell: Condvar::new() });
        let mut workers = Workers { shared: Arc::clone(&shared), threads: Vec::new() };
        for _ in 0..count {
            let shared = Arc::clone(&shared);
            let builder = std::thread::Builder::new().name("memkv-block".into());
            // On an error `workers` is dropped, which ends those started before.
            workers.threads.push(builder.spawn(move || shared.work())?);
        }
        Ok(workers)
    }

    /// Hands over a checked command, counted in `outstanding` until it is done.
    pub fn submit(&self, io: Io, completer: Completer, outstanding: &Arc<AtomicUsize>) {
        outstanding.fetch_add(1, Ordering::AcqRel);
        let job = Job { io, completer, outstanding: Arc::clone(outstanding) };
        self.shared.jobs().list.push_back(job);
        self.shared.bell.notify_one();
    }
}

impl Workers {
    /// Ends what no worker has begun, for every queue, and lets no drop wait for the workers.
    pub fn give_up(&self) {
        let mut jobs = self.shared.jobs();
        jobs.given_up = true;
        let list = std::mem::take(&mut jobs.list);
        drop(jobs);
        for Job { io, completer, outstanding } in list {
            outstanding.fetch_sub(1, Ordering::AcqRel);
            completer.complete(Done::of(io, Err(IoError::Offline)));
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
