//! Windows: who is given them, what is read through them, and what is not believed.

#![cfg(target_os = "linux")]

use std::io::{IoSlice, Read, Write};
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::time::{Duration, Instant};

use memkv_dma::{Arena, Hugepages};
use memkv_net::NetError;
use memkv_net::shm::{Door, Windows};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, bind, sendmsg,
    socket,
};

const MIB: usize = 1 << 20;
const TICKET: [u8; 32] = [7; 32];

fn name() -> [u8; 16] {
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let mut name = [0; 16];
    name[..4].copy_from_slice(&std::process::id().to_le_bytes());
    let next = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    name[4..8].copy_from_slice(&next.to_le_bytes());
    name
}

fn address(name: [u8; 16]) -> SocketAddr {
    let digits: String = name.iter().map(|byte| format!("{byte:02x}")).collect();
    SocketAddr::from_abstract_name(format!("memkv-{digits}")).unwrap()
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(5)
}

fn arena(fill: u8) -> Arena {
    let arena = Arena::shared(4 * MIB as u64, Hugepages::Never).unwrap();
    arena.lend_mut(0, 4 * MIB).as_mut_slice().fill(fill);
    arena
}

fn open(arenas: &[Arena]) -> Door {
    let windows: Vec<_> = arenas.iter().map(|arena| arena.window().unwrap()).collect();
    Door::open(name(), TICKET, &windows).unwrap()
}

#[test]
fn what_the_server_writes_is_read() {
    let arenas = [arena(1), arena(2)];
    let door = open(&arenas);
    let windows = Windows::open(&door.name(), &door.ticket(), soon()).unwrap();
    assert_eq!((windows.count(), door.windows()), (2, 2));
    arenas[1].lend_mut(MIB as u64, 5).as_mut_slice().copy_from_slice(b"later");
    let mut bytes = [0; 7];
    windows.read(1, MIB as u64 - 1, &mut bytes);
    assert_eq!(&bytes, b"\x02later\x02");
    windows.read(0, 4 * MIB as u64 - 7, &mut bytes);
    assert_eq!(bytes, [1; 7]);
    // It stays readable when the server is gone.
    drop((door, arenas));
    windows.read(1, MIB as u64 - 1, &mut bytes);
    assert_eq!(&bytes, b"\x02later\x02");
}

#[test]
fn nothing_beyond_a_window_is_read() {
    let arenas = [arena(1)];
    let door = open(&arenas);
    let windows = Windows::open(&door.name(), &TICKET, soon()).unwrap();
    let end = 4 * MIB as u64;
    assert!(windows.holds(0, 0, end) && windows.holds(0, end, 0));
    for (window, offset, length) in [(0, 0, end + 1), (0, end, 1), (0, u64::MAX, 1), (1, 0, 1)] {
        assert!(!windows.holds(window, offset, length), "{length} at {offset} of {window}");
        let mut into = vec![0; length as usize];
        let read = std::panic::AssertUnwindSafe(|| windows.read(window, offset, &mut into));
        assert!(std::panic::catch_unwind(read).is_err());
    }
}

#[test]
fn who_has_no_ticket_is_given_nothing() {
    let arenas = [arena(1)];
    let door = open(&arenas);
    let refused = Windows::open(&door.name(), &[8; 32], soon());
    assert!(matches!(refused, Err(NetError::Os(_))), "{refused:?}");
    assert!(matches!(Windows::open(&name(), &TICKET, soon()), Err(NetError::Os(_))));
    let late = Windows::open(&door.name(), &TICKET, Instant::now());
    assert!(matches!(late, Err(NetError::TimedOut)), "{late:?}");
    // One that says nothing keeps others waiting, and not for good.
    let mut silent = UnixStream::connect_addr(&address(door.name())).unwrap();
    assert_eq!(Windows::open(&door.name(), &TICKET, soon()).unwrap().count(), 1);
    assert_eq!(silent.read(&mut [0; 9]).unwrap(), 0, "it was sent away");
}

