//! The house rules, held against every file of the repository.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;

use cargo_metadata::{Metadata, MetadataCommand, TargetKind};
use memkv_ci_tidy::source::{self, Source};
use memkv_ci_tidy::{Complaint, arrows, assert_none, docs, manifest, rust, text};

fn workspace() -> Metadata {
    let manifest = source::root().join("Cargo.toml");
    MetadataCommand::new().manifest_path(manifest).no_deps().exec().unwrap()
}

fn sources() -> Vec<Source> {
    let sources = source::all(&source::root()).unwrap();
    assert!(sources.len() > 50, "only {} files found: this is not the repository", sources.len());
    sources
}

fn hold(rule: impl Fn(&Source) -> Vec<Complaint>) {
    assert_none(sources().iter().flat_map(rule).collect());
}

fn rust_sources() -> Vec<Source> {
    sources().into_iter().filter(|source| source.has_extension("rs")).collect()
}

#[test]
fn arrows_between_crates_are_those_of_the_house() {
    assert_none(arrows::complaints(&workspace()));
}

#[test]
fn every_manifest_inherits_lints_and_versions() {
    let root = source::root();
    let all = sources();
    let mut complaints = Vec::new();
    for package in workspace().workspace_packages() {
        let path = package.manifest_path.strip_prefix(&root).unwrap();
        let manifest = all.iter().find(|source| source.path == path.as_std_path()).unwrap();
        complaints.extend(manifest::complaints(manifest));
    }
    assert_none(complaints);
}

#[test]
fn every_crate_in_the_tree_is_a_member_of_the_workspace() {
    let members: BTreeSet<_> = workspace()
        .workspace_packages()
        .iter()
        .map(|package| package.manifest_path.clone().into_std_path_buf())
        .collect();
    let root = source::root();
    let manifests = sources().into_iter().filter(|source| source.path.ends_with("Cargo.toml"));
    let stray = manifests
        .filter(|manifest| manifest.text.contains("[package]"))
        .filter(|manifest| !members.contains(&root.join(&manifest.path)))
        .map(|manifest| manifest.complaint(0, "not a member of the workspace"));
    assert_none(stray.collect());
}

#[test]
fn every_root_forbids_unsafe_code_but_those_at_the_edges() {
    let root = source::root();
    let code = [TargetKind::Lib, TargetKind::Bin, TargetKind::RLib, TargetKind::CDyLib];
    let mut complaints = Vec::new();
    for package in workspace().workspace_packages() {
        let targets = package.targets.iter();
        for target in targets.filter(|target| target.kind.iter().any(|kind| code.contains(kind))) {
            let path = target.src_path.strip_prefix(&root).unwrap();
            let text = fs::read_to_string(&target.src_path).unwrap();
            complaints.extend(rust::root_complaints(&Source::new(path.as_str(), &text)));
        }
    }
    assert_none(complaints);
}

#[test]
fn rust_code_keeps_the_rules_of_unsafe_length_and_tests() {
    let sources = rust_sources();
    assert!(sources.len() > 50);
    assert_none(sources.iter().flat_map(rust::complaints).collect());
}

#[test]
fn files_and_lines_keep_their_limits() {
    hold(text::sizes);
}

#[test]
fn nothing_unfinished_is_left() {
    hold(text::leftovers);
}

#[test]
fn nothing_names_a_machine_or_a_registry() {
    hold(text::places);
}

#[test]
fn scripts_stop_at_the_first_error() {
    hold(text::scripts);
}

#[test]
fn scripts_can_be_executed_and_nothing_else_stands_beside_them() {
    let root = source::root();
    let in_ci = |source: &Source| {
        let parent = source.path.parent().and_then(|parent| parent.to_str());
        matches!(parent, Some("ci" | ".ci")) && source.path.extension().is_none()
    };
    let mut complaints = Vec::new();
    let mut scripts = 0;
    for script in sources().into_iter().filter(in_ci) {
        scripts += 1;
        let mode = fs::metadata(root.join(&script.path)).unwrap().permissions().mode();
        if mode & 0o111 != 0o111 {
            complaints.push(script.complaint(0, "is not executable"));
        }
        if !script.is_script() {
            complaints.push(script.complaint(1, "is no script"));
        }
    }
    assert!(scripts >= 3, "only {scripts} scripts found");
    assert_none(complaints);
}

#[test]
fn documents_point_at_what_exists() {
    let (root, all) = (source::root(), sources());
    let documents = all.iter().filter(|source| source.has_extension("md"));
    assert_none(documents.flat_map(|document| docs::complaints(document, &root, &all)).collect());
    for name in ["README.md", "ARCHITECTURE.md", "STYLE.md", "LICENSE", "docs/README.md"] {
        assert!(root.join(name).exists(), "{name} is missing");
    }
}

#[test]
fn every_configuration_key_and_every_metric_is_documented() {
    let all = sources();
    let find = |path: &str| all.iter().find(|source| source.path.ends_with(path)).expect(path);
    let keys = docs::configuration_keys(find("appliance/node/src/config/schema.rs"));
    let metrics = docs::metrics(find("appliance/node/src/status.rs"));
    assert!(
        keys.len() > 25 && metrics.len() > 25,
        "{} keys, {} metrics",
        keys.len(),
        metrics.len()
    );
    let document = find("docs/operating.md");
    assert_none(docs::undocumented(document, &[keys, metrics].concat()));
}

#[test]
fn top_level_folders_are_those_of_the_house() {
    let entries = fs::read_dir(source::root()).unwrap().map(Result::unwrap);
    let folders = entries.filter(|entry| entry.file_type().unwrap().is_dir());
    let names = folders.map(|entry| entry.file_name().into_string().unwrap());
    let known = |name: &String| {
        docs::FOLDERS.contains(&name.as_str()) || name.starts_with('.') || name == "target"
    };
    let strange: Vec<String> = names.filter(|name| !known(name)).collect();
    assert!(strange.is_empty(), "folders that have no place: {strange:?}");
}
