//! The binary as a script sees it: what it prints where, and its exit codes.

use memkv_admin_api::*;
use memkv_admin_http::AdminServer;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Command, Output};
use std::sync::Arc;

/// A data address where nobody listens, nor on the port after it: both are assigned to services that
/// no machine runs.
const NOBODY: &str = "127.0.0.1:1";

/// A node that says what it is told to.
struct Fake {
    online: u32,
}

impl NodeAdmin for Fake {
    fn health(&self) -> Health {
        Health::by_drives(self.online, 2, false)
    }

    fn ready(&self) -> Readiness {
        Readiness::Ready
    }

    fn status(&self) -> NodeStatus {
        NodeStatus {
            version: version(),
            uptime_seconds: 90_000.0,
            node_uuid: "3b241101-e2bb-4255-8caf-4136c566a962".into(),
            incarnation: 4,
            address: "127.0.0.1:9900".into(),
            storage_mode: "file".into(),
            durability: "process".into(),
            memory: MemoryStatus {
                pool_bytes: 1 << 30,
                block_bytes: 2 << 20,
                used_bytes: BTreeMap::from([("receive".into(), 3 << 20), ("send".into(), 1 << 20)]),
                waits_total: 5,
                backing: PoolBacking::OrdinaryPages,
                backing_reason: Some("no hugepages are reserved".into()),
            },
            storage: StorageStatus {
                raw_bytes_total: 4 << 30,
                usable_bytes_total: 4 << 30,
                used_bytes_total: 1 << 30,
                blocks_total: 256,
            },
            drives: vec![drive()],
            reactors: vec![ReactorStatus {
                id: 0,
                busy_percent: 12.34,
                polls: 100,
                sleeps: 20,
                tasks_live: 3,
                tasks_spawned: 40,
                depth: 17,
                completions_total: 1717,
                completions_per_poll: 17.17,
                ..ReactorStatus::default()
            }],
            connections: ConnectionStatus { open: 7, max: 1024, ..ConnectionStatus::default() },
            scrub: ScrubStatus::default(),
            config: ConfigStatus {
                file: Some("/etc/memkv/config.yaml".into()),
                generation: 3,
                needs_restart: vec!["node.reactors".into()],
                last_error: None,
            },
            eviction: EvictionStatus {
                enabled: true,
                policy: "lru".into(),
                high_percent: 95,
                low_percent: 92,
            },
            counters: BTreeMap::from([("hit".into(), 9), ("evicted".into(), 0)]),
            process: ProcessStatus { pid: 77, cpu_seconds: 2.0, resident_bytes: 1 << 20 },
        }
    }

    fn metrics(&self) -> MetricsSnapshot {
        MetricsSnapshot::default()
    }

    fn namespaces(&self, _after: u64) -> Result<NamespacesPage, NoAnswer> {
        Err(NoAnswer)
    }

    fn keys(&self, _request: &KeysRequest) -> Result<KeysPage, NoAnswer> {
        Err(NoAnswer)
    }

    /// What it answers is told by the number of drives.
    fn reload(&self) -> Result<Reloaded, ReloadError> {
        let reloaded = Reloaded {
            file: "/etc/memkv/config.yaml".into(),
            generation: 3,
            applied: vec!["log.level".into(), "network.keys".into()],
            sessions_ended: 2,
            ..Reloaded::default()
        };
        match self.online {
            0 => Err(ReloadError::Refused("line 3 column 1: limits.foo: unknown key".into())),
            1 => Ok(Reloaded { needs_restart: vec!["memory.max_size".into()], ..reloaded }),
            _ => Ok(reloaded),
        }
    }

    fn readmit(&self, path: &str) -> Result<Readmitted, ReadmitError> {
        match self.online {
            0 => Err(ReadmitError::Refused(format!("{path}: it serves"))),
            _ => Ok(Readmitted { path: path.to_owned(), uuid: "u".to_owned() }),
        }
    }
}

