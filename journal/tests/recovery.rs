//! Opening drives that were stopped, torn, damaged, lapped or written by somebody else.

mod common;

use common::*;
use memkv_journal::recovery::RecoveryReport;
use memkv_journal::{
    FormatOptions, JournalError, OpenError, ReadError, Record, SUPERBLOCK_STRIDE, frame,
};

const RING: u64 = 4 * SUPERBLOCK_STRIDE;

fn formatted(bench: &mut Bench) -> Disk {
    let disk = tiny_disk();
    bench.format(&disk, tiny());
    disk
}

/// A drive with `count` puts in frames of their own, and the model of it.
fn with_puts(bench: &mut Bench, count: u64) -> (Disk, Model) {
    let disk = formatted(bench);
    let (journal, recovered) = bench.open(&disk);
    assert!(recovered.clean && recovered.live.is_empty());
    let mut model = Model::default();
    for hash in 1..=count {
        let extent = journal.allocate(1).unwrap();
        let records = vec![put(hash, extent)];
        model.apply(&records);
        bench.append(&journal, records);
    }
    (disk, model)
}

#[test]
fn what_was_acknowledged_is_found_again_and_an_orderly_stop_is_clean() {
    let mut bench = Bench::new();
    let (disk, mut model) = with_puts(&mut bench, 5);
    let (journal, recovered) = bench.open(&disk);
    assert_eq!(Model::of(&recovered.live), model);
    assert!(!recovered.clean, "frames after the checkpoint: the stop was not orderly");
    assert_eq!((recovered.generation_high, recovered.clock_high), (5, 1_800_000_000));
    let met = |label| recovered.report.visits.iter().find(|row| row.0 == label).map(|row| row.1);
    assert_eq!((met('A'), met('Q')), (Some(5), Some(1)), "five frames, and the end");
    let visits = recovered.report.visits;
    let expected = RecoveryReport { frames: 5, records: 5, visits, ..RecoveryReport::default() };
    assert_eq!(recovered.report, expected);

    all_taken(&journal, &recovered.live);
    let (first, second) = (journal.allocate(1).unwrap(), journal.allocate(1).unwrap());
    let records = in_parts(9, first, second);
    model.apply(&records);
    model.apply(&[remove(2)]);
    bench.append(&journal, records);
    bench.append(&journal, vec![remove(2)]);
    bench.checkpoint(&journal, model.records(), true);
    let (_, recovered) = bench.open(&disk);
    assert_eq!(Model::of(&recovered.live), model);
    assert!(recovered.clean);
    assert_eq!((recovered.report.checkpoint, recovered.report.checkpoint_rows), (1, 7));
    let (_, recovered) = bench.open(&disk);
    assert!(!recovered.clean, "the start in between cleared the flag");
}

#[test]
fn a_damaged_frame_costs_its_own_changes_and_no_others() {
    for (at, len) in [(0, 8), (20, 1), (130, 1), (0, 4096), (124, 4)] {
        let mut bench = Bench::new();
        let (disk, mut model) = with_puts(&mut bench, 6);
        disk.damage(RING + 2 * 4096 + at, len);
        let (_, recovered) = bench.open(&disk);
        model.apply(&[remove(3)]);
        assert_eq!(Model::of(&recovered.live), model, "{at} {len}");
        assert_eq!((recovered.report.damaged_frames, recovered.report.frames), (1, 5));
        assert!(!recovered.clean && !recovered.report.torn_tail);
    }
}

#[test]
fn two_frames_lost_in_a_row_are_both_counted() {
    let mut bench = Bench::new();
    let (disk, mut model) = with_puts(&mut bench, 6);
    disk.damage(RING + 4096 + 3, 5000);
    let (_, recovered) = bench.open(&disk);
    model.apply(&[remove(2), remove(3)]);
    assert_eq!(Model::of(&recovered.live), model);
    assert_eq!((recovered.report.damaged_frames, recovered.report.frames), (2, 4));
}

