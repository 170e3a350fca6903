//! Tests of the model: what it must allow, and what it must refuse.

use super::*;

const NOW: Now = Now { nanos: 1_000, unix: 1_000 };

fn model() -> Model {
    let mut model = Model::new(4, false);
    model.started(false);
    model
}

fn begin(model: &mut Model, key: KeyId, mode: Mode) -> Put {
    let version = model.offer(key, 100);
    model.put_begins(version, mode, 0, NOW)
}

fn stored(model: &mut Model, key: KeyId, generation: u64) -> Put {
    let put = begin(model, key, Mode::Replace);
    model.put_stored(&put, generation, NOW).unwrap();
    put
}

fn what<T: fmt::Debug>(result: Result<T, Broken>) -> What {
    result.unwrap_err().what
}

#[test]
fn an_acknowledged_put_may_not_be_missing() {
    let mut model = model();
    let sight = model.look(0, NOW);
    model.saw_miss(&sight, MissReason::Never, NOW).unwrap();
    stored(&mut model, 0, 5);
    let sight = model.look(0, NOW);
    assert_eq!(what(model.saw_miss(&sight, MissReason::Never, NOW)), What::Missing);
}

#[test]
fn a_miss_is_fine_while_a_delete_is_under_way_and_not_when_it_is_refused() {
    let mut model = model();
    stored(&mut model, 0, 5);
    let delete = model.delete_begins(0, 0, NOW);
    let sight = model.look(0, NOW);
    model.saw_miss(&sight, MissReason::Deleted, NOW).unwrap();
    model.delete_gone(&delete, 5).unwrap();

    stored(&mut model, 1, 6);
    let delete = model.delete_begins(1, 0, NOW);
    model.delete_refused(&delete);
    let sight = model.look(1, NOW);
    model.saw_value(&sight, 6, 1, 100, true).unwrap();
    let sight = model.look(1, NOW);
    assert_eq!(what(model.saw_miss(&sight, MissReason::Deleted, NOW)), What::Missing);
}

#[test]
fn what_was_deleted_may_not_come_back() {
    let mut model = model();
    stored(&mut model, 0, 5);
    let delete = model.delete_begins(0, 0, NOW);
    model.delete_gone(&delete, 5).unwrap();
    assert_eq!(model.presence(0), Presence::Absent);
    let sight = model.look(0, NOW);
    assert_eq!(what(model.saw_value(&sight, 5, 0, 100, true)), What::Stale);
    model.crashed(CrashKind::Kill, 0);
    let sight = model.look(0, NOW);
    assert_eq!(what(model.saw_value(&sight, 5, 0, 100, true)), What::Stale);
    model.crashed(CrashKind::PowerCut, 0);
    let sight = model.look(0, NOW);
    model.saw_value(&sight, 5, 0, 100, true).unwrap();
}

#[test]
fn what_was_evicted_may_be_back_after_a_kill_and_what_was_found_missing_by_a_delete_may_not() {
    let started_with_a_block = || {
        let mut model = Model::new(4, true);
        model.started(false);
        let put = stored(&mut model, 0, 5);
        // A start from what had been lost before: the block is there, or not.
        model.crashed(CrashKind::Kill, 0);
        model.started(true);
        let sight = model.look(0, NOW);
        model.saw_miss(&sight, MissReason::Evicted, NOW).unwrap();
        (model, put.version)
    };
    let (mut model, version) = started_with_a_block();
    let sight = model.look(0, NOW);
    assert_eq!(what(model.saw_value(&sight, 5, version, 100, true)), What::Resurrected);
    model.crashed(CrashKind::Kill, 0);
    let sight = model.look(0, NOW);
    model.saw_value(&sight, 5, version, 100, true).unwrap();

    let (mut model, version) = started_with_a_block();
    let delete = model.delete_begins(0, 0, NOW);
    model.delete_missing(&delete, MissReason::Evicted, NOW).unwrap();
    model.crashed(CrashKind::Kill, 0);
    let sight = model.look(0, NOW);
    assert_eq!(what(model.saw_value(&sight, 5, version, 100, true)), What::Resurrected);
}

