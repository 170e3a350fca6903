//! The client's memory in which payload of its puts lies until the server has taken it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use memmap2::{Advice, MmapOptions, MmapRaw};
use nix::fcntl::{FcntlArg, SealFlag, fcntl, posix_fallocate};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::stagings::SEALED;
use super::visit::{connect, late, receive_some, show};
use super::{BROUGHT, NAME, STAGING_MAX, Stagings, TAKEN, TICKET};
use crate::NetError;

/// Memory that this process writes and a server reads.
#[derive(Debug)]
pub struct Staging {
    memory: MmapRaw,
    number: u64,
}

impl Staging {
    /// Gives a server new memory of so many bytes at its door, under a number that nobody can guess: who names
    /// it first has it.
    ///
    /// # Errors
    /// [`NetError::TimedOut`] at the deadline; else the system's: most often that no such door is on this
    /// machine, or that the server does not take it.
    pub fn open(
        name: &[u8; NAME],
        ticket: &[u8; TICKET],
        number: u64,
        length: usize,
        deadline: Instant,
    ) -> Result<Staging, NetError> {
        let (memory, file) = make(length).map_err(NetError::Os)?;
        let door = connect(name)?;
        let mut says = [0; BROUGHT];
        says[..TICKET].copy_from_slice(ticket);
        says[TICKET..].copy_from_slice(&number.to_le_bytes());
        let mut answer = [0];
        let told = show(&door, &says, Some(file.as_fd()), deadline)
            .and_then(|()| receive_some(&door, &mut answer, &mut []));
        match told.map_err(late)? {
            (1, _, true) if answer == [TAKEN] => Ok(Staging { memory, number }),
            _ => Err(NetError::Os(io::ErrorKind::PermissionDenied.into())),
        }
    }

    /// The same, of a server in this process.
    ///
    /// # Errors
    /// As [`Stagings::take`].
    pub fn within(stagings: &Stagings, number: u64, length: usize) -> io::Result<Staging> {
        let (memory, file) = make(length)?;
        stagings.take(file, number)?;
        Ok(Staging { memory, number })
    }

    /// How the server knows it.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Copies bytes to `offset`, where the server may be reading.
    ///
    /// # Panics
    /// When they do not fit.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        let end = offset.checked_add(bytes.len());
        assert!(end.is_some_and(|end| end <= self.memory.len()), "what is staged has its place");
        // SAFETY: the destination lies in the mapping, as was just checked, whose file cannot become
        // shorter; nobody has a reference into it, and the bytes that are copied are not of it.
        unsafe {
            let into = self.memory.as_mut_ptr().add(offset);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), into, bytes.len());
        }
    }
}

/// A file without a name, all of it there and to stay, which is written by this mapping alone.
fn make(length: usize) -> io::Result<(MmapRaw, OwnedFd)> {
    assert!((1..=STAGING_MAX).contains(&length), "a staging has 1 byte to 4 MiB");
    let file = memfd_create("memkv-puts", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    posix_fallocate(&file, 0, length as i64)?;
    let file = File::from(file);
    let memory = MmapOptions::new().len(length).map_raw(&file)?;
    // Under the last one holes cannot be made either.
    let seals = SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL | SEALED;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
    // Hints.
    let _ = memory.advise(Advice::DontDump);
    let _ = memory.advise(Advice::PopulateWrite);
    Ok((memory, file.into()))
}
