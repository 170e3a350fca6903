//! One TCP connection of a reactor: at most one receive and one send, each a small state machine.
//!
//! ```text
//!   Idle ──start──► Running ──enough, end, error──► Done ──poll gives the buffer back──► Idle
//!                    │   ▲
//!        would block │   │ readiness, or a new round
//!                    ▼   │
//!                   (waits)
//! ```

use std::cell::{Cell, RefCell};
use std::io::{self, ErrorKind, IoSlice, Read};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use socket2::Socket;

use super::engine::Engine;
use super::lend::{self, Pipe};
use super::options::Threshold;
use super::readiness::Event;
use super::spin::{Gate, SMALL};
use crate::{Connection, NetError, RecvBuf, SendOp};

/// Most bytes of one visit while another socket is ready.
pub(super) const QUANTUM: usize = 1 << 20;
/// Most bytes of one visit of a socket that is alone: the largest buffer there is.
pub(super) const QUANTUM_ALONE: usize = 4 << 20;
/// Sockets at work that make a crowd, and what all of it moves of bulk in one round.
pub(super) const CROWD: u32 = 16;
pub(super) const QUANTUM_CROWD: usize = 256 << 10;
/// Most system calls of one visit.
const CALLS_MAX: u32 = 64;
/// Most pieces of one vectored send (the system takes 1024).
const PIECES_MAX: usize = 64;

/// A piece from this size on is sent by the engine's own way where it has one. Smaller ones go together
/// with what precedes and follows them.
const KNOWN_MIN: usize = 128 << 10;
/// An operation with no more than this before it is light: it is visited before bulk, and needs no share
/// of what bulk may move in a round.
const LIGHT: usize = 16 << 10;

/// In which of the engine's queues an operation waits for its visit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Weight {
    /// First, all of them in every round.
    Light,
    /// As many as a round's bytes suffice for, in turn.
    Bulk,
}

/// More follows at once: the kernel need not send a packet that is not full.
#[cfg(target_os = "linux")]
pub(super) const MORE: libc::c_int = libc::MSG_MORE;
#[cfg(not(target_os = "linux"))]
pub(super) const MORE: libc::c_int = 0;

/// Keeps a write to a lost peer from raising SIGPIPE; where the flag is missing a socket option does it.
#[cfg(not(any(target_os = "macos", target_os = "ios")))]
pub(super) const SEND_FLAGS: libc::c_int = libc::MSG_NOSIGNAL;
#[cfg(any(target_os = "macos", target_os = "ios"))]
pub(super) const SEND_FLAGS: libc::c_int = 0;

pub(super) struct TcpConnection {
    engine: Rc<Engine>,
    token: u64,
    socket: Socket,
    peer: String,
    loopback: bool,
    /// What the kernel said last, less what was used up since.
    readable: Cell<bool>,
    writable: Cell<bool>,
    /// The peer sends no more: no later edge will come, so the socket counts as readable for ever.
    ended: Cell<bool>,
    /// It stands in the engine's queues: in the light one, in the one of bulk.
    queued: [Cell<bool>; 2],
    visit: Cell<Visit>,
    threshold: Threshold,
    gate: Gate,
    recv: RefCell<Receive>,
    send: RefCell<Transmit>,
    /// What the running send lends its payload by.
    pipe: RefCell<Option<Pipe>>,
    /// This end was shut down by us; and the peer's was known to be gone before.
    shut: Cell<bool>,
    gone: Cell<bool>,
}

/// What a socket has used up in one round of the engine.
#[derive(Clone, Copy, Default)]
struct Visit {
    round: u64,
    bytes: usize,
    calls: u32,
}

enum Receive {
    Idle,
    Running { buf: RecvBuf, at: usize, min: usize, got: usize, waker: Option<Waker> },
    Done { result: Result<usize, NetError>, buf: RecvBuf },
}

enum Transmit {
    Idle,
    Running { op: SendOp, sent: Sent, waker: Option<Waker> },
    Done { result: Result<(), NetError>, op: SendOp },
}

