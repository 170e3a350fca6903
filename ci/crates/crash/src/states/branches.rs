//! How often each row of the tables by which a start decides was met, and which rows no crash
//! reaches.

use std::collections::BTreeMap;

use memkv_journal::RecoveryReport;
use memkv_journal::recovery::decision::CASES;

/// What the store decides about what it found on its drives.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Join {
    /// A block of one extent.
    Single,
    /// A head and all its parts.
    Whole,
    /// A head without one of its parts.
    PartMissing,
    /// A part without its head.
    HeadMissing,
    /// Two blocks of one key.
    TwoOfOneKey,
    /// Two records that name one unit.
    SharedUnit,
}

const JOINS: [Join; 6] = [
    Join::Single,
    Join::Whole,
    Join::PartMissing,
    Join::HeadMissing,
    Join::TwoOfOneKey,
    Join::SharedUnit,
];

/// Rows that no crash reaches, and why. A drive that rots reaches them; the journal's own tests do
/// it by hand.
const BEYOND_CRASHES: [(char, &str); 4] = [
    // An incarnation writes its first frame after its superblock is durable by quorum.
    ('F', "no frame is older than the superblock of its start"),
    ('G', "no frame is older than the superblock of its start"),
    // A sector is written whole or not at all, and a frame's header begins its first sector.
    ('N', "a header lies in one sector, which is never torn"),
    ('O', "a header lies in one sector, which is never torn"),
];

/// Counts of rows.
#[derive(Clone, Default)]
pub struct Branches {
    rows: BTreeMap<char, u64>,
    joins: BTreeMap<Join, u64>,
}

impl Branches {
    /// One drive's walk over its log.
    pub fn walked(&mut self, report: &RecoveryReport) {
        for (label, count) in report.visits.iter() {
            *self.rows.entry(label).or_default() += u64::from(count);
        }
    }

    /// One decision of the store.
    pub fn joined(&mut self, join: Join) {
        *self.joins.entry(join).or_default() += 1;
    }

    /// Adds another's counts.
    pub fn merge(&mut self, other: &Branches) {
        for (label, count) in &other.rows {
            *self.rows.entry(*label).or_default() += count;
        }
        for (join, count) in &other.joins {
            *self.joins.entry(*join).or_default() += count;
        }
    }

    /// The table, line by line.
    pub fn lines(&self) -> Vec<String> {
        let row = |label| self.rows.get(&label).copied().unwrap_or(0);
        let mut lines: Vec<String> = CASES
            .iter()
            .map(|case| {
                let why = BEYOND_CRASHES.iter().find(|beyond| beyond.0 == case.label);
                let why = why.map_or(String::new(), |beyond| format!("  {}", beyond.1));
                let decision = format!("{:?}", case.decision);
                format!("{:>14} @{} {decision:<8}{why}", row(case.label), case.label)
            })
            .collect();
        for join in JOINS {
            lines.push(format!("{:>14} {join:?}", self.joins.get(&join).unwrap_or(&0)));
        }
        lines
    }

    /// Rows that a crash can reach and none did; and rows that none can reach and one did: then the
    /// reason given for them is wrong.
    pub fn wrong(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        for case in &CASES {
            let met = self.rows.get(&case.label).is_some_and(|count| *count > 0);
            let beyond = BEYOND_CRASHES.iter().any(|beyond| beyond.0 == case.label);
            if met == beyond {
                let what = if met { "was met, and no crash should reach it" } else { "never met" };
                wrong.push(format!("@{} {what}", case.label));
            }
        }
        let never = JOINS.iter().filter(|join| !self.joins.contains_key(join));
        wrong.extend(never.map(|join| format!("{join:?} never met")));
        wrong
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_that_was_never_met_is_named_and_so_is_one_that_cannot_be() {
        let mut branches = Branches::default();
        assert_eq!(branches.wrong().len(), CASES.len() - BEYOND_CRASHES.len() + JOINS.len());
        JOINS.iter().for_each(|join| branches.joined(*join));
        for case in &CASES {
            branches.rows.insert(case.label, 1);
        }
        assert_eq!(branches.wrong().len(), BEYOND_CRASHES.len());
        branches.rows.retain(|label, _| BEYOND_CRASHES.iter().all(|beyond| beyond.0 != *label));
        assert!(branches.wrong().is_empty());
    }
}
