//! How long it takes to ask whether a block is there, one question at a time.
//!
//! The question is about a block that never was, so that nothing but the way there and back and a
//! look into an index is measured; beside it stand the same question to the peers and a ping of 64
//! bytes, which is the way alone. What a way costs depends on the cores: where each end has its own,
//! both wake up from idling for each question; on one they hand it to each other; where they are free
//! to choose, the system decides which it is; and beside busy threads they wait for their turn.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use serde::Serialize;

use crate::bars::Bar;
use crate::busy::Busy;
use crate::cpu::CpuClock;
use crate::error::{BenchError, doing};
use crate::measure::{Asker, MemkvWorker, Sample, questions};
use crate::peers::{Peer, Side};
use crate::plain;
use crate::plan::{Plan, regime};
use crate::report::{Spread, ratios};
use crate::servers::{Medium, Node, PlainServer};

const MIB: u64 = 1 << 20;
/// Sizes of servers that store nothing.
const POOL: u64 = 128 * MIB;
const DRIVE: u64 = 512 * MIB;
const ARENA: u64 = 2 * MIB;
/// Questions of one side in a slice, and for how long they are asked at most: beside busy threads
/// each may wait for milliseconds.
const QUESTIONS: u32 = 500;
const PATIENCE: Duration = Duration::from_millis(100);

/// With a core free: microseconds of half of the answers, and the same beside memcached, at most.
const FREE_US: f64 = 12.0;
const FREE_BESIDE_MEMCACHED: f64 = 0.3;
/// Client and server on one core: half of the answers beside plain TCP, at most.
const BOUND_BESIDE_PLAIN: f64 = 1.15;
/// Beside two busy threads: microseconds of 99 of 100 answers, at most.
const BUSY_US: f64 = 100.0;

/// In which circumstances it is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Scene {
    Free,
    OneCore,
    Apart,
    Busy,
}

impl Scene {
    const ALL: [Scene; 4] = [Scene::Free, Scene::OneCore, Scene::Apart, Scene::Busy];

    /// As `--only` and the checks have it.
    fn name(self) -> String {
        let cores = match self {
            Scene::OneCore => "one core for both ends",
            Scene::Apart => "a core for each end",
            Scene::Free | Scene::Busy => "all cores free to use",
        };
        format!("Exists, 1 connection, {cores}, {}", regime(self.busy()))
    }

    fn busy(self) -> usize {
        if self == Scene::Busy { 2 } else { 0 }
    }

    /// Whether the servers are bound to the first core.
    fn is_bound(self) -> bool {
        matches!(self, Scene::OneCore | Scene::Apart)
    }

    /// Which core the thread that asks is bound to.
    fn core(self) -> Option<usize> {
        match self {
            Scene::OneCore => Some(0),
            Scene::Apart => Some(1),
            Scene::Free | Scene::Busy => None,
        }
    }

    /// Whether the machine has the cores for it.
    fn is_possible(self) -> bool {
        let cores = thread::available_parallelism().map_or(1, |cores| cores.get());
        self.core().is_none_or(|core| core < cores)
    }
}

/// The servers, and a connection to each; all are bound to one core, or none is.
struct Stage {
    askers: Vec<(Side, CpuClock, Box<dyn Asker>)>,
    /// What the node is made of.
    told: String,
    _servers: (PlainServer, Vec<Peer>, Node),
}

impl Stage {
    fn start(binary: &Path, folder: &Path, bound: bool) -> Result<Stage, BenchError> {
        let name = if bound { "bound" } else { "free" };
        let folder = &folder.join(name);
        fs::create_dir(folder).map_err(doing("a folder for logs"))?;
        let plain = PlainServer::start(folder, ARENA)?;
        let ping = plain::Client::connect(plain.port).map_err(doing("the plain server"))?;
        let mut askers: Vec<(_, _, Box<dyn Asker>)> =
            vec![(Side::Plain, plain.clock()?, Box::new(ping))];
        let mut peers = Vec::new();
        for side in Side::SERVED {
            if let Ok(peer) = Peer::start(side, folder)? {
                askers.push((side, peer.clock()?, peer.asker()?));
                peers.push(peer);
            }
        }
        let node = Node::start(binary, name, folder, POOL, &Medium::Memory(DRIVE))?;
        askers.push((Side::Memkv, node.clock()?, Box::new(MemkvWorker(node.client(1)?))));
        Ok(Stage { askers, told: node.describe()?, _servers: (plain, peers, node) })
    }
}

/// One scene and what was found in it, a sample of each side in each round.
struct Row {
    scene: Scene,
    sides: BTreeMap<Side, Vec<Sample>>,
}

/// All scenes that are wanted.
pub struct Exists {
    rows: Vec<Row>,
    free: Option<Stage>,
    bound: Option<Stage>,
    slices: u32,
}

