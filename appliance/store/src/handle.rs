//! The store as a session sees it, from the store's reactor or from another.
//!
//! On the store's own reactor a call is a plain call. From another reactor it is a message through
//! the store's bounded inbox. A call that will need a second message later (the end of a lease, the
//! commit or abort of a reservation) takes that message's place when it is made: so dropping a
//! [`ReadLease`] or a [`Reservation`] never waits and never fails. Those places are held long, so
//! they are in an inbox of their own: calls never queue behind them. Questions whether a block is there
//! have one, too, for a load of gets would keep them waiting.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use memkv_poller::Instant;
use memkv_poller::channel::{self, InboxReceiver, InboxSender, OneSender, Permit};
use memkv_poller::spare::Row;

use crate::block::{Extent, KeyHash, Slot};
use crate::commit::{CommitError, Stored};
use crate::hint::Advice;
use crate::lease::{Existing, LeaseGrant, Miss};
use crate::metrics::StoreCounters;
use crate::remember::Caller;
use crate::remove::Deleted;
use crate::reserve::{Refusal, ReservationGrant, ReserveRequest};
use crate::store::KeyHasher;
use crate::{DriveId, DriveStatus, Store, StoreConfig};

/// Answers about keys, and the memory of the question: it goes back to where it was taken.
type Found = (Row<KeyHash>, Row<Result<Existing, Miss>>);

/// Messages to a store from other reactors. A question brings the memory for its answers along.
enum Call {
    Reserve(ReserveRequest, OneSender<Result<ReservationGrant, Refusal>>),
    PlaceAgain(u64, DriveId, OneSender<Result<Row<Extent>, Refusal>>),
    Commit(u64, Row<u32>, OneSender<Result<Stored, CommitError>>),
    Abort(u64),
    Lease(KeyHash, bool, OneSender<Result<LeaseGrant, Miss>>),
    Unpin(Slot),
    UnpinLent(Slot),
    Verified(Slot, u64, u16),
    Exists(Found, OneSender<Found>),
    MatchPrefix(Row<KeyHash>, OneSender<(Row<KeyHash>, usize)>),
    Named(Row<KeyHash>),
    Hold(Row<KeyHash>, u64, Duration, OneSender<Row<Result<Existing, Miss>>>),
    Unhold(Row<KeyHash>, u64),
    Advise(Row<KeyHash>, Advice, OneSender<Row<Result<Existing, Miss>>>),
    Delete(KeyHash, u64, Instant, Caller, OneSender<Deleted>),
    DropCorrupt(KeyHash, u64, OneSender<()>),
    DriveFailed(DriveId, String),
    Drives(OneSender<Vec<DriveStatus>>),
}

/// The receiving end, on the store's reactor.
pub struct StorePort;

impl StorePort {
    /// Opens the inboxes for other reactors and serves them from now on: `calls` messages under way,
    /// and as many questions, and `ends` leases and reservations held at one time.
    pub fn open(store: &Rc<Store>, calls: usize, ends: usize) -> RemoteStore {
        let (questions, inbox) = channel::inbox(calls);
        store.local.spawn(serve(store.clone(), inbox));
        let (calls, inbox) = channel::inbox(calls);
        store.local.spawn(serve(store.clone(), inbox));
        let (ends, inbox) = channel::inbox(ends);
        store.local.spawn(serve(store.clone(), inbox));
        RemoteStore {
            questions,
            calls,
            ends,
            hasher: store.hasher(),
            config: store.config.clone(),
            counters: store.counters(),
            gathering: store.gathering.0.clone(),
        }
    }
}

/// Calls of one turn: they are short, and whoever else is ready has a turn after so many.
const CALLS: u32 = 256;

async fn serve(store: Rc<Store>, mut inbox: InboxReceiver<Call>) {
    let mut calls = 0;
    while let Some(call) = inbox.recv().await {
        answer(&store, call);
        calls += 1;
        if calls == CALLS {
            calls = 0;
            store.local.yield_now().await;
        }
    }
}