#[test]
fn an_older_generation_is_stale_after_a_newer_one_was_seen() {
    let mut model = model();
    let first = stored(&mut model, 0, 5);
    let read = model.look(0, NOW);
    let second = begin(&mut model, 0, Mode::Replace);
    model.put_stored(&second, 6, NOW).unwrap();
    // The read began before the second put ended: either is right.
    model.saw_value(&read, 5, first.version, 100, true).unwrap();
    let read = model.look(0, NOW);
    assert_eq!(what(model.saw_value(&read, 5, first.version, 100, true)), What::Stale);
}

#[test]
fn a_put_of_unknown_outcome_is_either_and_then_one() {
    let mut model = model();
    let put = begin(&mut model, 0, Mode::Absent);
    model.crashed(CrashKind::Kill, 0);
    let sight = model.look(0, NOW);
    model.saw_miss(&sight, MissReason::Never, NOW).unwrap();
    // Missing after the crash, with nobody left to store it: it stays missing.
    let sight = model.look(0, NOW);
    assert_eq!(what(model.saw_value(&sight, 9, put.version, 100, true)), What::Resurrected);

    let put = begin(&mut model, 1, Mode::Absent);
    model.crashed(CrashKind::Kill, 0);
    let sight = model.look(1, NOW);
    model.saw_value(&sight, 10, put.version, 100, true).unwrap();
    let sight = model.look(1, NOW);
    assert_eq!(what(model.saw_miss(&sight, MissReason::Never, NOW)), What::Missing);
}

#[test]
fn a_refused_put_and_foreign_bytes_never_show_up() {
    let mut model = model();
    let refused = begin(&mut model, 0, Mode::Absent);
    model.put_refused(&refused);
    let other = stored(&mut model, 1, 3);
    let sight = model.look(0, NOW);
    assert_eq!(what(model.saw_value(&sight, 4, refused.version, 100, true)), What::NeverStored);
    assert_eq!(what(model.saw_value(&sight, 3, other.version, 100, true)), What::WrongBytes);
    let sight = model.look(1, NOW);
    assert_eq!(what(model.saw_value(&sight, 3, other.version, 99, true)), What::WrongBytes);
}

#[test]
fn a_refused_put_shows_up_where_its_disk_comes_back_from_before() {
    let mut model = model();
    let [placed, never] = [0, 1].map(|key| begin(&mut model, key, Mode::Absent));
    model.lies_on(placed.version, 1);
    [&placed, &never].into_iter().for_each(|put| model.put_refused(put));
    model.crashed(CrashKind::Kill, 0);
    model.started(true);
    let sight = model.look(0, NOW);
    model.saw_value(&sight, 5, placed.version, 100, true).unwrap();
    let sight = model.look(1, NOW);
    assert_eq!(what(model.saw_value(&sight, 6, never.version, 100, true)), What::NeverStored);
}

#[test]
fn a_put_applied_twice_is_seen_unless_a_crash_lost_the_memory_of_it() {
    let mut model = model();
    let mut put = begin(&mut model, 0, Mode::Replace);
    model.put_again(&mut put);
    let sight = model.look(0, NOW);
    model.saw_value(&sight, 5, put.version, 100, true).unwrap();
    assert_eq!(what(model.put_stored(&put, 6, NOW)), What::AppliedTwice);

    let mut put = begin(&mut model, 1, Mode::Replace);
    let sight = model.look(1, NOW);
    model.saw_value(&sight, 7, put.version, 100, true).unwrap();
    model.crashed(CrashKind::Kill, 0);
    model.put_again(&mut put);
    model.put_stored(&put, 8, NOW).unwrap();
}

