//! GET latency in simulated time while the store works on its own account: `ci/sim --latency`.
//!
//! Drives of a fixed speed and a fixed distribution of delays (below), a reader that keeps four gets
//! of 64 KiB under way and a writer that stores a value every 250 microseconds, the same in every
//! scenario; then the store also writes checkpoints, scrubs, trims or evicts. Processors cost nothing
//! in simulated time, so what is measured is what requests wait for: drives, memory, locks.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use memkv_dma::Pool;
use memkv_poller::{Clock, Instant, Rng};
use memkv_sim::{
    DiskOptions, FaultRates, Latency, NetOptions, Pages, SimClock, SimDisk, SimNet, World,
    WorldOptions,
};
use memkv_store::{Policy, Store};
use memkv_wire::meta::{
    GetItem, GetItems, GetReply, PutAdvice, PutItem, PutItems, PutMode, TO_THE_END,
};
use memkv_wire::{CrcList, Header, Opcode, Status};

use crate::link::{Arrival, Link};
use crate::options::{FaultMode, Options, SPACES};
use crate::run::Reuse;
use crate::server::{self, Server};
use crate::stage::credential;

const MIB: u64 = 1 << 20;

/// A quick NVMe drive: 3 GiB/s, and delays in microseconds beyond the time its bytes take.
const DRIVE_SPEED: u64 = 3 << 30;
const DRIVE: Latency = Latency { read: (60, 150), write: (10, 40), flush: (100, 1_000), grain: 1 };
/// One way through the network, in microseconds.
const NETWORK: (u32, u32) = (5, 15);

/// Bytes of every value.
const VALUE: usize = 64 << 10;
/// Keys that are read, and keys that are written besides.
const READ_KEYS: u64 = 400;
const WRITTEN_KEYS: u64 = 200;
/// Small blocks that nobody asks for, so that a checkpoint has something to write.
const IDLE_KEYS: u64 = 6_000;
const IDLE_VALUE: usize = 100;
/// Gets under way at one time, and how many are measured.
const DEPTH: usize = 4;
const GETS: usize = 20_000;
/// Time between two puts.
const PUT_EVERY: Duration = Duration::from_micros(250);
/// Time between two checkpoints of a drive: far less than a ring takes to fill.
const CHECKPOINT_EVERY: Duration = Duration::from_millis(10);
/// The 99th percentile may be so many times that of the quiet store.
const BAR: f64 = 1.5;

/// What the store does besides.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Work {
    Nothing,
    Checkpoints,
    Scrub,
    Trim,
    Evictions,
    Everything,
}

impl Work {
    const ALL: [Work; 6] = [
        Work::Nothing,
        Work::Checkpoints,
        Work::Scrub,
        Work::Trim,
        Work::Evictions,
        Work::Everything,
    ];

    fn has(self, part: Work) -> bool {
        self == part || self == Work::Everything
    }

    fn options(self) -> Options {
        // Nothing is left as it was drawn that could matter here.
        let drawn = Options::draw(1, 1);
        Options {
            reactors: 2,
            store_reactor: 0,
            disks: 2,
            disk_bytes: if self.has(Work::Evictions) { 96 * MIB } else { 192 * MIB },
            sector: 4096,
            ring_bytes: 8 * MIB,
            extent: 4 * MIB as u32,
            transfer: MIB as u32,
            evicting: self.has(Work::Evictions),
            trim: self.has(Work::Trim).then_some((5_000, 64)),
            scrub: if self.has(Work::Scrub) { 64 * MIB } else { 0 },
            policy: Policy::Chain,
            durable: 0,
            faults: FaultMode::None,
            rates: FaultRates::default(),
            latency: DRIVE,
            net: NetOptions {
                latency: NETWORK,
                grain: 1,
                window: MIB,
                split: 0,
                linger: 0,
                reset: 0,
                lend: false,
                seed: 7,
            },
            pool_bytes: 32 * MIB,
            ..drawn
        }
    }
}

