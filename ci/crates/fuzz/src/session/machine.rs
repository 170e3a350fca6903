//! The machine under the sessions: the real store over a simulated disk and a memory device, one
//! reactor stepped by hand, and the audit of what must have come back.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use memkv_block::{BlockDevice, Geometry};
use memkv_dma::{Class, Hugepages, Pool, PoolConfig};
use memkv_journal::{
    DriveUuid, FormatOptions, NodeUuid, RING_MIN, format, open as open_journal, read_superblock,
};
use memkv_poller::{Clock, Local, Rng};
use memkv_session::{Context, ContextParts, DriveIo, Identity, KeyRing, SessionLimits, serve};
use memkv_sim::{
    ClientEnd, DiskOptions, NetOptions, SimClock, SimDisk, SimNet, World, WorldOptions,
};
use memkv_store::{
    Durability, EvictionConfig, Lru, RecoveredDrive, Store, StoreConfig, StoreHandle,
};
use memkv_wire::SharedKey;

/// Bytes of one extent: the smallest there is, so that a value of 256 KiB has all 16.
pub const EXTENT: u32 = 16 << 10;
/// Inline puts that a client may have under way.
pub const CREDITS: u32 = 4;
/// Bytes of each of the two drives: little enough to be full now and then.
const DRIVE_BYTES: u64 = 1 << 20;
/// The longest that anything may take in simulated time: requests wait for keys for up to a minute,
/// and a connection has eight at a time.
const PATIENCE: u64 = 900;
/// Steps without an end are a loop.
const STEPS: u64 = 3_000_000;

/// The key that a client of a tenant connects with: its id and itself.
pub fn credential(tenant: u32) -> (u32, SharedKey) {
    (tenant, SharedKey::from_bytes([tenant as u8 + 0x40; 32]))
}

/// The tenant that is fuzzed.
pub const FUZZED: u32 = 1;
/// The tenant of the witness.
pub const WITNESS: u32 = 2;

/// A server that runs.
struct Server {
    store: Rc<Store>,
    context: Rc<Context>,
    /// Bytes of the pool that the journals keep for themselves.
    kept: u64,
    evicting: bool,
}

/// Drives, network, time, and a server that is started and stopped.
pub struct Machine {
    world: World,
    clock: SimClock,
    net: SimNet,
    disk: SimDisk,
    devices: Vec<Arc<dyn BlockDevice>>,
    pool: Pool,
    server: Option<Server>,
    lives: u64,
}

impl Machine {
    /// Formats the drives.
    pub fn new() -> Machine {
        let clock = SimClock::new(1_800_000_000);
        let net = NetOptions {
            latency: (1, 20),
            window: 64 << 10,
            split: 100_000,
            linger: 100_000,
            ..NetOptions::new(3)
        };
        let net = SimNet::new(net, clock.clone());
        let disk = SimDisk::new(DiskOptions::new("sim", DRIVE_BYTES, 4), clock.clone());
        let memory = memkv_block::memory(DRIVE_BYTES, Hugepages::Never).expect("1 MiB of memory");
        let pool = PoolConfig { size: 8 << 20, chunk: 2 << 20, hugepages: Hugepages::Never };
        let options = WorldOptions { reactors: 1, inbox_capacity: 64, seed: 5 };
        let mut world = World::new(options, clock.clone());
        world.add_source(Rc::new(disk.clone()));
        world.add_source(Rc::new(net.clone()));
        let mut machine = Machine {
            world,
            clock,
            net,
            devices: vec![Arc::new(disk.clone()), memory],
            disk,
            pool: Pool::new(pool).expect("8 MiB of memory"),
            server: None,
            lives: 0,
        };
        let formatting =
            format_all(machine.world.local(0), machine.devices.clone(), machine.pool.clone());
        machine.world.block_on(0, formatting).expect("formatting comes to an end");
        machine
    }

