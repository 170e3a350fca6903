//! Listing what is stored, piece by piece, while the store goes on.

mod common;

use std::collections::BTreeSet;

use common::{Machine, Node, config, put, tiny_ring};
use memkv_poller::Rng;
use memkv_store::{ListFilter, Listed};

fn list(
    node: &mut Node,
    from: u64,
    looks: usize,
    most: usize,
    filter: &ListFilter,
) -> (Vec<Listed>, Option<u64>) {
    let (store, filter) = (node.store.clone(), filter.clone());
    node.run(async move { store.list(from, looks, most, &filter).await })
}

/// All names that a walk in pieces lists.
fn walk(node: &mut Node, looks: usize, most: usize, filter: &ListFilter) -> Vec<String> {
    let (mut names, mut from) = (Vec::new(), Some(0));
    while let Some(at) = from {
        let (listed, next) = list(node, at, looks, most, filter);
        assert!(listed.len() <= most.min(looks), "a piece is bounded");
        assert!(next.is_none_or(|next| next > at), "every piece gets on");
        names.extend(listed.iter().map(|l| String::from_utf8_lossy(l.key.key()).into_owned()));
        from = next;
    }
    names.sort();
    names
}

#[test]
fn a_walk_in_pieces_lists_every_block_once() {
    let machine = Machine::new(2, 4 << 20, tiny_ring(), config());
    let mut node = machine.start();
    assert_eq!(walk(&mut node, 10, 10, &ListFilter::default()), <[&str; 0]>::default());
    for number in 0..25 {
        node.put(&format!("k{number:02}"), 1000 + number);
    }
    let gone = ["k03", "k24"];
    for name in gone {
        node.delete(name);
    }
    node.put("k05", 7);
    let expected: Vec<String> =
        (0..25).map(|n| format!("k{n:02}")).filter(|name| !gone.contains(&name.as_str())).collect();
    for (looks, most) in [(1, 1), (3, 2), (7, 100), (1000, 4), (1000, 1000)] {
        assert_eq!(
            walk(&mut node, looks, most, &ListFilter::default()),
            expected,
            "{looks} {most}"
        );
    }
    let (all, _) = list(&mut node, 0, 1000, 1000, &ListFilter::default());
    let replaced = all.iter().find(|listed| listed.key.key() == b"k05").expect("it is there");
    assert_eq!((replaced.length, replaced.extents), (7, 1));
    assert_eq!(Some(replaced.generation), node.generation("k05"));
    assert_eq!(list(&mut node, u64::MAX, 10, 10, &ListFilter::default()).1, None);
    let filter = |tenant: Option<&str>, namespace: Option<&str>| ListFilter {
        tenant: tenant.map(str::to_owned),
        namespace: namespace.map(str::to_owned),
    };
    assert_eq!(walk(&mut node, 9, 9, &filter(Some("tenant"), Some("space"))).len(), 23);
    assert_eq!(walk(&mut node, 9, 9, &filter(Some("tenant"), Some("spac"))).len(), 0);
    assert_eq!(walk(&mut node, 9, 9, &filter(Some("other"), None)).len(), 0);
}

#[test]
fn what_stays_is_listed_whatever_comes_and_goes_meanwhile() {
    let machine = Machine::new(1, 4 << 20, tiny_ring(), config());
    let mut node = machine.start();
    for number in 0..20 {
        node.put(&format!("stays{number:02}"), 1000);
        node.put(&format!("goes{number:02}"), 1000);
    }
    let (mut seen, mut from, mut round) = (BTreeSet::new(), Some(0), 0);
    while let Some(at) = from {
        let (listed, next) = list(&mut node, at, 5, 5, &ListFilter::default());
        seen.extend(listed.iter().map(|l| String::from_utf8_lossy(l.key.key()).into_owned()));
        if round < 20 {
            node.delete(&format!("goes{round:02}"));
            node.put(&format!("comes{round:02}"), 1000);
        }
        (from, round) = (next, round + 1);
    }
    for number in 0..20 {
        assert!(seen.contains(&format!("stays{number:02}")), "{seen:?}");
    }
}

#[test]
fn what_is_expired_is_not_listed() {
    let machine = Machine::new(1, 4 << 20, tiny_ring(), config());
    let mut node = machine.start();
    let request = put(&node.store, "short", 100);
    node.put_as(memkv_store::ReserveRequest { ttl_seconds: 60, ..request }).expect("room");
    node.put("long", 100);
    assert_eq!(walk(&mut node, 9, 9, &ListFilter::default()), ["long", "short"]);
    machine.turn_calendar(61);
    assert_eq!(walk(&mut node, 9, 9, &ListFilter::default()), ["long"]);
}

#[test]
fn what_stays_is_never_missed_however_many_checkpoints_complete_between_two_pieces() {
    let machine = Machine::new(2, 8 << 20, tiny_ring(), config());
    for (seed, looks) in [(1, 3), (2, 10), (3, 40), (4, 100)] {
        let (mut node, mut rng) = (machine.start(), Rng::seeded(seed));
        for number in 0..150 {
            node.put(&format!("stays{number:03}"), 1000);
            if number % 3 == 0 {
                node.put(&format!("goes{number:03}"), 1000);
            }
        }
        let (mut seen, mut again, mut from) = (BTreeSet::new(), 0, Some(0));
        let mut pieces = 0;
        while let Some(at) = from {
            let (listed, next) = list(&mut node, at, looks, 1000, &ListFilter::default());
            assert!(listed.len() <= looks);
            for one in listed {
                let name = String::from_utf8_lossy(one.key.key()).into_owned();
                assert_eq!(node.generation(&name), Some(one.generation));
                again += u32::from(!seen.insert(name));
            }
            pieces += 1;
            assert!(pieces < 2000, "a walk gets to its end");
            from = next;
            if rng.below(3) == 0 {
                let number = rng.below(150);
                node.delete(&format!("goes{number:03}"));
                node.put(&format!("comes{number:03}"), 1000);
            }
            if pieces < 12 {
                (0..rng.below(4)).for_each(|_| checkpoint_all(&mut node));
            }
            if rng.below(25) == 0 {
                node = machine.restart(node);
            }
        }
        let missed = (0..150).filter(|n| !seen.contains(&format!("stays{n:03}"))).count();
        assert_eq!(missed, 0, "looks {looks}, {pieces} pieces, {again} listed again");
        machine.kill(node);
    }
}

fn checkpoint_all(node: &mut Node) {
    for drive in node.store.drives() {
        let store = node.store.clone();
        node.run(async move { store.checkpoint_unless(drive.id, drive.journal.checkpoints).await });
    }
}
