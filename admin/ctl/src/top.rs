//! `memkvctl top`: what servers do now, from two answers of their admin endpoints after each other.
//!
//! On a terminal the screen is drawn anew each time, and `q` ends it; elsewhere one text, or one line of
//! JSON, follows the other. A server that does not answer is told of in its place and asked again.

use crate::blocks::say;
use crate::cli::{Global, TopArgs};
use crate::connect;
use crate::error::{CtlError, Exit};
use crate::status::{self, ServerReport};
use crate::table::{percent, plain_table, seconds};
use console::{Key, Term, truncate_str};
use memkv_admin_api::size::short_size;
use memkv_admin_api::{DriveState, DriveStatus, HealthStatus, NodeStatus, ReactorStatus};
use serde::Serialize;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write as _};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

/// To the upper left corner; and what is drawn over: the rest of a line, the rest of the screen.
const HOME: &str = "\x1b[H";
const REST_OF_LINE: &str = "\x1b[K";
const REST_OF_SCREEN: &str = "\x1b[J";

/// What one server does. Rates are per second, between this answer and the one before it.
#[derive(Clone, Debug, Serialize)]
struct ServerFrame {
    server: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    health: Option<HealthStatus>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    node: Option<NodeFrame>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

#[derive(Clone, Debug, Serialize)]
struct NodeFrame {
    uptime_seconds: f64,
    /// Of which rates are the average.
    seconds: f64,
    connections: u64,
    cores: f64,
    #[serde(rename = "requests_per_second")]
    requests: f64,
    #[serde(rename = "reads_per_second")]
    reads: f64,
    #[serde(rename = "read_bytes_per_second")]
    read_bytes: f64,
    #[serde(rename = "writes_per_second")]
    writes: f64,
    #[serde(rename = "write_bytes_per_second")]
    write_bytes: f64,
    #[serde(rename = "evictions_per_second")]
    evictions: f64,
    #[serde(rename = "refused_busy_per_second")]
    refused_busy: f64,
    blocks: u64,
    used_bytes: u64,
    usable_bytes: u64,
    pool_used_bytes: u64,
    pool_bytes: u64,
    reactors: Vec<ReactorFrame>,
    drives: Vec<DriveFrame>,
}

#[derive(Clone, Debug, Serialize)]
struct ReactorFrame {
    id: u16,
    cpu: Option<u32>,
    numa_node: Option<u32>,
    busy_percent: f64,
    #[serde(rename = "polls_per_second")]
    polls: f64,
    #[serde(rename = "sleeps_per_second")]
    sleeps: f64,
    #[serde(rename = "completions_per_second")]
    completions: f64,
    completions_per_poll: f64,
    depth: u64,
    tasks: u64,
}

#[derive(Clone, Debug, Serialize)]
struct DriveFrame {
    path: String,
    state: DriveState,
    driver: String,
    numa_node: Option<u32>,
    #[serde(rename = "reads_per_second")]
    reads: f64,
    #[serde(rename = "read_bytes_per_second")]
    read_bytes: f64,
    #[serde(rename = "writes_per_second")]
    writes: f64,
    #[serde(rename = "written_bytes_per_second")]
    written_bytes: f64,
    depth: u64,
    used_bytes: u64,
    usable_bytes: u64,
    temperature_celsius: Option<i16>,
}

/// Shows frames until somebody has seen enough.
pub fn run(global: &Global, args: &TopArgs) -> Result<Exit, CtlError> {
    let servers = match global.server.as_slice() {
        [] => connect::server_names(&connect::own_config(global, None)?),
        named => named.to_vec(),
    };
    let screen = Term::stdout();
    let live =
        !global.json && args.count.is_none() && screen.is_term() && io::stdin().is_terminal();
    if live {
        return watch(&servers, args, &screen);
    }
    let mut left = args.count.map(|count| count.get());
    let (mut before, _) = status::ask_all(&servers, args.timeout);
    loop {
        thread::sleep(args.interval);
        let (now, first) = status::ask_all(&servers, args.timeout);
        let frames = frames(&now, &before);
        match global.json {
            true => say(&serde_json::json!(frames).to_string())?,
            false => say(&render(&frames))?,
        }
        before = now;
        left = left.map(|left| left - 1);
        if left == Some(0) {
            return first.map_or(Ok(Exit::Done), Err);
        }
    }
}

/// The same on a terminal.
fn watch(servers: &[String], args: &TopArgs, screen: &Term) -> Result<Exit, CtlError> {
    let keys = Keys::listen();
    screen.clear_screen().map_err(CtlError::Output)?;
    let mut before = Vec::new();
    loop {
        let (now, _) = status::ask_all(servers, args.timeout);
        draw(screen, &render(&frames(&now, &before)), args.interval)?;
        before = now;
        if keys.end_within(args.interval) {
            screen.write_line("").map_err(CtlError::Output)?;
            return Ok(Exit::Done);
        }
    }
}

/// As much of a text as the screen has room for at this moment, over what was there.
fn draw(screen: &Term, text: &str, interval: Duration) -> Result<(), CtlError> {
    let (rows, columns) = screen.size();
    let mut out = HOME.to_owned();
    let room = usize::from(rows).saturating_sub(2);
    for line in text.lines().take(room) {
        out += &truncate_str(line, usize::from(columns), "…");
        out += REST_OF_LINE;
        out.push('\n');
    }
    let hint = format!("every {}; q ends, any other key asks now", seconds(interval.as_secs_f64()));
    out += &truncate_str(&hint, usize::from(columns), "…");
    out += REST_OF_LINE;
    out += REST_OF_SCREEN;
    let mut screen = screen;
    screen.write_all(out.as_bytes()).and_then(|()| screen.flush()).map_err(CtlError::Output)
}

/// Keys, read by a thread of their own: one at a time, when it is asked for, so that the terminal is as it
/// was once the last one has come.
struct Keys {
    pressed: Receiver<Option<Key>>,
    next: Sender<()>,
}

impl Keys {
    fn listen() -> Keys {
        let ((press, pressed), (next, asked)) = (channel(), channel());
        thread::spawn(move || {
            let terminal = Term::stdout();
            while asked.recv().is_ok() {
                // A terminal that cannot be read any more ends the program, too.
                if press.send(terminal.read_key_raw().ok()).is_err() {
                    return;
                }
            }
        });
        let keys = Keys { pressed, next };
        keys.ask();
        keys
    }

