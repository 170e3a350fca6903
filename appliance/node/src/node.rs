//! The one place that picks drivers and wires pollers to cores.
//!
//! ```text
//!   thread reactor-0   store, journals, acceptor, sessions
//!   thread reactor-n   sessions; the store by message
//!   thread admin       HTTP, reads atomics, asks reactor 0 for the drives
//! ```
//!
//! Connections are dealt out by the acceptor on reactor 0, the next to whoever has the fewest. Stopping runs backwards: no new
//! connections, sessions drained on every reactor, then the store leaves clean checkpoints.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use memkv_block::{BlockDevice, IoError, Kind};
use memkv_dma::{Hugepages, Memory, Pool, PoolConfig, PoolError};
use memkv_net::NetError;
use memkv_net::shm::Door;
use memkv_net::tcp::{Accepted, Engine, Listener};
use memkv_nvme::Sysfs;
use memkv_poller::channel::{self, InboxReceiver, InboxSender};
use memkv_poller::{
    IdlePolicy, Local, Reactor, ReactorConfig, ReactorId, Rng, StopFlag, SystemClock,
};
use memkv_session::{Context, ContextParts, DriveIo, Identity, KeyRing, SessionLimits};
use memkv_store::{
    DriveId, DriveStatus, Listed, RemoteStore, Store, StoreHandle, StorePort, Tuning,
};

use crate::attend::Rounds;
use crate::bypass::Bypass;
use crate::config::{Config, HugepageUse, StorageMode};
use crate::drives::{self, DrivesError, OpenStore};
use crate::hugepages::{self, TooFew};
use crate::joins::{self, Joined};
use crate::listing::ListPiece;
use crate::reload::Source;
use crate::seats::Seat;
use crate::status::{DrivesAtStart, Shared};
use crate::windows;
use crate::work::{self, QueueLoad};

