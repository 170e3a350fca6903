//! Why a bench cannot be run to its end.

use std::io;
use std::path::PathBuf;

use memkv_client::ClientError;
use memkv_dma::ArenaError;
use memkv_workload::trace::TraceError;
use thiserror::Error;

/// What stops a bench. A value that came back wrong is one, too: a fast lie is no result.
#[derive(Debug, Error)]
pub enum BenchError {
    /// A file, a process, a socket.
    #[error("{what}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// No size of a drive gives the place that was asked for.
    #[error("no drive was found that keeps {blocks} blocks")]
    NoDrive {
        /// Blocks that it should keep.
        blocks: u64,
    },
    /// There is no memory for cold buffers.
    #[error("no memory for the client's buffers")]
    Memory(#[from] ArenaError),
    /// A server ended when it should not have.
    #[error("{name} ended by itself; its log is {}", log.display())]
    Ended {
        /// Which.
        name: &'static str,
        /// Where to read on.
        log: PathBuf,
    },
    /// A server did not get ready, or does not end.
    #[error("{name} does not answer within a minute; its log is {}", log.display())]
    Silent {
        /// Which.
        name: &'static str,
        /// Where to read on.
        log: PathBuf,
    },
    /// A command failed.
    #[error("{name} failed and said: {said}")]
    Said {
        /// Which.
        name: &'static str,
        /// What it said.
        said: String,
    },
    /// A device of the bench's own failed.
    #[error("the bench's own I/O failed")]
    Block(#[from] memkv_block::IoError),
    /// A drive of the bench's own cannot be opened.
    #[error("a drive cannot be opened")]
    Open(#[from] memkv_block::OpenError),
    /// A drive of the bench's own cannot be formatted.
    #[error("a drive cannot be formatted")]
    Format(#[from] memkv_journal::FormatError),
    /// A journal of the bench's own cannot be opened.
    #[error("a journal cannot be opened")]
    Recover(#[from] memkv_journal::OpenError),
    /// A journal of the bench's own failed.
    #[error("a journal failed")]
    Journal(#[from] memkv_journal::JournalError),
    /// There is no memory for a pool.
    #[error("no memory for a pool")]
    Pool(#[from] memkv_dma::PoolError),
    /// A call of the memkv client failed.
    #[error("a call of the client failed")]
    Client(#[from] ClientError),
    /// A value is not there that was stored.
    #[error("the value of slot {slot} is not there")]
    Missing {
        /// Its slot.
        slot: u32,
    },
    /// Another value came back.
    #[error("the value of slot {slot} came back as another one")]
    Wrong {
        /// Its slot.
        slot: u32,
    },
    /// An answer of the admin endpoint, or of fio, is not what it should be.
    #[error("{what} cannot be read")]
    Answer {
        /// Whose answer.
        what: &'static str,
        /// What is wrong with it.
        source: Option<serde_json::Error>,
    },
    /// A trace cannot be read.
    #[error("the trace cannot be read")]
    Trace(#[from] TraceError),
    /// A replay did not go well.
    #[error("{failed} operations of the replay failed, and {wrong} blocks were wrong")]
    Replay {
        /// Operations that failed.
        failed: u64,
        /// Blocks that came back with other bytes.
        wrong: u64,
    },
    /// The drive's files would lie in memory.
    #[error("{} is in memory (tmpfs); name a folder on a disk by --folder", .0.display())]
    NotOnDisk(PathBuf),
    /// Nothing of this name is measured.
    #[error("no row has \"{0}\" in its name")]
    NoRow(String),
    /// The document has no place for the tables.
    #[error("{} has no lines `{begin}` and `{end}`", path.display())]
    NoPlace {
        /// The document.
        path: PathBuf,
        /// Line before the tables.
        begin: &'static str,
        /// Line behind them.
        end: &'static str,
    },
}

/// For `map_err`: what was being done.
pub fn doing<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> BenchError {
    move |source| BenchError::Io { what, source: source.into() }
}