/// Short questions are answered at once, long ones in a task of their own.
fn answer(store: &Rc<Store>, call: Call) {
    let spawned = store.clone();
    match call {
        Call::Abort(id) => store.abort(id),
        Call::Lease(key, false, reply) => reply.send(store.lease(key)),
        Call::Lease(key, true, reply) => reply.send(store.lease_to_lend(key)),
        Call::Unpin(slot) => store.unpin(slot),
        Call::UnpinLent(slot) => store.unpin_lent(slot),
        Call::Verified(slot, generation, bits) => store.mark_verified(slot, generation, bits),
        Call::Exists((keys, mut found), reply) => {
            found.extend(keys.iter().map(|&key| store.exists_one(key)));
            reply.send((keys, found));
        }
        Call::MatchPrefix(keys, reply) => {
            let run = store.match_prefix(&keys);
            reply.send((keys, run));
        }
        Call::Named(keys) => store.named(&keys),
        Call::Hold(keys, holder, duration, reply) => {
            reply.send(keys.iter().map(|&key| store.hold(key, holder, duration)).collect());
        }
        Call::Unhold(keys, holder) => keys.iter().for_each(|&key| store.unhold(key, holder)),
        Call::Advise(keys, advice, reply) => reply.send(store.advise(&keys, advice)),
        Call::PlaceAgain(id, failed, reply) => reply.send(store.place_again(id, failed)),
        Call::DriveFailed(drive, why) => store.drive_failed(drive, &why),
        Call::Drives(reply) => reply.send(store.drives()),
        Call::Reserve(request, reply) => store.local.spawn(async move {
            reply.send(spawned.reserve(request).await);
        }),
        Call::Commit(id, crcs, reply) => store.local.spawn(async move {
            reply.send(spawned.commit(id, &crcs).await);
        }),
        Call::Delete(key, generation, deadline, caller, reply) => store.local.spawn(async move {
            reply.send(spawned.delete(key, generation, deadline, caller).await);
        }),
        Call::DropCorrupt(key, generation, reply) => store.local.spawn(async move {
            spawned.drop_corrupt(key, generation).await;
            reply.send(());
        }),
    }
}

/// A store on another reactor; `Send`, to be carried to the reactors that will use it.
#[derive(Clone)]
pub struct RemoteStore {
    questions: InboxSender<Call>,
    calls: InboxSender<Call>,
    ends: InboxSender<Call>,
    hasher: KeyHasher,
    config: StoreConfig,
    counters: Arc<StoreCounters>,
    gathering: InboxSender<()>,
}

/// The turn to gather memory; it ends when this is dropped. See [`StoreHandle::gather_turn`].
#[must_use = "a turn that is dropped is the next one's"]
pub struct Turn(#[expect(dead_code, reason = "held, never used")] Permit<()>);

/// The store as a session uses it.
#[derive(Clone)]
pub enum StoreHandle {
    /// On this reactor.
    Here(Rc<Store>),
    /// On another.
    There(Box<RemoteStore>),
}

/// The reactor of the store stopped: the node is going down.
#[derive(Copy, Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the store is shutting down")]
pub struct Stopped;

impl RemoteStore {
    async fn ask<T: 'static>(&self, call: impl FnOnce(OneSender<T>) -> Call) -> Result<T, Stopped> {
        let (reply, answer) = channel::oneshot();
        self.calls.reserve().await.send(call(reply));
        answer.await.ok_or(Stopped)
    }

    /// Asks what changes nothing: it does not queue behind calls that move bytes.
    async fn question<T: 'static>(
        &self,
        call: impl FnOnce(OneSender<T>) -> Call,
    ) -> Result<T, Stopped> {
        let (reply, answer) = channel::oneshot();
        self.questions.reserve().await.send(call(reply));
        answer.await.ok_or(Stopped)
    }
}

impl StoreHandle {
    /// The store itself, on its own reactor: what it is asked there is answered at once.
    pub fn here(&self) -> Option<&Rc<Store>> {
        match self {
            Self::Here(store) => Some(store),
            Self::There(_) => None,
        }
    }

