//! Gets beside what a node does for itself: checkpoints, scrub, TRIM, eviction.
//!
//! Each case is two nodes on files that get the same requests, one of which has the work to do and the
//! other has not; gets are timed on both in turn. Every node has one reactor, on one core, and the
//! client has the others, so that a turn that takes long is the node's own doing as far as possible.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use memkv_admin_api::TurnStatus;
use memkv_client::{Client, ClientError, PutMode, PutOptions};
use memkv_workload::latency::Latency;

use crate::error::BenchError;
use crate::measure::{MemkvWorker, Worker};
use crate::plan::{LARGE, POOL_BYTES};
use crate::report::{Spread, Verdict};
use crate::section::{Grid, Section};
use crate::servers::{Medium, Node};
use crate::tables::{ratio, spread};

const MIB: u64 = 1 << 20;
/// Bytes of a value that is fetched, and how many there are.
const VALUE: usize = 64 << 10;
const VALUES: u32 = 1024;
/// Bytes and keys of the values that make records for the journal.
const SMALL: usize = 512;
const SMALL_KEYS: u64 = 8192;
/// The longest turn of anything but a session, at most.
const TURN_BAR_US: f64 = 200.0;

/// How much is done.
#[derive(Clone, Copy)]
pub struct Effort {
    /// Rounds of each case.
    pub rounds: u32,
    /// How long each node is asked in a round.
    pub slice: Duration,
}

impl Effort {
    /// How much is done when it is asked for like this.
    pub fn new(quick: bool, rounds: Option<u32>) -> Effort {
        let slice = Duration::from_millis(if quick { 500 } else { 1000 });
        Effort { rounds: rounds.unwrap_or(if quick { 5 } else { 11 }).max(1), slice }
    }
}

/// What a node is given to do beside gets, by both nodes alike.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Beside {
    Nothing,
    /// Small values are replaced: records for the journal.
    SmallPuts,
    /// Values of 1 MiB are replaced: units are freed, here and there.
    Replaces,
    /// New values of 1 MiB, for ever, or replaced ones where the drive must not fill.
    NewValues,
}

