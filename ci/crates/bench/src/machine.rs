//! What a bench ran on: in one line, since figures without their machine mean nothing.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;

use nix::sys::statfs::{FsType, statfs};

use crate::error::{BenchError, doing};

/// File systems that are memory.
#[cfg(target_os = "linux")]
const IN_MEMORY: [FsType; 2] = [nix::sys::statfs::TMPFS_MAGIC, nix::sys::statfs::HUGETLBFS_MAGIC];
#[cfg(not(target_os = "linux"))]
const IN_MEMORY: [FsType; 0] = [];

/// Refuses a folder that is not on a disk.
///
/// # Errors
/// [`BenchError::NotOnDisk`], or when there is no such folder.
pub fn on_disk(folder: &Path) -> Result<(), BenchError> {
    let found = statfs(folder).map_err(doing("the file system of the bench's folder"))?;
    match IN_MEMORY.contains(&found.filesystem_type()) {
        true => Err(BenchError::NotOnDisk(folder.to_owned())),
        false => Ok(()),
    }
}

/// Processor, cores, last-level cache, memory, system.
pub fn line() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let cores = std::thread::available_parallelism().map_or(0, |n| n.get());
    let model = field(&read("/proc/cpuinfo"), "model name").unwrap_or("a processor".to_owned());
    let kib = field(&read("/proc/meminfo"), "MemTotal");
    let kib = kib.and_then(|text| text.split(' ').next()?.parse::<u64>().ok()).unwrap_or(0);
    let kernel = read("/proc/sys/kernel/osrelease");
    let cache = cache_bytes().map_or(String::new(), |b| format!(", {} MiB of cache", b >> 20));
    format!(
        "{model}, {cores} cores{cache}, {} GiB of memory, {} {}",
        (kib + (1 << 19)) >> 20,
        std::env::consts::OS,
        kernel.trim(),
    )
}

/// Bytes of the largest cache of the first core, where the system tells.
pub fn cache_bytes() -> Option<u64> {
    let folder = Path::new("/sys/devices/system/cpu/cpu0/cache");
    let sizes = fs::read_dir(folder).ok()?.filter_map(|entry| {
        let size = fs::read_to_string(entry.ok()?.path().join("size")).ok()?;
        kib(size.trim())
    });
    sizes.max().map(|kib| kib << 10)
}

fn kib(size: &str) -> Option<u64> {
    match size.strip_suffix('K') {
        Some(kib) => kib.parse().ok(),
        None => size.strip_suffix('M').and_then(|mib| mib.parse::<u64>().ok()).map(|mib| mib << 10),
    }
}

/// Bytes of memory that are free for use, where the system tells.
pub fn available_bytes() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib << 10)
}

/// Bytes of hugepages of 2 MiB that nobody has, where the system tells.
pub fn hugepage_bytes() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("HugePages_Free:"));
    line.and_then(|line| line.trim().parse::<u64>().ok()).map_or(0, |pages| pages << 21)
}

/// The first IPv4 address of this machine that is not one of loopback.
pub fn address() -> Option<Ipv4Addr> {
    let all = nix::ifaddrs::getifaddrs().ok()?;
    let addresses = all.filter_map(|one| Some(one.address?.as_sockaddr_in()?.ip()));
    addresses.into_iter().find(|address| !address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_of_caches_are_read() {
        assert_eq!([kib("48K"), kib("2M"), kib("x")], [Some(48), Some(2048), None]);
    }

    #[test]
    fn the_machine_is_told_in_one_line() {
        let line = line();
        assert!(line.contains(" cores") && !line.contains('\n'), "{line}");
    }
}
