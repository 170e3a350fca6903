//! The real server on drives that write down all they are told, refuse, or stop answering: images
//! behind `qemu-storage-daemon`, which the server opens through FUSE as files like any others.
//!
//! [`replay`] cuts the power at many moments of a load and starts the server on what is left.
//! [`faults`] breaks one of two drives under the server.

mod cuts;
mod daemon;
mod faults;
mod replay;
mod watch;
mod writelog;

use std::collections::BTreeMap;
use std::error::Error;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Instant;

use clap::Args;
use thiserror::Error;

use crate::ledger::LedgerError;
use crate::server::ServerError;
use daemon::DaemonError;
use faults::Fault;
use replay::{Outcome, Tally};
use writelog::LogError;

/// What is asserted, as it is listed and printed.
const CHECKS: [(Check, &str); 6] = [
    (Check::Cuts, "power cuts replayed from a write log lose nothing that was acknowledged"),
    (Check::Hard, "the replayed power cuts were hard enough to mean something"),
    (Check::Fault(Fault::Read), "a sector that cannot be read costs its drive and nothing else"),
    (
        Check::Fault(Fault::Journal),
        "a refused write of the journal costs its drive and nothing else",
    ),
    (Check::Fault(Fault::Data), "a put whose bytes are refused is placed on another drive"),
    (
        Check::Fault(Fault::Stall),
        "a drive that stalls and answers late costs itself and nothing else",
    ),
];

#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Check {
    Cuts,
    Hard,
    Fault(Fault),
}

/// Arguments of the tier.
#[derive(Args)]
pub struct QemuArguments {
    /// The server's binary
    #[arg(long)]
    binary: PathBuf,
    /// Where drives, ledgers and logs are kept; they are left there when a check fails
    #[arg(long)]
    folder: PathBuf,
    /// Power cuts
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    qemu: u32,
    /// Where all choices come from [default: a new one each time]
    #[arg(long)]
    seed: Option<u64>,
}

/// Why the checks could not go on.
#[derive(Debug, Error)]
pub(crate) enum QemuError {
    /// The storage daemon.
    #[error(transparent)]
    Daemon(#[from] DaemonError),
    /// The server.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// The ledger, for other reasons than a violation.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// What the storage daemon wrote down.
    #[error(transparent)]
    Log(#[from] LogError),
    /// A file, or a process.
    #[error("{what}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The load failed while the server was well.
    #[error("the load saw a contradiction, or failed: {0}")]
    Load(ExitStatus),
    /// The server's words about its health cannot be read.
    #[error("the server's health cannot be read: {0}")]
    Health(String),
}

fn io_error(what: &'static str) -> impl FnOnce(io::Error) -> QemuError {
    move |source| QemuError::Io { what, source }
}

/// Runs every check; whether all passed. Where the machine cannot run them they are skipped, loudly.
///
/// # Errors
/// When something fails that is not the server's promise.
pub fn run(arguments: &QemuArguments) -> Result<bool, Box<dyn Error>> {
    std::fs::create_dir_all(&arguments.folder)?;
    let mut folder = tempfile::Builder::new().prefix("qemu-").tempdir_in(&arguments.folder)?;
    if let Some(reason) = daemon::missing(folder.path()) {
        for (_, name) in CHECKS {
            println!("test {name} ... skipped: {reason}");
        }
        return Ok(true);
    }
    let seed = arguments.seed.unwrap_or_else(|| fastrand::u64(..));
    println!("SEED={seed}");
    println!("again: ci/crash --qemu {} --seed {seed}", arguments.qemu);
    folder.disable_cleanup(true);
    let found = all(arguments, seed, folder.path())?;
    for (check, name) in CHECKS {
        let verdict = if found.contains_key(&check) { "FAILED" } else { "ok" };
        println!("test {name} ... {verdict}");
    }
    io::stdout().flush()?;
    if found.is_empty() {
        folder.disable_cleanup(false);
    } else {
        println!("drives, ledgers and logs are left in {}", folder.path().display());
    }
    Ok(found.is_empty())
}

type Found = BTreeMap<Check, Vec<String>>;

fn all(arguments: &QemuArguments, seed: u64, folder: &Path) -> Result<Found, QemuError> {
    let mut found = Found::new();
    let mut add = |check: Check, what: Vec<String>| {
        if !what.is_empty() {
            found.entry(check).or_default().extend(what);
        }
    };
    let (place, Outcome { violations, tally }) = part(folder, "replay", |place| {
        replay::run(&arguments.binary, place, arguments.qemu, seed)
    })?;
    // The images are large, and are wanted only when something is wrong.
    if violations.is_empty() {
        std::fs::remove_dir_all(&place).map_err(io_error("a folder"))?;
    }
    add(Check::Cuts, violations);
    add(Check::Hard, too_easy(&tally, arguments.qemu));
    for fault in faults::FAULTS {
        let begun = Instant::now();
        let (_, violations) =
            part(folder, fault.name(), |place| faults::run(fault, &arguments.binary, place))?;
        println!("{}: {:.1} s", fault.name(), begun.elapsed().as_secs_f64());
        add(Check::Fault(fault), violations);
    }
    Ok(found)
}

/// One part in a folder of its own; and in another one once more when the storage daemon stopped answering
/// by itself, which says nothing about the server. Answers with the folder as well.
fn part<T>(
    folder: &Path,
    name: &str,
    run: impl Fn(&Path) -> Result<T, QemuError>,
) -> Result<(PathBuf, T), QemuError> {
    let attempt = |name: &str| {
        let place = folder.join(name);
        std::fs::create_dir(&place).map_err(io_error("a folder"))?;
        run(&place).map(|found| (place, found))
    };
    let first = attempt(name);
    if !watch::take_stuck() {
        return first;
    }
    println!("{name}: the storage daemon stopped answering by itself and was ended; once more");
    let second = attempt(&format!("{name}-again"));
    if watch::take_stuck() {
        return Err(DaemonError::Failed("it stopped answering by itself, twice".to_owned()).into());
    }
    second
}

/// What there was too little of. A tier that was too easy proves nothing, and says so.
fn too_easy(tally: &Tally, states: u32) -> Vec<String> {
    let states = u64::from(states);
    let floors = [
        ("acknowledged puts", tally.stored, 100),
        ("flushes", tally.flushes, 50),
        ("moments", tally.moments, 10 * states.min(100)),
        ("power cuts", tally.states, states),
        ("power cuts that lost a write", tally.with_loss, states / 5),
        ("power cuts with a write in part", tally.torn, states / 10),
        ("power cuts with a request under way", tally.in_flight, states / 2),
        ("acknowledged contents looked for", tally.owed, states * 10),
    ];
    let mut found = Vec::new();
    for (what, count, floor) in floors {
        if count < floor {
            found.push(format!("{count} {what}, at least {floor} are wanted"));
            println!("VIOLATION: {count} {what}, at least {floor} are wanted");
        }
    }
    found
}
