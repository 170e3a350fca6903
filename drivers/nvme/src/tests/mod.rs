//! The driver on the model: what every driver promises, and what only a bad drive shows.
//!
//! Faults are tried by hand: one thread, a clock that the test moves, a model that takes a step when it is
//! told to. So nothing depends on how fast the machine is.

mod allocations;
mod bench;
mod bringup;
mod conformance;
mod faults;
mod histories;
mod waking;
