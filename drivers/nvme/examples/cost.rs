//! The path of data of one queue, to be counted: reads of 4 KiB from the software controller, which
//! is stepped outside of what is counted.
//!
//! ```text
//! cargo build --release -p memkv-nvme --features model --example cost
//! valgrind --tool=callgrind --collect-atstart=no --toggle-collect='cost::ask' target/release/examples/cost 32
//! ```
//!
//! What is counted is what one names: `cost::ask` is the asking, from the call of the store to its
//! first await; `*NvmePoller*Poller>::poll` the reaping, from the drive's answer to the wake-up of who
//! asked; `cost::pass` the reactor's pass around that; `cost::take` what an awakened asker does to have the
//! bytes. The rounds are the second argument, 1000 unless told, and the bytes of a read the third, 4096 unless
//! told. With `WATCHED` in the environment the drive is watched, as the store's are.
//!
//! The program's own among what is counted are the frame of `cost::ask`, and the two functions of the
//! [waker](Nobody) that a reactor would have others for.

use std::hint::black_box;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use memkv_block::{BlockDevice, BlockQueue, Completion, Io, IoBuf, watch};
use memkv_dma::{Class, DmaBuf, Hugepages, Pool, PoolConfig};
use memkv_nvme::model::{ModelClock, ModelConfig, ModelLink};
use memkv_nvme::{Options, open};
use memkv_poller::{Reactor, ReactorConfig, Rng, SystemClock};

/// Whom the driver wakes.
struct Nobody;

impl Wake for Nobody {
    fn wake(self: Arc<Self>) {}
}

#[inline(never)]
fn ask(queue: &dyn BlockQueue, io: Io, context: &mut Context<'_>) -> Completion {
    let mut completion = queue.submit(io);
    assert!(Pin::new(&mut completion).poll(context).is_pending());
    completion
}

#[inline(never)]
fn pass(reactor: &mut Reactor) -> bool {
    reactor.step().is_busy()
}

#[inline(never)]
fn take(mut completion: Completion, context: &mut Context<'_>) -> Option<DmaBuf> {
    let Poll::Ready(done) = Pin::new(&mut completion).poll(context) else { panic!("not done") };
    assert!(done.result.is_ok());
    done.buf.and_then(IoBuf::into_exclusive)
}

fn main() {
    let mut arguments = std::env::args().skip(1).map(|word| word.parse().expect("a number"));
    let crowd: usize = arguments.next().unwrap_or(1);
    let rounds: usize = arguments.next().unwrap_or(1000);
    let bytes: usize = arguments.next().unwrap_or(4096);
    let watched = std::env::var_os("WATCHED").is_some();
    let config = PoolConfig { size: 32 << 20, chunk: 2 << 20, hugepages: Hugepages::Never };
    let pool = Pool::new(config).expect("memory");
    let clock = ModelClock::default();
    let (link, model) = ModelLink::by_hand(ModelConfig::new(16 << 20), clock);
    let options = Options { hugepages: Hugepages::Never, ..Options::new(1) };
    let mut device: Arc<dyn BlockDevice> =
        open(link, &pool, Arc::new(SystemClock), options).expect("a model comes up");
    if watched {
        device = watch(device, Duration::from_secs(10));
    }
    let reactor = ReactorConfig::default();
    let mut reactor = Reactor::new(reactor, Rc::new(SystemClock), Rng::seeded(1));
    let queue = device.open_queue(&reactor.local()).expect("a queue");
    let waker = Waker::from(Arc::new(Nobody));
    let mut context = Context::from_waker(&waker);
    let buffer = |_| pool.allocate(Class::Receive, bytes).expect("a buffer");
    let mut buffers: Vec<DmaBuf> = (0..crowd).map(buffer).collect();
    let mut ends = Vec::with_capacity(crowd);
    for _ in 0..rounds {
        for n in 0..crowd {
            let io = Io::read((n * bytes) as u64, bytes, buffers.pop().expect("one each"));
            ends.push(ask(black_box(&*queue), io, &mut context));
        }
        if crowd > 1 {
            // Tells the drive of all but the first.
            pass(&mut reactor);
        }
        while model.lock().step() {}
        while queue.outstanding() > 0 {
            pass(&mut reactor);
        }
        buffers.extend(ends.drain(..).filter_map(|end| take(end, &mut context)));
    }
    println!("{:?}", device.stats());
}
