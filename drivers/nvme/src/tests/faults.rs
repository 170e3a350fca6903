//! Bad drives: what each of them does, and how the driver gets its commands done all the same, or ends
//! them with their buffers.

use std::io::ErrorKind;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use memkv_block::{BlockDevice, Completion, Done, Io, IoError};
use memkv_dma::Class;
use memkv_poller::{Clock, Reactor, ReactorConfig, Rng};

use super::bench::{Bench, LIMIT, MIB, config, options, pattern, pool};
use crate::model::{Fault, ModelClock, ModelConfig, ModelLink, Told};
use crate::{NvmeError, Status, open};

const BLOCK: usize = 4096;

fn used(bench: &Bench) -> u64 {
    bench.pool.stats().used.iter().sum()
}

/// A fault, struck by the first of forty writes; all of them are done in the end.
fn is_survived(fault: Fault) -> Bench {
    let mut bench = Bench::new(config());
    bench.model.lock().fault(fault);
    let all: Vec<Completion> = (0..40).map(|n| bench.write(n * MIB / 4, 20 * BLOCK, n)).collect();
    bench.struck(1);
    bench.wait(LIMIT * 3);
    for one in all {
        let done = bench.end(one);
        done.result.unwrap();
        assert!(done.buf.is_some(), "the buffer comes back");
    }
    for n in 0..40 {
        bench.expect(n * MIB / 4, 20 * BLOCK, n);
    }
    assert_eq!(used(&bench), 0);
    assert_eq!(bench.device.stats().depth, 0);
    bench
}

#[test]
fn an_error_is_told_and_the_buffer_comes_back() {
    let mut bench = Bench::new(config());
    let error = Status::UNRECOVERED_READ_ERROR.do_not_retry();
    bench.model.lock().fault(Fault::Status(error));
    let read = bench.submit(Io::read(0, BLOCK, bench.buffer(BLOCK)));
    let done = bench.end(read);
    assert!(matches!(done.result, Err(IoError::Status(0x281))), "{:?}", done.result);
    assert!(done.buf.is_some());
    assert_eq!((bench.device.stats().failed, bench.device.troubles().retries), (1, 0));
    let write = bench.write(0, BLOCK, 1);
    bench.end(write).result.unwrap();
    bench.expect(0, BLOCK, 1);
}

#[test]
fn an_error_that_may_pass_is_tried_again() {
    let mut bench = Bench::new(config());
    bench.model.lock().fault(Fault::Status(Status::INTERNAL_ERROR));
    let write = bench.write(0, BLOCK, 1);
    bench.end(write).result.unwrap();
    bench.expect(0, BLOCK, 1);
    assert_eq!(bench.device.troubles().retries, 1);
    // But not for ever.
    (0..4).for_each(|_| bench.model.lock().fault(Fault::Status(Status::INTERNAL_ERROR)));
    let write = bench.write(0, BLOCK, 2);
    let done = bench.end(write);
    assert!(matches!(done.result, Err(IoError::Status(0x006))), "{:?}", done.result);
    assert_eq!(bench.device.troubles().retries, 4);
    bench.expect(0, BLOCK, 1);
}

/// It used to be counted as given again before it was counted as answered.
#[test]
fn a_command_that_is_tried_again_is_in_the_drive_once() {
    let mut bench = Bench::new(config());
    bench.model.lock().fault(Fault::Status(Status::INTERNAL_ERROR));
    let write = bench.write(0, BLOCK, 1);
    bench.end(write).result.unwrap();
    let stats = bench.device.stats();
    assert_eq!((stats.submitted, stats.depth, stats.depth_high), (2, 0, 1));
}

