//! Servers that fall silent or go away, and futures that nobody waits for.

mod common;

use std::sync::Arc;
use std::time::Instant;

use common::{Door, LIMIT, Order, PATIENCE, chain, layout, node, tier_by_tcp, wait_until};
use futures::FutureExt;
use kvbm_engine::object::{ObjectBlockOps, ObjectLockManager};
use kvbm_physical::testing::TransferChecksums;
use kvbm_physical::transfer::FillPattern;

/// 4 MiB, more than any socket between here and the node holds.
const REGION: usize = 512 << 10;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_lives_until_the_last_byte_was_written_into_it() {
    let node = node();
    let door = Door::to(node.address());
    let tier = tier_by_tcp(door.address);
    let (keys, source) = (chain(1, 1), layout(Order::Layers, 1, REGION));
    let put = tier.blocks(None).put_blocks_with_layout(keys.clone(), source, vec![0]).await;
    assert_eq!(put, [Ok(keys[0])]);

    // The value stops in its middle, and nobody waits for it any more.
    let target = layout(Order::Layers, 1, REGION);
    let memory = Arc::downgrade(target.layout());
    door.hold_after(1 << 20);
    let mut get = tier.blocks(None).get_blocks_with_layout(keys.clone(), target, vec![0]);
    assert!((&mut get).now_or_never().is_none(), "it was polled, and is not done");
    wait_until("the value is on its way", || door.is_held());
    drop(get);
    assert!(memory.strong_count() > 0, "the memory was freed under its writer");
    door.release();
    wait_until("the writer is done", || memory.strong_count() == 0);

    // One that was never polled has not even begun.
    let target = layout(Order::Layers, 1, REGION);
    let memory = Arc::downgrade(target.layout());
    drop(tier.blocks(None).get_blocks_with_layout(keys, target, vec![0]));
    assert_eq!(memory.strong_count(), 0);
    node.stop().expect("it stops");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_falls_silent_costs_one_deadline() {
    let node = node();
    let door = Door::to(node.address());
    let tier = tier_by_tcp(door.address);
    let (keys, host) = (chain(1, 4), layout(Order::Layers, 4, REGION));
    let ids = vec![0, 1, 2, 3];
    let put = tier.blocks(None).put_blocks_with_layout(keys.clone(), host.clone(), ids.clone());
    assert!(put.await.iter().all(Result::is_ok));

    door.hold_after(1 << 20);
    let began = Instant::now();
    let got = tier.blocks(None).get_blocks_with_layout(keys.clone(), host.clone(), ids.clone());
    let got = got.await;
    assert!(got.iter().any(Result::is_err), "{got:?}");
    assert!(began.elapsed() < 4 * PATIENCE, "{:?}", began.elapsed());
    door.release();
    serves_again(&tier, &keys, &host).await;
    node.stop().expect("it stops");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_is_misses_and_errors_until_there_is_another() {
    let node = node();
    let door = Door::to(node.address());
    let tier = tier_by_tcp(door.address);
    let locks = tier.locks("owner");
    let (keys, host) = (chain(1, 4), layout(Order::Contiguous, 4, REGION));
    let ids = vec![0, 1, 2, 3];
    let blocks = tier.blocks(Some(0));
    let put = blocks.put_blocks_with_layout(keys.clone(), host.clone(), ids.clone()).await;
    assert!(put.iter().all(Result::is_ok), "{put:?}");

    // Killed while it sends.
    door.hold_after(1 << 20);
    let get = tokio::spawn(blocks.get_blocks_with_layout(keys.clone(), host.clone(), ids.clone()));
    wait_until("values are on their way", || door.is_held());
    door.shut();
    node.stop().expect("it stops");
    let got = tokio::time::timeout(LIMIT, get).await.expect("in time").expect("no panic");
    assert!(got.iter().any(Result::is_err), "{got:?}");

    let began = Instant::now();
    let has = blocks.has_blocks(keys.clone()).await;
    assert!(has.iter().all(|(_, length)| length.is_none()), "{has:?}");
    let put = blocks.put_blocks_with_layout(keys.clone(), host.clone(), ids.clone()).await;
    assert!(put.iter().all(Result::is_err), "{put:?}");
    let got = blocks.get_blocks_with_layout(keys.clone(), host.clone(), ids.clone()).await;
    assert!(got.iter().all(Result::is_err), "{got:?}");
    assert!(locks.try_acquire_lock(keys[0]).await.is_err());
    assert!(locks.has_meta(keys[0]).await.is_err());
    assert!(began.elapsed() < 6 * PATIENCE, "{:?}", began.elapsed());

    // Another one, which has nothing.
    let node = common::node();
    door.open_to(node.address());
    serves_again(&tier, &keys, &host).await;
    assert!(locks.try_acquire_lock(keys[0]).await.expect("an answer"));
    node.stop().expect("it stops");
}

/// Stores the blocks until that works, and gets them back.
async fn serves_again(
    tier: &memkv_kvbm::Tier,
    keys: &[kvbm_common::SequenceHash],
    host: &kvbm_physical::layout::PhysicalLayout,
) {
    let began = Instant::now();
    let ids: Vec<usize> = (0..keys.len()).collect();
    let sums = TransferChecksums::fill_and_capture(host, &ids, FillPattern::Sequential)
        .expect("host memory");
    let blocks = tier.blocks(Some(0));
    loop {
        let put = blocks.put_blocks_with_layout(keys.to_vec(), host.clone(), ids.clone()).await;
        if put.iter().all(Result::is_ok) {
            break;
        }
        assert!(began.elapsed() < LIMIT, "it never serves again: {put:?}");
    }
    let back = layout(Order::Layers, keys.len(), REGION);
    let got = blocks.get_blocks_with_layout(keys.to_vec(), back.clone(), ids.clone()).await;
    assert!(got.iter().all(Result::is_ok), "{got:?}");
    sums.verify_against(&back, &ids).expect("the same bytes");
}
