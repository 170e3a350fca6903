//! What every session of one reactor shares.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use memkv_block::{BlockDevice, BlockQueue};
use memkv_dma::Pool;
use memkv_net::Connection;
use memkv_net::shm::Stagings;
use memkv_poller::local::{Event, Semaphore};
use memkv_poller::{Local, timeout};
use memkv_store::{DRIVES_MAX, DriveId, StoreHandle};
use memkv_wire::handshake::Door;
use memkv_wire::{SharedKey, Status};

use crate::SessionCounters;
use crate::backlog::Backlog;
use crate::lent::Loans;
use crate::outbox::Outbox;
use crate::session::{Session, goodbye};

/// How often one looks whether a peer has gone that was told to.
const FAREWELL: Duration = Duration::from_millis(10);

/// One drive as a session's reactor reaches it: the device for views, and a queue of this reactor.
#[derive(Clone)]
pub struct DriveIo {
    /// The device, shared by all reactors.
    pub device: Arc<dyn BlockDevice>,
    /// This reactor's queue on it.
    pub queue: Rc<dyn BlockQueue>,
}

impl DriveIo {
    /// Whether blocks on it lie where they can be sent from.
    fn has_views(&self) -> bool {
        self.device.memory().is_some()
    }
}

/// Keys that clients may connect with, and the tenant each one stands for.
#[derive(Clone, Default)]
pub struct KeyRing {
    keys: HashMap<u32, (SharedKey, Arc<str>)>,
}

impl KeyRing {
    /// Adds a key under its id; the tenant is what the key proves, never what the client says.
    pub fn add(&mut self, id: u32, key: SharedKey, tenant: &str) {
        self.keys.insert(id, (key, tenant.into()));
    }

    /// The key of an id.
    pub fn find(&self, id: u32) -> Option<(&SharedKey, &Arc<str>)> {
        self.keys.get(&id).map(|(key, tenant)| (key, tenant))
    }

    /// Whether all keys stand for this tenant.
    fn are_all_of(&self, tenant: Option<&Arc<str>>) -> bool {
        self.keys.values().all(|(_, other)| Some(other) == tenant)
    }

    fn any_tenant(&self) -> Option<Arc<str>> {
        self.keys.values().map(|(_, tenant)| tenant.clone()).next()
    }

    /// Whether what a session proved at its start would still be one.
    fn holds(&self, proof: &Proof) -> bool {
        let known = self.keys.get(&proof.id);
        known.is_some_and(|(key, tenant)| *key == proof.key && *tenant == proof.tenant)
    }
}

/// The key with which a client opened its session, and what it stands for.
#[derive(Clone)]
pub(crate) struct Proof {
    pub id: u32,
    pub key: SharedKey,
    pub tenant: Arc<str>,
}

/// Bounds on what one connection may ask for.
#[derive(Clone, Copy, Debug)]
pub struct SessionLimits {
    /// Inline puts a client may have under way, in frames of up to 256 KiB.
    pub credits: u32,
    /// Requests under way per connection; further frames wait in the socket.
    pub requests: u32,
    /// Items per batch.
    pub items: u32,
    /// Offered puts that wait for their payload, per connection.
    pub offers: u32,
    /// Payload bytes of replies under way per connection; a get waits for its turn beyond that.
    pub sending: u64,
    /// Payload of at least so many bytes is named to who may read it in our memory, and not sent.
    pub name_min: u64,
    /// Less payload than so many bytes is copied, not lent.
    pub lend_min: u64,
    /// A piece of the pool that is shorter is copied: small ones, kept for long, would leave no run that is
    /// longer. At least the longest that anybody asks the pool for.
    pub lend_piece: u32,
    /// Bytes that a connection may have been lent and not taken; beyond that they are copied.
    pub lent: u64,
    /// The same of what it may be named besides, which takes nothing of the pool.
    pub named: u64,
    /// Bytes that one command moves between a drive and memory, a multiple of every drive's sector.
    pub transfer: u32,
    /// Leases per connection.
    pub leases: u32,
    /// The longest lease.
    pub lease: Duration,
    /// The largest value, in bytes; the store's extents may allow less.
    pub value: u64,
    /// How long a new connection may take to say who it is.
    pub handshake: Duration,
    /// How long a request may take that names no deadline.
    pub deadline: Duration,
}

