//! Telling the drive which units hold nothing any more.
//!
//! A drive that knows which of its sectors are empty wears less and stays fast. What is freed is
//! kept as ranges, joined with their neighbours, and given to the device a while later: many frees
//! then are few commands, and units that are taken again in the meantime are never sent at all.
//!
//! ```text
//! release ─► pending ranges ──(every interval, or enough extents)──► deallocate ─► free again
//!                 │                                                      │
//! allocate ◄──────┘ a unit leaves the ranges before it is given out      └─ withheld: nobody can
//!                                                                           allocate it
//! ```
//!
//! Two rules make it safe. A unit is pending only while it is free, so no command ever names a unit
//! that somebody has. And a range whose command is on its way counts as taken in the allocator, so
//! nobody gets it before the device has answered. Whoever [releases](Journal::release) units has
//! made the removal of their block durable before.
//!
//! Nothing here is promised: what is pending when the journal is stopped is dropped, and an error
//! costs one range. A device that cannot do it is asked once. The [`Trimmer`] is a poller: a pass
//! without news costs it a look at two flags.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use memkv_block::{Completion, Done, Io, IoError};
use memkv_poller::{Instant, Interrupt, Local, Poller, Progress, Remote, Sleep};

use crate::ids::{UNIT, UnitRange};
use crate::journal::{Journal, Shared};

/// Units of one command at most: 16 MiB, so that little is withheld from allocation at a time.
const RANGE_UNITS: u32 = 1024;
/// Commands on their way at a time.
const IN_FLIGHT: usize = 4;
/// Ranges remembered at most, about 2 MiB; what is freed beyond them is not trimmed.
const RANGES_MAX: usize = 65_536;

/// When what was freed is given to the device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TrimConfig {
    /// At the latest so long after it was freed.
    pub interval: Duration,
    /// At once when so many freed extents wait.
    pub extents: u32,
}

impl Default for TrimConfig {
    /// Every 5 s or 1,024 extents.
    fn default() -> TrimConfig {
        TrimConfig { interval: Duration::from_secs(5), extents: 1024 }
    }
}

/// What was trimmed since the journal was opened, and what waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TrimStats {
    /// Whether the drive is trimmed: it was asked for, and the device can.
    pub on: bool,
    /// Extents that were freed while it was on.
    pub extents_freed: u64,
    /// Commands given to the device.
    pub ranges: u64,
    /// Freed extents in the ranges that the device has given up; by `ranges` it is what joining
    /// neighbours saved. Of an extent that was taken again in part, the parts count one each.
    pub extents_trimmed: u64,
    /// Units in them.
    pub units_trimmed: u64,
    /// Units that were taken again before they were trimmed.
    pub units_reused: u64,
    /// Commands that failed.
    pub ranges_failed: u64,
    /// Units that were pending when trimming stopped, or for which there was no place.
    pub units_dropped: u64,
    /// Units that wait now.
    pub units_pending: u64,
    /// Units whose command is on its way: free, but nobody can allocate them.
    pub units_in_flight: u64,
}

/// A run of pending units.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Span {
    len: u32,
    /// Freed extents in it.
    extents: u32,
}

impl Span {
    /// A part of it, with its share of the extents.
    fn part(self, len: u32) -> Span {
        let share = u64::from(self.extents) * u64::from(len) / u64::from(self.len);
        Span { len, extents: (share as u32).max(1) }
    }
}

/// Ranges of free units, joined with their neighbours. No two touch.
#[derive(Default, Debug)]
struct Pending {
    spans: BTreeMap<u32, Span>,
    extents: u64,
    units: u64,
}

impl Pending {
    fn put(&mut self, start: u32, span: Span) {
        self.extents += u64::from(span.extents);
        self.units += u64::from(span.len);
        let before = self.spans.insert(start, span);
        assert!(before.is_none(), "no two ranges begin at one unit");
    }

    fn take(&mut self, start: u32) -> Span {
        let span = self.spans.remove(&start).expect("the range was just found");
        self.extents -= u64::from(span.extents);
        self.units -= u64::from(span.len);
        span
    }

    /// Adds a freed extent; false when there is no place for one more range.
    ///
    /// # Panics
    /// When one of its units is pending already: it would have been free before it was freed.
    fn add(&mut self, range: UnitRange) -> bool {
        let (mut start, mut span) = (range.start, Span { len: range.count.into(), extents: 1 });
        let end = range.end();
        let below = self.spans.range(..=start).next_back().map(|(at, span)| (*at, span.len));
        let above = self.spans.range(start..).next().map(|(at, _)| *at);
        if let Some((at, len)) = below {
            let below_end = u64::from(at) + u64::from(len);
            assert!(below_end <= u64::from(start), "{range:?} is pending already, in part");
            if below_end == u64::from(start) {
                let joined = self.take(at);
                start = at;
                span = Span { len: span.len + joined.len, extents: span.extents + joined.extents };
            }
        }
        if let Some(at) = above {
            assert!(u64::from(at) >= end, "{range:?} is pending already, in part");
            if u64::from(at) == end {
                let joined = self.take(at);
                span = Span { len: span.len + joined.len, extents: span.extents + joined.extents };
            }
        }
        let fits = self.spans.len() < RANGES_MAX;
        if fits {
            self.put(start, span);
        }
        fits
    }

