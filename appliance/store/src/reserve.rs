//! Taking a place for a new block.

use std::rc::Rc;
use std::time::Duration;

use memkv_journal::KeyBytes;
use memkv_poller::Instant;
use memkv_poller::spare::Row;

use crate::block::{Extent, KeyHash};
use crate::drives::{Drive, place};
use crate::hint::Advice;
use crate::index::Span;
use crate::lease::Existing;
use crate::locks::KeyGuard;
use crate::remember::{Caller, Outcome};
use crate::{DriveId, Store};

/// Puts that wait for room at one time are remembered up to this share of it all: one part in so many.
const WANTED_AT_ONCE: u64 = 8;

/// What a put demands of the key's present state.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Mode {
    /// The key must be absent.
    Absent,
    /// Any state; an older block is replaced.
    Replace,
    /// The key must hold exactly this generation.
    Generation(u64),
}

/// A put that wants a place.
#[derive(Clone, Debug)]
pub struct ReserveRequest {
    /// The key's hash by the store's own hasher.
    pub hash: KeyHash,
    /// The whole key.
    pub key: KeyBytes,
    /// Payload bytes, 1 to 16 extents.
    pub length: u64,
    /// What the key's present state must be.
    pub mode: Mode,
    /// Seconds to live; 0 is for ever.
    pub ttl_seconds: u32,
    /// The block before it in its chain, if the putter says so.
    pub parent: Option<KeyHash>,
    /// For how long it is evicted after all others, at most as long as the store pins; zero: it is
    /// not.
    pub pin: Duration,
    /// The answer must survive a power cut, whatever the store promises to others.
    pub durable: bool,
    /// When to give up waiting for the key.
    pub deadline: Instant,
    /// Who asks.
    pub caller: Caller,
}

/// Why a put gets no place. Nothing is reserved.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// The key is there, with these bytes: the put is acknowledged with what is stored.
    Present(Existing),
    /// The key is there with another length.
    Conflict(Existing),
    /// The key's generation is another one, or none.
    GenerationMismatch(Option<Existing>),
    /// No place just now; again after so many milliseconds.
    Busy {
        /// A hint.
        retry_ms: u32,
    },
    /// No place, and eviction is off or cannot make one.
    Full,
    /// Length zero or above the limit.
    TooLarge {
        /// The most bytes a value may have.
        max: u64,
    },
    /// No drive serves.
    NoDrive,
    /// This very request was done before.
    Done(Outcome),
}

/// A place: where each extent goes.
#[derive(Clone, Debug)]
pub struct ReservationGrant {
    /// Names the reservation in commit and abort.
    pub id: u64,
    /// Its extents, in the order of the payload.
    pub extents: Row<Extent>,
}

/// A reservation that is neither committed nor aborted.
pub(crate) struct Pending {
    pub request: ReserveRequest,
    pub extents: Row<Extent>,
    pub guard: KeyGuard,
}

/// Extents per block at most; one CRC each.
pub(crate) const EXTENTS_MAX: u64 = 16;

impl Store {
    /// Locks the key and takes units for the payload.
    ///
    /// # Errors
    /// A [`Refusal`]; nothing is held then.
    pub async fn reserve(
        self: &Rc<Self>,
        request: ReserveRequest,
    ) -> Result<ReservationGrant, Refusal> {
        let max = u64::from(self.config.extent_bytes) * EXTENTS_MAX;
        if request.length == 0 || request.length > max {
            return Err(Refusal::TooLarge { max });
        }
        if self.draining.get() {
            return Err(Refusal::Busy { retry_ms: 1000 });
        }
        // The common answer to a put of a present key needs no lock. A replaced or deleted key
        // may be on its way out, but then this put orders before that.
        if request.mode == Mode::Absent && self.remembered(&request.caller, request.hash).is_none()
        {
            self.refuse(&request).await?;
        }
        if self.locks.is_held(request.hash) {
            self.counters.put_put.bump();
        }
        let guard = self.lock_key(request.hash, request.deadline).await?;
        if let Some(outcome) = self.remembered(&request.caller, request.hash) {
            self.counters.retries_remembered.bump();
            return Err(Refusal::Done(outcome));
        }
        self.refuse(&request).await?;
        let extents = self.take_units(request.hash, request.length)?;
        Ok(self.grant(request, extents, guard))
    }

    /// [`Store::reserve`] for a put that has to wait for nothing and is refused by nothing; of any other
    /// nothing is done, and it is to be reserved for as usual.
    pub fn reserve_at_once(&self, request: &ReserveRequest) -> Option<ReservationGrant> {
        let max = u64::from(self.config.extent_bytes) * EXTENTS_MAX;
        let may_be = (1..=max).contains(&request.length) && !self.draining.get();
        if !may_be
            || self.remembered(&request.caller, request.hash).is_some()
            || self.refuse_by_state(request).is_err()
            || self.checkpoint_due()
        {
            return None;
        }
        let guard = self.locks.try_lock(request.hash)?;
        let extents = self.try_units(request.length)?;
        self.watch_space();
        Some(self.grant(request.clone(), extents, guard))
    }

