//! What of a drive holds values, what writing them costs beside their bytes, and what it takes to find
//! a place.

mod allocator;

use std::path::Path;

use memkv_client::{Client, ClientError, PutMode, PutOptions};

use crate::error::BenchError;
use crate::plan::POOL_BYTES;
use crate::report::Verdict;
use crate::section::{Grid, Section};
use crate::servers::{Medium, Node};

const MIB: u64 = 1 << 20;
/// Bytes of the values that fill a drive.
const VALUE: usize = 1_000_000;
/// Bytes of the values whose writing is counted.
const WRITTEN: usize = 1 << 20;
/// The drive whose writes are counted: so small that its ring is used up more than once.
const SMALL_DRIVE: u64 = 256 * MIB;
/// Keys of the values whose writing is counted.
const KEYS: u64 = 128;

/// Share of the place for values that holds some, at least.
const FULL_BAR: f64 = 0.97;
/// Bytes written to the drive by bytes of the values, at most.
const WRITE_BAR: f64 = 1.03;

/// How much is done.
#[derive(Clone, Copy)]
pub struct Effort {
    drive: u64,
    puts: u64,
}

impl Effort {
    /// How much is done when it is asked for like this.
    pub fn new(quick: bool) -> Effort {
        match quick {
            true => Effort { drive: 2048 * MIB, puts: 5000 },
            false => Effort { drive: 8192 * MIB, puts: 20_000 },
        }
    }
}

/// Measures all of it.
///
/// # Errors
/// When a node does not do its work.
pub fn measure(binary: &Path, folder: &Path, effort: Effort) -> Result<Section, BenchError> {
    let drives = "drives in files; nodes with all defaults but those named".to_owned();
    let mut section = Section::new([drives]);
    fill(binary, folder, effort, &mut section)?;
    write(binary, folder, effort, &mut section)?;
    allocator::measure(folder, &mut section)?;
    Ok(section)
}

/// Puts until the drive is full.
fn fill(
    binary: &Path,
    folder: &Path,
    effort: Effort,
    section: &mut Section,
) -> Result<(), BenchError> {
    eprintln!("bench: filling a drive");
    let medium = Medium::Tuned(effort.drive, "  eviction:\n    enabled: false\n".to_owned());
    let node = Node::start(binary, "fill", folder, POOL_BYTES, &medium)?;
    let (usable, ..) = node.place()?;
    let client = node.client(1)?;
    let mut value = vec![0; VALUE];
    fastrand::Rng::with_seed(1).fill(&mut value);
    let mut count = 0_u64;
    loop {
        match put(&client, &format!("value {count}"), &value, PutMode::Absent) {
            Ok(()) => count += 1,
            Err(BenchError::Client(ClientError::Full { .. })) => break,
            Err(error) => return Err(error),
        }
    }
    node.stop()?;
    let share = (count * VALUE as u64) as f64 / usable as f64;
    let verdict = Verdict::at_least(share, FULL_BAR);
    let verdict =
        section.judge(format!("{VALUE} bytes a value, {FULL_BAR} of a drive at least"), &verdict);
    let mut grid = Grid::new(
        "A drive filled with values of 1,000,000 bytes until there is no place left, eviction off:",
        &["drive", "place for values", "values", "hold", "bar", "verdict"],
    );
    grid.rows.push(vec![
        format!("{} MiB", effort.drive / MIB),
        format!("{:.1} MiB", usable as f64 / MIB as f64),
        count.to_string(),
        format!("{:.2} %", share * 100.0),
        format!("≥ {:.0} %", FULL_BAR * 100.0),
        verdict,
    ]);
    section.grids.push(grid);
    Ok(())
}

/// Replaces values over and over, and counts what is written for it.
fn write(
    binary: &Path,
    folder: &Path,
    effort: Effort,
    section: &mut Section,
) -> Result<(), BenchError> {
    let mut grid = Grid::new(
        "Values of 1 MiB, replaced over and over; bytes that the drive was told to write, journal \
         and checkpoints included, by bytes of the values:",
        &["depth", "values", "keys", "ring", "checkpoints", "written", "bar", "verdict"],
    );
    for depth in [1, 4] {
        eprintln!("bench: counting what is written, depth {depth}");
        let name = if depth == 1 { "write-1" } else { "write-4" };
        let medium = Medium::Tuned(SMALL_DRIVE, String::new());
        let node = Node::start(binary, name, folder, POOL_BYTES, &medium)?;
        let before = (node.io()?.written_bytes_total, node.counter("memkv_checkpoints_total")?);
        let client = node.client(depth as usize)?;
        std::thread::scope(|scope| {
            let worker = |number| {
                let client = &client;
                scope.spawn(move || replace(client, number, depth, effort.puts / depth))
            };
            let workers: Vec<_> = (0..depth).map(worker).collect();
            let ends = workers.into_iter().map(|w| w.join().expect("a worker does not panic"));
            ends.collect::<Result<(), BenchError>>()
        })?;
        let puts = effort.puts / depth * depth;
        let written = node.io()?.written_bytes_total - before.0;
        let checkpoints = node.counter("memkv_checkpoints_total")? - before.1;
        node.stop()?;
        let share = written as f64 / (puts * WRITTEN as u64) as f64;
        let verdict = Verdict::at_most(share, WRITE_BAR);
        let name =
            format!("1 MiB a value, depth {depth}, {WRITE_BAR} bytes written a byte at most");
        grid.rows.push(vec![
            depth.to_string(),
            puts.to_string(),
            KEYS.to_string(),
            format!("{} MiB", SMALL_DRIVE / 8 / MIB),
            checkpoints.to_string(),
            format!("{share:.4}"),
            format!("≤ {WRITE_BAR}"),
            section.judge(name, &verdict),
        ]);
    }
    section.grids.push(grid);
    Ok(())
}

fn replace(client: &Client, number: u64, of: u64, puts: u64) -> Result<(), BenchError> {
    let mut value = vec![0; WRITTEN];
    fastrand::Rng::with_seed(number).fill(&mut value);
    for n in 0..puts {
        let key = (n * of + number) % KEYS;
        put(client, &format!("key {key}"), &value, PutMode::Replace)?;
    }
    Ok(())
}

fn put(client: &Client, key: &str, value: &[u8], mode: PutMode) -> Result<(), BenchError> {
    let options = PutOptions { mode, ..PutOptions::default() };
    client.put(key.as_bytes(), value, &options)?;
    Ok(())
}
