//! Which block is where.
//!
//! The store is a state machine on one reactor: the index of keys, the placement of new blocks over
//! the drives, leases on blocks being read, and eviction. It never touches a payload: a session
//! asks it for a place ([`Store::reserve`]), moves the bytes itself, and comes back to
//! [`Store::commit`]; or asks for a [`LeaseGrant`], reads the drive itself, and lets go.
//!
//! ```text
//!   session ── reserve(key, length) ─► key locked, units taken on healthy drives     (Reservation)
//!           ── payload to the drive, by the session's own queues
//!           ── commit(crcs) ─► journal records durable ─► published in the index ─► key unlocked
//!
//!   session ── lease(key) ─► block pinned: its units cannot be reused                 (ReadLease)
//!           ── drive to socket
//!           ── drop ─► unpinned; a block unpublished meanwhile frees its units now
//! ```
//!
//! Three rules carry the promise that an acknowledged block is byte-exact or missing with a cause:
//!
//! 1. A block is published only after its records are durable as configured ([`Durability`]), and
//!    answered only after that.
//! 2. Removal runs unpublish → removal record durable as configured and readers gone → units free.
//!    No unit is reused while a reader, a writer or an older record names it.
//! 3. One key has one writer at a time ([`locks`]); a delete or a second put orders after it.
//!
//! Sessions on the store's own reactor call it directly; others through messages whose reply and
//! release slots are reserved when the call is made ([`handle`]).
#![forbid(unsafe_code)]

mod block;
mod checkpoint;
mod commit;
mod config;
mod drives;
mod duty;
mod evict;
mod found;
mod gone;
pub mod handle;
mod hint;
pub mod index;
mod join;
mod lease;
mod list;
pub mod locks;
mod membership;
pub mod metrics;
mod policy;
mod recover;
mod remember;
mod remove;
mod reserve;
mod scrub;
mod store;
mod tune;
mod wanting;

pub use block::{Block, Crcs, Extent, KeyHash, MissReason, Slot};
pub use commit::{CommitError, Stored};
pub use config::{Durability, EvictionConfig, ScrubConfig, StoreConfig};
pub use drives::{DRIVES_MAX, DriveId, DriveState, DriveStatus, Space};
pub use found::Found;
pub use handle::{ReadLease, RemoteStore, Reservation, StoreHandle, StorePort, Turn};
pub use hint::Advice;
pub use join::{JoinError, Newcomer};
pub use lease::{Existing, LeaseGrant, Miss};
pub use list::{ListFilter, Listed};
pub use metrics::{Histogram, StoreCounters};
pub use policy::{Chain, EvictionPolicy, Hint, Lru, Named, Policy, S3Fifo};
pub use recover::{RecoverError, RecoveredDrive};
pub use remember::{Caller, Outcome};
pub use remove::Deleted;
pub use reserve::{Mode, Refusal, ReservationGrant, ReserveRequest};
pub use scrub::ScrubCounters;
pub use store::{KeyHasher, NamespaceHasher, Store, UnderWay};
pub use tune::Tuning;
