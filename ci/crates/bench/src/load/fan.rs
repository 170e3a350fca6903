//! One client and several nodes: keys go to nodes by rendezvous hashing, and some keys are asked for far
//! more often than others. What a GiB costs must not depend on how many nodes there are.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use memkv_client::Client;
use memkv_dma::{Arena, Hugepages};

use crate::bars::Bar;
use crate::cpu::CpuClock;
use crate::error::{BenchError, doing};
use crate::load::{Effort, LoadReport};
use crate::measure::{MemkvWorker, Operation, Worker};
use crate::report::Spread;
use crate::ring::{Ring, fill, is_stamped, stamp};
use crate::section::Grid;
use crate::servers::{Medium, Node};
use crate::tables::{ratio, spread};

const MIB: u64 = 1 << 20;
/// How many nodes.
const COUNTS: [usize; 4] = [1, 2, 4, 8];
const NAMES: [&str; 15] = [
    "one", "two-a", "two-b", "four-a", "four-b", "four-c", "four-d", "eight-a", "eight-b",
    "eight-c", "eight-d", "eight-e", "eight-f", "eight-g", "eight-h",
];
/// Threads that call, each with a connection to every node.
const THREADS: usize = 4;
/// Values that are stored, by their bytes.
const STORED: [(u32, usize); 2] = [(96, MIB as usize), (40, 4 * MIB as usize)];
/// Bytes that a slice moves, about, and slices of each count in a round.
const SLICE: u64 = 512 * MIB;
const SLICES: u32 = 3;
/// The client's cold buffers.
const RING: u64 = 256 * MIB;
/// A node's pool.
const POOL: u64 = 64 * MIB;

/// CPU seconds per GiB beside one node, at most.
const COST: f64 = 1.05;

/// As `--only` and the checks have it.
pub const NAME: &str = "1 to 4 MiB, uneven keys, several nodes, memory";

/// Bytes of the drive of each of so many nodes: its share of the values, which is uneven, values being
/// replaced, and a journal.
fn drive_bytes(count: usize) -> u64 {
    (96 + 448 / count as u64) * MIB
}

/// Hugepages of 2 MiB for it.
pub fn hugepages() -> u64 {
    let nodes = COUNTS.iter().map(|&count| count as u64 * (drive_bytes(count) + POOL));
    (RING + nodes.sum::<u64>()) / (2 * MIB)
}

/// Some nodes and a client of all of them.
struct Fleet {
    nodes: Vec<Node>,
    client: Client,
    clocks: Vec<CpuClock>,
}

/// What a slice, or several, took.
#[derive(Clone, Copy, Default)]
struct Cost {
    bytes: u64,
    wall: Duration,
    client: Duration,
    servers: Duration,
}

impl Cost {
    fn gib(self) -> f64 {
        self.bytes as f64 / f64::from(1 << 30)
    }

    fn per_gib(self) -> f64 {
        (self.client + self.servers).as_secs_f64() / self.gib()
    }

    fn absorb(&mut self, other: Cost) {
        self.bytes += other.bytes;
        self.wall += other.wall;
        self.client += other.client;
        self.servers += other.servers;
    }
}

impl Fleet {
    fn start(binary: &Path, folder: &Path, at: usize) -> Result<Fleet, BenchError> {
        let (count, first) = (COUNTS[at], COUNTS[..at].iter().sum::<usize>());
        let medium = Medium::Memory(drive_bytes(count));
        let nodes: Vec<_> = NAMES[first..first + count]
            .iter()
            .map(|name| Node::start(binary, name, folder, POOL, &medium))
            .collect::<Result<_, _>>()?;
        let clocks = nodes.iter().map(Node::clock).collect::<Result<_, _>>()?;
        let client = Node::client_of(&nodes, THREADS)?;
        let mut worker = MemkvWorker(client.clone());
        for (slots, bytes) in STORED {
            let mut value = vec![0; bytes];
            for slot in 0..slots {
                stamp(&mut value, slot);
                worker.put(slot, &value)?;
            }
        }
        Ok(Fleet { nodes, client, clocks })
    }

    fn servers(&self) -> Result<Duration, BenchError> {
        let read = |clock: &CpuClock| clock.read().map_err(doing("a CPU clock"));
        self.clocks.iter().map(read).sum()
    }

    /// A slice of all threads.
    fn slice(
        &self,
        rings: &mut [Ring],
        operation: Operation,
        seed: u64,
    ) -> Result<Cost, BenchError> {
        let own = || CpuClock::OWN.read().map_err(doing("a CPU clock"));
        let (client, servers, begun) = (own()?, self.servers()?, Instant::now());
        let bytes: Result<u64, BenchError> = thread::scope(|scope| {
            let threads: Vec<_> = rings
                .iter_mut()
                .zip(0..)
                .map(|(ring, number)| {
                    let worker = MemkvWorker(self.client.clone());
                    scope.spawn(move || calls(worker, ring, operation, seed * 64 + number))
                })
                .collect();
            threads.into_iter().map(|t| t.join().expect("a caller does not panic")).sum()
        });
        let bytes = bytes?;
        let (wall, client, servers) = (begun.elapsed(), own()? - client, self.servers()? - servers);
        Ok(Cost { bytes, wall, client, servers })
    }
}

