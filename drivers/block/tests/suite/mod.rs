//! What every driver promises, asked of every driver: the same functions for all of them, in whatever
//! crate a driver stands.

use std::any::Any;
use std::cell::Cell;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use memkv_block::{
    BlockDevice, BlockQueue, Done, Io, IoBuf, IoError, Kind, Op, flush, read, write, write_flush,
};
use memkv_dma::{Class, DmaBuf, Hugepages, Pool, PoolConfig};
use memkv_poller::{Local, Reactor, ReactorConfig, Rng, SystemClock};

pub const MIB: u64 = 1 << 20;
pub const CAPACITY: u64 = 32 * MIB;
pub const SECTOR: usize = 4096;

/// A device with the pool it was opened with, and whatever it lies in or is made by. Its capacity is
/// [`CAPACITY`], and all of it reads as zeroes.
pub struct Rig {
    pub device: Arc<dyn BlockDevice>,
    /// Its sector, of which [`SECTOR`] is a multiple.
    pub sector: u32,
    pub pool: Pool,
    #[allow(dead_code, reason = "some drivers only want it kept")]
    pub below: Box<dyn Any>,
}

/// Makes a device for one test.
pub type Maker = fn() -> Rig;

pub fn pool() -> Pool {
    let config = PoolConfig { size: 32 * MIB, chunk: 2 * MIB, hugepages: Hugepages::Never };
    Pool::new(config).unwrap()
}

pub fn reactor() -> Reactor {
    Reactor::new(ReactorConfig::default(), Rc::new(SystemClock), Rng::seeded(1))
}

/// A queue of the device, and whatever the caller needs beside it.
pub struct Bench {
    pub queue: Rc<dyn BlockQueue>,
    pub pool: Pool,
    pub local: Local,
}

impl Bench {
    pub fn buffer(&self, len: usize) -> DmaBuf {
        self.pool.allocate(Class::Receive, len).unwrap()
    }

    pub fn filled(&self, len: usize, seed: u64) -> DmaBuf {
        let mut buffer = self.buffer(len);
        fill(buffer.as_mut_slice(), seed);
        buffer
    }

    pub async fn expect(&self, offset: u64, len: usize, seed: u64) {
        let (result, buffer) = read(&*self.queue, offset, len, self.buffer(len)).await;
        result.unwrap();
        let mut expected = vec![0; len];
        fill(&mut expected, seed);
        let buffer = buffer.expect("the buffer comes back");
        assert!(buffer.as_slice() == expected, "{len} bytes at {offset} are not those of {seed}");
    }
}

/// Bytes that tell by themselves which write they come from, and where in it they belong.
pub fn fill(bytes: &mut [u8], seed: u64) {
    for (i, word) in bytes.chunks_exact_mut(8).enumerate() {
        word.copy_from_slice(&(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ i as u64).to_le_bytes());
    }
}

/// Runs a test on a reactor of its own, then checks that every buffer came back.
pub fn on_reactor<F: Future<Output = ()> + 'static>(rig: &Rig, test: impl FnOnce(Bench) -> F) {
    let mut reactor = reactor();
    let local = reactor.local();
    let queue = rig.device.open_queue(&local).unwrap();
    let watched = Rc::clone(&queue);
    reactor.block_on(test(Bench { queue, pool: rig.pool.clone(), local }));
    assert_eq!(watched.outstanding(), 0);
    drop((watched, reactor));
    assert_eq!(rig.pool.stats().used, [0; Class::ALL.len()], "every buffer came back");
}

