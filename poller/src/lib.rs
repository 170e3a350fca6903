//! Reactors, pollers, timers and local tasks.
//!
//! A **reactor** is one thread that never waits for anything in particular. It turns one wheel,
//! [`Reactor::step`], which does four things in a fixed order:
//!
//! ```text
//!   inbox ──► timers ──► ready tasks ──► pollers ──┐
//!     ▲                                            │   each part does a bounded amount of work
//!     └────────────────────────────────────────────┘
//! ```
//!
//! * the **inbox** holds what other threads ask of this one: wake a task, or run a closure;
//! * **timers** wake tasks whose time has come;
//! * **tasks** are plain async functions that live and die on this reactor, are never cancelled,
//!   and need no lock between them;
//! * **pollers** are the devices: a completion queue, a ring, an epoll set. A [`Poller`] never
//!   blocks and says whether it found work.
//!
//! Everything else in this crate serves that wheel. [`Local`] is what code on the reactor holds: it
//! spawns, sleeps and tells the time. [`Remote`] is what other threads hold: it wakes and sends.
//! [`channel`] carries values between reactors, [`local`] coordinates tasks of one reactor, and
//! [`spare`] keeps memory that a task is done with for the next.
//!
//! A reactor that finds no work may sleep ([`IdlePolicy::Adaptive`]); then it waits once, in one
//! poll(2), for its doorbell and for the interrupts of its pollers. The protocol that keeps a
//! wake-up from being lost between the last look and the wait is in `doorbell`, and is checked by
//! exhaustive interleaving.
//!
//! Time and randomness are handed in ([`Clock`], [`Rng`]), and nothing here depends on the order of
//! a hash map or on which thread was faster. So a simulator may put any number of reactors on one
//! thread and step them in any order it likes: the same seed gives the same run.
#![deny(unsafe_code)]

pub mod channel;
mod core;
mod doorbell;
mod handle;
pub mod local;
mod poller;
mod reactor;
mod remote;
mod rng;
pub mod spare;
mod stats;
mod stop;
mod sync;
mod task;
mod time;
mod timer;
mod wait_queue;

#[cfg(all(test, loom))]
mod loom_tests;
#[cfg(all(test, not(loom)))]
mod tests;

pub use channel::Full;
pub use handle::{JoinHandle, Local, YieldNow};
pub use poller::{Interrupt, Poller, Progress, Wait};
pub use reactor::{IdlePolicy, Reactor, ReactorConfig, ReactorId, TaskOrder};
pub use remote::Remote;
pub use rng::Rng;
pub use stats::{LONG_TURN, Long, ReactorStats, Turns};
pub use stop::StopFlag;
pub use time::{Clock, Instant, SystemClock};
pub use timer::{Elapsed, Sleep, timeout};
