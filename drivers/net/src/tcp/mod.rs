//! TCP over the system's sockets.
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
//! Readiness is edge-triggered: a socket is registered once and not touched again in the kernel's set.
//! Each socket remembers whether it may be readable and writable; an operation is tried at once when it
//! may, and waits when the kernel says that it would block, or moved less than asked (then the next edge
//! tells when there is more). A receive asks for the whole rest of its buffer, a send hands over every
//! piece in one vectored call. Who waits for much is woken when that much is there, not by each packet.
//!
//! # Two engines
//!
//! On Linux an engine asks for readiness by io_uring where it can, else by epoll ([`Driver`]). They differ
//! in two things. A look that finds nothing costs the ring a load, and epoll a system call, which tells
//! where a reactor polls on. And the ring sends large payload from memory that it has registered, so that the
//! kernel need not look its pages up. All else is the same code, and all tests run on both.
//!
//! # Waiting awake
//!
//! Both ends look for a small message for some microseconds before they sleep, as long as that pays
//! (`spin.rs`): to sleep and be woken takes several times as long as the message itself.
//!
//! # Lending
//!
//! Between two ends on one machine large values are sent as pages and not as copies (`lend.rs`): by the
//! client's end for as long as a call waits for its answer, by an engine where the
//! [sender](crate::SendOp::lend) keeps them as they are until the peer has said that it took them.
//!
//! # Fairness
//!
//! Small before bulk: sockets with no more than 16 KiB to move are visited first, all of them in every round.
//! Then bulk has its turn, socket by socket. All of it together moves at most 1 MiB in a round while several
//! sockets are at work, which takes about 200 µs, and 256 KiB while it is a crowd of them, so that a small
//! message waits for no more than that, however many stream; a socket alone may take the whole rest of a value.
//! The number of system calls per visit is bounded too, so that a flood of small requests cannot keep a
//! task from ever yielding. What a visit or a round leaves over is continued in the next round.

pub mod blocking;
mod connection;
mod engine;
#[cfg_attr(not(target_os = "linux"), path = "no_lend.rs")]
mod lend;
mod listener;
mod options;
mod readiness;
mod spin;
#[cfg(test)]
mod tests;

pub use engine::{Driver, Engine, UnknownDriver};
pub use listener::{Accepted, Acceptor, Listener};
