//! A drive that stops answering, behind the watch.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use memkv_block::{BlockDevice, BlockQueue, Completion, Done, Io, IoBuf, IoError, flush};
use memkv_dma::{Class, DmaBuf, Hugepages, Pool, PoolConfig};
use memkv_poller::{Clock, Instant};
use memkv_sim::{CrashKind, DiskOptions, SimClock, SimDisk, World, WorldOptions};

const LIMIT: Duration = Duration::from_secs(10);

struct Rig {
    world: World,
    disk: SimDisk,
    device: Arc<dyn BlockDevice>,
    pool: Pool,
}

fn rig() -> Rig {
    let clock = SimClock::new(1_000_000);
    let disk = SimDisk::new(DiskOptions::new("sim0", 8 << 20, 1), clock.clone());
    let options = WorldOptions { reactors: 2, inbox_capacity: 64, seed: 1 };
    let mut world = World::new(options, clock);
    world.add_source(Rc::new(disk.clone()));
    let device = memkv_block::watch(Arc::new(disk.clone()), LIMIT);
    let config = PoolConfig { size: 8 << 20, chunk: 2 << 20, hugepages: Hugepages::Never };
    Rig { world, disk, device, pool: Pool::new(config).unwrap() }
}

impl Rig {
    fn queue(&self, reactor: usize) -> Rc<dyn BlockQueue> {
        self.device.open_queue(&self.world.local(reactor)).unwrap()
    }

    fn buffer(&self) -> DmaBuf {
        self.pool.allocate(Class::Receive, 4096).unwrap()
    }

    fn read(&mut self, queue: &dyn BlockQueue, sector: u64) -> Completion {
        let completion = queue.submit(Io::read(sector * 4096, 4096, self.buffer()));
        self.world.kick();
        completion
    }

    fn end(&mut self, reactor: usize, completion: Completion) -> Done {
        self.world.block_on(reactor, completion).expect("it ends")
    }

    fn used(&self) -> u64 {
        self.pool.stats().used.iter().sum()
    }

    fn since(&self, begin: Instant) -> Duration {
        self.world.clock().now().saturating_duration_since(begin)
    }
}

fn is_stalled(done: &Done) -> bool {
    matches!(done.result, Err(IoError::Stalled(LIMIT)))
}

#[test]
fn a_drive_that_answers_passes_as_it_is() {
    let mut rig = rig();
    let queue = rig.queue(0);
    for sector in 0..200 {
        let write = queue.submit(Io::write(sector * 4096, 4096, rig.buffer()));
        let done = rig.end(0, write);
        assert!(done.result.is_ok() && done.buf.is_some());
    }
    let other = Rc::clone(&queue);
    rig.world.block_on(0, async move { flush(&*other).await }).unwrap().unwrap();
    assert_eq!((queue.outstanding(), rig.used()), (0, 0));
    // Nobody goes on looking at a queue with nothing in it.
    let begin = rig.world.clock().now();
    while rig.world.step() || rig.world.advance(None) {}
    assert!(rig.since(begin) <= LIMIT, "{:?}", rig.since(begin));
}

#[test]
fn a_stall_ends_every_command_and_keeps_the_memory() {
    let mut rig = rig();
    let (one, two) = (rig.queue(0), rig.queue(1));
    rig.disk.stall();
    let begin = rig.world.clock().now();
    let first = rig.read(&*one, 0);
    let second = one.submit(Io::flush());
    let elsewhere = rig.read(&*two, 1);
    let chunk = rig.used() / 2;
    let done = rig.end(0, first);
    assert!(is_stalled(&done) && done.buf.is_none(), "{done:?}");
    let took = rig.since(begin);
    assert!(took >= LIMIT && took <= LIMIT + LIMIT / 4, "{took:?}");
    assert!(is_stalled(&rig.end(0, second)));
    let done = rig.end(1, elsewhere);
    assert!(is_stalled(&done) && done.buf.is_none());
    assert_eq!(rig.used(), 2 * chunk, "the disk still has the memory of two reads");
    // Nothing reaches the disk any more, and what is asked comes back at once.
    for queue in [&one, &two] {
        let before = queue.outstanding();
        let refused = rig.read(&**queue, 2);
        let begin = rig.world.clock().now();
        let done = rig.end(0, refused);
        assert!(is_stalled(&done));
        assert!(matches!(done.buf, Some(IoBuf::Exclusive(_))));
        assert_eq!((queue.outstanding(), rig.since(begin)), (before, Duration::ZERO));
    }
    drop((one, two));
    rig.disk.power_off();
    rig.world.stop();
    rig.disk.crash(CrashKind::Kill);
    assert_eq!(rig.used(), 0, "the disk lets go in the end");
}

#[test]
fn a_pause_of_the_whole_process_is_no_stall() {
    let mut rig = rig();
    let queue = rig.queue(0);
    let read = rig.read(&*queue, 0);
    // Passes, so that the watch begins; then the world stands still for an hour.
    while rig.world.step() {}
    let clock = rig.world.clock().clone();
    clock.set(clock.now() + Duration::from_secs(3600));
    assert!(rig.end(0, read).result.is_ok());
}
