//! One server as a client sees it: its connections, and whether it is there.
//!
//! # Connections
//!
//! Up to `num_connections` links, made when they are needed. A call checks one out and has it to itself;
//! when all are out, calls wait in the order they came, each until its own deadline.
//!
//! # When a server is gone
//!
//! ```text
//!   up ──cannot connect──► down, pause 1 s ──pause over: a call probes──► up
//!                             ▲                        │
//!                             └── pause doubled, ≤ 30 s┘ it failed
//! ```
//!
//! While a server is down, calls for its keys fail at once. When the pause is over one call at a time
//! carries the probe a step further and waits 5 ms at most for it; a probe that needs longer is left where
//! it stands and the next call goes on with it. So a server that swallows packets delays nobody.

use std::collections::VecDeque;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use memkv_net::tcp::blocking::{Connecting, Stream};
use memkv_wire::Status;

use crate::error::{ClientError, LinkFault, one_line};
use crate::link::{Greeting, Link, Settings};

/// The first pause of a server that went down.
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// The longest.
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// Longest time that one call waits for a probe.
const PROBE_WAIT: Duration = Duration::from_millis(5);

/// A link that was given back so lately is not looked at before it is used again: that its server closed it
/// meanwhile is found out by using it, too, and then the request is repeated on another. The look is a
/// system call.
const FRESH: Duration = Duration::from_millis(1);

/// One server and the links to it.
pub(crate) struct Server {
    name: Arc<str>,
    settings: Arc<Settings>,
    state: Mutex<State>,
    /// A link was given back or dropped, or the server went up or down.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Links nobody uses, and since when; the one used last is used first.
    idle: Vec<(Box<Link>, Instant)>,
    /// Links that exist, in use or not, and those being made.
    open: usize,
    /// Calls that wait for a link, by ticket, first come first.
    queue: VecDeque<u64>,
    next_ticket: u64,
    down: Option<Down>,
}

struct Down {
    fault: Arc<LinkFault>,
    pause: Duration,
    until: Instant,
    probe: Probe,
}

enum Probe {
    /// Nobody has tried since the last pause began.
    Resting,
    /// A call is at it.
    InHand,
    /// It waits for the next call.
    Connecting(Connecting, Instant),
    Greeting(Box<Greeting>, Instant),
}

/// A link that belongs to one call. Dropped, it is closed; [`Checkout::give_back`] keeps it.
pub(crate) struct Checkout<'a> {
    server: &'a Server,
    /// It goes from hand to hand and has a thousand bytes.
    link: Option<Box<Link>>,
}

impl Deref for Checkout<'_> {
    type Target = Link;
    fn deref(&self) -> &Link {
        self.link.as_ref().expect("a checkout has its link until it is given back")
    }
}

impl DerefMut for Checkout<'_> {
    fn deref_mut(&mut self) -> &mut Link {
        self.link.as_mut().expect("a checkout has its link until it is given back")
    }
}

impl Checkout<'_> {
    /// Returns a link on which nothing is outstanding to the pool.
    pub fn give_back(mut self) {
        if let Some(link) = self.link.take() {
            let now = Instant::now();
            let mut state = self.server.lock();
            state.idle.push((link, now));
            self.server.tell(&state);
        }
    }
}

impl Drop for Checkout<'_> {
    fn drop(&mut self) {
        if self.link.take().is_some() {
            let mut state = self.server.lock();
            state.open -= 1;
            self.server.tell(&state);
        }
    }
}

impl Server {
    /// A server that nobody has talked to yet.
    pub fn new(name: &str, settings: Arc<Settings>) -> Server {
        Server { name: name.into(), settings, state: Mutex::default(), changed: Condvar::new() }
    }

    /// Its `host:port`.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// What its links know.
    #[cfg(test)]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Closes this process's copies of the links that rest here, unless another thread of the process that
    /// forked held the lock at that moment.
    pub fn abandon(&self) {
        if let Ok(mut state) = self.state.try_lock() {
            state.idle.clear();
        }
    }

