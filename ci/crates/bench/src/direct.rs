//! Drives beside fio: the store's own I/O, and the server's.
//!
//! Files and loop devices with direct I/O take their turns: on each, io_uring queues driven from
//! hugepage chunks as a session drives them, without a network; fio with the same depth on the same
//! file or device; and a node on another one of the same kind, beside a plain server.

mod own;
mod served;
mod target;

use std::path::Path;

use memkv_dma::{Hugepages, Pool, PoolConfig};

use self::own::{Ask, OwnIo, OwnSample};
use self::served::Served;
use self::target::{Scratch, Sort};
use crate::error::BenchError;
use crate::fio::{Floor, Job};
use crate::measure::Operation;
use crate::plan::{LARGE, POOL_BYTES};
use crate::report::{Spread, Verdict};
use crate::section::{Grid, Section};
use crate::tables::{ratio, spread};

const MIB: u64 = 1 << 20;
/// Values, or requests, in flight.
const DEPTHS: [usize; 3] = [1, 4, 8];
const SMALL: usize = 64 << 10;
/// Bytes that fio and the store's own I/O go round in.
const SCRATCH: u64 = 1024 * MIB;
/// The node's drive.
const DRIVE: u64 = 2048 * MIB;
/// Bytes of the values on a node.
const STORED: u64 = 256 * MIB;
/// Bytes of the client's cold region.
const REGION: u64 = 256 * MIB;
/// Chunks for the store's own I/O.
const OWN_POOL: u64 = 96 * MIB;

/// The store's own throughput beside fio's, at least.
const SPEED_BAR: f64 = 0.95;
/// CPU seconds per GiB of the store's own I/O, at most.
const COST_BAR: f64 = 0.015;
/// CPU of client and server beside plain TCP and fio together, at most.
const SERVER_BAR: f64 = 1.1;
/// Requests per second of 64 KiB beside fio's, at least.
const SMALL_BAR: f64 = 0.85;
/// Share of the time in which the drive had nothing although commands waited, at most.
const STARVED_BAR: f64 = 0.01;

/// Hugepages of 2 MiB that all sides together can use.
pub const HUGEPAGES: u64 = (OWN_POOL + REGION + STORED + POOL_BYTES) / (2 * MIB) + 64;

/// What lies below, in the order of its rows.
const SORTS: [Sort; 2] = [Sort::File, Sort::Loop];

/// How much is done.
#[derive(Clone, Copy)]
pub struct Effort<'a> {
    /// Rounds.
    pub rounds: u32,
    /// Bytes of one side of a row in a round.
    pub bytes: u64,
    /// Only rows whose names have this in them.
    pub only: &'a str,
}

impl<'a> Effort<'a> {
    /// How much is done when it is asked for like this.
    ///
    /// # Errors
    /// When that is no row at all.
    pub fn new(
        quick: bool,
        rounds: Option<u32>,
        only: Option<&'a str>,
    ) -> Result<Effort<'a>, BenchError> {
        let bytes = if quick { 512 * MIB } else { 1024 * MIB };
        let rounds = rounds.unwrap_or(if quick { 3 } else { 7 }).max(1);
        let effort = Effort { rounds, bytes, only: only.unwrap_or_default() };
        if effort.wants_any() { Ok(effort) } else { Err(BenchError::NoRow(effort.only.to_owned())) }
    }

    /// Whether a row of this name is asked for.
    fn wants(&self, name: &str) -> bool {
        name.contains(self.only)
    }

    /// Whether there is a row that is asked for.
    fn wants_any(&self) -> bool {
        SORTS.into_iter().flat_map(row_names).any(|name| self.wants(&name))
    }
}

/// Measures all of it.
///
/// # Errors
/// When a side does not work. What this machine lacks is skipped, loudly.
pub fn compare(binary: &Path, folder: &Path, effort: Effort<'_>) -> Result<Section, BenchError> {
    let mut section = Section::new([format!(
        "medians of {} rounds (smallest–largest), {} MiB of each side in a round",
        effort.rounds,
        effort.bytes / MIB
    )]);
    let pool = PoolConfig { size: OWN_POOL, chunk: 2 * MIB, hugepages: Hugepages::Prefer };
    let pool = Pool::new(pool)?;
    section.circumstances.push(format!("the store's own chunks: {}", pool.backing()));
    let (mut own, mut small, mut server) = (own_grid(), small_grid(), served::grid());
    for sort in SORTS {
        if !row_names(sort).any(|name| effort.wants(&name)) {
            continue;
        }
        let scratch = match Scratch::make(folder, "scratch", sort, SCRATCH)? {
            Ok(scratch) => scratch,
            Err(reason) => {
                section.skip(sort.name(), &reason);
                continue;
            }
        };
        let rows = Rows::measure(&scratch, sort, &pool, effort)?;
        rows.tell(sort, &mut section, &mut own, &mut small);
        if !served::names(sort).any(|name| effort.wants(&name)) {
            continue;
        }
        // A node makes its own file.
        let drive = match sort {
            Sort::File => None,
            Sort::Loop => Some(Scratch::make(folder, "drive", sort, DRIVE)?),
        };
        let said = |said| BenchError::Said { name: "losetup", said };
        let drive = drive.transpose().map_err(said)?;
        let served = Served::measure(binary, folder, &scratch, drive.as_ref(), effort)?;
        served.tell(sort, &mut section, &mut server);
    }
    let grids = [own, small, server].into_iter().filter(|grid| !grid.rows.is_empty());
    section.grids.extend(grids);
    Ok(section)
}

