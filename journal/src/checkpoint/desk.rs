//! Memory for a reading or a checkpoint: one buffer, which is away while a command has it.
//!
//! A merge reads and writes with the same buffer. So drives that write their checkpoints at the
//! same time never wait for each other half served, and a checkpoint asks the pool once.

use memkv_block::{BlockQueue, Io, IoBuf, IoError};
use memkv_dma::{Class, DmaBuf, Pool};

pub(crate) struct Desk(Option<DmaBuf>);

impl Desk {
    /// Waits for so many bytes.
    pub(crate) async fn new(pool: &Pool, class: Class, len: usize) -> Desk {
        Desk(Some(pool.allocate_wait(class, len).await))
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        self.0.as_ref().expect("the buffer is away only while a command has it").as_slice()
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        self.0.as_mut().expect("the buffer is away only while a command has it").as_mut_slice()
    }

    /// A command kept the buffer, because the drive stalled: nothing more can be done with it.
    pub(crate) fn is_lost(&self) -> bool {
        self.0.is_none()
    }

    /// Reads `len` bytes from the drive's `offset` to the buffer's byte `at`.
    pub(crate) async fn read(
        &mut self,
        queue: &dyn BlockQueue,
        offset: u64,
        len: usize,
        at: usize,
    ) -> Result<(), IoError> {
        let buf = self.0.take().expect("one command at a time");
        self.submit(queue, Io::read(offset, len, buf).at(at)).await
    }

    /// Writes `len` bytes from the buffer's byte `at` to the drive's `offset`.
    pub(crate) async fn write(
        &mut self,
        queue: &dyn BlockQueue,
        offset: u64,
        len: usize,
        at: usize,
    ) -> Result<(), IoError> {
        let buf = self.0.take().expect("one command at a time");
        self.submit(queue, Io::write(offset, len, buf).at(at)).await
    }

    async fn submit(&mut self, queue: &dyn BlockQueue, io: Io) -> Result<(), IoError> {
        let done = queue.submit(io).await;
        self.0 = done.buf.and_then(IoBuf::into_exclusive);
        assert!(self.0.is_some() || done.result.is_err(), "a buffer comes back from what was done");
        done.result
    }
}
