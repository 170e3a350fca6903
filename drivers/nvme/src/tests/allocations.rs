//! A command costs no allocation, whatever its size and however it ends.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use memkv_block::{Completion, Done, Io, IoBuf};
use memkv_dma::DmaBuf;

use super::bench::{Bench, LIMIT, MIB, config};
use crate::Status;
use crate::model::Fault;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// The system's allocator, which counts for each thread.
struct Counting;

// SAFETY: all is handed to the system's allocator as it came; the count touches no memory but its own,
// which is there before and after a thread without being allocated.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: as the caller promises.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// How often memory was asked for meanwhile.
fn allocations<T>(what: impl FnOnce() -> T) -> (T, u64) {
    let before = ALLOCATIONS.with(Cell::get);
    let value = what();
    (value, ALLOCATIONS.with(Cell::get) - before)
}

/// Does a command; what the model allocates does not count.
fn end(bench: &mut Bench, completion: Completion, count: &mut u64) -> Done {
    let mut completion = pin!(completion);
    let mut context = Context::from_waker(Waker::noop());
    for _ in 0..10_000 {
        bench.model.lock().step();
        let (polled, more) = allocations(|| {
            bench.reactor.step();
            completion.as_mut().poll(&mut context)
        });
        *count += more;
        if let Poll::Ready(done) = polled {
            return done;
        }
    }
    panic!("never done");
}

/// Allocations of fifty times `crowd` commands, after the first have made room for themselves.
fn allocations_of(
    bench: &mut Bench,
    crowd: usize,
    buffer: usize,
    io: impl Fn(u64, Option<DmaBuf>) -> Io,
    fault: Option<Fault>,
) -> u64 {
    let mut count = 0;
    let mut buffers: Vec<DmaBuf> =
        if buffer > 0 { (0..crowd).map(|_| bench.buffer(buffer)).collect() } else { Vec::new() };
    for round in 0..60 {
        if round == 10 {
            count = 0;
        }
        if let Some(fault) = fault {
            bench.model.lock().fault(fault);
        }
        let mut ends = Vec::with_capacity(crowd);
        for n in 0..crowd {
            let io = io(n as u64, buffers.pop());
            let (end, more) = allocations(|| bench.submit(io));
            count += more;
            ends.push(end);
        }
        for one in ends {
            let done = end(bench, one, &mut count);
            assert!(done.result.is_ok() || fault.is_some(), "{:?}", done.result);
            buffers.extend(done.buf.and_then(IoBuf::into_exclusive));
        }
    }
    count
}

#[test]
fn no_command_allocates() {
    let mut bench = Bench::new(config());
    let none = |bench: &mut Bench, what, crowd, len, io: fn(u64, Option<DmaBuf>) -> Io, fault| {
        assert_eq!(allocations_of(bench, crowd, len, io, fault), 0, "{what}");
    };
    let buffer = |buffer: Option<DmaBuf>| buffer.expect("a buffer a command");
    for len in [4 << 10, 64 << 10, 1 << 20, 4 << 20] {
        let read = allocations_of(&mut bench, 1, len, |_, b| Io::read(0, len, buffer(b)), None);
        let write = allocations_of(&mut bench, 1, len, |_, b| Io::write(0, len, buffer(b)), None);
        let flush =
            allocations_of(&mut bench, 1, len, |_, b| Io::write_flush(0, len, buffer(b)), None);
        assert_eq!((read, write, flush), (0, 0, 0), "{len} bytes");
    }
    let read = |n: u64, b: Option<DmaBuf>| Io::read(n * 4096, 4096, b.unwrap());
    none(&mut bench, "32 at a time", 32, 4096, read, None);
    none(&mut bench, "more than the ring has", 300, 4096, read, None);
    none(
        &mut bench,
        "large ones behind the window",
        3,
        4 << 20,
        |_, b| Io::read(0, 4 << 20, b.unwrap()),
        None,
    );
    none(&mut bench, "flush", 1, 0, |_, _| Io::flush(), None);
    none(&mut bench, "deallocate", 1, 0, |_, _| Io::deallocate(MIB, MIB), None);
    let bad = Status::UNRECOVERED_READ_ERROR;
    none(&mut bench, "an error", 1, 4096, read, Some(Fault::Status(bad.do_not_retry())));
    none(&mut bench, "an error that passes", 1, 4096, read, Some(Fault::Status(bad)));
    none(
        &mut bench,
        "refused",
        1,
        4096,
        |_, b| Io::read(1, 4096, b.unwrap()),
        Some(Fault::Nothing),
    );
}

