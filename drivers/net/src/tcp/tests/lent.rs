//! Payload that is lent: what arrives, whose memory it is, and when a peer is known to be gone.

use super::*;

/// A send of these pieces that may lend them.
fn lending(head: &[u8], payload: Vec<DmaRef>, tail: &[u8]) -> SendOp {
    SendOp { head: head.to_vec(), payload, tail: tail.to_vec(), lend: Some(64 << 10) }
}

on_every_engine!(lent_and_copied_pieces_go_out_in_order);
fn lent_and_copied_pieces_go_out_in_order(fixture: Fixture) {
    let Fixture { mut reactor, engine, pool } = fixture;
    let (ours, mut theirs) = sockets(Some(64 << 10));
    let connection = attach(&engine, ours);
    assert!(connection.lends());
    let sizes = [3 * MIB + 1, 5, 200 << 10, 64 << 10, (64 << 10) - 1, 4 * MIB, 1];
    let total: usize = sizes.iter().sum();
    let bytes = pattern(100 + total, 9);
    let mut at = 100;
    let mut payload = Vec::new();
    for len in sizes {
        payload.push(frozen(&pool, &bytes[at..at + len]));
        at += len;
    }
    let reader = thread::spawn(move || {
        let mut all = Vec::new();
        theirs.read_to_end(&mut all).expect("read");
        all
    });
    // With pieces in front and behind, with none, and with the smallest part of a page last.
    let expected = [&bytes[..], &bytes[100..], &bytes[..], b"end"].concat();
    let copies = |pieces: &[DmaRef]| pieces.to_vec();
    reactor.block_on(async move {
        for op in [
            lending(&bytes[..100], copies(&payload), b""),
            lending(b"", copies(&payload), b""),
            lending(&bytes[..100], copies(&payload), b"end"),
        ] {
            let (result, back) = send(&*connection, op).await;
            result.expect("sent");
            assert!(back.lend.is_some() && back.payload.len() == sizes.len());
        }
        connection.shutdown();
    });
    assert!(reader.join().expect("reader") == expected);
}

on_every_engine!(every_last_packet_goes_at_once);
fn every_last_packet_goes_at_once(fixture: Fixture) {
    let Fixture { mut reactor, engine, pool } = fixture;
    let (connection, mut theirs) = pair(&engine);
    // A packet that is held back goes 200 ms later: so many would take longer than the test may.
    const ROUNDS: usize = 200;
    let sizes = [MIB + 1, 64 << 10, 2 * MIB + 4097];
    let echo = thread::spawn(move || {
        for round in 0..ROUNDS {
            theirs.read_exact(&mut vec![0; sizes[round % 3]]).expect("a value");
            theirs.write_all(b"!").expect("an answer");
        }
    });
    let values = sizes.map(|len| frozen(&pool, &pattern(len, len)));
    let began = Instant::now();
    reactor.block_on(async move {
        for round in 0..ROUNDS {
            let value = values[round % 3].clone();
            send(&*connection, lending(b"", vec![value], b"")).await.0.expect("sent");
            let (got, _) = recv(&*connection, small(1), 0, 1).await;
            assert_eq!(got.expect("an answer"), 1);
        }
    });
    echo.join().expect("echo");
    assert!(began.elapsed() < Duration::from_millis(200) * ROUNDS as u32 / 2);
}

