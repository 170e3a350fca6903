//! The real store and its journals on drives of a few hundred KiB.

use std::cell::RefCell;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use memkv_block::Io;
use memkv_dma::{Class, Hugepages, Pool, PoolConfig};
use memkv_journal::{
    DriveUuid, FormatOptions, Identity, KeyBytes, KeyLen, Layout, NodeUuid, Record, Recovered,
    RecoveryReport, membership,
};
use memkv_poller::{Local, Reactor, ReactorConfig, ReactorId, Rng};
use memkv_sim::SimClock;
use memkv_store::{
    Caller, EvictionConfig, Found, KeyHash, Lru, Mode, RecoveredDrive, ReserveRequest, Store,
    StoreConfig,
};
use memkv_wire::crc32c;
use uuid::Uuid;

use super::disk::{Disk, Image, SECTOR, Tape, geometry, let_go};
use super::workload::Delivery;

/// Bytes of an extent: one unit.
pub const EXTENT: u32 = 16 << 10;
/// Units of all drives together.
pub const UNITS: u64 = 48;
/// Unix seconds when a machine is new.
pub const NEW: u64 = 1_800_000_000;

/// Memory for one thread's machines.
pub fn pool() -> Pool {
    let config = PoolConfig { size: 32 << 20, chunk: 2 << 20, hugepages: Hugepages::Never };
    Pool::new(config).expect("memory for a small pool")
}

/// The smallest ring there is; keys are long, so that a frame's body does not end in the sector of
/// its header.
fn format_options() -> FormatOptions {
    FormatOptions {
        ring_bytes: Some(128 << 10),
        block_limit: Some(128),
        key_average: Some(400),
        ..FormatOptions::default()
    }
}

/// Where things lie on each of so many drives.
pub fn layout(drives: usize) -> Layout {
    let plan = |bytes| Layout::plan(&geometry(bytes), &format_options()).expect("large enough");
    let least = plan(16 << 20).data_offset;
    plan(least + UNITS / drives as u64 * u64::from(EXTENT))
}

/// The whole key of a number.
pub fn key(number: u8) -> KeyBytes {
    let name = format!("key {number} {}", "-".repeat(440));
    KeyBytes::new("tenant", "space", name.as_bytes()).expect("a key within bounds")
}

/// A value: the bytes follow from its number.
pub fn payload(value: usize, length: u32) -> Vec<u8> {
    let mut rng = Rng::seeded(value as u64 ^ 0xB10C);
    let mut bytes = vec![0; length as usize];
    for word in bytes.chunks_mut(8) {
        let drawn = rng.next_u64().to_le_bytes();
        word.copy_from_slice(&drawn[..word.len()]);
    }
    bytes
}

/// What a start read, beside what the store makes of it.
#[derive(Default)]
pub struct Read {
    /// Each drive's walk over its log.
    pub reports: Vec<RecoveryReport>,
    /// Each drive's live records.
    pub live: Vec<Vec<Record<KeyLen>>>,
}

/// A store that runs.
pub struct Node {
    pub reactor: Reactor,
    pub store: Rc<Store>,
    pub disks: Vec<Disk>,
    pub pool: Pool,
    pub read: Read,
}

type Opened = (Rc<Store>, Read);

fn reactor(clock: &SimClock) -> Reactor {
    let config = ReactorConfig { id: ReactorId(0), ..ReactorConfig::default() };
    Reactor::new(config, Rc::new(clock.clone()), Rng::seeded(7))
}

fn identity(number: usize, drives: usize) -> Identity {
    let drive = |n: usize| DriveUuid(Uuid::from_u128(n as u128 + 1));
    Identity {
        node: NodeUuid(Uuid::from_u128(0x40)),
        drive: drive(number),
        epoch: 1,
        members: (0..drives).map(drive).collect(),
        secret: [7; 32],
    }
}

/// New drives, formatted as one node.
pub fn format(drives: usize, pool: &Pool) -> Vec<Image> {
    let capacity = layout(drives).capacity;
    let mut reactor = reactor(&SimClock::new(NEW));
    let format = |number| {
        let (disk, pool) = (Disk::new(number, Image::new(capacity)), pool.clone());
        let formatted = disk.clone();
        let done = reactor.block_on(async move {
            let identity = identity(number, drives);
            memkv_journal::format(&disk, &disk.geometry(), &pool, identity, format_options()).await
        });
        done.expect("a drive in memory can be formatted");
        formatted.image()
    };
    (0..drives).map(format).collect()
}

async fn open(
    local: Local,
    disks: Vec<Disk>,
    pool: Pool,
    evicting: bool,
) -> Result<Opened, String> {
    let mut superblocks = Vec::new();
    for disk in &disks {
        let read = memkv_journal::read_superblock(disk, &disk.geometry(), &pool).await;
        superblocks.push(read.map_err(|error| format!("superblock: {error}"))?);
    }
    let identities: Vec<_> = superblocks.iter().map(|s| &s.identity).collect();
    membership::resolve(&identities, false).map_err(|error| format!("members: {error}"))?;
    let (mut drives, mut read) = (Vec::new(), Read::default());
    for (disk, superblock) in disks.into_iter().zip(superblocks) {
        let opened = memkv_journal::open(Rc::new(disk), &local, pool.clone(), superblock).await;
        let (journal, recovered): (_, Recovered) =
            opened.map_err(|error| format!("journal: {error}"))?;
        read.reports.push(recovered.report.clone());
        read.live.push(recovered.live.clone());
        let recovered = recovered.map(Found::from_iter);
        drives.push(RecoveredDrive { journal, recovered });
    }
    let config = StoreConfig {
        extent_bytes: EXTENT,
        eviction: evicting.then_some(EvictionConfig {
            high: 0.8,
            low: 0.6,
            ..EvictionConfig::default()
        }),
        ..StoreConfig::default()
    };
    let store = Store::recover(&local, config, Box::<Lru>::default(), drives).await;
    Ok((store.map_err(|error| format!("store: {error}"))?, read))
}