impl Receive {
    /// The weight of what is running.
    fn weight(&self) -> Option<Weight> {
        match self {
            Receive::Running { min, got, .. } => Some(weight(min - got)),
            _ => None,
        }
    }
}

impl Transmit {
    /// The weight of what is running.
    fn weight(&self) -> Option<Weight> {
        match self {
            Transmit::Running { op, .. } => Some(weight(op.len())),
            _ => None,
        }
    }
}

/// The weight of an operation that so many bytes are missing of.
fn weight(bytes: usize) -> Weight {
    if bytes <= LIGHT { Weight::Light } else { Weight::Bulk }
}

/// How far a send has come: the pieces before `piece` are out, and `offset` bytes of that one.
#[derive(Clone, Copy, Default)]
struct Sent {
    piece: usize,
    offset: usize,
}

/// What one attempt to move bytes led to.
enum Step<T> {
    /// The operation is over.
    Finished(Result<T, NetError>),
    /// It waits for the next edge.
    Blocked,
    /// It could go on, but the visit is over.
    OutOfQuantum(Weight),
}

impl TcpConnection {
    /// A connection on a non-blocking socket that the engine has registered under `token`.
    pub(super) fn new(
        engine: Rc<Engine>,
        token: u64,
        socket: Socket,
        peer: String,
        loopback: bool,
    ) -> TcpConnection {
        TcpConnection {
            engine,
            token,
            socket,
            peer,
            loopback,
            // Not known yet: try, and the first event corrects it.
            readable: Cell::new(true),
            writable: Cell::new(true),
            ended: Cell::new(false),
            queued: Default::default(),
            visit: Cell::default(),
            threshold: Threshold::new(),
            gate: Gate::default(),
            recv: RefCell::new(Receive::Idle),
            send: RefCell::new(Transmit::Idle),
            pipe: RefCell::default(),
            shut: Cell::new(false),
            gone: Cell::new(false),
        }
    }

    /// Takes an event in: remembers it, and asks for a visit when an operation waits for it.
    pub(super) fn note(&self, event: Event) {
        self.readable.set(self.readable.get() || event.readable);
        self.writable.set(self.writable.get() || event.writable);
        self.ended.set(self.ended.get() || event.ended);
        let recv = self.recv.borrow().weight().filter(|_| event.readable);
        let send = self.send.borrow().weight().filter(|_| event.writable);
        recv.into_iter().chain(send).for_each(|weight| self.enqueue(weight));
    }

    /// Moves on with whatever of this weight can: the engine's turn for this socket.
    pub(super) fn visit(&self, weight: Weight) {
        self.queued[weight as usize].set(false);
        // Sends first: they free memory that somebody else may wait for.
        let send = self.send.borrow().weight();
        if send == Some(weight) {
            self.drive_send();
        }
        let recv = self.recv.borrow().weight();
        if recv == Some(weight) {
            self.drive_recv();
        }
    }

    fn enqueue(&self, weight: Weight) {
        if !self.queued[weight as usize].replace(true) {
            self.engine.enqueue(self.token, weight);
        }
    }

    /// Bytes this socket may still move in this round, 0 when its visit is over.
    fn allowance(&self, weight: Weight) -> usize {
        let mut visit = self.visit.get();
        if visit.round != self.engine.round() {
            visit = Visit { round: self.engine.round(), ..Visit::default() };
            self.visit.set(visit);
            self.engine.count_active();
        }
        if visit.calls >= CALLS_MAX {
            return 0;
        }
        let quantum = if self.engine.is_crowded() { QUANTUM } else { QUANTUM_ALONE };
        let mine = quantum.saturating_sub(visit.bytes);
        if weight == Weight::Bulk { mine.min(self.engine.bulk_left()) } else { mine }
    }

    /// Counts a system call and what it moved against the visit.
    fn spend(&self, bytes: usize, weight: Weight) {
        if weight == Weight::Bulk {
            self.engine.spend_bulk(bytes);
        }
        let mut visit = self.visit.get();
        visit.calls += 1;
        visit.bytes += bytes;
        self.visit.set(visit);
    }

