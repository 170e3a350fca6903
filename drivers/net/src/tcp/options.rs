//! The socket options of every connection, ours and the client's.

use std::cell::Cell;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;

use socket2::Socket;

use crate::NetError;

/// Sets what every connection has: TCP_NODELAY, no SIGPIPE, and for a peer on this machine a congestion
/// control that does not pace (the default of many servers, bbr, costs a third more CPU on loopback).
pub(super) fn tune(socket: &Socket, on_this_machine: bool) -> Result<(), NetError> {
    socket.set_tcp_nodelay(true)?;
    #[cfg(any(target_os = "macos", target_os = "ios"))]
    socket.set_nosigpipe(true)?;
    if on_this_machine {
        set_loopback_congestion(socket);
    }
    Ok(())
}

/// Tries reno, then cubic. Which algorithms a process may choose is the machine's policy, and a failure
/// costs speed only, so it is ignored.
#[cfg(target_os = "linux")]
fn set_loopback_congestion(socket: &Socket) {
    let chosen = [b"reno".as_slice(), b"cubic"]
        .into_iter()
        .find(|name| socket.set_tcp_congestion(name).is_ok());
    if chosen.is_none() {
        tracing::debug!("neither reno nor cubic is available; keeping the default");
    }
}

#[cfg(not(target_os = "linux"))]
fn set_loopback_congestion(_socket: &Socket) {}

/// True when both ends of a connection are on this machine: a loopback address, or the peer has the
/// address that we have.
pub(super) fn is_local(socket: &Socket, peer: &SocketAddr) -> bool {
    let own = socket.local_addr().ok().and_then(|address| address.as_socket());
    let peer = canonical(peer.ip());
    peer.is_loopback() || own.is_some_and(|own| canonical(own.ip()) == peer)
}

/// An IPv4 address that came in through an IPv6 socket, as IPv4.
fn canonical(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

/// Less than this is waited for byte by byte: a threshold would cost as much as it saves.
const THRESHOLD_MIN: usize = 32 << 10;
/// More than this is not waited for in one piece: what has arrived is to be taken while it is in a
/// cache, and the peer is to find room meanwhile.
const THRESHOLD_MAX: usize = 256 << 10;

/// How many bytes must have arrived before the kernel says that a socket is readable.
///
/// Bytes of a value arrive in packets of up to 64 KiB, and whoever waits is woken by each: a wake-up
/// takes the peer's thread and ours some microseconds each, as much as copying one packet. With a
/// threshold of what is still missing there is one. The kernel says so earlier when the stream ends
/// or breaks, and when its memory or its window has no room for as much.
#[derive(Debug)]
pub(super) struct Threshold(Cell<usize>);

impl Threshold {
    /// That of a new socket: a byte.
    pub fn new() -> Threshold {
        Threshold(Cell::new(1))
    }

    /// Whether a byte is enough.
    pub fn is_one(&self) -> bool {
        self.0.get() == 1
    }

    /// Whoever waits now needs `missing` more bytes. If there is as much already, the kernel says
    /// so anew.
    ///
    /// # Errors
    /// When the threshold stays above what is missing, which nothing but a policy of the system can
    /// bring about: the bytes may then never be told.
    pub fn wait_for(&self, socket: &Socket, missing: usize) -> io::Result<()> {
        // Elsewhere a threshold that is lowered need not tell again what is there already.
        let small = missing < THRESHOLD_MIN || !cfg!(target_os = "linux");
        let wanted = if small { 1 } else { missing.min(THRESHOLD_MAX) };
        if self.0.get() == wanted {
            return Ok(());
        }
        match set_low_water(socket, wanted) {
            Ok(()) => self.0.set(wanted),
            Err(error) if wanted < self.0.get() => return Err(error),
            // It would only have saved wake-ups.
            Err(_) => {}
        }
        Ok(())
    }
}

fn set_low_water(socket: &Socket, bytes: usize) -> io::Result<()> {
    let bytes = bytes as libc::c_int;
    // SAFETY: the option's value is an int, which outlives the call; its size is passed.
    let rc = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVLOWAT,
            (&raw const bytes).cast(),
            size_of_val(&bytes) as libc::socklen_t,
        )
    };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
