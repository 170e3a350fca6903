//! Measures memkv beside the least that a server over TCP costs, beside the disk's own speed and
//! beside other stores.
//!
//! All sides run at once on one machine and take turns ([`plan`], [`run`]): a plain blocking server
//! ([`plain`]) that moves the same cold bytes and does nothing else, memkv nodes as they are shipped
//! ([`servers`]), on memory and on a file, memcached, Redis and Mooncake Store ([`peers`]), and fio
//! on the file system of that file ([`fio`]). What counts is ratios of the same seconds: CPU seconds
//! per GiB of client and server together ([`cpu`], [`measure`]), GiB per second, and how long an
//! Exists takes ([`exists`]). The bars are in [`bars`], their verdicts in [`report`].
//!
//! That the bench measures the store and not a way around it is checked, too: index, leases and
//! journal must have counted every operation, and every value that comes back must be the right one.

#![forbid(unsafe_code)]

mod background;
mod bars;
mod busy;
mod cpu;
mod direct;
mod document;
mod error;
mod eviction;
mod exists;
mod fio;
mod journal;
mod load;
mod machine;
mod measure;
mod peers;
mod plain;
mod plan;
mod plot;
mod process;
mod report;
mod requests;
mod ring;
mod run;
mod section;
mod servers;
mod space;
mod stream;
mod tables;

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::error::{BenchError, doing};
use crate::plan::{IDLE, Plan};
use crate::report::Report;
use crate::run::Bench;
use crate::section::Section;
use crate::tables::Style;

/// Measures memkv beside a plain TCP server, the disk's own speed and other stores.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Measures all sides in interleaved rounds
    Run(CompareArguments),
    /// Compares the eviction policies by their prefix hits
    Eviction(EvictionArguments),
    /// Measures drives beside fio, with and without the server
    Direct(ChosenArguments),
    /// Measures the journal beside the machine's own durable writes
    Journal(RunArguments),
    /// Measures what of a drive holds values, and what writing them costs
    Space(RunArguments),
    /// Measures gets beside what a node does for itself
    Background(RunArguments),
    /// Measures what one request costs, and a key of many
    Requests(RunArguments),
    /// Prints the hugepages of 2 MiB that a run can use
    Hugepages(HugepagesArguments),
    /// Draws the pictures of a document's tables beside it
    Plot(PlotArguments),
    /// Keeps a core busy until standard input ends
    Busy,
    /// The plain server alone, until it is killed
    Plain(PlainArguments),
}

#[derive(Args)]
struct RunArguments {
    /// memkv's server
    #[arg(long)]
    binary: PathBuf,
    /// Where drives and logs are kept while it runs: on a disk
    #[arg(long)]
    folder: PathBuf,
    /// Under three minutes
    #[arg(long)]
    quick: bool,
    /// Rounds [default: 11, quick 5]
    #[arg(long)]
    rounds: Option<u32>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    /// Put the tables into this document
    #[arg(long)]
    write_docs: Option<PathBuf>,
}

#[derive(Args)]
struct ChosenArguments {
    #[command(flatten)]
    run: RunArguments,
    /// Only the rows whose names, as the checks tell them, have this in them
    #[arg(long, conflicts_with = "write_docs")]
    only: Option<String>,
}

#[derive(Args)]
struct CompareArguments {
    #[command(flatten)]
    chosen: ChosenArguments,
    /// A Python that has Mooncake
    #[arg(long)]
    mooncake: Option<PathBuf>,
}

#[derive(Args)]
struct HugepagesArguments {
    /// Only for these rows of a run
    #[arg(long)]
    only: Option<String>,
}

#[derive(Args)]
struct EvictionArguments {
    /// memkv's server
    #[arg(long)]
    binary: PathBuf,
    /// Where the server's log is kept while it runs
    #[arg(long)]
    folder: PathBuf,
    /// A trace to replay beside the named workloads
    #[arg(long)]
    trace: Option<PathBuf>,
    /// Let running nodes replay the trace, too, with every policy and room
    #[arg(long, requires = "trace")]
    replay: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    /// Put the table into this document
    #[arg(long)]
    write_docs: Option<PathBuf>,
}

#[derive(Args)]
struct PlotArguments {
    /// The document
    document: PathBuf,
}

#[derive(Args)]
struct PlainArguments {
    /// Bytes of memory for values
    #[arg(long)]
    arena_bytes: u64,
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Task::Run(arguments) => compare(&arguments),
        Task::Eviction(arguments) => compare_eviction(&arguments),
        Task::Direct(ChosenArguments { run, only }) => {
            direct::Effort::new(run.quick, run.rounds, only.as_deref()).and_then(|effort| {
                let measure =
                    |binary: &Path, folder: &Path| direct::compare(binary, folder, effort);
                part(&run, &document::DIRECT, measure)
            })
        }
        Task::Journal(arguments) => part(&arguments, &document::JOURNAL, |_, folder| {
            journal::measure(folder, journal::Effort::new(arguments.quick, arguments.rounds))
        }),
        Task::Space(arguments) => part(&arguments, &document::SPACE, |binary, folder| {
            space::measure(binary, folder, space::Effort::new(arguments.quick))
        }),
        Task::Background(arguments) => part(&arguments, &document::BACKGROUND, |binary, folder| {
            let effort = background::Effort::new(arguments.quick, arguments.rounds);
            background::measure(binary, folder, effort)
        }),
        Task::Requests(arguments) => part(&arguments, &document::REQUESTS, |binary, folder| {
            let effort = requests::Effort::new(arguments.quick, arguments.rounds);
            requests::measure(binary, folder, effort)
        }),
        Task::Hugepages(HugepagesArguments { only }) => {
            let run = Plan::new(false, None, only.as_deref()).hugepages();
            println!("{}", run.max(direct::HUGEPAGES));
            Ok(true)
        }
        Task::Plot(PlotArguments { document }) => plot::draw(&document).map(|()| true),
        Task::Busy => busy::work().map(|()| true).map_err(doing("standard input")),
        Task::Plain(arguments) => {
            plain::serve(arguments.arena_bytes).map(|()| true).map_err(doing("the plain server"))
        }
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
            eprintln!("bench: {line}");
            exit_code(&error)
        }
    }
}

