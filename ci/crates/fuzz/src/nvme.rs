//! A controller that is out of its mind: what it tells about itself, its registers, the entries that it
//! posts and what it writes over its rings are anything at all.
//!
//! An input is a script: what kind of drive it is, then steps, each a byte that says what, and bytes that
//! say how. The driver under test drives the software controller, on this thread.
//!
//! ```text
//! drive: 8 bytes | steps: what u8 | arguments …
//! ```
//!
//! What must hold: no panic; every command ends, and so do opening and closing, by the driver's own
//! deadlines; memory that no command names stays as it is; of a drive that was merely bad, and did not post
//! or write what it likes, also memory that came back from a command; and when all is closed, every
//! buffer has come back, for the drive was cut off or has let go; unless it was given up before.

use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use memkv_block::{BlockDevice, BlockQueue, Completion, Done, Io, IoBuf, IoError, watch};
use memkv_dma::{Class, DmaBuf, Hugepages, Pool, PoolConfig};
use memkv_nvme::model::{Fault, ModelClock, ModelConfig, ModelLink, SharedModel, Told};
use memkv_nvme::{NvmeError, Options, Status, open};
use memkv_poller::{Reactor, ReactorConfig, Rng};

use crate::draw::{bytes, number, once_in, one_of};
use crate::target::{Counts, Target, variant};

const CAPACITY: u64 = 256 << 10;
const LIMIT: Duration = Duration::from_secs(8);
/// A drive that has not answered for so long is given up by who watches it: after the driver has seen to
/// it, or before.
const STALLS: [Duration; 2] = [Duration::from_secs(60), Duration::from_secs(4)];
/// Looks after which a command that has not ended never does: half an hour of the driver's time.
const PATIENCE: usize = 3600;
/// Steps of one input, and commands of it at once.
const STEPS: usize = 120;
const CROWD: usize = 40;

/// Steps, by the byte that asks for them.
mod step {
    pub const READ: u8 = 0;
    pub const WRITE: u8 = 1;
    pub const FLUSH: u8 = 2;
    pub const DEALLOCATE: u8 = 3;
    pub const PASS: u8 = 4;
    pub const SERVE: u8 = 5;
    pub const TIME: u8 = 6;
    pub const FAULT: u8 = 7;
    pub const POST: u8 = 8;
    pub const SCRIBBLE: u8 = 9;
    pub const LIE: u8 = 10;
    pub const REGISTER: u8 = 11;
    pub const ADMIN: u8 = 12;
    pub const HEALTH: u8 = 13;
    pub const REOPEN: u8 = 14;
    pub const FORSAKE: u8 = 15;
    pub const GIVE_UP: u8 = 16;
    pub const REMOVE: u8 = 17;
    pub const COUNT: u8 = 18;
}

/// The target: hostile controllers.
pub struct Nvme {
    pool: Pool,
    counts: Counts,
}

impl Default for Nvme {
    fn default() -> Nvme {
        let refused = [
            "Removed",
            "Deadline",
            "Fatal",
            "CommandSet",
            "Registers",
            "PageSize",
            "EntrySizes",
            "Command",
            "NoNamespace",
            "Format",
            "Metadata",
            "BlockSize",
            "Transfer",
            "Capacity",
        ];
        let refused = refused.map(|kind| format!("refused {kind}"));
        let fails = ["Removed", "Deadline", "Fatal", "Changed", "Resets"];
        let fails = fails.map(|kind| format!("fails with {kind}"));
        let ends = ["done", "Status", "Offline", "Stalled", "Os", "OutOfRange", "Unsupported"];
        let ends = ends.map(|kind| format!("command {kind}"));
        let rest =
            ["opened", "reset", "aborted", "given again", "spurious", "healthy", "sick", "leaked"];
        let names = refused.into_iter().chain(fails).chain(ends);
        let counts = Counts::of(names.chain(rest.map(str::to_owned)));
        Nvme { pool: pool(), counts }
    }
}

