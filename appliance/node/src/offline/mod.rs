//! What can be done with drives while no server has them: `memkv setup` and `memkv drive`.
//!
//! ```text
//!   paths ─► look (reads only, takes nothing) ─► refused with the reason, or
//!         ─► Bench::open (claimed and locked, as a server would) ─► format, check, wipe, retire
//! ```
//!
//! A command first looks at every drive it was given and refuses before it has changed any. What a
//! drive remembers is read by `memkv-journal`; here are paths, decisions and words.

pub mod args;
mod bind;
mod check;
mod claims;
mod controllers;
mod list;
mod look;
mod membership;
mod nvme;
mod setup;
mod wipe;
mod yaml;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use memkv_block::{BlockDevice, BlockQueue, OpenOptions};
use memkv_dma::{Hugepages, Pool, PoolConfig, PoolError};
use memkv_journal::{DriveUuid, NodeUuid};
use memkv_nvme::{BindError, PciAddress, Sysfs};
use memkv_poller::{IdlePolicy, Local, Reactor, ReactorConfig, ReactorId, Rng, SystemClock};

use crate::bypass::{Bypass, Terms, Way};
use crate::cli::Exit;
use crate::config::{Config, ConfigError, Drive, LogFormat, Overrides};
use crate::drives::{DrivesError, Opened, random};
use crate::logging;
use crate::paths::ThisMachine;
use crate::serve::chain;

pub use args::{BindArgs, ChangeArgs, DriveArgs, DriveCommand, SetupArgs, Which, WipeArgs};

/// How long a drive that is in use is asked for again: a server that was just killed holds its
/// drives until the kernel has taken its rings apart.
const PATIENCE: Duration = Duration::from_secs(5);
/// And how often.
const ASK_AGAIN: Duration = Duration::from_millis(50);
/// Memory to move bytes through, for each drive …
const POOL_A_DRIVE: u64 = 32 << 20;
/// … and in all, at least and at most.
const POOL: std::ops::RangeInclusive<u64> = 64 << 20..=512 << 20;

/// How a drive is opened by its PCI address.
const TERMS: Terms = Terms {
    queues: 1,
    timeout: Duration::from_secs(10),
    interrupts: true,
    hugepages: Hugepages::Never,
    patience: PATIENCE,
};

