//! Checkpoints merged from the one before and the log, whole and where something cannot be read.

mod common;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ops::Range;
use std::rc::Rc;

use common::*;
use memkv_dma::Class;
use memkv_journal::{
    CheckpointStart, Closing, FormatOptions, Journal, JournalError, KeyBytes, Kind, Living, Merged,
    Record, SUPERBLOCK_STRIDE, UNIT, View,
};

/// What lives, and what a merge asked about it.
#[derive(Clone, Default)]
struct Standing {
    model: Model,
    written: BTreeSet<Place>,
    stayed: BTreeSet<Place>,
}

fn place_of(view: &View<'_>) -> Option<Place> {
    (view.kind != Kind::Remove).then(|| place(&view.to_record::<KeyBytes>()))
}

/// The flags with which a record stands now: those of every other put have changed.
fn flags_now(block: u64, flags: u16) -> u16 {
    if block.is_multiple_of(2) { 0 } else { flags }
}

impl Living for Standing {
    fn stands(&mut self, record: &View<'_>) -> Option<u16> {
        let place = place_of(record)?;
        let stands = self.model.0.contains_key(&place) && !self.stayed.contains(&place);
        let is_new = stands && self.written.insert(place);
        is_new.then(|| flags_now(record.block.generation, record.flags))
    }

    fn stays_in_log(&mut self, record: &View<'_>) {
        self.stayed.extend(place_of(record));
    }
}

/// Merges a checkpoint that began at `start`.
fn merge(
    bench: &mut Bench,
    journal: &Rc<Journal>,
    start: CheckpointStart,
    model: &Model,
) -> (Result<Merged, JournalError>, Standing) {
    let mut standing = Standing { model: model.clone(), ..Standing::default() };
    let journal = Rc::clone(journal);
    bench.run(async move {
        let merged = journal.merge_checkpoint(start, &mut standing, Closing::default()).await;
        (merged, standing)
    })
}

/// The model with the flags that a merge gave what it wrote.
fn with_flags(model: &mut Model, written: &BTreeSet<Place>) {
    for (place, record) in &mut model.0 {
        let generation = place.0.generation;
        if let (true, Record::Put { flags, .. } | Record::Head { flags, .. }) =
            (written.contains(place), record)
        {
            *flags = flags_now(generation, *flags);
        }
    }
}

/// A few appends: puts, blocks of two parts, removals of what lives.
fn change(
    bench: &mut Bench,
    journal: &Rc<Journal>,
    model: &mut Model,
    next: &mut u64,
    draw: &mut impl FnMut(u64) -> u64,
) {
    for _ in 0..draw(6) {
        let mut records = Vec::new();
        for _ in 0..=draw(3) {
            let living: Vec<Record> = model.records();
            match draw(8) {
                0..=3 => records.push(put(*next, journal.allocate(1).expect("a free unit"))),
                4 => {
                    let units = [(); 2].map(|()| journal.allocate(1).expect("a free unit"));
                    records.extend(in_parts(*next, units[0], units[1]));
                }
                _ if living.is_empty() || !records.is_empty() => {}
                _ => {
                    let gone = living[draw(living.len() as u64) as usize].block();
                    let of_it = living.iter().filter(|record| record.block() == gone);
                    of_it.filter_map(Record::extent).for_each(|extent| journal.release(extent));
                    records.push(Record::Remove { block: gone });
                }
            }
            *next += 1;
        }
        if !records.is_empty() {
            model.apply(&records);
            bench.append(journal, records);
        }
    }
}

#[test]
fn merged_checkpoints_hold_what_lives_and_leave_the_rest_to_the_log() {
    for seed in 1..=24u64 {
        let mut state = seed;
        let mut draw = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1442);
            (state >> 33) % below
        };
        let mut bench = Bench::new();
        let disk = Disk::new(8 << 20);
        bench.format(&disk, FormatOptions { ring_bytes: Some(512 << 10), ..tiny() });
        let (mut journal, _) = bench.open(&disk);
        let (mut model, mut next, mut rows) = (Model::default(), 1, 0);
        for round in 0..12 {
            change(&mut bench, &journal, &mut model, &mut next, &mut draw);
            let before: BTreeSet<Place> = model.0.keys().copied().collect();
            // One that is not applied yet, and what comes behind it, stay in the log.
            let records = vec![put(next, journal.allocate(1).expect("a free unit"))];
            next += 1;
            model.apply(&records);
            let applied = bench.run(journal.append(records)).expect("the drive works");
            change(&mut bench, &journal, &mut model, &mut next, &mut draw);
            let begun: BTreeSet<Place> = model.0.keys().copied().collect();
            let start = journal.begin_checkpoint();
            drop(applied);
            // So does what comes later: that is not even asked for.
            change(&mut bench, &journal, &mut model, &mut next, &mut draw);
            let (merged, asked) = merge(&mut bench, &journal, start, &model);
            let merged = merged.expect("the drive works");
            assert_eq!((merged.rows_unreadable, merged.frames_unreadable), (0, 0));
            // What lived when it began and lives still is in it, what came behind is not.
            let after: BTreeSet<Place> = model.0.keys().copied().collect();
            assert_eq!(asked.written, &before & &after, "seed {seed}, round {round}");
            assert!((&begun - &before).is_subset(&asked.stayed));
            assert!(asked.stayed.is_disjoint(&(&after - &begun)));
            assert_eq!(merged.from_rows + merged.from_log, asked.written.len() as u64);
            assert!(merged.from_rows <= rows, "there were no more rows before");
            rows = asked.written.len() as u64;
            with_flags(&mut model, &asked.written);

            let (reopened, recovered) = bench.open(&disk);
            assert_eq!(Model::of(&recovered.live), model, "seed {seed}, round {round}");
            assert_eq!(recovered.report.checkpoint_rows, rows);
            all_taken(&reopened, &recovered.live);
            journal = reopened;
        }
        assert!(next > 60, "there was something to merge");
    }
}

