//! What a request is cut into: one command each.
//!
//! A drive takes so many bytes a command (MDTS) and one list of pages describes so many, while a
//! request may have 4 MiB. So a request is a row of pieces, each in a tracker of its own, all at once if
//! there are trackers for them.

use std::ptr::NonNull;

use memkv_block::{Given, IoError, Op};

use crate::command::{Command, Pointers, range};
use crate::shape::{LIST_ENTRIES, Shape, Trim};

/// Transfers up to this size never wait for large ones: they are somebody's whole answer, or the
/// journal's.
pub(super) const SMALL: u64 = 64 << 10;

/// What one command does.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) enum Verb {
    Read,
    Write,
    Flush,
    /// A write that is durable when it is answered.
    WriteThrough,
    Deallocate,
    Zero,
}

impl Verb {
    /// What carries out a part of `op`, or all of it.
    pub fn of(op: Op, trim: Trim) -> Verb {
        match op {
            Op::Read => Verb::Read,
            Op::Write => Verb::Write,
            Op::WriteFlush => Verb::WriteThrough,
            Op::Flush => Verb::Flush,
            Op::Deallocate if matches!(trim, Trim::Zeroes { .. }) => Verb::Zero,
            Op::Deallocate => Verb::Deallocate,
        }
    }

    /// What the drive is asked for by it.
    #[inline(always)]
    pub fn op(self) -> Op {
        match self {
            Verb::Read => Op::Read,
            Verb::Write => Op::Write,
            Verb::WriteThrough => Op::WriteFlush,
            Verb::Flush => Op::Flush,
            Verb::Deallocate | Verb::Zero => Op::Deallocate,
        }
    }
}

/// The memory of a tracker in which pages or ranges are listed: 4 KiB.
#[derive(Copy, Clone)]
pub(super) struct List {
    pub start: NonNull<u64>,
    /// Where the controller sees it.
    pub iova: u64,
}

/// What one command moves or names: all of a request, or a piece of it.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(super) struct Piece {
    pub verb: Verb,
    /// The first byte on the drive, and how many.
    pub offset: u64,
    pub len: u64,
    /// Where the controller finds the first one in memory, if they move.
    pub iova: u64,
}

impl Piece {
    /// A flush moves nothing.
    pub const FLUSH: Piece = Piece { verb: Verb::Flush, offset: 0, len: 0, iova: 0 };

    /// Its command; what that lists goes to `list`.
    ///
    /// # Safety
    /// `list` is 4 KiB of memory, aligned to that, that no controller reads: no command that names it
    /// is outstanding.
    #[inline(always)]
    pub unsafe fn command(&self, shape: &Shape, list: List) -> Command {
        let namespace = shape.namespace;
        let lba = self.offset >> shape.block_bits;
        let blocks = (self.len >> shape.block_bits) as u32;
        let pointers = || {
            // SAFETY: as the caller promises.
            unsafe { pointers(self.iova, self.len, shape.page, list) }
        };
        match self.verb {
            Verb::Read => Command::read(namespace, lba, blocks, pointers()),
            Verb::Write => Command::write(namespace, lba, blocks, pointers(), false),
            Verb::WriteThrough => Command::write(namespace, lba, blocks, pointers(), true),
            Verb::Flush => Command::flush(namespace),
            Verb::Zero => Command::zero_and_deallocate(namespace, lba, blocks),
            Verb::Deallocate => {
                for (i, word) in range(lba, blocks).into_iter().enumerate() {
                    // SAFETY: the first words of the list, which the caller promises is ours.
                    unsafe { list.start.add(i).write_volatile(word) };
                }
                Command::deallocate(namespace, list.iova)
            }
        }
    }
}

/// A request that was admitted: its buffer lies in the table of commands.
#[derive(Debug)]
pub(super) struct Asked {
    pub given: Given,
    pub op: Op,
    /// The first byte on the drive, and how many; 0 of a flush.
    pub offset: u64,
    pub len: u64,
    /// Where the controller finds the first byte to move, if any move.
    pub iova: u64,
}

impl Asked {
    /// Whether it waits for the window.
    pub fn is_large(&self) -> bool {
        self.len > SMALL && matches!(self.op, Op::Read | Op::Write)
    }
}

/// A request that takes several commands, or one of a rare kind.
pub(super) struct Request {
    pub asked: Asked,
    /// Bytes of it that pieces were made of.
    issued: u64,
    /// A flush is still to be made.
    flush: bool,
    /// Pieces that are not answered.
    pub pieces: u16,
    /// It stands in the line of those that have more pieces to make.
    pub feeding: bool,
    /// Why it fails. No more pieces are made then.
    pub error: Option<IoError>,
}

