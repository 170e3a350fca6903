//! `memkvctl status`: asks the admin endpoint of each server, one port above its data address.

use crate::error::CtlError;
use crate::http::{self, HttpError};
use crate::table::{percent, plain_table, seconds};
use memkv_admin_api::size::short_size;
use memkv_admin_api::{
    ConfigStatus, DriveState, DriveStatus, Health, HealthStatus, NodeStatus, PoolBacking,
    ScrubStatus, TrimStatus,
};
use serde::Serialize;
use std::fmt::Write as _;
use std::time::Duration;

/// What one server said.
#[derive(Debug, Serialize)]
pub struct ServerReport {
    /// The data address, as it was named.
    pub server: String,
    /// Its health.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health: Option<Health>,
    /// Everything else.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<NodeStatus>,
    /// Why there is nothing to show.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Asks all servers. The first error decides the exit code; what others said is still shown.
pub fn ask_all(servers: &[String], timeout: Duration) -> (Vec<ServerReport>, Option<CtlError>) {
    let mut first = None;
    let mut reports = Vec::with_capacity(servers.len());
    for server in servers {
        let mut report =
            ServerReport { server: server.clone(), health: None, status: None, error: None };
        match ask(server, timeout) {
            Ok((health, status)) => {
                if health.status == HealthStatus::Unhealthy && first.is_none() {
                    first = Some(CtlError::Unhealthy { server: server.clone() });
                }
                (report.health, report.status) = (Some(health), Some(status));
            }
            Err(error) => {
                report.error = Some(error.story());
                first.get_or_insert(error);
            }
        }
        reports.push(report);
    }
    (reports, first)
}

fn ask(server: &str, timeout: Duration) -> Result<(Health, NodeStatus), CtlError> {
    let admin =
        admin_address(server).ok_or_else(|| CtlError::BadServer { server: server.to_owned() })?;
    // A server that is unhealthy says so with 503 and the same body.
    let health = fetch(&admin, "/v1/health", &[200, 503], timeout)?;
    let status = fetch(&admin, "/v1/status", &[200], timeout)?;
    Ok((health, status))
}

/// Asks an admin endpoint for one JSON answer; a code that is not among `codes` is an error.
pub fn fetch<T: serde::de::DeserializeOwned>(
    admin: &str,
    path: &str,
    codes: &[u16],
    timeout: Duration,
) -> Result<T, CtlError> {
    let answer = http::get(admin, path, timeout)?;
    let not_ours = || CtlError::Http(HttpError::NotHttp { server: admin.to_owned() });
    if !codes.contains(&answer.code) {
        return Err(CtlError::AdminCode { server: admin.to_owned(), code: answer.code });
    }
    serde_json::from_slice(&answer.body).map_err(|_| not_ours())
}

/// The admin address of a data address: the next port; the default port when there is none.
pub fn admin_address(server: &str) -> Option<String> {
    let bare_v6 = server.parse::<std::net::Ipv6Addr>().is_ok();
    let (host, port) = match server.rsplit_once(':') {
        Some((host, port)) if !bare_v6 && !port.ends_with(']') => (host, port.parse().ok()?),
        _ => (server, memkv_wire::DEFAULT_PORT),
    };
    let admin = port.checked_add(1)?;
    Some(if bare_v6 { format!("[{host}]:{admin}") } else { format!("{host}:{admin}") })
}

/// All reports as text for people.
pub fn render(reports: &[ServerReport]) -> String {
    let mut text = String::new();
    for (index, report) in reports.iter().enumerate() {
        if index > 0 {
            text.push('\n');
        }
        match (&report.health, &report.status) {
            (Some(health), Some(status)) => node(&mut text, &report.server, health, status),
            _ => {
                let error = report.error.as_deref().unwrap_or("no answer");
                line(&mut text, &report.server, error);
            }
        }
    }
    text
}

fn line(text: &mut String, name: &str, value: &str) {
    writeln!(text, "{name:<13} {value}").expect("writing to a string");
}

fn config(text: &mut String, config: &ConfigStatus) {
    let Some(file) = &config.file else { return };
    let mut told = format!("{file}, read {} times", config.generation);
    if config.generation == 1 {
        told = format!("{file}, as of the start");
    }
    if !config.needs_restart.is_empty() {
        told += &format!("; waits for a restart: {}", config.needs_restart.join(", "));
    }
    line(text, "config", &told);
    if let Some(error) = &config.last_error {
        line(text, "", &format!("LAST RELOAD FAILED: {error}"));
    }
}

fn node(text: &mut String, server: &str, health: &Health, status: &NodeStatus) {
    let word = match health.status {
        HealthStatus::Healthy => "healthy",
        HealthStatus::Degraded => "DEGRADED",
        HealthStatus::Unhealthy => "UNHEALTHY",
    };
    let drives = format!("{} of {} drives", health.drives_online, health.drives_total);
    line(text, server, &format!("{word}, {drives} online"));
    let uptime = seconds(status.uptime_seconds);
    line(text, "version", &format!("{}, up {uptime}", status.version));
    let incarnation = format!("{}, start {}", status.node_uuid, status.incarnation);
    line(text, "node", &incarnation);
    let storage = &status.storage;
    let share = storage.used_bytes_total as f64 / storage.usable_bytes_total.max(1) as f64;
    let usage = format!(
        "{} mode, {} of {} used ({}), {} blocks",
        status.storage_mode,
        short_size(storage.used_bytes_total),
        short_size(storage.usable_bytes_total),
        percent(share),
        storage.blocks_total
    );
    line(text, "storage", &usage);
    let eviction = &status.eviction;
    let eviction = match eviction.enabled {
        true => format!(
            "{} from {} % down to {} %",
            eviction.policy, eviction.high_percent, eviction.low_percent
        ),
        false => "off: full is full".to_owned(),
    };
    line(text, "eviction", &eviction);
    line(text, "durability", &status.durability);
    config(text, &status.config);
    line(text, "trim", &trim(&status.drives));
    line(text, "scrub", &scrub(&status.scrub));
    line(text, "memory", &memory(status));
    let connections = &status.connections;
    let open = format!("{} of {} open", connections.open, connections.max);
    let refused =
        format!("{} accepted, {} refused", connections.accepted_total, connections.refused_total);
    line(text, "connections", &format!("{open}; {refused}"));
    let process = &status.process;
    let cpu = format!("pid {}, {} of CPU", process.pid, seconds(process.cpu_seconds));
    line(text, "process", &format!("{cpu}, {} resident", short_size(process.resident_bytes)));
    counters(text, status);
    drive_table(text, &status.drives);
    reactor_table(text, status);
}

/// What all drives together were told.
fn trim(drives: &[DriveStatus]) -> String {
    let on = drives.iter().filter(|drive| drive.trim.on).count();
    let sum = |of: fn(&TrimStatus) -> u64| drives.iter().map(|drive| of(&drive.trim)).sum::<u64>();
    if on == 0 && sum(|t| t.ranges_total) == 0 {
        return "off".to_owned();
    }
    let (ranges, extents) = (sum(|t| t.ranges_total), sum(|t| t.extents_total));
    format!(
        "on {on} of {} drives, {} in {ranges} ranges of {:.1} extents, {} pending, {} failed",
        drives.len(),
        short_size(sum(|t| t.bytes_total)),
        extents as f64 / ranges.max(1) as f64,
        short_size(sum(|t| t.pending_bytes)),
        sum(|t| t.failed_total)
    )
}

fn scrub(scrub: &ScrubStatus) -> String {
    if scrub.bytes_per_second == 0 {
        return "off".to_owned();
    }
    format!(
        "{}/s, {} of {} slots, {} passes, {} read, {} blocks dropped",
        short_size(scrub.bytes_per_second),
        scrub.position,
        scrub.slots,
        scrub.passes_total,
        short_size(scrub.bytes_total),
        scrub.dropped_total
    )
}

fn memory(status: &NodeStatus) -> String {
    let memory = &status.memory;
    let pages = match memory.backing {
        PoolBacking::Hugepages2M => "2 MiB hugepages",
        PoolBacking::OrdinaryPages => "ordinary pages",
    };
    let used: u64 = memory.used_bytes.values().sum();
    let reason = memory.backing_reason.as_ref().map(|why| format!(" ({why})")).unwrap_or_default();
    let (used, size) = (short_size(used), short_size(memory.pool_bytes));
    format!("{used} of {size} lent, {pages}{reason}, {} waits", memory.waits_total)
}

/// Counters that are not zero, a few to the line.
fn counters(text: &mut String, status: &NodeStatus) {
    let shown: Vec<String> = status
        .counters
        .iter()
        .filter(|(_, value)| **value > 0)
        .map(|(name, value)| format!("{name} {value}"))
        .collect();
    for (index, some) in shown.chunks(5).enumerate() {
        line(text, if index == 0 { "counters" } else { "" }, &some.join(", "));
    }
}

fn drive_table(text: &mut String, drives: &[DriveStatus]) {
    let mut table =
        plain_table(&["drive", "state", "driver", "used", "usable", "start", "why this driver"]);
    for drive in drives {
        let state = match (drive.state, &drive.offline_reason) {
            (DriveState::Online, _) => "online".to_owned(),
            (DriveState::Offline, None) => "OFFLINE".to_owned(),
            (DriveState::Offline, Some(why)) => format!("OFFLINE: {why}"),
        };
        let recovery = &drive.recovery;
        let mut start = if recovery.clean { "clean" } else { "after a crash" }.to_owned();
        write!(start, ", {} blocks in {} ms", recovery.blocks, recovery.milliseconds)
            .expect("writing to a string");
        if recovery.damaged_frames > 0 {
            write!(start, ", {} damaged frames", recovery.damaged_frames)
                .expect("writing to a string");
        }
        table.add_row([
            drive.path.clone(),
            state,
            drive.driver.clone(),
            short_size(drive.used_bytes),
            short_size(drive.usable_bytes),
            start,
            drive.driver_reason.clone(),
        ]);
    }
    writeln!(text, "{}", table.trim_fmt()).expect("writing to a string");
}

fn reactor_table(text: &mut String, status: &NodeStatus) {
    let names = ["reactor", "busy", "polls", "sleeps", "tasks", "depth", "completions", "by poll"];
    let mut table = plain_table(&names);
    for reactor in &status.reactors {
        table.add_row([
            reactor.id.to_string(),
            percent(reactor.busy_percent / 100.0),
            reactor.polls.to_string(),
            reactor.sleeps.to_string(),
            format!("{} of {}", reactor.tasks_live, reactor.tasks_spawned),
            reactor.depth.to_string(),
            reactor.completions_total.to_string(),
            format!("{:.3}", reactor.completions_per_poll),
        ]);
    }
    writeln!(text, "{}", table.trim_fmt()).expect("writing to a string");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_admin_port_is_the_next_one() {
        let table = [
            ("127.0.0.1:9900", Some("127.0.0.1:9901")),
            ("memkv.example:1", Some("memkv.example:2")),
            ("memkv.example", Some("memkv.example:9901")),
            ("[::1]:9900", Some("[::1]:9901")),
            ("[::1]", Some("[::1]:9901")),
            ("::1", Some("[::1]:9901")),
            ("a:65535", None),
            ("a:port", None),
        ];
        for (server, admin) in table {
            assert_eq!(admin_address(server).as_deref(), admin, "{server}");
        }
    }
}
