//! What a node tells about itself: to the admin endpoint, and to clients that ask for Stats.
//!
//! Everything here is read from atomics that the reactors write; only the state of the drives is
//! asked of reactor 0, by a message that is answered within a bound.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use memkv_admin_api as api;
use memkv_block::BlockDevice;
use memkv_dma::{Backing, Class, Pool};
use memkv_net::shm::Door;
use memkv_poller::ReactorStats;
use memkv_poller::channel::InboxSender;
use memkv_session::{Identity, SessionCounters};
use memkv_store::{DriveState, DriveStatus, Space, StoreCounters};
use memkv_wire::StatId;

use crate::bypass::Bypass;
use crate::config::Config;
use crate::drives::Recovery;
use crate::members::LeftOut;
use crate::node::{Control, order};
use crate::reload::Reloads;
use crate::seats::Seat;
use crate::work::{self, QueueLoad, SeatedReactor};

/// How long the admin endpoint waits for what reactor 0 knows.
pub(crate) const ANSWER: Duration = Duration::from_secs(2);
/// And for reactors that are told to do something: half of it done is worse than late.
pub(crate) const DONE: Duration = Duration::from_secs(10);

/// What became of the configured drives when the node started, and since.
pub(crate) struct DrivesAtStart {
    /// Those in use.
    pub(crate) devices: Vec<Arc<dyn BlockDevice>>,
    /// What was found on each of them.
    pub(crate) recoveries: Vec<Recovery>,
    /// Those that the node has lost.
    pub(crate) left_out: Vec<LeftOut>,
    /// Of those in use, by number: drives that failed, and that serve again under another number, or
    /// are listed no more.
    pub(crate) gone: BTreeSet<usize>,
    /// Paths of drives that could not join, and that have not answered all of the attempt.
    pub(crate) owing: BTreeSet<String>,
}

impl DrivesAtStart {
    fn count(&self) -> usize {
        self.devices.len() - self.gone.len() + self.left_out.len()
    }

    /// Those in use that are not gone: no two of them have a path in common.
    fn counted(&self) -> Vec<Arc<dyn BlockDevice>> {
        let counted = self.devices.iter().enumerate().filter(|(n, _)| !self.gone.contains(n));
        counted.map(|(_, device)| device.clone()).collect()
    }

    /// The drive of this path, by its number.
    pub(crate) fn number(&self, name: &str) -> Option<usize> {
        let is_it = |number: &usize| self.devices[*number].name() == name;
        (0..self.devices.len()).filter(|number| !self.gone.contains(number)).find(is_it)
    }

    /// Why a drive cannot be taken in by this process any more, if it cannot.
    pub(crate) fn owes(&self, name: &str) -> Option<String> {
        let why = "commands of an attempt to take it in are not answered; restart the node";
        self.owing.contains(name).then(|| format!("{name}: {why}"))
    }

    /// A drive that failed or was left out counts no longer.
    pub(crate) fn drop_drive(&mut self, name: &str) {
        self.gone.extend(self.number(name));
        self.left_out.retain(|drive| drive.device.name() != name);
    }

    /// Notes a drive that has joined, in place of one of the same path.
    fn joined(&mut self, device: Arc<dyn BlockDevice>) {
        self.drop_drive(device.name());
        let report = memkv_journal::RecoveryReport::default();
        let took = Duration::ZERO;
        self.recoveries.push(Recovery { clean: true, records: 0, report, took });
        self.devices.push(device);
    }
}

/// What the node's threads share.
pub struct Shared {
    pub(crate) address: SocketAddr,
    pub(crate) identity: Identity,
    config: RwLock<Arc<Config>>,
    pub(crate) reloads: Reloads,
    pub(crate) pool: Pool,
    pub(crate) bypass: Arc<Bypass>,
    /// Where clients on this machine get windows on drives in memory.
    pub(crate) door: Option<Arc<Door>>,
    pub(crate) store: Arc<StoreCounters>,
    sessions: Vec<Arc<SessionCounters>>,
    reactors: Mutex<Vec<SeatedReactor>>,
    at_start: RwLock<DrivesAtStart>,
    controls: Vec<InboxSender<Control>>,
    started: Instant,
    closed: AtomicBool,
    accepted: AtomicU64,
    refused: AtomicU64,
    /// As it was within the last second: only the store's reactor knows it.
    space: Mutex<Space>,
}

