//! Memory of the caller: where its pointers become slices.
//!
//! What can be checked is checked: NULL where there is a length, lengths that no object has, pointers that are
//! not aligned, buffers that overlap. That a pointer points to what it should for as long as it must is the
//! caller's promise, made in the first lines of the header.

#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_void};
use std::mem::MaybeUninit;
use std::ptr::NonNull;

use memkv_client::Keys;

use crate::status::Failure;
use crate::types::{memkv_buffer, memkv_bytes};

/// The keys of a batch, taken over: the caller may change his at once.
///
/// # Safety
/// `keys` points to `count` of them, and they to their bytes.
pub(crate) unsafe fn keys(keys: *const memkv_bytes, count: usize) -> Result<Keys, Failure> {
    // SAFETY: the caller's promise.
    let given = unsafe { list("keys", keys, count)? };
    let mut taken = Keys::with_capacity(count, given.first().map_or(0, |key| key.length));
    for key in given {
        // SAFETY: the caller's promise.
        taken.push(unsafe { bytes("a key", key.data, key.length)? }, b"");
    }
    Ok(taken)
}

/// Bytes to read.
///
/// # Safety
/// `data` points to `length` bytes that nobody changes for as long as `'a`.
pub(crate) unsafe fn bytes<'a>(
    what: &str,
    data: *const c_void,
    length: usize,
) -> Result<&'a [u8], Failure> {
    // SAFETY: the caller's promise.
    unsafe { list(what, data.cast(), length) }
}

/// A list to read.
///
/// # Safety
/// `first` points to `count` of them, which nobody changes for as long as `'a`.
pub(crate) unsafe fn list<'a, T>(
    what: &str,
    first: *const T,
    count: usize,
) -> Result<&'a [T], Failure> {
    let first = checked(what, first.cast_mut(), count)?;
    // SAFETY: it is aligned and not null (checked), of a length that an object can have (checked), and what it
    // points to is the caller's promise; where `count` is 0 it may dangle.
    Ok(unsafe { std::slice::from_raw_parts(first.as_ptr(), count) })
}

/// What a pointer to `count` of `T` must have whatever it points to.
fn checked<T>(what: &str, first: *mut T, count: usize) -> Result<NonNull<T>, Failure> {
    let address = first as usize;
    let bytes = count.checked_mul(size_of::<T>()).filter(|bytes| isize::try_from(*bytes).is_ok());
    if count == 0 {
        return Ok(NonNull::dangling());
    }
    let Some(known) = NonNull::new(first) else {
        return Err(Failure::invalid(format!("{what}: NULL")));
    };
    if !address.is_multiple_of(align_of::<T>()) {
        return Err(Failure::invalid(format!("{what}: the pointer is not aligned")));
    }
    match bytes.and_then(|bytes| address.checked_add(bytes)) {
        Some(_) => Ok(known),
        None => Err(Failure::invalid(format!("{what}: no memory is that long"))),
    }
}

/// A place for `count` results, which is only written to.
pub(crate) struct Out<T> {
    first: NonNull<T>,
    count: usize,
}

impl<T> Out<T> {
    /// Of a pointer that may not be NULL.
    ///
    /// # Safety
    /// `first` points to room for `count` of them for as long as this lives.
    pub unsafe fn new(what: &str, first: *mut T, count: usize) -> Result<Out<T>, Failure> {
        Ok(Out { first: checked(what, first, count)?, count })
    }

    /// Of a pointer that may be NULL: then nothing is written.
    ///
    /// # Safety
    /// As [`Out::new`].
    pub unsafe fn optional(what: &str, first: *mut T, count: usize) -> Result<Out<T>, Failure> {
        let count = if first.is_null() { 0 } else { count };
        // SAFETY: the caller's promise.
        unsafe { Out::new(what, first, count) }
    }

    /// Writes one result; nothing where there is no room for it.
    pub fn set(&self, at: usize, value: T) {
        if at < self.count {
            // SAFETY: there is room for `count` of them, aligned (checked when it was made).
            unsafe { self.first.add(at).write(value) };
        }
    }
}

