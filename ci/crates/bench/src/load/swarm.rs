//! Many connections on few threads, each thread with a set of its own, and what they found.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use memkv_workload::latency::Latency;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::time::TimeSpec;

use crate::error::{BenchError, doing};
use crate::load::line::{Answer, Ask, Caller, DEADLINE, End, Line};

/// Bytes of one receive: they are checked while they are in the processor's own cache.
const SCRATCH: usize = 256 << 10;
/// Receives of one connection before others have their turn.
const TURNS: u32 = 4;
/// Sockets that are told of at one time.
const EVENTS: usize = 128;
/// Unsent bytes of a connection beyond which it asks for nothing more.
const UNSENT: usize = 1 << 20;
/// The longest wait for sockets.
const LOOK: Duration = Duration::from_millis(50);
/// How long what is under way in the end may take beyond a request's deadline.
const GRACE: Duration = Duration::from_secs(5);

/// What is asked for, by shares.
#[derive(Clone, Debug)]
pub struct Mix {
    shares: Vec<(u32, Kind)>,
    sum: u32,
}

/// One kind of request in a mix; slots are drawn evenly.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// Whether a block is there.
    Exists,
    /// One of so many values of so many bytes.
    Get(u32, usize),
    /// The same, stored anew.
    Put(u32, usize),
}

impl Mix {
    /// Of these kinds, each with its share.
    pub fn new(shares: Vec<(u32, Kind)>) -> Mix {
        let sum = shares.iter().map(|(share, _)| share).sum();
        Mix { shares, sum }
    }

    fn draw(&self, rng: &mut fastrand::Rng) -> Ask {
        let mut at = rng.u32(..self.sum);
        for &(share, kind) in &self.shares {
            if at < share {
                return match kind {
                    Kind::Exists => Ask::Exists,
                    Kind::Get(slots, bytes) => Ask::Get { slot: rng.u32(..slots), bytes },
                    Kind::Put(slots, bytes) => Ask::Put { slot: rng.u32(..slots), bytes },
                };
            }
            at -= share;
        }
        unreachable!("the shares are their sum")
    }

    /// Bytes of value of a request, on average.
    pub fn mean_bytes(&self) -> f64 {
        let bytes = |kind: &Kind| match kind {
            Kind::Exists => 0.0,
            Kind::Get(_, bytes) | Kind::Put(_, bytes) => *bytes as f64,
        };
        let sum: f64 = self.shares.iter().map(|(share, k)| f64::from(*share) * bytes(k)).sum();
        sum / f64::from(self.sum)
    }
}

/// When requests are made.
#[derive(Clone, Copy, Debug)]
pub enum Pace {
    /// So many are always under way on each connection; what the server is too busy for is asked for again
    /// after the pause that it asks for.
    Depth(usize),
    /// So many a second on all connections of a thread together, whatever becomes of those before.
    Rate(f64),
}

/// What a stretch of load found. Only what was due in its measured part is in it.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// How long requests with values took that were done.
    pub bulk: Latency,
    /// How long questions took.
    pub exists: Latency,
    /// Requests done.
    pub done: u64,
    /// Bytes of their values.
    pub bytes: u64,
    /// Answers that the server is too busy.
    pub busy: u64,
    /// How long it took to be told so.
    pub refused: Latency,
    /// The longest pause that a busy server asked for, in milliseconds.
    pub retry_ms: u32,
    /// Requests that were due and could not be made: all connections had as many as the server allows.
    pub held: u64,
    /// Requests without an answer within their deadline.
    pub late: u64,
    /// Bytes of values that came in the measured part, whenever they were asked for.
    pub moved: u64,
}

impl Tally {
    fn absorb(&mut self, other: &Tally) {
        self.bulk.merge(&other.bulk);
        self.exists.merge(&other.exists);
        self.refused.merge(&other.refused);
        self.done += other.done;
        self.bytes += other.bytes;
        self.busy += other.busy;
        self.retry_ms = self.retry_ms.max(other.retry_ms);
        self.held += other.held;
        self.late += other.late;
        self.moved += other.moved;
    }

