//! The counters say what happened.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::{TestClock, settle, still};
use crate::{Clock, Instant, Local, Long, Reactor, ReactorConfig, Rng, TaskOrder, Turns};

fn read(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

#[test]
fn tasks_and_messages_are_counted() {
    let (mut reactor, clock) = still(TaskOrder::Fifo, 0);
    let stats = reactor.stats();
    for seconds in 0..3 {
        let local = reactor.local();
        reactor.local().spawn(async move { local.sleep(Duration::from_secs(seconds)).await });
    }
    for _ in 0..100 {
        reactor.remote().spawn(Box::new(|_| ())).unwrap();
    }
    assert_eq!((read(&stats.tasks_spawned), read(&stats.tasks_live)), (3, 3));
    assert_eq!(read(&stats.inbox_depth), 100);
    reactor.step();
    assert_eq!(read(&stats.inbox_depth), 36);
    settle(&mut reactor);
    assert_eq!((read(&stats.tasks_live), read(&stats.inbox_depth)), (2, 0));
    clock.advance(Duration::from_secs(2));
    settle(&mut reactor);
    assert_eq!((read(&stats.tasks_spawned), read(&stats.tasks_live)), (3, 0));
}

#[test]
fn time_is_charged_to_what_the_pass_found() {
    let (mut reactor, clock) = still(TaskOrder::Fifo, 0);
    let stats = reactor.stats();
    reactor.local().spawn(async {});
    assert!(reactor.step().is_busy());
    clock.advance(Duration::from_nanos(30));
    assert!(!reactor.step().is_busy());
    clock.advance(Duration::from_nanos(500));
    assert!(!reactor.step().is_busy());
    assert_eq!((read(&stats.busy_ns), read(&stats.idle_ns)), (30, 500));
    assert_eq!(read(&stats.polls), 3);
    assert_eq!(read(&stats.sleeps), 0);
}

#[test]
fn long_turns_are_told_by_name() {
    let (mut reactor, clock) = still(TaskOrder::Fifo, 0);
    async fn slow(clock: TestClock, micros: &'static [u64], local: Local) {
        for &micros in micros {
            clock.advance(Duration::from_micros(micros));
            local.yield_now().await;
        }
    }
    let local = reactor.local();
    local.spawn(slow(clock.clone(), &[300, 10, 250, 200], local.clone()));
    let quick = clock.clone();
    local.spawn(async move { quick.advance(Duration::from_micros(50)) });
    settle(&mut reactor);
    let [turns] = reactor.stats().turns()[..] else { panic!("{:?}", reactor.stats().turns()) };
    assert!(turns.who.ends_with("long_turns_are_told_by_name::slow"), "{}", turns.who);
    assert_eq!((turns.own.count, turns.own.longest), (2, Duration::from_micros(300)));
    assert_eq!(turns.preempted, Long::default(), "a clock that cannot tell blames the turn");
    assert_eq!(reactor.stats().take_turns(), [turns]);
    assert_eq!(reactor.stats().turns(), [], "they were taken");
}

/// A clock that says how long the thread has waited for a core.
#[derive(Clone, Default)]
struct Shared {
    clock: TestClock,
    waited: Rc<Cell<Duration>>,
    looks: Rc<Cell<u32>>,
}

impl Shared {
    /// The thread works for so many microseconds, and waits for so many.
    fn pass(&self, works: u64, waits: u64) {
        self.clock.advance(Duration::from_micros(works + waits));
        self.waited.set(self.waited.get() + Duration::from_micros(waits));
    }
}

impl Clock for Shared {
    fn now(&self) -> Instant {
        self.clock.now()
    }

    fn unix_seconds(&self) -> u64 {
        self.clock.unix_seconds()
    }

    fn waited(&self) -> Option<Duration> {
        self.looks.set(self.looks.get() + 1);
        Some(self.waited.get())
    }
}

async fn works_and_waits(clock: Shared, turns: &'static [(u64, u64)], local: Local) {
    for &(works, waits) in turns {
        clock.pass(works, waits);
        local.yield_now().await;
    }
}

fn turns_of(clock: &Shared, turns: &'static [(u64, u64)]) -> Turns {
    let shared = Rc::new(clock.clone());
    let mut reactor = Reactor::new(ReactorConfig::default(), shared, Rng::seeded(0));
    let local = reactor.local();
    local.spawn(works_and_waits(clock.clone(), turns, local.clone()));
    settle(&mut reactor);
    let [turns] = reactor.stats().turns()[..] else { panic!("{:?}", reactor.stats().turns()) };
    turns
}

#[test]
fn a_turn_that_is_long_for_others_is_not_its_own_fault() {
    let clock = Shared::default();
    // What the thread waited for before it came here is nobody's turn.
    clock.pass(0, 10_000);
    let turns = turns_of(&clock, &[(60, 4000), (201, 4000), (100, 101), (200, 1), (250, 0)]);
    let micros = Duration::from_micros;
    assert_eq!(turns.own, Long { count: 2, longest: micros(250) });
    assert_eq!(turns.preempted, Long { count: 3, longest: micros(4060) });
}

#[test]
fn how_long_the_thread_waited_is_looked_up_once_a_millisecond() {
    let clock = Shared::default();
    // 20 ms in turns of 100 µs, of which none is long.
    let turns = turns_of(&clock, &[(100, 0); 200]);
    assert_eq!(turns.own, Long { count: 0, longest: Duration::from_micros(100) });
    assert!((18..=22).contains(&clock.looks.get()), "{} times", clock.looks.get());
}

#[test]
fn a_reactor_that_never_misses_its_core_does_not_ask_whether_it_waited() {
    let clock = Shared::default();
    let shared = Rc::new(clock.clone());
    let mut reactor = Reactor::new(ReactorConfig::default(), shared, Rng::seeded(0));
    reactor.step();
    assert_eq!(clock.looks.get(), 1, "it is new");
    let passes = |reactor: &mut Reactor, micros: u64| {
        for _ in 0..1000 {
            let local = reactor.local();
            let turn = clock.clone();
            local.spawn(async move { turn.pass(micros, 0) });
            reactor.step();
            clock.pass(micros, 0);
            assert!(!reactor.step().is_busy());
        }
    };
    passes(&mut reactor, 50);
    assert_eq!(clock.looks.get(), 1, "100 ms, of which none was missed");
    // One gap, between two passes that find nothing: one look, and no more.
    clock.pass(0, 3000);
    passes(&mut reactor, 50);
    assert_eq!(clock.looks.get(), 2);
    passes(&mut reactor, 51);
    assert!((90..=104).contains(&clock.looks.get()), "{} times in 102 ms", clock.looks.get());
}