/// As of a mistake on the command line: 2, like clap's; else 1.
fn exit_code(error: &BenchError) -> ExitCode {
    match error {
        BenchError::NoRow(_) => ExitCode::from(2),
        _ => ExitCode::FAILURE,
    }
}

fn compare_eviction(arguments: &EvictionArguments) -> Result<bool, BenchError> {
    let io = |error| doing("the bench's folder")(error);
    fs::create_dir_all(&arguments.folder).map_err(io)?;
    let folder = tempfile::Builder::new().prefix("bench-").tempdir_in(&arguments.folder);
    let folder = folder.map_err(io)?;
    let extent = eviction::Extent { trace: arguments.trace.as_deref(), replay: arguments.replay };
    let comparison = match eviction::compare(&arguments.binary, folder.path(), extent) {
        Ok(comparison) => comparison,
        Err(error) => {
            // Its log says more.
            let _ = folder.keep();
            return Err(error);
        }
    };
    if arguments.json {
        let json = serde_json::to_string_pretty(&comparison);
        println!("{}", json.expect("a comparison is plain data"));
    } else {
        print!("{}", eviction::table::all(&comparison, Style::Terminal));
        println!();
        for (name, good) in comparison.checks() {
            println!("test {name} ... {}", if good { "ok" } else { "FAILED" });
        }
    }
    if let Some(document) = &arguments.write_docs {
        let tables = eviction::table::all(&comparison, Style::Markdown);
        document::write(document, &document::EVICTION, &tables)?;
    }
    Ok(comparison.checks().into_iter().all(|(_, good)| good))
}

/// A new folder on a disk.
fn make_folder(arguments: &RunArguments) -> Result<(tempfile::TempDir, PathBuf), BenchError> {
    let io = |error| doing("the bench's folder")(error);
    fs::create_dir_all(&arguments.folder).map_err(io)?;
    machine::on_disk(&arguments.folder)?;
    let folder = tempfile::Builder::new().prefix("bench-").tempdir_in(&arguments.folder);
    let folder = folder.map_err(io)?;
    let path = folder.path().canonicalize().map_err(io)?;
    Ok((folder, path))
}

/// One of the parts that are told as a section.
fn part(
    arguments: &RunArguments,
    marks: &document::Marks,
    measure: impl FnOnce(&Path, &Path) -> Result<Section, BenchError>,
) -> Result<bool, BenchError> {
    let (folder, path) = make_folder(arguments)?;
    let section = match measure(&arguments.binary, &path) {
        Ok(section) => section,
        Err(error) => {
            // Its logs say more.
            let _ = folder.keep();
            return Err(error);
        }
    };
    if arguments.json {
        let json = serde_json::to_string_pretty(&section);
        println!("{}", json.expect("a section is plain data"));
    } else {
        print!("{}", section.text(Style::Terminal));
        println!();
        for check in &section.checks {
            println!("test {} ... {}", check.name, check.outcome);
        }
    }
    if let Some(document) = &arguments.write_docs {
        document::write(document, marks, &section.text(Style::Markdown))?;
    }
    Ok(section.is_good())
}

fn compare(arguments: &CompareArguments) -> Result<bool, BenchError> {
    let CompareArguments { chosen: ChosenArguments { run: arguments, only }, mooncake } = arguments;
    let (only, python) = (only.as_deref(), mooncake.as_deref());
    let plan = Plan::new(arguments.quick, arguments.rounds, only);
    let others = exists::is_wanted(&plan) || load::is_wanted(&plan);
    if plan.rows().is_empty() && !plan.wants(IDLE) && !others {
        return Err(BenchError::NoRow(only.unwrap_or_default().to_owned()));
    }
    let (folder, path) = make_folder(arguments)?;
    let bench = Bench::start(&arguments.binary, python, &path, plan.clone());
    let measured = bench
        .and_then(Bench::run)
        .and_then(|outcome| Ok((outcome, load::measure(&arguments.binary, &path, &plan)?)));
    let (outcome, loads) = match measured {
        Ok(measured) => measured,
        Err(error) => {
            // Its logs say more.
            let _ = folder.keep();
            return Err(error);
        }
    };
    let report = Report::of(machine::line(), &plan, outcome, loads);
    if arguments.json {
        let json = serde_json::to_string_pretty(&report);
        println!("{}", json.expect("a report is plain data"));
    } else {
        print!("{}", tables::all(&report, Style::Terminal));
        println!();
        for check in &report.checks {
            println!("test {} ... {}", check.name, check.outcome);
        }
    }
    if let Some(document) = &arguments.write_docs {
        document::write(document, &document::RUN, &tables::all(&report, Style::Markdown))?;
        plot::draw(document)?;
    }
    Ok(report.is_good())
}
