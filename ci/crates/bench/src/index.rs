//! What the store's index takes: bytes of memory for each block, and time for each call.
//!
//! It fills an index as a store does, block by block, with an allocator that counts, and then does
//! the same with the eviction policies. Blocks are of one extent and come in chains, as prefixes of
//! conversations do. Times are those of the thread's own clock: what others do on the machine
//! between two calls is not in them, though what they do to its caches is.
//!
//! A binary of its own, because the counting allocator would cost the other benches something.

#![forbid(unsafe_code)]

use std::alloc::System;
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use memkv_journal::{BlockId, UnitRange};
use memkv_store::index::Index;
use memkv_store::{Block, DriveId, Extent, KeyHash, Named, Policy, Slot};
use nix::time::{ClockId, clock_gettime};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Bytes for each block: of slab, table and the policy that is the default.
const BAR_BYTES: f64 = 56.0;
/// The longest insert.
const BAR_LONGEST: Duration = Duration::from_micros(200);
/// Blocks of a chain.
const CHAIN: u64 = 32;
/// Calls of each kind that are timed.
const CALLS: u64 = 2_000_000;

/// Measures what the store's index takes for each block
#[derive(Parser)]
struct Arguments {
    /// Blocks, in millions
    #[arg(default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=1000))]
    millions: u64,
}

/// The hash of a key as the store's hasher would give it: uniform.
fn key(number: u64) -> KeyHash {
    let mut state = number;
    let mut word = || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    };
    KeyHash(u128::from(word()) << 64 | u128::from(word().rotate_left(17)))
}

/// Block of this number: a value of 64 KiB.
fn fill_in(block: &mut Block, number: u64) {
    block.id = BlockId { hash: key(number).0, generation: number + 1 };
    block.extents[0].range.start = number as u32;
    block.extents[0].crc = number as u32;
}

fn a_block() -> Block {
    let length = 64 << 10;
    let range = UnitRange { start: 0, count: 4 };
    let extent = Extent { drive: DriveId(0), range, offset: 0, length, crc: 0 };
    Block {
        id: BlockId { hash: 0, generation: 0 },
        length: u64::from(length),
        expires: 0,
        flags: 0,
        extents: [extent].into(),
        verified: u16::MAX,
        corrupt: false,
    }
}

/// Bytes that are given back when this goes: all that it holds.
fn bytes_of<T>(held: T) -> usize {
    let before = ALLOCATOR.stats().bytes_deallocated;
    drop(held);
    ALLOCATOR.stats().bytes_deallocated - before
}

/// The time this thread has had.
fn clock() -> Duration {
    Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("a clock of Linux"))
}

/// Times calls one by one.
struct Times {
    /// What reading the clock takes.
    reading: Duration,
    calls: u32,
    sum: Duration,
    /// Calls that took long, by their number.
    long: BTreeMap<u32, Duration>,
    last: Duration,
}

/// Shorter calls are no candidates for the longest one.
const SHORT: Duration = Duration::from_micros(15);

impl Times {
    fn begin() -> Self {
        const READINGS: u32 = 100_000;
        let began = clock();
        (0..READINGS).for_each(|_| _ = std::hint::black_box(clock()));
        let reading = (clock() - began) / READINGS;
        let long = BTreeMap::new();
        Self { reading, calls: 0, sum: Duration::ZERO, long, last: clock() }
    }

    /// A call has ended; the next one begins.
    fn lap(&mut self) {
        let now = clock();
        let took = (now - self.last).saturating_sub(self.reading);
        self.calls += 1;
        self.sum += took;
        if took > SHORT {
            self.long.insert(self.calls, took);
        }
        self.last = now;
    }

    /// The longest call, where each took the shorter time of two runs of the same calls: what
    /// disturbed only one of them does not count.
    fn longest(&self, again: &Times) -> Duration {
        let both = self
            .long
            .iter()
            .filter_map(|(call, took)| again.long.get(call).map(|again| (*took).min(*again)));
        both.max().unwrap_or(SHORT)
    }

    fn mean(&self) -> u128 {
        (self.sum / self.calls.max(1)).as_nanos()
    }
}

