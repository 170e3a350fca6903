//! The eviction policies beside each other, and beside what knowing the future would give.
//!
//! The policies are those of the store, run without bytes ([`model`]); that the model says what a
//! store does is checked by a replay against a running node in each comparison.

mod belady;
mod model;
pub mod table;

use std::collections::HashSet;
use std::path::Path;

use memkv_store::Policy;
use memkv_workload::generators::Generator;
use memkv_workload::replay::{ReplayOptions, replay};
use memkv_workload::trace::{Request, TraceReader};
use serde::Serialize;

use crate::error::BenchError;
use crate::eviction::model::Room;
use crate::servers::{Medium, Node};

/// Room, in percent of the distinct blocks of a workload.
pub const SHARES: [u64; 3] = [5, 10, 25];
/// What `chain` may be below `lru`, of the hit ratio of `lru`.
const BELOW_LRU: f64 = 0.01;
/// What a running node may differ from the model, in hit ratio.
const APART: f64 = 0.005;

/// Values of the replay against a node: one unit each.
const BLOCK_BYTES: usize = 1024;
const UNIT: u64 = 16 << 10;
/// The node's drive for a named workload: some 4,500 units.
const DRIVE_BYTES: u64 = 80 << 20;
/// A drive may have place for so many blocks in a hundred less than was asked for.
const NARROW: u64 = 1;
/// Drives that are tried until one has as much place as was asked for.
const TRIES: usize = 8;
/// Watermarks as they are shipped, and such that a drive is full nearly always.
const SHIPPED: (u64, u64) = (95, 92);
const FULL: (u64, u64) = (99, 98);
const POOL_BYTES: u64 = 256 << 20;
/// Bytes of one call: so few that a batch of puts finds its place above the high watermark.
const BATCH_BYTES: usize = 64 * BLOCK_BYTES;

/// Prefix hit ratios of one workload.
#[derive(Serialize)]
pub struct Row {
    /// Which workload.
    pub workload: String,
    /// Blocks that its requests name.
    pub references: u64,
    /// Different ones.
    pub distinct: u64,
    /// The ratio at each of [`SHARES`], by policy, in the order of [`Policy::ALL`].
    pub policies: Vec<(&'static str, [f64; SHARES.len()])>,
    /// Belady's optimum at each of [`SHARES`].
    pub optimum: [f64; SHARES.len()],
}

/// A replay against a running node beside the model of it.
#[derive(Serialize)]
pub struct Running {
    /// Which workload.
    pub workload: String,
    /// Which policy.
    pub policy: &'static str,
    /// Blocks above which it evicts.
    pub blocks: u64,
    /// That is so many percent of the distinct ones, where it was asked for.
    pub share: Option<u64>,
    /// The node's prefix hit ratio.
    pub node: f64,
    /// The model's.
    pub model: f64,
}

/// All that was compared.
#[derive(Serialize)]
pub struct Comparison {
    /// By workload.
    pub rows: Vec<Row>,
    /// By policy.
    pub running: Vec<Running>,
}

impl Comparison {
    /// What must hold, and whether it does.
    pub fn checks(&self) -> Vec<(String, bool)> {
        let mut checks = Vec::new();
        for row in &self.rows {
            let of = |policy: Policy| {
                let name = policy.build().name();
                row.policies.iter().find(|(n, _)| *n == name).expect("all were run").1
            };
            let (lru, chain) = (of(Policy::Lru), of(Policy::Chain));
            for ((share, lru), chain) in SHARES.iter().zip(lru).zip(chain) {
                let name = format!("chain is not below lru: {}, {share} %", row.workload);
                checks.push((name, chain >= lru * (1.0 - BELOW_LRU)));
            }
        }
        for running in &self.running {
            let room = running.share.map(|share| format!(", {share} %")).unwrap_or_default();
            let name = format!(
                "the model is what a node does: {}{room}, {}",
                running.workload, running.policy
            );
            checks.push((name, (running.node - running.model).abs() <= APART));
        }
        checks
    }
}

/// What is compared besides the policies on the named workloads.
#[derive(Clone, Copy)]
pub struct Extent<'a> {
    /// A trace.
    pub trace: Option<&'a Path>,
    /// Nodes replay that trace, too.
    pub replay: bool,
}

/// Compares the policies on all named workloads, and on a trace when there is one.
///
/// # Errors
/// When the trace cannot be read, or the node does not do its work.
pub fn compare(binary: &Path, folder: &Path, extent: Extent<'_>) -> Result<Comparison, BenchError> {
    let nodes = Nodes { binary, folder };
    let (mut rows, mut running) = (Vec::new(), Vec::new());
    if let Some(path) = extent.trace {
        let requests = TraceReader::open(path)?.collect::<Result<Vec<_>, _>>()?;
        let name = path.file_name().map(|name| name.to_string_lossy());
        let name = name.as_deref().unwrap_or("trace").split('.').next().unwrap_or("trace");
        let row = row(name, &requests);
        if extent.replay {
            running = nodes.replay_at_shares(&row, &requests)?;
        }
        rows.push(row);
    }
    for generator in Generator::ALL {
        rows.push(row(generator.name(), &generator.requests()));
    }
    let generator = Generator::Chat;
    let requests = generator.requests();
    for policy in Policy::ALL {
        running.push(nodes.replay(policy, generator.name(), &requests, DRIVE_BYTES, SHIPPED)?);
    }
    Ok(Comparison { rows, running })
}

