//! How numbers and tables look on a terminal.

use comfy_table::{ContentArrangement, Table, presets};

/// A table with a head and no lines but the one under it.
pub fn plain_table(head: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(head.iter().copied());
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table
}

/// A share as a percentage with one decimal.
pub fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

/// Seconds in the unit that reads best.
pub fn seconds(seconds: f64) -> String {
    match seconds {
        s if s < 120.0 => format!("{s:.1} s"),
        s if s < 7200.0 => format!("{:.1} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.1} h", s / 3600.0),
        s => format!("{:.1} days", s / 86_400.0),
    }
}

/// Microseconds in the unit that reads best.
pub fn microseconds(us: f64) -> String {
    match us {
        us if us < 1e3 => format!("{us:.0} µs"),
        us if us < 1e6 => format!("{:.2} ms", us / 1e3),
        us => format!("{:.2} s", us / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(percent(0.1234), "12.3 %");
        assert_eq!(seconds(1.25), "1.2 s");
        assert_eq!(seconds(600.0), "10.0 min");
        assert_eq!(seconds(36_000.0), "10.0 h");
        assert_eq!(seconds(864_000.0), "10.0 days");
        assert_eq!(microseconds(12.4), "12 µs");
        assert_eq!(microseconds(1234.0), "1.23 ms");
        assert_eq!(microseconds(2.5e6), "2.50 s");
    }
}
