//! Blocks out and back, between upstream's own layouts and a real node.

mod common;

use std::sync::Arc;

use common::{Order, block_key, chain, client, elsewhere, identity, layout, layout_of, node, tier};
use dynamo_memory::StorageKind;
use kvbm_common::{LogicalLayoutHandle, SequenceHash};
use kvbm_engine::object::ObjectBlockOps;
use kvbm_physical::testing::TransferChecksums;
use kvbm_physical::transfer::FillPattern;
use memkv_kvbm::Tier;

fn all_ok(results: &[Result<SequenceHash, SequenceHash>], keys: &[SequenceHash]) -> bool {
    results.len() == keys.len() && results.iter().zip(keys).all(|(result, key)| *result == Ok(*key))
}

fn reversed(count: usize) -> Vec<usize> {
    (0..count).rev().collect()
}

#[tokio::test]
async fn blocks_come_back_into_other_places_and_other_orders() {
    let node = node();
    let tier = tier(node.address());
    // Small ones share frames, large ones travel in pieces.
    for (seed, region, count) in [(1, 512, 8), (2, 64 << 10, 8), (3, 512 << 10, 5)] {
        // Blocks of a rank are equally long.
        let blocks: Arc<dyn ObjectBlockOps> = Arc::new(tier.blocks(Some(seed as usize)));
        for (from, to) in [(Order::Contiguous, Order::Layers), (Order::Layers, Order::Contiguous)] {
            let keys = chain(seed * 2 + u64::from(matches!(from, Order::Layers)), count as u64);
            let ids: Vec<usize> = (0..count).collect();
            let (source, target) = (layout(from, count, region), layout(to, count, region));
            let sums = TransferChecksums::fill_and_capture(&source, &ids, FillPattern::Sequential)
                .expect("host memory");

            let known = blocks.has_blocks(keys.clone()).await;
            assert!(known.iter().zip(&keys).all(|(has, key)| *has == (*key, None)), "{known:?}");
            let put = blocks.put_blocks_with_layout(keys.clone(), source, ids).await;
            assert!(all_ok(&put, &keys), "{put:?}");
            let known = blocks.has_blocks(keys.clone()).await;
            let length = Some(8 * region);
            assert!(known.iter().zip(&keys).all(|(has, key)| *has == (*key, length)), "{known:?}");

            let got =
                blocks.get_blocks_with_layout(keys.clone(), target.clone(), reversed(count)).await;
            assert!(all_ok(&got, &keys), "{got:?}");
            sums.verify_against(&target, &reversed(count)).expect("the same bytes");
        }
    }
    node.stop().expect("it stops");
}

#[tokio::test]
async fn a_value_is_its_regions_in_the_order_of_layers() {
    let node = node();
    let tier = tier(node.address());
    for (rank, order) in [(None, Order::Contiguous), (Some(0), Order::Layers)] {
        let (keys, source) = (chain(1, 3), layout(order, 3, 64));
        TransferChecksums::fill_and_capture(&source, &[0, 1, 2], FillPattern::Sequential)
            .expect("host memory");
        let put =
            tier.blocks(rank).put_blocks_with_layout(keys.clone(), source, vec![0, 1, 2]).await;
        assert!(all_ok(&put, &keys), "{put:?}");
        let rank = rank.map_or("-".to_owned(), |rank: usize| rank.to_string());
        for (block, key) in keys.iter().enumerate() {
            let name = block_key(tier.client(), &rank, key);
            let mut value = Vec::new();
            assert!(
                tier.client().get(name.as_bytes(), &mut value).expect("a node").is_hit(),
                "{name}"
            );
            // What upstream fills a region with is its block, its layer and the offset.
            let region = |layer| (0..64).map(move |offset| (block + layer + offset) as u8);
            let layers = (0..4).flat_map(|layer| region(layer).chain(region(layer)));
            assert_eq!(value, layers.collect::<Vec<_>>());
        }
    }
    node.stop().expect("it stops");
}

