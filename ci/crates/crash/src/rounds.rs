//! The rounds: load, kill, start again, audit; and what must hold after each.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;
use memkv_workload::store::Failure;
use thiserror::Error;

use crate::cut;
use crate::ledger::{Counts, Key, Ledger, LedgerError, Violation};
use crate::load::{self, LoadOptions, look};
use crate::server::{Recipe, Server, ServerError, client};

/// What is asserted, as it is listed and printed.
const CHECKS: [(Check, &str); 6] = [
    (Check::Puts, "every acknowledged put is found byte-exact after SIGKILL"),
    (Check::Deletes, "every acknowledged delete stays done after SIGKILL"),
    (Check::Recovery, "a SIGKILL in the middle of recovery changes nothing"),
    (Check::Stop, "SIGTERM ends the server in order and loses nothing"),
    (Check::Lock, "a second server on the same drives is refused and harms nothing"),
    (Check::Hard, "the rounds were hard enough to mean something"),
];

#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Check {
    Puts,
    Deletes,
    Recovery,
    Stop,
    Lock,
    Hard,
}

/// How the rounds are run.
#[derive(Clone, Debug)]
pub struct RoundOptions {
    /// The server.
    pub binary: PathBuf,
    /// Rounds of load and SIGKILL.
    pub rounds: u32,
    /// Where all choices come from.
    pub seed: u64,
    /// Keys of the load.
    pub keys: u32,
    /// Threads of the load.
    pub threads: u32,
    /// Drives of this machine, formatted as one node; none: files of our own.
    pub media: Vec<String>,
    /// A round loads so many times as long, for a machine that is slow.
    pub stretch: u32,
}

