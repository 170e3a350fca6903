//! A server on a simulated machine of two reactors, the store on the first, and clients that speak
//! frames by hand.

#![allow(dead_code, reason = "each test binary uses what it needs")]

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{self, Poll, Waker};
use std::time::Duration;

use memkv_block::{BlockDevice, Op};
use memkv_dma::{Arena, Hugepages, Memory, Pool, PoolConfig};
use memkv_journal::{DriveUuid, FormatOptions, Identity, NodeUuid};
use memkv_net::shm::Stagings;
use memkv_net::{Connection, NetError, RecvBuf, SendOp};
use memkv_poller::{Clock, Instant};
use memkv_session::{
    Context, ContextParts, DriveIo, KeyRing, NamespaceLimits, SessionLimits, serve,
};
use memkv_sim::faults::{Faults, Rule};
use memkv_sim::{
    ClientEnd, DiskOptions, Fate, NetOptions, SimClock, SimDisk, SimNet, World, WorldOptions,
};
use memkv_store::{
    Lru, RecoveredDrive, RemoteStore, Store, StoreConfig, StoreHandle, StorePort, UnderWay,
};
use memkv_wire::handshake::{ClientHello, Door, Limits, ServerHello, connect_keys, session_keys};
use memkv_wire::{
    CrcList, DataMeta, DataReply, GetItem, GetItems, GetReply, HEADER_LEN, Header, ItemReplies,
    ItemReply, Opcode, Opener, PutItem, PutItems, PutMode, Sealer, SharedKey, Side, Staged, Status,
    TO_THE_END, VERSION, crc32c,
};
use uuid::Uuid;

pub const MIB: usize = 1 << 20;

/// What a test may choose.
pub struct Options {
    pub drives: usize,
    pub drive_bytes: u64,
    pub pool_bytes: u64,
    pub extent_bytes: u32,
    /// Drives are memory: blocks are sent from where they lie.
    pub in_memory: bool,
    pub limits: SessionLimits,
    pub lendable: u64,
    pub nameable: u64,
    /// Clients are told where to get windows on drives in memory.
    pub windows: bool,
    /// They are told, too, that they may name what they put.
    pub staged: bool,
    pub namespaces: Vec<NamespaceLimits>,
    /// Chooses the order of things, and how bytes come in pieces.
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            drives: 1,
            drive_bytes: 128 << 20,
            pool_bytes: 8 << 20,
            extent_bytes: 1 << 20,
            in_memory: false,
            limits: SessionLimits::default(),
            lendable: 0,
            nameable: 0,
            windows: false,
            staged: false,
            namespaces: Vec::new(),
            seed: 11,
        }
    }
}

/// A running server.
pub struct Machine {
    pub world: World,
    pub net: SimNet,
    pub store: Rc<Store>,
    pub remote: RemoteStore,
    pub pool: Pool,
    pub contexts: Vec<Rc<Context>>,
    /// Rules of each drive, and where its data begins.
    pub faults: Vec<(Faults, u64)>,
    /// What clients see through their windows.
    pub media: Vec<Arena>,
    /// Memory of clients that they brought along.
    pub stagings: Arc<Stagings>,
    connections: Cell<u64>,
}

fn pool(size: u64) -> Pool {
    let pool = PoolConfig { size, chunk: 2 << 20, hugepages: Hugepages::Never };
    Pool::new(pool).expect("a small pool")
}

/// What clients are told who may have windows; of one drive.
pub const DOOR: Door = Door { name: [1; 16], ticket: [2; 32], windows: 1 };

pub const KEY: [u8; 32] = [5; 32];