    fn take(&mut self, answer: &Answer, span: &Span, now: Instant) {
        let took = now.saturating_duration_since(answer.when);
        if answer.end == End::Done && span.contains(now) {
            self.moved += answer.ask.bytes();
        }
        if !span.contains(answer.when) {
            return;
        }
        match answer.end {
            End::Busy(retry_ms) => {
                self.busy += 1;
                self.refused.record(took);
                self.retry_ms = self.retry_ms.max(retry_ms);
            }
            End::Done => {
                self.late += u64::from(took > DEADLINE);
                self.done += 1;
                self.bytes += answer.ask.bytes();
                let into =
                    if answer.ask == Ask::Exists { &mut self.exists } else { &mut self.bulk };
                into.record(took);
            }
        }
    }
}

/// When a load runs, and which part of it counts.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// From here on it counts.
    pub from: Instant,
    /// Until here it counts, and until here something is asked.
    pub to: Instant,
}

impl Span {
    /// Begins now, counts after `warm`, for `length`.
    pub fn new(warm: Duration, length: Duration) -> Span {
        let from = Instant::now() + warm;
        Span { from, to: from + length }
    }

    fn contains(&self, when: Instant) -> bool {
        self.from <= when && when < self.to
    }
}

/// The connections of one thread.
pub struct Swarm {
    lines: Vec<Line>,
    epoll: Epoll,
    /// Which lines wait for room to send.
    blocked: Vec<bool>,
    /// What was put off: until when, on which line, and what it was.
    put_off: BinaryHeap<Reverse<(Instant, usize, Instant, Ask)>>,
    /// How many of them each line has.
    resting: Vec<usize>,
    rng: fastrand::Rng,
    value: Vec<u8>,
}

