//! A session on a reactor of this thread, over a connection in memory.

use std::rc::Rc;
use std::sync::Arc;

use memkv_block::memory;
use memkv_dma::{Hugepages, Pool, PoolConfig};
use memkv_journal::{DriveUuid, FormatOptions, Identity as DriveIdentity, NodeUuid};
use memkv_poller::{Local, Reactor, ReactorConfig, Rng, SystemClock};
use memkv_session::{Context, ContextParts, DriveIo, Identity, KeyRing, SessionLimits, serve};
use memkv_store::{Policy, RecoveredDrive, Store, StoreConfig, StoreHandle};
use memkv_wire::handshake::{ClientHello, ServerHello, connect_keys, session_keys};
use memkv_wire::{
    CrcList, GetItem, GetItems, HEADER_LEN, Header, KeyList, Opcode, PutItem, PutItems, PutMode,
    Sealer, SharedKey, Side, Status, TO_THE_END, VERSION, crc32c,
};
use uuid::Uuid;

use super::line::Line;

const MIB: u64 = 1 << 20;
/// The key of a block that is there, and its bytes.
const KEY: &[u8] = b"0123456789abcdef0123456789abcdef";
const VALUE: usize = 64 << 10;

/// What is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Question {
    /// Whether a block is there that is, as the client's `exists` asks.
    Exists,
    /// A block of 64 KiB.
    Get,
}

/// A reactor, and a line to what it serves.
pub struct Stage {
    reactor: Reactor,
    line: Rc<Line>,
}

impl Stage {
    fn new() -> Stage {
        let config = ReactorConfig::default();
        let reactor = Reactor::new(config, Rc::new(SystemClock), Rng::seeded(1));
        Stage { reactor, line: Rc::default() }
    }

    /// One that answers with so many bytes and does nothing else.
    pub fn bare(asked: usize, answered: usize) -> Stage {
        let stage = Stage::new();
        let echo = super::line::echo(stage.line.clone(), asked, answered);
        stage.reactor.local().spawn(echo);
        stage
    }

    /// A session whose store has one block, and the client's end of it.
    pub fn session() -> (Stage, Asker) {
        let mut stage = Stage::new();
        let local = stage.reactor.local();
        let context = stage.reactor.block_on(context(local.clone()));
        local.spawn(serve(context, stage.line.clone()));
        let sealer = stage.shake_hands();
        let mut asker = Asker { sealer, request: 1 };
        let put = asker.put();
        stage.ask(&put);
        (stage, asker)
    }

    /// Has a question answered; bytes of the answer.
    pub fn ask(&mut self, frame: &[u8]) -> u64 {
        let before = self.line.sent();
        self.line.feed(frame);
        while self.line.sent() == before {
            self.reactor.step();
        }
        self.line.sent() - before
    }

    /// The status of what was answered last.
    pub fn status(&self) -> Status {
        let last = self.line.last();
        let raw = last.first_chunk::<HEADER_LEN>().expect("a header");
        Header::parse(raw).expect("a header of the session's").status()
    }

    fn shake_hands(&mut self) -> Sealer {
        let (key, client_nonce) = (SharedKey::from_bytes([7; 32]), [1; 32]);
        let hello = ClientHello {
            client_nonce,
            client_id: [2; 16],
            key_id: 1,
            namespace: "bench",
            version_min: VERSION,
            version_max: VERSION,
            counts_lent: false,
            reads_windows: false,
        };
        let (mut sealer, mut opener) = connect_keys(&key, 1, Side::Client);
        let (mut meta, mut bytes) = (Vec::new(), Vec::new());
        hello.encode(&mut meta);
        sealer.seal(&mut Header::request(Opcode::Connect, 1), &meta, &mut bytes);
        self.ask(&bytes);
        let reply = self.line.last();
        let (raw, meta) = reply.split_first_chunk::<HEADER_LEN>().expect("a header");
        opener.open(raw, meta).expect("the session's own hello");
        let hello = ServerHello::parse(meta).expect("the session's own hello");
        let nonce = hello.server_nonce;
        session_keys(&key, 1, VERSION, &client_nonce, &nonce, Side::Client).0
    }
}

