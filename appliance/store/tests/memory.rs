//! What a block costs in memory. A binary of its own, for the allocator that counts.

use std::alloc::System;

use memkv_journal::{BlockId, UnitRange};
use memkv_store::index::{ENTRY_BYTES, Index};
use memkv_store::{Block, DriveId, Extent};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const BLOCKS: u64 = 1_000_000;
/// 56 with the policy's.
const BAR_BYTES: f64 = 45.0;

fn block(number: u64) -> Block {
    let hash = u128::from(number + 1).wrapping_mul(0x2D99_787A_926D_4693_2D99_787A_926D_4693);
    let hash = (hash ^ (hash >> 61)).wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835);
    let range = UnitRange { start: number as u32, count: 4 };
    let extent = Extent { drive: DriveId(0), range, offset: 0, length: 64 << 10, crc: 1 };
    Block {
        id: BlockId { hash: hash ^ (hash >> 67), generation: number + 1 },
        length: 64 << 10,
        expires: 0,
        flags: 0,
        extents: [extent].into(),
        verified: u16::MAX,
        corrupt: false,
    }
}

#[test]
fn a_block_of_the_index_costs_no_more_than_its_share() {
    let region = Region::new(ALLOCATOR);
    let mut index = Index::default();
    for number in 0..BLOCKS {
        index.insert(&block(number));
    }
    let change = region.change();
    let bytes = change.bytes_allocated - change.bytes_deallocated;
    let each = bytes as f64 / BLOCKS as f64;
    assert!(each >= ENTRY_BYTES as f64, "{each} bytes are less than an entry has");
    assert!(each <= BAR_BYTES, "{each} bytes for each block");
    let (slab, table) = index.bytes();
    assert!(slab + table <= bytes, "it says {slab} and {table} of {bytes}");
    assert!(bytes - slab - table < 4096, "it says {slab} and {table} of {bytes}");
    assert!(index.lookup(block(0).hash()).is_some() && index.len() as u64 == BLOCKS);
}
