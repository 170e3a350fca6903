//! What no file may contain, whatever its language.
//!
//! The forbidden words are put together from halves here, or this file would forbid itself.

use crate::Complaint;
use crate::source::Source;

/// Lines of a code file, at most.
pub const LINES_MAX: usize = 800;

/// Characters of a line of code, at most.
pub const COLUMNS_MAX: usize = 100;

/// Characters of a line that is a comment, at most: tables and drawings need some room.
pub const COMMENT_COLUMNS_MAX: usize = 160;

/// Marks of unfinished work.
const LEFTOVERS: [&str; 7] = [
    concat!("to", "do!"),
    concat!("unimple", "mented!"),
    concat!("FIX", "ME"),
    concat!("TO", "DO"),
    concat!("XX", "X"),
    concat!("db", "g!"),
    concat!("#[ig", "nore"),
];

/// Paths of somebody's machine.
const MACHINE_PATHS: [&str; 3] =
    [concat!("/wo", "rk/"), concat!("/tmp/mem", "kv"), concat!("/ro", "ot/")];

/// Names of hosts that packages come from. Packages are named, not addressed: where they come from
/// is the business of whoever builds.
const REGISTRIES: [&str; 9] = [
    concat!("crates", ".io"),
    concat!("static.rust-", "lang.org"),
    concat!("pypi", ".org"),
    concat!("deb.", "debian.org"),
    concat!("archive.", "ubuntu.com"),
    concat!("docker", ".io"),
    concat!("quay", ".io"),
    concat!("ghcr", ".io"),
    concat!("proxy.", "golang.org"),
];

/// Files that are written by tools and may hold what ours may not.
fn is_generated(source: &Source) -> bool {
    source.path.file_name().is_some_and(|name| name == "Cargo.lock")
}

/// Words of unfinished work.
#[must_use]
pub fn leftovers(source: &Source) -> Vec<Complaint> {
    containing(source, &LEFTOVERS, "is a mark of unfinished work")
}

/// Paths of a machine, and hosts of registries.
#[must_use]
pub fn places(source: &Source) -> Vec<Complaint> {
    let mut found = containing(source, &MACHINE_PATHS, "is a path of somebody's machine");
    found.extend(containing(source, &REGISTRIES, "is a host of a registry"));
    found
}

fn containing(source: &Source, words: &[&str], what: &str) -> Vec<Complaint> {
    if is_generated(source) {
        return Vec::new();
    }
    let hits = |(number, line): (usize, &str)| {
        let found = words.iter().filter(move |word| contains_word(line, word));
        let complaint = |word: &&str| source.complaint(number, format!("`{word}` {what}"));
        found.map(complaint).collect::<Vec<_>>()
    };
    source.lines().flat_map(hits).collect()
}

/// Whether `word` occurs in `line` without a letter or digit right before or, where it ends in one
/// itself, right after it.
fn contains_word(line: &str, word: &str) -> bool {
    let starts_plain = word.starts_with(|c: char| c.is_ascii_alphanumeric());
    let ends_plain = word.ends_with(|c: char| c.is_ascii_alphanumeric());
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back().filter(|_| starts_plain);
        let after = line[at + word.len()..].chars().next().filter(|_| ends_plain);
        let joined = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
        !joined(before) && !joined(after)
    })
}

/// Files that are too long and lines that are too wide.
#[must_use]
pub fn sizes(source: &Source) -> Vec<Complaint> {
    if !source.is_code() {
        return Vec::new();
    }
    let wide = |(number, line): (usize, &str)| {
        let (columns, limit) = (line.chars().count(), columns_max(line)?);
        (columns > limit)
            .then(|| source.complaint(number, format!("{columns} columns, {limit} are the limit")))
    };
    let mut found: Vec<Complaint> = source.lines().filter_map(wide).collect();
    let lines = source.lines().count();
    if lines > LINES_MAX {
        found.push(source.complaint(0, format!("{lines} lines, {LINES_MAX} are the limit")));
    }
    found
}

/// How wide a line may be. Addresses and string literals cannot be broken.
fn columns_max(line: &str) -> Option<usize> {
    let text = line.trim_start();
    let is_comment = text.starts_with("//") || text.starts_with('#');
    if line.contains("://") || !is_comment && line.contains('"') {
        return None;
    }
    Some(if is_comment { COMMENT_COLUMNS_MAX } else { COLUMNS_MAX })
}

