//! Many connections on one reactor, and how they come to be.

use super::*;

on_every_engine!(many_connections_are_served_side_by_side);
fn many_connections_are_served_side_by_side(fixture: Fixture) {
    const CONNECTIONS: usize = 100;
    const ROUNDS: usize = 20;
    let Fixture { mut reactor, engine, .. } = fixture;
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
pub(super) async fn echo(connection: Rc<dyn Connection>) -> usize {
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

on_every_engine!(a_flood_does_not_starve_a_quiet_connection);
fn a_flood_does_not_starve_a_quiet_connection(fixture: Fixture) {
    let Fixture { mut reactor, engine, pool } = fixture;
    let local = reactor.local();
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

on_every_engine!(a_visit_in_company_moves_a_quantum_and_alone_the_whole_rest);
fn a_visit_in_company_moves_a_quantum_and_alone_the_whole_rest(fixture: Fixture) {
    let Fixture { mut reactor, engine, pool } = fixture;
    let local = reactor.local();
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
        let until = Instant::now() + Duration::from_secs(30);
        while Instant::now() < until {
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

on_every_engine!(a_small_message_waits_for_no_more_bulk_than_one_round_moves);
fn a_small_message_waits_for_no_more_bulk_than_one_round_moves(fixture: Fixture) {
    const MANY: usize = 32;
    const LEN: usize = 256 << 10;
    let Fixture { mut reactor, engine, pool } = fixture;
    let local = reactor.local();
    // All of the bulk is there: nothing but the engine's rounds holds any of it up.
    let full = || {
        let (ours, mut theirs) = sockets(Some(2 << 20));
        theirs.write_all(&vec![7; LEN]).expect("the buffers hold it");
        let mut seen = vec![0; LEN];
        while ours.peek(&mut seen).expect("peek") < LEN {
            thread::yield_now();
        }
        (attach(&engine, ours), theirs)
    };
    let (bulk, _peers): (Vec<_>, Vec<_>) = (0..MANY).map(|_| full()).unzip();
    let (ours, mut asking) = sockets(None);
    asking.write_all(b"ping").expect("write");
    let mut seen = [0; 4];
    while ours.peek(&mut seen).expect("peek") < seen.len() {
        thread::yield_now();
    }
    let quiet = attach(&engine, ours);
    reactor.block_on(async move {
        for connection in &bulk {
            let buf = pool.allocate(Class::Receive, LEN).expect("memory");
            connection.start_recv(RecvBuf::Dma(buf), 0, LEN);
        }
        quiet.start_recv(small(4096), 0, 4);
        let ended = |connection: &Rc<dyn Connection>| {
            poll_once(poll_fn(|cx| connection.poll_recv(cx))).is_some()
        };
        let mut left = bulk;
        let mut took = None;
        for round in 0..10 * MANY {
            let before = left.len();
            left.retain(|connection| !ended(connection));
            assert!(before - left.len() <= QUANTUM / LEN, "bulk of more than a round in one");
            if took.is_none() && ended(&quiet) {
                took = Some(round);
                assert!(left.len() > MANY / 2, "it waited for most of the bulk");
            }
            if left.is_empty() {
                break;
            }
            rounds(&local, 1).await;
        }
        assert!(left.is_empty() && took.is_some(), "{} left, {took:?}", left.len());
    });
}

on_every_engine!(an_accepted_connection_survives_a_dropped_accept);
fn an_accepted_connection_survives_a_dropped_accept(fixture: Fixture) {
    let Fixture { mut reactor, engine: _engine, .. } = fixture;
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
fn an_address_is_waited_for_until_whoever_has_it_is_gone() {
    let held = Listener::bind("127.0.0.1:0").expect("bind");
    let address = held.local_addr();
    let waiting =
        thread::spawn(move || Listener::bind_within(address, Duration::from_secs(60)).is_ok());
    // The other one has been refused by the time that this has.
    let refused = Listener::bind_within(address, Duration::from_millis(200));
    assert!(matches!(refused, Err(NetError::Os(e)) if e.kind() == io::ErrorKind::AddrInUse));
    assert!(!waiting.is_finished(), "it is still held");
    drop(held);
    assert!(waiting.join().expect("no panic"), "it is free");
}
