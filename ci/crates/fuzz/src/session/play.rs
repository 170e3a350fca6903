//! One input: a client that comes, acts, and leaves.

use std::collections::BTreeSet;

use memkv_poller::Rng;
use memkv_sim::{ClientEnd, Fate};
use memkv_wire::handshake::{ClientHello, connect_keys};
use memkv_wire::meta::PutItems;
use memkv_wire::{Header, Opcode, Side, Staged, Status};

use super::Seen;
use super::generate::{self, draft};
use super::link::{Greeting, Link, Wanted, greeting};
use super::machine::{CREDITS, FUZZED, Machine, WITNESS, credential};
use crate::draw::{array, mutate, number, once_in, one_of};

/// Requests that a client has under way at most; the server's limit is one more.
const UNDER_WAY: usize = 7;
/// A wanted item is sure to be wanted for so many seconds.
const WANTED: u64 = 4;

/// What a client asks for, as often as it stands here.
const OPERATIONS: [Opcode; 19] = [
    Opcode::Put,
    Opcode::Put,
    Opcode::Put,
    Opcode::Offer,
    Opcode::Offer,
    Opcode::Get,
    Opcode::Get,
    Opcode::Exists,
    Opcode::Presence,
    Opcode::MatchPrefix,
    Opcode::Lease,
    Opcode::Hint,
    Opcode::Hint,
    Opcode::Release,
    Opcode::Delete,
    Opcode::Delete,
    Opcode::Suspect,
    Opcode::Stats,
    Opcode::Connect,
];

/// A client and the server it plays with.
pub struct Play<'a> {
    machine: &'a mut Machine,
    seen: &'a mut Seen,
    rng: Rng,
    /// The id of the last request.
    request: u64,
    /// Requests whose wants may run out early: hurried, or with an id that was used before.
    hurried: BTreeSet<u64>,
}