#[test]
fn a_damaged_last_frame_ends_the_log() {
    for at in [124, 130] {
        let mut bench = Bench::new();
        let (disk, mut model) = with_puts(&mut bench, 4);
        disk.damage(RING + 3 * 4096 + at, 1);
        let (journal, recovered) = bench.open(&disk);
        model.apply(&[remove(4)]);
        assert_eq!(Model::of(&recovered.live), model);
        assert!(recovered.report.torn_tail && recovered.report.damaged_frames == 0);
        // The next frame takes its place.
        assert_eq!(journal.next_sequence(), 4);
        all_taken(&journal, &recovered.live);
        let records = vec![put(50, journal.allocate(1).unwrap())];
        model.apply(&records);
        bench.append(&journal, records);
        let (_, recovered) = bench.open(&disk);
        assert_eq!(Model::of(&recovered.live), model);
    }
}

#[test]
fn a_lost_remove_never_gives_two_blocks_the_same_unit() {
    let mut bench = Bench::new();
    let (disk, _) = with_puts(&mut bench, 1);
    let (journal, recovered) = bench.open(&disk);
    let extent = recovered.live[0].extent().unwrap();
    bench.append(&journal, vec![remove(1)]);
    bench.append(&journal, vec![put(2, extent)]);
    disk.damage(RING + 4096, 100);
    let (journal, recovered) = bench.open(&disk);
    assert_eq!(recovered.live, [put(2, extent)], "the later one stands");
    assert_eq!((recovered.report.damaged_frames, recovered.report.conflicts), (1, 1));
    all_taken(&journal, &recovered.live);
}

#[test]
fn an_unreadable_page_costs_one_frame() {
    let mut bench = Bench::new();
    let (disk, mut model) = with_puts(&mut bench, 5);
    disk.0.borrow_mut().bad_pages.insert(RING / 4096 + 1);
    let (_, recovered) = bench.open(&disk);
    model.apply(&[remove(2)]);
    assert_eq!(Model::of(&recovered.live), model);
    let report = recovered.report;
    assert_eq!((report.damaged_frames, report.frames), (1, 4));
    assert!(report.unreadable_pages > 0);
}

#[test]
fn frames_an_earlier_incarnation_left_never_come_back() {
    let mut bench = Bench::new();
    let (disk, mut model) = with_puts(&mut bench, 6);
    let stale = disk.image();
    let ring = |frame: u64| (RING + frame * 4096) as usize..(RING + (frame + 1) * 4096) as usize;
    // Frames 3 to 6 are lost: the log of the first start ends after frame 2.
    disk.damage(RING + 2 * 4096, 4 * 4096);
    let (journal, recovered) = bench.open(&disk);
    (3..=6).for_each(|hash| model.apply(&[remove(hash)]));
    assert_eq!(Model::of(&recovered.live), model);
    all_taken(&journal, &recovered.live);
    let records = vec![put(70, journal.allocate(1).unwrap())];
    bench.append(&journal, records.clone());
    // They reappear, as from a cache: frame 3 is the second start's, those after it are not.
    for frame in 3..6 {
        disk.0.borrow_mut().image[ring(frame)].copy_from_slice(&stale[ring(frame)]);
    }
    let before = disk.image();
    let (_, recovered) = bench.open(&disk);
    let mut with_third = model.clone();
    with_third.apply(&records);
    assert_eq!(Model::of(&recovered.live), with_third);
    // And when the second start's frame is damaged, they are not taken for what came after it.
    let disk = Disk::of(before);
    disk.damage(RING + 2 * 4096, 4096);
    let (_, recovered) = bench.open(&disk);
    assert_eq!(Model::of(&recovered.live), model);
}

#[test]
fn frames_of_an_earlier_format_are_not_frames() {
    let mut bench = Bench::new();
    let (disk, _) = with_puts(&mut bench, 6);
    let old = disk.image();
    bench.format(&disk, tiny());
    let (_, recovered) = bench.open(&disk);
    assert!(recovered.live.is_empty());
    // The same frames under another drive's superblock.
    let other = Disk::of(old);
    let (queue, pool) = (other.clone(), bench.pool.clone());
    let superblock = bench.run(async move {
        let geometry = queue.geometry();
        memkv_journal::read_superblock(&queue, &geometry, &pool).await.unwrap()
    });
    let mut renamed = superblock.clone();
    renamed.identity.drive = memkv_journal::DriveUuid(uuid::Uuid::from_u128(0xEE));
    for copy in 0..4 {
        let at = copy * SUPERBLOCK_STRIDE as usize;
        renamed.encode(copy, &mut other.0.borrow_mut().image[at..at + 4096]);
    }
    let (_, recovered) = bench.open(&other);
    assert!(recovered.live.is_empty());
}

