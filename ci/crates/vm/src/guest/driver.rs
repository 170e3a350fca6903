//! What only this driver has to promise: refusals, errors of a real controller, resets under load, a
//! drive that is pulled.

use std::sync::Arc;
use std::time::{Duration, Instant};

use memkv_block::{BlockDevice, Completion, Io, IoError};
use memkv_dma::{Class, Pool};
use memkv_nvme::{Nvme, NvmeError, Vfio, VfioError};
use memkv_poller::{Clock, SystemClock};

use super::pci::{self, Driver};
use super::rig::{self, Bench, MIB, PATIENT};
use super::syscalls::{self, Calls};
use super::talk;
use crate::plan::{BAD_DEALLOCATE, BAD_READ, BAD_WRITE, Check, SMALL, Word};

macro_rules! check {
    ($name:literal, $run:ident) => {
        Check { name: $name, run: $run }
    };
}

/// Checks that leave the drives as they are.
pub const CHECKS: &[Check] = &[
    check!("a namespace with metadata is refused", a_namespace_with_metadata_is_refused),
    check!("a drive that the kernel drives is refused", a_drive_of_the_kernel_is_refused),
    check!("a drive has one owner at a time", a_drive_has_one_owner),
    check!("blocks of 16384 bytes are read back", blocks_of_16384_bytes),
    check!("short queues wrap thousands of times", short_queues_wrap),
    check!("a drive tells its health", a_drive_tells_its_health),
    check!("errors of the medium cost the command and nothing else", errors_of_the_medium),
    check!("what is deallocated leaves the image", what_is_deallocated_leaves_the_image),
    check!("a function reset under load loses no command", a_reset_under_load),
    check!("commands that are not answered are given again after a reset", lost_answers),
    check!("no command is a system call", no_command_is_a_system_call),
];

/// Checks after which a drive is gone.
pub const LAST_CHECKS: &[Check] =
    &[check!("a drive that is pulled fails and gives back its buffers", a_drive_is_pulled)];

/// The number of the system call `pread64`.
const PREAD: u32 = 17;

/// A status of the drive as errors have it: type in bits 10:8, code in bits 7:0 (NVM Command Set
/// Specification 1.0, section 3.1.2.1).
const UNRECOVERED_READ: u16 = 0x281;
const WRITE_FAULT: u16 = 0x280;

fn a_namespace_with_metadata_is_refused() {
    let pool = rig::pool();
    match rig::try_open("metadata", &pool, PATIENT) {
        Err(NvmeError::Metadata { bytes: 8, .. }) => {}
        other => panic!("{:?}", other.map(|drive| drive.info().clone())),
    }
}

fn a_drive_of_the_kernel_is_refused() {
    let address = rig::address("kernels", Driver::Nvme);
    match Vfio::open(&address, 1).err() {
        Some(VfioError::NotBound { driver: Some(driver), .. }) => assert_eq!(driver, "nvme"),
        other => panic!("{other:?}"),
    }
}

fn a_drive_has_one_owner() {
    let pool = rig::pool();
    let device = rig::open("ours", &pool, PATIENT);
    let second = Vfio::open(device.name(), 1).err();
    assert!(matches!(second, Some(VfioError::InUse { .. })), "{second:?}");
    let mut bench = Bench::new(&*device, &pool);
    bench.write(0, 4096, 1);
    bench.expect(0, 4096, 1);
}

fn blocks_of_16384_bytes() {
    let pool = rig::pool();
    let device = rig::open("blocks16384", &pool, PATIENT);
    assert_eq!((device.geometry().sector, device.geometry().capacity), (16384, SMALL));
    let mut bench = Bench::new(&*device, &pool);
    for (seed, (offset, len)) in
        [(0, 16384), (MIB, 3 << 20), (SMALL - 16384, 16384)].iter().enumerate()
    {
        bench.write(*offset, *len, seed as u64);
    }
    bench.expect(0, 16384, 0);
    bench.expect(MIB, 3 << 20, 1);
    bench.expect(SMALL - 16384, 16384, 2);
    let refused = bench.run(Io::read(4096, 16384, bench.buffer(16384)));
    assert!(matches!(refused.result, Err(IoError::Misaligned { grain: 16384, .. })));
}

