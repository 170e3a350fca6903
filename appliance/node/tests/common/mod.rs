//! A node in this process and a client that speaks frames by hand, so that it can also speak them
//! wrongly.
#![allow(dead_code, reason = "each test uses its part of it")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use memkv_node::config::{Config, Overrides};
use memkv_node::node::{Node, StartError};
use memkv_node::paths::ThisMachine;
use memkv_wire::handshake::{ClientHello, ServerHello, connect_keys, session_keys};
use memkv_wire::{
    CrcList, DataMeta, DataReply, DeleteItem, DeleteItems, Empty, FrameError, GetItem, GetItems,
    GetReply, GoodbyeMeta, HEADER_LEN, Header, ItemReplies, ItemReply, KeyList, MatchItem,
    MatchItems, MatchReply, Opcode, Opener, PutItem, PutItems, PutMode, Sealer, SharedKey, Side,
    StatsReply, Status, VERSION, loopback_key,
};

/// Starts a node on a port of the system's choice.
pub fn node(yaml: &str) -> Node {
    try_node(yaml).expect("the node starts")
}

pub fn try_node(yaml: &str) -> Result<Node, StartError> {
    try_node_as(yaml, false)
}

/// The same; `degraded`: although drives are missing.
pub fn try_node_as(yaml: &str, degraded: bool) -> Result<Node, StartError> {
    let address = Some("127.0.0.1:0".into());
    let overrides = Overrides { address, degraded, ..Overrides::default() };
    let config = Config::parse(yaml, &overrides, &ThisMachine).expect("a good configuration");
    let quiet: memkv_node::drives::Progress = Rc::new(|_, _, _| {});
    Node::start(config, &quiet)
}

/// A node with one drive of memory.
pub fn memory_node(drive: &str) -> Node {
    node(&format!(
        "memory: {{max_size: 64 MiB}}\nstorage: {{mode: memory, drives: [{{max_size: {drive}}}]}}\n"
    ))
}

/// Every connection is a client of its own: its request ids mean nothing to the others.
static NEXT_CLIENT: AtomicU64 = AtomicU64::new(1);

/// One frame that came back.
pub struct Frame {
    pub header: Header,
    pub meta: Vec<u8>,
    pub payload: Vec<u8>,
}

/// One connection, by hand.
pub struct Wire {
    pub socket: TcpStream,
    pub sealer: Sealer,
    pub opener: Opener,
    pub hello: ServerHello,
    /// Lent payload received.
    pub consumed: u64,
    next_request: u64,
}

/// Why no connection came about.
#[derive(Debug)]
pub struct Refused;

impl Wire {
    pub fn connect(node: &Node) -> Self {
        Self::connect_to(node.address())
    }

    pub fn connect_to(address: SocketAddr) -> Self {
        Self::greet(address, &loopback_key(), 0, "tests").expect("the node welcomes us")
    }

    pub fn connect_as(
        node: &Node,
        key: &SharedKey,
        key_id: u32,
        namespace: &str,
    ) -> Result<Self, Refused> {
        Self::greet(node.address(), key, key_id, namespace)
    }

    fn greet(
        address: SocketAddr,
        key: &SharedKey,
        key_id: u32,
        namespace: &str,
    ) -> Result<Self, Refused> {
        let mut socket = TcpStream::connect(address).expect("the node listens");
        socket.set_read_timeout(Some(Duration::from_secs(120))).expect("a timeout");
        socket.set_nodelay(true).expect("no delay");
        let (mut sealer, mut opener) = connect_keys(key, key_id, Side::Client);
        let client_nonce = [7; 32];
        let hello = ClientHello {
            client_nonce,
            client_id: NEXT_CLIENT.fetch_add(1, Ordering::Relaxed).to_le_bytes().repeat(2)[..]
                .try_into()
                .expect("16 bytes"),
            key_id,
            namespace,
            version_min: VERSION,
            version_max: VERSION,
            counts_lent: true,
            reads_windows: true,
        };
        let mut meta = Vec::new();
        hello.encode(&mut meta);
        let mut bytes = Vec::new();
        sealer.seal(&mut Header::request(Opcode::Connect, 1), &meta, &mut bytes);
        socket.write_all(&bytes).expect("the node reads");
        let Ok(reply) = receive(&mut socket, &mut opener) else { return Err(Refused) };
        let hello = ServerHello::parse(&reply.meta).expect("a server's hello");
        let (sealer, opener) =
            session_keys(key, key_id, VERSION, &client_nonce, &hello.server_nonce, Side::Client);
        Ok(Self { socket, sealer, opener, hello, consumed: 0, next_request: 1 })
    }

