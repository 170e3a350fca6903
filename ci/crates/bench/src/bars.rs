//! What a row must reach, and whether it does.
//!
//! All bars are ratios of one run, and most are of one round each: memkv over a side that did the
//! same in the same seconds.

use serde::Serialize;

use crate::measure::{Operation, Sample};
use crate::peers::{Absent, Side};
use crate::plan::{LARGE, Row, SMALL};
use crate::report::{Check, Spread, Verdict, ratios};
use crate::run::{self, RowSamples};
use crate::tables::{ratio, size, spread};

/// CPU seconds per GiB of values of 1 and of 4 MiB beside plain TCP, at most: both ends lend.
const PUT_COST: f64 = 0.95;
const GET_COST: f64 = 0.90;
/// The same of values of 64 KiB, on a quiet machine and beside a busy thread.
const SMALL_COST: f64 = 0.75;
const SMALL_COST_BUSY: f64 = 1.10;
/// The same in batches, beside plain TCP one at a time.
const BATCH_COST: f64 = 0.9;
/// CPU seconds per GiB beside a peer, at most.
const PEER_COST: f64 = 1.00;
/// GiB per second of several connections beside plain TCP, at least.
const SEVERAL_PUT_SPEED: f64 = 0.95;
const SEVERAL_GET_SPEED: f64 = 1.15;
/// GiB per second of larger values beside those of 4 MiB, at least.
const LARGER_SPEED: f64 = 0.98;
/// GiB per second of the first puts beside the next ones, at least.
const FIRST_SPEED: f64 = 0.9;
/// GiB per second of a file beside the smaller of plain TCP and the disk, at least.
const FILE_SPEED: f64 = 0.9;
/// CPU seconds per GiB that a file may take more than memory.
const FILE_COST: f64 = 0.03;

/// What a bar is counted in.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// A ratio.
    Times,
    /// Microseconds.
    Microseconds,
    /// Milliseconds.
    Milliseconds,
    /// KiB.
    Kibibytes,
    /// Requests.
    Requests,
}

/// A bar and what was found.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Bar {
    /// Of which row.
    pub row: String,
    /// What is compared.
    pub what: String,
    /// The figure; none where it could not be measured.
    pub found: Option<Spread>,
    /// The bar.
    pub bar: f64,
    /// What both are counted in.
    pub unit: Unit,
    /// Whether the figure is to be at least this, else at most.
    pub at_least: bool,
    /// What became of it.
    pub verdict: Verdict,
}

impl Bar {
    /// Held when the median is not above the bar.
    pub fn at_most(row: String, what: String, found: Spread, bar: f64) -> Bar {
        let verdict = Verdict::at_most(found.median, bar);
        let (found, unit) = (Some(found), Unit::Times);
        Bar { row, what, found, bar, unit, at_least: false, verdict }
    }

    /// Held when the median is not below the bar.
    pub fn at_least(row: String, what: String, found: Spread, bar: f64) -> Bar {
        let verdict = Verdict::at_least(found.median, bar);
        let (found, unit) = (Some(found), Unit::Times);
        Bar { row, what, found, bar, unit, at_least: true, verdict }
    }

    /// It could not be measured here, and why.
    pub fn skipped(row: String, what: String, bar: f64, reason: &str) -> Bar {
        let verdict = Verdict::Skipped(reason.to_owned());
        Bar { row, what, found: None, bar, unit: Unit::Times, at_least: false, verdict }
    }

    /// The same, counted in microseconds.
    pub fn in_microseconds(self) -> Bar {
        self.counted_in(Unit::Microseconds)
    }

    /// The same, counted in something else.
    pub fn counted_in(self, unit: Unit) -> Bar {
        Bar { unit, ..self }
    }

    /// The bar in words.
    pub fn words(&self) -> String {
        let sign = if self.at_least { '≥' } else { '≤' };
        match self.unit {
            Unit::Times => format!("{sign} {:.2}×", self.bar),
            Unit::Microseconds => format!("{sign} {:.0} µs", self.bar),
            Unit::Milliseconds => format!("{sign} {:.0} ms", self.bar),
            Unit::Kibibytes => format!("{sign} {:.0} KiB", self.bar),
            Unit::Requests => format!("{sign} {:.0}", self.bar),
        }
    }

    /// What was found in words.
    pub fn found_words(&self) -> String {
        match (self.found, self.unit) {
            (None, _) => "-".to_owned(),
            (Some(found), Unit::Times) => ratio(found),
            (Some(found), Unit::Microseconds) => format!("{} µs", spread(found, 1)),
            (Some(found), Unit::Milliseconds) => format!("{} ms", spread(found, 1)),
            (Some(found), Unit::Kibibytes) => format!("{} KiB", spread(found, 1)),
            (Some(found), Unit::Requests) => spread(found, 0),
        }
    }

