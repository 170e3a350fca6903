//! Transfers of GPUs' memory, through [`Staging`](crate::staging::Staging).
//!
//! Runs go in groups that leave room for other workers; each group is one call of the client between slots and
//! servers, and copies between slots and GPUs before or after it. Copies happen inside of the posting's gate, as
//! everything that touches its user's memory.

#![allow(unsafe_code)]

use std::ops::Range;

use memkv_client::{Client, GatherItem, LocalCopy, Piece, Run, ScatterItem};

use crate::device::DeviceError;
use crate::memory::Region;
use crate::staging::{Slots, Staging};
use crate::status::{Status, say_once_a_second};
use crate::transfer::Posting;

/// Bytes of a run and of a descriptor's memory on a GPU.
struct Stretch {
    in_run: u64,
    descriptor: usize,
    start: u64,
    length: u64,
}

impl Posting {
    /// Reads runs into GPUs.
    pub(crate) fn read_staged(
        &self,
        client: &Client,
        runs: &[Run],
        staging: &Staging,
    ) -> Result<(), Status> {
        for group in groups(runs, staging) {
            let runs = &runs[group];
            let slots = self.take_slots(runs, staging)?;
            let shares = shares(runs, slots.regions(), staging);
            let item = |(run, share): (&Run, &Vec<Region>)| ScatterItem {
                key: self.key(run),
                offset: run.offset,
                // SAFETY: slots are pinned for good, and these are ours until `slots` is dropped.
                pieces: share.iter().map(|slot| unsafe { slot.bytes_mut(0) }).collect(),
            };
            let mut items: Vec<ScatterItem<'_>> = runs.iter().zip(&shares).map(item).collect();
            let answers = client.get_scattered(&mut items);
            drop(items);
            for ((run, share), answer) in runs.iter().zip(&shares).zip(answers) {
                self.check_hit(run, answer)?;
                let fill = || {
                    let stretches = self.stretches(run);
                    stretches.iter().try_for_each(|stretch| self.fill(stretch, share, staging))
                };
                self.gate().with_memory(fill).ok_or(Status::Canceled)?.map_err(failed)?;
            }
        }
        Ok(())
    }

    /// Writes runs out of GPUs.
    pub(crate) fn write_staged(
        &self,
        client: &Client,
        runs: &[Run],
        staging: &Staging,
    ) -> Result<(), Status> {
        for group in groups(runs, staging) {
            let runs = &runs[group];
            let slots = self.take_slots(runs, staging)?;
            let shares = shares(runs, slots.regions(), staging);
            let take = || {
                runs.iter().zip(&shares).try_for_each(|(run, share)| {
                    let stretches = self.stretches(run);
                    stretches.iter().try_for_each(|stretch| self.take(stretch, share, staging))
                })
            };
            self.gate().with_memory(take).ok_or(Status::Canceled)?.map_err(failed)?;
            let bytes = |share: &Vec<Region>| -> Vec<&[u8]> {
                // SAFETY: slots are pinned for good, and these are ours until `slots` is dropped.
                share.iter().map(|slot| unsafe { slot.bytes(0) }).collect()
            };
            let pieces: Vec<Vec<&[u8]>> = shares.iter().map(bytes).collect();
            let item = |(run, pieces)| {
                let pieces: &Vec<&[u8]> = pieces;
                GatherItem { key: self.key(run), pieces, options: self.options(), parent: None }
            };
            let items: Vec<GatherItem<'_>> = runs.iter().zip(&pieces).map(item).collect();
            self.check_stored(client.put_gathered(&items))?;
        }
        Ok(())
    }

