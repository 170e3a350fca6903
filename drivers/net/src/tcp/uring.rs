//! Readiness and sends by Linux io_uring(7): one ring per reactor.
//!
//! ```text
//!   add ────► POLL_ADD, multishot ──► a completion per edge ──► Event
//!   send ───► WRITE_FIXED from registered memory, done within the call that submits it
//! ```
//!
//! A look that finds nothing is a load from memory that the kernel shares, where epoll takes a system
//! call; and what is sent from registered memory is copied by the kernel from pages that it knows, where
//! `sendmsg(2)` has to look up and check each of the caller's. Receiving gains nothing from the ring, so
//! it is `recv(2)` as in every engine.
//!
//! With `DEFER_TASKRUN` edges are worked off only when this thread enters the kernel; a flag in shared
//! memory says that there are some. A reactor sleeps in the ring itself, which waits for the reactor's other
//! descriptors with it: one call, where to be woken by a descriptor takes three, to wait, to read it, and to
//! work off what it was raised for. Where the reactor sleeps elsewhere (it has two rings) it is woken by an
//! event counter, which is switched off while nobody sleeps.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

use io_uring::{IoUring, Probe, cqueue, opcode, squeue, types};
use memkv_dma::{Memory, REGION};
use memkv_poller::Wait;

use super::epoll::translate;
use super::{EVENTS_MAX, Event, Readiness};

/// Entries submitted in one call at most: one, or one for each descriptor that a reactor waits for.
const ENTRIES: u32 = 256;
/// Room for completions: an edge of each of so many sockets before the kernel has to keep some aside.
const COMPLETIONS: u32 = 8192;
/// The most buffers that the kernel registers with one ring (`IORING_MAX_REG_BUFFERS`).
const REGISTERED_MAX: usize = 1 << 14;
/// What is waited for at every socket.
const INTEREST: libc::c_int =
    libc::POLLIN as libc::c_int | libc::POLLOUT as libc::c_int | libc::POLLRDHUP as libc::c_int;
/// `IORING_ENTER_GETEVENTS` of `linux/io_uring.h`: work off what has come, too.
const GETEVENTS: u32 = 1;
/// `IORING_ENTER_EXT_ARG`: how long to wait at most is told with the call.
const EXT_ARG: u32 = 1 << 3;
/// `IORING_ENTER_NO_IOWAIT`, since Linux 6.15: who waits for the peers of a ring waits for no device.
const NO_IOWAIT: u32 = 1 << 7;
/// The tag of a send. No token has all of its bits set: there are not that many sockets.
const SEND: u64 = u64::MAX;
/// The tag of an order to look no more at a socket.
const REMOVE: u64 = u64::MAX - 1;
/// The tag of a descriptor that is none of the engine's sockets: `turn << 32 | FOREIGN | descriptor`. No
/// token has this bit set: there are not that many sockets.
const FOREIGN: u64 = 1 << 31;

/// Registered memory: consecutive buffers of [`REGION`] bytes, the last one shorter.
struct Range {
    start: usize,
    end: usize,
    /// The first of its buffers.
    index: usize,
    /// The kernel keeps its pages for as long as the ring; ours is the mapping.
    _memory: Memory,
}

/// One ring.
pub(super) struct Uring {
    ring: IoUring,
    /// Raised by the kernel when there is something to work off, while it is switched on.
    wake: File,
    ranges: Vec<Range>,
    /// Edges that came while something else was waited for.
    early: VecDeque<cqueue::Entry>,
    /// Sockets whose edges the kernel has stopped telling of its own accord, to be asked for anew.
    lapsed: Vec<u64>,
    /// Descriptors by token, for those.
    sockets: HashMap<u64, RawFd>,
    /// Descriptors of others that the kernel looks at until they are readable once, and how many pollers
    /// had gone when it began to.
    foreign: BTreeSet<RawFd>,
    turn: u32,
    /// Flags of a wait that the kernel knows.
    wait_flags: u32,
    /// The event counter is switched on.
    armed: bool,
}

