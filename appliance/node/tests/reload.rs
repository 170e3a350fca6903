//! The configuration, read again while a node serves.

mod binary;
mod common;

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use binary::{Server, free_address};
use common::{Refused, Wire, value};
use memkv_admin_api::{NodeAdmin, NodeStatus, ReloadError, Reloaded};
use memkv_node::config::{Config, Overrides};
use memkv_node::node::Node;
use memkv_node::paths::ThisMachine;
use memkv_node::reload::Source;
use memkv_wire::{PutMode, SharedKey, Status};
use tempfile::TempDir;

const ONE: &str = "1111111111111111111111111111111111111111111111111111111111111111";
const TWO: &str = "2222222222222222222222222222222222222222222222222222222222222222";

/// A node in this process whose configuration is a file.
struct Site {
    folder: TempDir,
    node: Node,
}

const BASE: &str = "
memory: {max_size: 64 MiB, hugepages: never}
storage: {mode: memory, drives: [{max_size: 64 MiB}]}
node: {reactors: 2}
";

impl Site {
    fn start(more: &str) -> Site {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("config.yaml");
        fs::write(&file, format!("{BASE}{more}")).expect("room for a file");
        let address = Some("127.0.0.1:0".into());
        let overrides = Overrides { file: Some(file), address, ..Overrides::default() };
        let config = Config::load(&overrides, &ThisMachine).expect("a good configuration");
        let quiet: memkv_node::drives::Progress = std::rc::Rc::new(|_, _, _| {});
        let node = Node::start(config, &quiet).expect("the node starts");
        node.reload_from(Source { overrides, machine: Box::new(ThisMachine), log: None });
        Site { folder, node }
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("config.yaml")
    }

    /// Writes the file anew and has it read.
    fn reload(&self, text: &str) -> Result<Reloaded, ReloadError> {
        fs::write(self.file(), text).expect("room for a file");
        self.node.admin().reload()
    }

    fn keys(&self, keys: &[(u32, &str)]) -> Result<Reloaded, ReloadError> {
        let row =
            |(id, key): &(u32, &str)| format!("    - {{id: {id}, tenant: t, key: '{key}'}}\n");
        let rows = keys.iter().map(row);
        self.reload(&format!("{BASE}network:\n  keys:\n{}", rows.collect::<String>()))
    }

    fn status(&self) -> NodeStatus {
        self.node.admin().status()
    }

    fn connect(&self, id: u32, key: &str) -> Result<Wire, Refused> {
        let key = SharedKey::from_hex(key).expect("64 digits");
        Wire::connect_as(&self.node, &key, id, "tests")
    }
}

fn counter(status: &memkv_admin_api::MetricsSnapshot, result: &str) -> u64 {
    let of = |c: &&memkv_admin_api::Counter| {
        c.name == "memkv_reloads_total" && c.labels == [("result", result.to_owned())]
    };
    status.counters.iter().find(of).expect("it is counted").value
}

#[test]
fn what_can_hold_at_once_does_and_the_rest_is_named() {
    let site = Site::start("");
    let mut before = Wire::connect(&site.node);
    assert_eq!(site.status().config.generation, 1);
    let text = format!(
        "{}limits: {{max_connections: 2, max_requests: 5, max_value: 1000, lease_ms: 1000}}\n",
        BASE.replace("drives:", "eviction: {high: 60, low: 50, policy: lru}, drives:")
            .replace("reactors: 2", "reactors: 3"),
    );
    let told = site.reload(&text).expect("a good file");
    let mut applied = told.applied.clone();
    applied.sort();
    let expected = [
        "limits.lease_ms",
        "limits.max_connections",
        "limits.max_requests",
        "limits.max_value",
        "storage.eviction.high",
        "storage.eviction.low",
        "storage.eviction.policy",
    ];
    assert_eq!(applied, expected);
    assert_eq!((told.generation, &told.needs_restart[..]), (2, &["node.reactors".to_owned()][..]));
    let status = site.status();
    assert_eq!(status.config.generation, 2);
    assert_eq!(status.config.needs_restart, ["node.reactors"]);
    assert_eq!((status.eviction.high_percent, status.eviction.policy.as_str()), (60, "lru"));
    assert_eq!((status.connections.max, status.reactors.len()), (2, 2));

    let after = Wire::connect(&site.node);
    assert_eq!((after.hello.limits.max_requests, after.hello.limits.max_value), (5, 1000));
    assert_eq!(after.hello.limits.lease_ms_max, 1000);
    let (refused, _) = before.offer(b"k", 1001, PutMode::Absent);
    assert_eq!(refused.status, Status::TooLarge);
    assert_eq!(before.put(b"k", &value(1, 1000), PutMode::Absent).status, Status::Ok);
    let key = memkv_wire::loopback_key();
    assert!(Wire::connect_as(&site.node, &key, 0, "tests").is_err(), "two are open");

    // Marks and policy are at work: the store stays below the new high mark.
    for n in 0..4000u32 {
        while before.put(&n.to_le_bytes(), &value(n as u8, 1000), PutMode::Replace).status
            == Status::Busy
        {}
    }
    let storage = site.status().storage;
    let used = storage.used_bytes_total as f64 / storage.usable_bytes_total as f64;
    assert!((0.4..0.7).contains(&used), "{used} in use");
    assert_eq!(site.reload(&text).expect("the same").applied, Vec::<String>::new());
    site.node.stop().expect("an orderly stop");
}

