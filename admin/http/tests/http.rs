//! The admin endpoint as its clients see it: real requests over real sockets, a made-up node.

use memkv_admin_api::*;
use memkv_admin_http::{AdminError, AdminServer};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A node whose counters rise by one at each scrape.
struct Fake {
    online: u32,
    ready: bool,
    scrapes: AtomicU64,
    broken: bool,
}

fn fake() -> Fake {
    Fake { online: 2, ready: true, scrapes: AtomicU64::new(0), broken: false }
}

impl NodeAdmin for Fake {
    fn health(&self) -> Health {
        Health::by_drives(self.online, 2, false)
    }

    fn ready(&self) -> Readiness {
        match self.ready {
            true => Readiness::Ready,
            false => Readiness::NotReady { reason: "replaying the journal of /data/a".into() },
        }
    }

    fn status(&self) -> NodeStatus {
        status()
    }

    fn metrics(&self) -> MetricsSnapshot {
        let n = self.scrapes.fetch_add(1, Ordering::Relaxed) + 1;
        let mut snapshot = MetricsSnapshot::default();
        snapshot
            .counter("memkv_read_total", "Gets answered.", vec![], n)
            .counter("memkv_read_bytes_total", "Bytes sent to getters.", vec![], n << 53)
            .counter("memkv_write_total", "Puts stored.", vec![], 7)
            .counter("memkv_write_bytes_total", "Bytes stored.", vec![], 8)
            .gauge("memkv_blocks_total", "Blocks that can be read.", vec![], 3.0)
            .gauge("memkv_storage_usable_bytes", "Capacity for blocks.", vec![], 1e15)
            .gauge("memkv_storage_used_bytes", "Capacity taken.", vec![], 0.5);
        for (reason, value) in [("evicted", 4), ("never", 5), ("odd \"quote\"\n", 6)] {
            let labels = vec![("reason", reason.to_owned())];
            snapshot.counter("memkv_miss_total", "Misses by reason.", labels, value);
        }
        for stage in ["journal", "drive_read"] {
            snapshot.histograms.push(Histogram::from_counts(
                "memkv_stage_seconds",
                "Waiting, by stage.",
                vec![("stage", stage.to_owned())],
                &STAGE_BUCKETS_SECONDS,
                &(0..20).map(|i| i * n).collect::<Vec<u64>>(),
                1.25,
            ));
        }
        if n > 1 {
            snapshot.counter("memkv_late_total", "Appears at the second scrape.", vec![], n);
        }
        if self.broken {
            snapshot.gauge("memkv_read_total", "The name of a counter.", vec![], 1.0);
        }
        snapshot
    }

    fn namespaces(&self, after: u64) -> Result<NamespacesPage, NoAnswer> {
        if self.broken {
            return Err(NoAnswer);
        }
        let entry = NamespaceEntry {
            tenant: "default".into(),
            namespace: "llama".into(),
            blocks: after,
            bytes: 5,
        };
        Ok(NamespacesPage { namespaces: vec![entry], next: Some(after + 1) })
    }

    /// One key that tells what was asked.
    fn keys(&self, request: &KeysRequest) -> Result<KeysPage, NoAnswer> {
        let entry = KeyEntry {
            tenant: request.tenant.clone().unwrap_or_default(),
            namespace: request.namespace.clone().unwrap_or_default(),
            key: "k".into(),
            bytes: u64::from(request.limit),
            generation: request.after,
            expires: None,
            extents: 1,
        };
        Ok(KeysPage { keys: vec![entry], next: None })
    }

    fn reload(&self) -> Result<Reloaded, ReloadError> {
        match (self.broken, self.ready) {
            (true, _) => Err(ReloadError::Refused("line 3 column 1: log: unknown".into())),
            (false, false) => Err(ReloadError::NoFile),
            (false, true) => Ok(Reloaded {
                file: "/etc/memkv/config.yaml".into(),
                generation: 2,
                applied: vec!["log.level".into()],
                needs_restart: vec!["memory.max_size".into()],
                ..Reloaded::default()
            }),
        }
    }

