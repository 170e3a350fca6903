//! `memkv drive check`: everything that is on drives, read and held against its checksums.
//!
//! Superblock copies, the log and both checkpoints of each drive first; what lives is known then.
//! After that every extent, in the order of the drive, a few reads at a time and all drives side by
//! side. Blocks that lie on several drives are named by their heads, on whichever drive those are.
//!
//! *Problems* are damage: something that was stored cannot be had any more. *Notes* are what a crash
//! leaves and the next start puts right.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::io::IsTerminal;
use std::rc::Rc;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use memkv_admin_api::size::short_size;
use memkv_dma::Pool;
use memkv_journal::{
    BlockId, Contents, CopyState, DriveUuid, ExtentFault, KeyBytes, PartRef, Record, Superblock,
    UnitRange,
};
use memkv_poller::Local;
use serde::Serialize;

use super::{Bench, OfflineError, Which, in_use, look_to_take, named_at_least_one, say, say_json};
use crate::cli::Exit;
use crate::drives::Opened;

/// Reads under way on one drive.
const DEPTH: usize = 4;
/// How often progress is told where there is no terminal.
const TELL: Duration = Duration::from_secs(10);
/// Damaged blocks that are named on a terminal; JSON names all.
const NAMED: usize = 50;

/// The verdict on all drives.
#[derive(Debug, Serialize)]
struct Report {
    ok: bool,
    drives: Vec<DriveReport>,
    extents: u64,
    bytes: u64,
    seconds: f64,
    bytes_per_second: f64,
}

/// The verdict on one drive.
#[derive(Debug, Default, Serialize)]
struct DriveReport {
    path: String,
    drive: Option<String>,
    node: Option<String>,
    ok: bool,
    /// What each copy of the superblock is worth.
    copies: Vec<&'static str>,
    frames: u64,
    records: u64,
    checkpoint_rows: u64,
    /// Blocks, and parts of blocks.
    extents: u64,
    bytes: u64,
    /// Damage.
    problems: Vec<String>,
    /// What a crash leaves.
    notes: Vec<String>,
    /// Blocks with damaged bytes.
    damaged: Vec<Damaged>,
}

/// An extent that is not what was recorded.
#[derive(Debug, Serialize)]
struct Damaged {
    tenant: Option<String>,
    namespace: Option<String>,
    /// The key; bytes that are no printable ASCII escaped.
    key: Option<String>,
    generation: u64,
    /// Which part of the block, from 0; none when it has one extent.
    part: Option<u16>,
    first_unit: u32,
    units: u16,
    fault: String,
}

impl Damaged {
    fn text(&self) -> String {
        let name = match (&self.tenant, &self.namespace, &self.key) {
            (Some(tenant), Some(namespace), Some(key)) => format!("{tenant}/{namespace}/{key}"),
            _ => "a block whose key is on another drive".to_owned(),
        };
        let part = self.part.map(|part| format!(", part {part}")).unwrap_or_default();
        let place = format!("units {}+{}", self.first_unit, self.units);
        format!("{name} generation {}{part}: {} ({place})", self.generation, self.fault)
    }
}

/// What one drive is known to hold.
struct Known {
    drive: Opened,
    superblock: Superblock,
    contents: Contents,
}

/// One extent to be read.
struct Job {
    block: BlockId,
    part: Option<u16>,
    extent: UnitRange,
    length: u32,
    crc: u32,
    key: Option<KeyBytes>,
}

pub(super) fn run(which: &Which) -> Result<Exit, OfflineError> {
    let sights = look_to_take(&named_at_least_one(which)?)?;
    let refused: Vec<String> = sights.iter().flat_map(in_use).collect();
    if !refused.is_empty() {
        return Err(OfflineError::Refused(refused));
    }
    let mut bench = Bench::new(sights.len())?;
    let opened = bench.open_all(&sights)?;
    let (local, pool) = (bench.local(), bench.pool.clone());
    let report = bench.run(async move { check(&local, &pool, opened).await });
    if which.json {
        say_json(&report)?;
    } else {
        say(&report.text())?;
    }
    Ok(if report.ok { Exit::Done } else { Exit::Damaged })
}

