//! Reading frames: a small buffer for headers and metas, payload straight into its place.

use std::pin::{Pin, pin};
use std::rc::Rc;
use std::time::Duration;

use memkv_dma::DmaBuf;
use memkv_net::{Connection, NetError, PayloadRef, RecvBuf, pull, recv};
use memkv_poller::spare::Row;
use memkv_poller::{Instant, Local};
use memkv_wire::{Crc32c, HEADER_LEN};

use crate::join::hastened;

/// Bytes an idle connection keeps for reading.
const BUFFER: usize = 4096;
/// Payload is received in slices of this size, so that the CRC of each is computed while it is in
/// the processor's own cache: from there it costs a third of what it costs from the cache of all
/// cores.
const SLICE: usize = 256 * 1024;
/// Payload that nobody wants is read in slices of this size.
const DISCARD: usize = 64 * 1024;

/// The reading side of a connection.
pub struct Input {
    connection: Rc<dyn Connection>,
    local: Local,
    /// How long the rest of a frame, or a piece of its payload, may take to arrive.
    patience: Duration,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

/// Why no frame came.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    /// The peer closed between two frames.
    #[error("the peer closed the connection")]
    End,
    /// The stream ended within a frame.
    #[error("the connection ended within a frame")]
    Truncated,
    /// The carrier failed.
    #[error("the carrier failed")]
    Net(#[from] NetError),
}

impl Input {
    pub fn new(connection: Rc<dyn Connection>, local: Local, patience: Duration) -> Self {
        Self { connection, local, patience, buffer: vec![0; BUFFER], start: 0, end: 0 }
    }

    fn buffered(&self) -> usize {
        self.end - self.start
    }

    /// Waits for what is outstanding on the connection; shuts it down when that takes too long: a
    /// peer that stops within a frame holds a key, space and memory that others wait for.
    async fn within<F: Future>(&self, until: Instant, receiving: Pin<&mut F>) -> F::Output {
        if until == Instant::MAX {
            return receiving.await;
        }
        hastened(&self.local, until, || self.connection.shutdown(), receiving).await
    }

    /// Waits until `want` bytes are buffered (`want` fits the buffer).
    async fn fill(&mut self, want: usize, until: Instant) -> Result<(), InputError> {
        if self.buffered() >= want {
            return Ok(());
        }
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        let min = want - self.end;
        let buffer = RecvBuf::Small(std::mem::take(&mut self.buffer));
        let receiving = pin!(recv(&*self.connection, buffer, self.end, min));
        let (got, buffer) = self.within(until, receiving).await;
        self.buffer = small(buffer);
        let got = got?;
        self.end += got;
        match (got < min, self.end) {
            (false, _) => Ok(()),
            (true, 0) => Err(InputError::End),
            (true, _) => Err(InputError::Truncated),
        }
    }

    fn take(&mut self, into: &mut [u8]) -> usize {
        let n = self.buffered().min(into.len());
        into[..n].copy_from_slice(&self.buffer[self.start..self.start + n]);
        self.start += n;
        n
    }

    /// The next frame's header.
    pub async fn header(&mut self) -> Result<[u8; HEADER_LEN], InputError> {
        // Between two frames a connection may idle for as long as it likes.
        self.fill(HEADER_LEN, Instant::MAX).await?;
        let mut raw = [0; HEADER_LEN];
        self.take(&mut raw);
        Ok(raw)
    }

    /// `length` bytes: a meta or a trailer.
    pub async fn bytes(&mut self, length: usize) -> Result<Row<u8>, InputError> {
        let mut bytes = Row::zeros(length);
        if length == 0 {
            return Ok(bytes);
        }
        let until = self.local.turn_began() + self.patience;
        if length <= BUFFER {
            self.fill(length, until).await.map_err(within)?;
            self.take(&mut bytes);
            return Ok(bytes);
        }
        let have = self.take(&mut bytes);
        let min = length - have;
        let bytes = RecvBuf::Small(bytes.into_vec());
        let receiving = pin!(recv(&*self.connection, bytes, have, min));
        let (got, bytes) = self.within(until, receiving).await;
        if got? < min {
            return Err(InputError::Truncated);
        }
        Ok(small(bytes).into())
    }

    /// Payload into the whole of `into`, and into `crc`.
    pub async fn payload(
        &mut self,
        mut into: DmaBuf,
        mut crc: Option<&mut Crc32c>,
    ) -> (Result<(), InputError>, DmaBuf) {
        let length = into.len();
        let until = self.local.now() + self.patience;
        let mut have = self.take(into.as_mut_slice());
        if let Some(crc) = &mut crc {
            crc.update(&into.as_slice()[..have]);
        }
        while have < length {
            let min = (length - have).min(SLICE);
            into.set_len(have + min);
            let receiving = pin!(pull(&*self.connection, PayloadRef::Inline, into, have, min));
            let (got, back) = self.within(until, receiving).await;
            into = back;
            into.set_len(length);
            let n = match got {
                Ok(n) => n,
                Err(error) => return (Err(error.into()), into),
            };
            if let Some(crc) = &mut crc {
                crc.update(&into.as_slice()[have..have + n]);
            }
            have += n;
            if n < min {
                return (Err(InputError::Truncated), into);
            }
        }
        (Ok(()), into)
    }

    /// Reads `length` bytes of payload that nobody wants.
    pub async fn discard(&mut self, length: u64) -> Result<(), InputError> {
        let skipped = length.min(self.buffered() as u64);
        self.start += skipped as usize;
        let mut left = length - skipped;
        let mut bytes = Row::zeros(left.min(DISCARD as u64) as usize).into_vec();
        while left > 0 {
            bytes.truncate(left.min(DISCARD as u64) as usize);
            let min = bytes.len();
            let until = self.local.now() + self.patience;
            let receiving = pin!(recv(&*self.connection, RecvBuf::Small(bytes), 0, min));
            let (got, back) = self.within(until, receiving).await;
            if got? < min {
                return Err(InputError::Truncated);
            }
            left -= min as u64;
            bytes = small(back);
        }
        // Used again.
        drop(Row::from(bytes));
        Ok(())
    }
}

/// An end of the stream inside a frame is never a clean end.
fn within(error: InputError) -> InputError {
    match error {
        InputError::End => InputError::Truncated,
        other => other,
    }
}

fn small(buffer: RecvBuf) -> Vec<u8> {
    match buffer {
        RecvBuf::Small(bytes) => bytes,
        RecvBuf::Dma(_) => unreachable!("a carrier gives back the buffer it was given"),
    }
}
