//! Power cuts, replayed: the real server under load on drives that write down everything, and then
//! the real server again on what a power cut at some moment could have left.
//!
//! The load runs twice on the same drives with a SIGKILL after each run, so that starts after a crash
//! are in the logs as well. Then, for each [`Moment`] that is drawn, an image of each drive is made:
//! all of its log up to the last flush before the moment, and of what came after what [`Fate`] says.
//! A server is started on the two, and every key that was ever used is read: under `power` all that
//! was acknowledged by the moment must be there, byte-exact, and what was deleted must stay away.
//!
//! What this does not show: a drive that breaks its word about a flush, a sector written in part, and
//! crashes while drives are being formatted, before there is anything to owe.

use std::fs::{self, File};
use std::io;
use std::ops::AddAssign;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;

use super::cuts::{DRIVES, Moment, Sampler, ledger_at, moments};
use super::daemon::{Daemon, Export};
use super::writelog::{Command, Entry, WriteLog};
use super::{QemuError, io_error};
use crate::ledger::{Key, Ledger, LedgerError};
use crate::load::{self, LoadOptions, look};
use crate::server::{Recipe, client};

/// Bytes of a drive: enough for the load, and quickly copied.
const DRIVE_BYTES: u64 = 64 << 20;
/// Keys and threads of the load.
const KEYS: u32 = 48;
const THREADS: u32 = 4;
/// Each of the two runs of the load ends when the ledger has grown by so much (a line has about 15
/// bytes), or after so long.
const LEDGER_BYTES: u64 = 20_000;
const UNDER_LOAD: Duration = Duration::from_secs(15);
/// Zeros are left out of an image in pieces of this size.
const PIECE: usize = 64 << 10;
/// Where a write may be cut.
const SECTOR: usize = 512;

/// What became of the writes that no flush has made durable.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
enum Fate {
    /// All are there.
    Kept,
    /// None is.
    Gone,
    /// The first ones are, the last of those in part.
    Torn,
    /// Each is or is not; one of them is there in part.
    Scattered,
    /// All are but one: what came later may lean on it.
    AllButOne,
}

const FATES: [Fate; 6] =
    [Fate::AllButOne, Fate::Scattered, Fate::Torn, Fate::AllButOne, Fate::Gone, Fate::Kept];

/// How much was done.
#[derive(Copy, Clone, Default, Debug)]
pub struct Tally {
    /// Servers started on a state.
    pub states: u64,
    /// Moments to choose from.
    pub moments: u64,
    /// Commands in the logs.
    pub commands: u64,
    /// Flushes among them.
    pub flushes: u64,
    /// States that lack a write that was answered.
    pub with_loss: u64,
    /// States with a part of a write.
    pub torn: u64,
    /// States with a request under way.
    pub in_flight: u64,
    /// Acknowledged contents that were looked for, over all states.
    pub owed: u64,
    /// Acknowledged puts of the load.
    pub stored: u64,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Tally) {
        self.states += other.states;
        self.with_loss += other.with_loss;
        self.torn += other.torn;
        self.in_flight += other.in_flight;
        self.owed += other.owed;
    }
}

/// What was recorded.
struct Recording {
    logs: [PathBuf; DRIVES],
    ledger: String,
    moments: Vec<Moment>,
}

/// Everything that the replay found.
pub struct Outcome {
    /// Contradictions, in words.
    pub violations: Vec<String>,
    /// How much was done.
    pub tally: Tally,
}

