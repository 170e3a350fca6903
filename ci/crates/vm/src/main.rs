//! The machine tier: QEMU boots a small guest with an IOMMU and NVMe drives, and this same binary runs
//! in it and asks of the driver what it promises.
//!
//! ```text
//!   host: machine.rs ── QEMU ── guest: init, then `memkv-vm guest`
//!     dialog.rs    ◄─ a serial port of its own: lines to print, checks, questions ─► talk.rs
//!     monitor.rs   ─► QEMU's monitor: a drive is pulled, throttled
//!     console.rs   ◄─ what the guest's kernel said; a fault of the IOMMU in it fails the run
//! ```
//!
//! A [`plan::Plan`] is one boot: its drives, its checks, how its processors are emulated. A boot takes some
//! seconds, so checks share one wherever they can.
//!
//! No KVM is used where `/dev/kvm` is all there is of it: a machine that is a guest itself may have one
//! that cannot run a stock kernel.

#![deny(unsafe_code)]

mod guest;
mod host;
mod plan;
mod ticks;

use std::error::Error;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::host::HostArguments;

/// Boots guests with emulated NVMe drives and checks the driver in them.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    side: Side,
}

#[derive(Subcommand)]
enum Side {
    /// Boots, and prints what the guests found
    Host(HostArguments),
    /// In the guest: what the host asks for
    Guest,
}

fn main() -> ExitCode {
    let outcome: Result<bool, Box<dyn Error>> = match Arguments::parse().side {
        Side::Host(arguments) => host::run(&arguments).map_err(Into::into),
        Side::Guest => guest::run().map(|()| true).map_err(Into::into),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("vm: {}", told(&*error));
            ExitCode::FAILURE
        }
    }
}

/// An error with its causes, in a line.
fn told(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line = format!("{line}: {error}");
        cause = error.source();
    }
    line
}
