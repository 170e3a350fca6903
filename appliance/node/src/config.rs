//! The configuration of a node.
//!
//! Four sources, each overriding the one before: defaults that make `memkv start` work on a laptop
//! with nothing set, the YAML file named by `--config`, the environment (`MEMKV_AUTH_KEY`, `RUST_LOG`),
//! and the options of the command line. A file is optional, and so is every key in it.
//!
//! The way from text to [`Config`]:
//!
//! ```text
//! file ─► serde_yaml::Value ─► tree (paths, types, ranges) ─► file::FileConfig ─► resolve ─► Config
//!                                     │                                             │
//!                                     └───────────► problems, with lines ◄──────────┘
//! ```
//!
//! [`Config`] is complete and consistent: whoever gets one need not check anything again. Everything
//! asked of the machine (memory, cores, free space, environment) comes in through [`Machine`], so the
//! tests decide what the machine is like.

mod change;
mod file;
mod locate;
mod problem;
mod resolve;
pub mod schema;
#[cfg(test)]
mod tests;
mod tree;

pub use change::Changes;
pub use file::parse_address;
pub use problem::{ConfigError, Origin, Problem, ProblemKind, Warning};

pub use resolve::AUTH_KEY_VARIABLE;

use crate::paths::Machine;
use memkv_nvme::PciAddress;
use memkv_session::NamespaceLimits;
use memkv_wire::SharedKey;
use serde_yaml::Value;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tree::Report;

/// The largest file that is read as a configuration.
const FILE_MAX: u64 = 1 << 20;

/// Everything a node needs to know to start.
#[derive(Clone, Debug)]
pub struct Config {
    /// The file it was read from.
    pub file: Option<PathBuf>,
    /// Start without the drives of the node that are missing, and give them up.
    pub degraded: bool,
    /// Where the node listens and whom it believes.
    pub network: Network,
    /// The memory pool.
    pub memory: Memory,
    /// What is stored where.
    pub storage: Storage,
    /// How many reactors run.
    pub reactors: usize,
    /// What a reactor does when there is nothing to do.
    pub idle: IdlePolicy,
    /// What one client may take.
    pub limits: Limits,
    /// How long the blocks of single namespaces live.
    pub namespaces: Vec<NamespaceLimits>,
    /// What is logged, and how.
    pub log: Log,
    /// What is odd but no error; to be logged at start.
    pub warnings: Vec<Warning>,
}

/// Where the node listens and whom it believes.
#[derive(Clone, Debug)]
pub struct Network {
    /// The data address; port 0 lets the system choose.
    pub address: SocketAddr,
    /// The keys that are valid, at least one. A key's id appears in a client's first frame and fixes
    /// its tenant.
    pub keys: Vec<KeyEntry>,
    /// How the kernel is asked to move bytes.
    pub engine: memkv_net::tcp::Driver,
    /// Clients on this machine may read drives in memory for themselves.
    pub shm: bool,
}

/// A key that is valid.
#[derive(Clone, Debug)]
pub struct KeyEntry {
    /// The id by which clients name it; 0 is `network.auth_key` or the development key.
    pub id: u32,
    /// The key.
    pub key: SharedKey,
    /// Whose it is.
    pub tenant: String,
}

/// The tenant of `network.auth_key` and of the development key.
pub const DEFAULT_TENANT: &str = "default";

/// The memory pool.
#[derive(Clone, Debug)]
pub struct Memory {
    /// The size of a chunk: a power of two, 256 KiB to 4 MiB.
    pub block_size: u64,
    /// The size of the pool: whole chunks.
    pub max_size: u64,
    /// What pages it is made of.
    pub hugepages: HugepageUse,
}