    fn readmit(&self, path: &str) -> Result<Readmitted, ReadmitError> {
        match (self.broken, self.ready) {
            (true, _) => Err(ReadmitError::Refused(format!("{path}: it serves"))),
            (false, false) => Err(ReadmitError::Failed(format!("{path}: a write failed"))),
            (false, true) => Ok(Readmitted { path: path.to_owned(), uuid: "u".to_owned() }),
        }
    }
}

fn status() -> NodeStatus {
    NodeStatus {
        version: version(),
        uptime_seconds: 1.5,
        node_uuid: "3b241101-e2bb-4255-8caf-4136c566a962".into(),
        incarnation: 4,
        address: "127.0.0.1:9900".into(),
        storage_mode: "file".into(),
        durability: "process".into(),
        memory: MemoryStatus {
            pool_bytes: 1 << 30,
            block_bytes: 2 << 20,
            used_bytes: BTreeMap::from([("receive".into(), 4096)]),
            waits_total: 0,
            backing: PoolBacking::OrdinaryPages,
            backing_reason: Some("no hugepages are reserved".into()),
        },
        storage: StorageStatus::default(),
        drives: vec![],
        reactors: vec![],
        connections: ConnectionStatus::default(),
        scrub: ScrubStatus::default(),
        config: ConfigStatus::default(),
        eviction: EvictionStatus {
            enabled: true,
            policy: "lru".into(),
            high_percent: 95,
            low_percent: 92,
        },
        counters: BTreeMap::from([("put".into(), 9)]),
        process: ProcessStatus::default(),
    }
}

fn serve(node: Fake) -> AdminServer {
    AdminServer::start(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), Arc::new(node))
        .expect("a port of the system's choice is free")
}

struct Answer {
    code: u16,
    headers: BTreeMap<String, String>,
    body: String,
}

impl Answer {
    fn json(&self) -> serde_json::Value {
        assert_eq!(self.headers["content-type"], "application/json", "{}", self.body);
        serde_json::from_str(&self.body).expect("JSON")
    }
}

fn request(server: &AdminServer, method: &str, path: &str) -> Answer {
    let mut stream = TcpStream::connect(server.address()).expect("the server listens");
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .expect("the server reads");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("the server answers and closes");
    parse_answer(&text)
}

fn parse_answer(text: &str) -> Answer {
    let (head, body) = text.split_once("\r\n\r\n").expect("a head and a body");
    let mut lines = head.lines();
    let code = lines.next().expect("a status line").split(' ').nth(1).expect("a code");
    let headers = lines
        .map(|line| line.split_once(": ").expect("a header"))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    Answer { code: code.parse().expect("a number"), headers, body: body.to_owned() }
}

fn get(server: &AdminServer, path: &str) -> Answer {
    request(server, "GET", path)
}

#[test]
fn health_follows_the_drives() {
    for (online, word, code) in [(2, "healthy", 200), (1, "degraded", 200), (0, "unhealthy", 503)] {
        let server = serve(Fake { online, ..fake() });
        let answer = get(&server, "/v1/health");
        assert_eq!(answer.code, code);
        assert_eq!(answer.json()["status"], word);
        assert_eq!(answer.json()["drives_offline"], 2 - online);
        assert_eq!(answer.headers["cache-control"], "no-store");
    }
}

#[test]
fn ready_is_ok_or_says_what_is_missing() {
    let server = serve(fake());
    let answer = get(&server, "/v1/ready");
    assert_eq!((answer.code, answer.body.as_str()), (200, "ok"));
    let server = serve(Fake { ready: false, ..fake() });
    let answer = get(&server, "/v1/ready");
    assert_eq!(answer.code, 503);
    assert_eq!(answer.json()["reason"], "replaying the journal of /data/a");
}

#[test]
fn status_reads_back_as_it_was() {
    let server = serve(fake());
    let answer = get(&server, "/v1/status");
    assert_eq!(answer.code, 200);
    let read: NodeStatus = serde_json::from_str(&answer.body).expect("the same types");
    assert_eq!(read, status());
}

