//! How much is done, and how often.
//!
//! A round goes through all rows; a row is cut into short slices in which the sides take turns, each
//! round in another order. What disturbs a machine disturbs all sides of a row alike, then, and the
//! ratios of one round are of the same seconds. The result is the median of the rounds' ratios.

use std::time::Duration;

use crate::exists;
use crate::load::{self, Effort};
use crate::machine;
use crate::measure::{Load, Operation};
use crate::peers::mooncake;
use crate::tables::size;

const MIB: u64 = 1 << 20;

/// The name of what idle nodes take, as `--only` has it.
pub const IDLE: &str = "an idle node";
/// Connections where there are several.
pub const SEVERAL: usize = 4;
/// Bytes of the values that others are held against.
pub const LARGE: usize = 4 << 20;
/// Bytes of the smallest values that peers have to take, too.
pub const MIDDLE: usize = 1 << 20;
/// Bytes of the smallest values.
pub const SMALL: usize = 64 << 10;
/// Small values of one call, where there are several.
const BATCH: usize = 16;
/// Bytes of the values in rows of one connection to memory.
const SIZES: [usize; 5] = [LARGE, MIDDLE, SMALL, 8 << 20, 16 << 20];
/// The same of the rows beside a busy thread.
const BUSY_SIZES: [usize; 3] = [LARGE, MIDDLE, SMALL];
/// The memory that drives and sockets of a node move bytes through.
pub const POOL_BYTES: u64 = 256 * MIB;
/// What a drive holds beside values: superblocks, journal, checkpoints, room for values being
/// replaced, and the share from which on it evicts.
const DRIVE_SPARE: u64 = 1024 * MIB;

/// All sizes of a run, and which of its rows are wanted.
#[derive(Clone, Debug)]
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
    /// How often and how long load comes from many sides.
    pub load: Effort,
    /// Only the rows whose names have this in them.
    only: String,
}

/// One row: what is asked of its sides, and in which circumstances.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Row {
    /// What is asked.
    pub load: Load,
    /// Of a node on a file, else of one on memory.
    pub file: bool,
    /// Threads of others that never rest meanwhile.
    pub busy: usize,
    /// To a node that has just started.
    pub first: bool,
}

impl Row {
    /// Its name, as `--only` and the checks have it.
    pub fn name(&self) -> String {
        format!("{} {}", self.load.operation.name(), self.scene())
    }

    /// Its name without the operation.
    pub fn scene(&self) -> String {
        let Load { value_bytes, depth, batch, .. } = self.load;
        let medium = if self.file { "file" } else { "memory" };
        let connections = if depth == 1 { "connection" } else { "connections" };
        let size = match batch {
            1 => size(value_bytes),
            _ => format!("{} in batches of {batch}", size(value_bytes)),
        };
        let when = if self.first { "first after start".to_owned() } else { regime(self.busy) };
        format!("{size}, {medium}, {depth} {connections}, {when}")
    }
}

/// How tables name what others do to a machine.
pub fn regime(busy: usize) -> String {
    match busy {
        0 => "quiet".to_owned(),
        1 => "1 busy thread".to_owned(),
        _ => format!("{busy} busy threads"),
    }
}

