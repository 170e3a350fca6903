//! A server of the guest: the real binary, with the drives that a check gives it, and who talks to it.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use memkv_client::{Client, Config, GetOutcome, PutMode, PutOptions, Transport};
use serde_json::Value;

use super::pci::wait_for;

/// Where servers keep their configurations and logs.
const FOLDER: &str = "/tmp/server";

/// Where they listen; HTTP is on the next port.
pub const ADDRESS: &str = "127.0.0.1:9900";
const ADMIN: &str = "127.0.0.1:9901";

/// A put whatever is there.
const REPLACE: PutOptions = PutOptions {
    mode: PutMode::Replace,
    ttl_seconds: 0,
    durable: false,
    pin_seconds: 0,
    deadline: None,
};

/// A running server; killed when dropped.
pub struct Server {
    child: Child,
    config: PathBuf,
}

/// The configuration of a server on these drives, but for `network`; `more` are lines of `storage`.
pub fn storage(drives: &[String], bypass: &str, more: &str) -> String {
    let mut text = format!(
        "memory:\n  max_size: 192 MiB\n  hugepages: prefer\nstorage:\n  mode: direct\n  bypass: {bypass}\n\
         {more}  drives:\n"
    );
    for drive in drives {
        // An address would be read as a number of base 60.
        text.push_str(&format!("    - media: \"{drive}\"\n"));
    }
    text
}

/// Runs a command to its end; how it ended and what it said.
pub fn output(program: &str, arguments: &[&str]) -> Output {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    output.unwrap_or_else(|error| panic!("{program}: {error}"))
}

/// Runs a command to its end and gives back what it said; it must end with a status.
pub fn run_for(status: i32, program: &str, arguments: &[&str]) -> String {
    let output = output(program, arguments);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    let ended = output.status;
    assert_eq!(ended.code(), Some(status), "{program} {arguments:?}: {ended}\n{said}{errors}");
    said
}

/// Runs a command to its end and gives back what it said; it must succeed.
pub fn run(program: &str, arguments: &[&str]) -> String {
    run_for(0, program, arguments)
}

impl Server {
    /// Starts a server and waits until it serves; `rest` is all of its configuration but `network`.
    pub fn start(rest: &str) -> Server {
        fs::create_dir_all(FOLDER).expect("a folder");
        let config = Path::new(FOLDER).join("config.yaml");
        let server = Server { child: spawn(&config, rest), config };
        server.until_ready()
    }

    fn until_ready(mut self) -> Server {
        wait_for("the server serves", || {
            if let Some(status) = self.child.try_wait().expect("it can be waited for") {
                panic!("the server ended with {status}:\n{}", log());
            }
            self.try_http("/v1/ready").filter(|(code, _)| *code == 200).map(drop)
        });
        self
    }

    /// Its process.
    pub fn process(&self) -> u32 {
        self.child.id()
    }

    /// Its configuration.
    pub fn config(&self) -> &Path {
        &self.config
    }

    fn try_http(&self, path: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect(ADMIN).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(60))).ok()?;
        stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        let (head, body) = text.split_once("\r\n\r\n")?;
        Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
    }

    /// Asks by HTTP: the code and the JSON.
    pub fn http(&self, path: &str) -> (u16, Value) {
        let (code, body) = self.try_http(path).unwrap_or_else(|| panic!("no answer to {path}"));
        let body = serde_json::from_str(&body).unwrap_or_else(|error| panic!("{error}: {body}"));
        (code, body)
    }

    /// `/v1/status`.
    pub fn status(&self) -> Value {
        self.http("/v1/status").1
    }

    /// Waits until its status is as it should be.
    pub fn wait(&self, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        wait_for(what, || Some(self.status()).filter(|status| is_so(status)))
    }

    /// Has the tool do something that must end with a status; what it said.
    pub fn ctl_for(&self, status: i32, arguments: &[&str]) -> String {
        run_for(status, "/bin/memkvctl", &[&["--server", ADDRESS][..], arguments].concat())
    }

    /// Has the tool do something, which must succeed.
    pub fn ctl(&self, arguments: &[&str]) -> String {
        self.ctl_for(0, arguments)
    }

    /// The same, in JSON.
    pub fn ctl_json(&self, arguments: &[&str]) -> Value {
        let text = self.ctl(&[arguments, &["--json"]].concat());
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// A client with one connection.
    pub fn client(&self) -> Client {
        let config = Config {
            servers: vec![ADDRESS.to_owned()],
            namespace: "guest".to_owned(),
            transport: Transport::Tcp,
            num_connections: 1,
            // An emulated machine is slow at times.
            connect_timeout_ms: 60_000,
            ..Config::default()
        };
        Client::new(config).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Stops it in order.
    pub fn stop(mut self) {
        run("kill", &["-TERM", &self.child.id().to_string()]);
        let status =
            wait_for("the server ends", || self.child.try_wait().expect("it can be waited for"));
        assert!(status.success(), "{status}:\n{}", log());
    }

    /// Kills it, and waits until it has gone.
    pub fn kill(mut self) {
        self.child.kill().expect("it is there to be killed");
        self.child.wait().expect("it can be waited for");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            log().lines().for_each(|line| super::talk::say(format!("  {line}")));
        }
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(config: &Path, rest: &str) -> Child {
    fs::write(config, format!("network:\n  address: {ADDRESS}\n{rest}")).expect("room for it");
    let log = File::create(Path::new(FOLDER).join("server.log")).expect("a log");
    let mut command = Command::new("/bin/memkv");
    command.args(["start", "--config"]).arg(config).stdin(Stdio::null());
    command.stdout(log.try_clone().expect("a log")).stderr(log);
    command.spawn().expect("it is there")
}

/// The end of what the last server said.
pub fn log() -> String {
    let text = fs::read_to_string(Path::new(FOLDER).join("server.log")).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(12)..].join("\n")
}

/// The key and the value of a number: bytes that tell by themselves whose they are.
fn block(number: u64, len: usize) -> ([u8; 8], Vec<u8>) {
    let mut value = vec![0; len];
    super::rig::fill(&mut value, number);
    (number.to_be_bytes(), value)
}

/// Puts the value of a number, whatever is there.
pub fn put(client: &Client, number: u64, len: usize) {
    let (key, value) = block(number, len);
    client.put(&key, &value, &REPLACE).unwrap_or_else(|error| panic!("put {number}: {error}"));
}

/// Gets the value of a number, which has the bytes that were put if it is there.
pub fn get(client: &Client, number: u64, len: usize) -> GetOutcome {
    let (key, value) = block(number, len);
    let mut found = Vec::new();
    let outcome = client.get(&key, &mut found).unwrap_or_else(|error| panic!("get: {error}"));
    assert!(!outcome.is_hit() || found == value, "other bytes for {number}");
    outcome
}

/// Deletes the value of a number.
pub fn delete(client: &Client, number: u64) {
    let (key, _) = block(number, 0);
    let was_there = client.delete(&key, None);
    assert!(was_there.unwrap_or_else(|error| panic!("delete {number}: {error}")), "{number}");
}
