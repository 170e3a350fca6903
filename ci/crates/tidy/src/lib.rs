//! The house rules as code.
//!
//! What a reviewer should not have to look for is looked for here: which room may use which
//! ([`arrows`]), what every crate's manifest says ([`manifest`]), where `unsafe` may stand and that
//! each piece of it is argued, how long files and functions may be ([`rust`]), what no file may
//! contain ([`text`]), and that documents point at things that exist ([`docs`]). Each rule is a
//! function from sources to complaints, proved on planted violations beside it; `tests/house.rs`
//! runs them all on the repository.
//!
//! [`checks`] is the other half: the committed list of every check there is, and its comparison
//! with what a run really did, so that no check can silently stop running.

#![forbid(unsafe_code)]

pub mod arrows;
pub mod checks;
pub mod docs;
pub mod manifest;
pub mod rust;
pub mod source;
pub mod text;

use std::fmt;
use std::path::PathBuf;

/// A rule that is broken, and where.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Complaint {
    /// The file, relative to the root of the repository.
    pub path: PathBuf,
    /// The line, counted from 1; 0 means the file as a whole.
    pub line: usize,
    /// What is wrong, and what would be right.
    pub what: String,
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path.display(), self.line, self.what)
    }
}

/// Panics with all `complaints`, one a line, unless there are none.
///
/// # Panics
/// When there is a complaint.
pub fn assert_none(mut complaints: Vec<Complaint>) {
    complaints.sort();
    let lines: Vec<String> = complaints.iter().map(Complaint::to_string).collect();
    assert!(lines.is_empty(), "{} complaints:\n{}", lines.len(), lines.join("\n"));
}