/// `struct io_uring_getevents_arg`.
#[repr(C)]
struct WaitArg {
    signals: u64,
    signals_len: u32,
    min_wait_us: u32,
    timeout: u64,
}

impl Uring {
    /// A ring that knows `memory`. Fails when the kernel has no io_uring, an old one, or does not let us;
    /// memory that cannot be registered is logged, and sent from like any other.
    pub fn new(memory: &[Memory]) -> io::Result<Uring> {
        let mut ring = IoUring::builder()
            .dontfork()
            .setup_cqsize(COMPLETIONS)
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .build(ENTRIES)?;
        probe(&ring)?;
        // SAFETY: eventfd takes no pointers.
        let wake = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if wake < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made and nobody else knows it.
        let wake = unsafe { File::from_raw_fd(wake) };
        ring.submitter().register_eventfd(wake.as_raw_fd())?;
        ring.completion().disable_eventfd();
        let ranges = if ignores_sigpipe() {
            register(&ring, memory).unwrap_or_else(|error| {
                let advice = "raise RLIMIT_MEMLOCK to spare the kernel looking up its pages";
                tracing::info!(%error, advice, "memory is not registered with the network's ring");
                Vec::new()
            })
        } else {
            tracing::info!("SIGPIPE is not ignored, so the network's ring does not send");
            Vec::new()
        };
        let mut uring = Uring {
            ring,
            wake,
            ranges,
            early: VecDeque::new(),
            lapsed: Vec::new(),
            sockets: HashMap::new(),
            foreign: BTreeSet::new(),
            turn: 0,
            wait_flags: GETEVENTS | EXT_ARG | NO_IOWAIT,
            armed: false,
        };
        if let Some(range) = uring.ranges.first()
            && let Err(error) = uring.try_send(range.start as *const u8)
        {
            tracing::info!(%error, "this system's ring does not send without waiting");
            uring.ring.submitter().unregister_buffers()?;
            uring.ranges.clear();
        }
        Ok(uring)
    }

    /// Sends a byte of registered memory to ourselves. Before Linux 6.5 a write that must not wait is
    /// refused for sockets.
    fn try_send(&mut self, byte: *const u8) -> io::Result<()> {
        let (from, _to) = UnixStream::pair()?;
        match self.write_fixed(from.as_raw_fd(), byte, 1, 0)? {
            1 => Ok(()),
            _ => Err(io::ErrorKind::WriteZero.into()),
        }
    }

    /// Sends from the registered buffer `index`, as much as the socket takes now.
    fn write_fixed(
        &mut self,
        socket: RawFd,
        start: *const u8,
        len: u32,
        index: u16,
    ) -> io::Result<usize> {
        let entry = opcode::WriteFixed::new(types::Fd(socket), start, len, index)
            .rw_flags(libc::RWF_NOWAIT)
            .build()
            .user_data(SEND);
        self.submit(&entry, 0);
        self.outcome_of_send()
    }

    fn watch(&mut self, socket: RawFd, token: u64) {
        let entry = opcode::PollAdd::new(types::Fd(socket), INTEREST as u32).multi(true).build();
        self.submit(&entry.user_data(token), 0);
    }

    /// Submits one entry and lets the kernel carry out what it can at once.
    fn submit(&mut self, entry: &squeue::Entry, mut flags: u32) {
        // SAFETY: the entries made here name descriptors, which the kernel checks, and memory only in
        // `write_fixed`, which stays until its completion was taken.
        let pushed = unsafe { self.ring.submission().push(entry) };
        assert!(pushed.is_ok(), "what is in the ring is submitted before more comes");
        loop {
            // A wait that ended early may have left some in front of it.
            let entries = self.ring.submission().len() as u32;
            // SAFETY: the call reads the entries from the ring's own memory and takes no argument.
            let taken = unsafe { self.ring.submitter().enter::<()>(entries, 0, flags, None) };
            match taken {
                Ok(taken) if taken == entries as usize => return,
                // Too many completions wait for us, or no memory right now: make room, try again.
                Ok(_) => {}
                Err(error) if is_transient(&error) => {}
                Err(error) => panic!("io_uring_enter refuses a ring of ours: {error}"),
            }
            self.set_aside();
            flags |= GETEVENTS;
        }
    }