impl<'a> Play<'a> {
    pub fn new(machine: &'a mut Machine, seen: &'a mut Seen, seed: u64) -> Play<'a> {
        let mut rng = Rng::seeded(seed);
        // Few ids and few clients: some requests look like repetitions of earlier ones.
        let request = rng.below(200);
        Play { machine, seen, rng, request, hurried: BTreeSet::new() }
    }

    /// Comes, acts so many times, leaves.
    pub fn until_the_client_leaves(mut self, acts: u8) {
        let Some(mut link) = self.act_all(acts) else { return };
        self.leave(&mut link);
        self.check_goodbye(&link);
    }

    /// Comes, acts so many times, and stays until the server stops.
    pub fn until_the_server_stops(mut self, acts: u8) {
        let Some(mut link) = self.act_all(acts) else { return self.machine.stop() };
        link.take(self.seen);
        self.check_goodbye(&link);
        if link.unanswered() > 0 {
            self.seen.counts.bump("stopped under way");
        }
        let said = link.goodbye;
        self.machine.stop();
        link.take(self.seen);
        if said.is_none() && !link.broken {
            assert!(
                matches!(link.goodbye, None | Some(Status::ShuttingDown)),
                "a stop was called {:?}",
                link.goodbye
            );
        }
    }

    fn act_all(&mut self, acts: u8) -> Option<Link> {
        let mut link = self.greet()?;
        for _ in 0..acts {
            if link.is_over() {
                break;
            }
            self.act(&mut link);
        }
        Some(link)
    }

    /// The server hangs up only on those who break the stream.
    fn check_goodbye(&mut self, link: &Link) {
        if !link.broken {
            assert_eq!(link.goodbye, None, "hung up on a client that broke nothing");
        }
        if let Some(status) = link.goodbye {
            self.seen.hung_up(status);
        }
    }

    fn greet(&mut self) -> Option<Link> {
        let wrong = once_in(&mut self.rng, 8).then(|| self.rng.below(8));
        let end = self.machine.connect();
        let (credential, meta, frame) = hello(&mut self.rng, wrong);
        end.send(&frame);
        let mut got = Greeting::None;
        self.machine.until("a hello is answered or refused", || {
            got = greeting(&end, &credential, &meta);
            !matches!(got, Greeting::None) || end.fate() != Fate::Open
        });
        match got {
            Greeting::Open(ends) => {
                self.seen.counts.bump("connect ok");
                let mut link = Link::new(end, *ends, self.machine.clock());
                link.broken = wrong.is_some();
                Some(link)
            }
            Greeting::Refused(status) => {
                assert_eq!(status, Status::UnsupportedVersion, "all else gets no answer");
                self.refused("hello refused")
            }
            Greeting::None => self.refused("hello unanswered"),
        }
    }

    fn refused(&mut self, name: &str) -> Option<Link> {
        self.seen.counts.bump(name);
        None
    }

    fn act(&mut self, link: &mut Link) {
        if link.unanswered() >= UNDER_WAY {
            return self.settle(link);
        }
        match self.rng.below(40) {
            0..=2 => self.settle(link),
            3..=11 => match link.wanted.is_empty() {
                true => self.ask(link, Opcode::Offer),
                false => self.send_data(link),
            },
            12 => self.flood(link),
            15..=17 => self.offer_along(link),
            13 if once_in(&mut self.rng, 3) => self.send_unwanted(link),
            14 if once_in(&mut self.rng, 3) => self.lose_step(link),
            _ => {
                let opcode = one_of(&mut self.rng, &OPERATIONS);
                self.ask(link, opcode);
            }
        }
    }

    /// Waits for all answers, or for what the server says to a broken stream.
    fn settle(&mut self, link: &mut Link) {
        let Play { machine, seen, .. } = self;
        if link.broken {
            machine.let_pass(2_000);
            return link.take(seen);
        }
        machine.until("every request is answered", || {
            link.take(seen);
            link.at_rest()
        });
    }

    /// A header for the next request; at times under an id that was used before.
    fn header(&mut self, link: &mut Link, opcode: Opcode) -> Header {
        let again = once_in(&mut self.rng, 12) && !link.waits_for(opcode, self.request);
        self.request += u64::from(!again);
        let deadline = one_of(&mut self.rng, &[0, 0, 0, 0, 1, 60, u32::MAX]);
        if again || deadline != 0 {
            self.hurried.insert(self.request);
        }
        let header = Header::request(opcode, self.request).with_deadline_ms(deadline);
        if !once_in(&mut self.rng, 8) {
            return header.with_namespace(1);
        }
        let rng = &mut self.rng;
        // Nothing was lent, so whoever says that he took some of it is thrown out.
        let consumed = if once_in(rng, 8) { number(rng) } else { 0 };
        link.broken |= consumed != 0;
        header
            .with_namespace(number(rng) as u32)
            .with_generation(number(rng))
            .with_priority(number(rng) as u8)
            .with_codec(number(rng) as u8)
            .with_credits(number(rng) as u32)
            .with_consumed(consumed)
            .with_stored_length(number(rng))
            .with_trace_id(array(rng))
    }

    fn ask(&mut self, link: &mut Link, opcode: Opcode) {
        if opcode == Opcode::Put && link.credits == 0 {
            return self.settle(link);
        }
        let seen: Vec<u64> = self.seen.generations.iter().copied().collect();
        let (mut meta, mut payload) = draft(&mut self.rng, opcode, &seen);
        let staged = opcode == Opcode::Put && once_in(&mut self.rng, 6);
        if staged {
            let (staging, offset) = (number(&mut self.rng), number(&mut self.rng));
            Staged { staging, offset }.encode(&mut meta);
            payload.clear();
        }
        let mut header = self.header(link, opcode).with_payload_length(payload.len() as u64);
        if once_in(&mut self.rng, 80) {
            // The stream loses its step: fewer or more bytes follow than are announced.
            let lie = number(&mut self.rng).min(opcode.payload_limit(false));
            link.broken = true;
            header = match opcode {
                Opcode::Put => header.with_payload_length(lie),
                _ => header.with_trailer(),
            };
        }
        let plain = header.payload_length() == 0 && !header.has_trailer();
        if opcode == Opcode::Get && plain && once_in(&mut self.rng, 3) {
            // In vain: there are two tenants.
            header = header.with_named();
        }
        if staged && plain {
            // In vain as well.
            header = header.with_named();
        }
        let (_, mut bytes) = link.seal(header, &meta);
        bytes.extend(payload);
        self.send(link, bytes);
    }

    /// Sends a frame; at times other bytes than were sealed, or not all of them.
    fn send(&mut self, link: &mut Link, mut bytes: Vec<u8>) {
        if once_in(&mut self.rng, 60) {
            link.broken = true;
            mutate(&mut self.rng, &mut bytes);
        }
        link.end.send(&bytes);
        let steps = if once_in(&mut self.rng, 3) { 0 } else { self.rng.below(80) };
        self.machine.breathe(steps);
        link.take(self.seen);
    }

    /// The bytes of an item that the server wants, or nearly.
    fn send_data(&mut self, link: &mut Link) {
        let at = self.rng.below(link.wanted.len() as u64) as usize;
        let wanted = link.wanted.swap_remove(at);
        if link.age(&wanted) >= WANTED || self.hurried.contains(&wanted.request) {
            link.broken = true;
        }
        let value = generate::value(&mut self.rng, wanted.length as usize);
        let wrong = once_in(&mut self.rng, 3).then(|| self.rng.below(9));
        self.send_data_as(link, wanted, value, wrong);
    }

    fn send_data_as(
        &mut self,
        link: &mut Link,
        mut wanted: Wanted,
        mut value: Vec<u8>,
        wrong: Option<u64>,
    ) {
        let mut crcs = generate::crcs(&value);
        let mut trailer = true;
        match wrong {
            Some(0) => value.push(0),
            Some(1) => drop(value.pop()),
            Some(2) => trailer = false,
            Some(3) => drop(crcs.pop()),
            Some(4) => wanted.item ^= 1 << self.rng.below(32),
            Some(5..=7) => crcs[0] ^= 1,
            _ => {}
        }
        link.broken |= matches!(wrong, Some(0..=4 | 8));
        let mut meta = wanted.item.to_le_bytes().to_vec();
        meta.extend([0; 4]);
        let header = Header::request(Opcode::Data, wanted.request);
        let header = header.with_payload_length(value.len() as u64);
        let header = if trailer { header.with_trailer() } else { header };
        let (header, mut bytes) = link.seal(header, &meta);
        bytes.extend(value);
        if trailer {
            link.sealer.seal_trailer(header.mac(), &crcs, &mut bytes);
        }
        if wrong == Some(8) {
            // The trailer's MAC.
            let last = bytes.len() - 1;
            bytes[last] ^= 1;
        }
        self.send(link, bytes);
    }

    /// An offer that brings its bytes, or nearly.
    fn offer_along(&mut self, link: &mut Link) {
        // In front of bytes that are wanted it must not come.
        link.broken |= link.owes();
        let seen: Vec<u64> = self.seen.generations.iter().copied().collect();
        let (mut meta, mut value) = generate::offer_along(&mut self.rng, &seen);
        let mut crcs = generate::crcs(&value);
        let mut trailer = true;
        let wrong = once_in(&mut self.rng, 3).then(|| self.rng.below(8));
        match wrong {
            Some(0) => value.push(0),
            Some(1) => drop(value.pop()),
            Some(2) => trailer = false,
            Some(3) => drop(crcs.pop()),
            Some(4) => mutate(&mut self.rng, &mut meta),
            Some(5..=6) => crcs[0] ^= 1,
            _ => {}
        }
        meta.truncate(Opcode::Offer.meta_limit() as usize);
        let item = PutItems::lone(&meta);
        let fits = item.is_some_and(|item| item.length == value.len() as u64);
        link.broken |= !fits || matches!(wrong, Some(2 | 3 | 7));
        let header = self.header(link, Opcode::Offer).with_payload_length(value.len() as u64);
        let header = if trailer { header.with_trailer() } else { header };
        let (header, mut bytes) = link.seal(header, &meta);
        bytes.extend(value);
        if trailer {
            link.sealer.seal_trailer(header.mac(), &crcs, &mut bytes);
        }
        if wrong == Some(7) {
            // The trailer's MAC.
            let last = bytes.len() - 1;
            bytes[last] ^= 1;
        }
        self.send(link, bytes);
    }

    /// Data that nobody asked for.
    fn send_unwanted(&mut self, link: &mut Link) {
        let length = 1 + self.rng.below(40_000);
        let (request, item) = (self.request + self.rng.below(2), self.rng.below(3) as u32);
        link.broken = true;
        let value = generate::value(&mut self.rng, length as usize);
        self.send_data_as(link, Wanted { request, item, length, since: 0 }, value, None);
    }

    /// More puts than there are credits, at once.
    fn flood(&mut self, link: &mut Link) {
        link.broken = true;
        let mut all = Vec::new();
        for _ in 0..CREDITS + 2 {
            self.request += 1;
            let (meta, payload) = draft(&mut self.rng, Opcode::Put, &[]);
            let header = Header::request(Opcode::Put, self.request);
            let (_, bytes) = link.seal(header.with_payload_length(payload.len() as u64), &meta);
            all.extend(bytes);
            all.extend(payload);
        }
        self.send(link, all);
    }

    /// A frame that is left out or comes twice.
    fn lose_step(&mut self, link: &mut Link) {
        link.broken = true;
        let header = self.header(link, Opcode::Stats);
        let (_, bytes) = link.seal(header, &[]);
        if once_in(&mut self.rng, 2) {
            self.send(link, bytes.repeat(2));
        }
    }

    fn leave(&mut self, link: &mut Link) {
        let way = self.rng.below(8);
        let name = match way {
            0..=3 => {
                self.settle(link);
                if link.broken {
                    return;
                }
                assert_eq!(link.end.fate(), Fate::Open, "hung up without a word");
                assert_eq!((link.unanswered(), link.credits), (0, CREDITS), "all was answered");
                "left after all answers"
            }
            4 => "left at once",
            5 => {
                link.end.close();
                self.wait_for_the_end(link);
                "left half closed"
            }
            6 => {
                let (meta, _) = draft(&mut self.rng, Opcode::Goodbye, &[]);
                let header = self.header(link, Opcode::Goodbye);
                let (_, bytes) = link.seal(header, &meta);
                link.end.send(&bytes);
                if link.broken {
                    // The server may still wait for the rest of a frame.
                    link.end.close();
                }
                self.wait_for_the_end(link);
                "left by goodbye"
            }
            _ => {
                let header = self.header(link, Opcode::Stats);
                let (_, bytes) = link.seal(header, &[]);
                let some = 1 + self.rng.below(bytes.len() as u64 - 1) as usize;
                link.end.send(&bytes[..some]);
                if once_in(&mut self.rng, 2) {
                    link.end.close();
                    self.wait_for_the_end(link);
                }
                "left within a frame"
            }
        };
        self.seen.counts.bump(name);
    }

    /// The client has said that it leaves: the server leaves too.
    fn wait_for_the_end(&mut self, link: &mut Link) {
        let Play { machine, seen, .. } = self;
        machine.until("the server leaves too", || {
            link.take(seen);
            link.end.fate() != Fate::Open
        });
        link.take(seen);
    }
}