#[test]
fn what_is_stored_is_asked_for_with_a_query() {
    let server = serve(fake());
    let page: NamespacesPage =
        serde_json::from_str(&get(&server, "/v1/namespaces?after=7").body).expect("the same types");
    assert_eq!((page.namespaces[0].blocks, page.next), (7, Some(8)));
    let keys = |query: &str| {
        let answer = get(&server, &format!("/v1/keys{query}"));
        assert_eq!(answer.code, 200, "{}", answer.body);
        let page: KeysPage = serde_json::from_str(&answer.body).expect("the same types");
        page.keys[0].clone()
    };
    let key = keys("");
    assert_eq!((key.namespace.as_str(), key.bytes, key.generation), ("", 1000, 0));
    let key = keys("?namespace=a%20b%26c&tenant=t&after=12&limit=34");
    assert_eq!((key.namespace.as_str(), key.tenant.as_str()), ("a b&c", "t"));
    assert_eq!((key.bytes, key.generation), (34, 12));
    for query in ["?limit=0", "?limit=10001", "?after=-1", "?after=x", "?name=a", "?limit"] {
        let answer = get(&server, &format!("/v1/keys{query}"));
        assert_eq!(answer.code, 400, "{query}");
        assert_eq!(answer.json()["error"], "bad query", "{query}");
    }
    let server = serve(Fake { broken: true, ..fake() });
    let answer = get(&server, "/v1/namespaces");
    assert_eq!((answer.code, &answer.json()["error"]), (503, &"no answer".into()));
}

#[test]
fn everything_else_is_a_json_error() {
    let server = serve(fake());
    for path in ["/", "/v1", "/v1/healthy", "/v1/health/", "/v2/health", "/../etc/passwd"] {
        let answer = get(&server, path);
        assert_eq!(answer.code, 404, "{path}");
        assert_eq!(answer.json()["error"], "not found", "{path}");
        assert_eq!(answer.json()["path"], path);
    }
    for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
        let answer = request(&server, method, "/v1/status");
        assert_eq!(answer.code, 405, "{method}");
        assert_eq!(answer.json()["method"], method);
        assert_eq!(answer.headers["allow"], "GET, HEAD");
    }
    for method in ["GET", "HEAD", "PUT", "DELETE"] {
        let answer = request(&server, method, "/v1/reload");
        assert_eq!(answer.code, 405, "{method}");
        assert_eq!(answer.headers["allow"], "POST");
    }
    let answer = request(&server, "HEAD", "/v1/health");
    assert_eq!((answer.code, answer.body.as_str()), (200, ""));
    assert_eq!(get(&server, "/v1/health?verbose=1").code, 200, "a query changes nothing");
}

#[test]
fn a_reload_is_asked_for_and_answered_with_what_became_of_it() {
    let server = serve(fake());
    let answer = request(&server, "POST", "/v1/reload");
    assert_eq!(answer.code, 200);
    let told: Reloaded = serde_json::from_value(answer.json()).expect("what became of it");
    assert_eq!(told.generation, 2);
    assert_eq!(
        (&told.applied[..], &told.needs_restart[..]),
        (&["log.level".to_owned()][..], &["memory.max_size".to_owned()][..],)
    );
    let refused = serve(Fake { broken: true, ..fake() });
    let answer = request(&refused, "POST", "/v1/reload");
    assert_eq!(answer.code, 422);
    assert_eq!(answer.json()["error"], "not reloaded");
    let reason = "nothing was changed: line 3 column 1: log: unknown";
    assert_eq!(answer.json()["reason"], reason);
    let without = serve(Fake { ready: false, ..fake() });
    let answer = request(&without, "POST", "/v1/reload");
    assert_eq!(answer.code, 409);
    assert!(answer.body.contains("without a configuration file"), "{}", answer.body);
}