#[test]
fn what_the_drive_is_not_told_of_is_counted_as_failed() {
    let mut bench = Bench::new(ModelConfig { entries: 2, ..config() });
    let refused = bench.submit(Io::read(1, BLOCK, bench.buffer(BLOCK)));
    assert!(matches!(bench.end(refused).result, Err(IoError::Misaligned { .. })));
    assert_eq!(bench.device.stats().failed, 1);
    // The drive has room for one; the other three wait, and never reach it.
    let mut reads: Vec<Completion> =
        (0..4).map(|_| bench.submit(Io::read(0, BLOCK, bench.buffer(BLOCK)))).collect();
    bench.queue.as_ref().unwrap().give_up();
    for read in reads.split_off(1) {
        assert!(matches!(bench.end(read).result, Err(IoError::Offline)));
    }
    let read = reads.pop().unwrap();
    bench.end(read).result.unwrap();
    assert_eq!((bench.device.stats().failed, bench.device.stats().reads), (4, 1));
}

/// One piece of many fails: the others are waited for before the buffer comes back.
#[test]
fn one_bad_piece_fails_the_whole_request() {
    let mut bench = Bench::new(config());
    let error = Status::UNRECOVERED_READ_ERROR.do_not_retry();
    (0..3).for_each(|_| bench.model.lock().fault(Fault::Nothing));
    bench.model.lock().fault(Fault::Status(error));
    let read = bench.submit(Io::read(0, 4 << 20, bench.buffer(4 << 20)));
    let done = bench.end(read);
    assert!(matches!(done.result, Err(IoError::Status(0x281))));
    assert!(done.buf.is_some());
    assert_eq!(bench.model.lock().stats().commands, 8, "512 KiB each");
    assert_eq!(bench.queue.as_ref().unwrap().outstanding(), 0);
}

/// Only the last of several answers that are taken together used to be looked at, elsewhere.
#[test]
fn errors_are_told_of_the_right_commands_across_the_wrap_of_the_ring() {
    for entries in [2, 3, 4, 5] {
        let mut bench = Bench::new(ModelConfig { entries, ..config() });
        let error = Status::LBA_OUT_OF_RANGE.do_not_retry();
        let mut submitted = 0;
        for round in 0..24 {
            let crowd = u64::from(entries) - 1;
            let bad = round % crowd;
            (0..bad).for_each(|_| bench.model.lock().fault(Fault::Nothing));
            bench.model.lock().fault(Fault::Status(error));
            let all: Vec<Completion> =
                (0..crowd).map(|n| bench.write((submitted + n) * MIB / 64, BLOCK, n)).collect();
            for (n, one) in all.into_iter().enumerate() {
                let result = bench.end(one).result;
                assert_eq!(result.is_err(), n as u64 == bad, "{entries} entries, round {round}");
            }
            submitted += crowd;
        }
        assert!(bench.device.troubles() == crate::Troubles::default());
    }
}

#[test]
fn a_lost_answer_is_aborted_and_the_command_given_again() {
    let mut bench = Bench::new(config());
    bench.model.lock().fault(Fault::LoseAnswer);
    let write = bench.write(MIB, BLOCK, 5);
    bench.struck(1);
    // Not before its time.
    bench.wait(LIMIT / 2);
    assert_eq!(bench.device.troubles().aborts, 0);
    bench.wait(LIMIT / 2 + LIMIT / 8);
    let done = bench.end(write);
    done.result.unwrap();
    let troubles = bench.device.troubles();
    assert_eq!((troubles.aborts, troubles.retries, troubles.resets), (1, 1, 0));
    bench.expect(MIB, BLOCK, 5);
}

#[test]
fn a_command_that_cannot_be_aborted_takes_a_reset_and_all_are_done() {
    let bench = is_survived(Fault::Swallow);
    let troubles = bench.device.troubles();
    assert_eq!((troubles.aborts, troubles.resets, troubles.spurious), (1, 1, 0));
    assert_eq!(bench.model.lock().stats().lives, 2);
}

#[test]
fn an_answer_with_the_wrong_phase_is_not_seen() {
    let bench = is_survived(Fault::BadPhase);
    assert_eq!(bench.device.troubles().resets, 1);
}

