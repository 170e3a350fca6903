//! Linux: direct I/O, preallocation, holes, discard, and the shape of block devices.

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// `BLKGETSIZE64` of `linux/fs.h`: the size of a block device in bytes.
const BLKGETSIZE64: libc::Ioctl = libc::_IOR::<libc::size_t>(0x12, 114);

/// `BLKDISCARD` of `linux/fs.h`: gives up a range, two 64-bit numbers (start, length) in bytes.
const BLKDISCARD: libc::Ioctl = libc::_IO(0x12, 119);

/// The flag for `open(2)` that passes the page cache by.
pub(crate) const O_DIRECT: Option<i32> = Some(libc::O_DIRECT);

/// The flag for `open(2)` that claims a block device for oneself.
pub(crate) const O_CLAIM: i32 = libc::O_EXCL;

/// What direct I/O on a file asks for.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) struct DirectAlignment {
    /// Grain of addresses in memory, in bytes.
    pub memory: u32,
    /// Grain of offsets and lengths, in bytes.
    pub offset: u32,
}

fn check(result: i32) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// What direct I/O asks for, where the kernel (6.1) and the file system tell.
pub(crate) fn direct_alignment(file: &File) -> Option<DirectAlignment> {
    let mut answer = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the path is a valid string, empty to mean the descriptor itself, which is open while
    // `file` is borrowed; `answer` has room for the one struct the call writes.
    let result = unsafe {
        libc::statx(
            file.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            libc::STATX_DIOALIGN,
            answer.as_mut_ptr(),
        )
    };
    check(result).ok()?;
    // SAFETY: all zeroes is a valid `statx`, and the kernel has filled in more.
    let answer = unsafe { answer.assume_init() };
    let told = answer.stx_mask & libc::STATX_DIOALIGN != 0 && answer.stx_dio_offset_align != 0;
    told.then_some(DirectAlignment {
        memory: answer.stx_dio_mem_align,
        offset: answer.stx_dio_offset_align,
    })
}

/// Bytes that the file system of a file still has for us, where it tells.
pub(crate) fn free_bytes(file: &File) -> Option<u64> {
    let mut answer = MaybeUninit::<libc::statvfs>::zeroed();
    // SAFETY: the descriptor is open while `file` is borrowed, and `answer` has room for the one
    // struct the call writes.
    check(unsafe { libc::fstatvfs(file.as_raw_fd(), answer.as_mut_ptr()) }).ok()?;
    // SAFETY: all zeroes is a valid `statvfs`, and the system has filled in more.
    let answer = unsafe { answer.assume_init() };
    Some(answer.f_bavail.saturating_mul(answer.f_frsize))
}

/// `FUSE_SUPER_MAGIC` of `linux/magic.h`.
const FUSE: i64 = 0x6573_5546;

/// Whether a program stands behind a file: a file system in user space.
pub(crate) fn is_fuse(file: &File) -> bool {
    let mut answer = MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: the descriptor is open while `file` is borrowed, and `answer` has room for the one
    // struct the call writes.
    let told = check(unsafe { libc::fstatfs(file.as_raw_fd(), answer.as_mut_ptr()) }).is_ok();
    // SAFETY: all zeroes is a valid `statfs`, and the system may have filled in more.
    let answer = unsafe { answer.assume_init() };
    told && answer.f_type == FUSE
}

/// Bytes of a block device.
pub(crate) fn block_device_size(file: &File) -> io::Result<u64> {
    let mut size = 0u64;
    // SAFETY: `BLKGETSIZE64` writes one 64-bit number, for which `size` has room.
    check(unsafe { libc::ioctl(file.as_raw_fd(), BLKGETSIZE64, &raw mut size) })?;
    Ok(size)
}

/// The logical sector of a block device in bytes.
pub(crate) fn block_device_sector(file: &File) -> io::Result<u32> {
    let mut sector: libc::c_int = 0;
    // SAFETY: `BLKSSZGET` writes one int, for which `sector` has room.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::BLKSSZGET, &raw mut sector) })?;
    u32::try_from(sector).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// Gives a range of a block device back to it.
pub(crate) fn discard(file: &File, offset: u64, len: u64) -> io::Result<()> {
    let range = [offset, len];
    // SAFETY: `BLKDISCARD` reads two 64-bit numbers, which `range` is.
    check(unsafe { libc::ioctl(file.as_raw_fd(), BLKDISCARD, range.as_ptr()) })
}

/// Gives a range of a file back to the file system; the file keeps its length.
pub(crate) fn punch_hole(file: &File, offset: u64, len: u64) -> io::Result<()> {
    fallocate(file, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, offset, len)
}

/// Reserves room for a range of a file, and makes the file that long at least.
pub(crate) fn allocate(file: &File, offset: u64, len: u64) -> io::Result<()> {
    fallocate(file, 0, offset, len)
}

fn fallocate(file: &File, mode: i32, offset: u64, len: u64) -> io::Result<()> {
    let too_far = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let offset = libc::off64_t::try_from(offset).map_err(too_far)?;
    let len = libc::off64_t::try_from(len).map_err(too_far)?;
    loop {
        // SAFETY: plain numbers and a descriptor that is open while `file` is borrowed.
        match check(unsafe { libc::fallocate64(file.as_raw_fd(), mode, offset, len) }) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// A counter that is readable while it is not zero (`eventfd(2)`); reading sets it to zero and never
/// blocks.
pub(crate) fn event_counter() -> io::Result<File> {
    // SAFETY: plain numbers.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, so this is an open descriptor that nobody else knows.
    Ok(File::from(unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// Lets the calling thread run on every core that the process began with, whatever thread of it
/// started this one.
pub(crate) fn run_anywhere() -> io::Result<()> {
    let mut cores = MaybeUninit::<libc::cpu_set_t>::zeroed();
    let size = size_of::<libc::cpu_set_t>();
    // SAFETY: `cores` has room for the set that the call writes. The number of a process is that of
    // its first thread.
    check(unsafe { libc::sched_getaffinity(libc::getpid(), size, cores.as_mut_ptr()) })?;
    // SAFETY: the call reads the set that the one above has filled in; 0 is the calling thread.
    check(unsafe { libc::sched_setaffinity(0, size, cores.as_ptr()) })
}
