//! A machine of drives in memory that can be killed and started again, and short names for what
//! tests do often.

#![allow(dead_code, reason = "each test binary uses what it needs")]

use std::cell::Cell;
use std::collections::VecDeque;
use std::future::Future;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use memkv_block::{
    BlockQueue, Completer, Completion, Done, Geometry, Io, IoBuf, IoError, Op, completion,
};
use memkv_dma::{Hugepages, Pool, PoolConfig};
use memkv_journal::{
    DriveUuid, FormatOptions, Identity, Journal, KeyBytes, NodeUuid, Standing, membership,
};
use memkv_poller::{Clock, Instant, Local, Reactor, ReactorConfig, ReactorId, Rng, SystemClock};
use memkv_store::{
    Caller, CommitError, EvictionConfig, KeyHash, Lru, Mode, RecoverError, RecoveredDrive, Refusal,
    ReservationGrant, ReserveRequest, Store, StoreConfig, Stored,
};
use uuid::Uuid;

/// Bytes of a unit, and of an extent here: two units.
pub const UNIT: u32 = 16 << 10;
pub const EXTENT: u32 = 2 * UNIT;

#[derive(Default)]
struct Medium {
    image: Vec<u8>,
    /// Commands wait until they are let go.
    held: Option<VecDeque<(Io, Completer)>>,
    /// Only those from this offset on.
    held_from: u64,
    /// Only flushes.
    held_flushes: bool,
    broken: bool,
    writes: u64,
    trims: Vec<(u64, u64)>,
    /// A byte that cannot be read.
    bad: Option<u64>,
}

/// A drive: clones are the same one.
#[derive(Clone, Default)]
pub struct Disk(Arc<Mutex<Medium>>);

impl Disk {
    pub fn new(bytes: usize) -> Disk {
        let medium = Medium { image: vec![0; bytes], ..Medium::default() };
        Disk(Arc::new(Mutex::new(medium)))
    }

    fn medium(&self) -> MutexGuard<'_, Medium> {
        self.0.lock().expect("no panic under the lock")
    }

    pub fn geometry(&self) -> Geometry {
        let capacity = self.medium().image.len() as u64;
        Geometry { capacity, sector: 512, max_transfer: 4 << 20 }
    }

    /// From now on commands wait.
    pub fn hold(&self) {
        self.hold_from(0);
    }

    /// From now on commands from this offset on wait.
    pub fn hold_from(&self, offset: u64) {
        let mut medium = self.medium();
        medium.held.get_or_insert_default();
        (medium.held_from, medium.held_flushes) = (offset, false);
    }

    /// From now on flushes wait, and nothing else.
    pub fn hold_flushes(&self) {
        self.hold_from(0);
        self.medium().held_flushes = true;
    }

    /// How many wait.
    pub fn holds(&self) -> usize {
        self.medium().held.as_ref().map_or(0, VecDeque::len)
    }

    /// The one that waits longest is carried out.
    pub fn let_one_go(&self) {
        let next = self.medium().held.as_mut().and_then(VecDeque::pop_front);
        let (io, completer) = next.expect("one waits");
        completer.complete(self.carry_out(io));
    }

    /// All that wait are carried out, and later ones at once.
    pub fn let_go(&self) {
        let held = self.medium().held.take().unwrap_or_default();
        for (io, completer) in held {
            completer.complete(self.carry_out(io));
        }
    }

    /// The process was killed: what waits never reaches the drive.
    fn forget(&self) {
        let held = self.medium().held.take();
        drop(held);
    }

    /// Every command fails from now on, or works again.
    pub fn set_broken(&self, broken: bool) {
        self.medium().broken = broken;
    }

    /// The bytes at an offset.
    pub fn peek(&self, offset: usize, len: usize) -> Vec<u8> {
        self.medium().image[offset..offset + len].to_vec()
    }

    /// Changes bytes behind everybody's back.
    pub fn set_bytes(&self, offset: u64, bytes: &[u8]) {
        self.medium().image[offset as usize..][..bytes.len()].copy_from_slice(bytes);
    }

    /// This byte cannot be read from now on.
    pub fn set_bad(&self, offset: u64) {
        self.medium().bad = Some(offset);
    }

    /// Ranges that were deallocated: first byte, bytes.
    pub fn trims(&self) -> Vec<(u64, u64)> {
        self.medium().trims.clone()
    }

    pub fn writes(&self) -> u64 {
        self.medium().writes
    }

    fn carry_out(&self, mut io: Io) -> Done {
        let checked = self.geometry().check(&io);
        let result = checked.and_then(|()| self.medium().transfer(&mut io));
        Done::of(io, result)
    }
}

