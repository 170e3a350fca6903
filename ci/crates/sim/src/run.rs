//! One seed from beginning to end: a machine, its disks, its clients, its crashes, and the verdict.

use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use memkv_dma::Pool;
use memkv_journal::Layout;
use memkv_poller::{Clock, Instant, Rng};
use memkv_sim::{
    ClientEnd, DiskOptions, FaultRates, Pages, SimClock, SimDisk, SimNet, Source, World,
    WorldOptions,
};

use crate::client::{Client, Port};
use crate::counters::{Count, Counters};
use crate::model::Broken;
use crate::options::{FaultMode, Interruption, Options};
use crate::oracle::Oracle;
use crate::server::{self, Opened, Server, StartError};
use crate::spare::Spare;
use crate::stage::Stage;

/// Why a seed failed.
#[derive(Debug)]
#[allow(dead_code, reason = "shown by Debug in the words of a failure")]
pub enum Failure {
    /// The server broke its promise.
    Broken(Broken),
    /// Two commands on the same sectors at the same time.
    Overlap(memkv_sim::Violation),
    /// Nothing can ever happen again, and work is left.
    Stuck(&'static str),
    /// The server did not start, and no fault explains it.
    NoStart(StartError),
    /// The disks could not be formatted.
    NoFormat(memkv_journal::FormatError),
    /// Space that nothing holds is not free: disk, units free, units in all.
    Leak(usize, u64, u64),
    /// Memory that nothing holds is not free: bytes.
    PoolLeak(u64),
    /// More misses were taken for evictions than there were evictions.
    Evictions { seen: u64, done: u64 },
    /// A write was on its way after a stop in peace.
    WriteAfterStop,
    /// The simulator or the server panicked.
    Panic(String),
}

impl From<Broken> for Failure {
    fn from(broken: Broken) -> Failure {
        Failure::Broken(broken)
    }
}

/// What a run came to.
pub struct Report {
    pub counters: Counters,
    /// The same for every run of a seed, or the simulator is not deterministic.
    pub digest: u64,
    pub result: Result<(), Failure>,
}

/// Memory kept from run to run.
#[derive(Clone, Default)]
pub struct Reuse {
    pages: Pages,
    pools: Rc<RefCell<Vec<(u64, Pool)>>>,
}

impl Reuse {
    pub fn pool(&self, bytes: u64) -> Pool {
        let mut pools = self.pools.borrow_mut();
        if let Some((_, pool)) = pools.iter().find(|(size, _)| *size == bytes) {
            return pool.clone();
        }
        let config = memkv_dma::PoolConfig {
            size: bytes,
            chunk: 2 << 20,
            hugepages: memkv_dma::Hugepages::Never,
        };
        let pool = Pool::new(config).expect("memory for a small pool");
        pools.push((bytes, pool.clone()));
        pool
    }

    /// A pool that a failed run left in pieces is not used again.
    pub fn forget(&self) {
        self.pools.borrow_mut().clear();
    }
}

/// Turns of clients in simulated time, and the next start of the server.
#[derive(Default)]
pub struct Timers {
    heap: RefCell<BinaryHeap<Reverse<(Instant, u64)>>>,
    up: RefCell<Vec<u64>>,
    now: RefCell<Option<SimClock>>,
}

/// Turns of a run for each request that is asked for: far more than any run takes that gets on.
const TURNS_PER_REQUEST: u64 = 5_000;

/// The timer that starts the server.
const BOOT: u64 = u64::MAX;
/// The timer that ends a rest.
const REST: u64 = u64::MAX - 1;

impl Timers {
    fn set(&self, at: Instant, whose: u64) {
        self.heap.borrow_mut().push(Reverse((at, whose)));
    }

    fn pop(&self) -> Option<u64> {
        self.up.borrow_mut().pop()
    }
}

impl Source for Timers {
    fn next(&self) -> Option<Instant> {
        self.heap.borrow().peek().map(|Reverse((at, _))| *at)
    }

