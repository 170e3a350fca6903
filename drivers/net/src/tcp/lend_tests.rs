//! Sends that lend their pages: the same bytes, and no signal.

use std::mem::MaybeUninit;
use std::net::Shutdown;

use super::super::{LEND_MIN, Lending};
use super::*;

/// Bytes in which every place tells where it is.
fn pattern(len: usize, salt: usize) -> Vec<u8> {
    (0..len).map(|at| (at.wrapping_mul(31) ^ (at >> 11) ^ salt) as u8).collect()
}

fn bound_buffers(stream: &Stream, peer: &TcpStream, bytes: usize) {
    stream.socket.set_send_buffer_size(bytes).expect("send buffer");
    socket2::SockRef::from(peer).set_recv_buffer_size(bytes).expect("receive buffer");
}

/// Runs `body` on a thread that holds SIGPIPE back, and tells whether it was raised there.
fn raises_sigpipe(body: impl FnOnce() + Send + 'static) -> bool {
    let held_back = move || {
        let mut set = MaybeUninit::uninit();
        // SAFETY: the calls write the one set and read the other, which outlive them.
        let set = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            libc::sigaddset(set.as_mut_ptr(), libc::SIGPIPE);
            set.assume_init()
        };
        // SAFETY: as above; the mask is that of this thread, which ends after this.
        let rc =
            unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
        assert_eq!(rc, 0);
        body();
        let mut pending = set;
        // SAFETY: as above.
        unsafe {
            assert_eq!(libc::sigpending(&raw mut pending), 0);
            libc::sigismember(&raw const pending, libc::SIGPIPE) == 1
        }
    };
    thread::spawn(held_back).join().expect("the body")
}

#[test]
fn a_large_value_is_lent_between_what_is_copied() {
    let (mut stream, mut peer) = pair();
    bound_buffers(&stream, &peer, 64 << 10);
    let value = pattern((5 << 20) + 13, 1);
    let (head, second, tail) = (pattern(100, 2), pattern(LEND_MIN + 4097, 3), pattern(77, 4));
    let expected = [&head[..], &value, &second, &tail].concat();
    let len = expected.len();
    let reader = thread::spawn(move || {
        let mut bytes = vec![0; len];
        peer.read_exact(&mut bytes).expect("read");
        peer.write_all(b"!").expect("answer");
        bytes
    });
    stream.send_lending(&head, &value, after(LATE)).expect("sent");
    stream.send_lending(&[], &second, after(LATE)).expect("sent");
    stream.send_vectored(&[IoSlice::new(&tail)], after(LATE)).expect("sent");
    stream.recv_exact(&mut [0], after(LATE)).expect("answered");
    assert!(reader.join().expect("reader") == expected);
    assert!(matches!(stream.pipe, Lending::By(_)), "{:?}", stream.pipe);
}

#[test]
fn what_begins_anywhere_in_a_page_is_lent_as_it_is() {
    let (mut stream, mut peer) = pair();
    let value = pattern(3 * LEND_MIN, 5);
    let parts = [&value[1..1 + LEND_MIN], &value[4095..3 * LEND_MIN - 1], &value[LEND_MIN..]];
    let expected = parts.concat();
    let len = expected.len();
    let reader = thread::spawn(move || {
        let mut bytes = vec![0; len];
        peer.read_exact(&mut bytes).expect("read");
        bytes
    });
    for part in parts {
        stream.send_lending(&[], part, after(LATE)).expect("sent");
    }
    stream.send_vectored(&[], after(LATE)).expect("nothing");
    stream.shutdown();
    assert!(reader.join().expect("reader") == expected);
}

/// Lends a value whole, which fits the buffers, and gives the connection up before the peer reads.
fn lend_and_leave(value: &[u8]) -> TcpStream {
    let (mut stream, peer) = pair();
    bound_buffers(&stream, &peer, 4 << 20);
    stream.send_lending(b"head", value, after(LATE)).expect("the buffers hold it");
    assert!(matches!(stream.pipe, Lending::By(_)), "{:?}", stream.pipe);
    peer
}

