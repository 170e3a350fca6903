//! Tests of the simulated network, from both ends.

use super::*;

struct Fixture {
    net: SimNet,
    clock: SimClock,
}

fn fixture(change: impl FnOnce(&mut NetOptions)) -> Fixture {
    let clock = SimClock::new(0);
    let mut options = NetOptions::new(11);
    change(&mut options);
    Fixture { net: SimNet::new(options, clock.clone()), clock }
}

impl Fixture {
    /// Delivers everything, in time.
    fn settle(&self) {
        while let Some(at) = self.net.next() {
            self.clock.set(at.max(self.clock.now()));
            self.net.deliver(1);
        }
    }
}

fn poll_recv(server: &dyn Connection) -> Poll<(Result<usize, NetError>, RecvBuf)> {
    server.poll_recv(&mut Context::from_waker(Waker::noop()))
}

fn poll_send(server: &dyn Connection) -> Poll<(Result<(), NetError>, SendOp)> {
    server.poll_send(&mut Context::from_waker(Waker::noop()))
}

/// Reads `count` bytes that have arrived or arrive in time.
fn receive(fixture: &Fixture, server: &dyn Connection, count: usize) -> Vec<u8> {
    server.start_recv(RecvBuf::Small(vec![0; count]), 0, count);
    fixture.settle();
    let Poll::Ready((result, buf)) = poll_recv(server) else { panic!("still waiting") };
    assert_eq!(result.unwrap(), count);
    buf.as_slice().to_vec()
}

#[test]
fn bytes_arrive_late_in_pieces_and_in_order() {
    let fixture = fixture(|options| options.split = 500_000);
    let (client, server) = fixture.net.connect(1);
    let sent: Vec<u8> = (0..5_000u32).map(|n| (n * 7) as u8).collect();
    sent.chunks(999).for_each(|chunk| client.send(chunk));
    server.start_recv(RecvBuf::Small(vec![0; 5_000]), 0, 5_000);
    assert!(poll_recv(&*server).is_pending(), "nothing arrives without time");
    fixture.settle();
    let Poll::Ready((result, buf)) = poll_recv(&*server) else { panic!("still waiting") };
    assert_eq!(result.unwrap(), 5_000);
    assert_eq!(buf.as_slice(), sent);
    assert!(fixture.clock.now() > Instant::default());
}

#[test]
fn a_receive_is_done_at_its_minimum_and_takes_what_is_there() {
    let fixture = fixture(|options| options.split = 0);
    let (client, server) = fixture.net.connect(1);
    client.send(&[1; 100]);
    fixture.settle();
    server.start_recv(RecvBuf::Small(vec![0; 80]), 10, 20);
    let Poll::Ready((result, buf)) = poll_recv(&*server) else { panic!("still waiting") };
    assert_eq!(result.unwrap(), 70, "to the end of the buffer");
    assert_eq!(buf.as_slice()[..10], [0; 10]);
    assert_eq!(receive(&fixture, &*server, 30), [1; 30]);
}

#[test]
fn a_send_larger_than_the_window_waits_for_arrivals() {
    let fixture = fixture(|options| options.window = 100);
    let (client, server) = fixture.net.connect(5);
    let head: Vec<u8> = (0..=255).collect();
    server.start_send(SendOp {
        head: head.clone(),
        payload: Vec::new(),
        tail: vec![9; 50],
        lend: None,
    });
    assert!(poll_send(&*server).is_pending());
    fixture.settle();
    let Poll::Ready((result, op)) = poll_send(&*server) else { panic!("still sending") };
    result.unwrap();
    assert_eq!(op.head, head);
    assert_eq!(fixture.net.pop_ready(), Some(5));
    let got = client.read(|bytes| (bytes.len(), bytes.to_vec()));
    assert_eq!(got[..256], head);
    assert_eq!(got[256..], [9; 50]);
}

#[test]
fn a_client_that_stops_reading_holds_up_a_send_until_it_reads_on() {
    let fixture = fixture(|options| options.window = 100);
    let (client, server) = fixture.net.connect(5);
    client.stop_reading();
    server.start_send(SendOp {
        head: vec![7; 250],
        payload: Vec::new(),
        tail: Vec::new(),
        lend: None,
    });
    fixture.settle();
    assert!(poll_send(&*server).is_pending(), "a window is all that it may have unread");
    assert_eq!(client.read(|bytes| (0, bytes.len())), 100);
    client.read_on();
    fixture.settle();
    assert!(poll_send(&*server).is_ready());
    assert_eq!(client.read(|bytes| (bytes.len(), bytes.to_vec())), [7; 250]);
}

