//! Memory that another process may write: mapped to read, read by copying, and believed by no more than the
//! CRC of the copy.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;

use memmap2::{Advice, MmapOptions, MmapRaw};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};

/// Bytes behind those that were read for which the processor is asked ahead: about as many as it can have on
/// their way.
const AHEAD: usize = 1024;

/// Maps memory of another process to read. It is to have these seals: what could become shorter under us would
/// be a signal one day.
pub(super) fn map(file: OwnedFd, start: u64, length: u64, sealed: SealFlag) -> io::Result<MmapRaw> {
    let seals = fcntl(&file, FcntlArg::F_GET_SEALS).map(SealFlag::from_bits_truncate)?;
    let file = File::from(file);
    let end = start.checked_add(length).filter(|_| length > 0);
    let whole = end.is_some_and(|end| file.metadata().is_ok_and(|file| end <= file.len()));
    let length = usize::try_from(length).ok().filter(|_| whole);
    let (Some(length), true) = (length, seals.contains(sealed)) else {
        return Err(io::Error::new(
            ErrorKind::InvalidData,
            "memory that is not all there, or may become shorter",
        ));
    };
    let memory = MmapOptions::new().offset(start).len(length).map_raw_read_only(&file)?;
    // Of no use to who looks for what went wrong here, and not ours to show. A hint.
    let _ = memory.advise(Advice::DontDump);
    Ok(memory)
}

/// Copies what stands at `offset` into all of `into`. It may be written meanwhile.
///
/// # Panics
/// When not all of it is there.
pub(super) fn copy_out(memory: &MmapRaw, offset: usize, into: &mut [u8]) {
    let end = offset.checked_add(into.len()).filter(|end| *end <= memory.len());
    let end = end.expect("what is read was mapped");
    // SAFETY: the source lies in the mapping, as was just checked, whose file cannot become shorter.
    // The destination is ours alone, so they do not overlap. No reference is made of what another
    // process may write; bytes that change meanwhile are copied as one or the other.
    unsafe {
        let from = memory.as_ptr().add(offset);
        std::ptr::copy_nonoverlapping(from, into.as_mut_ptr(), into.len());
    }
    // What stands behind it is most likely read next.
    ask_for(memory, end..memory.len().min(end + AHEAD));
}

/// Has the processor fetch these bytes. A hint.
#[cfg(target_arch = "x86_64")]
fn ask_for(memory: &MmapRaw, bytes: std::ops::Range<usize>) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};

    for at in bytes.step_by(64) {
        // SAFETY: the byte is in the mapping, and it is not read: nothing happens if it were not there.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(memory.as_ptr().add(at).cast()) };
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn ask_for(_memory: &MmapRaw, _bytes: std::ops::Range<usize>) {}
