//! A file or block device, opened, locked and measured: what both drivers of paths stand on.
//!
//! Opening goes like this:
//!
//! 1. Open for reading and writing, past the page cache where the file system can (`O_DIRECT`); a file
//!    that is missing is made if a size was given. A block device is claimed (`O_EXCL`), which fails
//!    while it is mounted or part of something else.
//! 2. Lock it, so that two nodes never write one drive. The lock goes with the descriptor: no crash
//!    leaves one behind.
//! 3. Measure it; a file that is too short is extended and its room reserved, so that a full file
//!    system is met now and not by a put.
//! 4. Ask on which grain direct I/O lies.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;

use crate::device::MEMORY_GRAIN;
use crate::open::{OpenError, OpenOptions};
use crate::{FILE_SECTOR, Geometry, Io, IoBuf, IoError, MAX_TRANSFER, Op, sys};

/// Reserved at a time, so that progress can be shown: 1 GiB.
const ALLOCATION_STEP: u64 = 1 << 30;

/// An open drive.
pub(crate) struct Medium {
    pub file: File,
    pub name: String,
    pub geometry: Geometry,
    /// Whether the page cache is passed by.
    pub direct: bool,
    pub block_device: bool,
    /// Grain of addresses in memory; [`MEMORY_GRAIN`] unless the device asks for more.
    memory_grain: u32,
}

impl Medium {
    pub fn open(options: &mut OpenOptions) -> Result<Medium, OpenError> {
        let path = options.path.clone();
        let found = match fs::metadata(&path) {
            Ok(metadata) => Some(metadata.file_type()),
            Err(e) if e.kind() == io::ErrorKind::NotFound && options.size.is_some() => None,
            Err(source) => return Err(OpenError::Open { path, source }),
        };
        let block_device = found.is_some_and(|t| t.is_block_device());
        if found.is_some_and(|t| !t.is_file() && !t.is_block_device()) {
            return Err(OpenError::NotADrive { path });
        }
        let (file, direct) = open_direct(&path, found.is_none(), block_device)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(OpenError::InUse { path }),
            Err(TryLockError::Error(source)) => return Err(OpenError::Open { path, source }),
        }
        let (sector, capacity) = if block_device {
            measure_block_device(&file, options)?
        } else {
            (FILE_SECTOR, measure_file(&file, found.is_none(), options)?)
        };
        let grains = sys::direct_alignment(&file).filter(|_| direct);
        // A device that asks for a coarser grain than its sector cannot be driven past the cache.
        let (file, direct) = match grains {
            Some(grains) if !sector.is_multiple_of(grains.offset) => (reopen(&file, &path)?, false),
            _ => (file, direct),
        };
        let fallback = if block_device { sector } else { MEMORY_GRAIN };
        let memory_grain = match grains {
            _ if !direct => 1,
            Some(grains) => grains.memory,
            None => fallback,
        };
        Ok(Medium {
            file,
            name: options.name.clone().unwrap_or_else(|| path.display().to_string()),
            geometry: Geometry { capacity, sector, max_transfer: MAX_TRANSFER },
            direct,
            block_device,
            memory_grain: memory_grain.max(MEMORY_GRAIN),
        })
    }

    /// Whether the drive can be asked `io`.
    pub fn check(&self, io: &Io) -> Result<(), IoError> {
        self.geometry.check(io)?;
        let grain = self.memory_grain;
        match &io.buf {
            Some(buf) if !(buf.as_ptr() as usize + io.buf_at).is_multiple_of(grain as usize) => {
                let Io { offset, len, buf_at, .. } = *io;
                Err(IoError::Misaligned { offset, len, buf_at, grain })
            }
            _ => Ok(()),
        }
    }

    /// Carries out a checked command on the calling thread, which it blocks.
    pub fn carry_out(&self, io: &mut Io) -> Result<(), IoError> {
        let (op, offset, at, len) = (io.op, io.offset, io.buf_at, io.len as usize);
        match (op, &mut io.buf) {
            (Op::Read, Some(IoBuf::Exclusive(buf))) => {
                let bytes = &mut buf.as_mut_slice()[at..][..len];
                self.transfer(len, |done| {
                    self.file.read_at(&mut bytes[done..], offset + done as u64)
                })
            }
            (Op::Write | Op::WriteFlush, Some(buf)) => {
                let bytes = &buf.as_slice()[at..][..len];
                let written = self
                    .transfer(len, |done| self.file.write_at(&bytes[done..], offset + done as u64));
                match op {
                    Op::WriteFlush => written.and_then(|()| self.sync()),
                    _ => written,
                }
            }
            (Op::Flush, _) => self.sync(),
            (Op::Deallocate, _) => {
                let give_up = if self.block_device { sys::discard } else { sys::punch_hole };
                self.deallocated(give_up(&self.file, offset, io.len))
            }
            (op, _) => Err(IoError::WrongBuffer { op, len: io.len }),
        }
    }

    /// Makes durable what is written.
    fn sync(&self) -> Result<(), IoError> {
        self.file.sync_data().map_err(IoError::Os)
    }

    fn transfer(
        &self,
        len: usize,
        mut step: impl FnMut(usize) -> io::Result<usize>,
    ) -> Result<(), IoError> {
        let mut done = 0;
        while done < len {
            match step(done) {
                Ok(moved) => done = self.moved(done as u64, moved as u64, len as u64)? as usize,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(IoError::Os(e)),
            }
        }
        Ok(())
    }

    /// How far a transfer of `wanted` bytes is after another `moved` bytes, or that it cannot go on:
    /// nothing was moved, or the rest does not lie on the grain of direct I/O any more. Both mean the
    /// end of the file.
    pub fn moved(&self, done: u64, moved: u64, wanted: u64) -> Result<u64, IoError> {
        let got = done + moved;
        let stuck = moved == 0 || !got.is_multiple_of(u64::from(self.memory_grain));
        if stuck && got < wanted { Err(IoError::Short { wanted, got }) } else { Ok(got) }
    }

    /// What the system's answer to a deallocation means: that it cannot do it is no failure.
    pub fn deallocated(&self, result: io::Result<()>) -> Result<(), IoError> {
        match result {
            Err(error) if is_unsupported(&error) => {
                Err(IoError::Unsupported { op: Op::Deallocate })
            }
            result => result.map_err(IoError::Os),
        }
    }
}