/// The client's end: it seals questions, in the order in which they are to be asked.
pub struct Asker {
    sealer: Sealer,
    request: u64,
}

impl Asker {
    /// The next question, sealed.
    pub fn question(&mut self, question: Question) -> Vec<u8> {
        let mut meta = Vec::new();
        match question {
            Question::Exists => KeyList { keys: vec![KEY] }.encode(&mut meta),
            Question::Get => {
                let item = GetItem { key: KEY, offset: 0, length: TO_THE_END };
                GetItems { items: vec![item] }.encode(&mut meta);
            }
        }
        let opcode = match question {
            Question::Exists => Opcode::Presence,
            Question::Get => Opcode::Get,
        };
        self.seal(opcode, 0, &meta)
    }

    fn put(&mut self) -> Vec<u8> {
        let value = vec![5; VALUE];
        let crcs = CrcList::from_slice(&[crc32c(&value)]).expect("one CRC");
        let item = PutItem {
            key: KEY,
            length: VALUE as u64,
            mode: PutMode::Absent,
            durable: false,
            ttl_seconds: 0,
            crcs,
            advice: Default::default(),
        };
        let mut meta = Vec::new();
        PutItems { items: vec![item] }.encode(&mut meta);
        let mut frame = self.seal(Opcode::Put, VALUE as u64, &meta);
        frame.extend_from_slice(&value);
        frame
    }

    fn seal(&mut self, opcode: Opcode, payload: u64, meta: &[u8]) -> Vec<u8> {
        self.request += 1;
        let mut header = Header::request(opcode, self.request).with_payload_length(payload);
        let mut frame = Vec::new();
        self.sealer.seal(&mut header, meta, &mut frame);
        frame
    }
}

/// A store on a drive of memory, and what its sessions share.
async fn context(local: Local) -> Rc<Context> {
    let config = PoolConfig { size: 64 * MIB, chunk: 2 * MIB, hugepages: Hugepages::Never };
    let pool = Pool::new(config).expect("memory for a pool");
    let device = memory(256 * MIB, Hugepages::Never).expect("memory for a drive");
    let queue = device.open_queue(&local).expect("memory has a queue");
    let drive = DriveUuid(Uuid::from_u128(1));
    let identity = DriveIdentity {
        node: NodeUuid(Uuid::from_u128(2)),
        drive,
        epoch: 1,
        members: vec![drive],
        secret: [3; 32],
    };
    let options = FormatOptions { ring_bytes: Some(8 * MIB), ..FormatOptions::default() };
    let geometry = device.geometry();
    let superblock = memkv_journal::format(&*queue, &geometry, &pool, identity, options).await;
    let superblock = superblock.expect("the drive is large enough");
    let opened = memkv_journal::open(queue.clone(), &local, pool.clone(), superblock).await;
    let (journal, recovered) = opened.expect("it was formatted just now");
    let drives = vec![RecoveredDrive { journal, recovered }];
    let policy = Policy::Chain.build();
    let store = Store::recover(&local, StoreConfig::default(), policy, drives).await;
    let mut keys = KeyRing::default();
    keys.add(1, SharedKey::from_bytes([7; 32]), "tenant");
    Context::new(ContextParts {
        lendable: 0,
        nameable: 0,
        door: None,
        stagings: None,
        local,
        pool,
        drives: vec![DriveIo { device, queue }],
        store: StoreHandle::Here(store.expect("one drive is a node")),
        keys,
        limits: SessionLimits::default(),
        namespaces: Vec::new(),
        identity: Identity { server: [4; 16], incarnation: 1 },
        entropy: Box::new(|bytes| bytes.fill(9)),
        stats: Box::new(Vec::new),
        counters: Arc::default(),
    })
}