impl Plan {
    /// The sizes of a run of the rows whose names have `only` in them.
    pub fn new(quick: bool, rounds: Option<u32>, only: Option<&str>) -> Plan {
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
            load: Effort { rounds: if quick { 1 } else { 3 }, length: Duration::from_secs(4) },
            only: only.unwrap_or_default().to_owned(),
        }
    }

    /// Whether a row of this name is asked for.
    pub fn wants(&self, name: &str) -> bool {
        name.contains(&self.only)
    }

    /// The wanted rows in the order in which a round goes through them.
    pub fn rows(&self) -> Vec<Row> {
        let row = |value_bytes, depth, batch| {
            let slots = (self.stored_bytes / value_bytes as u64) as u32;
            Operation::ALL.map(|operation| {
                let load = Load { operation, value_bytes, slots, depth, batch };
                Row { load, file: false, busy: 0, first: false }
            })
        };
        let quiet = SIZES.map(|size| row(size, 1, 1));
        let batches = row(SMALL, 1, BATCH);
        let busy = BUSY_SIZES.map(|size| row(size, 1, 1).map(|row| Row { busy: 1, ..row }));
        let several = row(LARGE, SEVERAL, 1);
        let files = several.map(|row| Row { file: true, ..row });
        let first = row(LARGE, 1, 1).into_iter().take(1).map(|row| Row { first: true, ..row });
        let all = quiet.into_iter().chain([batches]).chain(busy).chain([several, files]);
        all.flatten().chain(first).filter(|row| self.wants(&row.name())).collect()
    }

    /// Operations of each worker in one slice of a row.
    pub fn operations(&self, row: &Row) -> u32 {
        let bytes = if row.file { self.file_row_bytes } else { self.row_bytes };
        let each = bytes / row.load.value_bytes as u64 / row.load.depth as u64;
        (each as u32).div_ceil(self.slices)
    }

    /// Bytes of the drive in memory: every size that is asked for, and the one that others are
    /// held against.
    pub fn memory_drive_bytes(&self) -> u64 {
        let mut sizes: Vec<_> = self.rows().iter().map(|row| row.load.value_bytes).collect();
        sizes.push(LARGE);
        sizes.sort_unstable();
        sizes.dedup();
        self.stored_bytes * sizes.len() as u64 + DRIVE_SPARE
    }

    /// Bytes of the drive in memory of a node that has just started.
    pub fn first_drive_bytes(&self) -> u64 {
        self.stored_bytes + DRIVE_SPARE
    }

    /// Bytes of the drive in a file.
    pub fn file_drive_bytes(&self) -> u64 {
        self.stored_bytes + DRIVE_SPARE
    }

    /// Hugepages of 2 MiB that all sides together can use, fio and the rounding included.
    pub fn hugepages(&self) -> u64 {
        // What both plain servers and the copier hold, and Mooncake's store and client.
        let limits = 3 * self.stored_bytes;
        let mooncake = mooncake::segment_bytes(self.stored_bytes) + self.ring_bytes;
        let nodes = 3 * POOL_BYTES + self.memory_drive_bytes() + self.first_drive_bytes();
        let asked = if exists::is_wanted(self) { exists::HUGEPAGES } else { 0 };
        let rows = (self.ring_bytes + limits + mooncake + nodes) / (2 * MIB) + asked;
        // Load from many sides has its turn when all of that is given back.
        rows.max(if load::is_wanted(self) { load::hugepages() } else { 0 }) + 64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn puts_of_a_round_reach_every_slot_that_its_gets_read() {
        for quick in [true, false] {
            let plan = Plan::new(quick, None, None);
            for row in plan.rows() {
                let operations = plan.operations(&row) as usize;
                assert_eq!(operations % row.load.batch, 0, "whole batches: {row:?}");
                let reached = plan.operations(&row) * plan.slices * row.load.depth as u32;
                assert!(reached >= row.load.slots, "{row:?}");
                assert!(row.load.slots as usize >= 4 * row.load.depth);
            }
        }
    }

    #[test]
    fn values_fit_onto_their_drives_below_the_mark_of_eviction() {
        let plan = Plan::new(true, Some(1), None);
        let values = SIZES.len() as u64 * plan.stored_bytes;
        // The ring of a small drive is an eighth of it, or 256 MiB.
        let ring = (plan.memory_drive_bytes() / 8).max(256 * MIB);
        assert!(values * 100 < (plan.memory_drive_bytes() - ring) * 93);
    }

    #[test]
    fn rows_are_chosen_by_words_of_their_names() {
        let names = |only| {
            let rows = Plan::new(true, None, only).rows();
            rows.iter().map(Row::name).collect::<Vec<_>>()
        };
        let all = names(None);
        assert_eq!(all.len(), 2 * (SIZES.len() + BUSY_SIZES.len() + 3) + 1);
        let wanted =
            ["PUT 4 MiB, memory, 1 connection, quiet", "GET 4 MiB, memory, 1 connection, quiet"];
        assert_eq!(names(Some(" 4 MiB, memory, 1 connection, quiet")), wanted);
        assert!(names(Some("no such row")).is_empty());
        let mut once = all.clone();
        once.sort();
        once.dedup();
        assert_eq!(once.len(), all.len(), "no two rows have the same name");
    }

    #[test]
    fn a_chosen_row_needs_less_memory() {
        let all = Plan::new(true, None, None);
        let some = Plan::new(true, None, Some(" 4 MiB, memory"));
        assert!(some.hugepages() < all.hugepages());
    }
}