#[test]
fn answers_to_what_nobody_asked_take_a_reset() {
    // A tracker that is not in use, one that does not exist, one in use under an earlier name.
    for id in [0x0150, 0xffff, 0x00ff, 0x0000] {
        let bench = is_survived(Fault::Spurious(id));
        let troubles = bench.device.troubles();
        assert_eq!((troubles.spurious, troubles.resets, troubles.aborts), (1, 1, 0), "{id:#x}");
    }
    assert_eq!(is_survived(Fault::AnswerTwice).device.troubles().spurious, 1);
    for queue in [0, 2, 0xffff] {
        assert_eq!(is_survived(Fault::WrongQueue(queue)).device.troubles().spurious, 1);
    }
}

#[test]
fn a_controller_that_reports_that_it_has_failed_is_reset() {
    let bench = is_survived(Fault::Fatal);
    let troubles = bench.device.troubles();
    assert_eq!((troubles.resets, troubles.aborts), (1, 0), "seen at the first look");
}

#[test]
fn a_drive_that_is_removed_ends_everything_and_gives_back_every_buffer() {
    let mut bench = Bench::new(config());
    bench.model.lock().fault(Fault::Nothing);
    bench.model.lock().fault(Fault::Remove);
    let all: Vec<Completion> = (0..200).map(|n| bench.write(n * BLOCK as u64, BLOCK, n)).collect();
    bench.struck(1);
    // Seen at a look, long before anything is late.
    bench.wait(LIMIT / 8);
    let ends: Vec<Done> = all.into_iter().map(|one| bench.end(one)).collect();
    assert!(ends.iter().all(|done| matches!(done.result, Err(IoError::Offline))));
    assert!(ends.iter().all(|done| done.buf.is_some()), "the drive was cut off");
    drop(ends);
    assert_eq!(used(&bench), 0);
    assert!(matches!(bench.device.failure(), Some(NvmeError::Removed)));
    let late = bench.write(0, BLOCK, 1);
    assert!(matches!(bench.end(late).result, Err(IoError::Offline)));
    assert!(matches!(bench.device.open_queue(&bench.reactor.local()), Err(IoError::Offline)));
    assert!(matches!(bench.device.health(), Err(NvmeError::Offline)));
    assert_eq!(bench.device.stats().depth, 0);
}

/// Nobody knows whether it still writes: what it had is never used again.
#[test]
fn what_a_drive_has_that_cannot_be_cut_off_is_leaked() {
    let mut bench = Bench::with(config(), ModelLink::uncuttable);
    bench.model.lock().fault(Fault::Remove);
    let has = bench.write(0, 4 * BLOCK, 1);
    // Behind the window: the drive has not been told of it.
    let large: Vec<Completion> =
        (0..3).map(|_| bench.submit(Io::read(0, 4 << 20, bench.buffer(4 << 20)))).collect();
    bench.struck(1);
    bench.wait(LIMIT / 8);
    let done = bench.end(has);
    assert!(matches!(done.result, Err(IoError::Offline)) && done.buf.is_none());
    let ends: Vec<Done> = large.into_iter().map(|one| bench.end(one)).collect();
    let back: Vec<bool> = ends.iter().map(|done| done.buf.is_some()).collect();
    assert_eq!(back, [false, false, true]);
    drop(ends);
    assert_eq!(used(&bench), 16384 + 2 * (4 << 20));
}

#[test]
fn a_drive_that_comes_back_as_another_is_not_driven_on() {
    let mut bench = Bench::new(config());
    bench.model.lock().become_another("MODEL0002");
    bench.model.lock().fault(Fault::Swallow);
    let write = bench.write(0, BLOCK, 1);
    bench.struck(1);
    bench.wait(LIMIT * 2);
    let done = bench.end(write);
    assert!(matches!(done.result, Err(IoError::Offline)) && done.buf.is_some());
    assert!(matches!(bench.device.failure(), Some(NvmeError::Changed)));
    assert_eq!(bench.model.lock().medium()[..BLOCK], [0; BLOCK], "nothing is written to it");
}

