//! Starts a store on a crash state and holds what it finds against the promise.
//!
//! | crash | what must be found under a key |
//! | --- | --- |
//! | kill | what the last acknowledged call left, or one that was under way; missing if it was evicted since |
//! | power cut | what the last call left whose writes are all there, or any later one; missing if there is a later one |
//!
//! Never other bytes, never a value past its time to live, no unit of two owners, none lost. A
//! second start finds the same, and generations go on where no value has been.

use std::collections::{BTreeMap, BTreeSet};

use memkv_dma::Pool;
use memkv_journal::{BlockId, KeyLen, Record};
use memkv_sim::SimClock;
use memkv_store::Mode;
use memkv_wire::crc32c;

use super::branches::{Branches, Join};
use super::crash::{Kind, State};
use super::disk::{Disk, mix};
use super::history::{Call, Effect, History, KEYS, NEVER};
use super::machine::{EXTENT, Node, Put, Read, payload, put, settle, spawn};
use super::workload::Delivery;

/// The value found under a key: its generation and length.
type Found = BTreeMap<u8, (u64, u64)>;

/// What is known of the values of a history.
pub struct Known {
    /// Of each value its CRCs, extent by extent.
    crcs: Vec<Vec<u32>>,
}

impl Known {
    /// Reckons it.
    pub fn of(history: &History) -> Known {
        let crcs = |(value, known): (usize, &super::history::Value)| {
            payload(value, known.length).chunks(EXTENT as usize).map(crc32c).collect()
        };
        Known { crcs: history.values.iter().enumerate().map(crcs).collect() }
    }
}

/// What may be found under each key.
pub struct Legal(Vec<Vec<Effect>>);

impl Legal {
    /// In this state.
    pub fn of(history: &History, state: &State) -> Legal {
        let wall = history.wall(state.at);
        let of_key = |key| {
            let mut legal = match state.kind {
                Kind::Kill => after_kill(history, state, key),
                Kind::PowerCut => after_power_cut(history, state, key),
            };
            for effect in &mut legal {
                if let Effect::Holds(value) = *effect
                    && expires(history, value).is_some_and(|at| at <= wall)
                {
                    *effect = Effect::Gone;
                }
            }
            legal.sort_by_key(|effect| match effect {
                Effect::Gone => 0,
                Effect::Holds(value) => value + 1,
            });
            legal.dedup();
            legal
        };
        Legal((0..KEYS).map(of_key).collect())
    }

    /// Tells expectations apart.
    pub fn digest(&self) -> u64 {
        let one = |sum, effect: &Effect| match effect {
            Effect::Gone => mix(sum, 1),
            Effect::Holds(value) => mix(sum, *value as u64 + 2),
        };
        self.0.iter().fold(3, |sum, legal| legal.iter().fold(mix(sum, 0), one))
    }
}

fn expires(history: &History, value: usize) -> Option<u64> {
    let call = history.calls.iter().find(|call| call.effect == Effect::Holds(value))?;
    (call.expires != 0).then_some(call.expires)
}

/// The calls of a key that began before a place, those answered first in the order of their
/// answers, and how many of them were answered.
fn calls_of(history: &History, at: usize, key: u8) -> (Vec<&Call>, usize) {
    let done = |call: &Call| call.acknowledged <= at;
    let mut calls: Vec<&Call> = history
        .calls
        .iter()
        .filter(|call| call.key == key && call.invoked <= at && !(call.refused && done(call)))
        .collect();
    calls.sort_by_key(|call| if done(call) { call.acknowledged } else { NEVER });
    let answered = calls.iter().filter(|call| done(call)).count();
    (calls, answered)
}

fn evicted_since(history: &History, at: usize, key: u8, since: usize) -> bool {
    history.evicted.iter().any(|(other, when)| *other == key && (since..=at).contains(when))
}

fn after_kill(history: &History, state: &State, key: u8) -> Vec<Effect> {
    let (calls, answered) = calls_of(history, state.at, key);
    let last = answered.checked_sub(1).map(|last| calls[last]);
    let mut legal = vec![last.map_or(Effect::Gone, |call| call.effect)];
    if evicted_since(history, state.at, key, last.map_or(0, |call| call.acknowledged)) {
        legal.push(Effect::Gone);
    }
    legal.extend(calls[answered..].iter().map(|call| call.effect));
    legal
}