#[test]
fn a_ring_is_lapped_many_times_and_nothing_is_lost() {
    let mut bench = Bench::new();
    let disk = Disk::new(6 << 20);
    let options = FormatOptions { block_limit: Some(900), ..tiny() };
    bench.format(&disk, options);
    let (mut journal, _) = bench.open(&disk);
    let (mut model, mut rng) = (Model::default(), memkv_poller::Rng::seeded(7));
    let (mut hash, mut fillers) = (0, 0);
    for round in 0..1500u64 {
        // Frames of one to four pages, so that laps end in fillers too.
        let count = 1 + rng.below(200);
        let mut records = Vec::new();
        for _ in 0..count {
            if model.0.len() as u64 + count > 220 || journal.free_units() < 2 {
                break;
            }
            hash += 1;
            records.push(put(hash, journal.allocate(1).unwrap()));
        }
        let oldest: Vec<Record> = model.records();
        for record in oldest.iter().take(if records.is_empty() { 150 } else { 5 }) {
            records.push(Record::Remove { block: record.block() });
        }
        let calls = journal.append(records.clone());
        drop(bench.run(calls).unwrap());
        for record in oldest
            .iter()
            .filter(|record| records.contains(&Record::Remove { block: record.block() }))
        {
            journal.release(record.extent().unwrap());
        }
        model.apply(&records);
        if journal.wants_checkpoint() {
            bench.checkpoint(&journal, model.records(), false);
        }
        if round % 7 == 0 {
            let stats = journal.stats();
            fillers += stats.frames - stats.appends;
            let reopened = bench.open(&disk);
            assert_eq!(Model::of(&reopened.1.live), model, "round {round}");
            assert_eq!(reopened.1.report.damaged_frames, 0);
            journal = reopened.0;
            all_taken(&journal, &reopened.1.live);
        }
    }
    assert!(fillers > 10, "laps ended in {fillers} fillers");
    let ring = RING as usize..(RING + (128 << 10)) as usize;
    let written = |entry: &Entry| match entry {
        Entry::Write { offset, data } if ring.contains(offset) => data.len(),
        _ => 0,
    };
    let written: usize = disk.0.borrow().log.iter().map(written).sum();
    assert!(written > 30 * (128 << 10), "the ring was lapped 30 times and more");
}

#[test]
fn many_starts_without_a_checkpoint_are_survived() {
    let mut bench = Bench::new();
    let disk = formatted(&mut bench);
    let mut model = Model::default();
    let mut wanted = None;
    for hash in 1..=22 {
        let (journal, recovered) = bench.open(&disk);
        assert_eq!(Model::of(&recovered.live), model);
        all_taken(&journal, &recovered.live);
        if journal.wants_checkpoint() {
            wanted = wanted.or(Some(hash));
        }
        let records = vec![put(hash, journal.allocate(1).unwrap())];
        model.apply(&records);
        bench.append(&journal, records);
    }
    assert_eq!(
        wanted,
        Some(13),
        "a list of starts that is three quarters full, and no shorter one"
    );
    assert_eq!(Model::of(&bench.open(&disk).1.live), model);
}

#[test]
fn starts_that_wrote_nothing_are_forgotten() {
    let mut bench = Bench::new();
    let (disk, _) = with_puts(&mut bench, 3);
    let mut starts = |count: u64| -> Vec<(u64, u64)> {
        let mut journal = None;
        (0..count).for_each(|_| journal = Some(bench.open(&disk).0));
        let starts = journal.expect("it was opened").superblock().starts;
        starts.iter().map(|start| (start.incarnation, start.first_sequence)).collect()
    };
    let once = starts(1);
    let last = *once.last().expect("the present one");
    let (before, now) = once.split_at(once.len() - 1);
    assert!(before.iter().all(|(_, sequence)| *sequence < last.1), "{once:?}");
    assert_eq!(starts(5), [before, &[(now[0].0 + 5, last.1)]].concat());
}

