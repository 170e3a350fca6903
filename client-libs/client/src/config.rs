//! The client's configuration: YAML, then environment, one loader for every program.
//!
//! | YAML key | variable | meaning |
//! | --- | --- | --- |
//! | `servers` | `MEMKV_SERVERS` (commas) | `host[:port][*weight]`; default `127.0.0.1:9900` |
//! | `namespace` | `MEMKV_NAMESPACE` | whose keys these are; default `default` |
//! | `transport` | `MEMKV_TRANSPORT` | `auto` (default), `tcp`, `rdma` |
//! | `auth_key` | `MEMKV_AUTH_KEY` | 64 hexadecimal digits |
//! | `key_id` | `MEMKV_KEY_ID` | which key that is; default 0 |
//! | `rdma_devices` | `MEMKV_RDMA_DEVICES` (commas) | devices to bind, for `rdma` |
//! | `num_connections` | `MEMKV_NUM_CONNECTIONS` | connections per server; default 4 |
//! | `connect_timeout_ms` | `MEMKV_CONNECT_TIMEOUT_MS` | default 1000 |
//! | `request_timeout_ms` | `MEMKV_REQUEST_TIMEOUT_MS` | default 30000 |
//!
//! The file is the one that `MEMKV_CONFIG` names; variables override it. A key that is not in the table
//! is refused by name, with the nearest one that is.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use memkv_wire::{DEFAULT_PORT, KeyError, MAX_NAMESPACE, SharedKey, loopback_key};
use serde::Deserialize;

/// The keys of the YAML file.
const KEYS: [&str; 9] = [
    "servers",
    "namespace",
    "transport",
    "auth_key",
    "key_id",
    "rdma_devices",
    "num_connections",
    "connect_timeout_ms",
    "request_timeout_ms",
];
/// Greatest distance (Damerau-Levenshtein) at which a key is offered as what was meant.
const NEAR: usize = 4;
/// Most connections to one server.
const CONNECTIONS_MAX: usize = 1024;
/// Greatest weight of a server.
const WEIGHT_MAX: u32 = 1_000_000;

/// What carries the bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// The best that both ends have: TCP, and the memory of a server on this machine.
    #[default]
    Auto,
    /// RDMA or nothing.
    Rdma,
    /// TCP.
    Tcp,
}

/// How a client finds and talks to its servers.
#[derive(Clone, Debug)]
pub struct Config {
    /// Each `host[:port][*weight]`: port 9900 and weight 1 when left out; an IPv6 address stands in
    /// brackets. A server of weight 3 gets three times the keys of one of weight 1. Clients that are to find
    /// each other's blocks must spell a server the same way: its name without the weight takes part in the
    /// choice.
    pub servers: Vec<String>,
    /// The namespace whose keys these are, 1 to 255 bytes.
    pub namespace: String,
    /// What carries the bytes.
    pub transport: Transport,
    /// The key shared with the servers. Without one, servers on loopback are met with the development key,
    /// and others are refused.
    pub auth_key: Option<SharedKey>,
    /// Which of the server's keys that is.
    pub key_id: u32,
    /// Devices to bind for RDMA.
    pub rdma_devices: Vec<String>,
    /// Connections per server, 1 to 1024. A call uses one per server at a time.
    pub num_connections: usize,
    /// Milliseconds a connection may take to stand, handshake included.
    pub connect_timeout_ms: u64,
    /// Milliseconds a call may take in all, unless it brings its own deadline.
    pub request_timeout_ms: u64,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            servers: vec![format!("127.0.0.1:{DEFAULT_PORT}")],
            namespace: "default".to_owned(),
            transport: Transport::Auto,
            auth_key: None,
            key_id: 0,
            rdma_devices: Vec::new(),
            num_connections: 4,
            connect_timeout_ms: 1000,
            request_timeout_ms: 30_000,
        }
    }
}

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file that `MEMKV_CONFIG` names.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is no YAML, or a value is of the wrong kind.
    #[error("{} is not a configuration", path.display())]
    Yaml {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: serde_yaml::Error,
    },
    /// A key that does not exist.
    #[error("{}: unknown key `{key}`{}", path.display(), nearest.map(|key| format!(", did you mean `{key}`?")).unwrap_or_default())]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// The key that was perhaps meant.
        nearest: Option<&'static str>,
    },
    /// A variable has a value that it cannot have.
    #[error("{name} cannot be `{value}`")]
    Variable {
        /// The variable.
        name: &'static str,
        /// Its value.
        value: String,
    },
    /// The key is not 64 hexadecimal digits.
    #[error("{place} is not a key")]
    Key {
        /// `auth_key` or `MEMKV_AUTH_KEY`.
        place: &'static str,
        /// What is wrong with it.
        #[source]
        source: KeyError,
    },
    /// A server that is not `host[:port][*weight]`.
    #[error(
        "`{entry}` is not a server; write host:port, or host:port*weight with a weight of 1 to {WEIGHT_MAX}"
    )]
    Server {
        /// The entry.
        entry: String,
    },
    /// The list of servers is empty.
    #[error("no servers are configured")]
    NoServers,
    /// The same server twice: give it a weight instead.
    #[error("`{name}` is configured twice; give it a weight instead")]
    Twice {
        /// The server.
        name: String,
    },
    /// A server that is not on this machine, and no key.
    #[error("`{name}` is not a loopback address: set auth_key (or MEMKV_AUTH_KEY)")]
    NoKey {
        /// The server.
        name: String,
    },
    /// A number out of its bounds.
    #[error("{key} must be {bounds}")]
    Bounds {
        /// The key.
        key: &'static str,
        /// What it may be.
        bounds: &'static str,
    },
    /// RDMA was asked for.
    #[error("transport `rdma` is not in this build, which has TCP only; use `auto` or `tcp`")]
    NoRdma,
}

