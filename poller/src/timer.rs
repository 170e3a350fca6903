//! Timers: which task to wake when.
//!
//! A binary heap by time, in which every entry knows its place, so that a sleep that is dropped
//! takes its entry with it at once. Timers of the same moment fire in the order they were set.

use std::future::Future;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use crate::core::Core;
use crate::handle::Local;
use crate::time::Instant;

/// Names a timer until it fires or is cancelled.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) struct TimerKey {
    slot: u32,
    sequence: u64,
}

#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    at: Instant,
    /// Unique, ascending: breaks ties by the order of setting.
    sequence: u64,
    slot: u32,
}

struct Slot {
    /// Of the timer that lives here.
    sequence: u64,
    /// Where its entry is in the heap.
    place: usize,
    /// `None`: the slot is free.
    waker: Option<Waker>,
}

/// `heap[i] <= heap[2i+1], heap[2i+2]`, and `slots[heap[i].slot].place == i`.
#[derive(Default)]
pub(crate) struct TimerHeap {
    heap: Vec<Entry>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    next_sequence: u64,
}

impl TimerHeap {
    /// When the first timer is due.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.heap.first().map(|entry| entry.at)
    }

    #[cfg(all(test, not(loom)))]
    pub(crate) fn len(&self) -> usize {
        self.heap.len()
    }

    pub(crate) fn insert(&mut self, at: Instant, waker: Waker) -> TimerKey {
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        let place = self.heap.len();
        let filled = Slot { sequence, place, waker: Some(waker) };
        let slot = match self.free.pop() {
            Some(slot) => {
                self.slots[slot as usize] = filled;
                slot
            }
            None => {
                self.slots.push(filled);
                u32::try_from(self.slots.len() - 1).expect("fewer than 2^32 timers")
            }
        };
        self.heap.push(Entry { at, sequence, slot });
        self.sift_up(place);
        TimerKey { slot, sequence }
    }

    /// Changes whom a timer wakes. `false`: it has fired already.
    pub(crate) fn set_waker(&mut self, key: TimerKey, waker: &Waker) -> bool {
        match self.slots.get_mut(key.slot as usize) {
            Some(Slot { sequence, waker: Some(known), .. }) if *sequence == key.sequence => {
                known.clone_from(waker);
                true
            }
            _ => false,
        }
    }

    /// Takes a timer back. Returns its waker, to be dropped outside any borrow; `None`: it has
    /// fired.
    pub(crate) fn cancel(&mut self, key: TimerKey) -> Option<Waker> {
        let slot = self.slots.get(key.slot as usize)?;
        if slot.sequence != key.sequence || slot.waker.is_none() {
            return None;
        }
        self.remove(slot.place)
    }

    /// The waker of the first timer that is due at `now`.
    pub(crate) fn pop_due(&mut self, now: Instant) -> Option<Waker> {
        if self.next()? > now {
            return None;
        }
        self.remove(0)
    }

    /// Forgets all timers and returns their wakers.
    pub(crate) fn clear(&mut self) -> Vec<Waker> {
        let slots = std::mem::take(&mut self.slots);
        self.heap.clear();
        self.free.clear();
        slots.into_iter().filter_map(|slot| slot.waker).collect()
    }

    fn remove(&mut self, place: usize) -> Option<Waker> {
        let entry = self.heap.swap_remove(place);
        if place < self.heap.len() {
            // The last entry has moved here, and may belong higher or lower.
            self.sift_up(place);
            self.sift_down(self.slots[self.heap[place].slot as usize].place);
        }
        self.free.push(entry.slot);
        self.slots[entry.slot as usize].waker.take()
    }

    fn sift_up(&mut self, mut place: usize) {
        while place > 0 {
            let parent = (place - 1) / 2;
            if self.heap[parent] <= self.heap[place] {
                break;
            }
            self.heap.swap(parent, place);
            self.note_place(place);
            place = parent;
        }
        self.note_place(place);
    }

    fn sift_down(&mut self, mut place: usize) {
        loop {
            let left = 2 * place + 1;
            if left >= self.heap.len() {
                break;
            }
            let right = left + 1;
            let least = if right < self.heap.len() && self.heap[right] < self.heap[left] {
                right
            } else {
                left
            };
            if self.heap[place] <= self.heap[least] {
                break;
            }
            self.heap.swap(place, least);
            self.note_place(place);
            place = least;
        }
        self.note_place(place);
    }

    fn note_place(&mut self, place: usize) {
        let slot = self.heap[place].slot;
        self.slots[slot as usize].place = place;
    }
}

