//! The edge to threads and descriptors: the only file of this crate that may hold `unsafe`.
//!
//! Two things live here. One is the choice of primitives: the standard ones, or those of the model
//! checker when the crate is built with `--cfg loom`. The other is the [`Bell`], a descriptor that
//! other threads make readable, and [`wait`], the one place where a reactor's thread may sleep.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, fence};
#[cfg(loom)]
pub(crate) use loom::sync::{Arc, Mutex, MutexGuard};
#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, fence};
#[cfg(not(loom))]
pub(crate) use std::sync::{Arc, Mutex, MutexGuard};

/// Locks. A thread that died inside a critical section is no reason to stop: none of ours can leave
/// its data half changed, since nothing in them panics.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// A descriptor that any thread can make readable, and that stays so until silenced.
#[cfg(any(target_os = "linux", target_os = "android"))]
#[derive(Debug)]
pub(crate) struct Bell(nix::sys::eventfd::EventFd);

#[cfg(any(target_os = "linux", target_os = "android"))]
impl Bell {
    pub(crate) fn new() -> io::Result<Bell> {
        use nix::sys::eventfd::{EfdFlags, EventFd};
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        Ok(Bell(EventFd::from_value_and_flags(0, flags)?))
    }

    /// Makes the descriptor readable. The only error there is, a full counter, means it already is.
    pub(crate) fn ring(&self) {
        let _already_readable = self.0.write(1);
    }

    /// Makes the descriptor quiet again. It may be quiet already.
    pub(crate) fn silence(&self) {
        let _already_quiet = self.0.read();
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A descriptor that any thread can make readable, and that stays so until silenced: a pipe, where
/// the system has no eventfd.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
#[derive(Debug)]
pub(crate) struct Bell {
    reader: std::os::fd::OwnedFd,
    writer: std::os::fd::OwnedFd,
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
impl Bell {
    pub(crate) fn new() -> io::Result<Bell> {
        use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
        let (reader, writer) = nix::unistd::pipe()?;
        for end in [&reader, &writer] {
            fcntl(end, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
            fcntl(end, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
        }
        Ok(Bell { reader, writer })
    }

    /// Makes the descriptor readable. The only error there is, a full pipe, means it already is.
    pub(crate) fn ring(&self) {
        let _already_readable = nix::unistd::write(&self.writer, &[1]);
    }

    /// Makes the descriptor quiet again. It may be quiet already.
    pub(crate) fn silence(&self) {
        let mut rings = [0; 64];
        while matches!(nix::unistd::read(&self.reader, &mut rings), Ok(count) if count > 0) {}
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }
}

/// Sleeps until the bell rings, one of `interrupts` is readable, or `timeout` has passed (`None`:
/// however long it takes). May return early. Returns whether the bell rang.
///
/// # Panics
/// When one of `interrupts` is not an open descriptor: the poller that gave it broke its promise, and
/// a reactor that went on would spin or sleep for ever.
pub(crate) fn wait(bell: &Bell, interrupts: &[RawFd], timeout: Option<Duration>) -> bool {
    let mut fds = Vec::with_capacity(1 + interrupts.len());
    fds.push(PollFd::new(bell.fd(), PollFlags::POLLIN));
    for &fd in interrupts {
        // SAFETY: `Interrupt::Fd` promises that the poller keeps the descriptor open for as long as
        // it lives; the reactor owns the poller and is inside this call until `fds` is gone. A number
        // that is not open after all is reported by the kernel as POLLNVAL, and touches no memory.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        fds.push(PollFd::new(fd, PollFlags::POLLIN));
    }
    match poll(&mut fds, timeout) {
        Ok(_) => {}
        // A signal is as good a reason to look around as any.
        Err(Errno::EINTR) => return false,
        Err(error) => panic!("waiting for descriptors failed: {error}"),
    }
    let returned = |fd: &PollFd<'_>| fd.revents().unwrap_or(PollFlags::POLLIN);
    for fd in &fds[1..] {
        assert!(!returned(fd).contains(PollFlags::POLLNVAL), "a poller armed a closed descriptor");
    }
    !returned(&fds[0]).is_empty()
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn poll(fds: &mut [PollFd<'_>], timeout: Option<Duration>) -> nix::Result<i32> {
    // The poll(2) that takes nanoseconds; no signal mask is changed.
    nix::poll::ppoll(fds, timeout.map(nix::sys::time::TimeSpec::from_duration), None)
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn poll(fds: &mut [PollFd<'_>], timeout: Option<Duration>) -> nix::Result<i32> {
    use nix::poll::PollTimeout;
    // Whole milliseconds, rounded up: waking before the timer would only mean waiting again.
    let timeout = timeout.map_or(PollTimeout::NONE, |timeout| {
        let millis = timeout.as_nanos().div_ceil(1_000_000);
        PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX)
    });
    nix::poll::poll(fds, timeout)
}

/// Binds the calling thread to one core.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) fn pin_thread(cpu: usize) -> io::Result<()> {
    use nix::sched::{CpuSet, sched_setaffinity};
    let mut set = CpuSet::new();
    set.set(cpu)?;
    sched_setaffinity(nix::unistd::Pid::from_raw(0), &set)?;
    Ok(())
}

/// Binds the calling thread to one core: not offered by this system.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(crate) fn pin_thread(_cpu: usize) -> io::Result<()> {
    Err(io::Error::from(io::ErrorKind::Unsupported))
}
