//! Drives through the server: a node beside a plain server and fio.

use std::path::Path;

use memkv_admin_api::IoStatus;
use memkv_dma::{Arena, Hugepages};

use super::own::Ask;
use super::target::{Scratch, Sort};
use super::{DEPTHS, DRIVE, Effort, REGION, SERVER_BAR, SMALL, STARVED_BAR, STORED, job, what};
use crate::error::{BenchError, doing};
use crate::fio::Floor;
use crate::measure::{Load, MemkvWorker, Operation, Party, Progress, Sample, Worker, stretch};
use crate::plain;
use crate::plan::{LARGE, POOL_BYTES};
use crate::report::{Spread, Verdict};
use crate::ring::{self, Ring};
use crate::section::{Grid, Section};
use crate::servers::{Medium, Node, PlainServer};
use crate::tables::{ratio, size, spread};

/// Slices of a row in a round, in which the sides take turns.
const SLICES: u32 = 4;

/// One round of a row.
struct Round {
    memkv: Sample,
    plain: Sample,
    floor: Result<Floor, String>,
    /// Times the drive had nothing although commands waited, and for how long.
    dry: u64,
    starved_us: u64,
    depth_high: u64,
    commands: u64,
}

/// A node on one sort of drive.
pub struct Served {
    rows: Vec<(Load, Vec<Round>)>,
    described: String,
}

impl Served {
    /// Starts a node on `drive`, or on a file of its own, and goes through all rounds.
    ///
    /// # Errors
    /// When a side does not work.
    pub fn measure(
        binary: &Path,
        folder: &Path,
        scratch: &Scratch,
        drive: Option<&Scratch>,
        effort: Effort<'_>,
    ) -> Result<Served, BenchError> {
        let (name, sort, medium) = match drive {
            Some(drive) => ("direct", Sort::Loop, Medium::Device(drive.path().to_owned())),
            None => ("file", Sort::File, Medium::File(DRIVE)),
        };
        let node = Node::start(binary, name, folder, POOL_BYTES, &medium)?;
        let described = node.describe()?;
        let mut sides = Sides::start(&node, folder)?;
        let wanted = loads().filter(|load| effort.wants(&row_name(*load, sort)));
        let mut rows: Vec<_> = wanted.map(|load| (load, Vec::new())).collect();
        for value_bytes in [LARGE, SMALL] {
            if rows.iter().any(|(load, _)| load.value_bytes == value_bytes) {
                sides.warm_up(value_bytes)?;
            }
        }
        for round in 0..effort.rounds {
            eprintln!("bench: {name} node, round {} of {}", round + 1, effort.rounds);
            for (load, rounds) in &mut rows {
                let before = node.io()?;
                let (memkv, plain) = sides.row(*load, effort.bytes, round)?;
                let io = node.io()?;
                let floor = job(scratch, ask(*load, effort.bytes)).run();
                rounds.push(Round::of(memkv, plain, floor, &before, &io));
            }
        }
        drop(sides);
        node.stop()?;
        Ok(Served { rows, described })
    }

