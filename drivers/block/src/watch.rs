//! A decorator that does not wait for ever: a drive that stops answering fails instead.
//!
//! ```text
//!   submit ─► the driver's queue ─► Completion ─► whoever asked
//!                 │                      ▲
//!                 └─ a line of commands ─┘ a look every eighth of the limit, while any is outstanding:
//!                    oldest first          has the oldest been the oldest for all of the limit, then
//!                                          each of them ends as Stalled
//! ```
//!
//! Where the driver keeps its commands in a [table](Commands), that is looked at, and the driver asks it
//! whether the drive has ended: nothing stands between the driver and whoever asks, and a command costs
//! nothing to watch.
//!
//! What counts is how long a command has been the *oldest*, not its age: behind a long line a command
//! may wait its turn for longer than any limit while the drive does all it can. It is counted in looks,
//! not by the clock: after a pause of the whole process everything looks late, and nothing is.
//!
//! One stall is the end of the drive, on all its queues. Nothing reaches it any more, so that nothing it
//! does late can meet what is done now; the driver keeps the buffers that it still has. Who uses the
//! drive anew [closes](BlockDevice::close) it first, for the same reason.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use memkv_dma::{DmaBuf, DmaRef, Memory};
use memkv_poller::Local;

use crate::commands::{Commands, WeakCommands};
use crate::completion::Watched;
use crate::device::{BlockDevice, BlockQueue, Geometry, Kind};
use crate::{Completion, DeviceStats, Done, Io, IoError, completion};

/// Looks in the time that a drive may take.
const LOOKS: u32 = 8;

/// Commands in the line from which on those that have ended are taken out of it.
const SWEEP: usize = 64;

/// The device, with every queue watched: when a command has been the oldest of its queue for `limit`
/// (and up to a quarter more), it and all others fail with [`IoError::Stalled`], and so does whatever is
/// submitted later, on any queue. Memory always answers and is returned as it is.
pub fn watch(device: Arc<dyn BlockDevice>, limit: Duration) -> Arc<dyn BlockDevice> {
    if device.kind() == Kind::Memory {
        return device;
    }
    Arc::new(WatchedDevice { device, limit, ended: Arc::new(Ended::new(limit)) })
}

/// Whether and why nothing reaches a drive any more: of the bits below, none while it is in use.
pub(crate) struct Ended {
    why: AtomicU8,
    limit: Duration,
}

const STALLED: u8 = 1;
const CLOSED: u8 = 2;

impl Ended {
    pub fn new(limit: Duration) -> Ended {
        Ended { why: AtomicU8::new(0), limit }
    }

    /// What is 0 while it is in use.
    pub fn flag(&self) -> &AtomicU8 {
        &self.why
    }

    pub fn is_so(&self) -> bool {
        self.why.load(Ordering::Acquire) != 0
    }

    fn is_stalled(&self) -> bool {
        self.why.load(Ordering::Acquire) & STALLED != 0
    }

    /// True for the first who says so.
    fn stall(&self) -> bool {
        self.why.fetch_or(STALLED, Ordering::AcqRel) & STALLED == 0
    }

    fn close(&self) {
        self.why.fetch_or(CLOSED, Ordering::Release);
    }

    /// How a command ends that is submitted now.
    #[cold]
    pub fn error(&self) -> IoError {
        if self.is_stalled() { IoError::Stalled(self.limit) } else { IoError::Offline }
    }
}

struct WatchedDevice {
    device: Arc<dyn BlockDevice>,
    limit: Duration,
    /// Shared by all queues.
    ended: Arc<Ended>,
}

impl BlockDevice for WatchedDevice {
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
        let look = Look {
            name: self.device.name().to_owned(),
            local: local.clone(),
            limit: self.limit,
            ended: Arc::clone(&self.ended),
            looking: Cell::new(false),
        };
        if let Some(commands) = queue.commands() {
            watch_table(commands, &queue, look);
            return Ok(queue);
        }
        let line = RefCell::default();
        let submitted = Cell::new(0);
        Ok(Rc::new_cyclic(|this| WatchedQueue { this: this.clone(), queue, look, line, submitted }))
    }

    fn view(&self, offset: u64, len: usize) -> Option<DmaRef> {
        self.device.view(offset, len)
    }

    fn view_mut(&self, offset: u64, len: usize) -> Option<DmaBuf> {
        self.device.view_mut(offset, len)
    }

    fn memory(&self) -> Option<Memory> {
        self.device.memory()
    }

    fn close(&self) -> Option<Arc<dyn BlockDevice>> {
        self.ended.close();
        Some(Arc::clone(&self.device))
    }
}

