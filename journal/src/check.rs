//! Reading everything on a drive that is not in service, without writing to it.
//!
//! [`read_contents`] is a recovery that stops before its last step: it gives what lives on the
//! drive and what was met on the way, and leaves the drive as it is. [`verify_extent`] holds the
//! bytes of one extent against the CRC its record promised. [`Journal::scrub_extent`] does the same on
//! a drive that serves, gently.

use memkv_block::{BlockQueue, IoError};
use memkv_dma::{Class, DmaBuf, Pool};
use memkv_poller::Local;
use thiserror::Error;

use crate::checkpoint::read::{LoadError, Reading, Source, read_area};
use crate::crc::{Pieces, crc32c};
use crate::ids::{KeyBytes, UNIT, UnitRange};
use crate::journal::Journal;
use crate::layout::Layout;
use crate::record::Record;
use crate::recovery::{Means, OpenError, RecoveryReport, recover};
use crate::superblock::Superblock;

/// What a drive remembers, and how well it does.
#[derive(Debug)]
pub struct Contents {
    /// What lives: Puts, Heads and Parts, never a Remove.
    pub live: Vec<Record>,
    /// What reading the log and the checkpoint in force met.
    pub report: RecoveryReport,
    /// No generation above this one was recorded.
    pub generation_high: u64,
    /// Rows of the checkpoint that is not in force. A crash in the middle of the next checkpoint
    /// leaves it damaged, and nothing is lost by that.
    pub spare: Result<u64, LoadError>,
}

/// Reads the log and both checkpoints of a drive. Nothing is written.
///
/// # Errors
/// [`OpenError`] when neither checkpoint gives what lives on the drive, or the drive fails.
pub async fn read_contents(
    queue: &dyn BlockQueue,
    local: &Local,
    pool: &Pool,
    superblock: &Superblock,
) -> Result<Contents, OpenError> {
    let means = Means { queue, pool, local, superblock };
    let outcome = recover::<KeyBytes, Vec<Record>>(&means, Reading::Whole).await?;
    let area = 1 - superblock.active;
    let source = Source {
        queue,
        pool,
        local,
        layout: &superblock.layout,
        drive: superblock.identity.drive,
        area,
        expected: superblock.checkpoints[area],
    };
    let spare = read_area(&source, Reading::Whole, |_| {}).await;
    let spare = spare.map(|read| read.map_or(0, |area| area.header.rows));
    let generation_high = outcome.generation_high;
    Ok(Contents { live: outcome.live, report: outcome.report, generation_high, spare })
}

/// Why an extent is not what its record says.
#[derive(Debug, Error)]
pub enum ExtentFault {
    /// The drive cannot read it.
    #[error("cannot be read")]
    Io(#[from] IoError),
    /// Other bytes are there.
    #[error("CRC {found:08x} where {expected:08x} was recorded")]
    Crc {
        /// As recorded.
        expected: u32,
        /// Of the bytes on the drive.
        found: u32,
    },
}

/// Reads `length` bytes of an extent, at most 4 MiB, and holds them against their CRC.
///
/// # Errors
/// [`ExtentFault`].
pub async fn verify_extent(
    queue: &dyn BlockQueue,
    pool: &Pool,
    layout: &Layout,
    (extent, length, expected): (UnitRange, u32, u32),
) -> Result<(), ExtentFault> {
    let offset = layout.data_offset + u64::from(extent.start) * UNIT as u64;
    // Whole units, so that any sector fits; an extent that is recorded fits its units.
    let bytes = (length as usize).next_multiple_of(UNIT);
    let buf = pool.allocate_wait(Class::Send, bytes).await;
    let (result, buf) = memkv_block::read(queue, offset, bytes, buf).await;
    result?;
    let buf = buf.expect("a buffer comes back from a read that was done");
    let found = crc32c(&buf.as_slice()[..length as usize]);
    if found == expected { Ok(()) } else { Err(ExtentFault::Crc { expected, found }) }
}

/// Bytes of one read of a scrub at most.
const SCRUB_READ: usize = 1 << 20;
/// Bytes checked in one turn: whoever waits for the reactor waits for these. They come from memory
/// that no processor has seen yet, some GiB a second.
const SCRUB_STEP: usize = 256 << 10;

impl Journal {
    /// Memory to scrub an extent of so many bytes with, or `None` when there is none to spare:
    /// requests come first, so nobody waits for it.
    pub fn scrub_buffer(&self, length: u32) -> Option<DmaBuf> {
        let bytes = (length as usize).next_multiple_of(UNIT).min(SCRUB_READ);
        self.shared.pool.allocate(Class::Scrub, bytes).ok()
    }

    /// Reads an extent, one read of at most 1 MiB after the other, and holds it against its CRC, at
    /// most 256 KiB in a turn.
    /// The caller keeps its units from being used again meanwhile.
    ///
    /// # Errors
    /// [`ExtentFault`].
    pub async fn scrub_extent(
        &self,
        (extent, length, expected): (UnitRange, u32, u32),
        mut buf: DmaBuf,
    ) -> Result<(), ExtentFault> {
        let offset = self.data_offset(extent.start);
        let (length, mut at, mut crc) = (length as usize, 0, Pieces::new());
        while at < length {
            let bytes = (length - at).next_multiple_of(UNIT).min(buf.len());
            let queue = &*self.shared.queue;
            let (result, back) = memkv_block::read(queue, offset + at as u64, bytes, buf).await;
            result?;
            buf = back.expect("a buffer comes back from a read that was done");
            for step in buf.as_slice()[..bytes.min(length - at)].chunks(SCRUB_STEP) {
                crc.add(step);
                self.shared.local.yield_now().await;
            }
            at += bytes;
        }
        let found = crc.crc();
        if found == expected { Ok(()) } else { Err(ExtentFault::Crc { expected, found }) }
    }
}
