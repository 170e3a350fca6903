//! libmemkv: the client engine for C, and for everything that can call C.
//!
//! Each exported function checks what it was given, makes one call of `memkv-client` and turns the outcome
//! into a number; nothing else happens here. The contract with the caller stands in the first lines of
//! `include/memkv.h`, which cbindgen makes of this crate (`tests/header.rs` compares them).
//!
//! What leaves this library is `memkv_*` and nothing else: rustc links it with a version script that names the
//! exported functions and makes everything else local (`tests/exports.rs` looks at the result).
//!
//! Pointers of the caller become slices in one file only, `memory`.

#![deny(unsafe_code)]

pub mod calls;
mod memory;
pub mod queue;
pub mod status;
pub mod types;
