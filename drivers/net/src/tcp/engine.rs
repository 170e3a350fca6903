//! One reactor's sockets: collects readiness and visits, in turn, those that can go on.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::os::fd::AsRawFd;
use std::rc::{Rc, Weak};

use memkv_poller::{Interrupt, Local, Poller, Progress};

use super::connection::TcpConnection;
use super::listener::Accepted;
use super::options;
use super::readiness::{Event, Readiness};
use crate::{Connection, NetError};

/// The TCP engine of one reactor.
///
/// ```text
///   kernel ──events──► flags of each socket ──wants it?──► ready queue ──visit──► bytes move, tasks wake
///                                                              ▲                      │
///                                                              └── quantum used up ◄──┘
/// ```
pub struct Engine {
    readiness: RefCell<Readiness>,
    table: RefCell<Table>,
    /// Sockets that can go on, by token; each at most once.
    ready: RefCell<VecDeque<u64>>,
    /// Counts the polls; a socket's quantum is per round.
    round: Cell<u64>,
    /// Distinct sockets that were at work in this round and in the one before.
    active: Cell<u32>,
    active_before: Cell<u32>,
}

impl Engine {
    /// Makes the engine of a reactor and adds its poller to it. Fails when the process has no descriptor
    /// left.
    pub fn new(local: &Local) -> Result<Rc<Engine>, NetError> {
        let engine = Rc::new(Engine {
            readiness: RefCell::new(Readiness::new()?),
            table: RefCell::default(),
            ready: RefCell::default(),
            // Above what a new socket has, so that its first visit counts.
            round: Cell::new(1),
            active: Cell::new(0),
            active_before: Cell::new(0),
        });
        local.add_poller(Box::new(EnginePoller { engine: engine.clone(), armed: false }));
        Ok(engine)
    }

    /// Takes a connection over: it lives on this reactor from here on.
    pub fn attach(self: &Rc<Self>, accepted: Accepted) -> Result<Rc<dyn Connection>, NetError> {
        let Accepted { socket, peer } = accepted;
        socket.set_nonblocking(true)?;
        let loopback = options::is_local(&socket, &peer);
        options::tune(&socket, loopback)?;
        let token = self.table.borrow_mut().reserve();
        if let Err(error) = self.readiness.borrow().add(socket.as_raw_fd(), token) {
            self.table.borrow_mut().release(token);
            return Err(error.into());
        }
        let connection =
            Rc::new(TcpConnection::new(self.clone(), token, socket, peer.to_string(), loopback));
        self.table.borrow_mut().fill(token, Rc::downgrade(&connection));
        Ok(connection)
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
        self.active.get() > 1 || self.active_before.get() > 1 || !self.ready.borrow().is_empty()
    }

    /// Queues a socket for a visit in this or the next round. The socket sees to it that it is queued
    /// once.
    pub(super) fn enqueue(&self, token: u64) {
        self.ready.borrow_mut().push_back(token);
    }

    /// Forgets a connection that is going away; its socket is closed right after.
    pub(super) fn detach(&self, token: u64) {
        self.table.borrow_mut().release(token);
        self.ready.borrow_mut().retain(|queued| *queued != token);
    }

    /// Takes the kernel's events and queues the sockets that waited for them.
    fn collect(&self) -> u32 {
        let mut taken = 0;
        let table = self.table.borrow();
        let result = self.readiness.borrow_mut().collect(|event: Event| {
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

    /// Visits every socket that is queued now once. What a visit queues again waits for the next round.
    fn visit(&self) -> u32 {
        let queued = self.ready.borrow().len();
        let mut visits = 0;
        for _ in 0..queued {
            let Some(token) = self.ready.borrow_mut().pop_front() else { break };
            let connection = self.table.borrow().get(token);
            if let Some(connection) = connection {
                connection.visit();
                visits += 1;
            }
        }
        visits
    }
}

/// The engine as its reactor sees it. One round: at most [`EVENTS_MAX`](super::readiness::EVENTS_MAX)
/// events, then one visit to each queued socket.
struct EnginePoller {
    engine: Rc<Engine>,
    /// The reactor is about to wait for the kernel's set: events that are in it end the wait at once.
    armed: bool,
}

impl Poller for EnginePoller {
    fn name(&self) -> &'static str {
        "tcp"
    }

    fn poll(&mut self) -> Progress {
        let engine = &self.engine;
        if self.armed || engine.table.borrow().live == 0 {
            return Progress::Idle;
        }
        engine.round.set(engine.round.get() + 1);
        engine.active_before.set(engine.active.replace(0));
        let done = engine.collect() + engine.visit();
        Progress::of(done)
    }

    fn arm(&mut self) -> Interrupt {
        if !self.engine.ready.borrow().is_empty() {
            Interrupt::Busy
        } else if self.engine.table.borrow().live == 0 {
            Interrupt::Quiet
        } else {
            self.armed = true;
            Interrupt::Fd(self.engine.readiness.borrow().descriptor())
        }
    }

    fn disarm(&mut self) {
        self.armed = false;
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
