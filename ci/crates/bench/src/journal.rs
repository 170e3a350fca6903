//! The journal under `power`, beside the machine's own rate of durable writes.
//!
//! The journal of the store, on a queue of the block driver over a file, without a store: writers that
//! append a record and wait until it survives a power cut. The machine's own rate is that of a thread
//! that writes 4 KiB past the page cache into the same file and calls `fdatasync`, on and on. What an
//! append costs is measured in memory, where nothing is waited for.

mod cores;
mod own;

use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use memkv_block::{BlockDevice, OpenOptions};
use memkv_dma::{Class, Hugepages, Pool, PoolConfig};
use memkv_journal::{
    BlockId, DriveUuid, FormatOptions, Identity, Journal, JournalError, KeyBytes, NodeUuid, Record,
    Recovered, UnitRange, format,
};
use memkv_poller::{IdlePolicy, Reactor, ReactorConfig, Rng, SystemClock};
use uuid::Uuid;

use crate::cpu::CpuClock;
use crate::error::{BenchError, doing};
use crate::report::{Spread, Verdict};
use crate::section::{Grid, Section};
use crate::tables::{ratio, spread};
use own::OwnRate;

const MIB: u64 = 1 << 20;
/// The file: room for the ring, and for as many records as a run appends.
const FILE: u64 = 6144 * MIB;
const RING: u64 = 1024 * MIB;
const RECORDS: u64 = 4 << 20;
/// The stretch at the end of the file in which the machine's own rate is measured.
const OWN: u64 = 16 * MIB;
/// Times that each side has in a round: what a durable write takes changes from one moment to the next.
const TURNS: usize = 25;
/// Writers at a time, those beside one.
const MANY: u32 = 32;
/// In memory: writers at a time, and appends of a round.
const CROWD: u32 = 256;
const CROWD_APPENDS: u64 = 100_000;
const MEMORY: u64 = 1024 * MIB;
const MEMORY_RING: u64 = 256 * MIB;

/// One writer beside the machine's own rate, at least.
const ONE_BAR: f64 = 0.9;
/// Many writers beside one, at least.
const MANY_BAR: f64 = 12.0;
/// Microseconds of CPU that an append takes, at most.
const COST_BAR: f64 = 1.0;

/// How much is done.
#[derive(Clone, Copy)]
pub struct Effort {
    /// Rounds.
    pub rounds: u32,
    /// How long each side has in a round.
    pub slice: Duration,
}

impl Effort {
    /// How much is done when it is asked for like this.
    pub fn new(quick: bool, rounds: Option<u32>) -> Effort {
        let slice = Duration::from_millis(if quick { 250 } else { 500 });
        Effort { rounds: rounds.unwrap_or(if quick { 7 } else { 15 }).clamp(1, 40), slice }
    }
}

/// Measures all of it.
///
/// # Errors
/// When the file cannot be had or fails.
pub fn measure(folder: &Path, effort: Effort) -> Result<Section, BenchError> {
    let pool = PoolConfig { size: 64 * MIB, chunk: 2 * MIB, hugepages: Hugepages::Prefer };
    let pool = Pool::new(pool)?;
    let path = folder.join("journal.drive");
    let mut options = OpenOptions::new(&path, pool.clone());
    options.size = Some(FILE);
    let options_of_drive = FormatOptions {
        ring_bytes: Some(RING),
        block_limit: Some(RECORDS),
        key_average: Some(64),
        extent_units: None,
    };
    let device = memkv_block::open(options)?;
    let driver = device.reason().to_owned();
    let journal = Driven::start(device, &pool, options_of_drive)?;
    let own = OwnRate::new(&path)?;
    // It is open once it has answered.
    journal.power(1, IdlePolicy::Adaptive, None, Duration::ZERO)?;
    let cores = own.by_core().map_err(doing("the machine's own rate"))?;
    let place = Place::of(cores);
    let mut rounds = Vec::new();
    for round in 0..effort.rounds {
        eprintln!("bench: journal, round {} of {}", round + 1, effort.rounds);
        let mut rates = [Rate::default(); 5];
        for turn in 0..rates.len() * TURNS {
            let at = (turn + turn / rates.len() + round as usize) % rates.len();
            let slice = effort.slice / TURNS as u32;
            let done = match at {
                0 => own.measure(slice).map_err(doing("the machine's own rate"))?,
                1 => journal.power(1, IdlePolicy::Busy, place.away, slice)?,
                2 => journal.power(1, IdlePolicy::Adaptive, None, slice)?,
                3 => journal.power(MANY, IdlePolicy::Adaptive, None, slice)?,
                _ => journal.power(1, IdlePolicy::Busy, place.fastest, slice)?,
            };
            rates[at].add(done);
        }
        rounds.push(rates.map(|rate| rate.per_second()));
    }
    drop(journal);
    let costs = costs_in_memory(&pool, effort.rounds)?;
    Ok(tell(effort, [driver, place.words()], &rounds, &costs))
}

