//! Memory of both sides: the caller's pointers as slices, and blocks of malloc's for the caller to free.
//!
//! What can be checked is checked (NULL where there is a length, lengths that no object has). That a pointer
//! points to what it should is the caller's promise, made in the header.

#![allow(unsafe_code)]

use std::ffi::{CStr, c_char};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use crate::error::StoreError;

/// Bytes to read.
///
/// # Safety
/// `data` points to `length` bytes that nobody changes for as long as `'a`.
pub(crate) unsafe fn bytes<'a>(data: *const u8, length: usize) -> Result<&'a [u8], StoreError> {
    if length == 0 {
        return Ok(&[]);
    }
    if data.is_null() || isize::try_from(length).is_err() {
        return Err(StoreError::Invalid("a pointer is NULL, or a length is none"));
    }
    // SAFETY: it is not null, of a length that an object can have, and the rest is the caller's promise.
    Ok(unsafe { std::slice::from_raw_parts(data, length) })
}

/// The bytes of a text.
///
/// # Safety
/// `text` is NULL, or ends with a NUL and does not change for as long as `'a`.
pub(crate) unsafe fn text<'a>(text: *const c_char) -> Result<&'a [u8], StoreError> {
    if text.is_null() {
        return Err(StoreError::Invalid("a name is NULL"));
    }
    // SAFETY: the caller's promise.
    Ok(unsafe { CStr::from_ptr(text) }.to_bytes())
}

/// What the caller has of us.
///
/// # Safety
/// `handle` is NULL, or was made by [`lend`] and not taken back yet.
pub(crate) unsafe fn handle<'a, T>(handle: *const T) -> Result<&'a T, StoreError> {
    // SAFETY: the caller's promise; it is only ever shared.
    unsafe { handle.as_ref() }.ok_or(StoreError::Invalid("the handle is NULL"))
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

/// Where the caller wants a block, and its length.
pub(crate) struct Out {
    data: NonNull<*mut u8>,
    length: NonNull<usize>,
}

impl Out {
    /// Both places; they say that there is nothing, until there is.
    ///
    /// # Safety
    /// Both are NULL, or room for what they are of for as long as this lives.
    pub unsafe fn new(data: *mut *mut u8, length: *mut usize) -> Result<Out, StoreError> {
        match (NonNull::new(data), NonNull::new(length)) {
            (Some(data), Some(length)) => {
                // SAFETY: they are not null, and the rest is the caller's promise.
                unsafe {
                    data.write(std::ptr::null_mut());
                    length.write(0);
                }
                Ok(Out { data, length })
            }
            _ => Err(StoreError::Invalid("there is no place for the answer")),
        }
    }

    /// The block is the caller's now.
    pub fn give(self, block: Block) {
        let block = std::mem::ManuallyDrop::new(block);
        // SAFETY: there is room (the promise under which this was made).
        unsafe {
            self.data.write(block.first.as_ptr());
            self.length.write(block.length);
        }
    }
}

/// Memory of malloc's.
pub(crate) struct Block {
    first: NonNull<u8>,
    length: usize,
}

// SAFETY: it owns its memory, which is bound to no thread.
unsafe impl Send for Block {}

impl Block {
    /// Bytes that are all 0.
    pub fn zeroed(length: usize) -> Result<Block, StoreError> {
        // SAFETY: calloc takes any numbers; of none it may give NULL, so it is asked for one at least.
        let first = unsafe { libc::calloc(length.max(1), 1) };
        let first = NonNull::new(first.cast()).ok_or(StoreError::Memory)?;
        Ok(Block { first, length })
    }

    /// A copy.
    pub fn copy(bytes: &[u8]) -> Result<Block, StoreError> {
        let mut block = Block::zeroed(bytes.len())?;
        block.copy_from_slice(bytes);
        Ok(block)
    }

    /// Forgets what is behind `length`.
    pub fn truncate(&mut self, length: usize) {
        self.length = self.length.min(length);
    }
}

impl Deref for Block {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: there are as many bytes, all of them written to once at least, and they are ours.
        unsafe { std::slice::from_raw_parts(self.first.as_ptr(), self.length) }
    }
}

impl DerefMut for Block {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and nobody else has them.
        unsafe { std::slice::from_raw_parts_mut(self.first.as_ptr(), self.length) }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: calloc gave it, and nobody else has it.
        unsafe { libc::free(self.first.as_ptr().cast()) };
    }
}