impl Exists {
    /// Starts what the plan wants.
    ///
    /// # Errors
    /// When a server does not get ready.
    pub fn start(binary: &Path, folder: &Path, plan: &Plan) -> Result<Exists, BenchError> {
        let scenes = Scene::ALL.into_iter().filter(|scene| scene.is_possible());
        let scenes = scenes.filter(|scene| plan.wants(&scene.name()));
        let rows: Vec<_> = scenes.map(|scene| Row { scene, sides: BTreeMap::new() }).collect();
        let needs = |bound: bool| rows.iter().any(|row| row.scene.is_bound() == bound);
        let stage = |bound: bool| match needs(bound) {
            true => on_core(bound.then_some(0), || Stage::start(binary, folder, bound)).map(Some),
            false => Ok(None),
        };
        let (free, bound) = (stage(false)?, stage(true)?);
        Ok(Exists { free, bound, slices: plan.slices, rows })
    }

    /// One round of all scenes: slices of all sides in turn.
    ///
    /// # Errors
    /// The first failure of any side.
    pub fn round(&mut self, round: u32) -> Result<(), BenchError> {
        for Row { scene, sides } in &mut self.rows {
            let stage = if scene.is_bound() { &mut self.bound } else { &mut self.free };
            let askers = &mut stage.as_mut().expect("it was started for this scene").askers;
            let _busy = Busy::start(scene.busy())?;
            let slices = self.slices;
            let sums = on_core(scene.core(), || ask_all(askers, slices, round))?;
            for ((side, ..), sum) in askers.iter().zip(sums) {
                sides.entry(*side).or_default().push(sum);
            }
        }
        Ok(())
    }

    /// What the nodes are made of.
    pub fn told(&self) -> Vec<(&'static str, String)> {
        let free = self.free.iter().map(|stage| ("memkv, Exists, all cores", stage.told.clone()));
        let bound = self.bound.iter().map(|stage| ("memkv, Exists, one core", stage.told.clone()));
        free.chain(bound).collect()
    }

    /// The clocks of all servers.
    pub fn clocks(&self) -> impl Iterator<Item = CpuClock> {
        let stages = self.free.iter().chain(&self.bound);
        stages.flat_map(|stage| stage.askers.iter().map(|(_, clock, _)| *clock))
    }

    /// What was found.
    pub fn report(&self) -> Vec<ExistsReport> {
        self.rows.iter().map(ExistsReport::of).collect()
    }
}

/// Whether the plan wants any of it.
pub fn is_wanted(plan: &Plan) -> bool {
    Scene::ALL.iter().any(|scene| plan.wants(&scene.name()))
}

/// Hugepages of 2 MiB for it.
pub const HUGEPAGES: u64 = 2 * (POOL + DRIVE + ARENA) / (2 * MIB);

fn ask_all(
    askers: &mut [(Side, CpuClock, Box<dyn Asker>)],
    slices: u32,
    round: u32,
) -> Result<Vec<Sample>, BenchError> {
    let mut sums = vec![Sample::default(); askers.len()];
    for slice in 0..slices {
        for turn in 0..askers.len() {
            let at = (turn + (slice + round) as usize) % askers.len();
            let (_, server, asker) = &mut askers[at];
            sums[at].absorb(&questions(asker.as_mut(), *server, QUESTIONS, PATIENCE)?);
        }
    }
    Ok(sums)
}

/// Does it on a thread that is bound to a core, as is what it starts; or just does it.
fn on_core<T: Send>(
    core: Option<usize>,
    act: impl FnOnce() -> Result<T, BenchError> + Send,
) -> Result<T, BenchError> {
    let Some(core) = core else { return act() };
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            bind(core).map_err(doing("a thread cannot be bound to a core"))?;
            act()
        });
        thread.join().expect("a bound thread does not panic")
    })
}

#[cfg(target_os = "linux")]
fn bind(core: usize) -> nix::Result<()> {
    use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
    use nix::unistd::Pid;
    let own = Pid::from_raw(0);
    let may = sched_getaffinity(own)?;
    let mut cores = (0..CpuSet::count()).filter(|&core| may.is_set(core).unwrap_or(false));
    let mut one = CpuSet::new();
    one.set(cores.nth(core).ok_or(nix::errno::Errno::EINVAL)?)?;
    sched_setaffinity(own, &one)
}

#[cfg(not(target_os = "linux"))]
fn bind(_core: usize) -> nix::Result<()> {
    Err(nix::errno::Errno::ENOTSUP)
}

/// The figures of one side.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct ExistsSide {
    /// Which side.
    pub side: Side,
    /// Half of a round's answers took no longer, in microseconds.
    pub p50_us: Spread,
    /// 99 of 100 took no longer.
    pub p99_us: Spread,
    /// Its half over that of plain TCP, round by round.
    pub p50_ratio: Spread,
    /// CPU time of client and server for one question, in microseconds.
    pub cpu_us: f64,
}

