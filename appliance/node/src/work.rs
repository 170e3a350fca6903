//! What drives were asked, and how long reactors' turns took: rows of the status and metrics.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use memkv_admin_api as api;
use memkv_block::{BlockDevice, DeviceStats};
use memkv_poller::ReactorStats;
use memkv_session::Context;
use memkv_store::Store;

use crate::bypass::Attended;
use crate::seats::Seat;

/// What one reactor has one drive do, by the drive's number.
#[derive(Copy, Clone, Debug)]
pub(crate) struct QueueLoad {
    pub drive: usize,
    /// Commands that the drive has now.
    pub depth: u64,
    /// Commands that it has answered.
    pub completed: u64,
}

/// A reactor, and where it sits.
pub(crate) struct SeatedReactor {
    pub id: usize,
    pub stats: Arc<ReactorStats>,
    pub seat: Option<Seat>,
}

/// On a reactor: what its sessions have drives do, and its store, if it has that.
pub(crate) fn queue_loads(context: &Context, store: Option<&Store>) -> Vec<QueueLoad> {
    let row = |(id, depth, completed): (memkv_store::DriveId, usize, u64)| QueueLoad {
        drive: usize::from(id.0),
        depth: depth as u64,
        completed,
    };
    let mut loads: Vec<QueueLoad> = context.queues().into_iter().map(row).collect();
    for own in store.map(Store::drives).unwrap_or_default() {
        let own = row((own.id, own.outstanding, own.completed));
        if let Some(load) = loads.iter_mut().find(|load| load.drive == own.drive) {
            load.depth += own.depth;
            load.completed += own.completed;
        }
    }
    loads
}

/// A drive's counters for the status.
pub(crate) fn io_row(stats: &DeviceStats) -> api::IoStatus {
    api::IoStatus {
        reads_total: stats.reads,
        read_bytes_total: stats.read_bytes,
        writes_total: stats.writes,
        written_bytes_total: stats.written_bytes,
        flushes_total: stats.flushes,
        submitted_total: stats.submitted,
        enters_total: stats.enters,
        transfers_total: stats.transfers,
        fixed_transfers_total: stats.fixed,
        depth: stats.depth,
        depth_high: stats.depth_high,
        dry_total: stats.dry,
        starved_us_total: stats.starved.as_micros() as u64,
    }
}

/// A controller that is driven from here, for the status.
pub(crate) fn nvme_row(attended: &Attended) -> Option<api::NvmeStatus> {
    let drive = attended.drive()?;
    let (info, troubles) = (drive.info(), drive.troubles());
    let narrow = |count: u128| u64::try_from(count).unwrap_or(u64::MAX);
    let smart = attended.seen().health.map(|health| api::SmartStatus {
        critical_warning: health.critical,
        temperature_celsius: health.temperature,
        spare_percent: health.spare,
        used_percent: health.used,
        media_errors_total: narrow(health.media_errors),
        power_on_hours: narrow(health.power_on_hours),
        unsafe_shutdowns_total: narrow(health.unsafe_shutdowns),
    });
    Some(api::NvmeStatus {
        model: info.model.clone(),
        serial: info.serial.clone(),
        firmware: info.firmware.clone(),
        queues: info.queues,
        resets_total: troubles.resets,
        aborts_total: troubles.aborts,
        retries_total: troubles.retries,
        spurious_total: troubles.spurious,
        smart,
    })
}

