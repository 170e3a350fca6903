//! Opening a drive by its path, and the choice of its driver.
//!
//! io_uring where the kernel lets us and the medium takes direct I/O; worker threads otherwise. A
//! setting or the environment variable `MEMKV_BLOCK` (`uring`, `threads`) forces one of the two.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use memkv_dma::Pool;

use crate::medium::Medium;
use crate::threads::Threads;
use crate::{BlockDevice, Kind};

/// The environment variable that forces a driver.
const FORCE_VARIABLE: &str = "MEMKV_BLOCK";

/// Told bytes done and bytes in all while room is reserved for a file.
pub type AllocationProgress = Box<dyn FnMut(u64, u64)>;

/// What to open, and how.
pub struct OpenOptions {
    /// A file or a block device.
    pub path: PathBuf,
    /// What it is called in logs and status; nothing: its path.
    pub name: Option<String>,
    /// What is added to the reason for its driver.
    pub note: Option<String>,
    /// A file: its size in bytes, to which it is made or extended with its room reserved; a larger one
    /// is refused. A block device: how much of it is used. Nothing: what is there.
    pub size: Option<u64>,
    /// Called before, while and after room is reserved for a file.
    pub progress: Option<AllocationProgress>,
    /// The pool whose memory is registered with the kernel, so that a transfer need not pin it.
    pub pool: Pool,
    /// The driver to use; an error when it cannot be had. Goes before the environment variable.
    pub force: Option<Kind>,
    /// How long a drive that is in use is asked for again. A process that was killed holds its drives
    /// until the kernel has taken its rings apart, in the background and after its parent was told of
    /// its end; rightly so, for until then its last writes may still arrive.
    pub patience: Duration,
}

impl OpenOptions {
    /// All of what is there, by the best driver, after at most 5 s of patience.
    pub fn new(path: impl Into<PathBuf>, pool: Pool) -> OpenOptions {
        let patience = Duration::from_secs(5);
        OpenOptions {
            path: path.into(),
            name: None,
            note: None,
            size: None,
            progress: None,
            pool,
            force: None,
            patience,
        }
    }
}

/// Why a drive was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The path does not exist, may not be read and written, or cannot be asked about.
    #[error("cannot open {path}")]
    Open {
        /// The drive.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A directory, a pipe or the like.
    #[error("{path} is neither a file nor a block device")]
    NotADrive {
        /// The path.
        path: PathBuf,
    },
    /// Another process has it: another node, a mounted file system.
    #[error("{path} is in use by another process")]
    InUse {
        /// The drive.
        path: PathBuf,
    },
    /// Less room than asked for, or none.
    #[error("{path} has {have} bytes where {want} are needed")]
    TooSmall {
        /// The drive.
        path: PathBuf,
        /// Bytes it has.
        have: u64,
        /// Bytes needed.
        want: u64,
    },
    /// The file is larger than asked for: making it smaller would lose what is in it.
    #[error(
        "{path} has {have} bytes already, more than the {want} asked for; a drive never shrinks"
    )]
    TooLarge {
        /// The drive.
        path: PathBuf,
        /// Bytes it has.
        have: u64,
        /// Bytes asked for.
        want: u64,
    },
    /// The file system has no room for the file.
    #[error("cannot reserve {want} bytes for {path}")]
    Allocate {
        /// The drive.
        path: PathBuf,
        /// Bytes asked for.
        want: u64,
        /// What the system said.
        source: io::Error,
    },
    /// A sector that is neither 512 nor 4096 bytes.
    #[error("{path} has sectors of {sector} bytes; 512 and 4096 are supported")]
    Sector {
        /// The drive.
        path: PathBuf,
        /// Bytes of its sector.
        sector: u32,
    },
    /// The driver that was forced cannot be had here.
    #[error("the driver {} cannot drive {path}", kind.name())]
    Unavailable {
        /// The drive.
        path: PathBuf,
        /// The driver.
        kind: Kind,
        /// Why.
        source: io::Error,
    },
    /// The value of `MEMKV_BLOCK` names no driver.
    #[error("{FORCE_VARIABLE}={value} names no driver; it may be uring or threads")]
    UnknownDriver {
        /// Its value.
        value: String,
    },
}

/// How often a drive that is in use is asked for again.
const ASK_AGAIN: Duration = Duration::from_millis(20);

