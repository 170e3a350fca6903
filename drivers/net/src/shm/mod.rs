//! Memory that a server and a client on its machine share: the server's, which clients read for themselves, and
//! the client's, in which it lays down what it puts.
//!
//! ```text
//!   server                                       client
//!   Door   listens on a Unix socket  ◄── ticket ──  Windows::open
//!            │        descriptors, read-only  ──►     maps them
//!   a reply names a stretch ── by TCP ──────────►  Windows::read copies it out
//! ```
//!
//! And the other way:
//!
//! ```text
//!   Stagings  keeps what comes in  ◄── ticket, number, descriptor ──  Staging::open
//!   Staged::read copies it out  ◄── a put names a stretch, by TCP ──  Staging::write
//! ```
//!
//! A [`Door`] hands descriptors of sealed memory to who shows its ticket, and the ticket is told over a
//! connection that was authenticated. The socket has a name in the abstract namespace of the host's
//! network: whoever reaches the server over loopback reaches it, across users and containers that share
//! that, and it leaves nothing behind.
//!
//! What lies where, and how long it stays there, is said by frames, and is no business of this carrier's.
//! Both are memory that another process writes: it is read by copying, and believed by the CRC of the copy.

mod door;
mod staging;
mod stagings;
mod theirs;
mod visit;
mod windows;

pub use door::Door;
pub use staging::Staging;
pub use stagings::{Staged, Stagings};
pub use windows::Windows;

/// Bytes of the name of a door, and of its ticket.
pub const NAME: usize = 16;
/// Bytes of a ticket.
pub const TICKET: usize = 32;

/// Bytes of a ticket and the number of memory that is brought with it.
const BROUGHT: usize = TICKET + 8;
/// What is answered when it was taken.
const TAKEN: u8 = 1;
/// Most bytes of memory in which one client lays payload down.
pub const STAGING_MAX: usize = 4 << 20;
/// Most windows that a door hands out: what a message takes of descriptors, `SCM_MAX_FD`, is more.
const WINDOWS_MAX: usize = 128;
/// Bytes that tell of one window: where it starts in its file u64, how long it is u64.
const ROW: usize = 16;

/// Where a door is in the abstract namespace: `memkv-` and its name in hexadecimal digits.
fn address(name: &[u8; NAME]) -> String {
    let digits: String = name.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("memkv-{digits}")
}
