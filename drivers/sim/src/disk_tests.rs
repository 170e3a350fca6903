//! Tests of the simulated disk through its real interface, in a world of two reactors.

use super::*;

use std::cell::Cell;

use memkv_dma::{Class, Hugepages, Pool, PoolConfig};

use crate::world::{World, WorldOptions};

const CAPACITY: u64 = 8 << 20;

struct Fixture {
    world: World,
    disk: SimDisk,
    pool: Pool,
}

fn fixture(seed: u64) -> Fixture {
    let clock = SimClock::new(1_000_000);
    let disk = SimDisk::new(DiskOptions::new("sim0", CAPACITY, seed), clock.clone());
    let options = WorldOptions { reactors: 2, inbox_capacity: 64, seed };
    let mut world = World::new(options, clock);
    world.add_source(Rc::new(disk.clone()));
    let config = PoolConfig { size: 8 << 20, chunk: 2 << 20, hugepages: Hugepages::Never };
    Fixture { world, disk, pool: Pool::new(config).unwrap() }
}

impl Fixture {
    fn queue(&self) -> Rc<dyn BlockQueue> {
        self.disk.open_queue(&self.world.local(0)).unwrap()
    }

    fn buffer(&self, len: usize, fill: u8) -> memkv_dma::DmaBuf {
        let mut buf = self.pool.allocate(Class::Receive, len).unwrap();
        buf.as_mut_slice().fill(fill);
        buf
    }

    fn start_write(&self, queue: &dyn BlockQueue, offset: u64, fill: u8, len: u64) -> Completion {
        let buf = self.buffer(len as usize, fill);
        queue.submit(Io::write(offset, len as usize, buf))
    }

    fn write(&mut self, queue: &dyn BlockQueue, offset: u64, fill: u8, len: u64) -> Done {
        let completion = self.start_write(queue, offset, fill, len);
        self.world.block_on(0, completion).expect("the write completes")
    }

    fn read(&mut self, queue: &dyn BlockQueue, offset: u64, len: u64) -> (Done, Vec<u8>) {
        let buf = self.buffer(len as usize, 0xee);
        let completion = queue.submit(Io::read(offset, len as usize, buf));
        let done = self.world.block_on(0, completion).expect("the read completes");
        let Some(IoBuf::Exclusive(buf)) = &done.buf else { panic!("the buffer comes back") };
        let bytes = buf.as_slice()[..len as usize].to_vec();
        (done, bytes)
    }

    fn peek(&self, offset: u64) -> u8 {
        let mut one = [0];
        self.disk.peek(offset, &mut one);
        one[0]
    }

    fn crash(&mut self, kind: CrashKind) {
        self.disk.power_off();
        self.world.stop();
        self.disk.crash(kind);
        self.world.start();
    }
}

#[test]
fn a_write_is_there_when_it_completes_and_not_before() {
    let mut fixture = fixture(1);
    let queue = fixture.queue();
    let before = fixture.world.clock().now();
    let completion = fixture.start_write(&*queue, 16384, 7, 32768);
    assert_eq!(fixture.peek(16384), 0);
    assert_eq!(queue.outstanding(), 1);
    fixture.world.block_on(1, completion).unwrap().result.unwrap();
    assert_eq!(queue.outstanding(), 0);
    assert!(fixture.world.clock().now() > before);
    let (done, bytes) = fixture.read(&*queue, 16384, 32768);
    done.result.unwrap();
    assert!(bytes.iter().all(|&byte| byte == 7));
}

#[test]
fn misaligned_and_far_commands_are_refused_with_their_buffer() {
    let mut fixture = fixture(1);
    let queue = fixture.queue();
    for (offset, len) in [(100, 512), (0, 100), (CAPACITY, 512), (u64::MAX - 511, 512)] {
        let completion = fixture.start_write(&*queue, offset, 1, len);
        let done = fixture.world.block_on(0, completion).unwrap();
        assert!(done.result.is_err(), "{offset} + {len}");
        assert!(done.buf.is_some());
    }
}

