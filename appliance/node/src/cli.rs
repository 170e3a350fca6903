//! The command line of `memkv`.
//!
//! Exit codes: 0 it did what was asked, 1 it failed while running, 2 the command line or the
//! configuration is wrong and nothing was started, 3 a drive was refused and nothing was changed, 4
//! a check found damage.

use crate::config::{LogFormat, LogLevel, Overrides};
use crate::offline::args::{DriveArgs, SETUP_EXAMPLES, SETUP_HELP, SetupArgs};
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

/// How the process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It did what was asked.
    Done,
    /// It failed while running.
    Failed,
    /// The command line or the configuration is wrong.
    Usage,
    /// A drive was refused, and nothing was changed.
    Refused,
    /// A check found damage.
    Damaged,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        match exit {
            Exit::Done => Self::SUCCESS,
            Exit::Failed => Self::from(1),
            // What clap exits with, too.
            Exit::Usage => Self::from(2),
            Exit::Refused => Self::from(3),
            Exit::Damaged => Self::from(4),
        }
    }
}

const EXAMPLES: &str = "\
Examples:
  memkv start                                  serve 127.0.0.1:9900 from your data directory
  memkv start --config /etc/memkv/config.yaml  serve as a file says
  memkv demo                                   see it work: offload, onboard, crash, recover
  memkv setup --drives /dev/nvme0n1 > c.yaml   format drives, print a configuration for them
  memkv drive check --config c.yaml            read and check all that is on the drives

Exit codes:
  0  it did what was asked
  1  it failed while running
  2  the command line or the configuration is wrong; nothing was started
  3  a drive was refused; nothing was changed (setup, drive)
  4  damage was found (drive check)

Environment:
  MEMKV_AUTH_KEY  overrides network.auth_key (64 hex digits)
  MEMKV_NET       the TCP engine: epoll, uring, or auto (default): io_uring where the system has it
  RUST_LOG        what is logged, by module; --log-level overrides it";

const START_HELP: &str = "\
Serves blocks on the data address, and health, status and metrics by HTTP on the next port.

With no option it listens on 127.0.0.1:9900 and keeps blocks in a file in your data directory
($XDG_DATA_HOME/memkv or ~/.local/share/memkv; on macOS ~/Library/Application Support/memkv): the
smaller of 4 GiB and a quarter of the free space.

SIGTERM and SIGINT stop it in order. SIGHUP, like memkvctl reload, has the file of --config read
again: keys, limits, eviction and log level change while it serves, and new drives join.

Block devices (storage.mode: direct) are formatted by memkv setup first, and need hugepages for
memory.max_size unless memory.hugepages says otherwise.";

const START_EXAMPLES: &str = "\
Examples:
  memkv start
  memkv start --address 127.0.0.1:9950 --data-dir /scratch/memkv
  MEMKV_AUTH_KEY=$(openssl rand -hex 32) memkv start --address 0.0.0.0:9900";

const DEMO_EXAMPLES: &str = "\
Examples:
  memkv demo
  memkv demo --dir /scratch --seed 7";

/// A context-memory store for LLM inference: a shared tier of KV-cache blocks
#[derive(Debug, Parser)]
#[command(name = "memkv", version = memkv_admin_api::VERSION_TEXT, after_help = EXAMPLES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the server
    #[command(long_about = START_HELP, after_help = START_EXAMPLES)]
    Start(StartArgs),
    /// Format drives as a node, and print the configuration that serves them
    #[command(long_about = SETUP_HELP, after_help = SETUP_EXAMPLES)]
    Setup(SetupArgs),
    /// Look at drives, check them and wipe them, while no server has them
    Drive(DriveArgs),
    /// Show it work: replay conversations against a node, kill it in the middle, find every block
    #[command(after_help = DEMO_EXAMPLES)]
    Demo(DemoArgs),
}