/// Commands in the order in which they were submitted; some have ended.
#[derive(Default)]
struct Line {
    commands: VecDeque<Watched>,
    /// How many there are when those that have ended are next taken out.
    sweep_at: usize,
    age: Age<Watched>,
}

/// For how long the oldest command has been that.
struct Age<T> {
    /// The oldest one at the last look, and how many looks it has been that.
    oldest: Option<T>,
    looks: u32,
}

impl<T> Default for Age<T> {
    fn default() -> Age<T> {
        Age { oldest: None, looks: 0 }
    }
}

impl<T: PartialEq> Age<T> {
    /// Whether the one that is the oldest now has been that for too long.
    fn is_late(&mut self, oldest: Option<T>) -> bool {
        let same = oldest.is_some() && oldest == self.oldest;
        self.looks = if same { self.looks + 1 } else { 0 };
        self.oldest = oldest;
        self.looks >= LOOKS
    }
}

impl Line {
    fn add(&mut self, command: Watched) {
        self.commands.push_back(command);
        if self.commands.len() >= self.sweep_at {
            self.sweep();
        }
    }

    /// Takes out what has ended; each command is looked at twice on average.
    fn sweep(&mut self) {
        self.commands.retain(Watched::is_pending);
        self.sweep_at = SWEEP.max(2 * self.commands.len());
    }

    /// Whether the oldest command has been that for too long.
    fn is_late(&mut self) -> bool {
        self.sweep();
        self.age.is_late(self.commands.front().cloned())
    }
}

/// What it takes to look at the commands of a queue.
struct Look {
    name: String,
    local: Local,
    limit: Duration,
    ended: Arc<Ended>,
    /// A task looks.
    looking: Cell<bool>,
}

impl Look {
    /// What one look has found. True when the drive has stalled, here or on another queue.
    fn has_found(&self, late: bool, outstanding: usize) -> bool {
        if late && self.ended.stall() {
            let (drive, limit) = (&self.name, self.limit);
            tracing::error!(drive, outstanding, ?limit, "the drive stalled");
        }
        self.ended.is_stalled()
    }

    /// Has `task` look, with so long between two looks, unless one does.
    fn begin<F: Future<Output = ()> + 'static>(&self, task: impl FnOnce(Local, Duration) -> F) {
        if !self.looking.replace(true) {
            self.local.spawn(task(self.local.clone(), self.limit / LOOKS));
        }
    }
}

/// Watches over the table of a driver that has one.
struct WatchedTable {
    commands: WeakCommands,
    queue: Weak<dyn BlockQueue>,
    look: Look,
    age: RefCell<Age<u64>>,
}

fn watch_table(commands: &Commands, queue: &Rc<dyn BlockQueue>, look: Look) {
    commands.watch(Arc::clone(&look.ended));
    let (table, queue) = (commands.downgrade(), Rc::downgrade(queue));
    let watched = WatchedTable { commands: table, queue, look, age: RefCell::default() };
    let watched = Rc::new(watched);
    commands.on_begin(move || {
        let looks = Rc::downgrade(&watched);
        watched.look.begin(|local, pause| look_after(local, looks, pause));
    });
}

impl Looks for WatchedTable {
    fn look(&self) -> bool {
        // The driver, and with it all that it had, may have gone.
        let Some(commands) = self.commands.upgrade() else { return false };
        let queue = self.queue.upgrade();
        let outstanding = queue.as_ref().map_or(0, |queue| queue.outstanding());
        let late = self.age.borrow_mut().is_late(commands.oldest());
        if self.look.has_found(late, outstanding) {
            // First what the device never saw, with its memory.
            queue.iter().for_each(|queue| queue.give_up());
            commands.abandon_all(|| IoError::Stalled(self.look.limit));
        }
        if commands.is_empty() {
            self.look.looking.set(false);
            commands.rest();
            return false;
        }
        true
    }
}

/// A queue of a driver whose commands stand alone.
struct WatchedQueue {
    this: Weak<WatchedQueue>,
    queue: Rc<dyn BlockQueue>,
    look: Look,
    line: RefCell<Line>,
    /// Commands that the driver was given.
    submitted: Cell<u64>,
}

impl Looks for WatchedQueue {
    fn look(&self) -> bool {
        let late = self.line.borrow_mut().is_late();
        if self.look.has_found(late, self.queue.outstanding()) {
            self.fail_all();
        }
        let more = !self.line.borrow().commands.is_empty();
        self.look.looking.set(more);
        more
    }
}

