//! Reading a drive without touching it: what lives, and whether its bytes are what was recorded.

mod common;

use std::rc::Rc;
use std::sync::atomic::Ordering;

use common::{Bench, Disk, in_parts, put, tiny, unit};
use memkv_dma::Class;
use memkv_journal::{
    Contents, CopyState, ExtentFault, OpenError, ReadError, Superblock, UNIT, read_contents,
    read_copies, verify_extent,
};

fn superblock(bench: &mut Bench, disk: &Disk) -> Superblock {
    let (disk, pool) = (disk.clone(), bench.pool.clone());
    let seen = bench.run(async move { read_copies(&disk, &disk.geometry(), &pool).await });
    seen.superblock.expect("it is formatted")
}

fn contents(bench: &mut Bench, disk: &Disk) -> Result<Contents, OpenError> {
    let superblock = superblock(bench, disk);
    let (disk, pool, local) = (disk.clone(), bench.pool.clone(), bench.local());
    bench.run(async move { read_contents(&disk, &local, &pool, &superblock).await })
}

#[test]
fn what_lives_is_read_and_nothing_is_written() {
    let mut bench = Bench::new();
    let disk = common::tiny_disk();
    bench.format(&disk, tiny());
    let (journal, _) = bench.open(&disk);
    let records = [vec![put(1, unit(0))], in_parts(2, unit(1), unit(2))].concat();
    bench.append(&journal, records.clone());
    drop(journal);
    // One copy is damaged: reading tells, and leaves it to a start to mend it.
    disk.damage(16 << 10, 100);
    let before = disk.log_len();
    let found = contents(&mut bench, &disk).expect("it can be read");
    assert_eq!(found.live, records);
    assert_eq!((found.report.frames, found.spare.expect("it is empty")), (1, 0));
    let (again, pool) = (disk.clone(), bench.pool.clone());
    let seen = bench.run(async move { read_copies(&again, &again.geometry(), &pool).await });
    assert!(matches!(seen.copies[1], CopyState::Blank | CopyState::Damaged(_)), "{seen:?}");
    assert_eq!(disk.log_len(), before, "nothing was written");
}

#[test]
fn both_checkpoints_are_looked_at() {
    let mut bench = Bench::new();
    let disk = common::tiny_disk();
    bench.format(&disk, tiny());
    let (journal, _) = bench.open(&disk);
    bench.append(&journal, vec![put(1, unit(0))]);
    bench.checkpoint(&journal, vec![put(1, unit(0))], false);
    bench.checkpoint(&journal, vec![put(1, unit(0))], true);
    drop(journal);
    let superblock = superblock(&mut bench, &disk);
    let spare = superblock.layout.checkpoint_offset[1 - superblock.active];
    assert_eq!(contents(&mut bench, &disk).expect("whole").spare.expect("whole"), 1);
    disk.damage(spare + 4096, 64);
    let found = contents(&mut bench, &disk).expect("the one in force is whole");
    assert!(!found.report.fell_back);
    assert!(found.spare.is_err(), "{:?}", found.spare);
    disk.damage(spare + 4096, 64);
    disk.damage(superblock.layout.checkpoint_offset[superblock.active] + 4096, 64);
    let found = contents(&mut bench, &disk).expect("the other one and the log are whole");
    assert!(found.report.fell_back);
    assert_eq!(found.live, [put(1, unit(0))]);
}

