//! How a block's extents are cut into transfers.
//!
//! An extent is moved in pieces of [`SessionLimits::transfer`](crate::SessionLimits) bytes: while one
//! is on its way between drive and memory, the next is on its way between memory and socket. A drive
//! serves what it has at once, each a little; were extents moved whole, those of all connections would
//! be done at about the same time, and the drive would idle while all of them are sent.

use memkv_store::Extent;

use crate::Context;

/// A part of an extent that one command moves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Piece {
    /// Where in the extent's payload it begins, in bytes.
    pub at: u32,
    /// Bytes of payload.
    pub length: u32,
}

impl Piece {
    /// The piece that begins at `at` of an extent with so many bytes of payload.
    pub fn of(context: &Context, at: u32, length: u32) -> Self {
        Self { at, length: (length - at).min(context.limits().transfer) }
    }

    /// Bytes of its transfer: whole sectors.
    pub fn padded(self, context: &Context, extent: &Extent) -> usize {
        let sector = context.drive(extent.drive).device.geometry().sector as usize;
        (self.length as usize).next_multiple_of(sector)
    }

    /// Where on the drive it lies.
    pub fn offset(self, extent: &Extent) -> u64 {
        extent.offset + u64::from(self.at)
    }
}

/// The pieces of an extent with so many bytes of payload, in order.
pub fn pieces(context: &Context, length: u32) -> impl Iterator<Item = Piece> {
    let next = move |piece: &Piece| {
        let at = piece.at + piece.length;
        (at < length).then(|| Piece::of(context, at, length))
    };
    std::iter::successors((length > 0).then(|| Piece::of(context, 0, length)), next)
}
