//! Joining what each drive remembers into one index.
//!
//! Every drive describes only itself. A head and its parts may lie on different drives, and a crash
//! may have caught a block between them, so what counts is decided here:
//!
//! | found | decision |
//! | --- | --- |
//! | `Put` | a block |
//! | `Head` with all its parts, lengths and CRCs agreeing | a block |
//! | `Head` with a part missing or different | dropped: never answered, or a fault took a part |
//! | `Part` without its head | dropped |
//! | two blocks of one key | the higher generation; the lower one's removal was not durable |
//! | two blocks that share a unit | the higher generation; the lower one's removal was lost |
//!
//! What is dropped is removed durably before the first request, so that no later crash sees it. Of
//! blocks on one drive that share a unit the journal has dropped the earlier itself; a checkpoint
//! without it is its removal.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use memkv_journal::{
    BlockId, DriveUuid, Journal, JournalError, KeyLen, Membership, MembershipError, PartRef,
    Record, Recovered, Standing, UnitRange, membership,
};
use memkv_poller::local::Event;
use memkv_poller::{Local, channel};

use crate::block::{Block, Slot, UNVERIFIED};
use crate::drives::{Drive, Drives};
use crate::gone::Gone;
use crate::index::{EXPIRES_MAX, Filling, GENERATION_MAX, Span};
use crate::membership::Members;
use crate::policy::{EvictionPolicy, Policies};
use crate::remember::Remembered;
use crate::store::KeyHasher;
use crate::{DriveId, Store, StoreConfig, Tuning};

/// One opened drive.
pub struct RecoveredDrive {
    /// Its journal, open for appends.
    pub journal: Rc<Journal>,
    /// What it remembered.
    pub recovered: Recovered,
}

/// Drives that cannot form one node, or that failed while they were joined.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// They are not the members of one node.
    #[error(transparent)]
    Members(#[from] MembershipError),
    /// A drive that the node has lost: it may not be opened.
    #[error("drive {drive} was lost in epoch {epoch}; what is on it may be out of date")]
    Lost {
        /// The drive.
        drive: DriveUuid,
        /// The last epoch it knows.
        epoch: u64,
    },
    /// More values were stored than generations can count.
    #[error(
        "the drives name generation {generation}, and the last there can be is {GENERATION_MAX}"
    )]
    Generation {
        /// The highest one on the drives.
        generation: u64,
    },
    /// A journal failed while leftovers were removed.
    #[error("drive {drive} failed while leftovers of the last run were removed")]
    Cleaning {
        /// Which drive.
        drive: DriveUuid,
    },
    /// A journal failed while it was told who the members are.
    #[error("drive {drive} failed while it was told of the other drives")]
    Telling {
        /// Which drive.
        drive: DriveUuid,
        /// Why.
        #[source]
        source: JournalError,
    },
}

/// Generations skipped after an unclean start: a power cut may have taken frames with generations
/// that were handed out already, and a generation never names two values.
const GENERATION_JUMP: u64 = 1 << 20;

/// Removals per frame while leftovers are cleaned up.
const CLEAN_STEP: usize = 64;

struct Candidate {
    id: BlockId,
    length: u64,
    expires: u64,
    flags: u16,
    spans: Spans,
    verified: bool,
}

/// Where a block is. There may be millions, and nearly all have one extent.
enum Spans {
    One(Span),
    More(Vec<Span>),
}

impl std::ops::Deref for Spans {
    type Target = [Span];

    fn deref(&self) -> &[Span] {
        match self {
            Spans::One(span) => std::slice::from_ref(span),
            Spans::More(spans) => spans,
        }
    }
}

/// A part is named by its block, its drive and its index.
type PartKey = (BlockKey, DriveUuid, u16);
type BlockKey = (u128, u64);

struct FoundPart {
    range: UnitRange,
    length: u32,
    crc: u32,
    used: bool,
}

struct FoundHead {
    id: BlockId,
    length: u64,
    expires: u64,
    flags: u16,
    parts: Vec<PartRef>,
}

#[derive(Default)]
struct Findings {
    candidates: Vec<Candidate>,
    heads: Vec<(DriveId, FoundHead)>,
    parts: BTreeMap<PartKey, FoundPart>,
    dropped: Vec<(DriveId, BlockId)>,
    /// Drives on which records named the same units.
    conflicts: Vec<DriveId>,
    generation: u64,
    clock: u64,
    clean: bool,
}