impl Machine {
    pub fn new(options: Options) -> Machine {
        let clock = SimClock::new(1_800_000_000);
        let world_options = WorldOptions { reactors: 2, inbox_capacity: 64, seed: options.seed };
        let mut world = World::new(world_options, clock.clone());
        let net = NetOptions { lend: options.lendable > 0, ..NetOptions::new(options.seed + 1) };
        let net = SimNet::new(net, clock.clone());
        world.add_source(Rc::new(net.clone()));
        let pool = pool(options.pool_bytes);
        let mut devices: Vec<Arc<dyn BlockDevice>> = Vec::new();
        let mut faults = Vec::new();
        let mut media = Vec::new();
        for number in 0..options.drives {
            if options.in_memory {
                let memory = memkv_block::shared_memory(options.drive_bytes, Hugepages::Never);
                let memory = memory.expect("a small drive");
                if let Some(Memory::Arena(arena)) = memory.memory().filter(|_| options.windows) {
                    assert!(arena.publish(number as u32), "the system has memory to share");
                    media.push(arena);
                }
                devices.push(memory);
                faults.push(Faults::new(number as u64));
                continue;
            }
            let name = format!("disk {number}");
            let disk = DiskOptions::new(name, options.drive_bytes, number as u64);
            let disk = SimDisk::new(disk, clock.clone());
            world.add_source(Rc::new(disk.clone()));
            let rules = Faults::new(number as u64);
            let limit = Duration::from_secs(10);
            devices.push(memkv_block::watch(rules.decorate(Arc::new(disk)), limit));
            faults.push(rules);
        }
        let (store, starts) = open(&mut world, &devices, &pool, options.extent_bytes);
        let remote = StorePort::open(&store, 64, 1024);
        let stagings = Arc::<Stagings>::default();
        let contexts = (0..2).map(|reactor| {
            let local = world.local(reactor);
            let drive = |device: &Arc<dyn BlockDevice>| DriveIo {
                device: device.clone(),
                queue: device.open_queue(&local).expect("a queue"),
            };
            let handle = match reactor {
                0 => StoreHandle::Here(store.clone()),
                _ => StoreHandle::There(Box::new(remote.clone())),
            };
            let mut keys = KeyRing::default();
            keys.add(1, SharedKey::from_bytes(KEY), "tenant");
            Context::new(ContextParts {
                local: local.clone(),
                pool: pool.clone(),
                drives: devices.iter().map(drive).collect(),
                store: handle,
                keys,
                limits: options.limits,
                lendable: options.lendable,
                nameable: options.nameable,
                door: options.windows.then_some(DOOR),
                stagings: options.staged.then(|| stagings.clone()),
                namespaces: options.namespaces.clone(),
                identity: memkv_session::Identity { server: [3; 16], incarnation: 1 },
                entropy: Box::new(|bytes| bytes.fill(9)),
                stats: Box::new(Vec::new),
                counters: Arc::default(),
            })
        });
        let contexts: Vec<_> = contexts.collect();
        let faults = faults.into_iter().zip(starts).collect();
        let connections = Cell::new(0);
        Machine { world, net, store, remote, pool, contexts, faults, media, stagings, connections }
    }

    /// A client whose connection is served by a reactor.
    pub fn client(&mut self, reactor: usize) -> Client {
        self.connect(reactor, |connection| connection)
    }

    /// A client who reads the answer to its hello, and then no more.
    pub fn deaf_client(&mut self, reactor: usize) -> Client {
        self.connect(reactor, |inner| {
            Rc::new(Deaf {
                inner,
                heard: Cell::new(false),
                down: Cell::new(false),
                stuck: RefCell::default(),
            })
        })
    }

    fn connect(
        &mut self,
        reactor: usize,
        wrap: impl FnOnce(Rc<dyn Connection>) -> Rc<dyn Connection>,
    ) -> Client {
        let number = self.connections.get() + 1;
        self.connections.set(number);
        let (end, connection) = self.net.connect(number);
        let connection = wrap(connection);
        self.world.local(reactor).spawn(serve(self.contexts[reactor].clone(), connection));
        self.world.kick();
        Client::greet(self, end, number, 1, KEY).expect("the server answers")
    }

    /// A client with another key, if it is welcome.
    pub fn client_with(&mut self, reactor: usize, id: u32, key: [u8; 32]) -> Option<Client> {
        let number = self.connections.get() + 1;
        self.connections.set(number);
        let (end, connection) = self.net.connect(number);
        self.world.local(reactor).spawn(serve(self.contexts[reactor].clone(), connection));
        self.world.kick();
        Client::greet(self, end, number, id, key)
    }

