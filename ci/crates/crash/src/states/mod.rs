//! The states tier: bounded workloads on the real store and journal, and every state in which a
//! crash can leave their drives.
//!
//! A workload of up to three operations ([`workload`]) runs on drives that remember every write and
//! flush ([`history`], [`disk`]). A crash state is made for every place of that tape ([`crash`]), a
//! store is started on it, and what it finds is held against the promise ([`check`]). States are
//! told apart by content and expectation; each is checked once. Only what a workload's last
//! operation adds is looked at: what comes before is a shorter workload's.

mod branches;
mod check;
mod crash;
mod disk;
mod history;
mod machine;
#[cfg(test)]
mod tests;
mod workload;

use std::collections::{BTreeMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use clap::Args;
use memkv_dma::Pool;

use branches::Branches;
use check::{Known, Legal, check};
use crash::{Kind, State, states};
use disk::mix;
use history::{History, Start, record, start};
use workload::{Base, Workload};

/// States of a run of CI; from there on every row of the recovery tables must have been met.
const STATES: u64 = 50_000;
/// Failures that are printed.
const SHOWN: usize = 20;
/// One in so many workloads is recorded twice.
const AGAIN: usize = 50;

#[derive(Args)]
pub struct StateArguments {
    /// Distinct crash states
    #[arg(long, default_value_t = STATES)]
    states: u64,
    /// Threads
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// This workload alone, by its name
    #[arg(long)]
    workload: Option<String>,
    /// Of the workload this state alone
    #[arg(long, requires = "workload")]
    state: Option<usize>,
}

/// What one thread keeps from workload to workload.
pub struct Bench {
    pool: Pool,
    starts: BTreeMap<(usize, &'static str), Start>,
}

impl Bench {
    pub fn new() -> Bench {
        Bench { pool: machine::pool(), starts: BTreeMap::new() }
    }

    /// Runs a workload and writes it down.
    pub fn record(&mut self, workload: &Workload) -> History {
        let (drives, base, pool) = (workload.drives, workload.base, &self.pool);
        let name = match base {
            Base::Fresh => "fresh",
            Base::Worn => "worn",
            Base::Torn => "torn",
            Base::Wide => "wide",
            Base::Narrow => "narrow",
        };
        let make = || start(drives, base, pool);
        let start = self.starts.entry((drives, name)).or_insert_with(make);
        record(workload, start, pool)
    }

    /// Checks one state; a panic is a failure like any other, and costs the memory it left in
    /// pieces.
    pub fn check(
        &mut self,
        history: &History,
        known: &Known,
        state: &State,
        legal: &Legal,
        branches: &mut Branches,
    ) -> Result<(), String> {
        let pool = self.pool.clone();
        let run = || check(history, known, state, legal, &pool, branches);
        caught(run).unwrap_or_else(|why| {
            self.pool = machine::pool();
            Err(why)
        })
    }
}

/// The words of a panic, if there was one.
fn caught<T>(run: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(run)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        format!("a panic: {}", text.unwrap_or_default())
    })
}

/// What all threads share.
struct Tally {
    wanted: u64,
    next: AtomicUsize,
    made: AtomicU64,
    kills: AtomicU64,
    full: AtomicBool,
    distinct: Mutex<HashSet<u64>>,
    branches: Mutex<Branches>,
    failures: Mutex<Vec<String>>,
    unstable: Mutex<Vec<String>>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs the tier; whether all is well.
pub fn run(arguments: &StateArguments) -> Result<bool, String> {
    if let Some(name) = &arguments.workload {
        let workload = Workload::parse(name).ok_or(format!("there is no workload {name}"))?;
        return Ok(replay(&workload, arguments.state));
    }
    let tally = Tally {
        wanted: arguments.states,
        next: AtomicUsize::new(0),
        made: AtomicU64::new(0),
        kills: AtomicU64::new(0),
        full: AtomicBool::new(false),
        distinct: Mutex::default(),
        branches: Mutex::default(),
        failures: Mutex::default(),
        unstable: Mutex::default(),
    };
    let workloads = workload::all();
    // Panics are reported with their state, not one by one.
    std::panic::set_hook(Box::new(|_| {}));
    let began = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..arguments.jobs.max(1) {
            scope.spawn(|| work(&workloads, &tally));
        }
    });
    drop(std::panic::take_hook());
    Ok(finish(&tally, workloads.len(), began.elapsed()))
}

fn work(workloads: &[Workload], tally: &Tally) {
    let mut bench = Bench::new();
    let mut branches = Branches::default();
    while !tally.full.load(Ordering::Relaxed) {
        let at = tally.next.fetch_add(1, Ordering::Relaxed);
        let Some(workload) = workloads.get(at) else { break };
        let history = match caught(|| bench.record(workload)) {
            Ok(history) => history,
            Err(why) => {
                bench = Bench::new();
                fail(tally, workload, None, &why);
                continue;
            }
        };
        if at.is_multiple_of(AGAIN) && digest(&bench.record(workload)) != digest(&history) {
            let replay = format!("{}: two runs differ", workload.name());
            lock(&tally.unstable).push(replay);
        }
        every_state(&mut bench, workload, &history, tally, &mut branches);
    }
    lock(&tally.branches).merge(&branches);
}

