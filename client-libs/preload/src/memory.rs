//! The memory that an open file is: a memfd, and its bytes.

#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::io;
use std::ptr::NonNull;

use crate::real;

/// The time that a file's bytes have which are stored: who changes them sets another. It is the first
/// nanosecond of all, which no write can be of.
const STORED: libc::timespec = libc::timespec { tv_sec: 0, tv_nsec: 1 };

/// Which file a descriptor is of, whatever its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity(u64, u64);

/// Answers a call of libc.
fn checked(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A new memfd of this size, closed when another program is executed.
pub(crate) fn create(size: u64) -> io::Result<c_int> {
    // SAFETY: the name ends with a NUL.
    let fd = checked(unsafe { libc::memfd_create(c"memkv".as_ptr(), libc::MFD_CLOEXEC) })?;
    match resize(fd, size) {
        Ok(()) => Ok(fd),
        Err(error) => {
            close(fd);
            Err(error)
        }
    }
}

/// Makes it so long.
pub(crate) fn resize(fd: c_int, size: u64) -> io::Result<()> {
    let size = i64::try_from(size).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))?;
    // SAFETY: it touches no memory of this process.
    checked(unsafe { libc::ftruncate64(fd, size) }).map(drop)
}

/// Closes a descriptor of this library's own.
pub(crate) fn close(fd: c_int) {
    // SAFETY: it is ours, and nobody uses it any more.
    unsafe { real::close(fd) };
}

/// Writes to standard error; who closed that does not want to know.
pub(crate) fn say(line: &[u8]) {
    // SAFETY: the bytes are there.
    unsafe { real::write(2, line.as_ptr().cast(), line.len()) };
}

/// A text of the program's.
///
/// # Safety
/// It is NULL, or ends with a NUL and stays for as long as `'a`.
pub(crate) unsafe fn text<'a>(text: *const c_char) -> &'a [u8] {
    if text.is_null() {
        return b"";
    }
    // SAFETY: the caller's promise.
    unsafe { CStr::from_ptr(text) }.to_bytes()
}

/// close_range(2), by its number: libc's would come back.
pub(crate) fn close_range(first: u32, last: u32, flags: c_int) -> c_int {
    // SAFETY: no memory is touched; that the descriptors are to be closed is the caller's matter.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
    result as c_int
}

/// Another descriptor of the same memory, with an offset of its own.
pub(crate) fn reopen(fd: c_int, flags: c_int) -> io::Result<c_int> {
    let path = format!("/proc/self/fd/{fd}\0");
    // SAFETY: the path ends with a NUL.
    checked(unsafe { real::open64(path.as_ptr().cast(), flags | libc::O_CLOEXEC, 0) })
}

/// Puts one descriptor in the place of another, which stays closed or open on exec as it was.
pub(crate) fn replace(fd: c_int, place: c_int) -> io::Result<()> {
    // SAFETY: no memory is touched; that both are ours is the caller's matter.
    unsafe {
        let flags = checked(real::fcntl64(place, libc::F_GETFD, 0))?;
        let cloexec = if flags & libc::FD_CLOEXEC != 0 { libc::O_CLOEXEC } else { 0 };
        checked(real::dup3(fd, place, cloexec)).map(drop)
    }
}

/// Sets flags of the description, such as `O_APPEND`.
pub(crate) fn set_flags(fd: c_int, flags: c_int) -> io::Result<()> {
    // SAFETY: no memory is touched.
    checked(unsafe { real::fcntl64(fd, libc::F_SETFL, flags as usize) }).map(drop)
}

/// Keeps it open when another program is executed.
pub(crate) fn keep_on_exec(fd: c_int) -> io::Result<()> {
    // SAFETY: no memory is touched.
    checked(unsafe { real::fcntl64(fd, libc::F_SETFD, 0) }).map(drop)
}

/// What the kernel knows of a descriptor.
pub(crate) fn status(fd: c_int) -> io::Result<libc::stat64> {
    // SAFETY: all bits 0 are a good one, and it is as long as the kernel thinks.
    unsafe {
        let mut status: libc::stat64 = std::mem::zeroed();
        checked(real::fstat64(fd, &raw mut status))?;
        Ok(status)
    }
}

/// Which file it is of.
pub(crate) fn identity(fd: c_int) -> io::Result<Identity> {
    status(fd).map(|status| Identity(status.st_dev, status.st_ino))
}

