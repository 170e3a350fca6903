//! From what was set to what holds: options and environment over the file, defaults for the rest,
//! and the checks that need more than one value or the machine.

use super::file::{
    DRIVE_SIZE, FileConfig, FileDrive, FileKey, FileStorage, POOL_MIN, parse_address,
};
use super::problem::{Origin, Problem, ProblemKind, Warning};
use super::tree::{Path, Report};
use super::{
    BypassUse, Config, DEFAULT_TENANT, Drive, Durability, Eviction, EvictionPolicy, HugepageUse,
    IdlePolicy, KeyEntry, Limits, Log, LogLevel, Memory, Network, Overrides, Storage, StorageMode,
    Trim,
};
use crate::paths::Machine;
use memkv_net::tcp::Driver;
use memkv_nvme::PciAddress;
use memkv_wire::SharedKey;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// The variable that overrides `network.auth_key`.
pub const AUTH_KEY_VARIABLE: &str = "MEMKV_AUTH_KEY";

/// The variable that says which engine moves bytes over TCP.
pub const ENGINE_VARIABLE: &str = "MEMKV_NET";

/// The name of the data file in the user's data directory.
const DATA_FILE: &str = "drive-0.memkv";
/// The data file made by default is at most this large …
const DATA_FILE_MAX: u64 = 4 * GIB;
/// … and not made at all when it would be smaller than this.
const DATA_FILE_MIN: u64 = 256 * MIB;
/// The share of the free space it may take: one in this many.
const DATA_FILE_SHARE: u64 = 4;
/// The pool is at most this large by default …
const POOL_DEFAULT: u64 = GIB;
/// … and at most this share of the machine's memory: one in this many.
const POOL_SHARE: u64 = 8;
/// Valid keys per tenant: the one in use and the one that replaces it.
const KEYS_PER_TENANT: usize = 2;
/// More reactors than this need to be asked for.
const REACTORS_DEFAULT_MAX: usize = 64;
/// How long a drive may be silent: an honest one takes a second or two at its worst.
const DRIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Settles every value. What it returns is only meant to be used when nothing was reported.
pub fn resolve(
    set: FileConfig,
    overrides: &Overrides,
    machine: &dyn Machine,
    report: &Report<'_>,
) -> Config {
    let mut warnings = set.warnings;
    let address = address(set.address, overrides, report);
    let keys = keys(set.auth_key, set.keys, address, machine, report, &mut warnings);
    let memory_block = set.memory_block.unwrap_or(2 * MIB);
    let storage = storage(set.storage, overrides, machine, report);
    // An appliance reserves its hugepages; a laptop does what it can.
    let hugepages = match storage.mode {
        StorageMode::Direct => HugepageUse::Require,
        StorageMode::File | StorageMode::Memory => HugepageUse::Prefer,
    };
    let memory = Memory {
        block_size: memory_block,
        max_size: pool_size(set.memory_max, memory_block, machine, report),
        hugepages: set.hugepages.unwrap_or(hugepages),
    };
    let max_value = max_value(set.max_value, storage.block_size, report);
    let cores = machine.cores().clamp(1, REACTORS_DEFAULT_MAX);
    Config {
        file: overrides.file.clone(),
        degraded: overrides.degraded,
        network: Network {
            address,
            keys,
            engine: engine(machine, report),
            shm: set.shm.unwrap_or(true),
        },
        memory,
        storage,
        reactors: set.reactors.unwrap_or(cores),
        idle: set.idle.unwrap_or(IdlePolicy::Adaptive),
        limits: Limits { max_value, ..set.limits },
        namespaces: set.namespaces,
        log: Log {
            format: overrides.log_format.or(set.log_format),
            filter: log_filter(set.log_level, overrides, machine),
        },
        warnings,
    }
}

fn log_filter(from_file: Option<LogLevel>, overrides: &Overrides, machine: &dyn Machine) -> String {
    let word = |level: LogLevel| level.word().to_owned();
    let variable = || machine.variable("RUST_LOG").filter(|text| !text.trim().is_empty());
    let level = overrides.log_level.map(word).or_else(variable).or_else(|| from_file.map(word));
    level.unwrap_or_else(|| word(LogLevel::Info))
}

