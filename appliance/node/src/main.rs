//! The memkv binary.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use memkv_node::cli::{Cli, Command};
use memkv_node::{demo, offline, serve};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let exit = match cli.command {
        Command::Start(args) => serve::start(&args),
        Command::Setup(args) => offline::setup(&args),
        Command::Drive(args) => offline::drive(&args),
        Command::Demo(args) => demo::run(&args),
    };
    exit.into()
}
