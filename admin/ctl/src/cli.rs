//! The command line of `memkvctl`.

use crate::duration::parse_duration;
use clap::{Args, Parser, Subcommand, ValueEnum};
use memkv_admin_api::size::parse_size;
use std::ffi::OsString;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::time::Duration;

const AFTER_HELP: &str = "\
Servers and keys come from the client configuration (YAML named by --config or MEMKV_CONFIG), then
from MEMKV_* variables (MEMKV_SERVERS, MEMKV_AUTH_KEY, ...), then from the options here. With none
of them: 127.0.0.1:9900 and the development key.

Examples:
  memkvctl put greeting hello.bin
  memkvctl get greeting -o copy.bin
  memkvctl ls llama-70b --limit 20
  memkvctl status --server 10.0.0.1:9900,10.0.0.2:9900
  memkvctl top --interval 5s
  memkvctl reload --server 10.0.0.1:9900
  memkvctl drive readmit /dev/nvme1n1 --server 10.0.0.1:9900
  memkvctl bench --sizes 64KiB,4MiB --ops put,get --seconds 5
  memkvctl replay conversation_trace.jsonl.zst --block-bytes 64KiB --until 600s --verify

Exit codes:
  0  done
  1  a key is missing, or something failed
  2  the command line or the client configuration is wrong
  3  a server cannot be reached
  4  some of what changed needs a restart (reload)";

const PUT_EXAMPLES: &str = "\
Examples:
  memkvctl put greeting hello.bin
  echo hello | memkvctl put greeting --replace --ttl 1h";

const GET_EXAMPLES: &str = "\
Examples:
  memkvctl get greeting -o copy.bin
  memkvctl get greeting | sha256sum";

const EXISTS_EXAMPLES: &str = "\
Examples:
  memkvctl exists greeting farewell --namespace llama-70b";

const DELETE_EXAMPLES: &str = "\
Examples:
  memkvctl delete greeting farewell";

const HINT_HELP: &str = "\
A hint moves blocks in the order in which the server evicts, and nothing else. Keys are named in
the order of their chain. `release`: they go before all others, unless somebody reads them.
`retain`: they go after all others, for as long as the server keeps what is retained. `pin`: the
same for a time.

Examples:
  memkvctl hint retain system-0 system-1 system-2
  memkvctl hint pin --for 30m system-0 system-1 system-2
  memkvctl hint release chat-17-0 chat-17-1";

const DRIVE_EXAMPLES: &str = "\
Drives that no server has are looked after by `memkv drive`.

Examples:
  memkvctl status
  memkvctl drive readmit /dev/nvme1n1 --server 10.0.0.1:9900";

const LS_HELP: &str = "\
What is listed was there at some moment of the listing: the server goes on meanwhile, and is asked
for a page at a time. Keys are shown with bytes that are not printable escaped.

Examples:
  memkvctl ls
  memkvctl ls llama-70b --limit 20
  memkvctl ls llama-70b --limit 0 --json --server 10.0.0.1:9900";

const STATUS_EXAMPLES: &str = "\
Examples:
  memkvctl status
  memkvctl status --server 10.0.0.1:9900,10.0.0.2:9900 --json";

const TOP_HELP: &str = "\
Rates are those between two answers of a server; the first screen has those since its start. On a
terminal q ends it. Where the output is no terminal, one text follows the other, or with --json one
line with a list of servers, all rates per second. A reactor is busy when it finds work, and polls
also while it is not; by poll: commands of drives that have ended, by passes over its pollers.

Examples:
  memkvctl top
  memkvctl top --interval 5s --server 10.0.0.1:9900,10.0.0.2:9900
  memkvctl top --count 1 --json";

const RELOAD_HELP: &str = "\
Servers read the file that they were started with (memkv start --config) again, as by SIGHUP. The
file is checked as a whole first: when something is wrong with it, nothing is changed and the
answer says what and where. Else it holds from now on, but for the keys that are named as needing a
restart. A client whose key is no longer in it is served to the end of what it has begun.

Live: network.auth_key and network.keys, limits, namespaces, storage.eviction, log.level, and drives
that are new under storage.drives: blank ones are formatted and join the node. One that failed and
is listed no more is given up.

Examples:
  memkvctl reload
  memkvctl reload --server 10.0.0.1:9900,10.0.0.2:9900 --json";

const READMIT_HELP: &str = "\
A drive that failed, or that the node has lost, is emptied and joins the node again; the node goes
on serving. It may be the same hardware, or a blank drive in its place. The drive is listed under
storage.drives of the file that the server was started with, and PATH is as it stands there. What is
left on it is lost to the node already. A drive that serves is never touched.