/// A struct whose first field says how much of it the caller knows; the rest is 0.
///
/// # Safety
/// `given` is NULL, or points to as many bytes as its first field, a `usize`, says. All bits 0 are a `T`.
pub(crate) unsafe fn versioned<T: Copy>(what: &str, given: *const T) -> Result<Option<T>, Failure> {
    if given.is_null() {
        return Ok(None);
    }
    // SAFETY: it begins with its size (the caller's promise); whether it is aligned does not matter here.
    let size = unsafe { given.cast::<usize>().read_unaligned() };
    if size < size_of::<usize>() {
        return Err(Failure::invalid(format!("{what}: set its size to sizeof({what})")));
    }
    if size > size_of::<T>() {
        let text = format!("{what}: {size} bytes; this library knows {} of it", size_of::<T>());
        return Err(Failure::invalid(text));
    }
    let mut known = MaybeUninit::<T>::zeroed();
    // SAFETY: both have `size` bytes: the caller's promise, and the comparison above. What is not copied is 0,
    // which by the caller's promise is good for all fields.
    let known = unsafe {
        given.cast::<u8>().copy_to_nonoverlapping(known.as_mut_ptr().cast(), size);
        known.assume_init()
    };
    Ok(Some(known))
}

/// A text of C; `None` for NULL.
///
/// # Safety
/// `text` is NULL, or ends with a NUL.
pub(crate) unsafe fn text(what: &str, text: *const c_char) -> Result<Option<String>, Failure> {
    if text.is_null() {
        return Ok(None);
    }
    // SAFETY: the caller's promise.
    let bytes = unsafe { CStr::from_ptr(text) };
    match bytes.to_str() {
        Ok(text) => Ok(Some(text.to_owned())),
        Err(_) => Err(Failure::invalid(format!("{what}: not UTF-8"))),
    }
}

/// Something that the library made and the caller has.
///
/// # Safety
/// `handle` is NULL, or was made by [`lend`] and not taken back yet.
pub(crate) unsafe fn handle<'a, T>(what: &str, handle: *const T) -> Result<&'a T, Failure> {
    // SAFETY: the caller's promise; it is only ever shared.
    unsafe { handle.as_ref() }.ok_or_else(|| Failure::invalid(format!("{what}: NULL")))
}

/// Gives the caller something to keep.
pub(crate) fn lend<T>(value: T) -> *mut T {
    Box::into_raw(Box::new(value))
}

/// Takes back what the caller had.
///
/// # Safety
/// `lent` is NULL, or was made by [`lend`] and not taken back yet.
pub(crate) unsafe fn take_back<T>(lent: *mut T) -> Option<Box<T>> {
    // SAFETY: the caller's promise.
    (!lent.is_null()).then(|| unsafe { Box::from_raw(lent) })
}

/// Memory of the caller that a call, or a batch until its completion, may use.
pub(crate) struct Region {
    first: NonNull<u8>,
    length: usize,
}

// SAFETY: it is an address and the right to use what is there, which is bound to no thread; the caller
// promises that nobody else changes, or for a buffer reads, it meanwhile.
unsafe impl Send for Region {}

impl Region {
    /// Bytes that will be read.
    ///
    /// # Safety
    /// They are there, and nobody changes them, for as long as this lives.
    pub unsafe fn of_bytes(bytes: memkv_bytes) -> Result<Region, Failure> {
        let first = checked("a value", bytes.data.cast_mut().cast(), bytes.length)?;
        Ok(Region { first, length: bytes.length })
    }

    /// Memory that will be written to.
    ///
    /// # Safety
    /// It is there, and nobody else uses it, for as long as this lives.
    pub unsafe fn of_buffer(buffer: memkv_buffer) -> Result<Region, Failure> {
        let first = checked("a buffer", buffer.data.cast(), buffer.length)?;
        Ok(Region { first, length: buffer.length })
    }

    /// The buffers of a batch, no two of which overlap.
    ///
    /// # Safety
    /// As [`Region::of_buffer`].
    pub unsafe fn of_buffers(
        buffers: *const memkv_buffer,
        count: usize,
    ) -> Result<Vec<Region>, Failure> {
        // SAFETY: the caller's promise.
        let given = unsafe { list("buffers", buffers, count)? };
        // SAFETY: the caller's promise.
        let regions = given.iter().map(|buffer| unsafe { Region::of_buffer(*buffer) });
        let regions: Vec<Region> = regions.collect::<Result<_, _>>()?;
        disjoint(&regions)?;
        Ok(regions)
    }