/// Options of `memkv start`.
#[derive(Args, Clone, Debug, Default)]
pub struct StartArgs {
    /// The configuration file (YAML)
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The data address; overrides network.address
    #[arg(long, value_name = "IP:PORT")]
    pub address: Option<String>,
    /// Where the default data file is kept
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Start although drives of the node are missing: they are given up for good, and with them what
    /// lies on them
    #[arg(long)]
    pub degraded: bool,
    /// How log lines look: human or json [default: human on a terminal, else json]
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
    /// The least important level that is logged: error, warn, info, debug or trace [default: info]
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<LogLevel>,
}

impl StartArgs {
    /// What of it overrides the configuration.
    pub fn overrides(&self) -> Overrides {
        Overrides {
            file: self.config.clone(),
            address: self.address.clone(),
            data_dir: self.data_dir.clone(),
            degraded: self.degraded,
            log_format: self.log_format,
            log_level: self.log_level,
        }
    }
}

/// Options of `memkv demo`.
#[derive(Args, Clone, Debug)]
pub struct DemoArgs {
    /// Where the temporary data goes; needs up to 4 GiB [default: the system's temporary directory]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// The conversations are generated from this number; the same number gives the same ones
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;
    use clap::error::ErrorKind;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn start_options_become_overrides() {
        let line = "memkv start --config /c.yaml --address [::1]:1 --data-dir /d --log-format json \
                    --log-level debug --degraded";
        let cli = Cli::try_parse_from(line.split_whitespace()).expect("a good command line");
        let Command::Start(args) = cli.command else { panic!("start was asked for") };
        let overrides = args.overrides();
        assert_eq!(overrides.file, Some(PathBuf::from("/c.yaml")));
        assert_eq!(overrides.address.as_deref(), Some("[::1]:1"));
        assert_eq!(overrides.data_dir, Some(PathBuf::from("/d")));
        assert_eq!(overrides.log_format, Some(LogFormat::Json));
        assert_eq!(overrides.log_level, Some(LogLevel::Debug));
        assert!(overrides.degraded);
    }

    #[test]
    fn wrong_command_lines_are_usage_errors() {
        let table = [
            ("memkv", ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand),
            ("memkv strat", ErrorKind::InvalidSubcommand),
            ("memkv start --confg x", ErrorKind::UnknownArgument),
            ("memkv start --log-format xml", ErrorKind::ValueValidation),
            ("memkv start --config", ErrorKind::InvalidValue),
            ("memkv setup", ErrorKind::MissingRequiredArgument),
            ("memkv setup --drives", ErrorKind::InvalidValue),
            ("memkv setup --drives /d --shard-size 15", ErrorKind::ValueValidation),
            ("memkv setup --drives /d --shard-size 1025", ErrorKind::ValueValidation),
            ("memkv setup --drives /d --force --idempotent", ErrorKind::ArgumentConflict),
            ("memkv setup --drives /d --address 1.2.3.4:x", ErrorKind::ValueValidation),
            ("memkv drive", ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand),
            ("memkv drive check /d --config c", ErrorKind::ArgumentConflict),
        ];
        for (line, kind) in table {
            let error = Cli::try_parse_from(line.split(' ')).expect_err(line);
            assert_eq!(error.kind(), kind, "{line}: {error}");
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }

    #[test]
    fn version_names_the_build() {
        for flag in ["-V", "--version"] {
            let error = Cli::try_parse_from(["memkv", flag]).expect_err("clap reports it so");
            assert_eq!(error.kind(), ErrorKind::DisplayVersion);
            assert_eq!(error.to_string(), format!("memkv {}\n", memkv_admin_api::VERSION_TEXT));
            assert_eq!(error.exit_code(), 0);
        }
    }

    #[test]
    fn every_command_has_examples() {
        let command = Cli::command();
        let drive = command.find_subcommand("drive").expect("a command");
        for command in command.get_subcommands().chain(drive.get_subcommands()) {
            let help = command.clone().render_long_help().to_string();
            assert!(help.contains("Examples:"), "{} has none:\n{help}", command.get_name());
        }
    }

    #[test]
    fn help_gives_examples_and_exit_codes() {
        let help = Cli::command().render_long_help().to_string();
        for text in ["memkv start --config", "Exit codes:", "MEMKV_AUTH_KEY"] {
            assert!(help.contains(text), "{text} is missing from:\n{help}");
        }
    }
}