impl Shared {
    #[allow(clippy::too_many_arguments, reason = "put together in one place, once")]
    pub(crate) fn new(
        config: &Config,
        address: SocketAddr,
        pool: Pool,
        bypass: Arc<Bypass>,
        door: Option<Arc<Door>>,
        at_start: DrivesAtStart,
        store: Arc<StoreCounters>,
        identity: Identity,
        controls: Vec<InboxSender<Control>>,
    ) -> Arc<Self> {
        Arc::new(Self {
            address,
            identity,
            config: RwLock::new(Arc::new(config.clone())),
            reloads: Reloads::default(),
            pool,
            bypass,
            door,
            store,
            sessions: controls.iter().map(|_| Arc::default()).collect(),
            reactors: Mutex::default(),
            at_start: RwLock::new(at_start),
            controls,
            started: Instant::now(),
            closed: AtomicBool::new(false),
            accepted: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            space: Mutex::default(),
        })
    }

    /// The configuration that holds.
    pub(crate) fn config(&self) -> Arc<Config> {
        self.config.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set_config(&self, config: Arc<Config>) {
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = config;
    }

    pub(crate) fn at_start(&self) -> RwLockReadGuard<'_, DrivesAtStart> {
        self.at_start.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn drive_joined(&self, device: Arc<dyn BlockDevice>) {
        self.at_start.write().unwrap_or_else(PoisonError::into_inner).joined(device);
    }

    pub(crate) fn drive_owes(&self, name: &str) {
        let mut at_start = self.at_start.write().unwrap_or_else(PoisonError::into_inner);
        at_start.owing.insert(name.to_owned());
    }

    pub(crate) fn drop_drive(&self, name: &str) {
        self.at_start.write().unwrap_or_else(PoisonError::into_inner).drop_drive(name);
    }

    pub(crate) fn reactor_inboxes(&self) -> &[InboxSender<Control>] {
        &self.controls
    }

    pub(crate) fn add_reactor(&self, id: usize, stats: Arc<ReactorStats>, seat: Option<Seat>) {
        let mut reactors = self.reactors.lock().unwrap_or_else(PoisonError::into_inner);
        reactors.push(SeatedReactor { id, stats, seat });
    }

    pub(crate) fn session_counters(&self, id: usize) -> Arc<SessionCounters> {
        self.sessions[id].clone()
    }

    /// Whether one more connection may be served.
    pub(crate) fn admit(&self) -> bool {
        let open = self.sum(|s| s.connections.get());
        let fits = open < u64::from(self.config().limits.max_connections);
        let admitted = fits && !self.closed.load(Ordering::Relaxed);
        let counter = if admitted { &self.accepted } else { &self.refused };
        counter.fetch_add(1, Ordering::Relaxed);
        admitted
    }

    pub(crate) fn close_doors(&self) {
        self.closed.store(true, Ordering::Relaxed);
    }

    fn sum(&self, of: impl Fn(&SessionCounters) -> u64) -> u64 {
        self.sessions.iter().map(|s| of(s)).sum()
    }

    /// The inbox of the reactor that has the store.
    pub(crate) fn store_reactor(&self) -> &InboxSender<Control> {
        &self.controls[0]
    }

    /// The store's drives by number, also those that are gone.
    pub(crate) fn drives(&self) -> Option<Vec<DriveStatus>> {
        order(self.store_reactor(), Control::Drives).recv_timeout(ANSWER).ok()
    }

    /// The room on the drives, from now on.
    pub(crate) fn note_space(&self, space: Space) {
        *self.space.lock().unwrap_or_else(PoisonError::into_inner) = space;
    }

    /// The figures of the wire's Stats operation.
    pub(crate) fn wire_stats(&self) -> Vec<(u16, u64)> {
        let store = &self.store;
        let space = *self.space.lock().unwrap_or_else(PoisonError::into_inner);
        let unit = memkv_dma::UNIT as u64;
        let (user, system) = cpu_seconds();
        let pool = self.pool.stats();
        [
            (StatId::UptimeSeconds, self.started.elapsed().as_secs()),
            (StatId::Blocks, store.blocks.get()),
            (StatId::BytesStored, store.bytes.get()),
            (StatId::BytesUsed, space.units_used * unit),
            (StatId::BytesTotal, space.units_total * unit),
            (StatId::Puts, store.inserts.get()),
            (StatId::PutsPresent, store.present.get()),
            (StatId::PutsRefused, store.busy.get() + store.full.get()),
            (StatId::Hits, store.hits.get()),
            (StatId::Misses, store.misses()),
            (StatId::Deletes, store.deletes.get()),
            (StatId::Evictions, store.evictions.get()),
            (StatId::Corruptions, store.corrupt_dropped.get()),
            (StatId::BytesIn, self.sum(|s| s.write_bytes.get())),
            (StatId::BytesOut, self.sum(|s| s.read_bytes.get())),
            (StatId::Connections, self.sum(|s| s.connections.get())),
            (StatId::Requests, self.sum(|s| s.requests.get())),
            (StatId::Leases, store.leases.get()),
            (StatId::DrivesOnline, space.drives_online),
            (StatId::DrivesOffline, space.drives_offline),
            (StatId::Appends, store.appends.get()),
            (StatId::PoolUsed, pool.used.iter().sum()),
            (StatId::PoolTotal, pool.size),
            (StatId::CpuMicros, ((user + system) * 1e6) as u64),
        ]
        .map(|(id, value)| (id.raw(), value))
        .to_vec()
    }

    fn drive_rows(&self, drives: &[DriveStatus]) -> Vec<api::DriveStatus> {
        let unit = memkv_dma::UNIT as u64;
        let at_start = self.at_start();
        let rows = drives.iter().zip(&at_start.devices).zip(&at_start.recoveries);
        let rows = rows.filter(|((drive, _), _)| !at_start.gone.contains(&number_of(drive)));
        let rows = rows.map(|((drive, device), recovery)| api::DriveStatus {
            path: device.name().to_owned(),
            driver: device.kind().name().to_owned(),
            driver_reason: device.reason().to_owned(),
            uuid: drive.uuid.to_string(),
            state: match drive.state {
                DriveState::Online => api::DriveState::Online,
                DriveState::Offline => api::DriveState::Offline,
            },
            offline_reason: drive.why_offline.clone(),
            raw_bytes: device.geometry().capacity,
            usable_bytes: drive.units_total * unit,
            used_bytes: (drive.units_total - drive.units_free) * unit,
            recovery: api::RecoveryStatus {
                clean: recovery.clean,
                blocks: recovery.records,
                frames: recovery.report.frames,
                records: recovery.report.records,
                damaged_frames: recovery.report.damaged_frames,
                torn_tail: recovery.report.torn_tail,
                milliseconds: recovery.took.as_millis() as u64,
            },
            trim: trim_row(&drive.trim),
            io: work::io_row(&device.stats()),
            numa_node: self.bypass.numa_node(device.name()),
            nvme: self.bypass.find(device.name()).and_then(|drive| work::nvme_row(&drive)),
        });
        rows.chain(at_start.left_out.iter().map(left_out_row)).collect()
    }

    fn scrub_row(&self) -> api::ScrubStatus {
        let scrub = &self.store.scrub;
        api::ScrubStatus {
            bytes_per_second: self.config().storage.scrub_bytes_per_second,
            position: scrub.position.get(),
            slots: scrub.slots.get(),
            passes_total: scrub.passes.get(),
            last_pass: scrub.last_pass.get(),
            bytes_total: scrub.bytes.get(),
            dropped_total: scrub.corrupt.get() + scrub.unreadable.get(),
        }
    }

    fn memory_row(&self) -> api::MemoryStatus {
        let stats = self.pool.stats();
        let (backing, backing_reason) = match self.pool.backing() {
            Backing::Huge2M => (api::PoolBacking::Hugepages2M, None),
            Backing::Ordinary { reason } => {
                (api::PoolBacking::OrdinaryPages, Some(reason.to_string()))
            }
        };
        let used = Class::ALL.iter().map(|&c| (c.name().to_owned(), stats.used[c.index()]));
        api::MemoryStatus {
            pool_bytes: stats.size,
            block_bytes: self.pool.chunk() as u64,
            used_bytes: used.collect(),
            waits_total: stats.waits,
            backing,
            backing_reason,
        }
    }

    /// What each reactor has drives do; of one that does not answer nothing.
    fn queue_loads(&self) -> Vec<Vec<QueueLoad>> {
        let asked: Vec<_> = self.controls.iter().map(|c| order(c, Control::Queues)).collect();
        let until = Instant::now() + ANSWER;
        let left = || until.saturating_duration_since(Instant::now());
        asked.iter().map(|answer| answer.recv_timeout(left()).unwrap_or_default()).collect()
    }

    fn reactor_rows(&self) -> Vec<api::ReactorStatus> {
        let loads = self.queue_loads();
        let at_start = self.at_start();
        let reactors = self.reactors.lock().unwrap_or_else(PoisonError::into_inner);
        let rows = reactors.iter().map(|reactor| {
            let loads = loads.get(reactor.id).into_iter().flatten();
            let counted = loads.filter(|load| !at_start.gone.contains(&load.drive));
            let rows = counted.filter_map(|load| {
                let device = at_start.devices.get(load.drive)?;
                Some(work::queue_row(load, &**device))
            });
            work::reactor_row(reactor, rows.collect())
        });
        rows.collect()
    }

    fn counter_rows(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
        let s = &self.store;
        [
            ("memkv_read_total", "Blocks sent to clients.", self.sum(|c| c.reads.get())),
            (
                "memkv_read_bytes_total",
                "Payload bytes sent to clients.",
                self.sum(|c| c.read_bytes.get()),
            ),
            ("memkv_write_total", "Blocks stored.", self.sum(|c| c.writes.get())),
            ("memkv_write_bytes_total", "Payload bytes stored.", self.sum(|c| c.write_bytes.get())),
            ("memkv_requests_total", "Requests answered.", self.sum(|c| c.requests.get())),
            ("memkv_hits_total", "Lookups that found their block.", s.hits.get()),
            ("memkv_inserts_total", "Blocks entered into the index.", s.inserts.get()),
            ("memkv_leases_total", "Read leases given out.", s.leases.get()),
            ("memkv_journal_appends_total", "Appends to drives' journals.", s.appends.get()),
            ("memkv_checkpoints_total", "Checkpoints completed.", s.checkpoints.get()),
            ("memkv_present_total", "Puts of blocks that were there.", s.present.get()),
            ("memkv_busy_total", "Puts refused for the moment.", s.busy.get()),
            ("memkv_full_total", "Puts refused for lack of space.", s.full.get()),
            ("memkv_evictions_total", "Blocks evicted.", s.evictions.get()),
            ("memkv_hinted_total", "Blocks that engines gave hints of.", s.hinted.get()),
            ("memkv_deletes_total", "Blocks deleted by clients.", s.deletes.get()),
            (
                "memkv_suspects_total",
                "Reports of bad bytes by getters.",
                self.sum(|c| c.suspects.get()),
            ),
            (
                "memkv_corrupt_dropped_total",
                "Blocks dropped for a bad CRC.",
                s.corrupt_dropped.get(),
            ),
            (
                "memkv_crc_refused_total",
                "Puts refused because their CRC did not fit.",
                self.sum(|c| c.crc_refused.get()),
            ),
            ("memkv_put_off_total", "Gets and offers put off.", self.sum(|c| c.busy.get())),
            ("memkv_drives_failed_total", "Drives taken offline.", s.drives_failed.get()),
            (
                "memkv_epochs_raised_total",
                "Times drives were told of a lost one.",
                s.epochs_raised.get(),
            ),
            (
                "memkv_placed_again_total",
                "Extents placed again after a drive error.",
                s.placed_again.get(),
            ),
            (
                "memkv_protocol_violations_total",
                "Connections closed for breaking the protocol.",
                self.sum(|c| c.violations.get()),
            ),
            (
                "memkv_connections_accepted_total",
                "Connections accepted.",
                self.accepted.load(Ordering::Relaxed),
            ),
            (
                "memkv_connections_refused_total",
                "Connections refused: limit, key or version.",
                self.refused.load(Ordering::Relaxed) + self.sum(|c| c.refused.get()),
            ),
        ]
        .into_iter()
        .chain(self.loan_rows())
    }

    fn loan_rows(&self) -> [(&'static str, &'static str, u64); 4] {
        let (lent, named) = (self.sum(|c| c.lent_bytes.get()), self.sum(|c| c.named_bytes.get()));
        let staged = self.sum(|c| c.staged_bytes.get());
        let kept = self.sum(|c| c.lent_retired.get());
        let why = "Bytes kept for good because a peer may still read them.";
        [
            ("memkv_lent_bytes_total", "Payload bytes sent as pages and not as copies.", lent),
            ("memkv_named_bytes_total", "Payload bytes that clients read for themselves.", named),
            ("memkv_staged_bytes_total", "Payload bytes read in the memory of clients.", staged),
            ("memkv_lent_retired_bytes_total", why, kept),
        ]
    }

    fn stage_rows(&self, snapshot: &mut api::MetricsSnapshot) {
        type Pick = fn(&SessionCounters) -> &memkv_store::Histogram;
        let stages: [(&str, Pick); 8] = [
            ("reserve", |c| &c.wait_reserve),
            ("receive", |c| &c.wait_receive),
            ("chunk", |c| &c.wait_chunk),
            ("write", |c| &c.wait_write),
            ("commit", |c| &c.wait_commit),
            ("lease", |c| &c.wait_lease),
            ("read", |c| &c.wait_read),
            ("send", |c| &c.wait_send),
        ];
        let stage = "How long requests waited, by stage.";
        for (name, pick) in stages {
            let labels = vec![("stage", name.to_owned())];
            self.add_histogram(snapshot, ("memkv_stage_seconds", stage, labels), pick);
        }
        let whole = "How long requests took, from their frame to their reply being ready.";
        let operations: [(&str, Pick); 2] = [("put", |c| &c.put_total), ("get", |c| &c.get_total)];
        for (name, pick) in operations {
            let labels = vec![("operation", name.to_owned())];
            self.add_histogram(snapshot, ("memkv_request_seconds", whole, labels), pick);
        }
    }

    fn add_histogram(
        &self,
        snapshot: &mut api::MetricsSnapshot,
        (name, help, labels): (&'static str, &'static str, Vec<api::Label>),
        pick: fn(&SessionCounters) -> &memkv_store::Histogram,
    ) {
        let mut buckets: Vec<api::Bucket> = Vec::new();
        let (mut sum_seconds, mut count) = (0.0, 0);
        for counters in &self.sessions {
            let (bounds, sum, total) = pick(counters).snapshot();
            sum_seconds += sum;
            count += total;
            let finite = bounds.into_iter().filter(|(bound, _)| bound.is_finite());
            for (index, (upper_bound_seconds, cumulative_count)) in finite.enumerate() {
                match buckets.get_mut(index) {
                    Some(bucket) => bucket.cumulative_count += cumulative_count,
                    None => buckets.push(api::Bucket { upper_bound_seconds, cumulative_count }),
                }
            }
        }
        let histogram = api::Histogram { name, help, labels, buckets, sum_seconds, count };
        snapshot.histograms.push(histogram);
    }
}

impl api::NodeAdmin for Shared {
    fn health(&self) -> api::Health {
        let drives = self.drives();
        let online = drives.as_ref().map_or(0, |drives| {
            drives.iter().filter(|d| d.state == DriveState::Online).count() as u32
        });
        // A drive that joins is the store's before it is noted here.
        let total = (self.at_start().count() as u32).max(online);
        api::Health::by_drives(online, total, false)
    }

