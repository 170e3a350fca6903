//! Streams of stdio: a descriptor of ours with a stream of libc's around it.
//!
//! libc's own fopen and fclose call open and close by ways that nobody can stand before.

use std::ffi::{c_char, c_int};

use libc::FILE;

use super::descriptors::filled;
use super::{answer, done, our_descriptor, ours};
use crate::{memory, opening, real};

/// The flags of a mode such as `r+b`; `None` when it makes no sense.
fn flags(mode: &[u8]) -> Option<c_int> {
    let (first, rest) = mode.split_first()?;
    let both = rest.contains(&b'+');
    let flags = match (first, both) {
        (b'r', false) => libc::O_RDONLY,
        (b'r', true) => libc::O_RDWR,
        (b'w', false) => libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC,
        (b'w', true) => libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC,
        (b'a', false) => libc::O_WRONLY | libc::O_CREAT | libc::O_APPEND,
        (b'a', true) => libc::O_RDWR | libc::O_CREAT | libc::O_APPEND,
        _ => return None,
    };
    let exclusive = if rest.contains(&b'x') { libc::O_EXCL } else { 0 };
    let cloexec = if rest.contains(&b'e') { libc::O_CLOEXEC } else { 0 };
    Some(flags | exclusive | cloexec)
}

/// Opens a stream of ours; `None` when it is libc's.
///
/// # Safety
/// Both are NULL, or end with a NUL.
unsafe fn opened(path: *const c_char, mode: *const c_char) -> Option<*mut FILE> {
    // SAFETY: the caller's promise.
    let (state, name, _inside) = unsafe { ours(path) }?;
    // SAFETY: the caller's promise.
    let flags = flags(unsafe { memory::text(mode) })?;
    let fd = answer(-1, || opening::open(state, name, flags));
    if fd < 0 {
        return Some(std::ptr::null_mut());
    }
    if answer(false, || opening::fill(state, fd).map(|()| true)) {
        // SAFETY: the descriptor was just opened, and the mode ends with a NUL.
        let stream = unsafe { real::fdopen(fd, mode) };
        if !stream.is_null() {
            return Some(stream);
        }
    }
    let errno = real::errno();
    // It was opened and nothing was written, so that there is nothing to store.
    opening::forget(fd);
    real::set_errno(errno);
    Some(std::ptr::null_mut())
}

also! {
    /// fopen(3).
    fopen, fopen64: (path: *const c_char, mode: *const c_char) -> *mut FILE {
        // SAFETY: the caller keeps the contract of fopen(3).
        unsafe { opened(path, mode).unwrap_or_else(|| real::fopen64(path, mode)) }
    }
}

/// fdopen(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fdopen(fd: c_int, mode: *const c_char) -> *mut FILE {
    if !filled(fd) {
        return std::ptr::null_mut();
    }
    // SAFETY: the caller keeps the contract of fdopen(3).
    unsafe { real::fdopen(fd, mode) }
}

/// fclose(3): the last of a file's descriptors stores it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fclose(stream: *mut FILE) -> c_int {
    // SAFETY: the caller keeps the contract of fclose(3), so the stream is open.
    let fd = if stream.is_null() { -1 } else { unsafe { libc::fileno(stream) } };
    let Some((state, inside)) = our_descriptor(fd) else {
        // SAFETY: as above.
        return unsafe { real::fclose(stream) };
    };
    // SAFETY: as above. What the stream holds back is to be in the file before it is stored.
    let flushed = unsafe { real::fflush(stream) };
    let stored = done(|| opening::before_close(state, fd));
    let errno = real::errno();
    drop(inside);
    // SAFETY: as above. It is closed whatever became of its file.
    let closed = unsafe { real::fclose(stream) };
    if stored < 0 {
        real::set_errno(errno);
    }
    if flushed != 0 || stored < 0 { libc::EOF } else { closed }
}
