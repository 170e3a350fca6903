//! The report as tables, for a terminal and for the document.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

use crate::measure::Operation;
use crate::report::{IDLE_BAR, Report, RowReport, Spread, TOLERANCE, Verdict};

/// Where tables are shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Style {
    /// On a terminal.
    Terminal,
    /// In a Markdown document.
    Markdown,
}

/// All tables, with the machine in front and the noise behind.
pub fn all(report: &Report, style: Style) -> String {
    let mut parts = vec![
        head(report, style),
        "CPU seconds per GiB, client and server together; memkv on a drive in memory, one \
         connection, one operation at a time:"
            .to_owned(),
        cpu(report, style).to_string(),
        "GiB per second, and microseconds of an operation, of the same rows:".to_owned(),
        speed(report, style).to_string(),
        "Values of 4 MiB on a drive in a file, four connections; GiB per second:".to_owned(),
        files(report, style).to_string(),
    ];
    parts.extend(report.rows.iter().filter_map(loudly_skipped));
    parts.push(foot(report));
    parts.join("\n\n") + "\n"
}

fn loudly_skipped(row: &RowReport) -> Option<String> {
    match &row.verdict {
        Some(Verdict::Skipped(reason)) => {
            let name = row.operation.name();
            Some(format!("SKIPPED: {name} to a file beside the disk's own speed: {reason}"))
        }
        _ => None,
    }
}

fn head(report: &Report, style: Style) -> String {
    let bullet = if style == Style::Markdown { "* " } else { "" };
    let cold = report.cold_bytes >> 20;
    let mut lines = vec![
        format!("{bullet}memkv {} on {}", report.version, report.machine),
        format!(
            "{bullet}medians of {} rounds (smallest–largest); {cold} MiB of cold buffers, {cold} \
             MiB stored of each size",
            report.rounds
        ),
    ];
    let told = report.circumstances.iter();
    lines.extend(told.map(|(name, value)| format!("{bullet}{name}: {value}")));
    lines.join("\n")
}

fn foot(report: &Report) -> String {
    let mut lines = Vec::new();
    for idle in &report.idle {
        let verdict = if idle.share < IDLE_BAR { "PASS" } else { "MISS" };
        let (share, bar) = (idle.share * 100.0, IDLE_BAR * 100.0);
        lines.push(format!(
            "Idle node ({}): {share:.2} % of a core, bar {bar:.0} %: {verdict}.",
            idle.node
        ));
    }
    for row in &report.rows {
        if let Some(noise) = row.noise {
            let name = row.operation.name();
            lines.push(format!("Noise: plain TCP beside itself, {name}: {}.", ratio(noise)));
        }
    }
    if let Some(load) = report.other_load {
        lines.push(format!("Others kept {load:.2} cores busy meanwhile."));
    }
    lines.push(format!(
        "A median within {:.0} % of its bar is a tie. Counters of index, leases and journal were \
         compared over {} operations.",
        TOLERANCE * 100.0,
        report.counted
    ));
    lines.extend(report.miscounts.iter().map(|miscount| format!("MISCOUNT: {miscount}.")));
    lines.join("\n\n")
}

fn cpu(report: &Report, style: Style) -> Table {
    let head =
        ["", "value", "plain TCP", "memkv", "client + server", "memkv / plain", "bar", "verdict"];
    let mut table = table(style, &head);
    for row in report.rows.iter().filter(|row| !row.file) {
        let memkv = &row.memkv;
        table.add_row([
            row.operation.name().to_owned(),
            size(row.value_bytes),
            spread(row.plain.cpu_per_gib, 3),
            spread(memkv.cpu_per_gib, 3),
            format!("{:.3} + {:.3}", memkv.client_cpu_per_gib, memkv.server_cpu_per_gib),
            ratio(row.cpu_ratio),
            row.bar.map_or(String::new(), |bar| format!("≤ {bar:.2}×")),
            row.verdict.as_ref().map_or(String::new(), |verdict| verdict.word().to_owned()),
        ]);
    }
    table
}

fn speed(report: &Report, style: Style) -> Table {
    let head = ["", "value", "plain TCP", "memkv", "plain p50 / p99", "memkv p50 / p99"];
    let mut table = table(style, &head);
    for row in report.rows.iter().filter(|row| !row.file) {
        let latency = |p50: f64, p99: f64| format!("{p50:.0} / {p99:.0} µs");
        table.add_row([
            row.operation.name().to_owned(),
            size(row.value_bytes),
            spread(row.plain.gib_per_second, 2),
            spread(row.memkv.gib_per_second, 2),
            latency(row.plain.p50_us, row.plain.p99_us),
            latency(row.memkv.p50_us, row.memkv.p99_us),
        ]);
    }
    table
}

fn files(report: &Report, style: Style) -> Table {
    let head =
        ["", "plain TCP", "disk (fio)", "memkv", "memkv / slower", "bar", "verdict", "CPU s/GiB"];
    let mut table = table(style, &head);
    for row in report.rows.iter().filter(|row| row.file) {
        let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        table.add_row([
            match row.operation {
                Operation::Put => "PUT, write".to_owned(),
                Operation::Get => "GET, read".to_owned(),
            },
            spread(row.plain.gib_per_second, 2),
            or_none(row.disk.map(|disk| spread(disk, 2))),
            spread(row.memkv.gib_per_second, 2),
            or_none(row.speed_ratio.map(ratio)),
            or_none(row.bar.map(|bar| format!("≥ {bar:.1}×"))),
            or_none(row.verdict.as_ref().map(|verdict| verdict.word().to_owned())),
            format!("{:.3}", row.memkv.cpu_per_gib.median),
        ]);
    }
    table
}

/// A table with this head; all columns but the first are numbers.
pub fn table(style: Style, head: &[&str]) -> Table {
    let mut table = Table::new();
    let preset = match style {
        Style::Terminal => presets::NOTHING,
        Style::Markdown => presets::ASCII_MARKDOWN,
    };
    table.load_style(preset).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(head.iter().copied());
    for (at, column) in table.column_iter_mut().enumerate() {
        if style == Style::Terminal {
            column.set_padding((0, 2));
        }
        if at > 0 {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// Bytes in words.
pub fn size(bytes: usize) -> String {
    match bytes >> 20 {
        0 => format!("{} KiB", bytes >> 10),
        mib => format!("{mib} MiB"),
    }
}

/// A median with its spread.
pub fn spread(spread: Spread, digits: usize) -> String {
    let Spread { median, min, max } = spread;
    format!("{median:.digits$} ({min:.digits$}–{max:.digits$})")
}

/// A ratio with its spread.
pub fn ratio(ratio: Spread) -> String {
    format!("{:.2}× ({:.2}–{:.2})", ratio.median, ratio.min, ratio.max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_show_their_spread() {
        let value = Spread { median: 1.2345, min: 1.0, max: 2.0 };
        assert_eq!(spread(value, 3), "1.234 (1.000–2.000)");
        assert_eq!(ratio(value), "1.23× (1.00–2.00)");
        assert_eq!([size(65_536), size(4 << 20)], ["64 KiB", "4 MiB"]);
    }

    #[test]
    fn a_table_for_the_document_is_markdown() {
        let mut table = table(Style::Markdown, &["a", "b"]);
        table.add_row(["1", "2"]);
        let text = table.to_string();
        assert!(text.lines().all(|line| line.starts_with('|') && line.ends_with('|')), "{text}");
        assert!(text.lines().nth(1).unwrap().contains("--"), "{text}");
    }
}
