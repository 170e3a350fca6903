//! How drives of all kinds are brought up, used and left.

use std::io::ErrorKind;
use std::sync::Arc;

use memkv_block::{BlockDevice, Io, IoError, Op};
use memkv_dma::{Class, Pool};

use super::bench::{Bench, CAPACITY, MIB, config, options, pool, try_open};
use crate::model::{Fault, ModelClock, ModelConfig, ModelLink};
use crate::{NvmeError, Options, Status, open};

#[test]
fn a_drive_says_what_it_is() {
    let bench = Bench::new(ModelConfig { namespaces: vec![2, 5], ..config() });
    let info = bench.device.info();
    assert_eq!((&*info.model, &*info.serial, &*info.firmware), ("memkv model", "MODEL0001", "1.0"));
    assert_eq!((info.version, info.namespace, &*info.namespaces), ((1, 4), 2, &[2, 5][..]));
    assert_eq!((info.queues, info.transfer, info.caches), (2, 512 << 10, true));
    let device = &bench.device;
    assert_eq!((device.name(), device.kind().name()), ("model", "nvme"));
    assert!(device.reason().contains("memkv model"), "{}", device.reason());
    let geometry = device.geometry();
    assert_eq!((geometry.capacity, geometry.sector), (CAPACITY, 4096));
    assert_eq!(geometry.max_transfer, 4 << 20, "it is cut up here");
    assert!(device.view(0, 4096).is_none() && device.failure().is_none());
}

#[test]
fn a_namespace_can_be_chosen_or_is_missed() {
    let opened = |namespaces: Vec<u32>, namespace| {
        let clock = ModelClock::default();
        let (link, _) = ModelLink::by_hand(ModelConfig { namespaces, ..config() }, clock.clone());
        let options = Options { namespace, ..options() };
        open(link, &pool(), Arc::new(clock), options).map(|device| device.info().namespace)
    };
    assert_eq!(opened(vec![2, 5], Some(5)).unwrap(), 5);
    assert!(matches!(opened(vec![2, 5], Some(1)), Err(NvmeError::NoNamespace { found: 2 })));
    assert!(matches!(opened(vec![], None), Err(NvmeError::NoNamespace { found: 0 })));
}

#[test]
fn a_slow_drive_is_waited_for_as_long_as_it_says() {
    // CAP.TO in units of 500 ms, and a millisecond a look.
    let with = |timeout, slowness| try_open(ModelConfig { timeout, slowness, ..config() });
    assert!(with(1, 450).is_ok());
    let failure = with(1, 600).map(|_| ()).unwrap_err();
    assert!(matches!(failure, NvmeError::Deadline { state: "enabled", .. }), "{failure}");
    assert!(with(2, 600).is_ok());
    assert!(with(0, 450).is_ok(), "no time at all is not meant");
}

#[test]
fn drives_that_cannot_be_driven_are_refused_with_a_reason() {
    let refusal = |config| try_open(config).map(|_| ()).unwrap_err();
    let large = ModelConfig { block_bits: 14, transfer_bits: 1, ..config() };
    assert!(matches!(refusal(large), NvmeError::Transfer { block: 16384, max: 8192 }));
    let clock = ModelClock::default();
    let (link, model) = ModelLink::by_hand(config(), clock.clone());
    model.lock().remove();
    let gone = open(link, &pool(), Arc::new(clock), options()).map(|_| ());
    assert!(matches!(gone, Err(NvmeError::Removed)));
}

/// As after a crash: the controller runs, with queues of somebody who is no more.
#[test]
fn a_drive_that_was_left_running_is_taken_over() {
    let clock = ModelClock::default();
    let (link, model) = ModelLink::by_hand(config(), clock.clone());
    let first = open(link.clone(), &pool(), Arc::new(clock.clone()), options()).unwrap();
    std::mem::forget(first);
    let second = open(link, &pool(), Arc::new(clock), options()).unwrap();
    assert_eq!((second.info().namespace, model.lock().stats().lives), (1, 2));
    drop(second);
    let stats = model.lock().stats();
    assert_eq!((stats.shutdowns, stats.offences), (1, 0));
}

#[test]
fn a_drive_is_left_in_good_order() {
    let mut bench = Bench::new(config());
    let write = bench.write(0, 8192, 1);
    bench.end(write).result.unwrap();
    let model = bench.model.clone();
    assert_eq!(model.lock().stats().queues, 1);
    drop(bench);
    let model = model.lock();
    assert_eq!((model.stats().shutdowns, model.stats().queues), (1, 0));
    assert!(model.durable()[..8192] == super::bench::pattern(8192, 1), "its cache is emptied");
}

