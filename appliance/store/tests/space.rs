//! Space: who gets it, who is told to come again, who has to go.

mod common;

use std::time::Duration;

use common::{EXTENT, Machine, Node, UNIT, put, tiny_ring, watermarks, without_eviction};
use memkv_journal::FormatOptions;
use memkv_store::{
    Advice, Deleted, EvictionConfig, Miss, MissReason, Refusal, ReserveRequest, StoreConfig,
};

const MIB: usize = 1 << 20;

fn units(store: &memkv_store::Store) -> (u64, u64) {
    let drives = store.drives();
    (drives.iter().map(|d| d.units_free).sum(), drives.iter().map(|d| d.units_total).sum())
}

/// Puts, and comes again when it is told to, a bounded number of times.
fn put_again(node: &mut Node, name: &str, length: u64) -> Result<u64, Refusal> {
    for _ in 0..200 {
        match node.put_as(put(&node.store.clone(), name, length)) {
            Err(Refusal::Busy { .. }) => node.settle(),
            outcome => return outcome,
        }
    }
    Err(Refusal::Busy { retry_ms: 0 })
}

fn one_drive(config: StoreConfig) -> (Machine, Node) {
    let machine = Machine::new(1, 4 * MIB, tiny_ring(), config);
    let node = machine.start();
    (machine, node)
}

/// Fills a node with blocks of one unit, up to a share of its units.
fn fill(node: &mut Node, share: f64) -> usize {
    let (free, total) = units(&node.store);
    assert_eq!(free, total);
    let count = (total as f64 * share) as usize;
    for n in 0..count {
        put_again(node, &format!("small {n}"), 10).expect("there is room");
    }
    count
}

#[test]
fn a_put_of_many_extents_gets_its_place_below_the_high_watermark_too() {
    let (_machine, mut node) = one_drive(watermarks(0.95, 0.9));
    let count = fill(&mut node, 0.9);
    let (free, _) = units(&node.store);
    let big = 16 * u64::from(EXTENT);
    assert!(u64::from(EXTENT / UNIT) < free && free < 32, "{free} units: enough for one extent");
    put_again(&mut node, "big", big).expect("eviction makes room for all of it");
    assert!(node.generation("big").is_some());
    // The oldest went, with their reason, and no more than were needed.
    assert_eq!(node.existing("small 0"), Err(Miss(MissReason::Evicted)));
    assert!(node.generation(&format!("small {}", count - 1)).is_some());
    assert!(node.store.counters().evictions.get() <= 33, "about as many as it has units");
}

#[test]
fn room_is_made_for_all_puts_that_were_refused_and_not_for_one_after_the_other() {
    // With a log that needs no checkpoint meanwhile.
    let options = FormatOptions { ring_bytes: Some(1 << 20), ..tiny_ring() };
    let machine = Machine::new(1, 5 * MIB, options, watermarks(0.999, 0.998));
    let mut node = machine.start();
    let count = fill(&mut node, 0.98);
    let length = 4 * u64::from(EXTENT);
    let (free, _) = units(&node.store);
    assert!(free < length / u64::from(UNIT), "{free} units are not enough for one of them");
    let names = ["one", "two", "three"];
    let (store, requests) = (node.store.clone(), names.map(|name| put(&node.store, name, length)));
    let refused = node.run(async move {
        let mut refused = 0;
        for request in requests {
            let outcome = store.reserve(request).await;
            refused += u64::from(matches!(outcome, Err(Refusal::Busy { .. })));
        }
        refused
    });
    assert_eq!(refused, 3);
    node.settle();
    for name in names {
        node.put_as(put(&node.store.clone(), name, length)).expect("there is room for each");
    }
    let evicted = node.store.counters().evictions.get();
    let units = 3 * length / u64::from(UNIT);
    assert!(evicted <= units && count as u64 > evicted, "{evicted} for {units} units");
    assert_eq!(node.store.counters().busy.get(), 3);
}