    fn ready(&self) -> api::Readiness {
        match self.closed.load(Ordering::Relaxed) {
            true => api::Readiness::NotReady { reason: "the node is stopping".into() },
            false => api::Readiness::Ready,
        }
    }

    fn status(&self) -> api::NodeStatus {
        let drives = self.drive_rows(&self.drives().unwrap_or_default());
        let (user, system) = cpu_seconds();
        let config = self.config();
        let eviction = config.storage.eviction;
        api::NodeStatus {
            version: api::version(),
            uptime_seconds: self.started.elapsed().as_secs_f64(),
            node_uuid: uuid::Uuid::from_bytes(self.identity.server).to_string(),
            incarnation: self.identity.incarnation,
            address: self.address.to_string(),
            storage_mode: config.storage.mode.word().to_owned(),
            durability: config.storage.durability.word().to_owned(),
            memory: self.memory_row(),
            storage: api::StorageStatus {
                raw_bytes_total: drives.iter().map(|d| d.raw_bytes).sum(),
                usable_bytes_total: drives.iter().map(|d| d.usable_bytes).sum(),
                used_bytes_total: drives.iter().map(|d| d.used_bytes).sum(),
                blocks_total: self.store.blocks.get(),
            },
            drives,
            reactors: self.reactor_rows(),
            connections: api::ConnectionStatus {
                open: self.sum(|s| s.connections.get()),
                max: u64::from(config.limits.max_connections),
                accepted_total: self.accepted.load(Ordering::Relaxed),
                refused_total: self.refused.load(Ordering::Relaxed) + self.sum(|s| s.refused.get()),
            },
            eviction: api::EvictionStatus {
                enabled: eviction.enabled,
                policy: eviction.policy.word().to_owned(),
                high_percent: eviction.high,
                low_percent: eviction.low,
            },
            scrub: self.scrub_row(),
            config: self.config_row(),
            counters: self.counter_rows().map(|(name, _, n)| (name.to_owned(), n)).collect(),
            process: api::ProcessStatus {
                pid: std::process::id(),
                cpu_seconds: user + system,
                resident_bytes: resident_bytes(),
            },
        }
    }

