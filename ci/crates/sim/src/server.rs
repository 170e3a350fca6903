//! The real server of a simulated machine: store on one reactor, sessions on all of them.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use memkv_block::{BlockDevice, IoError};
use memkv_dma::Pool;
use memkv_journal::{
    DriveUuid, FormatError, FormatOptions, Identity, KeyBytes, Layout, MembershipError, NodeUuid,
    OpenError, ReadError, Standing, Superblock, TrimConfig, format, membership, read_superblock,
};
use memkv_net::Connection;
use memkv_poller::{Local, Rng};
use memkv_session::{Context, ContextParts, DriveIo, KeyRing, SessionLimits, serve};
use memkv_sim::{SimDisk, World};
use memkv_store::{
    DriveId, EvictionConfig, JoinError, Newcomer, RecoverError, RecoveredDrive, RemoteStore,
    ScrubConfig, Store, StoreConfig, StoreHandle, StorePort,
};

use crate::options::{FaultMode, Options, SPACES};
use crate::stage::{Stage, credential};

/// How long a drive may leave a command unanswered: longer than the slowest that answers.
const DRIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Why the server does not start.
#[derive(Debug)]
#[allow(dead_code, reason = "shown by Debug in the words of a failure")]
pub enum StartError {
    Io(IoError),
    Superblock(ReadError),
    Journal(OpenError),
    Members(MembershipError),
    Join(RecoverError),
}

/// A store that was opened.
pub struct Opened {
    pub store: Rc<Store>,
    pub incarnation: u64,
    /// Its drives, in its order, watched over.
    pub devices: Vec<Arc<dyn BlockDevice>>,
    /// Drives that were at hand and are members no more.
    pub left_out: u64,
    /// Members that were not at hand, and were given up.
    pub given_up: u64,
}

/// A running server.
pub struct Server {
    pub store: Rc<Store>,
    contexts: Vec<Rc<Context>>,
    locals: Vec<Local>,
    /// The drives by their numbers.
    devices: RefCell<Vec<Arc<dyn BlockDevice>>>,
    /// Drives that failed, and that were readmitted or will never be.
    pub gone: RefCell<HashSet<DriveId>>,
}

/// How the disks of a run are formatted.
pub fn format_options(options: &Options) -> FormatOptions {
    FormatOptions { ring_bytes: Some(options.ring_bytes), ..FormatOptions::default() }
}

/// Where things lie on the disks of a run.
pub fn layout(options: &Options, disk: &SimDisk) -> Layout {
    Layout::plan(&disk.geometry(), &format_options(options)).expect("the disk is large enough")
}

/// The drive of a disk.
pub fn drive_uuid(seed: u64, disk: usize) -> DriveUuid {
    DriveUuid(uuid(seed, disk as u64 + 1))
}

fn uuid(seed: u64, number: u64) -> uuid::Uuid {
    let mut rng = Rng::seeded(seed ^ number << 32 ^ 0x1d);
    uuid::Uuid::from_u64_pair(rng.next_u64(), rng.next_u64())
}

/// Formats all disks as one node.
pub async fn format_all(
    local: Local,
    options: Rc<Options>,
    disks: Vec<SimDisk>,
    pool: Pool,
) -> Result<(), FormatError> {
    let members: Vec<_> = (0..disks.len()).map(|n| drive_uuid(options.seed, n)).collect();
    let mut secret = [0; 32];
    secret[..8].copy_from_slice(&options.seed.to_le_bytes());
    for (disk, &drive) in disks.iter().zip(&members) {
        let identity = Identity {
            node: NodeUuid(uuid(options.seed, 0)),
            drive,
            epoch: 1,
            members: members.clone(),
            secret,
        };
        let queue = disk.open_queue(&local).map_err(FormatError::Io)?;
        let options = format_options(&options);
        let _: Superblock = format(&*queue, &disk.geometry(), &pool, identity, options).await?;
    }
    Ok(())
}