    /// A link for one call: one that rests, or a new one, or the next that becomes free.
    ///
    /// # Errors
    /// `Unavailable` when the server is down, `Unauthorized` or `Refused` when it refuses us, `Busy` when
    /// no link became free before `deadline`. In all cases nothing was sent.
    pub fn checkout(&self, deadline: Instant) -> Result<Checkout<'_>, ClientError> {
        let mut state = self.lock();
        let mut ticket = None;
        loop {
            if state.down.is_some() {
                state.leave(ticket);
                return self.probe(state, deadline);
            }
            if state.queue.front().copied() == ticket {
                if let Some(link) = state.take_idle() {
                    state.leave(ticket);
                    self.tell(&state);
                    return Ok(self.lend(link));
                }
                if state.open < self.settings.connections {
                    state.open += 1;
                    state.leave(ticket);
                    self.tell(&state);
                    drop(state);
                    return self.open(deadline);
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                state.leave(ticket);
                self.tell(&state);
                return Err(ClientError::Busy { server: self.name.clone(), retry_ms: 0 });
            }
            if ticket.is_none() {
                ticket = Some(state.enter());
            }
            state = match self.changed.wait_timeout(state, left) {
                Ok((state, _)) => state,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }

    /// Wakes who waits for a link, if somebody does: a system call that most calls can do without.
    fn tell(&self, state: &State) {
        if !state.queue.is_empty() {
            self.changed.notify_all();
        }
    }

    fn lend(&self, link: Box<Link>) -> Checkout<'_> {
        Checkout { server: self, link: Some(link) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change of the state is complete before anything can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a new link; its place in `open` is taken already.
    fn open(&self, deadline: Instant) -> Result<Checkout<'_>, ClientError> {
        let patience = Instant::now() + self.settings.connect_timeout;
        let fault = match Link::connect(&self.name, &self.settings, patience.min(deadline)) {
            Ok(link) => return Ok(self.lend(Box::new(link))),
            Err(fault) => Arc::new(fault),
        };
        let mut state = self.lock();
        state.open -= 1;
        // A caller in a hurry has not found out whether the server is there.
        let hurried = deadline < patience && matches!(*fault, LinkFault::Silent);
        if !hurried && state.down.is_none() {
            tracing::warn!(server = %self.name, error = one_line(&fault), "server is down");
            state.go_down(fault.clone(), PAUSE_MIN);
        }
        self.changed.notify_all();
        Err(self.unavailable(fault))
    }

    /// Takes the probe of a server that is down a step further, if it is time to and nobody else is at it.
    fn probe(
        &self,
        mut state: MutexGuard<'_, State>,
        deadline: Instant,
    ) -> Result<Checkout<'_>, ClientError> {
        let now = Instant::now();
        let down = state.down.as_mut().expect("only a server that is down is probed");
        let fault = down.fault.clone();
        if now < down.until || matches!(down.probe, Probe::InHand) {
            return Err(self.unavailable(fault));
        }
        let probe = std::mem::replace(&mut down.probe, Probe::InHand);
        drop(state);
        let result = self.advance(probe, (now + PROBE_WAIT).min(deadline));
        let mut state = self.lock();
        let down = state.down.as_mut().expect("only the probe ends a server's absence");
        match result {
            Ok(Step::Up(link)) => {
                tracing::info!(server = %self.name, "server is back");
                state.down = None;
                state.open += 1;
                self.changed.notify_all();
                Ok(self.lend(link))
            }
            Ok(Step::Wait(probe)) => {
                down.probe = probe;
                Err(self.unavailable(fault))
            }
            Err(fault) => {
                let fault = Arc::new(fault);
                let pause = (down.pause * 2).min(PAUSE_MAX);
                state.go_down(fault.clone(), pause);
                Err(self.unavailable(fault))
            }
        }
    }

    /// Moves a probe on until it is through, fails, or `until` is reached.
    fn advance(&self, mut probe: Probe, until: Instant) -> Result<Step, LinkFault> {
        loop {
            let patience = |began: Instant| began + self.settings.connect_timeout;
            match probe {
                Probe::Resting | Probe::InHand => {
                    let connecting =
                        Stream::start_connect(&self.name).map_err(LinkFault::Connect)?;
                    probe = Probe::Connecting(connecting, Instant::now());
                }
                Probe::Connecting(connecting, began) => {
                    if connecting.wait(until).map_err(LinkFault::Connect)? {
                        let stream = connecting.finish().map_err(LinkFault::Connect)?;
                        let greeting = Greeting::send(stream, &self.settings, patience(began))?;
                        probe = Probe::Greeting(Box::new(greeting), began);
                    } else if Instant::now() >= patience(began) {
                        return Err(LinkFault::Silent);
                    } else {
                        return Ok(Step::Wait(Probe::Connecting(connecting, began)));
                    }
                }
                Probe::Greeting(greeting, began) => {
                    if greeting.wait(until)? {
                        // The answer fits into one segment: once it begins it is there.
                        let link = greeting.finish(Instant::now() + PROBE_WAIT)?;
                        return Ok(Step::Up(Box::new(link)));
                    } else if Instant::now() >= patience(began) {
                        return Err(LinkFault::Silent);
                    }
                    return Ok(Step::Wait(Probe::Greeting(greeting, began)));
                }
            }
        }
    }

    fn unavailable(&self, source: Arc<LinkFault>) -> ClientError {
        let server = self.name.clone();
        match &*source {
            LinkFault::Refused { status: Status::Unauthorized, text } => {
                ClientError::Unauthorized { server, text: (&**text).into() }
            }
            LinkFault::Refused { status: Status::ShuttingDown | Status::Busy, .. } => {
                ClientError::Unavailable { server, source }
            }
            LinkFault::Refused { status, text } => {
                ClientError::Refused { server, status: *status, text: (&**text).into() }
            }
            _ => ClientError::Unavailable { server, source },
        }
    }
}

enum Step {
    Up(Box<Link>),
    Wait(Probe),
}

impl State {
    /// Takes a place at the end of the queue.
    fn enter(&mut self) -> u64 {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.queue.push_back(ticket);
        ticket
    }

    /// Gives a place in the queue up, wherever it is.
    fn leave(&mut self, ticket: Option<u64>) {
        if let Some(ticket) = ticket {
            self.queue.retain(|other| *other != ticket);
        }
    }

    /// The link used last that is still good; those that are not are closed.
    fn take_idle(&mut self) -> Option<Box<Link>> {
        while let Some((link, since)) = self.idle.pop() {
            if since.elapsed() < FRESH || link.is_quiet() {
                return Some(link);
            }
            // Where one was closed the others were, most likely, and they may keep memory of a server that
            // is gone.
            let before = self.idle.len();
            self.idle.retain(|(link, _)| link.is_quiet());
            self.open -= 1 + before - self.idle.len();
        }
        None
    }

    fn go_down(&mut self, fault: Arc<LinkFault>, pause: Duration) {
        self.open -= self.idle.len();
        self.idle.clear();
        let until = Instant::now() + pause;
        self.down = Some(Down { fault, pause, until, probe: Probe::Resting });
    }
}