async fn check(local: &Local, pool: &Pool, opened: Vec<Opened>) -> Report {
    let began = Instant::now();
    let mut reports = Vec::with_capacity(opened.len());
    let mut known = Vec::with_capacity(opened.len());
    for drive in opened {
        let mut report = DriveReport { path: drive.name.clone(), ..DriveReport::default() };
        known.push(read_drive(local, pool, drive, &mut report).await);
        reports.push(report);
    }
    let keys = heads(&known, &mut reports);
    let jobs: Vec<Vec<Job>> = known.iter().map(|known| jobs_of(known.as_ref(), &keys)).collect();
    let total = jobs.iter().flatten().map(|job| u64::from(job.length)).sum();
    let progress = Rc::new(Progress::new(total));
    let mut running = Vec::new();
    for (at, (known, jobs)) in known.into_iter().zip(jobs).enumerate() {
        let Some(known) = known else { continue };
        let report = &mut reports[at];
        report.extents = jobs.len() as u64;
        report.bytes = jobs.iter().map(|job| u64::from(job.length)).sum();
        let work = Rc::new(Work {
            drive: known.drive,
            superblock: known.superblock,
            pool: pool.clone(),
            jobs: RefCell::new(jobs.into_iter()),
            progress: progress.clone(),
        });
        for _ in 0..DEPTH {
            let work = work.clone();
            running.push((at, local.spawn_join(async move { work.run().await })));
        }
    }
    for (at, worker) in running {
        reports[at].damaged.extend(worker.await);
    }
    progress.finish();
    for report in &mut reports {
        report.damaged.sort_by_key(|damaged| damaged.first_unit);
        report.ok = report.problems.is_empty() && report.damaged.is_empty();
    }
    Report::of(reports, began.elapsed().as_secs_f64())
}

/// Superblock, log and checkpoints of one drive.
async fn read_drive(
    local: &Local,
    pool: &Pool,
    drive: Opened,
    report: &mut DriveReport,
) -> Option<Known> {
    let geometry = drive.device.geometry();
    let seen = memkv_journal::read_copies(&*drive.queue, &geometry, pool).await;
    report.copies = seen.copies.iter().map(|copy| copy.word()).collect();
    let superblock = match seen.superblock {
        Ok(superblock) => superblock,
        Err(error) => {
            report.problems.push(format!("no superblock: {error}"));
            return None;
        }
    };
    for (copy, state) in seen.copies.iter().enumerate() {
        let told = format!("copy {copy} of the superblock is {}", state.word());
        match state {
            CopyState::Current => {}
            CopyState::Stale { .. } => {
                report.notes.push(format!("{told}; the next start mends it"))
            }
            _ => report.problems.push(told),
        }
    }
    report.drive = Some(superblock.identity.drive.to_string());
    report.node = Some(superblock.identity.node.to_string());
    match memkv_journal::read_contents(&*drive.queue, local, pool, &superblock).await {
        Ok(contents) => {
            tell_contents(&superblock, &contents, report);
            Some(Known { drive, superblock, contents })
        }
        Err(error) => {
            report.problems.push(crate::serve::chain(&error));
            None
        }
    }
}