/// Messages under way from other reactors to the store.
const STORE_CALLS: usize = 4096;
/// Leases and reservations held by sessions of other reactors.
const STORE_ENDS: usize = 65_536;
/// Connections and orders on their way to a reactor.
const CONTROL: usize = 1024;
/// How long an address may be another server's that was killed: as long as its drives may.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long stopping waits for a reactor.
const STOP_WAIT: Duration = Duration::from_secs(30);

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Hugepages are required, and too few are free.
    #[error(transparent)]
    Hugepages(#[from] TooFew),
    /// No memory for the pool.
    #[error("cannot set up the memory pool (memory.max_size)")]
    Pool(#[from] PoolError),
    /// The drives cannot be used.
    #[error(transparent)]
    Drives(#[from] DrivesError),
    /// The data address is not to be had.
    #[error("cannot listen on {address}")]
    Listen {
        /// The data address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: NetError,
    },
    /// A reactor could not open its queues or sockets.
    #[error("a reactor cannot open its queue on a drive")]
    Queue(#[source] IoError),
    /// A reactor could not set up its network engine.
    #[error("a reactor cannot set up its network engine (MEMKV_NET=epoll does without io_uring)")]
    Engine(#[source] NetError),
    /// A thread could not be started.
    #[error("cannot start a thread")]
    Thread(#[source] std::io::Error),
    /// A reactor's thread ended before it was ready.
    #[error("a reactor ended before it was ready; see the log")]
    ReactorEnded,
}

/// Stopping did not come to its orderly end.
#[derive(Debug, thiserror::Error)]
pub enum StopError {
    /// A reactor did not answer in time: the next start will check every block.
    #[error("reactor {reactor} did not finish within {} s; the next start checks every block", STOP_WAIT.as_secs())]
    Stuck {
        /// Which one.
        reactor: usize,
    },
}

/// Orders to a reactor.
pub(crate) enum Control {
    /// Serve this connection, and keep the token as long.
    Serve(Accepted, Arc<()>),
    /// End all sessions, then say so.
    Drain(mpsc::Sender<()>),
    /// Leave clean checkpoints, then say so (reactor 0).
    Shutdown(mpsc::Sender<()>),
    /// Go on with these settings; how many sessions end by them.
    Reload(Arc<Config>, mpsc::Sender<u64>),
    /// Make a blank drive a member (reactor 0), as the first step of joining.
    Join(Arc<dyn BlockDevice>, mpsc::Sender<Joined>),
    /// Have a queue on a drive that has joined.
    AddDrive(DriveId, Arc<dyn BlockDevice>, mpsc::Sender<Result<(), String>>),
    /// Let blocks lie on a drive that every reactor has a queue on (reactor 0), or give it up.
    OpenDrive(DriveId, Result<(), String>, mpsc::Sender<()>),
    /// A drive that is driven from here is out of service (reactor 0); why.
    DriveLost(DriveId, String, mpsc::Sender<()>),
    /// Tell how many commands of its own a drive has not answered.
    Outstanding(DriveId, mpsc::Sender<usize>),
    /// Tell what this reactor has drives do.
    Queues(mpsc::Sender<Vec<QueueLoad>>),
    /// Walk over a piece of the store (reactor 0): what is there, and where to go on.
    List(ListPiece, mpsc::Sender<(Vec<Listed>, Option<u64>)>),
    /// Tell the state of the drives (reactor 0).
    Drives(mpsc::Sender<Vec<DriveStatus>>),
}

/// Drives, as all reactors share them.
pub type Devices = Vec<Arc<dyn BlockDevice>>;

/// A running node.
pub struct Node {
    shared: Arc<Shared>,
    controls: Vec<InboxSender<Control>>,
    threads: Vec<JoinHandle<()>>,
    stop: StopFlag,
    /// Where there may be drives to look after.
    attendant: Option<Rounds>,
}

/// What the thread of reactor 0 tells when it is ready.
struct Ready {
    store: RemoteStore,
    shared: Arc<Shared>,
    /// The drives in use.
    devices: Vec<Arc<dyn BlockDevice>>,
}

/// Everything a reactor's thread is given; all of it can cross threads.
#[derive(Clone)]
struct Parts {
    config: Config,
    pool: Pool,
    bypass: Arc<Bypass>,
    devices: Vec<Arc<dyn BlockDevice>>,
    /// Where clients on this machine get windows on them.
    door: Option<Arc<Door>>,
    /// Of each reactor, where it has one.
    seats: Vec<Option<Seat>>,
    stop: StopFlag,
}

impl Node {
    /// Starts a node; when this returns it serves.
    ///
    /// # Errors
    /// [`StartError`]; nothing keeps running then.
    pub fn start(config: Config, progress: &drives::Progress) -> Result<Self, StartError> {
        Node::start_on(config, |config, pool, bypass| {
            drives::open_devices(config, pool, bypass, progress)
        })
    }

    /// The same on drives that `open` opens, whichever the configuration names.
    ///
    /// # Errors
    /// [`StartError`]; nothing keeps running then.
    pub fn start_on(
        config: Config,
        open: impl FnOnce(&Config, &Pool, &Bypass) -> Result<Devices, DrivesError>,
    ) -> Result<Self, StartError> {
        if config.memory.hugepages == HugepageUse::Require {
            hugepages::wait_for(config.memory.max_size)?;
        }
        let pool = Pool::new(PoolConfig {
            size: config.memory.max_size,
            chunk: config.memory.block_size,
            hugepages: config.memory.hugepages.into(),
        })?;
        let address = config.network.address;
        let listener = Listener::bind_within(address, PATIENCE)
            .map_err(|source| StartError::Listen { address, source })?;
        let bypass = Bypass::new(Sysfs::default());
        let devices = open(&config, &pool, &bypass)?;
        let count = config.reactors.max(1);
        let seats = bypass.seats(&config, &devices);
        let door = windows::open_door(&config, &devices);
        let stop = StopFlag::new();
        let mut parts = Parts { config, pool, bypass, devices, door, seats, stop };

        let (controls, mut inboxes): (Vec<_>, Vec<_>) =
            (0..count).map(|_| channel::inbox(CONTROL)).unzip();
        let first = inboxes.remove(0);
        let (ready_tx, ready) = mpsc::channel();
        let mut threads = Vec::with_capacity(count);
        let (given, all) = (parts.clone(), controls.clone());
        threads.push(spawn(0, move || first_reactor(&given, listener, all, first, &ready_tx))?);
        let Ready { store, shared, devices } = match ready.recv() {
            Ok(ready) => ready?,
            Err(_) => return Err(StartError::ReactorEnded),
        };
        parts.devices = devices;
        let stop = parts.stop.clone();
        let mut node = Self { shared, controls, threads, stop, attendant: None };
        for (index, inbox) in inboxes.into_iter().enumerate() {
            let (given, shared, store) = (parts.clone(), node.shared.clone(), store.clone());
            let (ready_tx, ready) = mpsc::channel();
            let id = index + 1;
            let thread =
                spawn(id, move || other_reactor(id, &given, &shared, store, inbox, &ready_tx));
            let started = thread.map_err(StartError::from).and_then(|thread| {
                node.threads.push(thread);
                ready.recv().unwrap_or(Err(StartError::ReactorEnded))
            });
            if let Err(error) = started {
                let _ = node.stop();
                return Err(error);
            }
        }
        node.attend(&parts)
    }

    /// Has drives looked after, where there may be some that are driven from here.
    fn attend(mut self, parts: &Parts) -> Result<Self, StartError> {
        let direct = parts.config.storage.mode == StorageMode::Direct;
        if direct || parts.devices.iter().any(|device| device.kind() == Kind::Nvme) {
            match Rounds::of_node(self.shared.clone()) {
                Ok(attendant) => self.attendant = Some(attendant),
                Err(error) => {
                    let _ = self.stop();
                    return Err(error.into());
                }
            }
        }
        Ok(self)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.shared.address
    }

    /// What the admin endpoint asks.
    pub fn admin(&self) -> Arc<Shared> {
        self.shared.clone()
    }

    /// From now on the configuration can be read again from there; see [`Shared::reload`].
    ///
    /// [`Shared::reload`]: memkv_admin_api::NodeAdmin::reload
    pub fn reload_from(&self, source: Source) {
        self.shared.reloads.read_from(source);
    }

    /// Stops in order: sessions end, drives get clean checkpoints.
    ///
    /// # Errors
    /// [`StopError`] when a reactor does not answer; nothing acknowledged is lost even then.
    pub fn stop(self) -> Result<(), StopError> {
        self.shared.close_doors();
        drop(self.attendant);
        let drained: Vec<_> = self.controls.iter().map(|c| order(c, Control::Drain)).collect();
        let mut result = Ok(());
        for (reactor, answer) in drained.into_iter().enumerate() {
            if answer.recv_timeout(STOP_WAIT).is_err() {
                result = Err(StopError::Stuck { reactor });
            }
        }
        if result.is_ok() {
            let answer = order(&self.controls[0], Control::Shutdown);
            if answer.recv_timeout(STOP_WAIT).is_err() {
                result = Err(StopError::Stuck { reactor: 0 });
            }
        }
        self.stop.stop();
        if result.is_ok() {
            for thread in self.threads {
                let _ = thread.join();
            }
        }
        result
    }
}

/// Sends an order that is answered on a channel; a full or gone inbox drops it, and the answer with it.
pub(crate) fn order<T>(
    to: &InboxSender<Control>,
    make: impl FnOnce(mpsc::Sender<T>) -> Control,
) -> mpsc::Receiver<T> {
    let (tx, rx) = mpsc::channel();
    if let Ok(permit) = to.try_reserve() {
        permit.send(make(tx));
    }
    rx
}

impl From<std::io::Error> for StartError {
    fn from(error: std::io::Error) -> Self {
        Self::Thread(error)
    }
}

impl From<HugepageUse> for Hugepages {
    fn from(wanted: HugepageUse) -> Self {
        match wanted {
            HugepageUse::Prefer => Self::Prefer,
            HugepageUse::Require => Self::Require,
            HugepageUse::Never => Self::Never,
        }
    }
}

impl From<crate::config::IdlePolicy> for IdlePolicy {
    fn from(wanted: crate::config::IdlePolicy) -> Self {
        match wanted {
            crate::config::IdlePolicy::Busy => Self::Busy,
            crate::config::IdlePolicy::Adaptive => Self::Adaptive,
        }
    }
}

fn spawn(id: usize, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, std::io::Error> {
    std::thread::Builder::new().name(format!("reactor-{id}")).spawn(run)
}

/// On the thread that it will run on.
fn new_reactor(id: usize, parts: &Parts) -> Reactor {
    if let Some(seat) = &parts.seats[id] {
        tracing::info!(reactor = id, node = seat.node, cores = ?seat.cores, "reactor near its drives");
        seat.take();
    }
    let mut seed = [0; 8];
    drives::random(&mut seed);
    let config = ReactorConfig {
        id: ReactorId(id as u16),
        idle: parts.config.idle.into(),
        ..ReactorConfig::default()
    };
    Reactor::new(config, Rc::new(SystemClock), Rng::seeded(u64::from_le_bytes(seed)))
}

/// The thread of reactor 0: opens the store, then serves.
fn first_reactor(
    parts: &Parts,
    listener: Listener,
    controls: Vec<InboxSender<Control>>,
    inbox: InboxReceiver<Control>,
    ready: &mpsc::Sender<Result<Ready, StartError>>,
) {
    let mut reactor = new_reactor(0, parts);
    let local = reactor.local();
    let (config, pool, devices) = (parts.config.clone(), parts.pool.clone(), parts.devices.clone());
    let opened = reactor.block_on(drives::open_store(local.clone(), config, pool, devices));
    let opened = match opened {
        Ok(opened) => opened,
        Err(error) => return drop(ready.send(Err(error.into()))),
    };
    let OpenStore { store, devices, left_out, recoveries, node, incarnation } = opened;
    let parts = &Parts { devices, ..parts.clone() };
    let shared = Shared::new(
        &parts.config,
        listener.local_addr(),
        parts.pool.clone(),
        parts.bypass.clone(),
        parts.door.clone(),
        DrivesAtStart {
            devices: parts.devices.clone(),
            recoveries,
            left_out,
            gone: BTreeSet::new(),
            owing: BTreeSet::new(),
        },
        store.counters(),
        Identity { server: *node.as_bytes(), incarnation },
        controls.clone(),
    );
    shared.add_reactor(0, reactor.stats(), parts.seats[0].clone());
    let handle = StoreHandle::Here(store.clone());
    let context = match context(0, &local, parts, &shared, handle) {
        Ok(context) => context,
        Err(error) => return drop(ready.send(Err(error))),
    };
    let served = serve_orders(&local, parts, context, Some(store.clone()), inbox);
    if let Err(error) = served {
        return drop(ready.send(Err(error)));
    }
    local.spawn(accept(listener, local.clone(), shared.clone(), controls));
    local.spawn(tell_space(store.clone(), local.clone(), shared.clone()));
    let store = StorePort::open(&store, STORE_CALLS, STORE_ENDS);
    let _ = ready.send(Ok(Ready { store, shared, devices: parts.devices.clone() }));
    reactor.run(&parts.stop);
}

/// The thread of any other reactor.
fn other_reactor(
    id: usize,
    parts: &Parts,
    shared: &Arc<Shared>,
    store: RemoteStore,
    inbox: InboxReceiver<Control>,
    ready: &mpsc::Sender<Result<(), StartError>>,
) {
    let mut reactor = new_reactor(id, parts);
    let local = reactor.local();
    shared.add_reactor(id, reactor.stats(), parts.seats[id].clone());
    let context = context(id, &local, parts, shared, StoreHandle::There(Box::new(store)));
    let started = context.and_then(|context| serve_orders(&local, parts, context, None, inbox));
    let failed = started.is_err();
    let _ = ready.send(started);
    if !failed {
        reactor.run(&parts.stop);
    }
}

fn context(
    id: usize,
    local: &Local,
    parts: &Parts,
    shared: &Arc<Shared>,
    store: StoreHandle,
) -> Result<Rc<Context>, StartError> {
    let mut drives = Vec::with_capacity(parts.devices.len());
    for device in &parts.devices {
        let queue = device.open_queue(local).map_err(StartError::Queue)?;
        drives.push(DriveIo { device: device.clone(), queue });
    }
    let stats = shared.clone();
    Ok(Context::new(ContextParts {
        local: local.clone(),
        pool: parts.pool.clone(),
        drives,
        store,
        keys: key_ring(&parts.config),
        limits: session_limits(&parts.config),
        lendable: lendable(parts),
        nameable: nameable(parts),
        door: parts.door.as_deref().map(windows::told),
        stagings: parts.door.as_ref().map(|door| door.stagings().clone()),
        namespaces: parts.config.namespaces.clone(),
        identity: shared.identity,
        entropy: Box::new(drives::random),
        stats: Box::new(move || stats.wire_stats()),
        counters: shared.session_counters(id),
    }))
}

/// Bytes that one reactor's connections may be lent: all reactors together a quarter of the pool, and an
/// eighth of drives in memory. Who was lent something may keep it for as long as he likes. Memory that
/// drives see which are driven from here is not lent.
fn lendable(parts: &Parts) -> u64 {
    if parts.devices.iter().any(|device| device.kind() == Kind::Nvme) {
        return 0;
    }
    let (media, pool) = (in_memory(parts), parts.pool.stats().size / 4);
    let all = if media == 0 { pool } else { pool.min(media / 8) };
    all / parts.config.reactors.max(1) as u64
}

/// The same of what they are named: an eighth of drives in memory again, and nothing of the pool.
fn nameable(parts: &Parts) -> u64 {
    in_memory(parts) / 8 / parts.config.reactors.max(1) as u64
}

/// Bytes of drives in memory.
fn in_memory(parts: &Parts) -> u64 {
    let media = parts.devices.iter().filter_map(|device| device.memory());
    media.flat_map(|memory| memory.regions()).map(|(_, len)| len as u64).sum()
}

fn key_ring(config: &Config) -> KeyRing {
    let mut keys = KeyRing::default();
    for entry in &config.network.keys {
        keys.add(entry.id, entry.key.clone(), &entry.tenant);
    }
    keys
}

fn session_limits(config: &Config) -> SessionLimits {
    let limits = &config.limits;
    let milliseconds = |ms| Duration::from_millis(u64::from(ms));
    SessionLimits {
        credits: limits.credits,
        requests: limits.max_requests,
        deadline: milliseconds(limits.request_timeout_ms),
        lease: milliseconds(limits.lease_ms),
        value: limits.max_value,
        ..SessionLimits::default()
    }
}

/// Goes on with other settings; how many sessions end by them.
fn reload(
    context: &Rc<Context>,
    store: Option<&Rc<Store>>,
    door: Option<&Door>,
    config: &Config,
) -> u64 {
    if let Some(store) = store {
        store.tune(Tuning::of(&drives::store_config(config)));
        store.change_policy(drives::policy(config));
    }
    context.set_limits(session_limits(config));
    context.set_namespaces(config.namespaces.clone());
    context.set_door(door.map(windows::told));
    context.set_keys(key_ring(config)) as u64
}

/// Serves a reactor's inbox: connections, and the orders of stopping.
fn serve_orders(
    local: &Local,
    parts: &Parts,
    context: Rc<Context>,
    store: Option<Rc<Store>>,
    mut inbox: InboxReceiver<Control>,
) -> Result<(), StartError> {
    let pool = parts.pool.clone();
    let media = parts.devices.iter().filter_map(|device| device.memory());
    let memory: Vec<_> = std::iter::once(Memory::Pool(pool.clone())).chain(media).collect();
    let driver = parts.config.network.engine;
    let engine = Engine::new(local, driver, &memory).map_err(StartError::Engine)?;
    tracing::info!(reason = engine.reason(), "network engine");
    let door = parts.door.clone();
    let reactor = Orders { local: local.clone(), context, store, door, pool, engine };
    local.spawn(async move {
        while let Some(control) = inbox.recv().await {
            reactor.carry_out(control);
        }
    });
    Ok(())
}

/// What a reactor needs to carry orders out.
struct Orders {
    local: Local,
    context: Rc<Context>,
    /// On reactor 0.
    store: Option<Rc<Store>>,
    door: Option<Arc<Door>>,
    pool: Pool,
    engine: Rc<Engine>,
}

impl Orders {
    fn store(&self) -> &Rc<Store> {
        self.store.as_ref().expect("only reactor 0 has the store")
    }

    /// Short orders at once, long ones in a task of their own.
    fn carry_out(&self, control: Control) {
        let context = &self.context;
        match control {
            Control::Serve(accepted, token) => match self.engine.attach(accepted) {
                Ok(connection) => {
                    let serving = memkv_session::serve(context.clone(), connection);
                    self.local.spawn(async move {
                        serving.await;
                        drop(token);
                    });
                }
                Err(error) => tracing::warn!(%error, "connection lost before it was served"),
            },
            Control::Drain(done) => {
                let context = context.clone();
                self.local.spawn(async move {
                    context.drain().await;
                    let _ = done.send(());
                });
            }
            Control::Shutdown(done) => {
                let store = self.store().clone();
                self.local.spawn(async move {
                    store.shutdown().await;
                    let _ = done.send(());
                });
            }
            Control::Reload(config, done) => {
                let (store, door) = (self.store.as_ref(), self.door.as_deref());
                let _ = done.send(reload(context, store, door, &config));
            }
            Control::Join(device, answer) => {
                let joining = joins::join(self.store().clone(), device, self.pool.clone());
                self.local.spawn(async move {
                    let _ = answer.send(joining.await);
                });
            }
            Control::AddDrive(id, device, done) => {
                let _ = done.send(joins::add(&self.local, context, id, device));
            }
            Control::OpenDrive(id, added, done) => {
                match added {
                    Ok(()) => self.store().open_drive(id),
                    Err(why) => self.store().drive_failed(id, &why),
                }
                let _ = done.send(());
            }
            Control::DriveLost(id, why, done) => {
                self.store().drive_failed(id, &why);
                let _ = done.send(());
            }
            Control::Outstanding(id, answer) => {
                let _ = answer.send(context.outstanding(id));
            }
            Control::Queues(answer) => {
                let _ = answer.send(work::queue_loads(context, self.store.as_deref()));
            }
            Control::List(piece, answer) => {
                let store = self.store().clone();
                self.local.spawn(async move {
                    let ListPiece { from, looks, most, filter } = piece;
                    let _ = answer.send(store.list(from, looks, most, &filter).await);
                });
            }
            Control::Drives(answer) => {
                let _ = answer.send(self.store().drives());
            }
        }
    }
}

/// Tells the other reactors, whose clients may ask, how much room there is.
async fn tell_space(store: Rc<Store>, local: Local, shared: Arc<Shared>) {
    loop {
        shared.note_space(store.space());
        local.sleep(Duration::from_secs(1)).await;
    }
}

/// Deals connections out to the reactors, and refuses those beyond the limit. The reactor that has the
/// fewest gets the next, of several the first: beside the store a request needs no message to another core.
async fn accept(
    listener: Listener,
    local: Local,
    shared: Arc<Shared>,
    controls: Vec<InboxSender<Control>>,
) {
    let acceptor = listener.accept_queue(&local);
    // A token for each reactor, of which its connections hold copies.
    let tokens: Vec<Arc<()>> = controls.iter().map(|_| Arc::default()).collect();
    loop {
        let accepted = match acceptor.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, most likely: those that are open go on.
                tracing::warn!(%error, "cannot accept a connection");
                local.sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        if !shared.admit() {
            tracing::warn!(peer = %accepted.peer(), "connection refused: limits.max_connections");
            continue;
        }
        let next = fewest(&tokens);
        match controls[next].try_reserve() {
            Ok(permit) => permit.send(Control::Serve(accepted, tokens[next].clone())),
            Err(_) => tracing::warn!("connection refused: a reactor's inbox is full"),
        }
    }
}

/// The first of the reactors that have the fewest connections.
fn fewest(tokens: &[Arc<()>]) -> usize {
    (0..tokens.len()).min_by_key(|&at| Arc::strong_count(&tokens[at])).expect("there is a reactor")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_go_to_the_first_reactor_that_has_the_fewest() {
        let tokens: Vec<Arc<()>> = (0..3).map(|_| Arc::default()).collect();
        let mut held: Vec<Vec<Arc<()>>> = vec![Vec::new(); 3];
        let deal = |held: &mut Vec<Vec<Arc<()>>>| {
            let next = fewest(&tokens);
            held[next].push(tokens[next].clone());
            next
        };
        assert_eq!((0..5).map(|_| deal(&mut held)).collect::<Vec<_>>(), [0, 1, 2, 0, 1]);
        // Two of the first one's end: it gets the next two.
        held[0].clear();
        assert_eq!((0..3).map(|_| deal(&mut held)).collect::<Vec<_>>(), [0, 0, 2]);
    }
}
