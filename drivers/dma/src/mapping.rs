//! Pages for the pool and the arenas: hugepages where the system has some to spare, ordinary pages
//! with a reason where it has not.
//!
//! Why it matters: with 4 KiB pages a 4 MiB transfer is a thousand descriptors, and a disk reaches a
//! third of its speed. So 2 MiB hugepages are tried first; failing that, ordinary pages are aligned to
//! 2 MiB and marked for transparent hugepages, which the kernel grants while memory is not fragmented.
//!
//! A mapping may be made of a file without a name (memfd_create(2)), which other processes can be given to
//! read from; nobody can write to it, or change its length, but who has it mapped already. Of ordinary pages it
//! has transparent hugepages only where `shmem_enabled` says so, which few systems do: pages of 4 KiB cost sockets
//! a tenth more time to send from, and those who read there nothing.
//!
//! Every page is faulted in before the mapping is handed out: a reactor never pays for a page fault,
//! and a machine without enough memory fails at start and not at noon.

use std::fmt;
use std::io;
use std::ptr::NonNull;

use memmap2::{MmapOptions, MmapRaw};

use crate::window::{self, Window};

/// Size of one hugepage: 2 MiB.
pub(crate) const HUGE: usize = 2 * 1024 * 1024;

/// The base-2 logarithm of [`HUGE`], as `mmap(2)` wants it.
const HUGE_BITS: u8 = 21;

/// The least a helper thread faults in: below 64 MiB a thread costs more than it saves.
const FAULT_SLICE: usize = 64 * 1024 * 1024;

/// Whether a mapping is to be made of reserved hugepages.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub enum Hugepages {
    /// Hugepages if the system has enough free ones, else ordinary pages with a logged reason.
    #[default]
    Prefer,
    /// Hugepages or an error.
    Require,
    /// Ordinary pages.
    Never,
}

/// What a mapping turned out to be made of.
#[derive(Debug)]
pub enum Backing {
    /// Reserved pages of 2 MiB (hugetlb).
    Huge2M,
    /// Pages of the system's own size, marked for transparent hugepages.
    Ordinary {
        /// Why there are no reserved hugepages.
        reason: OrdinaryReason,
    },
}

/// Why a mapping is made of ordinary pages.
#[derive(Debug, thiserror::Error)]
pub enum OrdinaryReason {
    /// The configuration asked for ordinary pages.
    #[error("ordinary pages were asked for")]
    NotWanted,
    /// Only Linux has hugepages of this kind.
    #[error("this system has no reserved hugepages")]
    NotLinux,
    /// `mmap(2)` refused: too few free hugepages, or a limit.
    #[error("{wanted} hugepages of 2 MiB are wanted, {} are free", Free(.free))]
    NotReserved {
        /// Hugepages the mapping needs.
        wanted: u64,
        /// Hugepages that were free, where the system tells.
        free: Option<u64>,
        /// What `mmap(2)` said.
        source: io::Error,
    },
    /// The pages were reserved, but could not be faulted in (a cgroup or NUMA limit).
    #[error("the hugepages could not be faulted in")]
    NotFaulted(#[source] io::Error),
}

/// Shows a count that may be unknown.
struct Free<'a>(&'a Option<u64>);

impl fmt::Display for Free<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(n) => write!(f, "{n}"),
            None => f.write_str("too few"),
        }
    }
}

impl fmt::Display for Backing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Backing::Huge2M => f.write_str("hugepages of 2 MiB"),
            Backing::Ordinary { reason } => write!(f, "ordinary pages ({reason})"),
        }
    }
}

/// Why there is no mapping at all.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// The address space or the memory is not there (`ENOMEM`), or the size is absurd.
    #[error("cannot map {len} bytes of memory")]
    Map {
        /// Bytes asked for.
        len: usize,
        /// What `mmap(2)` said.
        source: io::Error,
    },
    /// The pages exist only on paper: they could not be faulted in.
    #[error("cannot fault in {len} bytes of memory")]
    Fault {
        /// Bytes asked for.
        len: usize,
        /// What `madvise(2)` said.
        source: io::Error,
    },
    /// Hugepages were required and are not to be had.
    #[error("hugepages are required")]
    NoHugepages(#[source] OrdinaryReason),
}

