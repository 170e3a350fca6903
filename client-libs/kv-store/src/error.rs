//! What can go wrong, and which errno that is.

use std::ffi::c_int;

use memkv_client::ClientError;

/// Why a call has failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// An argument makes no sense.
    #[error("{0}")]
    Invalid(&'static str),
    /// There is no such chunk or manifest, or not all of it.
    #[error("not there")]
    Absent,
    /// Other content of the same hash.
    #[error("another chunk of {length} bytes is stored under this hash")]
    Collision {
        /// Its length.
        length: u64,
    },
    /// What is stored under the key of a manifest is none.
    #[error("what is stored under this name is no manifest")]
    Strange,
    /// A manifest of too many chunks.
    #[error("more than {limit} chunks were put without a manifest")]
    Chunks {
        /// Most chunks of a manifest.
        limit: usize,
    },
    /// A chunk or the manifest itself was refused before, for what it is.
    #[error("it was refused before: put its chunks again")]
    Abandoned,
    /// No memory.
    #[error("no memory")]
    Memory,
    /// A call panicked while it held the handle, and what it left is not known.
    #[error("the handle is out of order since a fault of this library: close it")]
    Poisoned,
    /// memkv said no, or nothing.
    #[error(transparent)]
    Client(#[from] ClientError),
}

impl StoreError {
    /// Whether the same will be refused again however often it is tried.
    pub fn is_final(&self) -> bool {
        match self {
            StoreError::Collision { .. } => true,
            StoreError::Client(error) => {
                matches!(error, ClientError::TooLarge { .. } | ClientError::Conflict { .. })
            }
            _ => false,
        }
    }

    /// As the interface has it: the negative of an errno.
    pub fn answer(&self) -> c_int {
        -match self {
            StoreError::Invalid(_) => libc::EINVAL,
            StoreError::Absent => libc::ENOENT,
            StoreError::Collision { .. } => libc::EEXIST,
            StoreError::Strange | StoreError::Poisoned => libc::EIO,
            StoreError::Abandoned => libc::ECANCELED,
            StoreError::Chunks { .. } => libc::E2BIG,
            StoreError::Memory => libc::ENOMEM,
            StoreError::Client(error) => match error {
                ClientError::Config(_) | ClientError::BadKey { .. } | ClientError::EmptyValue => {
                    libc::EINVAL
                }
                ClientError::TooLarge { .. } => libc::EFBIG,
                ClientError::Busy { .. } => libc::EAGAIN,
                ClientError::Full { .. } => libc::ENOSPC,
                ClientError::Conflict { .. } => libc::EEXIST,
                ClientError::Timeout { .. } => libc::ETIMEDOUT,
                ClientError::Unavailable { .. } => libc::EHOSTUNREACH,
                ClientError::Broken { .. } => libc::ECONNRESET,
                ClientError::Unauthorized { .. } => libc::EACCES,
                ClientError::GenerationMismatch { .. }
                | ClientError::Corrupt { .. }
                | ClientError::Io { .. }
                | ClientError::Refused { .. } => libc::EIO,
            },
        }
    }
}