    fn deliver(&self, limit: usize) -> usize {
        let now = self.now.borrow().as_ref().map_or(Instant::ORIGIN, SimClock::now);
        let mut heap = self.heap.borrow_mut();
        let mut count = 0;
        while count < limit && heap.peek().is_some_and(|Reverse((at, _))| *at <= now) {
            let Some(Reverse((_, whose))) = heap.pop() else { break };
            self.up.borrow_mut().push(whose);
            count += 1;
        }
        count
    }
}

type Starting = Rc<RefCell<Option<Result<Opened, StartError>>>>;

/// What the server is doing.
pub(crate) enum Power {
    Off,
    Starting(Starting),
    On(Server),
    Stopping(Server, Rc<Cell<bool>>),
}

/// A run of one seed.
pub struct Run {
    pub(crate) options: Rc<Options>,
    pub(crate) stage: Stage,
    pub(crate) world: World,
    pub(crate) net: SimNet,
    pub(crate) disks: Vec<SimDisk>,
    pub(crate) layout: Layout,
    pub(crate) oracle: Oracle,
    pub(crate) pool: Pool,
    pub(crate) power: Power,
    pub(crate) clients: Vec<Client>,
    pub(crate) timers: Rc<Timers>,
    pub(crate) plan: VecDeque<Interruption>,
    /// The interruption whose turn has come, and how long it has waited for its trigger.
    pub(crate) armed: Option<(Interruption, u32)>,
    /// Crash again when so many commands were submitted.
    pub(crate) trap: Option<(u64, Interruption)>,
    /// New requests are sent.
    pub(crate) busy: bool,
    pub(crate) rng: Rng,
    pub(crate) evictions: u64,
    /// The members of the node as it was told last, one bit for each disk.
    pub(crate) members: u32,
    /// The disk that joins, where one does.
    pub(crate) spare: Spare,
    /// Disks that failed and were begun to be readmitted.
    pub(crate) readmitted: usize,
    turns: u64,
    rested: bool,
    /// Every disk is dead: there is nothing left to ask.
    pub(crate) over: bool,
}

/// What clients reach of the world during their turn.
struct Reach<'a> {
    world: &'a mut World,
    net: &'a SimNet,
    power: &'a Power,
    timers: &'a Timers,
    rng: &'a mut Rng,
}

impl Port for Reach<'_> {
    fn connect(&mut self, client: u64) -> Option<ClientEnd> {
        let Power::On(server) = self.power else { return None };
        let (end, connection) = self.net.connect(client);
        let reactor = self.rng.below(self.world.reactors() as u64) as usize;
        server.accept(reactor, connection);
        self.world.kick();
        Some(end)
    }

    fn wake_in(&mut self, client: u64, nanos: u64) {
        self.timers.set(self.world.clock().now() + Duration::from_nanos(nanos), client);
    }
}

impl Run {
    /// Builds the world of a seed.
    pub fn new(options: Options, reuse: &Reuse, verbose: bool) -> Run {
        let options = Rc::new(options);
        let mut rng = Rng::seeded(options.seed);
        let clock = SimClock::new(1_800_000_000);
        let disks: Vec<SimDisk> =
            (0..options.disks).map(|n| make_disk(&options, n, reuse, &clock)).collect();
        let net = SimNet::new(options.net.clone(), clock.clone());
        let world_options =
            WorldOptions { reactors: options.reactors, inbox_capacity: 64, seed: rng.next_u64() };
        let mut world = World::new(world_options, clock.clone());
        let timers = Rc::new(Timers::default());
        *timers.now.borrow_mut() = Some(clock.clone());
        disks.iter().for_each(|disk| world.add_source(Rc::new(disk.clone())));
        world.add_source(Rc::new(net.clone()));
        world.add_source(Rc::clone(&timers) as Rc<dyn Source>);
        let stage = Stage::new(Rc::clone(&options), clock, rng.fork(), verbose);
        let keep_frames = matches!(options.faults, FaultMode::Journal | FaultMode::Errors);
        let keep_places = options.faults != FaultMode::None;
        let oracle = Oracle::new(options.keys, keep_frames, keep_places, stage.model.tick());
        Run {
            layout: server::layout(&options, &disks[0]),
            pool: reuse.pool(options.pool_bytes),
            clients: (0..options.clients as u64)
                .map(|index| Client::new(index, options.spaces()))
                .collect(),
            plan: options.interruptions.iter().copied().collect(),
            power: Power::Off,
            armed: None,
            trap: None,
            busy: true,
            evictions: 0,
            members: u32::MAX,
            spare: Spare::None,
            readmitted: 0,
            turns: 0,
            rested: false,
            over: false,
            stage,
            world,
            net,
            disks,
            oracle,
            timers,
            rng,
            options,
        }
    }