#[test]
fn a_put_larger_than_the_store_is_refused_at_once_and_evicts_nothing() {
    let config = StoreConfig { extent_bytes: 16 * EXTENT, ..watermarks(0.95, 0.9) };
    let (_machine, mut node) = one_drive(config);
    let count = fill(&mut node, 0.5);
    assert_eq!(put_again(&mut node, "huge", 16 * 16 * u64::from(EXTENT)), Err(Refusal::Full));
    node.settle();
    assert!((0..count).all(|n| node.generation(&format!("small {n}")).is_some()));
    let too_large = put(&node.store, "huge", 16 * 16 * u64::from(EXTENT) + 1);
    assert!(matches!(node.put_as(too_large), Err(Refusal::TooLarge { .. })));
    let nothing = put(&node.store, "nothing", 0);
    assert!(matches!(node.put_as(nothing), Err(Refusal::TooLarge { .. })));
}

#[test]
fn without_eviction_a_full_store_says_so_and_keeps_everything() {
    let (_machine, mut node) = one_drive(without_eviction());
    let count = fill(&mut node, 1.0);
    assert_eq!(put_again(&mut node, "one more", 1), Err(Refusal::Full));
    assert!((0..count).all(|n| node.generation(&format!("small {n}")).is_some()));
    node.delete("small 3");
    assert!(put_again(&mut node, "one more", 1).is_ok());
    assert_eq!(node.store.counters().full.get(), 1);
    assert_eq!(node.store.counters().evictions.get(), 0);
}

/// A drive formatted to remember 40 blocks, with units for many more.
fn forgetful(config: StoreConfig) -> (Machine, Node) {
    let options = FormatOptions { block_limit: Some(40), ..tiny_ring() };
    let machine = Machine::new(1, 4 * MIB, options, config);
    let node = machine.start();
    (machine, node)
}

#[test]
fn a_drive_that_remembers_all_the_blocks_it_may_evicts_like_one_that_is_full() {
    let (machine, mut node) = forgetful(watermarks(0.95, 0.9));
    for n in 0..200 {
        put_again(&mut node, &format!("small {n}"), 10).expect("eviction makes room");
    }
    let (free, total) = units(&node.store);
    assert!(free > total / 2, "units were never short");
    assert!(node.store.counters().evictions.get() >= 160);
    let blocks = node.store.counters().blocks.get();
    assert!((20..=40).contains(&blocks), "{blocks}: it does not forget more than it must");
    assert!(node.generation("small 199").is_some());
    let node = machine.restart(node);
    assert_eq!(node.store.counters().blocks.get(), blocks);
}

#[test]
fn without_eviction_a_drive_that_remembers_all_the_blocks_it_may_is_full() {
    let (_machine, mut node) = forgetful(without_eviction());
    let mut stored = 0;
    let refused = loop {
        match put_again(&mut node, &format!("small {stored}"), 10) {
            Ok(_) => stored += 1,
            Err(refusal) => break refusal,
        }
    };
    assert_eq!(refused, Refusal::Full);
    assert!((30..=40).contains(&stored), "{stored}");
    for n in 0..10 {
        node.delete(&format!("small {n}"));
    }
    assert!(put_again(&mut node, "small again", 10).is_ok());
}

#[test]
fn eviction_starts_above_the_high_watermark_and_stops_below_the_low_one() {
    let (_machine, mut node) = one_drive(watermarks(0.8, 0.3));
    fill(&mut node, 0.81);
    node.settle();
    let (free, total) = units(&node.store);
    let used = 1.0 - free as f64 / total as f64;
    assert!((0.25..=0.32).contains(&used), "{used}");
}

#[test]
fn a_store_that_starts_above_the_high_watermark_evicts_before_anybody_asks() {
    let mut machine = Machine::new(1, 4 * MIB, tiny_ring(), without_eviction());
    let mut node = machine.start();
    fill(&mut node, 0.9);
    machine.kill(node);
    machine.config = watermarks(0.8, 0.5);
    let mut node = machine.start();
    node.settle();
    let (free, total) = units(&node.store);
    assert!(free as f64 >= total as f64 * 0.49, "{free} of {total}");
}

