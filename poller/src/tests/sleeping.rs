//! Real threads, real sleep.

use std::cell::Cell;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::{Log, real};
use crate::channel::{inbox, oneshot};
use crate::local::Event;
use crate::{
    Clock, IdlePolicy, Instant, Interrupt, Local, Poller, Progress, Reactor, ReactorConfig,
    ReactorStats, Remote, Rng, StopFlag, SystemClock, Wait, timeout,
};

type Running = (Remote, std::sync::Arc<ReactorStats>, std::thread::JoinHandle<()>);

/// A reactor that runs on a thread of its own until `stop`.
fn start(idle: IdlePolicy, stop: &StopFlag) -> Running {
    let (sender, receiver) = std::sync::mpsc::channel();
    let stop = stop.clone();
    let thread = std::thread::spawn(move || {
        let config = ReactorConfig { idle, ..ReactorConfig::default() };
        let mut reactor = Reactor::new(config, Rc::new(SystemClock), Rng::seeded(0));
        sender.send((reactor.remote(), reactor.stats())).unwrap();
        reactor.run(&stop);
    });
    let (remote, stats) = receiver.recv().unwrap();
    (remote, stats, thread)
}

/// Sends a token to and fro between this thread's reactor and another.
fn ping_pong(idle: IdlePolicy, rounds: u32) -> (u64, u64) {
    let stop = StopFlag::new();
    let (remote, stats, thread) = start(idle, &stop);
    let (to_them, mut from_us) = inbox::<u32>(1);
    let (to_us, mut from_them) = inbox::<u32>(1);
    let echo = move |local: &Local| {
        local.spawn(async move {
            while let Some(number) = from_us.recv().await {
                to_us.reserve().await.send(number + 1);
            }
        });
    };
    remote.spawn(Box::new(echo)).unwrap();
    let mut reactor = real();
    let last = reactor.block_on(async move {
        let mut number = 0;
        for _ in 0..rounds {
            to_them.reserve().await.send(number);
            number = from_them.recv().await.expect("the echo lives");
        }
        number
    });
    assert_eq!(last, rounds);
    stop.stop();
    thread.join().unwrap();
    (reactor.stats().sleeps.load(Relaxed), stats.sleeps.load(Relaxed))
}

#[test]
fn two_sleeping_reactors_wake_each_other_every_time() {
    let (ours, theirs) = ping_pong(IdlePolicy::Adaptive, 5_000);
    assert!(ours > 0 && theirs > 0, "they did sleep: {ours}, {theirs}");
}

#[test]
fn a_busy_reactor_never_sleeps() {
    let (_, theirs) = ping_pong(IdlePolicy::Busy, 200);
    assert_eq!(theirs, 0);
}

#[test]
fn a_reactor_with_much_to_do_offers_its_core_between_passes() {
    const PASSES: u64 = 10;
    let offers = |idle, tasks| {
        let config = ReactorConfig { idle, ..ReactorConfig::default() };
        let mut reactor = Reactor::new(config, Rc::new(SystemClock), Rng::seeded(1));
        let stop = StopFlag::new();
        for number in 0..tasks {
            let (local, stop) = (reactor.local(), stop.clone());
            reactor.local().spawn(async move {
                for _ in 0..PASSES {
                    local.yield_now().await;
                }
                if number == 0 {
                    stop.stop();
                }
            });
        }
        reactor.run(&stop);
        reactor.stats().offers.load(Relaxed)
    };
    assert!(offers(IdlePolicy::Adaptive, 100) >= PASSES);
    assert_eq!(offers(IdlePolicy::Adaptive, 3), 0, "few are done before the offer could pay");
    assert_eq!(offers(IdlePolicy::Busy, 100), 0, "the core is its own");
}

#[test]
fn an_idle_reactor_sleeps_through() {
    let mut reactor = real();
    let (local, stats) = (reactor.local(), reactor.stats());
    let began = SystemClock.now();
    reactor.block_on(async move { local.sleep(Duration::from_millis(300)).await });
    let took = SystemClock.now().saturating_duration_since(began);
    assert!(took >= Duration::from_millis(300), "{took:?}");
    // A few for the start, a few for the end and for stray signals: no rhythm in between.
    assert!(stats.polls.load(Relaxed) < 10, "{stats:?}");
    assert!((1..5).contains(&stats.sleeps.load(Relaxed)), "{stats:?}");
    assert!(stats.idle_ns.load(Relaxed) >= 150_000_000, "{stats:?}");
}

