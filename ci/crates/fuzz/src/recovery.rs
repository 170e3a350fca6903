//! A whole drive that rotted, or that somebody wrote on: recovery must come to an end with blocks
//! that can be, or with a refusal.
//!
//! A real journal makes a few small drives; an input is a choice of one, and patches. A superblock
//! alone rots behind its sum, so patches there may be made in all copies with the sums put right.
//!
//! What must hold: no panic; of what lives no two records name the same unit and none lies beyond
//! the drive; a second reading gives the same; and a journal that opens can be written to.

use std::rc::Rc;
use std::sync::Arc;

use memkv_block::{BlockDevice, BlockQueue};
use memkv_dma::{Class, Hugepages, Pool, PoolConfig};
use memkv_journal::{
    BlockId, DriveUuid, FormatOptions, Identity, KeyBytes, NodeUuid, PartRef, RING_MIN, Record,
    Recovered, SUPERBLOCK_BYTES, SUPERBLOCK_STRIDE, UNIT, UnitRange, open, read_contents,
    read_copies, read_superblock,
};
use memkv_poller::{Local, Reactor, ReactorConfig, Rng, SystemClock};

use crate::draw::{bytes, number, once_in, one_of};
use crate::patches::{Patch, Patches};
use crate::target::{Counts, Target};

/// Bytes of a drive.
const DRIVE: usize = 512 << 10;
/// Set in the choice: superblock patches go to all copies, with the sums put right.
const SUMMED: u32 = 1 << 8;

/// The target: recovery of a damaged drive.
pub struct Recovery {
    reactor: Reactor,
    pool: Pool,
    images: Vec<Vec<u8>>,
    counts: Counts,
}

impl Default for Recovery {
    fn default() -> Recovery {
        let config = PoolConfig { size: 16 << 20, chunk: 1 << 20, hugepages: Hugepages::Never };
        let pool = Pool::new(config).expect("16 MiB");
        let rng = Rng::seeded(1);
        let mut reactor = Reactor::new(ReactorConfig::default(), Rc::new(SystemClock), rng);
        let images = (0..4).map(|steps| image(&mut reactor, &pool, steps)).collect();
        let names = [
            "no superblock",
            "both checkpoints lost",
            "recovered",
            "recovered, frames damaged",
            "recovered, torn at its end",
            "recovered from the other checkpoint",
            "recovered, conflicts",
            "written to",
            "a checkpoint more",
        ];
        Recovery { reactor, pool, images, counts: Counts::of(names.map(str::to_owned)) }
    }
}

impl Target for Recovery {
    fn name(&self) -> &'static str {
        "recovery"
    }

    fn draw(&self, rng: &mut Rng) -> Vec<u8> {
        let choice = rng.below(self.images.len() as u64) as u32;
        let summed = if once_in(rng, 3) { SUMMED } else { 0 };
        let mut patches = Patches { size: choice | summed, patches: Vec::new() };
        let ring = SUPERBLOCK_STRIDE as u32 * 4;
        for _ in 0..rng.below(5) {
            if once_in(rng, 4) {
                patches.patches.push(counter(rng));
                continue;
            }
            let at = match rng.below(4) {
                // A field of a superblock.
                0 => rng.below(4) as u32 * SUPERBLOCK_STRIDE as u32 + rng.below(640) as u32,
                // Headers of frames, and of what follows the ring.
                1 => ring + rng.below(48) as u32 * 4096 + rng.below(200) as u32,
                2 => ring + rng.below(RING_MIN / 4) as u32,
                _ => rng.below(DRIVE as u64) as u32,
            };
            let count = 1 + rng.below(8) as usize;
            let bytes = match rng.below(3) {
                0 => number(rng).to_le_bytes()[..one_of(rng, &[1, 2, 4, 8])].to_vec(),
                1 => vec![0; count * 512],
                _ => bytes(rng, count),
            };
            patches.patches.push(Patch { at, bytes });
        }
        patches.encode()
    }

    fn feed(&mut self, input: &[u8]) {
        let Some(mut patches) = Patches::parse(input) else { return };
        let mut image = self.images[(patches.size & 0xff) as usize % self.images.len()].clone();
        if patches.size & SUMMED != 0 {
            mirror(&mut patches);
        }
        patches.apply(&mut image);
        if patches.size & SUMMED != 0 {
            sum(&mut image);
        }
        let device = memkv_block::memory(DRIVE as u64, Hugepages::Never).expect("little memory");
        let (local, pool) = (self.reactor.local(), self.pool.clone());
        let reached =
            self.reactor.block_on(async move { recover(&local, &pool, device, &image).await });
        for name in reached {
            self.counts.bump(name);
        }
    }

    fn counts(&self) -> &Counts {
        &self.counts
    }
}

