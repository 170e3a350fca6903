//! How connections and operations end.

use super::*;

on_every_engine!(the_end_of_the_stream_is_told_every_time_and_what_came_before_it_first);
fn the_end_of_the_stream_is_told_every_time_and_what_came_before_it_first(fixture: Fixture) {
    let Fixture { mut reactor, engine, .. } = fixture;
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

on_every_engine!(a_peer_that_ends_one_direction_still_receives);
fn a_peer_that_ends_one_direction_still_receives(fixture: Fixture) {
    let Fixture { mut reactor, engine, pool } = fixture;
    let (connection, mut peer) = pair(&engine);
    let answer = pattern(3 * MIB, 3);
    let op = SendOp {
        head: Vec::new(),
        payload: vec![frozen(&pool, &answer)],
        tail: b"end".to_vec(),
        lend: None,
    };
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

on_every_engine!(a_reset_ends_both_directions_and_gives_the_buffers_back);
fn a_reset_ends_both_directions_and_gives_the_buffers_back(fixture: Fixture) {
    let Fixture { mut reactor, engine, pool } = fixture;
    let (ours, theirs) = sockets(Some(64 << 10));
    let connection = attach(&engine, ours);
    let payload = frozen(&pool, &pattern(4 * MIB, 4));
    reactor.block_on(async move {
        let op = SendOp { head: vec![7; 10], payload: vec![payload], tail: Vec::new(), lend: None };
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

on_every_engine!(a_dropped_wait_leaves_the_operation_and_its_buffer_with_the_connection);
fn a_dropped_wait_leaves_the_operation_and_its_buffer_with_the_connection(fixture: Fixture) {
    let Fixture { mut reactor, engine, .. } = fixture;
    let (connection, mut peer) = pair(&engine);
    reactor.block_on(async move {
        assert!(poll_once(recv(&*connection, small(32), 0, 4)).is_none());
        peer.write_all(b"late").expect("write");
        let (count, buf) = std::future::poll_fn(|cx| connection.poll_recv(cx)).await;
        assert_eq!(count.expect("received"), 4);
        assert_eq!(&buf.as_slice()[..4], b"late");
    });
}

on_every_engine!(a_dropped_send_is_finished_all_the_same);
fn a_dropped_send_is_finished_all_the_same(fixture: Fixture) {
    let Fixture { mut reactor, engine, pool } = fixture;
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
        let op = SendOp { head: Vec::new(), payload: vec![payload], tail: Vec::new(), lend: None };
        assert!(poll_once(send(&*connection, op)).is_none(), "64 KiB buffers cannot take 2 MiB");
        let (result, op) = std::future::poll_fn(|cx| connection.poll_send(cx)).await;
        result.expect("sent");
        assert_eq!(op.len(), 2 * MIB);
    });
    assert!(reader.join().expect("reader") == bytes);
}

on_every_engine!(a_second_receive_is_refused, panics with "a receive is outstanding");
fn a_second_receive_is_refused(fixture: Fixture) {
    let Fixture { reactor: _reactor, engine, .. } = fixture;
    let (connection, _peer) = pair(&engine);
    connection.start_recv(small(8), 0, 8);
    connection.start_recv(small(8), 0, 8);
}

on_every_engine!(shutdown_ends_what_is_outstanding);
fn shutdown_ends_what_is_outstanding(fixture: Fixture) {
    let Fixture { mut reactor, engine, pool } = fixture;
    let (ours, theirs) = sockets(Some(64 << 10));
    let connection = attach(&engine, ours);
    let payload = frozen(&pool, &pattern(4 * MIB, 6));
    reactor.block_on(async move {
        let op = SendOp { head: Vec::new(), payload: vec![payload], tail: Vec::new(), lend: None };
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

on_every_engine!(dropping_a_connection_closes_it_whatever_is_outstanding);
fn dropping_a_connection_closes_it_whatever_is_outstanding(fixture: Fixture) {
    let Fixture { mut reactor, engine, .. } = fixture;
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

on_every_engine!(a_peer_that_is_gone_keeps_nobody_busy);
fn a_peer_that_is_gone_keeps_nobody_busy(fixture: Fixture) {
    let Fixture { mut reactor, engine, .. } = fixture;
    let (half, peer) = pair(&engine);
    peer.shutdown(Shutdown::Write).expect("half-close");
    let (broken, theirs) = pair(&engine);
    // Closing with a linger time of 0 sends a reset (RFC 9293, ABORT).
    socket2::SockRef::from(&theirs).set_linger(Some(Duration::ZERO)).expect("linger");
    drop(theirs);
    // What is never received stays to be told, but once.
    let began = Instant::now();
    let mut idle = 0;
    while idle < 1000 {
        idle = if reactor.step().is_busy() { 0 } else { idle + 1 };
        assert!(began.elapsed() < Duration::from_secs(30), "the same is told over and over");
    }
    drop((half, broken));
}
