//! Compares the logs of a run with the committed list of checks, or writes the list anew.
//!
//! The folder of logs holds `<name>.json` and `<name>.log` for each build of the tests (what cargo
//! built, what its tests said) and `tier-<name>.log` for each tier. `ci/test` makes them.

#![forbid(unsafe_code)]

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use memkv_ci_tidy::checks::{self, Comparison, Run};
use thiserror::Error;

/// Compares the logs of a run with the list of checks.
#[derive(Parser)]
struct Arguments {
    /// The committed list.
    #[arg(long)]
    list: PathBuf,
    /// The folder of logs.
    #[arg(long)]
    logs: PathBuf,
    /// Write the list as this run would have it.
    #[arg(long)]
    update: bool,
}

#[derive(Debug, Error)]
enum ChecksError {
    #[error("cannot read {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write {path}")]
    Write { path: PathBuf, source: io::Error },
    #[error("no check ran: {path} holds no logs")]
    NothingRan { path: PathBuf },
}

const HEADING: &str = "\
# Every check there is, one a line: the suite, then its name. Written by `ci/checks --update` from the
# last run of `ci/test`; a run in which one of these does not appear, or another one does, fails.
";

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            let cause = std::error::Error::source(&error);
            let cause = cause.map(|cause| format!(": {cause}")).unwrap_or_default();
            eprintln!("checks: {error}{cause}");
            println!("0 passed, 1 failed");
            ExitCode::from(2)
        }
    }
}

/// Whether the run is good.
fn run(arguments: &Arguments) -> Result<bool, ChecksError> {
    let run = read_logs(&arguments.logs)?;
    if run.is_empty() {
        return Err(ChecksError::NothingRan { path: arguments.logs.clone() });
    }
    if arguments.update {
        let list = format!("{HEADING}{}", run.list());
        fs::write(&arguments.list, &list)
            .map_err(|source| ChecksError::Write { path: arguments.list.clone(), source })?;
        println!("{} checks listed in {}", run.list().lines().count(), arguments.list.display());
        return Ok(true);
    }
    // Without a list everything is unlisted, and is said to be.
    let list = if arguments.list.exists() { read(&arguments.list)? } else { String::new() };
    let comparison = run.compare(&list);
    print(&comparison);
    Ok(comparison.failures() == 0)
}

fn read_logs(folder: &Path) -> Result<Run, ChecksError> {
    let unreadable = |source| ChecksError::Read { path: folder.to_owned(), source };
    let mut run = Run::default();
    for entry in fs::read_dir(folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if let Some(tier) = name.strip_prefix("tier-").and_then(|name| name.strip_suffix(".log")) {
            run.read_tier_log(tier, &read(&path)?);
        } else if let Some(build) = name.strip_suffix(".json") {
            let prefix = if build == "tests" { String::new() } else { format!("{build}/") };
            let suites = checks::suites(&read(&path)?, &prefix);
            run.read_cargo_log(&read(&path.with_extension("log"))?, &suites, &prefix);
        }
    }
    Ok(run)
}

fn read(path: &Path) -> Result<String, ChecksError> {
    let bytes =
        fs::read(path).map_err(|source| ChecksError::Read { path: path.to_owned(), source })?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn print(comparison: &Comparison) {
    let each = |what: &str, checks: &[String]| {
        checks.iter().for_each(|check| println!("  {what}: {check}"));
    };
    each("failed", &comparison.failed);
    each("listed but did not run", &comparison.missing);
    each("ran but is not listed (ci/checks --update)", &comparison.unlisted);
    for (check, reason) in &comparison.skipped {
        println!("  skipped: {check}: {reason}");
    }
    let skipped = match comparison.skipped.len() {
        0 => String::new(),
        count => format!(", {count} skipped"),
    };
    println!("{} passed, {} failed{skipped}", comparison.passed, comparison.failures());
}