impl Swarm {
    /// Connects `count` times; `first` is the number of the first connection, of all of the load.
    pub fn connect(caller: &Caller, first: u32, count: u32) -> Result<Swarm, BenchError> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(doing("an epoll set"))?;
        let mut lines = Vec::with_capacity(count as usize);
        for number in first..first + count {
            let line = Line::connect(caller, number)?;
            let event = EpollEvent::new(EpollFlags::EPOLLIN, lines.len() as u64);
            epoll.add(&line, event).map_err(doing("an epoll set"))?;
            lines.push(line);
        }
        let mut rng = fastrand::Rng::with_seed(u64::from(first) + 1);
        let mut value = vec![0; memkv_wire::MAX_INLINE as usize];
        rng.fill(&mut value);
        let (blocked, resting) = (vec![false; lines.len()], vec![0; lines.len()]);
        let put_off = BinaryHeap::new();
        Ok(Swarm { lines, epoll, blocked, put_off, resting, rng, value })
    }

    /// Asks at a pace, until the span ends and everything that was asked is answered.
    pub fn run(&mut self, mix: &Mix, pace: Pace, span: Span) -> Result<Tally, BenchError> {
        let mut tally = Tally::default();
        let mut scratch = vec![0; SCRATCH];
        let mut events = [EpollEvent::empty(); EVENTS];
        let mut arrivals = Arrivals::new(pace);
        if let Pace::Depth(depth) = pace {
            (0..self.lines.len()).try_for_each(|at| self.top_up(at, mix, depth))?;
        }
        let patience = span.to + DEADLINE + GRACE;
        loop {
            let now = Instant::now();
            while let Some(due) = arrivals.next(now, span.to) {
                tally.held += u64::from(!self.arrive(mix, now)? && span.contains(due));
            }
            self.come_back(now)?;
            let under_way: usize = self.lines.iter().map(Line::under_way).sum();
            let left = under_way + self.put_off.len();
            if now >= span.to && (left == 0 || now > patience) {
                tally.late += left as u64;
                return Ok(tally);
            }
            let back = self.put_off.peek().map(|Reverse((back, ..))| *back);
            let until = arrivals.due(span.to).into_iter().chain(back).min();
            let pause = until.map_or(LOOK, |until| until.saturating_duration_since(now)).min(LOOK);
            let count = self.wait(&mut events, pause)?;
            for event in &events[..count] {
                let at = event.data() as usize;
                if event.events().contains(EpollFlags::EPOLLOUT) {
                    self.flush(at)?;
                }
                self.receive(at, &mut scratch, pace, (&mut tally, &span))?;
                if let Pace::Depth(depth) = pace
                    && Instant::now() < span.to
                {
                    self.top_up(at, mix, depth)?;
                }
            }
        }
    }

    /// Takes what has come on a line.
    fn receive(
        &mut self,
        at: usize,
        scratch: &mut [u8],
        pace: Pace,
        (tally, span): (&mut Tally, &Span),
    ) -> Result<(), BenchError> {
        let Swarm { lines, put_off, resting, rng, .. } = self;
        let answered = &mut |answer: Answer| {
            let now = Instant::now();
            tally.take(&answer, span, now);
            if let (End::Busy(retry_ms), Pace::Depth(_)) = (answer.end, pace) {
                // Up to half as long again, lest all that were refused together come back together.
                let pause = f64::from(retry_ms.max(1)) * (1.0 + rng.f64() / 2.0);
                let back = now + Duration::from_secs_f64(pause / 1e3);
                put_off.push(Reverse((back, at, answer.when, answer.ask)));
                resting[at] += 1;
            }
        };
        for _ in 0..TURNS {
            if !lines[at].receive(scratch, answered)? {
                break;
            }
        }
        Ok(())
    }

    /// A request is due; whether a line could take it.
    fn arrive(&mut self, mix: &Mix, now: Instant) -> Result<bool, BenchError> {
        let ask = mix.draw(&mut self.rng);
        let Some(at) = self.free_line(ask) else { return Ok(false) };
        self.lines[at].ask(ask, now, &self.value);
        self.flush(at)?;
        Ok(true)
    }

    /// Asks again for what was put off until now.
    fn come_back(&mut self, now: Instant) -> Result<(), BenchError> {
        while let Some(&Reverse((back, at, when, ask))) = self.put_off.peek()
            && back <= now
            && self.lines[at].admits(ask)
        {
            self.put_off.pop();
            self.resting[at] -= 1;
            self.lines[at].ask(ask, when, &self.value);
            self.flush(at)?;
        }
        Ok(())
    }

    fn wait(&self, events: &mut [EpollEvent], pause: Duration) -> Result<usize, BenchError> {
        // epoll itself waits for whole milliseconds.
        let mut set = [PollFd::new(self.epoll.0.as_fd(), PollFlags::POLLIN)];
        match ppoll(&mut set, Some(TimeSpec::from_duration(pause)), None) {
            Ok(0) | Err(nix::errno::Errno::EINTR) => return Ok(0),
            Ok(_) => {}
            Err(error) => return Err(doing("an epoll set")(error)),
        }
        match self.epoll.wait(events, EpollTimeout::ZERO) {
            Ok(count) => Ok(count),
            Err(nix::errno::Errno::EINTR) => Ok(0),
            Err(error) => Err(doing("an epoll set")(error)),
        }
    }

    /// A line that may ask for this now: some are tried at random, then all.
    fn free_line(&mut self, ask: Ask) -> Option<usize> {
        let count = self.lines.len();
        let free = |line: &Line| line.admits(ask) && line.unsent() < UNSENT;
        let start = self.rng.usize(..count);
        (start..start + count).map(|at| at % count).find(|&at| free(&self.lines[at]))
    }

    fn top_up(&mut self, at: usize, mix: &Mix, depth: usize) -> Result<(), BenchError> {
        let now = Instant::now();
        let line = &mut self.lines[at];
        let mut asked = false;
        while line.under_way() + self.resting[at] < depth && line.unsent() < UNSENT {
            let ask = mix.draw(&mut self.rng);
            if !line.admits(ask) {
                break;
            }
            line.ask(ask, now, &self.value);
            asked = true;
        }
        if asked { self.flush(at) } else { Ok(()) }
    }

    fn flush(&mut self, at: usize) -> Result<(), BenchError> {
        let blocked = self.lines[at].flush()?;
        if blocked != self.blocked[at] {
            self.blocked[at] = blocked;
            let both = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT;
            let flags = if blocked { both } else { EpollFlags::EPOLLIN };
            let event = &mut EpollEvent::new(flags, at as u64);
            self.epoll.modify(&self.lines[at], event).map_err(doing("an epoll set"))?;
        }
        Ok(())
    }
}

/// When requests are due that do not wait for each other: evenly spread.
struct Arrivals {
    every: Option<Duration>,
    next: Instant,
}

