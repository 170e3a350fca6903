//! What a controller sees of its host: registers that the host writes, and memory at addresses that it
//! was told of.

use std::ptr::NonNull;

use memkv_dma::{Arena, DmaBuf, Hugepages, Memory};

use super::ModelConfig;
use crate::transport::{Bar, Window};

/// Bytes of the registers.
pub(super) const BAR: usize = 64 * 1024;

const DOORBELLS: usize = 0x1000;

/// The address of the first memory that is made visible. Not where it lies: nobody can mix them up.
const FIRST_IOVA: u64 = 0x10_0000_0000;

pub(super) struct Host {
    /// The registers. Both sides use volatile accesses.
    bar: DmaBuf,
    windows: Vec<Window>,
    /// Keeps what is visible.
    memory: Vec<Memory>,
    next_iova: u64,
    /// Nothing is visible any more.
    pub cut: bool,
    /// Bytes of a page, as CC says.
    pub page: u64,
    pub stride: usize,
}

// SAFETY: pointers into memory that the host keeps; it is used by one thread at a time, under the lock of
// the model.
unsafe impl Send for Host {}

impl Host {
    pub fn new() -> Host {
        let arena = Arena::new(BAR as u64, Hugepages::Never).expect("64 KiB of memory");
        Host {
            bar: arena.lend_mut(0, BAR),
            windows: Vec::new(),
            memory: Vec::new(),
            next_iova: FIRST_IOVA,
            cut: false,
            page: 4096,
            stride: 4,
        }
    }

    pub fn bar(&mut self) -> Bar {
        let base = NonNull::new(self.bar.as_mut_ptr()).expect("memory is never at null");
        Bar { base, len: BAR }
    }

    pub fn map(&mut self, memory: Memory) -> Window {
        let regions = memory.regions();
        let base = regions[0].0.as_ptr() as usize;
        let len = regions.iter().map(|region| region.1).sum();
        let window = Window { base, len, iova: self.next_iova };
        // A gap, so that who runs over the end hits nothing.
        self.next_iova += (len as u64).next_multiple_of(1 << 30) + (1 << 30);
        self.windows.push(window);
        self.memory.push(memory);
        window
    }

    /// Nobody uses it: no memory is visible, and the registers are as at the beginning.
    pub fn forget(&mut self, config: &ModelConfig) {
        self.windows.clear();
        self.memory.clear();
        self.cut = false;
        (0..BAR).step_by(4).for_each(|at| self.write(at, 0));
        self.set_registers(config);
    }

    fn register(&self, at: usize) -> *mut u32 {
        assert!(at + 4 <= BAR && at.is_multiple_of(4), "a register");
        self.bar.as_ptr().wrapping_add(at).cast_mut().cast()
    }

    fn read(&self, at: usize) -> u32 {
        // SAFETY: inside of the registers, which this value holds; both sides use volatile accesses.
        unsafe { self.register(at).read_volatile() }
    }

    fn write(&self, at: usize, value: u32) {
        // SAFETY: as in `read`.
        unsafe { self.register(at).write_volatile(value) };
    }

    /// Sets what a host reads: CAP, VS, CSTS.
    pub fn set_registers(&mut self, config: &ModelConfig) {
        self.stride = 4 << config.stride;
        let capabilities = u64::from(config.entries - 1)
            | 1 << 16
            | u64::from(config.timeout) << 24
            | u64::from(config.stride) << 32
            | 1 << 37
            | u64::from(config.page_bits - 12) << 48
            | 4 << 52;
        self.write(0x00, capabilities as u32);
        self.write(0x04, (capabilities >> 32) as u32);
        self.write(0x08, 0x0001_0400);
        self.set_status(0);
    }

    /// Sets whatever register.
    pub fn set_register(&mut self, at: usize, value: u32) {
        self.write((at % BAR) & !3, value);
    }

    pub fn configuration(&self) -> u32 {
        self.read(0x14)
    }

    pub fn set_status(&self, value: u32) {
        self.write(0x1c, value);
    }

    pub fn is_shut_down(&self) -> bool {
        self.read(0x1c) >> 2 & 3 == 2
    }

    /// Entries of the admin queues and where they lie: submission, completion.
    pub fn admin_queues(&self) -> ((u16, u64), (u16, u64)) {
        let wide = |at| u64::from(self.read(at)) | u64::from(self.read(at + 4)) << 32;
        let sizes = self.read(0x24);
        let entries = |size: u32| (size & 0xfff) as u16 + 1;
        ((entries(sizes), wide(0x28)), (entries(sizes >> 16), wide(0x30)))
    }

    /// The doorbell of a queue: of its submissions, or of its completions.
    pub fn doorbell(&self, queue: u16, completions: bool) -> u32 {
        self.read(DOORBELLS + (2 * usize::from(queue) + usize::from(completions)) * self.stride)
    }

    /// What a queue was told is nothing to the next one of its number.
    pub fn clear_doorbell(&self, queue: u16, completions: bool) {
        let n = 2 * usize::from(queue) + usize::from(completions);
        self.write(DOORBELLS + n * self.stride, 0);
    }

    pub fn clear_doorbells(&self) {
        (DOORBELLS..BAR).step_by(4).for_each(|at| self.write(at, 0));
    }

    /// What is read of a drive that is gone.
    pub fn fill_registers(&self) {
        (0..BAR).step_by(4).for_each(|at| self.write(at, u32::MAX));
    }

    /// The memory at an address, if all of it was made visible.
    fn resolve(&self, iova: u64, len: usize) -> Option<*mut u8> {
        let window = self.windows.iter().find(|window| {
            iova.checked_sub(window.iova)
                .and_then(|at| at.checked_add(len as u64))
                .is_some_and(|end| end <= window.len as u64)
        })?;
        let start = window.base as u64 + (iova - window.iova);
        (!self.cut).then_some(start as usize as *mut u8)
    }

    /// Copies from the host's memory; false when it is not visible.
    pub fn fetch(&self, iova: u64, into: &mut [u8]) -> bool {
        let Some(from) = self.resolve(iova, into.len()) else { return false };
        // SAFETY: mapped memory, which `memory` keeps. The driver does not write it while a command names
        // it, as no host may; `into` is elsewhere.
        unsafe { std::ptr::copy_nonoverlapping(from, into.as_mut_ptr(), into.len()) };
        true
    }

    /// Copies into the host's memory; false when it is not visible.
    pub fn store(&self, iova: u64, from: &[u8]) -> bool {
        let Some(into) = self.resolve(iova, from.len()) else { return false };
        // SAFETY: as in `fetch`; the driver does not use the memory while a command names it.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), into, from.len()) };
        true
    }

    /// Posts an entry of a completion queue: its last word, which has the phase, at last.
    pub fn post(&self, iova: u64, words: [u32; 4]) -> bool {
        let Some(entry) = self.resolve(iova, 16) else { return false };
        for (i, word) in words.into_iter().enumerate() {
            if i == 3 {
                std::sync::atomic::fence(std::sync::atomic::Ordering::Release);
            }
            // SAFETY: the aligned words of an entry in mapped memory; the driver reads them by
            // volatile accesses.
            unsafe { entry.cast::<u32>().add(i).write_volatile(word) };
        }
        true
    }

    /// A word of the host's memory.
    pub fn fetch_word(&self, iova: u64) -> Option<u64> {
        let mut bytes = [0; 8];
        self.fetch(iova, &mut bytes).then(|| u64::from_le_bytes(bytes))
    }
}
