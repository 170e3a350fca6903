//! What tests that need a process of their own have in common.

use std::future::Future;
use std::io::{self, Write};
use std::net::TcpStream;
use std::rc::Rc;

use memkv_dma::{Hugepages, Memory, Pool, PoolConfig};
use memkv_net::Connection;
use memkv_net::tcp::{Acceptor, Driver, Engine, Listener};
use memkv_poller::{Reactor, ReactorConfig, Rng, SystemClock};

/// The engines of this system; says which one is left out.
pub fn drivers() -> Vec<Driver> {
    let reactor = Reactor::new(ReactorConfig::default(), Rc::new(SystemClock), Rng::seeded(1));
    let mut drivers = vec![Driver::Epoll];
    if cfg!(target_os = "linux") {
        match Engine::new(&reactor.local(), Driver::Uring, &[]) {
            Ok(_) => drivers.push(Driver::Uring),
            Err(error) => {
                writeln!(io::stderr(), "SKIPPED io_uring: not to be had here: {error:?}")
                    .expect("stderr");
            }
        }
    }
    drivers
}

/// A reactor that accepts, with an engine that knows a pool.
pub struct Node {
    pub reactor: Reactor,
    pub engine: Rc<Engine>,
    pub pool: Pool,
    listener: Listener,
    acceptor: Rc<Acceptor>,
}

impl Node {
    pub fn new(driver: Driver) -> Node {
        let config = PoolConfig { size: 16 << 20, chunk: 2 << 20, hugepages: Hugepages::Never };
        let pool = Pool::new(config).expect("a pool");
        let reactor = Reactor::new(ReactorConfig::default(), Rc::new(SystemClock), Rng::seeded(1));
        let memory = [Memory::Pool(pool.clone())];
        let engine = Engine::new(&reactor.local(), driver, &memory).expect("an engine");
        let listener = Listener::bind("127.0.0.1:0").expect("bind");
        let acceptor = listener.accept_queue(&reactor.local());
        Node { reactor, engine, pool, listener, acceptor }
    }

    /// A connection and its other end.
    pub fn pair(&mut self) -> (Rc<dyn Connection>, TcpStream) {
        let peer = TcpStream::connect(self.listener.local_addr()).expect("connect");
        let acceptor = self.acceptor.clone();
        let accepted = self.run(async move { acceptor.accept().await }).expect("accept");
        (self.engine.attach(accepted).expect("attach"), peer)
    }

    pub fn run<T: 'static>(&mut self, future: impl Future<Output = T> + 'static) -> T {
        self.reactor.block_on(future)
    }
}
