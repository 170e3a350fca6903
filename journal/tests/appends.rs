//! An open journal: group commit, guards, room, checkpoints big and small, order of writes.

mod common;

use std::cell::RefCell;
use std::rc::Rc;

use common::*;
use memkv_block::{BlockQueue, Op};
use memkv_journal::{
    FormatOptions, JournalError, KeyBytes, Record, Recovered, SUPERBLOCK_STRIDE, UnitRange,
};

const RING: usize = 4 * SUPERBLOCK_STRIDE as usize;

fn opened(bench: &mut Bench) -> (Disk, Rc<memkv_journal::Journal>) {
    let disk = tiny_disk();
    bench.format(&disk, tiny());
    let (journal, _) = bench.open(&disk);
    (disk, journal)
}

#[test]
fn who_comes_while_a_frame_is_written_rides_in_the_next_and_is_answered_in_order() {
    let mut bench = Bench::new();
    let (disk, journal) = opened(&mut bench);
    disk.hold();
    let answered = Rc::new(RefCell::new(Vec::new()));
    let local = bench.local();
    let call = |hash: u64| {
        let append = journal.append(vec![put(hash, unit(hash as u32))]);
        let answered = Rc::clone(&answered);
        local.spawn(async move {
            let applied = append.await.expect("the drive works");
            answered.borrow_mut().push((hash, applied.sequence()));
        });
    };
    call(0);
    bench.settle();
    assert_eq!(disk.outstanding(), 1, "the first call does not wait for company");
    (1..8).for_each(&call);
    bench.settle();
    assert_eq!(disk.outstanding(), 1, "one write in flight");
    assert!(answered.borrow().is_empty(), "nothing is durable yet");
    assert!(disk.let_one_go());
    bench.settle();
    assert_eq!(*answered.borrow(), [(0, 1)]);
    assert!(disk.let_one_go() && !disk.let_one_go());
    bench.settle();
    let expected: Vec<(u64, u64)> =
        (0..8).map(|hash| (hash, if hash == 0 { 1 } else { 2 })).collect();
    assert_eq!(*answered.borrow(), expected);
    let stats = journal.stats();
    assert_eq!((stats.appends, stats.records, stats.frames, stats.bytes), (8, 8, 2, 8192));
}

#[test]
fn an_append_nobody_waits_for_is_written_and_holds_no_checkpoint_back() {
    let mut bench = Bench::new();
    let (disk, journal) = opened(&mut bench);
    disk.hold();
    drop(journal.append(vec![put(1, unit(1))]));
    let late = journal.append(vec![put(2, unit(2))]);
    bench.settle();
    assert!(disk.let_one_go());
    bench.settle();
    // Done, and dropped without being asked.
    drop(late);
    assert_eq!(journal.begin_checkpoint().sequence(), 2, "no frame is in use");
    disk.0.borrow_mut().held = None;
    let (_, recovered) = bench.open(&disk);
    assert_eq!(recovered.live, [put(1, unit(1)), put(2, unit(2))]);
}

#[test]
fn a_journal_let_go_in_the_middle_of_a_write_finishes_it() {
    let mut bench = Bench::new();
    let (disk, journal) = opened(&mut bench);
    disk.hold();
    let append = journal.append(vec![put(1, unit(1))]);
    bench.settle();
    drop((append, journal));
    while disk.let_one_go() {
        bench.settle();
    }
    disk.0.borrow_mut().held = None;
    assert_eq!(bench.open(&disk).1.live, [put(1, unit(1))]);
}

