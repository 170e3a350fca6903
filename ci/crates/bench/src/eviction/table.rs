//! The comparison as a table, for a terminal and for the document.

use memkv_store::Policy;

use super::{Comparison, SHARES};
use crate::tables::{Style, table};

/// The table, and below it what a running node did.
pub fn all(comparison: &Comparison, style: Style) -> String {
    let names = Policy::ALL.map(|policy| policy.build().name());
    let head = [&["workload", "references", "distinct", "room"], &names[..], &["optimum"]].concat();
    let mut rows = table(style, &head);
    for row in &comparison.rows {
        for (at, share) in SHARES.iter().enumerate() {
            let first = at == 0;
            let told = |number: u64| if first { number.to_string() } else { String::new() };
            let mut cells = vec![
                if first { row.workload.clone() } else { String::new() },
                told(row.references),
                told(row.distinct),
                format!("{share} %"),
            ];
            cells.extend(row.policies.iter().map(|(_, ratios)| format!("{:.3}", ratios[at])));
            cells.push(format!("{:.3}", row.optimum[at]));
            rows.add_row(cells);
        }
    }
    let nodes = comparison.running.iter().map(|running| {
        let share = running.share.map(|share| format!(" ({share} %)")).unwrap_or_default();
        format!(
            "A running node that keeps {} blocks{share}, {}, policy {}: {:.4}; the model says \
             {:.4}.",
            running.blocks, running.workload, running.policy, running.node, running.model
        )
    });
    let mut parts = vec![rows.to_string()];
    parts.extend(nodes);
    parts.join("\n\n") + "\n"
}