    /// Takes units out, wherever they are pending; says how many were.
    fn remove(&mut self, range: UnitRange) -> u64 {
        let (start, end) = (u64::from(range.start), range.end());
        // No drive has a unit of the number `u32::MAX`.
        let before = self.units;
        while let Some((&at, &span)) = self.spans.range(..end as u32).next_back() {
            let (from, to) = (u64::from(at), u64::from(at) + u64::from(span.len));
            if to <= start {
                break;
            }
            self.take(at);
            if to > end {
                self.put(end as u32, span.part((to - end) as u32));
            }
            if from < start {
                self.put(at, span.part((start - from) as u32));
                break;
            }
        }
        before - self.units
    }

    /// The first range at or above a unit, cut to the length of one command.
    fn pop(&mut self, from: u64) -> Option<(UnitRange, u32)> {
        let from = u32::try_from(from).ok()?;
        let at = *self.spans.range(from..).next()?.0;
        let span = self.take(at);
        let taken = span.part(span.len.min(RANGE_UNITS));
        if taken.len < span.len {
            self.put(at + taken.len, span.part(span.len - taken.len));
        }
        Some((UnitRange { start: at, count: taken.len as u16 }, taken.extents))
    }
}

/// What of a drive waits to be trimmed.
#[derive(Default, Debug)]
pub(crate) struct Trim {
    /// `None` while it is off.
    config: Option<TrimConfig>,
    pending: Pending,
    /// When the first was freed that no round has begun for.
    since: Option<Instant>,
    /// The round under way: it goes up the drive once, and what is freed behind it waits.
    round: Option<u64>,
    /// The poller has something to look at.
    look: bool,
    stats: TrimStats,
}

impl Trim {
    /// Units were given out: nobody tells the device that they are empty.
    pub fn allocated(&mut self, range: UnitRange) {
        if self.pending.units > 0 {
            self.stats.units_reused += self.pending.remove(range);
        }
    }

    /// Units became free.
    pub fn freed(&mut self, range: UnitRange, local: &Local) {
        let Some(config) = self.config else { return };
        self.stats.extents_freed += 1;
        if !self.pending.add(range) {
            self.stats.units_dropped += u64::from(range.count);
            return;
        }
        if self.since.is_none() {
            self.since = Some(local.now());
            self.look = true;
        }
        self.look |= self.pending.extents >= u64::from(config.extents);
    }

    /// Units that are free but withheld.
    pub fn in_flight(&self) -> u32 {
        self.stats.units_in_flight as u32
    }

    fn stop(&mut self) {
        self.config = None;
        self.stats.units_dropped += self.pending.units;
        self.pending = Pending::default();
        (self.since, self.round) = (None, None);
    }

    /// When the next round begins, if nothing else happens.
    fn due(&self) -> Option<Instant> {
        let config = self.config?;
        self.since.filter(|_| self.round.is_none()).map(|since| since + config.interval)
    }

    /// The next range for the device, if its time has come.
    fn next(&mut self, now: Instant) -> Option<(UnitRange, u32)> {
        let config = self.config?;
        loop {
            if let Some(from) = self.round {
                if let Some((range, extents)) = self.pending.pop(from) {
                    self.round = Some(range.end());
                    self.stats.ranges += 1;
                    self.stats.units_in_flight += u64::from(range.count);
                    return Some((range, extents));
                }
                self.round = None;
            }
            let old = self.since.is_some_and(|since| now >= since + config.interval);
            if !old && self.pending.extents < u64::from(config.extents.max(1)) {
                return None;
            }
            (self.since, self.round) = (None, Some(0));
        }
    }

    fn done(&mut self, range: UnitRange, extents: u32, result: &Result<(), IoError>) {
        self.stats.units_in_flight -= u64::from(range.count);
        match result {
            Ok(()) => {
                self.stats.extents_trimmed += u64::from(extents);
                self.stats.units_trimmed += u64::from(range.count);
            }
            Err(_) => self.stats.ranges_failed += 1,
        }
    }
}

