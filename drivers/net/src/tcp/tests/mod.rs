//! Connections of a reactor over the loopback interface. Peers are plain std sockets on threads, so that
//! what is tested here is met by code that is not ours.

use std::future::{Future, poll_fn};
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use memkv_dma::{Class, DmaRef, Hugepages, Memory, Pool, PoolConfig};
use memkv_poller::{Local, Reactor, ReactorConfig, Rng, SystemClock, timeout};
use socket2::Socket;

use super::connection::QUANTUM;
use super::{Accepted, Driver, Engine, Listener};
use crate::{
    Connection, NetError, PayloadRef, RecvBuf, RemoteSpan, SendOp, pull, push, recv, send,
};

const MIB: usize = 1 << 20;

/// A reactor with an engine that knows a pool.
struct Fixture {
    reactor: Reactor,
    engine: Rc<Engine>,
    pool: Pool,
}

impl Fixture {
    /// `None`, and a line for whoever runs the tests: this system does not let us use io_uring.
    fn new(driver: Driver) -> Option<Fixture> {
        let reactor = Reactor::new(ReactorConfig::default(), Rc::new(SystemClock), Rng::seeded(1));
        let pool = pool();
        match Engine::new(&reactor.local(), driver, &[Memory::Pool(pool.clone())]) {
            Ok(engine) => Some(Fixture { reactor, engine, pool }),
            Err(NetError::Os(error)) if driver == Driver::Uring && is_refusal(&error) => {
                skip(&format!("io_uring is not to be had here: {error}"));
                None
            }
            Err(error) => panic!("no engine: {error:?}"),
        }
    }
}

/// The kernel is built without it or too old, or a policy forbids it.
fn is_refusal(error: &io::Error) -> bool {
    let refusals = [libc::ENOSYS, libc::EPERM, libc::EACCES, libc::EINVAL];
    error.kind() == io::ErrorKind::Unsupported
        || error.raw_os_error().is_some_and(|code| refusals.contains(&code))
}

/// Says, past the harness that keeps what tests print to itself, what was not tested.
fn skip(reason: &str) {
    let thread = thread::current();
    let test = thread.name().unwrap_or("a test");
    writeln!(io::stderr(), "SKIPPED {test}: {reason}").expect("stderr");
}

/// Makes a test of a function that takes a [`Fixture`], once for each engine of the system.
macro_rules! on_every_engine {
    ($name:ident $(, panics with $text:literal)?) => {
        mod $name {
            use super::super::{Driver, Fixture};

            #[test]
            $(#[should_panic(expected = $text)])?
            fn epoll() {
                super::$name(Fixture::new(Driver::Epoll).expect("every system has it"));
            }

            #[cfg(target_os = "linux")]
            #[test]
            $(#[should_panic(expected = $text)])?
            fn uring() {
                match Fixture::new(Driver::Uring) {
                    Some(fixture) => super::$name(fixture),
                    // Skipped, which is to pass.
                    None => { $(panic!($text))? }
                }
            }
        }
    };
}

mod bytes;
mod company;
mod ends;
mod known;
#[cfg(target_os = "linux")]
mod lent;
mod waking;

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
    engine.attach(Accepted { socket: Socket::from(stream), peer, replaced: None }).expect("attach")
}

/// As if the peer were on another machine.
fn attach_as_distant(engine: &Rc<Engine>, stream: TcpStream) -> Rc<dyn Connection> {
    let peer = SocketAddr::from(([192, 0, 2, 1], 1));
    let connection = engine
        .attach(Accepted { socket: Socket::from(stream), peer, replaced: None })
        .expect("attach");
    assert!(!connection.is_loopback());
    connection
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
