//! Connections of a reactor over the loopback interface. Peers are plain std sockets on threads, so that
//! what is tested here is met by code that is not ours.

use std::future::{Future, poll_fn};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Duration;

use memkv_dma::{Class, DmaRef, Hugepages, Pool, PoolConfig};
use memkv_poller::{Local, Reactor, ReactorConfig, Rng, SystemClock};
use socket2::Socket;

use super::connection::QUANTUM;
use super::{Accepted, Engine, Listener};
use crate::{
    Connection, NetError, PayloadRef, RecvBuf, RemoteSpan, SendOp, pull, push, recv, send,
};

const MIB: usize = 1 << 20;

/// A reactor with an engine.
fn fixture() -> (Reactor, Rc<Engine>) {
    let reactor = Reactor::new(ReactorConfig::default(), Rc::new(SystemClock), Rng::seeded(1));
    let engine = Engine::new(&reactor.local()).expect("an engine");
    (reactor, engine)
}

fn pool() -> Pool {
    let config = PoolConfig { size: 64 << 20, chunk: 2 << 20, hugepages: Hugepages::Never };
    Pool::new(config).expect("a pool")
}

/// Two ends of a connection; `buffer` bounds the kernel's memory on both.
fn sockets(buffer: Option<usize>) -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let ours = TcpStream::connect(listener.local_addr().expect("address")).expect("connect");
    let (theirs, _) = listener.accept().expect("accept");
    for end in [&ours, &theirs] {
        if let Some(bytes) = buffer {
            let end = socket2::SockRef::from(end);
            end.set_send_buffer_size(bytes).expect("send buffer");
            end.set_recv_buffer_size(bytes).expect("receive buffer");
        }
    }
    (ours, theirs)
}

fn attach(engine: &Rc<Engine>, stream: TcpStream) -> Rc<dyn Connection> {
    let peer = stream.peer_addr().expect("peer");
    engine.attach(Accepted { socket: Socket::from(stream), peer }).expect("attach")
}

/// A connection of the engine and the std socket at its other end.
fn pair(engine: &Rc<Engine>) -> (Rc<dyn Connection>, TcpStream) {
    let (ours, theirs) = sockets(None);
    (attach(engine, ours), theirs)
}

fn small(len: usize) -> RecvBuf {
    RecvBuf::Small(vec![0xEE; len])
}

/// Bytes in which every place tells where it is.
fn pattern(len: usize, salt: usize) -> Vec<u8> {
    (0..len).map(|at| (at.wrapping_mul(31) ^ (at >> 11) ^ salt) as u8).collect()
}

fn frozen(pool: &Pool, bytes: &[u8]) -> DmaRef {
    let mut buf = pool.allocate(Class::Send, bytes.len()).expect("memory");
    buf.as_mut_slice().copy_from_slice(bytes);
    buf.freeze()
}

/// Polls once, with a waker nobody hears.
fn poll_once<F: Future>(future: F) -> Option<F::Output> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => Some(output),
        Poll::Pending => None,
    }
}

/// Gives the rest of the reactor a few rounds.
async fn rounds(local: &Local, count: usize) {
    for _ in 0..count {
        local.yield_now().await;
    }
}

#[test]
fn large_values_cross_tiny_socket_buffers_both_ways_at_once() {
    let (mut reactor, engine) = fixture();
    let pool = pool();
    let (ours, theirs) = sockets(Some(64 << 10));
    let connection = attach(&engine, ours);
    let outgoing = pattern(7 * MIB + 13, 1);
    let incoming = pattern(4 * MIB, 2);

    let mut reader = theirs.try_clone().expect("clone");
    let len = outgoing.len();
    let received = thread::spawn(move || {
        let mut bytes = vec![0; len];
        reader.read_exact(&mut bytes).expect("read");
        bytes
    });
    let mut writer = theirs;
    let sent = incoming.clone();
    let written = thread::spawn(move || writer.write_all(&sent).expect("write"));

    let op = SendOp {
        head: outgoing[..100].to_vec(),
        payload: vec![
            frozen(&pool, &outgoing[100..4 * MIB]),
            frozen(&pool, &outgoing[4 * MIB..7 * MIB]),
        ],
        tail: outgoing[7 * MIB..].to_vec(),
    };
    let buf = RecvBuf::Dma(pool.allocate(Class::Receive, 4 * MIB).expect("memory"));
    let got = reactor.block_on(async move {
        connection.start_send(op);
        let (count, buf) = recv(&*connection, buf, 0, 4 * MIB).await;
        let (result, op) = std::future::poll_fn(|cx| connection.poll_send(cx)).await;
        result.expect("sent");
        assert_eq!(op.len(), 7 * MIB + 13);
        assert_eq!(count.expect("received"), 4 * MIB);
        buf
    });
    assert!(got.as_slice() == incoming);
    assert!(received.join().expect("reader") == outgoing);
    written.join().expect("writer");
}

