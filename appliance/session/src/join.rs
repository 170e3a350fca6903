//! Waiting for several futures of one task, and for one that must not be dropped.

use std::future::Future;
use std::pin::Pin;
use std::task::Poll;

use memkv_poller::spare::{self, Row};
use memkv_poller::{Instant, Local};

/// A future where it stays while it runs; its memory is used again.
type Frame<F> = Pin<Box<Option<F>>>;

/// Polls all until all are done; outputs in order of the futures.
pub async fn join_all<F: Future + 'static>(futures: impl Iterator<Item = F>) -> Row<F::Output>
where
    F::Output: 'static,
{
    let frame = |future: F| {
        let mut frame: Frame<F> = spare::take().unwrap_or_else(|| Box::pin(None));
        frame.set(Some(future));
        frame
    };
    let mut frames: Row<Frame<F>> = futures.map(frame).collect();
    let mut done: Row<Option<F::Output>> = frames.iter().map(|_| None).collect();
    std::future::poll_fn(|cx| {
        let mut pending = false;
        for (frame, out) in frames.iter_mut().zip(&mut done) {
            let Some(running) = frame.as_mut().as_pin_mut() else { continue };
            match running.poll(cx) {
                Poll::Ready(value) => {
                    *out = Some(value);
                    frame.set(None);
                }
                Poll::Pending => pending = true,
            }
        }
        if pending { Poll::Pending } else { Poll::Ready(()) }
    })
    .await;
    frames.drain(..).for_each(|frame| spare::keep(frame, size_of::<Option<F>>()));
    done.into_iter().map(|out| out.expect("all are done")).collect()
}

/// Drives `work` to its end and never drops it half way. When `at` passes first, `hasten` is
/// called, once: it makes the work end soon, as shutting a connection down ends what is outstanding
/// on it. The work stays where it is: moved in here it would take its memory three times, and an idle
/// connection keeps all that its reader may ever take.
pub async fn hastened<F: Future>(
    local: &Local,
    at: Instant,
    hasten: impl FnOnce(),
    mut work: Pin<&mut F>,
) -> F::Output {
    let mut sleep = local.sleep_until(at);
    let mut hasten = Some(hasten);
    std::future::poll_fn(|cx| {
        if let Poll::Ready(output) = work.as_mut().poll(cx) {
            return Poll::Ready(output);
        }
        if hasten.is_none() || Pin::new(&mut sleep).poll(cx).is_pending() {
            return Poll::Pending;
        }
        (hasten.take().expect("just looked"))();
        work.as_mut().poll(cx)
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::pin::pin;
    use std::rc::Rc;
    use std::time::Duration;

    use memkv_poller::local::Event;
    use memkv_poller::{Reactor, ReactorConfig, Rng, SystemClock};

    use super::*;

    fn reactor() -> Reactor {
        Reactor::new(ReactorConfig::default(), Rc::new(SystemClock), Rng::seeded(1))
    }

    #[test]
    fn all_are_polled_together_and_answer_in_their_order() {
        let mut reactor = reactor();
        let local = reactor.local();
        let polls = Rc::new(Cell::new(0));
        let counted = polls.clone();
        let outputs = reactor.block_on(async move {
            let future = |turns: usize| {
                let (local, polls) = (local.clone(), counted.clone());
                async move {
                    for _ in 0..turns {
                        polls.set(polls.get() + 1);
                        local.yield_now().await;
                    }
                    turns
                }
            };
            join_all([3, 0, 5, 1].into_iter().map(future)).await
        });
        assert_eq!(outputs[..], [3, 0, 5, 1]);
        assert_eq!(polls.get(), 9, "none is polled after its end");
        let nothing = std::iter::empty::<std::future::Ready<()>>();
        assert!(reactor.block_on(join_all(nothing)).is_empty());
    }

    #[test]
    fn work_that_takes_too_long_is_hastened_once_and_not_dropped() {
        let mut reactor = reactor();
        let local = reactor.local();
        let hastened_after = |at: Duration, work_ends: Duration, reactor: &mut Reactor| {
            let (local, stop) = (local.clone(), Event::new());
            reactor.block_on(async move {
                let calls = Cell::new(0);
                let began = local.now();
                let work = async {
                    let until = began + work_ends;
                    let _ = memkv_poller::timeout(&local, until, stop.listen()).await;
                    // What comes after the shutdown takes its time as well.
                    local.yield_now().await;
                    calls.get()
                };
                let hasten = || {
                    calls.set(calls.get() + 1);
                    stop.notify_all();
                };
                hastened(&local, began + at, hasten, pin!(work)).await
            })
        };
        let (short, long) = (Duration::from_millis(2), Duration::from_secs(60));
        assert_eq!(hastened_after(short, long, &mut reactor), 1);
        assert_eq!(hastened_after(long, short, &mut reactor), 0);
    }
}
