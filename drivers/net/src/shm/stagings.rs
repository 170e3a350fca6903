//! The server's view of memory in which clients lay down the payload of their puts.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use memmap2::{Advice, MmapRaw};
use nix::fcntl::SealFlag;

use super::STAGING_MAX;
use super::theirs::{copy_out, map};

/// What a client's memory has to be sealed against: becoming shorter, and being written but by mappings that
/// there are, for that forbids holes as well. A page that is not there would be taken from us, or be a signal.
pub(super) const SEALED: SealFlag = SealFlag::F_SEAL_SHRINK.union(SealFlag::F_SEAL_FUTURE_WRITE);
/// Most that wait for the session of their client; more are not taken, and their clients put by the socket.
const WAITING: usize = 256;
/// For how long one waits, whose client is gone without having used it: clients do so at once.
const PATIENCE: Duration = Duration::from_secs(60);

/// Memory of clients that came in at the door, until their sessions ask for it.
#[derive(Debug, Default)]
pub struct Stagings(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// The oldest in front.
    waiting: VecDeque<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    number: u64,
    since: Instant,
    staged: Arc<Staged>,
}

impl Stagings {
    /// Maps a client's memory, and keeps it for the session that names this number first.
    ///
    /// # Errors
    /// It is longer than it may be, is not all there, may become shorter, or cannot be mapped; too many wait
    /// already, or one of this number.
    pub fn take(&self, file: OwnedFd, number: u64) -> io::Result<()> {
        let staged = Arc::new(Staged::new(file)?);
        let since = Instant::now();
        let (_late, mut state) = self.current(since);
        if state.waiting.len() == WAITING {
            return Err(io::Error::new(
                ErrorKind::QuotaExceeded,
                "too many wait for their clients",
            ));
        }
        if state.waiting.iter().any(|waiting| waiting.number == number) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        state.waiting.push_back(Waiting { number, since, staged });
        Ok(())
    }

    /// The memory of this number, which nobody else can claim from now on.
    pub fn claim(&self, number: u64) -> Option<Arc<Staged>> {
        let (_late, mut state) = self.current(Instant::now());
        let place = state.waiting.iter().position(|waiting| waiting.number == number)?;
        state.waiting.remove(place).map(|waiting| waiting.staged)
    }

    /// What has waited too long, and what waits now. The first is to be dropped after the second, for to unmap it
    /// takes a while.
    fn current(&self, now: Instant) -> (Vec<Waiting>, MutexGuard<'_, State>) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let late = |waiting: &Waiting| now.saturating_duration_since(waiting.since) > PATIENCE;
        let count = state.waiting.iter().take_while(|waiting| late(waiting)).count();
        let late = state.waiting.drain(..count).collect();
        (late, state)
    }
}

/// A client's memory, as this process has it mapped: to read.
#[derive(Debug)]
pub struct Staged(MmapRaw);

impl Staged {
    fn new(file: OwnedFd) -> io::Result<Staged> {
        let wrong = |what| Err(io::Error::new(ErrorKind::InvalidData, what));
        let file = File::from(file);
        let length = file.metadata()?.len();
        if !(1..=STAGING_MAX as u64).contains(&length) {
            return wrong("memory of 1 byte to 4 MiB is taken");
        }
        let memory = map(file.try_clone()?.into(), 0, length, SEALED)?;
        // Only now that nobody can make holes any more.
        if file.metadata()?.blocks() * 512 < length {
            return wrong("memory that has holes is not taken");
        }
        // A hint: its client has written there.
        let _ = memory.advise(Advice::PopulateRead);
        Ok(Staged(memory))
    }

    /// Whether these bytes are in it.
    pub fn holds(&self, offset: u64, length: u64) -> bool {
        offset.checked_add(length).is_some_and(|end| end <= self.0.len() as u64)
    }

    /// Copies what stands at `offset` into all of `into`. The client may be writing there if it is not what it
    /// should be: only the copy's CRC says what was copied. If its pages were swapped out, this waits for them.
    ///
    /// # Panics
    /// When it does not [hold](Staged::holds) that.
    pub fn read(&self, offset: u64, into: &mut [u8]) {
        assert!(self.holds(offset, into.len() as u64), "what is read is there");
        copy_out(&self.0, offset as usize, into);
    }
}
