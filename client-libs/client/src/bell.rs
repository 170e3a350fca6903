//! A file descriptor that is readable while there is something to fetch.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

/// An eventfd(2), for callers that poll.
#[cfg(target_os = "linux")]
pub(crate) struct Bell(nix::sys::eventfd::EventFd);

#[cfg(target_os = "linux")]
impl Bell {
    pub fn new() -> io::Result<Bell> {
        use nix::sys::eventfd::{EfdFlags, EventFd};
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        Ok(Bell(EventFd::from_value_and_flags(0, flags)?))
    }

    /// Makes it readable.
    pub fn ring(&self) {
        // It cannot be full: nobody rings it twice without silencing it between.
        let _ = self.0.write(1);
    }

    /// Makes it unreadable; one that was not rung stays so.
    pub fn silence(&self) {
        let _ = self.0.read();
    }
}

#[cfg(target_os = "linux")]
impl AsRawFd for Bell {
    fn as_raw_fd(&self) -> RawFd {
        use std::os::fd::AsFd;
        self.0.as_fd().as_raw_fd()
    }
}

/// A pair of sockets where there is no eventfd.
#[cfg(not(target_os = "linux"))]
pub(crate) struct Bell(std::os::unix::net::UnixStream, std::os::unix::net::UnixStream);

#[cfg(not(target_os = "linux"))]
impl Bell {
    pub fn new() -> io::Result<Bell> {
        let (read, write) = std::os::unix::net::UnixStream::pair()?;
        read.set_nonblocking(true)?;
        write.set_nonblocking(true)?;
        Ok(Bell(read, write))
    }

    /// Makes it readable.
    pub fn ring(&self) {
        // It cannot be full: nobody rings it twice without silencing it between.
        let _ = io::Write::write(&mut &self.1, &[1]);
    }

    /// Makes it unreadable; one that was not rung stays so.
    pub fn silence(&self) {
        let _ = io::Read::read(&mut &self.0, &mut [0; 8]);
    }
}

#[cfg(not(target_os = "linux"))]
impl AsRawFd for Bell {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