/// The name of a row of the store's own I/O.
fn row_name(ask: Ask, sort: Sort) -> String {
    let what = ask.operation.name();
    let size = if ask.value_bytes == SMALL { " of 64 KiB" } else { "" };
    format!("{what}{size} to a {}, depth {}", sort.name(), ask.depth)
}

/// The names of all rows of a sort of target.
fn row_names(sort: Sort) -> impl Iterator<Item = String> {
    let own = large(0).chain(small(0)).map(move |ask| row_name(ask, sort));
    own.chain(served::names(sort))
}

/// One round of a row: the store's own I/O and fio.
type Pair = (OwnSample, Result<Floor, String>);

/// The store's own I/O beside fio on one target.
struct Rows {
    /// By operation and depth, in the order of [`large`].
    large: Vec<(Ask, Vec<Pair>)>,
    /// By depth.
    small: Vec<(Ask, Vec<Pair>)>,
}

fn large(bytes: u64) -> impl Iterator<Item = Ask> {
    let ask =
        move |operation, depth| Ask { operation, value_bytes: LARGE, depth, random: false, bytes };
    Operation::ALL.into_iter().flat_map(move |operation| DEPTHS.map(|depth| ask(operation, depth)))
}

fn small(bytes: u64) -> impl Iterator<Item = Ask> {
    let (operation, bytes) = (Operation::Get, bytes / 4);
    DEPTHS.into_iter().map(move |depth| Ask {
        operation,
        value_bytes: SMALL,
        depth,
        random: true,
        bytes,
    })
}

impl Rows {
    fn measure(
        scratch: &Scratch,
        sort: Sort,
        pool: &Pool,
        effort: Effort<'_>,
    ) -> Result<Rows, BenchError> {
        let mut own = OwnIo::open(scratch.path(), pool)?;
        let wanted = |ask: &Ask| effort.wants(&row_name(*ask, sort));
        let mut rows = Rows {
            large: large(effort.bytes).filter(wanted).map(|ask| (ask, Vec::new())).collect(),
            small: small(effort.bytes).filter(wanted).map(|ask| (ask, Vec::new())).collect(),
        };
        for round in 0..effort.rounds {
            eprintln!(
                "bench: {}, round {} of {}",
                scratch.path().display(),
                round + 1,
                effort.rounds
            );
            for (ask, samples) in rows.large.iter_mut().chain(&mut rows.small) {
                // Who is first changes with the rounds.
                let early = if round % 2 == 0 { Some(own.run(*ask)?) } else { None };
                let floor = job(scratch, *ask).run();
                let own = early.map_or_else(|| own.run(*ask), Ok)?;
                samples.push((own, floor));
            }
        }
        Ok(rows)
    }

    /// Adds rows to the tables.
    fn tell(&self, sort: Sort, section: &mut Section, large: &mut Grid, small: &mut Grid) {
        for (ask, samples) in &self.large {
            let name = row_name(*ask, sort);
            let row = Beside::of(samples, OwnSample::speed, |floor| floor.speed);
            let (speed, cost) = row.judge(section, &name, SPEED_BAR, Some(COST_BAR));
            large.rows.push(vec![
                what(ask.operation).to_owned(),
                sort.name().to_owned(),
                ask.depth.to_string(),
                row.own_words(2),
                row.floor_words(2),
                row.ratio_words(),
                speed,
                spread(row.cost, 4),
                row.floor_cost.map_or("-".to_owned(), |cost| format!("{:.4}", cost.median)),
                cost.unwrap_or_default(),
                row.batches(),
            ]);
        }
        for (ask, samples) in &self.small {
            let name = row_name(*ask, sort);
            let row = Beside::of(samples, OwnSample::rate, |floor| floor.iops);
            let (verdict, _) = row.judge(section, &name, SMALL_BAR, None);
            small.rows.push(vec![
                sort.name().to_owned(),
                ask.depth.to_string(),
                row.own_words(0),
                row.floor_words(0),
                row.ratio_words(),
                verdict,
                spread(row.cost, 3),
                row.floor_cost.map_or("-".to_owned(), |cost| format!("{:.3}", cost.median)),
                row.batches(),
            ]);
        }
    }
}

