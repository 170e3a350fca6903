//! The driver of io_uring: one ring per drive and reactor, polled by the reactor.
//!
//! ```text
//!   submit ──► slot ──► submission entries ──┐ one io_uring_enter at the end of the reactor's pass
//!              owns the buffer               ▼
//!   Done  ◄── slot ◄── completion entries ◄─ kernel
//! ```
//!
//! Entries are handed to the kernel by the poller, which runs last in every pass of the reactor: the
//! commands that the tasks of one pass submit cost one system call, and a single one leaves in the pass
//! it was submitted in. That call carries each command to the device, so it takes a bounded number of
//! them; the rest follows in the next passes. What may wait in the kernel, flushes and holes in files,
//! the kernel hands to threads of its own. A write with a flush, which somebody waits for, is handed to
//! threads of ours that do both in a row: the ring would wake one of the kernel's for it, and this one
//! twice. Only a device that has nothing to do is not left waiting for the end of the pass: what it is
//! asked first leaves at once.

mod queue;
mod ring;

use std::io;
use std::rc::Rc;
use std::sync::{Arc, Mutex, Once, PoisonError};

use memkv_dma::Pool;
use memkv_poller::Local;

use crate::counters::Counters;
use crate::device::{BlockDevice, BlockQueue, Geometry, Kind};
use crate::medium::Medium;
use crate::workers::Workers;
use crate::{DeviceStats, IoError};
use ring::Ring;

/// Durable commands of one drive that are carried out at the same time: the journal has one at a time, and
/// a checkpoint that flushes much does not hold it up.
const FLUSHERS: usize = 2;

/// A drive driven by io_uring.
pub(crate) struct Uring {
    shared: Arc<Shared>,
    reason: String,
}

/// What the drive's queues share.
struct Shared {
    medium: Arc<Medium>,
    counters: Arc<Counters>,
    pool: Pool,
    /// Bytes of large writes of one queue in the device at once, and half of that of large reads.
    window: u64,
    /// The one thread that discards on block devices, which io_uring could not do before Linux 6.12;
    /// started when it is first needed.
    discarder: Mutex<Option<Arc<Workers>>>,
    /// The threads that carry out what is to be durable.
    flushers: Workers,
    unregistered_file: Once,
    unregistered_pool: Once,
}

impl Uring {
    /// Fails when the kernel has no io_uring, an old one, or does not let us.
    pub fn new(medium: Arc<Medium>, pool: Pool, reason: String) -> io::Result<Uring> {
        drop(Ring::new(&medium)?);
        let counters = Arc::default();
        let flushers = Workers::start(Arc::clone(&medium), Arc::clone(&counters), FLUSHERS)?;
        let shared = Shared {
            medium,
            counters,
            flushers,
            pool,
            window: queue::WINDOW,
            discarder: Mutex::new(None),
            unregistered_file: Once::new(),
            unregistered_pool: Once::new(),
        };
        Ok(Uring { shared: Arc::new(shared), reason })
    }
}

impl Shared {
    /// A ring with all registered that the kernel lets us register.
    fn ring(&self) -> io::Result<Ring> {
        let mut ring = Ring::new(&self.medium)?;
        let drive = &self.medium.name;
        if let Err(error) = ring.register_file() {
            self.unregistered_file
                .call_once(|| tracing::info!(drive, %error, "the drive is not registered"));
        }
        if let Err(error) = ring.register_pool(&self.pool) {
            self.unregistered_pool.call_once(|| {
                let advice = "raise RLIMIT_MEMLOCK to spare the kernel pinning each transfer";
                tracing::info!(drive, %error, advice, "the DMA pool is not registered");
            });
        }
        Ok(ring)
    }

    fn discarder(&self) -> io::Result<Arc<Workers>> {
        let mut discarder = self.discarder.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(workers) = &*discarder {
            return Ok(Arc::clone(workers));
        }
        let workers =
            Arc::new(Workers::start(Arc::clone(&self.medium), Arc::clone(&self.counters), 1)?);
        *discarder = Some(Arc::clone(&workers));
        Ok(workers)
    }
}

impl Shared {
    /// No worker is waited for.
    fn give_up(&self) {
        self.flushers.give_up();
        let discarder = self.discarder.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(workers) = &*discarder {
            workers.give_up();
        }
    }
}

impl BlockDevice for Uring {
    fn geometry(&self) -> Geometry {
        self.shared.medium.geometry
    }

    fn kind(&self) -> Kind {
        Kind::Uring
    }

    fn name(&self) -> &str {
        &self.shared.medium.name
    }

    fn reason(&self) -> &str {
        &self.reason
    }

