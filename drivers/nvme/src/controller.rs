//! One controller's life: an explicit state machine with a deadline in every state.
//!
//! ```text
//!   Settling ─► Disabling ─► Enabling ─► IdentifyingController ─► ReadingLimits ─► ListingNamespaces
//!                  ▲                                                                      │
//!              Quieting ◄─ reset ──── Ready ◄─ SettingQueues ◄─ IdentifyingNamespace ◄──┘
//!                                         │
//!       Off ◄─ Stopping ◄─ ShuttingDown ◄─┘            any state ─► Failing ─► Failed
//! ```
//!
//! Bring-up follows the Base Specification 2.0, section 3.5.1, shutdown section 3.6.1, reset section 3.7.2.
//! How long a state may last is said by CAP.TO (or CRTO), by RTD3E for a shutdown, and by us for admin
//! commands. Nobody waits in here: [`Controller::step`] looks once and goes as far as it can, so that
//! any reactor can drive it between other work.
//!
//! The machine runs under a lock, off the path of data. Reactors learn of what happens to the
//! controller by one number, the [era](Signals): even while it runs, odd from the moment a reset is
//! asked for until it is up again, each time two more. Their queues are gone with the era they were
//! made in, but no buffer is: it stays where it is until its command is answered in a later era, or the
//! controller is cut off from memory.
//!
//! A doorbell of a queue that the controller does not know may not be rung (Base Specification 2.0, section
//! 3.1.3.24: what that does is not defined). So a reactor says that it rings before it looks at the era,
//! and the machine disables the controller only once the era is odd and nobody rings
//! ([`Signals::ring`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use memkv_poller::Instant;

use crate::admin::{Admin, AdminError, IDENTIFY_AT, Look, Ticket};
use crate::barrier;
use crate::command::{Command, cns};
use crate::error::NvmeError;
use crate::identify::{ControllerPage, LimitsPage, NamespacePage, PAGE, namespaces};
use crate::registers::{Capabilities, ENABLE, Registers, SHUTDOWN_MASK, SHUTDOWN_NORMAL};
use crate::shape::{Identity, Shape};
use crate::transport::Transport;

/// The era of a controller that is out of service for good.
pub(crate) const OVER: u32 = u32::MAX;

/// How many resets in how long make a drive a broken one.
const RESETS: usize = 5;
const RESETS_WITHIN: Duration = Duration::from_secs(600);

/// How long a shutdown may take where the drive does not say: the recommendation for hosts. And where it
/// does: it could say an hour, and a process that ends waits for it.
const SHUTDOWN: Duration = Duration::from_secs(10);
const SHUTDOWN_MAX: Duration = Duration::from_secs(60);

/// CC.IOSQES and CC.IOCQES: entries of 64 and of 16 bytes.
const ENTRY_SIZES: u32 = 6 << 16 | 4 << 20;

/// What reactors see of a controller without any lock.
pub(crate) struct Signals {
    era: AtomicU32,
    cut: AtomicBool,
    /// How often it was reset.
    resets: AtomicU64,
    /// One for each queue.
    bells: Box<[Arc<Bell>]>,
}

/// Whether the owner of a queue is about to ring one of its doorbells.
#[derive(Default)]
// A line of its own, and the next one, which processors fetch along: other reactors write to others.
#[repr(align(128))]
pub(crate) struct Bell(AtomicBool);

impl Signals {
    /// The era; [`OVER`] when it is out of service.
    #[inline]
    pub fn era(&self) -> u32 {
        self.era.load(Ordering::Acquire)
    }

    /// Asks for a reset of the controller as it is in `era`; true for the first who does.
    pub fn ask_for_reset(&self, era: u32) -> bool {
        era.is_multiple_of(2)
            && self.era.compare_exchange(era, era + 1, Ordering::SeqCst, Ordering::Acquire).is_ok()
    }

    /// The bell of a queue.
    pub fn bell(&self, queue: u16) -> Arc<Bell> {
        Arc::clone(&self.bells[usize::from(queue) - 1])
    }