    /// Once the thread is gone the channel of keys tells.
    fn ask(&self) {
        let _ = self.next.send(());
    }

    /// Waits for a key, or for so long. Whether it is one that ends the program.
    fn end_within(&self, time: Duration) -> bool {
        let until = Instant::now() + time;
        match self.pressed.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Err(RecvTimeoutError::Timeout) => false,
            Err(RecvTimeoutError::Disconnected) | Ok(None) => true,
            Ok(Some(Key::Char('q' | 'Q') | Key::Escape | Key::CtrlC)) => true,
            Ok(Some(_)) => {
                self.ask();
                false
            }
        }
    }
}

/// What each server does, since it was asked before where it was; else since its start.
fn frames(now: &[ServerReport], before: &[ServerReport]) -> Vec<ServerFrame> {
    let of = |report: &ServerReport| {
        let before = before.iter().find(|before| before.server == report.server);
        let before = before.and_then(|before| before.status.as_ref());
        ServerFrame {
            server: report.server.clone(),
            health: report.health.as_ref().map(|health| health.status),
            node: report.status.as_ref().map(|status| node_frame(status, before)),
            error: report.error.clone(),
        }
    };
    now.iter().map(of).collect()
}

fn node_frame(now: &NodeStatus, before: Option<&NodeStatus>) -> NodeFrame {
    // A node that was started anew counts from nothing.
    let before = before.filter(|before| {
        before.incarnation == now.incarnation && before.uptime_seconds < now.uptime_seconds
    });
    let seconds = now.uptime_seconds - before.map_or(0.0, |before| before.uptime_seconds);
    let rate = Rate { seconds: seconds.max(1e-3) };
    let counter = |name: &str| {
        let of = |status: &NodeStatus| status.counters.get(name).copied().unwrap_or(0);
        rate.of(of(now), before.map_or(0, of))
    };
    let cpu = now.process.cpu_seconds - before.map_or(0.0, |before| before.process.cpu_seconds);
    NodeFrame {
        uptime_seconds: now.uptime_seconds,
        seconds,
        connections: now.connections.open,
        cores: cpu / rate.seconds,
        requests: counter("memkv_requests_total"),
        reads: counter("memkv_read_total"),
        read_bytes: counter("memkv_read_bytes_total"),
        writes: counter("memkv_write_total"),
        write_bytes: counter("memkv_write_bytes_total"),
        evictions: counter("memkv_evictions_total"),
        refused_busy: counter("memkv_busy_total") + counter("memkv_put_off_total"),
        blocks: now.storage.blocks_total,
        used_bytes: now.storage.used_bytes_total,
        usable_bytes: now.storage.usable_bytes_total,
        pool_used_bytes: now.memory.used_bytes.values().sum(),
        pool_bytes: now.memory.pool_bytes,
        reactors: each(
            &now.reactors,
            before.map(|b| &*b.reactors),
            |r| r.id,
            |now, before| reactor_frame(now, before, &rate),
        ),
        drives: each(
            &now.drives,
            before.map(|b| &*b.drives),
            |d| &d.uuid,
            |now, before| drive_frame(now, before, &rate),
        ),
    }
}

