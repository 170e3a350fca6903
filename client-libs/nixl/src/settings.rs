//! What a backend is made with: the parameters that its user gave NIXL, then `MEMKV_*` variables, then the file
//! that `MEMKV_CONFIG` names.
//!
//! A parameter has the name of a key of the client's configuration (`servers`) or of its variable
//! (`MEMKV_SERVERS`). One that is set to nothing counts as not set: NIXL offers the names of all of them, and
//! some hand back what they were offered.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use memkv_client::{Config, ConfigError, PutMode};

/// Names of all parameters.
pub(crate) const NAMES: [&str; 13] = [
    "config",
    "servers",
    "namespace",
    "transport",
    "auth_key",
    "key_id",
    "rdma_devices",
    "num_connections",
    "connect_timeout_ms",
    "request_timeout_ms",
    "write_mode",
    "staging_size_mb",
    "staging_slot_mb",
];
const PREFIX: &str = "MEMKV_";
const MIB: usize = 1 << 20;

/// What a backend is made with.
#[derive(Debug)]
pub(crate) struct Settings {
    /// How to find and talk to the servers.
    pub client: Config,
    /// What a write does to an object that is there.
    pub mode: PutMode,
    /// Pinned memory between GPUs and the network.
    pub staging: StagingSize,
}

/// How much memory stands between GPUs and the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StagingSize {
    /// Bytes in all.
    pub total: usize,
    /// Bytes of a slot.
    pub slot: usize,
}

