//! Descriptors: open, close, dup, and what may read one that is not filled yet.

use std::ffi::{c_char, c_int, c_void};

use libc::{iovec, mode_t, off_t, size_t, ssize_t};

use super::{answer, done, our_descriptor, ours};
use crate::{memory, opening, real, table};

/// Opens a path of ours; `None` when it is libc's.
///
/// # Safety
/// `path` is NULL, or ends with a NUL.
unsafe fn opened(path: *const c_char, flags: c_int) -> Option<c_int> {
    // SAFETY: the caller's promise.
    let (state, name, _inside) = unsafe { ours(path) }?;
    Some(answer(-1, || opening::open(state, name, flags)))
}

also! {
    /// open(2). Its last argument is there only with some flags; it is handed on as it came.
    open, open64: (path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
        // SAFETY: the caller keeps the contract of open(2).
        unsafe { opened(path, flags).unwrap_or_else(|| real::open64(path, flags, mode)) }
    }
    /// openat(2), of which relative paths are not ours.
    openat, openat64: (at: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
        // SAFETY: the caller keeps the contract of openat(2).
        unsafe { opened(path, flags).unwrap_or_else(|| real::openat64(at, path, flags, mode)) }
    }
    /// What open(2) is where the compiler checks that a mode is not missing.
    __open_2, __open64_2: (path: *const c_char, flags: c_int) -> c_int {
        // SAFETY: the caller keeps the contract of open(2).
        unsafe { opened(path, flags).unwrap_or_else(|| real::open64(path, flags, 0)) }
    }
    /// The same of openat(2).
    __openat_2, __openat64_2: (at: c_int, path: *const c_char, flags: c_int) -> c_int {
        // SAFETY: the caller keeps the contract of openat(2).
        unsafe { opened(path, flags).unwrap_or_else(|| real::openat64(at, path, flags, 0)) }
    }
    /// creat(2).
    creat, creat64: (path: *const c_char, mode: mode_t) -> c_int {
        let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC;
        // SAFETY: the caller keeps the contract of creat(2).
        unsafe { opened(path, flags).unwrap_or_else(|| real::open64(path, flags, mode)) }
    }
    /// pread(2).
    pread, pread64: (fd: c_int, to: *mut c_void, count: size_t, offset: off_t) -> ssize_t {
        if !filled(fd) {
            return -1;
        }
        // SAFETY: the caller keeps the contract of pread(2).
        unsafe { real::pread64(fd, to, count, offset) }
    }
    /// What pread(2) is where the compiler knows how much room there is.
    __pread_chk, __pread64_chk: (
        fd: c_int, to: *mut c_void, count: size_t, offset: off_t, room: size_t
    ) -> ssize_t {
        assert!(count <= room, "a read beyond the end of its buffer");
        if !filled(fd) {
            return -1;
        }
        // SAFETY: the caller keeps the contract of pread(2).
        unsafe { real::pread64(fd, to, count, offset) }
    }
    /// preadv(2).
    preadv, preadv64: (fd: c_int, to: *const iovec, count: c_int, offset: off_t) -> ssize_t {
        if !filled(fd) {
            return -1;
        }
        // SAFETY: the caller keeps the contract of preadv(2).
        unsafe { real::preadv64(fd, to, count, offset) }
    }
    /// lseek(2).
    lseek, lseek64: (fd: c_int, offset: off_t, whence: c_int) -> off_t {
        if !filled(fd) {
            return -1;
        }
        // SAFETY: the caller keeps the contract of lseek(2).
        unsafe { real::lseek64(fd, offset, whence) }
    }
    /// mmap(2). Writes through a mapping are not seen, so that a file which has one is stored in any case.
    mmap, mmap64: (
        at: *mut c_void, length: size_t, protection: c_int, flags: c_int, fd: c_int, offset: off_t
    ) -> *mut c_void {
        if flags & libc::MAP_ANONYMOUS == 0 {
            if !filled(fd) {
                return libc::MAP_FAILED;
            }
            if flags & libc::MAP_SHARED != 0 && protection & libc::PROT_WRITE != 0 {
                mapped(fd);
            }
        }
        // SAFETY: the caller keeps the contract of mmap(2).
        unsafe { real::mmap64(at, length, protection, flags, fd, offset) }
    }
    /// sendfile(2).
    sendfile, sendfile64: (to: c_int, from: c_int, offset: *mut off_t, count: size_t) -> ssize_t {
        if !filled(from) {
            return -1;
        }
        // SAFETY: the caller keeps the contract of sendfile(2).
        unsafe { real::sendfile64(to, from, offset, count) }
    }
    /// posix_fadvise(2), for which there is nothing to do before a file is used.
    posix_fadvise, posix_fadvise64: (
        fd: c_int, offset: off_t, length: off_t, advice: c_int
    ) -> c_int {
        if let Some(_ours) = our_descriptor(fd)
            && table::get(fd).is_some()
        {
            return 0;
        }
        // SAFETY: the caller keeps the contract of posix_fadvise(2).
        unsafe { real::posix_fadvise64(fd, offset, length, advice) }
    }
    /// fcntl(2). Its last argument is there only with some commands; it is handed on as it came.
    fcntl, fcntl64: (fd: c_int, command: c_int, argument: usize) -> c_int {
        // What the program asks of its flags, and who duplicates it, wants to use it.
        let uses = !matches!(command, libc::F_GETFD | libc::F_SETFD);
        if uses && !filled(fd) {
            return -1;
        }
        // SAFETY: the caller keeps the contract of fcntl(2).
        let result = unsafe { real::fcntl64(fd, command, argument) };
        if matches!(command, libc::F_DUPFD | libc::F_DUPFD_CLOEXEC) {
            duplicated(fd, result);
        }
        result
    }
}