#[test]
fn the_ring_refuses_puts_first_then_removes_and_a_checkpoint_frees_it() {
    let mut bench = Bench::new();
    let (disk, journal) = opened(&mut bench);
    let mut model = Model::default();
    let mut append = |bench: &mut Bench, records: Vec<Record>| {
        let outcome = bench.run(journal.append(records.clone()));
        outcome.map(|_| model.apply(&records))
    };
    let mut hash = 0;
    while journal.room_for_put() {
        hash += 1;
        append(&mut bench, vec![put(hash, journal.allocate(1).unwrap())]).unwrap();
    }
    assert!(journal.wants_checkpoint());
    let begun = hash;
    // A put under way when the room ended still fits, some more too; then none.
    let refusal = loop {
        hash += 1;
        let records = vec![put(hash, journal.allocate(1).unwrap())];
        if let Err(error) = append(&mut bench, records) {
            break error;
        }
    };
    assert!(matches!(refusal, JournalError::RingFull), "{refusal}");
    assert!(hash - begun > 1);
    for removed in 1..=4 {
        append(&mut bench, vec![remove(removed)]).expect("removes have a reserve");
    }
    assert!(matches!(append(&mut bench, vec![remove(5)]), Err(JournalError::RingFull)));
    assert_eq!((journal.stats().refused, journal.stats().ring_bytes), (2, 128 << 10));
    bench.checkpoint(&journal, model.records(), false);
    assert!(journal.room_for_put() && !journal.wants_checkpoint());
    assert_eq!(journal.stats().ring_used, 0);
    assert_eq!(Model::of(&bench.open(&disk).1.live), model);
}

#[test]
fn records_beyond_a_frame_or_the_checkpoint_are_refused() {
    let mut bench = Bench::new();
    let (_, journal) = opened(&mut bench);
    let many: Vec<Record> = (0..1000).map(remove).collect();
    let refused = bench.run(journal.append(many.clone())).unwrap_err();
    let limit = journal.append_max();
    assert!(matches!(refused, JournalError::TooLarge { bytes: 28_000, limit: l } if l == limit));
    let fits = many[..limit / 28].to_vec();
    bench.append(&journal, fits);

    let snapshot: Vec<Record> = (0..301).map(|hash| put(hash, unit(0))).collect();
    let (journal_too, start) = (Rc::clone(&journal), journal.begin_checkpoint());
    let refused =
        bench.run(async move { journal_too.write_checkpoint(start, snapshot, false, 0, 0).await });
    assert!(matches!(refused, Err(JournalError::CheckpointFull)), "{refused:?}");
    assert!(!journal.failed(), "refusing is not failing");

    let mut count = 0;
    let refused = loop {
        let records: Vec<_> = (0..10).map(|n| put(count * 10 + n, unit(0))).collect();
        match bench.run(journal.append(records)) {
            Ok(applied) => drop(applied),
            Err(error) => break error,
        }
        count += 1;
        if journal.stats().ring_used > 60 << 10 {
            // As large as what lives.
            let snapshot = (0..count * 10).map(|hash| put(hash, unit(0))).collect();
            bench.checkpoint(&journal, snapshot, false);
        }
    };
    assert!(matches!(refused, JournalError::CheckpointFull), "{refused:?}");
    assert_eq!(count, 30, "300 rows were reserved");
    assert!(!journal.room_for_put());
}

#[test]
fn a_checkpoint_is_flushed_before_the_superblock_names_it_and_copies_go_in_pairs() {
    let mut bench = Bench::new();
    let (disk, journal) = opened(&mut bench);
    bench.append(&journal, vec![put(1, unit(1))]);
    disk.0.borrow_mut().log.clear();
    bench.checkpoint(&journal, vec![put(1, unit(1))], false);
    let order: Vec<String> = disk
        .0
        .borrow()
        .log
        .iter()
        .map(|entry| match entry {
            Entry::Flush => "flush".into(),
            Entry::Write { offset, .. } if *offset < RING => {
                format!("copy {}", offset / SUPERBLOCK_STRIDE as usize)
            }
            Entry::Write { .. } => "area".into(),
        })
        .collect();
    let expected =
        ["area", "area", "area", "flush", "copy 0", "copy 1", "flush", "copy 2", "copy 3", "flush"];
    assert_eq!(order, expected);
}