/// What is stored where.
#[derive(Clone, Debug)]
pub struct Storage {
    /// What the drives are.
    pub mode: StorageMode,
    /// The largest extent: a power of two, 16 KiB to 4 MiB.
    pub block_size: u64,
    /// The drives, at least one.
    pub drives: Vec<Drive>,
    /// Where the drive is that nobody named: this folder is made when it is not there. Folders that
    /// are named are not, for their file system may just not be mounted.
    pub data_directory: Option<PathBuf>,
    /// Whether drives that are named by their PCI addresses are driven past the kernel.
    pub bypass: BypassUse,
    /// How long a drive may leave its oldest command unanswered before it is taken offline.
    pub drive_timeout: Duration,
    /// What happens when they fill.
    pub eviction: Eviction,
    /// What an acknowledgement promises.
    pub durability: Durability,
    /// Telling drives what is free.
    pub trim: Trim,
    /// Bytes a second that are read to find rotten ones; 0 is none.
    pub scrub_bytes_per_second: u64,
}

/// Telling drives what is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trim {
    /// Whether they are told.
    pub enabled: bool,
    /// At the latest so long after it was freed, in milliseconds.
    pub interval_ms: u64,
    /// At once when so many freed extents wait.
    pub extents: u32,
}

/// One drive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Drive {
    /// An NVMe controller, as large as its first namespace.
    Pci {
        /// Where it is on the bus.
        address: PciAddress,
    },
    /// A block device, as large as it is.
    Device {
        /// Its path.
        media: PathBuf,
    },
    /// A file.
    File {
        /// Its path.
        media: PathBuf,
        /// The size to create it with, or to expect; none takes an existing file as it is.
        size: Option<u64>,
    },
    /// Memory, gone with the process.
    Memory {
        /// Its size.
        size: u64,
    },
}

impl Drive {
    /// What its device is called: its path, its PCI address, or `memory`.
    pub fn name(&self) -> String {
        match self {
            Self::Pci { address } => address.to_string(),
            Self::Device { media } | Self::File { media, .. } => media.display().to_string(),
            Self::Memory { .. } => "memory".to_owned(),
        }
    }

    /// How it is named to commands that look at drives: its path, or its PCI address. What is in memory
    /// has no such name.
    pub fn media(&self) -> Option<PathBuf> {
        match self {
            Self::Pci { address } => Some(PathBuf::from(address.to_string())),
            Self::Device { media } | Self::File { media, .. } => Some(media.clone()),
            Self::Memory { .. } => None,
        }
    }
}

/// What happens when drives fill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Eviction {
    /// Off means that a full node answers `Full`.
    pub enabled: bool,
    /// Percent of units in use above which eviction begins.
    pub high: u8,
    /// Percent of units in use at which it rests; below `high`.
    pub low: u8,
    /// Which block leaves first.
    pub policy: EvictionPolicy,
    /// For how long blocks are kept that an engine retains.
    pub retain: Duration,
    /// The longest time for which blocks are pinned.
    pub pin_max: Duration,
}

/// What one connection may take, and how many there may be. Each has a counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections at a time.
    pub max_connections: u32,
    /// Requests in flight per connection.
    pub max_requests: u32,
    /// Credits per connection: inline puts (of up to 256 KiB) it may have under way.
    pub credits: u32,
    /// The largest value, bytes; at most 64 MiB.
    pub max_value: u64,
    /// The longest lease, milliseconds.
    pub lease_ms: u32,
    /// The deadline of a request that names none, milliseconds.
    pub request_timeout_ms: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: 1024,
            max_requests: 1024,
            credits: 64,
            max_value: memkv_wire::MAX_VALUE,
            lease_ms: 60_000,
            request_timeout_ms: 10_000,
        }
    }
}

/// What is logged, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// For people or for machines; none lets the terminal decide.
    pub format: Option<LogFormat>,
    /// What is shown: a level, or directives per module as in `RUST_LOG`.
    pub filter: String,
}

/// An enum that a configuration names by a word.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident {
        $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)+
    }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$variant_doc])* $variant,)+ }

        impl $name {
            /// The words of the configuration.
            pub const WORDS: [(&str, Self); [$($word),+].len()] = [$(($word, Self::$variant)),+];

            /// The word of this value.
            pub fn word(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }

        impl std::str::FromStr for $name {
            type Err = UnknownWord;

            fn from_str(text: &str) -> Result<Self, UnknownWord> {
                let found = Self::WORDS.iter().find(|(word, _)| *word == text);
                found.map(|(_, value)| *value).ok_or(UnknownWord { choices: &[$($word),+] })
            }
        }
    };
}

