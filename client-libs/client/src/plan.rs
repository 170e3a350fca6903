//! From descriptors to the fewest operations on the wire.
//!
//! Engines hand over lists of descriptors: so many bytes of a value from some offset on, and the memory they
//! go to or come from. Two stages make a plan of such a list:
//!
//! ```text
//!   descriptors, in any order        runs: one operation each              memory
//!   k 0..4 ─► A   ┐
//!   k 4..8 ─► B   ├─ 1. adjacent, ──► k 0..8 ─┬─ 2. scattered: 0..4 ──────► A
//!   k 2..6 ─► C   │   overlapping             │                4..8 ──────► B
//!   k 0..4 ─► D   ┘   and equal               └─    copied here: A, B ────► C, D
//!   k 9..10 ─► E  ─── apart ────────► k 9..10 ───── scattered ────────────► E
//! ```
//!
//! 1. Ranges of one value that touch or overlap become a run, and a run is one operation.
//! 2. Every byte of a run crosses the wire once, straight into the first memory that wants it; whoever else
//!    wants it gets a copy from there.
//!
//! A value is stored as a whole, so runs of writes begin at 0 and have neither gaps nor overlaps; what cannot
//! be made such a run is refused before anything moves. Plans know nothing of memory but where it begins:
//! whoever carries one out ([`Client::get_coalesced`], [`Client::put_coalesced`], or a plug-in that has
//! pointers) finds it by the number of its descriptor.

use std::cmp::Reverse;

use crate::client::Client;
use crate::error::ClientError;
use crate::types::{GatherItem, GetItem, GetOutcome, PutOptions, PutOutcome, ScatterItem};

/// Bytes of a value, and the memory that they go to or come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor<'a> {
    /// Whose bytes.
    pub key: &'a [u8],
    /// The first of them.
    pub offset: u64,
    /// How many, 1 at least.
    pub length: u64,
    /// Where the memory begins. It is compared, nothing else.
    pub memory: usize,
}

/// Why there can be no plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// A descriptor of no bytes.
    #[error("descriptor {descriptor} has no bytes")]
    Empty {
        /// Its place in the list.
        descriptor: usize,
    },
    /// A descriptor that ends behind all numbers.
    #[error("descriptor {descriptor} ends behind the end of all values")]
    Overflow {
        /// Its place in the list.
        descriptor: usize,
    },
    /// A value is stored from its first byte on and as a whole.
    #[error(
        "descriptor {descriptor} writes from byte {offset} on, and bytes {missing}..{offset} of the value are written by nobody: a value is stored as a whole"
    )]
    Gap {
        /// Its place in the list.
        descriptor: usize,
        /// Its first byte.
        offset: u64,
        /// The first byte that is missing.
        missing: u64,
    },
    /// Two descriptors write the same bytes of a value from different memory.
    #[error("descriptors {first} and {second} write the same bytes of a value")]
    Overlap {
        /// The place of one.
        first: usize,
        /// The place of the other.
        second: usize,
    },
}

/// The end of a descriptor's memory, from `start` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The place of the descriptor in the list.
    pub descriptor: usize,
    /// Bytes of its memory in front that are not part of it.
    pub start: u64,
    /// Bytes that are: all the rest.
    pub length: u64,
}

/// Bytes that the wire brought for one descriptor and another wants too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalCopy {
    /// The descriptor whose memory has them, and the first byte of it.
    pub from: (usize, u64),
    /// The descriptor whose memory wants them, and the first byte of it.
    pub to: (usize, u64),
    /// How many.
    pub length: u64,
}

/// One operation on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// First byte of the value.
    pub offset: u64,
    /// How many.
    pub length: u64,
    /// The memory of the run, in order and without a gap; one at least. The first one's descriptor has its
    /// key.
    pub pieces: Vec<Piece>,
    /// What is to be copied once the run has been read.
    pub copies: Vec<LocalCopy>,
}

impl Run {
    fn begin(at: usize, descriptor: &Descriptor<'_>) -> Run {
        let Descriptor { offset, length, .. } = *descriptor;
        let pieces = vec![Piece { descriptor: at, start: 0, length }];
        Run { offset, length, pieces, copies: Vec::new() }
    }

