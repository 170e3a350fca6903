//! The tier finds what it is there to find: states broken on purpose are reported.

use super::branches::Branches;
use super::check::{Known, Legal};
use super::crash::{Kind, State, states};
use super::disk::PAGE;
use super::history::History;
use super::workload::Workload;
use super::{Bench, machine};

fn recorded(name: &str) -> (Bench, History) {
    let mut bench = Bench::new();
    let workload = Workload::parse(name).expect("a workload's name");
    let history = bench.record(&workload);
    (bench, history)
}

/// The state after everything, as a kill leaves it.
fn at_the_end(history: &History, drives: usize) -> State {
    let mut last = None;
    states(history, machine::layout(drives).data_offset, |state| {
        if state.kind == Kind::Kill {
            last = Some(state);
        }
        true
    });
    last.expect("a history has a last state")
}

fn verdict(bench: &mut Bench, history: &History, state: &State) -> Result<(), String> {
    let (known, legal) = (Known::of(history), Legal::of(history, state));
    bench.check(history, &known, state, &legal, &mut Branches::default())
}

#[test]
fn a_value_whose_bytes_a_kill_took_is_reported() {
    let (mut bench, history) = recorded("1:fresh:oldest:P");
    let mut state = at_the_end(&history, 1);
    assert_eq!(verdict(&mut bench, &history, &state), Ok(()));
    let data = machine::layout(1).data_offset;
    let value = history.writes.iter().find(|write| write.offset >= data).expect("its bytes");
    state.images[value.drive].write(value.offset, &[0x5A; 512]);
    let why = verdict(&mut bench, &history, &state).expect_err("the bytes are others");
    assert!(why.contains("key 0"), "{why}");
}

#[test]
fn an_acknowledged_put_whose_record_is_gone_is_reported() {
    let (mut bench, history) = recorded("2:fresh:newest:PM");
    let mut state = at_the_end(&history, 2);
    assert_eq!(verdict(&mut bench, &history, &state), Ok(()));
    let layout = machine::layout(2);
    let frames = history.writes.iter().rev().filter(|write| write.offset < layout.data_offset);
    for frame in frames.take(2) {
        state.images[frame.drive].write(frame.offset, &[0; PAGE]);
    }
    let why = verdict(&mut bench, &history, &state).expect_err("its frames are gone");
    assert!(why.contains("key 0"), "{why}");
}

#[test]
fn a_delete_that_is_undone_is_reported_after_a_kill_and_borne_after_a_power_cut() {
    let (mut bench, history) = recorded("1:fresh:oldest:PD");
    let mut undone = at_the_end(&history, 1);
    let removal = history.writes.len() - 1;
    let frame = &history.writes[removal];
    undone.images[0].write(frame.offset, &[0; PAGE]);
    let why = verdict(&mut bench, &history, &undone).expect_err("the value is back");
    assert!(why.contains("key 0"), "{why}");
    let borne = State { kind: Kind::PowerCut, lost: vec![removal], ..undone };
    assert_eq!(verdict(&mut bench, &history, &borne), Ok(()));
}
