//! The driver of io_uring: one ring per drive and reactor, polled by the reactor.
//!
//! ```text
//!   submit ──► slot ──► submission entries ──┐ one io_uring_enter at the end of the reactor's pass
//!              owns the buffer               ▼
//!   Done  ◄── slot ◄── completion entries ◄─ kernel
//! ```
//!
//! Entries are handed to the kernel by the poller, which runs last in every pass of the reactor: all
//! commands that the tasks of one pass submit cost one system call, and a single one leaves in the pass
//! it was submitted in.

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
use crate::threads::Workers;
use crate::{DeviceStats, IoError};
use ring::Ring;

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
    /// The one thread that discards on block devices, which io_uring could not do before Linux 6.12;
    /// started when it is first needed.
    discarder: Mutex<Option<Arc<Workers>>>,
    unregistered_file: Once,
    unregistered_pool: Once,
}

impl Uring {
    /// Fails when the kernel has no io_uring, an old one, or does not let us.
    pub fn new(medium: Arc<Medium>, pool: Pool, reason: String) -> io::Result<Uring> {
        drop(Ring::new(&medium)?);
        let shared = Shared {
            medium,
            counters: Arc::default(),
            pool,
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
    /// The discarder, if there is one, is not waited for.
    fn give_up(&self) {
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
