//! Crash states, enumerated: every bounded workload, stopped after every write and within every
//! write, opened again and compared with what may be found.
//!
//! *Kill*: the writes up to some point are there, the one in flight in part, sector by sector. What
//! is found is the history up to some call between the last acknowledged and the last submitted.
//!
//! *Power cut*: of the writes since the last flush any subset of sectors is there. What was flushed
//! is found, unless something not flushed touched the same block; nothing is found that was not
//! appended.
//!
//! After each, the drive is used once more and opened again: a crash must leave nothing behind that
//! comes back later.

mod common;

use std::collections::BTreeSet;
use std::rc::Rc;

use common::*;
use memkv_journal::{Append, Applied, BlockId, Journal, Record};
use memkv_poller::Rng;

/// One step of a workload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Put,
    /// A put that is to survive a power cut when it is answered.
    DurablePut,
    Parts,
    RemoveOldest,
    /// Remove the oldest and put another block on its units.
    Reuse,
    /// Three calls at once: they share a frame.
    Burst,
    Checkpoint,
    /// A checkpoint whose snapshot lacks a put that was acknowledged and not applied.
    FuzzyCheckpoint,
    Flush,
    Restart,
    CleanStop,
}

const STEPS: [Step; 11] = [
    Step::Put,
    Step::DurablePut,
    Step::Parts,
    Step::RemoveOldest,
    Step::Reuse,
    Step::Burst,
    Step::Checkpoint,
    Step::FuzzyCheckpoint,
    Step::Flush,
    Step::Restart,
    Step::CleanStop,
];

/// One call of append, with the places in the write log where it was made and answered, and where
/// it was certain to survive a power cut.
struct Call {
    records: Vec<Record>,
    submitted: usize,
    acknowledged: usize,
    durable: usize,
}

const NEVER: usize = usize::MAX;

struct Run<'a> {
    bench: &'a mut Bench,
    disk: Disk,
    journal: Rc<Journal>,
    calls: Vec<Call>,
    live: Model,
    next_hash: u64,
    /// What the drive held when recording began.
    base: Vec<u8>,
}

impl<'a> Run<'a> {
    /// A fresh drive. With `near_the_end` the log stands before the end of its first lap, so that
    /// the workload wraps and, with larger frames, fills.
    fn new(bench: &'a mut Bench, formatted: &[u8], near_the_end: bool) -> Run<'a> {
        let disk = Disk::of(formatted.to_vec());
        let (journal, _) = bench.open(&disk);
        if near_the_end {
            for page in 0..31 {
                if page % 15 == 14 {
                    bench.checkpoint(&journal, vec![], false);
                }
                bench.append(&journal, vec![remove(1_000_000)]);
            }
        }
        let base = disk.image();
        disk.0.borrow_mut().log.clear();
        let (calls, live) = (Vec::new(), Model::default());
        Run { bench, disk, journal, calls, live, next_hash: 1, base }
    }

    fn submit(&mut self, records: Vec<Record>) -> (usize, Append) {
        let call = self.begin(&records);
        (call, self.journal.append(records))
    }

    fn begin(&mut self, records: &[Record]) -> usize {
        let submitted = self.disk.log_len();
        self.calls.push(Call {
            records: records.to_vec(),
            submitted,
            acknowledged: NEVER,
            durable: NEVER,
        });
        self.calls.len() - 1
    }

    fn acknowledge(&mut self, call: usize, append: Append) -> Applied {
        let applied = self.bench.run(append).expect("the drive works and has room");
        self.calls[call].acknowledged = self.disk.log_len();
        self.live.apply(&self.calls[call].records);
        applied
    }

    fn append(&mut self, records: Vec<Record>) {
        let (call, append) = self.submit(records);
        drop(self.acknowledge(call, append));
    }

    fn put_records(&mut self) -> Vec<Record> {
        let hash = self.next_hash;
        self.next_hash += 1;
        vec![put(hash, self.journal.allocate(1).expect("a unit is free"))]
    }

    fn oldest(&self) -> Option<(BlockId, Vec<Record>)> {
        let block = self.live.0.keys().map(|(block, ..)| *block).min_by_key(|id| id.generation)?;
        let own = self.live.0.values().filter(|record| record.block() == block);
        Some((block, own.cloned().collect()))
    }

    fn checkpoint(&mut self, snapshot: Vec<Record>, clean: bool) {
        self.bench.checkpoint(&self.journal, snapshot, clean);
        self.all_durable();
    }

    fn all_durable(&mut self) {
        let now = self.disk.log_len();
        for call in self.calls.iter_mut().filter(|call| call.acknowledged != NEVER) {
            call.durable = call.durable.min(now);
        }
    }

    fn restart(&mut self) {
        let (journal, recovered) = self.bench.open(&self.disk);
        assert_eq!(Model::of(&recovered.live), self.live);
        all_taken(&journal, &recovered.live);
        self.journal = journal;
        // Opening flushes after it has read the whole log.
        self.all_durable();
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Put => {
                let records = self.put_records();
                self.append(records);
            }
            Step::DurablePut => {
                let records = self.put_records();
                let call = self.begin(&records);
                let append = self.journal.append_durable(records);
                drop(self.acknowledge(call, append));
                self.all_durable();
            }
            Step::Parts => {
                let hash = self.next_hash;
                self.next_hash += 1;
                let unit = || self.journal.allocate(1).expect("a unit is free");
                let records = in_parts(hash, unit(), unit());
                self.append(records);
            }
            Step::RemoveOldest | Step::Reuse => {
                let Some((block, own)) = self.oldest() else { return };
                self.append(vec![Record::Remove { block }]);
                let extents: Vec<_> = own.iter().filter_map(Record::extent).collect();
                if step == Step::Reuse {
                    let hash = self.next_hash;
                    self.next_hash += 1;
                    self.append(vec![put(hash, extents[0])]);
                    extents[1..].iter().for_each(|extent| self.journal.release(*extent));
                } else {
                    extents.iter().for_each(|extent| self.journal.release(*extent));
                }
            }
            Step::Burst => {
                let calls: Vec<(usize, Append)> = (0..3)
                    .map(|_| {
                        let records = self.put_records();
                        self.submit(records)
                    })
                    .collect();
                for (call, append) in calls {
                    drop(self.acknowledge(call, append));
                }
            }
            Step::Checkpoint => self.checkpoint(self.live.records(), false),
            Step::FuzzyCheckpoint => {
                let snapshot = self.live.records();
                let records = self.put_records();
                let (call, append) = self.submit(records);
                let applied = self.acknowledge(call, append);
                self.checkpoint(snapshot, false);
                drop(applied);
            }
            Step::Flush => {
                let journal = Rc::clone(&self.journal);
                self.bench.run(async move { journal.flush().await }).expect("the drive works");
                self.all_durable();
            }
            Step::Restart => self.restart(),
            Step::CleanStop => {
                self.checkpoint(self.live.records(), true);
                self.restart();
            }
        }
    }
}

