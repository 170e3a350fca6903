//! The files of the repository that the rules read.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::Complaint;

/// Folders that hold nothing written by us.
const SKIPPED: [&str; 3] = [".git", "target", "__pycache__"];

/// One text file.
#[derive(Clone, Debug)]
pub struct Source {
    /// Relative to the root of the repository.
    pub path: PathBuf,
    /// All of it.
    pub text: String,
}

impl Source {
    /// A file that exists only in a test.
    #[must_use]
    pub fn new(path: &str, text: &str) -> Source {
        Source { path: path.into(), text: text.into() }
    }

    /// Whether its name ends so.
    #[must_use]
    pub fn has_extension(&self, extension: &str) -> bool {
        self.path.extension().is_some_and(|found| found == extension)
    }

    /// Whether it is code: Rust, or a script (which has no extension but begins with `#!`).
    #[must_use]
    pub fn is_code(&self) -> bool {
        self.has_extension("rs") || self.has_extension("sh") || self.is_script()
    }

    /// Whether it is an executable script.
    #[must_use]
    pub fn is_script(&self) -> bool {
        self.text.starts_with("#!/")
    }

    /// Its lines with their numbers, counted from 1.
    pub fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text.lines().enumerate().map(|(index, line)| (index + 1, line))
    }

    /// A complaint about one of its lines.
    #[must_use]
    pub fn complaint(&self, line: usize, what: impl Into<String>) -> Complaint {
        Complaint { path: self.path.clone(), line, what: what.into() }
    }
}

/// The root of the repository.
#[must_use]
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(3).expect("this crate is three folders deep").to_owned()
}

/// All text files below `root`, in the order of their paths. Binary files are left out.
///
/// # Errors
/// When a folder or a file cannot be read.
pub fn all(root: &Path) -> io::Result<Vec<Source>> {
    let mut found = Vec::new();
    walk(root, Path::new(""), &mut found)?;
    found.sort_by(|one, other| one.path.cmp(&other.path));
    Ok(found)
}

fn walk(root: &Path, below: &Path, found: &mut Vec<Source>) -> io::Result<()> {
    for entry in fs::read_dir(root.join(below))? {
        let entry = entry?;
        let path = below.join(entry.file_name());
        let kind = entry.file_type()?;
        if kind.is_dir() {
            if !SKIPPED.iter().any(|skipped| entry.file_name() == *skipped) {
                walk(root, &path, found)?;
            }
        } else if kind.is_file()
            && let Ok(text) = String::from_utf8(fs::read(entry.path())?)
        {
            found.push(Source { path, text });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_found_binaries_and_build_outputs_are_not() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("room/src")).unwrap();
        fs::create_dir_all(folder.path().join("target/debug")).unwrap();
        fs::write(folder.path().join("room/src/lib.rs"), "//! A room.\n").unwrap();
        fs::write(folder.path().join("target/debug/out.rs"), "x").unwrap();
        fs::write(folder.path().join("image"), [0xff, 0xfe, 0]).unwrap();
        let found = all(folder.path()).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].path, Path::new("room/src/lib.rs"));
        assert!(found[0].is_code() && !found[0].is_script());
    }

    #[test]
    fn the_root_is_where_the_workspace_is() {
        assert!(root().join("Cargo.lock").exists());
    }
}
