//! How a controller is reached: its registers, and memory that it can see.
//!
//! The driver knows no PCI and no VFIO. It is given a mapping of the controller's registers (its BAR 0
//! and 1) and a way to make memory visible to it; a model of a controller gives it the same.

use std::io;
use std::os::fd::RawFd;
use std::ptr::NonNull;

use memkv_dma::Memory;

/// The registers of a controller where they are mapped (NVM Express Base Specification, controller
/// properties; over PCIe they lie in BAR 0).
#[derive(Copy, Clone, Debug)]
pub struct Bar {
    /// Their first byte, at a page boundary.
    pub base: NonNull<u8>,
    /// Bytes that are mapped: the properties and all doorbells that are used.
    pub len: usize,
}

/// Memory of this process as a controller sees it: one stretch, at one distance.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Window {
    /// The address of its first byte in this process.
    pub base: usize,
    /// Its length in bytes.
    pub len: usize,
    /// The address of its first byte for the controller, as aligned as `base`, at least to 2 MiB.
    pub iova: u64,
}

impl Window {
    /// Where the controller sees `start .. start + len`, if all of that lies in the window.
    #[inline]
    pub fn iova(&self, start: usize, len: usize) -> Option<u64> {
        let at = start.wrapping_sub(self.base);
        (at < self.len && len <= self.len - at).then(|| self.iova + at as u64)
    }
}

/// The way to one controller.
///
/// # Safety
/// Who implements it promises, for as long as the value lives: the [`Transport::bar`] is mapped, and
/// volatile reads and writes of its aligned words reach the controller or, once that is gone, nobody;
/// memory that was [mapped](Transport::map) stays mapped in this process, and the controller reaches it
/// at the addresses told and reaches nothing else of this process.
pub unsafe trait Transport: Send + Sync {
    /// What the controller is called: its PCI address.
    fn name(&self) -> &str;

    /// In words, how it is reached, for the log and the status page.
    fn reason(&self) -> String;

    /// Its registers.
    fn bar(&self) -> Bar;

    /// Makes memory visible to the controller, for as long as this value lives.
    fn map(&self, memory: Memory) -> io::Result<Window>;

    /// Cuts the controller off from all memory; true when it is certain that it reaches none any more.
    /// It cannot be used afterwards.
    fn cut_off(&self) -> bool;

    /// Whether the system wants the controller back since this was last asked: it is about to be removed,
    /// or to be given to another driver, which waits until it is let go.
    fn is_recalled(&self) -> bool {
        false
    }

    /// A descriptor that becomes readable when the controller raises interrupt `vector`; none where
    /// there are no interrupts, or not so many.
    fn interrupt(&self, vector: u16) -> Option<RawFd>;

    /// Takes back what made that descriptor readable.
    fn quiet(&self, vector: u16);

    /// Called between two looks at a controller that is waited for at start or at the end: lets some
    /// microseconds pass. Never called by a reactor that runs.
    fn pause(&self);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_translates_what_lies_in_it_and_nothing_else() {
        let window = Window { base: 0x20_0000, len: 0x1000, iova: 0x8000_0000 };
        assert_eq!(window.iova(0x20_0000, 0x1000), Some(0x8000_0000));
        assert_eq!(window.iova(0x20_0ff0, 0x10), Some(0x8000_0ff0));
        for (start, len) in [(0x20_0ff0, 0x11), (0x20_1000, 0), (0x1f_ffff, 2), (0, usize::MAX)] {
            assert_eq!(window.iova(start, len), None, "{len} bytes at {start:#x}");
        }
    }
}
