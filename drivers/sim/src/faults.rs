//! A decorator that makes any block device fail in ways that are asked for.
//!
//! A [`Rule`] says which commands it strikes (kind, byte range), when (every one, the nth, one in so
//! many), how often at most, and what it does to them. Rules can be added and taken away while the
//! device is in use, through a [`Faults`] handle; each counts its strikes. The first rule that strikes a
//! command decides it; a command that no rule strikes goes to the device untouched and pays a lock and
//! a look at the rules.
//!
//! A decorated device offers no views: a view would be a way past the rules.

use std::ops::Range;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use memkv_block::{
    BlockDevice, BlockQueue, Completer, Completion, DeviceStats, Done, Geometry, Io, IoBuf,
    IoError, Kind, Op, completion,
};
use memkv_poller::{Local, Rng};

/// Which of the commands that fit a rule it strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Every one.
    Always,
    /// Only the nth, counted from 1.
    Nth(u64),
    /// So many in a million, by chance.
    PerMillion(u32),
}

/// What a rule does to a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It fails, and the device does not see it.
    Fail,
    /// A write is answered "done", and the device does not see it; a flush that belongs to it is done.
    /// Other commands fail.
    Lose,
    /// A read succeeds with one wrong bit. Other commands fail.
    Flip,
    /// It is not answered, and the device does not see it, before [`Faults::release`].
    Hang,
}

/// One fault that is to happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The kind of command; `None` for any. A write with a flush is of both kinds.
    pub op: Option<Op>,
    /// Bytes of the device: a command that overlaps them fits. A flush fits any range.
    pub range: Range<u64>,
    /// Which of the fitting commands are struck.
    pub when: When,
    /// After so many strikes the rule is spent.
    pub strikes_max: u64,
    /// What happens to a struck command.
    pub effect: Effect,
}

impl Rule {
    /// Every `op` anywhere fails.
    pub fn fail(op: Op) -> Rule {
        Rule {
            op: Some(op),
            range: 0..u64::MAX,
            when: When::Always,
            strikes_max: u64::MAX,
            effect: Effect::Fail,
        }
    }

    fn fits(&self, io: &Io) -> bool {
        let both = io.op == Op::WriteFlush;
        let is = |op| op == io.op || (both && matches!(op, Op::Write | Op::Flush));
        let kind = self.op.is_none_or(is);
        let place = io.op == Op::Flush
            || (both && self.op == Some(Op::Flush))
            || (io.offset < self.range.end && self.range.start < io.offset + io.len);
        kind && place
    }
}

/// Names a rule that was added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuleId(usize);

struct Active {
    rule: Rule,
    seen: u64,
    strikes: u64,
    removed: bool,
}

struct Rules {
    active: Vec<Active>,
    rng: Rng,
    /// What is not answered.
    hung: Vec<(Io, Completer)>,
}

/// The rules of one decorated device. Clones share them.
#[derive(Clone)]
pub struct Faults(Arc<Mutex<Rules>>);

impl Faults {
    /// No rules yet; chance is drawn from `seed`.
    pub fn new(seed: u64) -> Faults {
        let rng = Rng::seeded(seed);
        Faults(Arc::new(Mutex::new(Rules { active: Vec::new(), rng, hung: Vec::new() })))
    }

    fn lock(&self) -> MutexGuard<'_, Rules> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a rule behind the others.
    pub fn add(&self, rule: Rule) -> RuleId {
        let mut rules = self.lock();
        rules.active.push(Active { rule, seen: 0, strikes: 0, removed: false });
        RuleId(rules.active.len() - 1)
    }

    /// Takes a rule away; its count stays.
    pub fn remove(&self, id: RuleId) {
        self.lock().active[id.0].removed = true;
    }

    /// How often a rule has struck.
    pub fn strikes(&self, id: RuleId) -> u64 {
        self.lock().active[id.0].strikes
    }

    /// Ends what hangs as offline: its buffers go back.
    pub fn release(&self) {
        let hung = std::mem::take(&mut self.lock().hung);
        // Completed without the lock: the waker may run code of the reactor.
        for (io, completer) in hung {
            completer.complete(Done::of(io, Err(IoError::Offline)));
        }
    }

