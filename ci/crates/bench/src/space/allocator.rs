//! What finding a place costs: on an empty drive, on one that is nearly full and in pieces, and while
//! what was freed waits to be trimmed.

use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use memkv_block::OpenOptions;
use memkv_dma::{Hugepages, Pool, PoolConfig};
use memkv_journal::allocator::Allocator;
use memkv_journal::{
    DriveUuid, FormatOptions, Identity, Journal, NodeUuid, Recovered, TrimConfig, UnitRange, format,
};
use memkv_poller::{Reactor, ReactorConfig, Rng, SystemClock};
use uuid::Uuid;

use crate::error::BenchError;
use crate::report::{Spread, Verdict};
use crate::section::{Grid, Section};
use crate::tables::spread;

/// Units of a value of 1,000,000 bytes.
const VALUE_UNITS: u16 = 62;
/// Units of a drive of 256 GiB.
const UNITS: u32 = 1 << 24;
/// Allocations, and as many releases, of a round.
const TURNS: u32 = 200_000;
const ROUNDS: u32 = 7;
/// The file of the journal whose freed ranges wait to be trimmed.
const FILE: u64 = 4 << 30;
/// Nanoseconds of an allocation and a release on a full drive in pieces, at most: what it must not grow
/// to, whatever the drive is like. A put takes a hundred times as long.
const BAR: f64 = 1000.0;

/// Adds its table.
pub fn measure(folder: &Path, section: &mut Section) -> Result<(), BenchError> {
    eprintln!("bench: finding places");
    let mut grid = Grid::new(
        &format!(
            "Nanoseconds of an allocation of {VALUE_UNITS} units and a release, medians of {ROUNDS} \
             rounds:"
        ),
        &["", "units", "free", "ns", "bar", "verdict"],
    );
    let mut row = |name: &str, units: u32, free: u32, ns: Spread| {
        let verdict = Verdict::at_most(ns.median, BAR);
        grid.rows.push(vec![
            name.to_owned(),
            units.to_string(),
            format!("{:.2} %", 100.0 * f64::from(free) / f64::from(units)),
            spread(ns, 0),
            format!("≤ {BAR:.0}"),
            section.judge(format!("finding a place, {name}, {BAR:.0} ns at most"), &verdict),
        ]);
    };
    let mut empty = Place::of(Allocator::new(UNITS), 0.0);
    row("an empty drive", UNITS, empty.space.free_units(), empty.measure());
    let mut full = Place::of(Allocator::new(UNITS), 0.99);
    row("99 % full, in pieces", UNITS, full.space.free_units(), full.measure());
    let (journal, reactor) = journal(folder)?;
    let units = journal.total_units();
    let mut trimmed = Place::of(Rc::clone(&journal), 0.99);
    let ns = trimmed.measure();
    row("99 % full, what is free waits for TRIM", units, journal.free_units(), ns);
    let pending = journal.trim_stats().units_pending;
    section.notes.push(format!("{pending} free units waited to be trimmed in the last row."));
    drop((trimmed, journal, reactor));
    section.grids.push(grid);
    Ok(())
}

/// Whoever has units to give.
trait Space {
    fn take(&mut self) -> Option<UnitRange>;
    fn give(&mut self, range: UnitRange);
}

impl Space for Allocator {
    fn take(&mut self) -> Option<UnitRange> {
        self.allocate(VALUE_UNITS)
    }

    fn give(&mut self, range: UnitRange) {
        self.release(range);
    }
}

impl Space for Rc<Journal> {
    fn take(&mut self) -> Option<UnitRange> {
        self.allocate(VALUE_UNITS)
    }

    fn give(&mut self, range: UnitRange) {
        self.release(range);
    }
}

/// Space, some of it taken.
struct Place<S> {
    space: S,
    taken: Vec<UnitRange>,
    rng: fastrand::Rng,
}

impl<S: Space> Place<S> {
    /// Fills it, then gives back so much that only `share` of it is taken, here and there.
    fn of(mut space: S, share: f64) -> Place<S> {
        let mut taken = Vec::new();
        while let Some(range) = space.take() {
            taken.push(range);
        }
        let mut rng = fastrand::Rng::with_seed(1);
        rng.shuffle(&mut taken);
        let keep = (taken.len() as f64 * share) as usize;
        taken.drain(keep..).for_each(|range| space.give(range));
        Place { space, taken, rng }
    }

    /// Nanoseconds of taking a range and giving back another.
    fn measure(&mut self) -> Spread {
        let rounds = (0..ROUNDS).map(|_| {
            let begun = Instant::now();
            for _ in 0..TURNS {
                let range = self.space.take().expect("a hundredth is free");
                let range = match self.taken.len() {
                    0 => range,
                    len => std::mem::replace(&mut self.taken[self.rng.usize(0..len)], range),
                };
                self.space.give(range);
            }
            begun.elapsed().as_nanos() as f64 / f64::from(TURNS)
        });
        Spread::of(rounds.collect::<Vec<_>>().into_iter()).expect("there are rounds")
    }
}

/// A journal on a file, to which nothing is trimmed for an hour.
fn journal(folder: &Path) -> Result<(Rc<Journal>, Reactor), BenchError> {
    let config = PoolConfig { size: 64 << 20, chunk: 2 << 20, hugepages: Hugepages::Never };
    let pool = Pool::new(config)?;
    let mut options = OpenOptions::new(folder.join("allocator.drive"), pool.clone());
    options.size = Some(FILE);
    let device = memkv_block::open(options)?;
    let mut reactor = Reactor::new(ReactorConfig::default(), Rc::new(SystemClock), Rng::seeded(0));
    let (local, geometry) = (reactor.local(), device.geometry());
    let queue = device.open_queue(&local)?;
    let drive = DriveUuid(Uuid::from_u128(2));
    let identity = Identity {
        node: NodeUuid(Uuid::from_u128(1)),
        drive,
        epoch: 1,
        members: vec![drive],
        secret: [7; 32],
    };
    let opened = reactor.block_on(async move {
        let options = FormatOptions { ring_bytes: Some(4 << 20), ..FormatOptions::default() };
        let superblock = format(&*queue, &geometry, &pool, identity, options).await?;
        let opened = memkv_journal::open(queue, &local, pool, superblock).await;
        let (journal, _): (_, Recovered) = opened?;
        Ok::<_, BenchError>(journal)
    });
    let journal = opened?;
    let config = TrimConfig { interval: Duration::from_secs(3600), extents: u32::MAX };
    journal.start_trim(config);
    Ok((journal, reactor))
}
