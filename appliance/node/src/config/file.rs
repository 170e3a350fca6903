//! From YAML to what was set: every key optional, every value checked on its own.
//!
//! What a value means together with others, and what stands in for one that is not set, is decided
//! in [`super::resolve`].

use super::problem::{ProblemKind, Warning};
use super::schema;
use super::tree::{Item, Path, Report, Section};
use super::{
    BypassUse, Durability, EvictionPolicy, IdlePolicy, Limits, LogFormat, LogLevel, StorageMode,
};
use memkv_session::NamespaceLimits;
use memkv_wire::SharedKey;
use serde_yaml::Value;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

/// The port of the data address when none is written.
const PORT: u16 = memkv_wire::DEFAULT_PORT;

/// Chunks the pool can lend: the pool's buddy allocator goes from a unit to an extent.
const MEMORY_BLOCK: RangeInclusive<u64> = 256 << 10..=4 << 20;
/// The smallest pool that still moves several large values at a time.
pub const POOL_MIN: u64 = 64 << 20;
/// Extents: a unit to the largest extent.
const EXTENT: RangeInclusive<u64> = 16 << 10..=4 << 20;
/// A drive: room for a journal and some blocks, up to 2^32 units of 16 KiB.
pub const DRIVE_SIZE: RangeInclusive<u64> = 64 << 20..=64 << 40;
/// Drives of a node: its superblocks list all of them.
const DRIVES_MAX: usize = 64;
/// How long a drive may be silent: longer than an honest drive's hiccup.
const DRIVE_TIMEOUT_MS: RangeInclusive<u64> = 1_000..=600_000;
/// Keys of a node: two for each of many tenants.
const KEYS_MAX: usize = 2048;
/// Namespaces that are told how long their blocks live.
const NAMESPACES_MAX: usize = 1024;
/// Reactors of a node.
const REACTORS: RangeInclusive<u64> = 1..=256;

/// What a file sets.
#[derive(Default)]
pub struct FileConfig {
    /// `network.address`.
    pub address: Option<SocketAddr>,
    /// `network.auth_key`.
    pub auth_key: Option<SharedKey>,
    /// `network.keys`.
    pub keys: Vec<FileKey>,
    /// `network.shm`.
    pub shm: Option<bool>,
    /// `memory.block_size`.
    pub memory_block: Option<u64>,
    /// `memory.max_size`, with its path for problems found later.
    pub memory_max: Option<u64>,
    /// `memory.hugepages`.
    pub hugepages: Option<super::HugepageUse>,
    /// `storage`.
    pub storage: FileStorage,
    /// `node.reactors`.
    pub reactors: Option<usize>,
    /// `node.idle`.
    pub idle: Option<IdlePolicy>,
    /// `limits` but for `max_value`, defaults filled in.
    pub limits: Limits,
    /// `limits.max_value`.
    pub max_value: Option<u64>,
    /// `namespaces`.
    pub namespaces: Vec<NamespaceLimits>,
    /// `log.format`.
    pub log_format: Option<LogFormat>,
    /// `log.level`.
    pub log_level: Option<LogLevel>,
    /// What is odd.
    pub warnings: Vec<Warning>,
}

/// One of `network.keys`.
pub struct FileKey {
    /// Where it stands.
    pub path: Path,
    /// `id`.
    pub id: u32,
    /// `key`.
    pub key: SharedKey,
    /// `tenant`.
    pub tenant: String,
}

/// What a file sets under `storage`.
#[derive(Default)]
pub struct FileStorage {
    /// `mode`.
    pub mode: Option<StorageMode>,
    /// `block_size`.
    pub block_size: Option<u64>,
    /// `drives`, when the list is there.
    pub drives: Option<Vec<FileDrive>>,
    /// `bypass`.
    pub bypass: Option<BypassUse>,
    /// `drive_timeout_ms`.
    pub drive_timeout: Option<Duration>,
    /// `eviction.enabled`.
    pub eviction: Option<bool>,
    /// `eviction.high`, percent.
    pub high: Option<u8>,
    /// `eviction.low`, percent.
    pub low: Option<u8>,
    /// `eviction.policy`.
    pub policy: Option<EvictionPolicy>,
    /// `eviction.retain_seconds`.
    pub retain: Option<Duration>,
    /// `eviction.pin_max_seconds`.
    pub pin_max: Option<Duration>,
    /// `durability`.
    pub durability: Option<Durability>,
    /// `trim.enabled`.
    pub trim: Option<bool>,
    /// `trim.interval_ms`.
    pub trim_interval_ms: Option<u64>,
    /// `trim.extents`.
    pub trim_extents: Option<u64>,
    /// `scrub.bytes_per_second`.
    pub scrub: Option<u64>,
}

/// One of `storage.drives`.
pub struct FileDrive {
    /// Where it stands.
    pub path: Path,
    /// `media`.
    pub media: Option<PathBuf>,
    /// `max_size`.
    pub max_size: Option<u64>,
}