    /// Runs the seed to its end.
    pub fn go(mut self) -> Report {
        let result = self.all();
        if result.is_err() && self.stage.verbose {
            self.show_state();
        }
        self.count_faults();
        let digest = self.digest();
        Report { counters: self.stage.counters, digest, result }
    }

    fn all(&mut self) -> Result<(), Failure> {
        let format = server::format_all(
            self.world.local(0),
            Rc::clone(&self.options),
            self.disks[..self.disks.len() - usize::from(self.options.joins)].to_vec(),
            self.pool.clone(),
        );
        let formatted = self.world.block_on(0, format);
        formatted.ok_or(Failure::Stuck("formatting"))?.map_err(Failure::NoFormat)?;
        let zones = self.fault_zones();
        for disk in &self.disks {
            self.oracle.watch(disk, self.layout);
            disk.set_fault_zones(zones.clone());
            disk.set_rates(self.options.rates);
        }
        self.boot();
        while self.stage.requests < self.options.requests && !self.over {
            self.turn()?;
        }
        self.settle()?;
        if self.over { Ok(()) } else { self.finish() }
    }

    /// Where faults strike: values, and in some seeds the ring.
    fn fault_zones(&self) -> Vec<std::ops::Range<u64>> {
        let data = self.layout.data_offset..self.layout.capacity;
        let ring = self.layout.ring_offset..self.layout.checkpoint_offset[0];
        match self.options.faults {
            FaultMode::None => Vec::new(),
            FaultMode::Values => vec![data, 0..0],
            FaultMode::Journal => vec![data, ring],
            // Commands fail anywhere, also at the superblocks.
            FaultMode::Errors => vec![0..self.layout.capacity, 0..0],
        }
    }

    /// One thing happens: a client's turn, or one step of the machine.
    pub(crate) fn turn(&mut self) -> Result<(), Failure> {
        self.turns += 1;
        if self.turns > TURNS_PER_REQUEST * (self.options.requests + 1_000) {
            return Err(Failure::Stuck("it goes round in circles"));
        }
        if self.net.has_ready() && self.rng.below(2) == 0 {
            self.ready_client()?;
        } else if self.world.step() {
            self.after_step()?;
        } else if self.net.has_ready() {
            self.ready_client()?;
        } else if !self.world.advance(None) {
            return Err(Failure::Stuck("no event is left"));
        }
        while let Some(whose) = self.timers.pop() {
            self.timer_is_up(whose)?;
        }
        self.turn_spare();
        self.interrupt()
    }

    fn ready_client(&mut self) -> Result<(), Failure> {
        match self.net.pop_ready() {
            Some(client) => self.client_turn(client),
            None => Ok(()),
        }
    }

    fn timer_is_up(&mut self, whose: u64) -> Result<(), Failure> {
        if whose == BOOT {
            self.boot();
            return Ok(());
        }
        if whose == REST {
            self.rested = true;
            return Ok(());
        }
        self.clients[whose as usize].timer_is_up();
        self.client_turn(whose)
    }

    pub(crate) fn client_turn(&mut self, client: u64) -> Result<(), Failure> {
        self.hear_news();
        let Run { stage, world, net, power, timers, rng, clients, .. } = self;
        let mut reach = Reach { world, net, power, timers, rng };
        clients[client as usize].turn(stage, &mut reach, self.busy)?;
        if self.options.ttl && self.stage.chance(40) {
            let seconds = 1 + self.stage.below(3) as i64;
            self.stage.clock.jump_wall(seconds);
        }
        Ok(())
    }