    /// Takes all completions out of the ring, for later.
    fn set_aside(&mut self) {
        self.early.extend(self.ring.completion());
    }

    /// The descriptor of others that a completion is about, which is not looked at any more.
    fn heard_of(&mut self, entry: &cqueue::Entry) -> Option<RawFd> {
        let token = entry.user_data();
        if token >= REMOVE || token & FOREIGN == 0 {
            return None;
        }
        assert_ne!(entry.result(), -libc::EBADF, "a poller armed a closed descriptor");
        let descriptor = (token as u32 & !(FOREIGN as u32)) as RawFd;
        if (token >> 32) as u32 == self.turn {
            self.foreign.remove(&descriptor);
        }
        Some(descriptor)
    }

    /// Puts an order to look at a descriptor of others into the ring, if the kernel does not look at it yet.
    fn look_at(&mut self, descriptor: RawFd) {
        if !self.foreign.insert(descriptor) {
            return;
        }
        let token = u64::from(self.turn) << 32 | FOREIGN | descriptor as u64;
        let entry = opcode::PollAdd::new(types::Fd(descriptor), libc::POLLIN as u32).build();
        // SAFETY: the entry names a descriptor, which the kernel checks, and no memory.
        let pushed = unsafe { self.ring.submission().push(&entry.user_data(token)) };
        assert!(pushed.is_ok(), "a reactor has fewer pollers than a ring has entries");
    }

    /// Looks no more at descriptors of others: their numbers may be those of other files now.
    fn forget_foreign(&mut self) {
        for descriptor in std::mem::take(&mut self.foreign) {
            let token = u64::from(self.turn) << 32 | FOREIGN | descriptor as u64;
            self.submit(&opcode::AsyncCancel::new(token).build().user_data(REMOVE), GETEVENTS);
        }
    }

    /// Submits what is in the ring and waits for a completion.
    fn submit_and_wait(&mut self, timeout: Option<Duration>) {
        let entries = self.ring.submission().len() as u32;
        let timeout = timeout.map(types::Timespec::from);
        let at = timeout.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        let arg = WaitArg { signals: 0, signals_len: 0, min_wait_us: 0, timeout: at as u64 };
        loop {
            let (submitter, flags) = (self.ring.submitter(), self.wait_flags);
            // SAFETY: `arg` is what `EXT_ARG` announces, and it and the time outlive the call.
            let waited = unsafe { submitter.enter(entries, 1, flags, Some(&arg)) };
            let Err(error) = waited else { return };
            match error.raw_os_error() {
                // The time is over.
                Some(libc::ETIME) => return,
                Some(libc::EINVAL) if flags & NO_IOWAIT != 0 => self.wait_flags &= !NO_IOWAIT,
                // What has come is in the way, or a signal: the reactor looks around and comes back.
                _ if is_transient(&error) => return,
                _ => panic!("io_uring_enter refuses a ring of ours: {error}"),
            }
        }
    }

    /// What a completion says of a socket.
    fn event(&mut self, entry: &cqueue::Entry) -> Option<Event> {
        let token = entry.user_data();
        if token == REMOVE || self.heard_of(entry).is_some() {
            return None;
        }
        assert_ne!(token, SEND, "a send is waited for where it is submitted");
        if !cqueue::more(entry.flags()) && self.sockets.contains_key(&token) {
            self.lapsed.push(token);
        }
        // A poll that failed tells of no edge; that it lapsed is noted, and the next one says what is.
        let bits = u32::try_from(entry.result()).ok()?;
        Some(translate(bits as libc::c_int, token))
    }

