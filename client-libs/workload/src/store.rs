//! What a workload needs of a block store: the seam between the loops here and the client engine.
//!
//! Tests put a map in memory behind it; everything else uses [`memkv_client::Client`].

use std::error::Error;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A block to be stored.
#[derive(Copy, Clone, Debug)]
pub struct PutBlock<'a> {
    /// Its key, 1 to 512 bytes.
    pub key: &'a [u8],
    /// Its bytes.
    pub value: &'a [u8],
}

/// A block to be fetched, whole.
#[derive(Debug)]
pub struct GetBlock<'a> {
    /// Its key, 1 to 512 bytes.
    pub key: &'a [u8],
    /// Where its bytes go; as long as the block.
    pub into: &'a mut [u8],
}

/// What a put is to do when the key has a block already.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Present {
    /// Leave it: a block of KV cache is as good as any other of the same hash.
    Keep,
    /// Store the offered bytes in its place.
    Replace,
}

/// How a put ended well.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Stored {
    /// The bytes offered are stored now.
    New,
    /// The key had a block of this length already, and it was left.
    Present,
}

/// How a get ended well.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Fetched {
    /// The block is in the buffer; this many bytes of it.
    Hit(u64),
    /// There is no such block; why, in the server's words.
    Miss(&'static str),
}

/// The kinds of failure that a report counts apart.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// The server has no room to work on it just now.
    Busy,
    /// The drives are full and nothing may be evicted.
    Full,
    /// The key holds a block of another length.
    Conflict,
    /// The deadline passed: whether it was done is unknown.
    Timeout,
    /// The connection broke: whether it was done is unknown.
    Broken,
    /// The server is not there.
    Unavailable,
    /// Bytes arrived that do not match their checksum.
    Corrupt,
    /// Anything else.
    Other,
}

impl fmt::Display for FailureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FailureKind::Busy => "busy",
            FailureKind::Full => "full",
            FailureKind::Conflict => "conflict",
            FailureKind::Timeout => "timeout",
            FailureKind::Broken => "broken",
            FailureKind::Unavailable => "unavailable",
            FailureKind::Corrupt => "corrupt",
            FailureKind::Other => "other",
        })
    }
}

/// A call that failed.
#[derive(Debug, Error)]
#[error("{kind}")]
pub struct Failure {
    /// What a report counts it under.
    pub kind: FailureKind,
    /// What the store said.
    pub source: Box<dyn Error + Send + Sync>,
}

/// A store of blocks under keys. Calls block their thread; several threads call at once.
pub trait BlockStore: Sync {
    /// How many of `keys` are present without a gap, from the first on.
    ///
    /// # Errors
    /// When no server could be asked.
    fn match_prefix(&self, keys: &[&[u8]]) -> Result<usize, Failure>;

    /// Whether each of `keys` is present.
    ///
    /// # Errors
    /// When no server could be asked.
    fn exists(&self, keys: &[&[u8]]) -> Result<Vec<bool>, Failure>;

    /// Stores blocks; one answer per block, in order.
    fn put(&self, blocks: &[PutBlock<'_>], present: Present) -> Vec<Result<Stored, Failure>>;

    /// Fetches blocks; one answer per block, in order.
    fn get(&self, blocks: &mut [GetBlock<'_>]) -> Vec<Result<Fetched, Failure>>;

    /// Forgets a block; whether there was one.
    ///
    /// # Errors
    /// When its server could not be asked.
    fn delete(&self, key: &[u8]) -> Result<bool, Failure>;

    /// CPU time that all servers together have used since they started; `None` where they do not
    /// say.
    ///
    /// # Errors
    /// When a server could not be asked.
    fn server_cpu(&self) -> Result<Option<Duration>, Failure>;
}