#[test]
fn a_receive_is_done_at_its_minimum_and_leaves_the_rest_of_the_buffer_alone() {
    let (mut reactor, engine) = fixture();
    let (connection, mut peer) = pair(&engine);
    peer.write_all(&[1; 100]).expect("write");
    reactor.block_on(async move {
        let (count, buf) = recv(&*connection, small(200), 50, 100).await;
        assert_eq!(count.expect("received"), 100);
        assert!(buf.as_slice()[..50].iter().all(|byte| *byte == 0xEE));
        assert!(buf.as_slice()[50..150].iter().all(|byte| *byte == 1));
        assert!(buf.as_slice()[150..].iter().all(|byte| *byte == 0xEE));

        // More than the minimum is taken when it is there, but never beyond the buffer.
        peer.write_all(&[2; 64]).expect("write");
        let (count, _) = recv(&*connection, small(64), 0, 64).await;
        assert_eq!(count.expect("received"), 64);
        peer.write_all(&[3; 10]).expect("write");
        let (count, buf) = recv(&*connection, small(8), 0, 1).await;
        assert_eq!(count.expect("received"), 8);
        assert_eq!(buf.as_slice(), [3; 8]);
        let (count, _) = recv(&*connection, small(8), 0, 1).await;
        assert_eq!(count.expect("received"), 2);
    });
}

#[cfg(target_os = "linux")]
#[test]
fn a_large_receive_sleeps_until_enough_is_there() {
    let (mut reactor, engine) = fixture();
    let (connection, mut peer) = pair(&engine);
    let bytes = pattern(100 << 10, 3);
    // A new connection's window is small, and the kernel tells of what would fill it.
    let warm_up = thread::spawn(move || {
        peer.write_all(&vec![0; 8 * MIB]).expect("write");
        peer
    });
    let (count, _) = reactor.block_on({
        let connection = connection.clone();
        async move { recv(&*connection, small(8 * MIB), 0, 8 * MIB).await }
    });
    assert_eq!(count.expect("received"), 8 * MIB);
    let mut peer = warm_up.join().expect("writer");
    connection.start_recv(small(bytes.len()), 0, bytes.len());
    // What is told of every new socket.
    while reactor.step().is_busy() {}
    peer.write_all(&bytes[..40 << 10]).expect("write");
    assert!(!reactor.step().is_busy(), "nobody is woken by less than what is missing");
    let (count, buf, after) = reactor.block_on({
        let (connection, rest) = (connection.clone(), bytes[40 << 10..].to_vec());
        let writer = thread::spawn(move || {
            peer.write_all(&rest).expect("write");
            peer
        });
        async move {
            let (count, buf) = poll_fn(|cx| connection.poll_recv(cx)).await;
            let mut peer = writer.join().expect("writer");
            connection.start_recv(small(8), 0, 1);
            peer.write_all(b"!").expect("write");
            let (after, _) = poll_fn(|cx| connection.poll_recv(cx)).await;
            (count.expect("received"), buf, after.expect("received"))
        }
    });
    assert!(count == bytes.len() && buf.as_slice() == bytes);
    assert_eq!(after, 1, "a byte is told again when a byte is waited for");
}

