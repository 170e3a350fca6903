//! Exhaustive interleavings of what crosses threads.
//!
//! Every test runs its closure once for each way the threads can be interleaved and each value a
//! relaxed load may return. A wake-up that is lost leaves a thread waiting with nobody to wake it,
//! which the checker reports as a deadlock.

use std::sync::atomic::Ordering;
use std::task::Wake;

use loom::future::block_on;
use loom::sync::atomic::AtomicUsize;
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;

use crate::channel::{Full, inbox, oneshot};
use crate::doorbell::{Doorbell, Ring};
use crate::reactor::ReactorId;
use crate::remote::Shared;
use crate::sync::Bell;
use crate::task::{TaskTable, frame};

/// For models too large to try everything: all interleavings in which threads are interrupted at
/// most three times against their will. Lost wake-ups need one or two.
fn bounded_model(body: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(body);
}

/// A bell a thread of the checker can wait for; like the real one it keeps ringing until silenced.
struct ModelBell {
    rung: Mutex<bool>,
    heard: Condvar,
}

impl ModelBell {
    fn new() -> ModelBell {
        ModelBell { rung: Mutex::new(false), heard: Condvar::new() }
    }

    fn wait_and_silence(&self) {
        let mut rung = self.rung.lock().unwrap();
        while !*rung {
            rung = self.heard.wait(rung).unwrap();
        }
        *rung = false;
    }
}

impl Ring for ModelBell {
    fn ring(&self) {
        *self.rung.lock().unwrap() = true;
        self.heard.notify_one();
    }
}

/// A doorbell and what lies behind the door.
struct Door {
    doorbell: Doorbell<ModelBell>,
    letters: Mutex<usize>,
}

impl Door {
    fn new() -> Arc<Door> {
        Arc::new(Door { doorbell: Doorbell::new(ModelBell::new()), letters: Mutex::new(0) })
    }

    fn deliver(&self) {
        *self.letters.lock().unwrap() += 1;
        self.doorbell.notify();
    }

    fn collect(&self) -> usize {
        if self.doorbell.take_pending() {
            std::mem::take(&mut *self.letters.lock().unwrap())
        } else {
            0
        }
    }
}

#[test]
fn loom_doorbell_never_loses_a_letter_from_two_senders() {
    loom::model(|| {
        let door = Door::new();
        let senders: Vec<_> = (0..2)
            .map(|_| {
                let door = door.clone();
                thread::spawn(move || door.deliver())
            })
            .collect();
        let mut got = 0;
        while got < 2 {
            let letters = door.collect();
            got += letters;
            if letters == 0 && got < 2 && door.doorbell.begin_sleep() {
                door.doorbell.bell().wait_and_silence();
                door.doorbell.end_sleep();
            }
        }
        assert_eq!(got, 2);
        senders.into_iter().for_each(|sender| sender.join().unwrap());
    });
}

#[test]
fn loom_doorbell_survives_sleeps_that_a_timer_or_a_device_ended() {
    loom::model(|| {
        let door = Door::new();
        let sender = {
            let door = door.clone();
            thread::spawn(move || {
                door.deliver();
                door.deliver();
            })
        };
        // This sleep ends without looking at the bell, which may go on ringing into the next.
        if door.doorbell.begin_sleep() {
            door.doorbell.end_sleep();
        }
        let mut got = 0;
        while got < 2 {
            let letters = door.collect();
            got += letters;
            if letters == 0 && door.doorbell.begin_sleep() {
                door.doorbell.bell().wait_and_silence();
                door.doorbell.end_sleep();
            }
        }
        sender.join().unwrap();
    });
}

/// The checker has teeth: a receiver that does not announce its sleep before the last look is
/// found.
#[test]
#[should_panic(expected = "deadlock")]
fn loom_finds_the_wake_up_that_a_late_announcement_loses() {
    loom::model(|| {
        let door = Door::new();
        let sender = {
            let door = door.clone();
            thread::spawn(move || door.deliver())
        };
        while door.collect() == 0 {
            // The last look was `collect`; a letter that comes here rings for nobody.
            door.doorbell.bell().wait_and_silence();
        }
        sender.join().unwrap();
    });
}

