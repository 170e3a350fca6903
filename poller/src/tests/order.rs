//! Who runs when, and that nobody is starved.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use super::{Log, TestClock, fifo, settle, still};
use crate::channel::{inbox, oneshot};
use crate::{
    Interrupt, Poller, Progress, Reactor, ReactorConfig, ReactorId, Rng, TaskOrder, timeout,
};

/// Counts its polls, and says what it is told to say.
struct Counter {
    polls: Rc<Cell<u32>>,
    found: u32,
}

impl Poller for Counter {
    fn name(&self) -> &'static str {
        "counter"
    }

    fn poll(&mut self) -> Progress {
        self.polls.set(self.polls.get() + 1);
        Progress::of(self.found)
    }

    fn arm(&mut self) -> Interrupt {
        Interrupt::Quiet
    }
}

fn counter(reactor: &Reactor) -> Rc<Cell<u32>> {
    let polls = Rc::new(Cell::new(0));
    reactor.local().add_poller(Box::new(Counter { polls: polls.clone(), found: 0 }));
    polls
}

#[test]
fn fifo_runs_tasks_in_the_order_they_became_ready() {
    let mut reactor = fifo();
    let log = Log::new();
    for number in 0..5 {
        let (local, log) = (reactor.local(), log.clone());
        reactor.local().spawn(async move {
            log.push((number, "first"));
            local.yield_now().await;
            log.push((number, "second"));
        });
    }
    assert_eq!(settle(&mut reactor), 2);
    let rounds = ["first", "second"];
    let expected: Vec<_> = rounds.iter().flat_map(|&r| (0..5).map(move |n| (n, r))).collect();
    assert_eq!(log.take(), expected);
}

fn seeded_order(seed: u64) -> Vec<u32> {
    let (mut reactor, _) = still(TaskOrder::Seeded, seed);
    let log = Log::new();
    for number in 0..20 {
        let (local, log) = (reactor.local(), log.clone());
        reactor.local().spawn(async move {
            for _ in 0..3 {
                log.push(number);
                local.yield_now().await;
            }
        });
    }
    settle(&mut reactor);
    log.take()
}

#[test]
fn seeded_order_is_the_seeds_and_nothing_elses() {
    let first = seeded_order(1);
    assert_eq!(first, seeded_order(1));
    assert_ne!(first, seeded_order(2));
    let mut sorted = first.clone();
    sorted.sort_unstable();
    let expected: Vec<u32> = (0..20).flat_map(|number| [number; 3]).collect();
    assert_eq!(sorted, expected, "every task had each of its turns");
    assert_ne!(first[..20], sorted[..20], "and not in the order of spawning");
}

/// Three reactors on this thread pass tokens around with random waits; the driver picks at random
/// who steps next, and moves the clock when all are idle.
fn ring_of_reactors(seed: u64) -> Vec<(u16, u32, u64)> {
    let clock = TestClock::default();
    let mut rng = Rng::seeded(seed);
    let mut reactors: Vec<Reactor> = (0..3)
        .map(|id| {
            let config = ReactorConfig {
                id: ReactorId(id),
                task_order: TaskOrder::Seeded,
                ..ReactorConfig::default()
            };
            Reactor::new(config, Rc::new(clock.clone()), rng.fork())
        })
        .collect();
    let log = Log::new();
    let (senders, receivers): (Vec<_>, Vec<_>) = (0..3).map(|_| inbox::<u32>(2)).unzip();
    for (at, mut receiver) in receivers.into_iter().enumerate() {
        let next = senders[(at + 1) % 3].clone();
        let (local, log) = (reactors[at].local(), log.clone());
        reactors[at].local().spawn(async move {
            while let Some(token) = receiver.recv().await {
                log.push((local.id().0, token, local.now().as_nanos()));
                if token >= 60 {
                    continue;
                }
                let (here, next) = (local.clone(), next.clone());
                local.spawn(async move {
                    here.sleep(Duration::from_nanos(here.random() % 5)).await;
                    next.reserve().await.send(token + 2);
                });
            }
        });
    }
    senders[0].try_reserve().unwrap().send(0);
    senders[1].try_reserve().unwrap().send(1);
    drop(senders);
    let mut idle_in_a_row = 0;
    loop {
        let at = usize::try_from(rng.below(3)).unwrap();
        idle_in_a_row = if reactors[at].step().is_busy() { 0 } else { idle_in_a_row + 1 };
        // By then each has been looked at, all but surely.
        if idle_in_a_row > 100 {
            let Some(next) = reactors.iter().filter_map(Reactor::next_timer).min() else { break };
            clock.0.set(clock.0.get().max(next));
            idle_in_a_row = 0;
        }
    }
    log.take()
}

#[test]
fn several_reactors_on_one_thread_replay_from_their_seed() {
    let run = ring_of_reactors(11);
    assert_eq!(run, ring_of_reactors(11));
    assert_ne!(run, ring_of_reactors(12));
    let mut tokens: Vec<u32> = run.iter().map(|&(_, token, _)| token).collect();
    tokens.sort_unstable();
    assert_eq!(tokens, (0..=61).collect::<Vec<_>>(), "every token was seen once");
    assert!(run.windows(2).all(|pair| pair[0].2 <= pair[1].2), "time never went back");
}