    fn metrics(&self) -> api::MetricsSnapshot {
        let mut snapshot = api::MetricsSnapshot::default();
        for (name, help, value) in self.counter_rows() {
            snapshot.counter(name, help, Vec::new(), value);
        }
        let s = &self.store;
        for (reason, value) in [
            ("never", s.misses_never.get()),
            ("evicted", s.misses_evicted.get()),
            ("deleted", s.misses_deleted.get()),
            ("expired", s.misses_expired.get()),
            ("drive_lost", s.misses_drive_lost.get()),
            ("corrupt", s.misses_corrupt.get()),
        ] {
            let labels = vec![("reason", reason.to_owned())];
            snapshot.counter("memkv_misses_total", "Lookups that found none.", labels, value);
        }
        let reloads = self.reloads.seen();
        for (result, value) in [("ok", reloads.done), ("failed", reloads.failed)] {
            let labels = vec![("result", result.to_owned())];
            snapshot.counter("memkv_reloads_total", "Configurations read again.", labels, value);
        }
        let drives = self.drives().unwrap_or_default();
        let unit = memkv_dma::UNIT as u64;
        let gone = self.at_start().gone.clone();
        let counted = || drives.iter().filter(|drive| !gone.contains(&number_of(drive)));
        let total: u64 = counted().map(|d| d.units_total * unit).sum();
        let free: u64 = counted().map(|d| d.units_free * unit).sum();
        let online = drives.iter().filter(|d| d.state == DriveState::Online).count();
        let flushes: u64 = drives.iter().map(|d| d.journal.flushes).sum();
        let waits: u64 = drives.iter().map(|d| d.journal.flush_calls).sum();
        for (name, help, value) in [
            ("memkv_flushes_total", "Flushes of drives for puts and removals.", flushes),
            ("memkv_flush_waits_total", "Waits for them; many share one.", waits),
        ] {
            snapshot.counter(name, help, Vec::new(), value);
        }
        for (name, help, value) in [
            ("memkv_blocks_total", "Blocks stored now.", s.blocks.get() as f64),
            ("memkv_storage_usable_bytes", "Bytes of all drives' units.", total as f64),
            ("memkv_storage_used_bytes", "Bytes of units in use.", (total - free) as f64),
            ("memkv_drives_online", "Drives that serve.", online as f64),
            ("memkv_drives", "Drives configured.", self.at_start().count() as f64),
            ("memkv_config_generation", "Configurations so far.", (reloads.done + 1) as f64),
            ("memkv_connections", "Connections open.", self.sum(|c| c.connections.get()) as f64),
            (
                "memkv_lent_bytes",
                "Bytes lent and not taken.",
                self.sum(|c| c.lent_out.get()) as f64,
            ),
            ("memkv_pool_bytes", "Bytes of the memory pool.", self.pool.stats().size as f64),
        ] {
            snapshot.gauge(name, help, Vec::new(), value);
        }
        trim_metrics(&mut snapshot, &drives);
        work::io_metrics(&mut snapshot, &self.at_start().counted());
        work::nvme_metrics(&mut snapshot, &self.bypass.attended());
        let reactors = self.reactor_rows();
        work::reactor_metrics(&mut snapshot, &reactors);
        work::turn_metrics(&mut snapshot, &reactors);
        scrub_metrics(&mut snapshot, &s.scrub);
        for class in Class::ALL {
            let labels = vec![("class", class.name().to_owned())];
            let used = self.pool.stats().used[class.index()] as f64;
            snapshot.gauge("memkv_pool_used_bytes", "Bytes of the pool in use.", labels, used);
        }
        self.stage_rows(&mut snapshot);
        snapshot
    }