fn drive() -> DriveStatus {
    DriveStatus {
        path: "/data/a".into(),
        driver: "uring".into(),
        driver_reason: "a file with O_DIRECT".into(),
        uuid: "u".into(),
        state: DriveState::Offline,
        offline_reason: Some("a write failed".into()),
        raw_bytes: 4 << 30,
        usable_bytes: 4 << 30,
        used_bytes: 1 << 30,
        recovery: RecoveryStatus { blocks: 256, milliseconds: 31, ..RecoveryStatus::default() },
        trim: TrimStatus::default(),
        io: IoStatus::default(),
        numa_node: None,
        nvme: None,
    }
}

fn serve(online: u32) -> (AdminServer, String) {
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let server = AdminServer::start(any, Arc::new(Fake { online })).expect("a free port");
    // The data port is the one before the admin port.
    let data = format!("127.0.0.1:{}", server.address().port() - 1);
    (server, data)
}

fn memkvctl(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_memkvctl"));
    for variable in ["MEMKV_CONFIG", "MEMKV_SERVERS", "MEMKV_AUTH_KEY", "MEMKV_NAMESPACE"] {
        command.env_remove(variable);
    }
    command.args(arguments).output().expect("the binary runs")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("text")
}

#[test]
fn status_shows_what_a_person_wants_to_know() {
    let (_server, data) = serve(1);
    let output = memkvctl(&["status", "--server", &data]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let shown = text(&output.stdout);
    for part in [
        "DEGRADED, 1 of 2 drives online",
        "up 25.0 h",
        "1 GiB of 4 GiB used (25.0 %), 256 blocks",
        "lru from 95 % down to 92 %",
        "4 MiB of 1 GiB lent, ordinary pages (no hugepages are reserved), 5 waits",
        "7 of 1024 open",
        "hit 9",
        "OFFLINE: a write failed",
        "a file with O_DIRECT",
        "after a crash, 256 blocks in 31 ms",
        "12.3 %",
        "17.170",
    ] {
        assert!(shown.contains(part), "{part} is missing from\n{shown}");
    }
    assert!(!shown.contains("evicted"), "counters of nothing are left out:\n{shown}");
}

#[test]
fn status_as_json_is_the_whole_body() {
    let (_server, data) = serve(2);
    let output = memkvctl(&["--json", "status", "--server", &data]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let list: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(list[0]["server"], data);
    assert_eq!(list[0]["health"]["status"], "healthy");
    let status: NodeStatus =
        serde_json::from_value(list[0]["status"].clone()).expect("the same types");
    assert_eq!(status, Fake { online: 2 }.status());
}

#[test]
fn servers_that_answer_are_shown_beside_those_that_do_not() {
    let (_server, data) = serve(2);
    let output = memkvctl(&["status", "--server", &format!("{NOBODY},{data}")]);
    assert_eq!(output.status.code(), Some(3));
    assert!(text(&output.stdout).contains("256 blocks"), "the other one is shown");
    let told = text(&output.stderr);
    assert!(told.contains("cannot reach 127.0.0.1:2"), "{told}");
}

#[test]
fn an_unhealthy_server_fails_the_command() {
    let (_server, data) = serve(0);
    let output = memkvctl(&["status", "--server", &data]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stdout).contains("UNHEALTHY"));
}

#[test]
fn a_reload_ends_in_a_code_of_its_own_when_something_waits_for_a_restart() {
    let (_server, data) = serve(2);
    let output = memkvctl(&["reload", "--server", &data]);
    assert_eq!(output.status.code(), Some(0));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("reloaded, configuration 3 from /etc/memkv/config.yaml"), "{said}");
    assert!(said.contains("applied: log.level, network.keys"), "{said}");
    assert!(said.contains("sessions of retired keys that end: 2"), "{said}");
    let (_server, data) = serve(1);
    let output = memkvctl(&["reload", "--server", &data, "--json"]);
    assert_eq!(output.status.code(), Some(4));
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(told[0]["server"], data.as_str());
    assert_eq!(told[0]["reloaded"]["needs_restart"], serde_json::json!(["memory.max_size"]));
    assert_eq!(told[0]["reloaded"]["generation"], 3);
    let (_server, data) = serve(0);
    let output = memkvctl(&["reload", "--server", &data, "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let error = told[0]["error"].as_str().expect("it is told");
    assert!(error.contains("nothing was changed: line 3 column 1: limits.foo"), "{error}");
    assert_eq!(memkvctl(&["reload", "--server", NOBODY]).status.code(), Some(3));
}

#[test]
fn a_drive_is_readmitted_by_the_one_server_that_has_it() {
    let (_server, data) = serve(1);
    let output = memkvctl(&["drive", "readmit", "/data/a b", "--server", &data]);
    assert_eq!(output.status.code(), Some(0));
    let said = format!("{data}: /data/a b readmitted, empty, as drive u\n");
    assert_eq!(text(&output.stdout), said);
    let output = memkvctl(&["drive", "readmit", "/data/a", "--server", &data, "--json"]);
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(told, serde_json::json!({"server": data, "path": "/data/a", "uuid": "u"}));
    let (_server, data) = serve(0);
    let output = memkvctl(&["drive", "readmit", "/data/a", "--server", &data]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("/data/a: it serves"), "{output:?}");
    let both = format!("{data},{NOBODY}");
    let output = memkvctl(&["drive", "readmit", "/data/a", "--server", &both]);
    assert_eq!(output.status.code(), Some(2));
    let output = memkvctl(&["drive", "readmit", "/data/a", "--server", NOBODY]);
    assert_eq!(output.status.code(), Some(3));
}

#[test]
fn usage_errors_name_what_is_wrong() {
    let table: [(&[&str], &str); 6] = [
        (&["frobnicate"], "frobnicate"),
        (&["bench", "--sizes", "65MiB"], "64 MiB"),
        (&["replay", "t", "--until", "soon"], "soon"),
        (&["status", "--server", "nonsense:port"], "nonsense:port"),
        (&["exists", "k", "--server", "192.0.2.1:9900"], "192.0.2.1:9900"),
        (&["exists", "k", "--config", "/no/such/file"], "/no/such/file"),
    ];
    for (arguments, named) in table {
        let output = memkvctl(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", text(&output.stderr));
        assert!(text(&output.stderr).contains(named), "{}", text(&output.stderr));
        assert!(output.stdout.is_empty() || arguments[0] == "status", "{arguments:?}");
    }
}

#[test]
fn a_server_that_is_not_there_is_unreachable() {
    for command in [&["exists", "k"][..], &["get", "k", "-o", "-"], &["delete", "k"]] {
        let output = memkvctl(&[command, &["--server", NOBODY]].concat());
        let told = text(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{command:?}: {told}");
        assert!(told.contains(NOBODY), "{told}");
    }
}

#[test]
fn long_work_does_not_begin_on_servers_that_are_not_there() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("trace");
    let line = r#"{"timestamp": 0, "input_length": 1, "output_length": 1, "hash_ids": [1]}"#;
    std::fs::write(&path, line).expect("room for a line");
    let path = path.to_str().expect("a plain path");
    for command in [&["bench"][..], &["replay", path]] {
        let output = memkvctl(&[command, &["--server", NOBODY, "--wait", "0s"]].concat());
        let told = text(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{command:?}: {told}");
        assert!(told.contains(NOBODY) && output.stdout.is_empty(), "{told}");
    }
}

#[test]
fn a_trace_that_is_not_one_is_named() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("trace");
    std::fs::write(&path, "not json\n").expect("room for a line");
    let output = memkvctl(&["replay", path.to_str().expect("a plain path")]);
    assert_eq!(output.status.code(), Some(1));
    let told = text(&output.stderr);
    assert!(told.contains("line 1 of the trace is not a request"), "{told}");
}

#[test]
fn version_and_help_end_well() {
    let output = memkvctl(&["--version"]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(text(&output.stdout), format!("memkvctl {VERSION_TEXT}\n"));
    let output = memkvctl(&["--help"]);
    assert!(text(&output.stdout).contains("Exit codes:"));
}