pub fn writes_are_read_back(make: Maker) {
    let rig = make();
    let geometry = rig.device.geometry();
    assert_eq!((geometry.capacity, geometry.sector), (CAPACITY, rig.sector));
    on_reactor(&rig, |bench| async move {
        let queue = &*bench.queue;
        for (offset, len) in [(0, SECTOR), (MIB, 3 * SECTOR), (CAPACITY - 4 * MIB, 4 << 20)] {
            let (result, _) = write(queue, offset, len, bench.filled(len, offset)).await;
            result.unwrap();
            bench.expect(offset, len, offset).await;
        }
        // Shared with another reader, a part of a buffer, in the middle of another.
        let shared = bench.filled(4 * SECTOR, 7).freeze();
        let part = shared.slice(SECTOR..3 * SECTOR);
        write(queue, 2 * MIB, 2 * SECTOR, part).await.0.unwrap();
        let buffer = bench.filled(4 * SECTOR, 8);
        let io = Io::read(2 * MIB, 2 * SECTOR, buffer).at(2 * SECTOR);
        let Done { result, buf } = queue.submit(io).await;
        result.unwrap();
        let (mut expected, got) = (vec![0; 4 * SECTOR], buf.unwrap());
        fill(&mut expected, 8);
        assert!(got.as_slice()[..2 * SECTOR] == expected[..2 * SECTOR], "before the place");
        assert!(got.as_slice()[2 * SECTOR..] == shared.as_slice()[SECTOR..3 * SECTOR]);
        flush(queue).await.unwrap();
    });
}

/// One after the other without a pause, as a lone writer does it, and many at once.
pub fn a_write_with_a_flush_is_both(make: Maker) {
    let rig = make();
    on_reactor(&rig, |bench| async move {
        let queue = &*bench.queue;
        for round in 0..200 {
            let offset = round % 16 * MIB;
            let buffer = bench.filled(2 * SECTOR, round);
            let (result, buffer) = write_flush(queue, offset, 2 * SECTOR, buffer).await;
            result.unwrap();
            assert!(buffer.is_some(), "it comes back");
            bench.expect(offset, 2 * SECTOR, round).await;
        }
        let at = |n: u64| MIB + n * SECTOR as u64;
        let start = |n| queue.submit(Io::write_flush(at(n), SECTOR, bench.filled(SECTOR, n)));
        let all: Vec<_> = (0..40).map(start).collect();
        for one in all {
            one.await.result.unwrap();
        }
        for n in 0..40 {
            bench.expect(at(n), SECTOR, n).await;
        }
    });
    let stats = rig.device.stats();
    assert_eq!((stats.writes, stats.flushes, stats.failed, stats.depth), (240, 240, 0, 0));
    assert_eq!(stats.written_bytes, (200 * 2 + 40) * SECTOR as u64);
}

pub fn a_write_with_a_flush_is_refused_like_any_write(make: Maker) {
    let rig = make();
    let amiss = u64::from(rig.sector / 2);
    on_reactor(&rig, |bench| async move {
        for (offset, len) in [(CAPACITY, SECTOR), (amiss, SECTOR), (0, 100), (0, 0)] {
            let io = Io::write_flush(offset, len, bench.buffer(SECTOR));
            let done = bench.queue.submit(io).await;
            assert!(done.result.is_err() && done.buf.is_some(), "{len} at {offset}");
        }
        let io = Io { buf: None, ..Io::write_flush(0, SECTOR, bench.buffer(SECTOR)) };
        let refused = bench.queue.submit(io).await.result;
        assert!(matches!(refused, Err(IoError::WrongBuffer { op: Op::WriteFlush, .. })));
    });
    assert_eq!(rig.device.stats().flushes, 0);
}

pub fn deallocation_keeps_to_its_range(make: Maker) {
    on_reactor(&make(), |bench| async move {
        let queue = &*bench.queue;
        for seed in 0..3 {
            let buffer = bench.filled(1 << 20, seed);
            write(queue, seed * MIB, 1 << 20, buffer).await.0.unwrap();
        }
        let done = queue.submit(Io::deallocate(MIB, MIB)).await;
        assert!(given_up(done.result));
        assert!(done.buf.is_none());
        bench.expect(0, 1 << 20, 0).await;
        bench.expect(2 * MIB, 1 << 20, 2).await;
        // What is read is not defined, but it is read; and the range can be written again.
        read(queue, MIB, 1 << 20, bench.buffer(1 << 20)).await.0.unwrap();
        write(queue, MIB, 1 << 20, bench.filled(1 << 20, 9)).await.0.unwrap();
        bench.expect(MIB, 1 << 20, 9).await;
        // Longer than any single transfer.
        assert!(given_up(queue.submit(Io::deallocate(0, CAPACITY)).await.result));
    });
}