/// Controllers that are driven from here, for the metrics.
pub(crate) fn nvme_metrics(snapshot: &mut api::MetricsSnapshot, drives: &[Arc<Attended>]) {
    for attended in drives {
        let (Some(drive), Some(row)) = (attended.drive(), nvme_row(attended)) else { continue };
        let labels = || vec![("drive", drive.name().to_owned())];
        for (name, help, value) in [
            ("memkv_nvme_resets_total", "Resets of the controller.", row.resets_total),
            ("memkv_nvme_aborts_total", "Commands that took too long.", row.aborts_total),
            ("memkv_nvme_retries_total", "Commands given again.", row.retries_total),
            ("memkv_nvme_spurious_total", "Answers nobody asked for.", row.spurious_total),
        ] {
            snapshot.counter(name, help, labels(), value);
        }
        let Some(smart) = row.smart else { continue };
        let temperature = smart.temperature_celsius.map(f64::from);
        for (name, help, value) in [
            ("memkv_nvme_temperature_celsius", "Its temperature.", temperature),
            ("memkv_nvme_used_ratio", "Life used up.", Some(f64::from(smart.used_percent) / 100.0)),
            (
                "memkv_nvme_spare_ratio",
                "Spare blocks.",
                Some(f64::from(smart.spare_percent) / 100.0),
            ),
            ("memkv_nvme_critical", "What is critical.", Some(f64::from(smart.critical_warning))),
            ("memkv_nvme_media_errors", "Not corrected.", Some(smart.media_errors_total as f64)),
        ] {
            if let Some(value) = value {
                snapshot.gauge(name, help, labels(), value);
            }
        }
    }
}

/// A reactor's queue on a drive for the status.
pub(crate) fn queue_row(load: &QueueLoad, device: &dyn BlockDevice) -> api::QueueStatus {
    api::QueueStatus {
        drive: device.name().to_owned(),
        depth: load.depth,
        completions_total: load.completed,
    }
}

/// A reactor for the status, with its queues.
pub(crate) fn reactor_row(
    reactor: &SeatedReactor,
    queues: Vec<api::QueueStatus>,
) -> api::ReactorStatus {
    let SeatedReactor { id, stats, seat } = reactor;
    let get = |value: &AtomicU64| value.load(Ordering::Relaxed);
    let (busy, idle, polls) = (get(&stats.busy_ns), get(&stats.idle_ns), get(&stats.polls));
    let completions_total: u64 = queues.iter().map(|queue| queue.completions_total).sum();
    api::ReactorStatus {
        id: *id as u16,
        busy_percent: 100.0 * busy as f64 / (busy + idle).max(1) as f64,
        polls,
        sleeps: get(&stats.sleeps),
        tasks_live: get(&stats.tasks_live),
        tasks_spawned: get(&stats.tasks_spawned),
        busy_seconds: busy as f64 * 1e-9,
        idle_seconds: idle as f64 * 1e-9,
        cpu: seat.as_ref().and_then(Seat::core).map(|core| core as u32),
        numa_node: seat.as_ref().map(|seat| seat.node),
        depth: queues.iter().map(|queue| queue.depth).sum(),
        completions_total,
        completions_per_poll: completions_total as f64 / polls.max(1) as f64,
        queues,
        turns: turn_rows(stats),
    }
}

/// A reactor's longest turns for the status, the longest first.
pub(crate) fn turn_rows(stats: &ReactorStats) -> Vec<api::TurnStatus> {
    let mut turns = stats.turns();
    turns.sort_by_key(|turns| std::cmp::Reverse(turns.own.longest));
    let us = |time: Duration| time.as_nanos() as f64 / 1000.0;
    let row = |turns: &memkv_poller::Turns| api::TurnStatus {
        who: turns.who.to_owned(),
        long_total: turns.own.count,
        longest_us: us(turns.own.longest),
        preempted_total: turns.preempted.count,
        longest_preempted_us: us(turns.preempted.longest),
    };
    turns.iter().map(row).collect()
}

