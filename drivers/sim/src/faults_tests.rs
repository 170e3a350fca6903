//! Tests of the fault rules, in front of a simulated disk.

use super::*;

use memkv_dma::{Class, Hugepages, Pool, PoolConfig};

use crate::{DiskOptions, SimClock, SimDisk, World, WorldOptions};

struct Fixture {
    world: World,
    faults: Faults,
    queue: Rc<dyn BlockQueue>,
    pool: Pool,
}

fn fixture() -> Fixture {
    let clock = SimClock::new(0);
    let disk = SimDisk::new(DiskOptions::new("sim0", 1 << 20, 4), clock.clone());
    let mut world = World::new(WorldOptions { reactors: 1, inbox_capacity: 16, seed: 4 }, clock);
    world.add_source(Rc::new(disk.clone()));
    let faults = Faults::new(4);
    let device = faults.decorate(Arc::new(disk));
    assert_eq!((device.name(), device.kind()), ("sim0", Kind::Sim));
    assert!(device.view(0, 4096).is_none());
    let queue = device.open_queue(&world.local(0)).unwrap();
    let config = PoolConfig { size: 8 << 20, chunk: 2 << 20, hugepages: Hugepages::Never };
    Fixture { world, faults, queue, pool: Pool::new(config).unwrap() }
}

impl Fixture {
    fn write(&mut self, offset: u64, fill: u8) -> Result<(), IoError> {
        let mut buf = self.pool.allocate(Class::Receive, 4096).unwrap();
        buf.as_mut_slice().fill(fill);
        let completion = self.queue.submit(Io::write(offset, 4096, buf));
        let done = self.world.block_on(0, completion).expect("an answer");
        assert!(done.buf.is_some(), "the buffer comes back whatever happened");
        done.result
    }

    fn read(&mut self, offset: u64) -> Result<Vec<u8>, IoError> {
        let buf = self.pool.allocate(Class::Send, 4096).unwrap();
        let completion = self.queue.submit(Io::read(offset, 4096, buf));
        let done = self.world.block_on(0, completion).expect("an answer");
        let Some(IoBuf::Exclusive(buf)) = &done.buf else { panic!("the buffer comes back") };
        done.result.map(|()| buf.as_slice()[..4096].to_vec())
    }
}

#[test]
fn without_rules_the_device_is_as_it_was() {
    let mut fixture = fixture();
    fixture.write(8192, 3).unwrap();
    assert_eq!(fixture.read(8192).unwrap(), [3; 4096]);
}

#[test]
fn the_nth_command_in_a_range_fails_and_only_that() {
    let mut fixture = fixture();
    let rule = Rule { range: 4096..8192, when: When::Nth(2), ..Rule::fail(Op::Write) };
    let id = fixture.faults.add(rule);
    fixture.write(0, 1).unwrap();
    fixture.write(4096, 1).unwrap();
    fixture.write(8192, 1).unwrap();
    assert!(matches!(fixture.write(4096, 1), Err(IoError::Injected(_))));
    fixture.write(4096, 1).unwrap();
    fixture.read(4096).unwrap();
    assert_eq!(fixture.faults.strikes(id), 1);
}

#[test]
fn a_rule_is_spent_or_taken_away() {
    let mut fixture = fixture();
    fixture.faults.add(Rule { strikes_max: 1, ..Rule::fail(Op::Read) });
    assert!(fixture.read(0).is_err());
    fixture.read(0).unwrap();
    let id = fixture.faults.add(Rule { op: None, ..Rule::fail(Op::Read) });
    assert!(fixture.read(0).is_err() && fixture.write(0, 1).is_err());
    fixture.faults.remove(id);
    fixture.write(0, 1).unwrap();
    assert_eq!(fixture.faults.strikes(id), 2);
}

#[test]
fn a_lost_write_says_done_and_a_flipped_read_differs_in_one_bit() {
    let mut fixture = fixture();
    fixture.write(0, 1).unwrap();
    let lose = fixture.faults.add(Rule { effect: Effect::Lose, ..Rule::fail(Op::Write) });
    fixture.write(0, 2).unwrap();
    fixture.faults.remove(lose);
    assert_eq!(fixture.read(0).unwrap(), [1; 4096]);
    fixture.faults.add(Rule { effect: Effect::Flip, ..Rule::fail(Op::Read) });
    let bytes = fixture.read(0).unwrap();
    let flipped: u32 = bytes.iter().map(|byte| (byte ^ 1).count_ones()).sum();
    assert_eq!(flipped, 1);
}

#[test]
fn chance_strikes_about_as_often_as_it_says() {
    let mut fixture = fixture();
    fixture.faults.add(Rule { when: When::PerMillion(300_000), ..Rule::fail(Op::Write) });
    let struck = (0..500).filter(|_| fixture.write(0, 1).is_err()).count();
    assert!((100..200).contains(&struck), "{struck} of 500");
}

#[test]
fn a_rule_for_writes_or_for_flushes_strikes_what_is_both() {
    let mut fixture = fixture();
    let both = |fixture: &mut Fixture, fill: u8| {
        let mut buf = fixture.pool.allocate(Class::Receive, 4096).unwrap();
        buf.as_mut_slice().fill(fill);
        let completion = fixture.queue.submit(Io::write_flush(0, 4096, buf));
        let done = fixture.world.block_on(0, completion).expect("an answer");
        assert!(done.buf.is_some(), "the buffer comes back whatever happened");
        done.result
    };
    both(&mut fixture, 1).unwrap();
    for op in [Op::Write, Op::Flush, Op::WriteFlush] {
        let id = fixture.faults.add(Rule { range: 0..4096, ..Rule::fail(op) });
        assert!(both(&mut fixture, 2).is_err(), "{op:?}");
        fixture.faults.remove(id);
    }
    let read = fixture.faults.add(Rule::fail(Op::Read));
    let lose = fixture.faults.add(Rule { effect: Effect::Lose, ..Rule::fail(Op::Write) });
    both(&mut fixture, 3).unwrap();
    assert_eq!((fixture.faults.strikes(read), fixture.faults.strikes(lose)), (0, 1));
    fixture.faults.remove(read);
    fixture.faults.remove(lose);
    assert_eq!(fixture.read(0).unwrap(), [1; 4096]);
}