    /// The completion of a send that was submitted: it did not wait, so it is there.
    fn outcome_of_send(&mut self) -> io::Result<usize> {
        loop {
            while let Some(entry) = self.ring.completion().next() {
                if entry.user_data() == SEND {
                    let moved = entry.result();
                    return usize::try_from(moved)
                        .map_err(|_| io::Error::from_raw_os_error(-moved));
                }
                self.early.push_back(entry);
            }
            // Kept aside by the kernel for want of room in the ring.
            // SAFETY: the call submits nothing and takes no argument in memory.
            let entered = unsafe { self.ring.submitter().enter::<()>(0, 1, GETEVENTS, None) };
            if let Err(error) = entered {
                assert!(is_transient(&error), "io_uring_enter refuses a ring of ours: {error}");
            }
        }
    }

    /// The registered buffer that a range lies in.
    fn registered_index(&self, bytes: &[u8]) -> Option<u16> {
        let (start, end) = (bytes.as_ptr() as usize, bytes.as_ptr() as usize + bytes.len());
        let range = self.ranges.iter().find(|range| range.start <= start && end <= range.end)?;
        let (first, last) = (start - range.start, end - 1 - range.start);
        let same = first / REGION == last / REGION;
        same.then(|| (range.index + first / REGION) as u16)
    }
}

impl Readiness for Uring {
    fn add(&mut self, socket: RawFd, token: u64) -> io::Result<()> {
        self.watch(socket, token);
        self.sockets.insert(token, socket);
        Ok(())
    }

    /// The ring holds on to it until then: it would stay open after it was closed.
    fn remove(&mut self, token: u64) {
        self.sockets.remove(&token);
        self.lapsed.retain(|&lapsed| lapsed != token);
        let entry = opcode::AsyncCancel::new(token).build().user_data(REMOVE);
        // What it lets go of is worked off in the same call.
        self.submit(&entry, GETEVENTS);
    }

    fn collect(&mut self, take: &mut dyn FnMut(Event)) -> io::Result<()> {
        let submission = self.ring.submission();
        let work_off = submission.taskrun() || submission.cq_overflow();
        drop(submission);
        if work_off {
            // SAFETY: the call submits nothing and takes no argument in memory.
            let entered = unsafe { self.ring.submitter().enter::<()>(0, 0, GETEVENTS, None) };
            if let Err(error) = entered
                && !is_transient(&error)
            {
                return Err(error);
            }
        }
        // What is no event is not counted: after a look that ends without any, nothing is left over. A
        // reactor may sleep then, and what is in the ring already would not wake it.
        let mut taken = 0;
        while taken < EVENTS_MAX {
            let next = self.early.pop_front().or_else(|| self.ring.completion().next());
            let Some(entry) = next else { break };
            if let Some(event) = self.event(&entry) {
                take(event);
                taken += 1;
            }
        }
        while let Some(token) = self.lapsed.pop() {
            if let Some(&socket) = self.sockets.get(&token) {
                self.watch(socket, token);
            }
        }
        Ok(())
    }

    fn knows(&self, bytes: &[u8]) -> bool {
        self.registered_index(bytes).is_some()
    }

    fn send(&mut self, socket: RawFd, bytes: &[u8]) -> io::Result<usize> {
        let index = self.registered_index(bytes).ok_or(io::ErrorKind::InvalidInput)?;
        self.write_fixed(socket, bytes.as_ptr(), bytes.len() as u32, index)
    }

    fn arm(&mut self) -> Option<RawFd> {
        if !self.early.is_empty() {
            return None;
        }
        self.ring.completion().enable_eventfd();
        // The kernel raises its flag and then looks whether the counter is on; we switch it on and then
        // look for the flag. One of the two must see the other, which takes a full fence on each side.
        fence(Ordering::SeqCst);
        self.armed = true;
        Some(self.wake.as_raw_fd())
    }