    /// A new request's header.
    pub fn request(&mut self, opcode: Opcode) -> Header {
        self.next_request += 1;
        Header::request(opcode, self.next_request)
    }

    /// Seals and sends a frame with an optional payload and trailer.
    pub fn send(&mut self, mut header: Header, meta: &[u8], payload: &[u8], crcs: Option<&[u32]>) {
        header = header.with_payload_length(payload.len() as u64).with_consumed(self.consumed);
        if crcs.is_some() {
            header = header.with_trailer();
        }
        let mut bytes = Vec::new();
        self.sealer.seal(&mut header, meta, &mut bytes);
        bytes.extend_from_slice(payload);
        if let Some(crcs) = crcs {
            self.sealer.seal_trailer(header.mac(), crcs, &mut bytes);
        }
        self.raw(&bytes);
    }

    pub fn raw(&mut self, bytes: &[u8]) {
        // A node that has closed may refuse the rest; what it answers is what counts.
        let _ = self.socket.write_all(bytes);
    }

    /// The next frame, or the end of the connection.
    pub fn receive(&mut self) -> Result<Frame, Closed> {
        let frame = receive(&mut self.socket, &mut self.opener)?;
        if frame.header.is_lent() {
            self.consumed += frame.payload.len() as u64;
        }
        Ok(frame)
    }

    /// The status and text of the goodbye that must come next, then the end.
    pub fn goodbye(&mut self) -> (Status, String) {
        let frame = self.receive().expect("a goodbye before the end");
        assert_eq!(frame.header.opcode(), Opcode::Goodbye);
        let text = GoodbyeMeta::parse(&frame.meta).expect("a goodbye's meta").text.to_owned();
        assert!(self.receive().is_err(), "the connection ends after a goodbye");
        (frame.header.status(), text)
    }

    pub fn call(&mut self, header: Header, meta: &[u8], payload: &[u8]) -> Frame {
        self.send(header, meta, payload, None);
        let frame = self.receive().expect("an answer");
        assert_eq!(frame.header.request_id(), header.request_id());
        frame
    }

    /// Puts one value inline.
    pub fn put(&mut self, key: &[u8], value: &[u8], mode: PutMode) -> ItemReply {
        let extent = self.hello.limits.extent as usize;
        let crcs = CrcList::of(value, extent).expect("few extents");
        self.put_with(key, value, mode, crcs)
    }

    pub fn put_with(
        &mut self,
        key: &[u8],
        value: &[u8],
        mode: PutMode,
        crcs: CrcList,
    ) -> ItemReply {
        self.put_as(put_item(key, value.len(), mode, crcs), value)
    }

    /// Puts one value, with these options.
    pub fn put_as(&mut self, item: PutItem<'_>, value: &[u8]) -> ItemReply {
        let mut meta = Vec::new();
        PutItems { items: vec![item] }.encode(&mut meta);
        let header = self.request(Opcode::Put);
        let frame = self.call(header, &meta, value);
        assert_eq!(frame.header.credits(), 1, "the credit comes back");
        ItemReplies::parse(&frame.meta).expect("item replies").items[0]
    }

    /// Offers one value; the answer and the header of the offer.
    pub fn offer(&mut self, key: &[u8], length: usize, mode: PutMode) -> (ItemReply, Header) {
        let mut meta = Vec::new();
        PutItems { items: vec![put_item(key, length, mode, CrcList::default())] }.encode(&mut meta);
        let header = self.request(Opcode::Offer);
        let frame = self.call(header, &meta, &[]);
        (ItemReplies::parse(&frame.meta).expect("item replies").items[0], header)
    }

    /// Sends the payload of an offered value.
    pub fn data(&mut self, offer: Header, value: &[u8]) -> ItemReply {
        let crcs = CrcList::of(value, self.hello.limits.extent as usize).expect("few extents");
        self.data_with(offer, value, crcs.as_slice())
    }

    pub fn data_with(&mut self, offer: Header, value: &[u8], crcs: &[u32]) -> ItemReply {
        self.send_data(offer, value, crcs);
        let frame = self.receive().expect("an answer");
        DataReply::parse(&frame.meta).expect("a data reply").reply
    }

