//! A block device in memory whose every delay and failure is drawn from a seed.
//!
//! A command is *submitted* (checked, shown to the observer, given its delay and its fate) and later
//! *delivered*: [`SimDisk::deliver`] carries out what is due by now and completes it. Nothing happens in
//! between, so whoever owns the clock decides when the disk works. Commands complete in the order of
//! their due times, and ties are broken by the seed: as with NVMe, submission order means nothing.
//!
//! What a write leaves behind when the machine stops is told by [`CrashKind`]. After a crash the queues
//! that were open are dead: they take commands and never complete them, as a drive does whose host is
//! gone. The content stays, and new queues can be opened on it.
//!
//! The disk also checks its user. No two commands that are on their way at the same time may touch the
//! same sector unless both read it; that is the house's rule that no unit is reused while a command
//! names it, and breaking it is a [`Violation`].

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use memkv_block::{
    BlockDevice, BlockQueue, Completer, Completion, Done, Geometry, Io, IoBuf, IoError, Kind, Op,
    completion,
};
use memkv_poller::{Clock, Instant, Local, Rng};

use crate::clock::SimClock;
use crate::medium::{Cut, Medium, PAGE};
use crate::options::{DiskOptions, Latency};
use crate::record::{Damage, DiskEvent, FaultCounts, FaultKind, FaultRates, Harm};

/// The longest delay of a command in microseconds, slow or not.
const SLOWEST: u64 = 5_000_000;

/// How the machine stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CrashKind {
    /// The process dies. The drive goes on: what was written stays written, flushed or not; each write
    /// on its way is carried out, dropped or torn.
    Kill,
    /// The power goes: beyond what a kill does, written sectors that were not flushed are kept, lost or
    /// torn, each page for itself.
    PowerCut,
}

/// Two commands that were on their way at the same time and touched the same sector, one as a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The command that was there first: what, first byte, bytes.
    pub first: (Op, u64, u64),
    /// The command that came on top of it.
    pub second: (Op, u64, u64),
}

/// What will become of a command, drawn when it is submitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lot {
    Fine,
    ReadError { sticky: bool },
    WriteError,
    Lost,
    Misdirected { to: u64 },
}

struct Slot {
    op: Op,
    offset: u64,
    len: u64,
    lot: Lot,
    queue: u32,
    flush_mark: u32,
    /// Of a write that a flush belongs to: it is written, and the flush is on its way.
    written: bool,
    io: Option<Io>,
    completer: Option<Completer>,
}

impl Slot {
    /// What of its command is on its way: of a write with a flush first the one, then the other.
    fn phase(&self) -> Op {
        match self.op {
            Op::WriteFlush if self.written => Op::Flush,
            Op::WriteFlush => Op::Write,
            op => op,
        }
    }
}

