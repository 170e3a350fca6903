//! Where a link lays down what it puts, for a server on the same machine to take it from there.
//!
//! ```text
//!   value ──copy, CRC──► a place in shared memory ◄──copy, CRC── server
//!          Put: key, CRCs, the place ──── by the socket ────►
//!          ◄──── result: the place is free again
//! ```
//!
//! A copy at each end is what a socket costs as well. But these find their bytes in the cache, for the place that
//! was free last is used first, and there are no pages to get, no packets and hardly any system calls. Larger
//! values, of which a socket takes the pages themselves, go by the socket.

use std::time::Instant;

use memkv_net::shm;
use memkv_wire::CrcList;
use memkv_wire::handshake::Limits;

use crate::crc::ExtentCrcs;
use crate::doors::REST;
use crate::types::Bytes;

/// Payload of fewer bytes is sent: it hardly costs more than the rest of the request.
const LEAST: u64 = 16 << 10;
/// Places of a link, each for the payload of one request.
const PLACES: usize = 8;
/// Bytes whose CRC is computed and which are copied then, while they are in the nearest cache.
const SLICE: usize = 4 << 10;

/// A link's memory for payload.
#[derive(Debug)]
pub(crate) struct Staging {
    memory: Memory,
    /// The one that was used last is the last.
    free: Vec<usize>,
}

#[derive(Debug)]
enum Memory {
    /// The server takes none.
    Never,
    /// There is none, and none is brought before then.
    Not(Instant),
    Shared(shm::Staging),
}

/// What came of bringing memory to the server.
pub(crate) enum Brought {
    Taken(shm::Staging),
    /// Nor will it be for a while.
    Refused,
    /// Somebody else is at it.
    NotNow,
}

/// Payload that was laid down.
pub(crate) struct Laid {
    /// Which place it has, until the server has answered.
    pub place: usize,
    /// Where it lies.
    pub named: memkv_wire::Staged,
    /// Of each value.
    pub crcs: Vec<CrcList>,
}

impl Staging {
    /// Of a new link, to a server that takes memory or does not.
    pub fn new(taken: bool) -> Staging {
        let memory = if taken { Memory::Not(Instant::now()) } else { Memory::Never };
        Staging { memory, free: (0..PLACES).collect() }
    }

    /// Whether so many bytes of payload need not wait for a place.
    pub fn has_place(&self, length: u64) -> bool {
        length < LEAST || !matches!(self.memory, Memory::Shared(_)) || !self.free.is_empty()
    }

    /// Lays the values of one request down, one behind the other, if that is possible and of use.
    pub fn lay(
        &mut self,
        values: &[&Bytes<'_>],
        limits: &Limits,
        bring: impl FnOnce(usize) -> Brought,
    ) -> Option<Laid> {
        let length: u64 = values.iter().map(|value| value.len()).sum();
        let size = limits.max_inline as usize;
        if !(LEAST..=u64::from(limits.max_inline)).contains(&length) {
            return None;
        }
        if let Memory::Not(until) = self.memory
            && Instant::now() >= until
        {
            match bring(PLACES * size) {
                Brought::Taken(memory) => self.memory = Memory::Shared(memory),
                Brought::Refused => self.memory = Memory::Not(Instant::now() + REST),
                Brought::NotNow => {}
            }
        }
        let Memory::Shared(memory) = &self.memory else { return None };
        let place = self.free.pop()?;
        let offset = place * size;
        let laid = lay(memory, offset, values, limits.extent);
        if laid.is_none() {
            self.free.push(place);
        }
        let named = memkv_wire::Staged { staging: memory.number(), offset: offset as u64 };
        Some(Laid { place, named, crcs: laid? })
    }

    /// A place is free again. Where the server found nothing there, none is used for a while.
    pub fn taken(&mut self, place: usize, found: bool) {
        self.free.push(place);
        if !found {
            self.memory = Memory::Not(Instant::now() + REST);
        }
    }
}

/// Copies values to `offset`, one behind the other; `None` when one has more extents than a value may have.
fn lay(
    memory: &shm::Staging,
    mut offset: usize,
    values: &[&Bytes<'_>],
    extent: u32,
) -> Option<Vec<CrcList>> {
    let one = |value: &&Bytes<'_>| {
        let mut crcs = ExtentCrcs::new(0, extent);
        for slice in value.pieces().iter().flat_map(|piece| piece.chunks(SLICE)) {
            crcs.update(slice);
            memory.write(offset, slice);
            offset += slice.len();
        }
        crcs.list()
    };
    values.iter().map(one).collect()
}