    /// Puts the rules in front of `device`.
    pub fn decorate(&self, device: Arc<dyn BlockDevice>) -> Arc<dyn BlockDevice> {
        Arc::new(FaultyDevice { device, faults: self.clone() })
    }

    /// What is to happen to a command.
    fn judge(&self, io: &Io) -> Option<(Effect, u64)> {
        let rules = &mut *self.lock();
        for active in rules.active.iter_mut().filter(|active| !active.removed) {
            if active.strikes >= active.rule.strikes_max || !active.rule.fits(io) {
                continue;
            }
            active.seen += 1;
            let struck = match active.rule.when {
                When::Always => true,
                When::Nth(nth) => active.seen == nth,
                When::PerMillion(rate) => rules.rng.below(1_000_000) < u64::from(rate),
            };
            if struck {
                active.strikes += 1;
                return Some((active.rule.effect, rules.rng.next_u64()));
            }
        }
        None
    }
}

struct FaultyDevice {
    device: Arc<dyn BlockDevice>,
    faults: Faults,
}

impl BlockDevice for FaultyDevice {
    fn geometry(&self) -> Geometry {
        self.device.geometry()
    }

    fn kind(&self) -> Kind {
        self.device.kind()
    }

    fn name(&self) -> &str {
        self.device.name()
    }

    fn reason(&self) -> &str {
        self.device.reason()
    }

    fn stats(&self) -> DeviceStats {
        self.device.stats()
    }

    fn open_queue(&self, local: &Local) -> Result<Rc<dyn BlockQueue>, IoError> {
        let queue = self.device.open_queue(local)?;
        Ok(Rc::new(FaultyQueue { queue, faults: self.faults.clone(), local: local.clone() }))
    }
}

struct FaultyQueue {
    queue: Rc<dyn BlockQueue>,
    faults: Faults,
    local: Local,
}

impl BlockQueue for FaultyQueue {
    fn submit(&self, io: Io) -> Completion {
        let Some((effect, chance)) = self.faults.judge(&io) else { return self.queue.submit(io) };
        match (effect, io.op) {
            (Effect::Lose, Op::Write) => answered(Ok(()), io),
            (Effect::Lose, Op::WriteFlush) => self.flush_only(io),
            (Effect::Hang, _) => {
                let (completer, completion) = completion();
                self.faults.lock().hung.push((io, completer));
                completion
            }
            (Effect::Flip, Op::Read) => self.read_with_a_flip(io, chance),
            _ => answered(Err(IoError::Injected("asked for by a fault rule")), io),
        }
    }

    fn outstanding(&self) -> usize {
        self.queue.outstanding() + self.faults.lock().hung.len()
    }

    fn give_up(&self) {
        self.queue.give_up();
    }
}

impl FaultyQueue {
    fn read_with_a_flip(&self, io: Io, chance: u64) -> Completion {
        let (at, len) = (io.buf_at, io.len as usize);
        let inner = self.queue.submit(io);
        let (completer, outer) = completion();
        self.local.spawn(async move {
            let mut done = inner.await;
            if let Some(IoBuf::Exclusive(buf)) = &mut done.buf {
                let byte = at + (chance >> 8) as usize % len.max(1);
                buf.as_mut_slice()[byte] ^= 1 << (chance % 8);
            }
            completer.complete(done);
        });
        outer
    }
}

impl FaultyQueue {
    /// The flush of a write that is lost.
    fn flush_only(&self, io: Io) -> Completion {
        let flush = self.queue.submit(Io::flush());
        let (completer, outer) = completion();
        self.local.spawn(async move {
            let result = flush.await.result;
            completer.complete(Done::of(io, result));
        });
        outer
    }
}

/// A completion that is there already.
fn answered(result: Result<(), IoError>, io: Io) -> Completion {
    let (completer, completion) = completion();
    completer.complete(Done { result, buf: io.buf });
    completion
}

#[cfg(test)]
#[path = "faults_tests.rs"]
mod tests;