    /// What faults did since the last time, before anything is judged.
    pub(crate) fn hear_news(&mut self) {
        if self.options.faults != FaultMode::None && self.oracle.has_news() {
            self.oracle.tell(&mut self.stage.model, self.stage.verbose);
        }
    }

    fn after_step(&mut self) -> Result<(), Failure> {
        if let Power::Starting(starting) = &self.power {
            let outcome = starting.borrow_mut().take();
            if let Some(outcome) = outcome {
                self.started(outcome)?;
            }
        }
        if let Power::Stopping(_, done) = &self.power
            && done.get()
        {
            self.stopped()?;
        }
        Ok(())
    }

    /// Starts the server on the disks that live. The dead ones are given up.
    pub(crate) fn boot(&mut self) {
        let alive: Vec<SimDisk> =
            self.disks.iter().filter(|disk| !disk.is_dead()).cloned().collect();
        let degraded = alive.len() < self.disks.len();
        if degraded {
            self.stage.bump(Count::StartsWithoutADisk);
        }
        let starting: Starting = Rc::default();
        let slot = Rc::clone(&starting);
        let local = self.world.local(self.options.store_reactor);
        let options = self.options.clone();
        let open = server::open(local.clone(), options, alive, degraded, self.pool.clone());
        local.spawn(async move {
            let outcome = open.await;
            *slot.borrow_mut() = Some(outcome);
        });
        self.world.kick();
        self.power = Power::Starting(starting);
    }

    fn started(&mut self, outcome: Result<Opened, StartError>) -> Result<(), Failure> {
        self.trap = None;
        let opened = match outcome {
            Ok(opened) => opened,
            Err(error) if self.start_may_fail() => {
                if self.stage.verbose {
                    eprintln!("the server does not start: {error:?}");
                }
                self.stage.bump(Count::StartsRefused);
                // As an operator would: the drive that does not answer is taken out.
                self.give_up_a_disk();
                // Those that are left may be blank: the last member died while they were readmitted.
                let blank =
                    matches!(error, StartError::Members(memkv_journal::MembershipError::NoDrives));
                let mut dead = self.disks.iter().map(SimDisk::is_dead);
                self.over = if blank { dead.any(|dead| dead) } else { dead.all(|dead| dead) };
                self.crash_now(memkv_sim::CrashKind::Kill)?;
                return Ok(());
            }
            Err(error) => return Err(Failure::NoStart(error)),
        };
        self.stage.bump(Count::Starts);
        let hashes = server::hashes(&opened.store, &self.stage);
        hashes.into_iter().for_each(|(hash, key)| self.oracle.learn_hash(hash, key));
        self.stage.counters.add(Count::LostDrivesLeftOut, opened.left_out);
        self.stage.counters.add(Count::MembersGivenUp, opened.given_up);
        self.hear_news();
        let before = self.members;
        self.note_members(&opened.store);
        self.look_at_spare();
        // Every drive that the node went on with is gone: an operator who starts it from what had
        // been lost before gives up what happened since.
        let went_back = self.members & before == 0;
        self.stage.model.started(went_back);
        match Server::start(&self.world, &self.options, &self.pool, opened) {
            Ok(server) => self.power = Power::On(server),
            Err(_) => self.crash_now(memkv_sim::CrashKind::Kill)?,
        }
        self.world.kick();
        for client in 0..self.clients.len() as u64 {
            self.client_turn(client)?;
        }
        Ok(())
    }

    /// Remembers who the members are.
    pub(crate) fn note_members(&mut self, store: &memkv_store::Store) {
        let members = store.membership().members;
        let bits = members.iter().filter_map(|uuid| self.disk_of(*uuid)).map(|disk| 1 << disk);
        self.members = bits.fold(0, |all, bit: u32| all | bit);
    }

    /// Only where commands fail or frames are harmed may a start be refused.
    fn start_may_fail(&self) -> bool {
        matches!(self.options.faults, FaultMode::Errors | FaultMode::Journal)
    }

