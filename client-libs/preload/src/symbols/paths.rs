//! Names: stat and its relatives, unlink, rename, mkdir.

use std::ffi::{c_char, c_int, c_void};

use libc::{mode_t, size_t, ssize_t, stat64 as Stat, statvfs64 as StatVfs, statx as Statx};

use super::{done, our_descriptor, ours};
use crate::files::{Errno, report};
use crate::status::{self, Status};
use crate::store::StoreError;
use crate::table::State;
use crate::{memory, opening, real, table};

/// Writes what is known where the program wants it.
///
/// # Safety
/// `to` has room for one.
unsafe fn tell(status: &Status, to: *mut Stat) {
    // SAFETY: all bits 0 are a good one, and there is room for it (the caller's promise).
    unsafe {
        to.write(std::mem::zeroed());
        status.fill(&mut *to, libc::geteuid(), libc::getegid());
    }
}

/// stat(2) of a path of ours; `None` when it is libc's.
///
/// # Safety
/// `path` is NULL, or ends with a NUL; `to` has room for one.
unsafe fn path_status(path: *const c_char, to: *mut Stat) -> Option<c_int> {
    // SAFETY: the caller's promise.
    let (state, name, _inside) = unsafe { ours(path) }?;
    Some(done(|| {
        let status = status::of_name(state, &name)?;
        // SAFETY: the caller's promise.
        unsafe { tell(&status, to) };
        Ok(())
    }))
}

/// fstat(2) of a descriptor of ours; `None` when it is libc's.
///
/// # Safety
/// `to` has room for one.
unsafe fn descriptor_status(fd: c_int, to: *mut Stat) -> Option<c_int> {
    let _ours = our_descriptor(fd)?;
    let file = table::get(fd)?;
    Some(done(|| {
        let status = status::of_memory(&file.name(), &memory::status(fd)?)?;
        // SAFETY: the caller's promise.
        unsafe { tell(&status, to) };
        Ok(())
    }))
}

/// fstatat(2) of what is ours: a path, or with an empty one a descriptor.
///
/// # Safety
/// As [`path_status`].
unsafe fn status_at(at: c_int, path: *const c_char, to: *mut Stat, flags: c_int) -> Option<c_int> {
    // SAFETY: the caller's promise.
    unsafe {
        if flags & libc::AT_EMPTY_PATH != 0 && memory::text(path).is_empty() {
            descriptor_status(at, to)
        } else {
            path_status(path, to)
        }
    }
}

also! {
    /// stat(2).
    stat, stat64: (path: *const c_char, to: *mut Stat) -> c_int {
        // SAFETY: the caller keeps the contract of stat(2).
        unsafe { path_status(path, to).unwrap_or_else(|| real::stat64(path, to)) }
    }
    /// lstat(2). There are no links here.
    lstat, lstat64: (path: *const c_char, to: *mut Stat) -> c_int {
        // SAFETY: the caller keeps the contract of lstat(2).
        unsafe { path_status(path, to).unwrap_or_else(|| real::lstat64(path, to)) }
    }
    /// fstat(2).
    fstat, fstat64: (fd: c_int, to: *mut Stat) -> c_int {
        // SAFETY: the caller keeps the contract of fstat(2).
        unsafe { descriptor_status(fd, to).unwrap_or_else(|| real::fstat64(fd, to)) }
    }
    /// fstatat(2).
    fstatat, fstatat64: (at: c_int, path: *const c_char, to: *mut Stat, flags: c_int) -> c_int {
        // SAFETY: the caller keeps the contract of fstatat(2).
        unsafe {
            status_at(at, path, to, flags)
                .unwrap_or_else(|| real::fstatat64(at, path, to, flags))
        }
    }
    /// stat(2), as programs call it that were built for a libc before 2.33.
    __xstat, __xstat64: (version: c_int, path: *const c_char, to: *mut Stat) -> c_int {
        // SAFETY: the caller keeps the contract of stat(2).
        unsafe { path_status(path, to).unwrap_or_else(|| real::__xstat64(version, path, to)) }
    }
    /// lstat(2), as programs call it that were built for a libc before 2.33.
    __lxstat, __lxstat64: (version: c_int, path: *const c_char, to: *mut Stat) -> c_int {
        // SAFETY: the caller keeps the contract of lstat(2).
        unsafe { path_status(path, to).unwrap_or_else(|| real::__lxstat64(version, path, to)) }
    }
    /// fstat(2), as programs call it that were built for a libc before 2.33.
    __fxstat, __fxstat64: (version: c_int, fd: c_int, to: *mut Stat) -> c_int {
        // SAFETY: the caller keeps the contract of fstat(2).
        unsafe { descriptor_status(fd, to).unwrap_or_else(|| real::__fxstat64(version, fd, to)) }
    }
    /// fstatat(2), as programs call it that were built for a libc before 2.33.
    __fxstatat, __fxstatat64: (
        version: c_int, at: c_int, path: *const c_char, to: *mut Stat, flags: c_int
    ) -> c_int {
        // SAFETY: the caller keeps the contract of fstatat(2).
        unsafe {
            status_at(at, path, to, flags)
                .unwrap_or_else(|| real::__fxstatat64(version, at, path, to, flags))
        }
    }
    /// statvfs(3).
    statvfs, statvfs64: (path: *const c_char, to: *mut StatVfs) -> c_int {
        // SAFETY: the caller keeps the contract of statvfs(3).
        let Some((state, _, _inside)) = (unsafe { ours(path) }) else {
            // SAFETY: as above.
            return unsafe { real::statvfs64(path, to) };
        };
        done(|| {
            // SAFETY: all bits 0 are a good one, and there is room for it.
            let to = unsafe {
                to.write(std::mem::zeroed());
                &mut *to
            };
            status::space(state, to)
        })
    }
    /// access(2): everything may be read and written, and nothing executed.
    access, eaccess: (path: *const c_char, mode: c_int) -> c_int {
        // SAFETY: the caller keeps the contract of access(2).
        unsafe { accessed(path, mode).unwrap_or_else(|| real::access(path, mode)) }
    }
}

