//! One of two drives breaks under the real server: it cannot read some sectors, refuses writes to its
//! journal or its data, or stops answering and does so late.
//!
//! Each time: blocks are put while both drives are well, then the fault is there, and puts and reads
//! go on until the node says that it is degraded. From the fault on a block may be missing where the
//! server says that a fault took it; all that is acknowledged after the drive is out must be there,
//! and no read ever shows other bytes than the last that were acknowledged. Then the server is
//! killed, the drive is as good as new, and the server starts again: what the fault took stays away,
//! for it might have been replaced since, and all else is there.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use memkv_client::Client;
use memkv_journal::{Layout, SUPERBLOCK_BYTES, Superblock, UNIT};
use memkv_workload::store::{BlockStore, Present, PutBlock, Stored};
use serde_json::Value;

use super::daemon::{Daemon, Export, Refusal};
use super::{QemuError, io_error};
use crate::content;
use crate::ledger::{Event, Key, Ledger, LedgerError};
use crate::load::look_closely;
use crate::server::{Recipe, Server, client};

const DRIVE_BYTES: u64 = 96 << 20;
/// Keys that are put before the fault, and as many more after it.
const KEYS: u32 = 48;
/// Asked for together.
const BATCH: usize = 8;
/// How long the node may take to see that a drive is out.
const PATIENCE: Duration = Duration::from_secs(30);
/// The grain of the journal's ring.
const PAGE: usize = 4096;
/// Reasons of a miss that a fault explains.
const REASONS: [&str; 2] = ["drive_lost", "corrupt"];

/// What breaks.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Fault {
    /// Sectors of values cannot be read.
    Read,
    /// A page of the journal's ring, soon to be written, refuses.
    Journal,
    /// Free units refuse to be written.
    Data,
    /// No command is answered; much later all are.
    Stall,
}

/// In the order in which they are made.
pub const FAULTS: [Fault; 4] = [Fault::Read, Fault::Journal, Fault::Data, Fault::Stall];

impl Fault {
    /// One word.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Fault::Read => "read",
            Fault::Journal => "journal",
            Fault::Data => "data",
            Fault::Stall => "stall",
        }
    }

    /// What drive 1 refuses from now on; `image` is what is on it.
    fn refusals(self, image: &[u8]) -> Vec<Refusal> {
        let superblock = image.get(..SUPERBLOCK_BYTES).map(Superblock::parse);
        let Some(Ok(Superblock { layout, .. })) = superblock else { return Vec::new() };
        match self {
            Fault::Read => unreadable(image, &layout),
            Fault::Journal => {
                let ring = &image[layout.ring_offset as usize..][..layout.ring_bytes as usize];
                let used = ring.chunks(PAGE).rposition(|page| page.iter().any(|byte| *byte != 0));
                // Appends follow each other page by page: a few succeed, then one meets this.
                let page = used.map_or(0, |page| page + 1) + 4;
                let offset = layout.ring_offset + (page * PAGE) as u64;
                vec![Refusal { command: "write", offset }]
            }
            Fault::Data => {
                let free = units(image, &layout)
                    .filter(|(_, unit)| unit.iter().all(|byte| *byte == 0))
                    .map(|(offset, _)| Refusal { command: "write", offset });
                free.step_by(8).collect()
            }
            Fault::Stall => Vec::new(),
        }
    }
}

/// The units of the data area and where they begin.
fn units<'a>(image: &'a [u8], layout: &Layout) -> impl Iterator<Item = (u64, &'a [u8])> {
    let first = layout.data_offset;
    let count = layout.units as usize;
    let data = &image[first as usize..][..count * UNIT];
    data.chunks(UNIT).enumerate().map(move |(unit, bytes)| (first + (unit * UNIT) as u64, bytes))
}

/// Some sectors in which values begin, found by their bytes.
fn unreadable(image: &[u8], layout: &Layout) -> Vec<Refusal> {
    let beginning = |key: Key| {
        let mut value = content::value(key, 0);
        value.truncate(64);
        value
    };
    let beginnings: Vec<Vec<u8>> =
        (0..KEYS).map(beginning).filter(|value| value.len() == 64).collect();
    let holds = |unit: &[u8]| beginnings.iter().any(|value| unit.starts_with(value));
    let found = units(image, layout).filter(|(_, unit)| holds(unit));
    found.map(|(offset, _)| Refusal { command: "read", offset }).step_by(4).collect()
}

