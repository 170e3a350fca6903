//! libmemkv_preload.so: files under one path are kept in memkv, for programs that know files only.
//!
//! ```text
//!   program ── open, close, stat, … ──► symbols ──┬─ another path, another descriptor ──► libc
//!                                                 └─ prefix, table ─► files ─► store ─► memkv-client
//! ```
//!
//! Loaded by `LD_PRELOAD`, it stands before libc with functions of the same names (`symbols`). A path that is
//! not under `MEMKV_PRELOAD_PREFIX` costs one comparison, a descriptor that is not ours one look into a table.
//! Without the variable nothing else happens.
//!
//! * A file that is open is a memfd (`memory`), so that everything that descriptors and streams can do works,
//!   whether it passes through a function that can be replaced or not. Its value is fetched when it is first
//!   used, and stored when it is synced or when its last descriptor is closed (`files`).
//! * Until the value is there the descriptor is one that cannot be read (`O_PATH`): who reads it by a way that
//!   this library does not see gets an error, never wrong bytes.
//! * How files, their parts and the names in directories lie in memkv is the matter of `store`.
//! * Nothing of it is ever quiet: what cannot be stored is `EIO` where it was closed or synced, and a line on
//!   standard error.
//! * Its own work does not come back to it: what a thread calls while it is in here goes to libc.
//! * The child of a fork starts without open files of its own; those of the parent stay the parent's.

#![deny(unsafe_code)]
#![cfg(target_os = "linux")]
// Tests are made of the parts; the functions that replace libc's stay out of them.
#![cfg_attr(test, allow(dead_code))]

mod files;
mod format;
mod memory;
mod opening;
mod prefix;
mod real;
mod status;
mod store;
mod table;

#[cfg(not(test))]
mod symbols;