#[test]
fn a_lingering_send_holds_its_memory_for_a_while() {
    let fixture = fixture(|options| options.linger = 1_000_000);
    let (client, server) = fixture.net.connect(5);
    server.start_send(SendOp::head(vec![3; 50_000]));
    assert!(poll_send(&*server).is_pending());
    fixture.settle();
    assert!(poll_send(&*server).is_ready());
    assert_eq!(client.read(|bytes| (bytes.len(), bytes.len())), 50_000);
}

#[test]
fn a_client_that_closes_is_read_to_the_end() {
    let fixture = fixture(|_| ());
    let (client, server) = fixture.net.connect(1);
    client.send(b"bye");
    client.close();
    server.start_recv(RecvBuf::Small(vec![0; 10]), 0, 10);
    fixture.settle();
    let Poll::Ready((result, buf)) = poll_recv(&*server) else { panic!("still waiting") };
    assert_eq!(result.unwrap(), 3);
    assert_eq!(&buf.as_slice()[..3], b"bye");
    server.start_send(SendOp::head(b"answer".to_vec()));
    assert!(poll_send(&*server).is_ready(), "the other direction is still open");
    fixture.settle();
    assert_eq!(client.read(|bytes| (bytes.len(), bytes.to_vec())), b"answer");
}

#[test]
fn a_reset_fails_what_is_outstanding_and_loses_what_is_on_its_way() {
    let fixture = fixture(|options| options.window = 10);
    let (client, server) = fixture.net.connect(1);
    server.start_recv(RecvBuf::Small(vec![0; 10]), 0, 10);
    server.start_send(SendOp::head(vec![0; 100]));
    drop(client);
    fixture.settle();
    assert!(matches!(poll_recv(&*server), Poll::Ready((Err(NetError::Reset), _))));
    assert!(matches!(poll_send(&*server), Poll::Ready((Err(NetError::Reset), _))));
    server.start_send(SendOp::head(vec![0; 1]));
    assert!(matches!(poll_send(&*server), Poll::Ready((Err(NetError::Reset), _))));
}

#[test]
fn the_network_resets_streams_at_the_rate_asked_for() {
    let fixture = fixture(|options| (options.reset, options.split) = (1_000_000, 0));
    let (client, server) = fixture.net.connect(7);
    client.send(b"never mind");
    fixture.settle();
    assert_eq!(client.fate(), Fate::Reset);
    assert_eq!(fixture.net.resets(), 1);
    drop(server);
}

#[test]
fn a_server_that_shuts_down_is_seen_after_its_last_byte() {
    let fixture = fixture(|_| ());
    let (client, server) = fixture.net.connect(7);
    server.start_recv(RecvBuf::Small(vec![0; 10]), 0, 10);
    server.start_send(SendOp::head(b"last words".to_vec()));
    assert!(poll_send(&*server).is_ready());
    server.shutdown();
    assert!(matches!(poll_recv(&*server), Poll::Ready((Ok(0), _))));
    assert_eq!(client.fate(), Fate::Open);
    fixture.settle();
    assert_eq!(client.fate(), Fate::Closed);
    assert_eq!(client.read(|bytes| (bytes.len(), bytes.to_vec())), b"last words");
}

#[test]
fn a_cut_reaches_every_client_and_streams_are_used_again() {
    let fixture = fixture(|_| ());
    for round in 0..3 {
        let ends: Vec<_> = (0..4).map(|tag| fixture.net.connect(tag)).collect();
        assert_eq!(fixture.net.0.borrow().streams.len(), 4, "round {round}");
        let (clients, servers): (Vec<_>, Vec<_>) = ends.into_iter().unzip();
        drop(servers);
        fixture.net.cut_all();
        fixture.settle();
        let mut told: Vec<u64> = std::iter::from_fn(|| fixture.net.pop_ready()).collect();
        told.sort_unstable();
        assert_eq!(told, [0, 1, 2, 3]);
        assert!(clients.iter().all(|client| client.fate() == Fate::Reset));
    }
}