/// One faulted-in stretch of zeroed memory, aligned to 2 MiB; unmapped on drop.
#[derive(Debug)]
pub(crate) struct Mapping {
    raw: MmapRaw,
    /// Distance from the start of `raw` to the first 2 MiB boundary.
    skew: usize,
    len: usize,
    /// What others may be given of it.
    window: Option<Window>,
}

/// Whether others may be given a mapping to read.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum Sharing {
    No,
    /// Where the system can.
    Prefer,
}

impl Mapping {
    /// Maps `len` bytes, a multiple of 2 MiB.
    pub fn new(
        len: usize,
        hugepages: Hugepages,
        sharing: Sharing,
    ) -> Result<(Mapping, Backing), MapError> {
        assert!(len > 0 && len.is_multiple_of(HUGE), "a mapping is whole hugepages");
        let reason = match hugepages {
            Hugepages::Never => OrdinaryReason::NotWanted,
            Hugepages::Prefer | Hugepages::Require => match Mapping::huge(len, sharing) {
                Ok(mapping) => return Ok((mapping, Backing::Huge2M)),
                Err(reason) => reason,
            },
        };
        if hugepages == Hugepages::Require {
            return Err(MapError::NoHugepages(reason));
        }
        Ok((Mapping::ordinary(len, sharing)?, Backing::Ordinary { reason }))
    }

    /// Maps reserved hugepages. The kernel reserves them in `mmap` and so refuses there and not by a
    /// signal later; only a cgroup or NUMA limit can still spoil the faulting.
    fn huge(len: usize, sharing: Sharing) -> Result<Mapping, OrdinaryReason> {
        if !cfg!(target_os = "linux") {
            return Err(OrdinaryReason::NotLinux);
        }
        let not_reserved = |source| OrdinaryReason::NotReserved {
            wanted: (len / HUGE) as u64,
            free: free_hugepages(),
            source,
        };
        let file = window::file(len, true, sharing);
        let raw = match &file {
            Some(file) => MmapOptions::new().len(len).map_raw(file),
            None => MmapOptions::new().len(len).huge(Some(HUGE_BITS)).map_anon().map(MmapRaw::from),
        };
        let raw = raw.map_err(not_reserved)?;
        let mut mapping = Mapping { raw, skew: 0, len, window: None };
        mapping.settle().map_err(OrdinaryReason::NotFaulted)?;
        mapping.window = file.and_then(|file| Window::seal(file, 0, len));
        Ok(mapping)
    }

