//! The listening side: one socket per node, and on each reactor that accepts an acceptor.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use memkv_poller::{Instant as Moment, Interrupt, Local, Poller, Progress};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::blocking;
use super::options::{self, Replaced};
use crate::NetError;

/// Connections the kernel may hold for us between two accepts.
const BACKLOG: i32 = 1024;
/// Pause between two looks at the listening socket while the reactor does not sleep: a look is a system
/// call, and nobody notices a connection that is accepted some microseconds later.
const LOOK_EVERY: Duration = Duration::from_micros(50);
/// How often an address that is in use is asked for again.
const ASK_AGAIN: Duration = Duration::from_millis(20);
/// How long accepting rests when the process is out of descriptors or memory.
const REST: Duration = Duration::from_millis(100);

/// A bound, listening TCP socket. `Send`: it may be made on any thread.
pub struct Listener {
    socket: Arc<Socket>,
    address: SocketAddr,
    /// What peers elsewhere get back of the congestion control.
    replaced: Option<Replaced>,
}

/// A connection that no reactor owns yet; `Send`, so that it can be dealt to any of them.
#[derive(Debug)]
pub struct Accepted {
    pub(super) socket: Socket,
    pub(super) peer: SocketAddr,
    /// What it gets back of the congestion control, if it comes from elsewhere.
    pub(super) replaced: Option<Replaced>,
}

impl Accepted {
    /// The address of the other end.
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }
}

impl Listener {
    /// Binds and listens. A name with several addresses is bound at the first that works; port 0 picks a
    /// free one, see [`Listener::local_addr`].
    pub fn bind(addr: impl ToSocketAddrs) -> Result<Listener, NetError> {
        let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
        for address in addr.to_socket_addrs()? {
            match listen(address) {
                Ok((socket, replaced)) => {
                    let bound = socket.local_addr()?.as_socket().unwrap_or(address);
                    return Ok(Listener { socket: Arc::new(socket), address: bound, replaced });
                }
                Err(error) => last = error,
            }
        }
        Err(NetError::Os(last))
    }

    /// The same, of an address that may be somebody else's a little longer: what io_uring waited for is let
    /// go by the kernel some time after its process has ended, and a server that was killed waits for its
    /// listening socket. Blocks for so long at most.
    pub fn bind_within(address: SocketAddr, patience: Duration) -> Result<Listener, NetError> {
        let asked = Instant::now();
        loop {
            match Listener::bind(address) {
                Err(NetError::Os(error))
                    if error.kind() == io::ErrorKind::AddrInUse && asked.elapsed() < patience =>
                {
                    thread::sleep(ASK_AGAIN);
                }
                bound => return bound,
            }
        }
    }

    /// The address that clients connect to.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// An acceptor on the reactor of `local`. It accepts only while somebody awaits
    /// [`Acceptor::accept`].
    pub fn accept_queue(&self, local: &Local) -> Rc<Acceptor> {
        let acceptor = Rc::new(Acceptor {
            socket: self.socket.clone(),
            replaced: self.replaced.clone(),
            local: local.clone(),
            waiting: RefCell::new(None),
            found: RefCell::new(None),
            short: Cell::new(false),
        });
        let poller = AcceptPoller { acceptor: acceptor.clone(), look_at: Moment::default() };
        local.add_poller(Box::new(poller));
        acceptor
    }
}

fn listen(address: SocketAddr) -> io::Result<(Socket, Option<Replaced>)> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // A restarted server may bind at once, while connections of the last one still time out.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    let replaced = options::prepare_listener(&socket);
    socket.bind(&SockAddr::from(address))?;
    socket.listen(BACKLOG)?;
    Ok((socket, replaced))
}

/// Accepts connections on one reactor, for one waiting task at a time.
pub struct Acceptor {
    socket: Arc<Socket>,
    replaced: Option<Replaced>,
    local: Local,
    waiting: RefCell<Option<Waker>>,
    found: RefCell<Option<Result<Accepted, NetError>>>,
    /// The last accept failed for want of descriptors or memory.
    short: Cell<bool>,
}

impl Acceptor {
    /// The next connection. An error is the system's want of descriptors or memory: report it and call
    /// again; that call rests 100 ms first, so that a loop does not spin.
    ///
    /// A connection that is already taken when this future is dropped is returned by the next call.
    pub async fn accept(&self) -> Result<Accepted, NetError> {
        if self.short.replace(false) {
            self.local.sleep(REST).await;
        }
        let result = poll_fn(|cx| self.poll_accept(cx)).await;
        self.short.set(result.is_err());
        result
    }

    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<Result<Accepted, NetError>> {
        if let Some(result) = self.found.borrow_mut().take().or_else(|| self.look()) {
            self.waiting.borrow_mut().take();
            return Poll::Ready(result);
        }
        *self.waiting.borrow_mut() = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Whether there is something to accept, or to say; [`NetError::TimedOut`] when there is not.
    fn ask(&self) -> Result<(), NetError> {
        blocking::wait(&self.socket, libc::POLLIN, Instant::now())
    }

    /// Takes one connection from the kernel, if there is one.
    fn look(&self) -> Option<Result<Accepted, NetError>> {
        loop {
            // Asking costs a tenth of an accept in vain, which makes a socket first.
            if matches!(self.ask(), Err(NetError::TimedOut)) {
                return None;
            }
            match self.socket.accept() {
                Ok((socket, peer)) => {
                    // A peer that is gone already has no address; the next one may have.
                    let Some(peer) = peer.as_socket() else { continue };
                    return Some(Ok(Accepted { socket, peer, replaced: self.replaced.clone() }));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                Err(error) if is_shortage(&error) => return Some(Err(NetError::Os(error))),
                // The connection died in the queue (accept(2) passes its error on): take the next.
                Err(error) => tracing::debug!(%error, "a connection died before it was accepted"),
            }
        }
    }
}

/// True for errors that concern the process and not the connection.
fn is_shortage(error: &io::Error) -> bool {
    let shortages = [
        libc::EMFILE,
        libc::ENFILE,
        libc::ENOBUFS,
        libc::ENOMEM,
        libc::EBADF,
        libc::EINVAL,
        libc::ENOTSOCK,
        libc::EPERM,
    ];
    error.raw_os_error().is_none_or(|code| shortages.contains(&code))
}

/// Looks at the listening socket for the waiting task. One connection a round.
struct AcceptPoller {
    acceptor: Rc<Acceptor>,
    look_at: Moment,
}

impl Poller for AcceptPoller {
    fn name(&self) -> &'static str {
        "accept"
    }

    fn poll(&mut self) -> Progress {
        if self.acceptor.waiting.borrow().is_none() {
            return Progress::Idle;
        }
        let now = self.acceptor.local.pass_began();
        if now < self.look_at {
            return Progress::Idle;
        }
        self.look_at = now + LOOK_EVERY;
        let Some(result) = self.acceptor.look() else { return Progress::Idle };
        *self.acceptor.found.borrow_mut() = Some(result);
        let waker = self.acceptor.waiting.borrow_mut().take();
        waker.into_iter().for_each(Waker::wake);
        Progress::Busy(1)
    }

    fn arm(&mut self) -> Interrupt {
        if self.acceptor.waiting.borrow().is_none() {
            return Interrupt::Quiet;
        }
        Interrupt::Fd(self.acceptor.socket.as_raw_fd())
    }

    fn disarm(&mut self) {
        self.look_at = Moment::default();
    }

    fn retired(&self) -> bool {
        Rc::strong_count(&self.acceptor) == 1
    }
}