impl Arrivals {
    fn new(pace: Pace) -> Arrivals {
        let every = match pace {
            Pace::Depth(_) => None,
            Pace::Rate(rate) => Some(Duration::from_secs_f64(1.0 / rate)),
        };
        Arrivals { every, next: Instant::now() }
    }

    /// The next one that is due by `now`, none after `end`.
    fn next(&mut self, now: Instant, end: Instant) -> Option<Instant> {
        let (every, due) = (self.every?, self.next);
        if due > now || due >= end {
            return None;
        }
        self.next += every;
        Some(due)
    }

    fn due(&self, end: Instant) -> Option<Instant> {
        self.every.map(|_| self.next).filter(|&due| due < end)
    }
}

/// A swarm, what it asks for, and when.
pub type Part<'a> = (&'a mut Swarm, &'a Mix, Pace);

/// Runs all parts at one time, each on a thread of its own: what each of them found.
///
/// # Errors
/// The first failure.
pub fn run_all(parts: Vec<Part<'_>>, span: Span) -> Result<Vec<Tally>, BenchError> {
    thread::scope(|scope| {
        let threads: Vec<_> = parts
            .into_iter()
            .map(|(swarm, mix, pace)| scope.spawn(move || swarm.run(mix, pace, span)))
            .collect();
        threads.into_iter().map(|t| t.join().expect("a swarm does not panic")).collect()
    })
}

/// What all parts found together.
pub fn sum(tallies: &[Tally]) -> Tally {
    let mut sum = Tally::default();
    tallies.iter().for_each(|tally| sum.absorb(tally));
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrivals_come_at_their_pace_whenever_they_are_looked_for() {
        let mut arrivals = Arrivals::new(Pace::Rate(1000.0));
        let begun = arrivals.next;
        let end = begun + Duration::from_secs(1);
        let mut due = Vec::new();
        for look in [begun, begun + Duration::from_millis(10), end + Duration::from_secs(1)] {
            due.extend(std::iter::from_fn(|| arrivals.next(look, end)));
        }
        assert_eq!(due.len(), 1000, "all that were due in a second, and none after its end");
        assert!(due.is_sorted() && due.iter().all(|&when| begun <= when && when < end));
        assert_eq!(arrivals.due(end), None);
        assert!(Arrivals::new(Pace::Depth(3)).next(end, end).is_none(), "it follows the answers");
    }

    #[test]
    fn a_mix_is_drawn_by_its_shares() {
        let mix = Mix::new(vec![(3, Kind::Get(8, 4096)), (1, Kind::Exists)]);
        assert!((mix.mean_bytes() - 3072.0).abs() < 1e-9);
        let mut rng = fastrand::Rng::with_seed(1);
        let drawn: Vec<_> = (0..4000).map(|_| mix.draw(&mut rng)).collect();
        let asked = drawn.iter().filter(|ask| **ask == Ask::Exists).count();
        assert!((900..1100).contains(&asked), "{asked}");
        let slot = |ask: &Ask| match ask {
            Ask::Get { slot, bytes: 4096 } => Some(*slot),
            _ => None,
        };
        let slots: std::collections::BTreeSet<_> = drawn.iter().filter_map(slot).collect();
        assert_eq!(slots.into_iter().collect::<Vec<_>>(), (0..8).collect::<Vec<_>>());
    }

    #[test]
    fn only_what_was_asked_in_the_measured_part_counts() {
        let span = Span::new(Duration::from_secs(1), Duration::from_secs(2));
        let mut tally = Tally::default();
        let get = Ask::Get { slot: 0, bytes: 1000 };
        let mut tell = |when: Instant, now: Instant, end| {
            tally.take(&Answer { ask: get, when, end }, &span, now);
        };
        let (early, middle) = (span.from - Duration::from_millis(1), span.from);
        tell(early, early, End::Done);
        tell(early, middle, End::Done);
        tell(middle, span.to, End::Done);
        tell(middle, middle + DEADLINE * 2, End::Done);
        tell(middle, middle, End::Busy(7));
        assert_eq!((tally.done, tally.late, tally.busy, tally.retry_ms), (2, 1, 1, 7));
        assert_eq!((tally.bytes, tally.moved), (2000, 1000), "whenever it was asked for");
    }
}
