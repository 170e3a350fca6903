//! One run of the bench: sides, rounds, figures.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Instant;

use memkv_client::Client;
use memkv_dma::{Arena, Hugepages};

use crate::bars::Missing;
use crate::busy::Busy;
use crate::cpu::{self, CpuClock};
use crate::error::{BenchError, doing};
use crate::exists::{Exists, ExistsReport};
use crate::fio::Fio;
use crate::measure::{Load, MemkvWorker, Operation, Party, Progress, Sample, Worker};
use crate::peers::{Absent, Copier, Entrant, Needs, Side, Slices};
use crate::plain::{self, summed};
use crate::plan::{IDLE, LARGE, MIDDLE, POOL_BYTES, Plan, Row, SEVERAL, SMALL};
use crate::ring::{self, Ring};
use crate::servers::{Counters, Medium, Node, PlainServer};

/// What was measured of one row.
#[derive(Default)]
pub struct RowSamples {
    /// Of each side a sample per round.
    pub sides: BTreeMap<Side, Vec<Sample>>,
    /// GiB per second of the disk.
    pub disk: Vec<f64>,
}

impl RowSamples {
    /// The samples of one side; none where it does not take part.
    pub fn of(&self, side: Side) -> &[Sample] {
        self.sides.get(&side).map_or(&[], Vec::as_slice)
    }
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
    /// What could not be measured.
    pub missing: Missing,
    /// Questions whether a block is there.
    pub exists: Vec<ExistsReport>,
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
    binary: PathBuf,
    folder: PathBuf,
    copier: Option<Party>,
    plain: Party,
    summed: Vec<(Side, PlainServer, Party)>,
    peers: Vec<Entrant>,
    missing: Missing,
    nodes: Vec<Member>,
    exists: Exists,
    fio: Result<Fio, String>,
    /// The rings of one worker, and of several.
    single: Vec<Ring>,
    several: Vec<Ring>,
    backing: Vec<(&'static str, String)>,
    /// Which sizes of values each side holds.
    held: BTreeSet<(Holder, usize)>,
    /// How far each side has come in each row.
    progress: BTreeMap<(String, Side), Progress>,
    _server: PlainServer,
}

/// What holds values; several sides of a row may share one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Holder {
    Copier,
    Plain,
    Summed(Side),
    Peer(Side),
    Memory,
    File,
}

impl Holder {
    /// Its values have places by their slots alone: those of one size lie over those of others.
    fn overlays(self) -> bool {
        matches!(self, Holder::Copier | Holder::Plain | Holder::Summed(_))
    }

    fn of(row: &Row, side: Side) -> Holder {
        match side {
            Side::Copy => Holder::Copier,
            Side::Plain | Side::Again => Holder::Plain,
            Side::Summed | Side::Awake => Holder::Summed(side),
            Side::Memcached | Side::Redis | Side::Mooncake => Holder::Peer(side),
            Side::Reference => Holder::Memory,
            Side::Memkv if row.file => Holder::File,
            Side::Memkv => Holder::Memory,
        }
    }
}

/// A node and how to ask it.
struct Member {
    file: bool,
    node: Node,
    clock: CpuClock,
    single: Party,
    several: Party,
    asking: Client,
}

impl Member {
    fn start(binary: &Path, folder: &Path, file: bool, plan: &Plan) -> Result<Member, BenchError> {
        let medium = match file {
            true => Medium::File(plan.file_drive_bytes()),
            false => Medium::Memory(plan.memory_drive_bytes()),
        };
        let node = Node::start(binary, Member::name(file), folder, POOL_BYTES, &medium)?;
        let party = |depth| {
            let client = node.client(depth)?;
            let worker = |_| Box::new(MemkvWorker(client.clone())) as Box<dyn Worker>;
            let workers = (0..depth).map(worker).collect();
            Ok::<_, BenchError>(Party { server: Some(node.clock()?), workers })
        };
        let (single, several, asking) = (party(1)?, party(SEVERAL)?, node.client(1)?);
        Ok(Member { file, clock: node.clock()?, node, single, several, asking })
    }

