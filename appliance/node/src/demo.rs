//! `memkv demo`: conversations offloaded to and onboarded from a real server, through a crash.
//!
//! The server is this binary, started as `memkv start` in a process of its own with a temporary
//! configuration, so that it can be killed as a crash would kill it. Everything that is said in the
//! table was measured; every byte that came back was compared with what must be there.

use std::fs::File;
use std::io::IsTerminal;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use comfy_table::{ContentArrangement, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use memkv_admin_api::size::short_size;
use memkv_client::{Client, Config as ClientConfig};
use memkv_wire::SharedKey;
use memkv_workload::audit::{AuditReport, Recorder, audit};
use memkv_workload::block::Keys;
use memkv_workload::conversations::{ConversationOptions, Conversations};
use memkv_workload::replay::{ReplayOptions, ReplayReport, replay};
use memkv_workload::store::BlockStore;
use memkv_workload::trace::Request;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cli::{DemoArgs, Exit};
use crate::drives::random;
use crate::serve::chain;

/// Bytes of one block: 512 tokens of a small model.
const BLOCK: usize = 1 << 20;
/// The data file.
const DRIVE: u64 = 3 << 30;
/// Connections of the replay.
const CONNECTIONS: usize = 4;
/// The longest that a server may take to serve.
const READY: Duration = Duration::from_secs(60);
/// Blocks that are acknowledged after the second part began when the server is killed.
const KILL_AFTER: usize = 80;

type AnyError = Box<dyn std::error::Error>;

/// Runs the demo; what it prints is for people.
pub fn run(args: &DemoArgs) -> Exit {
    match demo(args) {
        Ok(true) => Exit::Done,
        Ok(false) => Exit::Failed,
        Err(error) => {
            eprintln!("memkv demo: {}", chain(&*error));
            Exit::Failed
        }
    }
}

fn demo(args: &DemoArgs) -> Result<bool, AnyError> {
    let mut builder = tempfile::Builder::new();
    builder.prefix("memkv-demo-");
    let dir = match &args.dir {
        Some(parent) => builder.tempdir_in(parent)?,
        None => builder.tempdir()?,
    };
    let site = Site::new(dir.path())?;
    println!("memkv demo: one node in {}, {} file", dir.path().display(), short_size(DRIVE));

    let begun = Instant::now();
    let mut server = site.start()?;
    let first = site.client()?;
    println!("  server {} serves {} after {:.1?}", server.id(), site.address, begun.elapsed());

    let all: Vec<Request> = Conversations::new(conversations(args.seed)).collect();
    let (part1, rest) = all.split_at(all.len() / 2);
    let (part2, part3) = rest.split_at(rest.len() / 2);
    let recorder = Recorder::new(&first);
    let offload = phase("offload and onboard", &recorder, part1)?;
    let (crash, killed) = crash(&mut server, &recorder, part2)?;

    let keys = Keys::new(&options().label, BLOCK);
    let acknowledged = recorder.blocks(&keys);
    let begun = Instant::now();
    server = site.start()?;
    let second = site.client()?;
    let back = begun.elapsed();
    println!("  server {} serves again after {back:.1?}", server.id());
    println!("  asking for all {} acknowledged blocks again", acknowledged.len());
    let audited = audit(&second, &keys, &acknowledged, BLOCK, CONNECTIONS);
    let resumed = phase("conversations go on", &second, part3)?;
    let stopped = site.stop(server)?;

    print_table(&[("before", &offload), ("crash", &crash), ("after", &resumed)]);
    let verdict = Verdict { audited, killed, back, stopped };
    Ok(verdict.print(&[&offload, &crash, &resumed]))
}

fn conversations(seed: u64) -> ConversationOptions {
    ConversationOptions { seed, conversations: 60, ..ConversationOptions::default() }
}

fn options() -> ReplayOptions {
    ReplayOptions {
        block_bytes: BLOCK,
        label: "demo".into(),
        connections: CONNECTIONS,
        verify: true,
        ..ReplayOptions::default()
    }
}

fn bar(name: &str, requests: usize) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(requests as u64);
    let style = "  {prefix:22} {bar:30} {pos}/{len} turns  {msg}";
    bar.set_style(ProgressStyle::with_template(style).expect("a good template"));
    bar.set_prefix(name.to_owned());
    bar
}

