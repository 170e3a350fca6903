//! The client's end of a connection: plain calls on the caller's thread, each with a deadline.
//!
//! A call tries first and then waits, until its deadline at most: for something small within recv(2) itself,
//! whose patience the socket has (`SO_RCVTIMEO`), else by poll(2). A call that fails or times out leaves the
//! stream at an unknown place: the caller must drop it.

use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::net::{Shutdown, SocketAddr, ToSocketAddrs};
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::connection::{MORE, SEND_FLAGS};
use super::lend::{LEND_MIN, Pipe};
use super::options::{self, Threshold};
use super::spin::{AWAKE, Gate, SMALL, Spin};
use crate::NetError;

/// Most pieces handed to the system at once (it takes 1024).
const PIECES_MAX: usize = 64;
/// The longest that a receive sleeps before it looks at the clock, in milliseconds.
const PATIENCE_MAX: u64 = 1 << 16;

/// A connected TCP stream.
///
/// Dropping it closes our descriptor and no more: a copy of the process made by fork(2) may drop its copy
/// of the stream without disturbing the original.
#[derive(Debug)]
pub struct Stream {
    socket: Socket,
    peer: SocketAddr,
    /// The last receive took less than it asked for, so there was no more: wait before the next.
    drained: bool,
    /// Above a byte only while [`Stream::recv_exact`] waits: others wait for anything.
    threshold: Threshold,
    loopback: bool,
    /// Calls without a flag wait: only a receive does without, and what lends pages has none.
    blocking: bool,
    /// Milliseconds that a receive waits, as the socket knows it; 0 is not set yet.
    patience_ms: u64,
    /// What is waited for is small, and comes soon.
    expects_small: bool,
    spin: Spin,
    gate: Gate,
    pipe: Lending,
}

/// Whether large sends lend their pages.
#[derive(Debug)]
enum Lending {
    /// Not known yet.
    Untried,
    /// They do.
    By(Pipe),
    /// They do not, or one is under way.
    No,
}

