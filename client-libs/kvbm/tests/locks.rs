//! Locks: several owners, lost owners, and notes of what was offloaded.

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{LIMIT, Order, block_key, chain, client, identity, layout, node, tier};
use futures::future::join_all;
use kvbm_engine::object::{ObjectBlockOps, ObjectLockManager};
use memkv_kvbm::Tier;

#[tokio::test]
async fn one_of_many_owners_has_a_lock() {
    let node = node();
    // Each with connections of its own, as in as many processes.
    let owners: Vec<Arc<dyn ObjectLockManager>> = (0..8)
        .map(|at| {
            let tier = Tier::new(client(node.address()), identity());
            Arc::new(tier.locks(format!("owner-{at}"))) as _
        })
        .collect();
    for hash in chain(7, 20) {
        let tries = join_all(owners.iter().map(|owner| owner.try_acquire_lock(hash))).await;
        let won: Vec<usize> =
            (0..8).filter(|at| *tries[*at].as_ref().expect("a node that answers")).collect();
        let [winner] = won[..] else { panic!("{won:?} all have the lock") };
        let loser = (winner + 1) % 8;

        // It is the winner's until it gives it back, and nobody else can do that.
        owners[loser].release_lock(hash).await.expect("an answer");
        assert!(!owners[loser].try_acquire_lock(hash).await.expect("an answer"));
        assert!(owners[winner].try_acquire_lock(hash).await.expect("an answer"), "its own");
        owners[winner].release_lock(hash).await.expect("an answer");
        owners[winner].release_lock(hash).await.expect("nothing is left to give back");
        assert!(owners[loser].try_acquire_lock(hash).await.expect("an answer"));
        owners[winner].release_lock(hash).await.expect("an answer");
        assert!(!owners[winner].try_acquire_lock(hash).await.expect("an answer"), "not its own");
    }
    node.stop().expect("it stops");
}

#[tokio::test]
async fn the_lock_of_a_dead_owner_ends() {
    let node = node();
    let tier = tier(node.address());
    let hash = chain(1, 1)[0];
    let dead = tier.locks("dead").with_time(Duration::from_secs(2));
    let heir = tier.locks("heir");
    let began = Instant::now();
    assert!(dead.try_acquire_lock(hash).await.expect("an answer"));
    let mut refusals = 0;
    while !heir.try_acquire_lock(hash).await.expect("an answer") {
        refusals += 1;
        assert!(began.elapsed() < LIMIT, "the lock never ends");
    }
    assert!(refusals > 0 && began.elapsed() >= Duration::from_secs(1), "{:?}", began.elapsed());
    // Whoever comes back from the dead does not take it away again.
    dead.release_lock(hash).await.expect("an answer");
    assert!(!dead.try_acquire_lock(hash).await.expect("an answer"));
    assert!(heir.try_acquire_lock(hash).await.expect("an answer"));
    node.stop().expect("it stops");
}

#[tokio::test]
async fn a_note_counts_while_its_blocks_are_there() {
    let node = node();
    let tier = tier(node.address());
    let hash = chain(1, 1)[0];
    let (alone, of_two) = (tier.locks("a"), tier.locks("b").with_ranks(2));
    assert!(!alone.has_meta(hash).await.expect("an answer"));
    alone.create_meta(hash).await.expect("an answer");
    alone.create_meta(hash).await.expect("twice is once");
    assert!(alone.has_meta(hash).await.expect("an answer"));

    assert!(!of_two.has_meta(hash).await.expect("an answer"), "no rank has stored it");
    for rank in 0..2 {
        assert!(!of_two.has_meta(hash).await.expect("an answer"), "rank {rank} is missing");
        let host = layout(Order::Contiguous, 1, 4096);
        let put = tier.blocks(Some(rank)).put_blocks_with_layout(vec![hash], host, vec![0]).await;
        assert_eq!(put, [Ok(hash)]);
    }
    assert!(of_two.has_meta(hash).await.expect("an answer"));
    let key = block_key(tier.client(), "1", &hash);
    assert!(tier.client().delete(key.as_bytes(), None).expect("an answer"));
    assert!(!of_two.has_meta(hash).await.expect("an answer"), "a rank has lost it");
    node.stop().expect("it stops");
}
