//! Belady's optimum: what a policy could do at best if it knew the future.

use std::collections::{BTreeSet, HashMap};

use memkv_workload::block::BlockHash;
use memkv_workload::trace::Request;

use super::model::Hits;

/// Never named again.
const NEVER: usize = usize::MAX;

/// Replays requests into a store of `capacity` blocks that keeps those which are named again
/// soonest, the front of a chain before its end. A block that is named later than all that are there
/// does not even get in.
pub fn replay(requests: &[Request], capacity: usize) -> Hits {
    // When each reference's block is named next.
    let mut next_of: HashMap<BlockHash, usize> = HashMap::new();
    let mut nexts: Vec<Vec<usize>> = Vec::with_capacity(requests.len());
    for (at, request) in requests.iter().enumerate().rev() {
        let next = |block| next_of.get(block).copied().unwrap_or(NEVER);
        nexts.push(request.blocks.iter().map(next).collect());
        next_of.extend(request.blocks.iter().map(|block| (*block, at)));
    }
    nexts.reverse();

    let mut hits = Hits::default();
    let mut present: HashMap<BlockHash, (usize, usize)> = HashMap::new();
    let mut by_next: BTreeSet<(usize, usize, BlockHash)> = BTreeSet::new();
    for (request, nexts) in requests.iter().zip(&nexts) {
        let hit = request.blocks.iter().take_while(|block| present.contains_key(block)).count();
        hits.references += request.blocks.len() as u64;
        hits.prefix_hits += hit as u64;
        for (depth, (block, &next)) in request.blocks.iter().zip(nexts).enumerate() {
            if let Some((next, depth)) = present.remove(block) {
                by_next.remove(&(next, depth, *block));
            }
            if next != NEVER {
                present.insert(*block, (next, depth));
                by_next.insert((next, depth, *block));
            }
            if present.len() > capacity {
                let (_, _, block) = by_next.pop_last().expect("more than a capacity");
                present.remove(&block);
            }
        }
    }
    hits
}
