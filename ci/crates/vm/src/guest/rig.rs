//! A drive of the guest, opened by the driver that is tested or by the kernel's.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use memkv_block::{BlockDevice, BlockQueue, Completion, Done, Io, OpenOptions};
use memkv_dma::{Class, DmaBuf, Hugepages, Pool, PoolConfig};
use memkv_nvme::{Nvme, NvmeError, Options, Vfio};
use memkv_poller::{IdlePolicy, Reactor, ReactorConfig, Rng, SystemClock};

use super::pci::{self, Driver};

pub const MIB: u64 = 1 << 20;

/// What the host's file system counts to an image beside its bytes, at most: the lists of its pieces, which
/// grow as holes are punched.
pub const PIECE_LISTS: u64 = MIB;

/// How long a command may take before the driver does something about it: longer than any machine is
/// too busy for.
pub const PATIENT: Duration = Duration::from_secs(60);

/// Serial numbers and the PCI addresses that the kernel had for them when it drove the drives.
static ADDRESSES: Mutex<BTreeMap<&str, String>> = Mutex::new(BTreeMap::new());

/// The PCI address of a drive of the plan, whoever has it.
pub fn known_address(drive: &'static str) -> String {
    let mut addresses = ADDRESSES.lock().unwrap_or_else(PoisonError::into_inner);
    addresses.entry(drive).or_insert_with(|| pci::address(drive)).clone()
}

/// The PCI address of a drive of the plan, which a driver has from now on.
pub fn address(drive: &'static str, driver: Driver) -> String {
    let address = known_address(drive);
    if !pci::is_bound(&address, driver) {
        pci::bind(&address, driver);
    }
    address
}

/// A pool like a node's.
pub fn pool() -> Pool {
    let config = PoolConfig { size: 64 * MIB, chunk: 2 * MIB, hugepages: Hugepages::Prefer };
    Pool::new(config).expect("memory for a pool")
}

/// Opens a drive of the plan through VFIO.
pub fn try_open(drive: &'static str, pool: &Pool, limit: Duration) -> Result<Arc<Nvme>, NvmeError> {
    open_as(drive, pool, Options { command_limit: limit, ..Options::new(4) })
}

fn open_as(drive: &'static str, pool: &Pool, options: Options) -> Result<Arc<Nvme>, NvmeError> {
    let address = address(drive, Driver::Vfio);
    let link = Vfio::open(&address, 4).unwrap_or_else(|error| panic!("{address}: {error}"));
    memkv_nvme::open(Arc::new(link), pool, Arc::new(SystemClock), options)
}

/// As a node opens it whose reactors poll: it raises no interrupts.
pub fn open_polled(drive: &'static str, pool: &Pool) -> Arc<Nvme> {
    let options = Options { command_limit: PATIENT, interrupts: false, ..Options::new(4) };
    open_as(drive, pool, options).unwrap_or_else(|error| panic!("{drive}: {}", crate::told(&error)))
}

/// The same, and it has to come up.
pub fn open(drive: &'static str, pool: &Pool, limit: Duration) -> Arc<Nvme> {
    try_open(drive, pool, limit).unwrap_or_else(|error| panic!("{drive}: {}", crate::told(&error)))
}

/// Opens a drive of the plan by the kernel's driver and io_uring.
pub fn open_uring(drive: &'static str, pool: &Pool) -> Arc<dyn BlockDevice> {
    let path = pci::block_device(&address(drive, Driver::Nvme));
    let mut options = OpenOptions::new(path, pool.clone());
    options.force = Some(memkv_block::Kind::Uring);
    memkv_block::open(options).unwrap_or_else(|error| panic!("{drive}: {}", crate::told(&error)))
}

/// A drive with a queue and a reactor that the check steps.
pub struct Bench {
    pub queue: Rc<dyn BlockQueue>,
    pub reactor: Reactor,
    pub pool: Pool,
}

impl Bench {
    pub fn new(device: &dyn BlockDevice, pool: &Pool) -> Bench {
        let config = ReactorConfig { idle: IdlePolicy::Busy, ..ReactorConfig::default() };
        let reactor = Reactor::new(config, Rc::new(SystemClock), Rng::seeded(1));
        let queue = device.open_queue(&reactor.local()).expect("a queue");
        Bench { queue, reactor, pool: pool.clone() }
    }

    pub fn buffer(&self, len: usize) -> DmaBuf {
        self.pool.allocate(Class::Receive, len).expect("room in the pool")
    }

    pub fn filled(&self, len: usize, seed: u64) -> DmaBuf {
        let mut buffer = self.buffer(len);
        fill(buffer.as_mut_slice(), seed);
        buffer
    }

    /// Steps the reactor until a command has ended.
    pub fn end(&mut self, mut completion: Completion) -> Done {
        let mut context = Context::from_waker(Waker::noop());
        loop {
            if let Poll::Ready(done) = Pin::new(&mut completion).poll(&mut context) {
                return done;
            }
            self.reactor.step();
        }
    }

    /// Does a command.
    pub fn run(&mut self, io: Io) -> Done {
        let completion = self.queue.submit(io);
        self.end(completion)
    }

    pub fn write(&mut self, offset: u64, len: usize, seed: u64) {
        let io = Io::write(offset, len, self.filled(len, seed));
        self.run(io).result.expect("written");
    }

    pub fn expect(&mut self, offset: u64, len: usize, seed: u64) {
        let done = self.run(Io::read(offset, len, self.buffer(len)));
        done.result.expect("read");
        let mut expected = vec![0; len];
        fill(&mut expected, seed);
        let buffer = done.buf.expect("the buffer comes back");
        assert!(buffer.as_slice() == expected, "{len} bytes at {offset} are not those of {seed}");
    }
}

/// Bytes that tell by themselves which write they come from, and where in it they belong.
pub fn fill(bytes: &mut [u8], seed: u64) {
    for (i, word) in bytes.chunks_exact_mut(8).enumerate() {
        word.copy_from_slice(&(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ i as u64).to_le_bytes());
    }
}
