//! What is sent and received, and in which order.

use super::*;

on_every_engine!(large_values_cross_tiny_socket_buffers_both_ways_at_once);
fn large_values_cross_tiny_socket_buffers_both_ways_at_once(fixture: Fixture) {
    let Fixture { mut reactor, engine, pool } = fixture;
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
        lend: None,
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

on_every_engine!(a_receive_is_done_at_its_minimum_and_leaves_the_rest_of_the_buffer_alone);
fn a_receive_is_done_at_its_minimum_and_leaves_the_rest_of_the_buffer_alone(fixture: Fixture) {
    let Fixture { mut reactor, engine, .. } = fixture;
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
on_every_engine!(a_large_receive_sleeps_until_enough_is_there);
#[cfg(target_os = "linux")]
fn a_large_receive_sleeps_until_enough_is_there(fixture: Fixture) {
    let Fixture { mut reactor, engine, .. } = fixture;
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

on_every_engine!(bytes_that_are_too_few_are_told_when_less_is_waited_for);
fn bytes_that_are_too_few_are_told_when_less_is_waited_for(fixture: Fixture) {
    let Fixture { mut reactor, engine, .. } = fixture;
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

on_every_engine!(inline_payload_is_pulled_and_pushed_and_remote_payload_is_refused);
fn inline_payload_is_pulled_and_pushed_and_remote_payload_is_refused(fixture: Fixture) {
    let Fixture { mut reactor, engine, pool } = fixture;
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

on_every_engine!(a_send_of_many_small_pieces_keeps_their_order);
fn a_send_of_many_small_pieces_keeps_their_order(fixture: Fixture) {
    let Fixture { mut reactor, engine, pool } = fixture;
    let (connection, mut peer) = pair(&engine);
    let bytes = pattern(300 * 100, 8);
    let payload: Vec<_> = bytes.chunks(100).map(|piece| frozen(&pool, piece)).collect();
    reactor.block_on(async move {
        let (sent, _) =
            send(&*connection, SendOp { head: Vec::new(), payload, tail: Vec::new(), lend: None })
                .await;
        sent.expect("sent");
        let (sent, _) = send(&*connection, SendOp::default()).await;
        sent.expect("nothing to send is sent at once");
    });
    let mut got = vec![0; bytes.len()];
    peer.read_exact(&mut got).expect("read");
    assert!(got == bytes);
}