/// A frame of each, from what it is now and what it was before, which `id` tells from the others.
fn each<'a, T, I: PartialEq, F>(
    now: &'a [T],
    before: Option<&'a [T]>,
    id: impl Fn(&'a T) -> I,
    frame: impl Fn(&'a T, Option<&'a T>) -> F,
) -> Vec<F> {
    let before = before.unwrap_or_default();
    let was = |now| before.iter().find(|other| id(other) == id(now));
    now.iter().map(|now| frame(now, was(now))).collect()
}

/// Counters become rates.
struct Rate {
    seconds: f64,
}

impl Rate {
    fn of(&self, now: u64, before: u64) -> f64 {
        now.saturating_sub(before) as f64 / self.seconds
    }
}

fn reactor_frame(now: &ReactorStatus, before: Option<&ReactorStatus>, rate: &Rate) -> ReactorFrame {
    let none = ReactorStatus::default();
    let before = before.unwrap_or(&none);
    let busy = now.busy_seconds - before.busy_seconds;
    let idle = now.idle_seconds - before.idle_seconds;
    let polls = now.polls.saturating_sub(before.polls);
    let completions = now.completions_total.saturating_sub(before.completions_total);
    ReactorFrame {
        id: now.id,
        cpu: now.cpu,
        numa_node: now.numa_node,
        busy_percent: if busy + idle > 0.0 { 100.0 * busy / (busy + idle) } else { 0.0 },
        polls: rate.of(now.polls, before.polls),
        sleeps: rate.of(now.sleeps, before.sleeps),
        completions: rate.of(now.completions_total, before.completions_total),
        completions_per_poll: completions as f64 / polls.max(1) as f64,
        depth: now.depth,
        tasks: now.tasks_live,
    }
}

fn drive_frame(now: &DriveStatus, before: Option<&DriveStatus>, rate: &Rate) -> DriveFrame {
    let none = Default::default();
    let (io, old) = (&now.io, before.map_or(&none, |before| &before.io));
    let smart = now.nvme.as_ref().and_then(|nvme| nvme.smart.as_ref());
    DriveFrame {
        path: now.path.clone(),
        state: now.state,
        driver: now.driver.clone(),
        numa_node: now.numa_node,
        reads: rate.of(io.reads_total, old.reads_total),
        read_bytes: rate.of(io.read_bytes_total, old.read_bytes_total),
        writes: rate.of(io.writes_total, old.writes_total),
        written_bytes: rate.of(io.written_bytes_total, old.written_bytes_total),
        depth: io.depth,
        used_bytes: now.used_bytes,
        usable_bytes: now.usable_bytes,
        temperature_celsius: smart.and_then(|smart| smart.temperature_celsius),
    }
}

/// Frames as text for people.
fn render(frames: &[ServerFrame]) -> String {
    let mut text = String::new();
    for frame in frames {
        let health = match frame.health {
            Some(HealthStatus::Healthy) => "healthy",
            Some(HealthStatus::Degraded) => "DEGRADED",
            Some(HealthStatus::Unhealthy) => "UNHEALTHY",
            None => "no answer",
        };
        match &frame.node {
            Some(node) => render_node(&mut text, &frame.server, health, node),
            None => {
                let error = frame.error.as_deref().unwrap_or(health);
                put_line(&mut text, &format!("{}  {error}", frame.server));
            }
        }
        text.push('\n');
    }
    text
}

fn put_line(text: &mut String, line: &str) {
    writeln!(text, "{line}").expect("writing to a string");
}