/// Completes when its reactor begins a pass at or after a moment. Dropping it takes the timer back.
#[must_use = "a sleep does nothing until it is awaited"]
pub struct Sleep {
    core: Rc<Core>,
    at: Instant,
    key: Option<TimerKey>,
}

impl Sleep {
    pub(crate) fn new(core: Rc<Core>, at: Instant) -> Sleep {
        Sleep { core, at, key: None }
    }

    /// When it completes.
    pub fn deadline(&self) -> Instant {
        self.at
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.core.pass_began.get() >= self.at {
            return Poll::Ready(());
        }
        if let Some(key) = self.key
            && self.core.timers.borrow_mut().set_waker(key, cx.waker())
        {
            return Poll::Pending;
        }
        let key = self.core.timers.borrow_mut().insert(self.at, cx.waker().clone());
        self.key = Some(key);
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            let waker = self.core.timers.borrow_mut().cancel(key);
            drop(waker);
        }
    }
}

/// The time was up first.
#[derive(Copy, Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the deadline passed")]
pub struct Elapsed;

/// Waits for `fut`, but not beyond `at`. On elapse `fut` is dropped: use it only on waits that may
/// be given up, never on work that has begun. If both are due, `fut` wins.
///
/// # Errors
/// [`Elapsed`] when `at` came first.
pub async fn timeout<F: Future>(local: &Local, at: Instant, fut: F) -> Result<F::Output, Elapsed> {
    let mut fut = pin!(fut);
    let mut sleep = local.sleep_until(at);
    std::future::poll_fn(|cx| {
        if let Poll::Ready(output) = fut.as_mut().poll(cx) {
            return Poll::Ready(Ok(output));
        }
        Pin::new(&mut sleep).poll(cx).map(|()| Err(Elapsed))
    })
    .await
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u64),
        Cancel(prop::sample::Index),
        PopDue(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            3 => (0u64..40).prop_map(Step::Insert),
            1 => any::<prop::sample::Index>().prop_map(Step::Cancel),
            2 => (0u64..40).prop_map(Step::PopDue),
        ];
        prop::collection::vec(step, 0..200)
    }

    proptest! {
        /// Against an ordered map: the same timers fire in the same order, and none is left over.
        #[test]
        fn the_heap_keeps_order_and_forgets_cancelled_timers(steps in steps()) {
            let mut heap = TimerHeap::default();
            let mut model = BTreeMap::new();
            let mut all = Vec::new();
            for (sequence, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Insert(at) => {
                        let at = Instant::from_nanos(at);
                        let key = heap.insert(at, Waker::noop().clone());
                        model.insert((at, sequence), key);
                        all.push((at, sequence, key));
                    }
                    Step::Cancel(index) if !all.is_empty() => {
                        let (at, sequence, key) = *index.get(&all);
                        let live = model.remove(&(at, sequence)).is_some();
                        prop_assert_eq!(heap.set_waker(key, Waker::noop()), live);
                        prop_assert_eq!(heap.cancel(key).is_some(), live);
                    }
                    Step::Cancel(_) => {}
                    Step::PopDue(now) => {
                        let now = Instant::from_nanos(now);
                        let first = heap.heap.first().map(|entry| TimerKey {
                            slot: entry.slot,
                            sequence: entry.sequence,
                        });
                        prop_assert_eq!(first, model.values().next().copied());
                        let due = model.first_key_value().is_some_and(|((at, _), _)| *at <= now);
                        prop_assert_eq!(heap.pop_due(now).is_some(), due);
                        if due {
                            model.pop_first();
                        }
                    }
                }
                prop_assert_eq!(heap.len(), model.len());
                prop_assert_eq!(heap.next(), model.keys().next().map(|(at, _)| *at));
                let in_slots = heap.slots.iter().filter(|slot| slot.waker.is_some()).count();
                prop_assert_eq!(in_slots, model.len());
                prop_assert_eq!(heap.free.len() + in_slots, heap.slots.len());
            }
        }
    }
}
