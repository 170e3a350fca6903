//! Memory by what it is for a device: stretches that can be registered with it.

use std::ptr::NonNull;

use crate::{Arena, Pool};

/// A pool or an arena, held so that its memory stays mapped for as long as a device knows it.
#[derive(Clone, Debug)]
pub enum Memory {
    /// The pool that bytes move through.
    Pool(Pool),
    /// A medium made of memory.
    Arena(Arena),
}

impl Memory {
    /// The memory in stretches of at most [`crate::REGION`] bytes, one right behind the other.
    pub fn regions(&self) -> Vec<(NonNull<u8>, usize)> {
        match self {
            Memory::Pool(pool) => pool.regions(),
            Memory::Arena(arena) => arena.regions(),
        }
    }
}
