//! Connections of blocking clients: tuned alike for all sides, values in as few calls as can be.

use std::io::{self, IoSlice, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::sys::socket::{MsgFlags, recv};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// All parts in one call where the system takes all at once.
///
/// # Errors
/// As the system says.
pub fn send(stream: &mut TcpStream, mut rest: &mut [IoSlice<'_>]) -> io::Result<()> {
    while !rest.is_empty() {
        match stream.write_vectored(rest) {
            Ok(count) => IoSlice::advance_slices(&mut rest, count),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Fills `into`, in one call but for signals.
///
/// # Errors
/// As the system says; [`io::ErrorKind::UnexpectedEof`] when the peer has hung up.
pub fn receive(stream: &TcpStream, into: &mut [u8]) -> io::Result<()> {
    let mut got = 0;
    while got < into.len() {
        match recv(stream.as_raw_fd(), &mut into[got..], MsgFlags::MSG_WAITALL) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => got += count,
            Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Waits awake, for so long at most, until there is something to receive. What is wrong with the connection
/// is told to whoever receives.
pub fn look(stream: &TcpStream, patience: Duration) {
    let (begun, flags) = (Instant::now(), MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT);
    while recv(stream.as_raw_fd(), &mut [0], flags) == Err(nix::errno::Errno::EAGAIN)
        && begun.elapsed() < patience
    {
        std::hint::spin_loop();
    }
}

/// Connects with what memkv sets for a peer on this machine.
///
/// # Errors
/// As the system says.
pub fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    prefer_reno(&socket);
    socket.connect(&address.into())?;
    socket.set_tcp_nodelay(true)?;
    Ok(socket.into())
}

/// Listens on a free port of loopback; what is accepted has the same congestion control.
///
/// # Errors
/// As the system says.
pub fn listen() -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    prefer_reno(&socket);
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Before there is a connection: one that began with bbr stays paced with any other. Neither may be allowed
/// here: then both sides have the machine's default.
#[cfg(target_os = "linux")]
fn prefer_reno(socket: &Socket) {
    if socket.set_tcp_congestion(b"reno").is_err() {
        let _ = socket.set_tcp_congestion(b"cubic");
    }
}

#[cfg(not(target_os = "linux"))]
fn prefer_reno(_socket: &Socket) {}

/// The congestion control of a connection, where the system tells.
#[cfg(target_os = "linux")]
pub fn congestion_control(stream: &TcpStream) -> Option<String> {
    let name = SockRef::from(stream).tcp_congestion().ok()?;
    let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    Some(String::from_utf8_lossy(&name[..end]).into_owned())
}

/// The congestion control of a connection, where the system tells.
#[cfg(not(target_os = "linux"))]
pub fn congestion_control(_stream: &TcpStream) -> Option<String> {
    None
}