impl Drop for Medium {
    /// Lets go of the lock at once: a ring that is torn down may hold the descriptor a little longer.
    fn drop(&mut self) {
        if let Err(error) = self.file.unlock() {
            tracing::warn!(drive = self.name, %error, "cannot unlock");
        }
    }
}

/// Whether the system says that it does not know how, not that it failed.
fn is_unsupported(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::Unsupported
        || matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENOTTY))
}

/// Opens past the page cache, or through it where the file system cannot do otherwise.
fn open_direct(path: &Path, create: bool, block_device: bool) -> Result<(File, bool), OpenError> {
    let claim = if block_device { sys::O_CLAIM } else { 0 };
    let open = |flags: i32| {
        fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(create)
            .truncate(false)
            .mode(0o600)
            .custom_flags(flags | claim)
            .open(path)
    };
    let direct = sys::O_DIRECT.map(open);
    let result = match direct {
        Some(Ok(file)) => return Ok((file, true)),
        Some(Err(e)) if e.raw_os_error() == Some(libc::EINVAL) => open(0),
        Some(Err(e)) => Err(e),
        None => open(0),
    };
    let path = path.to_path_buf();
    match result {
        Ok(file) => Ok((file, false)),
        Err(e) if block_device && e.kind() == io::ErrorKind::ResourceBusy => {
            Err(OpenError::InUse { path })
        }
        Err(source) => Err(OpenError::Open { path, source }),
    }
}

/// Opens the same file again, through the page cache. The old descriptor's lock is let go first.
fn reopen(file: &File, path: &Path) -> Result<File, OpenError> {
    let failed = |source| OpenError::Open { path: path.to_path_buf(), source };
    file.unlock().map_err(failed)?;
    let file = fs::OpenOptions::new().read(true).write(true).open(path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse { path: path.to_path_buf() }),
        Err(TryLockError::Error(source)) => Err(failed(source)),
    }
}

/// Sector and capacity of a block device; a size in the options makes it smaller, never larger.
fn measure_block_device(file: &File, options: &OpenOptions) -> Result<(u32, u64), OpenError> {
    let path = || options.path.clone();
    let failed = |source| OpenError::Open { path: path(), source };
    let sector = sys::block_device_sector(file).map_err(failed)?;
    if sector != 512 && sector != 4096 {
        return Err(OpenError::Sector { path: path(), sector });
    }
    let have = sys::block_device_size(file).map_err(failed)?;
    let want = options.size.unwrap_or(have);
    let capacity = want - want % u64::from(sector);
    if capacity == 0 || have < want {
        return Err(OpenError::TooSmall { path: path(), have, want: want.max(u64::from(sector)) });
    }
    Ok((sector, capacity))
}

/// Capacity of a file, which is extended to the size in the options.
fn measure_file(file: &File, created: bool, options: &mut OpenOptions) -> Result<u64, OpenError> {
    let path = options.path.clone();
    let sector = u64::from(FILE_SECTOR);
    let have = match file.metadata() {
        Ok(metadata) => metadata.len(),
        Err(source) => return Err(OpenError::Open { path, source }),
    };
    let want = options.size.unwrap_or(have);
    let capacity = want - want % sector;
    if capacity == 0 {
        return Err(OpenError::TooSmall { path, have, want: sector });
    }
    if options.size.is_some() && have - have % sector > capacity {
        return Err(OpenError::TooLarge { path, have, want });
    }
    if have < capacity
        && let Err(source) = extend(file, have, capacity, options)
    {
        // Nothing of ours stays behind: neither a file nor the room it would have taken.
        let undone = if created { fs::remove_file(&path) } else { file.set_len(have) };
        if let Err(error) = undone {
            tracing::warn!(path = %path.display(), %error, "cannot undo the failed extension");
        }
        return Err(OpenError::Allocate { path, want, source });
    }
    Ok(capacity)
}

/// Reserves room step by step, then makes file and name durable.
fn extend(file: &File, from: u64, to: u64, options: &mut OpenOptions) -> io::Result<()> {
    let mut progress = |done| {
        if let Some(progress) = &mut options.progress {
            progress(done, to);
        }
    };
    // Asked first: a size that cannot fit must not fill the file system on the way to its error.
    if sys::free_bytes(file).is_some_and(|free| free < to - from) {
        return Err(io::ErrorKind::StorageFull.into());
    }
    let mut at = from;
    progress(at);
    while at < to {
        let step = ALLOCATION_STEP.min(to - at);
        match sys::allocate(file, at, step) {
            Ok(()) => at += step,
            Err(error) if is_unsupported(&error) => {
                let path = options.path.display();
                tracing::warn!(%path, "the file system cannot reserve room, the file is sparse");
                file.set_len(to)?;
                at = to;
            }
            Err(error) => return Err(error),
        }
        progress(at);
    }
    file.sync_all()?;
    match options.path.parent().filter(|p| !p.as_os_str().is_empty()) {
        Some(directory) => File::open(directory)?.sync_all(),
        None => File::open(".")?.sync_all(),
    }
}
