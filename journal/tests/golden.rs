//! Images of drives written by every released version, opened by this one.
//!
//! An image is kept as its pages that are not all zeros: `page number u32 LE | 4096 bytes`,
//! repeated. When the format gains a version, its image is added beside the old ones; an old one
//! never changes.

mod common;

use std::path::{Path, PathBuf};

use common::*;
use memkv_journal::{Record, frame};

const BYTES: usize = 640 << 10;
const PAGE: usize = 4096;

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// What version 1's image holds.
fn known() -> Vec<Record> {
    let mut records = vec![put(1, unit(0)), put(3, unit(3)), put(5, unit(6))];
    records.extend(in_parts(2, unit(1), unit(2)));
    records
}

/// Writes the drive of the image: both checkpoints, a log with all kinds of records, two starts.
fn write_image(bench: &mut Bench) -> Vec<u8> {
    let disk = Disk::new(BYTES);
    bench.format(&disk, tiny());
    let (journal, _) = bench.open(&disk);
    bench.append(&journal, vec![put(1, unit(0))]);
    bench.checkpoint(&journal, vec![put(1, unit(0))], false);
    bench.append(&journal, in_parts(2, unit(1), unit(2)));
    bench.append(&journal, vec![put(3, unit(3)), put(4, unit(4))]);
    let mut live = vec![put(1, unit(0)), put(3, unit(3)), put(4, unit(4))];
    live.extend(in_parts(2, unit(1), unit(2)));
    bench.checkpoint(&journal, live, false);
    let (journal, _) = bench.open(&disk);
    bench.append(&journal, vec![remove(4)]);
    bench.append(&journal, vec![put(5, unit(6))]);
    disk.image()
}

fn pack(image: &[u8]) -> Vec<u8> {
    let mut packed = Vec::new();
    for (number, page) in image.chunks(PAGE).enumerate().filter(|(_, page)| page != &[0; PAGE]) {
        packed.extend_from_slice(&(number as u32).to_le_bytes());
        packed.extend_from_slice(page);
    }
    packed
}

fn unpack(packed: &[u8]) -> Vec<u8> {
    let mut image = vec![0; BYTES];
    assert!(packed.len().is_multiple_of(PAGE + 4), "the image is whole");
    for entry in packed.chunks(PAGE + 4) {
        let number = u32::from_le_bytes([entry[0], entry[1], entry[2], entry[3]]) as usize;
        image[number * PAGE..(number + 1) * PAGE].copy_from_slice(&entry[4..]);
    }
    image
}

#[test]
fn the_image_of_version_1_opens_to_what_was_put_in() {
    let packed = std::fs::read(path("v1.pages")).expect("the image is kept beside this test");
    let image = unpack(&packed);
    let mut bench = Bench::new();
    let disk = Disk::of(image.clone());
    let (journal, recovered) = bench.open(&disk);
    let mut expected = Model::default();
    expected.apply(&known());
    assert_eq!(Model::of(&recovered.live), expected);
    assert_eq!((recovered.generation_high, recovered.clock_high), (5, 1_800_000_000));
    let report = recovered.report;
    assert_eq!((report.checkpoint, report.checkpoint_rows, report.frames), (2, 6, 2));
    let superblock = journal.superblock();
    assert_eq!(superblock.identity, identity());
    assert_eq!((superblock.incarnation, superblock.layout.units), (3, 23));
    // And the other checkpoint with a longer log gives the same.
    let disk = Disk::of(image);
    disk.damage(superblock.layout.checkpoint_offset[superblock.active], 1);
    let (_, recovered) = bench.open(&disk);
    assert!(recovered.report.fell_back);
    assert_eq!(Model::of(&recovered.live), expected);
}

#[test]
fn this_version_writes_the_same_image_byte_for_byte() {
    let image = write_image(&mut Bench::new());
    let written = pack(&image);
    if std::env::var_os("MEMKV_WRITE_GOLDEN").is_some() {
        std::fs::write(path("v1.pages"), &written).expect("the image can be written");
    }
    let kept = std::fs::read(path("v1.pages")).expect("the image is kept beside this test");
    assert!(written == kept, "the format changed: that takes a new version and a new image");
    // The first page of the ring is a frame that says so itself.
    let (header, records) = frame::parse(&image[64 << 10..]).expect("a frame");
    assert_eq!((header.sequence, records), (1, vec![put(1, unit(0))]));
}
