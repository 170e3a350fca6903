//! What a start takes for each block that it brings back, and how long a checkpoint keeps the
//! store's reactor from others.
//!
//! It fills a store on a drive in memory, with many writers, and leaves it without a word, as a
//! crash does. Then it starts anew: from the log alone, and, once a checkpoint was written, from
//! that. In between it measures the turns of the reactor while checkpoints are written: of the log,
//! of the checkpoint before, and of that while blocks are put. Times are those of the thread's own
//! clock, so they are CPU time, and turns are told without what others took of the core. A start is
//! charged with the copying that the drive in memory does, a checkpoint is not.

#![forbid(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::ops::Range;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use clap::Parser;
use memkv_block::{BlockQueue, Completer, Completion, Done, Geometry, Io, IoBuf, Op, completion};
use memkv_dma::{Hugepages, Pool, PoolConfig};
use memkv_journal::{DriveUuid, FormatOptions, Identity, KeyBytes, NodeUuid, UNIT};
use memkv_poller::local::Event;
use memkv_poller::{
    Clock, Instant, JoinHandle, LONG_TURN, Long, Reactor, ReactorConfig, Rng, SystemClock, Turns,
};
use memkv_store::{Caller, Mode, Policy, RecoveredDrive, ReserveRequest, Store, StoreConfig};
use nix::time::{ClockId, clock_gettime};

/// CPU seconds for each million blocks of a start that reads the log.
const BAR_REPLAY: f64 = 0.40;
/// Of one that reads a checkpoint.
const BAR_CHECKPOINT: f64 = 0.15;
/// Puts under way at one time.
const WRITERS: u64 = 64;
/// Bytes of the ring for each block, of which a log takes less than half.
const RING: u64 = 512;
/// Bytes that the drive in memory takes at a time.
const PIECE: usize = 256 << 10;
const MIB: u64 = 1 << 20;

/// Measures what a start takes for each block
#[derive(Parser)]
struct Arguments {
    /// Blocks
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1000..))]
    blocks: u64,
    /// Starts of each kind; the middle one counts
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
    starts: u64,
}

/// A drive in memory that holds what was written to it, but for zeros. A command ends when those
/// who are ready had their turn, so that puts share frames as on other drives.
struct Sparse {
    pieces: RefCell<Vec<Option<Box<[u8]>>>>,
    capacity: u64,
    ending: RefCell<Vec<(Completer, Io)>>,
    /// What its copying took, which a device does by itself.
    copying: Cell<Duration>,
    ended: Event,
}

impl Sparse {
    fn new(capacity: u64) -> Rc<Self> {
        let pieces = (0..capacity.div_ceil(PIECE as u64)).map(|_| None).collect();
        let (pieces, copying) = (RefCell::new(pieces), Cell::default());
        let (ending, ended) = (RefCell::default(), Event::default());
        Rc::new(Self { pieces, capacity, ending, copying, ended })
    }

    /// Ends commands.
    async fn serve(self: Rc<Self>) {
        loop {
            for (completer, io) in self.ending.take() {
                completer.complete(Done::of(io, Ok(())));
            }
            if self.ending.borrow().is_empty() {
                self.ended.listen().await;
            }
        }
    }

    fn geometry(&self) -> Geometry {
        Geometry { capacity: self.capacity, sector: 4096, max_transfer: 4 << 20 }
    }

    fn read(&self, mut offset: usize, mut bytes: &mut [u8]) {
        let pieces = self.pieces.borrow();
        while !bytes.is_empty() {
            let (piece, at) = (offset / PIECE, offset % PIECE);
            let len = bytes.len().min(PIECE - at);
            let (now, rest) = bytes.split_at_mut(len);
            match &pieces[piece] {
                Some(piece) => now.copy_from_slice(&piece[at..at + len]),
                None => now.fill(0),
            }
            (offset, bytes) = (offset + len, rest);
        }
    }

