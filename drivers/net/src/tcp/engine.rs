//! One reactor's sockets: collects readiness and visits, in turn, those that can go on.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::rc::{Rc, Weak};
use std::str::FromStr;

use memkv_dma::Memory;
use memkv_poller::{Instant, Interrupt, Local, Poller, Progress, Wait};

use super::connection::{CROWD, QUANTUM, QUANTUM_ALONE, QUANTUM_CROWD, TcpConnection, Weight};
use super::lend::Pipe;
use super::listener::Accepted;
use super::options;
use super::readiness::{self, Event, Opened, Readiness};
use super::spin::{AWAKE, Spin};
use crate::{Connection, NetError};

/// How an engine asks the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Driver {
    /// io_uring where it is to be had, else what the system has.
    #[default]
    Auto,
    /// epoll, or kqueue where that is what there is.
    Epoll,
    /// io_uring, or nothing.
    Uring,
}

/// A name that is none of a [`Driver`].
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no network engine; auto, epoll and uring are")]
pub struct UnknownDriver(String);

impl Driver {
    /// What a driver may be called.
    pub const NAMES: [&str; 3] = ["auto", "epoll", "uring"];
}

impl FromStr for Driver {
    type Err = UnknownDriver;

    fn from_str(name: &str) -> Result<Driver, UnknownDriver> {
        match name {
            "auto" => Ok(Driver::Auto),
            "epoll" => Ok(Driver::Epoll),
            "uring" => Ok(Driver::Uring),
            other => Err(UnknownDriver(other.to_owned())),
        }
    }
}

/// Most pipes kept for later sends. More are needed only while that many sends lend at once.
const PIPES_KEPT: usize = 4;

/// The TCP engine of one reactor.
///
/// ```text
///   kernel ──events──► flags of each socket ──wants it?──► ready queue ──visit──► bytes move, tasks wake
///                                                              ▲                      │
///                                                              └── quantum used up ◄──┘
/// ```
pub struct Engine {
    readiness: RefCell<Box<dyn Readiness>>,
    reason: String,
    table: RefCell<Table>,
    /// Sockets that can go on, by token; each at most once: with something light, with bulk.
    light: RefCell<VecDeque<u64>>,
    bulk: RefCell<VecDeque<u64>>,
    /// Bytes of bulk that were moved in this round.
    bulk_spent: Cell<usize>,
    /// Counts the polls; a socket's quantum is per round.
    round: Cell<u64>,
    /// A small message is expected soon: an answer to one that was sent.
    expected: Cell<Expected>,
    /// Bytes have come in since this round began. Events alone are no answer: one may tell of bytes that
    /// were read before it was seen.
    came_in: Cell<bool>,
    spin: RefCell<Spin>,
    pipes: RefCell<Vec<Pipe>>,
    /// Pipes can be had, as far as is known.
    has_pipes: Cell<bool>,
    /// Distinct sockets that were at work in this round and in the one before.
    active: Cell<u32>,
    active_before: Cell<u32>,
}

impl Engine {
    /// Makes the engine of a reactor, on its thread, and adds its poller to it. `memory` is what large
    /// payload will be sent from, for a driver that can make use of that. Fails when the process has no
    /// descriptor left, or the driver that was asked for is not to be had.
    pub fn new(local: &Local, driver: Driver, memory: &[Memory]) -> Result<Rc<Engine>, NetError> {
        let Opened { set, reason } = readiness::open(driver, memory)?;
        let engine = Rc::new(Engine {
            readiness: RefCell::new(set),
            reason,
            table: RefCell::default(),
            light: RefCell::default(),
            bulk: RefCell::default(),
            bulk_spent: Cell::new(0),
            // Above what a new socket has, so that its first visit counts.
            round: Cell::new(1),
            expected: Cell::default(),
            came_in: Cell::new(false),
            spin: RefCell::new(Spin::new()),
            pipes: RefCell::default(),
            has_pipes: Cell::new(cfg!(target_os = "linux")),
            active: Cell::new(0),
            active_before: Cell::new(0),
        });
        let poller = EnginePoller { engine: engine.clone(), local: local.clone(), silent: false };
        local.add_poller(Box::new(poller));
        Ok(engine)
    }

    /// Takes a connection over: it lives on this reactor from here on.
    pub fn attach(self: &Rc<Self>, accepted: Accepted) -> Result<Rc<dyn Connection>, NetError> {
        let Accepted { socket, peer, replaced } = accepted;
        socket.set_nonblocking(true)?;
        let loopback = options::is_local(&socket, &peer);
        options::tune(&socket, loopback, replaced.as_ref())?;
        let token = self.table.borrow_mut().reserve();
        if let Err(error) = self.readiness.borrow_mut().add(socket.as_raw_fd(), token) {
            self.table.borrow_mut().release(token);
            return Err(error.into());
        }
        let connection =
            Rc::new(TcpConnection::new(self.clone(), token, socket, peer.to_string(), loopback));
        self.table.borrow_mut().fill(token, Rc::downgrade(&connection));
        Ok(connection)
    }

