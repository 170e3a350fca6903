//! The processor's time stamp counter. Where QEMU counts instructions (`-icount shift=0`) it counts the
//! guest's: one instruction is one nanosecond of the guest's time, and one tick.
#![allow(unsafe_code)]

/// Ticks since the processor was switched on.
#[inline(always)]
pub fn ticks() -> u64 {
    // SAFETY: it reads a register that every x86-64 has and touches no memory (Intel SDM, RDTSC); Linux
    // lets processes read it unless one asked to be killed for it.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// Ticks between two calls of [`ticks`] with nothing between them: what a measurement has too much.
pub fn overhead() -> u64 {
    let differences = (0..64).map(|_| {
        let before = ticks();
        ticks() - before
    });
    differences.min().expect("some were taken")
}