/// Checks every state of a history that nobody has seen.
fn every_state(
    bench: &mut Bench,
    workload: &Workload,
    history: &History,
    tally: &Tally,
    branches: &mut Branches,
) {
    let known = Known::of(history);
    let mut number = 0;
    states(history, machine::layout(workload.drives).data_offset, |state| {
        let legal = Legal::of(history, &state);
        let mut name = legal.digest();
        for image in &state.images {
            name = mix(name, image.digest());
        }
        tally.made.fetch_add(1, Ordering::Relaxed);
        let mut distinct = lock(&tally.distinct);
        if distinct.len() as u64 >= tally.wanted {
            tally.full.store(true, Ordering::Relaxed);
            return false;
        }
        let new = distinct.insert(name);
        drop(distinct);
        if new {
            let kill = state.kind == Kind::Kill;
            tally.kills.fetch_add(u64::from(kill), Ordering::Relaxed);
            if let Err(why) = bench.check(history, &known, &state, &legal, branches) {
                fail(tally, workload, Some((number, &state)), &why);
            }
        }
        number += 1;
        true
    });
}

fn fail(tally: &Tally, workload: &Workload, state: Option<(usize, &State)>, why: &str) {
    let name = workload.name();
    let mut failures = lock(&tally.failures);
    if failures.len() < SHOWN {
        match state {
            Some((number, state)) => {
                println!("{name}: {:?} at {}, {}: {why}", state.kind, state.at, state.how);
                println!("  again: ci/crash --workload '{name}' --state {number}");
            }
            None => {
                println!("{name}: {why}");
                println!("  again: ci/crash --workload '{name}'");
            }
        }
    }
    failures.push(why.to_owned());
}

/// All that was asked of the drives, and all answers.
fn digest(history: &History) -> u64 {
    let bytes = |sum: u64, bytes: &[u8]| bytes.iter().fold(sum, |sum, b| mix(sum, u64::from(*b)));
    let mut sum = history.events.len() as u64;
    for event in &history.events {
        sum = bytes(sum, format!("{event:?}").as_bytes());
    }
    for write in &history.writes {
        sum = mix(bytes(sum, &write.data), write.offset ^ (write.drive as u64) << 48);
    }
    history.calls.iter().fold(sum, |sum, call| bytes(sum, format!("{call:?}").as_bytes()))
}

fn finish(tally: &Tally, workloads: usize, wall: Duration) -> bool {
    let failures = lock(&tally.failures);
    let unstable = lock(&tally.unstable);
    let branches = lock(&tally.branches);
    let distinct = lock(&tally.distinct).len();
    branches.lines().iter().for_each(|line| println!("{line}"));
    let cpu = crate::cpu_seconds();
    let (made, kills) = (tally.made.load(Ordering::Relaxed), tally.kills.load(Ordering::Relaxed));
    let ran = tally.next.load(Ordering::Relaxed).min(workloads);
    let cuts = distinct as u64 - kills;
    println!("{ran} of {workloads} workloads, {made} states");
    println!("{distinct} distinct states: {kills} kills, {cuts} power cuts");
    println!(
        "{cpu:.1} CPU s, {:.1} s, {:.0} distinct states per CPU second",
        wall.as_secs_f64(),
        distinct as f64 / cpu.max(1e-9)
    );
    unstable.iter().for_each(|line| println!("{line}"));
    // A few states alone cannot have met every row.
    let many = distinct as u64 >= STATES;
    let wrong = if many { branches.wrong() } else { Vec::new() };
    wrong.iter().for_each(|line| println!("{line}"));
    if !failures.is_empty() {
        println!("{} states failed", failures.len());
    }
    let checks = [
        ("every crash state of bounded workloads keeps the promise", failures.is_empty()),
        (
            "crash states met every row of the recovery tables that a crash reaches",
            wrong.is_empty(),
        ),
        ("a workload is the same in every run", unstable.is_empty()),
    ];
    for (check, good) in checks {
        println!("test {check} ... {}", if good { "ok" } else { "FAILED" });
    }
    checks.iter().all(|check| check.1)
}

/// One workload, or one state of it, told in full.
fn replay(workload: &Workload, wanted: Option<usize>) -> bool {
    let mut bench = Bench::new();
    let history = bench.record(workload);
    if wanted.is_some() {
        for (number, write) in history.writes.iter().enumerate() {
            let (drive, offset, bytes) = (write.drive, write.offset, write.data.len());
            println!("write {number}: drive {drive}, {bytes} bytes at {offset}");
        }
        for (at, event) in history.events.iter().enumerate() {
            println!("{at:>5} {event:?}");
        }
        history.calls.iter().for_each(|call| println!("{call:?}"));
        println!("evicted (key, place): {:?}", history.evicted);
    }
    let known = Known::of(&history);
    let mut branches = Branches::default();
    let (mut number, mut failed) = (0, 0);
    states(&history, machine::layout(workload.drives).data_offset, |state| {
        if wanted.is_none_or(|wanted| wanted == number) {
            let legal = Legal::of(&history, &state);
            let verdict = bench.check(&history, &known, &state, &legal, &mut branches);
            if wanted.is_some() || verdict.is_err() {
                println!("state {number}: {:?} at {}, {}", state.kind, state.at, state.how);
                println!("  {}", verdict.as_ref().err().map_or("keeps the promise", |why| why));
            }
            failed += usize::from(verdict.is_err());
        }
        number += 1;
        true
    });
    branches.lines().iter().for_each(|line| println!("{line}"));
    println!("{number} states, {failed} failed");
    failed == 0 && wanted.is_none_or(|wanted| wanted < number)
}