#[test]
fn conditions_are_held() {
    let mut model = model();
    stored(&mut model, 0, 5);
    let put = begin(&mut model, 0, Mode::Absent);
    assert_eq!(what(model.put_stored(&put, 6, NOW)), What::Missing);

    stored(&mut model, 1, 7);
    stored(&mut model, 1, 8);
    let put = begin(&mut model, 1, Mode::Generation(7));
    assert_eq!(what(model.put_stored(&put, 9, NOW)), What::Condition);
    let put = begin(&mut model, 1, Mode::Generation(8));
    model.put_mismatch(&put).unwrap_err();
    let put = begin(&mut model, 2, Mode::Generation(9));
    model.put_mismatch(&put).unwrap();
}

#[test]
fn evictions_are_counted_where_they_may_happen_and_never_of_leased_blocks() {
    let mut model = Model::new(2, true);
    stored(&mut model, 0, 5);
    let sight = model.look(0, NOW);
    model.saw_miss(&sight, MissReason::Evicted, NOW).unwrap();
    assert_eq!(model.evicted, 1);
    stored(&mut model, 1, 6);
    model.leased(1, 6, NOW.nanos, NOW.nanos + 10);
    let sight = model.look(1, NOW);
    assert_eq!(what(model.saw_miss(&sight, MissReason::Evicted, NOW)), What::Missing);
    let later = Now { nanos: NOW.nanos + 10, ..NOW };
    model.saw_miss(&sight, MissReason::Evicted, later).unwrap();
    // Where a disk has failed, one that was seen without a reason is not counted each time.
    let mut model = Model::new(1, true);
    stored(&mut model, 0, 5);
    model.disk_failed(1);
    for _ in 0..2 {
        let sight = model.look(0, NOW);
        model.saw_unreasoned_miss(&sight, NOW).unwrap();
    }
    let sight = model.look(0, NOW);
    model.saw_miss(&sight, MissReason::Evicted, NOW).unwrap();
    assert_eq!(model.evicted, 1);
}

#[test]
fn a_fault_excuses_what_it_touched_and_nothing_else() {
    let mut model = model();
    let put = stored(&mut model, 0, 5);
    stored(&mut model, 1, 6);
    model.value_harmed(put.version);
    let sight = model.look(0, NOW);
    model.saw_bad_crc(&sight, 5).unwrap();
    model.saw_miss(&sight, MissReason::Corrupt, NOW).unwrap();
    let sight = model.look(1, NOW);
    assert_eq!(what(model.saw_bad_crc(&sight, 6)), What::BadCrc);
    assert_eq!(what(model.saw_miss(&sight, MissReason::Corrupt, NOW)), What::Unexplained);
    // A new value of the harmed key is certain again.
    stored(&mut model, 0, 7);
    assert_eq!(model.presence(0), Presence::Present);
}

#[test]
fn a_fault_in_a_replaced_value_excuses_who_asked_before_and_nobody_else() {
    let mut model = model();
    let first = stored(&mut model, 0, 5);
    let before = model.look(0, NOW);
    stored(&mut model, 0, 6);
    let after = model.look(0, NOW);
    model.value_harmed(first.version);
    assert_eq!(what(model.saw_miss(&after, MissReason::Corrupt, NOW)), What::Missing);
    assert_eq!(what(model.saw_miss(&before, MissReason::Never, NOW)), What::Missing);
    model.saw_miss(&before, MissReason::Corrupt, NOW).unwrap();
    assert_eq!(model.presence(0), Presence::Present, "what replaced it is there");
}

#[test]
fn a_harmed_frame_matters_from_the_next_start_on() {
    let mut model = model();
    let first = stored(&mut model, 0, 5);
    stored(&mut model, 0, 6);
    model.journal_harmed(0);
    let sight = model.look(0, NOW);
    assert_eq!(what(model.saw_value(&sight, 5, first.version, 100, true)), What::Stale);
    model.crashed(CrashKind::Kill, 0);
    let sight = model.look(0, NOW);
    model.saw_value(&sight, 5, first.version, 100, true).unwrap();
}