fn what(operation: Operation) -> &'static str {
    match operation {
        Operation::Put => "write",
        Operation::Get => "read",
    }
}

fn job(scratch: &Scratch, ask: Ask) -> Job<'_> {
    Job {
        target: scratch.path(),
        target_bytes: scratch.bytes(),
        operation: ask.operation,
        block: ask.value_bytes,
        depth: ask.depth,
        random: ask.random,
        bytes: ask.bytes,
    }
}

/// Figures of a row of [`Rows`].
struct Beside {
    own: Spread,
    floor: Result<Spread, String>,
    ratio: Option<Spread>,
    cost: Spread,
    floor_cost: Option<Spread>,
    submitted: u64,
    enters: u64,
    transfers: u64,
    fixed: u64,
}

impl Beside {
    fn of(samples: &[Pair], own: fn(&OwnSample) -> f64, floor: fn(&Floor) -> f64) -> Beside {
        let of = |values: Vec<f64>| Spread::of(values.into_iter());
        let all = |pick: fn(&OwnSample) -> f64| {
            of(samples.iter().map(|(own, _)| pick(own)).collect()).expect("there is a round")
        };
        let floors: Result<Vec<Floor>, String> = samples.iter().map(|(_, f)| f.clone()).collect();
        let ratios =
            samples.iter().filter_map(|(mine, f)| Some(own(mine) / floor(f.as_ref().ok()?)));
        let sum = |pick: fn(&OwnSample) -> u64| samples.iter().map(|(own, _)| pick(own)).sum();
        Beside {
            own: all(own),
            ratio: floors.as_ref().ok().and_then(|_| of(ratios.collect())),
            cost: all(OwnSample::cost),
            floor_cost: floors.as_ref().ok().and_then(|f| of(f.iter().map(|f| f.cost).collect())),
            floor: floors.map(|f| of(f.iter().map(floor).collect()).expect("there is a round")),
            submitted: sum(|own| own.stats.submitted),
            enters: sum(|own| own.stats.enters),
            transfers: sum(|own| own.stats.transfers),
            fixed: sum(|own| own.stats.fixed),
        }
    }

    /// Judges the ratio to fio, and the CPU where it has a bar.
    fn judge(
        &self,
        section: &mut Section,
        name: &str,
        bar: f64,
        cost_bar: Option<f64>,
    ) -> (String, Option<String>) {
        let verdict = match (&self.ratio, &self.floor) {
            (Some(ratio), _) => Verdict::at_least(ratio.median, bar),
            (None, Err(reason)) => Verdict::Skipped(reason.clone()),
            (None, Ok(_)) => Verdict::Skipped("no round".to_owned()),
        };
        let first = section.judge(format!("{name}, {bar} of fio at least"), &verdict);
        let second = cost_bar.map(|bar| {
            let name = format!("{name}, {bar} CPU seconds per GiB at most");
            section.judge(name, &Verdict::at_most(self.cost.median, bar))
        });
        (first, second)
    }

    fn own_words(&self, digits: usize) -> String {
        spread(self.own, digits)
    }

    fn floor_words(&self, digits: usize) -> String {
        self.floor.as_ref().map_or("-".to_owned(), |floor| spread(*floor, digits))
    }

    fn ratio_words(&self) -> String {
        self.ratio.map_or("-".to_owned(), ratio)
    }

    /// Commands a system call, and the share with registered memory.
    fn batches(&self) -> String {
        let each = self.submitted as f64 / self.enters.max(1) as f64;
        let fixed = 100.0 * self.fixed as f64 / self.transfers.max(1) as f64;
        format!("{each:.1}, {fixed:.0} %")
    }
}

fn own_grid() -> Grid {
    Grid::new(
        &format!(
            "The store's own I/O without a network, values of 4 MiB; GiB per second (at least \
             {SPEED_BAR} of fio's) and CPU seconds per GiB (at most {COST_BAR}):"
        ),
        &[
            "",
            "on a",
            "depth",
            "store",
            "fio",
            "store / fio",
            "verdict",
            "CPU s/GiB",
            "fio's",
            "verdict ",
            "commands an enter, registered",
        ],
    )
}

fn small_grid() -> Grid {
    Grid::new(
        &format!(
            "The store's own reads of 64 KiB in any order; reads per second (at least {SMALL_BAR} \
             of fio's):"
        ),
        &[
            "on a",
            "depth",
            "store",
            "fio",
            "store / fio",
            "verdict",
            "CPU s/GiB",
            "fio's",
            "commands an enter, registered",
        ],
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_that_are_in_no_name_of_a_row_are_refused() {
        for only in [None, Some("64 KiB"), Some("loop device, depth 4")] {
            assert!(Effort::new(true, None, only).is_ok(), "{only:?}");
        }
        let refused = Effort::new(true, None, Some("floppy")).err().expect("there is no such row");
        assert_eq!(refused.to_string(), "no row has \"floppy\" in its name");
    }
}
