//! One run of the bench: sides, rounds, figures.

use std::path::Path;
use std::time::Instant;

use memkv_client::Client;
use memkv_dma::{Arena, Hugepages};

use crate::cpu::{self, CpuClock};
use crate::error::{BenchError, doing};
use crate::fio::Fio;
use crate::measure::{MemkvWorker, Operation, Party, Progress, Sample, Worker, stretch};
use crate::plain;
use crate::plan::{FILE_DEPTH, LARGE, POOL_BYTES, Plan, Row};
use crate::ring::{self, Ring};
use crate::servers::{Counters, Medium, Node, PlainServer};

/// What was measured of one row, a sample per round.
#[derive(Default)]
pub struct RowSamples {
    /// The plain server.
    pub plain: Vec<Sample>,
    /// The plain server once more, where noise is measured.
    pub again: Vec<Sample>,
    /// memkv.
    pub memkv: Vec<Sample>,
    /// GiB per second of the disk.
    pub disk: Vec<f64>,
}

/// How a node idles: its name and the share of one core that it took.
pub struct Idle {
    /// Which node.
    pub name: &'static str,
    /// CPU time over time.
    pub share: f64,
}

/// Everything a run found.
pub struct Outcome {
    /// Rows and their samples.
    pub rows: Vec<(Row, RowSamples)>,
    /// What the idle nodes took.
    pub idle: Vec<Idle>,
    /// What each side's memory is made of, and other circumstances.
    pub backing: Vec<(&'static str, String)>,
    /// Why there is no speed of the disk.
    pub no_disk: Option<String>,
    /// Where counters did not rise as they should have.
    pub miscounts: Vec<String>,
    /// Operations whose counters were compared.
    pub counted: u64,
    /// Cores that others kept busy meanwhile, on average.
    pub others: Option<f64>,
}

/// The servers and the memory of a run.
pub struct Bench {
    plan: Plan,
    plain: Party,
    nodes: [Member; 2],
    fio: Result<Fio, String>,
    /// The rings of one worker, and of several.
    single: Vec<Ring>,
    several: Vec<Ring>,
    backing: Vec<(&'static str, String)>,
    _server: PlainServer,
}

/// A node and how to ask it.
struct Member {
    name: &'static str,
    node: Node,
    party: Party,
    asking: Client,
}

impl Member {
    fn start(
        binary: &Path,
        name: &'static str,
        folder: &Path,
        medium: &Medium,
        depth: usize,
    ) -> Result<Member, BenchError> {
        let node = Node::start(binary, name, folder, POOL_BYTES, medium)?;
        let client = node.client(depth)?;
        let worker = |_| Box::new(MemkvWorker(client.clone())) as Box<dyn Worker>;
        let party = Party { server: node.clock()?, workers: (0..depth).map(worker).collect() };
        let asking = node.client(1)?;
        Ok(Member { name, node, party, asking })
    }

    fn counters(&self) -> Result<Counters, BenchError> {
        self.node.counters(&self.asking)
    }
}

impl Bench {
    /// Starts all sides on new files in `folder`.
    ///
    /// # Errors
    /// When one does not get ready.
    pub fn start(binary: &Path, folder: &Path, plan: Plan) -> Result<Bench, BenchError> {
        let memory = Medium::Memory(plan.memory_drive_bytes());
        let file = Medium::File(plan.file_drive_bytes());
        let nodes = [
            Member::start(binary, "memory", folder, &memory, 1)?,
            Member::start(binary, "file", folder, &file, FILE_DEPTH)?,
        ];
        let server = PlainServer::start(folder, plan.stored_bytes)?;
        let mut workers: Vec<Box<dyn Worker>> = Vec::new();
        let mut congestion = None;
        for _ in 0..FILE_DEPTH {
            let client = plain::Client::connect(server.port).map_err(doing("the plain server"))?;
            congestion = client.congestion_control();
            workers.push(Box::new(client));
        }
        let plain = Party { server: server.clock()?, workers };
        let region = Arena::new(plan.ring_bytes, Hugepages::Prefer)?;
        ring::fill(&region);
        let noise = region.lend_mut(0, LARGE);
        let fio = Fio::prepare(folder, plan.stored_bytes, plan.file_row_bytes, &noise)?;
        drop(noise);
        let backing = vec![
            ("client's buffers", region.backing().to_string()),
            ("plain server", server.backing.clone()),
            ("memkv, memory", nodes[0].node.describe()?),
            ("memkv, file", nodes[1].node.describe()?),
            ("congestion control", congestion.unwrap_or("the system's default".to_owned())),
        ];
        let (single, several) = (Ring::cut(&region, 1), Ring::cut(&region, FILE_DEPTH));
        Ok(Bench { plan, plain, nodes, fio, single, several, backing, _server: server })
    }