Examples:
  memkvctl drive readmit /dev/nvme1n1
  memkvctl drive readmit /dev/nvme1n1 --server 10.0.0.1:9900 --json";

const BENCH_EXAMPLES: &str = "\
Examples:
  memkvctl bench --sizes 64KiB,4MiB --ops put,get --seconds 5
  memkvctl bench --depth 16 --depth-by threads --verify --json";

const REPLAY_EXAMPLES: &str = "\
Examples:
  memkvctl replay conversation_trace.jsonl.zst --block-bytes 64KiB --until 600s --verify";

/// Store, fetch and look at blocks of a memkv server, and measure it
#[derive(Debug, Parser)]
#[command(name = "memkvctl", version = memkv_admin_api::VERSION_TEXT, after_help = AFTER_HELP)]
pub struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Args, Clone, Debug, Default)]
pub struct Global {
    /// The server's data address; may be repeated, or name several with commas
    #[arg(long, short, global = true, value_name = "HOST:PORT", value_delimiter = ',')]
    pub server: Vec<String>,
    /// The namespace of the keys
    #[arg(long, global = true, value_name = "NAME")]
    pub namespace: Option<String>,
    /// The client configuration (YAML); instead of MEMKV_CONFIG
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print JSON instead of text
    #[arg(long, global = true)]
    pub json: bool,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Store a file, or standard input, as one block
    #[command(after_help = PUT_EXAMPLES)]
    Put(PutArgs),
    /// Fetch a block to a file or standard output
    #[command(after_help = GET_EXAMPLES)]
    Get(GetArgs),
    /// Ask whether keys are there; exits with 1 when one is not
    #[command(after_help = EXISTS_EXAMPLES)]
    Exists(KeysArgs),
    /// Forget blocks; exits with 1 when one was not there
    #[command(after_help = DELETE_EXAMPLES)]
    Delete(KeysArgs),
    /// Say that a chain of blocks will be wanted, or not; exits with 1 when one was not there
    #[command(after_help = HINT_HELP)]
    Hint(HintArgs),
    /// List the namespaces of servers, or the keys of one
    #[command(after_help = LS_HELP)]
    Ls(ListArgs),
    /// Show how servers are
    #[command(after_help = STATUS_EXAMPLES)]
    Status(StatusArgs),
    /// Show what servers do, again and again
    #[command(after_help = TOP_HELP)]
    Top(TopArgs),
    /// Have servers read their configuration again
    #[command(after_help = RELOAD_HELP)]
    Reload(ReloadArgs),
    /// Change the drives of a server that runs
    #[command(subcommand, after_help = DRIVE_EXAMPLES)]
    Drive(DriveCommand),
    /// Measure throughput, latency and CPU cost of put, get and exists
    #[command(after_help = BENCH_EXAMPLES)]
    Bench(BenchArgs),
    /// Replay the trace of a serving cluster and count prefix hits
    #[command(after_help = REPLAY_EXAMPLES)]
    Replay(ReplayArgs),
}

/// Options of `put`.
#[derive(Args, Debug)]
pub struct PutArgs {
    /// The key, 1 to 512 bytes
    pub key: OsString,
    /// The file, at most 64 MiB; `-` is standard input
    #[arg(default_value = "-")]
    pub file: PathBuf,
    /// Store these bytes in place of a block that is there
    #[arg(long)]
    pub replace: bool,
    /// Forget the block after this time
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub ttl: Option<Duration>,
    /// Answer when the block survives a power cut, whatever the server promises to others
    #[arg(long)]
    pub durable: bool,
    /// Evict it after all others for this time; the server has a limit
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub pin: Option<Duration>,
    /// The key of the block before it in its chain
    #[arg(long, value_name = "KEY")]
    pub parent: Option<OsString>,
}

/// Options of `get`.
#[derive(Args, Debug)]
pub struct GetArgs {
    /// The key
    pub key: OsString,
    /// The file to write [default: standard output]
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// Keys.
#[derive(Args, Debug)]
pub struct KeysArgs {
    /// The keys
    #[arg(required = true)]
    pub keys: Vec<OsString>,
}

/// What a hint says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Saying {
    /// They will be wanted
    Retain,
    /// Nobody will want them again
    Release,
    /// They will be wanted for a time
    Pin,
}

