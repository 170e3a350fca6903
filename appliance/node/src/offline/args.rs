//! The command line of the offline commands: `memkv setup` and `memkv drive`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use memkv_nvme::PciAddress;

use crate::config::parse_address;

pub(crate) const SETUP_HELP: &str = "\
Formats drives, block devices, NVMe drives by their PCI addresses and files, as one node, and
prints a configuration that serves them on standard output. Everything else it says goes to
standard error.

A drive is refused, and none is touched, when one of them is mounted, has partitions, is swapped
to, is part of something (device mapper, LVM, md), is in use by a server, or holds something
already: a file system, a partition table, blocks of memkv. --force formats over what a drive
holds; nothing formats a drive that is in use.

The configuration holds the key that clients need: MEMKV_AUTH_KEY where it is set, so that the
servers of one cluster have one key; else a key that follows from the secret made for these
drives, so that setting them up again with --idempotent prints the same one.";

pub(crate) const SETUP_EXAMPLES: &str = "\
Examples:
  memkv setup --drives /dev/nvme0n1 /dev/nvme1n1 > config.yaml && memkv start --config config.yaml
  fallocate -l 100G /srv/memkv.0 && memkv setup --drives /srv/memkv.0 > config.yaml
  memkv drive bind 0000:01:00.0 && memkv setup --drives 0000:01:00.0 > config.yaml
  memkv setup --idempotent --drives /dev/nvme0n1 > config.yaml      in an init container
  memkv setup --force --drives /dev/nvme0n1 > config.yaml           lose what is on it

Exit codes:
  0  the drives are formatted and the configuration is printed
  1  it failed on the way; a drive that was being formatted is left unformatted
  2  the command line is wrong; nothing was changed
  3  a drive was refused; nothing was changed";

/// Options of `memkv setup`.
#[derive(Args, Clone, Debug)]
pub struct SetupArgs {
    /// The drives of the node: block devices, PCI addresses of NVMe drives that vfio-pci has (memkv
    /// drive bind), or files, which are used as large as they are
    #[arg(long, value_name = "DRIVE", required = true, num_args = 1..)]
    pub drives: Vec<PathBuf>,
    /// The RDMA device that clients will use; noted in the configuration for a later release
    #[arg(long, value_name = "DEV")]
    pub rdma: Option<String>,
    /// The smallest blocks expected, in KB: a drive remembers as many blocks as fit of this size.
    /// From 1024 on it is the largest extent instead (storage.block_size): 1024, 2048 or 4096
    #[arg(long, value_name = "KB", default_value_t = 64, value_parser = shard_size)]
    pub shard_size: u32,
    /// The data address for the configuration
    #[arg(long, value_name = "IP:PORT", default_value = "0.0.0.0:9900", value_parser = address)]
    pub address: SocketAddr,
    /// Format drives that hold something; it is lost. Never those that are in use
    #[arg(long, conflicts_with = "idempotent")]
    pub force: bool,
    /// Leave drives alone that are formatted already, and print their configuration
    #[arg(long)]
    pub idempotent: bool,
}

fn shard_size(text: &str) -> Result<u32, String> {
    let kb: u32 = text.parse().map_err(|_| "not a number of KB".to_owned())?;
    match kb {
        16..1024 | 1024 | 2048 | 4096 => Ok(kb),
        _ => Err("16 to 1024, 2048 or 4096".to_owned()),
    }
}

fn address(text: &str) -> Result<SocketAddr, String> {
    parse_address(text).map_err(|problem| problem.to_string())
}

const DRIVE_EXAMPLES: &str = "\
Examples:
  memkv drive list                          all drives of this machine
  memkv drive bind 0000:01:00.0             have it driven past the kernel
  memkv drive inspect /dev/nvme0n1 --json
  memkv drive check --config config.yaml
  memkv drive wipe /dev/nvme0n1 --yes
  memkv drive retire /dev/nvme1n1 --config config.yaml --yes
  memkv drive readmit /dev/nvme1n1 --config config.yaml --yes

Exit codes:
  0  done; of check: everything is whole
  1  it failed on the way
  2  the command line or the configuration is wrong
  3  a drive was refused, because it is in use or holds something else; nothing was changed
  4  check found damage";

/// Options of `memkv drive`.
#[derive(Args, Clone, Debug)]
#[command(after_help = DRIVE_EXAMPLES)]
pub struct DriveArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: DriveCommand,
}