/// Why the rounds could not go on.
#[derive(Debug, Error)]
pub enum RoundError {
    /// The server.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// The ledger, for other reasons than a violation.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// A block cannot be read from a server that is well.
    #[error("key {key} cannot be read from a server that is well")]
    Read {
        /// The key.
        key: Key,
        /// What the client said.
        source: Failure,
    },
    /// The loading process.
    #[error("the load: {what}")]
    Load {
        /// What was being done.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// Reads every key that was ever used, on fresh eyes: the ledger is read from its file. How many there
/// are, and what contradicts it.
///
/// # Errors
/// When a server that is well cannot be read from.
pub fn audit(address: SocketAddr, ledger: &Path) -> Result<(usize, Vec<Violation>), RoundError> {
    let client = client(address, 1)?;
    let (mut ledger, mut violations) = (Ledger::open(ledger)?, Vec::new());
    let keys: Vec<Key> = ledger.keys().collect();
    for batch in keys.chunks(16) {
        for (sight, key) in look(&client, &ledger, batch).into_iter().zip(batch) {
            let sight = sight.map_err(|source| RoundError::Read { key: *key, source })?;
            match sight.and_then(|event| ledger.note(event)) {
                Ok(()) => {}
                Err(LedgerError::Violation(violation)) => violations.push(violation),
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok((keys.len(), violations))
}

/// Everything that runs, and what was found so far.
pub struct Rounds {
    options: RoundOptions,
    rng: Rng,
    ledger: PathBuf,
    recipe: Recipe,
    violations: BTreeMap<Check, Vec<String>>,
    kills_in_recovery: u32,
    recoveries: Vec<Duration>,
}

impl Rounds {
    /// Rounds on fresh drives in `folder`.
    ///
    /// # Errors
    /// When the server cannot be configured.
    pub fn new(options: RoundOptions, folder: &Path) -> Result<Rounds, RoundError> {
        let recipe = if options.media.is_empty() {
            Recipe::new(&options.binary, folder)?
        } else {
            let rest = cut::storage(&options.media, "require", "process");
            Recipe::configured(&options.binary, folder, rest)?
        };
        Ok(Rounds {
            rng: Rng::with_seed(options.seed),
            ledger: folder.join("ledger"),
            recipe,
            violations: BTreeMap::new(),
            kills_in_recovery: 0,
            recoveries: Vec::new(),
            options,
        })
    }

    /// Runs all rounds; whether every check passed. Prints as it goes.
    ///
    /// # Errors
    /// When something fails that is not the server's promise.
    pub fn run(&mut self) -> Result<bool, RoundError> {
        let mut server = self.recipe.start()?;
        let took = server.wait_until_ready(self.recipe.address())?;
        println!("first start: ready after {} ms", took.as_millis());
        self.second_server(&mut server)?;
        for round in 1..=self.options.rounds {
            server = self.round(round, server)?;
            if round.is_multiple_of(5) {
                server = self.stop_in_order(server)?;
            }
            if !self.violations.is_empty() {
                break;
            }
        }
        drop(server);
        self.judge_hardness()?;
        Ok(self.print())
    }

    /// Load, kill, start again (sometimes killed once more on the way), audit.
    fn round(&mut self, round: u32, server: Server) -> Result<Server, RoundError> {
        let before = Ledger::open(&self.ledger)?.counts();
        let under_load = Duration::from_millis(self.rng.u64(20..1500)) * self.options.stretch;
        let load = self.start_load()?;
        thread::sleep(under_load);
        server.kill()?;
        self.end_load(load)?;
        let (recovering, twice) = self.recover()?;
        let mut server = recovering;
        let took = server.wait_until_ready(self.recipe.address())?;
        self.recoveries.push(took);
        let counts = Ledger::open(&self.ledger)?.counts();
        let keys = self.audit(if twice { Some(Check::Recovery) } else { None })?;
        println!(
            "round {round}: killed after {} ms and {} acknowledged puts, {} deletes, {} requests \
             without an answer{}; ready after {} ms; {keys} keys audited",
            under_load.as_millis(),
            counts.stored - before.stored,
            counts.deleted - before.deleted,
            counts.unanswered - before.unanswered,
            if twice { ", killed again while it recovered" } else { "" },
            took.as_millis(),
        );
        Ok(server)
    }

    /// Starts the server again; every third time it is killed within the first moments and started
    /// once more. Whether that was so.
    fn recover(&mut self) -> Result<(Server, bool), RoundError> {
        let server = self.recipe.start()?;
        if self.rng.u32(..3) != 0 {
            return Ok((server, false));
        }
        thread::sleep(Duration::from_micros(self.rng.u64(..60_000)));
        server.kill()?;
        self.kills_in_recovery += 1;
        Ok((self.recipe.start()?, true))
    }

    fn stop_in_order(&mut self, server: Server) -> Result<Server, RoundError> {
        let status = server.stop()?;
        if !status.success() {
            self.found(Check::Stop, format!("SIGTERM ended the server with {status}"));
        }
        let mut server = self.recipe.start()?;
        let took = server.wait_until_ready(self.recipe.address())?;
        let keys = self.audit(Some(Check::Stop))?;
        println!(
            "         stopped in order, ready after {} ms; {keys} keys audited",
            took.as_millis()
        );
        Ok(server)
    }

    fn second_server(&mut self, server: &mut Server) -> Result<(), RoundError> {
        let status = self.recipe.start_second()?;
        if status.success() {
            self.found(Check::Lock, "the second server ended as if all were well".to_owned());
        }
        server.wait_until_ready(self.recipe.address())?;
        println!("a second server on the same drives: {status}");
        Ok(())
    }

    /// Reads every key that was ever used.
    fn audit(&mut self, check: Option<Check>) -> Result<usize, RoundError> {
        let (keys, violations) = audit(self.recipe.address(), &self.ledger)?;
        violations.into_iter().for_each(|violation| self.broken(check, violation));
        Ok(keys)
    }

    fn broken(&mut self, check: Option<Check>, violation: Violation) {
        let promise = if violation.is_of_delete() { Check::Deletes } else { Check::Puts };
        self.found(check.unwrap_or(promise), violation.to_string());
    }

    fn found(&mut self, check: Check, what: String) {
        println!("VIOLATION: {what}");
        self.violations.entry(check).or_default().push(what);
    }

    /// Starts the load in a process of its own and waits for its first acknowledged requests.
    fn start_load(&mut self) -> Result<Child, RoundError> {
        let size = || fs::metadata(&self.ledger).map_or(0, |file| file.len());
        let before = size();
        let (threads, keys) = (self.options.threads, self.options.keys);
        let options = LoadOptions { seed: self.rng.u64(..), threads, keys };
        let load = load::spawn(self.recipe.address(), &self.ledger, options)
            .map_err(|source| RoundError::Load { what: "cannot be started", source })?;
        let begun = Instant::now();
        while size() == before && begun.elapsed() < Duration::from_secs(20) {
            thread::sleep(Duration::from_millis(2));
        }
        Ok(load)
    }

    /// The server is dead: the load sees that by itself, and is told, too.
    fn end_load(&mut self, mut load: Child) -> Result<(), RoundError> {
        drop(load.stdin.take());
        let status = load
            .wait()
            .map_err(|source| RoundError::Load { what: "cannot be waited for", source })?;
        if !status.success() {
            self.found(Check::Puts, format!("the load saw a contradiction, or failed: {status}"));
        }
        Ok(())
    }

    /// A tier that was too easy proves nothing, and says so.
    fn judge_hardness(&mut self) -> Result<(), RoundError> {
        let rounds = u64::from(self.options.rounds);
        let Counts { stored, deleted, unanswered, found, .. } =
            Ledger::open(&self.ledger)?.counts();
        self.recoveries.sort();
        let slowest = self.recoveries.last().copied().unwrap_or_default();
        println!(
            "{rounds} kills under load and {} in recovery: {stored} acknowledged puts, {deleted} \
             deletes, {unanswered} requests without an answer, {found} contents seen; slowest \
             recovery {} ms",
            self.kills_in_recovery,
            slowest.as_millis()
        );
        let floors = [
            ("acknowledged puts", stored, rounds * 50),
            ("acknowledged deletes", deleted, rounds * 5),
            ("requests without an answer", unanswered, rounds),
            ("contents seen", found, rounds * 100),
            ("kills in recovery", self.kills_in_recovery.into(), rounds / 10),
        ];
        for (what, count, floor) in floors {
            if count < floor {
                self.found(Check::Hard, format!("{count} {what}, at least {floor} are wanted"));
            }
        }
        Ok(())
    }

    fn print(&self) -> bool {
        for (check, name) in CHECKS {
            let verdict = if self.violations.contains_key(&check) { "FAILED" } else { "ok" };
            println!("test {name} ... {verdict}");
        }
        let _ = io::stdout().flush();
        self.violations.is_empty()
    }
}