#[tokio::test]
async fn what_is_not_there_fails_alone() {
    let node = node();
    let blocks = tier(node.address()).blocks(None);
    let (keys, absent) = (chain(1, 2), chain(2, 2));
    let (source, target) = (layout(Order::Layers, 4, 4096), layout(Order::Contiguous, 4, 4096));
    let sums = TransferChecksums::fill_and_capture(&source, &[0, 1], FillPattern::Sequential)
        .expect("host memory");

    // A block that the layout has not, between two that it has.
    let offered = vec![keys[0], absent[0], keys[1]];
    let put = blocks.put_blocks_with_layout(offered, source.clone(), vec![0, 4, 1]).await;
    assert_eq!(put, [Ok(keys[0]), Err(absent[0]), Ok(keys[1])]);
    let wanted = vec![absent[0], keys[0], absent[1], keys[1]];
    let has = blocks.has_blocks(wanted.clone()).await;
    let length = Some(8 * 4096);
    assert_eq!(has, [(absent[0], None), (keys[0], length), (absent[1], None), (keys[1], length)]);
    let got = blocks.get_blocks_with_layout(wanted, target.clone(), vec![3, 2, 1, 0]).await;
    assert_eq!(got, [Err(absent[0]), Ok(keys[0]), Err(absent[1]), Ok(keys[1])]);
    sums.verify_against(&target, &[2, 0]).expect("the same bytes");

    // Twice the same place; fewer places than keys; no place at all.
    let got = blocks.get_blocks_with_layout(keys.clone(), target.clone(), vec![1, 1]).await;
    assert_eq!(got, [Ok(keys[0]), Err(keys[1])]);
    let got = blocks.get_blocks_with_layout(keys.clone(), target.clone(), vec![1]).await;
    assert_eq!(got, [Err(keys[0]), Err(keys[1])]);
    let got = blocks.get_blocks_with_layout(vec![], target, vec![]).await;
    assert_eq!(got, []);
    // The same block may be stored under two keys.
    let put = blocks.put_blocks_with_layout(absent.clone(), source, vec![0, 0]).await;
    assert!(all_ok(&put, &absent), "{put:?}");
    node.stop().expect("it stops");
}

#[tokio::test]
async fn logical_layouts_are_those_that_were_named() {
    let node = node();
    let blocks = tier(node.address()).blocks(None);
    let (keys, host) = (chain(1, 2), layout(Order::Layers, 4, 4096));
    let (g2, g3) = (LogicalLayoutHandle::G2, LogicalLayoutHandle::G3);
    let put = blocks.put_blocks(keys.clone(), g2, vec![0, 1]).await;
    assert_eq!(put, [Err(keys[0]), Err(keys[1])], "no memory is known for it");

    let blocks = blocks.with_layout(g2, host.clone());
    let sums = TransferChecksums::fill_and_capture(&host, &[0, 1], FillPattern::Sequential)
        .expect("host memory");
    let put = blocks.put_blocks(keys.clone(), g2, vec![0, 1]).await;
    assert!(all_ok(&put, &keys), "{put:?}");
    let got = blocks.get_blocks(keys.clone(), g2, vec![3, 2]).await;
    assert!(all_ok(&got, &keys), "{got:?}");
    sums.verify_against(&host, &[3, 2]).expect("the same bytes");
    let got = blocks.get_blocks(keys.clone(), g3, vec![3, 2]).await;
    assert_eq!(got, [Err(keys[0]), Err(keys[1])]);
    node.stop().expect("it stops");
}