    fn give_up_a_disk(&mut self) {
        // Faults end here: what is left of the seed checks that the rest is served.
        for disk in &self.disks {
            disk.set_rates(FaultRates::default());
        }
        let harmed = (0..self.disks.len()).find(|&n| {
            !self.disks[n].is_dead() && self.disks[n].harm(0, self.layout.data_offset).is_some()
        });
        if let Some(number) = harmed {
            self.disks[number].die();
        }
    }

    /// Lets what is under way come to its end, without new requests.
    pub(crate) fn settle(&mut self) -> Result<(), Failure> {
        self.busy = false;
        while !self.is_settled() && !self.over {
            self.turn()?;
        }
        Ok(())
    }

    /// Lets some simulated time pass.
    pub(crate) fn rest(&mut self, time: Duration) -> Result<(), Failure> {
        self.rested = false;
        self.timers.set(self.world.clock().now() + time, REST);
        while !self.rested && !self.over {
            self.turn()?;
        }
        Ok(())
    }

    fn is_settled(&self) -> bool {
        matches!(self.power, Power::On(_))
            && self.armed.is_none()
            && self.clients.iter().all(Client::is_idle)
    }

    /// Broken rules that no client sees.
    pub(crate) fn check_disks(&mut self) -> Result<(), Failure> {
        for disk in &self.disks {
            if let Some(&violation) = disk.take_violations().first() {
                return Err(Failure::Overlap(violation));
            }
        }
        Ok(())
    }

    pub(crate) fn schedule_boot(&mut self) {
        let pause = Duration::from_micros(self.rng.below(20_000));
        self.timers.set(self.world.clock().now() + pause, BOOT);
    }

    /// For whoever looks into a failure: what the drives say, and what is on its way.
    fn show_state(&self) {
        eprintln!("at {:?}, reactors' passes {}", self.stage.now(), self.world.steps());
        if let Power::On(server) | Power::Stopping(server, _) = &self.power {
            server.store.drives().iter().for_each(|drive| eprintln!("{drive:?}"));
        }
        for (number, disk) in self.disks.iter().enumerate() {
            disk.for_each_outstanding(|op, offset, len| {
                eprintln!("disk {number}: {op:?} of {len} bytes at {offset} is on its way");
            });
        }
        eprintln!("pool: {:?}", self.pool.stats());
    }

    fn count_faults(&mut self) {
        use memkv_sim::FaultKind::*;
        let pairs = [
            (ReadError, Count::FaultReadError),
            (WriteError, Count::FaultWriteError),
            (BitFlip, Count::FaultBitFlip),
            (Misdirected, Count::FaultMisdirected),
            (Lost, Count::FaultLost),
            (Slow, Count::FaultSlow),
            (Stall, Count::FaultStall),
            (Dead, Count::FaultDead),
            (Torn, Count::FaultTorn),
        ];
        for disk in &self.disks {
            let counts = disk.counts();
            for (kind, count) in pairs {
                self.stage.counters.add(count, counts.get(kind));
            }
        }
        let model = &self.stage.model;
        self.stage.counters.add(Count::CrashBeforeReply, model.found_after_crash);
        self.stage.counters.add(Count::KeysHeldThroughPowerCuts, model.held_through_cuts);
        self.stage.counters.add(Count::KeysHeldUnderPower, model.held_under_power);
        self.stage.counters.add(Count::DurablePutsHeld, model.durable_held);
    }

    fn digest(&self) -> u64 {
        let mut digest = self.world.steps() ^ self.world.clock().now().as_nanos() << 20;
        let mut mix = |n: u64| digest = (digest ^ n).wrapping_mul(0x100_0000_01b3).rotate_left(17);
        mix(self.stage.model.tick().load(Ordering::Relaxed));
        self.stage.counters.iter().for_each(|(count, value)| mix(count as u64 ^ value << 8));
        digest
    }
}

fn make_disk(options: &Options, number: usize, reuse: &Reuse, clock: &SimClock) -> SimDisk {
    let seed = options.seed ^ (number as u64 + 1) << 56;
    let disk = DiskOptions {
        sector: options.sector,
        latency: options.latency,
        pages: reuse.pages.clone(),
        ..DiskOptions::new(format!("sim{number}"), options.disk_bytes, seed)
    };
    SimDisk::new(disk, clock.clone())
}
