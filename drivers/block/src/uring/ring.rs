//! One io_uring: set-up, registration, and the only place where entries go into it.
//!
//! The newest set-up that the kernel takes is used. With `DEFER_TASKRUN` completions are worked off
//! only when this thread enters the kernel, and not by interrupting it: the kernel says by a flag in
//! shared memory that there is something to work off, so a poll that finds nothing costs one load.
//!
//! A reactor that sleeps is woken by an event counter that the kernel raises. The descriptor of the ring
//! itself would not do: with `DEFER_TASKRUN` it becomes readable only after the work was worked off, for
//! which this thread would have to be awake. While nobody sleeps the counter is switched off.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{Ordering, fence};

use io_uring::{IoUring, Probe, cqueue, opcode, squeue, types};
use memkv_dma::{Pool, REGION};

use crate::medium::Medium;
use crate::{Io, IoBuf, Op};

/// Commands in the device at once. The rest waits in the queue.
pub(crate) const DEPTH: usize = 256;

/// The most buffers that the kernel registers with one ring (`IORING_MAX_REG_BUFFERS`).
const MAX_REGISTERED: usize = 1 << 14;

/// `IORING_ENTER_GETEVENTS` of `linux/io_uring.h`: work off what has come back, too.
const GETEVENTS: u32 = 1;

/// The pool as it is registered: consecutive buffers of [`REGION`] bytes, the last one shorter.
struct Registered {
    base: usize,
    len: usize,
    /// The kernel has the memory's pages as long as the ring; ours is the mapping.
    _pool: Pool,
}

/// A ring for one drive and one reactor.
pub(crate) struct Ring {
    ring: IoUring,
    /// The drive's descriptor, or 0 if it is registered: its index.
    fd: types::Fd,
    flags: squeue::Flags,
    registered: Option<Registered>,
    /// Raised by the kernel when there is something to work off, while it is switched on.
    wake: File,
}

impl Ring {
    /// A ring for `medium`, nothing registered yet.
    pub fn new(medium: &Medium) -> io::Result<Ring> {
        let fd = types::Fd(medium.file.as_raw_fd());
        let mut ring = set_up()?;
        probe(&ring)?;
        let wake = crate::sys::event_counter()?;
        ring.submitter().register_eventfd(wake.as_raw_fd())?;
        ring.completion().disable_eventfd();
        // The kernel may have a question to the program behind the file, on the thread that submits: a
        // program that does not answer would stop the reactor. The ring's own threads may wait.
        let behind = crate::sys::is_fuse(&medium.file);
        let flags = if behind { squeue::Flags::ASYNC } else { squeue::Flags::empty() };
        Ok(Ring { ring, fd, flags, registered: None, wake })
    }

    /// Registers the drive's descriptor, which saves the kernel a look-up per command.
    pub fn register_file(&mut self) -> io::Result<()> {
        self.ring.submitter().register_files(&[self.fd.0])?;
        self.fd = types::Fd(0);
        self.flags |= squeue::Flags::FIXED_FILE;
        Ok(())
    }

