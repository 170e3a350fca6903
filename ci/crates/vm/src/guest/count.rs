//! What a command costs in instructions, counted on a processor on which one instruction is one tick.
//!
//! The boundaries, for a read of 4 KiB through the `BlockDevice` trait, `bare` or behind
//! [`memkv_block::watch`] as the store has it. What is the driver's:
//!
//! * *submit*: from the call of [`BlockQueue::submit`](memkv_block::BlockQueue::submit) until its future
//!   was polled once and waits, summed up over the commands of a round. To make the request and to put
//!   its future away is the asker's.
//! * *reap*: all that the driver's poller does until the last answer is taken and who asked was woken, in
//!   each [`Poller::poll`] of the round that did anything: with many at once that in which the drive is told
//!   of them, too. Between two [marks](Marks) in the reactor's pass; what lies between them when a
//!   poller that does [nothing](Nothing) has the drive's place is taken off.
//! * *idle poll*: a poll that finds nothing. A reactor that polls takes as many as there is time for.
//!
//! The waker is one that does nothing: what is to be done about a woken task is its reactor's. And what
//! stands around the driver:
//!
//! * *passes*: whole passes of the reactor in which something was told or reaped, with *reap* in them, its
//!   readings of the clock and its account of who was busy. *Idle pass*: one that finds nothing. Of
//!   *the reactor alone* both are given without a drive.
//! * *take*: the poll by which the woken asker gets its bytes.
//!
//! *Mean* is what limits are set for, as some of the work is done once in 32 answers: over the rounds that
//! the guest's kernel has not interrupted, of which there are to be nine in ten.
//!
//! The drive raises no interrupts, as for a node that polls: the kernel would be counted with each. While a
//! batch is answered nothing runs that is counted, and that pause alone would have the reactor ask the kernel
//! how long it waited for its core: by this clock nobody knows.

use std::cell::Cell;
use std::fs::File;
use std::hint::black_box;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use memkv_block::{BlockDevice, BlockQueue, Completion, Io, IoBuf, watch};
use memkv_dma::{Class, DmaBuf, Pool};
use memkv_poller::{
    Clock, IdlePolicy, Instant, Interrupt, Local, Poller, Progress, Reactor, ReactorConfig, Rng,
    SystemClock,
};

use super::driver;
use super::pci::{self, Driver};
use super::rig::{self, MIB};
use super::talk;
use crate::plan::Check;
use crate::ticks::{overhead, ticks};

const BYTES: usize = 4096;

/// Rounds that are counted, after as many that are not: as often as the drive is told of a quarter of a
/// ring that was taken, five times over.
const ROUNDS: usize = 160;

/// Turns of a loop in which a batch is answered: the drive works while nothing is counted.
const BATCH_TURNS: u32 = 300_000;

/// How many are asked for at once, and the most instructions that submit and reap of each may take.
const CROWDS: [(usize, f64); 2] = [(1, 250.0), (32, 200.0)];

/// A round that takes so many instructions more than the shortest was interrupted.
const INTERRUPTED: u64 = 1500;

/// Instructions of [`Nothing`] itself, which are not taken off: it loads what to say, and returns.
const OF_NOTHING: u64 = 3;

/// Bytes behind which files are read and written without the kernel's cache.
const O_DIRECT: i32 = 0o40000;

/// The driver's own is within its limits; the other counts are reported.
pub const CHECKS: &[Check] = &[
    Check { name: "the instructions of a command are counted", run: count_all },
    Check {
        name: "a reactor that polls asks the kernel for nothing",
        run: driver::a_reactor_asks_the_kernel_for_nothing,
    },
];

/// When a pass of the reactor came to the drive's poller, and when it was done with it.
#[derive(Default)]
struct Marks {
    came: Cell<u64>,
    /// 0: it is not.
    left: Cell<u64>,
}

impl Marks {
    /// The pass is here; only the first who says so since it came is heard.
    #[inline(always)]
    fn leave(&self) {
        if self.left.get() == 0 {
            self.left.set(ticks());
        }
    }

    fn between(&self) -> u64 {
        self.left.get() - self.came.get()
    }
}