#[test]
fn bytes_that_are_too_few_are_told_when_less_is_waited_for() {
    let (mut reactor, engine) = fixture();
    let (connection, mut peer) = pair(&engine);
    let (large, few) = (pattern(64 << 10, 4), pattern(1 << 10, 5));
    // Waits, with a threshold, for what then comes together with a little more.
    connection.start_recv(small(large.len()), 0, large.len());
    while reactor.step().is_busy() {}
    peer.write_all(&large).expect("write");
    let got = reactor.block_on(async move {
        let (count, _) = poll_fn(|cx| connection.poll_recv(cx)).await;
        assert_eq!(count.expect("received"), 64 << 10);
        // Nothing is there: waits for less from here on; then for much, of which a part comes, and the end.
        let (small_count, buf) = {
            peer.write_all(&few).expect("write");
            recv(&*connection, small(1 << 10), 0, 1 << 10).await
        };
        assert_eq!(small_count.expect("received"), 1 << 10);
        assert!(buf.as_slice() == few);
        connection.start_recv(small(64 << 10), 0, 64 << 10);
        peer.write_all(&few).expect("write");
        drop(peer);
        let (count, _) = poll_fn(|cx| connection.poll_recv(cx)).await;
        count.expect("received")
    });
    assert_eq!(got, 1 << 10, "the end is told however little came before it");
}

#[test]
fn the_end_of_the_stream_is_told_every_time_and_what_came_before_it_first() {
    let (mut reactor, engine) = fixture();
    let (connection, mut peer) = pair(&engine);
    peer.write_all(b"last words").expect("write");
    drop(peer);
    reactor.block_on(async move {
        let (count, buf) = recv(&*connection, small(64), 0, 64).await;
        assert_eq!(count.expect("the end is not an error"), 10);
        assert_eq!(&buf.as_slice()[..10], b"last words");
        for _ in 0..3 {
            let (count, _) = recv(&*connection, small(64), 0, 1).await;
            assert_eq!(count.expect("the end"), 0);
        }
    });
}

#[test]
fn a_peer_that_ends_one_direction_still_receives() {
    let (mut reactor, engine) = fixture();
    let pool = pool();
    let (connection, mut peer) = pair(&engine);
    let answer = pattern(3 * MIB, 3);
    let op =
        SendOp { head: Vec::new(), payload: vec![frozen(&pool, &answer)], tail: b"end".to_vec() };
    peer.write_all(b"request").expect("write");
    peer.shutdown(Shutdown::Write).expect("half-close");
    let reader = thread::spawn(move || {
        let mut bytes = Vec::new();
        peer.read_to_end(&mut bytes).expect("read");
        bytes
    });
    reactor.block_on(async move {
        let (count, _) = recv(&*connection, small(64), 0, 64).await;
        assert_eq!(count.expect("received"), 7);
        let (result, _) = send(&*connection, op).await;
        result.expect("sent");
    });
    let bytes = reader.join().expect("reader");
    assert!(bytes[..3 * MIB] == answer && &bytes[3 * MIB..] == b"end");
}

#[test]
fn a_reset_ends_both_directions_and_gives_the_buffers_back() {
    let (mut reactor, engine) = fixture();
    let pool = pool();
    let (ours, theirs) = sockets(Some(64 << 10));
    let connection = attach(&engine, ours);
    let payload = frozen(&pool, &pattern(4 * MIB, 4));
    reactor.block_on(async move {
        let op = SendOp { head: vec![7; 10], payload: vec![payload], tail: Vec::new() };
        connection.start_send(op);
        connection.start_recv(small(16), 0, 16);
        // Closing with a linger time of 0 sends a reset (RFC 9293, ABORT).
        socket2::SockRef::from(&theirs).set_linger(Some(Duration::ZERO)).expect("linger");
        drop(theirs);
        let (received, buf) = std::future::poll_fn(|cx| connection.poll_recv(cx)).await;
        let (sent, op) = std::future::poll_fn(|cx| connection.poll_send(cx)).await;
        assert_eq!(buf.len(), 16);
        assert_eq!(op.len(), 4 * MIB + 10);
        // One of the two collects the socket's error; the other finds the ends closed.
        let reset =
            matches!(received, Err(NetError::Reset)) || matches!(sent, Err(NetError::Reset));
        assert!(reset, "received {received:?}, sent {sent:?}");
        assert!(matches!(sent, Err(NetError::Reset | NetError::Closed)));
        let (again, _) = send(&*connection, SendOp::head(vec![1])).await;
        assert!(matches!(again, Err(NetError::Closed | NetError::Reset)));
    });
}