/// Keys so long that those of all blocks take several pieces of a checkpoint.
fn long_key(hash: u64) -> Record {
    let Record::Put { block, extent, length, crc, expires, flags, .. } =
        put(hash, unit(hash as u32))
    else {
        unreachable!("a put is a put")
    };
    let name = format!("long-{hash:05}-{}", "x".repeat(480));
    let key = KeyBytes::new("t", "n", name.as_bytes()).expect("a key of 500 bytes");
    Record::Put { block, key, extent, length, crc, expires, flags }
}

const BLOCKS: u64 = 1200;

/// A drive whose blocks are in a checkpoint, of three pieces of keys.
fn with_long_keys(bench: &mut Bench) -> (Disk, Rc<Journal>, Model) {
    let disk = Disk::new(32 << 20);
    let options = FormatOptions {
        ring_bytes: Some(2 << 20),
        block_limit: Some(1500),
        key_average: Some(500),
        ..FormatOptions::default()
    };
    bench.format(&disk, options);
    let (journal, _) = bench.open(&disk);
    let mut model = Model::default();
    for hashes in (1..=BLOCKS).collect::<Vec<_>>().chunks(50) {
        let records: Vec<Record> = hashes.iter().map(|&hash| long_key(hash)).collect();
        model.apply(&records);
        bench.append(&journal, records);
    }
    let (start, before) = (journal.begin_checkpoint(), disk.log_len());
    let (merged, asked) = merge(bench, &journal, start, &model);
    assert_eq!(merged.expect("the drive works").from_log, BLOCKS);
    let area = area(&journal);
    let written = |entry: &Entry| match entry {
        Entry::Write { offset, data } if area.contains(&(*offset as u64)) => data.len() as u64,
        _ => 0,
    };
    let written: u64 = disk.0.borrow().log[before..].iter().map(written).sum();
    assert_eq!(journal.stats().checkpoint_bytes, written, "what it told the drive to write");
    with_flags(&mut model, &asked.written);
    (disk, journal, model)
}

/// Where a key lies, in a part of the drive.
fn find(disk: &Disk, hash: u64, within: Range<u64>) -> u64 {
    let (image, name) = (disk.image(), format!("long-{hash:05}-"));
    let part = &image[within.start as usize..within.end as usize];
    let at = part.windows(name.len()).position(|bytes| bytes == name.as_bytes());
    within.start + at.expect("it is there") as u64
}

/// The checkpoint in force, as a part of the drive.
fn area(journal: &Journal) -> Range<u64> {
    let superblock = journal.superblock();
    let begin = superblock.layout.checkpoint_offset[superblock.active];
    begin..begin + superblock.layout.checkpoint_bytes
}

#[test]
fn a_piece_that_cannot_be_read_costs_its_own_rows_and_no_more() {
    for damaged in [false, true] {
        let mut bench = Bench::new();
        let (disk, journal, mut model) = with_long_keys(&mut bench);
        let at = find(&disk, 350, area(&journal));
        match damaged {
            true => disk.damage(at, 1),
            false => drop(disk.0.borrow_mut().bad_pages.insert(at / 4096)),
        }
        let start = journal.begin_checkpoint();
        let (merged, asked) = merge(&mut bench, &journal, start, &model);
        let merged = merged.expect("what is left is merged");
        let lost: Vec<u64> = model
            .0
            .keys()
            .filter(|place| !asked.written.contains(place))
            .map(|p| p.0.generation)
            .collect();
        assert_eq!(merged.rows_unreadable, lost.len() as u64);
        assert!(lost.contains(&350) && lost.is_sorted_by(|a, b| a + 1 == *b), "a piece: {lost:?}");
        assert!((200..600).contains(&lost.len()), "{} of {BLOCKS}", lost.len());
        assert_eq!((merged.from_rows, merged.from_log), (BLOCKS - merged.rows_unreadable, 0));
        disk.0.borrow_mut().bad_pages.clear();
        model.0.retain(|place, _| asked.written.contains(place));
        assert_eq!(Model::of(&bench.open(&disk).1.live), model);
    }
}