impl Default for SessionLimits {
    fn default() -> Self {
        Self {
            credits: 32,
            requests: 256,
            items: 4096,
            offers: 256,
            sending: 32 << 20,
            name_min: 16 << 10,
            lend_min: 256 << 10,
            lend_piece: 1 << 20,
            lent: 32 << 20,
            named: 256 << 20,
            transfer: 1 << 20,
            leases: 65_536,
            lease: Duration::from_secs(60),
            value: memkv_wire::MAX_VALUE,
            handshake: Duration::from_secs(5),
            deadline: Duration::from_secs(10),
        }
    }
}

/// How long the blocks of a namespace live. It holds for what is put from then on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NamespaceLimits {
    /// Its name, whoever's it is.
    pub name: String,
    /// Seconds that a put without a time gets; 0 is for ever.
    pub ttl_seconds: u32,
    /// The most seconds that a put may ask for; 0 is as long as it likes.
    pub ttl_max_seconds: u32,
}

impl NamespaceLimits {
    /// The seconds that a put gets which asks for so many; 0 is for ever.
    pub fn ttl(&self, asked: u32) -> u32 {
        let ttl = if asked == 0 { self.ttl_seconds } else { asked };
        match (ttl, self.ttl_max_seconds) {
            (ttl, 0) => ttl,
            (0, most) => most,
            (ttl, most) => ttl.min(most),
        }
    }
}

impl SessionLimits {
    /// The longest any request may live, and a peer may take over a frame that it has begun.
    pub(crate) fn longest(&self) -> Duration {
        self.deadline * 6
    }
}

/// Who the server is, told in every handshake.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// The node's uuid.
    pub server: [u8; 16],
    /// How often its store was opened: a client sees a restart by it.
    pub incarnation: u64,
}

/// Fills bytes with what nobody can guess.
pub type Entropy = Box<dyn Fn(&mut [u8])>;

/// An open session, as draining needs it.
pub(crate) struct Live {
    pub session: Weak<Session>,
    pub outbox: Rc<Outbox>,
    pub requests: Semaphore,
    /// Permits of `requests`: the limit of the day on which the session began.
    pub requests_most: u32,
    pub connection: Rc<dyn Connection>,
    pub proof: Proof,
}

/// What a [`Context`] is made of.
pub struct ContextParts {
    /// The reactor.
    pub local: Local,
    /// Memory for payloads.
    pub pool: Pool,
    /// The drives, in the store's order.
    pub drives: Vec<DriveIo>,
    /// The store, here or on another reactor.
    pub store: StoreHandle,
    /// The keys; replaced as a whole when the configuration is reloaded.
    pub keys: KeyRing,
    /// Bounds.
    pub limits: SessionLimits,
    /// Bytes that all connections together may have been lent and not taken; 0: nothing is lent.
    pub lendable: u64,
    /// The same of what they are named, in drives in memory.
    pub nameable: u64,
    /// Where clients on this machine get the windows in which they read drives in memory, if they may.
    pub door: Option<Door>,
    /// What has come in at that door: memory of clients, in which they name what they put.
    pub stagings: Option<Arc<Stagings>>,
    /// What holds for the blocks of single namespaces.
    pub namespaces: Vec<NamespaceLimits>,
    /// Who we are.
    pub identity: Identity,
    /// Fills nonces with bytes nobody can guess (the simulator's are seeded).
    pub entropy: Entropy,
    /// Figures for the Stats operation: (id, value).
    pub stats: Box<dyn Fn() -> Vec<(u16, u64)>>,
    /// What this reactor's sessions count; others read it.
    pub counters: Arc<SessionCounters>,
}

/// What every session of one reactor shares.
pub struct Context {
    pub(crate) local: Local,
    pub(crate) pool: Pool,
    drives: Box<[OnceCell<DriveIo>]>,
    /// One of the drives is memory.
    views: Cell<bool>,
    pub(crate) store: StoreHandle,
    pub(crate) keys: RefCell<KeyRing>,
    /// Since the start there was no key but of this tenant.
    one_tenant: Cell<bool>,
    first_tenant: Option<Arc<str>>,
    pub(crate) loans: Loans,
    door: Cell<Option<Door>>,
    pub(crate) stagings: Option<Arc<Stagings>>,
    limits: Cell<SessionLimits>,
    namespaces: RefCell<Vec<NamespaceLimits>>,
    pub(crate) identity: Identity,
    pub(crate) entropy: Entropy,
    pub(crate) stats: Box<dyn Fn() -> Vec<(u16, u64)>>,
    pub(crate) counters: Arc<SessionCounters>,
    pub(crate) draining: Cell<bool>,
    pub(crate) drained: Event,
    /// Work that must end before the store may stop: sessions and the requests they left behind.
    pub(crate) working: Cell<usize>,
    /// What all sessions have promised to move.
    pub(crate) backlog: Rc<Backlog>,
    next_session: Cell<u64>,
    live: RefCell<BTreeMap<u64, Live>>,
}