/// The file as serde reads it; every key may be left out.
#[derive(Default, Deserialize)]
#[serde(default)]
struct File {
    servers: Option<Vec<String>>,
    namespace: Option<String>,
    transport: Option<Transport>,
    auth_key: Option<String>,
    key_id: Option<u32>,
    rdma_devices: Option<Vec<String>>,
    num_connections: Option<usize>,
    connect_timeout_ms: Option<u64>,
    request_timeout_ms: Option<u64>,
}

impl Config {
    /// The configuration of this process: defaults, then the file that `MEMKV_CONFIG` names, if it is set,
    /// then the `MEMKV_*` variables.
    ///
    /// # Errors
    /// [`ConfigError`] names the file, key or variable.
    pub fn load() -> Result<Config, ConfigError> {
        let variable = |name: &str| std::env::var(name).ok();
        match variable("MEMKV_CONFIG") {
            Some(path) if !path.is_empty() => {
                let path = PathBuf::from(path);
                match fs::read_to_string(&path) {
                    Ok(text) => Config::from_parts(Some((&path, &text)), variable),
                    Err(source) => Err(ConfigError::Read { path, source }),
                }
            }
            _ => Config::from_parts(None, variable),
        }
    }

    /// The configuration made of a file's text and of variables; what [`Config::load`] does, without the
    /// process.
    ///
    /// # Errors
    /// [`ConfigError`] names the file, key or variable.
    pub fn from_parts(
        file: Option<(&Path, &str)>,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Config, ConfigError> {
        let mut config = Config::default();
        if let Some((path, text)) = file {
            config.apply_file(read_file(path, text)?)?;
        }
        config.apply_variables(&variable)?;
        config.check()?;
        Ok(config)
    }

    fn apply_file(&mut self, file: File) -> Result<(), ConfigError> {
        set(&mut self.servers, file.servers);
        set(&mut self.namespace, file.namespace);
        set(&mut self.transport, file.transport);
        set(&mut self.key_id, file.key_id);
        set(&mut self.rdma_devices, file.rdma_devices);
        set(&mut self.num_connections, file.num_connections);
        set(&mut self.connect_timeout_ms, file.connect_timeout_ms);
        set(&mut self.request_timeout_ms, file.request_timeout_ms);
        if let Some(text) = file.auth_key {
            self.auth_key = Some(parse_key("auth_key", &text)?);
        }
        Ok(())
    }

    fn apply_variables(
        &mut self,
        variable: &impl Fn(&str) -> Option<String>,
    ) -> Result<(), ConfigError> {
        // A variable that is set to nothing counts as not set.
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        let list = |text: String| text.split(',').map(|part| part.trim().to_owned()).collect();
        set(&mut self.servers, variable("MEMKV_SERVERS").map(list));
        set(&mut self.rdma_devices, variable("MEMKV_RDMA_DEVICES").map(list));
        set(&mut self.namespace, variable("MEMKV_NAMESPACE"));
        if let Some(value) = variable("MEMKV_TRANSPORT") {
            self.transport = parse_transport(value)?;
        }
        if let Some(text) = variable("MEMKV_AUTH_KEY") {
            self.auth_key = Some(parse_key("MEMKV_AUTH_KEY", &text)?);
        }
        set(&mut self.key_id, number("MEMKV_KEY_ID", &variable)?);
        set(&mut self.num_connections, number("MEMKV_NUM_CONNECTIONS", &variable)?);
        set(&mut self.connect_timeout_ms, number("MEMKV_CONNECT_TIMEOUT_MS", &variable)?);
        set(&mut self.request_timeout_ms, number("MEMKV_REQUEST_TIMEOUT_MS", &variable)?);
        Ok(())
    }

    /// Checks everything that can be checked without a server.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        let bounds = |good, key, bounds| match good {
            true => Ok(()),
            false => Err(ConfigError::Bounds { key, bounds }),
        };
        let connections = (1..=CONNECTIONS_MAX).contains(&self.num_connections);
        bounds(connections, "num_connections", "1 to 1024")?;
        bounds(self.connect_timeout_ms > 0, "connect_timeout_ms", "at least 1")?;
        bounds(self.request_timeout_ms > 0, "request_timeout_ms", "at least 1")?;
        let namespace = (1..=MAX_NAMESPACE).contains(&self.namespace.len());
        bounds(namespace, "namespace", "1 to 255 bytes long")?;
        if self.transport == Transport::Rdma {
            return Err(ConfigError::NoRdma);
        }
        self.addresses()?;
        self.key()?;
        Ok(())
    }

    /// The servers, parsed.
    pub(crate) fn addresses(&self) -> Result<Vec<Address>, ConfigError> {
        let mut seen = BTreeMap::new();
        let mut addresses = Vec::with_capacity(self.servers.len());
        for entry in &self.servers {
            let address = Address::parse(entry)
                .ok_or_else(|| ConfigError::Server { entry: entry.clone() })?;
            if seen.insert(address.name.clone(), ()).is_some() {
                return Err(ConfigError::Twice { name: address.name });
            }
            addresses.push(address);
        }
        match addresses.is_empty() {
            true => Err(ConfigError::NoServers),
            false => Ok(addresses),
        }
    }

    /// The key to use: the one configured, or the development key when every server is on loopback.
    pub(crate) fn key(&self) -> Result<SharedKey, ConfigError> {
        if let Some(key) = &self.auth_key {
            return Ok(key.clone());
        }
        match self.addresses()?.into_iter().find(|address| !address.is_loopback()) {
            Some(address) => Err(ConfigError::NoKey { name: address.name }),
            None => Ok(loopback_key()),
        }
    }

    /// How long a connection may take to stand.
    pub(crate) fn connect_timeout(&self) -> Duration {
        Duration::from_millis(self.connect_timeout_ms)
    }

    /// How long a call may take.
    pub(crate) fn request_timeout(&self) -> Duration {
        Duration::from_millis(self.request_timeout_ms)
    }
}