    fn write(&self, mut offset: usize, mut bytes: &[u8]) {
        let mut pieces = self.pieces.borrow_mut();
        while !bytes.is_empty() {
            let (piece, at) = (offset / PIECE, offset % PIECE);
            let (now, rest) = bytes.split_at(bytes.len().min(PIECE - at));
            let piece = &mut pieces[piece];
            if piece.is_some() || now.iter().any(|byte| *byte != 0) {
                let piece = piece.get_or_insert_with(|| vec![0; PIECE].into());
                piece[at..at + now.len()].copy_from_slice(now);
            }
            (offset, bytes) = (offset + now.len(), rest);
        }
    }
}

impl BlockQueue for Sparse {
    fn submit(&self, mut io: Io) -> Completion {
        let (completer, completion) = completion();
        let (from, len, at) = (io.offset as usize, io.len as usize, io.buf_at);
        let began = (clock(), wall());
        match (io.op, &mut io.buf) {
            (Op::Read, Some(IoBuf::Exclusive(buf))) => {
                self.read(from, &mut buf.as_mut_slice()[at..at + len]);
            }
            (Op::Write | Op::WriteFlush, Some(buf)) => {
                self.write(from, &buf.as_slice()[at..at + len])
            }
            _ => {}
        }
        let took = (clock() - began.0).min(wall() - began.1);
        self.copying.set(self.copying.get() + took);
        self.ending.borrow_mut().push((completer, io));
        self.ended.notify_all();
        completion
    }

    fn outstanding(&self) -> usize {
        self.ending.borrow().len()
    }
}

/// The machine's clock, which stands while the drive copies.
///
/// Two things tell what of the time others had: how long the thread waited for a core, and what of
/// the time on the wall it was not given, since it never sleeps. The first knows nothing of what the
/// machine below a virtual one takes, nor of a thread that was stopped; the clock of the second is
/// set right now and then, by more than a turn takes. So the larger one counts.
struct WithoutCopying {
    drive: Rc<Sparse>,
    before: Cell<(Duration, Duration)>,
    others: Cell<Duration>,
}

impl Clock for WithoutCopying {
    fn now(&self) -> Instant {
        Instant::ORIGIN + wall().saturating_sub(self.drive.copying.get())
    }

    fn unix_seconds(&self) -> u64 {
        SystemClock.unix_seconds()
    }

    fn waited(&self) -> Option<Duration> {
        let now = (SystemClock.waited()?, wall().saturating_sub(clock()));
        let before = self.before.replace(now);
        let had = now.0.saturating_sub(before.0).max(now.1.saturating_sub(before.1));
        self.others.set(self.others.get() + had);
        Some(self.others.get())
    }
}

fn wall() -> Duration {
    SystemClock.now().saturating_duration_since(Instant::ORIGIN)
}

/// The time this thread has had.
fn clock() -> Duration {
    Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("a clock of Linux"))
}

/// A machine with one drive.
struct Machine {
    drive: Rc<Sparse>,
    pool: Pool,
    reactor: Reactor,
    blocks: u64,
    starts: u64,
}

impl Machine {
    fn new(Arguments { blocks, starts }: Arguments) -> Self {
        let config = PoolConfig { size: 64 << 20, chunk: 2 << 20, hugepages: Hugepages::Never };
        let pool = Pool::new(config).expect("a pool of 64 MiB");
        // A checkpoint takes less than a unit of 16 KiB for a block.
        let capacity = blocks * 2 * UNIT as u64 + blocks * RING + 1024 * MIB;
        let drive = Sparse::new(capacity.next_multiple_of(2 * MIB));
        let config = ReactorConfig::default();
        let (before, others) = <_>::default();
        let clock = WithoutCopying { drive: drive.clone(), before, others };
        let reactor = Reactor::new(config, Rc::new(clock), Rng::seeded(1));
        reactor.local().spawn(drive.clone().serve());
        Self { drive, pool, reactor, blocks, starts }
    }

    fn format(&mut self) {
        let drive = DriveUuid(uuid::Uuid::from_u128(1));
        let node = NodeUuid(uuid::Uuid::from_u128(2));
        let identity = Identity { node, drive, epoch: 1, members: vec![drive], secret: [7; 32] };
        let options = FormatOptions {
            ring_bytes: Some((self.blocks * RING).next_multiple_of(MIB).max(16 * MIB)),
            block_limit: Some(self.blocks * 2),
            ..FormatOptions::default()
        };
        let (device, pool) = (self.drive.clone(), self.pool.clone());
        self.reactor.block_on(async move {
            let geometry = device.geometry();
            let formatted =
                memkv_journal::format(&*device, &geometry, &pool, identity, options).await;
            formatted.expect("the drive is large enough");
        });
    }