    /// Rings a doorbell of the queue whose bell this is and that was made in `era`, unless the controller
    /// has left that: then the queue is none of its queues any more, and false comes back.
    ///
    /// 1. It is said that the doorbell is being rung.
    /// 2. The era is looked at. Whoever has changed it before, and looks at the bells then, sees what was
    ///    said; whoever changes it later than that finds a controller that still had the queue.
    /// 3. The doorbell is rung, and after it the bell is quiet again.
    #[inline(always)]
    pub fn ring(&self, bell: &Bell, era: u32, ring: impl FnOnce()) -> bool {
        let bell = &bell.0;
        bell.swap(true, Ordering::SeqCst);
        let has_it = self.era.load(Ordering::SeqCst) == era;
        if has_it {
            ring();
            // The doorbell reaches the controller before anybody sees the bell quiet.
            barrier::before_doorbell();
        }
        bell.store(false, Ordering::Release);
        has_it
    }

    /// How often the controller was reset.
    pub fn resets(&self) -> u64 {
        self.resets.load(Ordering::Relaxed)
    }

    /// Nobody rings: to be asked once the era is odd, and then nobody will.
    fn are_quiet(&self) -> bool {
        self.bells.iter().all(|bell| !bell.0.load(Ordering::SeqCst))
    }

    /// Whether it is certain that a controller out of service reaches no memory any more.
    pub fn is_cut_off(&self) -> bool {
        self.cut.load(Ordering::Acquire)
    }
}

/// Where a controller is in its life.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum State {
    /// Somebody has enabled it and it is not ready: not to be disabled in the middle.
    Settling,
    /// Reactors still ring the doorbells of queues that it is about to forget.
    Quieting,
    Disabling,
    Enabling,
    IdentifyingController,
    ReadingLimits,
    ListingNamespaces,
    IdentifyingNamespace,
    SettingQueues,
    Ready,
    ShuttingDown,
    Stopping,
    /// Stopped: it reaches no memory.
    Off,
    /// Out of service; it may still reach memory, until somebody who may block cuts it off.
    Failing,
    Failed,
}

impl State {
    /// What the controller was asked to do, for errors.
    fn words(self) -> &'static str {
        match self {
            State::Settling => "becoming ready for somebody else",
            State::Quieting => "left alone by those who have its queues",
            State::Disabling => "disabled",
            State::Enabling => "enabled",
            State::IdentifyingController => "asked what it is",
            State::ReadingLimits => "asked for its limits",
            State::ListingNamespaces => "asked for its namespaces",
            State::IdentifyingNamespace => "asked about its namespace",
            State::SettingQueues => "asked for queues",
            State::Ready => "ready",
            State::ShuttingDown => "shut down",
            State::Stopping => "stopped",
            State::Off => "off",
            State::Failing | State::Failed => "failed",
        }
    }
}

/// What is asked of a controller.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Wishes {
    pub namespace: Option<u32>,
    pub queues: u16,
    pub admin_limit: Duration,
}

/// What bring-up has found so far.
#[derive(Default)]
struct Findings {
    controller: Option<ControllerPage>,
    limits: LimitsPage,
    /// Noted the first time: a reset asks for no memory.
    namespaces: Vec<u32>,
    namespace: u32,
    page: Option<NamespacePage>,
}

pub(crate) struct Controller {
    transport: Arc<dyn Transport>,
    registers: Registers,
    capabilities: Capabilities,
    version: (u16, u8),
    wishes: Wishes,
    /// Taken only when its memory has to be leaked.
    admin: Option<Admin>,
    signals: Arc<Signals>,
    state: State,
    /// When the present state has lasted too long, and how long that is.
    until: Instant,
    limit: Duration,
    ticket: Option<Ticket>,
    findings: Findings,
    identity: Option<Identity>,
    failure: Option<NvmeError>,
    /// The last resets.
    resets: [Instant; RESETS],
}

type Next = Result<Option<State>, NvmeError>;

