//! The one pool of memory that devices see.
//!
//! Everything that moves bytes in memkv (disks, sockets, later NICs) moves them into and out of
//! buffers of this crate. There are two places a buffer can come from:
//!
//! ```text
//!   Pool    one mapping of hugepages, cut by a buddy allocator     transient: a request's chunks,
//!           into buffers of 16 KiB .. 4 MiB                         a checkpoint's pages
//!   Arena   one mapping whose ranges are lent where they lie        the medium itself of the memory
//!                                                                   block device
//! ```
//!
//! and two shapes a buffer can have: [`DmaBuf`], exclusive, which a driver fills, and [`DmaRef`],
//! shared and read-only, which any number of sends and writes may hold at once.
//!
//! **The rule of this crate.** Memory that a device, the kernel or a peer may write is never a Rust
//! reference. A buffer is a raw pointer plus the right to it; ownership moves into the driver with
//! the command and comes back with the completion, and only its owner can turn it into `&[u8]`. The
//! mapping lives as long as any buffer into it, whoever holds the pool.
//!
//! Buffers are handed out with whatever bytes the last owner left: what is read from one before it
//! was written is somebody else's. Fill first, and send only what was filled.
//!
//! Modules: `mapping` gets the pages, `buddy` cuts them, `pool` keeps the accounts and the queue of
//! those who wait, `arena` keeps the table of lends, `buffer` is what all of them hand out, `window` is how
//! another process reads an arena.

#![warn(missing_docs)]

mod arena;
mod buddy;
mod buffer;
mod ledger;
mod mapping;
mod memory;
mod pool;
mod wait;
mod window;

pub use arena::{Arena, ArenaError};
pub use buffer::{DmaBuf, DmaRef, Watch};
pub use ledger::Class;
pub use mapping::{Backing, Hugepages, MapError, OrdinaryReason};
pub use memory::Memory;
pub use pool::{Exhausted, Pool, PoolConfig, PoolError, PoolStats};
pub use wait::{AllocateSet, AllocateWait};
pub use window::Window;

/// The grain of the pool, and of allocation on a drive: 16 KiB.
pub const UNIT: usize = 16 * 1024;

/// The longest buffer the pool hands out: 4 MiB, one extent.
pub const MAX_BUFFER: usize = 4 * 1024 * 1024;

/// The longest region a device is asked to register at once: 1 GiB, the limit of one registered
/// buffer of io_uring. No buffer of a pool straddles two regions.
pub const REGION: usize = 1 << 30;
