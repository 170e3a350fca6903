//! The host's side: boots the plans, one after the other, and judges what they found.

mod console;
mod dialog;
mod machine;
mod monitor;

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use thiserror::Error;

use crate::plan::{PLANS, Plan};
use dialog::Found;
use machine::{Machine, Places};

/// Arguments of the host's side.
#[derive(Args)]
pub struct HostArguments {
    /// Kernel and first file system of guests
    #[arg(long)]
    guest: PathBuf,
    /// What guests see of the host: binaries and the libraries that they need
    #[arg(long)]
    share: PathBuf,
    /// Where images, sockets and logs are kept
    #[arg(long)]
    folder: PathBuf,
    /// Only these boots
    #[arg(long, value_parser = plan_names())]
    only: Vec<String>,
    /// Leaves images and logs where they are
    #[arg(long)]
    keep: bool,
    /// Runs nothing: every check is skipped, for this reason
    #[arg(long)]
    skip: Option<String>,
}

fn plan_names() -> clap::builder::PossibleValuesParser {
    PLANS.iter().map(|plan| plan.name).collect::<Vec<_>>().into()
}

/// Why nothing could be run.
#[derive(Debug, Error)]
pub enum HostError {
    /// A folder.
    #[error("cannot make a place for a guest")]
    Io(#[from] io::Error),
}

/// Every boot that was asked for; whether all checks hold.
///
/// # Errors
/// When there is no room for a boot.
pub fn run(arguments: &HostArguments) -> Result<bool, HostError> {
    let begun = Instant::now();
    let only = |plan: &&Plan| {
        arguments.only.is_empty() || arguments.only.iter().any(|name| name == plan.name)
    };
    let plans: Vec<&Plan> = PLANS.iter().filter(only).collect();
    if let Some(reason) = &arguments.skip {
        for name in plans.iter().flat_map(|plan| names(plan)) {
            println!("test {name} ... skipped: {reason}");
        }
        return Ok(true);
    }
    let (mut verdicts, mut aborts) = (Vec::new(), 0);
    for plan in &plans {
        let folder = arguments.folder.join(plan.name);
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        fs::create_dir_all(&folder)?;
        let places =
            Places { guest: arguments.guest.clone(), share: arguments.share.clone(), folder };
        let plan_begun = Instant::now();
        println!("{}: {}", plan.name, plan.what);
        let found = boot(plan, &places, &mut aborts);
        let judged = judge(plan, &places, &found);
        println!("{}: {:.1} s", plan.name, plan_begun.elapsed().as_secs_f64());
        let good = judged.iter().all(|(_, holds)| *holds);
        if !good {
            println!("{}: logs are left in {}", plan.name, places.folder.display());
        } else if !arguments.keep {
            fs::remove_dir_all(&places.folder)?;
        }
        verdicts.extend(judged);
    }
    for (name, holds) in &verdicts {
        println!("test {name} ... {}", if *holds { "ok" } else { "FAILED" });
    }
    let failed = verdicts.iter().filter(|(_, holds)| !holds).count();
    println!(
        "{} checks, {failed} failed, in {} boots and {:.1} s; QEMU aborted early {aborts} times",
        verdicts.len(),
        plans.len() + aborts,
        begun.elapsed().as_secs_f64()
    );
    Ok(failed == 0)
}

/// Boots once, and once more if QEMU ended before the guest had begun: its map of memory is changed
/// early in a boot, and that now and then ends it.
fn boot(plan: &Plan, places: &Places, aborts: &mut usize) -> Found {
    let mut found = Found::default();
    for last in [false, true] {
        let outcome = Machine::boot(plan, places).map_err(dialog::DialogError::from).and_then(
            |(mut machine, talk)| {
                dialog::serve(plan, &mut machine, &talk, &mut found)?;
                Ok(machine.wait()?)
            },
        );
        let Err(error) = outcome else { break };
        println!("{}: {}", plan.name, crate::told(&error));
        if last || found.begun {
            break;
        }
        *aborts += 1;
    }
    found
}

/// The names of all checks of a plan.
fn names(plan: &Plan) -> Vec<String> {
    let inside = plan.checks().map(|check| check.name.to_owned());
    inside.chain(console::CHECKS.iter().map(|(name, _)| outside(plan, name))).collect()
}

fn outside(plan: &Plan, name: &str) -> String {
    format!("{}: {name}", plan.name)
}

/// Each check of a plan and whether it holds. One that the guest did not come to does not.
fn judge(plan: &Plan, places: &Places, found: &Found) -> Vec<(String, bool)> {
    let holds = |name: &str| found.checks.get(name).is_some_and(Option::is_none);
    let mut verdicts: Vec<(String, bool)> =
        plan.checks().map(|check| (check.name.to_owned(), holds(check.name))).collect();
    let log = fs::read(places.console()).unwrap_or_default();
    let log = String::from_utf8_lossy(&log);
    for (name, wrong) in console::CHECKS {
        let lines: Vec<&str> = log.lines().filter(|line| wrong(line)).collect();
        lines.iter().for_each(|line| println!("{}: {line}", plan.name));
        // A guest that never began has nothing to show for it.
        verdicts.push((outside(plan, name), found.begun && lines.is_empty()));
    }
    verdicts
}