/// The same per drive for the metrics.
pub(crate) fn io_metrics(snapshot: &mut api::MetricsSnapshot, devices: &[Arc<dyn BlockDevice>]) {
    type Pick = fn(&DeviceStats) -> u64;
    let by_operation: [(&str, Pick, Option<Pick>); 4] = [
        ("read", |s| s.reads, Some(|s| s.read_bytes)),
        ("write", |s| s.writes, Some(|s| s.written_bytes)),
        ("flush", |s| s.flushes, None),
        ("deallocate", |s| s.deallocations, None),
    ];
    let counters: [(&'static str, &'static str, Pick); 7] = [
        ("memkv_drive_failures_total", "Commands that failed.", |s| s.failed),
        ("memkv_drive_submitted_total", "Commands handed to the system.", |s| s.submitted),
        ("memkv_drive_enters_total", "System calls that did it.", |s| s.enters),
        ("memkv_drive_transfers_total", "Reads and writes among them.", |s| s.transfers),
        ("memkv_drive_fixed_transfers_total", "With registered memory.", |s| s.fixed),
        ("memkv_drive_dry_total", "Times it was idle while commands waited.", |s| s.dry),
        ("memkv_drive_starved_microseconds_total", "How long.", |s| s.starved.as_micros() as u64),
    ];
    let gauges: [(&'static str, &'static str, Pick); 2] = [
        ("memkv_drive_depth", "Commands the drive has now.", |s| s.depth),
        ("memkv_drive_depth_high", "The most it had at a time.", |s| s.depth_high),
    ];
    for device in devices {
        let stats = device.stats();
        let drive = || ("drive", device.name().to_owned());
        for (operation, commands, bytes) in by_operation {
            let labels = || vec![drive(), ("operation", operation.to_owned())];
            let (name, help) = ("memkv_drive_commands_total", "Commands done.");
            snapshot.counter(name, help, labels(), commands(&stats));
            if let Some(bytes) = bytes {
                let (name, help) = ("memkv_drive_bytes_total", "Bytes read and written.");
                snapshot.counter(name, help, labels(), bytes(&stats));
            }
        }
        for (name, help, pick) in counters {
            snapshot.counter(name, help, vec![drive()], pick(&stats));
        }
        for (name, help, pick) in gauges {
            snapshot.gauge(name, help, vec![drive()], pick(&stats) as f64);
        }
    }
}

/// What reactors do, and have drives do, for the metrics.
pub(crate) fn reactor_metrics(
    snapshot: &mut api::MetricsSnapshot,
    reactors: &[api::ReactorStatus],
) {
    for reactor in reactors {
        let id = || ("reactor", reactor.id.to_string());
        for (name, help, value) in [
            ("memkv_reactor_polls_total", "Passes over its pollers.", reactor.polls),
            ("memkv_reactor_sleeps_total", "Times it slept for lack of work.", reactor.sleeps),
        ] {
            snapshot.counter(name, help, vec![id()], value);
        }
        for (state, seconds) in [("busy", reactor.busy_seconds), ("idle", reactor.idle_seconds)] {
            let labels = vec![id(), ("state", state.to_owned())];
            let (name, help) = ("memkv_reactor_microseconds_total", "Its time, by what it found.");
            snapshot.counter(name, help, labels, (seconds * 1e6) as u64);
        }
        for queue in &reactor.queues {
            let labels = || vec![id(), ("drive", queue.drive.clone())];
            let (name, help) = ("memkv_queue_completions_total", "Its commands that have ended.");
            snapshot.counter(name, help, labels(), queue.completions_total);
            let (name, help) = ("memkv_queue_depth", "Its commands that the drive has now.");
            snapshot.gauge(name, help, labels(), queue.depth as f64);
        }
    }
}

/// The same per reactor for the metrics.
pub(crate) fn turn_metrics(snapshot: &mut api::MetricsSnapshot, reactors: &[api::ReactorStatus]) {
    for reactor in reactors {
        for turn in &reactor.turns {
            let faults = [
                ("own", turn.long_total, turn.longest_us),
                ("preempted", turn.preempted_total, turn.longest_preempted_us),
            ];
            for (fault, long, longest_us) in faults {
                let labels = || {
                    vec![
                        ("reactor", reactor.id.to_string()),
                        ("who", turn.who.clone()),
                        ("fault", fault.to_owned()),
                    ]
                };
                let (name, help) = ("memkv_long_turns_total", "Turns longer than 200 µs.");
                snapshot.counter(name, help, labels(), long);
                let (name, help) = ("memkv_longest_turn_seconds", "The longest turn.");
                snapshot.gauge(name, help, labels(), longest_us * 1e-6);
            }
        }
    }
}