#[test]
fn a_bad_file_changes_nothing_and_says_what_is_wrong() {
    let site = Site::start("limits: {max_requests: 77}\n");
    let good = "limits: {max_requests: 5}\n";
    let table = [
        (
            "limits: {max_reqests: 5}\n",
            "line 5 column 10: limits.max_reqests: unknown key; did you mean `max_requests`?",
        ),
        ("limits: {max_requests: 0}\n", "limits.max_requests: 0 is out of range"),
        ("log: {level: loud}\nlimits: {max_requests: 5}\n", "line 5 column 7: log.level"),
        ("limits: {max_requests: 5}\nnetwork: {auth_key: 12}\n", "network.auth_key"),
        ("limits: [\n", "not valid YAML"),
        ("limits: {max_requests: 5}\nnetwork: {tls_cert: x}\n", "TLS"),
    ];
    for (failed, (more, said)) in table.iter().enumerate() {
        let error = site.reload(&format!("{BASE}{more}")).expect_err(more);
        let ReloadError::Refused(why) = &error else { panic!("{error}") };
        assert!(why.contains(said), "{why}");
        let status = site.status();
        assert_eq!(status.config.generation, 1);
        assert_eq!(status.config.last_error, Some(error.to_string()));
        assert_eq!(counter(&site.node.admin().metrics(), "failed"), failed as u64 + 1);
        assert_eq!(Wire::connect(&site.node).hello.limits.max_requests, 77, "{more}");
    }
    fs::remove_file(site.file()).expect("it was there");
    let gone = site.node.admin().reload().expect_err("no file");
    assert!(gone.to_string().contains("config.yaml"), "{gone}");
    site.reload(&format!("{BASE}{good}")).expect("a good file");
    assert_eq!(site.status().config.last_error, None);
    assert_eq!(counter(&site.node.admin().metrics(), "ok"), 1);
    assert_eq!(Wire::connect(&site.node).hello.limits.max_requests, 5);
    site.node.stop().expect("an orderly stop");
    let node = common::memory_node("64 MiB");
    assert_eq!(node.admin().reload(), Err(ReloadError::NoFile));
    node.stop().expect("an orderly stop");
}

/// A file that would make the development key valid must not do so where the node listens now.
#[test]
fn keys_are_judged_by_the_address_that_holds() {
    let keyed = format!("network: {{address: '0.0.0.0:0', auth_key: '{ONE}'}}\n");
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("config.yaml");
    fs::write(&file, format!("{BASE}{keyed}")).expect("room for a file");
    let overrides = Overrides { file: Some(file.clone()), ..Overrides::default() };
    let config = Config::load(&overrides, &ThisMachine).expect("a good configuration");
    let quiet: memkv_node::drives::Progress = std::rc::Rc::new(|_, _, _| {});
    let node = Node::start(config, &quiet).expect("the node starts");
    node.reload_from(Source { overrides, machine: Box::new(ThisMachine), log: None });
    fs::write(&file, format!("{BASE}network: {{address: '127.0.0.1:0'}}\n")).expect("room");
    let error = node.admin().reload().expect_err("everybody knows the development key");
    assert!(error.to_string().contains("network.auth_key"), "{error}");
    let key = SharedKey::from_hex(ONE).expect("64 digits");
    assert!(Wire::connect_as(&node, &key, 0, "tests").is_ok());
    assert!(Wire::connect_as(&node, &memkv_wire::loopback_key(), 0, "tests").is_err());
    node.stop().expect("an orderly stop");
}

