//! The body of `/v1/status`: what a person wants to know about a node, with reasons.
//!
//! The JSON is meant to be read by scripts too, so names are spelled out, carry their unit, and are
//! only ever added to. A reader skips names it does not know.

use crate::reload::ConfigStatus;
use crate::version::Version;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Everything about one node at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Release and commit of the running binary.
    pub version: Version,
    /// Seconds since the process began to serve.
    pub uptime_seconds: f64,
    /// The node's identity, kept in the superblocks.
    pub node_uuid: String,
    /// How many times the node has been started on these drives.
    pub incarnation: u64,
    /// The data address, `host:port`.
    pub address: String,
    /// `direct`, `file` or `memory`.
    pub storage_mode: String,
    /// `process`, `power`, or `none` in memory mode.
    pub durability: String,
    /// The pool that devices see.
    pub memory: MemoryStatus,
    /// Totals over all drives.
    pub storage: StorageStatus,
    /// One entry per configured drive, offline ones included.
    pub drives: Vec<DriveStatus>,
    /// One entry per reactor.
    pub reactors: Vec<ReactorStatus>,
    /// Client connections.
    pub connections: ConnectionStatus,
    /// What happens when the drives fill.
    pub eviction: EvictionStatus,
    /// Reading what nobody reads.
    #[serde(default)]
    pub scrub: ScrubStatus,
    /// Which configuration holds.
    #[serde(default)]
    pub config: ConfigStatus,
    /// The store's counters by name (`put`, `get`, `hit`, `miss_evicted`, …), since the start.
    pub counters: BTreeMap<String, u64>,
    /// The process as the operating system sees it.
    pub process: ProcessStatus,
}

/// The memory pool.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MemoryStatus {
    /// Size of the pool.
    pub pool_bytes: u64,
    /// Size of one chunk, the piece a transfer is cut into.
    pub block_bytes: u64,
    /// Bytes lent out now, by class (`receive`, `send`, `scrub`, `checkpoint`).
    pub used_bytes: BTreeMap<String, u64>,
    /// Times a request had to wait for memory.
    pub waits_total: u64,
    /// What kind of pages hold it.
    pub backing: PoolBacking,
    /// Why these pages, when they are not the preferred ones.
    pub backing_reason: Option<String>,
}

/// The pages behind the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PoolBacking {
    /// 2 MiB hugepages.
    #[serde(rename = "hugepages_2m")]
    Hugepages2M,
    /// The system's ordinary pages.
    OrdinaryPages,
}

/// Totals over all drives.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StorageStatus {
    /// Capacity of the media, metadata included.
    pub raw_bytes_total: u64,
    /// Capacity for blocks.
    pub usable_bytes_total: u64,
    /// Capacity taken by blocks, rounded up to whole units.
    pub used_bytes_total: u64,
    /// Blocks that can be read.
    pub blocks_total: u64,
}

/// Whether a drive serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DriveState {
    /// It serves.
    Online,
    /// It failed; its blocks are misses.
    Offline,
}

/// One drive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriveStatus {
    /// The configured path, or `memory`.
    pub path: String,
    /// What moves its bytes: `uring`, `threads`, `memory`.
    pub driver: String,
    /// Why this driver was picked.
    pub driver_reason: String,
    /// The drive's identity, from its superblock.
    pub uuid: String,
    /// Whether it serves.
    pub state: DriveState,
    /// Why it is offline.
    pub offline_reason: Option<String>,
    /// Capacity of the medium.
    pub raw_bytes: u64,
    /// Capacity for blocks.
    pub usable_bytes: u64,
    /// Capacity taken by blocks.
    pub used_bytes: u64,
    /// What was found at start.
    pub recovery: RecoveryStatus,
    /// What of its free space the device was told.
    #[serde(default)]
    pub trim: TrimStatus,
    /// What the device was asked.
    #[serde(default)]
    pub io: IoStatus,
    /// The NUMA node that it is attached to, on a machine with several.
    #[serde(default)]
    pub numa_node: Option<u32>,
    /// The controller, of a drive that is driven past the kernel.
    #[serde(default)]
    pub nvme: Option<NvmeStatus>,
}

