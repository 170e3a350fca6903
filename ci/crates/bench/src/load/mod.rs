//! Load from many sides: a crowd of connections, more requests than a node can serve, several nodes.

#[cfg(target_os = "linux")]
mod crowd;
mod fan;
#[cfg(target_os = "linux")]
mod line;
#[cfg(target_os = "linux")]
mod overload;
#[cfg(target_os = "linux")]
mod swarm;

use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use crate::bars::Bar;
use crate::error::BenchError;
use crate::measure::{MemkvWorker, Worker};
use crate::plan::Plan;
use crate::ring::stamp;
use crate::section::Grid;
use crate::servers::Node;

#[cfg(target_os = "linux")]
pub use line::Caller;

/// How often and how long.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Rounds.
    pub rounds: u32,
    /// The part of each that counts.
    pub length: Duration,
}

/// One kind of load, told.
#[derive(Clone, Debug, Serialize)]
pub struct LoadReport {
    /// The tables.
    pub grids: Vec<Grid>,
    /// What the tables do not say.
    pub notes: Vec<String>,
    /// The bars.
    pub bars: Vec<Bar>,
}

/// Whether the plan wants any of it.
pub fn is_wanted(plan: &Plan) -> bool {
    wanted(plan).next().is_some()
}

type Measure = fn(&Path, &Path, Effort) -> Result<LoadReport, BenchError>;

/// Each kind, by the names of its rows.
const KINDS: &[(&[&str], Measure)] = &[
    #[cfg(target_os = "linux")]
    (&[crowd::NAME, crowd::IDLE], crowd::measure),
    #[cfg(target_os = "linux")]
    (&[overload::NAME], overload::measure),
    (&[fan::NAME], fan::measure),
];

fn wanted(plan: &Plan) -> impl Iterator<Item = Measure> {
    let wants = |names: &[&str]| names.iter().any(|name| plan.wants(name));
    KINDS.iter().filter(move |(names, _)| wants(names)).map(|(_, measure)| *measure)
}

/// Hugepages of 2 MiB that all of it can use: one kind after the other.
pub fn hugepages() -> u64 {
    #[cfg(target_os = "linux")]
    let one = crowd::HUGEPAGES.max(overload::HUGEPAGES);
    #[cfg(not(target_os = "linux"))]
    let one = 0;
    fan::hugepages().max(one)
}

/// Measures what the plan wants.
///
/// # Errors
/// When a node or a connection fails.
pub fn measure(binary: &Path, folder: &Path, plan: &Plan) -> Result<Vec<LoadReport>, BenchError> {
    wanted(plan).map(|measure| measure(binary, folder, plan.load)).collect()
}

/// Values to be asked for.
#[cfg(target_os = "linux")]
struct Store(MemkvWorker);

#[cfg(target_os = "linux")]
impl Store {
    fn of(node: &Node) -> Result<Store, BenchError> {
        Ok(Store(MemkvWorker(node.client(1)?)))
    }

    /// Stores so many values of each size.
    fn fill(&mut self, values: &[(u32, usize)]) -> Result<(), BenchError> {
        let mut rng = fastrand::Rng::with_seed(7);
        for &(slots, bytes) in values {
            let mut value = vec![0; bytes];
            rng.fill(&mut value);
            for slot in 0..slots {
                stamp(&mut value, slot);
                self.0.put(slot, &value)?;
            }
        }
        Ok(())
    }
}

/// Bytes that the kernel holds in TCP sockets' buffers; 0 where it does not tell.
#[cfg(target_os = "linux")]
fn socket_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/net/sockstat").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("TCP: "));
    let words: Vec<_> = line.unwrap_or_default().split(' ').collect();
    let pages = words.windows(2).find(|pair| pair[0] == "mem");
    pages.and_then(|pair| pair[1].parse::<u64>().ok()).unwrap_or(0) * 4096
}
