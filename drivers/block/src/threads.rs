//! The driver of worker threads: plain `pread` and `pwrite`, for systems without io_uring.
//!
//! A drive has a few [workers](crate::workers) and one list of jobs, into which every reactor's queue puts
//! its commands. A worker carries out one command at a time and wakes the reactor through the
//! completion's waker. No command is lost when the drive is closed: what was submitted is done first.

use std::io;
use std::rc::Rc;
use std::sync::Arc;

use memkv_poller::Local;

use crate::completion::{Completion, completion};
use crate::counters::Counters;
use crate::device::{BlockDevice, BlockQueue, Geometry, Kind};
use crate::medium::Medium;
use crate::workers::{Orders, Workers, watch_over};
use crate::{DeviceStats, Done, Io, IoError};

/// Commands of one drive that are carried out at the same time. Direct I/O reaches most of a drive's
/// speed at depth 1; more threads would only contend with the reactors for cores.
const WORKERS: usize = 4;

/// A drive driven by threads.
pub(crate) struct Threads {
    medium: Arc<Medium>,
    counters: Arc<Counters>,
    workers: Arc<Workers>,
    reason: String,
}

impl Threads {
    pub fn new(medium: Arc<Medium>, reason: String) -> io::Result<Threads> {
        let counters = Arc::default();
        let workers = Workers::start(Arc::clone(&medium), Arc::clone(&counters), WORKERS)?;
        Ok(Threads { medium, counters, workers: Arc::new(workers), reason })
    }
}

impl BlockDevice for Threads {
    fn geometry(&self) -> Geometry {
        self.medium.geometry
    }

    fn kind(&self) -> Kind {
        Kind::Threads
    }

    fn name(&self) -> &str {
        &self.medium.name
    }

    fn reason(&self) -> &str {
        &self.reason
    }

    fn stats(&self) -> DeviceStats {
        self.counters.stats()
    }

    fn open_queue(&self, local: &Local) -> Result<Rc<dyn BlockQueue>, IoError> {
        let (medium, workers) = (Arc::clone(&self.medium), Arc::clone(&self.workers));
        let orders = Arc::default();
        watch_over(&orders, local);
        Ok(Rc::new(ThreadsQueue { medium, workers, orders }))
    }
}

struct ThreadsQueue {
    medium: Arc<Medium>,
    workers: Arc<Workers>,
    orders: Arc<Orders>,
}

impl BlockQueue for ThreadsQueue {
    fn submit(&self, io: Io) -> Completion {
        let (completer, completion) = completion();
        match self.medium.check(&io) {
            Ok(()) => self.workers.submit(io, completer, &self.orders),
            Err(error) => completer.complete(Done::of(io, Err(error))),
        }
        completion
    }

    fn outstanding(&self) -> usize {
        self.orders.outstanding()
    }

    fn give_up(&self) {
        self.workers.give_up();
    }
}
