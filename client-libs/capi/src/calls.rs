//! The calls of a client.

#![allow(unsafe_code)]
#![allow(clippy::missing_safety_doc, reason = "the header's first lines are the contract of all")]
#![allow(non_camel_case_types, reason = "they have the names that C knows them by")]

use std::ffi::c_char;
use std::time::Duration;

use ::memkv_client::{
    Client, ClientError, Config, GetItem, GetOutcome, Keys, PutItem, PutMode, PutOptions,
    PutOutcome, SharedKey, one_line,
};

use crate::memory::{self, Out, Region};
use crate::status::{
    Failure, MEMKV_MISS, MEMKV_OK, MEMKV_PRESENT, guard, last_text, of as status_of,
};
use crate::types::{
    MEMKV_ABI_VERSION, MEMKV_NO_ENVIRONMENT, MEMKV_PUT_ABSENT, MEMKV_PUT_GENERATION,
    MEMKV_PUT_REPLACE, memkv_buffer, memkv_bytes, memkv_config, memkv_info, memkv_put_options,
    memkv_value,
};

/// A client of one or more servers.
pub struct memkv_client {
    pub(crate) client: Client,
}

/// The version of the library, "major.minor.patch". Never NULL, never freed.
#[unsafe(no_mangle)]
pub extern "C" fn memkv_version() -> *const c_char {
    const { concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast() }
}

/// The MEMKV_ABI_VERSION that the library was built with; one that differs from the header's cannot be used.
#[unsafe(no_mangle)]
pub extern "C" fn memkv_abi_version() -> u32 {
    MEMKV_ABI_VERSION
}

/// What went wrong in the last call of this thread that returned an error, in one line. It is the thread's, and
/// stays as it is until another of its calls fails. Empty before the first; never NULL, never freed.
#[unsafe(no_mangle)]
pub extern "C" fn memkv_error() -> *const c_char {
    last_text()
}

/// Makes a client. Nobody is talked to yet. `config` may be NULL: then MEMKV_CONFIG and the other MEMKV_*
/// variables say everything; what is set in it goes before them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memkv_open(
    config: *const memkv_config,
    client: *mut *mut memkv_client,
) -> i32 {
    guard(|| {
        // SAFETY: the contract of the header.
        let out = unsafe { Out::new("client", client, 1)? };
        out.set(0, std::ptr::null_mut());
        // SAFETY: the contract of the header, also for the texts in it.
        let config = unsafe { configuration(memory::versioned("memkv_config", config)?)? };
        let client = Client::new(config)?;
        out.set(0, memory::lend(memkv_client { client }));
        Ok(MEMKV_OK)
    })
}

/// Closes a client; NULL is no client. Its queues live on.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memkv_close(client: *mut memkv_client) {
    guard(|| {
        // SAFETY: the contract of the header.
        drop(unsafe { memory::take_back(client) });
        Ok(MEMKV_OK)
    });
}

/// Stores one value. MEMKV_OK when it is stored, MEMKV_PRESENT when a value of this length was there before and
/// stays. `info` may be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memkv_put(
    client: *const memkv_client,
    key: memkv_bytes,
    value: memkv_bytes,
    options: *const memkv_put_options,
    info: *mut memkv_info,
) -> i32 {
    guard(|| {
        // SAFETY: the contract of the header.
        let (client, key, value, options, out) = unsafe {
            (
                memory::handle("client", client)?,
                memory::bytes("key", key.data, key.length)?,
                memory::bytes("value", value.data, value.length)?,
                put_options(options)?,
                Out::optional("info", info, 1)?,
            )
        };
        let outcome = client.client.put(key, value, &options)?;
        let (status, info) = told(&outcome, value.len());
        out.set(0, info);
        Ok(status)
    })
}

/// Reads one value into memory of the library, which memkv_value_free gives back. MEMKV_OK or MEMKV_MISS.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memkv_get(
    client: *const memkv_client,
    key: memkv_bytes,
    value: *mut memkv_value,
) -> i32 {
    guard(|| {
        // SAFETY: the contract of the header.
        let out = unsafe { Out::new("value", value, 1)? };
        // Whatever comes, it can be given to memkv_value_free.
        out.set(0, NOTHING);
        // SAFETY: the contract of the header.
        let (client, key) = unsafe {
            (memory::handle("client", client)?, memory::bytes("key", key.data, key.length)?)
        };
        let mut bytes = Vec::new();
        match client.client.get(key, &mut bytes)? {
            GetOutcome::Hit { generation, .. } => {
                let bytes = bytes.into_boxed_slice();
                let length = bytes.len();
                let data = Box::into_raw(bytes).cast();
                out.set(0, memkv_value { data, length, generation });
                Ok(MEMKV_OK)
            }
            GetOutcome::Miss(_) => Ok(MEMKV_MISS),
        }
    })
}