    /// Starts the server; every other of its lives evicts.
    pub fn start(&mut self) {
        let evicting = self.lives % 2 == 1;
        self.lives += 1;
        let local = self.world.local(0);
        let parts = (self.devices.clone(), self.pool.clone());
        let starting = start(local, parts, evicting, self.lives);
        let (store, context) = self.world.block_on(0, starting).expect("the server starts");
        self.let_pass(1_000);
        let kept = self.pool.stats().used.iter().sum();
        self.server = Some(Server { store, context, kept, evicting });
    }

    /// Whether blocks may be evicted in this life.
    pub fn evicts(&self) -> bool {
        self.server().evicting
    }

    fn server(&self) -> &Server {
        self.server.as_ref().expect("the server runs")
    }

    /// A connection to it.
    pub fn connect(&mut self) -> ClientEnd {
        let (end, connection) = self.net.connect(0);
        let context = self.server().context.clone();
        self.world.local(0).spawn(serve(context, connection));
        self.world.kick();
        end
    }

    /// Lets some things happen, not all.
    pub fn breathe(&mut self, steps: u64) {
        for _ in 0..steps {
            let limit = self.clock.now() + Duration::from_millis(1);
            if !self.world.step() && !self.world.advance(Some(limit)) {
                return;
            }
        }
    }

    /// Lets this much time pass.
    pub fn let_pass(&mut self, millis: u64) {
        let limit = self.clock.now() + Duration::from_millis(millis);
        while self.world.step() || self.world.advance(Some(limit)) {}
    }

    /// Runs until something is `done`.
    ///
    /// # Panics
    /// When it never is: a request without an answer, something that does not come back.
    pub fn until(&mut self, what: &str, mut done: impl FnMut() -> bool) {
        let limit = self.clock.now() + Duration::from_secs(PATIENCE);
        let mut steps = 0;
        while !done() {
            let moves = self.world.step() || self.world.advance(Some(limit));
            assert!(moves || done(), "{what}: not after {PATIENCE} seconds");
            steps += 1;
            assert!(steps < STEPS, "{what}: runs without an end");
        }
    }

    /// The simulated time.
    pub fn clock(&self) -> SimClock {
        self.clock.clone()
    }

    /// How many blocks were evicted in this life.
    pub fn evictions(&self) -> u64 {
        self.server().store.counters().evictions.get()
    }

    /// Waits until only `connections` are served, and everything that the others used is back:
    /// memory, reservations, keys, reads; no unit is taken but by a block that is stored.
    pub fn audit(&mut self, connections: usize) {
        let Server { store, context, kept, .. } = self.server();
        let (store, context, kept) = (store.clone(), context.clone(), *kept);
        self.until("every request of a connection that is gone ends", || {
            context.working() == connections
        });
        let pool = self.pool.clone();
        let left = || {
            let under_way = store.under_way();
            let used: u64 = pool.stats().used.iter().sum();
            let taken: u64 = store.drives().iter().map(|d| d.units_total - d.units_free).sum();
            (under_way, used, taken)
        };
        let at_rest = || {
            let (way, used, taken) = left();
            way.reservations + way.keys + way.leaving == 0
                && (way.readers, used, taken) == (0, kept, way.units)
        };
        let limit = self.clock.now() + Duration::from_secs(PATIENCE);
        while !at_rest() && (self.world.step() || self.world.advance(Some(limit))) {}
        assert!(at_rest(), "not everything came back, of {kept} bytes: {:?}", left());
        assert_eq!(self.disk.take_violations(), [], "commands met on one sector");
        assert!(store.drives().iter().all(|d| d.why_offline.is_none()), "no drive failed");
    }

    /// Stops the server in peace, whoever is connected, and takes its reactor away.
    pub fn stop(&mut self) {
        let Server { store, context, .. } = self.server();
        let (store, context) = (store.clone(), context.clone());
        let done = Rc::new(Cell::new(false));
        let (said, stopping) = (done.clone(), (store.clone(), context.clone()));
        self.world.local(0).spawn(async move {
            stopping.1.drain().await;
            assert_eq!(stopping.1.working(), 0, "nothing works after draining");
            stopping.0.shutdown().await;
            said.set(true);
        });
        self.world.kick();
        self.until("the server stops", || done.get());
        self.audit(0);
        drop((store, context, self.server.take()));
        self.world.stop();
        let stats = self.pool.stats();
        assert_eq!((stats.used, stats.waiting), ([0; Class::ALL.len()], 0), "all memory came back");
        self.world.start();
    }
}

