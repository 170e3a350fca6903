//! Blocks in memory are read while they are replaced, deleted and evicted, by clients that do not wait for each
//! other, in an order that a seed chooses. Whoever reads sees a whole value that somebody put, none from before
//! what was acknowledged when he asked, and goes on seeing it until he says that he took it.

mod common;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use common::{Client, Frame, Machine, Options};
use memkv_poller::Rng;
use memkv_session::SessionLimits;
use memkv_wire::{
    DeleteItem, DeleteItems, GetItem, GetItems, GetReply, ItemReplies, ItemReply, KeyList,
    MissReason, NamedReply, Opcode, Span, Status, TO_THE_END,
};

/// More than the drive has room for; half of the requests are about a few of them.
const KEYS: u64 = 70;
const HOT: u64 = 4;
const CLIENTS: usize = 4;
/// Requests of a client that are under way at a time.
const DEPTH: usize = 5;
const REQUESTS: u64 = 600;
const SEEDS: u64 = 4;

fn name(key: u64) -> String {
    format!("key {key}")
}

/// The value of a put: every word says of which.
fn filled(key: u64, turn: u64) -> Vec<u8> {
    let length = 20_000 + (key % 6) as usize * 37_001;
    turn.to_le_bytes().repeat(length.div_ceil(8))[..length].to_vec()
}

/// A request that is not answered.
enum Asked {
    Put {
        key: u64,
        turn: u64,
    },
    /// Nothing older than this generation may be seen.
    Get {
        key: u64,
        floor: u64,
    },
    Delete {
        key: u64,
    },
    Nothing,
}

/// What a client has been lent or named, and has not said that it took.
struct Loan {
    bytes: u64,
    /// Where it is, if it was named, and what has to be there.
    place: Option<(Vec<Span>, Vec<u8>)>,
}

struct Player {
    client: Client,
    asked: BTreeMap<u64, Asked>,
    loans: VecDeque<Loan>,
}

/// What was seen of each key.
#[derive(Default)]
struct Model {
    /// The put of each generation.
    turns: BTreeMap<u64, u64>,
    /// Nothing older may be seen by who asks from now on.
    floor: u64,
}

#[derive(Default, Debug)]
struct Seen {
    hits: u64,
    misses: u64,
    named: u64,
    lent: u64,
    looked_late: u64,
}

struct Race {
    machine: Machine,
    players: Vec<Player>,
    models: Vec<Model>,
    rng: Rng,
    turn: u64,
    seen: Seen,
}

impl Race {
    fn new(seed: u64) -> Race {
        let mut machine = Machine::new(Options {
            in_memory: true,
            windows: true,
            drive_bytes: 8 << 20,
            extent_bytes: 64 << 10,
            pool_bytes: 16 << 20,
            lendable: 1 << 20,
            nameable: 1 << 20,
            limits: SessionLimits { named: 400 << 10, lend_min: 64 << 10, ..Default::default() },
            seed,
            ..Options::default()
        });
        let players = (0..CLIENTS)
            .map(|n| Player {
                client: machine.client(n % 2),
                asked: BTreeMap::new(),
                loans: VecDeque::new(),
            })
            .collect();
        let models = (0..KEYS).map(|_| Model::default()).collect();
        let (rng, seen) = (Rng::seeded(seed), Seen::default());
        Race { machine, players, models, rng, turn: 0, seen }
    }

    fn run(mut self) -> Seen {
        for _ in 0..REQUESTS {
            let player = self.rng.below(CLIENTS as u64) as usize;
            if self.players[player].asked.len() < DEPTH {
                self.ask(player);
            }
            for _ in 0..self.rng.below(40) {
                if !self.machine.world.step() {
                    self.machine.world.advance(None);
                }
            }
            self.take_all();
            let looker = self.rng.below(CLIENTS as u64) as usize;
            if self.rng.below(4) == 0 {
                let most = 1 + self.rng.below(3) as usize;
                self.look(looker, most);
            }
        }
        self.finish();
        let retired = self.machine.contexts.iter().map(|c| c.counters().lent_retired.get());
        assert_eq!(retired.sum::<u64>(), 0);
        self.seen
    }

    fn ask(&mut self, player: usize) {
        let some = if self.rng.below(2) == 0 { HOT } else { KEYS };
        let key = self.rng.below(some);
        let client = &mut self.players[player].client;
        let text = name(key);
        let (id, asked) = match self.rng.below(20) {
            0..=7 => {
                self.turn += 1;
                client.send_inline(&[(text, filled(key, self.turn))]);
                (client.last_request(), Asked::Put { key, turn: self.turn })
            }
            8 => {
                let mut meta = Vec::new();
                let item = DeleteItem { key: text.as_bytes(), generation: 0 };
                DeleteItems { items: vec![item] }.encode(&mut meta);
                let header = client.request(Opcode::Delete);
                client.send(header, &meta, &[]);
                (header.request_id(), Asked::Delete { key })
            }
            9 => (speak(client), Asked::Nothing),
            what => {
                let mut meta = Vec::new();
                let item = GetItem { key: text.as_bytes(), offset: 0, length: TO_THE_END };
                GetItems { items: vec![item] }.encode(&mut meta);
                let header = client.request(Opcode::Get);
                let header = if what < 17 { header.with_named() } else { header };
                client.send(header, &meta, &[]);
                let floor = self.models[key as usize].floor;
                (header.request_id(), Asked::Get { key, floor })
            }
        };
        self.players[player].asked.insert(id, asked);
    }