/// Everything a finished workload left: enough to build any crash state of it.
struct History {
    base: Vec<u8>,
    log: Vec<Entry>,
    calls: Vec<Call>,
}

fn run(bench: &mut Bench, formatted: &[u8], workload: &[Step], near_the_end: bool) -> History {
    let mut run = Run::new(bench, formatted, near_the_end);
    workload.iter().for_each(|step| run.step(*step));
    let log = run.disk.0.borrow().log.clone();
    History { base: run.base, log, calls: run.calls }
}

fn model_of(calls: &[Call]) -> Model {
    let mut model = Model::default();
    calls.iter().for_each(|call| model.apply(&call.records));
    model
}

/// Opens the state, uses the drive once more, opens it again: the second must be the first and the
/// use.
fn open_twice(bench: &mut Bench, disk: &Disk) -> Model {
    let (journal, recovered) = bench.open(disk);
    all_taken(&journal, &recovered.live);
    let (first, damaged) = (Model::of(&recovered.live), recovered.report.damaged_frames);
    let records = vec![put(900_001, journal.allocate(1).expect("a unit is free"))];
    bench.append(&journal, records.clone());
    drop(journal);
    let (journal, recovered) = bench.open(disk);
    all_taken(&journal, &recovered.live);
    let mut second = first.clone();
    second.apply(&records);
    assert_eq!(Model::of(&recovered.live), second, "the drive did not keep what it showed");
    // What the cut had damaged before the first opening stays so until the next checkpoint.
    assert_eq!(recovered.report.damaged_frames, damaged, "the first opening left damage behind");
    first
}

impl History {
    /// A kill after `done` entries with `torn` sectors of the next write: the calls found.
    fn check_kill(&self, bench: &mut Bench, image: &[u8], done: usize, torn: &[bool]) {
        let disk = Disk::of(image.to_vec());
        if let Some(Entry::Write { offset, data }) = self.log.get(done) {
            apply_sectors(&mut disk.0.borrow_mut().image, *offset, data, torn);
        }
        let found = open_twice(bench, &disk);
        let acknowledged = self.calls.iter().filter(|call| call.acknowledged <= done).count();
        let submitted = self.calls.iter().filter(|call| call.submitted <= done).count();
        let legal = (acknowledged..=submitted).any(|n| found == model_of(&self.calls[..n]));
        assert!(legal, "after {done} entries: {found:#?}, of {acknowledged}..={submitted} calls");
    }

