//! What drives were asked, and how long reactors' turns took: rows of the status and metrics.

use std::sync::Arc;
use std::time::Duration;

use memkv_admin_api as api;
use memkv_block::{BlockDevice, DeviceStats};
use memkv_poller::ReactorStats;

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
