//! From samples to figures, and from figures to verdicts.

use serde::Serialize;

use crate::measure::{Operation, Sample};
use crate::plan::{LARGE, Plan, Row};
use crate::run::{Outcome, RowSamples};

/// How far beyond a bar a median may lie and still be called a tie: two runs of one binary differ
/// by as much.
pub const TOLERANCE: f64 = 0.05;
/// CPU seconds per GiB beside plain TCP, at most.
const PUT_BAR: f64 = 1.40;
const GET_BAR: f64 = 1.30;
/// GiB per second beside the smaller of plain TCP and the disk, at least.
const FILE_BAR: f64 = 0.8;
/// Share of a core that an idle node takes, below.
pub const IDLE_BAR: f64 = 0.01;

/// The median of the rounds and its spread.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Spread {
    /// The median.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// Of at least one value.
    pub fn of(values: impl Iterator<Item = f64>) -> Option<Spread> {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = match values.len() % 2 {
            0 => f64::midpoint(values[middle - 1], values[middle]),
            _ => values[middle],
        };
        Some(Spread { median, min, max })
    }
}

/// What became of a bar.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It is held.
    Pass,
    /// It is missed by less than the noise.
    Tie,
    /// It is missed.
    Miss,
    /// It could not be measured here.
    Skipped(String),
}

impl Verdict {
    /// Held when it is not above the bar.
    pub fn at_most(value: f64, bar: f64) -> Verdict {
        match value {
            value if value <= bar => Verdict::Pass,
            value if value <= bar * (1.0 + TOLERANCE) => Verdict::Tie,
            _ => Verdict::Miss,
        }
    }

    /// Held when it is not below the bar.
    pub fn at_least(value: f64, bar: f64) -> Verdict {
        match value {
            value if value >= bar => Verdict::Pass,
            value if value >= bar * (1.0 - TOLERANCE) => Verdict::Tie,
            _ => Verdict::Miss,
        }
    }

    /// As a table shows it.
    pub fn word(&self) -> &str {
        match self {
            Verdict::Pass => "PASS",
            Verdict::Tie => "PASS (tie)",
            Verdict::Miss => "MISS",
            Verdict::Skipped(_) => "skipped",
        }
    }

    /// As the list of checks wants it.
    pub fn outcome(&self) -> String {
        match self {
            Verdict::Pass | Verdict::Tie => "ok".to_owned(),
            Verdict::Miss => "FAILED".to_owned(),
            Verdict::Skipped(reason) => format!("skipped: {reason}"),
        }
    }
}

/// The figures of one side of a row.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Figures {
    /// CPU seconds per GiB of client and server.
    pub cpu_per_gib: Spread,
    /// The client's part.
    pub client_cpu_per_gib: f64,
    /// The server's part.
    pub server_cpu_per_gib: f64,
    /// GiB per second.
    pub gib_per_second: Spread,
    /// Half of the operations took no longer, in microseconds.
    pub p50_us: f64,
    /// 99 of 100 took no longer.
    pub p99_us: f64,
}

impl Figures {
    fn of(samples: &[Sample]) -> Figures {
        let spread = |figure: fn(&Sample) -> f64| {
            Spread::of(samples.iter().map(figure)).expect("a row is measured in every round")
        };
        let mut all = Sample::default();
        samples.iter().for_each(|sample| all.absorb(sample));
        let latency = all.latency.summary();
        Figures {
            cpu_per_gib: spread(Sample::cost),
            client_cpu_per_gib: spread(Sample::client_cost).median,
            server_cpu_per_gib: spread(Sample::server_cost).median,
            gib_per_second: spread(Sample::speed),
            p50_us: latency.p50_us,
            p99_us: latency.p99_us,
        }
    }
}

/// A row, told.
#[derive(Clone, Debug, Serialize)]
pub struct RowReport {
    /// What was done.
    pub operation: Operation,
    /// Bytes of a value.
    pub value_bytes: usize,
    /// Connections, each with one operation at a time.
    pub depth: usize,
    /// Whether memkv stored on a file, else in memory.
    pub file: bool,
    /// The plain server.
    pub plain: Figures,
    /// memkv.
    pub memkv: Figures,
    /// memkv's CPU seconds per GiB over the plain server's, round by round.
    pub cpu_ratio: Spread,
    /// The plain server over itself: what is noise.
    pub noise: Option<Spread>,
    /// GiB per second of the disk.
    pub disk: Option<Spread>,
    /// memkv's GiB per second over those of the slower of plain server and disk, round by round.
    pub speed_ratio: Option<Spread>,
    /// The bar of the ratio that counts: CPU for memory, speed for files.
    pub bar: Option<f64>,
    /// What became of it.
    pub verdict: Option<Verdict>,
}

