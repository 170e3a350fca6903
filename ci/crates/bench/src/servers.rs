//! The servers as processes: the plain one and memkv nodes, started, asked, ended.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use memkv_admin_api::{IoStatus, ReactorStatus, TurnStatus};
use memkv_client::{Client, Config, SharedKey, StatId, Transport};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::cpu::CpuClock;
use crate::error::{BenchError, doing};
#[cfg(target_os = "linux")]
use crate::load::Caller;
use crate::process::{PATIENCE, Process, free_address};

/// The key of nodes and clients: this is a bench, it is no secret.
const AUTH_KEY: &str = "be2c4be2c4be2c4be2c4be2c4be2c4be2c4be2c4be2c4be2c4be2c4be2c4be2c";

/// The plain server.
pub struct PlainServer {
    process: Process,
    /// Where it listens, on this machine.
    pub port: u16,
    /// What its memory is made of.
    pub backing: String,
    _output: BufReader<ChildStdout>,
}

impl PlainServer {
    /// Starts this very binary as the plain server with an arena of `bytes`.
    ///
    /// # Errors
    /// When it does not get ready.
    pub fn start(folder: &Path, bytes: u64) -> Result<PlainServer, BenchError> {
        let own = std::env::current_exe().map_err(doing("the path of this binary"))?;
        let mut command = Command::new(own);
        command.args(["plain", "--arena-bytes", &bytes.to_string()]).stdin(Stdio::null());
        command.stdout(Stdio::piped());
        let mut process = Process::start(command, "plain", folder)?;
        let output = process.child.stdout.take().expect("its output is a pipe");
        let mut output = BufReader::new(output);
        let mut line = String::new();
        output.read_line(&mut line).map_err(doing("the plain server's first line"))?;
        let ready = line.strip_prefix("ready ").and_then(|rest| rest.split_once(' '));
        let ready = ready.and_then(|(port, backing)| Some((port.parse().ok()?, backing.trim())));
        let Some((port, backing)) = ready else {
            return Err(BenchError::Ended { name: process.name, log: process.log.clone() });
        };
        let backing = backing.to_owned();
        Ok(PlainServer { process, port, backing, _output: output })
    }

    /// Its CPU time.
    ///
    /// # Errors
    /// When it is gone.
    pub fn clock(&self) -> Result<CpuClock, BenchError> {
        self.process.clock()
    }
}

/// What a node stores on.
pub enum Medium {
    /// Memory of this many bytes.
    Memory(u64),
    /// A file of this many bytes in the bench's folder.
    File(u64),
    /// Memory that evicts.
    Evicting {
        /// How much there is.
        bytes: u64,
        /// By which policy.
        policy: &'static str,
        /// The high and the low watermark, in percent.
        marks: (u64, u64),
    },
    /// A block device, which is formatted first.
    Device(PathBuf),
    /// A file of this many bytes, and lines of the configuration that follow `storage:`.
    Tuned(u64, String),
}

/// A memkv node, as it is shipped: all that is set is where it listens, its key, the size of its
/// pool and its drive.
pub struct Node {
    process: Process,
    address: SocketAddr,
}

/// What a node counts, told twice: by its admin endpoint and over the wire.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// `memkv_inserts_total`.
    pub inserts: u64,
    /// `memkv_leases_total`.
    pub leases: u64,
    /// `memkv_journal_appends_total`.
    pub appends: u64,
    /// The wire's puts.
    pub wire_puts: u64,
    /// The wire's hits.
    pub wire_hits: u64,
    /// The wire's appends.
    pub wire_appends: u64,
}

impl Counters {
    /// Those of two nodes together.
    pub fn and(self, other: Counters) -> Counters {
        Counters {
            inserts: self.inserts + other.inserts,
            leases: self.leases + other.leases,
            appends: self.appends + other.appends,
            wire_puts: self.wire_puts + other.wire_puts,
            wire_hits: self.wire_hits + other.wire_hits,
            wire_appends: self.wire_appends + other.wire_appends,
        }
    }

    /// How much each has risen since `before`.
    pub fn since(self, before: Counters) -> Counters {
        Counters {
            inserts: self.inserts - before.inserts,
            leases: self.leases - before.leases,
            appends: self.appends - before.appends,
            wire_puts: self.wire_puts - before.wire_puts,
            wire_hits: self.wire_hits - before.wire_hits,
            wire_appends: self.wire_appends - before.wire_appends,
        }
    }
}

impl Node {
    /// Starts `binary` on a new drive in `folder` and waits until it answers.
    ///
    /// # Errors
    /// When it does not get ready.
    pub fn start(
        binary: &Path,
        name: &'static str,
        folder: &Path,
        pool_bytes: u64,
        medium: &Medium,
    ) -> Result<Node, BenchError> {
        Node::launch(Command::new(binary), binary, name, folder, pool_bytes, medium)
    }

