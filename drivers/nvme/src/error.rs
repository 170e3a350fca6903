//! Why a controller cannot be driven, or not any more.

use std::io;
use std::time::Duration;

use memkv_dma::ArenaError;

use crate::status::Status;

/// Why a controller cannot be driven, or not any more.
#[derive(Debug, thiserror::Error)]
pub enum NvmeError {
    /// Its registers are not mapped, or fewer of them than needed.
    #[error("the registers of the controller are not mapped")]
    Registers,
    /// It does not answer on the bus.
    #[error("the controller does not answer on the bus: it was removed")]
    Removed,
    /// The system wants it back.
    #[error(
        "the system has called the controller back, to remove it or to give it to another driver"
    )]
    Recalled,
    /// It did not get on from one state to the next in time.
    #[error("the controller was {state} for longer than {} s", .limit.as_secs_f32())]
    Deadline {
        /// What it was to do.
        state: &'static str,
        /// How long it could have taken.
        limit: Duration,
    },
    /// CSTS.CFS was set while it was brought up.
    #[error("the controller reports that it has failed, while {state}")]
    Fatal {
        /// What it was to do.
        state: &'static str,
    },
    /// It has no NVM command set.
    #[error("the controller knows no commands for data")]
    CommandSet,
    /// Its smallest page is larger than anything that queues are laid out for.
    #[error("the controller's smallest page is {bits} bits; at most 16 are supported")]
    PageSize {
        /// The page, as its logarithm.
        bits: u32,
    },
    /// Its queue entries have other sizes than 64 and 16 bytes.
    #[error("the controller's queue entries have sizes {submission:#04x} and {completion:#04x}")]
    EntrySizes {
        /// SQES as it stands in its page.
        submission: u8,
        /// CQES as it stands in its page.
        completion: u8,
    },
    /// An admin command failed.
    #[error("the controller was {state}: {status}")]
    Command {
        /// What it was to do.
        state: &'static str,
        /// What it answered.
        status: Status,
    },
    /// It has no namespace, or not the one asked for.
    #[error("the controller has no namespace to use (it has {found})")]
    NoNamespace {
        /// Namespaces that it has.
        found: usize,
    },
    /// The namespace is in a format that it does not have.
    #[error("namespace {namespace} is in format {format}, which it does not describe")]
    Format {
        /// The namespace.
        namespace: u32,
        /// The index of the format.
        format: u8,
    },
    /// The namespace has metadata beside its blocks.
    #[error("namespace {namespace} has {bytes} bytes of metadata a block; format it with none")]
    Metadata {
        /// The namespace.
        namespace: u32,
        /// Bytes of metadata.
        bytes: u16,
    },
    /// Blocks that are too small or too large.
    #[error("namespace {namespace} has blocks of 2^{bits} bytes; 512 bytes to 4 MiB are supported")]
    BlockSize {
        /// The namespace.
        namespace: u32,
        /// Bytes of a block, as their logarithm.
        bits: u8,
    },
    /// A block is longer than any single transfer.
    #[error("a block of {block} bytes is longer than the {max} bytes of one transfer")]
    Transfer {
        /// Bytes of a block.
        block: u64,
        /// Bytes of one transfer.
        max: u64,
    },
    /// No blocks, or more than can be.
    #[error("namespace {namespace} has {blocks} blocks")]
    Capacity {
        /// The namespace.
        namespace: u32,
        /// Its blocks.
        blocks: u64,
    },
    /// After a reset it is another drive than before.
    #[error("after a reset the drive is another than before")]
    Changed,
    /// It had to be reset again and again.
    #[error("the controller was reset {resets} times in {} s", .within.as_secs())]
    Resets {
        /// How often.
        resets: usize,
        /// In how long.
        within: Duration,
    },
    /// It was let go by whoever had it.
    #[error("the controller was let go, to be opened anew")]
    LetGo,
    /// It is out of service: it failed before, or was shut down.
    #[error("the controller is out of service")]
    Offline,
    /// No memory for queues.
    #[error("no memory for the queues")]
    Memory(#[from] ArenaError),
    /// The system does not make memory visible to the controller.
    #[error("memory cannot be made visible to the controller")]
    Map(#[source] io::Error),
}