#[test]
fn bytes_are_held_against_their_crc() {
    let mut bench = Bench::new();
    let disk = common::tiny_disk();
    bench.format(&disk, tiny());
    let superblock = superblock(&mut bench, &disk);
    let offset = superblock.layout.data_offset + 2 * UNIT as u64;
    let mut verify = |length: u32, crc: u32| {
        let (disk, pool, layout) = (disk.clone(), bench.pool.clone(), superblock.layout);
        let extent = memkv_journal::UnitRange { start: 2, count: 2 };
        bench.run(async move { verify_extent(&disk, &pool, &layout, (extent, length, crc)).await })
    };
    // CRC32C of zeros (RFC 3720 B.4).
    verify(32, 0x8A91_36AA).expect("zeros");
    disk.damage(offset + 32, 1);
    verify(32, 0x8A91_36AA).expect("what follows does not count");
    disk.damage(offset + 31, 1);
    match verify(32, 0x8A91_36AA) {
        Err(ExtentFault::Crc { expected: 0x8A91_36AA, found }) => assert_ne!(found, 0x8A91_36AA),
        other => panic!("{other:?}"),
    }
    disk.0.borrow_mut().bad_pages.insert(offset / 4096 + 4);
    assert!(matches!(verify(20_000, 0), Err(ExtentFault::Io(_))));
}

#[test]
fn an_open_journal_reads_an_extent_in_pieces_and_holds_it_against_its_crc() {
    let mut bench = Bench::new();
    let disk = common::tiny_disk();
    bench.format(&disk, tiny());
    let (journal, _) = bench.open(&disk);
    let first = journal.data_offset(0);
    let image: Vec<u8> = (0..4 * UNIT).map(|at| (at / 7) as u8).collect();
    disk.0.borrow_mut().image[first as usize..][..image.len()].copy_from_slice(&image);
    let extent = memkv_journal::UnitRange { start: 0, count: 4 };
    // What lies behind is somebody else's, and not read.
    disk.0.borrow_mut().bad_pages.insert((first + image.len() as u64) / 4096);
    // Read whole, unit by unit, and in pieces that do not divide it.
    for (piece, length) in [(4, 4 * UNIT), (1, 4 * UNIT), (3, 4 * UNIT), (1, UNIT + 1), (2, 1)] {
        let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, &image[..length]) as u32;
        for (want, good) in [(crc, true), (crc ^ 1, false)] {
            let (journal, pool) = (Rc::clone(&journal), bench.pool.clone());
            let verdict = bench.run(async move {
                let buf = pool.allocate_wait(Class::Scrub, piece * UNIT).await;
                journal.scrub_extent((extent, length as u32, want), buf).await
            });
            match verdict {
                Ok(()) => assert!(good, "{length} bytes in pieces of {piece} units"),
                Err(ExtentFault::Crc { expected, found }) => {
                    assert!(!good, "{length} bytes in pieces of {piece} units");
                    assert_eq!((expected, found), (want, crc));
                }
                Err(other) => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn a_scrub_lets_others_have_their_turn_while_it_checks() {
    let mut bench = Bench::new();
    let disk = Disk::new(4 << 20);
    bench.format(&disk, tiny());
    let (journal, _) = bench.open(&disk);
    let units = (1 << 20) / UNIT;
    let extent = memkv_journal::UnitRange { start: 0, count: units as u16 };
    let mut passes_for = |length: usize| {
        let stats = bench.reactor.stats();
        let before = stats.polls.load(Ordering::Relaxed);
        let (journal, pool) = (Rc::clone(&journal), bench.pool.clone());
        let verdict = bench.run(async move {
            let buf = pool.allocate_wait(Class::Scrub, units * UNIT).await;
            journal.scrub_extent((extent, length as u32, 0), buf).await
        });
        assert!(matches!(verdict, Err(ExtentFault::Crc { .. })));
        stats.polls.load(Ordering::Relaxed) - before
    };
    // A turn for each 256 KiB that were begun.
    let least = passes_for(1);
    assert_eq!(passes_for(256 << 10), least);
    assert_eq!(passes_for((256 << 10) + 1), least + 1);
    assert_eq!(passes_for(1 << 20), least + 3);
}

#[test]
fn a_blank_drive_says_so() {
    let mut bench = Bench::new();
    let (disk, pool) = (common::tiny_disk(), bench.pool.clone());
    let seen = bench.run(async move { read_copies(&disk, &disk.geometry(), &pool).await });
    assert_eq!(seen.copies, [CopyState::Blank; 4]);
    assert!(matches!(seen.superblock, Err(ReadError::NotFormatted)));
}
