//! Every command against a real node, which runs inside this test and keeps its blocks in memory.

use memkv_admin_http::AdminServer;
use memkv_node::config::{Config, Overrides};
use memkv_node::node::Node;
use memkv_node::paths::ThisMachine;
use serde_json::Value;
use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::rc::Rc;

struct Server {
    node: Node,
    /// Answers until the end of the test.
    _admin: AdminServer,
    data: String,
}

const CONFIG: &str = "
network: {address: '127.0.0.1:0'}
memory: {max_size: 64 MiB, hugepages: never}
storage: {mode: memory, drives: [{max_size: 256 MiB}]}
node: {reactors: 1}
";

/// A node whose neighbour port is free for its admin endpoint, as the tool expects.
fn serve() -> Server {
    for _ in 0..20 {
        let config = Config::parse(CONFIG, &Overrides::default(), &ThisMachine)
            .unwrap_or_else(|error| panic!("{error}"));
        let node = Node::start(config, &(Rc::new(|_: &str, _, _| ()) as _)).expect("a node starts");
        let data = node.address();
        let mut admin = data;
        admin.set_port(data.port() + 1);
        match AdminServer::start(admin, node.admin()) {
            Ok(admin) => return Server { node, _admin: admin, data: data.to_string() },
            Err(_) => node.stop().expect("an orderly stop"),
        }
    }
    panic!("no two neighbouring ports are free");
}

impl Server {
    fn run(&self, arguments: &[&str]) -> Output {
        self.run_with(arguments, b"")
    }

