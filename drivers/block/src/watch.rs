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
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use memkv_dma::{DmaBuf, DmaRef, Memory};
use memkv_poller::Local;

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
    Arc::new(WatchedDevice { device, limit, ended: Arc::default() })
}

/// Why nothing reaches a drive any more.
#[derive(Default)]
struct Ended {
    stalled: AtomicBool,
    closed: AtomicBool,
}

impl Ended {
    /// How a command ends that is submitted now.
    fn error(&self, limit: Duration) -> Option<IoError> {
        if self.stalled.load(Ordering::Acquire) {
            return Some(IoError::Stalled(limit));
        }
        self.closed.load(Ordering::Acquire).then_some(IoError::Offline)
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
        Ok(Rc::new_cyclic(|this| WatchedQueue {
            this: this.clone(),
            name: self.device.name().to_owned(),
            queue,
            local: local.clone(),
            limit: self.limit,
            ended: Arc::clone(&self.ended),
            line: RefCell::default(),
            looking: Cell::new(false),
        }))
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
        self.ended.closed.store(true, Ordering::Release);
        Some(Arc::clone(&self.device))
    }
}

/// Commands in the order in which they were submitted; some have ended.
#[derive(Default)]
struct Line {
    commands: VecDeque<Watched>,
    /// How many there are when those that have ended are next taken out.
    sweep_at: usize,
    /// The oldest one at the last look, and how many looks it has been that.
    oldest: Option<Watched>,
    looks: u32,
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
        let oldest = self.commands.front();
        let same = oldest.zip(self.oldest.as_ref()).is_some_and(|(now, before)| now.is(before));
        self.looks = if same { self.looks + 1 } else { 0 };
        self.oldest = oldest.cloned();
        self.looks >= LOOKS
    }
}

struct WatchedQueue {
    this: Weak<WatchedQueue>,
    name: String,
    queue: Rc<dyn BlockQueue>,
    local: Local,
    limit: Duration,
    ended: Arc<Ended>,
    line: RefCell<Line>,
    /// A task looks after the line.
    looking: Cell<bool>,
}

impl WatchedQueue {
    /// Looks at the line once; false when nobody has to look again.
    fn look(&self) -> bool {
        let late = self.line.borrow_mut().is_late();
        if late && !self.ended.stalled.swap(true, Ordering::AcqRel) {
            let (drive, outstanding) = (&self.name, self.queue.outstanding());
            tracing::error!(drive, outstanding, limit = ?self.limit, "the drive stalled");
        }
        if self.ended.stalled.load(Ordering::Acquire) {
            self.fail_all();
        }
        let more = !self.line.borrow().commands.is_empty();
        self.looking.set(more);
        more
    }

    fn fail_all(&self) {
        // First what the device never saw, with its memory.
        self.queue.give_up();
        // Nothing is borrowed while callers are woken.
        let commands = std::mem::take(&mut *self.line.borrow_mut()).commands;
        commands.iter().for_each(|command| command.abandon(IoError::Stalled(self.limit)));
    }
}

/// Looks after a line for as long as it is not empty.
async fn look_after(local: Local, queue: Weak<WatchedQueue>, pause: Duration) {
    loop {
        local.sleep(pause).await;
        // Not held while asleep: the queue may go.
        let Some(queue) = queue.upgrade() else { return };
        if !queue.look() {
            return;
        }
    }
}

impl BlockQueue for WatchedQueue {
    fn submit(&self, io: Io) -> Completion {
        if let Some(error) = self.ended.error(self.limit) {
            let (completer, completion) = completion();
            completer.complete(Done::of(io, Err(error)));
            return completion;
        }
        let completion = self.queue.submit(io);
        let command = completion.watched();
        if command.is_pending() {
            self.line.borrow_mut().add(command);
            if !self.looking.replace(true) {
                let pause = self.limit / LOOKS;
                self.local.spawn(look_after(self.local.clone(), self.this.clone(), pause));
            }
        }
        completion
    }

    fn outstanding(&self) -> usize {
        self.queue.outstanding()
    }

    fn give_up(&self) {
        self.queue.give_up();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn done() -> Done {
        Done { result: Ok(()), buf: None }
    }

    #[test]
    fn a_command_is_late_when_it_was_the_oldest_for_all_of_the_limit() {
        let mut line = Line::default();
        let ((first, one), (_second, two)) = (completion(), completion());
        line.add(one.watched());
        line.add(two.watched());
        // The first look finds the oldest, the others find it again.
        (0..LOOKS).for_each(|look| assert!(!line.is_late(), "at look {look}"));
        first.complete(done());
        // However long the second has waited behind it.
        (0..LOOKS).for_each(|look| assert!(!line.is_late(), "at look {look}"));
        assert!(line.is_late());
        two.watched().abandon(IoError::Offline);
        assert!(!line.is_late() && line.commands.is_empty());
    }

    #[test]
    fn one_command_that_hangs_does_not_keep_those_behind_it_in_the_line() {
        let mut line = Line::default();
        let (_hangs, oldest) = completion();
        line.add(oldest.watched());
        for _ in 0..10_000 {
            let (completer, other) = completion();
            line.add(other.watched());
            completer.complete(done());
            assert!(line.commands.len() <= SWEEP);
        }
    }

    #[test]
    fn what_a_driver_does_after_all_is_dropped() {
        let (completer, waits) = completion();
        let watched = waits.watched();
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
