//! Inputs worth keeping: a text file a target, one input a line, in hexadecimal.
//!
//! An input is collected when it is the first to reach something. What a change makes unreachable is
//! then still fed, and what once broke stays broken only until somebody runs the tests.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use memkv_poller::Rng;

use crate::run::{from_hex, to_hex};
use crate::target::Target;

/// Longer inputs are not kept: the repository is for people.
const LENGTH_MAX: usize = 5000;

fn file(folder: &Path, target: &str) -> PathBuf {
    folder.join(format!("{target}.hex"))
}

/// The corpus of a target.
pub fn read(folder: &Path, target: &str) -> io::Result<Vec<Vec<u8>>> {
    let text = fs::read_to_string(file(folder, target))?;
    let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    let broken = |line| io::Error::new(io::ErrorKind::InvalidData, format!("no input: {line}"));
    lines.map(|line| from_hex(line).ok_or_else(|| broken(line))).collect()
}

/// Writes the corpus of a target.
pub fn write(folder: &Path, target: &str, inputs: &[Vec<u8>]) -> io::Result<()> {
    let lines: String = inputs.iter().map(|input| to_hex(input) + "\n").collect();
    fs::create_dir_all(folder)?;
    fs::write(file(folder, target), format!("# Made by memkv-ci-fuzz --collect.\n{lines}"))
}

/// Draws so many inputs; those that were the first to reach something.
pub fn collect(target: &mut dyn Target, seed: u64, inputs: u64) -> Vec<Vec<u8>> {
    let mut rng = Rng::seeded(seed);
    let mut found = Vec::new();
    for _ in 0..inputs {
        let input = target.draw(&mut rng);
        if input.len() > LENGTH_MAX {
            continue;
        }
        let before = target.counts().unreached().count();
        target.feed(&input);
        if target.counts().unreached().count() < before {
            found.push(input);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::{Until, run};

    #[test]
    fn every_target_has_a_corpus_that_it_bears() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
        for mut target in crate::targets() {
            let corpus = read(&folder, target.name());
            let corpus = corpus.unwrap_or_else(|error| panic!("{}: {error}", target.name()));
            assert!(corpus.len() >= 3, "{} has only {} inputs", target.name(), corpus.len());
            let report = run(&mut *target, &corpus, 1, Until::Inputs(0));
            assert!(report.to_string().contains("inputs in"), "{report}");
            assert!(!report.to_string().contains("PANIC"), "{report}");
        }
    }

    #[test]
    fn a_corpus_is_read_as_it_was_written() {
        let folder = std::env::temp_dir().join(format!("memkv-corpus-{}", std::process::id()));
        let inputs = vec![vec![0, 255], vec![7; 40]];
        write(&folder, "made-up", &inputs).expect("room for a file");
        let back = read(&folder, "made-up").expect("it was just written");
        fs::write(file(&folder, "made-up"), "0g\n").expect("room for a file");
        let broken = read(&folder, "made-up").expect_err("no hexadecimal");
        fs::remove_dir_all(&folder).expect("our own folder");
        assert_eq!(back, inputs);
        assert!(broken.to_string().contains("0g"), "{broken}");
    }
}