#[test]
fn a_deadline_of_never_is_a_sleep_like_any_other() {
    let mut reactor = real();
    let (sender, receiver) = oneshot();
    let local = reactor.local();
    let thread = std::thread::spawn(move || sender.send(3));
    let outcome = reactor.block_on(async move { timeout(&local, Instant::MAX, receiver).await });
    thread.join().unwrap();
    assert_eq!(outcome, Ok(Some(3)));
}

#[test]
fn many_threads_send_and_nothing_is_lost() {
    let mut reactor = real();
    let (sender, mut receiver) = inbox::<u64>(4);
    let threads: Vec<_> = (0..4u64)
        .map(|thread| {
            let sender = sender.clone();
            std::thread::spawn(move || {
                let mut reactor = real();
                reactor.block_on(async move {
                    for number in 0..1000 {
                        sender.reserve().await.send(thread * 1000 + number);
                    }
                });
            })
        })
        .collect();
    drop(sender);
    let mut all = reactor.block_on(async move {
        let mut all = Vec::new();
        while let Some(value) = receiver.recv().await {
            all.push(value);
        }
        all
    });
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    for thread in 0..4 {
        let own: Vec<u64> = all.iter().copied().filter(|value| value / 1000 == thread).collect();
        assert!(own.is_sorted(), "each sender's values come in its order");
    }
    all.sort_unstable();
    assert_eq!(all, (0..4000).collect::<Vec<_>>());
}

#[test]
fn one_flag_stops_every_reactor_asleep_or_not() {
    let stop = StopFlag::new();
    let idle = [IdlePolicy::Adaptive, IdlePolicy::Busy, IdlePolicy::Adaptive];
    let running: Vec<_> = idle.iter().map(|&idle| start(idle, &stop)).collect();
    for (remote, ..) in &running {
        let (sender, receiver) = oneshot();
        remote.spawn(Box::new(move |_| sender.send(()))).unwrap();
        assert_eq!(real().block_on(receiver), Some(()), "it turns");
    }
    assert!(!stop.is_stopped());
    stop.stop();
    for (.., thread) in running {
        thread.join().unwrap();
    }
    // Too late to start.
    let mut late = real();
    late.run(&stop);
    assert_eq!(late.stats().polls.load(Relaxed), 0);
}

/// Reads what comes through a socket.
struct Socket {
    stream: UnixStream,
    total: Rc<Cell<usize>>,
    event: Event,
    disarmed: Rc<Cell<u32>>,
}

impl Poller for Socket {
    fn name(&self) -> &'static str {
        "socket"
    }

    fn poll(&mut self) -> Progress {
        let mut bytes = [0; 16];
        let Ok(count) = self.stream.read(&mut bytes) else { return Progress::Idle };
        self.total.set(self.total.get() + count);
        self.event.notify_all();
        Progress::of(u32::try_from(count).unwrap())
    }

    fn arm(&mut self) -> Interrupt {
        Interrupt::Fd(self.stream.as_raw_fd())
    }

    fn disarm(&mut self) {
        self.disarmed.set(self.disarmed.get() + 1);
    }
}

#[test]
fn a_pollers_interrupt_ends_the_sleep() {
    let (stream, mut far) = UnixStream::pair().unwrap();
    stream.set_nonblocking(true).unwrap();
    let mut reactor = real();
    let (total, event, disarmed) = (Rc::new(Cell::new(0)), Event::new(), Rc::new(Cell::new(0)));
    reactor.local().add_poller(Box::new(Socket {
        stream,
        total: total.clone(),
        event: event.clone(),
        disarmed: disarmed.clone(),
    }));
    let (go, went) = std::sync::mpsc::channel();
    let writer = std::thread::spawn(move || {
        for _ in went {
            far.write_all(b"ping").unwrap();
        }
    });
    let sum = total.clone();
    reactor.block_on(async move {
        for round in 1..=100 {
            go.send(()).unwrap();
            while sum.get() < 4 * round {
                event.listen().await;
            }
        }
    });
    writer.join().unwrap();
    assert_eq!(total.get(), 400);
    let sleeps = reactor.stats().sleeps.load(Relaxed);
    assert!(sleeps > 0);
    assert!(u64::from(disarmed.get()) >= sleeps, "every arm was followed by a disarm");
}

