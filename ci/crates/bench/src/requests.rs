//! What one request costs beside the reactor it runs on, and what a key costs of many in one frame.
//!
//! The first is measured in this process, without a kernel: a reactor serves a connection in memory,
//! once with a session and once with a task that only answers with as many bytes. The difference is
//! what a request is made of: its task, its MAC there and back, its look into the index, its lease and
//! its reply. The second is measured as a client sees it, on one connection to a node.

mod line;
mod served;

use std::path::Path;
use std::time::Instant;

use memkv_client::{Client, PutItem, PutOptions};

use crate::cpu::CpuClock;
use crate::error::{BenchError, doing};
use crate::plan::POOL_BYTES;
use crate::report::{Spread, Verdict};
use crate::section::{Grid, Section};
use crate::servers::{Medium, Node};
use crate::tables::spread;
use served::{Question, Stage};

const MIB: u64 = 1 << 20;
/// Keys of a frame, where there are several.
const KEYS: usize = 1024;
/// Bytes of the values under them.
const VALUE: usize = 512;

/// Microseconds of a request beside the bare reactor, at most.
const OVERHEAD_US: f64 = 1.5;
/// Microseconds of a key above one Exists, at most.
const KEY_US: f64 = 0.25;
/// Millions of keys in a second on one connection, at least.
const SPEED: f64 = 3.0;

/// Asks whether all keys are there.
type Ask<'a> = &'a dyn Fn(&[&[u8]]) -> Result<bool, BenchError>;

/// How much is done.
#[derive(Clone, Copy)]
pub struct Effort {
    rounds: u32,
    requests: u32,
    frames: u32,
}

impl Effort {
    /// How much is done when it is asked for like this.
    pub fn new(quick: bool, rounds: Option<u32>) -> Effort {
        let rounds = rounds.unwrap_or(if quick { 5 } else { 11 }).max(1);
        Effort { rounds, requests: 20_000, frames: if quick { 100 } else { 300 } }
    }
}

/// Measures both.
///
/// # Errors
/// When a node or a clock does not do its work.
pub fn measure(binary: &Path, folder: &Path, effort: Effort) -> Result<Section, BenchError> {
    let rounds = format!("{} rounds, their medians and spread", effort.rounds);
    let mut section = Section::new([rounds]);
    overhead(effort, &mut section)?;
    keys(binary, folder, effort, &mut section)?;
    Ok(section)
}

/// One request beside the bare reactor.
fn overhead(effort: Effort, section: &mut Section) -> Result<(), BenchError> {
    eprintln!("bench: single requests");
    let mut grid = Grid::new(
        "A request one at a time over a connection in memory, in microseconds of CPU:",
        &["request", "bare reactor", "session", "its own", "bar", "verdict"],
    );
    for (question, name) in [(Question::Exists, "Exists"), (Question::Get, "Get of 64 KiB")] {
        let (mut session, mut asker) = Stage::session();
        let first = asker.question(question);
        let answer = session.ask(&first);
        assert_eq!(session.status(), memkv_wire::Status::Ok, "the block is there");
        let answered = usize::try_from(answer).expect("an answer fits memory");
        let mut bare = Stage::bare(first.len(), answered.min(4096));
        let frame = first;
        let (mut alone, mut whole, mut own) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..effort.rounds {
            let frames: Vec<_> = (0..effort.requests).map(|_| asker.question(question)).collect();
            let bare = timed(effort.requests, |_| _ = bare.ask(&frame))?;
            let all = timed(effort.requests, |nth| {
                assert_eq!(session.ask(&frames[nth as usize]), answer, "each answer is as long");
            })?;
            alone.push(bare);
            whole.push(all);
            own.push(all - bare);
        }
        let of = |values: Vec<f64>| Spread::of(values.into_iter()).expect("there is a round");
        let own = of(own);
        let verdict = Verdict::at_most(own.median, OVERHEAD_US);
        let check = format!("{name}, its own cost, {OVERHEAD_US} µs at most");
        let word = section.judge(check, &verdict);
        let bar = format!("≤ {OVERHEAD_US} µs");
        let cells = [of(alone), of(whole), own].map(|found| spread(found, 2));
        let row = [vec![name.to_owned()], cells.to_vec(), vec![bar, word]];
        grid.rows.push(row.concat());
    }
    section.grids.push(grid);
    Ok(())
}

