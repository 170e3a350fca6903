//! A polled NVMe driver in userspace: the drive's queues lie in our memory, and a reactor that has
//! something to read writes 64 bytes and one register, without the kernel.
//!
//! ```text
//!   open(transport) ─► Nvme                         one per drive: a BlockDevice, shared by all reactors
//!      brings the controller up                     controller.rs: a state machine, a deadline per state
//!                       │ open_queue(&local)
//!                       ▼
//!                    a queue pair per reactor       queue/: requests, trackers, rings; no lock, no
//!                       │ submit(Io)                allocation, no system call
//!                       ▼
//!            submission ring ─► doorbell ─► drive ─► completion ring ─► Done
//! ```
//!
//! The parts, from the ground up: [`Transport`] is the way to a controller, registers and memory, and
//! knows PCI so that nobody else has to ([`Vfio`] is one); `registers`, `command`, `status`, `identify` and `health` are
//! the specification's words; `area` is memory that driver and controller share; `ring` a pair of rings
//! in it; `pci` finds controllers and gives them to drivers; `admin` the queue that manages; `controller` the life of the controller; `queue` the path of
//! data; `device` what the store sees.
//!
//! **The rule of this crate.** A controller reads and writes memory by itself. So rings and lists are
//! never Rust references but raw pointers, volatile accesses and barriers, and a buffer stays in its
//! tracker from submission until its command was answered, or the controller was reset and the command
//! answered after that, or the controller is cut off from memory. If none of that can be had, it is leaked.
//!
//! **When a drive does not behave.** A command that is not answered is aborted, then the controller is
//! reset and every command that it had is given to it again: the buffers are still there, and no unit is
//! used for anything else while a command names it. A controller that answers what was not asked is
//! reset as well. One that has to be reset again and again, or is gone from the bus, or comes back as
//! another, is out of service: every command ends as [`IoError::Offline`](memkv_block::IoError::Offline).
//!
//! **What it follows.** NVM Express Base Specification 2.0, NVM Command Set Specification 1.0 and NVM
//! Express over PCIe Transport Specification 1.0; sections are named where they are used. Controllers
//! from version 1.1 on have all that is needed.

#![warn(missing_docs)]

mod admin;
mod area;
mod barrier;
mod command;
mod controller;
mod device;
mod error;
mod health;
mod identify;
mod pci;
mod queue;
mod registers;
mod ring;
mod shape;
mod status;
mod transport;

#[cfg(target_os = "linux")]
mod vfio;

#[cfg(any(test, feature = "model"))]
pub mod model;
#[cfg(test)]
mod tests;

pub use device::{Info, Nvme, Options, Troubles, open};
pub use error::NvmeError;
pub use health::Health;
pub use pci::{BindError, GroupMember, NotAnAddress, PciAddress, PciDevice, Sysfs, VFIO};
pub use status::Status;
pub use transport::{Bar, Transport, Window};
#[cfg(target_os = "linux")]
pub use vfio::{Iommu, Vfio, VfioError};
