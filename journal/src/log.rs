//! The accounts of the ring: what is in it, what is promised, what may still be appended.
//!
//! ```text
//!        start                                   head
//!   …────┬────────────────────┬────────────────────┬──────────────────────────┬──────┬──────┐
//!   free │ frames applied     │ frames in use      │ calls waiting            │ room │ wrap │
//!        └ of the checkpoint  └ a checkpoint begun now starts here
//! ```
//!
//! Positions count bytes over all laps. A frame is *in use* until every call that rode in it has
//! been applied to the index, for a snapshot taken before that may lack it. Room is refused in
//! steps: first new puts ([`Log::room_for_put`]), then puts already under way, last removes, which
//! free space. Nothing here does I/O or knows the time.

use std::collections::VecDeque;

use memkv_poller::spare::Row;

use crate::frame::span_of;
use crate::ids::BlockId;
use crate::record::{Record, Usage};
use crate::superblock::CheckpointRef;

/// Why records cannot be appended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Refusal {
    RingFull,
    CheckpointFull,
    TooLarge { bytes: usize, limit: usize },
}

/// One call of append that no frame has taken yet.
pub(crate) struct Waiting<T> {
    pub(crate) records: Row<Record>,
    pub(crate) bytes: usize,
    pub(crate) ticket: T,
    usage: Usage,
}

/// What the next write to the ring is.
pub(crate) enum Next<T: 'static> {
    /// Nothing waits.
    Nothing,
    /// The lap's end is filled, for the next call does not fit there.
    Filler { sequence: u64, position: u64, span: usize },
    /// A frame of these calls.
    Frame { sequence: u64, position: u64, body: usize, calls: Row<Waiting<T>> },
}

/// A frame some of whose calls are not applied yet.
struct InUse {
    position: u64,
    calls: u32,
    usage: Usage,
}

/// Sizes that do not change.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) ring_bytes: u64,
    pub(crate) frame_max: usize,
    pub(crate) limits: Usage,
}

/// What a checkpoint takes over from the log at the moment it begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Mark {
    pub(crate) sequence: u64,
    pub(crate) position: u64,
}

pub(crate) struct Log<T> {
    bounds: Bounds,
    /// The ring before this position is free.
    start: u64,
    head: u64,
    next_sequence: u64,
    waiting: VecDeque<Waiting<T>>,
    /// Ring bytes the waiting calls take: they are packed from the front, as many a frame as fit.
    waiting_span: u64,
    /// Body bytes of the last frame of that packing, which the next call may join.
    open_body: usize,
    /// Frames from the oldest in use to the last; `calls` may be 0 inside.
    in_use: VecDeque<InUse>,
    /// No checkpoint of the live records takes more than this.
    usage: Usage,
    /// `usage` after the last checkpoint.
    usage_base: Usage,
    /// The part of `usage` that a checkpoint begun last may lack.
    usage_since: Usage,
    removes: u64,
    generation_high: u64,
}

