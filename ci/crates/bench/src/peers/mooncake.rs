//! Mooncake Store: a master, a process that has the memory for values, and a client in Python.
//!
//! Its client is a library for Python, so a script does the slices and tells what each took; the
//! clocks of the other two processes are read here. Values of the same places and names as those of
//! the other sides move by the calls that copy nothing, out of and into hugepages.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::{Absent, Needs, Slices};
use crate::cpu::CpuClock;
use crate::error::{BenchError, doing};
use crate::machine;
use crate::measure::{Load, Operation, Progress, Sample};
use crate::process::{PATIENCE, Process, free_address};
use crate::ring::Ring;

const MIB: u64 = 1 << 20;
const SCRIPT: &str = include_str!("mooncake_slices.py");
/// The sizes of values that it holds at once.
const SIZES: u64 = 2;

/// Bytes of its memory for values of `stored_bytes` of each size: it evicts before it is full.
pub fn segment_bytes(stored_bytes: u64) -> u64 {
    SIZES * stored_bytes * 5 / 4 + 256 * MIB
}

/// All of it. The client ends first: it takes leave of the others.
pub struct Mooncake {
    client: Process,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
    clocks: Vec<CpuClock>,
    told: String,
    _store: Process,
    _master: Process,
}

/// The script's first line.
#[derive(Deserialize)]
struct Ready {
    version: String,
    pages: String,
}

/// What the script says of a slice.
#[derive(Deserialize)]
struct Answer {
    seconds: f64,
    cpu: f64,
    /// Microseconds of each call.
    calls: Vec<f64>,
}

/// Where its processes listen.
struct Places {
    address: Ipv4Addr,
    master: u16,
    metadata: u16,
    metrics: u16,
    store: u16,
}

impl Places {
    fn find() -> Result<Places, BenchError> {
        let port = || free_address().map(|address| address.port());
        // It takes no address of loopback for one that others could reach.
        let address = machine::address();
        let address = address.ok_or(std::io::ErrorKind::AddrNotAvailable);
        let address = address.map_err(doing("an address that is not loopback's"))?;
        Ok(Places { address, master: port()?, metadata: port()?, metrics: port()?, store: port()? })
    }

    fn of(&self, port: u16) -> SocketAddr {
        SocketAddr::from((self.address, port))
    }
}

impl Mooncake {
    /// Starts it, where it is installed and works.
    pub fn start(needs: &Needs<'_>) -> Result<Mooncake, Absent> {
        let Some(python) = needs.python else { return Err(Absent::not_installed("Mooncake")) };
        let started = Mooncake::launch(python, needs);
        started.map_err(|error| {
            let said = match &error {
                BenchError::Ended { log, .. } | BenchError::Silent { log, .. } => last_line(log),
                _ => String::new(),
            };
            Absent(format!("Mooncake DOES NOT START: {error} {said}"))
        })
    }

    fn launch(python: &Path, needs: &Needs<'_>) -> Result<Mooncake, BenchError> {
        let (package, places) = (package(python)?, Places::find()?);
        let (rpc, http) = (places.of(places.master), places.of(places.metadata));
        let mut command = quiet(&package.join("mooncake_master"));
        command.arg(format!("-rpc_port={}", places.master));
        command.arg("-enable_http_metadata_server=true");
        command.arg(format!("-http_metadata_server_host={}", places.address));
        command.arg(format!("-http_metadata_server_port={}", places.metadata));
        command.arg(format!("-metrics_port={}", places.metrics));
        let mut master = Process::start(command, "mooncake-master", needs.folder)?;
        master.wait_for(rpc)?;
        master.wait_for(http)?;

        let bytes = segment_bytes(needs.stored_bytes);
        let metadata = format!("http://{http}/metadata");
        let mut command = quiet(&package.join("mooncake_client"));
        command.arg(format!("-host={}", places.address));
        command.arg(format!("-port={}", places.store));
        command.arg(format!("-global_segment_size={} MB", bytes / MIB));
        command.arg(format!("-master_server_address={rpc}"));
        command.arg(format!("-metadata_server={metadata}"));
        command.args(["-protocol=tcp", "-threads=2"]);
        let huge = machine::hugepage_bytes() >= bytes + needs.ring_bytes;
        if huge {
            command.env("MC_STORE_USE_HUGEPAGE", "1");
        }
        let mut store = Process::start(command, "mooncake-store", needs.folder)?;
        store.wait_for(places.of(places.store))?;

        let script = needs.folder.join("mooncake_slices.py");
        fs::write(&script, SCRIPT).map_err(doing("the script of Mooncake's client"))?;
        let mut command = Command::new(python);
        pooled(&mut command).arg(script).arg(places.address.to_string());
        command.arg(rpc.to_string()).arg(metadata).arg(needs.ring_bytes.to_string());
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut client = Process::start(command, "mooncake-client", needs.folder)?;
        let requests = client.child.stdin.take().expect("its input is a pipe");
        let answers = client.child.stdout.take().expect("its output is a pipe");
        let mut answers = BufReader::new(answers);
        let ready: Ready = answer(&mut answers, &client)?;
        let pages = if huge { "hugepages of 2 MiB" } else { "ordinary pages" };
        let told = format!(
            "Mooncake Store {}, TCP with pooled connections, store of {} MiB of {pages} with 2 \
             threads, client's buffers: {}",
            ready.version,
            bytes / MIB,
            ready.pages
        );
        let clocks = vec![master.clock()?, store.clock()?, client.clock()?];
        Ok(Mooncake { client, requests, answers, clocks, told, _store: store, _master: master })
    }

    /// Its version and options.
    pub fn told(&self) -> String {
        self.told.clone()
    }

