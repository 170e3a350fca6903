//! The pool under several threads: no byte belongs to two buffers, waiters are served in their order,
//! and everything comes back.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};

use memkv_dma::{Class, DmaBuf, Hugepages, Pool, PoolConfig};

fn pool(size: u64) -> Pool {
    Pool::new(PoolConfig { size, chunk: 2 << 20, hugepages: Hugepages::Never }).unwrap()
}

/// Unparks the thread that waits in [`block_on`].
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(value) => return value,
            Poll::Pending => thread::park(),
        }
    }
}

fn fill(pool: &Pool, class: Class, len: usize) -> Vec<DmaBuf> {
    std::iter::from_fn(|| pool.allocate(class, len).ok()).collect()
}

#[test]
fn buffers_belong_to_one_thread_at_a_time() {
    let pool = pool(16 << 20);
    thread::scope(|scope| {
        for tag in 1..=4u8 {
            let pool = pool.clone();
            scope.spawn(move || {
                for round in 0..400usize {
                    let class = Class::ALL[round % Class::ALL.len()];
                    // Up to 2 MiB each from 16 MiB: the threads do wait for each other.
                    let len = 1 + (round * 7919 * usize::from(tag)) % (2 << 20);
                    let mut buffer = block_on(pool.allocate_wait(class, len));
                    let ends = [0, len / 2, len - 1];
                    ends.iter().for_each(|&at| buffer.as_mut_slice()[at] = tag);
                    thread::yield_now();
                    assert!(ends.iter().all(|&at| buffer.as_slice()[at] == tag));
                    // Half of them are given back by another thread.
                    if round % 2 == 0 {
                        let shared = buffer.freeze();
                        let other = shared.clone();
                        scope.spawn(move || assert_eq!(other.as_slice()[0], tag));
                    }
                }
            });
        }
    });
    let stats = pool.stats();
    assert_eq!(stats.used, [0; Class::ALL.len()]);
    assert_eq!(stats.waiting, 0);
    let whole = [Class::Receive, Class::Send, Class::Checkpoint].map(|c| fill(&pool, c, 4 << 20));
    assert_eq!(whole.map(|runs| runs.len()), [2, 1, 1], "all runs grew together again");
}

#[test]
fn waiters_are_served_first_come_first_served() {
    let pool = pool(8 << 20);
    let mut held = fill(&pool, Class::Receive, 16 * 1024);
    let mut waits: Vec<Pin<Box<_>>> =
        (0..4).map(|_| Box::pin(pool.allocate_wait(Class::Receive, 16 * 1024))).collect();
    let mut cx = Context::from_waker(Waker::noop());
    for wait in &mut waits {
        assert!(wait.as_mut().poll(&mut cx).is_pending());
    }
    assert_eq!(pool.stats().waiting, 4);
    // The second gives up: the third moves up.
    drop(waits.remove(1));
    for served in 0..3 {
        drop(held.pop());
        for (i, wait) in waits.iter_mut().enumerate().skip(served) {
            match wait.as_mut().poll(&mut cx) {
                Poll::Ready(buffer) => {
                    assert_eq!(i, served);
                    held.insert(0, buffer);
                }
                Poll::Pending => assert!(i > served),
            }
        }
    }
    drop((held, waits));
    assert_eq!(pool.stats().used, [0; Class::ALL.len()]);
}

#[test]
fn a_wait_crosses_threads() {
    let pool = pool(8 << 20);
    let held = fill(&pool, Class::Send, 1 << 20);
    let served = Arc::new(AtomicUsize::new(0));
    let waiters: Vec<_> = (0..held.len())
        .map(|_| {
            let (pool, served) = (pool.clone(), Arc::clone(&served));
            thread::spawn(move || {
                let buffer = block_on(pool.allocate_wait(Class::Send, 1 << 20));
                served.fetch_add(1, Ordering::SeqCst);
                buffer.len()
            })
        })
        .collect();
    while pool.stats().waiting < held.len() as u64 {
        thread::yield_now();
    }
    assert_eq!(served.load(Ordering::SeqCst), 0);
    drop(held);
    let total: usize = waiters.into_iter().map(|w| w.join().unwrap()).sum();
    assert_eq!(total, served.load(Ordering::SeqCst) << 20);
    assert_eq!(pool.stats().used, [0; Class::ALL.len()]);
}