fn tell_contents(superblock: &Superblock, contents: &Contents, report: &mut DriveReport) {
    let met = &contents.report;
    report.frames = met.frames;
    report.records = met.records;
    report.checkpoint_rows = met.checkpoint_rows;
    let mut problem = |count: u64, what: &str| {
        if count > 0 {
            report.problems.push(format!("{count} {what}"));
        }
    };
    problem(met.damaged_frames, "frames of the journal are damaged: what they told is lost");
    problem(met.unreadable_pages, "pages of the journal cannot be read");
    problem(met.conflicts, "records name units that later ones have");
    problem(met.out_of_range, "records name units beyond the drive's end");
    if met.fell_back {
        let what = "the checkpoint in force is damaged; the other one and the journal replace it";
        report.problems.push(what.to_owned());
    } else if let Err(error) = &contents.spare {
        let name = ["A", "B"][1 - superblock.active];
        report.notes.push(format!("checkpoint {name}, which is not in force: {error}"));
    }
    if met.torn_tail {
        report.notes.push("the journal ends in a frame that was not written whole".to_owned());
    }
    if !superblock.clean {
        report.notes.push("it was not left in order: the next start checks every block".to_owned());
    }
}

/// Whole keys of blocks of several parts; and whether their parts are all there.
fn heads(known: &[Option<Known>], reports: &mut [DriveReport]) -> HashMap<BlockId, KeyBytes> {
    let mut parts: HashSet<(BlockId, DriveUuid, u16, u32, u32)> = HashSet::new();
    let here: Vec<Option<DriveUuid>> =
        known.iter().map(|known| Some(known.as_ref()?.superblock.identity.drive)).collect();
    let all = known.iter().flatten().all(|known| {
        known.superblock.identity.members.iter().all(|member| here.contains(&Some(*member)))
    });
    for known in known.iter().flatten() {
        let drive = known.superblock.identity.drive;
        for record in &known.contents.live {
            if let Record::Part { block, index, length, crc, .. } = record {
                parts.insert((*block, drive, *index, *length, *crc));
            }
        }
    }
    let mut keys = HashMap::new();
    for (known, report) in known.iter().zip(&mut *reports) {
        let mut incomplete = 0;
        for record in known.iter().flat_map(|known| &known.contents.live) {
            let Record::Head { block, key, parts: listed, .. } = record else { continue };
            keys.insert(*block, key.clone());
            let there = |(index, part): (usize, &PartRef)| {
                parts.contains(&(*block, part.drive, index as u16, part.length, part.crc))
                    || !here.contains(&Some(part.drive))
            };
            incomplete += u64::from(!listed.iter().enumerate().all(there));
        }
        if incomplete > 0 {
            let what = "blocks lack a part: the next start drops them";
            report.notes.push(format!("{incomplete} {what}"));
        }
    }
    if !all {
        let what = "not all drives of its node were named: some keys may be unknown";
        for (known, report) in known.iter().zip(reports) {
            if known.is_some() {
                report.notes.push(what.to_owned());
            }
        }
    }
    keys
}

/// The extents of a drive in the order in which they lie on it.
fn jobs_of(known: Option<&Known>, keys: &HashMap<BlockId, KeyBytes>) -> Vec<Job> {
    let live = known.into_iter().flat_map(|known| &known.contents.live);
    let job = |record: &Record| match record {
        Record::Put { block, key, extent, length, crc, .. } => Some(Job {
            block: *block,
            part: None,
            extent: *extent,
            length: *length,
            crc: *crc,
            key: Some(key.clone()),
        }),
        Record::Part { block, index, extent, length, crc } => Some(Job {
            block: *block,
            part: Some(*index),
            extent: *extent,
            length: *length,
            crc: *crc,
            key: keys.get(block).cloned(),
        }),
        Record::Head { .. } | Record::Remove { .. } => None,
    };
    let mut jobs: Vec<Job> = live.filter_map(job).collect();
    jobs.sort_by_key(|job| job.extent.start);
    jobs
}

/// One drive's extents, shared by its workers.
struct Work {
    drive: Opened,
    superblock: Superblock,
    pool: Pool,
    jobs: RefCell<std::vec::IntoIter<Job>>,
    progress: Rc<Progress>,
}