fn short_queues_wrap() {
    const COUNT: u64 = 20_000;
    let pool = rig::pool();
    let device = rig::open("blocks512", &pool, PATIENT);
    let mut bench = Bench::new(&*device, &pool);
    // Each block tells where it stands.
    for at in (0..SMALL).step_by(1 << 20) {
        let mut buffer = bench.buffer(1 << 20);
        for (n, block) in buffer.as_mut_slice().chunks_exact_mut(512).enumerate() {
            rig::fill(block, at / 512 + n as u64);
        }
        bench.run(Io::write(at, 1 << 20, buffer)).result.expect("written");
    }
    let mut under_way: Vec<(u64, Completion)> = Vec::new();
    let mut rng = memkv_poller::Rng::seeded(7);
    for _ in 0..COUNT / 32 {
        for _ in 0..32 {
            let block = rng.below(SMALL / 512);
            let io = Io::read(block * 512, 512, bench.buffer(512));
            under_way.push((block, bench.queue.submit(io)));
        }
        for (block, completion) in under_way.drain(..) {
            let done = bench.end(completion);
            done.result.expect("read");
            let mut expected = [0; 512];
            rig::fill(&mut expected, block);
            assert!(done.buf.expect("it comes back").as_slice() == expected, "block {block}");
        }
    }
    assert_eq!(device.troubles(), memkv_nvme::Troubles::default());
}

fn a_drive_tells_its_health() {
    let pool = rig::pool();
    let device = rig::open("ours", &pool, PATIENT);
    let info = device.info();
    assert_eq!((&*info.model, &*info.serial), ("QEMU NVMe Ctrl", "ours"));
    let mut bench = Bench::new(&*device, &pool);
    let before = device.health().expect("told").bytes_written;
    for n in 0..4 {
        bench.write(n * 4 * MIB, 4 << 20, n);
    }
    let health = device.health().expect("told");
    // QEMU's drives have 50 degrees, always, and no spare blocks that could run out.
    assert_eq!((health.temperature, health.critical, health.media_errors), (Some(50), 0, 0));
    let written = health.bytes_written - before;
    assert!((15_000_000..18_000_000).contains(&written), "{written}");
}

fn errors_of_the_medium() {
    let pool = rig::pool();
    let device = rig::open("faulty", &pool, PATIENT);
    let mut bench = Bench::new(&*device, &pool);
    let status = |result: Result<(), IoError>| match result {
        Err(IoError::Status(status)) => status,
        other => panic!("{other:?}"),
    };
    for round in 0..3 {
        let io = Io::read(BAD_READ, 4096, bench.buffer(4096));
        let done = bench.run(io);
        assert_eq!(status(done.result), UNRECOVERED_READ);
        assert!(done.buf.is_some(), "the buffer comes back");
        let io = Io::write(BAD_WRITE, 4096, bench.filled(4096, round));
        let done = bench.run(io);
        assert_eq!(status(done.result), WRITE_FAULT);
        assert!(done.buf.is_some(), "the buffer comes back");
        // In the middle of a long one, beside others that are well.
        let length = 1 << 20;
        let long = bench.queue.submit(Io::read(BAD_READ - MIB / 2, length, bench.buffer(length)));
        let well = bench.queue.submit(Io::write(8 * MIB, length, bench.filled(length, round)));
        assert_eq!(status(bench.end(long).result), UNRECOVERED_READ);
        bench.end(well).result.expect("written");
        bench.expect(8 * MIB, length, round);
    }
    // To forget is a hint: whether the drive answers that it could not is its affair.
    let forgotten = bench.run(Io::deallocate(BAD_DEALLOCATE, MIB)).result;
    assert!(matches!(forgotten, Ok(()) | Err(IoError::Status(_))), "{forgotten:?}");
    bench.write(BAD_DEALLOCATE, 4096, 9);
    bench.expect(BAD_DEALLOCATE, 4096, 9);
    assert_eq!(device.troubles().resets, 0);
}

