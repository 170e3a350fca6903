//! The document that shows the last results: everything between two marks is replaced.

use std::fs;
use std::path::Path;

use crate::error::{BenchError, doing};

/// The lines before and behind a place for tables.
pub struct Marks(&'static str, &'static str);

/// The place of a run beside the other sides.
pub const RUN: Marks = Marks("<!-- tables begin -->", "<!-- tables end -->");
/// The place of the comparison of eviction policies.
pub const EVICTION: Marks = Marks("<!-- eviction begin -->", "<!-- eviction end -->");

/// The place of drives beside fio.
pub const DIRECT: Marks = Marks("<!-- direct begin -->", "<!-- direct end -->");
/// The place of the journal.
pub const JOURNAL: Marks = Marks("<!-- journal begin -->", "<!-- journal end -->");
/// The place of what space costs.
pub const SPACE: Marks = Marks("<!-- space begin -->", "<!-- space end -->");
/// The place of gets beside background work.
pub const BACKGROUND: Marks = Marks("<!-- background begin -->", "<!-- background end -->");
/// The place of what single requests cost.
pub const REQUESTS: Marks = Marks("<!-- requests begin -->", "<!-- requests end -->");

/// Puts `tables` between the marks of the document.
///
/// # Errors
/// When the document cannot be read or written, or has no marks.
pub fn write(path: &Path, marks: &Marks, tables: &str) -> Result<(), BenchError> {
    let text = fs::read_to_string(path).map_err(doing("the document"))?;
    let new = replaced(&text, marks, tables).ok_or_else(|| BenchError::NoPlace {
        path: path.to_owned(),
        begin: marks.0,
        end: marks.1,
    })?;
    fs::write(path, new).map_err(doing("the document"))
}

fn replaced(text: &str, marks: &Marks, tables: &str) -> Option<String> {
    let Marks(begin, end) = marks;
    let (before, rest) = text.split_once(begin)?;
    let (_, after) = rest.split_once(end)?;
    Some(format!("{before}{begin}\n\n{}\n\n{end}{after}", tables.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_between_the_marks_changes() {
        let Marks(begin, end) = EVICTION;
        let text = format!("# a\n{begin}\nold\n{end}\nb\n");
        let new = replaced(&text, &EVICTION, "new\n").unwrap();
        assert_eq!(new, format!("# a\n{begin}\n\nnew\n\n{end}\nb\n"));
        assert_eq!(replaced(&new, &EVICTION, "new\n").unwrap(), new, "twice is once");
        assert_eq!(replaced(&new, &RUN, "new"), None);
    }
}