    fn drive_recv(&self) {
        let mut state = self.recv.borrow_mut();
        let Receive::Running { buf, at, min, got, .. } = &mut *state else { return };
        match self.advance_recv(buf, *at, *min, got) {
            Step::Blocked => {}
            Step::OutOfQuantum(weight) => self.enqueue(weight),
            Step::Finished(result) => {
                let Receive::Running { buf, waker, .. } =
                    std::mem::replace(&mut *state, Receive::Idle)
                else {
                    unreachable!("it was running a moment ago")
                };
                *state = Receive::Done { result, buf };
                drop(state);
                waker.into_iter().for_each(Waker::wake);
            }
        }
    }

    fn advance_recv(
        &self,
        buf: &mut RecvBuf,
        at: usize,
        min: usize,
        got: &mut usize,
    ) -> Step<usize> {
        while self.readable.get() || self.ended.get() {
            let weight = weight(min - *got);
            let allowance = self.allowance(weight);
            if allowance == 0 {
                return Step::OutOfQuantum(weight);
            }
            let rest = &mut buf.as_mut_slice()[at + *got..];
            let asked = rest.len().min(allowance);
            let read = (&self.socket).read(&mut rest[..asked]);
            if read.is_ok() {
                self.engine.came_in();
            }
            match read {
                Ok(0) => return Step::Finished(Ok(*got)),
                Ok(count) => {
                    self.spend(count, weight);
                    *got += count;
                    // Less than asked: the socket is drained, and what comes next raises an edge.
                    self.readable.set(count == asked);
                    if *got >= min {
                        return Step::Finished(Ok(*got));
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.spend(0, weight);
                    self.readable.set(false);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Step::Finished(Err(error.into())),
            }
        }
        let missing = min - *got;
        if matches!(buf, RecvBuf::Dma(_)) && missing <= SMALL {
            // The rest of a small message that has begun to arrive.
            self.expect();
        }
        match self.threshold.wait_for(&self.socket, missing) {
            Ok(()) => Step::Blocked,
            Err(error) => Step::Finished(Err(error.into())),
        }
    }

    fn drive_send(&self) {
        let mut state = self.send.borrow_mut();
        let Transmit::Running { op, sent, .. } = &mut *state else { return };
        match self.advance_send(op, sent) {
            Step::Blocked => {}
            Step::OutOfQuantum(weight) => self.enqueue(weight),
            Step::Finished(result) => {
                let Transmit::Running { op, waker, .. } =
                    std::mem::replace(&mut *state, Transmit::Idle)
                else {
                    unreachable!("it was running a moment ago")
                };
                self.expect_answer(&op);
                self.engine.give_pipe(self.pipe.take());
                *state = Transmit::Done { result, op };
                drop(state);
                waker.into_iter().for_each(Waker::wake);
            }
        }
    }

    fn advance_send(&self, op: &SendOp, sent: &mut Sent) -> Step<()> {
        let weight = weight(op.len());
        loop {
            let allowance = self.allowance(weight);
            sent.skip_empty(op);
            if op.piece(sent.piece).is_none() {
                return Step::Finished(Ok(()));
            }
            if !self.writable.get() {
                return Step::Blocked;
            }
            if allowance == 0 {
                return Step::OutOfQuantum(weight);
            }
            let (asked, result) = self.send_some(op, *sent, allowance);
            match result {
                Ok(moved) => {
                    self.spend(moved, weight);
                    sent.advance(op, moved);
                    // Less than asked: the send buffer is full, and room in it raises an edge.
                    self.writable.set(moved == asked);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.spend(0, weight);
                    self.writable.set(false);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Step::Finished(Err(error.into())),
            }
        }
    }
}

impl TcpConnection {
    /// Sends what comes next, up to `limit` bytes: how many were asked for, and how many went.
    fn send_some(&self, op: &SendOp, sent: Sent, limit: usize) -> (usize, io::Result<usize>) {
        if let Some(bytes) = self.lent(op, sent.piece) {
            return self.lend(&bytes[sent.offset..], op.len_after(sent.piece) > 0, limit);
        }
        if let Some(bytes) = self.known(op, sent.piece) {
            let rest = &bytes[sent.offset..];
            let rest = &rest[..rest.len().min(limit)];
            return (rest.len(), self.engine.send(self.socket.as_raw_fd(), rest));
        }
        let mut slices = [IoSlice::new(&[]); PIECES_MAX];
        let gathered = gather(op, sent, limit, &mut slices, |piece| {
            self.lent(op, piece).is_some() || self.known(op, piece).is_some()
        });
        let more = if gathered.followed { MORE } else { 0 };
        let slices = &slices[..gathered.count];
        (gathered.bytes, self.socket.send_vectored_with_flags(slices, SEND_FLAGS | more))
    }

    /// Lends the front of `bytes`. What was asked for is what went: only the kernel knows how much of it
    /// there was room for.
    fn lend(&self, bytes: &[u8], more: bool, limit: usize) -> (usize, io::Result<usize>) {
        let mut pipe = self.pipe.borrow_mut();
        let pipe = pipe.as_mut().expect("only what there is a pipe for is lent");
        // What is in the pipe goes first, however much that is.
        let limit = bytes.len().min(limit.max(pipe.held()));
        let result = pipe.lend(&self.socket, &bytes[..limit], more || limit < bytes.len());
        (result.as_ref().map_or(limit, |moved| *moved), result)
    }

    /// A piece that is lent.
    fn lent<'a>(&self, op: &'a SendOp, piece: usize) -> Option<&'a [u8]> {
        let least = op.lend.filter(|_| (1..=op.payload.len()).contains(&piece))?;
        let bytes = op.piece(piece).filter(|bytes| bytes.len() >= least)?;
        self.pipe.borrow().is_some().then_some(bytes)
    }

    /// A message is out: when it was small, and no large one is coming in, the answer may come soon.
    fn expect_answer(&self, sent: &SendOp) {
        let large = match &*self.recv.borrow() {
            Receive::Running { min, .. } => *min > SMALL,
            _ => false,
        };
        if large || sent.len() > SMALL {
            self.engine.expect_nothing();
        } else {
            self.expect();
        }
    }

    /// Something small may come soon, unless its sender needs the core that we are on.
    fn expect(&self) {
        if !(self.loopback && self.gate.is_closed(&self.socket)) {
            self.engine.expect();
        }
    }

    /// A piece that the engine has a better way for than the others.
    fn known<'a>(&self, op: &'a SendOp, piece: usize) -> Option<&'a [u8]> {
        op.piece(piece).filter(|bytes| bytes.len() >= KNOWN_MIN && self.engine.knows(bytes))
    }
}