    /// Takes what has arrived.
    fn take_all(&mut self) {
        for player in 0..CLIENTS {
            while let Some(frame) = self.players[player].client.arrived() {
                let id = frame.header.request_id();
                let asked = self.players[player].asked.remove(&id).expect("it was asked once");
                self.take(player, &asked, &frame);
            }
        }
    }

    fn take(&mut self, player: usize, asked: &Asked, frame: &Frame) {
        let item = |frame: &Frame| -> ItemReply {
            ItemReplies::parse(&frame.meta).expect("a reply per item").items[0]
        };
        match *asked {
            Asked::Put { key, turn } => {
                let reply = item(frame);
                if reply.status == Status::Ok {
                    let model = &mut self.models[key as usize];
                    model.note(reply.generation, turn);
                    model.floor = model.floor.max(reply.generation);
                } else {
                    assert!(matches!(reply.status, Status::Busy | Status::Full), "{reply:?}");
                }
            }
            Asked::Delete { key } => {
                let reply = item(frame);
                if reply.status == Status::Ok {
                    let model = &mut self.models[key as usize];
                    model.floor = model.floor.max(reply.generation + 1);
                } else {
                    assert_eq!(reply.status, Status::NotFound);
                }
            }
            Asked::Get { key, floor } => self.take_value(player, key, floor, frame),
            Asked::Nothing => {}
        }
    }

    fn take_value(&mut self, player: usize, key: u64, floor: u64, frame: &Frame) {
        let (get, spans) = match frame.header.is_named() {
            true => {
                let named = NamedReply::parse(&frame.meta).expect("a reply");
                (named.get, Some(named.spans.to_vec()))
            }
            false => (GetReply::parse(&frame.meta).expect("a reply"), None),
        };
        let reply = get.reply;
        if reply.status != Status::Ok {
            assert_eq!(reply.status, Status::NotFound);
            assert!(!matches!(reply.reason, MissReason::Corrupt | MissReason::DriveLost));
            self.seen.misses += 1;
            return;
        }
        assert!(reply.generation >= floor, "{} after {floor}", reply.generation);
        self.seen.hits += 1;
        let bytes = match &spans {
            Some(spans) => self.read(spans),
            None => frame.payload.clone(),
        };
        let turn = u64::from_le_bytes(*bytes.first_chunk().expect("a word"));
        assert!(bytes == filled(key, turn), "a whole value of key {key}");
        assert_eq!(reply.crcs.as_slice(), common::crcs(&bytes, 64 << 10).as_slice());
        self.models[key as usize].note(reply.generation, turn);
        let loans = &mut self.players[player].loans;
        let size = bytes.len() as u64;
        match spans {
            Some(spans) => {
                self.seen.named += 1;
                loans.push_back(Loan { bytes: size, place: Some((spans, bytes)) });
            }
            None if frame.header.is_lent() => {
                self.seen.lent += 1;
                loans.push_back(Loan { bytes: size, place: None });
            }
            None => {}
        }
    }

    /// What a client sees through its windows. This panics when somebody may write there.
    fn read(&self, spans: &[Span]) -> Vec<u8> {
        let span = |span: &Span| {
            let medium = &self.machine.media[span.window as usize];
            medium.lend(span.offset, span.length as usize).as_slice().to_vec()
        };
        spans.iter().flat_map(span).collect()
    }

    /// A client looks at the oldest of what it was named once more, and takes it.
    fn look(&mut self, player: usize, most: usize) {
        for _ in 0..most {
            let Some(loan) = self.players[player].loans.pop_front() else { return };
            if let Some((spans, bytes)) = &loan.place {
                assert!(self.read(spans) == *bytes, "it stays as it was");
                self.seen.looked_late += 1;
            }
            self.players[player].client.consumed += loan.bytes;
        }
    }

    /// All answers come, all is taken, and nothing is held for anybody.
    fn finish(&mut self) {
        while self.players.iter().any(|player| !player.asked.is_empty()) {
            self.machine.pass(Duration::from_millis(1));
            self.take_all();
        }
        for player in 0..CLIENTS {
            self.look(player, usize::MAX);
            let Race { machine, players, .. } = self;
            speak(&mut players[player].client);
            players[player].client.receive(machine).expect("an answer");
        }
        self.machine.pass(Duration::from_millis(1));
        self.machine.assert_at_rest();
    }
}

impl Model {
    /// A generation is of one put, whoever sees it.
    fn note(&mut self, generation: u64, turn: u64) {
        let known = *self.turns.entry(generation).or_insert(turn);
        assert_eq!(known, turn, "of generation {generation}");
    }
}

/// Says something that is answered; its request's id.
fn speak(client: &mut Client) -> u64 {
    let mut meta = Vec::new();
    KeyList { keys: vec![b"any"] }.encode(&mut meta);
    let header = client.request(Opcode::Exists);
    client.send(header, &meta, &[]);
    header.request_id()
}

#[test]
fn readers_see_whole_values_in_any_order_of_things() {
    let mut evictions = 0;
    for seed in 0..SEEDS {
        let race = Race::new(seed);
        let store = race.machine.store.counters();
        let seen = race.run();
        for (what, count) in [
            ("hits", seen.hits),
            ("misses", seen.misses),
            ("named", seen.named),
            ("lent", seen.lent),
            ("looked late", seen.looked_late),
        ] {
            assert!(count > 5, "seed {seed}: {what}: {seen:?}");
        }
        evictions += store.evictions.get();
    }
    assert!(evictions > 0, "the drive was never full");
}