/// A word that is not one of the choices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected one of: {}", choices.join(", "))]
pub struct UnknownWord {
    choices: &'static [&'static str],
}

words! {
    /// What the drives are.
    StorageMode {
        /// Block devices, owned whole.
        Direct = "direct",
        /// Files in a file system.
        File = "file",
        /// Memory.
        Memory = "memory",
    }
}
words! {
    /// Whether drives that are named by their PCI addresses are driven past the kernel.
    BypassUse {
        /// Where they can be, else by their block devices.
        Prefer = "prefer",
        /// They are, or the node does not start.
        Require = "require",
        /// By their block devices.
        Never = "never",
    }
}
words! {
    /// What an acknowledgement promises.
    Durability {
        /// It survives a killed process.
        Process = "process",
        /// It survives a power cut.
        Power = "power",
    }
}
words! {
    /// Which block leaves first.
    EvictionPolicy {
        /// The end of the chain that is worth least: learned from which chains come back.
        Chain = "chain",
        /// The one that was used longest ago.
        Lru = "lru",
        /// The oldest one that was not used again; what is used once does not displace the rest.
        S3Fifo = "s3-fifo",
    }
}
words! {
    /// What a reactor does when there is nothing to do.
    IdlePolicy {
        /// It polls on: lowest latency, a whole core each.
        Busy = "busy",
        /// It sleeps until something happens.
        Adaptive = "adaptive",
    }
}
words! {
    /// What pages the memory pool is made of.
    HugepageUse {
        /// Hugepages where there are enough, else ordinary ones.
        Prefer = "prefer",
        /// Hugepages, or the node does not start.
        Require = "require",
        /// Ordinary pages.
        Never = "never",
    }
}
words! {
    /// How log lines look.
    LogFormat {
        /// For people.
        Human = "human",
        /// One JSON object per line.
        Json = "json",
    }
}
words! {
    /// The least important level that is shown.
    LogLevel {
        /// Something failed.
        Error = "error",
        /// Something is odd.
        Warn = "warn",
        /// Something worth knowing happened.
        Info = "info",
        /// What helps to find a fault.
        Debug = "debug",
        /// Everything.
        Trace = "trace",
    }
}

/// What the command line sets.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// `--config`.
    pub file: Option<PathBuf>,
    /// `--address`.
    pub address: Option<String>,
    /// `--data-dir`.
    pub data_dir: Option<PathBuf>,
    /// `--degraded`.
    pub degraded: bool,
    /// `--log-format`.
    pub log_format: Option<LogFormat>,
    /// `--log-level`.
    pub log_level: Option<LogLevel>,
}

impl Config {
    /// Reads the file, if one is named, and settles everything else.
    pub fn load(overrides: &Overrides, machine: &dyn Machine) -> Result<Self, ConfigError> {
        let text = match &overrides.file {
            Some(file) => read_file(file)?,
            None => String::new(),
        };
        Self::parse(&text, overrides, machine)
    }

    /// The same from a text; `overrides.file` is only its name.
    pub fn parse(
        text: &str,
        overrides: &Overrides,
        machine: &dyn Machine,
    ) -> Result<Self, ConfigError> {
        let name = || overrides.file.clone().unwrap_or_else(|| PathBuf::from("configuration"));
        // An empty document is a null, which sets nothing.
        let document: Value = serde_yaml::from_str(text)
            .map_err(|source| ConfigError::Syntax { file: name(), source })?;
        let report = Report::new(text);
        let set = file::read(&document, &report);
        let config = resolve::resolve(set, overrides, machine, &report);
        let problems = report.into_problems();
        if problems.is_empty() {
            Ok(config)
        } else {
            Err(ConfigError::Invalid { file: overrides.file.clone(), problems })
        }
    }
}

fn read_file(file: &Path) -> Result<String, ConfigError> {
    let wrap = |source| ConfigError::Read { file: file.to_owned(), source };
    let bytes = std::fs::metadata(file).map_err(wrap)?.len();
    if bytes > FILE_MAX {
        return Err(ConfigError::TooLarge { file: file.to_owned(), bytes, max: FILE_MAX });
    }
    std::fs::read_to_string(file).map_err(wrap)
}
