//! Blocks move in pieces: what is seen of it when all goes well, and when a drive goes in between.

mod common;

use std::time::Duration;

use common::{MIB, Machine, Options, crcs, value};
use memkv_block::Op;
use memkv_poller::Clock;
use memkv_session::SessionLimits;
use memkv_sim::faults::{Effect, Rule, When};
use memkv_wire::{ItemReplies, MissReason, Opcode, Status, SuspectItem, SuspectItems};

const PIECE: usize = 64 << 10;

/// Extents of 1 MiB, each sixteen pieces long.
fn machine(drives: usize) -> Machine {
    let limits = SessionLimits { transfer: PIECE as u32, ..SessionLimits::default() };
    Machine::new(Options { drives, pool_bytes: 16 << 20, limits, ..Options::default() })
}

#[test]
fn values_of_any_length_come_back_and_any_part_of_them() {
    let mut machine = machine(2);
    let mut client = machine.client(1);
    let lengths = [MIB, MIB + 1, MIB + PIECE - 1, 2 * MIB + PIECE + 1, 3 * MIB - 513];
    for (n, length) in lengths.into_iter().enumerate() {
        let (name, bytes) = (format!("{length}"), value(n as u64, length));
        assert_eq!(client.put(&mut machine, &name, &bytes).status, Status::Ok);
        let (reply, got) = client.get(&mut machine, &name);
        assert_eq!(reply.crcs.as_slice(), crcs(&bytes, client.extent).as_slice());
        assert!(got == bytes, "{length}");
        let parts = [(0, 1), (PIECE - 1, 2), (PIECE, PIECE), (MIB - 7, 7), (7, length - 7)];
        for (from, count) in parts {
            client.send_get(&name, from as u64, count as u64);
            let (reply, part) = client.got(&mut machine);
            assert_eq!(reply.length, length as u64);
            assert!(part == bytes[from..from + count], "{from} and {count} bytes of {length}");
            // The server computes it over what it sends of each extent.
            let first = count.min(MIB - from);
            assert_eq!(reply.crcs[0], memkv_wire::crc32c(&part[..first]));
        }
    }
    machine.assert_at_rest();
}

#[test]
fn a_drive_that_goes_while_a_reply_is_sent_leaves_zeros_and_a_reason() {
    let mut machine = machine(1);
    let mut client = machine.client(1);
    let bytes = value(5, 2 * MIB);
    assert_eq!(client.put(&mut machine, "gone", &bytes).status, Status::Ok);
    let (faults, start) = machine.faults[0].clone();
    let range = start..u64::MAX;
    let third = When::Nth(3);
    faults.add(Rule { range, when: third, strikes_max: 1, ..Rule::fail(Op::Read) });

    let (reply, got) = client.get(&mut machine, "gone");
    assert_eq!((reply.status, got.len()), (Status::Ok, bytes.len()), "it had begun");
    let lost = 2 * PIECE..3 * PIECE;
    assert!(got[lost.clone()].iter().all(|&byte| byte == 0), "nobody else's bytes");
    assert!(got[..lost.start] == bytes[..lost.start] && got[lost.end..] == bytes[lost.end..]);
    assert_ne!(reply.crcs.as_slice(), crcs(&got, client.extent).as_slice());
    assert_eq!(machine.store.counters().drives_failed.get(), 1);

    // The getter saw a CRC that is wrong, and asks.
    let mut meta = Vec::new();
    let item = SuspectItem { key: b"gone", generation: reply.generation };
    SuspectItems { items: vec![item] }.encode(&mut meta);
    let answer = client.ask(&mut machine, Opcode::Suspect, &meta);
    let item = ItemReplies::parse(&answer.meta).expect("a reply per item").items[0];
    assert_eq!((item.status, item.reason), (Status::NotFound, MissReason::DriveLost));
    machine.assert_at_rest();
}

