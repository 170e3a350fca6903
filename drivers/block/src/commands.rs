//! The commands of a queue whose driver ends them on the reactor that gave them: a table without
//! locks, and without a count that threads share.
//!
//! ```text
//!   give ─► Pending ── end ──► Done ── the caller takes what was done ──────────► free
//!              │ └─ the caller goes ──► Orphan ── end ──► free, its buffer is dropped
//!              └─ abandon ──► Abandoned ── the caller is told ──► Orphan
//!                                 └─ end ──► Done, without the buffer
//! ```
//!
//! A buffer lies in the table from the moment that its command was given until its end, so a driver
//! needs nothing but the [`CommandId`] in its own tables. Slots are used again; there are as many as
//! there were ever commands at once that somebody still cared for.
//!
//! **Who looks after them.** Whoever has to see that commands end in time ([`Commands::on_begin`]) is called
//! with the first command after a [rest](Commands::rest), and looks for as long as there are any: so
//! one that is watched costs no more than one that is not.
//!
//! Nobody is woken, and no buffer is dropped, while the table is borrowed: a driver gathers both in
//! [`Told`] and tells when it holds nothing any more.

use std::cell::{Cell, OnceCell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Waker};

use crate::completion::Completion;
use crate::watch::Ended;
use crate::{Done, IoBuf, IoError};

/// A command in the table of its queue, for the driver: until it has ended it.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct CommandId(u32);

/// Who has the command.
#[derive(Copy, Clone, PartialEq, Eq, Default, Debug)]
enum Phase {
    #[default]
    Free,
    /// The driver has it and the caller waits.
    Pending,
    /// The driver has it; the caller is not interested any more.
    Orphan,
    /// The driver has it; the caller is told that it failed.
    Abandoned,
    /// It is done, and the caller has not been told.
    Done,
}

#[derive(Default)]
struct Slot {
    phase: Phase,
    /// Commands given before it.
    number: u64,
    waker: Option<Waker>,
    /// The driver's until it has ended the command, then the caller's.
    buf: Option<IoBuf>,
    error: Option<IoError>,
}

#[derive(Default)]
struct Table {
    slots: Vec<Slot>,
    free: Vec<u32>,
    given: u64,
}

/// The commands of one queue. For drivers.
pub struct Commands {
    table: RefCell<Table>,
    /// Nobody looks after them, for there are none.
    resting: Cell<bool>,
    begin: RefCell<Vec<Box<dyn Fn()>>>,
    /// Whether the drive is not asked any more, if it is watched.
    ended: OnceCell<Arc<Ended>>,
}

/// Whom to wake, and what to drop, when nothing is borrowed any more. For drivers.
#[derive(Default)]
pub struct Told {
    wakers: Vec<Waker>,
    buffers: Vec<IoBuf>,
}

impl Told {
    /// Room for the ends of so many commands at a time; for more it grows.
    pub fn with_capacity(ends: usize) -> Told {
        Told { wakers: Vec::with_capacity(ends), buffers: Vec::with_capacity(ends) }
    }

    /// Wakes those who wait, in the order of the ends.
    #[inline(always)]
    pub fn tell(&mut self) {
        if self.wakers.len() == 1
            && let Some(waker) = self.wakers.pop()
        {
            waker.wake();
        } else if !self.wakers.is_empty() {
            self.wake_all();
        }
        if !self.buffers.is_empty() {
            self.buffers.clear();
        }
    }

    #[inline(never)]
    fn wake_all(&mut self) {
        for waker in self.wakers.drain(..) {
            waker.wake();
        }
    }
}

impl Table {
    #[inline(always)]
    fn take_free(&mut self) -> u32 {
        match self.free.pop() {
            Some(index) => index,
            None => self.grow(),
        }
    }

    #[cold]
    fn grow(&mut self) -> u32 {
        self.slots.push(Slot::default());
        // Then no slot is freed by asking for memory.
        self.free.reserve(self.slots.len());
        u32::try_from(self.slots.len() - 1).expect("fewer than 2^32 commands")
    }

    #[inline(always)]
    fn slot(&mut self, id: CommandId) -> &mut Slot {
        &mut self.slots[id.0 as usize]
    }

