//! Memory that other processes can be given to read.
//!
//! It is a file without a name (memfd_create(2)), sealed once we have it mapped: its length stays, and
//! nobody can map it to write any more, or write to it otherwise, whoever gets a descriptor of it. Our own
//! mapping goes on as it was. Descriptors that are given away are for reading alone besides.
//!
//! The price: the memory is the system's again only when the last who has mapped it lets go, which may be
//! later than our end.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::mapping::Sharing;

/// What another process needs to map memory of ours: a descriptor, and which bytes of its file they are.
#[derive(Debug)]
pub struct Window {
    file: OwnedFd,
    start: usize,
    length: usize,
}

impl Window {
    /// First byte of the memory in the file, a multiple of the system's page.
    pub fn start(&self) -> u64 {
        self.start as u64
    }

    /// Bytes of it.
    pub fn length(&self) -> u64 {
        self.length as u64
    }

    /// Seals the file, all of which is mapped already. `None`, with a word in the log, when the system does
    /// not know how: then nobody else is given it.
    pub(crate) fn seal(file: OwnedFd, start: usize, length: usize) -> Option<Window> {
        match seal(&file).and_then(|()| read_only(file)) {
            Ok(file) => Some(Window { file, start, length }),
            Err(error) => {
                tracing::warn!(%error, "memory cannot be sealed, and is not shared");
                None
            }
        }
    }
}

impl AsFd for Window {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// A file of `len` bytes of nothing yet, if it is wanted and to be had.
pub(crate) fn file(len: usize, huge: bool, sharing: Sharing) -> Option<OwnedFd> {
    if sharing == Sharing::No {
        return None;
    }
    match make(len, huge) {
        Ok(file) => Some(file),
        Err(error) => {
            tracing::warn!(%error, len, huge, "memory cannot be a file, and is not shared");
            None
        }
    }
}

#[cfg(target_os = "linux")]
fn make(len: usize, huge: bool) -> io::Result<OwnedFd> {
    use nix::errno::Errno;
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use nix::sys::resource::{Resource, getrlimit};

    // Longer than files may be is a signal, and no error.
    let (most, _) = getrlimit(Resource::RLIMIT_FSIZE)?;
    if len as u64 > most {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let mut flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    if huge {
        flags |= MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_2MB;
    }
    // Systems may insist on it (vm.memfd_noexec); those before Linux 6.3 do not know it.
    let never_run = MFdFlags::from_bits_retain(flags.bits() | NOEXEC_SEAL);
    let file = match memfd_create("memkv", never_run) {
        Err(Errno::EINVAL) => memfd_create("memkv", flags),
        made => made,
    }?;
    let file = std::fs::File::from(file);
    file.set_len(len as u64)?;
    Ok(file.into())
}

/// `MFD_NOEXEC_SEAL` of memfd_create(2).
#[cfg(target_os = "linux")]
const NOEXEC_SEAL: u32 = 8;

/// Another descriptor of the file, by which nobody writes, for the one that there is.
#[cfg(target_os = "linux")]
fn read_only(file: OwnedFd) -> io::Result<OwnedFd> {
    use std::os::fd::AsRawFd;
    Ok(std::fs::File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))?.into())
}

#[cfg(not(target_os = "linux"))]
fn read_only(file: OwnedFd) -> io::Result<OwnedFd> {
    Ok(file)
}

#[cfg(not(target_os = "linux"))]
fn make(_len: usize, _huge: bool) -> io::Result<OwnedFd> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(target_os = "linux")]
fn seal(file: &OwnedFd) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, SealFlag, fcntl};

    // F_SEAL_FUTURE_WRITE: Linux 5.1.
    let seals = SealFlag::F_SEAL_SHRINK
        | SealFlag::F_SEAL_GROW
        | SealFlag::F_SEAL_FUTURE_WRITE
        | SealFlag::F_SEAL_SEAL;
    fcntl(file, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(())
}

#[cfg(not(target_os = "linux"))]
fn seal(_file: &OwnedFd) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::fs::File;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::FileExt;

    use memmap2::MmapOptions;

    use crate::mapping::HUGE;
    use crate::{Arena, Hugepages};

    #[test]
    fn who_is_given_a_window_reads_what_is_written_and_cannot_write() {
        for hugepages in [Hugepages::Never, Hugepages::Prefer] {
            let arena = Arena::shared(HUGE as u64, hugepages).unwrap();
            let window = arena.window().expect("the system has files without a name");
            assert_eq!(window.length(), HUGE as u64);
            let file = File::from(super::AsFd::as_fd(window).try_clone_to_owned().unwrap());
            let mut options = MmapOptions::new();
            let theirs = options.offset(window.start()).len(HUGE);
            let read = theirs.map_raw_read_only(&file).unwrap();
            arena.lend_mut(4096, 3).as_mut_slice().copy_from_slice(b"abc");
            // SAFETY: inside of the mapping; it is written by this thread alone, and not now.
            let seen = unsafe { std::slice::from_raw_parts(read.as_ptr().add(4096), 3) };
            assert_eq!(seen, b"abc");
            assert!(theirs.map_raw(&file).is_err(), "a new mapping cannot write");
            // Nor when it is opened anew, by who may.
            let again = format!("/proc/self/fd/{}", file.as_raw_fd());
            if let Ok(writable) = File::options().read(true).write(true).open(again) {
                assert!(theirs.map_raw(&writable).is_err(), "the file is sealed");
            }
            assert!(file.write_at(b"x", window.start()).is_err());
            for len in [0, 1 << 40] {
                assert!(file.set_len(len).is_err(), "its length stays");
            }
            assert_eq!(arena.lend(4096, 3).as_slice(), b"abc");
        }
    }

    #[test]
    fn a_place_has_a_name_once_its_arena_has_a_number() {
        let arena = Arena::shared(HUGE as u64, Hugepages::Never).unwrap();
        let place = arena.lend(8192, 4096);
        assert_eq!(place.published(), None);
        assert!(arena.publish(3) && !arena.publish(4), "it has one number, for ever");
        assert_eq!(place.published(), Some((3, 8192)));
        assert_eq!(place.slice(7..9).published(), Some((3, 8199)));
        let other = Arena::new(HUGE as u64, Hugepages::Never).unwrap();
        assert!(other.window().is_none() && !other.publish(1), "of one's own memory");
        assert_eq!(other.lend(0, 1).published(), None);
    }
}
