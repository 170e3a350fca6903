//! The blocking stream against std sockets.

use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use super::{Lending, Stream};
use crate::NetError;

const SOON: Duration = Duration::from_millis(50);
const LATE: Duration = Duration::from_secs(60);
/// Nobody listens there: no program is given such a port.
const NOBODY: &str = "127.0.0.1:1";

fn after(wait: Duration) -> Instant {
    Instant::now() + wait
}

fn pair() -> (Stream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = listener.local_addr().expect("address").to_string();
    let stream = Stream::connect(&address, after(LATE)).expect("connect");
    let (peer, _) = listener.accept().expect("accept");
    (stream, peer)
}

#[test]
fn scattered_bytes_go_out_and_come_in_in_order() {
    let (mut stream, mut peer) = pair();
    let pieces: Vec<Vec<u8>> = (0..200).map(|at| vec![at as u8; at * 97]).collect();
    let all: Vec<u8> = pieces.concat();
    let len = all.len();
    let echo = thread::spawn(move || {
        let mut bytes = vec![0; len];
        peer.read_exact(&mut bytes).expect("read");
        peer.write_all(&bytes).expect("write");
    });
    let slices: Vec<_> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
    stream.send_vectored(&slices, after(LATE)).expect("sent");
    let mut back: Vec<Vec<u8>> = pieces.iter().map(|piece| vec![0; piece.len()]).collect();
    let mut slices: Vec<_> = back.iter_mut().map(|piece| IoSliceMut::new(piece)).collect();
    stream.recv_vectored_exact(&mut slices, after(LATE)).expect("received");
    assert!(back == pieces);
    echo.join().expect("echo");
}

#[test]
fn a_large_value_crosses_in_one_call() {
    let (mut stream, mut peer) = pair();
    let value: Vec<u8> = (0..16 << 20).map(|at: u32| (at ^ (at >> 9)) as u8).collect();
    let expected = value.clone();
    let reader = thread::spawn(move || {
        let mut bytes = vec![0; expected.len()];
        peer.read_exact(&mut bytes).expect("read");
        assert!(bytes == expected);
        peer.write_all(&bytes).expect("write");
    });
    stream.send_vectored(&[IoSlice::new(&value)], after(LATE)).expect("sent");
    let mut back = vec![0; value.len()];
    stream.recv_exact(&mut back, after(LATE)).expect("received");
    assert!(back == value);
    reader.join().expect("reader");
}

#[test]
fn a_byte_is_heard_after_a_large_value_that_came_in_pieces() {
    let (mut stream, mut peer) = pair();
    let (begun, wait) = std::sync::mpsc::channel();
    let writer = thread::spawn(move || {
        let () = wait.recv().expect("begun");
        for _ in 0..10 {
            peer.write_all(&[7; 20 << 10]).expect("write");
        }
        peer.write_all(b"!").expect("write");
        peer
    });
    begun.send(()).expect("the writer waits");
    stream.recv_exact(&mut [0; 200 << 10], after(LATE)).expect("received");
    let peer = writer.join().expect("writer");
    assert_eq!(Stream::wait_any(&[&stream], after(LATE)).expect("asked"), Some(0));
    let mut byte = [0; 1];
    stream.recv_exact(&mut byte, after(LATE)).expect("received");
    assert_eq!(byte, *b"!");
    drop(peer);
    let ended = stream.recv_exact(&mut vec![0; 200 << 10], after(LATE));
    assert!(matches!(ended, Err(NetError::Closed)), "{ended:?}");
}

#[test]
fn a_silent_peer_runs_into_the_deadline() {
    let (mut stream, mut peer) = pair();
    let began = Instant::now();
    let result = stream.recv_exact(&mut [0; 4], began + SOON);
    assert!(matches!(result, Err(NetError::TimedOut)), "{result:?}");
    assert!(began.elapsed() >= SOON);
    // Bytes that are there already are received even when the deadline has passed.
    peer.write_all(b"four").expect("write");
    while stream.is_quiet() {
        thread::yield_now();
    }
    stream.recv_exact(&mut [0; 4], began).expect("received");
}

#[test]
fn a_peer_that_does_not_read_runs_into_the_deadline() {
    let (mut stream, _peer) = pair();
    let value = vec![0; 64 << 20];
    let began = Instant::now();
    let result = stream.send_vectored(&[IoSlice::new(&value)], began + SOON);
    assert!(matches!(result, Err(NetError::TimedOut)), "{result:?}");
    assert!(began.elapsed() >= SOON);
}

#[test]
fn a_peer_that_goes_away_is_noticed() {
    let (mut stream, mut peer) = pair();
    assert!(stream.is_quiet());
    peer.write_all(b"ab").expect("write");
    drop(peer);
    let result = stream.recv_exact(&mut [0; 4], after(LATE));
    assert!(matches!(result, Err(NetError::Closed)), "{result:?}");
    assert!(!stream.is_quiet());
    assert_eq!(stream.recv_some(&mut [0; 4], after(LATE)).expect("the end"), 0);
}

#[test]
fn a_port_nobody_listens_on_is_an_error_of_the_system() {
    assert!(matches!(Stream::connect(NOBODY, after(LATE)), Err(NetError::Os(_))));
    assert!(matches!(Stream::connect("no port", after(LATE)), Err(NetError::Os(_))));
}