    /// Which way of asking the kernel it is, and why.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// Whether these bytes can be sent by [`Engine::send`].
    pub(super) fn knows(&self, bytes: &[u8]) -> bool {
        self.readiness.borrow().knows(bytes)
    }

    /// Sends bytes that the driver [knows](Engine::knows), as many as the socket takes now.
    pub(super) fn send(&self, socket: RawFd, bytes: &[u8]) -> io::Result<usize> {
        self.readiness.borrow_mut().send(socket, bytes)
    }

    /// Whether a send can lend its pages.
    pub(super) fn has_pipes(&self) -> bool {
        self.has_pipes.get()
    }

    /// A pipe for one send. The first failure is the last try: copies are always possible.
    pub(super) fn take_pipe(&self) -> Option<Pipe> {
        if let Some(pipe) = self.pipes.borrow_mut().pop() {
            return Some(pipe);
        }
        if !self.has_pipes.get() {
            return None;
        }
        let pipe = Pipe::new();
        if let Err(error) = &pipe {
            tracing::info!(%error, "no pipe to lend pages by, so payload is copied");
            self.has_pipes.set(false);
        }
        pipe.ok()
    }

    /// A send is over. What is still in its pipe goes with it.
    pub(super) fn give_pipe(&self, pipe: Option<Pipe>) {
        let mut pipes = self.pipes.borrow_mut();
        let kept = pipes.len() < PIPES_KEPT;
        pipes.extend(pipe.filter(|pipe| kept && pipe.held() == 0));
    }

    /// Connections that live on this engine now.
    pub fn connections(&self) -> usize {
        self.table.borrow().live
    }

    /// The number of the current round.
    pub(super) fn round(&self) -> u64 {
        self.round.get()
    }

    /// A socket is at work for the first time in this round.
    pub(super) fn count_active(&self) {
        self.active.set(self.active.get() + 1);
    }

    /// True when a socket that is being visited has company: others wait for a visit, or were at
    /// work lately.
    pub(super) fn is_crowded(&self) -> bool {
        self.active.get() > 1 || self.active_before.get() > 1 || self.has_ready()
    }

    fn has_ready(&self) -> bool {
        !self.light.borrow().is_empty() || !self.bulk.borrow().is_empty()
    }

    /// Bytes of bulk that all sockets together may still move in this round: whoever has something light
    /// then waits for no more than that, however many there are.
    pub(super) fn bulk_left(&self) -> usize {
        let most = match self.is_crowded() {
            _ if self.active_before.get().max(self.active.get()) >= CROWD => QUANTUM_CROWD,
            true => QUANTUM,
            false => QUANTUM_ALONE,
        };
        most.saturating_sub(self.bulk_spent.get())
    }

    /// So many bytes of bulk were moved.
    pub(super) fn spend_bulk(&self, bytes: usize) {
        self.bulk_spent.set(self.bulk_spent.get() + bytes);
    }

    /// Queues a socket for a visit in this or the next round. The socket sees to it that it is queued
    /// once.
    pub(super) fn enqueue(&self, token: u64, weight: Weight) {
        self.queue(weight).borrow_mut().push_back(token);
    }

    fn queue(&self, weight: Weight) -> &RefCell<VecDeque<u64>> {
        match weight {
            Weight::Light => &self.light,
            Weight::Bulk => &self.bulk,
        }
    }

    /// A small message was sent by a socket: an answer may come soon.
    pub(super) fn expect(&self) {
        if matches!(self.expected.get(), Expected::Nothing) {
            self.expected.set(Expected::Soon);
        }
    }

    /// Large messages are on their way: who waits for them sleeps.
    pub(super) fn expect_nothing(&self) {
        self.expected.set(Expected::Nothing);
    }

    /// A socket has read something, or the end.
    pub(super) fn came_in(&self) {
        self.came_in.set(true);
    }

    /// Something came in.
    fn heard(&self) {
        if matches!(self.expected.replace(Expected::Nothing), Expected::Until(_)) {
            self.spin.borrow_mut().ended(true);
        }
    }

    /// Forgets a connection that is going away; its socket is closed right after.
    pub(super) fn detach(&self, token: u64) {
        self.readiness.borrow_mut().remove(token);
        self.table.borrow_mut().release(token);
        self.light.borrow_mut().retain(|queued| *queued != token);
        self.bulk.borrow_mut().retain(|queued| *queued != token);
    }

    /// Takes the kernel's events and queues the sockets that waited for them.
    fn collect(&self) -> u32 {
        let mut taken = 0;
        let table = self.table.borrow();
        let result = self.readiness.borrow_mut().collect(&mut |event: Event| {
            taken += 1;
            if let Some(connection) = table.get(event.token) {
                connection.note(event);
            }
        });
        if let Err(error) = result {
            // Only a bad descriptor or bad memory can cause this, and both are ours.
            panic!("the readiness set cannot be read: {error}");
        }
        taken
    }