#[test]
fn rows_that_cannot_be_read_are_counted_and_cost_nothing_of_the_log() {
    let mut bench = Bench::new();
    let (disk, journal, mut model) = with_long_keys(&mut bench);
    for hash in BLOCKS + 1..=BLOCKS + 5 {
        model.apply(&[long_key(hash)]);
        bench.append(&journal, vec![long_key(hash)]);
    }
    // They are one piece, behind the header.
    disk.0.borrow_mut().bad_pages.insert(area(&journal).start / 4096 + 1);
    let start = journal.begin_checkpoint();
    let (merged, asked) = merge(&mut bench, &journal, start, &model);
    let merged = merged.expect("what is left is merged");
    assert_eq!((merged.rows_unreadable, merged.frames_unreadable), (BLOCKS, 0));
    assert_eq!((merged.from_rows, merged.from_log), (0, 5));
    model.0.retain(|place, _| asked.written.contains(place));
    assert_eq!(model.0.len(), 5);
    with_flags(&mut model, &asked.written);
    disk.0.borrow_mut().bad_pages.clear();
    assert_eq!(Model::of(&bench.open(&disk).1.live), model);
}

#[test]
fn a_frame_that_cannot_be_read_costs_its_own_records_and_no_more() {
    let mut bench = Bench::new();
    let (disk, journal, mut model) = with_long_keys(&mut bench);
    for hash in BLOCKS + 1..=BLOCKS + 5 {
        model.apply(&[long_key(hash)]);
        bench.append(&journal, vec![long_key(hash)]);
    }
    let ring = 4 * SUPERBLOCK_STRIDE..4 * SUPERBLOCK_STRIDE + (2 << 20);
    let page = find(&disk, BLOCKS + 3, ring) / 4096;
    disk.0.borrow_mut().bad_pages.insert(page);
    let start = journal.begin_checkpoint();
    let (merged, asked) = merge(&mut bench, &journal, start, &model);
    let merged = merged.expect("what is left is merged");
    assert_eq!((merged.from_rows, merged.from_log), (BLOCKS, 4));
    assert_eq!((merged.rows_unreadable, merged.frames_unreadable), (0, 1));
    model.0.retain(|place, _| place.0.generation != BLOCKS + 3);
    assert_eq!(asked.written, model.0.keys().copied().collect());
    with_flags(&mut model, &asked.written);
    disk.0.borrow_mut().bad_pages.clear();
    assert_eq!(Model::of(&bench.open(&disk).1.live), model);
}

#[test]
fn a_drive_that_is_gone_ends_a_merge_and_the_checkpoint_before_stays() {
    let mut bench = Bench::new();
    let (disk, journal, model) = with_long_keys(&mut bench);
    disk.0.borrow_mut().offline = true;
    let start = journal.begin_checkpoint();
    let (merged, _) = merge(&mut bench, &journal, start, &model);
    assert!(matches!(merged, Err(JournalError::Failed(_))), "{merged:?}");
    assert!(journal.failed());
    disk.0.borrow_mut().offline = false;
    let (_, recovered) = bench.open(&disk);
    assert_eq!((Model::of(&recovered.live), recovered.report.checkpoint), (model, 1));
}

#[test]
fn a_drive_that_stalls_in_a_checkpoint_keeps_what_its_command_named_and_nothing_of_the_class() {
    const PIECE: u64 = 256 << 10;
    let mut kept_pieces = 0;
    for before in 0.. {
        let mut bench = Bench::new();
        let (disk, journal, model) = with_long_keys(&mut bench);
        let used = |bench: &Bench, class: Class| bench.pool.stats().used[class.index()];
        let frame = used(&bench, Class::Drive);
        assert_eq!(used(&bench, Class::Checkpoint), 0, "a journal at rest has its frame alone");
        disk.hold();
        let start = journal.begin_checkpoint();
        let mut standing = Standing { model, ..Standing::default() };
        let (ours, outcome) = (Rc::clone(&journal), Rc::new(RefCell::new(None)));
        let ended = Rc::clone(&outcome);
        bench.local().spawn(async move {
            let closing = Closing::default();
            *ended.borrow_mut() = Some(ours.merge_checkpoint(start, &mut standing, closing).await);
        });
        bench.settle();
        for _ in 0..before {
            disk.let_one_go();
            bench.settle();
        }
        if outcome.borrow().is_some() {
            assert!(!journal.failed() && before > 8, "as many commands as that, and all went");
            break;
        }
        let kept = disk.stall();
        bench.settle();
        assert!(matches!(&*outcome.borrow(), Some(Err(JournalError::Failed(_)))), "{before}");
        assert_eq!(used(&bench, Class::Checkpoint), 0, "after {before} commands");
        let of_drive = used(&bench, Class::Drive) - frame;
        assert!([0, UNIT as u64, PIECE].contains(&of_drive), "{of_drive} after {before}");
        kept_pieces += u64::from(of_drive == PIECE);
        drop(kept);
        assert_eq!(used(&bench, Class::Drive), frame);
    }
    assert!(kept_pieces > 6, "read and written: {kept_pieces}");
}
