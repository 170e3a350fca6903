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
mod path;
mod piece;

use std::cell::{Cell, RefCell};
use std::os::fd::RawFd;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use memkv_block::{BlockQueue, Commands, Completion, Geometry, Io, IoError, Told};
use memkv_poller::{Interrupt, Local, Poller, Progress};

use crate::admin::AdminError;
use crate::command::Command;
use crate::controller::OVER;
use crate::device::Shared;
use crate::ring::{Entry, Pair, completion_at};
pub(crate) use engine::QUEUE_AREA;
use engine::{Engine, LOOKS, Step};
use path::{NO_ERA, PER_POLL, Path};

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
    while engine.path.running() == NO_ERA {
        // Nobody has asked for anything yet.
        engine.turn_of_change(&mut Told::default());
        if engine.is_settled() {
            return Err(IoError::Offline);
        }
        shared.controller().cut_off();
        shared.transport.pause();
    }
    let path = Rc::clone(&engine.path);
    let engine = Rc::new(RefCell::new(engine));
    let told = Told::with_capacity(PER_POLL as usize);
    let poller = NvmePoller { path: Rc::clone(&path), engine: Rc::clone(&engine), told, interrupt };
    local.add_poller(Box::new(poller));
    let geometry = crate::device::geometry(&shared.shape);
    look_when_asked(&engine, local, period);
    Ok(Rc::new(NvmeQueue { path, engine, geometry }))
}

impl Engine {
    /// One turn while the queue is made, moved to a new life of the controller, or closed.
    #[cold]
    fn turn_of_change(&mut self, told: &mut Told) -> Progress {
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
            self.end_all(told);
            return Progress::Busy(1);
        }
        let Some(admin) = controller.admin().filter(|_| era.is_multiple_of(2)) else {
            self.set_running(NO_ERA);
            return Progress::Idle;
        };
        if era != self.era {
            // The controller was disabled since: it knows nothing of the queue.
            self.set_running(NO_ERA);
            self.begin_anew(era);
            if self.closing && self.outstanding() == 0 {
                self.step = Step::Gone;
                return Progress::Busy(1);
            }
        }
        if self.step == Step::Run {
            // It is being closed: what is begun is ended.
            let progress = self.work(told);
            if self.outstanding() > 0 {
                return progress;
            }
            self.step = Step::DeleteSubmission;
            // Nobody looks after it from here on, and a place in the admin queue is not to be lost.
            if let Some(ticket) = self.overdue.take().and_then(|overdue| overdue.ticket) {
                admin.forget(ticket);
            }
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
                self.arrive(told);
            }
            // The next turn finds the era changed.
            Some(Err(AdminError::Reset)) => self.ticket = None,
            Some(Err(AdminError::Status(status))) => {
                self.ticket = None;
                let (drive, queue, step) = (shared.transport.name(), self.path.id, self.step);
                tracing::error!(drive, queue, ?step, %status, "a queue cannot be managed");
                shared.signals.ask_for_reset(era);
            }
        }
        Progress::Busy(1)
    }

    /// The admin command of this step.
    fn next_command(&self) -> Command {
        let (id, entries) = (self.path.id, self.shared.shape.entries);
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
    fn arrive(&mut self, told: &mut Told) {
        self.step = match self.step {
            Step::CreateCompletion => Step::CreateSubmission,
            Step::CreateSubmission => Step::Run,
            Step::DeleteSubmission => Step::DeleteCompletion,
            _ => Step::Gone,
        };
        if self.step == Step::Run {
            if !self.closing {
                self.set_running(self.era);
            }
            self.resume(told);
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
            let (drive, queue) = (shared.transport.name(), self.path.id);
            tracing::warn!(drive, queue, id, "a command takes too long and is aborted");
            shared.troubles.aborts.fetch_add(1, Ordering::Relaxed);
            overdue.ticket = admin.submit(Command::abort(self.path.id, id), now);
            self.overdue = Some(overdue);
        }
    }
}

impl Drop for Engine {
    /// Waits until the drive has let go of every buffer and of the queue. With a controller that can
    /// neither be asked nor reset nor cut off, they are leaked.
    fn drop(&mut self) {
        self.closing = true;
        self.set_running(NO_ERA);
        let shared = Arc::clone(&self.shared);
        let period = shared.options.command_limit / u32::from(LOOKS);
        let mut next_look = shared.clock.now() + period;
        let mut told = Told::default();
        while !self.is_settled() {
            if self.given_up && self.has_in_drive() {
                self.leak(&mut told);
                return told.tell();
            }
            self.turn_of_change(&mut told);
            told.tell();
            shared.controller().cut_off();
            if shared.clock.now() >= next_look {
                self.look();
                next_look = shared.clock.now() + period;
            }
            shared.transport.pause();
        }
        if let Some(area) = self.area.take() {
            drop(area);
            shared.release_queue(self.path.id);
        }
    }
}

/// Looks after commands for as long as there are any.
async fn look_after(local: Local, looks: Weak<Looks>) {
    loop {
        let Some(period) = looks.upgrade().map(|looks| looks.period) else { return };
        local.sleep(period).await;
        // Not held while asleep: the queue may go.
        let Some(looks) = looks.upgrade() else { return };
        let Some(engine) = looks.engine.upgrade() else { return };
        let mut engine = engine.borrow_mut();
        engine.look();
        if engine.outstanding() == 0 && engine.overdue.is_none() {
            looks.looking.set(false);
            engine.path.commands.rest();
            return;
        }
    }
}