#[test]
fn a_lost_checkpoint_under_the_same_start_is_not_taken_for_the_new_one() {
    let mut bench = Bench::new();
    let (disk, journal) = opened(&mut bench);
    let live = vec![put(1, unit(1))];
    bench.append(&journal, live.clone());
    bench.checkpoint(&journal, live.clone(), false);
    let old = disk.image();
    bench.checkpoint(&journal, live.clone(), false);
    bench.checkpoint(&journal, live.clone(), false);
    let superblock = journal.superblock();
    assert_eq!((superblock.active, superblock.checkpoints[1].number), (1, 3));
    // The drive lost every write of the third to area B; the first is still there.
    let area = superblock.layout.checkpoint_offset[1] as usize;
    let area = area..area + superblock.layout.checkpoint_bytes as usize;
    disk.0.borrow_mut().image[area.clone()].copy_from_slice(&old[area]);
    let (_, recovered) = bench.open(&disk);
    assert!(recovered.report.fell_back);
    assert_eq!((recovered.report.checkpoint, recovered.live), (2, live));
}

#[test]
fn a_checkpoint_of_many_pieces_comes_back_record_by_record() {
    let mut bench = Bench::new();
    let disk = Disk::new(48 << 20);
    let options = FormatOptions {
        ring_bytes: Some(256 << 10),
        block_limit: Some(20_000),
        key_average: Some(400),
        ..FormatOptions::default()
    };
    bench.format(&disk, options);
    let (journal, _) = bench.open(&disk);
    let mut rng = memkv_poller::Rng::seeded(3);
    let mut live = Vec::new();
    let units = journal.total_units() as u64;
    for hash in 0..10_000u64 {
        let place = unit((hash % units) as u32);
        let mut records = match hash {
            // Units may not be shared: beyond the drive's units come heads without parts here.
            _ if hash < units => vec![put(hash, place)],
            _ => in_parts(hash, unit(0), unit(1)).split_off(2),
        };
        for record in &mut records {
            if let Record::Put { key, .. } | Record::Head { key, .. } = record {
                let len = 1 + rng.below(512) as usize;
                let name = vec![hash as u8; len];
                *key = KeyBytes::new("tenant", "namespace", &name).unwrap();
            }
        }
        live.append(&mut records);
    }
    bench.checkpoint(&journal, live.clone(), true);
    assert!(journal.stats().checkpoint_bytes > 3 << 20, "all columns have several pieces");
    let (_, recovered) = bench.open(&disk);
    assert!(recovered.clean);
    assert_eq!(recovered.live.len(), live.len());
    assert!(recovered.live == live, "in the order in which they were written");
}

#[test]
fn one_checkpoint_at_a_time_and_appends_go_on_beside_it() {
    let mut bench = Bench::new();
    let (disk, journal) = opened(&mut bench);
    bench.append(&journal, vec![put(1, unit(1))]);
    disk.hold();
    let start = journal.begin_checkpoint();
    let done = Rc::new(RefCell::new(None));
    let (journal_too, done_too) = (Rc::clone(&journal), Rc::clone(&done));
    bench.local().spawn(async move {
        let snapshot = vec![put(1, unit(1))];
        let outcome = journal_too.write_checkpoint(start, snapshot, false, 0, 0).await;
        *done_too.borrow_mut() = Some(outcome.is_ok());
    });
    bench.settle();
    drop(journal.append(vec![put(2, unit(2))]));
    bench.settle();
    assert_eq!(disk.outstanding(), 2, "a piece and a frame");
    while disk.let_one_go() {
        bench.settle();
    }
    assert_eq!(*done.borrow(), Some(true));
    disk.0.borrow_mut().held = None;
    let (_, recovered) = bench.open(&disk);
    assert_eq!(recovered.live, [put(1, unit(1)), put(2, unit(2))]);
    assert_eq!((recovered.report.checkpoint, recovered.report.frames), (1, 1));
}

