//! The client's end: windows, and what is read through them.

use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use memmap2::{Advice, MmapRaw};
use nix::fcntl::SealFlag;

use super::theirs::{copy_out, map};
use super::visit::{connect, late, receive_some, show};
use super::{NAME, ROW, TICKET, WINDOWS_MAX};
use crate::NetError;

/// How long the pages of windows are looked up ahead, in all: hugepages of some hundred GiB, or ordinary ones of
/// one. The others are when they are first read, which takes twice the time of a copy.
const LOOK_UP: Duration = Duration::from_millis(100);
/// Bytes that are looked up in one call.
const STEP: usize = 64 << 20;

/// Memory of a server, as this process has it mapped: to read, and at no known address.
#[derive(Debug)]
pub struct Windows(Vec<MmapRaw>);

impl Windows {
    /// Gets all windows of the door of this name and maps them.
    ///
    /// # Errors
    /// [`NetError::TimedOut`] at the deadline; else the system's: most often that no such door is on this
    /// machine, that too many wait there, or that nothing was handed out.
    pub fn open(
        name: &[u8; NAME],
        ticket: &[u8; TICKET],
        deadline: Instant,
    ) -> Result<Windows, NetError> {
        let door = connect(name)?;
        let told = show(&door, ticket, None, deadline).and_then(|()| receive(&door));
        let (table, files) = told.map_err(late)?;
        let rows = table.chunks_exact(ROW).map(|row| row.split_at(ROW / 2));
        let windows = rows.zip(files).map(|((start, length), file)| {
            let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("8 bytes"));
            map(file, number(start), number(length), SealFlag::F_SEAL_SHRINK)
        });
        let windows: Vec<MmapRaw> = windows.collect::<io::Result<_>>().map_err(NetError::Os)?;
        let windows = Windows(windows);
        windows.look_up(deadline.min(Instant::now() + LOOK_UP));
        Ok(windows)
    }

    /// Has the pages of all windows mapped, as many as can be until then.
    fn look_up(&self, until: Instant) {
        for window in &self.0 {
            for at in (0..window.len()).step_by(STEP) {
                let length = STEP.min(window.len() - at);
                let done = window.advise_range(Advice::PopulateRead, at, length);
                // A hint, which systems before Linux 5.14 do not know.
                if done.is_err() || Instant::now() >= until {
                    return;
                }
            }
        }
    }

    /// How many there are.
    pub fn count(&self) -> u32 {
        self.0.len() as u32
    }

    /// Whether these bytes are in a window.
    pub fn holds(&self, window: u32, offset: u64, length: u64) -> bool {
        let window = self.0.get(window as usize).map_or(0, MmapRaw::len);
        offset.checked_add(length).is_some_and(|end| end <= window as u64)
    }

    /// Copies what stands at `offset` of a window into all of `into`. The server may be writing there if it
    /// is not what it should be: only the copy's CRC says what was copied.
    ///
    /// # Panics
    /// When the window does not [hold](Windows::holds) it.
    pub fn read(&self, window: u32, offset: u64, into: &mut [u8]) {
        assert!(self.holds(window, offset, into.len() as u64), "what is read lies in a window");
        copy_out(&self.0[window as usize], offset as usize, into);
    }
}

/// Receives the table and the descriptors that it tells of, one for each row.
fn receive(door: &UnixStream) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut table = vec![0; ROW * WINDOWS_MAX];
    // Room for the descriptors and their header, aligned as headers are.
    let mut control = [0; 8 + WINDOWS_MAX / 2];
    let (count, files, whole) = receive_some(door, &mut table, &mut control)?;
    table.truncate(count);
    match count {
        0 => Err(io::Error::new(ErrorKind::PermissionDenied, "the door gave nothing")),
        _ if whole && count == ROW * files.len() => Ok((table, files)),
        _ => Err(io::Error::new(ErrorKind::InvalidData, "another number of windows than was told")),
    }
}