fn render_node(text: &mut String, server: &str, health: &str, node: &NodeFrame) {
    let up = seconds(node.uptime_seconds);
    let load = format!("{} connections, {:.2} cores", node.connections, node.cores);
    put_line(text, &format!("{server}  {health}, up {up}, {load}"));
    let gets = format!("gets {}/s, {}", count(node.reads), bytes(node.read_bytes));
    let puts = format!("puts {}/s, {}", count(node.writes), bytes(node.write_bytes));
    let rest = format!("evicted {}/s, busy {}/s", count(node.evictions), count(node.refused_busy));
    put_line(text, &format!("requests {}/s; {gets}; {puts}; {rest}", count(node.requests)));
    let share = percent(node.used_bytes as f64 / node.usable_bytes.max(1) as f64);
    let (used, usable) = (short_size(node.used_bytes), short_size(node.usable_bytes));
    let (pool_used, pool) = (short_size(node.pool_used_bytes), short_size(node.pool_bytes));
    let pool = format!("pool {pool_used} of {pool} in use");
    put_line(text, &format!("{} blocks in {used} of {usable} ({share}); {pool}", node.blocks));
    let seat = |number: Option<u32>| number.map_or("-".to_owned(), |number| number.to_string());
    let names =
        ["reactor", "cpu", "node", "busy", "polls/s", "sleeps/s", "done/s", "by poll", "depth"];
    let mut table = plain_table(&[&names[..], &["tasks"]].concat());
    for reactor in &node.reactors {
        table.add_row([
            reactor.id.to_string(),
            seat(reactor.cpu),
            seat(reactor.numa_node),
            percent(reactor.busy_percent / 100.0),
            count(reactor.polls),
            count(reactor.sleeps),
            count(reactor.completions),
            format!("{:.3}", reactor.completions_per_poll),
            reactor.depth.to_string(),
            reactor.tasks.to_string(),
        ]);
    }
    put_line(text, &table.trim_fmt());
    let names = ["drive", "state", "driver", "node", "reads/s", "read", "writes/s", "written"];
    let mut table = plain_table(&[&names[..], &["depth", "used", "°C"]].concat());
    for drive in &node.drives {
        let state = if drive.state == DriveState::Online { "online" } else { "OFFLINE" };
        let share = drive.used_bytes as f64 / drive.usable_bytes.max(1) as f64;
        table.add_row([
            drive.path.clone(),
            state.to_owned(),
            drive.driver.clone(),
            seat(drive.numa_node),
            count(drive.reads),
            bytes(drive.read_bytes),
            count(drive.writes),
            bytes(drive.written_bytes),
            drive.depth.to_string(),
            percent(share),
            drive.temperature_celsius.map_or("-".to_owned(), |degrees| degrees.to_string()),
        ]);
    }
    put_line(text, &table.trim_fmt());
}

/// How many, in at most five characters.
fn count(rate: f64) -> String {
    match rate {
        r if r < 9.95 => format!("{r:.1}"),
        r if r < 9_999.5 => format!("{r:.0}"),
        r if r < 999_500.0 => format!("{:.0}k", r / 1e3),
        r => format!("{:.1}M", r / 1e6),
    }
}

