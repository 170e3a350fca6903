//! The contract by which a node is asked how it is, and told to read its configuration again.
//!
//! Three programs meet here. The node implements [`NodeAdmin`]; `admin/http` turns its answers into
//! `/v1/health`, `/v1/ready`, `/v1/status`, `/v1/metrics`, `/v1/namespaces`, `/v1/keys`, `/v1/reload` and
//! `/v1/drives/readmit`; `memkvctl` reads the JSON back into the same types. So this crate holds plain
//! data that serialises, one trait, the notation for sizes that all of them print and read ([`size`]), and
//! nothing that runs: no socket, no reactor, no metrics library.
//!
//! * [`Health`] is for a load balancer: three words and the count of drives.
//! * [`Readiness`] is for an orchestrator: may traffic be sent here yet, and if not, why.
//! * [`NodeStatus`] is for a person: everything worth knowing, with the reasons for what was chosen.
//! * [`MetricsSnapshot`] is for a time series: counters, gauges and histograms by name.
//! * [`NamespacesPage`] and [`KeysPage`] are what is stored, a page at a time.
//! * [`Reloaded`] is what became of the configuration when it was read again, [`Readmitted`] a drive that
//!   was taken in again.
//!
//! Every answer but these and the pages is a snapshot taken from counters that the reactors keep anyway. An
//! implementation waits for a reactor a bounded while at most: a node whose reactors are stuck is
//! exactly the one that is asked.

#![forbid(unsafe_code)]

mod health;
mod list;
mod metrics;
mod reload;
pub mod size;
mod status;
mod version;

pub use health::{Health, HealthStatus, Readiness};
pub use list::{
    KeyEntry, KeysPage, KeysRequest, NamespaceEntry, NamespacesPage, NoAnswer, PAGE_DEFAULT,
    PAGE_MAX,
};
pub use metrics::{
    Bucket, Counter, Gauge, Histogram, Label, MetricsSnapshot, STAGE_BUCKETS_SECONDS,
};
pub use reload::{ConfigStatus, ReadmitError, Readmitted, ReloadError, Reloaded};
pub use status::{
    ConnectionStatus, DriveState, DriveStatus, EvictionStatus, IoStatus, MemoryStatus, NodeStatus,
    NvmeStatus, PoolBacking, ProcessStatus, QueueStatus, ReactorStatus, RecoveryStatus,
    ScrubStatus, SmartStatus, StorageStatus, TrimStatus, TurnStatus,
};
pub use version::{VERSION_TEXT, Version, version};

/// What a node can be asked. Called on the admin thread, possibly while the reactors are busy, so
/// no method may wait for one longer than a bounded while.
pub trait NodeAdmin: Send + Sync {
    /// Whether the node serves, and how many of its drives do.
    fn health(&self) -> Health;

    /// Whether recovery is over and requests are accepted.
    fn ready(&self) -> Readiness;

    /// The whole picture, for a person.
    fn status(&self) -> NodeStatus;

    /// Every counter, gauge and histogram, for a time series.
    fn metrics(&self) -> MetricsSnapshot;

    /// A page of the walk over all blocks, counted by namespace.
    ///
    /// # Errors
    /// [`NoAnswer`] when the store is too busy, or stopping.
    fn namespaces(&self, after: u64) -> Result<NamespacesPage, NoAnswer>;

    /// A page of keys.
    ///
    /// # Errors
    /// [`NoAnswer`] when the store is too busy, or stopping.
    fn keys(&self, request: &KeysRequest) -> Result<KeysPage, NoAnswer>;

    /// Reads the configuration again and goes on with it, as far as that takes no restart. Called on
    /// a thread that may wait.
    ///
    /// # Errors
    /// [`ReloadError`]; unless a reactor did not answer, nothing was changed.
    fn reload(&self) -> Result<Reloaded, ReloadError>;

    /// Takes a drive of the configuration in again that failed or was lost; whatever is on it goes.
    /// Called on a thread that may wait.
    ///
    /// # Errors
    /// [`ReadmitError`].
    fn readmit(&self, path: &str) -> Result<Readmitted, ReadmitError>;
}
