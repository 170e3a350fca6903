//! Questions about keys get the same answers where the store is at hand and where it is not, however many
//! come at once.

mod common;

use std::collections::BTreeSet;

use common::{Frame, Machine, Options, value};
use memkv_wire::{
    DeleteItem, DeleteItems, ItemReplies, ItemReply, KeyList, MatchItem, MatchItems, MatchReply,
    MissReason, Opcode, PresenceReply, Status,
};

/// More than a reader answers in one pass, and than may be under way at a time.
const QUESTIONS: usize = 300;

fn exists() -> Vec<u8> {
    let mut meta = Vec::new();
    KeyList { keys: vec![b"absent", b"present", b"gone"] }.encode(&mut meta);
    meta
}

fn run() -> Vec<u8> {
    let mut meta = Vec::new();
    let item = |(position, key)| MatchItem { position, key };
    // Not in their order: the first missing one is the third.
    let items = [(9, &b"gone"[..]), (2, b"present"), (5, b"also present"), (7, b"absent")];
    MatchItems { items: items.map(item).to_vec() }.encode(&mut meta);
    meta
}

fn items(frame: &Frame) -> Vec<ItemReply> {
    ItemReplies::parse(&frame.meta).expect("item replies").items
}

#[test]
fn many_at_once_are_all_answered_alike_on_every_reactor() {
    let mut machine = Machine::new(Options::default());
    let mut writer = machine.client(0);
    let stored = writer.put(&mut machine, "present", &value(1, 5000));
    assert_eq!(stored.status, Status::Ok);
    assert_eq!(writer.put(&mut machine, "also present", &value(2, 70_000)).status, Status::Ok);
    assert_eq!(writer.put(&mut machine, "gone", &value(3, 300)).status, Status::Ok);
    let mut meta = Vec::new();
    DeleteItems { items: vec![DeleteItem { key: b"gone", generation: 0 }] }.encode(&mut meta);
    assert_eq!(items(&writer.ask(&mut machine, Opcode::Delete, &meta))[0].status, Status::Ok);
    let deleted = Some(MissReason::Deleted);
    for reactor in 0..2 {
        let mut client = machine.client(reactor);
        let mut asked = BTreeSet::new();
        for number in 0..QUESTIONS {
            let (opcode, meta) = match number % 4 {
                0 => (Opcode::Exists, exists()),
                1 => (Opcode::MatchPrefix, run()),
                2 => (Opcode::Presence, exists()),
                // Names no key.
                _ => (Opcode::Exists, vec![0; 4]),
            };
            let header = client.request(opcode);
            asked.insert((header.request_id(), number % 4));
            client.send(header, &meta, &[]);
        }
        for _ in 0..QUESTIONS {
            let frame = client.receive(&mut machine).expect("an answer");
            let id = frame.header.request_id();
            let kind = (0..4).find(|&kind| asked.remove(&(id, kind))).expect("it was asked once");
            match kind {
                0 => {
                    let [absent, present, gone] = items(&frame)[..] else { panic!("three") };
                    assert_eq!(absent, ItemReply::miss(MissReason::Never));
                    assert_eq!(gone, ItemReply::miss(MissReason::Deleted));
                    assert_eq!((present.status, present.length), (Status::Ok, 5000));
                    assert_eq!(present.generation, stored.generation);
                    assert_eq!(present.crcs.len(), 1);
                }
                1 => {
                    let reply = MatchReply::parse(&frame.meta).expect("a run");
                    assert_eq!(reply, MatchReply { first_missing: 7, examined: 3 });
                }
                2 => {
                    let never = Some(MissReason::Never);
                    let reply = PresenceReply::parse(&frame.meta).expect("a byte per key");
                    assert_eq!(reply.missing, [never, None, deleted]);
                }
                _ => assert_eq!(frame.header.status(), Status::BadRequest),
            }
        }
        assert!(asked.is_empty());
    }
    drop(writer);
}