/// A drive with two checkpoints, the second in area A, and puts after it.
fn with_checkpoints(bench: &mut Bench) -> (Disk, Model, memkv_journal::Superblock) {
    let (disk, mut model) = with_puts(bench, 3);
    let (journal, recovered) = bench.open(&disk);
    all_taken(&journal, &recovered.live);
    for hash in 10..14 {
        let records = vec![put(hash, journal.allocate(1).unwrap()), remove(hash - 9)];
        model.apply(&records);
        bench.append(&journal, records);
        if hash == 10 || hash == 12 {
            bench.checkpoint(&journal, model.records(), false);
        }
    }
    let superblock = journal.superblock();
    assert_eq!((superblock.active, superblock.checkpoints[0].number), (0, 2));
    (disk, model, superblock)
}

#[test]
fn a_damaged_checkpoint_falls_back_to_the_other_while_the_log_reaches() {
    for at in [0, 4096 + 20, 4096 + 100] {
        let mut bench = Bench::new();
        let (disk, model, superblock) = with_checkpoints(&mut bench);
        disk.damage(superblock.layout.checkpoint_offset[0] + at, 1);
        let (journal, recovered) = bench.open(&disk);
        assert!(recovered.report.fell_back && !recovered.clean);
        assert_eq!(Model::of(&recovered.live), model);
        // The drive goes on from there.
        all_taken(&journal, &recovered.live);
        bench.checkpoint(&journal, model.records(), false);
        let (_, recovered) = bench.open(&disk);
        assert!(!recovered.report.fell_back);
        assert_eq!(Model::of(&recovered.live), model);
    }
}

#[test]
fn two_damaged_checkpoints_or_a_lapped_log_are_an_error() {
    let mut bench = Bench::new();
    let (disk, _, superblock) = with_checkpoints(&mut bench);
    for offset in superblock.layout.checkpoint_offset {
        disk.damage(offset + 4096 + 60, 1);
    }
    let refused = bench.try_open(&disk).unwrap_err();
    assert!(matches!(refused, Refused::Open(OpenError::CheckpointsDamaged { .. })), "{refused}");
    assert!(refused.to_string().starts_with("both checkpoints of the drive are of no use"));

    let (disk, mut model, _) = with_checkpoints(&mut bench);
    let (journal, recovered) = bench.open(&disk);
    all_taken(&journal, &recovered.live);
    for _ in 0..2 {
        bench.checkpoint(&journal, model.records(), false);
        (0..18).for_each(|_| bench.append(&journal, vec![remove(1)]));
    }
    let records = vec![put(99, journal.allocate(1).unwrap())];
    model.apply(&records);
    bench.append(&journal, records);
    let superblock = journal.superblock();
    disk.damage(superblock.layout.checkpoint_offset[superblock.active] + 4096 + 60, 1);
    let refused = bench.try_open(&disk).unwrap_err();
    assert!(refused.to_string().contains("the log after it reaches only to frame"), "{refused}");
}

#[test]
fn superblock_copies_are_repaired_while_two_agree() {
    let mut bench = Bench::new();
    let (disk, model) = with_puts(&mut bench, 2);
    for copies in [[0, 1], [2, 3], [0, 3]] {
        for copy in copies {
            disk.damage(copy * SUPERBLOCK_STRIDE + 700, 3);
        }
        let (_, recovered) = bench.open(&disk);
        assert_eq!(Model::of(&recovered.live), model);
    }
    for copy in 0..3 {
        disk.damage(copy * SUPERBLOCK_STRIDE + 700, 3);
    }
    let refused = bench.try_open(&disk).unwrap_err();
    let quorum = matches!(refused, Refused::Superblock(ReadError::NoQuorum { whole: 1 }));
    assert!(quorum, "{refused}");
}