/// Allocations of the driver while `crowd` reads are done of which the first meets `fault`, once all has
/// happened before.
fn allocations_of_trouble(bench: &mut Bench, fault: Fault, crowd: usize) -> u64 {
    let mut count = 0;
    let mut buffers: Vec<DmaBuf> = (0..crowd).map(|_| bench.buffer(4096)).collect();
    let mut context = Context::from_waker(Waker::noop());
    for _ in 0..4 {
        // Far apart, so that the drive is not taken for a broken one.
        bench.clock.advance(Duration::from_secs(300));
        count = 0;
        bench.model.lock().fault(fault);
        let mut ends = Vec::with_capacity(crowd);
        for n in 0..crowd {
            let io = Io::read(n as u64 * 4096, 4096, buffers.pop().unwrap());
            let (end, more) = allocations(|| bench.submit(io));
            count += more;
            ends.push(Some(end));
        }
        for _ in 0..200 {
            bench.clock.advance(LIMIT / 16);
            for _ in 0..20 {
                bench.model.lock().step();
                count += allocations(|| bench.reactor.step()).1;
            }
            for slot in &mut ends {
                let Some(end) = slot else { continue };
                let (polled, more) = allocations(|| Pin::new(end).poll(&mut context));
                count += more;
                if let Poll::Ready(done) = polled {
                    *slot = None;
                    done.result.unwrap();
                    buffers.extend(done.buf.and_then(IoBuf::into_exclusive));
                }
            }
        }
        assert!(ends.iter().all(Option::is_none), "all are done after {fault:?}");
    }
    count
}

/// Neither an abort nor a reset costs any, however many commands have to be given again.
#[test]
fn trouble_allocates_nothing() {
    let mut bench = Bench::new(config());
    assert_eq!(allocations_of_trouble(&mut bench, Fault::LoseAnswer, 1), 0);
    assert_eq!(allocations_of_trouble(&mut bench, Fault::LoseAnswer, 32), 0);
    assert_eq!((bench.device.troubles().aborts, bench.device.troubles().resets), (8, 0));
    for fault in [Fault::Swallow, Fault::Spurious(0xffff), Fault::Fatal] {
        assert_eq!(allocations_of_trouble(&mut bench, fault, 1), 0, "{fault:?}");
        assert_eq!(allocations_of_trouble(&mut bench, fault, 100), 0, "{fault:?}");
    }
    assert_eq!(bench.device.troubles().resets, 24);
    // The end of a drive takes its commands with it.
    let mut buffers: Vec<DmaBuf> = (0..100).map(|_| bench.buffer(4096)).collect();
    let mut ends: Vec<Completion> = Vec::new();
    for n in 0..100 {
        ends.push(bench.submit(Io::read(n * 4096, 4096, buffers.pop().unwrap())));
    }
    bench.model.lock().remove();
    let mut count = 0;
    for _ in 0..4 {
        count += allocations(|| bench.reactor.step()).1;
        count += allocations(|| bench.device.cut_off()).1;
        bench.clock.advance(LIMIT / 16);
    }
    let mut context = Context::from_waker(Waker::noop());
    for mut end in ends {
        let Poll::Ready(done) = Pin::new(&mut end).poll(&mut context) else { panic!("not over") };
        assert!(done.result.is_err() && done.buf.is_some());
    }
    assert!(count < 10, "{count} for the end of a drive with 100 commands");
}

#[test]
fn the_count_counts() {
    assert_eq!(allocations(|| std::hint::black_box(Box::new(7u64))).1, 1);
    assert_eq!(allocations(|| std::hint::black_box(7u64)).1, 0);
}
