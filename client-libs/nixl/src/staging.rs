//! Pinned memory between GPUs and the network.
//!
//! ```text
//!   read    wire ──► slots ──► GPU            write    GPU ──► slots ──► wire
//! ```
//!
//! Slots are pinned when the first transfer needs them and kept. A call takes all that it needs at once or
//! waits, so two calls never wait for each other's; what needs more than there are has been refused.

use std::sync::{Condvar, Mutex, PoisonError};

use crate::device::{Device, DeviceError};
use crate::memory::Region;
use crate::settings::StagingSize;

/// See the module.
pub(crate) struct Staging {
    device: &'static dyn Device,
    size: StagingSize,
    /// Whether there are any yet. Who could get none leaves it to the next to try.
    is_pinned: Mutex<bool>,
    free: Mutex<Vec<Region>>,
    returned: Condvar,
}

/// Slots in use.
pub(crate) struct Slots<'a> {
    staging: &'a Staging,
    taken: Vec<Region>,
}

impl Staging {
    /// Takes no memory yet.
    pub fn new(device: &'static dyn Device, size: StagingSize) -> Staging {
        let (free, returned) = (Mutex::default(), Condvar::new());
        Staging { device, size, is_pinned: Mutex::default(), free, returned }
    }

    /// What moves bytes to and from GPUs.
    pub fn device(&self) -> &'static dyn Device {
        self.device
    }

    /// Bytes of a slot.
    pub fn slot(&self) -> usize {
        self.size.slot
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.size.total / self.size.slot
    }

    /// How many it takes for so many bytes.
    pub fn needed(&self, bytes: u64) -> usize {
        usize::try_from(bytes.div_ceil(self.size.slot as u64)).unwrap_or(usize::MAX)
    }

    /// Takes so many for a transfer of this GPU, and waits until they are free.
    pub fn take(&self, gpu: u64, count: usize) -> Result<Slots<'_>, DeviceError> {
        assert!(count <= self.count(), "what needs more was refused");
        self.pin(gpu)?;
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let few = |free: &mut Vec<Region>| free.len() < count;
        let waited = self.returned.wait_while(free, few);
        let mut free = waited.unwrap_or_else(PoisonError::into_inner);
        let at = free.len() - count;
        Ok(Slots { staging: self, taken: free.split_off(at) })
    }

    fn pin(&self, gpu: u64) -> Result<(), DeviceError> {
        let mut is_pinned = self.is_pinned.lock().unwrap_or_else(PoisonError::into_inner);
        if *is_pinned {
            return Ok(());
        }
        let whole = self.device.pinned(gpu, self.count() * self.size.slot)?;
        let slots = (0..self.count()).map(|at| whole.part(at * self.size.slot, self.size.slot));
        self.free.lock().unwrap_or_else(PoisonError::into_inner).extend(slots);
        *is_pinned = true;
        Ok(())
    }
}

impl Slots<'_> {
    /// The memory.
    pub fn regions(&self) -> &[Region] {
        &self.taken
    }
}

impl Drop for Slots<'_> {
    fn drop(&mut self) {
        let mut free = self.staging.free.lock().unwrap_or_else(PoisonError::into_inner);
        free.append(&mut self.taken);
        self.staging.returned.notify_all();
    }
}
