//! The machine's own durable writes.

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use memkv_dma::{Arena, Hugepages};

use super::{FILE, OWN, Rate, cores};
use crate::error::{BenchError, doing};

const PAGE: usize = 4096;
/// How long each core is looked at, how often, and how many are.
const LOOK: Duration = Duration::from_millis(20);
const LOOKS: u32 = 20;
const CORES: usize = 16;

/// The machine's own durable writes into the end of the file.
pub struct OwnRate {
    file: File,
    page: Arena,
}

impl OwnRate {
    /// Into the file at this path.
    pub fn new(path: &Path) -> Result<OwnRate, BenchError> {
        let mut options = File::options();
        options.read(true).write(true).custom_flags(past_the_cache());
        let file = options.open(path).map_err(doing("the journal's file"))?;
        Ok(OwnRate { file, page: Arena::new(PAGE as u64, Hugepages::Never)? })
    }

    /// Writes a second by a thread that is bound to a core, for each core there is.
    pub fn by_core(&self) -> std::io::Result<Vec<(usize, f64)>> {
        let all = cores::own();
        let mut rates: Vec<_> =
            all.iter().take(CORES).map(|&core| (core, Rate::default())).collect();
        // In turn: what a write takes changes from one moment to the next.
        for _ in 0..LOOKS {
            for (core, rate) in &mut rates {
                cores::bind(&[*core])?;
                rate.add(self.measure(LOOK)?);
            }
        }
        let rates = rates.into_iter().map(|(core, rate)| (core, rate.per_second())).collect();
        cores::bind(&all)?;
        Ok(rates)
    }

    /// Writes, one after the other.
    pub fn measure(&self, slice: Duration) -> std::io::Result<Rate> {
        let page = self.page.lend(0, PAGE);
        let begun = Instant::now();
        let mut writes = 0;
        while begun.elapsed() < slice {
            let at = FILE - OWN + writes * PAGE as u64 % OWN;
            self.file.write_all_at(page.as_slice(), at)?;
            self.file.sync_data()?;
            writes += 1;
        }
        Ok(Rate::since(begun, writes))
    }
}

#[cfg(target_os = "linux")]
fn past_the_cache() -> i32 {
    nix::fcntl::OFlag::O_DIRECT.bits()
}

#[cfg(not(target_os = "linux"))]
fn past_the_cache() -> i32 {
    0
}
