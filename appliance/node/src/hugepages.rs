//! Reserved hugepages: how many are free, how many a pool takes, and what to set when they are short.

use std::path::Path;

use memkv_admin_api::size::short_size;

/// Bytes of a hugepage.
const PAGE: u64 = 2 << 20;
/// The pool is rounded up to its largest buffer.
const GRAIN: u64 = 4 << 20;

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
