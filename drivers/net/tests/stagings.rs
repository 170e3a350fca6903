//! Memory that clients bring to a server's door: what is taken, who gets it, and what is read there.

#![cfg(target_os = "linux")]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::time::{Duration, Instant};

use memkv_dma::{Arena, Hugepages};
use memkv_net::NetError;
use memkv_net::shm::{Door, STAGING_MAX, Staging, Stagings, Windows};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, SealFlag, fallocate, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

const KIB: usize = 1 << 10;
const TICKET: [u8; 32] = [7; 32];

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(5)
}

fn door(number: u8) -> (Arena, Door) {
    let arena = Arena::shared(1 << 20, Hugepages::Never).unwrap();
    let mut name = [number; 16];
    name[..4].copy_from_slice(&std::process::id().to_le_bytes());
    let door = Door::open(name, TICKET, &[arena.window().unwrap()]).unwrap();
    (arena, door)
}

#[test]
fn what_the_client_writes_is_read_also_when_it_is_gone() {
    let (_arena, door) = door(0xb0);
    let bring = |number| Staging::open(&door.name(), &TICKET, number, 64 * KIB, soon());
    let (one, other) = (bring(7).unwrap(), bring(u64::MAX).unwrap());
    assert!(matches!(bring(7), Err(NetError::Os(_))), "one waits under this number");
    assert_eq!((one.number(), other.number()), (7, u64::MAX));
    let staged = door.stagings().claim(one.number()).unwrap();
    assert!(door.stagings().claim(one.number()).is_none(), "it is its session's alone");
    let mut bytes = [9; 7];
    staged.read(64 * KIB as u64 - 7, &mut bytes);
    assert_eq!(bytes, [0; 7]);
    one.write(64 * KIB - 5, b"value");
    other.write(0, b"something else");
    staged.read(64 * KIB as u64 - 7, &mut bytes);
    assert_eq!(&bytes, b"\0\0value");
    drop(one);
    staged.read(64 * KIB as u64 - 5, &mut bytes[..5]);
    assert_eq!(&bytes[..5], b"value");
    // Who brought memory was given nothing by that.
    assert!(door.shut_unless_used());
    let late = Staging::open(&door.name(), &TICKET, 1, KIB, soon());
    assert!(matches!(late, Err(NetError::Os(_))), "{late:?}");
}

#[test]
fn nothing_beyond_the_memory_is_read_or_written() {
    let stagings = Stagings::default();
    let staging = Staging::within(&stagings, 3, 8 * KIB).unwrap();
    let staged = stagings.claim(staging.number()).unwrap();
    let end = 8 * KIB as u64;
    assert!(staged.holds(0, end) && staged.holds(end, 0));
    for (offset, length) in [(0, end + 1), (end, 1), (u64::MAX, 1), (1, u64::MAX)] {
        assert!(!staged.holds(offset, length), "{length} at {offset}");
    }
    for (offset, length) in [(0, end + 1), (end, 1), (u64::MAX, 1)] {
        let mut into = vec![0; length as usize];
        let read = std::panic::AssertUnwindSafe(|| staged.read(offset, &mut into));
        assert!(std::panic::catch_unwind(read).is_err());
        let write = std::panic::AssertUnwindSafe(|| staging.write(offset as usize, &into));
        assert!(std::panic::catch_unwind(write).is_err());
    }
}

#[test]
fn who_has_no_ticket_brings_nothing() {
    let (_arena, door) = door(0xb1);
    let refused = Staging::open(&door.name(), &[8; 32], 1, KIB, soon());
    assert!(matches!(refused, Err(NetError::Os(_))), "{refused:?}");
    let late = Staging::open(&door.name(), &TICKET, 1, KIB, Instant::now());
    assert!(matches!(late, Err(NetError::TimedOut)), "{late:?}");
    assert!(Staging::open(&door.name(), &TICKET, 1, KIB, soon()).is_ok());
    assert_eq!(Windows::open(&door.name(), &TICKET, soon()).unwrap().count(), 1);
}

fn memory(length: usize, there: usize, seals: SealFlag) -> OwnedFd {
    let file = memfd_create("test", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING).unwrap();
    let file = File::from(file);
    file.set_len(length as u64).unwrap();
    file.write_at(&vec![1; there], 0).unwrap();
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).unwrap();
    file.into()
}

#[test]
fn memory_that_could_go_under_us_or_is_too_long_is_not_taken() {
    let stagings = Stagings::default();
    let all = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_FUTURE_WRITE;
    assert!(stagings.take(memory(4 * KIB, 4 * KIB, all), 1).is_ok());
    assert!(stagings.take(memory(STAGING_MAX, STAGING_MAX, all), 2).is_ok());
    for file in [
        memory(4 * KIB, 4 * KIB, SealFlag::F_SEAL_SHRINK),
        memory(4 * KIB, 4 * KIB, SealFlag::F_SEAL_FUTURE_WRITE),
        memory(0, 0, all),
        memory(8 * KIB, 4 * KIB, all),
        memory(STAGING_MAX + 1, STAGING_MAX + 1, all),
        File::open("/proc/self/exe").unwrap().into(),
        File::open("/dev/zero").unwrap().into(),
    ] {
        let taken = stagings.take(file, 3);
        assert!(taken.is_err(), "{taken:?}");
    }
}

/// What was brought once stays: nobody makes holes under a server that reads.
#[test]
fn memory_that_was_sealed_has_no_holes() {
    let all = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_FUTURE_WRITE;
    let file = File::from(memory(8 * KIB, 8 * KIB, all));
    let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    assert_eq!(fallocate(&file, punch, 0, 4096), Err(Errno::EPERM));
}

/// A door of before hands out windows to whoever comes.
#[test]
fn an_answer_of_another_kind_is_none() {
    let mut name = [0xb2; 16];
    name[..4].copy_from_slice(&std::process::id().to_le_bytes());
    let digits: String = name.iter().map(|byte| format!("{byte:02x}")).collect();
    let address = SocketAddr::from_abstract_name(format!("memkv-{digits}")).unwrap();
    let listener = UnixListener::bind_addr(&address).unwrap();
    for answer in [&[0; 16][..], &[], &[0]] {
        let brought = std::thread::scope(|scope| {
            let bring = scope.spawn(|| Staging::open(&name, &TICKET, 5, KIB, soon()));
            let (mut visitor, _) = listener.accept().unwrap();
            let mut shown = [0; 40];
            visitor.read_exact(&mut shown).unwrap();
            assert_eq!((&shown[..32], &shown[32..]), (&TICKET[..], &5_u64.to_le_bytes()[..]));
            visitor.write_all(answer).unwrap();
            drop(visitor);
            bring.join().unwrap()
        });
        assert!(matches!(brought, Err(NetError::Os(_))), "{brought:?}");
    }
}

#[test]
fn only_so_many_wait_for_their_sessions() {
    let stagings = Stagings::default();
    let bring = |number| Staging::within(&stagings, number, KIB);
    let waiting: Vec<_> = (0..10_000).map_while(|number| bring(number).ok()).collect();
    assert_eq!(waiting.len(), 256);
    assert!(stagings.claim(99).is_some(), "those that were taken are kept");
    assert!(bring(99).is_ok() && bring(500).is_err());
}
