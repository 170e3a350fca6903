//! A store reduced to its eviction: the policies that it runs, without bytes, drives or time.

use std::collections::HashMap;

use memkv_store::{EvictionPolicy, KeyHash, Named, Slot};
use memkv_workload::block::BlockHash;
use memkv_workload::trace::Request;

/// Prefix hits of a replay.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Hits {
    /// Blocks that the requests named.
    pub references: u64,
    /// Those that were there with all blocks before them.
    pub prefix_hits: u64,
}

impl Hits {
    /// Prefix hits of all references.
    pub fn ratio(self) -> f64 {
        self.prefix_hits as f64 / self.references.max(1) as f64
    }
}

/// Blocks by their names, as the store's index has them.
struct Model {
    policy: Box<dyn EvictionPolicy>,
    index: HashMap<BlockHash, Slot>,
    names: Vec<BlockHash>,
    free: Vec<Slot>,
    room: Room,
}

/// How many blocks there is place for.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// Eviction begins above so many.
    pub high: usize,
    /// And rests at so many.
    pub low: usize,
}

impl Room {
    /// Exactly so many blocks: each that comes to a full store displaces one.
    pub fn exactly(blocks: usize) -> Room {
        Room { high: blocks, low: blocks }
    }
}

/// Victims taken together, as the store takes them.
const BATCH: usize = 64;

/// The key of a block: any hash will do.
fn key(block: BlockHash) -> KeyHash {
    let low = block.then(1).0;
    KeyHash(u128::from(block.then(2).0) << 64 | u128::from(low))
}

/// Replays requests, as [`memkv_workload::replay`] does, into a store with this much room.
pub fn replay(policy: Box<dyn EvictionPolicy>, requests: &[Request], room: Room) -> Hits {
    assert!(room.low > 0 && room.low <= room.high, "a store has place for a block");
    let mut model =
        Model { policy, index: HashMap::new(), names: vec![BlockHash(0)], free: Vec::new(), room };
    let mut hits = Hits::default();
    for request in requests {
        hits.references += request.blocks.len() as u64;
        hits.prefix_hits += model.serve(&request.blocks) as u64;
    }
    hits
}

impl Model {
    /// Match, get, put.
    fn serve(&mut self, blocks: &[BlockHash]) -> usize {
        let slot = |block: &BlockHash| self.index.get(block).copied();
        let chain: Vec<Named> =
            blocks.iter().map(|block| Named { key: key(*block), slot: slot(block) }).collect();
        let hits = chain.iter().take_while(|named| named.slot.is_some()).count();
        self.policy.named(&chain);
        for named in &chain[..hits] {
            self.policy.accessed(named.slot.expect("a hit"));
        }
        for block in &blocks[hits..] {
            // A put of a block that is there leaves it as it is.
            if !self.index.contains_key(block) {
                self.insert(*block);
            }
        }
        hits
    }

    fn insert(&mut self, block: BlockHash) {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.names.push(block);
            let number = u32::try_from(self.names.len() - 1).expect("few blocks");
            Slot::of(number).expect("slots count from one")
        });
        self.names[slot.number() as usize] = block;
        self.index.insert(block, slot);
        self.policy.inserted(slot, key(block));
        if self.index.len() > self.room.high {
            while self.index.len() > self.room.low {
                self.evict(self.index.len() - self.room.low);
            }
        }
    }

    fn evict(&mut self, most: usize) {
        let mut victims = Vec::new();
        self.policy.victims(0, &mut |slot| {
            victims.push(slot);
            victims.len() < most.min(BATCH)
        });
        assert!(!victims.is_empty(), "a full store has a victim");
        for slot in victims {
            let block = self.names[slot.number() as usize];
            self.index.remove(&block);
            self.policy.removed(slot, key(block), true);
            self.free.push(slot);
        }
    }
}