    /// As the list of checks has it.
    pub fn check(&self) -> Check {
        let bound = if self.at_least { "least" } else { "most" };
        let unit = match self.unit {
            Unit::Times | Unit::Requests => "",
            Unit::Microseconds => " µs",
            Unit::Milliseconds => " ms",
            Unit::Kibibytes => " KiB",
        };
        let name = format!("{}: {}, {:.2}{unit} at {bound}", self.row, self.what, self.bar);
        Check { name, outcome: self.verdict.outcome() }
    }
}

/// What could not be measured, and why.
#[derive(Default)]
pub struct Missing {
    /// The disk's own speed.
    pub disk: Option<String>,
    /// Peers.
    pub peers: Vec<(Side, Absent)>,
}

impl Missing {
    /// Whether this peer is among it.
    pub fn has(&self, side: Side) -> bool {
        self.reason(side).is_some()
    }

    fn reason(&self, side: Side) -> Option<&str> {
        let absent = self.peers.iter().find(|(absent, _)| *absent == side);
        absent.map(|(_, Absent(reason))| reason.as_str())
    }
}

/// The bars of a row.
pub fn of(row: &Row, samples: &RowSamples, missing: &Missing) -> Vec<Bar> {
    let mut bars = of_limits(row, samples, missing.disk.as_deref());
    bars.extend(of_peers(row, samples, missing));
    bars
}

/// No peer takes less than memkv, each where it takes part.
fn of_peers(row: &Row, samples: &RowSamples, missing: &Missing) -> Vec<Bar> {
    let peers = run::sides(row).into_iter().filter(|side| Side::PEERS.contains(side));
    let bar = |side: Side| {
        let what = format!("CPU beside {}", side.name());
        let found = ratios(samples.of(Side::Memkv), samples.of(side), Sample::cost);
        match (missing.reason(side), found) {
            (None, Some(found)) => Bar::at_most(row.name(), what, found, PEER_COST),
            (reason, _) => {
                Bar::skipped(row.name(), what, PEER_COST, reason.unwrap_or("it was left out"))
            }
        }
    };
    peers.map(bar).collect()
}

fn of_limits(row: &Row, samples: &RowSamples, no_disk: Option<&str>) -> Vec<Bar> {
    match (row.file, row.load.depth, row.load.value_bytes) {
        _ if row.first => of_first(row, samples),
        (true, ..) => of_file(row, samples, no_disk),
        (false, 1, bytes) if bytes > LARGE => of_larger(row, samples),
        (false, 1, _) => of_cost(row, samples),
        _ => of_several(row, samples),
    }
}

fn of_cost(row: &Row, samples: &RowSamples) -> Vec<Bar> {
    let bar = match (row.load.value_bytes, row.busy, row.load.operation) {
        (SMALL, ..) if row.load.batch > 1 => BATCH_COST,
        (SMALL, 0, _) => SMALL_COST,
        (SMALL, ..) => SMALL_COST_BUSY,
        (.., Operation::Put) => PUT_COST,
        (.., Operation::Get) => GET_COST,
    };
    let found = ratios(samples.of(Side::Memkv), samples.of(Side::Plain), Sample::cost);
    let what = "CPU beside plain TCP".to_owned();
    found.map(|found| Bar::at_most(row.name(), what, found, bar)).into_iter().collect()
}

fn of_larger(row: &Row, samples: &RowSamples) -> Vec<Bar> {
    let found = ratios(samples.of(Side::Memkv), samples.of(Side::Reference), Sample::speed);
    let what = format!("GiB/s beside values of {}", size(LARGE));
    found.map(|found| Bar::at_least(row.name(), what, found, LARGER_SPEED)).into_iter().collect()
}

fn of_first(row: &Row, samples: &RowSamples) -> Vec<Bar> {
    let found = ratios(samples.of(Side::Memkv), samples.of(Side::Reference), Sample::speed);
    let what = "GiB/s beside the puts after them".to_owned();
    found.map(|found| Bar::at_least(row.name(), what, found, FIRST_SPEED)).into_iter().collect()
}

fn of_several(row: &Row, samples: &RowSamples) -> Vec<Bar> {
    let found = ratios(samples.of(Side::Memkv), samples.of(Side::Plain), Sample::speed);
    let what = "GiB/s beside plain TCP".to_owned();
    let bar = match row.load.operation {
        Operation::Put => SEVERAL_PUT_SPEED,
        Operation::Get => SEVERAL_GET_SPEED,
    };
    found.map(|found| Bar::at_least(row.name(), what, found, bar)).into_iter().collect()
}