/// access(2) of a path of ours; `None` when it is libc's.
///
/// # Safety
/// `path` is NULL, or ends with a NUL.
unsafe fn accessed(path: *const c_char, mode: c_int) -> Option<c_int> {
    // SAFETY: the caller's promise.
    let (state, name, _inside) = unsafe { ours(path) }?;
    Some(done(|| match status::of_name(state, &name)?.allows(mode) {
        true => Ok(()),
        false => Err(Errno(libc::EACCES)),
    }))
}

/// faccessat(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn faccessat(
    at: c_int,
    path: *const c_char,
    mode: c_int,
    flags: c_int,
) -> c_int {
    // SAFETY: the caller keeps the contract of faccessat(2).
    unsafe { accessed(path, mode).unwrap_or_else(|| real::faccessat(at, path, mode, flags)) }
}

/// statx(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn statx(
    at: c_int,
    path: *const c_char,
    flags: c_int,
    mask: u32,
    to: *mut Statx,
) -> c_int {
    // SAFETY: the caller keeps the contract of statx(2).
    unsafe {
        let mut status = std::mem::zeroed();
        match status_at(at, path, &raw mut status, flags) {
            None => real::statx(at, path, flags, mask, to),
            Some(0) => {
                to.write(std::mem::zeroed());
                status::to_statx(&status, &mut *to);
                0
            }
            Some(failed) => failed,
        }
    }
}

fn remove_file(state: &State, name: &[u8]) -> Result<(), Errno> {
    let open = opening::writer(name);
    // Before: who closes it meanwhile would store it again.
    if let Some((_, file)) = &open {
        file.unlink(true);
    }
    let removed = match state.store.remove(name) {
        // It was never stored.
        Err(StoreError::Absent) if open.is_some() => Ok(()),
        done => done.map_err(|error| error.errno(name)),
    };
    // What could not be removed is still to be stored.
    if let (Err(_), Some((_, file))) = (removed, &open) {
        file.unlink(false);
    }
    removed
}

fn remove_directory(state: &State, name: &[u8]) -> Result<(), Errno> {
    state.store.remove_directory(name).map_err(|error| error.errno(name))
}

/// unlink(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unlink(path: *const c_char) -> c_int {
    // SAFETY: the caller keeps the contract of unlink(2).
    match unsafe { ours(path) } {
        Some((state, name, _inside)) => done(|| remove_file(state, &name)),
        // SAFETY: as above.
        None => unsafe { real::unlink(path) },
    }
}

/// unlinkat(2), of which relative paths are not ours.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unlinkat(at: c_int, path: *const c_char, flags: c_int) -> c_int {
    // SAFETY: the caller keeps the contract of unlinkat(2).
    match unsafe { ours(path) } {
        Some((state, name, _inside)) if flags & libc::AT_REMOVEDIR != 0 => {
            done(|| remove_directory(state, &name))
        }
        Some((state, name, _inside)) => done(|| remove_file(state, &name)),
        // SAFETY: as above.
        None => unsafe { real::unlinkat(at, path, flags) },
    }
}

/// remove(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn remove(path: *const c_char) -> c_int {
    // SAFETY: the caller keeps the contract of remove(3).
    match unsafe { ours(path) } {
        Some((state, name, _inside)) => done(|| match remove_file(state, &name) {
            Err(Errno(libc::EISDIR)) => remove_directory(state, &name),
            done => done,
        }),
        // SAFETY: as above.
        None => unsafe { real::remove(path) },
    }
}

/// rmdir(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rmdir(path: *const c_char) -> c_int {
    // SAFETY: the caller keeps the contract of rmdir(2).
    match unsafe { ours(path) } {
        Some((state, name, _inside)) => done(|| remove_directory(state, &name)),
        // SAFETY: as above.
        None => unsafe { real::rmdir(path) },
    }
}