/// One entry of `servers`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    /// `host:port`.
    pub name: String,
    /// Its share of the keys, 1 to a million.
    pub weight: u32,
}

impl Address {
    fn parse(entry: &str) -> Option<Address> {
        let (place, weight) = match entry.split_once('*') {
            Some((place, weight)) => (place, weight.parse().ok()?),
            None => (entry, 1),
        };
        if !(1..=WEIGHT_MAX).contains(&weight) {
            return None;
        }
        let (host, port) = match place.rsplit_once(':') {
            // A colon inside of brackets belongs to an IPv6 address.
            Some((host, port)) if !port.contains(']') => (host, port.parse().ok()?),
            _ => (place, DEFAULT_PORT),
        };
        let bracketed = host.starts_with('[') && host.ends_with(']');
        let strange = |c: char| c.is_whitespace() || c == '/' || c == '@' || c == '*';
        if host.is_empty() || host.contains(strange) || (host.contains(':') && !bracketed) {
            return None;
        }
        Some(Address { name: format!("{}:{port}", host.to_ascii_lowercase()), weight })
    }

    fn is_loopback(&self) -> bool {
        let host = self.name.rsplit_once(':').map_or(&*self.name, |(host, _)| host);
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let address = bare.parse::<IpAddr>();
        host == "localhost" || address.is_ok_and(|ip| ip.to_canonical().is_loopback())
    }
}

fn set<T>(place: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *place = value;
    }
}

fn read_file(path: &Path, text: &str) -> Result<File, ConfigError> {
    let yaml = |source| ConfigError::Yaml { path: path.to_owned(), source };
    let value: serde_yaml::Value = serde_yaml::from_str(text).map_err(yaml)?;
    let mapping = match value {
        serde_yaml::Value::Null => return Ok(File::default()),
        serde_yaml::Value::Mapping(mapping) => mapping,
        other => return serde_yaml::from_value(other).map_err(yaml),
    };
    for key in mapping.keys() {
        let key = key.as_str().map_or_else(|| format!("{key:?}"), str::to_owned);
        if !KEYS.contains(&key.as_str()) {
            let nearest = nearest(&key);
            return Err(ConfigError::UnknownKey { path: path.to_owned(), key, nearest });
        }
    }
    serde_yaml::from_value(serde_yaml::Value::Mapping(mapping)).map_err(yaml)
}

fn nearest(key: &str) -> Option<&'static str> {
    let distance = |known: &&str| strsim::damerau_levenshtein(known, key);
    KEYS.into_iter().min_by_key(distance).filter(|known| distance(known) <= NEAR)
}

fn parse_transport(value: String) -> Result<Transport, ConfigError> {
    match value.as_str() {
        "auto" => Ok(Transport::Auto),
        "rdma" => Ok(Transport::Rdma),
        "tcp" => Ok(Transport::Tcp),
        _ => Err(ConfigError::Variable { name: "MEMKV_TRANSPORT", value }),
    }
}

fn parse_key(place: &'static str, text: &str) -> Result<SharedKey, ConfigError> {
    SharedKey::from_hex(text).map_err(|source| ConfigError::Key { place, source })
}

fn number<T: std::str::FromStr>(
    name: &'static str,
    variable: &impl Fn(&str) -> Option<String>,
) -> Result<Option<T>, ConfigError> {
    let Some(value) = variable(name) else { return Ok(None) };
    match value.trim().parse() {
        Ok(number) => Ok(Some(number)),
        Err(_) => Err(ConfigError::Variable { name, value }),
    }
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