impl Target for Nvme {
    fn name(&self) -> &'static str {
        "nvme"
    }

    fn draw(&self, rng: &mut Rng) -> Vec<u8> {
        let mut script = bytes(rng, 8);
        if once_in(rng, 3) {
            // One lie or two, told from the first day.
            (0..=rng.below(2)).for_each(|_| draw_lie(rng, &mut script));
        }
        for _ in 0..rng.below(50) {
            draw_step(rng, &mut script);
        }
        script
    }

    fn feed(&mut self, input: &[u8]) {
        let mut script = Script(input);
        let (config, flags) = config(&mut script);
        let clock = ModelClock::default();
        let (link, model) = ModelLink::by_hand(config, clock.clone());
        // What it lies about before anybody asks.
        while script.0.first().is_some_and(|what| {
            matches!(what % step::COUNT, step::LIE | step::REGISTER | step::ADMIN)
        }) {
            tell(&mut script, &model);
        }
        let options = Options {
            hugepages: Hugepages::Never,
            command_limit: LIMIT,
            interrupts: flags & 1 != 0,
            ..Options::new(2)
        };
        let device = match open(link, &self.pool, Arc::new(clock.clone()), options) {
            Ok(device) => device,
            Err(error) => return self.counts.bump(&format!("refused {}", variant(&error))),
        };
        self.counts.bump("opened");
        let (geometry, info) = (device.geometry(), device.info());
        assert!(geometry.sector.is_power_of_two() && geometry.capacity > 0, "{geometry:?}");
        assert!(info.transfer >= u64::from(geometry.sector), "{info:?}");
        assert!(info.transfer.is_multiple_of(u64::from(geometry.sector)), "{info:?}");
        let stall = STALLS[usize::from(flags >> 2 & 1)];
        let mut play = Play::new(self.pool.clone(), clock, model, device, stall);
        for _ in 0..STEPS {
            if !play.step(&mut script, &mut self.counts) {
                break;
            }
        }
        let was_given_up = play.end(&mut self.counts);
        let used: u64 = self.pool.stats().used.iter().sum();
        if used > 0 {
            assert!(
                was_given_up,
                "every buffer comes back from a drive that was let go or cut off"
            );
            self.counts.bump("leaked");
            self.pool = pool();
        }
    }

    fn counts(&self) -> &Counts {
        &self.counts
    }
}

fn pool() -> Pool {
    let config = PoolConfig { size: 16 << 20, chunk: 2 << 20, hugepages: Hugepages::Never };
    Pool::new(config).expect("16 MiB")
}

/// What is left of an input. At its end there are only zeros.
struct Script<'a>(&'a [u8]);

impl Script<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut taken = [0; N];
        let count = N.min(self.0.len());
        taken[..count].copy_from_slice(&self.0[..count]);
        self.0 = &self.0[count..];
        taken
    }

    fn byte(&mut self) -> u8 {
        self.take::<1>()[0]
    }

    fn short(&mut self) -> u16 {
        u16::from_le_bytes(self.take())
    }

    fn word(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }
}

fn config(script: &mut Script) -> (ModelConfig, u8) {
    let [shape, pages, transfer, entries, queues, timeout, cache, flags] = script.take();
    let config = ModelConfig {
        block_bits: 9 + u32::from(shape % 5),
        page_bits: 12 + u32::from(pages % 5),
        transfer_bits: transfer % 9,
        entries: 2 + u16::from(entries),
        stride: shape >> 6,
        timeout: timeout % 8,
        slowness: u32::from(timeout >> 4),
        queues: 1 + u16::from(queues % 3),
        caches: cache & 1 != 0,
        deallocates: cache & 2 != 0,
        zeroes: cache & 4 != 0,
        scramble: (flags & 2 != 0).then_some(u64::from(entries)),
        ..ModelConfig::new(CAPACITY)
    };
    (config, flags)
}

/// One thing that the drive tells, wrong.
fn tell(script: &mut Script, model: &SharedModel) {
    let mut model = model.lock();
    match script.byte() % step::COUNT {
        step::LIE => {
            let page = one_told(script.byte());
            let (at, count) = (script.short(), script.byte() % 16);
            let bytes = script.take::<16>();
            model.lie(page, usize::from(at), &bytes[..usize::from(count)]);
        }
        step::REGISTER => {
            let (at, value) = (script.short(), script.word());
            model.set_register(usize::from(at), value);
        }
        _ => {
            let (on, status, first) = (script.byte(), script.short(), script.word());
            model.answer_admin((on % 4 != 0).then_some((status, first)));
        }
    }
}

