//! TCP by plain non-blocking system calls.
//!
//! * A [`Listener`] is bound once per node. Each reactor that accepts has an [`Acceptor`] on it; what it
//!   accepts is a [`Accepted`], which can be sent to any reactor.
//! * An [`Engine`] per reactor turns an [`Accepted`] into a [`Connection`](crate::Connection). It is a
//!   [`Poller`](memkv_poller::Poller): it asks the kernel which sockets became ready, moves bytes for the
//!   operations that waited for that, and wakes their tasks. To wait for interrupts it arms its readiness
//!   descriptor.
//! * [`blocking::Stream`] is the client's end: plain calls with deadlines, on the caller's thread.
//!
//! # How bytes move
//!
//! Readiness is edge-triggered: a socket is registered once and never again touched in the kernel's set.
//! Each socket remembers whether it may be readable and writable; an operation is tried at once when it
//! may, and waits when the kernel says that it would block, or moved less than asked (then the next edge
//! tells when there is more). A receive asks for the whole rest of its buffer, a send hands over every
//! piece in one vectored call. Who waits for much is woken when that much is there, not by each packet.
//!
//! # Fairness
//!
//! A visit moves at most 1 MiB while another socket is ready, so that one connection that streams cannot
//! keep the others waiting for more than about 200 µs each; alone it may take the whole rest of a value.
//! The number of system calls per visit is bounded too, so that a flood of small requests cannot keep a
//! task from ever yielding. What a visit leaves over is continued in the next round.

pub mod blocking;
mod connection;
mod engine;
mod listener;
mod options;
mod readiness;
#[cfg(test)]
mod tests;

pub use engine::Engine;
pub use listener::{Accepted, Acceptor, Listener};