    pub fn now(&self) -> Instant {
        self.world.clock().now()
    }

    /// Lets so much time pass.
    pub fn pass(&mut self, time: Duration) {
        let until = self.now() + time;
        while self.now() < until {
            while self.world.step() {}
            self.world.advance(Some(until));
        }
        while self.world.step() {}
    }

    /// Every write of data on a drive fails from now on; its journal works.
    pub fn break_data(&self, drive: usize) {
        let (faults, start) = &self.faults[drive];
        faults.add(Rule { range: *start..u64::MAX, ..Rule::fail(Op::Write) });
    }

    /// Nothing is held for anybody: no reservation, key, reader or chunk.
    pub fn assert_at_rest(&self) {
        let UnderWay { reservations, keys, readers, leaving, units } = self.store.under_way();
        assert_eq!((reservations, keys, readers, leaving), (0, 0, 0, 0));
        let online = self.store.drives().into_iter();
        let online = online.filter(|d| d.state == memkv_store::DriveState::Online);
        assert_eq!(units, online.map(|d| d.units_total - d.units_free).sum::<u64>());
        let used = self.pool.stats().used;
        assert_eq!(
            (used[memkv_dma::Class::Receive.index()], used[memkv_dma::Class::Send.index()]),
            (0, 0)
        );
        assert_eq!(self.pool.stats().waiting, 0);
    }
}

/// A connection whose peer reads one send and no more.
struct Deaf {
    inner: Rc<dyn Connection>,
    heard: Cell<bool>,
    down: Cell<bool>,
    stuck: RefCell<(Option<SendOp>, Option<Waker>)>,
}

impl Connection for Deaf {
    fn start_recv(&self, buf: RecvBuf, at: usize, min: usize) {
        self.inner.start_recv(buf, at, min);
    }

    fn poll_recv(&self, cx: &mut task::Context<'_>) -> Poll<(Result<usize, NetError>, RecvBuf)> {
        self.inner.poll_recv(cx)
    }

    fn start_send(&self, op: SendOp) {
        match self.heard.get() {
            false => self.inner.start_send(op),
            true => self.stuck.borrow_mut().0 = Some(op),
        }
    }