fn of_file(row: &Row, samples: &RowSamples, no_disk: Option<&str>) -> Vec<Bar> {
    let plain = samples.of(Side::Plain);
    let slower = samples.disk.iter().zip(plain).map(|(disk, plain)| disk.min(plain.speed()));
    let memkv = samples.of(Side::Memkv);
    let speeds = memkv.iter().zip(slower).map(|(memkv, slower)| memkv.speed() / slower);
    let what = "GiB/s beside the slower of plain TCP and disk".to_owned();
    let speed = match (no_disk, Spread::of(speeds)) {
        (None, Some(found)) => Bar::at_least(row.name(), what, found, FILE_SPEED),
        (reason, _) => {
            let skipped = Bar::skipped(row.name(), what, FILE_SPEED, reason.unwrap_or("no disk"));
            Bar { at_least: true, ..skipped }
        }
    };
    let allowed = samples.of(Side::Reference).iter().map(|memory| memory.cost() + FILE_COST);
    let costs = memkv.iter().zip(allowed).map(|(memkv, allowed)| memkv.cost() / allowed);
    let what = format!("CPU beside memory and {FILE_COST} s/GiB");
    let cost = Spread::of(costs).map(|found| Bar::at_most(row.name(), what, found, 1.0));
    std::iter::once(speed).chain(cost).collect()
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

    fn row(value_bytes: usize, depth: usize, file: bool, busy: usize) -> Row {
        let load = Load { operation: Operation::Get, value_bytes, slots: 64, depth, batch: 1 };
        Row { load, file, busy, first: false }
    }

    fn samples<const N: usize>(sides: [(Side, Vec<Sample>); N], disk: Vec<f64>) -> RowSamples {
        RowSamples { sides: sides.into_iter().collect(), disk }
    }

    #[test]
    fn files_are_held_against_the_slower_of_network_and_disk_and_against_memory() {
        let sides = [
            (Side::Plain, vec![sample(100, 500), sample(100, 100)]),
            (Side::Memkv, vec![sample(100, 500), sample(200, 500)]),
            (Side::Reference, vec![sample(70, 500), sample(170, 500)]),
        ];
        let samples = samples(sides, vec![10.0, 4.0]);
        let file = row(LARGE, 4, true, 0);
        let [speed, cost] = &of(&file, &samples, &Missing::default())[..] else {
            panic!("two bars")
        };
        let found = speed.found.unwrap();
        assert_eq!((found.max, found.min, &speed.verdict), (1.0, 0.5, &Verdict::Miss));
        let found = cost.found.unwrap();
        assert!((found.median - 1.0).abs() < 1e-9 && cost.verdict == Verdict::Pass, "{found:?}");
        let missing = Missing { disk: Some("no fio".to_owned()), ..Missing::default() };
        let without = &of(&file, &samples, &missing)[0];
        assert_eq!(without.verdict, Verdict::Skipped("no fio".to_owned()));
        assert_eq!(without.check().outcome, "skipped: no fio");
    }

    #[test]
    fn small_values_have_another_bar_beside_a_busy_thread() {
        let sides = [(Side::Plain, vec![sample(100, 100)]), (Side::Memkv, vec![sample(108, 100)])];
        let samples = samples(sides, Vec::new());
        let verdict = |row| of(&row, &samples, &Missing::default())[0].verdict.clone();
        assert_eq!(verdict(row(SMALL, 1, false, 0)), Verdict::Miss);
        assert_eq!(verdict(row(SMALL, 1, false, 1)), Verdict::Pass);
        assert_eq!(verdict(row(LARGE, 1, false, 1)), Verdict::Miss);
        // As fast as plain TCP is enough for puts.
        let mut several = row(LARGE, 4, false, 0);
        several.load.operation = Operation::Put;
        assert_eq!(verdict(several), Verdict::Pass);
        several.load.operation = Operation::Get;
        assert_eq!(verdict(several), Verdict::Miss);
        let mut batches = row(SMALL, 1, false, 0);
        batches.load.batch = 16;
        assert_eq!(of(&batches, &samples, &Missing::default())[0].bar, BATCH_COST);
    }

    #[test]
    fn larger_values_are_held_against_the_reference() {
        let sides = [
            (Side::Plain, vec![sample(100, 10)]),
            (Side::Reference, vec![sample(100, 100)]),
            (Side::Memkv, vec![sample(100, 101)]),
        ];
        let bars =
            of(&row(16 << 20, 1, false, 0), &samples(sides, Vec::new()), &Missing::default());
        assert_eq!((bars.len(), &bars[0].verdict), (1, &Verdict::Pass));
    }

    #[test]
    fn no_peer_may_be_ahead_and_one_that_is_not_there_is_told() {
        let sides = [
            (Side::Plain, vec![sample(100, 100)]),
            (Side::Memcached, vec![sample(98, 100)]),
            (Side::Memkv, vec![sample(104, 100)]),
        ];
        let samples = samples(sides, Vec::new());
        let peers = vec![(Side::Redis, Absent("it is NOT INSTALLED".to_owned()))];
        let missing = Missing { peers, disk: None };
        let bars = of(&row(LARGE, 1, false, 0), &samples, &missing);
        let verdict = |what: &str| &bars.iter().find(|bar| bar.what == what).unwrap().verdict;
        assert_eq!(verdict("CPU beside memcached"), &Verdict::Miss);
        assert_eq!(verdict("CPU beside Redis").outcome(), "skipped: it is NOT INSTALLED");
        assert!(of_peers(&row(SMALL, 1, false, 0), &samples, &missing).is_empty());
    }
}