fn address(
    from_file: Option<SocketAddr>,
    overrides: &Overrides,
    report: &Report<'_>,
) -> SocketAddr {
    let default = SocketAddr::from((Ipv4Addr::LOCALHOST, memkv_wire::DEFAULT_PORT));
    let Some(text) = &overrides.address else { return from_file.unwrap_or(default) };
    parse_address(text).unwrap_or_else(|kind| {
        report.push(Problem { origin: Origin::Option("--address"), location: None, kind });
        default
    })
}

/// The keys that are valid: `network.auth_key` (or the variable) under id 0, then `network.keys`;
/// with none of them, the development key on a loopback address.
fn keys(
    from_file: Option<SharedKey>,
    more: Vec<FileKey>,
    address: SocketAddr,
    machine: &dyn Machine,
    report: &Report<'_>,
    warnings: &mut Vec<Warning>,
) -> Vec<KeyEntry> {
    let tenant = || DEFAULT_TENANT.to_owned();
    let auth_key = from_variable(machine, report).or(from_file);
    let mut keys: Vec<KeyEntry> =
        auth_key.map(|key| KeyEntry { id: 0, key, tenant: tenant() }).into_iter().collect();
    for FileKey { path, id, key, tenant } in more {
        if keys.iter().any(|other| other.id == id) {
            report.key(&path.key("id"), ProblemKind::Duplicate { value: format!("key id {id}") });
        }
        if keys.iter().filter(|other| other.tenant == tenant).count() >= KEYS_PER_TENANT {
            let kind = ProblemKind::TooManyKeys { tenant: tenant.clone() };
            report.key(&path.key("tenant"), kind);
        }
        keys.push(KeyEntry { id, key, tenant });
    }
    if keys.is_empty() && address.ip().is_loopback() {
        warnings.push(Warning::DevelopmentKey);
        keys.push(KeyEntry { id: 0, key: memkv_wire::loopback_key(), tenant: tenant() });
    } else if keys.is_empty() {
        let kind = ProblemKind::KeyRequired { address: address.to_string() };
        report.key(&Path::default().key("network").key("auth_key"), kind);
    }
    keys
}

/// The key of the environment. An empty variable counts as unset, as container tools leave it.
fn from_variable(machine: &dyn Machine, report: &Report<'_>) -> Option<SharedKey> {
    let text = machine.variable(AUTH_KEY_VARIABLE).filter(|text| !text.trim().is_empty())?;
    let problem = |error| {
        let origin = Origin::Variable(AUTH_KEY_VARIABLE);
        report.push(Problem { origin, location: None, kind: ProblemKind::BadAuthKey(error) });
    };
    SharedKey::from_hex(text.trim()).map_err(problem).ok()
}

/// The network engine that the environment asks for. It is no key of the file: what is best follows from
/// the system, and the variable is for finding out what goes wrong.
fn engine(machine: &dyn Machine, report: &Report<'_>) -> Driver {
    let Some(text) = machine.variable(ENGINE_VARIABLE) else { return Driver::default() };
    let name = text.trim();
    if name.is_empty() {
        return Driver::default();
    }
    name.parse().unwrap_or_else(|_| {
        let choices = Driver::NAMES.to_vec();
        let value = name.to_owned();
        let kind = ProblemKind::UnknownChoice { value, nearest: None, choices };
        report.push(Problem { origin: Origin::Variable(ENGINE_VARIABLE), location: None, kind });
        Driver::default()
    })
}

/// The pool's size, in whole chunks.
fn pool_size(set: Option<u64>, block: u64, machine: &dyn Machine, report: &Report<'_>) -> u64 {
    let memory = machine.memory_bytes();
    let size = set.unwrap_or_else(|| POOL_DEFAULT.min(memory / POOL_SHARE).max(POOL_MIN));
    if size > memory {
        use memkv_admin_api::size::{exact_size, short_size};
        let kind = ProblemKind::OutOfRange {
            value: exact_size(size),
            min: exact_size(POOL_MIN),
            max: format!("{} (this machine's memory)", short_size(memory)),
        };
        report.key(&Path::default().key("memory").key("max_size"), kind);
    }
    size / block * block
}

