//! What a call does with its links: start everywhere, finish where an answer comes first, repeat what
//! broke once, come back to what was busy.
//!
//! A call that concerns several servers is one [`Exchange`] per server. All are started before any is
//! finished, so the servers work at the same time; they are finished in the order in which they answer, and
//! each may use its share of the time that is left, so that a server that falls silent in the middle of an
//! answer cannot use up the time of the others. What touches the caller's memory happens inside of his gate,
//! if he has one.

use std::time::{Duration, Instant};

use crate::error::{ClientError, LinkFault};
use crate::gate::{Gate, Inside};
use crate::link::Link;
use crate::process::Process;
use crate::server::{Checkout, Server};
use crate::trace::TraceId;

/// Times a call comes back to a busy server after the pause that it asked for, before the pauses grow.
const BUSY_PATIENCE: u32 = 3;
/// Longest pause that the call chooses itself.
const BUSY_PAUSE_MAX: Duration = Duration::from_millis(500);

/// What holds for all that a call does.
#[derive(Clone, Copy, Default)]
pub(crate) struct Terms<'a> {
    /// Through which it reaches the memory of its caller.
    pub gate: Option<&'a Gate>,
    /// To which it belongs.
    pub trace: Option<TraceId>,
}

/// A link in use, and the right to use the caller's memory with it. A gate that closes needs the link open for
/// as long as the right lasts: fields are dropped in their order.
struct Visit<'a> {
    inside: Option<Inside<'a>>,
    link: Checkout<'a>,
    gate: Option<&'a Gate>,
}

impl<'a> Visit<'a> {
    /// Of a link that nobody has used yet; it goes back when the gate is closed.
    fn begin(mut link: Checkout<'a>, terms: Terms<'a>) -> Result<Visit<'a>, LinkFault> {
        let gate = terms.gate;
        let inside = match gate.map(|gate| gate.enter(Some(link.socket()))) {
            None => None,
            Some(Some(inside)) => Some(inside),
            Some(None) => {
                link.give_back();
                return Err(LinkFault::GivenUp);
            }
        };
        link.set_trace(terms.trace);
        Ok(Visit { inside, link, gate })
    }

    /// All is said and done.
    fn end(self) {
        drop(self.inside);
        // One that was shut down at the last moment is of no use to anybody.
        if self.gate.is_none_or(|gate| !gate.is_closed()) {
            self.link.give_back();
        }
    }
}

/// One call's business with one server. It knows which of its items are settled.
pub(crate) trait Exchange {
    /// Sends the first frame.
    fn start(&mut self, link: &mut Link, deadline: Instant) -> Result<(), LinkFault>;

    /// Carries on until every item has an answer, be it that the server is busy.
    fn finish(&mut self, link: &mut Link, deadline: Instant) -> Result<(), LinkFault>;

    /// True when every item is settled or was answered with busy.
    fn is_answered(&self) -> bool;

    /// The link is lost: what is not answered will be sent again, as the same requests.
    fn rewind(&mut self);

    /// The items answered with busy, when there are any.
    fn busy(&self) -> Option<Busy>;

    /// Makes new requests of the items answered with busy.
    fn renew(&mut self);

    /// Settles every item that is not with this error; items answered with busy keep that answer.
    fn fail(&mut self, error: &ClientError);

    /// Settles the items answered with busy as such.
    fn give_up_busy(&mut self);
}

/// Items that the server was too busy for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Busy {
    /// How many.
    pub items: usize,
    /// The longest pause that it asked for, in milliseconds.
    pub retry_ms: u32,
}

/// An exchange and the index of its server.
pub(crate) struct Job<E> {
    pub server: usize,
    pub exchange: E,
}

/// Carries out all jobs, at most one per server, in ascending order of their servers: links are checked out
/// in that order, so that calls cannot wait for each other in a circle.
pub(crate) fn drive<E: Exchange>(
    process: &Process,
    jobs: &mut [Job<E>],
    deadline: Instant,
    terms: Terms<'_>,
) {
    assert!(jobs.is_sorted_by(|a, b| a.server < b.server), "one job per server, in order");
    let mut todo: Vec<&mut Job<E>> = jobs.iter_mut().collect();
    let (mut rounds, mut before) = (0, usize::MAX);
    loop {
        round(process, &mut todo, deadline, terms);
        todo.retain(|job| job.exchange.busy().is_some());
        let busy: Vec<Busy> = todo.iter().filter_map(|job| job.exchange.busy()).collect();
        let Some(retry_ms) = busy.iter().map(|busy| busy.retry_ms).max() else { return };
        let items = busy.iter().map(|busy| busy.items).sum();
        // As long as it gets on, the server is not pressed harder than it asked for.
        rounds = if items < before { 0 } else { rounds + 1 };
        before = items;
        let pause = spread(pause(retry_ms, rounds), random());
        if Instant::now() + pause >= deadline {
            break;
        }
        std::thread::sleep(pause);
        todo.iter_mut().for_each(|job| job.exchange.renew());
    }
    todo.iter_mut().for_each(|job| job.exchange.give_up_busy());
}