/// What can be done with drives while no server has them.
#[derive(Clone, Debug, Subcommand)]
pub enum DriveCommand {
    /// Show what drives hold, a line each; without a drive, those of the machine
    #[command(after_help = "\
Reads only, and takes no drive from a server that has it.

Examples:
  memkv drive list
  memkv drive list --config config.yaml --json")]
    List(Which),
    /// Show all that the superblocks of drives say
    #[command(after_help = "\
Reads only, and takes no drive from a server that has it.

Examples:
  memkv drive inspect /dev/nvme0n1
  memkv drive inspect --config config.yaml --json")]
    Inspect(Which),
    /// Read everything on drives and check it: superblocks, journal, checkpoints, every block
    #[command(after_help = "\
Writes nothing. A drive that a server has is refused: stop the server first. Name all drives of a
node at once, or the keys of blocks that lie on several of them may not be known.

Exits with 0 when everything is whole, and with 4 when something is damaged; keys of damaged blocks
are named. The server drops such a block when it meets it.

Examples:
  memkv drive check --config config.yaml
  memkv drive check /dev/nvme0n1 /dev/nvme1n1 --json")]
    Check(Which),
    /// Make drives blank: all blocks on them are lost
    #[command(after_help = "\
Erases the superblocks and both ends of the drive, after which nothing finds its blocks again. It is
no secure erasure: bytes of blocks stay until they are overwritten. Without --yes it only says what
would be lost.

Examples:
  memkv drive wipe /dev/nvme0n1
  memkv drive wipe /dev/nvme0n1 --yes")]
    Wipe(WipeArgs),
    /// Give NVMe drives to vfio-pci, so that a node can drive them past the kernel
    #[command(after_help = BIND_HELP)]
    Bind(BindArgs),
    /// Give NVMe drives back to the kernel, which makes block devices of them
    #[command(after_help = UNBIND_HELP)]
    Unbind(BindArgs),
    /// Take a drive out of a node for good
    #[command(after_help = RETIRE_HELP)]
    Retire(ChangeArgs),
    /// Take a drive into a node, emptied: one that was lost, or a new one
    #[command(after_help = READMIT_HELP)]
    Readmit(ChangeArgs),
}

const BIND_HELP: &str = "\
What is on a drive stays there. Its block device goes: a drive is refused, and none is touched,
when a file system of one of them is mounted, when it has partitions or is swapped to, when
something is built on it or a process has it, when there is no IOMMU, and when its IOMMU group has
another device that a driver of the kernel has. Drives that are bound already stay as they are.

It lasts until the machine is started again; with --config it is what to run at boot, before the
node.

Examples:
  memkv drive bind 0000:01:00.0
  memkv drive bind 0000:01:00.0 0000:02:00.0 --json
  memkv drive bind --config /etc/memkv/config.yaml";

const UNBIND_HELP: &str = "\
A drive that a server has is refused: stop the server first. Drives that the kernel has already
stay as they are.

Examples:
  memkv drive unbind 0000:01:00.0
  memkv drive unbind --config /etc/memkv/config.yaml";

const RETIRE_HELP: &str = "\
The drives that stay are told that the node goes on without it; it is not written to. Blocks on it
are lost, and without --yes it only says how many. A drive that is gone is named by its uuid, and
must not be in the configuration any more; memkv drive inspect of another drive lists the members.

Examples:
  memkv drive retire /dev/nvme1n1 --config config.yaml --yes
  memkv drive retire 2f1c0a52-5b0e-4c8e-9d4e-0c8f8f6c1d55 --config config.yaml --yes";

const READMIT_HELP: &str = "\
The drive is emptied, formatted like the node's others, and a member from then on. It is one that
the node lost or retired, or a blank one that is to be added or takes another's place; put it
under storage.drives as well. What it holds is lost, and without --yes it only says how much; a
blank drive needs no --yes. Drives of another node, and what is not memkv's, are refused.

Examples:
  memkv drive readmit /dev/nvme1n1 --config config.yaml --yes
  fallocate -l 100G /srv/memkv.2 && memkv drive readmit /srv/memkv.2 --config config.yaml";

/// Which drives.
#[derive(Args, Clone, Debug, Default)]
pub struct Which {
    /// The drives, by their paths or PCI addresses
    #[arg(value_name = "DRIVE")]
    pub drives: Vec<PathBuf>,
    /// The drives of this configuration
    #[arg(long, value_name = "FILE", conflicts_with = "drives")]
    pub config: Option<PathBuf>,
    /// Print JSON instead of text
    #[arg(long)]
    pub json: bool,
}

/// Options of `memkv drive bind` and `memkv drive unbind`.
#[derive(Args, Clone, Debug, Default)]
pub struct BindArgs {
    /// The drives, by their PCI addresses
    #[arg(value_name = "PCI_ADDRESS")]
    pub drives: Vec<PciAddress>,
    /// The drives of this configuration that it names by their PCI addresses
    #[arg(long, value_name = "FILE", conflicts_with = "drives")]
    pub config: Option<PathBuf>,
    /// Print JSON instead of text
    #[arg(long)]
    pub json: bool,
}

/// Options of `memkv drive wipe`.
#[derive(Args, Clone, Debug)]
pub struct WipeArgs {
    /// Which drives.
    #[command(flatten)]
    pub which: Which,
    /// Do it
    #[arg(long)]
    pub yes: bool,
    /// Do it, also to a drive whose superblock is damaged
    #[arg(long)]
    pub force: bool,
}

/// Options of `memkv drive retire` and `memkv drive readmit`.
#[derive(Args, Clone, Debug)]
pub struct ChangeArgs {
    /// The drive: its path, or the uuid of a member
    #[arg(value_name = "DRIVE")]
    pub drive: String,
    /// The configuration of the node
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Do it, also when blocks are lost
    #[arg(long)]
    pub yes: bool,
    /// Print JSON instead of text
    #[arg(long)]
    pub json: bool,
}