/// Done, or the file system says that it does not know how: nothing else is an answer.
pub fn given_up(result: Result<(), IoError>) -> bool {
    matches!(result, Ok(()) | Err(IoError::Unsupported { op: Op::Deallocate }))
}

pub fn refusals_return_the_buffer(make: Maker) {
    let rig = make();
    let amiss = rig.sector as usize / 2;
    on_reactor(&rig, |bench| async move {
        let buffer = || bench.buffer(4 * SECTOR);
        type Expected = fn(&IoError) -> bool;
        let cases: Vec<(Io, Expected)> = vec![
            (Io::read(1, SECTOR, buffer()), |e| matches!(e, IoError::Misaligned { .. })),
            (Io::read(0, amiss, buffer()), |e| matches!(e, IoError::Misaligned { .. })),
            (Io::write(0, 0, buffer()), |e| matches!(e, IoError::Misaligned { .. })),
            (Io::write(0, SECTOR, buffer()).at(8), |e| matches!(e, IoError::Misaligned { .. })),
            (Io::write(0, SECTOR, buffer().freeze().slice(4..4 * SECTOR)), |e| {
                matches!(e, IoError::Misaligned { grain: 512, .. })
            }),
            (Io::read(CAPACITY, SECTOR, buffer()), |e| matches!(e, IoError::OutOfRange { .. })),
            (Io::write(CAPACITY - 4096, 2 * SECTOR, buffer()), |e| {
                matches!(e, IoError::OutOfRange { .. })
            }),
            (Io::read(u64::MAX - 4095, SECTOR, buffer()), |e| {
                matches!(e, IoError::OutOfRange { .. })
            }),
            (Io::write(0, 8 << 20, buffer()), |e| matches!(e, IoError::TooLong { .. })),
            (Io::read(0, 5 * SECTOR, buffer()), |e| matches!(e, IoError::WrongBuffer { .. })),
            (Io::read(0, SECTOR, buffer()).at(4 * SECTOR), |e| {
                matches!(e, IoError::WrongBuffer { .. })
            }),
            (Io::read(0, SECTOR, buffer()).at(usize::MAX - 4095), |e| {
                matches!(e, IoError::WrongBuffer { .. })
            }),
        ];
        for (io, expected) in cases {
            let what = format!("{io:?}");
            let done = bench.queue.submit(io).await;
            let error = done.result.expect_err(&what);
            assert!(expected(&error), "{what}: {error}");
            assert!(done.buf.is_some(), "{what}: the buffer is lost");
        }
        let shared = IoBuf::from(buffer().freeze());
        let done =
            bench.queue.submit(Io { buf: Some(shared), ..Io::read(0, 4096, buffer()) }).await;
        assert!(matches!(done.result, Err(IoError::WrongBuffer { .. })));
        for io in [Io::deallocate(1, 4096), Io::deallocate(0, 0), Io::deallocate(CAPACITY, 4096)] {
            assert!(bench.queue.submit(io).await.result.is_err());
        }
    });
}

pub fn dropping_a_completion_cancels_nothing(make: Maker) {
    let rig = make();
    on_reactor(&rig, |bench| async move {
        for i in 0..16 {
            drop(bench.queue.submit(Io::write(i * MIB, 1 << 20, bench.filled(1 << 20, i))));
            while bench.queue.outstanding() > 4 {
                bench.local.yield_now().await;
            }
        }
        while bench.queue.outstanding() > 0 {
            bench.local.yield_now().await;
        }
        for i in 0..16 {
            bench.expect(i * MIB, 1 << 20, i).await;
        }
    });
}