/// What it takes to look after the commands of a queue.
struct Looks {
    engine: Weak<RefCell<Engine>>,
    /// How often the drive is looked at while it has commands.
    period: Duration,
    /// A task does.
    looking: Cell<bool>,
}

/// Has a task look after the commands whenever there are any.
fn look_when_asked(engine: &Rc<RefCell<Engine>>, local: &Local, period: Duration) {
    let (weak, local) = (Rc::downgrade(engine), local.clone());
    let looks = Rc::new(Looks { engine: weak, period, looking: Cell::new(false) });
    engine.borrow().path.commands.on_begin(move || {
        if !looks.looking.replace(true) {
            local.spawn(look_after(local.clone(), Rc::downgrade(&looks)));
        }
    });
}

struct NvmeQueue {
    path: Rc<Path>,
    engine: Rc<RefCell<Engine>>,
    geometry: Geometry,
}

impl NvmeQueue {
    /// Ends a request of which the drive is not told.
    #[cold]
    fn refuse(&self, io: &mut Io, error: IoError) -> Completion {
        let (given, completion) = self.path.commands.give(&mut io.buf);
        self.path.counters.refused();
        // Nobody waits yet.
        given.fail(error, &mut Told::default());
        completion
    }

    /// Takes a request that is not short and plain, with its buffer.
    #[inline(never)]
    fn submit_other(&self, io: &mut Io) -> Completion {
        self.path.take_long(io).unwrap_or_else(|| self.submit_any(io))
    }

    /// Takes a request that is not of the plain kind, or not now, with its buffer.
    #[inline(never)]
    fn submit_any(&self, io: &mut Io) -> Completion {
        let refusal = self.path.commands.refusal();
        if let Some(error) = refusal.or_else(|| self.geometry.check(io).err()) {
            return self.refuse(io, error);
        }
        let mut told = Told::default();
        let mut engine = self.engine.borrow_mut();
        let completion = engine.take_any(io, &mut told);
        drop(engine);
        told.tell();
        completion
    }
}

impl BlockQueue for NvmeQueue {
    fn submit(&self, mut io: Io) -> Completion {
        let completion = match self.path.take_short(&mut io) {
            Some(completion) => completion,
            None => self.submit_other(&mut io),
        };
        // Its buffer was taken: there is nothing to drop.
        std::mem::forget(io);
        completion
    }

    fn commands(&self) -> Option<&Commands> {
        Some(&self.path.commands)
    }

    fn outstanding(&self) -> usize {
        self.engine.borrow().outstanding()
    }

    fn give_up(&self) {
        let mut told = Told::default();
        self.engine.borrow_mut().give_up(&mut told);
        // Nothing is borrowed here: whoever is woken may submit.
        told.tell();
    }
}

impl Drop for NvmeQueue {
    /// The poller ends what has begun, and the queue.
    fn drop(&mut self) {
        let mut engine = self.engine.borrow_mut();
        engine.closing = true;
        engine.set_running(NO_ERA);
    }
}

struct NvmePoller {
    path: Rc<Path>,
    engine: Rc<RefCell<Engine>>,
    told: Told,
    interrupt: Option<RawFd>,
}

/// Has the engine take an answer that is not simply that all went well with a plain command.
#[inline(never)]
fn answered(engine: &RefCell<Engine>, told: &mut Told, entry: Entry) -> bool {
    with_engine(engine, told, |engine, told| engine.answered(entry, told))
}

/// Has the engine do what is not of the plain kind.
#[inline(never)]
fn with_engine<T>(
    engine: &RefCell<Engine>,
    told: &mut Told,
    work: impl FnOnce(&mut Engine, &mut Told) -> T,
) -> T {
    let done = work(&mut engine.borrow_mut(), told);
    // Nothing is borrowed while callers are told: whoever is woken may submit.
    told.tell();
    done
}

impl Poller for NvmePoller {
    fn name(&self) -> &'static str {
        "nvme"
    }

    /// No system call, at most three doorbells and [`PER_POLL`](engine::PER_POLL) answers.
    fn poll(&mut self) -> Progress {
        let NvmePoller { path, engine, told, .. } = self;
        let path: &Path = path;
        if path.signals.era() != path.running() {
            return with_engine(engine, told, Engine::turn_of_change);
        }
        let sent = path.send_new(path.running());
        let mut left = PER_POLL;
        // Even if the drive has nothing that it could answer: then nothing that it says can be relied on.
        let mut odd = path.counters.depth() == 0;
        while let Some(entry) = path.pair.next() {
            if (odd || !path.is_done(entry)) && !answered(engine, told, entry) {
                break;
            }
            left -= 1;
            odd = path.counters.depth() == 0;
            if left == 0 || odd {
                break;
            }
        }
        if left < PER_POLL && path.settle() {
            with_engine(engine, told, Engine::move_up);
        }
        Progress::of(sent + PER_POLL - left)
    }

    fn arm(&mut self) -> Interrupt {
        let engine = self.engine.borrow_mut();
        if engine.is_settled() || (engine.outstanding() == 0 && !engine.closing) {
            return Interrupt::Quiet;
        }
        let Some(descriptor) = self.interrupt else { return Interrupt::Busy };
        let path = &*self.path;
        if path.signals.era() != path.running() {
            return Interrupt::Busy;
        }
        // A drive that thinks that it was not heard may not raise its interrupt again.
        path.acknowledge_in(engine.era);
        engine.shared.transport.quiet(path.id);
        // What came before is not told again.
        if path.pair.has_next() || !path.pair.is_rung() {
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
