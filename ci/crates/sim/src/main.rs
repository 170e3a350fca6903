//! The simulation tier: `ci/sim`.
//!
//! Runs the real sessions, store and journal on a simulated machine, many times over, each time with
//! everything drawn from a seed: the options of the run, the order of tasks, messages and completions,
//! the faults, the crashes. A model holds every answer against the promise (`model`), an oracle on the
//! disks says what a fault may have cost (`oracle`), and counters say which races and faults were met
//! (`counters`). A failure prints the seed and the command that replays it.
//!
//! Read `options` for what is drawn, `run` for the loop, `interrupt` for crashes and the final check.
#![forbid(unsafe_code)]

mod client;
mod counters;
mod interrupt;
mod latency;
mod link;
mod model;
mod options;
mod oracle;
mod replies;
mod requests;
mod run;
mod server;
mod spare;
mod stage;
mod tier;
mod values;

fn main() -> std::process::ExitCode {
    tier::main()
}