/// Records in `folder`, and replays `states` power cuts.
///
/// # Errors
/// When something fails that is not the server's promise.
pub fn run(binary: &Path, folder: &Path, states: u32, seed: u64) -> Result<Outcome, QemuError> {
    let mut rng = Rng::with_seed(seed);
    let begun = Instant::now();
    let (recording, mut tally) = record(binary, folder, &mut rng)?;
    println!(
        "recorded in {:.1} s: {} acknowledged puts, {} commands to the drives, {} of them flushes; {} \
         moments",
        begun.elapsed().as_secs_f64(),
        tally.stored,
        tally.commands,
        tally.flushes,
        tally.moments
    );
    let begun = Instant::now();
    let logs = [WriteLog::open(&recording.logs[0])?, WriteLog::open(&recording.logs[1])?];
    let chosen = choose(&recording.moments, &logs, states, &mut rng);
    let jobs = thread::available_parallelism().map_or(1, usize::from).min(2);
    let outcomes: Vec<Result<Outcome, QemuError>> = thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs)
            .map(|job| {
                let (chosen, recording) = (&chosen, &recording);
                let mut own = chosen.iter().copied().skip(job).step_by(jobs);
                let folder = folder.join(format!("replay{job}"));
                scope.spawn(move || {
                    let mut replay = Replay::new(binary, folder, recording)?;
                    own.try_for_each(|(number, moment)| replay.state(seed, number, &moment))?;
                    Ok(Outcome { violations: replay.violations, tally: replay.tally })
                })
            })
            .collect();
        workers.into_iter().map(|worker| worker.join().expect("a replay panicked")).collect()
    });
    let mut violations = Vec::new();
    for outcome in outcomes {
        let outcome = outcome?;
        violations.extend(outcome.violations);
        tally += outcome.tally;
    }
    println!(
        "{} power cuts in {:.1} s: {} lacked a write that no flush covered, {} had one in part, {} had \
         a request under way; {} acknowledged contents were looked for",
        tally.states,
        begun.elapsed().as_secs_f64(),
        tally.with_loss,
        tally.torn,
        tally.in_flight,
        tally.owed
    );
    Ok(Outcome { violations, tally })
}

/// As many moments as are wanted, from all over the recording, each with its number. Of five, four
/// are of those at which some drive has two writes or more that no flush covers, where there are any.
fn choose(moments: &[Moment], logs: &[WriteLog; DRIVES], states: u32, rng: &mut Rng) -> Chosen {
    let unflushed = |drive: usize, length: u64| {
        let entries = logs[drive].entries();
        let told = &entries[..entries.partition_point(|entry| entry.end <= length)];
        told.iter().rev().take_while(|entry| entry.command != Command::Flush).count()
    };
    let busy = |moment: &&Moment| (0..DRIVES).any(|drive| unflushed(drive, moment.at[drive]) > 1);
    let busy: Vec<Moment> = moments.iter().filter(busy).copied().collect();
    let mut chosen: Vec<Moment> = Vec::new();
    for state in 0..states as usize {
        let from = if state % 5 == 0 || busy.is_empty() { moments } else { &busy };
        let (begin, end) = (state * from.len(), (state + 1) * from.len());
        let place = (begin + rng.usize(..(end - begin).max(1))) / states as usize;
        chosen.extend(from.get(place));
    }
    // Drives only move on.
    chosen.sort_by_key(|moment| moment.at);
    (0..states).zip(chosen).collect()
}

type Chosen = Vec<(u32, Moment)>;

fn storage(drives: &[PathBuf; DRIVES]) -> String {
    let [first, second] = drives.each_ref().map(|path| path.display());
    format!(
        "memory:\n  max_size: 64 MiB\n\
         storage:\n  mode: file\n  durability: power\n  drives:\n\
         \x20   - media: {first}\n\x20   - media: {second}\n\
         \x20 trim:\n    enabled: true\n    interval_ms: 50\n\
         \x20 eviction:\n    enabled: false\n"
    )
}

/// Runs the load twice over drives that are written down, killing the server each time.
fn record(binary: &Path, folder: &Path, rng: &mut Rng) -> Result<(Recording, Tally), QemuError> {
    let path = |name: &str, drive: usize| folder.join(format!("{name}{drive}"));
    let each = |name: &str| [path(name, 0), path(name, 1)];
    let (logs, drives, ledger) = (each("log"), each("drive"), folder.join("ledger"));
    let mut exports = Vec::new();
    for drive in 0..DRIVES {
        let image = File::create(path("image", drive)).map_err(io_error("an image"))?;
        image.set_len(DRIVE_BYTES).map_err(io_error("an image"))?;
        let (image, mount) = (path("image", drive), path("drive", drive));
        let log = Some(path("log", drive));
        exports.push(Export { image, mount, log, refusals: Vec::new() });
    }
    let daemon = Daemon::start(folder, &exports)?;
    let recipe = Recipe::configured(binary, folder, storage(&drives))?;
    let mut sampler = None;
    for _ in 0..2 {
        let mut server = recipe.start()?;
        server.wait_until_ready(recipe.address())?;
        // Not before: drives that are being formatted owe nothing.
        if sampler.is_none() {
            sampler = Some(Sampler::start(&ledger, &logs).map_err(io_error("the sampler"))?);
        }
        let options = LoadOptions { seed: rng.u64(..), threads: THREADS, keys: KEYS };
        let mut load =
            load::spawn(recipe.address(), &ledger, options).map_err(io_error("a load"))?;
        await_growth(&ledger, LEDGER_BYTES, UNDER_LOAD);
        server.kill()?;
        drop(load.stdin.take());
        let status = load.wait().map_err(io_error("the load"))?;
        if !status.success() {
            return Err(QemuError::Load(status));
        }
    }
    let sampler = sampler.expect("the load ran");
    let samples = sampler.stop().map_err(io_error("the sampler"))?;
    daemon.stop()?;
    let read = [WriteLog::open(&logs[0])?, WriteLog::open(&logs[1])?];
    let moments = moments(&samples, &read);
    let all = read.iter().flat_map(WriteLog::entries);
    let flushes = all.clone().filter(|entry| entry.command == Command::Flush).count() as u64;
    let tally = Tally {
        commands: all.count() as u64,
        flushes,
        moments: moments.len() as u64,
        stored: Ledger::open(&ledger)?.counts().stored,
        ..Tally::default()
    };
    let ledger = fs::read_to_string(&ledger).map_err(io_error("the ledger"))?;
    Ok((Recording { logs, ledger, moments }, tally))
}