    /// Registers the pool's memory, which saves the kernel pinning it for every command.
    pub fn register_pool(&mut self, pool: &Pool) -> io::Result<()> {
        let regions = pool.regions();
        if regions.len() > MAX_REGISTERED {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let buffers: Vec<_> = regions
            .iter()
            .map(|&(start, len)| libc::iovec { iov_base: start.as_ptr().cast(), iov_len: len })
            .collect();
        // SAFETY: the regions are mapped as long as the pool is held, which `registered` does for as
        // long as the ring lives.
        unsafe { self.ring.submitter().register_buffers(&buffers)? };
        let base = regions[0].0.as_ptr() as usize;
        let len = regions.iter().map(|r| r.1).sum();
        self.registered = Some(Registered { base, len, _pool: pool.clone() });
        Ok(())
    }

    /// Switches the counter on and returns its descriptor, readable when something to work off has
    /// come since. What came before, [`Ring::enter`] and [`Ring::next`] see.
    pub fn arm(&mut self) -> RawFd {
        self.ring.completion().enable_eventfd();
        // The kernel raises its flag and then looks whether the counter is on; we switch it on and then
        // look for the flag. One of the two must see the other, which takes a full fence on each side.
        fence(Ordering::SeqCst);
        self.wake.as_raw_fd()
    }

    /// Switches the counter off and sets it to zero.
    pub fn disarm(&mut self) {
        self.ring.completion().disable_eventfd();
        // Empty when nothing came: `EAGAIN`.
        let _ = (&self.wake).read(&mut [0; 8]);
    }

    /// Puts what is left of `io` after `done` bytes into the ring, to be told apart by `tag`. Says
    /// of a read or write whether its memory is registered.
    ///
    /// # Safety
    /// `io` must be checked against the drive, and its buffer must be kept, untouched, until the
    /// completion of `tag` has been taken from this ring.
    pub unsafe fn push(&mut self, io: &mut Io, done: u64, tag: u64) -> Option<bool> {
        let (entry, fixed) = self.entry(io, done);
        let entry = entry.flags(self.flags).user_data(tag);
        // SAFETY: by the contract of this function the memory that the entry names outlives the
        // command; the descriptor is the drive's, which the queue keeps open for longer.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        assert!(pushed.is_ok(), "no more commands are started than the ring has entries");
        fixed
    }

    fn entry(&self, io: &mut Io, done: u64) -> (squeue::Entry, Option<bool>) {
        let fd = self.fd;
        let (offset, len) = (io.offset + done, io.len - done);
        let at = io.buf_at + done as usize;
        match (io.op, &mut io.buf) {
            (Op::Read, Some(IoBuf::Exclusive(buf))) => {
                // Stays inside of the buffer: checked against its length.
                let start = buf.as_mut_ptr().wrapping_add(at);
                let registered = self.registered_index(start, len);
                let entry = match registered {
                    Some(i) => {
                        opcode::ReadFixed::new(fd, start, len as u32, i).offset(offset).build()
                    }
                    None => opcode::Read::new(fd, start, len as u32).offset(offset).build(),
                };
                (entry, Some(registered.is_some()))
            }
            (Op::Write, Some(buf)) => {
                let start = buf.as_ptr().wrapping_add(at);
                let registered = self.registered_index(start, len);
                let entry = match registered {
                    Some(i) => {
                        opcode::WriteFixed::new(fd, start, len as u32, i).offset(offset).build()
                    }
                    None => opcode::Write::new(fd, start, len as u32).offset(offset).build(),
                };
                (entry, Some(registered.is_some()))
            }
            (Op::Flush, _) => {
                (opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(), None)
            }
            (Op::Deallocate, _) => {
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                (opcode::Fallocate::new(fd, len).offset(offset).mode(mode).build(), None)
            }
            (op, _) => panic!("a {op:?} that is unchecked, or not for it, reached the ring"),
        }
    }

    /// The registered buffer that a range lies in. Memory of another pool, or of an arena, is none.
    fn registered_index(&self, start: *const u8, len: u64) -> Option<u16> {
        let registered = self.registered.as_ref()?;
        let first = (start as usize).checked_sub(registered.base)?;
        let last = first + len as usize - 1;
        let index = first / REGION;
        (last < registered.len && last / REGION == index).then_some(index as u16)
    }

    /// Hands the first `most` new entries to the kernel and lets it work off completions, if there is
    /// either. Never blocks. Says how many entries the kernel took.
    pub fn enter(&mut self, most: usize) -> usize {
        let submission = self.ring.submission();
        let new = submission.len().min(most);
        let work_off = submission.taskrun() || submission.cq_overflow();
        drop(submission);
        if new == 0 && !work_off {
            return 0;
        }
        let flags = if work_off { GETEVENTS } else { 0 };
        // SAFETY: the call reads entries that `push` has put into the ring, whose memory is kept as
        // `push` asks; it takes no argument in memory.
        let taken = unsafe { self.ring.submitter().enter::<()>(new as u32, 0, flags, None) };
        match taken {
            Ok(taken) => taken,
            // A signal, or no memory for a request right now: the entries stay for the next pass.
            Err(e) if is_transient(&e) => 0,
            Err(e) => panic!("io_uring_enter refuses a ring of ours: {e}"),
        }
    }

    /// Lets go of the drive and the pool. The kernel tears a ring down in the background, some time after
    /// it was closed; with nothing outstanding it does this at once.
    pub fn unregister(&mut self) {
        let submitter = self.ring.submitter();
        if self.flags.contains(squeue::Flags::FIXED_FILE) {
            let _ = submitter.unregister_files();
        }
        if self.registered.is_some() {
            let _ = submitter.unregister_buffers();
        }
    }

    /// Waits until one more completion is there.
    pub fn wait(&mut self) -> io::Result<()> {
        match self.ring.submit_and_wait(1) {
            Err(e) if !is_transient(&e) => Err(e),
            _ => Ok(()),
        }
    }

    /// The next completion: its tag and the kernel's answer.
    pub fn next(&mut self) -> Option<(u64, io::Result<u64>)> {
        let entry: cqueue::Entry = self.ring.completion().next()?;
        let result = entry.result();
        let answer = match u64::try_from(result) {
            Ok(moved) => Ok(moved),
            Err(_) => Err(io::Error::from_raw_os_error(-result)),
        };
        Some((entry.user_data(), answer))
    }
}

/// Whether the same call may well succeed the next time.
pub(crate) fn is_transient(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY))
}

/// Makes a ring, by the best set-up the kernel knows: Linux 6.1, 5.19, 5.11.
fn set_up() -> io::Result<IoUring> {
    let entries = DEPTH as u32;
    let mut builder = IoUring::builder();
    builder.dontfork().setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag();
    match builder.build(entries) {
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {}
        result => return result,
    }
    let mut builder = IoUring::builder();
    builder.dontfork().setup_coop_taskrun().setup_taskrun_flag();
    match builder.build(entries) {
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {}
        result => return result,
    }
    IoUring::builder().dontfork().build(entries)
}

/// Whether the kernel knows all operations that are used, and how to switch off the counter (Linux 5.8;
/// the first that can be told by a feature is 5.11).
fn probe(ring: &IoUring) -> io::Result<()> {
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    let needed = [
        opcode::Read::CODE,
        opcode::Write::CODE,
        opcode::ReadFixed::CODE,
        opcode::WriteFixed::CODE,
        opcode::Fsync::CODE,
        opcode::Fallocate::CODE,
    ];
    let complete = needed.iter().all(|&code| probe.is_supported(code));
    if complete && ring.params().is_feature_ext_arg() {
        Ok(())
    } else {
        Err(io::Error::new(io::ErrorKind::Unsupported, "the kernel is older than Linux 5.11"))
    }
}
