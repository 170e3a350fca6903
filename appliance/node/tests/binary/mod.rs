//! The real binary: commands that are run to their end, and servers that are started and killed.
#![allow(dead_code, reason = "each test uses its part of it")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use memkv_admin_api::NodeStatus;
use memkv_client::{Client, Config};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// How a command ended.
#[derive(Debug)]
pub struct Done {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Done {
    /// Its output, when it ended with `code`.
    #[track_caller]
    pub fn expect(self, code: i32) -> String {
        assert_eq!(self.code, Some(code), "{}\n{}", self.out, self.err);
        self.out
    }

    /// What it complained about, when it ended with `code`.
    #[track_caller]
    pub fn complaint(self, code: i32) -> String {
        assert_eq!(self.code, Some(code), "{}\n{}", self.out, self.err);
        self.err
    }

    /// Its output as JSON, when it ended with `code`.
    #[track_caller]
    pub fn json(self, code: i32) -> Value {
        let out = self.expect(code);
        serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}"))
    }
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_memkv"));
    for variable in ["MEMKV_AUTH_KEY", "RUST_LOG", "MEMKV_BLOCK"] {
        command.env_remove(variable);
    }
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs `memkv` to its end.
pub fn memkv(arguments: &[&str]) -> Done {
    run(command(arguments))
}

/// The same with a variable of the environment.
pub fn memkv_with(variable: (&str, &str), arguments: &[&str]) -> Done {
    let mut command = command(arguments);
    command.env(variable.0, variable.1);
    run(command)
}

fn run(mut command: Command) -> Done {
    let output = command.output().expect("the binary runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    Done { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

/// Ports below those that the system gives to outgoing connections: a server is started again on the one it
/// got, and somebody's connection could have it by then.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// An address whose neighbour is free too.
pub fn free_address() -> SocketAddr {
    for _ in 0..100 {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, fastrand::u16(PORTS)));
        let next = (address.ip(), address.port() + 1);
        if TcpListener::bind(address).is_ok_and(|_held| TcpListener::bind(next).is_ok()) {
            return address;
        }
    }
    panic!("no two neighbouring ports are free");
}

/// A configuration as setup printed it, in a file, with a pool that is quickly made.
pub fn configuration(folder: &Path, yaml: &str) -> PathBuf {
    let lines = yaml.lines().map(|line| match line.trim_start().strip_prefix("max_size:") {
        Some(_) => "  max_size: 64 MiB\n".to_owned(),
        None => format!("{line}\n"),
    });
    let path = folder.join("config.yaml");
    std::fs::write(&path, lines.collect::<String>()).expect("room for a file");
    path
}

/// A running server; killed when dropped.
pub struct Server {
    child: Child,
    log: Option<JoinHandle<String>>,
    yaml: serde_yaml::Value,
}

impl Server {
    /// Starts a server and waits until it serves.
    pub fn start(config: &Path) -> Server {
        Server::start_with(config, &[])
    }

    /// The same with more options.
    pub fn start_with(config: &Path, options: &[&str]) -> Server {
        let text = std::fs::read_to_string(config).expect("a configuration");
        let path = config.to_str().expect("a plain path");
        let line = [&["start", "--config", path, "--log-format", "human"][..], options].concat();
        let mut child = command(&line).spawn().expect("the binary runs");
        let mut lines = BufReader::new(child.stderr.take().expect("a pipe")).lines();
        let mut log = String::new();
        loop {
            let line = lines.next().unwrap_or_else(|| panic!("it ended:\n{log}"));
            let line = line.expect("text");
            log = log + &line + "\n";
            if line.contains("memkv serves") {
                break;
            }
        }
        let rest = move || lines.map_while(Result::ok).fold(log, |log, line| log + &line + "\n");
        let yaml = serde_yaml::from_str(&text).expect("YAML");
        Server { child, log: Some(std::thread::spawn(rest)), yaml }
    }

    /// A client of it.
    pub fn client(&self) -> Client {
        let network = &self.yaml["network"];
        let config = Config::from_parts(None, |name| match name {
            "MEMKV_SERVERS" => network["address"].as_str().map(str::to_owned),
            "MEMKV_AUTH_KEY" => network["auth_key"].as_str().map(str::to_owned),
            "MEMKV_NAMESPACE" => Some("models".to_owned()),
            // The machines of tests are slow at times.
            "MEMKV_CONNECT_TIMEOUT_MS" => Some("60000".to_owned()),
            _ => None,
        });
        Client::new(config.expect("a good configuration")).expect("a client")
    }

    /// Sends SIGHUP.
    pub fn hang_up(&self) {
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGHUP).expect("it runs");
    }

    /// Asks the admin endpoint; the code and the body.
    pub fn ask(&self, method: &str, path: &str) -> (u16, String) {
        let data = self.yaml["network"]["address"].as_str().expect("an address");
        let mut admin: SocketAddr = data.parse().expect("an address");
        admin.set_port(admin.port() + 1);
        let mut stream = TcpStream::connect(admin).expect("the admin endpoint listens");
        write!(stream, "{method} {path} HTTP/1.0\r\nContent-Length: 0\r\n\r\n").expect("it reads");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("it answers and closes");
        let (head, body) = text.split_once("\r\n\r\n").expect("a head and a body");
        let code = head.split(' ').nth(1).and_then(|code| code.parse().ok());
        (code.expect("a code"), body.to_owned())
    }

    /// Asks for the status until it is as wanted.
    pub fn wait_for_status(&self, wanted: impl Fn(&NodeStatus) -> bool) -> NodeStatus {
        let deadline = Instant::now() + Duration::from_secs(90);
        loop {
            let (_, body) = self.ask("GET", "/v1/status");
            let status: NodeStatus = serde_json::from_str(&body).expect("a status");
            if wanted(&status) {
                return status;
            }
            assert!(Instant::now() < deadline, "{status:?}");
        }
    }

    /// Kills it, as a crash would; its log.
    pub fn kill(mut self) -> String {
        self.end(Signal::SIGKILL)
    }

    /// Stops it in order; its log.
    pub fn stop(mut self) -> String {
        self.end(Signal::SIGTERM)
    }

    /// Ends it, once: its number may be somebody else's afterwards.
    fn end(&mut self, signal: Signal) -> String {
        let Some(log) = self.log.take() else { return String::new() };
        let _ = kill(Pid::from_raw(self.child.id() as i32), signal);
        self.child.wait().expect("it was started");
        log.join().expect("the log is text")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let log = self.end(Signal::SIGKILL);
        // A test that failed: what its server said last, as `ci/test` looks for it.
        if std::thread::panicking() {
            let lines: Vec<&str> = log.lines().collect();
            let last = &lines[lines.len().saturating_sub(30)..];
            last.iter().for_each(|line| eprintln!("the server: {line}"));
        }
    }
}

/// Bytes that tell their seed, and are found in no other value.
pub fn value(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..length).map(|_| next()).collect()
}
