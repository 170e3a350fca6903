//! Other Unix systems: files work, without direct I/O, without holes and without preallocation. Block
//! devices are not offered there.

use std::fs::File;
use std::io;

/// No such flag.
pub(crate) const O_DIRECT: Option<i32> = None;

/// No such flag.
pub(crate) const O_CLAIM: i32 = 0;

/// What direct I/O on a file asks for.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) struct DirectAlignment {
    /// Grain of addresses in memory, in bytes.
    pub memory: u32,
    /// Grain of offsets and lengths, in bytes.
    pub offset: u32,
}

pub(crate) fn direct_alignment(_file: &File) -> Option<DirectAlignment> {
    None
}

pub(crate) fn free_bytes(_file: &File) -> Option<u64> {
    None
}

pub(crate) fn block_device_size(_file: &File) -> io::Result<u64> {
    Err(io::ErrorKind::Unsupported.into())
}

pub(crate) fn block_device_sector(_file: &File) -> io::Result<u32> {
    Err(io::ErrorKind::Unsupported.into())
}

pub(crate) fn discard(_file: &File, _offset: u64, _len: u64) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

pub(crate) fn punch_hole(_file: &File, _offset: u64, _len: u64) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

pub(crate) fn allocate(_file: &File, _offset: u64, _len: u64) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

pub(crate) fn run_anywhere() -> io::Result<()> {
    Ok(())
}