#[test]
fn completions_come_in_an_order_of_the_seed() {
    let order = |seed| {
        let mut fixture = fixture(seed);
        let queue = fixture.queue();
        let order = Rc::new(std::cell::RefCell::new(Vec::new()));
        for index in 0..8u64 {
            let completion = fixture.start_write(&*queue, index * 16384, 1, 4096);
            let order = Rc::clone(&order);
            fixture.world.local(0).spawn(async move {
                completion.await;
                order.borrow_mut().push(index);
            });
        }
        fixture.world.kick();
        assert!(fixture.world.run_until(|| order.borrow().len() == 8));
        order.take()
    };
    assert_eq!(order(3), order(3), "the same seed is the same run");
    assert!((0..10).any(|seed| order(seed) != order(3)), "other seeds are other runs");
}

#[test]
fn a_kill_keeps_what_completed_and_a_dead_queue_completes_nothing() {
    let mut fixture = fixture(5);
    let queue = fixture.queue();
    fixture.write(&*queue, 0, 1, 16384).result.unwrap();
    let completed = Rc::new(Cell::new(false));
    let (completion, seen) =
        (fixture.start_write(&*queue, 1 << 20, 2, 16384), Rc::clone(&completed));
    fixture.world.local(0).spawn(async move {
        completion.await;
        seen.set(true);
    });
    fixture.crash(CrashKind::Kill);
    assert_eq!(fixture.peek(0), 1);
    // A command on the queue of the last life is taken and never answered.
    let dead = fixture.start_write(&*queue, 0, 9, 16384);
    assert!(fixture.world.block_on(0, dead).is_none());
    assert!(!completed.get());
    assert_eq!(fixture.peek(0), 1);
    let queue = fixture.queue();
    let (done, bytes) = fixture.read(&*queue, 0, 16384);
    done.result.unwrap();
    assert_eq!(bytes, [1; 16384]);
}

#[test]
fn writes_on_their_way_are_kept_lost_or_torn() {
    let mut seen = [0usize; 3];
    for seed in 0..60 {
        let mut fixture = fixture(seed);
        let queue = fixture.queue();
        let _on_its_way = fixture.start_write(&*queue, 0, 1, 65536);
        fixture.crash(CrashKind::Kill);
        let mut all = vec![0; 65536];
        fixture.disk.peek(0, &mut all);
        let written = all.iter().filter(|&&byte| byte == 1).count();
        assert_eq!(written % 512, 0, "a sector is atomic");
        seen[if written == 0 {
            0
        } else if written == 65536 {
            1
        } else {
            2
        }] += 1;
    }
    assert!(seen.iter().all(|&count| count >= 5), "kept, lost, torn: {seen:?}");
}

#[test]
fn a_power_cut_spares_only_what_was_flushed() {
    let mut lost = 0;
    for seed in 0..20 {
        let mut fixture = fixture(seed);
        let queue = fixture.queue();
        fixture.write(&*queue, 0, 1, 16384).result.unwrap();
        let flush = queue.submit(Io::flush());
        fixture.world.block_on(0, flush).unwrap().result.unwrap();
        fixture.write(&*queue, 16384, 1, 16384).result.unwrap();
        fixture.crash(CrashKind::PowerCut);
        assert_eq!(fixture.peek(0), 1);
        lost += usize::from(fixture.peek(16384) == 0);
    }
    assert!((3..20).contains(&lost), "lost {lost} of 20");
}