    fn end(&self) -> u64 {
        self.offset + self.length
    }

    /// Makes the run longer by the end of a descriptor that begins in it or right behind it.
    fn extend(&mut self, at: usize, descriptor: &Descriptor<'_>) {
        let start = self.end() - descriptor.offset;
        if let Some(length) = descriptor.length.checked_sub(start).filter(|more| *more > 0) {
            self.pieces.push(Piece { descriptor: at, start, length });
            self.length += length;
        }
    }

    /// Notes how a descriptor gets those of its bytes that others get off the wire.
    fn share(&mut self, all: &[Descriptor<'_>], at: usize) {
        let wanted = all[at].offset..self.end().min(all[at].offset + all[at].length);
        let place = |piece: &Piece| all[piece.descriptor].offset + piece.start;
        let first = self.pieces.partition_point(|piece| place(piece) <= wanted.start) - 1;
        for piece in &self.pieces[first..] {
            let begin = place(piece).max(wanted.start);
            let end = (place(piece) + piece.length).min(wanted.end);
            if begin >= end {
                break;
            }
            let from = (piece.descriptor, begin - all[piece.descriptor].offset);
            let to = (at, begin - all[at].offset);
            let address = |(at, start): (usize, u64)| all[at].memory.wrapping_add(start as usize);
            // The same bytes into the same memory: they are there.
            if address(from) != address(to) {
                self.copies.push(LocalCopy { from, to, length: end - begin });
            }
        }
    }
}

/// What a list of descriptors comes down to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The operations: keys in the order in which they came, each by offset.
    pub runs: Vec<Run>,
    /// What it saves.
    pub saving: Saving,
}

/// What plans have saved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Saving {
    /// Descriptors in them.
    pub descriptors: u64,
    /// Operations they came down to.
    pub operations: u64,
    /// Bytes of the descriptors.
    pub bytes_wanted: u64,
    /// Bytes that cross the wire.
    pub bytes_moved: u64,
}

