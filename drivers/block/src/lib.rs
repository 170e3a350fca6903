//! Block devices: memory, io_uring and worker threads behind one pair of traits.
//!
//! ```text
//!   open(path) ──► Arc<dyn BlockDevice>             one per drive, shared by all reactors
//!                       │ open_queue(&local)
//!                       ▼
//!                  Rc<dyn BlockQueue>               one per drive and reactor, no locks
//!                       │ submit(Io)                the Io owns its buffer: it moves in ...
//!                       ▼
//!                  Completion ──await──► Done       ... and comes back, whatever happened
//! ```
//!
//! Three drivers of this crate stand behind it; [`open`] chooses, and [`BlockDevice::reason`] says why:
//!
//! | kind      | medium                 | how                                                       |
//! |-----------|------------------------|-----------------------------------------------------------|
//! | `memory`  | an arena of this host  | copies at once; hands out its own bytes as views          |
//! | `uring`   | block device or file   | `O_DIRECT` through one io_uring per reactor               |
//! | `threads` | block device or file   | `pread`/`pwrite` on a few worker threads, where there is  |
//! |           |                        | no io_uring                                               |
//!
//! A fourth, which drives NVMe controllers from here without the kernel, has a crate of its own.
//!
//! **Ownership.** A driver's slot owns a buffer from `submit` until the device is done with it.
//! Dropping a [`Completion`] cancels nothing and frees nothing early: no buffer is reused while a
//! command that names it is outstanding.
//!
//! **What a queue promises.** `submit` never blocks and never refuses for want of room; what exceeds
//! the device's depth waits inside, bounded by the credits of the callers. Commands complete in any
//! order. A write is durable when an [`Op::Flush`] or [`Op::WriteFlush`] submitted after its
//! completion, by whatever queue of the device, has completed; that of an [`Op::WriteFlush`] is when it
//! has completed itself. A write torn by a power cut leaves every sector either old or new.
//!
//! **Stalls.** A device behind [`watch`] that leaves a command unanswered for too long fails it and all
//! others with [`IoError::Stalled`], and is not asked again. The buffers stay with the driver until the
//! device is done with them, if ever.
//!
//! Errors of the device, of the file system or of a shrunken file are values ([`IoError`]), never
//! panics: what to do about a drive that fails is decided above.

#![warn(missing_docs)]

mod commands;
mod completion;
mod counters;
mod device;
mod io;
mod memory;
mod watch;

#[cfg(unix)]
mod medium;
#[cfg(unix)]
mod open;
#[cfg(unix)]
mod sys;
#[cfg(unix)]
mod threads;
#[cfg(target_os = "linux")]
mod uring;
#[cfg(unix)]
mod workers;

pub use commands::{Commands, Given, Told, Vacancy};
pub use completion::{Completer, Completion, completion};
pub use counters::{Counters, DeviceStats, QueueCounters, Tally};
pub use device::{
    BlockDevice, BlockQueue, Geometry, Kind, SECTOR_MAX, flush, read, write, write_flush,
};
pub use io::{Done, Io, IoBuf, IoError, Op};
pub use memory::{memory, shared_memory};
#[cfg(unix)]
pub use open::{AllocationProgress, OpenError, OpenOptions, open};
pub use watch::watch;

/// The longest single read or write: 4 MiB, one extent.
pub const MAX_TRANSFER: u32 = 4 * 1024 * 1024;

/// The sector of files and of the memory device, in bytes.
pub const FILE_SECTOR: u32 = 4096;
