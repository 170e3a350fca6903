//! Random histories on random drives with random faults, against an array of bytes.

use std::time::Duration;

use memkv_block::{Completion, Io};
use proptest::prelude::*;

use super::bench::{Bench, LIMIT, MIB, config, pattern};
use crate::Status;
use crate::model::{Fault, ModelConfig};

/// Ranges that commands keep apart: each holds one value at a time.
const LANES: u64 = 24;
const LANE: u64 = MIB / 2;

#[derive(Clone, Debug)]
enum Step {
    /// Writes to a lane, so many blocks of 4096 bytes, and flushes with it or not.
    Write {
        lane: u64,
        blocks: u64,
        flush: bool,
    },
    Read {
        lane: u64,
    },
    Deallocate {
        lane: u64,
    },
    Flush,
    Fault(Fault),
    /// Everything outstanding is waited for.
    Settle,
}

fn step() -> impl Strategy<Value = Step> {
    let lane = || 0..LANES;
    let fault = prop_oneof![
        Just(Fault::Status(Status::INTERNAL_ERROR)),
        Just(Fault::LoseAnswer),
        Just(Fault::Swallow),
        Just(Fault::BadPhase),
        Just(Fault::AnswerTwice),
        // No tracker has such a number: it cannot be the answer to something by chance.
        any::<u16>().prop_map(|id| Fault::Spurious(id | 0x80)),
        Just(Fault::Fatal),
    ];
    prop_oneof![
        8 => (lane(), 1u64..128, any::<bool>())
            .prop_map(|(lane, blocks, flush)| Step::Write { lane, blocks, flush }),
        6 => lane().prop_map(|lane| Step::Read { lane }),
        1 => lane().prop_map(|lane| Step::Deallocate { lane }),
        1 => Just(Step::Flush),
        1 => fault.prop_map(Step::Fault),
        3 => Just(Step::Settle),
    ]
}

fn drive() -> impl Strategy<Value = ModelConfig> {
    let shapes = (9u32..13, 12u32..17, 0u8..8, 2u16..200, 0u8..4, any::<u64>(), any::<bool>());
    shapes.prop_map(|(block_bits, page_bits, transfer_bits, entries, stride, seed, caches)| {
        ModelConfig {
            block_bits,
            page_bits,
            transfer_bits,
            entries,
            stride,
            caches,
            scramble: Some(seed),
            ..config()
        }
    })
}

/// What a lane shows: the length and the seed of what was written last, if that is defined.
type Shown = Option<(usize, u64)>;

struct Play {
    bench: Bench,
    lanes: Vec<Shown>,
    /// What is outstanding, with what it must find.
    pending: Vec<(u64, Completion, Shown)>,
    seed: u64,
    /// Faults asked for.
    faults: u64,
}

impl Play {
    fn busy(&self, lane: u64) -> bool {
        self.pending.iter().any(|(busy, ..)| *busy == lane)
    }

    fn settle(&mut self) {
        for (lane, completion, shown) in std::mem::take(&mut self.pending) {
            let mut handle = self.bench.reactor.local().spawn_join(completion);
            let mut done = None;
            for _ in 0..400 {
                (0..200).for_each(|_| self.bench.step());
                done = handle.try_take();
                if done.is_some() {
                    break;
                }
                self.bench.wait(LIMIT / 4);
            }
            let done = done.expect("every command ends");
            done.result.unwrap();
            if let Some((len, seed)) = shown {
                let found = done.buf.expect("the buffer comes back");
                assert!(found.as_slice() == pattern(len, seed), "lane {lane} is not {seed}");
            }
        }
    }

    fn play(&mut self, step: Step) {
        match step {
            Step::Write { lane, blocks, flush } if !self.busy(lane) => {
                self.seed += 1;
                let len = blocks as usize * 4096;
                let buffer = self.bench.filled(len, self.seed);
                let write = if flush { Io::write_flush } else { Io::write };
                let end = self.bench.submit(write(lane * LANE, len, buffer));
                self.lanes[lane as usize] = Some((len, self.seed));
                self.pending.push((lane, end, None));
            }
            Step::Read { lane } if !self.busy(lane) => {
                let Some(shown) = self.lanes[lane as usize] else { return };
                let buffer = self.bench.buffer(shown.0);
                let end = self.bench.submit(Io::read(lane * LANE, shown.0, buffer));
                self.pending.push((lane, end, Some(shown)));
            }
            Step::Deallocate { lane } if !self.busy(lane) => {
                let end = self.bench.submit(Io::deallocate(lane * LANE, LANE));
                self.lanes[lane as usize] = None;
                self.pending.push((lane, end, None));
            }
            Step::Flush => {
                let end = self.bench.submit(Io::flush());
                self.pending.push((u64::MAX, end, None));
            }
            Step::Fault(fault) => {
                self.settle();
                if self.bench.model.lock().stats().faults < self.faults {
                    // One at a time: several may rightly be too many for one command.
                    return;
                }
                self.faults += 1;
                // Far apart, so that a drive with many faults is not taken for a broken one.
                self.bench.clock.advance(Duration::from_secs(200));
                self.bench.model.lock().fault(fault);
            }
            _ => self.settle(),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn every_history_agrees_with_an_array(
        drive in drive(),
        steps in proptest::collection::vec(step(), 1..80),
    ) {
        let bench = Bench::new(drive);
        let lanes = vec![None; LANES as usize];
        let mut play = Play { bench, lanes, pending: Vec::new(), seed: 0, faults: 0 };
        for step in steps {
            play.play(step);
        }
        play.settle();
        (0..LANES).for_each(|lane| play.play(Step::Read { lane }));
        play.settle();
        // And what was flushed is what a power cut leaves.
        play.play(Step::Flush);
        play.settle();
        let model = play.bench.model.lock();
        for lane in 0..LANES {
            if let Some((len, seed)) = play.lanes[lane as usize] {
                let at = (lane * LANE) as usize;
                prop_assert!(model.durable()[at..at + len] == pattern(len, seed));
            }
        }
        drop(model);
        prop_assert_eq!(play.bench.pool.stats().used.iter().sum::<u64>(), 0);
    }
}
