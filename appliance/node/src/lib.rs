//! A memkv node: its configuration, its wiring and the `memkv` binary.
//!
//! * [`cli`] reads the command line, [`config`] the file, the environment and the machine
//!   ([`paths`]); together they give a complete [`config::Config`].
//! * [`logging`] starts the log.

#![forbid(unsafe_code)]

pub mod cli;
pub mod config;
pub mod logging;
pub mod paths;