/// What a scenario came to. Microseconds.
struct Outcome {
    p50: f64,
    p99: f64,
    misses: u64,
    /// Checkpoints, extents scrubbed, ranges trimmed, blocks evicted.
    done: [u64; 4],
}

/// Runs all scenarios, prints their table and holds them against the bar: whether all of them do.
pub fn measure_all() -> bool {
    println!(
        "GET of 64 KiB in simulated time, {GETS} of them, {DEPTH} under way, a put each {} us",
        PUT_EVERY.as_micros()
    );
    println!(
        "{:>12} {:>9} {:>9} {:>6} {:>7}  checkpoints, extents scrubbed, ranges trimmed, evictions",
        "", "p50 us", "p99 us", "p99 x", "misses"
    );
    let mut quiet = None;
    let mut good = true;
    for work in Work::ALL {
        let outcome = Bench::new(work).run();
        let base = *quiet.get_or_insert(outcome.p99);
        let ratio = outcome.p99 / base;
        let idle = outcome.idle_part(work);
        let verdict = match idle {
            Some(part) => format!("  {part:?} did not happen"),
            None if ratio > BAR => format!("  above {BAR}"),
            None => String::new(),
        };
        good &= verdict.is_empty();
        println!(
            "{:>12} {:>9.1} {:>9.1} {ratio:>6.2} {:>7}  {:?}{verdict}",
            format!("{work:?}").to_lowercase(),
            outcome.p50,
            outcome.p99,
            outcome.misses,
            outcome.done,
        );
    }
    println!("test sim::latency ... {}", if good { "ok" } else { "FAILED" });
    good
}

impl Outcome {
    /// What was to happen and hardly did, so that the row would say nothing.
    fn idle_part(&self, work: Work) -> Option<Work> {
        let parts = [Work::Checkpoints, Work::Scrub, Work::Trim, Work::Evictions];
        let rare = |(part, &done): (&Work, &u64)| work.has(*part) && done < 50;
        parts.iter().zip(&self.done).find(|pair| rare(*pair)).map(|(part, _)| *part)
    }
}

/// One scenario on its way.
struct Bench {
    work: Work,
    options: Rc<Options>,
    clock: SimClock,
    world: World,
    net: SimNet,
    disks: Vec<SimDisk>,
    pool: Pool,
    rng: Rng,
    value: Vec<u8>,
}

/// A connection and what is under way on it: request and when it was sent.
struct Peer {
    link: Link,
    next: u64,
    under_way: Vec<(u64, Instant)>,
}

impl Peer {
    fn send(&mut self, now: Instant, opcode: Opcode, meta: &[u8], payload: &[u8]) {
        self.next += 1;
        self.under_way.push((self.next, now));
        let header = Header::request(opcode, self.next).with_deadline_ms(10_000);
        self.link.send(header.with_payload_length(payload.len() as u64), meta, payload);
    }

    fn answered(&mut self, request: u64) -> Instant {
        let at = self.under_way.iter().position(|(id, _)| *id == request);
        self.under_way.swap_remove(at.expect("the reply to a request under way")).1
    }
}

impl Bench {
    fn new(work: Work) -> Bench {
        let options = Rc::new(work.options());
        let clock = SimClock::new(1_800_000_000);
        let pages = Pages::default();
        let disk = |number: usize| {
            let disk = DiskOptions {
                sector: options.sector,
                latency: options.latency,
                bytes_per_second: DRIVE_SPEED,
                pages: pages.clone(),
                ..DiskOptions::new(format!("sim{number}"), options.disk_bytes, 5 + number as u64)
            };
            SimDisk::new(disk, clock.clone())
        };
        let disks: Vec<SimDisk> = (0..options.disks).map(disk).collect();
        let net = SimNet::new(options.net.clone(), clock.clone());
        let world_options =
            WorldOptions { reactors: options.reactors, inbox_capacity: 64, seed: 11 };
        let mut world = World::new(world_options, clock.clone());
        disks.iter().for_each(|disk| world.add_source(Rc::new(disk.clone())));
        world.add_source(Rc::new(net.clone()));
        let value: Vec<u8> = (0..VALUE).map(|at| (at * 7) as u8).collect();
        let pool = Reuse::default().pool(options.pool_bytes);
        Bench { work, options, clock, world, net, disks, pool, rng: Rng::seeded(3), value }
    }