impl Store {
    /// Joins the drives and starts the store's tasks on this reactor. They are the members of one
    /// node, all of them: what [`membership::resolve`] found out before they were opened.
    ///
    /// # Errors
    /// [`RecoverError`] when the drives are not the members of one node or fail.
    pub async fn recover(
        local: &Local,
        config: StoreConfig,
        policy: Box<dyn EvictionPolicy>,
        opened: Vec<RecoveredDrive>,
    ) -> Result<Rc<Self>, RecoverError> {
        let members = check_members(&opened)?;
        let (drives, recovered) = split(opened);
        let mut findings = read_findings(&drives, recovered);
        if findings.generation > GENERATION_MAX {
            return Err(RecoverError::Generation { generation: findings.generation });
        }
        join_heads(&drives, &mut findings);
        let store = Rc::new(Self::empty(local, config, policy, drives, members, &findings));
        store.fill(&mut findings);
        store.tell_start().await?;
        // The checkpointers first: cleaning up may need room in a ring.
        for drive in store.drives.iter() {
            local.spawn(store.clone().checkpointer(drive.id));
        }
        store.clean_up(findings.dropped).await?;
        // Records the journal dropped for later ones of the same units are forgotten as well: else
        // the removal of a later one would bring back the record whose bytes it has overwritten.
        for drive in findings.conflicts {
            let lost = store.checkpoint(drive, false).await;
            store.let_go(lost);
        }
        local.spawn(store.clone().evictor());
        if let Some(trim) = store.config.trim {
            let online = store.drives.iter().filter(|drive| drive.online());
            online.for_each(|drive| drive.journal.start_trim(trim));
        }
        local.spawn(store.clone().scrubber());
        store.watch_space();
        Ok(store)
    }

    fn empty(
        local: &Local,
        config: StoreConfig,
        policy: Box<dyn EvictionPolicy>,
        drives: Vec<Drive>,
        members: Membership,
        findings: &Findings,
    ) -> Self {
        let hasher = KeyHasher::new(&drives[0].journal.superblock().identity.secret);
        let remembered = Remembered::new(config.remember, config.remember_max);
        let tuning = Tuning::of(&config);
        Self {
            local: local.clone(),
            config,
            hasher,
            drives: Drives::new(drives),
            blocks: RefCell::default(),
            policy: RefCell::new(Policies::new(policy)),
            next_policy: Cell::new(None),
            tuning: Cell::new(tuning),
            locks: Rc::default(),
            pending: RefCell::default(),
            next_pending: Cell::new(1),
            settled: Event::default(),
            generation: Cell::new(findings.generation),
            clock_high: Cell::new(findings.clock),
            remembered: RefCell::new(remembered),
            gone: RefCell::new(Gone::default()),
            leases: RefCell::default(),
            evict_now: Event::default(),
            evict_for: Cell::new(0),
            evict_blocks: Cell::new(0),
            leaving: Cell::new(0),
            checkpoint_now: Event::default(),
            members: Members::new(members),
            draining: Cell::new(false),
            gathering: channel::inbox(1),
            counters: std::sync::Arc::default(),
        }
    }

    /// Tells the drives that lag who the members are, and all of them which generations are given
    /// out from now on: whoever is lost in this run cannot tell the next one.
    async fn tell_start(&self) -> Result<(), RecoverError> {
        let (members, generation) = (self.membership(), self.generation.get());
        for drive in self.drives.iter() {
            let superblock = drive.journal.superblock();
            let lags = superblock.identity.epoch < members.epoch;
            if lags || superblock.generation_high < generation {
                let told = drive.journal.set_membership(&members, generation).await;
                told.map_err(|source| RecoverError::Telling { drive: drive.uuid, source })?;
            }
        }
        Ok(())
    }

