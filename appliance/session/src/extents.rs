//! Moving a block's extents to and from their drives.

use std::collections::BTreeSet;
use std::time::Duration;

use memkv_block::{Completion, Done, Io, IoBuf, IoError};
use memkv_dma::{Class, DmaBuf, DmaRef, UNIT};
use memkv_store::{DriveId, Extent, Refusal, Reservation};

use crate::Context;

/// The writes of one block, from the arrival of its payload to the commit.
///
/// Buffers are kept until every write is done: when a drive fails in the middle, its extents are
/// placed elsewhere once, and written again from the same memory. But whoever waits for memory
/// holds none, or puts of many extents would wait for one another: what was written is let go
/// first, and can then not be placed again.
pub struct Writes {
    reservation: Reservation,
    extents: Vec<Write>,
    crcs: Vec<u32>,
}

enum Write {
    /// The payload was received into the medium itself: there is nothing to write.
    InPlace,
    Running(DriveId, Completion),
    /// On its drive; its memory is kept for a second place.
    Written(DmaBuf),
    /// On its drive, and its memory let go.
    Settled,
    /// Its drive failed. With its memory, unless that was let go or the driver went away with it.
    Failed(DriveId, Option<DmaBuf>),
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
    /// chunk, if one is free. Its length is exactly the extent's payload.
    pub fn try_buffer(&self, context: &Context) -> Option<(DmaBuf, bool)> {
        let extent = self.reservation.extents()[self.extents.len()];
        let io = context.drive(extent.drive);
        if let Some(medium) = io.device.view_mut(extent.offset, extent.length as usize) {
            return Some((medium, true));
        }
        let mut chunk = context.pool.allocate(Class::Receive, padded(context, &extent)).ok()?;
        chunk.set_len(extent.length as usize);
        context.counters.wait_chunk.record(Duration::ZERO);
        Some((chunk, false))
    }

    /// The same, as soon as a chunk is free. Waits with empty hands.
    pub async fn next_buffer(&mut self, context: &Context) -> (DmaBuf, bool) {
        if let Some(ready) = self.try_buffer(context) {
            return ready;
        }
        self.let_go(context).await;
        let extent = self.reservation.extents()[self.extents.len()];
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
        for write in &mut self.extents {
            let Write::Running(drive, completion) = write else { continue };
            let drive = *drive;
            let Done { result, buf } = completion.await;
            *write = match (result, buf.and_then(IoBuf::into_exclusive)) {
                (Ok(()), Some(buffer)) => Write::Written(buffer),
                (Ok(()), None) => Write::Settled,
                (Err(error), buffer) => {
                    context.store.drive_failed(drive, &error).await;
                    Write::Failed(drive, buffer)
                }
            };
        }
    }

    /// Gives back the memory of everything that has arrived.
    async fn let_go(&mut self, context: &Context) {
        self.settle(context).await;
        for write in &mut self.extents {
            match write {
                Write::Written(_) => *write = Write::Settled,
                Write::Failed(_, buffer) => *buffer = None,
                Write::InPlace | Write::Running(..) | Write::Settled => {}
            }
        }
    }

    /// The drives that failed, each once.
    fn failed(&self) -> BTreeSet<DriveId> {
        let drive = |write: &Write| match write {
            Write::Failed(drive, _) => Some(*drive),
            _ => None,
        };
        self.extents.iter().filter_map(drive).collect()
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
        for (index, extent) in self.reservation.extents().to_vec().into_iter().enumerate() {
            if extent == before[index] {
                continue;
            }
            let slot = &mut self.extents[index];
            match std::mem::replace(slot, Write::Failed(extent.drive, None)) {
                Write::Written(mut buffer) | Write::Failed(_, Some(mut buffer)) => {
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
    // The padding is zeroed: what an earlier block left in the chunk never reaches this one's
    // units.
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

/// The extents of one read need more memory than a read can ever get.
pub struct TooMuch;

/// Starts reading extents: views of the medium where there are any, else into chunks.
pub async fn start_reads<'a>(
    context: &Context,
    extents: impl Iterator<Item = &'a Extent>,
) -> Result<Vec<Reading>, TooMuch> {
    let extents: Vec<_> = extents.collect();
    let view = |e: &Extent| context.drive(e.drive).device.view(e.offset, e.length as usize);
    let views: Vec<_> = extents.iter().map(|extent| view(extent)).collect();
    let without = extents.iter().zip(&views).filter(|(_, view)| view.is_none());
    let lengths: Vec<_> = without.map(|(extent, _)| padded(context, extent)).collect();
    let since = context.local.now();
    let mut chunks = take_chunks(context, &lengths).await?.into_iter();
    if !lengths.is_empty() {
        let waited = context.local.now().saturating_duration_since(since);
        context.counters.wait_chunk.record(waited);
    }
    let start = |(extent, view): (&Extent, Option<DmaRef>)| match view {
        Some(view) => Reading::InPlace(view),
        None => {
            let chunk = chunks.next().expect("a chunk for every extent without a view");
            let io = Io::read(extent.offset, padded(context, extent), chunk);
            let completion = context.drive(extent.drive).queue.submit(io);
            Reading::Running(extent.drive, extent.length, completion)
        }
    };
    Ok(extents.into_iter().zip(views).map(start).collect())
}

/// Chunks for one read, all of them: its reply needs them together. Several that each held some and
/// waited for more would wait for ever, so of those that cannot have all at once, one at a time on
/// the whole node gathers them; the others have what they need or hold nothing.
async fn take_chunks(context: &Context, lengths: &[usize]) -> Result<Vec<DmaBuf>, TooMuch> {
    let (pool, class) = (&context.pool, Class::Send);
    let at_once: Result<Vec<_>, _> = lengths.iter().map(|&len| pool.allocate(class, len)).collect();
    if let Ok(chunks) = at_once {
        return Ok(chunks);
    }
    // A quarter of the pool is kept for other work.
    let runs = lengths.iter().map(|len| len.div_ceil(UNIT).next_power_of_two() * UNIT);
    if runs.sum::<usize>() as u64 > pool.stats().size / 4 * 3 {
        return Err(TooMuch);
    }
    let _turn = if lengths.len() > 1 { Some(context.store.gather_turn().await) } else { None };
    let mut chunks = Vec::with_capacity(lengths.len());
    for &len in lengths {
        chunks.push(pool.allocate_wait(class, len).await);
    }
    Ok(chunks)
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