    /// Hashes keys as the store does.
    pub fn hasher(&self) -> &KeyHasher {
        match self {
            Self::Here(store) => &store.hasher,
            Self::There(remote) => &remote.hasher,
        }
    }

    /// The store's settings.
    pub fn config(&self) -> &StoreConfig {
        match self {
            Self::Here(store) => &store.config,
            Self::There(remote) => &remote.config,
        }
    }

    /// The store's counters.
    pub fn counters(&self) -> Arc<StoreCounters> {
        match self {
            Self::Here(store) => store.counters(),
            Self::There(remote) => remote.counters.clone(),
        }
    }

    /// Waits for the turn to gather memory in pieces, holding some while waiting for more: one
    /// session of the whole node at a time, first come, first served. The store itself needs no
    /// such turn; it is where all reactors of a node meet.
    pub async fn gather_turn(&self) -> Turn {
        match self {
            Self::Here(store) => Turn(store.gathering.0.reserve().await),
            Self::There(remote) => Turn(remote.gathering.reserve().await),
        }
    }

    /// See [`Store::reserve`].
    ///
    /// # Errors
    /// The refusal; `Busy` when the store is stopping.
    pub async fn reserve(&self, request: ReserveRequest) -> Result<Reservation, Refusal> {
        let length = request.length;
        let (grant, end) = match self {
            Self::Here(store) => {
                (store.reserve(request).await?, ReservationEnd::Here(store.clone()))
            }
            Self::There(remote) => {
                // Not waited for: whoever puts a batch holds some of these places already, and two
                // of them would wait for each other.
                let busy = Refusal::Busy { retry_ms: 10 };
                let permit = remote.ends.try_reserve().map_err(|_| busy)?;
                let answer = remote.ask(|reply| Call::Reserve(request, reply)).await;
                let grant = answer.unwrap_or(Err(Refusal::Busy { retry_ms: 1000 }))?;
                (grant, ReservationEnd::There(remote.clone(), permit))
            }
        };
        let ReservationGrant { id, extents } = grant;
        Ok(Reservation { id, length, extents, end: Some(end) })
    }

    /// See [`Store::reserve_at_once`]; a store on another reactor is never asked.
    pub fn reserve_at_once(&self, request: &ReserveRequest) -> Option<Reservation> {
        let store = self.here()?;
        let ReservationGrant { id, extents } = store.reserve_at_once(request)?;
        let end = Some(ReservationEnd::Here(store.clone()));
        Some(Reservation { id, length: request.length, extents, end })
    }

    /// See [`Store::lease`].
    ///
    /// # Errors
    /// The miss and its reason.
    pub async fn lease(&self, key: KeyHash) -> Result<ReadLease, Miss> {
        self.pin(key, false).await
    }

    /// See [`Store::lease_to_lend`].
    ///
    /// # Errors
    /// The miss and its reason.
    pub async fn lease_to_lend(&self, key: KeyHash) -> Result<ReadLease, Miss> {
        self.pin(key, true).await
    }

    /// See [`Store::lease_at_once`]; a store on another reactor is never asked.
    pub fn lease_at_once<T>(
        &self,
        key: KeyHash,
        lent: bool,
        take: impl FnOnce(&Extent) -> Option<T>,
    ) -> Option<(ReadLease, T)> {
        let store = self.here()?;
        let (grant, taken) = store.lease_at_once(key, lent, take)?;
        Some((ReadLease { grant, end: Some(LeaseEnd::Here(store.clone())) }, taken))
    }

    async fn pin(&self, key: KeyHash, lent: bool) -> Result<ReadLease, Miss> {
        match self {
            Self::Here(store) => {
                let grant = if lent { store.lease_to_lend(key) } else { store.lease(key) }?;
                Ok(ReadLease { grant, end: Some(LeaseEnd::Here(store.clone())) })
            }
            Self::There(remote) => {
                let permit = remote.ends.reserve().await;
                let answer = remote.ask(|reply| Call::Lease(key, lent, reply)).await;
                let grant = answer.unwrap_or(Err(Miss(crate::MissReason::Never)))?;
                Ok(ReadLease { grant, end: Some(LeaseEnd::There(permit)) })
            }
        }
    }

