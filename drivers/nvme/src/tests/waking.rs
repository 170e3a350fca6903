//! Callers that are woken in the middle of a turn, and what they may do there.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use memkv_block::{BlockDevice, BlockQueue, Completion, Io, IoBuf};
use memkv_dma::DmaBuf;

use super::bench::{Bench, config, pattern};
use crate::Status;
use crate::model::{Fault, ModelConfig};

const BLOCK: usize = 4096;

/// What a chain of reads is made of: each is submitted by who is woken for the one before.
struct Chain {
    queue: Rc<dyn BlockQueue>,
    read: Option<Completion>,
    left: u64,
    failed: u64,
    /// The queue goes with the last one, in the middle of the turn.
    closes: bool,
}

thread_local! {
    static CHAIN: RefCell<Option<Chain>> = const { RefCell::new(None) };
}

struct Next;

impl Next {
    fn submit(chain: &mut Chain, buffer: DmaBuf) {
        let mut read = chain.queue.submit(Io::read(0, BLOCK, buffer));
        let waker = Waker::from(Arc::new(Next));
        let mut context = Context::from_waker(&waker);
        assert!(Pin::new(&mut read).poll(&mut context).is_pending());
        chain.read = Some(read);
    }
}

impl Wake for Next {
    fn wake(self: Arc<Next>) {
        CHAIN.with_borrow_mut(|slot| {
            let chain = slot.as_mut().expect("there is one");
            let mut read = chain.read.take().expect("it was submitted");
            let mut context = Context::from_waker(Waker::noop());
            let Poll::Ready(done) = Pin::new(&mut read).poll(&mut context) else {
                panic!("woken for what is done")
            };
            chain.failed += u64::from(done.result.is_err());
            let buffer = done.buf.and_then(IoBuf::into_exclusive).expect("it comes back");
            if chain.left > 0 {
                chain.left -= 1;
                return Next::submit(chain, buffer);
            }
            assert!(chain.failed > 0 || buffer.as_slice() == pattern(BLOCK, 5));
            if chain.closes {
                *slot = None;
            }
        });
    }
}

fn runs(config: ModelConfig, closes: bool) {
    const READS: u64 = 300;
    const FAULTS: u64 = 6;
    let mut bench = Bench::new(config);
    let write = bench.write(0, BLOCK, 5);
    bench.end(write).result.unwrap();
    let error = Status::UNRECOVERED_READ_ERROR.do_not_retry();
    let buffer = bench.buffer(BLOCK);
    let queue = bench.queue.take().expect("open");
    let mut chain = Chain { queue, read: None, left: READS - 1, failed: 0, closes };
    Next::submit(&mut chain, buffer);
    CHAIN.set(Some(chain));
    for _ in 0..FAULTS {
        (0..20).for_each(|_| bench.model.lock().fault(Fault::Nothing));
        bench.model.lock().fault(Fault::Status(error));
    }
    let stats = |bench: &Bench| (bench.device.stats().reads, bench.device.stats().failed);
    bench
        .step_until("the last read of the chain", |bench| stats(bench) == (READS - FAULTS, FAULTS));
    bench.queue = CHAIN.take().map(|chain| chain.queue);
    assert_eq!(bench.queue.is_none(), closes);
    let troubles = bench.device.troubles();
    assert_eq!((bench.pool.stats().used.iter().sum::<u64>(), troubles.resets), (0, 0));
}

#[test]
fn who_is_woken_may_submit_at_once() {
    runs(config(), false);
    runs(ModelConfig { entries: 2, ..config() }, false);
}

#[test]
fn who_is_woken_may_let_the_queue_go() {
    runs(config(), true);
}