/// Polled right before the drive's poller.
struct Before(Rc<Marks>);

/// Polled right after it. Where that has done something the reactor looks at the clock before.
struct After(Rc<Marks>);

/// In the place of the drive's poller, and always found the same.
struct Nothing(Progress);

impl Poller for Before {
    fn name(&self) -> &'static str {
        "before"
    }

    fn poll(&mut self) -> Progress {
        self.0.left.set(0);
        self.0.came.set(ticks());
        Progress::Idle
    }

    fn arm(&mut self) -> Interrupt {
        Interrupt::Quiet
    }
}

impl Poller for After {
    fn name(&self) -> &'static str {
        "after"
    }

    fn poll(&mut self) -> Progress {
        self.0.leave();
        Progress::Idle
    }

    fn arm(&mut self) -> Interrupt {
        Interrupt::Quiet
    }
}

impl Poller for Nothing {
    fn name(&self) -> &'static str {
        "nothing"
    }

    fn poll(&mut self) -> Progress {
        self.0
    }

    fn arm(&mut self) -> Interrupt {
        Interrupt::Quiet
    }
}

/// The machine's clock, which does not know how long anybody waited.
struct PlainClock;

impl Clock for PlainClock {
    fn now(&self) -> Instant {
        SystemClock.now()
    }

    fn unix_seconds(&self) -> u64 {
        SystemClock.unix_seconds()
    }
}

/// The same, where the reactor comes when a poller has done something.
struct MarkingClock(Rc<Marks>);

impl Clock for MarkingClock {
    fn now(&self) -> Instant {
        self.0.leave();
        SystemClock.now()
    }

    fn unix_seconds(&self) -> u64 {
        SystemClock.unix_seconds()
    }
}

/// A reactor with one poller, and the marks around that, if there are any.
struct Wheel {
    reactor: Reactor,
    marks: Option<Rc<Marks>>,
    /// What two readings of the ticks have between them.
    nothing: u64,
    /// What the marks have, where the poller does nothing: when it says that it did, and when not.
    busy: u64,
    idle: u64,
}

/// Ticks of a pass, and of the poll in it.
struct Pass {
    is_busy: bool,
    whole: u64,
    poll: u64,
}

impl Wheel {
    fn new<T>(marks: bool, open: impl FnOnce(&Local) -> T) -> (Wheel, T) {
        let marks = marks.then(Rc::<Marks>::default);
        let clock: Rc<dyn Clock> = match &marks {
            Some(marks) => Rc::new(MarkingClock(Rc::clone(marks))),
            None => Rc::new(PlainClock),
        };
        let config = ReactorConfig { idle: IdlePolicy::Busy, ..ReactorConfig::default() };
        let reactor = Reactor::new(config, clock, Rng::seeded(1));
        let local = reactor.local();
        if let Some(marks) = &marks {
            local.add_poller(Box::new(Before(Rc::clone(marks))));
        }
        let opened = open(&local);
        if let Some(marks) = &marks {
            local.add_poller(Box::new(After(Rc::clone(marks))));
        }
        (Wheel { reactor, marks, nothing: overhead(), busy: 0, idle: 0 }, opened)
    }

    /// The same around a queue of a drive.
    fn around(device: &dyn BlockDevice, marks: bool) -> (Wheel, Rc<dyn BlockQueue>) {
        let (mut wheel, queue) =
            Wheel::new(marks, |local| device.open_queue(local).expect("a queue"));
        let floor = |progress| {
            let passes = passes_without_a_drive(progress, true);
            passes.iter().map(|pass| pass.poll).min().expect("some were taken") - OF_NOTHING
        };
        if marks {
            (wheel.busy, wheel.idle) = (floor(Progress::Busy(1)), floor(Progress::Idle));
        }
        (wheel, queue)
    }

    fn pass(&mut self) -> Pass {
        let begun = ticks();
        let is_busy = self.reactor.step().is_busy();
        let whole = ticks() - begun - self.nothing;
        let floor = if is_busy { self.busy } else { self.idle };
        let poll = self.marks.as_ref().map_or(0, |marks| marks.between() - floor);
        Pass { is_busy, whole, poll }
    }
}