/// Mean nanoseconds of so many calls.
fn mean(calls: u64, mut call: impl FnMut(u64)) -> u64 {
    let began = clock();
    (0..calls).for_each(&mut call);
    (clock() - began).as_nanos() as u64 / calls
}

fn main() -> ExitCode {
    let blocks = Arguments::parse().millions * 1_000_000;
    let each = |bytes: usize| bytes as f64 / blocks as f64;
    let (index, inserts) = filled(blocks);
    let (slab, table) = index.bytes();
    let both = bytes_of(index);
    println!("bytes for each of {blocks} blocks");
    println!("  slab          {:7.2}", each(slab));
    println!("  table         {:7.2}", each(table));
    println!("  both          {:7.2}  as the allocator counts", each(both));
    let (index, again) = filled(blocks);
    time_calls(index, blocks);
    let longest = inserts.longest(&again);
    println!("  insert, mean  {:7} ns", inserts.mean());
    println!("  longest       {:7.1} us", longest.as_nanos() as f64 / 1e3);

    println!("bytes for each of {blocks} blocks, with the eviction policy");
    let mut held = true;
    for policy in Policy::ALL {
        let (bytes, inserted) = policy_bytes(policy, blocks);
        let inserted = inserted.longest(&policy_bytes(policy, blocks).1);
        let all = each(both + bytes);
        println!(
            "  {:8} {:6.2}, in all {all:6.2}; longest insert {:.1} us",
            policy.build().name(),
            each(bytes),
            inserted.as_nanos() as f64 / 1e3
        );
        if policy == Policy::Chain {
            held = all <= BAR_BYTES && longest.max(inserted) <= BAR_LONGEST;
        }
    }
    let verdict = if held { "held" } else { "MISSED" };
    println!(
        "bar: at most {BAR_BYTES} bytes with chain, no insert above {BAR_LONGEST:?}: {verdict}"
    );
    if held { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn filled(blocks: u64) -> (Index, Times) {
    let mut index = Index::default();
    let mut block = a_block();
    let mut times = Times::begin();
    for number in 0..blocks {
        fill_in(&mut block, number);
        index.insert(&block);
        times.lap();
    }
    assert_eq!(index.len() as u64, blocks);
    (index, times)
}

/// Lookups in no order, and every block replaced by another one.
fn time_calls(mut index: Index, blocks: u64) {
    let somewhere = |n: u64| n.wrapping_mul(0x9E37_79B9_7F4A_7C15) % blocks;
    let mut found = 0;
    let hit = mean(CALLS, |n| found += u64::from(index.lookup(key(somewhere(n))).is_some()));
    assert_eq!(found, CALLS, "every block is found");
    let miss = mean(CALLS, |n| found += u64::from(index.lookup(key(blocks + n)).is_some()));
    assert_eq!(found, CALLS, "nothing else is");
    let mut block = a_block();
    let replace = mean(blocks, |n| {
        let slot = index.lookup(key(n)).expect("every block is found");
        index.unpublish(slot);
        index.remove(slot);
        fill_in(&mut block, blocks + n);
        index.insert(&block);
    });
    println!("time of one call");
    println!("  hit           {hit:7} ns");
    println!("  miss          {miss:7} ns");
    println!("  replace       {replace:7} ns  lookup, remove, insert");
    let (slab, table) = index.bytes();
    let each = (slab + table) as f64 / blocks as f64;
    println!("                {each:7.2} bytes for each after all were replaced");
}

/// What a policy takes for blocks that come in chains.
fn policy_bytes(policy: Policy, blocks: u64) -> (usize, Times) {
    let mut policy = policy.build();
    let mut times = Times::begin();
    for first in (0..blocks).step_by(CHAIN as usize) {
        let numbers = first..(first + CHAIN).min(blocks);
        if policy.wants_chains() {
            let chain: Vec<Named> =
                numbers.clone().map(|n| Named { key: key(n), slot: None }).collect();
            policy.named(&chain);
        }
        times.last = clock();
        for number in numbers {
            let slot = Slot::of(number as u32 + 1).expect("slots count from one");
            policy.inserted(slot, key(number));
            times.lap();
        }
    }
    (bytes_of(policy), times)
}
