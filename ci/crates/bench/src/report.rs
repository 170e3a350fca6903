//! From samples to figures, and from figures to verdicts.

use serde::Serialize;

use crate::bars::{self, Bar, Missing};
use crate::exists::ExistsReport;
use crate::load::LoadReport;
use crate::measure::{Operation, Sample};
use crate::peers::Side;
use crate::plan::{IDLE, Plan, Row};
use crate::run::{Outcome, RowSamples};

/// How far beyond a bar a median may lie and still be called a tie: two runs of one binary differ
/// by as much.
pub const TOLERANCE: f64 = 0.05;
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

/// The figures of one side of a row.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct SideReport {
    /// Which side.
    pub side: Side,
    /// Its figures.
    pub figures: Figures,
    /// Its CPU seconds per GiB over the plain server's, round by round.
    pub cpu_ratio: Spread,
}

/// A row, told.
#[derive(Clone, Debug, Serialize)]
pub struct RowReport {
    /// Its name.
    pub name: String,
    /// Its name without the operation.
    pub scene: String,
    /// What was done.
    pub operation: Operation,
    /// Whether memkv stored on a file, else in memory.
    pub file: bool,
    /// Who did it.
    pub sides: Vec<SideReport>,
    /// GiB per second of the disk.
    pub disk: Option<Spread>,
    /// The bars.
    pub bars: Vec<Bar>,
}

impl RowReport {
    fn of(row: &Row, samples: &RowSamples, missing: &Missing) -> RowReport {
        let plain = samples.of(Side::Plain);
        let sides = samples.sides.iter().map(|(&side, own)| SideReport {
            side,
            figures: Figures::of(own),
            cpu_ratio: ratios(own, plain, Sample::cost).expect("there is a round"),
        });
        RowReport {
            name: row.name(),
            scene: row.scene(),
            operation: row.load.operation,
            file: row.file,
            sides: sides.collect(),
            disk: Spread::of(samples.disk.iter().copied()).filter(|_| missing.disk.is_none()),
            bars: bars::of(row, samples, missing),
        }
    }

    /// One side's figures.
    pub fn side(&self, side: Side) -> Option<&SideReport> {
        self.sides.iter().find(|report| report.side == side)
    }
}

/// One side's figure over another's, round by round.
pub fn ratios(over: &[Sample], under: &[Sample], figure: fn(&Sample) -> f64) -> Option<Spread> {
    Spread::of(over.iter().zip(under).map(|(over, under)| figure(over) / figure(under)))
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
    /// Questions whether a block is there.
    pub exists: Vec<ExistsReport>,
    /// Load from many sides.
    pub loads: Vec<LoadReport>,
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
    pub fn of(machine: String, plan: &Plan, outcome: Outcome, loads: Vec<LoadReport>) -> Report {
        let missing = &outcome.missing;
        let rows: Vec<_> = outcome
            .rows
            .iter()
            .map(|(row, samples)| RowReport::of(row, samples, missing))
            .collect();
        let verdict = |good: bool| if good { Verdict::Pass } else { Verdict::Miss }.outcome();
        let bars = rows.iter().flat_map(|row| &row.bars);
        let bars = bars.chain(outcome.exists.iter().flat_map(|scene| &scene.bars));
        let bars = bars.chain(loads.iter().flat_map(|load| &load.bars));
        let mut checks: Vec<_> = bars.map(Bar::check).collect();
        if plan.wants(IDLE) {
            let good = outcome.idle.iter().all(|idle| idle.share < IDLE_BAR);
            let name = format!("{IDLE}, 1 % of a core at most");
            checks.push(Check { name, outcome: verdict(good) });
        }
        if !rows.is_empty() {
            let good = outcome.miscounts.is_empty() && outcome.counted > 0;
            let name = "index, leases and journal work in every row".to_owned();
            checks.push(Check { name, outcome: verdict(good) });
        }
        let idle =
            outcome.idle.iter().map(|idle| IdleReport { node: idle.name, share: idle.share });
        Report {
            version: env!("CARGO_PKG_VERSION"),
            machine,
            rounds: plan.rounds,
            cold_bytes: plan.ring_bytes,
            circumstances: outcome.backing,
            other_load: outcome.others,
            exists: outcome.exists,
            loads,
            idle: idle.collect(),
            rows,
            miscounts: outcome.miscounts,
            counted: outcome.counted,
            checks,
        }
    }

    /// All bars.
    pub fn bars(&self) -> impl Iterator<Item = &Bar> {
        let rows = self.rows.iter().flat_map(|row| &row.bars);
        let exists = self.exists.iter().flat_map(|scene| &scene.bars);
        rows.chain(exists).chain(self.loads.iter().flat_map(|load| &load.bars))
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

    fn sample(cpu_ms: u64, wall_ms: u64) -> Sample {
        let (client, wall) = (Duration::from_millis(cpu_ms), Duration::from_millis(wall_ms));
        Sample { operations: 1, bytes: 1 << 30, wall, client, ..Sample::default() }
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
        let plain = [sample(100, 100), sample(200, 100), sample(400, 100)];
        let memkv = [sample(150, 100), sample(260, 100), sample(480, 100)];
        let ratio = ratios(&memkv, &plain, Sample::cost).unwrap();
        let near = |got: f64, want: f64| assert!((got - want).abs() < 1e-9, "{got} {want}");
        near(ratio.median, 1.3);
        near(ratio.min, 1.2);
        near(ratio.max, 1.5);
        assert_eq!(ratios(&[], &plain, Sample::cost), None);
    }
}