fn one_told(byte: u8) -> Told {
    const ALL: [Told; 5] =
        [Told::Controller, Told::Limits, Told::Namespaces, Told::Namespace, Told::Health];
    ALL[usize::from(byte) % ALL.len()]
}

fn pattern(len: usize) -> impl Iterator<Item = u8> {
    (0..len).map(|i| (i * 31 + 7) as u8)
}

/// One drive and what is done with it.
struct Play {
    pool: Pool,
    clock: ModelClock,
    model: SharedModel,
    reactor: Reactor,
    device: Arc<memkv_nvme::Nvme>,
    watched: Arc<dyn BlockDevice>,
    queue: Option<Rc<dyn BlockQueue>>,
    pending: Vec<Completion>,
    /// Memory that no command has, with the pattern in it.
    own: Vec<DmaBuf>,
    /// It has not posted or written what it likes.
    honest: bool,
    /// Nobody waits for it any more: what it has is leaked.
    given_up: bool,
}

impl Play {
    fn new(
        pool: Pool,
        clock: ModelClock,
        model: SharedModel,
        device: Arc<memkv_nvme::Nvme>,
        stall: Duration,
    ) -> Play {
        let reactor = ReactorConfig::default();
        let reactor = Reactor::new(reactor, Rc::new(clock.clone()), Rng::seeded(1));
        let watched = watch(Arc::clone(&device) as Arc<dyn BlockDevice>, stall);
        let queue = watched.open_queue(&reactor.local()).ok();
        let mut play = Play {
            pool,
            clock,
            model,
            reactor,
            device,
            watched,
            queue,
            pending: Vec::new(),
            own: Vec::new(),
            honest: true,
            given_up: false,
        };
        let bystander = play.buffer(16 << 10);
        play.own.push(bystander);
        play
    }

    /// A buffer with the pattern in it.
    fn buffer(&self, len: usize) -> DmaBuf {
        let mut buffer = self.pool.allocate(Class::Receive, len).expect("few are used");
        buffer.as_mut_slice().iter_mut().zip(pattern(len)).for_each(|(byte, want)| *byte = want);
        buffer
    }

    /// Does one step; false when there is none left.
    fn step(&mut self, script: &mut Script, counts: &mut Counts) -> bool {
        let Some(&what) = script.0.first() else { return false };
        let what = what % step::COUNT;
        match what {
            step::LIE | step::REGISTER | step::ADMIN => {
                tell(script, &self.model);
                return true;
            }
            _ => drop(script.byte()),
        }
        match what {
            step::READ | step::WRITE | step::FLUSH | step::DEALLOCATE => self.ask(what, script),
            step::PASS => drop(self.reactor.step()),
            step::SERVE => drop(self.model.lock().step()),
            step::TIME => self.wait(u32::from(script.byte() % 24)),
            step::FAULT => self.fault(script),
            step::POST => self.post(script),
            step::SCRIBBLE => {
                let (queue, ring, at) = (script.byte() % 3, script.byte(), script.short());
                let bytes = script.take::<16>();
                self.honest = false;
                self.model.lock().scribble(queue.into(), ring & 1 != 0, at.into(), &bytes);
            }
            step::HEALTH => match self.device.health() {
                Ok(_) => counts.bump("healthy"),
                Err(_) => counts.bump("sick"),
            },
            step::REOPEN => {
                self.queue = None;
                self.reactor.step();
                self.queue = self.watched.open_queue(&self.reactor.local()).ok();
            }
            step::FORSAKE => drop(self.pending.pop()),
            step::GIVE_UP => {
                self.given_up = true;
                self.queue.iter().for_each(|queue| queue.give_up());
            }
            _ => self.model.lock().remove(),
        }
        self.reap(counts);
        true
    }

    fn ask(&mut self, what: u8, script: &mut Script) {
        let (block, blocks) = (u64::from(script.short()), u64::from(script.byte()));
        let Some(queue) = self.queue.as_ref().filter(|_| self.pending.len() < CROWD) else {
            return;
        };
        let sector = u64::from(self.device.geometry().sector);
        let (offset, len) = (block.wrapping_mul(sector), (blocks * sector).min(128 << 10));
        let buffer = || self.buffer((len as usize).max(512));
        let io = match what {
            step::READ => Io::read(offset, len as usize, buffer()),
            step::WRITE if blocks % 4 == 1 => Io::write_flush(offset, len as usize, buffer()),
            step::WRITE => Io::write(offset, len as usize, buffer()),
            step::FLUSH => Io::flush(),
            _ => Io::deallocate(offset, len),
        };
        self.pending.push(queue.submit(io));
    }

