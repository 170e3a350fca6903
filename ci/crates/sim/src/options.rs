//! What one seed looks like: every option is drawn, so that each seed is a world of its own.
//!
//! Drawing options per seed ("swarm testing") finds more than one well-balanced mix does: a seed that
//! never deletes fills its drives, one without crashes laps its ring, one with two keys is all races.

use memkv_block::Geometry;
use memkv_journal::{FormatOptions, Layout, UNIT};
use memkv_poller::Rng;
use memkv_session::NamespaceLimits;
use memkv_sim::{CrashKind, FaultRates, Latency, NetOptions};
use memkv_store::{Durability, Policy};

/// Tenant and namespace pairs. The same key names are used in each: whatever crosses over is seen.
pub const SPACES: [(&str, &str); 3] = [("red", "models"), ("red", "drafts"), ("blue", "models")];

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// Which faults the disks of a seed have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FaultMode {
    /// None but slow commands.
    None,
    /// Silent harm to stored values.
    Values,
    /// Silent harm to stored values and to the journal's ring.
    Journal,
    /// Commands fail, and disks die.
    Errors,
}

/// How the server stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stop {
    /// A crash.
    Crash(CrashKind),
    /// In peace: drained, with a clean checkpoint.
    Clean,
}

/// What a crash waits for, once its turn has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Trigger {
    /// Nothing.
    Now,
    /// A write of a value is on its way.
    Value,
    /// A journal frame is on its way.
    Frame,
    /// A checkpoint is being written.
    Checkpoint,
    /// A superblock copy is on its way.
    Superblock,
    /// A flush is on its way.
    Flush,
    /// So many commands after the next start began: in the middle of recovery.
    Recovery(u32),
}

/// One stop of the server.
#[derive(Clone, Copy, Debug)]
pub struct Interruption {
    /// After so many requests.
    pub at: u64,
    /// How.
    pub stop: Stop,
    /// When exactly.
    pub trigger: Trigger,
}

/// Shares of the operations; drawn against their sum.
#[derive(Clone, Copy, Debug)]
pub struct Mix {
    pub put: u32,
    pub offer: u32,
    pub get: u32,
    pub range: u32,
    pub exists: u32,
    pub match_prefix: u32,
    pub lease: u32,
    pub delete: u32,
    pub suspect: u32,
}

impl Mix {
    /// The shares in a fixed order.
    pub fn shares(&self) -> [u32; 9] {
        [
            self.put,
            self.offer,
            self.get,
            self.range,
            self.exists,
            self.match_prefix,
            self.lease,
            self.delete,
            self.suspect,
        ]
    }
}

/// Everything that is drawn for one seed.
#[derive(Clone, Debug)]
pub struct Options {
    pub seed: u64,
    pub requests: u64,
    pub reactors: usize,
    pub store_reactor: usize,
    pub disks: usize,
    /// The last disk is blank at first, and joins while requests run.
    pub joins: bool,
    pub disk_bytes: u64,
    pub sector: u32,
    pub ring_bytes: u64,
    pub extent: u32,
    /// Bytes that one command moves between a disk and memory.
    pub transfer: u32,
    pub keys: u32,
    pub clients: usize,
    pub depth: usize,
    pub mix: Mix,
    /// Of a thousand operations, so many go to the few hot keys of a space.
    pub hot: u32,
    pub hot_keys: u32,
    pub evicting: bool,
    /// When what was freed is trimmed: after so many microseconds, or so many extents.
    pub trim: Option<(u64, u32)>,
    /// Bytes that the scrubber reads a second; 0 for no scrubber.
    pub scrub: u64,
    pub policy: Policy,
    pub durability: Durability,
    /// Of a thousand puts, so many ask to survive a power cut.
    pub durable: u32,
    pub ttl: bool,
    pub faults: FaultMode,
    pub rates: FaultRates,
    pub latency: Latency,
    pub net: NetOptions,
    /// Of a million client turns, so many end with a torn connection.
    pub hangups: u32,
    /// Of a thousand client turns, so many begin a time in which the client reads nothing.
    pub stops: u32,
    /// Inline puts that a connection may have under way.
    pub credits: u32,
    /// Of a thousand requests, so many name a very short deadline.
    pub hurried: u32,
    pub interruptions: Vec<Interruption>,
    /// After the last request everything is deleted, and every unit must be free.
    pub sweep: bool,
    pub pool_bytes: u64,
}

fn chance(rng: &mut Rng, of: u64) -> bool {
    rng.below(of) == 0
}

fn pick<T: Copy>(rng: &mut Rng, from: &[T]) -> T {
    from[rng.below(from.len() as u64) as usize]
}

impl Options {
    /// How many of the [`SPACES`] are used: where memory is lent, those of one tenant.
    pub fn spaces(&self) -> usize {
        if self.net.lend { 2 } else { SPACES.len() }
    }

    /// How long blocks of namespaces live, where time to live is played with: in some of those runs, all
    /// of one namespace do not live for long.
    pub fn namespaces(&self) -> Vec<NamespaceLimits> {
        let mortal =
            NamespaceLimits { name: SPACES[1].1.to_owned(), ttl_seconds: 2, ttl_max_seconds: 3 };
        if self.ttl && self.seed.is_multiple_of(3) { vec![mortal] } else { Vec::new() }
    }

