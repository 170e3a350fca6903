//! Directories: opendir, readdir, closedir.

use std::ffi::{c_char, c_int};

use libc::{DIR, dirent64};

use super::{answer, ours};
use crate::format::Entry;
use crate::{real, table};

/// A directory that is being read.
struct Stream {
    entries: Vec<Entry>,
    next: usize,
    /// The entry that was read last, where the program looks at it.
    entry: dirent64,
}

/// opendir(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn opendir(path: *const c_char) -> *mut DIR {
    // SAFETY: the caller keeps the contract of opendir(3).
    let Some((state, name, _inside)) = (unsafe { ours(path) }) else {
        // SAFETY: as above.
        return unsafe { real::opendir(path) };
    };
    answer(std::ptr::null_mut(), || {
        let special = [&b"."[..], b".."].map(|name| Entry { name: name.to_vec(), directory: true });
        let mut entries = special.to_vec();
        entries.extend(state.store.entries(&name).map_err(|error| error.errno(&name))?);
        // SAFETY: all bits 0 are a good entry.
        let entry = unsafe { std::mem::zeroed() };
        let stream = Box::into_raw(Box::new(Stream { entries, next: 0, entry }));
        table::put_directory(stream as usize);
        Ok(stream.cast())
    })
}

/// The stream, if it is ours.
///
/// # Safety
/// One thread uses a stream at a time, as readdir(3) says.
unsafe fn our_stream<'a>(directory: *mut DIR) -> Option<&'a mut Stream> {
    // SAFETY: it was made by opendir, and not closed since: then it would not be known.
    table::is_directory(directory as usize).then(|| unsafe { &mut *directory.cast::<Stream>() })
}

impl Stream {
    fn next(&mut self) -> *mut dirent64 {
        let Some(entry) = self.entries.get(self.next) else { return std::ptr::null_mut() };
        self.next += 1;
        self.entry.d_ino = self.next as u64;
        self.entry.d_off = self.next as i64;
        self.entry.d_reclen = size_of::<dirent64>() as u16;
        self.entry.d_type = if entry.directory { libc::DT_DIR } else { libc::DT_REG };
        let length = entry.name.len().min(self.entry.d_name.len() - 1);
        for (to, from) in self.entry.d_name.iter_mut().zip(&entry.name[..length]) {
            *to = *from as c_char;
        }
        self.entry.d_name[length] = 0;
        &raw mut self.entry
    }
}

also! {
    /// readdir(3).
    readdir, readdir64: (directory: *mut DIR) -> *mut dirent64 {
        // SAFETY: the caller keeps the contract of readdir(3).
        match unsafe { our_stream(directory) } {
            Some(stream) => stream.next(),
            // SAFETY: as above.
            None => unsafe { real::readdir64(directory) },
        }
    }
}

/// rewinddir(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rewinddir(directory: *mut DIR) {
    // SAFETY: the caller keeps the contract of rewinddir(3).
    match unsafe { our_stream(directory) } {
        Some(stream) => stream.next = 0,
        // SAFETY: as above.
        None => unsafe { real::rewinddir(directory) },
    }
}

/// dirfd(3): a directory of ours has no descriptor.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dirfd(directory: *mut DIR) -> c_int {
    if table::is_directory(directory as usize) {
        real::set_errno(libc::ENOTSUP);
        return -1;
    }
    // SAFETY: the caller keeps the contract of dirfd(3).
    unsafe { real::dirfd(directory) }
}

/// closedir(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn closedir(directory: *mut DIR) -> c_int {
    if table::take_directory(directory as usize) {
        // SAFETY: it was made by opendir, and is not known any more, so that nobody else frees it.
        drop(unsafe { Box::from_raw(directory.cast::<Stream>()) });
        return 0;
    }
    // SAFETY: the caller keeps the contract of closedir(3).
    unsafe { real::closedir(directory) }
}
