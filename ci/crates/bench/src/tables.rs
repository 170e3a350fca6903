//! The report as tables, for a terminal and for the document.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

use crate::bars::Bar;
use crate::exists::ExistsReport;
use crate::peers::Side;
use crate::report::{IDLE_BAR, Report, RowReport, SideReport, Spread, TOLERANCE, Verdict};

/// Cores that others may keep busy in a run that is called quiet.
const QUIET: f64 = 0.1;

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
    let mut parts = vec![head(report, style)];
    let mut scenes: Vec<_> = report.rows.iter().map(|row| row.scene.as_str()).collect();
    scenes.dedup();
    for scene in scenes {
        let rows: Vec<_> = report.rows.iter().filter(|row| row.scene == scene).collect();
        parts.push(format!("Values of {scene}:"));
        parts.push(costs(&rows, style).to_string());
    }
    for scene in &report.exists {
        parts.push(format!("{}:", scene.name));
        parts.push(answers(scene, style).to_string());
    }
    for load in &report.loads {
        for grid in &load.grids {
            parts.push(grid.caption.clone());
            parts.push(grid.table(style).to_string());
        }
        parts.extend(load.notes.iter().cloned());
    }
    if report.bars().next().is_some() {
        parts.push("Bars:".to_owned());
        parts.push(bars(report, style).to_string());
    }
    parts.extend(report.bars().filter_map(loudly_skipped));
    parts.push(foot(report));
    parts.join("\n\n") + "\n"
}

fn loudly_skipped(bar: &Bar) -> Option<String> {
    match &bar.verdict {
        Verdict::Skipped(reason) => Some(format!("SKIPPED: {}, {}: {reason}", bar.row, bar.what)),
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
        if let Some(again) = row.side(Side::Again) {
            let noise = ratio(again.cpu_ratio);
            lines.push(format!("Noise: plain TCP beside itself, {}: {noise}.", row.name));
        }
    }
    if let Some(load) = report.other_load {
        let loud = if load > QUIET { ": THIS RUN WAS NOT QUIET" } else { "" };
        lines.push(format!("Others kept {load:.2} cores busy meanwhile{loud}."));
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

/// The rows of one scene: each operation, and each side of it, limits first.
fn costs(rows: &[&RowReport], style: Style) -> Table {
    let head =
        ["", "side", "CPU s/GiB", "client + server", "beside plain TCP", "GiB/s", "p50 / p99 µs"];
    let mut table = table(style, &head);
    for row in rows {
        let operation = row.operation.name();
        let mut disk = row.disk;
        for SideReport { side, figures, cpu_ratio } in &row.sides {
            if !side.is_limit()
                && let Some(speed) = disk.take()
            {
                let [none, speed] = ["-".to_owned(), spread(speed, 2)];
                let name = "disk (fio)".to_owned();
                let cells = [name, none.clone(), none.clone(), none.clone(), speed, none];
                table.add_row(std::iter::once(operation.to_owned()).chain(cells));
            }
            table.add_row([
                operation.to_owned(),
                side.name().to_owned(),
                spread(figures.cpu_per_gib, 3),
                format!("{:.3} + {:.3}", figures.client_cpu_per_gib, figures.server_cpu_per_gib),
                ratio(*cpu_ratio),
                spread(figures.gib_per_second, 2),
                format!("{:.0} / {:.0}", figures.p50_us, figures.p99_us),
            ]);
        }
    }
    table
}

/// Questions whether a block is there, limits first.
fn answers(scene: &ExistsReport, style: Style) -> Table {
    let head = ["", "p50 µs", "p99 µs", "p50 beside plain TCP", "CPU µs"];
    let mut table = table(style, &head);
    for told in &scene.sides {
        let name = match told.side {
            Side::Plain => "plain TCP, ping of 64 bytes",
            side => side.name(),
        };
        table.add_row([
            name.to_owned(),
            spread(told.p50_us, 1),
            spread(told.p99_us, 1),
            ratio(told.p50_ratio),
            format!("{:.1}", told.cpu_us),
        ]);
    }
    table
}

fn bars(report: &Report, style: Style) -> Table {
    let mut table = table(style, &["row", "what", "found", "bar", "verdict"]);
    for bar in report.bars() {
        table.add_row([
            bar.row.clone(),
            bar.what.clone(),
            bar.found_words(),
            bar.words(),
            bar.verdict.word().to_owned(),
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
