//! Trimming an open journal's drive: when, what, and what is kept from it.

mod common;

use std::rc::Rc;
use std::time::Duration;

use common::*;
use memkv_block::{BlockQueue, IoError, Op};
use memkv_journal::{Journal, TrimConfig, UNIT, UnitRange};

const INTERVAL: Duration = Duration::from_secs(5);

fn trimmed(bench: &mut Bench, extents: u32) -> (Disk, Rc<Journal>) {
    let disk = tiny_disk();
    bench.format(&disk, tiny());
    let (journal, _) = bench.open(&disk);
    journal.start_trim(TrimConfig { interval: INTERVAL, extents });
    bench.settle();
    (disk, journal)
}

/// Ranges of units that the device was told of.
fn told(disk: &Disk, journal: &Journal) -> Vec<(u64, u64)> {
    let first = journal.data_offset(0);
    let trims = &disk.0.borrow().trims;
    let unit = UNIT as u64;
    trims.iter().map(|(offset, len)| ((offset - first) / unit, len / unit)).collect()
}

fn take(journal: &Journal, extents: usize, units: u16) -> Vec<UnitRange> {
    (0..extents).map(|_| journal.allocate(units).expect("there is room")).collect()
}

#[test]
fn neighbours_go_as_one_range_when_the_interval_is_over() {
    let mut bench = Bench::new();
    let (disk, journal) = trimmed(&mut bench, 1024);
    let taken = take(&journal, 6, 2);
    for at in [4, 0, 2, 1] {
        journal.release(taken[at]);
    }
    bench.settle();
    bench.pass(INTERVAL - Duration::from_millis(1));
    assert_eq!(told(&disk, &journal), [], "not before its time");
    assert_eq!(journal.trim_stats().units_pending, 8);
    bench.pass(Duration::from_millis(1));
    assert_eq!(told(&disk, &journal), [(0, 6), (8, 2)]);
    let stats = journal.trim_stats();
    assert!(stats.on);
    assert_eq!((stats.extents_freed, stats.ranges, stats.units_trimmed), (4, 2, 8));
    assert_eq!((stats.extents_trimmed, stats.units_pending, stats.units_in_flight), (4, 0, 0));
    // The next one waits for its own interval.
    journal.release(taken[5]);
    bench.settle();
    bench.pass(INTERVAL - Duration::from_millis(1));
    assert_eq!(told(&disk, &journal).len(), 2);
    bench.pass(Duration::from_millis(1));
    assert_eq!(told(&disk, &journal)[2..], [(10, 2)]);
}

#[test]
fn enough_extents_go_at_once() {
    let mut bench = Bench::new();
    let (disk, journal) = trimmed(&mut bench, 3);
    let taken = take(&journal, 5, 1);
    journal.release(taken[0]);
    journal.release(taken[4]);
    bench.settle();
    assert_eq!(told(&disk, &journal), []);
    journal.release(taken[2]);
    bench.settle();
    assert_eq!(told(&disk, &journal), [(0, 1), (2, 1), (4, 1)]);
}

#[test]
fn units_that_were_taken_again_are_left_alone() {
    let mut bench = Bench::new();
    let (disk, journal) = trimmed(&mut bench, 1024);
    let all = u16::try_from(journal.total_units()).expect("a tiny drive");
    let taken = take(&journal, 1, all);
    journal.release(taken[0]);
    bench.settle();
    let again = journal.allocate(all - 3).expect("all are free");
    assert_eq!(journal.trim_stats().units_reused, u64::from(again.count));
    bench.pass(INTERVAL);
    assert_eq!(told(&disk, &journal), [(u64::from(all) - 3, 3)]);
}

#[test]
fn a_range_on_its_way_cannot_be_allocated_but_counts_as_free() {
    let mut bench = Bench::new();
    let (disk, journal) = trimmed(&mut bench, 1);
    let all = u16::try_from(journal.total_units()).expect("a tiny drive");
    let taken = take(&journal, 1, all);
    disk.hold();
    journal.release(taken[0]);
    bench.settle();
    assert_eq!((disk.outstanding(), journal.trim_stats().units_in_flight), (1, u64::from(all)));
    assert_eq!(journal.free_units(), u32::from(all));
    assert_eq!(journal.allocate(1), None, "the device may still be at it");
    assert!(disk.let_one_go());
    bench.settle();
    assert_eq!(journal.allocate(all).map(|range| range.count), Some(all));
}

#[test]
fn a_device_that_cannot_is_asked_once() {
    let mut bench = Bench::new();
    let (disk, journal) = trimmed(&mut bench, 1);
    disk.0.borrow_mut().trim_error = Some(|| IoError::Unsupported { op: Op::Deallocate });
    let taken = take(&journal, 2, 2);
    journal.release(taken[0]);
    bench.settle();
    assert!(!journal.trim_stats().on);
    journal.release(taken[1]);
    bench.pass(INTERVAL);
    assert_eq!(disk.0.borrow().trims.len(), 1);
    assert!(!journal.failed());
    assert_eq!(journal.free_units(), journal.total_units());
}

#[test]
fn an_error_costs_its_range_and_no_more_and_a_device_that_is_gone_the_drive() {
    let mut bench = Bench::new();
    let (disk, journal) = trimmed(&mut bench, 1);
    disk.0.borrow_mut().trim_error = Some(|| IoError::Injected("cannot just now"));
    let taken = take(&journal, 3, 2);
    journal.release(taken[0]);
    bench.settle();
    disk.0.borrow_mut().trim_error = None;
    journal.release(taken[1]);
    bench.settle();
    let stats = journal.trim_stats();
    assert_eq!((stats.ranges, stats.ranges_failed, stats.units_trimmed), (2, 1, 2));
    assert!(!journal.failed() && stats.on);
    disk.0.borrow_mut().offline = true;
    journal.release(taken[2]);
    bench.settle();
    assert!(journal.failed() && !journal.trim_stats().on);
}

#[test]
fn stopping_drops_what_is_pending_and_waits_for_what_is_on_its_way() {
    let mut bench = Bench::new();
    let (disk, journal) = trimmed(&mut bench, 2);
    let taken = take(&journal, 4, 2);
    disk.hold();
    journal.release(taken[0]);
    journal.release(taken[2]);
    bench.settle();
    journal.release(taken[1]);
    bench.settle();
    journal.stop_trim();
    let (waiting, settled) = (Rc::clone(&journal), Rc::new(std::cell::Cell::new(false)));
    let said = Rc::clone(&settled);
    bench.local().spawn(async move {
        waiting.trim_settled().await;
        said.set(true);
    });
    bench.settle();
    assert!(disk.let_one_go());
    bench.settle();
    assert!(!settled.get(), "one is still on its way");
    assert!(disk.let_one_go() && !disk.let_one_go());
    bench.settle();
    assert!(settled.get());
    let stats = journal.trim_stats();
    assert_eq!((stats.units_dropped, stats.units_trimmed, stats.on), (2, 4, false));
    bench.pass(INTERVAL);
    assert_eq!(disk.0.borrow().trims.len(), 2);
}

#[test]
fn a_long_round_is_carried_out_to_its_end() {
    let mut bench = Bench::new();
    let (disk, journal) = trimmed(&mut bench, 1024);
    let taken = take(&journal, 20, 1);
    taken.iter().step_by(2).for_each(|range| journal.release(*range));
    bench.settle();
    bench.pass(INTERVAL);
    assert_eq!(told(&disk, &journal).len(), 10, "more than are on their way at a time");
}