impl Medium {
    fn transfer(&mut self, io: &mut Io) -> Result<(), IoError> {
        if self.broken {
            return Err(IoError::Injected("the drive is broken"));
        }
        let (offset, len, at) = (io.offset as usize, io.len as usize, io.buf_at);
        let touches = |bad: u64| (io.offset..io.offset + io.len).contains(&bad);
        if io.op == Op::Read && self.bad.is_some_and(touches) {
            return Err(IoError::Injected("a bad sector"));
        }
        match (io.op, &mut io.buf) {
            (Op::Read, Some(IoBuf::Exclusive(buf))) => {
                buf.as_mut_slice()[at..at + len].copy_from_slice(&self.image[offset..offset + len]);
            }
            (Op::Write | Op::WriteFlush, Some(buf)) => {
                self.image[offset..offset + len].copy_from_slice(&buf.as_slice()[at..at + len]);
                self.writes += 1;
            }
            (Op::Deallocate, _) => {
                self.image[offset..offset + len].fill(0xDA);
                self.trims.push((io.offset, io.len));
            }
            _ => {}
        }
        Ok(())
    }
}

impl BlockQueue for Disk {
    fn submit(&self, mut io: Io) -> Completion {
        let (completer, completion) = completion();
        let mut medium = self.medium();
        if io.op == Op::WriteFlush && medium.held.is_some() && medium.held_flushes {
            // It is written, and its flush waits like any other.
            let written = medium.transfer(&mut io);
            io.op = Op::Flush;
            if let Err(error) = written {
                drop(medium);
                completer.complete(Done::of(io, Err(error)));
                return completion;
            }
        }
        if io.offset >= medium.held_from
            && (io.op == Op::Flush || !medium.held_flushes)
            && let Some(held) = &mut medium.held
        {
            held.push_back((io, completer));
            return completion;
        }
        drop(medium);
        completer.complete(self.carry_out(io));
        completion
    }

    fn outstanding(&self) -> usize {
        self.holds()
    }
}

/// The system's clock, with a calendar that tests may turn; and it may be put forward.
#[derive(Clone)]
pub struct TestClock(Rc<Cell<u64>>, Rc<Cell<Duration>>);

impl Clock for TestClock {
    fn now(&self) -> Instant {
        SystemClock.now() + self.1.get()
    }

    fn unix_seconds(&self) -> u64 {
        self.0.get()
    }
}

/// The drives of a node and how its store is set; starts it as often as it is asked.
pub struct Machine {
    pub disks: Vec<Disk>,
    pub config: StoreConfig,
    pub calendar: TestClock,
    pool: Pool,
    seed: Cell<u64>,
}

/// Where the checkpoints begin behind the smallest ring.
pub const BEHIND_TINY_RING: u64 = (64 + 128) << 10;

/// The smallest ring there is.
pub fn tiny_ring() -> FormatOptions {
    FormatOptions { ring_bytes: Some(128 << 10), ..FormatOptions::default() }
}

pub fn config() -> StoreConfig {
    StoreConfig { extent_bytes: EXTENT, ..StoreConfig::default() }
}

pub fn without_eviction() -> StoreConfig {
    StoreConfig { eviction: None, ..config() }
}

pub fn watermarks(high: f64, low: f64) -> StoreConfig {
    StoreConfig {
        eviction: Some(EvictionConfig { high, low, ..EvictionConfig::default() }),
        ..config()
    }
}