/// A controller that is driven past the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NvmeStatus {
    /// Model, serial number and firmware, as the drive spells them.
    pub model: String,
    /// See `model`.
    pub serial: String,
    /// See `model`.
    pub firmware: String,
    /// Queues that it grants.
    pub queues: u16,
    /// Times that it was reset.
    pub resets_total: u64,
    /// Commands that it was asked to abort, for they took too long.
    pub aborts_total: u64,
    /// Commands that it was given again, after an error or a reset.
    pub retries_total: u64,
    /// Answers that nobody had asked for.
    pub spurious_total: u64,
    /// What it says of its health, once it has been asked.
    #[serde(default)]
    pub smart: Option<SmartStatus>,
}

/// What a drive says of its health (NVM Express Base Specification, SMART / health information log).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SmartStatus {
    /// What is critical, as the drive's bits: 0 spare blocks, 1 temperature, 2 reliability, 3 read-only,
    /// 4 backup of volatile memory, 5 persistent memory.
    pub critical_warning: u8,
    /// Where the drive measures it.
    pub temperature_celsius: Option<i16>,
    /// Spare blocks left.
    pub spare_percent: u8,
    /// Life used up of what was estimated; may be more than 100.
    pub used_percent: u8,
    /// Errors of the medium that it could not correct.
    pub media_errors_total: u64,
    /// Hours that it has been on.
    pub power_on_hours: u64,
    /// Times that it lost power without a shutdown.
    pub unsafe_shutdowns_total: u64,
}

/// What a device was asked since the start, by all reactors together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoStatus {
    /// Reads done.
    pub reads_total: u64,
    /// Bytes of them.
    pub read_bytes_total: u64,
    /// Writes done: values, journal, checkpoints.
    pub writes_total: u64,
    /// Bytes of them.
    pub written_bytes_total: u64,
    /// Flushes done, those of checkpoints included.
    pub flushes_total: u64,
    /// Commands handed to the system.
    pub submitted_total: u64,
    /// System calls by which they were handed over.
    pub enters_total: u64,
    /// Reads and writes among them.
    pub transfers_total: u64,
    /// Those to or from registered memory.
    pub fixed_transfers_total: u64,
    /// Commands the device has now.
    pub depth: u64,
    /// The most it had at a time.
    pub depth_high: u64,
    /// Times the device had done all it had while more was waiting.
    pub dry_total: u64,
    /// Microseconds in which commands waited while the device had none.
    pub starved_us_total: u64,
}

/// Telling a drive what is free, since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrimStatus {
    /// Whether it is told: configured, and the device can.
    pub on: bool,
    /// Extents that were freed.
    pub extents_freed_total: u64,
    /// Commands given to the device.
    pub ranges_total: u64,
    /// Freed extents in the ranges that the device gave up; by `ranges_total` it is what joining
    /// neighbours saves.
    pub extents_total: u64,
    /// Bytes in them.
    pub bytes_total: u64,
    /// Bytes that were taken again before.
    pub reused_bytes_total: u64,
    /// Bytes that were dropped when it was stopped, or for want of a place.
    pub dropped_bytes_total: u64,
    /// Commands that failed.
    pub failed_total: u64,
    /// Bytes that wait.
    pub pending_bytes: u64,
}

/// The scrubber: reads what nobody reads.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubStatus {
    /// The rate it keeps to; 0 is off.
    pub bytes_per_second: u64,
    /// How far the pass under way is, in slots of the index.
    pub position: u64,
    /// Slots of the index.
    pub slots: u64,
    /// Passes completed since the start.
    pub passes_total: u64,
    /// Unix second at which the last of them ended; 0 before the first.
    pub last_pass: u64,
    /// Bytes found right since the start.
    pub bytes_total: u64,
    /// Blocks dropped because their bytes were wrong or could not be read.
    pub dropped_total: u64,
}

/// What the start found on a drive.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoveryStatus {
    /// The last shutdown was orderly: every block is as verified as it was then.
    pub clean: bool,
    /// Blocks found.
    pub blocks: u64,
    /// Journal frames read after the checkpoint.
    pub frames: u64,
    /// Records in them.
    pub records: u64,
    /// Frames that were damaged and left out.
    pub damaged_frames: u64,
    /// The journal ended in an incomplete frame, as a crash leaves it.
    pub torn_tail: bool,
    /// How long it took.
    pub milliseconds: u64,
}

