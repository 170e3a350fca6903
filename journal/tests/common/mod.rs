//! A drive in memory that remembers what was done to it, and short names for what tests do often.

#![allow(dead_code, reason = "each test binary uses what it needs")]

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use memkv_block::{
    BlockQueue, Completer, Completion, Done, Geometry, Io, IoBuf, IoError, Op, completion,
};
use memkv_dma::{Hugepages, Pool, PoolConfig};
use memkv_journal::{
    BlockId, DriveUuid, FormatOptions, Identity, Journal, KeyBytes, KeyLen, KeyPart, NodeUuid,
    OpenError, PartRef, Record, Recovered, RecoveryReport, UNIT, UnitRange,
};
use memkv_poller::{Clock, Instant, Local, Reactor, ReactorConfig, Rng};
use uuid::Uuid;

pub const SECTOR: usize = 512;

/// What happened to the drive, in order.
#[derive(Clone)]
pub enum Entry {
    Write { offset: usize, data: Rc<[u8]> },
    Flush,
}

#[derive(Default)]
pub struct Medium {
    pub image: Vec<u8>,
    pub log: Vec<Entry>,
    /// Writes that still succeed; then all fail.
    pub writes_left: Option<usize>,
    /// Pages that cannot be read.
    pub bad_pages: BTreeSet<u64>,
    pub offline: bool,
    /// Commands wait until they are let go.
    pub held: Option<VecDeque<(Io, Completer)>>,
    pub writes: usize,
    /// Ranges that were deallocated: first byte, bytes.
    pub trims: Vec<(u64, u64)>,
    /// What deallocating ends with, if not well.
    pub trim_error: Option<fn() -> IoError>,
}

/// The drive: a clone is the same one.
#[derive(Clone, Default)]
pub struct Disk(pub Rc<RefCell<Medium>>);

impl Disk {
    pub fn new(bytes: usize) -> Disk {
        Disk::of(vec![0; bytes])
    }

    pub fn of(image: Vec<u8>) -> Disk {
        Disk(Rc::new(RefCell::new(Medium { image, ..Medium::default() })))
    }

    pub fn geometry(&self) -> Geometry {
        let capacity = self.0.borrow().image.len() as u64;
        Geometry { capacity, sector: SECTOR as u32, max_transfer: 4 << 20 }
    }

    pub fn queue(&self) -> Rc<dyn BlockQueue> {
        Rc::new(self.clone())
    }

    pub fn image(&self) -> Vec<u8> {
        self.0.borrow().image.clone()
    }

    pub fn log_len(&self) -> usize {
        self.0.borrow().log.len()
    }

    /// Changes bytes behind everybody's back.
    pub fn damage(&self, offset: u64, len: usize) {
        let image = &mut self.0.borrow_mut().image;
        for byte in &mut image[offset as usize..offset as usize + len] {
            *byte ^= 0x5A;
        }
    }

    pub fn hold(&self) {
        self.0.borrow_mut().held = Some(VecDeque::new());
    }

    /// Lets the oldest held command go; whether there was one.
    pub fn let_one_go(&self) -> bool {
        let next = self.0.borrow_mut().held.as_mut().and_then(VecDeque::pop_front);
        let Some((mut io, completer)) = next else { return false };
        let result = self.carry_out(&mut io);
        completer.complete(Done::of(io, result));
        true
    }

    /// Ends all held commands as those of a drive that stalls, which keeps what they came with.
    pub fn stall(&self) -> Vec<Io> {
        let held = self.0.borrow_mut().held.as_mut().map(std::mem::take).unwrap_or_default();
        let keep = |(io, completer): (Io, Completer)| {
            let result = Err(IoError::Stalled(Duration::from_secs(10)));
            completer.complete(Done { result, buf: None });
            io
        };
        held.into_iter().map(keep).collect()
    }

    fn carry_out(&self, io: &mut Io) -> Result<(), IoError> {
        self.geometry().check(io)?;
        let medium = &mut *self.0.borrow_mut();
        if medium.offline {
            return Err(IoError::Offline);
        }
        let (offset, len, at) = (io.offset as usize, io.len as usize, io.buf_at);
        match (io.op, &mut io.buf) {
            (Op::Read, Some(IoBuf::Exclusive(buf))) => {
                let pages = io.offset / 4096..(io.offset + io.len).div_ceil(4096);
                if medium.bad_pages.range(pages).next().is_some() {
                    return Err(IoError::Injected("unreadable page"));
                }
                let to = &mut buf.as_mut_slice()[at..at + len];
                to.copy_from_slice(&medium.image[offset..offset + len]);
            }
            (op @ (Op::Write | Op::WriteFlush), Some(buf)) => {
                if let Some(left) = &mut medium.writes_left {
                    *left = left.checked_sub(1).ok_or(IoError::Injected("write failed"))?;
                }
                let data: Rc<[u8]> = buf.as_slice()[at..at + len].into();
                medium.image[offset..offset + len].copy_from_slice(&data);
                medium.log.push(Entry::Write { offset, data });
                medium.writes += 1;
                if op == Op::WriteFlush {
                    medium.log.push(Entry::Flush);
                }
            }
            (Op::Flush, _) => medium.log.push(Entry::Flush),
            (Op::Deallocate, _) => {
                medium.trims.push((io.offset, io.len));
                if let Some(error) = medium.trim_error {
                    return Err(error());
                }
                medium.image[offset..offset + len].fill(0xDA);
            }
            (op, _) => panic!("the journal does not use {op:?} like this"),
        }
        Ok(())
    }
}

