//! One reactor's queue pair on a drive.
//!
//! ```text
//!   submit ─► request ─► trackers ─► ring ─┐  told by one doorbell: at once if the drive has nothing to do,
//!                                          ▼  else with the others of the reactor's pass
//!   Done  ◄── request ◄── trackers ◄── ring ◄─ drive
//! ```
//!
//! The poller runs last in every pass of the reactor. As long as the [era](crate::controller) is that
//! in which the queue was made it looks at the ring and nothing else. When it is another one, the poller
//! drives the controller's machine if nobody else does, makes its queue anew, and gives the controller
//! everything again that was in flight.

mod engine;
mod piece;

use std::cell::RefCell;
use std::os::fd::RawFd;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use memkv_block::{BlockQueue, Completer, Completion, Done, Geometry, Io, IoError, completion};
use memkv_poller::{Interrupt, Local, Poller, Progress};

use crate::admin::AdminError;
use crate::command::Command;
use crate::controller::OVER;
use crate::device::Shared;
use crate::ring::{Pair, completion_at};
pub(crate) use engine::QUEUE_AREA;
use engine::{Engine, Finished, LOOKS, NO_ERA, Step};

/// Makes a queue on the reactor. Blocks for two commands of the controller.
pub(crate) fn open(shared: Arc<Shared>, local: &Local) -> Result<Rc<dyn BlockQueue>, IoError> {
    let none_left = || IoError::Os(std::io::ErrorKind::QuotaExceeded.into());
    let (id, mut area) = shared.claim_queue().ok_or_else(none_left)?;
    let Some(doorbells) = shared.registers.doorbells(id, shared.stride) else {
        shared.release_queue(id);
        return Err(none_left());
    };
    let pair = Pair::new(&mut area, shared.shape.entries, doorbells);
    let interrupt = if shared.options.interrupts { shared.transport.interrupt(id) } else { None };
    let period = shared.options.command_limit / u32::from(LOOKS);
    let mut engine = Engine::new(Arc::clone(&shared), id, area, pair);
    while engine.running == NO_ERA {
        engine.turn(&mut Vec::new());
        if engine.is_settled() {
            return Err(IoError::Offline);
        }
        shared.transport.pause();
    }
    let engine = Rc::new(RefCell::new(engine));
    let poller = NvmePoller { engine: Rc::clone(&engine), finished: Vec::new(), interrupt };
    local.add_poller(Box::new(poller));
    let geometry = crate::device::geometry(&shared.shape);
    Ok(Rc::new(NvmeQueue { engine, geometry, local: local.clone(), period }))
}

impl Engine {
    /// One turn, in whatever state the controller is.
    #[inline]
    fn turn(&mut self, finished: &mut Vec<Finished>) -> Progress {
        if self.shared.signals.era() == self.running {
            return self.work();
        }
        self.turn_of_change(finished)
    }

    /// One turn while the queue is made, moved to a new life of the controller, or closed.
    #[cold]
    fn turn_of_change(&mut self, finished: &mut Vec<Finished>) -> Progress {
        if self.is_settled() {
            return Progress::Idle;
        }
        let shared = Arc::clone(&self.shared);
        let now = shared.clock.now();
        // Somebody else drives the controller on, or asks it something.
        let Some(mut controller) = shared.try_controller() else { return Progress::Idle };
        controller.step(now);
        let era = shared.signals.era();
        if era == OVER {
            self.end_all(finished);
            return Progress::Busy(1);
        }
        let Some(admin) = controller.admin().filter(|_| era.is_multiple_of(2)) else {
            self.running = NO_ERA;
            return Progress::Idle;
        };
        if era != self.era {
            // The controller was disabled since: it knows nothing of the queue.
            self.running = NO_ERA;
            self.begin_anew(era);
            if self.closing && self.outstanding() == 0 {
                self.step = Step::Gone;
                return Progress::Busy(1);
            }
        }
        if self.step == Step::Run {
            // It is being closed: what is begun is ended.
            let progress = self.work();
            if self.outstanding() > 0 {
                return progress;
            }
            self.step = Step::DeleteSubmission;
        }
        let Some(ticket) = &self.ticket else {
            self.ticket = admin.submit(self.next_command(), now);
            return Progress::Busy(1);
        };
        match admin.take(ticket) {
            None => return Progress::Idle,
            Some(Ok(_)) => {
                self.ticket = None;
                drop(controller);
                self.arrive();
            }
            // The next turn finds the era changed.
            Some(Err(AdminError::Reset)) => self.ticket = None,
            Some(Err(AdminError::Status(status))) => {
                self.ticket = None;
                let (drive, queue, step) = (shared.transport.name(), self.id, self.step);
                tracing::error!(drive, queue, ?step, %status, "a queue cannot be managed");
                shared.signals.ask_for_reset(era);
            }
        }
        Progress::Busy(1)
    }

