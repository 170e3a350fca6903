//! `memkvctl bench`: each operation at each size, one after the other, as a table.

use crate::blocks::say;
use crate::cli::{BenchArgs, DepthBy, Global, Op};
use crate::connect::{client, wait_for_servers};
use crate::error::{CtlError, Exit, is_lost};
use crate::progress;
use crate::table::{microseconds, plain_table};
use memkv_admin_api::size::short_size;
use memkv_workload::bench::{BenchOptions, BenchReport, Depth, Operation, bench};
use serde_json::json;
use std::num::NonZeroUsize;

/// Runs every measurement and prints them together.
pub fn run(global: &Global, args: &BenchArgs) -> Result<Exit, CtlError> {
    let per_connection = match args.depth_by {
        DepthBy::Batch => 1,
        DepthBy::Threads => args.depth.get(),
    };
    let connections = args.connections.get().saturating_mul(per_connection);
    let (client, servers) = client(global, Some(connections))?;
    wait_for_servers(&client, &servers, args.wait)?;
    let spinner = progress::spinner();
    let mut reports = Vec::new();
    for size in &args.sizes {
        for op in &args.ops {
            let options = options(args, *op, *size);
            spinner.set_message(format!("{} {}", name(options.operation), size_text(*size)));
            reports.push(bench(&client, &options)?);
        }
    }
    spinner.finish_and_clear();
    if global.json {
        let version = memkv_admin_api::VERSION_TEXT;
        say(&json!({"version": version, "servers": servers, "results": reports}).to_string())?;
    } else {
        say(&render(&reports))?;
    }
    Ok(exit(&reports))
}

fn options(args: &BenchArgs, op: Op, size: NonZeroUsize) -> BenchOptions {
    BenchOptions {
        operation: match op {
            Op::Put => Operation::Put,
            Op::Get => Operation::Get,
            Op::Exists => Operation::Exists,
        },
        value_bytes: size,
        depth: match args.depth_by {
            DepthBy::Batch => Depth::Batch(args.depth),
            DepthBy::Threads => Depth::Threads(args.depth),
        },
        connections: args.connections,
        duration: args.seconds,
        stored_bytes: args.stored,
        memory_bytes: usize::try_from(args.memory).unwrap_or(usize::MAX),
        verify: args.verify,
        label: args.label.clone(),
    }
}

fn size_text(size: NonZeroUsize) -> String {
    short_size(size.get() as u64)
}

fn name(operation: Operation) -> &'static str {
    match operation {
        Operation::Put => "put",
        Operation::Get => "get",
        Operation::Exists => "exists",
    }
}

/// Wrong bytes and failures fail the bench; it is unreachable servers when nothing else happened.
fn exit(reports: &[BenchReport]) -> Exit {
    let faults = || reports.iter().map(|report| &report.faults);
    let lost = |faults: &memkv_workload::tally::Faults| faults.failures.keys().all(|k| is_lost(*k));
    if faults().all(|f| f.wrong_blocks == 0 && f.failures.is_empty()) {
        Exit::Done
    } else if reports.iter().all(|report| report.operations == 0) && faults().all(lost) {
        Exit::Unreachable
    } else {
        Exit::Failed
    }
}

fn render(reports: &[BenchReport]) -> String {
    let mut table = plain_table(&[
        "op",
        "size",
        "conns",
        "depth",
        "GiB/s",
        "op/s",
        "p50",
        "p99",
        "p99.9",
        "client CPU s/GiB",
        "server CPU s/GiB",
    ]);
    let cost = |cost: Option<f64>| cost.map_or("-".to_owned(), |cost| format!("{cost:.3}"));
    for report in reports {
        let moved = report.bytes > 0;
        let rate = if moved { format!("{:.3}", report.gib_per_second) } else { "-".to_owned() };
        table.add_row([
            name(report.operation).to_owned(),
            short_size(report.value_bytes as u64),
            report.connections.to_string(),
            report.depth.to_string(),
            rate,
            format!("{:.0}", report.operations_per_second),
            microseconds(report.latency.p50_us),
            microseconds(report.latency.p99_us),
            microseconds(report.latency.p999_us),
            cost(report.client_cpu_seconds_per_gib),
            cost(report.server_cpu_seconds_per_gib),
        ]);
    }
    let mut text = table.trim_fmt();
    for report in reports {
        let what = format!("{} {}", name(report.operation), short_size(report.value_bytes as u64));
        if report.misses > 0 {
            text += &format!("\n{what}: {} misses", report.misses);
        }
        text += &crate::faults::lines(&what, &report.faults);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use memkv_workload::latency::LatencySummary;
    use memkv_workload::store::FailureKind;
    use memkv_workload::tally::Faults;

    fn report(operations: u64, failures: &[(FailureKind, u64)]) -> BenchReport {
        BenchReport {
            operation: Operation::Get,
            value_bytes: 4 << 20,
            depth: 1,
            connections: 1,
            operations,
            misses: 2,
            bytes: operations << 22,
            seconds: 1.0,
            gib_per_second: 1.5,
            operations_per_second: 384.0,
            latency: LatencySummary { p50_us: 950.0, p99_us: 2500.0, ..LatencySummary::default() },
            client_cpu_seconds: 0.5,
            server_cpu_seconds: None,
            client_cpu_seconds_per_gib: Some(0.25),
            server_cpu_seconds_per_gib: None,
            faults: Faults { failures: failures.iter().copied().collect(), ..Faults::default() },
        }
    }

    #[test]
    fn the_table_shows_rates_and_faults() {
        let text = render(&[report(384, &[(FailureKind::Busy, 3)])]);
        for part in
            ["4 MiB", "1.500", "950 µs", "2.50 ms", "0.250", "get 4 MiB: 2 misses", "3 busy"]
        {
            assert!(text.contains(part), "{part} is missing from\n{text}");
        }
    }

    #[test]
    fn exit_codes_tell_failure_from_absence() {
        assert_eq!(exit(&[report(1, &[])]), Exit::Done);
        assert_eq!(exit(&[report(1, &[(FailureKind::Busy, 1)])]), Exit::Failed);
        assert_eq!(exit(&[report(0, &[(FailureKind::Unavailable, 9)])]), Exit::Unreachable);
        assert_eq!(exit(&[report(5, &[(FailureKind::Unavailable, 9)])]), Exit::Failed);
        let mut wrong = report(1, &[]);
        wrong.faults.wrong_blocks = 1;
        assert_eq!(exit(&[wrong]), Exit::Failed);
    }
}
