//! Leases that are had at once, or not at all.

mod common;

use std::cell::Cell;

use common::{EXTENT, Machine, Node, put, tiny_ring, without_eviction};
use memkv_store::{LeaseGrant, ReserveRequest};

fn machine() -> Machine {
    Machine::new(1, 8 << 20, tiny_ring(), without_eviction())
}

/// Lookups that found something, and leases, and blocks that are being read.
fn counted(node: &Node) -> (u64, u64, u64, u64) {
    let counters = node.store.counters();
    let missed = counters.misses_never.get() + counters.misses_expired.get();
    (counters.hits.get(), missed, counters.leases.get(), node.store.under_way().readers)
}

fn lease(node: &Node, name: &str, lent: bool) -> Option<LeaseGrant> {
    let (grant, length) =
        node.store.lease_at_once(node.hash(name), lent, |extent| Some(extent.length))?;
    assert_eq!((u64::from(length), grant.lent), (grant.length, lent));
    Some(grant)
}

#[test]
fn a_lease_at_once_is_one_like_any_other() {
    let machine = machine();
    let mut node = machine.start();
    let generation = node.put("k", 10);
    let before = counted(&node);
    let grant = lease(&node, "k", false).expect("it is there");
    assert_eq!((grant.generation, grant.length, grant.extents.len()), (generation, 10, 1));
    assert_eq!(counted(&node), (before.0 + 1, before.1, before.2 + 1, 1));
    node.store.unpin(grant.slot);
    assert_eq!(counted(&node).3, 0);
}

#[test]
fn where_there_is_more_to_do_nothing_is_done() {
    let machine = machine();
    let mut node = machine.start();
    node.put("small", 10);
    node.put("large", u64::from(EXTENT) + 1);
    let expires = ReserveRequest { ttl_seconds: 5, ..put(&node.store, "expires", 10) };
    node.put_as(expires).expect("there is room");
    machine.turn_calendar(6);
    let before = counted(&node);
    let asked = Cell::new(0);
    let refuse = |_: &_| {
        asked.set(asked.get() + 1);
        None::<()>
    };
    for (name, times) in [("small", 1), ("large", 0), ("expires", 0), ("never", 0)] {
        asked.set(0);
        assert!(node.store.lease_at_once(node.hash(name), false, refuse).is_none());
        assert_eq!(asked.get(), times, "{name}");
    }
    assert_eq!(counted(&node), before);
    // Nobody has seen its bytes since the crash.
    let node = machine.restart(node);
    let before = counted(&node);
    assert!(lease(&node, "small", false).is_none());
    assert_eq!(counted(&node), before);
    let grant = node.store.lease(node.hash("small")).expect("it is there");
    node.store.mark_verified(grant.slot, grant.generation, 1);
    node.store.unpin(grant.slot);
    let grant = lease(&node, "small", false).expect("it was checked");
    node.store.unpin(grant.slot);
}
