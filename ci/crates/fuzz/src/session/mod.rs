//! A server under clients that keep the protocol's keys and break its rules.
//!
//! An input is a seed and a number of acts. It plays a client of its own: a handshake, now and then
//! one that cannot be, then acts until it leaves, in order or not. Every frame has a valid MAC and
//! the next sequence; it is what the frame says that is wrong. The server is the real one
//! ([`machine`]), keeps what it stores from input to input, and is stopped and started after some.
//!
//! What must hold, beside that nothing panics:
//!
//! * each frame of the server opens, can be read, and answers a request that waits: with a refusal
//!   where the request cannot be read, with a result per item where it can; bytes have their CRCs;
//! * a client that only asks for nonsense is answered to the end; it is hung up on only for what
//!   breaks the stream;
//! * after each input everything it used is back, and another client still gets its block, byte for
//!   byte;
//! * the server stops under any of this, and finds its blocks again when it starts.

mod generate;
mod link;
mod machine;
mod play;
mod witness;

use std::collections::VecDeque;

use memkv_poller::Rng;
use memkv_wire::meta::Reply;
use memkv_wire::{ItemReply, Opcode, Status};

use crate::target::{Counts, Target};
use machine::Machine;
use play::Play;
use witness::Witness;

/// Results of single items that must be seen.
const ITEMS: [Status; 13] = [
    Status::Ok,
    Status::Want,
    Status::NotFound,
    Status::Present,
    Status::Conflict,
    Status::GenerationMismatch,
    Status::Busy,
    Status::Full,
    Status::TooLarge,
    Status::BadRequest,
    Status::Unsupported,
    Status::CrcMismatch,
    Status::LimitExceeded,
];

/// Other things that must happen.
const EVENTS: [&str; 16] = [
    "goodbye from the server",
    "hello refused",
    "hello unanswered",
    "hung up: bad_request",
    "hung up: credit_exceeded",
    "hung up: unauthorized",
    "left after all answers",
    "left at once",
    "left by goodbye",
    "left half closed",
    "left within a frame",
    "stopped under way",
    "evicted",
    "kept through a start",
    "offer along stored",
    "offer along forgotten",
];

/// Inputs between two starts of the server.
const LIFE: u64 = 40;
/// The most acts of one input.
const ACTS: u8 = 12;

/// What was reached, and what clients could know.
pub struct Seen {
    counts: Counts,
    /// Some generations of late.
    generations: VecDeque<u64>,
}

/// The target: sessions and the store behind them.
#[derive(Default)]
pub struct Session {
    seen: Seen,
    /// Made by the first input.
    under_test: Option<(Machine, Witness)>,
    inputs: u64,
}

impl Default for Seen {
    fn default() -> Seen {
        let mut names: Vec<String> = EVENTS.map(str::to_owned).to_vec();
        for opcode in Opcode::ALL.iter().filter(|&&opcode| opcode != Opcode::Goodbye) {
            names.extend([format!("{opcode} ok"), format!("{opcode} refused")]);
        }
        names.extend(ITEMS.map(|status| format!("item {status}")));
        Seen { counts: Counts::of(names), generations: VecDeque::new() }
    }
}

impl Target for Session {
    fn name(&self) -> &'static str {
        "session"
    }

    fn draw(&self, rng: &mut Rng) -> Vec<u8> {
        let mut input = rng.next_u64().to_le_bytes().to_vec();
        input.push(1 + rng.below(u64::from(ACTS)) as u8);
        input
    }

    fn feed(&mut self, input: &[u8]) {
        let mut seed = [0; 8];
        crate::draw::overwrite(&mut seed, 0, input);
        let acts = input.get(8).copied().unwrap_or(ACTS) % (ACTS + 1);
        let (machine, witness) = self.under_test.get_or_insert_with(|| {
            let mut machine = Machine::new();
            machine.start();
            (machine, Witness::default())
        });
        witness.look(machine);
        self.inputs += 1;
        let play = Play::new(machine, &mut self.seen, u64::from_le_bytes(seed));
        if self.inputs.is_multiple_of(LIFE) {
            play.until_the_server_stops(acts);
            witness.leave();
            machine.start();
            if witness.look(machine) {
                self.seen.counts.bump("kept through a start");
            }
            return;
        }
        play.until_the_client_leaves(acts);
        machine.audit(1);
        witness.look(machine);
        if machine.evictions() > 0 {
            self.seen.counts.bump("evicted");
        }
    }

    fn finish(&mut self) {
        if let Some((machine, witness)) = &mut self.under_test {
            machine.stop();
            witness.leave();
            machine.start();
            witness.look(machine);
        }
    }

    fn counts(&self) -> &Counts {
        &self.seen.counts
    }
}

impl Seen {
    fn generation(&mut self, generation: u64) {
        if generation != 0 && !self.generations.contains(&generation) {
            self.generations.push_back(generation);
            if self.generations.len() > 16 {
                self.generations.pop_front();
            }
        }
    }

    fn item(&mut self, item: &ItemReply) {
        self.generation(item.generation);
        if ITEMS.contains(&item.status) {
            self.counts.bump(&format!("item {}", item.status));
        }
    }

    /// Counts a reply: done, or refused as a whole. A Data frame is a request of one item.
    fn reply(&mut self, opcode: Opcode, along: bool, status: Status, reply: &Reply<'_>) {
        let mut end = (status == Status::Ok, status != Status::Ok);
        match reply {
            Reply::Items(items) => {
                items.items.iter().for_each(|item| self.item(item));
                let offered = opcode == Opcode::Offer && !along;
                let done = if offered { Status::Want } else { Status::Ok };
                end.0 = items.items.iter().any(|item| item.status == done);
                if along {
                    let name = if end.0 { "offer along stored" } else { "offer along forgotten" };
                    return self.counts.bump(name);
                }
            }
            Reply::Presence(presence) => end.0 = presence.missing.contains(&None),
            Reply::Get(get) => {
                self.item(&get.reply);
                end.0 = get.reply.status == Status::Ok;
            }
            Reply::Data(data) => {
                self.item(&data.reply);
                end = (data.reply.status == Status::Ok, data.reply.status != Status::Ok);
            }
            _ => {}
        }
        for (reached, name) in [(end.0, "ok"), (end.1, "refused")] {
            if reached {
                self.counts.bump(&format!("{opcode} {name}"));
            }
        }
    }

    /// Counts why the server hung up.
    fn hung_up(&mut self, status: Status) {
        let name = format!("hung up: {status}");
        if EVENTS.contains(&&*name) {
            self.counts.bump(&name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::{Until, run};

    #[test]
    fn everything_a_session_does_is_reached() {
        let mut session = Session::default();
        let report = run(&mut session, &[], 1, Until::Inputs(2_000));
        assert!(report.passed(), "{report}");
    }

    #[test]
    fn any_input_may_be_fed() {
        let mut rng = Rng::seeded(2);
        let mut session = Session::default();
        for length in 0..40 {
            session.feed(&crate::draw::bytes(&mut rng, length));
        }
        session.finish();
    }

    #[test]
    fn the_same_inputs_reach_the_same() {
        let counts = || {
            let mut session = Session::default();
            run(&mut session, &[], 9, Until::Inputs(128));
            session.counts().iter().map(|(name, n)| (name.to_owned(), n)).collect::<Vec<_>>()
        };
        assert_eq!(counts(), counts());
    }
}