    fn start(&self) -> usize {
        self.first.as_ptr() as usize
    }
}

impl AsRef<[u8]> for Region {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: the promise made when it was made; pointer and length were checked.
        unsafe { std::slice::from_raw_parts(self.first.as_ptr(), self.length) }
    }
}

impl AsMut<[u8]> for Region {
    fn as_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above; only buffers are used so, and no two of a call overlap.
        unsafe { std::slice::from_raw_parts_mut(self.first.as_ptr(), self.length) }
    }
}

/// Refuses buffers that overlap: two answers would be written over each other.
fn disjoint(regions: &[Region]) -> Result<(), Failure> {
    let mut order: Vec<usize> = (0..regions.len()).filter(|at| regions[*at].length > 0).collect();
    order.sort_unstable_by_key(|at| regions[*at].start());
    for pair in order.windows(2) {
        let (first, second) = (pair[0], pair[1]);
        if regions[first].start() + regions[first].length > regions[second].start() {
            let (a, b) = (first.min(second), first.max(second));
            return Err(Failure::invalid(format!("buffers {a} and {b} overlap")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn null_is_good_for_nothing_but_nothing() {
        let number = 1_u64;
        // One of two neighbours is at an odd address.
        let odd = [0_u8; 2];
        let odd = odd.iter().find(|byte| !(&raw const **byte as usize).is_multiple_of(2));
        let odd = &raw const *odd.expect("one of two");
        // SAFETY: no pointer here is followed.
        unsafe {
            assert_eq!(bytes("x", std::ptr::null(), 0).ok(), Some(&[][..]));
            assert!(bytes("x", std::ptr::null(), 1).is_err());
            assert!(list::<u64>("x", odd.cast(), 1).is_err(), "not aligned");
            let some = b"some";
            assert!(bytes("x", some.as_ptr().cast(), usize::MAX).is_err());
            assert!(bytes("x", some.as_ptr().cast(), isize::MAX as usize + 1).is_err());
            assert!(list("x", &raw const number, usize::MAX / 8).is_err());
        }
    }

    #[test]
    fn buffers_that_overlap_are_refused() {
        let mut room = [0_u8; 16];
        let first = room.as_mut_ptr();
        let buffer =
            |at: usize, length: usize| memkv_buffer { data: first.wrapping_add(at).cast(), length };
        let disjoint = |buffers: &[memkv_buffer]| {
            // SAFETY: none of them is written to.
            unsafe { Region::of_buffers(buffers.as_ptr(), buffers.len()) }.map(|_| ())
        };
        assert!(disjoint(&[buffer(8, 8), buffer(0, 8), buffer(4, 0)]).is_ok());
        let refused = disjoint(&[buffer(8, 8), buffer(12, 1), buffer(0, 8)]);
        assert_eq!(
            refused.err().map(|failure| failure.text),
            Some("buffers 0 and 1 overlap".into())
        );
    }

    #[test]
    fn a_struct_of_another_version_is_read_as_far_as_both_know_it() {
        #[repr(C)]
        #[derive(Clone, Copy)]
        struct Known {
            size: usize,
            old: u64,
            new: u64,
        }
        let read = |size: usize| {
            let given = Known { size, old: 1, new: 2 };
            // SAFETY: it is there, and 0 is good for both fields.
            unsafe { versioned("known", &raw const given) }
        };
        let full = size_of::<Known>();
        let known = read(full).ok().flatten().expect("all of it");
        assert_eq!((known.size, known.old, known.new), (full, 1, 2));
        let known = read(16).ok().flatten().expect("what an old program knows");
        assert_eq!((known.old, known.new), (1, 0));
        assert!(read(full + 1).is_err() && read(0).is_err());
        // SAFETY: NULL is allowed.
        assert!(unsafe { versioned::<Known>("known", std::ptr::null()) }.ok().flatten().is_none());
    }
}
