//! Memory of Python's, read and written where it is.
//!
//! A buffer is an object with the buffer protocol, or a pair `(address, length)` for memory that Python has
//! no object for (an engine's arena, a tensor). Of an object its memory is held until the call, or the
//! completion of a batch, is over. Of an address the caller promises that.

#![allow(unsafe_code)]

use std::ptr::NonNull;

use pyo3::buffer::PyUntypedBuffer;
use pyo3::exceptions::{PyBufferError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyTuple;

/// A piece of memory.
pub struct Memory {
    /// Not null; anything when `length` is 0.
    address: NonNull<u8>,
    length: usize,
    /// Keeps the memory where it is; `None` when the caller does.
    _owner: Option<PyUntypedBuffer>,
}

// SAFETY: it is an address and the right to use what is there, which is bound to no thread; its owner is
// Send. Whoever hands memory to a call promises (see the module) that nobody else changes it meanwhile.
unsafe impl Send for Memory {}
// SAFETY: shared, it is only read.
unsafe impl Sync for Memory {}

impl Memory {
    /// For reading.
    ///
    /// # Errors
    /// What is wrong with the object.
    pub fn readable(object: &Bound<'_, PyAny>) -> PyResult<Memory> {
        Memory::of(object, false)
    }

    /// For writing.
    ///
    /// # Errors
    /// What is wrong with the object, such as that it is read-only.
    pub fn writable(object: &Bound<'_, PyAny>) -> PyResult<Memory> {
        Memory::of(object, true)
    }

    fn of(object: &Bound<'_, PyAny>, writable: bool) -> PyResult<Memory> {
        if let Ok(pair) = object.cast::<PyTuple>() {
            return Memory::at(pair);
        }
        let buffer = PyUntypedBuffer::get(object).map_err(|cause| {
            let kind = object.get_type().name().map(|name| name.to_string()).unwrap_or_default();
            let error = PyTypeError::new_err(format!(
                "{kind} is no buffer: give an object with the buffer protocol, or (address, length)"
            ));
            error.set_cause(object.py(), Some(cause));
            error
        })?;
        if !buffer.is_c_contiguous() {
            return Err(PyBufferError::new_err("a buffer must be C-contiguous"));
        }
        if writable && buffer.readonly() {
            return Err(PyBufferError::new_err("a buffer to read into must be writable"));
        }
        let length = buffer.len_bytes();
        let address = NonNull::new(buffer.buf_ptr().cast());
        Ok(Memory { address: address.unwrap_or(NonNull::dangling()), length, _owner: Some(buffer) })
    }

    /// An address and a length.
    fn at(pair: &Bound<'_, PyTuple>) -> PyResult<Memory> {
        let (address, length): (usize, usize) = pair.extract()?;
        if length > isize::MAX as usize || address.checked_add(length).is_none() {
            return Err(PyValueError::new_err("no memory has this address and length"));
        }
        match NonNull::new(address as *mut u8) {
            Some(address) => Ok(Memory { address, length, _owner: None }),
            None if length == 0 => {
                Ok(Memory { address: NonNull::dangling(), length, _owner: None })
            }
            None => Err(PyValueError::new_err("the address of a buffer is 0")),
        }
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.length
    }

    fn start(&self) -> usize {
        self.address.as_ptr() as usize
    }
}

impl AsRef<[u8]> for Memory {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: the memory is `length` bytes at `address`, held by the owner or, by the contract of the
        // module, by the caller, who also promises not to change it meanwhile. A length of an object's fits
        // into an isize, that of an address was checked.
        unsafe { std::slice::from_raw_parts(self.address.as_ptr(), self.length) }
    }
}

impl AsMut<[u8]> for Memory {
    fn as_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above; it is writable (checked, or the caller's word), and no other buffer of the call
        // overlaps it (`disjoint`).
        unsafe { std::slice::from_raw_parts_mut(self.address.as_ptr(), self.length) }
    }
}

/// Refuses buffers that overlap: two answers would be written over each other.
///
/// # Errors
/// Names the two.
pub fn disjoint(buffers: &[Memory]) -> PyResult<()> {
    let mut order: Vec<usize> = (0..buffers.len()).filter(|at| buffers[*at].len() > 0).collect();
    order.sort_unstable_by_key(|at| buffers[*at].start());
    for pair in order.windows(2) {
        let (first, second) = (pair[0], pair[1]);
        if buffers[first].start() + buffers[first].len() > buffers[second].start() {
            let (a, b) = (first.min(second), first.max(second));
            return Err(PyValueError::new_err(format!("buffers {a} and {b} overlap")));
        }
    }
    Ok(())
}
