//! The payload of an inline put, wherever it is until its items have their places.

use std::sync::Arc;

use memkv_dma::DmaBuf;
use memkv_net::shm::Staged;
use memkv_poller::spare::Row;
use memkv_wire as wire;
use memkv_wire::{Crc32c, MetaError, Status};

use crate::session::Session;

/// Bytes that are copied out of a client's memory before their CRC is computed, while they are in the cache.
const SLICE: usize = 4 << 10;

/// The bytes of all items, one behind the other.
pub enum Payload {
    /// In a chunk of the pool.
    Pool(DmaBuf),
    /// In memory of its own.
    Heap(Row<u8>),
    /// In memory of the client's, from this byte on, where it may change: it is copied once, and its CRC is that
    /// of the copy.
    Staged(Arc<Staged>, u64),
}

impl Payload {
    /// Copies the bytes from `at` on into all of `into`, and takes them into `crc`.
    pub fn copy(&self, at: usize, into: &mut [u8], crc: &mut Crc32c) {
        let here = match self {
            Self::Pool(chunk) => chunk.as_slice(),
            Self::Heap(bytes) => bytes,
            Self::Staged(memory, start) => {
                let places = (start + at as u64..).step_by(SLICE);
                for (slice, place) in into.chunks_mut(SLICE).zip(places) {
                    memory.read(place, slice);
                    crc.update(slice);
                }
                return;
            }
        };
        let piece = &here[at..at + into.len()];
        into.copy_from_slice(piece);
        crc.update(piece);
    }

    /// Whether it is copied out of the client's memory.
    pub fn is_staged(&self) -> bool {
        matches!(self, Self::Staged(..))
    }

    /// Gives its chunk back, for whoever waits long holds none of the pool.
    pub fn leave_pool(&mut self) {
        if let Self::Pool(chunk) = self {
            *self = Self::Heap(chunk.as_slice().iter().copied().collect());
        }
    }
}

/// Why an inline put is refused as a whole.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// Its meta cannot be read, or has other items than payload.
    #[error(transparent)]
    Meta(#[from] MetaError),
    /// It names payload where none can be.
    #[error("a put names payload in memory {staging} from byte {offset} on, which is not there")]
    Nowhere {
        /// The number of the memory.
        staging: u64,
        /// Where the payload begins in it.
        offset: u64,
    },
}

impl Refused {
    /// The status that answers such a put.
    pub fn status(&self) -> Status {
        match self {
            Refused::Meta(error) => error.status(),
            Refused::Nowhere { .. } => Status::BadRequest,
        }
    }
}

impl Session {
    /// Payload of so many bytes where a put says that it is. What a client gave us is its session's from when it
    /// is first named.
    pub fn staged(&self, place: wire::Staged, length: u64) -> Result<Payload, Refused> {
        let wire::Staged { staging, offset } = place;
        let mut known = self.staged.borrow_mut();
        if known.as_ref().is_none_or(|(number, _)| *number != staging) {
            let stagings = self.context.stagings.as_ref().filter(|_| self.names_puts);
            *known = stagings.and_then(|all| all.claim(staging)).map(|memory| (staging, memory));
        }
        let memory = known.as_ref().map(|(_, memory)| memory.clone());
        let memory = memory.filter(|memory| memory.holds(offset, length));
        let memory = memory.ok_or(Refused::Nowhere { staging, offset })?;
        Ok(Payload::Staged(memory, offset))
    }
}