    /// A driver ends what nobody waits for.
    #[cold]
    fn end_unwanted(&mut self, id: CommandId, told: &mut Told) {
        let slot = self.slot(id);
        told.buffers.extend(slot.buf.take());
        match slot.phase {
            Phase::Abandoned => slot.phase = Phase::Done,
            Phase::Orphan => {
                slot.phase = Phase::Free;
                self.free.push(id.0);
            }
            phase => panic!("a command that is {phase:?} cannot end"),
        }
    }
}

impl Commands {
    /// A table with room for so many commands at once; for more it grows.
    pub fn with_capacity(commands: usize) -> Commands {
        let slots = std::iter::repeat_with(Slot::default).take(commands).collect();
        let free = (0..commands as u32).rev().collect();
        Commands {
            table: RefCell::new(Table { slots, free, given: 0 }),
            resting: Cell::new(true),
            begin: RefCell::default(),
            ended: OnceCell::new(),
        }
    }

    /// Calls `begin` with the first command after each [rest](Self::rest), on the way of whoever gives it,
    /// while the driver may be borrowed: it starts a task and does nothing else.
    pub fn on_begin(&self, begin: impl Fn() + 'static) {
        self.begin.borrow_mut().push(Box::new(begin));
    }

    /// The driver has no command, or whoever looks after them found none: nobody looks until there is one.
    pub fn rest(&self) {
        self.resting.set(true);
    }

    #[cold]
    fn begin(&self) {
        self.resting.set(false);
        self.begin.borrow().iter().for_each(|begin| begin());
    }

    /// The drive behind this is watched; `ended` tells when it is not asked any more.
    pub(crate) fn watch(&self, ended: Arc<Ended>) {
        assert!(self.ended.set(ended).is_ok(), "a queue is watched once");
    }

    /// Why nothing is to reach the drive any more, if so: what is submitted now ends like that.
    #[inline(always)]
    pub fn refusal(&self) -> Option<IoError> {
        match self.ended.get() {
            Some(ended) if ended.is_so() => Some(ended.error()),
            _ => None,
        }
    }

    /// Whether the driver has none.
    pub(crate) fn is_empty(&self) -> bool {
        let idle = |slot: &Slot| matches!(slot.phase, Phase::Free | Phase::Done);
        self.table.borrow().slots.iter().all(idle)
    }

    /// How many commands there have been.
    pub(crate) fn given(&self) -> u64 {
        self.table.borrow().given
    }

    /// A new command, whose buffer, if there is one, is taken. The caller is to have its [end](Self::completion).
    #[inline(always)]
    pub fn give(&self, buf: &mut Option<IoBuf>) -> CommandId {
        if self.resting.get() {
            self.begin();
        }
        let mut table = self.table.borrow_mut();
        let id = CommandId(table.take_free());
        let number = table.given;
        table.given += 1;
        let slot = table.slot(id);
        (slot.phase, slot.number) = (Phase::Pending, number);
        assert!(slot.buf.is_none(), "a free slot is empty");
        // As an assignment it would be moved by way of the stack, and what is overwritten be looked at.
        // SAFETY: two places that are borrowed, of which the one is not in the other. `None` is not
        // dropped by being overwritten, and each place has its own value afterwards.
        unsafe {
            std::ptr::copy_nonoverlapping(buf, &raw mut slot.buf, 1);
            std::ptr::write(buf, None);
        }
        id
    }

    /// The caller's end of a command that was just given: there is one.
    #[inline(always)]
    pub fn completion(self: &Rc<Commands>, id: CommandId) -> Completion {
        Completion::of_table(Rc::clone(self), id)
    }

    /// The command was done.
    #[inline(always)]
    pub fn end(&self, id: CommandId, told: &mut Told) {
        let mut table = self.table.borrow_mut();
        let slot = table.slot(id);
        if slot.phase != Phase::Pending {
            return table.end_unwanted(id, told);
        }
        slot.phase = Phase::Done;
        if let Some(waker) = slot.waker.take() {
            told.wakers.push(waker);
        }
    }

    /// The command was not done.
    #[cold]
    pub fn fail(&self, id: CommandId, error: IoError, told: &mut Told) {
        let mut table = self.table.borrow_mut();
        let slot = table.slot(id);
        if slot.phase == Phase::Pending {
            slot.error = Some(error);
        }
        drop(table);
        self.end(id, told);
    }

    /// The same, and nobody knows whether the device still uses its buffer, which is leaked.
    #[cold]
    pub fn leak(&self, id: CommandId, error: IoError, told: &mut Told) {
        std::mem::forget(self.table.borrow_mut().slot(id).buf.take());
        self.fail(id, error, told);
    }