#[test]
fn what_waits_for_its_readers_drives_nobody_else_out() {
    let (_machine, mut node) = one_drive(watermarks(0.8, 0.5));
    let (_, total) = units(&node.store);
    // The oldest blocks, more than has to go, are being read.
    let count = (total as f64 * 0.79) as usize;
    for n in 0..count {
        put_again(&mut node, &format!("small {n}"), 10).expect("there is room");
    }
    let store = node.store.clone();
    let read: Vec<_> = (0..count / 2)
        .map(|n| store.lease(node.hash(&format!("small {n}"))).expect("it is there"))
        .collect();
    // Reading made them the newest: the others go first, and nothing goes twice.
    for n in 0..count / 2 {
        assert!(node.store.exists(&[node.hash(&format!("small {n}"))])[0].is_ok());
    }
    for n in count / 2..count {
        let again = node.store.lease(node.hash(&format!("small {n}"))).expect("it is there");
        node.store.unpin(again.slot);
    }
    let (free, _) = units(&node.store);
    for n in 0..5 {
        put_again(&mut node, &format!("more {n}"), 10).expect("there is room");
    }
    node.settle();
    let evicted = node.store.counters().evictions.get();
    let needed = (total as f64 * 0.35) as u64;
    assert!(evicted > 0 && evicted <= needed, "{evicted} evicted, {needed} would do");
    assert_eq!(units(&node.store).0, free - 5, "no unit of a block that is being read is free");
    for lease in read {
        store.unpin(lease.slot);
    }
    node.settle();
    assert_eq!(units(&node.store).0, free - 5 + evicted);
}

#[test]
fn what_is_lent_stays_and_nobody_counts_on_its_space() {
    let (_machine, mut node) = one_drive(watermarks(0.8, 0.5));
    let (_, total) = units(&node.store);
    let store = node.store.clone();
    // A tenth of the space is lent for as long as somebody likes, half of it already deleted.
    let lent: Vec<_> = (0..total as usize / 10)
        .map(|n| {
            let name = format!("lent {n}");
            put_again(&mut node, &name, 10).expect("there is room");
            match n % 2 {
                0 => store.lease_to_lend(node.hash(&name)).expect("it is there"),
                _ => {
                    let lease = store.lease_at_once(node.hash(&name), true, |_| Some(()));
                    lease.expect("it is there, and in one piece").0
                }
            }
        })
        .collect();
    for n in 0..lent.len() / 2 {
        node.delete(&format!("lent {n}"));
    }
    // Far more than there is space for, one after the other: each finds its place.
    for n in 0..2 * total {
        put_again(&mut node, &format!("small {n}"), 10).expect("others make room");
    }
    node.settle();
    for n in lent.len() / 2..lent.len() {
        assert!(node.existing(&format!("lent {n}")).is_ok(), "others went");
    }
    for lease in lent {
        store.unpin_lent(lease.slot);
    }
    node.settle();
    assert_eq!(node.store.under_way().leaving, 0);
    assert_eq!(node.store.under_way().readers, 0);
}

#[test]
fn leases_keep_blocks_from_eviction_until_they_end_or_expire() {
    let (_machine, mut node) = one_drive(watermarks(0.5, 0.1));
    for n in 0..4 {
        node.put(&format!("held {n}"), 10);
    }
    let hash = |node: &Node, n: usize| node.hash(&format!("held {n}"));
    let long = Duration::from_secs(60);
    for n in 0..3 {
        let (store, hash) = (node.store.clone(), hash(&node, n));
        store.hold(hash, 7, long).expect("it is there");
    }
    node.store.hold(hash(&node, 3), 7, Duration::ZERO).expect("it is there");
    node.store.unhold(hash(&node, 2), 7);
    node.store.hold(hash(&node, 1), 8, long).expect("it is there");
    node.store.unhold(hash(&node, 1), 7);
    fill_again(&mut node);
    node.settle();
    let there = |node: &Node, n: usize| node.generation(&format!("held {n}")).is_some();
    assert!(there(&node, 0), "held");
    assert!(there(&node, 1), "held by another");
    assert!(!there(&node, 2), "let go");
    assert!(!there(&node, 3), "run out");
    // A held block may be replaced and deleted all the same.
    assert!(put_again(&mut node, "held 0", 20).is_ok());
    node.delete("held 1");
    assert_eq!(node.existing("held 1"), Err(Miss(MissReason::Deleted)));
}

/// Blocks until the high watermark was passed.
fn fill_again(node: &mut Node) {
    let (_, total) = units(&node.store);
    for n in 0..(total as f64 * 0.6) as usize {
        put_again(node, &format!("small {n}"), 10).expect("there is room");
    }
}