pub fn a_dropped_completion_holds_its_buffer(make: Maker) {
    let rig = make();
    let mut reactor = reactor();
    let queue = rig.device.open_queue(&reactor.local()).unwrap();
    let mut buffer = rig.pool.allocate(Class::Send, 4 << 20).unwrap();
    fill(buffer.as_mut_slice(), 3);
    // Not one pass of the reactor was made: a driver with a ring has not even told the kernel.
    drop(queue.submit(Io::write(0, 4 << 20, buffer)));
    if matches!(rig.device.kind(), Kind::Uring | Kind::Nvme) {
        assert_eq!(queue.outstanding(), 1);
        assert_eq!(rig.pool.stats().used[Class::Send.index()], 4 * MIB);
    }
    while queue.outstanding() > 0 {
        reactor.step();
    }
    drop((queue, reactor));
    // A worker counts a command as done just before it lets go of the buffer.
    while rig.pool.stats().used != [0; Class::ALL.len()] {
        std::thread::yield_now();
    }
    on_reactor(&rig, |bench| async move { bench.expect(0, 4 << 20, 3).await });
}

pub fn more_than_the_depth_may_be_outstanding(make: Maker) {
    on_reactor(&make(), |bench| async move {
        const COUNT: u64 = 1000;
        const LEN: usize = 16 * 1024;
        let at = |i: u64| i * LEN as u64;
        let writes: Vec<_> = (0..COUNT)
            .map(|i| bench.queue.submit(Io::write(at(i), LEN, bench.filled(LEN, i))))
            .collect();
        let mut buffers = Vec::new();
        for completion in writes {
            let done = completion.await;
            done.result.unwrap();
            buffers.push(done.buf.and_then(IoBuf::into_exclusive).unwrap());
        }
        let reads: Vec<_> = (0..COUNT)
            .map(|i| bench.queue.submit(Io::read(at(i), LEN, buffers.pop().unwrap())))
            .collect();
        for (i, completion) in reads.into_iter().enumerate() {
            let done = completion.await;
            done.result.unwrap();
            let mut expected = vec![0; LEN];
            fill(&mut expected, i as u64);
            assert!(done.buf.unwrap().as_slice() == expected, "block {i}");
        }
    });
}

pub fn a_queue_may_go_with_commands_outstanding(make: Maker) {
    let rig = make();
    for pass in [0, 1, 3] {
        let mut reactor = reactor();
        let queue = rig.device.open_queue(&reactor.local()).unwrap();
        for i in 0..8 {
            let mut buffer = rig.pool.allocate(Class::Receive, 1 << 20).unwrap();
            fill(buffer.as_mut_slice(), pass * 8 + i);
            let write = if i % 4 == 3 { Io::write_flush } else { Io::write };
            drop(queue.submit(write(i * MIB, 1 << 20, buffer)));
        }
        for _ in 0..pass {
            reactor.step();
        }
        drop(queue);
        drop(reactor);
        while rig.pool.stats().used != [0; Class::ALL.len()] {
            std::thread::yield_now();
        }
        on_reactor(&rig, move |bench| async move {
            for i in 0..8 {
                bench.expect(i * MIB, 1 << 20, pass * 8 + i).await;
            }
        });
    }
}

