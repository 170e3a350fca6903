//! Puts that were offered and have a place, and wait for their payload.
//!
//! A connection has few of them, so they are a row in the order of their names, searched by halves. A
//! place does not wait for ever: one task of the session looks after all of them, for as long as
//! there are some.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use memkv_poller::local::Event;
use memkv_poller::spare::Row;
use memkv_poller::{Instant, timeout};
use memkv_store::Reservation;

use crate::backlog::Promise;
use crate::session::Session;

/// The request that offered it, and which of its items it is.
pub type Name = (u64, u32);

/// Where the payload goes, and the promise to take it.
pub type Place = (Reservation, Promise);

struct Offered {
    name: Name,
    /// When its place goes back; not before its client was told that it has one.
    until: Option<Instant>,
    place: Place,
}

/// The offers of one session.
#[derive(Default)]
pub struct Offers {
    /// By name.
    waiting: RefCell<Row<Offered>>,
    /// The task that looks after them runs, and sleeps until then.
    looked_after: Cell<Option<Instant>>,
    /// Told when one is there that the task sleeps too long for, or when all are gone for good.
    changed: Event,
}

impl Offers {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.waiting.borrow().len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.waiting.borrow().is_empty()
    }

    /// Whether one has this name.
    pub fn has(&self, name: Name) -> bool {
        self.rank_of(name).is_ok()
    }

    fn rank_of(&self, name: Name) -> Result<usize, usize> {
        self.waiting.borrow().binary_search_by_key(&name, |offered| offered.name)
    }

    /// Adds one; none has its name.
    pub fn add(&self, name: Name, place: Place) {
        let at = self.rank_of(name).expect_err("an offer is made once");
        self.waiting.borrow_mut().insert(at, Offered { name, until: None, place });
    }

    /// The client is told which of a request's have a place: they go back at `until`.
    pub fn told(&self, session: &Rc<Session>, request: u64, until: Instant) {
        let mut any = false;
        for offered in self.waiting.borrow_mut().iter_mut() {
            if offered.name.0 == request && offered.until.is_none() {
                offered.until = Some(until);
                any = true;
            }
        }
        if !any {
            return;
        }
        match self.looked_after.get() {
            Some(wakes) if wakes <= until => {}
            Some(_) => self.changed.notify_all(),
            None => {
                self.looked_after.set(Some(until));
                session.context.local.spawn(look_after(session.clone()));
            }
        }
    }

    /// Takes one out: its payload comes.
    pub fn take(&self, name: Name) -> Option<Place> {
        let place = self.rank_of(name).ok()?;
        Some(self.waiting.borrow_mut().remove(place).place)
    }

    /// Takes all out: the session is over.
    pub fn take_all(&self) -> Row<Place> {
        let all = std::mem::take(&mut *self.waiting.borrow_mut());
        self.changed.notify_all();
        all.into_iter().map(|offered| offered.place).collect()
    }

    /// When the next one's time is over.
    fn next(&self) -> Option<Instant> {
        self.waiting.borrow().iter().filter_map(|offered| offered.until).min()
    }

    /// One whose time is over, the first by name.
    fn take_late(&self, now: Instant) -> Option<Place> {
        let mut waiting = self.waiting.borrow_mut();
        let late =
            waiting.iter().position(|offered| offered.until.is_some_and(|until| until <= now))?;
        Some(waiting.remove(late).place)
    }
}

/// Gives the places of offers back whose payload has not come by their deadline.
async fn look_after(session: Rc<Session>) {
    let (local, offers) = (&session.context.local, &session.offers);
    while let Some(next) = offers.next() {
        offers.looked_after.set(Some(next));
        if timeout(local, next, offers.changed.listen()).await.is_ok() {
            continue;
        }
        let mut late = false;
        while let Some(place) = offers.take_late(next) {
            drop(place);
            session.context.counters.offers_expired.bump();
            late = true;
        }
        if late {
            session.payload_done.notify_all();
        }
    }
    offers.looked_after.set(None);
}