/// Waits until a file has grown by `bytes`, or for so long.
fn await_growth(path: &Path, bytes: u64, at_most: Duration) {
    let length = || fs::metadata(path).map_or(0, |file| file.len());
    let (begun, before) = (Instant::now(), length());
    while length() < before + bytes && begun.elapsed() < at_most {
        thread::sleep(Duration::from_millis(2));
    }
}

/// One drive at a moment that moves on: everything durable, and what is not yet.
struct Drive {
    log: WriteLog,
    /// With everything up to the last flush.
    durable: Vec<u8>,
    /// Entries up to the last flush.
    applied: usize,
}

impl Drive {
    /// Moves on to the moment when the log was so long; what no flush covers by then.
    fn advance(&mut self, length: u64) -> io::Result<Vec<Entry>> {
        let entries = self.log.entries();
        let told = entries.partition_point(|entry| entry.end <= length);
        let flush = entries[..told].iter().rposition(|entry| entry.command == Command::Flush);
        let flushed = flush.map_or(0, |at| at + 1).max(self.applied);
        for entry in &entries[self.applied..flushed] {
            place(&mut self.durable, entry, &self.log.bytes(entry)?);
        }
        self.applied = flushed;
        Ok(entries[flushed..told].to_vec())
    }
}

fn place(image: &mut [u8], entry: &Entry, bytes: &[u8]) {
    image[entry.offset as usize..][..bytes.len()].copy_from_slice(bytes);
}

/// Which bytes of each unflushed write are there: `(from, to)`.
fn spared(fate: Fate, pending: &[Entry], rng: &mut Rng) -> Vec<(usize, usize)> {
    let whole = |entry: &Entry| (0, entry.len as usize);
    let none = (0, 0);
    let part = |entry: &Entry, rng: &mut Rng| {
        let sectors = entry.len as usize / SECTOR;
        let cut = rng.usize(1..sectors.max(2)) * SECTOR;
        if rng.bool() { (0, cut.min(entry.len as usize)) } else { (cut, entry.len as usize) }
    };
    // Some writes are long, most are not: any of them may be the one that was under way.
    let victim = rng.usize(..pending.len().max(1));
    pending
        .iter()
        .enumerate()
        .map(|(number, entry)| match fate {
            Fate::AllButOne if number == victim => none,
            Fate::Kept | Fate::AllButOne => whole(entry),
            Fate::Gone => none,
            Fate::Torn if number < victim => whole(entry),
            Fate::Torn if number > victim => none,
            Fate::Scattered if number != victim => [none, whole(entry)][rng.usize(..2)],
            Fate::Torn | Fate::Scattered => part(entry, rng),
        })
        .collect()
}

/// A worker: its drives, its server, and what it found.
struct Replay<'a> {
    recording: &'a Recording,
    folder: PathBuf,
    recipe: Recipe,
    drives: [Drive; DRIVES],
    violations: Vec<String>,
    tally: Tally,
}

