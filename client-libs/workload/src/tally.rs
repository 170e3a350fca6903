//! What went wrong and how often: the part that every report has in common.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::block::BlockHash;
use crate::store::{Failure, FailureKind};
use crate::values::{self, Mismatch};

/// Failed calls and wrong bytes.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Faults {
    /// Operations that failed, by kind.
    pub failures: BTreeMap<FailureKind, u64>,
    /// What the first failure said, causes included: one example tells more than a number.
    pub first_failure: Option<String>,
    /// Blocks that came back with other bytes than were stored. Never anything but 0.
    pub wrong_blocks: u64,
    /// How many bytes of those blocks were wrong.
    pub wrong_bytes: u64,
    /// The first of those blocks.
    pub first_wrong: Option<WrongBlock>,
}

/// Where wrong bytes were seen.
#[derive(Copy, Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct WrongBlock {
    /// The block that was asked for.
    pub block: BlockHash,
    /// Offset of the first wrong byte in it.
    pub first: u64,
}

impl Faults {
    /// Counts an operation that failed.
    pub fn failed(&mut self, failure: &Failure) {
        *self.failures.entry(failure.kind).or_default() += 1;
        if self.first_failure.is_none() {
            self.first_failure = Some(story(failure));
        }
    }

    /// Compares what came back as `block`, whole, with what must be stored; counts what is wrong.
    /// `length` is the length that the store gave the block.
    pub fn verify(&mut self, block: BlockHash, length: u64, bytes: &[u8]) {
        let mismatch = if length == bytes.len() as u64 {
            values::check(block, 0, bytes).err()
        } else {
            let at = length.min(bytes.len() as u64);
            Some(Mismatch { first: at, bytes: length.abs_diff(bytes.len() as u64) })
        };
        if let Some(mismatch) = mismatch {
            self.wrong_blocks += 1;
            self.wrong_bytes += mismatch.bytes;
            self.first_wrong.get_or_insert(WrongBlock { block, first: mismatch.first });
        }
    }

    /// Adds what another thread counted.
    pub fn merge(&mut self, other: Faults) {
        for (kind, count) in other.failures {
            *self.failures.entry(kind).or_default() += count;
        }
        self.first_failure = self.first_failure.take().or(other.first_failure);
        self.wrong_blocks += other.wrong_blocks;
        self.wrong_bytes += other.wrong_bytes;
        self.first_wrong = self.first_wrong.or(other.first_wrong);
    }

    /// All failed operations together.
    #[must_use]
    pub fn failed_operations(&self) -> u64 {
        self.failures.values().sum()
    }
}

/// An error and its causes in one line.
fn story(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line.push_str(": ");
        line.push_str(&error.to_string());
        cause = error.source();
    }
    line
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    fn failure(kind: FailureKind) -> Failure {
        Failure { kind, source: Box::new(io::Error::other("the cable is cut")) }
    }

    #[test]
    fn failures_are_counted_by_kind_and_the_first_is_told() {
        let mut faults = Faults::default();
        faults.failed(&failure(FailureKind::Unavailable));
        let mut others = Faults::default();
        others.failed(&failure(FailureKind::Busy));
        others.failed(&failure(FailureKind::Busy));
        faults.merge(others);
        assert_eq!(faults.failures[&FailureKind::Busy], 2);
        assert_eq!(faults.failed_operations(), 3);
        assert_eq!(faults.first_failure.as_deref(), Some("unavailable: the cable is cut"));
        let json = serde_json::to_value(&faults).unwrap();
        assert_eq!(json["failures"]["busy"], 2);
    }

    #[test]
    fn wrong_bytes_and_wrong_lengths_are_counted() {
        let block = BlockHash(5);
        let mut bytes = values::value(block, 1000);
        let mut faults = Faults::default();
        faults.verify(block, 1000, &bytes);
        assert_eq!(faults, Faults::default());
        bytes[7] ^= 1;
        bytes[900] ^= 1;
        faults.verify(block, 1000, &bytes);
        faults.verify(block, 900, &bytes);
        assert_eq!((faults.wrong_blocks, faults.wrong_bytes), (2, 102));
        assert_eq!(faults.first_wrong, Some(WrongBlock { block, first: 7 }));
    }
}