/// A seeded history of commands on disjoint ranges, several at a time, against an array of bytes.
pub fn histories_agree_with_an_array(make: Maker) {
    on_reactor(&make(), |bench| async move {
        const GRAIN: u64 = 64 * 1024;
        let mut rng = Rng::seeded(0x5eed);
        // Which write every grain shows: its seed, and its place in that write.
        let mut model: Vec<Option<(u64, usize)>> = vec![None; (CAPACITY / GRAIN) as usize];
        for seed in 1..200 {
            let first = rng.below(model.len() as u64 - 8) as usize;
            let grains = 1 + rng.below(8) as usize;
            let (offset, len) = (first as u64 * GRAIN, grains * GRAIN as usize);
            write(&*bench.queue, offset, len, bench.filled(len, seed)).await.0.unwrap();
            for (i, shown) in model[first..first + grains].iter_mut().enumerate() {
                *shown = Some((seed, i));
            }
            let reads: Vec<_> = (0..4)
                .map(|_| {
                    let grain = rng.below(model.len() as u64);
                    let buffer = bench.buffer(GRAIN as usize);
                    (grain, bench.queue.submit(Io::read(grain * GRAIN, GRAIN as usize, buffer)))
                })
                .collect();
            for (grain, completion) in reads {
                let done = completion.await;
                done.result.unwrap();
                let mut expected = vec![0; GRAIN as usize];
                if let Some((seed, i)) = model[grain as usize] {
                    let mut whole = vec![0; (i + 1) * GRAIN as usize];
                    fill(&mut whole, seed);
                    expected.copy_from_slice(&whole[i * GRAIN as usize..]);
                }
                assert!(done.buf.unwrap().as_slice() == expected, "grain {grain} after {seed}");
            }
        }
    });
}

pub fn every_reactor_has_its_own_queue(make: Maker) {
    let rig = make();
    std::thread::scope(|scope| {
        for thread in 0..3u64 {
            let (device, pool) = (Arc::clone(&rig.device), rig.pool.clone());
            scope.spawn(move || {
                let mut reactor = reactor();
                let local = reactor.local();
                let queue = device.open_queue(&local).unwrap();
                let bench = Bench { queue, pool, local };
                reactor.block_on(async move {
                    for round in 0..50 {
                        let offset = (thread * 8 + round % 8) * MIB;
                        let buffer = bench.filled(256 * 1024, thread * 1000 + round);
                        write(&*bench.queue, offset, 256 * 1024, buffer).await.0.unwrap();
                        bench.expect(offset, 256 * 1024, thread * 1000 + round).await;
                    }
                });
            });
        }
    });
    assert_eq!(rig.pool.stats().used, [0; Class::ALL.len()]);
}

pub fn a_sleeping_reactor_is_woken(make: Maker) {
    let rig = make();
    let mut reactor = reactor();
    let local = reactor.local();
    let stats = reactor.stats();
    let queue = rig.device.open_queue(&local).unwrap();
    let bench = Bench { queue, pool: rig.pool.clone(), local };
    let done = Rc::new(Cell::new(0));
    let counter = Rc::clone(&done);
    // `block_on` sleeps whenever it finds nothing: were a wake-up lost, this would hang.
    reactor.block_on(async move {
        for i in 0..50 {
            let buffer = bench.filled(1 << 20, i);
            write(&*bench.queue, 0, 1 << 20, buffer).await.0.unwrap();
            flush(&*bench.queue).await.unwrap();
            counter.set(counter.get() + 1);
        }
    });
    assert_eq!(done.get(), 50);
    if rig.device.kind() != Kind::Memory {
        assert!(stats.sleeps.load(std::sync::atomic::Ordering::Relaxed) > 0, "it never slept");
    }
}

