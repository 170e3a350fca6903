//! Traces, generators and the bench loop: everything that uses a block store the way inference
//! engines do, to show that it works and how well.
//!
//! * A *request* ([`trace::Request`]) is a prompt reduced to the names of its KV-cache blocks. It
//!   comes from a published trace ([`trace`]), from made-up conversations ([`conversations`]) or from
//!   one of the named workloads ([`generators`]).
//! * The bytes of a block follow from its name ([`values`]), so whoever fetches a block can tell
//!   whether it is the right one, in another process and after any accident.
//! * [`replay`] runs requests against a store; [`bench`] runs one operation as hard as it goes;
//!   [`audit`] asks for every acknowledged block again. Each answers with a report that serialises.
//! * All of them see the store through [`store::BlockStore`], which the client engine implements.

#![forbid(unsafe_code)]

pub mod audit;
pub mod bench;
pub mod block;
mod client;
pub mod conversations;
pub mod generators;
pub mod latency;
#[cfg(test)]
mod memory;
pub mod replay;
pub mod store;
pub mod tally;
pub mod trace;
pub mod values;