impl Machine {
    /// Drives of so many bytes each, formatted as one node.
    pub fn new(drives: usize, bytes: usize, options: FormatOptions, config: StoreConfig) -> Self {
        Self::of_node(0x40, &vec![bytes; drives], options, config)
    }

    /// Drives of these bytes, under a node's number.
    pub fn of_node(
        node: u128,
        bytes: &[usize],
        options: FormatOptions,
        config: StoreConfig,
    ) -> Self {
        let pool = PoolConfig { size: 16 << 20, chunk: 2 << 20, hugepages: Hugepages::Never };
        let machine = Machine {
            disks: bytes.iter().map(|&bytes| Disk::new(bytes)).collect(),
            config,
            calendar: TestClock(Rc::new(Cell::new(1_800_000_000)), Rc::default()),
            pool: Pool::new(pool).expect("a small pool"),
            seed: Cell::new(1),
        };
        let members: Vec<_> =
            (0..bytes.len()).map(|n| DriveUuid(Uuid::from_u128(n as u128))).collect();
        let mut reactor = machine.reactor(0);
        for (disk, &drive) in machine.disks.iter().zip(&members) {
            let (disk, pool) = (disk.clone(), machine.pool.clone());
            let node = NodeUuid(Uuid::from_u128(node));
            let secret = [7; 32];
            let identity = Identity { node, drive, epoch: 1, members: members.clone(), secret };
            reactor
                .block_on(async move {
                    let geometry = disk.geometry();
                    memkv_journal::format(&disk, &geometry, &pool, identity, options).await
                })
                .expect("the drive can be formatted");
        }
        machine
    }

    pub fn pool(&self) -> Pool {
        self.pool.clone()
    }

    /// Another reactor of this machine.
    pub fn reactor(&self, id: u16) -> Reactor {
        self.seed.set(self.seed.get() + 1);
        let config = ReactorConfig { id: ReactorId(id), ..ReactorConfig::default() };
        Reactor::new(config, Rc::new(self.calendar.clone()), Rng::seeded(self.seed.get()))
    }

    pub fn turn_calendar(&self, seconds: u64) {
        self.calendar.0.set(self.calendar.0.get().wrapping_add(seconds));
    }

    /// So much time passes at once.
    pub fn pass(&self, time: Duration) {
        self.calendar.1.set(self.calendar.1.get() + time);
    }

    pub fn try_start(&self) -> Result<Node, RecoverError> {
        self.start_on(self.disks.clone(), false)
    }

    /// Starts on these disks; `degraded`: without those that are missing.
    pub fn start_on(&self, disks: Vec<Disk>, degraded: bool) -> Result<Node, RecoverError> {
        let mut reactor = self.reactor(0);
        let (local, pool) = (reactor.local(), self.pool.clone());
        let config = self.config.clone();
        let store = reactor.block_on(async move {
            let mut superblocks = Vec::new();
            for disk in &disks {
                let superblock = memkv_journal::read_superblock(disk, &disk.geometry(), &pool)
                    .await
                    .expect("a formatted drive");
                superblocks.push(superblock);
            }
            let identities: Vec<_> = superblocks.iter().map(|s| &s.identity).collect();
            let resolved = membership::resolve(&identities, degraded)?;
            let mut drives = Vec::new();
            for ((disk, mut superblock), standing) in
                disks.into_iter().zip(superblocks).zip(&resolved.standings)
            {
                if *standing != Standing::Member {
                    continue;
                }
                if degraded {
                    resolved.membership.enter(&mut superblock);
                }
                let (journal, recovered) =
                    memkv_journal::open(Rc::new(disk), &local, pool.clone(), superblock)
                        .await
                        .expect("the journal opens");
                drives.push(RecoveredDrive { journal, recovered });
            }
            let journals: Vec<_> = drives.iter().map(|d| d.journal.clone()).collect();
            let store = Store::recover(&local, config, Box::<Lru>::default(), drives).await?;
            Ok::<_, RecoverError>((store, journals))
        });
        let (store, journals) = store?;
        Ok(Node { reactor, store, journals })
    }

