//! `memkvctl`: store, fetch and look at blocks of memkv servers, and measure them.
//!
//! The binary is a command line ([`cli`]) around two libraries: the client engine, which talks to
//! servers ([`connect`], [`blocks`]), and the workload loops, whose reports are shown as tables or
//! JSON ([`bench`], [`replay`]). [`status`], [`top`], [`list`], [`mod@reload`] and [`drive`] ask the admin endpoints
//! instead, over plain HTTP.
//!
//! Results go to standard output, everything else to standard error; exit codes are [`error::Exit`].

#![forbid(unsafe_code)]

mod bench;
mod blocks;
mod cli;
mod connect;
mod drive;
mod duration;
mod error;
mod faults;
mod http;
mod list;
mod progress;
mod reload;
mod replay;
mod status;
mod table;
mod top;

use clap::Parser;
use cli::{Cli, Command, DriveCommand, Global, StatusArgs};
use error::{CtlError, Exit};
use std::io;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let exit = match run(&cli) {
        Ok(exit) => exit,
        // Whoever read our output has seen enough (`memkvctl status | head -1`).
        Err(CtlError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Done,
        Err(error) => {
            eprintln!("memkvctl: {}", error.story());
            error.exit()
        }
    };
    exit.into()
}

fn run(cli: &Cli) -> Result<Exit, CtlError> {
    let global = &cli.global;
    match &cli.command {
        Command::Put(args) => blocks::put(global, args),
        Command::Get(args) => blocks::get(global, args),
        Command::Exists(args) => blocks::exists(global, args),
        Command::Delete(args) => blocks::delete(global, args),
        Command::Hint(args) => blocks::hint(global, args),
        Command::Ls(args) => list::run(global, args),
        Command::Status(args) => show_status(global, args),
        Command::Top(args) => top::run(global, args),
        Command::Reload(args) => reload::run(global, args),
        Command::Drive(DriveCommand::Readmit(args)) => drive::readmit(global, args),
        Command::Bench(args) => bench::run(global, args),
        Command::Replay(args) => replay::run(global, args),
    }
}

fn show_status(global: &Global, args: &StatusArgs) -> Result<Exit, CtlError> {
    // Asking for status takes no key, so the check that servers beyond this machine have one does
    // not stand in the way when they are named here.
    let servers = match global.server.as_slice() {
        [] => connect::server_names(&connect::own_config(global, None)?),
        named => named.to_vec(),
    };
    let (reports, first) = status::ask_all(&servers, args.timeout);
    if global.json {
        blocks::say(&serde_json::json!(reports).to_string())?;
    } else {
        blocks::say(status::render(&reports).trim_end())?;
    }
    match first {
        None => Ok(Exit::Done),
        Some(error) => Err(error),
    }
}
