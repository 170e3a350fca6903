//! How much is done, and how often.
//!
//! A round goes through all rows; a row is cut into short slices in which the sides take turns, each
//! round in another order. What disturbs a machine disturbs all sides of a row alike, then, and the
//! ratios of one round are of the same seconds. The result is the median of the rounds' ratios.

use std::time::Duration;

use crate::machine;
use crate::measure::{Load, Operation};

const MIB: u64 = 1 << 20;

/// Connections of the file rows.
pub const FILE_DEPTH: usize = 4;
/// Bytes of the values with bars.
pub const LARGE: usize = 4 << 20;
/// Bytes of the values in memory rows.
const SIZES: [usize; 3] = [LARGE, 1 << 20, 64 << 10];
/// The memory that drives and sockets of a node move bytes through.
pub const POOL_BYTES: u64 = 256 * MIB;
/// What a drive holds beside values: superblocks, journal, checkpoints, room for values being
/// replaced, and the share from which on it evicts.
const DRIVE_SPARE: u64 = 1024 * MIB;

/// All sizes of a run.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Rounds.
    pub rounds: u32,
    /// Slices of a row in a round.
    pub slices: u32,
    /// Bytes that the values of one size take on a server.
    pub stored_bytes: u64,
    /// Bytes of the client's cold region.
    pub ring_bytes: u64,
    /// Bytes that one side of a row moves in a round.
    pub row_bytes: u64,
    /// The same of a file row.
    pub file_row_bytes: u64,
    /// How long idle nodes are watched.
    pub idle: Duration,
}

/// One row: what is asked of its sides.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Row {
    /// What is asked.
    pub load: Load,
    /// Of a node on a file, else of one on memory.
    pub file: bool,
}

impl Plan {
    /// The sizes of a run.
    pub fn new(quick: bool, rounds: Option<u32>) -> Plan {
        // Larger than the caches, and not more than a small machine can spare.
        let cold = machine::cache_bytes().unwrap_or(0).next_power_of_two();
        let roomy = machine::available_bytes().is_none_or(|bytes| bytes >= 8 << 30);
        let cold = cold.clamp(256 * MIB, if roomy { 512 * MIB } else { 256 * MIB });
        let factor = if quick { 1 } else { 2 };
        Plan {
            rounds: rounds.unwrap_or(if quick { 5 } else { 11 }).max(1),
            slices: 8,
            stored_bytes: cold,
            ring_bytes: cold,
            row_bytes: cold * factor,
            file_row_bytes: (cold * factor).max(1024 * MIB),
            idle: Duration::from_secs(if quick { 5 } else { 10 }),
        }
    }

    /// The rows in the order in which a round goes through them.
    pub fn rows(&self) -> Vec<Row> {
        let memory = SIZES.iter().map(|&value_bytes| (value_bytes, 1, false));
        let all = memory.chain([(LARGE, FILE_DEPTH, true)]);
        all.flat_map(|(value_bytes, depth, file)| {
            let slots = (self.stored_bytes / value_bytes as u64) as u32;
            Operation::ALL
                .map(|operation| Row { load: Load { operation, value_bytes, slots, depth }, file })
        })
        .collect()
    }

    /// Operations of each worker in one slice of a row.
    pub fn operations(&self, row: &Row) -> u32 {
        let bytes = if row.file { self.file_row_bytes } else { self.row_bytes };
        let each = bytes / row.load.value_bytes as u64 / row.load.depth as u64;
        (each as u32).div_ceil(self.slices)
    }

    /// Bytes of the drive in memory.
    pub fn memory_drive_bytes(&self) -> u64 {
        self.stored_bytes * SIZES.len() as u64 + DRIVE_SPARE
    }

    /// Bytes of the drive in a file.
    pub fn file_drive_bytes(&self) -> u64 {
        self.stored_bytes + DRIVE_SPARE
    }

    /// Hugepages of 2 MiB that all sides together can use, fio and the rounding included.
    pub fn hugepages(&self) -> u64 {
        let plain = self.stored_bytes;
        let nodes = 2 * POOL_BYTES + self.memory_drive_bytes();
        (self.ring_bytes + plain + nodes) / (2 * MIB) + 64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn puts_of_a_round_reach_every_slot_that_its_gets_read() {
        for quick in [true, false] {
            let plan = Plan::new(quick, None);
            for row in plan.rows() {
                let reached = plan.operations(&row) * plan.slices * row.load.depth as u32;
                assert!(reached >= row.load.slots, "{row:?}");
                assert!(row.load.slots as usize >= 4 * row.load.depth);
            }
        }
    }

    #[test]
    fn values_fit_onto_their_drives_below_the_mark_of_eviction() {
        let plan = Plan::new(true, Some(1));
        let values = 3 * plan.stored_bytes;
        // The ring of a small drive is an eighth of it, or 256 MiB.
        let ring = (plan.memory_drive_bytes() / 8).max(256 * MIB);
        assert!(values * 100 < (plan.memory_drive_bytes() - ring) * 93);
    }
}