    fn poll_send(&self, cx: &mut task::Context<'_>) -> Poll<(Result<(), NetError>, SendOp)> {
        if !self.heard.get() {
            let sent = self.inner.poll_send(cx);
            self.heard.set(sent.is_ready());
            return sent;
        }
        let (op, waker) = &mut *self.stuck.borrow_mut();
        if !self.down.get() {
            *waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready((Err(NetError::Closed), op.take().expect("a send was started")))
    }

    fn shutdown(&self) {
        self.inner.shutdown();
        self.down.set(true);
        let waker = self.stuck.borrow_mut().1.take();
        waker.into_iter().for_each(Waker::wake);
    }

    fn peer(&self) -> String {
        self.inner.peer()
    }

    fn is_loopback(&self) -> bool {
        false
    }
}

/// Formats and opens the drives; where the data of each begins.
fn open(
    world: &mut World,
    devices: &[Arc<dyn BlockDevice>],
    pool: &Pool,
    extent_bytes: u32,
) -> (Rc<Store>, Vec<u64>) {
    let (local, pool, devices) = (world.local(0), pool.clone(), devices.to_vec());
    let opened = world.block_on(0, async move {
        let members: Vec<_> =
            (0..devices.len()).map(|n| DriveUuid(Uuid::from_u128(n as u128))).collect();
        let mut drives = Vec::new();
        let mut starts = Vec::new();
        for (device, &drive) in devices.iter().zip(&members) {
            let queue = device.open_queue(&local).expect("a queue");
            let node = NodeUuid(Uuid::from_u128(0x40));
            let secret = [7; 32];
            let identity = Identity { node, drive, epoch: 1, members: members.clone(), secret };
            let options = FormatOptions { ring_bytes: Some(1 << 20), ..FormatOptions::default() };
            let geometry = device.geometry();
            let superblock = memkv_journal::format(&*queue, &geometry, &pool, identity, options)
                .await
                .expect("the drive can be formatted");
            starts.push(superblock.layout.data_offset);
            let (journal, recovered) = memkv_journal::open(queue, &local, pool.clone(), superblock)
                .await
                .expect("it opens");
            drives.push(RecoveredDrive { journal, recovered });
        }
        let config = StoreConfig { extent_bytes, ..StoreConfig::default() };
        let store = Store::recover(&local, config, Box::<Lru>::default(), drives).await;
        (store.expect("the drives form a node"), starts)
    });
    opened.expect("the machine does not stand still")
}

/// One frame that came back.
#[derive(Debug)]
pub struct Frame {
    pub header: Header,
    pub meta: Vec<u8>,
    pub payload: Vec<u8>,
}

/// One connection, by hand.
pub struct Client {
    pub end: ClientEnd,
    pub extent: usize,
    pub limits: Limits,
    pub door: Option<Door>,
    pub may_name: bool,
    /// What it says that it has taken of lent payload.
    pub consumed: u64,
    sealer: Sealer,
    opener: Opener,
    next_request: u64,
}

impl Client {
    /// `None` when the server does not welcome it.
    fn greet(
        machine: &mut Machine,
        end: ClientEnd,
        number: u64,
        id: u32,
        key: [u8; 32],
    ) -> Option<Client> {
        let key = SharedKey::from_bytes(key);
        let (mut sealer, mut opener) = connect_keys(&key, id, Side::Client);
        let client_nonce = [7; 32];
        let hello = ClientHello {
            client_nonce,
            client_id: number.to_le_bytes().repeat(2).try_into().expect("16 bytes"),
            key_id: id,
            namespace: "tests",
            version_min: VERSION,
            version_max: VERSION,
            counts_lent: true,
            reads_windows: true,
        };
        let mut meta = Vec::new();
        hello.encode(&mut meta);
        end.send_with(|out| sealer.seal(&mut Header::request(Opcode::Connect, 0), &meta, out));
        let reply = receive(machine, &end, &mut opener)?;
        let hello = ServerHello::parse(&reply.meta).expect("a server's hello");
        let nonces = (&client_nonce, &hello.server_nonce);
        let (sealer, opener) = session_keys(&key, id, VERSION, nonces.0, nonces.1, Side::Client);
        let (extent, limits) = (hello.limits.extent as usize, hello.limits);
        let (door, may_name) = (hello.door, hello.takes_staged);
        let client = Client {
            end,
            extent,
            limits,
            door,
            may_name,
            consumed: 0,
            sealer,
            opener,
            next_request: 1,
        };
        Some(client)
    }

    pub fn request(&mut self, opcode: Opcode) -> Header {
        self.next_request += 1;
        Header::request(opcode, self.next_request)
    }

    /// The id of the request that was made last.
    pub fn last_request(&self) -> u64 {
        self.next_request
    }

    pub fn seal(&mut self, header: &mut Header, meta: &[u8], out: &mut Vec<u8>) {
        self.sealer.seal(header, meta, out);
    }

    pub fn send(&mut self, header: Header, meta: &[u8], payload: &[u8]) {
        let header = header.with_payload_length(payload.len() as u64);
        let mut header = header.with_consumed(self.consumed);
        let sealer = &mut self.sealer;
        self.end.send_with(|out| {
            sealer.seal(&mut header, meta, out);
            out.extend_from_slice(payload);
        });
    }

    /// The next frame; `None` when the connection ends or the machine stands still.
    pub fn receive(&mut self, machine: &mut Machine) -> Option<Frame> {
        receive(machine, &self.end, &mut self.opener)
    }

    /// A frame that has arrived.
    pub fn arrived(&mut self) -> Option<Frame> {
        let opener = &mut self.opener;
        self.end.read(|bytes| whole_frame(opener, bytes))
    }

    pub fn ask(&mut self, machine: &mut Machine, opcode: Opcode, meta: &[u8]) -> Frame {
        let header = self.request(opcode);
        self.send(header, meta, &[]);
        self.receive(machine).expect("an answer")
    }

