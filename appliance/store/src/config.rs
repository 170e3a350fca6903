//! What the store is told when it starts.

use std::time::Duration;

use memkv_journal::TrimConfig;

/// Settings of one store.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// Bytes per extent: a power of two from 16 KiB to 4 MiB. Values are at most 16 extents.
    pub extent_bytes: u32,
    /// `None`: a full store answers `Full`.
    pub eviction: Option<EvictionConfig>,
    /// When what was freed is given to the devices; `None`: never.
    pub trim: Option<TrimConfig>,
    /// How blocks that nobody reads are checked; `None`: they are not.
    pub scrub: Option<ScrubConfig>,
    /// What an acknowledged put or delete survives.
    pub durability: Durability,
    /// The longest lease a client may hold.
    pub lease_max: Duration,
    /// How long a put waits for another put of the same key when it names no deadline.
    pub default_deadline: Duration,
    /// How long outcomes of requests are remembered for retries, per client.
    pub remember: Duration,
    /// The most outcomes remembered at one time.
    pub remember_max: usize,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            extent_bytes: 4 << 20,
            eviction: Some(EvictionConfig::default()),
            trim: None,
            scrub: None,
            durability: Durability::Process,
            lease_max: Duration::from_secs(60),
            default_deadline: Duration::from_secs(10),
            remember: Duration::from_secs(60),
            remember_max: 65_536,
        }
    }
}

/// How the scrubber works.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ScrubConfig {
    /// Bytes it reads a second at most, over all drives; not 0.
    pub bytes_per_second: u64,
    /// How long it rests between two passes over all blocks.
    pub rest: Duration,
}

impl Default for ScrubConfig {
    /// 16 MiB a second, and an hour of rest.
    fn default() -> Self {
        Self { bytes_per_second: 16 << 20, rest: Duration::from_secs(3600) }
    }
}

/// What an acknowledged put or delete survives. A put may ask for more than its store promises to
/// all ([`ReserveRequest::durable`](crate::ReserveRequest::durable)).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Durability {
    /// Not even the end of the process: the drives are memory. A put cannot ask for more either.
    Memory,
    /// A killed process: its records are written. A power cut may forget it.
    Process,
    /// A power cut: its data and records are flushed on every drive that holds some of them, before
    /// anybody sees it. So are removals, before units are used again.
    Power,
}

/// When eviction starts and how far it goes, as shares of all units.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct EvictionConfig {
    /// Eviction starts above this share in use.
    pub high: f64,
    /// And stops below this one.
    pub low: f64,
    /// For how long blocks are kept that an engine retains.
    pub retain: Duration,
    /// The longest time for which an engine may pin blocks; at most [`EvictionConfig::PIN_LIMIT`].
    pub pin_max: Duration,
}

impl EvictionConfig {
    /// No block is pinned for longer: a week.
    pub const PIN_LIMIT: Duration = Duration::from_secs(7 * 24 * 3600);
}

impl Default for EvictionConfig {
    fn default() -> Self {
        Self {
            high: 0.95,
            low: 0.92,
            retain: Duration::from_secs(600),
            pin_max: Duration::from_secs(3600),
        }
    }
}