fn after_power_cut(history: &History, state: &State, key: u8) -> Vec<Effect> {
    let (calls, answered) = calls_of(history, state.at, key);
    let asked = |write: &usize| history.writes[*write].submitted;
    // A put's bytes and records were all asked for while it was under way. Of a delete more must be
    // there: the removals of whatever came before it.
    let whole = |call: &Call| {
        let from = if call.effect == Effect::Gone { 0 } else { call.invoked };
        !state.lost.iter().map(asked).any(|place| (from..call.acknowledged).contains(&place))
    };
    let first = (0..answered).rev().find(|place| whole(calls[*place]));
    let evicted = evicted_since(history, state.at, key, 0);
    // The eviction's removal may be there and that of another block not.
    let first = if evicted { None } else { first };
    let mut legal: Vec<Effect> =
        calls[first.unwrap_or(0)..].iter().map(|call| call.effect).collect();
    if evicted || first.is_none() || first.is_some_and(|first| first + 1 < calls.len()) {
        legal.push(Effect::Gone);
    }
    legal
}

/// Starts on the state, twice, and says what is wrong.
///
/// # Errors
/// What is wrong, in words.
pub fn check(
    history: &History,
    known: &Known,
    state: &State,
    legal: &Legal,
    pool: &Pool,
    branches: &mut Branches,
) -> Result<(), String> {
    let disks: Vec<Disk> =
        state.images.iter().enumerate().map(|(n, image)| Disk::new(n, image.clone())).collect();
    let clock = SimClock::new(history.wall(state.at));
    let mut node = start(&disks, &clock, pool)?;
    count(&node.read, branches);
    let found = find(&mut node, history, known, legal)?;
    check_units(&node)?;
    drop(node);

    let mut node = start(&disks, &clock, pool).map_err(|why| format!("the second start: {why}"))?;
    count(&node.read, branches);
    let again = find(&mut node, history, known, legal)?;
    if again != found {
        return Err(format!("the second start found {again:?}, the first {found:?}"));
    }
    check_units(&node)?;
    check_generation(&mut node, history, state)
}

fn start(disks: &[Disk], clock: &SimClock, pool: &Pool) -> Result<Node, String> {
    let mut node = Node::start(disks, clock, pool, None, Delivery::Oldest, false)?;
    settle(&mut node.reactor, disks, None, Delivery::Oldest, |_| {});
    Ok(node)
}

/// Reads every key; each must hold what it may.
fn find(node: &mut Node, history: &History, known: &Known, legal: &Legal) -> Result<Found, String> {
    let mut found = Found::new();
    for key in 0..KEYS {
        let hash = node.hash(key);
        let Ok(lease) = node.store.lease(hash) else {
            if !legal.0[usize::from(key)].contains(&Effect::Gone) {
                return Err(format!(
                    "key {key} is missing, legal: {:?}",
                    legal.0[usize::from(key)]
                ));
            }
            continue;
        };
        let mut whole = true;
        let mut crcs = Vec::new();
        for extent in &lease.extents {
            let disk = &node.disks[usize::from(extent.drive.0)];
            let crc = crc32c(&disk.peek(extent.offset, extent.length as usize));
            whole &= crc == extent.crc;
            crcs.push(crc);
        }
        node.store.unpin(lease.slot);
        // The server checks every extent before it first sends it: what does not match is a miss.
        let effect = if whole {
            let value = identify(history, known, key, lease.generation, lease.length, &crcs)?;
            found.insert(key, (lease.generation, lease.length));
            Effect::Holds(value)
        } else {
            Effect::Gone
        };
        if !legal.0[usize::from(key)].contains(&effect) {
            let legal = &legal.0[usize::from(key)];
            let whole = if whole { "" } else { " (its bytes are not those of its record)" };
            return Err(format!("key {key} is {effect:?}{whole}, legal: {legal:?}"));
        }
    }
    settle(&mut node.reactor, &node.disks, None, Delivery::Oldest, |_| {});
    Ok(found)
}

