//! Moving a block's payload to its drives.

use std::collections::BTreeSet;
use std::time::Duration;

use memkv_block::{Completion, Io, SECTOR_MAX};
use memkv_dma::{Class, DmaBuf, DmaRef};
use memkv_poller::spare::Row;
use memkv_store::{DriveId, Extent, Refusal, Reservation};
use memkv_wire::Crc32c;

use crate::Context;
use crate::extents::Piece;

/// The writes of one block, from the arrival of its payload to the commit.
///
/// Each piece is written as soon as it is there, while the next one arrives. Buffers are kept until
/// every write is done: when a drive fails or stalls in the middle, its extents are placed elsewhere
/// once, and written again from the same memory, which a drive that stalled may be reading still.
/// But whoever waits for memory holds none, or puts of many pieces would wait for one another: what
/// was written is let go first, and can then not be placed again.
pub struct Writes {
    reservation: Reservation,
    writes: Row<(Part, Write)>,
    crcs: Row<u32>,
    /// Of the extent that is arriving, as far as it is there.
    crc: Crc32c,
}

/// Which part of the block a write is of.
#[derive(Clone, Copy)]
struct Part {
    /// Of the block's extents.
    index: usize,
    piece: Piece,
}

enum Write {
    /// The payload was received into the medium itself: there is nothing to write.
    InPlace,
    Running(DriveId, Completion, DmaRef),
    /// On its drive; its memory is kept for a second place.
    Written(DmaRef),
    /// On its drive, and its memory let go.
    Settled,
    /// Its drive failed. With its memory, unless that was let go.
    Failed(DriveId, Option<DmaRef>),
}

/// Where the next piece of payload is received.
pub struct Place {
    /// As long as the piece.
    pub buffer: DmaBuf,
    part: Part,
    in_place: bool,
}

/// The payload could not be written.
#[derive(Debug)]
pub enum WriteError {
    /// A drive failed, and so did the second try or the search for another place.
    Drive,
    /// There was no other place.
    Refused(Refusal),
}

impl Writes {
    pub fn new(reservation: Reservation) -> Self {
        Self { reservation, writes: Row::new(), crcs: Row::new(), crc: Crc32c::new() }
    }

    /// The extent whose payload arrives next, and how much of it is there.
    fn arriving(&self) -> (usize, u32) {
        match self.writes.last() {
            Some((Part { index, piece }, _)) if *index == self.crcs.len() => {
                (*index, piece.at + piece.length)
            }
            _ => (self.crcs.len(), 0),
        }
    }

    /// The next part in memory, and its extent.
    fn next_part(&self, context: &Context) -> (Part, Extent) {
        let (index, at) = self.arriving();
        let extent = self.reservation.extents()[index];
        (Part { index, piece: Piece::of(context, at, extent.length) }, extent)
    }

    /// Where the next piece is received: the medium itself, which takes the whole extent, else a
    /// chunk, if one is free.
    pub fn try_place(&self, context: &Context) -> Option<Place> {
        let (part, extent) = self.next_part(context);
        let io = context.drive(extent.drive);
        if part.piece.at == 0
            && let Some(buffer) = io.device.view_mut(extent.offset, extent.length as usize)
        {
            let piece = Piece { at: 0, length: extent.length };
            return Some(Place { buffer, part: Part { piece, ..part }, in_place: true });
        }
        let mut buffer = context.pool.allocate(Class::Receive, padded(part.piece)).ok()?;
        buffer.set_len(part.piece.length as usize);
        context.counters.wait_chunk.record(Duration::ZERO);
        Some(Place { buffer, part, in_place: false })
    }

    /// The same, as soon as a chunk is free. Waits with empty hands.
    pub async fn next_place(&mut self, context: &Context) -> Place {
        if let Some(ready) = self.try_place(context) {
            return ready;
        }
        self.let_go(context).await;
        let (part, _) = self.next_part(context);
        let since = context.local.now();
        let mut buffer = context.pool.allocate_wait(Class::Receive, padded(part.piece)).await;
        let waited = context.local.now().saturating_duration_since(since);
        context.counters.wait_chunk.record(waited);
        buffer.set_len(part.piece.length as usize);
        Place { buffer, part, in_place: false }
    }

    /// The CRC of the extent that is arriving: what is received is added to it before
    /// [`Writes::arrived`].
    pub fn crc(&mut self) -> &mut Crc32c {
        &mut self.crc
    }

