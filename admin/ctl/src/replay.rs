//! `memkvctl replay`: a serving cluster's trace against real servers.

use crate::blocks::say;
use crate::cli::{Global, ReplayArgs};
use crate::connect::{client, wait_for_servers};
use crate::error::{CtlError, Exit, is_lost};
use crate::faults;
use crate::progress;
use crate::table::{microseconds, percent, plain_table, seconds};
use memkv_admin_api::size::short_size;
use memkv_workload::replay::{ReplayOptions, ReplayReport, replay};
use memkv_workload::trace::{TraceError, TraceReader};
use serde_json::json;
use std::path::Path;
use std::time::Duration;

/// Replays a trace and prints what came of it.
pub fn run(global: &Global, args: &ReplayArgs) -> Result<Exit, CtlError> {
    let connections = args.connections.get();
    let (client, servers) = client(global, Some(connections))?;
    let options = ReplayOptions {
        block_bytes: args.block_bytes.get(),
        label: args.label.clone(),
        connections,
        speed: args.speed,
        until: args.until,
        wall: args.wall,
        verify: args.verify,
        ..ReplayOptions::default()
    };
    // Reading ahead finds a bad line before anything is stored, and the bar gets its length.
    let total = count(&args.trace, args.until)?;
    wait_for_servers(&client, &servers, args.wait)?;
    let bar = progress::bar(total);
    let trace = TraceReader::open(&args.trace)?;
    let mut show = |report: &ReplayReport| {
        bar.set_position(report.requests);
        bar.set_message(message(report));
    };
    let report = replay(&client, trace, &options, &mut show)?;
    bar.finish_and_clear();
    if global.json {
        let trace = args.trace.display().to_string();
        let block_bytes = args.block_bytes.get();
        let all = json!({"version": memkv_admin_api::VERSION_TEXT, "servers": servers,
                         "trace": trace, "block_bytes": block_bytes, "requests_in_trace": total,
                         "report": report});
        say(&all.to_string())?;
    } else {
        say(&render(&report, total))?;
    }
    Ok(exit(&report))
}

/// Requests of the trace up to a time in it.
fn count(trace: &Path, until: Option<Duration>) -> Result<u64, TraceError> {
    let mut total = 0;
    for request in TraceReader::open(trace)? {
        if until.is_some_and(|until| request.as_ref().is_ok_and(|r| r.at > until)) {
            break;
        }
        request?;
        total += 1;
    }
    Ok(total)
}

fn message(report: &ReplayReport) -> String {
    format!(
        "{} hits, {} in, {} out",
        percent(report.hit_ratio),
        short_size(report.bytes_in),
        short_size(report.bytes_out)
    )
}

/// Wrong bytes and failures fail the replay; it is unreachable servers when nothing else happened.
fn exit(report: &ReplayReport) -> Exit {
    let faults = &report.faults;
    if faults.wrong_blocks == 0 && faults.failures.is_empty() {
        Exit::Done
    } else if report.bytes_in + report.bytes_out == 0 && faults.failures.keys().all(|k| is_lost(*k))
    {
        Exit::Unreachable
    } else {
        Exit::Failed
    }
}

fn render(report: &ReplayReport, total: u64) -> String {
    let rate = |bytes: u64| bytes as f64 / report.wall_seconds.max(1e-9) / f64::from(1 << 30);
    let mut text = format!(
        "requests     {} of {total}, {} of the trace in {}\n",
        report.requests,
        seconds(report.trace_seconds),
        seconds(report.wall_seconds)
    );
    text += &format!(
        "prefix hits  {} of {} blocks ({})\n",
        report.prefix_hits,
        report.references,
        percent(report.hit_ratio)
    );
    let (put, got) = (report.bytes_in, report.bytes_out);
    text += &format!(
        "stored       {} blocks, {} ({:.3} GiB/s); {} were there\n",
        report.stored_blocks,
        short_size(put),
        rate(put),
        report.present_blocks
    );
    text += &format!(
        "fetched      {} blocks, {} ({:.3} GiB/s){}\n",
        report.fetched_blocks,
        short_size(got),
        rate(got),
        if report.verified { ", every byte checked" } else { "" }
    );
    if report.behind_seconds_max > 0.05 {
        text += &format!("behind       {} at worst\n", seconds(report.behind_seconds_max));
    }
    for (reason, count) in &report.late_misses {
        text += &format!("gone         {count} blocks between match and get: {reason}\n");
    }
    let mut table = plain_table(&["wait", "calls", "mean", "p50", "p99", "p99.9", "max"]);
    for (name, latency) in [
        ("match a prefix", &report.match_latency),
        ("get a batch", &report.get_latency),
        ("put a batch", &report.put_latency),
        ("whole request", &report.request_latency),
    ] {
        table.add_row([
            name.to_owned(),
            latency.count.to_string(),
            microseconds(latency.mean_us),
            microseconds(latency.p50_us),
            microseconds(latency.p99_us),
            microseconds(latency.p999_us),
            microseconds(latency.max_us),
        ]);
    }
    text += &table.trim_fmt();
    text += &faults::lines("replay", &report.faults);
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use memkv_workload::store::FailureKind;

    fn report() -> ReplayReport {
        ReplayReport {
            requests: 7,
            references: 100,
            prefix_hits: 40,
            hit_ratio: 0.4,
            fetched_blocks: 40,
            stored_blocks: 60,
            bytes_in: 60 << 16,
            bytes_out: 40 << 16,
            verified: true,
            trace_seconds: 600.0,
            wall_seconds: 2.0,
            late_misses: [("evicted".to_owned(), 3)].into(),
            ..ReplayReport::default()
        }
    }

    #[test]
    fn the_summary_tells_hits_bytes_and_latencies() {
        let text = render(&report(), 9);
        for part in [
            "7 of 9",
            "40 of 100 blocks (40.0 %)",
            "60 blocks, 3.75 MiB",
            "every byte checked",
            "3 blocks between match and get: evicted",
            "whole request",
        ] {
            assert!(text.contains(part), "{part} is missing from\n{text}");
        }
    }

    #[test]
    fn exit_codes_tell_failure_from_absence() {
        assert_eq!(exit(&report()), Exit::Done);
        let mut failed = report();
        failed.faults.failures.insert(FailureKind::Unavailable, 1);
        assert_eq!(exit(&failed), Exit::Failed);
        (failed.bytes_in, failed.bytes_out) = (0, 0);
        assert_eq!(exit(&failed), Exit::Unreachable);
    }

    #[test]
    fn requests_are_counted_up_to_a_time_and_bad_lines_found() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("trace");
        let line = |ms| {
            format!(
                r#"{{"timestamp": {ms}, "input_length": 1, "output_length": 1, "hash_ids": []}}"#
            )
        };
        let good = [line(0), line(1000), line(2000)].join("\n");
        std::fs::write(&path, &good).expect("room for a trace");
        assert_eq!(count(&path, None).expect("a good trace"), 3);
        assert_eq!(count(&path, Some(Duration::from_secs(1))).expect("a good trace"), 2);
        std::fs::write(&path, good + "\nnot json").expect("room for a trace");
        assert!(matches!(count(&path, None), Err(TraceError::Parse { line: 4, .. })));
        assert_eq!(count(&path, Some(Duration::ZERO)).expect("not read that far"), 1);
    }
}
