//! The client engine: every plug-in, tool and library talks to memkv servers through it.
//!
//! ```no_run
//! use memkv_client::{Client, Config, GetOutcome, PutOptions};
//!
//! let client = Client::new(Config::load()?)?;
//! client.put(b"model/layer0/block7", &[1; 65536], &PutOptions::default())?;
//! let mut block = Vec::new();
//! if let GetOutcome::Hit { .. } = client.get(b"model/layer0/block7", &mut block)? {
//!     assert_eq!(block.len(), 65536);
//! }
//! # Ok::<(), memkv_client::ClientError>(())
//! ```
//!
//! # How a call runs
//!
//! A call blocks, and does all of its work on the thread of its caller; the engine has no thread of its
//! own, until a [`Queue`] is used: its workers make the same calls for callers that cannot wait. Its keys
//! are dealt out to their servers by rendezvous hashing (`route`); per server it checks a connection out of
//! that server's pool (`server`), and what it has to say there is an exchange (`exchange`), of which there
//! are three kinds: `put`, `get`, and `ask` for requests without payload. An exchange speaks frames over a
//! link (`link`): sealed and opened by `memkv-wire`, payload straight from and into the caller's memory.
//!
//! # What it promises
//!
//! * Every server is a failure domain of its own. One that is gone turns its keys into misses, at once
//!   after the first call that noticed, and is probed until it is back, without delaying the others.
//! * Every call ends by its deadline. [`ClientError::is_unknown_outcome`] tells when a put or delete may
//!   have been carried out although there was no answer.
//! * A value that is returned has the CRCs that came with it. One that has not is a miss, and its server is
//!   told.
//! * A request that broke with its connection is repeated once under the same request id, by which the
//!   server knows it again.
//! * A call that is given up through its [`Gate`] touches its caller's memory no more.
//! * After fork(2) the child talks over connections of its own.

#![forbid(unsafe_code)]

mod ask;
mod bell;
mod client;
mod config;
mod counters;
mod crc;
mod doors;
mod error;
mod exchange;
mod gate;
mod get;
mod items;
mod link;
mod plan;
mod process;
mod put;
mod queue;
mod route;
mod server;
mod staging;
mod trace;
mod types;
mod unasked;

pub use client::Client;
pub use config::{Config, ConfigError, Transport};
pub use counters::{Counters, Latency, Operation, Tally};
pub use error::{ClientError, LinkFault, one_line, tell};
pub use gate::Gate;
pub use memkv_wire::{CrcList, MissReason, SharedKey, StatId, Status};
pub use plan::{Descriptor, LocalCopy, Piece, Plan, PlanError, PutRange, Run, Saving};
pub use queue::{Answers, Batch, Completion, Keys, Queue, QueueError, Sink, Source};
pub use trace::{TraceError, TraceId};
pub use types::{
    GatherItem, GetItem, GetOutcome, Hint, PutItem, PutMode, PutOptions, PutOutcome, ScatterItem,
    ServerStats,
};