    /// Goes through all rounds, then watches the nodes do nothing, then stops them.
    ///
    /// # Errors
    /// The first failure of any side.
    pub fn run(mut self) -> Result<Outcome, BenchError> {
        let mut rows: Vec<_> =
            self.plan.rows().into_iter().map(|row| (row, RowSamples::default())).collect();
        self.warm_up(&rows)?;
        let (mut miscounts, mut counted) = (Vec::new(), 0);
        let (begun, load) = (Instant::now(), self.load()?);
        for round in 0..self.plan.rounds {
            eprintln!("bench: round {} of {}", round + 1, self.plan.rounds);
            for (row, samples) in &mut rows {
                let counters = self.nodes[usize::from(row.file)].counters()?;
                self.row(row, samples, round)?;
                let done = samples.memkv.last().expect("the row was just measured").operations;
                let rose = self.nodes[usize::from(row.file)].counters()?.since(counters);
                counted += done;
                miscounts.extend(miscount(row.load.operation, done, rose));
            }
        }
        let others = self
            .load()?
            .zip(load)
            .map(|(after, before)| (after - before).max(0.0) / begun.elapsed().as_secs_f64());
        let idle = self.watch_idle()?;
        let no_disk = self.fio.err();
        for member in self.nodes {
            drop((member.party, member.asking));
            member.node.stop()?;
        }
        let backing = self.backing;
        Ok(Outcome { rows, idle, backing, no_disk, miscounts, counted, others })
    }

    /// Stores every value once on every side, so that nothing is touched for the first time later.
    fn warm_up(&mut self, rows: &[(Row, RowSamples)]) -> Result<(), BenchError> {
        eprintln!("bench: storing every value once");
        for (row, _) in rows.iter().filter(|(row, _)| row.load.operation == Operation::Put) {
            let operations = row.load.slots / row.load.depth as u32;
            for memkv in [false, true] {
                let (party, rings) = self.side(row, memkv);
                stretch(party, rings, row.load, &mut Progress::default(), operations)?;
            }
        }
        Ok(())
    }

    /// One side of a row and the rings it uses.
    fn side(&mut self, row: &Row, memkv: bool) -> (&mut Party, &mut [Ring]) {
        let rings = if row.load.depth == 1 { &mut self.single } else { &mut self.several };
        let party = match memkv {
            true => &mut self.nodes[usize::from(row.file)].party,
            false => &mut self.plain,
        };
        (party, rings)
    }

    /// One round of one row: slices of all sides in turn.
    fn row(&mut self, row: &Row, into: &mut RowSamples, round: u32) -> Result<(), BenchError> {
        let operations = self.plan.operations(row);
        // Is it memkv's turn, and where do the figures go: plain, plain again, memkv. Each goes on
        // where it stopped in its last slice.
        let sides = if is_noise_row(row) { 3 } else { 2 };
        let mut sums = vec![Sample::default(); sides];
        let mut progress = [Progress::default(), Progress::default()];
        for slice in 0..self.plan.slices {
            for turn in 0..sides {
                let at = (turn + (slice + round) as usize) % sides;
                let memkv = at + 1 == sides;
                let (party, rings) = self.side(row, memkv);
                let progress = &mut progress[usize::from(memkv)];
                sums[at].absorb(&stretch(party, rings, row.load, progress, operations)?);
            }
        }
        into.memkv.extend(sums.pop());
        into.again.extend(sums.drain(1..));
        into.plain.extend(sums.pop());
        if row.file
            && let Ok(fio) = &self.fio
        {
            match fio.run(row.load.operation) {
                Ok(speed) => into.disk.push(speed),
                Err(reason) => self.fio = Err(reason),
            }
        }
        Ok(())
    }