impl Context {
    /// Puts the parts together.
    pub fn new(parts: ContextParts) -> Rc<Self> {
        let drives: Box<[OnceCell<DriveIo>]> = (0..DRIVES_MAX).map(|_| OnceCell::new()).collect();
        let views = parts.drives.iter().any(DriveIo::has_views);
        for (place, drive) in drives.iter().zip(parts.drives) {
            let _ = place.set(drive);
        }
        Rc::new(Self {
            local: parts.local,
            pool: parts.pool,
            drives,
            views: Cell::new(views),
            store: parts.store,
            one_tenant: Cell::new(parts.keys.are_all_of(parts.keys.any_tenant().as_ref())),
            first_tenant: parts.keys.any_tenant(),
            loans: Loans::new(parts.lendable, parts.nameable),
            door: Cell::new(parts.door),
            stagings: parts.stagings,
            keys: RefCell::new(parts.keys),
            limits: Cell::new(parts.limits),
            namespaces: RefCell::new(parts.namespaces),
            identity: parts.identity,
            entropy: parts.entropy,
            stats: parts.stats,
            counters: parts.counters,
            draining: Cell::new(false),
            drained: Event::default(),
            working: Cell::new(0),
            backlog: Rc::default(),
            next_session: Cell::new(1),
            live: RefCell::default(),
        })
    }

    /// The reactor's session counters, readable from any thread.
    pub fn counters(&self) -> Arc<SessionCounters> {
        self.counters.clone()
    }

    /// The bounds as they are now.
    pub(crate) fn limits(&self) -> SessionLimits {
        self.limits.get()
    }

    /// Other bounds from now on. What a session was told at its start (credits, requests under way,
    /// its share of replies) stays as it was for that session.
    pub fn set_limits(&self, limits: SessionLimits) {
        self.limits.set(limits);
    }

    /// The seconds that a put to a namespace gets which asks for so many; 0 is for ever.
    pub(crate) fn ttl(&self, namespace: &str, asked: u32) -> u32 {
        let namespaces = self.namespaces.borrow();
        let limits = namespaces.iter().find(|limits| limits.name == namespace);
        limits.map_or(asked, |limits| limits.ttl(asked))
    }

    /// From now on this holds for the blocks of single namespaces that are put.
    pub fn set_namespaces(&self, namespaces: Vec<NamespaceLimits>) {
        *self.namespaces.borrow_mut() = namespaces;
    }

    /// Other keys from now on. A session whose key is none of them ends: requests under way and
    /// offered puts are finished, then it is told why. How many end.
    pub fn set_keys(self: &Rc<Self>, keys: KeyRing) -> usize {
        let same = keys.are_all_of(self.first_tenant.as_ref());
        self.one_tenant.set(self.one_tenant.get() && same);
        *self.keys.borrow_mut() = keys;
        let retired = |live: &Live| !self.keys.borrow().holds(&live.proof);
        let mut ended = 0;
        for live in self.live.borrow_mut().extract_if(.., |_, live| retired(live)) {
            ended += 1;
            self.local.spawn(self.clone().retire(live.1));
        }
        ended
    }

    /// Whether all who may connect, and could since the start, are of one tenant.
    pub(crate) fn has_one_tenant(&self) -> bool {
        self.one_tenant.get()
    }

    /// Ends a session whose key was retired.
    async fn retire(self: Rc<Self>, live: Live) {
        let _work = self.work();
        let Live { session, outbox, requests, requests_most, connection, proof } = live;
        if let Some(session) = session.upgrade() {
            session.retired.set(true);
        }
        let text = format!("key {} was retired", proof.id);
        let goodbye = goodbye(&self, Status::Ok, text);
        let deadline = self.local.now() + self.limits().deadline;
        let answered = async {
            loop {
                let all = requests.acquire(requests_most as usize).await;
                match session.upgrade() {
                    Some(session) if session.owes_payload() => {
                        drop(all);
                        session.payload_done.listen().await;
                    }
                    _ => break,
                }
            }
            outbox.end(goodbye);
            outbox.flushed().await;
            // A peer that goes by itself leaves no doubt about what it was lent.
            while outbox.lent.is_out() && session.upgrade().is_some_and(|s| !s.closed.get()) {
                self.local.sleep(FAREWELL).await;
            }
        };
        let _ = timeout(&self.local, deadline, answered).await;
        connection.shutdown();
    }