impl Stream {
    /// Connects to `addr` (`host:port`), trying every address of the name until `deadline`.
    ///
    /// The name is looked up by the system, which may take longer than the deadline allows; addresses in
    /// figures are not looked up.
    pub fn connect(addr: &str, deadline: Instant) -> Result<Stream, NetError> {
        let mut last = NetError::Os(io::Error::from(ErrorKind::AddrNotAvailable));
        for address in addr.to_socket_addrs()? {
            match Stream::connect_one(address, deadline) {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn connect_one(address: SocketAddr, deadline: Instant) -> Result<Stream, NetError> {
        let connecting = Connecting::start(address)?;
        wait(&connecting.socket, libc::POLLOUT, deadline)?;
        connecting.finish()
    }

    /// Starts to connect to the first address of `addr` and does not wait for it.
    pub fn start_connect(addr: &str) -> Result<Connecting, NetError> {
        match addr.to_socket_addrs()?.next() {
            Some(address) => Connecting::start(address),
            None => Err(NetError::Os(io::Error::from(ErrorKind::AddrNotAvailable))),
        }
    }

    /// Whether the other end is on this machine.
    pub fn is_loopback(&self) -> bool {
        self.loopback
    }

    /// The address of the other end.
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Sends all of `parts` in order.
    ///
    /// Errors: [`NetError::TimedOut`] when the deadline passed first (an unknown part was sent),
    /// [`NetError::Closed`] or [`NetError::Reset`] when the peer reads no more.
    pub fn send_vectored(
        &mut self,
        parts: &[IoSlice<'_>],
        deadline: Instant,
    ) -> Result<(), NetError> {
        for batch in parts.chunks(PIECES_MAX) {
            let mut copy = [IoSlice::new(&[]); PIECES_MAX];
            copy[..batch.len()].copy_from_slice(batch);
            self.send_batch(&mut copy[..batch.len()], 0, deadline)?;
        }
        Ok(())
    }

    /// Sends `head`, then `bytes` as pages of the caller's where that is worth it and to be had, else as
    /// copies. More is expected to follow at once. **The caller leaves `bytes` as they are until the peer
    /// has answered**, or gives the connection up; what the peer gets of them otherwise is not what was
    /// there.
    ///
    /// Errors: as [`Stream::send_vectored`].
    pub fn send_lending(
        &mut self,
        head: &[u8],
        bytes: &[u8],
        deadline: Instant,
    ) -> Result<(), NetError> {
        if bytes.len() >= LEND_MIN
            && let Some(mut pipe) = self.take_pipe()
        {
            self.send_batch(&mut [IoSlice::new(head)], MORE, deadline)?;
            self.set_blocking(false)?;
            let mut sent = 0;
            while sent < bytes.len() {
                match pipe.lend(&self.socket, &bytes[sent..], true) {
                    Ok(count) => sent += count,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        wait(&self.socket, libc::POLLOUT, deadline)?;
                    }
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) => return Err(error.into()),
                }
            }
            self.pipe = Lending::By(pipe);
            return Ok(());
        }
        self.send_batch(&mut [IoSlice::new(head), IoSlice::new(bytes)], MORE, deadline)
    }

    /// The pipe for lending, if the peer is on this machine, where it was found to save something.
    fn take_pipe(&mut self) -> Option<Pipe> {
        match std::mem::replace(&mut self.pipe, Lending::No) {
            Lending::By(pipe) => Some(pipe),
            Lending::Untried if self.loopback => Pipe::new()
                .inspect_err(|error| tracing::debug!(%error, "no pipe, so values are copied"))
                .ok(),
            Lending::Untried | Lending::No => None,
        }
    }

    fn send_batch(
        &mut self,
        mut rest: &mut [IoSlice<'_>],
        flags: libc::c_int,
        deadline: Instant,
    ) -> Result<(), NetError> {
        // Drops empty slices at the front, so that an empty rest means all is sent.
        IoSlice::advance_slices(&mut rest, 0);
        while !rest.is_empty() {
            let flags = SEND_FLAGS | libc::MSG_DONTWAIT | flags;
            match self.socket.send_vectored_with_flags(rest, flags) {
                Ok(count) => IoSlice::advance_slices(&mut rest, count),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    wait(&self.socket, libc::POLLOUT, deadline)?;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Fills `buf`.
    ///
    /// Errors: [`NetError::TimedOut`] when the deadline passed first, [`NetError::Closed`] at the end of
    /// the stream, [`NetError::Reset`].
    pub fn recv_exact(&mut self, buf: &mut [u8], deadline: Instant) -> Result<(), NetError> {
        let mut got = 0;
        while got < buf.len() {
            if self.drained {
                self.threshold.wait_for(&self.socket, buf.len() - got)?;
            }
            match self.recv_some(&mut buf[got..], deadline)? {
                0 => return Err(NetError::Closed),
                count => got += count,
            }
        }
        Ok(self.threshold.wait_for(&self.socket, 1)?)
    }

    /// Fills `parts` in order. Errors: as [`Stream::recv_exact`].
    pub fn recv_vectored_exact(
        &mut self,
        parts: &mut [IoSliceMut<'_>],
        deadline: Instant,
    ) -> Result<(), NetError> {
        parts.iter_mut().try_for_each(|part| self.recv_exact(part, deadline))
    }

    /// Receives what there is, at least a byte and at most `buf`; 0 is the end of the stream (or an empty
    /// `buf`).
    pub fn recv_some(&mut self, buf: &mut [u8], deadline: Instant) -> Result<usize, NetError> {
        let mut awake = self.expects_small;
        loop {
            // At most once, before the first sleep.
            if self.drained
                && std::mem::take(&mut awake)
                && let Some(received) = self.recv_awake(buf)
            {
                return Ok(received?);
            }
            let sleeps = self.drained && self.prepare_sleep(deadline)?;
            let flags = if sleeps { 0 } else { libc::MSG_DONTWAIT };
            match receive(&self.socket, buf, flags) {
                Ok(count) => {
                    self.drained = count < buf.len();
                    return Ok(count);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.drained = true,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Whether the next receive may sleep, for it is sure to be back by the deadline; if not, waits here.
    ///
    /// A receive that sleeps until a byte comes is one call where a wait and a receive are two. For more than
    /// a byte it is not to sleep: what it has taken already counts no more for the threshold, which may then
    /// never be reached. The socket's patience is a power of two, so that it is set anew only when
    /// the deadline is closer than that.
    fn prepare_sleep(&mut self, deadline: Instant) -> Result<bool, NetError> {
        let left = deadline.saturating_duration_since(Instant::now()).as_millis();
        if left == 0 || !self.threshold.is_one() {
            wait(&self.socket, libc::POLLIN, deadline)?;
            return Ok(false);
        }
        let left = u64::try_from(left).unwrap_or(PATIENCE_MAX).min(PATIENCE_MAX);
        let patience_ms = 1 << left.ilog2();
        if self.patience_ms != patience_ms {
            self.socket.set_read_timeout(Some(Duration::from_millis(patience_ms)))?;
            self.patience_ms = patience_ms;
        }
        self.set_blocking(true)?;
        Ok(true)
    }

    fn set_blocking(&mut self, blocking: bool) -> io::Result<()> {
        if self.blocking != blocking {
            self.socket.set_nonblocking(!blocking)?;
            self.blocking = blocking;
        }
        Ok(())
    }

    /// Tells how many bytes the messages have that are received from now on: small ones are waited for awake,
    /// if that has paid lately.
    pub fn expect(&mut self, bytes: u64) {
        self.expects_small = bytes <= SMALL as u64;
    }

    /// Looks for something to receive for a while without sleeping. `None`: there was nothing.
    fn recv_awake(&mut self, buf: &mut [u8]) -> Option<io::Result<usize>> {
        if self.loopback && self.gate.is_closed(&self.socket) || !self.spin.begins() {
            return None;
        }
        let until = Instant::now() + AWAKE;
        loop {
            let received = receive(&self.socket, buf, libc::MSG_DONTWAIT);
            match &received {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if Instant::now() >= until {
                        self.spin.ended(false);
                        return None;
                    }
                    std::hint::spin_loop();
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                _ => {
                    self.spin.ended(true);
                    self.drained = received.as_ref().is_ok_and(|&count| count < buf.len());
                    return Some(received);
                }
            }
        }
    }

    /// True when nothing has arrived since the last receive: neither bytes nor the end of the stream.
    /// Asked of a connection that rested in a pool, a false means that it is no good any more.
    pub fn is_quiet(&self) -> bool {
        let mut byte = [std::mem::MaybeUninit::uninit()];
        let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
        let looked = self.socket.recv_with_flags(&mut byte, flags);
        matches!(looked, Err(error) if error.kind() == ErrorKind::WouldBlock)
    }

    /// Waits until one of `streams` has something to receive (bytes, its end or an error) and returns its
    /// place; `None` when none had until `deadline`. Looks at least once.
    pub fn wait_any(streams: &[&Stream], deadline: Instant) -> Result<Option<usize>, NetError> {
        let entry = |stream: &&Stream| libc::pollfd {
            fd: stream.socket.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        let mut entries: Vec<_> = streams.iter().map(entry).collect();
        match poll(&mut entries, deadline) {
            Ok(()) => Ok(entries.iter().position(|entry| entry.revents != 0)),
            Err(NetError::TimedOut) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Ends the connection in both directions, for every copy of it.
    pub fn shutdown(&self) {
        if let Err(error) = self.socket.shutdown(Shutdown::Both) {
            tracing::debug!(peer = %self.peer, %error, "shutdown");
        }
    }
}

impl AsRawFd for Stream {
    /// For whoever shuts the connection down under a call that waits.
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// A connection that is being made.
#[derive(Debug)]
pub struct Connecting {
    socket: Socket,
    peer: SocketAddr,
}

impl Connecting {
    fn start(peer: SocketAddr) -> Result<Connecting, NetError> {
        let socket = Socket::new(Domain::for_address(peer), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        options::prepare(&socket, &peer);
        match socket.connect(&SockAddr::from(peer)) {
            Ok(()) => Ok(Connecting { socket, peer }),
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {
                Ok(Connecting { socket, peer })
            }
            Err(error) => Err(NetError::Os(error)),
        }
    }

    /// Waits until it is decided whether the connection stands, or `deadline` has passed; true when it is
    /// decided. Looks at least once.
    pub fn wait(&self, deadline: Instant) -> Result<bool, NetError> {
        match wait(&self.socket, libc::POLLOUT, deadline) {
            Ok(()) => Ok(true),
            Err(NetError::TimedOut) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The stream, once it is decided; the error when the peer refused or cannot be reached.
    pub fn finish(self) -> Result<Stream, NetError> {
        if let Some(error) = self.socket.take_error()? {
            return Err(NetError::Os(error));
        }
        let loopback = options::is_local(&self.socket, &self.peer);
        options::tune(&self.socket, loopback, None)?;
        Ok(Stream {
            socket: self.socket,
            peer: self.peer,
            drained: true,
            threshold: Threshold::new(),
            loopback,
            blocking: false,
            patience_ms: 0,
            expects_small: false,
            spin: Spin::new(),
            gate: Gate::default(),
            pipe: Lending::Untried,
        })
    }
}

/// Receives into `buf` by recv(2).
fn receive(socket: &Socket, buf: &mut [u8], flags: libc::c_int) -> io::Result<usize> {
    // SAFETY: the kernel writes at most as many bytes as `buf` has, which outlives the call.
    let count =
        unsafe { libc::recv(socket.as_raw_fd(), buf.as_mut_ptr().cast(), buf.len(), flags) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

/// Waits until the socket is ready for `events`, or broken, or the deadline has passed. Looks at least
/// once.
pub(super) fn wait(
    socket: &Socket,
    events: libc::c_short,
    deadline: Instant,
) -> Result<(), NetError> {
    poll(&mut [libc::pollfd { fd: socket.as_raw_fd(), events, revents: 0 }], deadline)
}

/// poll(2) until an entry is ready; [`NetError::TimedOut`] when none was by the deadline.
fn poll(entries: &mut [libc::pollfd], deadline: Instant) -> Result<(), NetError> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let count = entries.len() as libc::nfds_t;
        // SAFETY: `count` entries are passed, and they outlive the call.
        match unsafe { libc::poll(entries.as_mut_ptr(), count, milliseconds(left)) } {
            0 if left.is_zero() => return Err(NetError::TimedOut),
            0 => {}
            ready if ready > 0 => return Ok(()),
            _ => {
                let error = io::Error::last_os_error();
                if error.kind() != ErrorKind::Interrupted {
                    return Err(NetError::Os(error));
                }
            }
        }
    }
}

/// Rounded up, so that the last wait ends after the deadline and not before it.
fn milliseconds(left: Duration) -> libc::c_int {
    left.as_nanos().div_ceil(1_000_000).try_into().unwrap_or(libc::c_int::MAX)
}

#[cfg(test)]
#[path = "blocking_tests.rs"]
mod tests;