/// mkdir(2) of a path of ours; `None` when it is libc's.
///
/// # Safety
/// `path` is NULL, or ends with a NUL.
unsafe fn made(path: *const c_char) -> Option<c_int> {
    // SAFETY: the caller's promise.
    let (state, name, _inside) = unsafe { ours(path) }?;
    Some(done(|| state.store.make_directory(&name).map_err(|error| error.errno(&name))))
}

/// mkdir(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mkdir(path: *const c_char, mode: mode_t) -> c_int {
    // SAFETY: the caller keeps the contract of mkdir(2).
    unsafe { made(path).unwrap_or_else(|| real::mkdir(path, mode)) }
}

/// mkdirat(2), of which relative paths are not ours.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mkdirat(at: c_int, path: *const c_char, mode: mode_t) -> c_int {
    // SAFETY: the caller keeps the contract of mkdirat(2).
    unsafe { made(path).unwrap_or_else(|| real::mkdirat(at, path, mode)) }
}

/// rename(2) of which both paths are ours, or one; `None` when it is libc's.
///
/// # Safety
/// Both are NULL, or end with a NUL.
unsafe fn renamed(from: *const c_char, to: *const c_char) -> Option<c_int> {
    // SAFETY: the caller's promise.
    let (first, second) = unsafe {
        let first = ours(from).map(|(state, name, _)| (state, name));
        (first, ours(to).map(|(_, name, _)| name))
    };
    let (Some((state, from)), Some(to)) = (&first, &second) else {
        // From one file system to another.
        return (first.is_some() || second.is_some()).then(|| done(|| Err(Errno(libc::EXDEV))));
    };
    let _inside = table::Inside::enter();
    Some(done(|| {
        let open = opening::writer(from);
        match state.store.rename(from, to) {
            // It is not stored yet, and will be by its new name.
            Err(StoreError::Absent) if open.is_some() => {}
            done => done.map_err(|error| error.errno(from))?,
        }
        if let Some((_, file)) = opening::writer(to) {
            file.unlink(true);
        }
        if let Some((_, file)) = open {
            file.rename(to);
        }
        Ok(())
    }))
}

/// rename(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rename(from: *const c_char, to: *const c_char) -> c_int {
    // SAFETY: the caller keeps the contract of rename(2).
    unsafe { renamed(from, to).unwrap_or_else(|| real::rename(from, to)) }
}

/// renameat(2), of which relative paths are not ours.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn renameat(
    at: c_int,
    from: *const c_char,
    to_at: c_int,
    to: *const c_char,
) -> c_int {
    // SAFETY: the caller keeps the contract of renameat(2).
    unsafe { renamed(from, to).unwrap_or_else(|| real::renameat(at, from, to_at, to)) }
}

/// renameat2(2): with `RENAME_NOREPLACE` it looks first; nothing can be exchanged.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn renameat2(
    at: c_int,
    from: *const c_char,
    to_at: c_int,
    to: *const c_char,
    flags: u32,
) -> c_int {
    // SAFETY: the caller keeps the contract of renameat2(2).
    let there = match unsafe { ours(to) } {
        Some(_) if flags & !libc::RENAME_NOREPLACE != 0 => Err(Errno(libc::EINVAL)),
        Some((state, name, _inside)) if flags != 0 => match status::of_name(state, &name) {
            Ok(_) => Err(Errno(libc::EEXIST)),
            Err(Errno(libc::ENOENT)) => Ok(()),
            Err(errno) => Err(errno),
        },
        _ => Ok(()),
    };
    if done(|| there) < 0 {
        return -1;
    }
    // SAFETY: as above.
    unsafe { renamed(from, to).unwrap_or_else(|| real::renameat2(at, from, to_at, to, flags)) }
}

/// chdir(2): relative paths are not ours, so that nobody may think himself in here.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn chdir(path: *const c_char) -> c_int {
    // SAFETY: the caller keeps the contract of chdir(2).
    let Some((_, name, _inside)) = (unsafe { ours(path) }) else {
        // SAFETY: as above.
        return unsafe { real::chdir(path) };
    };
    report(&name, "not entered: relative paths are not redirected");
    done(|| Err(Errno(libc::ENOTSUP)))
}

/// getxattr(2): there are no attributes here.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getxattr(
    path: *const c_char,
    name: *const c_char,
    to: *mut c_void,
    room: size_t,
) -> ssize_t {
    // SAFETY: the caller keeps the contract of getxattr(2).
    match unsafe { ours(path) } {
        Some(_) => done(|| Err(Errno(libc::ENOTSUP))) as ssize_t,
        // SAFETY: as above.
        None => unsafe { real::getxattr(path, name, to, room) },
    }
}

/// lgetxattr(2), as getxattr(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lgetxattr(
    path: *const c_char,
    name: *const c_char,
    to: *mut c_void,
    room: size_t,
) -> ssize_t {
    // SAFETY: the caller keeps the contract of lgetxattr(2).
    match unsafe { ours(path) } {
        Some(_) => done(|| Err(Errno(libc::ENOTSUP))) as ssize_t,
        // SAFETY: as above.
        None => unsafe { real::lgetxattr(path, name, to, room) },
    }
}