    /// Ends every command for which somebody still waits, while the driver has it: its buffer is dropped
    /// when the driver is done with it.
    pub(crate) fn abandon_all(&self, error: impl Fn() -> IoError) {
        let mut table = self.table.borrow_mut();
        let mut told = Told::default();
        for slot in table.slots.iter_mut().filter(|slot| slot.phase == Phase::Pending) {
            slot.phase = Phase::Abandoned;
            slot.error = Some(error());
            told.wakers.extend(slot.waker.take());
        }
        drop(table);
        told.tell();
    }

    /// The command given first of those that the driver has and somebody waits for, by its number.
    pub(crate) fn oldest(&self) -> Option<u64> {
        let table = self.table.borrow();
        let pending = table.slots.iter().filter(|slot| slot.phase == Phase::Pending);
        pending.map(|slot| slot.number).min()
    }

    /// Whether the driver still has it; then who asks is woken when it is done.
    #[inline(always)]
    pub(crate) fn is_pending(&self, id: CommandId, cx: &mut Context<'_>) -> bool {
        let mut table = self.table.borrow_mut();
        let slot = table.slot(id);
        if slot.phase != Phase::Pending {
            return false;
        }
        match &mut slot.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            empty => {
                // SAFETY: `None` is not dropped by being overwritten.
                unsafe { std::ptr::write(empty, Some(cx.waker().clone())) };
            }
        }
        true
    }

    /// What was done; it is told once.
    #[inline(never)]
    pub(crate) fn take(&self, id: CommandId) -> Done {
        let mut table = self.table.borrow_mut();
        let slot = table.slot(id);
        if slot.phase != Phase::Done {
            return slot.told_of_abandoning();
        }
        slot.phase = Phase::Free;
        let buf = slot.buf.take();
        let result = slot.error.take().map_or(Ok(()), Err);
        table.free.push(id.0);
        Done { result, buf }
    }

    /// The caller is not interested any more.
    #[cold]
    pub(crate) fn forsake(&self, id: CommandId) {
        let mut table = self.table.borrow_mut();
        let slot = table.slot(id);
        let left = (slot.waker.take(), slot.buf.take_if(|_| slot.phase == Phase::Done));
        let error = slot.error.take();
        match slot.phase {
            Phase::Pending | Phase::Abandoned => slot.phase = Phase::Orphan,
            Phase::Done => {
                slot.phase = Phase::Free;
                table.free.push(id.0);
            }
            phase => panic!("a command that is {phase:?} has no caller"),
        }
        drop(table);
        // The buffer goes back to its pool here, which may wake others: nothing is borrowed.
        drop((left, error));
    }
}