/// Replays requests, checking every byte, with a progress bar.
fn phase(
    name: &str,
    store: &dyn BlockStore,
    requests: &[Request],
) -> Result<ReplayReport, AnyError> {
    let bar = bar(name, requests.len());
    let requests = requests.iter().cloned().map(Ok::<_, std::convert::Infallible>);
    let report = replay(store, requests, &options(), &mut |now| {
        bar.set_position(now.requests);
        let moved = short_size(now.bytes_in + now.bytes_out);
        bar.set_message(format!("{:.0} % hits, {moved}", 100.0 * now.hit_ratio));
    })?;
    bar.finish_and_clear();
    let rate = (report.bytes_in + report.bytes_out) as f64 / report.wall_seconds.max(1e-9);
    println!(
        "  {name}: {} turns, {:.0} % prefix hits, {}/s",
        report.requests,
        100.0 * report.hit_ratio,
        short_size(rate as u64)
    );
    Ok(report)
}

/// Replays on, and kills the server (SIGKILL) after some more blocks were acknowledged.
fn crash(
    server: &mut Child,
    recorder: &Recorder<'_>,
    requests: &[Request],
) -> Result<(ReplayReport, usize), AnyError> {
    let target = recorder.acknowledged() + KILL_AFTER;
    let done = AtomicBool::new(false);
    let mut killed = 0;
    let report = std::thread::scope(|scope| {
        let killer = scope.spawn(|| {
            while recorder.acknowledged() < target && !done.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(1));
            }
            let acknowledged = recorder.acknowledged();
            kill_now(server).map(|()| acknowledged)
        });
        let requests = requests.iter().cloned().map(Ok::<_, std::convert::Infallible>);
        let mut options = options();
        options.wall = Some(Duration::from_secs(5));
        let report = replay(recorder, requests, &options, &mut |_| {});
        done.store(true, Ordering::Relaxed);
        killed = killer.join().expect("the killer does not panic")?;
        Ok::<_, AnyError>(report?)
    })?;
    println!("  SIGKILL in the middle, after {killed} acknowledged blocks");
    Ok((report, killed))
}

fn kill_now(server: &mut Child) -> std::io::Result<()> {
    server.kill()?;
    server.wait().map(drop)
}

/// Where the demo's server lives.
struct Site {
    dir: PathBuf,
    address: SocketAddr,
    key: SharedKey,
}

impl Site {
    fn new(dir: &Path) -> Result<Self, AnyError> {
        let mut key = [0; 32];
        random(&mut key);
        let hex: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
        let address = free_ports()?;
        let media = dir.join("drive.memkv");
        let config = format!(
            "network:\n  address: {address}\n  auth_key: {hex}\n\
             memory:\n  max_size: 256 MiB\n\
             storage:\n  mode: file\n  drives:\n    - media: {}\n      max_size: {DRIVE}\n",
            media.display()
        );
        std::fs::write(dir.join("config.yaml"), config)?;
        Ok(Self { dir: dir.to_owned(), address, key: SharedKey::from_bytes(key) })
    }

