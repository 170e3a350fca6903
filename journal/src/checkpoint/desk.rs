//! Memory for a reading or a checkpoint: some buffers, each of which is away while a command has it.
//!
//! A merge reads and writes with the same desk. So drives that write their checkpoints at the same
//! time never wait for each other half served, and a checkpoint asks the pool once.
//!
//! What a command has is charged to its drive meanwhile. A drive that stalls keeps that one piece,
//! it may still read or write it; the others go back with the desk, and the account they came from
//! is as good as new.

use memkv_block::{BlockQueue, Io, IoBuf, IoError};
use memkv_dma::{Class, DmaBuf, Pool};

pub(crate) struct Desk {
    class: Class,
    pieces: Vec<Option<DmaBuf>>,
}

impl Desk {
    /// Waits for so many pieces of `len` bytes.
    pub(crate) async fn new(pool: &Pool, class: Class, pieces: usize, len: usize) -> Desk {
        let pieces = pool.allocate_set(class, len, pieces).await;
        Desk { class, pieces: pieces.into_iter().map(Some).collect() }
    }

    pub(crate) fn bytes(&self, piece: usize) -> &[u8] {
        self.pieces[piece].as_ref().expect("away only while a command has it").as_slice()
    }

    pub(crate) fn bytes_mut(&mut self, piece: usize) -> &mut [u8] {
        self.pieces[piece].as_mut().expect("away only while a command has it").as_mut_slice()
    }

    /// A command kept a piece, because the drive stalled: nothing more can be done with it.
    pub(crate) fn is_lost(&self) -> bool {
        self.pieces.iter().any(Option::is_none)
    }

    /// Reads `len` bytes from the drive's `offset` to a piece's byte `at`.
    pub(crate) async fn read(
        &mut self,
        queue: &dyn BlockQueue,
        offset: u64,
        len: usize,
        (piece, at): (usize, usize),
    ) -> Result<(), IoError> {
        let buf = self.take(piece);
        self.submit(queue, piece, Io::read(offset, len, buf).at(at)).await
    }

    /// Writes `len` bytes of a piece to the drive's `offset`.
    pub(crate) async fn write(
        &mut self,
        queue: &dyn BlockQueue,
        offset: u64,
        len: usize,
        piece: usize,
    ) -> Result<(), IoError> {
        let buf = self.take(piece);
        self.submit(queue, piece, Io::write(offset, len, buf)).await
    }

    fn take(&mut self, piece: usize) -> DmaBuf {
        let mut buf = self.pieces[piece].take().expect("one command at a time");
        buf.charge(Class::Drive);
        buf
    }

    async fn submit(
        &mut self,
        queue: &dyn BlockQueue,
        piece: usize,
        io: Io,
    ) -> Result<(), IoError> {
        let done = queue.submit(io).await;
        let mut buf = done.buf.and_then(IoBuf::into_exclusive);
        assert!(buf.is_some() || done.result.is_err(), "a buffer comes back from what was done");
        if let Some(buf) = &mut buf {
            buf.charge(self.class);
        }
        self.pieces[piece] = buf;
        done.result
    }
}
