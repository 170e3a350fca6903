//! The boots: the drives and the checks of each, which both sides know.

use serde::{Deserialize, Serialize};

use crate::guest::{conformance, count, driver, gets, node, speed, whole};

/// Bytes of a drive that the tests of conformance are made for.
pub const SMALL: u64 = memory(32);

/// Bytes of a drive that is read at random.
pub const LARGE: u64 = memory(1024);

const fn memory(mib: u64) -> u64 {
    mib << 20
}

/// Where [`Kind::Faulty`] refuses to be read, to be written and to forget: the sector of 512 bytes at
/// each.
pub const BAD_READ: u64 = memory(1);
/// See [`BAD_READ`].
pub const BAD_WRITE: u64 = memory(2);
/// See [`BAD_READ`].
pub const BAD_DEALLOCATE: u64 = memory(4);

/// What a drive has that others have not.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Nothing.
    Plain,
    /// So many bytes of metadata beside each block.
    Metadata(u32),
    /// Its queues are short, so that they wrap at every moment, and so are its commands.
    Narrow,
    /// It answers some commands with an error of the medium.
    Faulty,
    /// It can be made so slow that it seems to have died.
    Slow,
    /// It can be put where it was pulled from: its namespace is that of a subsystem, which stays.
    Returning,
}

/// A drive of a guest.
#[derive(Copy, Clone, Debug)]
pub struct Drive {
    /// Its serial number, and the name of its image.
    pub name: &'static str,
    /// Its size.
    pub bytes: u64,
    /// Bytes of its logical blocks.
    pub block: u32,
    /// What is special.
    pub kind: Kind,
}

impl Drive {
    const fn new(name: &'static str, bytes: u64, block: u32, kind: Kind) -> Drive {
        Drive { name, bytes, block, kind }
    }
}

/// One thing that is asserted in the guest.
#[derive(Copy, Clone)]
pub struct Check {
    /// As it is listed and printed.
    pub name: &'static str,
    /// Panics when it does not hold.
    pub run: fn(),
}

/// How the guest's processors are emulated.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Processors {
    /// Two of them, as fast as can be.
    Fast,
    /// One that counts: an instruction is a nanosecond.
    Counting,
}

/// What is done on the host when a boot is over.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum After {
    /// Nothing.
    Nothing,
    /// The images are held to the ledger, as the files that they are.
    AuditFiles,
}

/// The check of [`After::AuditFiles`].
pub const FILES_CHECK: &str = "a server on the images, as files, finds the same";

/// A boot.
pub struct Plan {
    /// How it is asked for.
    pub name: &'static str,
    /// What for, in words.
    pub what: &'static str,
    /// Its drives.
    pub drives: &'static [Drive],
    /// See there.
    pub processors: Processors,
    /// Groups of checks, in the order in which they are run.
    pub checks: &'static [&'static [Check]],
    /// The boot whose images it goes on with; none: they are new.
    pub images_of: Option<&'static str>,
    /// What the host does with the images afterwards.
    pub after: After,
}

impl Plan {
    /// All of its checks.
    pub fn checks(&self) -> impl Iterator<Item = &'static Check> {
        self.checks.iter().copied().flatten()
    }
}

const DRIVER_DRIVES: &[Drive] = &[
    Drive::new("blocks512", SMALL, 512, Kind::Narrow),
    Drive::new("blocks4096", SMALL, 4096, Kind::Plain),
    Drive::new("blocks16384", SMALL, 16384, Kind::Plain),
    Drive::new("metadata", SMALL, 4096, Kind::Metadata(8)),
    Drive::new("faulty", SMALL, 512, Kind::Faulty),
    Drive::new("slow", SMALL, 4096, Kind::Slow),
    Drive::new("pulled", SMALL, 4096, Kind::Plain),
    Drive::new("ours", LARGE, 4096, Kind::Plain),
    Drive::new("kernels", LARGE, 4096, Kind::Plain),
];

const COUNTED_DRIVES: &[Drive] = &[
    Drive::new("ours", LARGE, 4096, Kind::Plain),
    Drive::new("kernels", LARGE, 4096, Kind::Plain),
];

const NODE_DRIVES: &[Drive] =
    &[Drive::new("one", LARGE, 4096, Kind::Plain), Drive::new("two", LARGE, 512, Kind::Returning)];

/// Every boot, in the order in which they are made.
pub const PLANS: &[Plan] = &[
    Plan {
        name: "driver",
        what: "the driver on QEMU's controllers",
        drives: DRIVER_DRIVES,
        processors: Processors::Fast,
        checks: &[
            conformance::BLOCKS_OF_512,
            conformance::BLOCKS_OF_4096,
            driver::CHECKS,
            speed::CHECKS,
            driver::LAST_CHECKS,
        ],
        images_of: None,
        after: After::Nothing,
    },
    Plan {
        name: "icount",
        what: "what a command costs, in instructions",
        drives: COUNTED_DRIVES,
        processors: Processors::Counting,
        checks: &[count::CHECKS, gets::CHECKS],
        images_of: None,
        after: After::Nothing,
    },
    Plan {
        name: "node",
        what: "a server on drives past the kernel, until its power is cut",
        drives: NODE_DRIVES,
        processors: Processors::Fast,
        checks: &[node::CHECKS, whole::CHECKS, node::LAST_CHECKS],
        images_of: None,
        after: After::Nothing,
    },
    Plan {
        name: "after",
        what: "what the power cut has left",
        drives: NODE_DRIVES,
        processors: Processors::Fast,
        checks: &[node::AFTER_CHECKS],
        images_of: Some("node"),
        after: After::AuditFiles,
    },
];

/// The boot of a name.
pub fn plan(name: &str) -> Option<&'static Plan> {
    PLANS.iter().find(|plan| plan.name == name)
}

/// What the guest says to the host, a line each.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Word {
    /// It is up; the host answers with the name of its plan.
    Hello {
        /// Milliseconds since its kernel began.
        up_ms: u64,
    },
    /// To be printed.
    Say(String),
    /// A check ended; what it had to say when it did not hold.
    Check {
        /// Its name.
        name: String,
        /// Nothing: it holds.
        complaint: Option<String>,
        /// Milliseconds that it took.
        took_ms: u64,
    },
    /// How many bytes of the host's disk a drive's image takes; answered.
    Allocated(String),
    /// Makes a drive answer so many commands a second, or 0: as many as it can; answered.
    Throttle(u32),
    /// Pulls a drive; answered when QEMU has been told, which is before it is gone.
    Pull(String),
    /// Puts a drive that was pulled, and is gone, where it was; answered when QEMU has it.
    Plug(String),
    /// The power is cut at once, by which the check of this name holds; there is no answer.
    CutPower(String),
    /// All is done.
    Done,
}