    /// See [`Store::exists`].
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn exists(
        &self,
        keys: impl Into<Row<KeyHash>>,
    ) -> Result<Row<Result<Existing, Miss>>, Stopped> {
        let keys = keys.into();
        match self {
            Self::Here(store) => Ok(store.exists(&keys)),
            Self::There(remote) => {
                let asked = (keys, Row::new());
                Ok(remote.question(|reply| Call::Exists(asked, reply)).await?.1)
            }
        }
    }

    /// See [`Store::named`]. Only a hint: when the inbox is full the store does without.
    pub fn named(&self, keys: impl Into<Row<KeyHash>>) {
        let keys = keys.into();
        match self {
            Self::Here(store) => store.named(&keys),
            Self::There(remote) => {
                if let Ok(permit) = remote.calls.try_reserve() {
                    permit.send(Call::Named(keys));
                }
            }
        }
    }

    /// See [`Store::match_prefix`].
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn match_prefix(&self, keys: impl Into<Row<KeyHash>>) -> Result<usize, Stopped> {
        let keys = keys.into();
        match self {
            Self::Here(store) => Ok(store.match_prefix(&keys)),
            Self::There(remote) => {
                Ok(remote.question(|reply| Call::MatchPrefix(keys, reply)).await?.1)
            }
        }
    }

    /// See [`Store::hold`].
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn hold(
        &self,
        keys: impl Into<Row<KeyHash>>,
        holder: u64,
        duration: Duration,
    ) -> Result<Row<Result<Existing, Miss>>, Stopped> {
        let keys = keys.into();
        match self {
            Self::Here(store) => {
                Ok(keys.iter().map(|&key| store.hold(key, holder, duration)).collect())
            }
            Self::There(remote) => {
                remote.ask(|reply| Call::Hold(keys, holder, duration, reply)).await
            }
        }
    }

    /// See [`Store::advise`].
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn advise(
        &self,
        keys: impl Into<Row<KeyHash>>,
        advice: Advice,
    ) -> Result<Row<Result<Existing, Miss>>, Stopped> {
        let keys = keys.into();
        match self {
            Self::Here(store) => Ok(store.advise(&keys, advice)),
            Self::There(remote) => remote.ask(|reply| Call::Advise(keys, advice, reply)).await,
        }
    }

    /// See [`Store::unhold`].
    pub async fn unhold(&self, keys: impl Into<Row<KeyHash>>, holder: u64) {
        let keys = keys.into();
        match self {
            Self::Here(store) => keys.iter().for_each(|&key| store.unhold(key, holder)),
            Self::There(remote) => {
                remote.calls.reserve().await.send(Call::Unhold(keys, holder));
            }
        }
    }

    /// See [`Store::delete`].
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn delete(
        &self,
        key: KeyHash,
        generation: u64,
        deadline: Instant,
        caller: Caller,
    ) -> Result<Deleted, Stopped> {
        match self {
            Self::Here(store) => Ok(store.delete(key, generation, deadline, caller).await),
            Self::There(remote) => {
                remote.ask(|reply| Call::Delete(key, generation, deadline, caller, reply)).await
            }
        }
    }

    /// See [`Store::drop_corrupt`].
    pub async fn drop_corrupt(&self, key: KeyHash, generation: u64) {
        match self {
            Self::Here(store) => store.drop_corrupt(key, generation).await,
            Self::There(remote) => {
                let _ = remote.ask(|reply| Call::DropCorrupt(key, generation, reply)).await;
            }
        }
    }

    /// See [`Store::drive_failed`].
    pub async fn drive_failed(&self, drive: DriveId, why: &dyn std::fmt::Display) {
        match self {
            Self::Here(store) => store.drive_failed(drive, why),
            Self::There(remote) => {
                let call = Call::DriveFailed(drive, why.to_string());
                remote.calls.reserve().await.send(call);
            }
        }
    }