    /// Slots for all of these runs.
    fn take_slots<'a>(&self, runs: &[Run], staging: &'a Staging) -> Result<Slots<'a>, Status> {
        let (gpu, _) = self.memory_of(runs[0].pieces[0].descriptor);
        staging.take(gpu, needed(runs, staging)).map_err(failed)
    }

    /// All of a run's memory on GPUs: what the wire brings, and what wants the same.
    fn stretches(&self, run: &Run) -> Vec<Stretch> {
        let mut in_run = 0;
        let mut begins = Vec::with_capacity(run.pieces.len());
        let mut stretches = Vec::with_capacity(run.pieces.len() + run.copies.len());
        for Piece { descriptor, start, length } in &run.pieces {
            begins.push((*descriptor, in_run - *start as i64));
            stretches.push(Stretch {
                in_run: in_run as u64,
                descriptor: *descriptor,
                start: *start,
                length: *length,
            });
            in_run += *length as i64;
        }
        for LocalCopy { from: (source, first), to: (target, start), length } in &run.copies {
            let begin = begins.iter().find(|(descriptor, _)| descriptor == source);
            let (_, begin) = begin.expect("what is copied was brought by a piece");
            let in_run = (begin + *first as i64) as u64;
            stretches.push(Stretch { in_run, descriptor: *target, start: *start, length: *length });
        }
        stretches
    }

    fn fill(
        &self,
        stretch: &Stretch,
        share: &[Region],
        staging: &Staging,
    ) -> Result<(), DeviceError> {
        let (gpu, address) = self.place(stretch);
        parts(stretch, staging).try_for_each(|(slot, range, done)| {
            // SAFETY: the slot is ours. NIXL's user lends the GPU's memory until the transfer is done or released;
            // we are inside of the gate.
            unsafe { staging.device().fill(gpu, address + done, &share[slot].bytes(0)[range]) }
        })
    }

    fn take(
        &self,
        stretch: &Stretch,
        share: &[Region],
        staging: &Staging,
    ) -> Result<(), DeviceError> {
        let (gpu, address) = self.place(stretch);
        parts(stretch, staging).try_for_each(|(slot, range, done)| {
            // SAFETY: as for filling.
            unsafe {
                let into = &mut share[slot].bytes_mut(0)[range];
                staging.device().take(gpu, address + done, into)
            }
        })
    }

    fn place(&self, stretch: &Stretch) -> (u64, usize) {
        let (gpu, region) = self.memory_of(stretch.descriptor);
        (gpu, region.address() + stretch.start as usize)
    }
}

/// Stretches of runs that fit into a share of the slots, a run at least.
fn groups(runs: &[Run], staging: &Staging) -> Vec<Range<usize>> {
    let room = (staging.count() / 4).max(1);
    let mut groups: Vec<Range<usize>> = Vec::new();
    let mut used = 0;
    for (at, run) in runs.iter().enumerate() {
        let more = staging.needed(run.length);
        match groups.last_mut() {
            Some(group) if used + more <= room => {
                group.end = at + 1;
                used += more;
            }
            _ => {
                groups.push(at..at + 1);
                used = more;
            }
        }
    }
    groups
}

fn needed(runs: &[Run], staging: &Staging) -> usize {
    runs.iter().map(|run| staging.needed(run.length)).sum()
}

/// The slots of each run, the last of each cut to what the run still has.
fn shares(runs: &[Run], slots: &[Region], staging: &Staging) -> Vec<Vec<Region>> {
    let mut slots = slots.iter();
    let share = |run: &Run| {
        let count = staging.needed(run.length);
        let mut left = run.length as usize;
        let cut = |slot: &Region| {
            let length = left.min(staging.slot());
            left -= length;
            slot.part(0, length)
        };
        slots.by_ref().take(count).map(cut).collect()
    };
    runs.iter().map(share).collect()
}

/// The parts of a stretch that lie in one slot each: which one, where in it, and bytes in front of it.
fn parts<'a>(
    stretch: &'a Stretch,
    staging: &'a Staging,
) -> impl Iterator<Item = (usize, Range<usize>, usize)> + 'a {
    let (slot, length) = (staging.slot(), stretch.length as usize);
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == length {
            return None;
        }
        let at = stretch.in_run as usize + done;
        let (number, begin) = (at / slot, at % slot);
        let count = (length - done).min(slot - begin);
        done += count;
        Some((number, begin..begin + count, done - count))
    })
}

fn failed(error: DeviceError) -> Status {
    say_once_a_second(&format!("memory of a GPU could not be copied: {error}"));
    Status::Backend
}
