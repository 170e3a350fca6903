//! What a drive is asked, counted: for operators, and for whoever wants to know where time goes.
//!
//! All queues of a drive share one set of counters, [`Counters`], to which a driver adds once per turn, not
//! once per command, so they cost some nanoseconds a turn. Or each queue has its own,
//! [`QueueCounters`], which its reactor alone writes, an instruction each, and whoever asks adds them up.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::{Io, Op};

/// What a drive was asked since it was opened, by all queues together.
///
/// Commands of a medium that is memory go past this when it lends its bytes as views.
#[derive(Copy, Clone, PartialEq, Eq, Default, Debug)]
pub struct DeviceStats {
    /// Reads done.
    pub reads: u64,
    /// Writes done, those that a flush belongs to included.
    pub writes: u64,
    /// Flushes done, those that belong to a write included.
    pub flushes: u64,
    /// Deallocations done.
    pub deallocations: u64,
    /// Bytes of the reads.
    pub read_bytes: u64,
    /// Bytes of the writes.
    pub written_bytes: u64,
    /// Commands that failed.
    pub failed: u64,
    /// Commands handed to the system, also again when it had done a part of one.
    pub submitted: u64,
    /// System calls by which they were handed over.
    pub enters: u64,
    /// Reads and writes among them; where queues count for themselves, those that have ended.
    pub transfers: u64,
    /// Those from or to memory that is registered with the system, which need not be pinned.
    pub fixed: u64,
    /// Commands that the device has now.
    pub depth: u64,
    /// The most that it had at a time; where queues count for themselves, the sum of what each of them had.
    pub depth_high: u64,
    /// How often the device was found to have done all that it had while more was waiting.
    pub dry: u64,
    /// How long commands waited while the device had none, as far as can be told from here.
    pub starved: Duration,
}

/// Commands that have ended, and their bytes.
#[derive(Default)]
struct Ends {
    reads: AtomicU64,
    writes: AtomicU64,
    flushes: AtomicU64,
    deallocations: AtomicU64,
    read_bytes: AtomicU64,
    written_bytes: AtomicU64,
    failed: AtomicU64,
}

impl Ends {
    fn add_to(&self, stats: &mut DeviceStats) {
        stats.reads += shown(&self.reads);
        stats.writes += shown(&self.writes);
        stats.flushes += shown(&self.flushes);
        stats.deallocations += shown(&self.deallocations);
        stats.read_bytes += shown(&self.read_bytes);
        stats.written_bytes += shown(&self.written_bytes);
        stats.failed += shown(&self.failed);
    }
}

/// What a counter shows now.
fn shown(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

/// The counters of a drive, which its queues share. For drivers.
#[derive(Default)]
pub struct Counters {
    ends: Ends,
    submitted: AtomicU64,
    enters: AtomicU64,
    transfers: AtomicU64,
    fixed: AtomicU64,
    depth: AtomicU64,
    depth_high: AtomicU64,
    dry: AtomicU64,
    starved_ns: AtomicU64,
    /// Those of the queues that count for themselves.
    queues: Box<[Arc<QueueCounters>]>,
}

/// The counters of one queue. One thread adds to them, anyone reads. For drivers.
#[derive(Default)]
// A line of its own, and the next one, which processors fetch along: nobody else writes there.
#[repr(align(128))]
pub struct QueueCounters {
    /// By the number of what was asked.
    ended: [Ended; OPS],
    failed: AtomicU64,
    failed_transfers: AtomicU64,
    submitted: AtomicU64,
    depth: AtomicU64,
    depth_high: AtomicU64,
}

/// Commands of one kind that have ended well.
#[derive(Default)]
struct Ended {
    count: AtomicU64,
    bytes: AtomicU64,
}

/// Kinds of commands.
const OPS: usize = Op::Deallocate as usize + 1;

/// Adds to a counter that only this thread writes: no locked instruction.
#[inline(always)]
fn bump(counter: &AtomicU64, amount: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(amount), Ordering::Relaxed);
}

impl QueueCounters {
    /// A command of `len` bytes has ended well.
    #[inline(always)]
    pub fn done(&self, op: Op, len: u64) {
        let ended = &self.ended[op as usize];
        bump(&ended.count, 1);
        bump(&ended.bytes, len);
    }

    /// A command has failed that the device had.
    pub fn failed(&self, op: Op) {
        bump(&self.failed, 1);
        if matches!(op, Op::Read | Op::Write | Op::WriteFlush) {
            bump(&self.failed_transfers, 1);
        }
    }

    /// A command has failed of which the device was not told.
    pub fn refused(&self) {
        bump(&self.failed, 1);
    }

    /// The same of one that the device had until now.
    #[inline(always)]
    pub fn answered(&self, op: Op, len: u64) {
        self.done(op, len);
        self.returned();
    }

    /// The device has `count` commands of this queue more than the `before` that it [had](Self::depth).
    #[inline(always)]
    pub fn handed_over(&self, count: u64, before: u64) {
        bump(&self.submitted, count);
        let depth = before.wrapping_add(count);
        self.depth.store(depth, Ordering::Relaxed);
        if depth > self.depth_high.load(Ordering::Relaxed) {
            self.depth_high.store(depth, Ordering::Relaxed);
        }
    }

    /// One command has come back from the device.
    #[inline(always)]
    pub fn returned(&self) {
        self.depth.store(self.depth() - 1, Ordering::Relaxed);
    }

    /// All have, or none will.
    pub fn returned_all(&self) {
        self.depth.store(0, Ordering::Relaxed);
    }

    /// Commands of this queue that the device has.
    #[inline(always)]
    pub fn depth(&self) -> u64 {
        self.depth.load(Ordering::Relaxed)
    }

