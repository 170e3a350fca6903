//! A deterministic disk, network and clock, and a decorator that injects faults.
//!
//! The simulator runs the *real* sessions, store and journal of memkv; only what lies below them is
//! replaced, by the four things in this crate:
//!
//! * [`SimClock`]: time that stands still until somebody moves it.
//! * [`SimDisk`]: a block device in memory whose completions arrive at simulated times drawn from a
//!   seed, whose writes are complete before they are stable, and which can be killed, cut from its
//!   power, or made to fail in every way that a drive fails ([`FaultKind`]). Whatever a fault harms is
//!   told to an observer and remembered, so that an oracle can answer "did a fault touch this?".
//! * [`SimNet`]: streams of bytes between a simulated client and a real `dyn Connection` on a reactor:
//!   never reordered within a stream, but late, in pieces, and cut off at any moment.
//! * [`World`]: owns the reactors, lets the seed pick which of them steps next, and moves the clock
//!   only when nothing can run.
//!
//! All of it runs on one thread, and the same seed gives the same run, instruction for instruction.
//!
//! [`faults`] is of another kind: it decorates *any* block device, also a real one, with errors chosen
//! by offset, by probability or by count. Tests use it, and so can an operator who wants to see what
//! his monitoring says when a drive goes bad.
#![forbid(unsafe_code)]

mod clock;
mod disk;
pub mod faults;
mod medium;
mod net;
mod options;
mod pipe;
mod record;
mod world;

pub use clock::SimClock;
pub use disk::{CrashKind, SimDisk, Violation};
pub use medium::{PAGE, Pages};
pub use net::{ClientEnd, Fate, NetOptions, SimNet};
pub use options::{DiskOptions, Latency};
pub use record::{DiskEvent, FaultCounts, FaultKind, FaultRates, Harm};
pub use world::{Source, World, WorldOptions};