#[test]
fn reading_the_superblock_repairs_its_copies() {
    let mut bench = Bench::new();
    let disk = formatted(&mut bench);
    let whole = disk.image();
    disk.damage(SUPERBLOCK_STRIDE + 20, 1);
    // Copy 2 lies where copy 3 belongs: whole, and not that copy.
    let at = |copy: usize| copy * SUPERBLOCK_STRIDE as usize..(copy * 4 + 1) * 4096;
    disk.0.borrow_mut().image[at(3)].copy_from_slice(&whole[at(2)]);
    assert!(disk.image() != whole);
    let (queue, pool) = (disk.clone(), bench.pool.clone());
    let superblock = bench
        .run(async move { memkv_journal::read_superblock(&queue, &queue.geometry(), &pool).await });
    assert_eq!(superblock.expect("two copies agree").revision, 1);
    assert!(disk.image() == whole, "all four are as they were");
}

#[test]
fn an_unformatted_or_shrunk_drive_is_told() {
    let mut bench = Bench::new();
    let refused = bench.try_open(&tiny_disk()).unwrap_err();
    assert!(matches!(refused, Refused::Superblock(ReadError::NotFormatted)), "{refused}");
    let refused = bench.try_open(&Disk::new(4096)).unwrap_err();
    assert!(matches!(refused, Refused::Superblock(ReadError::NotFormatted)), "{refused}");

    let disk = formatted(&mut bench);
    disk.0.borrow_mut().image.truncate(900 << 10);
    let refused = bench.try_open(&disk).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "the drive has 921600 bytes and had 1048576 when it was formatted"
    );

    let disk = formatted(&mut bench);
    disk.0.borrow_mut().offline = true;
    let refused = bench.try_open(&disk).unwrap_err();
    assert!(matches!(refused, Refused::Superblock(ReadError::Io(_))), "{refused}");
}

#[test]
fn a_format_cut_short_leaves_an_unformatted_drive() {
    let mut bench = Bench::new();
    let (disk, _) = with_puts(&mut bench, 3);
    let total = {
        let before = disk.0.borrow().writes;
        bench.format(&disk, tiny());
        disk.0.borrow().writes - before
    };
    for cut in 0..total {
        let (disk, model) = with_puts(&mut bench, 3);
        disk.0.borrow_mut().writes_left = Some(cut);
        let (queue, pool) = (disk.clone(), bench.pool.clone());
        let outcome = bench.run(async move {
            let geometry = queue.geometry();
            memkv_journal::format(&queue, &geometry, &pool, identity(), tiny()).await
        });
        assert!(outcome.is_err());
        disk.0.borrow_mut().writes_left = None;
        match bench.try_open(&disk) {
            // Before the first pair was erased the old drive is all there; after the first pair of
            // the new superblock the new one is.
            Ok((_, recovered)) if cut <= 3 => assert_eq!(Model::of(&recovered.live), model),
            Ok((_, recovered)) => assert!(recovered.live.is_empty() && cut >= total - 2),
            Err(Refused::Superblock(ReadError::NotFormatted | ReadError::NoQuorum { .. })) => {}
            Err(other) => panic!("after {cut} writes: {other}"),
        }
    }
}

/// Changes a field of every superblock copy and sums it again.
fn patch(disk: &Disk, at: usize, bytes: &[u8]) {
    let crc = crc_fast::CrcAlgorithm::Crc32Iscsi;
    for copy in 0..4 {
        let start = copy * SUPERBLOCK_STRIDE as usize;
        let image = &mut disk.0.borrow_mut().image;
        image[start + at..start + at + bytes.len()].copy_from_slice(bytes);
        let sum = crc_fast::checksum(crc, &image[start + 16..start + 4096]) as u32;
        image[start + 12..start + 16].copy_from_slice(&sum.to_le_bytes());
    }
}