impl Controller {
    /// A controller of which nothing is known but its registers.
    pub fn new(
        transport: Arc<dyn Transport>,
        registers: Registers,
        admin: Admin,
        wishes: Wishes,
        now: Instant,
    ) -> Result<Controller, NvmeError> {
        let gone = |_| NvmeError::Removed;
        let bells = std::iter::repeat_with(Arc::default).take(wishes.queues.into()).collect();
        let signals = Signals {
            era: AtomicU32::new(1),
            cut: AtomicBool::new(false),
            resets: AtomicU64::new(0),
            bells,
        };
        let mut controller = Controller {
            transport,
            capabilities: registers.capabilities().map_err(gone)?,
            version: registers.version().map_err(gone)?,
            registers,
            wishes,
            admin: Some(admin),
            signals: Arc::new(signals),
            state: State::Settling,
            until: Instant::MAX,
            limit: Duration::ZERO,
            ticket: None,
            findings: Findings::default(),
            identity: None,
            failure: None,
            resets: [Instant::ORIGIN; RESETS],
        };
        if controller.capabilities.command_set().is_none() {
            return Err(NvmeError::CommandSet);
        }
        controller.enter(State::Settling, now);
        Ok(controller)
    }

    pub fn state(&self) -> State {
        self.state
    }

    pub fn signals(&self) -> &Arc<Signals> {
        &self.signals
    }

    /// What it is, once it has been ready.
    pub fn identity(&self) -> Option<&Identity> {
        self.identity.as_ref()
    }

    /// Why it failed; told once.
    pub fn take_failure(&mut self) -> NvmeError {
        self.failure.take().unwrap_or(NvmeError::Offline)
    }

    /// The admin queue, while the controller is ready.
    pub fn admin(&mut self) -> Option<&mut Admin> {
        if self.state == State::Ready { self.admin.as_mut() } else { None }
    }

    /// Looks whether the drive is still there and well; what is wrong shows in the state.
    pub fn examine(&mut self, now: Instant) {
        if self.state == State::Ready {
            match self.registers.status() {
                Err(_) => self.fail(NvmeError::Removed),
                Ok(status) if status.is_fatal() => self.reset("it reports that it has failed", now),
                Ok(_) => {}
            }
        }
    }

    /// Takes it out of service, for the system wants it back, or somebody opens it anew.
    pub fn recall(&mut self, why: NvmeError) {
        if !matches!(self.state, State::Off | State::Failing | State::Failed) {
            self.fail(why);
        }
    }

    /// Goes as far as the controller has come. Says whether anything has changed.
    pub fn step(&mut self, now: Instant) -> bool {
        let mut moved = false;
        // Each round is another state; no state leads back to itself without the controller's doing.
        loop {
            match self.next(now) {
                Ok(Some(state)) => self.enter(state, now),
                Ok(None) if now > self.until => {
                    self.fail(NvmeError::Deadline { state: self.state.words(), limit: self.limit })
                }
                Ok(None) => return moved,
                Err(error) => self.fail(error),
            }
            moved = true;
        }
    }

    /// Ends its use in good order, from whatever state.
    pub fn shut_down(&mut self, now: Instant) {
        match self.state {
            State::Ready => self.enter(State::ShuttingDown, now),
            State::ShuttingDown | State::Stopping | State::Off => {}
            State::Failing | State::Failed => {}
            _ => self.enter(State::Stopping, now),
        }
    }

    /// Leaks what the controller may still write to.
    pub fn leak(&mut self) {
        if let Some(admin) = self.admin.take() {
            admin.leak();
            std::mem::forget(Arc::clone(&self.transport));
        }
    }

    /// Where the controller stands: the state that follows, if it has come there.
    fn next(&mut self, now: Instant) -> Next {
        match self.state {
            State::Settling => {
                let enabled = self.configuration()? & ENABLE != 0;
                let status = self.status()?;
                let settled =
                    !enabled || status.is_ready() || status.is_fatal() || now > self.until;
                Ok(settled.then_some(State::Disabling))
            }
            State::Quieting => Ok(self.signals.are_quiet().then_some(State::Disabling)),
            State::Disabling => Ok((!self.status()?.is_ready()).then_some(State::Enabling)),
            State::Enabling => {
                let status = self.status()?;
                if status.is_fatal() {
                    return Err(NvmeError::Fatal { state: self.state.words() });
                }
                Ok(status.is_ready().then_some(State::IdentifyingController))
            }
            State::Ready => self.next_of_ready(now),
            State::ShuttingDown => Ok(self.status()?.is_shut_down().then_some(State::Stopping)),
            State::Stopping => Ok((!self.status()?.is_ready()).then_some(State::Off)),
            State::Off | State::Failing | State::Failed => Ok(None),
            _ => self.next_of_asking(now),
        }
    }