    /// The same, on the first core alone, where the system can do that.
    ///
    /// # Errors
    /// When it does not get ready.
    pub fn start_on_core(
        binary: &Path,
        name: &'static str,
        folder: &Path,
        pool_bytes: u64,
        medium: &Medium,
    ) -> Result<Node, BenchError> {
        let mut command = Command::new("taskset");
        let bound = command.args(["-c", "0", "true"]).status().is_ok_and(|s| s.success());
        let mut command = Command::new(if bound { Path::new("taskset") } else { binary });
        if bound {
            command.args(["-c", "0"]).arg(binary);
        }
        Node::launch(command, binary, name, folder, pool_bytes, medium)
    }

    fn launch(
        mut command: Command,
        binary: &Path,
        name: &'static str,
        folder: &Path,
        pool_bytes: u64,
        medium: &Medium,
    ) -> Result<Node, BenchError> {
        let address = free_address()?;
        let drive = folder.join(format!("{name}.drive"));
        let storage = match medium {
            Medium::Memory(bytes) => format!("mode: memory\n  drives:\n    - max_size: {bytes}\n"),
            Medium::Evicting { bytes, policy, marks: (high, low) } => format!(
                "mode: memory\n  eviction:\n    policy: {policy}\n    high: {high}\n    low: \
                 {low}\n  drives:\n    - max_size: {bytes}\n"
            ),
            Medium::File(bytes) => {
                let media = drive.display();
                format!("mode: file\n  drives:\n    - media: {media}\n      max_size: {bytes}\n")
            }
            Medium::Tuned(bytes, lines) => {
                let media = drive.display();
                format!(
                    "mode: file\n  drives:\n    - media: {media}\n      max_size: {bytes}\n{lines}"
                )
            }
            Medium::Device(path) => {
                format_device(binary, path)?;
                format!("mode: direct\n  drives:\n    - media: {}\n", path.display())
            }
        };
        let config = format!(
            "network:\n  address: {address}\n  auth_key: {AUTH_KEY}\n\
             memory:\n  max_size: {pool_bytes}\nstorage:\n  {storage}"
        );
        let file = folder.join(format!("{name}.yaml"));
        fs::write(&file, config).map_err(doing("a node's configuration"))?;
        command.args(["start", "--config"]).arg(file).stdin(Stdio::null()).stdout(Stdio::null());
        let mut node = Node { process: Process::start(command, name, folder)?, address };
        node.wait_until_ready()?;
        Ok(node)
    }

    fn wait_until_ready(&mut self) -> Result<(), BenchError> {
        let begun = Instant::now();
        loop {
            self.process.check()?;
            // A new client each time: one that met a dead server rests before it tries again.
            let answers = self.client(1)?.server_stats();
            // The admin endpoint is the last to listen.
            if answers.iter().all(|(_, answer)| answer.is_ok()) && self.status().is_ok() {
                return Ok(());
            }
            if begun.elapsed() > PATIENCE {
                return Err(self.process.silent());
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// A client of it.
    ///
    /// # Errors
    /// When its configuration is refused.
    pub fn client(&self, connections: usize) -> Result<Client, BenchError> {
        Node::client_of(std::slice::from_ref(self), connections)
    }

    /// A client of several, with so many connections to each.
    ///
    /// # Errors
    /// When its configuration is refused.
    pub fn client_of(nodes: &[Node], connections: usize) -> Result<Client, BenchError> {
        let config = Config {
            servers: nodes.iter().map(|node| node.address.to_string()).collect(),
            namespace: "bench".to_owned(),
            transport: Transport::Tcp,
            auth_key: SharedKey::from_hex(AUTH_KEY).ok(),
            num_connections: connections,
            ..Config::default()
        };
        Ok(Client::new(config)?)
    }

    /// How connections of a load reach it.
    ///
    /// # Errors
    /// Never: the key is a key.
    #[cfg(target_os = "linux")]
    pub fn caller(&self, namespace: &'static str) -> Result<Caller, BenchError> {
        let key = SharedKey::from_hex(AUTH_KEY).expect("the bench's key is a key");
        let mut id = [0; 16];
        fastrand::fill(&mut id);
        Ok(Caller { address: self.address, key, namespace, id })
    }

    /// Bytes of its memory that are there, hugepages not counted.
    ///
    /// # Errors
    /// When the system does not tell.
    #[cfg(target_os = "linux")]
    pub fn resident_bytes(&self) -> Result<u64, BenchError> {
        let path = format!("/proc/{}/status", self.process.child.id());
        let text = fs::read_to_string(path).map_err(doing("a node's memory"))?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|rest| rest.trim().split(' ').next()?.parse::<u64>().ok());
        let missing = || std::io::Error::other("no VmRSS");
        Ok(kib.ok_or_else(missing).map_err(doing("a node's memory"))? << 10)
    }

    /// Its CPU time.
    ///
    /// # Errors
    /// When it is gone.
    pub fn clock(&self) -> Result<CpuClock, BenchError> {
        self.process.clock()
    }

    /// What it has counted so far.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn counters(&self, client: &Client) -> Result<Counters, BenchError> {
        let status = self.status()?;
        let named = |name| {
            let value = status["counters"][name].as_u64();
            value.ok_or(BenchError::Answer { what: "a counter of /v1/status", source: None })
        };
        let mut answers = client.server_stats();
        let stats = answers.pop().expect("one server is configured").1?;
        let wire = |id| stats.get(id).unwrap_or_default();
        Ok(Counters {
            inserts: named("memkv_inserts_total")?,
            leases: named("memkv_leases_total")?,
            appends: named("memkv_journal_appends_total")?,
            wire_puts: wire(StatId::Puts),
            wire_hits: wire(StatId::Hits),
            wire_appends: wire(StatId::Appends),
        })
    }

    /// What its pool is made of, and which driver its drive has, in words.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn describe(&self) -> Result<String, BenchError> {
        let status = self.status()?;
        let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
        let memory = &status["memory"];
        let pool = match memory["backing_reason"].as_str() {
            Some(reason) => format!("ordinary pages ({reason})"),
            None => "hugepages of 2 MiB".to_owned(),
        };
        let drive = &status["drives"][0];
        let (driver, reason) = (text(&drive["driver"]), text(&drive["driver_reason"]));
        let reactors = status["reactors"].as_array().map_or(0, Vec::len);
        Ok(format!("{reactors} reactors, pool of {pool}, driver {driver} ({reason})"))
    }

