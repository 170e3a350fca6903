//! Crashes: the real server, killed under load again and again and audited for what it
//! acknowledged; and every state in which a crash can leave bounded workloads ([`states`]).
//!
//! The former takes three processes: this one, which starts and kills; the server, `memkv start`, on
//! two drive files; and the load ([`load`]), a client that writes down what it asked and what it was
//! answered ([`ledger`]). The load survives the server, and its file is the truth. After each kill the server
//! is started again and every key is read: an acknowledged put must be there byte-exact, an
//! acknowledged delete must be done, and a request that was never answered may have happened or not.
//!
//! A process that is killed loses nothing that it handed to the kernel, so under the default
//! durability nothing at all may be missing. A power cut is another matter: the simulator cuts it, and
//! so do the states.

#![forbid(unsafe_code)]

mod content;
mod cut;
mod ledger;
mod load;
#[cfg(test)]
mod pretend;
mod qemu;
mod rounds;
mod server;
mod states;

use std::error::Error;
use std::io::Read;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use nix::time::ClockId;

use crate::cut::CutArguments;
use crate::ledger::Ledger;
use crate::load::LoadOptions;
use crate::qemu::QemuArguments;
use crate::rounds::{RoundOptions, Rounds};
use crate::states::StateArguments;

/// Crashes memkv and holds what is left to the promise.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Load, kill, start again, audit
    Rounds(RoundArguments),
    /// Every state in which a crash can leave the drives of bounded workloads
    States(StateArguments),
    /// Power cuts replayed from a write log, and drives that break
    Qemu(QemuArguments),
    /// The load alone, until standard input ends or the server is dead
    Load(LoadArguments),
    /// A server on drives of this machine and its load, until somebody cuts the power
    UntilCut(CutArguments),
    /// What a power cut left, held to the ledger
    AfterCut(CutArguments),
}

#[derive(Args)]
struct RoundArguments {
    /// The server's binary
    #[arg(long)]
    binary: PathBuf,
    /// Where drives, ledger and logs are kept; they are left there when a check fails
    #[arg(long)]
    folder: PathBuf,
    /// Rounds of load and SIGKILL
    #[arg(long, default_value_t = 30)]
    rounds: u32,
    /// Where all choices come from [default: a new one each time]
    #[arg(long)]
    seed: Option<u64>,
    /// Keys of the load
    #[arg(long, default_value_t = 400)]
    keys: u32,
    /// Threads of the load
    #[arg(long, default_value_t = 4)]
    threads: u32,
    /// Drives of this machine, formatted as one node, in place of files
    #[arg(long)]
    media: Vec<String>,
    /// Each round loads so many times as long, for a machine that is slow
    #[arg(long, default_value_t = 1)]
    stretch: u32,
}

#[derive(Args)]
struct LoadArguments {
    /// The server
    #[arg(long)]
    address: SocketAddr,
    /// The ledger, appended to
    #[arg(long)]
    ledger: PathBuf,
    /// Where all choices come from
    #[arg(long)]
    seed: u64,
    /// Threads
    #[arg(long)]
    threads: u32,
    /// Keys of all threads together
    #[arg(long)]
    keys: u32,
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Task::Rounds(arguments) => rounds(arguments),
        Task::Qemu(arguments) => qemu::run(&arguments),
        Task::States(arguments) => states::run(&arguments).map_err(Into::into),
        Task::Load(arguments) => load(&arguments).map(|()| true),
        Task::UntilCut(arguments) => cut::load(&arguments).map(|()| true).map_err(Into::into),
        Task::AfterCut(arguments) => cut::audit(&arguments).map_err(Into::into),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            let mut line = error.to_string();
            let mut cause = error.source();
            while let Some(error) = cause {
                line = format!("{line}: {error}");
                cause = error.source();
            }
            eprintln!("crash: {line}");
            ExitCode::FAILURE
        }
    }
}

fn rounds(arguments: RoundArguments) -> Result<bool, Box<dyn Error>> {
    let seed = arguments.seed.unwrap_or_else(|| fastrand::u64(..));
    println!("SEED={seed}");
    println!("again: ci/crash --rounds {} --seed {seed}", arguments.rounds);
    std::fs::create_dir_all(&arguments.folder)?;
    let mut folder = tempfile::Builder::new().prefix("crash-").tempdir_in(&arguments.folder)?;
    let options = RoundOptions {
        binary: arguments.binary,
        rounds: arguments.rounds,
        seed,
        keys: arguments.keys,
        threads: arguments.threads,
        media: arguments.media,
        stretch: arguments.stretch,
    };
    folder.disable_cleanup(true);
    let good = Rounds::new(options, folder.path())?.run()?;
    if good {
        folder.disable_cleanup(false);
    } else {
        println!("drives, ledger and logs are left in {}", folder.path().display());
    }
    Ok(good)
}

fn load(arguments: &LoadArguments) -> Result<(), Box<dyn Error>> {
    let stop = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&stop);
    thread::spawn(move || {
        // Whatever ends the input, a closed pipe or an error, ends the load.
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        told.store(true, Ordering::Relaxed);
    });
    let client = server::client(arguments.address, arguments.threads as usize)?;
    let ledger = Ledger::open(&arguments.ledger)?;
    let options =
        LoadOptions { seed: arguments.seed, threads: arguments.threads, keys: arguments.keys };
    load::run(&client, ledger, options, &stop)?;
    Ok(())
}

/// Processor seconds of this process so far.
fn cpu_seconds() -> f64 {
    let time = ClockId::CLOCK_PROCESS_CPUTIME_ID.now().expect("every process has this clock");
    Duration::from(time).as_secs_f64()
}