    fn next_of_ready(&mut self, now: Instant) -> Next {
        let admin = self.admin.as_mut().expect("a ready controller has a queue");
        match admin.poll(now) {
            Look::Fine(_) if self.signals.era().is_multiple_of(2) => Ok(None),
            Look::Fine(_) => {
                self.begin_reset("a command of it was not answered as it should be", now)
            }
            Look::Spurious => self.begin_reset("it answers what was not asked", now),
            Look::Overdue => self.begin_reset("it does not answer an admin command", now),
        }
    }

    /// In the states that wait for one admin command.
    fn next_of_asking(&mut self, now: Instant) -> Next {
        let admin = self.admin.as_mut().expect("a controller that is brought up has a queue");
        let state = self.state;
        if admin.poll(now) == Look::Spurious || self.registers.status().is_ok_and(|s| s.is_fatal())
        {
            return Err(NvmeError::Fatal { state: state.words() });
        }
        let outcome = self.ticket.as_ref().and_then(|ticket| admin.take(ticket));
        let Some(outcome) = outcome else {
            self.status()?;
            return Ok(None);
        };
        self.ticket = None;
        let result = match outcome {
            Ok(result) => result,
            // Old controllers know no such page; then there are no limits but the common ones.
            Err(AdminError::Status(_)) if state == State::ReadingLimits => {
                self.findings.limits = LimitsPage::default();
                return Ok(Some(State::ListingNamespaces));
            }
            Err(AdminError::Status(status)) => {
                return Err(NvmeError::Command { state: state.words(), status });
            }
            Err(AdminError::Reset) => unreachable!("nobody else resets a controller in bring-up"),
        };
        let page = admin.area().copy::<PAGE>(IDENTIFY_AT);
        self.learn(result, &page).map(Some)
    }

    /// Takes the answer to the command of this state.
    fn learn(&mut self, result: u32, page: &[u8; PAGE]) -> Result<State, NvmeError> {
        let found = &mut self.findings;
        match self.state {
            State::IdentifyingController => {
                found.controller = Some(ControllerPage::parse(page)?);
                Ok(State::ReadingLimits)
            }
            State::ReadingLimits => {
                found.limits = LimitsPage::parse(page);
                Ok(State::ListingNamespaces)
            }
            State::ListingNamespaces => {
                let wanted = self.wishes.namespace.or_else(|| namespaces(page).next());
                let listed = wanted.filter(|wanted| namespaces(page).any(|id| id == *wanted));
                let found_count = namespaces(page).count();
                found.namespace = listed.ok_or(NvmeError::NoNamespace { found: found_count })?;
                if self.identity.is_none() {
                    found.namespaces = namespaces(page).collect();
                }
                Ok(State::IdentifyingNamespace)
            }
            State::IdentifyingNamespace => {
                found.page = Some(NamespacePage::parse(found.namespace, page)?);
                Ok(State::SettingQueues)
            }
            State::SettingQueues => {
                // Both counts are from 0: submission queues, completion queues (section 5.27.1.5).
                let granted = (result & 0xffff).min(result >> 16) + 1;
                self.settle(granted.min(u32::from(self.wishes.queues)) as u16)?;
                Ok(State::Ready)
            }
            state => unreachable!("{state:?} asks nothing"),
        }
    }