    /// The clocks of all its processes.
    pub fn clocks(&self) -> Vec<CpuClock> {
        self.clocks.clone()
    }

    fn ask(&mut self, request: &str) -> Result<Answer, BenchError> {
        self.requests.write_all(request.as_bytes()).map_err(doing("Mooncake's client"))?;
        answer(&mut self.answers, &self.client)
    }

    fn servers(&self) -> Result<Duration, BenchError> {
        let [master, store, _] = self.clocks[..] else { panic!("it has three processes") };
        let read = |clock: CpuClock| clock.read().map_err(doing("a CPU clock"));
        Ok(read(master)? + read(store)?)
    }
}

impl Slices for Mooncake {
    /// The cold buffers are the script's own, as large as those of the others.
    fn slice(
        &mut self,
        _rings: &mut [Ring],
        load: Load,
        progress: &mut Progress,
        operations: u32,
    ) -> Result<Sample, BenchError> {
        assert_eq!(load.depth, 1, "the script does one thing at a time");
        let start = progress.advance(load.slots, operations);
        let Load { operation, value_bytes, slots, .. } = load;
        let numbers = format!("{value_bytes} {slots} {start} {operations}");
        let word = match operation {
            Operation::Put => "put",
            Operation::Get => "get",
        };
        if operation == Operation::Put {
            self.ask(&format!("remove {numbers}\n"))?;
        }
        let before = self.servers()?;
        let told = self.ask(&format!("{word} {numbers}\n"))?;
        let server = self.servers()? - before;
        if told.calls.len() != operations as usize {
            return Err(BenchError::Answer {
                what: "an answer of Mooncake's client",
                source: None,
            });
        }
        let mut sample = Sample {
            operations: u64::from(operations),
            bytes: u64::from(operations) * value_bytes as u64,
            wall: Duration::from_secs_f64(told.seconds),
            client: Duration::from_secs_f64(told.cpu),
            server,
            ..Sample::default()
        };
        let calls = told.calls.into_iter().map(|us| Duration::from_secs_f64(us / 1e6));
        calls.for_each(|call| sample.latency.record(call));
        Ok(sample)
    }
}

/// The last error that a process told, or whatever it said last.
fn last_line(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let error = text.lines().rfind(|line| line.starts_with('E') || line.starts_with('F'));
    let line = error.or_else(|| text.lines().next_back());
    line.map_or(String::new(), |line| format!("({line})"))
}

/// The script's next line.
fn answer<T: DeserializeOwned>(
    answers: &mut BufReader<ChildStdout>,
    client: &Process,
) -> Result<T, BenchError> {
    // There is one line for each request, so nothing can wait in the buffer.
    let mut waiting = [PollFd::new(answers.get_ref().as_fd(), PollFlags::POLLIN)];
    let patience = PollTimeout::try_from(PATIENCE).expect("a minute is a time to wait");
    if poll(&mut waiting, patience).map_err(doing("Mooncake's client"))? == 0 {
        return Err(client.silent());
    }
    let mut line = String::new();
    answers.read_line(&mut line).map_err(doing("Mooncake's client"))?;
    if line.is_empty() {
        return Err(BenchError::Ended { name: client.name, log: client.log.clone() });
    }
    let what = "an answer of Mooncake's client";
    serde_json::from_str(&line).map_err(|source| BenchError::Answer { what, source: Some(source) })
}

/// The folder of the package: its binaries are in it.
fn package(python: &Path) -> Result<PathBuf, BenchError> {
    let mut command = Command::new(python);
    command.args(["-c", "import mooncake; print(mooncake.__path__[0])"]);
    let output = command.output().map_err(doing("Python"))?;
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    match output.status.success() {
        true => Ok(PathBuf::from(said(&output.stdout))),
        false => Err(BenchError::Said { name: "Python", said: said(&output.stderr) }),
    }
}

/// A binary of it that says little, and on standard error.
fn quiet(binary: &Path) -> Command {
    let mut command = Command::new(binary);
    command.args(["-minloglevel=1", "-logtostderr"]).stdin(Stdio::null()).stdout(Stdio::null());
    pooled(&mut command);
    command
}

/// Without this it connects anew for each value.
fn pooled(command: &mut Command) -> &mut Command {
    command.env("MC_TCP_ENABLE_CONNECTION_POOL", "1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_script_names_values_as_the_rings_do() {
        // The name of slot 3 of this length, as the script computes and writes it.
        let mut value = vec![0; 64];
        crate::ring::stamp(&mut value, 3);
        let name = ((3_u64 << 32) ^ 64).to_le_bytes();
        assert_eq!(value[..8], name);
        assert!(SCRIPT.contains(r#"((slot << 32) ^ length).to_bytes(8, "little")"#));
    }

    #[test]
    fn without_a_python_that_has_it_it_is_not_there() {
        let folder = Path::new("/nowhere");
        let needs = Needs { folder, python: None, stored_bytes: 0, ring_bytes: 0, connections: 1 };
        let absent = Mooncake::start(&needs).err().unwrap();
        assert_eq!(absent.0, "Mooncake is NOT INSTALLED");
        let python = Some(Path::new("/nowhere/python"));
        let absent = Mooncake::start(&Needs { python, ..needs }).err().unwrap();
        assert!(absent.0.starts_with("Mooncake DOES NOT START"), "{}", absent.0);
    }

    #[test]
    fn answers_of_the_script_are_read() {
        let line = r#"{"seconds": 0.5, "cpu": 0.25, "calls": [1.5, 2.5]}"#;
        let answer: Answer = serde_json::from_str(line).unwrap();
        assert_eq!((answer.seconds, answer.cpu, answer.calls.len()), (0.5, 0.25, 2));
    }
}
