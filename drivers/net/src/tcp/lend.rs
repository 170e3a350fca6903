//! Sending pages instead of copies: vmsplice(2) into a pipe, splice(2) from there to the socket.
//!
//! ```text
//!   bytes ──vmsplice──► pipe ──splice──► socket ──► the peer copies, out of our pages
//! ```
//!
//! No byte is copied on this side, which is the greater part of what a large send costs. The price: the
//! kernel refers to the pages until the peer has received them, even when the connection is closed
//! before. Whoever changes the bytes earlier changes what the peer receives. So they stay as they are until
//! the peer has answered; and the peer trusts no bytes but those that have the CRC that was computed
//! before.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;

use socket2::Socket;

/// Less than this is copied sooner than its pages are looked up.
pub(super) const LEND_MIN: usize = 256 << 10;
/// Bytes that a pipe is asked to hold, and the least that is worth the calls.
const PIPE: libc::c_int = 1 << 20;
const PIPE_MIN: libc::c_int = 256 << 10;

/// A pipe that is empty between two sends.
#[derive(Debug)]
pub(super) struct Pipe {
    reader: OwnedFd,
    writer: OwnedFd,
    /// Bytes in it.
    held: usize,
}

impl Pipe {
    /// A pipe with room enough. Fails when the process has no descriptor left, or no right to pipes of that
    /// size (`/proc/sys/fs/pipe-user-pages-soft`, `pipe-max-size`).
    pub fn new() -> io::Result<Pipe> {
        let mut ends = [-1; 2];
        // SAFETY: the kernel writes two descriptors, for which there is room.
        let rc = unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC | libc::O_NONBLOCK) };
        if rc < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptors were just made and nobody else knows them.
        let [reader, writer] = ends.map(|end| unsafe { OwnedFd::from_raw_fd(end) });
        // SAFETY: F_SETPIPE_SZ takes a number.
        let room = unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_SETPIPE_SZ, PIPE) };
        if room < PIPE_MIN {
            let error = io::Error::last_os_error();
            return Err(if room < 0 { error } else { io::ErrorKind::OutOfMemory.into() });
        }
        Ok(Pipe { reader, writer, held: 0 })
    }

    /// Lends the front of `bytes`, of which some may be in the pipe since the last call, to the
    /// socket, as many as it takes now; more is to follow at once. Says how many those are. `WouldBlock`:
    /// none, the socket has no room.
    pub fn lend(&mut self, socket: &Socket, bytes: &[u8]) -> io::Result<usize> {
        if self.held == 0 {
            let part =
                libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
            let flags = libc::SPLICE_F_NONBLOCK;
            // SAFETY: the iovec names readable memory of `bytes`; the kernel takes references to its
            // pages and writes nothing.
            let taken =
                unsafe { libc::vmsplice(self.writer.as_raw_fd(), &raw const part, 1, flags) };
            self.held = usize::try_from(taken).map_err(|_| io::Error::last_os_error())?;
        }
        let (from, to) = (self.reader.as_raw_fd(), socket.as_raw_fd());
        let (none, flags) = (ptr::null_mut(), libc::SPLICE_F_NONBLOCK | libc::SPLICE_F_MORE);
        let moved = without_sigpipe(|| {
            // SAFETY: no offsets are passed; both descriptors are open.
            let moved = unsafe { libc::splice(from, none, to, none, self.held, flags) };
            usize::try_from(moved).map_err(|_| io::Error::last_os_error())
        })?;
        self.held -= moved;
        Ok(moved)
    }
}

/// Makes a call that raises SIGPIPE when the peer is gone, and has no flag against it, without the signal:
/// whose process this is, a host of ours, need not ignore it. The signal goes to the calling thread, so it
/// is held back there and taken away.
fn without_sigpipe(call: impl FnOnce() -> io::Result<usize>) -> io::Result<usize> {
    let (mut pipe, mut before) = (MaybeUninit::uninit(), MaybeUninit::uninit());
    // SAFETY: the first call fills the set in, the second changes it, the third reads it and writes the
    // mask of this thread; all outlive the calls, which fail for bad arguments only.
    let (pipe, before) = unsafe {
        libc::sigemptyset(pipe.as_mut_ptr());
        libc::sigaddset(pipe.as_mut_ptr(), libc::SIGPIPE);
        let rc = libc::pthread_sigmask(libc::SIG_BLOCK, pipe.as_ptr(), before.as_mut_ptr());
        assert_eq!(rc, 0, "a signal of the system is held back");
        (pipe.assume_init(), before.assume_init())
    };
    // One that the host has held back before is the host's.
    let theirs = is_member(&before) && is_pending();
    let result = call();
    let broken = matches!(&result, Err(error) if error.kind() == io::ErrorKind::BrokenPipe);
    // SAFETY: set, mask and time outlive the calls.
    unsafe {
        if broken && !theirs {
            let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
            // Nothing to take when the kernel raised none.
            libc::sigtimedwait(&raw const pipe, ptr::null_mut(), &raw const now);
        }
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, ptr::null_mut());
    }
    result
}

/// Whether SIGPIPE waits to be delivered to this thread.
fn is_pending() -> bool {
    let mut pending = MaybeUninit::uninit();
    // SAFETY: the call fills the set in.
    let rc = unsafe { libc::sigpending(pending.as_mut_ptr()) };
    // SAFETY: it did if it says so.
    rc == 0 && is_member(unsafe { pending.assume_init_ref() })
}

fn is_member(set: &libc::sigset_t) -> bool {
    // SAFETY: the set is filled in and outlives the call.
    unsafe { libc::sigismember(set, libc::SIGPIPE) == 1 }
}