impl<T: 'static> Log<T> {
    pub(crate) fn new(bounds: Bounds, start: CheckpointRef, head: Mark, usage: Usage) -> Log<T> {
        assert!(head.position - start.start_position <= bounds.ring_bytes);
        Log {
            bounds,
            start: start.start_position,
            head: head.position,
            next_sequence: head.sequence,
            waiting: VecDeque::new(),
            waiting_span: 0,
            open_body: 0,
            in_use: VecDeque::new(),
            usage,
            usage_base: usage,
            usage_since: Usage::default(),
            removes: 0,
            generation_high: 0,
        }
    }

    /// Ring bytes neither used nor promised. One frame is kept for the end of the lap, which a
    /// frame that does not fit there leaves unused.
    fn room(&self) -> u64 {
        let taken = self.head - self.start + self.waiting_span + self.bounds.frame_max as u64;
        self.bounds.ring_bytes.saturating_sub(taken)
    }

    /// Ring bytes only removes may take.
    fn remove_reserve(&self) -> u64 {
        self.bounds.ring_bytes / 8
    }

    /// Ring and checkpoint room for a put that only begins: those under way keep theirs.
    pub(crate) fn room_for_put(&self) -> bool {
        let limits = self.bounds.limits;
        let margin = Usage {
            rows: limits.rows / 16 + 1,
            parts: limits.parts / 16 + 1,
            key_bytes: limits.key_bytes / 16 + 1,
        };
        self.room() >= self.remove_reserve() + self.bounds.ring_bytes / 16
            && (self.usage + margin).fits(limits)
    }

    /// Whether a checkpoint is due: half the ring is used, or the columns look full and a
    /// checkpoint would tell how full they are.
    pub(crate) fn wants_checkpoint(&self) -> bool {
        if self.head - self.start + self.waiting_span >= self.bounds.ring_bytes / 2 {
            return true;
        }
        let (limits, base) = (self.bounds.limits, self.usage_base);
        let pairs = [
            (self.usage.rows, base.rows, limits.rows),
            (self.usage.parts, base.parts, limits.parts),
            (self.usage.key_bytes, base.key_bytes, limits.key_bytes),
        ];
        let stale = |(now, base, limit): (u64, u64, u64)| {
            now > limit / 8 * 7 && now - base > (limit / 32).max(1)
        };
        let no_room = self.usage != base || self.removes > 0;
        pairs.into_iter().any(stale) || (no_room && !self.room_for_put())
    }

    /// Takes a call in, or refuses it.
    pub(crate) fn admit(&mut self, records: Row<Record>, ticket: T) -> Result<(), (Refusal, T)> {
        let (mut bytes, mut usage, mut removes) = (0, Usage::default(), 0);
        let mut generation = 0;
        for record in &records {
            bytes += record.encoded_len();
            usage += record.usage();
            removes += u64::from(matches!(record, Record::Remove { .. }));
            let BlockId { generation: this, .. } = record.block();
            generation = generation.max(this);
        }
        let frees_only = usage == Usage::default();
        let reserve = if frees_only { 0 } else { self.remove_reserve() };
        let (open_body, grows) = self.join(bytes);
        let refusal = if span_of(bytes) > self.bounds.frame_max {
            let limit = self.bounds.frame_max - crate::frame::FRAME_HEADER;
            Some(Refusal::TooLarge { bytes, limit })
        } else if self.room() < grows + reserve {
            Some(Refusal::RingFull)
        } else if !frees_only && !(self.usage + usage).fits(self.bounds.limits) {
            Some(Refusal::CheckpointFull)
        } else {
            None
        };
        if let Some(refusal) = refusal {
            return Err((refusal, ticket));
        }
        self.usage += usage;
        self.usage_since += usage;
        self.removes += removes;
        self.generation_high = self.generation_high.max(generation);
        (self.open_body, self.waiting_span) = (open_body, self.waiting_span + grows);
        self.waiting.push_back(Waiting { records, bytes, ticket, usage });
        Ok(())
    }

    /// The body of the last waiting frame once `bytes` more have joined it, or have begun a frame
    /// of their own; and the ring bytes that takes.
    fn join(&self, bytes: usize) -> (usize, u64) {
        let joined = self.open_body + bytes;
        if self.waiting.is_empty() || span_of(joined) > self.bounds.frame_max {
            return (bytes, span_of(bytes) as u64);
        }
        (joined, (span_of(joined) - span_of(self.open_body)) as u64)
    }

    /// Decides the next write and takes the calls that ride in it: as many as fit, in order.
    pub(crate) fn next(&mut self) -> Next<T> {
        if self.waiting.is_empty() {
            return Next::Nothing;
        }
        let (mut count, mut body) = (0, 0);
        while let Some(call) = self.waiting.get(count)
            && span_of(body + call.bytes) <= self.bounds.frame_max
        {
            body += call.bytes;
            count += 1;
        }
        assert!(count > 0, "a call that fits no frame is refused");
        let (position, span) = (self.head, span_of(body) as u64);
        let lap_rest = self.bounds.ring_bytes - self.head % self.bounds.ring_bytes;
        if span > lap_rest {
            let sequence = self.advance(lap_rest, 0, Usage::default());
            return Next::Filler { sequence, position, span: lap_rest as usize };
        }
        let calls: Row<Waiting<T>> = self.waiting.drain(..count).collect();
        let usage = calls.iter().fold(Usage::default(), |sum, call| sum + call.usage);
        self.waiting_span -= span;
        assert_eq!(self.waiting.is_empty(), self.waiting_span == 0, "the packing is exact");
        let sequence = self.advance(span, count as u32, usage);
        Next::Frame { sequence, position, body, calls }
    }

    fn advance(&mut self, span: u64, calls: u32, usage: Usage) -> u64 {
        let sequence = self.next_sequence;
        self.in_use.push_back(InUse { position: self.head, calls, usage });
        self.next_sequence += 1;
        self.head += span;
        let used = self.head - self.start;
        assert!(used <= self.bounds.ring_bytes, "no frame passes the start of the checkpoint");
        if calls == 0 {
            self.retire();
        }
        sequence
    }

    /// A call that rode in frame `sequence` is applied, or nobody will apply it.
    pub(crate) fn applied(&mut self, sequence: u64) {
        let first = self.next_sequence - self.in_use.len() as u64;
        let at = sequence.checked_sub(first).expect("a frame is in use until all are applied");
        let frame = &mut self.in_use[at as usize];
        frame.calls = frame.calls.checked_sub(1).expect("each call is applied once");
        self.retire();
    }

    fn retire(&mut self) {
        while self.in_use.front().is_some_and(|frame| frame.calls == 0) {
            self.in_use.pop_front();
        }
    }

    /// Where a checkpoint begun now starts: the oldest frame in use.
    pub(crate) fn begin_checkpoint(&mut self) -> Mark {
        let in_use = self.in_use.iter().map(|frame| frame.usage);
        let waiting = self.waiting.iter().map(|call| call.usage);
        self.usage_since = in_use.chain(waiting).fold(Usage::default(), |sum, each| sum + each);
        Mark {
            sequence: self.next_sequence - self.in_use.len() as u64,
            position: self.in_use.front().map_or(self.head, |frame| frame.position),
        }
    }

    /// The checkpoint begun last is durable; it holds `usage`.
    pub(crate) fn end_checkpoint(&mut self, start: Mark, usage: Usage) {
        assert!(start.position >= self.start && start.position <= self.head);
        self.start = start.position;
        self.usage = usage + self.usage_since;
        self.usage_base = self.usage;
        self.removes = 0;
    }

    /// All calls that wait, given up: the drive failed.
    pub(crate) fn drain(&mut self) -> Vec<Waiting<T>> {
        self.waiting_span = 0;
        self.waiting.drain(..).collect()
    }

    /// Ring bytes from the checkpoint's start to the head.
    pub(crate) fn used(&self) -> u64 {
        self.head - self.start
    }

    pub(crate) fn next_sequence(&self) -> u64 {
        self.next_sequence
    }

    pub(crate) fn usage(&self) -> Usage {
        self.usage
    }

    pub(crate) fn generation_high(&self) -> u64 {
        self.generation_high
    }

    pub(crate) fn raise_generation(&mut self, generation: u64) {
        self.generation_high = self.generation_high.max(generation);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{KeyBytes, UnitRange};
    use proptest::prelude::*;

    const RING: u64 = 128 * 1024;
    const FRAME: usize = 16 * 1024;

    fn log() -> Log<u32> {
        let limits = Usage { rows: 1000, parts: 1000, key_bytes: 100_000 };
        let bounds = Bounds { ring_bytes: RING, frame_max: FRAME, limits };
        Log::new(bounds, CheckpointRef::EMPTY, Mark { sequence: 1, position: 0 }, Usage::default())
    }

    fn put(hash: u128, key_len: usize) -> Record {
        Record::Put {
            block: BlockId { hash, generation: hash as u64 },
            key: KeyBytes::new("", "", &vec![7; key_len]).unwrap(),
            extent: UnitRange { start: 0, count: 1 },
            length: 1,
            crc: 0,
            expires: 0,
            flags: 0,
        }
    }

    fn remove(hash: u128) -> Record {
        Record::Remove { block: BlockId { hash, generation: 1 } }
    }

    fn write_all(log: &mut Log<u32>) -> Vec<(u64, u64, Vec<u32>)> {
        let mut frames = Vec::new();
        loop {
            match log.next() {
                Next::Nothing => return frames,
                Next::Filler { sequence, position, .. } => {
                    frames.push((sequence, position, vec![]))
                }
                Next::Frame { sequence, position, calls, .. } => {
                    frames.push((
                        sequence,
                        position,
                        calls.iter().map(|call| call.ticket).collect(),
                    ));
                }
            }
        }
    }

    #[test]
    fn calls_ride_together_in_order_as_many_as_fit() {
        let mut log = log();
        for ticket in 0..40 {
            log.admit([put(1, 512)].into(), ticket).unwrap();
        }
        let frames = write_all(&mut log);
        let tickets: Vec<u32> = frames.iter().flat_map(|frame| frame.2.clone()).collect();
        assert_eq!(tickets, (0..40).collect::<Vec<_>>());
        assert_eq!(frames.len(), 2, "28 records of 566 bytes fit 16 KiB");
        assert_eq!((frames[0].0, frames[1].0, frames[1].1), (1, 2, 16 * 1024));
    }

    #[test]
    fn puts_stop_before_removes_and_a_checkpoint_makes_room() {
        let mut log = log();
        let mut puts = 0;
        while log.admit([put(1, 10)].into(), 0).is_ok() {
            write_all(&mut log);
            puts += 1;
        }
        assert!(!log.room_for_put() && log.wants_checkpoint());
        assert_eq!(puts, (128 - 16 - 16) / 4, "all but a frame and the reserve of an eighth");
        let mut removes = 0;
        while log.admit([remove(1)].into(), 0).is_ok() {
            write_all(&mut log);
            removes += 1;
        }
        assert_eq!(removes, 16 / 4);
        for sequence in 1..=puts + removes {
            log.applied(sequence);
        }
        let start = log.begin_checkpoint();
        assert_eq!(start, Mark { sequence: puts + removes + 1, position: (puts + removes) * 4096 });
        log.end_checkpoint(start, Usage::default());
        assert!(log.room_for_put() && !log.wants_checkpoint());
    }

    #[test]
    fn columns_without_room_for_a_put_want_a_checkpoint_once_something_was_removed() {
        let limits = Usage { rows: 1000, parts: 1000, key_bytes: 100_000 };
        let bounds = Bounds { ring_bytes: RING, frame_max: FRAME, limits };
        let full = Usage { rows: 990, ..Usage::default() };
        let begin = Mark { sequence: 1, position: 0 };
        let mut log: Log<u32> = Log::new(bounds, CheckpointRef::EMPTY, begin, full);
        assert!(!log.room_for_put() && !log.wants_checkpoint(), "it would tell nothing new");
        log.admit([remove(1)].into(), 0).unwrap();
        assert!(!log.room_for_put() && log.wants_checkpoint());
    }

    #[test]
    fn a_log_with_room_wants_no_checkpoint_until_half_of_its_ring_is_used() {
        let mut log = log();
        let mut frames = 0;
        while !log.wants_checkpoint() {
            assert!(log.room_for_put());
            log.admit([put(1, 10)].into(), 0).unwrap();
            write_all(&mut log);
            frames += 1;
        }
        assert_eq!(frames * 4096, RING / 2);
    }

    #[test]
    fn what_only_waits_counts_as_used() {
        let mut log = log();
        while log.waiting_span < RING / 2 {
            assert!(!log.wants_checkpoint(), "{} bytes wait", log.waiting_span);
            log.admit([put(1, 500)].into(), 0).unwrap();
        }
        assert!(log.wants_checkpoint());
        assert_eq!((log.head, log.start), (0, 0), "nothing was written");
    }

    #[test]
    fn a_put_begins_only_where_a_sixteenth_of_each_column_is_left() {
        let room = |usage| {
            let mut log = log();
            log.usage = usage;
            log.room_for_put()
        };
        let most = Usage { rows: 937, parts: 937, key_bytes: 93_749 };
        assert!(room(most));
        assert!(!room(Usage { rows: 938, ..most }));
        assert!(!room(Usage { parts: 938, ..most }));
        assert!(!room(Usage { key_bytes: 93_750, ..most }));
    }

    #[test]
    fn columns_that_look_full_want_a_checkpoint_when_it_could_tell_more() {
        let wants = |now, base| {
            let mut log = log();
            (log.usage, log.usage_base) = (now, base);
            log.wants_checkpoint()
        };
        let rows = |rows| Usage { rows, ..Usage::default() };
        let parts = |parts| Usage { parts, ..Usage::default() };
        let key_bytes = |key_bytes| Usage { key_bytes, ..Usage::default() };
        // Of 1,000 rows more than 875, and more than 31 since the last checkpoint.
        assert!(wants(rows(876), rows(844)));
        assert!(wants(rows(876), rows(0)));
        assert!(!wants(rows(876), rows(845)));
        assert!(!wants(rows(875), rows(0)));
        assert!(wants(parts(876), parts(844)) && !wants(parts(875), parts(0)));
        assert!(wants(key_bytes(87_501), key_bytes(0)));
        assert!(!wants(key_bytes(87_500), key_bytes(0)));
    }

    #[test]
    fn a_checkpoint_starts_at_the_oldest_frame_not_applied() {
        let mut log = log();
        for ticket in 0..3 {
            log.admit([put(1, 10)].into(), ticket).unwrap();
            write_all(&mut log);
        }
        log.applied(3);
        log.applied(1);
        assert_eq!(log.begin_checkpoint(), Mark { sequence: 2, position: 4096 });
        log.applied(2);
        assert_eq!(log.begin_checkpoint(), Mark { sequence: 4, position: 3 * 4096 });
    }

    #[test]
    fn what_a_checkpoint_may_lack_still_counts_after_it() {
        let mut log = log();
        log.admit([put(1, 98)].into(), 0).unwrap();
        write_all(&mut log);
        log.admit([put(2, 98)].into(), 1).unwrap();
        let start = log.begin_checkpoint();
        log.admit([put(3, 98)].into(), 2).unwrap();
        log.end_checkpoint(start, Usage { rows: 10, parts: 0, key_bytes: 1000 });
        assert_eq!(log.usage(), Usage { rows: 13, parts: 0, key_bytes: 1300 });
    }

    #[test]
    fn full_columns_refuse_puts_and_a_checkpoint_tells_the_truth() {
        let mut log = log();
        let mut count = 0;
        while log.admit((0..10).map(|hash| put(hash, 512)).collect(), 0).is_ok() {
            for (sequence, _, calls) in write_all(&mut log) {
                calls.iter().for_each(|_| log.applied(sequence));
            }
            let used = log.used();
            if used > RING / 2 {
                let start = log.begin_checkpoint();
                log.end_checkpoint(start, log.usage());
            }
            count += 10;
        }
        assert_eq!(count, 190, "194 keys of 514 bytes fill 100 kB");
        assert!(!log.room_for_put());
        log.admit([remove(3)].into(), 0).unwrap();
        assert!(log.wants_checkpoint(), "something was removed: a checkpoint may make room");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn whatever_is_admitted_is_written_in_order_and_never_over_the_start(
            steps in prop::collection::vec((0u8..8, 1usize..30, 1usize..512), 1..300),
        ) {
            let mut log = log();
            let mut last = (0, 0);
            let mut open: Vec<u64> = Vec::new();
            for (what, count, key_len) in steps {
                match what {
                    0..4 => drop(log.admit((0..count).map(|_| put(1, key_len)).collect(), 0)),
                    4 => drop(log.admit((0..count).map(|hash| remove(hash as u128)).collect(), 0)),
                    5 => for (sequence, position, calls) in write_all(&mut log) {
                        prop_assert_eq!(sequence, last.0 + 1);
                        prop_assert!(position >= last.1);
                        last = (sequence, position);
                        open.extend(calls.iter().map(|_| sequence));
                    },
                    6 => for _ in 0..count.min(open.len()) {
                        log.applied(open.swap_remove(key_len % open.len()));
                    },
                    _ => {
                        let start = log.begin_checkpoint();
                        let oldest = open.iter().min().copied().unwrap_or(last.0 + 1);
                        prop_assert!(start.sequence <= oldest);
                        log.end_checkpoint(start, Usage::default());
                    }
                }
                prop_assert!(log.used() <= RING);
            }
        }
    }
}
