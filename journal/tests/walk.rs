//! Walking over what a drive remembers, piece by piece, while it changes.

mod common;

use std::ops::ControlFlow;
use std::rc::Rc;

use common::*;
use memkv_journal::{FormatOptions, Journal, Record};

/// One piece of a walk: the generations seen, and where to go on.
fn walk(
    bench: &mut Bench,
    journal: &Rc<Journal>,
    place: u64,
    looks: usize,
    stop_at: Option<u64>,
) -> (Vec<u64>, Option<u64>) {
    let journal = Rc::clone(journal);
    bench.run(async move {
        let mut seen = Vec::new();
        let mut each = |view: &memkv_journal::View<'_>| {
            seen.push(view.block.generation);
            match stop_at == Some(view.block.generation) {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        };
        let next = journal.walk(place, looks, &mut each).await.expect("the drive works");
        (seen, next)
    })
}

/// Puts these blocks, three to a frame.
fn append(bench: &mut Bench, journal: &Rc<Journal>, model: &mut Model, hashes: &[u64]) {
    for hashes in hashes.chunks(3) {
        let records: Vec<Record> =
            hashes.iter().map(|&hash| put(hash, journal.allocate(1).expect("a unit"))).collect();
        model.apply(&records);
        bench.append(journal, records);
    }
}

fn numbers(from: u64, count: u64) -> Vec<u64> {
    (from..from + count).collect()
}

fn drive(bench: &mut Bench) -> Rc<Journal> {
    let disk = Disk::new(8 << 20);
    bench.format(&disk, FormatOptions { ring_bytes: Some(512 << 10), ..tiny() });
    bench.open(&disk).0
}

#[test]
fn a_walk_in_pieces_sees_each_record_once_and_in_order() {
    // All in the log, all in a checkpoint, some in each.
    for in_checkpoint in [0, 40, 60] {
        let mut bench = Bench::new();
        let (journal, mut model) = (drive(&mut bench), Model::default());
        append(&mut bench, &journal, &mut model, &numbers(1, in_checkpoint));
        if in_checkpoint > 0 {
            bench.checkpoint(&journal, model.records(), false);
        }
        append(&mut bench, &journal, &mut model, &numbers(in_checkpoint + 1, 60 - in_checkpoint));
        for looks in [1, 2, 7, 30, 59, 60, 61, 1000] {
            let (mut all, mut place, mut pieces) = (Vec::new(), Some(0), 0);
            while let Some(from) = place {
                let (seen, next) = walk(&mut bench, &journal, from, looks, None);
                assert!(seen.len() <= looks && next.is_none_or(|next| next > from));
                assert!(next.is_none() || seen.len() == looks, "it uses what it may");
                all.extend(seen);
                (place, pieces) = (next, pieces + 1);
            }
            assert_eq!(all, numbers(1, 60), "{in_checkpoint} in the checkpoint, {looks} looks");
            assert_eq!(pieces, 60 / looks + 1);
        }
        // Whoever has enough breaks off, and goes on behind it.
        let (seen, next) = walk(&mut bench, &journal, 0, 1000, Some(47));
        assert_eq!(seen, numbers(1, 47));
        let (seen, next) = walk(&mut bench, &journal, next.expect("there is more"), 1000, None);
        assert_eq!((seen, next), (numbers(48, 13), None));
    }
}

/// Checkpoints come between two pieces: what was there when the walk began, and stays, is seen.
#[test]
fn a_walk_misses_nothing_when_checkpoints_move_what_it_has_not_seen() {
    for looks in [1, 4, 9, 25] {
        for every in 1..4u64 {
            let mut bench = Bench::new();
            let (journal, mut model) = (drive(&mut bench), Model::default());
            append(&mut bench, &journal, &mut model, &numbers(1, 30));
            bench.checkpoint(&journal, model.records(), false);
            append(&mut bench, &journal, &mut model, &numbers(31, 30));
            let (mut all, mut place, mut pieces) = (Vec::new(), Some(0), 0);
            while let Some(from) = place {
                let (seen, next) = walk(&mut bench, &journal, from, looks, None);
                all.extend(seen);
                (place, pieces) = (next, pieces + 1);
                // Five at most: the walk must come to an end.
                if pieces % every == 0 && pieces <= 5 * every {
                    append(&mut bench, &journal, &mut model, &numbers(100 + pieces * 5, 2));
                    bench.checkpoint(&journal, model.records(), false);
                }
            }
            let missed = numbers(1, 60).into_iter().find(|hash| !all.contains(hash));
            assert_eq!(missed, None, "{looks} looks, a checkpoint every {every} pieces: {all:?}");
        }
    }
}

/// Rows that fill more than one piece: where the keys of a later piece begin was found out when the
/// drive was opened, which reads no keys.
#[test]
fn a_walk_goes_on_in_a_later_piece_of_rows_with_the_right_keys() {
    const BLOCKS: u64 = 7000;
    let mut bench = Bench::new();
    let disk = Disk::new(256 << 20);
    let options = FormatOptions { block_limit: Some(2 * BLOCKS), ..tiny() };
    bench.format(&disk, options);
    let (journal, _) = bench.open(&disk);
    // One in a hundred is a block of parts, with a key of another length.
    let mut records = Vec::new();
    for hash in 1..=BLOCKS {
        let at = (hash * 2) as u32;
        match hash % 100 {
            0 => records.extend(in_parts(hash, unit(at), unit(at + 1))),
            _ => records.push(put(hash, unit(at))),
        }
    }
    bench.checkpoint(&journal, records.clone(), false);
    let (journal, _) = bench.open(&disk);
    let (mut all, mut place) = (Vec::new(), Some(0));
    while let Some(from) = place {
        let journal = Rc::clone(&journal);
        let (seen, next) = bench.run(async move {
            let mut seen: Vec<Record> = Vec::new();
            let mut each = |view: &memkv_journal::View<'_>| {
                seen.push(view.to_record());
                ControlFlow::Continue(())
            };
            let next = journal.walk(from, 900, &mut each).await.expect("the drive works");
            (seen, next)
        });
        all.extend(seen);
        place = next;
    }
    assert_eq!(all.len(), records.len());
    assert!(all == records, "each with its key");
}
