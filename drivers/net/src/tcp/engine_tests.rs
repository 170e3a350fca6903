//! How long an engine says that it expects something, by a clock that stands still.

use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::task::Waker;
use std::time::Duration;

use memkv_poller::{Clock, Reactor, ReactorConfig, Rng};
use socket2::Socket;

use super::super::spin::SMALL;
use super::*;
use crate::{RecvBuf, SendOp};

const TICK: Duration = Duration::from_nanos(1);

/// A clock that stands still until it is told.
#[derive(Clone, Default)]
struct StillClock(Rc<Cell<Instant>>);

impl StillClock {
    fn advance(&self, by: Duration) {
        self.0.set(self.0.get() + by);
    }
}

impl Clock for StillClock {
    fn now(&self) -> Instant {
        self.0.get()
    }

    fn unix_seconds(&self) -> u64 {
        0
    }
}

/// A reactor, its engine and one connection, asked as the reactor asks.
struct Bench {
    clock: StillClock,
    reactor: Reactor,
    poller: EnginePoller,
    connection: Rc<dyn Connection>,
    peer: TcpStream,
}

impl Bench {
    fn new() -> Bench {
        let clock = StillClock::default();
        let config = ReactorConfig::default();
        let mut reactor = Reactor::new(config, Rc::new(clock.clone()), Rng::seeded(1));
        let engine = Engine::new(&reactor.local(), Driver::Auto, &[]).expect("an engine");
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let peer = TcpStream::connect(listener.local_addr().expect("address")).expect("connect");
        let (ours, _) = listener.accept().expect("accept");
        socket2::SockRef::from(&ours).set_send_buffer_size(1 << 20).expect("send buffer");
        // As if from another machine: there nobody's core is in question.
        let distant = SocketAddr::from(([192, 0, 2, 1], 1));
        let accepted = Accepted { socket: Socket::from(ours), peer: distant, replaced: None };
        let connection = engine.attach(accepted).expect("attach");
        let poller = EnginePoller { engine, local: reactor.local(), silent: false };
        while reactor.step().is_busy() {}
        Bench { clock, reactor, poller, connection, peer }
    }

    /// Time passes, and a pass that finds nothing.
    fn wait(&mut self, by: Duration) {
        self.clock.advance(by);
        assert!(!self.reactor.step().is_busy());
    }

    fn eager(&mut self) -> bool {
        self.poller.eager()
    }

    fn reply(&self, len: usize) {
        self.connection.start_send(SendOp::head(vec![1; len]));
        let mut cx = std::task::Context::from_waker(Waker::noop());
        let sent = self.connection.poll_send(&mut cx);
        assert!(matches!(sent, std::task::Poll::Ready((Ok(()), _))), "the buffers hold it");
    }
}

#[test]
fn after_a_small_reply_an_engine_is_eager_for_a_while() {
    let mut bench = Bench::new();
    assert!(!bench.eager(), "nothing is expected of a connection that is new");
    bench.reply(64);
    assert!(bench.eager());
    bench.wait(AWAKE - TICK);
    assert!(bench.eager());
    bench.wait(TICK);
    assert!(!bench.eager(), "no longer than that");
    bench.wait(TICK);
    assert!(!bench.eager(), "until the next reply");
    bench.reply(64);
    assert!(bench.eager());
}

#[test]
fn further_replies_do_not_make_the_wait_longer() {
    let mut bench = Bench::new();
    bench.reply(64);
    assert!(bench.eager());
    for _ in 0..4 {
        bench.wait(AWAKE / 5);
        bench.reply(64);
        assert!(bench.eager());
    }
    bench.wait(AWAKE / 5);
    assert!(!bench.eager());
}

#[test]
fn what_comes_ends_the_wait() {
    let mut bench = Bench::new();
    bench.connection.start_recv(RecvBuf::Small(vec![0; 8]), 0, 8);
    bench.reply(64);
    assert!(bench.eager());
    bench.peer.write_all(b"x").expect("write");
    while !bench.reactor.step().is_busy() {}
    assert!(!bench.eager());
}

#[test]
fn news_of_what_was_read_already_does_not_end_the_wait() {
    let mut bench = Bench::new();
    bench.peer.write_all(b"half").expect("write");
    while !bench.reactor.step().is_busy() {}
    // Of these the set tells when they have been read with the others.
    bench.peer.write_all(b"more").expect("write");
    bench.connection.start_recv(RecvBuf::Small(vec![0; 8]), 0, 8);
    let mut cx = std::task::Context::from_waker(Waker::noop());
    let read = bench.connection.poll_recv(&mut cx);
    assert!(matches!(read, std::task::Poll::Ready((Ok(8), _))), "both are there");
    bench.connection.start_recv(RecvBuf::Small(vec![0; 8]), 0, 8);
    bench.reply(64);
    while !bench.reactor.step().is_busy() {}
    assert!(bench.eager());
}

#[test]
fn after_a_large_message_or_before_one_nothing_is_expected() {
    let mut bench = Bench::new();
    bench.reply(SMALL);
    assert!(bench.eager(), "the largest small one");
    bench.reply(SMALL + 1);
    assert!(!bench.eager());
    bench.connection.start_recv(RecvBuf::Small(vec![0; SMALL + 1]), 0, SMALL + 1);
    bench.reply(64);
    assert!(!bench.eager(), "what comes in is large");
}

#[test]
fn waits_in_vain_come_to_rest() {
    let mut bench = Bench::new();
    // Asks as often as it takes for the account to be empty, then counts the rest.
    let mut answers = Vec::new();
    for _ in 0..200 {
        bench.reply(1);
        answers.push(bench.eager());
        bench.wait(AWAKE);
        assert!(!bench.eager());
    }
    let first_rest = answers.iter().position(|awake| !awake).expect("it rests");
    let rest = answers[first_rest..].iter().position(|&awake| awake).expect("it is tried again");
    assert_eq!((first_rest, rest), (3, 64));
}
