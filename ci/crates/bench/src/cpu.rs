//! CPU time of processes and of the machine.
//!
//! A process has a clock of its CPU time, user and system, in nanoseconds, that others may read
//! (`clock_getcpuclockid(3)`); threads that have ended are in it. The same clock measures both ends
//! of every row, so nothing is lost to the hundredths of a second of `/proc`. What the kernel does
//! for a loopback socket it does mostly in the sender's system call, and so it counts; its own
//! threads do not, for any row.

use std::fs;
use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use nix::time::{ClockId, clock_gettime};

/// The CPU time of one process.
#[derive(Clone, Copy, Debug)]
pub struct CpuClock(ClockId);

impl CpuClock {
    /// This process.
    pub const OWN: CpuClock = CpuClock(ClockId::CLOCK_PROCESS_CPUTIME_ID);

    /// Another process.
    ///
    /// # Errors
    /// `ESRCH` when there is no such process, `ENOTSUP` on systems without such clocks.
    #[cfg(target_os = "linux")]
    pub fn of(pid: u32) -> nix::Result<CpuClock> {
        ClockId::pid_cpu_clock_id(nix::unistd::Pid::from_raw(pid.cast_signed())).map(CpuClock)
    }

    /// Another process.
    ///
    /// # Errors
    /// `ENOTSUP`: this system has no such clocks.
    #[cfg(not(target_os = "linux"))]
    pub fn of(_pid: u32) -> nix::Result<CpuClock> {
        Err(nix::errno::Errno::ENOTSUP)
    }

    /// CPU time since the process began.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn read(self) -> nix::Result<Duration> {
        clock_gettime(self.0).map(Duration::from)
    }
}

/// CPU time of children of this process that have ended.
pub fn of_children() -> Duration {
    let Ok(usage) = getrusage(UsageWho::RUSAGE_CHILDREN) else { return Duration::ZERO };
    duration(usage.user_time()) + duration(usage.system_time())
}

fn duration(time: TimeVal) -> Duration {
    Duration::new(time.tv_sec().unsigned_abs(), time.tv_usec().unsigned_abs() as u32 * 1000)
}

/// CPU time that the whole machine has used since it started, idle time and what the hypervisor
/// took not counted; none where the system does not tell.
pub fn of_machine() -> Option<Duration> {
    busy(&fs::read_to_string("/proc/stat").ok()?)
}

/// The first line of `/proc/stat`: user, nice, system, idle, iowait, irq, softirq, steal, ... in
/// hundredths of a second.
fn busy(stat: &str) -> Option<Duration> {
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    let ticks: Vec<u64> = line.split_whitespace().map_while(|n| n.parse().ok()).collect();
    let [user, nice, system, _idle, _iowait, irq, softirq, ..] = ticks[..] else { return None };
    Some(Duration::from_millis((user + nice + system + irq + softirq) * 10))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_of_stat_is_summed_without_idle_time() {
        let stat = "cpu  100 20 30 4000 500 6 7 80 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n";
        assert_eq!(busy(stat), Some(Duration::from_millis(1630)));
        assert_eq!(busy("cpu  1 2 3\n"), None);
        assert_eq!(busy("intr 5\n"), None);
    }

    #[test]
    fn working_moves_the_own_clock() {
        let before = CpuClock::OWN.read().unwrap();
        let mut sum = 0_u64;
        while CpuClock::OWN.read().unwrap() - before < Duration::from_millis(2) {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        assert!(sum > 0);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_clock_of_this_process_is_its_own_by_number_too() {
        let by_number = CpuClock::of(std::process::id()).unwrap();
        let (before, own) = (by_number.read().unwrap(), CpuClock::OWN.read().unwrap());
        assert!(before <= own && own <= by_number.read().unwrap());
    }
}
