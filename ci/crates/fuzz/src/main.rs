//! Feeds the parsers, and a whole server, what nobody should send or store.
//!
//! A [`target::Target`] draws inputs from a seeded generator and feeds them to the code of the
//! house; the code may refuse an input but must not panic, and what it accepts must mean something
//! that can be said again. Inputs know the shape of what they imitate: most are whole and
//! authentic but for a few bytes, since random bytes never get past the first check. Targets count
//! what they reached; a count that stays at zero fails the run, because a fuzzer that no longer
//! gets anywhere finds nothing.
//!
//! ```text
//! memkv-ci-fuzz --target frames --seconds 60 --seed 7
//! memkv-ci-fuzz --target frames --input 00ff…          one input, as a failure printed it
//! ```
//!
//! Each target has a corpus in the repository, inputs that once were the first to reach something;
//! they are fed before any other. `--collect` makes it anew.
//!
//! A new target is a module that implements [`target::Target`], and a line in [`targets`].

#![forbid(unsafe_code)]

#[cfg(feature = "server")]
mod config;
mod corpus;
mod draw;
#[cfg(feature = "server")]
mod frames;
#[cfg(feature = "server")]
mod journal;
mod nvme;
#[cfg(feature = "server")]
mod patches;
#[cfg(feature = "server")]
mod probe;
#[cfg(feature = "server")]
mod recovery;
mod run;
#[cfg(feature = "server")]
mod session;
mod target;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Parser;

use crate::run::Until;
use crate::target::Target;

/// Feeds the parsers, and a whole server, what nobody should send or store
#[derive(Parser)]
struct Arguments {
    /// What to fuzz: frames, journal, recovery, probe, config, session, nvme, server for all
    /// above the drivers, or all
    #[arg(long, default_value = "all")]
    target: String,
    /// Seconds for each target; the last one given counts
    #[arg(long, default_value_t = 10, overrides_with = "seconds")]
    seconds: u64,
    /// So many inputs for each target, instead of seconds
    #[arg(long)]
    inputs: Option<u64>,
    /// Where the inputs come from; another one each time when it is not given
    #[arg(long)]
    seed: Option<u64>,
    /// The folder of inputs that are fed first
    #[arg(long, value_name = "FOLDER")]
    corpus: Option<PathBuf>,
    /// Make the corpora anew, from so many inputs drawn for each target, instead
    #[arg(long, value_name = "INPUTS", requires = "corpus")]
    collect: Option<u64>,
    /// Feed this one input, in hexadecimal, instead
    #[arg(long)]
    input: Option<String>,
}

/// Targets that run under the address sanitizer, in a build of their own.
const DRIVERS: [&str; 1] = ["nvme"];

/// Every target there is. Keep the order: it is the order of the report.
fn targets() -> Vec<Box<dyn Target>> {
    vec![
        #[cfg(feature = "server")]
        Box::new(frames::Frames::default()),
        #[cfg(feature = "server")]
        Box::new(journal::Drive::default()),
        #[cfg(feature = "server")]
        Box::new(recovery::Recovery::default()),
        #[cfg(feature = "server")]
        Box::new(probe::Probe::default()),
        #[cfg(feature = "server")]
        Box::new(config::Configuration::default()),
        #[cfg(feature = "server")]
        Box::new(session::Session::default()),
        Box::new(nvme::Nvme::default()),
    ]
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut targets = targets();
    targets.retain(|target| match &*arguments.target {
        "all" => true,
        "server" => !DRIVERS.contains(&target.name()),
        name => target.name() == name,
    });
    if targets.is_empty() {
        eprintln!("there is no target {:?}", arguments.target);
        return ExitCode::from(2);
    }
    if let Some(hex) = &arguments.input {
        let Some(input) = run::from_hex(hex) else {
            eprintln!("the input is not hexadecimal");
            return ExitCode::from(2);
        };
        return feed_one(&mut targets, &input);
    }
    let seed = arguments.seed.unwrap_or_else(from_clock);
    let time = Duration::from_secs(arguments.seconds);
    let until = arguments.inputs.map_or(Until::Time(time), Until::Inputs);
    let mut failed = false;
    for target in &mut targets {
        println!("SEED={seed} TARGET={}", target.name());
        let corpus = match (&arguments.corpus, arguments.collect) {
            (None, _) => Ok(Vec::new()),
            (Some(folder), None) => corpus::read(folder, target.name()),
            (Some(folder), Some(inputs)) => {
                let found = corpus::collect(&mut **target, seed, inputs);
                corpus::write(folder, target.name(), &found).map(|()| found)
            }
        };
        let corpus = match corpus {
            Ok(corpus) => corpus,
            Err(error) => {
                eprintln!("the corpus of {}: {error}", target.name());
                return ExitCode::from(2);
            }
        };
        if arguments.collect.is_some() {
            println!("{:>12}  inputs collected", corpus.len());
            continue;
        }
        let report = run::run(&mut **target, &corpus, seed, until);
        print!("{report}");
        let verdict = if report.passed() { "ok" } else { "FAILED" };
        println!("test {} ... {verdict}", target.name());
        failed |= !report.passed();
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// One input of one target, without a net: a panic shows itself.
fn feed_one(targets: &mut [Box<dyn Target>], input: &[u8]) -> ExitCode {
    let [target] = targets else {
        eprintln!("an input belongs to one target: name it with --target");
        return ExitCode::from(2);
    };
    target.feed(input);
    target.finish();
    println!("{} bytes, no panic", input.len());
    ExitCode::SUCCESS
}

/// A seed for a run that was not given one; it is printed, so the run can be repeated.
fn from_clock() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(1, |since| since.as_nanos() as u64)
}
