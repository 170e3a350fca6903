//! Opening, closing and duplicating descriptors of files.

use std::ffi::c_int;
use std::sync::Arc;

use crate::files::{Errno, File, report};
use crate::memory::{self, Bytes};
use crate::store::{Found, StoreError};
use crate::table::{self, State};

/// Opens a file.
pub(crate) fn open(state: &State, name: Vec<u8>, flags: c_int) -> Result<c_int, Errno> {
    let writable = flags & libc::O_ACCMODE != libc::O_RDONLY || flags & libc::O_TRUNC != 0;
    if flags & libc::O_DIRECTORY == libc::O_DIRECTORY {
        return match state.store.find(&name) {
            Ok(Found::Directory) if !writable => directory(flags),
            Ok(Found::Directory) => Err(Errno(libc::EISDIR)),
            Ok(Found::File(_)) => Err(Errno(libc::ENOTDIR)),
            Err(error) => Err(error.errno(&name)),
        };
    }
    let opened = if writable {
        open_to_write(state, &name, flags)
    } else if let Some((fd, _)) = writer(&name) {
        // What this process writes it reads as it is.
        let fd = memory::reopen(fd, libc::O_RDONLY)?;
        guarded(fd, File::reader(name.clone(), fd))
    } else {
        match open_to_read(state, &name) {
            Err(Failure::Store(StoreError::Absent)) if flags & libc::O_CREAT != 0 => {
                open_to_write(state, &name, flags)
            }
            opened => opened,
        }
    };
    let (fd, file) = match opened {
        Ok(opened) => opened,
        Err(Failure::Store(StoreError::Directory)) if !writable => return directory(flags),
        Err(Failure::Store(error)) => return Err(error.errno(&name)),
        Err(Failure::Errno(errno)) => return Err(errno),
    };
    if flags & libc::O_CLOEXEC == 0 {
        memory::keep_on_exec(fd)?;
    }
    if !table::put(fd, Arc::new(file)) {
        memory::close(fd);
        report(&name, &format!("not opened: {} descriptors are open", table::DESCRIPTORS));
        return Err(Errno(libc::EMFILE));
    }
    Ok(fd)
}

/// What a program gets that opens a directory: a descriptor to sync and to close, which is nothing else. Who
/// takes it for the start of relative paths, or reads names from it, is told that it is no directory.
fn directory(flags: c_int) -> Result<c_int, Errno> {
    let fd = memory::create(0)?;
    if flags & libc::O_CLOEXEC == 0 {
        memory::keep_on_exec(fd)?;
    }
    Ok(fd)
}

enum Failure {
    Store(StoreError),
    Errno(Errno),
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Failure {
        Failure::Store(error)
    }
}

impl<E: Into<Errno>> From<E> for Failure {
    fn from(error: E) -> Failure {
        Failure::Errno(error.into())
    }
}

type Opened = Result<(c_int, File), Failure>;

/// A file that this process writes, and is not closed yet.
pub(crate) fn writer(name: &[u8]) -> Option<(c_int, Arc<File>)> {
    table::writers().into_iter().find(|(_, file)| file.is_linked() && file.name() == name)
}

/// The descriptor with its file; closed when there is none.
fn guarded(fd: c_int, file: Result<File, Errno>) -> Opened {
    match file {
        Ok(file) => Ok((fd, file)),
        Err(errno) => {
            memory::close(fd);
            Err(Failure::Errno(errno))
        }
    }
}

fn open_to_read(state: &State, name: &[u8]) -> Opened {
    let stored = state.store.open(name)?;
    if stored.head.parts > 0 {
        let (file, fd) = File::shut(name.to_vec(), stored.head)?;
        return Ok((fd, file));
    }
    let fd = memory::create(stored.head.size)?;
    let read_only = Bytes::of(fd, stored.head.size, true).and_then(|mut bytes| {
        bytes.as_mut().copy_from_slice(&stored.inline);
        memory::reopen(fd, libc::O_RDONLY)
    });
    memory::close(fd);
    let fd = read_only?;
    guarded(fd, File::reader(name.to_vec(), fd))
}

fn open_to_write(state: &State, name: &[u8], flags: c_int) -> Opened {
    let known = match state.store.find(name) {
        Ok(Found::Directory) => return Err(StoreError::Directory.into()),
        Ok(Found::File(head)) => Some(head),
        Err(StoreError::Absent) => None,
        Err(error) => return Err(error.into()),
    };
    let exists = known.is_some() || writer(name).is_some();
    if exists && flags & (libc::O_CREAT | libc::O_EXCL) == libc::O_CREAT | libc::O_EXCL {
        return Err(StoreError::Exists.into());
    }
    if !exists && flags & libc::O_CREAT == 0 {
        return Err(StoreError::Absent.into());
    }
    let keep = known.is_some() && flags & libc::O_TRUNC == 0;
    let fd = memory::create(0)?;
    let filled = match keep {
        true => fetch(state, name, fd),
        false => Ok(()),
    };
    let append = flags & libc::O_APPEND;
    let ready = filled.and_then(|()| match append {
        0 => Ok(()),
        append => memory::set_flags(fd, append).map_err(Failure::from),
    });
    ready.inspect_err(|_| memory::close(fd))?;
    guarded(fd, File::writer(name.to_vec(), fd, !keep))
}

fn fetch(state: &State, name: &[u8], fd: c_int) -> Result<(), Failure> {
    let fetched = state.store.fetch(name, |size| {
        memory::resize(fd, size)?;
        Bytes::of(fd, size, true)
    });
    fetched?.map(drop).map_err(Failure::from)
}

/// Stores a file of ours, as fsync(2) does.
pub(crate) fn sync(state: &State, fd: c_int, file: &File) -> Result<(), Errno> {
    file.store(&state.store, fd)
}

/// What must happen before a descriptor is closed: the last of a file stores it.
pub(crate) fn before_close(state: &State, fd: c_int) -> Result<(), Errno> {
    match table::take(fd) {
        Some((file, true)) => file.store(&state.store, fd),
        _ => Ok(()),
    }
}

/// Closes a descriptor that was just opened, without storing anything.
pub(crate) fn forget(fd: c_int) {
    drop(table::take(fd));
    memory::close(fd);
}

/// Sees to it that a descriptor can be read.
pub(crate) fn fill(state: &State, fd: c_int) -> Result<(), Errno> {
    table::get(fd).map_or(Ok(()), |file| file.fill(&state.store, fd))
}

/// Makes `new` a descriptor of what `fd` is of.
pub(crate) fn duplicated(fd: c_int, new: c_int) {
    if let Some(file) = table::get(fd)
        && !table::put(new, file.clone())
    {
        report(&file.name(), "what is written by a duplicate with so large a number is not seen");
    }
}

/// Stores what is still open, when the process ends.
pub(crate) fn at_exit(state: &State) {
    for (fd, file) in table::writers() {
        // It has been said on standard error, and nobody else is left to be told.
        let _ = sync(state, fd, &file);
    }
}
