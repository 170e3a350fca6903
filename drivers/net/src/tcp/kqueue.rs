//! Readiness by kqueue(2) of macOS and the BSDs, edge-triggered (EV_CLEAR).

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use super::{EVENTS_MAX, Event, Readiness};

/// One kqueue.
pub(super) struct Kqueue {
    queue: OwnedFd,
    events: Vec<libc::kevent>,
}

impl Kqueue {
    /// A new, empty set. Fails when the process has no descriptor left.
    pub fn new() -> io::Result<Kqueue> {
        // SAFETY: kqueue takes no arguments.
        let fd = unsafe { libc::kqueue() };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made and nobody else knows it.
        let queue = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: FIOCLEX takes no argument; a kqueue is not inherited by fork, this covers exec.
        unsafe { libc::ioctl(queue.as_raw_fd(), libc::FIOCLEX) };
        Ok(Kqueue { queue, events: vec![blank(); EVENTS_MAX] })
    }
}

impl Readiness for Kqueue {
    fn add(&mut self, socket: RawFd, token: u64) -> io::Result<()> {
        let mut changes = [blank(), blank()];
        for (change, filter) in changes.iter_mut().zip([libc::EVFILT_READ, libc::EVFILT_WRITE]) {
            change.ident = socket as libc::uintptr_t;
            change.filter = filter;
            change.flags = libc::EV_ADD | libc::EV_CLEAR;
            change.udata = token as *mut libc::c_void;
        }
        // SAFETY: the two changes outlive the call, and no events are asked for.
        let rc = unsafe {
            let queue = self.queue.as_raw_fd();
            libc::kevent(queue, changes.as_ptr(), 2, ptr::null_mut(), 0, ptr::null())
        };
        if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    fn collect(&mut self, take: &mut dyn FnMut(Event)) -> io::Result<()> {
        let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let room = EVENTS_MAX as libc::c_int;
        // SAFETY: the kernel writes at most `room` entries, and the vector has EVENTS_MAX; `now` outlives
        // the call.
        let count = unsafe {
            let queue = self.queue.as_raw_fd();
            libc::kevent(queue, ptr::null(), 0, self.events.as_mut_ptr(), room, &now)
        };
        if count < 0 {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::Interrupted { Ok(()) } else { Err(error) };
        }
        for event in &self.events[..count as usize] {
            take(translate(event));
        }
        Ok(())
    }

    fn arm(&mut self) -> Option<RawFd> {
        Some(self.queue.as_raw_fd())
    }
}

fn translate(event: &libc::kevent) -> Event {
    let over = event.flags & (libc::EV_EOF | libc::EV_ERROR) != 0;
    let reading = event.filter == libc::EVFILT_READ;
    Event {
        token: event.udata as u64,
        readable: reading,
        // The end of the writing side is a broken connection: whoever waits must look.
        writable: !reading,
        ended: over && reading,
    }
}

fn blank() -> libc::kevent {
    // SAFETY: kevent is a plain struct of integers and a pointer; all zeroes is a valid value.
    unsafe { std::mem::zeroed() }
}
