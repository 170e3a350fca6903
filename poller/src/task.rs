//! Tasks: where they are kept, and how they are woken.
//!
//! A task is a future in a frame, in a slot of its reactor's table. Frames are used again by tasks
//! of the same kind. Its waker knows only the slot and the
//! slot's generation, so wakers may travel to any thread while futures never do. A waker that
//! outlives its task names a generation that is gone, and wakes nothing.

use std::future::Future;
use std::pin::Pin;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Wake, Waker};

use crate::core::CURRENT;
use crate::remote::Shared;
use crate::spare;
use crate::sync::{AtomicBool, AtomicU64, fence};

/// Which task: the slot it lives in, and how many tasks lived there before it.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) struct TaskKey {
    slot: u32,
    generation: u32,
}

impl TaskKey {
    fn pack(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.slot)
    }

    fn unpack(word: u64) -> TaskKey {
        TaskKey { slot: word as u32, generation: (word >> 32) as u32 }
    }
}

/// What a task's waker points to.
pub(crate) struct TaskWaker {
    /// Up while the task is queued to run: however often it is woken, it is queued once. Up for
    /// good once the task is done.
    raised: AtomicBool,
    key: AtomicU64,
    shared: Arc<Shared>,
}

impl TaskWaker {
    /// The task is about to run: from here on a wake-up queues it again. A read-modify-write,
    /// because what was written before a wake-up that found the flag up must be visible to this
    /// run.
    pub(crate) fn lower(&self) {
        self.raised.swap(false, Ordering::AcqRel);
    }

    fn raise(&self) -> bool {
        !self.raised.swap(true, Ordering::AcqRel)
    }
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.raise() {
            return;
        }
        let key = TaskKey::unpack(self.key.load(Ordering::Relaxed));
        // On its own reactor a task is queued without a lock. A thread that is shutting down has no
        // current reactor.
        let queued_here = CURRENT.try_with(|current| match &*current.borrow() {
            Some(core) if ptr::eq(&*core.shared, &*self.shared) => {
                core.push_ready(key);
                true
            }
            _ => false,
        });
        if !queued_here.unwrap_or(false) {
            self.shared.push_ready(key);
        }
    }
}

/// A waker, twice: as the thing futures are polled with, and as the flag behind it.
pub(crate) struct Alarm {
    pub(crate) waker: Waker,
    pub(crate) flag: Arc<TaskWaker>,
}

/// A future where it stays while it runs.
pub(crate) type Frame = Pin<Box<dyn Work>>;

/// A future that is used up when its frame is put away.
pub(crate) trait Work {
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()>;

    /// Drops the future. The frame is kept for the next one of its kind.
    fn put_away(self: Pin<Box<Self>>);
}

impl<F: Future<Output = ()> + 'static> Work for Option<F> {
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.as_pin_mut().expect("a frame that is put away is not polled").poll(cx)
    }

    fn put_away(mut self: Pin<Box<Self>>) {
        self.set(None);
        spare::keep(self, size_of::<Self>());
    }
}

/// Puts a future into a frame.
pub(crate) fn frame<F: Future<Output = ()> + 'static>(future: F) -> Frame {
    match spare::take::<Pin<Box<Option<F>>>>() {
        Some(mut frame) => {
            frame.set(Some(future));
            frame
        }
        None => Box::pin(Some(future)),
    }
}

/// A future and its waker.
pub(crate) struct Task {
    pub(crate) future: Frame,
    /// The path of its function.
    pub(crate) name: &'static str,
    pub(crate) alarm: Alarm,
}

enum State {
    /// No task; perhaps the waker of the last one, to be used again.
    Vacant(Option<Alarm>),
    /// The task has been taken out to be run.
    Running,
    Waiting(Task),
}

struct Slot {
    generation: u32,
    state: State,
}

/// The tasks of one reactor.
pub(crate) struct TaskTable {
    shared: Arc<Shared>,
    slots: Vec<Slot>,
    free: Vec<u32>,
}

impl TaskTable {
    pub(crate) fn new(shared: Arc<Shared>) -> TaskTable {
        TaskTable { shared, slots: Vec::new(), free: Vec::new() }
    }

    /// Keeps a new task. Its flag is up: the caller queues it.
    pub(crate) fn insert(&mut self, name: &'static str, future: Frame) -> TaskKey {
        let index = self.free.pop().unwrap_or_else(|| {
            let index = u32::try_from(self.slots.len()).expect("fewer than 2^32 tasks");
            self.slots.push(Slot { generation: 0, state: State::Vacant(None) });
            index
        });
        let slot = &mut self.slots[index as usize];
        let key = TaskKey { slot: index, generation: slot.generation };
        let State::Vacant(spare) = std::mem::replace(&mut slot.state, State::Running) else {
            panic!("a free slot holds a task");
        };
        let alarm = match spare {
            Some(alarm) => {
                alarm.flag.key.store(key.pack(), Ordering::Relaxed);
                alarm
            }
            None => {
                let flag = Arc::new(TaskWaker {
                    raised: AtomicBool::new(true),
                    key: AtomicU64::new(key.pack()),
                    shared: self.shared.clone(),
                });
                Alarm { waker: Waker::from(flag.clone()), flag }
            }
        };
        slot.state = State::Waiting(Task { future, name, alarm });
        key
    }

    /// Takes a task out to be run, or `None` when it is already done.
    pub(crate) fn take(&mut self, key: TaskKey) -> Option<Task> {
        let slot = &mut self.slots[key.slot as usize];
        if slot.generation != key.generation || !matches!(slot.state, State::Waiting(_)) {
            return None;
        }
        match std::mem::replace(&mut slot.state, State::Running) {
            State::Waiting(task) => Some(task),
            _ => None,
        }
    }

    /// Puts a task back that has to wait for more.
    pub(crate) fn put_back(&mut self, key: TaskKey, task: Task) {
        let slot = &mut self.slots[key.slot as usize];
        assert!(matches!(slot.state, State::Running), "a task comes back to its own slot");
        slot.state = State::Waiting(task);
    }

    /// The task is done and its future dropped: frees its slot.
    pub(crate) fn retire(&mut self, key: TaskKey, alarm: Alarm) {
        // Up for good: wakers that outlive the task queue nothing.
        alarm.flag.raise();
        // Two owners, both in our hands: nobody else can wake through it, now or later. The fence
        // pairs with the release of the last other owner, so its wake-ups come before our reuse.
        let unshared = Arc::strong_count(&alarm.flag) == 2;
        fence(Ordering::Acquire);
        let slot = &mut self.slots[key.slot as usize];
        assert!(matches!(slot.state, State::Running), "a task is done only once");
        slot.generation = slot.generation.wrapping_add(1);
        slot.state = State::Vacant(unshared.then_some(alarm));
        self.free.push(key.slot);
    }

    /// Takes out any task that waits, lowest slot first: for a reactor that is being dropped.
    pub(crate) fn take_any(&mut self) -> Option<(TaskKey, Task)> {
        let at = self.slots.iter().position(|slot| matches!(slot.state, State::Waiting(_)))?;
        let slot = u32::try_from(at).expect("fewer than 2^32 tasks");
        let key = TaskKey { slot, generation: self.slots[at].generation };
        self.take(key).map(|task| (key, task))
    }
}
