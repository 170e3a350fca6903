//! One reactor's queue: slots that own the buffers, and the poller that turns the ring.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use memkv_poller::{Instant, Interrupt, Local, Poller, Progress};

use super::Shared;
use super::ring::{DEPTH, Ring, is_transient};
use crate::completion::{Completer, Completion, completion};
use crate::counters::Tally;
use crate::device::BlockQueue;
use crate::workers::{Orders, watch_over};
use crate::{Done, Io, IoError, Op};

/// Completions taken in one poll.
const PER_POLL: u32 = 64;

/// Bytes of large transfers in the device at once, those of one queue: two extents that are written, or
/// one that is read. A device serves all that it has at the same time, each a little, and some tell of
/// none before they have done all; of what waits here, the first is done first, and while its bytes go
/// on to a socket the device has the next. With two extents read by each of two reactors, four gets had
/// all that they wanted in the device and then sent at the same time, while it idled: 0.65 of its speed,
/// and 0.95 with one. Nothing is sent when a write is done, and two extents keep the device busy where
/// one left it waiting for a reactor that is late. Half an extent reached half of some drives' speed.
pub(super) const WINDOW: u64 = 8 << 20;

/// Transfers up to this size never wait for large ones: they are somebody's whole answer, or the
/// journal's.
const SMALL: u64 = 64 << 10;

/// Commands handed to the kernel in one turn at most, and the bytes of them after which no other goes
/// along. The kernel carries a read or write all the way to the device before it comes back: some
/// microseconds each, and more by the pages it has. The rest goes in the next pass.
const PER_TURN: usize = 16;
const BYTES_PER_TURN: u64 = 2 << 20;

/// Times that a command is tried again after the kernel said `EAGAIN` to it.
const RETRIES: u8 = 16;

/// A command in the device. Its buffer stays here until the kernel has answered.
struct Slot {
    io: Io,
    completer: Completer,
    /// Bytes moved by earlier, short answers.
    done: u64,
    retries: u8,
}

fn is_large(io: &Io) -> bool {
    matches!(io.op, Op::Read | Op::Write) && io.len > SMALL
}

/// What a large transfer takes of the window.
fn weight(io: &Io) -> u64 {
    if io.op == Op::Read { 2 * io.len } else { io.len }
}

/// What one turn may still hand over to the kernel.
struct Budget {
    commands: usize,
    bytes: u64,
}

impl Budget {
    fn of_a_turn() -> Budget {
        Budget { commands: PER_TURN, bytes: BYTES_PER_TURN }
    }

    /// How many of the first commands of so many bytes each it is good for: any that begins within
    /// the bytes.
    fn fit(&self, unsent: &VecDeque<u64>) -> usize {
        let mut bytes = 0;
        let begins_within = |&&len: &&u64| {
            let begins = bytes;
            bytes += len;
            begins < self.bytes
        };
        unsent.iter().take(self.commands).take_while(begins_within).count()
    }