#[test]
fn no_door_is_waited_for_longer_than_was_said() {
    let name = name();
    let listen = |backlog| {
        let flags = SockFlag::SOCK_CLOEXEC;
        let listener = socket(AddressFamily::Unix, SockType::Stream, flags, None).unwrap();
        let digits: String = name.iter().map(|byte| format!("{byte:02x}")).collect();
        let door = UnixAddr::new_abstract(format!("memkv-{digits}").as_bytes()).unwrap();
        bind(listener.as_raw_fd(), &door).unwrap();
        nix::sys::socket::listen(&listener, Backlog::new(backlog).unwrap()).unwrap();
        listener
    };
    let open = || Windows::open(&name, &TICKET, Instant::now() + Duration::from_millis(50));
    // Nobody is let in, and then there is no room to wait.
    let listener = listen(1);
    let waiting: Vec<_> = (0..2).map(|_| UnixStream::connect_addr(&address(name))).collect();
    assert!(waiting.iter().all(Result::is_ok));
    assert!(matches!(open(), Err(NetError::Os(_))), "too many wait");
    drop((waiting, listener));
    let _listener = listen(9);
    assert!(matches!(open(), Err(NetError::TimedOut)), "nobody answers");
}

#[test]
fn who_shows_a_ticket_of_before_or_lets_it_drip_is_given_nothing() {
    let arenas = [arena(1)];
    let door = open(&arenas);
    assert!(!door.renew([9; 32]));
    assert!(matches!(Windows::open(&door.name(), &TICKET, soon()), Err(NetError::Os(_))));
    let mut drip = UnixStream::connect_addr(&address(door.name())).unwrap();
    drip.write_all(&[9]).unwrap();
    assert_eq!(drip.read(&mut [0; 9]).unwrap_or(0), 0, "it was sent away");
    assert_eq!(Windows::open(&door.name(), &door.ticket(), soon()).unwrap().count(), 1);
    assert!(door.renew(TICKET), "somebody was let in");
}

#[test]
fn a_door_that_was_used_cannot_be_shut() {
    let arenas = [arena(1)];
    let used = open(&arenas);
    Windows::open(&used.name(), &TICKET, soon()).unwrap();
    assert!(!used.shut_unless_used());
    Windows::open(&used.name(), &TICKET, soon()).unwrap();
    let unused = open(&arenas);
    assert!(unused.shut_unless_used() && unused.shut_unless_used());
    let refused = Windows::open(&unused.name(), &TICKET, soon());
    assert!(matches!(refused, Err(NetError::Os(_))), "{refused:?}");
}

/// A server that hands out memory which it could take away under its reader.
#[test]
fn memory_that_could_become_shorter_is_not_mapped() {
    let name = name();
    let listener = UnixListener::bind_addr(&address(name)).unwrap();
    let file = std::fs::File::from(memfd_create("w", MFdFlags::MFD_ALLOW_SEALING).unwrap());
    file.set_len(MIB as u64).unwrap();
    let rows: [&[u64]; 4] = [&[0, MIB as u64], &[0, 0], &[0, 2 * MIB as u64], &[0]];
    for row in rows {
        let (listener, file) = (listener.try_clone().unwrap(), file.try_clone().unwrap());
        let bytes: Vec<u8> = row.iter().flat_map(|number| number.to_le_bytes()).collect();
        let server = std::thread::spawn(move || {
            let (mut visitor, _) = listener.accept().unwrap();
            visitor.read_exact(&mut [0; 32]).unwrap();
            let files = [file.as_raw_fd()];
            let files = [ControlMessage::ScmRights(&files)];
            let rows = [IoSlice::new(&bytes)];
            sendmsg::<()>(visitor.as_raw_fd(), &rows, &files, MsgFlags::empty(), None).unwrap();
        });
        let refused = Windows::open(&name, &TICKET, soon());
        assert!(matches!(refused, Err(NetError::Os(_))), "{row:?}: {refused:?}");
        server.join().unwrap();
    }
}
