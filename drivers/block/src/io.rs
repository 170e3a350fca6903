//! What a queue is asked, and what it answers.

use std::io;
use std::time::Duration;

use memkv_dma::{DmaBuf, DmaRef};

/// What to do.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub enum Op {
    /// Fill the buffer from the device.
    Read,
    /// Put the buffer's bytes onto the device.
    Write,
    /// Make every write that has completed durable.
    Flush,
    /// Put the buffer's bytes onto the device and make them durable, and with them every write that
    /// had completed when this was submitted, by whatever queue: a [`Op::Write`] and, once it is done, a
    /// [`Op::Flush`], in one command. To write through the device's cache (`RWF_DSYNC`, the FUA bit)
    /// would not do by itself: that makes these bytes durable, and leaves in the cache what completed
    /// before. A device that has both may write through and flush at once, for until the command is done
    /// nothing is promised: any part of the bytes may be durable, or none, with or without what came
    /// before.
    WriteFlush,
    /// The range holds nothing any more; what a read of it returns afterwards is not defined. Where
    /// the device or file system cannot do it, the answer is [`IoError::Unsupported`].
    Deallocate,
}

impl Op {
    /// Whether the buffer's bytes go onto the device.
    pub fn writes(self) -> bool {
        matches!(self, Op::Write | Op::WriteFlush)
    }
}

/// A buffer that travels with a command.
#[derive(Debug)]
pub enum IoBuf {
    /// The command's alone: for reads, and for writes whose buffer is reused afterwards.
    Exclusive(DmaBuf),
    /// Shared with other readers: for writes only.
    Shared(DmaRef),
}

impl IoBuf {
    /// Length in bytes.
    #[allow(clippy::len_without_is_empty, reason = "an empty buffer carries no command")]
    pub fn len(&self) -> usize {
        match self {
            IoBuf::Exclusive(b) => b.len(),
            IoBuf::Shared(b) => b.len(),
        }
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        match self {
            IoBuf::Exclusive(b) => b.as_slice(),
            IoBuf::Shared(b) => b.as_slice(),
        }
    }

    /// Address of the first byte, valid while the buffer is held.
    pub fn as_ptr(&self) -> *const u8 {
        match self {
            IoBuf::Exclusive(b) => b.as_ptr(),
            IoBuf::Shared(b) => b.as_ptr(),
        }
    }

    /// The exclusive buffer in it, if it is one.
    pub fn into_exclusive(self) -> Option<DmaBuf> {
        match self {
            IoBuf::Exclusive(b) => Some(b),
            IoBuf::Shared(_) => None,
        }
    }
}

impl From<DmaBuf> for IoBuf {
    fn from(buffer: DmaBuf) -> IoBuf {
        IoBuf::Exclusive(buffer)
    }
}

impl From<DmaRef> for IoBuf {
    fn from(buffer: DmaRef) -> IoBuf {
        IoBuf::Shared(buffer)
    }
}

/// One command.
#[derive(Debug)]
pub struct Io {
    /// What to do.
    pub op: Op,
    /// First byte on the device, a multiple of the sector. 0 for a flush.
    pub offset: u64,
    /// Bytes, a positive multiple of the sector. 0 for a flush.
    pub len: u64,
    /// The buffer of a read or write.
    pub buf: Option<IoBuf>,
    /// Where in the buffer the bytes are or go: `buf_at .. buf_at + len`. The address it makes must be
    /// a multiple of 512.
    pub buf_at: usize,
}

impl Io {
    /// Fills `buf[0..len]` from `offset`.
    pub fn read(offset: u64, len: usize, buf: DmaBuf) -> Io {
        Io { op: Op::Read, offset, len: len as u64, buf: Some(buf.into()), buf_at: 0 }
    }

    /// Puts `buf[0..len]` at `offset`.
    pub fn write(offset: u64, len: usize, buf: impl Into<IoBuf>) -> Io {
        Io { op: Op::Write, offset, len: len as u64, buf: Some(buf.into()), buf_at: 0 }
    }

