//! Memory of a server that clients read for themselves, on systems that cannot hand it out: there are no
//! doors, and no windows.

use std::convert::Infallible;
use std::io;
use std::time::Instant;

use memkv_dma::Window;

use crate::NetError;

/// Bytes of the name of a door.
pub const NAME: usize = 16;
/// Bytes of a ticket.
pub const TICKET: usize = 32;

/// None.
#[derive(Debug)]
pub struct Door(Infallible);

impl Door {
    /// # Errors
    /// Always.
    pub fn open(_: [u8; NAME], _: [u8; TICKET], _: &[&Window]) -> io::Result<Door> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Nobody's.
    pub fn name(&self) -> [u8; NAME] {
        match self.0 {}
    }

    /// Nobody's.
    pub fn ticket(&self) -> [u8; TICKET] {
        match self.0 {}
    }

    /// Never asked.
    pub fn renew(&self, _: [u8; TICKET]) -> bool {
        match self.0 {}
    }

    /// None.
    pub fn windows(&self) -> u32 {
        match self.0 {}
    }

    /// Never asked.
    pub fn shut_unless_used(&self) -> bool {
        match self.0 {}
    }
}

/// None.
#[derive(Debug)]
pub struct Windows(Infallible);

impl Windows {
    /// # Errors
    /// Always.
    pub fn open(_: &[u8; NAME], _: &[u8; TICKET], _: Instant) -> Result<Windows, NetError> {
        Err(NetError::Unsupported)
    }

    /// None.
    pub fn count(&self) -> u32 {
        match self.0 {}
    }

    /// Never asked.
    pub fn holds(&self, _: u32, _: u64, _: u64) -> bool {
        match self.0 {}
    }

    /// Never asked.
    pub fn read(&self, _: u32, _: u64, _: &mut [u8]) {
        match self.0 {}
    }
}
