//! Files that are open.

use std::ffi::c_int;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::format::Head;
use crate::memory::{self, Bytes, Identity};
use crate::store::{Store, StoreError};

/// Why a call fails, as the program sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Errno(pub c_int);

impl From<io::Error> for Errno {
    fn from(error: io::Error) -> Errno {
        Errno(error.raw_os_error().unwrap_or(libc::EIO))
    }
}

impl StoreError {
    /// What the program is told; people are told more, where it is memkv that fails.
    pub fn errno(&self, name: &[u8]) -> Errno {
        Errno(match self {
            StoreError::Absent => libc::ENOENT,
            StoreError::Exists => libc::EEXIST,
            StoreError::Directory => libc::EISDIR,
            StoreError::NotEmpty => libc::ENOTEMPTY,
            StoreError::Name => libc::ENAMETOOLONG,
            StoreError::Strange | StoreError::Contended | StoreError::Client(_) => {
                report(name, &self.to_string());
                libc::EIO
            }
        })
    }
}

/// Says something on standard error, in one piece.
pub(crate) fn report(name: &[u8], what: &str) {
    let name = if name.is_empty() { b"." } else { name };
    let line = format!("memkv: {}: {what}\n", String::from_utf8_lossy(name));
    memory::say(line.as_bytes());
}

/// A file that is open, by however many descriptors.
pub(crate) struct File {
    /// Which memory it is.
    pub identity: Identity,
    /// Whether it is stored when it is closed.
    pub writable: bool,
    inner: Mutex<Inner>,
}

struct Inner {
    name: Vec<u8>,
    /// The memory, until what is in it may be read; later descriptors of the program are enough.
    hidden: Option<(c_int, Head)>,
    /// It is to be stored whatever its time says.
    dirty: bool,
    /// Its name is gone.
    unlinked: bool,
}

impl File {
    /// A file for reading, with the bytes that its memory has.
    pub fn reader(name: Vec<u8>, fd: c_int) -> Result<File, Errno> {
        File::new(name, fd, false, false)
    }

    /// A file for writing, to be stored in any case if it is new.
    pub fn writer(name: Vec<u8>, fd: c_int, new: bool) -> Result<File, Errno> {
        memory::mark(fd)?;
        File::new(name, fd, true, new)
    }

    fn new(name: Vec<u8>, fd: c_int, writable: bool, dirty: bool) -> Result<File, Errno> {
        let identity = memory::identity(fd)?;
        let inner = Inner { name, hidden: None, dirty, unlinked: false };
        Ok(File { identity, writable, inner: Mutex::new(inner) })
    }

    /// A file whose bytes are fetched when somebody wants them; with a descriptor that cannot be read.
    pub fn shut(name: Vec<u8>, head: Head) -> Result<(File, c_int), Errno> {
        let hidden = memory::create(head.size)?;
        // From here on the file closes it.
        let file = File::new(name, hidden, false, false);
        let file = file.inspect_err(|_| memory::close(hidden))?;
        file.lock().hidden = Some((hidden, head));
        let fd = memory::reopen(hidden, libc::O_PATH)?;
        Ok((file, fd))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it is called now.
    pub fn name(&self) -> Vec<u8> {
        self.lock().name.clone()
    }

    /// Gives it another name.
    pub fn rename(&self, name: &[u8]) {
        self.lock().name = name.to_vec();
    }

    /// Its name is gone, and it will not be stored; or is not gone after all.
    pub fn unlink(&self, gone: bool) {
        self.lock().unlinked = gone;
    }

    /// Whether it has a name.
    pub fn is_linked(&self) -> bool {
        !self.lock().unlinked
    }

    /// Somebody may write to it without being seen.
    pub fn mapped(&self) {
        self.lock().dirty = true;
    }

    /// Sees to it that `fd`, a descriptor of it, can be read.
    pub fn fill(&self, store: &Store, fd: c_int) -> Result<(), Errno> {
        let mut inner = self.lock();
        let Some((hidden, head)) = inner.hidden.take() else { return Ok(()) };
        let filled = fetch(store, hidden, &head).and_then(|()| {
            let readable = memory::reopen(hidden, libc::O_RDONLY)?;
            let replaced = memory::replace(readable, fd);
            memory::close(readable);
            Ok(replaced?)
        });
        match filled {
            Ok(()) => memory::close(hidden),
            Err(_) => inner.hidden = Some((hidden, head)),
        }
        filled.map_err(|failure| match failure {
            // It was there when it was opened.
            Failure::Store(StoreError::Absent) => {
                report(&inner.name, "evicted or replaced before it was read");
                Errno(libc::EIO)
            }
            Failure::Store(error) => error.errno(&inner.name),
            Failure::Io(error) => error.into(),
        })
    }

    /// Stores it, if there is anything new to store; by a descriptor of it.
    pub fn store(&self, store: &Store, fd: c_int) -> Result<(), Errno> {
        if !self.writable {
            return Ok(());
        }
        let mut inner = self.lock();
        let status = memory::status(fd)?;
        if inner.unlinked || !(inner.dirty || memory::is_changed(&status)) {
            return Ok(());
        }
        // What is written from here on is not in what is stored, and makes it new again.
        memory::mark(fd)?;
        inner.dirty = true;
        let bytes = Bytes::of(fd, status.st_size as u64, false)?;
        match store.write(&inner.name, bytes.as_ref()) {
            Ok(_) => {
                inner.dirty = false;
                Ok(())
            }
            Err(error) => {
                report(&inner.name, &format!("NOT STORED: {error}"));
                Err(Errno(match error {
                    StoreError::Name => libc::ENAMETOOLONG,
                    StoreError::Directory => libc::EISDIR,
                    _ => libc::EIO,
                }))
            }
        }
    }

    /// What it has not stored is lost: all its descriptors went by a way that was not seen.
    pub fn lost(&self) {
        if self.writable && self.is_linked() {
            report(&self.name(), "NOT STORED: its descriptor was closed by a way that is not seen");
        }
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let inner = self.inner.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some((hidden, _)) = inner.hidden {
            memory::close(hidden);
        }
    }
}

enum Failure {
    Store(StoreError),
    Io(io::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::Io(error)
    }
}

/// Fetches the bytes of a file into its memory.
fn fetch(store: &Store, fd: c_int, head: &Head) -> Result<(), Failure> {
    let mut bytes = Bytes::of(fd, head.size, true)?;
    store.read(head, bytes.as_mut()).map_err(Failure::Store)
}
