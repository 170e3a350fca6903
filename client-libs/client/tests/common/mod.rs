//! A small server for the client's tests: it keeps values in a map, speaks `memkv-wire` over a std socket
//! with a thread per connection, and misbehaves on request.

#![allow(dead_code, reason = "every test file uses its own part of this")]

mod serve;
mod shown;

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;

use memkv_client::{Client, Config, PutMode, PutOptions};
use memkv_wire::handshake::Limits;
use memkv_wire::meta::ItemReply;
use memkv_wire::{Advice, Opcode, SharedKey, Status};

pub use shown::Shown;

/// A put of what is not there, and nothing more.
pub const ABSENT: PutOptions = PutOptions {
    mode: PutMode::Absent,
    ttl_seconds: 0,
    durable: false,
    pin_seconds: 0,
    deadline: None,
};
/// A put whatever is there.
pub const REPLACE: PutOptions = PutOptions { mode: PutMode::Replace, ..ABSENT };

/// What the server does to the next request of an operation instead of serving it well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trick {
    /// Answers with one bit of the reply's MAC flipped.
    BadMac,
    /// Sends the first value with a wrong CRC.
    BadCrc,
    /// Closes in the middle of the reply's payload.
    CloseInPayload,
    /// Falls silent in the middle of the reply's payload.
    SilentInPayload,
    /// Closes before the request is carried out.
    CloseBefore,
    /// Carries the request out and closes without a reply.
    CloseAfter,
    /// Says goodbye instead of replying.
    Goodbye,
    /// Never replies, and keeps the connection open.
    Silent,
    /// Refuses the request as a whole.
    Refuse(Status, u32),
    /// Answers the first item with this status and carries out the others.
    First(Status, u32),
    /// Replies to another request id.
    OtherRequest,
    /// Sends one byte more than was asked for.
    TooMuch,
    /// Names payload in memory that it does not show.
    Beyond,
}

/// One request as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The connection, counted from 0.
    pub connection: usize,
    pub client_id: [u8; 16],
    pub opcode: Opcode,
    pub request_id: u64,
    pub items: usize,
    pub payload: u64,
    pub trace: [u8; 16],
}

/// A stored value.
#[derive(Clone, Debug)]
pub struct Stored {
    pub value: Vec<u8>,
    pub generation: u64,
}

/// What all connections share.
#[derive(Default)]
pub struct World {
    pub blocks: HashMap<Vec<u8>, Stored>,
    pub generations: u64,
    pub tricks: VecDeque<(Opcode, Trick)>,
    pub seen: Vec<Seen>,
    pub suspects: Vec<(Vec<u8>, u64)>,
    pub leases: HashSet<Vec<u8>>,
    /// What was said of keys, in its order.
    pub hints: Vec<(Advice, u32, Vec<u8>)>,
    /// What was said besides of values that came in puts and offers.
    pub advised: Vec<(Vec<u8>, Option<Vec<u8>>, u32)>,
    /// Results of puts by client and request, as a server remembers them.
    pub remembered: HashMap<([u8; 16], u64), Vec<ItemReply>>,
    /// Connections from now on are of an older server: it knows no Presence.
    pub older: bool,
}

/// How a test server is set up.
#[derive(Clone)]
pub struct Setup {
    pub key: SharedKey,
    pub limits: Limits,
    /// Put replies are held back until no further request has come for a moment.
    pub lazy: bool,
    /// Answers the items of a Get from the last to the first.
    pub backwards: bool,
    /// CRCs of a Get follow in a trailer.
    pub trailer: bool,
    /// Refuses every Connect with this status.
    pub refuse: Option<Status>,
    /// Takes connections and says nothing on them.
    pub mute: bool,
    /// Takes payload with an Offer.
    pub payload_with_offer: bool,
    /// Answers Presence.
    pub answers_presence: bool,
    /// Names payload to who can read it here.
    pub shows: Option<Arc<Shown>>,
    /// Takes memory at its door, in which puts name their payload.
    pub takes_staged: bool,
}