/// Opens the journals of the members among `at_hand` and joins them into a store on this reactor. With
/// `degraded` members that are missing are given up.
pub async fn open(
    local: Local,
    options: Rc<Options>,
    at_hand: Vec<SimDisk>,
    degraded: bool,
    pool: Pool,
) -> Result<Opened, StartError> {
    let mut found = Vec::with_capacity(at_hand.len());
    for disk in &at_hand {
        let device = watched(disk);
        let queue = device.open_queue(&local).map_err(StartError::Io)?;
        let superblock = read_superblock(&*queue, &disk.geometry(), &pool).await;
        match superblock {
            Ok(superblock) => found.push((device, queue, superblock)),
            // It has not joined, or a crash came when the first of its copies was written.
            Err(ReadError::NotFormatted | ReadError::NoQuorum { .. })
                if options.joins || options.faults == FaultMode::Errors => {}
            Err(error) => return Err(StartError::Superblock(error)),
        }
    }
    let formatted = found.len();
    let identities: Vec<_> = found.iter().map(|(_, _, superblock)| &superblock.identity).collect();
    let resolved = membership::resolve(&identities, degraded).map_err(StartError::Members)?;
    let (mut drives, mut devices, mut incarnation) = (Vec::new(), Vec::new(), 0);
    for ((device, queue, mut superblock), standing) in found.into_iter().zip(&resolved.standings) {
        if *standing != Standing::Member {
            continue;
        }
        resolved.membership.enter(&mut superblock);
        let (journal, recovered) = memkv_journal::open(queue, &local, pool.clone(), superblock)
            .await
            .map_err(StartError::Journal)?;
        incarnation = incarnation.max(journal.superblock().incarnation);
        drives.push(RecoveredDrive { journal, recovered });
        devices.push(device);
    }
    let left_out = (formatted - devices.len()) as u64;
    let given_up = resolved.given_up.len() as u64;
    let config = StoreConfig {
        extent_bytes: options.extent,
        eviction: options.evicting.then_some(EvictionConfig {
            high: 0.9,
            low: 0.8,
            ..EvictionConfig::default()
        }),
        trim: options.trim.map(|(interval, extents)| TrimConfig {
            interval: Duration::from_micros(interval),
            extents,
        }),
        scrub: (options.scrub > 0).then_some(ScrubConfig {
            bytes_per_second: options.scrub,
            rest: Duration::from_millis(20),
        }),
        durability: options.durability,
        lease_max: Duration::from_secs(60),
        default_deadline: Duration::from_secs(10),
        remember: Duration::from_secs(60),
        remember_max: 4096,
    };
    let store = Store::recover(&local, config, options.policy.build(), drives)
        .await
        .map_err(StartError::Join)?;
    Ok(Opened { store, incarnation, devices, left_out, given_up })
}

/// Has a blank disk join the store, as the drive of this number.
pub async fn join(
    store: Rc<Store>,
    options: Rc<Options>,
    device: Arc<dyn BlockDevice>,
    number: usize,
    pool: Pool,
) -> Result<DriveId, JoinError> {
    let queue = device.open_queue(store.local()).map_err(|e| JoinError::Format(e.into()))?;
    let newcomer = Newcomer {
        queue,
        geometry: device.geometry(),
        pool,
        uuid: drive_uuid(options.seed, number),
        options: format_options(&options),
    };
    store.join(newcomer).await
}

/// A disk as the server opens it.
pub fn watched(disk: &SimDisk) -> Arc<dyn BlockDevice> {
    watch(Arc::new(disk.clone()))
}

/// A device for a use that begins.
pub fn watch(device: Arc<dyn BlockDevice>) -> Arc<dyn BlockDevice> {
    memkv_block::watch(device, DRIVE_TIMEOUT)
}

/// Tells the oracle how the store hashes the keys of the run.
pub fn hashes(store: &Store, stage: &Stage) -> Vec<(u128, u32)> {
    let hasher = store.hasher();
    let keys = stage.options.keys;
    let all = (0..SPACES.len() as u32 * keys).map(|key| {
        let (tenant, namespace) = SPACES[(key / keys) as usize];
        let whole = KeyBytes::new(tenant, namespace, stage.name(key)).expect("a short name");
        (hasher.hash(&whole).0, key)
    });
    all.collect()
}

impl Server {
    /// Opens every reactor for sessions.
    pub fn start(
        world: &World,
        options: &Options,
        pool: &Pool,
        opened: Opened,
    ) -> Result<Server, IoError> {
        let Opened { store, incarnation, devices, .. } = opened;
        let remote = StorePort::open(&store, 256, 4096);
        let mut contexts = Vec::new();
        let mut locals = Vec::new();
        for reactor in 0..world.reactors() {
            let local = world.local(reactor);
            let mut drives = Vec::with_capacity(devices.len());
            for device in &devices {
                let queue = device.open_queue(&local)?;
                drives.push(DriveIo { device: device.clone(), queue });
            }
            let here = reactor == options.store_reactor;
            let handle = handle(here, &store, &remote);
            contexts.push(context(options, &local, pool, drives, handle, incarnation));
            locals.push(local);
        }
        let (devices, gone) = (RefCell::new(devices), RefCell::default());
        Ok(Server { store, contexts, locals, devices, gone })
    }

    /// Closes a drive that failed: nothing is begun on it any more. The disk, to be used anew.
    pub fn close(&self, id: DriveId) -> Arc<dyn BlockDevice> {
        self.devices.borrow()[usize::from(id.0)].close().expect("drives are watched")
    }