#[test]
fn a_drive_that_stalls_while_a_reply_is_sent_ends_it_with_zeros() {
    let mut machine = machine(1);
    let mut client = machine.client(1);
    let bytes = value(5, 2 * MIB);
    assert_eq!(client.put(&mut machine, "gone", &bytes).status, Status::Ok);
    let (faults, start) = machine.faults[0].clone();
    let (range, when, effect) = (start..u64::MAX, When::Nth(3), Effect::Hang);
    faults.add(Rule { range, when, effect, ..Rule::fail(Op::Read) });

    let begin = machine.world.clock().now();
    let (reply, got) = client.get(&mut machine, "gone");
    let took = machine.world.clock().now().saturating_duration_since(begin);
    assert!((10..13).contains(&took.as_secs()), "{took:?}");
    assert_eq!((reply.status, got.len()), (Status::Ok, bytes.len()), "it had begun");
    let lost = 2 * PIECE..3 * PIECE;
    assert!(got[lost.clone()].iter().all(|&byte| byte == 0), "nobody else's bytes");
    assert!(got[..lost.start] == bytes[..lost.start] && got[lost.end..] == bytes[lost.end..]);
    assert_eq!(machine.store.counters().drives_failed.get(), 1);
    let why = machine.store.drives()[0].why_offline.clone().expect("it is offline");
    assert!(why.contains("has not answered for 10 s"), "{why}");
    let (reply, _) = client.get(&mut machine, "gone");
    assert_eq!((reply.status, reply.reason), (Status::NotFound, MissReason::DriveLost));
    faults.release();
    machine.assert_at_rest();
}

#[test]
fn a_put_whose_drive_stalls_under_it_is_placed_again_byte_for_byte() {
    let mut machine = machine(2);
    let mut client = machine.client(1);
    // Some pieces of what is stored there are written, then one hangs.
    let (faults, start) = machine.faults[0].clone();
    let (range, when, effect) = (start..u64::MAX, When::Nth(3), Effect::Hang);
    faults.add(Rule { range, when, effect, ..Rule::fail(Op::Write) });
    let bytes = value(9, 4 * MIB + 5);
    assert_eq!(client.put(&mut machine, "moved", &bytes).status, Status::Ok);
    assert_eq!(machine.store.counters().drives_failed.get(), 1);
    assert!(client.get(&mut machine, "moved").1 == bytes);
    // The driver gives back what it had on loan; nothing of it is used any more.
    faults.release();
    machine.assert_at_rest();
    assert!(client.get(&mut machine, "moved").1 == bytes);
}

#[test]
fn a_drive_that_stalls_in_a_put_is_told_to_the_others_and_they_take_the_next() {
    let mut machine = machine(2);
    let mut client = machine.client(1);
    // What the journal of one drive writes hangs.
    let (faults, start) = machine.faults[0].clone();
    faults.add(Rule { range: 0..start, effect: Effect::Hang, ..Rule::fail(Op::Write) });
    let mut failed = 0;
    for n in 0..20 {
        let (name, bytes) = (format!("{n}"), value(n, MIB / 2));
        let reply = client.put(&mut machine, &name, &bytes);
        if reply.status == Status::Ok {
            assert!(client.get(&mut machine, &name).1 == bytes);
        } else {
            failed += 1;
            assert_eq!(client.get(&mut machine, &name).0.status, Status::NotFound);
        }
    }
    assert_eq!(failed, 1, "one put met the stall, the next ones the other drive");
    assert_eq!(machine.store.membership().members.len(), 1);
    assert!(machine.store.membership_is_settled());
    faults.release();
    machine.assert_at_rest();
}

#[test]
fn a_drive_that_is_gone_before_the_reply_begins_is_a_miss() {
    let mut machine = machine(1);
    let mut client = machine.client(1);
    assert_eq!(client.put(&mut machine, "gone", &value(6, 2 * MIB)).status, Status::Ok);
    let (faults, start) = machine.faults[0].clone();
    faults.add(Rule { range: start..u64::MAX, ..Rule::fail(Op::Read) });
    let (reply, got) = client.get(&mut machine, "gone");
    assert_eq!((reply.status, reply.reason), (Status::NotFound, MissReason::DriveLost));
    assert!(got.is_empty());
    machine.assert_at_rest();
}

#[test]
fn replies_that_nobody_reads_any_more_give_everything_back() {
    let mut machine = machine(2);
    let mut client = machine.client(1);
    let bytes = value(7, 3 * MIB);
    for name in ["one", "two", "three"] {
        assert_eq!(client.put(&mut machine, name, &bytes).status, Status::Ok);
    }
    for steps in 0..60 {
        let mut leaver = machine.client(steps % 2);
        for name in ["one", "two", "three"] {
            leaver.send_get(name, 0, u64::MAX);
        }
        // It leaves when some of the reads are done and some are not.
        for _ in 0..steps * 4 {
            if !machine.world.step() {
                machine.world.advance(None);
            }
        }
        drop(leaver);
        machine.pass(Duration::from_secs(1));
        machine.assert_at_rest();
    }
    assert!(client.get(&mut machine, "two").1 == bytes);
}
