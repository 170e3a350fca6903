//! Waiting awake for small messages, where that pays.
//!
//! To put a thread to sleep and to wake it takes both ends of a connection some ten microseconds, several
//! times what a small request takes. So who waits for a small message looks for it for [`AWAKE`] before it
//! sleeps. That is dear where cores are shared: the one who waits may hold the very core that the other
//! end needs. Two rules keep that in bounds:
//!
//! * On one machine, when the last packet came from a thread on our core, that thread needs it: sleep.
//! * An account of what came of it. Each wait that ended awake pays in, each in vain draws twice as much;
//!   an empty account rests for some dozens of waits, then for twice as many, and is tried again.
//!
//! Never `sched_yield(2)`: beside a process that computes each yield costs a slice of some milliseconds.

use std::cell::Cell;
use std::time::Duration;

use socket2::Socket;

/// How long a wait stays awake: longer than a request of 64 KiB takes with all that is done for it. With half
/// of it such waits end in vain so often that both ends give up staying awake, for they are all the slower
/// then.
pub(super) const AWAKE: Duration = Duration::from_micros(100);
/// Messages up to this size are small: more takes longer than it takes to wake up.
pub(super) const SMALL: usize = 128 << 10;

/// Most that an account holds.
const CREDIT_MAX: u8 = 8;
/// What a wait in vain costs.
const PRICE: u8 = 2;
/// Waits that a first rest leaves out, and the longest rest.
const REST_MIN: u32 = 64;
const REST_MAX: u32 = 4096;

/// The account of one waiter.
#[derive(Debug)]
pub(super) struct Spin {
    credit: u8,
    /// Waits still to leave out.
    rest: u32,
    /// Waits that the next rest leaves out.
    next_rest: u32,
}

impl Spin {
    /// A new account, good for some tries.
    pub fn new() -> Spin {
        Spin { credit: CREDIT_MAX / 2, rest: 0, next_rest: REST_MIN }
    }

    /// Whether a wait that begins now is to stay awake; [`Spin::ended`] follows if so, unless what
    /// was waited for turns out to be something else.
    pub fn begins(&mut self) -> bool {
        let awake = self.rest == 0;
        self.rest = self.rest.saturating_sub(1);
        awake
    }

    /// Books what came of a wait that stayed awake.
    pub fn ended(&mut self, heard: bool) {
        if heard {
            self.credit = CREDIT_MAX.min(self.credit + 1);
            self.next_rest = REST_MIN;
        } else if self.credit >= PRICE {
            self.credit -= PRICE;
        } else {
            self.rest = self.next_rest;
            self.next_rest = REST_MAX.min(self.next_rest * 2);
        }
    }
}

/// Waits for which one look at the peer's core holds: threads do not move that often, and a look is a
/// system call.
const LOOK_EVERY: u8 = 8;

/// Whether a peer needs the core that we are on.
#[derive(Debug, Default)]
pub(super) struct Gate {
    /// Waits until the next look.
    left: Cell<u8>,
    closed: Cell<bool>,
}

impl Gate {
    /// True when the peer, on this machine, sent last from the core that this thread is on.
    pub fn is_closed(&self, socket: &Socket) -> bool {
        match self.left.get().checked_sub(1) {
            Some(left) => self.left.set(left),
            None => {
                self.left.set(LOOK_EVERY - 1);
                self.closed.set(peer_is_on_our_core(socket));
            }
        }
        self.closed.get()
    }
}

/// Whether the peer, on this machine, sent last from the core that this thread is on.
#[cfg(target_os = "linux")]
fn peer_is_on_our_core(socket: &Socket) -> bool {
    use std::os::fd::AsRawFd;

    let mut cpu: libc::c_int = -1;
    let mut len = size_of_val(&cpu) as libc::socklen_t;
    // SAFETY: the option's value is an int, which outlives the call; its size is passed.
    let rc = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_INCOMING_CPU,
            (&raw mut cpu).cast(),
            &raw mut len,
        )
    };
    // SAFETY: sched_getcpu takes no arguments.
    rc == 0 && cpu == unsafe { libc::sched_getcpu() }
}

/// Not told by this system.
#[cfg(not(target_os = "linux"))]
fn peer_is_on_our_core(_socket: &Socket) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Waits until one stays awake; how many did not.
    fn waits_left_out(spin: &mut Spin) -> u32 {
        (0..).find(|_| spin.begins()).expect("some wait is tried")
    }

    #[test]
    fn waits_in_vain_are_given_up_for_longer_and_longer() {
        let mut spin = Spin::new();
        for _ in 0..CREDIT_MAX / 2 / PRICE {
            assert!(spin.begins());
            spin.ended(false);
        }
        let mut rests = Vec::new();
        for _ in 0..9 {
            assert_eq!(waits_left_out(&mut spin), rests.last().copied().unwrap_or(0));
            spin.ended(false);
            rests.push(spin.rest);
        }
        assert_eq!(rests, [64, 128, 256, 512, 1024, 2048, 4096, 4096, 4096]);
        // One that ends awake makes the next rest short again.
        assert_eq!(waits_left_out(&mut spin), 4096);
        spin.ended(true);
        assert!(spin.begins());
        spin.ended(false);
        assert_eq!(waits_left_out(&mut spin), 64);
    }

    #[test]
    fn two_in_three_waits_that_end_awake_keep_the_account_alive() {
        let mut spin = Spin::new();
        for wait in 0..999 {
            assert!(spin.begins(), "wait {wait}");
            spin.ended(wait % 3 != 0);
        }
    }
}
