//! Reading what nobody reads.
//!
//! Bits rot on a drive whether somebody asks for them or not. The scrubber is one task that goes
//! round all blocks, slot by slot, reads their extents and holds them against their CRCs: what
//! fails is dropped and counted as corrupt while it is nobody's trouble yet, and what does not is
//! verified, so that the first reader after a crash need not check it.
//!
//! It stays out of everybody's way: one extent at a time, at a bounded rate, with memory that no
//! request waits for. A block is pinned only while an extent of it is being read, never while the
//! scrubber waits, so that an eviction waits for one read at most. Blocks that are being read are
//! passed over: their getters check them.

use std::rc::Rc;
use std::time::Duration;

use memkv_block::IoError;
use memkv_dma::DmaBuf;
use memkv_journal::ExtentFault;
use memkv_poller::Instant;

use crate::block::{Extent, KeyHash, Slot};
use crate::metrics::Counter;
use crate::{ScrubConfig, Store};

/// Places looked at between two yields.
const SCAN_STEP: u32 = 1024;
/// How long the scrubber waits when there is no memory to spare.
const NO_MEMORY: Duration = Duration::from_millis(10);

/// What the scrubber counts, since start.
#[derive(Default, Debug)]
pub struct ScrubCounters {
    /// Extents whose bytes were right.
    pub extents: Counter,
    /// Bytes of them.
    pub bytes: Counter,
    /// Blocks with other bytes than were stored: dropped.
    pub corrupt: Counter,
    /// Blocks with bytes that the drive could not read: dropped.
    pub unreadable: Counter,
    /// Times it found no memory to spare.
    pub waits: Counter,
    /// Passes over all blocks that it completed.
    pub passes: Counter,
    /// Unix second at which the last of them ended; 0 before the first.
    pub last_pass: Counter,
    /// How far the pass under way is, in slots of the index.
    pub position: Counter,
    /// Slots of the index.
    pub slots: Counter,
}

/// Why an extent is not verified.
enum Bad {
    /// It has other bytes than were stored.
    Corrupt,
    /// The drive cannot read it.
    Unreadable,
    /// The drive is gone, and the block with it.
    Drive,
}

/// Lets through so many bytes a second.
struct Pace {
    bytes_per_second: u64,
    next: Instant,
}

impl Store {
    /// The scrubber's task.
    pub(crate) async fn scrubber(self: Rc<Self>) {
        let Some(ScrubConfig { bytes_per_second, rest }) = self.config.scrub else { return };
        assert!(bytes_per_second > 0, "a scrubber without a rate is switched off");
        let mut pace = Pace { bytes_per_second, next: self.local.now() };
        let counters = &self.counters.scrub;
        let mut next = 1;
        while !self.draining.get() {
            if let Some((slot, generation)) = self.next_to_scrub(&mut next).await {
                self.scrub_block(slot, generation, &mut pace).await;
                continue;
            }
            counters.passes.bump();
            counters.last_pass.set(self.unix_now());
            next = 1;
            self.local.sleep(rest).await;
        }
    }

    /// The first block, from a slot's number on, that can be read and that nobody reads now.
    async fn next_to_scrub(&self, next: &mut u32) -> Option<(Slot, u64)> {
        let counters = &self.counters.scrub;
        loop {
            let last = {
                let blocks = self.blocks.borrow();
                let last = blocks.last();
                counters.slots.set(u64::from(last));
                let end = last.min(*next + (SCAN_STEP - 1));
                let found = blocks.iter(*next..=end).find(|(slot, block)| {
                    let idle = block.is_published() && !block.is_pinned();
                    idle && self.unreadable(&blocks, *slot).is_none()
                });
                if let Some((slot, block)) = found {
                    *next = slot.number() + 1;
                    counters.position.set(u64::from(slot.number()) - 1);
                    return Some((slot, block.generation()));
                }
                *next = end + 1;
                last
            };
            counters.position.set(u64::from(*next) - 1);
            if *next > last {
                return None;
            }
            self.local.yield_now().await;
        }
    }