    /// Both nodes at once, their clients connected.
    fn watch_idle(&self) -> Result<Vec<Idle>, BenchError> {
        eprintln!("bench: watching idle nodes for {} s", self.plan.idle.as_secs());
        let clock = |member: &Member| member.party.server.read().map_err(doing("a CPU clock"));
        let before = self.nodes.iter().map(clock).collect::<Result<Vec<_>, _>>()?;
        let begun = Instant::now();
        std::thread::sleep(self.plan.idle);
        let took = begun.elapsed().as_secs_f64();
        let after = self.nodes.iter().map(clock).collect::<Result<Vec<_>, _>>()?;
        let spent = after.into_iter().zip(before).map(|(after, before)| after - before);
        let idle = self.nodes.iter().zip(spent);
        Ok(idle
            .map(|(member, spent)| Idle { name: member.name, share: spent.as_secs_f64() / took })
            .collect())
    }

    /// CPU seconds that the machine has spent on others than us.
    fn load(&self) -> Result<Option<f64>, BenchError> {
        let Some(all) = cpu::of_machine() else { return Ok(None) };
        let [memory, file] = &self.nodes;
        let servers = [memory.party.server, file.party.server, self.plain.server, CpuClock::OWN];
        let mut own = cpu::of_children();
        for clock in servers {
            own += clock.read().map_err(doing("a CPU clock"))?;
        }
        Ok(Some(all.as_secs_f64() - own.as_secs_f64()))
    }
}

/// The rows in which the plain server is measured twice.
fn is_noise_row(row: &Row) -> bool {
    row.load.value_bytes == LARGE && !row.file
}

/// Every put enters the index and the journal, every get takes a lease: the bench measures the
/// store, not a way around it.
fn miscount(operation: Operation, done: u64, rose: Counters) -> Option<String> {
    let fine = match operation {
        Operation::Put => {
            rose.inserts == done
                && rose.wire_puts == done
                && rose.appends >= done
                && rose.wire_appends >= done
        }
        Operation::Get => rose.leases == done && rose.wire_hits == done,
    };
    (!fine).then(|| format!("{done} {}s, but counters rose by {rose:?}", operation.name()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn puts_that_miss_index_or_journal_are_noticed() {
        let good = Counters { inserts: 5, wire_puts: 5, appends: 6, wire_appends: 6, ..NONE };
        assert_eq!(miscount(Operation::Put, 5, good), None);
        for bad in [
            Counters { inserts: 4, ..good },
            Counters { inserts: 6, ..good },
            Counters { appends: 4, ..good },
            Counters { wire_puts: 0, ..good },
            Counters { wire_appends: 4, ..good },
        ] {
            assert!(miscount(Operation::Put, 5, bad).is_some(), "{bad:?}");
        }
    }

    #[test]
    fn gets_without_a_lease_are_noticed() {
        let good = Counters { leases: 5, wire_hits: 5, ..NONE };
        assert_eq!(miscount(Operation::Get, 5, good), None);
        assert!(miscount(Operation::Get, 5, Counters { leases: 4, ..good }).is_some());
        assert!(miscount(Operation::Get, 5, Counters { wire_hits: 4, ..good }).is_some());
    }

    const NONE: Counters =
        Counters { inserts: 0, leases: 0, appends: 0, wire_puts: 0, wire_hits: 0, wire_appends: 0 };
}