    /// Visits sockets that are queued now: those with something light, then those with bulk, until a
    /// round's bytes are spent. What is left, and what a visit queues again, waits for the next round.
    fn visit(&self) -> u32 {
        let mut visits = 0;
        for weight in [Weight::Light, Weight::Bulk] {
            let queued = self.queue(weight).borrow().len();
            for _ in 0..queued {
                if weight == Weight::Bulk && self.bulk_left() == 0 {
                    return visits;
                }
                let Some(token) = self.queue(weight).borrow_mut().pop_front() else { break };
                let connection = self.table.borrow().get(token);
                if let Some(connection) = connection {
                    connection.visit(weight);
                    visits += 1;
                }
            }
        }
        visits
    }
}

/// Whether and since when the engine waits awake.
#[derive(Clone, Copy, Default)]
enum Expected {
    /// Nothing in particular is expected.
    #[default]
    Nothing,
    /// A small message is.
    Soon,
    /// It is waited for awake until then.
    Until(Instant),
}

/// The engine as its reactor sees it. One round: at most [`EVENTS_MAX`](super::readiness::EVENTS_MAX)
/// events, then one visit to each queued socket.
struct EnginePoller {
    engine: Rc<Engine>,
    local: Local,
    /// The reactor is about to wait for the kernel's set: events that are in it end the wait at once, and
    /// need not be looked for.
    silent: bool,
}

impl Poller for EnginePoller {
    fn name(&self) -> &'static str {
        "tcp"
    }

    fn poll(&mut self) -> Progress {
        let engine = &self.engine;
        if self.silent || engine.table.borrow().live == 0 {
            return Progress::Idle;
        }
        engine.round.set(engine.round.get() + 1);
        engine.active_before.set(engine.active.replace(0));
        engine.bulk_spent.set(0);
        engine.came_in.set(false);
        let done = engine.collect() + engine.visit();
        if engine.came_in.get() {
            engine.heard();
        }
        Progress::of(done)
    }

    fn eager(&mut self) -> bool {
        let now = self.local.pass_began();
        match self.engine.expected.get() {
            Expected::Nothing => false,
            Expected::Soon => {
                let awake = self.engine.spin.borrow_mut().begins();
                let next = if awake { Expected::Until(now + AWAKE) } else { Expected::Nothing };
                self.engine.expected.set(next);
                awake
            }
            Expected::Until(until) if now < until => true,
            Expected::Until(_) => {
                self.engine.expected.set(Expected::Nothing);
                self.engine.spin.borrow_mut().ended(false);
                false
            }
        }
    }

    fn arm(&mut self) -> Interrupt {
        if self.engine.has_ready() {
            Interrupt::Busy
        } else if self.engine.table.borrow().live == 0 {
            Interrupt::Quiet
        } else {
            let mut readiness = self.engine.readiness.borrow_mut();
            let Some(descriptor) = readiness.arm() else { return Interrupt::Busy };
            self.silent = !readiness.looks_when_armed();
            Interrupt::Fd(descriptor)
        }
    }

    fn arm_or_wait(&mut self) -> Interrupt {
        let engine = &self.engine;
        if engine.has_ready() || engine.table.borrow().live == 0 {
            return self.arm();
        }
        let can_wait = engine.readiness.borrow().can_wait();
        match can_wait {
            None => Interrupt::Busy,
            Some(false) => self.arm(),
            Some(true) => {
                self.silent = true;
                Interrupt::Own
            }
        }
    }

    fn wait(&mut self, wait: Wait<'_>) -> bool {
        self.engine.readiness.borrow_mut().wait(wait)
    }

    fn disarm(&mut self) {
        self.silent = false;
        self.engine.readiness.borrow_mut().disarm();
    }

    fn retired(&self) -> bool {
        Rc::strong_count(&self.engine) == 1
    }
}

/// Connections by token. A token is `generation << 32 | index`; the generation keeps an event of a closed
/// socket from reaching the one that took its place.
#[derive(Default)]
struct Table {
    slots: Vec<Slot>,
    free: Vec<u32>,
    live: usize,
}

struct Slot {
    generation: u32,
    connection: Weak<TcpConnection>,
}

impl Table {
    fn reserve(&mut self) -> u64 {
        self.live += 1;
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, connection: Weak::new() });
            self.slots.len() as u32 - 1
        });
        u64::from(self.slots[index as usize].generation) << 32 | u64::from(index)
    }

    fn fill(&mut self, token: u64, connection: Weak<TcpConnection>) {
        let slot = self.slot(token).expect("a token is filled right after it was reserved");
        slot.connection = connection;
    }

    fn release(&mut self, token: u64) {
        let slot = self.slot(token).expect("a token is released once");
        slot.generation = slot.generation.wrapping_add(1);
        slot.connection = Weak::new();
        self.free.push(token as u32);
        self.live -= 1;
    }

    fn get(&self, token: u64) -> Option<Rc<TcpConnection>> {
        let slot = self.slots.get(token as u32 as usize)?;
        if slot.generation != (token >> 32) as u32 {
            return None;
        }
        slot.connection.upgrade()
    }

    fn slot(&mut self, token: u64) -> Option<&mut Slot> {
        let slot = self.slots.get_mut(token as u32 as usize)?;
        (slot.generation == (token >> 32) as u32).then_some(slot)
    }
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
