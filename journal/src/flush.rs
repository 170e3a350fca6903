//! The group flush: many who wait at one time share one flush of the drive.
//!
//! ```text
//! call 1 ─► flush 1 submitted ───────────► done: call 1 answered
//! call 2 ────────┐ waits                   │
//! call 3 ────────┴─────────────────────────┴─► flush 2 submitted ─► done: calls 2 and 3 answered
//! ```
//!
//! A flush makes durable what was completed before it was submitted. So a call never joins the one
//! that is on its way already; it waits for the next, with everybody else who came meanwhile.
//!
//! A frame that is to be durable is written and flushed by one command, which counts as a flush, while
//! nobody waits for one: a lone writer then waits for the drive once. Where others flush already, the
//! frame is written meanwhile and shares the next flush with all who wait.

use std::cell::Cell;
use std::rc::Rc;

use memkv_poller::local::Event;

use crate::journal::{JournalError, Shared};

/// The flushes of one drive, counted from 1.
#[derive(Default)]
pub(crate) struct Flushes {
    /// The last that was submitted.
    begun: Cell<u64>,
    /// The last that is done.
    done: Cell<u64>,
    /// The last that somebody waits for.
    wanted: Cell<u64>,
    running: Cell<bool>,
    ended: Event,
}

/// Asks for a flush; it is on its way, or next, when this returns. The future says when it is done.
pub(crate) fn ask(shared: &Rc<Shared>) -> impl Future<Output = Result<(), JournalError>> + use<> {
    let flushes = &shared.flushes;
    let wanted = flushes.begun.get() + 1;
    flushes.wanted.set(wanted);
    shared.count(|stats| stats.flush_calls += 1);
    if !flushes.running.replace(true) {
        shared.local.spawn(run(Rc::clone(shared)));
    }
    let shared = Rc::clone(shared);
    async move {
        while shared.flushes.done.get() < wanted {
            shared.check_failed()?;
            shared.flushes.ended.listen().await;
        }
        Ok(())
    }
}

/// Makes the command that is submitted next the next flush; not while another is on its way. The
/// caller [ends](end) it.
pub(crate) fn begin(shared: &Shared) -> Option<u64> {
    let flushes = &shared.flushes;
    if flushes.running.replace(true) {
        return None;
    }
    let number = flushes.begun.get() + 1;
    flushes.begun.set(number);
    Some(number)
}

/// The flush of this number, which [`begin`] gave, is done, or has failed. Whoever has come meanwhile
/// is next.
pub(crate) fn end(shared: &Rc<Shared>, number: u64, done: bool) {
    let flushes = &shared.flushes;
    flushes.settle(shared, number, done);
    if flushes.begun.get() < flushes.wanted.get() {
        shared.local.spawn(run(Rc::clone(shared)));
    } else {
        flushes.running.set(false);
    }
}

impl Flushes {
    fn settle(&self, shared: &Shared, number: u64, done: bool) {
        if done {
            self.done.set(number);
            shared.count(|stats| stats.flushes += 1);
        }
        self.ended.notify_all();
    }
}

/// Flushes until nobody waits.
async fn run(shared: Rc<Shared>) {
    let flushes = &shared.flushes;
    while flushes.begun.get() < flushes.wanted.get() && shared.check_failed().is_ok() {
        let number = flushes.begun.get() + 1;
        flushes.begun.set(number);
        let flushed = memkv_block::flush(&*shared.queue).await;
        let done = flushed.map_err(|error| drop(shared.fail(error))).is_ok();
        flushes.settle(&shared, number, done);
    }
    flushes.running.set(false);
    // Those who came to a drive that has failed.
    flushes.ended.notify_all();
}