impl Slot {
    #[cold]
    fn told_of_abandoning(&mut self) -> Done {
        let phase = self.phase;
        assert!(phase == Phase::Abandoned, "a command that is {phase:?} has no caller");
        self.phase = Phase::Orphan;
        let error = self.error.take().expect("why it was abandoned");
        Done { result: Err(error), buf: None }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::task::{Poll, Wake};

    use memkv_dma::{Class, Hugepages, Pool, PoolConfig};

    use super::*;

    #[derive(Default)]
    struct Wakes(AtomicU32);

    impl Wake for Wakes {
        fn wake(self: Arc<Wakes>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    struct Bench {
        commands: Rc<Commands>,
        pool: Pool,
        told: Told,
        wakes: Arc<Wakes>,
    }

    impl Bench {
        fn new() -> Bench {
            let config = PoolConfig { size: 8 << 20, chunk: 2 << 20, hugepages: Hugepages::Never };
            let pool = Pool::new(config).unwrap();
            let commands = Rc::new(Commands::with_capacity(1));
            Bench { commands, pool, told: Told::default(), wakes: Arc::default() }
        }

        fn give(&self) -> (CommandId, Completion) {
            let buffer = self.pool.allocate(Class::Receive, 4096).unwrap();
            let id = self.commands.give(&mut Some(buffer.into()));
            (id, self.commands.completion(id))
        }

        fn poll(&self, completion: &mut Completion) -> Option<Done> {
            let waker = Waker::from(Arc::clone(&self.wakes));
            match Pin::new(completion).poll(&mut Context::from_waker(&waker)) {
                Poll::Ready(done) => Some(done),
                Poll::Pending => None,
            }
        }

        fn wakes(&self) -> u32 {
            self.wakes.0.load(Ordering::Relaxed)
        }

        fn used(&self) -> u64 {
            self.pool.stats().used.iter().sum()
        }

        fn slots(&self) -> (usize, usize) {
            let table = self.commands.table.borrow();
            (table.slots.len(), table.free.len())
        }
    }

    #[test]
    fn what_is_done_is_told_once_and_its_slot_is_used_again() {
        let mut bench = Bench::new();
        for round in 1..=3 {
            let (id, mut completion) = bench.give();
            assert!(bench.poll(&mut completion).is_none());
            assert!(bench.poll(&mut completion).is_none());
            bench.commands.end(id, &mut bench.told);
            assert_eq!(bench.wakes(), round - 1, "not while something is borrowed");
            bench.told.tell();
            assert_eq!(bench.wakes(), round);
            let done = bench.poll(&mut completion).expect("it was done");
            assert!(done.result.is_ok() && done.buf.is_some());
            assert_eq!(bench.slots(), (1, 1));
        }
        assert_eq!(bench.used(), 0);
    }

    #[test]
    #[should_panic(expected = "after its end")]
    fn what_was_told_is_not_told_again() {
        let mut bench = Bench::new();
        let (id, mut completion) = bench.give();
        bench.commands.end(id, &mut bench.told);
        assert!(bench.poll(&mut completion).is_some());
        bench.poll(&mut completion);
    }

    #[test]
    fn a_failure_comes_with_the_buffer_or_leaks_it() {
        let mut bench = Bench::new();
        let ((one, mut first), (two, mut second)) = (bench.give(), bench.give());
        bench.commands.fail(one, IoError::Offline, &mut bench.told);
        bench.commands.leak(two, IoError::Offline, &mut bench.told);
        let done = bench.poll(&mut first).unwrap();
        assert!(matches!(done.result, Err(IoError::Offline)) && done.buf.is_some());
        drop(done);
        let done = bench.poll(&mut second).unwrap();
        assert!(matches!(done.result, Err(IoError::Offline)) && done.buf.is_none());
        assert_eq!(bench.used(), 16384, "what was leaked is never used again");
    }

    #[test]
    fn a_buffer_whose_caller_went_is_dropped_when_the_driver_is_done_with_it() {
        let mut bench = Bench::new();
        let (id, mut completion) = bench.give();
        assert!(bench.poll(&mut completion).is_none());
        drop(completion);
        assert_eq!((bench.commands.oldest(), bench.used()), (None, 16384));
        bench.commands.end(id, &mut bench.told);
        assert_eq!(bench.used(), 16384, "not while something is borrowed");
        bench.told.tell();
        assert_eq!((bench.used(), bench.wakes(), bench.slots()), (0, 0, (1, 1)));
        // And one that goes when it is done already.
        let (id, completion) = bench.give();
        bench.commands.end(id, &mut bench.told);
        drop(completion);
        assert_eq!((bench.used(), bench.slots()), (0, (1, 1)));
    }

    #[test]
    fn abandoned_commands_keep_their_buffers_until_the_driver_is_done() {
        let mut bench = Bench::new();
        let ((one, mut first), (two, mut second)) = (bench.give(), bench.give());
        assert_eq!(bench.commands.oldest(), Some(0));
        assert!(bench.poll(&mut first).is_none());
        bench.commands.abandon_all(|| IoError::Offline);
        assert_eq!((bench.wakes(), bench.commands.oldest()), (1, None));
        // One is told before the driver is done, one after.
        let done = bench.poll(&mut first).unwrap();
        assert!(matches!(done.result, Err(IoError::Offline)) && done.buf.is_none());
        bench.commands.end(one, &mut bench.told);
        bench.commands.end(two, &mut bench.told);
        assert_eq!(bench.used(), 2 * 16384);
        bench.told.tell();
        assert_eq!(bench.used(), 0);
        let done = bench.poll(&mut second).unwrap();
        assert!(matches!(done.result, Err(IoError::Offline)) && done.buf.is_none());
        assert_eq!(bench.slots(), (2, 2));
    }

    #[test]
    #[should_panic(expected = "cannot end")]
    fn a_command_ends_once() {
        let mut bench = Bench::new();
        let (id, _completion) = bench.give();
        bench.commands.end(id, &mut bench.told);
        bench.commands.end(id, &mut bench.told);
    }
}
