//! Which cores a thread runs on.

use std::io;

/// The cores that the calling thread may run on.
#[cfg(target_os = "linux")]
pub fn own() -> Vec<usize> {
    use nix::sched::{CpuSet, sched_getaffinity};
    let set = sched_getaffinity(nix::unistd::Pid::from_raw(0)).unwrap_or_default();
    (0..CpuSet::count()).filter(|&core| set.is_set(core).unwrap_or(false)).collect()
}

/// The cores that the calling thread may run on: not told by this system.
#[cfg(not(target_os = "linux"))]
pub fn own() -> Vec<usize> {
    Vec::new()
}

/// Lets the calling thread run on these cores only.
#[cfg(target_os = "linux")]
pub fn bind(cores: &[usize]) -> io::Result<()> {
    use nix::sched::{CpuSet, sched_setaffinity};
    let mut set = CpuSet::new();
    cores.iter().try_for_each(|&core| set.set(core))?;
    Ok(sched_setaffinity(nix::unistd::Pid::from_raw(0), &set)?)
}

/// Lets the calling thread run on these cores only: not offered by this system.
#[cfg(not(target_os = "linux"))]
pub fn bind(_cores: &[usize]) -> io::Result<()> {
    Ok(())
}