/// A value has at most 16 extents, so small extents make for a small largest value.
fn max_value(set: Option<u64>, extent: u64, report: &Report<'_>) -> u64 {
    let most = (extent * memkv_wire::MAX_EXTENTS as u64).min(memkv_wire::MAX_VALUE);
    if let Some(size) = set.filter(|size| *size > most) {
        use memkv_admin_api::size::exact_size;
        let kind = ProblemKind::OutOfRange {
            value: exact_size(size),
            min: exact_size(1),
            max: format!("{} (16 of storage.block_size)", exact_size(most)),
        };
        report.key(&Path::default().key("limits").key("max_value"), kind);
    }
    set.unwrap_or(most)
}

fn storage(
    set: FileStorage,
    overrides: &Overrides,
    machine: &dyn Machine,
    report: &Report<'_>,
) -> Storage {
    let path = Path::default().key("storage");
    let mode = set.mode.unwrap_or(StorageMode::File);
    let unnamed = mode == StorageMode::File && set.drives.is_none();
    let data_directory = overrides.data_dir.clone().or_else(|| machine.data_directory());
    let data_directory = data_directory.filter(|_| unnamed).map(|folder| absolute(&folder));
    let defaults = memkv_store::EvictionConfig::default();
    let eviction = Eviction {
        enabled: set.eviction.unwrap_or(true),
        high: set.high.unwrap_or(95),
        low: set.low.unwrap_or_else(|| set.high.map_or(92, |high| high.saturating_sub(3).max(1))),
        policy: set.policy.unwrap_or(EvictionPolicy::Chain),
        retain: set.retain.unwrap_or(defaults.retain),
        pin_max: set.pin_max.unwrap_or(defaults.pin_max),
    };
    if eviction.low >= eviction.high {
        let kind = ProblemKind::MarksCrossed { low: eviction.low, high: eviction.high };
        report.key(&path.key("eviction").key("low"), kind);
    }
    if mode == StorageMode::Memory && set.trim == Some(true) {
        let kind =
            ProblemKind::Refused("memory is not trimmed; remove the key, or set storage.mode");
        report.key(&path.key("trim").key("enabled"), kind);
    }
    if mode == StorageMode::Memory && set.durability == Some(Durability::Power) {
        let kind = ProblemKind::Refused(
            "what is in memory survives no power cut; remove the key, or set storage.mode",
        );
        report.key(&path.key("durability"), kind);
    }
    if overrides.data_dir.is_some() && (set.drives.is_some() || mode != StorageMode::File) {
        let kind = ProblemKind::Refused(
            "there is no default data file to place: the configuration names the drives",
        );
        report.push(Problem { origin: Origin::Option("--data-dir"), location: None, kind });
    }
    let drives = match set.drives {
        Some(drives) => configured_drives(mode, drives, machine, report),
        None => default_drives(mode, data_directory.as_deref(), overrides, machine, report),
    };
    Storage {
        mode,
        block_size: set.block_size.unwrap_or(4 * MIB),
        drives,
        data_directory,
        bypass: set.bypass.unwrap_or(BypassUse::Require),
        drive_timeout: set.drive_timeout.unwrap_or(DRIVE_TIMEOUT),
        eviction,
        durability: set.durability.unwrap_or(Durability::Process),
        trim: Trim {
            // Holes in a file give up the space that was reserved for it.
            enabled: set.trim.unwrap_or(mode == StorageMode::Direct),
            interval_ms: set.trim_interval_ms.unwrap_or(5_000),
            extents: set.trim_extents.map_or(1_024, |extents| extents as u32),
        },
        scrub_bytes_per_second: match mode {
            StorageMode::Memory => 0,
            StorageMode::Direct | StorageMode::File => set.scrub.unwrap_or(16 * MIB),
        },
    }
}