    fn spend(&mut self, commands: usize, bytes: u64) {
        self.commands -= commands;
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

struct Engine {
    ring: Ring,
    slots: Vec<Option<Slot>>,
    free: Vec<u16>,
    /// Commands beyond the depth of the ring, in order.
    waiting: VecDeque<(Io, Completer)>,
    /// Large transfers beyond the window, in order.
    large: VecDeque<(Io, Completer)>,
    /// The weight of large transfers that are in the device or wait for a slot.
    moving: u64,
    /// The device is not waited for any more.
    given_up: bool,
    /// Bytes of each command in the ring that the kernel has not taken yet.
    unsent: VecDeque<u64>,
    tally: Tally,
    /// Since when commands have waited while the device had none.
    hungry_since: Option<Instant>,
    /// The last moment at which the device is known to have had work: the last look at the ring, or
    /// waking up.
    looked: Instant,
    local: Local,
    /// Kept open as long as the ring, which names its descriptor.
    shared: Arc<Shared>,
}

impl Engine {
    fn in_device(&self) -> usize {
        DEPTH - self.free.len()
    }

    /// Whether a large transfer may go to the device: one may always.
    fn has_room(&self, io: &Io) -> bool {
        self.moving == 0 || self.moving + weight(io) <= self.shared.window
    }

    /// Takes a checked command: into a slot, or into one of the lines.
    fn take(&mut self, io: Io, completer: Completer) {
        if is_large(&io) {
            if !self.large.is_empty() || !self.has_room(&io) {
                self.large.push_back((io, completer));
                return;
            }
            self.moving += weight(&io);
        }
        self.start(io, completer);
        if self.hungry_since.is_some() {
            // The device has nothing to do, and this pass may take long yet: whoever asked may go on
            // with the next MiB of a socket.
            self.enter(&mut Budget::of_a_turn());
        }
    }

    /// Puts a command into a free slot, or into the line of those that wait for one.
    fn start(&mut self, io: Io, completer: Completer) {
        let Some(index) = self.free.pop() else {
            self.waiting.push_back((io, completer));
            return;
        };
        let slot = &mut self.slots[usize::from(index)];
        assert!(slot.is_none(), "a free slot is empty");
        *slot = Some(Slot { io, completer, done: 0, retries: 0 });
        self.push(index);
    }

    fn push(&mut self, index: u16) {
        let slot = self.slots[usize::from(index)].as_mut().expect("a command is in its slot");
        // SAFETY: the command was checked before it came here. The slot keeps its buffer, and touches
        // nothing of it, until `answer` has taken the completion of this tag; if the queue is dropped
        // before, `drain` waits for it or leaks the slot.
        let fixed = unsafe { self.ring.push(&mut slot.io, slot.done, u64::from(index)) };
        if let Some(fixed) = fixed {
            self.tally.transfer(fixed);
        }
        let moves = matches!(slot.io.op, Op::Read | Op::Write);
        self.unsent.push_back(if moves { slot.io.len - slot.done } else { 0 });
        if self.hungry_since.is_none() && self.shared.counters.depth() == 0 {
            self.hungry_since = Some(self.local.now());
        }
    }

    /// Hands what is in the ring over to the kernel, as far as one turn may. Says how many commands it
    /// took.
    fn enter(&mut self, budget: &mut Budget) -> u32 {
        let waited =
            self.hungry_since.map(|since| self.local.now().saturating_duration_since(since));
        let taken = self.ring.enter(budget.fit(&self.unsent));
        if taken > 0 {
            budget.spend(taken, self.unsent.drain(..taken).sum());
            let taken = taken as u64;
            self.shared.counters.handed_over(taken, 1);
            self.hungry_since = None;
            self.shared.counters.starved(waited.unwrap_or_default());
        }
        taken as u32
    }

    /// The kernel has answered `count` commands: whether the device has others, or waits for us.
    fn came_back(&mut self, count: u64) {
        let counters = &self.shared.counters;
        if count == 0 || counters.came_back(count) > 0 {
            return;
        }
        if !self.unsent.is_empty() || !self.waiting.is_empty() || !self.large.is_empty() {
            counters.ran_dry();
            self.hungry_since.get_or_insert(self.looked);
        }
    }

    /// Takes one completion from the ring. A command that is done is returned, to be completed when
    /// nothing is borrowed any more; one that has moved only a part of its bytes goes on.
    fn answer(&mut self) -> Option<Option<(Completer, Done)>> {
        let (tag, answer) = self.ring.next()?;
        let index = u16::try_from(tag).expect("a tag is the index of a slot");
        let slot = self.slots[usize::from(index)].as_mut().expect("an answer is to a command");
        let medium = &self.shared.medium;
        let result = match (slot.io.op, answer) {
            (_, Err(e)) if is_transient(&e) && slot.retries < RETRIES => {
                slot.retries += 1;
                self.push(index);
                return Some(None);
            }
            (Op::Deallocate, answer) => medium.deallocated(answer.map(drop)),
            (_, Err(e)) => Err(IoError::Os(e)),
            (Op::Flush, Ok(_)) => Ok(()),
            (Op::Read | Op::Write, Ok(moved)) => {
                match medium.moved(slot.done, moved, slot.io.len) {
                    Ok(done) if done < slot.io.len => {
                        slot.done = done;
                        self.push(index);
                        return Some(None);
                    }
                    result => result.map(drop),
                }
            }
            (Op::WriteFlush, Ok(_)) => unreachable!("it is carried out by a worker"),
        };
        let slot = self.slots[usize::from(index)].take().expect("just looked at");
        self.tally.done(&slot.io, result.is_ok());
        self.free.push(index);
        if is_large(&slot.io) {
            self.moving -= weight(&slot.io);
        }
        Some(Some((slot.completer, Done::of(slot.io, result))))
    }

    /// One turn: hands over what is new, takes what is done, lets waiting commands move up.
    fn turn(&mut self, finished: &mut Vec<(Completer, Done)>) -> Progress {
        let mut budget = Budget::of_a_turn();
        let sent = self.enter(&mut budget);
        let mut answers = 0;
        while answers < PER_POLL
            && let Some(answer) = self.answer()
        {
            answers += 1;
            finished.extend(answer);
        }
        self.came_back(u64::from(answers));
        let mut work = sent + answers;
        while !self.free.is_empty()
            && let Some((io, completer)) = self.waiting.pop_front()
        {
            self.start(io, completer);
            work += 1;
        }
        let mut refilled = false;
        while self.large.front().is_some_and(|(io, _)| self.has_room(io)) {
            let (io, completer) = self.large.pop_front().expect("just looked at");
            self.moving += weight(&io);
            self.start(io, completer);
            work += 1;
            refilled = true;
        }
        if refilled {
            // What the tasks now do with what has come may take long: the device has work meanwhile.
            self.enter(&mut budget);
        }
        if work > 0 {
            self.shared.counters.take(&mut self.tally);
        }
        self.looked = self.local.pass_began();
        Progress::of(work)
    }

    /// Waits until the kernel has let go of every buffer. If it cannot be waited for, the buffers are
    /// leaked: a leak is harmless, a buffer reused under a device is not.
    fn drain(&mut self) {
        if self.given_up && self.in_device() > 0 {
            return self.leak("the drive does not answer, leaking buffers");
        }
        let sent = (self.in_device() - self.unsent.len()) as u64;
        while let Some((io, completer)) = self.large.pop_front() {
            self.moving += weight(&io);
            self.start(io, completer);
        }
        for (io, completer) in self.waiting.drain(..) {
            completer.complete(Done::of(io, Err(IoError::Offline)));
        }
        while self.in_device() > 0 {
            if let Err(error) = self.ring.wait() {
                tracing::error!(%error, "cannot wait for the drive");
                return self.leak("leaking buffers");
            }
            while let Some(answer) = self.answer() {
                if let Some((completer, done)) = answer {
                    completer.complete(done);
                }
            }
        }
        self.shared.counters.came_back(sent);
        self.shared.counters.take(&mut self.tally);
        self.ring.unregister();
    }
}

impl Engine {
    /// Keeps the buffers of what is in the device from ever being used again.
    fn leak(&mut self, why: &str) {
        let (drive, leaked) = (&self.shared.medium.name, self.in_device());
        tracing::error!(drive, leaked, "{why}");
        std::mem::forget(std::mem::take(&mut self.slots));
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.drain();
    }
}

struct UringQueue {
    engine: Rc<RefCell<Engine>>,
    shared: Arc<Shared>,
    /// What the drive's workers have.
    orders: Arc<Orders>,
}

impl UringQueue {
    /// A discard on a block device is not for the ring.
    fn discard(&self, io: Io, completer: Completer) {
        match self.shared.discarder() {
            Ok(workers) => workers.submit(io, completer, &self.orders),
            Err(error) => completer.complete(Done::of(io, Err(IoError::Os(error)))),
        }
    }
}

impl BlockQueue for UringQueue {
    fn submit(&self, io: Io) -> Completion {
        let (completer, completion) = completion();
        let medium = &self.shared.medium;
        match medium.check(&io) {
            Err(error) => completer.complete(Done::of(io, Err(error))),
            Ok(()) if io.op == Op::Deallocate && medium.block_device => self.discard(io, completer),
            Ok(()) if io.op == Op::WriteFlush => {
                self.shared.flushers.submit(io, completer, &self.orders);
            }
            Ok(()) => self.engine.borrow_mut().take(io, completer),
        }
        completion
    }

    fn outstanding(&self) -> usize {
        let engine = self.engine.borrow();
        let waiting = engine.waiting.len() + engine.large.len();
        engine.in_device() + waiting + self.orders.outstanding()
    }

    fn give_up(&self) {
        let mut engine = self.engine.borrow_mut();
        engine.given_up = true;
        let large = std::mem::take(&mut engine.large);
        let waiting = std::mem::take(&mut engine.waiting);
        let large_waiting = waiting.iter().filter(|(io, _)| is_large(io)).map(|(io, _)| weight(io));
        engine.moving -= large_waiting.sum::<u64>();
        drop(engine);
        self.shared.give_up();
        // Nothing is borrowed here: whoever is woken may submit.
        for (io, completer) in waiting.into_iter().chain(large) {
            completer.complete(Done::of(io, Err(IoError::Offline)));
        }
    }
}

struct UringPoller {
    engine: Rc<RefCell<Engine>>,
    /// Room that is used again in every poll.
    finished: Vec<(Completer, Done)>,
    armed: bool,
}

impl Poller for UringPoller {
    fn name(&self) -> &'static str {
        "uring"
    }

    /// At most one system call and [`PER_POLL`] completions.
    fn poll(&mut self) -> Progress {
        let progress = self.engine.borrow_mut().turn(&mut self.finished);
        // Nothing is borrowed here: whoever is woken may submit.
        for (completer, done) in self.finished.drain(..) {
            completer.complete(done);
        }
        progress
    }

    fn arm(&mut self) -> Interrupt {
        let mut engine = self.engine.borrow_mut();
        if engine.in_device() == 0 {
            return Interrupt::Quiet;
        }
        self.armed = true;
        Interrupt::Fd(engine.ring.arm())
    }

    fn disarm(&mut self) {
        if std::mem::take(&mut self.armed) {
            let mut engine = self.engine.borrow_mut();
            engine.ring.disarm();
            engine.looked = engine.local.now();
        }
    }

    /// Once the queue is gone and the device has let go of everything.
    fn retired(&self) -> bool {
        Rc::strong_count(&self.engine) == 1 && self.engine.borrow().in_device() == 0
    }
}

/// Puts a ring on a reactor.
pub(super) fn open(shared: Arc<Shared>, ring: Ring, local: &Local) -> Rc<dyn BlockQueue> {
    let engine = Engine {
        ring,
        slots: std::iter::repeat_with(|| None).take(DEPTH).collect(),
        free: (0..DEPTH as u16).rev().collect(),
        waiting: VecDeque::new(),
        large: VecDeque::new(),
        moving: 0,
        given_up: false,
        unsent: VecDeque::with_capacity(DEPTH),
        tally: Tally::default(),
        hungry_since: None,
        looked: local.now(),
        local: local.clone(),
        shared: Arc::clone(&shared),
    };
    let engine = Rc::new(RefCell::new(engine));
    let finished = Vec::with_capacity(PER_POLL as usize);
    let poller = UringPoller { engine: Rc::clone(&engine), finished, armed: false };
    local.add_poller(Box::new(poller));
    let orders = Arc::default();
    watch_over(&orders, local);
    Rc::new(UringQueue { engine, shared, orders })
}