/// One case: the drives and settings of the node without the work, and of that with it.
struct Case {
    name: &'static str,
    beside: Beside,
    /// Bytes that are on the drive before the node is started.
    stored: u64,
    without: (u64, &'static str),
    with: (u64, &'static str),
    /// How much of the work a node has done, and what that is counted in.
    done: fn(&Node) -> Result<u64, BenchError>,
    unit: &'static str,
}

const NO_SCRUB: &str = "  scrub:\n    bytes_per_second: 0\n";

const CASES: [Case; 4] = [
    // The ring is an eighth of the drive: the small one is used up again and again.
    Case {
        name: "checkpoint",
        beside: Beside::SmallPuts,
        stored: 0,
        without: (4096 * MIB, NO_SCRUB),
        with: (320 * MIB, NO_SCRUB),
        done: |node| node.counter("memkv_checkpoints_total"),
        unit: "checkpoints",
    },
    // One pass over the drive, then an hour of rest: it must not be over before the rounds are.
    Case {
        name: "scrub",
        beside: Beside::Nothing,
        stored: 1024 * MIB,
        without: (2048 * MIB, NO_SCRUB),
        with: (2048 * MIB, "  scrub:\n    bytes_per_second: 33554432\n"),
        done: Node::scrubbed,
        unit: "bytes",
    },
    Case {
        name: "trim",
        beside: Beside::Replaces,
        stored: 0,
        without: (1024 * MIB, NO_SCRUB),
        with: (
            1024 * MIB,
            "  scrub:\n    bytes_per_second: 0\n  trim:\n    enabled: true\n    interval_ms: 20\n",
        ),
        done: Node::trimmed,
        unit: "ranges",
    },
    Case {
        name: "eviction",
        beside: Beside::NewValues,
        stored: 0,
        without: (512 * MIB, NO_SCRUB),
        with: (512 * MIB, NO_SCRUB),
        done: |node| node.counter("memkv_evictions_total"),
        unit: "blocks",
    },
];

/// Measures all cases.
///
/// # Errors
/// When a node does not do its work.
pub fn measure(binary: &Path, folder: &Path, effort: Effort) -> Result<Section, BenchError> {
    let mut section = Section::new([format!(
        "medians of {} rounds (smallest–largest), {} ms of each node in a round, in turn; one \
             connection that gets values of {} KiB, another that puts",
        effort.rounds,
        effort.slice.as_millis(),
        VALUE >> 10
    )]);
    let mut grid = Grid::new(
        "Microseconds of a get, half and 99 of 100 of them, on a node without the work and on one \
         with it:",
        &["", "work done", "p50", "p50 with", "p99", "p99 with", "p50 with / without", "p99"],
    );
    let mut turns = Grid::new(
        &format!(
            "The longest turns of the nodes with the work, but for those of sessions and sockets, in \
             microseconds without what others took of the core (at most {TURN_BAR_US:.0}), and \
             turns that were longer only because they did:"
        ),
        &["", "who", "longest", "longer than 200 µs", "verdict", "preempted", "longest of these"],
    );
    for case in &CASES {
        eprintln!("bench: gets beside {}", case.name);
        let found = case.measure(binary, folder, effort)?;
        found.tell(case, &mut section, &mut grid, &mut turns);
    }
    section.grids.extend([grid, turns]);
    Ok(section)
}

/// p50 and p99 of gets in one round, on the node without the work and on that with it.
type Pair = [(f64, f64); 2];

/// What a case found.
struct Found {
    rounds: Vec<Pair>,
    done: u64,
    turns: Vec<TurnStatus>,
}

impl Case {
    fn measure(&self, binary: &Path, folder: &Path, effort: Effort) -> Result<Found, BenchError> {
        let start = |name, (bytes, lines): (u64, &str)| {
            let lines = format!("{lines}\nnode:\n  reactors: 1\n");
            Side::start(binary, folder, name, &Medium::Tuned(bytes, lines), self)
        };
        let mut sides = [start("without", self.without)?, start("with", self.with)?];
        let before = (self.done)(&sides[1].node)?;
        let turns_before = sides[1].node.turns()?;
        let mut rounds = Vec::new();
        for round in 0..effort.rounds {
            let mut pair = [(0.0, 0.0); 2];
            for turn in 0..2 {
                let at = (turn + round as usize) % 2;
                pair[at] = sides[at].slice(self.beside, at == 1, effort.slice)?;
            }
            rounds.push(pair);
        }
        let [without, with] = sides;
        let done = (self.done)(&with.node)? - before;
        let turns = since(&turns_before, with.node.turns()?);
        without.stop()?;
        with.stop()?;
        Ok(Found { rounds, done, turns })
    }
}

impl Found {
    fn tell(&self, case: &Case, section: &mut Section, grid: &mut Grid, turns: &mut Grid) {
        let of = |pick: &dyn Fn(&Pair) -> f64| {
            Spread::of(self.rounds.iter().map(pick)).expect("there is a round")
        };
        grid.rows.push(vec![
            case.name.to_owned(),
            format!("{} {}", self.done, case.unit),
            spread(of(&|r| r[0].0), 0),
            spread(of(&|r| r[1].0), 0),
            spread(of(&|r| r[0].1), 0),
            spread(of(&|r| r[1].1), 0),
            ratio(of(&|r| r[1].0 / r[0].0)),
            ratio(of(&|r| r[1].1 / r[0].1)),
        ]);
        let good = if self.done > 0 { Verdict::Pass } else { Verdict::Miss };
        section.judge(format!("{} was done beside gets", case.name), &good);
        let others = self.turns.iter().filter(|turn| !is_of_sessions(&turn.who));
        let longest = others.clone().max_by(|a, b| a.longest_us.total_cmp(&b.longest_us));
        let (who, us) = longest.map_or(("nobody", 0.0), |turn| (&turn.who, turn.longest_us));
        let name = format!("no turn beside {} longer than {TURN_BAR_US:.0} µs", case.name);
        turns.rows.push(vec![
            case.name.to_owned(),
            who.to_owned(),
            format!("{us:.0}"),
            others.clone().map(|turn| turn.long_total).sum::<u64>().to_string(),
            section.judge(name, &Verdict::at_most(us, TURN_BAR_US)),
            others.clone().map(|turn| turn.preempted_total).sum::<u64>().to_string(),
            format!("{:.0}", others.map(|turn| turn.longest_preempted_us).fold(0.0, f64::max)),
        ]);
    }
}

/// What was new after `before`: of turns that were longer then, only the number is known.
fn since(before: &[TurnStatus], mut turns: Vec<TurnStatus>) -> Vec<TurnStatus> {
    for turn in &mut turns {
        let Some(before) = before.iter().find(|before| before.who == turn.who) else { continue };
        let news = |before_total, before_us, total: &mut u64, longest_us: &mut f64| {
            *total -= before_total;
            if *longest_us <= before_us && *total == 0 {
                *longest_us = 0.0;
            }
        };
        news(before.long_total, before.longest_us, &mut turn.long_total, &mut turn.longest_us);
        news(
            before.preempted_total,
            before.longest_preempted_us,
            &mut turn.preempted_total,
            &mut turn.longest_preempted_us,
        );
    }
    turns
}

/// Sessions and sockets move payload: up to 1 MiB a turn, by design.
fn is_of_sessions(who: &str) -> bool {
    who.starts_with("memkv_session::") || who.starts_with("memkv_net::") || who == "tcp"
}

/// A node and its connections.
struct Side {
    node: Node,
    getter: MemkvWorker,
    putter: Client,
    next: u64,
    at: u32,
}

impl Side {
    fn start(
        binary: &Path,
        folder: &Path,
        name: &'static str,
        medium: &Medium,
        case: &Case,
    ) -> Result<Side, BenchError> {
        // A new drive for every case.
        match std::fs::remove_file(folder.join(format!("{name}.drive"))) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(source) => return Err(BenchError::Io { what: "an old drive", source }),
        }
        let start = || Node::start_on_core(binary, name, folder, POOL_BYTES / 2, medium);
        let mut node = start()?;
        if case.stored > 0 {
            store(&node.client(1)?, "stored", case.stored / LARGE as u64, LARGE)?;
            node.stop()?;
            node = start()?;
        }
        if case.beside == Beside::SmallPuts {
            store(&node.client(1)?, "small", SMALL_KEYS, SMALL)?;
        }
        let mut getter = MemkvWorker(node.client(1)?);
        let putter = node.client(1)?;
        let mut value = vec![0; VALUE];
        for slot in 0..VALUES {
            crate::ring::stamp(&mut value, slot);
            getter.put(slot, &value)?;
        }
        Ok(Side { node, getter, putter, next: 0, at: 0 })
    }

    /// p50 and p99 of gets, while another thread puts.
    fn slice(
        &mut self,
        beside: Beside,
        fill: bool,
        slice: Duration,
    ) -> Result<(f64, f64), BenchError> {
        let over = AtomicBool::new(false);
        let (putter, getter, next, at) =
            (&self.putter, &mut self.getter, &mut self.next, &mut self.at);
        std::thread::scope(|scope| {
            let over = &over;
            let puts = scope.spawn(move || keep_putting(putter, beside, fill, next, over));
            let mut latency = Latency::default();
            let mut value = vec![0; VALUE];
            let begun = Instant::now();
            let gets = (|| {
                while begun.elapsed() < slice {
                    let since = Instant::now();
                    match getter.get(*at, &mut value) {
                        // What is evicted is stored again; that is not timed.
                        Err(BenchError::Missing { .. }) => {
                            crate::ring::stamp(&mut value, *at);
                            getter.put(*at, &value)?;
                        }
                        other => {
                            other?;
                            latency.record(since.elapsed());
                        }
                    }
                    *at = (*at + 1) % VALUES;
                }
                Ok(())
            })();
            over.store(true, Ordering::Relaxed);
            puts.join().expect("the putter does not panic").and(gets)?;
            let summary = latency.summary();
            Ok((summary.p50_us, summary.p99_us))
        })
    }

    fn stop(self) -> Result<(), BenchError> {
        drop((self.getter, self.putter));
        self.node.stop()
    }
}

/// Stores so many values once.
fn store(client: &Client, name: &str, count: u64, bytes: usize) -> Result<(), BenchError> {
    let mut value = vec![0; bytes];
    fastrand::Rng::with_seed(2).fill(&mut value);
    for n in 0..count {
        let options = PutOptions { mode: PutMode::Replace, ..PutOptions::default() };
        client.put(format!("{name} {n}").as_bytes(), &value, &options)?;
    }
    Ok(())
}

/// Puts at a steady rate until `over`.
fn keep_putting(
    client: &Client,
    beside: Beside,
    fill: bool,
    next: &mut u64,
    over: &AtomicBool,
) -> Result<(), BenchError> {
    let (pause, bytes) = match beside {
        Beside::SmallPuts => (Duration::from_micros(100), SMALL),
        _ => (Duration::from_millis(2), 1 << 20),
    };
    let mut value = vec![0; bytes];
    fastrand::Rng::with_seed(3).fill(&mut value);
    let options = PutOptions { mode: PutMode::Replace, ..PutOptions::default() };
    while beside != Beside::Nothing && !over.load(Ordering::Relaxed) {
        std::thread::sleep(pause);
        let key = match beside {
            Beside::NewValues if fill => format!("new {next}"),
            Beside::SmallPuts => format!("small {}", *next % SMALL_KEYS),
            _ => format!("again {}", *next % 64),
        };
        *next += 1;
        match client.put(key.as_bytes(), &value, &options) {
            // Beside eviction the node may be full for a moment.
            Ok(_) | Err(ClientError::Full { .. } | ClientError::Busy { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_before_the_rounds_do_not_count() {
        let turn = |who: &str, long_total, longest_us| TurnStatus {
            who: who.to_owned(),
            long_total,
            longest_us,
            preempted_total: 2 * long_total,
            longest_preempted_us: 2.0 * longest_us,
        };
        let before = [turn("start", 2, 900.0), turn("work", 1, 300.0), turn("more", 1, 250.0)];
        let after = vec![
            turn("start", 2, 900.0),
            turn("work", 3, 400.0),
            turn("more", 2, 250.0),
            turn("new", 0, 80.0),
        ];
        let expected = [
            turn("start", 0, 0.0),
            turn("work", 2, 400.0),
            turn("more", 1, 250.0),
            turn("new", 0, 80.0),
        ];
        assert_eq!(since(&before, after), expected);
    }
}