/// Makes one fault in `folder`, and says what was not as promised.
///
/// # Errors
/// When something fails that is not the server's promise.
pub fn run(fault: Fault, binary: &Path, folder: &Path) -> Result<Vec<String>, QemuError> {
    let mut scene = Scene::new(fault, binary, folder)?;
    let (daemon, server) = scene.start(Vec::new())?;
    let client = scene.client()?;
    scene.put(&client, 0..KEYS)?;
    scene.read(&client, false)?;
    let status = server.stop()?;
    if !status.success() {
        scene.found(format!("SIGTERM ended the server with {status}"));
    }
    daemon.stop()?;

    let image = fs::read(&scene.exports[1].image).map_err(io_error("an image"))?;
    let refusals = fault.refusals(&image);
    if refusals.is_empty() != (fault == Fault::Stall) {
        scene.found("there is no place for the fault on the drive".to_owned());
    }
    let (daemon, server) = scene.start(refusals)?;
    let client = scene.client()?;
    if fault == Fault::Stall {
        // The server is at work, and then its drive is gone.
        scene.put(&client, 0..KEYS / 2)?;
        daemon.pause()?;
    }
    scene.work_until_degraded(&client)?;
    // From here on nothing is lost any more.
    let before = scene.ledger.counts().lost;
    scene.put(&client, KEYS..2 * KEYS)?;
    scene.put(&client, 0..KEYS / 2)?;
    scene.read(&client, false)?;
    if fault == Fault::Stall {
        daemon.resume()?;
        scene.put(&client, KEYS / 2..KEYS + KEYS / 2)?;
        scene.read(&client, false)?;
    }
    scene.judge(&client, before)?;
    drop(client);
    server.kill()?;
    daemon.stop()?;

    // The drive is back with all that it held, and must not be believed.
    let (daemon, server) = scene.start(Vec::new())?;
    let client = scene.client()?;
    scene.read(&client, false)?;
    scene.expect_degraded()?;
    drop(client);
    server.kill()?;
    daemon.stop()?;
    Ok(scene.violations)
}

/// Everything that there is while a fault is made.
struct Scene {
    fault: Fault,
    folder: PathBuf,
    recipe: Recipe,
    exports: [Export; 2],
    ledger: Ledger,
    violations: Vec<String>,
    /// Puts that were answered with an error, all in all.
    failed: u64,
}

impl Scene {
    fn new(fault: Fault, binary: &Path, folder: &Path) -> Result<Scene, QemuError> {
        let export = |number: usize| -> Result<Export, QemuError> {
            let image = folder.join(format!("image{number}"));
            let file = File::create(&image).map_err(io_error("an image"))?;
            file.set_len(DRIVE_BYTES).map_err(io_error("an image"))?;
            let mount = folder.join(format!("drive{number}"));
            Ok(Export { image, mount, log: None, refusals: Vec::new() })
        };
        let exports = [export(0)?, export(1)?];
        let [first, second] = exports.each_ref().map(|export| export.mount.display());
        let rest = format!(
            "memory:\n  max_size: 64 MiB\n\
             storage:\n  mode: file\n  drive_timeout_ms: 5000\n  drives:\n\
             \x20   - media: {first}\n\x20   - media: {second}\n\
             \x20 eviction:\n    enabled: false\n"
        );
        let recipe = Recipe::configured(binary, folder, rest)?;
        let ledger = Ledger::open(&folder.join("ledger"))?;
        let (folder, violations) = (folder.to_owned(), Vec::new());
        Ok(Scene { fault, folder, recipe, exports, ledger, violations, failed: 0 })
    }