    /// Checks a block, extent by extent, for as long as it is there.
    async fn scrub_block(self: &Rc<Self>, slot: Slot, generation: u64, pace: &mut Pace) {
        let mut index = 0;
        while let Some((key, extent, buf)) = self.scrub_target(slot, generation, index).await {
            // Nothing has waited since the block was found: it is still the one.
            let counters = &self.counters.scrub;
            let bad = match self.check_extent((slot, generation, index), extent, buf).await {
                Ok(()) => {
                    counters.extents.bump();
                    counters.bytes.add(u64::from(extent.length));
                    None
                }
                Err(Bad::Drive) => return,
                Err(Bad::Corrupt) => Some(&counters.corrupt),
                Err(Bad::Unreadable) => Some(&counters.unreadable),
            };
            if let Some(counter) = bad {
                // Behind a clean checkpoint no removal may come; the block is found again.
                if !self.draining.get() {
                    counter.bump();
                    self.drop_corrupt(key, generation).await;
                }
                return;
            }
            self.local.sleep_until(pace.after(extent.length, self.local.now())).await;
            index += 1;
        }
    }

    /// Checks an extent of a block that is there: it is verified then.
    async fn check_extent(
        self: &Rc<Self>,
        (slot, generation, index): (Slot, u64, usize),
        extent: Extent,
        buf: DmaBuf,
    ) -> Result<(), Bad> {
        let journal = self.drive(extent.drive).journal.clone();
        self.blocks.borrow_mut().pin(slot, false);
        let read = journal.scrub_extent((extent.range, extent.length, extent.crc), buf).await;
        self.unpin(slot);
        match read {
            Ok(()) => {
                self.mark_verified(slot, generation, 1 << index);
                Ok(())
            }
            Err(ExtentFault::Io(error @ (IoError::Offline | IoError::Stalled(_)))) => {
                self.drive_failed(extent.drive, &error);
                Err(Bad::Drive)
            }
            Err(ExtentFault::Crc { .. }) => Err(Bad::Corrupt),
            Err(ExtentFault::Io(error)) => {
                tracing::warn!(drive = extent.drive.0, %error, "cannot read a block");
                Err(Bad::Unreadable)
            }
        }
    }

    /// Reads a block whose bytes nobody has seen since a crash, before a put is told that it is
    /// there. What is not what was stored is a miss from here on, and the put is to look again. Says
    /// whether there was memory to read it with.
    pub(crate) async fn verify(self: &Rc<Self>, slot: Slot, generation: u64) -> bool {
        let mut index = 0;
        while let Some((_, extent)) = self.extent_of(slot, generation, index) {
            if self.blocks.borrow().verified(slot) & (1 << index) == 0 {
                let Some(buf) = self.drive(extent.drive).journal.scrub_buffer(extent.length) else {
                    return false;
                };
                let seen = self.check_extent((slot, generation, index), extent, buf).await;
                if matches!(seen, Err(Bad::Corrupt | Bad::Unreadable)) {
                    // Whoever changes the key takes the block away.
                    let mut blocks = self.blocks.borrow_mut();
                    if blocks.find(slot, generation).is_some() {
                        blocks.mark_corrupt(slot);
                    }
                }
            }
            index += 1;
        }
        true
    }

    /// An extent of the block, if that is still there to be read.
    fn extent_of(&self, slot: Slot, generation: u64, index: usize) -> Option<(KeyHash, Extent)> {
        let blocks = self.blocks.borrow();
        let block = blocks.find(slot, generation)?;
        if !block.is_published() || self.unreadable(&blocks, slot).is_some() {
            return None;
        }
        Some((block.hash(), self.extent(blocks.spans(slot).nth(index)?)))
    }

    /// An extent of the block, if that is still there to be read, and memory to read it with.
    async fn scrub_target(
        &self,
        slot: Slot,
        generation: u64,
        index: usize,
    ) -> Option<(KeyHash, Extent, DmaBuf)> {
        while !self.draining.get() {
            let (key, extent) = self.extent_of(slot, generation, index)?;
            if let Some(buf) = self.drive(extent.drive).journal.scrub_buffer(extent.length) {
                return Some((key, extent, buf));
            }
            self.counters.scrub.waits.bump();
            self.local.sleep(NO_MEMORY).await;
        }
        None
    }
}

impl Pace {
    /// When the next bytes may be read, after so many were.
    fn after(&mut self, bytes: u32, now: Instant) -> Instant {
        let nanos = u64::from(bytes) * 1_000_000_000 / self.bytes_per_second;
        self.next = self.next.max(now) + Duration::from_nanos(nanos);
        self.next
    }
}