    /// A power cut after `done` entries: sectors written since the last flush are there or not.
    fn check_power(
        &self,
        bench: &mut Bench,
        flushed: &[u8],
        since: usize,
        done: usize,
        rng: &mut Rng,
    ) {
        let disk = Disk::of(flushed.to_vec());
        for entry in &self.log[since..done] {
            let Entry::Write { offset, data } = entry else { continue };
            let mode = rng.below(4);
            let kept: Vec<bool> = (0..data.len() / SECTOR)
                .map(|_| match mode {
                    0 => false,
                    1 => true,
                    _ => rng.below(2) == 1,
                })
                .collect();
            apply_sectors(&mut disk.0.borrow_mut().image, *offset, data, &kept);
        }
        let found = open_twice(bench, &disk);
        let durable: Vec<&Call> = self.calls.iter().filter(|call| call.durable <= since).collect();
        let loose: Vec<&Call> = self
            .calls
            .iter()
            .filter(|call| call.durable > since && call.submitted <= done)
            .collect();
        let mut certain = Model::default();
        durable.iter().for_each(|call| certain.apply(&call.records));
        let touched: BTreeSet<BlockId> =
            loose.iter().flat_map(|call| &call.records).map(Record::block).collect();
        for (place, record) in &certain.0 {
            let kept = found.0.get(place) == Some(record) || touched.contains(&place.0);
            assert!(kept, "lost although flushed: {record:?} after {done} entries");
        }
        for (place, record) in &found.0 {
            let appended = certain.0.get(place) == Some(record)
                || loose.iter().any(|call| call.records.contains(record));
            assert!(appended, "found although never appended or flushed away: {record:?}");
        }
    }
}

fn apply_sectors(image: &mut [u8], offset: usize, data: &[u8], kept: &[bool]) {
    for (sector, kept) in data.chunks(SECTOR).zip(kept).enumerate().map(|(n, (d, k))| ((n, d), k)) {
        if *kept {
            let at = offset + sector.0 * SECTOR;
            image[at..at + SECTOR].copy_from_slice(sector.1);
        }
    }
}

/// All kill states of one history; returns how many.
fn every_kill(bench: &mut Bench, history: &History, rng: &mut Rng) -> u64 {
    let mut image = history.base.clone();
    let mut states = 0;
    for done in 0..=history.log.len() {
        history.check_kill(bench, &image, done, &[]);
        states += 1;
        if let Some(Entry::Write { offset, data }) = history.log.get(done) {
            let sectors = data.len() / SECTOR;
            // Torn after each sector of the first pages and before the last, and once anyhow.
            let edge = |n: &usize| *n < 3 || *n + 2 > sectors;
            for n in (1..sectors).filter(edge) {
                let torn: Vec<bool> = (0..sectors).map(|sector| sector < n).collect();
                history.check_kill(bench, &image, done, &torn);
                states += 1;
            }
            let torn: Vec<bool> = (0..sectors).map(|_| rng.below(2) == 1).collect();
            history.check_kill(bench, &image, done, &torn);
            states += 1;
            image[*offset..*offset + data.len()].copy_from_slice(data);
        }
    }
    states
}

/// Power cuts at every entry, some subsets of sectors each; returns how many.
fn power_cuts(bench: &mut Bench, history: &History, rng: &mut Rng) -> u64 {
    let (mut flushed, mut since, mut states) = (history.base.clone(), 0, 0);
    for done in 0..=history.log.len() {
        let unflushed = done - since;
        for _ in 0..if unflushed == 0 { 1 } else { 2 } {
            history.check_power(bench, &flushed, since, done, rng);
            states += 1;
        }
        if let Some(Entry::Flush) = history.log.get(done) {
            for entry in &history.log[since..done] {
                if let Entry::Write { offset, data } = entry {
                    flushed[*offset..*offset + data.len()].copy_from_slice(data);
                }
            }
            since = done + 1;
        }
    }
    states
}

fn formatted(bench: &mut Bench) -> Vec<u8> {
    let disk = Disk::new(640 << 10);
    bench.format(&disk, tiny());
    disk.image()
}

/// The workloads of one or two steps, all; of three and four, drawn with a fixed seed.
fn workloads(rng: &mut Rng, three: usize, four: usize) -> Vec<Vec<Step>> {
    let mut all: Vec<Vec<Step>> = STEPS.iter().map(|step| vec![*step]).collect();
    all.extend(STEPS.iter().flat_map(|first| STEPS.map(|second| vec![*first, second])));
    for (count, len) in [(three, 3), (four, 4)] {
        for _ in 0..count {
            all.push((0..len).map(|_| STEPS[rng.below(STEPS.len() as u64) as usize]).collect());
        }
    }
    all
}

#[test]
fn every_kill_of_bounded_workloads_keeps_what_was_acknowledged() {
    let mut bench = Bench::new();
    let mut rng = Rng::seeded(0x4B11);
    let (mut states, fresh) = (0, formatted(&mut bench));
    for (number, workload) in workloads(&mut rng, 240, 80).iter().enumerate() {
        let history = run(&mut bench, &fresh, workload, number % 2 == 1);
        states += every_kill(&mut bench, &history, &mut rng);
    }
    println!("{states} kill states");
    assert!(states > 20_000, "only {states} states");
}

#[test]
fn every_power_cut_of_bounded_workloads_keeps_what_was_flushed() {
    let mut bench = Bench::new();
    let mut rng = Rng::seeded(0x90E5);
    let (mut states, fresh) = (0, formatted(&mut bench));
    for (number, workload) in workloads(&mut rng, 400, 200).iter().enumerate() {
        let history = run(&mut bench, &fresh, workload, number % 2 == 1);
        states += power_cuts(&mut bench, &history, &mut rng);
    }
    println!("{states} power-cut states");
    assert!(states > 10_000, "only {states} states");
}