impl Replay<'_> {
    fn new<'a>(
        binary: &Path,
        folder: PathBuf,
        recording: &'a Recording,
    ) -> Result<Replay<'a>, QemuError> {
        fs::create_dir_all(&folder).map_err(io_error("a folder"))?;
        let images = [folder.join("drive0"), folder.join("drive1")];
        let recipe = Recipe::configured(binary, &folder, storage(&images))?;
        let drive = |log: &PathBuf| -> Result<Drive, QemuError> {
            let durable = vec![0; DRIVE_BYTES as usize];
            Ok(Drive { log: WriteLog::open(log)?, durable, applied: 0 })
        };
        let drives = [drive(&recording.logs[0])?, drive(&recording.logs[1])?];
        let (violations, tally) = (Vec::new(), Tally::default());
        Ok(Replay { recording, folder, recipe, drives, violations, tally })
    }

    /// Makes one state, starts a server on it, and reads everything.
    fn state(&mut self, seed: u64, number: u32, moment: &Moment) -> Result<(), QemuError> {
        let fate = FATES[number as usize % FATES.len()];
        let mut rng = Rng::with_seed(seed ^ u64::from(number) << 32);
        let (mut lost, mut torn) = (false, false);
        for (index, drive) in self.drives.iter_mut().enumerate() {
            let path = self.folder.join(format!("drive{index}"));
            let pending = drive.advance(moment.at[index]).map_err(io_error("a log"))?;
            let spared = spared(fate, &pending, &mut rng);
            let mut image = drive.durable.clone();
            for (entry, (from, to)) in pending.iter().zip(spared) {
                let bytes = drive.log.bytes(entry).map_err(io_error("a log"))?;
                image[entry.offset as usize..][from..to].copy_from_slice(&bytes[from..to]);
                lost |= to - from < bytes.len();
                torn |= from < to && to - from < bytes.len();
            }
            write_image(&path, &image).map_err(io_error("an image"))?;
        }
        let path = self.folder.join("ledger");
        let text = ledger_at(&self.recording.ledger, moment);
        fs::write(&path, text).map_err(io_error("a ledger"))?;
        let mut ledger = Ledger::open(&path)?;
        let unsure = |key: &Key| ledger.possible(*key).len() > 1;
        self.tally.in_flight += u64::from(ledger.keys().any(|key| unsure(&key)));
        self.tally.states += 1;
        self.tally.with_loss += u64::from(lost);
        self.tally.torn += u64::from(torn);
        let owed = |key: &Key| ledger.possible(*key).iter().all(Option::is_some);
        self.tally.owed += ledger.keys().filter(owed).count() as u64;
        let found = self.audit(&mut ledger)?;
        for what in found {
            let what = format!("power cut {number} ({fate:?}, logs at {:?}): {what}", moment.at);
            println!("VIOLATION: {what}");
            self.violations.push(what);
        }
        Ok(())
    }

    /// What the server that is started on the state contradicts.
    fn audit(&self, ledger: &mut Ledger) -> Result<Vec<String>, QemuError> {
        let mut server = self.recipe.start()?;
        if let Err(error) = server.wait_until_ready(self.recipe.address()) {
            return Ok(vec![format!("the server does not start: {error}")]);
        }
        let client = client(self.recipe.address(), 1)?;
        let keys: Vec<Key> = ledger.keys().collect();
        let mut found = Vec::new();
        for batch in keys.chunks(16) {
            for (sight, key) in look(&client, ledger, batch).into_iter().zip(batch) {
                let verdict = match sight {
                    Err(failure) => {
                        found.push(format!("key {key} cannot be read: {failure}"));
                        continue;
                    }
                    Ok(sight) => sight.and_then(|event| ledger.note(event)),
                };
                match verdict {
                    Ok(()) => {}
                    Err(LedgerError::Violation(violation)) => found.push(violation.to_string()),
                    Err(error) => return Err(error.into()),
                }
            }
        }
        server.kill()?;
        Ok(found)
    }
}