const NOTHING: memkv_value = memkv_value { data: std::ptr::null_mut(), length: 0, generation: 0 };

/// Frees what memkv_get brought, and empties the struct; an empty one, and NULL, are left as they are.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memkv_value_free(value: *mut memkv_value) {
    guard(|| {
        // SAFETY: the contract of the header: it is NULL, or was filled by memkv_get, or is empty.
        if let Some(value) = unsafe { value.as_mut() } {
            let memkv_value { data, length, .. } = std::mem::replace(value, NOTHING);
            let bytes = std::ptr::slice_from_raw_parts_mut(data.cast::<u8>(), length);
            if !data.is_null() {
                // SAFETY: memkv_get made both of a box of bytes, and nobody freed it: the struct was not empty.
                drop(unsafe { Box::from_raw(bytes) });
            }
        }
        Ok(MEMKV_OK)
    });
}

/// Reads from `offset` of a value on into `buffer`, until one of them ends. MEMKV_OK or MEMKV_MISS; `info`,
/// which may be NULL, tells the length of the whole value. Unless MEMKV_OK is returned, what is in the buffer
/// means nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memkv_get_into(
    client: *const memkv_client,
    key: memkv_bytes,
    offset: u64,
    buffer: memkv_buffer,
    info: *mut memkv_info,
) -> i32 {
    guard(|| {
        // SAFETY: the contract of the header. The key is taken over: it may lie in the buffer.
        let (client, keys, mut buffer, out) = unsafe {
            (
                memory::handle("client", client)?,
                memory::keys(&raw const key, 1)?,
                Region::of_buffer(buffer)?,
                Out::optional("info", info, 1)?,
            )
        };
        let outcome = client.client.get_into(keys.slices()[0], offset, buffer.as_mut())?;
        let (status, info) = found(&outcome);
        out.set(0, info);
        Ok(status)
    })
}

/// Whether a block is stored: MEMKV_OK or MEMKV_MISS. It may be gone the next moment.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memkv_exists(client: *const memkv_client, key: memkv_bytes) -> i32 {
    guard(|| {
        // SAFETY: the contract of the header.
        let (client, key) = unsafe {
            (memory::handle("client", client)?, memory::bytes("key", key.data, key.length)?)
        };
        let there = client.client.exists(&[key])?;
        Ok(yes(there == [true]))
    })
}

/// Removes one block: MEMKV_OK, or MEMKV_MISS when there was none. `generation` 0 stands for any.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memkv_delete(
    client: *const memkv_client,
    key: memkv_bytes,
    generation: u64,
) -> i32 {
    guard(|| {
        // SAFETY: the contract of the header.
        let (client, key) = unsafe {
            (memory::handle("client", client)?, memory::bytes("key", key.data, key.length)?)
        };
        Ok(yes(client.client.delete(key, (generation > 0).then_some(generation))?))
    })
}

/// How many keys at the front of `keys` are stored, in one request per server.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memkv_match_prefix(
    client: *const memkv_client,
    keys: *const memkv_bytes,
    count: usize,
    matched: *mut usize,
) -> i32 {
    guard(|| {
        // SAFETY: the contract of the header.
        let (client, keys, out) = unsafe {
            (
                memory::handle("client", client)?,
                memory::keys(keys, count)?,
                Out::new("matched", matched, 1)?,
            )
        };
        out.set(0, client.client.match_prefix(&keys.slices())?);
        Ok(MEMKV_OK)
    })
}