impl Journal {
    /// Trims what is freed from now on, by a poller on this reactor.
    ///
    /// # Panics
    /// When it is trimmed already.
    pub fn start_trim(&self, config: TrimConfig) {
        let before = self.shared.trim.borrow_mut().config.replace(config);
        assert!(before.is_none(), "one trimmer a drive");
        let local = &self.shared.local;
        let bell = Arc::new(Bell { rung: AtomicBool::new(true), remote: local.remote() });
        let (shared, local) = (Rc::downgrade(&self.shared), local.clone());
        let commands = Vec::with_capacity(IN_FLIGHT);
        local.clone().add_poller(Box::new(Trimmer { shared, local, bell, timer: None, commands }));
    }

    /// Gives nothing more to the device, and forgets what waits.
    pub fn stop_trim(&self) {
        self.shared.trim.borrow_mut().stop();
    }

    /// Waits until the device has answered every command. After [`Journal::stop_trim`] none
    /// follows.
    pub async fn trim_settled(&self) {
        while self.shared.trim.borrow().in_flight() > 0 {
            self.shared.trimmed.listen().await;
        }
    }

    /// Counters and levels.
    pub fn trim_stats(&self) -> TrimStats {
        let trim = self.shared.trim.borrow();
        let (on, units_pending) = (trim.config.is_some(), trim.pending.units);
        TrimStats { on, units_pending, ..trim.stats }
    }
}

/// Wakes the reactor for the trimmer, from whatever thread a command ends on.
struct Bell {
    rung: AtomicBool,
    remote: Remote,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.rung.store(true, Ordering::Release);
        self.remote.wake();
    }
}

/// A command on its way.
struct Command {
    range: UnitRange,
    extents: u32,
    completion: Completion,
}

/// The poller of one drive: gives ranges to the device and takes its answers, at most as many at a
/// time as may be on their way.
struct Trimmer {
    /// The journal may be closed before the reactor ends.
    shared: Weak<Shared>,
    local: Local,
    bell: Arc<Bell>,
    /// Rings when the next round is due.
    timer: Option<Sleep>,
    commands: Vec<Command>,
}

impl Trimmer {
    /// Takes what the device has answered.
    fn collect(&mut self, shared: &Shared, cx: &mut Context<'_>) -> u32 {
        let mut count = 0;
        self.commands.retain_mut(|command| {
            let Poll::Ready(done) = Pin::new(&mut command.completion).poll(cx) else { return true };
            finish(shared, command, done);
            count += 1;
            false
        });
        count
    }

    /// Gives the device what is due.
    fn issue(&mut self, shared: &Shared, cx: &mut Context<'_>) -> u32 {
        let now = self.local.now();
        let mut count = 0;
        while self.commands.len() < IN_FLIGHT && count < IN_FLIGHT as u32 {
            let next = shared.trim.borrow_mut().next(now);
            let Some((range, extents)) = next else { break };
            // Withheld before the command exists, given back after it has ended.
            shared.allocator.borrow_mut().withhold(range);
            let offset = shared.layout.data_offset + u64::from(range.start) * UNIT as u64;
            let len = u64::from(range.count) * UNIT as u64;
            let completion = shared.queue.submit(Io::deallocate(offset, len));
            self.commands.push(Command { range, extents, completion });
            // A device may have answered at once; else it now knows whom to wake.
            count += 1 + self.collect(shared, cx);
        }
        count
    }

    fn set_timer(&mut self, shared: &Shared, cx: &mut Context<'_>) {
        let trim = shared.trim.borrow();
        self.timer = trim.due().map(|at| self.local.sleep_until(at));
        let due = self.timer.as_mut().is_some_and(|timer| Pin::new(timer).poll(cx).is_ready());
        // Nor does anybody else ring for what is left of a round when the device answers at once.
        let more = trim.round.is_some() && self.commands.len() < IN_FLIGHT;
        if due || more {
            self.bell.rung.store(true, Ordering::Release);
        }
    }
}

/// Gives a range back to the allocator: the device has answered.
fn finish(shared: &Shared, command: &Command, done: Done) {
    let Command { range, extents, .. } = *command;
    shared.allocator.borrow_mut().release(range);
    let mut trim = shared.trim.borrow_mut();
    trim.done(range, extents, &done.result);
    let (drive, failures) = (shared.drive, trim.stats.ranges_failed);
    match done.result {
        Ok(()) => {}
        Err(IoError::Unsupported { .. }) => {
            if trim.config.is_some() {
                tracing::info!(%drive, "the device cannot deallocate: not trimmed");
            }
            trim.stop();
        }
        Err(error @ (IoError::Offline | IoError::Stalled(_))) => {
            trim.stop();
            drop(trim);
            shared.fail(error);
        }
        Err(error) if failures == 1 => {
            tracing::warn!(%drive, %error, "a range could not be trimmed; later ones are counted");
        }
        Err(_) => {}
    }
    shared.trimmed.notify_all();
}

