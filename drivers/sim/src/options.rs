//! What a simulated disk is made of.

use crate::medium::Pages;
use crate::record::FaultRates;

/// Bounds of a command's delay in microseconds, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Latency {
    /// Shortest and longest read.
    pub read: (u32, u32),
    /// Shortest and longest write or deallocate.
    pub write: (u32, u32),
    /// Shortest and longest flush.
    pub flush: (u32, u32),
    /// Delays are rounded up to a multiple of this, so that completions meet; 0 or 1 for none.
    pub grain: u32,
}

impl Default for Latency {
    /// A quick NVMe drive.
    fn default() -> Latency {
        Latency { read: (60, 150), write: (10, 40), flush: (100, 1_000), grain: 10 }
    }
}

/// What a disk is made of.
#[derive(Clone, Debug)]
pub struct DiskOptions {
    /// Shown by `BlockDevice::name`.
    pub name: String,
    /// Bytes; a multiple of 16 KiB.
    pub capacity: u64,
    /// 512 or 4096: the grain of alignment and of torn writes.
    pub sector: u32,
    /// Longest transfer of one command in bytes.
    pub max_transfer: u32,
    /// Delays of commands.
    pub latency: Latency,
    /// Bytes a second that reads and writes move, one after another, before their delay begins; 0
    /// for no bound.
    pub bytes_per_second: u64,
    /// Faults at the start; [`SimDisk::set_rates`] changes them.
    pub rates: FaultRates,
    /// Where to take and leave the pages that hold the content.
    pub pages: Pages,
    /// Decides everything that is left to chance.
    pub seed: u64,
}

impl DiskOptions {
    /// A healthy disk of `capacity` bytes with 512-byte sectors.
    pub fn new(name: impl Into<String>, capacity: u64, seed: u64) -> DiskOptions {
        DiskOptions {
            name: name.into(),
            capacity,
            sector: 512,
            max_transfer: 4 << 20,
            latency: Latency::default(),
            bytes_per_second: 0,
            rates: FaultRates::default(),
            pages: Pages::default(),
            seed,
        }
    }
}
