//! Which keys there are.
//!
//! One table serves reading, the "did you mean" of a misspelt key, and the documentation's check
//! that no key is undocumented.

/// Sections by path; a list's items are under its name with `[]`.
pub const SCHEMA: [(&str, &[&str]); 14] = [
    ("", ROOT),
    ("network", NETWORK),
    ("network.keys[]", KEY),
    ("memory", MEMORY),
    ("storage", STORAGE),
    ("storage.drives[]", DRIVE),
    ("storage.eviction", EVICTION),
    ("storage.trim", TRIM),
    ("storage.scrub", SCRUB),
    ("rdma", RDMA),
    ("node", NODE),
    ("limits", LIMITS),
    ("namespaces[]", NAMESPACE),
    ("log", LOG),
];

/// The document's sections.
pub const ROOT: &[&str] =
    &["network", "memory", "storage", "rdma", "node", "limits", "namespaces", "log"];
/// Where the node listens and whom it believes.
pub const NETWORK: &[&str] = &["address", "auth_key", "keys", "shm", "tls_cert", "tls_key"];
/// One more key.
pub const KEY: &[&str] = &["id", "key", "tenant"];
/// The memory pool.
pub const MEMORY: &[&str] = &["block_size", "max_size", "hugepages"];
/// What is stored where.
pub const STORAGE: &[&str] = &[
    "mode",
    "block_size",
    "drives",
    "bypass",
    "drive_timeout_ms",
    "eviction",
    "durability",
    "trim",
    "scrub",
];
/// One drive.
pub const DRIVE: &[&str] = &["media", "max_size"];
/// What happens when drives fill.
pub const EVICTION: &[&str] =
    &["enabled", "high", "low", "policy", "retain_seconds", "pin_max_seconds"];
/// Telling drives what is free.
pub const TRIM: &[&str] = &["enabled", "interval_ms", "extents"];
/// Reading what nobody reads.
pub const SCRUB: &[&str] = &["bytes_per_second"];
/// The RDMA carrier.
pub const RDMA: &[&str] = &["device", "devices", "num_dcis", "num_worker_threads"];
/// How the process runs.
pub const NODE: &[&str] = &["reactors", "idle"];
/// What one client may take.
pub const LIMITS: &[&str] =
    &["max_connections", "max_requests", "credits", "max_value", "lease_ms", "request_timeout_ms"];
/// How long the blocks of a namespace live.
pub const NAMESPACE: &[&str] = &["name", "ttl_seconds", "ttl_max_seconds"];
/// What is logged, and how.
pub const LOG: &[&str] = &["format", "level"];

/// The key that was probably meant by an unknown `key` in the section at `path`: a similar one of
/// the section, else the same or a similar name elsewhere, by its full path.
pub fn nearest(path: &str, key: &str, known: &[&'static str]) -> Option<String> {
    let (above, plain) = key.rsplit_once('.').unwrap_or(("", key));
    if SCHEMA.iter().any(|(section, keys)| *section == above && keys.contains(&plain)) {
        // A path written as one key, as other formats have it.
        return Some(key.to_owned());
    }
    if let Some(found) = similar(key, known) {
        return Some(found.to_owned());
    }
    SCHEMA.iter().filter(|(section, _)| *section != path).find_map(|(section, keys)| {
        let found = keys.iter().find(|k| **k == plain)?;
        Some(if section.is_empty() { (*found).to_owned() } else { format!("{section}.{found}") })
    })
}

/// The word that `text` is probably a misspelling of: one edit per three letters, or one is the
/// beginning of the other; case and the choice of `-`, `_` or camelCase do not count.
pub fn similar(text: &str, words: &[&'static str]) -> Option<&'static str> {
    let plain = |s: &str| s.to_lowercase().replace(['-', '_', ' '], "");
    let text = plain(text);
    let begins = |word: &str| {
        text.len().min(word.len()) >= 3 && (word.starts_with(&text) || text.starts_with(word))
    };
    words
        .iter()
        .map(|word| (strsim::damerau_levenshtein(&text, &plain(word)), *word))
        .filter(|(edits, word)| *edits <= word.len().max(text.len()) / 3 || begins(&plain(word)))
        .min_by_key(|(edits, _)| *edits)
        .map(|(_, word)| word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misspelt_keys_find_the_one_meant() {
        let table = [
            ("network", "adress", NETWORK, Some("address")),
            ("network", "authkey", NETWORK, Some("auth_key")),
            ("memory", "maxSize", MEMORY, Some("max_size")),
            ("", "netwrok", ROOT, Some("network")),
            ("", "auth_key", ROOT, Some("network.auth_key")),
            ("", "network.auth_key", ROOT, Some("network.auth_key")),
            ("log", "storage.modus", LOG, None),
            ("storage", "media", STORAGE, Some("storage.drives[].media")),
            ("storage", "evict", STORAGE, Some("eviction")),
            ("", "frobnicate", ROOT, None),
        ];
        for (path, key, known, expected) in table {
            assert_eq!(nearest(path, key, known).as_deref(), expected, "{path}.{key}");
        }
    }

    #[test]
    fn every_section_is_in_the_schema_once() {
        for (path, keys) in SCHEMA {
            assert_eq!(SCHEMA.iter().filter(|(other, _)| *other == path).count(), 1, "{path}");
            assert!(!keys.is_empty());
        }
    }
}
