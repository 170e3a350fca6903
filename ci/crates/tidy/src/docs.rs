//! Documents point at things that exist.
//!
//! And they leave out nothing that a user may set or read: see [`undocumented`].
//!
//! Two kinds of pointers are followed: Markdown links to files (with or without a `#heading`), and
//! paths in code spans that begin with a folder of the house, such as `journal/src/lib.rs`.

use std::path::{Component, Path, PathBuf};

use crate::Complaint;
use crate::source::Source;

/// The top-level folders: a code span that begins with one is a path.
pub const FOLDERS: [&str; 10] = [
    "admin",
    "appliance",
    "ci",
    "client-libs",
    "deploy",
    "docs",
    "drivers",
    "images",
    "journal",
    "poller",
];

/// Words that `document` should have in a code span, and has not.
#[must_use]
pub fn undocumented(document: &Source, words: &[String]) -> Vec<Complaint> {
    let spans: Vec<&str> = document.text.lines().flat_map(code_spans).collect();
    // A span may say more than the word: `key{label}`, `--flag VALUE`.
    let says = |span: &&str, word: &str| {
        let rest = span.strip_prefix(word);
        rest.is_some_and(|rest| !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_'))
    };
    let missing = words.iter().filter(|word| !spans.iter().any(|span| says(span, word)));
    missing.map(|word| document.complaint(0, format!("does not say what `{word}` is"))).collect()
}

/// The configuration keys that the table in `schema` knows, by their whole paths: `network.address`,
/// `network.keys[].id` as `id`, since its section is named by the list.
#[must_use]
pub fn configuration_keys(schema: &Source) -> Vec<String> {
    let text = &schema.text;
    let sections = text.split("(\"").skip(1).filter_map(|rest| {
        let (path, rest) = rest.split_once("\", ")?;
        let name = rest.split_once(')')?.0;
        (!path.is_empty() && name.chars().all(|c| c.is_ascii_uppercase())).then_some((path, name))
    });
    let mut keys = Vec::new();
    for (path, name) in sections {
        let Some((_, list)) = text.split_once(&format!("const {name}: &[&str] =")) else {
            continue;
        };
        let list = list.split_once("];").map_or(list, |(list, _)| list);
        let words = list.split('"').skip(1).step_by(2);
        keys.extend(words.map(|key| match path.ends_with("[]") {
            true => key.to_owned(),
            false => format!("{path}.{key}"),
        }));
    }
    keys
}

/// The metrics that `source` exports.
#[must_use]
pub fn metrics(source: &Source) -> Vec<String> {
    let literals = source.text.split('"').skip(1).step_by(2);
    literals.filter(|literal| literal.starts_with("memkv_")).map(str::to_owned).collect()
}

/// Pointers of one Markdown file that lead nowhere below `root`. `all` are the texts there, to look
/// headings up in.
#[must_use]
pub fn complaints(document: &Source, root: &Path, all: &[Source]) -> Vec<Complaint> {
    let folder = document.path.parent().unwrap_or(Path::new(""));
    let mut found = Vec::new();
    let mut in_code = false;
    for (number, line) in document.lines() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        }
        if in_code {
            continue;
        }
        for target in links(line) {
            if let Some(what) = broken(target, &document.path, folder, root, all) {
                found.push(document.complaint(number, what));
            }
        }
        for path in code_spans(line).filter(|span| is_path(span)) {
            if !root.join(path).exists() {
                found.push(document.complaint(number, format!("`{path}` does not exist")));
            }
        }
    }
    found
}

fn broken(target: &str, own: &Path, folder: &Path, root: &Path, all: &[Source]) -> Option<String> {
    if target.contains("://") || target.starts_with("mailto:") {
        return None;
    }
    let (file, heading) = target.split_once('#').unwrap_or((target, ""));
    let path = if file.is_empty() { own.to_owned() } else { normal(&folder.join(file)) };
    if !root.join(&path).exists() {
        return Some(format!("the link to {target} leads nowhere"));
    }
    if heading.is_empty() {
        return None;
    }
    let document = all.iter().find(|source| source.path == path)?;
    let known = document.lines().any(|(_, line)| line.starts_with('#') && anchor(line) == heading);
    (!known).then(|| format!("{} has no heading #{heading}", path.display()))
}

/// The targets of `[text](target)` in a line.
fn links(line: &str) -> impl Iterator<Item = &str> {
    line.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target)
}

/// What stands between backticks in a line.
fn code_spans(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

fn is_path(span: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/-_.".contains(&byte);
    span.bytes().all(plain)
        && span.split_once('/').is_some_and(|(first, _)| FOLDERS.contains(&first))
}

/// The name by which a heading is linked to: lower case, spaces to hyphens, punctuation dropped.
fn anchor(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    text.chars()
        .filter(|c| c.is_alphanumeric() || *c == ' ' || *c == '-' || *c == '_')
        .map(|c| if c == ' ' { '-' } else { c })
        .collect()
}

/// A relative path without `.` and `..`.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => {
                normal.pop();
            }
            Component::CurDir => {}
            other => normal.push(other),
        }
    }
    normal
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn found(text: &str) -> Vec<String> {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("docs")).unwrap();
        fs::create_dir_all(folder.path().join("journal/src")).unwrap();
        fs::write(folder.path().join("journal/src/lib.rs"), "").unwrap();
        fs::write(folder.path().join("README.md"), "").unwrap();
        let readme = Source::new("README.md", "# What, why & how\n");
        let document = Source::new("docs/wire.md", text);
        fs::write(folder.path().join("docs/wire.md"), text).unwrap();
        let all = [readme, document.clone()];
        let complaints = complaints(&document, folder.path(), &all);
        complaints.into_iter().map(|complaint| complaint.what).collect()
    }

    #[test]
    fn good_pointers_pass() {
        let good = "# Frames\n[up](../README.md), [why](../README.md#what-why--how), [x](#frames)\n\
            `journal/src/lib.rs` and `journal/src`, [site](https://example.org/a)\n\
            ```\n[not](a-link.md) `journal/nowhere`\n```\n`some/other` `docs/<name>`\n";
        assert_eq!(found(good), Vec::<String>::new());
    }

    #[test]
    fn keys_and_metrics_without_a_word_in_the_document_are_named() {
        let schema = Source::new(
            "schema.rs",
            "[(\"\", ROOT), (\"network\", NETWORK), (\"network.keys[]\", KEY)];\n\
             const NETWORK: &[&str] =\n    &[\"address\", \"keys\"];\nconst KEY: &[&str] = &[\"id\"];\n",
        );
        let keys = configuration_keys(&schema);
        assert_eq!(keys, ["network.address", "network.keys", "id"]);
        let document = Source::new("docs/a.md", "`network.address`, `network.keys[]`: `id`");
        assert!(undocumented(&document, &keys).is_empty());
        let document = Source::new("docs/a.md", "`network.addresses` network.keys `id`");
        assert_eq!(undocumented(&document, &keys).len(), 2);
        let code = Source::new("a.rs", "(\"memkv_a_total\", \"A.\"), (\"other\", \"memkv b\")");
        assert_eq!(metrics(&code), ["memkv_a_total"]);
        assert_eq!(undocumented(&Source::new("a.md", "`memkv_a_total{x}`"), &metrics(&code)), []);
    }

    #[test]
    fn links_to_nowhere_are_named() {
        assert_eq!(found("[a](nowhere.md) [b](../README.md#gone) [c](#gone)").len(), 3);
    }

    #[test]
    fn paths_to_nowhere_are_named() {
        assert_eq!(found("see `journal/src/gone.rs`, `docs/gone.md`").len(), 2);
    }
}