#[test]
fn a_drive_that_does_not_come_back_is_out_of_service() {
    let mut bench = Bench::new(config());
    bench.model.lock().never_be_ready();
    bench.model.lock().fault(Fault::Swallow);
    let write = bench.write(0, BLOCK, 1);
    bench.struck(1);
    bench.wait(LIMIT * 2);
    let done = bench.end(write);
    assert!(matches!(done.result, Err(IoError::Offline)) && done.buf.is_some());
    let failure = bench.device.failure();
    assert!(matches!(failure, Some(NvmeError::Deadline { state: "enabled", .. })), "{failure:?}");
}

#[test]
fn a_command_that_takes_a_reset_each_time_fails_and_a_drive_that_needs_many_is_broken() {
    let mut bench = Bench::new(config());
    (0..3).for_each(|_| bench.model.lock().fault(Fault::Swallow));
    let write = bench.write(0, BLOCK, 1);
    for times in 1..=3 {
        bench.struck(times);
        bench.wait(LIMIT * 2);
    }
    match bench.end(write) {
        Done { result: Err(IoError::Os(error)), buf: Some(_) } => {
            assert_eq!(error.kind(), ErrorKind::TimedOut);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(bench.device.troubles().resets, 3);
    (0..3).for_each(|_| bench.model.lock().fault(Fault::Swallow));
    let write = bench.write(0, BLOCK, 1);
    for times in 4..=6 {
        bench.struck(times);
        bench.wait(LIMIT * 2);
    }
    let done = bench.end(write);
    assert!(matches!(done.result, Err(IoError::Offline)) && done.buf.is_some());
    assert!(matches!(bench.device.failure(), Some(NvmeError::Resets { resets: 6, .. })));
}

/// Resets that lie far apart are no reason to give a drive up.
#[test]
fn a_drive_that_is_reset_now_and_then_is_driven_on() {
    let mut bench = Bench::new(config());
    for round in 1..=12 {
        bench.model.lock().fault(Fault::Swallow);
        let write = bench.write(0, BLOCK, round);
        bench.struck(round);
        bench.wait(LIMIT * 2);
        bench.end(write).result.unwrap();
        bench.clock.advance(Duration::from_secs(200));
    }
    assert_eq!(bench.device.troubles().resets, 12);
    bench.expect(0, BLOCK, 12);
}

/// Every reactor notices by itself, also one that had nothing in flight.
#[test]
fn queues_of_other_reactors_are_made_anew() {
    let mut bench = Bench::new(config());
    let clock = Rc::new(bench.clock.clone());
    let mut other = Reactor::new(ReactorConfig::default(), clock, Rng::seeded(2));
    let queue = bench.device.open_queue(&other.local()).unwrap();
    bench.model.lock().fault(Fault::Swallow);
    let write = bench.write(0, BLOCK, 1);
    bench.struck(1);
    bench.wait(LIMIT * 2);
    bench.end(write).result.unwrap();
    assert_eq!(bench.model.lock().stats().queues, 1, "the other reactor has not run");
    let io = Io::write(MIB, BLOCK, bench.filled(BLOCK, 2));
    let mut end = other.local().spawn_join(queue.submit(io));
    let mut done = None;
    bench.step_until("the other's command ends", |_| {
        other.step();
        done = end.try_take();
        done.is_some()
    });
    done.unwrap().result.unwrap();
    assert_eq!(bench.model.lock().stats().queues, 2);
    bench.expect(MIB, BLOCK, 2);
    drop((queue, other));
}

/// One reactor resets the controller while another, which has not looked since, gives commands: before,
/// while and after the controller is off, and until the other makes its queue anew. The model counts each
/// doorbell that it finds rung for a queue that it does not have.
#[test]
fn a_reactor_that_has_not_heard_of_a_reset_rings_no_doorbell() {
    for first in 0..30 {
        let mut bench = Bench::new(config());
        let clock = Rc::new(bench.clock.clone());
        let mut other = Reactor::new(ReactorConfig::default(), clock, Rng::seeded(2));
        let queue = bench.device.open_queue(&other.local()).unwrap();
        let mut theirs = Vec::new();
        bench.model.lock().fault(Fault::Fatal);
        let mine = bench.write(MIB, BLOCK, 1000);
        bench.struck(1);
        assert_eq!(bench.device.troubles().resets, 0);
        bench.clock.advance(LIMIT / 16);
        for n in 0..30 {
            bench.reactor.step();
            // The first one, for which its drive has nothing to do yet, is told of at once.
            if n >= first {
                let io = Io::write(n * BLOCK as u64, BLOCK, bench.filled(BLOCK, n));
                theirs.push((n, other.local().spawn_join(queue.submit(io))));
            }
            bench.model.lock().step();
        }
        let queues = bench.model.lock().stats().queues;
        assert_eq!((bench.device.troubles().resets, queues), (1, 1), "the other has not looked");
        for (n, mut end) in theirs {
            let mut done = None;
            bench.step_until("the other's command ends", |_| {
                other.step();
                done = end.try_take();
                done.is_some()
            });
            done.unwrap().result.unwrap();
            bench.expect(n * BLOCK as u64, BLOCK, n);
        }
        bench.end(mine).result.unwrap();
        assert_eq!(bench.model.lock().stats().offences, 0, "told of the first at pass {first}");
        drop((queue, other));
    }
}

/// Both have commands in flight, and the one that has no fault of its own drives the reset as well.
#[test]
fn a_reset_by_one_reactor_loses_nothing_of_another() {
    let mut bench = Bench::new(ModelConfig { scramble: Some(3), ..config() });
    let clock = Rc::new(bench.clock.clone());
    let mut other = Reactor::new(ReactorConfig::default(), clock, Rng::seeded(2));
    let queue = bench.device.open_queue(&other.local()).unwrap();
    bench.model.lock().fault(Fault::Spurious(0x7f7f));
    let mine: Vec<Completion> = (0..30).map(|n| bench.write(n * MIB / 8, 3 * BLOCK, n)).collect();
    let theirs: Vec<_> = (30..60)
        .map(|n| {
            let io = Io::write(n * MIB / 8, 3 * BLOCK, bench.filled(3 * BLOCK, n));
            other.local().spawn_join(queue.submit(io))
        })
        .collect();
    for mut handle in theirs {
        let mut done = None;
        bench.step_until("the other's command ends", |_| {
            other.step();
            done = handle.try_take();
            done.is_some()
        });
        done.unwrap().result.unwrap();
    }
    for one in mine {
        bench.end(one).result.unwrap();
    }
    (0..60).for_each(|n| bench.expect(n * MIB / 8, 3 * BLOCK, n));
    assert_eq!(bench.device.troubles().resets, 1);
    drop((queue, other));
}

#[test]
fn a_queue_that_is_dropped_in_the_middle_of_trouble_waits_for_its_buffers() {
    for fault in [Fault::Swallow, Fault::LoseAnswer, Fault::BadPhase, Fault::Fatal, Fault::Remove] {
        let mut bench = Bench::new(config());
        bench.model.lock().fault(fault);
        (0..20).for_each(|n| drop(bench.write(n * MIB / 4, 2 * BLOCK, n)));
        bench.struck(1);
        bench.queue = None;
        let clock = Rc::new(bench.clock.clone());
        bench.reactor = Reactor::new(ReactorConfig::default(), clock, Rng::seeded(2));
        assert_eq!(used(&bench), 0, "{fault:?}");
        if fault == Fault::Remove {
            continue;
        }
        bench.queue = Some(bench.device.open_queue(&bench.reactor.local()).unwrap());
        (0..20).for_each(|n| bench.expect(n * MIB / 4, 2 * BLOCK, n));
        assert_eq!(bench.model.lock().stats().queues, 1, "the old one is gone");
    }
}

/// What watches the drive has given it up: nobody waits for it.
#[test]
fn a_queue_that_was_given_up_leaks_what_the_drive_has() {
    let mut bench = Bench::new(config());
    bench.model.lock().fault(Fault::Swallow);
    let has = bench.write(0, BLOCK, 1);
    bench.struck(1);
    let waits: Vec<Completion> =
        (0..3).map(|_| bench.submit(Io::read(0, 4 << 20, bench.buffer(4 << 20)))).collect();
    let queue = bench.queue.take().unwrap();
    queue.give_up();
    let refused = queue.submit(Io::flush());
    assert!(matches!(bench.end(refused).result, Err(IoError::Offline)));
    drop(queue);
    let mut ends = waits.into_iter().map(|one| bench.end(one));
    let done = ends.next_back().unwrap();
    assert!(matches!(done.result, Err(IoError::Offline)) && done.buf.is_some(), "never sent");
    assert!(ends.all(|done| done.result.is_ok()));
    drop(done);
    let clock = Rc::new(bench.clock.clone());
    bench.reactor = Reactor::new(ReactorConfig::default(), clock, Rng::seeded(2));
    assert_eq!(bench.pool.stats().used[Class::Receive.index()], 16384);
    assert!(matches!(bench.end(has).result, Err(IoError::Offline)));
}

/// A queue that goes while an abort is on its way leaves no trace in the admin queue, which has 31
/// places.
#[test]
fn a_queue_that_is_dropped_with_an_abort_on_its_way_takes_no_place_with_it() {
    let mut bench = Bench::new(config());
    for round in 1..=40 {
        bench.model.lock().fault(Fault::LoseAnswer);
        drop(bench.write(0, BLOCK, round));
        bench.struck(round);
        // Until the abort is asked for, and not answered.
        for _ in 0..20 {
            bench.clock.advance(LIMIT / 16);
            bench.reactor.step();
            if bench.device.troubles().aborts == round {
                break;
            }
        }
        assert_eq!(bench.device.troubles().aborts, round);
        bench.queue = None;
        let clock = Rc::new(bench.clock.clone());
        bench.reactor = Reactor::new(ReactorConfig::default(), clock, Rng::seeded(2));
        bench.queue = Some(bench.device.open_queue(&bench.reactor.local()).unwrap());
    }
    assert_eq!(bench.device.troubles().resets, 0);
    assert_eq!(bench.device.health().unwrap().temperature, Some(40));
}

/// It says that a shutdown takes an hour, and does not do it.
#[test]
fn nobody_waits_an_hour_for_a_shutdown() {
    let clock = ModelClock::default();
    let (link, model) = ModelLink::by_hand(config(), clock.clone());
    model.lock().lie(Told::Controller, 88, &u32::MAX.to_le_bytes());
    let device = open(link, &pool(), Arc::new(clock.clone()), options()).unwrap();
    model.lock().never_shut_down();
    let before = clock.now();
    drop(device);
    let waited = clock.now().saturating_duration_since(before);
    assert!((59..70).contains(&waited.as_secs()), "{waited:?}");
}

/// It says that it takes nine hours to become ready, and does not become it.
#[test]
fn nobody_waits_nine_hours_for_a_drive() {
    let clock = ModelClock::default();
    let (link, model) = ModelLink::by_hand(config(), clock.clone());
    // CAP.CRMS, and CRTO.
    let high = 1 << (59 - 32) | 1 << (37 - 32);
    model.lock().set_register(0x04, high);
    model.lock().set_register(0x68, u32::MAX >> 1);
    model.lock().never_be_ready();
    let failure = open(link, &pool(), Arc::new(clock.clone()), options()).map(|_| ()).unwrap_err();
    assert!(matches!(failure, NvmeError::Deadline { state: "enabled", .. }), "{failure}");
    assert!((299..320).contains(&clock.now().as_nanos().div_euclid(1_000_000_000)));
}

#[test]
fn health_is_told_also_by_a_drive_in_trouble() {
    let mut bench = Bench::new(config());
    let health = bench.device.health().unwrap();
    assert_eq!((health.temperature, health.spare, health.critical), (Some(40), 100, 0));
    bench.model.lock().fault(Fault::Fatal);
    let write = bench.write(0, BLOCK, 1);
    bench.struck(1);
    assert_eq!(bench.device.health().unwrap().temperature, Some(40));
    bench.wait(LIMIT);
    bench.end(write).result.unwrap();
    assert_eq!(bench.device.troubles().resets, 1);
    bench.expect(0, BLOCK, 1);
}

#[test]
fn what_is_flushed_survives_a_power_cut_and_a_drive_without_a_cache_is_not_asked() {
    let mut bench = Bench::new(config());
    let write = bench.write(0, 2 * BLOCK, 1);
    bench.end(write).result.unwrap();
    let durable =
        |bench: &Bench, at: usize| bench.model.lock().durable()[at..at + 2 * BLOCK].to_vec();
    assert_eq!(durable(&bench, 0), [0; 2 * BLOCK], "it is in the cache");
    // What was written before is made durable too, by the flush at its side.
    bench.run(Io::write_flush(MIB, 2 * BLOCK, bench.filled(2 * BLOCK, 2)));
    assert!(durable(&bench, 0) == pattern(2 * BLOCK, 1));
    assert!(durable(&bench, MIB as usize) == pattern(2 * BLOCK, 2));
    let stats = bench.model.lock().stats();
    assert_eq!((stats.flushes, stats.writes_through), (1, 1));
    bench.run(Io::flush());
    assert_eq!(bench.model.lock().stats().flushes, 2);

    let mut bench = Bench::new(ModelConfig { caches: false, ..config() });
    bench.run(Io::write_flush(MIB, 2 * BLOCK, bench.filled(2 * BLOCK, 2)));
    bench.run(Io::flush());
    assert!(durable(&bench, MIB as usize) == pattern(2 * BLOCK, 2));
    let stats = bench.model.lock().stats();
    assert_eq!((stats.flushes, stats.writes_through, stats.commands), (0, 0, 1));
    assert_eq!(bench.device.stats().flushes, 2);
}

/// To take a device out of the kernel's hands takes some hundred milliseconds, in which a reactor has others
/// to serve.
#[test]
fn a_reactor_does_not_wait_while_a_drive_is_cut_off() {
    let mut bench = Bench::new(config());
    bench.model.lock().fault(Fault::Swallow);
    let write = bench.write(0, BLOCK, 1);
    bench.struck(1);
    // It never clears CSTS.RDY when it is disabled.
    bench.model.lock().never_stop();
    let mut handle = bench.reactor.local().spawn_join(write);
    let mut ends_while_time_passes = |bench: &mut Bench| {
        for _ in 0..64 {
            bench.clock.advance(LIMIT / 16);
            let before = bench.clock.now();
            for _ in 0..20 {
                bench.reactor.step();
            }
            assert_eq!(bench.clock.now(), before, "the reactor waited");
            bench.model.lock().step();
        }
        handle.try_take()
    };
    let end = ends_while_time_passes(&mut bench);
    assert!(end.is_none(), "its buffer may still be written to");
    assert_eq!(bench.device.troubles().resets, 1, "which nobody waits for either");
    assert!(!bench.device.attend());
    let done = ends_while_time_passes(&mut bench).expect("the drive reaches nothing any more");
    assert!(matches!(done.result, Err(IoError::Offline)) && done.buf.is_some());
    let failure = bench.device.failure();
    assert!(matches!(failure, Some(NvmeError::Deadline { state: "disabled", .. })), "{failure:?}");
}
