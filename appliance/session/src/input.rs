//! Reading frames: a small buffer for headers and metas, payload straight into its place.

use std::rc::Rc;

use memkv_dma::DmaBuf;
use memkv_net::{Connection, NetError, PayloadRef, RecvBuf, pull, recv};
use memkv_wire::{Crc32c, HEADER_LEN};

/// Bytes an idle connection keeps for reading.
const BUFFER: usize = 4096;
/// A receive of payload returns at least this much, so that its CRC is computed while it is in the
/// processor's cache.
const SLICE: usize = 512 * 1024;

/// The reading side of a connection.
pub struct Input {
    connection: Rc<dyn Connection>,
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
    pub fn new(connection: Rc<dyn Connection>) -> Self {
        Self { connection, buffer: vec![0; BUFFER], start: 0, end: 0 }
    }

    fn buffered(&self) -> usize {
        self.end - self.start
    }

    /// Waits until `want` bytes are buffered (`want` fits the buffer).
    async fn fill(&mut self, want: usize) -> Result<(), InputError> {
        if self.buffered() >= want {
            return Ok(());
        }
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        let min = want - self.end;
        let buffer = RecvBuf::Small(std::mem::take(&mut self.buffer));
        let (got, buffer) = recv(&*self.connection, buffer, self.end, min).await;
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
        self.fill(HEADER_LEN).await?;
        let mut raw = [0; HEADER_LEN];
        self.take(&mut raw);
        Ok(raw)
    }

    /// `length` bytes: a meta or a trailer.
    pub async fn bytes(&mut self, length: usize) -> Result<Vec<u8>, InputError> {
        let mut bytes = vec![0; length];
        if length == 0 {
            return Ok(bytes);
        }
        if length <= BUFFER {
            self.fill(length).await.map_err(within)?;
            self.take(&mut bytes);
            return Ok(bytes);
        }
        let have = self.take(&mut bytes);
        let min = length - have;
        let (got, bytes) = recv(&*self.connection, RecvBuf::Small(bytes), have, min).await;
        if got? < min {
            return Err(InputError::Truncated);
        }
        Ok(small(bytes))
    }

    /// Payload into the whole of `into`, and its CRC32C.
    pub async fn payload(&mut self, mut into: DmaBuf) -> (Result<u32, InputError>, DmaBuf) {
        let mut crc = Crc32c::new();
        let mut have = self.take(into.as_mut_slice());
        crc.update(&into.as_slice()[..have]);
        while have < into.len() {
            let min = (into.len() - have).min(SLICE);
            let (got, back) = pull(&*self.connection, PayloadRef::Inline, into, have, min).await;
            into = back;
            match got {
                Ok(n) => {
                    crc.update(&into.as_slice()[have..have + n]);
                    have += n;
                    if n < min {
                        return (Err(InputError::Truncated), into);
                    }
                }
                Err(error) => return (Err(error.into()), into),
            }
        }
        (Ok(crc.value()), into)
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