/// Reads the whole document; problems go to the report.
pub fn read(document: &Value, report: &Report<'_>) -> FileConfig {
    let mut file = FileConfig::default();
    let root = Section::root(document, schema::ROOT, report);
    network(&root.section("network", schema::NETWORK), &mut file);
    memory(&root.section("memory", schema::MEMORY), &mut file);
    storage(&root.section("storage", schema::STORAGE), &mut file.storage);
    rdma(&root.section("rdma", schema::RDMA), &mut file);
    node(&root.section("node", schema::NODE), &mut file);
    let section = root.section("limits", schema::LIMITS);
    limits(&section, &mut file.limits);
    file.max_value = section.item("max_value").and_then(|i| i.size(1..=memkv_wire::MAX_VALUE));
    let namespaces = root.sections("namespaces", schema::NAMESPACE, 0..=NAMESPACES_MAX);
    for section in namespaces.into_iter().flatten() {
        namespace(&section, &mut file.namespaces);
    }
    log(&root.section("log", schema::LOG), &mut file);
    file
}

fn network(section: &Section<'_>, file: &mut FileConfig) {
    file.address = section.item("address").and_then(|item| {
        let text = item.text()?;
        parse_address(text).map_err(|kind| item.problem(kind)).ok()
    });
    file.auth_key = section.item("auth_key").and_then(|item| auth_key(&item));
    for key in section.sections("keys", schema::KEY, 0..=KEYS_MAX).into_iter().flatten() {
        file.keys.extend(one_key(&key));
    }
    file.shm = section.item("shm").and_then(|item| item.boolean());
    for name in ["tls_cert", "tls_key"] {
        if let Some(item) = section.item(name) {
            item.problem(ProblemKind::Refused(
                "TLS for the admin endpoint comes with a later release; remove the key and put a \
                 proxy in front if you need TLS now",
            ));
        }
    }
}

fn auth_key(item: &Item<'_>) -> Option<SharedKey> {
    let key = SharedKey::from_hex(item.text()?.trim());
    key.map_err(|error| item.problem(ProblemKind::BadAuthKey(error))).ok()
}

fn one_key(section: &Section<'_>) -> Option<FileKey> {
    // Every part is read before any is missed, so that all problems are seen at once.
    let id = required(section, "id").and_then(|item| item.integer(1..=u64::from(u32::MAX)));
    let key = required(section, "key").and_then(|item| auth_key(&item));
    let tenant = required(section, "tenant").and_then(|item| {
        let text = item.text()?;
        let good = (1..=64).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        if !good {
            item.problem(ProblemKind::BadTenant { value: text.to_owned() });
        }
        good.then(|| text.to_owned())
    });
    let id = u32::try_from(id?).expect("within the range just checked");
    Some(FileKey { path: section.path().clone(), id, key: key?, tenant: tenant? })
}

fn required<'a>(section: &Section<'a>, key: &str) -> Option<Item<'a>> {
    let item = section.item(key);
    if item.is_none() {
        section.problem(key, ProblemKind::Missing);
    }
    item
}

/// Reads `IP:PORT`, `IP` or `localhost`, with or without port.
pub fn parse_address(text: &str) -> Result<SocketAddr, ProblemKind> {
    let text = text.trim();
    let local = text.replacen("localhost", &Ipv4Addr::LOCALHOST.to_string(), 1);
    let text = if text.starts_with("localhost") { local.as_str() } else { text };
    let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text);
    let address = match (text.parse::<SocketAddr>(), bare.parse::<IpAddr>()) {
        (Ok(address), _) => address,
        (_, Ok(ip)) => SocketAddr::new(ip, PORT),
        _ => return Err(ProblemKind::BadAddress { value: text.to_owned() }),
    };
    match address.port() {
        u16::MAX => Err(ProblemKind::NoPortForAdmin),
        _ => Ok(address),
    }
}

fn memory(section: &Section<'_>, file: &mut FileConfig) {
    file.memory_block = section.item("block_size").and_then(|i| i.power_of_two(MEMORY_BLOCK));
    file.memory_max = section.item("max_size").and_then(|i| i.size(POOL_MIN..=64 << 40));
    file.hugepages = section.item("hugepages").and_then(|i| i.choice(&super::HugepageUse::WORDS));
}