/// One reactor.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ReactorStatus {
    /// Its number.
    pub id: u16,
    /// Share of time spent on work since the start, 0–100.
    pub busy_percent: f64,
    /// Passes over its pollers.
    pub polls: u64,
    /// Times it blocked for lack of work.
    pub sleeps: u64,
    /// Tasks alive now.
    pub tasks_live: u64,
    /// Tasks ever started.
    pub tasks_spawned: u64,
    /// Seconds spent on work, and without any, since the start.
    #[serde(default)]
    pub busy_seconds: f64,
    /// See `busy_seconds`.
    #[serde(default)]
    pub idle_seconds: f64,
    /// The core that its thread is bound to, if it is.
    #[serde(default)]
    pub cpu: Option<u32>,
    /// The NUMA node of that core.
    #[serde(default)]
    pub numa_node: Option<u32>,
    /// Commands of its own that drives have now.
    #[serde(default)]
    pub depth: u64,
    /// Commands of its own that drives have answered.
    #[serde(default)]
    pub completions_total: u64,
    /// Those by `polls`.
    #[serde(default)]
    pub completions_per_poll: f64,
    /// The same for each drive, in the order of the node's drives; those in memory have no queues.
    #[serde(default)]
    pub queues: Vec<QueueStatus>,
    /// Whose turns took longest, of those longer than 50 µs.
    #[serde(default)]
    pub turns: Vec<TurnStatus>,
}

/// What one reactor asked of one drive.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueStatus {
    /// The drive's path.
    pub drive: String,
    /// Commands that it has now.
    pub depth: u64,
    /// Commands that it has answered since the start.
    pub completions_total: u64,
}

/// The longest turns of one kind of task or poller.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TurnStatus {
    /// The poller's name, or the path of the task's function.
    pub who: String,
    /// Turns longer than 200 µs, without the time in which the thread waited for a core.
    pub long_total: u64,
    /// The longest one, in microseconds.
    pub longest_us: f64,
    /// Turns that were longer than 200 µs only because the thread waited for a core.
    #[serde(default)]
    pub preempted_total: u64,
    /// The longest of these by the clock on the wall, in microseconds.
    #[serde(default)]
    pub longest_preempted_us: f64,
}

/// Client connections.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionStatus {
    /// Open now.
    pub open: u64,
    /// The limit.
    pub max: u64,
    /// Accepted since the start.
    pub accepted_total: u64,
    /// Turned away since the start, at the limit or for a bad key.
    pub refused_total: u64,
}

/// Eviction settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvictionStatus {
    /// Off means that a full node answers `Full`.
    pub enabled: bool,
    /// The order of eviction: `chain`, `lru` or `s3-fifo`.
    pub policy: String,
    /// Percent of usable bytes at which eviction begins.
    pub high_percent: u8,
    /// Percent of usable bytes at which it rests.
    pub low_percent: u8,
}

/// The process as the operating system sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ProcessStatus {
    /// Process id.
    pub pid: u32,
    /// Seconds of CPU used, user and system together.
    pub cpu_seconds: f64,
    /// Resident memory.
    pub resident_bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_scripts_read_stay() {
        let storage = StorageStatus {
            raw_bytes_total: 1,
            usable_bytes_total: 2,
            used_bytes_total: 3,
            blocks_total: 4,
        };
        assert_eq!(
            serde_json::to_string(&storage).expect("plain data"),
            r#"{"raw_bytes_total":1,"usable_bytes_total":2,"used_bytes_total":3,"blocks_total":4}"#
        );
        let backing = serde_json::to_string(&PoolBacking::Hugepages2M).expect("plain data");
        assert_eq!(backing, r#""hugepages_2m""#);
    }

    #[test]
    fn a_newer_node_may_say_more() {
        let text = r#"{"id":1,"busy_percent":2.5,"polls":3,"sleeps":4,"tasks_live":5,
            "tasks_spawned":6,"something_new":true}"#;
        let reactor: ReactorStatus = serde_json::from_str(text).expect("unknown names are skipped");
        assert_eq!(reactor.tasks_spawned, 6);
    }
}
