//! libplugin_MEMKV.so: memkv as an object backend of NIXL.
//!
//! ```text
//!   NIXL's core ── 27 virtual functions ──► cpp/shim.cpp ── pointers, lengths ──► edge
//!                                                                                  │
//!     registrations, queries ◄── engine ──► transfer: what a request comes down to │
//!                                   │           │ post: a few runs each            │
//!                                   │           ▼                                  │
//!                                   │        workers ──► memkv-client ◄────────────┘
//!                                   └─ settings     └─ staged: by staging, for memory of GPUs
//! ```
//!
//! * `DRAM_SEG` (and `VRAM_SEG` where there is a CUDA driver) on one side, `OBJ_SEG` on the other. The address of
//!   an object's descriptor is its place in the object; its key is the long name (`metaInfo`) of its
//!   registration, or else its device id in decimal figures.
//! * Nothing happens to memory when it is registered: what is registered by the gigabyte costs nothing.
//! * A transfer is planned when it is prepared: descriptors that touch or overlap become one operation
//!   (`memkv_client::Plan`). Posting it hands the operations to workers; checking it looks at a number.
//! * Releasing it under way closes its gate: when the call returns nobody touches its memory any more,
//!   whatever the server does (`memkv_client::Gate`).
//! * NIXL matches registrations by device id and range alone, so a second key under a device id that is in use
//!   would get the first one's bytes: it is refused.
//! * One binary serves every NIXL 1.x. Older cores call other slots: they are told so and get nothing (`core`).

#![deny(unsafe_code)]
#![cfg(target_os = "linux")]
#![allow(non_snake_case, reason = "NIXL looks for plug-ins by the name of their file")]

mod core;
mod device;
pub mod edge;
mod engine;
mod memory;
mod settings;
mod staged;
mod staging;
mod status;
mod transfer;
mod workers;
