//! What the guest's kernel said that it must not say.

use std::fs;

use super::machine::Places;

/// How a check of the log is called, and whether a line of the log is one that there may not be.
pub type LogCheck = (&'static str, fn(&str) -> bool);

/// What is asked of every log.
pub const CHECKS: [LogCheck; 2] = [
    ("the IOMMU saw no fault", is_fault),
    ("the guest's kernel had nothing to complain about", is_complaint),
];

/// Whether a processor of the guest had no more interrupts of its timer, which are QEMU's to give.
pub fn tells_of_a_lost_timer(places: &Places) -> bool {
    let log = fs::read(places.console()).unwrap_or_default();
    String::from_utf8_lossy(&log).lines().any(is_lost_timer)
}

fn is_lost_timer(line: &str) -> bool {
    line.contains("rcu: ") && line.contains("Possible timer handling issue")
}

/// A device reached for memory that nobody had mapped for it. QEMU's controllers answer such a command
/// as if it were done, so only the log tells.
fn is_fault(line: &str) -> bool {
    line.split_once("DMAR:").is_some_and(|(_, what)| what.contains("fault"))
}

/// Something broke in the kernel.
fn is_complaint(line: &str) -> bool {
    ["BUG:", "WARNING:", "Oops:", "Kernel panic", "general protection", "rcu_", "Call Trace:"]
        .iter()
        .any(|word| line.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_told_from_what_is_said_of_the_iommu_besides() {
        let faults = [
            "[   12.3] DMAR: [DMA Write NO_PASID] Request device [01:00.0] fault addr 0x100000000",
            "DMAR: DRHD: handling fault status reg 2",
        ];
        assert!(faults.iter().all(|line| is_fault(line)));
        let others =
            ["DMAR: IOMMU enabled", "DMAR: Intel(R) Virtualization Technology", "a fault of ours"];
        assert!(!others.iter().any(|line| is_fault(line)));
    }

    #[test]
    fn a_lost_timer_is_told_from_other_stalls() {
        assert!(is_lost_timer(
            "[ 82.8] rcu: \tPossible timer handling issue on cpu=1 timer-softirq=2"
        ));
        assert!(!is_lost_timer("[ 82.8] rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:"));
    }

    #[test]
    fn complaints_are_found_in_a_log() {
        assert!(is_complaint("[    1.0] BUG: kernel NULL pointer dereference"));
        assert!(is_complaint("[    9.1] WARNING: CPU: 0 PID: 7 at drivers/vfio/vfio_main.c:9"));
        assert!(!is_complaint("[    1.0] nvme nvme0: 2/0/0 default/read/poll queues"));
    }
}