impl RowReport {
    fn of(row: &Row, samples: &RowSamples, no_disk: Option<&str>) -> RowReport {
        let ratio = |over: &[Sample], under: &[Sample]| {
            Spread::of(over.iter().zip(under).map(|(over, under)| over.cost() / under.cost()))
        };
        let slower = samples.disk.iter().zip(&samples.plain).map(|(d, p)| d.min(p.speed()));
        let speeds = samples.memkv.iter().zip(slower).map(|(memkv, slower)| memkv.speed() / slower);
        let cpu_ratio = ratio(&samples.memkv, &samples.plain).expect("there is a round");
        let speed_ratio = Spread::of(speeds).filter(|_| no_disk.is_none());
        let bar = bar(row);
        let verdict = match (row.file, speed_ratio, bar) {
            (_, _, None) => None,
            (false, _, Some(bar)) => Some(Verdict::at_most(cpu_ratio.median, bar)),
            (true, Some(speed), Some(bar)) => Some(Verdict::at_least(speed.median, bar)),
            (true, None, _) => Some(Verdict::Skipped(no_disk.unwrap_or("no disk").to_owned())),
        };
        RowReport {
            operation: row.load.operation,
            value_bytes: row.load.value_bytes,
            depth: row.load.depth,
            file: row.file,
            plain: Figures::of(&samples.plain),
            memkv: Figures::of(&samples.memkv),
            cpu_ratio,
            noise: ratio(&samples.again, &samples.plain),
            disk: Spread::of(samples.disk.iter().copied()).filter(|_| no_disk.is_none()),
            speed_ratio,
            bar,
            verdict,
        }
    }

    /// The check of this row's bar.
    fn check(&self) -> Option<Check> {
        let verdict = self.verdict.as_ref()?;
        let (name, bar) = (self.operation.name(), self.bar?);
        let name = match self.file {
            true => format!("{name} to a file, {bar:.1} of plain TCP or disk at least"),
            false => format!("{name} of 4 MiB, {bar:.2} of plain TCP's CPU at most"),
        };
        Some(Check { name, outcome: verdict.outcome() })
    }
}

fn bar(row: &Row) -> Option<f64> {
    match (row.file, row.load.value_bytes, row.load.operation) {
        (true, _, _) => Some(FILE_BAR),
        (false, LARGE, Operation::Put) => Some(PUT_BAR),
        (false, LARGE, Operation::Get) => Some(GET_BAR),
        _ => None,
    }
}

/// What an idle node took.
#[derive(Clone, Debug, Serialize)]
pub struct IdleReport {
    /// Which node.
    pub node: &'static str,
    /// Share of one core.
    pub share: f64,
}

/// One check, as the list of checks knows it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Check {
    /// Its name.
    pub name: String,
    /// `ok`, `FAILED`, or `skipped: ` and why.
    pub outcome: String,
}

/// A run, told.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// memkv's version.
    pub version: &'static str,
    /// The machine, in one line.
    pub machine: String,
    /// Rounds.
    pub rounds: u32,
    /// Bytes that values go round in, on the servers and in the client.
    pub cold_bytes: u64,
    /// What each side's memory is made of, and other circumstances.
    pub circumstances: Vec<(&'static str, String)>,
    /// Cores that others kept busy meanwhile.
    pub other_load: Option<f64>,
    /// The rows.
    pub rows: Vec<RowReport>,
    /// What idle nodes took.
    pub idle: Vec<IdleReport>,
    /// Where counters did not rise as they should have.
    pub miscounts: Vec<String>,
    /// Operations whose counters were compared.
    pub counted: u64,
    /// The checks.
    pub checks: Vec<Check>,
}