impl BlockQueue for Disk {
    fn submit(&self, mut io: Io) -> Completion {
        let (completer, completion) = completion();
        if let Some(held) = &mut self.0.borrow_mut().held {
            held.push_back((io, completer));
            return completion;
        }
        let result = self.carry_out(&mut io);
        completer.complete(Done::of(io, result));
        completion
    }

    fn outstanding(&self) -> usize {
        self.0.borrow().held.as_ref().map_or(0, VecDeque::len)
    }
}

/// Stands still until it is moved, so that every run writes the same bytes.
struct StoppedClock(Rc<Cell<u64>>);

impl Clock for StoppedClock {
    fn now(&self) -> Instant {
        Instant::from_nanos(self.0.get())
    }

    fn unix_seconds(&self) -> u64 {
        1_800_000_000
    }
}

/// A reactor and a pool, for any number of drives one after the other.
pub struct Bench {
    pub reactor: Reactor,
    pub pool: Pool,
    nanos: Rc<Cell<u64>>,
}

impl Bench {
    pub fn new() -> Bench {
        let config = PoolConfig { size: 32 << 20, chunk: 2 << 20, hugepages: Hugepages::Never };
        let pool = Pool::new(config).expect("a pool of ordinary pages");
        let nanos = Rc::new(Cell::new(0));
        let clock = Rc::new(StoppedClock(Rc::clone(&nanos)));
        let reactor = Reactor::new(ReactorConfig::default(), clock, Rng::seeded(1));
        Bench { reactor, pool, nanos }
    }

    /// Lets time pass, and whoever waited for it have its turn.
    pub fn pass(&mut self, time: Duration) {
        self.nanos.set(self.nanos.get() + time.as_nanos() as u64);
        self.settle();
    }

    pub fn local(&self) -> Local {
        self.reactor.local()
    }

    pub fn run<T: 'static>(&mut self, future: impl Future<Output = T> + 'static) -> T {
        self.reactor.block_on(future)
    }

    /// Turns the wheel until nothing moves.
    pub fn settle(&mut self) {
        while self.reactor.step().is_busy() {}
    }

    pub fn format(&mut self, disk: &Disk, options: FormatOptions) {
        let (disk, pool) = (disk.clone(), self.pool.clone());
        self.run(async move {
            let geometry = disk.geometry();
            memkv_journal::format(&disk, &geometry, &pool, identity(), options).await
        })
        .expect("the drive can be formatted");
    }

    /// Reads all there is, keys too, and opens the journal, which must come to the same. `live` has
    /// the keys, where they can be read.
    pub fn try_open(&mut self, disk: &Disk) -> Result<(Rc<Journal>, Opened), Refused> {
        let (disk, pool, local) = (disk.clone(), self.pool.clone(), self.local());
        self.run(async move {
            let geometry = disk.geometry();
            let superblock = memkv_journal::read_superblock(&disk, &geometry, &pool).await?;
            let whole = memkv_journal::read_contents(&disk, &local, &pool, &superblock).await;
            let opened = memkv_journal::open(disk.queue(), &local, pool, superblock).await;
            let (journal, recovered) = opened?;
            let live = match whole {
                Ok(whole) if whole.report == recovered.report => {
                    let without: Vec<_> = whole.live.iter().map(Record::without_key).collect();
                    assert_eq!(recovered.live, without, "what lives does not hang on keys");
                    Some(whole.live)
                }
                _ => None,
            };
            let Recovered { clean, generation_high, clock_high, report, live: rows } = recovered;
            let live = live.unwrap_or_default();
            Ok((journal, Opened { live, rows, clean, generation_high, clock_high, report }))
        })
    }

    pub fn open(&mut self, disk: &Disk) -> (Rc<Journal>, Opened) {
        self.try_open(disk).expect("the drive opens")
    }

    /// Appends and applies at once.
    pub fn append(&mut self, journal: &Rc<Journal>, records: Vec<Record>) {
        let append = journal.append(records);
        drop(self.run(append).expect("there is room and the drive works"));
    }

    pub fn checkpoint(&mut self, journal: &Rc<Journal>, live: Vec<Record>, clean: bool) {
        let journal = Rc::clone(journal);
        self.run(async move {
            let start = journal.begin_checkpoint();
            journal.write_checkpoint(start, live, clean, 0, 0).await
        })
        .expect("the checkpoint fits and the drive works");
    }
}