    fn run(mut self) -> Outcome {
        let (store, server) = self.start();
        let (mut reader, mut writer) = (self.connect(&server, 0), self.connect(&server, 1));
        for key in 0..IDLE_KEYS + READ_KEYS {
            match key.checked_sub(IDLE_KEYS) {
                Some(key) => self.put(&mut writer, key, VALUE),
                None => self.put(&mut writer, u64::MAX - key, IDLE_VALUE),
            }
            while !writer.under_way.is_empty() {
                self.turn(None);
                self.take_replies(&mut writer);
            }
        }
        let halt = Rc::new(Cell::new(false));
        if self.work.has(Work::Checkpoints) {
            self.keep_checkpointing(&store, &halt);
        }
        let before = done(&store);
        let mut outcome = self.measure(&mut reader, &mut writer);
        halt.set(true);
        let after = done(&store);
        outcome.done = std::array::from_fn(|part| after[part] - before[part]);
        outcome
    }

    /// The gets that are measured, and the puts beside them.
    fn measure(&mut self, reader: &mut Peer, writer: &mut Peer) -> Outcome {
        let (mut micros, mut misses, mut written) = (Vec::with_capacity(GETS), 0, 0);
        let mut put_at = self.clock.now();
        while micros.len() < GETS {
            while reader.under_way.len() < DEPTH {
                let key = self.rng.below(READ_KEYS);
                self.get(reader, key);
            }
            if self.clock.now() >= put_at {
                // A writer that is behind does not catch up: the load is at most the agreed one.
                put_at = self.clock.now() + PUT_EVERY;
                if writer.under_way.len() < DEPTH {
                    written += 1;
                    let fresh = self.work.has(Work::Evictions);
                    let key = if fresh { written } else { written % WRITTEN_KEYS };
                    self.put(writer, READ_KEYS + key, VALUE);
                }
            }
            self.turn(Some(put_at));
            for (sent, status) in self.take_replies(reader) {
                match status {
                    Status::Ok => micros.push(self.micros_since(sent)),
                    Status::NotFound => misses += 1,
                    other => panic!("a get was answered {other}"),
                }
            }
            self.take_replies(writer);
        }
        micros.sort_by(f64::total_cmp);
        let rank = |share: f64| micros[((micros.len() - 1) as f64 * share) as usize];
        Outcome { p50: rank(0.5), p99: rank(0.99), misses, done: [0; 4] }
    }

    fn start(&mut self) -> (Rc<Store>, Server) {
        let (local, pool) = (self.world.local(0), self.pool.clone());
        let format = server::format_all(local, self.options.clone(), self.disks.clone(), pool);
        self.world.block_on(0, format).expect("it goes on").expect("the disks work");
        let (local, pool) = (self.world.local(0), self.pool.clone());
        let open = server::open(local, self.options.clone(), self.disks.clone(), false, pool);
        let opened = self.world.block_on(0, open).expect("it goes on").expect("it starts");
        let store = opened.store.clone();
        let server = Server::start(&self.world, &self.options, &self.pool, opened);
        (store, server.expect("the disks work"))
    }