#[test]
fn a_drive_is_readmitted_by_the_path_in_the_query() {
    let server = serve(fake());
    let answer = request(&server, "POST", "/v1/drives/readmit?path=%2Fdata%2Fa%20b");
    assert_eq!(answer.code, 200);
    let told: Readmitted = serde_json::from_value(answer.json()).expect("what became of it");
    assert_eq!((told.path.as_str(), told.uuid.as_str()), ("/data/a b", "u"));
    for query in ["", "?path=", "?drive=%2Fa", "?path=%2Fa&force=1"] {
        let answer = request(&server, "POST", &format!("/v1/drives/readmit{query}"));
        assert_eq!((answer.code, &answer.json()["error"]), (400, &"bad query".into()), "{query}");
    }
    let answer = get(&server, "/v1/drives/readmit?path=%2Fa");
    assert_eq!((answer.code, answer.headers["allow"].as_str()), (405, "POST"));
    for (fake, code, reason) in [
        (Fake { broken: true, ..fake() }, 422, "/a: it serves"),
        (Fake { ready: false, ..fake() }, 500, "/a: a write failed"),
    ] {
        let answer = request(&serve(fake), "POST", "/v1/drives/readmit?path=%2Fa");
        assert_eq!(answer.code, code);
        assert_eq!(answer.json(), serde_json::json!({"error": "not readmitted", "reason": reason}));
    }
}

/// The families of a metrics text: kind, and each sample's name and labels with its value.
struct Family {
    kind: String,
    samples: Vec<(String, String, f64)>,
}

fn parse_metrics(text: &str) -> BTreeMap<String, Family> {
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    let mut current = String::new();
    let mut helps = BTreeSet::new();
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let name = help.split(' ').next().expect("a name");
            assert!(helps.insert(name.to_owned()), "{name} is explained twice");
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').expect("a name and a kind");
            current = name.to_owned();
            let family = Family { kind: kind.to_owned(), samples: vec![] };
            assert!(families.insert(current.clone(), family).is_none(), "{name} appears twice");
        } else {
            let (sample, value) = line.rsplit_once(' ').expect("a sample and a value");
            let (name, labels) = sample.split_once('{').unwrap_or((sample, "}"));
            let suffix = name.strip_prefix(current.as_str()).expect("a sample of this family");
            assert!(["", "_bucket", "_sum", "_count"].contains(&suffix), "{line}");
            let family = families.get_mut(&current).expect("a type line stands before");
            let labels = labels.trim_end_matches('}').to_owned();
            family.samples.push((name.to_owned(), labels, value.parse().expect("a number")));
        }
    }
    assert_eq!(helps.len(), families.len(), "every family is explained");
    families
}

#[test]
fn metrics_keep_their_names_and_kinds() {
    let server = serve(fake());
    let answer = get(&server, "/v1/metrics");
    assert_eq!(answer.code, 200, "{}", answer.body);
    assert_eq!(answer.headers["content-type"], "text/plain; version=0.0.4");
    let families = parse_metrics(&answer.body);
    let kinds: Vec<(&str, &str)> =
        families.iter().map(|(name, family)| (name.as_str(), family.kind.as_str())).collect();
    assert_eq!(
        kinds,
        [
            ("memkv_blocks_total", "gauge"),
            ("memkv_miss_total", "counter"),
            ("memkv_read_bytes_total", "counter"),
            ("memkv_read_total", "counter"),
            ("memkv_stage_seconds", "histogram"),
            ("memkv_storage_usable_bytes", "gauge"),
            ("memkv_storage_used_bytes", "gauge"),
            ("memkv_write_bytes_total", "counter"),
            ("memkv_write_total", "counter"),
        ]
    );
    let only = |name: &str| families[name].samples[0].2;
    assert_eq!(only("memkv_read_bytes_total"), (1u64 << 53) as f64);
    assert_eq!(only("memkv_storage_usable_bytes"), 1e15);
    let misses: Vec<&str> =
        families["memkv_miss_total"].samples.iter().map(|(_, labels, _)| labels.as_str()).collect();
    assert_eq!(misses.len(), 3);
    assert!(misses.contains(&"reason=\"evicted\""), "{misses:?}");
    assert!(misses.contains(&"reason=\"odd \\\"quote\\\"\\n\""), "{misses:?}");
}