impl Work {
    async fn run(&self) -> Vec<Damaged> {
        let mut damaged = Vec::new();
        loop {
            let Some(job) = self.jobs.borrow_mut().next() else { return damaged };
            let (queue, layout) = (&*self.drive.queue, &self.superblock.layout);
            let what = (job.extent, job.length, job.crc);
            let verified = memkv_journal::verify_extent(queue, &self.pool, layout, what).await;
            self.progress.add(u64::from(job.length));
            if let Err(fault) = verified {
                damaged.push(damage(job, &fault));
            }
        }
    }
}

fn damage(job: Job, fault: &ExtentFault) -> Damaged {
    let key = job.key.as_ref();
    Damaged {
        tenant: key.map(|key| key.tenant().to_owned()),
        namespace: key.map(|key| key.namespace().to_owned()),
        key: key.map(|key| key.key().escape_ascii().to_string()),
        generation: job.block.generation,
        part: job.part,
        first_unit: job.extent.start,
        units: job.extent.count,
        fault: crate::serve::chain(fault),
    }
}

/// A bar on a terminal, else a line now and then; both on standard error.
struct Progress {
    bar: Option<ProgressBar>,
    began: Instant,
    told: Cell<Instant>,
    done: Cell<u64>,
    total: u64,
}

impl Progress {
    fn new(total: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = "checking {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta} left";
            let bar = ProgressBar::new(total);
            bar.set_style(ProgressStyle::with_template(style).expect("a good template"));
            bar
        });
        let now = Instant::now();
        Self { bar, began: now, told: Cell::new(now), done: Cell::new(0), total }
    }

    fn add(&self, bytes: u64) {
        self.done.set(self.done.get() + bytes);
        match &self.bar {
            Some(bar) => bar.inc(bytes),
            None if self.told.get().elapsed() >= TELL => {
                self.told.set(Instant::now());
                let rate = self.done.get() as f64 / self.began.elapsed().as_secs_f64().max(1e-9);
                let (done, total) = (short_size(self.done.get()), short_size(self.total));
                eprintln!("checked {done} of {total}, {}/s", short_size(rate as u64));
            }
            None => {}
        }
    }

    fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Report {
    fn of(drives: Vec<DriveReport>, seconds: f64) -> Self {
        let bytes = drives.iter().map(|drive| drive.bytes).sum();
        Self {
            ok: drives.iter().all(|drive| drive.ok),
            extents: drives.iter().map(|drive| drive.extents).sum(),
            bytes,
            seconds,
            bytes_per_second: bytes as f64 / seconds.max(1e-9),
            drives,
        }
    }

    fn text(&self) -> String {
        let mut lines = Vec::new();
        for drive in &self.drives {
            let verdict = if drive.ok { "whole" } else { "DAMAGED" };
            lines.push(format!(
                "{}: {verdict}; {} extents, {}; journal: {} frames, {} records; checkpoint: {} rows",
                drive.path,
                drive.extents,
                short_size(drive.bytes),
                drive.frames,
                drive.records,
                drive.checkpoint_rows
            ));
            lines.extend(drive.problems.iter().map(|problem| format!("  problem: {problem}")));
            lines.extend(drive.notes.iter().map(|note| format!("  note: {note}")));
            let named = drive.damaged.iter().take(NAMED);
            lines.extend(named.map(|damaged| format!("  damaged: {}", damaged.text())));
            if let Some(more) = drive.damaged.len().checked_sub(NAMED).filter(|more| *more > 0) {
                lines.push(format!("  and {more} more damaged; --json names all"));
            }
        }
        let damaged: usize = self.drives.iter().map(|drive| drive.damaged.len()).sum();
        let rate = short_size(self.bytes_per_second as u64);
        lines.push(format!(
            "{} drives, {} extents, {} in {:.1} s ({rate}/s): {damaged} damaged",
            self.drives.len(),
            self.extents,
            short_size(self.bytes),
            self.seconds
        ));
        lines.join("\n")
    }
}
