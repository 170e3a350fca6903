//! A thousand connections with dozens of requests each, and questions asked beside them; and what a
//! connection takes that does nothing.

use std::path::Path;
use std::time::Duration;

use crate::bars::{Bar, Unit};
use crate::error::BenchError;
use crate::load::swarm::{Kind, Mix, Pace, Span, Swarm, run_all, sum};
use crate::load::{Effort, LoadReport, Store, socket_bytes};
use crate::report::Spread;
use crate::section::Grid;
use crate::servers::{Medium, Node};
use crate::tables::spread;

/// Connections, and requests that are always under way on each.
const CONNECTIONS: u32 = 1000;
const DEPTH: usize = 64;
/// Threads that drive them.
const THREADS: u32 = 1;
/// Connections that ask, and how often all of them together do in a second: as little as to leave the
/// rest alone.
const ASKING: u32 = 4;
const QUESTIONS: f64 = 500.0;
/// Before it counts, every connection has had its turn a few times.
const WARM: Duration = Duration::from_secs(3);

/// Milliseconds of 99 of 100 answers to Exists beside bulk, at most.
const EXISTS_MS: f64 = 5.0;
/// KiB of a node's memory for a connection that does nothing, at most.
const IDLE_KIB: f64 = 16.0;

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
/// Sizes of a node.
const POOL: u64 = 256 << 20;
const DRIVE: u64 = 1 << 30;

/// As `--only` and the checks have them.
pub const NAME: &str = "1000 connections, 64 requests on each, 4 KiB to 4 MiB, memory";
pub const IDLE: &str = "1000 idle connections";
/// Hugepages of 2 MiB for it.
pub const HUGEPAGES: u64 = (POOL + DRIVE) / (2 << 20);

/// What is stored, and what is asked for: mostly small values, and some that are a thousand times as
/// long.
const STORED: [(u32, usize); 5] =
    [(256, 4 * KIB), (256, 64 * KIB), (128, 256 * KIB), (64, MIB), (32, 4 * MIB)];

fn mix() -> Mix {
    Mix::new(vec![
        (500, Kind::Get(256, 4 * KIB)),
        (100, Kind::Put(256, 4 * KIB)),
        (200, Kind::Get(256, 64 * KIB)),
        (100, Kind::Put(256, 64 * KIB)),
        (80, Kind::Get(128, 256 * KIB)),
        (17, Kind::Get(64, MIB)),
        (3, Kind::Get(32, 4 * MIB)),
    ])
}

/// What one round found.
struct Round {
    gib_per_second: f64,
    requests_per_second: f64,
    bulk_ms: [f64; 2],
    exists_ms: [f64; 2],
    late: u64,
    busy: u64,
    held: u64,
}

/// Measures it.
///
/// # Errors
/// When the node or a connection fails, or a value is another one.
pub fn measure(binary: &Path, folder: &Path, effort: Effort) -> Result<LoadReport, BenchError> {
    let node = Node::start(binary, "crowd", folder, POOL, &Medium::Memory(DRIVE))?;
    Store::of(&node)?.fill(&STORED)?;
    let caller = node.caller("bench")?;
    let (resident, sockets) = (node.resident_bytes()?, socket_bytes());
    let mut first = 0;
    let mut connect = |count: u32| {
        let swarm = Swarm::connect(&caller, first, count);
        first += count;
        swarm
    };
    let mut swarms =
        (0..THREADS).map(|_| connect(CONNECTIONS / THREADS)).collect::<Result<Vec<_>, _>>()?;
    let per = |bytes: u64| bytes as f64 / f64::from(CONNECTIONS) / 1024.0;
    let idle = per(node.resident_bytes()?.saturating_sub(resident));
    let kernel = per(socket_bytes().saturating_sub(sockets));
    let mut asking = connect(ASKING)?;
    let (mix, questions) = (mix(), Mix::new(vec![(1, Kind::Exists)]));
    let mut rounds = Vec::new();
    for _ in 0..effort.rounds {
        let span = Span::new(WARM, effort.length);
        let mut parts: Vec<_> =
            swarms.iter_mut().map(|swarm| (swarm, &mix, Pace::Depth(DEPTH))).collect();
        parts.push((&mut asking, &questions, Pace::Rate(QUESTIONS)));
        let tallies = run_all(parts, span)?;
        let all = sum(&tallies);
        let (bulk, exists) = (all.bulk.summary(), all.exists.summary());
        let seconds = effort.length.as_secs_f64();
        let gib = all.moved as f64 / f64::from(1 << 30);
        rounds.push(Round {
            gib_per_second: gib / seconds,
            requests_per_second: gib / seconds * f64::from(1 << 30) / mix.mean_bytes(),
            bulk_ms: [bulk.p50_us / 1e3, bulk.p99_us / 1e3],
            exists_ms: [exists.p50_us / 1e3, exists.p99_us / 1e3],
            late: all.late,
            busy: all.busy,
            held: all.held,
        });
    }
    let after = per(node.resident_bytes()?.saturating_sub(resident));
    drop((swarms, asking));
    node.stop()?;
    Ok(report(&rounds, idle, kernel, after))
}

fn report(rounds: &[Round], idle: f64, kernel: f64, after: f64) -> LoadReport {
    let of = |figure: fn(&Round) -> f64| Spread::of(rounds.iter().map(figure)).expect("a round");
    let total = |figure: fn(&Round) -> u64| rounds.iter().map(figure).sum::<u64>();
    let head = ["", "GiB/s", "requests/s", "Exists p50 ms", "Exists p99 ms", "bulk p50 / p99 ms"];
    let mut grid = Grid::new(&format!("{NAME}:"), &head);
    grid.rows.push(vec![
        "memkv".to_owned(),
        spread(of(|r| r.gib_per_second), 2),
        spread(of(|r| r.requests_per_second), 0),
        spread(of(|r| r.exists_ms[0]), 2),
        spread(of(|r| r.exists_ms[1]), 2),
        format!("{:.0} / {:.0}", of(|r| r.bulk_ms[0]).median, of(|r| r.bulk_ms[1]).median),
    ]);
    let (late, busy, held) = (total(|r| r.late), total(|r| r.busy), total(|r| r.held));
    let mut memory = Grid::new(
        &format!("{IDLE}, KiB for each:"),
        &["", "node's memory", "sockets in the kernel", "node's memory after load"],
    );
    memory.rows.push(vec![
        "memkv".to_owned(),
        format!("{idle:.1}"),
        format!("{kernel:.1}"),
        format!("{after:.1}"),
    ]);
    let notes = vec![format!(
        "Of all requests {late} had no answer within 10 s, {busy} were answered by Busy, {held} could \
         not be made."
    )];
    let exact = |value: f64| Spread { median: value, min: value, max: value };
    let bars = vec![
        Bar::at_most(NAME.to_owned(), "Exists p99".to_owned(), of(|r| r.exists_ms[1]), EXISTS_MS)
            .counted_in(Unit::Milliseconds),
        Bar::at_most(NAME.to_owned(), "without an answer".to_owned(), exact(late as f64), 0.0)
            .counted_in(Unit::Requests),
        Bar::at_most(IDLE.to_owned(), "memory of each".to_owned(), exact(idle), IDLE_KIB)
            .counted_in(Unit::Kibibytes),
    ];
    LoadReport { grids: vec![grid, memory], notes, bars }
}