    /// The next piece has arrived in its place: starts its write.
    pub fn arrived(&mut self, context: &Context, place: Place) {
        let Place { buffer, part, in_place } = place;
        let extent = self.reservation.extents()[part.index];
        // A view of the medium must be gone before the commit lets readers see the extent.
        let write =
            if in_place { Write::InPlace } else { start(context, &extent, part.piece, buffer) };
        self.writes.push((part, write));
        if part.piece.at + part.piece.length == extent.length {
            self.crcs.push(std::mem::take(&mut self.crc).value());
        }
    }

    /// CRCs of what arrived, one per extent.
    pub fn crcs(&self) -> &[u32] {
        &self.crcs
    }

    /// Waits for all writes. Extents whose drives failed are placed elsewhere once.
    pub async fn finish(&mut self, context: &Context) -> Result<(), WriteError> {
        self.settle(context).await;
        let failed = self.failed();
        if failed.is_empty() {
            return Ok(());
        }
        self.write_again(context, &failed).await?;
        self.settle(context).await;
        if self.failed().is_empty() { Ok(()) } else { Err(WriteError::Drive) }
    }

    /// Waits until no write is under way, whatever they came to.
    async fn settle(&mut self, context: &Context) {
        for (_, write) in &mut self.writes {
            let Write::Running(drive, completion, bytes) = write else { continue };
            let drive = *drive;
            let result = completion.await.result;
            let bytes = bytes.clone();
            *write = match result {
                Ok(()) => Write::Written(bytes),
                Err(error) => {
                    context.store.drive_failed(drive, &error).await;
                    Write::Failed(drive, Some(bytes))
                }
            };
        }
    }

    /// Gives back the memory of everything that has arrived.
    async fn let_go(&mut self, context: &Context) {
        self.settle(context).await;
        for (_, write) in &mut self.writes {
            match write {
                Write::Written(_) => *write = Write::Settled,
                Write::Failed(_, buffer) => *buffer = None,
                Write::InPlace | Write::Running(..) | Write::Settled => {}
            }
        }
    }

    /// The drives that failed, each once.
    fn failed(&self) -> BTreeSet<DriveId> {
        let drive = |(_, write): &(Part, Write)| match write {
            Write::Failed(drive, _) => Some(*drive),
            _ => None,
        };
        self.writes.iter().filter_map(drive).collect()
    }

    /// Places everything that lay on these drives elsewhere, also what had been written there.
    async fn write_again(
        &mut self,
        context: &Context,
        failed: &BTreeSet<DriveId>,
    ) -> Result<(), WriteError> {
        let before = self.reservation.extents().to_vec();
        for &drive in failed {
            self.reservation.place_again(drive).await.map_err(WriteError::Refused)?;
        }
        let extents = self.reservation.extents();
        for (Part { index, piece }, slot) in &mut self.writes {
            let extent = extents[*index];
            if extent == before[*index] {
                continue;
            }
            match std::mem::replace(slot, Write::Failed(extent.drive, None)) {
                Write::Written(bytes) | Write::Failed(_, Some(bytes)) => {
                    *slot = submit(context, &extent, *piece, bytes);
                }
                _ => return Err(WriteError::Drive),
            }
        }
        Ok(())
    }

    /// Gives up: waits until no write is under way. Dropped then, it returns the space.
    pub async fn abandon(&mut self, context: &Context) {
        self.settle(context).await;
    }

    /// All written: lets go of the buffers and hands over what is to be committed.
    pub fn into_commit(self) -> (Reservation, Row<u32>) {
        let Self { reservation, writes, crcs, .. } = self;
        drop(writes);
        (reservation, crcs)
    }
}

/// Bytes of a piece's transfer: whole sectors of any drive, so that any may be its second place.
fn padded(piece: Piece) -> usize {
    (piece.length as usize).next_multiple_of(SECTOR_MAX)
}

fn start(context: &Context, extent: &Extent, piece: Piece, mut buffer: DmaBuf) -> Write {
    // The padding is zeroed: what an earlier block left in the chunk never reaches this one's
    // units.
    buffer.set_len(padded(piece));
    buffer.as_mut_slice()[piece.length as usize..].fill(0);
    submit(context, extent, piece, buffer.freeze())
}

/// Writes a piece with its padding. The driver has the bytes only on loan: one that never answers
/// takes nothing away.
fn submit(context: &Context, extent: &Extent, piece: Piece, bytes: DmaRef) -> Write {
    let io = Io::write(piece.offset(extent), bytes.len(), bytes.clone());
    Write::Running(extent.drive, context.drive(extent.drive).queue.submit(io), bytes)
}
