//! Plans against a model that knows single bytes only.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

const KEYS: [&[u8]; 3] = [b"a", b"b", b"ab"];

/// A descriptor as it is drawn: key, offset, length and which memory; two of the same memory and length share
/// it.
type Drawn = (usize, u64, u64, usize);

fn drawn() -> impl Strategy<Value = Vec<Drawn>> {
    proptest::collection::vec((0..KEYS.len(), 0..40_u64, 1..12_u64, 0..6_usize), 0..24)
}

fn descriptors(drawn: &[Drawn]) -> Vec<Descriptor<'static>> {
    let one = |&(key, offset, length, memory): &Drawn| {
        let memory = 1000 * (memory + 10 * key + 100 * offset as usize + 10_000 * length as usize);
        Descriptor { key: KEYS[key], offset, length, memory }
    };
    drawn.iter().map(one).collect()
}

/// A byte of a value, told apart from its neighbours and those of other keys.
fn byte(key: &[u8], at: u64) -> u8 {
    (key.len() as u64 * 97 + u64::from(key[key.len() - 1]) * 31 + at * 7) as u8
}

/// Carries a plan of reads out over memory that is a map from address to byte.
fn read(plan: &Plan, all: &[Descriptor<'_>]) -> BTreeMap<usize, u8> {
    let mut memory = BTreeMap::new();
    for run in &plan.runs {
        let mut at = run.offset;
        for piece in &run.pieces {
            let descriptor = &all[piece.descriptor];
            assert_eq!(descriptor.offset + piece.start, at, "pieces follow each other");
            assert_eq!(piece.start + piece.length, descriptor.length, "a piece is all the rest");
            for more in 0..piece.length {
                let address = descriptor.memory + (piece.start + more) as usize;
                memory.insert(address, byte(descriptor.key, at + more));
            }
            at += piece.length;
        }
        assert_eq!(at, run.offset + run.length);
        for copy in &run.copies {
            assert_ne!(copy.from.0, copy.to.0);
            for more in 0..copy.length {
                let address = |(at, start): (usize, u64)| all[at].memory + (start + more) as usize;
                let known = memory[&address(copy.from)];
                memory.insert(address(copy.to), known);
            }
        }
    }
    memory
}

/// Bytes of values that somebody wants, and how many stretches they are.
fn wanted(all: &[Descriptor<'static>]) -> (u64, u64) {
    let bytes = |known: &Descriptor<'static>| {
        let key = known.key;
        (known.offset..known.offset + known.length).map(move |at| (key, at))
    };
    let set: BTreeSet<(&[u8], u64)> = all.iter().flat_map(bytes).collect();
    let begins = |(key, at): &&(&[u8], u64)| *at == 0 || !set.contains(&(*key, at - 1));
    (set.len() as u64, set.iter().filter(begins).count() as u64)
}

/// What the writes of one key come to when they are taken byte by byte; `None` when a byte is missing or has
/// two sources.
fn written(all: &[Descriptor<'_>], key: &[u8]) -> Option<Vec<usize>> {
    let mut sources = BTreeMap::new();
    for known in all.iter().filter(|known| known.key == key) {
        for more in 0..known.length {
            // The same descriptor again brings the same address for every byte of the same range.
            let source = (known.memory + more as usize, known.offset, known.length);
            let before = sources.insert(known.offset + more, source);
            if before.is_some_and(|before| before != source) {
                return None;
            }
        }
    }
    let whole = sources.keys().copied().eq(0..sources.len() as u64);
    whole.then(|| sources.into_values().map(|(address, ..)| address).collect())
}

proptest! {
    #[test]
    fn a_plan_of_reads_brings_every_byte_where_it_is_wanted_and_over_the_wire_once(
        drawn in drawn(),
    ) {
        let all = descriptors(&drawn);
        let plan = Plan::of_reads(&all).expect("nothing is empty");
        let memory = read(&plan, &all);
        for known in &all {
            for more in 0..known.length {
                let got = memory.get(&(known.memory + more as usize));
                prop_assert_eq!(got, Some(&byte(known.key, known.offset + more)));
            }
        }
        let firsts: Vec<&[u8]> =
            plan.runs.iter().map(|run| all[run.pieces[0].descriptor].key).collect();
        let mut came: Vec<&[u8]> = Vec::new();
        for key in all.iter().map(|known| known.key) {
            if !came.contains(&key) {
                came.push(key);
            }
        }
        prop_assert!(firsts.is_sorted_by_key(|key| came.iter().position(|other| other == key)));
        let (bytes, stretches) = wanted(&all);
        prop_assert_eq!(plan.saving.bytes_moved, bytes);
        prop_assert_eq!(plan.saving.operations, stretches);
        prop_assert_eq!(plan.saving.descriptors, all.len() as u64);
        let sum: u64 = all.iter().map(|known| known.length).sum();
        prop_assert_eq!(plan.saving.bytes_wanted, sum);
    }

    #[test]
    fn writes_become_whole_values_or_are_refused(
        cuts in proptest::collection::vec(proptest::collection::vec(1..9_u64, 1..6), 1..4),
        seed in any::<u64>(),
        flaw in 0..4_usize,
    ) {
        let mut all = Vec::new();
        for (key, lengths) in cuts.iter().enumerate() {
            let mut offset = 0;
            for (at, length) in lengths.iter().enumerate() {
                let memory = 1000 * (key * 10 + at + 1);
                all.push(Descriptor { key: KEYS[key], offset, length: *length, memory });
                offset += length;
            }
        }
        let some = (seed % all.len() as u64) as usize;
        match flaw {
            // One twice.
            0 => all.push(all[some]),
            // One is missing: a gap, unless it was the last of its key.
            1 => { all.remove(some); }
            // The same bytes from elsewhere.
            2 => all.push(Descriptor { memory: 500_000, ..all[some] }),
            _ => {}
        }
        let places = all.len().max(1);
        all.rotate_left((seed >> 8) as usize % places);
        let expected: Option<Vec<Vec<usize>>> = KEYS
            .iter()
            .filter(|key| all.iter().any(|known| known.key == **key))
            .map(|key| written(&all, key))
            .collect();
        let plan = Plan::of_writes(&all);
        prop_assert_eq!(plan.is_ok(), expected.is_some(), "{:?}", plan);
        if let (Ok(plan), Some(mut expected)) = (plan, expected) {
            let address = |run: &Run| -> Vec<usize> {
                let bytes = |piece: &Piece| {
                    let first = all[piece.descriptor].memory;
                    assert_eq!(piece.start, 0);
                    first..first + piece.length as usize
                };
                run.pieces.iter().flat_map(bytes).collect()
            };
            let mut found: Vec<Vec<usize>> = plan.runs.iter().map(address).collect();
            found.sort_unstable();
            expected.sort_unstable();
            prop_assert_eq!(found, expected);
        }
    }
}

#[test]
fn what_cannot_be_is_named() {
    let one = |offset, length, memory| Descriptor { key: b"k", offset, length, memory };
    let read = |offset, length| Plan::of_reads(&[one(0, 1, 1), one(offset, length, 9)]);
    assert_eq!(read(5, 0), Err(PlanError::Empty { descriptor: 1 }));
    assert_eq!(read(u64::MAX, 1), Err(PlanError::Overflow { descriptor: 1 }));
    assert!(read(u64::MAX - 1, 1).is_ok());
    let write = |first, second| Plan::of_writes(&[first, second]);
    let gap = PlanError::Gap { descriptor: 0, offset: 1, missing: 0 };
    assert_eq!(write(one(1, 4, 1), one(5, 4, 9)), Err(gap));
    let gap = PlanError::Gap { descriptor: 1, offset: 5, missing: 4 };
    assert_eq!(write(one(0, 4, 1), one(5, 4, 9)), Err(gap));
    let overlap = PlanError::Overlap { first: 0, second: 1 };
    assert_eq!(write(one(0, 4, 1), one(3, 4, 9)), Err(overlap));
    assert!(write(one(4, 4, 1), one(0, 4, 9)).is_ok());
}