#[tokio::test]
async fn ranks_models_and_layouts_do_not_read_each_others_blocks() {
    let node = node();
    let tier = tier(node.address());
    let (keys, place) = (chain(1, 1), vec![0]);
    let source = layout_of(Order::Layers, 1, 4, 4096);
    let put =
        tier.blocks(Some(0)).put_blocks_with_layout(keys.clone(), source.clone(), place.clone());
    assert!(all_ok(&put.await, &keys));

    // Another rank; another model, which the namespace is not bound to.
    assert_eq!(tier.blocks(Some(1)).has_blocks(keys.clone()).await, [(keys[0], None)]);
    let other = Tier::new(client(node.address()), identity().with("dtype", "fp8"));
    assert_eq!(other.blocks(Some(0)).has_blocks(keys.clone()).await, [(keys[0], None)]);
    let put =
        other.blocks(Some(0)).put_blocks_with_layout(keys.clone(), source.clone(), place.clone());
    assert_eq!(put.await, [Err(keys[0])]);

    // Another layout whose blocks are as long: 8 layers of half the size, in a process that knows of none yet.
    let same = Tier::new(client(node.address()), identity());
    let blocks = same.blocks(Some(0));
    assert_eq!(blocks.has_blocks(keys.clone()).await, [(keys[0], Some(8 * 4096))]);
    let halves = layout_of(Order::Layers, 1, 8, 2048);
    let got = blocks.get_blocks_with_layout(keys.clone(), halves, place.clone()).await;
    assert_eq!(got, [Err(keys[0])]);
    let got = blocks.get_blocks_with_layout(keys.clone(), source, place).await;
    assert!(all_ok(&got, &keys), "the right one is still served");
    node.stop().expect("it stops");
}

#[tokio::test]
async fn a_layout_whose_note_was_evicted_is_not_read_as_another() {
    let node = node();
    let (first, keys, place) = (tier(node.address()), chain(1, 1), vec![0]);
    let source = layout_of(Order::Layers, 1, 4, 4096);
    let fill = |pattern| TransferChecksums::fill_and_capture(&source, &[0], pattern);
    let sums = fill(FillPattern::Sequential).expect("host memory");
    let put =
        first.blocks(None).put_blocks_with_layout(keys.clone(), source.clone(), place.clone());
    assert!(all_ok(&put.await, &keys));
    let note = format!("{}/-/layout", identity().prefix());
    assert!(first.client().delete(note.as_bytes(), None).expect("a node"));

    // Blocks as long, in a process that knows of no other layout: nothing is there for it.
    let second = Tier::new(client(node.address()), identity());
    let (blocks, halves) = (second.blocks(None), layout_of(Order::Layers, 1, 8, 2048));
    assert_eq!(blocks.has_blocks(keys.clone()).await, [(keys[0], None)]);
    let got = blocks.get_blocks_with_layout(keys.clone(), halves.clone(), place.clone()).await;
    assert_eq!(got, [Err(keys[0])]);
    let put = blocks.put_blocks_with_layout(keys.clone(), halves.clone(), place.clone()).await;
    assert!(all_ok(&put, &keys), "{put:?}");
    assert_eq!(blocks.has_blocks(keys.clone()).await, [(keys[0], Some(8 * 4096))]);
    // Who was there before goes on with its own, which the other one has not replaced.
    fill(FillPattern::Constant(9)).expect("host memory");
    assert_eq!(first.blocks(None).has_blocks(keys.clone()).await, [(keys[0], Some(8 * 4096))]);
    let got = first.blocks(None).get_blocks_with_layout(keys.clone(), source.clone(), place).await;
    assert!(all_ok(&got, &keys), "{got:?}");
    sums.verify_against(&source, &[0]).expect("what was stored first");
    node.stop().expect("it stops");
}

#[tokio::test]
async fn memory_that_the_processor_cannot_read_is_refused() {
    let node = node();
    let blocks = tier(node.address()).blocks(None);
    let keys = chain(1, 2);
    for kind in [StorageKind::Device(0), StorageKind::Disk(0)] {
        // It says what it is, and has no memory at all: whoever touched it would crash.
        let elsewhere = elsewhere(kind);
        let put = blocks.put_blocks_with_layout(keys.clone(), elsewhere.clone(), vec![0, 1]).await;
        assert_eq!(put, [Err(keys[0]), Err(keys[1])]);
        let got = blocks.get_blocks_with_layout(keys.clone(), elsewhere, vec![0, 1]).await;
        assert_eq!(got, [Err(keys[0]), Err(keys[1])]);
    }
    assert_eq!(blocks.has_blocks(keys.clone()).await, [(keys[0], None), (keys[1], None)]);
    node.stop().expect("it stops");
}