impl Request {
    pub fn new(asked: Asked, shape: &Shape) -> Request {
        // Nothing is left in a drive without a cache: there, a write is as durable as it gets.
        let flush = matches!(asked.op, Op::Flush | Op::WriteFlush) && shape.caches;
        Request { asked, issued: 0, flush, pieces: 0, feeding: false, error: None }
    }

    /// Whether pieces are to be made.
    pub fn has_more(&self) -> bool {
        (self.issued < self.asked.len || self.flush) && self.error.is_none()
    }

    /// Makes the next piece. What is written and flushed is written through, with the flush at its side
    /// for what was written before: until all are answered nothing is promised.
    pub fn next_piece(&mut self, shape: &Shape) -> Piece {
        let (at, &Asked { op, offset, len, iova, .. }) = (self.issued, &self.asked);
        if at == len {
            assert!(std::mem::take(&mut self.flush), "only called when there is more");
            return Piece::FLUSH;
        }
        let (verb, max) = match (op, shape.trim) {
            (Op::Read, _) => (Verb::Read, shape.transfer),
            (Op::WriteFlush, _) if shape.caches => (Verb::WriteThrough, shape.transfer),
            (Op::Write | Op::WriteFlush, _) => (Verb::Write, shape.transfer),
            (Op::Deallocate, Trim::Dataset { max }) => (Verb::Deallocate, max),
            (Op::Deallocate, Trim::Zeroes { max }) => (Verb::Zero, max),
            (op, _) => unreachable!("a {op:?} is not begun"),
        };
        let len = max.min(len - at);
        self.issued += len;
        // Without bytes in memory the sum means nothing and is not used.
        Piece { verb, offset: offset + at, len, iova: iova.wrapping_add(at) }
    }
}

/// Describes `len` bytes at `iova` by the two pointers of a command: the first page from where the bytes
/// begin in it, then the second, or a list of all others (Base Specification 2.0, section 4.1.1).
///
/// # Safety
/// As for [`Piece::command`].
#[inline(always)]
pub(super) unsafe fn pointers(iova: u64, len: u64, page: u64, list: List) -> Pointers {
    if (iova & (page - 1)) + len <= page {
        return Pointers(iova, 0);
    }
    // SAFETY: as the caller promises.
    unsafe { many_pointers(iova, len, page, list) }
}

/// The same of bytes that end behind the first page.
///
/// # Safety
/// As for [`Piece::command`].
#[inline(never)]
unsafe fn many_pointers(iova: u64, len: u64, page: u64, list: List) -> Pointers {
    let first = page - (iova & (page - 1));
    let (mut next, left) = (iova + first, len - first);
    if left <= page {
        return Pointers(iova, next);
    }
    let count = left.div_ceil(page) as usize;
    assert!(count <= LIST_ENTRIES, "no command is longer than what one list describes");
    for i in 0..count {
        // SAFETY: below the 512 words of the list, which the caller promises is ours.
        unsafe { list.start.add(i).write_volatile(next) };
        next += page;
    }
    Pointers(iova, list.iova)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Walking over the pointers as a controller does finds every byte once, in order.
        #[test]
        fn pointers_describe_exactly_the_bytes(
            page_bits in 12u32..17,
            start in 0u64..(1 << 20),
            blocks in 1u64..4097,
        ) {
            let (page, iova, len) = (1u64 << page_bits, (1 << 40) + start * 4, blocks * 512);
            let mut list = vec![0u64; LIST_ENTRIES];
            let start = NonNull::new(list.as_mut_ptr()).unwrap();
            let at = List { start, iova: 0xdead_0000 };
            // SAFETY: 512 words of a vector.
            let Pointers(first, second) = unsafe { pointers(iova, len, page, at) };
            let mut found = vec![(first, (page - first % page).min(len))];
            let mut left = len - found[0].1;
            if left > 0 && left <= page {
                found.push((second, left));
            } else if left > 0 {
                prop_assert_eq!(second, 0xdead_0000);
                for &entry in &list {
                    if left == 0 {
                        break;
                    }
                    prop_assert_eq!(entry % page, 0, "only the first may begin inside of a page");
                    found.push((entry, left.min(page)));
                    left -= left.min(page);
                }
            } else {
                prop_assert_eq!(second, 0);
            }
            let mut at = iova;
            for (start, len) in found {
                prop_assert_eq!(start, at);
                at += len;
            }
            prop_assert_eq!(at, iova + len);
        }
    }
}
