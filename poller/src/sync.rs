//! The edge to threads and descriptors: the only file of this crate that may hold `unsafe`.
//!
//! Two things live here. One is the choice of primitives: the standard ones, or those of the model
//! checker when the crate is built with `--cfg loom`. The other is the [`Bell`], a descriptor that
//! other threads make readable, and [`wait`], the one place where a reactor's thread may sleep.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{BorrowedFd, RawFd};
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

/// The bell of this system.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) use eventfd::Bell;
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(crate) use pipe::Bell;

/// A bell made of an eventfd(2): one descriptor, one counter.
#[cfg(any(target_os = "linux", target_os = "android"))]
mod eventfd {
    use std::io;
    use std::os::fd::{AsFd, BorrowedFd};

    use nix::sys::eventfd::{EfdFlags, EventFd};

    /// A descriptor that any thread can make readable, and that stays so until silenced.
    #[derive(Debug)]
    pub(crate) struct Bell(EventFd);

    impl Bell {
        pub(crate) fn new() -> io::Result<Bell> {
            let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
            Ok(Bell(EventFd::from_value_and_flags(0, flags)?))
        }

        /// Makes the descriptor readable. Its one error, a full counter, means it already is.
        pub(crate) fn ring(&self) {
            let _already_readable = self.0.write(1);
        }

        /// Makes the descriptor quiet again. It may be quiet already.
        pub(crate) fn silence(&self) {
            let _already_quiet = self.0.read();
        }

        pub(crate) fn fd(&self) -> BorrowedFd<'_> {
            self.0.as_fd()
        }
    }
}

/// A bell made of a pipe, where the system has no eventfd.
#[cfg(any(all(test, not(loom)), not(any(target_os = "linux", target_os = "android"))))]
mod pipe {
    use std::io;
    use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

    use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
    use nix::unistd::{pipe, read, write};

    /// A descriptor that any thread can make readable, and that stays so until silenced.
    #[derive(Debug)]
    pub(crate) struct Bell {
        reader: OwnedFd,
        writer: OwnedFd,
    }

    impl Bell {
        pub(crate) fn new() -> io::Result<Bell> {
            let (reader, writer) = pipe()?;
            for end in [&reader, &writer] {
                fcntl(end, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
                fcntl(end, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
            }
            Ok(Bell { reader, writer })
        }

        /// Makes the descriptor readable. Its one error, a full pipe, means it already is.
        pub(crate) fn ring(&self) {
            let _already_readable = write(&self.writer, &[1]);
        }

        /// Makes the descriptor quiet again. It may be quiet already.
        pub(crate) fn silence(&self) {
            let mut rings = [0; 64];
            while matches!(read(&self.reader, &mut rings), Ok(count) if count > 0) {}
        }

        pub(crate) fn fd(&self) -> BorrowedFd<'_> {
            self.reader.as_fd()
        }
    }
}

/// Sleeps until the bell rings, one of `interrupts` is readable, or `timeout` has passed (`None`:
/// however long it takes). May return early. Returns whether the bell rang.
///
/// # Panics
/// When one of `interrupts` is not an open descriptor: the poller that gave it broke its promise,
/// and a reactor that went on would spin or sleep for ever.
pub(crate) fn wait(bell: &Bell, interrupts: &[RawFd], timeout: Option<Duration>) -> bool {
    wait_on(bell.fd(), interrupts, timeout)
}

fn wait_on(bell: BorrowedFd<'_>, interrupts: &[RawFd], timeout: Option<Duration>) -> bool {
    // A reactor has a few devices: no memory is asked for on the way to sleep.
    let on_bell = |_| PollFd::new(bell, PollFlags::POLLIN);
    let mut few: [PollFd<'_>; 16] = std::array::from_fn(on_bell);
    let mut many: Vec<PollFd<'_>>;
    let fds = if interrupts.len() < few.len() {
        &mut few[..=interrupts.len()]
    } else {
        many = (0..=interrupts.len()).map(on_bell).collect();
        &mut many[..]
    };
    for (place, &fd) in fds[1..].iter_mut().zip(interrupts) {
        // SAFETY: `Interrupt::Fd` promises that the poller keeps the descriptor open for as long as
        // it lives; the reactor owns the poller and is inside this call until `fds` is gone. A
        // number that is not open after all is reported by the kernel as POLLNVAL, and touches no
        // memory.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        *place = PollFd::new(fd, PollFlags::POLLIN);
    }
    match poll(fds, timeout) {
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

#[cfg(all(test, not(loom)))]
mod tests {
    use std::os::fd::AsRawFd;
    use std::sync::mpsc;

    use super::*;

    const NO_TIME: Option<Duration> = Some(Duration::ZERO);

    /// Both kinds of bell, wherever the tests run.
    macro_rules! bell_tests {
        ($name:ident, $bell:ty) => {
            #[test]
            fn $name() {
                let bell = <$bell>::new().unwrap();
                assert!(!wait_on(bell.fd(), &[], NO_TIME), "quiet at first");
                bell.silence();
                // Far more often than a pipe has room for: it must not block.
                for _ in 0..100_000 {
                    bell.ring();
                }
                assert!(wait_on(bell.fd(), &[], None) && wait_on(bell.fd(), &[], None));
                bell.silence();
                assert!(!wait_on(bell.fd(), &[], NO_TIME), "silenced");
                let (send, receive) = mpsc::channel();
                std::thread::scope(|scope| {
                    let theirs = &bell;
                    scope.spawn(move || {
                        let () = receive.recv().unwrap();
                        theirs.ring();
                    });
                    send.send(()).unwrap();
                    assert!(wait_on(bell.fd(), &[], None), "rung by another thread");
                });
            }
        };
    }

    #[cfg(target_os = "linux")]
    bell_tests!(an_eventfd_rings_until_silenced, eventfd::Bell);
    bell_tests!(a_pipe_rings_until_silenced, pipe::Bell);

    #[test]
    fn a_wait_ends_with_its_time_or_with_an_interrupt() {
        let (bell, device) = (Bell::new().unwrap(), Bell::new().unwrap());
        let interrupts = [device.fd().as_raw_fd()];
        let began = std::time::Instant::now();
        assert!(!wait(&bell, &interrupts, Some(Duration::from_micros(1500))));
        assert!(began.elapsed() >= Duration::from_micros(1500));
        device.ring();
        assert!(!wait(&bell, &interrupts, None), "woken, but not by the bell");
    }

    #[test]
    #[should_panic(expected = "closed descriptor")]
    fn a_closed_descriptor_is_a_broken_promise() {
        wait(&Bell::new().unwrap(), &[1_000_000], None);
    }
}