type Observer = Box<dyn FnMut(DiskEvent<'_>) + Send>;

struct State {
    geometry: Geometry,
    latency: Latency,
    bytes_per_second: u64,
    /// When all bytes of the commands so far are moved.
    moved: Instant,
    rates: FaultRates,
    /// Where faults may happen; empty means anywhere.
    zones: Vec<std::ops::Range<u64>>,
    clock: SimClock,
    rng: Rng,
    medium: Medium,
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// (due, tie-breaker, slot).
    due: BinaryHeap<Reverse<(Instant, u32, u32)>>,
    /// Commands on their way, per queue; a crash starts a new life with no queues.
    queues: Vec<u32>,
    life: u32,
    off: bool,
    dead: bool,
    /// Nothing is done any more until the next crash.
    stalled: bool,
    /// Sectors that fail to read until they are written: first byte and bytes.
    bad: Vec<(u64, u64)>,
    damage: Damage,
    counts: FaultCounts,
    violations: Vec<Violation>,
    observer: Option<Observer>,
}

/// A simulated drive. Clones are the same drive.
#[derive(Clone)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
    name: Arc<str>,
    geometry: Geometry,
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SimDisk {
    /// A disk full of zeros.
    ///
    /// # Panics
    /// If the capacity is not a multiple of 16 KiB or the sector is neither 512 nor 4096 bytes.
    pub fn new(options: DiskOptions, clock: SimClock) -> SimDisk {
        assert!(options.capacity > 0 && options.capacity.is_multiple_of(PAGE as u64));
        assert!(matches!(options.sector, 512 | 4096));
        let mut rng = Rng::seeded(options.seed);
        let geometry = Geometry {
            capacity: options.capacity,
            sector: options.sector,
            max_transfer: options.max_transfer,
        };
        let medium =
            Medium::new(options.capacity, options.sector, options.pages.clone(), rng.fork());
        let state = State {
            geometry,
            latency: options.latency,
            bytes_per_second: options.bytes_per_second,
            moved: Instant::ORIGIN,
            rates: options.rates,
            zones: Vec::new(),
            clock,
            rng,
            medium,
            slots: Vec::new(),
            free: Vec::new(),
            due: BinaryHeap::new(),
            queues: Vec::new(),
            life: 0,
            off: false,
            dead: false,
            stalled: false,
            bad: Vec::new(),
            damage: Damage::default(),
            counts: FaultCounts::default(),
            violations: Vec::new(),
            observer: None,
        };
        SimDisk { state: Arc::new(Mutex::new(state)), name: options.name.into(), geometry }
    }

    /// Tells `observer` of every submission and every harm from now on. It is called with the disk
    /// locked and must not call the disk.
    pub fn observe(&self, observer: impl FnMut(DiskEvent<'_>) + Send + 'static) {
        lock(&self.state).observer = Some(Box::new(observer));
    }

    /// Changes how often faults happen.
    pub fn set_rates(&self, rates: FaultRates) {
        lock(&self.state).rates = rates;
    }

    /// Limits faults to commands that lie wholly inside one of `zones` (byte ranges); empty means
    /// anywhere.
    pub fn set_fault_zones(&self, zones: Vec<std::ops::Range<u64>>) {
        lock(&self.state).zones = zones;
    }

    /// How often each fault has happened.
    pub fn counts(&self) -> FaultCounts {
        lock(&self.state).counts
    }

    /// The first harm in the range that nobody has overwritten since.
    pub fn harm(&self, offset: u64, len: u64) -> Option<Harm> {
        let state = lock(&self.state);
        if state.dead {
            return Some(Harm { kind: FaultKind::Dead, offset: 0, len: state.geometry.capacity });
        }
        state.damage.find(offset, len)
    }

    /// Broken rules so far; asking takes them.
    pub fn take_violations(&self) -> Vec<Violation> {
        std::mem::take(&mut lock(&self.state).violations)
    }

    /// Shows each command that is on its way: what, first byte, bytes. A write with a flush is a write
    /// until it is written, and then a flush.
    pub fn for_each_outstanding(&self, mut show: impl FnMut(Op, u64, u64)) {
        for slot in &lock(&self.state).slots {
            if slot.io.is_some() {
                show(slot.phase(), slot.offset, slot.len);
            }
        }
    }

    /// Reads stored bytes past all queues, delays and faults.
    pub fn peek(&self, offset: u64, into: &mut [u8]) {
        lock(&self.state).medium.read(offset, into);
    }

    /// How many 16 KiB pages hold bytes.
    pub fn stored_pages(&self) -> usize {
        lock(&self.state).medium.stored_pages()
    }

    /// Lets one bit of a stored sector rot: at `offset`, or anywhere that a fault may happen.
    pub fn rot(&self, offset: Option<u64>) {
        lock(&self.state).rot(offset);
    }

    /// The disk dies now: every command, also those on their way, fails as offline.
    pub fn die(&self) {
        lock(&self.state).die();
    }

    /// True once the disk has died.
    pub fn is_dead(&self) -> bool {
        lock(&self.state).dead
    }

    /// The disk stops answering now: commands on their way, and later ones, are done neither now nor
    /// later, until [`SimDisk::crash`].
    pub fn stall(&self) {
        lock(&self.state).stall();
    }

    /// The host is gone: queues take commands but never complete them. First half of a crash; drop the
    /// reactors next, then call [`SimDisk::crash`].
    pub fn power_off(&self) {
        let mut state = lock(&self.state);
        state.off = true;
    }

    /// Decides what the crash leaves on the disk, and starts its next life: open queues are dead, the
    /// content can be opened anew. Returns (writes on their way, pages that lost something).
    pub fn crash(&self, kind: CrashKind) -> (u64, u64) {
        let (slots, result) = lock(&self.state).crash(kind);
        // Dropped without the lock: a buffer's drop may wake somebody who waits for memory.
        drop(slots);
        result
    }

    /// When the next command is due.
    pub fn next_due(&self) -> Option<Instant> {
        let state = lock(&self.state);
        state.due.peek().filter(|_| !state.stalled).map(|Reverse((at, _, _))| *at)
    }

    /// Carries out and completes what is due by now, at most `limit` commands; returns how many.
    pub fn deliver(&self, limit: usize) -> usize {
        let mut delivered = 0;
        while delivered < limit {
            let Some((completer, done)) = lock(&self.state).finish_next() else { break };
            // Completed without the lock: the waker may run code of the reactor.
            completer.complete(done);
            delivered += 1;
        }
        delivered
    }

    fn submit(&self, queue: u32, life: u32, io: Io) -> Completion {
        let (completer, completion) = completion();
        let refused = lock(&self.state).accept(queue, life, io, completer);
        if let Some((completer, done)) = refused {
            completer.complete(done);
        }
        completion
    }
}

impl State {
    /// Takes a command; hands back what is refused at once.
    fn accept(
        &mut self,
        queue: u32,
        life: u32,
        io: Io,
        completer: Completer,
    ) -> Option<(Completer, Done)> {
        if self.off || life != self.life {
            self.park(io, completer);
            return None;
        }
        if let Err(error) = self.geometry.check(&io) {
            return Some((completer, Done { result: Err(error), buf: io.buf }));
        }
        let (op, offset, len) = (io.op, io.offset, io.len);
        // What is written with a flush is no part of it: the flush covers what had completed before.
        let flushes = matches!(op, Op::Flush | Op::WriteFlush);
        let flush_mark = if flushes { self.medium.begin_flush() } else { 0 };
        self.tell_submitted(&io, flush_mark);
        self.check_overlap(op, offset, len);
        let (lot, slow) = self.draw_lot(op, offset, len);
        let first = if op.writes() { Op::Write } else { op };
        let delay = self.draw_delay(first, slow);
        let slot = Slot {
            op,
            offset,
            len,
            lot,
            queue,
            flush_mark,
            written: false,
            io: Some(io),
            completer: Some(completer),
        };
        let index = self.place(slot);
        self.queues[queue as usize] += 1;
        let at = self.bytes_moved(first, len) + delay;
        self.due.push(Reverse((at, self.rng.next_u64() as u32, index)));
        None
    }

    /// Tells the observer of a command; of a write with a flush, of both.
    fn tell_submitted(&mut self, io: &Io, flush_mark: u32) {
        let Some(observer) = &mut self.observer else { return };
        let flush = (Op::Flush, u64::from(flush_mark));
        let (op, offset) = match io.op {
            Op::Flush => flush,
            Op::WriteFlush => (Op::Write, io.offset),
            op => (op, io.offset),
        };
        let data = if io.op.writes() { bytes_of(io) } else { &[] };
        observer(DiskEvent::Submitted { op, offset, data });
        if io.op == Op::WriteFlush {
            observer(DiskEvent::Submitted { op: flush.0, offset: flush.1, data: &[] });
        }
    }

    /// When the bytes of a command that comes now are moved.
    fn bytes_moved(&mut self, op: Op, len: u64) -> Instant {
        let now = self.clock.now();
        if self.bytes_per_second == 0 || !matches!(op, Op::Read | Op::Write) {
            return now;
        }
        let nanos = len * 1_000_000_000 / self.bytes_per_second;
        self.moved = self.moved.max(now) + Duration::from_nanos(nanos);
        self.moved
    }

    /// Keeps a command of a dead queue until the next crash or the end, so that nothing completes.
    fn park(&mut self, io: Io, completer: Completer) {
        let (op, offset, len) = (Op::Read, 0, 0);
        let (lot, queue, flush_mark, written) = (Lot::Fine, u32::MAX, 0, false);
        let (io, completer) = (Some(io), Some(completer));
        self.place(Slot { op, offset, len, lot, queue, flush_mark, written, io, completer });
    }

    fn place(&mut self, slot: Slot) -> u32 {
        if let Some(index) = self.free.pop() {
            self.slots[index as usize] = slot;
            return index;
        }
        self.slots.push(slot);
        (self.slots.len() - 1) as u32
    }

    fn check_overlap(&mut self, op: Op, offset: u64, len: u64) {
        let changes = |op: Op| op.writes() || op == Op::Deallocate;
        for slot in &self.slots {
            let meets = slot.io.is_some()
                && slot.offset < offset + len
                && offset < slot.offset + slot.len
                && (changes(op) || changes(slot.op));
            if meets {
                let first = (slot.op, slot.offset, slot.len);
                self.violations.push(Violation { first, second: (op, offset, len) });
            }
        }
    }

    fn may_fail(&self, offset: u64, len: u64) -> bool {
        self.zones.is_empty()
            || self.zones.iter().any(|zone| zone.start <= offset && offset + len <= zone.end)
    }

    /// Draws what becomes of a command, and whether it is slow.
    fn draw_lot(&mut self, op: Op, offset: u64, len: u64) -> (Lot, bool) {
        let rates = self.rates;
        if rates == FaultRates::default() || !self.may_fail(offset, len) {
            return (Lot::Fine, false);
        }
        const MILLION: u64 = 1_000_000;
        if self.rng.below(MILLION) < u64::from(rates.dead) {
            self.die();
        }
        if self.rng.below(MILLION) < u64::from(rates.stall) {
            self.stall();
        }
        if self.rng.below(MILLION) < u64::from(rates.bit_flip) {
            self.rot(None);
        }
        let slow = self.rng.below(MILLION) < u64::from(rates.slow);
        if slow {
            self.counts.add(FaultKind::Slow, 1);
        }
        let draw = self.rng.below(MILLION) as u32;
        let lot = match op {
            Op::Read if draw < rates.read_error => {
                Lot::ReadError { sticky: self.rng.below(2) == 0 }
            }
            _ if !op.writes() => Lot::Fine,
            _ if draw < rates.write_error => Lot::WriteError,
            _ if draw < rates.write_error + rates.lost => Lot::Lost,
            _ if draw < rates.write_error + rates.lost + rates.misdirected => {
                self.misdirect(offset, len).map_or(Lot::Fine, |to| Lot::Misdirected { to })
            }
            _ => Lot::Fine,
        };
        (lot, slow)
    }

    /// Another place of the same length where faults may happen.
    fn misdirect(&mut self, offset: u64, len: u64) -> Option<u64> {
        let sector = u64::from(self.geometry.sector);
        for _ in 0..8 {
            // Near stored bytes, where it hurts; a random empty place harms nobody.
            let to = self.medium.pick_stored()? / sector * sector;
            let fits = to + len <= self.geometry.capacity && self.may_fail(to, len);
            if fits && (to + len <= offset || offset + len <= to) {
                return Some(to);
            }
        }
        None
    }

    fn draw_delay(&mut self, op: Op, slow: bool) -> Duration {
        let stretch = if slow { 100 + self.rng.below(9_900) } else { 1 };
        let (min, max) = match op {
            Op::Read => self.latency.read,
            Op::Write | Op::WriteFlush | Op::Deallocate => self.latency.write,
            Op::Flush => self.latency.flush,
        };
        let delay = u64::from(min) + self.rng.below(u64::from(max.saturating_sub(min)) + 1);
        let grain = u64::from(self.latency.grain.max(1));
        Duration::from_micros((delay.div_ceil(grain) * grain * stretch).min(SLOWEST))
    }

    /// Carries out the next command that is due by now.
    fn finish_next(&mut self) -> Option<(Completer, Done)> {
        loop {
            let now = self.clock.now();
            let later = |Reverse((at, _, _)): &Reverse<(Instant, u32, u32)>| *at > now;
            if self.off || self.stalled || self.due.peek().is_none_or(later) {
                return None;
            }
            let Reverse((_, _, index)) = self.due.pop()?;
            if !self.goes_on(index) {
                return Some(self.finish(index));
            }
        }
    }

    /// Carries out the write of a write with a flush, which then waits for its flush. False for any
    /// other command, and for a write that fails: that is its end.
    fn goes_on(&mut self, index: u32) -> bool {
        let slot = &mut self.slots[index as usize];
        let first = slot.op == Op::WriteFlush && !slot.written;
        if !first || self.dead || slot.lot == Lot::WriteError {
            return false;
        }
        slot.written = true;
        let (lot, io) = (slot.lot, slot.io.take().expect("a due slot holds a command"));
        let written = self.carry_out_write(&io, lot);
        assert!(written.is_ok(), "only a write error fails a write");
        self.slots[index as usize].io = Some(io);
        let at = self.clock.now() + self.draw_delay(Op::Flush, false);
        self.due.push(Reverse((at, self.rng.next_u64() as u32, index)));
        true
    }

    /// Carries out a command and frees its slot.
    fn finish(&mut self, index: u32) -> (Completer, Done) {
        let slot = &mut self.slots[index as usize];
        let mut io = slot.io.take().expect("a due slot holds a command");
        let completer = slot.completer.take().expect("a due slot holds a completer");
        let (lot, mark) = (slot.lot, slot.flush_mark);
        self.queues[slot.queue as usize] -= 1;
        self.free.push(index);
        let result = self.carry_out(&mut io, lot, mark);
        (completer, Done { result, buf: io.buf })
    }

    fn carry_out(&mut self, io: &mut Io, lot: Lot, flush_mark: u32) -> Result<(), IoError> {
        if self.dead {
            return Err(IoError::Offline);
        }
        match io.op {
            Op::Read => self.carry_out_read(io, lot),
            Op::Write => self.carry_out_write(io, lot),
            Op::Flush => {
                self.end_flush(flush_mark);
                Ok(())
            }
            Op::WriteFlush if lot == Lot::WriteError => self.carry_out_write(io, lot),
            Op::WriteFlush => {
                if lot == Lot::Fine {
                    self.medium.make_stable(io.offset, io.len as usize);
                }
                self.end_flush(flush_mark);
                Ok(())
            }
            Op::Deallocate => {
                self.heal(io.offset, io.len);
                self.medium.zero(io.offset, io.len as usize);
                Ok(())
            }
        }
    }

    fn end_flush(&mut self, mark: u32) {
        self.medium.end_flush(mark);
        if let Some(observer) = &mut self.observer {
            observer(DiskEvent::Flushed { number: u64::from(mark) });
        }
    }

    fn carry_out_read(&mut self, io: &mut Io, lot: Lot) -> Result<(), IoError> {
        let (offset, end) = (io.offset, io.offset + io.len);
        if let Lot::ReadError { sticky } = lot {
            self.counts.add(FaultKind::ReadError, 1);
            self.harm_range(FaultKind::ReadError, offset, io.len, None);
            if sticky {
                let sector = u64::from(self.geometry.sector);
                let at = offset + self.rng.below(io.len / sector) * sector;
                self.bad.push((at, sector));
            }
            return Err(IoError::Injected("simulated read error"));
        }
        if self.bad.iter().any(|&(at, len)| at < end && offset < at + len) {
            self.harm_range(FaultKind::ReadError, offset, io.len, None);
            return Err(IoError::Injected("simulated bad sector"));
        }
        let len = io.len as usize;
        let at = io.buf_at;
        if let Some(IoBuf::Exclusive(buf)) = &mut io.buf {
            self.medium.read(offset, &mut buf.as_mut_slice()[at..at + len]);
        }
        Ok(())
    }

    fn carry_out_write(&mut self, io: &Io, lot: Lot) -> Result<(), IoError> {
        let (offset, len) = (io.offset, io.len);
        match lot {
            Lot::WriteError => {
                self.counts.add(FaultKind::WriteError, 1);
                self.harm_range(FaultKind::WriteError, offset, len, None);
                self.medium.write_torn(offset, bytes_of(io));
                self.harm_range(FaultKind::WriteError, offset, len, Some(bytes_of(io)));
                Err(IoError::Injected("simulated write error"))
            }
            Lot::Lost => {
                self.counts.add(FaultKind::Lost, 1);
                self.harm_range(FaultKind::Lost, offset, len, Some(bytes_of(io)));
                Ok(())
            }
            Lot::Misdirected { to } => {
                self.counts.add(FaultKind::Misdirected, 1);
                self.harm_range(FaultKind::Misdirected, to, len, None);
                self.harm_range(FaultKind::Misdirected, offset, len, Some(bytes_of(io)));
                self.medium.write(to, bytes_of(io));
                Ok(())
            }
            Lot::Fine | Lot::ReadError { .. } => {
                self.heal(offset, len);
                self.medium.write(offset, bytes_of(io));
                Ok(())
            }
        }
    }

    /// Remembers a harm and tells the observer whose bytes it hit: what lies there, or `instead`, what
    /// should lie there.
    fn harm_range(&mut self, kind: FaultKind, offset: u64, len: u64, instead: Option<&[u8]>) {
        self.damage.add(Harm { kind, offset, len });
        let Some(observer) = &mut self.observer else { return };
        match instead {
            Some(content) => observer(DiskEvent::Harmed { kind, offset, content }),
            None => {
                let mut content = vec![0; len as usize];
                self.medium.read(offset, &mut content);
                observer(DiskEvent::Harmed { kind, offset, content: &content });
            }
        }
    }

    fn heal(&mut self, offset: u64, len: u64) {
        if !self.damage.is_empty() {
            self.damage.heal(offset, len);
        }
        if !self.bad.is_empty() {
            self.bad.retain(|&(at, bytes)| at + bytes <= offset || offset + len <= at);
        }
    }

    fn rot(&mut self, offset: Option<u64>) {
        let sector = u64::from(self.geometry.sector);
        for _ in 0..8 {
            let Some(at) = offset.or_else(|| self.medium.pick_stored()) else { return };
            let at = at / sector * sector;
            if offset.is_none() && !self.may_fail(at, sector) {
                continue;
            }
            self.counts.add(FaultKind::BitFlip, 1);
            self.harm_range(FaultKind::BitFlip, at, sector, None);
            let bit = self.rng.next_u64();
            self.medium.flip(at + (bit >> 8) % sector, bit as u8);
            return;
        }
    }

    fn die(&mut self) {
        if !self.dead {
            self.dead = true;
            self.counts.add(FaultKind::Dead, 1);
            if let Some(observer) = &mut self.observer {
                observer(DiskEvent::Died);
            }
        }
    }

    fn stall(&mut self) {
        if !self.stalled && !self.dead {
            self.stalled = true;
            self.counts.add(FaultKind::Stall, 1);
            if let Some(observer) = &mut self.observer {
                observer(DiskEvent::Stalled);
            }
        }
    }

    fn crash(&mut self, kind: CrashKind) -> (Vec<Slot>, (u64, u64)) {
        let mut slots = std::mem::take(&mut self.slots);
        self.free.clear();
        self.due.clear();
        self.queues.clear();
        self.life += 1;
        (self.off, self.stalled) = (false, false);
        // The order in which writes on their way land is as open as whether they land.
        for last in (1..slots.len()).rev() {
            slots.swap(last, self.rng.below(last as u64 + 1) as usize);
        }
        // Nor does anybody know whether the drive had begun to give up a range.
        for slot in slots.iter().filter(|slot| slot.op == Op::Deallocate && slot.io.is_some()) {
            if self.rng.below(2) == 0 {
                self.medium.zero(slot.offset, slot.len as usize);
            }
        }
        let mut writes = 0;
        for slot in slots.iter().filter(|s| s.phase() == Op::Write && s.lot == Lot::Fine) {
            let Some(io) = &slot.io else { continue };
            writes += 1;
            match self.rng.below(3) {
                0 => {}
                1 => self.medium.write(io.offset, bytes_of(io)),
                _ => {
                    self.counts.add(FaultKind::Torn, 1);
                    self.medium.write_torn(io.offset, bytes_of(io));
                }
            }
        }
        let lost = match kind {
            CrashKind::Kill => 0,
            CrashKind::PowerCut => {
                let cut = if self.rng.below(4) == 0 { Cut::LoseAll } else { Cut::Mixed };
                self.medium.power_cut(cut)
            }
        };
        (slots, (writes, lost))
    }
}

/// The bytes that a write names.
fn bytes_of(io: &Io) -> &[u8] {
    let range = io.buf_at..io.buf_at + io.len as usize;
    match &io.buf {
        Some(IoBuf::Exclusive(buf)) => &buf.as_slice()[range],
        Some(IoBuf::Shared(buf)) => &buf.as_slice()[range],
        None => &[],
    }
}

impl BlockDevice for SimDisk {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn kind(&self) -> Kind {
        Kind::Sim
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn reason(&self) -> &str {
        "simulated"
    }

    fn open_queue(&self, _local: &Local) -> Result<Rc<dyn BlockQueue>, IoError> {
        let mut state = lock(&self.state);
        if state.dead {
            return Err(IoError::Offline);
        }
        state.queues.push(0);
        let index = (state.queues.len() - 1) as u32;
        Ok(Rc::new(SimQueue { disk: self.clone(), index, life: state.life }))
    }
}

/// One reactor's queue on a simulated disk. It needs no poller: the world delivers.
struct SimQueue {
    disk: SimDisk,
    index: u32,
    life: u32,
}

impl BlockQueue for SimQueue {
    fn submit(&self, io: Io) -> Completion {
        self.disk.submit(self.index, self.life, io)
    }

    fn outstanding(&self) -> usize {
        let state = lock(&self.disk.state);
        if state.life != self.life {
            return 0;
        }
        state.queues[self.index as usize] as usize
    }
}

#[cfg(test)]
#[path = "disk_tests.rs"]
mod tests;
