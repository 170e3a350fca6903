//! A real node, a door in front of it that can be shut, and layouts of upstream's own making.
#![allow(dead_code, reason = "each test uses its part of it")]

pub mod nixl;

use std::any::Any;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::rc::Rc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use dynamo_memory::nixl::{MemType, NixlCompatible, NixlDescriptor};
use dynamo_memory::{MemoryDescriptor, StorageKind};
use kvbm_common::SequenceHash;
use kvbm_physical::layout::{BlockDimension, LayoutConfig, PhysicalLayout};
use kvbm_physical::testing::custom_config;
use memkv_client::{Client, Transport};
use memkv_kvbm::{Identity, Tier};
use memkv_node::config::{Config, Overrides};
use memkv_node::node::Node;
use memkv_node::paths::ThisMachine;
use sha2::{Digest, Sha256};

/// How long a call of these tests may take.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// How long anything may take on a machine that does much else.
pub const LIMIT: Duration = Duration::from_secs(60);

/// A node that keeps its blocks in memory.
pub fn node() -> Node {
    node_at("127.0.0.1:0")
}

/// The same, where one was before.
pub fn node_at(address: &str) -> Node {
    let config = format!(
        "
network: {{address: '{address}'}}
memory: {{max_size: 128 MiB, hugepages: never}}
storage: {{mode: memory, drives: [{{max_size: 512 MiB}}]}}
node: {{reactors: 1}}
"
    );
    let config = Config::parse(&config, &Overrides::default(), &ThisMachine)
        .unwrap_or_else(|error| panic!("{error}"));
    Node::start(config, &(Rc::new(|_: &str, _, _| ()) as _)).expect("a node starts")
}

/// A client of the server at `address`.
pub fn client(address: SocketAddr) -> Client {
    client_by(Transport::Auto, address)
}

fn client_by(transport: Transport, address: SocketAddr) -> Client {
    let config = memkv_client::Config {
        servers: vec![address.to_string()],
        namespace: "kvbm-tests".to_owned(),
        transport,
        // The machines of tests are slow at times.
        connect_timeout_ms: 60_000,
        request_timeout_ms: PATIENCE.as_millis() as u64,
        ..memkv_client::Config::default()
    };
    Client::new(config).expect("a client")
}

/// A deployment that uses the server at `address`.
pub fn tier(address: SocketAddr) -> Tier {
    Tier::new(client(address), identity())
}

/// The same, all of whose bytes come through the socket, where they can be held up.
pub fn tier_by_tcp(address: SocketAddr) -> Tier {
    Tier::new(client_by(Transport::Tcp, address), identity())
}

/// Whose blocks the tests move.
pub fn identity() -> Identity {
    Identity::new("test-model").with("dtype", "bf16")
}

/// How blocks lie in memory.
#[derive(Clone, Copy, Debug)]
pub enum Order {
    /// Block behind block.
    Contiguous,
    /// An allocation for each layer.
    Layers,
}

/// Blocks in host memory: 4 layers of keys and values, each `region` bytes long.
pub fn layout(order: Order, blocks: usize, region: usize) -> PhysicalLayout {
    layout_of(order, blocks, 4, region)
}

/// The same with another number of layers.
pub fn layout_of(order: Order, blocks: usize, layers: usize, region: usize) -> PhysicalLayout {
    let config = custom_config(blocks, layers, 2, 16, region / 32, 2);
    let whole = config.required_bytes();
    let allocations = match order {
        Order::Contiguous => vec![Memory::new(whole)],
        Order::Layers => (0..layers).map(|_| Memory::new(whole / layers)).collect(),
    };
    build(order, config, allocations)
}

/// Two blocks in memory that is not the host's.
pub fn elsewhere(kind: StorageKind) -> PhysicalLayout {
    let config = custom_config(2, 1, 1, 16, 64, 2);
    // It says where it is, in the first pages of the address space: whoever touched it would crash.
    let memory =
        Memory { kind, address: 4096, bytes: Box::default(), size: config.required_bytes() };
    build(Order::Contiguous, config, vec![memory])
}

fn build(order: Order, config: LayoutConfig, allocations: Vec<Memory>) -> PhysicalLayout {
    static AGENTS: AtomicU64 = AtomicU64::new(0);
    let agent = format!("memkv-test-{}", AGENTS.fetch_add(1, Ordering::Relaxed));
    let builder = PhysicalLayout::builder(nixl::agent(&agent)).with_config(config);
    let builder = match order {
        Order::Contiguous => builder.fully_contiguous(),
        Order::Layers => builder.layer_separate(BlockDimension::BlockIsFirstDim),
    };
    let builder = builder.with_memory_regions(allocations);
    builder.and_then(|builder| builder.build()).expect("a layout")
}

/// An allocation that is registered nowhere.
#[derive(Debug)]
struct Memory {
    kind: StorageKind,
    address: usize,
    size: usize,
    /// Written to by whoever has the address.
    bytes: Box<[AtomicU8]>,
}

