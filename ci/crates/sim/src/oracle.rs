//! Watches the disks: whose bytes lie where, whom a fault harms, what a flush made safe.
//!
//! The oracle does not ask the store where a block is. It reads it from the disks: the values carry
//! stamps, so each write of a value says which units are whose; and journal frames, kept as they were
//! written, say which keys they are about. So when a fault strikes, the keys it may cost are known, and
//! every other key is still held to the promise.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use memkv_block::Op;
use memkv_journal::{KeyBytes, Layout, Record, UNIT, frame};
use memkv_sim::{DiskEvent, FaultKind, SimDisk};

use crate::model::{KeyId, Model, Version};
use crate::options::SPACES;
use crate::stage::number_of;
use crate::values::Stamp;

const NOBODY: Version = Version::MAX;

/// A region of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Zone {
    Superblock,
    Ring,
    Checkpoint,
    Data,
}

/// Which region a place lies in.
pub fn zone_of(layout: &Layout, offset: u64) -> Zone {
    if offset < layout.ring_offset {
        Zone::Superblock
    } else if offset < layout.checkpoint_offset[0] {
        Zone::Ring
    } else if offset < layout.data_offset {
        Zone::Checkpoint
    } else {
        Zone::Data
    }
}

/// What a fault or a write means for the model.
#[derive(Debug)]
enum News {
    /// A version has bytes on a disk.
    Placed(Version, u32),
    /// A fault touched a version's bytes.
    Value(Version),
    /// A fault touched a frame that names this key.
    Key(KeyId),
    /// A fault touched a frame that names a block of this hash.
    Block(u128),
    /// A fault touched what the whole disk hangs on.
    Anchor(u32),
    /// Commands fail.
    Failed(u32),
}

/// Versions known of a data unit: what more often than that was written over without a flush is rare.
const OWNERS: usize = 3;

struct Watched {
    layout: Layout,
    /// Which versions each data unit was last written for, the latest first.
    owners: Vec<[Version; OWNERS]>,
    /// Writes may have been taken back by a power cut: then an older version is there again.
    cut: bool,
    /// Frames as they were written, by the page they begin at.
    frames: HashMap<u64, Vec<u8>>,
    /// Flushes on their way: number, and the model's tick when it was submitted.
    flushing: Vec<(u64, u64)>,
    /// What the model knew up to this tick survives a power cut on this disk.
    safe: u64,
    submitted: u64,
}

struct Notes {
    disks: Vec<Watched>,
    news: Vec<News>,
    keep_frames: bool,
    keep_places: bool,
    keys: u32,
}

/// The oracle of one run.
#[derive(Clone)]
pub struct Oracle {
    notes: Arc<Mutex<Notes>>,
    tick: Arc<AtomicU64>,
    hashes: Arc<Mutex<HashMap<u128, KeyId>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Oracle {
    /// `keep_frames`: the ring will be harmed. `keep_places`: disks will fail.
    pub fn new(keys: u32, keep_frames: bool, keep_places: bool, tick: Arc<AtomicU64>) -> Oracle {
        let (disks, news) = (Vec::new(), Vec::new());
        let notes = Notes { disks, news, keep_frames, keep_places, keys };
        Oracle { notes: Arc::new(Mutex::new(notes)), tick, hashes: Arc::default() }
    }

    /// Watches a disk from now on; disks are numbered in the order in which they are shown.
    pub fn watch(&self, disk: &SimDisk, layout: Layout) {
        let mut notes = lock(&self.notes);
        let number = notes.disks.len() as u32;
        notes.disks.push(Watched {
            owners: vec![[NOBODY; OWNERS]; layout.units as usize],
            cut: false,
            layout,
            frames: HashMap::new(),
            flushing: Vec::new(),
            safe: 0,
            submitted: 0,
        });
        let (shared, tick) = (Arc::clone(&self.notes), Arc::clone(&self.tick));
        disk.observe(move |event| {
            lock(&shared).note(number, event, tick.load(Ordering::Relaxed));
        });
    }

    /// Which key a hash of the store stands for.
    pub fn learn_hash(&self, hash: u128, key: KeyId) {
        lock(&self.hashes).insert(hash, key);
    }

    /// Commands submitted to all disks so far.
    pub fn submitted(&self) -> u64 {
        lock(&self.notes).disks.iter().map(|disk| disk.submitted).sum()
    }

    /// What the model knew up to this tick survives a power cut.
    pub fn safe(&self) -> u64 {
        lock(&self.notes).disks.iter().map(|disk| disk.safe).min().unwrap_or(0)
    }

    /// The machine stopped: flushes on their way come to nothing.
    pub fn crashed(&self) {
        for disk in &mut lock(&self.notes).disks {
            disk.flushing.clear();
            disk.cut = true;
        }
    }

    /// Tells the model what happened on the disks since the last time.
    pub fn tell(&self, model: &mut Model, verbose: bool) {
        let news = std::mem::take(&mut lock(&self.notes).news);
        for item in news {
            if verbose && !matches!(item, News::Placed(..)) {
                eprintln!("FAULT {item:?}");
            }
            match item {
                News::Placed(version, disk) => model.lies_on(version, disk),
                News::Value(version) => model.value_harmed(version),
                News::Key(key) => model.journal_harmed(key),
                News::Block(hash) => match lock(&self.hashes).get(&hash) {
                    Some(&key) => model.journal_harmed(key),
                    None => (0..model.keys()).for_each(|key| model.journal_harmed(key)),
                },
                News::Anchor(disk) => model.anchor_harmed(disk),
                News::Failed(disk) => model.disk_failed(disk),
            }
        }
    }

    /// Whether there is something to tell.
    pub fn has_news(&self) -> bool {
        !lock(&self.notes).news.is_empty()
    }
}

impl Notes {
    fn note(&mut self, number: u32, event: DiskEvent<'_>, tick: u64) {
        let disk = &mut self.disks[number as usize];
        match event {
            DiskEvent::Submitted { op, offset, data } => {
                disk.submitted += 1;
                match op {
                    Op::Write => self.note_write(number, offset, data),
                    Op::Flush => disk.flushing.push((offset, tick)),
                    // A write with a flush is told as both.
                    Op::Read | Op::WriteFlush | Op::Deallocate => {}
                }
            }
            DiskEvent::Flushed { number } => {
                if let Some(at) = disk.flushing.iter().position(|(flush, _)| *flush == number) {
                    disk.safe = disk.safe.max(disk.flushing.swap_remove(at).1);
                }
            }
            DiskEvent::Harmed { kind, offset, content } => {
                self.note_harm(number, kind, offset, content.len() as u64);
            }
            DiskEvent::Died | DiskEvent::Stalled => self.news.push(News::Failed(number)),
        }
    }