    /// Starts the store; the CPU time of that, and of the journal's part.
    fn start(&mut self) -> (Rc<Store>, Duration, Duration) {
        let (device, pool, local) = (self.drive.clone(), self.pool.clone(), self.reactor.local());
        let began = clock();
        let (store, read) = self.reactor.block_on(async move {
            let geometry = device.geometry();
            let superblock = memkv_journal::read_superblock(&*device, &geometry, &pool).await;
            let superblock = superblock.expect("the drive was formatted");
            let opened = memkv_journal::open(device, &local, pool, superblock).await;
            let (journal, recovered) = opened.expect("the drive is whole");
            let read = clock();
            let config = StoreConfig::default();
            let drives = vec![RecoveredDrive { journal, recovered }];
            let store = Store::recover(&local, config, Policy::Chain.build(), drives).await;
            (store.expect("the drive is the whole node"), read)
        });
        (store, clock() - began, read - began)
    }

    /// Starts some times, and says what the middle one took for a million blocks.
    fn restart(&mut self, what: &str) -> (Rc<Store>, f64) {
        let mut starts = Vec::new();
        loop {
            let (store, took, read) = self.start();
            assert_eq!(store.counters().blocks.get(), self.blocks, "no block is lost");
            starts.push((self.per_million(took), self.per_million(read)));
            if starts.len() as u64 == self.starts {
                starts.sort_by(|a, b| a.0.total_cmp(&b.0));
                let (all, read) = starts[starts.len() / 2];
                let (least, most) = (starts[0].0, starts[starts.len() - 1].0);
                println!("  {what:15} {all:6.3} ({least:.3}-{most:.3}), reading {read:.3} of it");
                return (store, all);
            }
        }
    }

    fn per_million(&self, time: Duration) -> f64 {
        time.as_secs_f64() / self.blocks as f64 * 1e6
    }

    /// Puts blocks of these numbers, several at a time.
    fn writers(&self, store: &Rc<Store>, numbers: &Range<u64>) -> Vec<JoinHandle<()>> {
        let writers = (0..WRITERS).map(|writer| {
            let (store, numbers) = (store.clone(), numbers.clone());
            self.reactor.local().spawn_join(write(store, writer, numbers))
        });
        writers.collect()
    }

    /// Puts all blocks.
    fn fill(&mut self, store: &Rc<Store>) {
        let writers = self.writers(store, &(0..self.blocks));
        self.reactor.block_on(async move {
            for writer in writers {
                writer.await;
            }
        });
        assert_eq!(store.drives()[0].journal.checkpoints, 0, "the log holds all");
    }

    /// Writes a checkpoint while blocks are put; the turns of the reactor until both are done, and
    /// the CPU time of it all.
    fn checkpoint(&mut self, store: &Rc<Store>, puts: u64) -> (Vec<Turns>, Duration) {
        let mut writers = self.writers(store, &(self.blocks..self.blocks + puts));
        let mut written = store.local().spawn_join(checkpoint(store.clone()));
        // The drive's copying is none of the store's.
        let now = || clock() - self.drive.copying.get();
        let (began, stats) = (now(), self.reactor.stats());
        stats.take_turns();
        while written.try_take().is_none() {
            self.reactor.step();
        }
        while let Some(writer) = writers.last_mut() {
            match writer.try_take() {
                Some(()) => _ = writers.pop(),
                None => _ = self.reactor.step(),
            }
        }
        assert!(store.drives()[0].why_offline.is_none(), "the checkpoint was written");
        (stats.take_turns(), now() - began)
    }
}

/// One of the writers: every so many of the numbers are its own.
async fn write(store: Rc<Store>, writer: u64, numbers: Range<u64>) {
    for number in numbers.skip(writer as usize).step_by(WRITERS as usize) {
        put(&store, number).await;
    }
}