impl Sent {
    /// Moves on over pieces without bytes.
    fn skip_empty(&mut self, op: &SendOp) {
        while op.piece(self.piece).is_some_and(<[u8]>::is_empty) {
            *self = Sent { piece: self.piece + 1, offset: 0 };
        }
    }

    /// Moves on by `count` bytes.
    fn advance(&mut self, op: &SendOp, mut count: usize) {
        while count > 0 {
            let piece = op.piece(self.piece).expect("no more is sent than was asked");
            let step = count.min(piece.len() - self.offset);
            self.offset += step;
            count -= step;
            if self.offset == piece.len() {
                *self = Sent { piece: self.piece + 1, offset: 0 };
            }
        }
    }
}

/// What [`gather`] listed.
struct Gathered {
    /// Slices.
    count: usize,
    /// Bytes in them.
    bytes: usize,
    /// Something that is sent by another way comes right behind.
    followed: bool,
}

/// Lists what is still to send, up to `limit` bytes and to a piece that `goes_apart`.
fn gather<'a>(
    op: &'a SendOp,
    sent: Sent,
    limit: usize,
    slices: &mut [IoSlice<'a>; PIECES_MAX],
    goes_apart: impl Fn(usize) -> bool,
) -> Gathered {
    let mut gathered = Gathered { count: 0, bytes: 0, followed: false };
    let mut at = sent;
    while let Some(piece) = op.piece(at.piece) {
        if goes_apart(at.piece) {
            gathered.followed = true;
            break;
        }
        let rest = &piece[at.offset..];
        let rest = &rest[..rest.len().min(limit - gathered.bytes)];
        if !rest.is_empty() {
            slices[gathered.count] = IoSlice::new(rest);
            gathered.count += 1;
            gathered.bytes += rest.len();
        }
        if gathered.count == PIECES_MAX || gathered.bytes == limit {
            break;
        }
        at = Sent { piece: at.piece + 1, offset: 0 };
    }
    gathered
}