impl Report {
    /// Draws the conclusions.
    pub fn of(machine: String, plan: &Plan, outcome: Outcome) -> Report {
        let no_disk = outcome.no_disk.as_deref();
        let rows: Vec<_> = outcome
            .rows
            .iter()
            .map(|(row, samples)| RowReport::of(row, samples, no_disk))
            .collect();
        let verdict = |good: bool| if good { Verdict::Pass } else { Verdict::Miss }.outcome();
        let idle_good = outcome.idle.iter().all(|idle| idle.share < IDLE_BAR);
        let mut checks: Vec<_> = rows.iter().filter_map(RowReport::check).collect();
        checks.push(Check {
            name: "an idle node, 1 % of a core at most".to_owned(),
            outcome: verdict(idle_good),
        });
        checks.push(Check {
            name: "index, leases and journal work in every row".to_owned(),
            outcome: verdict(outcome.miscounts.is_empty() && outcome.counted > 0),
        });
        let idle =
            outcome.idle.iter().map(|idle| IdleReport { node: idle.name, share: idle.share });
        Report {
            version: env!("CARGO_PKG_VERSION"),
            machine,
            rounds: plan.rounds,
            cold_bytes: plan.ring_bytes,
            circumstances: outcome.backing,
            other_load: outcome.others,
            idle: idle.collect(),
            rows,
            miscounts: outcome.miscounts,
            counted: outcome.counted,
            checks,
        }
    }

    /// Whether no check has failed.
    pub fn is_good(&self) -> bool {
        self.checks.iter().all(|check| check.outcome != "FAILED")
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::measure::Load;

    fn sample(cpu_ms: u64, wall_ms: u64) -> Sample {
        let (client, wall) = (Duration::from_millis(cpu_ms), Duration::from_millis(wall_ms));
        Sample { operations: 1, bytes: 1 << 30, wall, client, ..Sample::default() }
    }

    fn row(operation: Operation, file: bool) -> Row {
        Row { load: Load { operation, value_bytes: LARGE, slots: 64, depth: 1 }, file }
    }

    #[test]
    fn the_median_stands_between_its_neighbours() {
        let of = |values: &[f64]| Spread::of(values.iter().copied());
        assert_eq!(of(&[3.0, 1.0, 2.0]), Some(Spread { median: 2.0, min: 1.0, max: 3.0 }));
        assert_eq!(of(&[4.0, 1.0]), Some(Spread { median: 2.5, min: 1.0, max: 4.0 }));
        assert_eq!(of(&[]), None);
    }

    #[test]
    fn a_bar_is_held_tied_or_missed() {
        let put = |ratio| Verdict::at_most(ratio, 1.4);
        assert_eq!([put(1.4), put(1.46), put(1.48)], [Verdict::Pass, Verdict::Tie, Verdict::Miss]);
        let file = |ratio| Verdict::at_least(ratio, 0.8);
        assert_eq!(
            [file(0.8), file(0.77), file(0.75)],
            [Verdict::Pass, Verdict::Tie, Verdict::Miss]
        );
    }

    #[test]
    fn ratios_are_of_one_round_each() {
        let samples = RowSamples {
            plain: vec![sample(100, 100), sample(200, 100), sample(400, 100)],
            again: vec![sample(110, 100), sample(200, 100), sample(360, 100)],
            memkv: vec![sample(150, 100), sample(260, 100), sample(480, 100)],
            disk: Vec::new(),
        };
        let report = RowReport::of(&row(Operation::Put, false), &samples, None);
        let near = |got: f64, want: f64| assert!((got - want).abs() < 1e-9, "{got} {want}");
        near(report.cpu_ratio.median, 1.3);
        near(report.cpu_ratio.min, 1.2);
        near(report.noise.unwrap().max, 1.1);
        assert_eq!(report.verdict, Some(Verdict::Pass));
    }

    #[test]
    fn files_are_held_against_the_slower_of_network_and_disk() {
        let samples = RowSamples {
            plain: vec![sample(100, 500), sample(100, 100)],
            memkv: vec![sample(100, 500), sample(100, 500)],
            disk: vec![10.0, 4.0],
            ..RowSamples::default()
        };
        let report = RowReport::of(&row(Operation::Get, true), &samples, None);
        let speed = report.speed_ratio.unwrap();
        assert_eq!((speed.max, speed.min), (1.0, 0.5));
        assert_eq!(report.verdict, Some(Verdict::Miss));
        let without = RowReport::of(&row(Operation::Get, true), &samples, Some("no fio"));
        assert_eq!(without.verdict, Some(Verdict::Skipped("no fio".to_owned())));
        assert_eq!(without.check().unwrap().outcome, "skipped: no fio");
    }
}
