//! A memkv node: its configuration, its wiring and the `memkv` binary.
//!
//! * [`cli`] reads the command line, [`config`] the file, the environment and the machine
//!   ([`paths`]); together they give a complete [`config::Config`].
//! * [`logging`] starts the log.
//! * [`node`] wires pollers to cores (`seats` says to which), [`drives`] opens the store on those of them that are
//!   [`members`], [`bypass`] reaches drives past the kernel, `attend` looks after those, [`status`] tells how it
//!   is, `work` what drives and reactors did, and `listing` what
//!   it stores.
//! * `windows` lets clients on this machine read drives in memory for themselves.
//! * [`reload`] reads the configuration again while the node serves, and lets drives join.
//! * [`serve`] is `memkv start`, [`demo`] is `memkv demo`, [`offline`] is `memkv setup` and `memkv
//!   drive`, which work on drives that no server has.

#![forbid(unsafe_code)]

mod attend;
pub mod bypass;
pub mod cli;
pub mod config;
pub mod demo;
pub mod drives;
pub mod hugepages;
mod joins;
mod listing;
pub mod logging;
pub mod members;
pub mod node;
pub mod offline;
pub mod paths;
pub mod reload;
mod seats;
pub mod serve;
pub mod status;
mod windows;
mod work;