/// Writes an image, sparse.
fn write_image(path: &Path, image: &[u8]) -> io::Result<()> {
    let file = File::create(path)?;
    file.set_len(image.len() as u64)?;
    for (number, piece) in image.chunks(PIECE).enumerate() {
        if piece.iter().any(|byte| *byte != 0) {
            file.write_all_at(piece, (number * PIECE) as u64)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(len: u64) -> Entry {
        Entry { command: Command::Write { bytes_at: 0 }, offset: 0, len, end: 0 }
    }

    #[test]
    fn fates_are_what_they_say() {
        let pending = [write(4096), write(1 << 20), write(512), write(8192)];
        let len = |(from, to): (usize, usize)| to - from;
        for seed in 0..200 {
            let mut rng = Rng::with_seed(seed);
            let all = spared(Fate::Kept, &pending, &mut rng);
            assert!(all.iter().zip(&pending).all(|(part, entry)| len(*part) == entry.len as usize));
            assert!(spared(Fate::Gone, &pending, &mut rng).iter().all(|part| len(*part) == 0));
            let but_one = spared(Fate::AllButOne, &pending, &mut rng);
            let missing = but_one.iter().filter(|part| len(**part) == 0).count();
            let there = but_one.iter().zip(&pending);
            let there = there.filter(|(part, entry)| len(**part) == entry.len as usize).count();
            assert_eq!((missing, there), (1, pending.len() - 1));
            let torn = spared(Fate::Torn, &pending, &mut rng);
            let whole = torn
                .iter()
                .zip(&pending)
                .take_while(|(part, entry)| len(**part) == entry.len as usize);
            let first = whole.count();
            let after = torn.iter().skip(first + 1);
            assert!(after.clone().all(|part| len(*part) == 0), "{torn:?}");
            for part in spared(Fate::Scattered, &pending, &mut rng).iter().chain(&torn) {
                assert!(part.0.is_multiple_of(SECTOR) && part.1.is_multiple_of(SECTOR), "{part:?}");
                assert!(part.0 <= part.1, "{part:?}");
            }
        }
        assert!(spared(Fate::Torn, &[], &mut Rng::with_seed(1)).is_empty());
    }

    /// A log of commands: `w` writes a sector, `f` flushes. Each is as long as its entry.
    fn log(commands: &str) -> WriteLog {
        let sector = |words: [u64; 4]| {
            let mut sector: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            sector.resize(SECTOR, 0);
            sector
        };
        let mut bytes = sector([0x6a_7366_7773_6872, 1, 0, SECTOR as u64]);
        for command in commands.chars() {
            bytes.extend(sector([0, u64::from(command == 'w'), u64::from(command == 'f'), 0]));
            bytes.extend(vec![7; if command == 'w' { SECTOR } else { 0 }]);
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), &bytes).unwrap();
        WriteLog::open(file.path()).unwrap()
    }

    #[test]
    fn moments_are_drawn_from_all_over_and_most_where_something_is_at_stake() {
        let logs = [log(&"wwwf".repeat(100)), log("")];
        let moments: Vec<Moment> = logs[0]
            .entries()
            .iter()
            .map(|entry| Moment { acknowledged: 0, asked: 0, at: [entry.end, 0] })
            .collect();
        let chosen = choose(&moments, &logs, 100, &mut Rng::with_seed(7));
        assert_eq!(chosen.len(), 100);
        assert!(chosen.is_sorted_by_key(|(number, moment)| (moment.at, *number)));
        // Seven sectors a round: the second and third write of each have company.
        let rounds = 7 * SECTOR as u64;
        let within = |moment: &Moment| (moment.at[0] - SECTOR as u64 - 1) % rounds / SECTOR as u64;
        let busy = chosen.iter().filter(|(_, moment)| (2..6).contains(&within(moment))).count();
        assert!(busy >= 80, "{busy}");
        let thirds = chosen.iter().map(|(_, moment)| (moment.at[0] - 513) * 3 / (100 * rounds));
        let mut seen = [0; 3];
        thirds.for_each(|third| seen[third as usize] += 1);
        assert!(seen.iter().all(|count| *count > 20), "{seen:?}");
        assert!(choose(&[], &logs, 5, &mut Rng::with_seed(7)).is_empty());
    }

    #[test]
    fn a_drive_keeps_what_was_flushed_and_lists_what_was_not() {
        let log = log("wwfwfww");
        let ends: Vec<u64> = log.entries().iter().map(|entry| entry.end).collect();
        let mut drive = Drive { log, durable: vec![0; SECTOR], applied: 0 };
        assert_eq!(drive.advance(ends[1]).unwrap().len(), 2);
        assert_eq!((drive.applied, drive.durable[0]), (0, 0));
        // The entry that is not wholly there does not count.
        assert_eq!(drive.advance(ends[3] - 1).unwrap().len(), 0);
        assert_eq!((drive.applied, drive.durable[0]), (3, 7));
        assert_eq!(drive.advance(ends[6]).unwrap().len(), 2);
        assert_eq!(drive.applied, 5);
    }
}