    /// So many looks of the driver at its commands.
    fn wait(&mut self, looks: u32) {
        for _ in 0..looks {
            self.clock.advance(LIMIT / 16);
            self.device.attend();
            for _ in 0..3 {
                self.reactor.step();
                self.model.lock().step();
            }
        }
    }

    fn fault(&mut self, script: &mut Script) {
        let (what, value) = (script.byte() % 9, script.short());
        let fault = match what {
            0 => Fault::Status(Status::from_field(value)),
            1 => Fault::LoseAnswer,
            2 => Fault::Swallow,
            3 => Fault::BadPhase,
            4 => Fault::AnswerTwice,
            5 => Fault::Spurious(value | 0x80),
            6 => Fault::WrongQueue(value),
            7 => Fault::Fatal,
            _ => Fault::Nothing,
        };
        self.model.lock().fault(fault);
    }

    /// An entry of its own. The identifier is often one that may be in use.
    fn post(&mut self, script: &mut Script) {
        let (queue, phase) = (u16::from(script.byte() % 3), script.byte());
        let words = [script.word(), script.word(), script.word(), script.word()];
        self.honest = false;
        self.model.lock().post_raw(queue, words, phase % 4 != 0);
    }

    /// Takes what has ended.
    fn reap(&mut self, counts: &mut Counts) {
        let mut context = Context::from_waker(Waker::noop());
        let mut left = Vec::new();
        for mut completion in std::mem::take(&mut self.pending) {
            match Pin::new(&mut completion).poll(&mut context) {
                Poll::Pending => left.push(completion),
                Poll::Ready(Done { result, buf }) => {
                    counts.bump(&format!("command {}", end_of(&result)));
                    self.given_up |= matches!(result, Err(IoError::Stalled(_)));
                    if let Some(mut buffer) = buf.and_then(IoBuf::into_exclusive) {
                        let len = buffer.len();
                        let bytes = buffer.as_mut_slice().iter_mut().zip(pattern(len));
                        bytes.for_each(|(byte, want)| *byte = want);
                        self.own.push(buffer);
                    }
                }
            }
        }
        self.pending = left;
        // The bystander stays; of the others some are looked at when they are given back.
        while self.own.len() > 24 {
            self.look_at(1);
            self.own.remove(1);
        }
    }

    /// Memory that no command names is nobody else's.
    fn look_at(&self, index: usize) {
        let buffer = &self.own[index];
        let same = buffer.as_slice().iter().copied().eq(pattern(buffer.len()));
        assert!(same || (index > 0 && !self.honest), "somebody wrote to memory {index} of ours");
    }

    /// Everything ends. Says whether the drive was given up before.
    fn end(mut self, counts: &mut Counts) -> bool {
        for _ in 0..PATIENCE {
            if self.pending.is_empty() {
                break;
            }
            self.wait(1);
            self.reap(counts);
        }
        assert!(self.pending.is_empty(), "{} commands never end", self.pending.len());
        (0..self.own.len()).for_each(|index| self.look_at(index));
        let troubles = self.device.troubles();
        for (name, count) in [
            ("reset", troubles.resets),
            ("aborted", troubles.aborts),
            ("given again", troubles.retries),
            ("spurious", troubles.spurious),
        ] {
            if count > 0 {
                counts.bump(name);
            }
        }
        if let Some(error) = self.device.failure() {
            let kind = variant(&error);
            // Whatever else it may be refused for, it is another drive than before.
            let known = ["Removed", "Deadline", "Fatal", "Changed", "Resets"].contains(&&*kind);
            if known {
                counts.bump(&format!("fails with {kind}"));
            }
            assert!(!matches!(error, NvmeError::Memory(_) | NvmeError::Map(_)), "{error}");
        }
        // A drive that was given up says so to whoever asks it anything.
        if let Some(queue) = self.queue.take() {
            self.pending.push(queue.submit(Io::flush()));
            self.reap(counts);
        }
        self.given_up
    }
}