/// Opens a drive. Blocks while another process lets go of it, and while room is reserved for a file.
pub fn open(mut options: OpenOptions) -> Result<Arc<dyn BlockDevice>, OpenError> {
    let forced = match options.force {
        Some(kind) => Some(kind),
        None => forced_by_environment(std::env::var_os(FORCE_VARIABLE))?,
    };
    let asked = Instant::now();
    let medium = loop {
        match Medium::open(&mut options) {
            Err(OpenError::InUse { .. }) if asked.elapsed() < options.patience => {
                thread::sleep(ASK_AGAIN);
            }
            opened => break opened?,
        }
    };
    let OpenOptions { path, pool, note, .. } = options;
    let device = choose(medium, pool, forced, note)
        .map_err(|(kind, source)| OpenError::Unavailable { path, kind, source })?;
    tracing::info!(
        drive = device.name(),
        driver = device.kind().name(),
        capacity = device.geometry().capacity,
        sector = device.geometry().sector,
        reason = device.reason(),
        "drive opened"
    );
    Ok(device)
}

fn forced_by_environment(value: Option<std::ffi::OsString>) -> Result<Option<Kind>, OpenError> {
    let Some(value) = value.filter(|v| !v.is_empty()) else { return Ok(None) };
    match value.to_str() {
        Some("uring") => Ok(Some(Kind::Uring)),
        Some("threads") => Ok(Some(Kind::Threads)),
        _ => Err(OpenError::UnknownDriver { value: value.to_string_lossy().into_owned() }),
    }
}

/// Picks the driver, or says which one was forced and why it cannot be had.
fn choose(
    medium: Medium,
    pool: Pool,
    forced: Option<Kind>,
    note: Option<String>,
) -> Result<Arc<dyn BlockDevice>, (Kind, io::Error)> {
    let what = if medium.block_device { "a block device" } else { "a file" };
    let what = note.map_or_else(|| what.to_owned(), |note| format!("{what} ({note})"));
    let cache = if medium.direct { "with direct I/O" } else { "through the page cache" };
    let medium = Arc::new(medium);
    let threads = |why: String| match Threads::new(Arc::clone(&medium), why) {
        Ok(device) => Ok(Arc::new(device) as Arc<dyn BlockDevice>),
        Err(source) => Err((Kind::Threads, source)),
    };
    match forced {
        Some(Kind::Threads) => threads(format!("{what} {cache}; worker threads were asked for")),
        Some(Kind::Uring) => {
            uring(Arc::clone(&medium), pool, format!("{what} {cache}; io_uring was asked for"))
                .map_err(|source| (Kind::Uring, source))
        }
        Some(kind) => Err((kind, io::ErrorKind::Unsupported.into())),
        // Buffered, io_uring would hand every transfer to threads of the kernel: ours do as well.
        None if !medium.direct => {
            threads(format!("{what} whose file system has no direct I/O, by worker threads"))
        }
        None => match uring(Arc::clone(&medium), pool, format!("{what} {cache} by io_uring")) {
            Ok(device) => Ok(device),
            Err(error) => {
                threads(format!("{what} {cache} by worker threads; io_uring says: {error}"))
            }
        },
    }
}

#[cfg(target_os = "linux")]
fn uring(medium: Arc<Medium>, pool: Pool, reason: String) -> io::Result<Arc<dyn BlockDevice>> {
    Ok(Arc::new(crate::uring::Uring::new(medium, pool, reason)?))
}

#[cfg(not(target_os = "linux"))]
fn uring(_medium: Arc<Medium>, _pool: Pool, _reason: String) -> io::Result<Arc<dyn BlockDevice>> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "this system has no io_uring"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_names_a_driver_or_is_refused() {
        let by = |value: &str| forced_by_environment(Some(value.into()));
        assert_eq!(forced_by_environment(None).unwrap(), None);
        assert_eq!(by("").unwrap(), None);
        assert_eq!(by("uring").unwrap(), Some(Kind::Uring));
        assert_eq!(by("threads").unwrap(), Some(Kind::Threads));
        let error = by("libaio").unwrap_err();
        assert_eq!(
            error.to_string(),
            "MEMKV_BLOCK=libaio names no driver; it may be uring or threads"
        );
    }
}