    /// Starts the server and waits until it answers.
    fn start(&self) -> Result<Child, AnyError> {
        let log = File::options().create(true).append(true).open(self.dir.join("server.log"))?;
        // Gone when it was built anew meanwhile.
        let server = std::env::current_exe()?;
        let mut child = Command::new(&server)
            .args(["start", "--log-format", "human", "--config"])
            .arg(self.dir.join("config.yaml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(|error| format!("{} cannot be started: {error}", server.display()))?;
        let deadline = Instant::now() + READY;
        loop {
            if let Some(status) = child.try_wait()? {
                let log = std::fs::read_to_string(self.dir.join("server.log"))?;
                return Err(format!("the server ended at its start ({status}):\n{log}").into());
            }
            let answers = self.client()?.server_stats();
            if answers.iter().all(|(_, stats)| stats.is_ok()) {
                return Ok(child);
            }
            if Instant::now() > deadline {
                kill_now(&mut child)?;
                return Err("the server did not answer in time".into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn client(&self) -> Result<Client, AnyError> {
        let config = ClientConfig {
            servers: vec![self.address.to_string()],
            namespace: "demo".into(),
            auth_key: Some(self.key.clone()),
            num_connections: CONNECTIONS,
            ..ClientConfig::default()
        };
        Ok(Client::new(config)?)
    }

    /// Ends the server as an operator would; says whether it stopped in order.
    fn stop(&self, mut server: Child) -> Result<bool, AnyError> {
        kill(Pid::from_raw(server.id() as i32), Signal::SIGTERM)?;
        Ok(server.wait()?.success())
    }
}

/// A data port whose neighbour is free too.
fn free_ports() -> Result<SocketAddr, AnyError> {
    for _ in 0..64 {
        let data = TcpListener::bind("127.0.0.1:0")?;
        let address = data.local_addr()?;
        if address.port() < u16::MAX && TcpListener::bind(("127.0.0.1", address.port() + 1)).is_ok()
        {
            return Ok(address);
        }
    }
    Err("no two neighbouring ports are free".into())
}

fn print_table(phases: &[(&str, &ReplayReport)]) {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    table.set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header([
        "part",
        "turns",
        "blocks",
        "prefix hits",
        "stored",
        "fetched",
        "GiB/s",
        "get p50/p99",
        "put p50/p99",
    ]);
    for (name, report) in phases {
        let bytes = (report.bytes_in + report.bytes_out) as f64;
        let rate = bytes / report.wall_seconds.max(1e-9) / f64::from(1 << 30);
        let times = |l: &memkv_workload::latency::LatencySummary| {
            format!("{:.1}/{:.1} ms", l.p50_us / 1e3, l.p99_us / 1e3)
        };
        table.add_row([
            (*name).to_owned(),
            report.requests.to_string(),
            report.references.to_string(),
            format!("{:.0} %", 100.0 * report.hit_ratio),
            report.stored_blocks.to_string(),
            report.fetched_blocks.to_string(),
            format!("{rate:.2}"),
            times(&report.get_latency),
            times(&report.put_latency),
        ]);
    }
    println!("{table}");
    println!("times are per batch of up to 8 blocks of {}", short_size(BLOCK as u64));
}

struct Verdict {
    audited: AuditReport,
    killed: usize,
    back: Duration,
    stopped: bool,
}

impl Verdict {
    /// Prints it; whether everything is as promised.
    fn print(&self, phases: &[&ReplayReport]) -> bool {
        let wrong: u64 = phases.iter().map(|r| r.faults.wrong_blocks).sum();
        let wrong = wrong + self.audited.faults.wrong_blocks;
        let checked: u64 = phases.iter().map(|r| r.fetched_blocks).sum();
        let failed = phases[0].faults.failed_operations() + phases[2].faults.failed_operations();
        let good = wrong == 0 && self.audited.is_clean() && failed == 0 && self.stopped;
        println!("acknowledged before the kill   {}", self.killed);
        println!("found after the restart        {}/{}", self.audited.found, self.audited.blocks);
        println!("killed to serving again        {:.2?}", self.back);
        println!("blocks compared byte by byte   {}", checked + self.audited.found);
        println!("wrong bytes                    {wrong}");
        if failed > 0 {
            println!("failed operations              {failed}");
        }
        if let Some((block, reason)) = &self.audited.first_missing {
            println!("first missing block            {block} ({reason})");
        }
        if !self.stopped {
            println!("the server did not stop in order");
        }
        println!("{}", if good { "every promise kept" } else { "A PROMISE WAS BROKEN" });
        good
    }
}
