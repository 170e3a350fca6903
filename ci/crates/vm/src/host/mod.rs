//! The host's side: boots the plans, one after the other, and judges what they found.

mod console;
mod dialog;
mod machine;
mod monitor;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use clap::Args;
use thiserror::Error;

use crate::plan::{After, FILES_CHECK, PLANS, Plan};
use dialog::{DialogError, End, Found};
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
    /// Where the release binaries are
    #[arg(long)]
    binaries: PathBuf,
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
    let first = PLANS.iter().filter(|plan| plan.images_of.is_none());
    first.map(|plan| plan.name).collect::<Vec<_>>().into()
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
        let named = |name: &str| arguments.only.iter().any(|only| only == name);
        arguments.only.is_empty() || named(plan.name) || plan.images_of.is_some_and(named)
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
        let places = Places {
            guest: arguments.guest.clone(),
            share: arguments.share.clone(),
            images: arguments.folder.join(plan.images_of.unwrap_or(plan.name)),
            folder,
        };
        let plan_begun = Instant::now();
        println!("{}: {}", plan.name, plan.what);
        let mut found = boot(plan, &places, &mut aborts);
        if plan.after == After::AuditFiles {
            let complaint = audit_files(plan, &places, &arguments.binaries)?;
            complaint
                .iter()
                .for_each(|complaint| println!("{}: {FILES_CHECK}: {complaint}", plan.name));
            found.checks.insert(FILES_CHECK.to_owned(), complaint);
        }
        let judged = judge(plan, &places, &found);
        println!("{}: {:.1} s", plan.name, plan_begun.elapsed().as_secs_f64());
        let good = judged.iter().all(|(_, holds)| *holds);
        if !good {
            println!("{}: logs are left in {}", plan.name, places.folder.display());
        }
        verdicts.extend(judged);
    }
    for (name, holds) in &verdicts {
        println!("test {name} ... {}", if *holds { "ok" } else { "FAILED" });
    }
    let failed = verdicts.iter().filter(|(_, holds)| !holds).count();
    if failed == 0 && !arguments.keep {
        fs::remove_dir_all(&arguments.folder)?;
    }
    println!(
        "{} checks, {failed} failed, in {} boots and {:.1} s; QEMU failed {aborts} times",
        verdicts.len(),
        plans.len() + aborts,
        begun.elapsed().as_secs_f64()
    );
    Ok(failed == 0)
}

/// With this QEMU ends when its map of memory was changed while a processor of the guest looked something up.
const MAP_CHANGED: &str = "iotlb_to_section: Assertion";

/// How often a plan is booted at most, where QEMU fails each time.
const BOOTS: usize = 3;

/// Boots a plan, and again if QEMU failed, with images made anew. Its map of memory is changed early in a
/// boot and whenever a drive changes hands, and that now and then ends it. Or a processor of the guest
/// gets no interrupt of its timer any more: on a busy host QEMU loses one now and then, and nothing wakes
/// that processor then.
fn boot(plan: &Plan, places: &Places, aborts: &mut usize) -> Found {
    for left in (0..BOOTS).rev() {
        let mut found = Found::default();
        let Err(error) = serve(plan, places, &mut found) else { return found };
        println!("{}: {}", plan.name, crate::told(&error));
        let is_qemus =
            matches!(error, DialogError::LostTimer) || crate::told(&error).contains(MAP_CHANGED);
        if left == 0 || (found.begun && !is_qemus) {
            return found;
        }
        *aborts += 1;
        if plan.images_of.is_none() {
            // What was acknowledged is acknowledged of images that are no more.
            let ledger = places.share.join("ledger");
            let images = plan.drives.iter().map(|drive| places.image(drive.name));
            images.chain([ledger]).for_each(|file| drop(fs::remove_file(file)));
        }
    }
    unreachable!("the last boot is returned from")
}

/// One boot of a plan, to its end.
fn serve(plan: &Plan, places: &Places, found: &mut Found) -> Result<(), DialogError> {
    let (mut machine, talk) = Machine::boot(plan, places)?;
    match dialog::serve(plan, &mut machine, &talk, found)? {
        // What was late for want of a timer is no finding of ours.
        _ if machine.lost_a_timer() => Err(DialogError::LostTimer),
        End::Done => Ok(machine.wait()?),
        // It is killed when it is dropped.
        End::Cut => Ok(()),
    }
}

/// Holds the images of a plan to the ledger, as the files that they are. The complaint, if there is one.
fn audit_files(plan: &Plan, places: &Places, binaries: &Path) -> Result<Option<String>, io::Error> {
    let mut command = Command::new(binaries.join("memkv-crash"));
    command.arg("after-cut").arg("--binary").arg(binaries.join("memkv"));
    command.arg("--folder").arg(&places.folder);
    command.arg("--ledger").arg(places.share.join("ledger"));
    for drive in plan.drives {
        command.arg("--media").arg(places.image(drive.name));
    }
    let output = command.stdin(Stdio::null()).output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    said.lines().for_each(|line| println!("  {line}"));
    if output.status.success() {
        return Ok(None);
    }
    Ok(Some(format!("{said}{}", String::from_utf8_lossy(&output.stderr))))
}

/// The names of what is asserted of a plan in the guest, and on the host when that is over.
fn names_of(plan: &Plan) -> impl Iterator<Item = &'static str> {
    let after = (plan.after == After::AuditFiles).then_some(FILES_CHECK);
    plan.checks().map(|check| check.name).chain(after)
}

/// The names of all checks of a plan.
fn names(plan: &Plan) -> Vec<String> {
    let inside = names_of(plan).map(str::to_owned);
    inside.chain(console::CHECKS.iter().map(|(name, _)| outside(plan, name))).collect()
}

fn outside(plan: &Plan, name: &str) -> String {
    format!("{}: {name}", plan.name)
}

/// Each check of a plan and whether it holds. One that the guest did not come to does not.
fn judge(plan: &Plan, places: &Places, found: &Found) -> Vec<(String, bool)> {
    let holds = |name: &str| found.checks.get(name).is_some_and(Option::is_none);
    let mut verdicts: Vec<(String, bool)> =
        names_of(plan).map(|name| (name.to_owned(), holds(name))).collect();
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
