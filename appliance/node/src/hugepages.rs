//! Reserved hugepages: how many are free, how many a pool takes, and what to set when they are short.

use std::path::Path;
use std::time::Duration;

use memkv_admin_api::size::short_size;

/// Bytes of a hugepage.
const PAGE: u64 = 2 << 20;
/// The pool is rounded up to its largest buffer.
const GRAIN: u64 = 4 << 20;

/// How often, and with what pauses, a server that starts looks for what one before it has had: 10 s.
const LOOKS: u32 = 500;
const PAUSE: Duration = Duration::from_millis(20);

/// The hugepages of 2 MiB of a system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reserved {
    /// All that are reserved.
    pub total: u64,
    /// Those nobody has, and nobody was promised.
    pub free: u64,
}

impl Reserved {
    /// Those of this system; `None` where it has no such pages.
    pub fn of_this_system() -> Option<Self> {
        Self::read(Path::new("/sys/kernel/mm/hugepages/hugepages-2048kB"))
    }

    fn read(folder: &Path) -> Option<Self> {
        let number = |name: &str| -> Option<u64> {
            std::fs::read_to_string(folder.join(name)).ok()?.trim().parse().ok()
        };
        let promised = number("resv_hugepages").unwrap_or(0);
        let free = number("free_hugepages")?.saturating_sub(promised);
        Some(Self { total: number("nr_hugepages")?, free })
    }

    /// Whether a pool of `bytes` fits.
    ///
    /// # Errors
    /// [`TooFew`] says what to set.
    pub fn suffice(self, bytes: u64) -> Result<(), TooFew> {
        let wanted = bytes.next_multiple_of(GRAIN) / PAGE;
        if self.free >= wanted {
            return Ok(());
        }
        Err(TooFew { bytes, wanted, reserved: self })
    }
}

/// Waits until a pool of `bytes` fits, for 10 s at most, and not at all where no waiting can help:
/// where fewer are reserved than it takes, or where the system has no such pages or does not tell.
///
/// A server that was killed is gone before its memory is: what io_uring had registered, the kernel lets go
/// of when it takes the ring apart, some time after whoever waited for the process was told of its end. Nobody
/// can be asked for when that is, so it is looked for.
///
/// # Errors
/// [`TooFew`] says what to set.
pub fn wait_for(bytes: u64) -> Result<(), TooFew> {
    let mut looks = 0;
    wait_with(bytes, Reserved::of_this_system, |short| {
        looks += 1;
        if looks == 1 {
            let TooFew { wanted, reserved: Reserved { free, total }, .. } = short;
            tracing::warn!(
                wanted,
                free,
                total,
                "waiting for hugepages that somebody else still has"
            );
        }
        std::thread::sleep(PAUSE);
        looks < LOOKS
    })
}

/// The same; `pause` lets time pass, and tells whether to look again.
fn wait_with(
    bytes: u64,
    look: impl Fn() -> Option<Reserved>,
    mut pause: impl FnMut(TooFew) -> bool,
) -> Result<(), TooFew> {
    loop {
        let Some(reserved) = look() else { return Ok(()) };
        match reserved.suffice(bytes) {
            Err(short) if short.wanted <= reserved.total && pause(short) => {}
            outcome => return outcome,
        }
    }
}

/// Fewer hugepages are free than the pool takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "memory.max_size is {}, which takes {wanted} hugepages of 2 MiB, and {} of {} are free; reserve \
     them: sysctl -w vm.nr_hugepages={}. To start on ordinary pages, on which drives are slower, \
     set memory.hugepages to prefer",
    short_size(*bytes), reserved.free, reserved.total, self.to_set()
)]
pub struct TooFew {
    /// Bytes of the pool.
    pub bytes: u64,
    /// Pages it takes.
    pub wanted: u64,
    /// Pages there are.
    pub reserved: Reserved,
}

impl TooFew {
    /// What `vm.nr_hugepages` has to be for the pool to fit beside what is in use.
    pub fn to_set(&self) -> u64 {
        self.reserved.total + self.wanted - self.reserved.free
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_short_is_told_with_the_number_to_set() {
        let reserved = Reserved { total: 300, free: 100 };
        assert_eq!(reserved.suffice(200 << 20), Ok(()));
        let short = reserved.suffice(1 << 30).expect_err("512 pages are wanted");
        assert_eq!(short.to_set(), 712, "200 are in use, and 512 more are needed");
        let text = short.to_string();
        for part in ["1 GiB", "512 hugepages", "100 of 300 are free", "vm.nr_hugepages=712"] {
            assert!(text.contains(part), "{text}");
        }
        let odd = reserved.suffice(199 << 20);
        assert_eq!(odd, Ok(()), "199 MiB are rounded up to 200");
        assert_eq!(reserved.suffice(201 << 20).expect_err("one more").wanted, 102);
    }

    #[test]
    fn pages_that_somebody_still_has_are_waited_for_and_others_are_not() {
        let free = std::cell::Cell::new(80);
        let look = || Some(Reserved { total: 128, free: free.get() });
        let mut pauses = 0;
        let outcome = wait_with(200 << 20, look, |short| {
            pauses += 1;
            assert_eq!((short.wanted, short.reserved.free), (100, free.get()));
            free.set(free.get() + 10);
            true
        });
        assert_eq!((outcome, pauses), (Ok(()), 2), "80, 90, 100");
        free.set(80);
        let mut left = 3;
        let outcome = wait_with(200 << 20, look, |_| {
            left -= 1;
            left > 0
        });
        assert_eq!((outcome.expect_err("nobody gives any back").reserved.free, left), (80, 0));
        let never = |_| panic!("there will never be so many");
        assert!(wait_with(300 << 20, look, never).is_err());
        assert_eq!(wait_with(300 << 20, || None, never), Ok(()), "the mapping itself is to tell");
    }

    #[test]
    fn promised_pages_are_not_free() {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let write = |name: &str, text: &str| {
            std::fs::write(folder.path().join(name), text).expect("a file");
        };
        assert_eq!(Reserved::read(folder.path()), None);
        write("nr_hugepages", "64\n");
        write("free_hugepages", "60\n");
        write("resv_hugepages", "10\n");
        assert_eq!(Reserved::read(folder.path()), Some(Reserved { total: 64, free: 50 }));
    }
}
