//! What callers give, taken apart.

use std::path::Path;
use std::time::Duration;

use memkv_client::{
    Config, Hint, Keys, PutMode, PutOptions, SharedKey, TraceError, TraceId, Transport, one_line,
};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyString};

use crate::buffer::{Memory, disjoint};
use crate::errors::{BadKey, ConfigError};

/// Longest key, its prefix included.
const KEY_MAX: usize = 512;

/// The configuration: defaults, the file, the variables, then what is in `arguments`.
///
/// # Errors
/// `ConfigError` names the argument, file or variable.
pub fn config(
    servers: Option<&Bound<'_, PyAny>>,
    arguments: Option<&Bound<'_, PyDict>>,
) -> PyResult<Config> {
    let argument = |name: &str| match arguments {
        Some(arguments) => Ok(arguments.get_item(name)?.filter(|value| !value.is_none())),
        None => PyResult::Ok(None),
    };
    known(arguments)?;
    let loaded = match argument("config")? {
        Some(path) => {
            let path: std::path::PathBuf = path.extract()?;
            from_file(&path)?
        }
        None => Config::load().map_err(|error| ConfigError::new_err(one_line(&error)))?,
    };
    let mut config = loaded;
    if let Some(servers) = servers.filter(|servers| !servers.is_none()) {
        config.servers = match servers.cast::<PyString>() {
            Ok(one) => one.to_str()?.split(',').map(|part| part.trim().to_owned()).collect(),
            Err(_) => servers.extract()?,
        };
    }
    if let Some(value) = argument("namespace")? {
        config.namespace = value.extract()?;
    }
    if let Some(value) = argument("auth_key")? {
        let digits: String = value.extract()?;
        let key = SharedKey::from_hex(&digits)
            .map_err(|error| ConfigError::new_err(format!("auth_key: {}", one_line(&error))))?;
        config.auth_key = Some(key);
    }
    if let Some(value) = argument("key_id")? {
        config.key_id = value.extract()?;
    }
    if let Some(value) = argument("num_connections")? {
        config.num_connections = value.extract()?;
    }
    if let Some(value) = argument("connect_timeout")? {
        config.connect_timeout_ms = milliseconds("connect_timeout", value.extract()?)?;
    }
    if let Some(value) = argument("request_timeout")? {
        config.request_timeout_ms = milliseconds("request_timeout", value.extract()?)?;
    }
    if let Some(value) = argument("transport")? {
        config.transport = match value.extract::<String>()?.as_str() {
            "auto" => Transport::Auto,
            "tcp" => Transport::Tcp,
            "rdma" => Transport::Rdma,
            other => {
                let error = format!("transport is `auto`, `tcp` or `rdma`, not `{other}`");
                return Err(ConfigError::new_err(error));
            }
        };
    }
    Ok(config)
}

/// Refuses arguments that there are not.
fn known(arguments: Option<&Bound<'_, PyDict>>) -> PyResult<()> {
    const NAMES: [&str; 8] = [
        "namespace",
        "auth_key",
        "key_id",
        "num_connections",
        "connect_timeout",
        "request_timeout",
        "config",
        "transport",
    ];
    for key in arguments.into_iter().flat_map(|arguments| arguments.keys()) {
        let key: String = key.extract()?;
        if !NAMES.contains(&key.as_str()) {
            let known = NAMES.join(", ");
            return Err(PyTypeError::new_err(format!("no argument `{key}`; there are {known}")));
        }
    }
    Ok(())
}

fn from_file(path: &Path) -> PyResult<Config> {
    let content = std::fs::read_to_string(path).map_err(|error| {
        ConfigError::new_err(format!("cannot read {}: {error}", path.display()))
    })?;
    let variable = |name: &str| std::env::var(name).ok();
    Config::from_parts(Some((path, &content)), variable)
        .map_err(|error| ConfigError::new_err(one_line(&error)))
}

fn milliseconds(name: &str, seconds: f64) -> PyResult<u64> {
    let time = duration(name, seconds)?;
    Ok((time.as_millis().max(1)).try_into().unwrap_or(u64::MAX))
}

/// A time given in seconds.
///
/// # Errors
/// `ValueError` names the argument.
pub fn duration(name: &str, seconds: f64) -> PyResult<Duration> {
    Duration::try_from_secs_f64(seconds)
        .ok()
        .filter(|time| !time.is_zero())
        .ok_or_else(|| PyValueError::new_err(format!("{name} is a time in seconds, above 0")))
}

/// A trace id, or a traceparent.
///
/// # Errors
/// `ValueError` says what it looks like.
pub fn trace(trace: &str) -> PyResult<TraceId> {
    trace.parse().map_err(|error: TraceError| PyValueError::new_err(format!("trace: {error}")))
}

/// The bytes of a key: those of `bytes`, or UTF-8.
fn key_bytes<'a>(key: &'a Bound<'_, PyAny>) -> PyResult<&'a [u8]> {
    if let Ok(text) = key.cast::<PyString>() {
        return Ok(text.to_str()?.as_bytes());
    }
    if let Ok(bytes) = key.cast::<PyBytes>() {
        return Ok(bytes.as_bytes());
    }
    let kind = key.get_type().name()?;
    Err(PyTypeError::new_err(format!("a key is str or bytes, not {kind}")))
}

/// What stands before every key; it leaves room for a key.
///
/// # Errors
/// As for a key.
pub fn prefix(prefix: Option<&Bound<'_, PyAny>>) -> PyResult<Vec<u8>> {
    let Some(prefix) = prefix.filter(|prefix| !prefix.is_none()) else { return Ok(Vec::new()) };
    let bytes = key_bytes(prefix)?;
    match bytes.len() < KEY_MAX {
        true => Ok(bytes.to_vec()),
        false => Err(BadKey::new_err(format!("a prefix has at most {} bytes", KEY_MAX - 1))),
    }
}