fn read_behind_head(mut peer: TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    peer.read_to_end(&mut bytes).expect("read");
    assert_eq!(&bytes[..4], b"head");
    bytes.split_off(4)
}

#[test]
fn a_late_reader_gets_what_the_owner_has_kept() {
    let value = pattern(LEND_MIN, 6);
    let peer = lend_and_leave(&value);
    assert!(read_behind_head(peer) == value);
}

#[test]
fn what_is_lent_is_no_copy() {
    let mut value = pattern(LEND_MIN, 7);
    let peer = lend_and_leave(&value);
    // What the owner is told not to do, and what the checks of the peer are for.
    let last = value.len() - 1;
    value[last] ^= 0xFF;
    assert!(read_behind_head(peer) == value, "the peer reads the owner's pages");
}

#[test]
fn a_value_below_the_least_is_copied() {
    let (mut stream, peer) = pair();
    bound_buffers(&stream, &peer, 4 << 20);
    let mut value = pattern(LEND_MIN - 1, 8);
    let sent = value.clone();
    stream.send_lending(b"head", &value, after(LATE)).expect("the buffers hold it");
    value.fill(0);
    assert!(matches!(stream.pipe, Lending::Untried), "{:?}", stream.pipe);
    drop(stream);
    assert!(read_behind_head(peer) == sent);
}

#[test]
fn a_peer_on_another_machine_is_sent_copies() {
    let (mut stream, peer) = pair();
    bound_buffers(&stream, &peer, 4 << 20);
    stream.loopback = false;
    let mut value = pattern(LEND_MIN, 9);
    let sent = value.clone();
    stream.send_lending(b"head", &value, after(LATE)).expect("the buffers hold it");
    value.fill(0);
    drop(stream);
    assert!(read_behind_head(peer) == sent);
}

#[test]
fn a_peer_that_does_not_read_what_is_lent_runs_into_the_deadline() {
    let (mut stream, _peer) = pair();
    let value = vec![0; 64 << 20];
    let began = Instant::now();
    let result = stream.send_lending(&[], &value, began + SOON);
    assert!(matches!(result, Err(NetError::TimedOut)), "{result:?}");
    assert!(began.elapsed() >= SOON);
}

#[test]
fn lending_to_a_peer_that_goes_away_is_an_error_and_no_signal() {
    assert!(!raises_sigpipe(|| {
        let (mut stream, mut peer) = pair();
        bound_buffers(&stream, &peer, 64 << 10);
        let reader = thread::spawn(move || peer.read_exact(&mut [0; 300 << 10]).expect("read"));
        let value = pattern(32 << 20, 10);
        let result = stream.send_lending(&[], &value, after(LATE));
        assert!(matches!(result, Err(NetError::Closed | NetError::Reset)), "{result:?}");
        reader.join().expect("reader");
    }));
}

#[test]
fn lending_where_we_have_closed_is_an_error_and_no_signal() {
    assert!(!raises_sigpipe(|| {
        let (mut stream, _peer) = pair();
        stream.socket.shutdown(Shutdown::Write).expect("shutdown");
        let result = stream.send_lending(&[], &pattern(LEND_MIN, 11), after(LATE));
        assert!(matches!(result, Err(NetError::Closed)), "{result:?}");
    }));
}

#[test]
fn a_signal_that_was_held_back_before_is_still_there() {
    assert!(raises_sigpipe(|| {
        // SAFETY: raise takes a number.
        assert_eq!(unsafe { libc::raise(libc::SIGPIPE) }, 0);
        let (mut stream, _peer) = pair();
        stream.socket.shutdown(Shutdown::Write).expect("shutdown");
        let result = stream.send_lending(&[], &pattern(LEND_MIN, 12), after(LATE));
        assert!(matches!(result, Err(NetError::Closed)), "{result:?}");
    }));
}