#[test]
fn a_dropped_wait_leaves_the_operation_and_its_buffer_with_the_connection() {
    let (mut reactor, engine) = fixture();
    let (connection, mut peer) = pair(&engine);
    reactor.block_on(async move {
        assert!(poll_once(recv(&*connection, small(32), 0, 4)).is_none());
        peer.write_all(b"late").expect("write");
        let (count, buf) = std::future::poll_fn(|cx| connection.poll_recv(cx)).await;
        assert_eq!(count.expect("received"), 4);
        assert_eq!(&buf.as_slice()[..4], b"late");
    });
}

#[test]
fn a_dropped_send_is_finished_all_the_same() {
    let (mut reactor, engine) = fixture();
    let pool = pool();
    let (ours, mut theirs) = sockets(Some(64 << 10));
    let connection = attach(&engine, ours);
    let bytes = pattern(2 * MIB, 5);
    let payload = frozen(&pool, &bytes);
    let reader = thread::spawn(move || {
        let mut all = Vec::new();
        theirs.read_to_end(&mut all).expect("read");
        all
    });
    reactor.block_on(async move {
        let op = SendOp { head: Vec::new(), payload: vec![payload], tail: Vec::new() };
        assert!(poll_once(send(&*connection, op)).is_none(), "64 KiB buffers cannot take 2 MiB");
        let (result, op) = std::future::poll_fn(|cx| connection.poll_send(cx)).await;
        result.expect("sent");
        assert_eq!(op.len(), 2 * MIB);
    });
    assert!(reader.join().expect("reader") == bytes);
}

#[test]
#[should_panic(expected = "a receive is outstanding")]
fn a_second_receive_is_refused() {
    let (_reactor, engine) = fixture();
    let (connection, _peer) = pair(&engine);
    connection.start_recv(small(8), 0, 8);
    connection.start_recv(small(8), 0, 8);
}

#[test]
fn shutdown_ends_what_is_outstanding() {
    let (mut reactor, engine) = fixture();
    let pool = pool();
    let (ours, theirs) = sockets(Some(64 << 10));
    let connection = attach(&engine, ours);
    let payload = frozen(&pool, &pattern(4 * MIB, 6));
    reactor.block_on(async move {
        let op = SendOp { head: Vec::new(), payload: vec![payload], tail: Vec::new() };
        connection.start_send(op);
        connection.start_recv(small(8), 0, 8);
        connection.shutdown();
        let (count, _) = std::future::poll_fn(|cx| connection.poll_recv(cx)).await;
        assert_eq!(count.expect("the end"), 0);
        let (sent, op) = std::future::poll_fn(|cx| connection.poll_send(cx)).await;
        assert!(matches!(sent, Err(NetError::Closed)), "{sent:?}");
        assert_eq!(op.len(), 4 * MIB);
        drop(theirs);
    });
}

#[test]
fn dropping_a_connection_closes_it_whatever_is_outstanding() {
    let (mut reactor, engine) = fixture();
    let (connection, mut peer) = pair(&engine);
    connection.start_recv(small(8), 0, 8);
    assert_eq!(engine.connections(), 1);
    let (again, mut other) = pair(&engine);
    drop(connection);
    assert_eq!(engine.connections(), 1);
    let mut byte = [0];
    assert_eq!(peer.read(&mut byte).expect("the end"), 0);
    // The slot is used again, and events of the one before do not reach the new one.
    let (third, mut last) = pair(&engine);
    reactor.block_on(async move {
        for (connection, peer) in [(&again, &mut other), (&third, &mut last)] {
            peer.write_all(b"x").expect("write");
            let (count, _) = recv(&**connection, small(1), 0, 1).await;
            assert_eq!(count.expect("received"), 1);
        }
    });
}