impl Plan {
    /// Of descriptors that read.
    ///
    /// # Errors
    /// [`PlanError::Empty`], [`PlanError::Overflow`].
    pub fn of_reads(descriptors: &[Descriptor<'_>]) -> Result<Plan, PlanError> {
        let mut runs: Vec<Run> = Vec::with_capacity(descriptors.len());
        let mut last = None;
        for Placed { key, at } in sorted(descriptors)? {
            let descriptor = &descriptors[at];
            let same = last.replace(key) == Some(key);
            let run = runs.last_mut().filter(|run| same && descriptor.offset <= run.end());
            match run {
                None => runs.push(Run::begin(at, descriptor)),
                Some(run) => {
                    // What is there before the run grows is what others get.
                    if descriptor.offset < run.end() {
                        run.share(descriptors, at);
                    }
                    run.extend(at, descriptor);
                }
            }
        }
        Ok(Plan::new(descriptors, runs))
    }

    /// Of descriptors that write.
    ///
    /// # Errors
    /// [`PlanError`].
    pub fn of_writes(descriptors: &[Descriptor<'_>]) -> Result<Plan, PlanError> {
        let mut runs: Vec<Run> = Vec::with_capacity(descriptors.len());
        let mut before = None;
        for Placed { key, at } in sorted(descriptors)? {
            let descriptor = &descriptors[at];
            let offset = descriptor.offset;
            let same = before.replace(key) == Some(key);
            let Some(run) = runs.last_mut().filter(|_| same) else {
                if offset > 0 {
                    return Err(PlanError::Gap { descriptor: at, offset, missing: 0 });
                }
                runs.push(Run::begin(at, descriptor));
                continue;
            };
            let last = run.pieces.last().expect("a piece at least").descriptor;
            if descriptors[last] == *descriptor {
                continue;
            }
            let missing = run.end();
            if offset > missing {
                return Err(PlanError::Gap { descriptor: at, offset, missing });
            }
            if offset < missing {
                return Err(PlanError::Overlap { first: last, second: at });
            }
            run.extend(at, descriptor);
        }
        Ok(Plan::new(descriptors, runs))
    }

    fn new(descriptors: &[Descriptor<'_>], runs: Vec<Run>) -> Plan {
        let saving = Saving {
            descriptors: descriptors.len() as u64,
            operations: runs.len() as u64,
            bytes_wanted: descriptors.iter().map(|descriptor| descriptor.length).sum(),
            bytes_moved: runs.iter().map(|run| run.length).sum(),
        };
        Plan { runs, saving }
    }
}

/// A descriptor in the order of plans.
struct Placed {
    /// Its key, counted by the keys' first descriptors.
    key: usize,
    /// Its place in the list.
    at: usize,
}

/// The descriptors by key, offset and, longest first, length. Keys stand in the order in which they came: that of
/// a chain.
fn sorted(descriptors: &[Descriptor<'_>]) -> Result<Vec<Placed>, PlanError> {
    for (descriptor, known) in descriptors.iter().enumerate() {
        if known.length == 0 {
            return Err(PlanError::Empty { descriptor });
        }
        if known.offset.checked_add(known.length).is_none() {
            return Err(PlanError::Overflow { descriptor });
        }
    }
    let (keys, count) = number_keys(descriptors);
    let place = |(at, key)| Placed { key, at };
    let mut order: Vec<Placed> = keys.into_iter().enumerate().map(place).collect();
    // Whole values, one of each: they are in order.
    if count < descriptors.len() {
        order.sort_unstable_by_key(|Placed { key, at }| {
            let Descriptor { offset, length, memory, .. } = descriptors[*at];
            (*key, offset, Reverse(length), memory)
        });
    }
    Ok(order)
}

/// The number of each descriptor's key, and how many keys there are. Preparing a transfer costs its caller's
/// time, so that keys are looked up in a flat table and compared only with those that share their hash.
fn number_keys(descriptors: &[Descriptor<'_>]) -> (Vec<usize>, usize) {
    const FREE: usize = usize::MAX;
    let size = (descriptors.len() * 2).next_power_of_two();
    // Of each place the first descriptor of the key that has it.
    let mut table = vec![FREE; size];
    let mut numbers: Vec<usize> = Vec::with_capacity(descriptors.len());
    let mut count = 0;
    for (at, descriptor) in descriptors.iter().enumerate() {
        let mut place = hash(descriptor.key) as usize & (size - 1);
        while table[place] != FREE && descriptors[table[place]].key != descriptor.key {
            place = (place + 1) & (size - 1);
        }
        if table[place] == FREE {
            table[place] = at;
            numbers.push(count);
            count += 1;
        } else {
            numbers.push(numbers[table[place]]);
        }
    }
    (numbers, count)
}

/// Eight bytes at a time; whose keys they are gains nothing by making them collide.
fn hash(key: &[u8]) -> u64 {
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
    let (words, rest) = key.as_chunks::<8>();
    let mix = |hash: u64, word: u64| (hash.rotate_left(5) ^ word).wrapping_mul(FACTOR);
    let hash = words.iter().fold(0, |hash, word| mix(hash, u64::from_le_bytes(*word)));
    let last = rest.iter().fold(rest.len() as u64, |word, byte| word << 8 | u64::from(*byte));
    let hash = mix(hash, last);
    hash ^ (hash >> 32)
}

/// Bytes of a value to store.
#[derive(Clone, Copy, Debug)]
pub struct PutRange<'a> {
    /// 1 to 512 bytes.
    pub key: &'a [u8],
    /// The place of the first byte in the value.
    pub offset: u64,
    /// The bytes.
    pub bytes: &'a [u8],
}

impl Client {
    /// Reads many values, or ranges of them, as [`Client::get_batch`] does, with as few operations as it
    /// takes: ranges that touch or overlap are read as one.
    ///
    /// # Errors
    /// [`PlanError`]; nothing was asked for.
    pub fn get_coalesced(
        &self,
        items: &mut [GetItem<'_>],
    ) -> Result<Vec<Result<GetOutcome, ClientError>>, PlanError> {
        let descriptors: Vec<Descriptor<'_>> = items
            .iter()
            .map(|item| Descriptor {
                key: item.key,
                offset: item.offset,
                length: item.buf.len() as u64,
                memory: item.buf.as_ptr() as usize,
            })
            .collect();
        let plan = Plan::of_reads(&descriptors)?;
        self.note_plan(&plan);
        let mut buffers: Vec<Option<&mut [u8]>> =
            items.iter_mut().map(|item| Some(&mut *item.buf)).collect();
        let mut piece = |piece: &Piece| {
            let buffer = buffers[piece.descriptor].take().expect("one piece of a descriptor");
            &mut buffer[piece.start as usize..]
        };
        let item = |run: &Run| ScatterItem {
            key: descriptors[run.pieces[0].descriptor].key,
            offset: run.offset,
            pieces: run.pieces.iter().map(&mut piece).collect(),
        };
        let mut wanted: Vec<ScatterItem<'_>> = plan.runs.iter().map(item).collect();
        let answers = self.get_scattered(&mut wanted);
        let mut outcomes: Vec<Option<Result<GetOutcome, ClientError>>> =
            items.iter().map(|_| None).collect();
        for (run, answer) in plan.runs.iter().zip(answers) {
            let is_read = answer.as_ref().is_ok_and(GetOutcome::is_hit);
            for copy in &run.copies {
                // What was not read is left as it was, as of a miss that stands alone.
                if is_read {
                    copy_between(items, copy);
                }
                outcomes[copy.to.0] = Some(answer.clone());
            }
            for piece in &run.pieces {
                outcomes[piece.descriptor] = Some(answer.clone());
            }
        }
        let known = |outcome: Option<_>| outcome.expect("every descriptor belongs to a run");
        Ok(outcomes.into_iter().map(known).collect())
    }

    /// Stores values whose bytes come as ranges in any order; one result for each value, in the order of
    /// their first ranges in `ranges`.
    ///
    /// # Errors
    /// [`PlanError`]; nothing was stored.
    pub fn put_coalesced(
        &self,
        ranges: &[PutRange<'_>],
        options: &PutOptions,
    ) -> Result<Vec<Result<PutOutcome, ClientError>>, PlanError> {
        let descriptors: Vec<Descriptor<'_>> = ranges
            .iter()
            .map(|range| Descriptor {
                key: range.key,
                offset: range.offset,
                length: range.bytes.len() as u64,
                memory: range.bytes.as_ptr() as usize,
            })
            .collect();
        let mut plan = Plan::of_writes(&descriptors)?;
        let place = |run: &Run| run.pieces.iter().map(|piece| piece.descriptor).min();
        plan.runs.sort_by_key(place);
        self.note_plan(&plan);
        let bytes = |run: &Run| -> Vec<&[u8]> {
            run.pieces.iter().map(|piece| ranges[piece.descriptor].bytes).collect()
        };
        let pieces: Vec<Vec<&[u8]>> = plan.runs.iter().map(bytes).collect();
        let item = |(run, pieces)| {
            let run: &Run = run;
            let pieces: &Vec<&[u8]> = pieces;
            let key = ranges[run.pieces[0].descriptor].key;
            GatherItem { key, pieces, options: *options, parent: None }
        };
        let items: Vec<GatherItem<'_>> = plan.runs.iter().zip(&pieces).map(item).collect();
        Ok(self.put_gathered(&items))
    }

    /// Counts a plan that is about to be carried out.
    pub fn note_plan(&self, plan: &Plan) {
        self.meter().note_plan(&plan.saving);
    }
}

fn copy_between(items: &mut [GetItem<'_>], copy: &LocalCopy) {
    let LocalCopy { from: (source, first), to: (target, place), length } = *copy;
    let [source, target] =
        items.get_disjoint_mut([source, target]).expect("a descriptor has nothing of itself");
    let (first, place, length) = (first as usize, place as usize, length as usize);
    target.buf[place..place + length].copy_from_slice(&source.buf[first..first + length]);
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