    /// Makes of what was found what is used; after a reset it must be what it was.
    fn settle(&mut self, queues: u16) -> Result<(), NvmeError> {
        let found = std::mem::take(&mut self.findings);
        let (controller, page) = (found.controller, found.page);
        let controller = controller.expect("asked in an earlier state");
        let page = page.expect("asked in an earlier state");
        let shape = Shape::of(self.capabilities, &controller, found.limits, found.namespace, page)?;
        match &self.identity {
            Some(before) if !before.is_same_drive(&controller, &shape, queues) => {
                Err(NvmeError::Changed)
            }
            Some(_) => Ok(()),
            None => {
                let (version, namespaces) = (self.version, found.namespaces);
                let identity = Identity { version, controller, namespaces, shape, queues };
                self.identity = Some(identity);
                Ok(())
            }
        }
    }

    /// What is done on the way into a state, and how long it may last.
    fn enter(&mut self, state: State, now: Instant) {
        self.state = state;
        self.limit = match state {
            State::Ready | State::Off | State::Failing | State::Failed => Duration::MAX,
            State::Settling
            | State::Quieting
            | State::Disabling
            | State::Enabling
            | State::Stopping => self.registers.ready_timeout(self.capabilities),
            State::ShuttingDown => {
                let told = self.identity.as_ref().and_then(|it| it.controller.shutdown);
                told.unwrap_or(SHUTDOWN).clamp(SHUTDOWN, SHUTDOWN_MAX)
            }
            _ => self.wishes.admin_limit,
        };
        self.until = now + self.limit;
        match state {
            State::Disabling | State::Stopping => self.disable(),
            State::Enabling => self.enable(),
            State::Ready => {
                let era = self.signals.era();
                // Odd until now; nobody else changes an odd one.
                self.signals.era.store(era.wrapping_add(1), Ordering::Release);
            }
            State::ShuttingDown => {
                // Removed meanwhile: the next look tells.
                let was = self.registers.configuration().unwrap_or(ENABLE);
                self.registers.configure(was & !SHUTDOWN_MASK | SHUTDOWN_NORMAL);
            }
            State::Off => self.end(true),
            _ => self.ask(now),
        }
    }

    /// Submits the command of a state that waits for one.
    fn ask(&mut self, now: Instant) {
        let admin = self.admin.as_mut().expect("a controller that is brought up has a queue");
        let page = admin.area().iova(IDENTIFY_AT);
        let command = match self.state {
            State::IdentifyingController => Command::identify(cns::CONTROLLER, 0, page),
            State::ReadingLimits => Command::identify(cns::COMMAND_SET_LIMITS, 0, page),
            State::ListingNamespaces => Command::identify(cns::ACTIVE_NAMESPACES, 0, page),
            State::IdentifyingNamespace => {
                Command::identify(cns::NAMESPACE, self.findings.namespace, page)
            }
            State::SettingQueues => Command::set_queues(self.wishes.queues),
            _ => return,
        };
        // What an earlier command left is not an answer to this one.
        admin.area().zero(IDENTIFY_AT, PAGE);
        self.ticket = admin.submit(command, now);
        assert!(self.ticket.is_some(), "a controller that is brought up has no other commands");
    }

    fn disable(&mut self) {
        // Removed meanwhile: the next look tells.
        let was = self.registers.configuration().unwrap_or(0);
        self.registers.configure(was & !ENABLE & !SHUTDOWN_MASK);
    }

    /// The controller is disabled: nothing of ours is in its hands.
    fn enable(&mut self) {
        let admin = self.admin.as_mut().expect("a controller that is brought up has a queue");
        admin.reset();
        let (submission, completion) = admin.rings();
        self.registers.set_admin_queues(crate::admin::ENTRIES, submission, completion);
        let command_set = self.capabilities.command_set().expect("checked when it was opened");
        let page = self.capabilities.page_bits() - 12;
        self.registers.configure(ENABLE | command_set << 4 | page << 7 | ENTRY_SIZES);
    }

    fn begin_reset(&mut self, why: &'static str, now: Instant) -> Next {
        let (drive, before) = (self.transport.name(), self.signals.resets());
        let reset = before + 1;
        tracing::error!(drive, why, reset, "resetting the controller");
        // Nobody but this machine makes an odd era even.
        self.signals.ask_for_reset(self.signals.era());
        let oldest = &mut self.resets[before as usize % RESETS];
        let since = now.saturating_duration_since(*oldest);
        if before >= RESETS as u64 && since < RESETS_WITHIN {
            return Err(NvmeError::Resets { resets: RESETS + 1, within: since });
        }
        *oldest = now;
        self.signals.resets.store(reset, Ordering::Relaxed);
        Ok(Some(State::Quieting))
    }

