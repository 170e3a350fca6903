//! Another client of the same server, who keeps the rules and must notice nothing.

use memkv_wire::meta::{GetItem, GetItems, KeyList, PutItem, PutItems, PutMode, TO_THE_END};
use memkv_wire::{CrcList, Header, Opcode, Status};

use super::Seen;
use super::generate;
use super::link::{Answer, Link};
use super::machine::{Machine, WITNESS};
use super::play::greet_well;

const KEY: &[u8] = b"witness";
/// Three extents, the last one short: parts on both drives.
const LENGTH: usize = 40_001;
/// Tries to store the block again after it was evicted.
const TRIES: u32 = 100;

/// The witness: one connection, one block.
#[derive(Default)]
pub struct Witness {
    link: Option<Link>,
    /// Its own, so that nothing counts as reached because the witness reached it.
    seen: Seen,
    stored: bool,
    /// Whether the block may have been evicted since the last look.
    evictable: bool,
    requests: u64,
}

impl Witness {
    /// Gets the block and compares it. An evicted one is stored again. True when it was there.
    pub fn look(&mut self, machine: &mut Machine) -> bool {
        self.evictable |= machine.evicts();
        let mut meta = Vec::new();
        KeyList { keys: vec![KEY] }.encode(&mut meta);
        let exists = self.ask(machine, Opcode::Exists, &meta, &[]);
        let found = exists.items[0].status == Status::Ok;
        let presence = self.ask(machine, Opcode::Presence, &meta, &[]);
        let (long, short) = (&exists.items[0], &presence.items[0]);
        assert_eq!((long.status, long.reason), (short.status, short.reason));
        if found {
            self.get(machine);
        } else {
            assert_eq!(exists.items[0].status, Status::NotFound);
            assert!(!self.stored || self.evictable, "the block is gone: {:?}", exists.items[0]);
            self.put(machine);
        }
        self.evictable = machine.evicts();
        found
    }

    /// Goes away.
    pub fn leave(&mut self) {
        self.link = None;
    }

    fn get(&mut self, machine: &mut Machine) {
        let item = GetItem { key: KEY, offset: 0, length: TO_THE_END };
        let mut meta = Vec::new();
        GetItems { items: vec![item] }.encode(&mut meta);
        let got = self.ask(machine, Opcode::Get, &meta, &[]);
        assert_eq!(got.items[0].status, Status::Ok);
        assert!(got.payload == value(), "the block has other bytes");
    }

    fn put(&mut self, machine: &mut Machine) {
        let value = value();
        let item = PutItem {
            key: KEY,
            length: LENGTH as u64,
            mode: PutMode::Absent,
            durable: false,
            ttl_seconds: 0,
            crcs: CrcList::from_slice(&generate::crcs(&value)).expect("three extents"),
            advice: Default::default(),
        };
        let mut meta = Vec::new();
        PutItems { items: vec![item] }.encode(&mut meta);
        self.stored = false;
        for _ in 0..TRIES {
            let put = self.ask(machine, Opcode::Put, &meta, &value);
            match put.items[0].status {
                Status::Ok => {
                    self.stored = true;
                    return self.get(machine);
                }
                Status::Busy => machine.let_pass(u64::from(put.items[0].retry_ms)),
                // It was evicted, and now the server does not evict any more.
                Status::Full => return,
                status => panic!("a good put was answered {status}"),
            }
        }
        panic!("no room was made for a small block");
    }

    fn ask(&mut self, machine: &mut Machine, opcode: Opcode, meta: &[u8], with: &[u8]) -> Answer {
        self.requests += 1;
        let mut nonce = [0; 32];
        nonce[..8].copy_from_slice(&self.requests.to_le_bytes());
        let link = self.link.get_or_insert_with(|| greet_well(machine, WITNESS, nonce));
        let header = Header::request(opcode, self.requests);
        let (_, mut frame) = link.seal(header.with_payload_length(with.len() as u64), meta);
        frame.extend(with);
        link.end.send(&frame);
        let seen = &mut self.seen;
        machine.until("the witness is answered", || {
            link.take(seen);
            link.at_rest()
        });
        assert!(!link.is_over(), "the witness was hung up on");
        link.answer.take().expect("it was answered")
    }
}

fn value() -> Vec<u8> {
    (0..LENGTH).map(|at| (at % 251) as u8).collect()
}