/// A scene, told.
#[derive(Clone, Debug, Serialize)]
pub struct ExistsReport {
    /// Its name.
    pub name: String,
    /// Who was asked.
    pub sides: Vec<ExistsSide>,
    /// The bars.
    pub bars: Vec<Bar>,
}

impl ExistsReport {
    fn of(row: &Row) -> ExistsReport {
        let of = |side| row.sides.get(&side).map_or(&[][..], Vec::as_slice);
        let tell = |side: &Side| {
            let samples = of(*side);
            let spread = |figure: fn(&Sample) -> f64| Spread::of(samples.iter().map(figure));
            Some(ExistsSide {
                side: *side,
                p50_us: spread(Sample::p50_us)?,
                p99_us: spread(Sample::p99_us)?,
                p50_ratio: ratios(samples, of(Side::Plain), Sample::p50_us)?,
                cpu_us: spread(Sample::operation_cost_us)?.median,
            })
        };
        let sides: Vec<_> = row.sides.keys().filter_map(tell).collect();
        let name = row.scene.name();
        let bars = bars(row.scene, &name, &of);
        ExistsReport { name, sides, bars }
    }
}

fn bars<'a>(scene: Scene, name: &str, of: &dyn Fn(Side) -> &'a [Sample]) -> Vec<Bar> {
    let memkv = of(Side::Memkv);
    let spread = |figure: fn(&Sample) -> f64| Spread::of(memkv.iter().map(figure));
    let beside = |side| ratios(memkv, of(side), Sample::p50_us);
    let at_most = |what: &str, found: Option<Spread>, bar| match found {
        Some(found) => Bar::at_most(name.to_owned(), what.to_owned(), found, bar),
        None => Bar::skipped(name.to_owned(), what.to_owned(), bar, "not measured here"),
    };
    match scene {
        Scene::Free => vec![
            at_most("p50", spread(Sample::p50_us), FREE_US).in_microseconds(),
            at_most("p50 beside memcached", beside(Side::Memcached), FREE_BESIDE_MEMCACHED),
        ],
        Scene::OneCore => {
            vec![at_most("p50 beside plain TCP", beside(Side::Plain), BOUND_BESIDE_PLAIN)]
        }
        Scene::Apart => Vec::new(),
        Scene::Busy => {
            vec![at_most("p99", spread(Sample::p99_us), BUSY_US).in_microseconds()]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Verdict;

    fn samples(us: &[u64]) -> Vec<Sample> {
        let sample = |us: &u64| {
            let mut sample = Sample { operations: 1, ..Sample::default() };
            sample.latency.record(Duration::from_micros(*us));
            sample
        };
        us.iter().map(sample).collect()
    }

    fn row(scene: Scene) -> Row {
        let plain = (Side::Plain, samples(&[40, 50, 60]));
        let memkv = (Side::Memkv, samples(&[10, 11, 90]));
        Row { scene, sides: [plain, memkv].into_iter().collect() }
    }

    #[test]
    fn each_scene_has_bars_of_its_own() {
        let verdicts = |scene| {
            let bars = ExistsReport::of(&row(scene)).bars;
            bars.into_iter().map(|bar| bar.verdict).collect::<Vec<_>>()
        };
        let absent = Verdict::Skipped("not measured here".to_owned());
        assert_eq!(verdicts(Scene::Free), [Verdict::Pass, absent]);
        assert_eq!(verdicts(Scene::OneCore), [Verdict::Pass]);
        assert_eq!(verdicts(Scene::Apart), []);
        assert_eq!(verdicts(Scene::Busy), [Verdict::Pass]);
    }

    #[test]
    fn sides_are_told_beside_the_ping() {
        let report = ExistsReport::of(&row(Scene::OneCore));
        assert_eq!(report.sides.len(), 2);
        let memkv = &report.sides[1];
        assert!((memkv.p50_us.median - 11.0).abs() < 0.1, "{memkv:?}");
        assert!((memkv.p50_ratio.median - 0.25).abs() < 0.01, "{memkv:?}");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn what_a_bound_thread_starts_is_bound_too() {
        use nix::sched::{CpuSet, sched_getaffinity};
        let cores = || {
            let own = nix::unistd::Pid::from_raw(0);
            let set = sched_getaffinity(own).map_err(doing("the affinity"))?;
            let is_set = |core: &usize| set.is_set(*core).unwrap_or(false);
            Ok((0..CpuSet::count()).filter(is_set).count())
        };
        let before = cores().unwrap();
        let child = || thread::spawn(cores).join().expect("it does not panic");
        assert_eq!(on_core(Some(0), child).unwrap(), 1);
        assert!(on_core(Some(before), child).is_err(), "there is no such core");
        assert_eq!(cores().unwrap(), before, "the caller is as free as it was");
    }
}