#[test]
fn every_fault_strikes_is_counted_and_says_whom_it_harmed() {
    let harmed = Arc::new(Mutex::new(Vec::new()));
    let set = |rates| {
        let mut fixture = fixture(9);
        let queue = fixture.queue();
        fixture.write(&*queue, 0, 5, 65536).result.unwrap();
        let seen = Arc::clone(&harmed);
        fixture.disk.observe(move |event| {
            if let DiskEvent::Harmed { kind, content, .. } = event {
                seen.lock().unwrap().push((kind, content[0]));
            }
        });
        fixture.disk.set_rates(rates);
        let write = fixture.write(&*queue, 1 << 20, 6, 16384).result;
        let (read, bytes) = fixture.read(&*queue, 0, 65536);
        (fixture, write, read.result, bytes)
    };
    const ALL: u32 = 1_000_000;

    let (fixture, write, read, _) = set(FaultRates { read_error: ALL, ..Default::default() });
    assert!(write.is_ok() && read.is_err());
    assert_eq!(fixture.disk.harm(0, 512).unwrap().kind, FaultKind::ReadError);

    let (fixture, write, read, _) = set(FaultRates { write_error: ALL, ..Default::default() });
    assert!(write.is_err() && read.is_ok());
    assert_eq!(fixture.disk.counts().get(FaultKind::WriteError), 1);

    let (fixture, write, _, _) = set(FaultRates { lost: ALL, ..Default::default() });
    assert!(write.is_ok());
    assert_eq!(fixture.peek(1 << 20), 0);
    assert_eq!(fixture.disk.harm(1 << 20, 1).unwrap().kind, FaultKind::Lost);

    let (fixture, write, _, bytes) = set(FaultRates { misdirected: ALL, ..Default::default() });
    assert!(write.is_ok());
    assert_eq!(fixture.peek(1 << 20), 0);
    assert_eq!(bytes.iter().filter(|&&byte| byte == 6).count(), 16384);

    let (fixture, _, read, bytes) = set(FaultRates { bit_flip: ALL, ..Default::default() });
    assert!(read.is_ok());
    let wrong = bytes.iter().filter(|&&byte| byte != 5).count() as u64;
    assert!(wrong <= fixture.disk.counts().get(FaultKind::BitFlip));

    let (fixture, write, read, _) = set(FaultRates { dead: ALL, ..Default::default() });
    assert!(write.is_err() && read.is_err() && fixture.disk.is_dead());
    assert!(fixture.disk.open_queue(&fixture.world.local(0)).is_err());

    let harmed = harmed.lock().unwrap();
    assert!(harmed.contains(&(FaultKind::ReadError, 5)));
    assert!(harmed.contains(&(FaultKind::Lost, 6)), "what should have been stored");
    assert!(harmed.contains(&(FaultKind::Misdirected, 5)), "what was overwritten");
    assert!(harmed.contains(&(FaultKind::Misdirected, 6)));
}

#[test]
fn overwriting_heals() {
    let mut fixture = fixture(2);
    let queue = fixture.queue();
    fixture.write(&*queue, 0, 1, 16384).result.unwrap();
    fixture.disk.rot(Some(4096));
    assert!(fixture.disk.harm(0, 16384).is_some());
    fixture.write(&*queue, 0, 2, 16384).result.unwrap();
    assert_eq!(fixture.disk.harm(0, 16384), None);
}

#[test]
fn a_sector_in_use_may_not_be_written() {
    let mut fixture = fixture(2);
    let queue = fixture.queue();
    let buf = fixture.buffer(16384, 0);
    let read = queue.submit(Io::read(0, 16384, buf));
    let fine = fixture.start_write(&*queue, 16384, 1, 512);
    assert_eq!(fixture.disk.take_violations(), []);
    let write = fixture.start_write(&*queue, 512, 1, 512);
    let found = fixture.disk.take_violations();
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].first.0, found[0].second), (Op::Read, (Op::Write, 512, 512)));
    for completion in [read, fine, write] {
        fixture.world.block_on(0, completion).unwrap();
    }
}

#[test]
fn faults_stay_in_their_zones() {
    let mut fixture = fixture(2);
    let queue = fixture.queue();
    let all = FaultRates { write_error: 1_000_000, ..Default::default() };
    fixture.disk.set_rates(all);
    fixture.disk.set_fault_zones(vec![1 << 20..2 << 20, 4 << 20..5 << 20]);
    assert!(fixture.write(&*queue, 0, 1, 16384).result.is_ok());
    assert!(fixture.write(&*queue, 1 << 20, 1, 16384).result.is_err());
}

impl Fixture {
    fn start_write_flush(&self, queue: &dyn BlockQueue, offset: u64, fill: u8) -> Completion {
        queue.submit(Io::write_flush(offset, 4096, self.buffer(4096, fill)))
    }

    /// What is on its way.
    fn phases(&self) -> Vec<Op> {
        let mut phases = Vec::new();
        self.disk.for_each_outstanding(|op, _, _| phases.push(op));
        phases
    }

