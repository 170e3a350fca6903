//! A controller in software: the other side of the registers and the queues, for tests.
//!
//! ```text
//!   driver ──► registers, rings, lists, buffers ◄── Model::step()     by the test itself: everything is
//!              in memory that both see                                decided by who is called when
//!                                                   a thread          as a drive is: whenever it likes
//! ```
//!
//! It speaks what a drive speaks and nothing else: it finds doorbells changed, fetches commands, walks
//! over lists of pages, moves bytes, posts entries with the phase of its lap. It believes the driver
//! nothing: an address that was not made visible, a queue that does not exist, a doorbell outside of the
//! ring or of a queue that is not there yet, an identifier that is in use are all counted as [`Offences`](ModelStats::offences), which tests
//! hold at 0. Beside the medium it keeps what is durable, so that a power cut shows what a flush was
//! worth. [`Fault`]s make it a bad drive; a fuzzer makes it one that does and says anything at all.

mod commands;
mod host;
mod hostile;
mod link;
mod queues;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use memkv_poller::Rng;

use crate::status::Status;
use host::Host;
use hostile::Lie;
pub use hostile::Told;
pub use link::{ModelClock, ModelLink};
use queues::Queues;

/// What kind of drive it is.
#[derive(Clone, Debug)]
pub struct ModelConfig {
    /// Bytes of the medium.
    pub capacity: u64,
    /// Bytes of a block, as their logarithm.
    pub block_bits: u32,
    /// Bytes of its smallest page, as their logarithm.
    pub page_bits: u32,
    /// The longest transfer in such pages, as its logarithm; 0: any.
    pub transfer_bits: u8,
    /// Entries of its largest queue.
    pub entries: u16,
    /// The doorbell stride, as in CAP.DSTRD.
    pub stride: u8,
    /// The units of 500 ms of CAP.TO.
    pub timeout: u8,
    /// Looks until it is ready, or has stopped.
    pub slowness: u32,
    /// I/O queues that it grants.
    pub queues: u16,
    /// Namespaces that it lists; all have the same medium.
    pub namespaces: Vec<u32>,
    /// A cache that a power cut empties.
    pub caches: bool,
    /// Whether it knows dataset management.
    pub deallocates: bool,
    /// Whether it knows write zeroes, with deallocation.
    pub zeroes: bool,
    /// Blocks of one range that is deallocated; 0: any.
    pub range_blocks: u32,
    /// What the way to it is called.
    pub name: String,
    /// Its serial number.
    pub serial: String,
    /// It finishes commands in an order that this seed chooses, some later; none: in order, at once.
    pub scramble: Option<u64>,
}

impl ModelConfig {
    /// An ordinary drive of so many bytes, with blocks of 4096.
    pub fn new(capacity: u64) -> ModelConfig {
        ModelConfig {
            capacity,
            block_bits: 12,
            page_bits: 12,
            transfer_bits: 7,
            entries: 1024,
            stride: 0,
            timeout: 10,
            slowness: 3,
            queues: 64,
            namespaces: vec![1],
            caches: true,
            deallocates: true,
            zeroes: true,
            range_blocks: 0,
            name: String::from("model"),
            serial: String::from("MODEL0001"),
            scramble: None,
        }
    }
}

/// What a bad drive does, once. Commands are those of I/O queues.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Fault {
    /// The next command goes well: the one behind it is meant.
    Nothing,
    /// The next command ends with this status, and is not done.
    Status(Status),
    /// The next command is done and never answered, unless it is aborted.
    LoseAnswer,
    /// The next command is neither done nor answered, not even when it is aborted.
    Swallow,
    /// The entry of the next command has the phase of the lap before.
    BadPhase,
    /// The next command is answered twice.
    AnswerTwice,
    /// Before the next command is answered, one is that nobody gave, with this identifier.
    Spurious(u16),
    /// The answer to the next command names this submission queue.
    WrongQueue(u16),
    /// Instead of the next command being done, the controller says that it has failed (CSTS.CFS).
    Fatal,
    /// Instead of the next command being done, the drive is gone from the bus.
    Remove,
}

/// What was seen and done.
#[derive(Copy, Clone, PartialEq, Eq, Default, Debug)]
pub struct ModelStats {
    /// Commands fetched from I/O queues.
    pub commands: u64,
    /// Commands of admin queues.
    pub admin_commands: u64,
    /// What a driver must not do.
    pub offences: u64,
    /// Faults that have struck.
    pub faults: u64,
    /// Times that it was enabled.
    pub lives: u64,
    /// Shutdowns in good order.
    pub shutdowns: u64,
    /// I/O queues that exist.
    pub queues: u64,
    /// Flushes, and writes that went through the cache.
    pub flushes: u64,
    /// See `flushes`.
    pub writes_through: u64,
    /// Blocks that were given back.
    pub deallocated_blocks: u64,
    /// Writes to doorbells seen: looks that found one changed.
    pub doorbells: u64,
}

/// One drive.
pub struct Model {
    config: ModelConfig,
    host: Host,
    queues: Queues,
    medium: Vec<u8>,
    /// What a power cut leaves.
    durable: Vec<u8>,
    dirty: Vec<(usize, usize)>,
    faults: VecDeque<Fault>,
    stats: ModelStats,
    rng: Rng,
    state: Power,
    gone: bool,
    /// It never becomes ready.
    stuck: bool,
    /// The system wants it back, and has not told.
    recalled: bool,
    /// It never ends a shutdown.
    restless: bool,
    /// It stays ready whatever it is told.
    endless: bool,
    lies: Vec<Lie>,
    admin_answer: Option<(u16, u32)>,
}