/// A hello: with whose key it is sealed, its meta, and the bytes to send.
fn hello(rng: &mut Rng, wrong: Option<u64>) -> ((u32, memkv_wire::SharedKey), Vec<u8>, Vec<u8>) {
    let (id, mut key) = credential(FUZZED);
    let mut hello = ClientHello {
        client_nonce: array(rng),
        client_id: [rng.below(3) as u8; 16],
        key_id: id,
        namespace: one_of(rng, &["n", "n", "n", "llama-70b/fp8", "größe"]),
        version_min: 1,
        version_max: 1 + rng.below(2) as u8,
        counts_lent: rng.below(2) == 0,
        reads_windows: rng.below(2) == 0,
    };
    let mut opcode = Opcode::Connect;
    match wrong {
        Some(0) => key = credential(WITNESS).1,
        Some(1) => hello.key_id = one_of(rng, &[0, WITNESS, 77, u32::MAX]),
        Some(2) => (hello.version_min, hello.version_max) = (2, 3),
        Some(3) => opcode = Opcode::Exists,
        _ => {}
    }
    let mut meta = Vec::new();
    hello.encode(&mut meta);
    if wrong == Some(4) {
        mutate(rng, &mut meta);
    }
    let (mut sealer, _) = connect_keys(&key, id, Side::Client);
    let mut frame = Vec::new();
    sealer.seal(&mut Header::request(opcode, number(rng)), &meta, &mut frame);
    match wrong {
        Some(5) => mutate(rng, &mut frame),
        Some(6) => frame.truncate(rng.below(frame.len() as u64) as usize),
        Some(7) => {
            // Its sequence is one too many.
            frame.clear();
            sealer.seal(&mut Header::request(opcode, 1), &meta, &mut frame);
        }
        _ => {}
    }
    ((id, key), meta, frame)
}

/// A connection of a client that breaks nothing.
pub fn greet_well(machine: &mut Machine, tenant: u32, nonce: [u8; 32]) -> Link {
    let credential = credential(tenant);
    let hello = ClientHello {
        client_nonce: nonce,
        client_id: [0xee; 16],
        key_id: credential.0,
        namespace: "n",
        version_min: 1,
        version_max: 1,
        counts_lent: true,
        reads_windows: false,
    };
    let (mut meta, mut frame) = (Vec::new(), Vec::new());
    hello.encode(&mut meta);
    let (mut sealer, _) = connect_keys(&credential.1, credential.0, Side::Client);
    sealer.seal(&mut Header::request(Opcode::Connect, 0), &meta, &mut frame);
    let end: ClientEnd = machine.connect();
    end.send(&frame);
    let mut got = Greeting::None;
    machine.until("a good hello is answered", || {
        got = greeting(&end, &credential, &meta);
        !matches!(got, Greeting::None) || end.fate() != Fate::Open
    });
    match got {
        Greeting::Open(ends) => Link::new(end, *ends, machine.clock()),
        Greeting::Refused(status) => panic!("a good hello was refused: {status}"),
        Greeting::None => panic!("a good hello was not answered"),
    }
}