    /// What was taken belongs to the put until it is settled.
    fn grant(
        &self,
        request: ReserveRequest,
        extents: Row<Extent>,
        guard: KeyGuard,
    ) -> ReservationGrant {
        if let Some(parent) = request.parent {
            self.follows(parent, request.hash);
        }
        let id = self.next_pending.get();
        self.next_pending.set(id + 1);
        let pending = Pending { request, extents: extents.clone(), guard };
        self.pending.borrow_mut().insert(id, pending);
        ReservationGrant { id, extents }
    }

    pub(crate) async fn lock_key(
        &self,
        key: KeyHash,
        deadline: Instant,
    ) -> Result<KeyGuard, Refusal> {
        if let Some(guard) = self.locks.try_lock(key) {
            return Ok(guard);
        }
        let since = self.local.now();
        let guard = self.locks.lock(&self.local, key, deadline).await;
        self.counters.key_wait.record(self.local.now().saturating_duration_since(since));
        guard.map_err(|_| self.busy(10))
    }

    pub(crate) fn remembered(&self, caller: &Caller, key: KeyHash) -> Option<Outcome> {
        self.remembered.borrow().get(caller, key)
    }

    pub(crate) fn busy(&self, retry_ms: u32) -> Refusal {
        self.counters.busy.bump();
        Refusal::Busy { retry_ms }
    }

    /// Refuses a put by what its key holds. That the key is present acknowledges what is stored as
    /// the put itself would have been: flushed, where it asks for that and the block may not be, and
    /// read, where nobody has seen its bytes since a crash.
    async fn refuse(self: &Rc<Self>, request: &ReserveRequest) -> Result<(), Refusal> {
        let existing = loop {
            match self.refuse_by_state(request) {
                Err(Refusal::Present(existing)) => {
                    let slot = self.slot_of(request.hash).expect("it is present");
                    if self.blocks.borrow().is_verified(slot) {
                        break existing;
                    }
                    if !self.verify(slot, existing.generation).await {
                        return Err(self.busy(10));
                    }
                }
                other => return other,
            }
        };
        if request.durable {
            // The block's drives, and those of what it has replaced. One that fails may take the block
            // with it: the put comes again.
            self.flush_removals(&[]).await.map_err(|_| self.busy(10))?;
        }
        self.counters.present.bump();
        self.pin_present(request);
        Err(Refusal::Present(existing))
    }

    fn refuse_by_state(&self, request: &ReserveRequest) -> Result<(), Refusal> {
        let existing = self.existing(request.hash);
        match (request.mode, existing) {
            (Mode::Absent, None) | (Mode::Replace, _) => Ok(()),
            (Mode::Absent, Some(existing)) if existing.length == request.length => {
                Err(Refusal::Present(existing))
            }
            (Mode::Absent, Some(existing)) => Err(Refusal::Conflict(existing)),
            (Mode::Generation(want), Some(existing)) if existing.generation == want => Ok(()),
            (Mode::Generation(_), existing) => Err(Refusal::GenerationMismatch(existing)),
        }
    }

    /// Who puts what is there wants it kept all the same.
    fn pin_present(&self, request: &ReserveRequest) {
        let slot = self.slot_of(request.hash);
        if let Some(slot) = slot.filter(|_| !request.pin.is_zero()) {
            self.hint(&[slot], Advice::Pin(request.pin));
        }
    }

    /// Units for every extent of a payload, all or none.
    fn take_units(&self, key: KeyHash, length: u64) -> Result<Row<Extent>, Refusal> {
        if !self.drives.iter().any(Drive::online) {
            return Err(Refusal::NoDrive);
        }
        let checkpoint_due = self.checkpoint_due();
        if checkpoint_due {
            self.checkpoint_now.notify_all();
        }
        let Some(extents) = self.try_units(length) else {
            // A drive that had no room in its ring may have a place behind its checkpoint.
            return Err(if checkpoint_due { self.busy(50) } else { self.no_space(key, length) });
        };
        self.watch_space();
        Ok(extents)
    }

    /// Whether some drive takes no puts until its next checkpoint.
    pub(crate) fn checkpoint_due(&self) -> bool {
        let due = |d: &Drive| d.lacks_room() && d.journal.wants_checkpoint();
        self.drives.iter().any(due)
    }