    /// The seconds that a put to a space gets which asks for so many.
    pub fn namespace_ttl(&self, space: usize, asked: u32) -> u32 {
        let rule = self.namespaces().into_iter().find(|rule| rule.name == SPACES[space].1);
        rule.map_or(asked, |rule| rule.ttl(asked))
    }

    /// Draws the options of `seed`.
    pub fn draw(seed: u64, requests: u64) -> Options {
        let mut rng = Rng::seeded(seed ^ 0x5eed_0f0e_5eed);
        let rng = &mut rng;
        let reactors = 3 + rng.below(2) as usize;
        let extent = match rng.below(16) {
            0 => 4 << 20,
            1..=7 => 64 << 10,
            _ => 16 << 10,
        };
        let evicting = rng.below(3) == 0;
        let keys = pick(rng, &[4, 12, 24, 48, 48, 96]);
        let faults = match rng.below(20) {
            0..=9 => FaultMode::None,
            10..=13 => FaultMode::Values,
            14..=16 => FaultMode::Journal,
            _ => FaultMode::Errors,
        };
        let disks = pick(rng, &[1, 2, 2, 3, 4]);
        let mut options = Options {
            seed,
            requests,
            reactors,
            store_reactor: rng.below(reactors as u64) as usize,
            disks,
            // Not drawn: the other options of a seed stay as they were. No disk dies in these seeds.
            joins: disks > 1
                && matches!(faults, FaultMode::None | FaultMode::Values)
                && seed % 5 == 1,
            disk_bytes: 0,
            sector: pick(rng, &[512, 512, 4096]),
            ring_bytes: pick(rng, &[128, 128, 192, 256, 512]) * KIB,
            extent,
            // Of a sequence of its own: what else a seed means does not hang on it.
            transfer: match (extent, seed % 3) {
                (_, 0) => 1 << 20,
                (4_194_304, _) => 256 << 10,
                _ => 8 << 10,
            },
            keys,
            clients: pick(rng, &[2, 4, 6, 8, 12]),
            depth: pick(rng, &[1, 2, 4, 4, 8]),
            mix: draw_mix(rng),
            hot: pick(rng, &[0, 100, 300, 600]),
            hot_keys: 1 + rng.below(3) as u32,
            evicting,
            trim: draw_trim(seed),
            scrub: draw_scrub(seed),
            // Not drawn: the other options of a seed stay as they were.
            policy: Policy::ALL[(seed % Policy::ALL.len() as u64) as usize],
            durability: Durability::Process,
            durable: 0,
            ttl: chance(rng, 3),
            faults,
            rates: draw_rates(rng, faults),
            latency: draw_latency(rng),
            net: draw_net(rng, seed),
            hangups: pick(rng, &[0, 500, 5_000, 20_000]),
            stops: draw_stops(seed),
            credits: draw_credits(seed),
            hurried: pick(rng, &[0, 0, 10, 100]),
            interruptions: Vec::new(),
            sweep: faults == FaultMode::None && chance(rng, 3),
            pool_bytes: if extent > 64 << 10 { 64 * MIB } else { 8 * MIB },
        };
        options.disk_bytes = options.draw_disk_bytes(rng);
        options.interruptions = draw_interruptions(rng, requests);
        options.draw_durability();
        options
    }

    /// What acknowledged puts survive: drawn from a sequence of its own.
    fn draw_durability(&mut self) {
        let rng = &mut Rng::seeded(self.seed ^ 0xf1a5_4ed0);
        self.durability = pick(rng, &[Durability::Process, Durability::Process, Durability::Power]);
        self.durable = pick(rng, &[0, 0, 100, 500]);
    }

    /// Whether the put of a value asks to survive a power cut: always the same for one value.
    pub fn is_durable(&self, version: u32) -> bool {
        let rng = &mut Rng::seeded(self.seed ^ 0xd0_ab1e ^ u64::from(version) << 32);
        rng.below(1_000) < u64::from(self.durable)
    }

    /// Room for the values: plenty, or too little where eviction is on.
    fn draw_disk_bytes(&self, rng: &mut Rng) -> u64 {
        let keys = u64::from(self.keys) * SPACES.len() as u64;
        let under_way = (self.clients * self.depth) as u64;
        let large = if self.extent > 64 << 10 { 48 * MIB } else { 0 };
        let data = if self.evicting {
            // A third of the keys or less can be there at one time.
            let tight = keys * 24 * KIB / (3 + rng.below(3));
            tight.max(512 * KIB) + under_way * 8 * KIB + large / 4
        } else {
            keys * 84 * KIB + under_way * 192 * KIB + 4 * MIB + large
        };
        let each = (data / self.disks as u64).max(256 * KIB);
        self.disk_with_room_for(each)
    }

