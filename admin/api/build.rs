//! Stamps the build with the commit it was made from.
//!
//! `MEMKV_GIT_COMMIT` is taken from the environment when it is set (packages built from a source
//! archive pass it), else asked of git; outside a repository, or without git, the build simply has
//! no commit. Nothing here may fail a build.

use std::path::Path;
use std::process::Command;

const VARIABLE: &str = "MEMKV_GIT_COMMIT";

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed={VARIABLE}");
    let commit = std::env::var(VARIABLE).ok().filter(|text| !text.is_empty()).or_else(from_git);
    let release = std::env::var("CARGO_PKG_VERSION").unwrap_or_default();
    let text = match commit {
        Some(commit) => {
            println!("cargo:rustc-env={VARIABLE}={commit}");
            format!("{release} ({commit})")
        }
        None => release,
    };
    println!("cargo:rustc-env=MEMKV_VERSION_TEXT={text}");
}

/// The commit at HEAD, twelve hex digits; also asks cargo to look again when HEAD moves.
fn from_git() -> Option<String> {
    let directory = git(&["rev-parse", "--absolute-git-dir"])?;
    let head = Path::new(&directory).join("HEAD");
    watch(&head);
    if let Ok(text) = std::fs::read_to_string(&head)
        && let Some(reference) = text.trim().strip_prefix("ref: ")
    {
        watch(&Path::new(&directory).join(reference));
    }
    git(&["rev-parse", "--short=12", "HEAD"])
}

/// Cargo reruns a build script on every build for a watched path that does not exist, so only
/// existing ones are named (a branch can live in `packed-refs` alone).
fn watch(path: &Path) {
    if path.exists() {
        println!("cargo:rerun-if-changed={}", path.display());
    }
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let text = text.trim();
    (output.status.success() && !text.is_empty()).then(|| text.to_owned())
}
