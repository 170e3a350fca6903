//! First come, first served: the order in which tasks wait for something that is handed out.
//!
//! Plain data, to be kept behind a `RefCell` (one reactor) or a lock (several).
//!
//! ```text
//!   entries:  [ granted | granted | waiting | waiting | waiting ]   by ticket, ascending
//!                                  ▲ granted = 2
//! ```
//! Grants are given strictly from the front, so the granted ones are always a prefix. A granted
//! entry stays until its future is polled and takes it, or is dropped and gives it back.

use std::collections::VecDeque;
use std::task::Waker;

/// A place in the queue.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ticket(u64);

#[derive(Debug)]
struct Entry {
    ticket: Ticket,
    need: usize,
    waker: Option<Waker>,
}

#[derive(Debug, Default)]
pub(crate) struct WaitQueue {
    entries: VecDeque<Entry>,
    granted: usize,
    next: u64,
}

impl WaitQueue {
    /// Queues up for `need`.
    pub(crate) fn push(&mut self, need: usize, waker: Option<Waker>) -> Ticket {
        let ticket = Ticket(self.next);
        self.next += 1;
        self.entries.push_back(Entry { ticket, need, waker });
        ticket
    }

    /// What the first one still waiting needs.
    pub(crate) fn next_need(&self) -> Option<usize> {
        self.entries.get(self.granted).map(|entry| entry.need)
    }

    /// How many wait for a grant.
    pub(crate) fn waiting(&self) -> usize {
        self.entries.len() - self.granted
    }

    /// Grants the first one still waiting and returns its waker, to be woken by the caller once no
    /// lock is held.
    pub(crate) fn grant(&mut self) -> Option<Waker> {
        let entry = self.entries.get_mut(self.granted)?;
        self.granted += 1;
        entry.waker.take()
    }

    /// Takes the grant if it has come; otherwise remembers whom to wake.
    pub(crate) fn take(&mut self, ticket: Ticket, waker: &Waker) -> bool {
        let at = self.find(ticket).expect("a ticket is taken or cancelled only once");
        if at < self.granted {
            self.granted -= 1;
            self.entries.remove(at);
            return true;
        }
        match &mut self.entries[at].waker {
            Some(known) => known.clone_from(waker),
            unknown => *unknown = Some(waker.clone()),
        }
        false
    }

    /// Leaves the queue. Returns whether a grant had come that must now go to someone else.
    pub(crate) fn cancel(&mut self, ticket: Ticket) -> bool {
        let at = self.find(ticket).expect("a ticket is taken or cancelled only once");
        let was_granted = at < self.granted;
        self.granted -= usize::from(was_granted);
        self.entries.remove(at);
        was_granted
    }

    fn find(&self, ticket: Ticket) -> Option<usize> {
        self.entries.binary_search_by_key(&ticket, |entry| entry.ticket).ok()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn grants_follow_the_order_of_arrival_and_cancels_close_the_gap() {
        let mut queue = WaitQueue::default();
        let tickets: Vec<_> = (0..5).map(|need| queue.push(need, None)).collect();
        let waker = Waker::noop();
        assert!(!queue.cancel(tickets[1]));
        queue.grant();
        queue.grant();
        assert_eq!(queue.next_need(), Some(3));
        assert!(!queue.take(tickets[3], waker));
        assert!(queue.take(tickets[2], waker));
        assert!(queue.cancel(tickets[0]), "this one had its grant");
        assert_eq!(queue.waiting(), 2);
        assert!(queue.grant().is_some(), "ticket 3 left its waker");
        assert!(queue.take(tickets[3], waker));
        assert!(!queue.cancel(tickets[4]));
        assert_eq!(queue.next_need(), None);
    }
}