#[test]
fn keys_are_rotated_under_load_and_no_acknowledged_put_is_lost() {
    let first = format!("network:\n  keys:\n    - {{id: 1, tenant: t, key: '{ONE}'}}\n");
    let site = Site::start(&first);
    let both = AtomicBool::new(false);
    let stored: Vec<Vec<[u8; 5]>> = thread::scope(|scope| {
        let workers: Vec<_> = (0..4u8)
            .map(|worker| {
                let (site, both) = (&site, &both);
                let mut wire = site.connect(1, ONE).expect("a good key");
                scope.spawn(move || {
                    let mut stored = Vec::new();
                    let mut n = 0u32;
                    // Until the server says goodbye.
                    loop {
                        let mut key = [worker; 5];
                        key[1..].copy_from_slice(&n.to_le_bytes());
                        n += 1;
                        match put_or_goodbye(&mut wire, &key) {
                            Ok(true) => stored.push(key),
                            Ok(false) => {}
                            Err(text) => {
                                assert!(matches!(text.as_str(), "key 1 was retired" | ""));
                                assert!(both.load(Ordering::SeqCst), "not before the second key");
                                return stored;
                            }
                        }
                    }
                })
            })
            .collect();
        assert!(site.connect(2, TWO).is_err(), "not yet");
        let told = site.keys(&[(1, ONE), (2, TWO)]).expect("two keys of a tenant");
        assert_eq!((told.applied, told.sessions_ended), (vec!["network.keys".to_owned()], 0));
        let mut new = site.connect(2, TWO).expect("the second key");
        new.put(b"new", &value(1, 1000), PutMode::Absent);
        site.connect(1, ONE).expect("the first one still holds");
        both.store(true, Ordering::SeqCst);
        let told = site.keys(&[(2, TWO)]).expect("one key");
        assert!(told.sessions_ended >= 4, "{told:?}");
        assert!(site.connect(1, ONE).is_err(), "it was retired");
        assert_eq!(new.get(b"new").1, value(1, 1000), "this session goes on");
        workers.into_iter().map(|worker| worker.join().expect("it ends")).collect()
    });
    let mut wire = site.connect(2, TWO).expect("the second key");
    let total: usize = stored.iter().map(Vec::len).sum();
    assert!(total > 0);
    for key in stored.iter().flatten() {
        assert!(wire.get(key).1 == value(key[0], 60_000), "{key:?} of {total}");
    }
    site.node.stop().expect("an orderly stop");
}

/// Whether a put was stored, or the text of the goodbye that came instead of an answer; an empty one
/// where what was on its way to the server has torn the connection down before it could be read.
fn put_or_goodbye(wire: &mut Wire, key: &[u8]) -> Result<bool, String> {
    use memkv_wire::{CrcList, GoodbyeMeta, ItemReplies, Opcode, PutItems};
    let bytes = value(key[0], 60_000);
    let crcs = CrcList::of(&bytes, wire.hello.limits.extent as usize).expect("few extents");
    let mut meta = Vec::new();
    PutItems { items: vec![common::put_item(key, bytes.len(), PutMode::Absent, crcs)] }
        .encode(&mut meta);
    let header = wire.request(Opcode::Put);
    wire.send(header, &meta, &bytes, None);
    let Ok(frame) = wire.receive() else { return Err(String::new()) };
    if frame.header.opcode() == Opcode::Goodbye {
        return Err(GoodbyeMeta::parse(&frame.meta).expect("a goodbye's meta").text.to_owned());
    }
    let status = ItemReplies::parse(&frame.meta).expect("item replies").items[0].status;
    assert!(matches!(status, Status::Ok | Status::Busy), "{status:?}");
    Ok(status == Status::Ok)
}

#[test]
fn sighup_has_the_binary_read_its_file_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("config.yaml");
    let address = free_address();
    let put = |level: &str, connections: u32| {
        let text = format!(
            "network: {{address: '{address}'}}\nmemory: {{max_size: 64 MiB}}\n\
             storage: {{mode: memory, drives: [{{max_size: 64 MiB}}]}}\n\
             log: {{level: {level}}}\nlimits: {{max_connections: {connections}}}\n"
        );
        fs::write(&file, text).expect("room for a file");
    };
    put("info", 10);
    let server = Server::start(&file);
    put("debug", 20);
    server.hang_up();
    server.wait_for_status(|status| status.config.generation == 2);
    let status = server.wait_for_status(|status| status.connections.max == 20);
    assert_eq!(status.config.last_error, None);
    put("debug", 0);
    server.hang_up();
    let status = server.wait_for_status(|status| status.config.last_error.is_some());
    let error = status.config.last_error.expect("just seen");
    assert!(error.contains("limits.max_connections"), "{error}");
    assert_eq!((status.config.generation, status.connections.max), (2, 20));
    let log = server.stop();
    assert!(log.contains("configuration reloaded") && log.contains("log.level"), "{log}");
    assert!(log.contains("configuration not reloaded"), "{log}");
}