/// Why an offline command did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    /// Drives are refused; nothing was changed.
    #[error("refused, nothing was changed:\n  {}", .0.join("\n  "))]
    Refused(Vec<String>),
    /// The command line names what cannot be.
    #[error("{0}")]
    Usage(String),
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A drive cannot be looked at.
    #[error(transparent)]
    Look(#[from] look::LookError),
    /// A drive cannot be opened, or failed.
    #[error(transparent)]
    Drives(#[from] DrivesError),
    /// A drive was not given to a driver.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// No memory to move bytes through.
    #[error("no memory to read drives with")]
    Pool(#[from] PoolError),
    /// The log cannot be started.
    #[error(transparent)]
    Logging(#[from] logging::LoggingError),
    /// Standard output is gone.
    #[error("cannot write to standard output")]
    Output(#[source] std::io::Error),
}

impl OfflineError {
    fn exit(&self) -> Exit {
        match self {
            Self::Refused(_) => Exit::Refused,
            Self::Usage(_) | Self::Config(_) | Self::Logging(_) => Exit::Usage,
            Self::Look(_) => Exit::Refused,
            Self::Drives(DrivesError::Open { .. } | DrivesError::Bypass { .. }) => Exit::Refused,
            Self::Drives(_) | Self::Bind(_) | Self::Pool(_) | Self::Output(_) => Exit::Failed,
        }
    }
}

/// `memkv setup`.
pub fn setup(args: &SetupArgs) -> Exit {
    finish("setup", start_log("info").and_then(|()| setup::run(args)))
}

/// `memkv drive`.
pub fn drive(args: &DriveArgs) -> Exit {
    let done = start_log("warn").and_then(|()| match &args.command {
        DriveCommand::List(which) => list::list(which),
        DriveCommand::Inspect(which) => list::inspect(which),
        DriveCommand::Check(which) => check::run(which),
        DriveCommand::Wipe(args) => wipe::run(args),
        DriveCommand::Retire(args) => membership::retire(args),
        DriveCommand::Readmit(args) => membership::readmit(args),
        DriveCommand::Bind(args) => bind::bind(args),
        DriveCommand::Unbind(args) => bind::unbind(args),
    });
    finish("drive", done)
}

fn finish(command: &str, done: Result<Exit, OfflineError>) -> Exit {
    match done {
        Ok(exit) => exit,
        // Whoever read our output has seen enough (`memkv drive list | head -1`).
        Err(OfflineError::Output(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => {
            Exit::Done
        }
        Err(error) => {
            eprintln!("memkv {command}: {}", chain(&error));
            error.exit()
        }
    }
}

/// People read the log of these commands, wherever it goes.
fn start_log(level: &str) -> Result<(), OfflineError> {
    let filter = std::env::var("RUST_LOG").ok().filter(|text| !text.trim().is_empty());
    let filter = filter.unwrap_or_else(|| level.to_owned());
    logging::start(&crate::config::Log { format: Some(LogFormat::Human), filter })?;
    Ok(())
}

/// Prints to standard output.
fn say(text: &str) -> Result<(), OfflineError> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", text.trim_end()).and_then(|()| out.flush()).map_err(OfflineError::Output)
}

fn say_json(value: &impl serde::Serialize) -> Result<(), OfflineError> {
    say(&serde_json::to_string_pretty(value).expect("plain data"))
}

/// The drives that were named, or those of the configuration; none when neither was given.
fn named(which: &Which) -> Result<Vec<PathBuf>, OfflineError> {
    let Some(file) = &which.config else { return Ok(which.drives.clone()) };
    let overrides = Overrides { file: Some(file.clone()), ..Overrides::default() };
    let config = Config::load(&overrides, &ThisMachine)?;
    let (bypass, wanted) = (Bypass::new(Sysfs::default()), config.storage.bypass);
    let drives = config.storage.drives.iter().filter_map(|drive| match drive {
        // Why a drive cannot be had is said when it is looked at.
        Drive::Pci { address } => match bypass.way(*address, wanted) {
            Ok(Way::Kernel { path, .. }) => Some(path),
            _ => drive.media(),
        },
        _ => drive.media(),
    });
    let drives: Vec<PathBuf> = drives.collect();
    if drives.is_empty() {
        let what = "keeps blocks in memory: there are no drives to look at";
        return Err(OfflineError::Usage(format!("{}: {what}", file.display())));
    }
    Ok(drives)
}

/// The same, where a command needs to be told.
fn named_at_least_one(which: &Which) -> Result<Vec<PathBuf>, OfflineError> {
    let drives = named(which)?;
    if drives.is_empty() {
        return Err(OfflineError::Usage("name drives, or give --config FILE".to_owned()));
    }
    Ok(drives)
}

/// Looks at drives; the same drive twice, under whatever names, is refused.
fn look_at(drives: &[PathBuf]) -> Result<Vec<look::Sight>, OfflineError> {
    let system = claims::System::this();
    let mut seen = BTreeSet::new();
    let mut sights = Vec::with_capacity(drives.len());
    let mut refused = Vec::new();
    for path in drives {
        match look::look(path, &system) {
            Ok(sight) if !seen.insert(sight.real.clone()) => {
                let twice = format!("{} is named twice", path.display());
                return Err(OfflineError::Usage(twice));
            }
            Ok(sight) => sights.push(sight),
            Err(error) => refused.push(error.to_string()),
        }
    }
    if refused.is_empty() { Ok(sights) } else { Err(OfflineError::Refused(refused)) }
}

/// Looks at drives that are to be taken: one that is locked is looked at again for a while.
fn look_to_take(drives: &[PathBuf]) -> Result<Vec<look::Sight>, OfflineError> {
    let asked = Instant::now();
    loop {
        let sights = look_at(drives)?;
        if asked.elapsed() >= PATIENCE || !sights.iter().any(|sight| sight.locked) {
            return Ok(sights);
        }
        std::thread::sleep(ASK_AGAIN);
    }
}

/// What stands against taking a drive for oneself, if anything does.
fn in_use(sight: &look::Sight) -> Vec<String> {
    let name = sight.path.display();
    let mut reasons: Vec<String> =
        sight.claims.iter().map(|claim| format!("{name}: {claim}")).collect();
    if sight.locked {
        reasons.push(format!("{name}: a server has it; stop that first"));
    }
    reasons
}

/// Whether somebody has a drive's lock, this process included; no when that cannot be seen.
pub(crate) fn is_locked(path: &std::path::Path) -> bool {
    look_at(&[path.to_owned()]).is_ok_and(|sights| sights[0].locked)
}

/// What stands against a node taking a drive that joins it, and empties it by that: it is in use, or it
/// is not blank. One that was of the node `own` may be taken unless it is one of the drives `serving`.
pub(crate) fn against_taking(
    path: &std::path::Path,
    own: Option<(NodeUuid, &[DriveUuid])>,
) -> Vec<String> {
    let sights = match look_to_take(&[path.to_owned()]) {
        Ok(sights) => sights,
        Err(OfflineError::Refused(reasons)) => return reasons,
        Err(error) => return vec![chain(&error)],
    };
    let sight = &sights[0];
    let mut reasons = in_use(sight);
    let name = path.display();
    match (sight.holds(), &sight.inspection.superblock) {
        (look::Holds::Blank | look::Holds::Unknown, _) => {}
        (_, Ok(superblock))
            if own.is_some_and(|(node, serving)| {
                let identity = &superblock.identity;
                identity.node == node && !serving.contains(&identity.drive)
            }) => {}
        (_, Ok(superblock)) => reasons.push(format!(
            "{name}: it belongs to node {}; only a blank drive joins a node that serves (memkv drive \
             wipe), or one that the node has lost (memkvctl drive readmit)",
            superblock.identity.node
        )),
        (look::Holds::Foreign, _) => {
            let what = sight.signatures.first().map_or("data", |signature| signature.what);
            reasons.push(format!("{name}: it holds {what}; empty it first (wipefs --all)"));
        }
        (_, Err(error)) => reasons.push(format!("{name}: {error}; wipe it first (--force)")),
    }
    reasons
}

/// A reactor on this thread, and drives taken as a server takes them.
struct Bench {
    reactor: Reactor,
    pool: Pool,
    bypass: Arc<Bypass>,
}

impl Bench {
    fn new(drives: usize) -> Result<Self, OfflineError> {
        Ok(Self::of_size((drives as u64 * POOL_A_DRIVE).clamp(*POOL.start(), *POOL.end()))?)
    }

    /// One with so many bytes to move bytes through.
    fn of_size(size: u64) -> Result<Self, PoolError> {
        // Memory that lives for a minute is no reason to complain about its pages.
        let wanted = crate::hugepages::Reserved::of_this_system();
        let fits = wanted.is_some_and(|reserved| reserved.suffice(size).is_ok());
        let hugepages = if fits { Hugepages::Prefer } else { Hugepages::Never };
        let pool = Pool::new(PoolConfig { size, chunk: 2 << 20, hugepages })?;
        let mut seed = [0; 8];
        random(&mut seed);
        let config = ReactorConfig {
            id: ReactorId(0),
            idle: IdlePolicy::Adaptive,
            ..ReactorConfig::default()
        };
        let rng = Rng::seeded(u64::from_le_bytes(seed));
        let reactor = Reactor::new(config, Rc::new(SystemClock), rng);
        Ok(Self { reactor, pool, bypass: Bypass::new(Sysfs::default()) })
    }

    fn local(&self) -> Local {
        self.reactor.local()
    }

    fn run<T: 'static>(&mut self, future: impl Future<Output = T> + 'static) -> T {
        self.reactor.block_on(future)
    }

    /// Claims and locks a drive.
    fn open(&self, path: &std::path::Path) -> Result<Opened, OfflineError> {
        let name = path.display().to_string();
        let device: Arc<dyn BlockDevice> = match PciAddress::of(path) {
            Some(address) => self
                .bypass
                .open_vfio(address, &self.pool, &TERMS)
                .map_err(|source| DrivesError::Bypass { name: name.clone(), source })?,
            None => {
                let mut options = OpenOptions::new(path, self.pool.clone());
                options.patience = PATIENCE;
                memkv_block::open(options)
                    .map_err(|source| DrivesError::Open { name: name.clone(), source })?
            }
        };
        let queue: Rc<dyn BlockQueue> = device
            .open_queue(&self.local())
            .map_err(|source| DrivesError::Io { name: name.clone(), source })?;
        Ok(Opened { name, device, queue })
    }

    fn open_all(&self, sights: &[look::Sight]) -> Result<Vec<Opened>, OfflineError> {
        sights.iter().map(|sight| self.open(&sight.path)).collect()
    }
}
