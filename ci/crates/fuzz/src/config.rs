//! The configuration of a node: YAML that people, templates and fingers write.
//!
//! Inputs are texts, most of them made of keys that there are and values that nearly fit. What must
//! hold: no panic; every refusal says something; and what is taken is complete and consistent, since
//! whoever gets a configuration checks nothing again.

use std::io;
use std::path::{Path, PathBuf};

use memkv_node::config::schema::SCHEMA;
use memkv_node::config::{Config, ConfigError, Drive, Overrides};
use memkv_node::paths::Machine;
use memkv_poller::Rng;

use crate::draw::{mutate, number, once_in, one_of};
use crate::target::{Counts, Target, variant};

/// A machine that never changes, so that an input means the same everywhere.
struct Bench;

impl Machine for Bench {
    fn variable(&self, name: &str) -> Option<String> {
        (name == "HOME").then(|| "/home/a".to_owned())
    }
    fn memory_bytes(&self) -> u64 {
        16 << 30
    }
    fn cores(&self) -> usize {
        4
    }
    fn file_exists(&self, file: &Path) -> bool {
        file.starts_with("/there")
    }
    fn free_bytes(&self, _: &Path) -> io::Result<u64> {
        Ok(100 << 30)
    }
}

/// Values, of which some fit some keys.
const VALUES: [&str; 40] = [
    "true",
    "false",
    "",
    "~",
    "0",
    "1",
    "2",
    "64",
    "95",
    "-1",
    "1e9",
    "4 MiB",
    "2MiB",
    "64 MiB",
    "1 GiB",
    "3 MiB",
    "17 PiB",
    "direct",
    "file",
    "memory",
    "lru",
    "process",
    "power",
    "prefer",
    "require",
    "never",
    "busy",
    "adaptive",
    "human",
    "json",
    "info",
    "loud",
    "127.0.0.1:9900",
    "0.0.0.0:9900",
    "\"[::1]:65535\"",
    "\"/there/a\"",
    "/dev/nvme0n1",
    "[]",
    "{}",
    "mlx5_0",
];
const KEY: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

/// The target: configurations.
pub struct Configuration {
    counts: Counts,
}

impl Default for Configuration {
    fn default() -> Configuration {
        let ends = ["Syntax", "Invalid", "taken"].map(str::to_owned);
        let kinds = [
            "UnknownKey",
            "WrongType",
            "OutOfRange",
            "UnknownChoice",
            "BadSize",
            "NotPowerOfTwo",
            "BadAddress",
            "BadAuthKey",
            "Missing",
            "Duplicate",
            "KeyRequired",
            "MarksCrossed",
            "Refused",
        ];
        let kinds = kinds.map(|kind| format!("problem {kind}"));
        let drives = ["Device", "File", "Memory"].map(|kind| format!("drive {kind}"));
        Configuration { counts: Counts::of(ends.into_iter().chain(kinds).chain(drives)) }
    }
}

impl Target for Configuration {
    fn name(&self) -> &'static str {
        "config"
    }

    fn draw(&self, rng: &mut Rng) -> Vec<u8> {
        let mut text = document(rng).into_bytes();
        if once_in(rng, 3) {
            mutate(rng, &mut text);
        }
        text
    }

    fn feed(&mut self, input: &[u8]) {
        // The file is read as a text first; what is none is refused there.
        let Ok(text) = std::str::from_utf8(input) else { return };
        let overrides = Overrides { file: Some(PathBuf::from("c.yaml")), ..Overrides::default() };
        match Config::parse(text, &overrides, &Bench) {
            Ok(config) => {
                check(&config);
                for drive in &config.storage.drives {
                    self.counts.bump(&format!("drive {}", variant(drive)));
                }
                self.counts.bump("taken");
            }
            Err(error) => {
                assert!(error.to_string().starts_with("c.yaml: "), "{error}");
                if let ConfigError::Invalid { problems, .. } = &error {
                    assert!(!problems.is_empty());
                    for problem in problems {
                        let name = format!("problem {}", variant(&problem.kind));
                        if self.counts.iter().any(|(known, _)| known == name) {
                            self.counts.bump(&name);
                        }
                    }
                }
                self.counts.bump(&variant(&error));
            }
        }
    }

    fn counts(&self) -> &Counts {
        &self.counts
    }
}

