//! What a command costs in instructions, counted on a processor on which one instruction is one tick.
//!
//! The boundaries, for a read of 4 KiB through the `BlockDevice` trait, `bare` or behind
//! [`memkv_block::watch`] as the store has it:
//!
//! * *submit*: from the call of [`BlockQueue::submit`](memkv_block::BlockQueue::submit) until its future
//!   was polled once and waits; with many at once also the reactor's pass that tells the drive of them.
//! * *reap*: the reactor's passes that find answers, until they return, the askers woken. The drive answers
//!   the first of many while it is told of the others: some are reaped in what counts as *submit*.
//! * *take*: the poll by which the woken asker gets its bytes.
//! * *idle pass*: a pass that finds nothing, which is a part of *reap*, too.
//!
//! The drive raises no interrupts, as for a node that polls: the kernel would be counted with each.

use std::fs::File;
use std::hint::black_box;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use memkv_block::{BlockDevice, Completion, Io, IoBuf, watch};
use memkv_dma::{DmaBuf, Pool};
use memkv_poller::{Clock, SystemClock};

use super::driver;
use super::pci::{self, Driver};
use super::rig::{self, Bench, MIB};
use super::talk;
use crate::plan::Check;
use crate::ticks::{overhead, ticks};

const BYTES: usize = 4096;

/// Rounds that are counted, after as many that are not.
const ROUNDS: usize = 150;

/// Turns of a loop in which a batch is answered: the drive works while nothing is counted.
const BATCH_TURNS: u32 = 300_000;

/// Bytes behind which files are read and written without the kernel's cache.
const O_DIRECT: i32 = 0o40000;

/// That it can be counted; the counts are reported.
pub const CHECKS: &[Check] = &[
    Check { name: "the instructions of a command are counted", run: count_all },
    Check {
        name: "a reactor that polls asks the kernel for nothing",
        run: driver::a_reactor_asks_the_kernel_for_nothing,
    },
];

/// Whom the driver wakes, and how often it did.
#[derive(Default)]
struct Asker(AtomicU64);

impl Wake for Asker {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Ticks of every round, a command.
#[derive(Default)]
struct Counts {
    submit: Vec<u64>,
    reap: Vec<u64>,
    take: Vec<u64>,
    idle: Vec<u64>,
    /// Passes in which something was reaped, of a whole round.
    passes: Vec<u64>,
}

fn count_all() {
    let pool = rig::pool();
    let bare: Arc<dyn BlockDevice> = rig::open_polled("ours", &pool);
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::ASCII_MARKDOWN);
    table.set_header(["4 KiB read", "part", "min", "median", "p99"]);
    for crowd in [1, 32] {
        let counts = counted(&*bare, &pool, crowd);
        rows(&mut table, &format!("bare, {crowd} at once"), counts);
    }
    let watched = watch(bare, Duration::from_secs(30));
    for crowd in [1, 32] {
        let counts = counted(&*watched, &pool, crowd);
        rows(&mut table, &format!("watched, {crowd} at once"), counts);
    }
    row(
        &mut table,
        "the clock, read",
        "all",
        (0..ROUNDS).map(|_| ticks_of(|| SystemClock.now())).collect(),
    );
    let file = by_the_kernel(&pool);
    row(&mut table, "kernel, O_DIRECT pread", "all", file);
    talk::say("  instructions a command");
    table.lines().for_each(|line| talk::say(format!("  {line}")));
}

fn rows(table: &mut comfy_table::Table, what: &str, counts: Counts) {
    let Counts { submit, reap, take, idle, passes } = counts;
    let sum = submit.iter().zip(&reap).map(|(submit, reap)| submit + reap).collect();
    row(table, what, "submit", submit);
    row(table, what, "reap", reap);
    row(table, what, "submit + reap", sum);
    row(table, what, "take", take);
    row(table, what, "idle pass", idle);
    row(table, what, "passes that reaped", passes);
}

fn row(table: &mut comfy_table::Table, what: &str, part: &str, mut counts: Vec<u64>) {
    assert!(counts.len() >= ROUNDS / 2, "{what}, {part}: counted {} times", counts.len());
    counts.sort_unstable();
    let at = |percent: usize| counts[(counts.len() - 1) * percent / 100].to_string();
    table.add_row([what.to_owned(), part.to_owned(), at(0), at(50), at(99)]);
}

/// So many reads at once, again and again.
fn counted(device: &dyn BlockDevice, pool: &Pool, crowd: usize) -> Counts {
    let mut bench = Bench::new(device, pool);
    let asker = Arc::new(Asker::default());
    let waker = Waker::from(Arc::clone(&asker));
    let mut context = Context::from_waker(&waker);
    let mut buffers: Vec<DmaBuf> = (0..crowd).map(|_| bench.buffer(BYTES)).collect();
    let mut ends: Vec<Completion> = Vec::with_capacity(crowd);
    let (mut counts, nothing) = (Counts::default(), overhead());
    for round in 0..2 * ROUNDS {
        let offset = |n: usize| (round * 7919 % 4096 * BYTES) as u64 + n as u64 * MIB;
        let ios = buffers.drain(..).enumerate();
        let ios: Vec<Io> = ios.map(|(n, buffer)| Io::read(offset(n), BYTES, buffer)).collect();
        let woken = asker.0.load(Ordering::Relaxed) + crowd as u64;
        let begun = ticks();
        for io in ios {
            let mut end = black_box(&bench.queue).submit(io);
            assert!(Pin::new(&mut end).poll(&mut context).is_pending());
            ends.push(end);
        }
        if crowd > 1 {
            bench.reactor.step();
        }
        let submit = ticks() - begun - nothing;
        if crowd > 1 {
            (0..BATCH_TURNS).for_each(|turn| _ = black_box(turn));
        }
        let (mut passes, mut reap) = (0, 0);
        while asker.0.load(Ordering::Relaxed) < woken {
            let begun = ticks();
            let busy = bench.reactor.step().is_busy();
            let took = ticks() - begun - nothing;
            if busy {
                reap += took;
                passes += 1;
            }
        }
        let begun = ticks();
        for end in &mut ends {
            let Poll::Ready(done) = Pin::new(end).poll(&mut context) else { panic!("woken") };
            done.result.expect("read");
            buffers.extend(done.buf.and_then(IoBuf::into_exclusive));
        }
        let take = ticks() - begun - nothing;
        ends.clear();
        if round >= ROUNDS {
            let each = |ticks: u64| ticks / crowd as u64;
            counts.submit.push(each(submit));
            counts.reap.push(each(reap));
            counts.take.push(each(take));
            counts.passes.push(passes);
        }
    }
    for _ in 0..ROUNDS {
        let begun = ticks();
        bench.reactor.step();
        counts.idle.push(ticks() - begun - nothing);
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