/// Stores `count` values, in the order of their chain. `statuses` gets what memkv_put would return for each.
/// Returns MEMKV_OK, or the status of the first that failed; the others are carried out all the same.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memkv_put_batch(
    client: *const memkv_client,
    keys: *const memkv_bytes,
    values: *const memkv_bytes,
    count: usize,
    options: *const memkv_put_options,
    statuses: *mut i32,
) -> i32 {
    guard(|| {
        // SAFETY: the contract of the header.
        let (client, keys, values, options, out) = unsafe {
            (
                memory::handle("client", client)?,
                memory::keys(keys, count)?,
                memory::list("values", values, count)?,
                put_options(options)?,
                Out::new("statuses", statuses, count)?,
            )
        };
        let mut items = Vec::with_capacity(count);
        for (key, value) in keys.slices().into_iter().zip(values) {
            // SAFETY: the contract of the header.
            let value = unsafe { memory::bytes("a value", value.data, value.length)? };
            items.push(PutItem { key, value, options, parent: None });
        }
        settle(client.client.put_batch(&items), |at, answer| {
            out.set(at, answer.map_or_else(status_of, |outcome| told(outcome, 0).0));
        })
    })
}

/// Reads `count` values, each into its buffer. `statuses` gets what memkv_get_into would return for each, and
/// `infos`, which may be NULL, what is known of them. The buffers must not overlap. Returns as memkv_put_batch.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memkv_get_batch(
    client: *const memkv_client,
    keys: *const memkv_bytes,
    buffers: *const memkv_buffer,
    count: usize,
    statuses: *mut i32,
    infos: *mut memkv_info,
) -> i32 {
    guard(|| {
        // SAFETY: the contract of the header.
        let (client, keys, mut buffers, out, infos) = unsafe {
            (
                memory::handle("client", client)?,
                memory::keys(keys, count)?,
                Region::of_buffers(buffers, count)?,
                Out::new("statuses", statuses, count)?,
                Out::optional("infos", infos, count)?,
            )
        };
        let keys = keys.slices();
        let items = keys.into_iter().zip(&mut buffers);
        let item = |(key, buffer)| GetItem { key, offset: 0, buf: Region::as_mut(buffer) };
        let mut items: Vec<GetItem<'_>> = items.map(item).collect();
        settle(client.client.get_batch(&mut items), |at, answer| {
            let (status, info) = answer.map_or_else(|error| (status_of(error), NOBODY), found);
            out.set(at, status);
            infos.set(at, info);
        })
    })
}

/// Which of `count` keys are stored: `statuses` gets MEMKV_OK or MEMKV_MISS for each. Keys of a server that
/// cannot be reached count as not stored.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memkv_exists_batch(
    client: *const memkv_client,
    keys: *const memkv_bytes,
    count: usize,
    statuses: *mut i32,
) -> i32 {
    guard(|| {
        // SAFETY: the contract of the header.
        let (client, keys, out) = unsafe { asked(client, keys, count, statuses)? };
        for (at, there) in client.client.exists(&keys.slices())?.into_iter().enumerate() {
            out.set(at, yes(there));
        }
        Ok(MEMKV_OK)
    })
}

/// Removes `count` blocks: `statuses` gets what memkv_delete would return for each. Returns as memkv_put_batch.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memkv_delete_batch(
    client: *const memkv_client,
    keys: *const memkv_bytes,
    count: usize,
    statuses: *mut i32,
) -> i32 {
    guard(|| {
        // SAFETY: the contract of the header.
        let (client, keys, out) = unsafe { asked(client, keys, count, statuses)? };
        settle(client.client.delete_batch(&keys.slices()), |at, answer| {
            out.set(at, answer.map_or_else(status_of, |there| yes(*there)));
        })
    })
}

/// What a call with keys alone was given.
///
/// # Safety
/// The contract of the header.
unsafe fn asked<'a>(
    client: *const memkv_client,
    keys: *const memkv_bytes,
    count: usize,
    statuses: *mut i32,
) -> Result<(&'a memkv_client, Keys, Out<i32>), Failure> {
    // SAFETY: the caller's promise.
    unsafe {
        Ok((
            memory::handle("client", client)?,
            memory::keys(keys, count)?,
            Out::new("statuses", statuses, count)?,
        ))
    }
}