    /// Commands that a drive has not answered.
    pub fn outstanding(&self, id: DriveId) -> usize {
        let of_sessions = self.contexts.iter().map(|context| context.outstanding(id));
        of_sessions.sum::<usize>() + self.store.drives()[usize::from(id.0)].outstanding
    }

    /// Notes the device of a drive that has joined.
    pub fn note_device(&self, id: DriveId, device: &Arc<dyn BlockDevice>) {
        let mut devices = self.devices.borrow_mut();
        assert_eq!(usize::from(id.0), devices.len(), "drives are numbered as they come");
        devices.push(device.clone());
    }

    /// Opens every reactor for a drive that has joined, and the drive for blocks.
    pub fn add_drive(&self, id: DriveId, device: &Arc<dyn BlockDevice>) -> Result<(), IoError> {
        self.note_device(id, device);
        for (context, local) in self.contexts.iter().zip(&self.locals) {
            let queue = device.open_queue(local)?;
            context.add_drive(id, DriveIo { device: device.clone(), queue });
        }
        self.store.open_drive(id);
        Ok(())
    }

    /// Serves a connection on one of the reactors.
    pub fn accept(&self, reactor: usize, connection: Rc<dyn Connection>) {
        let context = self.contexts[reactor].clone();
        self.locals[reactor].spawn(serve(context, connection));
    }

    /// Starts to stop in peace: drains the sessions, then leaves clean checkpoints. The cell says when
    /// that is done.
    pub fn stop(&self) -> Rc<Cell<bool>> {
        let done = Rc::new(Cell::new(false));
        let left = Rc::new(Cell::new(self.contexts.len()));
        for (context, local) in self.contexts.iter().zip(&self.locals) {
            let (context, left) = (context.clone(), left.clone());
            local.spawn(async move {
                context.drain().await;
                left.set(left.get() - 1);
            });
        }
        let (store, said) = (self.store.clone(), done.clone());
        let local = self.store.local().clone();
        self.store.local().spawn(async move {
            while left.get() > 0 {
                local.sleep(Duration::from_micros(100)).await;
            }
            store.shutdown().await;
            said.set(true);
        });
        done
    }

    /// Sums of the sessions' counters: bytes lent, and of those such as are kept for good.
    pub fn lent(&self) -> (u64, u64) {
        let counters = self.contexts.iter().map(|context| context.counters());
        counters
            .fold((0, 0), |sum, one| (sum.0 + one.lent_bytes.get(), sum.1 + one.lent_retired.get()))
    }

    /// Sums of the sessions' counters: (lost after reserve, lost after append, offers expired).
    pub fn losses(&self) -> (u64, u64, u64) {
        self.contexts.iter().map(|context| context.counters()).fold((0, 0, 0), |sum, one| {
            (
                sum.0 + one.lost_after_reserve.get(),
                sum.1 + one.lost_after_append.get(),
                sum.2 + one.offers_expired.get(),
            )
        })
    }
}

fn handle(here: bool, store: &Rc<Store>, remote: &RemoteStore) -> StoreHandle {
    if here {
        StoreHandle::Here(store.clone())
    } else {
        StoreHandle::There(Box::new(remote.clone()))
    }
}

fn context(
    options: &Options,
    local: &Local,
    pool: &Pool,
    drives: Vec<DriveIo>,
    store: StoreHandle,
    incarnation: u64,
) -> Rc<Context> {
    let mut keys = KeyRing::default();
    for (space, (tenant, _)) in SPACES.iter().enumerate().take(options.spaces()) {
        let (id, key) = credential(space);
        keys.add(id, key, tenant);
    }
    let nonces = RefCell::new(Rng::seeded(local.random()));
    Context::new(ContextParts {
        local: local.clone(),
        pool: pool.clone(),
        drives,
        store,
        keys,
        // No more than leaves runs for everybody in a pool as small as this.
        lendable: 48 << 10,
        nameable: 0,
        door: None,
        stagings: None,
        limits: SessionLimits {
            credits: options.credits,
            transfer: options.transfer,
            lend_min: 16 << 10,
            lend_piece: 16 << 10,
            ..SessionLimits::default()
        },
        namespaces: options.namespaces(),
        identity: memkv_session::Identity {
            server: options.seed.to_le_bytes().repeat(2).try_into().expect("16 bytes"),
            incarnation,
        },
        entropy: Box::new(move |bytes| {
            for chunk in bytes.chunks_mut(8) {
                let word = nonces.borrow_mut().next_u64().to_le_bytes();
                chunk.copy_from_slice(&word[..chunk.len()]);
            }
        }),
        stats: Box::new(Vec::new),
        counters: Arc::default(),
    })
}
