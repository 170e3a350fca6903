//! Order between memory and a device.
//!
//! What was written for a device must be visible before the doorbell that makes it look, and what it
//! wrote must be read after the phase bit that says so (NVM Express over PCIe Transport Specification:
//! a completion entry is posted after the data). Rust's fences order threads; on x86 they order devices
//! as well, for stores to memory and to registers keep their order, and so do loads. Elsewhere the
//! barrier must reach beyond the cores.

use std::sync::atomic::{Ordering, fence};

/// Between the last access to memory and the store to a doorbell. Loads too: the doorbell of a completion
/// ring says that its entries were read and may be written again, so a barrier of stores is not enough.
#[inline]
pub(crate) fn before_doorbell() {
    fence(Ordering::Release);
    #[cfg(target_arch = "aarch64")]
    // SAFETY: a barrier for the outer domain; it touches neither memory nor registers.
    unsafe {
        std::arch::asm!("dmb osh", options(nostack, preserves_flags));
    }
}

/// Between the load of a phase bit and any load of what came with it.
#[inline]
pub(crate) fn after_phase() {
    #[cfg(target_arch = "aarch64")]
    // SAFETY: a load barrier for the outer domain; it touches neither memory nor registers.
    unsafe {
        std::arch::asm!("dmb oshld", options(nostack, preserves_flags));
    }
    fence(Ordering::Acquire);
}