fn configured_drives(
    mode: StorageMode,
    set: Vec<FileDrive>,
    machine: &dyn Machine,
    report: &Report<'_>,
) -> Vec<Drive> {
    let mut seen: Vec<PathBuf> = Vec::new();
    let mut drives = Vec::with_capacity(set.len());
    for FileDrive { path, media, max_size } in set {
        let address = media.as_deref().and_then(PciAddress::of);
        if let Some(media) =
            media.as_deref().map(|media| address.map_or_else(|| absolute(media), name_of))
        {
            if seen.contains(&media) {
                let kind = ProblemKind::Duplicate { value: media.display().to_string() };
                report.key(&path.key("media"), kind);
            }
            seen.push(media);
        }
        let refuse = |key, sentence| report.key(&path.key(key), ProblemKind::Refused(sentence));
        match (mode, media) {
            (StorageMode::Memory, media) => {
                if media.is_some() {
                    refuse(
                        "media",
                        "memory mode has no media; remove the key, or set storage.mode",
                    );
                }
                match max_size {
                    Some(size) => drives.push(Drive::Memory { size }),
                    None => report.key(&path.key("max_size"), ProblemKind::Missing),
                }
            }
            (_, None) => report.key(&path.key("media"), ProblemKind::Missing),
            (StorageMode::Direct, Some(media)) => {
                if max_size.is_some() {
                    refuse("max_size", "a device is used whole; max_size belongs to file mode");
                }
                drives.push(match address {
                    Some(address) => Drive::Pci { address },
                    None => Drive::Device { media: absolute(&media) },
                });
            }
            (StorageMode::File, Some(_)) if address.is_some() => {
                refuse(
                    "media",
                    "a PCI address names a drive in direct mode; set storage.mode, or write ./ \
                     before the name of a file",
                );
            }
            (StorageMode::File, Some(media)) => {
                let origin = Origin::Key(path.key("max_size").to_string());
                drives.extend(file_drive(absolute(&media), max_size, origin, machine, report));
            }
        }
    }
    drives
}

/// A PCI address as the name of a drive.
fn name_of(address: PciAddress) -> PathBuf {
    PathBuf::from(address.to_string())
}

/// A path that means the same wherever the process goes.
fn absolute(path: &std::path::Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

fn default_drives(
    mode: StorageMode,
    data_directory: Option<&std::path::Path>,
    overrides: &Overrides,
    machine: &dyn Machine,
    report: &Report<'_>,
) -> Vec<Drive> {
    let drives = Path::default().key("storage").key("drives");
    match mode {
        StorageMode::Direct => {
            report.key(&drives, ProblemKind::Missing);
            Vec::new()
        }
        StorageMode::Memory => {
            let size = (machine.memory_bytes() / 4).clamp(*DRIVE_SIZE.start(), DATA_FILE_MAX);
            vec![Drive::Memory { size: size / MIB * MIB }]
        }
        StorageMode::File => {
            let Some(directory) = data_directory else {
                report.key(&drives, ProblemKind::NoDataDirectory);
                return Vec::new();
            };
            let origin = match overrides.data_dir {
                Some(_) => Origin::Option("--data-dir"),
                None => Origin::Key(drives.to_string()),
            };
            let media = directory.join(DATA_FILE);
            file_drive(media, None, origin, machine, report).into_iter().collect()
        }
    }
}

/// A file that exists is taken as it is unless a size is set; one that does not exist gets the size
/// that is set, or the default share of the free space, and must fit.
fn file_drive(
    media: PathBuf,
    max_size: Option<u64>,
    origin: Origin,
    machine: &dyn Machine,
    report: &Report<'_>,
) -> Option<Drive> {
    if machine.file_exists(&media) {
        return Some(Drive::File { media, size: max_size });
    }
    let problem = |kind| report.push(Problem { origin: origin.clone(), location: None, kind });
    let free = match machine.free_bytes(&media) {
        Ok(free) => free,
        Err(error) => {
            problem(ProblemKind::Probe { path: media, error: error.kind() });
            return None;
        }
    };
    let share = (free / DATA_FILE_SHARE).min(DATA_FILE_MAX) / MIB * MIB;
    let (size, needed) = match max_size {
        Some(size) => (size, size),
        // The file takes a quarter of what is free, so four times its least size must be.
        None if share >= DATA_FILE_MIN => (share, share),
        None => (share, DATA_FILE_MIN * DATA_FILE_SHARE),
    };
    if needed > free {
        problem(ProblemKind::NoSpace { file: media, needed, free });
        return None;
    }
    Some(Drive::File { media, size: Some(size) })
}