    fn note_write(&mut self, number: u32, offset: u64, data: &[u8]) {
        let disk = &mut self.disks[number as usize];
        match zone_of(&disk.layout, offset) {
            Zone::Data => {
                let version = Stamp::read(data).map_or(NOBODY, |stamp| stamp.version);
                let units = units(&disk.layout, offset, data.len() as u64);
                for owners in &mut disk.owners[units] {
                    if owners[0] != version {
                        owners.rotate_right(1);
                        owners[0] = version;
                    }
                }
                if self.keep_places && version != NOBODY {
                    self.news.push(News::Placed(version, number));
                }
            }
            Zone::Ring if self.keep_frames => {
                let kept = disk.frames.entry(offset).or_default();
                kept.clear();
                kept.extend_from_slice(data);
            }
            _ => {}
        }
    }

    fn note_harm(&mut self, number: u32, kind: FaultKind, offset: u64, len: u64) {
        if matches!(kind, FaultKind::ReadError | FaultKind::WriteError) {
            self.news.push(News::Failed(number));
        }
        let disk = &self.disks[number as usize];
        match zone_of(&disk.layout, offset) {
            Zone::Data => {
                let known = if disk.cut { OWNERS } else { 1 };
                let owners = &disk.owners[units(&disk.layout, offset, len)];
                let mut told: Vec<Version> = Vec::new();
                for &version in owners.iter().flat_map(|owners| &owners[..known]) {
                    if version != NOBODY && !told.contains(&version) {
                        self.news.push(News::Value(version));
                        told.push(version);
                    }
                }
            }
            // What was being written is not acknowledged, and what lay there is not needed any more.
            _ if kind == FaultKind::WriteError => {}
            // Frames that cannot be read are as good as gone.
            Zone::Ring => self.note_ring_harm(number, offset..offset + len),
            // There are others of these.
            _ if kind == FaultKind::ReadError => {}
            Zone::Superblock | Zone::Checkpoint => self.news.push(News::Anchor(number)),
        }
    }

    fn note_ring_harm(&mut self, number: u32, range: Range<u64>) {
        let Notes { disks, news, keys, .. } = self;
        for (&at, bytes) in &disks[number as usize].frames {
            if at >= range.end || at + bytes.len() as u64 <= range.start {
                continue;
            }
            let Ok((_, records)) = frame::parse(bytes) else { continue };
            for record in records {
                news.push(match &record {
                    Record::Put { key, .. } | Record::Head { key, .. } => {
                        key_id(key, *keys).map_or(News::Anchor(number), News::Key)
                    }
                    Record::Part { block, .. } | Record::Remove { block } => {
                        News::Block(block.hash)
                    }
                });
            }
        }
    }
}

fn units(layout: &Layout, offset: u64, len: u64) -> Range<usize> {
    let unit = UNIT as u64;
    let from = (offset - layout.data_offset) / unit;
    let to = (offset + len - layout.data_offset).div_ceil(unit);
    from as usize..(to as usize).min(layout.units as usize)
}

/// The number of a key by its whole name.
pub fn key_id(key: &KeyBytes, keys: u32) -> Option<KeyId> {
    let space = SPACES.iter().position(|pair| *pair == (key.tenant(), key.namespace()))?;
    Some(space as u32 * keys + number_of(key.key())?)
}