#[test]
fn a_task_that_always_wakes_itself_has_one_turn_a_pass() {
    let mut reactor = fifo();
    let polls = counter(&reactor);
    let turns = Rc::new(Cell::new(0));
    let (local, count) = (reactor.local(), turns.clone());
    reactor.local().spawn(async move {
        loop {
            count.set(count.get() + 1);
            local.yield_now().await;
        }
    });
    for pass in 1..=100 {
        assert!(reactor.step().is_busy());
        assert_eq!((turns.get(), polls.get()), (pass, pass));
    }
}

#[test]
fn tasks_that_keep_waking_each_other_cannot_hold_up_the_pollers() {
    let mut reactor = fifo();
    let polls = counter(&reactor);
    let bats = [crate::local::Event::new(), crate::local::Event::new()];
    let hits = Rc::new(Cell::new(0u32));
    for side in 0..2 {
        let (mine, theirs, hits) = (bats[side].clone(), bats[1 - side].clone(), hits.clone());
        reactor.local().spawn(async move {
            loop {
                let ball = mine.listen();
                theirs.notify_one();
                hits.set(hits.get() + 1);
                ball.await;
            }
        });
    }
    for _ in 0..10 {
        assert!(reactor.step().is_busy());
    }
    assert_eq!(polls.get(), 10, "each pass came to its end");
    assert!(hits.get() <= 10 * 128, "{} turns", hits.get());
    assert!(hits.get() > 10 * 64, "waking another is worth a turn in the same pass");
}

#[test]
fn a_crowd_of_ready_tasks_is_served_over_several_passes() {
    let mut reactor = fifo();
    let polls = counter(&reactor);
    let log = Log::new();
    for number in 0..1000 {
        let log = log.clone();
        reactor.local().spawn(async move { log.push(number) });
    }
    reactor.step();
    assert_eq!(log.0.borrow().len(), 128);
    settle(&mut reactor);
    assert!(polls.get() >= 8);
    assert_eq!(log.take(), (0..1000).collect::<Vec<_>>());
}

#[test]
fn messages_are_run_in_order_and_a_bounded_number_at_a_time() {
    let mut reactor = fifo();
    let remote = reactor.remote();
    let (sender, mut receiver) = inbox::<u32>(1000);
    for number in 0..200 {
        let permit = sender.try_reserve().unwrap();
        remote.spawn(Box::new(move |_| permit.send(number))).unwrap();
    }
    reactor.step();
    assert_eq!(receiver.len(), 64);
    settle(&mut reactor);
    let all: Vec<u32> = std::iter::from_fn(|| receiver.try_recv()).collect();
    assert_eq!(all, (0..200).collect::<Vec<_>>());
}

#[test]
fn a_full_inbox_says_so_and_drops_the_message() {
    let config = ReactorConfig { inbox_capacity: 2, ..ReactorConfig::default() };
    let mut reactor = Reactor::new(config, Rc::new(TestClock::default()), Rng::seeded(0));
    let remote = reactor.remote();
    let (sender, mut answer) = oneshot::<u8>();
    assert!(remote.spawn(Box::new(|_| ())).is_ok());
    assert!(remote.spawn(Box::new(|_| ())).is_ok());
    assert_eq!(remote.spawn(Box::new(move |_| sender.send(1))), Err(crate::Full));
    settle(&mut reactor);
    assert_eq!(answer.try_recv(), None);
    let mut outcome = reactor.local().spawn_join(answer);
    let (sender, second) = oneshot::<u16>();
    remote.spawn(Box::new(move |local| sender.send(local.id().0))).unwrap();
    let mut second = reactor.local().spawn_join(second);
    settle(&mut reactor);
    assert_eq!(outcome.try_take(), Some(None), "its sender was dropped with the message");
    assert_eq!(second.try_take(), Some(Some(0)));
}

#[test]
fn a_poller_that_retires_is_dropped_and_those_behind_it_stay() {
    struct Passing(u32, Log<&'static str>);
    impl Poller for Passing {
        fn name(&self) -> &'static str {
            "passing"
        }
        fn poll(&mut self) -> Progress {
            self.0 = self.0.saturating_sub(1);
            Progress::of(self.0)
        }
        fn arm(&mut self) -> Interrupt {
            Interrupt::Quiet
        }
        fn retired(&self) -> bool {
            self.0 == 0
        }
    }
    impl Drop for Passing {
        fn drop(&mut self) {
            self.1.push("dropped");
        }
    }
    let mut reactor = fifo();
    let log = Log::new();
    reactor.local().add_poller(Box::new(Passing(3, log.clone())));
    let behind = counter(&reactor);
    reactor.step();
    reactor.step();
    assert!(log.0.borrow().is_empty());
    assert_eq!(reactor.step(), Progress::Idle);
    assert_eq!(log.take(), ["dropped"]);
    assert_eq!(behind.get(), 3);
    reactor.step();
    assert_eq!(behind.get(), 4);
}

#[test]
fn a_task_may_add_pollers_and_tasks_and_they_join_the_wheel() {
    let mut reactor = fifo();
    let polls = Rc::new(Cell::new(0));
    let (local, theirs) = (reactor.local(), polls.clone());
    reactor.local().spawn(async move {
        local.add_poller(Box::new(Counter { polls: theirs, found: 1 }));
        let inner = local.spawn_join(async { 5 });
        assert_eq!(timeout(&local, local.now() + Duration::from_secs(1), inner).await, Ok(5));
    });
    assert_eq!(reactor.step(), Progress::Busy(4), "three turns and what the poller found");
    assert_eq!(polls.get(), 1);
}
