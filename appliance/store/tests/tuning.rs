//! Settings that change while the store runs.

mod common;

use std::time::Duration;

use common::{Machine, Node, put, tiny_ring, watermarks, without_eviction};
use memkv_store::{Miss, MissReason, Policy, Refusal, Tuning};

const MIB: usize = 1 << 20;

fn share_in_use(node: &Node) -> f64 {
    let drives = node.store.drives();
    let total: u64 = drives.iter().map(|d| d.units_total).sum();
    let free: u64 = drives.iter().map(|d| d.units_free).sum();
    (total - free) as f64 / total as f64
}

/// Puts blocks of one unit until the store is full, or would evict; how many.
fn fill(node: &mut Node) -> usize {
    let mut count = 0;
    while node.put_as(put(&node.store.clone(), &format!("small {count}"), 10)).is_ok() {
        count += 1;
    }
    count
}

#[test]
fn eviction_begins_rests_and_ends_as_it_is_told() {
    let machine = Machine::new(1, 4 * MIB, tiny_ring(), without_eviction());
    let mut node = machine.start();
    let count = fill(&mut node);
    let one_more = put(&node.store, "one more", 10);
    assert_eq!(node.put_as(one_more.clone()), Err(Refusal::Full));
    let before = Tuning::of(node.store.config());

    // Nobody asks for anything, and yet it goes down to the low mark.
    let eviction = watermarks(0.8, 0.7).eviction;
    node.store.tune(Tuning { eviction, ..before });
    node.settle();
    let used = share_in_use(&node);
    assert!((0.6..=0.7).contains(&used), "{used} in use");
    assert_eq!(node.existing("small 0"), Err(Miss(MissReason::Evicted)));
    assert!(node.generation(&format!("small {}", count - 1)).is_some());

    node.store.tune(Tuning { eviction: watermarks(0.5, 0.4).eviction, ..before });
    node.settle();
    assert!(share_in_use(&node) <= 0.4);

    node.store.tune(before);
    let evicted = node.store.counters().evictions.get();
    (0..count).for_each(|n| {
        let _ = node.put_as(put(&node.store.clone(), &format!("again {n}"), 10));
    });
    assert_eq!(node.put_as(one_more), Err(Refusal::Full));
    assert_eq!(node.store.counters().evictions.get(), evicted, "not one more");
    assert_eq!(share_in_use(&node), 1.0);
}

#[test]
fn leases_last_as_long_as_the_setting_of_the_moment() {
    let machine = Machine::new(1, 4 * MIB, tiny_ring(), without_eviction());
    let mut node = machine.start();
    let count = fill(&mut node);
    let tuning = Tuning::of(node.store.config());
    let eviction = watermarks(0.5, 0.01).eviction;
    node.store.tune(Tuning { lease_max: Duration::from_secs(60), ..tuning });
    let (held, hour) = (node.hash("small 0"), Duration::from_secs(3600));
    node.store.hold(held, 1, hour).expect("it is there");
    node.store.tune(Tuning { eviction, lease_max: hour, ..tuning });
    node.settle();
    assert!(node.generation("small 0").is_some(), "it is leased");
    assert_eq!(node.generation(&format!("small {}", count / 2)), None);
}

#[test]
fn a_policy_takes_over_the_blocks_while_others_come() {
    let machine = Machine::new(1, 16 * MIB, tiny_ring(), watermarks(0.95, 0.9));
    let mut node = machine.start();
    assert_eq!(node.store.policy(), ("lru", false));
    let count = 700;
    (0..count).for_each(|n| {
        node.put(&format!("small {n}"), 10);
        // The ring is small: checkpoints have their time.
        if n % 8 == 0 {
            node.settle();
        }
    });
    // The one that was put first was used last.
    let first = node.hash("small 0");
    node.store.unpin(node.store.lease(first).expect("it is there").slot);
    node.store.change_policy(Policy::Chain);
    node.store.change_policy(Policy::S3Fifo);
    assert_eq!(node.store.policy(), ("lru", true), "not in one go");
    node.put("new", 10);
    node.settle();
    assert_eq!(node.store.policy(), ("s3-fifo", false));
    assert!((0..count).all(|n| node.generation(&format!("small {n}")).is_some()));

    let total: u64 = node.store.drives().iter().map(|d| d.units_total).sum();
    let tuning = Tuning::of(node.store.config());
    let low = (count - 10) as f64 / total as f64;
    let eviction = watermarks(low + 0.001, low).eviction;
    node.store.tune(Tuning { eviction, ..tuning });
    node.settle();
    assert_eq!(node.existing("small 1"), Err(Miss(MissReason::Evicted)));
    assert!(node.generation("small 0").is_some(), "in the order of the policy before");
    assert!(node.generation("new").is_some() && node.generation("small 699").is_some());
}