#[test]
fn the_first_of_several_streams_to_hear_something_is_found() {
    let ends: Vec<_> = (0..3).map(|_| pair()).collect();
    let streams: Vec<_> = ends.iter().map(|(stream, _)| stream).collect();
    assert_eq!(Stream::wait_any(&streams, after(SOON)).expect("poll"), None);
    (&ends[1].1).write_all(b"x").expect("write");
    assert_eq!(Stream::wait_any(&streams, after(LATE)).expect("poll"), Some(1));
}

#[test]
fn a_connection_can_be_made_without_waiting_for_it() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = listener.local_addr().expect("address").to_string();
    let connecting = Stream::start_connect(&address).expect("start");
    assert!(connecting.wait(after(LATE)).expect("poll"));
    let stream = connecting.finish().expect("connected");
    assert_eq!(stream.peer().to_string(), address);
    // Refused at once, or found so when it is decided: the system may do either.
    let refused = Stream::start_connect(NOBODY)
        .and_then(|connecting| connecting.wait(after(LATE)).and_then(|_| connecting.finish()));
    assert!(matches!(refused, Err(NetError::Os(_))));
}

#[test]
fn a_receive_that_sleeps_for_a_byte_wakes_for_it_and_for_its_deadline_whatever_was_lent_before() {
    let (mut stream, mut peer) = pair();
    let echo = thread::spawn(move || {
        let mut large = vec![0; (1 << 20) + 1];
        for _ in 0..3 {
            peer.read_exact(&mut large).expect("read");
            peer.write_all(b"!").expect("write");
        }
        peer
    });
    let value = vec![7; 1 << 20];
    for _ in 0..3 {
        stream.send_lending(&[], &value, after(LATE)).expect("sent");
        assert!(
            !stream.blocking || matches!(stream.pipe, Lending::No),
            "a pipe knows no such flag"
        );
        stream.send_vectored(&[IoSlice::new(b"?")], after(LATE)).expect("sent");
        stream.recv_exact(&mut [0], after(LATE)).expect("received");
    }
    let peer = echo.join().expect("echo");
    // Each deadline holds, be it longer or shorter than the one before it.
    for wait in [3, 130, 1, 70] {
        let (began, wait) = (Instant::now(), Duration::from_millis(wait));
        let result = stream.recv_exact(&mut [0], began + wait);
        assert!(matches!(result, Err(NetError::TimedOut)), "{result:?}");
        assert!(began.elapsed() >= wait);
    }
    assert!(stream.blocking, "it slept in the receive");
    drop(peer);
    let result = stream.recv_exact(&mut [0], after(LATE));
    assert!(matches!(result, Err(NetError::Closed)), "{result:?}");
}

#[test]
fn a_small_message_that_is_waited_for_awake_comes_like_any_other() {
    let (mut stream, mut peer) = pair();
    // As if from another machine: there nobody's core is in question.
    stream.loopback = false;
    stream.expect(64);
    let echo = thread::spawn(move || {
        let mut byte = [0];
        while let Ok(1) = peer.read(&mut byte) {
            peer.write_all(&byte).expect("write");
        }
    });
    for round in 0..5_000_u32 {
        let sent = [round as u8];
        stream.send_vectored(&[IoSlice::new(&sent)], after(LATE)).expect("sent");
        // Into room for more, and into room for just this: both wait, however the last receive ended.
        let (mut few, mut one) = ([0; 16], [0]);
        let got = if round % 2 == 0 {
            assert_eq!(stream.recv_some(&mut few, after(LATE)).expect("received"), 1);
            few[0]
        } else {
            stream.recv_exact(&mut one, after(LATE)).expect("received");
            one[0]
        };
        assert_eq!(got, round as u8);
    }
    // Nothing comes: the deadline holds as it does without.
    let began = Instant::now();
    let result = stream.recv_exact(&mut [0], began + SOON);
    assert!(matches!(result, Err(NetError::TimedOut)), "{result:?}");
    assert!(began.elapsed() >= SOON);
    drop(stream);
    echo.join().expect("echo");
}

#[test]
fn a_receive_that_took_all_it_asked_for_is_followed_by_a_wait_awake() {
    let (mut stream, mut peer) = pair();
    stream.loopback = false;
    stream.expect(1);
    peer.write_all(b"a").expect("write");
    stream.recv_exact(&mut [0], after(LATE)).expect("received");
    assert!(!stream.drained, "there may be more");
    let account = format!("{:?}", stream.spin);
    let result = stream.recv_exact(&mut [0], after(SOON));
    assert!(matches!(result, Err(NetError::TimedOut)), "{result:?}");
    assert_ne!(format!("{:?}", stream.spin), account, "a wait in vain is booked");
}

#[test]
fn who_waits_awake_hears_the_end_of_the_stream() {
    let (mut stream, peer) = pair();
    stream.loopback = false;
    stream.expect(1);
    drop(peer);
    let result = stream.recv_exact(&mut [0; 4], after(LATE));
    assert!(matches!(result, Err(NetError::Closed)), "{result:?}");
}

#[cfg(target_os = "linux")]
#[path = "lend_tests.rs"]
mod lending;
