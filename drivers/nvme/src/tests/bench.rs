//! A drive on a bench: model, driver and reactor on one thread, stepped by the test.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use memkv_block::{BlockDevice, BlockQueue, Completion, Done, Io};
use memkv_dma::{Class, DmaBuf, Hugepages, Pool, PoolConfig};
use memkv_poller::{Clock, Reactor, ReactorConfig, Rng};

use crate::model::{ModelClock, ModelConfig, ModelLink, SharedModel};
use crate::{Nvme, NvmeError, Options, open};

pub const MIB: u64 = 1 << 20;
pub const CAPACITY: u64 = 16 * MIB;

/// How long a command may take on the bench.
pub const LIMIT: Duration = Duration::from_secs(8);

/// Steps after which a test that waits has failed.
const STEPS: usize = 200_000;

pub struct Bench {
    pub model: SharedModel,
    pub clock: ModelClock,
    pub pool: Pool,
    pub reactor: Reactor,
    /// None once it is closed.
    pub queue: Option<Rc<dyn BlockQueue>>,
    pub device: Arc<Nvme>,
    /// Whether the driver may have done what no driver should.
    pub offends: bool,
}

pub fn config() -> ModelConfig {
    ModelConfig::new(CAPACITY)
}

pub fn options() -> Options {
    let limits = Options::new(2);
    Options { hugepages: Hugepages::Never, command_limit: LIMIT, ..limits }
}

pub fn pool() -> Pool {
    let config = PoolConfig { size: 32 * MIB, chunk: 2 * MIB, hugepages: Hugepages::Never };
    Pool::new(config).unwrap()
}

/// Brings a model up.
pub fn try_open(config: ModelConfig) -> Result<(Arc<Nvme>, SharedModel), NvmeError> {
    let clock = ModelClock::default();
    let (link, model) = ModelLink::by_hand(config, clock.clone());
    open(link, &pool(), Arc::new(clock), options()).map(|device| (device, model))
}

impl Bench {
    pub fn new(config: ModelConfig) -> Bench {
        Bench::with(config, ModelLink::by_hand)
    }

    pub fn with(
        config: ModelConfig,
        link: fn(ModelConfig, ModelClock) -> (Arc<ModelLink>, SharedModel),
    ) -> Bench {
        let clock = ModelClock::default();
        let (link, model) = link(config, clock.clone());
        let pool = pool();
        let device = open(link, &pool, Arc::new(clock.clone()), options()).unwrap();
        let reactor =
            Reactor::new(ReactorConfig::default(), Rc::new(clock.clone()), Rng::seeded(1));
        let queue = device.open_queue(&reactor.local()).unwrap();
        Bench { model, clock, pool, reactor, queue: Some(queue), device, offends: false }
    }

    /// One pass of the reactor, one step of the drive. In a pass no time passes, whatever becomes of the
    /// drive: what takes any is done by who attends it.
    pub fn step(&mut self) {
        let before = self.clock.now();
        self.reactor.step();
        assert_eq!(self.clock.now(), before, "the reactor waited");
        self.device.cut_off();
        self.model.lock().step();
    }

    pub fn step_until(&mut self, what: &str, mut done: impl FnMut(&mut Bench) -> bool) {
        for _ in 0..STEPS {
            if done(self) {
                return;
            }
            self.step();
        }
        panic!("never: {what}; {:?} {:?}", self.model.lock().stats(), self.device.troubles());
    }

    /// Lets time pass, look by look.
    pub fn wait(&mut self, time: Duration) {
        let step = LIMIT / 16;
        let mut left = time;
        while left > Duration::ZERO {
            self.clock.advance(step.min(left));
            left = left.saturating_sub(step);
            for _ in 0..20 {
                self.step();
            }
        }
    }

    pub fn buffer(&self, len: usize) -> DmaBuf {
        self.pool.allocate(Class::Receive, len).unwrap()
    }

    pub fn filled(&self, len: usize, seed: u64) -> DmaBuf {
        let mut buffer = self.buffer(len);
        fill(buffer.as_mut_slice(), seed);
        buffer
    }

    pub fn submit(&self, io: Io) -> Completion {
        self.queue.as_ref().expect("open").submit(io)
    }

    pub fn write(&self, offset: u64, len: usize, seed: u64) -> Completion {
        self.submit(Io::write(offset, len, self.filled(len, seed)))
    }

    /// Steps until a command has ended.
    pub fn end(&mut self, completion: Completion) -> Done {
        let mut handle = self.reactor.local().spawn_join(completion);
        let mut done = None;
        self.step_until("a command ends", |_| {
            done = handle.try_take();
            done.is_some()
        });
        done.expect("just seen")
    }

    /// Does a command, which must be done.
    pub fn run(&mut self, io: Io) -> Done {
        let completion = self.submit(io);
        let done = self.end(completion);
        done.result.as_ref().unwrap();
        done
    }

    pub fn expect(&mut self, offset: u64, len: usize, seed: u64) {
        let done = self.run(Io::read(offset, len, self.buffer(len)));
        assert!(
            done.buf.unwrap().as_slice() == pattern(len, seed),
            "{len} bytes at {offset} are not those of {seed}"
        );
    }

    /// Waits until the faults that were asked for have struck.
    pub fn struck(&mut self, faults: u64) {
        self.step_until("the fault strikes", |bench| bench.model.lock().stats().faults == faults);
    }
}

impl Drop for Bench {
    /// Whatever happened: the driver ends in good order, and has done nothing that no driver should.
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        self.queue = None;
        let offences = self.model.lock().stats().offences;
        assert!(self.offends || offences == 0, "{offences} offences");
    }
}

pub fn fill(bytes: &mut [u8], seed: u64) {
    for (i, word) in bytes.chunks_exact_mut(8).enumerate() {
        word.copy_from_slice(&(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ i as u64).to_le_bytes());
    }
}

pub fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; len];
    fill(&mut bytes, seed);
    bytes
}
