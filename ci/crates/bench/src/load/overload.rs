//! Twice as much as a node can serve: requests come at their own pace, whatever becomes of those before.
//!
//! First the peak is measured, with as many requests under way as keep all cores at work; then requests
//! come at twice that pace. A node that only queued them would serve each later than the one before, and
//! in the end none in time.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::bars::Bar;
use crate::error::BenchError;
use crate::load::swarm::{Kind, Mix, Pace, Span, Swarm, Tally, run_all, sum};
use crate::load::{Effort, LoadReport, Store};
use crate::report::Spread;
use crate::section::Grid;
use crate::servers::{Medium, Node};
use crate::tables::{ratio, spread};

/// Connections, and requests under way on each at the peak.
const CONNECTIONS: u32 = 128;
const DEPTH: usize = 8;
/// How many times the peak is offered.
const FACTOR: f64 = 2.0;
/// Before it counts: at the peak, and until a node has as much under way as it takes on.
const WARM: Duration = Duration::from_secs(1);
const FILLING: Duration = Duration::from_secs(4);
/// Between two looks at the node's memory.
const LOOK: Duration = Duration::from_millis(100);

/// GiB per second beside the peak, at least.
const GOODPUT: f64 = 0.95;
/// Memory of the node in the second half of the load beside that in the first, at most.
const GROWTH: f64 = 1.05;

const MIB: usize = 1 << 20;
/// Sizes of a node.
const POOL: u64 = 256 << 20;
const DRIVE: u64 = 1 << 30;

/// As `--only` and the checks have it.
pub const NAME: &str = "1 to 4 MiB, memory, twice the load that is peak";
/// Hugepages of 2 MiB for it.
pub const HUGEPAGES: u64 = (POOL + DRIVE) / (2 << 20);

const STORED: [(u32, usize); 3] = [(128, 256 << 10), (128, MIB), (64, 4 * MIB)];

fn mix() -> Mix {
    Mix::new(vec![
        (70, Kind::Get(128, MIB)),
        (25, Kind::Get(64, 4 * MIB)),
        (5, Kind::Put(128, 256 << 10)),
    ])
}

/// What one round found.
struct Round {
    peak: f64,
    peak_ms: [f64; 2],
    goodput: f64,
    done_ms: [f64; 2],
    refused_ms: [f64; 2],
    busy: f64,
    retry_ms: f64,
    growth: f64,
    memory_mib: f64,
    late: u64,
    held: u64,
}

/// Measures it.
///
/// # Errors
/// When the node or a connection fails, or a value is another one.
pub fn measure(binary: &Path, folder: &Path, effort: Effort) -> Result<LoadReport, BenchError> {
    let node = Node::start(binary, "overload", folder, POOL, &Medium::Memory(DRIVE))?;
    Store::of(&node)?.fill(&STORED)?;
    let mut swarm = Swarm::connect(&node.caller("bench")?, 0, CONNECTIONS)?;
    let rounds: Result<Vec<_>, _> =
        (0..effort.rounds).map(|_| round(&node, &mut swarm, effort.length)).collect();
    drop(swarm);
    node.stop()?;
    Ok(report(&rounds?))
}

fn round(node: &Node, swarm: &mut Swarm, length: Duration) -> Result<Round, BenchError> {
    let mix = mix();
    let speed = |tally: &Tally| tally.moved as f64 / length.as_secs_f64();
    let span = Span::new(WARM, length);
    let peak = sum(&run_all(vec![(swarm, &mix, Pace::Depth(DEPTH))], span)?);
    let rate = FACTOR * speed(&peak) / mix.mean_bytes();
    let span = Span::new(FILLING, length);
    let (over, memory) =
        watched(node, span, || run_all(vec![(swarm, &mix, Pace::Rate(rate))], span))?;
    let over = sum(&over);
    let ms = |latency: &memkv_workload::latency::Latency| {
        let summary = latency.summary();
        [summary.p50_us / 1e3, summary.p99_us / 1e3]
    };
    let (first, second) = memory.split_at(memory.len() / 2);
    let most = |part: &[u64]| part.iter().copied().max().unwrap_or(1) as f64;
    Ok(Round {
        peak: speed(&peak) / f64::from(1 << 30),
        peak_ms: ms(&peak.bulk),
        goodput: speed(&over) / f64::from(1 << 30),
        done_ms: ms(&over.bulk),
        refused_ms: ms(&over.refused),
        busy: over.busy as f64 / (over.busy + over.done).max(1) as f64,
        retry_ms: f64::from(over.retry_ms),
        growth: most(second) / most(first),
        memory_mib: most(&memory) / MIB as f64,
        late: over.late,
        held: over.held,
    })
}

/// Does it, and looks at the node's memory while the span counts.
fn watched<T>(
    node: &Node,
    span: Span,
    act: impl FnOnce() -> Result<T, BenchError>,
) -> Result<(T, Vec<u64>), BenchError> {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut seen = Vec::new();
            while !over.load(Ordering::Relaxed) && Instant::now() < span.to {
                if Instant::now() >= span.from {
                    seen.push(node.resident_bytes()?);
                }
                thread::sleep(LOOK);
            }
            Ok::<_, BenchError>(seen)
        });
        let done = act();
        over.store(true, Ordering::Relaxed);
        let seen = watch.join().expect("watching does not panic")?;
        Ok((done?, seen))
    })
}

fn report(rounds: &[Round]) -> LoadReport {
    let of = |figure: fn(&Round) -> f64| Spread::of(rounds.iter().map(figure)).expect("a round");
    let ms = |figure: fn(&Round) -> [f64; 2]| {
        let at = |at: usize| Spread::of(rounds.iter().map(|r| figure(r)[at])).expect("a round");
        format!("{:.1} / {:.1}", at(0).median, at(1).median)
    };
    let head =
        ["load", "GiB/s", "beside the peak", "done, p50 / p99 ms", "Busy", "told so, p50 / p99 ms"];
    let mut grid = Grid::new(&format!("{NAME}:"), &head);
    let none = || "-".to_owned();
    let peak = of(|r| r.peak);
    let row = ["peak".to_owned(), spread(peak, 2), none(), ms(|r| r.peak_ms), none(), none()];
    grid.rows.push(row.into());
    let goodput = of(|r| r.goodput / r.peak);
    grid.rows.push(vec![
        format!("{FACTOR} × that"),
        spread(of(|r| r.goodput), 2),
        ratio(goodput),
        ms(|r| r.done_ms),
        format!("{:.0} %", of(|r| r.busy).median * 100.0),
        ms(|r| r.refused_ms),
    ]);
    let total = |figure: fn(&Round) -> u64| rounds.iter().map(figure).sum::<u64>();
    let (growth, memory) = (of(|r| r.growth), of(|r| r.memory_mib).max);
    let notes = vec![format!(
        "Under twice the load the node's memory beside hugepages was {memory:.0} MiB at most, in the \
         second half {:.2} of what it was in the first. {} requests had no answer within 10 s, {} \
         could not be made, and the longest pause asked for was {:.0} ms.",
        growth.median,
        total(|r| r.late),
        total(|r| r.held),
        of(|r| r.retry_ms).max,
    )];
    let bar = |what: &str| (NAME.to_owned(), what.to_owned());
    let ((one, goodput_words), (two, growth_words)) =
        (bar("GiB/s beside the peak"), bar("growth of memory"));
    let bars = vec![
        Bar::at_least(one, goodput_words, goodput, GOODPUT),
        Bar::at_most(two, growth_words, growth, GROWTH),
    ];
    LoadReport { grids: vec![grid], notes, bars }
}