    fn can_wait(&self) -> Option<bool> {
        self.early.is_empty().then_some(true)
    }

    /// A descriptor that is readable when the kernel begins to look at it is told of at once, and each is
    /// looked at anew once it was told of: so none that is readable is slept through.
    fn wait(&mut self, wait: Wait<'_>) -> bool {
        if self.turn != wait.departed {
            self.forget_foreign();
            self.turn = wait.departed;
        }
        self.look_at(wait.bell);
        wait.descriptors.iter().for_each(|&descriptor| self.look_at(descriptor));
        self.submit_and_wait(wait.timeout);
        let mut rung = false;
        loop {
            let next = self.ring.completion().next();
            let Some(entry) = next else { return rung };
            match self.heard_of(&entry) {
                Some(descriptor) => rung |= descriptor == wait.bell,
                None => self.early.push_back(entry),
            }
        }
    }

    fn disarm(&mut self) {
        if !std::mem::take(&mut self.armed) {
            return;
        }
        self.ring.completion().disable_eventfd();
        // Empty when nothing came: `EAGAIN`.
        let _ = (&self.wake).read(&mut [0; 8]);
    }

    fn looks_when_armed(&self) -> bool {
        true
    }
}

impl Drop for Uring {
    /// The kernel tears a ring down some time after it was closed; the memory is let go of at once.
    fn drop(&mut self) {
        if !self.ranges.is_empty() {
            let _ = self.ring.submitter().unregister_buffers();
        }
    }
}

/// Registers all of `memory`, in order.
fn register(ring: &IoUring, memory: &[Memory]) -> io::Result<Vec<Range>> {
    let (mut buffers, mut ranges) = (Vec::new(), Vec::with_capacity(memory.len()));
    for memory in memory {
        let regions = memory.regions();
        let start = regions[0].0.as_ptr() as usize;
        let len: usize = regions.iter().map(|region| region.1).sum();
        let index = buffers.len();
        ranges.push(Range { start, end: start + len, index, _memory: memory.clone() });
        buffers.extend(
            regions
                .iter()
                .map(|&(start, len)| libc::iovec { iov_base: start.as_ptr().cast(), iov_len: len }),
        );
    }
    if buffers.is_empty() || buffers.len() > REGISTERED_MAX {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: the regions are mapped as long as `memory` is held, which the ranges do for as long as the
    // ring lives; what is written there meanwhile is only ever read by a send of ours.
    unsafe { ring.submitter().register_buffers(&buffers)? };
    Ok(ranges)
}

/// Whether this process ignores SIGPIPE, as Rust programs do from their start: a write of the ring's to a
/// peer that is gone raises it, and the kernels we take have no flag against that.
fn ignores_sigpipe() -> bool {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: nothing is changed; the call fills the action in, which outlives it.
    let rc = unsafe { libc::sigaction(libc::SIGPIPE, std::ptr::null(), action.as_mut_ptr()) };
    // SAFETY: it did if it says so.
    rc == 0 && unsafe { action.assume_init() }.sa_sigaction == libc::SIG_IGN
}

/// Whether the kernel knows what is used: the set-up came with Linux 6.1, all else before it.
fn probe(ring: &IoUring) -> io::Result<()> {
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    let needed = [opcode::PollAdd::CODE, opcode::AsyncCancel::CODE, opcode::WriteFixed::CODE];
    if needed.iter().all(|&code| probe.is_supported(code)) {
        Ok(())
    } else {
        Err(io::Error::new(io::ErrorKind::Unsupported, "the kernel is older than Linux 6.1"))
    }
}

/// Whether the same call may well succeed the next time.
fn is_transient(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY))
}

#[cfg(test)]
#[path = "uring_tests.rs"]
mod tests;
