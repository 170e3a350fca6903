//! The sides of a row: what is measured in turns, and the peers among them.

mod lines;
mod memcached;
pub mod mooncake;
mod redis;

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use memkv_dma::Arena;
use serde::Serialize;

use crate::cpu::CpuClock;
use crate::error::BenchError;
use crate::measure::{Asker, Load, Party, Progress, Sample, Worker, stretch};
use crate::process::Process;
use crate::ring::Ring;

use self::mooncake::Mooncake;

/// Who does a row's work.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// Copying within one process: no server at all.
    Copy,
    /// The plain server.
    Plain,
    /// The plain server once more: what differs is noise.
    Again,
    /// The plain server with sums and lent pages.
    Summed,
    /// The same with both ends awake while they wait.
    Awake,
    /// memcached.
    Memcached,
    /// Redis or Valkey.
    Redis,
    /// Mooncake Store.
    Mooncake,
    /// A memkv node on memory, with the load that this row is held against.
    Reference,
    /// memkv, on what the row says.
    Memkv,
}

impl Side {
    /// The other stores.
    pub const PEERS: [Side; 3] = [Side::Memcached, Side::Redis, Side::Mooncake];

    /// Those of them that a [`Peer`] can be.
    pub const SERVED: [Side; 2] = [Side::Memcached, Side::Redis];

    /// As tables name it.
    pub fn name(self) -> &'static str {
        match self {
            Side::Copy => "memcpy",
            Side::Memcached => "memcached",
            Side::Redis => "Redis",
            Side::Mooncake => "Mooncake",
            Side::Plain => "plain TCP",
            Side::Again => "plain TCP again",
            Side::Summed => "lent, summed",
            Side::Awake => "summed, awake",
            Side::Reference => "memkv, reference",
            Side::Memkv => "memkv",
        }
    }

    /// Whether it is a limit and no store.
    pub fn is_limit(self) -> bool {
        matches!(self, Side::Copy | Side::Plain | Side::Again | Side::Summed | Side::Awake)
    }

    /// A slow side does so many times less in a round.
    pub fn thrift(self) -> u32 {
        match self {
            Side::Mooncake => 4,
            Side::Redis => 2,
            _ => 1,
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

/// Why a peer is not there, in words.
#[derive(Clone, Debug)]
pub struct Absent(pub String);

impl Absent {
    fn not_installed(program: &str) -> Absent {
        Absent(format!("{program} is NOT INSTALLED"))
    }
}

/// A peer's server.
pub struct Server {
    process: Process,
    address: SocketAddr,
    /// Its version and options.
    told: String,
}

/// What peers need to know of a run.
pub struct Needs<'a> {
    /// Where their logs go.
    pub folder: &'a Path,
    /// A Python that has Mooncake.
    pub python: Option<&'a Path>,
    /// Bytes that the values of one size take.
    pub stored_bytes: u64,
    /// Bytes of the client's cold region.
    pub ring_bytes: u64,
    /// Connections.
    pub connections: usize,
}

/// A peer that takes part in rows.
pub struct Entrant {
    /// Which it is.
    pub side: Side,
    /// Its version and options.
    pub told: String,
    /// The clocks of its processes.
    pub clocks: Vec<CpuClock>,
    /// What is measured.
    pub slices: Box<dyn Slices>,
    _peer: Option<Peer>,
}

impl Entrant {
    /// Starts it, where it is installed.
    ///
    /// # Errors
    /// When it is installed and does not get ready.
    pub fn start(side: Side, needs: &Needs<'_>) -> Result<Result<Entrant, Absent>, BenchError> {
        if side == Side::Mooncake {
            return Ok(Mooncake::start(needs).map(|mooncake| Entrant {
                side,
                told: mooncake.told(),
                clocks: mooncake.clocks(),
                slices: Box::new(mooncake),
                _peer: None,
            }));
        }
        let peer = match Peer::start(side, needs.folder)? {
            Ok(peer) => peer,
            Err(absent) => return Ok(Err(absent)),
        };
        Ok(Ok(Entrant {
            side,
            told: peer.server.told.clone(),
            clocks: vec![peer.clock()?],
            slices: Box::new(peer.party(needs.connections)?),
            _peer: Some(peer),
        }))
    }
}

/// A peer with a protocol of lines that runs.
pub struct Peer {
    side: Side,
    server: Server,
}

impl Peer {
    /// Starts it, where it is installed.
    ///
    /// # Errors
    /// When it is installed and does not get ready.
    pub fn start(side: Side, folder: &Path) -> Result<Result<Peer, Absent>, BenchError> {
        let started = match side {
            Side::Memcached => memcached::start(folder)?,
            Side::Redis => redis::start(folder)?,
            _ => panic!("{side:?} has no protocol of lines"),
        };
        Ok(started.map(|server| Peer { side, server }))
    }

    /// Its CPU time.
    ///
    /// # Errors
    /// When it is gone.
    pub fn clock(&self) -> Result<CpuClock, BenchError> {
        self.server.process.clock()
    }

    /// So many connections to it.
    fn party(&self, connections: usize) -> Result<Party, BenchError> {
        let address = self.server.address;
        let connect = |_| -> Result<Box<dyn Worker>, BenchError> {
            Ok(match self.side {
                Side::Memcached => Box::new(memcached::Client::connect(address)?),
                _ => Box::new(redis::Client::connect(address)?),
            })
        };
        let workers = (0..connections).map(connect).collect::<Result<_, _>>()?;
        Ok(Party { server: Some(self.clock()?), workers })
    }

    /// A connection that asks it.
    ///
    /// # Errors
    /// As the system says.
    pub fn asker(&self) -> Result<Box<dyn Asker>, BenchError> {
        let address = self.server.address;
        Ok(match self.side {
            Side::Memcached => Box::new(memcached::Client::connect(address)?),
            _ => Box::new(redis::Client::connect(address)?),
        })
    }
}

/// The first line of what a program says of its version.
fn version(binary: &Path, option: &str) -> String {
    let output = Command::new(binary).arg(option).output();
    let said = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    said.ok().and_then(|said| said.lines().next().map(str::to_owned)).unwrap_or_default()
}

/// Values that are copied from the client's cold buffers into cold memory and back.
pub struct Copier(pub Arena);

impl Worker for Copier {
    fn put(&mut self, slot: u32, value: &[u8]) -> Result<(), BenchError> {
        let at = u64::from(slot) * value.len() as u64;
        self.0.lend_mut(at, value.len()).as_mut_slice().copy_from_slice(value);
        Ok(())
    }

    fn get(&mut self, slot: u32, into: &mut [u8]) -> Result<(), BenchError> {
        let at = u64::from(slot) * into.len() as u64;
        into.copy_from_slice(self.0.lend(at, into.len()).as_slice());
        Ok(())
    }
}
