//! Payload from memory that the engine knows, beside such that it does not.

use super::*;

/// Whether payload of this pool goes by the engine's own way; says so if it should and cannot.
fn is_known(engine: &Engine, piece: &DmaRef) -> bool {
    let known = engine.knows(piece.as_slice());
    if !known && engine.reason().contains("io_uring") && !engine.reason().starts_with("epoll") {
        skip("the pool is not registered with the ring: raise RLIMIT_MEMLOCK");
    }
    known
}

on_every_engine!(known_and_unknown_memory_go_out_in_order);
fn known_and_unknown_memory_go_out_in_order(fixture: Fixture) {
    let Fixture { mut reactor, engine, pool: known } = fixture;
    let unknown = super::pool();
    let (ours, mut theirs) = sockets(Some(64 << 10));
    let connection = attach(&engine, ours);
    let sizes = [
        (&known, 3 * MIB + 1),
        (&unknown, MIB + 3),
        (&known, 200 << 10),
        (&known, 5 << 10),
        (&unknown, 77),
        (&known, 128 << 10),
        (&known, (128 << 10) - 1),
        (&known, 4 * MIB),
    ];
    let total: usize = sizes.iter().map(|(_, len)| len).sum();
    let bytes = pattern(100 + total + 13, 9);
    let reader = thread::spawn(move || {
        let mut all = Vec::new();
        theirs.read_to_end(&mut all).expect("read");
        all
    });
    let mut at = 100;
    let mut payload = Vec::new();
    for (pool, len) in sizes {
        payload.push(frozen(pool, &bytes[at..at + len]));
        at += len;
    }
    assert!(!engine.knows(payload[1].as_slice()), "memory that nobody registered");
    assert!(is_known(&engine, &payload[0]) == engine.knows(payload[7].as_slice()));
    // Twice: what is left of one send is not in the way of the next.
    let expected = [&bytes[..], &bytes[..]].concat();
    reactor.block_on(async move {
        let mut op =
            SendOp { head: bytes[..100].to_vec(), payload, tail: bytes[at..].to_vec(), lend: None };
        for _ in 0..2 {
            let (result, back) = send(&*connection, op).await;
            result.expect("sent");
            op = back;
        }
        connection.shutdown();
    });
    assert!(reader.join().expect("reader") == expected);
}

on_every_engine!(many_streams_at_once_do_not_mix);
fn many_streams_at_once_do_not_mix(fixture: Fixture) {
    const STREAMS: usize = 8;
    let Fixture { mut reactor, engine, pool } = fixture;
    let local = reactor.local();
    let mut readers = Vec::new();
    let mut sends = Vec::new();
    for at in 0..STREAMS {
        let (ours, mut theirs) = sockets(Some((16 + 16 * at) << 10));
        let connection = attach(&engine, ours);
        let bytes = pattern(2 * MIB + 4096 * at, at);
        let op = SendOp {
            head: vec![at as u8; 7],
            payload: vec![frozen(&pool, &bytes)],
            tail: vec![at as u8; 9],
            lend: None,
        };
        sends.push(async move { send(&*connection, op).await.0 });
        readers.push(thread::spawn(move || {
            let mut all = Vec::new();
            theirs.read_to_end(&mut all).expect("read");
            let expected = [&[at as u8; 7][..], &bytes, &[at as u8; 9]].concat();
            assert!(all == expected, "stream {at}");
        }));
    }
    reactor.block_on(async move {
        let sends: Vec<_> = sends.into_iter().map(|send| local.spawn_join(send)).collect();
        for send in sends {
            send.await.expect("sent");
        }
    });
    readers.into_iter().for_each(|reader| reader.join().expect("reader"));
}

on_every_engine!(a_reset_during_a_send_of_known_memory_is_an_error);
fn a_reset_during_a_send_of_known_memory_is_an_error(fixture: Fixture) {
    let Fixture { mut reactor, engine, pool } = fixture;
    let (ours, mut theirs) = sockets(Some(64 << 10));
    let connection = attach(&engine, ours);
    let payload = frozen(&pool, &pattern(4 * MIB, 10));
    is_known(&engine, &payload);
    let reader = thread::spawn(move || {
        // Some of it, so that the send has been resumed before it breaks.
        theirs.read_exact(&mut vec![0; MIB]).expect("read");
        socket2::SockRef::from(&theirs).set_linger(Some(Duration::ZERO)).expect("linger");
    });
    reactor.block_on(async move {
        let op =
            SendOp { head: Vec::new(), payload: vec![payload; 3], tail: Vec::new(), lend: None };
        let (result, mut op) = send(&*connection, op).await;
        assert!(matches!(result, Err(NetError::Reset | NetError::Closed)), "{result:?}");
        assert_eq!(op.len(), 12 * MIB);
        // A process that does not ignore SIGPIPE would end at one of these.
        for _ in 0..3 {
            let (result, back) = send(&*connection, op).await;
            assert!(matches!(result, Err(NetError::Reset | NetError::Closed)), "{result:?}");
            op = back;
        }
    });
    reader.join().expect("reader");
}

on_every_engine!(a_connection_dropped_during_a_send_of_known_memory_is_closed);
fn a_connection_dropped_during_a_send_of_known_memory_is_closed(fixture: Fixture) {
    let Fixture { mut reactor, engine, pool } = fixture;
    let (ours, mut theirs) = sockets(Some(64 << 10));
    let connection = attach(&engine, ours);
    let bytes = pattern(4 * MIB, 11);
    let op = SendOp { payload: vec![frozen(&pool, &bytes)], ..SendOp::default() };
    connection.start_send(op);
    while reactor.step().is_busy() {}
    drop(connection);
    // The memory is free again, whoever reads what.
    let used = pool.stats();
    drop(frozen(&pool, &pattern(4 * MIB, 12)));
    let mut all = Vec::new();
    theirs.read_to_end(&mut all).expect("what was sent, and the end");
    assert!(!all.is_empty() && all.len() < bytes.len() && all == bytes[..all.len()]);
    assert_eq!(format!("{:?}", pool.stats()), format!("{used:?}"));
}
