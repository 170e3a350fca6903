//! Looking at a drive by its PCI address. Nobody can read it beside who drives it, so its controller is
//! brought up for as long as it takes to read both ends of it, unless somebody has it.

use std::path::PathBuf;
use std::rc::Rc;

use memkv_block::{BlockDevice, BlockQueue, Geometry, IoError};
use memkv_dma::Class;
use memkv_journal::probe::{Edges, HEAD, TAIL, signatures};
use memkv_journal::{Inspection, ReadError, SUPERBLOCK_BYTES, copy_offset, inspect};
use memkv_nvme::PciAddress;

use super::look::{Kind, LookError, Sight};
use super::{Bench, TERMS};
use crate::bypass::{BypassError, Terms};
use crate::config::BypassUse;

/// Memory to read a drive's ends with.
const POOL: u64 = 16 << 20;

/// Bytes read at a time.
const STEP: u64 = 1 << 20;

/// See [`super::look::look`]. Whoever is about to take a drive looks again for a while when it is in use.
pub(super) fn look(address: PciAddress) -> Result<Sight, LookError> {
    let mut bench = Bench::of_size(POOL)?;
    // By VFIO, whatever a configuration says: that is what a PCI address means here.
    bench.bypass.way(address, BypassUse::Require)?;
    let terms = Terms { patience: std::time::Duration::ZERO, ..TERMS };
    let device = match bench.bypass.open_vfio(address, &bench.pool, &terms) {
        Ok(device) => device,
        Err(BypassError::InUse { .. }) => return Ok(in_use(address)),
        Err(error) => return Err(error.into()),
    };
    let failed = |source: IoError| {
        let path = PathBuf::from(address.to_string());
        LookError::Io { path, source: std::io::Error::other(source) }
    };
    let geometry = device.geometry();
    let queue = device.open_queue(&bench.local()).map_err(failed)?;
    let copies = std::array::from_fn(|copy| {
        let offset = copy_offset(copy);
        if offset + SUPERBLOCK_BYTES as u64 > geometry.capacity {
            return Ok(Vec::new());
        }
        read(&mut bench, &queue, &geometry, offset, SUPERBLOCK_BYTES as u64)
    });
    let inspection = inspect(copies, &geometry);
    let bytes = geometry.capacity;
    let signatures = match &inspection.superblock {
        Err(ReadError::NotFormatted) => {
            let (head, tail) = ((HEAD as u64).min(bytes), (TAIL as u64).min(bytes));
            let head = read(&mut bench, &queue, &geometry, 0, head).map_err(failed)?;
            let tail = read(&mut bench, &queue, &geometry, bytes - tail, tail).map_err(failed)?;
            signatures(&Edges::new(bytes, &head, &tail))
        }
        _ => Vec::new(),
    };
    let info = device.info();
    let names = Some((info.model.clone(), info.serial.clone()));
    Ok(Sight { bytes, inspection, signatures, names, ..sight(address) })
}

/// A drive of which nothing is known but its address.
fn sight(address: PciAddress) -> Sight {
    let path = PathBuf::from(address.to_string());
    let nothing = std::array::from_fn(|_| Err(IoError::Offline));
    let geometry = Geometry { capacity: 0, sector: 512, max_transfer: memkv_block::MAX_TRANSFER };
    let inspection: Inspection = inspect(nothing, &geometry);
    Sight {
        real: path.clone(),
        path,
        kind: Kind::Nvme,
        bytes: 0,
        locked: false,
        claims: Vec::new(),
        inspection,
        signatures: Vec::new(),
        unread: false,
        names: None,
    }
}

/// A drive that cannot be read as it is: another driver has it, or none.
pub(super) fn unread(address: PciAddress) -> Sight {
    Sight { unread: true, ..sight(address) }
}

/// A drive that somebody drives.
fn in_use(address: PciAddress) -> Sight {
    Sight { locked: true, unread: true, ..sight(address) }
}

/// Bytes of the drive, which need not begin or end with its sectors.
fn read(
    bench: &mut Bench,
    queue: &Rc<dyn BlockQueue>,
    geometry: &Geometry,
    offset: u64,
    len: u64,
) -> Result<Vec<u8>, IoError> {
    let sector = u64::from(geometry.sector);
    let (from, until) = (offset / sector * sector, (offset + len).next_multiple_of(sector));
    let (queue, pool, capacity) = (queue.clone(), bench.pool.clone(), geometry.capacity);
    let mut bytes = bench.run(async move {
        let mut bytes = Vec::with_capacity((until - from) as usize);
        let mut at = from;
        while at < until.min(capacity) {
            let step = STEP.max(sector).min(until - at) as usize;
            let buf = pool.allocate_wait(Class::Checkpoint, step).await;
            let (result, buf) = memkv_block::read(&*queue, at, step, buf).await;
            result?;
            let buf = buf.expect("a buffer comes back from a read that was done");
            bytes.extend_from_slice(&buf.as_slice()[..step]);
            at += step as u64;
        }
        Ok::<_, IoError>(bytes)
    })?;
    bytes.drain(..(offset - from) as usize);
    bytes.truncate(len as usize);
    Ok(bytes)
}