pub fn a_closed_drive_takes_nothing_more_and_can_be_used_anew(make: Maker) {
    let rig = make();
    let limit = Duration::from_secs(60);
    let device = memkv_block::watch(Arc::clone(&rig.device), limit);
    let mut reactor = reactor();
    let local = reactor.local();
    let (old, pool) = (device.open_queue(&local).unwrap(), rig.pool.clone());
    let bench = Bench { queue: Rc::clone(&old), pool: pool.clone(), local: local.clone() };
    let (result, _) = reactor
        .block_on(async move { write(&*bench.queue, MIB, SECTOR, bench.filled(SECTOR, 1)).await });
    result.unwrap();
    if rig.device.kind() == Kind::Memory {
        assert!(device.close().is_none(), "memory never fails");
        return;
    }
    let left = device.close().expect("a drive that is watched");
    let again = memkv_block::watch(left, limit);
    let new = again.open_queue(&local).unwrap();
    let bench = Bench { queue: new, pool, local };
    reactor.block_on(async move {
        let (result, buffer) = write(&*old, MIB, SECTOR, bench.filled(SECTOR, 2)).await;
        assert!(matches!(result, Err(IoError::Offline)), "{result:?}");
        assert!(buffer.is_some(), "the buffer comes back");
        assert_eq!(old.outstanding(), 0);
        bench.expect(MIB, SECTOR, 1).await;
    });
}

pub fn what_is_asked_is_counted(make: Maker) {
    let rig = make();
    on_reactor(&rig, |bench| async move {
        let queue = &*bench.queue;
        write(queue, 0, SECTOR, bench.filled(SECTOR, 1)).await.0.unwrap();
        write(queue, MIB, 3 * SECTOR, bench.filled(3 * SECTOR, 2)).await.0.unwrap();
        bench.expect(0, SECTOR, 1).await;
        flush(queue).await.unwrap();
        // Refused before the device sees it, or by it: nothing was done.
        write(queue, CAPACITY, SECTOR, bench.buffer(SECTOR)).await.0.unwrap_err();
    });
    let stats = rig.device.stats();
    assert_eq!((stats.reads, stats.writes, stats.flushes), (1, 2, 1));
    assert_eq!((stats.read_bytes, stats.written_bytes), (SECTOR as u64, 4 * SECTOR as u64));
    assert_eq!(stats.depth, 0);
    if rig.device.kind() != Kind::Memory {
        // To drive a controller takes no system call.
        let enters = if rig.device.kind() == Kind::Nvme { 0 } else { 4 };
        assert_eq!((stats.submitted, stats.enters, stats.transfers), (4, enters, 3));
        assert_eq!(stats.depth_high, 1);
        let registered = if matches!(rig.device.kind(), Kind::Uring | Kind::Nvme) { 3 } else { 0 };
        assert_eq!(stats.fixed, registered);
    }
    assert_eq!((stats.dry, stats.starved > Duration::from_secs(1)), (0, false));
}

/// All of the tests, handed on to another macro behind what it is told.
macro_rules! promises {
    ($then:ident! { $($first:tt)* }) => {
        $then! { $($first)* [
            writes_are_read_back,
            a_write_with_a_flush_is_both,
            a_write_with_a_flush_is_refused_like_any_write,
            deallocation_keeps_to_its_range,
            refusals_return_the_buffer,
            dropping_a_completion_cancels_nothing,
            a_dropped_completion_holds_its_buffer,
            more_than_the_depth_may_be_outstanding,
            a_queue_may_go_with_commands_outstanding,
            histories_agree_with_an_array,
            every_reactor_has_its_own_queue,
            a_sleeping_reactor_is_woken,
            what_is_asked_is_counted,
            a_closed_drive_takes_nothing_more_and_can_be_used_anew,
        ] }
    };
}

/// The tests of one driver, whose maker it is told; with more that only it has.
#[allow(unused_macros, reason = "who has no test harness takes `promises` as it is")]
macro_rules! conformance {
    ($driver:ident, $make:expr $(, $more:ident)* $(,)?) => {
        promises! { conformance! { @tests $driver, $make, [$($more),*], } }
    };
    (@tests $driver:ident, $make:expr, [$($more:ident),*], [$($test:ident),* $(,)?]) => {
        mod $driver {
            $(
                #[test]
                fn $test() {
                    super::suite::$test($make);
                }
            )*
            $(
                #[test]
                fn $more() {
                    super::$more($make);
                }
            )*
        }
    };
}