#[test]
fn a_harmed_frame_excuses_a_block_dropped_for_it_and_nothing_else() {
    let mut model = model();
    stored(&mut model, 0, 5);
    stored(&mut model, 1, 6);
    model.journal_harmed(0);
    let (harmed, sound) = (model.look(0, NOW), model.look(1, NOW));
    assert_eq!(what(model.saw_miss(&harmed, MissReason::Never, NOW)), What::Missing);
    assert_eq!(what(model.saw_unreasoned_miss(&sound, NOW)), What::Missing);
    model.saw_miss(&harmed, MissReason::Corrupt, NOW).unwrap();
    assert_eq!(model.presence(0), Presence::Absent);
}

#[test]
fn a_disk_that_cannot_be_read_explains_corrupt_blocks_that_lie_on_it() {
    let mut model = model();
    let first = stored(&mut model, 0, 5);
    stored(&mut model, 1, 6);
    model.lies_on(first.version, 2);
    model.disk_failed(2);
    let (on_it, beside) = (model.look(0, NOW), model.look(1, NOW));
    assert_eq!(what(model.saw_miss(&beside, MissReason::Corrupt, NOW)), What::Unexplained);
    model.saw_miss(&on_it, MissReason::Corrupt, NOW).unwrap();
}

/// Drive 0 holds the older value of key 0, and of key 1 what is deleted, and is lost.
fn with_a_lost_drive() -> (Model, Put, Put) {
    let mut model = model();
    let older = stored(&mut model, 0, 5);
    let deleted = stored(&mut model, 1, 6);
    let kept = stored(&mut model, 2, 7);
    for put in [older, deleted, kept] {
        model.lies_on(put.version, 0);
    }
    model.disk_failed(0);
    let newer = stored(&mut model, 0, 8);
    model.lies_on(newer.version, 1);
    let delete = model.delete_begins(1, 0, NOW);
    model.delete_missing(&delete, MissReason::DriveLost, NOW).unwrap();
    let delete = model.delete_begins(1, 0, NOW);
    model.delete_gone(&delete, 6).unwrap();
    model.crashed(CrashKind::Kill, 0);
    (model, older, deleted)
}

#[test]
fn what_a_lost_drive_has_missed_may_not_come_back_with_it() {
    let (mut model, older, deleted) = with_a_lost_drive();
    model.started(false);
    let sight = model.look(0, NOW);
    assert_eq!(what(model.saw_value(&sight, 5, older.version, 100, true)), What::Stale);
    let sight = model.look(1, NOW);
    assert_eq!(what(model.saw_value(&sight, 6, deleted.version, 100, true)), What::Stale);
    // What lay on it may be lost.
    let sight = model.look(2, NOW);
    model.saw_miss(&sight, MissReason::Never, NOW).unwrap();
}

#[test]
fn who_starts_from_a_lost_drive_alone_gives_up_what_it_has_missed() {
    let (mut model, older, deleted) = with_a_lost_drive();
    model.started(true);
    let sight = model.look(0, NOW);
    model.saw_value(&sight, 5, older.version, 100, true).unwrap();
    let sight = model.look(1, NOW);
    model.saw_value(&sight, 6, deleted.version, 100, true).unwrap();
}

#[test]
fn a_release_under_way_ends_every_lease_of_its_key() {
    let mut model = Model::new(4, true);
    model.started(false);
    stored(&mut model, 0, 5);
    let at = NOW.nanos;
    model.leased(0, 5, at, at + 100);
    let sight = model.look(0, NOW);
    assert_eq!(what(model.saw_miss(&sight, MissReason::Evicted, NOW)), What::Missing);
    model.release_begins(0);
    // Asked for meanwhile, and answered later: the release may have come after it.
    model.release_ends(0, at + 2);
    model.leased(0, 5, at + 1, at + 100);
    let sight = model.look(0, NOW);
    model.saw_miss(&sight, MissReason::Evicted, NOW).unwrap();
}