    /// The admin command of this step.
    fn next_command(&self) -> Command {
        let (id, entries) = (self.id, self.shared.shape.entries);
        let area = self.area.as_ref().expect("only a queue that is over has none");
        let shared = &self.shared;
        let interrupts = shared.options.interrupts && shared.transport.interrupt(id).is_some();
        match self.step {
            Step::CreateCompletion => Command::create_completion_queue(
                id,
                entries,
                area.iova(completion_at(entries)),
                interrupts.then_some(id),
            ),
            Step::CreateSubmission => Command::create_submission_queue(id, entries, area.iova(0)),
            Step::DeleteSubmission => Command::delete_submission_queue(id),
            Step::DeleteCompletion => Command::delete_completion_queue(id),
            step => unreachable!("{step:?} asks nothing"),
        }
    }

    /// A step was done.
    fn arrive(&mut self) {
        self.step = match self.step {
            Step::CreateCompletion => Step::CreateSubmission,
            Step::CreateSubmission => Step::Run,
            Step::DeleteSubmission => Step::DeleteCompletion,
            _ => Step::Gone,
        };
        if self.step == Step::Run {
            if !self.closing {
                self.running = self.era;
            }
            self.resume();
        }
    }

    /// Looks whether the drive is well and answers in time. Counted in looks, not by the clock: after a
    /// pause of the whole process everything looks late, and nothing is.
    fn look(&mut self) {
        let shared = Arc::clone(&self.shared);
        let Some(mut controller) = shared.try_controller() else { return };
        let now = shared.clock.now();
        controller.examine(now);
        controller.step(now);
        if self.step != Step::Run || shared.signals.era() != self.era {
            return;
        }
        let Some(admin) = controller.admin() else { return };
        let late = self.age();
        if let Some(overdue) = &mut self.overdue
            && overdue.ticket.as_ref().is_some_and(|ticket| admin.take(ticket).is_some())
        {
            overdue.ticket = None;
        }
        if self.is_beyond_abort() {
            tracing::error!(drive = shared.transport.name(), "a command is not answered");
            shared.signals.ask_for_reset(self.era);
        } else if let Some((id, mut overdue)) = late {
            let (drive, queue) = (shared.transport.name(), self.id);
            tracing::warn!(drive, queue, id, "a command takes too long and is aborted");
            shared.troubles.aborts.fetch_add(1, Ordering::Relaxed);
            overdue.ticket = admin.submit(Command::abort(self.id, id), now);
            self.overdue = Some(overdue);
        }
    }
}

impl Drop for Engine {
    /// Waits until the drive has let go of every buffer and of the queue. With a controller that can
    /// neither be asked nor reset nor cut off, they are leaked.
    fn drop(&mut self) {
        (self.closing, self.running) = (true, NO_ERA);
        let shared = Arc::clone(&self.shared);
        let period = shared.options.command_limit / u32::from(LOOKS);
        let mut next_look = shared.clock.now() + period;
        let mut finished = Vec::new();
        while !self.is_settled() {
            if self.given_up && self.has_in_drive() {
                return self.leak();
            }
            self.turn(&mut finished);
            while let Some(ended) = self.next_ended() {
                ended.0.complete(ended.1);
            }
            complete_all(&mut finished);
            if shared.clock.now() >= next_look {
                self.look();
                next_look = shared.clock.now() + period;
            }
            shared.transport.pause();
        }
        if let Some(area) = self.area.take() {
            drop(area);
            shared.release_queue(self.id);
        }
    }
}

fn complete_all(finished: &mut Vec<Finished>) {
    for (completer, done) in finished.drain(..) {
        completer.complete(done);
    }
}