/// Bytes of the host's disk that a drive takes.
fn allocated(drive: &str) -> u64 {
    talk::ask(&Word::Allocated(drive.to_owned())).parse().expect("a number")
}

fn what_is_deallocated_leaves_the_image() {
    let pool = rig::pool();
    let device = rig::open("ours", &pool, PATIENT);
    let mut bench = Bench::new(&*device, &pool);
    bench.run(Io::deallocate(0, 64 * MIB)).result.expect("forgotten");
    let empty = allocated("ours");
    for n in 0..8 {
        bench.write(n * 4 * MIB, 4 << 20, n);
    }
    bench.run(Io::flush()).result.expect("flushed");
    let full = allocated("ours");
    assert!(full >= empty + 32 * MIB, "{empty} bytes, and {full} with 32 MiB more");
    bench.run(Io::deallocate(4 * MIB, 24 * MIB)).result.expect("forgotten");
    let left = allocated("ours");
    let most = full - 24 * MIB + rig::PIECE_LISTS;
    assert!(left <= most, "{full} bytes, and {left} with 24 MiB less");
    bench.expect(0, 4 << 20, 0);
    bench.expect(28 * MIB, 4 << 20, 7);
}

/// What happens to a drive: before commands are given, while they are under way, and when the driver
/// has reset the controller or all are answered.
struct Mishap {
    before: fn(),
    meanwhile: fn(&str),
    after: fn(),
}

/// Writes many ranges at once, until a mishap made the driver reset the controller, and holds everything
/// to what was written.
fn survive(drive: &'static str, mishap: &Mishap) {
    const COUNT: u64 = 120;
    const LEN: usize = 64 << 10;
    let pool = rig::pool();
    // The driver looks at a controller when its commands are late.
    let device = rig::open(drive, &pool, Duration::from_millis(800));
    let mut bench = Bench::new(&*device, &pool);
    let resets = || device.troubles().resets;
    let (begun, mut round) = (Instant::now(), 0);
    while resets() == 0 {
        (mishap.before)();
        let writes: Vec<Completion> = (0..COUNT)
            .map(|n| {
                let buffer = bench.filled(LEN, round * COUNT + n);
                bench.queue.submit(Io::write(n * LEN as u64, LEN, buffer))
            })
            .collect();
        bench.reactor.step();
        (mishap.meanwhile)(device.name());
        while bench.queue.outstanding() > 0 && resets() == 0 {
            bench.reactor.step();
            assert!(begun.elapsed() < PATIENT, "{:?}", device.troubles());
        }
        (mishap.after)();
        for completion in writes {
            bench.end(completion).result.expect("written");
        }
        for n in 0..COUNT {
            bench.expect(n * LEN as u64, LEN, round * COUNT + n);
        }
        round += 1;
    }
    bench.run(Io::flush()).result.expect("flushed");
    assert!(device.health().is_ok(), "it answers as before");
    talk::say(format!("  {drive}: {round} rounds, {:?}", device.troubles()));
}

fn a_reset_under_load() {
    let reset = |address: &str| pci::reset(address).expect("the function can be reset");
    survive("blocks4096", &Mishap { before: || (), meanwhile: reset, after: || () });
}

/// Lets the slow drive answer so many commands a second; 0: as many as it can.
fn throttle(commands: u32) {
    talk::ask(&Word::Throttle(commands));
}

fn lost_answers() {
    let mishap = Mishap { before: || throttle(1), meanwhile: |_| (), after: || throttle(0) };
    survive("slow", &mishap);
}

/// Crowds of reads, of one and of 32 in turns.
const CROWDS: u64 = 500;

