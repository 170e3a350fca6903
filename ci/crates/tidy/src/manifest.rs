//! What every crate's manifest says: the workspace's lints, and no versions of its own.

use crate::Complaint;
use crate::source::Source;

/// Complaints about one crate's `Cargo.toml` (not the workspace's).
#[must_use]
pub fn complaints(manifest: &Source) -> Vec<Complaint> {
    let mut section = "";
    let mut inherits_lints = false;
    let mut found = Vec::new();
    for (number, line) in manifest.lines() {
        let line = line.trim();
        if let Some(header) = line.strip_prefix('[') {
            section = header.trim_end_matches(']');
            if let Some(name) = dependency_table(section) {
                let what = format!("write `{name}` as one line that says `workspace = true`");
                found.push(manifest.complaint(number, what));
            }
            continue;
        }
        let Some((name, value)) = line.split_once('=') else { continue };
        let (name, value) = (name.trim(), value.trim());
        inherits_lints |= section == "lints" && name == "workspace" && value == "true";
        if is_dependencies(section) && !inherited(name, value) {
            let what = format!("`{name}` has no `workspace = true`: versions stand in the root");
            found.push(manifest.complaint(number, what));
        }
        if section == "package" && name == "version" {
            found.push(manifest.complaint(number, "the version is the workspace's"));
        }
    }
    if !inherits_lints {
        found.push(manifest.complaint(0, "`[lints] workspace = true` is missing"));
    }
    found
}

/// Whether a section lists dependencies: `dependencies`, `dev-dependencies`,
/// `target.'cfg(..)'.dependencies` and the like.
fn is_dependencies(section: &str) -> bool {
    section.rsplit('.').next().is_some_and(|last| last.ends_with("dependencies"))
}

/// The dependency that a section of its own describes, as in `[dependencies.serde]`.
fn dependency_table(section: &str) -> Option<&str> {
    let (kind, name) = section.rsplit_once('.')?;
    (is_dependencies(kind) && !is_dependencies(section)).then_some(name)
}

fn inherited(name: &str, value: &str) -> bool {
    let value = value.replace(' ', "");
    name.ends_with(".workspace") && value == "true" || value.contains("workspace=true")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Vec<String> {
        let manifest = Source::new("room/Cargo.toml", text);
        complaints(&manifest).into_iter().map(|complaint| complaint.what).collect()
    }

    #[test]
    fn a_good_manifest_passes() {
        let good = "[package]\nversion.workspace = true\n[lints]\nworkspace = true\n\
            [dependencies]\na.workspace = true\nb = { workspace = true, features = [\"x\"] }\n\
            [target.'cfg(target_os = \"linux\")'.dependencies]\nc.workspace = true\n\
            [features]\nfast = []\n";
        assert_eq!(found(good), Vec::<String>::new());
    }

    #[test]
    fn versions_in_any_kind_of_dependency_are_named() {
        for section in ["dependencies", "dev-dependencies", "target.x.build-dependencies"] {
            let bad = format!("[lints]\nworkspace = true\n[{section}]\na = \"1.2\"\n");
            assert_eq!(found(&bad).len(), 1, "{section}");
        }
        let table = "[lints]\nworkspace = true\n[dependencies.a]\nversion = \"1\"\n";
        assert_eq!(found(table).len(), 1);
        assert_eq!(found("[package]\nversion = \"1\"\n[lints]\nworkspace = true\n").len(), 1);
    }

    #[test]
    fn missing_lints_are_named() {
        assert_eq!(found("[package]\nname = \"a\"\n").len(), 1);
        assert_eq!(found("[lints]\nworkspace = false\n").len(), 1);
    }
}