#[test]
fn loom_a_wake_up_that_finds_the_task_queued_is_seen_by_its_next_run() {
    loom::model(|| {
        let bell = Bell::new().expect("a descriptor");
        let shared = std::sync::Arc::new(Shared::new(ReactorId(0), 1, bell));
        let mut table = TaskTable::new(shared.clone());
        let key = table.insert("task", frame(async {}));
        let task = table.take(key).expect("just put in");
        let flag = task.alarm.flag.clone();
        let data = Arc::new(AtomicUsize::new(0));

        let waker = {
            let (flag, data) = (flag.clone(), data.clone());
            thread::spawn(move || {
                data.store(1, Ordering::Relaxed);
                flag.wake_by_ref();
            })
        };
        // A new task is queued, with its flag up. This is its first run.
        flag.lower();
        let mut seen = data.load(Ordering::Relaxed) == 1;
        waker.join().unwrap();
        let (mut ready, mut calls) = (Vec::new(), Vec::new());
        if shared.doorbell.take_pending() {
            shared.take(&mut ready, &mut calls, 1);
        }
        if ready == [key] {
            // Queued again: the second run.
            flag.lower();
            seen = data.load(Ordering::Relaxed) == 1;
        }
        assert!(seen, "the last run came before the data and no other is queued");
        table.put_back(key, task);
    });
}

#[test]
fn loom_inbox_delivers_every_value_and_then_ends() {
    bounded_model(|| {
        let (sender, mut receiver) = inbox::<usize>(2);
        let threads: Vec<_> = (0..2)
            .map(|value| {
                let sender = sender.clone();
                thread::spawn(move || sender.try_reserve().expect("room for two").send(value))
            })
            .collect();
        drop(sender);
        let sum = block_on(async move {
            let (mut count, mut sum) = (0, 0);
            while let Some(value) = receiver.recv().await {
                count += 1;
                sum += value;
            }
            (count, sum)
        });
        assert_eq!(sum, (2, 1));
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
}

#[test]
fn loom_inbox_hands_its_only_place_on() {
    bounded_model(|| {
        let (sender, mut receiver) = inbox::<usize>(1);
        let thread = thread::spawn(move || {
            block_on(async {
                sender.reserve().await.send(1);
                // Waits until the first has been received.
                sender.reserve().await.send(2);
            });
        });
        let got = block_on(async move {
            [receiver.recv().await, receiver.recv().await, receiver.recv().await]
        });
        assert_eq!(got, [Some(1), Some(2), None]);
        thread.join().unwrap();
    });
}

#[test]
fn loom_inbox_without_receiver_makes_nobody_wait() {
    loom::model(|| {
        let (sender, receiver) = inbox::<Arc<()>>(1);
        let value = Arc::new(());
        let theirs = value.clone();
        let thread = thread::spawn(move || {
            block_on(async {
                sender.reserve().await.send(theirs.clone());
                sender.reserve().await.send(theirs);
            });
        });
        drop(receiver);
        thread.join().unwrap();
        assert_eq!(Arc::strong_count(&value), 1, "what nobody receives is dropped");
    });
}

#[test]
fn loom_inbox_never_has_more_permits_than_places() {
    loom::model(|| {
        let (sender, mut receiver) = inbox::<u8>(1);
        let other = sender.clone();
        let thread = thread::spawn(move || match other.try_reserve() {
            Ok(permit) => {
                permit.send(1);
                1
            }
            Err(Full) => 0,
        });
        let mut sent = 0;
        if let Ok(permit) = sender.try_reserve() {
            drop(permit);
            // It came back, unless the other took it.
            if let Ok(permit) = sender.try_reserve() {
                permit.send(2);
                sent += 1;
            }
        }
        sent += thread.join().unwrap();
        assert!(receiver.len() <= 1);
        let mut received = 0;
        while receiver.try_recv().is_some() {
            received += 1;
        }
        assert_eq!((received, sent), (sent, received));
        assert!(sent == 1, "one of them had the place");
        assert!(sender.try_reserve().is_ok(), "and it is free again");
    });
}

#[test]
fn loom_oneshot_wakes_for_the_value_and_for_its_absence() {
    loom::model(|| {
        let (sender, receiver) = oneshot::<u8>();
        let thread = thread::spawn(move || sender.send(7));
        assert_eq!(block_on(receiver), Some(7));
        thread.join().unwrap();
    });
    loom::model(|| {
        let (sender, receiver) = oneshot::<u8>();
        let thread = thread::spawn(move || drop(sender));
        assert_eq!(block_on(receiver), None);
        thread.join().unwrap();
    });
}