/// Options of `hint`.
#[derive(Args, Debug)]
pub struct HintArgs {
    /// What is said of the blocks
    #[arg(value_enum)]
    pub saying: Saying,
    /// For how long they are pinned; the server has a limit
    #[arg(long = "for", value_name = "TIME", value_parser = parse_duration,
          required_if_eq("saying", "pin"))]
    pub time: Option<Duration>,
    /// The keys, in the order of the chain
    #[arg(required = true)]
    pub keys: Vec<OsString>,
}

/// Options of `ls`.
#[derive(Args, Debug)]
pub struct ListArgs {
    /// The namespace whose keys are listed [default: namespaces are listed instead]
    pub namespace: Option<String>,
    /// Only what this tenant has
    #[arg(long, value_name = "NAME")]
    pub tenant: Option<String>,
    /// Most keys listed of each server; 0 is all
    #[arg(long, value_name = "N", default_value = "1000")]
    pub limit: usize,
    /// How long to wait for each page
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "5s")]
    pub timeout: Duration,
}

/// Options of `status`.
#[derive(Args, Debug)]
pub struct StatusArgs {
    /// How long to wait for each server
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "5s")]
    pub timeout: Duration,
}

/// Options of `top`.
#[derive(Args, Debug)]
pub struct TopArgs {
    /// Time between two looks
    #[arg(long, short = 'i', value_name = "TIME", value_parser = pause, default_value = "1s")]
    pub interval: Duration,
    /// Print so many texts and end, also on a terminal
    #[arg(long, short = 'n', value_name = "N")]
    pub count: Option<NonZeroU32>,
    /// How long to wait for each server
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "5s")]
    pub timeout: Duration,
}

/// Options of `reload`.
#[derive(Args, Debug)]
pub struct ReloadArgs {
    /// How long to wait for each server
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "30s")]
    pub timeout: Duration,
}

/// What is done with a drive.
#[derive(Debug, Subcommand)]
pub enum DriveCommand {
    /// Take in a drive that failed or was lost, emptied
    #[command(after_help = READMIT_HELP)]
    Readmit(ReadmitArgs),
}

/// Options of `drive readmit`.
#[derive(Args, Debug)]
pub struct ReadmitArgs {
    /// The drive, as storage.drives names it
    pub path: String,
    /// How long to wait: the drive is formatted
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "10m")]
    pub timeout: Duration,
}

/// What a bench measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Op {
    /// Store blocks
    Put,
    /// Fetch blocks
    Get,
    /// Ask for blocks
    Exists,
}

/// How several operations are in flight per connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DepthBy {
    /// One thread sends batches
    Batch,
    /// One thread per operation in flight, each with a connection
    Threads,
}

/// Options of `bench`.
#[derive(Args, Debug)]
pub struct BenchArgs {
    /// Sizes of values
    #[arg(long, value_name = "SIZE,...", value_delimiter = ',', value_parser = value_size,
          default_value = "64KiB,1MiB,4MiB")]
    pub sizes: Vec<NonZeroUsize>,
    /// Operations to measure, in this order for each size
    #[arg(long, value_name = "OP,...", value_delimiter = ',', default_value = "put,get,exists")]
    pub ops: Vec<Op>,
    /// Operations in flight per connection
    #[arg(long, value_name = "N", default_value = "4")]
    pub depth: NonZeroUsize,
    /// How they are kept in flight
    #[arg(long, value_name = "HOW", default_value = "batch")]
    pub depth_by: DepthBy,
    /// Connections
    #[arg(long, value_name = "N", default_value = "1")]
    pub connections: NonZeroUsize,
    /// How long each measurement takes
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "5s")]
    pub seconds: Duration,
    /// Bytes that the keys of one measurement hold on the servers
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value = "512MiB")]
    pub stored: u64,
    /// Client memory that values are sent from and received into; larger than the caches
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value = "256MiB")]
    pub memory: u64,
    /// Check every byte that comes back; the cost shows in the client's CPU time
    #[arg(long)]
    pub verify: bool,
    /// How long to wait for a server that does not answer yet: it may just be starting
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "15s")]
    pub wait: Duration,
    /// What the keys begin with
    #[arg(long, value_name = "TEXT", default_value = "bench")]
    pub label: String,
}