fn row(workload: &str, requests: &[Request]) -> Row {
    let blocks = || requests.iter().flat_map(|request| &request.blocks);
    let distinct = blocks().collect::<HashSet<_>>().len() as u64;
    let room = |share: u64| (distinct * share / 100).max(1) as usize;
    let policies = Policy::ALL.map(|policy| {
        let hits = |share| model::replay(policy.build(), requests, Room::exactly(room(share)));
        (policy.build().name(), SHARES.map(|share| hits(share).ratio()))
    });
    Row {
        workload: workload.to_owned(),
        references: blocks().count() as u64,
        distinct,
        policies: policies.to_vec(),
        optimum: SHARES.map(|share| belady::replay(requests, room(share)).ratio()),
    }
}

/// Nodes that evict.
struct Nodes<'a> {
    binary: &'a Path,
    folder: &'a Path,
}

impl Nodes<'_> {
    fn start(
        &self,
        policy: Policy,
        drive_bytes: u64,
        marks: (u64, u64),
    ) -> Result<(Node, Room), BenchError> {
        let name = policy.build().name();
        let medium = Medium::Evicting { bytes: drive_bytes, policy: name, marks };
        let node = Node::start(self.binary, name, self.folder, POOL_BYTES, &medium)?;
        let (usable, high, low) = node.place()?;
        let blocks = |percent| (usable / UNIT * percent / 100) as usize;
        Ok((node, Room { high: blocks(high), low: blocks(low) }))
    }

    /// All policies at all shares of a workload.
    fn replay_at_shares(
        &self,
        row: &Row,
        requests: &[Request],
    ) -> Result<Vec<Running>, BenchError> {
        let mut running = Vec::new();
        for share in SHARES {
            let drive_bytes = self.drive_for(row.distinct * share / 100)?;
            for policy in Policy::ALL {
                let one = self.replay(policy, &row.workload, requests, drive_bytes, FULL)?;
                running.push(Running { share: Some(share), ..one });
            }
        }
        Ok(running)
    }

    /// Bytes of a drive on which a node keeps as many blocks: none more, and hardly less.
    fn drive_for(&self, blocks: u64) -> Result<u64, BenchError> {
        let mut bytes = blocks * UNIT * 100 / FULL.0;
        for _ in 0..TRIES {
            let (node, room) = self.start(Policy::Lru, bytes, FULL)?;
            node.stop()?;
            let there = room.high as u64;
            if there <= blocks && blocks - there <= blocks * NARROW / 100 {
                return Ok(bytes);
            }
            // A little less than is missing, so that it is not passed again and again.
            let wanted = blocks - blocks * NARROW / 200;
            bytes = (bytes + wanted * UNIT).saturating_sub(there * UNIT);
        }
        Err(BenchError::NoDrive { blocks })
    }

    /// Replays a workload against a node.
    fn replay(
        &self,
        policy: Policy,
        workload: &str,
        requests: &[Request],
        drive_bytes: u64,
        marks: (u64, u64),
    ) -> Result<Running, BenchError> {
        let (node, room) = self.start(policy, drive_bytes, marks)?;
        let options = ReplayOptions {
            block_bytes: BLOCK_BYTES,
            connections: 1,
            verify: true,
            batch_bytes: BATCH_BYTES,
            ..ReplayOptions::default()
        };
        let all = requests.iter().cloned().map(Ok::<_, BenchError>);
        let report = replay(&node.client(1)?, all, &options, &mut |_| {})?;
        node.stop()?;
        let failed = report.faults.failed_operations();
        if failed > 0 || report.faults.wrong_blocks > 0 {
            return Err(BenchError::Replay { failed, wrong: report.faults.wrong_blocks });
        }
        Ok(Running {
            workload: workload.to_owned(),
            policy: policy.build().name(),
            blocks: room.high as u64,
            share: None,
            node: report.hit_ratio,
            model: model::replay(policy.build(), requests, room).ratio(),
        })
    }
}

#[cfg(test)]
mod tests {
    use memkv_workload::block::BlockHash;

    use super::*;

    /// Requests of blocks by small numbers.
    fn requests(chains: &[&[u64]]) -> Vec<Request> {
        let request = |chain: &&[u64]| Request {
            at: std::time::Duration::ZERO,
            input_tokens: 0,
            output_tokens: 0,
            blocks: chain.iter().map(|&block| BlockHash(block)).collect(),
        };
        chains.iter().map(request).collect()
    }

    #[test]
    fn only_prefixes_are_hits() {
        let requests = requests(&[&[1, 2, 3], &[1, 2, 3], &[2, 3], &[4, 2, 3]]);
        for policy in Policy::ALL {
            let hits = model::replay(policy.build(), &requests, Room::exactly(10));
            assert_eq!((hits.references, hits.prefix_hits), (11, 5), "{policy:?}");
        }
        assert_eq!(belady::replay(&requests, 10).prefix_hits, 5);
    }

    #[test]
    fn the_optimum_keeps_what_comes_back_first() {
        // Two blocks of room: the chain that is named again stays, the others pass by.
        let requests = requests(&[&[1, 2], &[3, 4, 5], &[6], &[1, 2], &[7, 8], &[1, 2]]);
        assert_eq!(belady::replay(&requests, 2).prefix_hits, 4);
        let lru = model::replay(Policy::Lru.build(), &requests, Room::exactly(2));
        assert_eq!(lru.prefix_hits, 0);
    }

    #[test]
    fn no_policy_beats_the_optimum_nor_chain_loses_to_lru() {
        for generator in [Generator::Agents, Generator::SystemPrompts] {
            let row = row(generator.name(), &generator.requests());
            for (policy, ratios) in &row.policies {
                for (ratio, optimum) in ratios.iter().zip(row.optimum) {
                    assert!(*ratio <= optimum, "{policy} on {}", generator.name());
                }
            }
            let comparison = Comparison { rows: vec![row], running: Vec::new() };
            for (name, good) in comparison.checks() {
                assert!(good, "{name}");
            }
        }
    }
}