    /// The size of the smallest disk with so many bytes for values.
    fn disk_with_room_for(&self, data: u64) -> u64 {
        let options =
            FormatOptions { ring_bytes: Some(self.ring_bytes), ..FormatOptions::default() };
        let mut capacity = (data + self.ring_bytes).next_multiple_of(64 * KIB);
        loop {
            let geometry = Geometry { capacity, sector: self.sector, max_transfer: 4 << 20 };
            match Layout::plan(&geometry, &options) {
                Ok(layout) if u64::from(layout.units) * UNIT as u64 >= data => return capacity,
                _ => capacity += 64 * KIB,
            }
        }
    }
}

/// Of a sequence of its own, as all that came later: what else a seed means does not hang on it.
fn draw_trim(seed: u64) -> Option<(u64, u32)> {
    let mut rng = Rng::seeded(seed ^ 0x7219_0000);
    let trim = (pick(&mut rng, &[200, 2_000, 20_000]), pick(&mut rng, &[1, 4, 1024]));
    (rng.below(4) > 0).then_some(trim)
}

fn draw_scrub(seed: u64) -> u64 {
    let mut rng = Rng::seeded(seed ^ 0x5c20_b000);
    pick(&mut rng, &[0, MIB / 4, 2 * MIB])
}

fn draw_stops(seed: u64) -> u32 {
    let mut rng = Rng::seeded(seed ^ 0x510_4ead);
    pick(&mut rng, &[0, 0, 2, 20])
}

fn draw_credits(seed: u64) -> u32 {
    let mut rng = Rng::seeded(seed ^ 0xc4ed_1700);
    pick(&mut rng, &[1, 2, 64, 64])
}

fn draw_mix(rng: &mut Rng) -> Mix {
    let mut share = |most: u64| if rng.below(6) == 0 { 0 } else { 1 + rng.below(most) as u32 };
    Mix {
        put: 10 + share(60),
        offer: share(30),
        get: 20 + share(80),
        range: share(20),
        exists: share(20),
        match_prefix: share(10),
        lease: share(10),
        delete: share(14),
        suspect: share(4),
    }
}

fn draw_rates(rng: &mut Rng, faults: FaultMode) -> FaultRates {
    let slow = pick(rng, &[0, 300, 3_000]);
    let mut one = |most: u64| if rng.below(3) == 0 { 0 } else { rng.below(most) as u32 };
    match faults {
        FaultMode::None => FaultRates { slow, ..FaultRates::default() },
        FaultMode::Values | FaultMode::Journal => FaultRates {
            bit_flip: one(4_000),
            misdirected: one(3_000),
            lost: one(4_000),
            slow,
            ..FaultRates::default()
        },
        FaultMode::Errors => FaultRates {
            read_error: one(6_000),
            write_error: one(5_000),
            dead: one(2_400),
            bit_flip: one(500),
            stall: one(2_400),
            slow,
            ..FaultRates::default()
        },
    }
}

fn draw_latency(rng: &mut Rng) -> Latency {
    match rng.below(4) {
        0 => Latency { read: (50, 50), write: (10, 10), flush: (100, 100), grain: 10 },
        1 => Latency { read: (1, 400), write: (1, 400), flush: (1, 4_000), grain: 1 },
        2 => Latency { read: (20, 100), write: (100, 2_000), flush: (500, 20_000), grain: 50 },
        _ => Latency::default(),
    }
}

fn draw_net(rng: &mut Rng, seed: u64) -> NetOptions {
    NetOptions {
        latency: pick(rng, &[(1, 20), (5, 50), (5, 2_000)]),
        grain: pick(rng, &[1, 5, 20]),
        window: pick(rng, &[2 * KIB, 16 * KIB, 64 * KIB, MIB]),
        split: pick(rng, &[0, 20_000, 100_000]),
        linger: pick(rng, &[0, 0, 50_000, 300_000]),
        reset: pick(rng, &[0, 0, 0, 500, 3_000]),
        lend: rng.below(2) == 0,
        seed: seed ^ 0x4e45_5400,
    }
}

fn draw_interruptions(rng: &mut Rng, requests: u64) -> Vec<Interruption> {
    let count = pick(rng, &[0, 1, 2, 2, 3, 4]);
    let mut at: Vec<u64> = (0..count).map(|_| 1 + rng.below(requests.max(2) - 1)).collect();
    at.sort_unstable();
    // Only kills, only power cuts, or both: what one kind must keep, the other hides.
    let kinds = rng.below(3);
    let draw = |at| {
        let power = if kinds == 2 { rng.below(2) == 1 } else { kinds == 1 };
        let stop = match rng.below(8) {
            0 => Stop::Clean,
            _ if power => Stop::Crash(CrashKind::PowerCut),
            _ => Stop::Crash(CrashKind::Kill),
        };
        let trigger = match rng.below(16) {
            0 | 1 => Trigger::Value,
            2..=4 => Trigger::Frame,
            5..=7 => Trigger::Checkpoint,
            8 | 9 => Trigger::Superblock,
            10 => Trigger::Flush,
            11..=13 => Trigger::Recovery(1 + rng.below(24) as u32),
            _ => Trigger::Now,
        };
        Interruption { at, stop, trigger }
    };
    at.into_iter().map(draw).collect()
}