#[test]
fn what_expired_is_a_miss_and_its_space_comes_back() {
    let (machine, mut node) = one_drive(without_eviction());
    let (free, _) = units(&node.store);
    let request = put(&node.store, "short", 10);
    node.put_as(ReserveRequest { ttl_seconds: 60, ..request }).expect("there is room");
    machine.turn_calendar(59);
    assert!(node.generation("short").is_some());
    let mut node = machine.restart(node);
    assert!(node.generation("short").is_some(), "its time goes on where it was");
    machine.turn_calendar(1);
    assert_eq!(node.existing("short"), Err(Miss(MissReason::Expired)));
    node.settle();
    assert_eq!(units(&node.store).0, free);
    assert_eq!(node.existing("short"), Err(Miss(MissReason::Expired)), "the reason is kept");
    let mut node = machine.restart(node);
    assert_eq!(node.generation("short"), None);
    assert!(node.put("short", 10) > 0);
}

#[test]
fn a_delete_of_another_generation_takes_what_cannot_be_read_away() {
    let (machine, mut node) = one_drive(without_eviction());
    let (free, _) = units(&node.store);
    let request = put(&node.store, "short", 10);
    let generation =
        node.put_as(ReserveRequest { ttl_seconds: 60, ..request }).expect("there is room");
    let other = node.delete_generation("short", generation + 7);
    assert_eq!(other, Deleted::OtherGeneration { generation });
    machine.turn_calendar(60);
    let missing = node.delete_generation("short", generation + 7);
    assert_eq!(missing, Deleted::Missing(MissReason::Expired));
    // Missing for good: nothing is left that could be found readable again.
    assert_eq!((node.store.under_way().units, units(&node.store).0), (0, free));
}

#[test]
fn a_calendar_that_is_turned_back_brings_nothing_back() {
    let (machine, mut node) = one_drive(without_eviction());
    let request = put(&node.store, "short", 10);
    node.put_as(ReserveRequest { ttl_seconds: 60, ..request }).expect("there is room");
    machine.turn_calendar(100);
    assert_eq!(node.existing("short"), Err(Miss(MissReason::Expired)));
    node.settle();
    machine.turn_calendar(0u64.wrapping_sub(100));
    let request = put(&node.store, "second", 10);
    node.put_as(ReserveRequest { ttl_seconds: 60, ..request }).expect("there is room");
    machine.turn_calendar(159);
    assert!(node.generation("second").is_some());
    machine.turn_calendar(1);
    assert_eq!(node.existing("second"), Err(Miss(MissReason::Expired)), "60 s after the latest");
}

/// Puts small blocks until so many of those that were there before are evicted; says which of the
/// named are still there.
fn press(node: &mut Node, round: &str, blocks: usize, names: &[String]) -> Vec<bool> {
    for n in 0..blocks {
        put_again(node, &format!("{round} {n}"), 10).expect("eviction makes room");
    }
    node.settle();
    names.iter().map(|name| node.generation(name).is_some()).collect()
}

fn advise(node: &mut Node, names: &[String], advice: Advice) -> usize {
    let keys: Vec<_> = names.iter().map(|name| node.hash(name)).collect();
    let there = node.store.advise(&keys, advice);
    there.into_iter().filter(Result::is_ok).count()
}

fn hasty_eviction() -> StoreConfig {
    let retain = Duration::from_secs(600);
    let pin_max = Duration::from_secs(100);
    let eviction = EvictionConfig { high: 0.95, low: 0.9, retain, pin_max };
    StoreConfig { eviction: Some(eviction), ..watermarks(0.95, 0.9) }
}

#[test]
fn what_is_released_goes_first_and_what_is_retained_last() {
    let (machine, mut node) = one_drive(hasty_eviction());
    let count = fill(&mut node, 0.9);
    let name = |n: usize| format!("small {n}");
    let oldest: Vec<String> = (0..10).map(name).collect();
    let newest: Vec<String> = (count - 10..count).map(name).collect();
    assert_eq!(advise(&mut node, &oldest, Advice::Retain), 10);
    let strangers = [newest.clone(), vec!["never there".to_owned(), newest[0].clone()]].concat();
    assert_eq!(advise(&mut node, &strangers, Advice::Release), 11, "unknown keys are no error");
    let left = press(&mut node, "more", count / 10, &newest);
    assert!(left.iter().all(|there| !there), "{left:?}");
    let left = press(&mut node, "others", 3 * count, &oldest);
    assert!(left.iter().all(|there| *there), "{left:?}");
    // A hint is for a bounded time, and until somebody says otherwise.
    machine.pass(Duration::from_secs(602));
    let left = press(&mut node, "late", 3 * count, &oldest);
    assert!(left.iter().all(|there| !there), "{left:?}");
}