async fn checkpoint(store: Rc<Store>) {
    let drive = &store.drives()[0];
    store.checkpoint_unless(drive.id, drive.journal.checkpoints).await;
}

async fn put(store: &Rc<Store>, number: u64) {
    // As engines name their blocks: by a hash.
    let name = format!("{:064x}", u128::from(number + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    let key = KeyBytes::new("default", "llama", name.as_bytes()).expect("a good key");
    let request = ReserveRequest {
        hash: store.hasher().hash(&key),
        key,
        length: UNIT as u64,
        mode: Mode::Replace,
        ttl_seconds: 0,
        parent: None,
        pin: Duration::ZERO,
        durable: false,
        deadline: store.local().now() + Duration::from_secs(60),
        caller: Caller { client: 1, request: number, item: 0 },
    };
    let grant = store.reserve(request).await.expect("there is room for all");
    store.commit(grant.id, &[number as u32]).await.expect("the drive holds");
}

fn main() -> ExitCode {
    let mut machine = Machine::new(Arguments::parse());
    let blocks = machine.blocks;
    machine.format();
    let (store, ..) = machine.start();
    machine.fill(&store);
    drop(store);

    println!("CPU seconds of a start for each million of {blocks} blocks");
    let (store, replay) = machine.restart("the log");
    let (of_log, log_took) = machine.checkpoint(&store, 0);
    drop(store);
    let (store, checkpoint) = machine.restart("a checkpoint");
    let (of_rows, rows_took) = machine.checkpoint(&store, 0);
    drop(store);
    let (store, _) = machine.restart("a merged one");
    let puts = blocks / 8;
    let (beside, beside_took) = machine.checkpoint(&store, puts);

    println!(
        "CPU time of a checkpoint of {blocks} blocks, and the reactor's longest turn meanwhile"
    );
    let took = machine.per_million(log_took);
    let of_log = say_turns("the log", took, of_log);
    let of_rows = say_turns("a checkpoint", machine.per_million(rows_took), of_rows);
    let took = machine.per_million(beside_took);
    let beside = say_turns(&format!("one beside {puts} puts"), took, beside);
    say_held_up(log_took + rows_took + beside_took);
    let turn = of_log.max(of_rows).max(beside);
    let held = replay <= BAR_REPLAY && checkpoint <= BAR_CHECKPOINT && turn <= LONG_TURN;
    let verdict = if held { "held" } else { "MISSED" };
    println!(
        "bar: at most {BAR_REPLAY} from a log, {BAR_CHECKPOINT} from a checkpoint, no turn above \
         {LONG_TURN:?}: {verdict}"
    );
    if held { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A thread that does nothing is held up, too, by what the machine does that no clock tells. Says how
/// long at most, in as much of its time as checkpoints took.
fn say_held_up(time: Duration) {
    let (began, mut last) = (clock(), (clock(), wall()));
    let mut long = Long::default();
    while last.0 - began < time {
        let now = (clock(), wall());
        let took = (now.0 - last.0).min(now.1 - last.1);
        long.count += u64::from(took > LONG_TURN / 4);
        long.longest = long.longest.max(took);
        last = now;
    }
    println!(
        "  a thread that only reads the clocks, as long: longest {:.1} us, {} above {:?}",
        long.longest.as_nanos() as f64 / 1e3,
        long.count,
        LONG_TURN / 4
    );
}

/// Says what a checkpoint took, and whose the long turns were; how long the longest was, without
/// what others took of the core.
fn say_turns(what: &str, took: f64, mut turns: Vec<Turns>) -> Duration {
    let us = |time: Duration| time.as_nanos() as f64 / 1e3;
    println!("  of {what:12} {took:6.3} s for each million");
    turns.sort_by_key(|turns| Reverse(turns.own.longest));
    for Turns { who, own, preempted } in &turns {
        println!(
            "    {who}: longest {:.1} us, {} above the bar; of the {} that were so only because \
             the thread had no core: {:.1} us",
            us(own.longest),
            own.count,
            preempted.count,
            us(preempted.longest)
        );
    }
    turns.first().map_or(Duration::ZERO, |turns| turns.own.longest)
}