    fn add_to(&self, stats: &mut DeviceStats) {
        let count = |op: Op| shown(&self.ended[op as usize].count);
        let bytes = |op: Op| shown(&self.ended[op as usize].bytes);
        let (reads, writes) = (count(Op::Read), count(Op::Write) + count(Op::WriteFlush));
        stats.reads += reads;
        stats.writes += writes;
        stats.flushes += count(Op::Flush) + count(Op::WriteFlush);
        stats.deallocations += count(Op::Deallocate);
        stats.read_bytes += bytes(Op::Read);
        stats.written_bytes += bytes(Op::Write) + bytes(Op::WriteFlush);
        stats.failed += shown(&self.failed);
        stats.submitted += shown(&self.submitted);
        // All of them from or to memory that the device reaches.
        let transfers = reads + writes + shown(&self.failed_transfers);
        stats.transfers += transfers;
        stats.fixed += transfers;
        stats.depth += shown(&self.depth);
        stats.depth_high += shown(&self.depth_high);
    }
}

/// What one queue has to add, gathered over a turn. For drivers.
#[derive(Default)]
pub struct Tally {
    reads: u64,
    writes: u64,
    flushes: u64,
    deallocations: u64,
    read_bytes: u64,
    written_bytes: u64,
    failed: u64,
    transfers: u64,
    fixed: u64,
}

fn add(counter: &AtomicU64, amount: u64) {
    if amount > 0 {
        counter.fetch_add(amount, Ordering::Relaxed);
    }
}

impl Tally {
    /// A read or write is on its way, from or to memory that is registered or is not.
    pub fn transfer(&mut self, fixed: bool) {
        self.transfers += 1;
        self.fixed += u64::from(fixed);
    }

    /// A command has ended.
    pub fn done(&mut self, io: &Io, good: bool) {
        self.ended(io.op, io.len, good);
    }

    /// A command of `len` bytes has ended.
    #[inline]
    pub fn ended(&mut self, op: Op, len: u64, good: bool) {
        if !good {
            self.failed += 1;
            return;
        }
        match op {
            Op::Read => {
                self.reads += 1;
                self.read_bytes += len;
            }
            Op::Write | Op::WriteFlush => {
                self.writes += 1;
                self.written_bytes += len;
                self.flushes += u64::from(op == Op::WriteFlush);
            }
            Op::Flush => self.flushes += 1,
            Op::Deallocate => self.deallocations += 1,
        }
    }
}

impl Counters {
    /// Those of a drive with so many queues that count for themselves.
    pub fn with_queues(queues: usize) -> Counters {
        let queues = std::iter::repeat_with(Arc::default).take(queues).collect();
        Counters { queues, ..Counters::default() }
    }

    /// Those of one queue, for whoever owns it at a time.
    pub fn queue(&self, index: usize) -> Arc<QueueCounters> {
        Arc::clone(&self.queues[index])
    }

    /// Adds what a queue has gathered, and empties that.
    pub fn take(&self, tally: &mut Tally) {
        let Tally { reads, writes, flushes, deallocations, .. } = *tally;
        let Tally { read_bytes, written_bytes, failed, transfers, fixed, .. } = *tally;
        add(&self.ends.reads, reads);
        add(&self.ends.writes, writes);
        add(&self.ends.flushes, flushes);
        add(&self.ends.deallocations, deallocations);
        add(&self.ends.read_bytes, read_bytes);
        add(&self.ends.written_bytes, written_bytes);
        add(&self.ends.failed, failed);
        add(&self.transfers, transfers);
        add(&self.fixed, fixed);
        *tally = Tally::default();
    }

    /// One command that has ended.
    pub fn done(&self, io: &Io, good: bool) {
        let mut tally = Tally::default();
        tally.done(io, good);
        self.take(&mut tally);
    }

    /// The device has `count` commands more, by one system call if there was one.
    pub fn handed_over(&self, count: u64, enters: u64) {
        add(&self.submitted, count);
        add(&self.enters, enters);
        let depth = self.depth.fetch_add(count, Ordering::AcqRel) + count;
        if depth > self.depth_high.load(Ordering::Relaxed) {
            self.depth_high.fetch_max(depth, Ordering::Relaxed);
        }
    }

    /// The device has `count` commands less; how many it still has.
    pub fn came_back(&self, count: u64) -> u64 {
        self.depth.fetch_sub(count, Ordering::AcqRel) - count
    }

    /// Commands that the device has.
    pub fn depth(&self) -> u64 {
        let queues = self.queues.iter().map(|queue| queue.depth.load(Ordering::Relaxed));
        self.depth.load(Ordering::Acquire) + queues.sum::<u64>()
    }

    /// The device had done everything while more was waiting.
    pub fn ran_dry(&self) {
        add(&self.dry, 1);
    }

    /// Commands waited so long for a device that had none.
    pub fn starved(&self, time: Duration) {
        add(&self.starved_ns, time.as_nanos() as u64);
    }

    /// What they show now.
    pub fn stats(&self) -> DeviceStats {
        let mut stats = DeviceStats {
            submitted: shown(&self.submitted),
            enters: shown(&self.enters),
            transfers: shown(&self.transfers),
            fixed: shown(&self.fixed),
            depth: shown(&self.depth),
            depth_high: shown(&self.depth_high),
            dry: shown(&self.dry),
            starved: Duration::from_nanos(shown(&self.starved_ns)),
            ..DeviceStats::default()
        };
        self.ends.add_to(&mut stats);
        self.queues.iter().for_each(|queue| queue.add_to(&mut stats));
        stats
    }
}
