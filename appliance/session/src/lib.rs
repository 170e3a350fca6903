//! A connection's requests, one async function each.
//!
//! [`serve`] takes a connection from its handshake to its end. Two tasks work on it: the reader,
//! which parses and verifies frames and receives payload straight into its place, and the
//! [`outbox`], which seals and sends replies. Every request is a task of its own, read from top to
//! bottom in [`put`], [`get`] and [`keys`]; what it does with devices and the store it does through
//! the reactor's [`Context`].
//!
//! A request that has reserved space is never cancelled: when the connection dies, the request
//! runs on to its commit or its abort, and only its reply is lost.
//!
//! The session knows no HTTP, no configuration and no kind of drive: the simulator runs it as it
//! is.
#![forbid(unsafe_code)]

mod backlog;
mod connect;
mod context;
mod extents;
mod get;
mod input;
mod join;
mod keys;
mod lent;
mod metrics;
mod offers;
mod outbox;
mod payload;
mod put;
mod reads;
mod replies;
mod session;
mod unasked;
mod writes;

pub use context::{
    Context, ContextParts, DriveIo, Entropy, Identity, KeyRing, NamespaceLimits, SessionLimits,
};
pub use metrics::SessionCounters;
pub use session::serve;