/// # Safety
/// The texts are NULL, or end with a NUL.
unsafe fn configuration(given: Option<memkv_config>) -> Result<Config, Failure> {
    let bad = |error| Failure::from(ClientError::from(error));
    let Some(given) = given else { return Config::load().map_err(bad) };
    if given.flags & !MEMKV_NO_ENVIRONMENT != 0 {
        return Err(Failure::invalid("memkv_config: there are no such flags"));
    }
    // SAFETY: the caller's promise.
    let (servers, namespace, key) = unsafe {
        (
            memory::text("servers", given.servers)?,
            memory::text("key_namespace", given.key_namespace)?,
            memory::text("auth_key", given.auth_key)?,
        )
    };
    let mut config = match given.flags & MEMKV_NO_ENVIRONMENT {
        0 => Config::load().map_err(bad)?,
        _ => Config::default(),
    };
    if let Some(servers) = servers {
        config.servers = servers.split(',').map(|server| server.trim().to_owned()).collect();
    }
    config.namespace = namespace.unwrap_or(config.namespace);
    if let Some(key) = key {
        let key = SharedKey::from_hex(&key).map_err(|error| Failure {
            status: crate::status::MEMKV_E_CONFIG,
            text: format!("auth_key: {}", one_line(&error)),
        })?;
        config.auth_key = Some(key);
    }
    let or = |given: u64, else_: u64| if given > 0 { given } else { else_ };
    config.key_id = or(given.key_id.into(), config.key_id.into()) as u32;
    config.num_connections =
        or(given.num_connections.into(), config.num_connections as u64) as usize;
    config.connect_timeout_ms = or(given.connect_timeout_ms, config.connect_timeout_ms);
    config.request_timeout_ms = or(given.request_timeout_ms, config.request_timeout_ms);
    Ok(config)
}

/// # Safety
/// `given` is NULL, or as long as its size says.
pub(crate) unsafe fn put_options(given: *const memkv_put_options) -> Result<PutOptions, Failure> {
    // SAFETY: the caller's promise; 0 is good for all fields.
    let Some(given) = (unsafe { memory::versioned("memkv_put_options", given)? }) else {
        return Ok(PutOptions::default());
    };
    Ok(PutOptions {
        mode: match given.mode {
            MEMKV_PUT_ABSENT => PutMode::Absent,
            MEMKV_PUT_REPLACE => PutMode::Replace,
            MEMKV_PUT_GENERATION => PutMode::Generation(given.generation),
            _ => return Err(Failure::invalid("memkv_put_options: there is no such mode")),
        },
        ttl_seconds: given.ttl_seconds,
        durable: given.durable != 0,
        pin_seconds: given.pin_seconds,
        deadline: (given.timeout_ms > 0).then(|| duration(given.timeout_ms)),
    })
}

/// Milliseconds, of which more than a year are no longer than that.
pub(crate) fn duration(ms: u64) -> Duration {
    Duration::from_millis(ms.min(365 * 24 * 3600 * 1000))
}

/// Tells the answers, and gives the status of the first failure.
pub(crate) fn settle<T>(
    answers: Vec<Result<T, ClientError>>,
    mut tell: impl FnMut(usize, Result<&T, &ClientError>),
) -> Result<i32, Failure> {
    for (at, answer) in answers.iter().enumerate() {
        tell(at, answer.as_ref());
    }
    let failure = answers.into_iter().find_map(Result::err);
    failure.map_or(Ok(MEMKV_OK), |error| Err(error.into()))
}

/// What is known of a block that nothing is known of.
pub(crate) const NOBODY: memkv_info = memkv_info { length: 0, generation: 0, reason: 0 };

/// What became of a put of `length` bytes.
pub(crate) fn told(outcome: &PutOutcome, length: usize) -> (i32, memkv_info) {
    match *outcome {
        PutOutcome::Stored { generation } => {
            (MEMKV_OK, memkv_info { length: length as u64, generation, reason: 0 })
        }
        PutOutcome::Present { generation, length, .. } => {
            (MEMKV_PRESENT, memkv_info { length, generation, reason: 0 })
        }
    }
}

/// What became of a get.
pub(crate) fn found(outcome: &GetOutcome) -> (i32, memkv_info) {
    match *outcome {
        GetOutcome::Hit { length, generation } => {
            (MEMKV_OK, memkv_info { length, generation, reason: 0 })
        }
        GetOutcome::Miss(reason) => {
            (MEMKV_MISS, memkv_info { reason: reason.raw().into(), ..NOBODY })
        }
    }
}

/// Whether there is, or was, a block.
pub(crate) fn yes(there: bool) -> i32 {
    if there { MEMKV_OK } else { MEMKV_MISS }
}
