//! The document that shows the last result: everything between two marks is replaced.

use std::fs;
use std::path::Path;

use crate::error::{BenchError, doing};

const BEGIN: &str = "<!-- tables begin -->";
const END: &str = "<!-- tables end -->";

/// Puts `tables` between the marks of the document.
///
/// # Errors
/// When the document cannot be read or written, or has no marks.
pub fn write(path: &Path, tables: &str) -> Result<(), BenchError> {
    let text = fs::read_to_string(path).map_err(doing("the document"))?;
    let new = replaced(&text, tables).ok_or_else(|| BenchError::NoPlace {
        path: path.to_owned(),
        begin: BEGIN,
        end: END,
    })?;
    fs::write(path, new).map_err(doing("the document"))
}

fn replaced(text: &str, tables: &str) -> Option<String> {
    let (before, rest) = text.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n\n{}\n\n{END}{after}", tables.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_between_the_marks_changes() {
        let text = format!("# a\n{BEGIN}\nold\n{END}\nb\n");
        let new = replaced(&text, "new\n").unwrap();
        assert_eq!(new, format!("# a\n{BEGIN}\n\nnew\n\n{END}\nb\n"));
        assert_eq!(replaced(&new, "new\n").unwrap(), new, "twice is once");
        assert_eq!(replaced("no marks", "new"), None);
    }
}
