//! Readiness by Linux epoll(7), edge-triggered.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use super::{EVENTS_MAX, Event, Readiness};

/// One epoll instance.
pub(super) struct Epoll {
    epoll: OwnedFd,
    events: Vec<libc::epoll_event>,
}

impl Epoll {
    /// A new, empty set. Fails when the process has no descriptor left.
    pub fn new() -> io::Result<Epoll> {
        // SAFETY: epoll_create1 takes no pointers.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made and nobody else knows it.
        let epoll = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Epoll { epoll, events: vec![libc::epoll_event { events: 0, u64: 0 }; EVENTS_MAX] })
    }
}

impl Readiness for Epoll {
    fn add(&mut self, socket: RawFd, token: u64) -> io::Result<()> {
        let interest = libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP | libc::EPOLLET;
        let mut event = libc::epoll_event { events: interest as u32, u64: token };
        // SAFETY: `event` outlives the call; the kernel checks both descriptors.
        let rc = unsafe {
            libc::epoll_ctl(self.epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, socket, &mut event)
        };
        if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    fn collect(&mut self, take: &mut dyn FnMut(Event)) -> io::Result<()> {
        let room = EVENTS_MAX as libc::c_int;
        // SAFETY: the kernel writes at most `room` entries, and the vector has EVENTS_MAX.
        let count =
            unsafe { libc::epoll_wait(self.epoll.as_raw_fd(), self.events.as_mut_ptr(), room, 0) };
        if count < 0 {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::Interrupted { Ok(()) } else { Err(error) };
        }
        for event in &self.events[..count as usize] {
            take(translate(event.events as libc::c_int, event.u64));
        }
        Ok(())
    }

    fn arm(&mut self) -> Option<RawFd> {
        Some(self.epoll.as_raw_fd())
    }
}

/// What `POLL*` bits, which are those of epoll, say of a socket.
pub(super) fn translate(bits: libc::c_int, token: u64) -> Event {
    let broken = bits & (libc::EPOLLERR | libc::EPOLLHUP) != 0;
    let ended = broken || bits & libc::EPOLLRDHUP != 0;
    Event {
        token,
        readable: ended || bits & libc::EPOLLIN != 0,
        writable: broken || bits & libc::EPOLLOUT != 0,
        ended,
    }
}