#[test]
fn pins_end_and_never_make_a_put_fail() {
    let (machine, mut node) = one_drive(hasty_eviction());
    let count = fill(&mut node, 0.9);
    let all: Vec<String> = (0..count).map(|n| format!("small {n}")).collect();
    assert_eq!(advise(&mut node, &all, Advice::Pin(Duration::from_secs(1 << 40))), count);
    for n in 0..count {
        let pinned = ReserveRequest {
            pin: Duration::from_secs(50),
            ..put(&node.store, &format!("pinned {n}"), 10)
        };
        let mut outcome = node.put_as(pinned.clone());
        for _ in 0..200 {
            if !matches!(outcome, Err(Refusal::Busy { .. })) {
                break;
            }
            node.settle();
            outcome = node.put_as(pinned.clone());
        }
        outcome.expect("what is pinned goes when nothing else is left");
    }
    // Those whose time is over soonest went, and made room for nobody but themselves.
    let there = |node: &Node, names: &[String]| {
        names.iter().filter(|name| node.generation(name).is_some()).count()
    };
    assert!(there(&node, &all) >= count * 9 / 10, "kept for 100 seconds: the most there is");
    let last = vec![format!("pinned {}", count - 1)];
    machine.pass(Duration::from_secs(52));
    node.existing(&last[0]).expect("put just now");
    let left = press(&mut node, "more", count / 4, &last);
    assert_eq!(left, [false], "nor does asking for it extend its time");
    machine.pass(Duration::from_secs(50));
    press(&mut node, "others", 2 * count, &last);
    assert_eq!(there(&node, &all), 0, "no pin is longer than the longest");
}

#[test]
fn a_present_block_is_pinned_by_its_put_and_a_release_ends_that() {
    let (_machine, mut node) = one_drive(hasty_eviction());
    let count = fill(&mut node, 0.9);
    let name = "small 0".to_owned();
    let pin = |node: &mut Node| {
        let pin = Duration::from_secs(90);
        let length = node.existing("small 0").expect("there").length;
        let mode = memkv_store::Mode::Absent;
        let request = put(&node.store, "small 0", length);
        let put = node.put_as(ReserveRequest { pin, mode, ..request });
        assert!(matches!(put, Err(Refusal::Present(_))));
    };
    pin(&mut node);
    let names = [name.clone()];
    assert_eq!(press(&mut node, "more", 2 * count, &names), [true]);
    assert_eq!(advise(&mut node, &names, Advice::Release), 1);
    assert_eq!(press(&mut node, "others", count / 4, &names), [false]);
}

/// More blocks are held than the evictor looks at in one turn, and more may go than it takes in one.
#[test]
fn the_evictor_lets_others_have_their_turn() {
    const HELD: usize = 1000;
    let options = FormatOptions { block_limit: Some(4000), ..FormatOptions::default() };
    let machine = Machine::new(1, 64 * MIB, options, watermarks(0.9, 0.6));
    let mut node = machine.start();
    let evictions = |node: &Node| node.store.counters().evictions.get();
    for n in 0..HELD {
        let name = format!("held {n}");
        node.put(&name, 10);
        node.store.hold(node.hash(&name), 7, Duration::from_secs(600)).expect("it is there");
    }
    let (_, total) = units(&node.store);
    let more = (total as f64 * 0.91) as usize - HELD;
    for n in 0..more {
        put_again(&mut node, &format!("small {n}"), 10).expect("there is room");
    }
    let begun = evictions(&node);
    let mut before = begun;
    while node.reactor.step().is_busy() {
        let now = evictions(&node);
        assert!(now - before <= 32, "{} evicted in a turn", now - before);
        before = now;
    }
    assert!(before - begun >= 300, "{begun} of {before} while nobody looked");
    let (free, total) = units(&node.store);
    assert!(free as f64 >= total as f64 * 0.39, "{free} of {total}");
    let there = |n: &usize| node.generation(&format!("held {n}")).is_some();
    assert_eq!((0..HELD).filter(there).count(), HELD);
}
