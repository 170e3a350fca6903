//! The object tier (G4) of Dynamo's KV block manager, kept by memkv.
//!
//! KVBM moves blocks of KV cache between GPU memory (G1), host memory (G2), disk (G3) and, behind a trait, a
//! store that it knows nothing of (G4). This crate is such a store: [`Blocks`] is upstream's
//! `ObjectBlockOps`, [`Locks`] its `ObjectLockManager`, both straight over the client engine, without NIXL
//! on the way.
//!
//! ```no_run
//! # fn example() -> Result<(), memkv_kvbm::OpenError> {
//! use std::sync::Arc;
//! use kvbm_engine::object::{ObjectBlockOps, ObjectLockManager};
//! use memkv_kvbm::{Identity, Tier};
//!
//! let tier = Tier::open(Identity::new("meta-llama/Llama-3.1-8B").with("dtype", "bf16"))?;
//! let of_rank_0: Arc<dyn ObjectBlockOps> = Arc::new(tier.blocks(Some(0)));
//! let locks: Arc<dyn ObjectLockManager> = Arc::new(tier.locks("instance-7"));
//! # Ok(())
//! # }
//! ```
//!
//! # Keys
//!
//! `{identity}/{rank}/{layout}/{hash}`: 16 hexadecimal digits of the [`Identity`], the rank or `-`, 16 digits of
//! the layout, and all 128 bits of the sequence hash. What another model wrote cannot be found, and not
//! what another layout did. A layout is not known before the first block moves; it is written down once per rank
//! as `{identity}/{rank}/layout`, where lookups find it, and another one is refused.
//!
//! # Memory
//!
//! A block is one value: its regions are gathered as they lie, and scattered back, without a copy in between.
//! Only host memory can be read so: blocks of a GPU are refused. The memory is held until the last byte
//! has moved, also where nobody waits for the future any more.
//!
//! # Threads
//!
//! The client's calls block, so they run on tokio's threads for that: locks are sequences of calls, and a call
//! that owns its memory may outlive its future. Large batches travel in pieces side by side, as many as the
//! client has connections but one, which stays free for lookups. All calls end by the client's deadline,
//! counted from the first poll.

#![deny(unsafe_code)]

mod binding;
mod blocks;
mod factory;
mod identity;
mod locks;
mod memory;
mod tier;

pub use blocks::Blocks;
pub use factory::{lock_manager, object_client};
pub use identity::Identity;
pub use locks::Locks;
pub use memory::MemoryRefusal;
pub use tier::{OpenError, Tier};
