//! The store's own I/O: a queue of the block driver on a reactor, driven as sessions drive it.
//!
//! Every value in flight is moved in pieces of a session's size, each from or to memory of the pool
//! that was taken for it; a value follows when the last piece of the one before has come.

use std::cell::Cell;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use memkv_block::{BlockDevice, BlockQueue, DeviceStats, Io, IoError, OpenOptions};
use memkv_dma::{Class, Pool};
use memkv_poller::{Reactor, ReactorConfig, Rng, SystemClock};
use memkv_session::SessionLimits;

use crate::cpu::CpuClock;
use crate::error::{BenchError, doing};
use crate::measure::Operation;

/// What is moved.
#[derive(Clone, Copy)]
pub struct Ask {
    /// Put writes, get reads.
    pub operation: Operation,
    /// Bytes of a value.
    pub value_bytes: usize,
    /// Values in flight.
    pub depth: usize,
    /// In any order, else one after the other.
    pub random: bool,
    /// Bytes moved in all.
    pub bytes: u64,
}

/// What it cost.
#[derive(Clone, Copy)]
pub struct OwnSample {
    values: u64,
    bytes: u64,
    wall: Duration,
    cpu: Duration,
    /// The driver's counters over that time.
    pub stats: DeviceStats,
}

impl OwnSample {
    /// GiB per second.
    pub fn speed(&self) -> f64 {
        self.bytes as f64 / f64::from(1 << 30) / self.wall.as_secs_f64()
    }

    /// Values per second.
    pub fn rate(&self) -> f64 {
        self.values as f64 / self.wall.as_secs_f64()
    }

    /// CPU seconds per GiB.
    pub fn cost(&self) -> f64 {
        self.cpu.as_secs_f64() * f64::from(1 << 30) / self.bytes as f64
    }
}

/// A device with its queue and the reactor that turns it.
pub struct OwnIo {
    device: Arc<dyn BlockDevice>,
    reactor: Reactor,
    job: Rc<Job>,
}

struct Job {
    queue: Rc<dyn BlockQueue>,
    pool: Pool,
    capacity: u64,
    next: Cell<u64>,
    rng: Cell<u64>,
}

impl OwnIo {
    /// Opens a file or a device as it is.
    ///
    /// # Errors
    /// When it cannot be had.
    pub fn open(path: &Path, pool: &Pool) -> Result<OwnIo, BenchError> {
        let device = memkv_block::open(OpenOptions::new(path, pool.clone()))?;
        let config = ReactorConfig::default();
        let reactor = Reactor::new(config, Rc::new(SystemClock), Rng::seeded(0));
        let queue = device.open_queue(&reactor.local())?;
        let capacity = device.geometry().capacity;
        let (next, rng) = (Cell::new(0), Cell::new(1));
        let job = Rc::new(Job { queue, pool: pool.clone(), capacity, next, rng });
        Ok(OwnIo { device, reactor, job })
    }

    /// Moves what is asked for.
    ///
    /// # Errors
    /// The first that the device says.
    pub fn run(&mut self, ask: Ask) -> Result<OwnSample, BenchError> {
        let clock = || CpuClock::OWN.read().map_err(doing("a CPU clock"));
        let values = ask.bytes / ask.value_bytes as u64;
        let (cpu, before, begun) = (clock()?, self.device.stats(), Instant::now());
        let local = self.reactor.local();
        let left = Rc::new(Cell::new(values));
        let job = Rc::clone(&self.job);
        let outcome = self.reactor.block_on(async move {
            let worker = |_| local.spawn_join(Rc::clone(&job).work(ask, Rc::clone(&left)));
            let workers: Vec<_> = (0..ask.depth).map(worker).collect();
            for worker in workers {
                worker.await?;
            }
            Ok::<_, IoError>(())
        });
        outcome?;
        let (wall, cpu) = (begun.elapsed(), clock()? - cpu);
        let stats = since(self.device.stats(), before);
        Ok(OwnSample { values, bytes: values * ask.value_bytes as u64, wall, cpu, stats })
    }
}

impl Job {
    /// One value after the other, until none is left.
    async fn work(self: Rc<Self>, ask: Ask, left: Rc<Cell<u64>>) -> Result<(), IoError> {
        while let Some(rest) = left.get().checked_sub(1) {
            left.set(rest);
            let offset = self.place(ask);
            let piece = (SessionLimits::default().transfer as usize).min(ask.value_bytes);
            let mut pieces = Vec::with_capacity(ask.value_bytes / piece);
            for at in (0..ask.value_bytes).step_by(piece) {
                let len = piece.min(ask.value_bytes - at);
                let class = match ask.operation {
                    Operation::Put => Class::Receive,
                    Operation::Get => Class::Send,
                };
                let chunk = self.pool.allocate_wait(class, len).await;
                let io = match ask.operation {
                    Operation::Put => Io::write(offset + at as u64, len, chunk),
                    Operation::Get => Io::read(offset + at as u64, len, chunk),
                };
                pieces.push(self.queue.submit(io));
            }
            for piece in pieces {
                piece.await.result?;
            }
        }
        Ok(())
    }

    /// Where the next value lies.
    fn place(&self, ask: Ask) -> u64 {
        let slots = self.capacity / ask.value_bytes as u64;
        let slot = if ask.random {
            let mut rng = fastrand::Rng::with_seed(self.rng.get());
            let slot = rng.u64(0..slots);
            self.rng.set(rng.get_seed());
            slot
        } else {
            self.next.replace(self.next.get() + 1) % slots
        };
        slot * ask.value_bytes as u64
    }
}

/// What was asked since `before`; levels as they are.
fn since(now: DeviceStats, before: DeviceStats) -> DeviceStats {
    DeviceStats {
        submitted: now.submitted - before.submitted,
        enters: now.enters - before.enters,
        transfers: now.transfers - before.transfers,
        fixed: now.fixed - before.fixed,
        dry: now.dry - before.dry,
        starved: now.starved - before.starved,
        ..now
    }
}