#[test]
fn many_connections_are_served_side_by_side() {
    const CONNECTIONS: usize = 100;
    const ROUNDS: usize = 20;
    let (mut reactor, engine) = fixture();
    let local = reactor.local();
    let listener = Listener::bind("127.0.0.1:0").expect("bind");
    let address = listener.local_addr();
    let clients = thread::spawn(move || {
        let mut streams: Vec<_> =
            (0..CONNECTIONS).map(|_| TcpStream::connect(address).expect("connect")).collect();
        for round in 0..ROUNDS {
            for (at, stream) in streams.iter_mut().enumerate() {
                stream.write_all(&[at as u8, round as u8]).expect("write");
            }
            for (at, stream) in streams.iter_mut().enumerate() {
                let mut echo = [0; 2];
                stream.read_exact(&mut echo).expect("read");
                assert_eq!(echo, [at as u8, round as u8]);
            }
        }
    });
    let spawner = local.clone();
    let acceptor = listener.accept_queue(&local);
    reactor.block_on(async move {
        let mut echoes = Vec::new();
        for _ in 0..CONNECTIONS {
            let accepted = acceptor.accept().await.expect("accept");
            assert!(accepted.peer().ip().is_loopback());
            let connection = engine.attach(accepted).expect("attach");
            assert!(connection.is_loopback());
            echoes.push(spawner.spawn_join(echo(connection)));
        }
        let mut bytes = 0;
        for echo in echoes {
            bytes += echo.await;
        }
        assert_eq!(bytes, 2 * CONNECTIONS * ROUNDS);
    });
    clients.join().expect("clients");
}

/// Sends back what it receives, to the end; returns the number of bytes.
async fn echo(connection: Rc<dyn Connection>) -> usize {
    let mut total = 0;
    loop {
        let (count, buf) = recv(&*connection, small(2), 0, 1).await;
        let count = count.expect("received");
        if count == 0 {
            return total;
        }
        total += count;
        let (sent, _) = send(&*connection, SendOp::head(buf.as_slice()[..count].to_vec())).await;
        sent.expect("sent");
    }
}

/// Receives into 4 MiB buffers for ever.
async fn drain(connection: Rc<dyn Connection>, pool: Pool) {
    let mut buf = RecvBuf::Dma(pool.allocate(Class::Receive, 4 * MIB).expect("memory"));
    while let (Ok(1..), back) = recv(&*connection, buf, 0, 4 * MIB).await {
        buf = back;
    }
}

#[test]
fn a_flood_does_not_starve_a_quiet_connection() {
    let (mut reactor, engine) = fixture();
    let local = reactor.local();
    let pool = pool();
    let (flooded, mut flood) = pair(&engine);
    let (quiet, mut peer) = pair(&engine);
    let flooder = thread::spawn(move || {
        let bytes = vec![9; 4 * MIB];
        while flood.write_all(&bytes).is_ok() {}
    });
    let pinger = thread::spawn(move || {
        for round in 0..500_u32 {
            peer.write_all(&round.to_le_bytes()).expect("write");
            let mut answer = [0; 4];
            peer.read_exact(&mut answer).expect("read");
            assert_eq!(answer, round.to_le_bytes());
        }
    });
    let spawner = local.clone();
    let ended = flooded.clone();
    let answered = reactor.block_on(async move {
        spawner.spawn(drain(flooded, pool));
        echo(quiet).await
    });
    assert_eq!(answered, 2000);
    ended.shutdown();
    pinger.join().expect("pinger");
    drop((ended, reactor, engine));
    flooder.join().expect("flooder");
}