#[test]
fn the_ring_is_free_only_when_the_superblock_is_durable() {
    let mut bench = Bench::new();
    let (disk, journal) = opened(&mut bench);
    while journal.room_for_put() {
        bench.append(&journal, vec![remove(1)]);
    }
    let used = journal.stats().ring_used;
    disk.hold();
    let (journal_too, start) = (Rc::clone(&journal), journal.begin_checkpoint());
    bench.local().spawn(async move {
        journal_too.write_checkpoint(start, vec![], false, 0, 0).await.expect("the drive works");
    });
    bench.settle();
    let mut commands = 0;
    while disk.outstanding() > 0 {
        assert!(!journal.room_for_put(), "freed after {commands} commands");
        assert_eq!(journal.stats().ring_used, used);
        disk.let_one_go();
        bench.settle();
        commands += 1;
    }
    assert_eq!(commands, 8, "a header, a flush, two pairs of copies each with a flush");
    assert!(journal.room_for_put());
    assert_eq!(journal.stats().ring_used, 0);
}

#[test]
fn a_failing_checkpoint_leaves_the_old_one_in_force() {
    let mut bench = Bench::new();
    for writes in 0..7 {
        let (disk, journal) = opened(&mut bench);
        bench.append(&journal, vec![put(1, unit(1))]);
        disk.0.borrow_mut().writes_left = Some(writes);
        let (journal_too, start) = (Rc::clone(&journal), journal.begin_checkpoint());
        let snapshot = vec![put(1, unit(1))];
        let outcome = bench
            .run(async move { journal_too.write_checkpoint(start, snapshot, false, 0, 0).await });
        assert!(matches!(outcome, Err(JournalError::Failed(_))), "{writes}: {outcome:?}");
        assert!(journal.failed());
        disk.0.borrow_mut().writes_left = None;
        assert_eq!(bench.open(&disk).1.live, [put(1, unit(1))]);
    }
}

#[test]
#[should_panic(expected = "beyond the drive")]
fn a_record_beyond_the_drive_is_a_mistake_of_the_caller() {
    let mut bench = Bench::new();
    let (_, journal) = opened(&mut bench);
    drop(journal.append(vec![put(1, UnitRange { start: 1 << 20, count: 1 })]));
}

#[test]
fn what_is_durable_says_in_which_frame() {
    let mut bench = Bench::new();
    let (_disk, journal) = opened(&mut bench);
    for frame in 1..=2 {
        let append = journal.append(vec![put(frame, journal.allocate(1).unwrap())]);
        let applied = bench.run(append).unwrap();
        assert_eq!(applied.sequence(), frame);
        assert_eq!(format!("{applied:?}"), format!("Applied {{ sequence: {frame}, .. }}"));
    }
}

#[test]
fn on_the_memory_device_the_journal_is_that_of_any_drive() {
    let mut bench = Bench::new();
    let device = memkv_block::memory(16 << 20, memkv_dma::Hugepages::Never).unwrap();
    let (local, pool) = (bench.local(), bench.pool.clone());
    let live = bench.run(async move {
        let queue = device.open_queue(&local).unwrap();
        let geometry = device.geometry();
        let options = FormatOptions::default();
        memkv_journal::format(&*queue, &geometry, &pool, identity(), options).await.unwrap();
        for round in 0..3u64 {
            let superblock =
                memkv_journal::read_superblock(&*queue, &geometry, &pool).await.unwrap();
            let opened = memkv_journal::open(queue.clone(), &local, pool.clone(), superblock);
            let (journal, recovered): (_, Recovered) = opened.await.unwrap();
            assert_eq!(recovered.live.len() as u64, 2 * round);
            all_taken(&journal, &recovered.live);
            for hash in [2 * round, 2 * round + 1] {
                let extent = journal.allocate(3).unwrap();
                assert_eq!(journal.data_offset(extent.start) % 16384, 0);
                drop(journal.append(vec![put(hash, extent)]).await.unwrap());
            }
            journal.flush().await.unwrap();
            let free = journal.total_units() as u64 - journal.free_units() as u64;
            assert_eq!(free, 6 * (round + 1));
        }
        let superblock = memkv_journal::read_superblock(&*queue, &geometry, &pool).await.unwrap();
        let opened = memkv_journal::open(queue, &local, pool, superblock).await;
        let (_, Recovered { live, .. }): (_, Recovered) = opened.unwrap();
        live
    });
    assert_eq!(live.len(), 6);
}