    /// The drives, of which the second refuses, and the server.
    ///
    /// Each drive has a daemon: one that stands still must not hold up the other.
    fn start(&mut self, refusals: Vec<Refusal>) -> Result<(Drives, Server), QemuError> {
        let [first, mut second] = self.exports.clone();
        second.refusals = refusals;
        let folders = [self.folder.join("daemon0"), self.folder.join("daemon1")];
        for folder in &folders {
            fs::create_dir_all(folder).map_err(io_error("a folder"))?;
        }
        let well = Daemon::start(&folders[0], &[first])?;
        let ill = Daemon::start(&folders[1], &[second])?;
        let mut server = self.recipe.start()?;
        server.wait_until_ready(self.recipe.address())?;
        Ok((Drives { well, ill }, server))
    }

    fn client(&self) -> Result<Client, QemuError> {
        Ok(client(self.recipe.address(), 2)?)
    }

    fn found(&mut self, what: String) {
        println!("VIOLATION: {}: {what}", self.fault.name());
        self.violations.push(what);
    }

    /// Puts every key anew until it is acknowledged. A put that fails is repeated: another drive is
    /// there.
    fn put(&mut self, client: &Client, keys: std::ops::Range<Key>) -> Result<(), QemuError> {
        let begun = Instant::now();
        let mut left: Vec<Key> = keys.collect();
        while !left.is_empty() {
            let batch: Vec<Key> = left.drain(..left.len().min(BATCH)).collect();
            let again = self.put_once(client, &batch)?;
            left.extend(again);
            if begun.elapsed() > PATIENCE {
                self.found(format!("keys {left:?} cannot be put within {PATIENCE:?}"));
                break;
            }
        }
        Ok(())
    }

    /// Puts a batch; the keys whose put failed.
    fn put_once(&mut self, client: &Client, batch: &[Key]) -> Result<Vec<Key>, QemuError> {
        let versions: Vec<u32> = batch.iter().map(|key| self.ledger.next_version(*key)).collect();
        let mut blocks = Vec::new();
        for (key, version) in batch.iter().zip(&versions) {
            self.ledger.note(Event::Put(*key, *version, Present::Replace))?;
            blocks.push((content::name(*key), content::value(*key, *version)));
        }
        let puts: Vec<PutBlock<'_>> =
            blocks.iter().map(|(key, value)| PutBlock { key, value }).collect();
        let answers = BlockStore::put(client, &puts, Present::Replace);
        let mut again = Vec::new();
        for ((answer, key), version) in answers.into_iter().zip(batch).zip(versions) {
            match answer {
                Ok(Stored::New) => self.ledger.note(Event::Stored(*key, version))?,
                Ok(Stored::Present) => self.found(format!("a replacement of key {key} was kept")),
                Err(_) => {
                    self.failed += 1;
                    again.push(*key);
                }
            }
        }
        Ok(again)
    }