    fn name(file: bool) -> &'static str {
        if file { "file" } else { "memory" }
    }

    fn counters(&self) -> Result<Counters, BenchError> {
        self.node.counters(&self.asking)
    }

    fn clock(&self) -> CpuClock {
        self.clock
    }
}

impl Bench {
    /// Starts all sides that the plan's rows need, on new files in `folder`; `python` is one that
    /// has Mooncake.
    ///
    /// # Errors
    /// When one does not get ready.
    pub fn start(
        binary: &Path,
        python: Option<&Path>,
        folder: &Path,
        plan: Plan,
    ) -> Result<Bench, BenchError> {
        let rows = plan.rows();
        let mut nodes = Vec::new();
        if !rows.is_empty() || plan.wants(IDLE) {
            nodes.push(Member::start(binary, folder, false, &plan)?);
        }
        let to_file = rows.iter().any(|row| row.file);
        if to_file || plan.wants(IDLE) {
            nodes.push(Member::start(binary, folder, true, &plan)?);
        }
        let (server, plain, congestion) = start_plain(folder, plan.stored_bytes)?;
        let summed = [Side::Summed, Side::Awake].into_iter();
        let summed = summed.filter(|side| rows.iter().any(|row| sides(row).contains(side)));
        let summed = summed.map(|side| start_summed(side, folder, plan.stored_bytes));
        let summed = summed.collect::<Result<_, _>>()?;
        let region = Arena::new(plan.ring_bytes, Hugepages::Prefer)?;
        ring::fill(&region);
        let noise = region.lend_mut(0, LARGE);
        let fio = match to_file {
            true => Fio::prepare(folder, plan.stored_bytes, plan.file_row_bytes, &noise)?,
            false => Err("no row of files is asked for".to_owned()),
        };
        drop(noise);
        let copies = rows.iter().any(|row| sides(row).contains(&Side::Copy));
        let copier = match copies {
            true => Some(copier(plan.stored_bytes)?),
            false => None,
        };
        let congestion = congestion.unwrap_or("the system's default".to_owned());
        let mut backing = vec![
            ("client's buffers", region.backing().to_string()),
            ("plain server", server.backing.clone()),
            ("congestion control of memkv and plain server", congestion),
        ];
        for Member { file, node, .. } in &nodes {
            let name = if *file { "memkv, file" } else { "memkv, memory" };
            backing.push((name, node.describe()?));
        }
        let (peers, missing) = start_peers(&plan, &rows, folder, python)?;
        backing.extend(peers.iter().map(|peer| (peer.side.name(), peer.told.clone())));
        backing.extend(missing.peers.iter().map(|(side, absent)| (side.name(), absent.0.clone())));
        let exists = Exists::start(binary, folder, &plan)?;
        backing.extend(exists.told());
        let (single, several) = (Ring::cut(&region, 1), Ring::cut(&region, SEVERAL));
        let (held, progress) = (BTreeSet::new(), BTreeMap::new());
        Ok(Bench {
            plan,
            binary: binary.to_owned(),
            folder: folder.to_owned(),
            copier,
            plain,
            summed,
            peers,
            missing,
            nodes,
            exists,
            fio,
            single,
            several,
            backing,
            held,
            progress,
            _server: server,
        })
    }

