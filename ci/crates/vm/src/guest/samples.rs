//! Where processes are, looked at again and again: the kernel stops every thread of a process after each so
//! many nanoseconds that it ran, and notes where that was, with the calls that led there within the kernel.
//!
//! On a processor on which an instruction is a nanosecond these are samples of instructions, at even
//! distances, of processes that know nothing of it: the binaries that are served with.
#![allow(unsafe_code)]

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{Ordering, fence};

/// Pages of a buffer of samples, a power of two, behind the page that tells how far it is filled.
const PAGES: usize = 2048;
const PAGE: usize = 4096;

/// `PERF_TYPE_SOFTWARE`, `PERF_COUNT_SW_TASK_CLOCK`: the time for which a thread has run.
const TYPE_SOFTWARE: u32 = 1;
const TASK_CLOCK: u64 = 1;

/// `PERF_SAMPLE_IP`, `PERF_SAMPLE_CALLCHAIN`.
const SAMPLE: u64 = 1 | 1 << 5;

/// No calls are followed outside of the kernel (`exclude_callchain_user`): nothing says how.
const NO_USER_CALLS: u64 = 1 << 22;

/// `PERF_RECORD_LOST`, `PERF_RECORD_SAMPLE`.
const LOST: u32 = 2;
const SAMPLED: u32 = 9;

/// From here on numbers in a chain of calls are no addresses (`PERF_CONTEXT_MAX`).
const MARKS: u64 = u64::MAX - 4095;

/// The first words of `struct perf_event_attr`, in its first version.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    kind: u32,
    size: u32,
    config: u64,
    period: u64,
    sample: u64,
    read: u64,
    flags: u64,
    wakeup: u32,
    breakpoint: u32,
    config1: u64,
}

/// One look at a thread.
pub struct Sample {
    /// The next instruction.
    pub at: u64,
    /// Where in the kernel, and who called that; empty outside of it.
    pub kernel: Vec<u64>,
}

/// The samples of one thread.
struct Thread {
    buffer: NonNull<u8>,
    _event: OwnedFd,
}

/// The samples of a process, as long as this lives.
pub struct Sampler(Vec<Thread>);

impl Sampler {
    /// Looks at each of the present threads of a process whenever it has run for `period` nanoseconds.
    ///
    /// # Errors
    /// When the kernel does not let us.
    pub fn start(process: u32, period: u64) -> io::Result<Sampler> {
        let threads = fs::read_dir(format!("/proc/{process}/task"))?;
        let numbers = threads.filter_map(|thread| thread.ok()?.file_name().to_str()?.parse().ok());
        numbers.map(|thread| Thread::start(thread, period)).collect::<io::Result<_>>().map(Sampler)
    }

    /// What was seen until now.
    ///
    /// # Panics
    /// When samples were lost.
    pub fn end(self) -> Vec<Sample> {
        self.0.iter().flat_map(Thread::samples).collect()
    }
}

impl Thread {
    fn start(thread: libc::pid_t, period: u64) -> io::Result<Thread> {
        let attributes = Attributes {
            kind: TYPE_SOFTWARE,
            size: size_of::<Attributes>() as u32,
            config: TASK_CLOCK,
            period,
            sample: SAMPLE,
            flags: NO_USER_CALLS,
            ..Attributes::default()
        };
        // SAFETY: the kernel reads the structure, whose size it finds in it, and makes a descriptor
        // (perf_event_open(2)).
        let event = unsafe {
            libc::syscall(libc::SYS_perf_event_open, &raw const attributes, thread, -1, -1, 0)
        };
        if event < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor that was just made, which nobody else has.
        let event = unsafe { OwnedFd::from_raw_fd(event as i32) };
        let (len, access) = ((1 + PAGES) * PAGE, libc::PROT_READ | libc::PROT_WRITE);
        // SAFETY: a new mapping at a place that the kernel chooses replaces nothing.
        let buffer = unsafe {
            libc::mmap(ptr::null_mut(), len, access, libc::MAP_SHARED, event.as_raw_fd(), 0)
        };
        if buffer == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let buffer = NonNull::new(buffer.cast()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Thread { buffer, _event: event })
    }

    /// The word at a place in the buffer, round which it goes.
    fn word(&self, at: u64) -> u64 {
        let at = PAGE + (at as usize & (PAGES * PAGE - 1));
        // SAFETY: inside of the mapping, which lives as long as this, and aligned, for records are whole
        // words; the kernel may write it at any time, so it is read as volatile.
        unsafe { self.buffer.add(at).cast::<u64>().read_volatile() }
    }

    fn samples(&self) -> Vec<Sample> {
        // SAFETY: `data_head` in the first page of the mapping (perf_event_open(2)), which the kernel
        // writes at any time.
        let head = unsafe { self.buffer.add(1024).cast::<u64>().read_volatile() };
        // What is before the head was written before it.
        fence(Ordering::Acquire);
        let mut samples = Vec::new();
        let mut at = 0;
        // Nobody tells the kernel how far it was read: what does not fit is lost, and said so.
        assert!(head < (PAGES * PAGE) as u64, "samples were lost");
        while at < head {
            let header = self.word(at);
            let (kind, size) = (header as u32, header >> 48);
            assert!(kind != LOST && size >= 8, "samples were lost");
            if kind == SAMPLED {
                let calls = (0..self.word(at + 16)).map(|n| self.word(at + 24 + 8 * n));
                // Marks tell of what kind the addresses behind them are: here there is one kind.
                let kernel = calls.filter(|call| *call < MARKS && call >> 63 == 1).collect();
                samples.push(Sample { at: self.word(at + 8), kernel });
            }
            at += size;
        }
        samples
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        // SAFETY: exactly what was mapped, of which there are no references.
        unsafe { libc::munmap(self.buffer.as_ptr().cast(), (1 + PAGES) * PAGE) };
    }
}
