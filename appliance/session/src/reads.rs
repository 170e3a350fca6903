//! Moving a block's payload from its drives.

use memkv_block::{Completion, Done, Io, IoBuf, IoError};
use memkv_dma::{Class, DmaBuf, DmaRef, UNIT};
use memkv_poller::spare::Row;
use memkv_poller::{Instant, timeout};
use memkv_store::{DriveId, Extent};
use memkv_wire::{ItemReply, Status};

use crate::extents::{Piece, pieces};
use crate::{Context, replies};

/// A read that failed: which drive, and why.
pub struct ReadError {
    drive: DriveId,
    error: IoError,
    /// The memory it was to fill, where the driver gave it back.
    chunk: Option<DmaBuf>,
    /// Bytes of payload that were wanted.
    length: u32,
}

/// A piece of payload in memory, or on its way there.
pub enum Reading {
    Ready(DmaRef),
    Running(DriveId, u32, Completion),
}

/// The extents of one read need more memory than there is for reads.
pub enum TooMuch {
    /// While others keep what they have: they may give it back.
    Now,
    /// In this pool.
    Ever,
}

/// After how long memory that others keep is worth another look, in milliseconds.
const GIVEN_BACK_MS: u32 = 20;

impl TooMuch {
    /// What a client is told.
    pub fn reply(&self, context: &Context) -> ItemReply {
        match self {
            Self::Now => {
                context.counters.busy.bump();
                ItemReply::busy(GIVEN_BACK_MS)
            }
            Self::Ever => replies::item(Status::LimitExceeded),
        }
    }
}

/// Starts reading extents, each in pieces: views of the medium where there are any, else into
/// chunks, for which it waits until `until`.
pub async fn start_reads<'a>(
    context: &Context,
    extents: impl Iterator<Item = &'a Extent>,
    until: Instant,
) -> Result<Row<Row<Reading>>, TooMuch> {
    let view = |e: &Extent| context.drive(e.drive).device.view(e.offset, e.length as usize);
    let extents: Row<_> = extents.map(|extent| (*extent, view(extent))).collect();
    let without = extents.iter().filter(|(_, view)| view.is_none());
    let lengths: Row<_> = without
        .flat_map(|(extent, _)| {
            pieces(context, extent.length).map(|piece| piece.padded(context, extent))
        })
        .collect();
    let since = context.local.now();
    let chunks = take_chunks(context, &lengths, until).await;
    if !lengths.is_empty() {
        let waited = context.local.now().saturating_duration_since(since);
        context.counters.wait_chunk.record(waited);
    }
    let mut chunks = chunks?.into_iter();
    let mut start = |extent: &Extent| -> Row<Reading> {
        let queue = &context.drive(extent.drive).queue;
        let read = |piece: Piece| {
            let chunk = chunks.next().expect("a chunk for every piece without a view");
            let io = Io::read(piece.offset(extent), piece.padded(context, extent), chunk);
            Reading::Running(extent.drive, piece.length, queue.submit(io))
        };
        pieces(context, extent.length).map(read).collect()
    };
    let start = |(extent, view): (Extent, Option<DmaRef>)| match view {
        Some(view) => [Reading::Ready(view)].into(),
        None => start(&extent),
    };
    Ok(extents.into_iter().map(start).collect())
}

/// Chunks for one read, all of them: its reply needs them together. Several that each held some and
/// waited for more would wait for ever, so of those that cannot have all at once, one at a time on
/// the whole node gathers them; the others have what they need or hold nothing.
///
/// Who waited until `until` lets go of what it has: others may do with that.
async fn take_chunks(
    context: &Context,
    lengths: &[usize],
    until: Instant,
) -> Result<Row<DmaBuf>, TooMuch> {
    let (pool, class) = (&context.pool, Class::Send);
    let at_once: Result<Row<_>, _> = lengths.iter().map(|&len| pool.allocate(class, len)).collect();
    if let Ok(chunks) = at_once {
        return Ok(chunks);
    }
    let runs = lengths.iter().map(|len| len.div_ceil(UNIT).next_power_of_two() * UNIT);
    let bytes = runs.sum::<usize>() as u64;
    if bytes > pool.attainable(class, &[Class::Drive]) {
        return Err(TooMuch::Ever);
    }
    if bytes > pool.attainable(class, &[Class::Drive, Class::Lent]) {
        return Err(TooMuch::Now);
    }
    let gather = async {
        let _turn = if lengths.len() > 1 { Some(context.store.gather_turn().await) } else { None };
        let mut chunks = Row::new();
        for &len in lengths {
            chunks.push(pool.allocate_wait(class, len).await);
        }
        chunks
    };
    timeout(&context.local, until, gather).await.map_err(|_| TooMuch::Now)
}

impl Reading {
    /// Whether the payload is in memory already.
    pub fn is_ready(&self) -> bool {
        matches!(self, Self::Ready(_))
    }

    /// The payload, if it is in memory already.
    pub fn ready(self) -> Result<DmaRef, Self> {
        match self {
            Self::Ready(bytes) => Ok(bytes),
            running => Err(running),
        }
    }

    /// The payload, when it is there.
    pub async fn finish(self) -> Result<DmaRef, ReadError> {
        match self {
            Self::Ready(bytes) => Ok(bytes),
            Self::Running(drive, length, completion) => {
                let Done { result, buf } = completion.await;
                let chunk = buf.and_then(IoBuf::into_exclusive);
                match (result, chunk) {
                    (Ok(()), Some(mut chunk)) => {
                        chunk.set_len(length as usize);
                        Ok(chunk.freeze())
                    }
                    (Ok(()), None) => {
                        Err(ReadError { drive, error: IoError::Offline, chunk: None, length })
                    }
                    (Err(error), chunk) => Err(ReadError { drive, error, chunk, length }),
                }
            }
        }
    }

    /// The payload, when it is there; zeros in its stead when it cannot be read any more, since a
    /// reply that has begun must have its length: they do not have the CRC that the reply told, and
    /// the getter asks what became of the block. `None` when there is not even memory for that: a
    /// drive that stalled keeps what it was to fill.
    pub async fn finish_reply(self, context: &Context) -> Option<DmaRef> {
        match self.finish().await {
            Ok(bytes) => Some(bytes),
            Err(mut error) => {
                let (chunk, length) = (error.chunk.take(), error.length);
                error.report(context).await;
                let instead = || context.pool.allocate(Class::Send, length as usize).ok();
                let mut chunk = chunk.or_else(instead)?;
                chunk.set_len(length as usize);
                chunk.as_mut_slice().fill(0);
                Some(chunk.freeze())
            }
        }
    }
}

impl ReadError {
    /// Tells the store, which takes the drive out of service.
    pub async fn report(self, context: &Context) {
        context.store.drive_failed(self.drive, &self.error).await;
    }
}