    /// Adds rows to the table.
    pub fn tell(&self, sort: Sort, section: &mut Section, grid: &mut Grid) {
        let said = format!("node on a {}: {}", sort.name(), self.described);
        section.circumstances.push(said);
        for (load, rounds) in &self.rows {
            let (operation, depth) = (load.operation.name(), load.depth);
            let name = row_name(*load, sort);
            let all = |pick: fn(&Round) -> f64| {
                Spread::of(rounds.iter().map(pick)).expect("there is a round")
            };
            let floors: Result<Vec<Floor>, String> =
                rounds.iter().map(|round| round.floor.clone()).collect();
            let fio = floors.iter().flatten().map(|floor| floor.cost);
            let fio = Spread::of(fio).map_or("-".to_owned(), |cost| format!("{:.3}", cost.median));
            let ratios = rounds.iter().zip(floors.iter().flatten());
            let costs = ratios.clone().map(|(r, f)| r.memkv.cost() / (r.plain.cost() + f.cost));
            let rates = ratios.map(|(r, f)| rate(&r.memkv) / f.iops);
            let (costs, rates) = (Spread::of(costs), Spread::of(rates));
            let verdict = match (load.value_bytes, &costs, &floors) {
                (SMALL, ..) => String::new(),
                (_, Some(costs), _) => {
                    let name = format!("{name}, {SERVER_BAR} of plain TCP's and fio's CPU at most");
                    section.judge(name, &Verdict::at_most(costs.median, SERVER_BAR))
                }
                (_, None, Err(reason)) => {
                    section.judge(name.clone(), &Verdict::Skipped(reason.clone()))
                }
                (_, None, Ok(_)) => String::new(),
            };
            let starved = all(Round::starved_share);
            let verdict_starved = match load.value_bytes {
                SMALL => String::new(),
                _ => {
                    let name = format!("{name}, the drive idles while commands wait, 1 % at most");
                    section.judge(name, &Verdict::at_most(starved.median, STARVED_BAR))
                }
            };
            let sum = |pick: fn(&Round) -> u64| rounds.iter().map(pick).sum::<u64>();
            grid.rows.push(vec![
                format!("{operation}, {}", what(load.operation)),
                size(load.value_bytes),
                sort.name().to_owned(),
                depth.to_string(),
                spread(all(|round| round.memkv.speed()), 2),
                spread(all(|round| round.memkv.cost()), 3),
                parts(rounds, |round| &round.memkv),
                spread(all(|round| round.plain.cost()), 3),
                parts(rounds, |round| &round.plain),
                fio,
                costs.map_or("-".to_owned(), ratio),
                verdict,
                rates.map_or("-".to_owned(), ratio),
                format!("{} of {}", sum(|round| round.dry), sum(|round| round.commands)),
                format!("{:.2} %", starved.median * 100.0),
                verdict_starved,
                rounds.iter().map(|round| round.depth_high).max().unwrap_or(0).to_string(),
            ]);
        }
    }
}

/// The table of [`Served::tell`].
pub fn grid() -> Grid {
    Grid::new(
        &format!(
            "Through the server, beside a plain TCP server and fio; CPU seconds per GiB of client \
             and server (at most {SERVER_BAR} of both together), and how often the drive had done \
             all it had while commands waited, and for how much of the time:"
        ),
        &[
            "",
            "value",
            "on a",
            "depth",
            "GiB/s",
            "CPU s/GiB",
            "client + server",
            "plain TCP's",
            "client + server ",
            "fio's",
            "/ (plain + fio)",
            "verdict",
            "operations / fio's",
            "ran dry",
            "starved",
            "verdict ",
            "deepest",
        ],
    )
}

fn loads() -> impl Iterator<Item = Load> {
    let load = |operation, value_bytes, depth| {
        let slots = (STORED / value_bytes as u64) as u32;
        Load { operation, value_bytes, slots, depth, batch: 1 }
    };
    let large = Operation::ALL
        .into_iter()
        .flat_map(move |operation| DEPTHS.map(|depth| load(operation, LARGE, depth)));
    large.chain(DEPTHS.map(|depth| load(Operation::Get, SMALL, depth)))
}

/// The name of a row.
fn row_name(load: Load, sort: Sort) -> String {
    let what = load.operation.name();
    let size = if load.value_bytes == SMALL { " of 64 KiB" } else { "" };
    format!("{what}{size} to a node on a {}, depth {}", sort.name(), load.depth)
}

/// The names of all rows of a sort of drive.
pub fn names(sort: Sort) -> impl Iterator<Item = String> {
    loads().map(move |load| row_name(load, sort))
}

fn ask(load: Load, bytes: u64) -> Ask {
    let Load { operation, value_bytes, depth, .. } = load;
    let small = value_bytes == SMALL;
    let bytes = if small { bytes / 4 } else { bytes };
    Ask { operation, value_bytes, depth, random: small, bytes }
}

/// Median costs of client and server.
fn parts(rounds: &[Round], side: fn(&Round) -> &Sample) -> String {
    let median = |cost: fn(&Sample) -> f64| {
        Spread::of(rounds.iter().map(|round| cost(side(round)))).expect("there is a round").median
    };
    format!("{:.3} + {:.3}", median(Sample::client_cost), median(Sample::server_cost))
}

