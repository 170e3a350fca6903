//! What one part of the bench found: tables, what they were taken on, and the verdicts.

use comfy_table::Table;
use serde::Serialize;

use crate::machine;
use crate::report::{Check, Verdict};
use crate::tables::{Style, table};

/// A table.
#[derive(Clone, Debug, Serialize)]
pub struct Grid {
    /// What it shows, in one sentence.
    pub caption: String,
    /// Names of the columns.
    pub head: Vec<&'static str>,
    /// The rows, a cell for each column.
    pub rows: Vec<Vec<String>>,
}

impl Grid {
    /// An empty table.
    pub fn new(caption: &str, head: &[&'static str]) -> Grid {
        Grid { caption: caption.to_owned(), head: head.to_vec(), rows: Vec::new() }
    }

    /// As a terminal or a document shows it.
    pub fn table(&self, style: Style) -> Table {
        let mut rows = table(style, &self.head);
        for row in &self.rows {
            rows.add_row(row);
        }
        rows
    }
}

/// One part of the bench.
#[derive(Default, Serialize)]
pub struct Section {
    /// The machine, sizes, what else has to be known.
    pub circumstances: Vec<String>,
    /// The tables.
    pub grids: Vec<Grid>,
    /// What the tables do not say.
    pub notes: Vec<String>,
    /// The checks.
    pub checks: Vec<Check>,
}

impl Section {
    /// An empty one of this machine; `more` is what else has to be known.
    pub fn new(more: impl IntoIterator<Item = String>) -> Section {
        let machine = format!("memkv {} on {}", env!("CARGO_PKG_VERSION"), machine::line());
        let circumstances = std::iter::once(machine).chain(more).collect();
        Section { circumstances, ..Section::default() }
    }

    /// Notes what became of a bar, and returns it as a table shows it.
    pub fn judge(&mut self, name: String, verdict: &Verdict) -> String {
        self.checks.push(Check { name, outcome: verdict.outcome() });
        verdict.word().to_owned()
    }

    /// Says loudly that something could not be measured here.
    pub fn skip(&mut self, name: &str, reason: &str) {
        self.notes.push(format!("SKIPPED: {name}: {reason}"));
        self.judge(name.to_owned(), &Verdict::Skipped(reason.to_owned()));
    }

    /// All of it but the checks.
    pub fn text(&self, style: Style) -> String {
        let bullet = if style == Style::Markdown { "* " } else { "" };
        let lines: Vec<_> =
            self.circumstances.iter().map(|line| format!("{bullet}{line}")).collect();
        let mut parts = vec![lines.join("\n")];
        for grid in &self.grids {
            parts.push(grid.caption.clone());
            parts.push(grid.table(style).to_string());
        }
        parts.extend(self.notes.iter().cloned());
        parts.join("\n\n") + "\n"
    }

    /// Whether no check has failed.
    pub fn is_good(&self) -> bool {
        self.checks.iter().all(|check| check.outcome != "FAILED")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_shows_tables_notes_and_what_failed() {
        let mut section = Section::default();
        section.circumstances.push("a machine".to_owned());
        let mut grid = Grid::new("Speeds:", &["row", "value"]);
        grid.rows.push(vec!["write".to_owned(), "3".to_owned()]);
        section.grids.push(grid);
        assert!(section.is_good());
        section.skip("loop devices", "not root");
        assert!(section.is_good(), "what is skipped has not failed");
        section.judge("speed".to_owned(), &Verdict::Miss);
        assert!(!section.is_good());
        let text = section.text(Style::Markdown);
        let parts = ["* a machine", "Speeds:", "| write", "SKIPPED: loop devices: not root"];
        assert!(parts.iter().all(|part| text.contains(part)), "{text}");
    }
}