    /// Goes through all rounds, then watches the nodes do nothing, then stops them.
    ///
    /// # Errors
    /// The first failure of any side.
    pub fn run(mut self) -> Result<Outcome, BenchError> {
        let mut rows: Vec<_> =
            self.plan.rows().into_iter().map(|row| (row, RowSamples::default())).collect();
        eprintln!("bench: storing every value once");
        for (row, _) in rows.iter().filter(|(row, _)| !row.first) {
            self.hold(row)?;
        }
        let (mut miscounts, mut counted) = (Vec::new(), 0);
        let (begun, load) = (Instant::now(), self.load()?);
        for round in 0..self.plan.rounds {
            eprintln!("bench: round {} of {}", round + 1, self.plan.rounds);
            for (row, samples) in &mut rows {
                let rose = match row.first {
                    true => self.first(row, samples)?,
                    false => self.counted_row(row, samples, round)?,
                };
                let done = [Side::Memkv, Side::Reference]
                    .map(|side| samples.of(side).last().map_or(0, |sample| sample.operations))
                    .into_iter()
                    .sum();
                counted += done;
                miscounts.extend(miscount(row.load.operation, done, rose));
            }
            self.exists.round(round)?;
        }
        let others = self
            .load()?
            .zip(load)
            .map(|(after, before)| (after - before).max(0.0) / begun.elapsed().as_secs_f64());
        let idle = if self.plan.wants(IDLE) { self.watch_idle()? } else { Vec::new() };
        let exists = self.exists.report();
        drop(self.exists);
        let missing = Missing { disk: self.fio.err(), ..self.missing };
        for member in self.nodes {
            drop((member.single, member.several, member.asking));
            member.node.stop()?;
        }
        let backing = self.backing;
        Ok(Outcome { rows, idle, backing, missing, exists, miscounts, counted, others })
    }

    /// What all nodes together have counted.
    fn counters(&self) -> Result<Counters, BenchError> {
        let mut sum = Counters::default();
        for member in &self.nodes {
            sum = sum.and(member.counters()?);
        }
        Ok(sum)
    }

    /// Sees to it that all sides of a row hold all of its values: nothing is touched for the first
    /// time in a measurement.
    fn hold(&mut self, row: &Row) -> Result<(), BenchError> {
        for side in self.present(row) {
            let (holder, load) = (Holder::of(row, side), asked(row, side));
            let is_new = self.held.insert((holder, load.value_bytes));
            if holder.overlays() {
                self.held.retain(|held| held.0 != holder || held.1 == load.value_bytes);
            }
            if is_new {
                let put = Load { operation: Operation::Put, ..load };
                let operations = load.slots / load.depth as u32;
                self.slice(row, side, put, &mut Progress::default(), operations)?;
            }
        }
        Ok(())
    }

