//! Memory of a block: where the addresses that KVBM gives become slices.
//!
//! What can be checked is checked: that the memory is the host's, and that every region of a block lies within
//! an allocation that the layout owns. That a block which is stored does not change meanwhile, and that one
//! which is read is used by nobody else, is what KVBM promises whoever implements its object tier.

#![allow(unsafe_code)]

use std::ptr::{with_exposed_provenance, with_exposed_provenance_mut};
use std::sync::Arc;

use dynamo_memory::{MemoryDescriptor, MemoryRegion, StorageKind};
use kvbm_common::BlockId;
use kvbm_physical::layout::Layout;

/// Why the memory of a block cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MemoryRefusal {
    /// The processor cannot read it.
    #[error(
        "this layout lies in {0:?} memory, and only System and Pinned memory can be moved: offload to the \
         host tier (G2) first"
    )]
    NotHost(StorageKind),
    /// Nothing says where its allocations are.
    #[error("this layout names no allocations")]
    NoAllocations,
    /// It has no such block.
    #[error("the layout has no block {block}")]
    NoBlock {
        /// The number asked for.
        block: BlockId,
        /// What the layout said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A region that is not of the layout's own memory.
    #[error("a region of block {block} lies outside of the layout's allocations")]
    Outside {
        /// The block.
        block: BlockId,
    },
    /// The same block twice as a destination.
    #[error("block {block} is to be filled twice in one call")]
    Twice {
        /// The block.
        block: BlockId,
    },
}

/// A layout whose memory the processor can reach.
#[derive(Clone)]
pub(crate) struct HostLayout {
    layout: Arc<dyn Layout>,
    /// Its allocations, by their addresses.
    allocations: Arc<[MemoryRegion]>,
}

impl HostLayout {
    pub fn new(layout: &Arc<dyn Layout>) -> Result<HostLayout, MemoryRefusal> {
        let buffers = layout.memory_regions();
        let foreign = buffers.iter().map(|buffer| buffer.storage_kind());
        let mut foreign = foreign.filter(|kind| !(kind.is_system() || kind.is_pinned()));
        if let Some(kind) = foreign.next() {
            return Err(MemoryRefusal::NotHost(kind));
        }
        if buffers.is_empty() {
            return Err(MemoryRefusal::NoAllocations);
        }
        let region =
            |buffer: &dynamo_memory::Buffer| MemoryRegion::new(buffer.addr(), buffer.size());
        let mut allocations: Vec<MemoryRegion> = buffers.iter().map(region).collect();
        allocations.sort_unstable_by_key(|allocation| allocation.addr);
        Ok(HostLayout { layout: layout.clone(), allocations: allocations.into() })
    }

    /// The memory of one block; regions that touch each other in one allocation are one.
    pub fn block(&self, block: BlockId) -> Result<HostBlock, MemoryRefusal> {
        let mut regions: Vec<MemoryRegion> = Vec::new();
        for layer in 0..self.layout.num_layers() {
            for outer in 0..self.layout.outer_dim() {
                let region = self.layout.memory_region(block, layer, outer);
                let region = region
                    .map_err(|source| MemoryRefusal::NoBlock { block, source: source.into() })?;
                if !self.is_own(region) {
                    return Err(MemoryRefusal::Outside { block });
                }
                match regions.last_mut() {
                    Some(last) if self.is_one(*last, region) => last.size += region.size,
                    _ => regions.push(region),
                }
            }
        }
        Ok(HostBlock { regions, _owner: self.layout.clone() })
    }

    /// Two regions that touch may be of two allocations, which are two objects all the same.
    fn is_one(&self, first: MemoryRegion, next: MemoryRegion) -> bool {
        let both = MemoryRegion::new(first.addr, first.size + next.size);
        first.addr + first.size == next.addr && self.is_own(both)
    }

    fn is_own(&self, region: MemoryRegion) -> bool {
        let above = self.allocations.partition_point(|allocation| allocation.addr <= region.addr);
        let end = region.addr.checked_add(region.size);
        above.checked_sub(1).is_some_and(|at| {
            let allocation = self.allocations[at];
            region.size > 0 && end.is_some_and(|end| end <= allocation.addr + allocation.size)
        })
    }
}

/// The memory of one block, which is there for as long as this is.
pub(crate) struct HostBlock {
    /// Within the allocations of `_owner`, none empty, no two of them overlapping.
    regions: Vec<MemoryRegion>,
    /// Keeps the allocations.
    _owner: Arc<dyn Layout>,
}

impl HostBlock {
    /// Bytes of the whole block.
    pub fn len(&self) -> u64 {
        self.regions.iter().map(|region| region.size as u64).sum()
    }

    /// To be stored, in the order of layers, keys before values.
    pub fn pieces(&self) -> Vec<&[u8]> {
        let piece = |region: &MemoryRegion| {
            // SAFETY: the region lies within an allocation of `_owner` (checked when it was made), which lives as
            // long as `self`; that nobody changes a block while it is stored is KVBM's promise.
            unsafe { std::slice::from_raw_parts(with_exposed_provenance(region.addr), region.size) }
        };
        self.regions.iter().map(piece).collect()
    }

    /// To be filled, in the same order.
    pub fn pieces_mut(&mut self) -> Vec<&mut [u8]> {
        let piece = |region: &MemoryRegion| {
            let first = with_exposed_provenance_mut(region.addr);
            // SAFETY: as above; regions of a block do not overlap, no block is there twice (`moves`), and that
            // nobody else uses a block while it is filled is KVBM's promise.
            unsafe { std::slice::from_raw_parts_mut(first, region.size) }
        };
        self.regions.iter().map(piece).collect()
    }
}

impl std::fmt::Debug for HostBlock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HostBlock").field("regions", &self.regions).finish_non_exhaustive()
    }
}