impl Memory {
    fn new(size: usize) -> Memory {
        let bytes: Box<[AtomicU8]> = (0..size).map(|_| AtomicU8::new(0)).collect();
        let address = bytes.as_ptr().expose_provenance();
        Memory { kind: StorageKind::System, address, size, bytes }
    }
}

impl MemoryDescriptor for Memory {
    fn addr(&self) -> usize {
        self.address
    }

    fn size(&self) -> usize {
        self.size
    }

    fn storage_kind(&self) -> StorageKind {
        self.kind
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    /// That there is one says that it need not be registered.
    fn nixl_descriptor(&self) -> Option<NixlDescriptor> {
        let (addr, size) = (self.address as u64, self.size);
        Some(NixlDescriptor { addr, size, mem_type: MemType::Dram, device_id: 0 })
    }
}

impl NixlCompatible for Memory {
    fn nixl_params(&self) -> (*const u8, usize, MemType, u64) {
        (std::ptr::with_exposed_provenance(self.address), self.size, MemType::Dram, 0)
    }
}

/// The hashes of a chain of blocks.
pub fn chain(seed: u64, count: u64) -> Vec<SequenceHash> {
    let hash = |at: u64| seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(at);
    let parent = |at: u64| at.checked_sub(1).map(hash);
    (0..count).map(|at| SequenceHash::new(hash(at), parent(at), at)).collect()
}

/// Waits for something, at most for [`LIMIT`].
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + LIMIT;
    while !done() {
        assert!(Instant::now() < end, "waited too long: {what}");
        std::thread::yield_now();
    }
}

/// Everything between a client and a server goes through a door: it can be held, so that nothing comes
/// through from the server, and shut, which is what a killed server looks like.
pub struct Door {
    pub address: SocketAddr,
    state: Arc<(Mutex<State>, Condvar)>,
}

struct State {
    server: SocketAddr,
    shut: bool,
    /// Bytes that the server may still say; `None` for as many as it likes.
    left: Option<usize>,
    streams: Vec<TcpStream>,
}

impl Door {
    pub fn to(server: SocketAddr) -> Door {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let state = State { server, shut: false, left: None, streams: Vec::new() };
        let state = Arc::new((Mutex::new(state), Condvar::new()));
        let own = state.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let mut door = own.0.lock().expect("the door");
                // Dropped, it is closed before the handshake.
                if door.shut {
                    continue;
                }
                let Ok(server) = TcpStream::connect(door.server) else { continue };
                let clone = |stream: &TcpStream| stream.try_clone().expect("a descriptor");
                door.streams.extend([clone(&client), clone(&server)]);
                let (up, down) = ((clone(&client), clone(&server)), (server, client));
                std::thread::spawn(move || pump(up, None));
                let own = own.clone();
                std::thread::spawn(move || pump(down, Some(&own)));
            }
        });
        Door { address, state }
    }

    /// From now on this many bytes come through from the server, and then nothing.
    pub fn hold_after(&self, bytes: usize) {
        self.lock().left = Some(bytes);
    }

    /// Whether all that may come through has.
    pub fn is_held(&self) -> bool {
        self.lock().left == Some(0)
    }

    /// Everything comes through again.
    pub fn release(&self) {
        self.lock().left = None;
        self.state.1.notify_all();
    }

    /// All connections break, and no new one is made.
    pub fn shut(&self) {
        let mut state = self.lock();
        state.shut = true;
        for stream in state.streams.drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
        drop(state);
        self.release();
    }

    /// Leads to another server.
    pub fn open_to(&self, server: SocketAddr) {
        let mut state = self.lock();
        (state.shut, state.server) = (false, server);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.0.lock().expect("the door")
    }
}

/// Moves bytes from one stream to the other, as many as the door lets through.
fn pump((mut from, mut to): (TcpStream, TcpStream), door: Option<&(Mutex<State>, Condvar)>) {
    let mut bytes = vec![0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        let mut rest = &bytes[..count];
        while !rest.is_empty() {
            let now = door.map_or(rest.len(), |door| may_pass(door, rest.len()));
            let (first, later) = rest.split_at(now);
            if to.write_all(first).is_err() {
                return;
            }
            rest = later;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}

/// How many of `wanted` bytes may come through, one at least: waits for that.
fn may_pass((state, changed): &(Mutex<State>, Condvar), wanted: usize) -> usize {
    let state = state.lock().expect("the door");
    let held = |state: &mut State| state.left == Some(0);
    let mut state = changed.wait_while(state, held).expect("the door");
    let now = state.left.map_or(wanted, |left| left.min(wanted));
    state.left = state.left.map(|left| left - now);
    now
}

/// The key of a block of a rank whose layout is written down: as the crate's first page says.
pub fn block_key(client: &Client, rank: &str, hash: &SequenceHash) -> String {
    let rank = format!("{}/{rank}", identity().prefix());
    let mut note = Vec::new();
    let found = client.get(format!("{rank}/layout").as_bytes(), &mut note).expect("a node");
    assert!(found.is_hit(), "no layout is written down for {rank}");
    let digest: Vec<String> =
        Sha256::digest(&note).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    format!("{rank}/{}/{:032x}", digest.concat(), hash.as_u128())
}