#[test]
fn time_to_live_is_a_cause_only_when_it_is_over() {
    let mut model = model();
    let version = model.offer(0, 100);
    let put = model.put_begins(version, Mode::Replace, 10, NOW);
    model.put_stored(&put, 5, NOW).unwrap();
    let sight = model.look(0, NOW);
    assert_eq!(what(model.saw_miss(&sight, MissReason::Expired, NOW)), What::Unexplained);
    let late = Now { nanos: 0, unix: NOW.unix + 12 };
    let sight = model.look(0, late);
    assert_eq!(what(model.saw_value(&sight, 5, version, 100, true)), What::Expired);
    model.saw_miss(&sight, MissReason::Expired, late).unwrap();
}

#[test]
fn what_was_flushed_must_survive_a_power_cut() {
    let mut model = model();
    stored(&mut model, 0, 5);
    let flushed = model.tick().load(std::sync::atomic::Ordering::Relaxed);
    stored(&mut model, 1, 6);
    model.crashed(CrashKind::PowerCut, flushed);
    let sight = model.look(1, NOW);
    model.saw_miss(&sight, MissReason::Never, NOW).unwrap();
    let sight = model.look(0, NOW);
    assert_eq!(what(model.saw_miss(&sight, MissReason::Never, NOW)), What::Missing);
    assert_eq!(model.held_through_cuts, 1);
}

#[test]
fn where_the_server_flushes_a_power_cut_takes_no_more_than_a_kill() {
    let mut model = model();
    model.flushing = true;
    stored(&mut model, 0, 5);
    let deleted = stored(&mut model, 1, 6);
    let delete = model.delete_begins(1, 0, NOW);
    model.delete_gone(&delete, 6).unwrap();
    model.crashed(CrashKind::PowerCut, 0);
    let sight = model.look(0, NOW);
    assert_eq!(what(model.saw_miss(&sight, MissReason::Never, NOW)), What::Missing);
    let sight = model.look(1, NOW);
    assert_eq!(what(model.saw_value(&sight, 6, deleted.version, 100, true)), What::Stale);
    assert_eq!(model.held_under_power, 1);
}

#[test]
fn a_put_that_asked_for_it_survives_a_power_cut_until_its_key_changes() {
    let mut model = model();
    for key in 0..3 {
        stored(&mut model, key, 5 + u64::from(key));
    }
    model.survives_power(0, 5);
    model.survives_power(1, 6);
    // Replaced by one that did not ask.
    stored(&mut model, 1, 9);
    // Another generation than the one that is there.
    model.survives_power(2, 4);
    model.crashed(CrashKind::PowerCut, 0);
    let sight = model.look(0, NOW);
    assert_eq!(what(model.saw_miss(&sight, MissReason::Never, NOW)), What::Missing);
    for key in [1, 2] {
        let sight = model.look(key, NOW);
        model.saw_miss(&sight, MissReason::Never, NOW).unwrap();
    }
    assert_eq!(model.durable_held, 1);
}

#[test]
fn a_late_answer_to_a_delete_does_not_make_last_what_went_after_it_had_looked() {
    let mut model = model();
    let early = model.delete_begins(0, 0, NOW);
    let put = stored(&mut model, 0, 5);
    model.delete_begins(0, 0, NOW);
    let sight = model.look(0, NOW);
    model.saw_miss(&sight, MissReason::Deleted, NOW).unwrap();
    model.delete_missing(&early, MissReason::Never, NOW).unwrap();
    model.crashed(CrashKind::Kill, 0);
    // The second delete was not answered: what it has begun to remove may be back.
    let sight = model.look(0, NOW);
    model.saw_value(&sight, 5, put.version, 100, true).unwrap();
}
