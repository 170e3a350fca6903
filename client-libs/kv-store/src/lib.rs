//! libkv_store_memkv.so: saved sessions of an inference server, by the `kv_store_v1` interface.
//!
//! ```text
//!   consumer ──► abi (C to Rust and back) ──► store ──┬─ chunks put, not sent yet
//!                    memory                           ├─ ahead: chunks fetched before they are asked for
//!                                                     └─ memkv-client
//! ```
//!
//! A session is a manifest and the chunks that it names, each chunk under the hash of its content. What memkv
//! holds is told in `store`, what a caller may expect in `include/kv_store_v1.h`. A consumer loads the library by
//! the scheme of a URI, `memkv://host:port[,host:port…]/namespace` (`uri`), and calls it through a table of
//! functions, which is all that it exports.
//!
//! No thread of its own, nothing in the background: a call does its work, and ends by the client's deadline.

#![deny(unsafe_code)]

pub mod abi;
mod ahead;
mod error;
mod manifest;
mod memory;
mod store;
mod uri;