fn bytes(rate: f64) -> String {
    format!("{}/s", short_size(rate as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(uptime: f64, reads: u64, busy: f64, written: u64) -> ServerReport {
        let status = serde_json::json!({
            "version": memkv_admin_api::version(),
            "uptime_seconds": uptime, "node_uuid": "u", "incarnation": 3,
            "address": "127.0.0.1:9900", "storage_mode": "direct", "durability": "power",
            "memory": {"pool_bytes": 1u64 << 30, "block_bytes": 4 << 20,
                "used_bytes": {"receive": 8 << 20, "send": 4 << 20}, "waits_total": 0,
                "backing": "hugepages_2m", "backing_reason": null},
            "storage": {"raw_bytes_total": 0, "usable_bytes_total": 1000, "used_bytes_total": 250,
                "blocks_total": 7},
            "drives": [{"path": "0000:01:00.0", "driver": "nvme", "driver_reason": "",
                "uuid": "d", "state": "online", "offline_reason": null, "raw_bytes": 1000,
                "usable_bytes": 1000, "used_bytes": 250,
                "recovery": {"clean": true, "blocks": 0, "frames": 0, "records": 0,
                    "damaged_frames": 0, "torn_tail": false, "milliseconds": 0},
                "io": {"reads_total": 10, "read_bytes_total": 0, "writes_total": 5,
                    "written_bytes_total": written, "flushes_total": 0, "submitted_total": 0,
                    "enters_total": 0, "transfers_total": 0, "fixed_transfers_total": 0,
                    "depth": 4, "depth_high": 9, "dry_total": 0, "starved_us_total": 0},
                "nvme": {"model": "m", "serial": "s", "firmware": "f", "queues": 8,
                    "resets_total": 0, "aborts_total": 0, "retries_total": 0,
                    "spurious_total": 0, "smart": {"critical_warning": 0,
                        "temperature_celsius": 41, "spare_percent": 100, "used_percent": 1,
                        "media_errors_total": 0, "power_on_hours": 5,
                        "unsafe_shutdowns_total": 0}}}],
            "reactors": [{"id": 0, "busy_percent": 50.0, "polls": reads * 10, "sleeps": 0,
                "tasks_live": 2, "tasks_spawned": 9, "busy_seconds": busy,
                "idle_seconds": uptime - busy, "cpu": 1, "depth": 4,
                "completions_total": reads}],
            "connections": {"open": 2, "max": 10, "accepted_total": 2, "refused_total": 0},
            "eviction": {"enabled": true, "policy": "chain", "high_percent": 90,
                "low_percent": 80},
            "counters": {"memkv_read_total": reads, "memkv_read_bytes_total": reads << 20},
            "process": {"pid": 1, "cpu_seconds": busy, "resident_bytes": 0}
        });
        ServerReport {
            server: "127.0.0.1:9900".to_owned(),
            health: None,
            status: Some(serde_json::from_value(status).expect("the body of a status")),
            error: None,
        }
    }

    #[test]
    fn rates_are_those_between_two_answers() {
        let (old, new) = (report(10.0, 1000, 4.0, 0), report(12.0, 1500, 5.5, 8 << 20));
        let [frame] = &frames(&[new], &[old])[..] else { panic!("one server") };
        let node = frame.node.as_ref().expect("it answered");
        assert_eq!((node.seconds, node.reads, node.read_bytes), (2.0, 250.0, 262_144_000.0));
        let (reactor, drive) = (&node.reactors[0], &node.drives[0]);
        assert_eq!((reactor.busy_percent, reactor.completions), (75.0, 250.0));
        assert_eq!((reactor.polls, reactor.completions_per_poll), (2500.0, 0.1));
        assert_eq!((drive.written_bytes, drive.writes), (4_194_304.0, 0.0));
        assert_eq!(drive.temperature_celsius, Some(41));
    }

    #[test]
    fn a_node_that_was_started_anew_counts_from_nothing() {
        let (old, new) = (report(100.0, 5000, 4.0, 0), report(2.0, 50, 1.0, 0));
        let [frame] = &frames(&[new], &[old])[..] else { panic!("one server") };
        let node = frame.node.as_ref().expect("it answered");
        assert_eq!((node.seconds, node.reads), (2.0, 25.0));
    }

    #[test]
    fn a_frame_shows_node_reactors_and_drives() {
        let (old, new) = (report(10.0, 1000, 4.0, 0), report(12.0, 1500, 5.5, 8 << 20));
        let silent = ServerReport {
            server: "10.0.0.9:9900".to_owned(),
            health: None,
            status: None,
            error: Some("cannot connect".to_owned()),
        };
        let text = render(&frames(&[new, silent], &[old]));
        for part in [
            "up 12.0 s, 2 connections, 0.75 cores",
            "gets 250/s, 250 MiB/s",
            "7 blocks in 250 B of 1000 B (25.0 %); pool 12 MiB of 1 GiB in use",
            "75.0 %",
            "0000:01:00.0  online  nvme",
            "4 MiB/s",
            "41",
            "10.0.0.9:9900  cannot connect",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }

    #[test]
    fn counts_are_short() {
        let table = [(0.0, "0.0"), (9.94, "9.9"), (12.3, "12"), (9_999.0, "9999")];
        let table = table.into_iter().chain([(12_345.0, "12k"), (2_500_000.0, "2.5M")]);
        table.for_each(|(rate, text)| assert_eq!(count(rate), text));
    }
}