fn tell(effort: Effort, [driver, place]: [String; 2], rounds: &[Rates], costs: &[f64]) -> Section {
    let mut section = Section::new([
        format!(
            "medians of {} rounds (smallest–largest), {} ms of each side in a round, {TURNS} times in \
             turn",
            effort.rounds,
            effort.slice.as_millis()
        ),
        format!("{driver}; ring of {} MiB, records with keys of 32 bytes", RING / MIB),
        place,
    ]);
    let all = |pick: &dyn Fn(&Rates) -> f64| {
        Spread::of(rounds.iter().map(pick)).expect("there is a round")
    };
    let (busy, one, many) = (all(&|r| r[1] / r[0]), all(&|r| r[2] / r[0]), all(&|r| r[3] / r[2]));
    let in_the_way = all(&|r| r[4] / r[0]);
    let cost = Spread::of(costs.iter().copied()).expect("there is a round");
    let mut grid = Grid::new(
        "Appends a second that survive a power cut:",
        &["", "rate", "ratio", "bar", "verdict"],
    );
    let mut row = |name: &str, rate: Spread, cells: [String; 3]| {
        let [ratio, bar, verdict] = cells;
        grid.rows.push(vec![name.to_owned(), spread(rate, 0), ratio, bar, verdict]);
    };
    row("O_DIRECT 4 KiB and fdatasync, a thread", all(&|r| r[0]), Default::default());
    for (at, found, idle) in [(1, busy, "busy"), (2, one, "adaptive")] {
        let verdict = Verdict::at_least(found.median, ONE_BAR);
        let name = format!("one writer, {idle} reactor, {ONE_BAR} of fdatasync's rate at least");
        let verdict = section.judge(name, &verdict);
        let cells = [ratio(found), format!("≥ {ONE_BAR}×"), verdict];
        row(&format!("one writer, {idle} reactor"), all(&|r| r[at]), cells);
    }
    let cells = [ratio(in_the_way), String::new(), String::new()];
    row("one writer, busy reactor in the way of the drive", all(&|r| r[4]), cells);
    let verdict = Verdict::at_least(many.median, MANY_BAR);
    let name = format!("{MANY} writers of the journal, {MANY_BAR} times one at least");
    let verdict = section.judge(name, &verdict);
    let cells = [ratio(many), format!("≥ {MANY_BAR}×"), verdict];
    row(&format!("{MANY} writers, adaptive reactor"), all(&|r| r[3]), cells);
    section.grids.push(grid);
    let verdict = Verdict::at_most(cost.median, COST_BAR);
    let verdict = section.judge(format!("an append, {COST_BAR} µs of CPU at most"), &verdict);
    section.notes.push(format!(
        "An append costs {} µs of CPU, all of the journal and the task that asks included: {CROWD} \
         writers in memory, nothing waited for. Bar {COST_BAR} µs: {verdict}.",
        spread(cost, 2)
    ));
    section
}

/// Where a busy reactor is bound. Where one core takes all interrupts of a drive, a thread that waits for
/// the drive is best off on that core, and a reactor that polls there is in its way.
struct Place {
    /// The core on which the machine's own rate is the highest.
    fastest: Option<usize>,
    /// Another.
    away: Option<usize>,
    /// The machine's own rate by core.
    rates: Vec<(usize, f64)>,
}

impl Place {
    fn of(rates: Vec<(usize, f64)>) -> Place {
        let fastest = rates.iter().max_by(|a, b| a.1.total_cmp(&b.1)).map(|rate| rate.0);
        let away = rates.iter().map(|rate| rate.0).find(|core| Some(*core) != fastest);
        Place { fastest, away, rates }
    }

    fn words(&self) -> String {
        let rates = self.rates.iter().map(|(core, rate)| format!("{rate:.0} on core {core}"));
        let rates = rates.collect::<Vec<_>>().join(", ");
        let core =
            |core: Option<usize>| core.map_or("no core".into(), |core| format!("core {core}"));
        let (away, fastest) = (core(self.away), core(self.fastest));
        format!(
            "a thread that is bound to a core writes {rates}; the busy reactor is bound to {away}, or \
             to {fastest}, and the rest to none"
        )
    }
}