fn passes_without_a_drive(progress: Progress, marks: bool) -> Vec<Pass> {
    let (mut wheel, ()) = Wheel::new(marks, |local| local.add_poller(Box::new(Nothing(progress))));
    (0..2 * ROUNDS).map(|_| wheel.pass()).skip(ROUNDS).collect()
}

/// Ticks of every round.
#[derive(Default)]
struct Counts {
    submit: Vec<u64>,
    reap: Vec<u64>,
    take: Vec<u64>,
    passes: Vec<u64>,
    /// How many passes these were.
    laps: Vec<u64>,
    idle_poll: Vec<u64>,
    idle_pass: Vec<u64>,
}

fn count_all() {
    let pool = rig::pool();
    let bare: Arc<dyn BlockDevice> = rig::open_polled("ours", &pool);
    let watched = watch(Arc::clone(&bare), Duration::from_secs(30));
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::ASCII_MARKDOWN);
    table.set_header(["4 KiB read", "part", "min", "median", "p99", "mean"]);
    let mut above = Vec::new();
    for (name, device) in [("bare", &bare), ("watched", &watched)] {
        for (crowd, limit) in CROWDS {
            let what = format!("{name}, {crowd} at once");
            let mean = rows(&mut table, &what, crowd, &**device, &pool);
            if mean.is_none_or(|mean| mean > limit) {
                above.push(format!("{what}: {mean:.1?}, limit {limit}"));
            }
        }
    }
    for (part, progress) in [("a pass", Progress::Busy(1)), ("idle pass", Progress::Idle)] {
        let passes = passes_without_a_drive(progress, false);
        let whole = passes.iter().map(|pass| pass.whole).collect();
        row(&mut table, "the reactor alone", part, 1, whole);
    }
    let clock = (0..ROUNDS).map(|_| ticks_of(|| SystemClock.now())).collect();
    row(&mut table, "the clock, read", "all", 1, clock);
    row(&mut table, "kernel, O_DIRECT pread", "all", 1, by_the_kernel(&pool));
    talk::say("  instructions a command");
    table.lines().for_each(|line| talk::say(format!("  {line}")));
    assert!(above.is_empty(), "the driver's own, submit and reap: {}", above.join(", "));
}

/// Rows of so many reads at once. Says what submit and reap of one are in the mean.
fn rows(
    table: &mut comfy_table::Table,
    what: &str,
    crowd: usize,
    device: &dyn BlockDevice,
    pool: &Pool,
) -> Option<f64> {
    let Counts { submit, reap, take, idle_poll, .. } = counted(device, pool, crowd, true);
    let sum = submit.iter().zip(&reap).map(|(submit, reap)| submit + reap).collect();
    row(table, what, "submit", crowd, submit);
    row(table, what, "reap", crowd, reap);
    let mean = row(table, what, "submit + reap", crowd, sum);
    row(table, what, "idle poll", 1, idle_poll);
    row(table, what, "take", crowd, take);
    // Once more without the marks, which would be counted with the passes.
    let Counts { passes, laps, idle_pass, .. } = counted(device, pool, crowd, false);
    row(table, what, "passes", crowd, passes);
    row(table, what, "how many, a round", 1, laps);
    row(table, what, "idle pass", 1, idle_pass);
    mean
}

/// A row of what rounds took in which `crowd` commands were given; the mean of one, if there is one.
fn row(
    table: &mut comfy_table::Table,
    what: &str,
    part: &str,
    crowd: usize,
    mut counts: Vec<u64>,
) -> Option<f64> {
    assert!(counts.len() >= ROUNDS / 2, "{what}, {part}: counted {} times", counts.len());
    counts.sort_unstable();
    let own = counts.partition_point(|&ticks| ticks < counts[0] + INTERRUPTED);
    let mean = counts[..own].iter().sum::<u64>() as f64 / (own * crowd) as f64;
    let mean = (own >= counts.len() / 10 * 9).then_some(mean);
    let at =
        |percent: usize| Some(counts[(counts.len() - 1) * percent / 100] as f64 / crowd as f64);
    let columns = [at(0), at(50), at(99), mean];
    let columns =
        columns.map(|ticks| ticks.map_or_else(String::new, |ticks| format!("{ticks:.1}")));
    table.add_row([what, part].map(str::to_owned).into_iter().chain(columns));
    mean
}