    /// Publishes the newest block of every key. Newest first, so that of two blocks that share a
    /// unit the one written last wins; the policy hears of them oldest first, which is the order in
    /// which they are evicted.
    fn fill(&self, findings: &mut Findings) {
        let candidates = std::mem::take(&mut findings.candidates);
        let order = newest_first(&candidates);
        let newest_first = || order.iter().map(|&at| &candidates[at as usize]);
        let mut filling = Filling::default();
        newest_first().for_each(|c| self.add(&mut filling, c));
        let (mut blocks, older) = filling.publish();
        let (mut slots, mut bytes) = (Vec::with_capacity(candidates.len()), 0);
        let mut older = older.into_iter().peekable();
        for (slot, c) in (1..).filter_map(Slot::of).zip(newest_first()) {
            let is_newest = older.next_if_eq(&slot).is_none();
            if is_newest && self.mark_units(&c.spans) {
                bytes += c.length;
                slots.push(slot);
                continue;
            }
            if is_newest {
                blocks.unpublish(slot);
                blocks.remove(slot);
            }
            findings.dropped.extend(c.spans.iter().map(|span| (span.drive, c.id)));
        }
        self.counters.blocks.add(slots.len() as u64);
        self.counters.bytes.add(bytes);
        drop(candidates);
        let mut policy = self.policy.borrow_mut();
        for slot in slots.into_iter().rev() {
            policy.restored(slot, blocks.get(slot).hash());
        }
        *self.blocks.borrow_mut() = blocks;
    }

    fn add(&self, filling: &mut Filling, c: &Candidate) {
        let (id, expires) = (c.id, c.expires.min(EXPIRES_MAX));
        if let Spans::One(span) = c.spans
            && span.is_plain()
            && c.flags == 0
        {
            return filling.add_plain(id, span, expires, c.verified);
        }
        filling.add(&Block {
            id,
            length: c.length,
            expires,
            flags: c.flags,
            extents: c.spans.iter().map(|span| self.extent(*span)).collect(),
            verified: if c.verified { u16::MAX } else { 0 },
            corrupt: false,
        });
    }

    fn mark_units(&self, spans: &[Span]) -> bool {
        for (i, span) in spans.iter().enumerate() {
            if self.drive(span.drive).journal.mark(span.range).is_err() {
                spans[..i].iter().for_each(|span| self.release_span(*span));
                return false;
            }
        }
        true
    }

    /// Removes leftovers from the journals that still list them.
    async fn clean_up(
        self: &Rc<Self>,
        mut dropped: Vec<(DriveId, BlockId)>,
    ) -> Result<(), RecoverError> {
        dropped.sort_by_key(|(drive, id)| (*drive, id.hash, id.generation));
        dropped.dedup();
        let mut plan: BTreeMap<DriveId, Vec<Record>> = BTreeMap::new();
        for (drive, block) in dropped {
            plan.entry(drive).or_default().push(Record::Remove { block });
        }
        for (drive, records) in plan {
            // Piece by piece: a frame is bounded.
            for piece in records.chunks(CLEAN_STEP) {
                if !self.append_removals(vec![(drive, piece.to_vec())]).await {
                    return Err(RecoverError::Cleaning { drive: self.drive(drive).uuid });
                }
            }
        }
        Ok(())
    }
}

/// The places of all, by generation; those of one generation in the order in which they were found.
fn newest_first(candidates: &[Candidate]) -> Vec<u32> {
    let count = u32::try_from(candidates.len()).expect("fewer blocks than slots");
    // A log names them nearly in this order already, and so does a checkpoint of it.
    if candidates.is_sorted_by(|a, b| a.id.generation < b.id.generation) {
        return (0..count).rev().collect();
    }
    let mut order: Vec<(u64, u32)> =
        candidates.iter().zip(0..count).map(|(c, at)| (!c.id.generation, at)).collect();
    order.sort_unstable();
    order.into_iter().map(|(_, at)| at).collect()
}

fn check_members(opened: &[RecoveredDrive]) -> Result<Membership, RecoverError> {
    let superblocks: Vec<_> = opened.iter().map(|drive| drive.journal.superblock()).collect();
    let identities: Vec<_> = superblocks.iter().map(|superblock| &superblock.identity).collect();
    let resolved = membership::resolve(&identities, false)?;
    for (identity, standing) in identities.iter().zip(&resolved.standings) {
        if let Standing::Lost { epoch } = *standing {
            return Err(RecoverError::Lost { drive: identity.drive, epoch });
        }
    }
    Ok(resolved.membership)
}

fn split(opened: Vec<RecoveredDrive>) -> (Vec<Drive>, Vec<Recovered>) {
    let drive = |(index, RecoveredDrive { journal, recovered })| {
        let drive = Drive::new(DriveId(index as u16), journal);
        drive.open.set(true);
        (drive, recovered)
    };
    opened.into_iter().enumerate().map(drive).unzip()
}

