//! What stat(2) and its relatives say.

use std::ffi::c_int;

use libc::{stat64, statvfs64};

use crate::files::Errno;
use crate::memory;
use crate::opening::writer;
use crate::store::Found;
use crate::table::State;

/// The device of all that is ours: a major number that no driver has.
const DEVICE: u64 = 0xfff_6b76;
/// Bytes that are best read at once.
const BLOCK: u64 = 1 << 20;

/// Bytes that there seem to be where servers do not say how many they have.
const UNTOLD: u64 = 1 << 50;

/// What is known of a name.
pub(crate) struct Status {
    directory: bool,
    size: u64,
    seconds: i64,
    nanos: i64,
    /// The same for the same name.
    inode: u64,
}

/// FNV-1a: a number for a name.
fn number(name: &[u8]) -> u64 {
    name.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    })
}

/// What this name leads to.
pub(crate) fn of_name(state: &State, name: &[u8]) -> Result<Status, Errno> {
    if let Some((fd, file)) = writer(name) {
        return of_memory(&file.name(), &memory::status(fd)?);
    }
    let inode = number(name);
    match state.store.find(name).map_err(|error| error.errno(name))? {
        Found::Directory => Ok(Status { directory: true, size: 4096, seconds: 0, nanos: 0, inode }),
        Found::File(head) => Ok(Status {
            directory: false,
            size: head.size,
            seconds: head.seconds,
            nanos: head.nanos.into(),
            inode,
        }),
    }
}

/// What a file that is open is like. Its memory's own time says whether it was written to; that of its last
/// change is as good.
pub(crate) fn of_memory(name: &[u8], memory: &stat64) -> Result<Status, Errno> {
    Ok(Status {
        directory: false,
        size: memory.st_size as u64,
        seconds: memory.st_ctime,
        nanos: memory.st_ctime_nsec,
        inode: number(name),
    })
}

impl Status {
    /// Whether everything that this mode of access(2) asks for is allowed: nothing here can be executed.
    pub fn allows(&self, mode: c_int) -> bool {
        self.directory || mode & libc::X_OK == 0
    }

    fn mode(&self) -> u32 {
        if self.directory { libc::S_IFDIR | 0o755 } else { libc::S_IFREG | 0o644 }
    }

    /// As stat(2) has it, over one that is all 0.
    pub fn fill(&self, stat: &mut stat64, user: u32, group: u32) {
        stat.st_dev = DEVICE;
        stat.st_ino = self.inode;
        stat.st_nlink = 1;
        stat.st_mode = self.mode();
        stat.st_uid = user;
        stat.st_gid = group;
        stat.st_size = self.size as i64;
        stat.st_blksize = BLOCK as _;
        stat.st_blocks = self.size.div_ceil(512) as i64;
        (stat.st_mtime, stat.st_mtime_nsec) = (self.seconds, self.nanos);
        (stat.st_ctime, stat.st_ctime_nsec) = (self.seconds, self.nanos);
        (stat.st_atime, stat.st_atime_nsec) = (self.seconds, self.nanos);
    }
}

/// The same as statx(2) has it, over one that is all 0.
pub(crate) fn to_statx(stat: &stat64, statx: &mut libc::statx) {
    statx.stx_mask = libc::STATX_BASIC_STATS;
    statx.stx_blksize = stat.st_blksize as u32;
    statx.stx_nlink = stat.st_nlink as u32;
    statx.stx_uid = stat.st_uid;
    statx.stx_gid = stat.st_gid;
    statx.stx_mode = stat.st_mode as u16;
    statx.stx_ino = stat.st_ino;
    statx.stx_size = stat.st_size as u64;
    statx.stx_blocks = stat.st_blocks as u64;
    for time in [&mut statx.stx_mtime, &mut statx.stx_ctime, &mut statx.stx_atime] {
        time.tv_sec = stat.st_mtime;
        time.tv_nsec = stat.st_mtime_nsec as u32;
    }
    (statx.stx_dev_major, statx.stx_dev_minor) =
        (libc::major(stat.st_dev), libc::minor(stat.st_dev));
}

/// As statvfs(3) has it: what all servers have together. All of it can be written, for what is old makes
/// room: a program that looks before it writes must not be told that a cache that is in use is full.
pub(crate) fn space(state: &State, statvfs: &mut statvfs64) -> Result<(), Errno> {
    let (total, used) = state.store.space().map_err(|error| error.errno(b""))?;
    let total = if total == 0 { UNTOLD } else { total };
    statvfs.f_bsize = 4096;
    statvfs.f_frsize = 4096;
    statvfs.f_blocks = total / 4096;
    statvfs.f_bfree = total.saturating_sub(used) / 4096;
    statvfs.f_bavail = statvfs.f_blocks;
    statvfs.f_namemax = 255;
    Ok(())
}
