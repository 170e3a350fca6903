//! The pair of traits, and what is common to all who implement them.

use std::rc::Rc;
use std::sync::Arc;

use memkv_dma::{DmaBuf, DmaRef, Memory};
use memkv_poller::Local;

use crate::{Commands, Completion, DeviceStats, Io, IoBuf, IoError, Op};

/// The grain that buffers in memory have to lie on: what direct I/O asks of the address at most, on
/// every device with sectors of 512 or 4096 bytes known to us.
pub(crate) const MEMORY_GRAIN: u32 = 512;

/// The largest sector of a device in bytes: what is as long as some of these fits all devices.
pub const SECTOR_MAX: usize = 4096;

/// The shape of a device.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Geometry {
    /// Bytes on the device, a multiple of the sector.
    pub capacity: u64,
    /// Grain of offsets and lengths in bytes, a power of two: 512 or 4096 as a rule, more on few NVMe
    /// drives; a torn write tears between sectors only.
    pub sector: u32,
    /// The longest single read or write in bytes.
    pub max_transfer: u32,
}

impl Geometry {
    /// Whether a device of this shape can be asked `io`. Every driver checks this first.
    #[inline]
    pub fn check(&self, io: &Io) -> Result<(), IoError> {
        let Io { op, offset, len, ref buf, buf_at } = *io;
        if op == Op::Flush {
            return Ok(());
        }
        let grain = self.sector;
        // A power of two: a mask instead of a division.
        if len == 0 || (offset | len) & u64::from(grain).wrapping_sub(1) != 0 {
            return Err(IoError::Misaligned { offset, len, buf_at, grain });
        }
        let capacity = self.capacity;
        if offset.checked_add(len).is_none_or(|end| end > capacity) {
            return Err(IoError::OutOfRange { offset, len, capacity });
        }
        if op == Op::Deallocate {
            return Ok(());
        }
        if len > u64::from(self.max_transfer) {
            return Err(IoError::TooLong { len, max: self.max_transfer });
        }
        let buf = match buf {
            Some(IoBuf::Shared(_)) if op == Op::Read => None,
            buf => buf.as_ref(),
        };
        // `len` fits, or it would have been too long.
        let end = buf_at.checked_add(len as usize);
        let Some(buf) = buf.filter(|buf| end.is_some_and(|end| end <= buf.len())) else {
            return Err(IoError::WrongBuffer { op, len });
        };
        if !(buf.as_ptr() as usize + buf_at).is_multiple_of(MEMORY_GRAIN as usize) {
            return Err(IoError::Misaligned { offset, len, buf_at, grain: MEMORY_GRAIN });
        }
        Ok(())
    }
}

/// Which driver a device is driven by.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub enum Kind {
    /// Memory of this process.
    Memory,
    /// io_uring.
    Uring,
    /// Worker threads.
    Threads,
    /// An NVMe controller, driven from this process.
    Nvme,
    /// The simulator's disk.
    Sim,
}

impl Kind {
    /// The name used in configuration, logs and status.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Memory => "memory",
            Kind::Uring => "uring",
            Kind::Threads => "threads",
            Kind::Nvme => "nvme",
            Kind::Sim => "sim",
        }
    }
}

/// A drive, as all reactors share it.
pub trait BlockDevice: Send + Sync {
    /// Its shape, which does not change while it is open.
    fn geometry(&self) -> Geometry;

    /// Which driver drives it.
    fn kind(&self) -> Kind;

    /// The path it was opened by, or `memory`.
    fn name(&self) -> &str;

    /// Why this driver was chosen, in words for the log and the status page.
    fn reason(&self) -> &str;

    /// What it was asked; nothing where nobody counts.
    fn stats(&self) -> DeviceStats {
        DeviceStats::default()
    }

    /// Opens one reactor's queue and adds what has to be polled to the reactor. Called on the thread of
    /// the reactor; [`IoError::Os`] when the system has no more rings or memory.
    fn open_queue(&self, local: &Local) -> Result<Rc<dyn BlockQueue>, IoError>;

    /// The bytes of a range where they lie, to be read, if the medium is memory. Panics when they are
    /// lent for writing, or outside of the device.
    fn view(&self, _offset: u64, _len: usize) -> Option<DmaRef> {
        None
    }

    /// The bytes of a range where they lie, to be written, if the medium is memory. Panics when they
    /// are lent at all, or outside of the device.
    fn view_mut(&self, _offset: u64, _len: usize) -> Option<DmaBuf> {
        None
    }

    /// The memory that [`BlockDevice::view`]s lie in, for whoever moves them to register.
    fn memory(&self) -> Option<Memory> {
        None
    }

    /// Ends the use of a watched drive through this handle and all its queues: commands submitted from
    /// now on fail as [`IoError::Offline`]. What is left is the drive itself, for a use that begins
    /// anew once [`BlockQueue::outstanding`] of every queue is 0. None of a drive that is not watched.
    fn close(&self) -> Option<Arc<dyn BlockDevice>> {
        None
    }
}

/// One reactor's way to a drive.
pub trait BlockQueue {
    /// Starts a command. Never blocks; beyond the depth of the device it waits inside.
    fn submit(&self, io: Io) -> Completion;

    /// Commands submitted and not completed, those that wait inside included.
    fn outstanding(&self) -> usize;

    /// The table that all of its commands are in, if it has one.
    fn commands(&self) -> Option<&Commands> {
        None
    }

    /// Commands that have ended, of those that were submitted here; nothing where nobody counts.
    fn completed(&self) -> u64 {
        let given = self.commands().map_or(0, |commands| commands.given());
        given.saturating_sub(self.outstanding() as u64)
    }

    /// The device is not waited for any more, for it does not answer: what waits inside and never
    /// reached it ends as [`IoError::Offline`], and dropping the queue leaks what the device still has
    /// instead of waiting.
    fn give_up(&self) {}
}

/// Fills `buf[0..len]` from `offset`; the buffer comes back in any case but that of
/// [`IoError::Stalled`].
pub async fn read(
    queue: &dyn BlockQueue,
    offset: u64,
    len: usize,
    buf: DmaBuf,
) -> (Result<(), IoError>, Option<DmaBuf>) {
    let done = queue.submit(Io::read(offset, len, buf)).await;
    (done.result, done.buf.and_then(IoBuf::into_exclusive))
}

/// Puts `buf[0..len]` at `offset`; the buffer comes back in any case but that of
/// [`IoError::Stalled`].
pub async fn write(
    queue: &dyn BlockQueue,
    offset: u64,
    len: usize,
    buf: impl Into<IoBuf>,
) -> (Result<(), IoError>, Option<IoBuf>) {
    let done = queue.submit(Io::write(offset, len, buf)).await;
    (done.result, done.buf)
}

/// Puts `buf[0..len]` at `offset` and makes that, and every write that has completed, durable; the
/// buffer comes back in any case but that of [`IoError::Stalled`].
pub async fn write_flush(
    queue: &dyn BlockQueue,
    offset: u64,
    len: usize,
    buf: impl Into<IoBuf>,
) -> (Result<(), IoError>, Option<IoBuf>) {
    let done = queue.submit(Io::write_flush(offset, len, buf)).await;
    (done.result, done.buf)
}

/// Makes every write that has completed durable.
pub async fn flush(queue: &dyn BlockQueue) -> Result<(), IoError> {
    queue.submit(Io::flush()).await.result
}
