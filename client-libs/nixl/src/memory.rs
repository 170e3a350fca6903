//! Memory of NIXL's user: where addresses become slices.
//!
//! NIXL gives addresses and lengths. That they are memory, and stay so until the transfer is done or released,
//! is its user's promise; that nobody here touches it afterwards is ours, kept by the transfer's gate.

#![allow(unsafe_code)]

use std::ptr::NonNull;

/// Memory that transfers may use.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Region {
    first: NonNull<u8>,
    length: usize,
}

// SAFETY: it is an address and a length, and the right to use what is there is bound to no thread.
unsafe impl Send for Region {}
// SAFETY: as above; two threads that use one region use different parts of it (a plan gives every byte to one
// piece), which their callers promise.
unsafe impl Sync for Region {}

impl Region {
    /// Of what NIXL gave; `None` when no memory can be there.
    pub fn new(address: usize, length: usize) -> Option<Region> {
        let end = address.checked_add(length).filter(|_| isize::try_from(length).is_ok());
        let first = NonNull::new(address as *mut u8)?;
        end.map(|_| Region { first, length })
    }

    /// Where it begins.
    pub fn address(&self) -> usize {
        self.first.as_ptr() as usize
    }

    /// A part of it.
    pub fn part(&self, start: usize, length: usize) -> Region {
        let fits = start.checked_add(length).is_some_and(|end| end <= self.length);
        assert!(fits, "a part lies in its region");
        let first = (self.address() + start) as *mut u8;
        Region { first: NonNull::new(first).expect("it lies behind one that is not NULL"), length }
    }

    /// Bytes to read, from `start` on.
    ///
    /// # Safety
    /// They are there and nobody changes them for as long as `'a`.
    pub unsafe fn bytes<'a>(&self, start: usize) -> &'a [u8] {
        assert!(start <= self.length, "a piece lies in its region");
        // SAFETY: the caller's promise, and the length was checked.
        unsafe { std::slice::from_raw_parts(self.first.as_ptr().add(start), self.length - start) }
    }

    /// Bytes to fill, from `start` on.
    ///
    /// # Safety
    /// They are there and nobody else uses them for as long as `'a`.
    pub unsafe fn bytes_mut<'a>(&self, start: usize) -> &'a mut [u8] {
        assert!(start <= self.length, "a piece lies in its region");
        let length = self.length - start;
        // SAFETY: the caller's promise, and the length was checked.
        unsafe { std::slice::from_raw_parts_mut(self.first.as_ptr().add(start), length) }
    }

    /// Copies bytes of another region.
    ///
    /// # Safety
    /// Both are there, and nobody else uses either meanwhile.
    pub unsafe fn copy_from(&self, place: usize, other: &Region, start: usize, length: usize) {
        assert!(place + length <= self.length, "the copy fits");
        assert!(start + length <= other.length, "there is so much to copy");
        // SAFETY: the caller's promise, and the lengths were checked. They may overlap, for all that copies.
        unsafe {
            let from = other.first.as_ptr().add(start);
            std::ptr::copy(from, self.first.as_ptr().add(place), length);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_memory_can_be_is_refused() {
        assert!(Region::new(0, 1).is_none());
        assert!(Region::new(1, usize::MAX).is_none());
        assert!(Region::new(usize::MAX, 2).is_none());
        assert!(Region::new(4096, 16).is_some());
    }

    #[test]
    fn bytes_are_found_from_their_start_on() {
        let mut memory = [1_u8, 2, 3, 4];
        let mut other = [0_u8; 4];
        let region = Region::new(memory.as_mut_ptr() as usize, 4).expect("memory");
        let second = Region::new(other.as_mut_ptr() as usize, 4).expect("memory");
        // SAFETY: both are there, and used here only.
        unsafe {
            assert_eq!(region.bytes(2), [3, 4]);
            region.bytes_mut(3)[0] = 9;
            second.copy_from(1, &region, 1, 3);
            assert_eq!(second.bytes(0), [0, 2, 3, 9]);
        }
        assert_eq!(region.address(), memory.as_ptr() as usize);
    }
}