/// Asks for a flush; the outcome is in the cell when it is there.
fn ask(bench: &Bench, journal: &memkv_journal::Journal) -> Rc<RefCell<Option<bool>>> {
    let done = Rc::new(RefCell::new(None));
    let (flush, said) = (journal.flush(), Rc::clone(&done));
    bench.local().spawn(async move { *said.borrow_mut() = Some(flush.await.is_ok()) });
    done
}

#[test]
fn all_who_wait_share_one_flush_and_nobody_joins_one_that_is_on_its_way() {
    let mut bench = Bench::new();
    let (disk, journal) = opened(&mut bench);
    disk.hold();
    let first = ask(&bench, &journal);
    bench.settle();
    assert_eq!(disk.outstanding(), 1, "the first does not wait for company");
    let later: Vec<_> = (0..8).map(|_| ask(&bench, &journal)).collect();
    bench.settle();
    assert_eq!(disk.outstanding(), 1, "one flush in flight");
    assert!(disk.let_one_go());
    bench.settle();
    assert_eq!(*first.borrow(), Some(true));
    // What they wait for may have been written after the first flush was submitted.
    assert!(later.iter().all(|done| done.borrow().is_none()));
    assert!(disk.let_one_go() && !disk.let_one_go());
    bench.settle();
    assert!(later.iter().all(|done| *done.borrow() == Some(true)));
    let stats = journal.stats();
    assert_eq!((stats.flushes, stats.flush_calls), (2, 9));
    assert_eq!(disk.outstanding(), 0, "nobody waits: nothing is flushed");
}

#[test]
fn a_flush_that_fails_fails_all_who_wait_and_the_journal() {
    let mut bench = Bench::new();
    let (disk, journal) = opened(&mut bench);
    disk.hold();
    let first = ask(&bench, &journal);
    bench.settle();
    let second = ask(&bench, &journal);
    disk.0.borrow_mut().offline = true;
    assert!(disk.let_one_go());
    bench.settle();
    assert_eq!((*first.borrow(), *second.borrow()), (Some(false), Some(false)));
    assert!(journal.failed());
    let third = ask(&bench, &journal);
    bench.settle();
    assert_eq!(*third.borrow(), Some(false), "nobody waits for a drive that has failed");
    assert_eq!(disk.outstanding(), 0);
}

type Said = Rc<RefCell<Option<bool>>>;

/// Asks for an append, durable or not; whether it went well is in the cell when it is answered.
fn append(bench: &Bench, journal: &memkv_journal::Journal, hash: u64, durable: bool) -> Said {
    let records = vec![put(hash, journal.allocate(1).unwrap())];
    let append = if durable { journal.append_durable(records) } else { journal.append(records) };
    let done = Said::default();
    let said = Rc::clone(&done);
    bench.local().spawn(async move { *said.borrow_mut() = Some(append.await.is_ok()) });
    done
}

/// The commands that the drive holds.
fn held(disk: &Disk) -> Vec<Op> {
    disk.0.borrow().held.iter().flatten().map(|(io, _)| io.op).collect()
}

#[test]
fn durable_appends_that_come_together_are_one_command_of_the_drive() {
    let mut bench = Bench::new();
    let (disk, journal) = opened(&mut bench);
    disk.hold();
    let first: Vec<_> = (1..4).map(|n| append(&bench, &journal, n, true)).collect();
    bench.settle();
    assert_eq!(held(&disk), [Op::WriteFlush]);
    // What comes meanwhile waits together, with what need not be durable.
    let more = [append(&bench, &journal, 4, true), append(&bench, &journal, 5, false)];
    bench.settle();
    assert_eq!(held(&disk), [Op::WriteFlush]);
    assert!(first.iter().all(|said| said.borrow().is_none()));
    assert!(disk.let_one_go());
    bench.settle();
    assert!(first.iter().all(|said| *said.borrow() == Some(true)));
    assert!(more.iter().all(|said| said.borrow().is_none()));
    assert_eq!(held(&disk), [Op::WriteFlush]);
    assert!(disk.let_one_go() && !disk.let_one_go());
    bench.settle();
    assert!(more.iter().all(|said| *said.borrow() == Some(true)));
    let stats = journal.stats();
    assert_eq!((stats.frames, stats.appends), (2, 5));
    assert_eq!((stats.flushes, stats.flush_calls), (2, 4));
}