/// Whether a descriptor can be read, or is not ours; if not, `errno` says why.
#[inline]
pub(super) fn filled(fd: c_int) -> bool {
    match our_descriptor(fd) {
        Some((state, _inside)) => done(|| opening::fill(state, fd)) == 0,
        None => true,
    }
}

fn mapped(fd: c_int) {
    if let Some(_ours) = our_descriptor(fd)
        && let Some(file) = table::get(fd)
    {
        file.mapped();
    }
}

#[inline]
fn duplicated(fd: c_int, new: c_int) {
    if new >= 0
        && let Some(_ours) = our_descriptor(fd)
    {
        opening::duplicated(fd, new);
    }
}

/// What is stored before a descriptor goes; 0, or -1 and `errno`.
fn before_close(fd: c_int) -> c_int {
    match our_descriptor(fd) {
        Some((state, _inside)) => done(|| opening::before_close(state, fd)),
        None => 0,
    }
}

/// close(2): the last of a file's descriptors stores it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn close(fd: c_int) -> c_int {
    if !table::may_be(fd) {
        // SAFETY: the caller keeps the contract of close(2).
        return unsafe { real::close(fd) };
    }
    let stored = before_close(fd);
    let errno = real::errno();
    // SAFETY: as above. It is closed whatever became of its file, as close(2) says.
    let closed = unsafe { real::close(fd) };
    if stored < 0 {
        real::set_errno(errno);
    }
    if stored < 0 { stored } else { closed }
}

/// dup(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dup(fd: c_int) -> c_int {
    if !filled(fd) {
        return -1;
    }
    // SAFETY: the caller keeps the contract of dup(2).
    let new = unsafe { real::dup(fd) };
    duplicated(fd, new);
    new
}

/// dup2(2): what `to` was before is closed, and stored.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dup2(fd: c_int, to: c_int) -> c_int {
    if fd == to || !(table::may_be(fd) || table::may_be(to)) {
        // SAFETY: the caller keeps the contract of dup2(2).
        return unsafe { real::dup2(fd, to) };
    }
    if !filled(fd) || before_close(to) < 0 {
        return -1;
    }
    // SAFETY: as above.
    let new = unsafe { real::dup2(fd, to) };
    duplicated(fd, new);
    new
}

/// dup3(2), as dup2(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dup3(fd: c_int, to: c_int, flags: c_int) -> c_int {
    if fd != to && (!filled(fd) || before_close(to) < 0) {
        return -1;
    }
    // SAFETY: the caller keeps the contract of dup3(2).
    let new = unsafe { real::dup3(fd, to, flags) };
    duplicated(fd, new);
    new
}

fn sync(fd: c_int) -> Option<c_int> {
    let (state, _inside) = our_descriptor(fd)?;
    let file = table::get(fd)?;
    Some(done(|| opening::sync(state, fd, &file)))
}

/// fsync(2): stores what was written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fsync(fd: c_int) -> c_int {
    // SAFETY: the caller keeps the contract of fsync(2).
    sync(fd).unwrap_or_else(|| unsafe { real::fsync(fd) })
}

/// fdatasync(2), as fsync(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fdatasync(fd: c_int) -> c_int {
    // SAFETY: the caller keeps the contract of fdatasync(2).
    sync(fd).unwrap_or_else(|| unsafe { real::fdatasync(fd) })
}

/// read(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn read(fd: c_int, to: *mut c_void, count: size_t) -> ssize_t {
    if !filled(fd) {
        return -1;
    }
    // SAFETY: the caller keeps the contract of read(2).
    unsafe { real::read(fd, to, count) }
}

/// What read(2) is where the compiler knows how much room there is.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __read_chk(
    fd: c_int,
    to: *mut c_void,
    count: size_t,
    room: size_t,
) -> ssize_t {
    assert!(count <= room, "a read beyond the end of its buffer");
    // SAFETY: the caller keeps the contract of read(2).
    unsafe { read(fd, to, count) }
}

/// readv(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn readv(fd: c_int, to: *const iovec, count: c_int) -> ssize_t {
    if !filled(fd) {
        return -1;
    }
    // SAFETY: the caller keeps the contract of readv(2).
    unsafe { real::readv(fd, to, count) }
}

/// copy_file_range(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn copy_file_range(
    from: c_int,
    from_offset: *mut off_t,
    to: c_int,
    to_offset: *mut off_t,
    count: size_t,
    flags: u32,
) -> ssize_t {
    if !filled(from) {
        return -1;
    }
    // SAFETY: the caller keeps the contract of copy_file_range(2).
    unsafe { real::copy_file_range(from, from_offset, to, to_offset, count, flags) }
}

/// close_range(2): those that are ours are closed one by one before.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn close_range(first: u32, last: u32, flags: c_int) -> c_int {
    if flags == 0 {
        let ours = table::descriptors(first, last);
        ours.into_iter().for_each(|fd| {
            // SAFETY: the caller wants it closed.
            unsafe { close(fd) };
        });
    }
    memory::close_range(first, last, flags)
}