    fn namespaces(&self, after: u64) -> Result<api::NamespacesPage, api::NoAnswer> {
        self.namespaces_page(after)
    }

    fn keys(&self, request: &api::KeysRequest) -> Result<api::KeysPage, api::NoAnswer> {
        self.keys_page(request)
    }

    fn reload(&self) -> Result<api::Reloaded, api::ReloadError> {
        self.reload_config()
    }

    fn readmit(&self, path: &str) -> Result<api::Readmitted, api::ReadmitError> {
        self.readmit_drive(path)
    }
}

fn number_of(drive: &DriveStatus) -> usize {
    usize::from(drive.id.0)
}

fn trim_row(trim: &memkv_journal::TrimStats) -> api::TrimStatus {
    let unit = memkv_dma::UNIT as u64;
    api::TrimStatus {
        on: trim.on,
        extents_freed_total: trim.extents_freed,
        ranges_total: trim.ranges,
        extents_total: trim.extents_trimmed,
        bytes_total: trim.units_trimmed * unit,
        reused_bytes_total: trim.units_reused * unit,
        dropped_bytes_total: trim.units_dropped * unit,
        failed_total: trim.ranges_failed,
        pending_bytes: trim.units_pending * unit,
    }
}

/// Sums over all drives.
fn trim_metrics(snapshot: &mut api::MetricsSnapshot, drives: &[DriveStatus]) {
    let rows: Vec<_> = drives.iter().map(|drive| trim_row(&drive.trim)).collect();
    let sum = |of: fn(&api::TrimStatus) -> u64| rows.iter().map(of).sum::<u64>();
    for (name, help, value) in [
        ("memkv_trim_ranges_total", "Ranges given up.", sum(|t| t.ranges_total)),
        ("memkv_trim_extents_total", "Extents in those ranges.", sum(|t| t.extents_total)),
        ("memkv_trim_bytes_total", "Bytes in those ranges.", sum(|t| t.bytes_total)),
        ("memkv_trim_freed_total", "Extents freed.", sum(|t| t.extents_freed_total)),
        ("memkv_trim_reused_bytes_total", "Taken again before.", sum(|t| t.reused_bytes_total)),
        ("memkv_trim_dropped_bytes_total", "Never given up.", sum(|t| t.dropped_bytes_total)),
        ("memkv_trim_failed_total", "Ranges that failed.", sum(|t| t.failed_total)),
    ] {
        snapshot.counter(name, help, Vec::new(), value);
    }
    let pending = sum(|t| t.pending_bytes) as f64;
    snapshot.gauge("memkv_trim_pending_bytes", "Bytes that wait.", Vec::new(), pending);
}

fn scrub_metrics(snapshot: &mut api::MetricsSnapshot, scrub: &memkv_store::ScrubCounters) {
    for (name, help, value) in [
        ("memkv_scrub_bytes_total", "Bytes the scrubber found right.", scrub.bytes.get()),
        ("memkv_scrub_passes_total", "Passes of the scrubber.", scrub.passes.get()),
        ("memkv_scrub_corrupt_total", "Blocks with other bytes.", scrub.corrupt.get()),
        ("memkv_scrub_unreadable_total", "Blocks it could not read.", scrub.unreadable.get()),
    ] {
        snapshot.counter(name, help, Vec::new(), value);
    }
}

/// The row of a drive that is not used.
fn left_out_row(drive: &LeftOut) -> api::DriveStatus {
    api::DriveStatus {
        path: drive.device.name().to_owned(),
        driver: drive.device.kind().name().to_owned(),
        driver_reason: drive.device.reason().to_owned(),
        uuid: drive.uuid.map(|uuid| uuid.to_string()).unwrap_or_default(),
        state: api::DriveState::Offline,
        offline_reason: Some(drive.reason.clone()),
        raw_bytes: drive.device.geometry().capacity,
        usable_bytes: 0,
        used_bytes: 0,
        recovery: api::RecoveryStatus::default(),
        trim: api::TrimStatus::default(),
        io: work::io_row(&drive.device.stats()),
        numa_node: None,
        nvme: None,
    }
}

/// User and system seconds of this process.
fn cpu_seconds() -> (f64, f64) {
    use nix::sys::resource::{UsageWho, getrusage};
    let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) else { return (0.0, 0.0) };
    let seconds = |t: nix::sys::time::TimeVal| t.tv_sec() as f64 + t.tv_usec() as f64 * 1e-6;
    (seconds(usage.user_time()), seconds(usage.system_time()))
}

/// Resident memory where the system tells (Linux), else 0.
fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = statm.split_whitespace().nth(1).and_then(|n| n.parse().ok()).unwrap_or(0);
    pages * 4096
}
