//! The structs of the header.
#![allow(non_camel_case_types, reason = "they have the names that C knows them by")]

use std::ffi::{c_char, c_void};

/// Counts the changes of this interface that old programs do not survive.
pub const MEMKV_ABI_VERSION: u32 = 0;

/// Only if nothing is stored under the key.
pub const MEMKV_PUT_ABSENT: u32 = 0;
/// Whatever is stored under the key.
pub const MEMKV_PUT_REPLACE: u32 = 1;
/// Only if the key has exactly the generation named.
pub const MEMKV_PUT_GENERATION: u32 = 2;

/// In memkv_config.flags: neither MEMKV_CONFIG nor the other MEMKV_* variables are looked at.
pub const MEMKV_NO_ENVIRONMENT: u32 = 1;

/// The operations that a completion can be of.
pub const MEMKV_OP_PUT: u32 = 1;
/// See MEMKV_OP_PUT.
pub const MEMKV_OP_GET: u32 = 2;
/// See MEMKV_OP_PUT.
pub const MEMKV_OP_EXISTS: u32 = 3;
/// See MEMKV_OP_PUT.
pub const MEMKV_OP_MATCH_PREFIX: u32 = 4;
/// See MEMKV_OP_PUT.
pub const MEMKV_OP_DELETE: u32 = 5;

/// Bytes to read: a key of 1 to 512 bytes, or a value. `data` may be NULL where `length` is 0.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct memkv_bytes {
    /// The first of them.
    pub data: *const c_void,
    /// How many.
    pub length: usize,
}

/// Memory to write to. `data` may be NULL where `length` is 0.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct memkv_buffer {
    /// Its first byte.
    pub data: *mut c_void,
    /// How many bytes.
    pub length: usize,
}

/// How a client finds its servers. What is NULL or 0 is as the environment says, or else as the documentation
/// of the client says.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct memkv_config {
    /// sizeof(memkv_config), which tells the fields that the program knows.
    pub size: usize,
    /// host[:port][*weight], separated by commas.
    pub servers: *const c_char,
    /// The namespace of the keys, 1 to 255 bytes.
    pub key_namespace: *const c_char,
    /// 64 hexadecimal digits.
    pub auth_key: *const c_char,
    /// Which of the server's keys that is.
    pub key_id: u32,
    /// Connections per server.
    pub num_connections: u32,
    /// Milliseconds until a connection must stand.
    pub connect_timeout_ms: u64,
    /// Milliseconds that a call may take in all.
    pub request_timeout_ms: u64,
    /// 0 or MEMKV_NO_ENVIRONMENT.
    pub flags: u32,
}

/// How to store values. NULL stands for one that is all 0, but for its size.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct memkv_put_options {
    /// sizeof(memkv_put_options), which tells the fields that the program knows.
    pub size: usize,
    /// MEMKV_PUT_ABSENT, MEMKV_PUT_REPLACE or MEMKV_PUT_GENERATION.
    pub mode: u32,
    /// Seconds to live; 0 for ever.
    pub ttl_seconds: u32,
    /// Seconds for which it is evicted after all others; 0 for none.
    pub pin_seconds: u32,
    /// Not 0: answer only when the value survives a power cut, whatever the server's default.
    pub durable: u32,
    /// With MEMKV_PUT_GENERATION.
    pub generation: u64,
    /// Milliseconds that the call may take; 0 as configured.
    pub timeout_ms: u64,
}

/// What is known of a block.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct memkv_info {
    /// Bytes of the whole value, which may be more than the buffer took; 0 for a miss.
    pub length: u64,
    /// Its generation; 0 for a miss.
    pub generation: u64,
    /// Why there is no block: 0 never stored, 1 evicted, 2 deleted, 3 expired, 4 drive lost, 5 corrupt.
    pub reason: u32,
}

/// A value that memkv_get brought, in memory of the library until memkv_value_free.
#[repr(C)]
pub struct memkv_value {
    /// Its first byte; NULL when there is none.
    pub data: *mut c_void,
    /// How many bytes.
    pub length: usize,
    /// Its generation.
    pub generation: u64,
}

/// A batch of a queue that is done. What it points to belongs to the memkv_completions that it came in.
#[repr(C)]
pub struct memkv_completion {
    /// What submitting it gave.
    pub ticket: u64,
    /// MEMKV_OP_PUT and so on.
    pub operation: u32,
    /// MEMKV_OK, or that of the first key that failed. A miss is no failure.
    pub status: i32,
    /// Keys of the batch; 0 of a MEMKV_OP_MATCH_PREFIX, and of a MEMKV_OP_EXISTS that failed.
    pub count: usize,
    /// One for each key, `count` of them.
    pub statuses: *const i32,
    /// Of a get: what is known of each block. Else NULL.
    pub infos: *const memkv_info,
    /// Of a MEMKV_OP_MATCH_PREFIX: how many keys at the front are stored.
    pub matched: usize,
    /// What the first failure was; empty when there was none.
    pub error: *const c_char,
    /// Nanoseconds from its submission until a worker took it.
    pub waited_ns: u64,
    /// Nanoseconds from then until it was done.
    pub took_ns: u64,
}

/// Completions, until memkv_completions_free.
#[repr(C)]
pub struct memkv_completions {
    /// `count` of them; NULL when there are none.
    pub items: *const memkv_completion,
    /// How many.
    pub count: usize,
    /// Of the library.
    pub owner: *mut c_void,
}