    pub fn start(&self) -> Node {
        self.try_start().expect("the drives form a node")
    }

    /// Kills a node: nothing of it reaches the drives any more.
    pub fn kill(&self, node: Node) {
        let Node { reactor, store, journals } = node;
        self.disks.iter().for_each(Disk::forget);
        drop((store, journals));
        drop(reactor);
    }

    /// Kills a node and starts the next one.
    pub fn restart(&self, node: Node) -> Node {
        self.kill(node);
        self.start()
    }
}

/// A started store and its reactor.
pub struct Node {
    pub reactor: Reactor,
    pub store: Rc<Store>,
    /// To write behind the store's back.
    pub journals: Vec<Rc<Journal>>,
}

impl Node {
    pub fn run<T: 'static>(&mut self, future: impl Future<Output = T> + 'static) -> T {
        self.reactor.block_on(future)
    }

    pub fn local(&self) -> Local {
        self.reactor.local()
    }

    /// Turns the wheel until nothing moves.
    pub fn settle(&mut self) {
        while self.reactor.step().is_busy() {}
    }

    pub fn hash(&self, name: &str) -> KeyHash {
        self.store.hasher().hash(&key(name))
    }

    pub fn reserve(&mut self, request: ReserveRequest) -> Result<ReservationGrant, Refusal> {
        let store = self.store.clone();
        self.run(async move { store.reserve(request).await })
    }

    pub fn commit(&mut self, grant: ReservationGrant, crc: u32) -> Result<Stored, CommitError> {
        let store = self.store.clone();
        let crcs = vec![crc; grant.extents.len()];
        self.run(async move { store.commit(grant.id, &crcs).await })
    }

    /// Reserves and commits; the generation.
    pub fn put(&mut self, name: &str, length: u64) -> u64 {
        let request = put(&self.store, name, length);
        self.put_as(request).expect("there is room")
    }

    pub fn put_as(&mut self, request: ReserveRequest) -> Result<u64, Refusal> {
        let grant = self.reserve(request)?;
        Ok(self.commit(grant, 0xC0DE).expect("the drives work").generation)
    }

    pub fn delete(&mut self, name: &str) -> memkv_store::Deleted {
        self.delete_generation(name, 0)
    }

    pub fn delete_generation(&mut self, name: &str, generation: u64) -> memkv_store::Deleted {
        let (store, hash) = (self.store.clone(), self.hash(name));
        self.run(async move {
            let deadline = store.local().now() + Duration::from_secs(5);
            store.delete(hash, generation, deadline, caller()).await
        })
    }

    /// The generation that is readable under a key.
    pub fn generation(&self, name: &str) -> Option<u64> {
        self.existing(name).map(|existing| existing.generation).ok()
    }

    pub fn existing(&self, name: &str) -> Result<memkv_store::Existing, memkv_store::Miss> {
        self.store.exists(&[self.hash(name)]).remove(0)
    }

    pub fn free_units(&self) -> u64 {
        self.store.drives().iter().map(|drive| drive.units_free).sum()
    }
}

pub fn key(name: &str) -> KeyBytes {
    KeyBytes::new("tenant", "space", name.as_bytes()).expect("a short name")
}

/// A caller like no other.
pub fn caller() -> Caller {
    thread_local!(static NEXT: Cell<u64> = const { Cell::new(1) });
    let request = NEXT.get();
    NEXT.set(request + 1);
    Caller { client: 9, request, item: 0 }
}

/// A put of whatever is there, with five seconds to wait for its key.
pub fn put(store: &Store, name: &str, length: u64) -> ReserveRequest {
    ReserveRequest {
        hash: store.hasher().hash(&key(name)),
        key: key(name),
        length,
        mode: Mode::Replace,
        ttl_seconds: 0,
        parent: None,
        pin: std::time::Duration::ZERO,
        durable: false,
        deadline: store.local().now() + Duration::from_secs(5),
        caller: caller(),
    }
}
