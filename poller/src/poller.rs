//! What a device has to offer to live on a reactor.

use std::os::fd::RawFd;
use std::time::Duration;

/// Whether a look at something found work.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Progress {
    /// Nothing to do.
    Idle,
    /// So many things done; never zero of them.
    Busy(u32),
}

impl Progress {
    /// `Idle` for none, `Busy(count)` otherwise.
    pub const fn of(count: u32) -> Progress {
        if count == 0 { Progress::Idle } else { Progress::Busy(count) }
    }

    /// Whether any work was done.
    pub const fn is_busy(self) -> bool {
        matches!(self, Progress::Busy(_))
    }
}

/// How a poller will make itself heard while its reactor sleeps.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Interrupt {
    /// This descriptor is readable whenever there is work for `poll`, work that came before `arm`
    /// included. The poller keeps it open for as long as it lives.
    Fd(RawFd),
    /// Nothing is outstanding: no work can come except through a task or a message.
    Quiet,
    /// Work may come and nothing would tell: the reactor must keep polling.
    Busy,
    /// The poller waits itself, for its own work and for whatever else the reactor waits for, when
    /// [`Poller::wait`] is called: only where it was asked by [`Poller::arm_or_wait`].
    Own,
}

/// What a reactor waits for when it sleeps, besides the poller that it sleeps in.
#[derive(Clone, Copy, Debug)]
pub struct Wait<'a> {
    /// What other threads ring: readable once they have.
    pub bell: RawFd,
    /// Descriptors, any of which ends the sleep while it is readable. They stay open during the call.
    pub descriptors: &'a [RawFd],
    /// Pollers that have gone since the reactor began. Where that is another number than before, one of the
    /// descriptors may be another than the one of the same number that was waited for then.
    pub departed: u32,
    /// The longest time to sleep; `None`: for ever.
    pub timeout: Option<Duration>,
}

/// A device, or whatever else has to be looked at again and again.
///
/// Every pass of the reactor calls [`poll`](Poller::poll) once. Before a reactor sleeps it calls
/// [`arm`](Poller::arm), then `poll` once more, and only when that finds nothing does it wait;
/// [`disarm`](Poller::disarm) follows in any case. It waits for all descriptors by one call, or within
/// one poller that offers to ([`Poller::wait`]).
pub trait Poller {
    /// What to call it in logs.
    fn name(&self) -> &'static str;

    /// Looks for work and does a bounded amount of it. Never blocks. Work left over is `Busy`.
    fn poll(&mut self) -> Progress;

    /// Asked after a pass that found nothing: is it likely that work comes within microseconds, so soon that
    /// to sleep and be woken would take longer? The reactor then takes another pass at once. The poller
    /// bounds for how long it says so.
    fn eager(&mut self) -> bool {
        false
    }

    /// Asked before the reactor sleeps: what will tell that there is work?
    fn arm(&mut self) -> Interrupt;

    /// Like [`arm`](Poller::arm), where the reactor is still free to sleep within this poller:
    /// [`Interrupt::Own`] if that costs less than to wait for a descriptor of its.
    fn arm_or_wait(&mut self) -> Interrupt {
        self.arm()
    }

    /// Sleeps until there is work for `poll` or what the reactor waits for otherwise is there, and returns
    /// whether the bell is one of those. May return early. Called only after [`Interrupt::Own`].
    fn wait(&mut self, wait: Wait<'_>) -> bool {
        unreachable!("{} does not wait: {wait:?}", self.name())
    }

    /// The reactor is awake again; interrupts are no longer needed.
    fn disarm(&mut self) {}

    /// Whether the reactor may drop this poller. Asked after a `poll` that was `Idle`.
    fn retired(&self) -> bool {
        false
    }
}