impl Connection for TcpConnection {
    fn start_recv(&self, buf: RecvBuf, at: usize, min: usize) {
        assert!(min > 0, "a receive of at least 0 bytes would never wait");
        assert!(at + min <= buf.len(), "the buffer is too small for what is asked");
        let mut state = self.recv.borrow_mut();
        assert!(matches!(*state, Receive::Idle), "a receive is outstanding");
        *state = Receive::Running { buf, at, min, got: 0, waker: None };
        drop(state);
        self.drive_recv();
    }

    fn poll_recv(&self, cx: &mut Context<'_>) -> Poll<(Result<usize, NetError>, RecvBuf)> {
        let mut state = self.recv.borrow_mut();
        match std::mem::replace(&mut *state, Receive::Idle) {
            Receive::Done { result, buf } => Poll::Ready((result, buf)),
            Receive::Running { buf, at, min, got, .. } => {
                *state = Receive::Running { buf, at, min, got, waker: Some(cx.waker().clone()) };
                Poll::Pending
            }
            Receive::Idle => panic!("no receive was started"),
        }
    }

    fn start_send(&self, op: SendOp) {
        let mut state = self.send.borrow_mut();
        assert!(matches!(*state, Transmit::Idle), "a send is outstanding");
        if op.lend.is_some() && self.loopback {
            *self.pipe.borrow_mut() = self.engine.take_pipe();
        }
        *state = Transmit::Running { op, sent: Sent::default(), waker: None };
        drop(state);
        self.drive_send();
    }

    fn poll_send(&self, cx: &mut Context<'_>) -> Poll<(Result<(), NetError>, SendOp)> {
        let mut state = self.send.borrow_mut();
        match std::mem::replace(&mut *state, Transmit::Idle) {
            Transmit::Done { result, op } => Poll::Ready((result, op)),
            Transmit::Running { op, sent, .. } => {
                *state = Transmit::Running { op, sent, waker: Some(cx.waker().clone()) };
                Poll::Pending
            }
            Transmit::Idle => panic!("no send was started"),
        }
    }

    fn shutdown(&self) {
        // What the kernel says afterwards is no word of the peer's.
        self.gone.set(self.is_peer_gone());
        self.shut.set(true);
        // The kernel raises an edge for both directions, which ends what is outstanding. A peer that was
        // faster has left nothing to shut down.
        let result: io::Result<()> = self.socket.shutdown(Shutdown::Both);
        if let Err(error) = result
            && error.kind() != ErrorKind::NotConnected
        {
            tracing::debug!(peer = %self.peer, %error, "shutdown");
        }
    }

    fn peer(&self) -> String {
        self.peer.clone()
    }

    fn is_loopback(&self) -> bool {
        self.loopback
    }

    fn lends(&self) -> bool {
        self.loopback && self.engine.has_pipes()
    }

    fn is_peer_gone(&self) -> bool {
        self.gone.get() || self.loopback && !self.shut.get() && lend::is_closed(&self.socket)
    }
}

impl Drop for TcpConnection {
    fn drop(&mut self) {
        self.engine.detach(self.token);
    }
}
