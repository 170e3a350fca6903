//! The ring by itself: what the kernel does with it of its own accord.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use super::*;

/// A ring, unless the system refuses one: the tests of the engine say so then.
fn ring() -> Option<Uring> {
    Uring::new(&[]).inspect_err(|error| println!("no io_uring: {error}")).ok()
}

fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let ours = TcpStream::connect(listener.local_addr().expect("address")).expect("connect");
    (ours, listener.accept().expect("accept").0)
}

/// Collects until an event fits, as many looks as it takes.
fn collect_until(ring: &mut Uring, fits: impl Fn(&Event) -> bool) -> Event {
    let began = Instant::now();
    loop {
        let mut found = None;
        ring.collect(&mut |event| found = found.or(Some(event).filter(&fits))).expect("collected");
        if let Some(event) = found {
            return event;
        }
        assert!(began.elapsed() < Duration::from_secs(30), "no such event comes");
        thread::yield_now();
    }
}

#[test]
fn a_poll_that_the_kernel_ends_is_asked_for_anew() {
    let Some(mut ring) = ring() else { return };
    let (ours, mut theirs) = sockets();
    ring.add(ours.as_raw_fd(), 7).expect("added");
    let first = collect_until(&mut ring, |event| event.token == 7);
    assert!(first.writable && !first.readable && !first.ended);
    // Ended behind the ring's back, as the kernel does when it is out of memory or of room.
    let entry = opcode::AsyncCancel::new(7).build().user_data(REMOVE);
    ring.submit(&entry, GETEVENTS);
    theirs.write_all(b"x").expect("write");
    let event = collect_until(&mut ring, |event| event.readable);
    assert_eq!(event, Event { token: 7, readable: true, writable: true, ended: false });
    assert!(ring.lapsed.is_empty());
}

#[test]
fn a_socket_that_was_removed_is_not_asked_for_anew() {
    let Some(mut ring) = ring() else { return };
    let (ours, mut theirs) = sockets();
    let (other, mut far) = sockets();
    ring.add(ours.as_raw_fd(), 1).expect("added");
    ring.add(other.as_raw_fd(), 2).expect("added");
    ring.remove(1);
    theirs.write_all(b"x").expect("write");
    far.write_all(b"x").expect("write");
    let mut heard = Vec::new();
    let began = Instant::now();
    while !heard.iter().any(|event: &Event| event.token == 2 && event.readable) {
        ring.collect(&mut |event| heard.push(event)).expect("collected");
        assert!(began.elapsed() < Duration::from_secs(30), "the other is not heard");
        thread::yield_now();
    }
    assert!(ring.lapsed.is_empty() && ring.sockets.len() == 1);
    assert!(!heard.iter().any(|event| event.token == 1 && event.readable), "{heard:?}");
}

#[test]
fn edges_that_were_set_aside_keep_the_reactor_awake_and_are_told_first() {
    let Some(mut ring) = ring() else { return };
    let (ours, _theirs) = sockets();
    ring.add(ours.as_raw_fd(), 3).expect("added");
    // SAFETY: the call submits nothing and takes no argument in memory.
    unsafe { ring.ring.submitter().enter::<()>(0, 0, GETEVENTS, None) }.expect("worked off");
    ring.set_aside();
    assert!(ring.arm().is_none(), "there is something to collect");
    ring.disarm();
    let event = collect_until(&mut ring, |_| true);
    assert_eq!(event, Event { token: 3, readable: false, writable: true, ended: false });
    assert!(ring.arm().is_some());
}

#[test]
fn an_edge_after_arming_makes_the_descriptor_readable_and_disarming_empties_it() {
    let Some(mut ring) = ring() else { return };
    let (ours, mut theirs) = sockets();
    ring.add(ours.as_raw_fd(), 4).expect("added");
    collect_until(&mut ring, |event| event.writable);
    let readable_within = |descriptor, milliseconds| {
        let mut entry = libc::pollfd { fd: descriptor, events: libc::POLLIN, revents: 0 };
        // SAFETY: one entry is passed, and it outlives the call.
        unsafe { libc::poll(&raw mut entry, 1, milliseconds) == 1 }
    };
    for round in 0..100 {
        let descriptor = ring.arm().expect("nothing is to collect");
        assert!(!readable_within(descriptor, 0), "round {round}");
        theirs.write_all(b"x").expect("write");
        assert!(readable_within(descriptor, 30_000), "round {round}");
        ring.disarm();
        assert!(!readable_within(descriptor, 0), "round {round}");
        assert!(collect_until(&mut ring, |event| event.token == 4).readable);
        let mut byte = [0];
        io::Read::read_exact(&mut &ours, &mut byte).expect("read");
        // While nobody sleeps the counter is left alone.
        theirs.write_all(b"y").expect("write");
        collect_until(&mut ring, |event| event.readable);
        assert!(!readable_within(descriptor, 0), "round {round}");
        io::Read::read_exact(&mut &ours, &mut byte).expect("read");
    }
}