    /// Puts `buf[0..len]` at `offset`, and makes that and all completed writes durable.
    pub fn write_flush(offset: u64, len: usize, buf: impl Into<IoBuf>) -> Io {
        Io { op: Op::WriteFlush, ..Io::write(offset, len, buf) }
    }

    /// Makes completed writes durable.
    pub fn flush() -> Io {
        Io { op: Op::Flush, offset: 0, len: 0, buf: None, buf_at: 0 }
    }

    /// Gives a range back to the device.
    pub fn deallocate(offset: u64, len: u64) -> Io {
        Io { op: Op::Deallocate, offset, len, buf: None, buf_at: 0 }
    }

    /// Moves the place in the buffer.
    pub fn at(self, buf_at: usize) -> Io {
        Io { buf_at, ..self }
    }
}

/// The end of a command.
#[derive(Debug)]
pub struct Done {
    /// Whether it was done. After an error a range that was to be written or read may be half done.
    pub result: Result<(), IoError>,
    /// The buffer the command came with; none when the drive stalled and still has it.
    pub buf: Option<IoBuf>,
}

impl Done {
    /// The end of `io`.
    pub fn of(io: Io, result: Result<(), IoError>) -> Done {
        Done { result, buf: io.buf }
    }
}

/// Why a command was not done.
#[derive(Debug, thiserror::Error)]
pub enum IoError {
    /// Offset, length or address do not lie on the device's grain, or the length is 0.
    #[error(
        "{len} bytes at {offset} (in memory at {buf_at} of the buffer) are not on the grain of {grain} bytes"
    )]
    Misaligned {
        /// Offset asked for.
        offset: u64,
        /// Length asked for.
        len: u64,
        /// Place in the buffer.
        buf_at: usize,
        /// The grain that was missed.
        grain: u32,
    },
    /// The range ends behind the end of the device.
    #[error("{len} bytes at {offset} end behind the device's {capacity} bytes")]
    OutOfRange {
        /// Offset asked for.
        offset: u64,
        /// Length asked for.
        len: u64,
        /// Bytes of the device.
        capacity: u64,
    },
    /// A single read or write is longer than the device takes.
    #[error("{len} bytes are more than the {max} bytes of one transfer")]
    TooLong {
        /// Length asked for.
        len: u64,
        /// The longest transfer.
        max: u32,
    },
    /// The buffer does not fit the command: it is missing, too short, or shared for a read.
    #[error("the buffer does not fit the {op:?} of {len} bytes")]
    WrongBuffer {
        /// The command.
        op: Op,
        /// Length asked for.
        len: u64,
    },
    /// The device moved fewer bytes than asked: the file was truncated underneath.
    #[error("only {got} of {wanted} bytes were moved")]
    Short {
        /// Bytes asked for.
        wanted: u64,
        /// Bytes moved.
        got: u64,
    },
    /// The device cannot do this at all; only a deallocation is answered so.
    #[error("the device knows no {op:?}")]
    Unsupported {
        /// The command.
        op: Op,
    },
    /// The drive refused or failed, with this status: of an NVMe drive the type in bits 10:8 and the code
    /// in bits 7:0 (NVM Express Base Specification, status field definition).
    #[error("the drive answered with status {0:#05x}")]
    Status(u16),
    /// The system refused.
    #[error("the system refused the transfer")]
    Os(#[from] io::Error),
    /// The device is gone, or was taken out of service before the command was done.
    #[error("the device is offline")]
    Offline,
    /// The oldest command has not been answered for so long; the drive is not asked any more. Buffers
    /// of commands that it still has do not come back.
    #[error("the drive has not answered for {} s", .0.as_secs_f32())]
    Stalled(Duration),
    /// A fault that a test asked for.
    #[error("injected: {0}")]
    Injected(&'static str),
}