/// A whole number of a superblock, often one at the end of what counters may be.
fn counter(rng: &mut Rng) -> Patch {
    const END: u64 = 1 << 62;
    let at = 48 + 8 * rng.below(72) as u32;
    let value = if once_in(rng, 2) { END - 1 + rng.below(3) } else { number(rng) };
    Patch { at, bytes: value.to_le_bytes().to_vec() }
}

/// Makes every patch of a superblock copy in all of them.
fn mirror(patches: &mut Patches) {
    let stride = SUPERBLOCK_STRIDE as u32;
    let inside =
        |patch: &&Patch| patch.at < 4 * stride && patch.at % stride < SUPERBLOCK_BYTES as u32;
    let copies: Vec<Patch> = patches
        .patches
        .iter()
        .filter(inside)
        .flat_map(|patch| {
            (0..4).map(|copy| Patch { at: patch.at % stride + copy * stride, ..patch.clone() })
        })
        // The number of a copy stays its own.
        .filter(|patch| patch.at % stride >= 16)
        .collect();
    patches.patches.extend(copies);
}

/// Puts the sums of all superblock copies right.
fn sum(image: &mut [u8]) {
    for copy in 0..4 {
        let at = copy * SUPERBLOCK_STRIDE as usize;
        let crc = memkv_wire::crc32c(&image[at + 16..at + SUPERBLOCK_BYTES]);
        image[at + 12..at + 16].copy_from_slice(&crc.to_le_bytes());
    }
}

/// Reads a drive, opens it and writes to it; what was reached.
async fn recover(
    local: &Local,
    pool: &Pool,
    device: Arc<dyn BlockDevice>,
    image: &[u8],
) -> Vec<&'static str> {
    let queue = device.open_queue(local).expect("memory has queues");
    write(&*queue, pool, image).await;
    let geometry = device.geometry();
    let seen = read_copies(&*queue, &geometry, pool).await;
    let Ok(superblock) = seen.superblock else { return vec!["no superblock"] };
    let Ok(contents) = read_contents(&*queue, local, pool, &superblock).await else {
        return vec!["both checkpoints lost"];
    };
    check(&contents.live, superblock.layout.units);
    let met = &contents.report;
    let mut reached = vec!["recovered"];
    let facts = [
        (met.damaged_frames > 0, "recovered, frames damaged"),
        (met.torn_tail, "recovered, torn at its end"),
        (met.fell_back, "recovered from the other checkpoint"),
        (met.conflicts > 0, "recovered, conflicts"),
    ];
    reached.extend(facts.iter().filter(|(fact, _)| *fact).map(|(_, name)| *name));

    let superblock = read_superblock(&*queue, &geometry, pool).await.expect("it was just read");
    let opened = open(queue, local, pool.clone(), superblock).await;
    let (journal, recovered): (_, Recovered) = opened.expect("it was just read");
    // A start does not read the keys, whose damage made the other reading fall back.
    if !contents.report.fell_back || recovered.report == contents.report {
        assert_eq!(recovered.report, contents.report);
        let live: Vec<_> = contents.live.iter().map(Record::without_key).collect();
        assert_eq!(recovered.live, live, "two readings of one drive");
    }
    for extent in recovered.live.iter().filter_map(Record::extent) {
        assert!(journal.mark(extent).is_err(), "its units are taken");
        // No unit is named twice.
        journal.disown(extent);
    }
    assert_eq!(journal.free_units(), journal.total_units(), "and no other ones");
    for extent in recovered.live.iter().filter_map(Record::extent) {
        journal.mark(extent).expect("they are free again");
    }
    let Some(extent) = journal.allocate(1).filter(|_| journal.room_for_put()) else {
        return reached;
    };
    let more = put(99, extent);
    if journal.append(vec![more.clone()]).await.is_err() {
        return reached;
    }
    reached.push("written to");
    let start = journal.begin_checkpoint();
    let live = contents.live.into_iter().chain([more]).collect();
    if journal.write_checkpoint(start, live, false, 0, 0).await.is_ok() {
        reached.push("a checkpoint more");
    }
    reached
}

fn check(live: &[Record], units: u32) {
    let mut extents: Vec<UnitRange> = live.iter().filter_map(Record::extent).collect();
    extents.sort();
    assert!(extents.iter().all(|extent| extent.end() <= u64::from(units)));
    assert!(extents.windows(2).all(|two| two[0].end() <= u64::from(two[1].start)));
    assert!(!live.iter().any(|record| matches!(record, Record::Remove { .. })));
}

fn put(number: u64, extent: UnitRange) -> Record {
    Record::Put {
        block: BlockId { hash: u128::from(number) << 64 | 1, generation: number },
        key: KeyBytes::new("t", "n", format!("key-{number}").as_bytes()).expect("short"),
        extent,
        length: extent.bytes() as u32,
        crc: number as u32,
        expires: 0,
        flags: 0,
    }
}

