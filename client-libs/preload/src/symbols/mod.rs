//! The functions that stand before libc's.
//!
//! Each asks first whether the path or the descriptor is ours, and hands everything else on as it came.

#![allow(unsafe_code)]
#![allow(clippy::missing_safety_doc, reason = "each has the contract of its namesake in libc")]

/// Functions that do the same by two names: that of 64-bit files, and the old one, which is the same here.
macro_rules! also {
    ($($(#[$doc:meta])* $name:ident, $other:ident: (
        $($argument:ident: $type:ty),*
    ) -> $result:ty $body:block)*) => {$(
        $(#[$doc])*
        // SAFETY: it has the name and the contract of libc's function, and stands in its place.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($argument: $type),*) -> $result $body

        $(#[$doc])*
        // SAFETY: as above.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $other($($argument: $type),*) -> $result $body
    )*};
}

mod descriptors;
mod directories;
mod paths;
mod streams;

use std::ffi::{CStr, c_char, c_int};
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::files::{Errno, report};
use crate::real;
use crate::table::{self, Inside, State};

/// The name that a path of ours leads to, and the right to work on it. All that other paths cost.
///
/// # Safety
/// `path` is NULL, or ends with a NUL.
#[inline]
unsafe fn ours(path: *const c_char) -> Option<(&'static State, Vec<u8>, Inside)> {
    let state = table::state()?;
    if path.is_null() {
        return None;
    }
    for (at, byte) in state.prefix.bytes().iter().enumerate() {
        // SAFETY: the path ends with a NUL, which no byte of the prefix is, so it is not left.
        if unsafe { *path.add(at) } as u8 != *byte {
            return None;
        }
    }
    // SAFETY: the caller's promise.
    let name = state.prefix.name(unsafe { CStr::from_ptr(path) }.to_bytes())?;
    Some((state, name, Inside::enter()?))
}

/// The right to work on a descriptor that may be ours. All that others cost.
#[inline]
fn our_descriptor(fd: c_int) -> Option<(&'static State, Inside)> {
    if !table::may_be(fd) {
        return None;
    }
    Some((table::state()?, Inside::enter()?))
}

/// Works for the program: a failure becomes `failed`, and `errno`. So does a panic.
fn answer<T>(failed: T, work: impl FnOnce() -> Result<T, Errno>) -> T {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(value)) => value,
        Ok(Err(Errno(errno))) => {
            real::set_errno(errno);
            failed
        }
        Err(_) => {
            report(b"", "a fault of libmemkv_preload");
            real::set_errno(libc::EIO);
            failed
        }
    }
}

/// The same for what answers 0 or -1.
fn done(work: impl FnOnce() -> Result<(), Errno>) -> c_int {
    answer(-1, || work().map(|()| 0))
}

/// What is run when the process ends.
#[used]
// SAFETY: the section is a list of such functions, which libc calls once each.
#[unsafe(link_section = ".fini_array")]
static AT_EXIT: extern "C" fn() = at_exit;

extern "C" fn at_exit() {
    let Some(_inside) = Inside::enter() else { return };
    let Some(state) = table::state() else { return };
    if table::writers().is_empty() {
        return;
    }
    // SAFETY: NULL stands for all streams: what they hold back is to be in the files.
    unsafe { real::fflush(std::ptr::null_mut()) };
    // This thread's own memory has been taken down already, and the client needs such.
    let work = || {
        let _inside = Inside::enter();
        crate::opening::at_exit(state);
    };
    if std::thread::Builder::new().spawn(work).map(|thread| thread.join()).is_err() {
        report(b"", "NOT STORED: no thread for the files that are open at the end");
    }
}