#[test]
fn a_drive_that_hangs_when_it_is_left_is_cut_off() {
    let bench = Bench::new(ModelConfig { timeout: 1, ..config() });
    bench.model.lock().remove();
    drop(bench);
    // Memory that the driver shared with it went with its last handle; nothing is left to be seen.
}

#[test]
fn there_are_as_many_queues_as_were_asked_for_and_granted() {
    let mut bench = Bench::new(ModelConfig { queues: 1, ..config() });
    let again = bench.device.open_queue(&bench.reactor.local()).map(|_| ());
    match again {
        Err(IoError::Os(error)) => assert_eq!(error.kind(), ErrorKind::QuotaExceeded),
        other => panic!("{other:?}"),
    }
    // One that was closed is free again.
    for round in 0..5 {
        bench.queue = None;
        bench.step_until("the queue is gone", |bench| bench.model.lock().stats().queues == 0);
        (0..20).for_each(|_| bench.step());
        bench.queue = Some(bench.device.open_queue(&bench.reactor.local()).unwrap());
        let write = bench.write(0, 8192, round);
        bench.end(write).result.unwrap();
        bench.expect(0, 8192, round);
    }
}

#[test]
fn blocks_of_any_size_are_driven() {
    for (block_bits, page_bits, transfer_bits) in
        [(9, 12, 5), (10, 12, 0), (11, 13, 1), (12, 16, 1), (13, 12, 3), (16, 12, 4), (20, 12, 9)]
    {
        let config = ModelConfig { block_bits, page_bits, transfer_bits, ..config() };
        let mut bench = Bench::new(config);
        let block = 1usize << block_bits;
        assert_eq!(bench.device.geometry().sector as usize, block);
        for (seed, blocks) in [(1, 1), (2, 3), (3, (1 << 20) / block)] {
            let (offset, len) = (seed * 2 * MIB, block * blocks);
            let write = bench.write(offset, len, seed);
            bench.end(write).result.unwrap();
            bench.expect(offset, len, seed);
        }
        // From the middle of a page, as far as addresses may lie there.
        let io = Io::write(0, block, bench.filled(block + 512, 9)).at(512);
        bench.run(io);
        let want = super::bench::pattern(block + 512, 9);
        assert!(bench.model.lock().medium()[..block] == want[512..]);
        if block > 512 {
            let half = bench.submit(Io::read(512, block, bench.buffer(block)));
            assert!(matches!(bench.end(half).result, Err(IoError::Misaligned { .. })));
        }
    }
}

#[test]
fn ranges_are_given_back_in_the_way_and_in_the_lengths_that_the_drive_knows() {
    let all = CAPACITY / 4096;
    for (deallocates, zeroes, range_blocks, commands) in
        [(true, true, 0, 1), (true, false, 1000, all.div_ceil(1000)), (false, true, 0, 1)]
    {
        let config = ModelConfig { deallocates, zeroes, range_blocks, ..config() };
        let mut bench = Bench::new(config);
        let write = bench.write(MIB, 8192, 1);
        bench.end(write).result.unwrap();
        bench.run(Io::deallocate(0, CAPACITY));
        let stats = bench.model.lock().stats();
        assert_eq!((stats.deallocated_blocks, stats.commands), (all, 1 + commands));
        assert_eq!(bench.device.stats().deallocations, 1);
    }
    let mut bench = Bench::new(ModelConfig { deallocates: false, zeroes: false, ..config() });
    let no = bench.submit(Io::deallocate(0, 4096));
    let unsupported = bench.end(no).result;
    assert!(matches!(unsupported, Err(IoError::Unsupported { op: Op::Deallocate })));
    // A drive that does not do what it said that it can.
    let mut bench = Bench::new(config());
    bench.model.lock().fault(Fault::Status(Status::INVALID_OPCODE.do_not_retry()));
    let no = bench.submit(Io::deallocate(0, 4096));
    let unsupported = bench.end(no).result;
    assert!(matches!(unsupported, Err(IoError::Unsupported { op: Op::Deallocate })));
}

#[test]
fn memory_that_the_drive_does_not_see_is_refused() {
    let mut bench = Bench::new(config());
    let other: Pool = pool();
    let strange = other.allocate(Class::Receive, 4096).unwrap();
    let read = bench.submit(Io::read(0, 4096, strange));
    let done = bench.end(read);
    assert!(matches!(done.result, Err(IoError::WrongBuffer { .. })) && done.buf.is_some());
}
