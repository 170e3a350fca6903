//! Moving a block's extents to and from their drives.

use memkv_block::{Completion, Done, Io, IoBuf, IoError};
use memkv_dma::{Class, DmaBuf, DmaRef};
use memkv_store::{DriveId, Extent, Refusal, Reservation};

use crate::Context;

/// The writes of one block, from the arrival of its payload to the commit.
///
/// Buffers are kept until every write is done: when a drive fails in the middle, its extents are
/// placed elsewhere once, and written again from the same memory.
pub struct Writes {
    reservation: Reservation,
    extents: Vec<Write>,
    crcs: Vec<u32>,
}

enum Write {
    /// The payload was received into the medium itself: there is nothing to write.
    InPlace,
    Running(DriveId, Completion),
    Written(DmaBuf),
    /// The driver went away with the buffer.
    Lost,
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
        Self { reservation, extents: Vec::new(), crcs: Vec::new() }
    }

    /// Where the next extent's payload is received: the medium itself where there is one, else a
    /// chunk. Its length is exactly the extent's payload.
    pub async fn next_buffer(&self, context: &Context) -> (DmaBuf, bool) {
        let extent = self.reservation.extents()[self.extents.len()];
        let io = context.drive(extent.drive);
        if let Some(medium) = io.device.view_mut(extent.offset, extent.length as usize) {
            return (medium, true);
        }
        let since = context.local.now();
        let mut chunk = context.pool.allocate_wait(Class::Receive, padded(context, &extent)).await;
        let waited = context.local.now().saturating_duration_since(since);
        context.counters.wait_chunk.record(waited);
        chunk.set_len(extent.length as usize);
        (chunk, false)
    }

    /// The next extent's payload has arrived: starts its write.
    pub fn arrived(&mut self, context: &Context, buffer: DmaBuf, in_place: bool, crc: u32) {
        let extent = self.reservation.extents()[self.extents.len()];
        self.crcs.push(crc);
        // A view of the medium must be gone before the commit lets readers see the extent.
        let write = if in_place { Write::InPlace } else { start(context, &extent, buffer) };
        self.extents.push(write);
    }

    /// CRCs of what arrived, one per extent.
    pub fn crcs(&self) -> &[u32] {
        &self.crcs
    }

    /// Waits for all writes. An extent whose drive failed is placed elsewhere once.
    pub async fn finish(&mut self, context: &Context) -> Result<(), WriteError> {
        let mut tried_again = false;
        loop {
            let failed = self.settle(context).await;
            let Some(drive) = failed else { return Ok(()) };
            if tried_again {
                return Err(WriteError::Drive);
            }
            tried_again = true;
            self.write_again(context, drive).await?;
        }
    }

    /// Waits until no write is under way, whatever they came to; names a drive that failed.
    async fn settle(&mut self, context: &Context) -> Option<DriveId> {
        let mut failed = None;
        for write in &mut self.extents {
            let Write::Running(drive, completion) = write else { continue };
            let drive = *drive;
            let Done { result, buf } = completion.await;
            *write = match buf {
                Some(IoBuf::Exclusive(buffer)) => Write::Written(buffer),
                _ => Write::Lost,
            };
            if let Err(error) = result {
                context.store.drive_failed(drive, &error).await;
                failed = Some(drive);
            }
        }
        failed
    }

    async fn write_again(&mut self, context: &Context, failed: DriveId) -> Result<(), WriteError> {
        let before = self.reservation.extents().to_vec();
        self.reservation.place_again(failed).await.map_err(WriteError::Refused)?;
        for (index, extent) in self.reservation.extents().to_vec().into_iter().enumerate() {
            if extent == before[index] {
                continue;
            }
            let slot = &mut self.extents[index];
            match std::mem::replace(slot, Write::InPlace) {
                Write::Written(mut buffer) => {
                    buffer.set_len(extent.length as usize);
                    *slot = start(context, &extent, buffer);
                }
                _ => return Err(WriteError::Drive),
            }
        }
        Ok(())
    }

    /// Gives up: waits until no write is under way, then returns the space.
    pub async fn abandon(mut self, context: &Context) {
        self.settle(context).await;
        drop(self.reservation);
    }

    /// All written: lets go of the buffers and hands over what is to be committed.
    pub fn into_commit(self) -> (Reservation, Vec<u32>) {
        let Self { reservation, extents, crcs } = self;
        drop(extents);
        (reservation, crcs)
    }
}

/// Bytes of a device transfer for an extent's payload: whole sectors.
fn padded(context: &Context, extent: &Extent) -> usize {
    let sector = context.drive(extent.drive).device.geometry().sector as usize;
    (extent.length as usize).next_multiple_of(sector)
}

fn start(context: &Context, extent: &Extent, mut buffer: DmaBuf) -> Write {
    let length = padded(context, extent);
    // The padding is zeroed: what an earlier block left in the chunk never reaches this one's units.
    buffer.set_len(length);
    buffer.as_mut_slice()[extent.length as usize..].fill(0);
    let io = Io::write(extent.offset, length, buffer);
    Write::Running(extent.drive, context.drive(extent.drive).queue.submit(io))
}

/// A read that failed: which drive, and why.
pub struct ReadError {
    pub drive: DriveId,
    pub error: IoError,
}

/// An extent's payload in memory, or on its way there.
pub enum Reading {
    InPlace(DmaRef),
    Running(DriveId, u32, Completion),
}

/// Starts reading an extent: a view of the medium where there is one, else a chunk.
pub async fn start_read(context: &Context, extent: &Extent) -> Reading {
    let io = context.drive(extent.drive);
    if let Some(view) = io.device.view(extent.offset, extent.length as usize) {
        return Reading::InPlace(view);
    }
    let length = padded(context, extent);
    let since = context.local.now();
    let chunk = context.pool.allocate_wait(Class::Send, length).await;
    context.counters.wait_chunk.record(context.local.now().saturating_duration_since(since));
    let completion = io.queue.submit(Io::read(extent.offset, length, chunk));
    Reading::Running(extent.drive, extent.length, completion)
}

impl Reading {
    /// The payload, when it is there.
    pub async fn finish(self) -> Result<DmaRef, ReadError> {
        match self {
            Self::InPlace(view) => Ok(view),
            Self::Running(drive, length, completion) => {
                let Done { result, buf } = completion.await;
                result.map_err(|error| ReadError { drive, error })?;
                let Some(IoBuf::Exclusive(mut chunk)) = buf else {
                    return Err(ReadError { drive, error: IoError::Offline });
                };
                chunk.set_len(length as usize);
                Ok(chunk.freeze())
            }
        }
    }
}