    pub fn send_data(&mut self, offer: Header, value: &[u8], crcs: &[u32]) {
        let mut meta = Vec::new();
        DataMeta { item: 0 }.encode(&mut meta);
        let header = Header::request(Opcode::Data, offer.request_id());
        self.send(header, &meta, value, Some(crcs));
    }

    /// Offers and sends.
    pub fn put_large(&mut self, key: &[u8], value: &[u8]) -> ItemReply {
        let (reply, offer) = self.offer(key, value.len(), PutMode::Absent);
        assert_eq!(reply.status, Status::Want, "{reply:?}");
        self.data(offer, value)
    }

    pub fn get(&mut self, key: &[u8]) -> (ItemReply, Vec<u8>) {
        self.get_range(key, 0, u64::MAX)
    }

    pub fn get_range(&mut self, key: &[u8], offset: u64, length: u64) -> (ItemReply, Vec<u8>) {
        let mut meta = Vec::new();
        GetItems { items: vec![GetItem { key, offset, length }] }.encode(&mut meta);
        let header = self.request(Opcode::Get);
        let frame = self.call(header, &meta, &[]);
        (GetReply::parse(&frame.meta).expect("a get reply").reply, frame.payload)
    }

    pub fn exists(&mut self, keys: &[&[u8]]) -> Vec<Status> {
        let mut meta = Vec::new();
        KeyList { keys: keys.to_vec() }.encode(&mut meta);
        let header = self.request(Opcode::Exists);
        let frame = self.call(header, &meta, &[]);
        let replies = ItemReplies::parse(&frame.meta).expect("item replies");
        replies.items.iter().map(|reply| reply.status).collect()
    }

    pub fn stats(&mut self) -> StatsReply {
        let header = self.request(Opcode::Stats);
        let mut meta = Vec::new();
        Empty.encode(&mut meta);
        let frame = self.call(header, &meta, &[]);
        StatsReply::parse(&frame.meta).expect("counters")
    }

    pub fn match_prefix(&mut self, keys: &[&[u8]]) -> u32 {
        let items = keys.iter().enumerate();
        let items = items.map(|(i, key)| MatchItem { position: i as u32, key }).collect();
        let mut meta = Vec::new();
        MatchItems { items }.encode(&mut meta);
        let header = self.request(Opcode::MatchPrefix);
        let frame = self.call(header, &meta, &[]);
        MatchReply::parse(&frame.meta).expect("a match reply").first_missing
    }

    pub fn delete(&mut self, key: &[u8], generation: u64) -> ItemReply {
        let mut meta = Vec::new();
        DeleteItems { items: vec![DeleteItem { key, generation }] }.encode(&mut meta);
        let header = self.request(Opcode::Delete);
        let frame = self.call(header, &meta, &[]);
        ItemReplies::parse(&frame.meta).expect("item replies").items[0]
    }
}

/// An item of a put or an offer.
pub fn put_item(key: &[u8], length: usize, mode: PutMode, crcs: CrcList) -> PutItem<'_> {
    let advice = Default::default();
    PutItem { key, length: length as u64, mode, durable: false, ttl_seconds: 0, crcs, advice }
}

/// The connection ended, or what came is no frame.
#[derive(Debug)]
pub enum Closed {
    Io(std::io::Error),
    Frame(FrameError),
}

fn receive(socket: &mut TcpStream, opener: &mut Opener) -> Result<Frame, Closed> {
    let mut raw = [0; HEADER_LEN];
    socket.read_exact(&mut raw).map_err(Closed::Io)?;
    let peeked = opener.peek(&raw).map_err(Closed::Frame)?;
    let mut meta = vec![0; peeked.meta_length() as usize];
    socket.read_exact(&mut meta).map_err(Closed::Io)?;
    let header = opener.open(&raw, &meta).map_err(Closed::Frame)?;
    let mut payload = vec![0; header.payload_length() as usize];
    socket.read_exact(&mut payload).map_err(Closed::Io)?;
    Ok(Frame { header, meta, payload })
}

/// Bytes that tell their key and place.
pub fn value(seed: u8, length: usize) -> Vec<u8> {
    (0..length).map(|i| seed ^ (i as u8) ^ ((i >> 8) as u8) ^ ((i >> 16) as u8)).collect()
}