#[test]
fn what_is_newer_is_refused_with_a_sentence_and_left_alone() {
    let cases: [(usize, &[u8], &str); 4] = [
        (
            16,
            &[2],
            "the drive has format version 2; this program knows versions up to 1: \
             use a newer memkv",
        ),
        (
            40,
            &[4],
            "the drive uses features this program does not know (bits 0x4): use a newer memkv",
        ),
        (
            32,
            &[1],
            "the drive uses features under which this program may only read it (bits 0x1): \
             use a newer memkv",
        ),
        (140, &[0, 0, 1], "the superblock's unit size makes no sense"),
    ];
    let mut bench = Bench::new();
    for (at, bytes, sentence) in cases {
        let disk = formatted(&mut bench);
        patch(&disk, at, bytes);
        disk.damage(3, 1);
        let before = disk.image();
        assert_eq!(bench.try_open(&disk).unwrap_err().to_string(), sentence);
        assert!(disk.image() == before, "a drive that is refused is not written to");
    }
    let disk = formatted(&mut bench);
    patch(&disk, 24, &[9]);
    let (journal, _) = bench.open(&disk);
    let compatible = journal.superblock().features.compatible;
    assert_eq!(compatible, 9, "a compatible feature is ignored and kept");
}

#[test]
fn counters_at_their_end_are_counted_on_and_refused_at_the_next_start() {
    let fields: [(&[usize], bool); 7] = [
        // Revision and incarnation go up with every start.
        (&[48], true),
        (&[232], true),
        // So do sequence and position, with every frame: the starts of both checkpoints.
        (&[264, 296], true),
        (&[272, 304], true),
        // Epoch, highest generation and clock stay here.
        (&[88], false),
        (&[240], false),
        (&[248], false),
    ];
    for (fields, goes_up) in fields {
        let mut bench = Bench::new();
        let disk = formatted(&mut bench);
        for at in fields {
            patch(&disk, *at, &(1u64 << 62).to_le_bytes());
        }
        let (journal, recovered) = bench.open(&disk);
        assert!(recovered.live.is_empty(), "{fields:?}");
        let extent = journal.allocate(1).unwrap();
        let records = vec![put(1, extent)];
        bench.append(&journal, records.clone());
        bench.checkpoint(&journal, records, true);
        drop(journal);
        let found = bench.try_open(&disk).map(|(_, recovered)| recovered.live.len());
        let found = found.map_err(|error| error.to_string());
        let refused = "the superblock's set of counters makes no sense".to_owned();
        assert_eq!(found, if goes_up { Err(refused) } else { Ok(1) }, "{fields:?}");
    }
}

#[test]
fn a_failed_write_takes_the_journal_offline_and_loses_nothing_acknowledged() {
    let mut bench = Bench::new();
    let (disk, model) = with_puts(&mut bench, 3);
    let (journal, recovered) = bench.open(&disk);
    all_taken(&journal, &recovered.live);
    disk.0.borrow_mut().writes_left = Some(0);
    let calls: Vec<_> = (40..45)
        .map(|hash| journal.append(vec![put(hash, journal.allocate(1).unwrap())]))
        .collect();
    for call in calls {
        assert!(matches!(bench.run(call), Err(JournalError::Failed(_))));
    }
    assert!(journal.failed() && !journal.room_for_put() && !journal.wants_checkpoint());
    disk.0.borrow_mut().writes_left = None;
    let late = journal.append(vec![remove(1)]);
    assert!(matches!(bench.run(late), Err(JournalError::Failed(_))), "offline is offline");
    let (_, recovered) = bench.open(&disk);
    assert_eq!(Model::of(&recovered.live), model);
}

#[test]
fn a_drive_that_dies_while_it_is_opened_is_an_error_not_an_empty_drive() {
    let mut bench = Bench::new();
    let (disk, _) = with_puts(&mut bench, 3);
    for page in 0..256 {
        disk.0.borrow_mut().bad_pages.insert(RING / 4096 + page);
    }
    assert!(matches!(bench.try_open(&disk), Err(Refused::Open(OpenError::Io(_)))));
}

#[test]
fn frames_on_the_drive_can_be_read_by_anybody() {
    let mut bench = Bench::new();
    let (disk, model) = with_puts(&mut bench, 3);
    let image = disk.image();
    let mut read = Model::default();
    for at in 0..3 {
        let (header, records) = frame::parse(&image[RING as usize + at * 4096..]).unwrap();
        assert_eq!((header.sequence, header.position), (at as u64 + 1, at as u64 * 4096));
        assert_eq!((header.epoch, header.incarnation), (3, 1));
        read.apply(&records);
    }
    assert_eq!(read, model);
}
