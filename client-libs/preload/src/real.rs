//! The functions of libc that ours stand before.
//!
//! They are looked for behind this library when they are first called (`dlsym` with `RTLD_NEXT`), which takes
//! no lock of ours and opens no file. One that libc does not have fails with `ENOSYS`.

#![allow(unsafe_code)]
#![allow(clippy::missing_safety_doc, reason = "each has the contract of its namesake in libc")]
#![allow(clippy::too_many_arguments, reason = "libc's are what they are")]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::atomic::{AtomicPtr, Ordering};

use libc::{
    DIR, FILE, dirent64, iovec, mode_t, off_t, size_t, ssize_t, stat64 as Stat,
    statvfs64 as StatVfs, statx as Statx,
};

/// What a function returns that is not there.
trait Failed {
    const FAILED: Self;
}

impl Failed for c_int {
    const FAILED: c_int = -1;
}

impl Failed for isize {
    const FAILED: isize = -1;
}

impl Failed for i64 {
    const FAILED: i64 = -1;
}

impl Failed for () {
    const FAILED: () = ();
}

impl<T> Failed for *mut T {
    const FAILED: *mut T = std::ptr::null_mut();
}

/// Sets the calling thread's `errno`.
pub(crate) fn set_errno(errno: c_int) {
    // SAFETY: it is the calling thread's own.
    unsafe { *libc::__errno_location() = errno };
}

/// The calling thread's `errno`.
pub(crate) fn errno() -> c_int {
    // SAFETY: as above.
    unsafe { *libc::__errno_location() }
}

fn look_up(cell: &AtomicPtr<c_void>, name: &CStr) -> *mut c_void {
    // SAFETY: the name ends with a NUL.
    let found = unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) };
    cell.store(found, Ordering::Relaxed);
    found
}

macro_rules! real {
    ($($name:ident($($argument:ident: $type:ty),*) -> $result:ty;)*) => {$(
        // SAFETY: who calls it keeps the contract of libc's function.
        #[inline]
        pub(crate) unsafe fn $name($($argument: $type),*) -> $result {
            static CELL: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());
            const NAME: &CStr = match CStr::from_bytes_with_nul(
                concat!(stringify!($name), "\0").as_bytes(),
            ) {
                Ok(name) => name,
                Err(_) => panic!("a name has no NUL"),
            };
            let mut found = CELL.load(Ordering::Relaxed);
            if found.is_null() {
                found = look_up(&CELL, NAME);
                if found.is_null() {
                    set_errno(libc::ENOSYS);
                    return <$result as Failed>::FAILED;
                }
            }
            // SAFETY: the type says that its caller keeps that contract.
            type Function = unsafe extern "C" fn($($type),*) -> $result;
            // SAFETY: libc's function of this name has these arguments, where the last of some are
            // variadic: those are passed like others on all machines that this is built for.
            let function = unsafe { std::mem::transmute::<*mut c_void, Function>(found) };
            // SAFETY: the caller keeps its contract.
            unsafe { function($($argument),*) }
        }
    )*};
}

real! {
    open64(path: *const c_char, flags: c_int, mode: mode_t) -> c_int;
    openat64(at: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int;
    fopen64(path: *const c_char, mode: *const c_char) -> *mut FILE;
    fdopen(fd: c_int, mode: *const c_char) -> *mut FILE;
    fclose(file: *mut FILE) -> c_int;
    fflush(file: *mut FILE) -> c_int;
    close(fd: c_int) -> c_int;
    dup(fd: c_int) -> c_int;
    dup2(fd: c_int, to: c_int) -> c_int;
    dup3(fd: c_int, to: c_int, flags: c_int) -> c_int;
    fcntl64(fd: c_int, command: c_int, argument: usize) -> c_int;
    fsync(fd: c_int) -> c_int;
    fdatasync(fd: c_int) -> c_int;
    read(fd: c_int, to: *mut c_void, count: size_t) -> ssize_t;
    pread64(fd: c_int, to: *mut c_void, count: size_t, offset: off_t) -> ssize_t;
    readv(fd: c_int, to: *const iovec, count: c_int) -> ssize_t;
    preadv64(fd: c_int, to: *const iovec, count: c_int, offset: off_t) -> ssize_t;
    write(fd: c_int, from: *const c_void, count: size_t) -> ssize_t;
    lseek64(fd: c_int, offset: off_t, whence: c_int) -> off_t;
    mmap64(
        at: *mut c_void, length: size_t, protection: c_int, flags: c_int, fd: c_int, offset: off_t
    ) -> *mut c_void;
    sendfile64(to: c_int, from: c_int, offset: *mut off_t, count: size_t) -> ssize_t;
    copy_file_range(
        from: c_int, from_offset: *mut off_t, to: c_int, to_offset: *mut off_t, count: size_t,
        flags: u32
    ) -> ssize_t;
    posix_fadvise64(fd: c_int, offset: off_t, length: off_t, advice: c_int) -> c_int;
    fstat64(fd: c_int, stat: *mut Stat) -> c_int;
    stat64(path: *const c_char, stat: *mut Stat) -> c_int;
    lstat64(path: *const c_char, stat: *mut Stat) -> c_int;
    fstatat64(at: c_int, path: *const c_char, stat: *mut Stat, flags: c_int) -> c_int;
    statx(at: c_int, path: *const c_char, flags: c_int, mask: u32, statx: *mut Statx) -> c_int;
    __xstat64(version: c_int, path: *const c_char, stat: *mut Stat) -> c_int;
    __lxstat64(version: c_int, path: *const c_char, stat: *mut Stat) -> c_int;
    __fxstat64(version: c_int, fd: c_int, stat: *mut Stat) -> c_int;
    __fxstatat64(
        version: c_int, at: c_int, path: *const c_char, stat: *mut Stat, flags: c_int
    ) -> c_int;
    statvfs64(path: *const c_char, statvfs: *mut StatVfs) -> c_int;
    access(path: *const c_char, mode: c_int) -> c_int;
    faccessat(at: c_int, path: *const c_char, mode: c_int, flags: c_int) -> c_int;
    unlink(path: *const c_char) -> c_int;
    unlinkat(at: c_int, path: *const c_char, flags: c_int) -> c_int;
    remove(path: *const c_char) -> c_int;
    rename(from: *const c_char, to: *const c_char) -> c_int;
    renameat(at: c_int, from: *const c_char, to_at: c_int, to: *const c_char) -> c_int;
    renameat2(at: c_int, from: *const c_char, to_at: c_int, to: *const c_char, flags: u32) -> c_int;
    chdir(path: *const c_char) -> c_int;
    getxattr(path: *const c_char, name: *const c_char, to: *mut c_void, room: size_t) -> ssize_t;
    lgetxattr(path: *const c_char, name: *const c_char, to: *mut c_void, room: size_t) -> ssize_t;
    mkdir(path: *const c_char, mode: mode_t) -> c_int;
    mkdirat(at: c_int, path: *const c_char, mode: mode_t) -> c_int;
    rmdir(path: *const c_char) -> c_int;
    opendir(path: *const c_char) -> *mut DIR;
    readdir64(directory: *mut DIR) -> *mut dirent64;
    closedir(directory: *mut DIR) -> c_int;
    rewinddir(directory: *mut DIR) -> ();
    dirfd(directory: *mut DIR) -> c_int;
}
