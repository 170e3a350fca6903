//! Reactors that sleep between two messages, and what wakes them.

use std::sync::atomic::Ordering::Relaxed;

use memkv_poller::StopFlag;

use super::company::echo;
use super::*;

const ROUND_TRIPS: usize = 5_000;

/// Sends byte after byte, each when the answer to the last has come. An answer that does not come is an
/// error after a while, not a test that hangs.
fn exchange(peer: &mut TcpStream) {
    peer.set_nodelay(true).expect("no delay");
    peer.set_read_timeout(Some(Duration::from_secs(30))).expect("timeout");
    for round in 0..ROUND_TRIPS {
        peer.write_all(&[round as u8]).expect("write");
        let mut answer = [0];
        peer.read_exact(&mut answer).unwrap_or_else(|error| panic!("round {round}: {error}"));
        assert_eq!(answer, [round as u8]);
    }
}

on_every_engine!(a_byte_wakes_a_reactor_that_sleeps);
fn a_byte_wakes_a_reactor_that_sleeps(fixture: Fixture) {
    let Fixture { mut reactor, engine, .. } = fixture;
    let (connection, mut peer) = pair(&engine);
    let pinger = thread::spawn(move || exchange(&mut peer));
    let echoed = reactor.block_on(async move { echo(connection).await });
    pinger.join().expect("pinger");
    assert_eq!(echoed, ROUND_TRIPS);
    assert!(reactor.stats().sleeps.load(Relaxed) > 0, "it slept in between");
}

on_every_engine!(a_byte_wakes_a_reactor_that_waits_awake_for_a_while_first);
fn a_byte_wakes_a_reactor_that_waits_awake_for_a_while_first(fixture: Fixture) {
    let Fixture { mut reactor, engine, .. } = fixture;
    let (ours, mut peer) = sockets(None);
    // As if from another machine: there nobody's core is in question, and the reactor waits awake.
    let connection = attach_as_distant(&engine, ours);
    let stop = StopFlag::new();
    let pinger = thread::spawn(move || exchange(&mut peer));
    let (stats, flag) = (reactor.stats(), stop.clone());
    reactor.local().spawn(async move {
        assert_eq!(echo(connection).await, ROUND_TRIPS);
        flag.stop();
    });
    reactor.run(&stop);
    pinger.join().expect("pinger");
    assert!(stats.polls.load(Relaxed) >= ROUND_TRIPS as u64);
}

on_every_engine!(a_byte_is_heard_behind_the_ends_of_many_connections);
fn a_byte_is_heard_behind_the_ends_of_many_connections(fixture: Fixture) {
    const MANY: usize = 220;
    let Fixture { mut reactor, engine, .. } = fixture;
    let (connection, mut peer) = pair(&engine);
    // Their peers are gone already.
    let others: Vec<_> = (0..MANY).map(|_| pair(&engine).0).collect();
    connection.start_recv(small(1), 0, 1);
    while reactor.step().is_busy() {}
    // What an engine is told of closed sockets fills several of its looks, and stands before the byte.
    drop(others);
    peer.write_all(b"!").expect("write");
    let heard = reactor.block_on({
        let (connection, local) = (connection.clone(), reactor.local());
        async move {
            let wait = poll_fn(|cx| connection.poll_recv(cx));
            timeout(&local, local.now() + Duration::from_secs(30), pin!(wait)).await
        }
    });
    let (count, buf) = heard.expect("the byte is told before the deadline");
    assert_eq!((count.expect("received"), buf.as_slice()), (1, b"!".as_slice()));
}
