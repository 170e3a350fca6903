//! What the configuration asks of the machine: where a user's data lives, how much memory, how many
//! cores and how much free space there are, and the environment.

use std::io;
use std::path::{Path, PathBuf};

/// The machine, as the configuration sees it. Handed in, so that tests decide what it is like.
pub trait Machine {
    /// A variable of the environment.
    fn variable(&self, name: &str) -> Option<String>;

    /// Memory this process may use, bytes.
    fn memory_bytes(&self) -> u64;

    /// Cores this process may use.
    fn cores(&self) -> usize;

    /// Whether there is a file.
    fn file_exists(&self, file: &Path) -> bool;

    /// Bytes an ordinary user may still write where `file` would be made; its directories need not
    /// exist yet.
    fn free_bytes(&self, file: &Path) -> io::Result<u64>;

    /// Where this user's data lives: `$XDG_DATA_HOME/memkv` or `~/.local/share/memkv` (XDG Base
    /// Directory Specification 0.8), on macOS `~/Library/Application Support/memkv`.
    fn data_directory(&self) -> Option<PathBuf> {
        let absolute = |name| {
            let path = PathBuf::from(self.variable(name)?);
            // The specification has relative paths ignored.
            path.is_absolute().then_some(path)
        };
        if cfg!(target_os = "macos") {
            return Some(absolute("HOME")?.join("Library/Application Support/memkv"));
        }
        let base =
            absolute("XDG_DATA_HOME").or_else(|| Some(absolute("HOME")?.join(".local/share")));
        Some(base?.join("memkv"))
    }
}

/// The machine this runs on.
#[derive(Clone, Copy, Debug, Default)]
pub struct ThisMachine;

/// What is assumed of a machine that does not tell its memory.
const MEMORY_ASSUMED: u64 = 4 << 30;

impl Machine for ThisMachine {
    fn variable(&self, name: &str) -> Option<String> {
        std::env::var(name).ok()
    }

    fn memory_bytes(&self) -> u64 {
        let physical = physical_memory().unwrap_or(MEMORY_ASSUMED);
        cgroup_limit().map_or(physical, |limit| limit.min(physical))
    }

    fn cores(&self) -> usize {
        std::thread::available_parallelism().map_or(1, usize::from)
    }

    fn file_exists(&self, file: &Path) -> bool {
        file.exists()
    }

    fn free_bytes(&self, file: &Path) -> io::Result<u64> {
        let existing = file.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
        let stat = nix::sys::statvfs::statvfs(existing)?;
        // The field types differ between systems.
        #[allow(clippy::unnecessary_cast)]
        let (blocks, size) = (stat.blocks_available() as u64, stat.fragment_size() as u64);
        Ok(blocks.saturating_mul(size))
    }
}

#[cfg(target_os = "linux")]
fn physical_memory() -> Option<u64> {
    meminfo_total(&std::fs::read_to_string("/proc/meminfo").ok()?)
}

#[cfg(not(target_os = "linux"))]
fn physical_memory() -> Option<u64> {
    let output = std::process::Command::new("/usr/sbin/sysctl").args(["-n", "hw.memsize"]).output();
    String::from_utf8(output.ok()?.stdout).ok()?.trim().parse().ok()
}

/// `MemTotal` of `/proc/meminfo`, whose `kB` are 1024 bytes (proc(5)).
#[cfg(any(target_os = "linux", test))]
fn meminfo_total(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The limit of the control group (cgroup v2 `memory.max`), which in a container stands at the root.
fn cgroup_limit() -> Option<u64> {
    let read = |path: &Path| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let root = Path::new("/sys/fs/cgroup");
    let own = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let mut group = Some(root.join(own));
    let mut least = None;
    // A group is bound by its own limit and by those of all above it.
    while let Some(path) = group.filter(|path| path.starts_with(root)) {
        least = [least, read(&path.join("memory.max"))].into_iter().flatten().min();
        group = path.parent().map(Path::to_owned);
    }
    least
}

#[cfg(test)]
mod tests {
    use super::*;

    type Variables = &'static [(&'static str, &'static str)];

    struct Environment(Variables);

    impl Machine for Environment {
        fn variable(&self, name: &str) -> Option<String> {
            self.0.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        }
        fn memory_bytes(&self) -> u64 {
            0
        }
        fn cores(&self) -> usize {
            1
        }
        fn file_exists(&self, _: &Path) -> bool {
            false
        }
        fn free_bytes(&self, _: &Path) -> io::Result<u64> {
            Ok(0)
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn data_directory_follows_the_specification() {
        let table: [(Variables, Option<&str>); 5] = [
            (&[("HOME", "/home/a")], Some("/home/a/.local/share/memkv")),
            (&[("HOME", "/home/a"), ("XDG_DATA_HOME", "/data")], Some("/data/memkv")),
            (&[("HOME", "/home/a"), ("XDG_DATA_HOME", "data")], Some("/home/a/.local/share/memkv")),
            (&[("HOME", "")], None),
            (&[], None),
        ];
        for (variables, expected) in table {
            let found = Environment(variables).data_directory();
            assert_eq!(found.as_deref(), expected.map(Path::new), "{variables:?}");
        }
    }

    #[test]
    fn this_machine_answers() {
        let machine = ThisMachine;
        assert!(machine.memory_bytes() >= 64 << 20);
        assert!(machine.cores() >= 1);
        let directory = tempfile::tempdir().expect("a temporary directory");
        let deep = directory.path().join("not/yet/made/file");
        assert!(machine.free_bytes(&deep).expect("an existing ancestor") > 0);
        assert!(!machine.file_exists(&deep));
        assert_eq!(machine.variable("MEMKV_NO_SUCH_VARIABLE"), None);
    }

    #[test]
    fn meminfo_is_read_in_units_of_1024() {
        assert_eq!(meminfo_total("MemTotal:       16384 kB\nMemFree: 1 kB\n"), Some(16 << 20));
        assert_eq!(meminfo_total("MemFree: 1 kB\n"), None);
        assert_eq!(meminfo_total("MemTotal: x kB\n"), None);
    }
}