/// What a configuration promises to whoever gets it.
fn check(config: &Config) {
    let (memory, storage) = (&config.memory, &config.storage);
    assert!(!config.network.keys.is_empty(), "whom does it believe?");
    assert!(memory.block_size.is_power_of_two());
    assert!(memory.max_size.is_multiple_of(memory.block_size) && memory.max_size >= 64 << 20);
    assert!(storage.block_size.is_power_of_two());
    assert!((16 << 10..=4 << 20).contains(&storage.block_size), "{}", storage.block_size);
    assert!((1..=64).contains(&storage.drives.len()));
    assert!(storage.eviction.low < storage.eviction.high && storage.eviction.high <= 100);
    assert!((1..=256).contains(&config.reactors));
    assert!(config.limits.max_value <= storage.block_size * 16);
    for drive in &storage.drives {
        match drive {
            Drive::Device { media } | Drive::File { media, .. } => assert!(media.is_absolute()),
            Drive::Pci { address } => {
                assert_eq!(address.to_string().parse(), Ok(*address), "it is what is shown");
            }
            Drive::Memory { size } => assert!(*size >= 64 << 20),
        }
    }
}

/// A document: some sections, each with some keys. Sections of one name are one, as YAML has it.
fn document(rng: &mut Rng) -> String {
    let mut text = String::new();
    for section in ["network", "memory", "storage", "rdma", "node", "limits", "log"] {
        if once_in(rng, 3) {
            let body = match section {
                "storage" => storage(rng),
                _ => keys(rng, section, "  ", "  "),
            };
            text += &format!("{section}:\n{body}");
        }
    }
    if once_in(rng, 8) {
        text += &format!("  keys:\n{}", keys(rng, "network.keys[]", "    - ", "      "));
    }
    if once_in(rng, 20) {
        text += &format!("{}: {}\n", one_of(rng, &["auth_key", "drives", "x"]), value(rng));
    }
    text
}

/// Some of the keys of a section, the first after `lead` and the others after `next`.
fn keys(rng: &mut Rng, path: &str, lead: &str, next: &str) -> String {
    let (_, known) = SCHEMA.iter().find(|(section, _)| *section == path).expect("a section");
    let mut text = String::new();
    for key in *known {
        if once_in(rng, 2) {
            let lead = if text.is_empty() { lead } else { next };
            let key = if once_in(rng, 30) { "nonsense" } else { key };
            text += &format!("{lead}{key}: {}\n", value(rng));
        }
    }
    text
}

fn storage(rng: &mut Rng) -> String {
    if once_in(rng, 3) {
        return keys(rng, "storage", "  ", "  ");
    }
    let mode = one_of(rng, &["direct", "file", "memory"]);
    let drive = one_of(rng, &["media: /there/a", "max_size: 1 GiB", "media: /new"]);
    let mut text = format!("  mode: {mode}\n  drives:\n    - {drive}\n");
    if once_in(rng, 6) {
        text += &format!("    - {drive}\n");
    }
    if once_in(rng, 3) {
        let (high, low) = (rng.below(110), rng.below(110));
        text += &format!("  eviction: {{high: {high}, low: {low}}}\n");
    }
    if once_in(rng, 3) {
        text += &format!("  block_size: {}\n", value(rng));
    }
    text
}

fn value(rng: &mut Rng) -> String {
    match rng.below(8) {
        0 => number(rng).to_string(),
        1 => format!("\"{KEY}\""),
        2 => format!("{} KiB", number(rng) % (1 << 40)),
        _ => one_of(rng, &VALUES).to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::{Until, run};

    #[test]
    fn every_kind_of_mistake_is_made_and_some_documents_are_good() {
        let report = run(&mut Configuration::default(), &[], 5, Until::Inputs(8_000));
        assert!(report.passed(), "{report}");
    }

    #[test]
    fn any_input_may_be_fed() {
        let mut rng = Rng::seeded(2);
        let mut target = Configuration::default();
        for length in 0..300 {
            target.feed(&crate::draw::bytes(&mut rng, length));
        }
    }
}
