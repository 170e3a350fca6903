//! The memory device: an arena that answers like a drive.
//!
//! Reads and writes are copies, done before `submit` returns. The data path does not use them: the
//! store takes [`BlockDevice::view`]s, so that a value is received into its place and sent from it.
//! What is copied is the journal's, some KiB at a time.
//!
//! The arena watches over every range: a copy into a range that somebody still reads, or a deallocation
//! of one, panics, since it means that a unit was reused too early.

use std::rc::Rc;
use std::sync::Arc;

use memkv_dma::{Arena, ArenaError, DmaBuf, DmaRef, Hugepages};
use memkv_poller::Local;

use crate::counters::Counters;
use crate::device::{BlockDevice, BlockQueue, Geometry, Kind};
use crate::{
    Completion, DeviceStats, Done, FILE_SECTOR, Io, IoBuf, IoError, MAX_TRANSFER, Op, completion,
};

/// A device of `size` bytes of memory, rounded down to sectors of 4096 bytes; zeroed.
///
/// Promises nothing after its process ends: a flush does nothing.
pub fn memory(size: u64, hugepages: Hugepages) -> Result<Arc<dyn BlockDevice>, ArenaError> {
    Ok(device(Arena::new(whole(size), hugepages)?))
}

/// The same, of memory that processes of this machine can be given to read, where the system has such
/// ([`Arena::window`]).
pub fn shared_memory(size: u64, hugepages: Hugepages) -> Result<Arc<dyn BlockDevice>, ArenaError> {
    Ok(device(Arena::shared(whole(size), hugepages)?))
}

fn whole(size: u64) -> u64 {
    size - size % u64::from(FILE_SECTOR)
}

fn device(arena: Arena) -> Arc<dyn BlockDevice> {
    let reason = format!("memory was asked for, made of {}", arena.backing());
    let shared = arena.window().is_some();
    tracing::info!(size = arena.size(), backing = %arena.backing(), shared, "memory device");
    Arc::new(Memory { arena, reason, counters: Arc::default() })
}

struct Memory {
    arena: Arena,
    reason: String,
    counters: Arc<Counters>,
}

impl BlockDevice for Memory {
    fn geometry(&self) -> Geometry {
        Geometry { capacity: self.arena.size(), sector: FILE_SECTOR, max_transfer: MAX_TRANSFER }
    }

    fn kind(&self) -> Kind {
        Kind::Memory
    }

    fn name(&self) -> &str {
        "memory"
    }

    fn reason(&self) -> &str {
        &self.reason
    }

    fn stats(&self) -> DeviceStats {
        self.counters.stats()
    }

    fn open_queue(&self, _local: &Local) -> Result<Rc<dyn BlockQueue>, IoError> {
        let counters = Arc::clone(&self.counters);
        Ok(Rc::new(MemoryQueue { arena: self.arena.clone(), geometry: self.geometry(), counters }))
    }

    fn view(&self, offset: u64, len: usize) -> Option<DmaRef> {
        Some(self.arena.lend(offset, len))
    }

    fn view_mut(&self, offset: u64, len: usize) -> Option<DmaBuf> {
        Some(self.arena.lend_mut(offset, len))
    }

    fn memory(&self) -> Option<memkv_dma::Memory> {
        Some(memkv_dma::Memory::Arena(self.arena.clone()))
    }
}

struct MemoryQueue {
    arena: Arena,
    geometry: Geometry,
    counters: Arc<Counters>,
}

impl MemoryQueue {
    fn carry_out(&self, io: &mut Io) -> Result<(), IoError> {
        self.geometry.check(io)?;
        let (offset, at) = (io.offset, io.buf_at);
        match (io.op, &mut io.buf) {
            (Op::Read, Some(IoBuf::Exclusive(buf))) => {
                let medium = self.arena.lend(offset, io.len as usize);
                buf.as_mut_slice()[at..][..io.len as usize].copy_from_slice(medium.as_slice());
            }
            (Op::Write | Op::WriteFlush, Some(buf)) => {
                let mut medium = self.arena.lend_mut(offset, io.len as usize);
                medium.as_mut_slice().copy_from_slice(&buf.as_slice()[at..][..io.len as usize]);
            }
            (Op::Deallocate, _) => {
                // Nothing to give back: the pages stay. But nobody may be reading them.
                drop(self.arena.lend_mut(offset, io.len as usize));
            }
            (Op::Flush, _) => {}
            (op, _) => return Err(IoError::WrongBuffer { op, len: io.len }),
        }
        Ok(())
    }
}

impl BlockQueue for MemoryQueue {
    fn submit(&self, mut io: Io) -> Completion {
        let result = self.carry_out(&mut io);
        self.counters.done(&io, result.is_ok());
        let (completer, completion) = completion();
        completer.complete(Done::of(io, result));
        completion
    }

    fn outstanding(&self) -> usize {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_is_the_medium_itself() {
        let device = memory(10_000, Hugepages::Never).unwrap();
        assert_eq!(device.geometry().capacity, 8192);
        let mut view = device.view_mut(4096, 4096).unwrap();
        view.as_mut_slice().fill(3);
        drop(view);
        let view = device.view(4096, 4096).unwrap();
        assert_eq!(view.as_slice(), [3; 4096]);
        assert_eq!((device.kind(), device.name()), (Kind::Memory, "memory"));
    }
}