    /// A slice of one side. A peer that fails is not there from then on; what it did until then
    /// counts, and its bars are skipped.
    fn slice(
        &mut self,
        row: &Row,
        side: Side,
        load: Load,
        progress: &mut Progress,
        operations: u32,
    ) -> Result<Option<Sample>, BenchError> {
        if self.missing.has(side) {
            return Ok(None);
        }
        let (slices, rings) = self.side(row, side);
        match slices.slice(rings, load, progress, operations) {
            Ok(sample) => Ok(Some(sample)),
            Err(error) if Side::PEERS.contains(&side) => {
                let reason = format!("{} FAILED in {}: {error}", side.name(), row.name());
                eprintln!("bench: {reason}");
                self.missing.peers.push((side, Absent(reason)));
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Who takes part in a row.
    fn present(&self, row: &Row) -> Vec<Side> {
        sides(row).into_iter().filter(|side| !self.missing.has(*side)).collect()
    }

    /// One side of a row and the rings it uses.
    fn side(&mut self, row: &Row, side: Side) -> (&mut dyn Slices, &mut [Ring]) {
        let single = row.load.depth == 1;
        let rings = if single { &mut self.single } else { &mut self.several };
        let holder = Holder::of(row, side);
        let party = match holder {
            Holder::Copier => self.copier.as_mut().expect("there is memory to copy to"),
            Holder::Plain => &mut self.plain,
            Holder::Summed(side) => {
                let summed = self.summed.iter_mut().find(|summed| summed.0 == side);
                &mut summed.expect("a row has it").2
            }
            Holder::Peer(side) => {
                let peer = self.peers.iter_mut().find(|peer| peer.side == side);
                let peer = peer.expect("only peers that run take part");
                return (peer.slices.as_mut(), rings);
            }
            Holder::Memory | Holder::File => {
                let file = holder == Holder::File;
                let member = self.nodes.iter_mut().find(|member| member.file == file);
                let member = member.expect("the nodes of all wanted rows run");
                if single { &mut member.single } else { &mut member.several }
            }
        };
        (party, rings)
    }

    /// One round of the first puts to a new node, and of those after them. No slice of the one can
    /// stand between slices of the other. What the node has counted comes back.
    fn first(&mut self, row: &Row, into: &mut RowSamples) -> Result<Counters, BenchError> {
        let medium = Medium::Memory(self.plan.first_drive_bytes());
        let node = Node::start(&self.binary, "first", &self.folder, POOL_BYTES, &medium)?;
        let client = node.client(1)?;
        let worker = Box::new(MemkvWorker(client.clone()));
        let mut new = Party { server: Some(node.clock()?), workers: vec![worker] };
        for side in [Side::Memkv, Side::Reference, Side::Plain] {
            let party = if side == Side::Plain { &mut self.plain } else { &mut new };
            let progress = &mut Progress::default();
            let sample = party.slice(&mut self.single, row.load, progress, row.load.slots)?;
            into.sides.entry(side).or_default().push(sample);
        }
        self.held.retain(|held| held.0 != Holder::Plain);
        let counters = node.counters(&client)?;
        drop((new, client));
        node.stop()?;
        Ok(counters)
    }

    /// One round of any other row, and what the nodes have counted in it.
    fn counted_row(
        &mut self,
        row: &Row,
        into: &mut RowSamples,
        round: u32,
    ) -> Result<Counters, BenchError> {
        self.hold(row)?;
        let before = self.counters()?;
        self.row(row, into, round)?;
        Ok(self.counters()?.since(before))
    }

    /// One round of one row: slices of all sides in turn. Each goes on where it stopped in its last
    /// slice.
    fn row(&mut self, row: &Row, into: &mut RowSamples, round: u32) -> Result<(), BenchError> {
        let _busy = Busy::start(row.busy)?;
        let sides = self.present(row);
        let mut sums = vec![Sample::default(); sides.len()];
        for slice in 0..self.plan.slices {
            for turn in 0..sides.len() {
                let at = (turn + (slice + round) as usize) % sides.len();
                let load = asked(row, sides[at]);
                let operations = self.plan.operations(&Row { load, ..*row });
                let operations = operations.div_ceil(sides[at].thrift());
                let key = (row.name(), sides[at]);
                let mut progress = self.progress.remove(&key).unwrap_or_default();
                let sample = self.slice(row, sides[at], load, &mut progress, operations)?;
                self.progress.insert(key, progress);
                sample.iter().for_each(|sample| sums[at].absorb(sample));
            }
        }
        let present = self.present(row);
        for (side, sum) in sides.into_iter().zip(sums).filter(|(side, _)| present.contains(side)) {
            into.sides.entry(side).or_default().push(sum);
        }
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

    /// All nodes at once, their clients connected.
    fn watch_idle(&self) -> Result<Vec<Idle>, BenchError> {
        eprintln!("bench: watching idle nodes for {} s", self.plan.idle.as_secs());
        let clock = |member: &Member| member.clock().read().map_err(doing("a CPU clock"));
        let before = self.nodes.iter().map(clock).collect::<Result<Vec<_>, _>>()?;
        let begun = Instant::now();
        std::thread::sleep(self.plan.idle);
        let took = begun.elapsed().as_secs_f64();
        let after = self.nodes.iter().map(clock).collect::<Result<Vec<_>, _>>()?;
        let spent = after.into_iter().zip(before).map(|(after, before)| after - before);
        let idle = self.nodes.iter().zip(spent).map(|(member, spent)| Idle {
            name: Member::name(member.file),
            share: spent.as_secs_f64() / took,
        });
        Ok(idle.collect())
    }

    /// CPU seconds that the machine has spent on others than us.
    fn load(&self) -> Result<Option<f64>, BenchError> {
        let Some(all) = cpu::of_machine() else { return Ok(None) };
        let nodes = self.nodes.iter().map(Member::clock);
        let peers = self.peers.iter().flat_map(|peer| peer.clocks.iter().copied());
        let summed = self.summed.iter().filter_map(|(.., party)| party.server);
        let plain = self.plain.server.into_iter().chain(summed).chain([CpuClock::OWN]);
        let mut own = cpu::of_children();
        for clock in nodes.chain(peers).chain(plain).chain(self.exists.clocks()) {
            own += clock.read().map_err(doing("a CPU clock"))?;
        }
        Ok(Some(all.as_secs_f64() - own.as_secs_f64()))
    }
}

/// The plain server, as many connections to it, and what its congestion control is.
fn start_plain(
    folder: &Path,
    bytes: u64,
) -> Result<(PlainServer, Party, Option<String>), BenchError> {
    let server = PlainServer::start(folder, bytes)?;
    let mut workers: Vec<Box<dyn Worker>> = Vec::new();
    let mut congestion = None;
    for _ in 0..SEVERAL {
        let client = plain::Client::connect(server.port).map_err(doing("the plain server"))?;
        congestion = client.congestion_control();
        workers.push(Box::new(client));
    }
    let party = Party { server: Some(server.clock()?), workers };
    Ok((server, party, congestion))
}

/// The same with sums and lent pages.
fn start_summed(
    side: Side,
    folder: &Path,
    bytes: u64,
) -> Result<(Side, PlainServer, Party), BenchError> {
    let server = PlainServer::start(folder, bytes)?;
    let awake = side == Side::Awake;
    let connect = |_| -> Result<Box<dyn Worker>, BenchError> {
        let client = summed::Client::connect(server.port, awake);
        Ok(Box::new(client.map_err(doing("the summing server"))?))
    };
    let workers = (0..SEVERAL).map(connect).collect::<Result<_, _>>()?;
    let party = Party { server: Some(server.clock()?), workers };
    Ok((side, server, party))
}

/// The peers that rows have, and why others cannot be had.
fn start_peers(
    plan: &Plan,
    rows: &[Row],
    folder: &Path,
    python: Option<&Path>,
) -> Result<(Vec<Entrant>, Missing), BenchError> {
    let &Plan { stored_bytes, ring_bytes, .. } = plan;
    let needs = Needs { folder, python, stored_bytes, ring_bytes, connections: SEVERAL };
    let (mut peers, mut missing) = (Vec::new(), Missing::default());
    for side in Side::PEERS {
        if rows.iter().any(|row| sides(row).contains(&side)) {
            match Entrant::start(side, &needs)? {
                Ok(entrant) => peers.push(entrant),
                Err(absent) => missing.peers.push((side, absent)),
            }
        }
    }
    Ok((peers, missing))
}

/// Memory to copy values to.
fn copier(bytes: u64) -> Result<Party, BenchError> {
    let arena = Arena::new(bytes, Hugepages::Prefer)?;
    Ok(Party { server: None, workers: vec![Box::new(Copier(arena))] })
}

/// Who takes part in a row, where it is there.
pub fn sides(row: &Row) -> Vec<Side> {
    let Load { value_bytes, depth, batch, .. } = row.load;
    if row.first {
        return vec![Side::Plain, Side::Reference, Side::Memkv];
    }
    let is_middling = (MIDDLE..=LARGE).contains(&value_bytes) && depth == 1;
    let mut sides = vec![Side::Plain];
    if (MIDDLE..=LARGE).contains(&value_bytes) && !row.file {
        sides.push(Side::Summed);
    }
    if value_bytes == SMALL && batch == 1 {
        sides.push(Side::Summed);
        // Beside a busy thread whoever waits awake takes the core that the other end needs.
        sides.extend((row.busy == 0).then_some(Side::Awake));
    }
    if is_middling && row.busy == 0 {
        sides.push(Side::Copy);
    }
    if value_bytes == LARGE && depth == 1 && row.busy == 0 {
        sides.push(Side::Again);
    }
    if is_middling {
        sides.extend(Side::PEERS);
    }
    if row.file || value_bytes > LARGE {
        sides.push(Side::Reference);
    }
    sides.push(Side::Memkv);
    sides
}

/// What is asked of a side: of the reference no more than values of 4 MiB.
fn asked(row: &Row, side: Side) -> Load {
    let value_bytes = match side {
        Side::Reference => row.load.value_bytes.min(LARGE),
        _ => row.load.value_bytes,
    };
    let slots = row.load.slots * (row.load.value_bytes / value_bytes) as u32;
    Load { value_bytes, slots, ..row.load }
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
