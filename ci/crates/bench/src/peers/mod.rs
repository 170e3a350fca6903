//! The sides of a row: what is measured in turns.

use serde::Serialize;

use crate::error::BenchError;
use crate::measure::{Load, Party, Progress, Sample, stretch};
use crate::ring::Ring;

/// Who does a row's work.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// The plain server.
    Plain,
    /// The plain server once more: what differs is noise.
    Again,
    /// A memkv node on memory, with the load that this row is held against.
    Reference,
    /// memkv, on what the row says.
    Memkv,
}

impl Side {
    /// As tables name it.
    pub fn name(self) -> &'static str {
        match self {
            Side::Plain => "plain TCP",
            Side::Again => "plain TCP again",
            Side::Reference => "memkv, reference",
            Side::Memkv => "memkv",
        }
    }
}

/// What puts and gets slices of values.
pub trait Slices {
    /// Carries `operations` out per connection and says what they cost.
    ///
    /// # Errors
    /// The first failure; a value that comes back as another one is a failure.
    fn slice(
        &mut self,
        rings: &mut [Ring],
        load: Load,
        progress: &mut Progress,
        operations: u32,
    ) -> Result<Sample, BenchError>;
}

impl Slices for Party {
    fn slice(
        &mut self,
        rings: &mut [Ring],
        load: Load,
        progress: &mut Progress,
        operations: u32,
    ) -> Result<Sample, BenchError> {
        stretch(self, rings, load, progress, operations)
    }
}