/// How the first process of a guest begins, which has busybox alone. It must not stop: the machine would
/// end with it, and nobody be told why.
const FIRST_PROCESS: &str = "#!/bin/busybox sh\n# The first process of the guest";

/// Scripts that go on after an error.
#[must_use]
pub fn scripts(source: &Source) -> Vec<Complaint> {
    if !source.is_script() {
        return Vec::new();
    }
    let mut found = Vec::new();
    if source.text.starts_with("#!/usr/bin/env bash") {
        if !source.text.lines().any(|line| line.starts_with("set -euo pipefail")) {
            found.push(source.complaint(1, "`set -euo pipefail` is missing"));
        }
    } else if !source.text.starts_with(FIRST_PROCESS) {
        found.push(source.complaint(1, "scripts begin with `#!/usr/bin/env bash`"));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> Source {
        Source::new("room/src/lib.rs", text)
    }

    #[test]
    fn every_mark_of_unfinished_work_is_found() {
        for word in LEFTOVERS {
            let text = format!("fn a() {{}}\n    {word}(\"x\")]\n");
            let found = leftovers(&source(&text));
            assert_eq!((found.len(), found[0].line), (1, 2), "{word}");
        }
        let innocent = format!("{}LOG A{}Y {}_count", LEFTOVERS[3], LEFTOVERS[4], LEFTOVERS[4]);
        assert!(leftovers(&source(&innocent)).is_empty());
    }

    #[test]
    fn every_place_is_found() {
        for word in MACHINE_PATHS.iter().chain(&REGISTRIES) {
            assert_eq!(places(&source(&format!("// see {word}x and"))).len(), {
                let last_is_letter = word.ends_with(|c: char| c.is_ascii_alphanumeric());
                usize::from(!last_is_letter)
            });
            assert_eq!(places(&source(&format!("// see \"{word}\""))).len(), 1, "{word}");
        }
        let lock = Source::new("Cargo.lock", &format!("source = \"{}\"", REGISTRIES[0]));
        assert!(places(&lock).is_empty());
    }

    #[test]
    fn long_files_and_wide_lines_are_found() {
        assert!(sizes(&source(&"x\n".repeat(LINES_MAX))).is_empty());
        assert_eq!(sizes(&source(&"x\n".repeat(LINES_MAX + 1))).len(), 1);
        assert!(sizes(&source(&"é".repeat(COLUMNS_MAX))).is_empty());
        assert_eq!(sizes(&source(&"é".repeat(COLUMNS_MAX + 1))).len(), 1);
        let address = format!("// {}https://example.org", "x".repeat(COLUMNS_MAX));
        assert!(sizes(&source(&address)).is_empty());
        let data = format!("    b\"{}\",", "x".repeat(COLUMNS_MAX));
        assert!(sizes(&source(&data)).is_empty());
        let table = format!("    /// {}", "|".repeat(COLUMNS_MAX));
        assert!(sizes(&source(&table)).is_empty());
        let prose = format!("    /// {}", "x".repeat(COMMENT_COLUMNS_MAX));
        assert_eq!(sizes(&source(&prose)).len(), 1);
        assert!(sizes(&Source::new("README.md", &"x".repeat(500))).is_empty());
    }

    #[test]
    fn careless_scripts_are_found() {
        let careless = Source::new("ci/a", "#!/usr/bin/env bash\necho hello\n");
        assert_eq!(scripts(&careless).len(), 1);
        let other = Source::new("ci/a", "#!/bin/sh\nset -e\n");
        assert_eq!(scripts(&other).len(), 1);
        let good = Source::new("ci/a", "#!/usr/bin/env bash\nset -euo pipefail\n");
        assert!(scripts(&good).is_empty());
        let first = Source::new("ci/a", &format!("{FIRST_PROCESS}: starts it.\n"));
        assert!(scripts(&first).is_empty());
        let busybox = Source::new("ci/a", "#!/bin/busybox sh\necho hello\n");
        assert_eq!(scripts(&busybox).len(), 1);
    }
}