/// A reactor sleeps in it, always but for a moment.
struct Bed {
    waits: Rc<Cell<u32>>,
    bell: Rc<Cell<Option<RawFd>>>,
    others: Rc<Cell<usize>>,
}

impl Poller for Bed {
    fn name(&self) -> &'static str {
        "bed"
    }

    fn poll(&mut self) -> Progress {
        Progress::Idle
    }

    fn arm(&mut self) -> Interrupt {
        panic!("the reactor was free to sleep here")
    }

    fn arm_or_wait(&mut self) -> Interrupt {
        Interrupt::Own
    }

    fn wait(&mut self, wait: Wait<'_>) -> bool {
        self.waits.set(self.waits.get() + 1);
        self.bell.set(Some(wait.bell));
        self.others.set(wait.descriptors.len());
        std::thread::yield_now();
        // The bell may have been rung: if not, there is nothing to silence.
        true
    }
}

#[test]
fn a_reactor_sleeps_in_the_one_poller_that_offers_to() {
    let (stream, mut far) = UnixStream::pair().unwrap();
    stream.set_nonblocking(true).unwrap();
    let mut reactor = real();
    let (total, event, disarmed) = (Rc::new(Cell::new(0)), Event::new(), Rc::new(Cell::new(0)));
    let (waits, bell, others) = (Rc::default(), Rc::default(), Rc::default());
    let bed = Bed { waits, bell, others };
    let (waits, bell, others) = (bed.waits.clone(), bed.bell.clone(), bed.others.clone());
    reactor.local().add_poller(Box::new(bed));
    reactor.local().add_poller(Box::new(Socket {
        stream,
        total: total.clone(),
        event: event.clone(),
        disarmed,
    }));
    let (sender, receiver) = oneshot();
    let thread = std::thread::spawn(move || {
        far.write_all(b"ping").unwrap();
        sender.send(7);
        far
    });
    let outcome = reactor.block_on(async move {
        while total.get() < 4 {
            event.listen().await;
        }
        receiver.await
    });
    assert_eq!(outcome, Some(7));
    thread.join().unwrap();
    reactor.block_on({
        let local = reactor.local();
        async move { local.sleep(Duration::from_millis(5)).await }
    });
    assert!(waits.get() > 0 && bell.get().is_some());
    assert_eq!(others.get(), 1, "the socket's descriptor, besides the bell");
    assert_eq!(u64::from(waits.get()), reactor.stats().sleeps.load(Relaxed));
}

/// A device without interrupts, or one whose work comes at the worst moment.
struct Awkward {
    answer: Interrupt,
    /// Has work once it has been polled, or armed, this often.
    polls_left: u32,
    arms_left: u32,
    event: Event,
    done: Rc<Cell<bool>>,
}

impl Poller for Awkward {
    fn name(&self) -> &'static str {
        "awkward"
    }

    fn poll(&mut self) -> Progress {
        self.polls_left = self.polls_left.saturating_sub(1);
        if self.polls_left > 0 || self.arms_left > 0 || self.done.get() {
            return Progress::Idle;
        }
        self.done.set(true);
        self.event.notify_all();
        Progress::Busy(1)
    }

    fn arm(&mut self) -> Interrupt {
        self.arms_left = self.arms_left.saturating_sub(1);
        self.answer
    }
}

fn awkward(answer: Interrupt, polls_left: u32, arms_left: u32) -> u64 {
    let mut reactor = real();
    let (event, done) = (Event::new(), Rc::new(Cell::new(false)));
    let theirs = event.clone();
    let poller = Awkward { answer, polls_left, arms_left, event: theirs, done: done.clone() };
    reactor.local().add_poller(Box::new(poller));
    reactor.block_on(async move {
        while !done.get() {
            event.listen().await;
        }
    });
    reactor.stats().sleeps.load(Relaxed)
}

#[test]
fn a_poller_that_cannot_be_armed_keeps_its_reactor_awake() {
    assert_eq!(awkward(Interrupt::Busy, 1000, 0), 0);
}

#[test]
fn work_that_comes_while_arming_is_found_by_the_last_look() {
    // Says it is quiet, and has work the moment it has said so: without the look, an endless sleep.
    assert_eq!(awkward(Interrupt::Quiet, 0, 1), 0);
}