/// Of one round: the machine's own rate, one writer on a busy and on an adaptive reactor, many, and one
/// on a busy reactor in the way of the drive.
type Rates = [f64; 5];

/// Appends or writes, and how long they took.
#[derive(Clone, Copy, Default)]
struct Rate {
    count: u64,
    took: Duration,
}

impl Rate {
    fn since(begun: Instant, count: u64) -> Rate {
        Rate { count, took: begun.elapsed() }
    }

    fn add(&mut self, other: Rate) {
        self.count += other.count;
        self.took += other.took;
    }

    fn per_second(self) -> f64 {
        self.count as f64 / self.took.as_secs_f64()
    }
}

/// A journal on a reactor of its own.
struct Bench {
    reactor: Reactor,
    journal: Rc<Journal>,
}

impl Bench {
    fn open(
        device: &dyn BlockDevice,
        pool: &Pool,
        options: FormatOptions,
    ) -> Result<Bench, BenchError> {
        let config = ReactorConfig::default();
        let mut reactor = Reactor::new(config, Rc::new(SystemClock), Rng::seeded(0));
        let local = reactor.local();
        let queue = device.open_queue(&local)?;
        let (geometry, pool) = (device.geometry(), pool.clone());
        let drive = DriveUuid(Uuid::from_u128(2));
        let identity = Identity {
            node: NodeUuid(Uuid::from_u128(1)),
            drive,
            epoch: 1,
            members: vec![drive],
            secret: [7; 32],
        };
        let opened = reactor.block_on(async move {
            let made = format(&*queue, &geometry, &pool, identity, options).await;
            let superblock = made.map_err(BenchError::from)?;
            fill_end(&*queue, geometry.capacity, &pool).await?;
            let opened = memkv_journal::open(queue, &local, pool, superblock).await;
            let (journal, _): (_, Recovered) = opened?;
            Ok::<_, BenchError>(journal)
        });
        Ok(Bench { reactor, journal: opened? })
    }

    /// Where the ring is half full, a checkpoint of nothing empties it: nobody asks for what was appended.
    fn make_room(&mut self) -> Result<(), BenchError> {
        if !self.journal.wants_checkpoint() {
            return Ok(());
        }
        let journal = Rc::clone(&self.journal);
        let written = self.reactor.block_on(async move {
            let start = journal.begin_checkpoint();
            journal.write_checkpoint(start, Vec::new(), false, 0, 0).await
        });
        Ok(written?)
    }

    /// Durable appends of so many writers at a time.
    fn power(
        &mut self,
        writers: u32,
        idle: IdlePolicy,
        slice: Duration,
    ) -> Result<Rate, BenchError> {
        let begun = Instant::now();
        let go_on = Rc::new(move |_| begun.elapsed() < slice);
        let appends = self.run(writers, idle, true, go_on)?;
        Ok(Rate::since(begun, appends))
    }

    /// Appends of so many writers at a time, each as long as `go_on` says of those before.
    fn run(
        &mut self,
        writers: u32,
        idle: IdlePolicy,
        durable: bool,
        go_on: Rc<dyn Fn(u64) -> bool>,
    ) -> Result<u64, BenchError> {
        let (journal, local) = (Rc::clone(&self.journal), self.reactor.local());
        let work = async move {
            let one = |n| {
                let task = write(Rc::clone(&journal), n, durable, Rc::clone(&go_on));
                local.spawn_join(task)
            };
            let tasks: Vec<_> = (0..writers).map(one).collect();
            let mut appends = 0;
            for task in tasks {
                appends += task.await?;
            }
            Ok::<_, JournalError>(appends)
        };
        let done = match idle {
            IdlePolicy::Adaptive => self.reactor.block_on(work),
            IdlePolicy::Busy => {
                let mut handle = self.reactor.local().spawn_join(work);
                loop {
                    self.reactor.step();
                    if let Some(done) = handle.try_take() {
                        break done;
                    }
                }
            }
        };
        Ok(done?)
    }
}

/// Durable appends that a reactor is asked for: by so many writers, what it does when idle, the core
/// that it is bound to, and for how long.
type Order = (u32, IdlePolicy, Option<usize>, Duration);