/// From now on [`is_changed`] is true only if somebody writes to it, or makes it longer or shorter. What is
/// written through a mapping is not seen.
pub(crate) fn mark(fd: c_int) -> io::Result<()> {
    // SAFETY: there are two times.
    checked(unsafe { libc::futimens(fd, [STORED, STORED].as_ptr()) }).map(drop)
}

/// Whether somebody wrote to it since [`mark`].
pub(crate) fn is_changed(status: &libc::stat64) -> bool {
    (status.st_mtime, status.st_mtime_nsec) != (STORED.tv_sec, STORED.tv_nsec)
}

/// The bytes of a memfd, for as long as this lives.
pub(crate) struct Bytes {
    first: NonNull<u8>,
    length: usize,
}

impl Bytes {
    /// All of them; written to, too, if `writable`.
    pub fn of(fd: c_int, size: u64, writable: bool) -> io::Result<Bytes> {
        let length =
            usize::try_from(size).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))?;
        if length == 0 {
            return Ok(Bytes { first: NonNull::dangling(), length });
        }
        let protection = libc::PROT_READ | if writable { libc::PROT_WRITE } else { 0 };
        // What is about to be filled is made at once, not page by page while bytes arrive.
        let populate = if writable { libc::MAP_POPULATE } else { 0 };
        let (at, flags) = (std::ptr::null_mut(), libc::MAP_SHARED | populate);
        // SAFETY: a mapping at a place that the kernel chooses replaces nothing.
        let first = unsafe { real::mmap64(at, length, protection, flags, fd, 0) };
        if first == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let first = NonNull::new(first.cast()).expect("the kernel maps nothing at 0");
        Ok(Bytes { first, length })
    }
}

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: they are mapped as long as this lives. The program that writes to a file while it syncs or
        // closes it would be told by its CRCs that what was sent is not what was read; it is told not to.
        unsafe { std::slice::from_raw_parts(self.first.as_ptr(), self.length) }
    }
}

impl AsMut<[u8]> for Bytes {
    fn as_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above; nobody else has a descriptor that could read or write a file being filled, and only
        // those who fill one have this.
        unsafe { std::slice::from_raw_parts_mut(self.first.as_ptr(), self.length) }
    }
}

impl Drop for Bytes {
    fn drop(&mut self) {
        if self.length > 0 {
            // SAFETY: it was mapped when this was made, and nobody borrows from it any more.
            unsafe { libc::munmap(self.first.as_ptr().cast::<c_void>(), self.length) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_are_seen_whatever_they_pass_through() {
        let fd = create(10).expect("a memfd");
        let changed = |what: &str| {
            let changed = is_changed(&status(fd).expect("its status"));
            mark(fd).expect("its time");
            assert!(!is_changed(&status(fd).expect("its status")), "{what}");
            changed
        };
        assert!(changed("made longer"));
        // SAFETY: the bytes are there.
        assert_eq!(unsafe { real::write(fd, b"some".as_ptr().cast(), 4) }, 4);
        assert!(changed("written"));
        resize(fd, 3).expect("room");
        assert!(changed("cut"));
        assert_eq!(Bytes::of(fd, 3, false).expect("a mapping").as_ref(), b"som");
        assert!(!changed("read"));
        close(fd);
    }

    #[test]
    fn who_may_not_read_yet_is_told_so_and_can_be_let_in() {
        let fd = create(3).expect("a memfd");
        let shut = reopen(fd, libc::O_PATH).expect("a descriptor");
        assert_eq!(identity(shut).expect("one"), identity(fd).expect("the same"));
        let mut byte = 0_u8;
        let read = |byte: &mut u8| {
            // SAFETY: there is room for one byte.
            unsafe { real::read(shut, (&raw mut *byte).cast(), 1) }
        };
        assert_eq!((read(&mut byte), real::errno()), (-1, libc::EBADF));
        Bytes::of(fd, 3, true).expect("a mapping").as_mut().copy_from_slice(b"abc");
        let open = reopen(fd, libc::O_RDONLY).expect("a descriptor");
        replace(open, shut).expect("its place");
        assert_eq!((read(&mut byte), byte), (1, b'a'));
        // SAFETY: the byte is there.
        let written = unsafe { real::write(shut, (&raw const byte).cast(), 1) };
        assert_eq!((written, real::errno()), (-1, libc::EBADF), "for reading only");
        [fd, shut, open].into_iter().for_each(close);
    }
}