/// Why a backend cannot be made of its parameters.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SettingsError {
    /// A name that no parameter has.
    #[error("there is no parameter `{name}`; there are {}", NAMES.join(", "))]
    Unknown { name: String },
    /// A parameter by both of its names.
    #[error("`{name}` is given twice, with different values")]
    Twice { name: String },
    /// Neither of two words.
    #[error("write_mode (MEMKV_WRITE_MODE) is `replace` or `absent`, not `{value}`")]
    Mode { value: String },
    /// No number of MiB that makes sense.
    #[error("{name} is a number of MiB, 1 to {most}, not `{value}`")]
    Size { name: &'static str, value: String, most: usize },
    /// A slot larger than the whole.
    #[error("staging_slot_mb is {slot}, more than the {total} of staging_size_mb")]
    Slot { slot: usize, total: usize },
    /// What the client says.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

impl Settings {
    /// Of parameters as NIXL has them, and of variables.
    pub fn new<'a>(
        given: impl Iterator<Item = (&'a str, &'a str)>,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Settings, SettingsError> {
        let mut known = BTreeMap::new();
        for (name, value) in given {
            let key = plain(name);
            if !NAMES.contains(&key.as_str()) {
                return Err(SettingsError::Unknown { name: name.to_owned() });
            }
            if value.is_empty() {
                continue;
            }
            if known.insert(key, value).is_some_and(|before| before != value) {
                return Err(SettingsError::Twice { name: name.to_owned() });
            }
        }
        let find = |name: &str| {
            let given = known.get(&plain(name)).map(|value| (*value).to_owned());
            given.or_else(|| variable(name)).filter(|value| !value.is_empty())
        };
        let client = match find("MEMKV_CONFIG").map(PathBuf::from) {
            None => Config::from_parts(None, find)?,
            Some(path) => match fs::read_to_string(&path) {
                Ok(text) => Config::from_parts(Some((&path, &text)), find)?,
                Err(source) => return Err(ConfigError::Read { path, source }.into()),
            },
        };
        let mode = match find("MEMKV_WRITE_MODE").as_deref() {
            None | Some("replace") => PutMode::Replace,
            Some("absent") => PutMode::Absent,
            Some(value) => return Err(SettingsError::Mode { value: value.to_owned() }),
        };
        Ok(Settings { client, mode, staging: staging(&find)? })
    }
}

/// A name without the prefix of variables.
fn plain(name: &str) -> String {
    match name.strip_prefix(PREFIX) {
        Some(rest) => rest.to_ascii_lowercase(),
        None => name.to_owned(),
    }
}

fn staging(find: &impl Fn(&str) -> Option<String>) -> Result<StagingSize, SettingsError> {
    let size = |name: &'static str, default: usize, most: usize| {
        let Some(value) = find(name) else { return Ok(default) };
        match value.trim().parse() {
            Ok(number) if (1..=most).contains(&number) => Ok(number),
            _ => Err(SettingsError::Size { name, value, most }),
        }
    };
    let total = size("MEMKV_STAGING_SIZE_MB", 256, 1 << 20)?;
    let slot = size("MEMKV_STAGING_SLOT_MB", total.min(4), 1024)?;
    if slot > total {
        return Err(SettingsError::Slot { slot, total });
    }
    Ok(StagingSize { total: total * MIB, slot: slot * MIB })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn none(_: &str) -> Option<String> {
        None
    }

    fn of(given: &[(&'static str, &'static str)]) -> Result<Settings, SettingsError> {
        Settings::new(given.iter().copied(), none)
    }

    #[test]
    fn parameters_win_over_variables_and_those_over_the_file() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let text = "servers: ['127.0.0.1:1']\nnamespace: file\nnum_connections: 5\n";
        fs::write(file.path(), text).expect("written");
        let path = file.path().to_str().expect("a path").to_owned();
        let variable = move |name: &str| match name {
            "MEMKV_CONFIG" => Some(path.clone()),
            "MEMKV_NAMESPACE" | "MEMKV_SERVERS" => Some("127.0.0.1:2".to_owned()),
            "MEMKV_STAGING_SLOT_MB" => Some("2".to_owned()),
            _ => None,
        };
        let given = [("MEMKV_SERVERS", "127.0.0.1:3"), ("namespace", ""), ("write_mode", "absent")];
        let settings = Settings::new(given.into_iter(), variable).expect("settings");
        assert_eq!(settings.client.servers, ["127.0.0.1:3"]);
        assert_eq!(settings.client.namespace, "127.0.0.1:2");
        assert_eq!(settings.client.num_connections, 5);
        assert_eq!(settings.mode, PutMode::Absent);
        assert_eq!(settings.staging, StagingSize { total: 256 * MIB, slot: 2 * MIB });
    }

    #[test]
    fn what_is_offered_can_be_handed_back() {
        let offered = NAMES.map(|name| (name, ""));
        let settings = of(&offered).expect("settings");
        assert_eq!(settings.client.servers, Config::default().servers);
        assert_eq!(settings.mode, PutMode::Replace);
    }

    #[test]
    fn wrong_parameters_are_refused_by_name() {
        let told =
            |given: &[(&'static str, &'static str)]| of(given).expect_err("a refusal").to_string();
        assert!(
            told(&[("sevrers", "x")]).starts_with("there is no parameter `sevrers`; there are")
        );
        assert!(told(&[("MEMKV_SERVER", "x")]).contains("`MEMKV_SERVER`"));
        assert!(told(&[("servers", "a b")]).contains("`a b` is not a server"));
        assert!(told(&[("num_connections", "0")]).contains("num_connections must be 1 to 1024"));
        assert!(told(&[("config", "/nowhere")]).contains("cannot read /nowhere"));
        assert!(told(&[("write_mode", "append")]).contains("not `append`"));
        assert!(told(&[("staging_size_mb", "x")]).contains("MEMKV_STAGING_SIZE_MB is a number"));
        let slot = [("MEMKV_STAGING_SIZE_MB", "8"), ("MEMKV_STAGING_SLOT_MB", "9")];
        assert!(told(&slot).contains("more than the 8"));
        let twice = [("namespace", "a"), ("MEMKV_NAMESPACE", "b")];
        assert!(told(&twice).contains("given twice"));
        assert!(of(&[("namespace", "a"), ("MEMKV_NAMESPACE", "a")]).is_ok());
    }
}
