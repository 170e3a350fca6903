//! The committed list of every check, compared with what a run did.
//!
//! A check is a line `SUITE NAME`: a test of a crate (`memkv-wire frame::tests::…`), of one of its
//! test files (`memkv-journal/golden …`), of its documentation (`memkv-wire/doc …`), or one thing
//! that a tier asserts (`tier/crash …`). A run is told by its logs, which all speak the language of
//! the standard test harness: `test NAME ... ok`, `FAILED`, or `skipped: REASON` for what cannot
//! run on this machine. A check that is listed and did not run, ran and is not listed, failed, or
//! was skipped without a reason, fails the run.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

/// How a check ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It ran and passed.
    Passed,
    /// It ran and failed, or was skipped without a reason.
    Failed,
    /// It could not run here, for this reason.
    Skipped(String),
}

/// What a run did: each check and how it ended.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Run {
    outcomes: BTreeMap<String, Outcome>,
}

/// A run beside the list.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Comparison {
    /// Checks that passed.
    pub passed: usize,
    /// Checks that failed.
    pub failed: Vec<String>,
    /// Checks that could not run here, and why.
    pub skipped: Vec<(String, String)>,
    /// Checks that are listed and did not run.
    pub missing: Vec<String>,
    /// Checks that ran and are not listed.
    pub unlisted: Vec<String>,
}

impl Comparison {
    /// Everything that fails the run.
    #[must_use]
    pub fn failures(&self) -> usize {
        self.failed.len() + self.missing.len() + self.unlisted.len()
    }
}

/// Which suite a test executable belongs to, by the executable's file name.
pub type Suites = BTreeMap<String, String>;

/// Reads the suites from what `cargo test --no-run --message-format json` prints. `prefix` is put
/// before each suite, to tell builds of the same tests apart. Lines that are not about test
/// executables are skipped.
#[must_use]
pub fn suites(messages: &str, prefix: &str) -> Suites {
    messages.lines().filter_map(|line| suite(line, prefix)).collect()
}

fn suite(message: &str, prefix: &str) -> Option<(String, String)> {
    let message: Value = serde_json::from_str(message).ok()?;
    let executable = message.get("executable")?.as_str()?;
    let folder = message.get("manifest_path")?.as_str()?;
    let package = package_name(message.get("package_id")?.as_str()?, folder);
    let target = message.get("target")?;
    let kind = target.get("kind")?.get(0)?.as_str()?;
    let name = target.get("name")?.as_str()?;
    let suite = if kind == "lib" { package } else { format!("{package}/{name}") };
    Some((file_name(executable).to_owned(), format!("{prefix}{suite}")))
}

/// The package's name from its id, `path+file:///somewhere/wire#memkv-wire@0.1.0` or, where the
/// folder has the package's name, `path+file:///somewhere/memkv-wire#0.1.0`.
fn package_name(id: &str, manifest: &str) -> String {
    let after = id.rsplit('#').next().unwrap_or(id);
    match after.split_once('@') {
        Some((name, _)) => name.to_owned(),
        None => file_name(manifest.trim_end_matches("/Cargo.toml")).to_owned(),
    }
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

impl Run {
    /// Adds what a log of `cargo test` tells; `prefix` as for [`suites`].
    pub fn read_cargo_log(&mut self, log: &str, suites: &Suites, prefix: &str) {
        let mut suite: Option<String> = None;
        for line in log.lines() {
            if let Some(running) = line.trim_start().strip_prefix("Running ") {
                let path = running.rsplit_once('(').map(|(_, path)| path.trim_end_matches(')'));
                let file = path.map(file_name).unwrap_or_default();
                let named = suites.get(file).cloned();
                suite = Some(named.unwrap_or_else(|| format!("{prefix}unknown/{file}")));
            } else if let Some(name) = line.trim_start().strip_prefix("Doc-tests ") {
                suite = Some(format!("{prefix}{}/doc", name.trim().replace('_', "-")));
            } else if let Some(suite) = &suite {
                self.read_line(suite, line);
            }
        }
    }

    /// Adds what the log of a tier tells.
    pub fn read_tier_log(&mut self, tier: &str, log: &str) {
        log.lines().for_each(|line| self.read_line(&format!("tier/{tier}"), line));
    }

    fn read_line(&mut self, suite: &str, line: &str) {
        let Some((name, outcome)) = line.strip_prefix("test ").and_then(|rest| {
            let (name, outcome) = rest.rsplit_once(" ... ")?;
            Some((name, outcome.trim()))
        }) else {
            return;
        };
        let outcome = match outcome {
            "ok" => Outcome::Passed,
            "ignored" | "FAILED" => Outcome::Failed,
            other => match other.strip_prefix("skipped: ") {
                Some(reason) if !reason.trim().is_empty() => Outcome::Skipped(reason.to_owned()),
                _ => Outcome::Failed,
            },
        };
        let check = format!("{suite} {}", without_line_number(name));
        // Of two tests with one name (examples in one comment), the worse one counts.
        let slot = self.outcomes.entry(check).or_insert(Outcome::Passed);
        if *slot == Outcome::Passed {
            *slot = outcome;
        }
    }

    /// Whether nothing ran at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.outcomes.is_empty()
    }

    /// The list that this run is the measure of: one check a line, sorted.
    #[must_use]
    pub fn list(&self) -> String {
        self.outcomes.keys().fold(String::new(), |list, check| list + check + "\n")
    }

    /// Holds the run against the committed list.
    #[must_use]
    pub fn compare(&self, list: &str) -> Comparison {
        let listed: BTreeSet<&str> = listed(list).collect();
        let mut comparison = Comparison::default();
        for (check, outcome) in &self.outcomes {
            match outcome {
                Outcome::Failed => comparison.failed.push(check.clone()),
                _ if !listed.contains(check.as_str()) => comparison.unlisted.push(check.clone()),
                Outcome::Passed => comparison.passed += 1,
                Outcome::Skipped(reason) => {
                    comparison.skipped.push((check.clone(), reason.clone()));
                }
            }
        }
        let ran = |check: &&str| self.outcomes.contains_key(*check);
        comparison.missing =
            listed.into_iter().filter(|check| !ran(check)).map(str::to_owned).collect();
        comparison
    }
}