impl Poller for Trimmer {
    fn name(&self) -> &'static str {
        "trim"
    }

    fn poll(&mut self) -> Progress {
        let Some(shared) = self.shared.upgrade() else { return Progress::Idle };
        let rung = self.bell.rung.swap(false, Ordering::Acquire);
        if !std::mem::take(&mut shared.trim.borrow_mut().look) && !rung {
            return Progress::Idle;
        }
        let waker = Waker::from(Arc::clone(&self.bell));
        let cx = &mut Context::from_waker(&waker);
        if shared.failure.borrow().is_some() {
            shared.trim.borrow_mut().stop();
        }
        let work = self.collect(&shared, cx) + self.issue(&shared, cx);
        self.set_timer(&shared, cx);
        Progress::of(work)
    }

    fn arm(&mut self) -> Interrupt {
        // The bell rings the reactor's own.
        Interrupt::Quiet
    }

    fn retired(&self) -> bool {
        let Some(shared) = self.shared.upgrade() else { return true };
        self.commands.is_empty() && shared.trim.borrow().config.is_none()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// Runs of neighbours in a plain set of units.
    fn runs(units: &BTreeSet<u32>) -> Vec<(u32, u32)> {
        let mut runs: Vec<(u32, u32)> = Vec::new();
        for &unit in units {
            match runs.last_mut() {
                Some((start, len)) if *start + *len == unit => *len += 1,
                _ => runs.push((unit, 1)),
            }
        }
        runs
    }

    fn check(pending: &Pending, model: &BTreeSet<u32>, extents: u64) {
        let spans: Vec<(u32, u32)> = pending.spans.iter().map(|(at, s)| (*at, s.len)).collect();
        assert_eq!(spans, runs(model), "as few ranges as there can be");
        assert_eq!(pending.units, model.len() as u64);
        let sum: u64 = pending.spans.values().map(|span| u64::from(span.extents)).sum();
        assert_eq!(pending.extents, sum);
        assert!(pending.spans.values().all(|span| (1..=span.len).contains(&span.extents)));
        assert!(pending.extents <= extents.max(model.len() as u64), "no extent is invented");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn pending_ranges_are_a_set_of_units(
            steps in prop::collection::vec((0u8..8, 0u32..3_000, 1u16..=256), 1..300),
        ) {
            let (mut pending, mut model) = (Pending::default(), BTreeSet::new());
            let mut extents = 0;
            for (what, start, count) in steps {
                let range = UnitRange { start, count };
                let units = || start..start + u32::from(count);
                match what {
                    0..4 => if units().all(|unit| !model.contains(&unit)) {
                        prop_assert!(pending.add(range));
                        model.extend(units());
                        extents += 1;
                    },
                    4..6 => {
                        let gone = units().filter(|unit| model.remove(unit)).count() as u64;
                        prop_assert_eq!(pending.remove(range), gone);
                    }
                    _ => {
                        // The first range that begins at or above the unit, or none.
                        let all = runs(&model);
                        let first = all.into_iter().find(|(at, _)| *at >= start);
                        let popped = pending.pop(start.into()).map(|(range, _)| range);
                        let expected = first.map(|(at, len)| (at, len.min(RANGE_UNITS) as u16));
                        prop_assert_eq!(popped.map(|r| (r.start, r.count)), expected);
                        if let Some(range) = popped {
                            for unit in range.start..range.end() as u32 {
                                prop_assert!(model.remove(&unit));
                            }
                        }
                    }
                }
                check(&pending, &model, extents);
            }
        }
    }

    #[test]
    fn a_long_range_goes_in_pieces_with_its_extents() {
        let mut pending = Pending::default();
        for n in (0..10).rev() {
            assert!(pending.add(UnitRange { start: n * 256, count: 256 }));
        }
        assert_eq!((pending.spans.len(), pending.extents, pending.units), (1, 10, 2560));
        let mut pieces = Vec::new();
        while let Some((range, extents)) = pending.pop(0) {
            pieces.push((range.start, range.count, extents));
        }
        assert_eq!(pieces, [(0, 1024, 4), (1024, 1024, 4), (2048, 512, 2)]);
    }

    #[test]
    #[should_panic(expected = "pending already")]
    fn what_is_pending_is_not_freed_again() {
        let mut pending = Pending::default();
        pending.add(UnitRange { start: 10, count: 4 });
        pending.add(UnitRange { start: 8, count: 3 });
    }

    #[test]
    fn beyond_the_last_place_only_neighbours_are_taken() {
        let mut pending = Pending::default();
        for n in 0..RANGES_MAX as u32 {
            assert!(pending.add(UnitRange { start: n * 4, count: 1 }));
        }
        assert!(!pending.add(UnitRange { start: 2 + RANGES_MAX as u32 * 4, count: 1 }));
        assert!(pending.add(UnitRange { start: 1, count: 3 }));
        assert_eq!(pending.spans.len(), RANGES_MAX - 1);
        assert_eq!(pending.units, RANGES_MAX as u64 + 3);
    }
}