/// A journal on a reactor with a thread of its own, as in a node.
struct Driven {
    orders: Option<Sender<Order>>,
    answers: Receiver<Result<Rate, BenchError>>,
    thread: Option<JoinHandle<()>>,
}

impl Driven {
    /// Why it cannot be opened is the first answer.
    fn start(
        device: Arc<dyn BlockDevice>,
        pool: &Pool,
        options: FormatOptions,
    ) -> Result<Driven, BenchError> {
        let ((orders, asked), (answer, answers)) = (channel::<Order>(), channel());
        let pool = pool.clone();
        let run = move || {
            let mut bench = match Bench::open(&*device, &pool, options) {
                Ok(bench) => bench,
                Err(error) => return drop(answer.send(Err(error))),
            };
            let anywhere = cores::own();
            for (writers, idle, core, slice) in asked {
                let bound = core.map_or(anywhere.clone(), |core| vec![core]);
                let bound = cores::bind(&bound).map_err(doing("a core for the reactor"));
                let ready = bound.and_then(|()| bench.make_room());
                let done = ready.and_then(|()| bench.power(writers, idle, slice));
                if answer.send(done).is_err() {
                    return;
                }
            }
        };
        let thread = thread::Builder::new().name("journal".into()).spawn(run);
        let thread = Some(thread.map_err(doing("a thread for the reactor"))?);
        Ok(Driven { orders: Some(orders), answers, thread })
    }

    /// Durable appends.
    fn power(
        &self,
        writers: u32,
        idle: IdlePolicy,
        core: Option<usize>,
        slice: Duration,
    ) -> Result<Rate, BenchError> {
        if let Some(orders) = &self.orders {
            // A thread that has ended has left the reason.
            let _ = orders.send((writers, idle, core, slice));
        }
        let ended = || BenchError::Said { name: "the reactor", said: "nothing".into() };
        self.answers.recv().map_err(|_| ended())?
    }
}

impl Drop for Driven {
    fn drop(&mut self) {
        drop(self.orders.take());
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            eprintln!("bench: the reactor's thread panicked");
        }
    }
}

/// One writer.
async fn write(
    journal: Rc<Journal>,
    number: u32,
    durable: bool,
    go_on: Rc<dyn Fn(u64) -> bool>,
) -> Result<u64, JournalError> {
    let key = format!("writer {number:025}").into_bytes();
    let key = KeyBytes::new("", "", &key).expect("a short key");
    let mut appends = 0;
    while go_on(appends) {
        appends += 1;
        let record = Record::Put {
            block: BlockId { hash: u128::from(number), generation: appends },
            key: key.clone(),
            extent: UnitRange { start: number, count: 1 },
            length: 16_384,
            crc: 0,
            expires: 0,
            flags: 0,
        };
        let records = vec![record];
        let append =
            if durable { journal.append_durable(records) } else { journal.append(records) };
        drop(append.await?);
    }
    Ok(appends)
}

/// Writes the stretch of [`OwnRate`] once, so that the file system has nothing left to do there.
async fn fill_end(
    queue: &dyn memkv_block::BlockQueue,
    capacity: u64,
    pool: &Pool,
) -> Result<(), BenchError> {
    for at in (capacity - OWN..capacity).step_by(MIB as usize) {
        let mut buffer = pool.allocate_wait(Class::Checkpoint, MIB as usize).await;
        buffer.as_mut_slice().fill(1);
        memkv_block::write(queue, at, MIB as usize, buffer).await.0?;
    }
    Ok(memkv_block::flush(queue).await?)
}

/// Microseconds of CPU of an append, round by round.
fn costs_in_memory(pool: &Pool, rounds: u32) -> Result<Vec<f64>, BenchError> {
    let options = FormatOptions {
        ring_bytes: Some(MEMORY_RING),
        block_limit: Some(CROWD_APPENDS * 2),
        key_average: Some(64),
        extent_units: None,
    };
    let mut costs = Vec::new();
    for _ in 0..rounds.min(7) {
        let device = memkv_block::memory(MEMORY, Hugepages::Never)?;
        let mut bench = Bench::open(&*device, pool, options)?;
        let clock = || CpuClock::OWN.read().map_err(doing("a CPU clock"));
        let each = CROWD_APPENDS / u64::from(CROWD);
        let before = clock()?;
        let appends =
            bench.run(CROWD, IdlePolicy::Adaptive, false, Rc::new(move |done| done < each))?;
        costs.push((clock()? - before).as_secs_f64() * 1e6 / appends as f64);
    }
    Ok(costs)
}