/// Microseconds of CPU that one of so many calls takes.
fn timed(calls: u32, mut call: impl FnMut(u32)) -> Result<f64, BenchError> {
    let clock = || CpuClock::OWN.read().map_err(doing("a CPU clock"));
    let before = clock()?;
    (0..calls).for_each(&mut call);
    Ok((clock()? - before).as_secs_f64() * 1e6 / f64::from(calls))
}

/// Many keys in one frame.
fn keys(
    binary: &Path,
    folder: &Path,
    effort: Effort,
    section: &mut Section,
) -> Result<(), BenchError> {
    eprintln!("bench: many keys in one frame");
    let node = Node::start(binary, "requests", folder, POOL_BYTES, &Medium::Memory(512 * MIB))?;
    let client = node.client(1)?;
    let names: Vec<String> = (0..KEYS).map(|nth| format!("{:032x}", nth * 0x9E37_79B9)).collect();
    let keys: Vec<&[u8]> = names.iter().map(String::as_bytes).collect();
    put(&client, &keys)?;
    let mut grid = Grid::new(
        "1024 keys that are there in one frame, on one connection to a node on memory:",
        &[
            "request",
            "one Exists, µs",
            "a key more, µs",
            "bar",
            "verdict",
            "million keys/s",
            "bar",
            "verdict",
        ],
    );
    let exists = |keys: &[&[u8]]| -> Result<bool, BenchError> {
        Ok(client.exists(keys)?.iter().all(|&there| there))
    };
    let matches = |keys: &[&[u8]]| -> Result<bool, BenchError> {
        Ok(client.match_prefix(keys)? == keys.len())
    };
    let asked: [(&str, Ask<'_>); 2] = [("Exists", &exists), ("MatchPrefix", &matches)];
    for (name, ask) in asked {
        let (mut ones, mut more, mut speeds) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..effort.rounds {
            let one = middle(effort.frames, || exists(&keys[..1]))?;
            let all = middle(effort.frames, || ask(&keys))?;
            ones.push(one);
            more.push((all - one) / (KEYS - 1) as f64);
            speeds.push(KEYS as f64 / all);
        }
        let of = |values: Vec<f64>| Spread::of(values.into_iter()).expect("there is a round");
        let (one, more, speed) = (of(ones), of(more), of(speeds));
        let cost = Verdict::at_most(more.median, KEY_US);
        let cost = section.judge(format!("{name}, a key more, {KEY_US} µs at most"), &cost);
        let fast = Verdict::at_least(speed.median, SPEED);
        let fast = section.judge(format!("{name}, {SPEED} million keys/s at least"), &fast);
        grid.rows.push(vec![
            name.to_owned(),
            spread(one, 1),
            spread(more, 3),
            format!("≤ {KEY_US}"),
            cost,
            spread(speed, 2),
            format!("≥ {SPEED}"),
            fast,
        ]);
    }
    section.grids.push(grid);
    node.stop()
}

fn put(client: &Client, keys: &[&[u8]]) -> Result<(), BenchError> {
    let value = [7; VALUE];
    let options = PutOptions::default();
    let item = |&key| PutItem { key, value: &value, options, parent: None };
    let items: Vec<_> = keys.iter().map(item).collect();
    client.put_batch(&items).into_iter().try_for_each(|outcome| outcome.map(drop))?;
    Ok(())
}

/// Microseconds in which half of so many calls are answered, each with yes.
fn middle(
    calls: u32,
    mut ask: impl FnMut() -> Result<bool, BenchError>,
) -> Result<f64, BenchError> {
    let mut took = Vec::new();
    for _ in 0..calls {
        let begun = Instant::now();
        if !ask()? {
            return Err(BenchError::Answer { what: "an answer about many keys", source: None });
        }
        took.push(begun.elapsed().as_secs_f64() * 1e6);
    }
    took.sort_by(f64::total_cmp);
    Ok(took[took.len() / 2])
}