/// Which value of the key this is.
fn identify(
    history: &History,
    known: &Known,
    key: u8,
    generation: u64,
    length: u64,
    crcs: &[u32],
) -> Result<usize, String> {
    for call in history.calls.iter().filter(|call| call.key == key) {
        let Effect::Holds(value) = call.effect else { continue };
        let same = u64::from(history.values[value].length) == length && known.crcs[value] == crcs;
        if same && call.generation.is_none_or(|answered| answered == generation) {
            return Ok(value);
        }
    }
    Err(format!("key {key} generation {generation} holds {length} bytes that nobody put there"))
}

/// No unit has two owners, none is lost.
fn check_units(node: &Node) -> Result<(), String> {
    let mut owned = BTreeSet::new();
    for key in 0..KEYS {
        let Ok(lease) = node.store.lease(node.hash(key)) else { continue };
        node.store.unpin(lease.slot);
        for extent in &lease.extents {
            for unit in extent.range.start..extent.range.start + u32::from(extent.range.count) {
                if !owned.insert((extent.drive, unit)) {
                    return Err(format!("unit {unit} of {:?} has two owners", extent.drive));
                }
            }
        }
    }
    let used: u64 = node.store.drives().iter().map(|d| d.units_total - d.units_free).sum();
    let under_way = node.store.under_way();
    if under_way.units != used || used != owned.len() as u64 {
        let (index, blocks) = (owned.len(), under_way.units);
        return Err(format!("{used} units are taken, blocks hold {blocks}, keys {index}"));
    }
    if under_way.leaving != 0 || under_way.reservations != 0 {
        return Err(format!("after a start something is under way: {under_way:?}"));
    }
    Ok(())
}

/// A generation never names two values.
fn check_generation(node: &mut Node, history: &History, state: &State) -> Result<(), String> {
    let given = |call: &&Call| call.invoked <= state.at;
    let before = history.calls.iter().filter(given).filter_map(|call| call.generation).max();
    let (store, disks, pool) = (node.store.clone(), node.disks.clone(), node.pool.clone());
    let one = Put { key: KEYS, value: 0, length: 100, mode: Mode::Replace, ttl_seconds: 0 };
    let answer = spawn(&node.reactor.local(), put(store, disks, pool, 0, one));
    settle(&mut node.reactor, &node.disks, None, Delivery::Oldest, |_| {});
    let answer = answer.borrow_mut().take();
    match answer {
        Some(Ok(generation)) if before.is_none_or(|before| generation > before) => Ok(()),
        Some(Ok(generation)) => Err(format!("generation {generation} after {before:?}")),
        // The drives may be full of what came back.
        Some(Err(why)) if why == "Full" => Ok(()),
        other => Err(format!("a put after the start: {other:?}")),
    }
}

/// Counts the rows of both tables that a start met.
fn count(read: &Read, branches: &mut Branches) {
    for report in &read.reports {
        branches.walked(report);
    }
    let parts: BTreeSet<(BlockId, u16)> = read.live.iter().flatten().filter_map(part_of).collect();
    let mut heads = BTreeSet::new();
    let mut keys: BTreeMap<u128, u32> = BTreeMap::new();
    for record in read.live.iter().flatten() {
        match record {
            Record::Head { block, parts: listed, .. } => {
                heads.insert(*block);
                *keys.entry(block.hash).or_default() += 1;
                let whole = (0..listed.len() as u16).all(|part| parts.contains(&(*block, part)));
                branches.joined(if whole { Join::Whole } else { Join::PartMissing });
            }
            Record::Put { block, .. } => {
                *keys.entry(block.hash).or_default() += 1;
                branches.joined(Join::Single);
            }
            _ => {}
        }
    }
    if parts.iter().any(|(block, _)| !heads.contains(block)) {
        branches.joined(Join::HeadMissing);
    }
    if keys.values().any(|count| *count > 1) {
        branches.joined(Join::TwoOfOneKey);
    }
    if read.reports.iter().any(|report| report.conflicts > 0) {
        branches.joined(Join::SharedUnit);
    }
}

fn part_of(record: &Record<KeyLen>) -> Option<(BlockId, u16)> {
    match record {
        Record::Part { block, index, .. } => Some((*block, *index)),
        _ => None,
    }
}