    fn run_with(&self, arguments: &[&str], input: &[u8]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_memkvctl"));
        for variable in ["MEMKV_CONFIG", "MEMKV_AUTH_KEY", "MEMKV_NAMESPACE", "MEMKV_SERVERS"] {
            command.env_remove(variable);
        }
        // The machines of tests are slow at times.
        command.env("MEMKV_CONNECT_TIMEOUT_MS", "60000");
        command.args(["--server", &self.data]).args(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the binary runs");
        child.stdin.take().expect("a pipe").write_all(input).expect("it reads its input");
        child.wait_with_output().expect("it ends")
    }

    /// Runs a command that must end with `code`; its standard output.
    fn expect(&self, code: i32, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {told}");
        String::from_utf8(output.stdout).expect("text")
    }

    fn json(&self, code: i32, arguments: &[&str]) -> Value {
        let text = self.expect(code, &[arguments, &["--json"]].concat());
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }
}

#[test]
fn blocks_go_in_and_out_by_hand() {
    let server = serve();
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = |name: &str| directory.path().join(name).to_str().expect("a plain path").to_owned();
    // Two extents, so that a block of several parts is among them.
    let value: Vec<u8> = (0..5_000_000_u32).map(|i| (i.wrapping_mul(i) >> 7) as u8).collect();
    std::fs::write(path("in"), &value).expect("room for the value");

    let said = server.expect(0, &["put", "large", &path("in")]);
    assert!(said.starts_with("stored large: 4.77 MiB, generation "), "{said}");
    let said = server.expect(0, &["put", "large", &path("in")]);
    assert!(said.starts_with("large was there already"), "{said}");
    let again = server.json(0, &["put", "large", &path("in"), "--replace"]);
    assert_eq!((&again["outcome"], &again["bytes"]), (&"stored".into(), &5_000_000.into()));
    server.expect(0, &["get", "large", "-o", &path("out")]);
    assert!(std::fs::read(path("out")).expect("it was written") == value, "the bytes differ");

    let output = server.run_with(&["put", "small"], b"from standard input");
    assert!(output.status.success());
    assert_eq!(server.expect(0, &["get", "small"]), "from standard input");

    let said = server.expect(1, &["exists", "small", "none", "large"]);
    assert_eq!(said, "present small\nmissing none\npresent large\n");
    server.expect(0, &["exists", "small", "large"]);
    assert_eq!(server.expect(1, &["delete", "small", "none"]), "deleted small\nmissing none\n");
    let miss = server.json(1, &["get", "small"]);
    assert_eq!((&miss["outcome"], &miss["reason"]), (&"miss".into(), &"deleted".into()));
    assert_eq!(server.json(1, &["exists", "small"])[0]["outcome"], "missing");
    server.node.stop().expect("an orderly stop");
}

#[test]
fn namespaces_keep_keys_apart() {
    let server = serve();
    assert!(server.run_with(&["put", "k", "--namespace", "a"], b"of a").status.success());
    server.expect(1, &["exists", "k"]);
    server.expect(1, &["exists", "k", "--namespace", "b"]);
    assert_eq!(server.expect(0, &["get", "k", "--namespace", "a"]), "of a");
    server.node.stop().expect("an orderly stop");
}

#[test]
fn what_is_stored_is_listed() {
    let server = serve();
    assert_eq!(server.json(0, &["ls"])[0]["namespaces"], serde_json::json!([]));
    for key in 0..30 {
        let line = ["put", &format!("key-{key:02}"), "--namespace", "llama 70b"];
        assert!(server.run_with(&line, &vec![b'x'; 100 + key]).status.success());
    }
    let odd = server.run_with(&["put", "a\tb", "--namespace", "other", "--ttl", "1h"], b"value");
    assert!(odd.status.success());

    let namespaces = server.json(0, &["ls"]);
    let expected = serde_json::json!([
        {"tenant": "default", "namespace": "llama 70b", "blocks": 30, "bytes": 3435},
        {"tenant": "default", "namespace": "other", "blocks": 1, "bytes": 5},
    ]);
    assert_eq!(namespaces[0]["namespaces"], expected);
    let text = server.expect(0, &["ls"]);
    assert!(text.contains("llama 70b") && text.contains("30"), "{text}");

    let keys = server.json(0, &["ls", "llama 70b"]);
    assert_eq!(keys[0]["more"], false);
    let keys = keys[0]["keys"].as_array().expect("a list").clone();
    assert_eq!(keys.len(), 30);
    assert_eq!((&keys[7]["key"], &keys[7]["bytes"]), (&"key-07".into(), &107.into()));
    let some = server.json(0, &["ls", "llama 70b", "--limit", "12"]);
    assert_eq!(some[0]["keys"].as_array().expect("a list").len(), 12);
    assert_eq!(some[0]["more"], true);
    let all = server.json(0, &["ls", "llama 70b", "--limit", "30"]);
    assert_eq!(all[0]["more"], false);
    assert!(server.expect(0, &["ls", "llama 70b", "--limit", "1"]).contains("and more"));
    let none = server.json(0, &["ls", "llama 70b", "--tenant", "somebody"]);
    assert_eq!(none[0]["keys"], serde_json::json!([]));

    let odd = server.json(0, &["ls", "other"]);
    assert_eq!(odd[0]["keys"][0]["key"], "a\\tb", "what is not printable is escaped");
    assert!(odd[0]["keys"][0]["expires"].as_u64().expect("it expires") > 1_700_000_000);
    server.expect(0, &["delete", "a\tb", "--namespace", "other"]);
    assert_eq!(server.json(0, &["ls", "other"])[0]["keys"], serde_json::json!([]));
    server.node.stop().expect("an orderly stop");
}

#[test]
fn bench_and_replay_measure_a_real_server() {
    let server = serve();
    let line = "bench --sizes 64KiB,1MiB --seconds 100ms --stored 8MiB --memory 8MiB --verify";
    let line: Vec<&str> = line.split(' ').collect();
    let report = server.json(0, &line);
    let results = report["results"].as_array().expect("a list");
    assert_eq!(results.len(), 6, "three operations at two sizes");
    for result in results {
        assert!(result["operations"].as_u64().expect("a number") > 0, "{result}");
        assert_eq!(result["faults"]["wrong_blocks"], 0, "{result}");
        assert!(result["server_cpu_seconds"].is_number(), "the server tells its CPU time");
    }
    let table = server.expect(0, &[&line[..], &["--depth-by", "threads"]].concat());
    assert!(table.contains("client CPU s/GiB") && table.contains("64 KiB"), "{table}");

    let directory = tempfile::tempdir().expect("a temporary directory");
    let trace = directory.path().join("trace.jsonl");
    let request = |ms: u64, blocks: &str| {
        format!(
            r#"{{"timestamp": {ms}, "input_length": 1, "output_length": 1, "hash_ids": [{blocks}]}}"#
        )
    };
    let text = [request(0, "1, 2, 3"), request(10, "1, 2, 3, 4"), request(9000, "5")].join("\n");
    std::fs::write(&trace, text).expect("room for a trace");
    let trace = trace.to_str().expect("a plain path");
    let arguments = ["replay", trace, "--until", "1s", "--verify", "--connections", "1"];
    let report = server.json(0, &arguments);
    assert_eq!(report["requests_in_trace"], 2);
    assert_eq!(report["report"]["requests"], 2);
    assert_eq!(report["report"]["prefix_hits"], 3);
    assert_eq!(report["report"]["stored_blocks"], 4);
    assert_eq!(report["report"]["faults"]["wrong_blocks"], 0);
    let text = server.expect(0, &arguments);
    assert!(text.contains("prefix hits  7 of 7 blocks (100.0 %)"), "{text}");
    server.node.stop().expect("an orderly stop");
}

#[test]
fn a_bench_waits_for_a_server_that_is_just_starting() {
    // An address where nobody is yet, below those that the system gives to connections.
    let first = std::process::id() as u16 % 10_000;
    let mut ports = (0..10_000).map(|step| 20_000 + (first + step) % 10_000);
    let port = ports.find(|&port| std::net::TcpListener::bind(("127.0.0.1", port)).is_ok());
    let address = format!("127.0.0.1:{}", port.expect("a free port"));
    let mut command = Command::new(env!("CARGO_BIN_EXE_memkvctl"));
    command.args(["--server", &address, "bench", "--sizes", "64KiB", "--ops", "put"]);
    command.args(["--seconds", "10ms", "--stored", "1MiB", "--memory", "1MiB", "--wait", "60s"]);
    let bench = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let bench = bench.expect("the binary runs");
    let text = CONFIG.replace("127.0.0.1:0", &address);
    let config = Config::parse(&text, &Overrides::default(), &ThisMachine);
    let config = config.unwrap_or_else(|error| panic!("{error}"));
    let node = Node::start(config, &(Rc::new(|_: &str, _, _| ()) as _)).expect("a node starts");
    let output = bench.wait_with_output().expect("it ends");
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{told}");
    node.stop().expect("an orderly stop");
}

#[test]
fn status_counts_what_was_done() {
    let server = serve();
    assert!(server.run_with(&["put", "k"], b"value").status.success());
    let status = server.json(0, &["status"]);
    assert_eq!(status[0]["health"]["status"], "healthy");
    assert_eq!(status[0]["status"]["storage"]["blocks_total"], 1);
    assert_eq!(status[0]["status"]["storage_mode"], "memory");
    let text = server.expect(0, &["status"]);
    assert!(text.contains("memory mode") && text.contains("1 blocks"), "{text}");
    server.node.stop().expect("an orderly stop");
}

#[test]
fn top_tells_what_is_done_meanwhile() {
    let server = serve();
    assert!(server.run_with(&["put", "k"], b"value").status.success());
    let frames = server.json(0, &["top", "--count", "1", "--interval", "20ms"]);
    assert_eq!(frames[0]["server"], server.data.as_str());
    assert_eq!((&frames[0]["health"], &frames[0]["blocks"]), (&"healthy".into(), &1.into()));
    // The put was before the first look.
    assert_eq!(frames[0]["writes_per_second"], 0.0);
    let polls = frames[0]["reactors"][0]["polls_per_second"].as_f64().expect("a rate");
    assert!(polls > 0.0, "a reactor answered the second look");
    let text = server.expect(0, &["top", "-n", "2", "-i", "20ms"]);
    assert_eq!(text.matches(&format!("{}  healthy", server.data)).count(), 2, "{text}");
    assert!(text.contains("1 blocks in") && text.contains("memory"), "{text}");
    server.node.stop().expect("an orderly stop");
}

#[test]
fn top_tells_of_a_server_that_does_not_answer() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_memkvctl"));
    command.args(["--server", "127.0.0.1:1", "top", "-n", "1", "-i", "1ms"]);
    let output = command.output().expect("the binary runs");
    assert_eq!(output.status.code(), Some(3));
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(told.contains("127.0.0.1:1  "), "{told}");
}

#[test]
fn a_wrong_key_is_told_as_such() {
    let server = serve();
    let mut command = Command::new(env!("CARGO_BIN_EXE_memkvctl"));
    command.args(["--server", &server.data, "delete", "k"]);
    let output = command.env("MEMKV_AUTH_KEY", "ab".repeat(32)).output().expect("the binary runs");
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{told}");
    assert!(told.contains(&server.data) && told.contains("key"), "{told}");
    server.node.stop().expect("an orderly stop");
}