/// Sleeps in the ring: whether the bell ended it, and whether it was over before its time.
fn sleeps(ring: &mut Uring, bell: RawFd, descriptors: &[RawFd], milliseconds: u64) -> (bool, bool) {
    let timeout = Duration::from_millis(milliseconds);
    let began = Instant::now();
    let wait = Wait { bell, descriptors, departed: 0, timeout: Some(timeout) };
    (ring.wait(wait), began.elapsed() < timeout)
}

const LONG: u64 = 30_000;
const SHORT: u64 = 20;

#[test]
fn a_sleep_in_the_ring_ends_with_an_edge_or_with_its_time() {
    let Some(mut ring) = ring() else { return };
    let (bell, _far) = UnixStream::pair().expect("a pair");
    let (ours, mut theirs) = sockets();
    ring.add(ours.as_raw_fd(), 4).expect("added");
    collect_until(&mut ring, |event| event.writable);
    for round in 0..100 {
        assert_eq!(ring.can_wait(), Some(true), "round {round}");
        // What came before the sleep ends it like what comes in it.
        theirs.write_all(b"x").expect("write");
        assert_eq!(sleeps(&mut ring, bell.as_raw_fd(), &[], LONG), (false, true));
        assert_eq!(ring.can_wait(), None, "there is something to collect");
        assert!(collect_until(&mut ring, |event| event.token == 4).readable);
        io::Read::read_exact(&mut &ours, &mut [0]).expect("read");
    }
    assert_eq!(sleeps(&mut ring, bell.as_raw_fd(), &[], SHORT), (false, false));
    ring.disarm();
}

#[test]
fn a_sleep_in_the_ring_hears_the_bell_and_others_for_as_long_as_they_are_readable() {
    let Some(mut ring) = ring() else { return };
    let (bell, mut ringer) = UnixStream::pair().expect("a pair");
    let (other, mut far) = UnixStream::pair().expect("a pair");
    let fds = (bell.as_raw_fd(), [other.as_raw_fd()]);
    assert_eq!(sleeps(&mut ring, fds.0, &fds.1, SHORT), (false, false));
    for _ in 0..3 {
        ringer.write_all(b"x").expect("write");
        // Until it is read it ends every sleep.
        assert_eq!(sleeps(&mut ring, fds.0, &fds.1, LONG), (true, true));
        assert_eq!(sleeps(&mut ring, fds.0, &fds.1, LONG), (true, true));
        io::Read::read_exact(&mut &bell, &mut [0]).expect("read");
        far.write_all(b"y").expect("write");
        assert_eq!(sleeps(&mut ring, fds.0, &fds.1, LONG), (false, true));
        assert_eq!(sleeps(&mut ring, fds.0, &fds.1, LONG), (false, true));
        io::Read::read_exact(&mut &other, &mut [0]).expect("read");
        assert_eq!(sleeps(&mut ring, fds.0, &fds.1, SHORT), (false, false));
    }
    // An end of the bell that is heard outside of a sleep is heard in the next one.
    ringer.write_all(b"x").expect("write");
    while ring.foreign.contains(&fds.0) {
        ring.collect(&mut |event| panic!("{event:?} is of no socket")).expect("collected");
    }
    assert_eq!(sleeps(&mut ring, fds.0, &fds.1, LONG), (true, true));
}

#[test]
fn a_number_that_is_another_descriptors_now_is_looked_at_anew() {
    let Some(mut ring) = ring() else { return };
    let (bell, _ringer) = UnixStream::pair().expect("a pair");
    let (first, _first_far) = UnixStream::pair().expect("a pair");
    let number = first.as_raw_fd();
    assert_eq!(sleeps(&mut ring, bell.as_raw_fd(), &[number], SHORT), (false, false));
    let (second, mut far) = UnixStream::pair().expect("a pair");
    // SAFETY: both numbers are open descriptors; that of `first` names the second's socket from now on.
    assert_eq!(unsafe { libc::dup2(second.as_raw_fd(), number) }, number);
    far.write_all(b"x").expect("write");
    let timeout = Some(Duration::from_millis(LONG));
    let began = Instant::now();
    let descriptors = &[number];
    ring.wait(Wait { bell: bell.as_raw_fd(), descriptors, departed: 1, timeout });
    assert!(began.elapsed() < Duration::from_millis(LONG), "it is readable");
    assert_eq!(ring.turn, 1);
}

#[test]
#[should_panic(expected = "closed descriptor")]
fn a_closed_descriptor_is_a_broken_promise() {
    // Where there is no ring there is nothing to show.
    let mut ring = ring().expect("a closed descriptor");
    let (bell, _ringer) = UnixStream::pair().expect("a pair");
    sleeps(&mut ring, bell.as_raw_fd(), &[1_000_000], LONG);
}