    fn reset(&mut self, why: &'static str, now: Instant) {
        match self.begin_reset(why, now) {
            Ok(Some(state)) => self.enter(state, now),
            Ok(None) => {}
            Err(error) => self.fail(error),
        }
    }

    /// Out of service, wherever it was. Reactors learn of that by the era as they do of a reset, and have the
    /// buffers of their commands only when it is [cut off](Controller::cut_off).
    fn fail(&mut self, error: NvmeError) {
        let drive = self.transport.name();
        tracing::error!(drive, %error, "the controller is out of service");
        self.state = State::Failing;
        self.until = Instant::MAX;
        self.ticket = None;
        self.failure = Some(error);
        self.signals.ask_for_reset(self.signals.era());
    }

    /// Cuts it off from memory if it fails. Blocks until the kernel has let go of it, which takes it some
    /// hundred milliseconds: not for a reactor that runs.
    pub fn cut_off(&mut self) {
        if self.state != State::Failing {
            return;
        }
        let cut = self.transport.cut_off();
        if !cut {
            let drive = self.transport.name();
            tracing::error!(drive, "it may still reach memory, which is leaked therefore");
        }
        self.state = State::Failed;
        self.end(cut);
    }

    /// It is out of service. First whether it reaches memory, then that it is over: who sees the second
    /// sees the first.
    fn end(&mut self, cut: bool) {
        self.signals.cut.store(cut, Ordering::Release);
        self.signals.era.store(OVER, Ordering::Release);
    }

    fn configuration(&self) -> Result<u32, NvmeError> {
        self.registers.configuration().map_err(|_| NvmeError::Removed)
    }

    fn status(&self) -> Result<crate::registers::ControllerStatus, NvmeError> {
        self.registers.status().map_err(|_| NvmeError::Removed)
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    /// Two threads ring, another one resets: never does a doorbell ring while the controller is off.
    #[test]
    fn no_doorbell_is_rung_once_the_bells_are_quiet() {
        const ROUNDS: u32 = 20_000;
        let bells = std::iter::repeat_with(Arc::default).take(2).collect();
        let signals = Signals {
            era: AtomicU32::new(0),
            cut: AtomicBool::new(false),
            resets: AtomicU64::new(0),
            bells,
        };
        let (off, over) = (AtomicBool::new(false), AtomicBool::new(false));
        let rung = [AtomicU32::new(0), AtomicU32::new(0)];
        let rings = |queue: u16| {
            let (signals, off, over) = (&signals, &off, &over);
            let rung = &rung[usize::from(queue) - 1];
            let bell = signals.bell(queue);
            move || {
                while !over.load(Ordering::Relaxed) {
                    signals.ring(&bell, signals.era() & !1, || {
                        assert!(!off.load(Ordering::Relaxed), "it is off");
                        rung.fetch_add(1, Ordering::Relaxed);
                    });
                }
            }
        };
        thread::scope(|scope| {
            let threads = [1, 2].map(|queue| scope.spawn(rings(queue)));
            let mut era = 0;
            let is_alive = || threads.iter().all(|thread| !thread.is_finished());
            let is_due = || rung.iter().any(|rung| rung.load(Ordering::Relaxed) < ROUNDS);
            while is_alive() && (era < 2 * ROUNDS || is_due()) {
                assert!(signals.ask_for_reset(era));
                while is_alive() && !signals.are_quiet() {
                    thread::yield_now();
                }
                off.store(true, Ordering::Relaxed);
                std::hint::spin_loop();
                off.store(false, Ordering::Relaxed);
                era += 2;
                signals.era.store(era, Ordering::Release);
            }
            over.store(true, Ordering::Relaxed);
            threads.map(|thread| thread.join().expect("it never rang while that was off"))
        });
    }
}
