//! A server on drives of this machine whose power somebody else cuts: first the load, which goes on until
//! then; afterwards, on the same drives, the audit.

use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use clap::Args;

use crate::ledger::Ledger;
use crate::load::{self, LoadError, LoadOptions};
use crate::rounds::{self, RoundError};
use crate::server::{Recipe, Server, ServerError, client};

/// Threads and keys of the load.
const THREADS: u32 = 4;
const KEYS: u32 = 120;

/// Arguments of both parts.
#[derive(Args)]
pub struct CutArguments {
    /// The server's binary
    #[arg(long)]
    binary: PathBuf,
    /// Where the server's configuration and log are kept
    #[arg(long)]
    folder: PathBuf,
    /// The drives, formatted as one node
    #[arg(long, required = true)]
    media: Vec<String>,
    /// How drives with PCI addresses are driven: storage.bypass
    #[arg(long, default_value = "require")]
    bypass: String,
    /// The ledger: appended to by the load, and held against the drives by the audit
    #[arg(long)]
    ledger: PathBuf,
    /// Where all choices come from
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Why one of the parts could not be done.
#[derive(Debug, thiserror::Error)]
pub enum CutError {
    /// The server.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// The audit.
    #[error(transparent)]
    Audit(#[from] RoundError),
    /// The ledger.
    #[error(transparent)]
    Ledger(#[from] crate::ledger::LedgerError),
    /// The load.
    #[error(transparent)]
    Load(#[from] LoadError),
}

/// The configuration of a server on these drives, but for `network`.
#[must_use]
pub fn storage(media: &[String], bypass: &str, durability: &str) -> String {
    let mut rest = format!(
        "memory:\n  max_size: 192 MiB\n  hugepages: prefer\nstorage:\n  mode: direct\n  bypass: {bypass}\n  \
         durability: {durability}\n  eviction:\n    enabled: false\n  drives:\n"
    );
    for drive in media {
        // An address would be read as a number of base 60.
        rest.push_str(&format!("    - media: \"{drive}\"\n"));
    }
    rest
}

impl CutArguments {
    fn start(&self) -> Result<(Recipe, Server), ServerError> {
        let rest = storage(&self.media, &self.bypass, "power");
        let recipe = Recipe::configured(&self.binary, &self.folder, rest)?;
        let mut server = recipe.start()?;
        let took = server.wait_until_ready(recipe.address())?;
        println!("ready after {} ms", took.as_millis());
        Ok((recipe, server))
    }
}

/// Loads a server, until the end of standard input if nobody cuts the power before.
///
/// # Errors
/// When the server fails, or contradicts the ledger.
pub fn load(arguments: &CutArguments) -> Result<(), CutError> {
    let (recipe, _server) = arguments.start()?;
    let stop = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&stop);
    thread::spawn(move || {
        // Whatever ends the input ends the load.
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        told.store(true, Ordering::Relaxed);
    });
    let client = client(recipe.address(), THREADS as usize)?;
    let ledger = Ledger::open(&arguments.ledger)?;
    let options = LoadOptions { seed: arguments.seed, threads: THREADS, keys: KEYS };
    load::run(&client, ledger, options, &stop)?;
    Ok(())
}

/// Starts a server on what is left and reads everything; whether it agrees with the ledger.
///
/// # Errors
/// When the server fails.
pub fn audit(arguments: &CutArguments) -> Result<bool, CutError> {
    let (recipe, server) = arguments.start()?;
    let (keys, violations) = rounds::audit(recipe.address(), &arguments.ledger)?;
    violations.iter().for_each(|violation| println!("VIOLATION: {violation}"));
    let counts = Ledger::open(&arguments.ledger)?.counts();
    println!("{keys} keys audited, {} acknowledged puts", counts.stored);
    server.stop()?;
    Ok(violations.is_empty())
}