    /// Lets time pass until the write of the one command with a flush is done, and its flush is not.
    fn until_written(&mut self) {
        assert_eq!(self.phases(), [Op::Write]);
        while self.phases() == [Op::Write] {
            assert!(self.world.step() || self.world.advance(None));
        }
        assert_eq!(self.phases(), [Op::Flush]);
    }
}

#[test]
fn a_write_with_a_flush_survives_a_power_cut_with_what_had_completed_before() {
    let (mut lost, rounds) = (0, 30);
    for seed in 0..rounds {
        let mut fixture = fixture(seed);
        let queue = fixture.queue();
        fixture.write(&*queue, 0, 1, 16384).result.unwrap();
        let both = fixture.start_write_flush(&*queue, 65536, 2);
        fixture.until_written();
        // Completed before the command was done, and not before it was submitted.
        let late = fixture.start_write(&*queue, 131_072, 3, 4096);
        let done = fixture.world.block_on(0, both).expect("an answer");
        assert!(done.result.is_ok() && done.buf.is_some());
        let late = fixture.world.block_on(0, late).expect("an answer");
        late.result.unwrap();
        assert_eq!(fixture.disk.take_violations(), []);
        fixture.crash(CrashKind::PowerCut);
        assert_eq!((fixture.peek(0), fixture.peek(65536)), (1, 2));
        lost += usize::from(fixture.peek(131_072) == 0);
    }
    assert!((5..rounds as usize).contains(&lost), "lost {lost} of {rounds}");
}

#[test]
fn a_crash_may_come_between_a_write_and_its_flush() {
    let mut kept = 0;
    for seed in 0..30 {
        for kind in [CrashKind::Kill, CrashKind::PowerCut] {
            let mut fixture = fixture(seed);
            let queue = fixture.queue();
            let _both = fixture.start_write_flush(&*queue, 0, 2);
            fixture.until_written();
            assert_eq!((fixture.peek(0), queue.outstanding()), (2, 1));
            fixture.crash(kind);
            match kind {
                CrashKind::Kill => assert_eq!(fixture.peek(0), 2, "written is written"),
                CrashKind::PowerCut => kept += usize::from(fixture.peek(0) == 2),
            }
        }
    }
    assert!((3..27).contains(&kept), "kept {kept} of 30");
}

#[test]
fn a_write_with_a_flush_meets_the_faults_of_a_write() {
    const ALL: u32 = 1_000_000;
    let set = |rates| {
        let mut fixture = fixture(3);
        let queue = fixture.queue();
        fixture.disk.set_rates(rates);
        let both = fixture.start_write_flush(&*queue, 8192, 2);
        let done = fixture.world.block_on(0, both).expect("an answer");
        assert!(done.buf.is_some() && fixture.phases().is_empty());
        (fixture, done.result)
    };
    let (fixture, result) = set(FaultRates { write_error: ALL, ..Default::default() });
    assert!(result.is_err());
    assert_eq!(fixture.disk.counts().get(FaultKind::WriteError), 1);
    let (fixture, result) = set(FaultRates { lost: ALL, ..Default::default() });
    assert!(result.is_ok());
    assert_eq!((fixture.peek(8192), fixture.disk.counts().get(FaultKind::Lost)), (0, 1));
    let (_, result) = set(FaultRates { dead: ALL, ..Default::default() });
    assert!(matches!(result, Err(IoError::Offline)));
}

#[test]
fn an_observer_is_told_of_a_write_with_a_flush_as_of_both() {
    let mut fixture = fixture(3);
    let queue = fixture.queue();
    let told = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&told);
    fixture.disk.observe(move |event| {
        seen.lock().unwrap().push(match event {
            DiskEvent::Submitted { op, offset, data } => (format!("{op:?}"), offset, data.len()),
            DiskEvent::Flushed { number } => ("flushed".into(), number, 0),
            _ => ("harm".into(), 0, 0),
        });
    });
    let both = fixture.start_write_flush(&*queue, 8192, 2);
    fixture.world.block_on(0, both).expect("an answer").result.unwrap();
    let told = told.lock().unwrap();
    let number = told[1].1;
    let expected = [("Write", 8192, 4096), ("Flush", number, 0), ("flushed", number, 0)]
        .map(|(what, at, len)| (what.to_owned(), at, len));
    assert_eq!(*told, expected);
}
