//! A node with company: a connection that asks for much and reads none of it is nobody's harm but its own.

mod common;

use common::{Wire, node, value};
use memkv_wire::{GetItem, GetItems, GetReply, Opcode, PutMode, Status, TO_THE_END, crc32c};

const MIB: usize = 1 << 20;
/// Gets that the greedy connection asks for: of more bytes than a reactor takes on.
const GETS: usize = 100;

/// Asks for a value and does not wait for it.
fn ask(wire: &mut Wire, key: &[u8]) {
    let mut meta = Vec::new();
    GetItems { items: vec![GetItem { key, offset: 0, length: TO_THE_END }] }.encode(&mut meta);
    let header = wire.request(Opcode::Get);
    wire.send(header, &meta, &[], None);
}

#[test]
fn a_connection_that_stops_reading_harms_no_other_and_is_put_off_itself() {
    // One reactor, so that all meet on it.
    let node = node(
        "memory: {max_size: 64 MiB}\nnode: {reactors: 1}\n\
         storage: {mode: memory, drives: [{max_size: 256 MiB}]}\n",
    );
    let (large, small) = (value(1, 16 * MIB), value(2, MIB));
    let (mut greedy, mut modest) = (Wire::connect(&node), Wire::connect(&node));
    assert_eq!(modest.put_large(b"large", &large).status, Status::Ok);
    assert_eq!(modest.put_large(b"small", &small).status, Status::Ok);
    (0..GETS).for_each(|_| ask(&mut greedy, b"large"));
    // Whatever the others ask for is answered, and never by Busy, though more is promised than is bearable.
    for round in 0..64 {
        let (reply, got) = modest.get(b"small");
        assert_eq!((reply.status, got.len()), (Status::Ok, MIB), "round {round}");
        assert_eq!(reply.crcs.as_slice(), [crc32c(&got)]);
        assert_eq!(modest.exists(&[b"large", b"none"]), [Status::Ok, Status::NotFound]);
        let key = format!("new {round}");
        assert_eq!(modest.put(key.as_bytes(), b"a value", PutMode::Absent).status, Status::Ok);
        let key = format!("large {round}");
        let (reply, offer) = modest.offer(key.as_bytes(), MIB, PutMode::Absent);
        assert_eq!(reply.status, Status::Want, "round {round}: {reply:?}");
        assert_eq!(modest.data(offer, &small).status, Status::Ok);
    }
    // Now it reads: what was promised is there, byte for byte, and the rest was put off.
    let (mut done, mut busy) = (0, 0);
    for _ in 0..GETS {
        let frame = greedy.receive().expect("an answer to each");
        let reply = GetReply::parse(&frame.meta).expect("a get reply").reply;
        match reply.status {
            Status::Ok => {
                assert!(frame.payload == large, "the bytes of get {done}");
                done += 1;
            }
            status => {
                assert_eq!(status, Status::Busy);
                assert!(reply.retry_ms > 0, "it says when to come back");
                busy += 1;
            }
        }
    }
    assert!((64..72).contains(&done), "as many as are bearable at any pace: {done}");
    assert_eq!(done + busy, GETS);
    // It has no less of a chance than others from then on.
    assert_eq!(greedy.get(b"large").0.status, Status::Ok);
}