/// Looks after commands for as long as there are any.
async fn look_after(local: Local, engine: Weak<RefCell<Engine>>, period: Duration) {
    loop {
        local.sleep(period).await;
        // Not held while asleep: the queue may go.
        let Some(engine) = engine.upgrade() else { return };
        let mut engine = engine.borrow_mut();
        engine.look();
        if engine.outstanding() == 0 && engine.overdue.is_none() {
            engine.looking = false;
            return;
        }
    }
}

struct NvmeQueue {
    engine: Rc<RefCell<Engine>>,
    geometry: Geometry,
    local: Local,
    /// How often the drive is looked at while it has commands.
    period: Duration,
}

impl NvmeQueue {
    #[cold]
    fn look_after(&self) {
        let task = look_after(self.local.clone(), Rc::downgrade(&self.engine), self.period);
        self.local.spawn(task);
    }
}

impl NvmeQueue {
    /// Ends a request that is not for the drive.
    #[cold]
    fn end_here(&self, io: Io, completer: Completer) {
        let engine = self.engine.borrow();
        let Err(result) = engine.admit_any(&io) else {
            unreachable!("what is for the drive was admitted");
        };
        engine.shared.counters.done(&io, result.is_ok());
        drop(engine);
        refuse(io, completer, result);
    }
}

#[cold]
fn refuse(io: Io, completer: Completer, result: Result<(), IoError>) {
    completer.complete(Done::of(io, result));
}

impl BlockQueue for NvmeQueue {
    fn submit(&self, io: Io) -> Completion {
        let (completer, completion) = completion();
        if let Err(error) = self.geometry.check(&io) {
            refuse(io, completer, Err(error));
            return completion;
        }
        let mut engine = self.engine.borrow_mut();
        let Some(iova) = engine.admit(&io) else {
            drop(engine);
            self.end_here(io, completer);
            return completion;
        };
        engine.take(io, completer, iova);
        let watched = std::mem::replace(&mut engine.looking, true);
        drop(engine);
        if !watched {
            self.look_after();
        }
        completion
    }

    fn outstanding(&self) -> usize {
        self.engine.borrow().outstanding()
    }

    fn give_up(&self) {
        let mut finished = Vec::new();
        self.engine.borrow_mut().give_up(&mut finished);
        // Nothing is borrowed here: whoever is woken may submit.
        complete_all(&mut finished);
    }
}

impl Drop for NvmeQueue {
    /// The poller ends what has begun, and the queue.
    fn drop(&mut self) {
        let mut engine = self.engine.borrow_mut();
        (engine.closing, engine.running) = (true, NO_ERA);
    }
}

struct NvmePoller {
    engine: Rc<RefCell<Engine>>,
    /// What a controller that is out of service leaves.
    finished: Vec<Finished>,
    interrupt: Option<RawFd>,
}

impl Poller for NvmePoller {
    fn name(&self) -> &'static str {
        "nvme"
    }

    /// No system call, at most three doorbells and [`PER_POLL`](engine::PER_POLL) answers.
    fn poll(&mut self) -> Progress {
        let progress = self.engine.borrow_mut().turn(&mut self.finished);
        // Nothing is borrowed while callers are told: whoever is woken may submit.
        loop {
            let Some(ended) = self.engine.borrow_mut().next_ended() else { break };
            ended.0.complete(ended.1);
        }
        complete_all(&mut self.finished);
        progress
    }

    fn arm(&mut self) -> Interrupt {
        let engine = self.engine.borrow_mut();
        if engine.is_settled() || (engine.outstanding() == 0 && !engine.closing) {
            return Interrupt::Quiet;
        }
        let Some(descriptor) = self.interrupt else { return Interrupt::Busy };
        if engine.shared.signals.era() != engine.running {
            return Interrupt::Busy;
        }
        engine.shared.transport.quiet(engine.id);
        // What came before is not told again.
        if engine.pair.has_next() || !engine.pair.is_rung() {
            return Interrupt::Busy;
        }
        Interrupt::Fd(descriptor)
    }

    /// Once the queue is gone and the device has let go of everything.
    fn retired(&self) -> bool {
        let engine = self.engine.borrow();
        engine.closing && engine.is_settled()
    }
}
