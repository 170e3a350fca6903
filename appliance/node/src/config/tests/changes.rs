//! What a configuration that is read again changes.

use super::super::change::Changes;
use super::*;

/// Keys that change nothing: they are refused, or have no effect; and those inside of lists, which are
/// compared as a whole.
const ELSEWHERE: [&str; 14] = [
    "network.tls_cert",
    "network.tls_key",
    "rdma.device",
    "rdma.devices",
    "rdma.num_dcis",
    "rdma.num_worker_threads",
    "network.keys[].id",
    "network.keys[].key",
    "network.keys[].tenant",
    "storage.drives[].media",
    "storage.drives[].max_size",
    "namespaces[].name",
    "namespaces[].ttl_seconds",
    "namespaces[].ttl_max_seconds",
];

#[test]
fn every_key_says_when_a_change_of_it_holds() {
    let mut known: Vec<&str> = Config::keys_compared();
    known.extend(ELSEWHERE);
    for (section, keys) in schema::SCHEMA {
        for key in keys {
            let path = format!("{section}.{key}").trim_start_matches('.').to_owned();
            let inner = |(name, _): &(&str, _)| *name == path;
            let leaf = !schema::SCHEMA.iter().any(inner);
            assert!(!leaf || known.contains(&path.as_str()), "{path} is not compared");
        }
    }
}

const START: &str = "
network:
  address: '127.0.0.1:7000'
  auth_key: 000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f
storage:
  block_size: 64 KiB
  drives: [{media: /a, max_size: 1 GiB}]
";

/// A piece of [`START`], what stands there later, keys that are applied, keys that need a restart.
type Row = (&'static str, &'static str, &'static str, &'static str);

/// At the end of it.
const END: &str = "1 GiB}]\n";

const CHANGES: &[Row] = &[
    (END, END, "", ""),
    (
        END,
        "1 GiB}]\nlimits: {max_requests: 7, credits: 3}",
        "limits.max_requests limits.credits",
        "",
    ),
    (END, "1 GiB}]\nlimits: {max_connections: 9}", "limits.max_connections", ""),
    (END, "1 GiB}]\nlimits: {max_value: 1000}", "limits.max_value", ""),
    (END, "1 GiB}]\nlimits: {lease_ms: 500}", "limits.lease_ms", ""),
    (END, "1 GiB}]\nlimits: {request_timeout_ms: 50}", "limits.request_timeout_ms", ""),
    (END, "1 GiB}]\nlog: {level: debug, format: json}", "log.level", "log.format"),
    (END, "1 GiB}]\nnode: {reactors: 3, idle: busy}", "", "node.reactors node.idle"),
    ("network:\n", "network:\n  shm: false\n", "", "network.shm"),
    (END, "1 GiB}]\nmemory: {block_size: 4 MiB}", "", "memory.block_size"),
    (END, "1 GiB}]\nmemory: {max_size: 200 MiB}", "", "memory.max_size"),
    (END, "1 GiB}]\nmemory: {hugepages: never}", "", "memory.hugepages"),
    ("7000", "7001", "", "network.address"),
    ("0001", "ff01", "network.auth_key", ""),
    (
        "storage:",
        "  keys:
    - id: 1
      tenant: t
      key: 100102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f
storage:",
        "network.keys",
        "",
    ),
    ("block_size", "durability: power\n  block_size", "", "storage.durability"),
    ("block_size", "drive_timeout_ms: 2000\n  block_size", "", "storage.drive_timeout_ms"),
    ("block_size", "trim: {enabled: true}\n  block_size", "", "storage.trim.enabled"),
    ("block_size", "trim: {interval_ms: 50}\n  block_size", "", "storage.trim.interval_ms"),
    ("block_size", "trim: {extents: 7}\n  block_size", "", "storage.trim.extents"),
    (
        "block_size",
        "scrub: {bytes_per_second: 7}\n  block_size",
        "",
        "storage.scrub.bytes_per_second",
    ),
    (
        "block_size",
        "eviction: {enabled: false, high: 50, low: 40, policy: lru}\n  block_size",
        "storage.eviction.enabled storage.eviction.high storage.eviction.low \
         storage.eviction.policy",
        "",
    ),
    (
        "block_size",
        "eviction: {retain_seconds: 5, pin_max_seconds: 6}\n  block_size",
        "storage.eviction.retain_seconds storage.eviction.pin_max_seconds",
        "",
    ),
    (END, "1 GiB}]\nnamespaces: [{name: n, ttl_seconds: 7}]", "namespaces", ""),
    ("/a, max_size: 1 GiB", "/b, max_size: 1 GiB", "", "storage.drives"),
    ("/a, max_size: 1 GiB", "/a, max_size: 2 GiB", "", "storage.drives"),
    ("/a, max_size: 1 GiB", "/a", "", ""),
    // It joins.
    ("drives: [", "drives: [{media: /b, max_size: 1 GiB}, ", "", ""),
    ("drives: [{media: /a, max_size: 1 GiB}]", "mode: memory", "", "storage.mode storage.drives"),
];

#[test]
fn each_change_is_named_and_holds_when_it_can() {
    let before = good(START);
    // At a reload the files are there.
    let machine = Fake { existing: vec!["/a".into(), "/b".into()], ..Fake::default() };
    for (from, to, applied, needs_restart) in CHANGES {
        let text = START.replacen(from, to, 1);
        let next = || Config::parse(&text, &overrides(), &machine).expect(to);
        let (after, changes) = before.adopt(next());
        let mut scrubbed = changes.needs_restart.clone();
        if *to == "mode: memory" {
            // Nothing is read there to find rot.
            scrubbed.retain(|key| *key != "storage.scrub.bytes_per_second");
        }
        assert_eq!(changes.applied.join(" "), *applied, "{to}");
        assert_eq!(scrubbed.join(" "), *needs_restart, "{to}");
        // What was applied is the same from now on, what was not still differs.
        let (_, again) = after.adopt(next());
        assert_eq!(again, Changes { applied: vec![], ..changes }, "{to}");
    }
}

#[test]
fn what_waits_for_a_restart_does_not_hold_by_the_back_door() {
    let before = good(START);
    assert_eq!(before.limits.max_value, MIB);
    let text = START.replacen("64 KiB", "4 MiB", 1);
    let (after, changes) = before.adopt(good(&text));
    assert_eq!(after.limits.max_value, MIB, "sixteen extents of the size that holds");
    assert_eq!(after.storage.block_size, 64 << 10);
    assert!(changes.needs_restart.contains(&"storage.block_size"), "{changes:?}");
}