    /// Maps ordinary pages, one hugepage more than needed so that the start can be aligned.
    fn ordinary(len: usize, sharing: Sharing) -> Result<Mapping, MapError> {
        let file = len.checked_add(HUGE).and_then(|padded| window::file(padded, false, sharing));
        let raw = len
            .checked_add(HUGE)
            .ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))
            .and_then(|padded| match &file {
                Some(file) => MmapOptions::new().len(padded).map_raw(file),
                None => MmapOptions::new().len(padded).map_anon().map(MmapRaw::from),
            })
            .map_err(|source| MapError::Map { len, source })?;
        let skew = raw.as_mut_ptr().align_offset(HUGE);
        assert!(skew < HUGE, "a byte pointer can always be aligned");
        let mut mapping = Mapping { raw, skew, len, window: None };
        mapping.settle().map_err(|source| MapError::Fault { len, source })?;
        mapping.window = file.and_then(|file| Window::seal(file, skew, len));
        Ok(mapping)
    }

    /// Marks the pages for what they are used for, then faults all of them in.
    fn settle(&self) -> io::Result<()> {
        #[cfg(target_os = "linux")]
        {
            use memmap2::Advice;
            // All three are hints. Transparent hugepages may not be compiled in. A child must never
            // turn pages that a device writes into copies. Clients' bytes have no place in a core dump.
            for advice in [Advice::HugePage, Advice::DontFork, Advice::DontDump] {
                let _ = self.raw.advise_range(advice, self.skew, self.len);
            }
        }
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get()).min(16);
        let share = self.len.div_ceil(threads).next_multiple_of(HUGE).max(FAULT_SLICE);
        if share >= self.len {
            return self.fault_in(0, self.len);
        }
        std::thread::scope(|scope| {
            let helpers: Vec<_> = (0..self.len)
                .step_by(share)
                .map(|at| scope.spawn(move || self.fault_in(at, share.min(self.len - at))))
                .collect();
            helpers.into_iter().try_for_each(|h| h.join().expect("faulting in does not panic"))
        })
    }

    /// Faults in one slice: by `madvise` where the kernel knows how (Linux 5.14), which reports what
    /// would otherwise be a fatal signal; else by writing to every page.
    fn fault_in(&self, at: usize, len: usize) -> io::Result<()> {
        #[cfg(target_os = "linux")]
        match self.raw.advise_range(memmap2::Advice::PopulateWrite, self.skew + at, len) {
            Ok(()) => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::InvalidInput => {}
            Err(e) => return Err(e),
        }
        for offset in (at..at + len).step_by(4096) {
            // SAFETY: `offset < self.len`, so the byte lies in the mapping. Nobody else has a pointer
            // into it yet but the other helpers, whose slices do not overlap this one.
            unsafe { self.base().add(offset).write_volatile(0) };
        }
        Ok(())
    }

    /// What others may be given to read it, if they may.
    pub fn window(&self) -> Option<&Window> {
        self.window.as_ref()
    }

    /// First byte, aligned to 2 MiB.
    pub fn base(&self) -> NonNull<u8> {
        let start = NonNull::new(self.raw.as_mut_ptr()).expect("a mapping is never at null");
        // SAFETY: `skew + len` is at most the length of `raw`, so the result lies in it.
        unsafe { start.add(self.skew) }
    }

    /// Pointer to the byte at `offset`, which is at most the length.
    pub fn at(&self, offset: usize) -> NonNull<u8> {
        assert!(offset <= self.len, "offset {offset} is outside of a mapping of {}", self.len);
        // SAFETY: just checked: in the mapping or one past its end.
        unsafe { self.base().add(offset) }
    }

    /// The mapping in stretches of at most [`crate::REGION`] bytes, for registration with devices.
    pub fn regions(&self) -> Vec<(NonNull<u8>, usize)> {
        (0..self.len)
            .step_by(crate::REGION)
            .map(|at| (self.at(at), crate::REGION.min(self.len - at)))
            .collect()
    }
}

/// Free hugepages of 2 MiB in the system, where it tells.
fn free_hugepages() -> Option<u64> {
    let path = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_pages_are_aligned_zeroed_and_explained() {
        let (mapping, backing) = Mapping::new(2 * HUGE, Hugepages::Never, Sharing::No).unwrap();
        assert!(matches!(backing, Backing::Ordinary { reason: OrdinaryReason::NotWanted }));
        assert_eq!(mapping.base().as_ptr() as usize % HUGE, 0);
        for at in [0, HUGE, 2 * HUGE - 1] {
            // SAFETY: inside of the mapping, which this test alone holds.
            assert_eq!(unsafe { mapping.at(at).read() }, 0);
        }
    }

    #[test]
    fn preferring_hugepages_never_fails_for_the_lack_of_them() {
        // More than any test machine has reserved as hugepages, little as ordinary memory.
        let (mapping, backing) = Mapping::new(32 * HUGE, Hugepages::Prefer, Sharing::No).unwrap();
        assert_eq!(mapping.len, 32 * HUGE);
        match backing {
            Backing::Huge2M => {}
            Backing::Ordinary { reason } => {
                assert!(!matches!(reason, OrdinaryReason::NotWanted), "{reason}");
                let error = Mapping::new(32 * HUGE, Hugepages::Require, Sharing::No).unwrap_err();
                assert!(matches!(error, MapError::NoHugepages(_)), "{error}");
            }
        }
    }

    #[test]
    fn an_absurd_size_is_an_error() {
        let error =
            Mapping::new(usize::MAX / HUGE * HUGE, Hugepages::Prefer, Sharing::No).unwrap_err();
        assert!(matches!(error, MapError::Map { .. }), "{error}");
    }

    #[test]
    fn several_threads_fault_in_a_large_mapping() {
        let (mapping, _) = Mapping::new(3 * FAULT_SLICE, Hugepages::Never, Sharing::No).unwrap();
        // SAFETY: the last byte of the mapping, which this test alone holds.
        assert_eq!(unsafe { mapping.at(3 * FAULT_SLICE - 1).read() }, 0);
        assert_eq!(mapping.regions().len(), 1);
    }
}
