//! The kernel's set of sockets and what became of them: one small interface over epoll and kqueue.

#[cfg(target_os = "linux")]
#[path = "epoll.rs"]
mod system;
#[cfg(not(target_os = "linux"))]
#[path = "kqueue.rs"]
mod system;

pub(super) use system::Readiness;

/// Most events taken from the kernel at once. More wait for the next round.
pub(super) const EVENTS_MAX: usize = 128;

/// What became of one socket since its last event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Event {
    /// The number the socket was registered with.
    pub token: u64,
    /// Bytes, the end of the stream, or an error can be read.
    pub readable: bool,
    /// There is room to send, or an error to collect.
    pub writable: bool,
    /// The peer sends no more, or the connection is broken: it stays readable for ever.
    pub ended: bool,
}