fn storage(section: &Section<'_>, storage: &mut FileStorage) {
    storage.mode = section.item("mode").and_then(|i| i.choice(&StorageMode::WORDS));
    storage.block_size = section.item("block_size").and_then(|i| i.power_of_two(EXTENT));
    storage.durability = section.item("durability").and_then(|i| i.choice(&Durability::WORDS));
    let drives = section.sections("drives", schema::DRIVE, 1..=DRIVES_MAX);
    storage.drives = drives.map(|drives| drives.iter().map(drive).collect());
    storage.bypass = section.item("bypass").and_then(|i| i.choice(&BypassUse::WORDS));
    storage.drive_timeout = section
        .item("drive_timeout_ms")
        .and_then(|i| i.integer(DRIVE_TIMEOUT_MS))
        .map(Duration::from_millis);
    let eviction = section.section("eviction", schema::EVICTION);
    storage.eviction = eviction.item("enabled").and_then(|i| i.boolean());
    storage.high = eviction.item("high").and_then(|i| i.percent(2..=100));
    storage.low = eviction.item("low").and_then(|i| i.percent(1..=99));
    storage.policy = eviction.item("policy").and_then(|i| i.choice(&EvictionPolicy::WORDS));
    let seconds = |key: &str| {
        let most = memkv_store::EvictionConfig::PIN_LIMIT.as_secs();
        eviction.item(key).and_then(|i| i.integer(1..=most)).map(Duration::from_secs)
    };
    storage.retain = seconds("retain_seconds");
    storage.pin_max = seconds("pin_max_seconds");
    let trim = section.section("trim", schema::TRIM);
    storage.trim = trim.item("enabled").and_then(|i| i.boolean());
    storage.trim_interval_ms = trim.item("interval_ms").and_then(|i| i.integer(10..=3_600_000));
    storage.trim_extents = trim.item("extents").and_then(|i| i.integer(1..=65_536));
    let scrub = section.section("scrub", schema::SCRUB);
    storage.scrub = scrub.item("bytes_per_second").and_then(|i| i.size(0..=1 << 40));
}

fn drive(section: &Section<'_>) -> FileDrive {
    let media = section.item("media").and_then(|item| {
        let text = item.text()?;
        if text.is_empty() {
            item.problem(ProblemKind::Missing);
        }
        Some(PathBuf::from(text))
    });
    let max_size = section.item("max_size").and_then(|item| item.size(DRIVE_SIZE));
    FileDrive { path: section.path().clone(), media, max_size }
}

fn rdma(section: &Section<'_>, file: &mut FileConfig) {
    let mut device = false;
    for name in ["device", "devices"] {
        if let Some(item) = section.item(name) {
            device = true;
            item.problem(ProblemKind::Refused(
                "RDMA comes with a later release; remove the key, clients reach this node by TCP",
            ));
        }
    }
    for name in ["num_dcis", "num_worker_threads"] {
        if section.item(name).is_some() && !device {
            file.warnings.push(Warning::NoEffect { key: section.path().key(name).to_string() });
        }
    }
}

fn node(section: &Section<'_>, file: &mut FileConfig) {
    let reactors = section.item("reactors").and_then(|item| item.integer(REACTORS));
    file.reactors = reactors.map(|n| usize::try_from(n).expect("at most 256"));
    file.idle = section.item("idle").and_then(|i| i.choice(&IdlePolicy::WORDS));
}

fn limits(section: &Section<'_>, limits: &mut Limits) {
    let integer = |key: &str, into: &mut u32, allowed: RangeInclusive<u32>| {
        let allowed = u64::from(*allowed.start())..=u64::from(*allowed.end());
        if let Some(number) = section.item(key).and_then(|item| item.integer(allowed)) {
            *into = u32::try_from(number).expect("within a range of u32");
        }
    };
    integer("max_connections", &mut limits.max_connections, 1..=65_536);
    integer("max_requests", &mut limits.max_requests, 1..=65_536);
    integer("credits", &mut limits.credits, 1..=4_096);
    integer("lease_ms", &mut limits.lease_ms, 100..=600_000);
    integer("request_timeout_ms", &mut limits.request_timeout_ms, 10..=600_000);
}

fn namespace(section: &Section<'_>, known: &mut Vec<NamespaceLimits>) {
    let name = required(section, "name").and_then(|item| {
        let name = item.text()?.to_owned();
        if !(1..=memkv_wire::MAX_NAMESPACE).contains(&name.len()) {
            item.problem(ProblemKind::BadNamespace { value: name });
            return None;
        }
        if known.iter().any(|other| other.name == name) {
            item.problem(ProblemKind::Duplicate { value: format!("namespace {name}") });
        }
        Some(name)
    });
    let seconds = |key: &str| {
        let seconds = section.item(key).and_then(|item| item.integer(1..=u64::from(u32::MAX)));
        seconds.map_or(0, |seconds| u32::try_from(seconds).expect("within the range just checked"))
    };
    let (ttl_seconds, ttl_max_seconds) = (seconds("ttl_seconds"), seconds("ttl_max_seconds"));
    if ttl_max_seconds > 0 && ttl_seconds > ttl_max_seconds {
        section.problem("ttl_seconds", ProblemKind::Refused("it is above ttl_max_seconds"));
    }
    known.extend(name.map(|name| NamespaceLimits { name, ttl_seconds, ttl_max_seconds }));
}

fn log(section: &Section<'_>, file: &mut FileConfig) {
    file.log_format = section.item("format").and_then(|i| i.choice(&LogFormat::WORDS));
    file.log_level = section.item("level").and_then(|i| i.choice(&LogLevel::WORDS));
}