    /// Reads every key. A miss that the fault explains is believed where it `may_be_lost`.
    fn read(&mut self, client: &Client, may_be_lost: bool) -> Result<(), QemuError> {
        let keys: Vec<Key> = self.ledger.keys().collect();
        for batch in keys.chunks(BATCH) {
            for (seen, key) in look_closely(client, &self.ledger, batch).into_iter().zip(batch) {
                let verdict = match seen {
                    // A drive that fails under a read may end it; the next one knows more.
                    Err(_) if may_be_lost => continue,
                    Err(failure) => {
                        self.found(format!("key {key} cannot be read: {failure}"));
                        continue;
                    }
                    Ok((_, Some(reason))) if may_be_lost && REASONS.contains(&reason) => {
                        self.ledger.note(Event::Lost(*key))
                    }
                    Ok((sight, _)) => sight.and_then(|event| self.ledger.note(event)),
                };
                match verdict {
                    Ok(()) => {}
                    Err(LedgerError::Violation(violation)) => self.found(violation.to_string()),
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }

    /// Reads or puts until the fault was met and the node says so, and everything that it took is
    /// known.
    fn work_until_degraded(&mut self, client: &Client) -> Result<(), QemuError> {
        let begun = Instant::now();
        loop {
            match self.fault {
                Fault::Read => self.read(client, true)?,
                Fault::Journal | Fault::Data | Fault::Stall => {
                    // The others stay where they are, some of them on the drive that breaks.
                    let keys: Vec<Key> = (0..KEYS / 2).collect();
                    keys.chunks(BATCH)
                        .try_for_each(|batch| self.put_once(client, batch).map(|_failed| ()))?;
                }
            }
            if self.health()?.0 == "degraded" {
                return self.read(client, true);
            }
            if begun.elapsed() > PATIENCE {
                self.found(format!("the node is not degraded after {PATIENCE:?}"));
                return Ok(());
            }
        }
    }

    /// What is to be said of a fault when the node has got over it.
    fn judge(&mut self, client: &Client, lost_before: u64) -> Result<(), QemuError> {
        self.expect_degraded()?;
        let counts = self.ledger.counts();
        let status = self.ask("/v1/status")?;
        let counter = |name: &str| status["counters"][name].as_u64().unwrap_or_default();
        let placed_again = counter("memkv_placed_again_total");
        let failed_drives = counter("memkv_drives_failed_total");
        println!(
            "{}: {} acknowledged puts, {} blocks taken by the fault, {} puts answered with an error, \
             {placed_again} placed once more, {} keys",
            self.fault.name(),
            counts.stored,
            counts.lost,
            self.failed,
            self.ledger.keys().count(),
        );
        if failed_drives != 1 {
            self.found(format!("{failed_drives} drives failed, of which one was broken"));
        }
        if counts.lost != lost_before || lost_before == 0 {
            let what = "blocks were taken, then none may be";
            self.found(format!("{lost_before} and {} {what}", counts.lost - lost_before));
        }
        if self.fault == Fault::Data && placed_again == 0 {
            self.found("no put was placed once more".to_owned());
        }
        let mut kinds: BTreeMap<&str, u32> = BTreeMap::new();
        let keys: Vec<Key> = self.ledger.keys().collect();
        for (_, reason) in look_closely(client, &self.ledger, &keys).into_iter().flatten() {
            *kinds.entry(reason.unwrap_or("there")).or_default() += 1;
        }
        println!("{}: {kinds:?}", self.fault.name());
        Ok(())
    }

    /// Status, and how many drives serve.
    fn health(&self) -> Result<(String, u64), QemuError> {
        let health = self.ask("/v1/health")?;
        let status = health["status"].as_str().unwrap_or_default().to_owned();
        Ok((status, health["drives_online"].as_u64().unwrap_or_default()))
    }

    fn expect_degraded(&mut self) -> Result<(), QemuError> {
        let health = self.health()?;
        if health != ("degraded".to_owned(), 1) {
            self.found(format!("the node says {health:?} while one of two drives serves"));
        }
        Ok(())
    }

    /// The body of an answer with status 200: a degraded node stays in service.
    fn ask(&self, path: &str) -> Result<Value, QemuError> {
        let data = self.recipe.address();
        let admin = SocketAddr::new(data.ip(), data.port() + 1);
        let begun = Instant::now();
        // The data port is there first.
        let mut stream = loop {
            match TcpStream::connect(admin) {
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                    if begun.elapsed() > PATIENCE {
                        return Err(io_error("the admin port")(error));
                    }
                    thread::sleep(Duration::from_millis(5));
                }
                stream => break stream.map_err(io_error("the admin port"))?,
            }
        };
        let request = format!("GET {path} HTTP/1.1\r\nHost: memkv\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).map_err(io_error("the admin port"))?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).map_err(io_error("the admin port"))?;
        let body = answer.split_once("\r\n\r\n").filter(|_| answer.starts_with("HTTP/1.1 200 "));
        let body = body.and_then(|(_, body)| serde_json::from_str(body).ok());
        body.ok_or_else(|| QemuError::Health(answer.lines().next().unwrap_or_default().to_owned()))
    }
}

/// The daemons of both drives.
struct Drives {
    well: Daemon,
    ill: Daemon,
}

impl Drives {
    fn pause(&self) -> Result<(), QemuError> {
        Ok(self.ill.pause()?)
    }

    fn resume(&self) -> Result<(), QemuError> {
        Ok(self.ill.resume()?)
    }

    fn stop(self) -> Result<(), QemuError> {
        self.well.stop()?;
        Ok(self.ill.stop()?)
    }
}