#[test]
fn a_visit_in_company_moves_a_quantum_and_alone_the_whole_rest() {
    let (mut reactor, engine) = fixture();
    let local = reactor.local();
    let pool = pool();
    let (first, second) = (sockets(Some(8 << 20)), sockets(Some(8 << 20)));
    let (one, two) = (attach(&engine, first.0), attach(&engine, second.0));
    // A peer that has written all of it while nobody reads has filled our receive buffer.
    let len = 2 * QUANTUM;
    for mut peer in [&first.1, &second.1] {
        peer.set_nonblocking(true).expect("non-blocking");
        let mut written = 0;
        while written < len {
            match peer.write(&vec![1; len - written]) {
                Ok(count) => written += count,
                Err(error) => panic!("the buffers hold less than {len} bytes: {error}"),
            }
        }
    }
    reactor.block_on(async move {
        let buf = || RecvBuf::Dma(pool.allocate(Class::Receive, len).expect("memory"));
        let mut done = [false; 2];
        // Both have a receive that the first visit cannot finish while the other is ready.
        for connection in [&one, &two] {
            connection.start_recv(buf(), 0, len);
        }
        let poll = |connection: &Rc<dyn Connection>| {
            poll_once(std::future::poll_fn(|cx| connection.poll_recv(cx))).is_some()
        };
        // The first was alone when it started; the second had company at once.
        done[0] = poll(&one);
        assert!(!poll(&two), "the second took more than a quantum beside the first");
        for _ in 0..1000 {
            rounds(&local, 1).await;
            done[0] = done[0] || poll(&one);
            done[1] = done[1] || poll(&two);
            if done == [true; 2] {
                return;
            }
        }
        panic!("two receives of {len} bytes did not end");
    });
}

#[test]
fn an_accepted_connection_survives_a_dropped_accept() {
    let (mut reactor, _engine) = fixture();
    let local = reactor.local();
    let listener = Listener::bind("127.0.0.1:0").expect("bind");
    let acceptor = listener.accept_queue(&local);
    let address = listener.local_addr();
    reactor.block_on(async move {
        assert!(poll_once(acceptor.accept()).is_none());
        let client = TcpStream::connect(address).expect("connect");
        // Long enough for the acceptor's poller to look.
        rounds(&local, 64).await;
        let accepted = acceptor.accept().await.expect("accept");
        assert_eq!(accepted.peer(), client.local_addr().expect("address"));
    });
}

#[test]
fn an_address_in_use_is_refused() {
    let listener = Listener::bind("127.0.0.1:0").expect("bind");
    let second = Listener::bind(listener.local_addr());
    assert!(matches!(second.err(), Some(NetError::Os(_))));
    let nowhere: &[SocketAddr] = &[];
    assert!(matches!(Listener::bind(nowhere).err(), Some(NetError::Os(_))));
}

#[test]
fn inline_payload_is_pulled_and_pushed_and_remote_payload_is_refused() {
    let (mut reactor, engine) = fixture();
    let pool = pool();
    let (connection, mut peer) = pair(&engine);
    reactor.block_on(async move {
        let buf = pool.allocate(Class::Receive, 64).expect("memory");
        peer.write_all(b"payload").expect("write");
        let (count, buf) = pull(&*connection, PayloadRef::Inline, buf, 1, 7).await;
        assert_eq!(count.expect("pulled"), 7);
        assert_eq!(&buf.as_slice()[1..8], b"payload");

        let remote = PayloadRef::Remote(vec![RemoteSpan { address: 1, rkey: 2, length: 3 }]);
        let (count, _) = pull(&*connection, remote.clone(), buf, 0, 1).await;
        assert!(matches!(count, Err(NetError::Unsupported)));
        let (sent, op) = push(&*connection, remote, SendOp::head(vec![5])).await;
        assert!(matches!(sent, Err(NetError::Unsupported)));
        let (sent, _) = push(&*connection, PayloadRef::Inline, op).await;
        sent.expect("pushed");
        let mut byte = [0];
        peer.read_exact(&mut byte).expect("read");
        assert_eq!(byte, [5]);
    });
}

#[test]
fn a_send_of_many_small_pieces_keeps_their_order() {
    let (mut reactor, engine) = fixture();
    let pool = pool();
    let (connection, mut peer) = pair(&engine);
    let bytes = pattern(300 * 100, 8);
    let payload: Vec<_> = bytes.chunks(100).map(|piece| frozen(&pool, piece)).collect();
    reactor.block_on(async move {
        let (sent, _) =
            send(&*connection, SendOp { head: Vec::new(), payload, tail: Vec::new() }).await;
        sent.expect("sent");
        let (sent, _) = send(&*connection, SendOp::default()).await;
        sent.expect("nothing to send is sent at once");
    });
    let mut got = vec![0; bytes.len()];
    peer.read_exact(&mut got).expect("read");
    assert!(got == bytes);
}