/// Where the model is between CC.EN and CSTS.RDY.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
enum Power {
    Disabled,
    Starting(u32),
    Ready,
    Stopping(u32),
}

impl Model {
    fn new(config: ModelConfig, host: Host) -> Model {
        assert!(config.capacity.is_multiple_of(1 << config.block_bits), "whole blocks");
        let medium = vec![0; config.capacity as usize];
        let mut model = Model {
            durable: medium.clone(),
            medium,
            dirty: Vec::new(),
            queues: Queues::default(),
            faults: VecDeque::new(),
            stats: ModelStats::default(),
            rng: Rng::seeded(config.scramble.unwrap_or(0)),
            state: Power::Disabled,
            gone: false,
            stuck: false,
            recalled: false,
            restless: false,
            endless: false,
            lies: Vec::new(),
            admin_answer: None,
            host,
            config,
        };
        model.host.set_registers(&model.config);
        model
    }

    /// What was seen and done.
    pub fn stats(&self) -> ModelStats {
        ModelStats { queues: self.queues.count(), ..self.stats }
    }

    /// Makes it a bad drive, once; faults strike one after the other.
    pub fn fault(&mut self, fault: Fault) {
        self.faults.push_back(fault);
    }

    /// Makes it another drive, for whoever looks after the next reset.
    pub fn become_another(&mut self, serial: &str) {
        self.config.serial = serial.to_owned();
    }

    /// From now on it does not become ready any more.
    pub fn never_be_ready(&mut self) {
        self.stuck = true;
    }

    /// The system wants it back from whoever drives it.
    pub fn recall(&mut self) {
        self.recalled = true;
    }

    /// It does not do what it is told at the end.
    pub fn never_shut_down(&mut self) {
        self.restless = true;
    }

    /// From now on it stays ready, also when it is disabled.
    pub fn never_stop(&mut self) {
        self.endless = true;
    }

    /// From now on nobody answers on the bus.
    pub fn remove(&mut self) {
        self.gone = true;
        self.host.fill_registers();
    }

    /// It loses its power, and nobody answers on the bus: what was not made durable is gone.
    pub fn cut_power(&mut self) {
        self.remove();
        self.dirty.clear();
        self.medium.clone_from(&self.durable);
    }

    /// It has power, and belongs to nobody: it is disabled and sees no memory.
    fn begin_anew(&mut self) {
        self.gone = false;
        self.stuck = false;
        self.endless = false;
        self.recalled = false;
        self.state = Power::Disabled;
        self.queues = Queues::default();
        self.host.forget(&self.config);
    }

    /// Bytes of the medium as reads see them.
    pub fn medium(&self) -> &[u8] {
        &self.medium
    }

    /// Bytes of the medium as a power cut leaves them.
    pub fn durable(&self) -> &[u8] {
        &self.durable
    }

    /// One look at everything. Says whether anything was done.
    pub fn step(&mut self) -> bool {
        if self.gone {
            return false;
        }
        let configuration = self.host.configuration();
        let (enabled, shutdown) = (configuration & 1 != 0, configuration >> 14 & 3 != 0);
        match self.state {
            Power::Disabled if enabled && !self.stuck => {
                self.turn_to(Power::Starting(self.config.slowness))
            }
            Power::Starting(0) => self.start(configuration),
            Power::Starting(left) => self.turn_to(Power::Starting(left - 1)),
            Power::Ready | Power::Stopping(_) if !enabled => match self.state {
                Power::Stopping(0) if self.endless => false,
                Power::Stopping(0) => self.stop(),
                Power::Stopping(left) => self.turn_to(Power::Stopping(left - 1)),
                _ => self.turn_to(Power::Stopping(self.config.slowness)),
            },
            Power::Ready if shutdown && self.restless => false,
            Power::Ready if shutdown && !self.host.is_shut_down() => {
                // All that is in the cache is made durable.
                self.make_durable();
                self.stats.shutdowns += 1;
                self.host.set_status(1 | 2 << 2);
                true
            }
            Power::Ready => self.serve(),
            _ => false,
        }
    }

    fn turn_to(&mut self, state: Power) -> bool {
        self.state = state;
        true
    }

    fn start(&mut self, configuration: u32) -> bool {
        let page = configuration >> 7 & 0xf;
        let entries = configuration >> 16 & 0xff;
        if entries != 0x46 || page + 12 < self.config.page_bits {
            self.offence();
        }
        self.host.page = 1 << (page + 12);
        self.queues.start(&self.host);
        self.stats.lives += 1;
        self.host.set_status(1);
        self.turn_to(Power::Ready)
    }

    /// It has let go of everything.
    fn stop(&mut self) -> bool {
        self.queues = Queues::default();
        self.host.clear_doorbells();
        self.host.set_status(0);
        self.turn_to(Power::Disabled)
    }

    fn offence(&mut self) {
        self.stats.offences += 1;
    }

    /// The fault that strikes the command at hand.
    fn next_fault(&mut self) -> Option<Fault> {
        let fault = self.faults.pop_front()?;
        self.stats.faults += u64::from(fault != Fault::Nothing);
        Some(fault)
    }

    fn make_durable(&mut self) {
        for (at, len) in std::mem::take(&mut self.dirty) {
            self.durable[at..at + len].copy_from_slice(&self.medium[at..at + len]);
        }
    }
}

/// A model that driver and test share.
#[derive(Clone)]
pub struct SharedModel(Arc<Mutex<Model>>);

impl SharedModel {
    /// The model itself.
    pub fn lock(&self) -> MutexGuard<'_, Model> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
