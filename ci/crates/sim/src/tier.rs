//! The command line: many seeds, or one.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use clap::Parser;
use nix::time::ClockId;

use crate::counters::{self, Count, Counters};
use crate::latency;
use crate::options::Options;
use crate::run::{Failure, Report, Reuse, Run};

/// Seeds that once failed: run before all others.
const KEPT: &str = include_str!("../seeds.txt");
/// Seeds of a run of CI; the least counts hold from here on.
const SEEDS: u64 = 2_000;
/// Requests of each.
const REQUESTS: u64 = 1_000;
/// Operations per processor second that the tier is to reach.
const SPEED: f64 = 50_000.0;

/// Simulates memkv, seed by seed, and holds every answer against the promise.
#[derive(Parser, Debug)]
#[command(name = "ci/sim")]
struct Arguments {
    /// How many seeds.
    #[arg(long, default_value_t = SEEDS)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// Replay one seed and print every step.
    #[arg(long)]
    seed: Option<u64>,
    /// With --seed: print only the outcome.
    #[arg(long)]
    quiet: bool,
    /// Client requests of each seed, at least.
    #[arg(long, default_value_t = REQUESTS)]
    requests: u64,
    /// Threads.
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Stop at the first failure.
    #[arg(long)]
    fail_fast: bool,
    /// No seeds: GET latency while the store works on its own account.
    #[arg(long, conflicts_with_all = ["seed", "seeds", "from"])]
    latency: bool,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

struct Failed {
    seed: u64,
    why: String,
}

/// What all threads share.
struct Tally {
    next: AtomicU64,
    done: AtomicU64,
    stop: AtomicBool,
    counters: Mutex<Counters>,
    failed: Mutex<Vec<Failed>>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(seed) = arguments.seed {
        return replay(&arguments, seed);
    }
    let mut good = arguments.latency || sweep(&arguments);
    // A sweep for one bug, or for a machine to read, ends with its seeds.
    if arguments.latency || !(arguments.fail_fast || arguments.json) {
        good &= latency::measure_all();
    }
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs one seed; a panic is a failure like any other.
fn run_seed(seed: u64, requests: u64, reuse: &Reuse, verbose: bool) -> Report {
    let run = || Run::new(Options::draw(seed, requests), reuse, verbose).go();
    let report = catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Report {
            counters: Counters::default(),
            digest: 0,
            result: Err(Failure::Panic(text.unwrap_or_default())),
        }
    });
    if report.result.is_err() {
        reuse.forget();
    }
    report
}

fn replay(arguments: &Arguments, seed: u64) -> ExitCode {
    let reuse = Reuse::default();
    if !arguments.quiet {
        eprintln!("{:#?}", Options::draw(seed, arguments.requests));
    }
    let report = run_seed(seed, arguments.requests, &reuse, !arguments.quiet);
    for (count, value) in report.counters.iter() {
        println!("{:>32} {value}", counters::name(count));
    }
    println!("seed {seed}, digest {:016x}", report.digest);
    match report.result {
        Ok(()) => {
            println!("passed");
            ExitCode::SUCCESS
        }
        Err(failure) => {
            println!("FAILED: {}", words(&failure));
            ExitCode::FAILURE
        }
    }
}

fn words(failure: &Failure) -> String {
    match failure {
        Failure::Broken(broken) => broken.to_string(),
        other => format!("{other:?}"),
    }
}

fn kept_seeds() -> Vec<u64> {
    let lines = KEPT.lines().map(|line| line.split('#').next().unwrap_or("").trim());
    lines.filter(|line| !line.is_empty()).filter_map(|line| line.parse().ok()).collect()
}

fn sweep(arguments: &Arguments) -> bool {
    let kept = kept_seeds();
    let known: BTreeSet<u64> = kept.iter().copied().collect();
    let fresh = (arguments.from..arguments.from + arguments.seeds).filter(|s| !known.contains(s));
    let seeds: Vec<u64> = kept.iter().copied().chain(fresh).collect();
    let tally = Tally {
        next: AtomicU64::new(0),
        done: AtomicU64::new(0),
        stop: AtomicBool::new(false),
        counters: Mutex::default(),
        failed: Mutex::default(),
    };
    // Panics are reported with their seed, not one by one.
    std::panic::set_hook(Box::new(|_| {}));
    let (began, cpu) = (Instant::now(), cpu_seconds());
    std::thread::scope(|scope| {
        for _ in 0..arguments.jobs.max(1) {
            scope.spawn(|| work(arguments, &seeds, &tally));
        }
    });
    drop(std::panic::take_hook());
    let spent = cpu_seconds() - cpu;
    finish(arguments, &tally, spent, began.elapsed().as_secs_f64())
}