impl WatchedQueue {
    fn fail_all(&self) {
        // First what the device never saw, with its memory.
        self.queue.give_up();
        // Nothing is borrowed while callers are woken.
        let commands = std::mem::take(&mut *self.line.borrow_mut()).commands;
        commands.iter().for_each(|command| command.abandon(IoError::Stalled(self.look.limit)));
    }
}

/// What is to be looked at.
trait Looks {
    /// Looks once; false when nobody has to look again.
    fn look(&self) -> bool;
}

/// Looks after commands for as long as there are any.
async fn look_after(local: Local, watched: Weak<impl Looks>, pause: Duration) {
    loop {
        local.sleep(pause).await;
        // Not held while asleep: the queue may go.
        let Some(watched) = watched.upgrade() else { return };
        if !watched.look() {
            return;
        }
    }
}

impl BlockQueue for WatchedQueue {
    fn submit(&self, io: Io) -> Completion {
        if self.look.ended.is_so() {
            let (completer, completion) = completion();
            completer.complete(Done::of(io, Err(self.look.ended.error())));
            return completion;
        }
        self.submitted.set(self.submitted.get() + 1);
        let completion = self.queue.submit(io);
        let command =
            completion.watched().expect("who hands on commands of a table hands on the table");
        if command.is_pending() {
            self.line.borrow_mut().add(command);
            let this = || self.this.clone();
            self.look.begin(|local, pause| look_after(local, this(), pause));
        }
        completion
    }

    fn outstanding(&self) -> usize {
        self.queue.outstanding()
    }

    fn completed(&self) -> u64 {
        self.submitted.get().saturating_sub(self.queue.outstanding() as u64)
    }

    fn give_up(&self) {
        self.queue.give_up();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Told;

    fn done() -> Done {
        Done { result: Ok(()), buf: None }
    }

    fn watched(completion: &Completion) -> Watched {
        completion.watched().expect("it stands alone")
    }

    #[test]
    fn a_command_is_late_when_it_was_the_oldest_for_all_of_the_limit() {
        let mut line = Line::default();
        let ((first, one), (_second, two)) = (completion(), completion());
        line.add(watched(&one));
        line.add(watched(&two));
        // The first look finds the oldest, the others find it again.
        (0..LOOKS).for_each(|look| assert!(!line.is_late(), "at look {look}"));
        first.complete(done());
        // However long the second has waited behind it.
        (0..LOOKS).for_each(|look| assert!(!line.is_late(), "at look {look}"));
        assert!(line.is_late());
        watched(&two).abandon(IoError::Offline);
        assert!(!line.is_late() && line.commands.is_empty());
    }

    #[test]
    fn a_command_of_a_table_is_late_by_the_same_rule() {
        let commands = Commands::with_capacity(2);
        let mut age = Age::default();
        let mut is_late = || age.is_late(commands.oldest());
        let mut told = Told::default();
        let give = || commands.give(&mut None);
        let ((first, _one), (_second, two)) = (give(), give());
        (0..LOOKS).for_each(|look| assert!(!is_late(), "at look {look}"));
        first.end(&mut told);
        (0..LOOKS).for_each(|look| assert!(!is_late(), "at look {look}"));
        assert!(is_late());
        // Nobody waits for it any more, and a later one in the same slot is not it.
        drop(two);
        assert!(!is_late());
        let (_third, _three) = give();
        (0..LOOKS).for_each(|look| assert!(!is_late(), "at look {look}"));
        assert!(is_late());
    }

    #[test]
    fn one_command_that_hangs_does_not_keep_those_behind_it_in_the_line() {
        let mut line = Line::default();
        let (_hangs, oldest) = completion();
        line.add(watched(&oldest));
        for _ in 0..10_000 {
            let (completer, other) = completion();
            line.add(watched(&other));
            completer.complete(done());
            assert!(line.commands.len() <= SWEEP);
        }
    }

    #[test]
    fn what_a_driver_does_after_all_is_dropped() {
        let (completer, waits) = completion();
        let watched = watched(&waits);
        watched.abandon(IoError::Stalled(Duration::from_secs(1)));
        assert!(!watched.is_pending());
        completer.complete(done());
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        let std::task::Poll::Ready(end) = std::pin::pin!(waits).poll(&mut cx) else {
            panic!("not ended")
        };
        assert!(matches!(end.result, Err(IoError::Stalled(_))));
    }
}
