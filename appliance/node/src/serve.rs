//! `memkv start`: from the command line to a running node, and back on a signal. SIGHUP has the
//! configuration read again.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::rc::Rc;

use indicatif::{ProgressBar, ProgressStyle};
use memkv_admin_api::NodeAdmin;
use memkv_admin_http::AdminServer;
use nix::sys::signal::{SigSet, Signal};

use crate::cli::{Exit, StartArgs};
use crate::config::Config;
use crate::drives::Progress;
use crate::logging;
use crate::node::Node;
use crate::paths::ThisMachine;
use crate::reload::Source;

/// Runs a node until SIGTERM or SIGINT.
pub fn start(args: &StartArgs) -> Exit {
    let config = match Config::load(&args.overrides(), &ThisMachine) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("{error}");
            return Exit::Usage;
        }
    };
    let log = match logging::start(&config.log) {
        Ok(log) => log,
        Err(error) => {
            eprintln!("memkv: {}", chain(&error));
            return Exit::Usage;
        }
    };
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    // Blocked before any thread starts, so that every thread inherits it and only `wait` gets them.
    let signals = our_signals();
    if let Err(error) = signals.thread_block() {
        tracing::error!(%error, "cannot block signals");
        return Exit::Failed;
    }
    let source =
        Source { overrides: args.overrides(), machine: Box::new(ThisMachine), log: Some(log) };
    match run(config, source, &signals) {
        Ok(()) => Exit::Done,
        Err(error) => {
            tracing::error!("{}", chain(&*error));
            Exit::Failed
        }
    }
}

fn our_signals() -> SigSet {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGHUP);
    signals
}

fn run(config: Config, source: Source, signals: &SigSet) -> Result<(), Box<dyn std::error::Error>> {
    let node = Node::start(config, &preallocation())?;
    node.reload_from(source);
    let address = node.address();
    let admin = admin_address(address);
    let http = match AdminServer::start(admin, node.admin()) {
        Ok(http) => http,
        Err(error) => {
            let _ = node.stop();
            return Err(error.into());
        }
    };
    tracing::info!(
        version = memkv_admin_api::VERSION_TEXT,
        %address,
        admin = %http.address(),
        "memkv serves"
    );
    let signal = loop {
        match signals.wait()? {
            // What became of it is in the log.
            Signal::SIGHUP => drop(node.admin().reload()),
            signal => break signal,
        }
    };
    tracing::info!(%signal, "stopping");
    node.stop()?;
    http.stop();
    tracing::info!("stopped in order");
    Ok(())
}

/// The admin endpoint is on the data port's neighbour.
fn admin_address(data: SocketAddr) -> SocketAddr {
    let mut address = data;
    address.set_port(data.port().checked_add(1).unwrap_or(0));
    address
}

/// Shows the preallocation of new files: a bar on a terminal, else a log line now and then.
fn preallocation() -> Progress {
    let bar = std::io::stderr().is_terminal().then(|| {
        let style = "{msg} {bar:30} {bytes}/{total_bytes}";
        let bar = ProgressBar::new(0);
        bar.set_style(ProgressStyle::with_template(style).expect("a good template"));
        bar
    });
    Rc::new(move |name: &str, done, total| match &bar {
        Some(bar) => {
            bar.set_message(format!("preallocating {name}"));
            bar.set_length(total);
            bar.set_position(done);
            if done == total {
                bar.finish_and_clear();
            }
        }
        None if done == total => tracing::info!(drive = name, bytes = total, "preallocated"),
        None => {}
    })
}

/// An error and its sources in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    text
}
