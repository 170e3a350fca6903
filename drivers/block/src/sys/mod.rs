//! The few system calls that the standard library lacks, each behind a safe function.
//!
//! `linux` has them all; `portable` has what a file needs on other Unix systems.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
pub(crate) use linux::*;

#[cfg(not(target_os = "linux"))]
mod portable;
#[cfg(not(target_os = "linux"))]
pub(crate) use portable::*;
