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
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::rc::Rc;

use memkv_journal::{
    BlockId, DriveUuid, Journal, JournalError, Membership, MembershipError, Record, Recovered,
    Standing, membership,
};
use memkv_poller::local::Event;
use memkv_poller::{Local, channel};

use crate::block::{Slot, UNVERIFIED};
use crate::drives::{Drive, Drives};
use crate::found::{Found, FoundHead, FoundPart, PartKey};
use crate::gone::Gone;
use crate::index::{EXPIRES_MAX, Entry, Filling, GENERATION_MAX, Index, Span};
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
    pub recovered: Recovered<Found>,
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

/// Blocks that the policy is told of at a time.
const TOLD: usize = 256;

/// Removals per frame while leftovers are cleaned up.
const CLEAN_STEP: usize = 64;

/// A block of several parts that were all found.
struct Whole {
    head: FoundHead,
    spans: Vec<Span>,
}

/// What all drives remember.
#[derive(Default)]
struct Findings {
    /// Blocks of one extent, whose units are taken.
    blocks: Filling,
    heads: Vec<(DriveId, FoundHead)>,
    /// Whose units are free.
    parts: BTreeMap<(DriveUuid, PartKey), FoundPart>,
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
        let whole = join_heads(&drives, &mut findings);
        let store = Rc::new(Self::empty(local, config, policy, drives, members, &findings));
        store.fill(&mut findings, whole);
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
            wanting: RefCell::default(),
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

    /// Publishes the newest block of every key. The policy hears of them oldest first, which is the
    /// order in which they are evicted.
    fn fill(&self, findings: &mut Findings, whole: Vec<Whole>) {
        let mut filling = std::mem::take(&mut findings.blocks);
        let (single, clean) = (filling.len(), findings.clean);
        for Whole { head, spans } in &whole {
            let (flags, spans) = (head.flags & !UNVERIFIED, spans.as_slice().into());
            let verified = if clean && head.flags & UNVERIFIED == 0 { u16::MAX } else { 0 };
            filling.add(head.id, spans, head.expires.min(EXPIRES_MAX), flags, verified);
        }
        let ordered = filling.is_ordered();
        let dropped = &mut findings.dropped;
        let mut blocks = filling.publish(|older, slot| {
            let id = older.get(slot).id();
            for span in older.spans(slot) {
                dropped.push((span.drive, id));
                if slot.number() <= single {
                    self.drive(span.drive).journal.disown(span.range);
                }
            }
        });
        self.mark_parts(&mut blocks, single, dropped);
        self.counters.blocks.add(blocks.len() as u64);
        if ordered {
            self.restore(blocks.iter(1..=blocks.last()));
        } else {
            self.restore(by_generation(&blocks).map(|slot| (slot, blocks.get(slot))));
        }
        *self.blocks.borrow_mut() = blocks;
    }

    /// Tells the policy of all blocks, the oldest first.
    fn restore<'a>(&self, blocks: impl Iterator<Item = (Slot, &'a Entry)>) {
        let mut policy = self.policy.borrow_mut();
        let (mut told, mut bytes) = (Vec::with_capacity(TOLD), 0);
        for (slot, entry) in blocks {
            bytes += entry.length();
            told.push((slot, entry.hash()));
            if told.len() == TOLD {
                policy.restored(&told);
                told.clear();
            }
        }
        policy.restored(&told);
        self.counters.bytes.add(bytes);
    }

    /// Takes the units of blocks of several parts, those with slots after `single`. Newest first,
    /// so that of two blocks that share a unit the one written last wins.
    fn mark_parts(&self, blocks: &mut Index, single: u32, dropped: &mut Vec<(DriveId, BlockId)>) {
        let there = blocks.iter(single + 1..=blocks.last());
        let mut slots: Vec<_> =
            there.map(|(slot, entry)| (Reverse(entry.generation()), slot)).collect();
        slots.sort_unstable();
        for (_, slot) in slots {
            let spans: Vec<Span> = blocks.spans(slot).collect();
            if !self.mark_units(&spans) {
                let id = blocks.get(slot).id();
                dropped.extend(spans.iter().map(|span| (span.drive, id)));
                blocks.unpublish(slot);
                blocks.remove(slot);
            }
        }
    }

    fn mark_units(&self, spans: &[Span]) -> bool {
        for (i, span) in spans.iter().enumerate() {
            if self.drive(span.drive).journal.mark(span.range).is_err() {
                spans[..i]
                    .iter()
                    .for_each(|span| self.drive(span.drive).journal.disown(span.range));
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
                if !self.append_removals([(drive, piece.to_vec().into())].into()).await {
                    return Err(RecoverError::Cleaning { drive: self.drive(drive).uuid });
                }
            }
        }
        Ok(())
    }
}