/// What the server asked for, at least a millisecond; longer when nothing has moved for some rounds.
fn pause(retry_ms: u32, rounds: u32) -> Duration {
    let wanted = Duration::from_millis(u64::from(retry_ms.max(1)));
    let doublings = rounds.saturating_sub(BUSY_PATIENCE).min(9);
    (wanted * (1 << doublings)).min(BUSY_PAUSE_MAX.max(wanted))
}

/// Up to half as long again, by `chance` of 2^32: those that a busy server refused at one time are not to
/// come back at one time.
fn spread(pause: Duration, chance: u32) -> Duration {
    let more = (pause.as_nanos() * u128::from(chance)) >> 33;
    pause + Duration::from_nanos(u64::try_from(more).unwrap_or(u64::MAX))
}

/// A number that nobody can guess; nothing hangs on it but when a call comes back.
fn random() -> u32 {
    getrandom::u32().unwrap_or_default()
}

/// Every job once, those whose link broke twice.
fn round<E: Exchange>(
    process: &Process,
    jobs: &mut [&mut Job<E>],
    deadline: Instant,
    terms: Terms<'_>,
) {
    let mut running = Vec::with_capacity(jobs.len());
    let mut broken = Vec::new();
    for (at, job) in jobs.iter_mut().enumerate() {
        let server = &process.servers[job.server];
        match server.checkout(deadline) {
            Err(error) => job.exchange.fail(&error),
            Ok(link) => match Visit::begin(link, terms) {
                Err(fault) => job.exchange.fail(&fault.into_error(server.name())),
                Ok(mut visit) => match job.exchange.start(&mut visit.link, deadline) {
                    Ok(()) => running.push((at, visit)),
                    Err(fault) => broken.push((at, fault)),
                },
            },
        }
    }
    while !running.is_empty() {
        let first = first_to_answer(&running, deadline);
        let (at, mut visit) = running.swap_remove(first);
        let now = Instant::now();
        let share = deadline.saturating_duration_since(now) / (running.len() as u32 + 1);
        match jobs[at].exchange.finish(&mut visit.link, now + share) {
            Ok(()) => visit.end(),
            Err(fault) => broken.push((at, fault)),
        }
    }
    for (at, fault) in broken {
        let job = &mut jobs[at];
        repeat(&process.servers[job.server], &mut job.exchange, fault, deadline, terms);
    }
}

/// The place of the link that has something to receive first; one that has not, at the deadline.
fn first_to_answer(running: &[(usize, Visit<'_>)], deadline: Instant) -> usize {
    if running.len() == 1 {
        return 0;
    }
    let links: Vec<&Link> = running.iter().map(|(_, visit)| &*visit.link).collect();
    // A failed poll(2) shows again, and is told, when the link itself is used.
    Link::wait_any(&links, deadline).ok().flatten().unwrap_or(0)
}

/// Repeats an exchange whose link broke, once, if that may help and there is time.
fn repeat(
    server: &Server,
    exchange: &mut dyn Exchange,
    fault: LinkFault,
    deadline: Instant,
    terms: Terms<'_>,
) {
    if exchange.is_answered() {
        return;
    }
    if !fault.is_worth_a_retry() || Instant::now() >= deadline {
        exchange.fail(&fault.into_error(server.name()));
        return;
    }
    tracing::debug!(server = %server.name(), %fault, "the connection broke, repeating the request");
    exchange.rewind();
    let Ok(link) = server.checkout(deadline) else {
        // Whatever the reason now, the first attempt may have arrived.
        return exchange.fail(&fault.into_error(server.name()));
    };
    let mut visit = match Visit::begin(link, terms) {
        Ok(visit) => visit,
        Err(fault) => return exchange.fail(&fault.into_error(server.name())),
    };
    let link = &mut visit.link;
    let result = exchange.start(link, deadline).and_then(|()| exchange.finish(link, deadline));
    match result {
        Ok(()) => visit.end(),
        Err(_) if exchange.is_answered() => {}
        Err(fault) => exchange.fail(&fault.into_error(server.name())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_are_what_was_asked_for_until_nothing_moves() {
        let ms = |retry_ms, rounds| pause(retry_ms, rounds).as_millis();
        assert_eq!([ms(0, 0), ms(1, 3), ms(20, 2)], [1, 1, 20]);
        assert_eq!([ms(1, 4), ms(1, 5), ms(1, 12), ms(1, u32::MAX)], [2, 4, 500, 500]);
        assert_eq!([ms(2000, 0), ms(2000, 50)], [2000, 2000]);
    }

    #[test]
    fn no_pause_is_shorter_than_was_asked_for_and_none_half_as_long_again() {
        let ms = |pause, chance| spread(Duration::from_millis(pause), chance).as_millis();
        assert_eq!([ms(1000, 0), ms(1000, 1 << 31), ms(1000, u32::MAX)], [1000, 1250, 1499]);
        assert_eq!(ms(2, u32::MAX), 2);
        let pauses: std::collections::BTreeSet<_> =
            (0..64).map(|_| spread(Duration::from_secs(1), random())).collect();
        assert!(pauses.len() > 32, "calls do not come back together: {pauses:?}");
    }
}
