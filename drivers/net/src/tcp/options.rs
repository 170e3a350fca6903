//! The socket options of every connection, ours and the client's.

use std::cell::Cell;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;

use socket2::Socket;

use crate::NetError;

/// Sets what every connection has: TCP_NODELAY, no SIGPIPE, and the congestion control.
///
/// With a peer on this machine that is one that does not pace: the default of many servers, bbr, costs up
/// to half as much CPU again on loopback. It has to be chosen before the connection stands, by [`prepare`]
/// or [`prepare_listener`]: bbr marks a connection that it is given as one that is paced, and the mark stays
/// when another takes its place (Linux, `sk_pacing_status`). Here it is chosen where that was not possible.
/// `replaced` is what a connection from elsewhere gets back.
pub(super) fn tune(
    socket: &Socket,
    on_this_machine: bool,
    replaced: Option<&Replaced>,
) -> Result<(), NetError> {
    socket.set_tcp_nodelay(true)?;
    #[cfg(any(target_os = "macos", target_os = "ios"))]
    socket.set_nosigpipe(true)?;
    match replaced {
        _ if on_this_machine => drop(set_loopback_congestion(socket)),
        Some(control) => give_back(socket, control),
        None => {}
    }
    Ok(())
}

/// The names of two congestion controls: the system's own, and the one that took its place.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(not(target_os = "linux"), allow(dead_code, reason = "there is no such choice"))]
pub(super) struct Replaced {
    system: Arc<[u8]>,
    by: &'static [u8],
}

/// Before a socket is connected to `peer`.
pub(super) fn prepare(socket: &Socket, peer: &SocketAddr) {
    if is_here(peer) {
        drop(set_loopback_congestion(socket));
    }
}

/// Before a socket listens: what it accepts begins with its congestion control.
pub(super) fn prepare_listener(socket: &Socket) -> Option<Replaced> {
    set_loopback_congestion(socket)
}

/// Tries reno, then cubic; says what that took the place of, unless the socket had it already. Which a
/// process may choose is the machine's policy, and a failure costs speed only, so it is ignored.
#[cfg(target_os = "linux")]
fn set_loopback_congestion(socket: &Socket) -> Option<Replaced> {
    let system = congestion(socket).ok()?;
    let chosen = [b"reno".as_slice(), b"cubic"]
        .into_iter()
        .find(|name| socket.set_tcp_congestion(name).is_ok());
    if chosen.is_none() {
        tracing::debug!("neither reno nor cubic is available; keeping the default");
    }
    let by = chosen?;
    (*by != *system).then_some(Replaced { system, by })
}

/// The name without the zeros behind it.
#[cfg(target_os = "linux")]
fn congestion(socket: &Socket) -> io::Result<Arc<[u8]>> {
    let name = socket.tcp_congestion()?;
    Ok(name.split(|byte| *byte == 0).next().unwrap_or_default().into())
}

#[cfg(not(target_os = "linux"))]
fn set_loopback_congestion(_socket: &Socket) -> Option<Replaced> {
    None
}

/// The system's own choice may be made by anybody, so this does not fail but with the connection. One
/// that a route chose for this peer stays.
#[cfg(target_os = "linux")]
fn give_back(socket: &Socket, replaced: &Replaced) {
    let result = match congestion(socket) {
        Ok(name) if *name == *replaced.by => socket.set_tcp_congestion(&replaced.system),
        other => other.map(drop),
    };
    if let Err(error) = result {
        tracing::debug!(%error, "a connection keeps the congestion control of loopback");
    }
}

#[cfg(not(target_os = "linux"))]
fn give_back(_socket: &Socket, _replaced: &Replaced) {}

/// Whether an address is one of this machine's, as far as can be told before there is a connection: it is
/// the one from which it would be spoken to. Nothing is sent.
fn is_here(peer: &SocketAddr) -> bool {
    let own = || {
        let any: IpAddr = match peer {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect(peer)?;
        socket.local_addr()
    };
    let address = canonical(peer.ip());
    address.is_loopback() || own().is_ok_and(|own| canonical(own.ip()) == address)
}

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

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use socket2::{Domain, Protocol, SockAddr, Type};

    use super::*;

    fn socket() -> Socket {
        Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).expect("a socket")
    }

    fn control(socket: &Socket) -> Arc<[u8]> {
        congestion(socket).expect("every connection has one")
    }

    /// What the machine lets a process choose for loopback, and what it gives by itself.
    fn chosen_and_default() -> (Arc<[u8]>, Arc<[u8]>) {
        let socket = socket();
        let default = control(&socket);
        set_loopback_congestion(&socket);
        (control(&socket), default)
    }

    #[test]
    fn the_congestion_control_of_loopback_is_chosen_before_there_is_a_connection() {
        let (chosen, default) = chosen_and_default();
        let (near, far) = (socket(), socket());
        prepare(&near, &"127.0.0.1:9".parse().expect("an address"));
        // Of a block that is kept for documentation (RFC 5737): it is nobody's.
        prepare(&far, &"192.0.2.1:9".parse().expect("an address"));
        assert_eq!((control(&near), control(&far)), (chosen, default));
    }

    #[test]
    fn what_is_accepted_has_it_from_the_start_and_what_comes_from_elsewhere_gets_the_systems_back()
    {
        let (chosen, default) = chosen_and_default();
        let listener = socket();
        let replaced = prepare_listener(&listener);
        assert_eq!(replaced.is_some(), chosen != default);
        let any: SocketAddr = "127.0.0.1:0".parse().expect("an address");
        listener.bind(&SockAddr::from(any)).expect("a port");
        listener.listen(1).expect("it listens");
        let client = socket();
        client.connect(&listener.local_addr().expect("it is bound")).expect("it listens");
        let (accepted, _) = listener.accept().expect("the client");
        assert_eq!(control(&accepted), chosen);
        tune(&accepted, true, replaced.as_ref()).expect("it stands");
        assert_eq!(control(&accepted), chosen);
        tune(&accepted, false, replaced.as_ref()).expect("it stands");
        assert_eq!(control(&accepted), default);
        // As if a route had chosen it.
        let other = Replaced { system: chosen.clone(), by: b"another" };
        tune(&accepted, false, Some(&other)).expect("it stands");
        assert_eq!(control(&accepted), default);
    }

    #[test]
    fn an_address_of_this_machine_is_told_from_others() {
        let here = |address: &str| is_here(&address.parse().expect("an address"));
        assert!(here("127.0.0.1:1") && here("127.3.2.1:1") && here("[::ffff:127.0.0.1]:1"));
        assert!(!here("192.0.2.1:1") && !here("[2001:db8::1]:1"));
    }
}