async fn format_all(local: Local, devices: Vec<Arc<dyn BlockDevice>>, pool: Pool) {
    let uuid = |number: usize| uuid::Uuid::from_u64_pair(0x6d65_6d6b_7600, number as u64);
    let members: Vec<_> = (0..devices.len()).map(|n| DriveUuid(uuid(n + 1))).collect();
    for (device, &drive) in devices.iter().zip(&members) {
        let identity = memkv_journal::Identity {
            node: NodeUuid(uuid(0)),
            drive,
            epoch: 1,
            members: members.clone(),
            secret: [9; 32],
        };
        let options = FormatOptions { ring_bytes: Some(RING_MIN), ..FormatOptions::default() };
        let queue = device.open_queue(&local).expect("the drive is there");
        let geometry: Geometry = device.geometry();
        let formatted = format(&*queue, &geometry, &pool, identity, options).await;
        formatted.expect("the drive takes writes");
    }
}

async fn start(
    local: Local,
    (devices, pool): (Vec<Arc<dyn BlockDevice>>, Pool),
    evicting: bool,
    life: u64,
) -> (Rc<Store>, Rc<Context>) {
    let mut drives = Vec::new();
    let mut ios = Vec::new();
    for device in devices {
        let queue = device.open_queue(&local).expect("the drive is there");
        let superblock = read_superblock(&*queue, &device.geometry(), &pool).await;
        let superblock = superblock.expect("the drive was formatted");
        let opened = open_journal(queue, &local, pool.clone(), superblock).await;
        let (journal, recovered) = opened.expect("the server stopped in peace");
        assert!(recovered.clean, "a clean stop leaves a clean checkpoint");
        drives.push(RecoveredDrive { journal, recovered });
        let queue = device.open_queue(&local).expect("the drive is there");
        ios.push(DriveIo { device, queue });
    }
    let config = StoreConfig {
        extent_bytes: EXTENT,
        eviction: evicting.then_some(EvictionConfig {
            high: 0.9,
            low: 0.8,
            ..EvictionConfig::default()
        }),
        remember_max: 256,
        // As a node on memory has it, in some lives: it refuses puts that ask for more.
        durability: match life % 3 {
            0 => Durability::Memory,
            1 => Durability::Process,
            _ => Durability::Power,
        },
        ..StoreConfig::default()
    };
    let store = Store::recover(&local, config, Box::<Lru>::default(), drives).await;
    let store = store.expect("the drives belong together");
    let context = context(&local, pool, ios, &store, life);
    (store, context)
}

fn context(
    local: &Local,
    pool: Pool,
    drives: Vec<DriveIo>,
    store: &Rc<Store>,
    life: u64,
) -> Rc<Context> {
    let mut keys = KeyRing::default();
    for tenant in [FUZZED, WITNESS] {
        let (id, key) = credential(tenant);
        keys.add(id, key, &format!("tenant {tenant}"));
    }
    let limits = SessionLimits {
        credits: CREDITS,
        requests: 8,
        offers: 6,
        sending: 256 << 10,
        leases: 24,
        ..SessionLimits::default()
    };
    let nonces = RefCell::new(Rng::seeded(local.random()));
    Context::new(ContextParts {
        local: local.clone(),
        pool,
        drives,
        store: StoreHandle::Here(store.clone()),
        keys,
        limits,
        lendable: 4 << 20,
        nameable: 4 << 20,
        door: None,
        stagings: None,
        namespaces: Vec::new(),
        identity: Identity { server: [6; 16], incarnation: life },
        entropy: Box::new(move |bytes| {
            bytes.fill_with(|| nonces.borrow_mut().next_u64() as u8);
        }),
        stats: Box::new(|| vec![(1, 1), (u16::MAX, u64::MAX)]),
        counters: Arc::default(),
    })
}