fn read_findings(drives: &[Drive], recovered: Vec<Recovered>) -> Findings {
    let mut findings = Findings { clean: true, ..Findings::default() };
    findings.clean = recovered.iter().all(|r| r.clean);
    let clean = findings.clean;
    for (drive, recovered) in drives.iter().zip(recovered) {
        findings.generation = findings.generation.max(recovered.generation_high);
        findings.clock = findings.clock.max(recovered.clock_high);
        if recovered.report.conflicts > 0 {
            findings.conflicts.push(drive.id);
        }
        // In the memory that the records have: there may be millions.
        let whole = recovered.live.into_iter();
        let whole: Vec<_> =
            whole.filter_map(|record| findings.take(drive, record, clean)).collect();
        match findings.candidates.is_empty() {
            true => findings.candidates = whole,
            false => findings.candidates.extend(whole),
        }
    }
    if !clean {
        findings.generation = findings.generation.saturating_add(GENERATION_JUMP);
    }
    findings
}

impl Findings {
    /// Takes a record; one that is a whole block is a candidate.
    fn take(&mut self, drive: &Drive, record: Record<KeyLen>, clean: bool) -> Option<Candidate> {
        match record {
            Record::Put { block, extent, length, crc, expires, flags, .. } => {
                self.generation = self.generation.max(block.generation);
                let span = Span { drive: drive.id, range: extent, length, crc };
                return Some(Candidate {
                    id: block,
                    length: u64::from(length),
                    expires,
                    flags: flags & !UNVERIFIED,
                    spans: Spans::One(span),
                    verified: clean && flags & UNVERIFIED == 0,
                });
            }
            Record::Part { block, index, extent, length, crc } => {
                self.generation = self.generation.max(block.generation);
                let name = ((block.hash, block.generation), drive.uuid, index);
                let part = FoundPart { range: extent, length, crc, used: false };
                self.parts.insert(name, part);
            }
            Record::Head { block, length, expires, flags, parts, .. } => {
                self.generation = self.generation.max(block.generation);
                let head = FoundHead { id: block, length, expires, flags, parts };
                self.heads.push((drive.id, head));
            }
            Record::Remove { .. } => unreachable!("a removal is never live"),
        }
        None
    }
}

/// Finds the parts of every head; what does not fit together is dropped.
fn join_heads(drives: &[Drive], findings: &mut Findings) {
    let clean = findings.clean;
    for (drive, head) in std::mem::take(&mut findings.heads) {
        match spans_of(drives, &mut findings.parts, &head) {
            Some(spans) => findings.candidates.push(Candidate {
                id: head.id,
                length: head.length,
                expires: head.expires,
                flags: head.flags & !UNVERIFIED,
                spans: Spans::More(spans),
                verified: clean && head.flags & UNVERIFIED == 0,
            }),
            None => findings.dropped.push((drive, head.id)),
        }
    }
    for ((block, uuid, _), part) in &findings.parts {
        if !part.used
            && let Some(drive) = drives.iter().find(|d| d.uuid == *uuid)
        {
            let id = BlockId { hash: block.0, generation: block.1 };
            findings.dropped.push((drive.id, id));
        }
    }
}

fn spans_of(
    drives: &[Drive],
    parts: &mut BTreeMap<PartKey, FoundPart>,
    head: &FoundHead,
) -> Option<Vec<Span>> {
    let mut spans = Vec::with_capacity(head.parts.len());
    for (index, part) in head.parts.iter().enumerate() {
        let name = ((head.id.hash, head.id.generation), part.drive, index as u16);
        let found = parts.get(&name)?;
        if found.length != part.length || found.crc != part.crc {
            return None;
        }
        let drive = drives.iter().find(|d| d.uuid == part.drive)?;
        let FoundPart { range, length, crc, .. } = *found;
        spans.push(Span { drive: drive.id, range, length, crc });
    }
    let total: u64 = spans.iter().map(|span| u64::from(span.length)).sum();
    if total != head.length || spans.is_empty() {
        return None;
    }
    for (index, part) in head.parts.iter().enumerate() {
        let name = ((head.id.hash, head.id.generation), part.drive, index as u16);
        parts.get_mut(&name).expect("found above").used = true;
    }
    Some(spans)
}