#[test]
fn histograms_are_cumulative_per_stage() {
    let server = serve(fake());
    let families = parse_metrics(&get(&server, "/v1/metrics").body);
    let samples = &families["memkv_stage_seconds"].samples;
    for stage in ["stage=\"journal\"", "stage=\"drive_read\""] {
        let of = |suffix: &str| {
            let name = format!("memkv_stage_seconds{suffix}");
            let ours = samples.iter().filter(move |s| s.0 == name && s.1.starts_with(stage));
            ours.map(|(_, labels, value)| (labels.clone(), *value)).collect::<Vec<_>>()
        };
        let buckets = of("_bucket");
        assert_eq!(buckets.len(), STAGE_BUCKETS_SECONDS.len() + 1);
        let mut last = (f64::NEG_INFINITY, 0.0);
        for (labels, count) in &buckets {
            let bound = labels.split("le=\"").nth(1).expect("a bound").trim_end_matches('"');
            let bound: f64 = bound.parse().expect("a number or +Inf");
            assert!(bound > last.0 && *count >= last.1, "{labels} after {last:?}");
            last = (bound, *count);
        }
        assert_eq!(last.0, f64::INFINITY);
        assert_eq!(of("_count")[0].1, last.1);
        assert_eq!(last.1, (0..20).sum::<u64>() as f64);
        assert_eq!(of("_sum")[0].1, 1.25);
    }
}

#[test]
fn each_scrape_is_a_new_snapshot_with_new_families() {
    let server = serve(fake());
    let value = |families: &BTreeMap<String, Family>, name: &str| {
        families.get(name).map(|family| family.samples[0].2)
    };
    for scrape in 1..=4 {
        let families = parse_metrics(&get(&server, "/v1/metrics").body);
        assert_eq!(value(&families, "memkv_read_total"), Some(f64::from(scrape)));
        let late = (scrape > 1).then_some(f64::from(scrape));
        assert_eq!(value(&families, "memkv_late_total"), late);
    }
}

#[test]
fn a_name_of_two_kinds_is_an_error_and_not_a_mixture() {
    let server = serve(Fake { broken: true, ..fake() });
    let answer = get(&server, "/v1/metrics");
    assert_eq!(answer.code, 500);
    assert_eq!(answer.json()["reason"], "memkv_read_total is both a counter and a gauge");
    assert_eq!(get(&server, "/v1/health").code, 200, "the rest is still answered");
}

#[test]
fn a_taken_address_is_named() {
    let server = serve(fake());
    let error = AdminServer::start(server.address(), Arc::new(fake())).expect_err("it is taken");
    assert!(matches!(error, AdminError::Bind { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains(&server.address().to_string()) && text.contains("in use"), "{text}");
}

#[test]
fn stop_ends_idle_connections_and_frees_the_port() {
    let server = serve(fake());
    let address = server.address();
    let mut idle = TcpStream::connect(address).expect("the server listens");
    idle.write_all(b"GET /v1/ready HTTP/1.1\r\nHost: x\r\n\r\n").expect("the server reads");
    let mut answer = [0; 512];
    let n = idle.read(&mut answer).expect("the server answers");
    assert!(answer[..n].starts_with(b"HTTP/1.1 200"));

    let start = Instant::now();
    server.stop();
    assert!(start.elapsed() < Duration::from_secs(5), "an idle connection does not delay the stop");
    assert_eq!(idle.read(&mut answer).expect("an orderly close"), 0);
    let again = AdminServer::start(address, Arc::new(fake())).expect("the port is free again");
    assert_eq!(get(&again, "/v1/ready").code, 200);
}

#[test]
fn what_is_not_http_disturbs_nobody() {
    let server = serve(fake());
    for garbage in
        [&b"\x00\x01\x02 garbage\r\n\r\n"[..], b"MKV1", b"GET /v1/health HTTP/9.9\r\n\r\n"]
    {
        let mut stream = TcpStream::connect(server.address()).expect("the server listens");
        stream.write_all(garbage).expect("the server reads");
        stream.shutdown(std::net::Shutdown::Write).expect("a connected socket");
        let mut answer = Vec::new();
        // It may be answered with a 400 or with a reset; both are fine.
        let _ = stream.read_to_end(&mut answer);
        assert!(!answer.starts_with(b"HTTP/1.1 200"), "{garbage:?}");
    }
    assert_eq!(get(&server, "/v1/ready").code, 200);
}