/// A journal's start, with the keys of what lives.
#[derive(Debug)]
pub struct Opened {
    pub live: Vec<Record>,
    pub rows: Vec<Record<KeyLen>>,
    pub clean: bool,
    pub generation_high: u64,
    pub clock_high: u64,
    pub report: RecoveryReport,
}

/// Either step of opening a drive.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error(transparent)]
    Superblock(#[from] memkv_journal::ReadError),
    #[error(transparent)]
    Open(#[from] OpenError),
}

pub fn identity() -> Identity {
    let drive = DriveUuid(Uuid::from_u128(0xD0));
    Identity {
        node: NodeUuid(Uuid::from_u128(0x40)),
        drive,
        epoch: 3,
        members: vec![drive, DriveUuid(Uuid::from_u128(0xD1))],
        secret: [7; 32],
    }
}

/// The smallest ring there is, and columns of a few hundred rows.
pub fn tiny() -> FormatOptions {
    FormatOptions {
        ring_bytes: Some(128 << 10),
        block_limit: Some(300),
        key_average: Some(24),
        ..FormatOptions::default()
    }
}

pub fn tiny_disk() -> Disk {
    Disk::new(1 << 20)
}

pub fn id(hash: u64) -> BlockId {
    BlockId { hash: u128::from(hash) << 64 | 0xB10C, generation: hash }
}

pub fn put(hash: u64, extent: UnitRange) -> Record {
    Record::Put {
        block: id(hash),
        key: KeyBytes::new("t", "n", format!("key-{hash}").as_bytes()).expect("a short key"),
        extent,
        length: extent.bytes() as u32 - 5,
        crc: hash as u32 ^ 0xC0DE,
        expires: 0,
        flags: 1,
    }
}

pub fn unit(start: u32) -> UnitRange {
    UnitRange { start, count: 1 }
}

pub fn remove(hash: u64) -> Record {
    Record::Remove { block: id(hash) }
}

/// A block of two parts, both here: its head and parts.
pub fn in_parts(hash: u64, first: UnitRange, second: UnitRange) -> Vec<Record> {
    let drive = identity().drive;
    let length = UNIT as u32;
    let part = |index: u16, extent| Record::Part {
        block: id(hash),
        index,
        extent,
        length,
        crc: u32::from(index) + 1,
    };
    let head = Record::Head {
        block: id(hash),
        key: KeyBytes::new("t", "n", format!("big-{hash}").as_bytes()).expect("a short key"),
        length: 2 * u64::from(length),
        expires: 1_900_000_000,
        flags: 0,
        parts: [PartRef { drive, length, crc: 1 }, PartRef { drive, length, crc: 2 }].into(),
    };
    vec![part(0, first), part(1, second), head]
}

/// What tells two live records apart: block, kind and part.
pub type Place = (BlockId, u8, u16);

pub fn place(record: &Record) -> Place {
    match record {
        Record::Put { block, .. } => (*block, 0, 0),
        Record::Head { block, .. } => (*block, 1, 0),
        Record::Part { block, index, .. } => (*block, 2, *index),
        Record::Remove { .. } => panic!("a Remove does not live"),
    }
}

/// What lives after some records, by the plainest reading of what they mean.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Model(pub BTreeMap<Place, Record>);

impl Model {
    pub fn apply(&mut self, records: &[Record]) {
        for record in records {
            if let Record::Remove { block } = record {
                self.0.retain(|(other, _, _), _| other != block);
            } else {
                self.0.insert(place(record), record.clone());
            }
        }
    }

    pub fn of(live: &[Record]) -> Model {
        let mut model = Model::default();
        for record in live {
            let twice = model.0.insert(place(record), record.clone());
            assert!(twice.is_none(), "recovered twice: {record:?}");
        }
        model
    }

    pub fn records(&self) -> Vec<Record> {
        self.0.values().cloned().collect()
    }
}

/// What lives has its units and nothing else has any; no two records share one.
pub fn all_taken<K: KeyPart>(journal: &Journal, live: &[Record<K>]) {
    let extents = || live.iter().filter_map(Record::extent);
    let units: u32 = extents().map(|extent| u32::from(extent.count)).sum();
    assert_eq!(journal.total_units() - journal.free_units(), units);
    extents().for_each(|extent| journal.disown(extent));
    assert_eq!(journal.total_units(), journal.free_units());
    for extent in extents() {
        journal.mark(extent).expect("live records never share a unit");
    }
}