    /// Bytes for blocks, and the percentages of them at which eviction begins and rests.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn place(&self) -> Result<(u64, u64, u64), BenchError> {
        let status = self.status()?;
        let number = |part: &Value| {
            part.as_u64().ok_or(BenchError::Answer { what: "/v1/status", source: None })
        };
        let eviction = &status["eviction"];
        let usable = number(&status["storage"]["usable_bytes_total"])?;
        Ok((usable, number(&eviction["high_percent"])?, number(&eviction["low_percent"])?))
    }

    /// The admin endpoint's `/v1/status`.
    fn status(&self) -> Result<Value, BenchError> {
        let what = "/v1/status";
        let io = |error| doing("the admin endpoint")(error);
        let address = SocketAddr::new(self.address.ip(), self.address.port() + 1);
        let mut stream = TcpStream::connect_timeout(&address, PATIENCE).map_err(io)?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(io)?;
        write!(stream, "GET {what} HTTP/1.0\r\nHost: {address}\r\n\r\n").map_err(io)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).map_err(io)?;
        let body = answer.split_once("\r\n\r\n").filter(|(head, _)| head.contains(" 200 "));
        let body = body.ok_or(BenchError::Answer { what, source: None })?.1;
        serde_json::from_str(body)
            .map_err(|source| BenchError::Answer { what, source: Some(source) })
    }

    /// What its drive was asked.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn io(&self) -> Result<IoStatus, BenchError> {
        let what = "the drive's row of /v1/status";
        let row = self.status()?["drives"][0]["io"].take();
        serde_json::from_value(row)
            .map_err(|source| BenchError::Answer { what, source: Some(source) })
    }

    /// Whose turns took long on its reactors.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn turns(&self) -> Result<Vec<TurnStatus>, BenchError> {
        let what = "the reactors' rows of /v1/status";
        let rows = self.status()?["reactors"].take();
        let rows: Vec<ReactorStatus> = serde_json::from_value(rows)
            .map_err(|source| BenchError::Answer { what, source: Some(source) })?;
        Ok(rows.into_iter().flat_map(|reactor| reactor.turns).collect())
    }

    /// Bytes that its scrubber found right.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn scrubbed(&self) -> Result<u64, BenchError> {
        let bytes = self.status()?["scrub"]["bytes_total"].as_u64();
        bytes.ok_or(BenchError::Answer { what: "the scrubber's row of /v1/status", source: None })
    }

    /// Ranges that its drive was told are free.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn trimmed(&self) -> Result<u64, BenchError> {
        let ranges = self.status()?["drives"][0]["trim"]["ranges_total"].as_u64();
        ranges.ok_or(BenchError::Answer { what: "the trimmer's row of /v1/status", source: None })
    }

    /// A counter of `/v1/status`.
    ///
    /// # Errors
    /// When it does not answer, or has no such counter.
    pub fn counter(&self, name: &str) -> Result<u64, BenchError> {
        let value = self.status()?["counters"][name].as_u64();
        value.ok_or(BenchError::Answer { what: "a counter of /v1/status", source: None })
    }

    /// Ends it by SIGTERM.
    ///
    /// # Errors
    /// When it does not end.
    pub fn stop(mut self) -> Result<(), BenchError> {
        let pid = Pid::from_raw(self.process.child.id().cast_signed());
        kill(pid, Signal::SIGTERM).map_err(doing("a node cannot be stopped"))?;
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            if self.process.child.try_wait().map_err(doing("a node"))?.is_some() {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(5));
        }
        Err(self.process.silent())
    }
}

/// Formats a device for a node of its own.
fn format_device(binary: &Path, path: &Path) -> Result<(), BenchError> {
    let mut command = Command::new(binary);
    command.args(["setup", "--force", "--drives"]).arg(path).env("MEMKV_AUTH_KEY", AUTH_KEY);
    let output = command.output().map_err(doing("memkv setup cannot be started"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(BenchError::Said {
            name: "memkv setup",
            said: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        }),
    }
}
