//! Memory that driver and controller share: rings, lists of pages, pages of answers.
//!
//! The controller may write it at any time, so it is never a Rust reference: whole words go in and out
//! by volatile accesses, at places that are checked.

use std::ptr::NonNull;

use memkv_dma::{Arena, DmaBuf};

use crate::transport::Window;

/// Where rings begin: the largest page that a controller may ask for.
pub(crate) const ALIGNMENT: usize = 64 * 1024;

/// A stretch of memory that the controller sees, for one owner. What lies in it at first is left over.
pub(crate) struct Area {
    /// Held for its memory; no slice is ever made of it.
    buffer: DmaBuf,
    iova: u64,
}

impl Area {
    /// Lends `len` bytes of the arena that `window` shows to the controller.
    pub fn new(arena: &Arena, window: &Window, offset: usize, len: usize) -> Area {
        let buffer = arena.lend_mut(offset as u64, len);
        let iova = window.iova(buffer.as_ptr() as usize, len).expect("the arena is mapped");
        assert!(iova.is_multiple_of(ALIGNMENT as u64), "queues begin at pages of the controller");
        Area { buffer, iova }
    }

    /// Where the controller sees the byte at `offset`.
    pub fn iova(&self, offset: usize) -> u64 {
        assert!(offset < self.buffer.len(), "{offset} is outside of the area");
        self.iova + offset as u64
    }

    /// The memory from `offset` on, `len` bytes of it.
    pub fn at(&mut self, offset: usize, len: usize) -> NonNull<u8> {
        let fits = offset.checked_add(len).is_some_and(|end| end <= self.buffer.len());
        assert!(fits, "{len} bytes at {offset} are outside of the area");
        let start = NonNull::new(self.buffer.as_mut_ptr()).expect("memory is never at null");
        // SAFETY: just checked: inside of the buffer.
        unsafe { start.add(offset) }
    }

    /// Zeroes whole words.
    pub fn zero(&mut self, offset: usize, len: usize) {
        assert!(offset.is_multiple_of(8) && len.is_multiple_of(8), "whole words");
        for at in (offset..offset + len).step_by(8) {
            let word = self.at(at, 8).cast::<u64>();
            // SAFETY: aligned (the area is, to 64 KiB) and inside of the buffer that this area owns;
            // the controller does not use what is zeroed: it is disabled, or was not told of it yet.
            unsafe { word.write_volatile(0) };
        }
    }

    /// Copies a page of the controller's out.
    pub fn copy<const LEN: usize>(&mut self, offset: usize) -> [u8; LEN] {
        let mut copy = [0; LEN];
        for (i, bytes) in copy.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let word = self.at(offset + 8 * i, 8).cast::<u64>();
            // SAFETY: aligned and inside of the buffer. The controller has completed the command that
            // fills it; should a broken one write on, a volatile read of a word is still some word.
            *bytes = unsafe { word.read_volatile() }.to_ne_bytes();
        }
        copy
    }

    /// Keeps the memory from ever being used again: the controller may still write it.
    pub fn leak(self) {
        std::mem::forget(self.buffer);
    }
}