/// The checks of a list; lines that begin with `#` are comments.
pub fn listed(list: &str) -> impl Iterator<Item = &str> {
    list.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'))
}

/// Examples in documentation are named by their line, which moves with every edit.
fn without_line_number(name: &str) -> &str {
    let name = name.strip_suffix(" - should panic").unwrap_or(name);
    name.find(" (line ").map_or(name, |at| &name[..at])
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESSAGES: &str = concat!(
        r#"{"reason":"compiler-artifact","package_id":"path+file:///x/client-libs/wire#memkv-wire@0.1.0","manifest_path":"/x/client-libs/wire/Cargo.toml","target":{"kind":["lib"],"name":"memkv_wire"},"executable":"/x/target/debug/deps/memkv_wire-0a1b"}"#,
        "\n",
        r#"{"reason":"compiler-artifact","package_id":"path+file:///x/journal#memkv-journal@0.1.0","manifest_path":"/x/journal/Cargo.toml","target":{"kind":["test"],"name":"golden"},"executable":"/x/target/debug/deps/golden-77"}"#,
        "\n",
        r#"{"reason":"compiler-artifact","package_id":"x","target":{"kind":["lib"],"name":"serde"},"executable":null}"#,
        "\nnot json\n",
    );

    const LOG: &str = "\
     Running unittests src/lib.rs (target/debug/deps/memkv_wire-0a1b)\n\
running 3 tests\n\
test frame::tests::one ... ok\n\
test frame::tests::two - should panic ... ok\n\
test frame::tests::three ... FAILED\n\
test result: FAILED. 2 passed; 1 failed; 0 ignored\n\
     Running tests/golden.rs (target/debug/deps/golden-77)\n\
test opens ... ok\n\
test ignored_one ... ignored\n\
   Doc-tests memkv_wire\n\
test client-libs/wire/src/lib.rs - frame (line 12) ... ok\n";

    fn run() -> Run {
        let mut run = Run::default();
        run.read_cargo_log(LOG, &suites(MESSAGES, ""), "");
        run.read_tier_log("crash", "noise\ntest nothing is lost ... ok\n");
        run.read_tier_log("vm", "test boots ... skipped: no emulator\ntest mute ... skipped: \n");
        run
    }

    #[test]
    fn suites_are_named_by_package_and_target() {
        let suites = suites(MESSAGES, "loom/");
        assert_eq!(suites.len(), 2);
        assert_eq!(suites["memkv_wire-0a1b"], "loom/memkv-wire");
        assert_eq!(suites["golden-77"], "loom/memkv-journal/golden");
    }

    #[test]
    fn a_run_lists_its_checks() {
        let want = "memkv-journal/golden ignored_one\nmemkv-journal/golden opens\n\
            memkv-wire frame::tests::one\nmemkv-wire frame::tests::three\n\
            memkv-wire frame::tests::two\nmemkv-wire/doc client-libs/wire/src/lib.rs - frame\n\
            tier/crash nothing is lost\ntier/vm boots\ntier/vm mute\n";
        assert_eq!(run().list(), want);
    }

    #[test]
    fn a_run_that_did_everything_fails_only_where_it_failed() {
        let comparison = run().compare(&run().list());
        assert_eq!(comparison.passed, 5);
        let failed =
            ["memkv-journal/golden ignored_one", "memkv-wire frame::tests::three", "tier/vm mute"];
        assert_eq!(comparison.failed, failed);
        assert_eq!(comparison.skipped, [("tier/vm boots".to_owned(), "no emulator".to_owned())]);
        assert!(comparison.missing.is_empty() && comparison.unlisted.is_empty());
        assert_eq!(comparison.failures(), 3);
    }

    #[test]
    fn missing_and_unlisted_checks_are_found() {
        let list = run().list().replace("tier/crash nothing is lost\n", "memkv-wire gone\n# x\n");
        let comparison = run().compare(&list);
        assert_eq!(comparison.missing, ["memkv-wire gone"]);
        assert_eq!(comparison.unlisted, ["tier/crash nothing is lost"]);
        assert_eq!(comparison.failures(), 5);
    }

    #[test]
    fn a_suite_that_nobody_built_is_unlisted_not_lost() {
        let mut run = Run::default();
        run.read_cargo_log(LOG, &Suites::new(), "");
        assert!(run.list().contains("unknown/memkv_wire-0a1b frame::tests::one"));
    }
}