fn end_of(result: &Result<(), IoError>) -> String {
    match result {
        Ok(()) => "done".to_owned(),
        // How the test asks, and not what the drive does.
        Err(IoError::Misaligned { .. } | IoError::TooLong { .. }) => "OutOfRange".to_owned(),
        Err(error) => variant(error),
    }
}

/// Fields that matter, by page and place.
const FIELDS: [(u8, u16, u8); 16] = [
    // The longest transfer, entry sizes, namespaces, what it knows, its cache, how long it shuts down.
    (0, 77, 1),
    (0, 512, 2),
    (0, 516, 4),
    (0, 520, 2),
    (0, 525, 1),
    (0, 88, 4),
    (0, 4, 8),
    // Limits of zeroes and of ranges.
    (1, 1, 1),
    (1, 4, 4),
    (1, 8, 8),
    (2, 0, 8),
    // Blocks, formats, the format in use, and what the first ones are.
    (3, 0, 8),
    (3, 25, 2),
    (3, 128, 8),
    (3, 130, 1),
    (4, 0, 16),
];

/// Registers that matter: capabilities, version, status.
const REGISTERS: [u16; 7] = [0x00, 0x04, 0x08, 0x14, 0x1c, 0x68, 0x1000];

fn draw_lie(rng: &mut Rng, script: &mut Vec<u8>) {
    match rng.below(4) {
        0 | 1 => {
            let (page, at, count) = if once_in(rng, 4) {
                (rng.below(5) as u8, rng.below(4096) as u16, rng.below(16) as u8)
            } else {
                one_of(rng, &FIELDS)
            };
            script.extend([step::LIE, page]);
            script.extend(at.to_le_bytes());
            script.push(count);
            script.extend(number(rng).to_le_bytes());
            script.extend(number(rng).to_le_bytes());
        }
        2 => {
            let at = one_of(rng, &REGISTERS);
            script.push(step::REGISTER);
            script.extend(at.to_le_bytes());
            script.extend((number(rng) as u32).to_le_bytes());
        }
        _ => {
            script.extend([step::ADMIN, rng.below(8) as u8]);
            script.extend((number(rng) as u16).to_le_bytes());
            script.extend((number(rng) as u32).to_le_bytes());
        }
    }
}

fn draw_step(rng: &mut Rng, script: &mut Vec<u8>) {
    use step::*;
    let usual = [READ, READ, WRITE, WRITE, FLUSH, DEALLOCATE, PASS, SERVE, SERVE, PASS];
    let odd = [TIME, TIME, FAULT, FAULT, POST, POST, SCRIBBLE, HEALTH, REOPEN, FORSAKE];
    let what = match rng.below(24) {
        0..14 => one_of(rng, &usual),
        14..22 => one_of(rng, &odd),
        22 if once_in(rng, 4) => one_of(rng, &[GIVE_UP, REMOVE]),
        _ => return draw_lie(rng, script),
    };
    script.push(what);
    match what {
        READ | WRITE | DEALLOCATE | FLUSH => {
            let block = if once_in(rng, 8) { number(rng) as u16 } else { rng.below(40) as u16 };
            script.extend(block.to_le_bytes());
            let most = if once_in(rng, 4) { 256 } else { 12 };
            script.push(rng.below(most) as u8);
        }
        TIME => script.push(rng.below(24) as u8),
        FAULT => {
            script.push(rng.below(9) as u8);
            script.extend((number(rng) as u16).to_le_bytes());
        }
        POST => {
            script.extend([rng.below(3) as u8, rng.below(8) as u8]);
            // Of the queue that it is posted to, as an answer to one of the first commands.
            let queue = u32::from(script[script.len() - 2]);
            let id = (1 + rng.below(3) as u32) << 8 | rng.below(4) as u32;
            let third = if once_in(rng, 4) { number(rng) as u32 } else { queue << 16 };
            let last = if once_in(rng, 2) { number(rng) as u32 } else { id };
            for word in [number(rng) as u32, number(rng) as u32, third, last] {
                script.extend(word.to_le_bytes());
            }
        }
        SCRIBBLE => {
            script.extend([rng.below(3) as u8, rng.below(2) as u8]);
            script.extend((rng.below(512) as u16 & !3).to_le_bytes());
            script.extend(bytes(rng, 16));
        }
        _ => {}
    }
}
