//! How a sleeping reactor is woken, and why no wake-up is lost.
//!
//! One word holds two bits, and every change of it is one read-modify-write:
//!
//! ```text
//!   PENDING   something was put into the inbox and has not been looked at
//!   SLEEPING  the reactor is about to wait for the bell, or does
//!
//!   other thread: put it in ──► old = word |= PENDING ──► if old == SLEEPING: ring the bell
//!   reactor:      word == 0 ? word = SLEEPING : stay awake
//!                 look once more ──► wait ──► word &= !SLEEPING
//! ```
//!
//! All changes of one word have one order. If PENDING comes first, the reactor sees it and does not
//! sleep. If SLEEPING comes first, the other thread sees that and rings; the bell keeps ringing
//! until it is silenced, so it does not matter whether the wait had begun. Only the first of many
//! rings, and a reactor that is awake costs others no system call.

use std::sync::atomic::Ordering;

use crate::sync::{AtomicU8, Bell};

const PENDING: u8 = 1;
const SLEEPING: u8 = 2;

/// What makes the noise. The model checker brings its own.
pub(crate) trait Ring {
    fn ring(&self);
}

impl Ring for Bell {
    fn ring(&self) {
        Bell::ring(self);
    }
}

#[derive(Debug)]
pub(crate) struct Doorbell<R> {
    word: AtomicU8,
    bell: R,
}

impl<R: Ring> Doorbell<R> {
    pub(crate) fn new(bell: R) -> Doorbell<R> {
        Doorbell { word: AtomicU8::new(0), bell }
    }

    pub(crate) fn bell(&self) -> &R {
        &self.bell
    }

    /// Any thread, after it has put something where the reactor looks when told to.
    pub(crate) fn notify(&self) {
        let old = self.word.fetch_or(PENDING, Ordering::AcqRel);
        if old == SLEEPING {
            self.bell.ring();
        }
    }

    /// Whether somebody notified and the reactor has not looked yet. A hint: it tells nothing of what
    /// was put in.
    pub(crate) fn is_pending(&self) -> bool {
        self.word.load(Ordering::Relaxed) & PENDING != 0
    }

    /// The reactor: has anyone notified since the last time this was asked? What was put in before
    /// is then visible.
    pub(crate) fn take_pending(&self) -> bool {
        if !self.is_pending() {
            return false;
        }
        self.word.fetch_and(!PENDING, Ordering::AcqRel);
        true
    }

    /// The reactor: announce that it is about to sleep. `false`: there is something to look at
    /// first.
    pub(crate) fn begin_sleep(&self) -> bool {
        self.word.compare_exchange(0, SLEEPING, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// The reactor: it is awake again.
    pub(crate) fn end_sleep(&self) {
        self.word.fetch_and(!SLEEPING, Ordering::AcqRel);
    }
}