impl Default for Setup {
    fn default() -> Setup {
        Setup {
            key: memkv_wire::loopback_key(),
            limits: Limits {
                max_value: 4 << 20,
                max_inline: 256 << 10,
                credits: 8,
                max_items: 4096,
                max_requests: 16,
                lease_ms_max: 60_000,
                extent: 1 << 20,
            },
            lazy: false,
            backwards: false,
            trailer: false,
            refuse: None,
            mute: false,
            payload_with_offer: false,
            answers_presence: false,
            shows: None,
            takes_staged: false,
        }
    }
}

pub struct Shared {
    pub setup: Setup,
    pub world: Mutex<World>,
    pub stopping: AtomicBool,
    pub open: AtomicUsize,
    pub open_max: AtomicUsize,
    streams: Mutex<Vec<TcpStream>>,
}

impl Shared {
    pub fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// A running server; dropping it kills it, connections and all.
pub struct TestServer {
    pub address: String,
    pub shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

impl TestServer {
    pub fn start(setup: Setup) -> TestServer {
        TestServer::start_at("127.0.0.1:0", setup)
    }

    pub fn start_at(address: &str, setup: Setup) -> TestServer {
        let listener = TcpListener::bind(address).expect("bind");
        let address = listener.local_addr().expect("address").to_string();
        let shared = Arc::new(Shared {
            setup,
            world: Mutex::default(),
            stopping: AtomicBool::new(false),
            open: AtomicUsize::new(0),
            open_max: AtomicUsize::new(0),
            streams: Mutex::default(),
        });
        let own = shared.clone();
        let acceptor = std::thread::spawn(move || accept(&listener, &own));
        TestServer { address, shared, acceptor: Some(acceptor) }
    }

    pub fn world(&self) -> MutexGuard<'_, World> {
        self.shared.world()
    }

    /// The next request of this operation meets this trick.
    pub fn play(&self, opcode: Opcode, trick: Trick) {
        self.world().tricks.push_back((opcode, trick));
    }

    /// Requests of one operation that have come so far.
    pub fn seen(&self, opcode: Opcode) -> Vec<Seen> {
        self.world().seen.iter().filter(|seen| seen.opcode == opcode).cloned().collect()
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        // Wakes the acceptor.
        let _ = TcpStream::connect(&self.address);
        if let Some(acceptor) = self.acceptor.take() {
            acceptor.join().expect("the acceptor");
        }
        for stream in self.shared.streams.lock().expect("streams").drain(..) {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    let mut threads = Vec::new();
    for (number, stream) in listener.incoming().enumerate() {
        let stream = stream.expect("accept");
        if shared.stopping.load(Ordering::SeqCst) {
            break;
        }
        stream.set_nodelay(true).expect("TCP_NODELAY");
        let copy = stream.try_clone().expect("clone");
        shared.streams.lock().expect("streams").push(copy);
        let shared = shared.clone();
        threads.push(std::thread::spawn(move || {
            let open = shared.open.fetch_add(1, Ordering::SeqCst) + 1;
            shared.open_max.fetch_max(open, Ordering::SeqCst);
            // How a connection ends is the test's matter; that the client bears it is what it checks.
            let _ = serve::serve(&stream, number, &shared);
            shared.open.fetch_sub(1, Ordering::SeqCst);
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }));
    }
}

/// A configuration for these servers.
pub fn config(servers: &[&TestServer]) -> Config {
    Config {
        servers: servers.iter().map(|server| server.address.clone()).collect(),
        // The machines of tests are slow at times.
        connect_timeout_ms: 60_000,
        request_timeout_ms: 20_000,
        ..Config::default()
    }
}

/// A server and a client of it.
pub fn pair(setup: Setup) -> (TestServer, Client) {
    let server = TestServer::start(setup);
    let client = Client::new(config(&[&server])).expect("a client");
    (server, client)
}

/// Bytes in which every place tells where it is.
pub fn pattern(len: usize, salt: u32) -> Vec<u8> {
    let word = |at: usize| (at as u32).wrapping_mul(2_654_435_761).wrapping_add(salt);
    (0..len).map(|at| (word(at) >> 13) as u8).collect()
}

/// A key of `server` among `servers`: the `number`-th that the client sends there.
pub fn key_of(client: &Client, server: &TestServer, number: usize) -> Vec<u8> {
    let keys = (0..).map(|at| format!("key {at}").into_bytes());
    let mut own = keys.filter(|key| *client.server_of(key) == *server.address);
    own.nth(number).expect("every server gets keys")
}