/// The system calls of a reactor that polls while it serves [`CROWDS`].
fn calls_of_reads(device: &dyn BlockDevice, pool: &Pool) -> Calls {
    let mut bench = Bench::new(device, pool);
    let mut buffers: Vec<_> = (0..32).map(|_| bench.buffer(4096)).collect();
    syscalls::count(|| {
        for n in 0..CROWDS {
            let crowd = if n % 2 == 0 { 1 } else { 32 };
            let reads: Vec<Completion> = (0..crowd)
                .map(|i| {
                    let buffer = buffers.pop().expect("as many as there are reads");
                    bench.queue.submit(Io::read(i * 4096, 4096, buffer))
                })
                .collect();
            for read in reads {
                let done = bench.end(read);
                done.result.expect("read");
                let buffer = done.buf.and_then(memkv_block::IoBuf::into_exclusive);
                buffers.push(buffer.expect("it comes back"));
            }
        }
    })
}

fn no_command_is_a_system_call() {
    let pool = rig::pool();
    let ours = rig::open("ours", &pool, PATIENT);
    let kernels = rig::open_uring("kernels", &pool);
    let begun = Instant::now();
    let own = calls_of_reads(&*ours, &pool);
    let took_ms = begun.elapsed().as_millis() as u64;
    let (uring, nothing) = (calls_of_reads(&*kernels, &pool), syscalls::count(|| ()));
    talk::say(format!(
        "  system calls of {} reads in {took_ms} ms: by VFIO {own:?}, by io_uring {uring:?}, of none \
         {nothing:?}",
        CROWDS / 2 * 33,
    ));
    // After a gap, of which emulation makes many, a reactor asks the kernel how long it has waited for its
    // core, once a millisecond at most.
    assert!(own.of(PREAD) <= took_ms + 1, "{own:?} in {took_ms} ms");
    assert_eq!(own.without(PREAD), nothing, "by number");
    assert!(uring.total() >= CROWDS, "the counter counts");
}

/// The same where time passes by the instruction, and gaps are those that the kernel makes.
pub fn a_reactor_asks_the_kernel_for_nothing() {
    let pool = rig::pool();
    let ours = rig::open("ours", &pool, PATIENT);
    // What tells how long a thread has waited is opened once.
    SystemClock.waited();
    let (own, nothing) = (calls_of_reads(&*ours, &pool), syscalls::count(|| ()));
    talk::say(format!("  system calls of {} reads: {own:?}, of none {nothing:?}", CROWDS / 2 * 33));
    assert_eq!(own.without(PREAD), nothing, "by number");
    // The kernel's own threads take the one processor now and then.
    assert!(own.of(PREAD) <= 8, "{own:?}");
}

/// Attends a drive for as long as somebody has it, as a node does: what may take long is not a reactor's.
fn attended(device: &Arc<Nvme>) {
    let device = Arc::downgrade(device);
    std::thread::spawn(move || {
        while device.upgrade().is_some_and(|device| device.attend()) {
            std::thread::park_timeout(Duration::from_millis(10));
        }
    });
}

fn a_drive_is_pulled() {
    let pool = rig::pool();
    let device = rig::open("pulled", &pool, Duration::from_secs(2));
    let address = device.name().to_owned();
    let mut bench = Bench::new(&*device, &pool);
    bench.write(0, 4096, 1);
    let asked = Instant::now();
    talk::ask(&Word::Pull("pulled".to_owned()));
    // The guest's kernel asks for the device.
    attended(&device);
    let failure = loop {
        let io = Io::read(0, 4096, bench.buffer(4096));
        let done = bench.run(io);
        assert!(done.buf.is_some(), "the buffer comes back");
        if let Err(error) = done.result {
            break error;
        }
        assert!(asked.elapsed() < PATIENT, "it is read from as if nothing had happened");
    };
    assert!(matches!(failure, IoError::Offline), "{failure:?}");
    assert_eq!(pool.stats().used, [0; Class::ALL.len()]);
    // While somebody still has a handle of it.
    pci::wait_for("the device goes", || (!pci::is_there(&address)).then_some(()));
    talk::say(format!("  pulled: gone after {:.1} s", asked.elapsed().as_secs_f64()));
}