    /// Connections being served, and requests that outlive theirs: [`Context::drain`] waits for
    /// zero.
    pub fn working(&self) -> usize {
        self.working.get()
    }

    /// Where this reactor's clients on this machine get windows: as long as all clients are of one tenant,
    /// for a window shows all that there is.
    pub(crate) fn door(&self) -> Option<Door> {
        self.door.get().filter(|_| self.has_one_tenant())
    }

    /// What clients are told from now on of where they get windows.
    pub fn set_door(&self, door: Option<Door>) {
        self.door.set(door);
    }

    pub(crate) fn drive(&self, id: DriveId) -> &DriveIo {
        self.drives[usize::from(id.0)].get().expect("blocks lie on drives that are at hand")
    }

    /// Whether some blocks may lie where they can be sent from.
    pub(crate) fn has_views(&self) -> bool {
        self.views.get()
    }

    /// A drive that has joined the store: from now on this reactor can move bytes to and from it.
    ///
    /// # Panics
    /// When there is one of this number.
    pub fn add_drive(&self, id: DriveId, drive: DriveIo) {
        self.views.set(self.views.get() || drive.has_views());
        let added = self.drives[usize::from(id.0)].set(drive);
        assert!(added.is_ok(), "a drive has a number of its own");
    }

    /// From now on replies of this reactor's sessions are copied.
    pub fn end_lending(&self) {
        self.loans.close();
    }

    /// Commands of this reactor's sessions that a drive has not answered.
    pub fn outstanding(&self, id: DriveId) -> usize {
        self.drives[usize::from(id.0)].get().map_or(0, |drive| drive.queue.outstanding())
    }

    /// What the queues of this reactor's sessions have now, and have done: per drive the commands that
    /// it has not answered, and those that have ended.
    pub fn queues(&self) -> Vec<(DriveId, usize, u64)> {
        let drives = self.drives.iter().enumerate();
        let drives = drives.filter_map(|(at, drive)| Some((at, drive.get()?)));
        let row = |(at, drive): (usize, &DriveIo)| {
            (DriveId(at as u16), drive.queue.outstanding(), drive.queue.completed())
        };
        drives.map(row).collect()
    }

    /// A number no other session of the node has: the reactor's id is in its upper bits.
    pub(crate) fn session_number(&self) -> u64 {
        let number = self.next_session.get();
        self.next_session.set(number + 1);
        (u64::from(self.local.id().0) << 48) | number
    }

    /// Ends every session: no new requests, replies of those under way are still sent, if they are
    /// ready and the peer reads them before a request's usual deadline. Resolves when nothing of
    /// this reactor's sessions touches the store any more.
    pub async fn drain(&self) {
        self.draining.set(true);
        let live = std::mem::take(&mut *self.live.borrow_mut());
        for Live { outbox, requests, requests_most, connection, .. } in live.into_values() {
            let goodbye = goodbye(self, Status::ShuttingDown, "the server is stopping".into());
            // A peer that does not read holds nobody up.
            let (local, deadline) = (self.local.clone(), self.local.now() + self.limits().deadline);
            let most = requests_most as usize;
            self.local.spawn(async move {
                let answered = async {
                    // Whoever holds all permits knows that nothing is under way, nor begins.
                    let _all = requests.acquire(most).await;
                    outbox.end(goodbye);
                    outbox.flushed().await;
                };
                let _ = timeout(&local, deadline, answered).await;
                connection.shutdown();
            });
        }
        while self.working.get() > 0 {
            self.drained.listen().await;
        }
    }

    pub(crate) fn joined(&self, number: u64, live: Live) {
        // Its key may have been retired while it was being welcomed.
        if self.draining.get() || !self.keys.borrow().holds(&live.proof) {
            return live.connection.shutdown();
        }
        self.live.borrow_mut().insert(number, live);
    }

    pub(crate) fn left(&self, number: u64) {
        self.live.borrow_mut().remove(&number);
    }

    pub(crate) fn work(self: &Rc<Self>) -> Working {
        self.working.set(self.working.get() + 1);
        Working(self.clone())
    }
}

/// Counts as work until dropped.
pub(crate) struct Working(Rc<Context>);

impl Drop for Working {
    fn drop(&mut self) {
        self.0.working.set(self.0.working.get() - 1);
        if self.0.draining.get() {
            self.0.drained.notify_all();
        }
    }
}