    /// Sends an inline put of several values.
    pub fn send_inline(&mut self, items: &[(String, Vec<u8>)]) {
        let crcs = |value: &[u8]| crcs(value, self.extent);
        let list = items.iter().map(|(key, value)| put_item(key, value.len(), crcs(value)));
        let mut meta = Vec::new();
        PutItems { items: list.collect() }.encode(&mut meta);
        let payload: Vec<u8> = items.iter().flat_map(|(_, value)| value.clone()).collect();
        let header = self.request(Opcode::Put);
        self.send(header, &meta, &payload);
    }

    /// Sends a put of several values, which it says lie there.
    pub fn send_staged(&mut self, items: Vec<PutItem<'_>>, place: Staged) {
        let mut meta = Vec::new();
        PutItems { items }.encode(&mut meta);
        place.encode(&mut meta);
        let header = self.request(Opcode::Put).with_named();
        self.send(header, &meta, &[]);
    }

    /// Sends an inline put of one value with these CRCs, and only so many bytes of its payload.
    pub fn send_lone(&mut self, key: &str, value: &[u8], crcs: CrcList, sent: usize) {
        let mut meta = Vec::new();
        PutItems { items: vec![put_item(key, value.len(), crcs)] }.encode(&mut meta);
        let header = self.request(Opcode::Put).with_payload_length(value.len() as u64);
        let mut frame = Vec::new();
        self.seal(&mut header.with_consumed(self.consumed), &meta, &mut frame);
        frame.extend_from_slice(&value[..sent]);
        self.end.send(&frame);
    }

    /// The answer to an inline put of one value.
    pub fn lone_reply(&mut self, machine: &mut Machine) -> ItemReply {
        let frame = self.receive(machine).expect("an answer");
        ItemReplies::parse(&frame.meta).expect("a reply per item").items[0]
    }

    /// Offers a value; the request's id when it is wanted.
    pub fn offer(
        &mut self,
        machine: &mut Machine,
        key: &str,
        length: usize,
    ) -> Result<u64, ItemReply> {
        let mut meta = Vec::new();
        PutItems { items: vec![put_item(key, length, CrcList::EMPTY)] }.encode(&mut meta);
        let reply = self.ask(machine, Opcode::Offer, &meta);
        let items = ItemReplies::parse(&reply.meta).expect("a reply per item").items;
        match items[0].status {
            Status::Want => Ok(reply.header.request_id()),
            _ => Err(items[0]),
        }
    }

    /// Sends the first `sent` bytes of an offered value's frame; all of it with its trailer. The
    /// header's MAC.
    pub fn send_data(&mut self, request: u64, value: &[u8], sent: Option<usize>) -> [u8; 32] {
        self.send_data_of((request, 0), value, sent)
    }

    /// Sends the bytes of one of several offered items.
    pub fn send_item(&mut self, request: u64, item: u32, value: &[u8]) {
        self.send_data_of((request, item), value, None);
    }

    fn send_data_of(
        &mut self,
        (request, item): (u64, u32),
        value: &[u8],
        sent: Option<usize>,
    ) -> [u8; 32] {
        let mut meta = Vec::new();
        DataMeta { item }.encode(&mut meta);
        let header = Header::request(Opcode::Data, request);
        self.send_with_trailer(header, &meta, value, sent)
    }

    /// Sends an offer of `item` with its value, of whose bytes the first `sent` only; all of it with its
    /// trailer. The header's MAC.
    pub fn send_along(&mut self, item: PutItem<'_>, value: &[u8], sent: Option<usize>) -> [u8; 32] {
        let mut meta = Vec::new();
        PutItems { items: vec![item] }.encode(&mut meta);
        let header = self.request(Opcode::Offer);
        self.send_with_trailer(header, &meta, value, sent)
    }

    /// Sends a frame with the first `sent` bytes of its payload; all of it with its trailer. The header's
    /// MAC.
    fn send_with_trailer(
        &mut self,
        header: Header,
        meta: &[u8],
        value: &[u8],
        sent: Option<usize>,
    ) -> [u8; 32] {
        let header = header.with_payload_length(value.len() as u64).with_trailer();
        let mut header = header.with_consumed(self.consumed);
        let mut frame = Vec::new();
        self.sealer.seal(&mut header, meta, &mut frame);
        frame.extend_from_slice(&value[..sent.unwrap_or(value.len())]);
        if sent.is_none() {
            let crcs = crcs(value, self.extent);
            self.sealer.seal_trailer(header.mac(), crcs.as_slice(), &mut frame);
        }
        self.end.send(&frame);
        *header.mac()
    }