/// All blocks, the oldest first; of those of one generation the one that was found last.
fn by_generation(blocks: &Index) -> impl Iterator<Item = Slot> {
    let all = blocks.iter(1..=blocks.last());
    let mut order: Vec<(u64, Reverse<Slot>)> =
        all.map(|(slot, entry)| (entry.generation(), Reverse(slot))).collect();
    order.sort_unstable();
    order.into_iter().map(|(_, Reverse(slot))| slot)
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

fn split(opened: Vec<RecoveredDrive>) -> (Vec<Drive>, Vec<Recovered<Found>>) {
    let drive = |(index, RecoveredDrive { journal, recovered })| {
        let drive = Drive::new(DriveId(index as u16), journal);
        drive.open.set(true);
        (drive, recovered)
    };
    opened.into_iter().enumerate().map(drive).unzip()
}

fn read_findings(drives: &[Drive], recovered: Vec<Recovered<Found>>) -> Findings {
    let mut findings = Findings { clean: true, ..Findings::default() };
    findings.clean = recovered.iter().all(|r| r.clean);
    for (drive, recovered) in drives.iter().zip(recovered) {
        findings.generation = findings.generation.max(recovered.generation_high);
        findings.clock = findings.clock.max(recovered.clock_high);
        if recovered.report.conflicts > 0 {
            findings.conflicts.push(drive.id);
        }
        findings.take(drive, recovered.live);
    }
    if !findings.clean {
        findings.generation = findings.generation.saturating_add(GENERATION_JUMP);
    }
    findings
}

impl Findings {
    /// Takes what a drive remembers.
    fn take(&mut self, drive: &Drive, found: Found) {
        let Found { mut blocks, heads, parts, generation, .. } = found;
        self.generation = self.generation.max(generation);
        blocks.settle(drive.id, self.clean);
        self.blocks.append(blocks);
        self.heads.extend(heads.into_iter().map(|head| (drive.id, head)));
        for (name, part) in parts {
            // Until it is known of which block it is, if of any.
            drive.journal.disown(part.range);
            self.parts.insert((drive.uuid, name), part);
        }
    }
}

/// Finds the parts of every head; what does not fit together is dropped.
fn join_heads(drives: &[Drive], findings: &mut Findings) -> Vec<Whole> {
    let mut whole = Vec::new();
    for (drive, head) in std::mem::take(&mut findings.heads) {
        match spans_of(drives, &mut findings.parts, &head) {
            Some(spans) => whole.push(Whole { head, spans }),
            None => findings.dropped.push((drive, head.id)),
        }
    }
    for ((uuid, (hash, generation, _)), part) in &findings.parts {
        if !part.used
            && let Some(drive) = drives.iter().find(|d| d.uuid == *uuid)
        {
            findings.dropped.push((drive.id, BlockId { hash: *hash, generation: *generation }));
        }
    }
    whole
}

fn spans_of(
    drives: &[Drive],
    parts: &mut BTreeMap<(DriveUuid, PartKey), FoundPart>,
    head: &FoundHead,
) -> Option<Vec<Span>> {
    let mut spans = Vec::with_capacity(head.parts.len());
    for (index, part) in head.parts.iter().enumerate() {
        let name = (part.drive, (head.id.hash, head.id.generation, index as u16));
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
        let name = (part.drive, (head.id.hash, head.id.generation, index as u16));
        parts.get_mut(&name).expect("found above").used = true;
    }
    Some(spans)
}
