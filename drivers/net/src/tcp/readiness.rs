//! The kernel's set of sockets and what became of them: one small interface over what systems offer.

use std::io;
use std::os::fd::RawFd;

use memkv_dma::Memory;
use memkv_poller::Wait;

use super::Driver;

#[cfg(target_os = "linux")]
#[path = "epoll.rs"]
mod epoll;
#[cfg(not(target_os = "linux"))]
#[path = "kqueue.rs"]
mod kqueue;
#[cfg(target_os = "linux")]
#[path = "uring.rs"]
mod uring;

/// Most events taken from the kernel at once. More wait for the next round.
pub(super) const EVENTS_MAX: usize = 128;

/// What became of one socket since its last event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Event {
    /// The number the socket was registered with.
    pub token: u64,
    /// Bytes, the end of the stream, or an error can be read.
    pub readable: bool,
    /// There is room to send, or an error to collect.
    pub writable: bool,
    /// The peer sends no more, or the connection is broken: it stays readable for ever.
    pub ended: bool,
}

/// A set of sockets, edge-triggered.
pub(super) trait Readiness {
    /// Adds a socket until it is removed. Its current state arrives as a first event.
    fn add(&mut self, socket: RawFd, token: u64) -> io::Result<()>;

    /// Removes a socket that is about to be closed.
    fn remove(&mut self, _token: u64) {
        // Closing it is enough.
    }

    /// Takes up to [`EVENTS_MAX`] events without waiting and hands each to `take`.
    fn collect(&mut self, take: &mut dyn FnMut(Event)) -> io::Result<()>;

    /// The reactor is about to sleep: the descriptor that becomes readable with the next event. `None`:
    /// there is something to collect already.
    fn arm(&mut self) -> Option<RawFd>;

    /// Whether the reactor can sleep in [`Readiness::wait`]. `None`: there is something to collect already.
    fn can_wait(&self) -> Option<bool> {
        Some(false)
    }

    /// Sleeps until there is something to collect or what is waited for besides is there; whether the bell
    /// is. May return early. Called only where it [can](Readiness::can_wait).
    fn wait(&mut self, _wait: Wait<'_>) -> bool {
        false
    }

    /// The reactor is awake again.
    fn disarm(&mut self) {}

    /// Whether what came before [`Readiness::arm`] is to be looked for once more after it; if not, it
    /// makes the descriptor readable.
    fn looks_when_armed(&self) -> bool {
        false
    }

    /// Whether [`Readiness::send`] knows a way for these bytes that costs less than `sendmsg(2)`.
    fn knows(&self, _bytes: &[u8]) -> bool {
        false
    }

    /// Sends bytes that it [knows](Readiness::knows), as many as the socket takes now.
    fn send(&mut self, _socket: RawFd, _bytes: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Makes the set that was asked for, or the best there is: with the name of it and why.
#[cfg(target_os = "linux")]
pub(super) fn open(driver: Driver, memory: &[Memory]) -> io::Result<Opened> {
    let epoll = |reason: String| Ok(Opened { set: Box::new(epoll::Epoll::new()?), reason });
    match driver {
        Driver::Epoll => epoll("epoll was asked for".to_owned()),
        Driver::Uring => {
            let set = Box::new(uring::Uring::new(memory)?);
            Ok(Opened { set, reason: "io_uring was asked for".to_owned() })
        }
        Driver::Auto => match uring::Uring::new(memory) {
            Ok(set) => {
                let reason = "io_uring, which this system has".to_owned();
                Ok(Opened { set: Box::new(set), reason })
            }
            Err(error) => epoll(format!("epoll, since io_uring is not to be had: {error}")),
        },
    }
}

/// Makes the set of this system.
#[cfg(not(target_os = "linux"))]
pub(super) fn open(driver: Driver, _memory: &[Memory]) -> io::Result<Opened> {
    if driver == Driver::Uring {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let set = Box::new(kqueue::Kqueue::new()?);
    Ok(Opened { set, reason: "kqueue, which this system has".to_owned() })
}

/// A set, and why it is this one.
pub(super) struct Opened {
    pub set: Box<dyn Readiness>,
    pub reason: String,
}