#[test]
fn a_durable_frame_is_written_while_others_flush_and_shares_the_next_flush() {
    let mut bench = Bench::new();
    let (disk, journal) = opened(&mut bench);
    disk.hold();
    let flushing = ask(&bench, &journal);
    bench.settle();
    let durable = append(&bench, &journal, 1, true);
    let plain = append(&bench, &journal, 2, false);
    let waits = ask(&bench, &journal);
    bench.settle();
    assert_eq!(held(&disk), [Op::Flush, Op::Write]);
    assert!(disk.let_one_go());
    bench.settle();
    assert_eq!(*flushing.borrow(), Some(true));
    // The next flush was submitted before the frame was written: it is not that of the frame.
    assert_eq!(held(&disk), [Op::Write, Op::Flush]);
    assert!(disk.let_one_go());
    bench.settle();
    assert_eq!((*plain.borrow(), *durable.borrow()), (Some(true), None));
    assert!(disk.let_one_go());
    bench.settle();
    assert_eq!((*waits.borrow(), *durable.borrow()), (Some(true), None));
    assert_eq!(held(&disk), [Op::Flush]);
    assert!(disk.let_one_go());
    bench.settle();
    assert_eq!(*durable.borrow(), Some(true));
    assert!(!disk.let_one_go());
    let stats = journal.stats();
    assert_eq!((stats.flushes, stats.flush_calls), (3, 3));
}

#[test]
fn whoever_asks_for_a_flush_beside_a_durable_frame_waits_for_the_next() {
    let mut bench = Bench::new();
    let (disk, journal) = opened(&mut bench);
    disk.hold();
    let durable = append(&bench, &journal, 1, true);
    bench.settle();
    let asked = ask(&bench, &journal);
    bench.settle();
    assert_eq!(held(&disk), [Op::WriteFlush]);
    assert!(disk.let_one_go());
    bench.settle();
    // What it waits for may have been written after the frame was on its way.
    assert_eq!((*durable.borrow(), *asked.borrow()), (Some(true), None));
    assert_eq!(held(&disk), [Op::Flush]);
    assert!(disk.let_one_go());
    bench.settle();
    assert_eq!(*asked.borrow(), Some(true));
    assert_eq!(disk.outstanding(), 0);
}

#[test]
fn a_durable_frame_that_fails_fails_all_who_wait_and_the_journal() {
    for offline_at in [Op::WriteFlush, Op::Flush] {
        let mut bench = Bench::new();
        let (disk, journal) = opened(&mut bench);
        disk.hold();
        let before = (offline_at == Op::Flush).then(|| ask(&bench, &journal));
        bench.settle();
        let durable = append(&bench, &journal, 1, true);
        bench.settle();
        let asked = ask(&bench, &journal);
        let next = append(&bench, &journal, 2, true);
        bench.settle();
        if before.is_some() {
            // The frame is written, and waits for its flush.
            assert!(disk.let_one_go() && disk.let_one_go());
            bench.settle();
            assert_eq!(*durable.borrow(), None);
        }
        disk.0.borrow_mut().offline = true;
        while disk.let_one_go() {
            bench.settle();
        }
        for said in [&durable, &asked, &next] {
            assert_eq!(*said.borrow(), Some(false), "{offline_at:?}");
        }
        assert!(journal.failed());
        let late = append(&bench, &journal, 3, true);
        bench.settle();
        assert_eq!((*late.borrow(), disk.outstanding()), (Some(false), 0));
    }
}