    /// Units for every extent of a payload as the drives are now, all or none.
    pub(crate) fn try_units(&self, length: u64) -> Option<Row<Extent>> {
        let mut extents = Row::new();
        for bytes in self.extent_lengths(length) {
            match self.take_extent(bytes) {
                Some(extent) => extents.push(extent),
                None => {
                    self.release_units(&extents);
                    return None;
                }
            }
        }
        Some(extents)
    }

    /// How a payload is cut into extents.
    fn extent_lengths(&self, length: u64) -> impl Iterator<Item = u32> {
        let step = u64::from(self.config.extent_bytes);
        (0..length.div_ceil(step)).map(move |i| (length - i * step).min(step) as u32)
    }

    /// Units a payload takes.
    pub(crate) fn units_of(&self, length: u64) -> u64 {
        self.extent_lengths(length).map(|bytes| u64::from(units_for(bytes))).sum()
    }

    /// How many blocks should go because a drive remembers as many as it was formatted for, so that
    /// neither free units nor a checkpoint give it room for a put.
    fn crowd(&self) -> Option<u64> {
        let crowded =
            self.drives.iter().filter(|d| d.lacks_room() && !d.journal.wants_checkpoint());
        crowded.map(|d| (d.journal.stats().rows_max / 64).max(1)).max()
    }

    fn take_extent(&self, bytes: u32) -> Option<Extent> {
        let (drive, range) = place(&self.drives, &self.local, units_for(bytes))?;
        let offset = self.drive(drive).journal.data_offset(range.start);
        Some(Extent { drive, range, offset, length: bytes, crc: 0 })
    }

    /// There is no place for a key's payload: `Busy` when eviction can make one, else `Full`.
    pub(crate) fn no_space(&self, key: KeyHash, length: u64) -> Refusal {
        let (_, total) = self.usage();
        let nothing_leaves = self.counters.blocks.get() == 0
            && self.leaving.get() == 0
            && self.pending.borrow().is_empty();
        if self.tuning.get().eviction.is_none() || nothing_leaves || self.units_of(length) > total {
            if self.trimming() > 0 && self.units_of(length) <= total {
                // What is free is withheld until the device has answered.
                return self.busy(1);
            }
            self.counters.full.bump();
            return Refusal::Full;
        }
        match self.crowd() {
            Some(blocks) => self.evict_blocks.set(self.evict_blocks.get().max(blocks)),
            None => {
                let most = total * memkv_dma::UNIT as u64 / WANTED_AT_ONCE;
                self.wanting.borrow_mut().add(key, length, most);
            }
        }
        self.evict_now.notify_all();
        self.busy(5)
    }

    /// Units that are free but withheld while they are trimmed.
    pub(crate) fn trimming(&self) -> u64 {
        let online = self.drives.iter().filter(|drive| drive.online());
        online.map(|drive| drive.journal.trim_stats().units_in_flight).sum()
    }

    /// Places the extents of a reservation that lay on a failed drive somewhere else. The old units
    /// stay quarantined: a late write may still land there.
    ///
    /// # Errors
    /// A [`Refusal`] when there is no other place; the reservation stays, to be aborted.
    pub fn place_again(&self, id: u64, failed: DriveId) -> Result<Row<Extent>, Refusal> {
        let mut pending = self.pending.borrow_mut();
        let pending = pending.get_mut(&id).expect("the reservation is pending");
        for extent in &mut pending.extents {
            if extent.drive == failed {
                let other = self.take_extent(extent.length).ok_or(Refusal::Full)?;
                assert_ne!(other.drive, failed, "a failed drive gets no new extents");
                *extent = other;
                self.counters.placed_again.bump();
            }
        }
        Ok(pending.extents.clone())
    }

    /// A reservation that is committed or aborted: it is so once.
    pub(crate) fn settle(&self, id: u64) -> Pending {
        let mut pending = self.pending.borrow_mut();
        let settled = pending.remove(&id).expect("the reservation is pending");
        if pending.is_empty() {
            self.settled.notify_all();
        }
        settled
    }

    /// Gives a reservation up. All its writes have completed or never were submitted.
    pub fn abort(&self, id: u64) {
        let pending = self.settle(id);
        self.release_units(&pending.extents);
        self.counters.aborts.bump();
        drop(pending.guard);
    }

    /// Returns units to their drives' allocators. Units of an offline drive are never reused.
    pub(crate) fn release_units(&self, extents: &[Extent]) {
        extents.iter().for_each(|extent| self.release_span(extent.span()));
    }

    pub(crate) fn release_span(&self, span: Span) {
        let drive = self.drive(span.drive);
        if drive.online() {
            drive.journal.release(span.range);
        }
    }
}

/// Units of 16 KiB that hold so many bytes.
pub(crate) fn units_for(bytes: u32) -> u16 {
    let units = bytes.div_ceil(memkv_dma::UNIT as u32);
    u16::try_from(units).expect("an extent is at most 256 units")
}