fn work(arguments: &Arguments, seeds: &[u64], tally: &Tally) {
    let reuse = Reuse::default();
    while !tally.stop.load(Ordering::Relaxed) {
        let at = tally.next.fetch_add(1, Ordering::Relaxed) as usize;
        let Some(&seed) = seeds.get(at) else { return };
        let report = run_seed(seed, arguments.requests, &reuse, false);
        lock(&tally.counters).merge(&report.counters);
        if let Err(failure) = report.result {
            let why = words(&failure);
            println!("SEED={seed} failed: {why}");
            println!("  replay: ci/sim --seed {seed} --requests {}", arguments.requests);
            lock(&tally.failed).push(Failed { seed, why });
            if arguments.fail_fast {
                tally.stop.store(true, Ordering::Relaxed);
            }
        } else if at.is_multiple_of(50) {
            // Once in a while: is the same seed the same run?
            let again = run_seed(seed, arguments.requests, &reuse, false);
            if again.digest != report.digest {
                let why = "two runs of this seed differ".to_owned();
                println!("SEED={seed} failed: {why}");
                lock(&tally.failed).push(Failed { seed, why });
            }
        }
        let done = tally.done.fetch_add(1, Ordering::Relaxed) + 1;
        if done.is_multiple_of(100) && !arguments.json {
            eprintln!("{done} of {} seeds", seeds.len());
        }
    }
}

fn finish(arguments: &Arguments, tally: &Tally, cpu: f64, wall: f64) -> bool {
    let counters = lock(&tally.counters);
    let failed = lock(&tally.failed);
    let (requests, operations) = (counters.get(Count::Requests), counters.get(Count::Operations));
    let speed = operations as f64 / cpu.max(1e-9);
    let whole = arguments.seeds >= SEEDS && arguments.requests >= REQUESTS && failed.is_empty();
    let low = if whole { counters.too_low() } else { Vec::new() };
    if arguments.json {
        let counts: serde_json::Map<String, serde_json::Value> =
            counters.iter().map(|(count, value)| (counters::name(count), value.into())).collect();
        let failures: Vec<_> = failed
            .iter()
            .map(|one| serde_json::json!({ "seed": one.seed, "why": one.why }))
            .collect();
        let result = serde_json::json!({
            "seeds": tally.done.load(Ordering::Relaxed),
            "requests": requests,
            "operations": operations,
            "cpu_seconds": cpu,
            "wall_seconds": wall,
            "operations_per_cpu_second": speed,
            "failures": failures,
            "counters": counts,
        });
        println!("{result:#}");
    } else {
        for (count, value) in counters.iter() {
            println!("{:>32} {value}", counters::name(count));
        }
        let seeds = tally.done.load(Ordering::Relaxed);
        println!("{seeds} seeds, {requests} requests, {cpu:.1} CPU s, {wall:.1} s");
        let requests = requests as f64 / cpu.max(1e-9);
        println!("{speed:.0} operations (keys asked for), {requests:.0} requests per CPU second");
    }
    if speed < SPEED {
        eprintln!("warning: below {SPEED:.0} operations per CPU second");
    }
    for (count, value, least) in &low {
        let name = counters::name(*count);
        println!("TOO RARE: {name} happened {value} times, more than {least} are due");
    }
    for one in failed.iter() {
        println!("SEED={} failed: {}", one.seed, one.why);
    }
    for (check, good) in [("seeds", failed.is_empty()), ("counters", low.is_empty())] {
        println!("test sim::{check} ... {}", if good { "ok" } else { "FAILED" });
    }
    failed.is_empty() && low.is_empty()
}

/// Processor seconds of this process so far.
fn cpu_seconds() -> f64 {
    let time = ClockId::CLOCK_PROCESS_CPUTIME_ID.now().expect("every process has this clock");
    Duration::from(time).as_secs_f64()
}