    fn keep_checkpointing(&mut self, store: &Rc<Store>, halt: &Rc<Cell<bool>>) {
        let (store, halt, local) = (store.clone(), halt.clone(), self.world.local(0));
        let waits = local.clone();
        local.spawn(async move {
            while !halt.get() {
                for drive in store.drives() {
                    store.checkpoint_unless(drive.id, drive.journal.checkpoints).await;
                }
                waits.sleep(CHECKPOINT_EVERY).await;
            }
        });
    }

    fn connect(&mut self, server: &Server, tag: u64) -> Peer {
        let (end, connection) = self.net.connect(tag);
        server.accept(tag as usize % self.options.reactors, connection);
        self.world.kick();
        let link = Link::greet(end, credential(0), [tag as u8; 16], SPACES[0].1, [tag as u8; 32]);
        let mut peer = Peer { link, next: 0, under_way: Vec::new() };
        while !peer.link.is_open() {
            self.turn(None);
            self.take_replies(&mut peer);
        }
        peer
    }

    /// One thing happens, or time goes on, not beyond `until`.
    fn turn(&mut self, until: Option<Instant>) {
        // Whose turn it is says nothing here: both peers are looked at after every event.
        while self.net.pop_ready().is_some() {}
        if !self.world.step() {
            self.world.advance(until);
        }
    }

    fn take_replies(&mut self, peer: &mut Peer) -> Vec<(Instant, Status)> {
        let mut replies = Vec::new();
        loop {
            let mut reply = None;
            let arrival = peer.link.receive(|header, meta, payload| {
                reply = Some((header.request_id(), status_of(header, meta, payload.len())));
                Ok::<(), ()>(())
            });
            match arrival.expect("a link that works").expect("taken") {
                Arrival::Nothing => return replies,
                Arrival::Greeted(_) => {}
                Arrival::Frame => {
                    let (request, status) = reply.expect("a frame was shown");
                    replies.push((peer.answered(request), status));
                }
            }
        }
    }

    fn micros_since(&self, sent: Instant) -> f64 {
        self.clock.now().saturating_duration_since(sent).as_nanos() as f64 / 1e3
    }

    fn get(&self, peer: &mut Peer, key: u64) {
        let (name, mut meta) = (name(key), Vec::new());
        let item = GetItem { key: &name, offset: 0, length: TO_THE_END };
        GetItems { items: vec![item] }.encode(&mut meta);
        peer.send(self.clock.now(), Opcode::Get, &meta, &[]);
    }

    fn put(&self, peer: &mut Peer, key: u64, length: usize) {
        let (name, mut meta) = (name(key), Vec::new());
        let value = &self.value[..length];
        let crcs = CrcList::of(value, self.options.extent as usize).expect("one extent");
        let item = PutItem {
            key: &name,
            length: length as u64,
            mode: PutMode::Replace,
            durable: false,
            ttl_seconds: 0,
            crcs,
            advice: PutAdvice::default(),
        };
        PutItems { items: vec![item] }.encode(&mut meta);
        peer.send(self.clock.now(), Opcode::Put, &meta, value);
    }
}

fn name(key: u64) -> Vec<u8> {
    format!("key {key}").into_bytes()
}

/// How a reply answers; a get that brought other than a whole value is a bug.
fn status_of(header: &Header, meta: &[u8], payload: usize) -> Status {
    assert!(header.is_reply(), "the server says nothing unasked: {header:?}");
    if header.opcode() != Opcode::Get || header.status() != Status::Ok {
        return header.status();
    }
    let status = GetReply::parse(meta).expect("a reply to a get").reply.status;
    assert!(status != Status::Ok || payload == VALUE, "a whole value, not {payload} bytes");
    status
}

/// Checkpoints, extents scrubbed, ranges trimmed, blocks evicted so far.
fn done(store: &Store) -> [u64; 4] {
    let counters = store.counters();
    let trimmed = store.drives().iter().map(|drive| drive.trim.extents_trimmed).sum();
    [counters.checkpoints.get(), counters.scrub.extents.get(), trimmed, counters.evictions.get()]
}