    fn stats(&self) -> DeviceStats {
        self.shared.counters.stats()
    }

    fn open_queue(&self, local: &Local) -> Result<Rc<dyn BlockQueue>, IoError> {
        let ring = self.shared.ring()?;
        Ok(queue::open(Arc::clone(&self.shared), ring, local))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use memkv_dma::{Class, Hugepages, PoolConfig};
    use memkv_poller::{Reactor, ReactorConfig, Rng, SystemClock};

    use super::*;
    use crate::{Io, OpenOptions};

    fn rig() -> (tempfile::TempDir, Pool, Uring) {
        let directory = tempfile::tempdir().unwrap();
        let config = PoolConfig { size: 32 << 20, chunk: 2 << 20, hugepages: Hugepages::Never };
        let pool = Pool::new(config).unwrap();
        let mut options = OpenOptions::new(directory.path().join("drive"), pool.clone());
        options.size = Some(32 << 20);
        let medium = Arc::new(Medium::open(&mut options).unwrap());
        let device = Uring::new(medium, pool.clone(), String::new()).unwrap();
        (directory, pool, device)
    }

    fn reactor() -> Reactor {
        Reactor::new(ReactorConfig::default(), Rc::new(SystemClock), Rng::seeded(0))
    }

    /// Many small commands, and few large ones: a turn is over before all of them are carried to the
    /// device.
    #[test]
    fn a_turn_hands_over_so_much_and_no_more() {
        for (len, commands, a_turn) in [(4 << 10, 100, 16), (1 << 20, 7, 2), (768 << 10, 7, 3)] {
            let (_directory, pool, device) = rig();
            let mut reactor = reactor();
            let queue = device.open_queue(&reactor.local()).unwrap();
            let write = |n: u64| {
                let buffer = pool.allocate(Class::Receive, len).unwrap();
                queue.submit(Io::write(n * len as u64, len, buffer))
            };
            let all: Vec<_> = (0..commands).map(write).collect();
            assert_eq!(device.stats().submitted, 1, "the device had nothing to do");
            let mut handed_over = 1;
            while handed_over < commands {
                reactor.step();
                let now = device.stats().submitted;
                assert_eq!(now - handed_over, a_turn.min(commands - handed_over), "{len} bytes");
                handed_over = now;
            }
            reactor.block_on(async move {
                for one in all {
                    one.await.result.unwrap();
                }
            });
            assert_eq!((device.stats().writes, queue.outstanding()), (commands, 0));
        }
    }

    /// Transfers that each fill the window: when one is done, the device has nothing although the next
    /// was there.
    #[test]
    fn a_device_that_waits_for_the_node_is_noticed() {
        const LEN: usize = 1 << 20;
        let (_directory, pool, mut device) = rig();
        Arc::get_mut(&mut device.shared).unwrap().window = LEN as u64;
        let mut reactor = reactor();
        let queue = device.open_queue(&reactor.local()).unwrap();
        reactor.block_on(async move {
            let write = |n: usize| {
                let buffer = pool.allocate(Class::Receive, LEN).unwrap();
                queue.submit(Io::write((n * LEN) as u64, LEN, buffer))
            };
            let all: Vec<_> = (0..3).map(write).collect();
            for one in all {
                one.await.result.unwrap();
            }
        });
        let stats = device.stats();
        assert_eq!((stats.dry, stats.depth_high), (2, 1));
        assert!(stats.starved > Duration::ZERO);
    }

    /// Of reads the device has half as many at once as of writes.
    #[test]
    fn reads_take_twice_of_the_window() {
        const LEN: usize = 1 << 20;
        for (reads, deepest) in [(true, 2), (false, 4)] {
            let (_directory, pool, mut device) = rig();
            Arc::get_mut(&mut device.shared).unwrap().window = 4 * LEN as u64;
            let mut reactor = reactor();
            let queue = device.open_queue(&reactor.local()).unwrap();
            let transfer = |n: usize| {
                let buffer = pool.allocate(Class::Receive, LEN).unwrap();
                let at = (n * LEN) as u64;
                match reads {
                    true => queue.submit(Io::read(at, LEN, buffer)),
                    false => queue.submit(Io::write(at, LEN, buffer)),
                }
            };
            let all: Vec<_> = (0..8).map(transfer).collect();
            assert_eq!(queue.outstanding(), 8);
            reactor.block_on(async move {
                for one in all {
                    one.await.result.unwrap();
                }
            });
            let high = device.stats().depth_high;
            assert!(high <= deepest, "{high} at once, reads: {reads}");
            assert_eq!(device.stats().transfers, 8);
        }
    }
}