/// Expects work soon the first times that it is asked, and stops its reactor when that wants to sleep.
struct Eager {
    eager_left: u32,
    stats: std::sync::Arc<ReactorStats>,
    stop: StopFlag,
    log: Log<(&'static str, u64)>,
}

impl Eager {
    fn push(&self, what: &'static str) {
        self.log.push((what, self.stats.sleeps.load(Relaxed)));
    }
}

impl Poller for Eager {
    fn name(&self) -> &'static str {
        "eager"
    }

    fn poll(&mut self) -> Progress {
        Progress::Idle
    }

    fn eager(&mut self) -> bool {
        let eager = self.eager_left > 0;
        self.eager_left = self.eager_left.saturating_sub(1);
        self.push(if eager { "eager" } else { "not" });
        eager
    }

    fn arm(&mut self) -> Interrupt {
        self.push("armed");
        self.stop.stop();
        Interrupt::Quiet
    }
}

/// Runs a reactor with one poller that is eager so often, between two that never are: what they were
/// asked, and how often the reactor had slept by then.
fn run_eager(idle: IdlePolicy, times: u32) -> Vec<(&'static str, u64)> {
    let config = ReactorConfig { idle, ..ReactorConfig::default() };
    let mut reactor = Reactor::new(config, Rc::new(SystemClock), Rng::seeded(0));
    let (stop, log) = (StopFlag::new(), Log::new());
    let calm = || Awkward {
        answer: Interrupt::Quiet,
        polls_left: u32::MAX,
        arms_left: 0,
        event: Event::new(),
        done: Rc::new(Cell::new(true)),
    };
    reactor.local().add_poller(Box::new(calm()));
    let (stats, flag) = (reactor.stats(), stop.clone());
    let eager = Eager { eager_left: times, stats, stop: flag, log: log.clone() };
    reactor.local().add_poller(Box::new(eager));
    reactor.local().add_poller(Box::new(calm()));
    if idle == IdlePolicy::Busy {
        let (local, flag) = (reactor.local(), stop.clone());
        reactor.local().spawn(async move {
            local.sleep(Duration::from_millis(5)).await;
            flag.stop();
        });
    }
    reactor.run(&stop);
    log.take()
}

#[test]
fn an_eager_poller_keeps_its_reactor_from_sleeping_until_it_is_no_longer() {
    for times in [0, 1, 50] {
        let mut expected = vec![("eager", 0); times as usize];
        expected.extend([("not", 0), ("armed", 0)]);
        assert_eq!(run_eager(IdlePolicy::Adaptive, times), expected, "{times} times");
    }
}

#[test]
fn a_busy_reactor_asks_nobody_whether_to_sleep() {
    assert_eq!(run_eager(IdlePolicy::Busy, 3), []);
}

#[cfg(target_os = "linux")]
#[test]
fn run_binds_the_thread_to_its_core() {
    use nix::sched::{CpuSet, sched_getaffinity};
    use nix::unistd::Pid;
    let affinity = || sched_getaffinity(Pid::from_raw(0)).unwrap();
    let allowed: Vec<usize> =
        (0..CpuSet::count()).filter(|&cpu| affinity().is_set(cpu).unwrap()).collect();
    let cpu = *allowed.last().unwrap();
    let bound = std::thread::spawn(move || {
        let config = ReactorConfig { cpu: Some(cpu), ..ReactorConfig::default() };
        let mut reactor = Reactor::new(config, Rc::new(SystemClock), Rng::seeded(0));
        let stop = StopFlag::new();
        let flag = stop.clone();
        reactor.local().spawn(async move { flag.stop() });
        reactor.run(&stop);
        let set = sched_getaffinity(Pid::from_raw(0)).unwrap();
        (0..CpuSet::count()).filter(|&cpu| set.is_set(cpu).unwrap()).collect::<Vec<_>>()
    });
    assert_eq!(bound.join().unwrap(), [cpu]);
}

#[test]
fn a_core_that_does_not_exist_is_no_reason_not_to_run() {
    let config = ReactorConfig { cpu: Some(1_000_000), ..ReactorConfig::default() };
    let mut reactor = Reactor::new(config, Rc::new(SystemClock), Rng::seeded(0));
    let (stop, ran) = (StopFlag::new(), Rc::new(Cell::new(false)));
    let (flag, theirs) = (stop.clone(), ran.clone());
    reactor.local().spawn(async move {
        theirs.set(true);
        flag.stop();
    });
    reactor.run(&stop);
    assert!(ran.get());
}
