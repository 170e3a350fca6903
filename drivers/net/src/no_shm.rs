//! Memory that a server and its clients share, on systems that cannot hand it out: there are no doors, no
//! windows and no stagings.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use memkv_dma::Window;

use crate::NetError;

/// Bytes of the name of a door.
pub const NAME: usize = 16;
/// Bytes of a ticket.
pub const TICKET: usize = 32;
/// Most bytes of memory in which one client lays payload down.
pub const STAGING_MAX: usize = 4 << 20;

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

    /// Nobody's.
    pub fn stagings(&self) -> &Arc<Stagings> {
        match self.0 {}
    }

    /// Never asked.
    pub fn shut_unless_used(&self) -> bool {
        match self.0 {}
    }
}

/// None.
#[derive(Debug, Default)]
pub struct Stagings;

impl Stagings {
    /// None.
    pub fn claim(&self, _: u64) -> Option<Arc<Staged>> {
        None
    }
}

/// None.
#[derive(Debug)]
pub struct Staged(Infallible);

impl Staged {
    /// Never asked.
    pub fn holds(&self, _: u64, _: u64) -> bool {
        match self.0 {}
    }

    /// Never asked.
    pub fn read(&self, _: u64, _: &mut [u8]) {
        match self.0 {}
    }
}

/// None.
#[derive(Debug)]
pub struct Staging(Infallible);

impl Staging {
    /// # Errors
    /// Always.
    pub fn open(
        _: &[u8; NAME],
        _: &[u8; TICKET],
        _: u64,
        _: usize,
        _: Instant,
    ) -> Result<Staging, NetError> {
        Err(NetError::Unsupported)
    }

    /// # Errors
    /// Always.
    pub fn within(_: &Stagings, _: u64, _: usize) -> io::Result<Staging> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Nobody's.
    pub fn number(&self) -> u64 {
        match self.0 {}
    }

    /// Never asked.
    pub fn write(&self, _: usize, _: &[u8]) {
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
