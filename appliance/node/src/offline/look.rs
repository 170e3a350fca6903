//! Looking at a drive without touching it, whoever has it: what it is, what is on it, who claims it.
//!
//! Reads go through the page cache and take no lock that another one waits for, so a drive that a
//! server holds can be looked at too; what is seen of it may then be a moment old.

use std::fs::{File, TryLockError};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use memkv_block::{Geometry, IoError, MAX_TRANSFER};
use memkv_journal::probe::{Edges, HEAD, Signature, TAIL, signatures};
use memkv_journal::{Inspection, ReadError, SUPERBLOCK_BYTES, copy_offset, inspect};

use memkv_dma::PoolError;
use memkv_nvme::PciAddress;

use super::claims::{Claim, Subject, System};
use crate::bypass::BypassError;

/// What kind of drive a path is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A block device.
    Device,
    /// A file.
    File,
    /// An NVMe controller, by its PCI address.
    Nvme,
}

/// What was seen of a drive.
#[derive(Debug)]
pub struct Sight {
    /// As it was named.
    pub path: PathBuf,
    /// What it is.
    pub kind: Kind,
    /// The path without links.
    pub real: PathBuf,
    /// Bytes it has.
    pub bytes: u64,
    /// Another process holds its lock: a server, most likely.
    pub locked: bool,
    /// Who claims it.
    pub claims: Vec<Claim>,
    /// What our superblocks say.
    pub inspection: Inspection,
    /// Who else signed it. Not asked of a drive that is ours.
    pub signatures: Vec<Signature>,
    /// It cannot be read while somebody has it; what was not read is not known.
    pub unread: bool,
    /// Model and serial number, where the drive was asked.
    pub names: Option<(String, String)>,
}

/// What a drive holds, in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Holds {
    /// Blocks, or room for them: it is formatted.
    Memkv,
    /// It was formatted, and its superblock cannot be used.
    Damaged,
    /// Something of somebody else.
    Foreign,
    /// Nothing.
    Blank,
    /// That cannot be told: it is in use, and only who has it can read it.
    Unknown,
}

impl Holds {
    /// The word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Memkv => "memkv",
            Self::Damaged => "damaged",
            Self::Foreign => "foreign",
            Self::Blank => "blank",
            Self::Unknown => "unknown",
        }
    }
}

impl Sight {
    /// What the drive holds.
    pub fn holds(&self) -> Holds {
        match &self.inspection.superblock {
            _ if self.unread => Holds::Unknown,
            Ok(_) => Holds::Memkv,
            Err(ReadError::NotFormatted) if self.signatures.is_empty() => Holds::Blank,
            Err(ReadError::NotFormatted) => Holds::Foreign,
            Err(_) => Holds::Damaged,
        }
    }
}

/// Why a drive cannot be looked at.
#[derive(Debug, thiserror::Error)]
pub enum LookError {
    /// It is not there, may not be read, or fails.
    #[error("{}: {}", path.display(), advice(source))]
    Io {
        /// The drive.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It has a PCI address and cannot be reached by it.
    #[error(transparent)]
    Bypass(#[from] BypassError),
    /// There is no memory to read it with.
    #[error("no memory to read drives with")]
    Pool(#[from] PoolError),
    /// A directory, a pipe or the like.
    #[error("{}: neither a file nor a block device", path.display())]
    NotADrive {
        /// The path.
        path: PathBuf,
    },
}

/// What the system said, and what to do about it where that is plain.
fn advice(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => {
            "does not exist; make a file first: fallocate -l 100G FILE".to_owned()
        }
        io::ErrorKind::PermissionDenied => format!("{error}; run as root, or as its owner"),
        _ => error.to_string(),
    }
}

/// Looks at a drive.
///
/// # Errors
/// [`LookError`] when it is no drive or cannot be read at all; that some of it cannot be read shows
/// in the copies of its superblock.
pub fn look(path: &Path, system: &System) -> Result<Sight, LookError> {
    if let Some(address) = PciAddress::of(path) {
        return super::nvme::look(address);
    }
    let wrap = |source| LookError::Io { path: path.to_owned(), source };
    let metadata = std::fs::metadata(path).map_err(wrap)?;
    let real = std::fs::canonicalize(path).map_err(wrap)?;
    let (kind, subject) = if metadata.file_type().is_block_device() {
        let number = metadata.rdev();
        (Kind::Device, device(number))
    } else if metadata.is_file() {
        (Kind::File, Subject::File(real.clone()))
    } else {
        return Err(LookError::NotADrive { path: path.to_owned() });
    };
    let mut file = File::open(path).map_err(wrap)?;
    let locked = match file.try_lock_shared() {
        Ok(()) => {
            file.unlock().map_err(wrap)?;
            false
        }
        Err(TryLockError::WouldBlock) => true,
        Err(TryLockError::Error(error)) => return Err(wrap(error)),
    };
    let bytes = file.seek(SeekFrom::End(0)).map_err(wrap)?;
    let inspection = read_inspection(&mut file, bytes);
    let signatures = match &inspection.superblock {
        Err(ReadError::NotFormatted) => read_signatures(&mut file, bytes).map_err(wrap)?,
        _ => Vec::new(),
    };
    let claims = system.claims(&subject);
    let path = path.to_owned();
    let (unread, names) = (false, None);
    Ok(Sight { path, kind, real, bytes, locked, claims, inspection, signatures, unread, names })
}

/// A device by the number that Linux gives it (makedev(3)); elsewhere there is no `/sys` to look it
/// up in.
fn device(number: u64) -> Subject {
    let major = (number >> 8 & 0xfff) | (number >> 32 & 0xffff_f000);
    let minor = (number & 0xff) | (number >> 12 & 0xffff_ff00);
    Subject::Device { major, minor }
}

fn read_inspection(file: &mut File, bytes: u64) -> Inspection {
    let copies = std::array::from_fn(|copy| {
        let offset = copy_offset(copy);
        if offset + SUPERBLOCK_BYTES as u64 > bytes {
            return Ok(Vec::new());
        }
        read_at(file, offset, SUPERBLOCK_BYTES).map_err(IoError::Os)
    });
    // The sector decides nothing here: the least one fits every format.
    inspect(copies, &Geometry { capacity: bytes, sector: 512, max_transfer: MAX_TRANSFER })
}

fn read_signatures(file: &mut File, bytes: u64) -> io::Result<Vec<Signature>> {
    let head = read_at(file, 0, (HEAD as u64).min(bytes) as usize)?;
    let tail = (TAIL as u64).min(bytes);
    let tail = read_at(file, bytes - tail, tail as usize)?;
    Ok(signatures(&Edges::new(bytes, &head, &tail)))
}

fn read_at(file: &mut File, offset: u64, len: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    file.seek(SeekFrom::Start(offset))?;
    file.read_exact(&mut bytes)?;
    Ok(bytes)
}