/// Asks for a read; its end, and what it took to ask.
#[inline(never)]
fn ask(queue: &dyn BlockQueue, io: Io, nothing: u64) -> (Completion, u64) {
    let mut context = Context::from_waker(Waker::noop());
    let begun = ticks();
    let mut end = queue.submit(io);
    let waits = Pin::new(&mut end).poll(&mut context).is_pending();
    let took = ticks() - begun - nothing;
    assert!(waits, "nobody has taken its answer");
    (end, took)
}

/// Takes what was read; the buffer, and what it took.
#[inline(never)]
fn take(mut end: Completion, nothing: u64) -> (DmaBuf, u64) {
    let mut context = Context::from_waker(Waker::noop());
    let begun = ticks();
    let done = Pin::new(&mut end).poll(&mut context);
    let took = ticks() - begun - nothing;
    let Poll::Ready(done) = done else { panic!("it was answered") };
    done.result.expect("read");
    (done.buf.and_then(IoBuf::into_exclusive).expect("its buffer"), took)
}

/// So many reads at once, again and again.
fn counted(device: &dyn BlockDevice, pool: &Pool, crowd: usize, marks: bool) -> Counts {
    let (mut wheel, queue) = Wheel::around(device, marks);
    let buffer = |_| pool.allocate(Class::Receive, BYTES).expect("room in the pool");
    let mut buffers: Vec<DmaBuf> = (0..crowd).map(buffer).collect();
    let mut ends: Vec<Completion> = Vec::with_capacity(crowd);
    let mut counts = Counts::default();
    for round in 0..2 * ROUNDS {
        let (mut submit, mut reap, mut taking, mut passes, mut laps) = (0, 0, 0, 0, 0);
        let offset = |n: usize| (round * 7919 % 4096 * BYTES) as u64 + n as u64 * MIB;
        for (n, buffer) in buffers.drain(..).enumerate() {
            let io = Io::read(offset(n), BYTES, buffer);
            let (end, took) = ask(black_box(&*queue), io, wheel.nothing);
            submit += took;
            ends.push(end);
        }
        while queue.outstanding() > 0 {
            let pass = wheel.pass();
            if pass.is_busy {
                reap += pass.poll;
                passes += pass.whole;
                laps += 1;
            }
            if crowd > 1 && queue.outstanding() > 0 {
                (0..BATCH_TURNS).for_each(|turn| _ = black_box(turn));
            }
        }
        for end in ends.drain(..) {
            let (buffer, took) = take(end, wheel.nothing);
            taking += took;
            buffers.push(buffer);
        }
        if round >= ROUNDS {
            counts.submit.push(submit);
            counts.reap.push(reap);
            counts.take.push(taking);
            counts.passes.push(passes);
            counts.laps.push(laps);
        }
    }
    for _ in 0..ROUNDS {
        let pass = wheel.pass();
        counts.idle_poll.push(pass.poll);
        counts.idle_pass.push(pass.whole);
    }
    counts
}

fn ticks_of<T>(run: impl FnOnce() -> T) -> u64 {
    let begun = ticks();
    black_box(run());
    ticks() - begun - overhead()
}

/// The same read as a file's, past the kernel's cache. While the drive works the processor has nothing to
/// do, and its clock runs on: the least is what counts.
fn by_the_kernel(pool: &Pool) -> Vec<u64> {
    let path = pci::block_device(&rig::address("kernels", Driver::Nvme));
    let file = File::options().read(true).custom_flags(O_DIRECT).open(path).expect("a drive");
    let mut buffer = pool.allocate(memkv_dma::Class::Receive, BYTES).expect("room");
    let nothing = overhead();
    let one = |round: usize| {
        let begun = ticks();
        file.read_exact_at(buffer.as_mut_slice(), (round * 7919 % 4096 * BYTES) as u64)
            .expect("read");
        ticks() - begun - nothing
    };
    (0..2 * ROUNDS).map(one).collect()
}