fn rate(sample: &Sample) -> f64 {
    sample.operations as f64 / sample.wall.as_secs_f64()
}

impl Round {
    fn of(
        memkv: Sample,
        plain: Sample,
        floor: Result<Floor, String>,
        before: &IoStatus,
        after: &IoStatus,
    ) -> Round {
        Round {
            memkv,
            plain,
            floor,
            dry: after.dry_total - before.dry_total,
            starved_us: after.starved_us_total - before.starved_us_total,
            depth_high: after.depth_high,
            commands: after.submitted_total - before.submitted_total,
        }
    }

    fn starved_share(&self) -> f64 {
        self.starved_us as f64 * 1e-6 / self.memkv.wall.as_secs_f64()
    }
}

/// The node's and the plain server's connections, and the client's memory.
struct Sides {
    memkv: Party,
    plain: Party,
    region: Arena,
    /// Bytes of the values that the plain server has.
    plain_has: usize,
    _server: PlainServer,
}

impl Sides {
    fn start(node: &Node, folder: &Path) -> Result<Sides, BenchError> {
        let most = *DEPTHS.last().expect("there are depths");
        let client = node.client(most)?;
        let worker = |_| Box::new(MemkvWorker(client.clone())) as Box<dyn Worker>;
        let memkv = Party { server: Some(node.clock()?), workers: (0..most).map(worker).collect() };
        let server = PlainServer::start(folder, STORED)?;
        let mut workers: Vec<Box<dyn Worker>> = Vec::new();
        for _ in 0..most {
            let client = plain::Client::connect(server.port).map_err(doing("the plain server"))?;
            workers.push(Box::new(client));
        }
        let plain = Party { server: Some(server.clock()?), workers };
        let region = Arena::new(REGION, Hugepages::Prefer)?;
        ring::fill(&region);
        Ok(Sides { memkv, plain, region, plain_has: 0, _server: server })
    }

    /// Stores every value once on both sides.
    fn warm_up(&mut self, value_bytes: usize) -> Result<(), BenchError> {
        let slots = (STORED / value_bytes as u64) as u32;
        let load = Load { operation: Operation::Put, value_bytes, slots, depth: 4, batch: 1 };
        let mut rings = Ring::cut(&self.region, load.depth);
        stretch(&mut self.memkv, &mut rings, load, &mut Progress::default(), slots / 4)?;
        self.store_on_plain(value_bytes)
    }

    /// The plain server has one memory for values of all sizes: those of this one now.
    fn store_on_plain(&mut self, value_bytes: usize) -> Result<(), BenchError> {
        if self.plain_has == value_bytes {
            return Ok(());
        }
        let slots = (STORED / value_bytes as u64) as u32;
        let load = Load { operation: Operation::Put, value_bytes, slots, depth: 4, batch: 1 };
        let mut rings = Ring::cut(&self.region, load.depth);
        stretch(&mut self.plain, &mut rings, load, &mut Progress::default(), slots / 4)?;
        self.plain_has = value_bytes;
        Ok(())
    }

    /// Slices of both sides in turn.
    fn row(&mut self, load: Load, bytes: u64, round: u32) -> Result<(Sample, Sample), BenchError> {
        self.store_on_plain(load.value_bytes)?;
        let mut rings = Ring::cut(&self.region, load.depth);
        let bytes = if load.value_bytes == SMALL { bytes / 8 } else { bytes };
        let each = bytes / load.value_bytes as u64 / load.depth as u64;
        let operations = (each as u32).div_ceil(SLICES).max(1);
        let mut sums = [Sample::default(), Sample::default()];
        let mut progress = [Progress::default(), Progress::default()];
        for slice in 0..SLICES {
            for turn in 0..2 {
                let at = (turn + slice + round) as usize % 2;
                let party = if at == 0 { &mut self.memkv } else { &mut self.plain };
                let sample = stretch(party, &mut rings, load, &mut progress[at], operations)?;
                sums[at].absorb(&sample);
            }
        }
        Ok(sums.into())
    }
}