/// One thread's calls.
fn calls(
    mut worker: MemkvWorker,
    ring: &mut Ring,
    operation: Operation,
    seed: u64,
) -> Result<u64, BenchError> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut moved = 0;
    while moved < SLICE / THREADS as u64 {
        let (slots, bytes) = STORED[usize::from(rng.u8(..4) == 0)];
        let slot = uneven(&mut rng, slots);
        let mut buffer = ring.next(bytes);
        let value = buffer.as_mut_slice();
        match operation {
            Operation::Put => {
                stamp(value, slot);
                worker.put(slot, value)?;
            }
            Operation::Get => {
                worker.get(slot, value)?;
                if !is_stamped(value, slot) {
                    return Err(BenchError::Wrong { slot });
                }
            }
        }
        moved += bytes as u64;
    }
    Ok(moved)
}

/// A slot of so many: the first is drawn most often, the tenth about a tenth as often (Zipf).
fn uneven(rng: &mut fastrand::Rng, slots: u32) -> u32 {
    let drawn = f64::from(slots + 1).powf(rng.f64());
    (drawn as u32 - 1).min(slots - 1)
}

/// Measures it.
///
/// # Errors
/// When a node fails, or a value is another one.
pub fn measure(binary: &Path, folder: &Path, effort: Effort) -> Result<LoadReport, BenchError> {
    let region = Arena::new(RING, Hugepages::Prefer)?;
    fill(&region);
    let mut rings = Ring::cut(&region, THREADS);
    let fleets: Vec<_> =
        (0..COUNTS.len()).map(|at| Fleet::start(binary, folder, at)).collect::<Result<_, _>>()?;
    let rounds = effort.rounds * 2 + 1;
    let mut costs = vec![[const { Vec::new() }; COUNTS.len()]; Operation::ALL.len()];
    for round in 0..rounds {
        for (operation, costs) in Operation::ALL.into_iter().zip(&mut costs) {
            let mut sums = [Cost::default(); COUNTS.len()];
            for slice in 0..SLICES {
                let seed = u64::from(round * SLICES + slice);
                for turn in 0..fleets.len() {
                    let at = (turn + seed as usize) % fleets.len();
                    sums[at].absorb(fleets[at].slice(&mut rings, operation, seed)?);
                }
            }
            costs.iter_mut().zip(sums).for_each(|(costs, sum)| costs.push(sum));
        }
    }
    for Fleet { nodes, client, .. } in fleets {
        drop(client);
        nodes.into_iter().try_for_each(Node::stop)?;
    }
    Ok(report(&costs, rounds))
}

fn report(costs: &[[Vec<Cost>; COUNTS.len()]], rounds: u32) -> LoadReport {
    let head = ["", "nodes", "CPU s/GiB", "client + servers", "beside one node", "GiB/s"];
    let mut grid = Grid::new(&format!("{NAME}, {THREADS} threads, {rounds} rounds:"), &head);
    let mut bars = Vec::new();
    for (operation, costs) in Operation::ALL.into_iter().zip(costs) {
        let one = &costs[0];
        for (count, own) in COUNTS.into_iter().zip(costs) {
            let spread_of = |figure: &dyn Fn(&Cost) -> f64| {
                Spread::of(own.iter().map(figure)).expect("there is a round")
            };
            let over = own.iter().zip(one).map(|(own, one)| own.per_gib() / one.per_gib());
            let over = Spread::of(over).expect("there is a round");
            let part = |time: fn(&Cost) -> Duration| {
                spread_of(&|cost| time(cost).as_secs_f64() / cost.gib()).median
            };
            grid.rows.push(vec![
                operation.name().to_owned(),
                count.to_string(),
                spread(spread_of(&|cost| cost.per_gib()), 3),
                format!("{:.3} + {:.3}", part(|cost| cost.client), part(|cost| cost.servers)),
                ratio(over),
                spread(spread_of(&|cost| cost.gib() / cost.wall.as_secs_f64()), 2),
            ]);
            if count > 1 {
                let row = format!("{} {NAME}", operation.name());
                bars.push(Bar::at_most(row, format!("CPU of {count} beside one"), over, COST));
            }
        }
    }
    LoadReport { grids: vec![grid], notes: Vec::new(), bars }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_keys_are_asked_for_often_and_every_key_sometimes() {
        let mut rng = fastrand::Rng::with_seed(1);
        let mut drawn = [0_u32; 96];
        (0..100_000).for_each(|_| drawn[uneven(&mut rng, 96) as usize] += 1);
        assert!(drawn.iter().all(|&times| times > 50), "{drawn:?}");
        let first: u32 = drawn[..10].iter().sum();
        assert!((40_000..70_000).contains(&first), "{first}");
    }

    #[test]
    fn every_node_has_a_name_and_room_for_an_uneven_share() {
        assert_eq!(NAMES.len(), COUNTS.iter().sum::<usize>());
        let stored: u64 =
            STORED.iter().map(|(slots, bytes)| u64::from(*slots) * *bytes as u64).sum();
        for count in COUNTS {
            assert!(drive_bytes(count) * count as u64 > 2 * stored, "{count}");
        }
    }
}