/// A future's result, once it is there.
pub type Answer<T> = Rc<RefCell<Option<T>>>;

/// Runs a future on a reactor's next steps.
pub fn spawn<T: 'static>(local: &Local, future: impl Future<Output = T> + 'static) -> Answer<T> {
    let answer = Answer::default();
    let into = Rc::clone(&answer);
    local.spawn(async move {
        let value = future.await;
        *into.borrow_mut() = Some(value);
    });
    answer
}

/// Steps the reactor until nothing moves, and lets what waits on the tape go, in this order.
/// `each` is called after every step, with the place of the tape before it.
pub fn settle(
    reactor: &mut Reactor,
    disks: &[Disk],
    tape: Option<&Rc<RefCell<Tape>>>,
    delivery: Delivery,
    mut each: impl FnMut(usize),
) {
    loop {
        let place = || tape.map_or(0, |tape| tape.borrow().events.len());
        let mut before = place();
        while reactor.step().is_busy() {
            each(before);
            before = place();
        }
        let Some(tape) = tape else { return };
        let waiting = tape.borrow().waiting();
        match (waiting, delivery) {
            (0, _) => return,
            (_, Delivery::Oldest) => let_go(tape, disks, 0),
            (_, Delivery::Newest) => let_go(tape, disks, waiting - 1),
            (_, Delivery::Together) => (0..waiting).for_each(|_| let_go(tape, disks, 0)),
        }
    }
}

impl Node {
    /// Starts on drives; with a tape, what the start writes is on it. Whoever looks at what a crash
    /// left starts without eviction, or blocks that came back could drive out others.
    ///
    /// # Errors
    /// Why the drives do not form a node.
    pub fn start(
        disks: &[Disk],
        clock: &SimClock,
        pool: &Pool,
        tape: Option<&Rc<RefCell<Tape>>>,
        delivery: Delivery,
        evicting: bool,
    ) -> Result<Node, String> {
        let mut reactor = reactor(clock);
        let local = reactor.local();
        let work = open(local.clone(), disks.to_vec(), pool.clone(), evicting);
        let opening = spawn(&local, work);
        settle(&mut reactor, disks, tape, delivery, |_| {});
        let opened = opening.borrow_mut().take();
        let (store, read) = opened.ok_or("the start came to a standstill")??;
        Ok(Node { reactor, store, disks: disks.to_vec(), pool: pool.clone(), read })
    }

    /// The hash of a key.
    pub fn hash(&self, number: u8) -> KeyHash {
        self.store.hasher().hash(&key(number))
    }
}

/// A put of one value.
#[derive(Clone, Copy, Debug)]
pub struct Put {
    pub key: u8,
    pub value: usize,
    pub length: u32,
    pub mode: Mode,
    pub ttl_seconds: u32,
}

fn caller(call: usize) -> Caller {
    Caller { client: 9, request: call as u64 + 1, item: 0 }
}

/// Reserves, writes the bytes and commits, as a session does: its generation, or why not.
pub async fn put(
    store: Rc<Store>,
    disks: Vec<Disk>,
    pool: Pool,
    call: usize,
    put: Put,
) -> Result<u64, String> {
    let hash = store.hasher().hash(&key(put.key));
    let request = ReserveRequest {
        hash,
        key: key(put.key),
        length: u64::from(put.length),
        mode: put.mode,
        ttl_seconds: put.ttl_seconds,
        parent: None,
        pin: std::time::Duration::ZERO,
        durable: false,
        deadline: store.local().now() + Duration::from_secs(5),
        caller: caller(call),
    };
    let grant = store.reserve(request).await.map_err(|refusal| format!("{refusal:?}"))?;
    let bytes = payload(put.value, put.length);
    let (mut at, mut crcs, mut writes) = (0, Vec::new(), Vec::new());
    for extent in &grant.extents {
        let piece = &bytes[at..at + extent.length as usize];
        at += piece.len();
        crcs.push(crc32c(piece));
        let padded = piece.len().next_multiple_of(SECTOR);
        let mut buf = pool.allocate_wait(Class::Receive, padded).await;
        buf.as_mut_slice()[..padded].fill(0);
        buf.as_mut_slice()[..piece.len()].copy_from_slice(piece);
        let disk: &dyn memkv_block::BlockQueue = &disks[usize::from(extent.drive.0)];
        writes.push(disk.submit(Io::write(extent.offset, padded, buf)));
    }
    for write in writes {
        write.await.result.map_err(|error| error.to_string())?;
    }
    let stored = store.commit(grant.id, &crcs).await;
    stored.map(|stored| stored.generation).map_err(|error| format!("{error:?}"))
}

/// Deletes a key.
pub async fn delete(store: Rc<Store>, call: usize, number: u8) -> Result<u64, String> {
    let hash = store.hasher().hash(&key(number));
    let deadline = store.local().now() + Duration::from_secs(5);
    match store.delete(hash, 0, deadline, caller(call)).await {
        memkv_store::Deleted::Gone { generation } => Ok(generation),
        memkv_store::Deleted::Missing(_) => Ok(0),
        other => Err(format!("{other:?}")),
    }
}

/// Writes a checkpoint of every drive.
pub async fn checkpoint(store: Rc<Store>) {
    for drive in store.drives() {
        store.checkpoint_unless(drive.id, drive.journal.checkpoints).await;
    }
}
