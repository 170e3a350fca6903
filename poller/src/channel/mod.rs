//! Values between reactors, and between a reactor and any other thread.
//!
//! [`oneshot`](oneshot()) carries one value, once: a reply. [`inbox`](inbox()) carries many to one
//! receiver, and is bounded: room is taken first, as a [`Permit`], so that sending can neither fail
//! nor wait. Both ends are plain futures and work under any executor.

mod inbox;
mod oneshot;

pub use inbox::{InboxReceiver, InboxSender, Permit, Recv, Reserve, inbox};
pub use oneshot::{OneReceiver, OneSender, oneshot};

/// There is no room; nothing was queued. Back-pressure, not failure.
#[derive(Copy, Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the inbox is full")]
pub struct Full;