    /// See [`Store::drives`].
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn drives(&self) -> Result<Vec<DriveStatus>, Stopped> {
        match self {
            Self::Here(store) => Ok(store.drives()),
            Self::There(remote) => remote.ask(Call::Drives).await,
        }
    }
}

/// A place for a block, held until commit or drop. Dropping it aborts: its owner has seen every
/// write it submitted complete.
#[must_use]
pub struct Reservation {
    id: u64,
    length: u64,
    extents: Row<Extent>,
    end: Option<ReservationEnd>,
}

enum ReservationEnd {
    Here(Rc<Store>),
    There(Box<RemoteStore>, Permit<Call>),
}

impl Reservation {
    /// Where each extent of the payload goes.
    pub fn extents(&self) -> &[Extent] {
        &self.extents
    }

    /// Payload bytes.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// See [`Store::place_again`].
    ///
    /// # Errors
    /// The refusal; the reservation stays as it was.
    pub async fn place_again(&mut self, failed: DriveId) -> Result<(), Refusal> {
        let id = self.id;
        self.extents = match self.end.as_ref().expect("held until commit or drop") {
            ReservationEnd::Here(store) => store.place_again(id, failed)?,
            ReservationEnd::There(remote, _) => {
                let answer = remote.ask(|reply| Call::PlaceAgain(id, failed, reply)).await;
                answer.unwrap_or(Err(Refusal::Busy { retry_ms: 1000 }))?
            }
        };
        Ok(())
    }

    /// See [`Store::commit`].
    ///
    /// # Errors
    /// A failed drive, or [`Stopped`] as `None`: then the outcome is unknown.
    pub async fn commit(
        mut self,
        crcs: impl Into<Row<u32>>,
    ) -> Result<Stored, Option<CommitError>> {
        let crcs = crcs.into();
        match self.end.take().expect("committed once") {
            ReservationEnd::Here(store) => store.commit(self.id, &crcs).await.map_err(Some),
            ReservationEnd::There(_, permit) => {
                let (reply, answer) = channel::oneshot();
                permit.send(Call::Commit(self.id, crcs, reply));
                answer.await.ok_or(None)?.map_err(Some)
            }
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        match self.end.take() {
            Some(ReservationEnd::Here(store)) => store.abort(self.id),
            Some(ReservationEnd::There(_, permit)) => permit.send(Call::Abort(self.id)),
            None => {}
        }
    }
}

/// The right to read a block's extents; while it lives, its units are not reused.
#[must_use]
pub struct ReadLease {
    grant: LeaseGrant,
    end: Option<LeaseEnd>,
}

enum LeaseEnd {
    Here(Rc<Store>),
    There(Permit<Call>),
}

impl ReadLease {
    /// Where the bytes are, and what they are.
    pub fn block(&self) -> &LeaseGrant {
        &self.grant
    }

    /// The CRCs of these extents were checked (one bit each). Only a hint: when the inbox is full
    /// the next reader checks again.
    pub fn mark_verified(&self, store: &StoreHandle, extents: u16) {
        let (slot, generation) = (self.grant.slot, self.grant.generation);
        match store {
            StoreHandle::Here(store) => store.mark_verified(slot, generation, extents),
            StoreHandle::There(remote) => {
                if let Ok(permit) = remote.calls.try_reserve() {
                    permit.send(Call::Verified(slot, generation, extents));
                }
            }
        }
    }
}

impl Drop for ReadLease {
    fn drop(&mut self) {
        let LeaseGrant { slot, lent, .. } = self.grant;
        match self.end.take() {
            Some(LeaseEnd::Here(store)) if lent => store.unpin_lent(slot),
            Some(LeaseEnd::Here(store)) => store.unpin(slot),
            Some(LeaseEnd::There(permit)) if lent => permit.send(Call::UnpinLent(slot)),
            Some(LeaseEnd::There(permit)) => permit.send(Call::Unpin(slot)),
            None => {}
        }
    }
}