on_every_engine!(many_streams_that_lend_at_once_do_not_mix);
fn many_streams_that_lend_at_once_do_not_mix(fixture: Fixture) {
    const STREAMS: usize = 8;
    let Fixture { mut reactor, engine, pool } = fixture;
    let local = reactor.local();
    let mut readers = Vec::new();
    let mut sends = Vec::new();
    for at in 0..STREAMS {
        let (ours, mut theirs) = sockets(Some((16 + 16 * at) << 10));
        let connection = attach(&engine, ours);
        let bytes = pattern(2 * MIB + 4096 * at, at);
        let op = lending(&[at as u8; 7], vec![frozen(&pool, &bytes)], &[at as u8; 9]);
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

/// Sends a value, and changes the memory when the carrier is done with it: what the peer reads then.
fn read_late(fixture: Fixture, lend: Option<usize>) -> (Vec<u8>, Vec<u8>, Vec<u8>) {
    let Fixture { mut reactor, engine, pool } = fixture;
    let (connection, mut theirs) = pair(&engine);
    // Little enough to fit into the socket while nobody reads.
    let (before, after) = (pattern(128 << 10, 1), pattern(128 << 10, 2));
    let value = frozen(&pool, &before);
    let place = value.as_ptr().cast_mut();
    let sender = connection.clone();
    reactor.block_on(async move {
        let connection = sender;
        let op = SendOp { payload: vec![value], lend, ..SendOp::default() };
        send(&*connection, op).await.0.expect("sent");
        connection.shutdown();
    });
    drop(connection);
    // The handle is gone, so the memory can be had again: as whose it is now.
    // SAFETY: the pool holds the mapping, its run is free, and nobody else uses the pool.
    unsafe { std::ptr::copy_nonoverlapping(after.as_ptr(), place, after.len()) };
    let mut read = Vec::new();
    theirs.read_to_end(&mut read).expect("read");
    (before, after, read)
}

on_every_engine!(a_copy_is_the_peers_own);
fn a_copy_is_the_peers_own(fixture: Fixture) {
    let (before, _, read) = read_late(fixture, None);
    assert!(read == before);
}

on_every_engine!(what_is_lent_is_read_from_our_memory_also_when_we_have_closed);
fn what_is_lent_is_read_from_our_memory_also_when_we_have_closed(fixture: Fixture) {
    let (_, after, read) = read_late(fixture, Some(1));
    assert!(read == after, "then there is nothing that lenders need to heed");
}

on_every_engine!(a_peer_that_closed_is_known_to_be_gone_and_no_other);
fn a_peer_that_closed_is_known_to_be_gone_and_no_other(fixture: Fixture) {
    let Fixture { mut reactor, engine, pool } = fixture;
    let value = frozen(&pool, &pattern(128 << 10, 3));
    let op = move || lending(b"", vec![value.clone()], b"");
    reactor.block_on(async move {
        // It has not read what it got: its system answers with a reset, at once.
        let (connection, theirs) = pair(&engine);
        send(&*connection, op()).await.0.expect("sent");
        assert!(!connection.is_peer_gone());
        drop(theirs);
        let (result, _) = recv(&*connection, small(1), 0, 1).await;
        assert!(matches!(result, Err(NetError::Reset)), "{result:?}");
        assert!(connection.is_peer_gone());
        connection.shutdown();
        assert!(connection.is_peer_gone(), "it was before");

        // It has read all: that it is gone shows when something more is sent.
        let (connection, mut theirs) = pair(&engine);
        send(&*connection, op()).await.0.expect("sent");
        theirs.read_exact(&mut vec![0; 128 << 10]).expect("read");
        drop(theirs);
        let (result, _) = recv(&*connection, small(1), 0, 1).await;
        assert_eq!(result.expect("the end"), 0);
        assert!(!connection.is_peer_gone(), "it could be one that only sends no more");
        let _ = send(&*connection, SendOp::head(b"?".to_vec())).await;
        assert!(connection.is_peer_gone());

        // It sends no more, but reads on.
        let (connection, mut theirs) = pair(&engine);
        send(&*connection, op()).await.0.expect("sent");
        theirs.shutdown(Shutdown::Write).expect("shutdown");
        let (result, _) = recv(&*connection, small(1), 0, 1).await;
        assert_eq!(result.expect("the end"), 0);
        send(&*connection, SendOp::head(b"?".to_vec())).await.0.expect("sent");
        assert!(!connection.is_peer_gone());
        theirs.read_exact(&mut vec![0; (128 << 10) + 1]).expect("read on");

        // We have closed: what the peer does then is not known any more.
        let (connection, theirs) = pair(&engine);
        send(&*connection, op()).await.0.expect("sent");
        connection.shutdown();
        assert!(!connection.is_peer_gone());
        drop(theirs);
        assert!(!connection.is_peer_gone());
    });
}

on_every_engine!(to_another_machine_nothing_is_lent);
fn to_another_machine_nothing_is_lent(fixture: Fixture) {
    let Fixture { mut reactor, engine, pool } = fixture;
    let (ours, mut theirs) = sockets(None);
    let connection = attach_as_distant(&engine, ours);
    assert!(!connection.lends() && !connection.is_peer_gone());
    let bytes = pattern(MIB, 4);
    let value = frozen(&pool, &bytes);
    let reader = thread::spawn(move || {
        let mut all = vec![0; MIB];
        theirs.read_exact(&mut all).expect("read");
        all
    });
    reactor.block_on(async move {
        send(&*connection, lending(b"", vec![value], b"")).await.0.expect("sent as copies");
    });
    assert!(reader.join().expect("reader") == bytes);
}
