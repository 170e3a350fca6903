//! The socket options of every connection, ours and the client's.

use std::net::{IpAddr, SocketAddr};

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