fn push_key(keys: &mut Keys, prefix: &[u8], key: &Bound<'_, PyAny>) -> PyResult<()> {
    let bytes = key_bytes(key)?;
    let length = prefix.len() + bytes.len();
    if bytes.is_empty() || length > KEY_MAX {
        return Err(BadKey::new_err(format!(
            "a key has 1 to {KEY_MAX} bytes with its prefix, this one has {length}"
        )));
    }
    keys.push(prefix, bytes);
    Ok(())
}

/// Many keys, each behind `prefix`.
///
/// # Errors
/// `TypeError`, or `BadKey` for a length that keys do not have.
pub fn keys(prefix: &[u8], list: &Bound<'_, PyAny>) -> PyResult<Keys> {
    if list.is_instance_of::<PyString>() || list.is_instance_of::<PyBytes>() {
        return Err(PyTypeError::new_err("give a list of keys, not one key"));
    }
    let mut keys = Keys::with_capacity(list.len().unwrap_or(16), prefix.len() + 64);
    for key in list.try_iter()? {
        push_key(&mut keys, prefix, &key?)?;
    }
    Ok(keys)
}

/// One key.
///
/// # Errors
/// As [`keys`].
pub fn key(prefix: &[u8], key: &Bound<'_, PyAny>) -> PyResult<Keys> {
    let mut keys = Keys::default();
    push_key(&mut keys, prefix, key)?;
    Ok(keys)
}

/// The memory of many values, each of which may lie in several places.
pub struct Buffers {
    /// Piece by piece, value by value.
    pub memory: Vec<Memory>,
    /// How many pieces each value has, where one has not just one.
    pub counts: Option<Vec<usize>>,
}

impl Buffers {
    /// Of values, or places for values. A list is a value in pieces.
    fn of(
        keys: &Keys,
        values: &Bound<'_, PyAny>,
        memory_of: fn(&Bound<'_, PyAny>) -> PyResult<Memory>,
    ) -> PyResult<Buffers> {
        let (mut memory, mut counts) =
            (Vec::with_capacity(keys.len()), Vec::with_capacity(keys.len()));
        let mut in_pieces = false;
        for value in values.try_iter()? {
            let value = value?;
            match value.cast::<PyList>() {
                Ok(pieces) => {
                    for piece in pieces {
                        memory.push(memory_of(&piece)?);
                    }
                    counts.push(pieces.len());
                    in_pieces = true;
                }
                Err(_) => {
                    memory.push(memory_of(&value)?);
                    counts.push(1);
                }
            }
        }
        if keys.len() != counts.len() {
            let (keys, buffers) = (keys.len(), counts.len());
            return Err(PyValueError::new_err(format!(
                "{keys} keys and {buffers} buffers: give one for each key, a list of its pieces where a \
                 value lies in several places"
            )));
        }
        Ok(Buffers { memory, counts: in_pieces.then_some(counts) })
    }

    /// Places of the first piece of each value and behind its last; only where they are in pieces.
    pub fn ranges(counts: &[usize]) -> impl Iterator<Item = std::ops::Range<usize>> + '_ {
        counts.iter().scan(0, |end, count| {
            let start = *end;
            *end += count;
            Some(start..*end)
        })
    }
}

/// The buffers of a put.
///
/// # Errors
/// What is wrong with one of them, or their number.
pub fn sources(keys: &Keys, values: &Bound<'_, PyAny>) -> PyResult<Buffers> {
    Buffers::of(keys, values, Memory::readable)
}

/// The buffers of a get.
///
/// # Errors
/// What is wrong with one of them, or their number; or two of them overlap.
pub fn sinks(keys: &Keys, buffers: &Bound<'_, PyAny>) -> PyResult<Buffers> {
    let buffers = Buffers::of(keys, buffers, Memory::writable)?;
    disjoint(&buffers.memory)?;
    Ok(buffers)
}

/// How a put is done, from its keyword arguments.
#[derive(Clone, Copy, Default)]
pub struct PutArguments {
    pub replace: bool,
    pub ttl: Option<f64>,
    pub durable: bool,
    pub pin: Option<f64>,
    pub timeout: Option<f64>,
}

impl PutArguments {
    /// The engine's options.
    ///
    /// # Errors
    /// `ValueError` for a time that is none.
    pub fn options(self) -> PyResult<PutOptions> {
        let time = |name, seconds: Option<f64>| seconds.map(|s| duration(name, s)).transpose();
        let whole = |time: Option<Duration>| {
            let seconds = time.map_or(0, |time| time.as_millis().div_ceil(1000));
            u32::try_from(seconds).unwrap_or(u32::MAX)
        };
        Ok(PutOptions {
            mode: if self.replace { PutMode::Replace } else { PutMode::Absent },
            ttl_seconds: whole(time("ttl", self.ttl)?),
            durable: self.durable,
            pin_seconds: whole(time("pin", self.pin)?),
            deadline: time("timeout", self.timeout)?,
        })
    }
}

/// What is known of the future of blocks.
///
/// # Errors
/// `ValueError` names the advice there is.
pub fn hint(advice: &str, seconds: Option<f64>) -> PyResult<Hint> {
    match (advice, seconds) {
        ("release", None) => Ok(Hint::Release),
        ("retain", None) => Ok(Hint::Retain),
        ("pin", Some(seconds)) => Ok(Hint::Pin(duration("seconds", seconds)?)),
        _ => Err(PyValueError::new_err("advice is `release`, `retain`, or `pin` with seconds")),
    }
}