    /// Sends what [`Client::send_data`] kept back after the first `sent` bytes.
    pub fn send_rest(&mut self, mac: &[u8; 32], value: &[u8], sent: usize) {
        let mut rest = value[sent..].to_vec();
        let crcs = crcs(value, self.extent);
        self.sealer.seal_trailer(mac, crcs.as_slice(), &mut rest);
        self.end.send(&rest);
    }

    /// The answer to an offered value's payload.
    pub fn data_reply(&mut self, machine: &mut Machine) -> ItemReply {
        let frame = self.receive(machine).expect("an answer");
        DataReply::parse(&frame.meta).expect("a reply to data").reply
    }

    /// Offers, sends, and waits for the answer.
    pub fn put(&mut self, machine: &mut Machine, key: &str, value: &[u8]) -> ItemReply {
        match self.offer(machine, key, value.len()) {
            Err(refused) => refused,
            Ok(request) => {
                self.send_data(request, value, None);
                self.data_reply(machine)
            }
        }
    }

    pub fn send_get(&mut self, key: &str, offset: u64, length: u64) {
        let mut meta = Vec::new();
        let item = GetItem { key: key.as_bytes(), offset, length };
        GetItems { items: vec![item] }.encode(&mut meta);
        let header = self.request(Opcode::Get);
        self.send(header, &meta, &[]);
    }

    /// The answer to a get; the CRCs of its bytes are checked.
    pub fn got(&mut self, machine: &mut Machine) -> (ItemReply, Vec<u8>) {
        let frame = self.receive(machine).expect("an answer");
        let reply = GetReply::parse(&frame.meta).expect("a reply to get").reply;
        (reply, frame.payload)
    }

    /// A whole value.
    pub fn get(&mut self, machine: &mut Machine, key: &str) -> (ItemReply, Vec<u8>) {
        self.send_get(key, 0, TO_THE_END);
        self.got(machine)
    }
}

fn receive(machine: &mut Machine, end: &ClientEnd, opener: &mut Opener) -> Option<Frame> {
    let mut frame = None;
    machine.world.run_until(|| {
        frame = end.read(|bytes| whole_frame(opener, bytes));
        frame.is_some() || end.fate() != Fate::Open
    });
    frame
}

/// The frame at the beginning of `bytes`, once it is whole, and its length.
fn whole_frame(opener: &mut Opener, bytes: &[u8]) -> (usize, Option<Frame>) {
    let Some(raw) = bytes.first_chunk::<HEADER_LEN>() else { return (0, None) };
    let header = opener.peek(raw).expect("the server's frames are good");
    let meta_end = HEADER_LEN + header.meta_length() as usize;
    let end = meta_end + header.payload_length() as usize;
    if bytes.len() < end {
        return (0, None);
    }
    let meta = bytes[HEADER_LEN..meta_end].to_vec();
    let header = opener.open(raw, &meta).expect("the server's frames are good");
    (end, Some(Frame { header, meta, payload: bytes[meta_end..end].to_vec() }))
}

pub fn put_item(key: &str, length: usize, crcs: CrcList) -> PutItem<'_> {
    PutItem {
        key: key.as_bytes(),
        length: length as u64,
        mode: PutMode::Replace,
        durable: false,
        ttl_seconds: 0,
        crcs,
        advice: Default::default(),
    }
}

pub fn crcs(value: &[u8], extent: usize) -> CrcList {
    let crcs: Vec<u32> = value.chunks(extent).map(crc32c).collect();
    CrcList::from_slice(&crcs).expect("at most 16 extents")
}

/// Bytes that tell values and places apart.
pub fn value(seed: u64, length: usize) -> Vec<u8> {
    let mut rng = memkv_poller::Rng::seeded(seed);
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        bytes.extend_from_slice(&rng.next_u64().to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}