fn in_parts(number: u64, drive: DriveUuid, extents: [UnitRange; 2]) -> Vec<Record> {
    let block = BlockId { hash: u128::from(number) << 64 | 1, generation: number };
    let length = UNIT as u32;
    let parts = extents.into_iter().enumerate().map(|(index, extent)| Record::Part {
        block,
        index: index as u16,
        extent,
        length,
        crc: 0,
    });
    let head = Record::Head {
        block,
        key: KeyBytes::new("t", "n", b"large").expect("short"),
        length: 2 * u64::from(length),
        expires: 0,
        flags: 0,
        parts: vec![PartRef { drive, length, crc: 0 }; 2].into(),
    };
    parts.chain([head]).collect()
}

/// A drive as a journal leaves it after so many steps.
fn image(reactor: &mut Reactor, pool: &Pool, steps: u64) -> Vec<u8> {
    let (local, pool) = (reactor.local(), pool.clone());
    let device = memkv_block::memory(DRIVE as u64, Hugepages::Never).expect("little memory");
    reactor.block_on(async move {
        let queue = device.open_queue(&local).expect("memory has queues");
        let geometry = device.geometry();
        let drive = DriveUuid(uuid::Uuid::from_u128(7));
        let identity = Identity {
            node: NodeUuid(uuid::Uuid::from_u128(9)),
            drive,
            epoch: 1,
            members: vec![drive],
            secret: [3; 32],
        };
        let options = FormatOptions {
            ring_bytes: Some(RING_MIN),
            block_limit: Some(20),
            key_average: Some(16),
            ..FormatOptions::default()
        };
        let formatted = memkv_journal::format(&*queue, &geometry, &pool, identity, options).await;
        formatted.expect("it is large enough");
        let unit = |start: u64| UnitRange { start: start as u32, count: 1 };
        let mut live = Vec::new();
        for step in 0..steps {
            let superblock = read_superblock(&*queue, &geometry, &pool).await.expect("formatted");
            let opened = open(queue.clone(), &local, pool.clone(), superblock).await;
            let (journal, _): (_, Recovered) = opened.expect("whole");
            let first = step * 4;
            let puts = vec![put(first + 1, unit(first)), put(first + 2, unit(first + 1))];
            let parts = in_parts(first + 3, drive, [unit(first + 2), unit(first + 3)]);
            for records in [puts, parts] {
                drop(journal.append(records.clone()).await.expect("there is room"));
                live.extend(records);
            }
            if step % 2 == 0 {
                let start = journal.begin_checkpoint();
                let written = journal.write_checkpoint(start, live.clone(), false, 0, 0).await;
                written.expect("there is room");
                let block =
                    BlockId { hash: u128::from(first + 1) << 64 | 1, generation: first + 1 };
                drop(journal.append(vec![Record::Remove { block }]).await.expect("there is room"));
                live.retain(|record| record.block() != block);
            }
        }
        if steps == 3 {
            // Two records that name one unit, as only damage brings them about.
            let superblock = read_superblock(&*queue, &geometry, &pool).await.expect("formatted");
            let opened = open(queue.clone(), &local, pool.clone(), superblock).await;
            let (journal, _): (_, Recovered) = opened.expect("whole");
            drop(journal.append(vec![put(50, unit(1))]).await.expect("there is room"));
        }
        read(&*queue, &pool).await
    })
}

async fn write(queue: &dyn BlockQueue, pool: &Pool, image: &[u8]) {
    let mut buf = pool.allocate_wait(Class::Send, DRIVE).await;
    buf.as_mut_slice()[..DRIVE].copy_from_slice(image);
    memkv_block::write(queue, 0, DRIVE, buf).await.0.expect("memory does not fail");
}

async fn read(queue: &dyn BlockQueue, pool: &Pool) -> Vec<u8> {
    let buf = pool.allocate_wait(Class::Send, DRIVE).await;
    let (result, buf) = memkv_block::read(queue, 0, DRIVE, buf).await;
    let buf = buf.expect("memory gives its buffers back");
    result.expect("memory does not fail");
    buf.as_slice()[..DRIVE].to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::{Until, run};

    #[test]
    fn every_end_of_a_recovery_is_reached() {
        let report = run(&mut Recovery::default(), &[], 5, Until::Inputs(3_000));
        assert!(report.passed(), "{report}");
    }

    #[test]
    fn any_input_may_be_fed() {
        let mut rng = Rng::seeded(2);
        let mut target = Recovery::default();
        for length in 0..100 {
            target.feed(&bytes(&mut rng, length));
        }
    }
}
