//! Sending pages instead of copies: vmsplice(2) into a pipe, splice(2) from there to the socket.
//!
//! ```text
//!   bytes ──vmsplice──► pipe ──splice──► socket ──► the peer copies, out of our pages
//! ```
//!
//! No byte is copied on this side, which is the greater part of what a large send costs. The price: the
//! kernel refers to the pages until the peer has received them, even when the connection is closed
//! before. Whoever changes the bytes earlier changes what the peer receives. So they stay as they are until
//! the peer has answered, or said that it has taken them; and the peer trusts no bytes but those that have
//! the CRC that was computed before.

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

    /// Bytes in it. Only one that is empty can be used for another send.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Lends the front of `bytes`, of which some may be in the pipe since the last call, to the
    /// socket, as many as it takes now. Says how many those are. `more` is to follow at once: the last
    /// packet need not go before it is full, and if nothing follows it goes late. `WouldBlock`: none, the
    /// socket has no room.
    pub fn lend(&mut self, socket: &Socket, bytes: &[u8], more: bool) -> io::Result<usize> {
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
        let more = if more || bytes.len() > self.held { libc::SPLICE_F_MORE } else { 0 };
        let (none, flags) = (ptr::null_mut(), libc::SPLICE_F_NONBLOCK | more);
        let moved = without_sigpipe(|| {
            // SAFETY: no offsets are passed; both descriptors are open.
            let moved = unsafe { libc::splice(from, none, to, none, self.held, flags) };
            usize::try_from(moved).map_err(|_| io::Error::last_os_error())
        })?;
        self.held -= moved;
        Ok(moved)
    }
}

/// Whether the connection of a socket that was not shut down is over all the same: a reset has come. To
/// the peer's end it was closed then, and what was in it unread is gone.
pub(super) fn is_closed(socket: &Socket) -> bool {
    /// `TCP_CLOSE` of the kernel's `tcp_states.h`.
    const CLOSED: u8 = 7;
    let mut info = MaybeUninit::<libc::tcp_info>::zeroed();
    let mut len = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes to `info`, which has as many, and the count to `len`.
    let rc = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    // SAFETY: numbers only, which were zero before the kernel wrote them.
    rc == 0 && unsafe { info.assume_init() }.tcpi_state == CLOSED
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