/// Options of `replay`.
#[derive(Args, Debug)]
pub struct ReplayArgs {
    /// The trace: JSON lines as Mooncake publishes them, plain or compressed with zstd
    pub trace: PathBuf,
    /// Bytes of one block's value
    #[arg(long, value_name = "SIZE", value_parser = value_size, default_value = "64KiB")]
    pub block_bytes: NonZeroUsize,
    /// Trace seconds per second [default: as fast as it goes]
    #[arg(long, value_name = "FACTOR", value_parser = speed)]
    pub speed: Option<f64>,
    /// Stop at this time of the trace
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub until: Option<Duration>,
    /// Stop after this time on the clock
    #[arg(long = "for", value_name = "TIME", value_parser = parse_duration)]
    pub wall: Option<Duration>,
    /// Check every byte that comes back
    #[arg(long)]
    pub verify: bool,
    /// Requests served side by side, each on a connection of its own
    #[arg(long, value_name = "N", default_value = "4")]
    pub connections: NonZeroUsize,
    /// How long to wait for a server that does not answer yet: it may just be starting
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "15s")]
    pub wait: Duration,
    /// What the keys begin with; equal labels find each other's blocks
    #[arg(long, value_name = "TEXT", default_value = "replay")]
    pub label: String,
}

/// A size of one value: 1 byte to 64 MiB.
fn value_size(text: &str) -> Result<NonZeroUsize, String> {
    let bytes = parse_size(text).map_err(|error| error.to_string())?;
    let fits = usize::try_from(bytes).ok().filter(|_| bytes <= memkv_wire::MAX_VALUE);
    fits.and_then(NonZeroUsize::new).ok_or_else(|| "a value has 1 byte to 64 MiB".to_owned())
}

/// A time that lets others do something meanwhile.
fn pause(text: &str) -> Result<Duration, String> {
    let pause = parse_duration(text).map_err(|error| error.to_string())?;
    if pause >= Duration::from_millis(1) { Ok(pause) } else { Err("at least 1ms".to_owned()) }
}

fn speed(text: &str) -> Result<f64, String> {
    let factor: f64 = text.trim_end_matches('x').parse().map_err(|_| "not a number".to_owned())?;
    if factor.is_finite() && factor > 0.0 {
        Ok(factor)
    } else {
        Err("a speed is above 0".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(line: &str) -> Cli {
        Cli::try_parse_from(line.split(' ')).unwrap_or_else(|error| panic!("{line}: {error}"))
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_examples() {
        for command in Cli::command().get_subcommands() {
            let help = command.clone().render_long_help().to_string();
            assert!(help.contains("Examples:"), "{} has none:\n{help}", command.get_name());
        }
    }

    #[test]
    fn top_does_not_ask_without_a_pause() {
        let Command::Top(args) = parse("memkvctl top -i 1ms").command else { panic!("top") };
        assert_eq!(args.interval, Duration::from_millis(1));
        for no_pause in ["0", "0.5ms"] {
            let refused = Cli::try_parse_from(["memkvctl", "top", "--interval", no_pause]);
            assert!(refused.expect_err(no_pause).to_string().contains("at least 1ms"));
        }
    }

    #[test]
    fn servers_repeat_and_split() {
        let cli = parse("memkvctl status --server a:1,b:2 --server c:3 --json");
        assert_eq!(cli.global.server, ["a:1", "b:2", "c:3"]);
        assert!(cli.global.json);
        let cli = parse("memkvctl --server a:1 exists k");
        assert_eq!(cli.global.server, ["a:1"]);
    }

    #[test]
    fn bench_and_replay_read_their_literals() {
        let cli = parse("memkvctl bench --sizes 64KiB,4MiB --ops get --depth 8 --seconds 250ms");
        let Command::Bench(bench) = cli.command else { panic!("bench was asked for") };
        assert_eq!(bench.sizes.iter().map(|s| s.get()).collect::<Vec<_>>(), [65_536, 4 << 20]);
        assert_eq!(bench.ops, [Op::Get]);
        assert_eq!((bench.depth.get(), bench.seconds), (8, Duration::from_millis(250)));

        let line =
            "memkvctl replay T --block-bytes 64KiB --until 600s --for 120s --speed 10x --verify";
        let Command::Replay(replay) = parse(line).command else { panic!("replay was asked for") };
        assert_eq!(replay.block_bytes.get(), 65_536);
        assert_eq!(replay.until, Some(Duration::from_secs(600)));
        assert_eq!(replay.wall, Some(Duration::from_secs(120)));
        assert_eq!(replay.speed, Some(10.0));
        assert!(replay.verify);
    }

    #[test]
    fn wrong_literals_are_usage_errors() {
        for line in [
            "memkvctl bench --sizes 65MiB",
            "memkvctl bench --sizes 0",
            "memkvctl bench --depth 0",
            "memkvctl bench --ops push",
            "memkvctl replay T --speed 0",
            "memkvctl replay T --until soon",
            "memkvctl replay",
            "memkvctl exists",
            "memkvctl frobnicate",
        ] {
            let error = Cli::try_parse_from(line.split(' ')).expect_err(line);
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }
}
